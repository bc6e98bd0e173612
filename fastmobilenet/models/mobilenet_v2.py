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

from ..graph import RELU6, Graph
from ._common import check_width, make_divisible
from ._plan import Conv, Plan, Planner, build_plan

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
    stem = Conv("conv1", STEM if fixed_ends else make_divisible(STEM * width), kernel=3, stride=2, activation=RELU6)
    blocks = Planner(stem.channels)
    for number, (expand, channels, repeats, stride) in enumerate(STAGES):
        blocks.begin_stage()
        end = fixed_ends and number in (0, len(STAGES) - 1)
        for i in range(repeats if end else math.ceil(repeats * depth)):
            blocks.inverted(
                make_divisible(channels * width),
                expanded=None if expand == 1 else blocks.channels * expand,
                stride=1 if i else stride,
                activation=RELU6,
            )
    head = HEAD if fixed_ends else make_divisible(HEAD * max(1.0, width))
    return Plan(stem, tuple(blocks.blocks), Conv("head", head, activation=RELU6))


def build(
    width: float = 1.0,
    *,
    depth: float = 1.0,
    fixed_ends: bool = False,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    **options: Any,
) -> Graph:
    """MobileNet V2. The defaults are torchvision's conventions; TensorFlow's are padding="same", epsilon=1e-3.
    The other options are those of :func:`fastmobilenet.models._plan.build_plan`."""
    return build_plan(plan(width, depth=depth, fixed_ends=fixed_ends), padding=padding, epsilon=epsilon, **options)
