"""ShuffleNet V1: Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices"
(2018), table 1.

A block narrows its input with a grouped 1x1 convolution, shuffles the channels so that every group of the next layers
gets some of every group, filters with a depthwise 3x3, and widens with a grouped 1x1 convolution. Its input is added
to the result; in the first block of a stage, which has stride 2, the input's average pool is put beside it instead.
The first convolution of the first block has few input channels and is not grouped.

Blocks are counted from 1. Layers: conv1, pool1, block_1/reduce, block_1/shuffle, block_1/depthwise, block_1/expand,
block_1/shortcut, block_1, block_2/reduce, ..., block_16, pool, logits. With one group there is no shuffle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError
from ..graph import RELU, Graph
from ._common import ParameterSource
from ._layers import LayerBuilder, check_published

#: groups: channels of the first stage at width 1. Each stage has twice the channels of the one before.
CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
WIDTHS = (0.5, 1.0, 1.5, 2.0)
STEM = 24
#: Blocks of the stages.
REPEATS = (4, 8, 4)


@dataclass(frozen=True)
class Block:
    """One block: ``inner`` channels between its 1x1 convolutions, ``groups`` of the first of these."""

    name: str
    stride: int
    groups: int
    inner: int
    channels: int


@dataclass(frozen=True)
class Plan:
    stem: int
    stages: tuple[int, ...]
    groups: int

    def blocks(self) -> Iterator[Block]:
        number = 1
        for stage, channels in enumerate(self.stages):
            for index in range(REPEATS[stage]):
                groups = 1 if number == 1 else self.groups
                inner = _round_up(channels / 4, self.groups)
                yield Block(f"block_{number}", 1 if index else 2, groups, inner, channels)
                number += 1


def plan(width: float = 1.0, *, groups: int = 3) -> Plan:
    """Channels for a published width.

    The paper gives those of width 1. The stem is that of the networks released by its authors: 24, 24 and 48 channels
    for the widths 1, 1.5 and 2. Whatever a grouped convolution makes is rounded up to a multiple of the groups.
    """
    check_published("ShuffleNet V1", width, WIDTHS)
    if groups not in CHANNELS:
        raise ModelError(f"groups must be one of {', '.join(map(str, CHANNELS))}, not {groups!r}")
    stem = STEM * (width if width < 1 else int(width))
    first = int(CHANNELS[groups] * width)
    return Plan(_round_up(stem, groups), (first, 2 * first, 4 * first), groups)


def _round_up(channels: float, divisor: int) -> int:
    return int(-(-channels // divisor)) * divisor


def build(
    width: float = 1.0,
    *,
    groups: int = 3,
    classes: int = 1000,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    weights: ParameterSource | None = None,
    seed: int = 0,
    **fields: Any,
) -> Graph:
    """ShuffleNet V1 with 1, 2, 3, 4 or 8 groups, of width 0.5, 1, 1.5 or 2.

    ``weights`` gives the parameters; without it they are random, made from ``seed``. ``fields`` are fields of Graph
    (input_size, preprocess, labels, name, ...). Raises ModelError for an option out of range.
    """
    p = plan(width, groups=groups)
    net = LayerBuilder(classes=classes, padding=padding, epsilon=epsilon)
    x = net.conv(net.input(), "conv1", p.stem, kernel=3, stride=2, activation=RELU)
    x = net.max_pool(x, "pool1", padding=None)
    for block in p.blocks():
        x = _block(net, x, block, p.groups)
    x = net.global_pool(x, "pool")
    return net.finish(net.dense(x, "logits", net.channels[x], net.classes), weights, seed, **fields)


def _block(net: LayerBuilder, x: str, block: Block, groups: int) -> str:
    name, inner = block.name, block.inner
    made = block.channels - (net.channels[x] if block.stride == 2 else 0)
    y = net.conv(x, f"{name}/reduce", inner, groups=block.groups, activation=RELU)
    if groups > 1:
        y = net.shuffle(y, f"{name}/shuffle", groups)
    y = net.conv(y, f"{name}/depthwise", inner, kernel=3, stride=block.stride, groups=inner, activation=None)
    if block.stride == 1:
        y = net.conv(y, f"{name}/expand", made, groups=groups, activation=None)
        return net.activate(net.add(x, y, name), f"{name}/{RELU}")
    # The paper has the activation after the concatenation. The pool's half is never negative: it may be left out there.
    y = net.conv(y, f"{name}/expand", made, groups=groups, activation=RELU)
    return net.concat(name, net.avg_pool(x, f"{name}/shortcut", padding=None), y)
