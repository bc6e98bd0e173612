"""Checks of what callers give: whole numbers, sizes of pictures, arrays. Errors name the argument."""

from __future__ import annotations

import operator
import reprlib
import sys
from collections.abc import Mapping, Set
from typing import Any

import numpy as np
import numpy.typing as npt


def whole(value: Any) -> int | None:
    """A whole number of any type that is one, NumPy's included, as int. None for all else: truth values too."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def check_count(name: str, value: Any) -> int:
    """A whole number from 1 on. Raises TypeError and ValueError that begin with ``name``."""
    count = whole(value)
    if count is None:
        raise TypeError(f"{name} must be a whole number, not {reprlib.repr(value)}")
    if count < 1:
        raise ValueError(f"{name} must be at least 1, not {count}")
    return count


def check_size(size: Any) -> tuple[int, int]:
    """One whole number, or a pair -> (height, width), both at least 1. Raises TypeError and ValueError."""
    side = whole(size)
    sides: list[int | None] = [side, side]
    if side is None:
        # A set has no order, and a mapping gives its keys.
        ordered = np.iterable(size) and not isinstance(size, (Set, Mapping))
        sides = [whole(v) for v in size] if ordered else []
    h, w = sides if len(sides) == 2 else (None, None)
    if h is None or w is None:
        raise TypeError(f"size must be one whole number or (height, width), not {reprlib.repr(size)}")
    if h < 1 or w < 1:
        raise ValueError(f"size must be positive, not {reprlib.repr(size)}")
    return h, w


def plain(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array as one of NumPy's base class, without a copy. Raises TypeError for a masked array: the values under
    a mask mean nothing, and a network has no way to leave them out."""
    masked = sys.modules.get("numpy.ma")  # np.ma would import it: 10 ms, and without it nobody has a masked array
    if masked is not None and isinstance(array, masked.MaskedArray):
        raise TypeError(
            f"expected an array without a mask, got a masked {array.dtype} array of shape {array.shape}; "
            "say what stands for the masked values: x.filled(0)"
        )
    return np.asarray(array)


def counted(count: int, noun: str) -> str:
    """A number and its noun: 1 thread, 2 threads, 10 classes."""
    return f"{count} {noun}" + ("" if count == 1 else "es" if noun.endswith("s") else "s")
