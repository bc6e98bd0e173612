"""Dense convolutions on the tile unit of AMX (csrc/kernels/amx.h) against reference.py; and where it is used."""

from __future__ import annotations

import dataclasses
import itertools
import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmobilenet import _native, amx, fusion, lower, models, reference
from fastmobilenet.amx import choose_amx, expected_saving, expected_saving_of_rows
from fastmobilenet.graph import HARD_SWISH, RELU, RELU6, Activation, Graph, GraphBuilder
from fastmobilenet.lower import Engine

from .test_lower import conv, picture

ISA = "avx512"
HAS_AMX = ISA in _native.supported_isas() and _native.has_amx(ISA)
needs_amx = pytest.mark.skipif(not HAS_AMX, reason="this CPU has no tiles of bfloat16 (AMX)")
EPS = float(np.finfo(np.float32).eps)
ACTS = (None, RELU6, HARD_SWISH)

Force = Callable[..., None]


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Force:
    """force(): every convolution that AMX can do is done by it, but those of a single pixel: they are matrix-vector
    products, with functions of their own. strips: whether those of a strip stay in it."""

    def force(strips: bool = False) -> None:
        monkeypatch.setenv("FASTMOBILENET_AMX", "1")
        monkeypatch.setattr(amx, "expected_saving", lambda pixels, *_: 0.5 * (pixels > 1))
        monkeypatch.setattr(amx, "expected_saving_of_rows", lambda *_: 0.5)
        monkeypatch.setattr(fusion, "_better_alone", lambda *_: not strips)
        monkeypatch.setattr(lower, "score_layer", lambda _: None)  # or the last layer would be left alone

    return force


def layer(
    ic: int, oc: int, k: Any = 1, s: Any = 1, *, activation: Activation | None = None, residual: bool = False,
    padded: bool = False, weight: np.ndarray | None = None, padding: Any = "same", dilation: int = 1,
) -> Graph:  # fmt: skip
    """A convolution named y whose input and what it adds are made of the picture. `padded`: for a depthwise convolution
    that reads it and passes it on, so that y has padding between its rows."""
    b = GraphBuilder()
    picture = b.add("input")
    x = conv(b, picture, 3, ic)
    rng = np.random.default_rng([ic, oc])
    kh, kw = k if isinstance(k, tuple) else (k, k)
    if weight is None:
        weight = rng.standard_normal((oc, kh, kw, ic)) / math.sqrt(ic * kh * kw)
    params = {"weight": weight.astype(np.float32), "bias": rng.standard_normal(oc).astype(np.float32)}
    stride = s if isinstance(s, tuple) else (s, s)
    y = b.add(
        "conv2d", *((x, conv(b, picture, 3, oc, seed=1)) if residual else (x,)), name="y", params=params,
        activation=activation, stride=stride, padding=padding, dilation=(dilation, dilation), groups=1,
    )  # fmt: skip
    if padded:
        same = np.zeros((oc, 3, 3, 1), np.float32)
        same[:, 1, 1] = 1
        y = b.add("conv2d", y, params={"weight": same}, stride=(1, 1), padding="same", dilation=(1, 1), groups=oc)
    return b.build(y, input_layout="NHWC")


def exact(graph: Graph, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What y is in float64 for what it reads on this runtime, and the sum of the magnitudes that it adds up."""
    node = graph["y"]
    sources = [Engine(graph.replace(output=s), ISA).run(x, pixels=False).astype(np.float64) for s in node.inputs]
    positive = {name: abs(value) for name, value in node.params.items()}
    of_magnitudes = dataclasses.replace(node, params=positive, attrs={**node.attrs, "activation": None})
    return reference.conv2d(node, *sources), reference.conv2d(of_magnitudes, *map(abs, sources))


def kernels(engine: Engine, x: np.ndarray) -> dict[str, str]:
    return dict(engine.program(*x.shape[1:3]).steps)


def assert_same_bits(engine: Engine, x: np.ndarray, found: np.ndarray, threads: tuple[int, ...] = (2, 3)) -> None:
    """Of more threads, and of one picture of a batch."""
    for n in threads:
        assert np.array_equal(engine.run(x, threads=n, pixels=False), found, equal_nan=True)
    for i in range(len(x) if len(x) > 1 else 0):
        assert np.array_equal(engine.run(x[i : i + 1], threads=1 + i, pixels=False)[0], found[i], equal_nan=True)


def check(graph: Graph, x: np.ndarray) -> np.ndarray:
    """The relative errors: of the sum of magnitudes."""
    engine = Engine(graph, ISA)
    assert kernels(engine, x)["y"] == "gemm_f32/avx512/32x32/amx"
    found = engine.run(x, pixels=False)
    expected, magnitude = exact(graph, x)
    error = abs(found - expected) / np.where(magnitude > 0, magnitude, 1)
    node = graph["y"]
    k = math.prod(node.params["weight"].shape[1:])
    factor = 2 if node.activation == HARD_SWISH else 1  # its slope, and the product
    assert (error <= factor * 4 * EPS * math.sqrt(k + 4)).all(), f"{error.max() / EPS} roundings, k = {k}"
    assert_same_bits(engine, x, found)
    assert np.array_equal(engine.graph()["y"].params["weight"], node.params["weight"])
    return error


@needs_amx
@pytest.mark.parametrize("oc", [16, 17, 24, 40, 48, 72, 100])
@pytest.mark.parametrize("ic", [16, 17, 24, 33, 40, 48, 64, 72, 100, 120])
def test_channels(ic: int, oc: int, force: Force) -> None:
    """Pairs of segments and one alone, whole or not; panels of two blocks and of one."""
    force()
    check(layer(ic, oc), picture(7, 7))
    check(layer(ic, oc, activation=RELU6, residual=True, padded=True), picture(5, 9, n=2))


@needs_amx
@pytest.mark.parametrize("ic, oc", [(16, 16), (33, 72), (64, 32)])
def test_every_width(ic: int, oc: int, force: Force) -> None:
    """Every height of tiles, and tiles that share pixels."""
    force()
    for graph in (layer(ic, oc), layer(ic, oc, residual=True, padded=True)):
        for w in range(2, 70):
            check(graph, picture(1, w))


@needs_amx
@pytest.mark.parametrize("size", [(7, 7), (14, 14), (13, 5), (1, 37), (37, 1), (4, 4), (3, 21), (25, 40), (31, 29)])
@pytest.mark.parametrize("activation", ACTS, ids=str)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_maps(size: tuple[int, int], activation: Activation | None, residual: bool, padded: bool, force: Force) -> None:
    force()
    for ic, oc in ((40, 24), (48, 80)):
        check(layer(ic, oc, activation=activation, residual=residual, padded=padded), picture(*size, n=2))


@needs_amx
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    "k, s, dilation",
    [((1, 3), 1, 1), ((3, 1), 1, 1), (1, 2, 1), (3, 2, 1), (5, 1, 1), (5, (2, 1), 1), (3, 1, 2), ((2, 7), (1, 3), 1)],
)
def test_windows(k: Any, s: Any, dilation: int, residual: bool, force: Force) -> None:
    force()
    for ic, oc in ((16, 24), (40, 48), (33, 17)):
        for size in ((7, 9), (14, 14), (1, 37), (19, 3)):
            for padded in (False, True):
                graph = layer(ic, oc, k, s, dilation=dilation, residual=residual and s == 1, padded=padded)
                check(graph, picture(*size))


@needs_amx
@pytest.mark.parametrize(
    "k, padding", [(1, (2, 1, 0, 0)), ((1, 2), (1, 2, 1, 0)), ((2, 3), (4, 3, 0, 1)), (5, (0, 0, 0, 0))]
)
def test_rows_that_read_nothing(k: Any, padding: Any, force: Force) -> None:
    """More padding than the window has rows: some outputs are the bias alone."""
    force()
    for activation in ACTS:
        for ic, oc in ((16, 40), (48, 64)):
            check(layer(ic, oc, k, padding=padding, activation=activation), picture(9, 40))


@needs_amx
def test_maps_with_padding_that_others_read(force: Force) -> None:
    """The source of the 1x1 convolution has padding between its rows for another reader, the destination has none."""
    force()
    for residual in (False, True):
        b = GraphBuilder()
        x = conv(b, b.add("input"), 3, 40)
        y = conv(b, x, 40, 40, 5, groups=40)
        weight = np.random.default_rng(1).standard_normal((40, 1, 1, 40)).astype(np.float32)
        sources = (x, y) if residual else (x,)
        z = b.add("conv2d", *sources, name="y", params={"weight": weight}, stride=(1, 1), padding="same",
                  dilation=(1, 1), groups=1)  # fmt: skip
        graph = b.build(z if residual else b.add("add", z, y), input_layout="NHWC")
        pixels = picture(11, 13)
        engine = Engine(graph, ISA)
        assert kernels(engine, pixels)["y"].endswith("/amx")
        found, expected = engine.run(pixels, pixels=False), reference.execute(graph, pixels)[graph.output]
        assert abs(found - expected).max() <= 3e-6 * abs(expected).max()
        assert_same_bits(engine, pixels, found)


# --- errors ----------------------------------------------------------------------------------------------------


def root_mean_square(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error**2)))


@needs_amx
@pytest.mark.parametrize("k, s", [(1, 1), (3, 2)])
@pytest.mark.parametrize("ic", [16, 48, 96, 512])
def test_errors_are_those_of_plain_sums(ic: int, k: int, s: int, force: Force, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, x = layer(ic, 64, k, s), picture(14, 14)
    force()
    by_tiles = check(graph, x)
    monkeypatch.setenv("FASTMOBILENET_AMX", "0")
    monkeypatch.setenv("FASTMOBILENET_INNER", "0")
    monkeypatch.setenv("FASTMOBILENET_STRASSEN", "0")
    engine = Engine(graph, ISA)
    if k == 1:
        assert "amx" not in kernels(engine, x)["y"]
        expected, magnitude = exact(graph, x)
        plain = abs(engine.run(x, pixels=False) - expected) / magnitude
        assert root_mean_square(by_tiles) <= 1.2 * root_mean_square(plain)
        assert by_tiles.max() <= 1.5 * plain.max()
    assert root_mean_square(by_tiles) <= EPS / 2


@needs_amx
@pytest.mark.parametrize("ic", [16, 64, 72])
def test_sums_are_not_too_small(ic: int, force: Force) -> None:
    """The products that are not made have either sign, or every layer would lose the same part of all its values, which
    no mean over a map takes away."""
    force()
    graph = layer(ic, 64, weight=abs(np.random.default_rng(ic).standard_normal((64, 1, 1, ic))))
    nodes = []
    for n in graph.nodes:
        if n.name == "y":
            nodes.append(dataclasses.replace(n, params={"weight": n.params["weight"]}))
        else:
            nodes.append(dataclasses.replace(n, attrs={**n.attrs, "activation": RELU}) if n.params else n)
    graph, x = graph.replace(nodes=tuple(nodes)), picture(20, 20)
    expected, magnitude = exact(graph, x)
    error = (Engine(graph, ISA).run(x, pixels=False) - expected)[magnitude > 0] / magnitude[magnitude > 0]
    assert abs(error.mean()) < 0.05 * EPS


@needs_amx
def test_single_products_are_those_of_floats(force: Force) -> None:
    """One channel of input counts: what is lost are parts below 2^-24 of the product, and half a unit in each of the
    six sums."""
    force()
    rng = np.random.default_rng(0)
    weight = np.zeros((48, 1, 1, 48))
    weight[np.arange(48), 0, 0, np.arange(48)] = rng.standard_normal(48)
    graph = layer(48, 48, weight=weight)
    nodes = [dataclasses.replace(n, params={"weight": n.params["weight"]}) if n.params else n for n in graph.nodes]
    assert check(graph.replace(nodes=tuple(nodes)), picture(30, 30)).max() <= 3.5 * EPS


@needs_amx
@pytest.mark.parametrize("low, high", [(-20, 20), (-20, -20), (20, 20), (-28, -28), (30, 30)])
def test_weights_of_any_size(low: int, high: int, force: Force) -> None:
    """Exact relative to the sum of magnitudes, in every channel of its own."""
    force()
    rng = np.random.default_rng(2)
    for ic, oc in ((48, 40), (33, 33)):
        weight = rng.standard_normal((oc, 1, 1, ic)) * 10.0 ** rng.uniform(low, high, (oc, 1, 1, ic))
        graph = layer(ic, oc, weight=weight)
        nodes = [
            dataclasses.replace(n, params=n.params | {"bias": np.zeros(oc, np.float32)}) if n.name == "y" else n
            for n in graph.nodes
        ]
        check(graph.replace(nodes=tuple(nodes)), picture(7, 9))


@needs_amx
def test_nan_and_infinity_stay(force: Force) -> None:
    """An infinity becomes NaN: it has no parts. The other pixels, and the other channels, know nothing of it."""
    force()
    for activation in ACTS:
        for padded in (False, True):
            graph = layer(40, 72, activation=activation, padded=padded)
            engine = Engine(graph, ISA)
            touched = np.zeros((5, 5), bool)
            touched[1:4, 1:4] = padded  # the depthwise convolution multiplies by zeros
            touched[2, 2] = True
            for bits in (0x7FC00000, 0x7F800001, 0xFFC00000, 0x7F800000, 0xFF800000):  # the second: low bits alone
                x = picture(5, 5)
                x.view(np.uint32)[0, 2, 2, 1] = bits
                found = engine.run(x, pixels=False)
                assert np.isnan(found[0][touched]).all()
                assert np.isfinite(found[0][~touched]).all()
        weight = graph["y"].params["weight"].copy()
        weight[3, 0, 0, 2], weight[4, 0, 0, 39] = np.nan, np.inf
        found = Engine(layer(40, 72, activation=activation, weight=weight), ISA).run(picture(5, 5), pixels=False)
        assert np.isnan(found[..., 3:5]).all()
        assert np.isfinite(np.delete(found, [3, 4], axis=3)).all()


# --- strips, scattered channels, networks --------------------------------------------------------------------


def block(ic: int, wide: int, oc: int, k: int = 3, s: int = 1, residual: str = "", padded: bool = False) -> Graph:
    """An inverted residual; `residual`: what the last convolution adds, "source" or "expanded"; `padded`: a depthwise
    convolution reads it, and something else too, or it would be the first of the next strip."""
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, ic, 3, activation=RELU6)
    expanded = conv(b, x, ic, wide, activation=RELU6)
    y = conv(b, expanded, wide, wide, k, s, groups=wide, activation=HARD_SWISH)
    rng = np.random.default_rng(oc)
    weight = (rng.standard_normal((oc, 1, 1, wide)) / math.sqrt(wide)).astype(np.float32)
    sources = {"": (), "source": (x,), "expanded": (expanded,)}[residual]
    y = b.add("conv2d", y, *sources, params={"weight": weight}, stride=(1, 1), padding="same", groups=1,
              dilation=(1, 1))  # fmt: skip
    return b.build(b.add("add", y, conv(b, y, oc, oc, 3, groups=oc)) if padded else y, input_layout="NHWC")


@needs_amx
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "ic, wide, oc, k, s, residual",
    [(32, 192, 32, 3, 1, "source"), (24, 144, 40, 5, 2, ""), (17, 72, 17, 3, 1, "source"),
     (16, 40, 40, 3, 1, "expanded"), (16, 96, 24, 3, 2, ""), (40, 240, 72, 5, 1, "")],
)  # fmt: skip
def test_strips(
    ic: int, wide: int, oc: int, k: int, s: int, residual: str, padded: bool, force: Force,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In a strip, and each on its own: the same values, whether threads share rows or channels."""
    graph = block(ic, wide, oc, k, s, residual, padded)
    for size in ((28, 28), (40, 13), (61, 37)):
        x = picture(*size, n=2)
        monkeypatch.setenv("FASTMOBILENET_AMX", "0")
        plain = Engine(graph, ISA).run(x, pixels=False)
        expected = reference.execute(graph, x)[graph.output]
        most = abs(expected).max()
        assert abs(plain - expected).max() <= 3e-6 * most
        for strips in (True, False):
            force(strips=strips)
            engine = Engine(graph, ISA)
            steps = kernels(engine, x)
            assert any("+amx/" in kernel for kernel in steps.values()) == strips, steps
            found = engine.run(x, pixels=False)
            assert abs(found - expected).max() <= 3e-6 * most
            assert_same_bits(engine, x, found, (2, 3, 4, 7))


NETWORKS = {
    "mobilenet_v1": {"width": 0.5}, "mobilenet_v2": {"width": 0.5}, "mobilenet_v3_small": {}, "squeezenet1_1": {},
    "shufflenet_v1_g3": {"width": 0.5}, "shufflenet_v2_x0_5": {}, "shufflenet_v2_x1_0": {}, "googlenet": {},
}  # fmt: skip


@needs_amx
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("strips", [False, True])
def test_networks(name: str, strips: bool, force: Force, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd sizes; scattered channels (ShuffleNet) and concatenations (GoogLeNet, SqueezeNet) among them."""
    graph = models.build(name, **NETWORKS[name])
    monkeypatch.setenv("FASTMOBILENET_AMX", "0")
    plain = Engine(graph, ISA)
    force(strips)
    by_tiles = Engine(graph, ISA)
    for size in ((97, 131), (64, 96)):
        x = picture(*size)
        if graph.input_layout == "NCHW":
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        steps = by_tiles.program(*size).steps
        assert sum("amx" in kernel for _, kernel in steps) >= 1
        assert not any("amx" in kernel for _, kernel in plain.program(*size).steps)
        expected, found = plain.run(x, pixels=False), by_tiles.run(x, pixels=False)
        assert abs(found - expected).max() <= 2e-5 * abs(expected).max()
        assert_same_bits(by_tiles, x, found)


@needs_amx
def test_scattered_channels_are_multiplied_in_pieces(force: Force) -> None:
    force()
    engine = Engine(models.build("shufflenet_v2_x1_0"), ISA)
    scattered = set(engine._wiring.pieces)
    steps = dict(engine.program(96, 96).steps)
    assert sum(steps.get(name, "").endswith("/amx") for name in scattered) >= 10


@needs_amx
@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("name", ["mobilenet_v2", "shufflenet_v2_x0_5"])
def test_nothing_depends_on_old_memory(name: str, strips: bool, force: Force) -> None:
    """NaN all over the arena and in what was split, then pictures of other sizes."""
    force(strips)
    graph = models.build(name, **NETWORKS[name])
    engine = Engine(graph, ISA)
    h_w = slice(2, 4) if graph.input_layout == "NCHW" else slice(1, 3)
    for threads, size in itertools.product((1, 2, 3), ((96, 96), (65, 49))):
        x = picture(*size)
        poison = np.full((1, 160, 161, 3), np.nan, np.float32)
        if graph.input_layout == "NCHW":
            x, poison = (np.ascontiguousarray(v.transpose(0, 3, 1, 2)) for v in (x, poison))
        assert x.shape[h_w] == size
        assert np.isnan(engine.run(poison, threads=threads, pixels=False)).all()
        found = engine.run(x, threads=threads, pixels=False)
        assert np.isfinite(found).all()
        assert np.array_equal(found, Engine(graph, ISA).run(x, pixels=False))


@needs_amx
def test_layers_do_not_depend_on_old_memory(force: Force) -> None:
    """The same for every way in which a layer cuts its pixels."""
    force()
    for k, s, padded, residual in itertools.product((1, 3, 5), (1, 2), (False, True), (False, True)):
        if (k, s) == (3, 1) or (residual and s == 2):
            continue
        graph = layer(33, 40, k, s, padded=padded, residual=residual)
        engine = Engine(graph, ISA)
        for threads in (1, 2, 3):
            engine.run(np.full((1, 61, 60, 3), np.nan, np.float32), threads=threads, pixels=False)
            for size in ((13, 21), (5, 5), (1, 50)):
                x = picture(*size)
                expected = Engine(graph, ISA).run(x, pixels=False)
                assert np.array_equal(engine.run(x, threads=threads, pixels=False), expected)


# --- where it is used ------------------------------------------------------------------------------------------


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = layer(96, 96, padded=True)  # y makes no scores

    def is_used(isa: str | None = None) -> bool:
        return any("amx" in kernel for _, kernel in Engine(graph, isa).program(28, 28).steps)

    for isa in _native.supported_isas():
        for value, expected in (("0", False), ("1", True), ("", True), (" 1 ", True)):
            monkeypatch.setenv("FASTMOBILENET_AMX", value)
            assert amx.enabled(isa) == is_used(isa) == (expected and HAS_AMX and isa == ISA)
        monkeypatch.delenv("FASTMOBILENET_AMX")
        assert amx.enabled(isa) == is_used(isa) == _native.has_amx(isa) == (HAS_AMX and isa == ISA)
    for value in ("yes", "2", "-1"):
        monkeypatch.setenv("FASTMOBILENET_AMX", value)
        with pytest.raises(ValueError, match=f"FASTMOBILENET_AMX must be 0 or 1, not '{value}'"):
            Engine(graph)


@needs_amx
def test_scores_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last panel of an odd number of blocks is summed in another order, and equal classes must get equal scores."""
    monkeypatch.setenv("FASTMOBILENET_AMX", "1")
    x = picture(14, 14)
    assert "amx" not in kernels(Engine(layer(256, 1008), ISA), x)["y"]
    assert "amx" in kernels(Engine(layer(256, 1008, padded=True), ISA), x)["y"]


def test_choice_by_shape() -> None:
    assert expected_saving(196, 32, 512, 512) > 0.3
    assert expected_saving(15, 32, 512, 512) == 0, "fewer pixels than rows of a tile"
    assert expected_saving(3136, 1, 16, 16) < expected_saving(3136, 6, 96, 96)
    assert expected_saving(196, 1, 1, 512) < 0, "a channel takes a block"
    assert expected_saving_of_rows(14, 7, 196, 9, 4, 64, 64) == 0, "short rows"
    assert expected_saving_of_rows(28, 28, 784, 25, 4, 64, 64) > 0.2


def test_what_is_never_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amx, "expected_saving", lambda *_: 1.0)
    monkeypatch.setattr(amx, "expected_saving_of_rows", lambda *_: 1.0)
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 32)  # of the picture
    x = conv(b, x, 32, 32, 3)  # Winograd's
    x = conv(b, x, 32, 32, 3, groups=32)
    x = conv(b, x, 32, 32, groups=2)
    x = conv(b, x, 32, 48, 3, 2)
    graph = b.build(conv(b, x, 48, 16), input_layout="NHWC")
    engine = Engine(graph)
    shapes = lower.infer_shapes(engine.skeleton, 1, 56, 56)
    found = choose_amx(engine.skeleton, shapes, engine._weights)
    assert [engine.skeleton[name].params["weight"].shape for name in found] == [(48, 3, 3, 32), (16, 1, 1, 48)]


def test_what_cannot_be_made() -> None:
    isa = _native.supported_isas()[0]

    def pack(oc: int, ic: int, k: int = 1, groups: int = 1, depthwise: bool = False) -> _native.PackedWeights:
        weight = np.zeros((oc, k, k, ic // groups), np.float32)
        return _native.pack(_native.WeightStore(), weight, None, groups, depthwise, False, isa)

    _native.AmxWeights(pack(24, 40))
    _native.AmxWeights(pack(24, 40, k=3), [16, 16, 8])
    for packed in (pack(32, 32, groups=2), pack(32, 32, k=3, groups=32, depthwise=True)):
        with pytest.raises(ValueError, match="not a dense convolution of one group"):
            _native.AmxWeights(packed)
    for pieces in ([16, 16], [16, 16, 9], [17, 16, 7], [16, 16, 0, 8], [16, 24]):
        with pytest.raises(ValueError, match="pieces do not fit the layer"):
            _native.AmxWeights(pack(24, 40), pieces)


def test_an_isa_without_kernels() -> None:
    packed = _native.pack(_native.WeightStore(), np.zeros((32, 1, 1, 32), np.float32), None, 1, False, False, "scalar")
    program = _native.Program("scalar", 2 * 64 * 32, _native.Arenas())
    tensors = [program.tensor(32, 4, 4, 0, 0, False, at) for at in (0, 1024)]
    spec = _native.ConvSpec(packed, (1, 1), (1, 1), (0, 0), lower._act(RELU6), None, _native.AmxWeights(packed))
    if not HAS_AMX:
        with pytest.raises(ValueError, match="the CPU has no AMX"):
            program.conv("y", *tensors, -1, spec)


@needs_amx
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_processes_and_threads_that_come_later(force: Force, run_python: Any) -> None:
    """The system saves tiles of processes that asked for them, and of their threads and children."""
    done = run_python(
        "-c",
        """
import os, threading
import numpy as np
from fastmobilenet import Model, models
from fastmobilenet.lower import Engine
engine = Engine(models.build("mobilenet_v1", width=0.5), "avx512")
assert any("amx" in kernel for _, kernel in engine.program(96, 96).steps)
x = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), np.uint8)
expected = engine.run(x, pixels=True)
found = []
threads = [threading.Thread(target=lambda: found.append(engine.run(x, threads=2, pixels=True))) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
assert len(found) == 4 and all(np.array_equal(y, expected) for y in found)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(engine.run(x, threads=2, pixels=True), expected) else 1)
assert os.waitpid(child, 0)[1] == 0
""",
        env={"FASTMOBILENET_AMX": "1"},
    )
    assert done.returncode == 0, done.stderr
