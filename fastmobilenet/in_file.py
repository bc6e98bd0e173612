"""Weights of bytes that stay in their file.

The kernels have their own, packed; the plain ones are needed only to save a Model again. An .fmn file is mapped while
it is loaded, and what is kept of it here are places. When the arrays are wanted, the file is read as a whole and
compared with its checksum. A view of the mapped file would show, unnoticed, what somebody writes into the file later,
and the operating system ends a process that reads a page which was cut off (SIGBUS).
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from .errors import ModelError


class Source:
    """An open file, whose name may by now be that of another one. ``check`` raises ModelError for bytes that are not
    those that were loaded."""

    def __init__(self, handle: int, size: int, name: str, check: Callable[[bytes], None]) -> None:
        self._handle = os.dup(handle)
        weakref.finalize(self, os.close, self._handle)
        self._size, self._name, self._check = size, name, check

    def read(self) -> bytes:
        """The whole file. Raises ModelError where it is not any more what was loaded."""
        parts, position = [], 0
        try:
            # pread leaves the position alone, which forked processes share.
            while part := os.pread(self._handle, self._size - position, position):
                parts.append(part)
                position += len(part)
        except OSError as error:
            why = error.strerror or error
            raise ModelError(f"{self._name}: the weights of this model cannot be read again: {why}") from None
        data = b"".join(parts)  # of one part: that part
        try:
            self._check(data)
        except ModelError:
            raise ModelError(
                f"{self._name} was changed in place after it was loaded, and had the only copy of this model's weights "
                "that can be saved; the model runs as before. Load the file again"
            ) from None
        return data


class Place(NamedTuple):
    """Where an array lies in a file."""

    source: Source
    offset: int  # bytes
    shape: tuple[int, ...]
    dtype: np.dtype


#: By the mapped file: the address where it begins, and the file itself.
_sources: weakref.WeakKeyDictionary[mmap.mmap, tuple[int, Source]] = weakref.WeakKeyDictionary()


def register(data: mmap.mmap, handle: int, name: str, check: Callable[[bytes], None]) -> None:
    """Let the arrays that are views of ``data``, the mapped file ``handle``, be kept as places."""
    if hasattr(os, "pread"):  # Windows has none, and cuts off no file that is mapped
        _sources[data] = _address(np.frombuffer(data, np.uint8)), Source(handle, len(data), name, check)


def keep(params: Mapping[str, np.ndarray]) -> dict[str, np.ndarray | Place]:
    """The arrays of a node, as places in the file of which they are views; any other array as it is."""
    return {name: _keep(array) for name, array in params.items()}


class Reader:
    """Gives kept arrays back; each file is read once. The arrays may not be written to."""

    def __init__(self) -> None:
        self._files: dict[Source, bytes] = {}

    def arrays(self, kept: Mapping[str, np.ndarray | Place]) -> dict[str, np.ndarray]:
        """What :func:`keep` was given. Raises ModelError where the file has changed."""
        return {name: self._array(v) if isinstance(v, Place) else v for name, v in kept.items()}

    def _array(self, place: Place) -> np.ndarray:
        if place.source not in self._files:
            self._files[place.source] = place.source.read()
        count = int(np.prod(place.shape))
        data = np.frombuffer(self._files[place.source], place.dtype, count, place.offset)
        return data.reshape(place.shape)


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _keep(array: np.ndarray) -> np.ndarray | Place:
    owner: object = array
    while isinstance(owner, np.ndarray):
        owner = owner.base
    if isinstance(owner, memoryview):
        owner = owner.obj
    if not isinstance(owner, mmap.mmap) or owner not in _sources:
        return array
    if not array.flags.c_contiguous:
        return array.copy()
    start, source = _sources[owner]
    return Place(source, _address(array) - start, array.shape, array.dtype)
