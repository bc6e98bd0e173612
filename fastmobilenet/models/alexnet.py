"""AlexNet: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks" (2012), and the form
that torchvision has, of Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014).

The original is for pictures of 227x227 pixels, has local response normalisation after the first two layers, and
groups where it was spread over two graphics cards. The later form has neither, and fewer channels.

Layers: conv1, [norm1,] pool1, conv2, [norm2,] pool2, conv3, conv4, conv5, pool5, pool, fc6, fc7, logits. ``pool``
makes 6x6 pixels of a picture of any size; it changes nothing for one of the size that the network is made for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..graph import RELU, Graph
from ._common import ParameterSource, check_width
from ._layers import LayerBuilder, check_only_padding

HIDDEN = 4096
POOLED = 6
#: Layers that a pool follows; in the original the normalisation comes before the first two.
POOL_AFTER = (1, 2, 5)
#: The paper's alpha is 1e-4 for the sum of the five squares, and the op's is for their mean.
NORM: dict[str, Any] = {"size": 5, "alpha": 5e-4, "beta": 0.75, "bias": 2.0}


@dataclass(frozen=True)
class Conv:
    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0
    groups: int = 1


ORIGINAL = (
    Conv(96, 11, stride=4),
    Conv(256, 5, padding=2, groups=2),
    Conv(384, 3, padding=1),
    Conv(384, 3, padding=1, groups=2),
    Conv(256, 3, padding=1, groups=2),
)
LATER = (
    Conv(64, 11, stride=4, padding=2),
    Conv(192, 5, padding=2),
    Conv(384, 3, padding=1),
    Conv(256, 3, padding=1),
    Conv(256, 3, padding=1),
)


@dataclass(frozen=True)
class Plan:
    """``hidden``: channels of the dense layers before the last."""

    convs: tuple[Conv, ...]
    hidden: int
    normalise: bool

    def outputs(self) -> dict[str, int]:
        """Layer -> output channels, of the layers whose channels a width multiplier changes."""
        return {**{f"conv{i}": conv.channels for i, conv in enumerate(self.convs, 1)}, "fc6": self.hidden}


def plan(width: float = 1.0, *, original: bool = False) -> Plan:
    """Channels for a width multiplier: the whole part, rounded down to whole groups. The published have width 1."""
    check_width(width)
    convs = tuple(
        Conv(max(int(c.channels * width) // 2, 1) * 2, c.kernel, c.stride, c.padding, c.groups)
        for c in (ORIGINAL if original else LATER)
    )
    return Plan(convs, max(int(HIDDEN * width), 1), original)


def build(
    width: float = 1.0,
    *,
    original: bool = False,
    classes: int = 1000,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    weights: ParameterSource | None = None,
    seed: int = 0,
    **fields: Any,
) -> Graph:
    """AlexNet: torchvision's, or the ``original``. It has its own paddings, and no batch norm to use ``epsilon``.

    ``weights`` gives the parameters; without it they are random, made from ``seed``. ``fields`` are fields of Graph
    (input_size, preprocess, labels, name, ...). Raises ModelError for an option out of range.
    """
    p = plan(width, original=original)
    net = LayerBuilder(classes=classes, padding=padding, epsilon=epsilon)
    check_only_padding("AlexNet", padding)
    x = net.input()
    for number, c in enumerate(p.convs, 1):
        x = net.biased(
            x, f"conv{number}", c.channels, kernel=c.kernel, stride=c.stride, padding=c.padding, groups=c.groups
        )
        if p.normalise and number <= 2:
            x = net.lrn(x, f"norm{number}", **NORM)
        if number in POOL_AFTER:
            x = net.max_pool(x, f"pool{number}")
    x = net.adaptive_pool(x, "pool", POOLED)
    x = net.dense(x, "fc6", POOLED * POOLED * net.channels[x], p.hidden, RELU)
    x = net.dense(x, "fc7", p.hidden, p.hidden, RELU)
    return net.finish(net.dense(x, "logits", p.hidden, net.classes), weights, seed, **fields)
