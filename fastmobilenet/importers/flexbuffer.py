"""A reader for the FlexBuffers in which TFLite files keep the options of custom operators: a map of numbers.

A FlexBuffer is read from its end: the last byte is the width of the root (1, 2, 4 or 8 bytes), the one before it its
type, and before that stands the root itself. A type is a byte: the kind times 4, plus the logarithm of the width of
what lies behind an offset. A map is an offset back to its first value; before that stand, each as wide as a value, the
offset back to the keys, the width of the keys, and the count; behind the values a type for each. Keys are offsets back
to text that ends in a zero. Everything is little endian.

Every place is compared with the ends of the buffer, and the work is bounded by MAX_ENTRIES.
"""

from __future__ import annotations

import struct

from ..errors import ModelError

MAX_ENTRIES = 256
MAX_KEY = 64

_INT, _UINT, _FLOAT = 1, 2, 3
_INDIRECT_INT, _INDIRECT_UINT, _INDIRECT_FLOAT = 6, 7, 8
_MAP, _BOOL = 9, 26

_UNSIGNED = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}
_SIGNED = {1: "<b", 2: "<h", 4: "<i", 8: "<q"}
_REAL = {2: "<e", 4: "<f", 8: "<d"}
_FORMATS = {_INT: _SIGNED, _UINT: _UNSIGNED, _FLOAT: _REAL, _BOOL: _UNSIGNED}
_INDIRECT = {_INDIRECT_INT: _INT, _INDIRECT_UINT: _UINT, _INDIRECT_FLOAT: _FLOAT}


def numbers(data: bytes) -> dict[str, int | float | bool]:
    """The numbers of the map in a buffer; values of other kinds are left out. Raises ModelError for what is no map."""
    if len(data) < 3:
        raise ModelError(f"options of {len(data)} bytes are no FlexBuffer")
    width, kind = data[-1], data[-2]
    if width not in _UNSIGNED or kind >> 2 != _MAP:
        raise ModelError(f"the options are no map: their type is {kind}, their width {width}")
    start = _behind(data, len(data) - 2 - width, width)
    width = 1 << (kind & 3)
    count = _unsigned(data, start - width, width)
    if count > MAX_ENTRIES:
        raise ModelError(f"the options claim {count} entries; at most {MAX_ENTRIES} are read")
    keys, key_width = _behind(data, start - 3 * width, width), _unsigned(data, start - 2 * width, width)
    if key_width not in _UNSIGNED:
        raise ModelError(f"the keys of the options claim a width of {key_width} bytes")
    found: dict[str, int | float | bool] = {}
    for i in range(count):
        key = _text(data, _behind(data, keys + i * key_width, key_width))
        kind = _unsigned(data, start + count * width + i, 1)
        value = _number(data, start + i * width, width, kind)
        if value is not None:
            found[key] = value
    return found


def _number(data: bytes, place: int, width: int, kind: int) -> int | float | bool | None:
    kind, inner = kind >> 2, 1 << (kind & 3)
    if kind in _INDIRECT:
        kind, place, width = _INDIRECT[kind], _behind(data, place, width), inner
    if kind not in _FORMATS:
        return None
    if width not in _FORMATS[kind]:
        raise ModelError(f"the options hold a number of {width} bytes")
    value = _read(data, place, _FORMATS[kind][width])
    return bool(value) if kind == _BOOL else value


def _behind(data: bytes, place: int, width: int) -> int:
    """The place that the offset at ``place`` names."""
    return place - _unsigned(data, place, width)


def _unsigned(data: bytes, place: int, width: int) -> int:
    return int(_read(data, place, _UNSIGNED[width]))


def _read(data: bytes, place: int, code: str) -> int | float:
    if place < 0 or place + struct.calcsize(code) > len(data):
        raise ModelError(f"an offset of the options leads to byte {place}, outside of their {len(data)} bytes")
    value: int | float = struct.unpack_from(code, data, place)[0]
    return value


def _text(data: bytes, place: int) -> str:
    end = data.find(b"\0", max(place, 0), max(place, 0) + MAX_KEY)
    if place < 0 or end < 0:
        raise ModelError("a key of the options is no short text")
    return data[place:end].decode("utf-8", errors="replace")
