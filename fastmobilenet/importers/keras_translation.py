"""What of a Keras network was translated so far, and how its layers get at their inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from ..errors import ModelError
from ..graph import OPS, Activation, Node, Padding, Shape
from ._gates import affine
from ._limits import MAX_FILE_ELEMENTS
from .keras_config import Layer
from .keras_weights import Path, Weights

NO_PAD: Padding = (0, 0, 0, 0)
#: A file of a few bytes may call a model again and again.
MAX_NODES = 10_000


@dataclass(frozen=True)
class Site:
    """A layer, and the names of the models around it and its own."""

    layer: Layer
    path: Path

    @property
    def name(self) -> str:
        return self.layer.name


@dataclass(frozen=True)
class Value:
    """A tensor of the network in the Graph.

    ``sizes`` are those of its node at the file's own picture size, ``rank`` is 4 for a map, or 2 for a vector: a map
    that is flattened in the order (height, width, channels). ``pad`` are zeros around it that are not yet added; the
    layer that adds them is ``pad_layer``.
    """

    node: str
    sizes: Shape
    rank: int = 4
    pad: Padding = NO_PAD
    pad_layer: str | None = None


#: A layer's argument.
Input: TypeAlias = "Value | float"


class Translation:
    """The nodes so far. ``version`` is Keras' major version, ``dynamic`` says that the file leaves the picture's size
    open, ``raw`` that the network itself scales the pixels. ``allowance`` bounds the parameters of all nodes together:
    a layer that is called many times has them in many nodes."""

    def __init__(self, weights: Weights, version: int, sizes: Shape, dynamic: bool, allowance: int) -> None:
        self.weights = weights
        self.version = version
        self.dynamic = dynamic
        self.raw = False
        self.nodes: dict[str, Node] = {"input": Node("input", "input")}
        self.input = Value("input", self._checked("input", sizes))
        self._scaled = {"input"}  # the input, and what is only scaled since
        self._arranged: dict[tuple[int, tuple[int, ...], tuple[int, ...]], np.ndarray] = {}
        self._allowance = allowance

    def emit(
        self, name: str, op: str, *inputs: Value, params: dict[str, np.ndarray] | None = None, **attrs: Any
    ) -> Value:
        """Appends a node. Its value has the rank of the first input."""
        if len(self.nodes) >= MAX_NODES:
            raise ModelError(f"the network has more than {MAX_NODES} layers")
        self._allowance -= sum(p.size for p in (params or {}).values())
        if self._allowance < 0:
            raise ModelError("the weights of all layers add up to far more than the file holds")
        unique, count = name, len(self.nodes)
        while unique in self.nodes:
            unique, count = f"{name}#{count}", count + 1
        node = Node(unique, op, tuple(x.node for x in inputs), attrs, params or {})
        sizes = self._checked(unique, OPS[op].shape(node, [x.sizes for x in inputs]))
        self.nodes[unique] = node
        return Value(unique, sizes, inputs[0].rank)

    def arranged(self, view: np.ndarray) -> np.ndarray:
        """A view of a layer's weights as an array of its own: the same one for every call of the layer."""
        key = (view.__array_interface__["data"][0], view.shape, view.strides)
        if key not in self._arranged:
            self._arranged[key] = np.ascontiguousarray(view)
        return self._arranged[key]

    def affine(self, name: str, x: Value, scale: float | np.ndarray, shift: float | np.ndarray) -> Value:
        """x * scale + shift, with one number or one for each channel."""
        with np.errstate(over="ignore"):
            params = affine(scale, shift, x.sizes[3])
        if not all(np.isfinite(v).all() for v in params.values()):
            raise ModelError(f"layer {name!r} computes with numbers that are infinite or not numbers")
        y = self.emit(name, "batch_norm", x, params=params, epsilon=0.0)
        if x.node in self._scaled:
            self._scaled.add(y.node)
            self.raw = True
        return y

    def activated(self, name: str, x: Value, activation: Activation) -> Value:
        """A clamp becomes a part of the layer's convolution or product, which came just before it; else a node."""
        node = self.nodes[x.node]
        last = next(reversed(self.nodes)) == x.node
        if last and activation.kind == "clamp" and node.op in ("conv2d", "dense") and node.activation is None:
            self.nodes[x.node] = replace(node, attrs={**node.attrs, "activation": activation})
            return x
        return self.emit(name, "activation", x, activation=activation)

    def plain(self, x: Value) -> Value:
        """The value with the zeros around it added: by a depthwise convolution of 1x1 that changes nothing else."""
        if x.pad_layer is None:
            return x
        ones = np.ones((x.sizes[3], 1, 1, 1), np.float32)
        source = replace(x, pad=NO_PAD, pad_layer=None)
        attrs = {"stride": (1, 1), "padding": x.pad, "dilation": (1, 1), "groups": x.sizes[3]}
        return self.emit(x.pad_layer, "conv2d", source, params={"weight": ones}, **attrs)

    def by_channel(self, layer: Layer, x: Value) -> Value:
        """A value whose last axis is the channels: a map, or a vector that is no flattened map."""
        if x.rank == 2 and x.sizes[1:3] != (1, 1):
            layer.fail("its input is a flattened map; supported is a map, or what a global pool gives")
        return self.plain(x)

    @staticmethod
    def _checked(name: str, sizes: Shape) -> Shape:
        if math.prod(sizes) > MAX_FILE_ELEMENTS:
            raise ModelError(f"node {name!r}: a tensor of shape {sizes} is too large")
        return sizes
