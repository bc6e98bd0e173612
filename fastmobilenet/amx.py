"""Which 1x1 convolutions are computed by the tile unit of AMX (csrc/kernels/amx.h), on CPUs that have one: six products
of bfloat16 for one of floats, as exact as that, at up to twice the speed of AVX-512."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping

from . import _native
from .graph import Graph, Shape
from .strassen import is_pointwise

BLOCK = 16


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
    without: Container[str] = (),
    pieces: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, tuple[int, ...]]:
    """The convolutions of ``graph`` for which that pays, but those ``without``, with the numbers of input channels that
    lie together (channel_order.py), or none where those are blocks."""
    pieces = pieces or {}
    chosen = {}
    for node in graph.nodes:
        if node.name not in weights or node.name in without or not is_pointwise(node) or graph[node.inputs[0]].op == "input":
            continue
        _, h, w, ic = shapes[node.inputs[0]]
        if pays(h * w, len(pieces.get(node.name, ())) or -(-ic // BLOCK), ic, weights[node.name].oc):
            chosen[node.name] = pieces.get(node.name, ())
    return chosen


def pays(pixels: int, n_pieces: int, ic: int, oc: int) -> bool:
    if os.environ.get("AMXALL"): return pixels >= 16
    return pixels >= 16
