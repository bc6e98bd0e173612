"""1x1 convolutions by Winograd's inner product against reference.py; and where it is used."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastmobilenet import _native, lower, models, products, reference
from fastmobilenet.graph import HARD_SWISH, RELU, RELU6, Activation, Graph, GraphBuilder, Node
from fastmobilenet.inner import Inner, choose_inner, expected_saving
from fastmobilenet.lower import Engine
from fastmobilenet.passes import optimize
from fastmobilenet.sizes import mean_squares

from .test_lower import conv, picture

ISA = next((isa for isa in _native.supported_isas() if _native.has_inner(isa)), "")
needs_kernels = pytest.mark.skipif(not ISA, reason="no ISA of this CPU has kernels of inner products")
BLOCK = 16

Force = Callable[..., None]


@pytest.fixture(autouse=True)
def without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes their place."""
    monkeypatch.setenv("FASTMOBILENET_AMX", "0")


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Force:
    """force(size): the convolution `y` is computed so, for inputs of this size."""

    def force(size: float) -> None:
        monkeypatch.setenv("FASTMOBILENET_INNER", "1")
        monkeypatch.setattr(products, "choose_inner", lambda *_, **__: {"y": Inner(size, 1.0)})

    return force


def layer(
    ic: int, oc: int, *, activation: Activation | None = None, residual: bool = False, padded: bool = False
) -> Graph:
    """A 1x1 convolution named y of maps of about 1, perhaps with an addition; `padded`: for a depthwise convolution
    that reads it. The weights of its channels are of very unlike size."""
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, ic)
    rng = np.random.default_rng([ic, oc])
    size = 10.0 ** rng.integers(-3, 3, (oc, 1, 1, 1))
    weight = (rng.standard_normal((oc, 1, 1, ic)) / math.sqrt(ic) * size).astype(np.float32)
    weight[oc // 2] = 0
    bias = rng.standard_normal(oc).astype(np.float32)
    sources = (x, conv(b, x, ic, oc, seed=1)) if residual else (x,)
    y = b.add(
        "conv2d", *sources, name="y", params={"weight": weight, "bias": bias},
        activation=activation, stride=(1, 1), padding="same", dilation=(1, 1), groups=1,
    )  # fmt: skip
    return b.build(conv(b, y, oc, oc, 3, groups=oc) if padded else y, input_layout="NHWC")


def bound(graph: Graph, x: np.ndarray, size: float) -> np.ndarray:
    """Of the error of every value of y: what sums of so many terms are rounded by, for the magnitudes of all that is
    added, where the weights of a channel are scaled to `size`. What the layers around y add is less than 1e-5."""
    node = graph["y"]
    weight = node.params["weight"].reshape(node.params["weight"].shape[0], -1).astype(np.float64)
    a = abs(reference.execute(graph.replace(output=node.inputs[0]), x)[node.inputs[0]].astype(np.float64))
    rms = np.sqrt(np.mean(weight**2, axis=1))
    scale = np.where(rms > 0, 2.0 ** np.round(np.log2(np.where(rms > 0, rms, 1) / size)), 1)
    b = abs(weight) / scale[:, None]
    k = weight.shape[1]
    last = np.arange(k) // BLOCK * BLOCK
    paired = np.arange(k) - last < 2 * (np.minimum(k - last, BLOCK) // 3)
    even, odd = np.flatnonzero(paired)[::2], np.flatnonzero(paired)[1::2]
    magnitude = a @ b.T
    magnitude += 2 * np.sum(a[..., even] * a[..., odd], axis=-1, keepdims=True) + 2 * np.sum(b[:, even] * b[:, odd], 1)
    return np.asarray(4 * np.finfo(np.float32).eps * math.sqrt(k + 4) * magnitude * scale + 1e-5)


def check(graph: Graph, x: np.ndarray, size: float = 1.0) -> np.ndarray:
    expected = reference.execute(graph, x)[graph.output]
    engine = Engine(graph, ISA)
    found = engine.run(x, pixels=False)
    assert [k.rpartition("/")[2] for name, k in engine.program(*x.shape[1:3]).steps if name == "y"] == ["inner"]
    if graph.output == "y":
        assert (abs(found - expected) <= bound(graph, x, size)).all()
    else:
        assert abs(found - expected).max() <= 3 * bound(graph, x, size).max()
    for threads in (2, 5):
        assert np.array_equal(engine.run(x, threads=threads, pixels=False), found)
    for i in range(len(x)):
        assert np.array_equal(engine.run(x[i : i + 1], pixels=False)[0], found[i])
    assert np.array_equal(engine.graph()["y"].params["weight"], graph["y"].params["weight"])
    return found


@needs_kernels
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_sizes(padded: bool, residual: bool, force: Force) -> None:
    """Every tile; blocks that are not whole, of input and of output channels; one panel and many."""
    force(1.0)
    for (h, w), ic, oc in (
        ((1, 1), 16, 16),
        ((1, 7), 32, 8),
        ((4, 8), 48, 64),
        ((7, 5), 40, 168),
        ((9, 3), 131, 150),
        ((14, 14), 16, 48),
        ((3, 28), 24, 1200),
    ):
        check(layer(ic, oc, padded=padded, residual=residual), picture(h, w, n=2))


@needs_kernels
def test_every_width(force: Force) -> None:
    force(1.0)
    graph = layer(32, 48)
    for w in range(1, 22):
        check(graph, picture(1, w))


@needs_kernels
@pytest.mark.parametrize("activation", [RELU6, HARD_SWISH, Activation("clamp", lo=-0.25, hi=0.5)], ids=str)
def test_activations(activation: Activation, force: Force) -> None:
    force(1.0)
    check(layer(64, 144, activation=activation), picture(7, 6))
    check(layer(64, 144, activation=activation, padded=True), picture(7, 6))


@needs_kernels
def test_nan_and_infinity_stay(force: Force) -> None:
    force(1.0)
    graph = layer(64, 168, activation=RELU6)
    weight = graph["y"].params["weight"]
    engine = Engine(graph, ISA)
    for bad in (np.nan, np.inf):
        x = picture(5, 5)
        x[0, 2, 2, 1] = bad
        found = engine.run(x, pixels=False)
        assert np.isnan(found[0, 2, 2]).all()
        assert np.isfinite(np.delete(found.reshape(25, -1), 12, axis=0)).all()
    weight = weight.copy()
    weight[3, 0, 0, 2], weight[4, 0, 0, 2] = np.nan, np.inf
    nodes = tuple(
        dataclasses.replace(n, params=n.params | {"weight": weight}) if n.name == "y" else n for n in graph.nodes
    )
    found = Engine(graph.replace(nodes=nodes), ISA).run(picture(5, 5), pixels=False)
    assert np.isnan(found[..., 3:5]).all()
    assert np.isfinite(np.delete(found, [3, 4], axis=3)).all()


@needs_kernels
def test_the_size_matters(force: Force) -> None:
    """The error grows with the ratio of the sizes, and a factor of four either way is little."""
    graph, x = layer(64, 64), picture(14, 14)
    expected = reference.execute(graph, x)["y"]

    def error(size: float) -> float:
        force(size)
        relative = (Engine(graph, ISA).run(x, pixels=False) - expected) / (1e-2 + abs(expected))
        return float(np.sqrt(np.mean(relative**2)))

    best = error(2.0)
    assert error(0.5) < 4 * best and error(8.0) < 4 * best
    assert error(1e-3) > 20 * best and error(1e3) > 20 * best


def test_what_cannot_be_made() -> None:
    isa = ISA or _native.supported_isas()[0]

    def pack(oc: int, ic: int, k: int = 1, groups: int = 1) -> _native.PackedWeights:
        weight = np.zeros((oc, k, k, ic // groups), np.float32)
        return _native.pack(_native.WeightStore(), weight, None, groups, False, False, isa)

    _native.InnerWeights(pack(24, 40), 1.0)
    for packed, size in ((pack(32, 32, k=3), 1.0), (pack(32, 32, groups=2), 1.0), (pack(32, 32), 0.0),
                         (pack(32, 32), math.nan)):  # fmt: skip
        with pytest.raises(ValueError, match=r"not a 1x1|size must be"):
            _native.InnerWeights(packed, size)


def test_an_isa_without_kernels() -> None:
    weight = np.zeros((32, 1, 1, 32), np.float32)
    packed = _native.pack(_native.WeightStore(), weight, None, 1, False, False, "scalar")
    program = _native.Program("scalar", 2 * 64 * 32, _native.Arenas())
    tensors = [program.tensor(32, 4, 4, 0, 0, False, at) for at in (0, 1024)]
    weights = _native.InnerWeights(packed, 1.0)
    spec = _native.ConvSpec(packed, (1, 1), (1, 1), (0, 0), lower._act(RELU6), weights, None)
    with pytest.raises(ValueError, match="the ISA has no kernels of inner products"):
        program.conv("y", *tensors, -1, spec)


# --- where it is used ------------------------------------------------------------------------------------------


def chosen(graph: Graph, h: int = 224) -> dict[str, Inner]:
    engine = Engine(graph)
    shapes = lower.infer_shapes(engine.skeleton, 1, h, h)
    return choose_inner(engine.skeleton, shapes, engine._weights, engine._squares, engine._scores)


NETWORKS = {
    "mobilenet_v1": 9, "mobilenet_v2": 20, "mobilenet_v3_large": 18, "mobilenet_v3_small": 12, "mnasnet1_0": 18,
    "shufflenet_v2_x1_0": 25, "squeezenet1_1": 6, "mobilenetv4_conv_small": 20,
}  # fmt: skip


def test_detectors_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their layers behind hard swish are computed plainly, also in a part of the network."""
    monkeypatch.setenv("FASTMOBILENET_INNER", "1")
    whole = Engine(models.build("ssdlite320_mobilenet_v3_large"), ISA or None)
    part = Engine(whole.skeleton.replace(output="block_12/project"), base=whole)
    assert not any("inner" in kernel for _, kernel in part.program(320, 320).steps)
    assert not any("inner" in kernel for name, kernel in whole.program(320, 320).steps if name.startswith("block_"))


@pytest.mark.parametrize("name, least", NETWORKS.items())
def test_networks(name: str, least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = models.build(name)

    def count() -> int:
        steps = Engine(graph, ISA or None).program(224, 224).steps
        return sum(kernel.replace("/", "+").split("+").count("inner") for _, kernel in steps)

    monkeypatch.setenv("FASTMOBILENET_INNER", "1")
    assert count() >= least if ISA else count() == 0
    monkeypatch.setenv("FASTMOBILENET_INNER", "0")
    assert count() == 0
    monkeypatch.delenv("FASTMOBILENET_INNER")
    assert (count() > 0) == (bool(ISA) and _native.adds_beside_multiplies())
    monkeypatch.setenv("FASTMOBILENET_INNER", "yes")
    with pytest.raises(ValueError, match="FASTMOBILENET_INNER must be 0 or 1, not 'yes'"):
        Engine(graph)


@needs_kernels
@pytest.mark.parametrize("name", NETWORKS)
def test_error_of_networks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = models.build(name)
    x = picture(96, 96)
    expected = reference.execute(optimize(graph), np.ascontiguousarray(x))[optimize(graph).output]
    monkeypatch.setenv("FASTMOBILENET_INNER", "1")
    x = x if graph.input_layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    engine = Engine(graph, ISA)
    found = engine.run(x, pixels=False)
    assert abs(found - expected).max() <= 2e-5 * abs(expected).max()
    for threads in (2, 3):
        assert np.array_equal(engine.run(x, threads=threads, pixels=False), found)


@pytest.mark.parametrize("name, least", [("mobilenet_v2", 20), ("mobilenet_v3_small", 9), ("shufflenet_v2_x0_5", 20)])
def test_sizes_are_about_right(name: str, least: int) -> None:
    """Against what layers really read: the error depends on the ratio, see test_the_size_matters."""
    graph = optimize(models.build(name))
    values = reference.execute(graph, picture(96, 96), keep=True)
    sizes = chosen(graph)
    assert len(sizes) > least
    for layer, inner in sizes.items():
        real = float(np.sqrt(np.mean(np.square(values[graph[layer].inputs[0]]))))
        assert 1 / 8 < inner.size / real < 8, layer


def net(activation: Activation | None, weight: np.ndarray, size: tuple[int, int] = (224, 224)) -> Graph:
    """Three 1x1 convolutions, the last two with this weight (64, 64); then one of 3x3."""
    b = GraphBuilder()
    x = b.add("input")
    first = np.random.default_rng(1).standard_normal((64, 3)) / math.sqrt(3)
    for i in range(3):
        values = (weight if i else first).astype(np.float32)
        x = b.add("conv2d", x, name=f"conv{i}", params={"weight": values[:, None, None]}, stride=(1, 1), padding="same",
                  dilation=(1, 1), groups=1, activation=activation if i == 0 else None)  # fmt: skip
    return b.build(conv(b, x, 64, 64, 3), input_layout="NHWC", input_size=size)


@pytest.mark.parametrize("activation", [RELU6, RELU, HARD_SWISH, None], ids=str)
def test_sizes_are_known_behind_every_function(activation: Activation | None) -> None:
    weight = np.random.default_rng(2).standard_normal((64, 64)) / 8
    sizes = chosen(net(activation, weight), 28)
    assert set(sizes) == {"conv1", "conv2"}
    if activation != RELU6:
        for power in (-30, 20):  # powers of two
            others = chosen(net(activation, weight * 2.0**power), 28)
            assert others["conv2"].size == sizes["conv2"].size * 2.0**power and others["conv1"] == sizes["conv1"]


@needs_kernels
@pytest.mark.parametrize("ratio", [3.0, 30.0, 1000.0, 1e5])
@pytest.mark.parametrize("balanced", [False, True])
def test_channels_of_unlike_size(ratio: float, balanced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One channel is larger than the others, and its weights are smaller or not: layers that would get inexact are left
    alone, and the others are exact."""
    weight = np.random.default_rng(3).standard_normal((64, 64)) / 8
    scales = np.where(np.arange(64) == 5, ratio, 1)
    if balanced:
        weight /= scales
    graph, x = net(None, weight * scales[:, None]), picture(28, 28)
    assert ("conv2" in chosen(graph, 28)) == (not balanced or ratio < 100)
    monkeypatch.setenv("FASTMOBILENET_INNER", "0")
    plain = Engine(graph, ISA).run(x, pixels=False)
    monkeypatch.setenv("FASTMOBILENET_INNER", "1")
    assert abs(Engine(graph, ISA).run(x, pixels=False) - plain).max() <= 1e-5 * abs(plain).max()


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_sizes_that_are_no_numbers(bad: float) -> None:
    weight = np.random.default_rng(4).standard_normal((64, 64))
    weight[:, 3] = 0  # of the last layer: a channel that is not read
    weight[3] = bad
    assert "conv2" in chosen(net(None, np.where(np.isfinite(weight), weight, 0)), 28)
    assert ("conv2" in chosen(net(None, weight), 28)) == (bad == 0)
    assert set(chosen(net(RELU, np.zeros((64, 64))), 28)) == {"conv1"}


def test_networks_of_one_size() -> None:
    """Where small pictures do not fit, the network is measured with its own size; where neither does, not at all."""
    graph = net(RELU, np.random.default_rng(5).standard_normal((64, 64)) / 8)
    pool = Node("pool", "avg_pool2d", ("conv0",), {"kernel": (70, 70), "stride": (1, 1), "padding": (0, 0, 0, 0)})
    at = [n.name for n in graph.nodes].index("conv1")
    conv1 = dataclasses.replace(graph["conv1"], inputs=("pool",))
    graph = graph.replace(nodes=(*graph.nodes[:at], pool, conv1, *graph.nodes[at + 1 :]))
    assert set(chosen(graph.replace(input_size=(96, 96)), 96)) == {"conv1", "conv2"}
    small = graph.replace(input_size=(48, 48))
    assert mean_squares(small, ["conv0", "pool"], lambda *_: np.ones(128), small) == {}


def test_choice_by_shape() -> None:
    assert expected_saving(196, 512, 512) > 0.2
    assert expected_saving(196, 8, 512) == 0, "less than a block of input channels"
    assert expected_saving(4, 512, 512) == 0, "too few pixels"
    assert expected_saving(3136, 16, 16) < 0.05, "short sums"
    assert 0.1 < expected_saving(3136, 96, 24) < expected_saving(3136, 96, 96)
    assert expected_saving(784, 96, 8) < 0.05


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc/cpuinfo")
def test_which_cpus() -> None:
    text = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    cpu = {key.strip(): value.strip() for key, value in fields.items()}
    zen4 = cpu.get("vendor_id") == "AuthenticAMD" and cpu.get("cpu family") == "25" and "avx512f" in cpu["flags"]
    assert _native.adds_beside_multiplies() == (zen4 and platform.machine() == "x86_64")


@needs_kernels
def test_strips_that_threads_share_by_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps of 12 x 12 are several strips for one thread, and one map for two."""
    monkeypatch.setenv("FASTMOBILENET_INNER", "1")
    graph = models.build("mobilenet_v2", width=0.5, classes=10)
    engine = Engine(graph, ISA)
    x = np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), np.uint8)
    found = engine.run(x, pixels=True)
    assert any("+inner/8" in kernel for _, kernel in engine.program(96, 96).steps)
    for threads in (2, 3):
        assert np.array_equal(engine.run(x, threads=threads, pixels=True), found)
