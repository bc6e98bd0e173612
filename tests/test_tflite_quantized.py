"""Quantised TFLite files, and what a file says about pixels and classes."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest

from fastmobilenet import reference
from fastmobilenet.errors import ModelError
from fastmobilenet.graph import RELU, RELU6, Activation
from fastmobilenet.importers import tflite
from fastmobilenet.preprocess import TENSORFLOW
from tests.tflite_files import NONE, TfliteWriter, i32, normalization, pack, u8


def codes(seed: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.random.default_rng(seed).integers(info.min, info.max, shape, dtype, endpoint=True)


def real(q: np.ndarray, scale: Any, zero_point: Any = 0, axis: int = 0) -> np.ndarray:
    """scale * (q - zero_point) in exact float64, then float32."""
    shape = [1] * q.ndim
    shape[axis] = -1
    scale, zero_point = (np.atleast_1d(v) for v in (np.float32(scale), np.int64(zero_point)))
    if len(scale) == 1:
        scale = np.repeat(scale, q.shape[axis])
    if len(zero_point) == 1:
        zero_point = np.repeat(zero_point, q.shape[axis])
    return ((q.astype(np.float64) - zero_point.reshape(shape)) * scale.astype(np.float64).reshape(shape)).astype("f4")


IMAGE = {"uint8": {"scale": 1 / 128, "zero_point": 128}, "int8": {"scale": 1 / 127.5, "zero_point": -1}}


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_weights_of_one_scale(dtype: str) -> None:
    """The files of 2018: one scale and a zero point inside the range, for activations and weights alike."""
    weight, bias = codes(1, (6, 3, 3, 3), dtype), codes(2, (6,), "int32") // 2**16
    t = TfliteWriter()
    x = t.tensor("x", (1, 8, 8, 3), dtype, **IMAGE[dtype])
    y = t.tensor("y", (1, 8, 8, 6), dtype, scale=0.1, zero_point=5)
    product = np.float64(np.float32(IMAGE[dtype]["scale"])) * np.float64(np.float32(0.03))
    w = t.constant("w", weight, scale=0.03, zero_point=61)
    t.conv(x, w, t.constant("b", bias, scale=product), y)
    node = tflite.load(t.finish(x, y))["y"]
    np.testing.assert_array_equal(node.params["weight"], real(weight, 0.03, 61))
    np.testing.assert_array_equal(node.params["bias"], (bias * product).astype(np.float32))
    assert node.params["weight"].dtype == node.params["bias"].dtype == np.float32
    assert node.activation is None


@pytest.mark.parametrize("kind", ["conv", "depthwise", "fully_connected"])
def test_weights_of_one_scale_a_channel(kind: str) -> None:
    """The files of today: int8, a scale for each output channel. One channel is dead: its scale is 0."""
    oc = 4
    scales = [0.01, 0.0, 2.5e-7, 0.3]
    shape, axis = {"conv": ((oc, 1, 1, 4), 0), "depthwise": ((1, 3, 3, oc), 3), "fully_connected": ((oc, 4), 0)}[kind]
    weight, bias = codes(3, shape, "int8"), codes(4, (oc,), "int32")
    t = TfliteWriter()
    x = t.tensor("x", (1, 1, 1, oc), "int8", scale=0.02, zero_point=3)
    y = t.tensor("y", (1, 1, 1, oc), "int8", scale=0.1, zero_point=5)
    w = t.constant("w", weight, scale=scales, zero_point=[0] * oc, axis=axis)
    getattr(t, kind)(x, w, t.constant("b", bias), y)
    graph = tflite.load(t.finish(x, y))
    node = graph["y"]
    expected = real(weight, scales, 0, axis)
    if kind == "depthwise":
        expected = expected.transpose(3, 1, 2, 0)
    np.testing.assert_array_equal(node.params["weight"], expected)
    unit = np.float64(np.float32(0.02)) * np.float32(scales).astype(np.float64)
    np.testing.assert_array_equal(node.params["bias"], (bias * unit).astype(np.float32))
    values = np.random.default_rng(5).normal(size=(1, 1, 1, oc))
    assert reference.execute(graph, values)["y"][0, 0, 0, 1] == 0.0


def test_the_unit_of_a_bias_is_that_of_the_accumulator() -> None:
    """An interpreter adds the bias to sums in units of input scale times weight scale, and never reads its scale."""
    t = TfliteWriter()
    x = t.tensor("x", (1, 1, 1, 1), "int8", scale=0.5, zero_point=1)
    y = t.tensor("y", (1, 1, 1, 1), "int8", scale=1.0, zero_point=1)
    w = t.constant("w", np.ones((1, 1, 1, 1), np.int8), scale=0.25)
    t.conv(x, w, t.constant("b", np.array([8], np.int32), scale=123.0), y)
    assert tflite.load(t.finish(x, y))["y"].params["bias"].tolist() == [1.0]


def test_integer_weights_in_a_float_network() -> None:
    """Dynamic-range files: int8 weights, float biases and activations. Shared weights are read once."""
    weight, bias = codes(6, (3, 1, 1, 3), "int8"), np.float32([1, 2, 3])
    t = TfliteWriter()
    x, y, z = (t.tensor(name, (1, 2, 2, 3)) for name in "xyz")
    w, b = t.constant("w", weight, scale=[0.1, 0.2, 0.3]), t.constant("b", bias)
    t.conv(x, w, b, y)
    t.conv(y, w, b, z)
    graph = tflite.load(t.finish(x, z))
    np.testing.assert_array_equal(graph["z"].params["weight"], real(weight, [0.1, 0.2, 0.3]))
    np.testing.assert_array_equal(graph["z"].params["bias"], bias)
    assert graph["y"].params["weight"] is graph["z"].params["weight"]


def test_half_precision_weights_behind_dequantize() -> None:
    half = np.random.default_rng(8).normal(size=(2, 1, 1, 3)).astype(np.float16)
    t = TfliteWriter()
    x, y = t.tensor("x", (1, 2, 2, 3)), t.tensor("y", (1, 2, 2, 2))
    w, b = t.tensor("w32", half.shape), t.tensor("b32", (2,))
    t.op("DEQUANTIZE", [t.constant("w", half)], [w])
    t.op("DEQUANTIZE", [t.constant("b", half[:, 0, 0, 0].copy())], [b])
    t.conv(x, w, b, y)
    node = tflite.load(t.finish(x, y))["y"]
    np.testing.assert_array_equal(node.params["weight"], half.astype(np.float32))
    np.testing.assert_array_equal(node.params["bias"], half[:, 0, 0, 0].astype(np.float32))


def test_quantize_and_dequantize_of_activations_are_identities() -> None:
    t = TfliteWriter()
    shape = (1, 2, 2, 3)
    x, y = t.tensor("x", shape), t.tensor("y", shape)
    q8 = t.tensor("q8", shape, "uint8", **IMAGE["uint8"])
    s8 = t.tensor("s8", shape, "int8", **IMAGE["int8"])
    half = t.tensor("half", shape, "int8", **IMAGE["int8"])
    t.op("QUANTIZE", [x], [q8])
    t.op("QUANTIZE", [q8], [s8])
    t.op("RELU", [s8], [half])
    t.op("DEQUANTIZE", [half], [y])
    graph = tflite.load(t.finish(x, y))
    assert [n.op for n in graph.nodes] == ["input", "activation"]
    assert graph.output == "half"


SIX = 6 / 255


@pytest.mark.parametrize(
    "dtype, scale, zero_point, expected",
    [
        ("uint8", SIX, 0, RELU6),
        ("uint8", 0.0235285, 0, RELU6),  # 5.9998, what training with simulated quantisation leaves of 6
        ("int8", SIX, -128, RELU6),
        ("int8", 0.02, -128, RELU6),  # up to 5.1: a ReLU6 whose end was never reached
        ("int8", 6.02 / 255, -128, RELU6),
        ("int8", 6.1 / 255, -128, RELU),
        ("uint8", 0.5, 0, RELU),
        ("uint8", SIX, 1, None),
        ("int8", SIX, 0, None),
        ("int8", SIX, -127, None),
        ("uint8", SIX, 255, None),
        ("int16", 6 / 32767, 0, None),
    ],
)
@pytest.mark.parametrize("kind", ["conv", "depthwise", "fully_connected", "add"])
def test_range_stands_for_an_activation(
    kind: str, dtype: str, scale: float, zero_point: int, expected: Activation | None
) -> None:
    t = TfliteWriter()
    shape = (1, 1, 1, 3)
    x = t.tensor("x", shape, dtype, scale=0.01, zero_point=0)
    y = t.tensor("y", shape, dtype, scale=scale, zero_point=zero_point)
    shapes = {"conv": (3, 1, 1, 3), "depthwise": (1, 1, 1, 3), "fully_connected": (3, 3)}
    inputs = [x] if kind == "add" else [t.constant("w", codes(9, shapes[kind], "int8"), scale=0.1), -1]
    if kind == "add":
        t.add(x, x, y)
    else:
        getattr(t, kind)(x, *inputs, y, activation=NONE)
    assert tflite.load(t.finish(x, y))["y"].activation == expected


def test_a_named_activation_is_taken_as_named() -> None:
    t = TfliteWriter()
    x = t.tensor("x", (1, 1, 1, 3), "int8", scale=0.1)
    y = t.tensor("y", (1, 1, 1, 3), "int8", scale=SIX, zero_point=-128)
    t.add(x, x, y, activation=1)
    assert tflite.load(t.finish(x, y))["y"].activation == RELU


def test_pools_and_softmax_are_not_clamped_by_their_range() -> None:
    t = TfliteWriter()
    x = t.tensor("x", (1, 3, 3, 4), "int8", scale=1.0, zero_point=-128)
    names = (("pool", (1, 2, 2, 4)), ("mean", (1, 4)), ("softmax", (1, 4)))
    pool, mean, softmax = (t.tensor(n, s, "int8", scale=1 / 256, zero_point=-128) for n, s in names)
    t.average_pool(x, pool, (2, 2))
    t.mean(pool, mean)
    t.softmax(mean, softmax)
    graph = tflite.load(t.finish(x, softmax))
    assert [n.op for n in graph.nodes] == ["input", "avg_pool2d", "global_avg_pool", "softmax"]
    assert all(n.activation is None for n in graph.nodes)


# --- pixels ---------------------------------------------------------------------------------------------


def image_network(dtype: str = "float32", channels: int = 3, metadata: bytes | None = None, **quantization: Any) -> Any:
    t = TfliteWriter()
    x = t.tensor("x", (1, 2, 2, channels), dtype, **quantization)
    y = t.tensor("y", (1, 1, 1, channels), dtype, **quantization)
    t.mean(x, y, keep=True)
    if metadata is not None:
        t.add_metadata("min_runtime_version", b"1.5.0")
        t.add_metadata("TFLITE_METADATA", metadata)
    return tflite.load(t.finish(x, y)).preprocess


@pytest.mark.parametrize(
    "dtype, scale, zero_point, mean, std",
    [
        ("uint8", 1 / 128, 128, 128, 128),
        ("uint8", 1 / 127.5, 127, 127, 127.5),
        ("int8", 1 / 127.5, -1, 127, 127.5),
        ("uint8", 1 / 255, 0, 0, 255),  # 0..1
        ("int8", 1 / 255, -128, 0, 255),
        ("uint8", 1, 0, 0, 1),  # raw pixels
        ("int8", 1, -128, 0, 1),
    ],
)
def test_pixels_are_the_codes_of_a_quantised_input(
    dtype: str, scale: float, zero_point: int, mean: float, std: float
) -> None:
    found = image_network(dtype, scale=scale, zero_point=zero_point, metadata=normalization([1], [2]))
    assert found.mean == (mean,) * 3
    np.testing.assert_allclose(found.std, [std] * 3, rtol=1e-7)
    q = codes(10, (50,), dtype)
    pixel = q.astype(np.float64) - np.iinfo(dtype).min
    np.testing.assert_allclose((pixel - found.mean[0]) / found.std[0], real(q, scale, zero_point), rtol=1e-6)


@pytest.mark.parametrize("scale, zero_point", [(1e-4, 0), (0.2, 128), (5.0, 0), (1 / 128, 300), (1 / 128, -1), (0, 0)])
def test_a_range_that_no_picture_has_says_nothing(scale: float, zero_point: int) -> None:
    assert image_network("uint8", scale=scale, zero_point=zero_point) == TENSORFLOW


def test_float_inputs() -> None:
    assert image_network() == TENSORFLOW
    assert image_network(metadata=b"") == TENSORFLOW
    assert image_network(metadata=normalization([0], [255])).mean == (0, 0, 0)
    found = image_network(metadata=normalization([1, 2, 3], [4, 5, 6]))
    assert (found.mean, found.std) == ((1, 2, 3), (4, 5, 6))
    assert image_network(channels=1, metadata=normalization([0], [255])) == TENSORFLOW


@pytest.mark.parametrize(
    "metadata",
    [
        normalization([], []),
        normalization([0, 0], [1, 1]),
        normalization([0], [0]),
        normalization([np.nan], [1]),
        normalization([0], [np.inf]),
        pack({}, b"M001"),
        pack({3: [{}]}, b"M001"),
        pack({3: [{2: [{}]}]}, b"M001"),
        pack({3: [{2: [{4: [{0: u8(2), 1: {}}]}]}]}, b"M001"),
        pack({3: [{2: [{4: [{0: u8(1)}]}]}]}, b"M001"),
        pack({3: i32(2**31 - 1)}, b"M001"),
        pack({}, b"M002"),
        b"M001",
    ],
)
def test_metadata_that_says_nothing_is_ignored(metadata: bytes) -> None:
    assert image_network(metadata=metadata) == TENSORFLOW


# --- labels ---------------------------------------------------------------------------------------------


def labelled(classes: int, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> tuple[str, ...] | None:
    t = TfliteWriter()
    x, y = t.tensor("x", (1, 2, 2, classes)), t.tensor("y", (1, classes))
    t.mean(x, y)
    stream = io.BytesIO(t.finish(x, y))
    with zipfile.ZipFile(stream, "a", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return tflite.load(stream.getvalue()).labels


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_labels_are_read_from_the_archive_behind_the_model(compression: int) -> None:
    files = {"notes.txt": b"made by hand", "labels.txt": "katze\r\nhund \nk\u00e4fer\n\n".encode(), "model.json": b"{}"}
    assert labelled(3, files, compression) == ("katze", "hund", "k\u00e4fer")
    assert labelled(4, files, compression) is None


def test_a_network_of_1001_classes_keeps_its_background() -> None:
    names = ["background", *(f"class {i}" for i in range(1000))]
    text = "\n".join(names).encode()
    assert labelled(1001, {"labels.txt": text}) == tuple(names)
    assert labelled(1000, {"labels.txt": text}) == tuple(names[1:])


@pytest.mark.parametrize(
    "files",
    [
        {"labels.txt": b"\xff\xfe\n\xff"},
        {"labels.txt": b"a\nb" + b" " * 4_000_001},  # deflates to almost nothing
        {f"{i}.bin": b"" for i in range(65)} | {"labels.txt": b"a\nb"},
    ],
)
def test_archives_that_are_not_labels(files: dict[str, bytes]) -> None:
    assert labelled(2, files) is None


def test_other_compression_is_not_opened() -> None:
    pytest.importorskip("lzma")
    assert labelled(2, {"labels.txt": b"a\nb"}, zipfile.ZIP_LZMA) is None


def test_damaged_archive_leaves_the_network() -> None:
    t = TfliteWriter()
    x, y = t.tensor("x", (1, 2, 2, 2)), t.tensor("y", (1, 2))
    t.mean(x, y)
    model = t.finish(x, y)
    stream = io.BytesIO(model)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("labels.txt", "cat\ndog")
    whole = stream.getvalue()
    assert tflite.load(whole).labels == ("cat", "dog")
    for place in range(len(model), len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        assert tflite.load(damaged).labels in (None, ("cat", "dog"))
        assert tflite.load(whole[:place]).labels is None


# --- numbers that are none ------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("which", ["weights", "bias"])
def test_weights_that_are_not_finite_are_refused(which: str, value: float) -> None:
    arrays = {"weights": np.ones((2, 1, 1, 3), np.float32), "bias": np.ones(2, np.float32)}
    arrays[which].reshape(-1)[1] = value
    t = TfliteWriter()
    x, y = t.tensor("x", (1, 2, 2, 3)), t.tensor("y", (1, 2, 2, 2))
    t.conv(x, t.constant("weights", arrays["weights"]), t.constant("bias", arrays["bias"]), y)
    with pytest.raises(ModelError, match=rf"tensor \d \('{which}'\): weights that are infinite or not a number"):
        tflite.load(t.finish(x, y))


@pytest.mark.parametrize(
    "quantization, message",
    [
        ({}, "holds int8 without a scale"),
        ({"scale": np.nan}, "a scale is negative or not a number"),
        ({"scale": np.inf}, "a scale is negative or not a number"),
        ({"scale": -1.0}, "a scale is negative or not a number"),
        ({"scale": 3e38}, "weights that are infinite"),
        ({"scale": [1.0, 1.0, 1.0]}, "3 scales and 1 zero points do not fit axis 0"),
        ({"scale": [1.0, 1.0], "zero_point": [0] * 3}, "2 scales and 3 zero points do not fit"),
        ({"scale": [1.0, 1.0], "axis": 7}, "do not fit axis 7"),
        ({"scale": [1.0, 1.0], "axis": -4}, "do not fit axis -4"),
    ],
)
def test_quantisation_that_does_not_fit(quantization: dict[str, Any], message: str) -> None:
    t = TfliteWriter()
    x, y = t.tensor("x", (1, 2, 2, 3)), t.tensor("y", (1, 2, 2, 2))
    t.conv(x, t.constant("w", np.full((2, 1, 1, 3), 100, np.int8), **quantization), -1, y)
    with pytest.raises(ModelError, match=message):
        tflite.load(t.finish(x, y))
