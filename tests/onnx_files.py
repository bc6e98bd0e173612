"""Writes .onnx files for tests: Protocol Buffers of any content, right or wrong, without any other library."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: Numbers of TensorProto.DataType.
TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
}
BFLOAT16 = 16

OPSET = 17


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def field(number: int, value: int | float | str | bytes) -> bytes:
    """One field: a varint, a float32, or bytes with their length."""
    if isinstance(value, (str, bytes)):
        data = value.encode() if isinstance(value, str) else value
        return varint(number << 3 | 2) + varint(len(data)) + data
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def fields(number: int, values: Iterable[int | float | str | bytes]) -> bytes:
    return b"".join(field(number, value) for value in values)


def entry(key: str, value: object) -> bytes:
    return field(1, key) + field(2, str(value))


def bfloat16_bits(array: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers."""
    return (np.ascontiguousarray(array, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def tensor(
    array: np.ndarray,
    name: str = "",
    *,
    typed: str = "",
    dtype: int | None = None,
    dims: Sequence[int] | None = None,
    external: dict[str, object] | None = None,
) -> bytes:
    """A TensorProto. ``typed`` "packed" or "single": values in the field of their type, not as raw bytes. ``dtype``
    and ``dims`` claim another type and shape; ``external`` says where in another file the values lie."""
    number = TYPES[array.dtype.name] if dtype is None else dtype
    out = fields(1, array.shape if dims is None else dims) + field(2, number) + field(8, name)
    flat = np.ascontiguousarray(array).reshape(-1)
    if external is not None:
        entries = b"".join(field(13, entry(key, value)) for key, value in external.items())
        return out + entries + field(14, 1)
    if not typed:
        return out + field(9, flat.tobytes())
    if number in (1, 11):
        place, chunks = (4 if number == 1 else 10), [flat[i : i + 1].tobytes() for i in range(flat.size)]
        wire = 5 if number == 1 else 1
    else:
        place = {7: 7, 12: 11, 13: 11}.get(number, 5)
        whole = flat.view(np.uint16) if array.dtype.name == "float16" else flat
        chunks, wire = [varint(int(v)) for v in whole], 0
    if typed == "packed":
        return out + field(place, b"".join(chunks))
    return out + b"".join(varint(place << 3 | wire) + chunk for chunk in chunks)


def attribute(name: str, value: Any) -> bytes:
    """An AttributeProto; its type follows from the value."""
    out = field(1, name)
    if isinstance(value, Reference):
        return out + field(20, value.kind) + field(21, value.name)
    if isinstance(value, np.ndarray):
        return out + field(5, tensor(value)) + field(20, 4)
    if isinstance(value, float):
        return out + field(2, value) + field(20, 1)
    if isinstance(value, int):
        return out + field(3, value) + field(20, 2)
    if isinstance(value, str):
        return out + field(4, value) + field(20, 3)
    if value and isinstance(value[0], float):
        return out + field(7, struct.pack(f"<{len(value)}f", *value)) + field(20, 6)
    return out + fields(8, value) + field(20, 7)


@dataclass(frozen=True)
class Reference:
    """An attribute of a node in a function: the function's own, ``name``. ``kind`` is its AttributeType."""

    name: str
    kind: int


def node(
    kind: str, inputs: Sequence[str], outputs: Sequence[str], name: str = "", domain: str = "", **attrs: Any
) -> bytes:
    """A NodeProto."""
    out = fields(1, inputs) + fields(2, outputs) + field(3, name) + field(4, kind)
    out += b"".join(field(5, attribute(key, value)) for key, value in attrs.items())
    return out + (field(7, domain) if domain else b"")


def value_info(name: str, shape: Sequence[int | str | None] | None, dtype: int = 1) -> bytes:
    """An input or output: a dimension that is text or None is open; no shape leaves the rank open."""
    inner = field(1, dtype)
    if shape is not None:
        dims = [field(1, d) if isinstance(d, int) else field(2, d) if d else b"" for d in shape]
        inner += field(2, fields(1, dims))
    return field(1, name) + field(2, field(1, inner))


class OnnxWriter:
    """An ONNX model, node by node. ``nodes``, ``inputs`` and ``initializers`` hold encoded messages and may be changed
    by hand before :meth:`finish`."""

    def __init__(self, opset: int = OPSET, ir_version: int = 8) -> None:
        self.opset = opset
        self.ir_version = ir_version
        self.nodes: list[bytes] = []
        self.inputs: list[bytes] = []
        self.initializers: list[bytes] = []
        self.functions: list[bytes] = []
        self._count = 0

    def input(self, *shape: int | str | None, name: str = "x", dtype: int = 1) -> str:
        self.inputs.append(value_info(name, shape, dtype))
        return name

    def constant(self, array: np.ndarray | list[int] | float, name: str | None = None, **storage: Any) -> str:
        """An initializer; a list is of int64, a number of float32."""
        if not isinstance(array, np.ndarray):
            array = np.array(array, np.float32 if isinstance(array, float) else np.int64)
        name = name or self._name("w")
        self.initializers.append(tensor(array, name, **storage))
        return name

    def op(
        self,
        kind: str,
        *inputs: str,
        output: str | None = None,
        name: str | None = None,
        domain: str = "",
        **attrs: Any,
    ) -> str:
        """Appends a node with one output and returns the output's name."""
        output = self._name(kind.lower()) if output is None else output
        self.nodes.append(node(kind, inputs, [output], f"/{output}" if name is None else name, domain, **attrs))
        return output

    def ops(self, kind: str, *inputs: str, count: int, **attrs: Any) -> list[str]:
        """Appends a node with ``count`` outputs and returns their names."""
        outputs = [self._name(kind.lower()) for _ in range(count)]
        self.nodes.append(node(kind, inputs, outputs, f"/{outputs[0]}", **attrs))
        return outputs

    def function(
        self,
        name: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        nodes: Sequence[bytes],
        *,
        domain: str = "local",
        opset: int | None = None,
        defaults: dict[str, Any] | None = None,
        overload: str = "",
    ) -> None:
        """Defines an operator of ``domain`` by others."""
        message = field(1, name) + fields(4, inputs) + fields(5, outputs) + fields(7, nodes) + field(10, domain)
        message += b"".join(field(11, attribute(key, value)) for key, value in (defaults or {}).items())
        message += field(9, field(1, "") + field(2, self.opset if opset is None else opset))
        message += field(9, field(1, domain) + field(2, 1))
        self.functions.append(message + (field(13, overload) if overload else b""))

    def _name(self, base: str) -> str:
        self._count += 1
        return f"{base}{self._count}"

    def finish(self, *outputs: str, metadata: bytes = b"") -> bytes:
        graph = fields(1, self.nodes) + field(2, "a test") + fields(5, self.initializers)
        graph += fields(11, self.inputs) + fields(12, [value_info(name, None) for name in outputs])
        opset = field(8, field(1, "") + field(2, self.opset))
        if self.functions:
            opset += field(8, field(1, "local") + field(2, 1)) + fields(25, self.functions)
        return field(1, self.ir_version) + field(2, "a test") + field(7, graph) + opset + metadata

    def write(self, path: Path, *outputs: str) -> Path:
        path.write_bytes(self.finish(*outputs))
        return path
