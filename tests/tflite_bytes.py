"""Makes quantised .tflite files with random weights and scales, and runs them in LiteRT."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import pytest

from fastmobilenet import reference
from fastmobilenet.graph import Graph
from fastmobilenet.importers import tflite

from .tflite_files import NONE, SAME, VALID, TfliteWriter, f32, i8, i32

#: Bytes of an activation are about this far from its zero point.
SPREAD = 40


def litert(data: bytes, *, builtin: bool = False) -> Any:
    """LiteRT with its default settings, or without XNNPACK: a function that takes what the file does, one picture, and
    returns what the file does. Its kernels for ARM round otherwise than those for x86-64, which ours follow."""
    module: Any = pytest.importorskip("ai_edge_litert.interpreter")
    if platform.machine() != "x86_64":
        pytest.skip("compares with LiteRT's kernels for x86-64")
    kinds = module.OpResolverType
    kind = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if builtin else kinds.AUTO
    interpreter = module.Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    (source,), (target,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(x: np.ndarray) -> np.ndarray:
        assert x.dtype == source["dtype"]
        interpreter.set_tensor(source["index"], x)
        interpreter.invoke()
        result: np.ndarray = interpreter.get_tensor(target["index"])
        return result

    return run


def unsigned(codes: np.ndarray) -> np.ndarray:
    """int8 codes with 128 added."""
    return codes if codes.dtype == np.uint8 else (codes.astype(np.int16) + 128).astype(np.uint8)


def signed(codes: np.ndarray, dtype: str) -> np.ndarray:
    """uint8 codes as the type has them."""
    return codes if dtype == "uint8" else (codes.astype(np.int16) - 128).astype(np.int8)


def real_input(graph: Graph, codes: np.ndarray) -> np.ndarray:
    """The real numbers for which the input of ``graph`` makes these bytes."""
    quant = graph.nodes[0].attrs["quant"]
    return (codes.astype(np.float64) - quant.zero) * quant.scale


def output_bytes(graph: Graph, x: np.ndarray) -> np.ndarray:
    """What the definition of the arithmetic gives, before the output is dequantised."""
    values = reference.execute(graph, x, keep=True)
    assert graph[graph.output].op == "dequantize"
    return values[graph[graph.output].inputs[0]]


class Bytes:
    """A quantised network, layer by layer. A tensor is its number; ``seed`` decides about everything random."""

    def __init__(self, dtype: str, seed: int = 0) -> None:
        self.dtype = dtype
        self.t = TfliteWriter()
        self.rng = np.random.default_rng(seed)
        self.meaning: dict[int, dict[str, Any]] = {}
        self.inputs: list[int] = []

    def scale(self, about: float) -> float:
        return float(np.float32(about * self.rng.uniform(0.7, 1.4)))

    def tensor(self, shape: tuple[int, ...], about: float = 0.0, like: int | None = None, **exact: Any) -> int:
        """``about``: the size of its values; ``like``: a tensor of the same scale and zero point."""
        if like is not None:
            exact = self.meaning[like]
        elif not exact:
            zero = int(self.rng.integers(60, 200))
            exact = {"scale": self.scale(about / SPREAD), "zero_point": zero - (128 if self.dtype == "int8" else 0)}
        y = self.t.tensor(f"t{len(self.t.tensors)}", shape, self.dtype, **exact)
        self.meaning[y] = exact
        return y

    def input(self, shape: tuple[int, ...], about: float = 1.0) -> int:
        x = self.tensor(shape, about)
        self.inputs = [x]
        return x

    def shape(self, x: int) -> tuple[int, ...]:
        return tuple(int(v) for v in self.t.tensors[x][0])

    def size(self, x: int) -> float:
        """How large its values are."""
        return float(self.meaning[x]["scale"]) * SPREAD

    def zero_code(self) -> int:
        return 0 if self.dtype == "uint8" else -128

    def constant(self, shape: tuple[int, ...], about: float) -> int:
        info = np.iinfo(self.dtype)
        codes = self.rng.integers(info.min, info.max, shape, self.dtype, endpoint=True)
        zero = int(self.rng.integers(info.min, info.max, endpoint=True))
        meaning: dict[str, Any] = {"scale": self.scale(about / 100), "zero_point": zero}
        y = self.t.constant("number", codes, **meaning)
        self.meaning[y] = meaning
        return y

    def weights(self, shape: tuple[int, ...], axis: int, gain: float = 1.0) -> tuple[int, int]:
        """Uniform over all codes: int8 with a scale a channel, uint8 with one scale and a zero point."""
        count = shape[axis] if self.dtype == "int8" else 1
        low, zero = (-127, 0) if self.dtype == "int8" else (0, int(self.rng.integers(118, 138)))
        codes = self.rng.integers(low, 256 + low, shape).clip(low, low + 254).astype(self.dtype)
        fan = np.prod(shape) / shape[axis]
        scales = [self.scale(gain / 74 / np.sqrt(fan)) for _ in range(count)]  # 74: of codes from -127 to 127
        w = self.t.constant("w", codes, scale=scales, zero_point=[zero] * count, axis=axis if count > 1 else 0)
        bias = self.rng.integers(-2000, 2000, shape[axis]).astype(np.int32)
        return w, self.t.constant("b", bias, scale=[1.0] * count, zero_point=[0] * count)

    def window(self, x: int, k: tuple[int, int], stride: tuple[int, int], padding: int) -> tuple[int, int]:
        sizes = zip(self.shape(x)[1:3], k, stride, strict=True)
        h, w = (-(-n // s) if padding == SAME else (n - j) // s + 1 for n, j, s in sizes)
        return h, w

    def conv(
        self, x: int, channels: int = 0, k: int = 1, stride: int = 1, padding: int = SAME, *, dilation: int = 1,
        multiplier: int = 0, groups: int = 1, activation: int = NONE,
    ) -> int:  # fmt: skip
        """With a ``multiplier``: a depthwise convolution with so many outputs for each channel."""
        c = self.shape(x)[3]
        span = (k - 1) * dilation + 1
        h, w = self.window(x, (span, span), (stride, stride), padding)
        oc = c * multiplier if multiplier else channels
        y = self.tensor((self.shape(x)[0], h, w, oc), self.size(x))
        options: dict[str, Any] = {"stride": (stride, stride), "padding": padding, "activation": activation}
        options["dilation"] = (dilation, dilation)
        if multiplier:
            self.t.depthwise(x, *self.weights((1, k, k, oc), 3), y, multiplier=multiplier, **options)
        else:
            self.t.conv(x, *self.weights((oc, k, k, c // groups), 0), y, **options)
        return y

    def dense(self, x: int, outputs: int, gain: float = 1.0) -> int:
        """``gain`` is how much larger the real outputs are than the inputs."""
        n, inputs = self.shape(x)[0], int(np.prod(self.shape(x)[1:]))
        if len(self.shape(x)) != 2:
            flat = self.tensor((n, inputs), like=x)
            self.t.reshape(x, flat, (n, inputs))
            x = flat
        y = self.tensor((n, outputs), self.size(x) * gain)
        self.t.fully_connected(x, *self.weights((outputs, inputs), 0, gain), y)
        return y

    def binary(self, kind: str, a: int, b: int, activation: int = NONE) -> int:
        size = self.size(a) * self.size(b) if kind == "MUL" else float(np.hypot(self.size(a), self.size(b)))
        shape = max(self.shape(a), self.shape(b), key=np.prod)
        y = self.tensor(shape, size)
        self.t.op(kind, [a, b], [y], {0: i8(activation)}, {"ADD": 11, "MUL": 21, "SUB": 28}[kind])
        return y

    def unary(self, kind: str, x: int, y: int | None = None) -> int:
        if kind == "LOGISTIC":
            y = self.tensor(self.shape(x), scale=1 / 256, zero_point=self.zero_code())
        y = self.tensor(self.shape(x), self.size(x)) if y is None else y
        self.t.op(kind, [x], [y])
        return y

    def pool(self, kind: str, x: int, k: tuple[int, int], stride: tuple[int, int], padding: int = VALID) -> int:
        h, w = self.window(x, k, stride, padding)
        y = self.tensor((self.shape(x)[0], h, w, self.shape(x)[3]), like=x)
        options = {0: i8(padding), 1: i32(stride[1]), 2: i32(stride[0]), 3: i32(k[1]), 4: i32(k[0]), 5: i8(NONE)}
        self.t.op(f"{kind}_POOL_2D", [x], [y], options, 5)
        return y

    def mean(self, x: int, *, keep: bool = True, same: bool = False) -> int:
        n, _, _, c = self.shape(x)
        y = self.tensor((n, 1, 1, c) if keep else (n, c), self.size(x) / 2, like=x if same else None)
        self.t.mean(x, y, keep=keep)
        return y

    def concat(self, *xs: int) -> int:
        """uint8 may be of several scales."""
        channels = sum(self.shape(x)[3] for x in xs)
        y = self.tensor(
            (*self.shape(xs[0])[:3], channels), self.size(xs[0]), like=None if self.dtype == "uint8" else xs[0]
        )
        self.t.op("CONCATENATION", list(xs), [y], {0: i32(3), 1: i8(NONE)}, 10)
        return y

    def halves(self, x: int) -> tuple[int, int]:
        *rest, c = self.shape(x)
        a, b = (self.tensor((*rest, size), like=x) for size in (c // 2, c // 2))
        self.t.op("SPLIT", [self.t.constant("axis", np.array(3, np.int32)), x], [a, b], {0: i32(2)}, 35)
        return a, b

    def padded(self, x: int, amounts: tuple[int, int, int, int]) -> int:
        n, h, w, c = self.shape(x)
        top, bottom, left, right = amounts
        y = self.tensor((n, h + top + bottom, w + left + right, c), like=x)
        self.t.pad(x, y, [(0, 0), (top, bottom), (left, right), (0, 0)])
        return y

    def softmax(self, x: int) -> int:
        y = self.tensor(self.shape(x), scale=1 / 256, zero_point=self.zero_code())
        self.t.op("SOFTMAX", [x], [y], {0: f32(1.0)}, 9)
        return y

    def finish(self, y: int) -> bytes:
        return self.t.finish(self.inputs, [y])

    def random_codes(self) -> np.ndarray:
        """For the input, as uint8: mostly about its zero point, more or less in each channel, some anywhere."""
        zero = self.meaning[self.inputs[0]]["zero_point"] + (128 if self.dtype == "int8" else 0)
        shape = self.shape(self.inputs[0])
        middle = self.rng.normal(zero, SPREAD, shape[3])
        near = self.rng.normal(middle, SPREAD / 2, shape).round().clip(0, 255)
        return np.where(self.rng.random(shape) < 0.1, self.rng.integers(0, 256, shape), near).astype(np.uint8)


def assert_like_litert(net: Bytes, y: int, pictures: int = 2, least: int = 8) -> Graph:
    """The file gives the same bytes here and there, at ``least`` so many different ones. Returns the graph."""
    data = net.finish(y)
    graph = tflite.load(data, quantized=True)
    run = litert(data)
    for _ in range(pictures):
        codes = net.random_codes()
        expected = unsigned(run(signed(codes, net.dtype)))
        found = output_bytes(graph, real_input(graph, codes)).reshape(expected.shape)
        assert len(np.unique(expected)) >= least, "a test of nothing: the output hardly changes"
        wrong = found != expected
        assert not wrong.any(), f"{wrong.sum()} of {wrong.size} differ, e.g. {found[wrong][:5]} {expected[wrong][:5]}"
    return graph
