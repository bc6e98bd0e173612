"""MnasNet: Tan et al., "MnasNet: Platform-Aware Neural Architecture Search for Mobile" (2019), figure 7 (A1), and two
networks that its authors published with it: B1, which has no squeeze-excite, and "small".

V2's blocks with ReLU, depthwise filters of 3x3 or 5x5, and in some stages squeeze-excite, between the depthwise filter
and the projection, with a sigmoid.

Blocks are counted from 0. Layers: conv1, block_0/depthwise, block_0/project, block_1/expand, ..., head, pool, logits;
``block_2`` is the sum at the end of a block that has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ModelError
from ..graph import RELU, SIGMOID, Graph
from ._common import check_width, make_divisible
from ._plan import Conv, Plan, Planner, SqueezeExcite, build_plan

HEAD = 1280


@dataclass(frozen=True)
class Stage:
    """Equal blocks; the first has the stride. ``squeeze``: with squeeze-excite, to a quarter of the input channels."""

    channels: int
    repeats: int
    stride: int
    kernel: int
    expand: int
    squeeze: bool = False


@dataclass(frozen=True)
class Variant:
    """``first_residual``: the first block has a residual where shapes allow."""

    stem: int
    stages: tuple[Stage, ...]
    first_residual: bool = False


VARIANTS = {
    "a1": Variant(
        32,
        (
            Stage(16, 1, 1, 3, 1),
            Stage(24, 2, 2, 3, 6),
            Stage(40, 3, 2, 5, 3, squeeze=True),
            Stage(80, 4, 2, 3, 6),
            Stage(112, 2, 1, 3, 6, squeeze=True),
            Stage(160, 3, 2, 5, 6, squeeze=True),
            Stage(320, 1, 1, 3, 6),
        ),
    ),
    "b1": Variant(
        32,
        (
            Stage(16, 1, 1, 3, 1),
            Stage(24, 3, 2, 3, 3),
            Stage(40, 3, 2, 5, 3),
            Stage(80, 3, 2, 5, 6),
            Stage(96, 2, 1, 3, 6),
            Stage(192, 4, 2, 5, 6),
            Stage(320, 1, 1, 3, 6),
        ),
    ),
    "small": Variant(
        8,
        (
            Stage(8, 1, 1, 3, 1),
            Stage(16, 1, 2, 3, 3),
            Stage(16, 2, 2, 3, 6),
            Stage(32, 4, 2, 5, 6, squeeze=True),
            Stage(32, 3, 1, 3, 6, squeeze=True),
            Stage(88, 3, 2, 5, 6, squeeze=True),
            Stage(144, 1, 1, 3, 6),
        ),
        first_residual=True,
    ),
}


def plan(width: float = 1.0, *, variant: str = "b1") -> Plan:
    """Channels for a width multiplier; the head always has 1280."""
    check_width(width)
    if variant not in VARIANTS:
        raise ModelError(f"variant must be one of {', '.join(VARIANTS)}, not {variant!r}")
    network = VARIANTS[variant]
    stem = Conv("conv1", make_divisible(network.stem * width), 3, 2, activation=RELU)
    blocks = Planner(stem.channels)
    for number, stage in enumerate(network.stages):
        blocks.begin_stage()
        for i in range(stage.repeats):
            blocks.inverted(
                make_divisible(stage.channels * width),
                expanded=None if stage.expand == 1 else blocks.channels * stage.expand,
                kernel=stage.kernel,
                stride=1 if i else stage.stride,
                activation=RELU,
                squeeze=SqueezeExcite(blocks.channels // 4, SIGMOID) if stage.squeeze else None,
                skip=number > 0 or network.first_residual,
            )
    return Plan(stem, tuple(blocks.blocks), Conv("head", HEAD, activation=RELU))


def build(
    width: float = 1.0,
    *,
    variant: str = "b1",
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    **options: Any,
) -> Graph:
    """MnasNet. The defaults are torchvision's and timm's conventions. The other options are those of
    :func:`fastmobilenet.models._plan.build_plan`."""
    return build_plan(plan(width, variant=variant), padding=padding, epsilon=epsilon, **options)
