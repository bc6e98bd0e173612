"""Whole graphs on the native runtime against reference.py, for every ISA of this machine."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest

from fastmobilenet import Model, _native, reference
from fastmobilenet.errors import ModelError
from fastmobilenet.graph import RELU, RELU6, Activation, Graph, GraphBuilder
from fastmobilenet.lower import MAX_PLANS, Engine
from fastmobilenet.memory import Interval, plan_memory
from fastmobilenet.preprocess import Preprocess

ISAS = _native.supported_isas()


def weights(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return (rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))).astype(np.float32)


def conv(
    b: GraphBuilder, x: str, ic: int, oc: int, k: Any = 1, s: Any = 1, *, groups: int = 1, padding: Any = "same",
    dilation: int = 1, activation: Activation | None = None, seed: int = 0,
) -> str:  # fmt: skip
    rng = np.random.default_rng([seed, ic, oc])
    kh, kw = k if isinstance(k, tuple) else (k, k)
    stride = s if isinstance(s, tuple) else (s, s)
    params = {"weight": weights(rng, oc, kh, kw, ic // groups), "bias": weights(rng, oc)}
    attrs = {"stride": stride, "padding": padding, "dilation": (dilation, dilation), "groups": groups}
    return b.add("conv2d", x, params=params, activation=activation, **attrs)


def assert_equal_to_reference(graph: Graph, x: np.ndarray, isa: str, threads: int = 1) -> None:
    """x: NHWC. The bound grows with the values, not with single results that cancel."""
    expected = reference.execute(graph, x)[graph.output]
    given = x.transpose(0, 3, 1, 2) if graph.input_layout == "NCHW" else x
    engine = Engine(graph, isa)
    found = engine.run(np.ascontiguousarray(given, np.float32), threads=threads, pixels=False)
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    # Winograd's transforms multiply by up to 5 and 8, and take differences of that: test_winograd.py has their bound.
    transformed = any(kernel.startswith("winograd") for _, kernel in engine.program(*x.shape[1:3]).steps)
    assert np.abs(found - expected).max() <= (1e-5 if transformed else 3e-6) * max(np.abs(expected).max(), 1.0)


def picture(h: int, w: int, c: int = 3, n: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, h, w, c)).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("padding", ["same", (1, 1, 1, 1), (0, 1, 0, 1), (0, 0, 0, 0), (2, 0, 3, 1)])
@pytest.mark.parametrize("k, s", [(3, 2), (3, 1), (1, 1), (7, 2), ((1, 3), (2, 1)), (5, 3)])
def test_first_convolution(isa: str, layout: str, padding: Any, k: Any, s: Any) -> None:
    for (h, w), oc in (((9, 12), 20), ((17, 31), 8)):
        b = GraphBuilder()
        y = conv(b, b.add("input"), 3, oc, k, s, padding=padding, activation=RELU6)
        assert_equal_to_reference(b.build(y, input_layout=layout), picture(h, w), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k", [1, 3, 5, (3, 1), 7])
@pytest.mark.parametrize("s, dilation", [(1, 1), (2, 1), (3, 1), ((1, 2), 1), (1, 2)])
def test_convolution_inside(isa: str, k: Any, s: Any, dilation: int) -> None:
    for ic, oc, (h, w) in ((24, 33, (8, 9)), (5, 16, (13, 7)), (32, 7, (1, 1))):
        b = GraphBuilder()
        x = conv(b, b.add("input"), 3, ic, activation=RELU)
        y = conv(b, x, ic, oc, k, s, dilation=dilation)
        assert_equal_to_reference(b.build(y, input_layout="NHWC"), picture(h, w), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("k, padding", [(1, (2, 1, 0, 0)), (1, (1, 3, 5, 1)), ((2, 3), (4, 3, 0, 1))])
def test_windows_outside_of_the_map(isa: str, k: Any, padding: Any) -> None:
    """More padding than the window has rows: the outputs there are the bias alone."""
    for ic, oc, (h, w) in ((48, 102, (7, 73)), (16, 32, (3, 28)), (24, 40, (5, 9))):
        b = GraphBuilder()
        x = conv(b, b.add("input"), 3, ic, padding=(3, 2, 0, 0))
        graph = b.build(conv(b, x, ic, oc, k, padding=padding), input_layout="NHWC")
        assert_equal_to_reference(graph, picture(h, w), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("padding", ["same", (1, 1, 1, 1), (0, 0, 0, 0), (2, 1, 0, 2)])
@pytest.mark.parametrize(
    "k, s, dilation", [(3, 1, 1), (3, 2, 1), (5, 1, 1), (5, 2, 1), (3, 1, 2), (7, 1, 1), ((3, 5), (2, 1), 1)]
)
def test_depthwise_every_width(isa: str, padding: Any, k: Any, s: Any, dilation: int) -> None:
    for w in (*range(1, 10), 15):
        h = 3 + w % 5
        b = GraphBuilder()
        x = conv(b, b.add("input"), 3, 24)
        y = conv(b, x, 24, 24, k, s, groups=24, padding=padding, dilation=dilation, activation=RELU6)
        graph = b.build(y, input_layout="NHWC")
        try:
            reference.infer_shapes(graph, 1, h, w)
        except ModelError:
            continue  # the window does not fit
        assert_equal_to_reference(graph, picture(h, w), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_picture_read_by_other_ops_than_convolutions(isa: str) -> None:
    b = GraphBuilder()
    x = b.add("input")
    y = conv(b, x, 3, 3, 3, groups=3, activation=RELU)  # depthwise on the picture itself
    graph = b.build(b.add("add", x, y), input_layout="NCHW")
    assert_equal_to_reference(graph, picture(6, 7), isa)
    b = GraphBuilder()
    pooled = b.add("avg_pool2d", b.add("input"), kernel=(3, 2), stride=(2, 2), padding=(1, 1, 0, 1))
    assert_equal_to_reference(b.build(pooled, input_layout="NHWC"), picture(7, 6), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", [1, 2, 4, 16, 19])
def test_input_of_other_channel_counts(isa: str, channels: int) -> None:
    for layout in ("NCHW", "NHWC"):
        b = GraphBuilder()
        y = conv(b, b.add("input"), channels, 10, 3, 2)
        graph = b.build(y, input_layout=layout, input_channels=channels)
        assert_equal_to_reference(graph, picture(8, 9, channels), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_tensor_with_readers_of_different_padding(isa: str) -> None:
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 20, activation=RELU6)
    y = conv(b, x, 20, 20, 5, groups=20, activation=RELU6)
    z = conv(b, x, 20, 20, 3, groups=20)
    u = conv(b, x, 20, 20)
    both = b.add("add", b.add("add", y, z), b.add("add", u, x), activation=RELU6)
    assert_equal_to_reference(b.build(both, input_layout="NHWC"), picture(9, 10), isa, threads=2)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("classes", [1, 2, 15, 16, 17, 1001])
def test_classifier(isa: str, classes: int) -> None:
    for ic in (1, 7, 40):
        rng = np.random.default_rng(classes)
        b = GraphBuilder()
        x = b.add("global_avg_pool", conv(b, b.add("input"), 3, ic))
        y = b.add("dense", x, params={"weight": weights(rng, classes, ic), "bias": weights(rng, classes)})
        assert_equal_to_reference(b.build(b.add("softmax", y), input_layout="NHWC"), picture(5, 10), isa)


def test_pool_uses_the_true_count() -> None:
    for h, w in ((7, 7), (5, 5), (1, 1), (10, 7)):
        b = GraphBuilder()
        graph = b.build(b.add("global_avg_pool", b.add("input")), input_layout="NHWC")
        assert_equal_to_reference(graph, picture(h, w), ISAS[0])


def residual_net(layout: str = "NHWC") -> Graph:
    """Two inverted residuals with odd channel counts, strides 1 and 2, and a classifier."""
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 24, 3, 2, activation=RELU6)
    for stride, oc in ((1, 24), (2, 40)):
        y = conv(b, x, 24, 72, activation=RELU6, seed=stride)
        y = conv(b, y, 72, 72, 3, stride, groups=72, activation=RELU6, seed=stride)
        y = conv(b, y, 72, oc, seed=stride)
        x = b.add("add", x, y) if stride == 1 else y
    x = b.add("global_avg_pool", x)
    rng = np.random.default_rng(9)
    x = b.add("dense", x, params={"weight": weights(rng, 10, 40), "bias": weights(rng, 10)})
    return b.build(x, input_layout=layout)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 1), (16, 16), (33, 29), (64, 50)])
def test_residual_net_at_any_size(isa: str, size: tuple[int, int]) -> None:
    assert_equal_to_reference(residual_net(), picture(*size, n=2), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_same_bits_for_every_thread_count_and_batch(isa: str) -> None:
    engine = Engine(residual_net(), isa)
    x = picture(61, 47, n=16)
    expected = np.concatenate([engine.run(x[i : i + 1], threads=1, pixels=False) for i in range(16)])
    for threads in (1, 2, 3, 4):
        for n in (1, 5, 16):
            assert np.array_equal(engine.run(x[:n], threads=threads, pixels=False), expected[:n])


def test_no_pictures() -> None:
    engine = Engine(residual_net())
    assert engine.run(picture(16, 16)[:0], threads=2, pixels=False).shape == (0, 1, 1, 10)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_pixels_are_normalised_before_the_padding(isa: str, channels: str) -> None:
    p = Preprocess(channels=channels, mean=(120.0, 110.0, 100.0), std=(60.0, 50.0, 40.0))
    b = GraphBuilder()
    graph = b.build(conv(b, b.add("input"), 3, 17, 3, 2), preprocess=p, input_layout="NHWC")
    pixels = np.random.default_rng(3).integers(0, 256, (2, 21, 30, 3), np.uint8)
    ordered = pixels[..., ::-1] if channels == "bgr" else pixels
    floats = (ordered.astype(np.float32) - np.float32(p.mean)) / np.float32(p.std)
    engine = Engine(graph, isa)
    found = engine.run(pixels, threads=1, pixels=True)
    assert np.array_equal(found, engine.run(floats, threads=1, pixels=False))


@pytest.mark.parametrize("isa", ISAS)
def test_tensorflow_scaling_is_exact(isa: str) -> None:
    b = GraphBuilder()
    graph = b.build(b.add("activation", b.add("input"), activation=Activation("clamp")), input_layout="NHWC")
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    found = Engine(graph, isa).run(pixels, threads=1, pixels=True).ravel()
    assert found[-1] == 1.0
    assert found[0] == -1.0
    exact = np.arange(256).repeat(3) / 127.5 - 1
    assert np.abs(found - exact).max() <= np.finfo(np.float32).eps / 2


@pytest.mark.parametrize("isa", ISAS)
def test_nan_and_infinity_come_out(isa: str) -> None:
    engine = Engine(residual_net(), isa)
    x = picture(32, 32)
    x[0, 16, 16, 1] = np.nan
    assert np.isnan(engine.run(x, threads=1, pixels=False)).all()
    b = GraphBuilder()
    y = conv(b, b.add("input"), 3, 8, 1, activation=RELU6)
    x = np.zeros((1, 2, 2, 3), np.float32)
    x[0, 0, 0] = np.nan
    found = Engine(b.build(y, input_layout="NHWC"), isa).run(x, threads=1, pixels=False)
    assert np.isnan(found[0, 0, 0]).all()
    assert np.isfinite(found[0, 1]).all()
    b = GraphBuilder()
    linear = conv(b, b.add("input"), 3, 8, 1)
    x[:] = np.inf
    assert not np.isfinite(Engine(b.build(linear, input_layout="NHWC"), isa).run(x, threads=1, pixels=False)).any()


def test_caller_keeps_its_floating_point_state() -> None:
    tiny = np.full(64, 1e-39, np.float32)
    assert (tiny * np.float32(0.5)).any()
    Engine(residual_net()).run(picture(16, 16), threads=2, pixels=False)
    assert (tiny * np.float32(0.5)).any(), "denormals are flushed after run()"


@pytest.mark.timing
def test_denormals_cost_no_time() -> None:
    engine = Engine(residual_net())
    usual, tiny = picture(96, 96), np.full((1, 96, 96, 3), 1e-39, np.float32)
    best = {"usual": math.inf, "tiny": math.inf}
    for _ in range(60):
        for name, x in (("usual", usual), ("tiny", tiny)):
            start = time.perf_counter()
            engine.run(x, threads=1, pixels=False)
            best[name] = min(best[name], time.perf_counter() - start)
    assert best["tiny"] <= 1.2 * best["usual"]


def test_plans_are_few_and_weights_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    for product in ("INNER", "STRASSEN", "AMX"):  # has the weights a second time, for all plans
        monkeypatch.setenv(f"FASTMOBILENET_{product}", "0")
    engine = Engine(residual_net())
    before = engine.weight_bytes
    for size in range(8, 8 + 3 * MAX_PLANS):
        engine.run(picture(size, size), threads=1, pixels=False)
    assert len(engine._plans) == MAX_PLANS
    assert engine.weight_bytes == before
    assert engine.program(8, 8) is engine.program(8, 8)


def test_what_does_not_fit_is_named() -> None:
    b = GraphBuilder()
    y = conv(b, b.add("input"), 3, 4, 5, padding=(0, 0, 0, 0))
    engine = Engine(b.build(y, input_layout="NHWC"))
    with pytest.raises(ModelError, match="larger picture"):
        engine.run(picture(4, 9), pixels=False)
    with pytest.raises(TypeError, match="float64"):
        engine.run(picture(9, 9).astype(np.float64), pixels=False)
    with pytest.raises(ValueError, match="3 channels"):
        engine.run(picture(9, 9, 4), pixels=False)
    with pytest.raises(ValueError, match="scalar"):
        Engine(residual_net(), "sse9")


def test_too_large_a_picture_raises_memory_error() -> None:
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 512)
    for _ in range(4):
        x = conv(b, x, 512, 512)
    engine = Engine(b.build(x, input_layout="NHWC"))
    huge = np.lib.stride_tricks.as_strided(np.zeros(3, np.float32), (0, 2**20, 2**20, 3), (0, 0, 0, 4))
    with pytest.raises((MemoryError, ModelError, ValueError)):
        engine.program(*huge.shape[1:3])


def test_plan_memory_never_overlaps_live_tensors() -> None:
    rng = np.random.default_rng(5)
    for _ in range(50):
        tensors = []
        for i in range(30):
            first = int(rng.integers(0, 40))
            tensors.append(Interval(f"t{i}", int(rng.integers(1, 5000)), first, first + int(rng.integers(0, 8))))
        offsets, total = plan_memory(tensors)
        for i, a in enumerate(tensors):
            assert offsets[a.name] % 16 == 0
            assert offsets[a.name] + a.size <= total
            for other in tensors[:i]:
                live = a.first <= other.last and other.first <= a.last
                apart = (
                    offsets[a.name] + a.size <= offsets[other.name]
                    or offsets[other.name] + other.size <= offsets[a.name]
                )
                assert not live or apart
        assert total < sum(t.size + 1040 for t in tensors)


def test_names_that_no_encoding_holds() -> None:
    """As JSON may have them: halves of surrogate pairs are written out, and names stay different."""
    b = GraphBuilder()
    x, weight = b.add("input", name="\ud800"), np.eye(3, dtype=np.float32).reshape(3, 1, 1, 3)
    for name in ("a\ud83d", "a\\ud83d", "caf\u00e9"):
        x = b.add("conv2d", x, name=name, params={"weight": weight}, stride=(1, 1), padding="same")
    model = Model.from_graph(b.build(x, input_size=(4, 4), input_layout="NHWC"))
    picture = np.random.default_rng(1).normal(size=(4, 4, 3)).astype(np.float32)
    found = model.run(picture, outputs=["a\\ud83d_", "a\\ud83d", "caf\u00e9"])
    assert all(np.array_equal(value, picture) for value in found.values())
    assert np.array_equal(model.run(picture), picture)
    assert "a\\ud83d" in str(model.profile(picture, runs=1))
