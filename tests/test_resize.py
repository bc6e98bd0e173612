"""fastmobilenet._image: the resize. The oracle is Pillow."""

from __future__ import annotations

import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastmobilenet import _image, image

from .guarded import Guarded

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
both_filters = pytest.mark.parametrize("name", FILTERS)


def picture(h: int, w: int, seed: int = 0) -> np.ndarray:
    """Noise; or only black and white, which makes a cubic overshoot and clip; or a smooth ramp."""
    rng = np.random.default_rng((seed, h, w))
    if seed % 3 == 0:
        return rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    if seed % 3 == 1:
        return rng.integers(0, 2, (h, w, 3), dtype=np.uint8) * np.uint8(255)
    y, x, c = np.ogrid[:h, :w, :3]
    return ((y * 255 // h + x * 255 // w + c * 40) // 2).clip(0, 255).astype(np.uint8)


def pillow(pixels: np.ndarray, oh: int, ow: int, name: str) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).resize((ow, oh), FILTERS[name]))


def pillow_in_order(pixels: np.ndarray, oh: int, ow: int, name: str, vertical_first: bool) -> np.ndarray:
    """Two calls that change one axis each, so that Pillow has no order to choose."""
    h, w, _ = pixels.shape
    between = pillow(pixels, oh, w, name) if vertical_first else pillow(pixels, h, ow, name)
    return pillow(between, oh, ow, name)


def ours_as_installed_pillow(pixels: np.ndarray, oh: int, ow: int, name: str) -> np.ndarray:
    h, w, _ = pixels.shape
    return _image.resize(pixels, oh, ow, name, vertical_first=image._vertical_first(h, w, oh, ow))


@both_filters
def test_a_thousand_sizes_equal_pillow(name: str) -> None:
    sizes = np.exp(np.random.default_rng(11).uniform(0, np.log(120), (1000, 4))).round().astype(int)
    grown = shrunk = kept = 0
    for seed, (h, w, oh, ow) in enumerate(sizes.tolist()):
        pixels = picture(h, w, seed)
        ours = ours_as_installed_pillow(pixels, oh, ow, name)
        np.testing.assert_array_equal(ours, pillow(pixels, oh, ow, name), err_msg=f"{w}x{h} -> {ow}x{oh}, seed {seed}")
        grown += (oh > h) + (ow > w)
        shrunk += (oh < h) + (ow < w)
        kept += (oh == h) + (ow == w)
    assert grown > 500
    assert shrunk > 500
    assert kept > 10


@both_filters
@pytest.mark.parametrize(
    "h, w, oh, ow",
    [
        (375, 500, 256, 341),
        (500, 375, 341, 256),
        (300, 1000, 256, 853),
        (1000, 300, 853, 256),
        (1, 700, 3, 5),
        (700, 1, 5, 3),
        (1, 1, 50, 70),
        (224, 224, 224, 224),
        (64, 2000, 64, 3),
        (2000, 64, 3, 64),
        (2000, 3, 40, 30),
    ],
)
def test_picture_sizes_equal_pillow(h: int, w: int, oh: int, ow: int, name: str) -> None:
    pixels = picture(h, w)
    np.testing.assert_array_equal(ours_as_installed_pillow(pixels, oh, ow, name), pillow(pixels, oh, ow, name))


@both_filters
def test_every_number_of_taps(name: str) -> None:
    """From 1 tap to 60, on widths that fill no SIMD register."""
    for src in range(1, 31):
        for dst in (1, 2, 3, 5, 7, 31):
            wide, tall = picture(2, src, src), picture(src, 3, src)
            np.testing.assert_array_equal(_image.resize(wide, 2, dst, name), pillow(wide, 2, dst, name))
            np.testing.assert_array_equal(_image.resize(tall, dst, 3, name), pillow(tall, dst, 3, name))


@pytest.mark.parametrize("vertical_first", [False, True])
@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_either_order_and_any_crop(vertical_first: bool, data: st.DataObject) -> None:
    h, w, oh, ow = (data.draw(st.integers(1, 40)) for _ in range(4))
    top, left = data.draw(st.integers(0, oh - 1)), data.draw(st.integers(0, ow - 1))
    height, width = data.draw(st.integers(1, oh - top)), data.draw(st.integers(1, ow - left))
    name = data.draw(st.sampled_from(list(FILTERS)))
    pixels = picture(h, w, data.draw(st.integers(0, 2)))
    whole = pillow_in_order(pixels, oh, ow, name, vertical_first)
    np.testing.assert_array_equal(_image.resize(pixels, oh, ow, name, vertical_first=vertical_first), whole)
    ours = _image.resize(pixels, oh, ow, name, (top, left, height, width), vertical_first)
    np.testing.assert_array_equal(ours, whole[top : top + height, left : left + width])


@both_filters
def test_nothing_outside_the_picture_is_read(name: str) -> None:
    guarded = Guarded()
    for h, w in [(1, 1), (1, 2), (3, 5), (5, 4), (17, 23)]:
        for at_start in (False, True):
            buffer = guarded.floats(-(-h * w * 3 // 4), at_start=at_start).view(np.uint8)
            pixels = (buffer[: h * w * 3] if at_start else buffer[-h * w * 3 :]).reshape(h, w, 3)
            pixels[...] = picture(h, w)
            for oh, ow in [(1, 1), (h, 3), (4, w), (6, 9), (h, w), (40, 50)]:
                for vertical_first in (False, True):
                    ours = _image.resize(pixels, oh, ow, name, None, vertical_first)
                    np.testing.assert_array_equal(ours, pillow_in_order(pixels, oh, ow, name, vertical_first))


@both_filters
def test_a_million_pixels_to_one(name: str) -> None:
    """Weights so small that many are rounded to 0, which must not take quadratic time."""
    pixels = picture(1, 1_000_000)
    np.testing.assert_array_equal(_image.resize(pixels, 1, 1, name), pillow(pixels, 1, 1, name))
    tall = pixels.reshape(1_000_000, 1, 3)
    np.testing.assert_array_equal(_image.resize(tall, 1, 1, name), pillow(tall, 1, 1, name))


def test_source_stays_and_result_is_new() -> None:
    pixels = picture(9, 8)
    before = pixels.copy()
    pixels.flags.writeable = False
    for oh, ow in [(9, 8), (5, 8), (9, 5), (4, 30)]:
        out = _image.resize(pixels, oh, ow, "bicubic")
        assert not np.shares_memory(out, pixels)
        assert out.flags.c_contiguous
        assert out.flags.writeable
    np.testing.assert_array_equal(pixels, before)


def test_a_small_crop_of_a_huge_picture_needs_little_memory() -> None:
    pixels = picture(1, 5000)
    tracemalloc.start()
    try:
        out = _image.resize(pixels, 256, 1_280_000, "bicubic", (16, 639_888, 224, 224))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert out.shape == (224, 224, 3)
    assert peak < 2_000_000
    # 224 output pixels lie within one source pixel of the middle: all rows are equal, neighbours differ by little.
    assert (out == out[0]).all()
    part = pixels[:, 2490:2510]
    np.testing.assert_array_equal(out, _image.resize(part, 256, 20 * 256, "bicubic", (16, 2448, 224, 224)))


def test_threads_do_not_disturb_each_other() -> None:
    pictures = [picture(60 + i, 90 - i, i) for i in range(16)]
    expected = [_image.resize(p, 50, 70, "bicubic") for p in pictures]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            results = list(pool.map(lambda p: _image.resize(p, 50, 70, "bicubic"), pictures))
            assert all(map(np.array_equal, results, expected))


@pytest.mark.parametrize(
    "oh, ow", [(0, 5), (5, 0), (-1, 5), (5, -(2**70)), (2**31, 1), (1, 2**31), (1, 2**70), (2**31 - 1, 2**31 - 1)]
)
def test_impossible_sizes(oh: int, ow: int) -> None:
    with pytest.raises(ValueError, match=r"each side must be|too big|[Mm]aximum allowed"):
        _image.resize(picture(4, 4), oh, ow, "bilinear")


def test_a_result_that_does_not_fit() -> None:
    with pytest.raises((MemoryError, ValueError)):
        _image.resize(picture(4, 4), 2**31 - 1, sys.maxsize // 2**32 // 4, "bilinear")


@pytest.mark.parametrize(
    "crop", [(-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 0, 2), (0, 0, 2, 0), (4, 0, 3, 2), (0, 5, 2, 4), (0, 0, 2**70, 1)]
)
def test_crop_must_lie_inside(crop: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="is not inside the resized picture of 8x6"):
        _image.resize(picture(4, 4), 6, 8, "bilinear", crop)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="filter must be one of"):
        _image.resize(picture(4, 4), 2, 2, "lanczos")
    with pytest.raises(ValueError, match=r"expected pixels of shape \(h, w, 3\), not \(4, 4, 4\)"):
        _image.resize(np.zeros((4, 4, 4), np.uint8), 2, 2, "bilinear")
    with pytest.raises(ValueError, match=r"expected pixels of shape \(h, w, 3\), not \(0, 4, 3\)"):
        _image.resize(np.zeros((0, 4, 3), np.uint8), 2, 2, "bilinear")
    with pytest.raises(ValueError, match=r"not C.contiguous"):
        _image.resize(picture(4, 4)[:, ::-1], 2, 2, "bilinear")
    with pytest.raises(ValueError, match="dtype mismatch"):
        _image.resize(np.zeros((4, 4, 3), np.float32), 2, 2, "bilinear")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        _image.resize(picture(4, 4), 2.5, 2, "bilinear")  # type: ignore[arg-type]
