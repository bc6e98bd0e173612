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


def family() -> Iterator[Member]:
    """V1 and V2 at their published widths and resolutions, and the networks that the papers compare with."""
    v1 = {(1.0, 224): (_about(569), _about(4.2)), (0.5, 160): (_about(76), _about(1.3, 0.04))}
    for width in (1.0, 0.75, 0.5, 0.25):
        for size in (224, 192, 160, 128):
            yield Member("mobilenet_v1", width, size, *v1.get((width, size), (None, None)))
    for width in (1.4, 1.0, 0.75, 0.5, 0.35):
        for size in (224, 192, 160, 128, 96):
            published = (_about(300), _about(3.4, 0.04)) if (width, size) == (1.0, 224) else (None, None)
            yield Member("mobilenet_v2", width, size, *published)
    for width in (1.0, 0.75):
        large = (_about(219), _about(5.4, 0.03)) if width == 1.0 else (None, None)
        small: tuple[Range | None, Range | None] = ((56, 66), (2.5, 2.9)) if width == 1.0 else (None, None)
        yield Member("mobilenet_v3_large", width, 224, *large)
        yield Member("mobilenet_v3_small", width, 224, *small)
    yield Member("squeezenet1_1", None, 224, None, _about(1.24))
    yield Member("squeezenet1_0", None, 224, None, _about(1.25))
    yield Member("mobilenetv4_conv_small")
    yield Member("mnasnet1_0")
    yield Member("shufflenet_v2_x1_0")
    yield Member("efficientnet_lite0")
    yield Member("googlenet", None, 224, _about(1550, 0.04))
    yield Member("vgg16", None, 224, (15300, 15500), _about(138))
    yield Member("alexnet_original", None, 227, _about(720, 0.02), _about(60, 0.02))


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


def figure(rows: Sequence[Row], path: Path) -> None:
    """Time against MACs, both logarithmic; the resolutions of one width are joined by a line."""
    from matplotlib.figure import Figure

    plot = Figure(figsize=(9, 6), layout="constrained")
    axes = plot.subplots()
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(row.member.name, []).append(row)
    for name, members in series.items():
        marker = {"mobilenet_v1": "o", "mobilenet_v2": "s"}.get(members[0].member.arch, "^")
        axes.plot([r.macs for r in members], [r.ms or np.nan for r in members], marker=marker, label=name)
    axes.set(xscale="log", yscale="log", xlabel="million MACs", ylabel="ms a picture", title="Time against MACs")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=7, ncols=2)
    plot.savefig(path, dpi=120)


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
