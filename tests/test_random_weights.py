"""Weights of a built graph: the random ones, and those that a caller gives."""

from __future__ import annotations

import numpy as np
import pytest

from fastmobilenet import ModelError, models, reference
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
    Node,
)
from fastmobilenet.models import initialize


def parameters(graph: Graph) -> dict[tuple[str, str], np.ndarray]:
    return {(n.name, key): value for n in graph.nodes for key, value in n.params.items()}


def test_random_weights_depend_on_the_seed_alone() -> None:
    a, b, c = (parameters(models.build("mobilenet_v2", width=0.1, classes=4, seed=s)) for s in (1, 1, 2))
    assert a.keys() == c.keys()
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert [key for key in a if np.array_equal(a[key], c[key])] == []
    assert {value.dtype for value in a.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("arch", ["mobilenet_v1", "mobilenet_v2", "mobilenetv2_110d"])
@pytest.mark.parametrize("seed", [0, 1])
def test_random_networks_behave_like_trained_ones(arch: str, seed: int) -> None:
    graph = models.build(arch, seed=seed)
    rng = np.random.default_rng(seed)
    values = reference.execute(graph, rng.standard_normal((2, 64, 64, 3)), keep=True)
    for node in graph.nodes:
        if node.op == "batch_norm":
            assert 0.5 < values[node.name].std() < 2.0, node.name
            p = node.params
            assert 0.5 < p["gamma"].min() <= p["gamma"].max() < 1.5
            assert p["variance"].min() > 0
            assert p["mean"].std() > 0.01
        if node.op == "activation":
            share = np.mean(values[node.name] > 0)
            assert 0.3 < share < 0.75, f"{node.name}: {share:.2f} of the values are positive"
    a, b = values["logits"].reshape(2, -1)
    assert 1.0 < a.std() < 20.0
    assert (a - b).std() > 0.25 * a.std(), "two pictures give nearly the same logits"


@pytest.mark.parametrize("activation", [RELU, RELU6, Activation("clamp", -1.0, 1.0), Activation("clamp")])
@pytest.mark.parametrize("mean,std", [(0.0, 1.0), (0.3, 0.7), (-2.0, 1.5), (5.0, 2.0), (-9.0, 1.0)])
def test_clamp_moments_equal_numerical_integration(activation: Activation, mean: float, std: float) -> None:
    x = np.linspace(mean - 12 * std, mean + 12 * std, 200_001)
    density = np.exp(-0.5 * ((x - mean) / std) ** 2)
    density /= density.sum()
    y = reference.activate(x, activation)
    expected = (y * density).sum()
    got = initialize.clamp_moments(activation, np.array([mean]), np.array([std**2]))
    np.testing.assert_allclose(got[0], expected, atol=1e-6)
    np.testing.assert_allclose(got[1], ((y - expected) ** 2 * density).sum(), atol=1e-6)


@pytest.mark.parametrize("activation", [HARD_SWISH, HARD_SIGMOID, SIGMOID, SWISH, Activation("hard_swish", alpha=0.2)])
@pytest.mark.parametrize("mean,std", [(0.0, 1.0), (0.3, 0.7), (-2.0, 1.5), (5.0, 2.0)])
def test_moments_of_other_activations_are_those_of_many_samples(
    activation: Activation, mean: float, std: float
) -> None:
    y = reference.activate(np.random.default_rng(1).normal(mean, std, 400_000), activation)
    got = initialize.sampled_moments(activation, np.array([mean, 0.0]), np.array([std**2, 0.0]))
    np.testing.assert_allclose(got[0][0], y.mean(), atol=5e-3 * max(1.0, y.std()))
    np.testing.assert_allclose(got[1][0], y.var(), rtol=0.02)
    np.testing.assert_allclose(got[0][1], reference.activate(np.zeros(1), activation)[0], atol=1e-12)
    assert got[1][1] == pytest.approx(0.0, abs=1e-12)


def test_moments_of_a_product_are_those_of_many_samples() -> None:
    b = GraphBuilder()
    x = b.add("input")
    graph = b.build(b.add("mul", x, x))
    rng = np.random.default_rng(3)
    a, c = rng.normal(1.5, 0.5, 400_000), rng.normal(-0.5, 0.7, 400_000)
    moments = [(np.array([v.mean()]), np.array([v.var()])) for v in (a, c)]
    _, (mean, variance) = initialize._RULES["mul"](graph["mul"], rng, *moments)
    np.testing.assert_allclose(mean, (a * c).mean(), atol=5e-3)
    np.testing.assert_allclose(variance, (a * c).var(), rtol=0.02)


def test_randomize_makes_biases_and_refuses_ops_it_does_not_know() -> None:
    b = GraphBuilder()
    weight = np.broadcast_to(np.float32(0), (6, 3, 3, 3))
    params = {"weight": weight, "bias": np.zeros(6, np.float32)}
    x = b.add("conv2d", b.add("input"), params=params, stride=(1, 1), padding="same", groups=1)
    graph = initialize.randomize(b.build(b.add("activation", x, activation=RELU)))
    assert graph["conv2d"].params["bias"].shape == (6,)
    assert np.unique(graph["conv2d"].params["weight"]).size == weight.size
    with pytest.raises(ModelError, match=r"'softmax'.*no rule"):
        initialize.randomize(b.build(b.add("softmax", x)))


def test_weights_are_asked_for_once_each_and_their_shape_is_checked() -> None:
    asked: list[tuple[str, str]] = []

    def ones(node: Node, key: str) -> np.ndarray:
        asked.append((node.name, key))
        return np.ones(node.params[key].shape, np.float32)

    graph = models.build("mobilenet_v1", width=0.1, classes=3, weights=ones)
    assert asked == list(parameters(graph))
    assert all((value == 1).all() for value in parameters(graph).values())

    def wrong(node: Node, key: str) -> np.ndarray:
        shape = node.params[key].shape
        return np.ones((*shape[:-1], shape[-1] + (node.name == "block_3/pointwise")), np.float32)

    with pytest.raises(
        ModelError, match=r"'block_3/pointwise': weight has shape \(25, 1, 1, 26\), expected \(25, 1, 1, 25\)"
    ):
        models.build("mobilenet_v1", width=0.2, weights=wrong)
