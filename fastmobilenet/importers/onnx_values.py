"""What the tensors of an ONNX file are in the Graph, and what becomes of them in Reshape, Split and their like.

A Graph has maps of (n, h, w, c) only. ONNX keeps the same values as (n, c, h, w), and flattens, squeezes, transposes,
splits and joins them on the way. Such an operator computes nothing: the tensor still consists of channels of the same
maps, and what changes is which of them, and which axis of the tensor is which axis of a map. That is what
:class:`Value` keeps. A channel shuffle, for one, is three such operators, and only the layer behind them needs the
channels in a map of their own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..graph import Padding, Shape
from .onnx_operator import Operator

NO_PAD = (0, 0, 0, 0)


@dataclass(frozen=True, eq=False)
class Coded:
    """How numbers of a layer are stored: scale * (code - zero). ``scale``, float32, is one, or one for each place along
    ``axis``. ``zero`` is the zero point of all as a byte (int8 has 128 added), None where they differ. ``bias``: the
    codes of a bias themselves, int32 with zero points of 0; those of weights are the numbers / scale, exactly."""

    scale: np.ndarray
    axis: int
    zero: int | None
    bias: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Constant:
    """Numbers that are known when the file is read. ``name`` is that of the initializer or tensor. ``sized``, bools of
    the same shape, says which of them depend on a picture's size that the file leaves open: they are those of the
    default size. None: none of them. ``coded``: how they were stored, if a DequantizeLinear made them."""

    array: np.ndarray
    name: str
    sized: np.ndarray | None = None
    coded: Coded | None = None


@dataclass(frozen=True)
class Pending:
    """What ``operator`` does to a map and the Graph has no node for. The operator that comes next has to do it.

    ``kind`` is "pad": ``pad`` are pixels of the value ``fill`` around the map; or "mean": it is taken over
    ``averaged``, the one of "h" and "w"; or "expand": the one pixel of the map is repeated to the height and width
    ``stretched``.
    """

    kind: str
    operator: Operator
    pad: Padding = NO_PAD
    fill: float = 0.0
    averaged: str = ""
    stretched: tuple[int, int] | None = None


@dataclass(frozen=True, eq=False)
class Value:
    """Channels of maps of the Graph, as a tensor of the file.

    ``nodes`` are the maps, with the number of their channels. Their channels lie one behind the other, and ``channels``
    says which of them the tensor has; None is all, in order. ``axes`` says what each axis of the tensor is: "c" the
    channels, "chw" all of a map in that order, "" an axis of length 1 that is none of the map's. Letters that are in no
    axis have the length 1. Where the channels are in several axes, for example in (n, groups, c / groups, h, w), each
    is a "c", and ``channels`` has an axis for each that is longer than 1, in the same order.

    ``sizes`` are (n, h, w, c) for the file's own picture size. A ``pixel`` is a map of one pixel at every size.
    ``name`` is the tensor's.
    """

    nodes: tuple[tuple[str, int], ...]
    axes: tuple[str, ...]
    sizes: Shape
    name: str
    channels: np.ndarray | None = None
    pixel: bool = False
    pending: Pending | None = None

    @property
    def simple(self) -> bool:
        """Whether it is all of one node's output."""
        return self.channels is None and len(self.nodes) == 1 and self.pending is None

    def size(self, letter: str) -> int:
        """The length of n, h, w or c, after what is pending."""
        n, h, w, c = self.sizes
        if self.pending is not None:
            h, w = self.pending.stretched or (h, w)
            top, bottom, left, right = self.pending.pad
            h, w = h + top + bottom, w + left + right
            if letter in self.pending.averaged:
                return 1
        return {"n": n, "h": h, "w": w, "c": c}[letter]

    def parts(self) -> list[list[tuple[str, int]]]:
        """For each axis the letters in it that are longer than 1, with their lengths."""
        channels = iter((self.sizes[3],) if self.channels is None else self.channels.shape)
        axes = [[(k, next(channels, 1) if k == "c" else self.size(k)) for k in axis] for axis in self.axes]
        return [[(letter, length) for letter, length in axis if length > 1] for axis in axes]

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape."""
        return tuple(math.prod(length for _, length in axis) for axis in self.parts())

    def letters(self) -> list[str]:
        """What the axes are, without what has the length 1."""
        return ["".join(letter for letter, _ in axis) for axis in self.parts()]

    def fits(self, layout: Sequence[str]) -> bool:
        """Whether the tensor has these axes, "nchw" for example. One of length 1 may be any."""
        return len(self.axes) == len(layout) and all(
            found in ("", wanted) for found, wanted in zip(self.letters(), layout, strict=True)
        )

    def channel_axis(self) -> int | None:
        """The axis of the channels; None where they are several, or only a part of an axis."""
        letters = self.letters()
        if self.sizes[3] > 1:
            return letters.index("c") if letters.count("c") == "".join(letters).count("c") == 1 else None
        named = [i for i, axis in enumerate(self.axes) if axis == "c"]
        return next(iter(named + [i for i, found in enumerate(letters) if not found]), None)

    def index(self) -> np.ndarray:
        """``channels``, spelled out."""
        if self.channels is not None:
            return self.channels
        return np.arange(self.sizes[3]) if self.sizes[3] > 1 else np.zeros((), np.int64)

    # --- the same values, seen otherwise ------------------------------------------------------------------

    def transposed(self, order: Sequence[int]) -> Value:
        axes = tuple(self.axes[i] for i in order)
        if self.channels is None:
            return replace(self, axes=axes)
        counts = [axis.count("c") for axis in self.letters()]
        places = [range(sum(counts[:i]), sum(counts[: i + 1])) for i in order]
        return replace(self, axes=axes, channels=self.channels.transpose([k for place in places for k in place]))

    def reshaped(self, shape: Sequence[int]) -> Value | None:
        """The tensor with another shape of as many elements. Axes may be joined; only those of channels may be cut in
        pieces, else None. Axes of length 1 come and go."""
        left = [part for axis in self.parts() for part in axis]
        axes: list[str] = []
        lengths: list[int] = []  # of the parts of the channels
        for length in shape:
            axis, done = "", 1
            while left and done < length:
                letter, size = left.pop(0)
                wanted = length // done
                if size > wanted:
                    if letter != "c" or size % wanted:
                        return None
                    left.insert(0, ("c", size // wanted))
                    size = wanted
                if letter == "c" and axis.endswith("c"):
                    lengths[-1] *= size
                else:
                    axis += letter
                    lengths += [size] * (letter == "c")
                done *= size
            if done != length:
                return None
            axes.append(axis)
        if left:
            return None
        same = self.channels is None and len(lengths) < 2
        channels = None if same else self.index().reshape(lengths)
        return replace(self, axes=axes_named(axes, self.axes), channels=channels)

    def without(self, axes: Sequence[int]) -> Value:
        """Without these axes of length 1."""
        return replace(self, axes=axes_named([a for i, a in enumerate(self.axes) if i not in axes]))

    def with_axes(self, axes: Sequence[int]) -> Value:
        """With these further axes of length 1, counted in the new tensor."""
        found = list(self.axes)
        for axis in sorted(axes):
            found.insert(axis, "")
        return replace(self, axes=axes_named(found))

    # --- some of the channels -----------------------------------------------------------------------------

    def chosen(self, axis: int, which: Any) -> Value | None:
        """What ``which``, an index of NumPy, takes along an axis of channels; None if the axis is another one. A number
        takes the axis away."""
        opened = self._opened(axis)
        if opened is None:
            return None
        channels, k = opened
        taken = channels[(slice(None),) * k + (which,)]
        if taken.ndim < channels.ndim:
            return self._of(taken, axis, 1).without([axis])
        return self._of(taken, axis, taken.shape[k])

    def _opened(self, axis: int) -> tuple[np.ndarray, int] | None:
        """The channels with an axis for this one of the tensor too, and its number; None if it is not of channels."""
        letters = self.letters()
        fixed = "hw" if self.pixel else ""  # else it has the length 1 only by chance
        if letters[axis] not in ("", "c") or set(self.axes[axis]) - set("c" + fixed):
            return None
        k = "".join(letters[:axis]).count("c")
        return (self.index() if letters[axis] else np.expand_dims(self.index(), k)), k

    def _of(self, channels: np.ndarray, axis: int, length: int) -> Value:
        """The tensor with other channels, which are ``length`` along ``axis``."""
        axes = ["" if a == "c" and not found else a for a, found in zip(self.axes, self.letters(), strict=True)]
        axes[axis] = "c" if length > 1 else ""
        channels = channels.reshape([size for size in channels.shape if size > 1])
        return replace(self, axes=axes_named(axes), sizes=(*self.sizes[:3], channels.size), channels=channels)


def concatenated(values: Sequence[Value], axis: int) -> Value | None:
    """Tensors that are joined along an axis of channels. None where that is another one, or where they differ in their
    other axes."""
    first = values[0]
    nodes = tuple(node for v in values for node in v.nodes)
    joined = replace(first, nodes=nodes, pixel=all(v.pixel for v in values))
    alike = all(v.channels is None and v.axes == first.axes and v.sizes[:3] == first.sizes[:3] for v in values)
    if alike and first.axes[axis] == "c":
        return replace(joined, sizes=(*first.sizes[:3], sum(v.sizes[3] for v in values)))
    others = [[part for i, part in enumerate(v.parts()) if i != axis] for v in values]
    if any(len(v.axes) != len(first.axes) or found != others[0] for v, found in zip(values, others, strict=True)):
        return None
    parts, start, k = [], 0, 0
    for value in values:
        opened = value._opened(axis)
        if opened is None:
            return None
        channels, k = opened
        parts.append(channels + start)
        start += sum(count for _, count in value.nodes)
    channels = np.concatenate(parts, k)
    return joined._of(channels, axis, channels.shape[k])


def axes_named(axes: Sequence[str], before: Sequence[str] = ()) -> tuple[str, ...]:
    """The axes with names for those of length 1 that are none: the usual ones, if they fit."""
    several = max("".join(axes).count("c"), 1)
    for layout in (tuple(before), tuple("nchw"), tuple("nhwc"), tuple("nc")):
        fits = len(layout) == len(axes) and all(axis in ("", name) for axis, name in zip(axes, layout, strict=True))
        if fits and "".join(layout).count("c") <= several:
            return layout
    return tuple(axes)
