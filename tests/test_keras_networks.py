"""Files that Keras itself writes, and TensorFlow's converter: the same numbers as Keras."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import importers, reference
from fastmobilenet.graph import HARD_SWISH, Graph, count_parameters
from fastmobilenet.lower import Engine
from fastmobilenet.preprocess import RAW, TENSORFLOW
from tests.keras_networks import NETWORKS, randomize

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Keras on PyTorch, with NumPy 2

#: Of the largest output.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def keras() -> Any:
    """Keras 3 on TensorFlow or PyTorch."""
    if importlib.util.find_spec("tensorflow") is None:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return pytest.importorskip("keras", exc_type=ImportError)


def small(name: str, size: int = 64, **options: Any) -> Callable[[Any], Any]:
    options = {"input_shape": (size, size, 3), "classifier_activation": None, "classes": 20, **options}
    return lambda keras: getattr(keras.applications, name)(weights=None, **options)


#: Quick ones, then others.
APPLICATIONS = {
    "mobilenet": small("MobileNet", alpha=0.25, classifier_activation="softmax"),
    "mobilenet_v2": small("MobileNetV2", alpha=0.35, input_shape=(65, 97, 3)),
    "mobilenet_v3_small": small("MobileNetV3Small"),
    "mobilenet_v3_large": small("MobileNetV3Large", alpha=0.75),
}
OTHERS = {
    "mobilenet_v3_small_minimalistic": small("MobileNetV3Small", minimalistic=True, alpha=0.75),
    "mobilenet_v3_large_minimalistic": small("MobileNetV3Large", minimalistic=True),
    "mobilenet_v3_small_unscaled": small("MobileNetV3Small", include_preprocessing=False, include_top=False),
    "mobilenet_224": small("MobileNet", 224, classes=1000),
    "mobilenet_v2_224": small("MobileNetV2", 224, classes=1000),
    "mobilenet_v3_small_224": small("MobileNetV3Small", 224, classes=1000),
    "mobilenet_v3_large_224": small("MobileNetV3Large", 224, classes=1000),
}


def slow(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def inputs(network: Any, graph: Graph, seed: int = 1) -> np.ndarray:
    """As the network wants them; two, or one of a large size."""
    shape = tuple(size or 40 for size in network.input_shape[1:])
    pixels = np.random.default_rng(seed).uniform(0, 255, (1 if shape[0] > 100 else 2, *shape))
    if graph.preprocess != RAW:
        pixels = pixels / 127.5 - 1
    return pixels.astype(np.float32)


def compare(network: Any, graph: Graph) -> None:
    x = inputs(network, graph)
    expected = np.asarray(network.predict(x, verbose=0))
    largest = np.abs(expected).max()
    assert np.isfinite(expected).all()
    assert expected.std() > 1e-3 * largest
    found = Engine(graph).run(x, threads=1, pixels=False).reshape(expected.shape)
    assert np.abs(found - expected).max() <= TOLERANCE * largest
    if x[0].size < 10_000:
        found = reference.execute(graph, x[:1])[graph.output].reshape(expected[:1].shape)
        assert np.abs(found - expected[:1]).max() <= TOLERANCE * largest


def save(network: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Keras calls .h5 a legacy format
        network.save(path)
    return path


def made(build: Callable[[Any], Any], keras: Any) -> Any:
    keras.backend.clear_session()
    return randomize(build(keras))


@pytest.mark.parametrize("name", [*APPLICATIONS, *slow(OTHERS)])
def test_keras_applications(keras: Any, name: str, tmp_path: Path) -> None:
    network = made((APPLICATIONS | OTHERS)[name], keras)
    graphs = [importers.load(save(network, tmp_path / f"net.{kind}")) for kind in ("keras", "h5")]
    compare(network, graphs[0])
    for node, other in zip(graphs[0].nodes, graphs[1].nodes, strict=True):
        assert (node.name, node.op, node.inputs, node.attrs) == (other.name, other.op, other.inputs, other.attrs)
        for key, values in node.params.items():
            np.testing.assert_array_equal(values, other.params[key])
    graph = graphs[0]
    assert graph.preprocess == (RAW if "v3" in name and "unscaled" not in name else TENSORFLOW)
    assert (graph.input_size, graph.input_layout) == (network.input_shape[1:3], "NHWC")
    trained = sum(int(np.prod(w.shape)) for w in network.trainable_weights)
    scaling = 6 if graph.preprocess == RAW else 0  # a node of its own
    assert count_parameters(graph) == trained + scaling
    if "v3_large" in name and "minimalistic" not in name:
        assert sum(node.activation == HARD_SWISH for node in graph.nodes) == 21


@pytest.mark.parametrize("kind", ["keras", "h5"])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer(keras: Any, name: str, kind: str, tmp_path: Path) -> None:
    network = made(NETWORKS[name], keras)
    compare(network, importers.load(save(network, tmp_path / f"net.{kind}")))


@pytest.mark.parametrize("kind, trainable", [("keras", True), ("h5", False)])
def test_transfer_learning(keras: Any, kind: str, trainable: bool, tmp_path: Path) -> None:
    """A network of keras.applications for pictures of any size as a layer of another one."""

    def build(keras: Any) -> Any:
        layers = keras.layers
        base = keras.applications.MobileNetV3Small(input_shape=(None, None, 3), include_top=False, weights=None)
        base.trainable = trainable
        image = layers.Input((64, 64, 3))
        x = layers.RandomFlip()(image)
        x = layers.GlobalAveragePooling2D()(base(x, training=False))
        return keras.Model(image, layers.Dense(5, activation="softmax")(layers.Dropout(0.2)(x)))

    network = made(build, keras)
    graph = importers.load(save(network, tmp_path / f"net.{kind}"))
    assert graph.preprocess == RAW
    compare(network, graph)


@pytest.mark.parametrize("name", [*slow(APPLICATIONS), *slow(OTHERS), *NETWORKS])
def test_tensorflow_lite(keras: Any, name: str, tmp_path: Path) -> None:
    tensorflow = pytest.importorskip("tensorflow")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("the converter needs Keras on TensorFlow")
    network = made((APPLICATIONS | OTHERS | NETWORKS)[name], keras)
    if name in ("convolutions", "activations"):
        pytest.skip("the converter writes operators that are not supported: SPACE_TO_BATCH_ND, SUB of two maps")
    path = tmp_path / "net.tflite"
    path.write_bytes(tensorflow.lite.TFLiteConverter.from_keras_model(network).convert())
    graph = importers.load(path)
    if name in ("numbers", "normalised", "sequential"):  # the converter may fold the scaling into a convolution
        graph = graph.replace(preprocess=RAW)
    compare(network, graph)
