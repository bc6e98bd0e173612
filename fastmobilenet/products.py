"""How the dense convolutions of a plan are computed: by plain sums, or by one of the products that save multiplications
(inner.py, strassen.py, amx.py, winograd.py); and the weights in the form that those want."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from typing import NamedTuple, TypeVar

import numpy as np

from . import _native, amx, inner, strassen
from .amx import InTiles, choose_amx
from .caches import Caches
from .channel_order import Order, Wiring
from .fusion import Alone
from .graph import Graph, Node, Shape
from .inner import Inner, choose_inner
from .strassen import Split, choose_splits

_T = TypeVar("_T")


class Products(NamedTuple):
    """Node -> how it is computed; those that are in none of them by plain sums, or in Winograd's form. No node is in
    two."""

    inner: Mapping[str, Inner]
    splits: Mapping[str, Split]
    tiles: Mapping[str, InTiles]

    @property
    def alone(self) -> dict[str, Alone]:
        """Those that strips may not be as fast as: see :func:`fastmobilenet.fusion.plan_steps`."""
        alone: dict[str, Alone] = dict(self.splits)
        alone.update(self.tiles)
        return alone


#: Whatever the ISA: with the bits that sizes.py has measured with.
PLAIN_SUMS = Products({}, {}, {})

#: Names of tensors -> the mean squares of their channels, of those that can be measured.
Measure = Callable[[Collection[str]], Mapping[str, np.ndarray]]


class Chooser:
    """What the environment and the CPU allow when an engine is made."""

    def __init__(self, isa: str) -> None:
        self._strassen = strassen.enabled()
        self._amx = amx.enabled(isa)
        self._inner = inner.enabled() and _native.has_inner(isa)

    def choose(
        self,
        graph: Graph,
        wiring: Wiring,
        shapes: Mapping[str, Shape],
        weights: Mapping[str, _native.PackedWeights],
        orders: Mapping[str, Order],
        scores: Set[str],
        measure: Measure,
        caches: Caches,
    ) -> Products:
        """The products of a plan of ``graph`` for these shapes. ``scores``: layers that compute the scores of a
        classifier, which get the same bits from all plans, and equal ones for equal classes."""
        pieces = wiring.pieces
        tiles: dict[str, InTiles] = {}
        if self._amx:
            tiles = choose_amx(graph, shapes, weights, pieces, scores)
        inners: dict[str, Inner] = {}
        if self._inner:
            into = {name: order.into for name, order in orders.items() if order.into is not None}
            without = {*scores, *tiles}
            inners = choose_inner(graph, shapes, weights, measure, without, pieces, into)
        splits: dict[str, Split] = {}
        if self._strassen:
            without = {*scores, *tiles, *inners}
            splits = choose_splits(graph, shapes, weights, caches, without=without, scattered=wiring.runs)
        return Products(inners, splits, tiles)


class Factors:
    """Packed weights in the forms that products want, made when a plan needs them first and kept for all plans. Weights
    are known by their identity, so that engines may share one of these."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], object] = {}

    def of_inner(self, weights: _native.PackedWeights, how: Inner | None) -> _native.InnerWeights | None:
        if how is None:
            return None
        key = ("inner", weights, how.size, how.pieces)
        return self._get(key, lambda: _native.InnerWeights(weights, how.size, list(how.pieces)))

    def of_tiles(self, weights: _native.PackedWeights, how: InTiles | None) -> _native.AmxWeights | None:
        if how is None:
            return None
        return self._get(("amx", weights, how.pieces), lambda: _native.AmxWeights(weights, list(how.pieces)))

    def of_strassen(self, weights: _native.PackedWeights, how: Split) -> _native.StrassenWeights:
        key = ("strassen", weights, how.levels, how.groups)
        return self._get(key, lambda: _native.StrassenWeights(weights, how.levels, how.groups))

    def of_winograd(self, weights: _native.PackedWeights, node: Node) -> _native.WinogradWeights:
        stride = node.attrs["stride"][0]
        return self._get(("winograd", weights, stride), lambda: _native.WinogradWeights(weights, stride))

    def _get(self, key: tuple[object, ...], make: Callable[[], _T]) -> _T:
        if key not in self._made:
            self._made[key] = make()  # two threads may make the same; either will do
        return self._made[key]  # type: ignore[return-value]
