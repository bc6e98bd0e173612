"""``fastmobilenet bench``: how fast a network runs here."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from .terminal import Progress, add_arch_option, load_graph, picture_size, positive, positive_seconds, printable, table

if TYPE_CHECKING:
    from ..benchmark import Result

DEFAULT_MODEL = "mobilenet_v2"

EPILOG = """\
examples:
  fastmobilenet bench
  fastmobilenet bench --model mobilenet_v1 --size 192 --threads 1
  fastmobilenet bench --model mobilenet_v2_1.0_224_quant.tflite --batch 8 --json

Times one call with pixels that have the network's size already. An architecture is run with random weights: the
time does not depend on them. The peak is what one thread reaches with nothing but multiply-adds, measured in the
same run, times the threads; for what runs in int8, with dot products of bytes. On a shared machine trust the minimum
and the share of the peak more than the median.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure the speed of a model on this machine",
        description="Measure the speed of a model on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="FILE|NAME",
        help=f"model file, timm/NAME of the hub, or architecture (default: {DEFAULT_MODEL})",
    )
    add_arch_option(parser)
    parser.add_argument("--size", type=picture_size, metavar="HxW", help="picture size (default: the model's own)")
    parser.add_argument("--batch", type=positive, default=1, metavar="N", help="pictures a call (default: 1)")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads (default: the cores it may use)")
    parser.add_argument("--seconds", type=positive_seconds, default=3.0, metavar="S", help="how long (default: 3)")
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the time of every call")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from ..benchmark import benchmark
    from ..model import Model

    graph, _ = load_graph(args.model, args.arch)
    model = Model.from_graph(graph, threads=args.threads, labels=())  # nothing is named here
    progress = Progress()
    try:
        result = benchmark(
            model,
            size=args.size,
            batch=args.batch,
            seconds=args.seconds,
            progress=lambda part: progress.show(f"{model.name}: {100 * part:.0f} %"),
        )
    finally:
        progress.clear()
    print(json.dumps(result.as_dict(), indent=2) if args.json else "\n".join(lines(result)))
    return 0


def _peak(result: Result) -> str:
    kinds = {"fp32": f"{result.peak_gflops:.1f} GFLOP/s", "int8": f"{result.peak_gops_int8:.1f} Gop/s on bytes"}
    return " and ".join(text for kind, text in kinds.items() if kind in result.precision)


def lines(result: Result) -> list[str]:
    from ..values import counted

    h, w = result.size
    threads = counted(result.threads, "thread")

    def time(seconds: float) -> str:
        share = 100 * result.share_of_peak(seconds)
        return f"{1e3 * seconds:.3f} ms  {result.gflops(seconds):.1f} GFLOP/s  {share:.0f} % of the peak"

    return table(
        [
            ("model", f"{printable(result.model)} at {h}x{w}, {result.macs / 1e6:.0f} M MACs a picture"),
            ("CPU", result.cpu),
            ("runs", f"{len(result.times)}, batch {result.batch}, {threads}, {result.isa}, {result.precision}"),
            ("minimum", time(result.minimum)),
            ("median", time(result.median)),
            ("throughput", f"{result.images_per_second:.1f} pictures/s at the median"),
            ("peak", f"{_peak(result)} measured"),
        ],
        set(),
    )
