"""One TFLite operator -> the nodes of the Graph that compute it.

Every function here and in tflite_layers.py takes the Translation, which knows what was translated before, and the
operator. Operators that change no value (QUANTIZE, a RESHAPE that flattens a 1x1 map) make no node: their output is an
alias of their input. So is the output of PAD, with a note of the zeros that the layer behind it must add.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from ..errors import ModelError
from ..graph import HARD_SWISH, RELU, RELU6, SIGMOID, Activation
from . import tflite_detection as detection
from . import tflite_layers as layers
from .tflite_schema import Operator, Tensor
from .tflite_translation import Translation, Value, named_activation, options_of, shape4

_ONE, _ZERO = np.ones(1, np.float32), np.zeros(1, np.float32)


def translate(t: Translation, operator: Operator) -> None:
    """Translates one operator; what its outputs are stands in ``t.values`` then."""
    if operator.kind == detection.POSTPROCESS:
        value = detection.postprocess(t, operator)
        for output in range(len(operator.outputs)):
            t.define(operator, output, value)
        return
    if operator.kind in _TRANSLATE and detection.reads_rows(t, operator):
        t.define(operator, 0, detection.translate(t, operator))
        return
    if operator.kind not in _TRANSLATE:
        hint = _NEAREST.get(operator.kind)
        nearest = f"; the nearest supported form is {hint}" if hint else ""
        raise ModelError(f"{operator} is not supported{nearest}; supported are {', '.join(_TRANSLATE)}")
    if len(operator.outputs) != 1 and operator.kind not in ("SPLIT", "SPLIT_V"):
        raise ModelError(f"{operator} has {len(operator.outputs)} outputs")
    expected = _OPTIONS.get(operator.kind, operator.options_type)
    if operator.options is not None and operator.options_type != expected:
        raise ModelError(f"{operator} has options of type {operator.options_type}, expected {expected}")
    result = _TRANSLATE[operator.kind](t, operator)
    for output, value in enumerate([result] if isinstance(result, Value) else result or ()):
        t.define(operator, output, value)


# --- numbers --------------------------------------------------------------------------------------------


def _add(t: Translation, operator: Operator) -> Value:
    return _binary(t, operator, "add", t.fused(operator, 0))


def _mul(t: Translation, operator: Operator) -> Value:
    return _binary(t, operator, "mul", named_activation(operator, 0))


def _binary(t: Translation, operator: Operator, op: str, activation: Activation | None) -> Value:
    """Two activations, or one and a constant."""
    for k in (0, 1):
        number = t.numbers(operator, k)
        if number is not None:
            x = t.value(operator, 1 - k)
            y = t.affine(operator, x, *((_ONE, number) if op == "add" else (number, _ZERO)))
            return t.activated(operator, y, activation)
    ends = [(t.value(operator, k).node, shape4(t.file.tensor(operator.inputs[k]))) for k in (0, 1)]
    if ends[0][1] != ends[1][1] and ends[0][1][1:3] == (1, 1):
        ends.reverse()  # the vector comes second
    return t.emit(operator, op, ends[0][0], ends[1][0], activation=activation)


def _sub(t: Translation, operator: Operator) -> Value:
    activation = named_activation(operator, 0)
    first, second = (t.numbers(operator, k) for k in (0, 1))
    if second is not None:
        y = t.affine(operator, t.value(operator, 0), _ONE, -second)
    elif first is not None:
        y = t.affine(operator, t.value(operator, 1), -_ONE, first)
    else:
        raise ModelError(f"{operator} subtracts two maps; supported is a constant")
    return t.activated(operator, y, activation)


def _div(t: Translation, operator: Operator) -> Value:
    number = t.numbers(operator, 1)
    if number is None:
        raise ModelError(f"{operator} divides by a map; supported is a constant")
    with np.errstate(divide="ignore"):
        y = t.affine(operator, t.value(operator, 0), _ONE / number, _ZERO)
    return t.activated(operator, y, named_activation(operator, 0))


def _bound(t: Translation, operator: Operator) -> Value:
    """MINIMUM and MAXIMUM with a number."""
    for k in (0, 1):
        number = t.numbers(operator, k)
        if number is not None and number.size == 1:
            limit = float(number[0])
            lo, hi = (-math.inf, limit) if operator.kind == "MINIMUM" else (limit, math.inf)
            clamp = Activation("clamp", lo, hi)
            return t.emit(operator, "activation", t.value(operator, 1 - k).node, activation=clamp)
    raise ModelError(f"{operator} compares two maps; supported is a number")


def _softmax(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    beta = options_of(operator).float32(0)
    if beta != 1.0:
        raise ModelError(f"{operator}: beta is {beta:g}; supported is 1")
    return t.emit(operator, "softmax", x.node)


def _lrn(t: Translation, operator: Operator) -> Value:
    options = options_of(operator)
    radius = options.int32(0)
    numbers = [options.float32(field) for field in (1, 2, 3)]
    if not 0 <= radius <= 1024 or not all(map(math.isfinite, numbers)):
        raise ModelError(f"{operator}: a radius of {radius} with {numbers} is not supported")
    bias, alpha, beta = numbers
    size = 2 * radius + 1
    return t.emit(operator, "lrn", t.value(operator).node, size=size, alpha=alpha * size, beta=beta, bias=bias)


def _activation(activation: Activation) -> Callable[[Translation, Operator], Value]:
    return lambda t, operator: t.emit(operator, "activation", t.value(operator).node, activation=activation)


# --- channels -------------------------------------------------------------------------------------------


def _concatenation(t: Translation, operator: Operator) -> Value:
    options = options_of(operator)
    rank = len(t.file.tensor(operator.outputs[0]).shape)
    axis = options.int32(0)
    if axis not in (-1, rank - 1):
        raise ModelError(f"{operator} goes along axis {axis}; supported is the last, the channels")
    if named_activation(operator, 1) is not None:
        raise ModelError(f"{operator} has a fused activation, which is not supported")
    return t.emit(operator, "concat", *(t.value(operator, k).node for k in range(len(operator.inputs))))


def _split(t: Translation, operator: Operator) -> list[Value]:
    """SPLIT (axis, map) and SPLIT_V (map, sizes, axis)."""
    k = 0 if operator.kind == "SPLIT_V" else 1
    source = t.file.tensor(t.index(operator, k))
    axis = t.file.integers(t.index(operator, 2 - 2 * k))
    if axis not in ([-1], [len(source.shape) - 1]):
        raise ModelError(f"{operator} goes along axis {axis}; supported is the last, the channels")
    x, start, parts = t.value(operator, k), 0, []
    for i, output in enumerate(operator.outputs):
        channels = shape4(t.file.tensor(output))[3]
        parts.append(_channels(t, operator, x, source, range(start, start + channels), output=i))
        start += channels
    if start != shape4(source)[3]:
        raise ModelError(f"{operator}: its outputs have {start} channels together, its input {shape4(source)[3]}")
    return parts


def _slice(t: Translation, operator: Operator) -> Value:
    """SLICE (begin, size)."""
    source = t.file.tensor(t.index(operator, 0))
    begin, size = (t.file.integers(t.index(operator, k)) for k in (1, 2))
    shape = source.shape
    if len(begin) != len(shape) or len(size) != len(shape):
        raise ModelError(f"{operator}: begin {begin} and size {size} do not fit {list(shape)}")
    ranges = [range(b, b + (d - b if s == -1 else s)) for b, s, d in zip(begin, size, shape, strict=True)]
    return _sliced(t, operator, source, ranges)


def _strided_slice(t: Translation, operator: Operator) -> Value:
    source = t.file.tensor(t.index(operator, 0))
    shape, options = source.shape, options_of(operator)
    begin, end, stride = (t.file.integers(t.index(operator, k)) for k in (1, 2, 3))
    if any(options.int32(field) for field in (2, 3, 4)) or not len(begin) == len(end) == len(stride) == len(shape):
        raise ModelError(f"{operator}: it adds or removes axes; supported is a slice of channels")
    ranges = []
    for i, (b, e, s, size) in enumerate(zip(begin, end, stride, shape, strict=True)):
        if s == 0:
            raise ModelError(f"{operator}: a stride is 0")
        first = None if options.int32(0) >> i & 1 else b
        last = None if options.int32(1) >> i & 1 else e
        ranges.append(range(size)[first:last:s])
    return _sliced(t, operator, source, ranges)


def _gather(t: Translation, operator: Operator) -> Value:
    """GATHER of channels by number."""
    source, options = t.file.tensor(t.index(operator, 0)), options_of(operator)
    indices = t.file.numbers(t.index(operator, 1))
    if options.int32(0) not in (-1, len(source.shape) - 1) or options.int32(1) or indices.ndim != 1:
        raise ModelError(f"{operator}: supported is to gather along the last axis, the channels")
    return _channels(t, operator, t.value(operator), source, indices.tolist())


def _sliced(t: Translation, operator: Operator, source: Tensor, ranges: list[range]) -> Value:
    whole = [r == range(size) for r, size in zip(ranges, source.shape, strict=True)]
    if not all(whole[:-1]):
        raise ModelError(f"{operator} takes a part of height or width; supported is a slice of channels")
    return _channels(t, operator, t.value(operator), source, ranges[-1])


def _channels(
    t: Translation, operator: Operator, x: Value, source: Tensor, index: range | list[int], output: int = 0
) -> Value:
    channels = shape4(source)[3]
    t.file.spend(len(index))
    if not index or min(index) < 0 or max(index) >= channels:
        raise ModelError(f"{operator}: it takes channels that its input of {channels} channels does not have")
    return t.emit(operator, "gather_channels", x.node, index=tuple(index), output=output)


# --- other views of the same values ---------------------------------------------------------------------


def _keep(t: Translation, operator: Operator) -> Value:
    """An operator that changes no value: it renames axes, flattens a map, or puts channels into groups."""
    index = t.index(operator, 0)
    value = t.values.get(index)
    if value is None or not value.groups:
        value = t.value(operator, flat=True)
    before, after = t.file.tensor(index), t.file.tensor(operator.outputs[0])
    shape = t.declared[value.node]
    n, h, w, c = shape
    target = after.shape
    # Where the file leaves the target open, it can only be a vector.
    open_ = any(size < 0 for size in after.signature[1:])
    if target == shape or (h == w == 1 and (open_ or _but_ones(target) == _but_ones((n, c)))):
        return replace(value, flat=False, groups=0)
    if target == (n, h * w * c):
        return replace(value, flat=True, groups=0)
    if len(target) == 5 and target[:3] == shape[:3] and target[3] * target[4] == c and not value.flat:
        return replace(value, groups=target[3])
    rows = detection.rows_of_map(operator, value, shape, target)
    if rows is not None:
        return rows
    raise ModelError(
        f"{operator} turns {list(before.shape)} into {list(target)}; supported is to flatten a map, to keep its shape, "
        "to group its channels, or to make a row of each anchor of a detector"
    )


def _but_ones(shape: tuple[int, ...]) -> list[int]:
    return [size for size in shape if size != 1]


def _transpose(t: Translation, operator: Operator) -> Value:
    """A shuffle of channels: groups and channels of a group change places."""
    index = t.index(operator, 0)
    value, order = t.values.get(index), t.file.integers(t.index(operator, 1))
    if order == list(range(len(order))) and len(order) == len(t.file.tensor(index).shape):
        return _keep(t, operator)
    if value is None or not value.groups or order != [0, 1, 2, 4, 3]:
        raise ModelError(f"{operator} by {order} is not supported; supported is a shuffle of channels")
    n, h, w, c = t.declared[value.node]
    t.file.spend(c)
    order_of_channels = np.arange(c).reshape(value.groups, -1).T
    return replace(
        t.shuffle(operator, value, (n, h, w, c), tuple(order_of_channels.reshape(-1).tolist())),
        groups=len(order_of_channels),
    )


def _dequantize(t: Translation, operator: Operator) -> Value | None:
    """Of weights stored as float16 or integers: noted, for the operator that reads them. Else nothing changes."""
    index = t.index(operator, 0)
    if index in t.values or not t.file.is_constant(index):
        return _keep(t, operator)
    t.constants[operator.outputs[0]] = index
    return None


Translate: TypeAlias = "Callable[[Translation, Operator], Value | list[Value] | None]"

_TRANSLATE: dict[str, Translate] = {
    "ADD": _add,
    "AVERAGE_POOL_2D": layers.average_pool,
    "CONCATENATION": _concatenation,
    "CONV_2D": layers.conv,
    "DEPTHWISE_CONV_2D": layers.depthwise,
    "DEQUANTIZE": _dequantize,
    "DIV": _div,
    "EXPAND_DIMS": _keep,
    "FULLY_CONNECTED": layers.fully_connected,
    "GATHER": _gather,
    "HARD_SWISH": _activation(HARD_SWISH),
    "LOCAL_RESPONSE_NORMALIZATION": _lrn,
    "LOGISTIC": _activation(SIGMOID),
    "MAXIMUM": _bound,
    "MAX_POOL_2D": layers.max_pool,
    "MEAN": layers.mean,
    "MINIMUM": _bound,
    "MUL": _mul,
    "PAD": layers.pad,
    "PADV2": layers.pad,
    "QUANTIZE": _keep,
    "RELU": _activation(RELU),
    "RELU6": _activation(RELU6),
    "RELU_0_TO_1": _activation(Activation("clamp", 0.0, 1.0)),
    "RELU_N1_TO_1": _activation(Activation("clamp", -1.0, 1.0)),
    "RESHAPE": _keep,
    "SLICE": _slice,
    "SOFTMAX": _softmax,
    "SPLIT": _split,
    "SPLIT_V": _split,
    "SQUEEZE": _keep,
    "STRIDED_SLICE": _strided_slice,
    "SUB": _sub,
    "TRANSPOSE": _transpose,
}

#: Operators whose further inputs only say what the declared shape of their output says too.
FIRST_INPUT_ONLY = frozenset({"EXPAND_DIMS", "RESHAPE", "SQUEEZE"})

#: Number of the operator's options in the schema's union BuiltinOptions, for those whose options are read.
_OPTIONS = {
    "ADD": 11,
    "AVERAGE_POOL_2D": 5,
    "CONCATENATION": 10,
    "CONV_2D": 1,
    "DEPTHWISE_CONV_2D": 2,
    "DIV": 29,
    "FULLY_CONNECTED": 8,
    "GATHER": 23,
    "LOCAL_RESPONSE_NORMALIZATION": 13,
    "MAX_POOL_2D": 5,
    "MUL": 21,
    "SOFTMAX": 9,
    "STRIDED_SLICE": 32,
    "SUB": 28,
}

_NEAREST = {
    "ELU": "RELU",
    "GELU": "RELU",
    "L2_NORMALIZATION": "LOCAL_RESPONSE_NORMALIZATION",
    "L2_POOL_2D": "AVERAGE_POOL_2D",
    "LEAKY_RELU": "RELU",
    "LOG_SOFTMAX": "SOFTMAX",
    "MIRROR_PAD": "PAD",
    "PACK": "CONCATENATION",
    "PRELU": "RELU",
    "SUM": "MEAN",
    "TANH": "LOGISTIC",
    "TRANSPOSE_CONV": "CONV_2D",
    "UNPACK": "SPLIT",
}
