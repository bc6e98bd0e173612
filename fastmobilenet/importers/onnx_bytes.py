"""Nodes between dequantize and quantize -> nodes that compute on bytes.

A layer all of whose inputs are dequantised and whose output is quantised at once, and read by nothing else, computes on
bytes, with the weights as they are stored; a clamp behind it goes into its bounds. What is a function of one byte, such
as a hard swish, whole or in parts that are quantised one by one, becomes a table (lookup). All else stays what it is,
between dequantize and quantize nodes, and runs in fp32.

**Rounding** is that of ONNX Runtime on x86 with AVX2: convolutions, products and means round as in reference_u8.py,
sums of two tensors by its rules "floats" (on other CPUs ONNX Runtime computes these otherwise, and so with other
bytes). Tables are computed step by step in float32, with its division by the scale. What differs by a step now and
then: pixels and floats, which are multiplied by 1 / scale here and divided by the scale there; softmax; means of
windows and concatenations of other scales; sigmoids. Codes of int8 between QuantizeLinear and DequantizeLinear are
computed in floats by ONNX Runtime on x86, unless its option session.qdqisint8allowed is set; here always on bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .. import reference_u8
from ..graph import Node
from ..quantization import Quant
from ..reference import activate
from ._gates import is_affine
from .onnx_values import Coded

#: Ops that have a form on bytes and are no function of one value.
_LAYERS = frozenset({
    "conv2d", "dense", "add", "mul", "global_avg_pool", "avg_pool2d", "adaptive_avg_pool2d", "max_pool2d", "concat",
    "gather_channels", "softmax",
})  # fmt: skip

#: Those whose values are values of their inputs.
_PICKS = ("max_pool2d", "concat", "gather_channels")

#: pack_u8 wants sums, and what becomes of them before they are clamped, below 2^30.
_LARGEST = 2.0**29

#: Of scales of the input and output of a sum: with a larger one, every difference is beyond the range of bytes.
_MAX_RATIO = 256.0

_ALL = np.arange(256, dtype=np.uint8)


def to_bytes(nodes: Sequence[Node], output: str, signed: bool) -> tuple[list[Node], str]:
    """The network with byte nodes where they are possible, without nodes that nothing needs, and its output.
    ``signed``: the file's codes are int8."""
    joining = _Joining(nodes, output, signed)
    for node in nodes:
        joining.take(node)
    output = joining.follow(output)
    needed, found = {output}, list[Node]()
    for node in reversed(joining.done.values()):
        if node.name in needed or node.op == "input":
            needed.update(node.inputs)
            found.append(node)
    return found[::-1], output


class _Joining:
    def __init__(self, nodes: Sequence[Node], output: str, signed: bool) -> None:
        self.done: dict[str, Node] = {}
        self._add_rounding = "floats_s8" if signed else "floats_u8"
        self._old = {node.name: node for node in nodes}
        self._readers = Counter(source for node in nodes for source in node.inputs)
        self._readers[output] += 1
        self._stands_for: dict[str, str] = {}  # a node that went away -> the one that has its values
        self._reals: dict[str, str] = {}  # node of bytes -> its dequantize
        self._quants: dict[str, Quant] = {}
        # Functions of one byte: node -> (the node of bytes, the value for each byte). Of nodes of bytes and of floats.
        self._tables: dict[str, tuple[str, np.ndarray]] = {}
        self._values: dict[str, tuple[str, np.ndarray]] = {}

    def follow(self, name: str) -> str:
        while name in self._stands_for:
            name = self._stands_for[name]
        return name

    def take(self, node: Node) -> None:
        inputs = tuple(map(self.follow, node.inputs))
        if node.op == "dequantize":
            self._dequantize(node, inputs[0])
        elif node.op == "quantize":
            self._quantize(node, inputs[0])
        elif "quant" in node.attrs:  # it picks, joins or relabels codes
            if node.op == "lookup":
                self._lookup(node.name, inputs[0], node.params["table"], node.attrs["quant"])
            else:
                self._append(replace(node, inputs=inputs))
        elif node.op in _PICKS and self._of_one_meaning(inputs):
            self._pick(node, inputs)
        else:
            plain = {k: v for k, v in node.attrs.items() if k != "codes"}
            self._append(replace(node, inputs=inputs, attrs=plain))
            value = self._function(node, inputs)
            if value is not None:
                self._values[node.name] = value

    def _of_one_meaning(self, names: Sequence[str]) -> bool:
        """Whether all these nodes dequantise bytes that stand for the same numbers."""
        nodes = [self.done[name] for name in names]
        return all(n.op == "dequantize" for n in nodes) and len({self._quants[n.inputs[0]] for n in nodes}) == 1

    def _pick(self, node: Node, inputs: Sequence[str]) -> None:
        """Values that are only picked or joined stay bytes, and become floats behind it."""
        name = f"{node.name}/codes"
        while name in self._old or name in self.done:
            name += "'"
        sources = tuple(self.done[i].inputs[0] for i in inputs)
        quant = self._quants[sources[0]]
        self._append(replace(node, name=name, inputs=sources, attrs={**node.attrs, "quant": quant}))
        self._dequantize(node, name)

    def _append(self, node: Node) -> None:
        self.done[node.name] = node
        if "quant" in node.attrs:
            self._quants[node.name] = node.attrs["quant"]

    def _dequantize(self, node: Node, source: str) -> None:
        if source in self._reals:
            self._stands_for[node.name] = self._reals[source]
            return
        self._reals[source] = node.name
        self._append(Node(node.name, "dequantize", (source,)))
        base, table = self._tables.get(source, (source, _ALL))
        self._values[node.name] = base, self._quants[source].dequantize(table)

    def _quantize(self, node: Node, source: str) -> None:
        quant: Quant = node.attrs["quant"]
        joined = self._joined(node.inputs[0], source, quant)
        if joined is not None:
            # Nothing else reads the layer of floats: its name is free.
            if joined.op == "lookup":
                self._lookup(node.name, joined.inputs[0], joined.params["table"], quant)
                return
            self.done.pop(joined.name, None)
            self._append(joined)
            self._stands_for[node.name] = joined.name
        elif source in self._values:
            base, values = self._values[source]
            with np.errstate(all="ignore"):
                codes = np.rint(values / np.float32(quant.scale)) + quant.zero
            table = np.clip(np.nan_to_num(codes, nan=quant.zero), 0, 255).astype(np.uint8)
            self._lookup(node.name, base, table, quant)
        else:
            self._append(replace(node, inputs=(source,)))

    def _lookup(self, name: str, source: str, table: np.ndarray, quant: Quant) -> None:
        """The bytes table[x] of the node ``source``, which may itself be a table of another node."""
        base, first = self._tables.get(source, (source, _ALL))
        table = np.ascontiguousarray(table[first])
        if quant == self._quants[base] and np.array_equal(table, _ALL):
            self._stands_for[name] = base
            return
        self._append(Node(name, "lookup", (base,), {"quant": quant}, {"table": table}))
        self._tables[name] = base, table

    # --- functions of one byte --------------------------------------------------------------------------------

    def _function(self, node: Node, inputs: Sequence[str]) -> tuple[str, np.ndarray] | None:
        """(the node of bytes, the float for each byte) of a node of floats, if it is a function of one byte."""
        if not inputs or not all(name in self._values for name in inputs):
            return None
        bases, xs = zip(*(self._values[name] for name in inputs), strict=True)
        if len(set(bases)) > 1:
            return None
        with np.errstate(all="ignore"):
            if node.op == "activation":
                y = activate(xs[0], node.activation)
            elif node.op == "batch_norm" and is_affine(node):
                gamma, beta = node.params["gamma"], node.params["beta"]
                if (gamma != gamma[0]).any() or (beta != beta[0]).any():
                    return None
                y = xs[0] * gamma[0] + beta[0]
            elif node.op in ("add", "mul") and node.activation is None:
                y = xs[0] + xs[1] if node.op == "add" else xs[0] * xs[1]
            else:
                return None
        return bases[0], y.astype(np.float32)

    # --- layers -----------------------------------------------------------------------------------------------

    def _joined(self, old: str, source: str, quant: Quant) -> Node | None:
        """The node of bytes that computes what the node ``source`` does and quantises it, if there is one."""
        node = self._old[old]
        if self._readers[old] != 1 or source != old:
            return None
        if node.op == "input":
            return replace(node, attrs={**node.attrs, "quant": quant})
        before = self._old[node.inputs[0]]
        attrs: Mapping[str, object] = {}
        if node.op == "activation" and before.op in _LAYERS and self._readers[before.name] == 1:
            activation = node.activation
            if activation is None or activation.kind != "clamp" or before.op not in ("conv2d", "dense", "add", "mul"):
                return None
            attrs, node = {"activation": activation}, before
        if node.op not in _LAYERS or not all(self.done[self.follow(s)].op == "dequantize" for s in node.inputs):
            return None
        inputs = tuple(self.done[self.follow(s)].inputs[0] for s in node.inputs)
        if "activation" in node.attrs and attrs:
            return None
        node = replace(node, inputs=inputs, attrs={**node.attrs, **attrs, "quant": quant})
        if node.op in ("conv2d", "dense"):
            return _layer(node, self._quants[inputs[0]])
        if node.op == "max_pool2d" and quant != self._quants[inputs[0]]:
            return None
        if node.op == "add" and max(self._quants[s].scale for s in inputs) <= _MAX_RATIO * quant.scale:
            node = replace(node, attrs={**node.attrs, "rounding": self._add_rounding})
        return self._of_one_byte(node) or node

    def _of_one_byte(self, node: Node) -> Node | None:
        """The table of a sum or product of two functions of one byte."""
        if node.op not in ("add", "mul"):
            return None
        known = [self._tables.get(s, (s, _ALL)) for s in node.inputs]
        if known[0][0] != known[1][0]:
            return None
        xs = [table.reshape(1, 1, 1, 256) for _, table in known]
        with np.errstate(all="ignore"):
            table = reference_u8.EXECUTE[node.op](node, [self._quants[s] for s in node.inputs], *xs).reshape(256)
        return Node(node.name, "lookup", (known[0][0],), {"quant": node.attrs["quant"]}, {"table": table})


def _layer(node: Node, x: Quant) -> Node | None:
    """A convolution or dense layer of bytes with the weights as they are stored; None where that is not possible."""
    attrs = dict(node.attrs)
    codes: tuple[Coded, Coded | None] | None = attrs.pop("codes", None)
    if codes is None or len(node.inputs) != 1:
        return None
    coded, bias = codes
    weight = node.params["weight"]
    oc, scale = len(weight), coded.scale
    if scale.size not in (1, oc) or scale.min() < 1e-30 or scale.max() > 1e30:
        return None
    exact = weight.reshape(oc, -1) / scale.reshape(-1, 1)
    centred = np.rint(exact)
    if np.abs(exact - centred).max() > 1e-3 or np.abs(centred).max() > 255:
        return None  # they were changed since
    params: dict[str, np.ndarray] = {"weight_scale": scale}
    if centred.min() >= -128 and centred.max() <= 127:
        params["weight"] = centred.astype(np.int8).reshape(weight.shape)
    elif coded.zero is not None and centred.min() + coded.zero >= 0 and centred.max() + coded.zero <= 255:
        params["weight"] = (centred + coded.zero).astype(np.uint8).reshape(weight.shape)
        attrs["weight_zero"] = coded.zero
    else:
        return None
    unit = np.float64(x.scale) * np.broadcast_to(scale, (oc,))
    added = np.zeros(oc)
    if "bias" in node.params:
        added = node.params["bias"] / unit
        if bias is not None and bias.bias is not None and bias.bias.size == oc:
            same = np.allclose(bias.bias * bias.scale.astype(np.float64), node.params["bias"], rtol=1e-5, atol=0)
            if same and np.allclose(bias.scale, unit, rtol=1e-4, atol=0):
                added = bias.bias.astype(np.float64)
        params["bias"] = np.rint(added).clip(-_LARGEST, _LARGEST).astype(np.int32)
    largest = np.abs(centred).sum(axis=1) * 255 + np.abs(added)
    y: Quant = attrs["quant"]
    if (largest >= _LARGEST).any() or (largest * unit / y.scale >= _LARGEST).any():
        return None
    return replace(node, attrs=attrs, params=params)
