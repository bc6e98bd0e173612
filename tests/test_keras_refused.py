"""Keras files that must be refused with a message that says why: unsupported, inconsistent, or incomplete."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmobilenet.errors import ModelError
from fastmobilenet.importers import keras
from tests.hdf5_files import Group, nested, write
from tests.keras_files import Network, batch_norm, conv, floats

RNG = np.random.default_rng(6)
Add = Callable[[Network], Any]


def refuse(net: Network, message: str, *, document: Any = None) -> None:
    """Both kinds of file are refused, with the file's name and the message."""
    config = json.dumps(net.config() if document is None else document)
    files = {"net.keras": net.archive({"config.json": config}), "net.h5": net.h5(config)}
    for name, data in files.items():
        with pytest.raises(ModelError, match=message) as caught:
            keras.load(data, name)
        assert str(caught.value).startswith(f"{name}: ")


@pytest.mark.parametrize(
    "add, message",
    [
        (
            lambda n: n.add("Lambda", name="f"),
            r"layer 'f' \(Lambda\) is not supported: it holds Python code, which is ne",
        ),
        (
            lambda n: n.add("LeakyReLU", name="r"),
            r"layer 'r' \(LeakyReLU\) is not .*; the nearest supported form is ReLU",
        ),
        (
            lambda n: n.add("Permute"),
            r"layer 'permute' \(Permute\) is not supported; supported are Activation, Activity",
        ),
        (lambda n: n.add("TFOpLambda", function="math.tanh"), "the function 'math.tanh' is not supported"),
        (
            lambda n: n.add("Conv2D", **conv(RNG, (1, 1, 3, 4), activation="tanh")),
            "activation 'tanh' is not supported;",
        ),
        (lambda n: n.add("Activation", activation={"class_name": "Mine", "config": {}}), "activation .* is not supp"),
        (
            lambda n: n.add("Activation", activation={"class_name": "Softmax", "config": {"axis": 1}}),
            "is not supported",
        ),
        (lambda n: n.add("Conv2D", **conv(RNG, (1, 1, 3, 4), data_format="channels_first")), "'channels_first' is not"),
        (lambda n: n.add("Flatten", data_format="channels_first"), "'channels_first' is not supported"),
        (lambda n: n.add("Conv2D", **conv(RNG, (1, 1, 3, 4), padding="causal")), "padding 'causal' is neither"),
        (
            lambda n: n.add("Conv2D", **conv(RNG, (1, 1, 3, 4), strides=[0, 1])),
            r"strides is \[0, 1\]; supported are two",
        ),
        (lambda n: n.add("Conv2D", **conv(RNG, (1, 1, 3, 4), strides=2.0)), "strides is 2.0; supported are two"),
        (lambda n: n.add("Conv2D", **conv(RNG, (1, 1, 3, 4), groups=0)), "groups is 0"),
        (lambda n: n.add("Conv2D", **conv(RNG, (1, 1, 3, 4), groups=3)), "does not fit an input of 3 channels"),
        (lambda n: n.add("Conv2D", **conv(RNG, (1, 1, 2, 4))), "does not fit an input of 3 channels"),
        (lambda n: n.add("Conv2D", **conv(RNG, (1, 1, 3, 4)) | {"filters": 5}), "does not fit its config"),
        (lambda n: n.add("Conv2D", **conv(RNG, (1, 1, 3, 4)) | {"kernel_size": 3}), "does not fit its config"),
        (lambda n: n.add("Conv2D", **conv(RNG, (9, 9, 3, 4))), "a 9x9 window does not fit its 8x8 input"),
        (lambda n: n.add("ReLU", negative_slope=0.1), "negative_slope and threshold are not supported"),
        (lambda n: n.add("ReLU", threshold=1.0), "negative_slope and threshold are not supported"),
        (lambda n: n.add("ReLU", max_value=-1.0), "max_value is -1"),
        (lambda n: n.add("ReLU", max_value="six"), "max_value is 'six', expected a number"),
        (lambda n: n.add("BatchNormalization", **batch_norm(RNG, 3, axis=1)), "axis is 1; supported is the last"),
        (lambda n: n.add("BatchNormalization", **batch_norm(RNG, 3, axis=True)), "axis is True"),
        (lambda n: n.add("BatchNormalization", **batch_norm(RNG, 4)), r"gamma has shape \(4,\), expected \(3,\)"),
        (lambda n: n.add("Softmax", axis=1), "axis is 1; supported is the last"),
        (lambda n: n.add("Rescaling", scale=[1, 2], offset=0), "scale has 2 values, expected 1 or 3"),
        (lambda n: n.add("Rescaling", scale="much", offset=0), "scale is 'much', expected numbers"),
        (lambda n: n.add("Rescaling", scale=1e39, offset=0), "infinite or not numbers"),
        (lambda n: n.add("Normalization", mean=0.0, variance=-1.0), "a variance is negative"),
        (lambda n: n.add("Normalization", mean=0.0, variance=1.0, axis=1), "axis 1 or invert is not supported"),
        (lambda n: n.add("Normalization", mean=0.0, variance=1.0, invert=True), "axis -1 or invert is not supported"),
        (lambda n: n.add("ZeroPadding2D", padding=[1]), r"padding is \[1\]"),
        (lambda n: n.add("ZeroPadding2D", padding=[[0, -1], [0, 0]]), "padding is"),
        (lambda n: n.add("ZeroPadding2D", padding=[[0, 2000], [0, 0]]), "padding is"),
        (lambda n: n.add("MaxPooling2D", pool_size=65), r"the window is \(65, 65\)"),
        (lambda n: n.add("AveragePooling2D", pool_size=65), r"the window is \(65, 65\)"),
        (lambda n: n.add("Reshape", target_shape=[4, 16, 3]), r"turns \[8, 8, 3\] into \[4, 16, 3\]"),
        (lambda n: n.add("Reshape", target_shape=[64, 3]), "supported are one and three numbers"),
        (lambda n: n.add("Add", "image"), "it has 1 inputs, expected two or more"),
        (lambda n: n.add("ReLU", "image", "image"), "it has 2 inputs, expected one"),
        (lambda n: n.add("Concatenate", "image", "image", axis=1), "axis is 1; supported is the last"),
        (lambda n: n.add("TrueDivide", "image", 0.0), "supported is the division of a tensor by a number"),
        (lambda n: n.add("TrueDivide", 1.0, "image"), "supported is the division of a tensor by a number"),
        (lambda n: n.add("Dense", weights={"kernel": floats(RNG, 3)}, use_bias=False), "its kernel has the shape"),
    ],
)
def test_one_layer(add: Add, message: str) -> None:
    net = Network(8, 8, 3)
    add(net)
    refuse(net, message)


@pytest.mark.parametrize(
    "follow, message",
    [
        (lambda n: n.add("Softmax"), "is a flattened map; supported is a map"),
        (lambda n: n.add("BatchNormalization", **batch_norm(RNG, 192)), "is a flattened map"),
        (lambda n: n.add("Conv2D", **conv(RNG, (1, 1, 3, 4))), "must be a map of height, width and channels"),
        (lambda n: n.add("Concatenate", "flatten", "flatten"), "is a flattened map"),
        (
            lambda n: n.add("Dense", weights={"kernel": floats(RNG, 191, 2)}, use_bias=False),
            "does not fit an",
        ),
    ],
)
def test_behind_flatten(follow: Add, message: str) -> None:
    net = Network(8, 8, 3)
    net.add("Flatten")
    follow(net)
    refuse(net, message)


def with_relu() -> Network:
    net = Network(4, 4, 3)
    net.add("ReLU")
    return net


def changed(path: str, value: Any) -> Any:
    """The config of a network of one ReLU with one value changed."""
    document = with_relu().config()
    *parents, last = (int(key) if key.isdigit() else key for key in path.split("."))
    node: Any = document
    for key in parents:
        node = node[key]
    node[last] = value
    return document


CALL = "config.layers.1.inbound_nodes"


@pytest.mark.parametrize(
    "document, message",
    [
        ([], "the file describes a None; supported are Functional and Sequential"),
        ({"class_name": "MyModel", "config": {}}, "the file describes a 'MyModel'"),
        (changed("config.layers", []), "has no list of layers"),
        (changed("config.layers", {}), "has no list of layers"),
        (changed("config.layers.1", "ReLU"), "an entry of the list of layers is 'ReLU'"),
        (changed("config.layers.1.config", None), "a layer of class 'ReLU' has no config"),
        (changed("config.layers.1.name", 5), "a layer has the name 5"),
        (changed("config.layers.1.name", "image"), "has two layers 'image'"),
        (changed(CALL, 3), "inbound_nodes is 3"),
        (changed(CALL, [3]), "its call 3 is not in the form"),
        (changed(CALL, [{"args": [{"config": {}}]}]), "is not in the form"),
        (changed(CALL, [{"args": ["image"]}]), "is not in the form"),
        (changed(CALL, [[["image", 0]]]), "is not in the form"),
        (changed(CALL, [[["image", 0, -1]]]), "is not in the form"),
        (changed(CALL, []), "call number 0 is used, but it has 0"),
        (changed(CALL, [[["image", 0, 0, {"training": True}]]]), "is called with training=True"),
        (changed(CALL, [[["image", 0, 0, {"mask": [1]}]]]), r"it is called with \{'mask': \[1\]\}"),
        (changed(CALL, [[["nobody", 0, 0]]]), "has no layer 'nobody', whose output is used"),
        (changed(CALL, [[["image", 1, 0]]]), "is used as an input, but the model does not list"),
        (changed(CALL, [[["image", 0, 0]] * 2000]), "has 2000 inputs"),
        (changed("config.input_layers", []), "has 0 inputs, but gets 1"),
        (changed("config.input_layers", [["image", 0, 0]] * 2), "has 2 inputs, but gets 1"),
        (changed("config.input_layers", [["re_lu", 0, 0]]), r"has inputs \['re_lu'\] that are no InputLayer"),
        (changed("config.input_layers", 7), "input_layers is 7"),
        (changed("config.output_layers", []), "has 0 outputs; one is supported"),
        (changed("config.output_layers", [["re_lu", 0, 0]] * 2), "has 2 outputs; one is supported"),
        (changed("config.output_layers", {"a": ["re_lu", 0, 1]}), "it has one output, and number 1 is used"),
        (changed("config.output_layers", ["image", 0, 0]), "no layer leads from the input to the output"),
        (changed("config.layers.0.config.batch_shape", [None, 4, 4]), r"the input must be \(batch, height, width"),
        (changed("config.layers.0.config.batch_shape", [None, 4, 4, None]), "the input must be"),
        (changed("config.layers.0.config.batch_shape", [None, 4, 0, 3]), "the input's shape is"),
        (changed("config.layers.0.config.batch_shape", "4x4"), "the input's shape is '4x4'"),
        (changed("config.layers.0.config.batch_shape", None), "the input must be .* not None"),
    ],
)
def test_configs(document: Any, message: str) -> None:
    refuse(with_relu(), message, document=document)


def convolution(weights: dict[str, Any]) -> Network:
    net = Network(4, 4, 3)
    net.add("Conv2D", weights=weights, kernel_size=1, filters=4, name="c")
    return net


@pytest.mark.parametrize(
    "weights, message",
    [
        ({}, r"layer 'c' \(Conv2D\): it needs 2 arrays \(kernel, bias\), but the file holds 0"),
        ({"kernel": np.ones((1, 1, 3, 4), "f4")}, "but the file holds 1"),
        ({"kernel": np.ones((1, 1, 3, 4), "i1"), "bias": np.ones(4, "f4")}, "kernel holds int8; supported are weights"),
        (
            {"kernel": np.full((1, 1, 3, 4), np.nan, "f4"), "bias": np.ones(4, "f4")},
            "kernel has weights that are infini",
        ),
        ({"kernel": np.full((1, 1, 3, 4), 1e39), "bias": np.ones(4, "f4")}, "kernel has weights that are infinite"),
        ({"kernel": np.ones((3, 4), "f4"), "bias": np.ones(4, "f4")}, "which does not fit its config"),
        ({"kernel": np.ones((1, 1, 3, 4), "f4"), "bias": np.ones(5, "f4")}, "bias has shape"),
    ],
)
def test_weights(weights: dict[str, Any], message: str) -> None:
    refuse(convolution(weights), message)


def test_weights_that_are_not_where_they_should_be() -> None:
    net = convolution({"kernel": floats(RNG, 1, 1, 3, 4), "bias": floats(RNG, 4)})
    config = json.dumps(net.config())
    empty = {"model_config": config, "keras_version": "3.0"}
    with pytest.raises(ModelError, match="it has no group model_weights"):
        keras.load(write(Group({}, empty)))
    with pytest.raises(ModelError, match="holds weights only, without the network they belong to"):
        keras.load(write(nested({"layers/conv2d/vars/0": np.ones(1)})))
    for names, message in (
        (["kernel"], "holds no 'kernel'"),
        ("kernel", "weight_names is no list of names"),
        (np.ones(2), "weight_names is no list of names"),
    ):
        group = Group({"model_weights": Group({"c": Group({}, {"weight_names": names})})}, empty)
        with pytest.raises(ModelError, match=message):
            keras.load(write(group))
    weights = write(nested({"layers/conv2d/vars/0": Group(), "layers/conv2d/vars/1": Group()}))
    with pytest.raises(ModelError, match="is no array"):
        keras.load(net.archive({"model.weights.h5": weights}))


def test_a_nested_model_with_other_weights() -> None:
    inner = convolution({"kernel": floats(RNG, 1, 1, 3, 4), "bias": floats(RNG, 4)})
    net = Network(4, 4, 3)
    net.add("Functional", inner=inner, name="inner")
    inner.entries[-1].weights.pop("bias")
    refuse(net, "it needs 2 arrays")


def test_the_version_that_wrote_it() -> None:
    net = with_relu()
    for version, message in (("1.2", "'1.2'; supported are Keras 2 and 3"), ("99", "written by Keras '99'")):
        with pytest.raises(ModelError, match=re.escape(message)):
            keras.load(net.archive({"metadata.json": json.dumps({"keras_version": version})}))
    assert len(keras.load(net.archive({"metadata.json": "[]"})).nodes) == 2
