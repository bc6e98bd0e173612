"""MobileNet V1: Howard et al., "MobileNets: Efficient Convolutional Neural Networks for Mobile Vision
Applications" (2017), table 1. A 3x3 convolution, then 13 blocks of a depthwise 3x3 and a 1x1 convolution.

Blocks are counted from 1, as in TensorFlow. Layers: conv1, block_1/depthwise, block_1/pointwise, ...,
block_13/pointwise, [head,] pool, logits.
"""

from __future__ import annotations

from typing import Any

from ..errors import ModelError
from ..graph import RELU6, Graph
from ._common import check_width, floor_channels, make_divisible
from ._plan import Conv, Plan, Planner, build_plan

STEM, HEAD = 32, 1024
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
    stem = Conv("conv1", scale(STEM * width), kernel=3, stride=2, activation=RELU6)
    blocks = Planner(stem.channels, first=1)
    for channels, repeats, stride in STAGES:
        blocks.begin_stage()
        for i in range(repeats):
            depthwise = Conv("depthwise", blocks.channels, 3, 1 if i else stride, True, RELU6)
            pointwise = Conv("pointwise", scale(channels * width), activation=RELU6)
            blocks.add("separable", depthwise, pointwise, skip=False)
    last = Conv("head", max(HEAD, scale(HEAD * width)), activation=RELU6)
    return Plan(stem, tuple(blocks.blocks), last if head else None)


def build(
    width: float = 1.0,
    *,
    rounding: str = "floor",
    head: bool = False,
    padding: str = "same",
    epsilon: float = 1e-3,
    **options: Any,
) -> Graph:
    """MobileNet V1. The defaults are TensorFlow's conventions; :func:`fastmobilenet.models.build` knows the others.
    The other options are those of :func:`fastmobilenet.models._plan.build_plan`."""
    return build_plan(plan(width, rounding=rounding, head=head), padding=padding, epsilon=epsilon, **options)
