"""What of an ONNX file is translated so far, and how its operators get at their inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import ModelError
from ..graph import MAX_INPUTS, OPS, Activation, Node
from ..quantization import Quant
from ._limits import MAX_FILE_ELEMENTS
from ._text import quote
from .onnx_operator import Operator
from .onnx_schema import OnnxFile
from .onnx_shapes import integers
from .onnx_tensors import FLOATS, MAX_RANK, dtype_name
from .onnx_values import NO_PAD, Coded, Constant, Value

#: A sequence of tensors is a tuple.
Tensor = Value | Constant | tuple[Value, ...]

#: What may follow a Pending of each kind.
_SUPPORTED = {
    "pad": "a Pad before a convolution or a pool",
    "mean": "the mean over the other of height and width",
    "expand": "an Expand before an Add or a Mul",
}
ANY_PENDING = tuple(_SUPPORTED)

#: Ops that compute nothing with their inputs' values, which may be codes.
_OF_CODES = ("concat", "gather_channels", "max_pool2d")
#: Changes nothing.
_ANY = Activation("clamp")

#: What a channel that is spelled out costs, in elements of constants: a number of 8 bytes in arrays, made a few times;
#: or in a tuple.
_COST_OF_CHANNEL = 4
_COST_OF_INDEX = 16
#: And what a node costs, in steps; an operator with many inputs becomes many nodes.
_COST_OF_NODE = 5


@dataclass(frozen=True)
class Bytes:
    """What the codes of a tensor stand for. ``signed``: in the file they are int8."""

    quant: Quant
    signed: bool


class Translation:
    """The nodes so far, and what in them the tensors of the file are.

    ``dynamic`` says that the file leaves the picture's size open. ``quantized``: what the file computes on bytes the
    nodes do too; else it is dequantised. ``bytes``: the nodes that stand for tensors of codes.
    """

    def __init__(self, file: OnnxFile, dynamic: bool, quantized: bool = True) -> None:
        self.file = file
        self.dynamic = dynamic
        self.quantized = quantized
        self.bytes: dict[str, Bytes] = {}
        self.nodes: dict[str, Node] = {}
        self._reals: dict[tuple[str, Bytes], str] = {}
        self._tensors: dict[str, Tensor] = {}
        self._left_out: dict[str, Operator] = {}
        self._gathered: dict[tuple[object, ...], str] = {}

    def input(self, name: str, axes: str, sizes: tuple[int, int, int, int]) -> None:
        self.nodes[name] = Node(name, "input")
        self._tensors[name] = Value(((name, sizes[3]),), tuple(axes), _checked(name, sizes), name)

    def define(self, operator: Operator, results: Sequence[Tensor]) -> None:
        """The outputs of an operator. Those that are missing in ``results`` are not known: a Dropout's mask."""
        for name, result in zip(operator.outputs, results, strict=False):
            if isinstance(result, Value):
                if len(result.axes) > MAX_RANK:
                    operator.fail(f"its output has rank {len(result.axes)}; at most {MAX_RANK} is read")
                self.file.allowance.take(len(result.nodes) + (0 if result.channels is None else result.channels.size))
            self._tensors[name] = replace(result, name=name) if isinstance(result, Value) else result
        self._left_out |= dict.fromkeys(operator.outputs[len(results) :], operator)

    def knows(self, name: str) -> bool:
        return name in self._tensors or self.file.is_initializer(name)

    def output(self, name: str) -> Value | None:
        """The tensor, as all of one node's output; None where it is no such."""
        found = self._tensors.get(name)
        return self.whole(found) if isinstance(found, Value) and found.pending is None else None

    # --- what the operators use --------------------------------------------------------------------------

    def tensor(self, operator: Operator, k: int) -> Tensor | None:
        """Input ``k``, None where it is left out."""
        name = operator.inputs[k] if k < len(operator.inputs) else ""
        if not name:
            return None
        if name not in self._tensors and self.file.is_initializer(name):
            self._tensors[name] = Constant(self.file.initializer(name), f"initializer {quote(name)}")
        if name in self._left_out:
            operator.fail(f"input {k} is an output of {self._left_out[name]} that is not supported")
        if name not in self._tensors:
            operator.fail(f"input {k}, {quote(name)}, is not computed before it")
        return self._tensors[name]

    def view(self, operator: Operator, k: int = 0, *, pending: Sequence[str] = (), codes: bool = False) -> Value:
        """Input ``k``, computed from the picture, for an operator that computes nothing. Only what ``pending`` names
        may still be left to do. It holds real numbers, unless the operator takes ``codes`` too."""
        found = self.tensor(operator, k)
        if not isinstance(found, Value):
            kind = "missing" if found is None else "a sequence" if isinstance(found, tuple) else "a constant"
            operator.fail(f"input {k} is {kind} and should be computed")
        if found.pending is not None and found.pending.kind not in pending:
            raise ModelError(
                f"{found.pending.operator} is followed by {operator.kind}; supported is "
                + _SUPPORTED[found.pending.kind]
            )
        if not codes and any(node in self.bytes for node, _ in found.nodes):
            operator.fail(f"input {k} holds codes of bytes; supported are a DequantizeLinear, and QLinear operators")
        return found

    def value(self, operator: Operator, k: int = 0, *, pending: Sequence[str] = (), codes: bool = False) -> Value:
        """Input ``k``, computed from the picture, as all of one node's output."""
        return self.whole(self.view(operator, k, pending=pending, codes=codes))

    def real(self, operator: Operator, name: str, meaning: Bytes) -> str:
        """The node whose floats are what the codes of the node ``name`` stand for. The codes may have been made with
        another scale: then they mean something else from here on."""
        key = name, meaning
        if key not in self._reals:
            before = self.bytes[name].quant
            if self.quantized:
                source = name if before == meaning.quant else self._relabelled(name, meaning)
                self._reals[key] = self._append(Node(f"{name}/real", "dequantize", (source,)))
            elif before == meaning.quant:
                self._reals[key] = self._append(Node(f"{name}/real", "activation", (name,), {"activation": _ANY}))
            else:
                operator.fail("its scale or zero point is not that with which its input was quantised")
        return self._reals[key]

    def _of_codes(self, node: Node) -> tuple[Node, Bytes]:
        """A node that picks or joins codes, which stay what they are: all get the meaning of those of its first
        input."""
        found = [self.bytes.get(name) for name in node.inputs]
        first = found[0]
        if first is None or any(b is None or b.signed != first.signed for b in found):
            raise ModelError(
                f"tensor {quote(node.name)} joins codes of bytes with floats or with codes of another type"
            )
        if self.quantized:
            inputs = [n if self.bytes[n] == first else self._relabelled(n, first) for n in node.inputs]
            return replace(node, inputs=tuple(inputs), attrs={**node.attrs, "quant": first.quant}), first
        if any(b != first for b in found):
            raise ModelError(f"tensor {quote(node.name)} joins codes of different scales, which cannot be dequantised")
        return node, first

    def _relabelled(self, name: str, meaning: Bytes) -> str:
        """A node of the same codes with another meaning."""
        table = {"table": np.arange(256, dtype=np.uint8)}
        node = self._append(Node(f"{name}/codes", "lookup", (name,), {"quant": meaning.quant}, table))
        self.bytes[node] = meaning
        return node

    def charge(self, value: Value) -> None:
        """To be called before an operator spells out which channels the value has."""
        self.file.allowance.take(_COST_OF_CHANNEL * value.sizes[3])

    def whole(self, value: Value) -> Value:
        """The value as all of one node's output, in order. The node is made if there is none."""
        if value.channels is None and len(value.nodes) == 1:
            return value
        channels = value.channels
        self.file.allowance.take(len(value.nodes) + (0 if channels is None else channels.size))
        key = (value.nodes, None if channels is None else channels.tobytes())
        if key not in self._gathered:
            self._gathered[key] = self._gather(value)
        if channels is not None:
            channels = np.arange(channels.size).reshape(channels.shape) if channels.ndim > 1 else None
        return replace(value, nodes=((self._gathered[key], value.sizes[3]),), channels=channels)

    def _gather(self, value: Value) -> str:
        """The name of a node that has the value's channels. Maps of which it has none are left out."""
        _checked(value.name, value.sizes)
        if len(value.nodes) > MAX_INPUTS:
            raise ModelError(f"tensor {quote(value.name)} joins {len(value.nodes)} maps; at most {MAX_INPUTS} are")
        names, counts = zip(*value.nodes, strict=True)
        if value.channels is None:
            return self._append(Node(value.name, "concat", names))
        index = value.channels.reshape(-1)
        self.file.allowance.take(_COST_OF_INDEX * index.size)
        ends = np.cumsum(counts)
        source = np.searchsorted(ends, index, "right")
        used = {names[k]: counts[k] for k in np.unique(source)}
        starts = dict(zip(used, np.cumsum([0, *used.values()]), strict=False))
        index = index + (np.array([starts.get(name, 0) for name in names]) - (ends - counts))[source]
        if np.array_equal(index, np.arange(sum(used.values()))):
            return next(iter(used)) if len(used) == 1 else self._append(Node(value.name, "concat", tuple(used)))
        taken = {"index": tuple(index.tolist())}
        return self._append(Node(value.name, "gather_channels", tuple(used), taken))

    def constant(self, operator: Operator, k: int) -> Constant | None:
        """Input ``k``, which must be known when the file is read; None where it is left out."""
        found = self.tensor(operator, k)
        if isinstance(found, (Value, tuple)):
            operator.fail(f"input {k} is computed from the picture; it must be a constant")
        if found is not None and found.sized is not None:
            self.file.allowance.take(found.sized.size)
            if found.sized.any():
                operator.fail(f"input {k} depends on the size of the picture; export with a fixed size")
        return found

    def parameters(self, operator: Operator) -> list[np.ndarray | None]:
        """All inputs but the first, constants, as the functions of onnx_shapes.py want them."""
        found = [self.constant(operator, k) for k in range(1, len(operator.inputs))]
        return [None, *(None if c is None else c.array for c in found)]

    def integers(self, operator: Operator, k: int) -> list[int] | None:
        found = self.constant(operator, k)
        return None if found is None else integers(operator, k, [None] * k + [found.array])

    def scalar(self, operator: Operator, k: int) -> float | None:
        """Input ``k``, a constant number; infinite ones are allowed, for bounds."""
        found = self.constant(operator, k)
        if found is None:
            return None
        if found.array.size != 1 or found.array.dtype.kind not in "fiub":
            operator.fail(f"input {k} should be one number, not {found.array.dtype} {list(found.array.shape)}")
        return float(found.array.reshape(-1)[0])

    def weight(self, operator: Operator, k: int, rank: int | None = None, order: Sequence[int] = ()) -> np.ndarray:
        """Constant input ``k``, the weights of a layer, as a new array of float32, with its axes in this order. Not
        finite: ModelError with its name."""
        found = self.constant(operator, k)
        if found is None:
            operator.fail(f"input {k} is missing")
        array = found.array
        if rank is not None and array.ndim != rank:
            operator.fail(f"input {k} must have rank {rank}, not the shape {list(array.shape)}")
        if array.dtype.kind != "f" or not array.size:
            kinds = ", ".join(map(dtype_name, FLOATS))
            operator.fail(f"input {k} holds {array.size} numbers of {array.dtype}; supported are {kinds}")
        self.file.allowance.take(array.size)
        with np.errstate(over="ignore", invalid="ignore"):  # found by the check for finite values
            converted = np.array(array.transpose(order or range(array.ndim)), np.float32, order="C")
        if not np.isfinite(converted).all():
            raise ModelError(f"{found.name}: weights that are infinite or not a number, read by {operator}")
        return converted

    def coded(self, operator: Operator, k: int, axis: int) -> Coded | None:
        """How constant input ``k``, the weights of a layer, was stored, if it has one scale or one for each of its
        outputs, which lie along ``axis``."""
        found = self.constant(operator, k)
        coded = None if found is None else found.coded
        fits = coded is not None and (coded.scale.size == 1 or coded.axis == axis)
        return coded if fits else None

    def emit(
        self,
        operator: Operator,
        op: str,
        *inputs: Value,
        params: dict[str, np.ndarray] | None = None,
        name: str | None = None,
        **attrs: object,
    ) -> Value:
        """Appends the node that computes the operator's output from the outputs of single nodes. It has the axes of
        the first input."""
        node = Node(name or operator.outputs[0], op, tuple(v.nodes[0][0] for v in inputs), attrs, params or {})
        sizes = _checked(node.name, OPS[op].shape(node, [v.sizes for v in inputs]))
        nodes = ((self._append(node), sizes[3]),)
        return replace(inputs[0], nodes=nodes, sizes=sizes, pixel=_is_pixel(node, inputs), pending=None)

    def _append(self, node: Node) -> str:
        self.file.allowance.step(_COST_OF_NODE)
        codes: Bytes | None = None
        if node.op in _OF_CODES and any(name in self.bytes for name in node.inputs):
            node, codes = self._of_codes(node)
        while node.name in self.nodes:  # a tensor that is named like a part of a Sum
            node = replace(node, name=node.name + "'")
        self.nodes[node.name] = node
        if codes is not None:
            self.bytes[node.name] = codes
        return node.name


def _is_pixel(node: Node, inputs: Sequence[Value]) -> bool:
    if node.op in ("global_avg_pool", "dense"):
        return True
    keeps_size = node.op not in ("avg_pool2d", "max_pool2d")
    if node.op == "conv2d":
        keeps_size = node.params["weight"].shape[1:3] == (1, 1) and node.attrs["padding"] in (NO_PAD, "same")
    return keeps_size and all(v.pixel for v in inputs)


def _checked(name: str, sizes: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    if math.prod(sizes) > MAX_FILE_ELEMENTS:
        raise ModelError(f"tensor {quote(name)}: {sizes} (batch, height, width, channels) is too large")
    return sizes
