"""Winograd convolutions of stride 1 and 2 on the native runtime against reference.py, for every ISA of this machine."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from fastmobilenet import reference, winograd
from fastmobilenet.caches import Caches
from fastmobilenet.graph import HARD_SWISH, RELU, RELU6, SWISH, Activation, Graph, GraphBuilder
from fastmobilenet.lower import Engine
from fastmobilenet.passes import optimize

from .test_lower import ISAS, conv, picture

#: The transforms, by the stride: B^T of the inputs, A^T of the outputs, G of the weights.
B = {1: np.array([[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
                  [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]).T}  # fmt: skip
A = {1: np.array([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]).T}
G = {1: np.array([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24}
# Two taps over the even inputs, and one over the odd ones.
B[2], A[2], G[2] = np.zeros((9, 9)), np.zeros((9, 4)), np.zeros((9, 3))
B[2][::2, :5] = np.array(
    [[2, -1, -2, 1, 0], [0, -2, -1, 1, 0], [0, 2, -3, 1, 0], [0, -1, 0, 1, 0], [0, 2, -1, -2, 1]]
).T
A[2][:5] = np.array([[1, 1, 1, 1, 0], [0, 1, -1, 2, 0], [0, 1, 1, 4, 0], [0, 1, -1, 8, 1]]).T
G[2][:5, ::2] = np.array([[3, 0], [-3, -3], [-1, 1], [1, 2], [0, 6]]) / 6
B[2][1::2, 5:] = A[2][5:] = np.eye(4)
G[2][5:, 1] = 1
#: Largest sums of magnitudes of a row of each.
GROWTH = {s: [float(abs(m[s]).sum(axis).max()) for m, axis in ((B, 0), (A, 0), (G, 1))] for s in (1, 2)}


def bound(stride: int, x: np.ndarray, weight: np.ndarray, rest: float) -> float:
    """The largest error of an output: that of the largest product of transformed values, A^T m A of it with the worst
    signs, and the rounding of what comes behind.

    A transformed input is at most (growth of B)^2 times the largest input; most of its terms have independent signs, so
    the growth is taken once, and four deviations for the largest input. Sums over ic channels grow as the root of ic.
    Every operation is off by half a unit of its result: 3 in a dimension of B^T, 1 of the weights, ic in the sum, whose
    errors are independent, and 5 in a dimension of A^T."""
    inputs = np.sqrt((x.astype(np.float64) ** 2).mean()) * 4  # four times their deviation
    taps = np.sqrt((weight.astype(np.float64) ** 2).mean())
    ic = weight.shape[3]
    growth_b, growth_a, growth_g = GROWTH[stride]
    products = growth_b * inputs * growth_g**2 * taps * math.sqrt(ic)
    steps = 3 + 1 + math.sqrt(ic) + 5
    return float(np.finfo(np.float32).eps / 2 * (steps * growth_a * products + 4 * rest))


def force(monkeypatch: pytest.MonkeyPatch, tiles: int) -> None:
    """All convolutions that can run so do, in chunks of so many tiles."""
    monkeypatch.setattr(
        winograd, "chunk", lambda node, s, r, image, c: tiles if winograd.possible(node) and not image else 0
    )


def one(
    ic: int, oc: int, padding: Any, activation: Activation | None, add: bool = False, stride: int = 1
) -> tuple[Graph, np.ndarray]:
    """A 3x3 convolution of the input, the input in blocks, and its weights."""
    b = GraphBuilder()
    x = b.add("activation", b.add("input"), activation=RELU6)
    y = conv(b, x, ic, oc, 3, stride, padding=padding, activation=None if add else activation)
    if add:
        y = b.add("add", y, conv(b, x, ic, oc, 1, stride, seed=1), activation=activation)
    graph = b.build(y, input_layout="NHWC", input_channels=ic)
    weight = next(n.params["weight"] for n in graph.nodes if n.op == "conv2d")
    return graph, weight


def check(graph: Graph, weight: np.ndarray, x: np.ndarray, isa: str, threads: int = 1) -> np.ndarray:
    engine = Engine(graph, isa)
    kernels = [kernel for _, kernel in engine.program(*x.shape[1:3]).steps]
    assert any(kernel.startswith("winograd_f32") for kernel in kernels), kernels
    found = engine.run(x, threads=threads, pixels=False)
    expected = reference.execute(graph, x)[graph.output]
    stride = next(n.attrs["stride"][0] for n in graph.nodes if n.op == "conv2d")
    limit = bound(stride, x, weight, float(abs(expected).max()))
    assert limit < 1e-3 * max(float(abs(expected).max()), 1.0), "a bound that says nothing"
    assert np.abs(found - expected).max() <= limit
    return found


@pytest.mark.parametrize("stride, edge, growth", [(1, 6, [10, 19, 1]), (2, 9, [6, 12, 1])])
def test_the_transforms_are_a_convolution(stride: int, edge: int, growth: list[float]) -> None:
    """Of the matrices that the bound of the other tests is made of, exactly."""
    rng = np.random.default_rng(0)
    d, g = rng.integers(-9, 9, (edge, edge)).astype(np.float64), rng.integers(-9, 9, (3, 3)).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(d, (3, 3))[::stride, ::stride]
    exact = np.einsum("yxab,ab->yx", windows, g)
    b, a, w = B[stride], A[stride], G[stride]
    assert np.allclose(a.T @ ((w @ g @ w.T) * (b.T @ d @ b)) @ a, exact, rtol=1e-12, atol=1e-12)
    assert GROWTH[stride] == growth


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["same", (1, 1, 1, 1), (0, 0, 0, 0), (2, 0, 1, 3), (0, 3, 2, 0)])
def test_every_size(isa: str, padding: Any, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, 5)
    graph, weight = one(20, 24, padding, RELU, stride=stride)
    for h, w in zip((3, 4, 5, 6, 7, 9, 11, 8, 4), range(3, 12), strict=True):
        check(graph, weight, picture(h, w, 20), isa, threads=1 + (h + w) % 3)
        check(graph, weight, picture(w, h, 20), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("ic, oc", [(1, 1), (3, 8), (5, 17), (16, 16), (17, 40), (48, 24), (24, 33), (64, 72)])
def test_every_tail_of_channels(isa: str, ic: int, oc: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for tiles in (1, 14):
        force(monkeypatch, tiles)
        cases = ((False, None, 2), (True, RELU, 1), (False, HARD_SWISH, 1), (True, HARD_SWISH, 2), (True, None, 1))
        for add, activation, stride in cases:
            graph, weight = one(ic, oc, "same", activation, add, stride)
            assert len([n for n in optimize(graph).nodes if n.op in ("add", "activation")]) == 1, "fused"
            check(graph, weight, picture(13, 11, ic), isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
def test_small_maps(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, 3)
    for stride in (1, 2):
        graph, weight = one(20, 17, "same", RELU, stride=stride)
        for h, w in itertools.product((1, 2, 3), (1, 2, 3, 8)):
            check(graph, weight, picture(h, w, 20), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_readers_find_their_padding(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a Winograd convolution another one, of which the padding to the left and right is stored, and a concat
    whose parts lie between others."""
    force(monkeypatch, 4)
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 32, 3, 2, activation=RELU)
    u, v = conv(b, x, 32, 16, 3, activation=RELU), conv(b, x, 32, 32, activation=RELU)
    y = b.add("activation", conv(b, b.add("concat", u, v, conv(b, x, 32, 20, 3)), 68, 24, 3), activation=SWISH)
    graph = b.build(conv(b, conv(b, y, 24, 40, 3, 2), 40, 24, 5, 2), input_layout="NHWC")
    x = picture(37, 26)
    engine = Engine(graph, isa)
    assert sum(kernel.startswith("winograd") for _, kernel in engine.program(37, 26).steps) == 4
    expected = reference.execute(graph, x)[graph.output]
    engine.run(np.full_like(x, np.nan), pixels=False)  # what it leaves behind is not read
    for threads in (1, 2):
        found = engine.run(x, threads=threads, pixels=False)
        assert np.abs(found - expected).max() <= 3e-5 * np.abs(expected).max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_goes_to_its_tiles_only(isa: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    force(monkeypatch, 3)
    b = GraphBuilder()
    x = b.add("max_pool2d", b.add("input"), kernel=(1, 1), stride=(1, 1), padding=(0, 0, 0, 0))
    graph = b.build(conv(b, x, 20, 24, 3, activation=RELU), input_layout="NHWC", input_channels=20)
    x = picture(13, 14, 20)
    whole = Engine(graph, isa).run(x, pixels=False)
    for y, px in ((0, 0), (6, 6), (12, 13), (8, 3)):
        spoiled = x.copy()
        spoiled[0, y, px, 7] = value
        found = Engine(graph, isa).run(spoiled, pixels=False)[0]
        finite = np.isfinite(found)
        reach = np.zeros((13, 14), bool)
        reach[max(y - 1, 0) : y + 2, max(px - 1, 0) : px + 2] = True
        assert np.isnan(found[reach]).all() if np.isnan(value) else not finite[reach].all(axis=-1).any()
        # Tiles of 4x4 outputs read one pixel around them.
        tiles = {(a // 4, c // 4) for a, c in np.argwhere(reach)}
        other = np.array([[(a // 4, c // 4) not in tiles for c in range(14)] for a in range(13)])
        assert np.array_equal(found[other], whole[0][other])


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_every_chunk_thread_count_and_batch(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for ic, oc, stride in ((20, 40, 1), (64, 200, 1), (40, 70, 2)):  # threads share tiles, panels, tiles
        graph, _ = one(ic, oc, "same", RELU, add=True, stride=stride)
        x = picture(23, 18, ic, n=3)
        results = []
        for tiles in (4, 1000):  # several chunks, and one
            force(monkeypatch, tiles)
            engine = Engine(graph, isa)
            results += [engine.run(x, threads=1, pixels=False)]
            results += [engine.run(x[:1], threads=threads, pixels=False) for threads in (1, 2, 3, 7)]
        assert all(np.array_equal(r, results[0][: len(r)]) for r in results)
        assert np.array_equal(results[0][1:2], Engine(graph, isa).run(x[1:2], pixels=False))


def test_weights_are_given_back_as_they_were() -> None:
    graph, weight = one(128, 128, "same", None)
    engine = Engine(graph)
    before = engine.weight_bytes
    engine.program(28, 28)
    assert engine.weight_bytes > before, "the transformed ones count"
    found = next(n.params["weight"] for n in engine.graph().nodes if n.op == "conv2d")
    assert np.array_equal(found, weight)
    heir = Engine(engine.skeleton, base=engine)
    node = graph.nodes[-1]
    of_heir, of_engine = (e._factors.of_winograd(e._weights[node.name], node) for e in (heir, engine))
    assert of_heir is of_engine


def test_the_choice() -> None:
    caches = Caches(32 << 10, 1 << 20)

    def chunk(ic: int, oc: int, size: int, *, image: bool = False, **attrs: Any) -> int:
        b = GraphBuilder()
        y = conv(b, b.add("input"), ic, oc, attrs.pop("k", 3), **attrs)
        node = b.build(y, input_channels=ic).nodes[-1]
        shape = (1, size, size)
        return winograd.chunk(node, (*shape, ic), (*shape, oc), image, caches)

    for ic, oc, size in ((16, 64, 55), (32, 128, 27), (48, 192, 13), (64, 256, 13), (64, 192, 56)):
        assert chunk(ic, oc, size) > 0
        assert chunk(ic, oc, size, image=True) == 0
        for other in ({"k": 1}, {"k": 5}, {"k": (3, 1)}, {"s": 3}, {"s": (1, 2)}, {"dilation": 2}, {"groups": 2}):
            assert chunk(ic, oc, size, **other) == 0
    assert chunk(64, 256, 13) == 16, "all tiles of the map"
    assert chunk(16, 64, 1) == chunk(16, 64, 2) == 0, "a tile is 4x4"
    assert chunk(3, 8, 56) == 0, "the transforms take longer than the products"
    assert chunk(512, 512, 7) == 0, "four times the weights, for one and a half times fewer products"
