"""Graph -> Graph rewrites that come before lowering. Each leaves what the graph computes as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .errors import ModelError
from .graph import Graph, Node, is_depthwise


def optimize(graph: Graph) -> Graph:
    """All passes in order."""
    for run in (fold_batch_norm, fuse_activation, fuse_residual, dense_from_conv, drop_unused):
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
        p = {k: v.astype(np.float64) for k, v in node.params.items()}
        divisor = p["variance"] + node.attrs["epsilon"]
        if not (divisor > 0).all():
            raise ModelError(f"node {node.name!r}: variance + epsilon must be positive, found {divisor.min():g}")
        scale = p["gamma"] / np.sqrt(divisor)
        shift = p["beta"] - p["mean"] * scale
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


def fuse_activation(graph: Graph) -> Graph:
    """An activation that is the only reader of a conv2d, dense or add becomes that node's attribute."""
    readers = graph.consumers()
    merged: dict[str, Node] = {}
    removed: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "activation":
            continue
        source = graph[node.inputs[0]]
        alone = len(readers[source.name]) == 1 and source.name != graph.output
        if source.op in ("conv2d", "dense", "add") and alone and source.activation is None:
            merged[source.name] = _with(source, attrs={"activation": node.activation})
            removed[node.name] = source.name
    return _merge(graph, merged, removed)


def fuse_residual(graph: Graph) -> Graph:
    """conv2d -> add becomes a conv2d with a second input, if the convolution has no activation of its own and
    no other reader. The kernel then adds while the sum is still in registers."""
    readers = graph.consumers()
    position = {node.name: i for i, node in enumerate(graph.nodes)}
    merged: dict[str, Node] = {}
    removed: dict[str, str] = {}
    for node in graph.nodes:
        if node.op != "add" or node.inputs[0] == node.inputs[1]:
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


def reads_one_pixel(graph: Graph, node: Node) -> bool:
    """Whether the node's input is a map of one pixel for every picture size."""
    source = graph[node.inputs[0]]
    while source.op in ("activation", "softmax", "add", "batch_norm") or (
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
