"""Graph of floats -> graph of floats whose every tensor can be bytes -> graph of bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .activation import Activation
from .calibration import Channels, Histogram
from .graph import Graph, Node
from .passes import merge_gathers
from .quantization import Quant
from .quantize_ranges import choose_quant, quantize_weights
from .reference import activate

#: Ops that compute on bytes. A softmax does so only where what follows reads bytes.
OPS_OF_BYTES = frozenset({
    "conv2d", "dense", "add", "mul", "activation", "global_avg_pool", "avg_pool2d", "adaptive_avg_pool2d",
    "max_pool2d", "concat", "gather_channels", "softmax",
})  # fmt: skip

#: Sums of a layer of bytes stay below 2^30 (pack_u8.LARGEST); the bias takes at most a quarter of that.
LARGEST_BIAS, LARGEST_SUM = 2.0**28, 2.0**29


def separate(graph: Graph) -> tuple[Graph, dict[str, str]]:
    """Every tensor that bytes have to hold becomes a node: a convolution neither adds a second input nor has an
    activation other than a clamp. Also returns for each node the name that it had, or was a part of, before."""
    names = {n.name for n in graph.nodes}
    nodes: list[Node] = []
    origin: dict[str, str] = {}

    def part(base: str, suffix: str) -> str:
        name, count = f"{base}/{suffix}", 1
        while name in names:
            count += 1
            name = f"{base}/{suffix}{count}"
        names.add(name)
        return name

    def append(node: Node, whole: Node) -> None:
        nodes.append(node)
        origin[node.name] = whole.name

    for node in graph.nodes:
        act = node.activation if node.op != "activation" else None
        other = node.inputs[1:] if node.op in ("conv2d", "dense") else ()
        function = act if act is not None and act.kind != "clamp" else None
        current = node
        if other:
            current = replace(node, name=part(node.name, "sum"), inputs=node.inputs[:1], attrs=_without(node, act))
            append(current, node)
            attrs: dict[str, Any] = {} if act is None else {"activation": act}
            current = Node(node.name, "add", (current.name, *other), attrs)
        if function is not None:
            current = replace(current, name=part(node.name, "linear"), attrs=_without(current, act))
            append(current, node)
            current = Node(node.name, "activation", (current.name,), {"activation": function})
        append(current, node)
    # A gather of all channels is there for float kernels (passes.copy_for_dense); bytes need none.
    plain = merge_gathers(graph.replace(nodes=tuple(nodes)))
    return plain, {n.name: origin[n.name] for n in plain.nodes}


def _without(node: Node, activation: Activation | None) -> dict[str, Any]:
    return {k: v for k, v in node.attrs.items() if k != "activation" or activation is None}


def centre_input(graph: Graph, kept: Collection[str]) -> tuple[Graph, Quant | None]:
    """Moves the input by less than a step so that pixels are bytes as they are, and the Quant that makes them so.

    Pixels p stand for (p - mean) / std. With a mean of 127.5 no byte stands for 0, which padding needs. The input
    becomes (p - zero) / std, with zero the whole number next to the mean, and the biases of the layers that read it
    take the difference back: exactly, but for the padding. None where the channels have different scales, or means that
    are further apart, or where something else than a layer of bytes reads the input.
    """
    source = graph.nodes[0]
    readers = graph.consumers()[source.name]
    if graph.input_channels != 3 or not readers or source.name == graph.output:
        return graph, None
    if any(n.op not in ("conv2d", "dense") or n.name in kept for n in readers):
        return graph, None
    own_mean, own_std = (np.asarray(source.attrs.get(k, v), np.float64) for k, v in (("mean", 0.0), ("std", 1.0)))
    p = graph.preprocess
    mean = np.asarray(p.mean) + own_mean * np.asarray(p.std)  # of the whole, in units of pixels
    std = np.asarray(p.std) * own_std
    zero = float(np.rint(mean.mean()))
    if np.ptp(std) > 1e-6 * std.max() or std.min() <= 0 or np.abs(mean - zero).max() > 0.51 or not 0 <= zero <= 255:
        return graph, None
    move = (mean - zero) / std  # x' = x + move
    attrs = dict(source.attrs)
    if np.any(move):
        attrs |= {"mean": (own_mean - move * own_std) * np.ones(3), "std": own_std * np.ones(3)}
    nodes = {n.name: n for n in graph.nodes} | {source.name: replace(source, attrs=attrs)}
    for node in readers:
        weight = node.params["weight"].astype(np.float64)
        bias = node.params["bias"].astype(np.float64) if "bias" in node.params else 0.0
        bias = (bias - _response(node, weight, move)).astype(np.float32)
        nodes[node.name] = replace(node, params={**node.params, "bias": bias})
    return graph.replace(nodes=tuple(nodes.values())), Quant(1 / float(std[0]), int(zero))


def _response(node: Node, weight: npt.NDArray[Any], means: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The sums of a layer over an input whose channels are constant: (oc,)."""
    oc = weight.shape[0]
    if node.op == "dense":
        by_channel = weight.reshape(oc, -1, len(means)).sum(axis=1)
        return np.asarray(by_channel @ means)
    groups = node.attrs.get("groups", 1)
    by_channel = weight.sum(axis=(1, 2)).reshape(groups, oc // groups, -1)
    return np.asarray(np.einsum("goi,gi->go", by_channel, means.reshape(groups, -1)).reshape(oc))


def nodes_of_floats(graph: Graph, kept: Collection[str]) -> set[str]:
    """The nodes that stay fp32: those of ``kept``, ops that bytes do not have, and softmax that only floats read,
    whose probabilities are then finer than 1/256."""
    floats: set[str] = set()
    readers = graph.consumers()
    for node in reversed(graph.nodes):
        alone = all(reader.name in floats for reader in readers[node.name])
        useless = node.op in ("softmax", "input") and alone
        if useless or node.name in kept or (node.op not in OPS_OF_BYTES and node.op != "input"):
            floats.add(node.name)
    return floats


def choose_quants(
    graph: Graph, floats: Collection[str], found: Mapping[str, Histogram], source: Quant | None
) -> dict[str, Quant]:
    """A Quant for every tensor, whether it will be bytes or not. ``source``: that of the input, if it is settled."""
    readers = graph.consumers()
    quants: dict[str, Quant] = {}
    for node in graph.nodes:
        name = node.name
        following = readers[name]
        if node.op == "input" and source is not None:
            quants[name] = source
        elif _only_picks(node):
            quants[name] = quants[node.inputs[0]]
        elif node.op == "softmax":
            quants[name] = Quant(1 / 256, 0)
        else:
            # Ranks and probabilities suffer most where the largest values are clipped.
            clip = name != graph.output and not any(reader.op == "softmax" for reader in following)
            through = None
            if len(following) == 1 and following[0].op == "activation" and name != graph.output:
                act = following[0].activation
                through = lambda x, act=act: activate(x, act)  # noqa: E731
            quants[name] = choose_quant(found[name], clip=clip, through=through)
    for node in graph.nodes:
        if node.op in ("concat", "gather_channels") and len(node.inputs) > 1 and node.name not in floats:
            for name in node.inputs:  # one rounding instead of two
                if graph[name].op in ("conv2d", "add", "mul", "activation") and len(readers[name]) == 1:
                    quants[name] = quants[node.name]
    return quants


def to_bytes(
    graph: Graph,
    quants: Mapping[str, Quant],
    floats: Collection[str],
    statistics: Mapping[str, Channels],
    *,
    bias_correction: bool,
) -> Graph:
    """The network of bytes. Nodes of ``floats`` stay as they are; quantize and dequantize nodes come between."""
    quants = dict(quants)
    nodes: list[Node] = []
    bytes_of: dict[str, str] = {}  # tensor -> its name as bytes
    floats_of: dict[str, str] = {}
    names = {n.name for n in graph.nodes}

    def converted(name: str, op: str, attrs: Mapping[str, Any]) -> str:
        new = f"{name}/{op}d"
        while new in names:
            new += "'"
        names.add(new)
        nodes.append(Node(new, op, (name,), attrs))
        return new

    def as_bytes(name: str) -> str:
        if name not in bytes_of:
            bytes_of[name] = converted(name, "quantize", {"quant": quants[name]})
        return bytes_of[name]

    def as_floats(name: str) -> str:
        if name not in floats_of:
            floats_of[name] = converted(name, "dequantize", {})
        return floats_of[name]

    for node in graph.nodes:
        if node.name in floats:
            nodes.append(replace(node, inputs=tuple(map(as_floats, node.inputs))))
            floats_of[node.name] = node.name
            continue
        sources = node.inputs
        node = replace(node, inputs=tuple(map(as_bytes, sources)))
        if node.op in ("conv2d", "dense"):
            found = statistics[sources[0]]
            means = found.mean if bias_correction else None
            node, quants[node.name] = _layer(node, quants[sources[0]], quants[node.name], means)
        elif _only_picks(node):
            quants[node.name] = quants[sources[0]]
        nodes.append(replace(node, attrs={**node.attrs, "quant": quants[node.name]}))
        bytes_of[node.name] = node.name
    output = as_floats(graph.output)
    return graph.replace(nodes=tuple(nodes), output=output)


def _only_picks(node: Node) -> bool:
    """Whether the values of the output are values of the one input."""
    return node.op == "max_pool2d" or (node.op == "gather_channels" and len(node.inputs) == 1)


def _layer(node: Node, x: Quant, y: Quant, means: npt.NDArray[np.float64] | None) -> tuple[Node, Quant]:
    """A convolution or dense layer with int8 weights. ``means`` of its input channels: with them the bias makes up for
    what rounding the weights adds to the mean of each output channel (Nagel et al., 2019)."""
    weight = node.params["weight"].astype(np.float64)
    oc = weight.shape[0]
    bias = node.params["bias"].astype(np.float64) if "bias" in node.params else np.zeros(oc)
    integers, scale = quantize_weights(weight, np.maximum(np.abs(bias) / (x.scale * LARGEST_BIAS), 1e-20))
    if means is not None:
        rounded = integers * scale.astype(np.float64).reshape(-1, *[1] * (weight.ndim - 1))
        bias = bias - _response(node, rounded - weight, means)
    unit = np.float64(x.scale) * scale
    bounded = np.clip(np.rint(bias / unit), -LARGEST_SUM, LARGEST_SUM).astype(np.int32)
    largest = np.abs(integers.astype(np.int64)).reshape(oc, -1).sum(axis=1) * 255 + np.abs(bounded.astype(np.int64))
    least = float((largest * unit).max()) / LARGEST_SUM
    if y.scale < least:  # a tensor that is next to nothing beside what the layer could give
        y = Quant(least, y.zero)
    params: dict[str, npt.NDArray[Any]] = {"weight": integers, "bias": bounded, "weight_scale": scale}
    return replace(node, params=params), y
