"""MobileNet V1: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications" (2017), table 1. A 3x3 convolution, then 13 blocks of a depthwise 3x3 and a 1x1 convolution.

Blocks are counted from 1, as in TensorFlow. Layers: conv1, block_1/depthwise, block_1/pointwise, ...,
block_13/pointwise, [head,] pool, logits.
"""

from __future__ import annotations

from typing import Any

from ..errors import ModelError
from ..graph import Graph
from ._common import NetBuilder, ParameterSource, Plan, Stage, check_width, floor_channels, make_divisible

#: (channels, blocks, stride of the first block)
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))
ROUNDINGS = {"floor": floor_channels, "divisible": make_divisible}


def plan(width: float = 1.0, *, rounding: str = "floor", head: bool = False) -> Plan:
    """Channels for a width multiplier.

    ``rounding`` is "floor" (TensorFlow: the whole part, 8 at least) or "divisible" (timm: V2's rule, multiples of 8).
    They agree for all published widths. ``head`` adds timm's 1x1 convolution before the pool; it has
    1024 channels at least.
    """
    check_width(width)
    if rounding not in ROUNDINGS:
        raise ModelError(f"rounding must be one of {', '.join(ROUNDINGS)}, not {rounding!r}")
    scale = ROUNDINGS[rounding]
    stages = tuple(Stage(scale(c * width), n, s) for c, n, s in STAGES)
    last = max(1024, scale(1024 * width)) if head else 0
    return Plan(scale(32 * width), stages, last, first_block=1, output="pointwise")


def build(
    width: float = 1.0,
    *,
    rounding: str = "floor",
    head: bool = False,
    classes: int = 1000,
    padding: str = "same",
    epsilon: float = 1e-3,
    weights: ParameterSource | None = None,
    seed: int = 0,
    **fields: Any,
) -> Graph:
    """MobileNet V1. The defaults are TensorFlow's conventions; :func:`fastmobilenet.models.build` knows the others.

    ``weights`` gives the parameters; without it they are random, made from ``seed``. ``fields`` are fields of Graph
    (input_size, preprocess, labels, name, ...). Raises ModelError for an option out of range.
    """
    p = plan(width, rounding=rounding, head=head)
    net = NetBuilder(classes=classes, padding=padding, epsilon=epsilon)
    x = net.conv(net.input(), "conv1", p.stem, kernel=3, stride=2)
    for block in p.blocks():
        x = net.depthwise(x, f"{block.name}/depthwise", stride=block.stride)
        x = net.conv(x, f"{block.name}/pointwise", block.channels)
    if p.head:
        x = net.conv(x, "head", p.head)
    return net.finish(net.classify(x), weights, seed, **fields)
