"""Outputs by name: features, layers, and heads of one's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import Graph, Model, models
from fastmobilenet.importers import load
from fastmobilenet.reference import execute

from .samples import assert_close, assert_same_bits, floats, names, pixels
from .test_u8 import INPUT, conv
from .torchvision_nets import NETWORKS as NETWORKS_OF_TORCHVISION
from .torchvision_nets import torchvision_network
from .weight_files import torch_network

TIMM = (
    "mobilenetv1_100", "mobilenetv2_050", "mobilenetv3_small_100", "mobilenetv3_large_100", "tf_mobilenetv3_small_075",
    "mobilenetv4_conv_small", "mobilenetv4_conv_medium", "mnasnet_small", "semnasnet_075", "efficientnet_lite0",
    "tf_efficientnet_lite0",
)  # fmt: skip
TORCHVISION = (
    "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x0_5", "squeezenet1_0",
    "squeezenet1_1", "googlenet",
)  # fmt: skip


@pytest.fixture
def model(small_graph: Graph) -> Model:
    return Model.from_graph(small_graph)


# --- against the sources ----------------------------------------------------------------------------------


def torchvision_features(module: Any, x: Any) -> Any:
    """What torchvision's own forward() has behind its global pool."""
    torch = pytest.importorskip("torch")
    if hasattr(module, "features"):
        return module.features(x).mean((2, 3))
    if hasattr(module, "layers"):
        return module.layers(x).mean((2, 3))
    kept = {}
    pool = module.avgpool if hasattr(module, "avgpool") else module.conv5
    with pool.register_forward_hook(lambda _, __, out: kept.update(pool=out)):
        module(x)
    return kept["pool"].mean((2, 3)) if kept["pool"].ndim == 4 else torch.flatten(kept["pool"], 1)


@pytest.mark.parametrize("arch", [*TIMM, *TORCHVISION])
def test_features_equal_those_of_the_source(arch: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    module = torchvision_network(arch) if arch in NETWORKS_OF_TORCHVISION else torch_network(arch)
    torch.save(module.state_dict(), tmp_path / "weights.pth")
    model = Model.from_graph(load(str(tmp_path / "weights.pth"), arch=arch))
    for shape in ((2, 3, 96, 64), (1, 3, 65, 81)):
        x = floats(*shape)
        with torch.inference_mode():
            t = torch.from_numpy(x)
            if arch in TIMM:
                wanted = module.global_pool(module.forward_features(t)).flatten(1).numpy()
            else:
                wanted = torchvision_features(module, t).numpy()
        found = model.features(x)
        assert_close(found, wanted)
        assert_same_bits(model.features(x[0]), found[0])


# --- names ------------------------------------------------------------------------------------------------

NETWORKS = {
    "mobilenet_v1": {"width": 0.1},
    "mobilenet_v2": {"width": 0.1},
    "mobilenet_v3_small": {"width": 0.1},
    "vgg11": {"width": 0.05},
    "squeezenet1_1": {},
    "shufflenet_v2_x0_5": {},
}


@pytest.mark.parametrize("arch", NETWORKS)
def test_every_layer_has_its_value(arch: str) -> None:
    """All in one call, and some by themselves: outputs of one size come from one run."""
    graph = models.build(arch, classes=5, input_size=(64, 64), input_layout="NHWC", **NETWORKS[arch])
    model, x = Model.from_graph(graph), floats(2, 64, 64, 3)
    layers = [node.name for node in model.graph.nodes if node.op != "input"]
    wanted = execute(model.graph, x, keep=True)
    found = model.run(x, outputs=layers)
    assert list(found) == layers
    for name, y in found.items():
        w = wanted[name] if y.ndim == 4 else wanted[name][:, 0, 0]
        assert_close(y, w.astype(np.float32))
    for name in layers[:: max(len(layers) // 5, 1)]:
        assert_same_bits(model.run(x, outputs=[name])[name], found[name])


def test_aliases(make_graph: Callable[..., Graph]) -> None:
    x = pixels(3, 32, 32, 3)
    for softmax in (False, True):
        model = Model.from_graph(make_graph(softmax=softmax))
        found = model.run(x, outputs=("output", "logits", "probabilities", "embedding", "global_avg_pool"))
        assert_same_bits(found["output"], model.run(x))
        assert_same_bits(found["probabilities"], model.probabilities(x))
        assert_same_bits(found["logits"], Model.from_graph(make_graph()).run(x))
        assert_same_bits(found["embedding"], model.features(x))
        assert_same_bits(found["global_avg_pool"], found["embedding"])
        assert found["embedding"].shape == (3, 12)


def test_blocks_by_their_name() -> None:
    model = Model.from_graph(models.build("mobilenet_v2", width=0.1, input_size=(64, 64)))
    found = model.run(pixels(64, 64, 3), outputs=["block_12", "block_12/project", "block_1"])
    assert_same_bits(found["block_12"], found["block_12/project"])
    assert found["block_12"].shape == (16, 4, 4)  # NCHW
    assert found["block_1"].shape == (8, 16, 16)


def test_lists_groups_and_sizes(model: Model) -> None:
    mixed = [pixels(32, 32, 3), pixels(50, 41, 3), pixels(20, 60, 3, seed=4)]
    single = [model.features(x) for x in mixed]
    assert_same_bits(model.features(mixed), np.stack(single))
    assert_same_bits(model.features(mixed * 50), np.stack(single * 50))
    assert model.run(mixed[0], outputs=["conv2d"], size=(40, 48))["conv2d"].shape == (20, 24, 12)
    assert model.features([]).shape == (0, 12)


@pytest.mark.parametrize(
    "outputs, error, message",
    [
        (["conv2d_9"], ValueError, r"no output 'conv2d_9'; did you mean 'conv2d.*Outputs: embedding, logits"),
        (["input"], ValueError, "no output 'input'"),
        ("embedding", TypeError, r"list of names: outputs=\['embedding'\]"),
        ([1], TypeError, "list of names"),
        ({"embedding"}, TypeError, "list of names, not set"),
        ([], ValueError, "outputs is empty"),
    ],
)
def test_names_that_are_refused(model: Model, outputs: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        model.run("none.png", outputs=outputs)


def test_features_of_a_network_that_is_no_classifier(make_graph: Callable[..., Graph]) -> None:
    whole = make_graph()
    model, x = Model.from_graph(Graph(whole.nodes[:6], "add", input_size=(32, 32))), floats(2, 3, 32, 32)
    assert np.allclose(model.features(x), model.run(x).mean((2, 3)), atol=1e-5)
    with pytest.raises(ValueError, match="no output 'logits'"):
        model.run(x, outputs=["logits"])


def test_parts_share_the_weights() -> None:
    """Neither features nor a head has weights of its own, apart from those of the head."""
    model = Model.from_graph(models.build("mobilenet_v2", classes=1000, input_size=(32, 32)))
    assert model._engine.weight_bytes > 10_000_000
    x = pixels(32, 32, 3)
    model.run(x, outputs=["embedding", "block_3", "block_9/depthwise"])
    head = model.with_head(np.ones((3, 1280)))
    head.features(x)
    parts = [*model._named._parts.values(), *head._named._parts.values(), head._engine]
    assert len(parts) >= 4
    assert sum(part.weight_bytes for part in parts) <= 2 * 2**21  # a page or two of the head


# --- heads ------------------------------------------------------------------------------------------------


def quantized_graph() -> Graph:
    from fastmobilenet.graph import RELU6, GraphBuilder
    from fastmobilenet.quantization import Quant

    b = GraphBuilder()
    x = conv(b, b.add("input", quant=INPUT), 3, 24, 3, 2, activation=RELU6)
    x = b.add("global_avg_pool", conv(b, x, 24, 40, 1, seed=1), quant=Quant(1 / 50, 110), name="pool")
    x = b.add("dequantize", conv(b, x, 40, 10, 1, seed=2))
    return b.build(x, input_layout="NHWC", input_size=(32, 32))


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("activation", [None, "softmax"])
def test_a_head_is_the_linear_model(
    small_graph: Graph, quantized: bool, activation: str | None, tmp_path: Path
) -> None:
    model = Model.from_graph(quantized_graph() if quantized else small_graph)
    x, rng = pixels(5, 32, 32, 3), np.random.default_rng(5)
    features = model.features(x)
    assert features.std(axis=0).max() > 0
    weights, bias = rng.normal(size=(7, features.shape[1])), rng.normal(size=7)
    head = model.with_head(weights, bias, labels=names(7), activation=activation)
    logits = features @ weights.T + bias
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert np.allclose(head.run(x), logits if activation is None else probabilities, atol=1e-4 * np.abs(logits).max())
    assert np.allclose(head.probabilities(x), probabilities, atol=1e-5)
    assert_same_bits(head.features(x), features)
    assert head.labels == names(7)
    assert [rows[0].index for rows in head.classify(x, top=1)] == logits.argmax(axis=1).tolist()
    head.save(tmp_path / "head.fmn")
    loaded = Model.load(tmp_path / "head.fmn")
    assert_same_bits(loaded.run(x), head.run(x))
    assert_same_bits(loaded.features(x), features)
    assert loaded.labels == names(7)
    if not quantized:
        assert repr(head).splitlines()[1:] == repr(loaded).splitlines()[1:]


def test_a_binary_head_and_a_regression(model: Model) -> None:
    x = pixels(4, 32, 32, 3)
    features = model.features(x).astype(np.float64)
    weights = np.random.default_rng(1).normal(size=(1, 12))
    z = (features @ weights.T)[:, 0] + 0.5
    head = model.with_head(weights, [0.5], labels=np.array([3, 8]))
    assert np.allclose(head.probabilities(x)[:, 1], 1 / (1 + np.exp(-z)), atol=1e-5)
    assert head.labels == ("3", "8")
    assert np.allclose(model.with_head(weights[0], 0.5).run(x)[:, 0], z, atol=1e-4)
    assert np.allclose(model.with_head(weights).run(x), np.stack([0 * z, z - 0.5], 1), atol=1e-4)


def test_a_head_on_a_head(model: Model) -> None:
    x = pixels(32, 32, 3)
    first = model.with_head(np.ones((3, 12)))
    second = first.with_head(np.eye(12), labels=names(12))
    assert np.allclose(second.run(x), model.features(x), atol=1e-5)
    assert second.graph.output == "logits"


@pytest.mark.parametrize(
    "weights, options, error, message",
    [
        (np.ones((12, 5)), {}, ValueError, r"\(classes, 12\).*got \(12, 5\); transpose them"),
        (np.ones((3, 4)), {}, ValueError, r"got \(3, 4\)$"),
        (np.ones((0, 12)), {}, ValueError, r"got \(0, 12\)"),
        (np.ones((3, 12)), {"bias": np.ones(2)}, ValueError, r"bias must have the shape \(3,\), got \(2,\)"),
        (np.full((3, 12), np.nan), {}, ValueError, "weights must be finite"),
        (np.full((3, 12), "a"), {}, TypeError, "weights must be numbers"),
        (np.ones((3, 12)), {"labels": ["a"]}, ValueError, "3 classes, but there is 1 label"),
        (np.ones((3, 12)), {"labels": {"a", "b", "c"}}, TypeError, "labels must be a list"),
        (np.ones((3, 12)), {"activation": "relu"}, ValueError, "activation must be"),
    ],
)
def test_heads_that_do_not_fit(
    model: Model, weights: np.ndarray, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.with_head(weights, **options)
