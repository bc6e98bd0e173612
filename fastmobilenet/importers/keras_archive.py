"""A .keras file: a zip archive with config.json, metadata.json and model.weights.h5."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass

from ..errors import ModelError
from ._text import quote
from .keras_config import MAX_TEXT

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"

#: Keras does not compress. Where another program did, weights shrink by a little, and what is around them by a lot.
MAX_RATIO = 8
MAX_UNPACKED = 16 * 2**20
#: Files in the archive: three, and those of layers for text.
MAX_ENTRIES = 256
_MAX_DIRECTORY = 1024 * MAX_ENTRIES
_END_OF_ARCHIVE = struct.Struct("<4s4H2LH")  # as in section 4.3.16 of PKWARE's APPNOTE
_ZIP64_LOCATOR = b"PK\x06\x07"


@dataclass(frozen=True)
class Archive:
    """The content of the three files."""

    config: bytes
    metadata: bytes
    weights: bytes


def looks_like(data: bytes) -> bool:
    """Whether a zip file is a network of Keras."""
    return bool(_directory_fits(data) and CONFIG in _names(data))


def read(data: bytes) -> Archive:
    """Raises ModelError for an archive that is damaged, incomplete, or unpacks to far more than it holds."""
    if not _directory_fits(data):
        raise ModelError("the zip archive has no directory at its end, or too large a one: the file is damaged")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if WEIGHTS not in entries and any(name.startswith("model.weights.") for name in entries):
                raise ModelError(f"its weights are not in {WEIGHTS}; save it with the default weights_format")
            config = _content(archive, entries, CONFIG, MAX_TEXT)
            metadata = _content(archive, entries, METADATA, MAX_TEXT) if METADATA in entries else b"{}"
            return Archive(config, metadata, _content(archive, entries, WEIGHTS, MAX_UNPACKED + MAX_RATIO * len(data)))
    except (zipfile.BadZipFile, zlib.error, ValueError, RuntimeError, NotImplementedError, EOFError, OSError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"the zip archive is damaged ({quote(str(error))})") from None


def _content(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str, limit: int) -> bytes:
    entry = entries.get(name)
    if entry is None:
        raise ModelError(f"the archive holds no {name}; found {quote(list(entries))}")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ModelError(f"{name} is compressed by method {entry.compress_type}; supported are stored and deflated")
    if entry.file_size > limit:
        raise ModelError(f"{name} claims {entry.file_size} bytes; at most {limit} are read")
    with archive.open(entry) as stream:
        content = stream.read(entry.file_size)
    if len(content) != entry.file_size:
        raise ModelError(f"{name} has {len(content)} bytes, but claims {entry.file_size}")
    return content


def _names(data: bytes) -> list[str]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError):
        return []


def _directory_fits(data: bytes) -> bool:
    """True where a zip archive ends the file and its directory is small. zipfile reads a directory as long as it
    claims to be, so that is looked at first."""
    tail = bytes(data[-(_END_OF_ARCHIVE.size + 0xFFFF) :])
    start = tail.rfind(b"PK\x05\x06")
    if start < 0 or len(tail) - start < _END_OF_ARCHIVE.size:
        return False
    _, _, _, _, entries, size, _, _ = _END_OF_ARCHIVE.unpack_from(tail, start)
    zip64 = tail[max(start - 20, 0) : start].startswith(_ZIP64_LOCATOR)
    return entries <= MAX_ENTRIES and size <= _MAX_DIRECTORY and not zip64
