"""Maps whose rows are narrower than a tile, or a bit wider: several rows are cut as one, and padded afterwards."""

from __future__ import annotations

import pytest

from fastmobilenet.graph import HARD_SWISH, RELU6, GraphBuilder
from fastmobilenet.lower import Engine

from .test_lower import ISAS, assert_equal_to_reference, conv, picture


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k", [3, 5])
def test_pointwise_before_depthwise(isa: str, k: int) -> None:
    for w in (1, 2, 5, 7, 8, 13, 14):
        for ic, oc in ((16, 24), (40, 72), (20, 48)):
            b = GraphBuilder()
            x = conv(b, b.add("input"), 3, ic)
            wide = conv(b, x, ic, oc, activation=RELU6)  # with the depthwise convolution in one step
            x = conv(b, conv(b, wide, oc, oc, k, groups=oc), oc, ic)
            wide = conv(b, x, ic, oc, activation=HARD_SWISH, seed=1)  # two readers: a step of its own
            y = conv(b, wide, oc, oc, k, groups=oc, seed=1)
            graph = b.build(b.add("add", y, wide), input_layout="NHWC")
            for h in (1, 7, 9):
                for threads in (1, 3):
                    assert_equal_to_reference(graph, picture(h, w), isa, threads)


@pytest.mark.skipif("avx2" not in ISAS, reason="this CPU has no AVX2")
def test_batches_and_threads_have_the_same_bits() -> None:
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 40)
    x = conv(b, conv(b, x, 40, 200), 200, 200, 3, groups=200)
    graph = b.build(conv(b, x, 200, 24), input_layout="NHWC")
    engine, x3 = Engine(graph, "avx2"), picture(7, 7, n=3)
    expected = [engine.run(x3[i : i + 1], threads=1, pixels=False).tobytes() for i in range(3)]
    for threads in (1, 2, 4):
        found = engine.run(x3, threads=threads, pixels=False)
        assert [found[i : i + 1].tobytes() for i in range(3)] == expected
