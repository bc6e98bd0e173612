"""Which 1x1 convolutions are computed by the tile unit of AMX (csrc/kernels/amx.h), on CPUs that have one: six products
of bfloat16 for one of floats, as exact as that, at up to twice the speed of AVX-512."""

from __future__ import annotations

import math
import os
from collections.abc import Container, Mapping
from dataclasses import dataclass

from . import _native
from .graph import Graph, Node, Shape
from .strassen import is_pointwise

BLOCK = 16

#: A layer is computed so if that saves this part of its time at least.
LEAST_SAVING = 0.05


@dataclass(frozen=True)
class InTiles:
    """``pieces``: how many input channels lie together, if those are no blocks; ``saving``: the part of the layer's time
    that is expected to be saved, against plain sums."""

    ROOM = 0.25  # at 28x28, a strip that calls the tile unit for the 1x1 convolution behind it is the fastest
    pieces: tuple[int, ...]
    saving: float


def enabled(isa: str) -> bool:
    """Whether the ISA has AMX here and FASTMOBILENET_AMX does not say 0. Raises ValueError for anything but 0 and 1."""
    text = os.environ.get("FASTMOBILENET_AMX", "").strip()
    if text not in ("", "0", "1"):
        raise ValueError(f"FASTMOBILENET_AMX must be 0 or 1, not {text!r}")
    return text != "0" and _native.has_amx(isa)


def choose_amx(
    graph: Graph,
    shapes: Mapping[str, Shape],
    weights: Mapping[str, _native.PackedWeights],
    pieces: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, InTiles]:
    """The convolutions of ``graph`` for which that pays. ``pieces``: of those whose input channels do not lie in the
    blocks of one tensor, how many lie together (channel_order.py)."""
    pieces = pieces or {}
    chosen = {}
    for node in graph.nodes:
        if node.name not in weights or not _is_possible(graph, node):
            continue
        _, h, w, ic = shapes[node.inputs[0]]
        own = pieces.get(node.name, ())
        saving = expected_saving(h * w, len(own) or -(-ic // BLOCK), ic, weights[node.name].oc)
        if saving >= LEAST_SAVING:
            chosen[node.name] = InTiles(own, saving)
    return chosen


def _is_possible(graph: Graph, node: Node) -> bool:
    """The picture lies in another way."""
    return is_pointwise(node) and graph[node.inputs[0]].op != "input"


def expected_saving(pixels: int, n_pieces: int, ic: int, oc: int) -> float:
    """The part of the time that is saved, fitted to measurements on Granite Rapids (csrc/README.md), in cycles."""
    if pixels < BLOCK:
        return 0.0
    steps = n_pieces / 2
    tiles = math.ceil(pixels / 32) * math.ceil(oc / 32)
    chunks = math.ceil(pixels / 256)
    weight_bytes = 6 * 32 * steps * math.ceil(oc / BLOCK) * BLOCK
    in_tiles = tiles * (480 * steps + 330) + 12 * pixels * steps + 1500 * chunks + 0.06 * weight_bytes
    plain = pixels * ic * math.ceil(oc / 8) * 8 / 32 / 0.88
    return 1 - in_tiles / plain
