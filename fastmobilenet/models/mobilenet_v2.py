"""MobileNet V2: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks" (2018), table 2.

A block widens its input with a 1x1 convolution (except the first block), filters it with a depthwise 3x3, and
projects it to few channels with a 1x1 convolution without activation. Where shape and stride
allow, its input is added to the result, without activation after the sum.

Blocks are counted from 0, as in TensorFlow. Layers: conv1, block_0/depthwise, block_0/project, block_1/expand, ...,
block_16/project, head, pool, logits; ``block_2`` is the sum at the end of a block that has one.
"""

from __future__ import annotations

import math
from typing import Any

from ..graph import Graph
from ._common import Block, NetBuilder, ParameterSource, Plan, Stage, check_width, make_divisible

#: (widening, channels, blocks, stride of the first block)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM, HEAD = 32, 1280


def plan(width: float = 1.0, *, depth: float = 1.0, fixed_ends: bool = False) -> Plan:
    """Channels and blocks for a width multiplier; the head is not narrowed below width 1.

    ``depth`` multiplies the blocks of the stages, rounded up. ``fixed_ends`` (timm's "d" networks) keeps the
    channels of the stem and the head and the depth of the first and the last stage.
    """
    check_width(width)
    last = len(STAGES) - 1
    stages = tuple(
        Stage(make_divisible(c * width), n if fixed_ends and i in (0, last) else math.ceil(n * depth), s, t)
        for i, (t, c, n, s) in enumerate(STAGES)
    )
    stem = STEM if fixed_ends else make_divisible(STEM * width)
    head = HEAD if fixed_ends else make_divisible(HEAD * max(1.0, width))
    return Plan(stem, stages, head, first_block=0, output="project")


def build(
    width: float = 1.0,
    *,
    depth: float = 1.0,
    fixed_ends: bool = False,
    classes: int = 1000,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    weights: ParameterSource | None = None,
    seed: int = 0,
    **fields: Any,
) -> Graph:
    """MobileNet V2. The defaults are torchvision's conventions; TensorFlow's are padding="same", epsilon=1e-3.

    ``weights`` gives the parameters; without it they are random, made from ``seed``. ``fields`` are fields of Graph
    (input_size, preprocess, labels, name, ...). Raises ModelError for an option out of range.
    """
    p = plan(width, depth=depth, fixed_ends=fixed_ends)
    net = NetBuilder(classes=classes, padding=padding, epsilon=epsilon)
    x = net.conv(net.input(), "conv1", p.stem, kernel=3, stride=2)
    for block in p.blocks():
        x = _inverted_residual(net, x, block)
    x = net.conv(x, "head", p.head)
    return net.finish(net.classify(x), weights, seed, **fields)


def _inverted_residual(net: NetBuilder, x: str, block: Block) -> str:
    y, name, channels = x, block.name, net.channels[x]
    if block.expand != 1:
        y = net.conv(y, f"{name}/expand", channels * block.expand)
    y = net.depthwise(y, f"{name}/depthwise", stride=block.stride)
    y = net.conv(y, f"{name}/project", block.channels, activation=None)
    return net.add(x, y, name) if block.stride == 1 and channels == block.channels else y
