"""One ONNX operator -> one node of the Graph, or none.

Every function takes the operator and the Translation, which knows what was translated before. Here are the operators
on one value at a time, and the list of all. Layers are in onnx_layers.py, operators that compute nothing in
onnx_views.py; operators on constants are computed in onnx_fold.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import ModelError
from ..graph import SIGMOID, SWISH, Activation
from . import onnx_layers as layers
from . import onnx_quantized as quantized
from . import onnx_views as views
from ._gates import affine
from ._text import quote
from .onnx_fold import can_fold, fold
from .onnx_operator import DOMAINS, Operator
from .onnx_translation import Tensor, Translation
from .onnx_values import Constant, Value

#: Where exporters write "no bound" in a Clip.
_FLOAT_MAX = float(np.finfo(np.float32).max)


def translate(t: Translation, operator: Operator) -> None:
    """Adds what the operator computes to the Translation."""
    outputs = [name for name in operator.outputs if name]
    if not outputs or any(t.knows(name) for name in outputs):
        operator.fail(f"its output {quote(outputs[0] if outputs else '')} has no name of its own")
    table = _TRANSLATE if operator.domain in DOMAINS else _OTHERS.get(operator.domain, {})
    if operator.domain not in DOMAINS and operator.kind not in table:
        raise _unsupported(operator)
    t.file.allowance.step(len(operator.inputs))
    inputs = [t.tensor(operator, k) for k in range(len(operator.inputs))]
    constants = [v for v in inputs if v is None or isinstance(v, Constant)]
    if len(constants) == len(inputs) and can_fold(operator) and operator.kind not in _QUANTIZED:
        t.define(operator, fold(t.file, operator, constants))
    elif operator.kind in table:
        result = table[operator.kind](t, operator)
        t.define(operator, result if isinstance(result, list) else [result])
    else:
        raise _unsupported(operator)


def _unsupported(operator: Operator) -> ModelError:
    if operator.domain not in DOMAINS:
        advice = "only ONNX's own operators are, and functions of the file made of them: export without optimisations"
        if operator.domain in _OTHERS:
            advice += f"; of {operator.domain} there are {', '.join(_OTHERS[operator.domain])}"
    elif can_fold(operator):
        advice = f"it is on constants, not on what depends on the picture; supported are {', '.join(_TRANSLATE)}"
    else:
        advice = f"supported are {', '.join(_TRANSLATE)}"
        if operator.kind in _ADVICE:
            advice = f"{_ADVICE[operator.kind]}; {advice}"
    return ModelError(f"{operator} is not supported; {advice}")


# --- two values -----------------------------------------------------------------------------------------


def _is_constant(t: Translation, operator: Operator) -> list[bool]:
    return [isinstance(t.tensor(operator, k), Constant) for k in range(len(operator.inputs))]


def _add(t: Translation, operator: Operator) -> Value:
    constant = _is_constant(t, operator)
    if len(constant) == 2 and any(constant):
        return _affine(t, operator, lambda v: (1.0, v))
    total = t.view(operator, pending=("expand",))
    for k in range(1, len(constant)):
        name = operator.outputs[0] + (f"/{k}" if k < len(constant) - 1 else "")
        total = _of_two(t, operator, "add", total, t.view(operator, k, pending=("expand",)), name)
    return total


def _subtract(t: Translation, operator: Operator) -> Value:
    if _is_constant(t, operator)[:1] == [True]:
        return _affine(t, operator, lambda v: (-1.0, v))
    return _affine(t, operator, lambda v: (1.0, -v))


def _multiply(t: Translation, operator: Operator) -> Value:
    if any(_is_constant(t, operator)) or len(operator.inputs) != 2:
        return _affine(t, operator, lambda v: (v, 0.0))
    a, b = (t.view(operator, k, pending=("expand",)) for k in (0, 1))
    return _of_two(t, operator, "mul", a, b, operator.outputs[0])


def _divide(t: Translation, operator: Operator) -> Value:
    if _is_constant(t, operator)[:1] == [True]:
        operator.fail("supported is to divide by a constant")
    return _affine(t, operator, lambda v: (1.0 / v, 0.0))


def _of_two(t: Translation, operator: Operator, op: str, a: Value, b: Value, name: str) -> Value:
    """Two maps of one shape, or a map and a vector of its channels, in any order."""
    if a.axes == b.axes and a.sizes == b.sizes and a.pixel == b.pixel and a.simple and b.simple:
        return t.emit(operator, op, a, b, name=name)
    expanded = [v.pending.stretched for v in (a, b) if v.pending is not None]
    shapes = [list(v.shape) for v in (a, b)]
    rank = max(len(a.axes), len(b.axes))
    a, b = (t.whole(replace(v, pending=None).with_axes(range(rank - len(v.axes)))) for v in (a, b))
    if a.sizes[1:3] == (1, 1) and (b.sizes[1:3] != (1, 1) or (a.pixel and not b.pixel)):
        a, b = b, a
    fits = all(
        (small == large and letters == others) or small == 1
        for small, large, letters, others in zip(b.shape, a.shape, b.letters(), a.letters(), strict=True)
    )
    if not fits or b.sizes not in (a.sizes, (a.sizes[0], 1, 1, a.sizes[3])) or not set(expanded) <= {a.sizes[1:3]}:
        operator.fail(
            f"cannot {op} {shapes[0]} and {shapes[1]}; supported are two maps of one shape, a map and a number for "
            "each channel, or a constant for each channel"
        )
    return t.emit(operator, op, a, b, name=name)


#: The constant, float64 -> (scale, shift)
_Affine = Callable[[np.ndarray], "tuple[np.ndarray | float, np.ndarray | float]"]


def _affine(t: Translation, operator: Operator, terms: _Affine) -> Value:
    """x * scale + shift with constants for each channel: a batch norm that has no statistics."""
    if len(operator.inputs) != 2:
        operator.fail(f"it has {len(operator.inputs)} inputs, not 2")
    k = 1 if isinstance(t.tensor(operator, 0), Constant) else 0
    x, array = t.value(operator, k), t.weight(operator, 1 - k)
    channels, letters = x.sizes[3], x.letters()
    for axis, length in enumerate(array.shape, len(letters) - array.ndim):
        if axis < 0 or (length != 1 and (letters[axis] != "c" or length != channels)):
            shapes = f"{list(array.shape)} and a tensor of {list(x.shape)}"
            operator.fail(f"its constant {shapes} do not fit; supported is one number, or one for each channel")
    t.file.allowance.take(4 * channels)
    with np.errstate(all="ignore"):
        scale, shift = terms(array.reshape(-1).astype(np.float64))
        params = affine(scale, shift, channels)
    if not all(np.isfinite(v).all() for v in params.values()):
        operator.fail("it multiplies by what is infinite or not a number")
    return t.emit(operator, "batch_norm", x, params=params, epsilon=0.0)


# --- one value ------------------------------------------------------------------------------------------


def _batch_norm(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    if len(x.axes) < 2 or x.channel_axis() != 1:
        operator.fail(f"its input {list(x.shape)} must have the channels as its axis 1")
    if operator.integer("training_mode"):
        operator.fail("it is in training mode; export the network in evaluation mode")
    if operator.opset < 9 and not operator.integer("spatial", 1):
        operator.fail("spatial 0 is not supported")
    keys = ("gamma", "beta", "mean", "variance")
    params = {key: t.weight(operator, k, rank=1) for k, key in enumerate(keys, 1)}
    return t.emit(operator, "batch_norm", x, params=params, epsilon=operator.number("epsilon", 1e-5))


def _activate(t: Translation, operator: Operator, activation: Activation) -> Value:
    return t.emit(operator, "activation", t.value(operator), activation=activation)


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
    if operator.opset < 11:
        return _clamp(t, operator, x, operator.number("min", -_FLOAT_MAX), operator.number("max", _FLOAT_MAX))
    return _clamp(t, operator, x, t.scalar(operator, 1), t.scalar(operator, 2))


def _bound(t: Translation, operator: Operator) -> Value:
    """Min and Max of a map and a number."""
    if len(operator.inputs) != 2:
        operator.fail(f"it has {len(operator.inputs)} inputs; supported are a map and a number")
    k = 0 if isinstance(t.tensor(operator, 0), Constant) else 1
    x, number = t.value(operator, 1 - k), t.scalar(operator, k)
    return _clamp(t, operator, x, *((None, number) if operator.kind == "Min" else (number, None)))


def _hard_sigmoid(t: Translation, operator: Operator) -> Value:
    alpha, beta = operator.number("alpha", 0.2), operator.number("beta", 0.5)
    if not (math.isfinite(alpha) and math.isfinite(beta)):
        operator.fail(f"alpha and beta must be finite, not {alpha:g} and {beta:g}")
    return _activate(t, operator, Activation("hard_sigmoid", alpha=alpha, beta=beta))


def _swish(t: Translation, operator: Operator) -> Value:
    if operator.number("alpha", 1.0) != 1.0:
        operator.fail(f"alpha {operator.number('alpha'):g} is not supported; 1 is")
    return _activate(t, operator, SWISH)


def _leaky_relu(t: Translation, operator: Operator) -> Value:
    """max(x, 0) + alpha * min(x, 0)"""
    x, name = t.value(operator), operator.outputs[0]
    alpha = operator.number("alpha", 0.01)
    above, below = (
        t.emit(operator, "activation", x, name=f"{name}/{k}", activation=Activation("clamp", *bounds))
        for k, bounds in (("above", (0.0, np.inf)), ("below", (-np.inf, 0.0)))
    )
    t.file.allowance.take(4 * x.sizes[3])
    params = affine(alpha, 0.0, x.sizes[3])
    if not np.isfinite(params["gamma"]).all():
        operator.fail(f"alpha must be finite, not {alpha:g}")
    scaled = t.emit(operator, "batch_norm", below, name=f"{name}/scaled", params=params, epsilon=0.0)
    return t.emit(operator, "add", above, scaled)


def _softmax(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    letters, rank = x.letters(), len(x.axes)
    axis = operator.integer("axis", 1 if operator.opset < 13 else -1)
    if not -rank <= axis < rank:
        operator.fail(f"axis {axis} is no axis of a tensor of rank {rank}")
    # Up to opset 12 it goes over all axes from this one on.
    over = letters[axis % rank :] if operator.opset < 13 else letters[axis % rank : axis % rank + 1]
    if "".join(over) != ("c" if x.sizes[3] > 1 else "") or "".join(letters).count("c") > 1:
        operator.fail(f"it goes over axis {axis} of {list(x.shape)}; supported are the channels")
    return t.emit(operator, "softmax", x)


_TRANSLATE: dict[str, Callable[[Translation, Operator], Tensor | list[Tensor]]] = {
    "Add": _add,
    "AveragePool": layers.average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": views.cast,
    "CastLike": views.cast_like,
    "Clip": _clip,
    "Concat": views.concat,
    "Conv": layers.conv,
    "ConvInteger": quantized.of_integers("Conv", layers.conv),
    "DequantizeLinear": quantized.dequantize_linear,
    "Div": _divide,
    "Dropout": views.dropout,
    "Expand": views.expand,
    "Flatten": views.flatten,
    "Gather": views.gather,
    "Gemm": layers.gemm,
    "GlobalAveragePool": layers.global_average_pool,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda t, operator: _activate(t, operator, Activation("hard_swish")),
    "Identity": views.identity,
    "LRN": layers.lrn,
    "LeakyRelu": _leaky_relu,
    "MatMul": layers.matmul,
    "MatMulInteger": quantized.of_integers("MatMul", layers.matmul),
    "Max": _bound,
    "MaxPool": layers.max_pool,
    "Min": _bound,
    "Mul": _multiply,
    "Pad": layers.pad,
    "QLinearConv": quantized.qlinear_conv,
    "QLinearMatMul": quantized.qlinear_matmul,
    "QuantizeLinear": quantized.quantize_linear,
    "ReduceMean": layers.reduce_mean,
    "Relu": lambda t, operator: _clamp(t, operator, t.value(operator), 0.0, None),
    "Reshape": views.reshape,
    "SequenceAt": views.sequence_at,
    "Shape": views.shape,
    "Sigmoid": lambda t, operator: _activate(t, operator, SIGMOID),
    "Slice": views.slice_,
    "Softmax": _softmax,
    "Split": views.split,
    "SplitToSequence": views.split_to_sequence,
    "Squeeze": views.squeeze,
    "Sub": _subtract,
    "Sum": _add,
    "Swish": _swish,
    "Transpose": views.transpose,
    "Unsqueeze": views.unsqueeze,
}

#: Operators of other domains: those of ONNX Runtime's quantiser.
_OTHERS: dict[str, dict[str, Callable[[Translation, Operator], Tensor | list[Tensor]]]] = {
    "com.microsoft": {
        "DequantizeLinear": quantized.dequantize_linear,
        "QGemm": quantized.qgemm,
        "QLinearAdd": quantized.of_two("Add", _add),
        "QLinearAveragePool": quantized.of_one("AveragePool", layers.average_pool),
        "QLinearConcat": quantized.qlinear_concat,
        "QLinearConv": quantized.qlinear_conv,
        "QLinearGlobalAveragePool": quantized.of_one("GlobalAveragePool", layers.global_average_pool),
        "QLinearLeakyRelu": quantized.of_one("LeakyRelu", _leaky_relu),
        "QLinearMul": quantized.of_two("Mul", _multiply),
        "QLinearReduceMean": quantized.of_one("ReduceMean", layers.reduce_mean),
        "QLinearSigmoid": quantized.of_one("Sigmoid", lambda t, operator: _activate(t, operator, SIGMOID)),
        "QLinearSoftmax": quantized.of_one("Softmax", _softmax),
        "QuantizeLinear": quantized.quantize_linear,
    }
}

#: Operators that are not computed as other constants are: their output remembers what it was.
_QUANTIZED = ("DequantizeLinear", "QuantizeLinear")

_STATIC = (
    "its scales come from each picture: quantise with onnxruntime.quantization.quantize_static, or load the float file"
)
_FIXED_INPUT = "graphs in a graph are not: export with an input of fixed size"
_NEAREST = "the nearest supported form is {}"
_ADVICE = {
    "ConvTranspose": _NEAREST.format("Conv"),
    "DynamicQuantizeLinear": _STATIC,
    "Elu": _NEAREST.format("Relu"),
    "Gelu": _NEAREST.format("Relu"),
    "GlobalMaxPool": _NEAREST.format("GlobalAveragePool"),
    "If": _FIXED_INPUT,
    "InstanceNormalization": _NEAREST.format("BatchNormalization"),
    "LogSoftmax": _NEAREST.format("Softmax"),
    "Loop": _FIXED_INPUT,
    "PRelu": _NEAREST.format("Relu"),
    "ReduceSum": _NEAREST.format("ReduceMean"),
}
