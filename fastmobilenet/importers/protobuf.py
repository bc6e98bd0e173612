"""A reader for the wire format of Protocol Buffers that trusts no byte of the file.

A message is a row of fields. Each begins with a varint, (number << 3) | type, and the type says how long its
value is: 0, a varint; 1, eight bytes; 2, a varint and as many bytes as it says (text, an inner message, or
numbers in a row); 5, four bytes. A varint has seven bits a byte, the lowest first, and ends at a byte below 128.
Everything is little endian. A field that may occur several times is a list.

Nothing here recurses: an inner message is read when the caller asks for it. A :class:`Kind` names the fields that
the caller wants and how often each may occur, the others are skipped; and a :class:`Budget` bounds the fields of the
whole file, so that a damaged file can cost neither much time nor memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ModelError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_WIRE = {VARINT: "a number", FIXED64: "8 bytes", BYTES: "bytes", FIXED32: "4 bytes"}
_MAX_FIELD_NUMBER = 2**29 - 1

#: Fields that one file may have. A network of 500 layers has some 20,000.
MAX_FIELDS = 250_000
#: Longer names are refused: they identify tensors, so they cannot be cut.
MAX_TEXT = 1000


@dataclass(frozen=True)
class Kind:
    """A kind of message: what it is called in errors, and the numbers of the fields that are read with how often
    each may occur."""

    name: str
    fields: Mapping[int, int]


class Budget:
    """Counts the fields that may still be read."""

    __slots__ = ("left",)

    def __init__(self, fields: int = MAX_FIELDS) -> None:
        self.left = fields


class Message:
    """The fields of one message; ``data`` holds nothing else."""

    __slots__ = ("_budget", "_fields", "_kind")

    def __init__(self, data: memoryview, kind: Kind, budget: Budget) -> None:
        self._kind = kind
        self._budget = budget
        self._fields: dict[int, list[tuple[int, Any]]] = {}
        wanted, fields = kind.fields, self._fields
        position, end = 0, len(data)
        while position < end:
            budget.left -= 1
            if budget.left < 0:
                raise self._error("the file has too many fields for a network; it is damaged")
            tag, start = data[position], position + 1
            if tag >= 0x80:  # most are shorter, and a call would take most of the time
                tag, start = _varint(data, position, kind)
            number, wire = tag >> 3, tag & 7
            if not 1 <= number <= _MAX_FIELD_NUMBER:
                raise self._error(f"field number {number} at byte {position} does not exist")
            value = 0
            if wire in (VARINT, BYTES):
                value, stop = data[start] if start < end else 0x80, start + 1
                if value >= 0x80:
                    value, stop = _varint(data, start, kind)
                if wire == BYTES:
                    start, stop = stop, stop + value
            elif wire in (FIXED32, FIXED64):
                stop = start + (4 if wire == FIXED32 else 8)
            else:
                raise self._error(f"field {number} at byte {position} has the type {wire}; 0, 1, 2 and 5 are read")
            if stop > end:
                raise self._error(
                    f"field {number} at byte {position} claims {stop - start} bytes, {end - start} follow"
                )
            position = stop
            if number not in wanted:
                continue
            found = fields.setdefault(number, [])
            if len(found) == wanted[number]:
                raise self._error(f"field {number} occurs more than {wanted[number]} times")
            found.append((wire, value if wire == VARINT else data[start:stop]))

    def has(self, field: int) -> bool:
        return field in self._fields

    # --- one value: the last one, or the default where the field is absent --------------------------------

    def integer(self, field: int, default: int = 0) -> int:
        found = self._fields.get(field)
        return _signed(self._typed(field, found[-1], VARINT)) if found else default

    def float32(self, field: int, default: float = 0.0) -> float:
        found = self._fields.get(field)
        return float(np.frombuffer(self._typed(field, found[-1], FIXED32), "<f4")[0]) if found else default

    def data(self, field: int) -> memoryview:
        found = self._fields.get(field)
        return self._typed(field, found[-1], BYTES) if found else memoryview(b"")

    def text(self, field: int) -> str:
        return self._text(field, self.data(field))

    def message(self, field: int, kind: Kind) -> Message | None:
        return Message(self.data(field), kind, self._budget) if field in self._fields else None

    # --- lists: empty where the field is absent -----------------------------------------------------------

    def texts(self, field: int) -> list[str]:
        return [self._text(field, self._typed(field, item, BYTES)) for item in self._fields.get(field, ())]

    def messages(self, field: int, kind: Kind) -> list[Message]:
        items = self._fields.get(field, ())
        return [Message(self._typed(field, item, BYTES), kind, self._budget) for item in items]

    def integers(self, field: int) -> np.ndarray:
        """int64 (n,), whether the file has the numbers in a row or one by one."""
        parts = []
        for item in self._fields.get(field, ()):
            if item[0] == BYTES:
                parts.append(self._varints(field, item[1]))
            else:
                parts.append(np.array([_signed(self._typed(field, item, VARINT))], np.int64))
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def floats(self, field: int, dtype: str) -> np.ndarray:
        """(n,) of ``dtype``, "<f4" or "<f8", whether the file has the numbers in a row or one by one. A row is a
        view of the file, not necessarily aligned."""
        size = np.dtype(dtype).itemsize
        parts = []
        for item in self._fields.get(field, ()):
            raw = item[1] if item[0] == BYTES else self._typed(field, item, FIXED32 if size == 4 else FIXED64)
            if len(raw) % size:
                raise self._error(f"field {field} has {len(raw)} bytes, no multiple of {size}")
            if len(raw):
                parts.append(np.frombuffer(raw, dtype))
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty(0, dtype)

    # --- checks -------------------------------------------------------------------------------------------

    def _varints(self, field: int, raw: memoryview) -> np.ndarray:
        """Varints in a row, all at once."""
        data = np.frombuffer(raw, np.uint8) if len(raw) else np.empty(0, np.uint8)
        ends = np.flatnonzero(data < 0x80) + 1
        if len(data) and (not len(ends) or ends[-1] != len(data)):
            raise self._error(f"field {field} ends in the middle of a number")
        starts = np.concatenate([np.zeros(1, ends.dtype), ends[:-1]])[: len(ends)]
        lengths = ends - starts
        longest = int(lengths.max(initial=0))
        if longest > 10 or (longest == 10 and (data[ends[lengths == 10] - 1] > 1).any()):
            raise self._error(f"field {field} has a number of more than 64 bits")
        values = np.zeros(len(ends), np.uint64)
        for k in range(longest):
            here = lengths > k
            values[here] |= (data[starts[here] + k] & np.uint8(0x7F)).astype(np.uint64) << np.uint64(7 * k)
        return values.view(np.int64)

    def _typed(self, field: int, item: tuple[int, Any], wire: int) -> Any:
        if item[0] != wire:
            raise self._error(f"field {field} is {_WIRE[item[0]]} and should be {_WIRE[wire]}")
        return item[1]

    def _text(self, field: int, raw: memoryview) -> str:
        """Text; bytes that are no UTF-8 are spelled out, so that different names stay different."""
        if len(raw) > MAX_TEXT:
            raise self._error(f"field {field} has a text of {len(raw)} bytes; at most {MAX_TEXT} are read")
        return bytes(raw).decode("utf-8", errors="backslashreplace")

    def _error(self, text: str) -> ModelError:
        return _error(self._kind, text)


def _error(kind: Kind, text: str) -> ModelError:
    return ModelError(f"{kind.name}: {text}")


def _varint(data: memoryview, position: int, kind: Kind) -> tuple[int, int]:
    """The varint at ``position`` as a number from 0 to 2**64 - 1, and where it ends."""
    value = 0
    for i, byte in enumerate(data[position : position + 10]):
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80 and value < 2**64:
            return value, position + i + 1
    raise _error(kind, f"the number at byte {position} has no end or more than 64 bits")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
