"""Tables of 256 for functions of one byte: LiteRT's own, byte for byte, and what they must be in any case."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastmobilenet.graph import HARD_SWISH, RELU, RELU6, SIGMOID, Activation
from fastmobilenet.importers import tflite_tables
from fastmobilenet.quantization import Quant

from .tflite_bytes import litert, signed, unsigned
from .tflite_files import TfliteWriter

DTYPES = ("uint8", "int8")
CODES = np.arange(256, dtype=np.uint8).reshape(1, 1, 1, 256)
KINDS = {
    "RELU": RELU,
    "RELU6": RELU6,
    "RELU_N1_TO_1": Activation("clamp", -1.0, 1.0),
    "RELU_0_TO_1": Activation("clamp", 0.0, 1.0),
    "HARD_SWISH": HARD_SWISH,
}


def meanings(seed: int, count: int) -> list[tuple[Quant, Quant]]:
    """Scales of any size; every fourth pair is more than 100 times apart."""
    rng = np.random.default_rng(seed)
    pairs = []
    for i in range(count):
        scale, apart = 10 ** rng.uniform(-3.5, 0.5), 2.6 if i % 4 == 0 else 0.7
        x = Quant(scale, int(rng.integers(256)))
        pairs.append((x, Quant(scale * 10 ** rng.uniform(-apart, apart), int(rng.integers(256)))))
    return pairs


def of_litert(kind: str, x: Quant, y: Quant, dtypes: tuple[str, str]) -> np.ndarray:
    t = TfliteWriter()
    ends = [
        t.tensor(name, CODES.shape, dtype, scale=q.scale, zero_point=q.zero - (128 if dtype == "int8" else 0))
        for name, q, dtype in (("x", x, dtypes[0]), ("y", y, dtypes[1]))
    ]
    t.op(kind, ends[:1], ends[1:])
    return unsigned(litert(t.finish(*ends))(signed(CODES, dtypes[0]))).reshape(256)


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", DTYPES)
def test_changes_of_scale_are_those_of_litert(a: str, b: str) -> None:
    for x, y in [*meanings(1, 40), (Quant(0.1, 7), Quant(0.1, 7)), (Quant(0.1, 7), Quant(0.1, 130))]:
        assert np.array_equal(tflite_tables.rescale(x, y, a == b), of_litert("QUANTIZE", x, y, (a, b))), (x, y)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_those_of_litert(dtype: str, kind: str) -> None:
    compared = 0
    for x, y in meanings(2, 60):
        table = tflite_tables.activation(KINDS[kind], x, y)
        if table is None:  # LiteRT refuses an output of so fine a scale
            assert kind == "HARD_SWISH"
            assert x.scale / 128 >= y.scale
            continue
        compared += 1
        assert np.array_equal(table, of_litert(kind, x, y, (dtype, dtype))), (x, y)
    assert compared > 50


@pytest.mark.parametrize("same_type", [True, False])
def test_a_change_of_scale_is_near_the_real_one(same_type: bool) -> None:
    """XNNPACK's factor has eight bits behind the point: far from the zero point it may be another half step off."""
    for x, y in meanings(3, 200):
        ratio = x.scale / y.scale
        real = ((np.arange(256) - x.zero) * ratio + y.zero).clip(0, 255)
        found = tflite_tables.rescale(x, y, same_type).astype(int)
        bound = 1.0 + (256 * 0.5 / 256 if same_type else 0)
        assert np.abs(found - real).max() <= bound
        assert (np.diff(found) >= 0).all()


def test_an_equal_meaning_changes_nothing() -> None:
    for zero in (0, 7, 255):
        q = Quant(0.3, zero)
        assert np.array_equal(tflite_tables.rescale(q, q, False), np.arange(256))
        assert np.array_equal(tflite_tables.rescale(q, q, True), np.arange(256))


@pytest.mark.parametrize("function", KINDS.values())
def test_activations_are_near_the_real_ones(function: Activation) -> None:
    for x, y in meanings(4, 100):
        table = tflite_tables.activation(function, x, y)
        real = (np.arange(256) - x.zero) * x.scale
        if function.kind == "hard_swish":
            real = real * np.clip(real / 6 + 0.5, 0, 1)
        else:
            real = np.clip(real, function.lo, function.hi)
        if table is not None:
            found = table - (real / y.scale + y.zero).clip(0, 255)
            steps = 1.01 if function.kind == "clamp" else 2.0 + 2**-7 * x.scale / y.scale
            assert np.abs(found).max() <= steps, (x, y)


def test_functions_without_a_rule_of_their_own() -> None:
    q = Quant(0.1, 5)
    assert tflite_tables.activation(SIGMOID, q, Quant(1 / 256, 0)) is None
    assert tflite_tables.activation(RELU6, q, q) is None
    assert tflite_tables.activation(HARD_SWISH, Quant(1.0, 0), Quant(1 / 200, 0)) is None


@pytest.mark.parametrize("scales", [(1e-30, 9e29), (9e29, 1e-30), (9e29, 9e29), (1e-30, 1e-30), (1.0, 1 / 511.9)])
def test_any_scales(scales: tuple[float, float]) -> None:
    """No overflow, and the right sign where everything but the zero point is clamped."""
    x, y = Quant(scales[0], 100), Quant(scales[1], 50)
    ratio = min(x.scale / y.scale, 1e6)
    expected = np.rint((np.arange(256) - 100.0) * ratio + 50).clip(0, 255)
    for same_type in (True, False):
        assert np.array_equal(tflite_tables.rescale(x, y, same_type), expected)
    clamp = tflite_tables.activation(RELU, x, y)
    assert clamp is not None
    assert np.array_equal(clamp, expected.clip(50))
    swish = tflite_tables.activation(HARD_SWISH, x, y)
    assert swish is None or math.isclose(swish[100], 50)
