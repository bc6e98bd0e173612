"""Float buffers that end (or begin) at an unmapped page, so that any access beyond them is a crash."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE


class Guarded:
    """Makes arrays whose last float is the last of a mapped page; keeps the mappings alive."""

    def __init__(self) -> None:
        self._maps: list[mmap.mmap] = []
        self._libc = ctypes.CDLL(None, use_errno=True)

    def floats(self, count: int, values: np.ndarray | None = None, *, at_start: bool = False) -> np.ndarray:
        """A float32 array of ``count`` elements that ends at an unmapped page, or with ``at_start`` begins
        after one. Filled with ``values`` or NaN."""
        inner = -(-max(count * 4, 1) // PAGE) * PAGE
        mapping = mmap.mmap(-1, inner + 2 * PAGE)
        self._maps.append(mapping)
        base = ctypes.addressof(ctypes.c_char.from_buffer(mapping))
        for page in (base, base + PAGE + inner):
            if self._libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(PAGE), 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect failed")
        start = PAGE if at_start else PAGE + inner - count * 4
        array = np.frombuffer(mapping, np.float32, count, start)
        array[:] = np.nan if values is None else values.ravel()
        return array
