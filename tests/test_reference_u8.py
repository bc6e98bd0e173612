"""The definition of the arithmetic on bytes, against exact integers and fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fastmobilenet import reference_u8
from fastmobilenet.graph import RELU6, Node
from fastmobilenet.quantization import Quant

ALL = np.arange(256, dtype=np.uint8)
#: Every pair of two bytes.
A, B = (v.reshape(1, 256, 256, 1) for v in np.meshgrid(ALL, ALL))


@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("channels", [12, 324])  # whose sums fit into a float32, and do not
def test_convolutions_sum_exactly(groups: int, channels: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.choice(np.array([0, 255], np.uint8), (2, 5, 4, channels))
    weight = rng.choice(np.array([-127, 127], np.int8), (12 * groups, 3, 3, channels // groups))
    bias = rng.integers(-(2**20), 2**20, 12 * groups).astype(np.int32)
    scale = rng.uniform(1e-6, 1e-4, 12 * groups).astype(np.float32)
    y = Quant(0.5, 100)
    attrs: dict[str, Any] = {"stride": (2, 1), "padding": (1, 0, 1, 1), "groups": groups, "quant": y}
    node = Node("y", "conv2d", ("x",), attrs, {"weight": weight, "bias": bias, "weight_scale": scale})
    source = Quant(0.5, 3)
    found = reference_u8.conv2d(node, [source], x)
    padded = np.pad(x.astype(np.int64) - 3, ((0, 0), (1, 0), (1, 1), (0, 0)))
    per, outputs = channels // groups, 12
    for n, oy, ox in np.ndindex(*found.shape[:3]):
        window = padded[n, 2 * oy : 2 * oy + 3, ox : ox + 3]
        for o in range(0, 12 * groups, 5):
            group = o // outputs
            total = int((window[..., group * per : (group + 1) * per] * weight[o].astype(np.int64)).sum()) + int(
                bias[o]
            )
            rounded = np.rint(np.float32(total) * scale[o])  # both scales are 0.5
            assert found[n, oy, ox, o] == np.clip(rounded + 100, 0, 255)


@pytest.mark.parametrize("scales", [(0.1, 0.1, 0.1), (0.3, 0.02, 0.17), (0.01, 0.5, 0.3), (0.2, 0.1, 0.0009)])
def test_sums_are_at_most_a_hair_more_than_half_a_step_off(scales: tuple[float, float, float]) -> None:
    quants, y = [Quant(scales[0], 120), Quant(scales[1], 7)], Quant(scales[2], 90)
    found = reference_u8.add(Node("y", "add", (), {"quant": y}), quants, A, B)
    real = ((A - 120.0) * quants[0].scale + (B - 7.0) * quants[1].scale) / y.scale + 90
    assert np.abs(found - real.clip(0, 255)).max() <= 0.5 + 2 * 255 / 2**20


def test_halves_of_a_sum_go_up() -> None:
    quants, y = [Quant(0.5, 100), Quant(0.5, 100)], Quant(1.0, 100)
    found = reference_u8.add(Node("y", "add", (), {"quant": y}), quants, A, B)
    assert np.array_equal(found, (A.astype(int) + B + 1) // 2)


@pytest.mark.parametrize("scale", [1e-29, 1e-4, 1.0, 255.0, 1e29])
@pytest.mark.parametrize("other", [1e-29, 1.0, 1e29])
def test_sums_fit_into_int32(scale: float, other: float) -> None:
    for zeros in ((0, 0), (255, 255), (0, 255)):
        quants, y = (Quant(scale, zeros[0]), Quant(other, zeros[1])), Quant(1.0, 128)
        ma, mb, shift = reference_u8.add_multipliers(*quants, y)
        assert 12 <= shift <= 30
        assert 0 <= ma <= 2**21
        assert 0 <= mb <= 2**21
        assert 255 * (ma + mb) + (1 << (shift - 1)) < 2**31


def test_the_clamp_of_a_sum() -> None:
    y = Quant(6 / 200, 20)
    found = reference_u8.add(Node("y", "add", (), {"quant": y, "activation": RELU6}), [y, y], A, B)
    assert (found.min(), found.max()) == (20, 220)


def test_products() -> None:
    quants, y = [Quant(0.3, 120), Quant(0.02, 7)], Quant(0.25, 90)
    found = reference_u8.mul(Node("y", "mul", (), {"quant": y}), quants, A, B)
    factor = np.float32(0.3) * np.float32(0.02) / np.float32(0.25)
    for a, b in ((0, 0), (255, 255), (120, 9), (119, 250), (13, 77), (200, 8)):
        expected = np.rint(np.float32((a - 120) * (b - 7)) * factor) + 90
        assert found[0, b, a, 0] == np.clip(expected, 0, 255)


# --- means ----------------------------------------------------------------------------------------------


def pool(x: np.ndarray, source: Quant, quant: Quant, rounding: str | None) -> np.ndarray:
    attrs: dict[str, Any] = {"quant": quant} | ({} if rounding is None else {"rounding": rounding})
    return reference_u8.pool_mean(Node("y", "global_avg_pool", (), attrs), [source], x)


def test_averages_round_halves_away_from_the_zero_of_the_file_s_codes() -> None:
    x = np.stack([A.ravel(), B.ravel()]).reshape(1, 2, 1, -1)  # the mean of two bytes
    q = Quant(0.1, 77)
    total = A.ravel().astype(int) + B.ravel()
    assert np.array_equal(pool(x, q, q, "average_u8").ravel(), (total + 1) // 2)
    signed = total - 256
    away = np.where(signed < 0, -((1 - signed) // 2), (signed + 1) // 2) + 128
    assert np.array_equal(pool(x, q, q, "average_s8").ravel(), away)


@pytest.mark.parametrize("rounding", [None, "average_u8", "average_s8", "mean_u8", "mean_s8"])
@pytest.mark.parametrize("h, w", [(7, 7), (4, 4), (1, 1), (10, 7), (112, 112)])
def test_means_are_the_nearest_bytes(rounding: str | None, h: int, w: int) -> None:
    rng = np.random.default_rng(h)
    x = rng.integers(0, 256, (1, h, w, 64)).astype(np.uint8)
    x[..., 0], x[..., 1] = 0, 255
    source = Quant(0.1, 100)
    quant = source if rounding is not None and rounding.startswith("average") else Quant(0.05, 60)
    found = pool(x, source, quant, rounding).ravel()
    for c in range(64):
        mean = Fraction(int(x[..., c].astype(int).sum()), h * w) - 100
        exact = mean * Fraction(source.scale) / Fraction(quant.scale) + quant.zero
        assert abs(found[c] - min(max(exact, Fraction(0)), Fraction(255))) <= Fraction(1, 2) + Fraction(1, 1000)


def test_exact_halves_of_a_mean() -> None:
    """By the usual rule the distance from the zero becomes even, by LiteRT's the code of the file."""
    x = np.array([[0, 1], [1, 2], [2, 3], [200, 201]], np.uint8).T.reshape(1, 2, 1, 4)
    q = Quant(0.1, 7)
    assert pool(x, q, q, None).ravel().tolist() == [1, 1, 3, 201]
    assert pool(x, q, q, "mean_u8").ravel().tolist() == [0, 2, 2, 200]
    assert pool(x, q, q, "mean_s8").ravel().tolist() == [0, 2, 2, 200]


# --- the rest -------------------------------------------------------------------------------------------


def test_probabilities() -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(0, 256, (5, 2, 1, 1001)).astype(np.uint8)
    source, quant = Quant(0.08, 60), Quant(1 / 256, 0)
    found = reference_u8.softmax(Node("y", "softmax", (), {"quant": quant}), [source], x)
    e = np.exp(source.scale * x.astype(np.float64))
    real = 256 * e / e.sum(axis=-1, keepdims=True)
    assert np.abs(found - real.clip(0, 255)).max() < 0.5 + 1e-4
    assert np.array_equal(
        found[..., ::-1], reference_u8.softmax(Node("y", "softmax", (), {"quant": quant}), [source], x[..., ::-1])
    )


def test_probability_one_is_the_largest_byte() -> None:
    x = np.array([255, 0, 0, 0], np.uint8).reshape(1, 1, 1, 4)
    node = Node("y", "softmax", (), {"quant": Quant(1 / 256, 0)})
    assert reference_u8.softmax(node, [Quant(1.0, 0)], x).ravel().tolist() == [255, 0, 0, 0]


def test_the_largest_byte_of_a_window_and_its_padding() -> None:
    q = Quant(0.1, 200)
    attrs: dict[str, Any] = {"kernel": (2, 2), "stride": (2, 2), "padding": (1, 0, 1, 0), "quant": q}
    x = np.arange(9, dtype=np.uint8).reshape(1, 3, 3, 1)
    found = reference_u8.max_pool2d(Node("y", "max_pool2d", (), attrs), [q], x)
    assert found.ravel().tolist() == [0, 2, 6, 8]  # padding counts less than a byte 0


def test_a_table() -> None:
    table = np.random.default_rng(4).permutation(256).astype(np.uint8)
    node = Node("y", "lookup", ("x",), {"quant": Quant(1.0, 0)}, {"table": table})
    assert np.array_equal(reference_u8.EXECUTE["lookup"](node, [Quant(0.1, 5)], A), table[A])


def test_numbers_become_bytes_by_a_product() -> None:
    """x * (1 / scale) in float32: not x / scale, which differs in some exact halves."""
    q = Quant(1 / 127.5, 128)
    x = (np.arange(-128, 127) + 0.5).astype(np.float32) * np.float32(q.scale)
    expected = np.rint(x * (np.float32(1) / np.float32(q.scale))) + 128
    assert np.array_equal(q.quantize(x), expected.clip(0, 255))
    assert q.quantize(np.array([np.nan, np.inf, -np.inf])).tolist() == [128, 255, 0]
    assert np.array_equal(q.quantize(q.dequantize(ALL)), ALL)
