"""What of a TFLite file was translated so far, and how its operators get at their inputs and options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ModelError
from ..graph import RELU, RELU6, Activation, GraphBuilder, Node, Padding, Shape
from ._gates import affine
from .flatbuffer import Table
from .tflite_schema import Operator, Tensor, TfliteFile

NO_PAD: Padding = (0, 0, 0, 0)

#: Fused activations: number in the schema -> what the Graph has.
FUSED: dict[int, Activation | None] = {0: None, 1: RELU, 2: Activation("clamp", -1.0, 1.0), 3: RELU6}


@dataclass(frozen=True)
class Value:
    """What a tensor of the file is in the Graph: a node's output, with zeros around it that are not yet added.

    ``groups`` says that the channels stand in as many groups, as an axis of their own before the last one. ``rows``:
    the rows of a detector (tflite_detection.py), maps in their order, each with the columns of its rows.
    """

    node: str
    pad: Padding = NO_PAD
    pad_operator: Operator | None = None
    flat: bool = False  # a map as a vector, in the order (height, width, channels)
    groups: int = 0
    rows: tuple[tuple[str, int], ...] = ()


class Translation:
    """The Graph so far, and where in it the tensors of the file are.

    ``raw`` says that the network itself scales the pixels.
    """

    def __init__(self, file: TfliteFile) -> None:
        self.file = file
        self.builder = GraphBuilder()
        self.values: dict[int, Value] = {}
        self.constants: dict[int, int] = {}  # output of a DEQUANTIZE -> the constant that it unpacks
        self.declared: dict[str, Shape] = {}  # node -> the shape that the file gives it
        self.raw = False
        self._names: set[str] = set()
        self._scaled: set[str] = set()  # the input, and what is only scaled since

    def input(self, tensor: Tensor) -> None:
        self.values[tensor.index] = Value(self._append("input", tensor, shape4(tensor)))
        self._scaled.add(self.values[tensor.index].node)

    def nodes(self, output: str) -> list[Node]:
        """Those of the Graph, in order."""
        return self.builder.nodes

    def output(self, index: int) -> str:
        """The node that makes tensor ``index``."""
        value = self.values.get(index)
        if value is None:
            raise ModelError("the network must not end in a constant")
        if value.flat or value.groups or value.rows:
            raise ModelError("the network must not end in a RESHAPE; supported is one that flattens a 1x1 map")
        return self.plain(value).node

    def define(self, operator: Operator, output: int, value: Value) -> None:
        """Notes what the operator's output number ``output`` is."""
        self.values[operator.outputs[output]] = value

    def real(self, node: str) -> str:
        """The node whose floats are those of ``node``."""
        return node

    def append(
        self,
        op: str,
        tensor: Tensor,
        shape: Shape,
        *inputs: str,
        **attrs: Any,
    ) -> str:
        """Appends a node without parameters that makes ``tensor``, in this shape."""
        return self._append(op, tensor, shape, *inputs, **attrs)

    # --- what the operators use --------------------------------------------------------------------------

    def index(self, operator: Operator, k: int) -> int:
        """The tensor number of input ``k``."""
        if k >= len(operator.inputs) or operator.inputs[k] < 0:
            raise ModelError(f"{operator}: input {k} is missing")
        return operator.inputs[k]

    def value(self, operator: Operator, k: int = 0, *, padded: bool = False, flat: bool = False) -> Value:
        """Input ``k``, an activation. Only with ``padded`` has it zeros that are not yet added, only with ``flat`` is
        it a flattened map."""
        index = self.index(operator, k)
        value = self.values.get(index)
        if value is None:
            known = self.constant_index(index) is not None
            what = "is a constant" if known else "is not computed before it"
            raise ModelError(f"{operator}: input {k}, {self.file.tensor(index)}, {what}")
        if (value.flat and not flat) or value.groups:
            shape = list(self.file.tensor(index).shape)
            raise ModelError(f"{operator}: its input {shape} is a reshaped map; supported is FULLY_CONNECTED behind it")
        return value if padded else self.plain(value)

    def plain(self, value: Value) -> Value:
        """The value with the zeros around it added: by a depthwise convolution of 1x1 that changes nothing else."""
        if value.pad_operator is None:
            return value
        tensor = self.file.tensor(value.pad_operator.outputs[0])
        channels = shape4(tensor)[3]
        self.file.spend(channels)
        attrs = {"stride": (1, 1), "padding": value.pad, "dilation": (1, 1), "groups": channels}
        node = self._append("conv2d", tensor, shape4(tensor), value.node, params=self._identity(tensor), **attrs)
        return replace(value, node=node, pad=NO_PAD, pad_operator=None)

    def _identity(self, tensor: Tensor) -> dict[str, np.ndarray]:
        """The parameters of a depthwise convolution that changes nothing."""
        return {"weight": np.ones((shape4(tensor)[3], 1, 1, 1), np.float32)}

    def constant_index(self, index: int) -> int | None:
        """The tensor in which the constant ``index`` is stored, None if it is no constant."""
        if index in self.values:
            return None
        index = self.constants.get(index, index)
        return index if self.file.is_constant(index) else None

    def numbers(self, operator: Operator, k: int) -> np.ndarray | None:
        """Input ``k`` if it is a constant: one number, or (c,) for each channel. None if it is an activation."""
        stored = self.constant_index(self.index(operator, k))
        if stored is None:
            return None
        array = self.file.constant(stored)
        if array.size > 1 and array.size != array.shape[-1]:
            shape = list(array.shape)
            raise ModelError(f"{operator}: input {k} is a constant of the shape {shape}; supported is one a channel")
        return array.reshape(-1)

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
        return named_activation(operator, field) or range_activation(self.file.tensor(operator.outputs[0]))

    def emit(
        self,
        operator: Operator,
        op: str,
        *inputs: str,
        activation: Activation | None = None,
        params: dict[str, np.ndarray] | None = None,
        output: int = 0,
        **attrs: object,
    ) -> Value:
        """Appends the node that computes the operator's output number ``output``."""
        if activation is not None:
            attrs["activation"] = activation
        tensor = self.file.tensor(operator.outputs[output])
        return Value(self._append(op, tensor, shape4(tensor), *inputs, params=params, **attrs))

    def affine(self, operator: Operator, x: Value, scale: np.ndarray, shift: np.ndarray) -> Value:
        """x * scale + shift, each of them one number or one a channel."""
        channels = shape4(self.file.tensor(operator.outputs[0]))[3]
        if scale.size not in (1, channels) or shift.size not in (1, channels):
            sizes = max(scale.size, shift.size)
            raise ModelError(f"{operator}: a constant of {sizes} values does not fit {channels} channels")
        self.file.spend(4 * channels)
        with np.errstate(over="ignore"):
            params = affine(scale, shift, channels)
        if not all(np.isfinite(p).all() for p in params.values()):
            raise ModelError(f"{operator} computes with numbers that are infinite or not numbers")
        y = self.emit(operator, "batch_norm", x.node, params=params, epsilon=0.0)
        if x.node in self._scaled:
            self._scaled.add(y.node)
            self.raw = True
        return y

    def shuffle(self, operator: Operator, x: Value, shape: Shape, index: tuple[int, ...]) -> Value:
        """The map's channels in another order."""
        tensor = self.file.tensor(operator.outputs[0])
        return Value(self._append("gather_channels", tensor, shape, x.node, index=index))

    def activated(self, operator: Operator, x: Value, activation: Activation | None) -> Value:
        """A node of its own for an activation."""
        return x if activation is None else self.emit(operator, "activation", x.node, activation=activation)

    def _append(
        self,
        op: str,
        tensor: Tensor,
        shape: Shape,
        *inputs: str,
        params: dict[str, np.ndarray] | None = None,
        **attrs: object,
    ) -> str:
        # The builder would make equal names different too, but one by one: slow for a file with thousands of them.
        name = tensor.name if tensor.name not in self._names else f"{tensor.name}#{tensor.index}"
        name = self.builder.add(op, *inputs, name=name, params=params, **attrs)
        self._names.add(name)
        self.declared[name] = shape
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


# --- options --------------------------------------------------------------------------------------------


def options_of(operator: Operator) -> Table:
    if operator.options is None:
        raise ModelError(f"{operator} has no options")
    return operator.options


def named_activation(operator: Operator, field: int) -> Activation | None:
    """The fused activation that the file names."""
    code = options_of(operator).int8(field)
    if code not in FUSED:
        raise ModelError(f"{operator}: the fused activation {code} is not supported; 0 (none) to 3 (ReLU6) are")
    return FUSED[code]
