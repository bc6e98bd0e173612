"""Networks that are a chain of blocks, as data: what the builders plan, and the graph of a plan.

A MobileNet, MnasNet or EfficientNet-Lite is a convolution (conv1), a chain of blocks, perhaps another convolution
(head), a global pool (pool), perhaps a dense layer (hidden), and the classifier (logits). ``plan()`` of a family
describes one of its networks, channels rounded. The graph is made from this description, and so are the names of its
parameters in the libraries (importers/library_names.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..graph import HARD_SIGMOID, RELU, Activation, Graph
from ._common import ParameterSource, _shape
from ._layers import LayerBuilder


@dataclass(frozen=True)
class Conv:
    """A convolution without bias, its batch norm, and its activation if it has one. ``name``: within its block."""

    name: str
    channels: int
    kernel: int = 1
    stride: int = 1
    depthwise: bool = False
    activation: Activation | None = None


@dataclass(frozen=True)
class SqueezeExcite:
    """Multiplies every channel with a factor that two 1x1 convolutions make of the means of all channels, the first
    to ``reduced`` channels and with a ReLU (Hu et al., 2018). ``gate`` makes the factors."""

    reduced: int
    gate: Activation = HARD_SIGMOID
    name: str = "se"


Layer = Conv | SqueezeExcite


@dataclass(frozen=True)
class Block:
    """One block: the ``index``-th of stage number ``stage``. With ``residual`` its input is added to its output.

    ``kind`` says what it is made of: "separable" (depthwise, then 1x1), "inverted" (1x1, depthwise, 1x1), "fused"
    (3x3, then 1x1), "universal" (inverted, with a depthwise layer before and perhaps none inside) or "conv".
    """

    name: str
    kind: str
    stage: int
    index: int
    layers: tuple[Layer, ...]
    residual: bool

    @property
    def output(self) -> Conv:
        last = self.layers[-1]
        assert isinstance(last, Conv)
        return last


@dataclass(frozen=True)
class Hidden:
    """The dense layer between the pool and the classifier, with bias or else with batch norm."""

    channels: int
    activation: Activation
    batch_norm: bool = False


@dataclass(frozen=True)
class Plan:
    """One network of a family."""

    stem: Conv
    blocks: tuple[Block, ...]
    head: Conv | None = None
    hidden: Hidden | None = None

    @property
    def stages(self) -> int:
        return self.blocks[-1].stage + 1

    def repeats(self) -> tuple[int, ...]:
        """Blocks of every stage."""
        return tuple(sum(block.stage == stage for block in self.blocks) for stage in range(self.stages))

    def stage_channels(self) -> tuple[int, ...]:
        """Output channels of every stage."""
        return tuple(block.output.channels for block in self.blocks if block.index == 0)

    def outputs(self) -> dict[str, int]:
        """Layer -> output channels, of all layers whose channels a width multiplier changes."""
        found = {self.stem.name: self.stem.channels}
        for block in self.blocks:
            found |= {f"{block.name}/{x.name}": x.channels for x in block.layers if isinstance(x, Conv)}
        if self.head:
            found[self.head.name] = self.head.channels
        if self.hidden:
            found["hidden"] = self.hidden.channels
        return found


class Planner:
    """Collects the blocks of a plan. ``channels``: of the last block, at first those given; ``first``: number of the
    first block."""

    def __init__(self, channels: int, *, first: int = 0) -> None:
        self.channels = channels
        self.blocks: list[Block] = []
        self._first = first
        self._stage, self._index = -1, 0

    def begin_stage(self) -> None:
        self._stage, self._index = self._stage + 1, 0

    def add(self, kind: str, *layers: Layer, skip: bool = True) -> None:
        """One block more. ``skip``: it has a residual where its output has the shape of its input."""
        channels = next(x.channels for x in reversed(layers) if isinstance(x, Conv))
        residual = skip and channels == self.channels and all(x.stride == 1 for x in layers if isinstance(x, Conv))
        name = f"block_{self._first + len(self.blocks)}"
        self.blocks.append(Block(name, kind, self._stage, self._index, layers, residual))
        self.channels = channels
        self._index += 1

    def inverted(
        self,
        channels: int,
        *,
        expanded: int | None,
        stride: int,
        activation: Activation,
        kernel: int = 3,
        squeeze: SqueezeExcite | None = None,
        skip: bool = True,
    ) -> None:
        """[1x1 to ``expanded`` channels,] depthwise, [squeeze-excite,] 1x1 without activation."""
        layers: list[Layer] = []
        if expanded is not None:
            layers.append(Conv("expand", expanded, activation=activation))
        layers.append(Conv("depthwise", expanded or self.channels, kernel, stride, True, activation))
        if squeeze is not None:
            layers.append(squeeze)
        layers.append(Conv("project", channels))
        self.add("separable" if expanded is None else "inverted", *layers, skip=skip)


def build_plan(
    plan: Plan,
    *,
    classes: int = 1000,
    padding: str,
    epsilon: float,
    weights: ParameterSource | None = None,
    seed: int = 0,
    **fields: Any,
) -> Graph:
    """The graph of a plan.

    ``weights`` gives the parameters; without it they are random, made from ``seed``. ``fields`` are fields of Graph
    (input_size, preprocess, labels, name, ...). Raises ModelError for an option out of range.
    """
    net = _PlanBuilder(classes=classes, padding=padding, epsilon=epsilon)
    x = net.layer(net.input(), plan.stem.name, plan.stem)
    for block in plan.blocks:
        y = x
        for layer in block.layers:
            y = net.layer(y, f"{block.name}/{layer.name}", layer)
        x = net.add(x, y, block.name) if block.residual else y
    if plan.head:
        x = net.layer(x, plan.head.name, plan.head)
    x = net.global_pool(x, "pool")
    if plan.hidden:
        x = net.hidden(x, plan.hidden)
    return net.finish(net.dense(x, "logits", net.channels[x], net.classes), weights, seed, **fields)


class _PlanBuilder(LayerBuilder):
    def layer(self, x: str, name: str, layer: Layer) -> str:
        if isinstance(layer, SqueezeExcite):
            return self._squeeze_excite(x, name, layer)
        return self.conv(
            x,
            name,
            layer.channels,
            kernel=layer.kernel,
            stride=layer.stride,
            groups=self.channels[x] if layer.depthwise else 1,
            activation=layer.activation,
        )

    def _squeeze_excite(self, x: str, name: str, layer: SqueezeExcite) -> str:
        channels = self.channels[x]
        y = self.global_pool(x, f"{name}/pool")
        y = self.biased(y, f"{name}/reduce", layer.reduced, kernel=1, activation=RELU)
        y = self.biased(y, f"{name}/expand", channels, kernel=1, activation=layer.gate)
        return self._add("mul", x, y, name=name, channels=channels)

    def hidden(self, x: str, layer: Hidden) -> str:
        inputs = self.channels[x]
        if not layer.batch_norm:
            return self.dense(x, "hidden", inputs, layer.channels, layer.activation)
        y = self._add(
            "dense", x, name="hidden", channels=layer.channels, params={"weight": _shape(layer.channels, inputs)}
        )
        return self.activate(self.batch_norm(y, "hidden/bn"), f"hidden/{layer.activation}", layer.activation)
