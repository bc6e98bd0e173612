"""Result documents -> PNG. Colours are assigned to frameworks, not to positions, and are the same in every plot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import tables
from bench.peers.runners import OURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Okabe and Ito's palette, which colour-blind readers tell apart.
COLOURS = {
    "fastmobilenet": "#D55E00",
    "onnxruntime": "#0072B2",
    "openvino": "#56B4E9",
    "litert": "#009E73",
    "ncnn": "#CC79A7",
    "mnn": "#E69F00",
    "torch": "#999999",
    "torch-compile": "#555555",
    "numpy": "#999999",
}

RACES_IN_A_ROW = 4


def race_figure(documents: list[dict]) -> Figure:
    """Bars of the medians with a mark at the minimum, a group for each race; dotted: the limit by the FMA peak."""
    races = [race for document in documents for race in document["races"]]
    names = list(dict.fromkeys(name for race in races for name in race["peers"]))
    rows = [races[i : i + RACES_IN_A_ROW] for i in range(0, len(races), RACES_IN_A_ROW)]
    figure, all_axes = _new(2.2 + 2.4 * len(rows[0]), 4.8 * len(rows), len(rows))
    for row, axes in zip(rows, all_axes, strict=True):
        _race_bars(axes, row, names)
        axes.set_xlim(-0.6, len(rows[0]) - 0.4)  # bars of one width in all rows
    all_axes[0].set_title("Bar: median. Black line: minimum. Dotted: the arithmetic alone at the FMA peak.", fontsize=9)
    handles = {label: bar for axes in all_axes for bar, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    all_axes[0].legend(handles.values(), handles, fontsize=8, ncols=2)
    _caption(figure, documents[0])
    return figure


def _race_bars(axes: Any, races: list[dict], names: list[str]) -> None:
    width = 0.84 / len(names)
    for i, name in enumerate(names):
        for group, race in enumerate(races):
            x = group - 0.42 + (i + 0.5) * width
            peer = race["peers"].get(name)
            if peer is None:
                continue
            if peer["status"] != "ok":
                axes.text(x, 0, " failed", rotation=90, ha="center", va="bottom", fontsize=8, color="#B00020")
                continue
            label = name if group == _first_finish(races, name) else None
            axes.bar(x, peer["median_ms"], width * 0.92, color=COLOURS.get(name, "#777777"), label=label)
            axes.plot([x - width * 0.4, x + width * 0.4], [peer["min_ms"]] * 2, color="black", linewidth=1.4)
            axes.text(x, peer["median_ms"], f"{peer['median_ms']:.1f}", ha="center", va="bottom", fontsize=8)
    for group, race in enumerate(races):
        peak = tables.best_peak(race)
        if peak is not None:
            limit = 2 * race["macs"] / (peak * 1e6)
            axes.plot([group - 0.45, group + 0.45], [limit] * 2, color="black", linestyle=":", linewidth=1.2)
    axes.set_xticks(range(len(races)), [tables.title(r).replace(", ", "\n") for r in races])
    axes.set_ylabel("ms for one picture")


def _first_finish(races: list[dict], name: str) -> int:
    """The first race that `name` finished: the one whose bar carries the legend."""
    return next(i for i, race in enumerate(races) if race["peers"].get(name, {}).get("status") == "ok")


def layer_figure(document: dict) -> Figure:
    """Every layer's speed against each peer (peer's time / ours, by minimum); left of 1 we lose. Filled: a network
    of the layer alone. Hollow: its step without the edges."""
    rows = tables.layer_rows(document)
    peers = list(dict.fromkeys(name for row in rows for name in row.times if name != OURS))
    figure, (axes,) = _new(8.5, 1.6 + 0.2 * len(rows))
    for peer in peers:
        for label, fill, table in ((peer, "full", "times"), (f"{peer}, step", "none", "steps")):
            found = [(tables.ratio(getattr(row, table), peer), -i) for i, row in enumerate(rows)]
            points = [(ratio[0], y) for ratio, y in found if ratio is not None]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, "o", color=COLOURS.get(peer), fillstyle=fill, markersize=4, label=label)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks([-i for i in range(len(rows))], [row.name for row in rows], fontsize=7)
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.set_xlabel("times faster than (left of 1: slower)")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8)
    _caption(figure, document)
    return figure


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, dpi=140)


def _new(width: float, height: float, rows: int = 1) -> tuple[Figure, list[Any]]:
    """A figure that needs no display, and the axes of its rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    found = [figure.add_subplot(rows, 1, row + 1) for row in range(rows)]
    for axes in found:
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return figure, found


def _caption(figure: Figure, document: dict) -> None:
    figure.supxlabel(tables.provenance(document)[0], fontsize=7)
