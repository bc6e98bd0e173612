"""MobileNet V4 without attention: Qin et al., "MobileNetV4 - Universal Models for the Mobile Ecosystem" (2024),
Conv-Small, Conv-Medium and Conv-Large as timm has them.

Its universal block is V2's with two places for a depthwise filter: before the expansion, and inside as in V2. It has
one of them, both or none. The activation is ReLU; a depthwise filter before the expansion has none.

Blocks are counted from 0. Layers: conv1, block_0/conv or block_0/expand, ..., block_4/start, block_4/expand,
block_4/depthwise, block_4/project, ..., head, pool, hidden, logits; ``block_5`` is the sum at the end of a block that
has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ModelError
from ..graph import RELU, Graph
from ._common import check_width, make_divisible
from ._plan import Conv, Hidden, Layer, Plan, Planner, build_plan

HEAD, HIDDEN = 960, 1280


@dataclass(frozen=True)
class Plain:
    """One convolution."""

    kernel: int
    channels: int
    stride: int = 1


@dataclass(frozen=True)
class Fused:
    """A 3x3 convolution that widens its input, and a 1x1 convolution."""

    expand: int
    channels: int
    stride: int = 1


@dataclass(frozen=True)
class Universal:
    """Equal universal blocks. ``start`` and ``middle``: kernels of the depthwise filters, 0 for none."""

    start: int
    middle: int
    expand: int
    channels: int
    stride: int = 1
    repeats: int = 1


Row = Plain | Fused | Universal


@dataclass(frozen=True)
class Size:
    stem: int
    stages: tuple[tuple[Row, ...], ...]


SIZES = {
    "small": Size(
        32,
        (
            (Plain(3, 32, 2), Plain(1, 32)),
            (Plain(3, 96, 2), Plain(1, 64)),
            (Universal(5, 5, 3, 96, 2), Universal(0, 3, 2, 96, repeats=4), Universal(3, 0, 4, 96)),
            (
                Universal(3, 3, 6, 128, 2),
                Universal(5, 5, 4, 128),
                Universal(0, 5, 4, 128),
                Universal(0, 5, 3, 128),
                Universal(0, 3, 4, 128, repeats=2),
            ),
        ),
    ),
    "medium": Size(
        32,
        (
            (Fused(4, 48, 2),),
            (Universal(3, 5, 4, 80, 2), Universal(3, 3, 2, 80)),
            (
                Universal(3, 5, 6, 160, 2),
                Universal(3, 3, 4, 160, repeats=2),
                Universal(3, 5, 4, 160),
                Universal(3, 3, 4, 160),
                Universal(3, 0, 4, 160),
                Universal(0, 0, 2, 160),
                Universal(3, 0, 4, 160),
            ),
            (
                Universal(5, 5, 6, 256, 2),
                Universal(5, 5, 4, 256),
                Universal(3, 5, 4, 256, repeats=2),
                Universal(0, 0, 4, 256),
                Universal(3, 0, 4, 256),
                Universal(3, 5, 2, 256),
                Universal(5, 5, 4, 256),
                Universal(0, 0, 4, 256, repeats=2),
                Universal(5, 0, 2, 256),
            ),
        ),
    ),
    "large": Size(
        24,
        (
            (Fused(4, 48, 2),),
            (Universal(3, 5, 4, 96, 2), Universal(3, 3, 4, 96)),
            (
                Universal(3, 5, 4, 192, 2),
                Universal(3, 3, 4, 192, repeats=3),
                Universal(3, 5, 4, 192),
                Universal(5, 3, 4, 192, repeats=5),
                Universal(3, 0, 4, 192),
            ),
            (
                Universal(5, 5, 4, 512, 2, repeats=4),
                Universal(5, 0, 4, 512),
                Universal(5, 3, 4, 512),
                Universal(5, 0, 4, 512, repeats=2),
                Universal(5, 3, 4, 512),
                Universal(5, 5, 4, 512),
                Universal(5, 0, 4, 512, repeats=3),
            ),
        ),
    ),
}


def plan(width: float = 1.0, *, size: str = "small") -> Plan:
    """Channels for a width multiplier; the stem is not narrowed, and the hidden layer always has 1280."""
    check_width(width)
    if size not in SIZES:
        raise ModelError(f"size must be one of {', '.join(SIZES)}, not {size!r}")
    network = SIZES[size]
    stem = Conv("conv1", make_divisible(network.stem * max(1.0, width)), 3, 2, activation=RELU)
    blocks = Planner(stem.channels)
    for stage in network.stages:
        blocks.begin_stage()
        for row in stage:
            for i in range(row.repeats if isinstance(row, Universal) else 1):
                _add(blocks, row, make_divisible(row.channels * width), 1 if i else row.stride)
    head = Conv("head", make_divisible(HEAD * width), activation=RELU)
    return Plan(stem, tuple(blocks.blocks), head, Hidden(HIDDEN, RELU, batch_norm=True))


def _add(blocks: Planner, row: Row, channels: int, stride: int) -> None:
    if isinstance(row, Plain):
        blocks.add("conv", Conv("conv", channels, row.kernel, stride, activation=RELU), skip=False)
        return
    expanded = make_divisible(blocks.channels * row.expand)
    if isinstance(row, Fused):
        blocks.add("fused", Conv("expand", expanded, 3, stride, activation=RELU), Conv("project", channels))
        return
    layers: list[Layer] = []
    if row.start:
        layers.append(Conv("start", blocks.channels, row.start, 1 if row.middle else stride, True))
    layers.append(Conv("expand", expanded, activation=RELU))
    if row.middle:
        layers.append(Conv("depthwise", expanded, row.middle, stride, True, RELU))
    blocks.add("universal", *layers, Conv("project", channels))


def build(
    width: float = 1.0,
    *,
    size: str = "small",
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    **options: Any,
) -> Graph:
    """MobileNet V4. The defaults are timm's conventions. The other options are those of
    :func:`fastmobilenet.models._plan.build_plan`."""
    return build_plan(plan(width, size=size), padding=padding, epsilon=epsilon, **options)
