"""VGG: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition" (2015), table 1.

Five stages of 3x3 convolutions, each with a 2x2 max pool at its end, and three dense layers.

Layers: conv1_1, [conv1_2,] pool1, conv2_1, ..., pool5, pool, fc6, fc7, logits. ``pool`` makes 7x7 pixels of a picture
of any size; it changes nothing for one of 224x224.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ModelError
from ..graph import RELU, Graph
from ._common import ParameterSource, check_width
from ._layers import LayerBuilder, check_only_padding

#: Layers with weights: convolutions of every stage (columns A, B, D and E of the table).
REPEATS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
CHANNELS = (64, 128, 256, 512, 512)
HIDDEN = 4096
POOLED = 7


@dataclass(frozen=True)
class Plan:
    """``stages``: (channels, convolutions). ``hidden``: channels of the dense layers before the last."""

    stages: tuple[tuple[int, int], ...]
    hidden: int
    batch_norm: bool

    def outputs(self) -> dict[str, int]:
        """Layer -> output channels, of the layers whose channels a width multiplier changes."""
        convs = {f"conv{stage}_1": channels for stage, (channels, _) in enumerate(self.stages, 1)}
        return {**convs, "fc6": self.hidden}


def plan(width: float = 1.0, *, layers: int = 16, batch_norm: bool = False) -> Plan:
    """Channels for a width multiplier: the whole part, 1 at least. The published networks have width 1."""
    check_width(width)
    if layers not in REPEATS:
        raise ModelError(f"layers must be one of {', '.join(map(str, REPEATS))}, not {layers!r}")
    stages = tuple((max(int(c * width), 1), n) for c, n in zip(CHANNELS, REPEATS[layers], strict=True))
    return Plan(stages, max(int(HIDDEN * width), 1), batch_norm)


def build(
    width: float = 1.0,
    *,
    layers: int = 16,
    batch_norm: bool = False,
    classes: int = 1000,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    weights: ParameterSource | None = None,
    seed: int = 0,
    **fields: Any,
) -> Graph:
    """VGG with 11, 13, 16 or 19 layers; with ``batch_norm`` after every convolution as torchvision has it.

    ``weights`` gives the parameters; without it they are random, made from ``seed``. ``fields`` are fields of Graph
    (input_size, preprocess, labels, name, ...). Raises ModelError for an option out of range.
    """
    p = plan(width, layers=layers, batch_norm=batch_norm)
    net = LayerBuilder(classes=classes, padding=padding, epsilon=epsilon)
    check_only_padding("VGG", padding)
    x = net.input()
    for stage, (channels, repeats) in enumerate(p.stages, 1):
        for i in range(1, repeats + 1):
            x = net.biased(x, f"conv{stage}_{i}", channels, kernel=3, batch_norm=p.batch_norm)
        x = net.max_pool(x, f"pool{stage}", kernel=2)
    x = net.adaptive_pool(x, "pool", POOLED)
    x = net.dense(x, "fc6", POOLED * POOLED * net.channels[x], p.hidden, RELU)
    x = net.dense(x, "fc7", p.hidden, p.hidden, RELU)
    return net.finish(net.dense(x, "logits", p.hidden, net.classes), weights, seed, **fields)
