"""One TFLite operator -> one node of the Graph.

Every function here takes the operator and the Translation, which knows what was translated before. Operators
that change no value (QUANTIZE, a RESHAPE that flattens a 1x1 map) make no node: their output is an alias of
their input. So is the output of PAD, with a note of the zeros that the convolution behind it must add.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import ModelError
from ..graph import RELU, RELU6, Activation, GraphBuilder, Padding, Shape
from ._limits import MAX_DILATION, MAX_PAD, MAX_STRIDE, MAX_WINDOW
from .flatbuffer import Table
from .tflite_schema import Operator, Tensor, TfliteFile

#: Fused activations: number in the schema -> what the Graph has.
FUSED: dict[int, Activation | None] = {0: None, 1: RELU, 2: Activation("clamp", -1.0, 1.0), 3: RELU6}


@dataclass(frozen=True)
class Value:
    """What a tensor of the file is in the Graph: a node's output, with zeros around it that are not yet added."""

    node: str
    pad: Padding = (0, 0, 0, 0)
    pad_operator: Operator | None = None


class Translation:
    """The Graph so far, and where in it the tensors of the file are."""

    def __init__(self, file: TfliteFile) -> None:
        self.file = file
        self.builder = GraphBuilder()
        self.values: dict[int, Value] = {}
        self.constants: dict[int, int] = {}  # output of a DEQUANTIZE -> the constant that it unpacks
        self.declared: dict[str, Shape] = {}  # node -> the shape that the file gives it
        self._names: set[str] = set()

    def input(self, tensor: Tensor) -> None:
        self.values[tensor.index] = Value(self._append("input", tensor))

    def translate(self, operator: Operator) -> None:
        if operator.kind not in _TRANSLATE:
            hint = _NEAREST.get(operator.kind)
            nearest = f"; the nearest supported form is {hint}" if hint else ""
            raise ModelError(f"{operator} is not supported{nearest}; supported are {', '.join(_TRANSLATE)}")
        if len(operator.outputs) != 1:
            raise ModelError(f"{operator} has {len(operator.outputs)} outputs")
        expected = _OPTIONS.get(operator.kind, operator.options_type)
        if operator.options is not None and operator.options_type != expected:
            raise ModelError(f"{operator} has options of type {operator.options_type}, expected {expected}")
        value = _TRANSLATE[operator.kind](self, operator)
        if value is not None:
            self.values[operator.outputs[0]] = value

    def output(self, index: int) -> str:
        """The node that makes tensor ``index``."""
        value = self.values.get(index)
        if value is None or value.pad_operator:
            raise ModelError("the network must not end in a constant or a PAD")
        return value.node

    # --- what the operators use --------------------------------------------------------------------------

    def index(self, operator: Operator, k: int) -> int:
        """The tensor number of input ``k``."""
        if k >= len(operator.inputs) or operator.inputs[k] < 0:
            raise ModelError(f"{operator}: input {k} is missing")
        return operator.inputs[k]

    def value(self, operator: Operator, k: int = 0, *, padded: bool = False) -> Value:
        """Input ``k``, an activation. Only with ``padded`` may it come from a PAD."""
        index = self.index(operator, k)
        value = self.values.get(index)
        if value is None:
            known = index in self.constants or self.file.is_constant(index)
            what = "is a constant" if known else "is not computed before it"
            raise ModelError(f"{operator}: input {k}, {self.file.tensor(index)}, {what}")
        if value.pad_operator and not padded:
            raise ModelError(
                f"{value.pad_operator} is followed by {operator.kind}; supported is a PAD before a VALID convolution"
            )
        return value

    def weight(self, operator: Operator, rank: int) -> tuple[np.ndarray, Tensor]:
        """Input 1 as float32, and the tensor that stores it."""
        index = self.index(operator, 1)
        tensor = self.file.tensor(self.constants.get(index, index))
        if len(tensor.shape) != rank:
            raise ModelError(f"{operator}: the weights must have rank {rank}, not the shape {list(tensor.shape)}")
        return self.file.constant(tensor.index), tensor

    def bias(self, operator: Operator, weight: Tensor) -> dict[str, np.ndarray]:
        """Input 2 as the node's parameter "bias"; empty where the operator has none."""
        if len(operator.inputs) < 3 or operator.inputs[2] < 0:
            return {}
        index = self.constants.get(operator.inputs[2], operator.inputs[2])
        source = self.file.tensor(self.index(operator, 0)).quantization
        scale = None
        if source is not None and source.scale.size == 1 and weight.quantization is not None:
            scale = source.scale * weight.quantization.scale
        return {"bias": self.file.bias(index, scale)}

    def fused(self, operator: Operator, field: int) -> Activation | None:
        """The fused activation: the one that the file names, else the one that the output's range stands for."""
        return _fused(operator, field) or range_activation(self.file.tensor(operator.outputs[0]))

    def emit(
        self,
        operator: Operator,
        op: str,
        *inputs: str,
        activation: Activation | None = None,
        params: dict[str, np.ndarray] | None = None,
        **attrs: object,
    ) -> Value:
        """Appends the node that computes the operator's output."""
        if activation is not None:
            attrs["activation"] = activation
        return Value(self._append(op, self.file.tensor(operator.outputs[0]), *inputs, params=params, **attrs))

    def _append(
        self,
        op: str,
        tensor: Tensor,
        *inputs: str,
        params: dict[str, np.ndarray] | None = None,
        **attrs: object,
    ) -> str:
        # The builder would make equal names different too, but one by one: slow for a file with thousands of them.
        name = tensor.name if tensor.name not in self._names else f"{tensor.name}#{tensor.index}"
        name = self.builder.add(op, *inputs, name=name, params=params, **attrs)
        self._names.add(name)
        self.declared[name] = shape4(tensor)
        return name


def shape4(tensor: Tensor) -> Shape:
    """The tensor's shape as (n, h, w, c); a vector (n, c) is (n, 1, 1, c)."""
    shape = tensor.shape
    if len(shape) == 4:
        return shape[0], shape[1], shape[2], shape[3]
    if len(shape) == 2:
        return shape[0], 1, 1, shape[1]
    if len(shape) == 1:
        return 1, 1, 1, shape[0]
    raise ModelError(f"{tensor}: rank {len(shape)} is not supported; 4 (a map) and 2 (a vector) are")


def range_activation(tensor: Tensor) -> Activation | None:
    """The activation that the range of a quantised tensor stands for, or None.

    A quantised tensor cannot hold values outside the range of its codes, so every layer of a quantised network
    clamps. Mostly that is only the limit of calibration, which real inputs hardly reach, and the float32
    network does without. But some converters drop a ReLU or ReLU6 where the range already cuts at the same
    place. Such a range can be told by its lower end: with the zero point at the lowest code there is no code
    for a negative value, whatever the layer computes. So, for operators that can carry an activation and name
    none (convolutions, FULLY_CONNECTED, ADD):

    - zero point above the lowest code: a linear layer, not clamped;
    - zero point at the lowest code, range up to at most 6 and one step: ReLU6;
    - zero point at the lowest code, range beyond that: ReLU, whose upper end is calibration.

    Where this guesses wrong (a linear layer that was never negative in calibration) it clamps no more than
    the quantised network itself does. Pools, MEAN, SOFTMAX and RESHAPE stay in the range of their input.
    """
    q = tensor.quantization
    if q is None or tensor.dtype.itemsize != 1 or q.scale.size != 1:
        return None
    codes = np.iinfo(tensor.dtype)
    scale, zero_point = float(q.scale[0]), int(q.zero_point[0])
    if zero_point != codes.min:
        return None
    return RELU6 if scale * (codes.max - zero_point) <= 6.0 + scale else RELU


# --- operators ------------------------------------------------------------------------------------------


def _conv(t: Translation, operator: Operator) -> Value:
    weight, tensor = t.weight(operator, 4)  # (oc, kh, kw, ic/groups)
    channels = shape4(t.file.tensor(t.index(operator, 0)))[3]
    if not weight.shape[3] or channels % weight.shape[3]:
        raise ModelError(f"{operator}: weights {weight.shape} do not fit {channels} input channels")
    return _convolution(t, operator, weight, tensor, channels // weight.shape[3], fused_field=3)


def _depthwise(t: Translation, operator: Operator) -> Value:
    weight, tensor = t.weight(operator, 4)  # (1, kh, kw, oc): output channel o reads input channel o // (oc / ic)
    channels = shape4(t.file.tensor(t.index(operator, 0)))[3]
    if weight.shape[0] != 1 or not channels or weight.shape[3] % channels:
        raise ModelError(f"{operator}: weights {weight.shape} do not fit {channels} input channels")
    # Field 3 of its options, the depth multiplier, is oc / ic again; TFLite computes it from the shapes too.
    return _convolution(t, operator, weight.transpose(3, 1, 2, 0), tensor, channels, fused_field=4)


def _convolution(
    t: Translation, operator: Operator, weight: np.ndarray, tensor: Tensor, groups: int, fused_field: int
) -> Value:
    x = t.value(operator, padded=True)
    options = _options(operator)
    padding = _padding(operator, options)
    if x.pad_operator:
        if padding == "same":
            raise ModelError(f"{x.pad_operator} is followed by a SAME convolution; supported is a VALID one")
        padding = x.pad
    vertical, horizontal = options.int32(fused_field + 2, 1), options.int32(fused_field + 1, 1)
    return t.emit(
        operator,
        "conv2d",
        x.node,
        params={"weight": np.ascontiguousarray(weight), **t.bias(operator, tensor)},
        activation=t.fused(operator, fused_field),
        stride=_pair(operator, "stride", options.int32(2), options.int32(1), MAX_STRIDE),
        padding=padding,
        dilation=_pair(operator, "dilation", vertical, horizontal, MAX_DILATION),
        groups=groups,
    )


def _fully_connected(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    if _options(operator).int8(1) != 0:
        raise ModelError(f"{operator}: shuffled weights are not supported; the default format is")
    weight, tensor = t.weight(operator, 2)
    params = {"weight": weight, **t.bias(operator, tensor)}
    return t.emit(operator, "dense", x.node, params=params, activation=t.fused(operator, 0))


def _add(t: Translation, operator: Operator) -> Value:
    return t.emit(
        operator,
        "add",
        t.value(operator, 0).node,
        t.value(operator, 1).node,
        activation=t.fused(operator, 0),
    )


def _average_pool(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    options = _options(operator)
    activation = _fused(operator, 5)
    source = t.file.tensor(t.index(operator, 0))
    _, h, w, _ = shape4(source)
    _, oh, ow, _ = shape4(t.file.tensor(operator.outputs[0]))
    kh, kw = options.int32(4), options.int32(3)
    # One window over all of a map means the mean of the map, at other picture sizes too.
    if not source.dynamic and (oh, ow) == (1, 1) and kh >= h and kw >= w and h * w > 1:
        pooled = t.emit(operator, "global_avg_pool", x.node)
    else:
        kernel = _pair(operator, "window", kh, kw, MAX_WINDOW)
        stride = _pair(operator, "stride", options.int32(2), options.int32(1), MAX_STRIDE)
        padding = _padding(operator, options)
        pooled = t.emit(operator, "avg_pool2d", x.node, kernel=kernel, stride=stride, padding=padding)
    return pooled if activation is None else t.emit(operator, "activation", pooled.node, activation=activation)


def _mean(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    rank = len(t.file.tensor(t.index(operator, 0)).shape)
    axes = t.file.integers(t.index(operator, 1))
    if rank != 4 or sorted(a + 4 if a < 0 else a for a in axes) != [1, 2]:
        where = f"the axes {axes} of a tensor of rank {rank}"
        raise ModelError(f"{operator} goes over {where}; supported are height and width, [1, 2] of rank 4")
    return t.emit(operator, "global_avg_pool", x.node)


def _pad(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    amounts = t.file.integers(t.index(operator, 1))  # (before, after) of each of the four axes
    if len(amounts) != 8 or any(amounts[i] for i in (0, 1, 6, 7)) or not all(0 <= a <= MAX_PAD for a in amounts):
        raise ModelError(f"{operator} pads by {amounts}; supported is zeros around height and width")
    return Value(x.node, (amounts[2], amounts[3], amounts[4], amounts[5]), operator)


def _softmax(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    beta = _options(operator).float32(0)
    if beta != 1.0:
        raise ModelError(f"{operator}: beta is {beta:g}; supported is 1")
    return t.emit(operator, "softmax", x.node)


def _activation(activation: Activation) -> Callable[[Translation, Operator], Value]:
    return lambda t, operator: t.emit(operator, "activation", t.value(operator).node, activation=activation)


def _keep(t: Translation, operator: Operator) -> Value:
    """An operator that changes no value."""
    value = t.value(operator)
    before, after = (t.file.tensor(i) for i in (operator.inputs[0], operator.outputs[0]))
    if shape4(before) != shape4(after):
        raise ModelError(
            f"{operator} turns {list(before.shape)} into {list(after.shape)}; supported is to flatten a 1x1 map, "
            "or to keep the shape"
        )
    return value


def _dequantize(t: Translation, operator: Operator) -> Value | None:
    """Of weights stored as float16 or integers: noted, for the operator that reads them. Else nothing changes."""
    index = t.index(operator, 0)
    if index in t.values or not t.file.is_constant(index):
        return _keep(t, operator)
    t.constants[operator.outputs[0]] = index
    return None


_TRANSLATE: dict[str, Callable[[Translation, Operator], Value | None]] = {
    "ADD": _add,
    "AVERAGE_POOL_2D": _average_pool,
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "DEQUANTIZE": _dequantize,
    "FULLY_CONNECTED": _fully_connected,
    "MEAN": _mean,
    "PAD": _pad,
    "QUANTIZE": _keep,
    "RELU": _activation(RELU),
    "RELU6": _activation(RELU6),
    "RELU_N1_TO_1": _activation(Activation("clamp", -1.0, 1.0)),
    "RESHAPE": _keep,
    "SOFTMAX": _softmax,
    "SQUEEZE": _keep,
}

#: Operators whose further inputs only say what the declared shape of their output says too.
FIRST_INPUT_ONLY = frozenset({"RESHAPE", "SQUEEZE"})

#: Number of the operator's options in the schema's union BuiltinOptions, for those whose options are read.
_OPTIONS = {"CONV_2D": 1, "DEPTHWISE_CONV_2D": 2, "AVERAGE_POOL_2D": 5, "FULLY_CONNECTED": 8, "SOFTMAX": 9, "ADD": 11}

_NEAREST = {
    "CONCATENATION": "ADD",
    "ELU": "RELU",
    "GELU": "RELU",
    "HARD_SWISH": "RELU6",
    "LEAKY_RELU": "RELU",
    "LOGISTIC": "SOFTMAX",
    "LOG_SOFTMAX": "SOFTMAX",
    "MAX_POOL_2D": "AVERAGE_POOL_2D",
    "MIRROR_PAD": "PAD",
    "PADV2": "PAD",
    "PRELU": "RELU",
    "RELU_0_TO_1": "RELU_N1_TO_1",
    "SUB": "ADD",
    "SUM": "MEAN",
    "TRANSPOSE_CONV": "CONV_2D",
}


# --- options --------------------------------------------------------------------------------------------


def _options(operator: Operator) -> Table:
    if operator.options is None:
        raise ModelError(f"{operator} has no options")
    return operator.options


def _fused(operator: Operator, field: int) -> Activation | None:
    code = _options(operator).int8(field)
    if code not in FUSED:
        raise ModelError(f"{operator}: the fused activation {code} is not supported; 0 (none) to 3 (ReLU6) are")
    return FUSED[code]


def _pair(operator: Operator, what: str, vertical: int, horizontal: int, limit: int) -> tuple[int, int]:
    if not (1 <= vertical <= limit and 1 <= horizontal <= limit):
        raise ModelError(f"{operator}: the {what} is {vertical}x{horizontal}; supported is 1 to {limit}")
    return vertical, horizontal


def _padding(operator: Operator, options: Table) -> Padding | str:
    code = options.int8(0)
    if code not in (0, 1):
        raise ModelError(f"{operator}: padding {code} is neither SAME (0) nor VALID (1)")
    return "same" if code == 0 else (0, 0, 0, 0)
