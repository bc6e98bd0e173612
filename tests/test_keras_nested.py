"""Keras files with models in models, layers that are called twice, and the arrangements of their weights."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fastmobilenet.importers import keras
from tests.hdf5_files import Group, nested, write
from tests.keras_files import Network, batch_norm, conv, floats
from tests.test_keras import close, load, normalise, run
from tests.test_tflite import SAME, convolve

RNG = np.random.default_rng(9)
BOTH = pytest.mark.parametrize("version", [2, 3])


def block(version: int, name: str = "block") -> Network:
    inner = Network(6, 6, 3, version=version, name=name)
    inner.add("Conv2D", **conv(RNG, (3, 3, 3, 3), padding="same"), name="conv")
    inner.add("BatchNormalization", **batch_norm(RNG, 3), name="Conv/BatchNorm")
    inner.add("Conv2D", **conv(RNG, (3, 3, 3, 3), padding="same"), name="conv_2")
    inner.add("BatchNormalization", **batch_norm(RNG, 3), name="conv_2/BatchNorm")
    return inner


def compute_block(inner: Network, x: np.ndarray) -> np.ndarray:
    for i in (1, 3):
        w = inner.entries[i].weights
        x = convolve(x, w["kernel"].transpose(3, 0, 1, 2), (1, 1), SAME) + w["bias"]
        x = normalise(x, inner.entries[i + 1])
    return x


@BOTH
@pytest.mark.parametrize("kind", ["keras", "h5"])
@pytest.mark.parametrize("sequential", [False, True])
def test_models_in_models(kind: str, version: int, sequential: bool) -> None:
    inner = block(version, name="inner")
    middle = Network(6, 6, 3, version=version, name="middle", sequential=sequential)
    middle.add("Functional", inner=inner, name="inner")
    net = Network(6, 6, 3, version=version, sequential=sequential)
    net.add("Functional", inner=middle, name="middle")
    net.add("ReLU")
    x = floats(RNG, 1, 6, 6, 3)
    close(run(load(net, kind), x), np.maximum(compute_block(inner, x), 0))


@BOTH
@pytest.mark.parametrize("kind", ["keras", "h5"])
def test_layers_and_models_that_are_called_twice(kind: str, version: int) -> None:
    inner = block(version)
    net = Network(6, 6, 3, version=version)
    net.add("Functional", inner=inner, name="block")
    relu = net.add("ReLU")
    second = net.call("block", relu)
    net.call(relu, second)
    x = floats(RNG, 1, 6, 6, 3)
    expected = x
    for _ in range(2):
        expected = np.maximum(compute_block(inner, expected), 0)
    graph = load(net, kind)
    close(run(graph, x), expected)
    assert graph["conv"].params["weight"].shape == (3, 3, 3, 3)
    assert len(graph.nodes) == 1 + 2 * 5


def test_layers_that_were_renamed() -> None:
    """Names that do not tell: the order does, trainable arrays first."""
    inner = block(3)
    net = Network(6, 6, 3)
    net.add("Functional", inner=inner, name="block")
    data = net.h5()
    x = floats(RNG, 1, 6, 6, 3)
    expected = compute_block(inner, x)
    close(run(keras.load(data), x), expected)
    for i, entry in enumerate(inner.entries[1:], 1):
        new = f"other_{i}"
        inner.last = new if inner.last == entry.name else inner.last
        for later in inner.entries:
            later.sources = [[new if s == entry.name else s for s in call] for call in later.sources]
        entry.name = entry.config["name"] = new
    config = json.dumps(net.config())
    for old in (b"conv/", b"conv_2", b"Conv/"):
        assert old in data
    renamed = rewritten(data, config)
    close(run(keras.load(renamed), x), expected)


def rewritten(data: bytes, config: str) -> bytes:
    """The .h5 file with another model_config."""
    file = keras.Hdf5File(data)

    def copy(found: Any) -> Any:
        if not found.is_group:
            return found.array()
        names = found.attribute("weight_names")
        attributes = {} if names is None else {"weight_names": names}
        return Group({name: copy(found.get(name)) for name in found.links()}, attributes)

    root = copy(file.root)
    root.attributes = {"model_config": config, "keras_version": "3.15.0"}
    return write(root)


def test_a_long_list_of_names_is_split() -> None:
    net = Network(4, 4, 3, version=2)
    net.add("Conv2D", **conv(RNG, (1, 1, 3, 4)), name="c")
    weights = net.entries[-1].weights
    group = nested({"c/kernel:0": weights["kernel"], "c/bias:0": weights["bias"]})
    group.attributes = {"weight_names0": ["c/kernel:0"], "weight_names1": np.array([b"c/bias:0"])}
    attributes = {"model_config": json.dumps(net.config())}
    data = write(Group({"model_weights": Group({"c": group, "image": Group()})}, attributes))
    x = floats(RNG, 1, 4, 4, 3)
    close(run(keras.load(data), x), x @ weights["kernel"][0, 0] + weights["bias"])


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4"])
def test_other_floats(dtype: str) -> None:
    kernel = np.arange(12).reshape(1, 1, 3, 4).astype(dtype)
    net = Network(4, 4, 3)
    net.add("Conv2D", weights={"kernel": kernel}, kernel_size=1, filters=4, use_bias=False)
    for kind in ("keras", "h5"):
        weight = load(net, kind).nodes[-1].params["weight"]
        assert (weight.dtype, weight[:, 0, 0].T.tolist()) == (np.float32, kernel[0, 0].tolist())


def test_archives_of_keras_2_13() -> None:
    """They have another name for the list of layers, in which layers with weights count twice."""
    net = Network(6, 6, 3, version=2)
    net.add("Conv2D", **conv(RNG, (1, 1, 3, 3)))
    net.add("ReLU")
    net.add("Functional", inner=block(2), name="block")
    net.add("ReLU")
    net.add("Conv2D", **conv(RNG, (1, 1, 3, 4)))
    places = net.by_place("_layer_checkpoint_dependencies", step=2)
    assert "_layer_checkpoint_dependencies/conv2d_2/vars/0" in places
    graph = keras.load(net.archive({"model.weights.h5": write(nested(places))}))
    for node, expected in zip(graph.nodes, keras.load(net.archive()).nodes, strict=True):
        for key, values in node.params.items():
            np.testing.assert_array_equal(values, expected.params[key])
