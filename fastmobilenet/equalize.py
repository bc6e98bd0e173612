"""Cross-layer equalisation (Nagel et al., 2019): what a layer makes small, the next one makes large.

A layer's output channel may be divided by a positive number if the next layer's weights for it are multiplied by it: a
ReLU between them does not mind, nor does a pool. All channels of a tensor share one scale once they are bytes, so
channels of equal range lose least. Here the weights have a scale for each output channel, and the range of a channel is
not guessed from the weights but taken from the calibration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from .calibration import Channels
from .graph import Graph, Node, is_depthwise

Vector = npt.NDArray[np.float64]

#: What may lie between the two layers: it gives twice as much for twice as much.
HOMOGENEOUS = ("max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "global_avg_pool")

#: A channel grows at most so much, and never beyond half of the largest range: other pictures may exceed what was seen.
#: With 16 and 1.25 two trained networks had a tenth more error in their probabilities.
LARGEST_GAIN, HEADROOM = 4.0, 2.0


def equalize(graph: Graph, statistics: Mapping[str, Channels]) -> tuple[Graph, dict[str, Channels]]:
    """The same function on the calibration pictures, but for rounding, with channels of more equal ranges; and its
    statistics. Convolutions and dense layers have one input, and no activation but a clamp."""
    nodes = {n.name: n for n in graph.nodes}
    found = dict(statistics)
    readers = graph.consumers()
    for name in list(nodes):
        node = nodes[name]
        if node.op not in ("conv2d", "dense") or not _commutes(node) or name == graph.output:
            continue
        chain = _chain(graph, readers, node)
        if chain is None:
            continue
        between, target = chain[:-1], nodes[chain[-1]]
        scale = _scales(node, target, found[name])
        if scale is None:
            continue
        nodes[name] = _divide_outputs(node, scale)
        nodes[target.name] = _multiply_inputs(target, scale)
        for tensor in (name, *between):
            found[tensor] = found[tensor].divided(scale)
    return graph.replace(nodes=tuple(nodes.values())), found


def _commutes(node: Node) -> bool:
    """Whether scaling its output is scaling its sums, as long as these stay below an upper bound."""
    a = node.activation
    return a is None or (a.kind == "clamp" and a.lo in (0.0, -math.inf) and (a.hi > 0))


def _chain(graph: Graph, readers: Mapping[str, list[Node]], node: Node) -> list[str] | None:
    """The names of the pools behind a layer and of the layer behind these, if each is the only reader."""
    names: list[str] = []
    name = node.name
    while True:
        if len(readers[name]) != 1 or name == graph.output:
            return None
        reader = readers[name][0]
        name = reader.name
        names.append(name)
        if reader.op in ("conv2d", "dense") and len(reader.inputs) == 1:
            return names
        if reader.op not in HOMOGENEOUS:
            return None


def _scales(node: Node, target: Node, channels: Channels) -> Vector | None:
    """What each output channel is divided by, 0 < s <= 1: the channel with the largest range keeps it.

    With a and b the ranges of a channel and of the weights that read it, as fractions of the largest, s = sqrt(a / b)
    makes a / s and b * s equal. A depthwise convolution has a scale for each channel, so that b does not count.
    """
    largest = channels.magnitude.max()
    if not largest > 0:
        return None
    a = channels.magnitude / largest
    if target.op == "conv2d" and is_depthwise(target):
        wanted = a
    else:
        b = _input_ranges(target, len(a))
        if not b.max() > 0:
            return None
        wanted = np.sqrt(a / np.maximum(b / b.max(), 1e-6))
    least = np.maximum(HEADROOM * a, 1 / LARGEST_GAIN)
    return np.where(a > 0, np.clip(wanted, np.minimum(least, 1.0), 1.0), 1.0)


def _input_ranges(node: Node, channels: int) -> Vector:
    """The largest absolute weight that reads each input channel."""
    weight = np.abs(node.params["weight"].astype(np.float64))
    if node.op == "dense":
        return np.asarray(weight.reshape(-1, channels).max(axis=0))  # (oc, h * w * c)
    groups = node.attrs.get("groups", 1)
    by_group = weight.reshape(groups, -1, weight.shape[3])
    return np.asarray(by_group.max(axis=1).reshape(-1))


def _divide_outputs(node: Node, scale: Vector) -> Node:
    params = dict(node.params)
    for key in ("weight", "bias"):
        if key in params:
            value = params[key].astype(np.float64)
            params[key] = (value / scale.reshape(-1, *[1] * (value.ndim - 1))).astype(np.float32)
    return replace(node, params=params)


def _multiply_inputs(node: Node, scale: Vector) -> Node:
    weight = node.params["weight"].astype(np.float64)
    if node.op == "dense":
        scaled = (weight.reshape(weight.shape[0], -1, len(scale)) * scale).reshape(weight.shape)
    else:
        groups = node.attrs.get("groups", 1)
        by_group = weight.reshape(groups, -1, *weight.shape[1:])  # (groups, oc / groups, kh, kw, ic / groups)
        scaled = (by_group * scale.reshape(groups, 1, 1, 1, -1)).reshape(weight.shape)
    return replace(node, params={**node.params, "weight": scaled.astype(np.float32)})
