"""What the builders share: channel rounding, the conv + batch norm + activation triple, filling in weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ModelError
from ..graph import RELU6, Activation, Graph, GraphBuilder, Node, Padding
from .initialize import randomize

#: (node of the skeleton, parameter name) -> the array, of the shape of ``node.params[parameter]``.
ParameterSource = Callable[[Node, str], np.ndarray]


def make_divisible(channels: float, divisor: int = 8) -> int:
    """MobileNet V2's rule: the nearest multiple (halves go up), one divisor at least, and one step up
    where that would lose more than 10 % of the channels."""
    nearest = max(divisor, math.floor(channels / divisor + 0.5) * divisor)
    return nearest + divisor if nearest < 0.9 * channels else nearest


def floor_channels(channels: float) -> int:
    """MobileNet V1's rule in TensorFlow: the whole part, 8 at least."""
    return max(int(channels), 8)


def check_width(width: float) -> None:
    if not (isinstance(width, (int, float)) and math.isfinite(width) and width > 0):
        raise ModelError(f"width must be a positive number, not {width!r}")


class NetBuilder:
    """Builds the skeleton of a network: parameters have their shape but take no memory until :meth:`finish`.

    A convolution carries the name of its layer, and so does the fused layer that passes.py makes of it; the steps after
    it have suffixes: conv1, conv1/bn, conv1/relu6.

    ``padding`` is "same" (TensorFlow: depends on the picture) or "symmetric" (PyTorch: kernel // 2 on all sides).
    """

    def __init__(self, *, classes: int, padding: str, epsilon: float) -> None:
        if padding not in ("same", "symmetric"):
            raise ModelError(f'padding must be "same" (TensorFlow) or "symmetric" (PyTorch), not {padding!r}')
        if not (math.isfinite(epsilon) and epsilon > 0):
            raise ModelError(f"epsilon must be a positive number, not {epsilon!r}")
        if isinstance(classes, bool) or not isinstance(classes, (int, np.integer)) or classes < 1:
            raise ModelError(f"classes must be a whole number of at least 1, not {classes!r}")
        self.classes, self.padding, self.epsilon = int(classes), padding, float(epsilon)
        self.builder = GraphBuilder()
        self.channels: dict[str, int] = {}

    def input(self, channels: int = 3, **attrs: Any) -> str:
        return self._add("input", name="input", channels=channels, **attrs)

    def conv(
        self,
        x: str,
        name: str,
        channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Activation | None = RELU6,
    ) -> str:
        """Convolution without bias, batch norm, and the activation if there is one. Returns the last one's name."""
        weight = _shape(channels, kernel, kernel, self.channels[x] // groups)
        padding = self._padding(kernel)
        attrs = {"stride": (stride, stride), "padding": padding, "dilation": (1, 1), "groups": groups}
        y = self._add("conv2d", x, name=name, channels=channels, params={"weight": weight}, **attrs)
        y = self.batch_norm(y, f"{name}/bn")
        if activation:
            y = self._add("activation", y, name=f"{name}/{activation}", channels=channels, activation=activation)
        return y

    def batch_norm(self, x: str, name: str) -> str:
        channels = self.channels[x]
        params = {key: _shape(channels) for key in ("gamma", "beta", "mean", "variance")}
        return self._add("batch_norm", x, name=name, channels=channels, params=params, epsilon=self.epsilon)

    def add(self, a: str, b: str, name: str) -> str:
        return self._add("add", a, b, name=name, channels=self.channels[a])

    def classify(self, x: str) -> str:
        """Global average pool ("pool", the embedding) and the dense layer ("logits")."""
        channels = self.channels[x]
        x = self._add("global_avg_pool", x, name="pool", channels=channels)
        params = {"weight": _shape(self.classes, channels), "bias": _shape(self.classes)}
        return self._add("dense", x, name="logits", channels=self.classes, params=params)

    def finish(self, output: str, weights: ParameterSource | None, seed: int, **fields: Any) -> Graph:
        """The graph with its parameters: from ``weights``, or random ones made from ``seed``."""
        labels = fields.get("labels")
        if labels is not None and len(labels) != self.classes:
            raise ModelError(f"{len(labels)} labels do not fit {self.classes} classes")
        graph = self.builder.build(output, **fields)
        return randomize(graph, seed) if weights is None else fill(graph, weights)

    def _padding(self, kernel: int) -> Padding | str:
        if self.padding == "same" and kernel > 1:
            return "same"
        return (kernel // 2, kernel // 2, kernel // 2, kernel // 2)

    def _add(self, op: str, *inputs: str, name: str, channels: int, **options: Any) -> str:
        made = self.builder.add(op, *inputs, name=name, **options)
        self.channels[made] = channels
        return made


def _shape(*shape: int) -> np.ndarray:
    """Zeros of this shape in four bytes of memory."""
    return np.broadcast_to(np.float32(0), shape)


def skeleton(node: Node, key: str) -> np.ndarray:
    """The ParameterSource that leaves a graph without values: shapes only."""
    return node.params[key]


def fill(graph: Graph, weights: ParameterSource) -> Graph:
    """The graph with every parameter taken from ``weights``. Raises ModelError where a shape differs."""

    def filled(node: Node) -> Node:
        params = {key: weights(node, key) for key in node.params}
        for key, value in params.items():
            if value.shape != node.params[key].shape:
                raise ModelError(
                    f"node {node.name!r}: {key} has shape {value.shape}, expected {node.params[key].shape}"
                )
        return replace(node, params=params)

    return graph.replace(nodes=tuple(filled(node) for node in graph.nodes))
