"""One ONNX operator -> one node of the Graph, or none.

Every function takes the operator and the Translation, which knows what was translated before. Operators that change
no value (Transpose, Flatten, Cast, Dropout) make no node: their output is another view of their input, a Value with
other axes. Layers are in onnx_layers.py; operators on constants are computed in onnx_fold.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import ModelError
from ..graph import Activation
from . import onnx_layers as layers
from ._text import quote
from .onnx_fold import can_fold, flat_shape, fold, integers, shape_slice, squeezed_axes, target_shape, unsqueezed_axes
from .onnx_schema import Operator
from .onnx_tensors import FLOATS, dtype_name
from .onnx_translation import Translation
from .onnx_values import Constant, Value, axes_named

#: Where exporters write "no bound" in a Clip.
_FLOAT_MAX = float(np.finfo(np.float32).max)

_DOMAINS = ("", "ai.onnx")


def translate(t: Translation, operator: Operator) -> None:
    """Adds what the operator computes to the Translation."""
    output = operator.outputs[0] if operator.outputs else ""
    if not output or output in t.values or t.file.is_initializer(output):
        operator.fail(f"its output {quote(output)} has no name of its own")
    if operator.domain not in _DOMAINS:
        raise _unsupported(operator)
    inputs = [t.tensor(operator, k) for k in range(len(operator.inputs))]
    constants = [v for v in inputs if not isinstance(v, Value)]
    if len(constants) == len(inputs) and can_fold(operator):
        t.values[output] = fold(t.file, operator, constants)
    elif operator.kind in _TRANSLATE:
        t.values[output] = _TRANSLATE[operator.kind](t, operator)
    else:
        raise _unsupported(operator)


def _unsupported(operator: Operator) -> ModelError:
    if operator.domain not in _DOMAINS:
        advice = "only ONNX's own operators are: export without optimisations, or inline the functions of the model"
    elif can_fold(operator):
        advice = f"it is on constants, not on what depends on the picture; supported are {', '.join(_TRANSLATE)}"
    else:
        advice = f"supported are {', '.join(_TRANSLATE)}"
        if operator.kind in _ADVICE:
            advice = f"{_ADVICE[operator.kind]}; {advice}"
    return ModelError(f"{operator} is not supported; {advice}")


# --- arithmetic on every value --------------------------------------------------------------------------


def _add(t: Translation, operator: Operator) -> Value:
    operands = [t.tensor(operator, k) for k in range(len(operator.inputs))]
    if len(operands) == 2 and any(isinstance(v, Constant) for v in operands):
        return _affine(t, operator, lambda v: (1.0, v))
    total = t.value(operator)
    for k in range(1, len(operands)):
        other = t.value(operator, k)
        if other.shape != total.shape or _letters(other) != _letters(total):
            shapes = f"{list(total.shape)} and {list(other.shape)}"
            operator.fail(f"cannot add {shapes}; supported are two maps of one shape, or a constant for each channel")
        name = operator.outputs[0] + (f"/{k}" if k < len(operands) - 1 else "")
        total = t.emit(operator, "add", total, other, name=name)
    return total


def _letters(x: Value) -> list[str]:
    return [x.letters(i) for i in range(len(x.axes))]


def _subtract(t: Translation, operator: Operator) -> Value:
    if isinstance(t.tensor(operator, 0), Constant):
        return _affine(t, operator, lambda v: (-1.0, v))
    return _affine(t, operator, lambda v: (1.0, -v))


def _multiply(t: Translation, operator: Operator) -> Value:
    return _affine(t, operator, lambda v: (v, 0.0))


def _divide(t: Translation, operator: Operator) -> Value:
    if isinstance(t.tensor(operator, 0), Constant):
        operator.fail("supported is to divide by a constant")
    return _affine(t, operator, lambda v: (1.0 / v, 0.0))


#: The constant, float64 -> (scale, shift)
_Affine = Callable[[np.ndarray], "tuple[np.ndarray | float, np.ndarray | float]"]


def _affine(t: Translation, operator: Operator, terms: _Affine) -> Value:
    """x * scale + shift with constants for each channel: a batch norm that has no statistics."""
    if len(operator.inputs) != 2:
        operator.fail(f"it has {len(operator.inputs)} inputs, not 2")
    k = 1 if isinstance(t.tensor(operator, 0), Constant) else 0
    x, array = t.value(operator, k), t.weight(operator, 1 - k)
    channels = x.sizes[3]
    for axis, length in enumerate(array.shape, len(x.axes) - array.ndim):
        if axis < 0 or (length != 1 and (x.letters(axis) != "c" or length != channels)):
            shapes = f"{list(array.shape)} and a tensor of {list(x.shape)}"
            operator.fail(f"its constant {shapes} do not fit; supported is one number, or one for each channel")
    t.file.allowance.take(4 * channels)
    with np.errstate(all="ignore"):
        pair = terms(array.reshape(-1).astype(np.float64))
        scale, shift = (np.array(np.broadcast_to(v, channels), np.float32) for v in pair)
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        operator.fail("it multiplies by what is infinite or not a number")
    zeros, ones = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    params = {"gamma": scale, "beta": shift, "mean": zeros, "variance": ones}
    return t.emit(operator, "batch_norm", x, params=params, epsilon=0.0)


def _batch_norm(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    if len(x.axes) < 2 or x.channel_axis() != 1:
        operator.fail(f"its input {list(x.shape)} must have the channels as its axis 1")
    if operator.integer("training_mode"):
        operator.fail("it is in training mode; export the network in evaluation mode")
    if t.file.opset < 9 and not operator.integer("spatial", 1):
        operator.fail("spatial 0 is not supported")
    keys = ("gamma", "beta", "mean", "variance")
    params = {key: t.weight(operator, k, rank=1) for k, key in enumerate(keys, 1)}
    return t.emit(operator, "batch_norm", x, params=params, epsilon=operator.number("epsilon", 1e-5))


def _clamp(t: Translation, operator: Operator, x: Value, lo: float | None, hi: float | None) -> Value:
    lo = -np.inf if lo is None or lo <= -_FLOAT_MAX else lo
    hi = np.inf if hi is None or hi >= _FLOAT_MAX else hi
    if math.isnan(lo) or math.isnan(hi):
        operator.fail("a bound is not a number")
    if (lo, hi) == (-np.inf, np.inf):
        return x
    return t.emit(operator, "activation", x, activation=Activation("clamp", min(lo, hi), hi))


def _clip(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    if t.file.opset < 11:
        return _clamp(t, operator, x, operator.number("min", -_FLOAT_MAX), operator.number("max", _FLOAT_MAX))
    return _clamp(t, operator, x, t.scalar(operator, 1), t.scalar(operator, 2))


def _bound(t: Translation, operator: Operator) -> Value:
    """Min and Max of a map and a number."""
    if len(operator.inputs) != 2:
        operator.fail(f"it has {len(operator.inputs)} inputs; supported are a map and a number")
    k = 0 if isinstance(t.tensor(operator, 0), Constant) else 1
    x, number = t.value(operator, 1 - k), t.scalar(operator, k)
    return _clamp(t, operator, x, *((None, number) if operator.kind == "Min" else (number, None)))


def _softmax(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    rank = len(x.axes)
    axis = operator.integer("axis", 1 if t.file.opset < 13 else -1)
    if not -rank <= axis < rank:
        operator.fail(f"axis {axis} is no axis of a tensor of rank {rank}")
    # Up to opset 12 it goes over all axes from this one on.
    over = range(axis % rank, rank if t.file.opset < 13 else axis % rank + 1)
    if "".join(x.letters(a) for a in over) != ("c" if x.size("c") > 1 else ""):
        operator.fail(f"it goes over axis {axis} of {list(x.shape)}; supported are the channels")
    return t.emit(operator, "softmax", x)


# --- other views of the same values ---------------------------------------------------------------------


def _same(t: Translation, operator: Operator) -> Value:
    return t.value(operator, pending=True)


def _cast(t: Translation, operator: Operator) -> Value:
    if operator.integer("to") not in FLOATS:
        operator.fail(f"a cast of maps to {dtype_name(operator.integer('to'))} is not supported; to floats it is")
    return t.value(operator, pending=True)


def _dropout(t: Translation, operator: Operator) -> Value:
    if t.file.opset >= 12 and t.scalar(operator, 2):
        operator.fail("it is in training mode; export the network in evaluation mode")
    return t.value(operator, pending=True)


def _transpose(t: Translation, operator: Operator) -> Value:
    x = t.value(operator, pending=True)
    order = operator.integers("perm") or list(reversed(range(len(x.axes))))
    if sorted(order) != list(range(len(x.axes))):
        operator.fail(f"perm {order} does not fit a tensor of rank {len(x.axes)}")
    return x.transposed(order)


def _reshape(t: Translation, operator: Operator) -> Value:
    x, shape = t.value(operator), t.tensor(operator, 1)
    if not isinstance(shape, Constant):
        operator.fail("its shape must be a constant")
    # It may depend on the picture's size: what counts is what becomes of the axes.
    return _reshaped(operator, x, target_shape(operator, integers(operator, 0, [shape.array]) or [], x.shape))


def _flatten(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    return _reshaped(operator, x, flat_shape(operator, x.shape))


def _squeeze(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    axes = squeezed_axes(operator, t.file.opset, _axes_input(t, operator), x.shape)
    return replace(x, axes=axes_named([a for i, a in enumerate(x.axes) if i not in axes]))


def _unsqueeze(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    axes = list(x.axes)
    for axis in unsqueezed_axes(operator, t.file.opset, _axes_input(t, operator), len(axes)):
        axes.insert(axis, "")
    return replace(x, axes=axes_named(axes))


def _axes_input(t: Translation, operator: Operator) -> list[np.ndarray | None]:
    """The inputs as the functions of onnx_fold.py want them."""
    axes = t.constant(operator, 1)
    return [None, None if axes is None else axes.array]


def _reshaped(operator: Operator, x: Value, shape: list[int]) -> Value:
    reshaped = x.reshaped(shape)
    if reshaped is None:
        operator.fail(
            f"it turns {list(x.shape)} into {shape}; supported is to join axes, or to add and remove axes of length 1"
        )
    return reshaped


def _shape(t: Translation, operator: Operator) -> Constant:
    dims = shape_slice(operator, t.value(operator, pending=True).shape)
    return Constant(np.array(dims, np.int64), operator.outputs[0], sized=t.dynamic)


_TRANSLATE: dict[str, Callable[[Translation, Operator], Value | Constant]] = {
    "Add": _add,
    "AveragePool": layers.average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Conv": layers.conv,
    "Div": _divide,
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": layers.gemm,
    "GlobalAveragePool": layers.global_average_pool,
    "Identity": _same,
    "MatMul": layers.matmul,
    "Max": _bound,
    "Min": _bound,
    "Mul": _multiply,
    "Pad": layers.pad,
    "ReduceMean": layers.reduce_mean,
    "Relu": lambda t, operator: _clamp(t, operator, t.value(operator), 0.0, None),
    "Reshape": _reshape,
    "Shape": _shape,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": _subtract,
    "Sum": _add,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

_FLOAT_NETWORK = "only float networks are: export it before it is quantised"
_FIXED_INPUT = "graphs in a graph are not: export with an input of fixed size"
_NEAREST = "the nearest supported form is {}"
_ADVICE = {
    "ConvInteger": _FLOAT_NETWORK,
    "ConvTranspose": _NEAREST.format("Conv"),
    "DequantizeLinear": _FLOAT_NETWORK,
    "DynamicQuantizeLinear": _FLOAT_NETWORK,
    "Elu": _NEAREST.format("Relu"),
    "Gelu": _NEAREST.format("Relu"),
    "GlobalMaxPool": _NEAREST.format("GlobalAveragePool"),
    "HardSigmoid": _NEAREST.format("Clip"),
    "HardSwish": _NEAREST.format("Clip"),
    "If": _FIXED_INPUT,
    "InstanceNormalization": _NEAREST.format("BatchNormalization"),
    "LeakyRelu": _NEAREST.format("Relu"),
    "LogSoftmax": _NEAREST.format("Softmax"),
    "Loop": _FIXED_INPUT,
    "MaxPool": _NEAREST.format("AveragePool"),
    "PRelu": _NEAREST.format("Relu"),
    "QLinearConv": _FLOAT_NETWORK,
    "QLinearMatMul": _FLOAT_NETWORK,
    "QuantizeLinear": _FLOAT_NETWORK,
    "ReduceSum": _NEAREST.format("ReduceMean"),
    "Sigmoid": _NEAREST.format("Softmax, or Clip"),
}
