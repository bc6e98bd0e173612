"""Quantised TFLite files as they are: bytes stay bytes.

The same operators become the same nodes as in tflite_ops.py and tflite_layers.py. What differs is what a tensor is: one
of int8 or uint8 with one scale is a tensor of bytes (:class:`fastmobilenet.quantization.Quant`; int8 has 128 added to
its codes and its zero point), and a node that makes one computes on bytes. So:

- Weights are taken as they are stored, biases as int32.
- What has no form on bytes, such as a number added to each channel, computes on floats, between a dequantize and a
  quantize.
- Ops of one byte behind each other, also those that split and join again, as the parts of a hard swish, become one
  table (lookup): each of them rounds in it as it would alone.
- The output of the network is dequantised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from .. import reference_u8
from ..errors import ModelError
from ..graph import Activation, Node, Shape
from ..quantization import Quant
from . import tflite_tables
from .tflite_detection import POSTPROCESS
from .tflite_schema import Operator, Tensor, TfliteFile
from .tflite_translation import Translation, Value, named_activation, shape4

_BYTES = np.arange(256, dtype=np.uint8).reshape(1, 1, 1, 256)


def quant_of(tensor: Tensor) -> Quant | None:
    """What the bytes of a tensor stand for; None if it holds real numbers, or bytes that no Quant describes."""
    q = tensor.quantization
    if q is None or tensor.dtype.itemsize != 1 or q.scale.size != 1:
        return None
    try:
        return Quant(float(q.scale[0]), int(q.zero_point[0]) - int(np.iinfo(tensor.dtype).min))
    except ModelError:
        return None


class QuantizedTranslation(Translation):
    """A Translation whose nodes compute on bytes where the file does."""

    def __init__(self, file: TfliteFile) -> None:
        super().__init__(file)
        self._quants: dict[str, Quant] = {}  # of the nodes that make bytes
        # Nodes that are a function of one byte: (the node that makes that byte, the function).
        self._functions: dict[str, tuple[str, np.ndarray]] = {}
        self._floats: dict[str, str] = {}  # node that makes bytes -> its dequantize

    def nodes(self, output: str) -> list[Node]:
        """Those that lead to ``output``; of parts that became a table, nothing is left."""
        needed = {output}
        for node in reversed(self.builder.nodes):
            if node.name in needed or node.op == "input":
                needed.update(node.inputs)
        return [n for n in self.builder.nodes if n.name in needed or n.op == "input"]

    def output(self, index: int) -> str:
        return self._float(super().output(index))

    def define(self, operator: Operator, output: int, value: Value) -> None:
        """An operator that makes no node gives the same bytes another meaning, or makes floats of them or bytes of
        floats."""
        tensor = self.file.tensor(operator.outputs[output])
        if value.rows:
            parts = [replace(tensor, name=f"{tensor.name}/{i}") for i in range(len(value.rows))]
            rows = zip(parts, value.rows, strict=True)
            value = replace(value, rows=tuple((self._as(operator, part, node), k) for part, (node, k) in rows))
        elif operator.kind != POSTPROCESS:
            if self._quants.get(value.node) != quant_of(tensor):
                value = self.plain(value)
            value = replace(value, node=self._as(operator, tensor, value.node))
        super().define(operator, output, value)

    def _as(self, operator: Operator, tensor: Tensor, x: str) -> str:
        """The node that has the values of ``x`` as ``tensor`` holds them."""
        before, after, shape = self._quants.get(x), quant_of(tensor), self.declared[x]
        if before == after:
            return x
        if after is None:
            node = self._float(x)
        elif before is None:
            node = self._append("quantize", tensor, shape, x)
        else:
            table = _BYTES.reshape(256)
            if operator.kind == "QUANTIZE":
                same_type = self.file.tensor(self.index(operator, 0)).dtype == tensor.dtype
                table = tflite_tables.rescale(before, after, same_type)
            elif operator.kind == "CONCATENATION":  # of rows: what it does to the bytes of each of its inputs
                joined = Node("", "concat", (), {"quant": after})
                table = reference_u8.EXECUTE["concat"](joined, [before], _BYTES).reshape(256)
            node = self._lookup(tensor, shape, x, table)
        self._note_scaled(x, node)
        return node

    def real(self, node: str) -> str:
        return self._float(node)

    # --- weights ------------------------------------------------------------------------------------------

    def weight(self, operator: Operator, rank: int) -> tuple[np.ndarray, Tensor]:
        stored = self._stored_weight(operator)
        if stored is None or len(stored.shape) != rank:
            return super().weight(operator, rank)
        return _unsigned(self.file.codes(stored.index), _zero(stored)), stored

    def bias(self, operator: Operator, weight: Tensor) -> dict[str, np.ndarray]:
        if self._stored_weight(operator) is None or weight.quantization is None:
            return super().bias(operator, weight)
        params = {"weight_scale": weight.quantization.scale.astype(np.float32)}
        if _has_bias(operator):
            params["bias"] = self.file.codes(operator.inputs[2]).reshape(-1).astype(np.int32)
        return params

    def _stored_weight(self, operator: Operator) -> Tensor | None:
        """Input 1, if the operator can compute on bytes with it as it is stored."""
        index = self.index(operator, 1)
        if index in self.constants or index in self.values:
            return None
        source, target = (self.file.tensor(i) for i in (self.index(operator, 0), operator.outputs[0]))
        weight = self.file.tensor(index)
        axis = 3 if operator.kind == "DEPTHWISE_CONV_2D" else 0
        if quant_of(source) is None or quant_of(target) is None or not _is_stored(weight, axis):
            return None
        if _has_bias(operator) and self.file.tensor(operator.inputs[2]).dtype != np.int32:
            return None
        return weight

    def fused(self, operator: Operator, field: int) -> Activation | None:
        if quant_of(self.file.tensor(operator.outputs[0])) is None:
            return super().fused(operator, field)
        return named_activation(operator, field)  # no byte is beyond the range of bytes

    def _identity(self, tensor: Tensor) -> dict[str, np.ndarray]:
        if quant_of(tensor) is None:
            return super()._identity(tensor)
        weight = np.ones((shape4(tensor)[3], 1, 1, 1), np.int8)
        return {"weight": weight, "weight_scale": np.ones(1, np.float32)}

    # --- nodes --------------------------------------------------------------------------------------------

    def emit(
        self,
        operator: Operator,
        op: str,
        *inputs: str,
        activation: Activation | None = None,
        params: dict[str, np.ndarray] | None = None,
        output: int = 0,
        **attrs: object,
    ) -> Value:
        if params is not None and "weight" in params and params["weight"].dtype == np.uint8:
            attrs["weight_zero"] = _zero(self.file.tensor(self.index(operator, 1)))
        if op in ("avg_pool2d", "global_avg_pool"):
            tensor = self.file.tensor(operator.outputs[output])
            if operator.kind == "MEAN" or self._quants.get(inputs[0]) == quant_of(tensor):
                rule = "mean" if operator.kind == "MEAN" else "average"
                attrs["rounding"] = f"{rule}_{'u8' if tensor.dtype == np.uint8 else 's8'}"
        return super().emit(operator, op, *inputs, activation=activation, params=params, output=output, **attrs)

    def affine(self, operator: Operator, x: Value, scale: np.ndarray, shift: np.ndarray) -> Value:
        """One number that is added to bytes, taken off them or multiplies them, by the rule for two tensors."""
        tensor = self.file.tensor(operator.outputs[0])
        quant = quant_of(tensor)
        k = next(k for k in (0, 1) if self.constant_index(self.index(operator, k)) is not None)
        number = self.file.tensor(operator.inputs[k])
        meaning = quant_of(number)
        one = int(np.prod(number.shape)) == 1 and operator.kind in ("ADD", "SUB", "MUL")
        if quant is None or meaning is None or not one or x.node not in self._quants:
            return super().affine(operator, x, scale, shift)
        code = int(self.file.codes(number.index).reshape(-1)[0]) - int(np.iinfo(number.dtype).min)
        node = Node(tensor.name, "mul" if operator.kind == "MUL" else "add", (), {"quant": quant})
        quants, sources = [self._quants[x.node], meaning], [_BYTES, np.full_like(_BYTES, code)]
        if k == 0:
            quants, sources = quants[::-1], sources[::-1]
        if operator.kind == "SUB":  # a + -b, where the byte 255 - b stands for -b
            quants[1], sources[1] = replace(quants[1], zero=255 - quants[1].zero), 255 - sources[1]
        with np.errstate(all="ignore"):  # a damaged file may have any scales
            table = reference_u8.EXECUTE[node.op](node, quants, *sources).reshape(256)
        y = self._lookup(tensor, shape4(tensor), x.node, table)
        self.raw = self._note_scaled(x.node, y) or self.raw
        return Value(y)

    def _note_scaled(self, x: str, y: str) -> bool:
        """Whether the node ``x`` only scales the input; then ``y``, of which it is the source, does too."""
        if x in self._scaled:
            self._scaled.add(y)
        return x in self._scaled

    def _append(
        self,
        op: str,
        tensor: Tensor,
        shape: Shape,
        *inputs: str,
        params: dict[str, np.ndarray] | None = None,
        **attrs: object,
    ) -> str:
        quant = quant_of(tensor)
        if op == "quantize" and quant is not None and inputs[0] not in self._quants:
            return self._bytes(op, tensor, shape, *inputs, quant=quant)
        if quant is None or not (op == "input" or self._computes_on_bytes(op, quant, inputs, params, attrs)):
            floats = [self._float(name) for name in inputs]
            attrs.pop("rounding", None)
            if quant is None:
                return super()._append(op, tensor, shape, *floats, params=params, **attrs)
            inner = replace(tensor, name=f"{tensor.name}/float")
            real = super()._append(op, inner, shape, *floats, params=params, **attrs)
            return self._bytes("quantize", tensor, shape, real, quant=quant)
        if op == "activation":
            own = tflite_tables.activation(cast(Activation, attrs["activation"]), self._quants[inputs[0]], quant)
            if own is not None:
                return self._lookup(tensor, shape, inputs[0], own)
        function = self._function(op, quant, inputs, attrs)
        if function is not None:
            base, table = function
            if any(name != base for name in inputs) or len(inputs) > 1:
                return self._lookup(tensor, shape, base, table)
        name = self._bytes(op, tensor, shape, *inputs, params=params, quant=quant, **attrs)
        if function is not None:
            self._functions[name] = function
        return name

    def _computes_on_bytes(
        self,
        op: str,
        quant: Quant,
        inputs: Sequence[str],
        params: dict[str, np.ndarray] | None,
        attrs: dict[str, object],
    ) -> bool:
        if op not in reference_u8.EXECUTE or not all(name in self._quants for name in inputs):
            return False
        if op == "max_pool2d":
            return self._quants[inputs[0]] == quant
        return (op not in ("conv2d", "dense") or "weight_scale" in (params or {})) and not attrs.get("count_padding")

    def _function(
        self, op: str, quant: Quant, inputs: Sequence[str], attrs: dict[str, object]
    ) -> tuple[str, np.ndarray] | None:
        """(the node, the table) of an op whose output is a function of one byte that a node makes; or None."""
        if op not in ("activation", "add", "mul"):
            return None
        known = [self._functions.get(name, (name, _BYTES.reshape(256))) for name in inputs]
        base = known[0][0]
        if any(name != base for name, _ in known):
            return None
        node = Node("", op, (), attrs | {"quant": quant})
        sources = [table.reshape(_BYTES.shape) for _, table in known]
        with np.errstate(all="ignore"):
            table = reference_u8.EXECUTE[op](node, [self._quants[name] for name in inputs], *sources)
        return base, table.reshape(256)

    def _lookup(self, tensor: Tensor, shape: Shape, x: str, table: np.ndarray) -> str:
        """The bytes table[x]."""
        quant = quant_of(tensor)
        assert quant is not None
        self.file.spend(len(table))
        base, first = self._functions.get(x, (x, _BYTES.reshape(256)))
        name = self._bytes("lookup", tensor, shape, base, params={"table": table[first]}, quant=quant)
        self._functions[name] = base, table[first]
        return name

    def _bytes(
        self,
        op: str,
        tensor: Tensor,
        shape: Shape,
        *inputs: str,
        quant: Quant,
        params: dict[str, np.ndarray] | None = None,
        **attrs: object,
    ) -> str:
        name = super()._append(op, tensor, shape, *inputs, params=params, quant=quant, **attrs)
        self._quants[name] = quant
        return name

    def _float(self, name: str) -> str:
        """The node whose floats are those of the node ``name``."""
        if name not in self._quants:
            return name
        if name not in self._floats:
            real = self.builder.add("dequantize", name, name=f"{name}/real")
            self.declared[real] = self.declared[name]
            self._names.add(real)
            self._floats[name] = real
        return self._floats[name]


def _has_bias(operator: Operator) -> bool:
    return len(operator.inputs) > 2 and operator.inputs[2] >= 0


def _is_stored(weight: Tensor, axis: int) -> bool:
    """Whether weights are bytes with one zero point, and one scale or one for each output channel (along ``axis``)."""
    q = weight.quantization
    if q is None or weight.dtype.itemsize != 1 or (q.scale.size > 1 and q.axis != axis):
        return False
    zero = q.zero_point + (128 if weight.dtype == np.int8 else 0)
    return bool((zero == zero[0]).all()) and 0 <= zero[0] <= 255 and float(q.scale.max()) < 1e30


def _zero(weight: Tensor) -> int:
    """The zero point of weights as :func:`_unsigned` gives them."""
    assert weight.quantization is not None
    zero = int(weight.quantization.zero_point[0])
    return zero if weight.dtype == np.uint8 else zero + 128


def _unsigned(codes: np.ndarray, zero: int) -> np.ndarray:
    """Weights as int8 if their zero point is 0 there, else as uint8."""
    if codes.dtype == np.int8 and zero != 128:
        codes = (codes.astype(np.int16) + 128).astype(np.uint8)
    return codes
