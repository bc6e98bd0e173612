"""``fastmobilenet classify``: the classes that a network sees in pictures."""

from __future__ import annotations

import argparse
import json
import math
import os
import stat
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .terminal import Progress, add_arch_option, check_trained, positive, printable, reason, report

if TYPE_CHECKING:
    from ..model import Model, Prediction

#: What is taken for a picture in a folder. A file that is named on the command line is tried whatever its name.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

EPILOG = """\
examples:
  fastmobilenet classify cat.jpg --model mobilenet_v2_1.0_224_quant.tflite
  fastmobilenet classify holiday/ --model mobilenet_v2.onnx --top 1
  fastmobilenet classify *.jpg --model weights.safetensors --arch mobilenet_v2 --labels names.txt --json

output:
  A line for each class, most probable first: its name and its probability. With several pictures, or a folder,
  the picture's path goes before them. --json prints one object a line instead:
    {"image": PATH, "predictions": [{"label": NAME, "index": CLASS, "score": PROBABILITY}, ...]}
    {"image": PATH, "error": REASON}
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
    parser.add_argument("--model", required=True, metavar="FILE", help="model file: .onnx, .tflite, .safetensors, .pth")
    add_arch_option(parser)
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="classes a picture (default: 5)")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads (default: the cores it may use)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a picture")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..model import Model

    check_trained(args.model, "classify")
    model = Model.load(args.model, arch=args.arch, labels=args.labels, threads=args.threads)
    paths, problems = collect(args.images)
    for problem in problems:
        report(problem)
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
        found = list(_walk(image, closed))
        paths.extend(found)
        problems.extend(map(reason, closed))
        if not found and not closed:
            problems.append(f"{image}: no pictures in this folder ({' '.join(SUFFIXES)})")
    return paths, problems


def _walk(folder: str, closed: list[OSError]) -> Iterator[str]:
    """``closed`` gets the errors of folders that cannot be read."""
    for root, folders, files in os.walk(folder, onerror=closed.append):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            path = os.path.join(root, name)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and not _is_special(path):
                yield path


def _is_special(path: str) -> bool:
    """Whether it is something other than a file. A link that leads nowhere is a file that is missing."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def classify(model: Model, path: str, top: int) -> list[Prediction] | str:
    """The predictions for one picture, or in one line why there are none."""
    try:
        return model.classify(path, top)
    except MemoryError:
        return "not enough memory for this picture"
    except (OSError, ValueError, TypeError) as error:
        return reason(error, path)


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
