"""``fastmobilenet quantize``: any model file as an int8 .fmn file."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from .convert import SUFFIX
from .terminal import CommandError, Progress, add_arch_option, check_trained, picture_size, positive, printable, report

EPILOG = """\
examples:
  fastmobilenet quantize mobilenet_v2.onnx photos/ mobilenet_v2_int8.fmn
  fastmobilenet quantize weights.pth photos/ net.fmn --arch mobilenet_v2 --keep features.0 --keep classifier

IMAGES is a folder of some 30 to 100 pictures of the kind that the network will see, or one picture. They set the range
of every tensor; a part of them is held out and only tests the result.

output:
  How often the best class is still the same, the sizes of both networks as .fmn files, their times for one picture, and
  how much signal there is to noise. A layer of less than 10 dB gets a warning; --keep leaves a layer in fp32. --json
  prints all that as one object, with the signal-to-noise ratio of every layer. The .fmn file is written in any case.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "quantize",
        help="write a model as an int8 .fmn file: a quarter of the size, and faster",
        description="Quantise a network after its training, with some pictures, and write it to a .fmn file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="MODEL", help="a model file of any kind, or timm/NAME of the hub")
    parser.add_argument("images", metavar="IMAGES", help="a folder of pictures")
    parser.add_argument("target", metavar="OUT", help="the file to write; its name ends in .fmn")
    add_arch_option(parser)
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one a line")
    parser.add_argument(
        "--keep", metavar="LAYER", nargs="+", action="extend", default=[], help="layers to leave in fp32"
    )
    parser.add_argument(
        "--held-out",
        type=_share,
        default=0.2,
        metavar="SHARE",
        help="share of the pictures that only test (default: 0.2)",
    )
    parser.add_argument(
        "--size", type=picture_size, metavar="HxW", help="size to calibrate at (default: the model's own)"
    )
    parser.add_argument("--no-equalize", action="store_true", help="do not bring channels to more equal ranges")
    parser.add_argument("--no-bias-correction", action="store_true", help="do not correct biases for rounded weights")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads (default: the cores it may use)")
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.set_defaults(run=run)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"expected a share from 0 to less than 1, not {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    from ..model import Model

    check_trained(args.source, "quantize")
    if not args.target.lower().endswith(SUFFIX):
        raise CommandError(f"{args.target}: what is written is a {SUFFIX} file; give OUT a name that ends in {SUFFIX}")
    model = Model.load(args.source, precision="fp32", arch=args.arch, labels=args.labels, threads=args.threads)
    progress = Progress()
    try:
        quantized = model.quantize(
            args.images if os.path.isdir(args.images) else [args.images],
            held_out=args.held_out,
            equalize=not args.no_equalize,
            bias_correction=not args.no_bias_correction,
            keep=args.keep,
            progress=lambda stage, done, total: progress.show(f"{stage}: {done} of {total}"),
            size=args.size,
        )
    finally:
        progress.clear()
    quantized.save(args.target)
    result = quantized.quantization
    assert result is not None
    if args.json:
        print(json.dumps({"model": model.name, "written": args.target, **result.as_dict()}, allow_nan=False))
        return 0
    print("\n".join(printable(line) for line in result.lines()))
    print(f"{'written':<12}  {printable(args.target)}")
    for warning in result.warnings:
        report(warning)
    return 0
