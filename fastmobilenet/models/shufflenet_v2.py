"""ShuffleNet V2: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design" (2018),
table 5.

A block sends half of its channels through a 1x1, a depthwise 3x3 and a 1x1 convolution, and leaves the other half as
it is; both are joined again with their channels in turn. The first block of a stage sends all channels through two
such paths with stride 2, and joins them to twice as many.

Blocks are counted from 1. Layers: conv1, pool1, block_1/left_depthwise, block_1/left_pointwise, block_1/reduce,
block_1/depthwise, block_1/expand, block_1/join, block_1 (the shuffle), block_2/left, block_2/right, block_2/reduce,
..., block_16, head, pool, logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..graph import RELU, Graph
from ._common import ParameterSource
from ._layers import LayerBuilder, check_published

#: width: (channels of the three stages, of the head).
CHANNELS = {
    0.5: ((48, 96, 192), 1024),
    1.0: ((116, 232, 464), 1024),
    1.5: ((176, 352, 704), 1024),
    2.0: ((244, 488, 976), 2048),
}
STEM = 24
#: Blocks of the stages.
REPEATS = (4, 8, 4)


@dataclass(frozen=True)
class Block:
    """One block: the ``index``-th of stage number ``stage``; the first of a stage has stride 2."""

    name: str
    stage: int
    index: int
    channels: int

    @property
    def stride(self) -> int:
        return 1 if self.index else 2


@dataclass(frozen=True)
class Plan:
    stages: tuple[int, ...]
    head: int

    def blocks(self) -> Iterator[Block]:
        number = 1
        for stage, channels in enumerate(self.stages):
            for index in range(REPEATS[stage]):
                yield Block(f"block_{number}", stage, index, channels)
                number += 1


def plan(width: float = 1.0) -> Plan:
    check_published("ShuffleNet V2", width, tuple(CHANNELS))
    return Plan(*CHANNELS[width])


def build(
    width: float = 1.0,
    *,
    classes: int = 1000,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    weights: ParameterSource | None = None,
    seed: int = 0,
    **fields: Any,
) -> Graph:
    """ShuffleNet V2 of width 0.5, 1, 1.5 or 2. The defaults are torchvision's conventions.

    ``weights`` gives the parameters; without it they are random, made from ``seed``. ``fields`` are fields of Graph
    (input_size, preprocess, labels, name, ...). Raises ModelError for an option out of range.
    """
    p = plan(width)
    net = LayerBuilder(classes=classes, padding=padding, epsilon=epsilon)
    x = net.conv(net.input(), "conv1", STEM, kernel=3, stride=2, activation=RELU)
    x = net.max_pool(x, "pool1", padding=None)
    for block in p.blocks():
        x = _block(net, x, block)
    x = net.conv(x, "head", p.head, activation=RELU)
    x = net.global_pool(x, "pool")
    return net.finish(net.dense(x, "logits", net.channels[x], net.classes), weights, seed, **fields)


def _block(net: LayerBuilder, x: str, block: Block) -> str:
    name, half = block.name, block.channels // 2
    if block.stride == 1:
        left = net.take(x, f"{name}/left", range(half))
        right = net.take(x, f"{name}/right", range(half, block.channels))
    else:
        left = _depthwise(net, x, f"{name}/left_depthwise", block.stride)
        left = net.conv(left, f"{name}/left_pointwise", half, activation=RELU)
        right = x
    right = net.conv(right, f"{name}/reduce", half, activation=RELU)
    right = _depthwise(net, right, f"{name}/depthwise", block.stride)
    right = net.conv(right, f"{name}/expand", half, activation=RELU)
    return net.shuffle(net.concat(f"{name}/join", left, right), name, groups=2)


def _depthwise(net: LayerBuilder, x: str, name: str, stride: int) -> str:
    channels = net.channels[x]
    return net.conv(x, name, channels, kernel=3, stride=stride, groups=channels, activation=None)
