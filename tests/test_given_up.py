"""Weights whose floats are given up because tiles of AMX or words of 24 bits hold the same: they come back bit for bit
where somebody wants them (csrc/runtime/floats.h)."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest

from fastmobilenet import _native
from fastmobilenet.lower import Engine

from .test_amx import ISA, Force, force, layer, needs_amx  # noqa: F401
from .test_lower import picture


def pack(weight: np.ndarray, store: _native.WeightStore, by_vectors: bool = False) -> _native.PackedWeights:
    return _native.pack(store, weight, None, 1, False, by_vectors, _native.supported_isas()[0], by_vectors, True)


def values(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * np.exp2(rng.integers(-40, 40, shape))
    x.reshape(-1)[::7] = 0.0
    x.reshape(-1)[1::7] = -0.0
    return x.astype(np.float32)


@pytest.mark.parametrize(
    "oc, kh, kw, ic",
    [(64, 1, 1, 256), (65, 1, 1, 300), (200, 1, 1, 136), (24, 3, 3, 80), (40, 5, 3, 33), (8, 1, 1, 2100)],
)
def test_tiles_give_weights_back(oc: int, kh: int, kw: int, ic: int) -> None:
    store = _native.WeightStore()
    weight = values((oc, kh, kw, ic))
    packed = pack(weight, store)
    floats = store.nbytes
    norms = packed.norms()
    tiles = _native.AmxWeights(packed)
    in_tiles = store.nbytes
    steps = kh * kw * math.ceil(math.ceil(ic / 16) / 2)  # of two blocks of channels
    assert in_tiles <= floats - weight.nbytes + 3 * 1024 * steps * math.ceil(oc / 16), "floats were given up"
    for _ in range(2):
        np.testing.assert_array_equal(packed.unpack()[0].view(np.int32), weight.view(np.int32))
        for was, now in zip(norms, packed.norms(), strict=True):
            np.testing.assert_array_equal(was, now)
        assert store.nbytes == in_tiles, "nobody has them any more"
    del tiles  # who is unpacked keeps what it needs
    gc.collect()
    np.testing.assert_array_equal(packed.unpack()[0].view(np.int32), weight.view(np.int32))


@pytest.mark.parametrize("value", [1e-31, 1e-44, 2e38, np.inf, np.nan])
def test_values_that_tiles_do_not_hold_are_kept(value: float) -> None:
    store = _native.WeightStore()
    weight = values((64, 1, 1, 300))
    weight[3, 0, 0, 5] = value
    packed = pack(weight, store)
    before = store.nbytes
    _native.AmxWeights(packed)
    assert store.nbytes > before + weight.nbytes
    np.testing.assert_array_equal(packed.unpack()[0].view(np.int32), weight.view(np.int32))


def test_other_pieces_are_made_of_tiles() -> None:
    store = _native.WeightStore()
    weight = values((64, 1, 1, 384))
    packed = pack(weight, store)
    _native.AmxWeights(packed)
    _native.AmxWeights(packed, [16, 8] * 16)
    np.testing.assert_array_equal(packed.unpack()[0].view(np.int32), weight.view(np.int32))
    _native.StrassenWeights(packed, 1, 1)


def test_words_give_floats_to_whoever_wants_them() -> None:
    store = _native.WeightStore()
    weight = np.random.default_rng(0).standard_normal((256, 1, 1, 512)).astype(np.float32)
    packed = pack(weight, store, by_vectors=True)
    assert packed.in_24_bits
    before = store.nbytes
    split = _native.StrassenWeights(packed, 1, 1)  # keeps some of them
    assert store.nbytes > before + weight.nbytes
    with_split = store.nbytes
    del split
    assert store.nbytes <= with_split - weight.nbytes
    np.testing.assert_array_equal(packed.unpack()[0].view(np.int32), weight.view(np.int32))


@needs_amx
def test_plans_of_other_sizes_have_the_bits_of_plain_sums(
    force: Force,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A map of one pixel is not computed by tiles: its plan wants floats, before and after another plan."""
    force()
    graph = layer(300, 200)
    engine, x = Engine(graph, ISA), [picture(n, n) for n in (1, 9, 1, 14)]
    got = [engine.run(a, pixels=False) for a in x]
    assert any("amx" in kernel for _, kernel in engine.program(9, 9).steps)
    assert not any("amx" in kernel for _, kernel in engine.program(1, 1).steps)
    np.testing.assert_array_equal(got[0], got[2])
    np.testing.assert_array_equal(
        engine.graph()["y"].params["weight"].view(np.int32), graph["y"].params["weight"].view(np.int32)
    )
    monkeypatch.setenv("FASTMOBILENET_AMX", "0")
    plain = Engine(graph, ISA)
    np.testing.assert_array_equal(got[0], plain.run(x[0], pixels=False))
    for i in (1, 3):
        y = plain.run(x[i], pixels=False)
        np.testing.assert_allclose(got[i], y, atol=1e-5 * float(np.abs(y).max()))


@needs_amx
def test_memory_of_a_network() -> None:
    """Less than twice the weights, whatever form they have: plain floats and their parts would be 2.5 times as much."""
    from fastmobilenet import models

    engine = Engine(models.build("mobilenet_v2"), ISA)
    plain = engine.weight_bytes
    engine.program(224, 224)
    assert engine.weight_bytes < 1.4 * plain
