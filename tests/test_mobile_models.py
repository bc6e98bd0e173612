"""The builders of MobileNet V3 and V4, MnasNet and EfficientNet-Lite: sizes, structure, conventions, random weights."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastmobilenet import ModelError, models, reference
from fastmobilenet.graph import (
    HARD_SIGMOID,
    HARD_SWISH,
    RELU,
    RELU6,
    SIGMOID,
    Graph,
    Node,
    count_macs,
    count_parameters,
    infer_shapes,
    is_depthwise,
    kernel_size,
)
from fastmobilenet.models import efficientnet_lite, mnasnet, mobilenet_v3, mobilenet_v4
from fastmobilenet.models._plan import SqueezeExcite

FAMILIES = (mobilenet_v3, mobilenet_v4, mnasnet, efficientnet_lite)

# What sum(p.numel() for p in model.parameters()) gives for the networks of torchvision 0.29 and timm 1.0, and the sum
# over trainable_weights for those of Keras 3.
PARAMETERS = {
    **dict.fromkeys(["mobilenet_v3_large", "mobilenetv3_large_100", "tf_mobilenetv3_large_100"], 5483032),
    **dict.fromkeys(["mobilenetv3_large_075", "tf_mobilenetv3_large_075"], 3993528),
    **dict.fromkeys(["mobilenet_v3_small", "mobilenetv3_small_100", "tf_mobilenetv3_small_100"], 2542856),
    **dict.fromkeys(["mobilenetv3_small_075", "tf_mobilenetv3_small_075"], 2041872),
    "mobilenetv3_small_050": 1593224,
    "keras_mobilenet_v3_large": 5483032,
    "keras_mobilenet_v3_small": 2542856,
    **dict.fromkeys(["tf_mobilenetv3_large_minimal_100", "keras_mobilenet_v3_large_minimalistic"], 3924288),
    **dict.fromkeys(["tf_mobilenetv3_small_minimal_100", "keras_mobilenet_v3_small_minimalistic"], 2044736),
    "mobilenetv4_conv_small_035": 1905384,
    "mobilenetv4_conv_small_050": 2238952,
    "mobilenetv4_conv_small": 3774024,
    "mobilenetv4_conv_medium": 9715512,
    "mobilenetv4_conv_large": 32590864,
    **dict.fromkeys(["mnasnet", "mnasnet1_0", "mnasnet_100"], 4383312),
    **dict.fromkeys(["mnasnet0_5", "mnasnet_050"], 2218512),
    **dict.fromkeys(["mnasnet0_75", "mnasnet_075"], 3170208),
    "mnasnet1_3": 6282256,
    "mnasnet_140": 7115728,
    "semnasnet_050": 2082006,
    "semnasnet_075": 2912278,
    "semnasnet_100": 3887038,
    "semnasnet_140": 6105992,
    "mnasnet_small": 2030264,
    **dict.fromkeys(["efficientnet_lite0", "tf_efficientnet_lite0"], 4652008),
    **dict.fromkeys(["efficientnet_lite1", "tf_efficientnet_lite1"], 5416680),
    **dict.fromkeys(["efficientnet_lite2", "tf_efficientnet_lite2"], 6092072),
    **dict.fromkeys(["efficientnet_lite3", "tf_efficientnet_lite3"], 8197096),
    **dict.fromkeys(["efficientnet_lite4", "tf_efficientnet_lite4"], 13006568),
}


def skeleton(arch: str, **options: object) -> Graph:
    return models.build(arch, weights=models.skeleton, **options)  # type: ignore[arg-type]


def nodes(graph: Graph, op: str) -> list[Node]:
    return [node for node in graph.nodes if node.op == op]


def kernels(graph: Graph) -> list[int]:
    return [kernel_size(node)[0] for node in nodes(graph, "conv2d") if is_depthwise(node)]


# --- sizes ----------------------------------------------------------------------------------------------


def test_every_arch_has_the_parameters_of_its_original() -> None:
    assert {arch: count_parameters(skeleton(arch)) for arch in PARAMETERS} == PARAMETERS
    assert {arch for arch in models.available() if models.find(arch).family in FAMILIES} == set(PARAMETERS)


# (arch, resolution, million MACs, largest relative difference): V3's paper, table 3, and Keras' documentation for the
# minimalistic network; what torchvision publishes with its weights; MnasNet's paper, table 1; timm's model cards for
# V4; TensorFlow's table of EfficientNet-Lite, which counts the batch norms too.
@pytest.mark.parametrize(
    "arch,size,million_macs,error",
    [
        ("mobilenetv3_large_100", 224, 219, 0.02),
        ("mobilenetv3_large_075", 224, 155, 0.01),
        ("mobilenetv3_small_100", 224, 56, 0.01),
        ("mobilenetv3_small_075", 224, 44, 0.02),
        ("keras_mobilenet_v3_large_minimalistic", 224, 209, 0.01),
        ("mobilenet_v3_large", 224, 217, 0.003),
        ("mobilenet_v3_small", 224, 57, 0.01),
        ("mnasnet0_5", 224, 104, 0.005),
        ("mnasnet0_75", 224, 215, 0.003),
        ("mnasnet1_0", 224, 314, 0.002),
        ("mnasnet1_3", 224, 526, 0.001),
        ("semnasnet_100", 224, 312, 0.002),
        ("mobilenetv4_conv_small", 224, 190, 0.03),
        ("mobilenetv4_conv_medium", 256, 1100, 0.02),
        ("mobilenetv4_conv_large", 384, 6430, 0.01),
        ("efficientnet_lite0", 224, 407, 0.07),
        ("efficientnet_lite1", 240, 631, 0.07),
        ("efficientnet_lite2", 260, 899, 0.07),
        ("efficientnet_lite3", 280, 1440, 0.07),
        ("efficientnet_lite4", 300, 2640, 0.07),
    ],
)
def test_macs_are_the_published_ones(arch: str, size: int, million_macs: float, error: float) -> None:
    graph = skeleton(arch)
    shapes = infer_shapes(graph, 1, size, size)
    assert sum(count_macs(node, shapes) for node in graph.nodes) / 1e6 == pytest.approx(million_macs, rel=error)


# Sums over trainable_weights of keras.applications.MobileNetV3Large and Small.
@pytest.mark.parametrize(
    "arch,parameters",
    [
        ("keras_mobilenet_v3_large", {0.35: 2132216, 0.5: 2689904, 0.75: 3993528, 1.25: 8255784, 2.0: 19120064}),
        ("keras_mobilenet_v3_small", {0.35: 1350344, 0.5: 1593224, 0.75: 2041872, 1.3: 3983152, 2.0: 7948408}),
        ("keras_mobilenet_v3_large_minimalistic", {0.35: 1912248, 0.75: 3050312, 1.3: 6106944}),
        ("keras_mobilenet_v3_small_minimalistic", {0.5: 1445480, 0.75: 1732512, 1.25: 2870880}),
    ],
)
def test_keras_networks_of_any_width_have_the_parameters_of_keras(arch: str, parameters: dict[float, int]) -> None:
    assert {width: count_parameters(skeleton(arch, width=width)) for width in parameters} == parameters


# --- structure ------------------------------------------------------------------------------------------


def test_v3_large_is_the_papers_table() -> None:
    graph = skeleton("mobilenet_v3_large")
    wide = [f"block_{i}/expand" for i in range(1, 15)]
    assert [graph[name].params["weight"].shape[0] for name in wide] == [
        *(64, 72, 72, 120, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960)
    ]
    narrow = [f"block_{i}/project" for i in range(15)]
    assert [graph[name].params["weight"].shape[0] for name in narrow] == [
        *(16, 24, 24, 40, 40, 40, 80, 80, 80, 80, 112, 112, 160, 160, 160)
    ]
    assert kernels(graph) == [3, 3, 3, 5, 5, 5, 3, 3, 3, 3, 3, 3, 5, 5, 5]
    assert [n.name for n in nodes(graph, "mul")] == [f"block_{i}/se" for i in (3, 4, 5, 10, 11, 12, 13, 14)]
    assert [n.name for n in nodes(graph, "add")] == [f"block_{i}" for i in (0, 2, 4, 5, 7, 8, 9, 11, 13, 14)]
    strided = [n.name for n in nodes(graph, "conv2d") if n.attrs["stride"] == (2, 2)]
    assert strided == ["conv1", *(f"block_{i}/depthwise" for i in (1, 3, 6, 12))]
    activations = {n.name: n.activation for n in nodes(graph, "activation")}
    assert activations["block_5/expand/relu"] == RELU
    assert activations["block_6/depthwise/hard_swish"] == HARD_SWISH
    assert {activations[f"{name}/hard_swish"] for name in ("conv1", "head", "hidden")} == {HARD_SWISH}


def test_v3_small_is_the_papers_table() -> None:
    graph = skeleton("mobilenet_v3_small")
    assert kernels(graph) == [3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 5]
    assert [n.name for n in nodes(graph, "mul")] == [f"block_{i}/se" for i in (0, 3, 4, 5, 6, 7, 8, 9, 10)]
    assert [n.name for n in nodes(graph, "add")] == [f"block_{i}" for i in (2, 4, 5, 7, 9, 10)]
    assert graph["hidden"].params["weight"].shape == (1024, 576)


def test_squeeze_excite_stands_between_depthwise_and_projection() -> None:
    """Means of the channels, 1x1, ReLU, 1x1, gate; the product is what the projection reads."""
    for arch, gate in (("mobilenet_v3_large", HARD_SIGMOID), ("semnasnet_100", SIGMOID)):
        graph = skeleton(arch)
        chain, node = [], graph["block_4/se"]
        x, factors = node.inputs
        assert graph["block_4/project"].inputs == (node.name,)
        assert (graph[x].op, graph[graph[graph[x].inputs[0]].inputs[0]].name) == ("activation", "block_4/depthwise")
        while factors != x:
            chain.append(graph[factors])
            (factors,) = graph[factors].inputs
        assert [n.op for n in chain] == ["activation", "conv2d", "activation", "conv2d", "global_avg_pool"]
        assert (chain[0].activation, chain[2].activation) == (gate, RELU)
        channels, reduced = chain[1].params["weight"].shape[0], chain[3].params["weight"].shape[0]
        assert (channels, reduced) == {"mobilenet_v3_large": (120, 32), "semnasnet_100": (120, 10)}[arch]
        assert {n.params["bias"].shape[0] for n in chain if n.op == "conv2d"} == {channels, reduced}


@pytest.mark.parametrize("size", ["large", "small"])
def test_minimalistic_networks_are_plain(size: str) -> None:
    graph = skeleton(f"keras_mobilenet_v3_{size}_minimalistic")
    assert set(kernels(graph)) == {3}
    assert nodes(graph, "mul") == []
    assert {n.activation for n in nodes(graph, "activation")} == {RELU}
    for width in (0.3, 1.0, 1.7):
        whole, plain = (
            mobilenet_v3.plan(width, size=size, convention="keras", minimalistic=m).outputs() for m in (False, True)
        )
        assert whole == plain


def test_v3_conventions_differ_beside_width_1() -> None:
    def ends(width: float, convention: str) -> tuple[int, ...]:
        found = mobilenet_v3.plan(width, size="small", convention=convention).outputs()
        return found["conv1"], found["head"], found["hidden"]

    assert [ends(1.0, c) for c in mobilenet_v3.CONVENTIONS] == [(16, 576, 1024)] * 3
    assert [ends(0.35, c) for c in mobilenet_v3.CONVENTIONS] == [(8, 192, 360), (16, 200, 1024), (16, 192, 1024)]
    assert [ends(1.5, c) for c in mobilenet_v3.CONVENTIONS] == [(24, 864, 1536), (24, 864, 1024), (16, 864, 1536)]
    # torchvision leaves out an expansion to as many channels as there are, wherever that is.
    torchvision, keras = (skeleton(f"{prefix}mobilenet_v3_large", width=0.1) for prefix in ("", "keras_"))
    assert "block_1/expand" not in [n.name for n in torchvision.nodes]
    assert "block_1/expand" in [n.name for n in keras.nodes]


def test_v4_has_all_forms_of_the_universal_block() -> None:
    graph = skeleton("mobilenetv4_conv_medium")
    names = [n.name for n in nodes(graph, "conv2d")]

    def layers(block: int) -> list[str]:
        return [name.partition("/")[2] for name in names if name.startswith(f"block_{block}/")]

    assert layers(0) == ["expand", "project"]
    assert kernel_size(graph["block_0/expand"]) == (3, 3)
    assert layers(1) == ["start", "expand", "depthwise", "project"]
    assert layers(8) == ["start", "expand", "project"]
    assert layers(9) == ["expand", "project"]
    assert "depthwise" in "".join(layers(3))
    assert layers(len(mobilenet_v4.plan(size="medium").blocks) - 1) == ["start", "expand", "project"]
    small = skeleton("mobilenetv4_conv_small")
    assert [n.name for n in nodes(small, "conv2d")][:5] == ["conv1", *(f"block_{i}/conv" for i in range(4))]
    assert [n.name for n in nodes(small, "add")] == [f"block_{i}" for i in (5, 6, 7, 8, 9, 11, 12, 13, 14, 15)]
    # A filter before the expansion has no activation, and the stride only where there is none inside.
    assert graph["block_1/expand"].inputs == ("block_1/start/bn",)
    assert [graph[f"block_1/{name}"].attrs["stride"] for name in ("start", "depthwise")] == [(1, 1), (2, 2)]
    assert [n.name for n in graph.nodes][-5:] == ["pool", "hidden", "hidden/bn", "hidden/relu", "logits"]
    assert "bias" not in graph["hidden"].params


def test_mnasnet_layers() -> None:
    graph = skeleton("mnasnet1_0")
    assert kernels(graph) == [3, *(3, 3, 3), *(5, 5, 5), *(5, 5, 5), *(3, 3), *(5, 5, 5, 5), 3]
    assert {n.activation for n in nodes(graph, "activation")} == {RELU}
    assert nodes(graph, "mul") == []
    assert [n.name for n in nodes(graph, "add")] == [f"block_{i}" for i in (2, 3, 5, 6, 8, 9, 11, 13, 14, 15)]
    assert graph["head"].params["weight"].shape == (1280, 1, 1, 320)
    # Equal shapes before and behind the first block give a residual in "small" alone.
    assert "block_0" in [n.name for n in skeleton("mnasnet_small").nodes]
    assert "block_0" not in [n.name for n in skeleton("mnasnet", width=0.2).nodes]
    gates = [x for b in mnasnet.plan(variant="a1").blocks for x in b.layers if isinstance(x, SqueezeExcite)]
    assert [(gate.reduced, gate.gate) for gate in gates] == [(n, SIGMOID) for n in (6, 10, 10, 20, 28, 28, 40, 40)]


def test_efficientnet_lite_scales_the_middle_alone() -> None:
    graph = skeleton("efficientnet_lite0")
    assert kernels(graph) == [3, 3, 3, 5, 5, 3, 3, 3, 5, 5, 5, 5, 5, 5, 5, 3]
    assert {n.activation for n in nodes(graph, "activation")} == {RELU6}
    assert nodes(graph, "mul") == []
    assert efficientnet_lite.plan().repeats() == (1, 2, 2, 3, 3, 4, 1)
    large = models.find("efficientnet_lite4").plan()
    assert large.repeats() == (1, 4, 4, 6, 6, 8, 1)
    assert large.stage_channels() == (24, 32, 56, 112, 160, 272, 448)
    assert (large.outputs()["conv1"], large.outputs()["head"]) == (32, 1280)
    sizes = [skeleton(f"efficientnet_lite{i}").input_size for i in range(5)]
    assert sizes == [(224, 224), (240, 240), (260, 260), (300, 300), (380, 380)]


# --- any width, any picture -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch",
    [
        *("mobilenet_v3_large", "mobilenet_v3_small", "keras_mobilenet_v3_large", "mnasnet"),
        *("mobilenetv4_conv_small", "mobilenetv4_conv_medium", "mobilenetv4_conv_large"),
    ],
)
@pytest.mark.parametrize("width", [0.05, 0.33, 1.0, 1.4, 3.0])
def test_any_width_and_picture_gives_a_graph_whose_shapes_fit(arch: str, width: float) -> None:
    for padding in ("same", "symmetric"):
        graph = skeleton(arch, width=width, classes=7, padding=padding)
        for h, w in ((1, 1), (2, 3), (31, 32), (33, 65), (161, 97), (225, 161)):
            shapes = infer_shapes(graph, 2, h, w)
            assert shapes[graph["pool"].inputs[0]][1:3] == (math.ceil(h / 32), math.ceil(w / 32))
            assert shapes["logits"] == (2, 1, 1, 7)


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "mobilenetv4_conv_small", "mnasnet"])
def test_odd_channel_counts_can_be_executed(arch: str) -> None:
    out = reference.execute(models.build(arch, width=0.1, classes=5), np.ones((1, 37, 33, 3)))["logits"]
    assert out.shape == (1, 1, 1, 5)
    assert np.isfinite(out).all()


# --- options and conventions ----------------------------------------------------------------------------


def test_conventions_of_the_sources() -> None:
    for arch in PARAMETERS:
        graph = skeleton(arch)
        tensorflow = arch.startswith(("tf_", "keras_"))
        torchvision_v3 = arch.startswith("mobilenet_v3")
        expected = 1e-3 if tensorflow or torchvision_v3 else 1e-5
        assert {n.attrs["epsilon"] for n in nodes(graph, "batch_norm")} == {expected}
        assert graph["conv1"].attrs["padding"] == ("same" if tensorflow else (1, 1, 1, 1))
        inception = tensorflow or arch in ("mobilenetv4_conv_small_035", "mobilenetv4_conv_small_050")
        assert graph.preprocess.mean[0] == pytest.approx(127.5 if inception else 0.485 * 255)
        assert graph.name == arch


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: mobilenet_v3.plan(size="medium"), "size must be one of large, small, not 'medium'"),
        (lambda: mobilenet_v3.plan(convention="tf"), "convention must be one of torchvision, timm, keras, not 'tf'"),
        (lambda: mobilenet_v4.plan(size="hybrid"), "size must be one of small, medium, large, not 'hybrid'"),
        (lambda: mnasnet.plan(variant="c1"), "variant must be one of a1, b1, small, not 'c1'"),
        (lambda: efficientnet_lite.plan(-1.0), r"width must be a positive number, not -1\.0"),
        (lambda: skeleton("mobilenet_v3_large", padding="valid"), '"same".*"symmetric".*\'valid\''),
        (lambda: skeleton("mnasnet_100", classes=0), "classes must be a whole number"),
        (lambda: skeleton("mobilenetv4_conv_small", epsilon=0.0), "epsilon must be a positive number"),
    ],
)
def test_bad_options_are_named(call: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        call()  # type: ignore[operator]


@pytest.mark.parametrize(
    "arch,advice",
    [
        ("mobilenetv3_large_075", "mobilenet_v3_large"),
        ("tf_mobilenetv3_small_100", "mobilenet_v3_small"),
        ("tf_mobilenetv3_large_minimal_100", "keras_mobilenet_v3_large_minimalistic"),
        ("mobilenetv4_conv_small_050", "mobilenetv4_conv_small"),
        ("mnasnet1_3", "mnasnet"),
        ("semnasnet_100", ""),
        ("efficientnet_lite2", ""),
    ],
)
def test_a_width_that_contradicts_the_name_is_refused(arch: str, advice: str) -> None:
    width = models.find(arch).width
    with pytest.raises(ModelError) as caught:
        skeleton(arch, width=3.5)
    end = f"; use arch={advice!r}, which takes any width" if advice else ""
    assert str(caught.value) == f"arch {arch!r} has width {width:g}, not 3.5{end}"


# --- random weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch",
    [
        *("mobilenet_v3_large", "mobilenet_v3_small", "semnasnet_075", "mnasnet_small", "mobilenetv4_conv_small"),
        *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("mobilenetv4_conv_medium", "efficientnet_lite0")),
    ],
)
def test_random_networks_behave_like_trained_ones(arch: str) -> None:
    graph = models.build(arch, seed=1)
    values = reference.execute(graph, np.random.default_rng(1).standard_normal((2, 64, 64, 3)), keep=True)
    for node in nodes(graph, "batch_norm"):  # the means of so small a picture vary more than those of a usual one
        assert 0.4 < values[node.name].std() < (4.0 if node.name == "hidden/bn" else 2.0), node.name
    for node in nodes(graph, "activation"):
        if node.activation in (RELU, RELU6) and "/se/" not in node.name:
            share = np.mean(values[node.name] > 0)
            assert 0.25 < share < 0.75, f"{node.name}: {share:.2f} of the values are positive"
    for node in nodes(graph, "mul"):
        factors = values[node.inputs[1]]
        assert 0.4 < factors.mean() < 0.6, node.name
        assert factors.std() > 0.08, node.name
    a, b = values["logits"].reshape(2, -1)
    assert 1.0 < a.std() < 20.0
    assert (a - b).std() > 0.2 * a.std(), "two pictures give nearly the same logits"
