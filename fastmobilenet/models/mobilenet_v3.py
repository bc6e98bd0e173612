"""MobileNet V3: Howard et al., "Searching for MobileNetV3" (2019), tables 1 and 2.

V2's blocks with depthwise filters of 3x3 or 5x5, hard-swish in the later stages, and squeeze-excite in some blocks,
between the depthwise filter and the projection. The pool comes before the last wide layer. The minimalistic networks
have neither 5x5 filters nor hard-swish nor squeeze-excite.

Blocks are counted from 0, as in TensorFlow. Layers: conv1, block_0/depthwise, [block_0/se/reduce, block_0/se/expand,
block_0/se,] block_0/project, block_1/expand, ..., head, pool, hidden, logits; ``block_2`` is the sum at the end of a
block that has one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ..errors import ModelError
from ..graph import HARD_SWISH, RELU, Activation, Graph
from ._common import check_width, make_divisible
from ._plan import Conv, Hidden, Plan, Planner, SqueezeExcite, build_plan

STEM = 16


@dataclass(frozen=True)
class Stage:
    """Blocks with equal output channels. ``blocks``: (kernel, expanded channels) of each; the first has the stride."""

    channels: int
    stride: int
    activation: Activation
    squeeze: bool
    blocks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Size:
    stages: tuple[Stage, ...]
    hidden: int


SIZES = {
    "large": Size(
        (
            Stage(16, 1, RELU, False, ((3, 16),)),
            Stage(24, 2, RELU, False, ((3, 64), (3, 72))),
            Stage(40, 2, RELU, True, ((5, 72), (5, 120), (5, 120))),
            Stage(80, 2, HARD_SWISH, False, ((3, 240), (3, 200), (3, 184), (3, 184))),
            Stage(112, 1, HARD_SWISH, True, ((3, 480), (3, 672))),
            Stage(160, 2, HARD_SWISH, True, ((5, 672), (5, 960), (5, 960))),
        ),
        hidden=1280,
    ),
    "small": Size(
        (
            Stage(16, 2, RELU, True, ((3, 16),)),
            Stage(24, 2, RELU, False, ((3, 72), (3, 88))),
            Stage(40, 2, HARD_SWISH, True, ((5, 96), (5, 240), (5, 240))),
            Stage(48, 1, HARD_SWISH, True, ((5, 120), (5, 144))),
            Stage(96, 2, HARD_SWISH, True, ((5, 288), (5, 576), (5, 576))),
        ),
        hidden=1024,
    ),
}
CONVENTIONS = ("torchvision", "timm", "keras")


def plan(
    width: float = 1.0,
    *,
    size: str = "large",
    convention: str = "torchvision",
    minimalistic: bool = False,
    reduced_tail: bool = False,
) -> Plan:
    """Channels for a width multiplier. The networks of torchvision, timm and Keras agree at width 1, and differ at
    others (``convention``):

    stem: torchvision multiplies it, timm from width 0.75 on, Keras never.
    expanded channels: torchvision multiplies those of the paper, and leaves out the expansion where they are the
        input's. timm and Keras multiply the input of a block with the paper's ratio, and leave out the expansion in
        the first block.
    head: timm multiplies the paper's; for the others it has 6 times the channels of its input.
    hidden: torchvision multiplies it, Keras above width 1, timm never.

    ``reduced_tail`` halves the channels of the last stage, behind its first expansion, as detectors have it (table 6
    of the paper).
    """
    check_width(width)
    _check("size", size, SIZES)
    _check("convention", convention, CONVENTIONS)

    def scale(channels: float) -> int:
        return make_divisible(channels * width)

    network, torchvision, timm = SIZES[size], convention == "torchvision", convention == "timm"
    top = RELU if minimalistic else HARD_SWISH
    stem = Conv("conv1", scale(STEM) if torchvision or (timm and width >= 0.75) else STEM, 3, 2, activation=top)
    blocks = Planner(stem.channels)
    before = STEM  # channels of the input in the table
    for stage in _halve_tail(network.stages) if reduced_tail else network.stages:
        blocks.begin_stage()
        for i, (kernel, wide) in enumerate(stage.blocks):
            expanded = scale(wide) if torchvision else make_divisible(blocks.channels * (wide / before))
            narrow = expanded == blocks.channels if torchvision else not blocks.blocks
            squeeze = SqueezeExcite(make_divisible(expanded / 4)) if stage.squeeze and not minimalistic else None
            blocks.inverted(
                scale(stage.channels),
                expanded=None if narrow else expanded,
                kernel=3 if minimalistic else kernel,
                stride=1 if i else stage.stride,
                activation=RELU if minimalistic else stage.activation,
                squeeze=squeeze,
            )
            before = stage.channels
    head = scale(6 * before) if timm else 6 * blocks.channels
    hidden = scale(network.hidden) if torchvision or (not timm and width > 1) else network.hidden
    return Plan(stem, tuple(blocks.blocks), Conv("head", head, activation=top), Hidden(hidden, top))


def _halve_tail(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    *others, last = stages
    first, *rest = last.blocks
    halved = (first, *((kernel, wide // 2) for kernel, wide in rest))
    return (*others, replace(last, channels=last.channels // 2, blocks=halved))


def _check(option: str, value: str, known: Any) -> None:
    if value not in known:
        raise ModelError(f"{option} must be one of {', '.join(known)}, not {value!r}")


def build(
    width: float = 1.0,
    *,
    size: str = "large",
    convention: str = "torchvision",
    minimalistic: bool = False,
    reduced_tail: bool = False,
    padding: str = "symmetric",
    epsilon: float = 1e-3,
    **options: Any,
) -> Graph:
    """MobileNet V3. The defaults are torchvision's conventions; TensorFlow and Keras have padding="same". The other
    options are those of :func:`fastmobilenet.models._plan.build_plan`."""
    p = plan(width, size=size, convention=convention, minimalistic=minimalistic, reduced_tail=reduced_tail)
    return build_plan(p, padding=padding, epsilon=epsilon, **options)
