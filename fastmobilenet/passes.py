"""Graph -> Graph rewrites that come before lowering. Each leaves what the graph computes as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .errors import ModelError
from .graph import Activation, Graph, Node, infer_shapes, is_depthwise

#: Channels of a block of the runtime's tensors.
BLOCK = 16


def optimize(graph: Graph) -> Graph:
    """All passes in order."""
    passes = (
        fold_input_norm, fold_batch_norm, merge_gathers, fuse_activation, fuse_residual, dense_from_conv, drop_unused,
        copy_for_dense,
    )  # fmt: skip
    for run in passes:
        graph = run(graph)
    return graph


def _with(node: Node, *, inputs: tuple[str, ...] | None = None, attrs: Mapping[str, Any] | None = None,
          params: Mapping[str, np.ndarray] | None = None) -> Node:  # fmt: skip
    return replace(
        node,
        inputs=node.inputs if inputs is None else inputs,
        attrs=dict(node.attrs) | dict(attrs or {}),
        params=dict(node.params) | dict(params or {}),
    )


def _merge(graph: Graph, merged: Mapping[str, Node], removed: Mapping[str, str]) -> Graph:
    """Replaces nodes by name, drops the keys of ``removed`` and lets their readers read the value instead."""

    def follow(name: str) -> str:
        while name in removed:
            name = removed[name]
        return name

    nodes = []
    for node in graph.nodes:
        if node.name in removed:
            continue
        node = merged.get(node.name, node)
        nodes.append(replace(node, inputs=tuple(follow(s) for s in node.inputs)))
    return graph.replace(nodes=tuple(nodes), output=follow(graph.output))


def quantized(node: Node) -> bool:
    """Whether the node makes bytes. What is fused, is fused by whoever quantised it."""
    return "quant" in node.attrs


def fold_input_norm(graph: Graph) -> Graph:
    """A batch_norm that is the only reader of the input becomes the input's own mean and std: y = (x - mean) / std.
    The runtime has them for up to four channels."""
    source = graph.nodes[0]
    readers = graph.consumers()[source.name]
    if len(readers) != 1 or readers[0].op != "batch_norm" or source.name == graph.output:
        return graph
    if source.attrs or not 1 <= graph.input_channels <= 4:
        return graph
    scale, shift = _scale_and_shift(readers[0])
    if not scale.all():
        return graph
    attrs = {"mean": -shift / scale, "std": 1.0 / scale}
    return _merge(graph, {source.name: _with(source, attrs=attrs)}, {readers[0].name: source.name})


def _scale_and_shift(node: Node) -> tuple[np.ndarray, np.ndarray]:
    """A batch_norm as y = x * scale + shift, in float64."""
    p = {k: v.astype(np.float64) for k, v in node.params.items()}
    divisor = p["variance"] + node.attrs["epsilon"]
    if not (divisor > 0).all():
        raise ModelError(f"node {node.name!r}: variance + epsilon must be positive, found {divisor.min():g}")
    scale = p["gamma"] / np.sqrt(divisor)
    return scale, p["beta"] - p["mean"] * scale


def fold_batch_norm(graph: Graph) -> Graph:
    """conv2d or dense -> batch_norm becomes one layer: w' = w * s, b' = (b - mean) * s + beta, with
    s = gamma / sqrt(variance + epsilon), in float64. A batch_norm that follows something else becomes a
    depthwise 1x1 convolution."""
    readers = graph.consumers()
    merged: dict[str, Node] = {}
    removed: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "batch_norm":
            continue
        scale, shift = _scale_and_shift(node)
        source = graph[node.inputs[0]]
        alone = len(readers[source.name]) == 1 and source.name != graph.output
        if source.op in ("conv2d", "dense") and alone and source.activation is None and len(source.inputs) == 1:
            weight = source.params["weight"].astype(np.float64)
            weight = weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
            bias = source.params.get("bias")
            bias = shift if bias is None else shift + bias.astype(np.float64) * scale
            merged[source.name] = _with(source, params={"weight": _f32(weight), "bias": _f32(bias)})
            removed[node.name] = source.name
        else:
            attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": scale.size}
            params = {"weight": _f32(scale.reshape(-1, 1, 1, 1)), "bias": _f32(shift)}
            merged[node.name] = Node(node.name, "conv2d", node.inputs, attrs, params)
    return _merge(graph, merged, removed)


def _f32(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(x, dtype=np.float32)


def merge_gathers(graph: Graph) -> Graph:
    """A gather_channels that reads a concat or another gather_channels takes its channels from their inputs, and one
    that takes all channels of one tensor in order goes away. The concat, channel shuffle and split of a ShuffleNet
    become two gathers this way, one for each half."""
    nodes: dict[str, Node] = {}
    removed: dict[str, str] = {}
    channels = {name: shape[3] for name, shape in infer_shapes(graph, 1, *graph.input_size).items()}
    for node in graph.nodes:
        node = replace(node, inputs=tuple(removed.get(s, s) for s in node.inputs))
        if node.op == "gather_channels" and not quantized(node):
            origins = [(s, i) for s in node.inputs for i in range(channels[s])]  # where each channel comes from
            joins = len(node.inputs) > 1
            taken = [_origin(nodes, channels, *origins[i], behind_concat=joins) for i in node.attrs["index"]]
            inputs = tuple(dict.fromkeys(name for name, _ in taken))
            first = dict(zip(inputs, np.cumsum([0, *(channels[s] for s in inputs)]).tolist(), strict=False))
            index = tuple(first[name] + i for name, i in taken)
            if len(inputs) == 1 and index == tuple(range(channels[inputs[0]])) and node.name != graph.output:
                removed[node.name] = inputs[0]
                continue
            node = replace(node, inputs=inputs, attrs={**node.attrs, "index": index})
        nodes[node.name] = node
    return graph.replace(nodes=tuple(nodes.values()))


def _origin(
    nodes: Mapping[str, Node], channels: Mapping[str, int], name: str, channel: int, *, behind_concat: bool
) -> tuple[str, int]:
    """The tensor and the channel that concat and gather_channels nodes have copied this one from. A gather behind a
    concat is not followed: each unit of a ShuffleNet would otherwise read from all units before it."""
    while not quantized(nodes[name]) and (
        nodes[name].op == "concat" or (nodes[name].op == "gather_channels" and not behind_concat)
    ):
        node = nodes[name]
        if node.op == "gather_channels":
            channel = node.attrs["index"][channel]
        behind_concat = behind_concat or len(node.inputs) > 1
        for source in node.inputs:
            if channel < channels[source]:
                name = source
                break
            channel -= channels[source]
    return name, channel


def _in_kernels(activation: Activation | None) -> bool:
    """Whether the kernels of convolutions apply it while a result is in its register."""
    if activation is None or activation.kind == "clamp":
        return True
    return activation.kind == "hard_swish" and activation.alpha > 0


def fuse_activation(graph: Graph) -> Graph:
    """An activation that is the only reader of a conv2d, dense, add or mul becomes that node's attribute, if the
    kernels have it: matrix-vector products and element-wise ops have all, convolutions only some."""
    readers = graph.consumers()
    merged: dict[str, Node] = {}
    removed: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "activation" or node.activation is None or quantized(node):
            continue
        source = graph[node.inputs[0]]
        alone = len(readers[source.name]) == 1 and source.name != graph.output
        if source.op not in ("conv2d", "dense", "add", "mul") or not alone or source.activation is not None:
            continue
        around = [*readers[node.name], *readers[source.inputs[0]]]
        vector = source.op == "dense" or (_is_matrix_vector(graph, source) and _only_pointwise(around))
        if _in_kernels(node.activation) or source.op in ("add", "mul") or vector:
            merged[source.name] = _with(source, attrs={"activation": node.activation})
            removed[node.name] = source.name
    return _merge(graph, merged, removed)


def _is_matrix_vector(graph: Graph, node: Node) -> bool:
    """Whether the node is a 1x1 convolution of a map of one pixel, which the kernels do as a matrix times a vector."""
    plain = node.op == "conv2d" and node.params["weight"].shape[1:3] == (1, 1) and node.attrs.get("groups", 1) == 1
    padding = node.attrs.get("padding")
    return plain and padding in ("same", (0, 0, 0, 0)) and reads_one_pixel(graph, node)


def _only_pointwise(readers: Iterable[Node]) -> bool:
    """Whether no reader wants padding around the tensor."""
    return all(n.op != "conv2d" or n.params["weight"].shape[1:3] == (1, 1) for n in readers)


def fuse_residual(graph: Graph) -> Graph:
    """conv2d -> add becomes a conv2d with a second input, if the convolution has no activation of its own and
    no other reader. The kernel then adds while the sum is still in registers."""
    readers = graph.consumers()
    position = {node.name: i for i, node in enumerate(graph.nodes)}
    merged: dict[str, Node] = {}
    removed: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "add" or node.inputs[0] == node.inputs[1] or quantized(node):
            continue
        if not _in_kernels(node.activation):
            continue
        for source, other in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
            conv = graph[source]
            if (
                conv.op == "conv2d"
                and not is_depthwise(conv)
                and conv.attrs.get("groups", 1) == 1
                and conv.activation is None
                and len(conv.inputs) == 1
                and len(readers[source]) == 1
                and source != graph.output
                and position[other] < position[source]
            ):
                merged[source] = _with(conv, inputs=(*conv.inputs, other), attrs={"activation": node.activation})
                removed[node.name] = source
                break
    return _merge(graph, merged, removed)


def dense_from_conv(graph: Graph) -> Graph:
    """A dense layer becomes a 1x1 convolution: on a map of one pixel they are the same, and the runtime has one
    op for both. (A dense layer over a larger map is left alone: the size of the map is known only later.)"""
    merged = {}
    for node in graph.nodes:
        if node.op == "dense" and reads_one_pixel(graph, node):
            weight = node.params["weight"]
            attrs = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
            merged[node.name] = replace(
                _with(node, attrs=attrs, params={"weight": weight[:, None, None, :]}), op="conv2d"
            )
    return _merge(graph, merged, {})


def copy_for_dense(graph: Graph) -> Graph:
    """A dense layer reads a map as one vector: one that a convolution reads too, with padding, is copied, and one that
    does not fill its last block of channels, so that the rest of it is zero."""
    readers = graph.consumers()
    nodes: list[Node] = []
    for node in graph.nodes:
        source = node.inputs[0] if node.inputs else ""
        c = node_channels(graph, source) if node.op == "dense" and not quantized(node) else 0
        if c and graph[source].op == "gather_channels" and len(readers[source]) == 1 and source != graph.output:
            c = 0  # such a copy is there
        if c and (c % BLOCK or not _only_pointwise(readers[source])):
            copy = Node(f"{node.name}/input", "gather_channels", (source,), {"index": tuple(range(c))})
            nodes.append(copy)
            node = replace(node, inputs=(copy.name, *node.inputs[1:]))
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes))


def node_channels(graph: Graph, name: str) -> int:
    """Channels of a tensor; they do not depend on the size of the picture."""
    return infer_shapes(graph, 1, *graph.input_size)[name][3]


def reads_one_pixel(graph: Graph, node: Node) -> bool:
    """Whether the node's input is a map of one pixel for every picture size."""
    source = graph[node.inputs[0]]
    while source.op in ("activation", "softmax", "add", "mul", "batch_norm") or (
        source.op == "conv2d" and source.params["weight"].shape[1:3] == (1, 1)
    ):
        source = graph[source.inputs[0]]
    return source.op in ("global_avg_pool", "dense")


def drop_unused(graph: Graph) -> Graph:
    """Removes nodes that the output does not need."""
    needed = {graph.output}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return graph.replace(nodes=tuple(n for n in graph.nodes if n.name in needed or n.op == "input"))
