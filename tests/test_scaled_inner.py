"""The product at the end of squeeze-and-excite, made where the map lies while pixels are prepared for inner products:
the bits of two steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmobilenet import models
from fastmobilenet.graph import HARD_SWISH, RELU6, Graph, Node
from fastmobilenet.lower import Engine

from .test_inner import ISA, Force, force, needs_kernels, without_amx  # noqa: F401
from .test_lower import picture
from .test_scaled import block, check_bits, in_two_steps

pytestmark = needs_kernels

#: 200 to 96 channels of few pixels and 400 to 400: threads share panels, and the map is multiplied before.
SHAPES = [(16, 16, 14, 14), (24, 40, 9, 13), (72, 24, 28, 28), (120, 40, 7, 7), (33, 17, 5, 3), (200, 96, 2, 2)]
SHAPES += [(400, 400, 7, 7), (64, 32, 1, 2)]


def steps_of(engine: Engine, h: int, w: int) -> dict[str, str]:
    return dict(engine.program(h, w).steps)


@pytest.mark.parametrize("ic, oc, h, w", SHAPES)
def test_the_bits_of_two_steps(
    ic: int,
    oc: int,
    h: int,
    w: int,
    force: Force,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    force(1.0)
    x = np.concatenate([picture(h, w, 3), 2 * picture(h, w, 3)])
    for more in ({}, {"residual": True}, {"activation": HARD_SWISH}, {"activation": RELU6, "dw": False}):
        check_bits(block(ic, oc, **more), x, "/inner", monkeypatch, ISA)  # type: ignore[arg-type]


def test_a_map_that_others_read_stays(force: Force, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    force(1.0)
    x = picture(14, 14, 3)

    def network(**more: Any) -> Graph:
        graph = block(32, 32, **more)
        total = Node("total", "add", ("y", graph["product"].inputs[0]))
        return graph.replace(nodes=(*graph.nodes, total), output="total")

    def with_means() -> Graph:
        """Other means of the map, which nothing makes before the product."""
        graph = block(32, 32)
        means = Node("means", "global_avg_pool", (graph["product"].inputs[0],))
        return graph.replace(nodes=(*graph.nodes, means, Node("total", "add", ("y", "means"))), output="total")

    for graph in (
        network(),
        network(dw=False),
        with_means(),
        block(32, 32).replace(output=block(32, 32)["product"].inputs[0]),
    ):
        engine = Engine(graph, ISA)
        y = engine.run(x, pixels=False)
        assert "product + y" not in steps_of(engine, 14, 14)
        with monkeypatch.context() as context:
            apart = in_two_steps(context, graph, ISA)
            np.testing.assert_array_equal(y, apart.run(x, pixels=False))


def test_networks_with_squeeze_and_excite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMOBILENET_INNER", "1")
    for name in ("mobilenet_v3_small", "mobilenet_v3_large"):
        graph = models.build(name, classes=10).replace(input_layout="NHWC")
        x = picture(224, 224, 3)
        engine = Engine(graph, ISA)
        y = engine.run(x, pixels=False)
        assert sum("/se + " in step for step in steps_of(engine, 224, 224)) >= 5
        for threads in (2, 3):
            np.testing.assert_array_equal(y, engine.run(x, threads=threads, pixels=False))
        with monkeypatch.context() as context:
            apart = in_two_steps(context, graph, ISA)
            np.testing.assert_array_equal(y, apart.run(x, pixels=False))
