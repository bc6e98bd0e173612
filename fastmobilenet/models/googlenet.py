"""GoogLeNet: Szegedy et al., "Going Deeper with Convolutions" (2015), table 1, in the form that torchvision has: batch
norm in place of bias and local response normalisation, and pools that count a last window that is only partly filled.

An inception module filters its input in four ways side by side: with a 1x1 convolution, with a 3x3 and a "5x5"
convolution of fewer channels, and with a max pool and a 1x1 convolution. torchvision's "5x5" is a 3x3. The two heads in
the middle of the network, which help to train it, are left out.

Layers: conv1, pool1, conv2, conv3, pool2, inception_3a/1x1, inception_3a/3x3_reduce, inception_3a/3x3,
inception_3a/5x5_reduce, inception_3a/5x5, inception_3a/pool, inception_3a/pool_proj, inception_3a (their
concatenation), ..., pool3, ..., pool4, ..., inception_5b, pool, logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ModelError
from ..graph import RELU, Graph
from ..preprocess import IMAGENET
from ._common import ParameterSource
from ._layers import LayerBuilder, check_only_padding, check_published


@dataclass(frozen=True)
class Inception:
    """Channels of one module, in the columns of the paper's table."""

    name: str
    narrow: int
    reduce_3x3: int
    wide_3x3: int
    reduce_5x5: int
    wide_5x5: int
    pool_proj: int


#: The modules of every stage; a max pool with this kernel follows the stage.
STAGES = (
    (
        (
            Inception("3a", 64, 96, 128, 16, 32, 32),
            Inception("3b", 128, 128, 192, 32, 96, 64),
        ),
        3,
    ),
    (
        (
            Inception("4a", 192, 96, 208, 16, 48, 64),
            Inception("4b", 160, 112, 224, 24, 64, 64),
            Inception("4c", 128, 128, 256, 24, 64, 64),
            Inception("4d", 112, 144, 288, 32, 64, 64),
            Inception("4e", 256, 160, 320, 32, 128, 128),
        ),
        2,
    ),
    (
        (
            Inception("5a", 256, 160, 320, 32, 128, 128),
            Inception("5b", 384, 192, 384, 48, 128, 128),
        ),
        0,
    ),
)


@dataclass(frozen=True)
class Plan:
    """``kernel``: of the "5x5" convolutions."""

    kernel: int

    def modules(self) -> tuple[Inception, ...]:
        return tuple(module for modules, _ in STAGES for module in modules)


def plan(width: float = 1.0, *, kernel: int = 3, transform_input: bool = False) -> Plan:
    check_published("GoogLeNet", width, (1.0,))
    if kernel not in (3, 5):
        raise ModelError(f"kernel must be 3 (torchvision) or 5 (the paper), not {kernel!r}")
    return Plan(kernel)


def build(
    width: float = 1.0,
    *,
    kernel: int = 3,
    transform_input: bool = False,
    classes: int = 1000,
    padding: str = "symmetric",
    epsilon: float = 1e-3,
    weights: ParameterSource | None = None,
    seed: int = 0,
    **fields: Any,
) -> Graph:
    """GoogLeNet. It has one width and its own paddings.

    kernel: of the "5x5" convolutions, 3 as in torchvision or 5 as in the paper.
    transform_input: pictures come with ImageNet's mean 0 and deviation 1 a channel, and the network wants its channels
        from -1 to 1; it does the conversion itself. torchvision's trained weights need this.

    ``weights`` gives the parameters; without it they are random, made from ``seed``. ``fields`` are fields of Graph
    (input_size, preprocess, labels, name, ...). Raises ModelError for an option out of range.
    """
    p = plan(width, kernel=kernel, transform_input=transform_input)
    net = LayerBuilder(classes=classes, padding=padding, epsilon=epsilon)
    check_only_padding("GoogLeNet", padding)
    attrs: dict[str, Any] = _from_imagenet() if transform_input else {}
    x = net.input(**attrs)
    x = net.conv(x, "conv1", 64, kernel=7, stride=2, activation=RELU)
    x = net.max_pool(x, "pool1", ceil=True)
    x = net.conv(x, "conv2", 64, activation=RELU)
    x = net.conv(x, "conv3", 192, kernel=3, activation=RELU)
    x = net.max_pool(x, "pool2", ceil=True)
    for number, (modules, pool) in enumerate(STAGES, 3):
        for module in modules:
            x = _inception(net, x, module, p.kernel)
        if pool:
            x = net.max_pool(x, f"pool{number}", kernel=pool, ceil=True)
    x = net.global_pool(x, "pool")
    return net.finish(net.dense(x, "logits", net.channels[x], net.classes), weights, seed, **fields)


def _from_imagenet() -> dict[str, np.ndarray]:
    """Mean and std of an input that turn pictures normalised with ImageNet's into pictures from -1 to 1."""
    mean, std = (np.array(values) / 255 for values in (IMAGENET.mean, IMAGENET.std))
    return {"mean": ((0.5 - mean) / std).astype(np.float32), "std": (0.5 / std).astype(np.float32)}


def _inception(net: LayerBuilder, x: str, module: Inception, kernel: int) -> str:
    name = f"inception_{module.name}"

    def conv(x: str, layer: str, channels: int, size: int = 1) -> str:
        return net.conv(x, f"{name}/{layer}", channels, kernel=size, activation=RELU)

    narrow = conv(x, "1x1", module.narrow)
    middle = conv(conv(x, "3x3_reduce", module.reduce_3x3), "3x3", module.wide_3x3, 3)
    wide = conv(conv(x, "5x5_reduce", module.reduce_5x5), "5x5", module.wide_5x5, kernel)
    pooled = net.max_pool(x, f"{name}/pool", stride=1, padding=1, ceil=True)
    return net.concat(name, narrow, middle, wide, conv(pooled, "pool_proj", module.pool_proj))
