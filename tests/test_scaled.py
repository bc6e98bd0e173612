"""The product at the end of squeeze-and-excite, made while AMX splits the pixels of the 1x1 convolution behind it: the
bits of two steps."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fastmobilenet import _native, fusion, lower, models
from fastmobilenet.graph import HARD_SWISH, RELU6, Activation, Graph, GraphBuilder
from fastmobilenet.lower import Engine

from .test_amx import ISA, Force, force, needs_amx  # noqa: F401
from .test_lower import conv, picture

pytestmark = needs_amx


def block(ic: int, oc: int, *, residual: bool = False, activation: Activation | None = None, dw: bool = True) -> Graph:
    """A map, its means through a sigmoid, the product of both, and a 1x1 convolution named y."""
    b = GraphBuilder()
    image = b.add("input")
    x = conv(b, image, 3, ic)
    if dw:  # of which the map has padding: the product is made of pixels with gaps between rows
        weight = np.random.default_rng(1).standard_normal((ic, 3, 3, 1)).astype(np.float32)
        other = b.add("conv2d", x, params={"weight": weight}, stride=(1, 1), padding="same", dilation=(1, 1), groups=ic)
        x = b.add("add", x, other)
        x = b.add("conv2d", x, params={"weight": weight}, stride=(1, 1), padding="same", dilation=(1, 1), groups=ic)
    gates = conv(b, b.add("global_avg_pool", x), ic, ic, seed=2, activation=Activation("sigmoid"))
    product = b.add("mul", x, gates, name="product")
    rng = np.random.default_rng([ic, oc])
    params = {"weight": rng.standard_normal((oc, 1, 1, ic)).astype(np.float32), "bias": np.ones(oc, np.float32)}
    sources = (product, conv(b, image, 3, oc, seed=1)) if residual else (product,)
    y = b.add(
        "conv2d", *sources, name="y", params=params, activation=activation,
        stride=(1, 1), padding="same", dilation=(1, 1), groups=1,
    )  # fmt: skip
    return b.build(y, input_layout="NHWC")


def in_two_steps(monkeypatch: pytest.MonkeyPatch, graph: Graph, isa: str = ISA) -> Engine:
    """An engine whose plans multiply first. Plans are made when they are needed, so it must run before undo()."""
    plan = fusion.plan_steps
    monkeypatch.setattr(lower, "plan_steps", lambda *args, scale, scale_in_place, **more: plan(*args, **more))
    return Engine(graph, isa)


def check_bits(graph: Graph, x: np.ndarray, kernel: str, monkeypatch: pytest.MonkeyPatch, isa: str = ISA) -> None:
    """That it is done in one step, with a kernel of this kind, and gives what two steps give."""
    h, w = x.shape[1:3]
    engine = Engine(graph, isa)
    found = [engine.run(x, threads=threads, pixels=False) for threads in (1, 2, 3, 1)]
    assert dict(engine.program(h, w).steps)["product + y"].endswith(kernel)
    with monkeypatch.context() as context:
        apart = in_two_steps(context, graph, isa)
        expected = apart.run(x, pixels=False)
        assert "product" in dict(apart.program(h, w).steps)
    for y in found:
        np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("ic, oc", [(16, 16), (24, 40), (72, 24), (120, 40), (33, 17), (200, 96)])
@pytest.mark.parametrize("h, w", [(7, 7), (14, 14), (9, 13), (28, 28)])
def test_the_bits_of_two_steps(
    ic: int,
    oc: int,
    h: int,
    w: int,
    force: Force,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    force()
    x = picture(h, w, 3)
    for more in ({}, {"residual": True}, {"activation": HARD_SWISH}, {"activation": RELU6, "dw": False}):
        check_bits(block(ic, oc, **more), x, "/amx", monkeypatch)  # type: ignore[arg-type]


def names(graph: Graph, size: int = 14) -> list[str]:
    return [name for name, _ in Engine(graph, ISA).program(size, size).steps]


def test_where_it_is_done(force: Force) -> None:  # noqa: F811
    force()
    graph = block(64, 32)
    assert "product + y" in names(graph)

    def changed(**attrs: Any) -> Graph:
        nodes = [dataclasses.replace(n, **attrs) if n.name == "product" else n for n in graph.nodes]
        return graph.replace(nodes=tuple(nodes))

    assert "product + y" not in names(changed(attrs={"activation": RELU6}))
    assert "product + y" not in names(changed(inputs=(graph["product"].inputs[0],) * 2))
    assert "product + y" not in names(graph.replace(output="product"))
    assert "product + y" not in names(graph, size=1)  # the map is a pixel too


def test_networks_with_squeeze_and_excite(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = models.build("mobilenet_v3_small", classes=10)
    x = picture(224, 224, 3)
    engine = Engine(graph.replace(input_layout="NHWC"), ISA)
    y = engine.run(x, pixels=False)
    steps = [name for name, _ in engine.program(224, 224).steps]
    assert sum("/se + " in name for name in steps) >= 5
    apart = in_two_steps(monkeypatch, graph.replace(input_layout="NHWC"))
    np.testing.assert_array_equal(y, apart.run(x, pixels=False))


def test_it_needs_tiles() -> None:
    store = _native.WeightStore()
    weights = _native.pack(store, np.ones((16, 1, 1, 16), np.float32), None, 1, False, False, ISA)
    act = _native.Act("clamp", -1e9, 1e9, 0.0, 0.0)
    spec = _native.ConvSpec(weights, (1, 1), (1, 1), (0, 0), act, None, None)
    program = _native.Program(ISA, 4096, _native.Arenas())
    source, scale, out = (program.tensor(16, h, h, 0, 0, False, 1024 * i) for i, h in enumerate((4, 1, 4)))
    with pytest.raises(ValueError, match="y: it does not multiply what it reads"):
        program.conv("y", source, out, -1, spec, scale)
