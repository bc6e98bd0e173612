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
from . import onnx_shapes as shapes
from .onnx_operator import Operator
from .onnx_schema import OnnxFile
from .onnx_tensors import BFLOAT16, DTYPES, MAX_RANK, dtype_name
from .onnx_values import Constant

#: Shapes, and what is computed of them, have fewer elements.
_SMALL = 1024

#: An operator on the values of its inputs, None for one that is left out -> the values of its outputs.
Fold = Callable[[OnnxFile, Operator, Sequence[Any]], Any]


def can_fold(operator: Operator) -> bool:
    return operator.kind in _FOLD


def fold(file: OnnxFile, operator: Operator, inputs: Sequence[Constant | None]) -> list[Constant]:
    """The outputs of the operator, computed with the rounding and overflow of its own types."""
    given = [c for c in inputs if c is not None]
    needed = _NEEDED.get(operator.kind, 1)
    if len(inputs) < needed or any(c is None for c in inputs[:needed]):
        operator.fail("an input is missing")
    file.allowance.take(sum(c.array.size for c in given))
    arrays = _run(file, operator, [None if c is None else c.array for c in inputs])
    # Weights that are only laid out anew are still those of the file: errors name them so.
    names = [given[0].name] * len(arrays) if operator.kind in _SAME_VALUES else operator.outputs
    if all(c.sized is None for c in given):
        # One scale for all numbers holds wherever they are put.
        coded = given[0].coded if operator.kind in _MOVES and operator.kind != "Concat" and given else None
        coded = coded if coded is not None and coded.scale.size == 1 and coded.bias is None else None
        return [Constant(array, name, coded=coded) for array, name in zip(arrays, names, strict=False)]
    masks = [None if _none(mask) else mask for mask in _sized(file, operator, inputs, arrays)]
    return [Constant(a, name, mask) for a, name, mask in zip(arrays, names, masks, strict=False)]


def _none(mask: np.ndarray) -> bool:
    """Whether there is nothing in a mask that is small, as shapes are. Others may be too large to look at."""
    return mask.size <= _SMALL and not mask.any()


def _run(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> list[np.ndarray]:
    try:
        with np.errstate(all="ignore"):
            result = _FOLD[operator.kind](file, operator, values)
    except ModelError:
        raise
    except (ValueError, IndexError, TypeError, OverflowError, ArithmeticError) as error:
        operator.fail(f"its constant inputs do not fit it: {error}")
    arrays = [np.asarray(a) for a in (result if isinstance(result, list) else [result])]
    for array in arrays:
        if array.ndim > MAX_RANK:
            operator.fail(f"its output has rank {array.ndim}; at most {MAX_RANK} is read")
    return arrays


def _sized(
    file: OnnxFile, operator: Operator, inputs: Sequence[Constant | None], arrays: Sequence[np.ndarray]
) -> list[np.ndarray]:
    """Which of the outputs' values depend on the picture's size: where it is not clear, all."""
    masks = [None if c is None else np.zeros(c.array.shape, bool) if c.sized is None else c.sized for c in inputs]
    given = [m for m in masks if m is not None]
    if operator.kind in _MOVES:
        data = len(inputs) if operator.kind == "Concat" else 1
        if not any(m is not None and m.any() for m in masks[data:]):
            # The marks go the way of the values.
            rest = [None if c is None else c.array for c in inputs[data:]]
            return [m.astype(bool) for m in _run(file, operator, [*masks[:data], *rest])]
    elif operator.kind in _ELEMENTWISE:
        return [np.logical_or.reduce(np.broadcast_arrays(*given))]
    return [np.broadcast_to(True, a.shape) for a in arrays]


# --- constants ------------------------------------------------------------------------------------------


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
    shape = shapes.integers(operator, 0, values) or []
    if any(d < 0 for d in shape) or len(shape) > MAX_RANK:
        operator.fail(f"its output would have the shape {shape}")
    tensor = operator.tensor("value")
    value = np.zeros(1, np.float32) if tensor is None else file.read(tensor, str(operator))
    if value.size != 1:
        operator.fail(f"its value must be one number, not {value.size}")
    return np.broadcast_to(value.reshape(()), shape)  # takes no memory until it is used


def _range(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> np.ndarray:
    start, limit, delta = (v.reshape(-1)[0] for v in values[:3])
    file.allowance.take(max(math.ceil((float(limit) - float(start)) / float(delta)), 0))
    return np.arange(start, limit, delta, dtype=values[0].dtype)


# --- other shapes ---------------------------------------------------------------------------------------


def _cast(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> np.ndarray:
    kind = operator.integer("to")
    if kind not in DTYPES or kind == BFLOAT16:
        operator.fail(f"a cast of constants to {dtype_name(kind)} is not supported")
    cast: np.ndarray = values[0].astype(DTYPES[kind])
    return cast


def _reshape(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
    return values[0].reshape(shapes.target_shape(operator, shapes.integers(operator, 1, values) or [], values[0].shape))


def _squeeze(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
    return np.squeeze(values[0], tuple(shapes.squeezed_axes(operator, values, values[0].shape)))


def _unsqueeze(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
    return np.expand_dims(values[0], tuple(shapes.unsqueezed_axes(operator, values, values[0].ndim)))


def _transpose(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
    return values[0].transpose(shapes.order_of(operator, values[0].ndim))


def _expand(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
    shape = np.broadcast_shapes(values[0].shape, tuple(shapes.integers(operator, 1, values) or ()))
    return np.broadcast_to(values[0], shape)


def _gather(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
    data, indices = values[0], values[1]
    axis = shapes.axis_of(operator, data.ndim)
    file.allowance.take(indices.size * data.size // max(data.shape[axis], 1))
    return np.take(data, indices, axis)


def _slice(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
    data = values[0]
    for axis, taken in shapes.cuts(operator, values, data.shape).items():
        data = np.take(data, np.array(taken, np.int64), axis)
    return data


def _split(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> list[Any]:
    data = values[0]
    axis = shapes.axis_of(operator, data.ndim)
    parts = shapes.split_parts(operator, values, data.shape[axis], len(operator.outputs))
    return [np.take(data, np.array(part), axis) for part in parts]


# --- arithmetic -----------------------------------------------------------------------------------------


def _reduced(compute: Callable[..., Any]) -> Fold:
    def run(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
        data = values[0]
        axes = shapes.axes_of(operator, 13 if operator.kind == "ReduceSum" else 18, values)
        if not axes and operator.integer("noop_with_empty_axes"):
            return data
        along = tuple(shapes.positive_axes(operator, axes or range(data.ndim), data.ndim))
        return compute(data, axis=along, keepdims=bool(operator.integer("keepdims", 1))).astype(data.dtype)

    return run


def _divide(a: Any, b: Any) -> Any:
    """Whole numbers are divided as C does it: towards zero."""
    if a.dtype.kind == "f":
        return a / b
    if not b.all():
        raise ZeroDivisionError("a whole number is divided by 0")
    rounded_up = (a % b != 0) & ((a < 0) != (b < 0))
    return a // b + rounded_up


def _clip(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
    bounds: list[Any] = [operator.number("min", -math.inf), operator.number("max", math.inf)]
    if operator.opset >= 11:
        bounds = [values[k] if k < len(values) else None for k in (1, 2)]
    if any(bound is not None and np.size(bound) != 1 for bound in bounds):
        operator.fail("its bounds must be numbers")
    low = values[0] if bounds[0] is None else np.maximum(values[0], bounds[0])
    return np.asarray(low if bounds[1] is None else np.minimum(low, bounds[1]), values[0].dtype)


def _power(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
    file.allowance.take(math.prod(np.broadcast_shapes(values[0].shape, values[1].shape)))
    return np.power(values[0], values[1]).astype(values[0].dtype)


def _modulo(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
    return _of_two(np.fmod if operator.integer("fmod") else np.mod)(file, operator, values)


def _of_two(compute: Callable[[Any, Any], Any], *, compares: bool = False) -> Fold:
    def run(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
        result = values[0]
        for value in values[1:]:
            if value is None or value.dtype != values[0].dtype:
                operator.fail("its constant inputs must all be there, and of one type")
            file.allowance.take(math.prod(np.broadcast_shapes(result.shape, value.shape)))
            result = np.asarray(compute(result, value), bool if compares else values[0].dtype)
        return result

    return run


def _of_one(compute: Callable[[Any], Any]) -> Fold:
    return lambda file, operator, values: np.asarray(compute(values[0]), values[0].dtype)


def _where(file: OnnxFile, operator: Operator, values: Sequence[Any]) -> Any:
    condition, a, b = values[:3]
    if condition.dtype != bool or a.dtype != b.dtype:
        operator.fail("its constant inputs do not fit it: a condition and two of one type are needed")
    file.allowance.take(math.prod(np.broadcast_shapes(*(v.shape for v in values[:3]))))
    return np.where(condition, a, b)


_COMPARISONS: dict[str, Fold] = {
    "And": _of_two(np.logical_and, compares=True),
    "Equal": _of_two(np.equal, compares=True),
    "Greater": _of_two(np.greater, compares=True),
    "GreaterOrEqual": _of_two(np.greater_equal, compares=True),
    "Less": _of_two(np.less, compares=True),
    "LessOrEqual": _of_two(np.less_equal, compares=True),
    "Not": lambda file, operator, values: np.logical_not(values[0]),
    "Or": _of_two(np.logical_or, compares=True),
    "Where": _where,
}

#: Operators whose output depends, at each place, on the inputs at this place alone.
_ELEMENTWISE: dict[str, Fold] = _COMPARISONS | {
    "Abs": _of_one(np.abs),
    "Add": _of_two(np.add),
    "Cast": _cast,
    "Ceil": _of_one(np.ceil),
    "Clip": _clip,
    "Div": _of_two(_divide),
    "Floor": _of_one(np.floor),
    "Max": _of_two(np.maximum),
    "Min": _of_two(np.minimum),
    "Mod": _modulo,
    "Mul": _of_two(np.multiply),
    "Neg": _of_one(np.negative),
    "Pow": _power,
    "Reciprocal": _of_one(np.reciprocal),
    "Sqrt": _of_one(np.sqrt),
    "Sub": _of_two(np.subtract),
    "Sum": _of_two(np.add),
}

#: Operators that put the values of their first input, or of all of Concat's, elsewhere.
_MOVES: dict[str, Fold] = {
    "Concat": lambda file, operator, values: np.concatenate(values, operator.integer("axis")),
    "Expand": _expand,
    "Flatten": lambda file, operator, values: values[0].reshape(shapes.flat_shape(operator, values[0].shape)),
    "Gather": _gather,
    "Identity": lambda file, operator, values: values[0],
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

_FOLD: dict[str, Fold] = (
    _MOVES
    | _ELEMENTWISE
    | {
        "CastLike": lambda file, operator, values: values[0].astype(values[1].dtype),
        "Constant": _constant,
        "ConstantOfShape": _constant_of_shape,
        "Range": _range,
        "ReduceMax": _reduced(np.max),
        "ReduceMin": _reduced(np.min),
        "ReduceProd": _reduced(np.prod),
        "ReduceSum": _reduced(np.sum),
        "Shape": lambda file, operator, values: np.array(shapes.shape_slice(operator, values[0].shape), np.int64),
        "Size": lambda file, operator, values: np.array(values[0].size, np.int64),
    }
)

#: Operators whose output is named like their first input in errors.
_SAME_VALUES = {"Cast", "CastLike", *_MOVES} - {"Concat"}

#: How many inputs an operator cannot do without, where it is not 1.
_NEEDED = {
    "CastLike": 2,
    "Constant": 0,
    "Expand": 2,
    "Gather": 2,
    "Mod": 2,
    "Pow": 2,
    "Range": 3,
    "Reshape": 2,
    "Where": 3,
}
