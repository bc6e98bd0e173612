"""Operators all of whose inputs are known when the file is read: their output is computed here.

Exporters leave two kinds of them in a file: weights that are transposed or cast, and the arithmetic by which a graph
finds the shape for a Reshape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ModelError
from .onnx_schema import OnnxFile, Operator
from .onnx_tensors import BFLOAT16, DTYPES, MAX_RANK, dtype_name
from .onnx_values import Constant

#: An operator on the values of its inputs, None for one that is left out.
Fold = Callable[[OnnxFile, Operator, Sequence[Any]], np.ndarray]


def can_fold(operator: Operator) -> bool:
    return operator.kind in _FOLD


def fold(file: OnnxFile, operator: Operator, inputs: Sequence[Constant | None]) -> Constant:
    """The output of the operator. What it computes with the rounding and overflow of its own types."""
    given = [c for c in inputs if c is not None]
    needed = inputs[: _NEEDED.get(operator.kind, 1)]
    if len(needed) < _NEEDED.get(operator.kind, 1) or any(c is None for c in needed):
        operator.fail("an input is missing")
    file.allowance.take(sum(c.array.size for c in given))
    try:
        with np.errstate(all="ignore"):
            array = _FOLD[operator.kind](file, operator, [None if c is None else c.array for c in inputs])
    except ModelError:
        raise
    except (ValueError, IndexError, TypeError, OverflowError, ArithmeticError) as error:
        operator.fail(f"its constant inputs do not fit it: {error}")
    if array.ndim > MAX_RANK:
        operator.fail(f"its output has rank {array.ndim}; at most {MAX_RANK} is read")
    # Weights that are only laid out anew are still those of the file: errors name them so.
    name = given[0].name if given and operator.kind in _SAME_VALUES else operator.outputs[0]
    return Constant(array, name, any(c.sized for c in given))


def integers(operator: Operator, k: int, values: Sequence[Any]) -> list[int] | None:
    """Constant input ``k`` as whole numbers: axes, a shape. None where it is left out."""
    array = values[k] if k < len(values) else None
    if array is None:
        return None
    if array.dtype.kind not in "iu" or array.size > 64 or array.ndim > 1:
        operator.fail(f"input {k} should be a few whole numbers, not {array.dtype} of shape {list(array.shape)}")
    return [int(v) for v in array.reshape(-1)]


def axes_of(operator: Operator, opset: int, since: int, values: Sequence[Any]) -> list[int] | None:
    """The axes: an attribute up to opset ``since``, the second input from there on."""
    return integers(operator, 1, values) if opset >= since else operator.integers("axes")


def positive_axes(operator: Operator, axes: Sequence[int], rank: int) -> list[int]:
    """Axes counted from the first one, in order. Raises ModelError for one that is not there, or twice."""
    found = sorted(a + rank if a < 0 else a for a in axes)
    if any(not 0 <= a < rank for a in found) or len(set(found)) != len(found):
        operator.fail(f"the axes {list(axes)} are not axes of a tensor of rank {rank}")
    return found


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


def squeezed_axes(operator: Operator, opset: int, values: Sequence[Any], shape: Sequence[int]) -> list[int]:
    """The axes that Squeeze takes away from a tensor of ``shape``."""
    axes = axes_of(operator, opset, 13, values)
    if axes is None:
        return [i for i, d in enumerate(shape) if d == 1]
    axes = positive_axes(operator, axes, len(shape))
    if any(shape[a] != 1 for a in axes):
        operator.fail(f"cannot take the axes {axes} away from the shape {list(shape)}")
    return axes


def unsqueezed_axes(operator: Operator, opset: int, values: Sequence[Any], rank: int) -> list[int]:
    """The axes of the output that Unsqueeze adds to a tensor of ``rank``."""
    axes = axes_of(operator, opset, 13, values)
    if axes is None:
        operator.fail("it names no axes")
    return positive_axes(operator, axes, rank + len(axes))


def shape_slice(operator: Operator, shape: Sequence[int]) -> list[int]:
    """The output of Shape: from opset 15 on it may be a part of the shape."""
    return list(shape)[operator.integer("start") : operator.integer("end", MAX_RANK)]


# --- operators ------------------------------------------------------------------------------------------


def _constant(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> np.ndarray:
    tensor = operator.tensor("value")
    if tensor is not None:
        return file.read(tensor, str(operator))
    if operator.has("value_int"):
        return np.array(operator.integer("value_int"), np.int64)
    if operator.has("value_float"):
        return np.array(operator.number("value_float"), np.float32)
    if (whole := operator.integers("value_ints")) is not None:
        return np.array(whole, np.int64)
    numbers = operator.numbers("value_floats")
    if numbers is None:
        operator.fail("its value is none of value, value_int, value_ints, value_float and value_floats")
    return np.array(numbers, np.float32)


def _constant_of_shape(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> np.ndarray:
    shape = integers(operator, 0, values) or []
    if any(d < 0 for d in shape) or len(shape) > MAX_RANK:
        operator.fail(f"its output would have the shape {shape}")
    file.allowance.take(math.prod(shape))
    tensor = operator.tensor("value")
    value = np.zeros(1, np.float32) if tensor is None else file.read(tensor, str(operator))
    if value.size != 1:
        operator.fail(f"its value must be one number, not {value.size}")
    return np.full(shape, value.reshape(-1)[0])


def _cast(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> np.ndarray:
    kind = operator.integer("to")
    if kind not in DTYPES or kind == BFLOAT16:
        operator.fail(f"a cast of constants to {dtype_name(kind)} is not supported")
    cast: np.ndarray = values[0].astype(DTYPES[kind])
    return cast


def _reshape(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> np.ndarray:
    wanted = integers(operator, 1, values)
    if wanted is None:
        operator.fail("it has no shape")
    reshaped: np.ndarray = values[0].reshape(target_shape(operator, wanted, values[0].shape))
    return reshaped


def _squeeze(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> np.ndarray:
    data: np.ndarray = values[0]
    return np.squeeze(data, tuple(squeezed_axes(operator, file.opset, values, data.shape)))


def _unsqueeze(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> np.ndarray:
    return np.expand_dims(values[0], tuple(unsqueezed_axes(operator, file.opset, values, values[0].ndim)))


def _gather(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> np.ndarray:
    data, indices = values[0], values[1]
    axis = operator.integer("axis")
    file.allowance.take(indices.size * data.size // max(data.shape[axis], 1))
    taken: np.ndarray = np.take(data, indices, axis)
    return taken


def _slice(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> np.ndarray:
    data: np.ndarray = values[0]
    if file.opset < 10:
        starts, ends, axes = (operator.integers(key) for key in ("starts", "ends", "axes"))
        steps = None
    else:
        starts, ends, axes, steps = (integers(operator, k, values) for k in (1, 2, 3, 4))
    if starts is None or ends is None:
        operator.fail("it has no starts and ends")
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    positive_axes(operator, axes, data.ndim)
    cut = [slice(None)] * data.ndim
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(start, end, step)
    part: np.ndarray = data[tuple(cut)]
    return part


def _reduce_prod(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> np.ndarray:
    axes = axes_of(operator, file.opset, 18, values)
    data: np.ndarray = values[0]
    along = tuple(range(data.ndim) if axes is None else positive_axes(operator, axes, data.ndim))
    keepdims = bool(operator.integer("keepdims", 1))
    product: np.ndarray = np.asarray(np.prod(data, axis=along, dtype=data.dtype, keepdims=keepdims))
    return product


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whole numbers are divided as C does it: towards zero."""
    if a.dtype.kind == "f":
        return np.asarray(a / b)
    if not b.all():
        raise ZeroDivisionError("a whole number is divided by 0")
    rounded_up = (a % b != 0) & ((a < 0) != (b < 0))
    return np.asarray(a // b + rounded_up)


def _of_two(compute: Callable[[Any, Any], Any]) -> Fold:
    def run(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> np.ndarray:
        result: np.ndarray = values[0]
        for value in values[1:]:
            if value is None or value.dtype != result.dtype:
                operator.fail("its constant inputs must all be there, and of one type")
            file.allowance.take(math.prod(np.broadcast_shapes(result.shape, value.shape)))
            result = np.asarray(compute(result, value), result.dtype)
        return result

    return run


def _of_one(compute: Callable[[Any], Any]) -> Fold:
    return lambda file, operator, values: np.asarray(compute(values[0]), values[0].dtype)


_FOLD: dict[str, Fold] = {
    "Add": _of_two(np.add),
    "Cast": _cast,
    "Ceil": _of_one(np.ceil),
    "Concat": lambda file, operator, values: np.concatenate(values, operator.integer("axis")),
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Div": _of_two(_divide),
    "Flatten": lambda file, operator, values: values[0].reshape(flat_shape(operator, values[0].shape)),
    "Floor": _of_one(np.floor),
    "Gather": _gather,
    "Identity": lambda file, operator, values: values[0],
    "Max": _of_two(np.maximum),
    "Min": _of_two(np.minimum),
    "Mul": _of_two(np.multiply),
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Shape": lambda file, operator, values: np.array(shape_slice(operator, values[0].shape), np.int64),
    "Slice": _slice,
    "Sqrt": _of_one(np.sqrt),
    "Squeeze": _squeeze,
    "Sub": _of_two(np.subtract),
    "Transpose": lambda file, operator, values: np.transpose(values[0], operator.integers("perm")),
    "Unsqueeze": _unsqueeze,
}

#: How many inputs an operator cannot do without, where it is not 1.
_NEEDED = {"Constant": 0, "Gather": 2}

#: Those that leave the values of their first input as they are.
_SAME_VALUES = frozenset({"Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
