"""The family in one table: MACs and parameters of every network and width, beside the published numbers, and the time
here; and a plot of time against MACs, which shows what the width and the resolution multiplier buy.

    python -m bench.family [--out FOLDER] [--threads N] [--seconds S] [--only TEXT] [--no-times]

Writes family.md and, with matplotlib, family.png. The exit status is 1 where a count is not the published one.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fastmobilenet import models
from fastmobilenet.graph import count_macs, count_parameters, infer_shapes
from fastmobilenet.lower import Engine

#: A published count: from, to, in millions. One number stands for what it is rounded from.
Range = tuple[float, float]


@dataclass(frozen=True)
class Member:
    """A network of the family. ``macs`` and ``parameters``: published, in millions, or None."""

    arch: str
    width: float | None = None
    size: int = 224
    macs: Range | None = None
    parameters: Range | None = None

    @property
    def name(self) -> str:
        return self.arch + (f" {self.width:g}" if self.width is not None else "")


@dataclass(frozen=True)
class Row:
    member: Member
    macs: float  # millions
    parameters: float  # millions
    ms: float | None

    @property
    def wrong(self) -> list[str]:
        """What is not as published."""
        m = self.member
        pairs = (("MACs", self.macs, m.macs), ("parameters", self.parameters, m.parameters))
        return [what for what, found, known in pairs if known and not known[0] <= found <= known[1]]


def _about(value: float, share: float = 0.02) -> Range:
    return value * (1 - share), value * (1 + share)


#: (width, pixels) -> MACs and parameters, in millions: tables 6 and 7 of the paper of V1.
V1 = {
    (1.0, 224): (569, 4.2), (0.75, 224): (325, 2.6), (0.5, 224): (149, 1.3), (0.25, 224): (41, 0.5),
    (1.0, 192): (418, 4.2), (1.0, 160): (290, 4.2), (1.0, 128): (186, 4.2), (0.5, 160): (76, 1.3),
}  # fmt: skip
#: The same of V2: table 4 of its paper, and for the others those of TensorFlow's trained networks.
V2 = {
    (1.4, 224): (582, 6.06), (1.0, 224): (300, 3.4), (0.75, 224): (209, 2.61), (0.5, 224): (97, 1.95),
    (0.35, 224): (59, 1.66), (1.0, 192): (221, 3.47), (1.0, 160): (154, 3.47), (1.0, 128): (99, 3.47),
    (1.0, 96): (56, 3.47),
}  # fmt: skip
#: Tables 3 and 4 of the paper of V3; V3-Small as in the two papers that give it.
V3 = {
    "mobilenet_v3_large": (_about(219), _about(5.4, 0.03)),
    "tf_mobilenetv3_large_075": (_about(155), _about(4.0)),  # where a width below 1 leaves the head as it is
    "mobilenet_v3_small": ((56, 66), (2.5, 2.9)),
    "tf_mobilenetv3_small_075": (_about(44, 0.03), (2.0, 2.4)),
}
#: Parameters of TensorFlow's list of EfficientNet-Lite, and pixels.
LITE = {0: (4.7, 224), 1: (5.4, 240), 2: (6.1, 260), 3: (8.2, 300), 4: (13.0, 380)}
#: Table 8 of the paper of ShuffleNet V2.
SHUFFLE_V2 = {"0_5": (41, 1.4), "1_0": (146, 2.3), "1_5": (299, 3.5), "2_0": (591, 7.4)}


def family() -> Iterator[Member]:
    """Every network of the family at its published widths, V1 and V2 at their resolutions too, and the networks that
    the papers compare with."""
    for width in (1.0, 0.75, 0.5, 0.25):
        for size in (224, 192, 160, 128):
            yield _member("mobilenet_v1", width, size, V1.get((width, size)))
    for width in (1.4, 1.0, 0.75, 0.5, 0.35):
        for size in (224, 192, 160, 128, 96):
            yield _member("mobilenet_v2", width, size, V2.get((width, size)))
    for name, counts in V3.items():
        yield Member(name, None, 224, *counts)
    for kind, width in (("large", 0.75), ("large", 0.5), ("small", 0.75), ("small", 0.5)):
        yield Member(f"mobilenet_v3_{kind}", width)
    for kind in ("large", "small"):
        yield Member(f"tf_mobilenetv3_{kind}_minimal_100")
    for name, size in (("small_035", 224), ("small_050", 224), ("small", 224), ("medium", 256), ("large", 384)):
        yield Member(f"mobilenetv4_conv_{name}", None, size)
    for name in ("mnasnet0_5", "mnasnet0_75", "mnasnet1_0", "mnasnet1_3", "semnasnet_100", "mnasnet_small"):
        yield Member(name)
    for number, (parameters, size) in LITE.items():
        yield Member(f"efficientnet_lite{number}", None, size, None, _about(parameters))
    yield Member("squeezenet1_1", None, 224, None, _about(1.24))
    yield Member("squeezenet1_0", None, 224, None, _about(1.25))
    for groups in (1, 2, 3, 4, 8):
        yield Member(f"shufflenet_v1_g{groups}", 1.0)
    for name, published in SHUFFLE_V2.items():
        yield _member(f"shufflenet_v2_x{name}", None, 224, published)
    yield Member("googlenet", None, 224, _about(1550, 0.04))
    yield Member("vgg16", None, 224, (15300, 15500), _about(138))
    yield Member("alexnet_original", None, 227, _about(720, 0.02), _about(60, 0.02))


def _member(arch: str, width: float | None, size: int, published: tuple[float, float] | None) -> Member:
    """Published numbers are rounded: MACs to 2 %, parameters, of which there are less, to 4 % or 0.05 million."""
    if published is None:
        return Member(arch, width, size)
    macs, parameters = published
    slack = max(0.04 * parameters, 0.05)
    return Member(arch, width, size, _about(macs), (parameters - slack, parameters + slack))


def measure(member: Member, threads: int, seconds: float | None) -> Row:
    """Counts a network, and times it for about ``seconds`` (None: not at all): the fastest run of one picture."""
    options = {"width": member.width, "input_size": (member.size, member.size)}
    graph = models.build(member.arch, weights=models.skeleton, **options)  # type: ignore[arg-type]
    shapes = infer_shapes(graph, 1, member.size, member.size)
    macs = sum(count_macs(node, shapes) for node in graph.nodes) / 1e6
    ms = None
    if seconds is not None:
        engine = Engine(models.build(member.arch, **options))  # type: ignore[arg-type]
        x = np.random.default_rng(0).integers(0, 256, (1, member.size, member.size, 3), dtype=np.uint8)
        engine.run(x, threads=threads, pixels=True)
        end, times = time.perf_counter() + seconds, []
        while not times or time.perf_counter() < end:
            start = time.perf_counter()
            engine.run(x, threads=threads, pixels=True)
            times.append(time.perf_counter() - start)
        ms = min(times) * 1e3
    return Row(member, macs, count_parameters(graph) / 1e6, ms)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "| network | pixels | M MACs | published | M parameters | published | ms | GMAC/s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        m = row.member
        times = ("", "") if row.ms is None else (f"{row.ms:.2f}", f"{row.macs / row.ms:.0f}")
        cells = (
            m.name,
            m.size,
            f"{row.macs:.1f}",
            _range(m.macs),
            f"{row.parameters:.2f}",
            _range(m.parameters),
            *times,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def _range(known: Range | None) -> str:
    return "" if known is None else f"{known[0]:.5g} to {known[1]:.5g}"


#: The beginning of a name -> the series that it is drawn with; of what is in none the name alone is.
_FAMILIES = {
    "mobilenet_v3": "MobileNet V3", "tf_mobilenetv3": "MobileNet V3", "mobilenetv4": "MobileNet V4",
    "mnasnet": "MnasNet", "semnasnet": "MnasNet", "efficientnet_lite": "EfficientNet-Lite",
    "squeezenet": "SqueezeNet", "shufflenet_v1": "ShuffleNet V1", "shufflenet_v2": "ShuffleNet V2",
}  # fmt: skip


def _series(member: Member) -> str:
    return next((name for start, name in _FAMILIES.items() if member.arch.startswith(start)), member.name)


def figure(rows: Sequence[Row], path: Path) -> None:
    """Time against MACs, both logarithmic; the resolutions of one width of V1 and V2 are joined by a line."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    plot = Figure(figsize=(11, 6), layout="constrained")
    axes = plot.subplots()
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(_series(row.member), []).append(row)
    colours = mpl.colormaps["tab20"].colors  # type: ignore[attr-defined]
    for i, (name, members) in enumerate(series.items()):
        joined = {"mobilenet_v1": "o", "mobilenet_v2": "s"}.get(members[0].member.arch)
        style = {"marker": joined, "linestyle": "-"} if joined else {"marker": "^", "linestyle": ""}
        times = [r.ms or np.nan for r in members]
        axes.plot([r.macs for r in members], times, color=colours[i % len(colours)], label=name, **style)
    axes.set(xscale="log", yscale="log", xlabel="million MACs", ylabel="ms a picture", title="Time against MACs")
    axes.grid(alpha=0.3, which="both")
    plot.legend(loc="outside right upper", fontsize=8)
    plot.savefig(path, dpi=100)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.family", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("bench/results"), help="folder of the results")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.5, help="time for each network (default: 0.5)")
    parser.add_argument("--only", default="", help="networks whose name holds this text")
    parser.add_argument("--no-times", action="store_true", help="count only")
    args = parser.parse_args(argv)
    members = [member for member in family() if args.only in member.name]
    rows = [measure(member, args.threads, None if args.no_times else args.seconds) for member in members]
    text = table(rows)
    print(text, end="")
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "family.md").write_text(text)
    if not args.no_times:
        try:
            figure(rows, args.out / "family.png")
        except ImportError:
            print("no plot: it needs matplotlib", file=sys.stderr)
    wrong = [f"{row.member.name}: {', '.join(row.wrong)}" for row in rows if row.wrong]
    if wrong:
        print("not as published: " + "; ".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
