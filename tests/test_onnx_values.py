"""ONNX files, written here: operators on one value at a time, and products, in all their versions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmobilenet.graph import RELU6
from fastmobilenet.importers import onnx
from tests.onnx_files import OnnxWriter
from tests.test_onnx import RNG, agree, convolve, normal

# --- one value at a time --------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [7, 8, 9, 14, 15])
def test_batch_norm(opset: int) -> None:
    x, (scale, shift, mean), variance = normal(2, 3, 4, 5), normal(3, 3), RNG.uniform(0.5, 2, 3).astype(np.float32)
    w = OnnxWriter(opset)
    inputs = [w.constant(v) for v in (scale, shift, mean, variance)]
    y = w.op("BatchNormalization", w.input(*x.shape), *inputs, epsilon=1e-3)
    column = (3, 1, 1)
    expected = (x - mean.reshape(column)) / np.sqrt(variance.reshape(column) + 1e-3)
    agree(w.finish(y), x, expected * scale.reshape(column) + shift.reshape(column))


def test_batch_norm_has_an_epsilon_of_its_own() -> None:
    w = OnnxWriter()
    y = w.op("BatchNormalization", w.input(1, 1, 2, 2), *[w.constant(np.ones(1, np.float32)) for _ in range(4)])
    assert onnx.load(w.finish(y))[y].attrs["epsilon"] == pytest.approx(1e-5, rel=1e-9)


@pytest.mark.parametrize(
    "opset, bounds, name",
    [
        (9, {"min": 0.0, "max": 6.0}, "relu6"),
        (10, {"min": -1.5}, "clamp(-1.5, inf)"),
        (11, (0.0, 6.0), "relu6"),
        (12, (None, 0.5), "clamp(-inf, 0.5)"),
        (13, (0.25,), "clamp(0.25, inf)"),
        (13, (-float(np.finfo(np.float32).max), 6.0), "clamp(-inf, 6)"),
        (17, (1.0, -1.0), "clamp(-1, -1)"),
    ],
)
def test_clip(opset: int, bounds: Any, name: str) -> None:
    x = 4 * normal(1, 3, 4, 5)
    w = OnnxWriter(opset)
    if isinstance(bounds, dict):
        lo, hi = bounds.get("min", -np.inf), bounds.get("max", np.inf)
        y = w.op("Clip", w.input(*x.shape), **bounds)
    else:
        lo, hi = ((*bounds, None)[i] for i in range(2))
        y = w.op("Clip", w.input(*x.shape), *["" if b is None else w.constant(b) for b in bounds])
    lo, hi = (-np.inf if lo is None else lo), (np.inf if hi is None else hi)
    assert str(agree(w.finish(y), x, np.minimum(np.maximum(x, lo), hi))[y].activation) == name


def test_clip_without_bounds_is_nothing() -> None:
    w = OnnxWriter()
    y = w.op("Relu", w.op("Clip", w.input(1, 1, 2, 2)))
    assert [n.op for n in onnx.load(w.finish(y)).nodes] == ["input", "activation"]


@pytest.mark.parametrize("order", [("Relu", "Min"), ("Max", "Min"), ("Min", "Max"), ("Clip", "Min")])
def test_relu6_in_two_parts_is_one_node(order: tuple[str, str]) -> None:
    x = 6 * normal(1, 3, 4, 5)
    w = OnnxWriter()
    y = w.input(*x.shape)
    for kind in order:
        bounds = {"Relu": [], "Max": [w.constant(0.0)], "Min": [w.constant(6.0)], "Clip": [w.constant(0.0)]}[kind]
        y = w.op(kind, *([*bounds, y] if kind == "Max" else [y, *bounds]))
    graph = agree(w.finish(y), x, np.clip(x, 0, 6))
    assert [n.op for n in graph.nodes] == ["input", "activation"]
    assert graph[y].activation == RELU6


def test_clamps_that_are_read_twice_stay() -> None:
    x = 6 * normal(1, 3, 4, 5)
    w = OnnxWriter()
    first = w.op("Relu", w.input(*x.shape))
    y = w.op("Add", w.op("Min", first, w.constant(1.0)), first)
    agree(w.finish(y), x, np.clip(x, 0, 1) + np.maximum(x, 0))


@pytest.mark.parametrize("kind", ["Add", "Sum"])
def test_add(kind: str) -> None:
    x = normal(1, 3, 4, 5)
    w = OnnxWriter()
    y = w.op(kind, w.op("Relu", w.input(*x.shape)), "x")
    agree(w.finish(y), x, np.maximum(x, 0) + x)


@pytest.mark.parametrize("count", [1, 4])
def test_sum(count: int) -> None:
    x = normal(1, 3, 4, 5)
    w = OnnxWriter()
    y = w.op("Sum", *[w.op("Clip", w.input(*x.shape) if i == 0 else "x", w.constant(i - 2.0)) for i in range(count)])
    agree(w.finish(y), x, sum(np.maximum(x, i - 2.0) for i in range(count)))


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (1, 3, 1, 1)])
@pytest.mark.parametrize(
    "kind, first", [("Add", 0), ("Add", 1), ("Sub", 0), ("Sub", 1), ("Mul", 0), ("Mul", 1), ("Div", 0)]
)
def test_arithmetic_with_constants(kind: str, first: int, shape: tuple[int, ...]) -> None:
    x, constant = normal(2, 3, 4, 5), np.asarray(normal(*shape) + 3, np.float32)
    w = OnnxWriter()
    inputs = [w.input(*x.shape), w.constant(constant)]
    y = w.op(kind, *inputs[:: -1 if first else 1])
    a, b = (constant, x) if first else (x, constant)
    agree(w.finish(y), x, {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[kind](a, b))


def test_a_batch_norm_in_parts_is_joined() -> None:
    """conv -> add a bias; batch norm -> scale -> shift"""
    x, weight, (bias, scale, shift) = normal(1, 2, 4, 5), normal(3, 2, 1, 1), normal(3, 3, 1, 1)
    w = OnnxWriter()
    y = w.op("Add", w.op("Conv", w.input(*x.shape), w.constant(weight)), w.constant(bias))
    norm = np.abs(normal(4, 3)) + np.float32(0.5)
    z = w.op("BatchNormalization", w.op("Relu", y), *[w.constant(v) for v in norm])
    z = w.op("Add", w.op("Mul", z, w.constant(scale)), w.constant(shift))
    gamma, beta, mean, variance = norm.reshape(4, 3, 1, 1)
    expected = np.maximum(convolve(x, weight) + bias, 0)
    expected = ((expected - mean) / np.sqrt(variance + 1e-5) * gamma + beta) * scale + shift
    graph = agree(w.finish(z), x, expected)
    assert [n.op for n in graph.nodes] == ["input", "conv2d", "activation", "batch_norm"]


@pytest.mark.parametrize("opset, axis", [(9, 1), (11, -3), (13, 1), (13, -3), (9, None)])
def test_softmax(opset: int, axis: int | None) -> None:
    x = normal(2, 5, 1, 1)
    w = OnnxWriter(opset)
    y = w.op("Softmax", w.input(*x.shape), **({} if axis is None else {"axis": axis}))
    agree(w.finish(y), x, np.exp(x) / np.exp(x).sum(1, keepdims=True))


def test_softmax_over_the_channels_of_a_map() -> None:
    x = normal(1, 5, 3, 2)
    w = OnnxWriter(13)
    y = w.op("Softmax", w.input(*x.shape), axis=1)
    agree(w.finish(y), x, np.exp(x) / np.exp(x).sum(1, keepdims=True))


# --- products -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [None, (4,), (1, 4), (1,), ()])
@pytest.mark.parametrize("attrs", [{}, {"transB": 1, "alpha": 0.5, "beta": 2.0}])
def test_gemm(attrs: dict[str, Any], bias: tuple[int, ...] | None) -> None:
    x, weight = normal(2, 3, 1, 1), normal(*((4, 3) if attrs else (3, 4)))
    w = OnnxWriter()
    inputs = [w.op("Flatten", w.input(*x.shape)), w.constant(weight)]
    expected = attrs.get("alpha", 1.0) * x[:, :, 0, 0] @ (weight.T if attrs else weight)
    if bias is not None:
        constant = normal(*bias)
        inputs.append(w.constant(constant))
        expected = expected + attrs.get("beta", 1.0) * constant
    agree(w.finish(w.op("Gemm", *inputs, **attrs)), x, expected)


@pytest.mark.parametrize("kind", ["Gemm", "MatMul"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [0, 2, 3, 1], [0, 3, 2, 1]])
def test_a_map_is_flattened_in_the_order_of_the_file(order: list[int], kind: str) -> None:
    x, weight = normal(2, 3, 4, 5), normal(60, 7)
    w = OnnxWriter()
    y = w.op("Relu", w.op("Flatten", w.op("Transpose", w.input(*x.shape), perm=order)))
    y = w.op(kind, y, w.constant(weight))
    agree(w.finish(y), x, np.maximum(x.transpose(order), 0).reshape(2, 60) @ weight)


def test_matmul_and_its_bias_are_one_layer() -> None:
    x, weight, bias = normal(2, 3, 4, 5), normal(3, 7), normal(7)
    w = OnnxWriter()
    y = w.op("Squeeze", w.op("GlobalAveragePool", w.input(*x.shape)), w.constant([2, 3]))
    y = w.op("Add", w.constant(bias), w.op("MatMul", y, w.constant(weight)))
    graph = agree(w.finish(y), x, x.mean((2, 3)) @ weight + bias)
    assert [n.op for n in graph.nodes] == ["input", "global_avg_pool", "dense"]


def test_matmul_on_a_map_is_a_convolution() -> None:
    x, weight = normal(1, 4, 5, 3), normal(3, 7)
    w = OnnxWriter()
    y = w.op("MatMul", w.op("Transpose", w.input(1, 3, 4, 5), perm=[0, 2, 3, 1]), w.constant(weight))
    y = w.op("Transpose", y, perm=[0, 3, 1, 2])
    agree(w.finish(y), x.transpose(0, 3, 1, 2), (x @ weight).transpose(0, 3, 1, 2))
