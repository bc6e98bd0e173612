"""Networks of torchvision and timm, exported to ONNX, against ONNX Runtime and PyTorch, on every ISA."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import Model, _native, importers
from fastmobilenet.lower import Engine

from .weight_files import torch_network

SIZES = ((224, 224), (161, 192))


def export(module: Any, path: Path, **options: Any) -> Path:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (torch.zeros(1, 3, 224, 224),), path, input_names=["x"], output_names=["y"], **options
        )
    return path


def onnxruntime_session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"x": x})[0]


@pytest.fixture(scope="module", params=["mobilenet_v2", "mobilenetv1_100", "mobilenetv2_050"])
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A PyTorch module; its file for pictures of 224x224, of opset 11; its file for any size and batch, of opset 17,
    with batch norm as layers of their own."""
    module = torch_network(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    fixed = export(module, folder / "fixed.onnx", opset_version=11, dynamo=False)
    sizes = {0: "batch", 2: "height", 3: "width"}
    any_size = export(
        module,
        folder / "any.onnx",
        opset_version=17,
        dynamo=False,
        dynamic_axes={"x": sizes, "y": {0: "batch"}},
        do_constant_folding=False,
        training=pytest.importorskip("torch").onnx.TrainingMode.PRESERVE,
    )
    return module, fixed, any_size


def pictures(batch: int, size: tuple[int, int]) -> np.ndarray:
    return np.random.default_rng(batch).standard_normal((batch, 3, *size)).astype(np.float32)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found.reshape(expected.shape) - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_logits_equal_onnxruntime(network: tuple[Any, Path, Path], isa: str) -> None:
    _, fixed, any_size = network
    runtime = onnxruntime_session(any_size)
    ops = [{node.op for node in importers.load(path).nodes} for path in (fixed, any_size)]
    assert ops[1] - ops[0] == {"batch_norm"}
    engines = [Engine(importers.load(path), isa) for path in (fixed, any_size)]
    for size in SIZES:
        x = pictures(2, size)
        expected = runtime(x)
        assert (expected[0] - expected[1]).std() > 0.1 * expected.std()  # else all pictures have the same logits
        for engine in engines:
            assert_same(engine.run(x, threads=2, pixels=False), expected)


@pytest.mark.parametrize("size", SIZES)
def test_logits_equal_pytorch(network: tuple[Any, Path, Path], size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    module, fixed, _ = network
    x = pictures(1, size)
    with torch.inference_mode():
        expected = module(torch.from_numpy(x)).numpy()
    model = Model.load(fixed, threads=1)
    assert (model.input_size, model.classes, model.name) == ((224, 224), 1000, "fixed")
    assert_same(model.run(x), expected)


@pytest.mark.slow
def test_torch_export_with_external_data(tmp_path: Path) -> None:
    """What torch.onnx.export writes by default: weights in a file beside it."""
    pytest.importorskip("onnxscript")
    path = export(torch_network("mobilenet_v2"), tmp_path / "net.onnx", dynamo=True, external_data=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    x = pictures(1, (224, 224))
    assert_same(Engine(importers.load(path)).run(x, pixels=False), onnxruntime_session(path)(x))
