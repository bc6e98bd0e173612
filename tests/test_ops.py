"""The ops of the family beyond V1 and V2 on the native runtime, against reference.py, for every ISA of this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmobilenet import reference
from fastmobilenet.graph import HARD_SIGMOID, HARD_SWISH, RELU, SIGMOID, SWISH, Activation, Graph, GraphBuilder
from fastmobilenet.lower import Engine
from fastmobilenet.passes import optimize

from .test_lower import ISAS, assert_equal_to_reference, conv, picture, weights

ACTIVATIONS = [HARD_SIGMOID, HARD_SWISH, SIGMOID, SWISH, Activation("hard_sigmoid", alpha=0.2, beta=0.4)]


def nhwc(b: GraphBuilder, output: str, **fields: Any) -> Graph:
    return b.build(output, input_layout="NHWC", **fields)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activation_behind_everything(isa: str, activation: Activation) -> None:
    for groups, k, oc in ((1, 3, 20), (20, 3, 20), (20, 5, 20), (1, 1, 24), (20, 4, 20), (4, 3, 8)):
        b = GraphBuilder()
        x = conv(b, b.add("input"), 3, 20, 3, 2)
        y = b.add("activation", conv(b, x, 20, oc, k, groups=groups), activation=activation)
        assert_equal_to_reference(nhwc(b, y), 4 * picture(13, 9), isa)
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 20)
    y = b.add("activation", b.add("mul", b.add("add", x, x, activation=activation), x), activation=activation)
    assert_equal_to_reference(nhwc(b, y), picture(5, 7), isa)
    # Two readers: the activation stays an op of its own.
    assert_equal_to_reference(nhwc(b, b.add("add", y, x)), picture(5, 7), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activation_of_extreme_values(isa: str, activation: Activation) -> None:
    b = GraphBuilder()
    graph = nhwc(b, b.add("activation", b.add("input"), activation=activation), input_channels=1)
    x = np.float32([0, -0.0, 1e-6, 3, -3, 20, -20, 86, -86, 88, -88, 1e4, -1e4, 1e30, -1e30, np.inf, np.nan])
    found = Engine(graph, isa).run(x.reshape(1, 1, -1, 1), pixels=False).ravel()
    expected = reference.execute(graph, x.reshape(1, 1, -1, 1))[graph.output].ravel()
    assert np.isnan(found[-1])
    assert np.isnan(found[:-1]).sum() == np.isnan(expected[:-1]).sum() == 0
    with np.errstate(invalid="ignore"):
        assert np.allclose(found[:-1], expected[:-1], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("gate", ACTIVATIONS, ids=str)
def test_squeeze_and_excite(isa: str, gate: Activation) -> None:
    for c, squeezed in ((16, 8), (72, 24), (40, 5)):
        b = GraphBuilder()
        x = conv(b, b.add("input"), 3, c, 3, 2)
        x = b.add("activation", x, activation=HARD_SWISH)
        s = b.add("activation", conv(b, b.add("global_avg_pool", x), c, squeezed), activation=RELU)
        s = b.add("activation", conv(b, s, squeezed, c), activation=gate)
        y = conv(b, b.add("mul", x, s), c, 24)
        graph = nhwc(b, y)
        for threads in (1, 2):
            assert_equal_to_reference(graph, picture(27, 14, n=2), isa, threads)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", ["max_pool2d", "avg_pool2d"])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("count", [False, True])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 1, 1, 1), (0, 1, 1, 0), "same"])
def test_pools(isa: str, op: str, ceil: bool, count: bool, padding: Any) -> None:
    for kernel, stride in (((3, 3), (2, 2)), ((2, 3), (1, 2)), ((3, 2), (3, 1))):
        for h, w in ((13, 14), (6, 5), (3, 3)):
            b = GraphBuilder()
            x = conv(b, b.add("input"), 3, 20, 3)
            extra = {"count_padding": count} if op == "avg_pool2d" else {}
            y = b.add(op, x, kernel=kernel, stride=stride, padding=padding, ceil=ceil, **extra)
            assert_equal_to_reference(nhwc(b, y), picture(h, w), isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_max_pool_of_special_values(isa: str) -> None:
    b = GraphBuilder()
    graph = nhwc(b, b.add("max_pool2d", b.add("input"), kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1)))
    x = -1 - np.abs(picture(8, 8))
    x[0, 2, 2] = np.nan
    x[0, 6, 6] = -np.inf
    found, expected = Engine(graph, isa).run(x, pixels=False), reference.execute(graph, x)[graph.output]
    assert np.array_equal(found, expected.astype(np.float32), equal_nan=True)
    assert np.isnan(found[0, 1:4, 1:4]).all()
    assert (found[0, 5:, 5:] < 0).all(), "padding does not count"


@pytest.mark.parametrize("isa", ISAS)
def test_adaptive_pool(isa: str) -> None:
    for size in ((1, 1), (2, 3), (6, 6), (9, 11)):
        for h, w in ((6, 6), (5, 13), (9, 11), (1, 1)):
            b = GraphBuilder()
            y = b.add("adaptive_avg_pool2d", conv(b, b.add("input"), 3, 20), size=size)
            assert_equal_to_reference(nhwc(b, y), picture(h, w), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [(16, 32, 20), (16, 16), (20, 16), (7, 5, 3), (48,)])
def test_concat(isa: str, channels: tuple[int, ...]) -> None:
    for padded in (False, True):
        b = GraphBuilder()
        x = conv(b, b.add("input"), 3, 24)
        parts = [conv(b, x, 24, c, 1 + 2 * (i % 2), seed=i) for i, c in enumerate(channels)]
        y = b.add("concat", *parts)
        if padded:  # a reader that wants padding around the parts
            y = conv(b, y, sum(channels), 24, 3)
        assert_equal_to_reference(nhwc(b, y), picture(7, 9), isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_concat_of_shared_and_repeated_tensors(isa: str) -> None:
    b = GraphBuilder()
    x = b.add("input")
    u, v = conv(b, x, 3, 16), conv(b, x, 3, 32, 3)
    first = b.add("concat", u, v)
    second = b.add("concat", first, u, v)  # a concat inside of a concat, and tensors in two of them
    third = b.add("concat", second, second, b.add("activation", u, activation=RELU))
    y = b.add("add", conv(b, third, 208, 48, 3), b.add("activation", first, activation=RELU))
    assert_equal_to_reference(nhwc(b, y), picture(7, 9), isa, threads=2)
    b = GraphBuilder()
    x = b.add("input")
    y = b.add("concat", x, conv(b, x, 3, 16, 3), x)
    assert_equal_to_reference(nhwc(b, y), picture(7, 9), isa)
    assert_equal_to_reference(nhwc(b, b.add("concat", y)), picture(7, 9), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_gather_channels(isa: str) -> None:
    rng = np.random.default_rng(0)
    for c in (5, 16, 58, 70):
        for size in (1, 16, 29, 100):
            b = GraphBuilder()
            x = b.add("input")
            u, v = conv(b, x, 3, c), conv(b, x, 3, 20, 3)
            y = b.add("gather_channels", u, v, index=tuple(rng.integers(0, c + 20, size).tolist()))
            assert_equal_to_reference(nhwc(b, y), picture(6, 5), isa, threads=2)
            assert_equal_to_reference(nhwc(b, conv(b, y, size, 20, 3)), picture(6, 5), isa)


def shuffle_net(channels: int) -> Graph:
    """Three units as ShuffleNet V2 has them."""
    b = GraphBuilder()
    half = channels // 2
    x = conv(b, b.add("input"), 3, channels, 3, 2, activation=RELU)
    for unit in range(3):
        left = b.add("gather_channels", x, index=tuple(range(half)))
        right = b.add("gather_channels", x, index=tuple(range(half, channels)))
        right = conv(b, right, half, half, activation=RELU, seed=unit)
        right = conv(b, right, half, half, 3, groups=half, seed=unit)
        right = conv(b, right, half, half, activation=RELU, seed=unit)
        x = b.add("concat", left, right)
        index = np.arange(channels).reshape(2, half).T.ravel()
        x = b.add("gather_channels", x, index=tuple(index.tolist()))
    return nhwc(b, x)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [24, 58, 64, 116])
def test_shuffle_units(isa: str, channels: int) -> None:
    graph = shuffle_net(channels)
    assert_equal_to_reference(graph, picture(15, 18), isa, threads=2)
    ops = [n.op for n in optimize(graph).nodes]
    assert "concat" not in ops
    assert ops.count("gather_channels") == 7, "two for each unit, and the last one whole"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "groups, ic, oc", [(2, 8, 8), (3, 60, 240), (4, 272, 68), (8, 16, 24), (5, 5, 20), (2, 64, 96)]
)
def test_grouped_convolution(isa: str, groups: int, ic: int, oc: int) -> None:
    for k, s in ((1, 1), (3, 2), (5, 1)):
        b = GraphBuilder()
        x = conv(b, b.add("input"), 3, ic, activation=RELU)
        y = conv(b, x, ic, oc, k, s, groups=groups, activation=HARD_SWISH)
        graph = nhwc(b, y)
        assert_equal_to_reference(graph, picture(9, 7), isa, threads=2)
        packed = Engine(graph, isa).graph()[y].params["weight"]
        assert np.array_equal(packed, graph[y].params["weight"])
    b = GraphBuilder()
    y = conv(b, b.add("input"), ic, oc, 3, groups=groups)
    assert_equal_to_reference(nhwc(b, y, input_channels=ic), picture(6, 5, ic), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_dense_layer_over_a_map(isa: str) -> None:
    for c, (h, w) in ((16, (3, 2)), (20, (2, 5)), (3, (1, 1))):
        rng = np.random.default_rng(c)
        b = GraphBuilder()
        x = conv(b, b.add("input"), 3, c)
        y = b.add("dense", x, params={"weight": weights(rng, 21, h * w * c), "bias": weights(rng, 21)})
        graph = nhwc(b, y, input_size=(h, w))
        assert_equal_to_reference(graph, picture(h, w, n=3), isa, threads=2)
        assert np.array_equal(Engine(graph, isa).graph()[y].params["weight"], graph[y].params["weight"])
        # Another reader wants padding around the same map.
        z = b.add("global_avg_pool", conv(b, x, c, 21, 3))
        assert_equal_to_reference(nhwc(b, b.add("add", y, z), input_size=(h, w)), picture(h, w), isa)
        engine = Engine(graph, isa)  # what a picture of NaN leaves in the arena is not read by the next
        engine.run(np.full((1, h, w, 3), np.nan, np.float32), pixels=False)
        assert np.isfinite(engine.run(picture(h, w), pixels=False)).all()
    b = GraphBuilder()
    y = b.add("dense", b.add("input"), params={"weight": weights(np.random.default_rng(1), 5, 4 * 4 * 3)})
    assert_equal_to_reference(nhwc(b, y, input_size=(4, 4)), picture(4, 4), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [1, 2, 5, 40])
def test_lrn(isa: str, size: int) -> None:
    b = GraphBuilder()
    y = b.add("lrn", conv(b, b.add("input"), 3, 20), size=size, alpha=0.5, beta=0.75, bias=2.0)
    assert_equal_to_reference(nhwc(b, y), 3 * picture(5, 6), isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_batch_norm_of_the_input(isa: str, channels: int, layout: str) -> None:
    rng = np.random.default_rng(channels)
    params = {key: rng.uniform(0.5, 2, channels).astype(np.float32) for key in ("gamma", "beta", "mean", "variance")}
    b = GraphBuilder()
    x = b.add("batch_norm", b.add("input"), params=params, epsilon=1e-3)
    graph = b.build(conv(b, x, channels, 17, 3, 2), input_layout=layout, input_channels=channels)
    assert_equal_to_reference(graph, picture(9, 37, channels), isa)
    assert ("batch_norm" in [n.op for n in optimize(graph).nodes]) is False
    if channels == 3:
        pixels = rng.integers(0, 256, (1, 9, 37, 3), np.uint8)
        p = graph.preprocess
        floats = (pixels - np.float64(p.mean)) / np.float64(p.std)
        expected = reference.execute(graph, floats)[graph.output]
        found = Engine(graph, isa).run(pixels, pixels=True)
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("isa", ISAS)
def test_element_wise_ops_over_each_other(isa: str) -> None:
    """Ops that may write over their input, where something still needs it."""
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 24, 3)
    y = b.add("activation", x, activation=RELU)
    z = b.add("mul", y, x)
    y2 = b.add("add", z, y)
    y3 = b.add("activation", y2, activation=HARD_SWISH)
    y4 = b.add("add", y3, y3)
    vector = b.add("global_avg_pool", y4)
    y5 = b.add("add", b.add("mul", y4, vector), vector)
    y6 = conv(b, y5, 24, 24, 3)
    assert_equal_to_reference(nhwc(b, b.add("add", y6, y5, activation=SWISH)), picture(8, 9), isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_every_thread_count_and_batch(isa: str) -> None:
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 64, 3, 2)
    x = b.add("max_pool2d", x, kernel=(3, 3), stride=(2, 2), padding=(0, 0, 0, 0), ceil=True)
    s = b.add("activation", conv(b, b.add("global_avg_pool", x), 64, 64), activation=SIGMOID)
    x = b.add("mul", x, s)
    u = b.add("activation", conv(b, x, 64, 96, groups=4), activation=HARD_SWISH)
    v = conv(b, x, 64, 32, 3, groups=2)
    x = b.add("gather_channels", b.add("concat", u, v), index=tuple(np.random.default_rng(0).permutation(128).tolist()))
    x = b.add("lrn", x, size=5, alpha=1e-2, beta=0.75, bias=1.0)
    engine = Engine(nhwc(b, b.add("adaptive_avg_pool2d", x, size=(3, 2))), isa)
    pictures = picture(33, 29, n=5)
    expected = np.concatenate([engine.run(pictures[i : i + 1], threads=1, pixels=False) for i in range(5)])
    for threads in (1, 2, 3, 4):
        for n in (1, 5):
            assert np.array_equal(engine.run(pictures[:n], threads=threads, pixels=False), expected[:n])
