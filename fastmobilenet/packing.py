"""Weights of a Graph -> packed weights of the runtime, and what is left of a Graph then."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from . import _native
from .channel_order import Order, pack_order
from .errors import ModelError
from .graph import Graph, Node, infer_shapes, is_depthwise
from .passes import BLOCK, node_channels, reads_one_pixel
from .switches import switch


def pack(store: _native.WeightStore, graph: Graph, node: Node, isa: str, order: Order) -> _native.PackedWeights:
    weight = np.ascontiguousarray(node.params["weight"], dtype=np.float32)
    bias = node.params.get("bias")
    if bias is not None:
        bias = np.ascontiguousarray(bias, dtype=np.float32)
    weight, bias = pack_order(weight, bias, order)
    in_24_bits = switch("FASTMOBILENET_24BIT") is not False
    if node.op == "dense":
        c = node_channels(graph, node.inputs[0])
        return _native.pack(store, to_blocks(weight, c)[:, None, None, :], bias, 1, False, True, isa, in_24_bits)
    groups = node.attrs.get("groups", 1)
    if is_depthwise(node):
        return _native.pack(store, weight, bias, 1, True, False, isa)
    # Matrix-vector kernels, for maps of one pixel, know no half blocks.
    vectors = groups == 1 and reads_one_pixel(graph, node)
    # Tiles of AMX hold the same weights: floats that lie apart are given back when they are made.
    apart = _native.has_amx(isa)
    return _native.pack(store, weight, bias, groups, False, vectors, isa, vectors and in_24_bits, apart)


def pack_quantized(store: _native.WeightStore, graph: Graph, node: Node, isa: str) -> tuple[_native.PackedU8, str]:
    x = graph[node.inputs[0]].attrs.get("quant")
    if x is None:
        raise ModelError(f"node {node.name!r}: a quantised layer reads {node.inputs[0]!r}, which is not quantised")
    if node.op == "dense":  # a convolution whose window is the map
        _, h, w, c = infer_shapes(graph, 1, *graph.input_size)[node.inputs[0]]
        weight = node.params["weight"].reshape(-1, h, w, c)
        node = replace(node, params={**node.params, "weight": weight})
    from . import pack_u8

    return pack_u8.pack(store, node, x, isa)


def to_blocks(weight: np.ndarray, c: int) -> np.ndarray:
    """(oc, pixels * c) -> (oc, blocks * pixels * 16): from the order of NHWC to that of the runtime's tensors."""
    oc, blocks = weight.shape[0], -(-c // BLOCK)
    padded = np.zeros((oc, weight.shape[1] // c, blocks * BLOCK), np.float32)
    padded[:, :, :c] = weight.reshape(oc, -1, c)
    return np.ascontiguousarray(padded.reshape(oc, -1, blocks, BLOCK).swapaxes(1, 2)).reshape(oc, -1)


def from_blocks(weight: np.ndarray, c: int) -> np.ndarray:
    """The inverse of to_blocks."""
    oc, blocks = weight.shape[0], -(-c // BLOCK)
    pixels = weight.reshape(oc, blocks, -1, BLOCK).swapaxes(1, 2).reshape(oc, -1, blocks * BLOCK)
    return np.ascontiguousarray(pixels[:, :, :c]).reshape(oc, -1)


def without_data(graph: Graph) -> Graph:
    """The graph with weights that keep their shape only; the values live in the packed weights. Tables are copied:
    a plan reads them, and the file of which they may be views is not ours."""
    one = np.zeros(1, np.float32)
    one.flags.writeable = False

    def ghost(v: np.ndarray) -> np.ndarray:
        return np.ndarray(v.shape, np.float32, one, strides=(0,) * v.ndim)  # eight times as fast as broadcast_to

    nodes = tuple(
        replace(n, params={k: v.copy() if n.op == "lookup" else ghost(v) for k, v in n.params.items()})
        for n in graph.nodes
    )
    return graph.replace(nodes=nodes)
