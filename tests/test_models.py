"""MobileNet V1 and V2, and what all builders share: sizes against the papers, channel rounding, conventions."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmobilenet import ModelError, models, reference
from fastmobilenet.graph import (
    RELU6,
    Graph,
    count_macs,
    count_parameters,
    infer_shapes,
    is_depthwise,
    resolve_padding,
)
from fastmobilenet.models import _common, mobilenet_v1, mobilenet_v2


def skeleton(arch: str, **options: object) -> Graph:
    return models.build(arch, weights=models.skeleton, **options)  # type: ignore[arg-type]


def macs(graph: Graph, h: int, w: int) -> int:
    shapes = infer_shapes(graph, 1, h, w)
    return sum(count_macs(node, shapes) for node in graph.nodes)


# --- sizes ----------------------------------------------------------------------------------------------

# width: (million parameters, {resolution: million MACs}), of all published checkpoints: the tables of TensorFlow. V1's
# has 317, 233, 162 and 104 million MACs for width 0.75, and 34 for width 0.25 at 192 pixels, where the layers add up to
# the numbers below; the paper has the first of them.
SIZES = {
    "mobilenet_v1": {
        1.0: (4.24, {224: 569, 192: 418, 160: 291, 128: 186}),
        0.75: (2.59, {224: 325, 192: 239, 160: 166, 128: 107}),
        0.5: (1.34, {224: 150, 192: 110, 160: 77, 128: 49}),
        0.25: (0.47, {224: 41, 192: 30, 160: 21, 128: 14}),
    },
    "mobilenet_v2": {
        1.4: (6.06, {224: 582}),
        1.3: (5.34, {224: 509}),
        1.0: (3.47, {224: 300, 192: 221, 160: 154, 128: 99, 96: 56}),
        0.75: (2.61, {224: 209, 192: 153, 160: 107, 128: 69, 96: 39}),
        0.5: (1.95, {224: 97, 192: 71, 160: 50, 128: 32, 96: 18}),
        0.35: (1.66, {224: 59, 192: 43, 160: 30, 128: 20, 96: 11}),
    },
}


@pytest.mark.parametrize("arch,width", [(arch, width) for arch, widths in SIZES.items() for width in widths])
def test_macs_and_parameters_are_the_published_ones(arch: str, width: float) -> None:
    graph = skeleton(arch, width=width)
    million_parameters, resolutions = SIZES[arch][width]
    for size, million_macs in resolutions.items():  # V1's are rounded, V2's are whole parts
        assert million_macs - 0.6 < macs(graph, size, size) / 1e6 < million_macs + 1
    # The tables disagree on whether they count the 1001st class, and the biases of a batch norm.
    assert count_parameters(graph) / 1e6 == pytest.approx(million_parameters, rel=0.015)


# What sum(p.numel() for p in model.parameters()) gives for the networks of torchvision 0.29 and timm 1.0. The other
# families have theirs in test_mobile_models.py and test_classic_models.py.
PARAMETERS = {
    "mobilenet_v1": 4231976,
    "mobilenet_v2": 3504872,
    "mobilenetv1_100": 4231976,
    "mobilenetv1_100h": 5282600,
    "mobilenetv1_125": 6270840,
    "mobilenetv2_035": 1677128,
    "mobilenetv2_050": 1968680,
    "mobilenetv2_075": 2636424,
    "mobilenetv2_100": 3504872,
    "mobilenetv2_110d": 4516520,
    "mobilenetv2_120d": 5831144,
    "mobilenetv2_140": 6108776,
}


def test_every_arch_has_the_parameters_of_its_original() -> None:
    assert {arch: count_parameters(skeleton(arch)) for arch in PARAMETERS} == PARAMETERS
    families = (mobilenet_v1, mobilenet_v2)
    assert {arch for arch in models.available() if models.find(arch).family in families} == set(PARAMETERS)


# --- channel rounding -----------------------------------------------------------------------------------


def channels(graph: Graph) -> list[int]:
    """Output channels of every convolution that is neither depthwise nor an expansion."""
    convolutions = [n for n in graph.nodes if n.op == "conv2d" and not n.name.endswith("expand")]
    return [n.params["weight"].shape[0] for n in convolutions if not is_depthwise(n)]


@pytest.mark.parametrize(
    "width,stem,stages,head",
    [
        (1.4, 48, (24, 32, 48, 88, 136, 224, 448), 1792),
        (1.3, 40, (24, 32, 40, 80, 128, 208, 416), 1664),
        (1.0, 32, (16, 24, 32, 64, 96, 160, 320), 1280),
        (0.75, 24, (16, 24, 24, 48, 72, 120, 240), 1280),
        (0.5, 16, (8, 16, 16, 32, 48, 80, 160), 1280),
        (0.35, 16, (8, 8, 16, 24, 32, 56, 112), 1280),
        (0.1, 8, (8, 8, 8, 8, 16, 16, 32), 1280),
    ],
)
def test_v2_channels(width: float, stem: int, stages: tuple[int, ...], head: int) -> None:
    repeats = (1, 2, 3, 4, 3, 3, 1)
    blocks = [c for c, n in zip(stages, repeats, strict=True) for _ in range(n)]
    assert channels(skeleton("mobilenet_v2", width=width)) == [stem, *blocks, head]


@pytest.mark.parametrize(
    "width,rounding,expected",
    [
        (1.0, "floor", (32, 64, 128, 256, 512, 1024)),
        (0.25, "floor", (8, 16, 32, 64, 128, 256)),
        (0.1, "floor", (8, 8, 12, 25, 51, 102)),
        (1.4, "floor", (44, 89, 179, 358, 716, 1433)),  # 44, not 48: V1 is not rounded to eights
        (1.4, "divisible", (48, 88, 176, 360, 720, 1432)),
        (0.29, "divisible", (16, 24, 40, 72, 152, 296)),
    ],
)
def test_v1_channels(width: float, rounding: str, expected: tuple[int, ...]) -> None:
    plan = mobilenet_v1.plan(width, rounding=rounding)
    assert (plan.stem.channels, *plan.stage_channels()) == expected


def test_v1_roundings_agree_for_the_published_widths() -> None:
    for width in (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0):
        assert mobilenet_v1.plan(width) == mobilenet_v1.plan(width, rounding="divisible")


@settings(deadline=None)
@given(st.integers(1, 2048), st.integers(1, 400))
def test_make_divisible_gives_the_nearest_multiple_that_loses_at_most_a_tenth(base: int, percent: int) -> None:
    value = base * (percent / 100)
    result = _common.make_divisible(value)
    exact = Fraction(value)
    allowed = [m for m in range(8, int(value) + 24, 8) if m >= Fraction(0.9 * value)]
    assert result % 8 == 0
    assert result in allowed
    # Of the multiples that are allowed it is the nearest, of two equally near ones the larger.
    assert result == max(allowed, key=lambda m: (-abs(m - exact), m))


@pytest.mark.parametrize("arch", ["mobilenet_v1", "mobilenet_v2"])
@pytest.mark.parametrize("width", [0.05, 0.13, 0.33, 0.62, 1.0, 1.07, 1.4, 1.93, 3.0])
def test_any_width_gives_a_graph_whose_shapes_fit(arch: str, width: float) -> None:
    graph = skeleton(arch, width=width, classes=7)
    assert infer_shapes(graph, 2, 96, 64)["logits"] == (2, 1, 1, 7)


@pytest.mark.parametrize("arch", ["mobilenet_v1", "mobilenet_v2"])
@pytest.mark.parametrize("width", [0.07, 0.3])
def test_odd_channel_counts_can_be_executed(arch: str, width: float) -> None:
    out = reference.execute(models.build(arch, width=width, classes=5), np.ones((1, 37, 33, 3)))["logits"]
    assert out.shape == (1, 1, 1, 5)
    assert np.isfinite(out).all()


def test_depth_multiplier_rounds_up_and_leaves_the_ends_alone() -> None:
    assert mobilenet_v2.plan(1.1).repeats() == (1, 2, 3, 4, 3, 3, 1)
    assert mobilenet_v2.plan(1.1, depth=1.2).repeats() == (2, 3, 4, 5, 4, 4, 2)
    assert mobilenet_v2.plan(1.1, depth=1.2, fixed_ends=True).repeats() == (1, 3, 4, 5, 4, 4, 1)
    ends = mobilenet_v2.plan(1.4, fixed_ends=True).outputs()
    assert (ends["conv1"], ends["head"]) == (32, 1280)


# --- structure ------------------------------------------------------------------------------------------


def test_v2_layers_and_residuals() -> None:
    graph = skeleton("mobilenet_v2")
    names = [n.name for n in graph.nodes]
    assert names[:5] == ["input", "conv1", "conv1/bn", "conv1/relu6", "block_0/depthwise"]
    assert names[-5:] == ["head", "head/bn", "head/relu6", "pool", "logits"]
    assert [n.name for n in graph.nodes if n.op == "add"] == [f"block_{i}" for i in (2, 4, 5, 7, 8, 9, 11, 12, 14, 15)]
    assert graph["block_12"].inputs == ("block_11", "block_12/project/bn")
    assert "block_0/expand" not in names
    strided = [n.name for n in graph.nodes if n.op == "conv2d" and n.attrs["stride"] == (2, 2)]
    assert strided == ["conv1", *(f"block_{i}/depthwise" for i in (1, 3, 6, 13))]


def test_v2_bottlenecks_are_linear() -> None:
    """Neither the projection nor the sum is followed by an activation (T21)."""
    graph = skeleton("mobilenet_v2")
    followers = graph.consumers()
    for node in graph.nodes:
        if node.op == "add" or node.name.endswith("project/bn"):
            assert node.activation is None
            assert "activation" not in {reader.op for reader in followers[node.name]}
    assert sum(n.op == "activation" for n in graph.nodes) == 1 + 17 + 16 + 1


def test_v1_layers() -> None:
    graph = skeleton("mobilenetv1_100h")
    names = [n.name for n in graph.nodes if n.op in ("conv2d", "dense")]
    pairs = [f"block_{i}/{layer}" for i in range(1, 14) for layer in ("depthwise", "pointwise")]
    assert names == ["conv1", *pairs, "head", "logits"]
    strided = [n.name for n in graph.nodes if n.op == "conv2d" and n.attrs["stride"] == (2, 2)]
    assert strided == ["conv1", *(f"block_{i}/depthwise" for i in (2, 4, 6, 12))]
    assert all(n.activation == RELU6 for n in graph.nodes if n.op == "activation")
    assert graph["head"].params["weight"].shape == (1024, 1, 1, 1024)
    assert "head" not in [n.name for n in skeleton("mobilenetv1_100").nodes]


@pytest.mark.parametrize("arch", ["mobilenet_v1", "mobilenet_v2"])
@pytest.mark.parametrize("padding", ["same", "symmetric"])
def test_any_picture_size_works(arch: str, padding: str) -> None:
    graph = skeleton(arch, padding=padding)
    for h, w in [(1, 1), (2, 3), (31, 32), (33, 65), (161, 97), (192, 192), (225, 161)]:
        shapes = infer_shapes(graph, 1, h, w)
        last = shapes[graph["pool"].inputs[0]]
        assert last[1:3] == (math.ceil(h / 32), math.ceil(w / 32))
        assert shapes["logits"] == (1, 1, 1, 1000)


@pytest.mark.parametrize(
    "padding,size,expected",
    [
        ("same", 224, (0, 1, 0, 1)),
        ("same", 225, (1, 1, 1, 1)),
        ("symmetric", 224, (1, 1, 1, 1)),
        ("symmetric", 225, (1, 1, 1, 1)),
    ],
)
@pytest.mark.parametrize("arch", ["mobilenet_v1", "mobilenet_v2"])
def test_padding_of_the_first_layer(arch: str, padding: str, size: int, expected: tuple[int, ...]) -> None:
    assert resolve_padding(skeleton(arch, padding=padding)["conv1"], size, size) == expected


def test_paddings_give_different_logits_for_even_sizes() -> None:
    x = np.random.default_rng(3).standard_normal((1, 32, 32, 3))
    a, b = (
        reference.execute(models.build("mobilenet_v2", width=0.2, classes=9, padding=p), x)["logits"]
        for p in ("same", "symmetric")
    )
    assert np.abs(a - b).max() > 1e-2


# --- conventions and options ----------------------------------------------------------------------------


def test_conventions_of_the_sources() -> None:
    for arch in PARAMETERS:
        graph = skeleton(arch)
        tensorflow = arch == "mobilenet_v1"
        assert {n.attrs["epsilon"] for n in graph.nodes if n.op == "batch_norm"} == {1e-3 if tensorflow else 1e-5}
        assert graph["conv1"].attrs["padding"] == ("same" if tensorflow else (1, 1, 1, 1))
        assert graph.preprocess.interpolation == ("bilinear" if arch.startswith("mobilenet_v") else "bicubic")
        plain = arch.startswith(("mobilenetv1", "mobilenet_v1"))
        assert graph.preprocess.mean[0] == pytest.approx(127.5 if plain else 0.485 * 255)
        assert round(224 / graph.preprocess.crop_fraction) == (248 if arch == "mobilenetv1_125" else 256)
        assert graph.name == arch


def test_options_reach_the_graph() -> None:
    labels = [f"class {i}" for i in range(12)]
    preprocess = dataclasses.replace(skeleton("mobilenet_v2").preprocess, channels="bgr")
    graph = models.build(
        "mobilenet_v2",
        width=0.1,
        classes=12,
        epsilon=1e-3,
        padding="same",
        input_size=(96, 128),
        input_layout="NHWC",
        preprocess=preprocess,
        labels=labels,
        name="mine",
    )
    assert {n.attrs["epsilon"] for n in graph.nodes if n.op == "batch_norm"} == {1e-3}
    assert graph["conv1"].attrs["padding"] == "same"
    assert (graph.input_size, graph.input_layout, graph.name) == ((96, 128), "NHWC", "mine")
    assert (graph.preprocess, graph.labels) == (preprocess, tuple(labels))
    assert graph["logits"].params["bias"].shape == (12,)


@pytest.mark.parametrize("classes", [1, 2, 10, 1001, 21843])
def test_any_class_count(classes: int) -> None:
    assert infer_shapes(skeleton("mobilenet_v2", classes=classes), 1, 32, 32)["logits"][3] == classes


@pytest.mark.parametrize(
    "options,message",
    [
        ({"width": 0}, "width must be a positive number, not 0"),
        ({"width": -1.0}, "width"),
        ({"width": math.nan}, "width"),
        ({"width": math.inf}, "width"),
        ({"width": "1.0"}, "width must be a positive number, not '1.0'"),
        ({"classes": 0}, "classes must be a whole number"),
        ({"classes": 2.5}, "classes"),
        ({"classes": True}, "classes"),
        ({"padding": "valid"}, '"same".*"symmetric".*\'valid\''),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": math.nan}, "epsilon"),
        ({"labels": ["a", "b"], "classes": 3}, "2 labels do not fit 3 classes"),
        ({"input_layout": "HWCN"}, "input_layout"),
    ],
)
@pytest.mark.parametrize("arch", ["mobilenet_v1", "mobilenet_v2"])
def test_bad_options_are_named(arch: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        skeleton(arch, **options)


def test_unknown_rounding_is_named() -> None:
    with pytest.raises(ModelError, match="floor, divisible"):
        mobilenet_v1.plan(rounding="ceil")


def test_unknown_arch_names_the_near_ones_and_all() -> None:
    with pytest.raises(ModelError, match="did you mean 'mobilenetv2_100'") as caught:
        models.build("MobileNetV2_100x")
    assert all(name in str(caught.value) for name in models.available())
    with pytest.raises(ModelError, match="'resnet50' is unknown"):
        models.find("resnet50")


def test_a_width_that_contradicts_the_name_is_refused() -> None:
    with pytest.raises(ModelError, match=r"'mobilenetv2_050' has width 0\.5, not 0\.75; use arch='mobilenet_v2'"):
        models.build("mobilenetv2_050", width=0.75)
    assert count_parameters(skeleton("mobilenetv2_050", width=0.5)) == PARAMETERS["mobilenetv2_050"]


@settings(max_examples=25, deadline=None)
@given(st.floats(0.02, 3.0), st.integers(1, 300), st.sampled_from(["same", "symmetric"]))
def test_a_skeleton_takes_no_memory_and_always_fits(width: float, classes: int, padding: str) -> None:
    for arch in ("mobilenet_v1", "mobilenet_v2"):
        graph = skeleton(arch, width=width, classes=classes, padding=padding)
        infer_shapes(graph, 1, 50, 70)
        assert all(value.strides == (0,) * value.ndim for value in (v for n in graph.nodes for v in n.params.values()))
