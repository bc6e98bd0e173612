"""Passes leave the result as it is, and do fuse what they should."""

from __future__ import annotations

import numpy as np
import pytest

from fastmobilenet import passes, reference
from fastmobilenet.errors import ModelError
from fastmobilenet.graph import RELU, RELU6, Graph, GraphBuilder


def random_conv(b: GraphBuilder, x: str, ic: int, oc: int, k: int = 1, groups: int = 1, bias: bool = False) -> str:
    rng = np.random.default_rng(ic * 1000 + oc)
    params = {"weight": rng.standard_normal((oc, k, k, ic // groups)).astype(np.float32)}
    if bias:
        params["bias"] = rng.standard_normal(oc).astype(np.float32)
    return b.add("conv2d", x, params=params, stride=(1, 1), padding="same", groups=groups)


def batch_norm(b: GraphBuilder, x: str, c: int, epsilon: float = 1e-3) -> str:
    rng = np.random.default_rng(c)
    params = {
        "gamma": rng.uniform(0.5, 2, c).astype(np.float32),
        "beta": rng.standard_normal(c).astype(np.float32),
        "mean": rng.standard_normal(c).astype(np.float32),
        "variance": rng.uniform(0, 2, c).astype(np.float32),
    }
    params["gamma"][0] = 0.0
    params["variance"][1] = 0.0
    return b.add("batch_norm", x, params=params, epsilon=epsilon)


def inverted_residual() -> Graph:
    b = GraphBuilder()
    x = b.add("input")
    y = b.add("activation", batch_norm(b, random_conv(b, x, 4, 12), 12), activation=RELU6)
    y = b.add("activation", batch_norm(b, random_conv(b, y, 12, 12, 3, groups=12), 12), activation=RELU6)
    y = batch_norm(b, random_conv(b, y, 12, 4, bias=True), 4)
    return b.build(b.add("add", x, y, name="sum"), input_channels=4)


def test_optimize_keeps_the_result_and_fuses_everything() -> None:
    graph = inverted_residual()
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 4))
    fused = passes.optimize(graph)
    assert [n.op for n in fused.nodes] == ["input", "conv2d", "conv2d", "conv2d"]
    assert fused.nodes[-1].inputs[1] == "input"
    before = reference.execute(graph, x)[graph.output]
    after = reference.execute(fused, x)[fused.output]
    assert np.abs(before - after).max() < 1e-5 * np.abs(before).max()


def test_batch_norm_uses_the_epsilon_of_the_node() -> None:
    outputs = []
    for epsilon in (1e-3, 1e-5):
        b = GraphBuilder()
        y = batch_norm(b, random_conv(b, b.add("input"), 3, 8), 8, epsilon)
        graph = b.build(y)
        x = np.ones((1, 2, 2, 3))
        folded = passes.fold_batch_norm(graph)
        expected = reference.execute(graph, x)[y]
        found = reference.execute(folded, x)[folded.output]
        assert np.isfinite(found).all()
        assert np.allclose(found, expected, rtol=1e-6, atol=1e-5 * np.abs(expected).max())
        outputs.append(expected)
    assert not np.allclose(outputs[0], outputs[1])


def test_batch_norm_that_cannot_be_folded_stays_right() -> None:
    b = GraphBuilder()
    x = b.add("input")
    y = random_conv(b, x, 3, 3)
    graph = b.build(b.add("add", y, batch_norm(b, y, 3)))  # the convolution has a second reader
    folded = passes.optimize(graph)
    x_value = np.random.default_rng(1).standard_normal((1, 3, 3, 3))
    expected = reference.execute(graph, x_value)[graph.output]
    assert np.allclose(reference.execute(folded, x_value)[folded.output], expected, atol=1e-5)


def test_negative_variance_is_named() -> None:
    b = GraphBuilder()
    y = batch_norm(b, random_conv(b, b.add("input"), 3, 4), 4)
    graph = b.build(y)
    graph[y].params["variance"][2] = -1
    with pytest.raises(ModelError, match="batch_norm"):
        passes.fold_batch_norm(graph)


def test_an_activated_convolution_is_not_fused_with_an_add() -> None:
    b = GraphBuilder()
    x = b.add("input")
    y = b.add("activation", random_conv(b, x, 3, 3), activation=RELU)
    graph = b.build(b.add("activation", b.add("add", x, y), activation=RELU6))
    fused = passes.optimize(graph)
    assert [n.op for n in fused.nodes] == ["input", "conv2d", "add"]
    x_value = np.random.default_rng(2).standard_normal((1, 4, 4, 3)) * 5
    expected = reference.execute(graph, x_value)[graph.output]
    assert np.allclose(reference.execute(fused, x_value)[fused.output], expected)


def test_add_of_a_tensor_with_itself() -> None:
    b = GraphBuilder()
    y = random_conv(b, b.add("input"), 3, 3)
    graph = passes.optimize(b.build(b.add("add", y, y)))
    assert [n.op for n in graph.nodes] == ["input", "conv2d", "add"]
