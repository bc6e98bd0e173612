"""What the tensors of an ONNX file are in the Graph, and what becomes of them in Reshape, Transpose and their like.

A Graph has maps of (n, h, w, c) only. ONNX keeps the same values as (n, c, h, w), and flattens, squeezes and transposes
them on the way. As long as such an operator only renames axes, it computes nothing: the tensor stays the same map, and
what changes is which axis of the tensor is which axis of the map. That is what :class:`Value` keeps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..graph import Padding, Shape
from .onnx_schema import Operator

NO_PAD = (0, 0, 0, 0)


@dataclass(frozen=True)
class Constant:
    """Numbers that are known when the file is read. ``name`` is that of the initializer or tensor. ``sized`` says that
    they depend on the picture's size, which the file leaves open: they are those of the default size."""

    array: np.ndarray
    name: str
    sized: bool = False


@dataclass(frozen=True)
class Value:
    """A map of the Graph, as a tensor of the file.

    ``axes`` says what each axis of the tensor is: "c" the channels, "chw" all of a map in that order, "" an axis of
    length 1 that is none of the map's. The letters that are in no axis have the length 1. ``sizes`` are the map's
    (n, h, w, c) for the file's own picture size.

    ``pad`` are zeros around the map that are not yet added, ``averaged`` the one of "h" and "w" over which a mean was
    already taken; the operator that did it is ``pending``. Who reads such a value has to finish that.
    """

    node: str
    axes: tuple[str, ...]
    sizes: Shape
    pad: Padding = NO_PAD
    averaged: str = ""
    pending: Operator | None = None

    def size(self, letters: str) -> int:
        """The length of an axis of these letters."""
        n, h, w, c = self.sizes
        top, bottom, left, right = self.pad
        known = {"n": n, "h": h + top + bottom, "w": w + left + right, "c": c}
        return math.prod(1 if letter in self.averaged else known[letter] for letter in letters)

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(self.size(axis) for axis in self.axes)

    def letters(self, axis: int) -> str:
        """What an axis is, without what has the length 1."""
        return "".join(letter for letter in self.axes[axis] if self.size(letter) > 1)

    def fits(self, layout: Sequence[str]) -> bool:
        """Whether the tensor has these axes, "nchw" for example. One of length 1 may be any."""
        return len(self.axes) == len(layout) and all(self.letters(i) in ("", name) for i, name in enumerate(layout))

    def channel_axis(self) -> int | None:
        """The axis of the channels; None where they are only a part of an axis."""
        wanted = "c" if self.size("c") > 1 else ""
        exact = [i for i, axis in enumerate(self.axes) if axis == "c"]
        same = [i for i in range(len(self.axes)) if self.letters(i) == wanted]
        return next(iter(exact + same), None)

    def reshaped(self, shape: Sequence[int]) -> Value | None:
        """The tensor with another shape of as many elements; None where an axis would be cut in pieces.

        The axes longer than 1 keep their order, several may become one, and axes of length 1 come and go.
        """
        left = [letter for axis in self.axes for letter in axis if self.size(letter) > 1]
        axes = []
        for length in shape:
            axis = ""
            while left and self.size(axis) < length:
                axis += left.pop(0)
            if self.size(axis) != length:
                return None
            axes.append(axis)
        return None if left else replace(self, axes=axes_named(axes, self.axes))

    def transposed(self, order: Sequence[int]) -> Value:
        return replace(self, axes=tuple(self.axes[i] for i in order))


def axes_named(axes: Sequence[str], before: Sequence[str] = ()) -> tuple[str, ...]:
    """The axes with names for those of length 1 that are none: the usual ones, if they fit."""
    for layout in (tuple(before), tuple("nchw"), tuple("nhwc"), tuple("nc")):
        if len(layout) == len(axes) and all(axis in ("", name) for axis, name in zip(axes, layout, strict=True)):
            return layout
    return tuple(axes)
