"""State dicts of MobileNet V3 and V4, MnasNet and EfficientNet-Lite under the names of torchvision and timm. Needs
neither."""

from __future__ import annotations

import re

import numpy as np
import pytest

from fastmobilenet import ModelError, models
from fastmobilenet.graph import Graph
from fastmobilenet.importers import state_dict
from fastmobilenet.importers._namings import Naming
from fastmobilenet.importers._plan_names import timm, torchvision_mnasnet, torchvision_v3

from .weight_files import state_of


def skeleton(arch: str, width: float | None = None, classes: int = 1000) -> Graph:
    return models.build(arch, width=width, classes=classes, weights=models.skeleton)


def shapes(graph: Graph) -> list[tuple[int, ...]]:
    return [value.shape for node in graph.nodes for value in node.params.values()]


@pytest.mark.parametrize(
    "arch,naming,expected",
    [
        (
            "mobilenet_v3_large",
            torchvision_v3,
            {
                "features.0.0.weight": (16, 3, 3, 3),
                "features.0.1.running_mean": (16,),
                "features.1.block.0.0.weight": (16, 1, 3, 3),
                "features.1.block.1.1.bias": (16,),
                "features.4.block.1.0.weight": (72, 1, 5, 5),
                "features.4.block.2.fc1.weight": (24, 72, 1, 1),
                "features.4.block.2.fc2.bias": (72,),
                "features.4.block.3.0.weight": (40, 72, 1, 1),
                "features.16.0.weight": (960, 160, 1, 1),
                "features.16.1.running_var": (960,),
                "classifier.0.weight": (1280, 960),
                "classifier.3.bias": (1000,),
            },
        ),
        (
            "mobilenetv3_small_050",
            timm,
            {
                "conv_stem.weight": (16, 3, 3, 3),
                "bn1.weight": (16,),
                "blocks.0.0.conv_dw.weight": (16, 1, 3, 3),
                "blocks.0.0.se.conv_reduce.weight": (8, 16, 1, 1),
                "blocks.0.0.conv_pw.weight": (8, 16, 1, 1),
                "blocks.0.0.bn2.bias": (8,),
                "blocks.4.2.se.conv_expand.bias": (288,),
                "blocks.4.2.conv_pwl.weight": (48, 288, 1, 1),
                "blocks.5.0.conv.weight": (288, 48, 1, 1),
                "blocks.5.0.bn1.running_mean": (288,),
                "conv_head.weight": (1024, 288, 1, 1),
                "conv_head.bias": (1024,),
                "classifier.weight": (1000, 1024),
            },
        ),
        (
            "mobilenetv4_conv_medium",
            timm,
            {
                "blocks.0.0.conv_exp.weight": (128, 32, 3, 3),
                "blocks.0.0.conv_pwl.weight": (48, 128, 1, 1),
                "blocks.1.0.dw_start.conv.weight": (48, 1, 3, 3),
                "blocks.1.0.pw_exp.bn.weight": (192,),
                "blocks.1.0.dw_mid.conv.weight": (192, 1, 5, 5),
                "blocks.1.0.pw_proj.bn.running_var": (80,),
                "blocks.3.10.dw_start.conv.weight": (256, 1, 5, 5),
                "blocks.4.0.conv.weight": (960, 256, 1, 1),
                "conv_head.weight": (1280, 960, 1, 1),
                "norm_head.bias": (1280,),
            },
        ),
        (
            "mobilenetv4_conv_small",
            timm,
            {"blocks.0.0.conv.weight": (32, 32, 3, 3), "blocks.1.1.bn1.weight": (64,)},
        ),
        (
            "mnasnet1_3",
            torchvision_mnasnet,
            {
                "layers.0.weight": (40, 3, 3, 3),
                "layers.3.weight": (40, 1, 3, 3),
                "layers.6.weight": (24, 40, 1, 1),
                "layers.7.bias": (24,),
                "layers.8.0.layers.0.weight": (72, 24, 1, 1),
                "layers.12.3.layers.3.weight": (1488, 1, 5, 5),
                "layers.13.0.layers.7.running_mean": (416,),
                "layers.14.weight": (1280, 416, 1, 1),
                "layers.15.weight": (1280,),
                "classifier.1.weight": (1000, 1280),
            },
        ),
        (
            "semnasnet_100",
            timm,
            {"blocks.2.0.se.conv_reduce.weight": (6, 72, 1, 1), "bn2.running_var": (1280,)},
        ),
        (
            "tf_efficientnet_lite1",
            timm,
            {"blocks.3.3.conv_dw.weight": (480, 1, 3, 3), "conv_head.weight": (1280, 320, 1, 1)},
        ),
    ],
)
def test_names_are_those_of_the_libraries(arch: str, naming: Naming, expected: dict[str, tuple[int, ...]]) -> None:
    state = state_of(skeleton(arch), arch, naming)
    assert {name: state[name].shape for name in expected} == expected
    assert shapes(state_dict.to_graph(state, arch=arch)) == shapes(skeleton(arch))


@pytest.mark.parametrize(
    "arch,naming",
    [
        ("mobilenet_v3_large", torchvision_v3),
        ("mobilenet_v3_small", torchvision_v3),
        ("mobilenetv4_conv_small", timm),
        ("mobilenetv4_conv_medium", timm),
        ("mnasnet", torchvision_mnasnet),
        ("mnasnet", timm),
    ],
)
@pytest.mark.parametrize("width", [0.05, 0.35, 0.5, 0.62, 0.99, 1.0, 1.3, 2.0, 3.1])
def test_width_and_classes_are_read_from_the_shapes(arch: str, naming: Naming, width: float) -> None:
    expected = skeleton(arch, width, 17)
    graph = state_dict.to_graph(state_of(expected, arch, naming, width), arch=arch)
    assert shapes(graph) == shapes(expected)


def test_every_arch_loads_from_its_own_state_dict() -> None:
    for arch in models.available():
        if not isinstance(models.find(arch).plan(), models.Plan) or arch.startswith("keras_"):
            continue
        torchvision = arch.startswith(("mobilenet_v3", "mnasnet1_", "mnasnet0_"))
        naming = timm if not torchvision else torchvision_v3 if "v3" in arch else torchvision_mnasnet
        graph = skeleton(arch, classes=5)
        got = state_dict.to_graph(state_of(graph, arch, naming), arch=arch)
        assert shapes(got) == shapes(graph)
        assert (got.preprocess, got.input_size, got.name) == (graph.preprocess, graph.input_size, arch)


def test_conventions_are_those_of_the_arch() -> None:
    """The same tensors, under the same names, are different networks."""
    state = state_of(skeleton("mobilenetv3_small_100"), "mobilenetv3_small_100", timm)
    for arch, padding, epsilon in (
        ("mobilenetv3_small_100", (1, 1, 1, 1), 1e-5),
        ("tf_mobilenetv3_small_100", "same", 1e-3),
    ):
        graph = state_dict.to_graph(state, arch=arch)
        assert graph["conv1"].attrs["padding"] == padding
        assert graph["conv1/bn"].attrs["epsilon"] == epsilon
        graph = state_dict.to_graph(state, arch=arch, padding="symmetric", epsilon=1e-4)
        assert graph["conv1"].attrs["padding"] == (1, 1, 1, 1)
        assert graph["hidden/hard_swish"].inputs == ("hidden",)
        assert graph["conv1/bn"].attrs["epsilon"] == 1e-4


def test_dense_layers_may_be_convolutions() -> None:
    """timm has a 1x1 convolution behind the pool, torchvision a dense layer; the numbers are the same."""
    graph = models.build("mobilenet_v3_small", width=0.1, classes=3, seed=4)
    state = state_of(graph, "mobilenet_v3_small", torchvision_v3, 0.1)
    expected = state["classifier.0.weight"]
    np.testing.assert_array_equal(graph["hidden"].params["weight"], expected)
    got = state_dict.to_graph({**state, "classifier.0.weight": expected[:, :, None, None]}, arch="mobilenet_v3_small")
    np.testing.assert_array_equal(got["hidden"].params["weight"], expected)
    wide = np.tile(expected[:, :, None, None], (1, 1, 2, 2))
    problem = r"'classifier\.0\.weight' has shape \(104, 96, 2, 2\), expected \(104, 96, 1, 1\)"
    with pytest.raises(ModelError, match=problem):
        state_dict.to_graph({**state, "classifier.0.weight": wide}, arch="mobilenet_v3_small")


def test_archs_that_fit_are_named() -> None:
    state = state_of(skeleton("mobilenetv3_large_100"), "mobilenetv3_large_100", timm)
    with pytest.raises(ModelError) as caught:
        state_dict.to_graph(state, arch="mobilenet_v3_large")
    assert "tensor 'features.0.0.weight' of shape (16, 3, 3, 3) is missing" in str(caught.value)
    assert str(caught.value).endswith("It fits arch='mobilenetv3_large_100' or arch='tf_mobilenetv3_large_100'")
    for arch, naming, fitting in (
        ("mobilenet_v3_small", torchvision_v3, ["mobilenet_v3_small"]),
        ("mnasnet0_5", torchvision_mnasnet, ["mnasnet", "mnasnet0_5", "mnasnet_050"]),
        ("semnasnet_140", timm, ["semnasnet_140"]),
        ("mobilenetv4_conv_small_050", timm, ["mobilenetv4_conv_small_050", "mobilenetv4_conv_small"]),
        ("efficientnet_lite2", timm, ["efficientnet_lite2", "tf_efficientnet_lite2"]),
        ("tf_mobilenetv3_small_minimal_100", timm, ["tf_mobilenetv3_small_minimal_100"]),
    ):
        with pytest.raises(ModelError) as caught:
            state_dict.to_graph(state_of(skeleton(arch), arch, naming), arch=None)
        assert re.findall(r"arch='(\w+)'", str(caught.value)) == fitting


def test_a_missing_squeeze_excite_is_named() -> None:
    state = state_of(skeleton("mobilenetv3_small_075"), "mobilenetv3_small_075", timm)
    name = "blocks.2.1.se.conv_expand.bias"
    del state[name]
    with pytest.raises(ModelError, match=rf"tensor '{name}' of shape \(192,\) is missing.*No other known network"):
        state_dict.to_graph(state, arch="mobilenetv3_small_075")


def test_keras_networks_have_no_state_dicts() -> None:
    state = state_of(skeleton("mobilenetv3_small_100"), "mobilenetv3_small_100", timm)
    with pytest.raises(
        ModelError, match=r"no library has state dicts of arch 'keras_mobilenet_v3_small'; arch must be"
    ):
        state_dict.to_graph(state, arch="keras_mobilenet_v3_small")
