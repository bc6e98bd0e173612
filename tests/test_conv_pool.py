"""The first convolution and the pool behind it as one step: the bits of two steps, and where it is done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmobilenet import _native, caches, fusion, models
from fastmobilenet.graph import HARD_SWISH, RELU, Graph, GraphBuilder, infer_shapes
from fastmobilenet.lower import Engine

from .test_lower import assert_equal_to_reference, conv, picture

ISAS = _native.supported_isas()


def network(oc: int, k: int, s: int, op: str, activation: Any = RELU, padded: bool = False, **pool: Any) -> Graph:
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, oc, k, s, activation=activation)
    x = b.add(op, x, **pool)
    if padded:  # the reader of the pool wants padding
        x = conv(b, x, oc, oc, 3, groups=oc)
    return b.build(x, input_layout="NHWC")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Any:
    """rows(n): so many rows of the pool at a time, whatever the size of the map; none for 0."""

    def force(n: int) -> None:
        monkeypatch.setattr(fusion, "pooled_rows", lambda *_: n)

    return force


def kernels(engine: Engine, h: int, w: int) -> list[str]:
    return [kernel for _, kernel in engine.program(h, w).steps]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    "pool",
    [
        {"op": "max_pool2d", "kernel": (3, 3), "stride": (2, 2), "padding": (1, 1, 1, 1)},
        {"op": "max_pool2d", "kernel": (3, 3), "stride": (2, 2), "padding": (0, 0, 0, 0), "ceil": True},
        {"op": "max_pool2d", "kernel": (2, 2), "stride": (2, 2), "padding": "same"},
        {"op": "max_pool2d", "kernel": (1, 2), "stride": (3, 1), "padding": (0, 0, 0, 0)},
        {"op": "avg_pool2d", "kernel": (3, 3), "stride": (1, 1), "padding": (1, 1, 1, 1), "count_padding": True},
        {"op": "avg_pool2d", "kernel": (5, 3), "stride": (2, 2), "padding": "same"},
    ],
    ids=str,
)
def test_the_bits_of_two_steps(pool: dict[str, Any], isa: str, rows: Any) -> None:
    for (h, w), oc, k, s in (((23, 30), 24, 3, 2), ((14, 17), 40, 7, 2), ((9, 8), 8, 3, 1), ((5, 5), 64, 1, 1)):
        for padded in (False, True):
            graph = network(oc, k, s, padded=padded, **pool)
            x = picture(h, w, n=2)
            rows(0)
            apart = Engine(graph, isa)
            expected = apart.run(x, pixels=False)
            assert not any(kernel.startswith("conv+") for kernel in kernels(apart, h, w)[:3])
            for n in (1, 2, 4, 100):
                rows(n)
                engine = Engine(graph, isa)
                assert kernels(engine, h, w)[0] == f"conv+{pool['op'][:8]}_f32/{isa}/{n}"
                for threads in (1, 2, 3):
                    np.testing.assert_array_equal(engine.run(x, threads=threads, pixels=False), expected)
    rows(2)
    assert_equal_to_reference(network(20, 3, 2, activation=HARD_SWISH, **pool), picture(19, 22), isa, threads=2)


def test_nan_stays(rows: Any) -> None:
    rows(2)
    graph = network(16, 3, 2, "max_pool2d", kernel=(3, 3), stride=(2, 2), padding=(1, 1, 1, 1))
    x = picture(20, 20)
    x[0, 10, 10, 1] = np.nan
    y = Engine(graph).run(x, pixels=False)
    assert 0 < np.isnan(y).any(axis=(0, 3)).sum() <= 4


def test_where_it_is_done() -> None:
    """A map that stays in the cache anyway gains nothing, and one that others read must be there."""
    for arch in ("squeezenet1_1", "shufflenet_v2_x1_0", "googlenet"):
        engine = Engine(models.build(arch, weights=models.skeleton))
        shapes = infer_shapes(engine.skeleton, 1, 224, 224)
        large = np.prod(shapes["conv1"]) * 4 >= caches.caches().l2
        if large:
            assert engine.program(224, 224).steps[0][0] == "input + conv1 + pool1"
        assert engine.program(64, 64).steps[0][0] == "input + conv1"
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 32, 3)
    y = b.add("max_pool2d", x, kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
    engine = Engine(b.build(b.add("add", x, y)))
    assert engine.program(300, 300).steps[0][0] == "input + conv2d"


def test_wrong_windows_are_refused() -> None:
    program = _native.Program(ISAS[0], 1 << 16, _native.Arenas())
    src, dst = program.tensor(3, 8, 8, 0, 0, True, 0), program.tensor(16, 2, 2, 0, 0, False, 4096)
    store = _native.WeightStore()
    packed = _native.pack(store, np.ones((16, 1, 1, 3), np.float32), None, 1, False, False, ISAS[0])
    spec = _native.ConvSpec(packed, (1, 1), (1, 1), (0, 0), _native.Act("clamp", 0, 1, 0, 0), None, None)
    good = [(0, 4, 4.0), (4, 8, 4.0)]
    program.conv_pool("y", src, dst, spec, (8, 8), True, good, good, 1)
    for wrong in ([(0, 4, 4.0)], [(0, 4, 4.0), (4, 9, 5.0)], [(4, 8, 4.0), (0, 4, 4.0)]):
        with pytest.raises(ValueError, match="y: the windows"):
            program.conv_pool("y", src, dst, spec, (8, 8), True, wrong, good, 1)
    with pytest.raises(ValueError, match="y: "):
        program.conv_pool("y", src, dst, spec, (8, 8), True, good, good, 0)
