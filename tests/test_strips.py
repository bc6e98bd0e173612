"""Blocks that run strip by strip (csrc/runtime/strip.cpp) and add what their own first convolution makes, as the first
block of MobileNetV3-Large does."""

from __future__ import annotations

import numpy as np
import pytest

from fastmobilenet import _native, fusion
from fastmobilenet.graph import RELU, RELU6, Activation, Graph, GraphBuilder
from fastmobilenet.lower import Engine
from tests.test_lower import assert_equal_to_reference, conv, picture

ISAS = _native.supported_isas()
SWISH = Activation("hard_swish", alpha=1 / 6, beta=0.5)


def block(channels: int = 24, k: int = 3, read_again: bool = False, end: bool = False) -> Graph:
    """A first convolution, a depthwise and a 1x1 one that adds what the first one made; perhaps something reads that
    once more, or the sum is all there is."""
    b = GraphBuilder()
    first = conv(b, b.add("input"), 3, channels, 3, 2, activation=SWISH)
    y = conv(b, first, channels, channels, k, groups=channels, activation=RELU)
    rng = np.random.default_rng(1)
    weight = (rng.standard_normal((channels, 1, 1, channels)) / channels**0.5).astype(np.float32)
    y = b.add("conv2d", y, first, params={"weight": weight}, stride=(1, 1), padding="same", groups=1, dilation=(1, 1))
    if read_again:
        y = b.add("add", y, first)
    return b.build(y if end else b.add("global_avg_pool", y), input_layout="NHWC")


def names(graph: Graph, h: int, w: int) -> list[str]:
    return [name for name, _ in Engine(graph).program(h, w).steps]


def test_it_is_one_step() -> None:
    assert sum(" + " in name and name.count("conv2d") == 3 for name in names(block(), 64, 64)) == 1
    for graph, size in ((block(read_again=True), 64), (block(), 8)):  # another reader; a map of one strip
        assert all(name.count("conv2d") <= 1 for name in names(graph, size, size))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [(64, 50), (61, 14), (35, 129), (8, 8), (3, 200)])
def test_equals_the_reference(isa: str, size: tuple[int, int]) -> None:
    for channels, k in ((24, 3), (8, 5), (40, 3)):
        for read_again in (False, True):
            graph = block(channels, k, read_again, end=True)
            assert_equal_to_reference(graph, picture(*size, n=2), isa)
            assert_equal_to_reference(graph, picture(*size), isa, threads=3)


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_every_thread_count(isa: str) -> None:
    engine = Engine(block(end=True), isa)
    x = picture(150, 70)
    expected = engine.run(x, threads=1, pixels=False)
    for threads in (2, 3, 7, 40):
        assert np.array_equal(engine.run(x, threads=threads, pixels=False), expected)


@pytest.mark.skipif("avx512" not in ISAS, reason="inner products are of avx512 only")
def test_inner_products_of_strips_have_the_same_bits_for_every_thread_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMOBILENET_INNER", "1")
    monkeypatch.setenv("FASTMOBILENET_AMX", "0")
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 32, 3, 2, activation=RELU6)
    y = conv(b, x, 32, 192, activation=RELU6)
    y = conv(b, y, 192, 192, 3, groups=192, activation=RELU6)
    x = b.add("add", x, conv(b, y, 192, 32))
    graph = b.build(conv(b, x, 32, 8, 3), input_layout="NHWC")  # layers that make scores are computed plainly
    engine = Engine(graph, "avx512")
    pixels = picture(28, 28)
    assert any("inner+dw" in kernel and kernel.count("inner") == 2 for _, kernel in engine.program(28, 28).steps)
    expected = engine.run(pixels, threads=1, pixels=False)
    for threads in (2, 3, 4, 7, 40):  # by rows, and by channels
        assert np.array_equal(engine.run(pixels, threads=threads, pixels=False), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k, s", [(1, 2), (1, 3), (2, 5), (3, 4)])
@pytest.mark.parametrize("from_picture", [True, False])
def test_rows_that_nobody_reads_are_not_made(
    isa: str, k: int, s: int, from_picture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the depthwise stride is larger than the window, there is no room for the rows between strips."""
    monkeypatch.setattr(fusion, "strip_rows", lambda *_: 2)
    for ways in ({}, {"FASTMOBILENET_AMX": "0", "FASTMOBILENET_INNER": "1"}):
        for name, value in ways.items():
            monkeypatch.setenv(name, value)
        b = GraphBuilder()
        x = b.add("input")
        if not from_picture:
            x = conv(b, x, 3, 32, activation=RELU6)
        y = conv(b, x, 3 if from_picture else 32, 96, 3 if from_picture else 1, activation=RELU6)
        y = conv(b, y, 96, 96, k, s, groups=96, padding=(0, 0, 0, 0), activation=RELU6)
        graph = b.build(conv(b, conv(b, y, 96, 16), 16, 8, 3), input_layout="NHWC")
        engine = Engine(graph, isa)
        assert any(name.count("conv2d") == 3 and kernel.endswith("/2") for name, kernel in engine.program(60, 44).steps)
        for threads in (1, 2, 3):
            assert_equal_to_reference(graph, picture(60, 44), isa, threads)
