"""``fastmobilenet evaluate``: how often a model is right."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from .terminal import (
    CommandError,
    Progress,
    add_arch_option,
    add_model_option,
    check_trained,
    load_model,
    picture_size,
    positive,
    printable,
    report,
    table,
)

if TYPE_CHECKING:
    from ..evaluation import Evaluation

#: The confusion matrix of more classes does not fit a terminal; --json and --plot have it.
MOST_CLASSES = 20
#: Pictures that failed are named one by one up to here.
MOST_FAILURES = 10

EPILOG = """\
examples:
  fastmobilenet evaluate --data photos/
  fastmobilenet evaluate --model mobilenet_v2.onnx --data labels.csv --labels names.txt --json
  fastmobilenet evaluate --model net.fmn --data cifar10_test.npz --plot confusion.png

data:
  a folder, in which every class has a folder with its name: photos/cat/1.jpg, photos/dog/2.jpg;
  a .csv file with a column "image" of paths, relative to the file, and a column "label" of names or numbers;
  an .npz file with the arrays labels (n,) and images, uint8 (n, height, width, 3), or jpeg, the bytes of all files in a
  row, and offsets (n + 1,); and perhaps names.
  Names are those of the model; capitals, "_" and "-" do not matter.

output:
  top-1 and top-5: the share of pictures whose class is the most probable one, or one of the five most probable.
  Pictures per second: with reading and resizing. The confusion matrix has a row for each true class; --json and --plot
  have it for any number of classes. A picture that cannot be read counts for nothing, is reported, and makes the exit
  status 1.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="measure how often a model is right: top-1, top-5, confusion matrix",
        description="Run a classifier on pictures whose classes are known, and count how often it is right.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_option(parser)
    parser.add_argument(
        "--data", required=True, metavar="FOLDER|FILE", help="folder of classes, .csv file or .npz file"
    )
    add_arch_option(parser)
    parser.add_argument("--labels", metavar="FILE", help="names of the model's classes, one a line")
    parser.add_argument("--precision", choices=("fp32", "int8"), help="arithmetic (default: that of the file)")
    parser.add_argument("--count", type=positive, metavar="N", help="use N of the pictures, from all over")
    parser.add_argument("--size", type=picture_size, metavar="HxW", help="picture size (default: the model's own)")
    parser.add_argument(
        "--workers", type=positive, metavar="N", help="threads that read and run (default: the cores it may use)"
    )
    parser.add_argument("--plot", metavar="OUT.png", help="write the confusion matrix as a picture to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from .. import evaluation

    if args.plot is not None and not args.plot.lower().endswith(".png"):
        raise CommandError(f"--plot {args.plot}: what is written is a .png file; give it a name that ends in .png")
    if args.model is not None:
        check_trained(args.model, "evaluate")
    data = evaluation.read(args.data)
    if args.count is not None:
        data = data.part(args.count)
    model = load_model(args)
    progress = Progress()
    try:
        result = evaluation.evaluate(
            model,
            data,
            workers=args.workers,
            size=args.size,
            progress=lambda done, total: progress.show(f"{done} of {total}"),
        )
    finally:
        progress.clear()
    if args.plot is not None and result.pictures:
        _plot(result, args.plot)
    if args.json:
        print(json.dumps({"data": args.data, **result.as_dict()}, allow_nan=False))
    else:
        print("\n".join(lines(args, result)))
    for image, error in result.failed[:MOST_FAILURES]:
        report(f"{image}: {error.removeprefix(f'{image}: ')}")
    if len(result.failed) > MOST_FAILURES:
        report(f"and {len(result.failed) - MOST_FAILURES} more of {len(data)} failed")
    return 1 if result.failed else 0


def _plot(result: Evaluation, path: str) -> None:
    from ..atomic import replacing
    from ..confusion_plot import draw

    page = draw(result)
    with replacing(path) as file:
        page.save(file, "PNG")


def lines(args: argparse.Namespace, result: Evaluation) -> list[str]:
    """All that is shown to people."""
    from ..evaluation import table as confusion
    from ..values import counted

    def share(right: int, part: float) -> str:
        return f"{100 * part:.2f} %  ({right} of {result.pictures})" if result.pictures else "no picture could be read"

    head = table(
        [
            ("model", printable(result.model)),
            ("data", f"{printable(args.data)}, {counted(result.pictures, 'picture')}"),
            ("top-1", share(result.right, result.top1)),
            ("top-5", share(result.right5, result.top5)),
            ("speed", f"{result.pictures_per_second:.0f} pictures/s, {counted(result.workers, 'worker')}"),
        ],
        set(),
    )
    classes = len(result.labels)
    if classes > MOST_CLASSES:
        return [*head, "", f"{classes} classes: --plot and --json have the confusion matrix"]
    rows = confusion(result, [printable(name) for name in result.labels])
    return [*head, "", *table(rows, set(range(1, len(rows[0]))))]
