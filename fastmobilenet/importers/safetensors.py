"""Reads .safetensors files: named arrays, nothing else. No library is needed, and no byte of the file is trusted.

A file is a header size (8 bytes, little endian), a JSON header and the data. The header maps every name to
``{"dtype": "F32", "shape": [64, 3, 3, 3], "data_offsets": [begin, end]}``, with offsets from the start of the data,
and may hold strings under "__metadata__". The arrays cover the data without holes and without overlaps: a file that
was cut off or written half can therefore not be read.

https://github.com/huggingface/safetensors describes the format.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from typing import Any

import numpy as np

from ..errors import ModelError
from ._text import quote

#: Headers take about 100 bytes a tensor, so this is room for 20,000; it also bounds the memory of the JSON reader.
MAX_HEADER = 2 * 2**20
#: NumPy has no more axes than 64 (32 in version 1); no network needs more than a few.
MAX_AXES = 16

#: The bytes of a file, in memory or mapped.
Bytes = bytes | bytearray | memoryview | mmap.mmap

#: BF16 has no NumPy type: its bits are the upper half of a float32.
DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "?",
}


def read(data: bytes, name: str) -> dict[str, np.ndarray]:
    """Tensor name -> array, in the order of the file.

    The arrays are read-only views of ``data``, except BF16, which becomes float32. ``name`` is for messages.
    Raises ModelError for anything that the format does not allow, and for a dtype that NumPy cannot hold.
    """
    try:
        return read_all(data)[1]
    except ModelError as error:
        raise ModelError(f"{name} is not a valid safetensors file: {error}") from None


def looks_like(data: bytes) -> bool:
    """Whether the first bytes are those of a safetensors file: a size that fits and the start of a header."""
    return len(data) > 8 and data[8:9] == b"{" and struct.unpack_from("<Q", data)[0] <= len(data) - 8


def read_all(data: Bytes) -> tuple[dict[str, str], dict[str, np.ndarray], int]:
    """The metadata, the arrays as :func:`read` gives them, and the place where their data begins."""
    if len(data) < 8:
        raise ModelError(f"it has {len(data)} bytes, and the size of the header alone takes 8")
    size = struct.unpack_from("<Q", data)[0]
    if size > min(len(data) - 8, MAX_HEADER):
        raise ModelError(
            f"the header claims {size} bytes; {len(data) - 8} follow in the file and {MAX_HEADER} are allowed"
        )
    header = _parse(bytes(data[8 : 8 + size]))
    body = memoryview(data)[8 + size :]
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    for key, entry in header.items():
        if key == "__metadata__":
            metadata = _metadata(entry)
            continue
        begin, end, tensors[key] = _tensor(key, entry, body)
        spans.append((begin, end, key))
    _check_coverage(spans, len(body))
    return metadata, tensors, 8 + size


def _parse(text: bytes) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise ModelError("the header does not start with '{'")
    header = parse_json(text, "the header")
    assert isinstance(header, dict)
    return header


def parse_json(text: str | bytes, what: str) -> Any:
    """What UTF-8 text holds as JSON. Raises ModelError that begins with ``what`` for all that JSON does not allow, for
    a name that an object has twice and for lists in lists beyond a thousand."""
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except ModelError as error:
        raise ModelError(f"{what} {error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{what} is not JSON: {str(error)[:100]}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ModelError(f"names {quote(twice)} twice")
    return result


def _refuse_constant(text: str) -> None:
    raise ModelError(f"holds {text}, which is not JSON")


def _metadata(entry: object) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise ModelError("__metadata__ must map names to strings")
    return entry


def _counts(value: object, length: int | None = None) -> bool:
    """Whether value is a list of whole numbers from 0 to 2**63 - 1; True and 1.0 are none."""
    return (
        isinstance(value, list)
        and (length is None or len(value) == length)
        and all(type(v) is int and 0 <= v < 2**63 for v in value)
    )


def _tensor(key: str, entry: object, body: memoryview) -> tuple[int, int, np.ndarray]:
    """(begin, end, array) of one tensor, with everything but its neighbours checked."""
    label = f"tensor {quote(key)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelError(f"{label} must have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ModelError(f"{label} has dtype {quote(dtype)}; supported are {', '.join(DTYPES)}")
    if not _counts(shape) or len(shape) > MAX_AXES:
        raise ModelError(f"{label} has shape {quote(shape)}; expected at most {MAX_AXES} whole numbers")
    if not _counts(offsets, 2):
        raise ModelError(f"{label} has data_offsets {quote(offsets)}; expected two whole numbers")
    begin, end = offsets
    if not begin <= end <= len(body):
        raise ModelError(f"{label} lies at {begin}..{end}, but the data has {len(body)} bytes")
    array_dtype = np.dtype(DTYPES[dtype])
    expected = math.prod(shape) * array_dtype.itemsize
    if expected != end - begin:
        raise ModelError(f"{label} of {dtype} {shape} needs {expected} bytes, but {end - begin} are given")
    if expected == 0:  # NumPy refuses a shape like (0, 2**62) although it takes no memory
        if math.prod(v for v in shape if v) >= 2**48:
            raise ModelError(f"{label} has shape {quote(shape)}")
        array = np.empty(shape, array_dtype)
    else:
        array = np.frombuffer(body[begin:end], array_dtype).reshape(shape)
    if dtype == "BF16":
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return begin, end, array


def _check_coverage(spans: list[tuple[int, int, str]], size: int) -> None:
    position, before = 0, "the header"
    for begin, end, key in sorted(spans):
        if begin != position:
            kind = "overlaps" if begin < position else "leaves a hole after"
            raise ModelError(f"tensor {quote(key)} at {begin}..{end} {kind} {before}")
        position, before = end, f"tensor {quote(key)}"
    if position != size:
        raise ModelError(f"{size - position} bytes at the end of the file belong to no tensor")
