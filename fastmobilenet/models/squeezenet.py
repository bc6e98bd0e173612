"""SqueezeNet: Iandola et al., "SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size"
(2016), and version 1.1 of its authors, which has less than half the arithmetic.

A fire module narrows its input with a 1x1 convolution and widens it with a 1x1 and a 3x3 convolution side by side.
There is no batch norm. The pools count a last window that is only partly filled.

Layers: conv1, pool1, fire2/squeeze, fire2/expand1x1, fire2/expand3x3, fire2 (their concatenation), ...,
fire9, conv10, logits (the mean of conv10 over the picture). A pool has the number of the layer that it follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import ModelError
from ..graph import Graph
from ._common import ParameterSource
from ._layers import LayerBuilder, check_only_padding, check_published

#: Channels of the squeeze layers of fire2 to fire9; each expand layer has four times as many.
SQUEEZE = (16, 16, 32, 32, 48, 48, 64, 64)


@dataclass(frozen=True)
class Plan:
    """What differs between the versions: the first convolution, and the layers that a pool follows."""

    stem: int
    kernel: int
    pooled: tuple[int, ...]

    def fires(self) -> Iterator[tuple[int, int, bool]]:
        """(number, channels of the squeeze layer, whether a pool follows)."""
        for number, squeeze in enumerate(SQUEEZE, 2):
            yield number, squeeze, number in self.pooled


VERSIONS = {"1.0": Plan(96, 7, (1, 4, 8)), "1.1": Plan(64, 3, (1, 3, 5))}


def plan(width: float = 1.0, *, version: str = "1.1") -> Plan:
    check_published("SqueezeNet", width, (1.0,))
    if version not in VERSIONS:
        raise ModelError(f"version must be one of {', '.join(VERSIONS)}, not {version!r}")
    return VERSIONS[version]


def build(
    width: float = 1.0,
    *,
    version: str = "1.1",
    classes: int = 1000,
    padding: str = "symmetric",
    epsilon: float = 1e-5,
    weights: ParameterSource | None = None,
    seed: int = 0,
    **fields: Any,
) -> Graph:
    """SqueezeNet. It has one width, its own paddings, and no batch norm to use ``epsilon``.

    ``weights`` gives the parameters; without it they are random, made from ``seed``. ``fields`` are fields of Graph
    (input_size, preprocess, labels, name, ...). Raises ModelError for an option out of range.
    """
    p = plan(width, version=version)
    net = LayerBuilder(classes=classes, padding=padding, epsilon=epsilon)
    check_only_padding("SqueezeNet", padding)
    x = net.biased(net.input(), "conv1", p.stem, kernel=p.kernel, stride=2, padding=0)
    x = net.max_pool(x, "pool1", ceil=True)
    for number, squeeze, pooled in p.fires():
        x = _fire(net, x, f"fire{number}", squeeze)
        if pooled:
            x = net.max_pool(x, f"pool{number}", ceil=True)
    x = net.biased(x, "conv10", net.classes, kernel=1)
    return net.finish(net.global_pool(x, "logits"), weights, seed, **fields)


def _fire(net: LayerBuilder, x: str, name: str, squeeze: int) -> str:
    x = net.biased(x, f"{name}/squeeze", squeeze, kernel=1)
    narrow = net.biased(x, f"{name}/expand1x1", 4 * squeeze, kernel=1)
    wide = net.biased(x, f"{name}/expand3x3", 4 * squeeze, kernel=3)
    return net.concat(name, narrow, wide)
