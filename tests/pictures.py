"""Pictures to decode, and how the results are compared."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from fastmobilenet.preprocess import Preprocess

PLAIN = Preprocess()


def picture(h: int, w: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, h, w)).integers(0, 256, (h, w, channels), dtype=np.uint8)


def smooth(h: int, w: int) -> np.ndarray:
    """Something that JPEG keeps."""
    y, x, c = np.ogrid[:h, :w, :3]
    return ((y * 255 // h + x * 255 // w + c * 40) // 2).clip(0, 255).astype(np.uint8)


def encoded(kind: str, h: int = 60, w: int = 80, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(smooth(h, w)).save(buffer, kind, **options)
    return buffer.getvalue()


def equal(a: np.ndarray, b: Any) -> None:
    assert a.dtype == np.uint8
    np.testing.assert_array_equal(a, np.asarray(b))
