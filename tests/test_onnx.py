"""ONNX files, written here, against results computed here, and against ONNX Runtime where it is installed:
convolutions and pools, in all their versions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from fastmobilenet import reference
from fastmobilenet.graph import Graph
from fastmobilenet.importers import onnx
from tests.onnx_files import OnnxWriter

RNG = np.random.default_rng(5)


@functools.cache
def onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        return None
    return onnxruntime


def peer(data: bytes, x: np.ndarray) -> np.ndarray | None:
    """What ONNX Runtime gives; None where it is not installed."""
    runtime = onnxruntime()
    if runtime is None:
        return None
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = runtime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {session.get_inputs()[0].name: x})[0]
    return result


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    """x and the result are in the layout of the graph's input."""
    if graph.input_layout == "NHWC":
        return reference.execute(graph, x)[graph.output]
    return reference.execute(graph, x.transpose(0, 2, 3, 1))[graph.output].transpose(0, 3, 1, 2)


def agree(data: bytes, x: np.ndarray, expected: np.ndarray) -> Graph:
    """The file gives ``expected`` for x, here and in ONNX Runtime."""
    graph = onnx.load(data, "folder/net.onnx")
    found = run(graph, x)
    assert found.size == expected.size
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=2e-6 * largest)
    theirs = peer(data, x)
    if theirs is not None:
        np.testing.assert_allclose(theirs, expected, rtol=1e-5, atol=1e-5 * max(largest, 1))
    return graph


def normal(*shape: int) -> np.ndarray:
    return np.asarray(RNG.normal(size=shape), np.float32)


def convolve(
    x: np.ndarray,
    weight: np.ndarray,
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    group: int = 1,
) -> np.ndarray:
    """x (n, c, h, w) with weight (oc, ic, kh, kw), pixel by pixel; pads as ONNX orders them."""
    top, left, bottom, right = pads
    x = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    oc, ic, kh, kw = weight.shape
    (sh, sw), (dh, dw) = strides, dilations
    oh = (x.shape[2] - (kh - 1) * dh - 1) // sh + 1
    ow = (x.shape[3] - (kw - 1) * dw - 1) // sw + 1
    y = np.zeros((len(x), oc, oh, ow))
    for o, i, ky, kx in np.ndindex(oc, ic, kh, kw):
        channel = o // (oc // group) * ic + i
        rows = slice(ky * dh, ky * dh + (oh - 1) * sh + 1, sh)
        columns = slice(kx * dw, kx * dw + (ow - 1) * sw + 1, sw)
        y[:, o] += weight[o, i, ky, kx].astype(np.float64) * x[:, channel, rows, columns]
    return y


def pooled(x: np.ndarray, kernel: Sequence[int], **attrs: Any) -> np.ndarray:
    """The mean over each window, zeros around the map counted."""
    weight = np.full((x.shape[1], 1, *kernel), 1 / (kernel[0] * kernel[1]))
    return convolve(x, weight, group=x.shape[1], **attrs)


# --- convolutions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dilations", [(1, 1), (2, 1)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 2, 0, 3)])
def test_conv(pads: tuple[int, ...], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]) -> None:
    weight, bias, x = normal(4, 3, *kernel), normal(4), normal(1, 3, 9, 8)
    w = OnnxWriter()
    attrs = {"strides": strides, "pads": pads, "dilations": dilations}
    y = w.op(
        "Conv", w.input(*x.shape), w.constant(weight), w.constant(bias), kernel_shape=kernel, **attrs, output="maps"
    )
    graph = agree(w.finish(y), x, convolve(x, weight, **attrs) + bias.reshape(4, 1, 1))
    assert (graph.name, graph.input_size, graph.input_channels, graph.input_layout) == ("net", (9, 8), 3, "NCHW")
    assert [node.name for node in graph.nodes] == ["x", "maps"]
    assert graph["maps"].attrs["padding"] == (pads[0], pads[2], pads[1], pads[3])


@pytest.mark.parametrize("group, oc", [(4, 4), (4, 8), (2, 6)])
def test_conv_in_groups(group: int, oc: int) -> None:
    weight, x = normal(oc, 4 // group, 3, 3), normal(2, 4, 7, 6)
    w = OnnxWriter()
    y = w.op("Conv", w.input(*x.shape), w.constant(weight), group=group, strides=[2, 2], pads=[1, 1, 1, 1])
    expected = convolve(x, weight, strides=(2, 2), pads=(1, 1, 1, 1), group=group)
    assert agree(w.finish(y), x, expected)[y].attrs["groups"] == group


@pytest.mark.parametrize("size", [8, 9])
@pytest.mark.parametrize(
    "auto_pad, kernel, strides, pads",
    [
        ("SAME_UPPER", (3, 3), (2, 2), {8: (0, 0, 1, 1), 9: (1, 1, 1, 1)}),
        ("SAME_UPPER", (2, 4), (1, 1), (0, 1, 1, 2)),
        ("SAME_LOWER", (2, 4), (1, 1), (1, 2, 0, 1)),
        ("SAME_LOWER", (1, 3), (2, 1), (0, 1, 0, 1)),
        ("VALID", (3, 3), (2, 2), (0, 0, 0, 0)),
        ("NOTSET", (3, 3), (2, 2), (0, 0, 0, 0)),
    ],
)
def test_auto_pad(auto_pad: str, kernel: tuple[int, int], strides: tuple[int, int], pads: Any, size: int) -> None:
    pads = pads[size] if isinstance(pads, dict) else pads
    weight, x = normal(2, 2, *kernel), normal(1, 2, size, size)
    w = OnnxWriter()
    y = w.op("Conv", w.input(*x.shape), w.constant(weight), auto_pad=auto_pad, strides=strides)
    graph = agree(w.finish(y), x, convolve(x, weight, strides=strides, pads=pads))
    assert (graph[y].attrs["padding"] == "same") == (auto_pad == "SAME_UPPER")


@pytest.mark.parametrize("opset, own", [(9, 0), (11, 0), (13, 1), (18, 0), (21, 1)])
def test_pad_before_a_conv(opset: int, own: int) -> None:
    weight, x = normal(3, 2, 3, 3), normal(1, 2, 6, 7)
    w = OnnxWriter(opset)
    w.input(*x.shape)
    if opset < 11:
        y = w.op("Pad", "x", pads=[0, 0, 0, 1, 0, 0, 1, 2])
    elif opset < 18:
        y = w.op("Pad", "x", w.constant([0, 0, 0, 1, 0, 0, 1, 2]), w.constant(0.0), mode="constant")
    else:
        y = w.op("Pad", "x", w.constant([1, 0, 2, 1]), "", w.constant([-1, 2]))
    pads = [own] * 4
    y = w.op("Conv", w.op("Identity", y), w.constant(weight), strides=[2, 2], pads=pads)
    agree(w.finish(y), x, convolve(x, weight, strides=(2, 2), pads=(own, 1 + own, 1 + own, 2 + own)))


def test_pads_add_up_and_may_be_nothing() -> None:
    weight, x = normal(3, 2, 3, 3), normal(1, 2, 6, 7)
    w = OnnxWriter()
    y = w.op("Pad", w.input(*x.shape), w.constant([0, 0, 1, 0, 0, 0, 0, 0]))
    y = w.op("Pad", y, w.constant([0, 0, 0, 2, 0, 0, 0, 1]))
    y = w.op("Conv", y, w.constant(weight), auto_pad="VALID")
    y = w.op("Relu", w.op("Pad", y, w.constant([0] * 8)))
    agree(w.finish(y), x, np.maximum(convolve(x, weight, pads=(1, 2, 0, 1)), 0))


# --- pools ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [9, 11, 17, 21])
@pytest.mark.parametrize("attrs", [{}, {"count_include_pad": 1}, {"ceil_mode": 1, "strides": [1, 1]}])
def test_average_pool_without_padding(attrs: dict[str, Any], opset: int) -> None:
    if opset < 10:
        attrs = {k: v for k, v in attrs.items() if k != "ceil_mode"}
    x = normal(1, 3, 7, 8)
    w = OnnxWriter(opset)
    y = w.op("AveragePool", w.input(*x.shape), kernel_shape=[3, 2], **{"strides": [2, 3]} | attrs)
    strides = attrs.get("strides", [2, 3])
    assert agree(w.finish(y), x, pooled(x, (3, 2), strides=strides))[y].op == "avg_pool2d"


def test_average_pool_of_pixels_alone() -> None:
    x, pads = normal(1, 3, 7, 8), (1, 0, 2, 1)
    count = pooled(np.ones_like(x), (3, 2), strides=(2, 1), pads=pads)
    w = OnnxWriter()
    y = w.op("AveragePool", w.input(*x.shape), kernel_shape=[3, 2], strides=[2, 1], pads=pads)
    agree(w.finish(y), x, pooled(x, (3, 2), strides=(2, 1), pads=pads) / count)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", ["attribute", "same", "pad"])
def test_average_pool_that_counts_the_padding(how: str, channels: int) -> None:
    x, pads = normal(1, channels, 8, 8), (1, 1, 1, 1)
    w = OnnxWriter()
    w.input(*x.shape)
    if how == "attribute":
        y = w.op("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=pads, count_include_pad=1)
    elif how == "same":
        pads = (0, 0, 1, 1)
        y = w.op("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER", count_include_pad=1)
    else:
        y = w.op("Pad", "x", w.constant([0, 0, 1, 1, 0, 0, 1, 1]))
        y = w.op("AveragePool", y, kernel_shape=[3, 3], strides=[2, 2])
    agree(w.finish(y), x, pooled(x, (3, 3), strides=(2, 2), pads=pads))


def test_a_window_over_all_of_a_fixed_map_is_a_global_pool() -> None:
    x = normal(1, 3, 7, 6)
    w = OnnxWriter()
    y = w.op("AveragePool", w.input(*x.shape), kernel_shape=[7, 6], strides=[7, 6])
    graph = agree(w.finish(y), x, x.mean((2, 3), keepdims=True))
    larger = normal(2, 3, 10, 9)
    np.testing.assert_allclose(run(graph, larger), larger.mean((2, 3), keepdims=True), atol=1e-6)
    # Of an open size it is what it says.
    w = OnnxWriter()
    y = w.op("AveragePool", w.input("n", 3, "h", "w"), kernel_shape=[7, 6], strides=[7, 6])
    agree(w.finish(y), larger, pooled(larger[:, :, :7, :6], (7, 6)))


def reduce_mean(w: OnnxWriter, x: str, axes: list[int], keepdims: int) -> str:
    if w.opset < 18:
        return w.op("ReduceMean", x, axes=axes, keepdims=keepdims)
    return w.op("ReduceMean", x, w.constant(axes), keepdims=keepdims)


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("steps", [[[2, 3]], [[-1, -2]], [[3], [2]], [[2], [-1]]])
def test_reduce_mean(steps: list[list[int]], keepdims: int, opset: int) -> None:
    x = normal(1, 3, 4, 5)
    w = OnnxWriter(opset)
    y = w.input(*x.shape)
    for axes in steps:
        y = reduce_mean(w, y, axes, keepdims)
    assert [n.op for n in agree(w.finish(y), x, x.mean((2, 3))[(...,) + (None,) * 2 * keepdims]).nodes] == [
        "input",
        "global_avg_pool",
    ]


def test_mean_over_a_flat_map() -> None:
    """x.flatten(2).mean(2)"""
    x = normal(1, 3, 4, 5)
    w = OnnxWriter()
    y = reduce_mean(w, w.op("Reshape", w.input(*x.shape), w.constant([0, 3, -1])), [2], 0)
    agree(w.finish(y), x, x.mean((2, 3)))
