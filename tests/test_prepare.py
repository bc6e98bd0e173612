"""fastmobilenet.image.prepare and to_batch: resize, crop, batches. The oracles are Pillow and torchvision."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastmobilenet import image
from fastmobilenet.preprocess import Preprocess

from .peers import import_torchvision

PLAIN = Preprocess()
STRETCH = Preprocess(resize="stretch")
NONE = Preprocess(resize="none")
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def picture(h: int, w: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, h, w)).integers(0, 256, (h, w, 3), dtype=np.uint8)


# --- prepare ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    "shape, resized, top, left",
    [
        ((375, 500), (256, 341), 16, 58),  # 117 / 2 = 58.5 goes to the even 58
        ((336, 450), (256, 342), 16, 59),
        ((257, 344), (256, 342), 16, 59),
        ((300, 402), (256, 343), 16, 60),  # 119 / 2 = 59.5 goes to the even 60
        ((500, 375), (341, 256), 58, 16),
        ((402, 300), (343, 256), 60, 16),
        ((500, 500), (256, 256), 16, 16),
        ((100, 150), (256, 384), 16, 80),
        ((256, 256), (256, 256), 16, 16),
        ((225, 224), (257, 256), 16, 16),  # one row too many: it is resized like any other
    ],
)
def test_shorter_side_and_centre(
    shape: tuple[int, int], resized: tuple[int, int], top: int, left: int, interpolation: str
) -> None:
    pixels = picture(*shape)
    expected = Image.fromarray(pixels).resize(resized[::-1], FILTERS[interpolation])
    expected = expected.crop((left, top, left + 224, top + 224))
    out = image.prepare(pixels, replace(PLAIN, interpolation=interpolation), (224, 224))
    np.testing.assert_array_equal(out, np.asarray(expected))
    np.testing.assert_array_equal(pixels, picture(*shape))


@pytest.mark.parametrize("interpolation", FILTERS)
def test_equals_torchvision(interpolation: str) -> None:
    transforms = import_torchvision().transforms
    rng = np.random.default_rng(3)
    preprocess = replace(PLAIN, interpolation=interpolation)
    mode = transforms.InterpolationMode(interpolation)
    for size in (32, 33, 57):
        resize = transforms.Resize(round(size / preprocess.crop_fraction), interpolation=mode, antialias=True)
        pipeline = transforms.Compose([resize, transforms.CenterCrop(size)])
        for h, w in rng.integers(20, 130, (60, 2)).tolist():
            if h != size or w != size:
                pixels = picture(h, w)
                ours = image.prepare(pixels, preprocess, (size, size))
                theirs = np.asarray(pipeline(Image.fromarray(pixels)))
                np.testing.assert_array_equal(ours, theirs, err_msg=f"{w}x{h} -> {size}")


@given(
    ih=st.integers(1, 400),
    iw=st.integers(1, 400),
    h=st.integers(1, 300),
    w=st.integers(1, 300),
    fraction=st.floats(0.3, 1.0),
)
@settings(max_examples=120, deadline=None, derandomize=True)
def test_resized_picture_covers_the_crop(ih: int, iw: int, h: int, w: int, fraction: float) -> None:
    oh, ow = image.resized(ih, iw, h, w, Preprocess(crop_fraction=fraction))
    th, tw = round(h / fraction), round(w / fraction)
    assert oh >= th >= h
    assert ow >= tw >= w
    assert (oh, ow) in [(th, int(th * iw / ih)), (int(tw * ih / iw), tw)]


def test_sizes_that_are_not_square() -> None:
    pixels = picture(90, 60)
    # 40x20 is wider than the picture, so the width decides: 20 / 0.5 = 40 wide, 60 high; 40 / 0.5 = 80 for 80x20.
    half = replace(PLAIN, crop_fraction=0.5)
    expected = Image.fromarray(pixels).resize((40, 60), FILTERS["bilinear"]).crop((10, 15, 30, 45))
    np.testing.assert_array_equal(image.prepare(pixels, half, (30, 20)), np.asarray(expected))
    expected = Image.fromarray(pixels).resize((106, 160), FILTERS["bilinear"]).crop((43, 40, 63, 120))
    np.testing.assert_array_equal(image.prepare(pixels, half, (80, 20)), np.asarray(expected))


def test_stretch_and_none() -> None:
    pixels = picture(45, 61)
    expected = Image.fromarray(pixels).resize((30, 20), FILTERS["bilinear"])
    np.testing.assert_array_equal(image.prepare(pixels, STRETCH, (20, 30)), np.asarray(expected))
    np.testing.assert_array_equal(image.prepare(pixels, NONE, (20, 30)), pixels[12:32, 16:46])
    np.testing.assert_array_equal(image.prepare(pixels, NONE, (45, 30)), pixels[:, 16:46])
    for size in ((46, 30), (20, 62)):
        with pytest.raises(ValueError, match=rf"the picture has 61x45 pixels, less than the network's {size[1]}x"):
            image.prepare(pixels, NONE, size)


@pytest.mark.parametrize("preprocess", [PLAIN, STRETCH, NONE])
def test_pixels_of_the_right_size_are_left_alone(preprocess: Preprocess) -> None:
    pixels = picture(224, 160)
    assert image.prepare(pixels, preprocess, (224, 160)) is pixels


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (3, 2), (1, 5000), (5000, 1), (2, 30000), (40, 1)])
@pytest.mark.parametrize("preprocess", [PLAIN, STRETCH], ids=lambda p: p.resize)
def test_tiny_and_elongated_pictures(shape: tuple[int, int], preprocess: Preprocess) -> None:
    pixels = np.full((*shape, 3), (10, 120, 250), np.uint8)
    tracemalloc.start()
    try:
        out = image.prepare(pixels, preprocess, (224, 192))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert out.shape == (224, 192, 3)
    assert (out == (10, 120, 250)).all()
    assert peak < 8_000_000


def test_a_picture_too_elongated_is_refused_at_once() -> None:
    pixels = np.broadcast_to(np.uint8(0), (1, 10**8, 3))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"100000000x1 pixels is too elongated: .* 25600000000x256"):
            image.prepare(pixels, PLAIN, (224, 224))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000


def test_prepare_checks_its_arguments() -> None:
    with pytest.raises(TypeError, match=r"got float32 of shape \(4, 5, 3\)"):
        image.prepare(np.zeros((4, 5, 3), np.float32), PLAIN, (8, 8))  # type: ignore[arg-type]
    for shape in ((4, 5), (4, 5, 4), (0, 5, 3)):
        with pytest.raises(ValueError, match="got uint8 of shape"):
            image.prepare(np.zeros(shape, np.uint8), PLAIN, (8, 8))
    for size in ((0, 8), (8, 0), (-1, 8)):
        with pytest.raises(ValueError, match="size must be positive"):
            image.prepare(picture(4, 5), PLAIN, size)
        with pytest.raises(ValueError, match="size must be positive"):
            image.to_batch([], PLAIN, size)
    for size in ((2.5, 8), "88", (8, 8, 8), None, {8, 9}):
        with pytest.raises(TypeError, match=r"size must be one whole number or \(height, width\)"):
            image.prepare(picture(4, 5), PLAIN, size)  # type: ignore[arg-type]


def test_real_pictures_equal_a_plain_pillow_pipeline(test_data: Path) -> None:
    paths = sorted((test_data / "imagenet_samples").glob("*.JPEG"))[::20]
    assert paths
    for path in paths:
        with Image.open(path) as opened:
            rgb = opened.convert("RGB")
        short = min(rgb.size)
        resized = rgb.resize((rgb.width * 256 // short, rgb.height * 256 // short), FILTERS["bilinear"])
        left, top = round((resized.width - 224) / 2), round((resized.height - 224) / 2)
        batch, had_axis = image.to_batch(path, PLAIN, (224, 224))
        assert not had_axis
        np.testing.assert_array_equal(batch[0], np.asarray(resized.crop((left, top, left + 224, top + 224))))


# --- to_batch --------------------------------------------------------------------------------------------


def test_one_picture_has_no_batch_axis(tmp_path: Path) -> None:
    pixels = picture(50, 40)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = image.prepare(pixels, PLAIN, (32, 24))[np.newaxis]
    for source in (pixels, Image.fromarray(pixels), tmp_path / "a.png", str(tmp_path / "a.png")):
        batch, had_axis = image.to_batch(source, PLAIN, (32, 24))
        assert not had_axis
        assert batch.dtype == np.uint8
        assert batch.flags.c_contiguous
        np.testing.assert_array_equal(batch, expected)


@pytest.mark.parametrize("kind", [list, tuple])
def test_pictures_of_different_kinds_and_sizes(kind: type, tmp_path: Path) -> None:
    pictures = [picture(50, 40), picture(33, 70), picture(32, 24), picture(9, 8)]
    Image.fromarray(pictures[1]).save(tmp_path / "b.png")
    sources = [pictures[0], tmp_path / "b.png", Image.fromarray(pictures[2]), pictures[3][:, :, 0]]
    pictures[3] = np.repeat(pictures[3][:, :, :1], 3, axis=2)
    batch, had_axis = image.to_batch(kind(sources), PLAIN, (32, 24))
    assert had_axis
    np.testing.assert_array_equal(batch, np.stack([image.prepare(p, PLAIN, (32, 24)) for p in pictures]))


@pytest.mark.parametrize("size", [(32, 24), (50, 40)])
def test_array_batches(size: tuple[int, int]) -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (3, 50, 40, 4), dtype=np.uint8)
    before = rgba.copy()
    for channels, as_rgb in [(4, rgba[..., :3]), (3, rgba[..., :3]), (1, np.repeat(rgba[..., :1], 3, axis=3))]:
        batch, had_axis = image.to_batch(rgba[..., :channels], PLAIN, size)
        assert had_axis
        assert batch.flags.c_contiguous
        expected = np.stack([image.prepare(np.ascontiguousarray(p), PLAIN, size) for p in as_rgb])
        np.testing.assert_array_equal(batch, expected)
        one, _ = image.to_batch(rgba[:1, ..., :channels], PLAIN, size)
        np.testing.assert_array_equal(one, expected[:1])
    np.testing.assert_array_equal(rgba, before)


def test_a_batch_of_the_right_size_is_not_copied() -> None:
    batch = np.zeros((2, 32, 24, 3), np.uint8)
    assert np.shares_memory(image.to_batch(batch, PLAIN, (32, 24))[0], batch)
    assert np.shares_memory(image.to_batch(batch[0], PLAIN, (32, 24))[0], batch)


@pytest.mark.parametrize("nothing", [[], (), (0, 9, 8, 3), (0, 32, 24, 3), (0, 32, 24, 4), (0, 0, 0, 3)], ids=str)
def test_no_pictures(nothing: Any) -> None:
    given = np.empty(nothing, np.uint8) if len(nothing) else nothing
    batch, had_axis = image.to_batch(given, PLAIN, (32, 24))
    assert had_axis
    assert batch.shape == (0, 32, 24, 3)
    assert batch.dtype == np.uint8


def test_errors_name_the_item(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    good = picture(9, 8)
    with pytest.raises(ValueError, match=r"item 1 of the list: .*bad\.jpg"):
        image.to_batch([good, tmp_path / "bad.jpg"], PLAIN, (32, 24))
    with pytest.raises(TypeError, match=r"item 2 of the tuple: .*float64 of shape \(9, 8, 3\)"):
        image.to_batch((good, good, good.astype(float)), PLAIN, (32, 24))
    with pytest.raises(TypeError, match=r"item 0 of the list: .*got list"):
        image.to_batch([[good]], PLAIN, (32, 24))
    with pytest.raises(ValueError, match=r"item 1 of the list: .*got uint8 of shape \(2, 9, 8, 3\)"):
        image.to_batch([good, np.stack([good, good])], PLAIN, (32, 24))
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        image.to_batch([good, tmp_path / "none.png"], PLAIN, (32, 24))
