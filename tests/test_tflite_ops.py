"""TFLite operators between the layers: numbers, gates, channels, pools, paddings. Checked here and, where it is
installed, against LiteRT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmobilenet import reference
from fastmobilenet.graph import HARD_SWISH, Graph
from fastmobilenet.importers import tflite
from fastmobilenet.lower import Engine
from fastmobilenet.preprocess import RAW, TENSORFLOW
from tests.test_tflite import SAME, VALID, convolve
from tests.test_tflite_litert import Run, litert  # noqa: F401  (a fixture)
from tests.tflite_files import NONE, RELU, RELU6, TfliteWriter, f32, i32, normalization, u8

RNG = np.random.default_rng(21)
SHAPE = (1, 6, 5, 8)
X = (3 * RNG.normal(size=SHAPE)).astype(np.float32)
VECTOR = RNG.normal(size=8).astype(np.float32)
MATRIX = RNG.normal(size=(8, 1, 1, 8)).astype(np.float32)
FLAT = RNG.normal(size=(5, 240)).astype(np.float32)
SIXTH = np.float32(1 / 6)

Build = Callable[[TfliteWriter, int], int]
Expected = Callable[[np.ndarray], np.ndarray]


def number(t: TfliteWriter, values: Any, dtype: str = "float32") -> int:
    return t.constant("number", np.asarray(values, dtype))


def then(
    t: TfliteWriter, kind: str, *xs: int, shape: tuple[int, ...] = SHAPE, options: Any = None, type_: int = 0
) -> int:
    y = t.tensor(kind.lower(), shape)
    t.op(kind, xs, [y], options, type_)
    return y


def plus(t: TfliteWriter, a: int, b: int, activation: int = NONE, shape: tuple[int, ...] = SHAPE) -> int:
    y = t.tensor("sum", shape)
    t.add(a, b, y, activation=activation)
    return y


def times(t: TfliteWriter, a: int, b: int, activation: int = NONE, shape: tuple[int, ...] = SHAPE) -> int:
    y = t.tensor("product", shape)
    t.mul(a, b, y, activation=activation)
    return y


def half(t: TfliteWriter, values: np.ndarray) -> int:
    """A constant stored as float16, and the DEQUANTIZE that unpacks it."""
    y = t.tensor("unpacked", values.shape)
    t.op("DEQUANTIZE", [t.constant("half", values.astype(np.float16))], [y])
    return y


def gate(t: TfliteWriter, x: int) -> int:
    """The squeeze and excitation of MobileNetV3, as Keras on TensorFlow computes it."""
    one = (1, 1, 1, 8)
    mean, conv = t.tensor("mean", one), t.tensor("conv", one)
    t.mean(x, mean, keep=True)
    t.conv(mean, t.constant("w", MATRIX), number(t, VECTOR + 3), conv, activation=RELU6)
    return times(t, x, times(t, conv, number(t, SIXTH), shape=one))


def gated(x: np.ndarray) -> np.ndarray:
    y = x.mean(axis=(1, 2), keepdims=True) @ MATRIX[:, 0, 0].T + VECTOR
    return x * np.clip(y / 6 + 0.5, 0, 1)


def shuffled(t: TfliteWriter, x: int) -> int:
    """The channel shuffle of ShuffleNet."""
    n, h, w, _ = SHAPE
    grouped, turned, y = (t.tensor(k, s) for k, s in (("g", (n, h, w, 2, 4)), ("t", (n, h, w, 4, 2)), ("y", SHAPE)))
    t.reshape(x, grouped, (n, h, w, 2, 4))
    t.transpose(grouped, turned, (0, 1, 2, 4, 3))
    t.reshape(turned, y, SHAPE)
    return y


def pooled(t: TfliteWriter, x: int, kind: str, padding: int, pad: tuple[int, ...] = ()) -> int:
    x = t.padded(x, pad) if pad else x
    _, h, w, _ = t.tensors[x][0]
    y = t.tensor("pool", (1, -(-h // 2), -(-w // 2), 8) if padding == SAME else (1, (h - 1) // 2, (w - 1) // 2, 8))
    (t.max_pool if kind == "max" else t.average_pool)(x, y, (3, 3), (2, 2), padding)
    return y


def pool_of(x: np.ndarray, kind: str, padding: int, pad: tuple[int, int, int, int] = (0, 0, 0, 0)) -> np.ndarray:
    """Windows of 3x3 with a stride of 2. SAME adds pixels that do not count, ``pad`` zeros that do."""
    x = np.pad(x, ((0, 0), pad[:2], pad[2:], (0, 0)))
    if padding == SAME:
        ends = [(max((-(-s // 2) - 1) * 2 + 3 - s, 0)) for s in x.shape[1:3]]
        around = [(e // 2, e - e // 2) for e in ends]
        x = np.pad(x, ((0, 0), *around, (0, 0)), constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::2, ::2]
    return (np.nanmax if kind == "max" else np.nanmean)(windows, axis=(4, 5))


def dense_of_all(t: TfliteWriter, x: int) -> int:
    flat, relu, y = t.tensor("flat", (1, 240)), t.tensor("relu", SHAPE), t.tensor("y", (1, 5))
    t.op("RELU", [x], [relu])
    t.reshape(relu, flat, (1, 240))
    t.fully_connected(flat, t.constant("w", FLAT), -1, y)
    return y


def split_and_join(t: TfliteWriter, x: int) -> int:
    parts = [t.tensor(name, (1, 6, 5, 4)) for name in "ab"]
    t.split(x, parts)
    y = t.tensor("y", SHAPE)
    t.concat([parts[1], parts[0]], y)
    return y


def split_v(t: TfliteWriter, x: int) -> int:
    parts = [t.tensor("a", (1, 6, 5, 3)), t.tensor("b", (1, 6, 5, 5))]
    t.op("SPLIT_V", [x, t.integers(3, 5), t.integers(-1)], parts, {0: i32(2)}, 79)
    y = t.tensor("y", (1, 6, 5, 11))
    t.concat([parts[1], parts[0], parts[0]], y, axis=-1)
    return y


def sliced(t: TfliteWriter, x: int, begin: int, end: int, stride: int, mask: int, size: int) -> int:
    y = t.tensor("y", (1, 6, 5, size))
    t.strided_slice(x, y, (0, 0, 0, begin), (1, 6, 5, end), (1, 1, 1, stride), begin_mask=mask, end_mask=mask)
    return y


def other(t: TfliteWriter, name: str, x: int, channels: int, *args: Any) -> int:
    y = t.tensor("y", (1, 6, 5, channels))
    getattr(t, name)(x, y, *args)
    return y


def swish_like(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x / 6 + 0.5, 0, 1)


def lrn_of(x: np.ndarray) -> np.ndarray:
    squares = np.pad(x * x, ((0, 0), (0, 0), (0, 0), (2, 2)))
    total = np.lib.stride_tricks.sliding_window_view(squares, 5, axis=3).sum(axis=-1)
    return x / (1.5 + 0.3 * total) ** 0.75


CASES: dict[str, tuple[Build, Expected]] = {
    "hard swish": (lambda t, x: then(t, "HARD_SWISH", x), swish_like),
    "sigmoid": (lambda t, x: then(t, "LOGISTIC", x), lambda x: 1 / (1 + np.exp(-x))),
    "swish": (lambda t, x: times(t, x, then(t, "LOGISTIC", x)), lambda x: x / (1 + np.exp(-x))),
    "0 to 1": (lambda t, x: then(t, "RELU_0_TO_1", x), lambda x: np.clip(x, 0, 1)),
    "minimum": (lambda t, x: then(t, "MINIMUM", x, number(t, 0.5), options={}, type_=39), lambda x: np.minimum(x, 0.5)),
    "maximum": (lambda t, x: then(t, "MAXIMUM", number(t, -1), x, options={}, type_=39), lambda x: np.maximum(x, -1)),
    "add a number": (lambda t, x: plus(t, x, number(t, 2), RELU6), lambda x: np.clip(x + 2, 0, 6)),
    "add a vector": (lambda t, x: plus(t, number(t, [[VECTOR]]), x), lambda x: x + VECTOR),
    "times a vector": (lambda t, x: times(t, number(t, VECTOR), x, RELU), lambda x: np.maximum(x * VECTOR, 0)),
    "minus a number": (lambda t, x: then(t, "SUB", x, number(t, 2), options={}, type_=28), lambda x: x - 2),
    "a vector minus": (lambda t, x: then(t, "SUB", number(t, VECTOR), x, options={}, type_=28), lambda x: VECTOR - x),
    "by a number": (lambda t, x: then(t, "DIV", x, number(t, 4), options={}, type_=29), lambda x: x / 4),
    "half floats": (
        lambda t, x: plus(t, times(t, x, half(t, np.float16(VECTOR))), half(t, np.full(1, 0.3))),
        lambda x: x * np.float16(VECTOR) + np.float32(np.float16(0.3)),
    ),
    "hard sigmoid of Keras 2": (
        lambda t, x: then(t, "RELU_0_TO_1", plus(t, times(t, x, number(t, 0.2)), number(t, 0.5))),
        lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    ),
    "hard sigmoid": (
        lambda t, x: times(t, plus(t, x, number(t, 3), RELU6), number(t, SIXTH)),
        lambda x: np.clip(x / 6 + 0.5, 0, 1),
    ),
    "hard swish of parts": (
        lambda t, x: times(t, x, times(t, plus(t, x, number(t, 3), RELU6), number(t, SIXTH))),
        swish_like,
    ),
    "hard swish of other parts": (
        lambda t, x: times(t, number(t, SIXTH), times(t, plus(t, x, number(t, 3), RELU6), x)),
        swish_like,
    ),
    "gate": (gate, gated),
    "max pool": (lambda t, x: pooled(t, x, "max", VALID), lambda x: pool_of(x, "max", VALID)),
    "max pool same": (lambda t, x: pooled(t, x, "max", SAME), lambda x: pool_of(x, "max", SAME)),
    "padded max pool": (
        lambda t, x: pooled(t, x, "max", VALID, (1, 0, 0, 1)),
        lambda x: pool_of(x, "max", VALID, (1, 0, 0, 1)),
    ),
    "padded average pool": (
        lambda t, x: pooled(t, x, "average", VALID, (1, 0, 0, 1)),
        lambda x: pool_of(x, "average", VALID, (1, 0, 0, 1)),
    ),
    "padded average pool same": (
        lambda t, x: pooled(t, x, "average", SAME, (1, 1, 1, 1)),
        lambda x: pool_of(x, "average", SAME, (1, 1, 1, 1)),
    ),
    "pad": (lambda t, x: t.padded(x, (1, 2, 0, 3)), lambda x: np.pad(x, ((0, 0), (1, 2), (0, 3), (0, 0)))),
    "shuffle": (shuffled, lambda x: x.reshape(1, 6, 5, 2, 4).transpose(0, 1, 2, 4, 3).reshape(SHAPE)),
    "split and join": (split_and_join, lambda x: np.concatenate([x[..., 4:], x[..., :4]], axis=3)),
    "split into parts": (split_v, lambda x: np.concatenate([x[..., 3:], x[..., :3], x[..., :3]], axis=3)),
    "slice": (lambda t, x: other(t, "slice", x, 5, (0, 0, 0, 2), (-1, 6, 5, 5)), lambda x: x[..., 2:7]),
    "strided slice": (lambda t, x: sliced(t, x, 1, 8, 2, 0, 4), lambda x: x[..., 1::2]),
    "strided slice from the end": (lambda t, x: sliced(t, x, -3, -1, 1, 0, 2), lambda x: x[..., -3:-1]),
    "strided slice of all": (lambda t, x: sliced(t, x, 5, 6, 1, 0b1111, 8), lambda x: x),
    "gather": (lambda t, x: other(t, "gather", x, 3, [6, 0, 6]), lambda x: x[..., [6, 0, 6]]),
    "dense over a map": (dense_of_all, lambda x: np.maximum(x, 0).reshape(1, 240) @ FLAT.T),
    "lrn": (
        lambda t, x: then(
            t,
            "LOCAL_RESPONSE_NORMALIZATION",
            x,
            options={0: i32(2), 1: f32(1.5), 2: f32(0.3), 3: f32(0.75)},
            type_=13,
        ),
        lrn_of,
    ),
}


def file(name: str) -> bytes:
    t = TfliteWriter()
    x = t.tensor("x", SHAPE)
    return t.finish(x, CASES[name][0](t, x))


def computed(name: str) -> np.ndarray:
    return CASES[name][1](X).astype(np.float64)


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    return reference.execute(graph, x)[graph.output]


@pytest.mark.parametrize("name", CASES)
def test_operators(name: str) -> None:
    graph = tflite.load(file(name))
    expected = computed(name)
    found = run(graph, X)
    assert found.size == expected.size
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-5)
    ours = Engine(graph).run(X, threads=1, pixels=False)
    np.testing.assert_allclose(ours.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_litert_computes_the_same(litert: Run, name: str) -> None:  # noqa: F811
    expected = computed(name)
    np.testing.assert_allclose(litert(file(name), X).reshape(expected.shape), expected, rtol=1e-4, atol=1e-4)


def test_a_transpose_that_changes_nothing() -> None:
    t = TfliteWriter()
    x, y, z = t.tensor("x", SHAPE), t.tensor("y", SHAPE), t.tensor("z", SHAPE)
    t.transpose(x, y, (0, 1, 2, 3))
    t.op("RELU", [y], [z])
    assert [n.op for n in tflite.load(t.finish(x, z)).nodes] == ["input", "activation"]


@pytest.mark.parametrize("name", ["hard swish", "hard swish of parts", "hard swish of other parts"])
def test_a_hard_swish_is_one_node(name: str) -> None:
    graph = tflite.load(file(name))
    (node,) = graph.nodes[1:]
    activation = node.activation
    assert activation is not None
    assert activation.kind == HARD_SWISH.kind
    np.testing.assert_allclose([activation.alpha, activation.beta], [1 / 6, 0.5], rtol=1e-6)


def test_a_pad_before_several_readers() -> None:
    """A convolution pads by itself; for the others, the zeros are added once for each."""
    t = TfliteWriter()
    x = t.tensor("x", (1, 6, 6, 8))
    p = t.padded(x, (1, 1, 1, 1))
    a, b = t.tensor("a", (1, 8, 8, 8)), t.tensor("b", (1, 8, 8, 8))
    t.identity(p, a, padding=VALID)
    t.identity(p, b, padding=SAME)
    y = plus(t, plus(t, a, b, shape=(1, 8, 8, 8)), p, shape=(1, 8, 8, 8))
    graph = tflite.load(t.finish(x, y))
    values = RNG.normal(size=(1, 6, 6, 8))
    np.testing.assert_allclose(run(graph, values), 3 * np.pad(values, ((0, 0), (1, 1), (1, 1), (0, 0))), atol=1e-12)


def test_pads_add_up() -> None:
    t = TfliteWriter()
    weight = RNG.normal(size=(2, 3, 3, 8)).astype(np.float32)
    x = t.tensor("x", SHAPE)
    y = t.tensor("y", (1, 8, 5, 2))
    t.conv(t.padded(t.padded(x, (1, 0, 1, 0)), (2, 1, 0, 1)), t.constant("w", weight), -1, y, padding=VALID)
    graph = tflite.load(t.finish(x, y))
    assert graph["y"].attrs["padding"] == (3, 1, 1, 1)
    np.testing.assert_allclose(run(graph, X), convolve(X, weight, (1, 1), (3, 1, 1, 1)), rtol=1e-5, atol=1e-5)


def test_pixels_that_the_network_scales() -> None:
    t = TfliteWriter()
    x = t.tensor("x", (1, 4, 4, 3))
    shape = (1, 4, 4, 3)
    y = plus(t, times(t, x, number(t, 1 / 127.5), shape=shape), number(t, -1), shape=shape)
    z = then(t, "RELU", y, shape=shape)
    graph = tflite.load(t.finish(x, z))
    assert [n.op for n in graph.nodes] == ["input", "batch_norm", "activation"]
    assert graph.preprocess == RAW
    t.add_metadata("TFLITE_METADATA", normalization([127.5], [127.5]))
    assert tflite.load(t.finish(x, z)).preprocess == TENSORFLOW  # what the file says counts
    scaled_later = TfliteWriter()
    x = scaled_later.tensor("x", (1, 4, 4, 3))
    y = times(scaled_later, then(scaled_later, "RELU", x, shape=shape), number(scaled_later, 2), shape=shape)
    assert tflite.load(scaled_later.finish(x, y)).preprocess == TENSORFLOW


@pytest.mark.parametrize("std", [0.0, 1e-30, float("nan"), float("inf"), -1.0])
def test_metadata_with_which_nothing_can_be_normalised(std: float) -> None:
    t = TfliteWriter()
    x, y = t.tensor("x", (1, 4, 4, 3)), t.tensor("y", (1, 4, 4, 3))
    t.op("RELU", [x], [y])
    t.add_metadata("TFLITE_METADATA", normalization([127.5], [std]))
    assert tflite.load(t.finish(x, y)).preprocess == TENSORFLOW


def test_a_vector_whose_length_is_left_open() -> None:
    """Dense layers of Keras on maps of one pixel: the converter knows no shape for what is between."""
    t = TfliteWriter()
    x, m = t.tensor("x", SHAPE), t.tensor("m", (1, 1, 1, 8))
    v, d = t.tensor("v", (1, 1), signature=(-1, -1)), t.tensor("d", (1, 8))
    t.mean(x, m, keep=True)
    t.reshape(m, v, (-1, 8))
    t.fully_connected(v, t.constant("w", MATRIX[:, 0, 0]), -1, d)
    graph = tflite.load(t.finish(x, d))
    np.testing.assert_allclose(run(graph, X)[:, 0, 0], X.mean(axis=(1, 2)) @ MATRIX[:, 0, 0].T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["SQUEEZE", "EXPAND_DIMS", "RESHAPE"])
def test_axes_of_length_one(kind: str) -> None:
    t = TfliteWriter()
    x, m, v, w = (t.tensor(n, s) for n, s in (("x", SHAPE), ("m", (1, 8)), ("v", (1, 1, 8)), ("w", (1, 1, 1, 8))))
    t.mean(x, m)
    t.op(kind, [m, t.integers(1)], [v])
    t.op(kind, [v, t.integers(1)], [w])
    y = times(t, w, x)
    np.testing.assert_allclose(run(tflite.load(t.finish(x, y)), X), X * X.mean(axis=(1, 2), keepdims=True), rtol=1e-5)


def test_weights_stored_as_integers_in_a_float_network() -> None:
    """What the converter calls dynamic range: int8 with a scale for each channel; activations are floats."""
    codes = RNG.integers(-127, 128, (8, 3, 3, 8)).astype(np.int8)
    scale = RNG.uniform(0.01, 0.1, 8).astype(np.float32)
    t = TfliteWriter()
    x, y = t.tensor("x", SHAPE), t.tensor("y", SHAPE)
    w = t.constant("w", codes, scale=scale, zero_point=[0] * 8)
    t.conv(x, w, number(t, VECTOR), y)
    t.tensors[w][4] |= {4: u8(0)}
    expected = convolve(X, codes * scale[:, None, None, None].astype(np.float64), (1, 1), SAME) + VECTOR
    np.testing.assert_allclose(run(tflite.load(t.finish(x, y)), X), expected, rtol=1e-5, atol=1e-5)
