"""Which 1x1 convolutions are computed by Strassen's product in Winograd's form (csrc/runtime/strassen.cpp): with an
eighth less multiplications for each level, and some additions of maps and of weights.

The sum that defines a layer is then no longer computed term by term, and its rounding errors are bounded by the size
of the matrices rather than of each result: about those of the plain sum where the channels that are mixed are of like
size, larger by their ratio where they are not. :meth:`_Scales.mixing` estimates that ratio, and layers above
``MOST_MIXING`` are left as they are: the plain sum is off by about 1e-6 of the largest value, so that eight times that
is far from 1e-4. For a NaN there is NaN, as ever; where there is an infinity, NaN or infinity, in the pixels that are
mixed with it too.

A layer that computes the scores of a classifier is left alone as well: classes whose weights are equal must get equal
scores, and a product that halves the channels rounds the two halves differently.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from . import _native
from .caches import Caches
from .graph import Graph, Node, Shape, is_depthwise, kernel_size
from .switches import switch

BLOCK = 16
FLOAT = 4
_POOLS_AND_FUNCTIONS = ("activation", "softmax", "global_avg_pool", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d")
MAX_LEVELS = 2

#: A layer is halved if that saves this part of its time at least, and if its channels mix less than that.
LEAST_SAVING = 0.015
MOST_MIXING = 8.0

#: Pixels of one product: with fewer, its tiles are too few to fetch the weights of the next one meanwhile.
LEAST_PIXELS = 16


class Split(NamedTuple):
    """``levels`` of halving; ``groups`` of 2^levels panels of output channels; ``rows`` of the map that are multiplied
    at a time; ``saving``: the part of the layer's time that it is expected to save."""

    levels: int
    groups: int
    rows: int
    saving: float

    @property
    def room(self) -> float:
        return 1.0


def enabled() -> bool:
    """What FASTMOBILENET_STRASSEN says, 0 or 1, or else whether this CPU gains from it. Raises ValueError for any other
    value."""
    wanted = switch("FASTMOBILENET_STRASSEN")
    return _native.adds_apart() if wanted is None else wanted


def choose_splits(
    graph: Graph,
    shapes: Mapping[str, Shape],
    weights: Mapping[str, _native.PackedWeights],
    caches: Caches,
    without: Container[str] = (),
    scattered: Container[str] = (),
) -> dict[str, Split]:
    """Node -> how it is split, for all convolutions of ``graph`` for which that pays if they run alone, but those
    ``without``, and those that read ``scattered`` channels."""
    scales = _Scales(graph, weights, scattered)
    splits = {}
    for node in graph.nodes:
        if node.name not in weights or node.name in without or node.name in scattered:
            continue
        if not is_pointwise(node):
            continue
        packed = weights[node.name]
        width = packed.panel_blocks * BLOCK
        split = choose_split(shapes[node.inputs[0]], packed.oc, packed.whole_panels, width, caches)
        if split is not None and scales.mixing(node, split, width) <= MOST_MIXING:
            splits[node.name] = split
    return splits


def is_pointwise(node: Node) -> bool:
    return (
        node.op == "conv2d"
        and kernel_size(node) == (1, 1)
        and node.attrs["stride"] == (1, 1)
        and node.attrs["padding"] in ("same", (0, 0, 0, 0))
        and node.attrs.get("groups", 1) == 1
    )


def score_layer(graph: Graph) -> str | None:
    """The 1x1 convolution between which and the network's output is nothing but pools and functions."""
    node = graph[graph.output]
    while node.op in _POOLS_AND_FUNCTIONS:
        node = graph[node.inputs[0]]
        if sum(node.name in reader.inputs for reader in graph.nodes) > 1:
            return None
    return node.name if is_pointwise(node) else None


def choose_split(source: Shape, oc: int, panels: int, width: int, caches: Caches) -> Split | None:
    """For a 1x1 convolution whose ``oc`` output channels lie in ``panels`` of ``width`` and, perhaps, others."""
    _, h, w, ic = source
    best = None
    for levels in range(1, MAX_LEVELS + 1):
        groups = panels >> levels
        if ic % (BLOCK << levels) or groups == 0 or h * w >> levels < LEAST_PIXELS:
            break
        rows = chunk_rows(h, w, ic, levels, caches)
        if rows == h:
            groups -= groups % 2  # for two threads; the panels without a partner are shared out by tiles
        if groups == 0:
            break  # one piece of work
        saving = expected_saving(ic, oc, width, levels, groups)
        if saving >= LEAST_SAVING and (best is None or saving > best.saving):
            best = Split(levels, groups, rows, saving)
    return best


def expected_saving(ic: int, oc: int, width: int, levels: int, groups: int) -> float:
    """The part of the time of the plain sum that is saved. What the additions cost was fitted to measurements on Zen 4
    (AVX-512, one multiply-add a cycle; 15 shapes, off by 0.015 at most): the shorter the sums of a product, the more
    its results weigh that are loaded, added and stored, and the fewer its output channels, the more the sums of
    pixels do. Panels that have no partner save nothing."""
    k, n = ic >> levels, groups * width
    share = (n << levels) / (-(-oc // BLOCK) * BLOCK)
    return share * (1 - (7 / 8) ** levels - levels * (0.01 + 2.2 / k + 2.6 / n))


def chunk_rows(h: int, w: int, ic: int, levels: int, caches: Caches) -> int:
    """Rows of the map that are multiplied at a time: two chunks, for as many threads, unless their products have too
    few pixels to use the weights well; and as many as let what is read of them, three quarters of the map and as many
    sums as it has values, stay in the second-level cache."""
    chunks = 2 if h * w // 2 >> levels >= 3 * LEAST_PIXELS else 1
    while chunks < h and -(-h // chunks) * w * ic * FLOAT * 7 // 4 > caches.l2 * 4 // 5:
        chunks += 1
    return -(-h // chunks)


class _Scales:
    """Typical sizes of the channels of tensors, taken from the weights around them and up to a common factor."""

    def __init__(
        self, graph: Graph, weights: Mapping[str, _native.PackedWeights], scattered: Container[str] = ()
    ) -> None:
        self._graph = graph
        self._weights = weights
        self._scattered = scattered  # their weights are in another order
        self._readers = graph.consumers()
        self._norms: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        self._felt: dict[str, np.ndarray | float] = {}

    def mixing(self, node: Node, split: Split, width: int) -> float:
        """How much larger the rounding errors become, in the sense of the sums of squares, because channels of unlike
        size are mixed: 1 where all are of one size. Channels of the input count as much as what they add to the
        results, those of the output as much as the layers behind make of them. NaN if weights are."""
        out, into, _ = self.norms(node.name)
        parts = 1 << split.levels
        made = np.broadcast_to(self.made(node.inputs[0]), into.shape)
        terms = _mixed(made, parts) * _mixed(into, parts)
        n = split.groups * width * parts
        felt = np.broadcast_to(self.felt(node), out.shape)
        mixed = np.concatenate([_mixed(out[:n], parts), out[n:]])
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(_ratio(terms, made * into) * _ratio(mixed * felt, out * felt))

    def norms(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if name not in self._norms:
            self._norms[name] = self._weights[name].norms()
        return self._norms[name]

    def made(self, name: str) -> np.ndarray | float:
        """Size of every channel of the tensor, or 1 if it is not known."""
        node = self._graph[name]
        if node.op == "conv2d" and name in self._weights:
            out, _, bias = self.norms(name)
            size = out * self.made(node.inputs[0]) if is_depthwise(node) else out
            return np.asarray(np.hypot(size, bias))
        if node.op == "activation":
            return self.made(node.inputs[0])
        return 1.0

    def felt(self, node: Node) -> np.ndarray | float:
        """How much a change of every channel of the node's output changes the results of its readers."""
        if node.name not in self._felt:
            parts = [self._felt_by(reader, node.name) for reader in self._readers[node.name]]
            self._felt[node.name] = _root_of_squares(parts) if parts else 1.0
        return self._felt[node.name]

    def _felt_by(self, reader: Node, name: str) -> np.ndarray | float:
        if reader.op in ("conv2d", "dense") and name in reader.inputs[1:]:
            return self.felt(reader)  # added to its output
        if reader.name in self._scattered:
            return 1.0
        if reader.op == "conv2d" and reader.name in self._weights and reader.attrs.get("groups", 1) == 1:
            return self.norms(reader.name)[1]
        if reader.op == "conv2d" and reader.name in self._weights and is_depthwise(reader):
            return self.norms(reader.name)[0] * self.felt(reader)
        if reader.op in ("add", "activation"):
            return self.felt(reader)
        return 1.0


def _root_of_squares(parts: Iterable[np.ndarray | float]) -> np.ndarray | float:
    return np.asarray(np.sqrt(sum(np.square(p) for p in parts)))


def _mixed(sizes: np.ndarray, parts: int) -> np.ndarray:
    """Each replaced by the largest of those that it is mixed with: one of every part."""
    return np.tile(sizes.reshape(parts, -1).max(axis=0), parts)


def _ratio(mixed: np.ndarray, plain: np.ndarray) -> np.floating:
    return np.linalg.norm(mixed) / np.linalg.norm(plain)
