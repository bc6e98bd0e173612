"""Networks of torchvision and timm, exported to ONNX by PyTorch, against ONNX Runtime and PyTorch, on every ISA."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import Model, _native, importers
from fastmobilenet.importers import onnx
from fastmobilenet.lower import Engine

from .test_loader_robustness import check, flips
from .torchvision_nets import NETWORKS as CLASSIC
from .torchvision_nets import torchvision_network
from .weight_files import torch_network

#: The opset in which the quick tests export each network. Later opsets have operators of their own for what earlier
#: ones write in parts; opset 9 has no ceil_mode, so that SqueezeNet is then right for the size of the file alone.
#: AlexNet and VGG are narrow here.
QUICK = {
    "mobilenet_v2": 11,
    "mobilenet_v3_small": 9,
    "squeezenet1_1": 13,
    "shufflenet_v2_x0_5": 17,
    "mobilenetv4_conv_small": 12,
    "alexnet": 10,
}
SLOW = {
    "mobilenet_v3_large": 14,
    "squeezenet1_0": 10,
    "shufflenet_v2_x1_0": 9,
    "mnasnet1_0": 16,
    "googlenet": 15,
    "vgg16": 11,
    "mobilenetv1_100": 9,
    "mobilenetv2_050": 13,
    "mobilenetv2_140": 10,
    "mobilenetv3_large_075": 11,
    "mobilenetv3_small_100": 17,
    "mobilenetv4_conv_medium": 9,
    "efficientnet_lite0": 12,
}
#: These flatten a map, so that PyTorch exports them only for the size that they were made for.
ONE_SIZE = ("alexnet", "vgg16")


@dataclass(frozen=True)
class Network:
    name: str
    module: Any
    opset: int

    def export(self, folder: Path, label: str = "", **options: Any) -> Path:
        """A file for pictures of 64x64 and any batch, or what the options say. One of each label is made, once."""
        torch = pytest.importorskip("torch")
        pytest.importorskip("onnx")
        path = folder / f"{self.name}{label}.onnx"
        if not path.exists():
            size = options.pop("size", 224 if self.name in ONE_SIZE else 64)
            options = {"opset_version": self.opset, "dynamo": False, "dynamic_axes": {"x": {0: "batch"}}} | options
            dtype = next(self.module.parameters()).dtype
            picture = torch.zeros(1, 3, size, size, dtype=dtype)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(self.module, (picture,), path, input_names=["x"], output_names=["y"], **options)
        return path


def make(name: str) -> Any:
    return torchvision_network(name) if name in CLASSIC else torch_network(name)


@pytest.fixture(scope="module", params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def network(request: pytest.FixtureRequest) -> Network:
    return Network(request.param, make(request.param), (QUICK | SLOW)[request.param])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


def onnxruntime_session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]


def pictures(batch: int, size: tuple[int, int]) -> np.ndarray:
    """Of noise of different strength: means over noise of one strength are all alike."""
    x = np.random.default_rng(batch).standard_normal((batch, 3, *size)).astype(np.float32)
    return x * np.arange(1, batch + 1, dtype=np.float32).reshape(-1, 1, 1, 1)


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    assert np.abs(found.reshape(expected.shape) - expected).max() <= 1e-4 * np.abs(expected).max()


def assert_telling(logits: np.ndarray) -> None:
    """Pictures that all have the same logits would prove little."""
    assert (logits[0] - logits[1]).std() > 0.1 * logits.std()


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_logits_equal_onnxruntime(network: Network, folder: Path, isa: str) -> None:
    path = network.export(folder)
    x = pictures(2, (224, 224) if network.name in ONE_SIZE else (64, 64))
    expected = onnxruntime_session(path)(x)
    assert_telling(expected)
    assert_same(Engine(importers.load(path), isa).run(x, threads=2, pixels=False), expected)


def test_logits_equal_pytorch(network: Network, folder: Path) -> None:
    """At a size that the file was not exported for. PyTorch computes in float64: with random weights its float32 may
    itself be 1e-4 off."""
    torch = pytest.importorskip("torch")
    path = network.export(folder)
    x = pictures(2, (224, 256) if network.name in ONE_SIZE else (49, 80))
    with torch.inference_mode():
        expected = copy.deepcopy(network.module).double()(torch.from_numpy(x).double()).numpy()
    model = Model.load(path, threads=1)
    assert (model.classes, model.name) == (1000, path.stem)
    assert_same(model.run(x), expected)


@pytest.mark.parametrize("isa", _native.supported_isas())
@pytest.mark.slow
def test_full_size_in_other_opsets(network: Network, folder: Path, isa: str) -> None:
    x = pictures(2, (224, 224))
    for opset in (9, 17):
        path = network.export(folder, f"_{opset}", opset_version=opset, size=224)
        assert_same(Engine(importers.load(path), isa).run(x, threads=2, pixels=False), onnxruntime_session(path)(x))


@pytest.mark.slow
def test_any_size_with_batch_norm_in_layers_of_its_own(network: Network, folder: Path) -> None:
    if network.name in ONE_SIZE:
        pytest.skip("PyTorch does not export an adaptive pool of an open size")
    axes = {"x": {0: "batch", 2: "height", 3: "width"}}
    kept = pytest.importorskip("torch").onnx.TrainingMode.PRESERVE
    path = network.export(folder, "_any", dynamic_axes=axes, do_constant_folding=False, training=kept)
    engine, session = Engine(importers.load(path)), onnxruntime_session(path)
    for size in ((224, 224), (161, 192), (64, 97)):
        assert_same(engine.run(pictures(2, size), pixels=False), session(pictures(2, size)))


@pytest.mark.slow
@pytest.mark.parametrize("optimize", [False, True])
def test_the_exporter_of_pytorch_2(network: Network, folder: Path, optimize: bool) -> None:
    """What torch.onnx.export writes by default; with all the steps that it would else have folded, too."""
    pytest.importorskip("onnxscript")
    options = {"opset_version": 20, "dynamic_axes": None, "external_data": False, "size": 224}
    path = network.export(folder, f"_{optimize}", dynamo=True, optimize=optimize, **options)
    x = pictures(1, (224, 224))
    assert_same(Engine(importers.load(path)).run(x, pixels=False), onnxruntime_session(path)(x))


@pytest.mark.slow
def test_weights_in_a_file_beside_it(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    network = Network("mobilenet_v2", make("mobilenet_v2"), 20)
    path = network.export(tmp_path, dynamo=True, dynamic_axes=None, external_data=True)
    assert sorted(f.name for f in tmp_path.iterdir()) == [path.name, path.name + ".data"]
    x = pictures(1, (64, 64))
    assert_same(Engine(importers.load(path)).run(x, pixels=False), onnxruntime_session(path)(x))


@pytest.mark.slow
def test_weights_of_half_precision(tmp_path: Path) -> None:
    """The file is read as if its numbers were float32. ONNX Runtime would compute in float16 else."""
    package = pytest.importorskip("onnx")
    path = Network("mobilenet_v3_small", make("mobilenet_v3_small").half(), 17).export(tmp_path)
    graph = importers.load(path)
    model = package.load(path)
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute if a.t.data_type)]
    assert {t.data_type for t in model.graph.initializer} == {package.TensorProto.FLOAT16}
    for tensor in tensors:
        if tensor.data_type == package.TensorProto.FLOAT16:
            array = package.numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(package.numpy_helper.from_array(array, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = package.TensorProto.FLOAT
    package.save(model, path)
    x = pictures(1, (64, 64))
    assert_same(Engine(graph).run(x, pixels=False), onnxruntime_session(path)(x))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_damaged_files(name: str, folder: Path, pytestconfig: pytest.Config) -> None:
    """With --slow, every one of the first 4096 bytes is flipped; the file is cut at random places."""
    data = Network(name, make(name), 17).export(folder, "_damaged").read_bytes()
    slow = pytestconfig.getoption("--slow")
    rng = np.random.default_rng(12)
    places = range(4096) if slow else rng.integers(0, 4096, 20).tolist()
    loaded, refused = check(flips(data, places, (0xFF,)), run=False, trace=False, load=onnx.load)
    assert loaded + refused == len(places)
    ends = rng.integers(0, len(data), 1000 if slow else 10).tolist()
    assert check((data[:n] for n in [*range(100), *ends]), run=False, trace=False, load=onnx.load)[0] == 0
