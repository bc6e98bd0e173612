"""What the attributes of every op may be: their types and bounds. graph.py says what they mean.

A Graph that a builder or an importer makes is right by construction; one that goes into a file or comes out of it is
checked here, so that every file that is written can be read, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from . import detection_head
from .activation import Activation
from .errors import ModelError
from .graph import Graph, Node, infer_shapes
from .importers._limits import MAX_DILATION, MAX_FILE_ELEMENTS, MAX_PAD, MAX_STRIDE
from .importers._text import quote
from .quantization import Quant
from .reference_u8 import ADD_ROUNDINGS, ROUNDINGS

#: Pixels of a pool's window in one direction, of an adaptive pool's output, channels of a normalisation.
MAX_EXTENT = 1024
#: More than any network has; the passes over a graph of this many take a second.
MAX_NODES = 4000
#: Of a detector.
MAX_CLASSES, MAX_BOXES = 2**16, 2**20


class Kind(NamedTuple):
    """``accepts`` a value or not; ``expected`` says in words what it accepts."""

    accepts: Callable[[Any], bool]
    expected: str


def _is_count(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_padding(value: Any) -> bool:
    if isinstance(value, str):
        return value == "same"
    return isinstance(value, tuple) and len(value) == 4 and all(_is_count(v, 0, MAX_PAD) for v in value)


def _is_index(value: Any) -> bool:
    return isinstance(value, tuple) and all(_is_count(v, 0, 2**31) for v in value)


def _is_vector(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind == "f" and bool(np.isfinite(value).all())
    return isinstance(value, tuple) and all(map(_is_number, value))


def _is_divisor(value: Any) -> bool:
    return _is_vector(value) and bool(np.all(np.asarray(value) != 0))


def count(high: int) -> Kind:
    return Kind(lambda v: _is_count(v, 1, high), f"a whole number from 1 to {high}")


def pair(high: int) -> Kind:
    return Kind(
        lambda v: isinstance(v, tuple) and len(v) == 2 and all(_is_count(n, 1, high) for n in v),
        f"two whole numbers from 1 to {high}",
    )


def _numbers(n: int) -> Kind:
    return Kind(lambda v: isinstance(v, tuple) and len(v) == n and all(map(_is_number, v)), f"{n} finite numbers")


def _word(words: tuple[str, ...]) -> Kind:
    return Kind(lambda v: v in words, f"one of {', '.join(words)}")


def _up_to(high: int) -> Kind:
    return Kind(lambda v: _is_count(v, 0, high), f"a whole number from 0 to {high}")


def _is_columns(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and value[0] == 4 and _is_count(value[1], 1, MAX_CLASSES)


NUMBER = Kind(_is_number, "a finite number")
POSITIVE = Kind(lambda v: _is_number(v) and v >= 0, "a finite number, not negative")
FLAG = Kind(lambda v: isinstance(v, bool), "true or false")
PADDING = Kind(_is_padding, f'"same" or four whole numbers from 0 to {MAX_PAD}')
INDEX = Kind(_is_index, "channel numbers")
ACTIVATION = Kind(lambda v: v is None or isinstance(v, Activation), "an activation")
QUANT = Kind(lambda v: isinstance(v, Quant), "a scale and a zero point")
ROUNDING = Kind(lambda v: v in ROUNDINGS, f"one of {', '.join(ROUNDINGS)}")
ADD_ROUNDING = Kind(lambda v: v in tuple(ADD_ROUNDINGS), f"one of {', '.join(ADD_ROUNDINGS)}")
NEEDED_ACTIVATION = Kind(lambda v: isinstance(v, Activation), "an activation")

_POOL = {"kernel": pair(MAX_EXTENT), "stride": pair(MAX_STRIDE), "padding": PADDING, "ceil": FLAG, "quant": QUANT}

#: Of a layer with weights, where these are bytes.
_WEIGHT_ZERO = {"weight_zero": Kind(lambda v: _is_count(v, 0, 255), "a whole number from 0 to 255")}

ATTRIBUTES: dict[str, dict[str, Kind]] = {
    "input": {
        "quant": QUANT,
        "mean": Kind(_is_vector, "finite numbers, one a channel"),
        "std": Kind(_is_divisor, "finite numbers other than 0, one a channel"),
    },
    "conv2d": {
        "stride": pair(MAX_STRIDE),
        "padding": PADDING,
        "dilation": pair(MAX_DILATION),
        "groups": count(2**31),
        "activation": ACTIVATION,
        "quant": QUANT,
        **_WEIGHT_ZERO,
    },
    "batch_norm": {"epsilon": POSITIVE},
    "activation": {"activation": NEEDED_ACTIVATION, "quant": QUANT},
    "add": {"activation": ACTIVATION, "quant": QUANT, "rounding": ADD_ROUNDING},
    "mul": {"activation": ACTIVATION, "quant": QUANT},
    "global_avg_pool": {"quant": QUANT, "rounding": ROUNDING},
    "avg_pool2d": {**_POOL, "count_padding": FLAG, "rounding": ROUNDING},
    "max_pool2d": dict(_POOL),
    "adaptive_avg_pool2d": {"size": pair(MAX_EXTENT), "quant": QUANT},
    "concat": {"quant": QUANT},
    "gather_channels": {"index": INDEX, "quant": QUANT},
    "lrn": {"size": count(MAX_EXTENT), "alpha": NUMBER, "beta": NUMBER, "bias": NUMBER},
    "dense": {"activation": ACTIVATION, "quant": QUANT, **_WEIGHT_ZERO},
    "softmax": {"quant": QUANT},
    "detection": {
        "columns": Kind(_is_columns, f"(4, a number of classes from 1 to {MAX_CLASSES})"),
        "anchors": Kind(lambda v: isinstance(v, np.ndarray) and v.dtype == np.float32, "an array of float32"),
        "extent": _numbers(2),
        "order": _word(detection_head.ORDERS),
        "scale": _numbers(4),
        "limit": Kind(lambda v: v is None or _is_number(v), "a finite number, or nothing"),
        "clip": FLAG,
        "scores": _word(detection_head.SCORES),
        "background": FLAG,
        "shift": _up_to(1),
        "score_threshold": NUMBER,
        "above": FLAG,
        "iou_threshold": POSITIVE,
        "candidates": _up_to(MAX_BOXES),
        "per_class": _up_to(MAX_BOXES),
        "detections": count(MAX_BOXES),
        "agnostic": FLAG,
        "per_anchor": count(MAX_CLASSES),
    },
    "quantize": {"quant": QUANT},
    "dequantize": {},
    "lookup": {"quant": QUANT},
}


def check_attributes(node: Node) -> None:
    """Raises ModelError that names the node and the attribute that its op does not have, or that is none it may be.

    That all required ones are there is checked by :func:`fastmobilenet.graph.infer_shapes`.
    """
    kinds = ATTRIBUTES[node.op]
    for key, value in node.attrs.items():
        if key not in kinds:
            known = ", ".join(kinds) or "none"
            raise ModelError(f"node {quote(node.name)}: {node.op} has no attribute {quote(key)}; it has {known}")
        if not kinds[key].accepts(value):
            raise ModelError(f"node {quote(node.name)}: {key} is {quote(value)}; expected {kinds[key].expected}")


def check_graph(graph: Graph) -> None:
    """Raises ModelError for a graph that a file must not hold: attributes that are none, shapes that do not fit at the
    size of its input, or tensors and numbers of nodes beyond all networks for pictures."""
    if len(graph.nodes) > MAX_NODES:
        raise ModelError(f"the network has {len(graph.nodes)} nodes; at most {MAX_NODES} are allowed")
    if not (_is_count(graph.input_channels, 1, 2**31) and pair(2**31).accepts(graph.input_size)):
        raise ModelError(f"the input has size {quote(graph.input_size)} and {quote(graph.input_channels)} channels")
    for node in graph.nodes:
        check_attributes(node)
        numbers = [value for key, value in node.attrs.items() if key in ("mean", "std")]
        if not all(len(v) == graph.input_channels for v in numbers):
            raise ModelError(f"node {quote(node.name)}: mean and std need a number for each channel")
    for name, shape in infer_shapes(graph, 1, *graph.input_size).items():
        if math.prod(shape) > MAX_FILE_ELEMENTS:
            raise ModelError(f"node {quote(name)}: a tensor of shape {shape} is too large")
    for node in graph.nodes:
        if node.op == "detection":
            detection_head.check_head(node, graph)
    _check_bytes(graph)


def _check_bytes(graph: Graph) -> None:
    """Bytes go where bytes are read, floats elsewhere."""
    quants: dict[str, Quant | None] = {}
    for node in graph.nodes:
        sources = [quants[name] for name in node.inputs]
        quant: Quant | None = node.attrs.get("quant")
        quants[node.name] = quant
        reads = all(q is not None for q in sources) if quant or node.op == "dequantize" else not any(sources)
        if not reads and node.op != "quantize":
            wanted = "bytes" if quant or node.op == "dequantize" else "floats"
            raise ModelError(
                f"node {quote(node.name)}: it reads {' and '.join(node.inputs)}, of which not all are {wanted}"
            )
        if quant is None:
            continue
        if node.op in ("conv2d", "dense"):
            _check_layer_of_bytes(node)
        if node.activation is not None and node.op != "activation":
            quant.bounds(node.activation)  # raises where it is no clamp
        if node.op == "max_pool2d" and sources != [quant]:
            raise ModelError(f"node {quote(node.name)}: its input and output need the same scale and zero point")


def _check_layer_of_bytes(node: Node) -> None:
    weight, scale, bias = node.params["weight"], node.params.get("weight_scale"), node.params.get("bias")
    if weight.dtype not in ((np.uint8,) if "weight_zero" in node.attrs else (np.int8, np.uint8)):
        raise ModelError(f"node {quote(node.name)}: its weight must be of int8, or of uint8 with a zero point")
    if bias is not None and bias.dtype != np.int32:
        raise ModelError(f"node {quote(node.name)}: its bias must be of int32, not of {bias.dtype}")
    if scale is None or scale.dtype.kind != "f" or scale.shape not in ((1,), weight.shape[:1]):
        raise ModelError(f"node {quote(node.name)}: it needs a weight_scale, one number or one for each output channel")
    if not (np.isfinite(scale) & (scale >= 0)).all():
        raise ModelError(f"node {quote(node.name)}: a weight_scale must be a finite number, not negative")
