"""``fastmobilenet profile``: where the time of a network goes, layer by layer."""

from __future__ import annotations

import argparse
from typing import Any

from .terminal import add_arch_option, load_graph, picture_size, positive, printable

DEFAULT_RUNS = 20

EPILOG = """\
examples:
  fastmobilenet profile cat.jpg
  fastmobilenet profile cat.jpg --model mobilenet_v2_1.0_224_quant.tflite
  fastmobilenet profile cat.jpg --model mobilenet_v1 --threads 1 --html profile.html
  fastmobilenet profile cat.jpg --model weights.safetensors --arch mobilenet_v2 --json

output:
  A line for each layer; nodes that are fused share one. The times are those of the fastest run as a whole, so with
  the call around the layers they add up to its time. Reading and resizing the picture is not part of them.
  peak %   the rate, of what the threads reach with nothing but multiply-adds, measured in the same call
  bound    what limits the layer at best: the resource that alone would need the most time for it. Resources are
           the multiply-adds, the second-level caches (L2), what lies behind them for maps (L3 or memory) or for
           weights (weight stream), and the fixed cost of a layer (overhead). Bandwidths are measured too.
  bound %  the time by that bound, of the measured time: how much of what is possible the kernel reaches
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "profile",
        help="show where the time goes, layer by layer",
        description="Run a model on a picture and show the time of every layer, and what limits it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("image", metavar="IMAGE", help="a picture")
    parser.add_argument(
        "--model",
        metavar="FILE|NAME",
        help="model file, timm/NAME of the hub, or architecture (default: the starter model)",
    )
    add_arch_option(parser)
    parser.add_argument("--size", type=picture_size, metavar="HxW", help="picture size (default: the model's own)")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads (default: the cores it may use)")
    parser.add_argument(
        "--runs",
        type=positive,
        default=DEFAULT_RUNS,
        metavar="N",
        help=f"measured runs, of which the fastest is shown (default: {DEFAULT_RUNS})",
    )
    parser.add_argument("--html", metavar="OUT", help="write a page with a bar for every layer to this file as well")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from .. import starter
    from ..model import Model

    graph, _ = load_graph(starter.path() if args.model is None else args.model, args.arch)
    model = Model.from_graph(graph, threads=args.threads, labels=())  # nothing is named here
    profile = model.profile(args.image, size=args.size, runs=args.runs)
    if args.html is not None:
        write(args.html, profile.to_html())
    print(profile.to_json() if args.json else "\n".join(map(printable, str(profile).split("\n"))))
    return 0


def write(path: str, text: str) -> None:
    """The text to a file, whole or not at all. What is no plain file, like /dev/stdout, is written to as it is.

    Raises OSError that names ``path``.
    """
    from ..atomic import replacing

    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
