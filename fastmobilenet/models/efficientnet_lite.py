"""EfficientNet-Lite: Liu, "Higher accuracy on vision models with EfficientNet-Lite" (TensorFlow blog, 2020).
EfficientNet (Tan and Le, 2019, table 1) with ReLU6 and without squeeze-excite.

V2's blocks with depthwise filters of 3x3 or 5x5. lite0 has the widths and depths of the table; larger members
multiply both, but keep the stem, the head and the depth of the first and the last stage.

Blocks are counted from 0. Layers: conv1, block_0/depthwise, block_0/project, block_1/expand, ..., head, pool, logits;
``block_2`` is the sum at the end of a block that has one.
"""

from __future__ import annotations

import math
from typing import Any

from ..graph import RELU6, Graph
from ._common import check_width, make_divisible
from ._plan import Conv, Plan, Planner, build_plan

#: (widening, channels, blocks, stride of the first block, kernel)
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM, HEAD = 32, 1280


def plan(width: float = 1.0, *, depth: float = 1.0) -> Plan:
    """Channels for a width multiplier, and blocks for a depth multiplier, rounded up."""
    check_width(width)
    stem = Conv("conv1", STEM, 3, 2, activation=RELU6)
    blocks = Planner(stem.channels)
    for number, (expand, channels, repeats, stride, kernel) in enumerate(STAGES):
        blocks.begin_stage()
        end = number in (0, len(STAGES) - 1)
        for i in range(repeats if end else math.ceil(repeats * depth)):
            blocks.inverted(
                make_divisible(channels * width),
                expanded=None if expand == 1 else blocks.channels * expand,
                kernel=kernel,
                stride=1 if i else stride,
                activation=RELU6,
            )
    return Plan(stem, tuple(blocks.blocks), Conv("head", HEAD, activation=RELU6))


def build(
    width: float = 1.0,
    *,
    depth: float = 1.0,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    **options: Any,
) -> Graph:
    """EfficientNet-Lite. The defaults are timm's conventions; TensorFlow's are padding="same", epsilon=1e-3. The other
    options are those of :func:`fastmobilenet.models._plan.build_plan`."""
    return build_plan(plan(width, depth=depth), padding=padding, epsilon=epsilon, **options)
