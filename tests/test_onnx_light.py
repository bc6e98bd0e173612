"""The networks that the onnx package tests backends with: from Caffe and Caffe2, weights by ConstantOfShape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import importers
from fastmobilenet.errors import ModelError
from fastmobilenet.importers import onnx as reader
from fastmobilenet.lower import Engine

from .test_onnx import peer

#: And the shape of the stored output.
NETWORKS = {
    "light_squeezenet": (1, 1000, 1, 1),
    "light_shufflenet": (1, 1000),
    "light_inception_v1": (1, 1000),
    "light_densenet121": (1, 1000, 1, 1),
}


def data(name: str) -> Path:
    package = pytest.importorskip("onnx")
    path = Path(package.__file__).parent / "backend" / "test" / "data" / "light" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"this version of onnx has no {path.name}")
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_they_give_the_outputs_stored_beside_them(name: str) -> None:
    path = data(name)
    stored = pytest.importorskip("onnx").TensorProto.FromString(path.with_name(f"{name}_output_0.pb").read_bytes())
    expected = pytest.importorskip("onnx").numpy_helper.to_array(stored)
    assert expected.shape == NETWORKS[name]
    graph = importers.load(path)
    found = Engine(graph).run(np.ones((1, 3, *graph.input_size), np.float32), pixels=False)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-4)


def with_random_weights(path: Path) -> Any:
    """The model, each weight by itself: as they are, all are the same, and every output too."""
    onnx = pytest.importorskip("onnx")
    model, rng = onnx.load(path), np.random.default_rng(3)
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    variances = {node.input[4] for node in model.graph.node if node.op_type == "BatchNormalization"}
    kept = []
    for node in model.graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape, name = shapes[node.input[0]], node.output[0]
        if name in variances:
            weight = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            weight = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape)
        else:
            weight = rng.normal(0.5, 0.5, shape)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(np.float32), name))
    del model.graph.node[:]
    model.graph.node.extend(kept)
    if model.graph.node[-1].op_type == "Softmax":  # which would give one class everything
        last = model.graph.node.pop()
        model.graph.output[0].name = last.input[0]
    return model


@pytest.mark.parametrize("name", NETWORKS)
def test_they_give_the_outputs_of_onnxruntime_with_other_weights(name: str) -> None:
    pytest.importorskip("onnxruntime")
    model = with_random_weights(data(name)).SerializeToString()
    x = np.random.default_rng(4).standard_normal((1, 3, 224, 224)).astype(np.float32)
    expected = peer(model, x)
    assert expected is not None
    assert expected.std() > 0.01 * np.abs(expected).max()
    found = Engine(reader.load(model)).run(x, pixels=False).reshape(expected.shape)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_weights_that_are_hundreds_of_megabytes_in_a_small_file_are_refused() -> None:
    with pytest.raises(ModelError, match="the constants add up to far more than the file holds"):
        importers.load(data("light_vgg19"))
