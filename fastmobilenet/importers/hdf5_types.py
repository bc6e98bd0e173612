"""The messages of an HDF5 array: what its elements are, its shape, and where its bytes lie."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from ..errors import ModelError
from ._text import quote

MAX_RANK = 8

_INTEGER, _FLOAT, _STRING, _VARIABLE = 0, 1, 3, 9
#: (size, bits of the exponent, bits of the mantissa) of the floats that NumPy has.
_FLOATS = {(2, 5, 10): "f2", (4, 8, 23): "f4", (8, 11, 52): "f8"}


@dataclass(frozen=True)
class Datatype:
    """``dtype`` is None for text. ``shared`` says that an element only refers to its text."""

    size: int
    dtype: np.dtype | None = None
    shared: bool = False


def read_datatype(message: memoryview, where: str) -> Datatype:
    """Numbers and text; everything else raises ModelError that begins with ``where``."""
    if len(message) < 8:
        raise ModelError(f"{where}: its type is damaged")
    first, bits, size = struct.unpack("<BB2xI", message[:8])
    kind = first & 15
    if first >> 4 not in (1, 2, 3):
        raise ModelError(f"{where}: type version {first >> 4} is not known")
    order = ">" if bits & 1 else "<"
    if kind == _INTEGER and size in (1, 2, 4, 8) and _whole(message, size):
        return Datatype(size, np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}"))
    if kind == _FLOAT and len(message) >= 16 and _whole(message, size):
        exponent, mantissa = message[13], message[15]
        name = _FLOATS.get((size, exponent, mantissa))
        if name is not None and not bits & 64:
            return Datatype(size, np.dtype(order + name))
        raise ModelError(f"{where}: floats of {size} bytes with {mantissa} bits of mantissa are not supported")
    if kind == _STRING and size > 0:
        return Datatype(size)
    if kind == _VARIABLE and bits & 15 == 1 and size == 16:
        return Datatype(size, shared=True)
    raise ModelError(f"{where}: elements of HDF5 class {kind} and {size} bytes are not supported; numbers and text are")


def _whole(message: memoryview, size: int) -> bool:
    """Whether a number fills all of its bytes."""
    return len(message) >= 12 and struct.unpack("<HH", message[8:12]) == (0, 8 * size)


def read_dataspace(message: memoryview, where: str) -> tuple[int, ...]:
    """The shape; () for a single value."""
    if len(message) < 4:
        raise ModelError(f"{where}: its shape is damaged")
    version, rank, _, kind = struct.unpack("<4B", message[:4])
    start = {1: 8, 2: 4}.get(version)
    if start is None or (version == 2 and kind > 1):
        raise ModelError(f"{where}: a shape of version {version} is not supported")
    if rank > MAX_RANK or len(message) < start + 8 * rank:
        raise ModelError(f"{where}: its shape of {rank} axes is damaged")
    shape = struct.unpack(f"<{rank}Q", message[start : start + 8 * rank])
    if any(dim >= 2**48 for dim in shape):
        raise ModelError(f"{where} has the shape {quote(list(shape))}")
    return shape


def read_layout(message: memoryview, where: str) -> tuple[memoryview | None, int, int]:
    """(the bytes, 0, 0) where they lie in the message itself, else (None, address, size)."""
    if len(message) < 4:
        raise ModelError(f"{where}: its layout is damaged")
    version, kind = message[0], message[1]
    if version not in (3, 4):
        raise ModelError(f"{where}: a layout of version {version} is not supported; 3 and 4 are")
    if kind == 0:
        size = struct.unpack("<H", message[2:4])[0]
        if len(message) < 4 + size:
            raise ModelError(f"{where}: its layout is damaged")
        return message[4 : 4 + size], 0, 0
    if kind == 1 and len(message) >= 18:
        address, size = struct.unpack("<QQ", message[2:18])
        return None, address, size
    raise ModelError(f"{where} is stored in chunks; only arrays in one piece are read, which Keras writes")
