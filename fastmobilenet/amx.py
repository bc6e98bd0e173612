"""Which dense convolutions are computed by the tile unit of AMX (csrc/kernels/amx.h), on CPUs that have one: six
products of bfloat16 for one of floats, and as exact."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import NamedTuple

from . import _native, winograd
from .graph import Graph, Node, Shape, is_depthwise, kernel_size
from .switches import switch

BLOCK = 16

#: A layer is computed so if that saves this part of its time at least.
LEAST_SAVING = 0.05


class InTiles(NamedTuple):
    """``pieces``: how many input channels lie together, if those are no blocks; ``saving``: the part of the layer's
    time that is expected to be saved, against plain sums."""

    pieces: tuple[int, ...]
    saving: float

    @property
    def room(self) -> float:
        """At 28x28, a strip that calls the tile unit for its 1x1 convolutions is the fastest."""
        return 0.25


def enabled(isa: str) -> bool:
    """Whether the ISA has AMX here and FASTMOBILENET_AMX does not say 0. Raises ValueError for anything but 0 and 1."""
    return switch("FASTMOBILENET_AMX") is not False and _native.has_amx(isa)


def choose_amx(
    graph: Graph,
    shapes: Mapping[str, Shape],
    weights: Mapping[str, _native.PackedWeights],
    pieces: Mapping[str, tuple[int, ...]] | None = None,
    without: Container[str] = (),
) -> dict[str, InTiles]:
    """The convolutions of ``graph`` for which that pays, but those ``without``: the scores of a classifier, as the last
    panel of a layer may be summed in another order, and equal classes must get equal scores. ``pieces``: of those
    whose input channels do not lie in the blocks of one tensor, how many lie together (channel_order.py)."""
    pieces = pieces or {}
    chosen = {}
    for node in graph.nodes:
        if node.name not in weights or node.name in without or not _is_possible(graph, node):
            continue
        _, oh, ow, oc = shapes[node.name]
        _, h, w, ic = shapes[node.inputs[0]]
        kh, kw = kernel_size(node)
        own = pieces.get(node.name, ())
        n_pieces = len(own) or -(-ic // BLOCK)
        flat = kh * kw * node.attrs["stride"][0] * node.attrs["stride"][1] == 1
        if flat:
            saving = expected_saving(h * w, n_pieces, ic, oc)
        else:
            saving = expected_saving_of_rows(oh, ow, h * w, kh * kw, n_pieces, ic, oc)
        if saving >= LEAST_SAVING:
            chosen[node.name] = InTiles(own, saving)
    return chosen


def _is_possible(graph: Graph, node: Node) -> bool:
    """A dense convolution of one group, not of the picture, which lies in another way. Where Winograd's form takes a
    quarter of the multiplications, it is as fast as that at least."""
    return (
        node.op == "conv2d"
        and "quant" not in node.attrs
        and node.attrs.get("groups", 1) == 1
        and not is_depthwise(node)
        and not (winograd.possible(node) and node.attrs["stride"] == (1, 1))
        and graph[node.inputs[0]].op != "input"
    )


def expected_saving(pixels: int, n_pieces: int, ic: int, oc: int) -> float:
    """The part of the time that is saved where all pixels are one row, fitted to measurements on Granite Rapids
    (csrc/README.md), in cycles."""
    if pixels < BLOCK:
        return 0.0
    tiles = math.ceil(pixels / 32)
    return 1 - _cycles(tiles, pixels, math.ceil(pixels / 256), 1, n_pieces, oc) / _plain_cycles(pixels, ic, oc)


def expected_saving_of_rows(oh: int, ow: int, pixels: int, taps: int, n_pieces: int, ic: int, oc: int) -> float:
    """The same for a window of so many taps over a map of so many pixels, against a direct convolution."""
    if ow < BLOCK // 2:
        return 0.0
    tiles = oh * math.ceil(ow / 32)
    in_tiles = _cycles(tiles, pixels * 1.25, math.ceil(tiles / 8), taps, n_pieces, oc)
    return 1 - in_tiles / _plain_cycles(oh * ow, taps * ic, oc)


def _cycles(tiles: int, split: float, chunks: int, taps: int, n_pieces: int, oc: int) -> float:
    """``split``: pixels that are split in parts, ``chunks``: calls of the kernel."""
    steps = n_pieces / 2
    blocks = math.ceil(oc / BLOCK)
    products = tiles * (blocks // 2 * (480 * steps * taps + 330) + blocks % 2 * (260 * steps * taps + 330))
    return products + 16 * split * steps + 1500 * chunks + 0.06 * 6 * 32 * taps * steps * blocks * BLOCK


def _plain_cycles(pixels: int, k: int, oc: int) -> float:
    """32 multiply-adds a cycle at most: 0.8 of that for tiles of 32 output channels, as layers find their maps and
    weights, and less for those of 24 and 16."""
    wide, rest = divmod(oc, 32)
    lanes = wide * 32 / 0.8 + (16 / 0.62 if 0 < rest <= 16 else math.ceil(rest / 8) * 8 / 0.7)
    return pixels * k * lanes / 32
