"""ONNX files: axes that are renamed, shapes that are computed, and networks as exporters write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmobilenet import models, preprocess
from fastmobilenet.importers import onnx
from fastmobilenet.lower import Engine
from fastmobilenet.passes import fold_batch_norm
from tests.onnx_files import OnnxWriter
from tests.test_onnx import agree, convolve, normal, run


def size_of(w: OnnxWriter, x: str, axis: int) -> str:
    """x.size(axis), as an exporter writes it"""
    index = w.op("Constant", value=np.array(axis, np.int64))
    return w.op("Gather", w.op("Shape", x), index, axis=0)


def unsqueeze(w: OnnxWriter, x: str, axes: list[int]) -> str:
    return w.op("Unsqueeze", x, axes=axes) if w.opset < 13 else w.op("Unsqueeze", x, w.constant(axes))


def view(w: OnnxWriter, x: str) -> str:
    """x.view(x.size(0), -1)"""
    rest = unsqueeze(w, w.op("Constant", value=np.array(-1, np.int64)), [0])
    return w.op("Reshape", x, w.op("Concat", unsqueeze(w, size_of(w, x, 0), [0]), rest, axis=0))


def view_all(w: OnnxWriter, x: str) -> str:
    """x.view(-1, x.size(1) * x.size(2) * x.size(3))"""
    count = w.op("Mul", w.op("Mul", size_of(w, x, 1), size_of(w, x, 2)), size_of(w, x, 3))
    return w.op("Reshape", x, w.op("Concat", w.constant([-1]), unsqueeze(w, count, [0]), axis=0))


def slices(w: OnnxWriter, x: str) -> str:
    """x.reshape(x.shape[:2]), with the bounds where this opset has them"""
    shape = w.op("Cast", w.op("Cast", w.op("Shape", x), to=6), to=7)
    if w.opset < 10:
        return w.op("Reshape", x, w.op("Slice", shape, starts=[0], ends=[2], axes=[0]))
    return w.op("Reshape", x, w.op("Slice", shape, *[w.constant([i]) for i in (0, 2, 0, 1)]))


def part_of_shape(w: OnnxWriter, x: str) -> str:
    if w.opset < 15:
        return slices(w, x)
    return w.op("Reshape", x, w.op("Shape", x, end=-2))


def squeeze(w: OnnxWriter, x: str) -> str:
    if w.opset < 13:
        return w.op("Squeeze", x, axes=[2, 3] if w.opset < 11 else [2, -1])
    return w.op("Squeeze", x, w.constant([2, -1]))


def squeeze_all(w: OnnxWriter, x: str) -> str:
    """Without axes, Squeeze takes the batch away too."""
    return unsqueeze(w, w.op("Squeeze", x), [0])


def back_and_forth(w: OnnxWriter, x: str) -> str:
    y = w.op("Reshape", unsqueeze(w, squeeze(w, x), [2]), w.constant([0, 0, 0, 1]))
    return w.op("Flatten", w.op("Transpose", w.op("Transpose", y), perm=[3, 2, 1, 0]), axis=1 if w.opset < 11 else -3)


def reshape_zeros(w: OnnxWriter, x: str) -> str:
    return w.op("Reshape", x, w.constant([0, -1]))


def whole_numbers(w: OnnxWriter, x: str) -> str:
    """Arithmetic as of a network that computes its shapes: (c * 7 // 3 - 0) // 2 + ... = c"""
    c = size_of(w, x, 1)
    c = w.op("Div", w.op("Mul", c, w.constant(np.array(-7))), w.constant(np.array(-7)))
    c = w.op("Sub", w.op("Add", c, w.constant(np.array(5))), w.constant(np.array(5)))
    if w.opset >= 12:
        c = w.op("Min", w.op("Max", c, w.constant(np.array(0))), w.constant(np.array(10**6)))
    c = w.op("ReduceProd", unsqueeze(w, c, [0]), keepdims=1)
    ones = w.op("ConstantOfShape", w.constant([1]), value=np.array([1]))
    return w.op("Reshape", x, w.op("Concat", ones, c, axis=0))


def float_arithmetic(w: OnnxWriter, x: str) -> str:
    """floor(sqrt(c * c) + 0.25)"""
    c = w.op("Cast", size_of(w, x, 1), to=1)
    c = w.op("Floor", w.op("Add", w.op("Sqrt", w.op("Mul", c, c)), w.constant(0.25)))
    c = w.op("Cast", w.op("Ceil", c), to=7)
    return w.op("Reshape", x, w.op("Concat", w.constant([-1]), unsqueeze(w, c, [0]), axis=0))


FLATTENS: list[Callable[[OnnxWriter, str], str]] = [
    view,
    view_all,
    slices,
    part_of_shape,
    squeeze,
    back_and_forth,
    reshape_zeros,
    whole_numbers,
    float_arithmetic,
    squeeze_all,
    lambda w, x: w.op("Flatten", x),
    lambda w, x: w.op("Dropout", w.op("Cast", w.op("Flatten", x), to=1)),
]


@pytest.mark.parametrize("size", [(6, 6), ("h", "w")])
@pytest.mark.parametrize("opset", [9, 12, 17, 21])
@pytest.mark.parametrize("flatten", FLATTENS)
def test_all_ways_to_flatten(flatten: Callable[[OnnxWriter, str], str], opset: int, size: tuple[Any, Any]) -> None:
    x, weight, bias = normal(1, 5, 6, 6), normal(5, 4), normal(4)
    w = OnnxWriter(opset)
    y = w.op("GlobalAveragePool", w.op("Relu", w.input(1, 5, *size)))
    y = w.op("Gemm", flatten(w, y), w.constant(weight), w.constant(bias))
    graph = agree(w.finish(y), x, np.maximum(x, 0).mean((2, 3)) @ weight + bias)
    assert [n.op for n in graph.nodes] == ["input", "activation", "global_avg_pool", "dense"]
    if size[0] == "h":
        assert graph.input_size == (224, 224)
    larger = normal(3, 5, 9, 8)
    expected = np.maximum(larger, 0).mean((2, 3)) @ weight + bias
    np.testing.assert_allclose(run(graph, larger)[:, :, 0, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("start, end, step", [(0, 2, 1), (1, -(2**63), -1), (-(2**31), 2**63 - 1, 1), (3, 0, -2)])
def test_slices_of_constants(start: int, end: int, step: int) -> None:
    values = [1, 5, 7, 9]
    w = OnnxWriter()
    cut = w.op("Slice", w.constant(values), *[w.constant([v]) for v in (start, end, 0, step)])
    product = w.op("ReduceProd", cut, keepdims=1)
    expected = int(np.prod(values[start : (None if end == -(2**63) else end) : step]))
    x = normal(1, expected, 1, 1)
    y = w.op("Reshape", w.input(*x.shape), w.op("Concat", w.constant([1]), product, axis=0))
    agree(w.finish(w.op("Relu", y)), x, np.maximum(x[:, :, 0, 0], 0))


def test_weights_that_are_computed() -> None:
    """As tf2onnx writes depthwise weights (h, w, c, multiplier), and float16 weights with a Cast."""
    x, kernel, half = normal(1, 3, 5, 5), normal(3, 3, 3, 2), normal(4, 6, 1, 1).astype(np.float16)
    w = OnnxWriter()
    weight = w.op("Transpose", w.constant(kernel), perm=[2, 3, 0, 1])
    weight = w.op("Reshape", w.op("Identity", weight), w.constant([6, 1, 3, 3]))
    y = w.op("Conv", w.input(*x.shape), weight, group=3, pads=[1, 1, 1, 1])
    y = w.op("Conv", y, w.op("Cast", w.constant(half), to=1))
    expected = convolve(x, kernel.transpose(2, 3, 0, 1).reshape(6, 1, 3, 3), group=3, pads=(1, 1, 1, 1))
    agree(w.finish(y), x, convolve(expected, half.astype(np.float32)))


@pytest.mark.parametrize(
    "attrs",
    [
        {"value": np.float32([0.5, -1, 2])},
        {"value_floats": [0.5, -1.0, 2.0]},
        {"value_float": 0.75},
        {"value": np.array(0.75, np.float32)},
    ],
)
def test_constant_nodes(attrs: dict[str, Any]) -> None:
    x = normal(1, 3, 1, 1)
    w = OnnxWriter()
    value = w.op("Unsqueeze", w.op("Unsqueeze", w.op("Constant", **attrs), w.constant([-1])), w.constant([-1]))
    y = w.op("Add", w.input(*x.shape), value)
    agree(w.finish(y), x, x + np.float32(next(iter(attrs.values()))).reshape(-1, 1, 1))


def test_whole_constants() -> None:
    x = normal(1, 3, 2, 2)
    w = OnnxWriter()
    y = w.op("Reshape", w.input(*x.shape), w.op("Constant", value_ints=[1, 3, 4]))
    axis = w.op("Unsqueeze", w.op("Constant", value_int=2), w.constant([0]))
    y = w.op("ReduceMean", y, axes=[2]) if w.opset < 18 else w.op("ReduceMean", y, axis)
    y = w.op("Squeeze", y, axis)
    agree(w.finish(y), x, x.mean((2, 3)))


# --- networks as exporters write them -------------------------------------------------------------------


def tensorflow_like(w: OnnxWriter, rescale: str, weights: list[np.ndarray]) -> str:
    """(n, h, w, 3) -> ... as tf2onnx writes a Keras network: transposes at the edges, Pad, relu6, MatMul, Add."""
    y = w.input("batch", 16, 12, 3, name="image:0")
    if rescale == "div":
        y = w.op("Sub", w.op("Div", y, w.constant(127.5)), w.constant(1.0))
    elif rescale == "mul":
        y = w.op("Add", w.op("Mul", y, w.constant(2.0)), w.constant(np.float32([-1, -1.5, 0.5])))
    y = w.op("Transpose", y, perm=[0, 3, 1, 2])
    y = w.op("Pad", y, w.constant([0, 0, 0, 0, 0, 0, 1, 1]), w.constant(0.0), mode="constant")
    y = w.op("Conv", y, w.constant(weights[0]), w.constant(weights[1]), strides=[2, 2])
    y = w.op("Min", w.op("Max", y, w.constant(0.0)), w.constant(6.0))
    y = w.op("ReduceMean", w.op("Transpose", y, perm=[0, 2, 3, 1]), axes=[1, 2], keepdims=0)
    y = w.op("Add", w.op("MatMul", y, w.constant(weights[2])), w.constant(weights[3]))
    return w.op("Softmax", y, axis=-1, output="Identity:0")


@pytest.mark.parametrize("rescale, spoken", [("", "tensorflow"), ("div", "255"), ("mul", "1")])
def test_a_network_from_tensorflow(rescale: str, spoken: str) -> None:
    weights = [normal(4, 3, 3, 3), normal(4), normal(4, 5), normal(5)]
    x = normal(2, 16, 12, 3) * (60 if rescale == "div" else 1)
    scaled = {"": x, "div": x / 127.5 - 1, "mul": x * 2 + np.float32([-1, -1.5, 0.5])}[rescale]
    maps = convolve(scaled.transpose(0, 3, 1, 2), weights[0], strides=(2, 2), pads=(0, 0, 1, 1))
    logits = np.clip(maps + weights[1].reshape(4, 1, 1), 0, 6).mean((2, 3)) @ weights[2] + weights[3]
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    w = OnnxWriter(13)
    graph = agree(w.finish(tensorflow_like(w, rescale, weights)), x, expected)
    assert (graph.input_layout, graph.input_size, graph.nodes[0].name) == ("NHWC", (16, 12), "image:0")
    ops = ["input", "conv2d", "activation", "global_avg_pool", "dense", "softmax"]
    assert [n.op for n in graph.nodes] == (ops if not rescale else ["input", "batch_norm", *ops[1:]])
    assert (
        graph.preprocess
        == {
            "tensorflow": preprocess.TENSORFLOW,
            "255": preprocess.Preprocess(mean=(0, 0, 0), std=(1, 1, 1)),
            "1": preprocess.Preprocess(mean=(0, 0, 0), std=(255, 255, 255)),
        }[spoken]
    )
    found = Engine(graph).run(x, pixels=False).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_map_as_output(layout: str) -> None:
    """It is in the layout of the input."""
    x, weight = normal(1, 3, 5, 4), normal(2, 3, 1, 1)
    expected = convolve(x, weight)
    w = OnnxWriter()
    if layout == "NCHW":
        y = w.op("Conv", w.input(*x.shape), w.constant(weight))
    else:
        y = w.op("Transpose", w.input(1, 5, 4, 3), perm=[0, 3, 1, 2])
        y = w.op("Transpose", w.op("Conv", y, w.constant(weight)), perm=[0, 2, 3, 1])
        x, expected = x.transpose(0, 2, 3, 1), expected.transpose(0, 2, 3, 1)
    agree(w.finish(y), np.ascontiguousarray(x), expected)


def test_open_channels_are_those_of_the_first_convolution() -> None:
    x, weight = normal(2, 6, 7, 7), normal(4, 3, 3, 3)
    w = OnnxWriter()
    y = w.op("Conv", w.op("Relu", w.input("n", "c", None, -1)), w.constant(weight), group=2)
    graph = agree(w.finish(y), x, convolve(np.maximum(x, 0), weight, group=2))
    assert (graph.input_channels, graph.input_size) == (6, (224, 224))
    assert graph.preprocess == preprocess.Preprocess()


def test_what_the_output_does_not_need_is_not_looked_at() -> None:
    x = normal(1, 3, 4, 4)
    w = OnnxWriter()
    y = w.op("Relu", w.input(*x.shape))
    w.op("LeakyRelu", y)
    w.op("Unheard", w.constant(np.float32([np.nan])), domain="of")
    w.input(1, name="unused")
    y = w.op("Add", y, y)
    graph = onnx.load(w.finish(y))
    np.testing.assert_array_equal(run(graph, x), 2 * np.maximum(x, 0))


@pytest.mark.parametrize("arch", ["mobilenet_v1", "mobilenet_v2"])
@pytest.mark.parametrize("size", [(64, 64), (65, 47)])
def test_the_models_of_the_benchmarks(arch: str, size: tuple[int, int]) -> None:
    """Graph -> ONNX -> Graph, with and without batch norm."""
    pytest.importorskip("onnx")
    from bench.peers import to_onnx

    graph = models.build(arch, width=0.25, classes=10)
    x = normal(1, 3, *size)
    expected = run(graph, x)
    for source in (graph, fold_batch_norm(graph)):
        loaded = onnx.load(to_onnx.export(source, size))
        assert loaded.input_size == size
        found = run(loaded, x)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
