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
from ..graph import RELU, Activation, Graph, Node, kernel_size
from ..reference import activate

#: (mean, variance) of the channels of a tensor: two float64 arrays (c,).
Moments = tuple[np.ndarray, np.ndarray]

#: Channels of a real network differ: gamma is uniform in this range, beta normal with this standard deviation.
GAMMA_RANGE = (0.7, 1.3)
BETA_STD = 0.25
#: The statistics are never exact: standard deviation of the error of a mean, in standard deviations of the channel.
MEAN_ERROR = 0.1
#: Share of the variance that is left of independent values after a pool of a few dozen pixels.
POOLED = 1 / 16
#: Correlation of neighbouring pixels, for pools that are smaller than the picture.
NEIGHBOURS = 0.5
#: Standard deviation of the logits for such values, as large as a trained classifier's.
LOGIT_STD = 3.0
#: Values of a standard normal variable, for sums in place of integrals.
_NORMAL = np.linspace(-6.0, 6.0, 241)


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
    if "bias" in node.params:  # there may be no batch norm behind it: the layer itself keeps mean 0 and variance 1
        scale = 1 / math.sqrt(max(out_variance.mean(), 1e-12))
        values = {"weight": weight * np.float32(scale), "bias": -out_mean * scale}
        out_mean, out_variance = np.zeros(oc), out_variance * scale**2
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
    if node.activation.kind == "clamp":
        return {}, clamp_moments(node.activation, *x)
    return {}, sampled_moments(node.activation, *x)


def sampled_moments(activation: Activation, mean: np.ndarray, variance: np.ndarray) -> Moments:
    """Mean and variance of any activation of normal x, by a sum over equally spaced values of x."""
    values = mean + np.sqrt(variance) * _NORMAL[:, None]
    y = activate(values, activation)
    weight = _density(_NORMAL)[:, None] / _density(_NORMAL).sum()
    first = (weight * y).sum(axis=0)
    return first, (weight * (y - first) ** 2).sum(axis=0)


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
    # In parts: as float64 the largest layer of VGG would take 800 MB.
    out_mean = np.concatenate([weight[i : i + 64].astype(np.float64) @ mean for i in range(0, shape[0], 64)])
    if "bias" in node.params:
        bias: np.ndarray = rng.normal(0.0, 0.1 * LOGIT_STD, size=(shape[0],))
        values["bias"] = bias - out_mean
        out_mean = bias
    return values, (out_mean, np.full(shape[0], LOGIT_STD**2))


def _mul(node: Node, rng: np.random.Generator, a: Moments, b: Moments) -> Made:
    return {}, (a[0] * b[0], a[1] * b[1] + a[1] * b[0] ** 2 + b[1] * a[0] ** 2)


def _max_pool2d(node: Node, rng: np.random.Generator, x: Moments) -> Made:
    """The largest of n normal values with correlation r is that of independent ones with the share 1 - r of the
    variance, shifted together; and the largest of values after a ReLU is the ReLU of the largest."""
    mean, std = rectified(*x)
    top, rest = max_moments(math.prod(kernel_size(node)))
    pooled = mean + math.sqrt(1 - NEIGHBOURS) * top * std, (NEIGHBOURS + (1 - NEIGHBOURS) * rest) * std**2
    return {}, clamp_moments(RELU, *pooled)


def rectified(mean: np.ndarray, variance: np.ndarray) -> Moments:
    """Mean and standard deviation of the normal distribution that has these moments after a ReLU."""
    ratio = mean / np.sqrt(np.maximum(variance, 1e-12))
    before = np.linspace(-3.0, 6.0, 181)
    after = clamp_moments(RELU, before, np.ones_like(before))
    shift = np.where(ratio > before[-1], ratio, np.interp(ratio, after[0] / np.sqrt(after[1]), before))
    scale = np.sqrt(variance / np.interp(shift, before, after[1]))
    return shift * scale, scale


def max_moments(n: int) -> tuple[float, float]:
    """Mean and variance of the largest of n independent standard normal values."""
    x = np.linspace(-8.0, 8.0, 2001)
    density = n * _cdf(x) ** (n - 1) * _density(x)
    density /= density.sum()
    mean = float((x * density).sum())
    return mean, float(((x - mean) ** 2 * density).sum())


def _avg_pool2d(node: Node, rng: np.random.Generator, x: Moments) -> Made:
    return {}, (x[0], x[1] * (NEIGHBOURS + (1 - NEIGHBOURS) / math.prod(kernel_size(node))))


def _gather_channels(node: Node, rng: np.random.Generator, *xs: Moments) -> Made:
    mean, variance = _join(*xs)
    index = list(node.attrs["index"])
    return {}, (mean[index], variance[index])


def _join(*xs: Moments) -> Moments:
    return np.concatenate([x[0] for x in xs]), np.concatenate([x[1] for x in xs])


def _lrn(node: Node, rng: np.random.Generator, x: Moments) -> Made:
    """As if the divisor were the one of the mean squares."""
    size = node.attrs["size"]
    squares = np.pad(x[0] ** 2 + x[1], ((size - 1) // 2, size // 2))
    total = np.lib.stride_tricks.sliding_window_view(squares, size).sum(axis=-1)
    divisor = (node.attrs["bias"] + node.attrs["alpha"] / size * total) ** node.attrs["beta"]
    return {}, (x[0] / divisor, x[1] / divisor**2)


_RULES: dict[str, Callable[..., Made]] = {
    "conv2d": _conv2d,
    "batch_norm": _batch_norm,
    "activation": _activation,
    "add": lambda node, rng, a, b: ({}, (a[0] + b[0], a[1] + b[1])),
    "mul": _mul,
    "global_avg_pool": lambda node, rng, x: ({}, (x[0], x[1] * POOLED)),
    "avg_pool2d": _avg_pool2d,
    "max_pool2d": _max_pool2d,
    "adaptive_avg_pool2d": lambda node, rng, x: ({}, x),  # as for a picture of the size that it leaves alone
    "concat": lambda node, rng, *xs: ({}, _join(*xs)),
    "gather_channels": _gather_channels,
    "lrn": _lrn,
    "dense": _dense,
    "detection": lambda node, rng, *xs: ({}, (np.zeros(1), np.ones(1))),  # nothing reads it
}
