"""One TensorProto of an ONNX file -> an array."""

from __future__ import annotations

import math

import numpy as np

from ..errors import ModelError
from ._text import quote
from .onnx_external import ExternalData
from .protobuf import Kind, Message

MAX_RANK = 8
#: Numbers of a tensor that are not stored in a row; writers put them in a row.
_MAX_SINGLE = 10_000

#: What constants may have that are not in the file, such as those of ConstantOfShape: 32 MB of float32.
FREE_ELEMENTS = 2**23
#: A step is an input of an operator; a node of the Graph is some more. The largest MobileNet takes 5,000.
MAX_STEPS = 50_000

_ENTRY = Kind("an entry of external data", {1: 1, 2: 1})
TENSOR = Kind(
    "a tensor",
    {1: 100, 2: 1, 3: 1, 4: _MAX_SINGLE, 5: _MAX_SINGLE, 7: _MAX_SINGLE, 8: 1, 9: 1, 10: _MAX_SINGLE, 11: _MAX_SINGLE}
    | {13: 16, 14: 1},
)

#: Number in TensorProto.DataType -> how the raw bytes are to be read. bfloat16 has no NumPy type: its bits are the
#: upper half of a float32.
DTYPES = {
    1: "<f4",
    2: "u1",
    3: "i1",
    4: "<u2",
    5: "<i2",
    6: "<i4",
    7: "<i8",
    9: "?",
    10: "<f2",
    11: "<f8",
    12: "<u4",
    13: "<u8",
    16: "<u2",
}
BFLOAT16 = 16
#: The types in which weights and activations come.
FLOATS = (1, 10, 11, BFLOAT16)
_NAMES = (
    "undefined float32 uint8 int8 uint16 int16 int32 int64 string bool float16 float64 uint32 uint64 complex64 "
    "complex128 bfloat16 float8e4m3fn float8e4m3fnuz float8e5m2 float8e5m2fnuz uint4 int4 float4e2m1 float8e8m0 "
    "uint2 int2"
).split()


def dtype_name(number: int) -> str:
    return _NAMES[number] if 0 <= number < len(_NAMES) else f"type {number}"


class Allowance:
    """How many elements all constants together may still have, and how many steps the translation may take.

    Tensors may share bytes and constants are computed from constants, so that a small file could unfold to any size;
    and an operator may have any number of inputs.
    """

    def __init__(self) -> None:
        self.left = FREE_ELEMENTS
        self._steps = MAX_STEPS

    def grow(self, size: int) -> None:
        """``size`` further bytes were read from files. Weights are read, converted and laid out anew: a few times."""
        self.left += 4 * size

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ModelError("the constants add up to far more than the file holds; it is damaged")

    def step(self, count: int) -> None:
        self._steps -= count
        if self._steps < 0:
            raise ModelError("its operators have far more inputs than those of a network; it is damaged")


def dims_of(tensor: Message) -> tuple[int, ...]:
    dims = tensor.integers(1).tolist()
    if len(dims) > MAX_RANK or any(d < 0 for d in dims):
        raise ModelError(f"it has the shape {quote(dims)}")
    return tuple(dims)


def read_tensor(tensor: Message, external: ExternalData, allowance: Allowance) -> np.ndarray:
    """The values in the tensor's own shape and type; bfloat16 as float32. Often a view of the file. Raises ModelError
    where the values do not fill the shape exactly, or where the type is not a plain number."""
    dims, kind = dims_of(tensor), tensor.integer(2)
    count = math.prod(dims)
    if kind not in DTYPES:
        raise ModelError(f"it holds {dtype_name(kind)}; {', '.join(dtype_name(k) for k in DTYPES)} are read")
    if tensor.has(3):
        raise ModelError("it is one segment of a larger tensor, which is not supported")
    dtype = np.dtype(DTYPES[kind])
    if tensor.integer(14):
        raw: memoryview | None = _external(tensor, external, allowance, count * dtype.itemsize)
    else:
        raw = tensor.data(9) if tensor.has(9) else None
    if raw is None:
        values = _typed(tensor, kind, dtype)
        if values.size != count:
            raise ModelError(f"{values.size} values are stored, but the shape {list(dims)} needs {count}")
    elif len(raw) != count * dtype.itemsize:
        needed = count * dtype.itemsize
        raise ModelError(f"{len(raw)} bytes are stored, but {list(dims)} of {dtype_name(kind)} needs {needed}")
    elif dtype.kind == "b":
        values = np.frombuffer(raw, np.uint8) != 0 if count else np.empty(0, dtype)
    else:
        values = np.frombuffer(raw, dtype) if count else np.empty(0, dtype)
    allowance.take(count)
    if kind == BFLOAT16:
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if not count and math.prod(d for d in dims if d) >= 2**48:  # NumPy refuses such a shape though it takes no memory
        raise ModelError(f"it has the shape {quote(list(dims))}")
    return values.reshape(dims)


def _typed(tensor: Message, kind: int, dtype: np.dtype) -> np.ndarray:
    """Values that are not raw bytes: which field holds them depends on the type."""
    if kind == 1:
        return tensor.floats(4, "<f4")
    if kind == 11:
        return tensor.floats(10, "<f8")
    if kind == 7:
        return tensor.integers(7)
    if kind in (12, 13):
        return tensor.integers(11).astype(dtype)
    values = tensor.integers(5)
    if kind == 10:  # the bits, as a number
        return values.astype(np.uint16).view(np.float16)
    return values.astype(dtype)


def _external(tensor: Message, external: ExternalData, allowance: Allowance, size: int) -> memoryview:
    entries: dict[str, str] = {}
    for entry in tensor.messages(13, _ENTRY):
        key = entry.text(1)
        if key in entries:
            raise ModelError(f"its external data have {quote(key)} twice")
        entries[key] = entry.text(2)
    if tensor.integer(14) != 1:
        raise ModelError(f"its data location is {tensor.integer(14)}; 0 (here) and 1 (another file) are known")
    offset = _count(entries.get("offset", "0"))
    length = _count(entries["length"]) if "length" in entries else size
    if length != size:
        raise ModelError(f"{length} bytes of another file are claimed, but the shape needs {size}")
    before = external.size
    raw = external.read(entries.get("location", ""), offset, length)
    allowance.grow(external.size - before)
    return raw


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise ModelError(f"its external data have the offset or length {quote(text)}")
    return int(text)
