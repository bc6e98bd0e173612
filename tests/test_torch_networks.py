"""Networks of torchvision and timm against PyTorch, on every ISA: other sizes, other batches, odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import _native
from fastmobilenet.importers import load
from fastmobilenet.lower import Engine

from .weight_files import torch_network

SIZES = ((224, 224), (192, 192), (225, 161))


@pytest.fixture(scope="module", params=["mobilenet_v2", "mobilenetv1_100", "mobilenetv2_050"])
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
    known: dict[bytes, np.ndarray] = {}

    def run(x: np.ndarray) -> np.ndarray:
        key = x.shape.__repr__().encode()
        if key not in known:
            with torch.inference_mode():
                known[key] = network[1](torch.from_numpy(x)).numpy()
        return known[key]

    return run


@pytest.mark.parametrize("isa", _native.supported_isas())
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch", [1, 3])
def test_logits_equal_pytorch(
    network: tuple[str, Any, Path],
    expected: Callable[[np.ndarray], np.ndarray],
    isa: str,
    size: tuple[int, int],
    batch: int,
) -> None:
    arch, _, path = network
    x = np.random.default_rng(batch).standard_normal((batch, 3, *size)).astype(np.float32)
    logits = expected(x)
    found = Engine(load(path, arch=arch), isa).run(x, threads=2, pixels=False).reshape(logits.shape)
    assert np.abs(found - logits).max() <= 1e-4 * np.abs(logits).max()
    if batch > 1:  # pictures that all give the same logits would prove little
        assert (logits[0] - logits[1]).std() > 0.1 * logits.std()
