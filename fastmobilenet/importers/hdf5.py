"""Reads HDF5 files as Keras writes them: groups, attributes and plain arrays. No byte of the file is trusted.

libhdf5 is not made for hostile files: one changed byte of a Keras file of 30 kB is enough to crash the process in it.
So the small part of the format that these files use is read here; its specification is "HDF5 File Format
Specification Version 3.0" of The HDF Group. Everything is little endian, and addresses count from the file's start.

- The superblock names the root group. Of its versions, 0 and 1 are read: what h5py writes unless told otherwise.
- An object (a group or an array) is a list of messages, in one block or several (:class:`Hdf5Object`).
- A group has a B-tree whose leaves are lists of (name, address), with the names in a heap of its own.
- An array has messages for its type, its shape and where its bytes lie: in one piece, inside the file
  (hdf5_types.py). Arrays in chunks, compressed ones and links to other files are refused.
- Strings of variable length lie in collections that the whole file shares.

Work is bounded: everything that is looked at takes from an allowance that the size of the file sets.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import ModelError
from ._text import quote
from .hdf5_types import Datatype, read_dataspace, read_datatype, read_layout

SIGNATURE = b"\x89HDF\r\n\x1a\n"
UNDEFINED = 2**64 - 1

#: Messages, links and strings that one file may make us look at. The largest MobileNet has 20,000.
MAX_STEPS = 200_000
#: A longer name of an object is cut.
MAX_NAME = 1024
#: Levels of a group's B-tree; each multiplies its links by 16 at least.
MAX_LEVELS = 8

_TWO_ADDRESSES = struct.Struct("<QQ")
_MESSAGE = struct.Struct("<HHB")
_ENTRY = struct.Struct("<QQI")  # of a symbol table node: name, object, kind of the cache
_ENTRY_SIZE = 40
_OLD_ATTRIBUTE = struct.Struct("<BBHHH")

_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _FILTERS = 1, 3, 7, 8, 11
_ATTRIBUTE, _CONTINUATION, _SYMBOL_TABLE = 12, 16, 17
_LINK_INFO, _LINK, _ATTRIBUTE_INFO = 2, 6, 21

_RESAVE = "save it again with h5py's defaults, as Keras does"

#: A string, a list of strings, or numbers.
Attribute = Any


class Hdf5File:
    """The bytes of an HDF5 file. Raises ModelError where they are none."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self.data = memoryview(data).cast("B")
        self._steps = MAX_STEPS
        self._bytes_left = 2 * len(self.data)
        self._collections: dict[int, dict[int, tuple[int, int]]] = {}
        self._objects: dict[int, Hdf5Object] = {}
        head = self.bytes(0, 24, "the superblock")
        if bytes(head[:8]) != SIGNATURE:
            raise ModelError(f"it starts with {bytes(head[:8]).hex(' ')}, not as an HDF5 file")
        version = head[8]
        if version > 3:
            raise ModelError(f"superblock version {version} is not known")
        if version > 1:
            raise ModelError(f"it is in HDF5's newer format (superblock version {version}); {_RESAVE}")
        if (head[13], head[14]) != (8, 8):
            raise ModelError(f"addresses of {head[13]} and lengths of {head[14]} bytes are not supported; 8 and 8 are")
        start = 24 if version == 0 else 28
        base, _, end, _ = struct.unpack("<4Q", self.bytes(start, 32, "the superblock"))
        if base != 0:
            raise ModelError(f"its base address is {base}, expected 0")
        if end > len(self.data):
            raise ModelError(f"it has {len(self.data)} bytes, but was written with {end}: it is cut off")
        _, root, _ = _ENTRY.unpack(self.bytes(start + 32, _ENTRY.size, "the superblock"))
        self.root = self.object_at(root, "/")

    def bytes(self, position: int, size: int, what: str) -> memoryview:
        """``size`` bytes from ``position`` on, all of which lie in the file."""
        if position < 0 or position + size > len(self.data):
            raise ModelError(f"{what} of {size} bytes at byte {position} does not fit in its {len(self.data)} bytes")
        return self.data[position : position + size]

    def spend(self, steps: int = 1) -> None:
        """Takes from the allowance of work."""
        self._steps -= steps
        if self._steps < 0:
            raise ModelError("its structure is far larger than that of a network; it is damaged")

    def spend_bytes(self, size: int) -> None:
        """Takes from the allowance of values: a file may not name the same bytes again and again."""
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ModelError("its arrays and texts add up to far more than the file holds; it is damaged")

    def object_at(self, address: int, name: str) -> Hdf5Object:
        """The object at ``address``; read once, whatever its names."""
        if address not in self._objects:
            self._objects[address] = Hdf5Object(self, address, name)
        return self._objects[address]

    def shared_text(self, reference: memoryview) -> str:
        """A string of variable length: (length, address of its collection, number in it)."""
        self.spend()
        length, address, number = struct.unpack("<IQI", reference)
        if length == 0:
            return ""
        if address not in self._collections:
            self._collections[address] = self._collection(address)
        position, size = self._collections[address].get(number, (0, -1))
        if size < length:
            raise ModelError(f"string {number} of the collection at byte {address} is not there")
        self.spend_bytes(length)
        return bytes(self.data[position : position + length]).rstrip(b"\0").decode("utf-8", errors="replace")

    def _collection(self, address: int) -> dict[int, tuple[int, int]]:
        """Number -> (position, size) of the strings of one collection."""
        head = self.bytes(address, 16, "a collection of strings")
        size = struct.unpack("<Q", head[8:])[0]
        if bytes(head[:5]) != b"GCOL\1":
            raise ModelError(f"no collection of strings is at byte {address}")
        self.bytes(address, size, "a collection of strings")
        found: dict[int, tuple[int, int]] = {}
        position, end = address + 16, address + size
        while position + 16 <= end:
            self.spend()
            number, length = struct.unpack("<H6xQ", self.data[position : position + 16])
            if number == 0:
                break
            if position + 16 + length > end:
                raise ModelError(f"string {number} of the collection at byte {address} is longer than the collection")
            found[number] = (position + 16, length)
            position += 16 + -(-length // 8) * 8
        return found


class Hdf5Object:
    """A group or an array. ``name`` is its path, for messages."""

    def __init__(self, file: Hdf5File, address: int, name: str) -> None:
        self._file = file
        self.name = name
        self._messages = list(self._read_messages(address))
        self._links: dict[str, int] | None = None

    @property
    def is_group(self) -> bool:
        return any(self._find(kind) is not None for kind in (_SYMBOL_TABLE, _LINK_INFO, _LINK))

    # --- groups ------------------------------------------------------------------------------------------

    def links(self) -> dict[str, int]:
        """Name -> address of what a group holds. Links to other places than an object of the file are left out."""
        if self._links is None:
            table = self._find(_SYMBOL_TABLE)
            if table is None:
                raise ModelError(f"{self} is {f'in the newer format; {_RESAVE}' if self.is_group else 'no group'}")
            if len(table) < 16:
                raise ModelError(f"{self}: its symbol table is damaged")
            tree, heap = _TWO_ADDRESSES.unpack(table[:16])
            names = self._heap(heap)
            self._links = {}
            for node in self._leaves(tree):
                self._read_leaf(node, names, self._links)
        return self._links

    def get(self, path: str) -> Hdf5Object | None:
        """The object at ``path`` (names joined by "/") below this group, None where there is none."""
        found = self
        for name in path.split("/"):
            self._file.spend()
            if not name:
                continue
            address = found.links().get(name) if found.is_group else None
            if address is None:
                return None
            found = self._file.object_at(address, f"{found.name.rstrip('/')}/{name}"[-200:])
        return found

    def _heap(self, address: int) -> memoryview:
        head = self._file.bytes(address, 32, "a heap of names")
        if bytes(head[:5]) != b"HEAP\0":
            raise ModelError(f"{self}: no heap of names is at byte {address}")
        size, _, start = struct.unpack("<3Q", head[8:])
        return self._file.bytes(start, size, "a heap of names")

    def _leaves(self, tree: int) -> Iterator[int]:
        """The addresses of the lists of links below the B-tree at ``tree``."""
        waiting = [(tree, MAX_LEVELS)]
        while waiting:
            address, above = waiting.pop()
            self._file.spend()
            head = self._file.bytes(address, 24, "a B-tree")
            level, used = head[5], struct.unpack("<H", head[6:8])[0]
            if bytes(head[:5]) != b"TREE\0" or level >= above:
                raise ModelError(f"{self}: no B-tree of links is at byte {address}")
            body = self._file.bytes(address + 24, 16 * used + 8, "a B-tree")
            self._file.spend(used)
            children = [_TWO_ADDRESSES.unpack(body[16 * i : 16 * i + 16])[1] for i in range(used)]
            if level == 0:
                yield from children
            else:
                waiting += [(child, level) for child in reversed(children)]

    def _read_leaf(self, address: int, names: memoryview, links: dict[str, int]) -> None:
        head = self._file.bytes(address, 8, "a list of links")
        if bytes(head[:5]) != b"SNOD\1":
            raise ModelError(f"{self}: no list of links is at byte {address}")
        count = struct.unpack("<H", head[6:])[0]
        self._file.spend(count)
        body = self._file.bytes(address + 8, count * _ENTRY_SIZE, "a list of links")
        for i in range(count):
            name, target, cache = _ENTRY.unpack_from(body, i * _ENTRY_SIZE)
            if cache != 2 and target != UNDEFINED:
                text = bytes(names[name : name + MAX_NAME]).split(b"\0")[0]
                links[text.decode("utf-8", errors="replace")] = target

    # --- attributes and arrays ---------------------------------------------------------------------------

    def attribute(self, name: str) -> Attribute | None:
        """The attribute's value: a string, a list of strings or an array of numbers. None where it is absent."""
        wanted = name.encode()
        for kind, message in self._messages:
            if kind == _ATTRIBUTE_INFO and len(message) >= 18:
                raise ModelError(f"{self} keeps its attributes in the newer format; {_RESAVE}")
            if kind == _ATTRIBUTE:
                self._file.spend()
                found, rest = self._attribute_name(message)
                if found == wanted:
                    return self._attribute_value(name, *rest)
        return None

    def _attribute_name(self, message: memoryview) -> tuple[bytes, tuple[memoryview, memoryview, memoryview]]:
        """The name, and the parts of the message that hold type, shape and values."""
        if len(message) < 9:
            raise ModelError(f"{self}: an attribute is damaged")
        version, flags, *sizes = _OLD_ATTRIBUTE.unpack(message[:8])
        if version not in (1, 2, 3) or (version > 1 and flags & 3):
            raise ModelError(f"{self}: an attribute of version {version} is not supported")
        position = 8 if version < 3 else 9
        parts = []
        for size in sizes:
            parts.append(message[position : position + size])
            position += -(-size // 8) * 8 if version == 1 else size
        if position > len(message):
            raise ModelError(f"{self}: an attribute is longer than its message")
        return bytes(parts[0]).rstrip(b"\0"), (parts[1], parts[2], message[position:])

    def _attribute_value(self, name: str, datatype: memoryview, dataspace: memoryview, data: memoryview) -> Attribute:
        where = f"{self}: attribute {quote(name)}"
        shape, kind = read_dataspace(dataspace, where), read_datatype(datatype, where)
        count = 1
        for dim in shape:
            count *= dim
        if count * kind.size > len(data):
            raise ModelError(f"{where} claims the shape {quote(list(shape))}, but has {len(data)} bytes")
        values = data[: count * kind.size]
        if kind.dtype is not None:
            return np.frombuffer(values, kind.dtype).reshape(shape)
        self._file.spend(count)
        texts = [self._text(kind, values[i * kind.size : (i + 1) * kind.size]) for i in range(count)]
        return texts if shape else texts[0]

    def _text(self, kind: Datatype, value: memoryview) -> str:
        if kind.shared:
            return self._file.shared_text(value)
        return bytes(value).split(b"\0")[0].decode("utf-8", errors="replace")

    def array(self) -> np.ndarray:
        """The values of an array, as a read-only view of the file. Floats and integers are read."""
        if self._find(_FILTERS) is not None:
            raise ModelError(f"{self} is compressed; save it without compression, as Keras does")
        if self._find(_EXTERNAL) is not None:
            raise ModelError(f"{self} lies in another file; only arrays inside the file are read")
        parts = [self._find(kind) for kind in (_DATATYPE, _DATASPACE, _LAYOUT)]
        datatype, dataspace, layout = parts
        if datatype is None or dataspace is None or layout is None:
            raise ModelError(f"{self} is no array")
        shape, kind = read_dataspace(dataspace, str(self)), read_datatype(datatype, str(self))
        if kind.dtype is None:
            raise ModelError(f"{self} holds text, not numbers")
        count = 1
        for dim in shape:
            count *= dim
        size = count * kind.size
        self._file.spend_bytes(size)
        if size == 0:
            return np.empty(shape if max(shape, default=0) < 2**31 else 0, kind.dtype)
        inline, position, stored = read_layout(layout, str(self))
        if inline is None:
            if position == UNDEFINED:
                raise ModelError(f"{self} has no values: they were never written")
            inline = self._file.bytes(position, stored, str(self))
        if len(inline) < size:
            raise ModelError(f"{self} of {list(shape)} {kind.dtype} needs {size} bytes, but {len(inline)} are stored")
        values = np.frombuffer(inline[:size], kind.dtype).reshape(shape)
        values.flags.writeable = False
        return values

    # --- messages ----------------------------------------------------------------------------------------

    def __str__(self) -> str:
        return f"HDF5 object {quote(self.name)}"

    def _find(self, kind: int) -> memoryview | None:
        return next((message for found, message in self._messages if found == kind), None)

    def _read_messages(self, address: int) -> Iterator[tuple[int, memoryview]]:
        """(kind, content) of the object's messages, of all its blocks."""
        head = self._file.bytes(address, 16, str(self))
        if bytes(head[:4]) == b"OHDR":
            raise ModelError(f"{self} is in HDF5's newer format; {_RESAVE}")
        version, count, _, size = struct.unpack("<BxHII", head[:12])
        if version != 1:
            raise ModelError(f"no object is at byte {address}, where {self} should be")
        blocks = [(address + 16, size)]
        while blocks and count > 0:
            position, size = blocks.pop(0)
            block = self._file.bytes(position, size, str(self))
            start = 0
            while start + 8 <= len(block) and count > 0:
                self._file.spend()
                count -= 1
                kind, length, flags = _MESSAGE.unpack_from(block, start)
                message = block[start + 8 : start + 8 + length]
                start += 8 + length
                if len(message) != length:
                    raise ModelError(f"{self}: a message of {length} bytes does not fit in its block")
                if kind == _CONTINUATION:
                    if length < 16:
                        raise ModelError(f"{self}: a continuation is damaged")
                    blocks.append(_TWO_ADDRESSES.unpack(message[:16]))
                elif flags & 2:
                    raise ModelError(f"{self}: shared messages are not supported; {_RESAVE}")
                else:
                    yield kind, message
