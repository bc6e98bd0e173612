"""Ops of one byte as tables of 256, by the rules of LiteRT as it comes: changes of scale, ReLU and hard swish.

They are fixed-point arithmetic, with more than one rounding each; a table equals LiteRT's kernel byte for byte
(tests/test_tflite_tables.py). A sigmoid needs none: LiteRT rounds the real number.
"""

from __future__ import annotations

import math

import numpy as np

from ..graph import HARD_SWISH, Activation
from ..quantization import Quant

_CODES = np.arange(256, dtype=np.int64)
#: Quotients of scales for which XNNPACK takes over a change of scale.
_XNNPACK_RATIOS = (2.0**-8, 2.0**7)
#: With a larger one every byte but the zero point is clamped.
_MAX_RATIO = 512.0


def rescale(x: Quant, y: Quant, same_type: bool) -> np.ndarray:
    """QUANTIZE of bytes. ``same_type``: both tensors of the file are uint8, or both are int8."""
    ratio = np.float64(np.float32(_ratio(x, y)))
    if same_type and _XNNPACK_RATIOS[0] <= ratio <= _XNNPACK_RATIOS[1]:
        multiplier = int(np.rint(256 * ratio))  # eight bits behind the point
        return _bytes(((_CODES - x.zero) * multiplier + 128 >> 8) + y.zero)
    product, shift = _scaled(x, y)
    return _bytes((product + (1 << shift >> 1) >> shift) + y.zero)


def activation(function: Activation, x: Quant, y: Quant) -> np.ndarray | None:
    """The table of a clamp or a hard swish; None where LiteRT has no rule of its own."""
    if function.kind == "clamp" and x != y:
        return _clamp(function, x, y)
    return _hard_swish(x, y) if function == HARD_SWISH else None


def _clamp(function: Activation, x: Quant, y: Quant) -> np.ndarray:
    product, shift = _scaled(x, y)
    return _bytes((_shift(product, shift) + y.zero).clip(*y.bounds(function)))


def _hard_swish(x: Quant, y: Quant) -> np.ndarray | None:
    """In 16 bits: x with seven bits behind the point, in units of y; times relu6(x + 3) / 6 with 15 bits behind it."""
    fine = x.scale / 128
    scale, exponent = _fixed16(min(fine / y.scale, _MAX_RATIO))
    gate_scale, gate_exponent = _fixed16(fine / float(np.float32(3) / np.float32(32768)))
    if exponent > 0:
        return None  # refused by LiteRT
    codes = (_CODES - x.zero) << 7
    value = _high_product(codes, scale, 15)
    gate = codes
    if gate_exponent > 0:
        gate = _int16(gate << min(gate_exponent - 1, 16))
    gate = _high_product(gate, gate_scale, 15)
    gate = _int16(gate << 1) if gate_exponent > 0 else _shift(gate, -gate_exponent)
    gate = (gate + 32768) >> 1
    product = gate * value
    return _bytes(_shift(np.sign(product) * (np.abs(product) >> 15), -exponent) + y.zero)


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


def _int16(values: np.ndarray) -> np.ndarray:
    return values.clip(-32768, 32767)


def _ratio(x: Quant, y: Quant) -> float:
    return min(x.scale / y.scale, _MAX_RATIO)


def _scaled(x: Quant, y: Quant) -> tuple[np.ndarray, int]:
    """(p, shift): p / 2^shift is x - zero in units of y, but for one rounding."""
    multiplier, exponent = _fixed(_ratio(x, y))
    return _high_product((_CODES - x.zero) << max(exponent, 0), multiplier, 31), max(-exponent, 0)


def _fixed(ratio: float) -> tuple[int, int]:
    """ratio = multiplier * 2^(exponent - 31), with a multiplier of 31 bits, or 0 where the ratio is next to nothing."""
    fraction, exponent = math.frexp(ratio)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, exponent = 2**30, exponent + 1
    return (multiplier, exponent) if exponent >= -31 else (0, 0)


def _fixed16(ratio: float) -> tuple[int, int]:
    """The same of a float32, with a multiplier of 15 bits."""
    multiplier, exponent = _fixed(float(np.float32(ratio)))
    return min(multiplier + 2**15 >> 16, 32767), exponent


def _high_product(a: np.ndarray, b: int, bits: int) -> np.ndarray:
    """a * b / 2^bits to the nearest, halves up."""
    product: np.ndarray = a * b + (1 << (bits - 1)) >> bits
    return product


def _shift(values: np.ndarray, bits: int) -> np.ndarray:
    """values / 2^bits to the nearest, halves away from zero."""
    bits = min(bits, 62)
    shifted: np.ndarray = np.sign(values) * ((np.abs(values) + (1 << bits >> 1)) >> bits)
    return shifted
