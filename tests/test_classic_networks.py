"""SqueezeNet, ShuffleNet, AlexNet, VGG and GoogLeNet in the engine, on every ISA, against the definition of their ops
and against PyTorch."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest

from fastmobilenet import _native, models, reference
from fastmobilenet.graph import Graph
from fastmobilenet.importers import state_dict
from fastmobilenet.lower import Engine

from .torchvision_nets import NETWORKS as TORCHVISION
from .torchvision_nets import torchvision_network

#: arch: (its options, height and width of the pictures)
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "squeezenet1_0": ({}, (75, 64)),
    "squeezenet1_1": ({}, (75, 64)),
    "shufflenet_v1_g1": ({"width": 0.5}, (65, 49)),
    "shufflenet_v1_g2": ({"width": 0.5}, (64, 64)),
    "shufflenet_v1_g3": ({"width": 1.0}, (65, 49)),
    "shufflenet_v1_g4": ({"width": 0.5, "padding": "same"}, (65, 48)),
    "shufflenet_v1_g8": ({"width": 0.5}, (64, 64)),
    "shufflenet_v2_x0_5": ({}, (65, 49)),
    "shufflenet_v2_x1_0": ({}, (64, 64)),
    "shufflenet_v2_x1_5": ({"padding": "same"}, (65, 48)),
    "shufflenet_v2_x2_0": ({}, (33, 64)),
    "googlenet": ({}, (65, 49)),
    "alexnet": ({"width": 0.125}, (95, 67)),
    "alexnet_original": ({"width": 0.125}, (99, 67)),
    "vgg11_bn": ({"width": 0.125}, (50, 64)),
    "vgg16": ({"width": 0.0625}, (64, 50)),
}


@functools.cache
def case(arch: str, batch: int) -> tuple[Graph, np.ndarray, np.ndarray]:
    """The network, pictures in NCHW, their logits."""
    options, size = NETWORKS[arch]
    graph = models.build(arch, classes=50, seed=3, **options)
    x = np.random.default_rng(batch).standard_normal((batch, *size, 3)).astype(np.float32)
    return graph, np.ascontiguousarray(x.transpose(0, 3, 1, 2)), reference.execute(graph, x)[graph.output]


@pytest.mark.parametrize("isa", _native.supported_isas())
@pytest.mark.parametrize("arch", NETWORKS)
def test_logits_equal_the_definition(arch: str, isa: str) -> None:
    graph, x, logits = case(arch, 2)
    found = Engine(graph, isa).run(x, threads=2, pixels=False).reshape(logits.shape)
    assert np.abs(found - logits).max() <= 1e-4 * np.abs(logits).max()
    assert (logits[0] - logits[1]).std() > 0.1 * logits.std()  # pictures with the same logits would prove little


@functools.cache
def torchvision_case(arch: str) -> tuple[Graph, np.ndarray, np.ndarray]:
    """The network from a state dict, pictures in NCHW, PyTorch's logits."""
    torch = pytest.importorskip("torch")
    module = torchvision_network(arch)
    x = np.random.default_rng(2).standard_normal((2, 3, 70, 95)).astype(np.float32)
    x[1] *= 3
    with torch.inference_mode():
        logits = module(torch.from_numpy(x)).numpy()
    return state_dict.to_graph(module.state_dict(), arch=arch), x, logits


@pytest.mark.parametrize("isa", _native.supported_isas())
@pytest.mark.parametrize("arch", TORCHVISION)
def test_logits_of_state_dicts_equal_pytorch(arch: str, isa: str) -> None:
    graph, x, logits = torchvision_case(arch)
    found = Engine(graph, isa).run(x, threads=2, pixels=False).reshape(logits.shape)
    assert np.abs(found - logits).max() <= 1e-4 * np.abs(logits).max()
    assert (logits[0] - logits[1]).std() > 0.1 * logits.std()


@pytest.mark.parametrize("arch", ["squeezenet1_1", "shufflenet_v1_g3", "shufflenet_v2_x1_0", "googlenet"])
def test_threads_and_batch_do_not_change_a_bit(arch: str) -> None:
    graph, x, _ = case(arch, 2)
    engine = Engine(graph)
    expected = engine.run(x, threads=1, pixels=False)
    np.testing.assert_array_equal(engine.run(x, threads=3, pixels=False), expected)
    np.testing.assert_array_equal(engine.run(x[1:], threads=2, pixels=False), expected[1:])


def test_pixels_are_normalised_before_googlenet_transforms_them() -> None:
    graph, _, _ = case("googlenet", 2)
    pixels = np.random.default_rng(5).integers(0, 256, (1, 48, 48, 3), dtype=np.uint8)
    x = (pixels - np.array(graph.preprocess.mean)) / np.array(graph.preprocess.std)
    logits = reference.execute(graph, x)[graph.output]
    found = Engine(graph).run(pixels, threads=1, pixels=True).reshape(logits.shape)
    assert np.abs(found - logits).max() <= 1e-4 * np.abs(logits).max()


@pytest.mark.slow
@pytest.mark.parametrize("isa", _native.supported_isas())
@pytest.mark.parametrize(
    "arch",
    ["squeezenet1_0", "squeezenet1_1", "shufflenet_v1_g3", "shufflenet_v2_x1_0", "googlenet", "alexnet", "vgg16"],
)
def test_logits_of_full_pictures_equal_the_definition(arch: str, isa: str) -> None:
    graph, x, logits = full_case(arch)
    found = Engine(graph, isa).run(x, threads=2, pixels=False).reshape(logits.shape)
    assert np.abs(found - logits).max() <= 1e-4 * np.abs(logits).max()


@functools.lru_cache(maxsize=1)  # VGG takes half a gigabyte
def full_case(arch: str) -> tuple[Graph, np.ndarray, np.ndarray]:
    graph = models.build(arch, seed=3)
    x = np.random.default_rng(7).standard_normal((1, *graph.input_size, 3)).astype(np.float32)
    return graph, np.ascontiguousarray(x.transpose(0, 3, 1, 2)), reference.execute(graph, x)[graph.output]
