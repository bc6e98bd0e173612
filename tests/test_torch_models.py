"""The MobileNets, MnasNets and EfficientNet-Lites of torchvision and timm against the import of their state dicts:
outputs, names, conventions. Needs PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from fastmobilenet import models, reference
from fastmobilenet.graph import Graph
from fastmobilenet.importers import _plan_names, state_dict
from fastmobilenet.importers._namings import Naming

from .peers import import_torchvision
from .weight_files import state_of, torch_network, with_statistics

TORCHVISION = {
    "mobilenet_v2": ("MobileNet_V2_Weights", _plan_names.torchvision_v2),
    "mobilenet_v3_large": ("MobileNet_V3_Large_Weights", _plan_names.torchvision_v3),
    "mobilenet_v3_small": ("MobileNet_V3_Small_Weights", _plan_names.torchvision_v3),
    "mnasnet0_5": ("MNASNet0_5_Weights", _plan_names.torchvision_mnasnet),
    "mnasnet0_75": ("MNASNet0_75_Weights", _plan_names.torchvision_mnasnet),
    "mnasnet1_0": ("MNASNet1_0_Weights", _plan_names.torchvision_mnasnet),
    "mnasnet1_3": ("MNASNet1_3_Weights", _plan_names.torchvision_mnasnet),
}
TIMM = [
    arch
    for arch in models.available()
    if isinstance(models.find(arch).plan(), models.Plan)
    and arch not in (*TORCHVISION, "mobilenet_v1", "mnasnet")
    and not arch.startswith("keras_")
]

#: arch: height and width of the picture
OUTPUTS = {
    "mobilenet_v2": (65, 49),
    "mobilenet_v3_large": (64, 64),
    "mobilenet_v3_small": (65, 49),
    "mnasnet1_0": (64, 50),
    "mobilenetv1_100": (64, 64),
    "mobilenetv2_050": (64, 64),
    "mobilenetv2_140": (65, 49),
    "mobilenetv3_large_075": (65, 49),
    "mobilenetv3_small_100": (64, 64),
    "mobilenetv4_conv_small": (64, 50),
    "mobilenetv4_conv_medium": (65, 49),
    "efficientnet_lite0": (64, 64),
    "tf_mobilenetv3_small_075": (64, 50),  # "same" padding: even sizes tell it from the symmetric one
    "tf_mobilenetv3_large_minimal_100": (64, 64),
    "semnasnet_075": (65, 49),
    "mnasnet_small": (64, 64),
}


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def libraries(torch: Any) -> tuple[Any, Any]:
    """(torchvision.models, timm); skips where they are missing."""
    return import_torchvision().models, pytest.importorskip("timm")


def check_outputs(torch: Any, module: Any, graph: Graph, h: int, w: int, *, contrast: float = 1.0) -> None:
    """``contrast``: of the second picture, relative to the first."""
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(2))
    x[1] *= contrast
    with torch.no_grad():
        expected = module(x).numpy()
    got = reference.execute(graph, x.numpy().transpose(0, 2, 3, 1))["logits"].reshape(expected.shape)
    assert np.abs(expected).max() > 1e-3
    assert (expected[0] - expected[1]).std() > 0.1 * expected.std()  # else the test would prove little
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


# --- outputs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", OUTPUTS)
def test_outputs_equal_those_of_pytorch(torch: Any, libraries: tuple[Any, Any], arch: str) -> None:
    module = torch_network(arch)
    check_outputs(torch, module, state_dict.to_graph(module.state_dict(), arch=arch), *OUTPUTS[arch])


@pytest.mark.slow
@pytest.mark.parametrize("arch", [*OUTPUTS, "mobilenetv4_conv_large", "tf_efficientnet_lite4"])
def test_outputs_of_full_pictures_equal_those_of_pytorch(torch: Any, libraries: tuple[Any, Any], arch: str) -> None:
    module = torch_network(arch)
    graph = state_dict.to_graph(module.state_dict(), arch=arch)
    # The means of large pictures of noise are all alike.
    check_outputs(torch, module, graph, *graph.input_size, contrast=4.0)


@pytest.mark.parametrize(
    "arch,make,size",
    [
        # At this width the first block has a residual too, because 32 and 16 channels both become 8.
        ("mobilenet_v2", lambda tv: tv.MobileNetV2(width_mult=0.25, num_classes=7), (37, 70)),
        # Here some blocks have no expansion, because it would have as many channels as the input.
        ("mobilenet_v3_large", lambda tv: tv.mobilenet_v3_large(width_mult=0.1, num_classes=7), (37, 70)),
        ("mobilenet_v3_small", lambda tv: tv.mobilenet_v3_small(width_mult=0.6, num_classes=7), (64, 33)),
        ("mnasnet", lambda tv: tv.MNASNet(0.2, num_classes=7), (37, 70)),
    ],
)
def test_narrow_networks_with_few_classes(
    torch: Any, libraries: tuple[Any, Any], arch: str, make: Callable[[Any], Any], size: tuple[int, int]
) -> None:
    torch.manual_seed(3)
    module = with_statistics(make(libraries[0]))
    graph = state_dict.to_graph(module.state_dict(), arch=arch)
    assert graph["logits"].params["bias"].shape == (7,)
    residual = arch in ("mobilenet_v2", "mobilenet_v3_large")
    assert residual == ("block_0" in [n.name for n in graph.nodes])
    check_outputs(torch, module, graph, *size)


# --- names and shapes -----------------------------------------------------------------------------------


def shapes(module: Any) -> dict[str, tuple[int, ...]]:
    state = module.state_dict()
    return {name: tuple(v.shape) for name, v in state.items() if not name.endswith("num_batches_tracked")}


def wanted(arch: str, naming: Naming, width: float | None = None, classes: int = 1000) -> dict[str, Any]:
    graph = models.build(arch, width=width, classes=classes, weights=models.skeleton)
    state = state_of(graph, arch, naming, width)
    return {name: v.shape for name, v in state.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("arch", TIMM)
def test_every_timm_network_has_these_names_shapes_and_conventions(
    torch: Any, libraries: tuple[Any, Any], arch: str
) -> None:
    _, timm = libraries
    with torch.device("meta"):  # no memory, no weights
        module = timm.create_model(arch)
    assert wanted(arch, _plan_names.timm) == shapes(module)
    graph = models.build(arch, weights=models.skeleton)
    epsilons = {m.eps for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert {n.attrs["epsilon"] for n in graph.nodes if n.op == "batch_norm"} == epsilons
    strided = [m for m in module.modules() if isinstance(m, torch.nn.Conv2d) and m.stride == (2, 2)]
    same = graph["conv1"].attrs["padding"] == "same"
    assert same == arch.startswith("tf_")
    assert {m.padding[0] - (0 if same else m.kernel_size[0] // 2) for m in strided} == {0}
    config, preprocess = module.pretrained_cfg, graph.preprocess
    assert config["interpolation"] == preprocess.interpolation
    assert config["input_size"] == (3, *graph.input_size)
    size = graph.input_size[0]
    assert int(size / config["crop_pct"]) == round(size / preprocess.crop_fraction)
    np.testing.assert_allclose(preprocess.mean, np.array(config["mean"]) * 255)
    np.testing.assert_allclose(preprocess.std, np.array(config["std"]) * 255)


@pytest.mark.parametrize("arch", TORCHVISION)
def test_every_torchvision_network_has_these_names_shapes_and_conventions(
    torch: Any, libraries: tuple[Any, Any], arch: str
) -> None:
    weights, naming = TORCHVISION[arch]
    with torch.device("meta"):
        module = getattr(libraries[0], arch)()
    assert wanted(arch, naming) == shapes(module)
    graph = models.build(arch, weights=models.skeleton)
    epsilons = {m.eps for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert {n.attrs["epsilon"] for n in graph.nodes if n.op == "batch_norm"} == epsilons
    transform = getattr(libraries[0], weights).IMAGENET1K_V1.transforms()
    assert graph.input_size == (transform.crop_size[0], transform.crop_size[0])
    assert round(graph.input_size[0] / graph.preprocess.crop_fraction) == transform.resize_size[0]
    assert graph.preprocess.interpolation == transform.interpolation.value
    np.testing.assert_allclose(graph.preprocess.mean, np.array(transform.mean) * 255)
    np.testing.assert_allclose(graph.preprocess.std, np.array(transform.std) * 255)


@pytest.mark.parametrize("width", [0.1, 0.62, 1.4, 2.3])
@pytest.mark.parametrize(
    "arch,make",
    [
        ("mobilenet_v2", lambda tv, width: tv.MobileNetV2(width_mult=width, num_classes=11)),
        ("mobilenet_v3_large", lambda tv, width: tv.mobilenet_v3_large(width_mult=width, num_classes=11)),
        ("mobilenet_v3_small", lambda tv, width: tv.mobilenet_v3_small(width_mult=width, num_classes=11)),
        ("mnasnet", lambda tv, width: tv.MNASNet(width, num_classes=11)),
    ],
)
def test_torchvision_networks_of_any_width_have_these_names_and_shapes(
    torch: Any, libraries: tuple[Any, Any], arch: str, make: Callable[[Any, float], Any], width: float
) -> None:
    with torch.device("meta"):
        module = make(libraries[0], width)
    naming = _plan_names.torchvision_mnasnet if arch == "mnasnet" else TORCHVISION[arch][1]
    assert wanted(arch, naming, width, 11) == shapes(module)


def test_channel_rounding_is_timms(libraries: tuple[Any, Any]) -> None:
    from timm.layers import make_divisible as theirs

    from fastmobilenet.models._common import make_divisible

    for base in (16, 24, 32, 64, 96, 128, 160, 320, 512, 1024, 1280):
        for width in np.arange(0.01, 3.0, 0.01):
            assert make_divisible(base * width) == theirs(base * width), (base, width)
