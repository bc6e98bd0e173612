"""ONNX operators that compute nothing: their output is another view of their inputs, a Value with other axes or other
channels. They make no node; see onnx_values.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..graph import MAX_INPUTS
from . import onnx_shapes as shapes
from .onnx_operator import Operator
from .onnx_tensors import FLOATS, dtype_name
from .onnx_translation import ANY_PENDING, Tensor, Translation
from .onnx_values import Constant, Pending, Value, concatenated

# --- the same channels ----------------------------------------------------------------------------------


def identity(t: Translation, operator: Operator) -> Tensor:
    found = t.tensor(operator, 0)
    return found if isinstance(found, tuple) else t.view(operator, pending=ANY_PENDING, codes=True)


def cast(t: Translation, operator: Operator) -> Value:
    if operator.integer("to") not in FLOATS:
        operator.fail(f"a cast of maps to {dtype_name(operator.integer('to'))} is not supported; to floats it is")
    return t.view(operator, pending=ANY_PENDING)


def cast_like(t: Translation, operator: Operator) -> Tensor:
    found = t.tensor(operator, 0)
    if isinstance(found, Constant):  # and what it is to be like is a map of floats
        return replace(found, array=found.array.astype(np.float32))
    return t.view(operator, pending=ANY_PENDING)


def dropout(t: Translation, operator: Operator) -> Value:
    if operator.opset >= 12 and t.scalar(operator, 2):
        operator.fail("it is in training mode; export the network in evaluation mode")
    return t.view(operator, pending=ANY_PENDING, codes=True)


def transpose(t: Translation, operator: Operator) -> Value:
    x = t.view(operator, pending=ANY_PENDING, codes=True)
    return x.transposed(shapes.order_of(operator, len(x.axes)))


def reshape(t: Translation, operator: Operator) -> Value:
    x, shape = t.view(operator, codes=True), t.tensor(operator, 1)
    if not isinstance(shape, Constant):
        operator.fail("its shape must be a constant")
    # It may depend on the picture's size: what counts is what becomes of the axes.
    wanted = shapes.integers(operator, 1, [None, shape.array]) or []
    return _reshaped(t, operator, x, shapes.target_shape(operator, wanted, x.shape))


def flatten(t: Translation, operator: Operator) -> Value:
    x = t.view(operator, codes=True)
    return _reshaped(t, operator, x, shapes.flat_shape(operator, x.shape))


def _reshaped(t: Translation, operator: Operator, x: Value, shape: list[int]) -> Value:
    t.charge(x)
    reshaped = x.reshaped(shape)
    if reshaped is None:
        operator.fail(
            f"it turns {list(x.shape)} into {shape}; supported is to join axes, to take channels apart, and to add and "
            "remove axes of length 1"
        )
    return reshaped


def squeeze(t: Translation, operator: Operator) -> Value:
    x = t.view(operator, codes=True)
    return x.without(shapes.squeezed_axes(operator, t.parameters(operator), x.shape))


def unsqueeze(t: Translation, operator: Operator) -> Value:
    x = t.view(operator, codes=True)
    return x.with_axes(shapes.unsqueezed_axes(operator, t.parameters(operator), len(x.axes)))


def shape(t: Translation, operator: Operator) -> Constant:
    x = t.view(operator, pending=ANY_PENDING, codes=True)
    open_axes = [t.dynamic and _spatial(x, axis) for axis in range(len(x.axes))]
    dims, sized = (np.array(shapes.shape_slice(operator, values)) for values in (x.shape, open_axes))
    return Constant(dims.astype(np.int64), operator.outputs[0], sized.astype(bool) if any(open_axes) else None)


def _spatial(x: Value, axis: int) -> bool:
    """Whether the axis has another length for pictures of other sizes."""
    return not x.pixel and not set("hw").isdisjoint(x.axes[axis])


def expand(t: Translation, operator: Operator) -> Value:
    x, wanted = t.view(operator, codes=True), t.tensor(operator, 1)
    if not isinstance(wanted, Constant):
        operator.fail("its shape must be a constant")
    target = shapes.integers(operator, 1, [None, wanted.array]) or []
    if len(target) > len(x.axes):
        x = x.with_axes(range(len(target) - len(x.axes)))
    stretched = {"h": x.sizes[1], "w": x.sizes[2]}
    for axis, length in enumerate(target, len(x.axes) - len(target)):
        if length in (1, x.shape[axis]):
            continue
        if x.shape[axis] != 1 or x.axes[axis] not in stretched:
            operator.fail(f"it repeats {list(x.shape)} to {target}; supported is to repeat one pixel")
        stretched[x.axes[axis]] = length
    size = (stretched["h"], stretched["w"])
    return x if size == x.sizes[1:3] else replace(x, pending=Pending("expand", operator, stretched=size))


# --- some of the channels -------------------------------------------------------------------------------


def concat(t: Translation, operator: Operator) -> Value:
    views = [t.view(operator, k, codes=True) for k in range(len(operator.inputs))]
    if not views:
        operator.fail("it has no inputs")
    if sum(len(v.nodes) for v in views) > MAX_INPUTS:
        views = [t.whole(v) for v in views]
    elif any(v.channels is not None for v in views) and len({frozenset(v.nodes) for v in views}) > 1:
        # Each unit of a ShuffleNet joins half of the channels of the one before with new ones. That half gets a map of
        # its own, or else the last unit would read from all.
        views = [v if v.channels is None else t.whole(v) for v in views]
    axis = shapes.axis_of(operator, len(views[0].axes))
    for view in views:
        t.charge(view)
    joined = concatenated(views, axis)
    if joined is None:
        found = ", ".join(str(list(v.shape)) for v in views[:5])
        operator.fail(f"it joins {found} along axis {axis}; supported are maps of one size, along their channels")
    return joined


def split(t: Translation, operator: Operator) -> list[Tensor]:
    x = t.view(operator, codes=True)
    axis = shapes.axis_of(operator, len(x.axes))
    parts = shapes.split_parts(operator, t.parameters(operator), x.shape[axis], len(operator.outputs))
    return [_chosen(t, operator, x, axis, part) for part in parts]


def split_to_sequence(t: Translation, operator: Operator) -> Tensor:
    x = t.view(operator, codes=True)
    axis = shapes.axis_of(operator, len(x.axes))
    length, sizes = x.shape[axis], t.integers(operator, 1)
    keeps = sizes is not None or operator.integer("keepdims", 1)
    given = t.constant(operator, 1)
    if sizes is None or given is None or given.array.ndim == 0:
        size = 1 if sizes is None else sizes[0]
        if not 0 < size <= length or length > MAX_INPUTS * size:
            operator.fail(f"{length} elements cannot be split into parts of {size}")
        sizes = [min(size, length - start) for start in range(0, length, size)]
    parts = shapes.consecutive(operator, sizes, length)
    return tuple(_chosen(t, operator, x, axis, part if keeps else part.start) for part in parts)


def sequence_at(t: Translation, operator: Operator) -> Tensor:
    found, place = t.tensor(operator, 0), t.integers(operator, 1)
    if not isinstance(found, tuple):
        operator.fail("input 0 is no sequence")
    if not place or not -len(found) <= place[0] < len(found):
        operator.fail(f"it takes the element {place} of {len(found)}")
    return found[place[0]]


def slice_(t: Translation, operator: Operator) -> Value:
    x, values = t.view(operator, codes=True), t.parameters(operator)
    # A map of an open size is not cut, unless it is so at the default size by chance.
    larger = [d + (t.dynamic and _spatial(x, axis)) for axis, d in enumerate(x.shape)]
    for axis, taken in shapes.cuts(operator, values, larger).items():
        if taken != range(larger[axis]):
            x = _chosen(t, operator, x, axis, taken)
    return x


def gather(t: Translation, operator: Operator) -> Value:
    x, indices = t.view(operator, codes=True), t.constant(operator, 1)
    axis = shapes.axis_of(operator, len(x.axes))
    if indices is None or indices.array.dtype.kind not in "iu" or indices.array.ndim > 1:
        operator.fail("its indices must be a whole number or a list of such")
    length = x.shape[axis]
    t.file.allowance.take(indices.array.size)
    which = indices.array.astype(np.int64)
    if ((which < -length) | (which >= length)).any():
        operator.fail(f"it takes elements of axis {axis} that {list(x.shape)} does not have")
    return _chosen(t, operator, x, axis, which if which.ndim else int(which))


def _chosen(t: Translation, operator: Operator, x: Value, axis: int, which: Any) -> Value:
    """Some of the channels; ``which`` is a number, a range or an array."""
    if not isinstance(which, int) and not len(which):
        operator.fail(f"it takes nothing of axis {axis} of {list(x.shape)}")
    t.charge(x)
    if isinstance(which, range):
        which = np.array(which)
    found = x.chosen(axis, which)
    if found is None:
        operator.fail(f"it takes a part of axis {axis} of {list(x.shape)}; supported are some of the channels")
    return found
