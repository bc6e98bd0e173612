"""Keras files, written here, against results computed here: every layer, both kinds of file, both versions of Keras."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import importers, reference
from fastmobilenet.errors import ModelError
from fastmobilenet.graph import HARD_SIGMOID, HARD_SWISH, RELU, RELU6, SIGMOID, SWISH, Activation, Graph
from fastmobilenet.importers import keras
from fastmobilenet.preprocess import RAW, TENSORFLOW
from tests.hdf5_files import nested, write
from tests.keras_files import Network, batch_norm, conv, floats, zipped
from tests.test_tflite import SAME, VALID, convolve

RNG = np.random.default_rng(5)
BOTH = pytest.mark.parametrize("version", [2, 3])


def load(network: Network, kind: str = "keras") -> Graph:
    return keras.load(network.archive() if kind == "keras" else network.h5(), f"net.{kind}")


def run(graph: Graph, x: np.ndarray) -> np.ndarray:
    return reference.execute(graph, x)[graph.output]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def normalise(x: np.ndarray, entry: Any, epsilon: float = 1e-3) -> np.ndarray:
    w = entry.weights
    return (x - w["moving_mean"]) / np.sqrt(w["moving_variance"] + epsilon) * w["gamma"] + w["beta"]


@BOTH
@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_a_small_network(kind: str, sequential: bool, version: int) -> None:
    net = Network(9, 8, 3, version=version, sequential=sequential)
    net.add("Conv2D", **conv(RNG, (3, 3, 3, 6), strides=[2, 2], padding="same"), name="stem")
    net.add("BatchNormalization", **batch_norm(RNG, 6))
    net.add("ReLU", max_value=6.0)
    kernel = floats(RNG, 3, 3, 6, 2)
    net.add(
        "DepthwiseConv2D", weights={"kernel": kernel}, kernel_size=[3, 3], depth_multiplier=2, use_bias=False, name="dw"
    )
    net.add("GlobalAveragePooling2D")
    net.add("Dropout", rate=0.5)
    net.add("Dense", weights={"kernel": floats(RNG, 12, 5), "bias": floats(RNG, 5)}, units=5, activation="softmax")
    graph = load(net, kind)
    stem, norm, dense = net.entries[1], net.entries[2], net.entries[-1]
    x = floats(RNG, 2, 9, 8, 3)
    y = convolve(x, stem.weights["kernel"].transpose(3, 0, 1, 2), (2, 2), SAME) + stem.weights["bias"]
    y = np.clip(normalise(y, norm), 0, 6)
    y = convolve(y, kernel.reshape(3, 3, 12).transpose(2, 0, 1)[..., None], (1, 1), VALID, groups=6)
    e = np.exp(y.mean(axis=(1, 2)) @ dense.weights["kernel"] + dense.weights["bias"])
    close(run(graph, x)[:, 0, 0], e / e.sum(axis=1, keepdims=True))
    assert (graph.name, graph.input_size, graph.input_channels, graph.input_layout) == ("net", (9, 8), 3, "NHWC")
    assert graph.preprocess == TENSORFLOW
    assert [n.op for n in graph.nodes[1:]] == [
        *("conv2d", "batch_norm", "activation", "conv2d", "global_avg_pool", "dense", "softmax"),
    ]


@pytest.mark.parametrize(
    "setting, version, expected",
    [
        ("relu", 3, RELU),
        ("relu6", 2, RELU6),
        ("sigmoid", 3, SIGMOID),
        ("swish", 2, SWISH),
        ("silu", 3, SWISH),
        ("hard_swish", 3, HARD_SWISH),
        ("hard_silu", 3, HARD_SWISH),
        ("hard_sigmoid", 3, HARD_SIGMOID),
        ("hard_sigmoid", 2, Activation("hard_sigmoid", alpha=0.2, beta=0.5)),
        ({"class_name": "function", "config": "relu6", "module": "builtins"}, 3, RELU6),
        ({"class_name": "Sigmoid", "config": {}}, 3, SIGMOID),
    ],
)
def test_activations(setting: Any, version: int, expected: Activation) -> None:
    for kind in ("keras", "h5"):
        net = Network(4, 4, 3, version=version)
        net.add("Activation", activation=setting)
        net.add("Conv2D", **conv(RNG, (1, 1, 3, 4), activation=setting))
        nodes = load(net, kind).nodes
        assert [n.activation for n in nodes if n.activation] == [expected, expected]


@pytest.mark.parametrize("max_value, expected", [(None, RELU), (6.0, RELU6), (2, Activation("clamp", 0.0, 2.0))])
def test_relu(max_value: float | None, expected: Activation) -> None:
    net = Network(4, 4, 3)
    net.add("ReLU", max_value=max_value, negative_slope=0.0, threshold={"type": "ndarray", "value": 0.0})
    assert load(net).nodes[-1].activation == expected


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride, dilation, groups", [(1, (1, 1), 1), ([2, 1], (1, 1), 2), (1, (2, 3), 1)])
def test_conv(padding: str, stride: Any, dilation: tuple[int, int], groups: int) -> None:
    net = Network(9, 11, 4)
    options = {"strides": stride, "dilation_rate": list(dilation), "groups": groups, "padding": padding}
    net.add("Conv2D", **conv(RNG, (3, 2, 4 // groups, 6), **options))
    x, w = floats(RNG, 1, 9, 11, 4), net.entries[-1].weights
    steps = (stride, stride) if isinstance(stride, int) else stride
    mode = SAME if padding == "same" else VALID
    expected = convolve(x, w["kernel"].transpose(3, 0, 1, 2), steps, mode, dilation, groups) + w["bias"]
    close(run(load(net), x), expected)


def test_separable_conv() -> None:
    weights = {"depthwise_kernel": floats(RNG, 3, 3, 4, 2), "pointwise_kernel": floats(RNG, 1, 1, 8, 5)}
    net = Network(8, 8, 4)
    settings = {"filters": 5, "kernel_size": [3, 3], "depth_multiplier": 2, "strides": [2, 2], "padding": "same"}
    net.add("SeparableConv2D", weights=weights | {"bias": floats(RNG, 5)}, activation="relu", **settings)
    x = floats(RNG, 1, 8, 8, 4)
    y = convolve(x, weights["depthwise_kernel"].reshape(3, 3, 8).transpose(2, 0, 1)[..., None], (2, 2), SAME, groups=4)
    y = y @ weights["pointwise_kernel"][0, 0] + net.entries[-1].weights["bias"]
    for kind in ("keras", "h5"):
        close(run(load(net, kind), x), np.maximum(y, 0))


@pytest.mark.parametrize("padding", [1, [2, 0], [[0, 1], [0, 2]], [[0, 0], [0, 0]]])
@pytest.mark.parametrize("follow", ["valid", "same", "max", "average", "relu", "end"])
def test_zero_padding(padding: Any, follow: str) -> None:
    """Folded into what can pad by itself, else added; twice, it adds up."""
    net = Network(7, 7, 3)
    net.add("ZeroPadding2D", padding=padding)
    net.add("ZeroPadding2D", padding=[[1, 0], [0, 0]])
    if follow in ("valid", "same"):
        net.add("Conv2D", **conv(RNG, (3, 3, 3, 4), strides=2, padding=follow))
    elif follow in ("max", "average"):
        net.add(f"{follow.capitalize()}Pooling2D", pool_size=[2, 2])
    elif follow == "relu":
        net.add("ReLU")
    (a, b), (c, d) = [[v, v] if isinstance(v, int) else v for v in ([padding] * 2 if padding == 1 else padding)]
    x = floats(RNG, 1, 7, 7, 3)
    padded = np.pad(x, ((0, 0), (a + 1, b), (c, d), (0, 0)))
    graph = load(net)
    if follow in ("valid", "same"):
        w = net.entries[-1].weights
        mode = SAME if follow == "same" else VALID
        expected = convolve(padded, w["kernel"].transpose(3, 0, 1, 2), (2, 2), mode) + w["bias"]
        assert len(graph.nodes) == (2 if follow == "valid" else 3)
    elif follow in ("max", "average"):
        h, w_ = padded.shape[1] // 2, padded.shape[2] // 2
        windows = padded[:, : 2 * h, : 2 * w_].reshape(1, h, 2, w_, 2, 3)
        expected = windows.max(axis=(2, 4)) if follow == "max" else windows.mean(axis=(2, 4))
        assert len(graph.nodes) == (2 if follow == "average" else 3)
    else:
        expected = np.maximum(padded, 0) if follow == "relu" else padded
    close(run(graph, x), expected)


def test_pools() -> None:
    x = floats(RNG, 1, 7, 7, 2)
    for size, stride, padding in ((3, None, "valid"), (3, 2, "same"), ([2, 3], [1, 2], "valid")):
        for kind in ("Max", "Average"):
            net = Network(7, 7, 2)
            net.add(f"{kind}Pooling2D", pool_size=size, strides=stride, padding=padding)
            graph = load(net)
            (node,) = graph.nodes[1:]
            kernel = (3, 3) if size == 3 else (2, 3)
            assert (node.op, node.attrs["kernel"]) == (f"{kind[:3].lower()}_pool2d".replace("ave", "avg"), kernel)
            assert node.attrs["stride"] == ((2, 2) if stride == 2 else kernel if stride is None else (1, 2))
            assert node.attrs["padding"] == ("same" if padding == "same" else (0, 0, 0, 0))
    whole = Network(7, 7, 2)
    whole.add("AveragePooling2D", pool_size=[7, 7])
    close(run(load(whole), x), x.mean(axis=(1, 2), keepdims=True))
    assert load(whole).nodes[-1].op == "global_avg_pool"


def test_flatten_and_reshape() -> None:
    net = Network(3, 2, 4)
    net.add("Flatten")
    net.add("ReLU")
    net.add("Reshape", target_shape=[3, -1, 4])
    net.add("Reshape", target_shape=[24])
    kernel = floats(RNG, 24, 5)
    net.add("Dense", weights={"kernel": kernel}, use_bias=False)
    net.add("Reshape", target_shape=[1, 1, 5])
    net.add("Dense", weights={"kernel": (second := floats(RNG, 5, 6))}, use_bias=False)
    net.add("Reshape", target_shape=[-1])
    x = floats(RNG, 2, 3, 2, 4)
    expected = np.maximum(x.reshape(2, 24), 0) @ kernel @ second
    for kind in ("keras", "h5"):
        close(run(load(net, kind), x)[:, 0, 0], expected)


def test_sums_products_and_concatenation() -> None:
    net = Network(4, 4, 3)
    a = net.add("Conv2D", "image", **conv(RNG, (1, 1, 3, 3)), name="a")
    gate = net.add("GlobalAveragePooling2D", "image", keepdims=True)
    scaled = net.add("Multiply", gate, a)
    total = net.add("Add", scaled, "image", gate)
    difference = net.add("Subtract", total, a)
    net.add("Concatenate", difference, "image", axis=3)
    w = net.entries[1].weights
    x = floats(RNG, 1, 4, 4, 3)
    mean = x.mean(axis=(1, 2), keepdims=True)
    y = x @ w["kernel"][0, 0] + w["bias"]
    close(run(load(net), x), np.concatenate([mean * y + x + mean - y, x], axis=3))


@BOTH
@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_numbers_and_raw_pixels(version: int, kind: str) -> None:
    """Arithmetic with numbers right behind the input scales the pixels: they are not scaled before it."""
    names = {"TrueDivide": "math.truediv", "Subtract": "math.subtract", "Add": "__operators__.add"}

    def function(net: Network, name: str, *sources: Any) -> str:
        if version == 3:
            return net.add(name, *sources)
        return net.add("TFOpLambda", *sources, function=names.get(name, f"math.{name.lower()}"))

    net = Network(4, 4, 3, version=version)
    x = function(net, "TrueDivide", "image", 127.5)
    x = function(net, "Subtract", x, 1.0)
    x = function(net, "Add", 3.0, x)
    net.add("ReLU", x, max_value=4.0)
    graph = load(net, kind)
    assert graph.preprocess == RAW
    assert [n.op for n in graph.nodes] == ["input", "batch_norm", "activation"]
    pixels = RNG.uniform(0, 255, (1, 4, 4, 3))
    close(run(graph, pixels), np.clip(pixels / 127.5 + 2, 0, 4))


def test_rescaling_and_normalization() -> None:
    weights = {"mean": floats(RNG, 3), "variance": np.abs(floats(RNG, 3)) + 1, "count": np.zeros((), np.int64)}
    net = Network(4, 4, 3)
    net.add("Rescaling", scale=[0.1, 0.2, 0.3], offset=-1)
    net.add("Normalization", weights=weights, axis=[-1])
    net.add("Normalization", mean=[[[1.0, 2.0, 3.0]]], variance=[[[0.0, 2.0, 4.0]]], axis=-1)
    x = RNG.uniform(0, 255, (1, 4, 4, 3))
    y = (x * [0.1, 0.2, 0.3] - 1 - weights["mean"]) / np.sqrt(weights["variance"])
    y = (y - [1, 2, 3]) / [1e-7, 2**0.5, 2]
    for kind in ("keras", "h5"):
        graph = load(net, kind)
        np.testing.assert_allclose(run(graph, x), y, rtol=1e-4)
        assert graph.preprocess == RAW
    behind = Network(4, 4, 3)
    behind.add("Conv2D", **conv(RNG, (1, 1, 3, 3)))
    behind.add("Rescaling", scale=2.0)
    assert load(behind).preprocess == TENSORFLOW


@BOTH
@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_a_batch_norm_without_parameters(kind: str, version: int) -> None:
    settings = batch_norm(RNG, 3, scale=False, center=False, axis=[3])
    weights = {name: settings["weights"][name] for name in ("moving_mean", "moving_variance")}
    net = Network(4, 4, 3, version=version)
    net.add("BatchNormalization", **settings | {"weights": weights})
    x = floats(RNG, 1, 4, 4, 3)
    expected = (x - weights["moving_mean"]) / np.sqrt(weights["moving_variance"] + 1e-3)
    close(run(load(net, kind), x), expected)


def test_open_height_and_width() -> None:
    net = Network(None, None, 3)
    net.add("Conv2D", **conv(RNG, (3, 3, 3, 4), strides=2, padding="same"))
    net.add("AveragePooling2D", pool_size=3)
    graph = load(net)
    assert graph.input_size == (224, 224)
    assert run(graph, floats(RNG, 1, 20, 13, 3)).shape == (1, 3, 2, 4)


@pytest.mark.parametrize("where", ["config", "build_input_shape", "inner"])
def test_a_sequential_model_without_input_layer(where: str) -> None:
    net = Network(sequential=True)
    shape = [None, 4, 5, 3]
    net.entries = []
    if where == "inner":
        inner = Network(4, 5, 3)
        inner.add("ReLU")
        net.last = ""
        net.add("Functional", inner=inner, name="inner")
    net.last = ""
    net.add("Conv2D", **conv(RNG, (1, 1, 3, 4)), **({"batch_input_shape": shape} if where == "config" else {}))
    document = net.config()
    if where == "build_input_shape":
        document["config"]["build_input_shape"] = shape
    graph = keras.load(net.archive({"config.json": json.dumps(document)}))
    assert graph.input_size == (4, 5)
    assert run(graph, floats(RNG, 1, 4, 5, 3)).shape == (1, 4, 5, 4)


def test_layers_that_do_nothing_at_inference() -> None:
    net = Network(4, 4, 3)
    for kind in ("RandomFlip", "GaussianNoise", "Dropout", "SpatialDropout2D", "RandomRotation", "Identity"):
        net.add(kind)
    net.add("ReLU")
    assert [n.op for n in load(net).nodes] == ["input", "activation"]


@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_importers_load(kind: str, tmp_path: Path) -> None:
    net = Network(4, 4, 3)
    net.add("ReLU")
    for name in (f"net.{kind}", "net.bin"):
        (tmp_path / name).write_bytes(net.archive() if kind == "keras" else net.h5())
        graph = importers.load(tmp_path / name)
        assert [n.op for n in graph.nodes] == ["input", "activation"]
        assert graph.name == ("net" if name == f"net.{kind}" else "net.bin")
        with pytest.raises(ModelError, match="holds its own network; arch cannot be given with it"):
            importers.load(tmp_path / name, arch="mobilenet_v2")


def test_a_compressed_archive() -> None:
    net = Network(4, 4, 3)
    net.add("Conv2D", **conv(RNG, (3, 3, 3, 40)))
    files = {"config.json": json.dumps(net.config()), "model.weights.h5": write(nested(net.by_place()))}
    assert len(keras.load(zipped(files, zipfile.ZIP_DEFLATED)).nodes) == 2
