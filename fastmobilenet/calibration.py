"""What the tensors of a network hold while it sees pictures: every tensor in turn, and statistics of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import reference_detection, reference_u8
from .errors import ModelError
from .graph import Graph, Node, infer_shapes
from .lower import Engine
from .reference import activate

Floats = npt.NDArray[np.float32]

#: Bins of a histogram: sixteen for each byte that a tensor's range is divided into.
BINS = 4096

#: Pictures that run together: their largest tensors take some 100 MB.
CHUNK = 8


def real_input(graph: Graph, batch: npt.NDArray[Any]) -> Floats:
    """A batch of uint8 pixels (n, h, w, 3), or of floats in the graph's layout, as the network's input before its own
    mean and std: float32 (n, h, w, c)."""
    if batch.dtype != np.uint8:
        return np.ascontiguousarray(batch.transpose(0, 2, 3, 1) if graph.input_layout == "NCHW" else batch)
    p = graph.preprocess
    ordered = batch[..., ::-1] if p.channels == "bgr" else batch
    x: Floats = ((ordered - np.asarray(p.mean)) / np.asarray(p.std)).astype(np.float32)
    return x


class Walker:
    """Runs a network layer by layer and shows every tensor: the native kernels of each layer, one layer at a time.

    Only tensors that are still needed are kept. Tensors of bytes are shown as the real numbers that they stand for;
    they are the bytes of the whole network, exactly.
    """

    def __init__(self, graph: Graph, size: tuple[int, int]) -> None:
        self.graph = graph
        self._shapes = infer_shapes(graph, 1, *size)
        self._nodes = {n.name: n for n in graph.nodes}
        self._engines: dict[str, Engine] = {}
        self._last = {s: n.name for n in graph.nodes for s in n.inputs}  # the last reader of each tensor

    def walk(self, x: Floats, threads: int = 1) -> Iterator[tuple[Node, Floats]]:
        """Nodes in order, each with its tensor (n, h, w, c). ``x`` is what :func:`real_input` gives."""
        values: dict[str, Floats] = {}
        for node in self.graph.nodes:
            y = self._input(node, x) if node.op == "input" else self._run(node, values, threads)
            yield node, y
            if node.name in self._last:
                values[node.name] = y
            for source in set(node.inputs):
                if self._last[source] == node.name:
                    del values[source]

    def _input(self, node: Node, x: Floats) -> Floats:
        if "mean" in node.attrs:
            x = ((x.astype(np.float64) - node.attrs["mean"]) / node.attrs["std"]).astype(np.float32)
        return _rounded(node, x)

    def _run(self, node: Node, values: Mapping[str, Floats], threads: int) -> Floats:
        sources = [values[s] for s in node.inputs]
        if node.op == "dequantize":
            return sources[0]  # tensors of bytes are kept as real numbers
        if node.op == "quantize":
            return _rounded(node, sources[0])
        if len(sources) == 1:
            engine = self._engines.get(node.name)
            if engine is None:
                engine = self._engines[node.name] = self._engine(node)
            return engine.run(np.ascontiguousarray(sources[0]), threads=threads, pixels=False)
        if "quant" in node.attrs:
            quants = [self._nodes[s].attrs["quant"] for s in node.inputs]
            pairs = zip(quants, sources, strict=True)
            q = reference_u8.EXECUTE[node.op](node, quants, *(quant.quantize(v) for quant, v in pairs))
            real: Floats = node.attrs["quant"].dequantize(q)
            return real
        return _SEVERAL[node.op](node, sources)

    def _engine(self, node: Node) -> Engine:
        """The network of this layer alone, from floats to floats."""
        source = node.inputs[0]
        _, h, w, c = self._shapes[source]
        quant = self._nodes[source].attrs.get("quant")
        nodes: tuple[Node, ...] = (Node(source, "input", (), {} if quant is None else {"quant": quant}), node)
        if "quant" in node.attrs:
            nodes = (*nodes, Node(node.name + "/real", "dequantize", (node.name,)))
        return Engine(Graph(nodes, nodes[-1].name, (h, w), c, "NHWC"))


def _rounded(node: Node, x: Floats) -> Floats:
    quant = node.attrs.get("quant")
    if quant is None:
        return x
    y: Floats = quant.dequantize(quant.quantize(x))
    return y


#: Layers of several inputs, on real numbers.
_SEVERAL: dict[str, Callable[[Node, list[Floats]], Floats]] = {
    "add": lambda node, xs: activate(xs[0] + xs[1], node.activation),
    "mul": lambda node, xs: activate(xs[0] * xs[1], node.activation),
    "concat": lambda node, xs: np.concatenate(xs, axis=3),
    "gather_channels": lambda node, xs: np.concatenate(xs, axis=3)[..., list(node.attrs["index"])],
    "detection": lambda node, xs: reference_detection.rows(node, *xs),
}


@dataclass
class Channels:
    """Least and largest value and mean of every channel of a tensor: float64 (c,) each."""

    least: npt.NDArray[np.float64]
    largest: npt.NDArray[np.float64]
    total: npt.NDArray[np.float64]
    count: int

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        return self.total / self.count

    @property
    def magnitude(self) -> npt.NDArray[np.float64]:
        """The largest absolute value of every channel."""
        return np.maximum(np.abs(self.least), np.abs(self.largest))

    def divided(self, scale: npt.NDArray[np.float64]) -> Channels:
        """The same of the tensor whose channels are divided by ``scale`` (c,), all positive."""
        return Channels(self.least / scale, self.largest / scale, self.total / scale, self.count)


Progress = Callable[[int], None]


def chunks(graph: Graph, batch: npt.NDArray[Any]) -> Iterator[Floats]:
    for first in range(0, len(batch), CHUNK):
        yield real_input(graph, batch[first : first + CHUNK])


def channel_statistics(
    graph: Graph, batch: npt.NDArray[Any], size: tuple[int, int], threads: int, progress: Progress
) -> dict[str, Channels]:
    """The statistics of every tensor over all pictures. Raises ModelError where a tensor is not finite."""
    walker, found = Walker(graph, size), dict[str, Channels]()
    for i, x in enumerate(chunks(graph, batch)):
        progress(i * CHUNK)
        for node, y in walker.walk(x, threads):
            rows = y.reshape(-1, y.shape[-1])
            here = Channels(
                rows.min(axis=0).astype(np.float64),
                rows.max(axis=0).astype(np.float64),
                rows.sum(axis=0, dtype=np.float64),
                len(rows),
            )
            if not np.isfinite(here.total).all():
                raise ModelError(
                    f"node {node.name!r}: the pictures lead to values that are not finite; nothing to quantise"
                )
            old = found.get(node.name)
            if old is not None:
                here = Channels(
                    np.minimum(old.least, here.least),
                    np.maximum(old.largest, here.largest),
                    old.total + here.total,
                    old.count + here.count,
                )
            found[node.name] = here
    return found


@dataclass
class Histogram:
    """How often a tensor has values in each of BINS equal parts of lo..hi; 0 is in lo..hi."""

    lo: float
    hi: float
    counts: npt.NDArray[np.int64]

    def add(self, x: Floats) -> None:
        factor = BINS / (self.hi - self.lo) if self.hi > self.lo else 0.0
        index = ((x.reshape(-1) - np.float32(self.lo)) * np.float32(factor)).astype(np.int32)
        self.counts += np.bincount(np.clip(index, 0, BINS - 1, out=index), minlength=BINS)

    @property
    def centres(self) -> npt.NDArray[np.float64]:
        """The value that each bin stands for: its middle, but 0 where it begins at 0 (what a ReLU has cut off)."""
        edges = self.lo + (self.hi - self.lo) / BINS * np.arange(BINS)
        return np.where(edges == 0, 0.0, edges + (self.hi - self.lo) / (2 * BINS))


def histograms(
    graph: Graph,
    batch: npt.NDArray[Any],
    size: tuple[int, int],
    statistics: Mapping[str, Channels],
    threads: int,
    progress: Progress,
) -> dict[str, Histogram]:
    """The histogram of every tensor over all pictures, between the bounds of its statistics."""
    found = {
        name: Histogram(min(0.0, float(s.least.min())), max(0.0, float(s.largest.max())), np.zeros(BINS, np.int64))
        for name, s in statistics.items()
    }
    walker = Walker(graph, size)
    for i, x in enumerate(chunks(graph, batch)):
        progress(i * CHUNK)
        for node, y in walker.walk(x, threads):
            found[node.name].add(y)
    return found


def signal_to_noise(
    real: Graph, quantised: Graph, batch: npt.NDArray[Any], size: tuple[int, int], threads: int, progress: Progress
) -> dict[str, float]:
    """For every tensor that both networks have, in dB: 10 log10(sum of x^2 / sum of (x - x')^2), with x of the network
    of floats. The names that both have are in the same order in both."""
    common = {n.name for n in real.nodes if n.op != "input"} & {n.name for n in quantised.nodes}
    walkers = Walker(real, size), Walker(quantised, size)
    sums = {n.name: np.zeros(2) for n in real.nodes if n.name in common}
    for i, x in enumerate(chunks(real, batch)):
        progress(i * CHUNK)
        a, b = (((n, y) for n, y in w.walk(x, threads) if n.name in common) for w in walkers)
        for (node, exact), (_, rounded) in zip(a, b, strict=True):
            noise = exact - rounded
            sums[node.name] += (np.vdot(exact, exact), np.vdot(noise, noise))
    with np.errstate(divide="ignore", invalid="ignore"):
        return {k: float(10 * np.log10(s / n)) if n else float("inf") for k, (s, n) in sums.items()}
