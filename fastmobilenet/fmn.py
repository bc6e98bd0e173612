"""Writes .fmn files: a network in one file, ready to be mapped into memory. importers/fmn.py reads them.

A .fmn file is a .safetensors file (importers/safetensors.py describes that format, and every library for it reads the
arrays) whose ``__metadata__`` holds the rest of the Graph, each value as a string:

| key           | value                                                                                               |
|---------------|-----------------------------------------------------------------------------------------------------|
| checksum      | SHA-256, in hexadecimal digits, see below                                                           |
| fastmobilenet | the version of the format, a whole number                                                           |
| graph         | JSON: name, output, input (size, channels, layout), nodes (name, op, inputs, attrs, params)         |
| preprocess    | JSON: the fields of Preprocess                                                                      |
| labels        | JSON: the names of the classes; missing where the Graph has none                                    |

The ``params`` of a node map the name of a parameter to that of its array in the file. A pair or four of an attribute is
a list; an Activation is ``{"activation": KIND, "lo": ..., "hi": ..., "alpha": ..., "beta": ...}``, a Quant
``{"scale": ..., "zero": ...}``, an infinite number ``{"float": "inf"}`` and an array ``{"tensor": NAME}``. Finite
numbers are written with as many digits as give the same float64 again. Arrays keep their dtype; those of larger
elements come first, so that each is aligned.

**Checksum.** That of the header, with 64 zeros in place of the checksum itself, and of the sums of the arrays: for
every 4096 bytes of the data the sum of its 512 little-endian words of 64 bits, modulo 2**64, the last page filled up
with zeros. It tells a file that was damaged by accident, at the speed at which memory is read.

The same Graph gives the same bytes.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any

import numpy as np

from .activation import Activation
from .atomic import replacing
from .attributes import check_graph
from .errors import ModelError
from .graph import Graph, Node
from .importers._text import quote
from .importers.safetensors import DTYPES, MAX_HEADER
from .quantization import Quant

#: Files of a higher version are refused. A file has the lowest one that can read it: 2 for detectors.
VERSION = 2
#: The key of the metadata that makes a .safetensors file a .fmn file.
KEY = "fastmobilenet"
CHECKSUM = "checksum"
NO_CHECKSUM = "0" * 64

PAGE = 4096
#: The data begins at a multiple of this many bytes.
ALIGNMENT = 64

_CODES = {np.dtype(kind): code for code, kind in DTYPES.items() if code != "BF16"}


def save(graph: Graph, path: str | os.PathLike[str]) -> int:
    """Write the graph, with its preprocessing and labels, to a .fmn file; returns the file's size in bytes.

    Reading the file gives the same graph: equal attributes, arrays with the same bits. The file is written whole or not
    at all (:func:`fastmobilenet.atomic.replacing`). Raises OSError that names ``path``, and ModelError for a graph that
    no file can hold.
    """
    header, arrays = encode(graph)
    with replacing(path) as file:
        file.write(header)
        for array in arrays:
            file.write(_bytes(array))
    return len(header) + sum(array.nbytes for array in arrays)


def encode(graph: Graph) -> tuple[bytes, list[np.ndarray]]:
    """The bytes that come before the data, and the arrays whose bytes are the data, in their order."""
    graph = graph.replace(
        nodes=tuple(replace(n, attrs=_plain(dict(n.attrs))) for n in graph.nodes),
        input_size=_plain(graph.input_size),
        input_channels=_plain(graph.input_channels),
    )
    check_graph(graph)
    tensors: dict[str, np.ndarray] = {}
    metadata = {
        CHECKSUM: NO_CHECKSUM,
        KEY: str(VERSION if any(node.op == "detection" for node in graph.nodes) else 1),
        "graph": _json(_describe(graph, tensors)),
        "preprocess": _json(asdict(graph.preprocess)),
    }
    if graph.labels is not None:
        if not all(isinstance(label, str) for label in graph.labels):
            raise ModelError("labels must be strings")
        metadata["labels"] = _json(list(graph.labels))
    entries: dict[str, Any] = {"__metadata__": metadata}
    arrays: list[np.ndarray] = []
    position = 0
    for name, array in sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize):
        little = array.dtype.newbyteorder("<")
        if little not in _CODES:
            raise ModelError(
                f"array {quote(name)} has dtype {array.dtype}; a file can hold {', '.join(_CODES.values())}"
            )
        offsets = [position, position + array.nbytes]
        entries[name] = {"dtype": _CODES[little], "shape": list(array.shape), "data_offsets": offsets}
        arrays.append(np.asarray(array, little, order="C"))
        position += array.nbytes
    text = _json(entries).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER:
        raise ModelError(f"the description of the network takes {len(text)} bytes; at most {MAX_HEADER} are allowed")
    text = text.replace(NO_CHECKSUM.encode(), checksum(text, map(_bytes, arrays)).encode(), 1)
    return struct.pack("<Q", len(text)) + text, arrays


def _sha256(data: bytes) -> Any:
    """hashlib.sha256 without OpenSSL, which takes 10 ms and 4 MB to load; what is hashed here is short."""
    for module in ("_sha2", "_sha256"):  # Python 3.12 and later; before
        try:
            return import_module(module).sha256(data)
        except ImportError:
            continue
    return import_module("hashlib").sha256(data)


def checksum(header: bytes, data: Iterable[memoryview]) -> str:
    """The checksum of a file: of its header, with NO_CHECKSUM in its place, and of its data, in parts of any length."""
    total = _sha256(header)
    rest = b""
    for part in data:
        if rest:
            missing = PAGE - len(rest)
            rest += part[:missing]
            part = part[missing:]
            if len(rest) < PAGE:
                continue
            total.update(_page_sums(rest))
        whole = len(part) // PAGE * PAGE
        total.update(_page_sums(part[:whole]))
        rest = bytes(part[whole:])
    if rest:
        total.update(_page_sums(rest + bytes(PAGE - len(rest))))
    found: str = total.hexdigest()
    return found


def _page_sums(pages: bytes | memoryview) -> bytes:
    words = np.frombuffer(pages, "<u8").reshape(-1, PAGE // 8)
    return bytes(words.sum(axis=1, dtype=np.uint64).astype("<u8"))


def _bytes(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _describe(graph: Graph, tensors: dict[str, np.ndarray]) -> dict[str, Any]:
    """The graph as what JSON can hold; its arrays go to ``tensors``."""

    def store(node: Node, key: str, array: np.ndarray) -> str:
        # No name of a file holds half a surrogate pair, though it may be in the name of a node.
        base = f"{node.name}.{key}".encode("utf-8", "backslashreplace").decode()
        name, count = base, 1
        while name in tensors:
            count += 1
            name = f"{base}#{count}"
        tensors[name] = array
        return name

    def encoded(node: Node, key: str, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return {"tensor": store(node, key, value)}
        if isinstance(value, tuple):
            return [encoded(node, key, v) for v in value]
        if isinstance(value, Activation):
            bounds = {field: _number(v) for field, v in asdict(value).items() if field != "kind"}
            return {"activation": value.kind, **bounds}
        if isinstance(value, Quant):
            return asdict(value)
        return value

    return {
        "name": graph.name,
        "output": graph.output,
        "input": {
            "size": list(graph.input_size),
            "channels": graph.input_channels,
            "layout": graph.input_layout,
        },
        "nodes": [
            {
                "name": node.name,
                "op": node.op,
                "inputs": list(node.inputs),
                "attrs": {key: encoded(node, key, value) for key, value in node.attrs.items()},
                "params": {key: store(node, key, value) for key, value in node.params.items()},
            }
            for node in graph.nodes
        ],
    }


def _number(value: float) -> Any:
    return value if math.isfinite(value) else {"float": repr(float(value))}


def _plain(value: Any) -> Any:
    """Numbers of NumPy as those of Python, and lists as tuples."""
    if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0:
        return value.item()
    if isinstance(value, (list, tuple)):
        return tuple(map(_plain, value))
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    if isinstance(value, (Activation, Quant)):
        return type(value)(**_plain(asdict(value)))
    return value
