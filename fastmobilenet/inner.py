"""Which 1x1 convolutions are computed by Winograd's inner product (csrc/kernels/inner.h), on CPUs that add beside
their multiply-adds: a0 b0 + a1 b1 = (a0 + b1) (a1 + b0) - a0 a1 - b0 b1.

The rounding errors are then those of a0 a1 and b0 b1 as well, so that a and b must be of like size. The weights of
every output channel are scaled to the size of the input, which therefore must be known to about a factor of four. It is
where the input is bounded (ReLU6), or made of such by a layer without a function, as between the blocks of MobileNetV2.
Elsewhere it is measured (sizes.py), channel by channel, and layers are left alone where channels of unlike size would
make the errors too large. So is one that makes the scores of a classifier, as with Strassen's product (strassen.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Container, Mapping
from typing import NamedTuple

import numpy as np

from . import _native
from .graph import Graph, Shape
from .strassen import is_pointwise
from .switches import switch

BLOCK = 16

#: Of what a bounded function lets through, as a part of its range: the root mean square that is expected.
PART_OF_RANGE = 1 / 6

#: How much larger than those of the plain sum rounding errors may be, by the estimate of csrc/runtime/inner.h.
MOST_NOISE = 8.0

#: A layer is computed so if that saves this part of its time at least.
LEAST_SAVING = 0.05


class Inner(NamedTuple):
    """``size``: the root mean square that is expected of the input; ``saving``: the part of the layer's time that is
    expected to be saved, against the plain sum; ``pieces``: how many channels lie together, if those are no blocks."""

    size: float
    saving: float
    pieces: tuple[int, ...] = ()


def enabled() -> bool:
    """What FASTMOBILENET_INNER says, 0 or 1, or else whether this CPU gains from it. Raises ValueError for any other
    value."""
    wanted = switch("FASTMOBILENET_INNER")
    return _native.adds_beside_multiplies() if wanted is None else wanted


def choose_inner(
    graph: Graph,
    shapes: Mapping[str, Shape],
    weights: Mapping[str, _native.PackedWeights],
    measure: Callable[[Collection[str]], Mapping[str, np.ndarray]],
    without: Container[str] = (),
    pieces: Mapping[str, tuple[int, ...]] | None = None,
    into: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, Inner]:
    """Node -> how it is computed, for all convolutions of ``graph`` for which that pays, but those ``without``.

    ``pieces``: of those whose input channels do not lie in the blocks of one tensor, how many lie together; ``into``:
    the channels in the order of the weights (channel_order.py)."""
    pieces, into = pieces or {}, into or {}
    sizes = _Sizes(graph, weights)
    chosen, unknown = {}, {}
    for node in graph.nodes:
        if node.name not in weights or node.name in without or not is_pointwise(node):
            continue
        _, h, w, ic = shapes[node.inputs[0]]
        saving = expected_saving(h * w, ic, weights[node.name].oc, pieces.get(node.name, ()))
        if saving < LEAST_SAVING:
            continue
        size = sizes.of(node.inputs[0])
        if size is not None:
            chosen[node.name] = Inner(size, saving, pieces.get(node.name, ()))
        else:
            unknown[node.name] = node.inputs[0], saving
    squares = measure(sorted({source for source, _ in unknown.values()}))
    for name, (source, saving) in unknown.items():
        if source not in squares:
            continue
        ordered = squares[source][list(into[name])] if name in into else squares[source]
        size = measured_size(weights[name], ordered, pieces.get(name, ()))
        if size is not None:
            chosen[name] = Inner(size, saving, pieces.get(name, ()))
    return chosen


def measured_size(weights: _native.PackedWeights, squares: np.ndarray, pieces: tuple[int, ...] = ()) -> float | None:
    """Of an input whose channels have these mean squares: a power of two near twice the root of their mean, as
    other pictures may make larger values; or None if rounding errors would become too large."""
    mean = float(squares.mean(dtype=np.float64))
    if not 0 < mean < math.inf:
        return None
    size = 2.0 ** round(math.log2(mean) / 2 + 1)
    return size if weights.inner_noise(size, squares, list(pieces)) <= MOST_NOISE else None


def expected_saving(pixels: int, ic: int, oc: int, pieces: tuple[int, ...] = ()) -> float:
    """The part of the time that is saved, fitted to measurements on Zen 4 (80 layers of six networks, 16x16 to 960x320
    channels; 0.02 off on average), where layers of many channels would otherwise take Strassen's product."""
    if ic < BLOCK or pixels < BLOCK:
        return 0.0
    pairs = sum(n // 3 for n in pieces or (min(BLOCK, ic - k) for k in range(0, ic, BLOCK)))
    return (0.96 * pairs - 2.3) / ic - 2.7 / oc


class _Sizes:
    """Root mean squares that are expected of tensors; None where nothing is known."""

    def __init__(self, graph: Graph, weights: Mapping[str, _native.PackedWeights]) -> None:
        self._graph = graph
        self._weights = weights
        self._known: dict[str, float | None] = {}

    def of(self, name: str) -> float | None:
        if name not in self._known:
            size = self._find(name)
            self._known[name] = size if size is not None and 0 < size < math.inf else None
        return self._known[name]

    def _find(self, name: str) -> float | None:
        node = self._graph[name]
        a = node.activation
        if node.op in ("conv2d", "add") and a is not None and a.kind == "clamp" and math.isfinite(a.hi - a.lo):
            return (a.hi - a.lo) * PART_OF_RANGE
        if node.op in ("global_avg_pool", "avg_pool2d", "max_pool2d"):
            return self.of(node.inputs[0])
        if node.op in ("concat", "gather_channels") and len(node.inputs) == 1:
            return self.of(node.inputs[0])
        if a is not None:
            return None
        if node.op == "add" and len(node.inputs) == 2:
            return self._together([self.of(n) for n in node.inputs])
        if node.op == "conv2d" and name in self._weights:
            source = self.of(node.inputs[0])
            if source is None:
                return None
            out, _, bias = self._weights[name].norms()
            own = float(np.sqrt(np.mean(np.square(out * source) + np.square(bias))))
            return self._together([own, *(self.of(n) for n in node.inputs[1:])])
        return None

    @staticmethod
    def _together(sizes: list[float | None]) -> float | None:
        return None if None in sizes else math.hypot(*(s for s in sizes if s is not None))
