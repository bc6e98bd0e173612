"""Outputs by name: the node that "embedding" or "block_12" stands for, networks that end there, and other heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .graph import Graph, Node, Shape, infer_shapes
from .lower import Engine
from .passes import drop_unused

#: Names that every network has; "logits" and "probabilities" those only whose output is one pixel.
ALIASES = ("embedding", "logits", "probabilities", "output")

#: Of a detector: other names than those of a classifier, and some that it has not.
_OF_DETECTORS = ("embedding", "boxes", "logits", "probabilities")

#: Ops that may stand between the layers of a classifier, and change no shape.
_BETWEEN = ("activation", "softmax", "quantize", "dequantize", "lookup", "batch_norm")
_POOLS = ("global_avg_pool", "avg_pool2d", "adaptive_avg_pool2d")


class Selection:
    """The nodes of a graph that outputs are names of. Nodes that some outputs need beside those of the graph, a global
    pool or a dequantize, are appended to ``graph``."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._shapes = infer_shapes(graph, 1, *graph.input_size)

    def node(self, name: str) -> str:
        """The node whose value, in float32, is the output of this name. Raises ValueError that lists what there is.

        A name is one of ALIASES, that of a layer, or the part before a "/" of some: "block_12" stands for the last of
        "block_12/expand", "block_12/depthwise" and "block_12/project".
        """
        if self.graph[self.graph.output].op == "detection" and name in _OF_DETECTORS:
            return self._of_rows(name)
        if name == "embedding":
            return self._real(self._embedding())
        if name == "output" or (name == "probabilities" and ends_in_softmax(self.graph)):
            return self._real(self.graph.output)
        if name in ("logits", "probabilities") and self._pixels(self.graph.output) == 1:
            return self._real(self._logits())
        layers = [node.name for node in self.graph.nodes if node.op != "input"]
        if name in layers:
            return self._real(name)
        below = [layer for layer in layers if layer.startswith(f"{name}/")]
        if below:
            return self._real(below[-1])
        import difflib  # for the message only

        close = difflib.get_close_matches(name, layers, n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ValueError(
            f"{self.graph.name} has no output {name!r}{hint}. Outputs: {', '.join(ALIASES)}, and the layers "
            f"{', '.join(layers)}"
        )

    def _of_rows(self, name: str) -> str:
        """Columns of the rows of a detector."""
        if name not in ("boxes", "logits"):
            raise ValueError(
                f"{self.graph.name} is a detector and has no {name!r}. Outputs: boxes (four numbers for each anchor), "
                "logits (a number for each anchor and class), output (both), and the layers"
            )
        boxes, classes = self.graph[self.graph.output].attrs["columns"]
        index = range(boxes) if name == "boxes" else range(boxes, boxes + classes)
        return self._append("gather_channels", self.graph.output, f"{self.graph.output}/{name}", index=tuple(index))

    def _logits(self) -> str:
        """What the last softmax reads; the output where there is none."""
        if not ends_in_softmax(self.graph):
            return self.graph.output
        node = self.graph[self.graph.output]
        while node.op != "softmax":
            node = self.graph[node.inputs[0]]
        return node.inputs[0]

    def _embedding(self) -> str:
        """The output of the global pool. Of a classifier that is a convolution before the pool, as SqueezeNet's, the
        pool of what that convolution reads; where there is no global pool, as in VGG, the input of the last layer; of a
        network that is no classifier, the pool of its output."""
        if self._pixels(self.graph.output) != 1:
            return self._pooled(self.graph.output)
        name, last = self.graph.output, ""  # last: the input of the last layer
        while True:
            node = self.graph[name]
            if node.op in _POOLS and self._pixels(name) == 1:
                return name if last else self._before_classifier(node)
            if node.op in ("dense", "conv2d") and len(node.inputs) == 1 and self._pixels(node.inputs[0]) == 1:
                name = node.inputs[0]
                last = last or name
            elif node.op in ("dense", "conv2d"):
                return last or self._uncopied(node.inputs[0])
            elif node.op in _BETWEEN or (node.op == "gather_channels" and self._is_copy(node)):
                name = node.inputs[0]
            else:
                return last or name

    def _before_classifier(self, pool: Node) -> str:
        node = self.graph[pool.inputs[0]]
        while node.op in _BETWEEN:
            node = self.graph[node.inputs[0]]
        if node.op != "conv2d" or len(node.inputs) != 1:
            return pool.name
        return self._pooled(node.inputs[0])

    def _uncopied(self, name: str) -> str:
        node = self.graph[name]
        return node.inputs[0] if node.op == "gather_channels" and self._is_copy(node) else name

    def _is_copy(self, node: Node) -> bool:
        return len(node.inputs) == 1 and node.attrs["index"] == tuple(range(self._shapes[node.inputs[0]][3]))

    def _pixels(self, name: str) -> int:
        _, h, w, _ = self._shapes[name]
        return h * w

    def _pooled(self, name: str) -> str:
        return self._append("global_avg_pool", self._real(name), f"{name}/pool")

    def _real(self, name: str) -> str:
        """The value as float32, where the node makes bytes."""
        if "quant" not in self.graph[name].attrs:
            return name
        readers = [node.name for node in self.graph.nodes if node.op == "dequantize" and node.inputs[0] == name]
        return readers[0] if readers else self._append("dequantize", name, f"{name}/float")

    def _append(self, op: str, source: str, name: str, **attrs: Any) -> str:
        for node in self.graph.nodes:
            if node.op == op and node.inputs == (source,) and (not attrs or node.attrs == attrs):
                return node.name
        node = Node(_unique(self.graph, name), op, (source,), attrs)
        self.graph = self.graph.replace(nodes=(*self.graph.nodes, node))
        self._shapes = infer_shapes(self.graph, 1, *self.graph.input_size)
        return node.name


def ends_in_softmax(graph: Graph) -> bool:
    """Whether the output of the graph is that of a softmax, perhaps dequantised."""
    node = graph[graph.output]
    while node.op in ("quantize", "dequantize"):
        node = graph[node.inputs[0]]
    return node.op == "softmax"


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """exp(x - max) / sum along the last axis, in float64. Infinite and NaN logits give NaN."""
    with np.errstate(invalid="ignore"):
        x = logits.astype(np.float64)
        e: npt.NDArray[np.float64] = np.exp(x - x.max(axis=-1, keepdims=True))
        e /= e.sum(axis=-1, keepdims=True)
    return e.astype(np.float32)


def cut(graph: Graph, nodes: Sequence[str]) -> Graph:
    """The part of the graph that computes these nodes, which have the same height and width: one behind the other along
    the channels. The names of classes are left out."""
    if len(nodes) == 1:
        output = nodes[0]
    else:
        output = _unique(graph, "outputs")
        graph = graph.replace(nodes=(*graph.nodes, Node(output, "concat", tuple(nodes))))
    return drop_unused(graph.replace(output=output, labels=None))


def groups(nodes: Sequence[str], shapes: dict[str, Shape]) -> list[tuple[str, ...]]:
    """The nodes, each once, in groups of the same height and width."""
    table: dict[tuple[int, int], list[str]] = {}
    for name in dict.fromkeys(nodes):
        table.setdefault(shapes[name][1:3], []).append(name)
    return [tuple(group) for group in table.values()]


def attach_head(graph: Graph, weights: npt.ArrayLike, bias: npt.ArrayLike | None, activation: str | None) -> Graph:
    """The graph up to its embedding, and a dense layer of ``weights`` (classes, features) behind it, "logits".

    What a binary classifier of scikit-learn has, weights of shape (1, features), is the logit of its second class: the
    first one gets the logit 0. Weights of shape (features,) make one number. Raises TypeError and ValueError.
    """
    if activation not in (None, "softmax"):
        raise ValueError(f'activation must be "softmax" or None, not {activation!r}')
    selection = Selection(graph)
    embedding = selection.node("embedding")
    graph = selection.graph
    _, h, w, c = infer_shapes(graph, 1, *graph.input_size)[embedding]
    weight, offsets = _layer(weights, bias, h * w * c)
    graph = drop_unused(graph.replace(output=embedding, labels=None))
    nodes = list(graph.nodes)
    name = _unique(graph, "logits")
    nodes.append(Node(name, "dense", (embedding,), {}, {"weight": weight, "bias": offsets}))
    if activation == "softmax":
        nodes.append(Node(_unique(graph, "probabilities"), "softmax", (name,)))
    return graph.replace(nodes=tuple(nodes), output=nodes[-1].name)


def _layer(weights: npt.ArrayLike, bias: npt.ArrayLike | None, features: int) -> tuple[np.ndarray, np.ndarray]:
    weight = _numbers(weights, "weights")
    single = weight.ndim == 1
    weight = np.atleast_2d(weight)
    if weight.ndim != 2 or weight.shape[1] != features or len(weight) == 0:
        swapped = "; transpose them" if weight.ndim == 2 and weight.shape[0] == features else ""
        raise ValueError(
            f"weights must have the shape (classes, {features}), as coef_ of scikit-learn has; "
            f"got {np.shape(weights)}{swapped}"
        )
    offsets = np.zeros(len(weight), np.float32) if bias is None else np.atleast_1d(_numbers(bias, "bias"))
    if offsets.shape == (1,):
        offsets = np.repeat(offsets, len(weight))  # scikit-learn's intercept_ is one number where it fits none
    if offsets.shape != (len(weight),):
        raise ValueError(f"bias must have the shape ({len(weight)},), got {np.shape(bias)}")  # type: ignore[arg-type]
    if len(weight) == 1 and not single:
        weight, offsets = (np.concatenate([np.zeros_like(v), v]) for v in (weight, offsets))
    return np.ascontiguousarray(weight), np.ascontiguousarray(offsets)


def _numbers(value: Any, what: str) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{what} must be numbers, not {array.dtype}")
    with np.errstate(over="ignore"):
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{what} must be finite; some are NaN or infinite as float32")
    return array


def _unique(graph: Graph, name: str) -> str:
    taken = {node.name for node in graph.nodes}
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    return unique


class Named:
    """Runs an Engine up to outputs by name.

    Outputs of the same height and width come from one run, others from one run each. What a run needs beside the packed
    weights of the Engine, which it shares, is small and kept for the next one.
    """

    #: Parts of the network that are kept, and choices of outputs; the oldest go first.
    PARTS, CHOICES = 16, 64

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._parts: dict[tuple[str, ...], Engine] = {}
        self._choices: dict[tuple[Any, ...], list[tuple[Engine, dict[str, slice]]]] = {}

    def run(
        self, x: np.ndarray, names: tuple[str, ...], *, threads: int, pixels: bool
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Name -> (n, h, w, c), float32. ``x``, ``threads`` and ``pixels`` are those of :meth:`Engine.run`. Raises
        ValueError for an unknown name."""
        nchw = not pixels and self._engine.skeleton.input_layout == "NCHW"
        found = {}
        for part, places in self._choose(names, *(x.shape[2:] if nchw else x.shape[1:3])):
            y = part.run(x, threads=threads, pixels=pixels)
            for name, channels in places.items():
                found[name] = y if len(places) == 1 else np.ascontiguousarray(y[..., channels])
        return {name: softmax(found[name]) if self._needs_softmax(name) else found[name] for name in names}

    def _needs_softmax(self, name: str) -> bool:
        return name == "probabilities" and not ends_in_softmax(self._engine.skeleton)

    def check(self, names: tuple[str, ...]) -> None:
        """Raises ValueError for an unknown name."""
        selection = Selection(self._engine.skeleton)
        for name in names:
            selection.node(name)

    def _choose(self, names: tuple[str, ...], h: int, w: int) -> list[tuple[Engine, dict[str, slice]]]:
        """The runs that give the outputs, and the channels of each. No lock, as in Engine.program."""
        choice = self._choices.get((names, h, w))
        if choice is None:
            selection = Selection(self._engine.skeleton)
            nodes = {name: selection.node(name) for name in names}
            shapes = infer_shapes(selection.graph, 1, h, w)
            choice = []
            for group in groups(list(nodes.values()), shapes):
                ends = np.cumsum([shapes[node][3] for node in group]).tolist()
                at = {node: slice(end - shapes[node][3], end) for node, end in zip(group, ends, strict=True)}
                places = {name: at[node] for name, node in nodes.items() if node in at}
                choice.append((self._part(selection.graph, group), places))
            _keep(self._choices, (names, h, w), choice, self.CHOICES)
        return choice

    def _part(self, graph: Graph, nodes: tuple[str, ...]) -> Engine:
        if nodes == (self._engine.skeleton.output,):
            return self._engine
        part = self._parts.get(nodes)
        if part is None:
            part = Engine(cut(graph, nodes), base=self._engine)
            _keep(self._parts, nodes, part, self.PARTS)
        return part


def _keep(table: dict[Any, Any], key: Any, value: Any, limit: int) -> None:
    table[key] = value
    for oldest in list(table)[:-limit]:
        table.pop(oldest, None)


def check_names(outputs: Any) -> tuple[str, ...]:
    """The names as a tuple. Raises TypeError for what is no list of names."""
    if isinstance(outputs, str):
        raise TypeError(f"outputs must be a list of names: outputs=[{outputs!r}]")
    if not isinstance(outputs, (list, tuple)) or not all(isinstance(name, str) for name in outputs):
        raise TypeError(f"outputs must be a list of names, not {type(outputs).__name__}")
    if not outputs:
        raise ValueError("outputs is empty; name at least one, for example outputs=['embedding']")
    return tuple(map(str, outputs))
