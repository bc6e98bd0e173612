"""Quantised nodes -> native ops. ``reference_u8.py`` defines what they compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import _native
from .errors import ModelError
from .graph import Graph, Node, Shape, resolve_padding
from .passes import quantized
from .pools import pool_spans
from .quantization import Quant
from .reference_u8 import ADD_ROUNDINGS, add_floats, add_multipliers, lookup, mul_factor, softmax_table


def emit(
    program: _native.Program,
    graph: Graph,
    nodes: Sequence[Node],
    ids: Mapping[str, int],
    shapes: Mapping[str, Shape],
    weights: Mapping[str, tuple[_native.PackedU8, str]],
    isa: str,
) -> None:
    """Appends the op of a node that makes bytes, or of a dequantize; or of a convolution and what fuse() put behind
    it."""
    node = nodes[0]
    dst = ids[nodes[-1].name]
    if node.op == "input":
        _input(program, graph, node, dst, isa)
        return
    src = ids[node.inputs[0]]
    source: Quant | None = graph[node.inputs[0]].attrs.get("quant")
    if node.op == "quantize" and source is None:
        program.quantize(node.name, src, dst, node.attrs["quant"].scale)
        return
    if source is None or any("quant" not in graph[s].attrs for s in node.inputs):
        raise ModelError(f"node {node.name!r}: {node.op} of bytes reads a tensor that is not quantised")
    if node.op == "dequantize":
        program.dequantize(node.name, src, dst, source.scale)
        return
    y: Quant = node.attrs["quant"]
    bounds = (y.zero, *y.bounds(node.activation if node.op != "activation" else None))
    if node.op in ("conv2d", "dense"):
        after = _After() if len(nodes) == 1 else _after(graph, node, nodes[1], ids)
        _convolution(program, node, src, dst, shapes, weights[node.name], bounds, after)
    elif node.op == "add" and "rounding" in node.attrs:
        added = ADD_ROUNDINGS[node.attrs["rounding"]]
        factors = add_floats(source, graph[node.inputs[1]].attrs["quant"], y, added)
        program.add_floats_u8(isa, node.name, src, ids[node.inputs[1]], dst, factors, added, bounds[1:])
    elif node.op == "add":
        a, b = (graph[s].attrs["quant"] for s in node.inputs)
        program.add_u8(isa, node.name, src, ids[node.inputs[1]], dst, add_multipliers(a, b, y), bounds)
    elif node.op == "mul":
        factor = mul_factor(source, graph[node.inputs[1]].attrs["quant"], y)
        program.mul_u8(isa, node.name, src, ids[node.inputs[1]], dst, float(factor), bounds)
    elif node.op == "lookup":
        program.lookup_u8(isa, node.name, src, dst, np.ascontiguousarray(node.params["table"], np.uint8))
    elif node.op in ("activation", "quantize"):
        program.lookup_u8(isa, node.name, src, dst, lookup(node, source))
    elif node.op in ("global_avg_pool", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d"):
        _pool(program, node, src, dst, shapes, source, isa)
    elif node.op in ("concat", "gather_channels"):
        rescale = Node(node.name, "rescale", (), node.attrs)
        tables = [lookup(rescale, graph[s].attrs["quant"]) for s in node.inputs]
        channels = range(shapes[node.name][3]) if node.op == "concat" else node.attrs["index"]
        program.gather_u8(node.name, [ids[s] for s in node.inputs], tables, dst, list(channels))
    elif node.op == "softmax":
        program.softmax_u8(node.name, src, dst, softmax_table(source), y.scale)
    else:
        raise ModelError(f"node {node.name!r}: op {node.op!r} has no quantised kernel")


def _convolution(
    program: _native.Program,
    node: Node,
    src: int,
    dst: int,
    shapes: Mapping[str, Shape],
    packed: tuple[_native.PackedU8, str],
    bounds: tuple[int, int, int],
    after: _After,
) -> None:
    _, h, w, _ = shapes[node.inputs[0]]
    stride, dilation, top, left = (1, 1), (1, 1), 0, 0
    if node.op == "conv2d":
        top, _, left, _ = resolve_padding(node, h, w)
        stride, dilation = node.attrs["stride"], node.attrs.get("dilation", (1, 1))
    weights, isa = packed
    spec = _native.ConvU8Spec(weights, stride, dilation, (top, left), bounds)
    program.conv_u8(isa, after.name or node.name, src, dst, spec, after.table, after.sum)


@dataclass(frozen=True)
class _After:
    """What is done to the bytes of a convolution at once: see conv_u8 of the native Program."""

    name: str = ""  # of the whole step
    table: np.ndarray | None = None
    sum: tuple[int, int, tuple[int, int, int], tuple[int, int, int]] | None = None


def _after(graph: Graph, node: Node, behind: Node, ids: Mapping[str, int]) -> _After:
    name = f"{node.name} + {behind.name}"
    own: Quant = node.attrs["quant"]
    if behind.op != "add":
        return _After(name, table=np.ascontiguousarray(lookup(behind, own), np.uint8))
    y: Quant = behind.attrs["quant"]
    other = next(s for s in behind.inputs if s != node.name)
    factors = add_multipliers(own, graph[other].attrs["quant"], y)
    bounds = (y.zero, *y.bounds(behind.activation))
    return _After(name, sum=(ids[other], own.zero, factors, bounds))


def fuse(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, tuple[Node, ...]]:
    """By the name of its last node: a convolution or dense layer of bytes, and a function of one byte or the sum with
    another map of bytes that alone reads it."""
    readers = graph.consumers()
    found: dict[str, tuple[Node, ...]] = {}
    for node in graph.nodes:
        behind = readers[node.name]
        if node.op not in ("conv2d", "dense") or not quantized(node) or len(behind) != 1 or node.name == graph.output:
            continue
        after = behind[0]
        if not quantized(after) or after.name in found:
            continue
        if after.op == "add":
            others = [s for s in after.inputs if s != node.name]
            fits = len(others) == 1 and quantized(graph[others[0]]) and shapes[others[0]] == shapes[node.name]
            fits = fits and "rounding" not in after.attrs  # it is not the sum that runs behind a convolution
        else:
            fits = after.op in ("activation", "lookup", "quantize")
        if fits:
            found[after.name] = (node, after)
    return found


def _pool(
    program: _native.Program,
    node: Node,
    src: int,
    dst: int,
    shapes: Mapping[str, Shape],
    source: Quant,
    isa: str,
) -> None:
    x, y = shapes[node.inputs[0]], node.attrs["quant"]
    if node.op == "max_pool2d" and y != source:
        raise ModelError(f"node {node.name!r}: max_pool2d needs the same scale and zero at both ends")
    if node.op == "global_avg_pool":
        rows, columns = [(0, x[1], float(x[1]))], [(0, x[2], float(x[2]))]
    else:
        rows, columns = pool_spans(node, x, shapes[node.name])
    rule, added = "max" if node.op == "max_pool2d" else "requantize", 0
    if "rounding" in node.attrs:  # e.g. mean_s8: of codes from which 128 was taken
        rule, _, codes = node.attrs["rounding"].partition("_")
        added = 128 if codes == "s8" else 0
    program.pool_u8(isa, node.name, src, dst, rule, added, source.scale, y.scale, rows, columns)


def _input(program: _native.Program, graph: Graph, node: Node, dst: int, isa: str) -> None:
    """Pixels become bytes by a table for each channel: preprocessing, the input's mean and std, quantisation."""
    quant: Quant = node.attrs["quant"]
    c = graph.input_channels
    mean, std = (np.broadcast_to(np.asarray(node.attrs.get(k, v), np.float64), (c,)) for k, v in _NEUTRAL)
    tables = []
    if c == 3:
        p = graph.preprocess
        for i in range(3):
            real = (np.arange(256) - np.float64(p.mean[i])) / np.float64(p.std[i])
            tables.append(quant.quantize((real - mean[i]) / std[i]))
        if all(np.array_equal(t, np.arange(256)) for t in tables):
            tables = []
    own = "mean" in node.attrs
    swap = c == 3 and graph.preprocess.channels == "bgr"
    means, stds = (mean.tolist(), std.tolist()) if own else ([], [])
    program.input_u8(isa, dst, tables, means, stds, quant.scale, swap)


_NEUTRAL = (("mean", 0.0), ("std", 1.0))
