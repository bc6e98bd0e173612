"""Writes HDF5 files for tests, as h5py does by default, without any other library."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: Links in one leaf, children of one B-tree node: twice the numbers in the superblock.
LEAF, INTERNAL = 4, 16
UNDEFINED = 2**64 - 1


@dataclass
class Group:
    """``children``: name -> Group or array. ``attributes``: name -> text, list of texts, or array (of numbers, or of
    texts of a fixed length). ``messages``: (kind, content) to add to the group's own."""

    children: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    messages: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass
class Array:
    """An array with attributes, or whose messages differ from the usual ones."""

    values: np.ndarray
    attributes: dict[str, Any] = field(default_factory=dict)
    compact: bool = False
    replaced: Mapping[int, bytes] = field(default_factory=dict)


def nested(flat: Mapping[str, Any]) -> Group:
    """Groups from paths: {"a/b": array} is a group with a group "a" that holds "b"."""
    root = Group()
    for path, value in flat.items():
        *parents, name = path.split("/")
        group = root
        for parent in parents:
            group = group.children.setdefault(parent, Group())
        group.children[name] = value
    return root


def write(root: Group, *, userblock: int = 0) -> bytes:
    """The bytes of a file."""
    return _Writer(root, userblock).finish()


class _Writer:
    def __init__(self, root: Group, userblock: int) -> None:
        self.out = bytearray(96)
        self.base = userblock
        address, tree, heap = self.group(root)
        entry = struct.pack("<QQIIQQ", 0, address, 1, 0, tree, heap)
        self.out[:96] = (
            b"\x89HDF\r\n\x1a\n"
            + bytes([0, 0, 0, 0, 0, 8, 8, 0])
            + struct.pack("<HHI", LEAF, INTERNAL, 0)
            + struct.pack("<4Q", 0, UNDEFINED, len(self.out), UNDEFINED)
            + entry
        )

    def finish(self) -> bytes:
        return bytes(self.out)

    def put(self, data: bytes) -> int:
        """Appends a block; its address."""
        self.out += bytes(-len(self.out) % 8)
        address = len(self.out)
        self.out += data
        return address

    # --- objects -----------------------------------------------------------------------------------------

    def object(self, value: Any) -> int:
        if isinstance(value, Group):
            return self.group(value)[0]
        return self.array(value if isinstance(value, Array) else Array(np.asarray(value)))

    def group(self, group: Group) -> tuple[int, int, int]:
        """(address, of its B-tree, of its names)"""
        names = sorted(group.children, key=str.encode)
        addresses = {name: self.object(group.children[name]) for name in names}
        text, offsets = bytearray(8), {"": 0}
        for name in names:
            offsets[name] = len(text)
            text += name.encode() + b"\0"
            text += bytes(-len(text) % 8)
        data = self.put(bytes(text))
        heap = self.put(b"HEAP" + bytes(4) + struct.pack("<3Q", len(text), 1, data))  # 1: nothing is free
        leaves = []
        for i in range(0, len(names), 2 * LEAF):
            part = names[i : i + 2 * LEAF]
            body = b"".join(struct.pack("<QQII16x", offsets[n], addresses[n], 0, 0) for n in part)
            node = b"SNOD\1\0" + struct.pack("<H", len(part)) + body
            leaves.append((self.put(node.ljust(8 + 40 * 2 * LEAF, b"\0")), offsets[part[-1]]))
        tree = self.tree(leaves)
        table = struct.pack("<QQ", tree, heap)
        return self.header([(17, table), *group.messages], group.attributes), tree, heap

    def tree(self, children: list[tuple[int, int]], level: int = 0) -> int:
        """A B-tree over (address, last key)."""
        nodes = []
        for i in range(0, max(len(children), 1), 2 * INTERNAL):
            part = children[i : i + 2 * INTERNAL]
            head = b"TREE\0" + struct.pack("<BHQQ", level, len(part), UNDEFINED, UNDEFINED)
            keys = struct.pack("<Q", 0) + b"".join(struct.pack("<QQ", *child) for child in part)
            node = (head + keys).ljust(24 + 8 + 16 * 2 * INTERNAL, b"\0")
            nodes.append((self.put(node), part[-1][1] if part else 0))
        return nodes[0][0] if len(nodes) == 1 else self.tree(nodes, level + 1)

    def array(self, array: Array) -> int:
        values = np.ascontiguousarray(array.values)
        data = values.tobytes()
        if array.compact:
            layout = struct.pack("<BBH", 3, 0, len(data)) + data
        else:
            layout = struct.pack("<BBQQ", 3, 1, self.put(data) if data else UNDEFINED, len(data))
        messages = {1: dataspace(array.values.shape), 3: datatype(values.dtype), 8: layout, **array.replaced}
        return self.header(list(messages.items()), array.attributes)

    def header(self, messages: list[tuple[int, bytes]], attributes: Mapping[str, Any]) -> int:
        messages = messages + [(12, self.attribute(name, value)) for name, value in attributes.items()]
        parts = []
        for kind, content in messages:
            content += bytes(-len(content) % 8)
            parts.append(struct.pack("<HHB3x", kind, len(content), 0) + content)
        if len(parts) < 3:
            body = b"".join(parts)
            return self.put(struct.pack("<BxHII4x", 1, len(parts), 1, len(body)) + body)
        # The first message, and a second block with all the others.
        rest = b"".join(parts[1:])
        more = struct.pack("<HHB3xQQ", 16, 16, 0, self.put(rest), len(rest))
        body = parts[0] + more
        return self.put(struct.pack("<BxHII4x", 1, len(parts) + 1, 1, len(body)) + body)

    # --- attributes --------------------------------------------------------------------------------------

    def attribute(self, name: str, value: Any) -> bytes:
        if isinstance(value, (str, list)):
            texts = [value] if isinstance(value, str) else value
            kind, shape = VARIABLE_TEXT, () if isinstance(value, str) else (len(texts),)
            data = self.collection(texts)
        else:
            array = np.asarray(value)
            kind, shape, data = datatype(array.dtype), array.shape, array.tobytes()
        head = name.encode() + b"\0"
        space = dataspace(shape)
        sizes = struct.pack("<BxHHH", 1, len(head), len(kind), len(space))
        return sizes + b"".join(part + bytes(-len(part) % 8) for part in (head, kind, space)) + data

    def collection(self, texts: list[str]) -> bytes:
        """Puts texts into a collection; the references to them."""
        body = b""
        for i, text in enumerate(texts, 1):
            data = text.encode()
            body += struct.pack("<HH4xQ", i, 0, len(data)) + data + bytes(-len(data) % 8)
        size = max(4096, 16 + len(body) + 16)
        free = size - 16 - len(body)
        body += struct.pack("<HH4xQ", 0, 0, free)
        address = self.put((b"GCOL\1\0\0\0" + struct.pack("<Q", size) + body).ljust(size, b"\0"))
        return b"".join(struct.pack("<IQI", len(t.encode()), address, i) for i, t in enumerate(texts, 1))


_FIXED_TEXT = bytes([0x13, 1, 0, 0])
#: Text of variable length: a sequence of bytes, the type of which follows.
VARIABLE_TEXT = bytes([0x19, 1, 0, 0]) + struct.pack("<I", 16) + _FIXED_TEXT + struct.pack("<I", 1)
_FLOATS = {2: (15, 10, 5, 0, 10, 15), 4: (31, 23, 8, 0, 23, 127), 8: (63, 52, 11, 0, 52, 1023)}


def datatype(dtype: np.dtype) -> bytes:
    big = dtype.byteorder == ">"
    if dtype.kind == "S":
        return _FIXED_TEXT + struct.pack("<I", max(dtype.itemsize, 1))
    if dtype.kind == "f":
        sign, exponent, exponent_size, mantissa, mantissa_size, bias = _FLOATS[dtype.itemsize]
        head = bytes([0x11, 0x20 | big, sign, 0]) + struct.pack("<IHH", dtype.itemsize, 0, 8 * dtype.itemsize)
        return head + bytes([exponent, exponent_size, mantissa, mantissa_size]) + struct.pack("<I", bias)
    signed = 8 if dtype.kind == "i" else 0
    return bytes([0x10, signed | big, 0, 0]) + struct.pack("<IHH", dtype.itemsize, 0, 8 * dtype.itemsize)


def dataspace(shape: tuple[int, ...]) -> bytes:
    return struct.pack("<4B4x", 1, len(shape), 0, 0) + struct.pack(f"<{len(shape)}Q", *shape)
