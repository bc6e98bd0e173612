"""``fastmobilenet classify``: the classes that a network sees in pictures."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from typing import TYPE_CHECKING, Any

from ..folders import SUFFIXES, pictures
from .terminal import (
    CommandError,
    Progress,
    add_arch_option,
    add_model_option,
    check_trained,
    load_model,
    positive,
    printable,
    reason,
    report,
    why,
)

if TYPE_CHECKING:
    from ..model import Model, Prediction

EPILOG = """\
examples:
  fastmobilenet classify cat.jpg
  fastmobilenet classify cat.jpg --model mobilenet_v2_1.0_224_quant.tflite
  fastmobilenet classify holiday/ --model mobilenet_v2.onnx --top 1
  fastmobilenet classify cat.jpg --model timm/mobilenetv3_large_100.ra_in1k --labels imagenet_labels.txt
  fastmobilenet classify archive/ --model mobilenet_v2.fmn --top 1 --out results.csv --workers 8
  fastmobilenet classify archive/ --model mobilenet_v2.fmn --engine ray --out results.parquet
  fastmobilenet classify *.jpg --model weights.safetensors --arch mobilenet_v2 --labels names.txt --json

output:
  A line for each class, most probable first: its name and its probability. With several pictures, or a folder,
  the picture's path goes before them. --json prints one object a line instead:
    {"image": PATH, "predictions": [{"label": NAME, "index": CLASS, "score": PROBABILITY}, ...]}
    {"image": PATH, "error": REASON}
  --out writes a row a picture to a file instead: .csv, .jsonl (the objects of --json), or .parquet (a folder of parts;
  needs pyarrow). Started again with the same file, the command goes on where it was stopped: pictures that have a row
  are left out. They are the same pictures if they are named in the same way.
  A picture that cannot be read is reported on standard error, the others are classified all the same, and the exit
  status is 1.

names of the classes:
  those of --labels; else those in the model file; else those of a file *labels*.txt in its folder that has as many
  lines as the network has classes.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "classify",
        help="say what is in pictures",
        description="Say what is in pictures. A folder stands for the pictures in it and in the folders below it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, or a folder of pictures")
    add_model_option(parser)
    add_arch_option(parser)
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="classes a picture (default: 5)")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads (default: the cores it may use)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a picture")
    parser.add_argument("--out", metavar="FILE", help="write a row a picture to this .csv, .jsonl or .parquet")
    parser.add_argument(
        "--workers",
        type=positive,
        metavar="N",
        help="with --out: pictures at the same time, one thread each (default: as many as threads)",
    )
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="with --out: where to compute. ray: the cluster that RAY_ADDRESS names, or this machine; --workers actors "
        "of --threads CPUs each (default: 1, and as many actors as fit). All machines must see the pictures and FILE",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.model is not None:
        check_trained(args.model, "classify")
    if args.out is not None and args.json:
        raise CommandError("--json prints, and --out writes to a file: use one of them (--out FILE.jsonl)")
    if args.workers is not None and args.out is None:
        raise CommandError("--workers is for --out; --threads says how many threads a picture takes")
    if args.engine != "local" and args.out is None:
        raise CommandError(f"--engine {args.engine} is for --out FILE")
    model = load_model(args)
    if model.detector is not None:
        raise CommandError(f'{args.model} is a detector: it gives pictures no class; use "fastmobilenet detect"')
    paths, problems = collect(args.images)
    for problem in problems:
        report(problem)
    if args.out is not None:
        return 1 if _write_rows(model, paths, args) + len(problems) else 0
    headings = len(args.images) > 1 or os.path.isdir(args.images[0])
    # On a terminal that shows the results, these are the progress.
    progress = Progress(len(paths) > 1 and not sys.stdout.isatty())
    failed = len(problems)
    try:
        for done, path in enumerate(paths):
            progress.show(f"{done} of {len(paths)}: {os.path.basename(path)}")
            result = classify(model, path, args.top)
            if isinstance(result, str):
                failed += 1
                progress.clear()
                report(f"{path or repr(path)}: {result}")
            if args.json:
                print(as_json(path, result), flush=True)
            elif not isinstance(result, str):
                print("\n".join(lines(path if headings else None, result)), flush=True)
    finally:
        progress.clear()
    if failed and len(paths) > 1:
        report(f"{failed} of {len(paths) + len(problems)} failed")
    return 1 if failed else 0


def _write_rows(model: Model, paths: list[str], args: argparse.Namespace) -> int:
    """Writes the rows that --out lacks; returns how many pictures failed now."""
    from . import engines
    from .results import open_results

    if model.classes is None:
        raise CommandError(f"{model.name} is no classifier: it has no classes to write")
    results = open_results(args.out, args.top)
    failed = 0
    progress = Progress()
    try:
        left = [path for path in dict.fromkeys(paths) if not results.has(path)]
        if len(left) < len(paths):
            report(f"{args.out}: has {len(paths) - len(left)} of {len(paths)} pictures already")
        for done, (path, result) in enumerate(engines.rows(model, left, args), 1):
            if isinstance(result, str):
                failed += 1
                progress.clear()
                report(f"{path or repr(path)}: {result}")
            results.add(path, result)
            progress.show(f"{done} of {len(left)}: {os.path.basename(path)}")
    finally:
        progress.clear()
        results.close()
    if failed and len(paths) > 1:
        report(f"{failed} of {len(paths)} failed")
    return failed


def collect(images: list[str]) -> tuple[list[str], list[str]]:
    """The pictures that the arguments stand for, in their order and sorted in each folder; and what is wrong with
    folders. Links to folders are not followed, names that begin with a dot are left out, and so are pipes, sockets
    and devices in a folder: they are no pictures, whatever their names."""
    paths: list[str] = []
    problems: list[str] = []
    for image in images:
        if not os.path.isdir(image):
            paths.append(image)
            continue
        closed: list[OSError] = []
        found = list(pictures(image, closed))
        paths.extend(found)
        problems.extend(map(reason, closed))
        if not found and not closed:
            problems.append(f"{image}: no pictures in this folder ({' '.join(SUFFIXES)})")
    return paths, problems


def classify(model: Model, path: str, top: int) -> list[Prediction] | str:
    """The predictions for one picture, or in one line why there are none."""
    try:
        return model.classify(path, top)
    except (OSError, ValueError, TypeError, MemoryError) as error:
        return why(error, path)


def lines(heading: str | None, predictions: list[Prediction]) -> list[str]:
    labels = [printable(p.label) for p in predictions]
    width = max(map(len, labels))
    indent = "" if heading is None else "  "
    body = [f"{indent}{label:<{width}}  {100 * p.score:5.1f} %" for label, p in zip(labels, predictions, strict=True)]
    return body if heading is None else [printable(heading), *body]


def as_json(path: str, result: list[Prediction] | str) -> str:
    if isinstance(result, str):
        return json.dumps({"image": path, "error": result})
    predictions = [
        {"label": p.label, "index": p.index, "score": p.score if math.isfinite(p.score) else None}  # JSON has no NaN
        for p in result
    ]
    return json.dumps({"image": path, "predictions": predictions}, allow_nan=False)
