"""A reader for FlatBuffers that trusts no byte of the file.

A FlatBuffer is a tree of tables. A table starts with a signed 32-bit offset back to its vtable, a list of
16-bit numbers: the size of the vtable, the size of the table, then one offset a field (0: the field is
absent and has its default). Strings, vectors and further tables lie behind unsigned 32-bit offsets that
count from the place where the offset itself is stored. Everything is little endian.

Every offset and length is compared with the end of the buffer before it is followed, and nothing here
recurses or copies more than a name: the worst that a damaged file can do is raise ModelError. The caller
decides how deep it goes and bounds how many tables it opens (``limit``).
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from ..errors import ModelError

_BOOL = struct.Struct("<?")
_U8 = struct.Struct("<B")
_I8 = struct.Struct("<b")
_U16 = struct.Struct("<H")
_I32 = struct.Struct("<i")
_U32 = struct.Struct("<I")
_F32 = struct.Struct("<f")

#: Longer names are cut: they only appear in messages and as node names.
MAX_STRING = 200


def root(data: bytes | bytearray | memoryview, identifier: bytes) -> Table:
    """The root table of a FlatBuffer whose bytes 4 to 8 are ``identifier``."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise ModelError("the file's bytes must lie in one piece")
    view = view.cast("B")
    if len(view) < 8:
        raise ModelError(f"{len(view)} bytes are too few for a {identifier.decode()} file")
    if bytes(view[4:8]) != identifier:
        raise ModelError(f"bytes 4 to 8 are {bytes(view[4:8])!r}, expected {identifier!r}")
    return Table(view, _U32.unpack_from(view)[0])


class Table:
    """One table; fields are named by their number in the schema, counted from 0."""

    __slots__ = ("_data", "_fields", "_position", "_size", "_vtable")

    def __init__(self, data: memoryview, position: int) -> None:
        _check(data, position, 4, "a table")
        vtable = position - _I32.unpack_from(data, position)[0]
        _check(data, vtable, 4, "a vtable")
        vtable_size = _U16.unpack_from(data, vtable)[0]
        size = _U16.unpack_from(data, vtable + 2)[0]
        if vtable_size < 4 or vtable_size % 2 or size < 4:
            raise ModelError(f"the table at byte {position} claims a vtable of {vtable_size} and {size} bytes")
        _check(data, vtable, vtable_size, "a vtable")
        _check(data, position, size, "a table")
        self._data = data
        self._position = position
        self._size = size
        self._vtable = vtable
        self._fields = (vtable_size - 4) // 2

    # --- scalars: the value, or the schema's default where the field is absent ---------------------------

    def flag(self, field: int, default: bool = False) -> bool:
        return bool(self._scalar(_BOOL, field, default))

    def uint8(self, field: int, default: int = 0) -> int:
        return int(self._scalar(_U8, field, default))

    def int8(self, field: int, default: int = 0) -> int:
        return int(self._scalar(_I8, field, default))

    def int32(self, field: int, default: int = 0) -> int:
        return int(self._scalar(_I32, field, default))

    def uint32(self, field: int, default: int = 0) -> int:
        return int(self._scalar(_U32, field, default))

    def float32(self, field: int, default: float = 0.0) -> float:
        return float(self._scalar(_F32, field, default))

    # --- what lies behind an offset ----------------------------------------------------------------------

    def table(self, field: int) -> Table | None:
        position = self._target(field)
        return None if position is None else Table(self._data, position)

    def tables(self, field: int, limit: int) -> list[Table]:
        """A vector of tables; empty where the field is absent. More than ``limit`` raise ModelError."""
        offsets = self.vector(field, np.uint32)
        if len(offsets) > limit:
            raise ModelError(f"a list claims {len(offsets)} entries; at most {limit} are read")
        if not len(offsets):
            return []
        start = self._target(field)
        assert start is not None
        return [Table(self._data, start + 4 + 4 * i + offset) for i, offset in enumerate(offsets.tolist())]

    def vector(self, field: int, dtype: type[np.generic]) -> np.ndarray[Any, np.dtype[Any]]:
        """A vector of numbers as a read-only view of the file, not necessarily aligned; empty where absent."""
        kind = np.dtype(dtype).newbyteorder("<")
        position = self._target(field)
        if position is None:
            return np.empty(0, kind)
        count = self._length(position, kind.itemsize)
        view = np.frombuffer(self._data, kind, count, position + 4) if count else np.empty(0, kind)
        view.flags.writeable = False
        return view

    def string(self, field: int) -> str:
        """Text, cut to MAX_STRING bytes, with anything that is not UTF-8 replaced; "" where absent."""
        position = self._target(field)
        if position is None:
            return ""
        count = min(self._length(position, 1), MAX_STRING)
        return bytes(self._data[position + 4 : position + 4 + count]).decode("utf-8", errors="replace")

    # --- offsets -----------------------------------------------------------------------------------------

    def _scalar(self, code: struct.Struct, field: int, default: Any) -> Any:
        position = self._place(field, code.size)
        return default if position is None else code.unpack_from(self._data, position)[0]

    def _place(self, field: int, size: int) -> int | None:
        """Where the field is stored, or None."""
        if field >= self._fields:
            return None
        offset = int(_U16.unpack_from(self._data, self._vtable + 4 + 2 * field)[0])
        if offset == 0:
            return None
        if offset < 4 or offset + size > self._size:
            raise ModelError(f"field {field} of the table at byte {self._position} lies outside the table")
        return self._position + offset

    def _target(self, field: int) -> int | None:
        """The place that the field's offset names, or None."""
        place = self._place(field, 4)
        return None if place is None else place + int(_U32.unpack_from(self._data, place)[0])

    def _length(self, position: int, itemsize: int) -> int:
        """Length of the vector at ``position``, all of whose elements lie in the file."""
        _check(self._data, position, 4, "a vector")
        count = int(_U32.unpack_from(self._data, position)[0])
        _check(self._data, position + 4, count * itemsize, "a vector")
        return count


def _check(data: memoryview, position: int, size: int, what: str) -> None:
    if position < 0 or position + size > len(data):
        raise ModelError(f"{what} of {size} bytes at byte {position} does not fit in the {len(data)} bytes of the file")
