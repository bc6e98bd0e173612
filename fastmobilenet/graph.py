"""Graph: a network as data. Every builder of models/ and every importer makes one of these.

A Graph is a tuple of nodes in topological order. A node has one output tensor, which carries the node's
name. All tensors are NHWC with rank 4; a vector is (n, 1, 1, c). ``reference.py`` says what each op computes.

| op                  | inputs   | attrs                                           | params                         |
|---------------------|----------|-------------------------------------------------|--------------------------------|
| input               |          | [mean, std: (c,)]                               |                                |
| conv2d              | x[, add] | stride, padding, dilation, groups[, activation] | weight (oc, kh, kw, ic/groups) |
|                     |          |                                                 | [, bias (oc,)]                 |
| batch_norm          | x        | epsilon                                         | gamma, beta, mean, variance:   |
|                     |          |                                                 | (c,)                           |
| activation          | x        | activation                                      |                                |
| add                 | a, b     | [activation]                                    |                                |
| mul                 | a, b     | [activation]                                    |                                |
| global_avg_pool     | x        |                                                 |                                |
| avg_pool2d          | x        | kernel, stride, padding[, ceil, count_padding]  |                                |
| max_pool2d          | x        | kernel, stride, padding[, ceil]                 |                                |
| adaptive_avg_pool2d | x        | size                                            |                                |
| concat              | a, b ... |                                                 |                                |
| gather_channels     | a, b ... | index                                           |                                |
| lrn                 | x        | size, alpha, beta, bias                         |                                |
| dense               | x[, add] | [activation]                                    | weight (oc, h * w * c)         |
|                     |          |                                                 | [, bias (oc,)]                 |
| softmax             | x        |                                                 |                                |
| detection           | maps     | columns, anchors, ... (detection_head.py)       |                                |
| quantize            | x        | quant                                           |                                |
| dequantize          | x        |                                                 |                                |
| lookup              | x        | quant                                           | table (256,)                   |

``stride``, ``dilation``, ``kernel`` and the pool's ``size`` are pairs (vertical, horizontal). ``padding`` is
either four pixels (top, bottom, left, right) or ``"same"``: TensorFlow's rule, which depends on the size of the picture
and is therefore resolved for each size anew (:func:`resolve_padding`). With ``ceil`` a last window that is only partly
filled counts, if it begins inside (PyTorch's rule). The second input of add and mul may also be a vector (n, 1, 1, c).
gather_channels takes channels of the concatenated inputs: a slice, a split and a channel shuffle are all that
(``index``: a tuple of ints). A dense layer reads its input in NHWC order. The mean and std of an input
are applied to every picture, after the preprocessing of pixels and to float tensors too (Keras' Rescaling).

A node with the attribute ``quant`` (quantization.Quant) makes bytes: the input, or any op whose inputs are bytes (a
quantize takes floats, or changes the scale of bytes). A conv2d or dense layer then has a weight of int8, or of uint8
with the attribute ``weight_zero``, an int32 bias in units of input scale * weight scale, and the param ``weight_scale``
(1,) or (oc,); ``reference_u8.py`` says what it computes. A dequantize turns bytes into floats. A lookup takes the byte
x to the byte table[x]: any function of one value. The attribute ``rounding`` of a global_avg_pool or avg_pool2d of
bytes names another rule than the usual one (``reference_u8.ROUNDINGS``), of an add too (``ADD_ROUNDINGS``).

The optional second input of conv2d and dense is added before the activation; passes.py puts it there, and the mean and
std of the input too; importers do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from . import detection_head
from .activation import ACTIVATIONS, HARD_SIGMOID, HARD_SWISH, RELU, RELU6, SIGMOID, SWISH, Activation
from .errors import ModelError
from .preprocess import Preprocess

__all__ = [  # the activations are a part of the graph's vocabulary
    "ACTIVATIONS", "HARD_SIGMOID", "HARD_SWISH", "MAX_ELEMENTS", "OPS", "RELU", "RELU6", "SIGMOID", "SWISH",
    "Activation", "Graph", "GraphBuilder", "Node", "OpSpec", "Padding", "Shape", "count_macs", "count_parameters",
    "infer_shapes", "is_depthwise", "kernel_size", "node_parameters", "resolve_padding", "same_padding",
]  # fmt: skip

#: (n, h, w, c)
Shape = tuple[int, int, int, int]
#: (top, bottom, left, right), in pixels
Padding = tuple[int, int, int, int]

#: A tensor of more elements (8 GB) is refused: the runtime counts rows and columns in 32 bits.
MAX_ELEMENTS = 2**31 - 1
#: Of one node.
MAX_INPUTS = 1024


@dataclass(frozen=True)
class Node:
    """One op. ``params`` are NumPy arrays of float32 (or what the source file holds), never modified."""

    name: str
    op: str
    inputs: tuple[str, ...] = ()
    attrs: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def activation(self) -> Activation | None:
        return self.attrs.get("activation")


@dataclass(frozen=True)
class Graph:
    """A network: nodes in topological order, and what is needed to feed it with a picture.

    ``input_size`` is (height, width) of the size it was made for, ``input_channels`` the channel count,
    ``input_layout`` ("NCHW" or "NHWC") the layout in which a float32 array is accepted: the source
    framework's own. The node with op "input" is the first.
    """

    nodes: tuple[Node, ...]
    output: str
    input_size: tuple[int, int] = (224, 224)
    input_channels: int = 3
    input_layout: str = "NCHW"
    preprocess: Preprocess = field(default_factory=Preprocess)
    labels: tuple[str, ...] | None = None
    name: str = "network"

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            if node.op not in OPS:
                raise ModelError(f"node {node.name!r}: op {node.op!r} is unknown; known: {', '.join(OPS)}")
            if node.name in seen:
                raise ModelError(f"node {node.name!r} appears twice")
            for source in node.inputs:
                if source not in seen:
                    raise ModelError(f"node {node.name!r} reads {source!r}, which no earlier node makes")
            seen.add(node.name)
        if self.output not in seen:
            raise ModelError(f"output {self.output!r} is not a node")
        if sum(n.op == "input" for n in self.nodes) != 1 or self.nodes[0].op != "input":
            raise ModelError("a graph needs one input node, and it must be the first")
        if self.input_layout not in ("NCHW", "NHWC"):
            raise ModelError(f"input_layout must be NCHW or NHWC, not {self.input_layout!r}")

    def __getitem__(self, name: str) -> Node:
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def consumers(self) -> dict[str, list[Node]]:
        """Tensor name -> the nodes that read it."""
        table: dict[str, list[Node]] = {n.name: [] for n in self.nodes}
        for node in self.nodes:
            for source in node.inputs:
                table[source].append(node)
        return table

    def replace(self, **changes: Any) -> Graph:
        return replace(self, **changes)


class GraphBuilder:
    """Appends nodes and returns their names; gives every node a unique name.

    >>> b = GraphBuilder()
    >>> x = b.add("input")
    >>> y = b.add("activation", x, activation=RELU6)
    >>> [n.op for n in b.build(y).nodes]
    ['input', 'activation']
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._names: set[str] = set()

    def add(
        self,
        op: str,
        *inputs: str,
        name: str | None = None,
        params: Mapping[str, np.ndarray] | None = None,
        **attrs: Any,
    ) -> str:
        base = name or op
        unique, count = base, 1
        while unique in self._names:
            count += 1
            unique = f"{base}_{count}"
        self._names.add(unique)
        self.nodes.append(Node(unique, op, tuple(inputs), attrs, dict(params or {})))
        return unique

    def build(self, output: str, **fields: Any) -> Graph:
        return Graph(tuple(self.nodes), output, **fields)


# --- shapes ---------------------------------------------------------------------------------------------


def same_padding(size: int, kernel: int, stride: int, dilation: int = 1) -> tuple[int, int]:
    """TensorFlow's SAME rule for one axis: output = ceil(size / stride), the odd pixel goes to the end."""
    output = -(-size // stride)
    total = max((output - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
    return total // 2, total - total // 2


def resolve_padding(node: Node, h: int, w: int) -> Padding:
    """The node's padding in pixels for an input of h x w. What a ``ceil`` window reads beyond the bottom and the right
    edge counts as padding."""
    padding: Padding | str = node.attrs["padding"]
    kh, kw = kernel_size(node)
    sh, sw = node.attrs["stride"]
    dh, dw = node.attrs.get("dilation", (1, 1))
    if isinstance(padding, str):
        return (*same_padding(h, kh, sh, dh), *same_padding(w, kw, sw, dw))
    if node.attrs.get("ceil", False):
        top, bottom, left, right = padding
        return top, bottom + _ceil_padding(h, top, bottom, kh, sh), left, right + _ceil_padding(w, left, right, kw, sw)
    return padding


def _ceil_padding(size: int, before: int, after: int, kernel: int, stride: int) -> int:
    """Pixels that a last, partly filled window needs; none if it would begin behind the picture."""
    steps = -(-(size + before + after - kernel) // stride)
    if steps * stride >= size + before:
        steps -= 1
    return max(steps * stride + kernel - (size + before + after), 0)


def kernel_size(node: Node) -> tuple[int, int]:
    if node.op == "conv2d":
        return node.params["weight"].shape[1], node.params["weight"].shape[2]
    kernel: tuple[int, int] = node.attrs["kernel"]
    return kernel


def is_depthwise(node: Node) -> bool:
    """True for a convolution with one filter of one input channel for every channel."""
    weight = node.params["weight"]
    groups: int = node.attrs.get("groups", 1)
    return groups > 1 and weight.shape[3] == 1 and weight.shape[0] == groups


def _window(node: Node, x: Shape, oc: int) -> Shape:
    n, h, w, _ = x
    kh, kw = kernel_size(node)
    sh, sw = node.attrs["stride"]
    dh, dw = node.attrs.get("dilation", (1, 1))
    top, bottom, left, right = resolve_padding(node, h, w)
    oh = (h + top + bottom - (kh - 1) * dh - 1) // sh + 1
    ow = (w + left + right - (kw - 1) * dw - 1) // sw + 1
    if oh < 1 or ow < 1:
        raise ModelError(f"node {node.name!r}: a {kh}x{kw} window does not fit its {h}x{w} input; use a larger picture")
    return n, oh, ow, oc


def _conv2d(node: Node, xs: list[Shape]) -> Shape:
    weight, groups = node.params.get("weight"), node.attrs.get("groups", 1)
    if weight is None or weight.ndim != 4 or min(weight.shape) < 1:
        raise ModelError(f"node {node.name!r}: conv2d needs a weight of shape (oc, kh, kw, ic/groups)")
    oc, _, _, ic = weight.shape
    if groups < 1 or ic * groups != xs[0][3] or oc % groups:
        raise ModelError(
            f"node {node.name!r}: weight {weight.shape} with {groups} groups does not fit "
            f"an input of {xs[0][3]} channels"
        )
    _check_bias(node, oc)
    out = _window(node, xs[0], oc)
    if len(xs) == 2 and xs[1] != out:
        raise ModelError(f"node {node.name!r}: adds {xs[1]} to an output of {out}")
    return out


def _check_bias(node: Node, oc: int) -> None:
    bias = node.params.get("bias")
    if bias is not None and bias.shape != (oc,):
        raise ModelError(f"node {node.name!r}: bias has shape {bias.shape}, expected {(oc,)}")


def _batch_norm(node: Node, xs: list[Shape]) -> Shape:
    for key in ("gamma", "beta", "mean", "variance"):
        value = node.params.get(key)
        if value is None or value.shape != (xs[0][3],):
            found = None if value is None else value.shape
            raise ModelError(f"node {node.name!r}: {key} has shape {found}, expected {(xs[0][3],)}")
    return xs[0]


def _broadcast(node: Node, xs: list[Shape]) -> Shape:
    """add and mul: equal shapes, or a vector as the second input."""
    n, _, _, c = xs[0]
    if xs[1] not in (xs[0], (n, 1, 1, c)):
        raise ModelError(f"node {node.name!r}: cannot {node.op} {xs[0]} and {xs[1]}")
    return xs[0]


def _adaptive(node: Node, xs: list[Shape]) -> Shape:
    oh, ow = node.attrs["size"]
    if oh < 1 or ow < 1:
        raise ModelError(f"node {node.name!r}: an output of {oh}x{ow} is empty")
    return xs[0][0], oh, ow, xs[0][3]


def _concat(node: Node, xs: list[Shape]) -> Shape:
    if any(x[:3] != xs[0][:3] for x in xs):
        raise ModelError(f"node {node.name!r}: cannot concatenate the channels of {', '.join(map(str, xs))}")
    return (*xs[0][:3], sum(x[3] for x in xs))


def _gather_channels(node: Node, xs: list[Shape]) -> Shape:
    n, h, w, c = _concat(node, xs)
    index = node.attrs["index"]
    if not index or min(index) < 0 or max(index) >= c:
        raise ModelError(f"node {node.name!r}: takes channels that its input of {c} channels does not have")
    return n, h, w, len(index)


def _lrn(node: Node, xs: list[Shape]) -> Shape:
    size = node.attrs["size"]
    if size < 1:
        raise ModelError(f"node {node.name!r}: size must be positive, not {size}")
    return xs[0]


def _dense(node: Node, xs: list[Shape]) -> Shape:
    weight, (n, h, w, c) = node.params.get("weight"), xs[0]
    if weight is None or weight.ndim != 2 or weight.shape[1] != h * w * c or min(weight.shape) < 1:
        found = None if weight is None else weight.shape
        raise ModelError(f"node {node.name!r}: weight {found} does not fit an input of {h * w * c} values")
    _check_bias(node, weight.shape[0])
    return n, 1, 1, weight.shape[0]


def _lookup(node: Node, xs: list[Shape]) -> Shape:
    table = node.params.get("table")
    if table is None or table.shape != (256,) or table.dtype != np.uint8:
        raise ModelError(f"node {node.name!r}: lookup needs a table of 256 bytes")
    return xs[0]


@dataclass(frozen=True)
class OpSpec:
    arity: tuple[int, int]  # least and most inputs
    shape: Callable[[Node, list[Shape]], Shape]
    required: tuple[str, ...] = ()


OPS: dict[str, OpSpec] = {
    "input": OpSpec((0, 0), lambda node, xs: (0, 0, 0, 0)),
    "conv2d": OpSpec((1, 2), _conv2d, ("stride", "padding")),
    "batch_norm": OpSpec((1, 1), _batch_norm, ("epsilon",)),
    "activation": OpSpec((1, 1), lambda node, xs: xs[0], ("activation",)),
    "add": OpSpec((2, 2), _broadcast),
    "mul": OpSpec((2, 2), _broadcast),
    "global_avg_pool": OpSpec((1, 1), lambda node, xs: (xs[0][0], 1, 1, xs[0][3])),
    "avg_pool2d": OpSpec((1, 1), lambda node, xs: _window(node, xs[0], xs[0][3]), ("kernel", "stride", "padding")),
    "max_pool2d": OpSpec((1, 1), lambda node, xs: _window(node, xs[0], xs[0][3]), ("kernel", "stride", "padding")),
    "adaptive_avg_pool2d": OpSpec((1, 1), _adaptive, ("size",)),
    "concat": OpSpec((1, MAX_INPUTS), _concat),
    "gather_channels": OpSpec((1, MAX_INPUTS), _gather_channels, ("index",)),
    "lrn": OpSpec((1, 1), _lrn, ("size", "alpha", "beta", "bias")),
    "dense": OpSpec((1, 2), _dense),
    "softmax": OpSpec((1, 1), lambda node, xs: xs[0]),
    "detection": OpSpec((2, MAX_INPUTS), detection_head.rows_shape, detection_head.REQUIRED),
    "quantize": OpSpec((1, 1), lambda node, xs: xs[0], ("quant",)),
    "dequantize": OpSpec((1, 1), lambda node, xs: xs[0]),
    "lookup": OpSpec((1, 1), _lookup, ("quant",)),
}


def infer_shapes(graph: Graph, n: int, h: int, w: int) -> dict[str, Shape]:
    """Tensor name -> (n, h, w, c) for n pictures of h x w pixels. Raises ModelError where nothing fits."""
    if h < 1 or w < 1:
        raise ModelError(f"a picture of {h}x{w} pixels is empty")
    shapes: dict[str, Shape] = {}
    for node in graph.nodes:
        spec = OPS[node.op]
        if not spec.arity[0] <= len(node.inputs) <= spec.arity[1]:
            raise ModelError(f"node {node.name!r}: {node.op} takes {spec.arity} inputs, not {len(node.inputs)}")
        for key in spec.required:
            if key not in node.attrs:
                raise ModelError(f"node {node.name!r}: {node.op} needs {key!r}")
        if node.op == "input":
            shape: Shape = (n, h, w, graph.input_channels)
        else:
            shape = spec.shape(node, [shapes[s] for s in node.inputs])
        if math.prod(shape) > MAX_ELEMENTS:
            raise ModelError(f"node {node.name!r}: a tensor of shape {shape} is too large")
        shapes[node.name] = shape
    return shapes


def count_macs(node: Node, shapes: Mapping[str, Shape]) -> int:
    """Multiply-accumulates of a convolution or dense layer for the given shapes; 0 for other ops."""
    if node.op not in ("conv2d", "dense"):
        return 0
    n, oh, ow, oc = shapes[node.name]
    weight = node.params["weight"]
    return n * oh * ow * oc * math.prod(weight.shape[1:])


def node_parameters(node: Node) -> int:
    """Trainable values of one node: weight, bias, gamma and beta (batch-norm statistics are not trained)."""
    return sum(v.size for k, v in node.params.items() if k in ("weight", "bias", "gamma", "beta"))


def count_parameters(graph: Graph) -> int:
    """Trainable values of all nodes."""
    return sum(node_parameters(node) for node in graph.nodes)
