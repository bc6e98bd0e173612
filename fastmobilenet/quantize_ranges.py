"""Real numbers -> bytes with the least error: the scale of a tensor from its histogram, that of weights from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .calibration import Histogram
from .quantization import Quant

Function = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]

#: A range is tried at these fractions of the largest one: each is 2 % less, down to a fourteenth.
FRACTIONS = 0.98 ** np.arange(132)

#: The scale of a channel's weights is tried at these fractions of the one that clips nothing.
WEIGHT_FRACTIONS = 1 - 0.02 * np.arange(16)


def quant_of_range(lo: float, hi: float) -> Quant:
    """The bytes 0 to 255 spread over lo..hi, moved so that 0 is one of them. lo <= 0 <= hi."""
    scale = (hi - lo) / 255
    if not scale > 1e-20:  # a tensor that is always 0
        return Quant(1 / 255, 0)
    return Quant(scale, int(np.clip(np.rint(-lo / scale), 0, 255)))


def choose_quant(histogram: Histogram, *, clip: bool = True, through: Function | None = None) -> Quant:
    """The range with the least squared error. A narrower one has finer steps and clips what lies outside.

    ``clip=False`` takes the whole range. ``through`` is a function that is all that reads the tensor: what counts is
    then the error of its result.
    """
    if not clip:
        return quant_of_range(histogram.lo, histogram.hi)
    seen = histogram.counts > 0
    values, counts = histogram.centres[seen], histogram.counts[seen].astype(np.float64)
    exact = values if through is None else through(values)

    def error(lo: float, hi: float) -> float:
        quant = quant_of_range(lo, hi)
        rounded = quant.scale * (np.clip(np.rint(values / quant.scale) + quant.zero, 0, 255) - quant.zero)
        noise = (rounded if through is None else through(rounded)) - exact
        return float(counts @ (noise * noise))

    lo, hi = histogram.lo, histogram.hi
    for _ in range(2 if lo < 0 < hi else 1):  # one end after the other, then both once more
        if hi > 0:
            hi = min((histogram.hi * f for f in FRACTIONS), key=lambda end: error(lo, end))
        if lo < 0:
            lo = min((histogram.lo * f for f in FRACTIONS), key=lambda end: error(end, hi))
    return quant_of_range(lo, hi)


def quantize_weights(
    weight: npt.NDArray[Any], least_scale: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Weights (oc, ...) -> int8 of -127 to 127 and their scale (oc,), for every output channel the one of the least
    squared error that is at least ``least_scale`` (oc,)."""
    rows = weight.reshape(weight.shape[0], -1).astype(np.float64)
    whole = np.abs(rows).max(axis=1) / 127
    best = np.full(len(rows), np.inf)
    scale = np.maximum(whole, least_scale)
    for fraction in WEIGHT_FRACTIONS:
        trial = np.maximum(whole * fraction, least_scale)
        error = np.square(_integers(rows, trial) * trial[:, None] - rows).sum(axis=1)
        better = error < best
        best[better], scale[better] = error[better], trial[better]
    scale = scale.astype(np.float32).astype(np.float64)
    return _integers(rows, scale).astype(np.int8).reshape(weight.shape), scale.astype(np.float32)


def _integers(rows: npt.NDArray[np.float64], scale: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    q: npt.NDArray[np.float64] = np.clip(np.rint(rows / scale[:, None]), -127, 127)
    return q
