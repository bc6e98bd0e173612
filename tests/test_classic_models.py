"""The builders of SqueezeNet, ShuffleNet, AlexNet, VGG and GoogLeNet: sizes, structure, random weights."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastmobilenet import ModelError, models, reference
from fastmobilenet.graph import RELU, Graph, GraphBuilder, count_macs, count_parameters, infer_shapes
from fastmobilenet.models import alexnet, googlenet, initialize, shufflenet_v1, shufflenet_v2, squeezenet, vgg
from fastmobilenet.preprocess import IMAGENET

ARCHS = [
    *("squeezenet1_0", "squeezenet1_1", "googlenet", "googlenet_no_transform", "alexnet", "alexnet_original"),
    *(f"shufflenet_v1_g{groups}" for groups in (1, 2, 3, 4, 8)),
    *(f"shufflenet_v2_x{width}" for width in ("0_5", "1_0", "1_5", "2_0")),
    *(f"vgg{layers}{kind}" for layers in (11, 13, 16, 19) for kind in ("", "_bn")),
]


def skeleton(arch: str, **options: object) -> Graph:
    return models.build(arch, weights=models.skeleton, **options)  # type: ignore[arg-type]


def macs(graph: Graph, size: int) -> int:
    shapes = infer_shapes(graph, 1, size, size)
    return sum(count_macs(node, shapes) for node in graph.nodes)


def test_all_are_registered() -> None:
    assert set(ARCHS) <= set(models.available())


# --- sizes ----------------------------------------------------------------------------------------------

# arch: (million MACs at the network's own size, parameters). From torchvision 0.29, which publishes both with its
# weights. GoogLeNet's paper has 5x5 convolutions where torchvision has 3x3, so its 1,550 million lie above these 1,498.
TORCHVISION = {
    "squeezenet1_0": (819, 1248424),
    "squeezenet1_1": (349, 1235496),
    "shufflenet_v2_x0_5": (40, 1366792),
    "shufflenet_v2_x1_0": (145, 2278604),
    "shufflenet_v2_x1_5": (296, 3503624),
    "shufflenet_v2_x2_0": (583, 7393996),
    "googlenet": (1498, 6624904),
    "alexnet": (714, 61100840),
    "vgg11": (7609, 132863336),
    "vgg11_bn": (7609, 132868840),
    "vgg13": (11308, 133047848),
    "vgg13_bn": (11308, 133053736),
    "vgg16": (15470, 138357544),
    "vgg16_bn": (15470, 138365992),
    "vgg19": (19632, 143667240),
    "vgg19_bn": (19632, 143678248),
}
# (arch, width, million MACs, million parameters): the papers, and the tables of the authors' own networks.
PAPERS = [
    ("squeezenet1_0", 1, 837, 1.25),  # at 227x227, the paper's size
    ("shufflenet_v1_g1", 1, 143, None),
    ("shufflenet_v1_g2", 1, 140, None),
    ("shufflenet_v1_g3", 1, 137, None),
    ("shufflenet_v1_g4", 1, 133, None),
    ("shufflenet_v1_g8", 1, 137, None),
    *((f"shufflenet_v1_g{groups}", 0.5, 38, None) for groups in (1, 2, 3, 4)),
    ("shufflenet_v1_g3", 0.5, 38, 0.7),
    ("shufflenet_v1_g3", 1.0, 138, 1.87),
    ("shufflenet_v1_g3", 1.5, 292, 3.4),
    ("shufflenet_v1_g3", 2.0, 524, 5.4),
    ("shufflenet_v1_g8", 0.5, 40, 1.0),
    ("shufflenet_v1_g8", 1.0, 138, 2.4),
    ("shufflenet_v1_g8", 1.5, 290, 4.3),
    ("shufflenet_v1_g8", 2.0, 522, 6.5),
    ("alexnet_original", 1, 724, 60.97),
    ("vgg16", 1, 15470, 138.36),
]


@pytest.mark.parametrize("arch", TORCHVISION)
def test_macs_and_parameters_are_torchvisions(arch: str) -> None:
    million_macs, parameters = TORCHVISION[arch]
    graph = skeleton(arch)
    assert count_parameters(graph) == parameters
    assert round(macs(graph, 224) / 1e6) == million_macs


@pytest.mark.parametrize("arch,width,million_macs,million_parameters", PAPERS)
def test_macs_and_parameters_are_the_published_ones(
    arch: str, width: float, million_macs: float, million_parameters: float | None
) -> None:
    graph = skeleton(arch, width=width)
    size = 227 if arch in ("squeezenet1_0", "alexnet_original") else 224
    assert macs(graph, size) / 1e6 == pytest.approx(million_macs, rel=0.012, abs=0.6)
    if million_parameters is not None:
        assert count_parameters(graph) / 1e6 == pytest.approx(million_parameters, rel=0.015, abs=0.05)


def test_googlenet_with_the_kernels_of_its_paper() -> None:
    """The published 1,550 million MACs lie between torchvision's form and this one, which has 5x5 everywhere."""
    graph = googlenet.build(kernel=5, weights=models.skeleton)
    assert macs(graph, 224) / 1e6 == pytest.approx(1583, abs=1)
    assert graph["inception_3a/5x5"].params["weight"].shape == (32, 5, 5, 16)
    # bvlc_googlenet has 6,998,552: a bias a channel where this has gamma and beta.
    biases = sum(n.params["beta"].size for n in graph.nodes if n.op == "batch_norm")
    assert count_parameters(graph) - biases == 6998552


# --- structure ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
def test_every_arch_has_a_skeleton_without_memory_for_any_classes(arch: str) -> None:
    graph = skeleton(arch, classes=7)
    assert graph.output == "logits"
    assert graph.name == arch
    for h, w in [graph.input_size, (224, 192), (127, 193)]:
        assert infer_shapes(graph, 2, h, w)["logits"] == (2, 1, 1, 7)
    assert all(v.strides == (0,) * v.ndim for n in graph.nodes for v in n.params.values())


# The least sizes that torchvision names (for VGG it names 32).
@pytest.mark.parametrize(
    "arch,least",
    [
        ("squeezenet1_0", 21),
        ("squeezenet1_1", 17),
        ("googlenet", 15),
        ("alexnet", 63),
        ("vgg16", 32),
        ("shufflenet_v2_x1_0", 1),
        ("shufflenet_v1_g3", 1),
    ],
)
def test_small_pictures_work_down_to_the_least_size(arch: str, least: int) -> None:
    graph = skeleton(arch)
    assert infer_shapes(graph, 1, least, least + 3)["logits"] == (1, 1, 1, 1000)
    if least > 15 and arch != "googlenet":
        with pytest.raises(ModelError, match=r"window does not fit .*use a larger picture"):
            infer_shapes(graph, 1, least - 1, 224)


def sizes(arch: str, *layers: str) -> list[tuple[int, int]]:
    graph = skeleton(arch)
    shapes = infer_shapes(graph, 1, *graph.input_size)
    return [(shapes[layer][1], shapes[layer][3]) for layer in layers]


def test_layer_sizes_are_those_of_the_papers() -> None:
    fires = [f"fire{i}" for i in (2, 3, 4, 5, 8, 9)]
    expected = [(54, 128), (54, 128), (54, 256), (27, 256), (27, 512), (13, 512)]
    assert sizes("squeezenet1_0", "conv1", "pool1", *fires) == [(109, 96), (54, 96), *expected]
    assert sizes("squeezenet1_1", "conv1", "fire3", "fire4", "fire6", "fire9") == [
        *((111, 64), (55, 128), (27, 256), (13, 384), (13, 512)),
    ]
    assert sizes("shufflenet_v2_x1_0", "conv1", "pool1", "block_4", "block_12", "block_16", "head") == [
        *((112, 24), (56, 24), (28, 116), (14, 232), (7, 464), (7, 1024)),
    ]
    assert sizes("shufflenet_v1_g8", "conv1", "pool1", "block_4", "block_12", "block_16") == [
        *((112, 24), (56, 24), (28, 384), (14, 768), (7, 1536)),
    ]
    assert sizes("googlenet", "conv1", "pool1", "conv3", "pool2", "inception_3b", "pool3", "inception_4e", "pool") == [
        *((112, 64), (56, 64), (56, 192), (28, 192), (28, 480), (14, 480), (14, 832), (1, 1024)),
    ]
    assert sizes("alexnet", "conv1", "pool1", "conv2", "pool2", "conv5", "pool5", "pool") == [
        *((55, 64), (27, 64), (27, 192), (13, 192), (13, 256), (6, 256), (6, 256)),
    ]
    assert sizes("alexnet_original", "conv1", "pool1", "conv2", "pool2", "conv5", "pool5", "pool") == [
        *((55, 96), (27, 96), (27, 256), (13, 256), (13, 256), (6, 256), (6, 256)),
    ]
    assert sizes("vgg16", "conv1_2", "pool1", "conv3_3", "conv5_3", "pool5", "pool", "fc7") == [
        *((224, 64), (112, 64), (56, 256), (14, 512), (7, 512), (7, 512), (1, 4096)),
    ]


def test_ceil_mode_counts_the_last_window() -> None:
    """54 pixels become 27, and not 26 (T3)."""
    graph = skeleton("squeezenet1_0")
    assert graph["pool4"].attrs["ceil"]
    shapes = infer_shapes(graph, 1, 224, 224)
    assert (shapes["fire4"][1], shapes["pool4"][1]) == (54, 27)


def test_shuffles_are_a_transposition_of_the_groups() -> None:
    """T7: as when (groups, channels a group) is transposed."""
    graph = skeleton("shufflenet_v1_g3")
    assert graph["block_2/shuffle"].attrs["index"] == tuple(np.arange(60).reshape(3, 20).T.ravel())
    graph = skeleton("shufflenet_v2_x0_5")
    for number, channels in ((1, 48), (2, 48), (16, 192)):
        index = graph[f"block_{number}"].attrs["index"]
        assert index == tuple(np.arange(channels).reshape(2, -1).T.ravel())
        assert all(type(i) is int for i in index)
    assert graph["block_2/left"].attrs["index"] == tuple(range(24))
    assert graph["block_2/right"].attrs["index"] == tuple(range(24, 48))


@pytest.mark.parametrize("groups", shufflenet_v1.CHANNELS)
def test_shufflenet_v1_groups(groups: int) -> None:
    graph = shufflenet_v1.build(groups=groups, weights=models.skeleton)
    for number in range(1, 17):
        reduce, expand = graph[f"block_{number}/reduce"], graph[f"block_{number}/expand"]
        assert reduce.attrs["groups"] == (1 if number == 1 else groups)
        assert expand.attrs["groups"] == groups
        assert graph[f"block_{number}"].op == ("concat" if number in (1, 5, 13) else "add")
    assert any(n.op == "gather_channels" for n in graph.nodes) == (groups > 1)
    shortcut = graph["block_5/shortcut"]
    assert (shortcut.attrs["kernel"], shortcut.attrs["stride"], shortcut.attrs["padding"]) == ((3, 3), (2, 2), (1,) * 4)


@pytest.mark.parametrize("padding", ["same", "symmetric"])
@pytest.mark.parametrize("arch", ["shufflenet_v1_g2", "shufflenet_v2_x0_5"])
def test_shufflenets_have_both_paddings(arch: str, padding: str) -> None:
    graph = skeleton(arch, padding=padding)
    for size in (1, 33, 64, 97):
        shapes = infer_shapes(graph, 1, size, 40)
        assert shapes["block_16"][1] == math.ceil(size / 32)
    padded = {str(n.attrs["padding"]) for n in graph.nodes if n.op.endswith("pool2d") or n.op == "conv2d"}
    assert padded == ({"same", "(0, 0, 0, 0)"} if padding == "same" else {"(1, 1, 1, 1)", "(0, 0, 0, 0)"})


def test_vgg_and_alexnet_of_any_width() -> None:
    graph = skeleton("vgg11", width=0.25)
    assert graph["conv1_1"].params["weight"].shape == (16, 3, 3, 3)
    assert graph["fc6"].params["weight"].shape == (1024, 49 * 128)
    graph = skeleton("alexnet_original", width=0.01)
    assert [graph[f"conv{i}"].params["weight"].shape[0] for i in range(1, 6)] == [2, 2, 2, 2, 2]
    assert graph["logits"].params["weight"].shape == (1000, 40)


def test_original_alexnet_is_normalised_before_the_first_pools() -> None:
    graph = skeleton("alexnet_original")
    assert graph.input_size == (227, 227)
    assert graph["pool1"].inputs == ("norm1",)
    assert graph["norm2"].inputs == ("conv2/relu",)
    assert [n.attrs["groups"] for n in graph.nodes if n.op == "conv2d"] == [1, 2, 1, 2, 2]
    assert "norm1" not in [n.name for n in skeleton("alexnet").nodes]


def test_googlenet_can_take_pictures_of_imagenets_mean() -> None:
    """What comes with ImageNet's mean and deviation is to the first layer what comes from -1 to 1."""
    plain = googlenet.build(classes=3, seed=1)
    wanted = googlenet.build(classes=3, seed=1, transform_input=True)
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3))
    normalised = (pixels - IMAGENET.mean) / IMAGENET.std
    a = reference.execute(plain, pixels / 127.5 - 1)["logits"]
    b = reference.execute(wanted, normalised)["logits"]
    assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
    assert "mean" in skeleton("googlenet")["input"].attrs
    assert "mean" not in skeleton("googlenet_no_transform")["input"].attrs


def test_conventions_of_the_sources() -> None:
    for arch in ARCHS:
        graph = skeleton(arch)
        epsilons = {n.attrs["epsilon"] for n in graph.nodes if n.op == "batch_norm"}
        assert epsilons <= {1e-3 if arch.startswith("googlenet") else 1e-5}
        assert bool(epsilons) == (arch.endswith("_bn") or arch.startswith(("googlenet", "shufflenet")))
        assert all(n.activation == RELU for n in graph.nodes if n.op == "activation")
        shorter = round(graph.input_size[0] / graph.preprocess.crop_fraction)
        assert shorter == (232 if arch in ("shufflenet_v2_x1_5", "shufflenet_v2_x2_0") else 256)
        assert graph.input_layout == "NCHW"


@pytest.mark.parametrize(
    "module,options,message",
    [
        (squeezenet, {"width": 0.5}, "SqueezeNet has width 1, not 0.5"),
        (squeezenet, {"version": "1.2"}, "version must be one of 1.0, 1.1, not '1.2'"),
        (squeezenet, {"padding": "same"}, "SqueezeNet has the paddings of its paper"),
        (shufflenet_v1, {"width": 0.75}, "ShuffleNet V1 has width 0.5 or 1 or 1.5 or 2, not 0.75"),
        (shufflenet_v1, {"groups": 5}, "groups must be one of 1, 2, 3, 4, 8, not 5"),
        (shufflenet_v2, {"width": 1.25}, "ShuffleNet V2 has width 0.5 or 1 or 1.5 or 2, not 1.25"),
        (shufflenet_v2, {"padding": "valid"}, '"same".*"symmetric".*\'valid\''),
        (vgg, {"layers": 12}, "layers must be one of 11, 13, 16, 19, not 12"),
        (vgg, {"width": math.nan}, "width must be a positive number"),
        (vgg, {"padding": "same"}, "VGG has the paddings"),
        (alexnet, {"padding": "same"}, "AlexNet has the paddings"),
        (alexnet, {"width": 0}, "width must be a positive number, not 0"),
        (alexnet, {"epsilon": 0.0}, "epsilon"),
        (googlenet, {"kernel": 7}, r"kernel must be 3 \(torchvision\) or 5 \(the paper\), not 7"),
        (googlenet, {"width": 2.0}, "GoogLeNet has width 1, not 2"),
        (googlenet, {"padding": "same"}, "GoogLeNet has the paddings"),
        (googlenet, {"classes": 0}, "classes must be a whole number"),
    ],
)
def test_bad_options_are_named(module: models.Family, options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        module.build(**options, weights=models.skeleton)


# --- random weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module,width,size,options",
    [
        (squeezenet, 1.0, 96, {"version": "1.0"}),
        (squeezenet, 1.0, 96, {"version": "1.1"}),
        (shufflenet_v1, 0.5, 64, {"groups": 3}),
        (shufflenet_v2, 0.5, 64, {}),
        (vgg, 0.125, 64, {"layers": 16}),
        (vgg, 0.125, 64, {"layers": 16, "batch_norm": True}),
        (alexnet, 0.25, 127, {}),
        (alexnet, 0.25, 127, {"original": True}),
        (googlenet, 1.0, 64, {}),
    ],
)
def test_random_networks_behave_like_trained_ones(
    module: models.Family, width: float, size: int, options: dict[str, object]
) -> None:
    graph = module.build(width, seed=1, **options)
    x = np.random.default_rng(0).standard_normal((2, size, size, 3))
    values = reference.execute(graph, x, keep=True)
    for node in graph.nodes:
        if node.op == "batch_norm":
            assert 0.4 < values[node.name].std() < 2.5, node.name
        if node.op == "activation":
            share = np.mean(values[node.name] > 0)
            assert 0.3 < share < 0.9, f"{node.name}: {share:.2f} of the values are positive"
    a, b = values["logits"].reshape(2, -1)
    assert 0.1 < a.std() < 20.0
    assert (a - b).std() > 0.25 * a.std(), "two pictures give nearly the same logits"


def test_moments_of_a_maximum_are_those_of_many_samples() -> None:
    rng = np.random.default_rng(2)
    for n in (1, 4, 9):
        top = rng.standard_normal((200_000, n)).max(axis=1)
        mean, variance = initialize.max_moments(n)
        assert mean == pytest.approx(top.mean(), abs=0.01)
        assert variance == pytest.approx(top.var(), abs=0.01)


@pytest.mark.parametrize("mean,std", [(0.0, 1.0), (0.4, 2.0), (-1.0, 0.7), (9.0, 1.0)])
def test_rectified_finds_the_distribution_before_a_relu(mean: float, std: float) -> None:
    moments = initialize.clamp_moments(RELU, np.array([mean]), np.array([std**2]))
    before = initialize.rectified(*moments)
    np.testing.assert_allclose(before, [[mean], [std]], rtol=0.02, atol=0.02)


def test_moments_follow_the_channels() -> None:
    """Statistics behind a concatenation and a choice of channels belong to the channels that were chosen."""
    b = GraphBuilder()
    x = b.add("input")
    weight = np.zeros((4, 1, 1, 3), np.float32)
    params = {key: np.zeros(3, np.float32) for key in ("gamma", "beta", "mean", "variance")}
    y = b.add("conv2d", x, params={"weight": weight}, stride=(1, 1), padding=(0, 0, 0, 0), groups=1)
    y = b.add("gather_channels", y, y, index=(1, 4, 7))
    made = initialize.randomize(b.build(b.add("batch_norm", y, params=params, epsilon=1e-5)))
    expected = (made["conv2d"].params["weight"].reshape(4, 3).astype(np.float64) ** 2).sum(axis=1)[[1, 0, 3]]
    np.testing.assert_allclose(made["batch_norm"].params["variance"], expected, rtol=1e-5)
