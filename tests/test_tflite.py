"""TFLite files, written here, against results computed here: every operator, padding and kind of quantisation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from fastmobilenet import reference
from fastmobilenet.errors import ModelError
from fastmobilenet.graph import RELU, RELU6, Activation, Graph
from fastmobilenet.importers import tflite
from tests.tflite_files import NONE, SAME, VALID, TfliteWriter, i8, i32

RNG = np.random.default_rng(7)


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    return reference.execute(graph, x)[graph.output]


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def same_size(size: int, stride: int) -> int:
    return -(-size // stride)


def valid_size(size: int, kernel: int, stride: int, dilation: int = 1) -> int:
    return (size - (kernel - 1) * dilation - 1) // stride + 1


def convolve(
    x: np.ndarray,
    weight: np.ndarray,
    stride: Sequence[int],
    padding: int | Sequence[int],
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """x (n, h, w, c) with weight (oc, kh, kw, ic), pixel by pixel; ``padding`` is SAME, VALID or four numbers."""
    n, h, w, c = x.shape
    oc, kh, kw, ic = weight.shape
    if padding == VALID:
        padding = (0, 0, 0, 0)
    if padding == SAME:
        pads = []
        for size, k, s, d in zip((h, w), (kh, kw), stride, dilation, strict=True):
            total = max((same_size(size, s) - 1) * s + (k - 1) * d + 1 - size, 0)
            pads += [total // 2, total - total // 2]
        padding = pads
    top, bottom, left, right = padding  # type: ignore[misc]
    oh = valid_size(h + top + bottom, kh, stride[0], dilation[0])
    ow = valid_size(w + left + right, kw, stride[1], dilation[1])
    y = np.zeros((n, oh, ow, oc))
    for oy, ox, ky, kx in np.ndindex(oh, ow, kh, kw):
        iy = oy * stride[0] + ky * dilation[0] - top
        ix = ox * stride[1] + kx * dilation[1] - left
        if 0 <= iy < h and 0 <= ix < w:
            for o in range(oc):
                first = o // (oc // groups) * (c // groups)
                y[:, oy, ox, o] += x[:, iy, ix, first : first + ic].astype(np.float64) @ weight[o, ky, kx]
    return y


@pytest.mark.parametrize("dilation", [(1, 1), (2, 1)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 5)])
@pytest.mark.parametrize("padding", [SAME, VALID])
def test_conv(padding: int, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]) -> None:
    h, w = 9, 8
    weight, bias = normal(4, *kernel, 3), normal(4)
    x = normal(1, h, w, 3)
    expected = convolve(x, weight, stride, padding, dilation) + bias
    t = TfliteWriter()
    source, target = t.tensor("image", x.shape), t.tensor("maps", expected.shape)
    t.conv(
        source,
        t.constant("w", weight),
        t.constant("b", bias),
        target,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )
    graph = tflite.load(t.finish(source, target), "some/folder/net.tflite")
    np.testing.assert_allclose(run(graph, x), expected, rtol=1e-6, atol=1e-6)
    assert (graph.name, graph.input_size, graph.input_channels, graph.input_layout) == ("net", (h, w), 3, "NHWC")
    assert [node.name for node in graph.nodes] == ["image", "maps"]


@pytest.mark.parametrize("multiplier", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [SAME, VALID])
def test_depthwise(padding: int, stride: int, multiplier: int) -> None:
    channels = 4
    stored, bias = normal(1, 3, 3, channels * multiplier), normal(channels * multiplier)
    x = normal(1, 8, 7, channels)
    weight = stored.transpose(3, 1, 2, 0)
    expected = convolve(x, weight, (stride, stride), padding, groups=channels) + bias
    t = TfliteWriter()
    source, target = t.tensor("x", x.shape), t.tensor("y", expected.shape)
    weights = t.constant("w", stored), t.constant("b", bias)
    t.depthwise(source, *weights, target, stride=(stride, stride), padding=padding, multiplier=multiplier)
    graph = tflite.load(t.finish(source, target))
    np.testing.assert_allclose(run(graph, x), expected, rtol=1e-6, atol=1e-6)


def test_grouped_conv_without_bias() -> None:
    weight, x = normal(6, 3, 3, 2), normal(1, 5, 5, 4)
    expected = convolve(x, weight, (1, 1), SAME, groups=2)
    t = TfliteWriter()
    source, target = t.tensor("x", x.shape), t.tensor("y", expected.shape)
    t.conv(source, t.constant("w", weight), -1, target)
    graph = tflite.load(t.finish(source, target))
    np.testing.assert_allclose(run(graph, x), expected, rtol=1e-6, atol=1e-6)
    assert "bias" not in graph["y"].params


def test_same_padding_is_resolved_for_each_size() -> None:
    weight = normal(2, 3, 3, 3)
    t = TfliteWriter()
    source, target = t.tensor("x", (1, 8, 8, 3)), t.tensor("y", (1, 4, 4, 2))
    t.conv(source, t.constant("w", weight), -1, target, stride=(2, 2))
    graph = tflite.load(t.finish(source, target))
    for h, w in ((8, 8), (9, 9), (7, 12), (1, 1)):
        x = normal(2, h, w, 3)
        np.testing.assert_allclose(run(graph, x), convolve(x, weight, (2, 2), SAME), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "code, expected",
    [(0, None), (1, RELU), (2, Activation("clamp", -1.0, 1.0)), (3, RELU6)],
)
def test_fused_activation(code: int, expected: Activation | None) -> None:
    shape = (1, 2, 2, 3)
    t = TfliteWriter()
    tensors = [t.tensor(name, shape) for name in ("x", "conv", "depthwise", "add", "pool", "dense")]
    x, a, b, c, d, e = tensors
    t.identity(x, a, activation=code)
    t.depthwise(a, t.constant("w", normal(1, 1, 1, 3)), -1, b, activation=code)
    t.add(a, b, c, activation=code)
    t.average_pool(c, d, (1, 1), activation=code)
    t.fully_connected(d, t.constant("w2", normal(5, 12)), -1, e, activation=code)
    t.tensors[e][0] = np.array([1, 5], np.int32)
    graph = tflite.load(t.finish(x, e))
    found = [node.activation for node in graph.nodes if node.op not in ("input", "avg_pool2d")]
    assert found == [expected] * (4 if expected is None else 5)


def test_activation_nodes() -> None:
    t = TfliteWriter()
    x, *ys = [t.tensor(f"t{i}", (1, 2, 3, 3)) for i in range(4)]
    for source, kind, target in zip([x, *ys], ("RELU_N1_TO_1", "RELU", "RELU6"), ys, strict=False):
        t.op(kind, [source], [target])
    graph = tflite.load(t.finish(x, ys[-1]))
    assert [str(n.activation) for n in graph.nodes[1:]] == ["clamp(-1, 1)", "relu", "relu6"]
    values = 8 * normal(1, 2, 3, 3)
    np.testing.assert_allclose(run(graph, values), np.clip(values, 0, 1))


@pytest.mark.parametrize("padding", [SAME, VALID])
def test_average_pool_counts_real_pixels_only(padding: int) -> None:
    x = normal(1, 7, 6, 2)
    size = [same_size(s, 2) if padding == SAME else valid_size(s, 3, 2) for s in (7, 6)]
    ones = convolve(np.ones((1, 7, 6, 1)), np.ones((1, 3, 3, 1)), (2, 2), padding)
    depthwise = np.ones((2, 3, 3, 1))
    expected = convolve(x, depthwise, (2, 2), padding, groups=2) / ones
    t = TfliteWriter()
    source, target = t.tensor("x", x.shape), t.tensor("y", (1, *size, 2))
    t.average_pool(source, target, (3, 3), (2, 2), padding)
    graph = tflite.load(t.finish(source, target))
    assert graph["y"].op == "avg_pool2d"
    np.testing.assert_allclose(run(graph, x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stride", [(1, 1), (4, 3)])
@pytest.mark.parametrize("activation", [NONE, 1])
def test_a_window_over_the_whole_map_is_the_mean_at_every_size(stride: tuple[int, int], activation: int) -> None:
    t = TfliteWriter()
    source, target = t.tensor("x", (1, 4, 3, 5)), t.tensor("y", (1, 1, 1, 5))
    t.average_pool(source, target, (4, 3), stride, activation=activation)
    graph = tflite.load(t.finish(source, target))
    for h, w in ((4, 3), (10, 7), (1, 1)):
        x = normal(1, h, w, 5)
        expected = x.astype(np.float64).mean(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(run(graph, x), np.maximum(expected, 0) if activation else expected, rtol=1e-6)


@pytest.mark.parametrize(
    "shape, signature, window, expected",
    [
        ((1, 1, 1, 5), None, (1, 1), (1, 4, 4, 5)),
        ((1, 1, 1, 5), (-1, -1, -1, 5), (2, 2), (1, 3, 3, 5)),  # what is left open is stored as 1
        ((1, 1, 4, 5), (-1, -1, 4, 5), (2, 4), (1, 3, 1, 5)),
    ],
)
def test_a_window_that_is_not_over_the_whole_map(
    shape: tuple[int, ...], signature: tuple[int, ...] | None, window: tuple[int, int], expected: tuple[int, ...]
) -> None:
    t = TfliteWriter()
    source = t.tensor("x", shape, signature=signature)
    target = t.tensor("y", (1, 1, 1, 5), signature=signature and (-1, -1, -1, 5))
    t.average_pool(source, target, window)
    assert run(tflite.load(t.finish(source, target)), normal(1, 4, 4, 5)).shape == expected


@pytest.mark.parametrize("axes", [(1, 2), (2, 1), (-3, -2)])
@pytest.mark.parametrize("keep", [False, True])
def test_mean(axes: tuple[int, int], keep: bool) -> None:
    t = TfliteWriter()
    source, target = t.tensor("x", (2, 3, 3, 5)), t.tensor("y", (2, 1, 1, 5) if keep else (2, 5))
    t.mean(source, target, axes, keep=keep)
    graph = tflite.load(t.finish(source, target))
    x = normal(2, 6, 5, 5)
    np.testing.assert_allclose(run(graph, x), x.mean(axis=(1, 2), keepdims=True, dtype=np.float64))


def classifier(reshape: Callable[[TfliteWriter, int, int], None]) -> tuple[TfliteWriter, int, int]:
    """Mean, a layer that turns (1, 1, 1, c) into (1, c), dense, softmax."""
    t = TfliteWriter()
    x, m, v = t.tensor("x", (1, 3, 3, 4)), t.tensor("m", (1, 1, 1, 4)), t.tensor("v", (1, 4))
    d, y = t.tensor("d", (1, 6)), t.tensor("y", (1, 6))
    t.mean(x, m, keep=True)
    reshape(t, m, v)
    t.fully_connected(v, t.constant("w", WEIGHT), t.constant("b", BIAS), d)
    t.softmax(d, y)
    return t, x, y


WEIGHT, BIAS = normal(6, 4), normal(6)


def open_batch(t: TfliteWriter, x: int, y: int) -> None:
    """A RESHAPE whose target is computed, as converters write it where the batch is open."""
    shape, part, target = (t.tensor(name, size, "int32") for name, size in (("s", (4,)), ("p", ()), ("t", (2,))))
    t.op("SHAPE", [x], [shape])
    t.op("STRIDED_SLICE", [shape], [part])
    t.op("PACK", [part], [target])
    t.op("RESHAPE", [x, target], [y])


@pytest.mark.parametrize(
    "reshape",
    [
        lambda t, x, y: t.reshape(x, y, (-1, 4)),
        lambda t, x, y: t.op("SQUEEZE", [x], [y], {0: np.array([1, 2], np.int32)}, 30),
        open_batch,
    ],
)
def test_classifier_head(reshape: Callable[[TfliteWriter, int, int], None]) -> None:
    t, source, target = classifier(reshape)
    graph = tflite.load(t.finish(source, target))
    assert [n.op for n in graph.nodes] == ["input", "global_avg_pool", "dense", "softmax"]
    x = normal(3, 5, 4, 4)
    logits = x.mean(axis=(1, 2), dtype=np.float64) @ WEIGHT.T.astype(np.float64) + BIAS
    e = np.exp(logits)
    np.testing.assert_allclose(run(graph, x)[:, 0, 0], e / e.sum(axis=1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("amounts", [(0, 1, 0, 1), (1, 1, 1, 1), (2, 0, 1, 3), (0, 0, 0, 0)])
def test_pad_is_folded_into_every_convolution_behind_it(amounts: tuple[int, int, int, int]) -> None:
    first, second = normal(2, 3, 3, 3), normal(2, 3, 3, 3)
    x = normal(1, 8, 6, 3)
    expected = [convolve(x, w, (2, 2), amounts) for w in (first, second)]
    t = TfliteWriter()
    source = t.tensor("x", x.shape)
    p = t.padded(source, amounts)
    maps = [t.tensor(name, expected[0].shape) for name in ("a", "b", "sum")]
    t.conv(p, t.constant("w1", first), -1, maps[0], stride=(2, 2), padding=VALID)
    t.conv(p, t.constant("w2", second), -1, maps[1], stride=(2, 2), padding=VALID)
    t.add(maps[0], maps[1], maps[2])
    graph = tflite.load(t.finish(source, maps[2]))
    assert graph["a"].attrs["padding"] == amounts
    np.testing.assert_allclose(run(graph, x), sum(expected), rtol=1e-6, atol=1e-6)


def test_open_height_and_width() -> None:
    t = TfliteWriter()
    x = t.tensor("x", (1, 1, 1, 3), signature=(-1, -1, -1, 3))
    y = t.tensor("y", (1, 1, 1, 2), signature=(-1, -1, -1, 2))
    weight = normal(2, 3, 3, 3)
    t.conv(x, t.constant("w", weight), -1, y, stride=(2, 2))
    graph = tflite.load(t.finish(x, y))
    assert graph.input_size == (224, 224)
    image = normal(1, 5, 6, 3)
    np.testing.assert_allclose(run(graph, image), convolve(image, weight, (2, 2), SAME), rtol=1e-6, atol=1e-6)


def test_operators_are_numbered_in_two_ways() -> None:
    """A byte in old files; 32 bits in new ones, where the byte says 127 if the number does not fit."""
    t = TfliteWriter()
    x, y, z = (t.tensor(name, (1, 2, 2, 3)) for name in "xyz")
    t.op("RELU", [x], [y])
    t.op("RELU6", [y], [z])
    assert (t.codes[0][0].value, t.codes[1][0].value) == (19, 21)
    del t.codes[0][3], t.codes[1][0]
    assert [n.activation for n in tflite.load(t.finish(x, z)).nodes[1:]] == [RELU, RELU6]
    t.codes[1] = {0: i8(127), 3: i32(150)}
    with pytest.raises(ModelError, match=r"node 'z' \(operator 1, GELU\) is not supported"):
        tflite.load(t.finish(x, z))
    t.codes[1] = {0: i8(127), 3: i32(12345)}
    with pytest.raises(ModelError, match=r"\(operator 1, builtin operator 12345\)"):
        tflite.load(t.finish(x, z))


def test_names_of_fused_layers() -> None:
    t = TfliteWriter()
    x, *ys = [t.tensor(name, (1, 2, 2, 3)) for name in ("in", "a/Relu;a/BiasAdd;a/Conv", "a/Relu;b", "", "z" * 300)]
    for source, target in zip([x, *ys], ys, strict=False):
        t.op("RELU", [source], [target])
    graph = tflite.load(t.finish(x, ys[-1]))
    assert [n.name for n in graph.nodes] == ["in", "a/Relu", "a/Relu#2", "tensor_3", "z" * 200]
