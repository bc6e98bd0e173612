"""What a TFLite file says about pictures and classes: how pixels become inputs, and the labels.

Pixels: a quantised input says it by its own scale and zero point. A float input says it by the TFLite
metadata (``metadata_schema.fbs``), if the file has any.

Labels: files for classifiers have a zip archive behind the FlatBuffer that holds a text file with one
label a line.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np

from ..errors import ModelError
from ..labels import fit, split
from ..preprocess import RAW, TENSORFLOW, Preprocess
from . import flatbuffer
from .tflite_schema import Tensor, TfliteFile

METADATA_NAME = "TFLITE_METADATA"
_NORMALIZATION = 1  # NormalizationOptions in the union ProcessUnitOptions

#: Bounds for the archive of labels.
MAX_LABEL_BYTES = 4_000_000
MAX_ENTRIES = 64
_END_OF_ARCHIVE = struct.Struct("<4s4H2LH")  # as in section 4.3.16 of PKWARE's APPNOTE
_ZIP64_LOCATOR = b"PK\x06\x07"


def read_preprocess(file: TfliteFile, source: Tensor, *, raw: bool) -> Preprocess:
    """How a picture's pixels become the values of the input tensor ``source``, in units of 0..255. ``raw``: the
    network itself scales them."""
    if source.shape[-1] != 3:
        return TENSORFLOW
    return _from_quantization(source) or _from_metadata(file) or (RAW if raw else TENSORFLOW)


def _from_quantization(source: Tensor) -> Preprocess | None:
    """A quantised input takes pixels as its codes: q = pixel (uint8) or pixel - 128 (int8). Then
    scale * (q - zero point) is (pixel - mean) / std with std = 1 / scale. None where the range is not one that
    pictures have: about 1 to 16 units wide for normalised pixels, or 128 to 512 for raw ones, with 0 inside."""
    q = source.quantization
    if q is None or source.dtype.itemsize != 1 or q.scale.size != 1:
        return None
    scale = float(q.scale[0])
    mean = float(q.zero_point[0]) - float(np.iinfo(source.dtype).min)
    width = 255.0 * scale
    if not (0.5 <= width <= 16.0 or 128.0 <= width <= 512.0) or not 0.0 <= mean <= 255.0:
        return None
    return Preprocess(mean=(mean, mean, mean), std=(1.0 / scale, 1.0 / scale, 1.0 / scale))


def _from_metadata(file: TfliteFile) -> Preprocess | None:
    """The NormalizationOptions of the first input: (pixel - mean) / std, one value or one a channel."""
    try:
        stored = file.metadata(METADATA_NAME)
        if not len(stored):
            return None
        subgraphs = flatbuffer.root(stored.data, b"M001").tables(3, MAX_ENTRIES)
        inputs = subgraphs[0].tables(2, MAX_ENTRIES) if subgraphs else []
        units = inputs[0].tables(4, MAX_ENTRIES) if inputs else []
        for unit in units:
            options = unit.table(1)
            if unit.uint8(0) == _NORMALIZATION and options is not None:
                return _normalization(options.vector(0, np.float32), options.vector(1, np.float32))
    except ModelError:
        return None  # metadata is a comment: a file without any works just as well
    return None


def _normalization(mean: np.ndarray, std: np.ndarray) -> Preprocess | None:
    values = [[float(x) for x in v] * (3 if len(v) == 1 else 1) for v in (mean[:4], std[:4])]
    if any(len(v) != 3 for v in values):
        return None
    (m0, m1, m2), (s0, s1, s2) = values
    try:
        return Preprocess(mean=(m0, m1, m2), std=(s0, s1, s2))
    except ValueError:  # no numbers with which pixels could be normalised
        return None


def read_labels(data: bytes | bytearray | memoryview, classes: int) -> tuple[str, ...] | None:
    """The labels of the archive behind the FlatBuffer: the first text file that fits ``classes``. None where
    there is no such file, or where the archive is damaged: a network works without labels."""
    view = memoryview(data).cast("B")
    if not _has_small_archive(view):
        return None
    try:
        with zipfile.ZipFile(io.BytesIO(view)) as archive:
            for entry in archive.infolist():
                plain = entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                if not plain or not entry.filename.endswith(".txt") or entry.file_size > MAX_LABEL_BYTES:
                    continue
                with archive.open(entry) as stream:
                    names = split(stream.read(MAX_LABEL_BYTES).decode("utf-8-sig"))
                fitted = fit(names, classes)
                if fitted is not None:
                    return fitted
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, NotImplementedError, EOFError, OSError):
        return None
    return None


def _has_small_archive(view: memoryview) -> bool:
    """True where a zip archive ends the file and its directory is small. zipfile reads a directory as long as
    it claims to be, so that is looked at first."""
    tail = bytes(view[-(_END_OF_ARCHIVE.size + 0xFFFF) :])
    start = tail.rfind(b"PK\x05\x06")
    if start < 0 or len(tail) - start < _END_OF_ARCHIVE.size:
        return False
    _, _, _, _, entries, directory_size, _, _ = _END_OF_ARCHIVE.unpack_from(tail, start)
    zip64 = tail[max(start - 20, 0) : start].startswith(_ZIP64_LOCATOR)
    return entries <= MAX_ENTRIES and directory_size <= 1024 * MAX_ENTRIES and not zip64
