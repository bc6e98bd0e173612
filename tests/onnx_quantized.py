"""Writes quantised ONNX files for tests: the same layers in both forms, QDQ and QOperator (QLinear...)."""

from __future__ import annotations

from typing import Any

import numpy as np

from .onnx_files import OnnxWriter

#: What of an operator's name is left when it computes on bytes: domain and kind.
_OPERATORS = {
    "Conv": ("", "QLinearConv"),
    "MatMul": ("", "QLinearMatMul"),
    "Gemm": ("com.microsoft", "QGemm"),
    "Concat": ("com.microsoft", "QLinearConcat"),
    **{
        kind: ("com.microsoft", f"QLinear{kind}")
        for kind in ("Add", "Mul", "GlobalAveragePool", "AveragePool", "Sigmoid", "LeakyRelu", "Softmax")
    },
}


class QuantizedWriter(OnnxWriter):
    """Tensors are names of codes. ``form``: "qdq" or "qlinear"; ``dtype`` of codes, ``weights`` of the codes of
    weights; ``per_channel``: a scale for each channel."""

    def __init__(
        self, form: str, dtype: str = "uint8", weights: str = "int8", per_channel: bool = True, seed: int = 0,
        opset: int = 17,
    ) -> None:  # fmt: skip
        super().__init__(opset)
        self.form, self.dtype, self.weights, self.per_channel = form, np.dtype(dtype), np.dtype(weights), per_channel
        self.rng = np.random.default_rng(seed)
        self._quants: dict[str, tuple[str, str]] = {}
        self._scales: dict[str, float] = {}

    def quant(self, scale: float | None = None, zero: int | None = None) -> tuple[str, str, float]:
        """Names of a new scale and zero point; ``zero`` is that of uint8."""
        scale = float(np.float32(self.rng.uniform(0.02, 0.06) if scale is None else scale))
        code = int(self.rng.integers(90, 170)) if zero is None else zero
        zeros = np.array(code - (128 if self.dtype == np.int8 else 0), self.dtype)
        return self.constant(scale), self.constant(zeros), scale

    def note(self, name: str, quant: tuple[str, str, float]) -> str:
        self._quants[name], self._scales[name] = quant[:2], quant[2]
        return name

    def quantize(self, x: str, quant: tuple[str, str, float] | None = None) -> str:
        """Floats -> codes."""
        quant = quant or self.quant()
        return self.note(self.op("QuantizeLinear", x, *quant[:2]), quant)

    def real(self, x: str) -> str:
        """Codes -> floats."""
        return self.op("DequantizeLinear", x, *self._quants[x])

    def layer(self, kind: str, *inputs: str, quant: tuple[str, str, float] | None = None, **attrs: Any) -> str:
        """An operator on codes that has no weights."""
        quant = quant or self.quant()
        if self.form == "qdq" or kind not in _OPERATORS:
            return self.quantize(self.op(kind, *map(self.real, inputs), **attrs), quant)
        domain, own = _OPERATORS[kind]
        triples = [name for x in inputs for name in (x, *self._quants[x])]
        names = [*quant[:2], *triples] if kind == "Concat" else [*triples, *quant[:2]]
        return self.note(self.op(own, *names, domain=domain, **attrs), quant)

    def weighted(
        self, kind: str, x: str, shape: tuple[int, ...], *, bias: bool = True, axis: int = 0, oc: int | None = None,
        quant: tuple[str, str, float] | None = None, extreme: bool = False, **attrs: Any,
    ) -> str:  # fmt: skip
        """A Conv, Gemm or MatMul with random weights; ``axis`` is that of the output channels."""
        quant = quant or self.quant()
        oc = oc or shape[axis]
        info = np.iinfo(self.weights)
        low = max(info.min, -127)
        codes = self.rng.integers(low, info.max, shape, self.weights, endpoint=True)
        if extreme:
            codes = self.rng.choice(np.array([low, info.max], self.weights), shape)
        ones = (oc,) if self.per_channel else ()
        # The sums of random weights then fill the range of the output.
        spread = self._scales[x] * 74 * np.sqrt(np.prod(shape) / oc) * 74
        scale = np.asarray(self.rng.uniform(0.5, 1.5, ones) * quant[2] * 40 / spread, np.float32)
        zero = np.full(ones, 128 if self.weights == np.uint8 else 0, self.weights)
        names = [self.constant(codes), self.constant(scale), self.constant(zero)]
        extra: list[str] = []
        unit = np.asarray(np.float32(self._scales[x]) * scale, np.float32)
        if bias:
            stored = np.rint(self.rng.normal(0, 20, oc) * quant[2] / unit).astype(np.int32)
            extra = [self.constant(stored)]
        if self.form == "qdq":
            along = {"axis": axis} if self.per_channel else {}
            weight = self.op("DequantizeLinear", *names, **along)
            if bias:
                zeros = self.constant(np.zeros(ones, np.int32))
                extra = [
                    self.op("DequantizeLinear", *extra, self.constant(unit), zeros, **({"axis": 0} if ones else {}))
                ]
            return self.quantize(self.op(kind, self.real(x), weight, *extra, **attrs), quant)
        domain, own = _OPERATORS[kind]
        inputs = [x, *self._quants[x], *names]
        inputs += [*(extra or [""]), *quant[:2]] if kind == "Gemm" else [*quant[:2], *extra]
        return self.note(self.op(own, *inputs, domain=domain, **attrs), quant)

    def finish(self, *outputs: str, metadata: bytes = b"") -> bytes:
        from .onnx_files import field

        return super().finish(*outputs, metadata=field(8, field(1, "com.microsoft") + field(2, 1)) + metadata)


def network(w: QuantizedWriter, extreme: bool = False) -> bytes:
    """Every kind of layer: convolutions with groups and strides, residual sums of other scales, squeeze and excite,
    hard swish of parts, pools, a leaky ReLU, products, softmax."""
    x = w.quantize(w.input(1, 3, 17, 14), w.quant(0.03, 120))
    x = w.weighted("Conv", x, (24, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], extreme=extreme)
    gate = w.layer("HardSigmoid", x, quant=w.quant(1 / 255, 0), alpha=1 / 6, beta=0.5)
    x = w.layer("Mul", x, gate)
    y = w.weighted("Conv", x, (24, 1, 3, 3), group=24, pads=[1, 1, 1, 1], quant=w.quant(0.02, 0), extreme=extreme)
    y = w.weighted("Conv", y, (24, 24, 1, 1), bias=False, extreme=extreme)
    x = w.layer("Add", x, y)
    s = w.layer("GlobalAveragePool", x)
    s = w.weighted("Conv", w.weighted("Conv", s, (8, 24, 1, 1), quant=w.quant(0.02, 0)), (24, 8, 1, 1))
    s = w.layer("Sigmoid", s, quant=w.quant(1 / 256, 0))
    x = w.layer("Mul", x, s)
    x = w.layer("LeakyRelu", x, alpha=0.125)
    x = w.weighted("Conv", x, (30, 24, 5, 5), group=1, pads=[2, 2, 2, 2], strides=[2, 2], extreme=extreme)
    a = w.layer("AveragePool", x, kernel_shape=[2, 2], strides=[1, 1])
    b = w.weighted("Conv", x, (20, 15, 2, 2), group=2, extreme=extreme)
    x = w.layer("Concat", a, b, axis=1)
    x = w.layer("GlobalAveragePool", x)
    x = w.note(w.op("Flatten", x), (*w._quants[x], w._scales[x]))
    x = w.weighted("Gemm", x, (40, 50), transB=1, extreme=extreme)
    x = w.weighted("MatMul", x, (40, 60), axis=1, bias=False, extreme=extreme)
    return w.finish(w.real(x))
