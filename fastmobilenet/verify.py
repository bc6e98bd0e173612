"""Whether this engine gives what another runtime gives for the same file and the same pictures; and if not, which layer
is the first that differs.

>>> from fastmobilenet import importers, peers, verify                      # doctest: +SKIP
>>> graph = importers.load("net.onnx")                                      # doctest: +SKIP
>>> peer, _ = peers.choose("net.onnx", graph, None, None)                   # doctest: +SKIP
>>> verify.verify(graph, peer, verify.pictures(graph, ["cat.jpg"])).ok      # doctest: +SKIP
True

A difference is the largest |ours - theirs| of a tensor, divided by its largest |value| in the other runtime.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .errors import ModelError
from .graph import Graph, Node, Shape, infer_shapes
from .lower import Engine, default_threads
from .passes import drop_unused
from .peers import Peer, arrangements, to_layout
from .peers.reference import real_values

TOLERANCE = 1e-4
#: Of a peer that rounds every layer to 8 bits, while this engine computes with the numbers that the codes stand for.
ROUNDED_TOLERANCE = 0.15
#: How many pictures are made where none are given.
GENERATED = 4


@dataclass(frozen=True)
class Picture:
    """One picture: ``pixels`` uint8 (1, h, w, 3), None for a network that takes no pictures; ``values`` the same as the
    network's input, float32 (1, h, w, c)."""

    label: str
    pixels: np.ndarray | None
    values: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """The outputs for one picture. ``largest`` is the largest |value| of the other runtime's; ``ours`` and ``theirs``
    are the top classes, None for what is no classifier."""

    picture: str
    difference: float
    largest: float
    ours: int | None
    theirs: int | None


@dataclass(frozen=True)
class Deviation:
    """The first layer that differs.

    ``inputs``: the differences of the tensors nearest before it that could be compared. ``between``: nodes behind those
    that could not be compared; any of them may be the cause. ``fused``: what the engine computes in one step with it.
    ``reference``: how far this engine and the other runtime are from the float64 reference of the graph at this layer.
    ``by_peer``: False where the layers were compared with that reference, because the other runtime's are not known.
    """

    node: str
    op: str
    difference: float
    inputs: Mapping[str, float]
    between: tuple[str, ...]
    fused: tuple[str, ...]
    reference: tuple[float, float]
    by_peer: bool


@dataclass(frozen=True)
class Report:
    peer: str
    tolerance: float
    comparisons: tuple[Comparison, ...]
    deviation: Deviation | None = None
    remarks: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return all(c.difference <= self.tolerance for c in self.comparisons)


# --- pictures ---------------------------------------------------------------------------------------------


def pictures(graph: Graph, paths: Sequence[str] = ()) -> list[Picture]:
    """The pictures of these files as the network wants them, or made-up ones, always the same. Raises what reading a
    picture raises, and ValueError for a network that takes no pictures."""
    h, w = graph.input_size
    if graph.input_channels != 3:
        if paths:
            raise ValueError(f"{graph.name} takes {graph.input_channels} channels, so it takes no pictures")
        rng = np.random.default_rng(0)
        shape = (1, h, w, graph.input_channels)
        made = [rng.normal(0, 1, shape).astype(np.float32) for _ in range(GENERATED)]
        return [Picture(f"generated {i}", None, x) for i, x in enumerate(made, 1)]
    if paths:
        from . import image

        pixels = [(path, image.to_batch(path, graph.preprocess, graph.input_size)[0]) for path in paths]
    else:
        pixels = [(f"generated {i}", _generate(h, w, i)) for i in range(1, GENERATED + 1)]
    return [Picture(label, x, _normalize(graph, x)) for label, x in pixels]


def _generate(h: int, w: int, seed: int) -> np.ndarray:
    """Like a photograph in what matters: smooth areas, an edge and a little noise, over the whole range."""
    rng = np.random.default_rng(seed)
    y, x = np.linspace(0, 1, h)[:, None, None], np.linspace(0, 1, w)[:, None]
    total = rng.normal(0, 0.1, (h, w, 3))
    for octave in (1, 2, 4, 8):
        down, across, phase = rng.normal(0, 3 * octave, (3, 3))  # three numbers each, for three channels
        total += np.sin(down * y + across * x + phase) / octave
    cy, cx, radius = rng.uniform(0.2, 0.8, 3)
    inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2 / 4
    total += np.where(inside, rng.normal(0, 1.5, 3), 0.0)
    return np.clip(127.5 + 70 * total, 0, 255).astype(np.uint8)[None]


def _normalize(graph: Graph, pixels: np.ndarray) -> np.ndarray:
    p = graph.preprocess
    ordered = pixels[..., ::-1] if p.channels == "bgr" else pixels
    return np.asarray((ordered - np.array(p.mean)) / np.array(p.std), np.float32)


# --- comparing --------------------------------------------------------------------------------------------


def verify(
    graph: Graph,
    peer: Peer,
    pictures: Sequence[Picture],
    tolerance: float | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """Run both on the pictures; where a difference exceeds the tolerance, look for the first layer that differs, on the
    picture of the largest. ``tolerance`` None takes TOLERANCE, or ROUNDED_TOLERANCE for a peer that rounds."""
    if tolerance is None:
        tolerance = ROUNDED_TOLERANCE if peer.rounds else TOLERANCE
    graph, theirs, remarks = _subject(graph, peer, pictures)
    engine, shape = Engine(graph), infer_shapes(graph, 1, *graph.input_size)[graph.output]
    comparisons = []
    for done, picture in enumerate(pictures):
        progress(f"{done} of {len(pictures)}: {picture.label}")
        comparisons.append(_compare(picture, _run(engine, graph, picture), theirs(picture.values), shape, peer))
    report = Report(peer.name, tolerance, tuple(comparisons), remarks=tuple(remarks))
    if report.ok:
        return report
    worst = max(range(len(pictures)), key=lambda i: comparisons[i].difference)
    progress("looking for the first layer that differs")
    inside = {**peer.tensors(pictures[worst].values), graph.output: theirs(pictures[worst].values)}
    deviation, remark = _Search(graph, peer.name, inside, pictures[worst], tolerance).deviation()
    return Report(peer.name, tolerance, tuple(comparisons), deviation, (*remarks, *remark))


def _subject(
    graph: Graph, peer: Peer, pictures: Sequence[Picture]
) -> tuple[Graph, Callable[[np.ndarray], np.ndarray], list[str]]:
    """The graph to compare, what computes the peer's output for it, and remarks.

    Where the peer rounds, a softmax is left out at the end: it makes a small step of a logit a large one of a
    probability.
    """
    if not peer.rounds:
        return graph, peer.output, []
    remark = f"{peer.name} rounds every layer of this quantised file"
    if not any("quant" in node.attrs for node in graph.nodes):
        remark += "; this engine computes in fp32"
    last = graph[graph.output]
    if last.op == "softmax" and pictures and last.inputs[0] in peer.tensors(pictures[0].values):
        logits = last.inputs[0]
        part = drop_unused(graph.replace(output=logits))
        return part, lambda x: peer.tensors(x)[logits], [f"{remark}. The outputs before the softmax are compared"]
    return graph, peer.output, [remark]


def _run(engine: Engine, graph: Graph, picture: Picture) -> np.ndarray:
    if picture.pixels is not None:
        return engine.run(picture.pixels, threads=default_threads(), pixels=True)
    return engine.run(to_layout(picture.values, graph.input_layout), threads=default_threads(), pixels=False)


def _compare(picture: Picture, ours: np.ndarray, theirs: np.ndarray, shape: Shape, peer: Peer) -> Comparison:
    fitting = arrangements(theirs, shape)
    if not fitting:
        raise ModelError(f"the output of {peer.name} has the shape {theirs.shape}, and that of the graph {shape}")
    theirs = min(fitting, key=lambda y: difference(ours, y))
    top = [int(y.argmax()) if shape[1:3] == (1, 1) and shape[3] > 1 else None for y in (ours, theirs)]
    largest = float(np.abs(theirs).max()) if theirs.size else 0.0
    return Comparison(picture.label, difference(ours, theirs), largest, *top)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """See the head of this file. Values that are NaN in both are equal, and infinite ones; else infinite."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    if not gap.any():
        return 0.0
    if not np.isfinite(gap).all():
        return math.inf
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
    return float(gap.max()) / scale if scale else math.inf


# --- which layer ------------------------------------------------------------------------------------------


class _Search:
    """For one picture: the difference of every node that both know, each from a graph that ends there.

    ``theirs``: what the peer computes at nodes, the output among them.
    """

    def __init__(
        self, graph: Graph, peer: str, theirs: Mapping[str, np.ndarray], picture: Picture, tolerance: float
    ) -> None:
        self._graph, self._peer, self._picture, self._tolerance = graph, peer, picture, tolerance
        self._shapes = infer_shapes(graph, 1, *graph.input_size)
        self._differences: dict[str, float] = {}
        self._theirs = self._comparable(theirs)
        self._by_peer = len(self._theirs) > 1

    def deviation(self) -> tuple[Deviation | None, list[str]]:
        if not self._by_peer:
            return self._by_reference(f"the layers of {self._peer} cannot be told apart from here")
        found = self._find()
        assert found is not None  # the output differs, at the least
        return self._describe(found), []

    def _by_reference(self, why: str) -> tuple[Deviation | None, list[str]]:
        """The search among the tensors of the reference."""
        self._theirs = self._comparable(real_values(self._graph, self._picture.values, keep=True))
        self._differences.clear()
        self._by_peer = False
        found = self._find()
        if found is not None:
            return self._describe(found), [f"{why}; compared with the float64 reference of the graph instead"]
        return None, [
            f"{why}, and all layers agree with the float64 reference of the graph: the engine computes what was read, "
            "so it was read differently from the file"
        ]

    def _comparable(self, tensors: Mapping[str, np.ndarray]) -> dict[str, list[np.ndarray]]:
        """Name -> the array as (n, h, w, c); of those that a graph can end with."""
        fitting = {
            node.name: arrangements(tensors[node.name], self._shapes[node.name])
            for node in self._graph.nodes
            if node.op != "input" and node.name in tensors
        }
        return {name: arrays for name, arrays in fitting.items() if arrays}

    def _find(self) -> Node | None:
        """The node at fault: it differs, and by ten times as much as any of its inputs, or these hardly at all.

        Halving the list of nodes finds one that differs behind one that does not; from there it goes up.
        """
        names = list(self._theirs)
        if not names or self._difference(names[-1]) <= self._tolerance:
            return None
        good, bad = -1, len(names) - 1
        while bad - good > 1:
            middle = (good + bad) // 2
            if self._difference(names[middle]) <= self._tolerance:
                good = middle
            else:
                bad = middle
        node = self._graph[names[bad]]
        while True:
            before, _ = self._before(node)
            worst = max(before, key=self._difference, default=None)
            if worst is None or self._difference(worst) <= self._tolerance / 10:
                return node
            if self._difference(worst) <= self._difference(node.name) / 10:
                return node
            node = self._graph[worst]

    def _difference(self, name: str) -> float:
        if name not in self._differences:
            part = drop_unused(self._graph.replace(output=name))
            ours = _run(Engine(part), part, self._picture)
            self._differences[name] = min(difference(ours, y) for y in self._theirs[name])
        return self._differences[name]

    def _before(self, node: Node) -> tuple[list[str], list[str]]:
        """The nearest nodes before this one that can be compared; and those on the way to them that cannot."""
        known: dict[str, None] = {}
        unknown: dict[str, None] = {}
        waiting = list(node.inputs)
        while waiting:
            name = waiting.pop()
            if name in self._theirs:
                known[name] = None
            elif name not in unknown and self._graph[name].op != "input":
                unknown[name] = None
                waiting += self._graph[name].inputs
        order = [n.name for n in self._graph.nodes]
        return sorted(known, key=order.index), sorted(unknown, key=order.index)

    def _describe(self, node: Node) -> Deviation:
        before, between = self._before(node)
        part = drop_unused(self._graph.replace(output=node.name))
        exact = real_values(part, self._picture.values)[node.name]
        theirs = min(self._theirs[node.name], key=lambda y: difference(exact, y))
        ours = _run(Engine(part), part, self._picture)
        return Deviation(
            node=node.name,
            op=node.op,
            difference=self._difference(node.name),
            inputs={name: self._difference(name) for name in before},
            between=tuple(between),
            fused=self._fused(node),
            reference=(difference(ours, exact), difference(theirs, exact)),
            by_peer=self._by_peer,
        )

    def _fused(self, node: Node) -> tuple[str, ...]:
        """The convolution, batch norm and activation that run as one step with this node."""
        readers = self._graph.consumers()
        group = [node]
        while len(readers[group[-1].name]) == 1 and readers[group[-1].name][0].op in ("batch_norm", "activation"):
            group.append(readers[group[-1].name][0])
        while group[0].op in ("batch_norm", "activation") and len(readers[group[0].inputs[0]]) == 1:
            group.insert(0, self._graph[group[0].inputs[0]])
        return tuple(n.name for n in group if n is not node and n.op != "input")
