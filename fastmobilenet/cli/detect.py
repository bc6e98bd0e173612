"""``fastmobilenet detect``: the objects that a detector sees in pictures, as text or drawn."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .classify import collect
from .terminal import CommandError, Progress, add_arch_option, check_trained, positive, printable, report, why

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ..detection import Detection
    from ..model import Model

EPILOG = """\
examples:
  fastmobilenet detect street.jpg --model ssd_mobilenet_v2_coco_quant_postprocess.tflite
  fastmobilenet detect street.jpg --model detector.fmn --score 0.3 --out annotated.png
  fastmobilenet detect photos/ --model detector.pth --arch ssdlite320_mobilenet_v3_large --labels coco.txt --json
  fastmobilenet detect photos/ --model detector.fmn --out drawn/

output:
  A line for each object, the surest first: its name, its score, and its box as x0 y0 x1 y1 in pixels of the picture,
  from the upper left corner. With several pictures, or a folder, the picture's path goes before them. --json prints one
  object a line instead:
    {"image": PATH, "detections": [{"label": NAME, "index": CLASS, "score": SCORE, "box": [X0, Y0, X1, Y1]}, ...]}
    {"image": PATH, "error": REASON}
  --out writes the picture with the boxes drawn into it, in the format of the name's extension; for several pictures, or
  a folder, it names a folder, in which each gets the name of its file with .png. Files are written whole or not at all.
  A picture that cannot be read is reported on standard error, the others are looked at all the same, and the exit
  status is 1.

names of the classes:
  as for "fastmobilenet classify".
"""


def share(text: str) -> float:
    """Argument type: a score."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, not {text!r}")
    return value


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "detect",
        help="find objects in pictures, with their boxes",
        description="Find objects in pictures. A folder stands for the pictures in it and in the folders below it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="a picture, or a folder of pictures")
    parser.add_argument("--model", required=True, metavar="FILE", help="a detector: .fmn, .tflite, .safetensors, .pth")
    add_arch_option(parser)
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--score", type=share, default=0.5, metavar="S", help="least score, 0 to 1 (default: 0.5)")
    parser.add_argument("--top", type=positive, metavar="N", help="at most so many objects a picture")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads (default: the cores it may use)")
    parser.add_argument("--json", action="store_true", help="print one JSON object a picture")
    parser.add_argument("--out", metavar="PATH", help="write the picture with its boxes here; for several, a folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..model import Model

    check_trained(args.model, "detect")
    several = len(args.images) > 1 or os.path.isdir(args.images[0])
    if args.out is not None and not several and not os.path.isdir(args.out):
        _check_format(args.out)
    model = Model.load(args.model, arch=args.arch, labels=args.labels, threads=args.threads)
    if model.detector is None:
        raise CommandError(f'{args.model} is no detector: it finds no boxes; use "fastmobilenet classify"')
    paths, problems = collect(args.images)
    for problem in problems:
        report(problem)
    targets = _targets(args.out, paths, several)
    progress = Progress(len(paths) > 1 and not sys.stdout.isatty())
    failed = len(problems)
    try:
        for done, (path, target) in enumerate(zip(paths, targets, strict=True)):
            progress.show(f"{done} of {len(paths)}: {os.path.basename(path)}")
            result = detect(model, path, args.score, args.top)
            if isinstance(result, str):
                failed += 1
                progress.clear()
                report(f"{path or repr(path)}: {result}")
            elif target is not None:
                _save(result[0], result[1], target)
            if args.json:
                print(as_json(path, result), flush=True)
            elif not isinstance(result, str):
                print("\n".join(lines(path if several else None, result[1])), flush=True)
    finally:
        progress.clear()
    if failed and len(paths) > 1:
        report(f"{failed} of {len(paths) + len(problems)} failed")
    return 1 if failed else 0


def detect(model: Model, path: str, score: float, top: int | None) -> Any:
    """(pixels, detections) for one picture, or in one line why there are none."""
    from .. import image

    try:
        pixels = image.decode(path)
        return pixels, model.detect(pixels, score, top=top)
    except (OSError, ValueError, TypeError, MemoryError) as error:
        return why(error, path)


def lines(heading: str | None, detections: list[Detection]) -> list[str]:
    indent = "" if heading is None else "  "
    labels = [printable(d.label) for d in detections]
    width = max(map(len, labels), default=0)
    body = [
        f"{indent}{label:<{width}}  {100 * d.score:5.1f} %  {' '.join(f'{v:7.1f}' for v in d.box)}"
        for label, d in zip(labels, detections, strict=True)
    ] or [f"{indent}nothing"]
    return body if heading is None else [printable(heading), *body]


def as_json(path: str, result: Any) -> str:
    if isinstance(result, str):
        return json.dumps({"image": path, "error": result})
    found = [{"label": d.label, "index": d.index, "score": d.score, "box": list(d.box)} for d in result[1]]
    return json.dumps({"image": path, "detections": found}, allow_nan=False)


# --- drawn pictures ---------------------------------------------------------------------------------------


def _targets(out: str | None, paths: list[str], several: bool) -> Iterator[str | None]:
    """Where the drawn picture of each path goes."""
    if out is None:
        yield from (None for _ in paths)
        return
    if not several and not os.path.isdir(out):
        yield out
        return
    os.makedirs(out, exist_ok=True)
    taken: set[str] = set()
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0] or "picture"
        name, count = stem, 1
        while name in taken:
            count += 1
            name = f"{stem}_{count}"
        taken.add(name)
        yield os.path.join(out, f"{name}.png")


def _check_format(path: str) -> str:
    """Pillow's name of the format that the extension stands for."""
    from PIL import Image

    Image.init()
    extension = os.path.splitext(path)[1].lower()
    kind = Image.registered_extensions().get(extension)
    if kind is None or kind not in Image.SAVE:
        what = extension or "no extension"
        raise CommandError(f"--out {path}: Pillow writes no pictures with {what}; use .png or .jpg")
    return kind


def _save(pixels: npt.NDArray[np.uint8], detections: list[Detection], path: str) -> None:
    """Drawn and encoded first: a format that cannot hold it touches no file."""
    import io

    from ..atomic import replacing
    from ..drawing import draw

    buffer = io.BytesIO()
    draw(pixels, detections).save(buffer, _check_format(path))
    with replacing(path) as file:
        file.write(buffer.getbuffer())
