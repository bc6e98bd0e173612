"""Which 3x3 convolutions run in Winograd's form (csrc/runtime/winograd.cpp), and in chunks of how many tiles.

The choice depends on shapes and cache sizes only: the same network gives the same bits whatever the number of threads,
the batch, or what ran before.
"""

from __future__ import annotations

from .caches import Caches
from .graph import Node, Shape, kernel_size

BLOCK = 16
FLOAT = 4
TILE = 4  # rows and columns of outputs
#: Products of a tile instead of 16 * 9, by the stride.
ELEMENTS = {1: 36, 2: 81}
#: Time of the transforms of one tile and one block of channels, in multiply-adds of a block (Zen 4: 1 a cycle).
INPUT, OUTPUT = {1: 150, 2: 250}, {1: 220, 2: 300}
#: The products of matrices have a short sum over the channels, with something to do at both ends.
ENDS = 2.0
#: Bytes of weights that come in the time of one multiply-add of a block, from the third-level cache and, for layers
#: with more than FAR bytes of them, from memory.
STREAM, FAR_STREAM, FAR = 16.0, 4.0, 8 << 20
#: A layer must become faster by so much, for weights that take four times the memory, or nine times.
GAIN = 0.8


def chunk(node: Node, source: Shape, result: Shape, image: bool, caches: Caches) -> int:
    """Tiles that are worked on at a time; 0 if the direct convolution is faster, or the only one possible.

    ``source`` and ``result``: shapes of what the convolution reads and makes; ``image``: the source lies as
    (h, w, channels) and not in blocks."""
    if not possible(node) or image:
        return 0
    _, oh, ow, oc = result
    ic = source[3]
    tiles = -(-oh // TILE) * -(-ow // TILE)
    ib, ob = -(-ic // BLOCK), -(-oc // BLOCK)
    stride = node.attrs["stride"][0]
    elements = ELEMENTS[stride]
    size = _chunk(tiles, elements, ib, ic * oc, caches)
    direct = oh * ow * 9 * ic * ob + _stream(9 * ic * oc, 1, caches)
    winograd = tiles * (elements * (ic + ENDS) * ob + INPUT[stride] * ib + OUTPUT[stride] * ob)
    winograd += _stream(elements * ic * oc, -(-tiles // size), caches)
    return size if winograd < GAIN * direct else 0


def possible(node: Node) -> bool:
    """Whether the node is a dense 3x3 convolution of floats over every pixel, or every second one."""
    return (
        node.op == "conv2d"
        and "quant" not in node.attrs
        and kernel_size(node) == (3, 3)
        and node.attrs.get("groups", 1) == 1
        and node.attrs["stride"] in ((1, 1), (2, 2))
        and node.attrs.get("dilation", (1, 1)) == (1, 1)
    )


def _chunk(tiles: int, elements: int, ib: int, weights: int, caches: Caches) -> int:
    """The transformed inputs and one panel of products fit into half of the second-level cache. But where the weights
    do not, each chunk reads them again from further away, and 56 tiles are better than few."""
    tile = elements * BLOCK * FLOAT * (ib + 2)
    fits = caches.l2 // 2 // tile
    if elements * weights * FLOAT > caches.l2 // 2:
        fits = max(fits, 56)
    return min(max(fits, 14), tiles)


def _stream(weights: int, times: int, caches: Caches) -> float:
    size = weights * FLOAT
    if size <= caches.l2 // 2:
        return 0.0
    return times * size / (FAR_STREAM if size > FAR else STREAM)
