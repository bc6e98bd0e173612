"""Quantised ONNX files: QuantizeLinear and DequantizeLinear, and the operators that are taken apart into them.

A network quantised for ONNX Runtime comes in one of two forms. QDQ: the operators of a float network, each between
DequantizeLinear and QuantizeLinear. QOperator: operators on bytes, such as QLinearConv, which are defined as just that:
their inputs dequantised, the float operator, its output quantised. Here the second form becomes the first (each such
operator is translated as its three parts), and a QuantizeLinear and a DequantizeLinear become nodes;
onnx_bytes.py then joins what belongs together into nodes that compute on bytes.

A tensor of int8 has 128 added to its codes and its zero point, which changes no real number.

With ``Translation.quantized`` False the network is dequantised: weights are real numbers, a QuantizeLinear only cuts
off what is beyond the range of its codes (that is how quantisers leave out a ReLU), and nothing is rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ModelError
from ..graph import Activation
from ..quantization import Quant
from . import onnx_layers as layers
from . import onnx_views as views
from .onnx_operator import Operator
from .onnx_tensors import FLOATS, dtype_name
from .onnx_translation import Bytes, Translation
from .onnx_values import Coded, Constant, Value

#: Types of codes, and their numbers in TensorProto.DataType.
_CODES = {np.dtype(np.uint8): 2, np.dtype(np.int8): 3}

#: A float operator, translated: what the middle part of a quantised operator does.
Inner = Callable[[Translation, Operator], Any]


# --- scales and zero points -----------------------------------------------------------------------------


def _scales(t: Translation, operator: Operator, k: int) -> np.ndarray:
    """Input ``k``, one positive scale or several: float32 (n,)."""
    found = t.constant(operator, k)
    if found is None:
        operator.fail(f"input {k}, a scale, is missing")
    if found.array.dtype.kind != "f" or found.array.ndim > 1 or not found.array.size:
        operator.fail(f"input {k} should be a scale, or a list of such, not {_kind(found)}")
    with np.errstate(over="ignore"):
        scale = found.array.reshape(-1).astype(np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        operator.fail(f"input {k} has a scale that is no positive number")
    return scale


def _kind(found: Constant) -> str:
    return f"{found.array.dtype} {list(found.array.shape)}"


def _zeros(t: Translation, operator: Operator, k: int, count: int) -> np.ndarray | None:
    """Input ``k``, the zero points for ``count`` scales, in the type of the codes; None where it is left out."""
    found = t.constant(operator, k)
    if found is None:
        return None
    if found.array.size not in (1, count) or found.array.ndim > 1 or found.array.dtype.kind not in "iu":
        operator.fail(f"input {k}, {_kind(found)}, is no zero point for {count} scale{'s' * (count > 1)}")
    return found.array.reshape(-1)


def _bytes(t: Translation, operator: Operator, k: int, dtype: int | None = None) -> Bytes:
    """What the codes of a tensor computed from the picture stand for: inputs ``k`` and ``k`` + 1 are its scale and its
    zero point. ``dtype``: the type of the codes where the zero point is left out; uint8 by default."""
    scale = _scales(t, operator, k)
    zero = _zeros(t, operator, k + 1, scale.size)
    if scale.size != 1 or (zero is not None and zero.size != 1):
        operator.fail(f"input {k} has {scale.size} scales; supported is one for a tensor that is computed")
    if zero is None:
        if dtype is not None and dtype not in _CODES.values():
            operator.fail(f"codes of {dtype_name(dtype)} are not supported; uint8 and int8 are")
        zero = np.zeros(1, np.int8 if dtype == _CODES[np.dtype(np.int8)] else np.uint8)
    if zero.dtype not in _CODES:
        operator.fail(f"codes of {zero.dtype} are not supported for what is computed; uint8 and int8 are")
    signed = zero.dtype == np.int8
    try:
        return Bytes(Quant(float(scale[0]), int(zero[0]) + 128 * signed), signed)
    except ModelError as error:
        operator.fail(str(error))


# --- the two operators ----------------------------------------------------------------------------------


def quantize_linear(t: Translation, operator: Operator) -> Value | Constant:
    x = t.tensor(operator, 0)
    _refuse_blocks(operator)
    if isinstance(x, Constant):
        return _quantized_constant(t, operator, x)
    value = t.view(operator, pending=("pad",))
    kind = operator.integer("output_dtype") or None
    return _quantized(t, operator, value, _bytes(t, operator, 1, kind), operator.outputs[0])


def dequantize_linear(t: Translation, operator: Operator) -> Value | Constant:
    _refuse_blocks(operator)
    if operator.integer("output_dtype") not in (0, *FLOATS):
        operator.fail(f"it makes {dtype_name(operator.integer('output_dtype'))}; supported are floats")
    axis = operator.integer("axis", 1)
    if isinstance(t.tensor(operator, 0), Constant):
        return _real_constant(t, operator, 0, axis)
    return _real(t, operator, 0)


def _refuse_blocks(operator: Operator) -> None:
    if operator.integer("block_size"):
        operator.fail("scales for blocks are not supported; one for a tensor or for each channel is")


def _quantized(t: Translation, operator: Operator, x: Value, to: Bytes, name: str) -> Value:
    """The value as bytes. A Pad of zeros may be pending: 0 has a code of its own."""
    if x.pending is not None and x.pending.fill:
        operator.fail(f"the Pad before it, {x.pending.operator}, is of {x.pending.fill:g}; supported are zeros")
    pending = x.pending
    x = replace(x, pending=None)
    if len(x.nodes) != 1 or x.channels is not None:
        x = t.whole(x)
    if t.quantized:
        y = t.emit(operator, "quantize", x, name=name, quant=to.quant)
    else:
        lo, hi = (to.quant.scale * (code - to.quant.zero) for code in (0, 255))
        y = t.emit(operator, "activation", x, name=name, activation=Activation("clamp", lo, hi))
    t.bytes[y.nodes[0][0]] = to
    return replace(y, channels=x.channels, pending=pending)


def _real(t: Translation, operator: Operator, k: int) -> Value:
    """Input ``k``, bytes, as real numbers; its scale and zero point are the next two inputs."""
    x = t.view(operator, k, pending=("pad",), codes=True)
    own = {t.bytes.get(node) for node, _ in x.nodes}
    if None in own:
        operator.fail(f"input {k} holds floats; it should be made by a QuantizeLinear")
    signed = {b.signed for b in own if b is not None}
    found = _bytes(t, operator, k + 1, _CODES[np.dtype(np.int8)] if True in signed else None)
    if signed != {found.signed}:
        operator.fail(f"its zero point is not of the type of input {k}")
    return replace(x, nodes=tuple((t.real(operator, node, found), c) for node, c in x.nodes))


def _quantized_constant(t: Translation, operator: Operator, x: Constant) -> Constant:
    scale = _scales(t, operator, 1)
    zero = _zeros(t, operator, 2, scale.size)
    codes = np.uint8 if zero is None else zero.dtype
    if np.dtype(codes) not in _CODES or x.array.dtype.kind != "f":
        operator.fail(f"{_kind(x)} as codes of {np.dtype(codes)} is not supported; floats as uint8 and int8 are")
    zero = np.zeros(1, codes) if zero is None else zero
    along = _along(operator, x.array, scale, operator.integer("axis", 1))
    t.file.allowance.take(4 * x.array.size)
    with np.errstate(all="ignore"):
        q = np.rint(x.array.astype(np.float32) / scale.reshape(along)) + zero.astype(np.float32).reshape(
            along if zero.size > 1 else ()
        )
    info = np.iinfo(codes)
    return Constant(np.clip(np.nan_to_num(q), info.min, info.max).astype(codes), x.name)


def _along(operator: Operator, array: np.ndarray, scale: np.ndarray, axis: int) -> tuple[int, ...]:
    """The shape with which scales lie along an axis of the array."""
    if scale.size == 1:
        return (1,) * array.ndim
    if not -array.ndim <= axis < array.ndim or array.shape[axis] != scale.size:
        operator.fail(f"{scale.size} scales do not fit axis {axis} of {list(array.shape)}")
    return tuple(scale.size if i == axis % array.ndim else 1 for i in range(array.ndim))


def _real_constant(t: Translation, operator: Operator, k: int, axis: int, scale: np.ndarray | None = None) -> Constant:
    """Input ``k``, codes in the file, as real numbers that remember their codes. ``scale``: theirs where it is no
    input, with a zero point of 0; else it and the zero point are the next two inputs."""
    found = t.constant(operator, k)
    assert found is not None
    codes = found.array
    if codes.dtype.kind not in "iu" or codes.dtype.itemsize > 4:
        operator.fail(f"input {k} holds {_kind(found)}; supported are codes of int8, uint8, int16, uint16 and int32")
    zero: np.ndarray | None = None
    if scale is None:
        scale = _scales(t, operator, k + 1)
        zero = _zeros(t, operator, k + 2, scale.size)
        if zero is not None and zero.dtype != codes.dtype:
            operator.fail(f"its zero point is of {zero.dtype}, its codes are of {codes.dtype}")
    zero = np.zeros(1, codes.dtype) if zero is None else zero
    along = _along(operator, codes, scale, axis)
    t.file.allowance.take(3 * codes.size)
    centred = codes.astype(np.int64) - zero.astype(np.int64).reshape(along if zero.size > 1 else ())
    with np.errstate(over="ignore"):
        real = centred.astype(np.float32) * scale.reshape(along)
    coded = None
    if t.quantized:
        plain = codes.dtype == np.int32 and codes.ndim == 1 and not zero.any()
        own_zero = int(zero[0]) + 128 * (codes.dtype == np.int8) if (zero == zero[0]).all() else None
        coded = Coded(scale, axis % max(codes.ndim, 1), own_zero, codes if plain else None)
    return Constant(real, found.name, coded=coded)


# --- operators on bytes, taken apart --------------------------------------------------------------------


class Parts:
    """An operator on bytes, whose inputs become real numbers one after the other."""

    def __init__(self, t: Translation, operator: Operator) -> None:
        self.t = t
        self.operator = operator
        self._names: list[str] = []
        if operator.integer("channels_last"):
            operator.fail("channels_last is not supported: such files are made for one machine; use the original")

    def given(self, k: int) -> bool:
        return k < len(self.operator.inputs) and bool(self.operator.inputs[k])

    def add(self, tensor: Value | Constant) -> None:
        """The next input."""
        # No tensor of the file can have this name: a text has no NUL.
        name = f"{self.operator.outputs[0]}\0{len(self._names)}"
        self.t.define(self.operator.renamed(self.operator.kind, [], [name]), [tensor])
        self._names.append(name)

    def real(self, k: int, axis: int = 1) -> None:
        """The next input is input ``k``, whose scale and zero point are inputs ``k`` + 1 and ``k`` + 2."""
        if isinstance(self.t.tensor(self.operator, k), Constant):
            self.add(_real_constant(self.t, self.operator, k, axis))
        else:
            self.add(_real(self.t, self.operator, k))

    def bias(self, k: int, a: int, b: int, factor: float = 1.0) -> None:
        """The next input is input ``k``, int32, in units of the scales that are inputs ``a`` and ``b``."""
        if self.given(k):
            with np.errstate(over="ignore"):
                scale = _scales(self.t, self.operator, a) * _scales(self.t, self.operator, b) * np.float32(factor)
            bias = self.t.constant(self.operator, k)
            if bias is not None and scale.size not in (1, bias.array.size):
                self.operator.fail(f"input {k} has {bias.array.size} numbers, and there are {scale.size} scales")
            self.add(_real_constant(self.t, self.operator, k, -1, scale))

    def finish(self, kind: str, inner: Inner, y: int | None) -> Value:
        """The output of the float operator, as bytes whose scale and zero point are inputs ``y`` and ``y`` + 1; as
        floats if there is no such input."""
        part = self.operator.renamed(kind, self._names, self.operator.outputs[:1])
        value: Value = inner(self.t, part)
        if y is None or (kind == "Gemm" and not self.given(y)):
            return value
        name = f"{self.operator.outputs[0]}/quantize"
        return _quantized(self.t, self.operator, value, _bytes(self.t, self.operator, y), name)


def qlinear_conv(t: Translation, operator: Operator) -> Value:
    parts = Parts(t, operator)
    parts.real(0)
    parts.real(3, axis=0)
    parts.bias(8, 1, 4)
    return parts.finish("Conv", layers.conv, 6)


def qlinear_matmul(t: Translation, operator: Operator) -> Value:
    parts = Parts(t, operator)
    parts.real(0)
    parts.real(3, axis=-1)
    return parts.finish("MatMul", layers.matmul, 6)


def qgemm(t: Translation, operator: Operator) -> Value:
    parts = Parts(t, operator)
    parts.real(0)
    parts.real(3, axis=0 if operator.integer("transB") else 1)
    parts.bias(6, 1, 4, operator.number("alpha", 1.0))
    return parts.finish("Gemm", layers.gemm, 7)


def of_two(kind: str, inner: Inner) -> Inner:
    """QLinearAdd, QLinearMul."""

    def run(t: Translation, operator: Operator) -> Value:
        parts = Parts(t, operator)
        parts.real(0)
        parts.real(3)
        return parts.finish(kind, inner, 6)

    return run


def of_one(kind: str, inner: Inner) -> Inner:
    """QLinearSigmoid, QLinearGlobalAveragePool and their like."""

    def run(t: Translation, operator: Operator) -> Value:
        parts = Parts(t, operator)
        parts.real(0)
        return parts.finish(kind, inner, 3)

    return run


def qlinear_concat(t: Translation, operator: Operator) -> Value:
    parts = Parts(t, operator)
    for k in range(2, len(operator.inputs), 3):
        parts.real(k)
    return parts.finish("Concat", views.concat, 0)


# --- sums of integers -----------------------------------------------------------------------------------


def _centred(t: Translation, operator: Operator, k: int, zero: int) -> Value | Constant:
    """Input ``k`` of a ConvInteger or MatMulInteger less its zero point, which is input ``zero``."""
    found = t.tensor(operator, k)
    zeros = t.constant(operator, zero) if zero < len(operator.inputs) and operator.inputs[zero] else None
    if isinstance(found, Constant):
        if found.array.dtype not in _CODES:
            operator.fail(f"input {k} holds {_kind(found)}; supported are uint8 and int8")
        shift = np.zeros((), np.float32) if zeros is None else zeros.array.astype(np.float32)
        if shift.size > 1:
            along = (-1,) + (1,) * (found.array.ndim - 1) if operator.kind == "ConvInteger" else (1, -1)
            shift = shift.reshape(along)
        t.file.allowance.take(2 * found.array.size)
        try:
            centred = found.array.astype(np.float32) - shift.reshape(shift.shape if shift.size > 1 else ())
        except ValueError:
            operator.fail(f"input {zero} is no zero point for {list(found.array.shape)}")
        return Constant(centred, found.name)
    x = t.view(operator, k, pending=("pad",), codes=True)
    own = {t.bytes.get(node) for node, _ in x.nodes}
    (first,) = own if len(own) == 1 else (None,)
    if first is None:
        operator.fail(f"input {k} should be made by a QuantizeLinear, and have one scale")
    if zeros is not None and (zeros.array.size != 1 or zeros.array.dtype != (np.int8 if first.signed else np.uint8)):
        operator.fail(f"input {zero} should be one zero point of the type of input {k}")
    code = (0 if zeros is None else int(zeros.array.reshape(-1)[0])) + 128 * first.signed
    whole = Bytes(Quant(1.0, code), first.signed)
    return replace(x, nodes=tuple((t.real(operator, node, whole), c) for node, c in x.nodes))


def of_integers(kind: str, inner: Inner) -> Inner:
    """ConvInteger, MatMulInteger: the sums, as floats; what follows multiplies them by a scale."""

    def run(t: Translation, operator: Operator) -> Value:
        parts = Parts(t, operator)
        parts.add(_centred(t, operator, 0, 2))
        parts.add(_centred(t, operator, 1, 3))
        return parts.finish(kind, inner, None)

    return run
