"""Joins the parts into which frameworks and converters take hard sigmoid, hard swish and swish.

The papers' h-swish(x) = x * relu6(x + 3) / 6 comes as an addition, a ReLU6, a multiplication by 1/6 and a product, in
any of several orders. An addition of numbers or a multiplication by numbers is a batch_norm node here that does no
more than x * gamma + beta (:func:`affine`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ..graph import Activation, Node

#: 6 times the float32 next to 1/6 is 1 but for rounding.
_ONE = 1e-5


def affine(scale: float | np.ndarray, shift: float | np.ndarray, channels: int) -> dict[str, np.ndarray]:
    """The parameters of a batch_norm (with epsilon 0) that computes x * scale + shift."""
    gamma, beta = (np.array(np.broadcast_to(np.asarray(v, np.float32), (channels,))) for v in (scale, shift))
    zeros, ones = np.zeros(channels, np.float32), np.ones(channels, np.float32)
    return {"gamma": gamma, "beta": beta, "mean": zeros, "variance": ones}


def is_affine(node: Node) -> bool:
    """Whether the node computes x * gamma + beta and no more."""
    p = node.params
    if node.op != "batch_norm" or node.attrs["epsilon"]:
        return False
    return not p["mean"].any() and bool((p["variance"] == 1).all())


def join_gates(nodes: Iterable[Node], output: str) -> list[Node]:
    """The same network with fewer nodes. A joined node has the name of its last part."""
    nodes = list(nodes)
    readers = Counter(source for node in nodes for source in node.inputs)
    readers[output] += 1
    joining = _Joining({}, readers)
    for node in nodes:
        joined = node
        while (shorter := joining.join(joined)) is not None:
            joined = shorter
        joining.done[joined.name] = joined
    return list(joining.done.values())


class _Joining:
    """``done``: the nodes so far, by name."""

    def __init__(self, done: dict[str, Node], readers: Counter[str]) -> None:
        self.done = done
        self._readers = readers

    def join(self, node: Node) -> Node | None:
        """The node together with one or more before it, which are removed; None where nothing fits."""
        if is_affine(node):
            return self._scaled(node)
        if node.op == "activation":
            return self._of_line(node)
        if node.op == "mul" and node.activation is None:
            return self._gated(node)
        return None

    def _alone(self, name: str) -> Node | None:
        """The node of that name, if nobody else reads it."""
        return self.done[name] if self._readers[name] == 1 else None

    def _scaled(self, node: Node) -> Node | None:
        """x * gamma + beta behind something."""
        before = self._alone(node.inputs[0])
        if before is None:
            return None
        if is_affine(before):
            params = _product(before, node)
            if params is None:
                return None
            del self.done[before.name]
            return replace(node, inputs=before.inputs, params=params)
        factor, shift = _uniform(node)
        if factor is None or shift != 0.0:
            return None
        if _fills_one(before.activation, factor):  # relu6(x) / 6, by itself or at the end of a layer
            gate = Activation("hard_sigmoid", alpha=1.0 / before.attrs["activation"].hi, beta=0.0)
            if before.op == "activation":
                del self.done[before.name]
                return replace(before, name=node.name, attrs={"activation": gate})
            attrs = {key: value for key, value in before.attrs.items() if key != "activation"}
            self.done[before.name] = replace(before, attrs=attrs)
            return Node(node.name, "activation", (before.name,), {"activation": gate})
        if before.op == "mul" and before.activation is None:
            return self._swish_of_parts(node, before, factor)
        return None

    def _swish_of_parts(self, node: Node, product: Node, factor: float) -> Node | None:
        """(x * relu6(x + 3)) / 6"""
        for x, name in (product.inputs, product.inputs[::-1]):
            clamp = self._alone(name)
            if clamp is None or clamp.op != "activation" or not _fills_one(clamp.activation, factor):
                continue
            line = self._alone(clamp.inputs[0])
            alpha, beta = _uniform(line) if line is not None and is_affine(line) else (None, None)
            if line is not None and alpha is not None and beta is not None and line.inputs[0] == x:
                for gone in (product, clamp, line):
                    del self.done[gone.name]
                self._readers[x] -= 1
                hi = clamp.attrs["activation"].hi
                swish = Activation("hard_swish", alpha=alpha / hi, beta=beta / hi)
                return Node(node.name, "activation", (x,), {"activation": swish})
        return None

    def _of_line(self, node: Node) -> Node | None:
        """A hard sigmoid of a * x + b is one of x. So is min(max(a * x + b, 0), 1)."""
        gate = node.attrs["activation"]
        if gate.kind == "clamp" and (gate.lo, gate.hi) == (0.0, 1.0):
            gate = Activation("hard_sigmoid", alpha=1.0, beta=0.0)
        line = self._alone(node.inputs[0])
        if gate.kind != "hard_sigmoid" or line is None or not is_affine(line):
            return None
        alpha, beta = _uniform(line)
        if alpha is None or beta is None:
            return None
        del self.done[line.name]
        gate = replace(gate, alpha=gate.alpha * alpha, beta=gate.alpha * beta + gate.beta)
        return replace(node, inputs=line.inputs, attrs={"activation": gate})

    def _gated(self, node: Node) -> Node | None:
        """x * sigmoid(x)"""
        for x, name in (node.inputs, node.inputs[::-1]):
            gate = self._alone(name)
            if gate is None or gate.op != "activation" or gate.inputs[0] != x:
                continue
            kinds = {"sigmoid": "swish", "hard_sigmoid": "hard_swish"}
            activation = gate.attrs["activation"]
            if activation.kind in kinds:
                del self.done[name]
                self._readers[x] -= 1  # the product and the gate read it before
                swish = replace(activation, kind=kinds[activation.kind])
                return Node(node.name, "activation", (x,), {"activation": swish})
        return None


def _fills_one(activation: Activation | None, factor: float) -> bool:
    """Whether the activation is a clamp whose bounds times ``factor`` are 0 and 1."""
    if activation is None or activation.kind != "clamp" or activation.lo != 0.0:
        return False
    return abs(activation.hi * factor - 1.0) <= _ONE


def _product(first: Node, second: Node) -> dict[str, np.ndarray] | None:
    """The parameters of two affine nodes in one; None where they become infinite, or where a damaged file gives the
    nodes other channels (what is read here is checked as a whole later)."""
    gamma, beta = (first.params[k].astype(np.float64) for k in ("gamma", "beta"))
    scale, shift = (second.params[k].astype(np.float64) for k in ("gamma", "beta"))
    if gamma.shape != scale.shape:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        params = affine(gamma * scale, beta * scale + shift, gamma.size)
    return params if all(np.isfinite(v).all() for v in params.values()) else None


def _uniform(node: Node) -> tuple[float | None, float | None]:
    """(gamma, beta) if they are the same in all channels."""
    gamma, beta = node.params["gamma"], node.params["beta"]
    if (gamma != gamma[0]).any() or (beta != beta[0]).any():
        return None, None
    return float(gamma[0]), float(beta[0])
