"""Quantised tensors: bytes that stand for real numbers.

A node whose ``quant`` attribute is a :class:`Quant` makes a uint8 tensor; every other node makes float32. What each op
computes on bytes is in ``reference_u8.py``, in exact integers and single float32 operations, so that every ISA gives
the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .activation import Activation
from .errors import ModelError


@dataclass(frozen=True)
class Quant:
    """The byte q stands for ``scale * (q - zero)``. ``scale`` is rounded to float32; ``zero`` is 0 to 255.

    A file of int8 activations has 128 added to its bytes and zero points.
    """

    scale: float
    zero: int

    def __post_init__(self) -> None:
        scale = float(np.float32(self.scale))
        object.__setattr__(self, "scale", scale)
        if not (math.isfinite(scale) and scale >= 1e-30) or scale > 1e30:
            raise ModelError(f"the scale of a quantised tensor must be a positive number, not {self.scale}")
        if not 0 <= self.zero <= 255:
            raise ModelError(f"the zero point of a quantised tensor must be 0 to 255, not {self.zero}")

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """float -> uint8: x * (1 / scale), in float32, rounded to the nearest, ties to even, plus zero, clamped. NaN
        becomes ``zero``."""
        with np.errstate(over="ignore", invalid="ignore"):
            q = np.rint(np.asarray(x, np.float32) * (np.float32(1) / np.float32(self.scale)))
        q = np.where(np.isnan(q), 0.0, q)
        return np.clip(q.astype(np.float64) + self.zero, 0, 255).astype(np.uint8)

    def dequantize(self, q: np.ndarray) -> np.ndarray:
        """uint8 -> float32."""
        return (q.astype(np.int32) - self.zero).astype(np.float32) * np.float32(self.scale)

    def bounds(self, activation: Activation | None) -> tuple[int, int]:
        """The least and the largest byte that a clamp leaves."""
        if activation is None:
            return 0, 255
        if activation.kind != "clamp":
            raise ModelError(f"a quantised layer can only clamp; {activation} must be a node of its own")
        lo, hi = (self._byte(v) for v in (activation.lo, activation.hi))
        return lo, hi

    def _byte(self, value: float) -> int:
        if math.isinf(value):
            return 0 if value < 0 else 255
        return int(np.clip(np.rint(value / self.scale) + self.zero, 0, 255))
