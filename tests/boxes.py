"""Random boxes with scores, for the tests of detection."""

from __future__ import annotations

import numpy as np


def random_boxes(rng: np.random.Generator, n: int, clustered: bool) -> np.ndarray:
    """float32 (n, 4), x0, y0, x1, y1: anywhere, or many about a few places, so that they overlap."""
    if clustered:
        centre = rng.uniform(0, 1, (8, 2))[rng.integers(0, 8, n)] + rng.normal(0, 0.02, (n, 2))
        size = rng.uniform(0.1, 0.3, (n, 2))
    else:
        centre, size = rng.uniform(0, 1, (n, 2)), rng.uniform(0.02, 0.5, (n, 2))
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1).astype(np.float32)


def with_oddities(rng: np.random.Generator, boxes: np.ndarray) -> np.ndarray:
    """Some boxes equal to others, some without area, inside out, not finite."""
    odd = boxes.copy()
    n = len(odd)

    def some(share: float) -> np.ndarray:
        return rng.random(n) < share

    same = some(0.2)
    odd[same] = odd[rng.integers(0, n, same.sum())]
    flat = some(0.05)
    odd[flat, 2] = odd[flat, 0]
    turned = some(0.05)
    odd[turned] = odd[turned][:, [2, 3, 0, 1]]
    odd[some(0.03), 1] = np.nan
    odd[some(0.03), 3] = np.inf
    odd[some(0.02)] = 3e38 * np.array([-1, -1, 1, 1], np.float32)  # their area is beyond float32
    return odd


def random_scores(rng: np.random.Generator, n: int, classes: int, steps: int | None) -> np.ndarray:
    """float32 (n, classes), 0 to 1. ``steps``: so many different values only, so that there are ties."""
    if steps is None:
        return rng.uniform(0, 1, (n, classes)).astype(np.float32)
    return (rng.integers(0, steps, (n, classes)) / np.float32(steps)).astype(np.float32)
