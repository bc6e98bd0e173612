"""Writes .tflite files for tests: FlatBuffers of any content, right or wrong, without any other library."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastmobilenet.importers.tflite_schema import OPERATORS

SAME, VALID = 0, 1
NONE, RELU, RELU_N1_TO_1, RELU6, TANH = range(5)
TYPES = {"float32": 0, "float16": 1, "int32": 2, "uint8": 3, "int64": 4, "int16": 7, "int8": 9}


@dataclass(frozen=True)
class Scalar:
    code: str  # of struct
    value: Any


def i8(value: int) -> Scalar:
    return Scalar("b", value)


def u8(value: int) -> Scalar:
    return Scalar("B", value)


def i32(value: int) -> Scalar:
    return Scalar("i", value)


def u32(value: int) -> Scalar:
    return Scalar("I", value)


def f32(value: float) -> Scalar:
    return Scalar("f", value)


#: A table: field number -> Scalar, text, array, table or list of tables; None leaves the field out.
Fields = dict[int, Any]


def pack(root: Fields, identifier: bytes = b"TFL3") -> bytes:
    """A FlatBuffer. Children follow their parents, as unsigned offsets demand."""
    out = bytearray(struct.pack("<I4s", 0, identifier))
    waiting: list[tuple[int, Any]] = [(0, root)]  # (place of the offset, what it shall lead to)
    while waiting:
        place, value = waiting.pop(0)
        if isinstance(value, dict):
            position = _write_table(out, value, waiting)
        elif isinstance(value, list):
            _align(out, 4)
            position = len(out)
            out += struct.pack("<I", len(value)) + bytes(4 * len(value))
            waiting += [(position + 4 + 4 * i, v) for i, v in enumerate(value)]
        else:
            text = isinstance(value, str)
            array = np.frombuffer(value.encode(), np.uint8) if text else np.asarray(value)
            _align(out, 16, 4)  # the interpreter demands that buffers start at multiples of 16
            position = len(out)
            out += struct.pack("<I", array.size) + np.ascontiguousarray(array).tobytes() + bytes(text)
        struct.pack_into("<I", out, place, position - place)
    return bytes(out)


def _write_table(out: bytearray, fields: Fields, waiting: list[tuple[int, Any]]) -> int:
    fields = {k: v for k, v in fields.items() if v is not None}
    count = max(fields, default=-1) + 1
    _align(out, 4)
    vtable = len(out)
    out += bytes(4 + 2 * count)
    _align(out, 8)
    position = len(out)
    out += struct.pack("<i", position - vtable)
    for number, value in fields.items():
        code = value.code if isinstance(value, Scalar) else "I"
        _align(out, struct.calcsize(code))
        struct.pack_into("<H", out, vtable + 4 + 2 * number, len(out) - position)
        if isinstance(value, Scalar):
            out += struct.pack("<" + code, value.value)
        else:
            waiting.append((len(out), value))
            out += bytes(4)
    struct.pack_into("<HH", out, vtable, 4 + 2 * count, len(out) - position)
    return position


def _align(out: bytearray, to: int, ahead: int = 0) -> None:
    """Pads so that the byte ``ahead`` bytes on lies at a multiple of ``to``."""
    out += bytes(-(len(out) + ahead) % to)


class TfliteWriter:
    """A TFLite model, tensor by tensor. ``tensors``, ``operators`` and ``buffers`` may be changed by hand before
    :meth:`finish`; numbers in them are what the methods return."""

    def __init__(self) -> None:
        self.buffers: list[Fields] = [{}]  # buffer 0 is the empty one
        self.tensors: list[Fields] = []
        self.operators: list[Fields] = []
        self.codes: list[Fields] = []
        self.metadata: list[Fields] = []
        self._known: dict[str, int] = {}

    def buffer(self, data: np.ndarray) -> int:
        self.buffers.append({0: np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)})
        return len(self.buffers) - 1

    def tensor(
        self,
        name: str,
        shape: Sequence[int],
        dtype: str = "float32",
        *,
        scale: float | Sequence[float] | None = None,
        zero_point: int | Sequence[int] | None = 0,
        axis: int = 0,
        data: np.ndarray | None = None,
        signature: Sequence[int] | None = None,
    ) -> int:
        quantization: Fields | None = None
        if scale is not None:
            quantization = {
                2: np.atleast_1d(np.float32(scale)),
                3: None if zero_point is None else np.atleast_1d(np.int64(zero_point)),
                6: i32(axis),
            }
        self.tensors.append(
            {
                0: np.array(shape, np.int32),
                1: u8(TYPES[dtype]),
                2: u32(0 if data is None else self.buffer(data)),
                3: name,
                4: quantization,
                7: None if signature is None else np.array(signature, np.int32),
            }
        )
        return len(self.tensors) - 1

    def constant(self, name: str, data: np.ndarray, **quantization: Any) -> int:
        return self.tensor(name, data.shape, data.dtype.name, data=data, **quantization)

    def op(
        self,
        kind: str,
        inputs: Iterable[int],
        outputs: Iterable[int],
        options: Fields | None = None,
        type_: int = 0,
        flex: bytes | None = None,
    ) -> None:
        """``kind`` is a builtin's name; any other name makes a custom operator, with the options ``flex``."""
        if kind not in self._known:
            number = OPERATORS.index(kind) if kind in OPERATORS else OPERATORS.index("CUSTOM")
            custom = None if kind in OPERATORS else kind
            self._known[kind] = len(self.codes)
            self.codes.append({0: i8(min(number, 127)), 1: custom, 2: i32(1), 3: i32(number)})
        self.operators.append(
            {
                0: u32(self._known[kind]),
                1: np.array(list(inputs), np.int32),
                2: np.array(list(outputs), np.int32),
                3: u8(type_),
                4: options,
                5: None if flex is None else np.frombuffer(flex, np.uint8),
            }
        )

    # --- the operators, with the fields of their options -------------------------------------------------

    def conv(
        self,
        x: int,
        weight: int,
        bias: int,
        y: int,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: int = SAME,
        dilation: tuple[int, int] = (1, 1),
        activation: int = NONE,
    ) -> None:
        options = {0: i8(padding), 1: i32(stride[1]), 2: i32(stride[0]), 3: i8(activation)}
        options |= {4: i32(dilation[1]), 5: i32(dilation[0])}
        self.op("CONV_2D", [x, weight, bias], [y], options, 1)

    def depthwise(
        self,
        x: int,
        weight: int,
        bias: int,
        y: int,
        *,
        multiplier: int = 1,
        stride: tuple[int, int] = (1, 1),
        padding: int = SAME,
        dilation: tuple[int, int] = (1, 1),
        activation: int = NONE,
    ) -> None:
        options = {0: i8(padding), 1: i32(stride[1]), 2: i32(stride[0]), 3: i32(multiplier), 4: i8(activation)}
        options |= {5: i32(dilation[1]), 6: i32(dilation[0])}
        self.op("DEPTHWISE_CONV_2D", [x, weight, bias], [y], options, 2)

    def average_pool(
        self,
        x: int,
        y: int,
        window: tuple[int, int],
        stride: tuple[int, int] = (1, 1),
        padding: int = VALID,
        activation: int = NONE,
    ) -> None:
        options = {0: i8(padding), 1: i32(stride[1]), 2: i32(stride[0]), 3: i32(window[1]), 4: i32(window[0])}
        self.op("AVERAGE_POOL_2D", [x], [y], options | {5: i8(activation)}, 5)

    def max_pool(
        self, x: int, y: int, window: tuple[int, int], stride: tuple[int, int] = (1, 1), padding: int = VALID
    ) -> None:
        options = {0: i8(padding), 1: i32(stride[1]), 2: i32(stride[0]), 3: i32(window[1]), 4: i32(window[0])}
        self.op("MAX_POOL_2D", [x], [y], options, 5)

    def mul(self, a: int, b: int, y: int, *, activation: int = NONE) -> None:
        self.op("MUL", [a, b], [y], {0: i8(activation)}, 21)

    def concat(self, xs: Sequence[int], y: int, *, axis: int = 3, activation: int = NONE) -> None:
        self.op("CONCATENATION", xs, [y], {0: i32(axis), 1: i8(activation)}, 10)

    def split(self, x: int, ys: Sequence[int], *, axis: int = 3) -> None:
        self.op("SPLIT", [self.integers(axis), x], ys, {0: i32(len(ys))}, 35)

    def strided_slice(
        self,
        x: int,
        y: int,
        begin: Sequence[int],
        end: Sequence[int],
        stride: Sequence[int] = (1, 1, 1, 1),
        *,
        begin_mask: int = 0,
        end_mask: int = 0,
        shrink_mask: int = 0,
    ) -> None:
        options = {0: i32(begin_mask), 1: i32(end_mask), 4: i32(shrink_mask)}
        self.op("STRIDED_SLICE", [x, *(self.integers(*v) for v in (begin, end, stride))], [y], options, 32)

    def slice(self, x: int, y: int, begin: Sequence[int], size: Sequence[int]) -> None:
        self.op("SLICE", [x, self.integers(*begin), self.integers(*size)], [y])

    def gather(self, x: int, y: int, index: Sequence[int], *, axis: int = 3) -> None:
        self.op("GATHER", [x, self.integers(*index)], [y], {0: i32(axis)}, 23)

    def transpose(self, x: int, y: int, order: Sequence[int]) -> None:
        self.op("TRANSPOSE", [x, self.integers(*order)], [y], {}, 26)

    def integers(self, *values: int) -> int:
        return self.constant("numbers", np.array(values, np.int32))

    def fully_connected(self, x: int, weight: int, bias: int, y: int, *, activation: int = NONE) -> None:
        self.op("FULLY_CONNECTED", [x, weight, bias], [y], {0: i8(activation)}, 8)

    def add(self, a: int, b: int, y: int, *, activation: int = NONE) -> None:
        self.op("ADD", [a, b], [y], {0: i8(activation)}, 11)

    def softmax(self, x: int, y: int, beta: float = 1.0) -> None:
        self.op("SOFTMAX", [x], [y], {0: f32(beta)}, 9)

    def mean(self, x: int, y: int, axes: Sequence[int] = (1, 2), *, keep: bool = False) -> None:
        index = self.constant("axes", np.array(axes, np.int32))
        self.op("MEAN", [x, index], [y], {0: u8(keep)}, 27)

    def pad(self, x: int, y: int, amounts: Sequence[Sequence[int]]) -> None:
        self.op("PAD", [x, self.constant("paddings", np.array(amounts, np.int32))], [y], {}, 22)

    def reshape(self, x: int, y: int, shape: Sequence[int]) -> None:
        index = self.constant("new_shape", np.array(shape, np.int32))
        self.op("RESHAPE", [x, index], [y], {0: np.array(shape, np.int32)}, 17)

    def identity(self, x: int, y: int, **options: Any) -> None:
        """A convolution that changes nothing but by its options."""
        channels = self.tensors[x][0][3]
        weight = np.eye(channels, dtype=np.float32).reshape(channels, 1, 1, channels)
        self.conv(x, self.constant("identity", weight), -1, y, **options)

    def padded(self, x: int, amounts: Sequence[int]) -> int:
        """The tensor "padded": x with zeros at (top, bottom, left, right)."""
        n, h, w, c = self.tensors[x][0]
        top, bottom, left, right = amounts
        y = self.tensor("padded", (n, h + top + bottom, w + left + right, c))
        self.pad(x, y, [(0, 0), (top, bottom), (left, right), (0, 0)])
        return y

    def add_metadata(self, name: str, data: bytes) -> None:
        self.metadata.append({0: name, 1: u32(self.buffer(np.frombuffer(data, np.uint8)))})

    def fields(self, inputs: Sequence[int], outputs: Sequence[int]) -> Fields:
        """The root table."""
        subgraph = {0: self.tensors, 1: np.array(inputs, np.int32), 2: np.array(outputs, np.int32), 3: self.operators}
        return {
            0: u32(3),
            1: self.codes,
            2: [subgraph | {4: "main"}],
            3: "a test",
            4: self.buffers,
            6: self.metadata or None,
        }

    def finish(self, inputs: int | Sequence[int], outputs: int | Sequence[int]) -> bytes:
        ends = [[end] if isinstance(end, int) else list(end) for end in (inputs, outputs)]
        return pack(self.fields(*ends))


def normalization(mean: Sequence[float], std: Sequence[float]) -> bytes:
    """TFLite metadata that says how pixels become the first input: (pixel - mean) / std."""
    options = {0: np.array(mean, np.float32), 1: np.array(std, np.float32)}
    tensor = {0: "image", 4: [{0: u8(1), 1: options}]}
    return pack({0: "a network", 3: [{2: [tensor]}]}, b"M001")
