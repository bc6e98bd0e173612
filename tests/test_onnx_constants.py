"""ONNX files that compute with constants and with the shapes of maps: what they find is known when they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmobilenet.errors import ModelError
from fastmobilenet.importers import onnx
from tests.onnx_files import OnnxWriter
from tests.test_onnx import agree, convolve, normal
from tests.test_onnx_graphs import size_of


def scalar(w: OnnxWriter, value: Any) -> str:
    return w.op("Constant", value=np.array(value))


def pair(w: OnnxWriter, kind: str, a: str, b: Any, **attrs: Any) -> str:
    return w.op(kind, a, scalar(w, b), **attrs)


def whole(w: OnnxWriter, x: str) -> str:
    return w.op("Cast", x, to=7)


#: From the number c of channels, 12, as int64: the number of channels to take.
COUNTS: dict[str, tuple[Callable[[OnnxWriter, str], str], int]] = {
    "(c + 1) / 2 * 1": (lambda w, c: pair(w, "Mul", pair(w, "Div", pair(w, "Add", c, 1), 2), 1), 6),
    "-(-7 / 2)": (lambda w, c: w.op("Neg", pair(w, "Div", pair(w, "Sub", c, 19), 2)), 3),
    "abs(mod)": (lambda w, c: w.op("Abs", pair(w, "Mod", w.op("Neg", c), 7)), 2),
    "fmod": (lambda w, c: w.op("Neg", pair(w, "Mod", w.op("Neg", c), 7, fmod=1)), 5),
    "power": (lambda w, c: pair(w, "Div", pair(w, "Pow", c, 2), 72), 2),
    "where": (lambda w, c: w.op("Where", pair(w, "Equal", c, 12), scalar(w, 4), scalar(w, 5)), 4),
    "not": (lambda w, c: w.op("Where", w.op("Not", pair(w, "Less", c, 13)), scalar(w, 4), scalar(w, 5)), 5),
    "and": (
        lambda w, c: w.op(
            "Where",
            w.op("And", pair(w, "Greater", c, 11), pair(w, "LessOrEqual", c, 12)),
            scalar(w, 7),
            pair(w, "Div", c, 4),
        ),
        7,
    ),
    "or": (
        lambda w, c: w.op(
            "Where", w.op("Or", pair(w, "GreaterOrEqual", c, 13), pair(w, "Equal", c, 0)), c, scalar(w, 3)
        ),
        3,
    ),
    "range": (lambda w, c: pair(w, "Gather", w.op("Range", scalar(w, 1), c, scalar(w, 3)), -1), 10),
    "sum": (lambda w, c: w.op("ReduceSum", w.op("Range", scalar(w, 0), pair(w, "Sub", c, 8), scalar(w, 1))), 6),
    "largest": (lambda w, c: w.op("ReduceMax", w.op("Range", scalar(w, 0), c, scalar(w, 5)), keepdims=0), 10),
    "smallest": (
        lambda w, c: w.op("ReduceMin", w.op("Range", c, scalar(w, 0), scalar(w, -5)), keepdims=0, axes=[0]),
        2,
    ),
    "size": (lambda w, c: w.op("Size", w.op("Expand", c, w.constant([2, 3]))), 6),
    "expand": (lambda w, c: w.op("ReduceSum", w.op("Expand", pair(w, "Div", c, 6), w.constant([3, 1]))), 6),
    "clip": (
        lambda w, c: w.op("Max", w.op("Clip", c, scalar(w, 3), scalar(w, 5)), w.op("Clip", scalar(w, 0), scalar(w, 2))),
        5,
    ),
    "as float": (
        lambda w, c: whole(w, w.op("Reciprocal", w.op("Reciprocal", w.op("Sqrt", w.op("Cast", c, to=1))))),
        3,
    ),
    "like": (lambda w, c: w.op("CastLike", w.op("Sqrt", w.op("Cast", c, to=1)), c), 3),
    "split": (
        lambda w, c: w.ops("Split", w.op("Range", scalar(w, 0), c, scalar(w, 1)), w.constant([9, 3]), count=2)[1], 9
    ),
    "sum of many": (lambda w, c: pair(w, "Div", w.op("Sum", *[w.op("Cast", c, to=1)] * 3), np.float32(9)), 4),
}  # fmt: skip


@pytest.mark.parametrize("form", COUNTS)
def test_arithmetic_on_shapes(form: str) -> None:
    """Of a network of any size: the number of channels is known all the same, though it comes in one array with sizes
    that are not."""
    build, expected = COUNTS[form]
    x = normal(1, 12, 3, 4)
    w = OnnxWriter(17)
    w.input("n", 12, "h", "w")
    count = whole(w, build(w, size_of(w, "x", 1)))
    end = w.op("Slice", w.op("Reshape", count, w.constant([-1])), *[w.constant([v]) for v in (0, 1)])
    y = w.op("Slice", w.op("Relu", "x"), w.constant([0]), end, w.constant([1]))
    agree(w.finish(y), x, np.maximum(x[:, :expected], 0))


def test_an_expand_as_pytorch_writes_it() -> None:
    """y.expand(-1, -1, h, w): where(shape == -1, 1, shape)"""
    x = normal(2, 3, 5, 4)
    w = OnnxWriter(11)
    mean = w.op("GlobalAveragePool", w.input("n", 3, "h", "w"))
    minus = [w.op("Unsqueeze", scalar(w, -1), axes=[0]) for _ in range(2)]
    h, width = (w.op("Unsqueeze", size_of(w, "x", axis), axes=[0]) for axis in (2, 3))
    shape = w.op("Concat", *minus, h, width, axis=0)
    ones = w.op("ConstantOfShape", w.op("Shape", shape), value=np.array([1]))
    shape = w.op("Where", w.op("Equal", shape, w.op("Mul", ones, scalar(w, -1))), ones, shape)
    y = w.op("Mul", "x", w.op("Expand", mean, shape))
    agree(w.finish(y), x, x * x.mean((2, 3), keepdims=True))


def test_pads_as_pytorch_writes_them() -> None:
    """F.pad(x, (0, 1, 2, 0)): the list is filled up, reversed and transposed."""
    x, weight = normal(1, 2, 6, 7), normal(3, 2, 3, 3)
    w = OnnxWriter(11)
    w.input("n", 2, "h", "w")
    more = w.op("ConstantOfShape", w.constant([4]), value=np.array([0]))
    rows = w.op("Reshape", w.op("Concat", w.constant([0, 1, 2, 0]), more, axis=0), w.constant([-1, 2]))
    rows = w.op("Slice", rows, *[w.constant([v]) for v in (-1, -(2**63) + 1, 0, -1)])
    pads = w.op("Cast", w.op("Reshape", w.op("Transpose", rows, perm=[1, 0]), w.constant([-1])), to=7)
    y = w.op("Conv", w.op("Pad", "x", pads, w.constant(0.0), mode="constant"), w.constant(weight))
    agree(w.finish(y), x, convolve(x, weight, pads=(2, 0, 0, 1)))


def same_pads(w: OnnxWriter, x: str, kernel: int, stride: int) -> str:
    """timm's Conv2dSame: total = clamp((ceil(size / stride) - 1) * stride + kernel - size, min=0), for both axes"""
    begins, ends = [], []
    for axis in (2, 3):
        size = size_of(w, x, axis)
        steps = whole(w, w.op("Ceil", pair(w, "Div", w.op("Cast", size, to=1), np.float32(stride))))
        covered = pair(w, "Add", pair(w, "Mul", pair(w, "Sub", steps, 1), stride), kernel)
        total = w.op("Clip", w.op("Sub", covered, size), scalar(w, 0))
        first = pair(w, "Div", total, 2)
        begins.append(w.op("Reshape", first, w.constant([1])))
        ends.append(w.op("Reshape", w.op("Sub", total, first), w.constant([1])))
    zeros = w.constant([0, 0])
    return w.op("Concat", zeros, *begins, zeros, *ends, axis=0)


def test_pads_as_of_tensorflow_that_are_computed() -> None:
    x, weight = normal(1, 2, 8, 7), normal(3, 2, 3, 3)

    def data(*size: Any) -> bytes:
        w = OnnxWriter()
        pads = same_pads(w, w.input(1, 2, *size), 3, 2)
        return w.finish(w.op("Conv", w.op("Pad", "x", pads), w.constant(weight), strides=[2, 2]))

    agree(data(8, 7), x, convolve(x, weight, strides=(2, 2), pads=(0, 1, 1, 1)))
    with pytest.raises(
        ModelError, match=r"Pad\): input 1 depends on the size of the picture; export with a fixed size"
    ):
        onnx.load(data("h", "w"))


def test_weights_of_one_value() -> None:
    """ConstantOfShape and Expand take no memory until a layer needs them."""
    x = normal(1, 3, 4, 5)
    w = OnnxWriter(9)
    weight = w.op("ConstantOfShape", w.constant([4, 3, 1, 1]), value=np.float32([0.5]))
    bias = w.op("Expand", w.op("Constant", value=np.float32([2])), w.constant([4]))
    y = w.op("Conv", w.input(*x.shape), weight, bias)
    agree(w.finish(y), x, np.repeat(x.sum(1, keepdims=True) * 0.5 + 2, 4, 1))


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda w: w.op("Range", scalar(w, 0), scalar(w, 10), scalar(w, 0)), "constant inputs do not fit it"),
        (lambda w: w.op("Range", scalar(w, 0), scalar(w, 2**40), scalar(w, 1)), "far more than the file holds"),
        (lambda w: w.op("Range", scalar(w, 0), scalar(w, 5)), "an input is missing"),
        (lambda w: w.op("Expand", w.constant([1]), w.constant([2**30, 2**20])), "far more than the file holds"),
        (lambda w: w.op("Expand", w.constant([1]), w.constant([2**62, 2**62])), "constant inputs do not fit it"),
        (lambda w: w.op("Expand", w.constant([1, 2, 3]), w.constant([2])), "constant inputs do not fit it"),
        (lambda w: w.op("Pow", w.constant([2]), w.constant([-1])), "constant inputs do not fit it"),
        (lambda w: w.op("Where", w.constant([1]), w.constant([1]), w.constant([1])), "a condition and two of one type"),
        (lambda w: w.op("And", w.constant([1]), w.constant(1.0)), "of one type"),
        (lambda w: w.op("Clip", w.constant([1]), w.constant([1, 2])), "its bounds must be numbers"),
        (lambda w: w.op("ReduceSum", w.constant([1]), w.constant([3])), "are not axes of a tensor of rank 1"),
        (lambda w: w.ops("Split", w.constant([1, 2]), w.constant([1, 2]), count=2)[0], "cannot be split into parts of"),
        (lambda w: w.ops("Split", w.constant([1, 2, 3]), count=2)[0], "cannot be split into 2 equal parts"),
        (lambda w: w.op("ConstantOfShape", w.constant([1] * 9)), "its output would have the shape"),
        (
            lambda w: w.op("Pow", *[w.op("ConstantOfShape", w.constant(s)) for s in ([4096, 1], [4096])]),
            "far more than the file holds",
        ),
    ],
)
def test_constants_that_cannot_be_computed(build: Callable[[OnnxWriter], str], message: str) -> None:
    w = OnnxWriter()
    y = w.op("Reshape", w.input(1, 3, 4, 4), whole(w, w.op("Add", build(w), build(w))))
    with pytest.raises(ModelError, match=message):
        onnx.load(w.finish(w.op("Relu", y)))


@pytest.mark.parametrize(
    "build",
    [
        lambda w, h: w.op("Gather", w.constant([1, 2, 3]), h),
        lambda w, h: w.op("Expand", w.constant([1]), w.op("Reshape", h, w.constant([1]))),
        lambda w, h: w.op("Range", scalar(w, 0), h, scalar(w, 1)),
        lambda w, h: w.op("ConstantOfShape", w.op("Reshape", h, w.constant([1]))),
        lambda w, h: w.op("Where", pair(w, "Equal", h, 1), scalar(w, 1), scalar(w, 1)),
        lambda w, h: w.op("Slice", w.constant([1, 2, 3]), w.constant([0]), w.op("Reshape", h, w.constant([1]))),
        lambda w, h: w.op("ReduceProd", w.op("Shape", "x"), keepdims=0),
        lambda w, h: w.op("Concat", w.constant([1]), w.op("Reshape", h, w.constant([1])), axis=0),
    ],
)
def test_what_depends_on_the_size_of_the_picture(build: Callable[[OnnxWriter, str], str]) -> None:
    """At least one of the numbers does; so it cannot be the number of channels of something."""
    w = OnnxWriter()
    w.input(1, 5, "h", "w")
    h = pair(w, "Div", size_of(w, w.op("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2]), 2), 112)
    end = w.op("Cast", w.op("Reshape", w.op("ReduceMax", build(w, h), keepdims=1), w.constant([-1])), to=7)
    y = w.op("Slice", w.op("Relu", "x"), w.constant([0]), end, w.constant([1]))
    with pytest.raises(ModelError, match="input 2 depends on the size of the picture; export with a fixed size"):
        onnx.load(w.finish(w.op("Relu", y)))
