"""Hard sigmoid, hard swish and swish, put together again from the parts that converters leave."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fastmobilenet import reference
from fastmobilenet.graph import (
    HARD_SIGMOID,
    HARD_SWISH,
    RELU,
    RELU6,
    SIGMOID,
    SWISH,
    Activation,
    Graph,
    GraphBuilder,
)
from fastmobilenet.importers._gates import affine, is_affine, join_gates

SIXTH = np.float32(1 / 6)
C = 3

Build = Callable[[GraphBuilder, str], str]


def line(b: GraphBuilder, x: str, scale: object, shift: object) -> str:
    params = affine(np.asarray(scale), np.asarray(shift), C)  # type: ignore[arg-type]
    return b.add("batch_norm", x, params=params, epsilon=0.0)


def act(b: GraphBuilder, x: str, activation: Activation) -> str:
    return b.add("activation", x, activation=activation)


def conv(b: GraphBuilder, x: str, **attrs: object) -> str:
    weight = np.random.default_rng(1).normal(size=(C, 1, 1, C)).astype(np.float32)
    return b.add("conv2d", x, params={"weight": weight}, stride=(1, 1), padding=(0, 0, 0, 0), **attrs)


def joined(build: Build) -> Graph:
    """The network after join_gates, which computes what it did before."""
    b = GraphBuilder()
    output = build(b, b.add("input"))
    before = b.build(output)
    after = before.replace(nodes=tuple(join_gates(before.nodes, output)))
    x = np.random.default_rng(0).normal(0, 4, (2, 5, 5, C))
    found = [reference.execute(graph, x)[output] for graph in (before, after)]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5, atol=1e-6)
    return after


def hard_sigmoid(b: GraphBuilder, x: str) -> str:
    return line(b, act(b, line(b, x, 1, 3), RELU6), SIXTH, 0)


@pytest.mark.parametrize(
    "build, expected",
    [
        (hard_sigmoid, HARD_SIGMOID),
        (lambda b, x: line(b, line(b, act(b, line(b, line(b, x, 1, 1), 1, 2), RELU6), 0.5, 0), 1 / 3, 0), HARD_SIGMOID),
        (lambda b, x: act(b, line(b, x, 0.2, 0.5), Activation("clamp", 0, 1)), Activation("hard_sigmoid", alpha=0.2)),
        (lambda b, x: act(b, line(b, x, 3, 1), HARD_SIGMOID), Activation("hard_sigmoid", alpha=0.5, beta=1 / 6 + 0.5)),
        (lambda b, x: b.add("mul", x, hard_sigmoid(b, x)), HARD_SWISH),
        (lambda b, x: b.add("mul", hard_sigmoid(b, x), x), HARD_SWISH),
        (lambda b, x: line(b, b.add("mul", x, act(b, line(b, x, 1, 3), RELU6)), SIXTH, 0), HARD_SWISH),
        (lambda b, x: line(b, b.add("mul", act(b, line(b, x, 1, 3), RELU6), x), SIXTH, 0), HARD_SWISH),
        (lambda b, x: b.add("mul", x, act(b, x, SIGMOID)), SWISH),
        (lambda b, x: b.add("mul", x, act(b, x, HARD_SIGMOID)), HARD_SWISH),
    ],
)
def test_one_activation_of_many_parts(build: Build, expected: Activation) -> None:
    nodes = joined(build).nodes
    assert [n.op for n in nodes] == ["input", "activation"]
    found = nodes[1].attrs["activation"]
    assert found.kind == expected.kind
    np.testing.assert_allclose([found.alpha, found.beta], [expected.alpha, expected.beta], rtol=1e-6)


def test_behind_a_layer_that_clamps() -> None:
    """TFLite's converter adds the 3 to the bias and fuses the ReLU6."""
    graph = joined(lambda b, x: line(b, conv(b, x, activation=RELU6), SIXTH, 0))
    assert [n.op for n in graph.nodes] == ["input", "conv2d", "activation"]
    assert graph.nodes[1].activation is None
    assert (graph.nodes[2].activation.kind, graph.nodes[2].activation.beta) == ("hard_sigmoid", 0)  # type: ignore[union-attr]


def test_several_gates_of_one_map() -> None:
    def build(b: GraphBuilder, x: str) -> str:
        y = b.add("mul", x, hard_sigmoid(b, x))
        z = b.add("mul", y, act(b, y, SIGMOID))
        return b.add("add", b.add("mul", z, hard_sigmoid(b, z)), x)

    kinds = [str(n.activation) for n in joined(build).nodes if n.activation]
    assert kinds == ["hard_swish", "swish", "hard_swish"]


@pytest.mark.parametrize(
    "build",
    [
        lambda b, x: line(b, act(b, line(b, x, 1, 3), RELU6), 0.2, 0),  # not 1 / 6
        lambda b, x: line(b, act(b, line(b, x, 1, 3), RELU6), SIXTH, 1),
        lambda b, x: line(b, act(b, line(b, x, 1, 3), RELU), SIXTH, 0),
        lambda b, x: line(b, act(b, x, Activation("clamp", -1, 6)), SIXTH, 0),
        lambda b, x: act(b, line(b, x, 1, 3), RELU6),
        lambda b, x: act(b, x, Activation("clamp", 0, 1)),
        lambda b, x: act(b, line(b, x, [1, 2, 3], 0), Activation("clamp", 0, 1)),  # each channel its own slope
        lambda b, x: b.add("mul", x, act(b, x, RELU)),
        lambda b, x: b.add("mul", x, act(b, conv(b, x), SIGMOID)),
        lambda b, x: b.add("mul", x, x),
        lambda b, x: b.add("mul", x, act(b, x, SIGMOID), activation=RELU),
        lambda b, x: b.add("add", x, act(b, x, SIGMOID)),
    ],
)
def test_what_only_looks_like_it(build: Build) -> None:
    b = GraphBuilder()
    before = len(b.build(build(b, b.add("input"))).nodes)
    assert len(joined(build).nodes) == before


def test_parts_that_somebody_else_reads() -> None:
    def build(b: GraphBuilder, x: str) -> str:
        shifted = line(b, x, 1, 3)
        clamped = act(b, shifted, RELU6)
        gate = line(b, clamped, SIXTH, 0)
        swish = b.add("mul", x, gate)
        return b.add("concat", shifted, clamped, gate, swish)

    assert len(joined(build).nodes) == 6


def test_the_output_stays() -> None:
    def build(b: GraphBuilder, x: str) -> str:
        gate = act(b, x, SIGMOID)
        b.add("mul", x, gate)
        return gate

    assert [n.op for n in joined(build).nodes] == ["input", "activation", "mul"]


def test_lines_that_follow_each_other() -> None:
    graph = joined(lambda b, x: line(b, line(b, x, [1, 2, 3], 4), 2, [5, 6, 7]))
    (node,) = graph.nodes[1:]
    assert is_affine(node)
    np.testing.assert_array_equal(node.params["gamma"], [2, 4, 6])
    np.testing.assert_array_equal(node.params["beta"], [13, 14, 15])
    b = GraphBuilder()
    with np.errstate(all="raise"):
        twice = line(b, line(b, b.add("input"), 1e30, 0), 1e30, 0)
        assert len(join_gates(b.nodes, twice)) == 3  # together they are infinite


def test_batch_norms_are_left_alone() -> None:
    norm = {key: np.full(C, 2.0, np.float32) for key in ("gamma", "beta", "mean", "variance")}
    graph = joined(lambda b, x: line(b, b.add("batch_norm", x, params=norm, epsilon=0.1), 2, 1))
    assert [n.op for n in graph.nodes] == ["input", "batch_norm", "batch_norm"]
