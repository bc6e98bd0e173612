"""ONNX files with pools and local response normalisation, pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fastmobilenet.importers import onnx
from tests.onnx_files import OnnxWriter
from tests.test_onnx import agree, convolve, normal, run


def windows(
    x: np.ndarray, kernel: Sequence[int], strides: Sequence[int], pads: Sequence[int], ceil: bool
) -> tuple[np.ndarray, list[list[np.ndarray]], np.ndarray]:
    """For every window of an output (n, c, oh, ow): zeros of its shape, the pixels in it, and how many places it has
    in the map and its padding."""
    h, w = x.shape[2:]
    top, left, bottom, right = pads
    starts = []
    for size, before, after, k, s in ((h, top, bottom, kernel[0], strides[0]), (w, left, right, kernel[1], strides[1])):
        steps = (size + before + after - k) / s
        count = (math.ceil if ceil else math.floor)(steps) + 1
        if (count - 1) * s >= size + before:  # it would begin behind the picture
            count -= 1
        starts.append([i * s - before for i in range(count)])
    pixels = [[x[:, :, max(a, 0) : a + kernel[0], max(b, 0) : b + kernel[1]] for b in starts[1]] for a in starts[0]]
    places = np.array(
        [
            [(min(a + kernel[0], h + bottom) - a) * (min(b + kernel[1], w + right) - b) for b in starts[1]]
            for a in starts[0]
        ]
    )
    return np.zeros((*x.shape[:2], *places.shape)), pixels, places


def pooled(x: np.ndarray, kind: str, kernel: Sequence[int], **attrs: Any) -> np.ndarray:
    y, pixels, places = windows(
        x, kernel, attrs.get("strides", (1, 1)), attrs.get("pads", (0,) * 4), attrs.get("ceil_mode", 0) == 1
    )
    for i, row in enumerate(pixels):
        for j, part in enumerate(row):
            if kind == "MaxPool":
                y[:, :, i, j] = part.max((2, 3))
            else:
                count = places[i, j] if attrs.get("count_include_pad") else part[0, 0].size
                y[:, :, i, j] = part.astype(np.float64).sum((2, 3)) / count
    return y


@pytest.mark.parametrize("ceil", [0, 1])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 1, 0), (1, 0, 0, 1)])
@pytest.mark.parametrize("kernel, strides", [((3, 3), (2, 2)), ((2, 3), (3, 2)), ((2, 2), (1, 1)), ((3, 2), (5, 4))])
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool", "AveragePool of all"])
def test_pools(kind: str, kernel: tuple[int, int], strides: tuple[int, int], pads: tuple[int, ...], ceil: int) -> None:
    attrs: dict[str, Any] = {"strides": strides, "pads": pads, "ceil_mode": ceil}
    if kind == "AveragePool of all":
        kind, attrs["count_include_pad"] = "AveragePool", 1
    for size in ((7, 8), (6, 5)):
        x = normal(1, 3, *size)
        w = OnnxWriter(21)
        y = w.op(kind, w.input(*x.shape), kernel_shape=kernel, **attrs)
        agree(w.finish(y), x, pooled(x, kind, kernel, **attrs))


@pytest.mark.parametrize("opset", [9, 10, 12, 22])
@pytest.mark.parametrize("auto_pad", ["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("kind", ["MaxPool", "AveragePool"])
def test_auto_pad(kind: str, auto_pad: str, opset: int) -> None:
    for size in (8, 9):
        x = normal(1, 2, size, size)
        w = OnnxWriter(opset)
        y = w.op(kind, w.input(*x.shape), kernel_shape=[3, 3], strides=[2, 2], auto_pad=auto_pad)
        pads = {"SAME_UPPER": (0, 0, 1, 1), "SAME_LOWER": (1, 1, 0, 0)}.get(auto_pad, (0,) * 4)
        if size == 9 and auto_pad.startswith("SAME"):
            pads = (1, 1, 1, 1)
        graph = agree(w.finish(y), x, pooled(x, kind, (3, 3), strides=(2, 2), pads=pads))
        assert (graph.nodes[1].attrs["padding"] == "same") == (auto_pad == "SAME_UPPER")


def test_auto_pad_lower_needs_a_fixed_size_if_there_is_a_stride() -> None:
    x, weight = normal(1, 3, 5, 7), normal(2, 3, 2, 2)

    def data(strides: list[int], *size: Any) -> bytes:
        w = OnnxWriter()
        return w.finish(w.op("Conv", w.input(1, 3, *size), w.constant(weight), auto_pad="SAME_LOWER", strides=strides))

    agree(data([2, 2], 5, 7), x, convolve(x, weight, strides=(2, 2), pads=(1, 1, 0, 0)))
    agree(data([1, 1], "h", "w"), x, convolve(x, weight, pads=(1, 1, 0, 0)))
    with pytest.raises(onnx.ModelError, match="SAME_LOWER with a stride is supported only for an input of fixed size"):
        onnx.load(data([1, 2], "h", "w"))


@pytest.mark.parametrize("relu", [False, True])
def test_pad_before_a_max_pool(relu: bool) -> None:
    """The zeros of a Pad are no larger than what comes out of a Relu, so they do not count; -inf never does."""
    x = normal(1, 3, 6, 7)
    w = OnnxWriter()
    y = w.op("Relu", w.input(*x.shape)) if relu else w.input(*x.shape)
    y = w.op("Pad", y, w.constant([0, 0, 0, 1, 0, 0, 1, 1]), w.constant(0.0 if relu else -np.inf))
    y = w.op("MaxPool", y, kernel_shape=[3, 3], strides=[2, 2])
    expected = np.maximum(x, 0) if relu else x
    agree(w.finish(y), x, pooled(expected, "MaxPool", (3, 3), strides=(2, 2), pads=(0, 1, 1, 1)))


def test_the_indices_of_a_max_pool_are_not_needed() -> None:
    x = normal(1, 3, 6, 7)
    w = OnnxWriter()
    y, _ = w.ops("MaxPool", w.input(*x.shape), count=2, kernel_shape=[3, 3], storage_order=0)
    agree(w.finish(y), x, pooled(x, "MaxPool", (3, 3)))


def test_a_pool_of_single_pixels_before_a_dense_layer_is_adaptive() -> None:
    """So does PyTorch export AdaptiveAvgPool2d where the map has its size already, as in AlexNet and VGG."""
    x, weight = normal(1, 3, 2, 4), normal(24, 5)
    w = OnnxWriter()
    y = w.op("AveragePool", w.op("Relu", w.input(*x.shape)), kernel_shape=[1, 1], strides=[1, 1])
    graph = agree(
        w.finish(w.op("Gemm", w.op("Flatten", y), w.constant(weight))), x, np.maximum(x, 0).reshape(1, 24) @ weight
    )
    assert graph.nodes[2].op == "adaptive_avg_pool2d"
    larger = normal(2, 3, 6, 8)
    means = np.maximum(larger, 0).reshape(2, 3, 2, 3, 4, 2).mean((3, 5))
    np.testing.assert_allclose(run(graph, larger)[:, :, 0, 0], means.reshape(2, 24) @ weight, rtol=1e-5, atol=1e-6)


def test_a_pool_of_single_pixels_elsewhere_is_what_it_is() -> None:
    x = normal(1, 3, 5, 4)
    w = OnnxWriter()
    y = w.op("AveragePool", w.input(*x.shape), kernel_shape=[1, 1], strides=[1, 1])
    agree(w.finish(w.op("Relu", y)), x, np.maximum(x, 0))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("attrs", [{}, {"alpha": 0.5, "beta": 0.5, "bias": 2.0}])
def test_local_response_normalisation(attrs: dict[str, float], size: int) -> None:
    """An even window has its surplus channel behind the centre."""
    x = 3 * normal(2, 7, 3, 4)
    w = OnnxWriter()
    y = w.op("LRN", w.input(*x.shape), size=size, **attrs)
    used = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0} | attrs
    total = np.zeros(x.shape)
    for c in range(7):
        total[:, c] = (x[:, max(c - (size - 1) // 2, 0) : c + size // 2 + 1].astype(np.float64) ** 2).sum(1)
    expected = x / (used["bias"] + used["alpha"] / size * total) ** used["beta"]
    if size % 2:
        agree(w.finish(y), x, expected)
    else:  # which ONNX Runtime does not have
        np.testing.assert_allclose(run(onnx.load(w.finish(y)), x), expected, rtol=1e-5)
