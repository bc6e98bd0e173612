"""Axes, shapes and bounds as operators give them: as attributes, or as constant inputs since some version.

``values`` are an operator's constant inputs, None for one that is left out or not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from ._text import quote
from .onnx_operator import Operator
from .onnx_tensors import MAX_RANK


def integers(operator: Operator, k: int, values: Sequence[Any]) -> list[int] | None:
    """Constant input ``k`` as whole numbers: axes, a shape. None where it is left out."""
    array = values[k] if k < len(values) else None
    if array is None:
        return None
    if array.dtype.kind not in "iu" or array.size > 64 or array.ndim > 1:
        operator.fail(f"input {k} should be a few whole numbers, not {array.dtype} of shape {list(array.shape)}")
    return [int(v) for v in array.reshape(-1)]


def axes_of(operator: Operator, since: int, values: Sequence[Any]) -> list[int] | None:
    """The axes: an attribute before opset ``since``, the second input from there on."""
    return integers(operator, 1, values) if operator.opset >= since else operator.integers("axes")


def positive_axes(operator: Operator, axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from the first one. Raises ModelError for one that is not there, or twice."""
    found = [a + rank if a < 0 else a for a in axes]
    if any(not 0 <= a < rank for a in found) or len(set(found)) != len(found):
        operator.fail(f"the axes {list(axes)} are not axes of a tensor of rank {rank}")
    return found


def axis_of(operator: Operator, rank: int, default: int = 0) -> int:
    return positive_axes(operator, [operator.integer("axis", default)], rank)[0]


def target_shape(operator: Operator, wanted: Sequence[int], shape: Sequence[int]) -> list[int]:
    """The shape that a Reshape of a tensor of ``shape`` to ``wanted`` gives: 0 keeps an axis, -1 takes the rest."""
    keeps = not operator.integer("allowzero")
    dims = [shape[i] if d == 0 and keeps and i < len(shape) else d for i, d in enumerate(wanted)]
    rest = math.prod(d for d in dims if d != -1)
    if dims.count(-1) == 1 and rest > 0:
        dims[dims.index(-1)] = math.prod(shape) // rest
    if any(d < 0 for d in dims) or math.prod(dims) != math.prod(shape) or len(dims) > MAX_RANK:
        operator.fail(f"a tensor of shape {list(shape)} cannot have the shape {list(wanted)}")
    return dims


def flat_shape(operator: Operator, shape: Sequence[int]) -> list[int]:
    """The shape that Flatten gives."""
    axis = operator.integer("axis", 1)
    if not -len(shape) <= axis <= len(shape):
        operator.fail(f"axis {axis} is no axis of a tensor of rank {len(shape)}")
    axis = axis + len(shape) if axis < 0 else axis
    return [math.prod(shape[:axis]), math.prod(shape[axis:])]


def squeezed_axes(operator: Operator, values: Sequence[Any], shape: Sequence[int]) -> list[int]:
    """The axes that Squeeze takes away from a tensor of ``shape``."""
    axes = axes_of(operator, 13, values)
    if axes is None:
        return [i for i, d in enumerate(shape) if d == 1]
    axes = positive_axes(operator, axes, len(shape))
    if any(shape[a] != 1 for a in axes):
        operator.fail(f"cannot take the axes {axes} away from the shape {list(shape)}")
    return axes


def unsqueezed_axes(operator: Operator, values: Sequence[Any], rank: int) -> list[int]:
    """The axes of the output that Unsqueeze adds to a tensor of ``rank``."""
    axes = axes_of(operator, 13, values)
    if axes is None:
        operator.fail("it names no axes")
    return positive_axes(operator, axes, rank + len(axes))


def order_of(operator: Operator, rank: int) -> list[int]:
    """The order in which Transpose puts the axes."""
    order = operator.integers("perm") or list(reversed(range(rank)))
    if sorted(order) != list(range(rank)):
        operator.fail(f"perm {order} does not fit a tensor of rank {rank}")
    return order


def shape_slice(operator: Operator, shape: Sequence[int]) -> list[int]:
    """The output of Shape: from opset 15 on it may be a part of the shape."""
    return list(shape)[operator.integer("start") : operator.integer("end", MAX_RANK)]


def cuts(operator: Operator, values: Sequence[Any], shape: Sequence[int]) -> dict[int, range]:
    """Slice: for each axis that it names, what it takes of it, within the bounds of the axis."""
    if operator.opset < 10:
        starts, ends, axes = (operator.integers(key) for key in ("starts", "ends", "axes"))
        steps = None
    else:
        starts, ends, axes, steps = (integers(operator, k, values) for k in (1, 2, 3, 4))
    if starts is None or ends is None:
        operator.fail("it has no starts and ends")
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps) or 0 in steps:
        operator.fail(f"starts {starts}, ends {ends}, axes {axes} and steps {steps} do not fit each other")
    axes = positive_axes(operator, axes, len(shape))
    return {a: range(shape[a])[s:e:k] for a, s, e, k in zip(axes, starts, ends, steps, strict=True)}


def split_parts(operator: Operator, values: Sequence[Any], length: int, count: int) -> list[range]:
    """Split: which elements of an axis of ``length`` each of the ``count`` outputs has."""
    sizes = integers(operator, 1, values) if operator.opset >= 13 else operator.integers("split")
    if sizes is None:
        count = operator.integer("num_outputs", count)
        if not 0 < count <= length:
            operator.fail(f"{length} elements cannot be split into {count} parts")
        size = -(-length // count)
        sizes = [size] * (count - 1) + [length - size * (count - 1)]
        if operator.opset < 18 and length % count:
            operator.fail(f"{length} elements cannot be split into {count} equal parts")
    return consecutive(operator, sizes, length)


def consecutive(operator: Operator, sizes: Sequence[int], length: int) -> list[range]:
    """Parts of these sizes, which together are all of an axis."""
    if min(sizes, default=0) < 1 or sum(sizes) != length:
        operator.fail(f"{length} elements cannot be split into parts of {quote(list(sizes))}")
    ends = list(accumulate(sizes))
    return [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]
