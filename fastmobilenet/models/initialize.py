"""Random weights for a graph without trained ones: good enough to test, time and compare a network with.

Plain random weights are of little use for that. With the batch norm statistics left at 0 and 1 the activations of a
deep network grow or die, and all pictures end at nearly the same logits. So the mean and the variance of every
channel are carried through the graph (for an input of mean 0 and variance 1, as if all values were independent
and normally distributed), and each batch norm gets the statistics of the tensor that reaches it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..errors import ModelError
from ..graph import Activation, Graph, Node

#: (mean, variance) of the channels of a tensor: two float64 arrays (c,).
Moments = tuple[np.ndarray, np.ndarray]

#: Channels of a real network differ: gamma is uniform in this range, beta normal with this standard deviation.
GAMMA_RANGE = (0.7, 1.3)
BETA_STD = 0.25
#: The statistics are never exact: standard deviation of the error of a mean, in standard deviations of the channel.
MEAN_ERROR = 0.1
#: Share of the variance that is left of independent values after a pool of a few dozen pixels.
POOLED = 1 / 16
#: Standard deviation of the logits for such values, as large as a trained classifier's.
LOGIT_STD = 3.0


def randomize(graph: Graph, seed: int = 0) -> Graph:
    """The graph with random parameters of the same shapes, in float32.

    Equal seeds give equal parameters, but for the last bits of the statistics on another machine: they are sums
    that NumPy adds in another order there. Convolution weights are normal with variance 2 / fan_in (He et al., 2015).
    """
    rng = np.random.default_rng(seed)
    moments: dict[str, Moments] = {}
    nodes = []
    for node in graph.nodes:
        if node.op == "input":
            moments[node.name] = np.zeros(graph.input_channels), np.ones(graph.input_channels)
            nodes.append(node)
        else:
            rule = _RULES.get(node.op)
            if rule is None:
                raise ModelError(f"node {node.name!r}: no rule to make random parameters for {node.op}")
            values, moments[node.name] = rule(node, rng, *(moments[source] for source in node.inputs))
            params = {key: value.astype(np.float32, copy=False) for key, value in values.items()}
            nodes.append(replace(node, params=params))
    return graph.replace(nodes=tuple(nodes))


Made = tuple[dict[str, np.ndarray], Moments]


def _conv2d(node: Node, rng: np.random.Generator, x: Moments) -> Made:
    shape = node.params["weight"].shape
    oc, kh, kw, icg = shape
    groups = node.attrs.get("groups", 1)
    weight = rng.standard_normal(shape, dtype=np.float32) * np.float32(math.sqrt(2 / (kh * kw * icg)))
    taps = weight.reshape(groups, oc // groups, kh * kw, icg).astype(np.float64)
    mean, variance = (m.reshape(groups, icg, 1) for m in x)
    out_mean = (taps.sum(axis=2) @ mean).reshape(oc)
    out_variance = ((taps**2).sum(axis=2) @ variance).reshape(oc)
    values: dict[str, np.ndarray] = {"weight": weight}
    if "bias" in node.params:
        values["bias"] = -out_mean
        out_mean = np.zeros(oc)
    return values, (out_mean, out_variance)


def _batch_norm(node: Node, rng: np.random.Generator, x: Moments) -> Made:
    c = node.params["gamma"].shape[0]
    gamma: np.ndarray = rng.uniform(GAMMA_RANGE[0], GAMMA_RANGE[1], size=(c,))
    beta: np.ndarray = rng.normal(0.0, BETA_STD, size=(c,))
    off: np.ndarray = rng.normal(0.0, MEAN_ERROR, size=(c,))
    mean, variance = x[0], np.maximum(x[1], 1e-3)
    values = {"gamma": gamma, "beta": beta, "mean": mean + off * np.sqrt(variance), "variance": variance}
    return values, (beta - gamma * off, gamma**2)


def _activation(node: Node, rng: np.random.Generator, x: Moments) -> Made:
    assert node.activation is not None
    return {}, clamp_moments(node.activation, *x)


def clamp_moments(activation: Activation, mean: np.ndarray, variance: np.ndarray) -> Moments:
    """Mean and variance of min(max(x, lo), hi) for normal x: the moments of a censored normal distribution."""
    std = np.sqrt(np.maximum(variance, 1e-12))
    a, b = (activation.lo - mean) / std, (activation.hi - mean) / std
    below, above = _cdf(a), 1.0 - _cdf(b)
    density_a, density_b = _density(a), _density(b)
    inside = 1.0 - below - above
    # E[y] and E[y**2] of y = (clamped x - mean) / std: the inside, and a point mass at each finite end.
    end_a, end_b = np.where(np.isfinite(a), a, 0.0), np.where(np.isfinite(b), b, 0.0)
    first = density_a - density_b + end_a * below + end_b * above
    second = inside + end_a * density_a - end_b * density_b + end_a**2 * below + end_b**2 * above
    return mean + std * first, std**2 * np.maximum(second - first**2, 0.0)


def _cdf(x: np.ndarray) -> np.ndarray:
    return np.array([0.5 * (1.0 + math.erf(v / math.sqrt(2.0))) for v in x])


def _density(x: np.ndarray) -> np.ndarray:
    density: np.ndarray = np.exp(-0.5 * np.square(x)) / math.sqrt(2.0 * math.pi)
    return density


def _dense(node: Node, rng: np.random.Generator, x: Moments) -> Made:
    shape = node.params["weight"].shape
    copies = shape[1] // len(x[0])  # of every channel, where the input was not pooled
    mean, variance = (np.tile(m, copies) for m in x)
    scale = LOGIT_STD / math.sqrt(max(variance.sum(), 1e-12))
    weight = rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    values: dict[str, np.ndarray] = {"weight": weight}
    out_mean = weight.astype(np.float64) @ mean
    if "bias" in node.params:
        bias = rng.normal(0.0, 0.1 * LOGIT_STD, shape[0])
        values["bias"] = bias - out_mean
        out_mean = bias
    return values, (out_mean, np.full(shape[0], LOGIT_STD**2))


_RULES: dict[str, Callable[..., Made]] = {
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "activation": _activation,
    "add": lambda node, rng, a, b: ({}, (a[0] + b[0], a[1] + b[1])),
    "global_avg_pool": lambda node, rng, x: ({}, (x[0], x[1] * POOLED)),
    "dense": _dense,
}
