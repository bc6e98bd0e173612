"""Arrays to run networks on, and what the tests of Model compare with."""

from __future__ import annotations

import numpy as np

from fastmobilenet import Graph
from fastmobilenet.reference import execute


def pixels(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def floats(*shape: int, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def expected(graph: Graph, nhwc: np.ndarray) -> np.ndarray:
    """(n, classes), by the reference."""
    return execute(graph, nhwc)[graph.output][:, 0, 0, :]


def assert_close(actual: np.ndarray, wanted: np.ndarray) -> None:
    assert actual.dtype == np.float32
    assert actual.shape == wanted.shape
    assert np.abs(actual - wanted).max() <= 1e-4 * np.abs(wanted).max()


def assert_same_bits(a: np.ndarray, b: np.ndarray) -> None:
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    assert a.tobytes() == b.tobytes()


def names(count: int) -> tuple[str, ...]:
    return tuple(f"name {i}" for i in range(count))
