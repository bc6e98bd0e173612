"""Networks of torchvision and timm against PyTorch, on every ISA: other sizes, other batches, odd sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import Model, _native
from fastmobilenet.importers import load
from fastmobilenet.lower import Engine

from .weight_files import torch_network

#: arch: (pictures, height, width) of the batches; the network's own size is added with --slow.
NETWORKS = {
    "mobilenet_v2": ((1, 224, 224), (3, 192, 192), (3, 225, 161)),
    "mobilenetv1_100": ((3, 224, 224), (1, 225, 161)),
    "mobilenetv2_050": ((3, 192, 192), (1, 65, 49)),
    "mobilenetv2_140": ((2, 96, 64),),
    "mobilenet_v3_large": ((3, 96, 64), (1, 65, 49)),
    "mobilenet_v3_small": ((1, 96, 64), (3, 65, 49)),
    "mobilenetv3_large_075": ((2, 65, 49),),
    "mobilenetv3_small_100": ((2, 65, 49),),
    "tf_mobilenetv3_large_minimal_100": ((2, 64, 96),),
    "tf_mobilenetv3_small_075": ((2, 96, 64),),
    "mobilenetv4_conv_small": ((3, 96, 64), (1, 65, 49)),
    "mobilenetv4_conv_medium": ((2, 65, 49),),
    "mnasnet1_0": ((2, 65, 49),),
    "semnasnet_075": ((2, 96, 64),),
    "efficientnet_lite0": ((2, 65, 49),),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Path]:
    """arch, the PyTorch module, its weights as a file."""
    torch = pytest.importorskip("torch")
    module = torch_network(request.param)
    path = tmp_path_factory.mktemp("weights") / f"{request.param}.pth"
    torch.save(module.state_dict(), path)
    return request.param, module, path


@pytest.fixture(scope="module")
def expected(network: tuple[str, Any, Path]) -> Callable[[np.ndarray], np.ndarray]:
    torch = pytest.importorskip("torch")
    known: dict[int, np.ndarray] = {}

    def run(x: np.ndarray) -> np.ndarray:
        key = hash(x.tobytes())
        if key not in known:
            with torch.inference_mode():
                known[key] = network[1](torch.from_numpy(x)).numpy()
        return known[key]

    return run


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_logits_equal_pytorch(
    network: tuple[str, Any, Path], expected: Callable[[np.ndarray], np.ndarray], isa: str
) -> None:
    arch, _, path = network
    engine = Engine(load(path, arch=arch), isa)
    for batch, *size in NETWORKS[arch]:
        check(engine, expected, (batch, 3, *size))


@pytest.mark.slow
@pytest.mark.parametrize("isa", _native.supported_isas())
def test_logits_of_full_pictures_equal_pytorch(
    network: tuple[str, Any, Path], expected: Callable[[np.ndarray], np.ndarray], isa: str
) -> None:
    arch, _, path = network
    graph = load(path, arch=arch)
    check(Engine(graph, isa), expected, (2, 3, *graph.input_size), contrast=2.0)


def check(
    engine: Engine,
    expected: Callable[[np.ndarray], np.ndarray],
    shape: tuple[int, ...],
    contrast: float = 1.0,
) -> None:
    """``contrast``: of all pictures but the first; the means of large pictures of noise are all alike."""
    x = np.random.default_rng(shape[0]).standard_normal(shape).astype(np.float32)
    x[1:] *= contrast
    logits = expected(x)
    found = engine.run(x, threads=2, pixels=False).reshape(logits.shape)
    assert np.abs(found - logits).max() <= 1e-4 * np.abs(logits).max(), shape
    if shape[0] > 1:  # pictures that all give the same logits would prove little
        assert (logits[0] - logits[1]).std() > 0.1 * logits.std()


def test_a_model_of_a_state_dict_takes_pictures(
    network: tuple[str, Any, Path], expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    arch, _, path = network
    model = Model.load(str(path), arch=arch, threads=1)
    _, h, w = NETWORKS[arch][-1]
    pixels = np.random.default_rng(8).integers(0, 256, (h, w, 3), dtype=np.uint8)
    preprocess = model.preprocess
    x = (pixels - np.array(preprocess.mean)) / np.array(preprocess.std)
    logits = expected(np.ascontiguousarray(x.transpose(2, 0, 1)[None], dtype=np.float32))[0]
    assert np.abs(model.run(pixels, size=(h, w)) - logits).max() <= 1e-4 * np.abs(logits).max()
