"""Where the time of a network goes: Model.profile measures it layer by layer, Profile shows it."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .benchmark import WARM_UP, cpu_name
from .graph import Graph, Node, Shape, count_macs, infer_shapes
from .lower import Engine
from .precision import of_graph, of_node
from .roofline import BOUNDS, Rates, Work, find_bound, measure_peak, measure_peak_u8, measure_rates
from .values import check_count, counted

FLOAT = 4
#: Between the names of nodes that run as one.
JOIN = " + "


@dataclass(frozen=True)
class Layer:
    """One step of a run: a node, or several that are fused. Times are seconds, sizes those of one picture.

    ``nodes`` and ``ops`` are empty for the last step, which copies the result out of the working memory.
    ``seconds`` belongs to the run that the profile shows, ``minimum`` and ``median`` to all runs.
    """

    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    kernel: str
    input: tuple[int, int, int]  # (h, w, c)
    output: tuple[int, int, int]
    seconds: float
    minimum: float
    median: float
    work: Work
    bound: str  # a key of roofline.BOUNDS
    bound_seconds: float
    precision: str = "fp32"  # or "int8"

    @property
    def name(self) -> str:
        """The names of the nodes; the folders that all of them are in are written once."""
        if not self.nodes:
            return "(result)"
        parts = [name.split("/") for name in self.nodes]
        same = 0
        while all(len(p) > same + 1 and p[same] == parts[0][same] for p in parts):
            same += 1
        if len(parts) == 1 or same == 0:
            return JOIN.join(self.nodes)
        return "/".join(parts[0][:same]) + "/{" + JOIN.join("/".join(p[same:]) for p in parts) + "}"

    @property
    def gflops(self) -> float:
        """10^9 operations a second; a MAC is two."""
        return 2 * self.work.macs / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def map_bytes(self) -> int:
        """Of the maps that the layer reads and writes, without those between fused nodes."""
        return self.work.input_bytes + self.work.output_bytes

    @property
    def share_of_bound(self) -> float:
        """Least time by the bound that applies / measured time."""
        return self.bound_seconds / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Profile:
    """The fastest of several runs, layer by layer: made by :meth:`fastmobilenet.Model.profile`.

    ``print(profile)`` shows a table, :meth:`to_json` and :meth:`to_html` give texts. All times are seconds for one
    picture. ``seconds`` is the wall time of the call, so the layers and ``outside`` add up to it.
    """

    model: str
    size: tuple[int, int]
    batch: int
    threads: int
    isa: str
    cpu: str
    rates: Rates
    walls: tuple[float, ...]  # of each run
    layers: tuple[Layer, ...]
    precision: str = "fp32"  # or "int8", or "int8 and fp32"

    @property
    def seconds(self) -> float:
        """Wall time of the run that is shown: the fastest."""
        return min(self.walls)

    @property
    def outside(self) -> float:
        """What the call takes beside the layers: memory for the result, and the way from Python and back."""
        return self.seconds - sum(layer.seconds for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.work.macs for layer in self.layers)

    @property
    def gflops(self) -> float:
        """10^9 operations a second of the whole call."""
        return 2 * self.macs / self.seconds / 1e9

    def share_of_peak(self, layer: Layer | None = None) -> float:
        """The rate of a layer, or of the whole call, as a part of what the threads reach with multiply-adds alone: on
        bytes for a layer in int8, else on float32."""
        if layer is not None:
            return 1e9 * layer.gflops / self.rates.peak_of(layer.precision)
        return sum(2 * one.work.macs / self.rates.peak_of(one.precision) for one in self.layers) / self.seconds

    @property
    def bound_seconds(self) -> float:
        """The least time of all layers by their bounds."""
        return sum(layer.bound_seconds for layer in self.layers)

    def by_bound(self) -> dict[str, float]:
        """Bound -> seconds of the layers to which it applies; only bounds that apply to any, most seconds first."""
        times = {b: sum(layer.seconds for layer in self.layers if layer.bound == b) for b in BOUNDS}
        return {b: t for b, t in sorted(times.items(), key=lambda item: -item[1]) if t > 0}

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; times in milliseconds, rates in 10^9 a second."""
        return {
            "model": self.model,
            "height": self.size[0],
            "width": self.size[1],
            "batch": self.batch,
            "threads": self.threads,
            "isa": self.isa,
            "precision": self.precision,
            "cpu": self.cpu,
            "runs": len(self.walls),
            "ms": 1e3 * self.seconds,
            "median_ms": 1e3 * statistics.median(self.walls),
            "outside_ms": 1e3 * self.outside,
            "bound_ms": 1e3 * self.bound_seconds,
            "macs": self.macs,
            "gflops": self.gflops,
            "share_of_peak": self.share_of_peak(),
            "peak_gflops": self.rates.peak / 1e9,
            "peak_gops_int8": self.rates.peak_u8 / 1e9,
            "l2_gbytes": self.rates.l2 / 1e9,
            "memory_gbytes": self.rates.memory / 1e9,
            "l2_bytes": self.rates.l2_bytes,
            "layers": [self._layer_dict(layer) for layer in self.layers],
        }

    def _layer_dict(self, layer: Layer) -> dict[str, Any]:
        work = layer.work
        return {
            "nodes": list(layer.nodes),
            "ops": list(layer.ops),
            "kernel": layer.kernel,
            "precision": layer.precision,
            "input": list(layer.input),
            "output": list(layer.output),
            "ms": 1e3 * layer.seconds,
            "min_ms": 1e3 * layer.minimum,
            "median_ms": 1e3 * layer.median,
            "macs": work.macs,
            "gflops": layer.gflops,
            "share_of_peak": self.share_of_peak(layer),
            "input_bytes": work.input_bytes,
            "output_bytes": work.output_bytes,
            "inner_bytes": work.inner_bytes,
            "weight_bytes": work.weight_bytes,
            "bound": layer.bound,
            "bound_ms": 1e3 * layer.bound_seconds,
            "share_of_bound": layer.share_of_bound,
        }

    def to_json(self) -> str:
        """One JSON object, with every layer's numbers."""
        return json.dumps(self.as_dict(), indent=2, allow_nan=False)

    def to_html(self) -> str:
        """A page of its own with a bar for every layer; it needs no other file and no network."""
        from .profile_html import page

        return page(self)

    def heading(self) -> tuple[str, str]:
        """Two lines: what ran, and how fast."""
        threads = counted(self.threads, "thread")
        runs = counted(len(self.walls), "run")
        batch = "" if self.batch == 1 else f", one of {self.batch} pictures"
        return (
            "{} at {}x{} on {}: {}, {}, {}".format(self.model, *self.size, self.cpu, self.precision, self.isa, threads),
            f"fastest of {runs}{batch}: {1e3 * self.seconds:.3f} ms, {self.gflops:.1f} GFLOP/s, "
            f"{100 * self.share_of_peak():.0f} % of the peak of {self._peaks()}",
        )

    def _peaks(self) -> str:
        kinds = [kind for kind in ("int8", "fp32") if kind in self.precision]
        rates = [f"{self.rates.peak_of(kind) / 1e9:.0f}" for kind in kinds]
        return rates[0] if len(kinds) == 1 else " and ".join(map("{} ({})".format, rates, kinds))

    def summary(self) -> tuple[str, str]:
        """Two lines: to which bounds the time belongs, and what the bounds were taken from."""
        parts = (f"{BOUNDS[b]} {100 * t / self.seconds:.0f} %" for b, t in self.by_bound().items())
        return (
            f"time by bound: {', '.join(parts)}",
            f"measured: L2 {self.rates.l2 / 1e9:.0f} GB/s, L3 or memory {self.rates.memory / 1e9:.0f} GB/s; "
            f"all layers at their bounds: {1e3 * self.bound_seconds:.3f} ms",
        )

    def __str__(self) -> str:
        head = (
            "ms",
            "time %",
            "GFLOP/s",
            "peak %",
            "maps KB",
            "weights KB",
            "output",
            "bound",
            "bound %",
            "type",
            "kernel",
        )
        rows = [(*head, "layer"), *(self._row(layer) for layer in self.layers)]
        rows.append((f"{1e3 * self.outside:.3f}", f"{100 * self.outside / self.seconds:.1f}", *[""] * 9, "(the call)"))
        share, of_bound = (f"{100 * v:.0f}" for v in (self.share_of_peak(), self.bound_seconds / self.seconds))
        weights = sum(layer.work.weight_bytes for layer in self.layers)
        total = (f"{1e3 * self.seconds:.3f}", "100.0", f"{self.gflops:.1f}", share, "", _kilobytes(weights))
        rows.append((*total, "", "", of_bound, "", "", "total"))
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))] + [0]
        left = {head.index(name) for name in ("bound", "type", "kernel")} | {len(head)}
        lines = [
            "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        return "\n".join((*self.heading(), "", *lines, "", *self.summary()))

    def _row(self, layer: Layer) -> tuple[str, ...]:
        arithmetic = ("", "")
        if layer.work.macs:
            arithmetic = (f"{layer.gflops:.1f}", f"{100 * self.share_of_peak(layer):.0f}")
        return (
            f"{1e3 * layer.seconds:.3f}",
            f"{100 * layer.seconds / self.seconds:.1f}",
            *arithmetic,
            _kilobytes(layer.map_bytes),
            _kilobytes(layer.work.weight_bytes) if layer.work.weight_bytes else "",
            "x".join(map(str, layer.output)),
            BOUNDS[layer.bound],
            f"{100 * layer.share_of_bound:.0f}",
            layer.precision,
            layer.kernel,
            layer.name,
        )


def _kilobytes(size: int) -> str:
    return f"{size / 1024:.0f}" if size >= 10240 else f"{size / 1024:.1f}"


def measure(engine: Engine, x: npt.NDArray[Any], *, threads: int, runs: int) -> Profile:
    """Run ``x`` (what Engine.run takes, at least one picture) ``runs`` times and once more to warm up.

    The run that is shown is the fastest as a whole: its layers add up
    to a time that was really measured, which minima or medians of single layers do not. The peak is measured before
    and after the runs, and the larger figure counts. Raises TypeError and ValueError for a wrong ``runs``, ValueError
    for no picture.
    """
    runs = check_count("runs", runs)
    count = x.shape[0]
    if count == 0:
        raise ValueError("there is nothing to profile in a batch of no pictures")
    graph = engine.lowered
    pixels = x.dtype == np.uint8
    layout = "pixels" if pixels else graph.input_layout
    h, w = x.shape[2:] if layout == "NCHW" else x.shape[1:3]
    x = np.require(x, requirements=("C", "A"))
    peak, peak_u8 = measure_peak(engine.isa), measure_peak_u8(engine._isa_u8)
    program = engine.program(h, w)
    for _ in range(WARM_UP):
        program.run(x, layout, threads)
    walls, times = [], []
    for _ in range(runs):
        # The native call itself: what Python does around it would run on cold caches here, and seem slower than it is.
        start = time.perf_counter()
        _, seconds = program.run(x, layout, threads, profile=True)
        walls.append((time.perf_counter() - start) / count)
        times.append(seconds)
    peak, peak_u8 = max(peak, measure_peak(engine.isa)), max(peak_u8, measure_peak_u8(engine._isa_u8))
    rates = measure_rates(engine.isa, threads, peak, peak_u8)
    shapes = infer_shapes(graph, 1, h, w)
    table = np.array(times) / count
    return Profile(
        model=graph.name,
        size=(h, w),
        batch=count,
        threads=threads,
        isa=engine.isas,
        cpu=cpu_name(),
        rates=rates,
        walls=tuple(walls),
        layers=_layers(graph, shapes, x.itemsize, program.steps, table, int(np.argmin(walls)), rates),
        precision=of_graph(graph),
    )


def _layers(
    graph: Graph,
    shapes: Mapping[str, Shape],
    input_itemsize: int,
    steps: Sequence[tuple[str, str]],
    times: npt.NDArray[np.float64],
    shown: int,
    rates: Rates,
) -> tuple[Layer, ...]:
    """times: [run][step] seconds; ``shown`` is the run whose times the layers get."""
    nodes = [_nodes_of(name, i, len(steps), graph) for i, (name, _) in enumerate(steps)]
    work = [
        _work(group, graph, shapes, input_itemsize, kernel) for group, (_, kernel) in zip(nodes, steps, strict=True)
    ]
    largest = max(w.input_bytes + w.output_bytes for w in work)
    weights_stay = sum(w.weight_bytes for w in work) + largest <= rates.l2_bytes
    layers = []
    for i, (group, w) in enumerate(zip(nodes, work, strict=True)):
        precision = of_node(group[-1]) if group else "fp32"
        bound, seconds = find_bound(w, rates, weights_stay=weights_stay, precision=precision)
        first = group[0] if group else graph[graph.output]
        source = first.inputs[0] if group and first.inputs else first.name
        layers.append(
            Layer(
                nodes=tuple(n.name for n in group),
                ops=tuple(n.op for n in group),
                kernel=steps[i][1],
                input=shapes[source][1:],
                output=shapes[group[-1].name if group else graph.output][1:],
                seconds=float(times[shown, i]),
                minimum=float(times[:, i].min()),
                median=float(np.median(times[:, i])),
                work=w,
                bound=bound,
                bound_seconds=seconds,
                precision=precision,
            )
        )
    return tuple(layers)


def _nodes_of(name: str, index: int, count: int, graph: Graph) -> tuple[Node, ...]:
    """The nodes of a step. The first step makes the input and may go on, the last copies the output and is no node;
    the others bear the names of their nodes, each of which reads the one before it."""
    if index == 0:
        _, join, rest = name.partition(JOIN)
        return (graph.nodes[0], *(_nodes_of(rest, 1, count, graph) if join else ()))
    if index == count - 1:
        return ()
    nodes = {n.name: n for n in graph.nodes}

    def split(text: str, before: str | None) -> tuple[Node, ...]:
        at = 0
        while at >= 0:  # a name may hold the separator: try every place
            at = text.find(JOIN, at + 1)
            node = nodes.get(text if at < 0 else text[:at])
            if node is None or (before is not None and before not in node.inputs):
                continue
            rest = split(text[at + len(JOIN) :], node.name) if at >= 0 else ()
            if at < 0 or rest:
                return (node, *rest)
        return ()

    found = split(name, None)
    if not found:
        raise RuntimeError(f"step {name!r} is no chain of nodes of {graph.name}")
    return found


def _work(nodes: Sequence[Node], graph: Graph, shapes: Mapping[str, Shape], input_itemsize: int, kernel: str) -> Work:
    """Every map counts once, however many nodes read it."""

    byte_maps = {n.name for n in graph.nodes if "quant" in n.attrs}
    weight = 3 if kernel.endswith("/24bit") else FLOAT  # bytes

    def size(name: str) -> int:
        return (1 if name in byte_maps else FLOAT) * math.prod(shapes[name])

    if not nodes:
        return Work(0, size(graph.output), size(graph.output), 0, 0)
    picture = math.prod(shapes[nodes[0].name]) * input_itemsize if nodes[0].op == "input" else 0
    if len(nodes) == 1 and picture:
        return Work(0, picture, size(nodes[0].name), 0, 0)
    own = [n.name for n in nodes]
    return Work(
        macs=sum(count_macs(n, shapes) for n in nodes),
        input_bytes=picture + sum(size(s) for s in {s for n in nodes for s in n.inputs if s not in own}),
        output_bytes=size(own[-1]),
        inner_bytes=sum(size(name) for name in own[:-1]),
        weight_bytes=sum(
            v.size * (1 if key in ("weight", "table") and n.name in byte_maps else weight if key == "weight" else FLOAT)
            for n in nodes
            for key, v in n.params.items()
        ),
    )
