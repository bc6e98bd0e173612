"""1x1 convolutions by Strassen's product against reference.py, for every ISA; and where it is used."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from fastmobilenet import _native, models, products, reference, strassen
from fastmobilenet.caches import Caches
from fastmobilenet.graph import HARD_SWISH, RELU6, Activation, Graph, GraphBuilder, infer_shapes
from fastmobilenet.lower import Engine
from fastmobilenet.passes import optimize
from fastmobilenet.strassen import Split, choose_split, choose_splits

from .test_lower import ISAS, conv, picture

Force = Callable[..., None]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On some CPUs another product takes its place, and on some it is not the default."""
    monkeypatch.setenv("FASTMOBILENET_STRASSEN", "1")
    monkeypatch.setenv("FASTMOBILENET_INNER", "0")
    monkeypatch.setenv("FASTMOBILENET_AMX", "0")


@pytest.fixture
def force(monkeypatch: pytest.MonkeyPatch) -> Force:
    """force(levels, rows): the convolution `y` is split so, with as many groups of panels as there are."""

    def force(levels: int, rows: int, name: str = "y") -> None:
        def split(
            graph: Graph, shapes: object, packed: dict[str, _native.PackedWeights], *_: object, **__: object
        ) -> object:
            return {name: Split(levels, packed[name].whole_panels >> levels, rows, 1.0)}

        monkeypatch.setattr(products, "choose_splits", split)

    return force


def layer(
    ic: int, oc: int, *, activation: Activation | None = None, residual: bool = False, padded: bool = False
) -> Graph:
    """A 1x1 convolution named y, perhaps with an addition; `padded`: for a depthwise convolution that reads it."""
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, ic)
    rng = np.random.default_rng([ic, oc])
    weight = (rng.standard_normal((oc, 1, 1, ic)) / math.sqrt(ic)).astype(np.float32)
    bias = rng.standard_normal(oc).astype(np.float32)
    sources = (x, conv(b, x, ic, oc, seed=1)) if residual else (x,)
    y = b.add(
        "conv2d", *sources, name="y", params={"weight": weight, "bias": bias},
        activation=activation, stride=(1, 1), padding="same", dilation=(1, 1), groups=1,
    )  # fmt: skip
    return b.build(conv(b, y, oc, oc, 5, groups=oc) if padded else y, input_layout="NHWC")


def bound(graph: Graph, x: np.ndarray, levels: int) -> float:
    """Of the error of what y makes of maps of about 1. Higham, Accuracy and Stability of Numerical Algorithms (2002),
    theorem 23.3, for Winograd's form: 18^levels (n^2 + 6 n) u max|A| max|B| with n = k / 2^levels terms in a product;
    here with the square root of the factor, as roundings of either sign add up, and twice that for the layer behind."""
    weight = graph["y"].params["weight"]
    n = weight.shape[3] >> levels
    factor = math.sqrt(18**levels * (n * n + 6 * n))
    source = graph["y"].inputs[0]
    inner = reference.execute(graph.replace(output=source), x)[source]
    return float(2 * factor * 2**-24 * np.abs(inner).max() * np.abs(weight).max() + 3e-6)


def check(graph: Graph, x: np.ndarray, isa: str, levels: int) -> None:
    expected = reference.execute(graph, x)[graph.output]
    engine = Engine(graph, isa)
    found = engine.run(x, pixels=False)
    kernels = [kernel for name, kernel in engine.program(*x.shape[1:3]).steps if name == "y"]
    assert len(kernels) == 1
    assert kernels[0].endswith(f"/strassen{levels}")
    assert np.abs(found - expected).max() <= bound(graph, x, levels)
    for threads in (2, 5):
        assert np.array_equal(engine.run(x, threads=threads, pixels=False), found)
    for i in range(len(x)):
        assert np.array_equal(engine.run(x[i : i + 1], pixels=False)[0], found[i])
    packed = engine.graph()["y"].params["weight"]
    assert np.array_equal(packed, graph["y"].params["weight"])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("residual", [False, True])
def test_sizes(isa: str, levels: int, padded: bool, residual: bool, force: Force) -> None:
    """Odd and even pixels; chunks of some rows and a shorter last one; panels without a partner, half blocks."""
    for (h, w), rows, ic, oc in (
        ((4, 8), 4, 64, 128),
        ((7, 5), 3, 64, 168),
        ((9, 3), 2, 128, 150),
        ((1, 1), 1, 64, 128),
    ):
        force(levels, rows)
        check(layer(ic, oc, padded=padded, residual=residual), picture(h, w, n=2), isa, levels)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", [RELU6, HARD_SWISH, Activation("clamp", lo=-0.25, hi=0.5)], ids=str)
def test_activations(isa: str, activation: Activation, force: Force) -> None:
    for levels, padded in ((1, False), (2, True)):
        force(levels, 4)
        check(layer(64, 144, activation=activation, padded=padded), 3 * picture(7, 6), isa, levels)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("levels", [1, 2])
def test_nan_stays(isa: str, levels: int, force: Force) -> None:
    force(levels, 5)
    graph = layer(64, 168, activation=RELU6)
    x = picture(5, 5)
    x[0, 2, 2, 1] = np.nan
    found = Engine(graph, isa).run(x, pixels=False)
    assert np.isnan(found[0, 2, 2]).all()
    assert np.isfinite(Engine(graph, isa).run(picture(5, 5), pixels=False)).all()


@pytest.mark.parametrize("isa", ISAS)
def test_factors_that_cannot_be_made(isa: str) -> None:
    def pack(oc: int, ic: int, k: int = 1, groups: int = 1) -> _native.PackedWeights:
        weight = np.zeros((oc, k, k, ic // groups), np.float32)
        return _native.pack(_native.WeightStore(), weight, None, groups, False, False, isa)

    _native.StrassenWeights(pack(128, 64), 2, 1)
    for packed, levels, groups in (
        (pack(128, 64), 0, 1),
        (pack(128, 64), 3, 1),
        (pack(128, 64), 1, 0),
        (pack(128, 64), 1, 5),
        (pack(16, 64), 1, 1),
        (pack(128, 48), 1, 1),
        (pack(128, 32), 2, 1),
        (pack(128, 64, k=3), 1, 1),
        (pack(128, 64, groups=2), 1, 1),
    ):
        with pytest.raises(ValueError, match=r"levels must be|not a 1x1|cannot be halved"):
            _native.StrassenWeights(packed, levels, groups)


# --- where it is used ------------------------------------------------------------------------------------------

CACHES = Caches(32 << 10, 1 << 20)


def splits(graph: Graph, isa: str = "") -> dict[str, Split]:
    engine = Engine(graph, isa)
    shapes = infer_shapes(engine.skeleton, 1, *graph.input_size)
    return choose_splits(engine.skeleton, shapes, engine._weights, CACHES, engine._scores)


def test_choice_by_shape() -> None:
    def levels(ic: int, oc: int, size: int, width: int = 32) -> int:
        split = choose_split((1, size, size, ic), oc, oc // width, width, CACHES)
        return 0 if split is None else split.levels

    assert levels(512, 512, 14) == 2
    assert levels(512, 512, 14, width=16) == 2
    assert levels(256, 256, 28) == 1
    assert levels(1024, 1024, 7) == 1, "two levels have too few pixels for so many weights"
    assert levels(32, 64, 112) == 0
    assert levels(512, 512, 1) == 0
    assert levels(512, 32, 14) == 0, "one panel has no partner"
    assert levels(120, 480, 14) == 0, "no whole blocks in a half"
    assert levels(576, 96, 7) == 0, "one piece of work: a second thread would have nothing to do"


def test_chunks_fit_the_cache() -> None:
    for size in (7, 14, 28, 56, 112):
        for c in (64, 256, 1024):
            rows = strassen.chunk_rows(size, size, c, 1, CACHES)
            assert 1 <= rows <= size
            assert rows == 1 or rows * size * c * 4 * 7 / 4 <= CACHES.l2


def test_mobilenet_v1_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = models.build("mobilenet_v1")

    def kernels() -> list[str]:
        return [kernel for _, kernel in Engine(graph, "avx512" if "avx512" in ISAS else None).program(224, 224).steps]

    assert sum("/strassen" in kernel for kernel in kernels()) >= 8
    monkeypatch.setenv("FASTMOBILENET_STRASSEN", "0")
    assert not any("/strassen" in kernel for kernel in kernels())
    monkeypatch.delenv("FASTMOBILENET_STRASSEN")
    assert any("/strassen" in kernel for kernel in kernels()) == _native.adds_apart()
    monkeypatch.setenv("FASTMOBILENET_STRASSEN", "yes")
    with pytest.raises(ValueError, match="FASTMOBILENET_STRASSEN must be 0 or 1, not 'yes'"):
        Engine(graph)


def three_layers(scale: np.ndarray, *, between: bool) -> Graph:
    """Three convolutions of 128 channels. Those between the first and the second, or the second and the third, are
    multiplied by `scale`, and divided by it again by the layer behind, which leaves the results as they are."""
    b = GraphBuilder()
    rng = np.random.default_rng(0)
    x = conv(b, b.add("input"), 3, 128)
    for i in range(3):
        weight = (rng.standard_normal((128, 1, 1, 128)) / 11).astype(np.float32)
        if i == (0 if between else 1):
            weight *= scale[:, None, None, None]
        if i == (1 if between else 2):
            weight /= scale
        x = b.add("conv2d", x, name=f"conv{i}", params={"weight": weight.astype(np.float32)}, stride=(1, 1),
                  padding="same", dilation=(1, 1), groups=1)  # fmt: skip
    return b.build(x, input_layout="NHWC", input_size=(28, 28))


@pytest.mark.parametrize("between", [False, True])
def test_channels_of_unlike_size_are_not_mixed(between: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strassen, "LEAST_SAVING", 0.0)
    even = three_layers(np.full(128, 1000.0), between=between)
    assert "conv1" in splits(even)
    scale = np.where(np.arange(128) < 64, 1000.0, 1.0)  # what has this size in one half has that in the other
    graph = three_layers(scale, between=between)
    assert "conv1" not in splits(graph)
    # And it would be worse: the guard is not for nothing.
    x = picture(28, 28)
    expected = reference.execute(graph, x)[graph.output]

    def error(limit: float) -> float:
        monkeypatch.setattr(strassen, "MOST_MIXING", limit)
        return float(np.abs(Engine(graph).run(x, pixels=False) - expected).max() / np.abs(expected).max())

    assert error(math.inf) > 10 * error(8.0)


def test_dead_channels_do_not_matter() -> None:
    """Channels that are nearly nothing in this layer and in the next, as training leaves them."""
    b = GraphBuilder()
    rng = np.random.default_rng(0)
    alive = np.where(rng.uniform(size=512) < 0.3, 1e-6, 1.0)
    x = b.add("input")
    for i in range(3):
        weight = (rng.standard_normal((512, 1, 1, 512)) / 16) * alive[:, None, None, None] * alive
        params = {"weight": weight.astype(np.float32)}
        x = b.add("conv2d", x, name=f"conv{i}", params=params, stride=(1, 1), padding="same", dilation=(1, 1), groups=1)
    graph = b.build(x, input_channels=512, input_layout="NHWC", input_size=(14, 14))
    assert set(splits(graph)) == {"conv0", "conv1"}  # conv2 makes the output


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2"])
def test_mixing_of_networks(name: str) -> None:
    """Far from the limit, and at least 1; weights of NaN are left alone."""
    graph = models.build(name)
    engine = Engine(graph)
    scales = strassen._Scales(engine.skeleton, engine._weights)
    for node, split in splits(graph).items():
        width = 16 * engine._weights[node].panel_blocks
        assert 1 <= scales.mixing(engine.skeleton[node], split, width) < strassen.MOST_MIXING / 3
    bad = optimize(graph)
    nodes = []
    for node in bad.nodes:
        params = dict(node.params)
        if "weight" in params:
            params["weight"] = np.full_like(params["weight"], np.nan)
        nodes.append(dataclasses.replace(node, params=params))
    assert splits(bad.replace(nodes=tuple(nodes))) == {}
