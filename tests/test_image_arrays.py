"""fastmobilenet.image: arrays of every layout, type and shape, and what is no picture at all."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest

from fastmobilenet import image

from .pictures import PLAIN, equal, picture


def test_grey_and_alpha_arrays() -> None:
    pixels = picture(5, 7, 4)
    grey = np.repeat(pixels[:, :, :1], 3, axis=2)
    equal(image.decode(pixels[:, :, 0]), grey)
    equal(image.decode(pixels[:, :, :1]), grey)
    equal(image.decode(pixels[:, :, :3]), pixels[:, :, :3])
    equal(image.decode(pixels), pixels[:, :, :3])


def _misaligned(pixels: np.ndarray) -> np.ndarray:
    buffer = np.empty(pixels.size + 1, np.uint8)
    view = buffer[1:].reshape(pixels.shape)
    view[...] = pixels
    return view


LAYOUTS = {
    "contiguous": lambda p: p.copy(),
    "fortran": np.asfortranarray,
    "channels first underneath": lambda p: np.ascontiguousarray(p.transpose(2, 0, 1)).transpose(1, 2, 0),
    "every second": lambda p: np.repeat(np.repeat(p, 2, 0), 2, 1)[::2, ::2],
    "upside down": lambda p: p[::-1].copy()[::-1],
    "all reversed": lambda p: p[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
    "misaligned": _misaligned,
    "subclass": lambda p: p.view(np.recarray),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_array_layouts(layout: str) -> None:
    pixels = picture(40, 50)
    given = LAYOUTS[layout](pixels)
    given.flags.writeable = False
    equal(given, pixels)
    expected, _ = image.to_batch(pixels, PLAIN, (32, 32))
    equal(image.decode(given), pixels)
    equal(image.to_batch(given, PLAIN, (32, 32))[0], expected)
    equal(image.to_batch(given[np.newaxis], PLAIN, (32, 32))[0], expected)
    equal(image.to_batch(given, PLAIN, (40, 50))[0][0], pixels)
    equal(given, pixels)


@pytest.mark.parametrize("dtype", ["bool", "int8", "<u2", ">u2", "int32", "<f4", ">f4", "float64", "complex64", "O"])
def test_array_dtypes(dtype: str) -> None:
    for shape in [(4, 5, 3), (4, 5), (2, 4, 5, 3)]:
        array = np.zeros(shape, dtype)
        with pytest.raises(TypeError) as caught:
            image.to_batch(array, PLAIN, (32, 32))
        assert f"got {array.dtype} of shape {shape}" in str(caught.value)
        assert "expected uint8 pixels of shape" in str(caught.value)


@pytest.mark.parametrize(
    "shape, hint",
    [
        ((), ""),
        ((5,), ""),
        ((5, 6, 2), ""),
        ((5, 6, 5), ""),
        ((3, 8, 9), "transpose(1, 2, 0)"),
        ((2, 3, 8, 9), "transpose(0, 2, 3, 1)"),
        ((2, 8, 9, 2), ""),
        ((1, 2, 8, 9, 3), ""),
        ((0, 5, 3), "at least one pixel"),
        ((5, 0, 3), "at least one pixel"),
        ((0, 0), "at least one pixel"),
        ((2, 5, 0, 3), "at least one pixel"),
    ],
)
def test_array_shapes(shape: tuple[int, ...], hint: str) -> None:
    with pytest.raises(ValueError, match="uint8") as caught:
        image.to_batch(np.zeros(shape, np.uint8), PLAIN, (32, 32))
    assert str(shape) in str(caught.value)
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    "source, hint",
    [
        (None, "NoneType"),
        (3, "int"),
        (b"cat.jpg", r"bytes; .*PIL\.Image\.open\(io\.BytesIO"),
        (bytearray(9), r"bytearray; .*PIL\.Image\.open\(io\.BytesIO"),
        (io.BytesIO(), r"BytesIO; .*PIL\.Image\.open"),
        ({"a": 1}, "dict"),
        (iter([]), "iterator"),
        (np.uint8(3), r"numpy\.uint8; .*numpy\.asarray"),
    ],
)
def test_other_types(source: Any, hint: str) -> None:
    expected = r"expected a path, a PIL image or uint8 pixels of shape \(h, w, 3\)"
    with pytest.raises(TypeError, match=rf"{expected}, or several of them in a list or array, got .*{hint}"):
        image.to_batch(source, PLAIN, (32, 32))
    with pytest.raises(TypeError, match=rf"item 1 of the list: {expected}, got .*{hint}"):
        image.to_batch([picture(4, 5), source], PLAIN, (32, 32))


def test_masked_arrays_are_refused() -> None:
    """A mask has no meaning for a network, and to drop it would make its values count."""
    for shape in [(4, 5, 3), (4, 5), (2, 4, 5, 3)]:
        masked = np.ma.masked_equal(np.zeros(shape, np.uint8), 0)
        with pytest.raises(TypeError, match=rf"masked uint8 array of shape {re.escape(str(shape))}.*filled"):
            image.to_batch(masked, PLAIN, (32, 32))
    with pytest.raises(TypeError, match=r"item 1 of the tuple: .*masked"):
        image.to_batch((picture(4, 5), np.ma.array(picture(4, 5))), PLAIN, (32, 32))
    with pytest.raises(TypeError, match="masked"):
        image.decode(np.ma.array(picture(4, 5)))
