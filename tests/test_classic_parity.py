"""SqueezeNet, ShuffleNet, AlexNet, VGG and GoogLeNet against PyTorch: the outputs of their state dicts, the names and
conventions of torchvision and timm. Needs PyTorch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import ModelError, importers, models, reference
from fastmobilenet.graph import Graph, Node
from fastmobilenet.importers import state_dict
from fastmobilenet.models import shufflenet_v1

from .peers import import_torchvision
from .torchvision_nets import NETWORKS, shufflenet_v1_network, torchvision_network

#: Narrow in quick tests: AlexNet and VGG have 60 to 140 million parameters, nearly all in dense layers.
WIDE = [arch for arch, (_, _, width) in NETWORKS.items() if width != 1.0]


@pytest.fixture(scope="module")
def torch() -> Iterator[Any]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def net(torch: Any) -> Callable[[str], Any]:
    """Makes one of NETWORKS, each once."""
    return functools.cache(torchvision_network)


def check_outputs(torch: Any, module: Any, graph: Graph, h: int, w: int) -> None:
    x = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(2))
    x[1] *= 3  # means over noise of one strength would all be alike
    with torch.no_grad():
        expected = module(x).numpy()
    got = reference.execute(graph, x.numpy().transpose(0, 2, 3, 1))["logits"].reshape(expected.shape)
    assert np.abs(expected).max() > 1e-3
    assert (expected[0] - expected[1]).std() > 0.1 * expected.std()  # else the test would prove little
    assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()


# --- outputs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", NETWORKS)
def test_outputs_equal_those_of_pytorch(torch: Any, net: Any, arch: str) -> None:
    graph = state_dict.to_graph(net(arch).state_dict(), arch=arch)
    assert graph.name == arch
    check_outputs(torch, net(arch), graph, *((67, 98) if arch == "alexnet" else (64, 50)))


@pytest.mark.parametrize("arch,h,w", [("squeezenet1_0", 21, 33), ("googlenet", 15, 31), ("shufflenet_v2_x0_5", 33, 47)])
def test_small_and_odd_pictures(torch: Any, net: Any, arch: str, h: int, w: int) -> None:
    graph = state_dict.to_graph(net(arch).state_dict(), arch=arch)
    check_outputs(torch, net(arch), graph, h, w)


@pytest.mark.slow
@pytest.mark.parametrize("arch", WIDE)
def test_outputs_of_full_width_equal_those_of_pytorch(torch: Any, arch: str) -> None:
    module = torchvision_network(arch, full=True)
    graph = state_dict.to_graph(module.state_dict(), arch=arch)
    check_outputs(torch, module, graph, *((67, 98) if arch == "alexnet" else (64, 50)))


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 8])
def test_shufflenet_v1_equals_its_paper_in_pytorch(torch: Any, groups: int) -> None:
    plan = shufflenet_v1.plan(0.5, groups=groups)
    module = shufflenet_v1_network(groups, plan.stem, plan.stages, classes=40)
    graph = shufflenet_v1.build(0.5, groups=groups, classes=40, weights=in_order(torch, module))
    check_outputs(torch, module, graph, 64, 50)


def in_order(torch: Any, module: Any) -> models.ParameterSource:
    """The parameters of a module whose layers come in the order of the graph's."""
    kinds = {"conv2d": torch.nn.Conv2d, "batch_norm": torch.nn.BatchNorm2d, "dense": torch.nn.Linear}
    layers = {op: iter([m for m in module.modules() if isinstance(m, kind)]) for op, kind in kinds.items()}
    current: dict[str, Any] = {}

    def weights(node: Node, key: str) -> np.ndarray:
        if node.name not in current:
            current[node.name] = next(layers[node.op])
        value = getattr(current[node.name], state_dict.BATCH_NORM[key] if node.op == "batch_norm" else key)
        array: np.ndarray = value.detach().numpy()
        return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array

    return weights


# --- state dicts ----------------------------------------------------------------------------------------


def test_auxiliary_heads_of_googlenet_are_ignored(torch: Any, net: Any, tmp_path: Path) -> None:
    state = net("googlenet").state_dict()
    assert "aux1.fc2.weight" in state
    without = {key: value for key, value in state.items() if not key.startswith("aux")}
    torch.save(state, tmp_path / "net.pth")
    check_same(importers.load(tmp_path / "net.pth", arch="googlenet"), state_dict.to_graph(without, arch="googlenet"))
    with pytest.raises(ModelError, match=r"tensor 'aux3\.weight' is superfluous"):
        state_dict.to_graph({**without, "aux3.weight": torch.ones(3)}, arch="googlenet")


def check_same(a: Graph, b: Graph) -> None:
    for m, n in zip(a.nodes, b.nodes, strict=True):
        assert (m.name, m.op, m.inputs) == (n.name, n.op, n.inputs)
        for key, value in n.params.items():
            np.testing.assert_array_equal(m.params[key], value)


@pytest.mark.parametrize("arch", ["squeezenet1_1", "vgg16_bn", "alexnet", "shufflenet_v2_x0_5"])
def test_classes_and_width_are_read_from_the_shapes(torch: Any, arch: str) -> None:
    module = torchvision_network(arch, classes=11)
    graph = state_dict.to_graph(module.state_dict(), arch=arch)
    assert graph["logits"].op in ("dense", "global_avg_pool")
    x = np.random.default_rng(0).standard_normal((1, 64, 64, 3))
    assert reference.execute(graph, x)["logits"].shape == (1, 1, 1, 11)


@pytest.mark.parametrize("arch", ["squeezenet1_0", "shufflenet_v2_x1_5", "googlenet", "vgg13", "alexnet"])
def test_the_arch_that_fits_is_named(torch: Any, net: Any, arch: str) -> None:
    state = net(arch).state_dict()
    with pytest.raises(ModelError, match=rf"It fits (arch='[a-z0-9_]+' or )*arch='{arch}'( or arch='[a-z0-9_]+')*$"):
        state_dict.to_graph(state, arch=None)
    with pytest.raises(ModelError, match=rf"does not fit arch 'mobilenet_v2': .* It fits .*arch='{arch}'"):
        state_dict.to_graph(state, arch="mobilenet_v2")


def test_shufflenet_v1_has_no_library() -> None:
    with pytest.raises(ModelError, match="no library has state dicts of arch 'shufflenet_v1_g3'"):
        state_dict.to_graph({"a": np.ones(3, np.float32)}, arch="shufflenet_v1_g3")


def test_timms_vgg_has_convolutions_for_dense_layers(torch: Any, net: Any) -> None:
    """The same values under timm's names and shapes."""
    state = net("vgg11_bn").state_dict()
    renamed = {"classifier.0": "pre_logits.fc1", "classifier.3": "pre_logits.fc2", "classifier.6": "head.fc"}
    theirs = {}
    for key, value in state.items():
        layer, _, parameter = key.rpartition(".")
        if layer == "classifier.0" and parameter == "weight":
            value = value.reshape(len(value), -1, 7, 7)
        elif layer == "classifier.3" and parameter == "weight":
            value = value[:, :, None, None]
        theirs[f"{renamed.get(layer, layer)}.{parameter}"] = value
    check_same(state_dict.to_graph(theirs, arch="vgg11_bn"), state_dict.to_graph(state, arch="vgg11_bn"))


# --- names and conventions ------------------------------------------------------------------------------


def check_names_and_shapes(arch: str, module: Any) -> None:
    """The module has no values: reading fails at the first tensor, which is tried once all names and shapes fit."""
    with pytest.raises(ModelError, match=r"tensor '\S+' cannot be read as an array"):
        state_dict.to_graph(module.state_dict(), arch=arch)


@pytest.mark.parametrize("arch", NETWORKS)
def test_every_torchvision_network_has_these_names_shapes_and_conventions(torch: Any, arch: str) -> None:
    torchvision_models = import_torchvision().models
    make, options, _ = NETWORKS[arch]
    with torch.device("meta"):  # no memory, no weights
        module = getattr(torchvision_models, make)(**options).eval()
    check_names_and_shapes(arch, module)
    graph = models.build(arch, weights=models.skeleton)
    epsilons = {m.eps for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert {n.attrs["epsilon"] for n in graph.nodes if n.op == "batch_norm"} == epsilons
    transform = torchvision_models.get_model_weights(make).IMAGENET1K_V1.transforms()
    assert graph.input_size == (transform.crop_size[0], transform.crop_size[0])
    assert round(graph.input_size[0] / graph.preprocess.crop_fraction) == transform.resize_size[0]
    assert graph.preprocess.interpolation == transform.interpolation.value
    np.testing.assert_allclose(graph.preprocess.mean, np.array(transform.mean) * 255)
    np.testing.assert_allclose(graph.preprocess.std, np.array(transform.std) * 255)


@pytest.mark.parametrize("arch", [arch for arch in NETWORKS if arch.startswith("vgg")])
def test_every_vgg_of_timm_has_these_names_shapes_and_conventions(torch: Any, arch: str) -> None:
    timm = pytest.importorskip("timm")
    import_torchvision()
    with torch.device("meta"):
        module = timm.create_model(arch)
    check_names_and_shapes(arch, module)
    config, preprocess = module.pretrained_cfg, models.build(arch, weights=models.skeleton).preprocess
    assert config["interpolation"] == preprocess.interpolation
    assert config["crop_pct"] == preprocess.crop_fraction
    np.testing.assert_allclose(preprocess.mean, np.array(config["mean"]) * 255)
