"""Large dense layers with weights of 24 bits (csrc/kernels/gemv24.h): exact to the bit when read back, and as near to
the result as sums of floats."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmobilenet import _native, reference
from fastmobilenet.graph import RELU6, Activation, Graph, GraphBuilder
from fastmobilenet.lower import Engine

ISAS = _native.supported_isas()
EPS = float(np.finfo(np.float32).eps)


def normal(oc: int, ic: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, oc, ic]).standard_normal((oc, ic)).astype(np.float32)


def pack(weight: np.ndarray, isa: str = ISAS[0]) -> _native.PackedWeights:
    store = _native.WeightStore()
    return _native.pack(store, np.ascontiguousarray(weight[:, None, None, :]), None, 1, False, True, isa, True)


def assert_read_back(weight: np.ndarray, packed: _native.PackedWeights) -> None:
    again, bias = packed.unpack()
    np.testing.assert_array_equal(again[:, 0, 0, :].view(np.int32), weight.view(np.int32))
    assert not bias.any()


def dense(weight: np.ndarray, bias: np.ndarray, activation: Activation | None = None) -> Graph:
    """A layer that reads a picture of one pixel."""
    b = GraphBuilder()
    x = b.add("global_avg_pool", b.add("input"))
    params = {"weight": weight, "bias": bias}
    return b.build(b.add("dense", x, name="y", params=params, activation=activation), input_layout="NHWC")


# --- bits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("oc, ic", [(1000, 1280), (1001, 1023), (257, 258), (600, 129), (16, 4096), (17, 4099)])
def test_weights_are_read_back_bit_for_bit(oc: int, ic: int) -> None:
    weight = normal(oc, ic)
    packed = pack(weight)
    assert packed.in_24_bits
    assert_read_back(weight, packed)


def test_small_layers_stay_floats() -> None:
    assert not pack(normal(255, 256)).in_24_bits
    assert not pack(normal(4096, 127)).in_24_bits  # so few products round less than the weights would
    assert pack(normal(256, 256)).in_24_bits


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, 3e38])
def test_layers_that_24_bits_do_not_suit_stay_floats(value: float) -> None:
    weight = normal(300, 300)
    weight[7, 11] = value
    packed = pack(weight)
    assert not packed.in_24_bits
    assert_read_back(weight, packed)


def test_an_output_of_one_large_weight_and_small_ones_stays_floats() -> None:
    weight = normal(16, 8192)
    weight[7] *= 1e-4
    weight[7, 11] = 1  # no larger than others of its column, so no scale helps
    packed = pack(weight)
    assert not packed.in_24_bits
    assert_read_back(weight, packed)


def test_inputs_and_outputs_of_unlike_size_are_scaled() -> None:
    rng = np.random.default_rng(0)
    weight = normal(300, 400) * np.exp2(rng.integers(-12, 12, 400)) * np.exp2(rng.integers(-12, 12, (300, 1)))
    weight = weight.astype(np.float32)
    weight[5] = 0
    weight[:, 9] = 0
    packed = pack(weight)
    assert packed.in_24_bits
    assert_read_back(weight, packed)


def test_zeros_keep_their_sign_and_denormals_their_value() -> None:
    weight = normal(300, 300)
    weight[::2, ::3] = 0.0
    weight[1::2, ::3] = -0.0
    weight[:, 1] = np.float32(1e-3)
    weight[3, 1:40] = np.float32(1e-41)  # alone in some of its columns, which are not scaled up by that much
    packed = pack(weight)
    assert packed.in_24_bits
    assert_read_back(weight, packed)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_finite_weights_are_read_back(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    oc = data.draw(st.integers(1, 70))
    ic = -(-65536 // oc) + data.draw(st.integers(0, 9))
    limit = 1e4  # of float16
    weight = rng.standard_normal((oc, ic)) * np.exp(data.draw(st.floats(0, 3)) * rng.standard_normal((oc, ic)))
    weight = weight.clip(-limit, limit).astype(data.draw(st.sampled_from([np.float32, np.float16]))).astype(np.float32)
    if data.draw(st.booleans()):
        weight *= rng.random((oc, ic)) < 0.3  # pruned: zeros of both signs
    if data.draw(st.booleans()):
        weight = (rng.integers(-1, 2, (oc, ic)) * 2.0 ** rng.integers(-6, 7, (oc, ic))).astype(np.float32)
    assert_read_back(weight, pack(weight))


def test_a_graph_is_read_back_from_an_engine() -> None:
    weight, bias = normal(1000, 300), normal(1, 1000)[0]
    engine = Engine(dense(weight, bias).replace(input_channels=300))
    assert engine.program(1, 1).steps[-2][1].endswith("/24bit")
    params = engine.graph()["y"].params
    np.testing.assert_array_equal(params["weight"].reshape(1000, 300).view(np.int32), weight.view(np.int32))
    np.testing.assert_array_equal(params["bias"], bias)


# --- sums ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("oc, ic", [(1000, 1280), (1001, 577), (81, 1023), (600, 129), (16, 4097), (100, 656)])
def test_sums_are_as_near_as_those_of_floats(isa: str, oc: int, ic: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = normal(oc, ic), normal(1, oc, 1)[0]
    x = normal(8, ic, 2).reshape(8, 1, 1, ic)
    graph = dense(weight, bias).replace(input_channels=ic)
    want = x.reshape(8, ic).astype(np.float64) @ weight.T.astype(np.float64) + bias
    errors = []
    for switch in ("0", "1"):
        monkeypatch.setenv("FASTMOBILENET_24BIT", switch)
        engine = Engine(graph, isa)
        assert engine.program(1, 1).steps[-2][1].endswith("/24bit") == (switch == "1")
        errors.append(engine.run(x, pixels=False).reshape(8, oc) - want)
    floats, words = (float(np.sqrt(np.mean(np.square(e)))) for e in errors)
    assert words < 1.5 * floats
    of_magnitudes = np.abs(x.reshape(8, ic)) @ np.abs(weight.T) + np.abs(bias)
    assert np.all(np.abs(errors[1]) <= 16 * EPS * of_magnitudes)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_threads_and_batches_give_the_same_bits(isa: str, threads: int) -> None:
    weight, bias = normal(1000, 300), normal(1, 1000)[0]
    engine = Engine(dense(weight, bias).replace(input_channels=300), isa)
    x = normal(3, 300).reshape(3, 1, 1, 300)
    one_by_one = np.concatenate([engine.run(x[i : i + 1], pixels=False) for i in range(3)])
    np.testing.assert_array_equal(engine.run(x, threads=threads, pixels=False), one_by_one)


@pytest.mark.parametrize("isa", ISAS)
def test_equal_outputs_have_equal_values(isa: str) -> None:
    weight = np.repeat(normal(10, 700), 100, axis=0)
    engine = Engine(dense(weight, np.zeros(1000, np.float32)).replace(input_channels=700), isa)
    y = engine.run(normal(1, 700).reshape(1, 1, 1, 700), pixels=False).reshape(10, 100)
    np.testing.assert_array_equal(y, np.repeat(y[:, :1], 100, axis=1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", ["clamp", "hard_sigmoid", "hard_swish", "sigmoid", "swish"])
def test_functions_behind_it(isa: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias = normal(300, 300), normal(1, 300)[0]
    activation = Activation(kind, alpha=1 / 6, beta=0.5) if kind != "clamp" else RELU6
    graph = dense(weight, bias, activation).replace(input_channels=300)
    x = normal(1, 300).reshape(1, 1, 1, 300)
    monkeypatch.setenv("FASTMOBILENET_24BIT", "0")
    floats = Engine(graph, isa).run(x, pixels=False)
    monkeypatch.setenv("FASTMOBILENET_24BIT", "1")
    np.testing.assert_allclose(Engine(graph, isa).run(x, pixels=False), floats, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("isa", ISAS)
def test_nan_and_infinity_come_through(isa: str) -> None:
    engine = Engine(dense(np.abs(normal(300, 300)) + 0.1, np.zeros(300, np.float32)).replace(input_channels=300), isa)
    for value in (np.nan, np.inf):
        x = np.ones((1, 1, 1, 300), np.float32)
        x[..., 7] = value
        np.testing.assert_array_equal(engine.run(x, pixels=False), np.full((1, 1, 1, 300), value, np.float32))


# --- where it is used ---------------------------------------------------------------------------------


@pytest.mark.parametrize("isa", ISAS)
def test_a_pixel_with_padding_around_it(isa: str) -> None:
    """The 3x3 convolution behind the layer wants zeros around its pixel; a matrix-vector product leaves none."""
    b = GraphBuilder()
    x = b.add("global_avg_pool", b.add("input"))
    pointwise = {"stride": (1, 1), "padding": "same", "dilation": (1, 1), "groups": 1}
    x = b.add("conv2d", x, params={"weight": normal(300, 300)[:, None, None, :]}, **pointwise)
    weight = np.random.default_rng(3).standard_normal((32, 3, 3, 300)).astype(np.float32)
    graph = b.build(b.add("conv2d", x, params={"weight": weight}, **pointwise), input_layout="NHWC")
    graph = graph.replace(input_channels=300)
    picture = normal(25, 300).reshape(1, 5, 5, 300)
    want = reference.execute(graph, picture)[graph.output]
    got = Engine(graph, isa).run(picture, pixels=False)
    np.testing.assert_allclose(got, want, atol=1e-5 * float(np.abs(want).max()))


def test_norms_and_the_sum_of_squares_are_those_of_the_weights() -> None:
    weight = normal(300, 257)
    out, into, _ = pack(weight).norms()
    np.testing.assert_allclose(out, np.linalg.norm(weight.astype(np.float64), axis=1), rtol=1e-12)
    np.testing.assert_allclose(into, np.linalg.norm(weight.astype(np.float64), axis=0), rtol=1e-12)


def test_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTMOBILENET_24BIT", "2")
    with pytest.raises(ValueError, match="FASTMOBILENET_24BIT must be 0 or 1"):
        Engine(dense(normal(300, 300), np.zeros(300, np.float32)).replace(input_channels=300))
