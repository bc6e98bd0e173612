"""The network of the starter model, as a plan of this package and as a PyTorch module.

Its blocks are MobileNet V4's: while the map is large, a 3x3 convolution and a 1x1 convolution ("fused"), which train
two to three times faster on a CPU than a depthwise filter between two 1x1 convolutions; then inverted residuals. A
picture of 64 pixels has a map of 32, 16, 8 and 4: a step fewer than V4 takes, for pictures that small.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from fastmobilenet.graph import RELU, Graph, Node
from fastmobilenet.models._common import make_divisible
from fastmobilenet.models._plan import Conv, Plan, Planner, build_plan
from fastmobilenet.preprocess import Preprocess

EPSILON = 1e-5


def starter_plan(width: float = 1.0) -> Plan:
    """The channels for a width multiplier."""

    def wide(channels: int) -> int:
        return make_divisible(channels * width)

    stem = Conv("conv1", wide(32), 3, 2, activation=RELU)
    blocks = Planner(stem.channels)

    def fused(middle: int, channels: int, stride: int = 1) -> None:
        first = Conv("expand", wide(middle), 3, stride, activation=RELU)
        blocks.add("fused", first, Conv("project", wide(channels)))

    blocks.begin_stage()  # 16 x 16
    fused(64, 64, stride=2)
    fused(96, 64)
    fused(96, 64)
    blocks.begin_stage()  # 8 x 8
    fused(128, 128, stride=2)
    for _ in range(3):
        blocks.inverted(wide(128), expanded=wide(256), stride=1, activation=RELU)
    blocks.begin_stage()  # 4 x 4
    fused(256, 192, stride=2)
    for _ in range(2):
        blocks.inverted(wide(192), expanded=wide(384), stride=1, activation=RELU)
    return Plan(stem, tuple(blocks.blocks), Conv("head", wide(512), activation=RELU))


class Network(nn.Module):
    """A plan as a PyTorch module. The parameters of a layer are those of ``layers[name with "." for "/"]``."""

    def __init__(self, plan: Plan, classes: int) -> None:
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleDict()
        channels = self._add(plan.stem.name, plan.stem, 3)
        for block in plan.blocks:
            for layer in block.layers:
                assert isinstance(layer, Conv)
                channels = self._add(f"{block.name}/{layer.name}", layer, channels)
        if plan.head:
            channels = self._add(plan.head.name, plan.head, channels)
        self.logits = nn.Linear(channels, classes)
        nn.init.normal_(self.logits.weight, std=0.01)
        nn.init.zeros_(self.logits.bias)

    def _add(self, name: str, layer: Conv, channels: int) -> int:
        groups = channels if layer.depthwise else 1
        conv = nn.Conv2d(
            channels, layer.channels, layer.kernel, layer.stride, layer.kernel // 2, groups=groups, bias=False
        )
        nn.init.kaiming_normal_(conv.weight, mode="fan_out" if layer.depthwise else "fan_in")
        parts: list[nn.Module] = [conv, nn.BatchNorm2d(layer.channels, eps=EPSILON)]
        if layer.activation:
            parts.append(nn.ReLU(inplace=True))
        self.layers[_key(name)] = nn.Sequential(*parts)
        return layer.channels

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[self.plan.stem.name](x)
        for block in self.plan.blocks:
            y = x
            for layer in block.layers:
                y = self.layers[_key(f"{block.name}/{layer.name}")](y)
            x = x + y if block.residual else y
        if self.plan.head:
            x = self.layers[self.plan.head.name](x)
        logits: Tensor = self.logits(x.mean((2, 3)))
        return logits


def _key(name: str) -> str:
    return name.replace("/", "-")  # nn.ModuleDict allows no dots, and "/" is unusual in state dicts


def to_graph(net: Network, size: int, preprocess: Preprocess, labels: list[str]) -> Graph:
    """The same network, with the same weights, as this package runs it."""
    names = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}

    def weights(node: Node, parameter: str) -> np.ndarray:
        if node.name == "logits":
            values: Tensor = getattr(net.logits, parameter)
        else:
            layer = net.layers[_key(node.name.removesuffix("/bn"))]
            assert isinstance(layer, nn.Sequential)
            values = getattr(layer[1], names[parameter]) if node.name.endswith("/bn") else layer[0].weight
        array = values.detach().numpy()
        return np.ascontiguousarray(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array)  # [oc][kh][kw][ic]

    return build_plan(
        net.plan,
        classes=net.logits.out_features,
        padding="symmetric",
        epsilon=EPSILON,
        weights=weights,
        input_size=(size, size),
        preprocess=preprocess,
        labels=tuple(labels),
        name="starter",
    )
