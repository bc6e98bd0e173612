"""fastmobilenet.image.decode: what becomes of pictures of every kind. The oracle is Pillow."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from fastmobilenet import decoding, image

from .pictures import encoded, equal, picture, smooth

# --- decode: files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM"])
def test_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "bild ü.bin"  # the content decides, not the name
    path.write_bytes(encoded(kind))
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB"))
    for source in (path, str(path)):
        pixels = image.decode(source)
        equal(pixels, expected)
        assert pixels.flags.c_contiguous
    assert path.read_bytes() == encoded(kind)


def test_jpeg_is_decoded_at_full_size(tmp_path: Path) -> None:
    (tmp_path / "big.jpg").write_bytes(encoded("JPEG", 900, 1200))
    assert image.decode(tmp_path / "big.jpg").shape == (900, 1200, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF"])
def test_truncated_files(kind: str, tmp_path: Path) -> None:
    data = encoded(kind)
    path = tmp_path / "cut.bin"
    for length in [*range(40), *range(40, len(data) * 3 // 4, 37)]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut\.bin: (cannot be decoded|not a picture)"):
            image.decode(path)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF", "BMP"])
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    """Any damage gives pixels or a ValueError with the file's name."""
    data = encoded(kind, 20, 30)
    rng = np.random.default_rng(5)
    path = tmp_path / "damaged.bin"
    failures = []
    for round_ in range(150):
        broken = bytearray(data)
        reach = 40 if round_ % 2 else len(data)  # the header is where most can go wrong
        for at in rng.integers(0, reach, rng.integers(1, 4)):
            broken[at] = rng.integers(0, 256)
        path.write_bytes(broken)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's remarks on metadata and sizes
                pixels = image.decode(path)
            assert pixels.dtype == np.uint8
            assert pixels.ndim == 3
        except ValueError as error:
            failures.append(str(error))
    assert failures
    assert all(message.startswith(f"{path}: ") for message in failures)


def test_not_a_picture(tmp_path: Path) -> None:
    path = tmp_path / "words.jpg"
    path.write_text("no picture")
    with pytest.raises(ValueError, match=r"words\.jpg: not a picture in a format that Pillow"):
        image.decode(path)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"):
        image.decode(tmp_path / "missing.png")
    with pytest.raises(OSError, match=os.path.basename(tmp_path)):
        image.decode(tmp_path)
    for path in ("a\0b", "a\ud800b"):
        with pytest.raises(ValueError, match=r"^'a.*b' cannot be the path of a file: "):
            image.decode(path)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(encoded("PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"bomb\.png: too large: .*4800 pixels.*MAX_IMAGE_PIXELS"):
        image.decode(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)  # above it Pillow warns, above twice as much it refuses
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=r"bomb\.png: too large: "):
            image.decode(path)


def test_eps_does_not_start_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **options: pytest.fail("started"))
    path = tmp_path / "drawing.eps"
    path.write_bytes(encoded("EPS"))
    with pytest.raises(ValueError, match=r"drawing\.eps: EPS is a program"):
        image.decode(path)


def test_a_disk_that_fails_is_no_damaged_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise OSError(5, "Input/output error")

    path = tmp_path / "a.bmp"
    path.write_bytes(encoded("BMP"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(OSError, match="Input/output error") as caught:
        image.decode(path)
    assert (caught.value.errno, caught.value.filename) == (5, str(path))


def test_too_little_memory_names_the_picture(tmp_path: Path) -> None:
    """Pillow raises MemoryError for a row that it cannot have, and does not say for which picture."""
    ihdr = struct.pack(">4sIIBBBBB", b"IHDR", 178_956_970, 1, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + ihdr + struct.pack(">I", zlib.crc32(ihdr))
    path = tmp_path / "wide.png"
    path.write_bytes(data + struct.pack(">I4s", 0, b"IDAT") + struct.pack(">I", zlib.crc32(b"IDAT")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(MemoryError, match=r"wide\.png: not enough memory to decode this picture"):
            image.decode(path)


def test_pillows_own_type_errors_are_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise TypeError("integer argument expected")

    path = tmp_path / "a.bmp"
    path.write_bytes(encoded("BMP"))
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(ValueError, match=r"a\.bmp: cannot be decoded: integer argument expected"):
        image.decode(path)


def test_the_file_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the picture is damaged."""
    opened = []
    open_regular = decoding.open_regular
    monkeypatch.setattr(decoding, "open_regular", lambda path: opened.append(open_regular(path)) or opened[-1])
    (tmp_path / "good.png").write_bytes(encoded("PNG"))
    (tmp_path / "bad.png").write_bytes(encoded("PNG")[:60])
    image.decode(tmp_path / "good.png")
    with pytest.raises(ValueError, match="cannot be decoded"):
        image.decode(tmp_path / "bad.png")
    assert [file.closed for file in opened] == [True, True]


# --- decode: PIL images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_modes_are_what_pillow_converts(mode: str) -> None:
    given = Image.fromarray(picture(9, 7, 4), "RGBA").convert("RGB" if mode in ("PA", "YCbCr", "HSV", "CMYK") else None)
    given = given.convert("P").convert("PA") if mode == "PA" else given.convert(mode)
    before = given.tobytes()
    equal(image.decode(given), given.convert("RGB"))
    assert given.tobytes() == before
    assert given.mode == mode


def test_alpha_is_dropped() -> None:
    pixels = picture(6, 5, 4)
    equal(image.decode(Image.fromarray(pixels, "RGBA")), pixels[:, :, :3])
    premultiplied = Image.fromarray(pixels, "RGBA").convert("RGBa")
    equal(image.decode(premultiplied), premultiplied.convert("RGBA").convert("RGB"))


@pytest.mark.parametrize("transparency", [3, bytes(range(256))])
def test_transparent_palettes_lose_the_transparency(transparency: Any, tmp_path: Path) -> None:
    palette = Image.fromarray(smooth(30, 40)).quantize(50)
    palette.save(tmp_path / "p.png", transparency=transparency)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equal(image.decode(tmp_path / "p.png"), palette.convert("RGB"))
        with Image.open(tmp_path / "p.png") as opened:
            before = dict(opened.info)
            assert "transparency" in before
            equal(image.decode(opened), palette.convert("RGB"))
            assert opened.info == before


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_16_bit_grey_keeps_the_upper_byte(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (11, 6)).astype(np.uint16)
    expected = np.repeat((values >> 8).astype(np.uint8)[:, :, np.newaxis], 3, axis=2)
    given = Image.fromarray(values)
    assert given.mode == "I;16"
    equal(image.decode(given), expected)
    if kind == "pgm":  # by hand: old versions of Pillow cannot write it
        (tmp_path / "grey.pgm").write_bytes(b"P5 6 11 65535\n" + values.astype(">u2").tobytes())
    else:
        given.save(tmp_path / f"grey.{kind}")
    equal(image.decode(tmp_path / f"grey.{kind}"), expected)
    big_endian = Image.frombytes("I;16B", (6, 11), values.astype(">u2").tobytes())
    equal(image.decode(big_endian), expected)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_range_are_refused(mode: str, tmp_path: Path) -> None:
    given = Image.new(mode, (8, 9), 7)
    with pytest.raises(TypeError, match=rf"PIL image \({mode}, 8x9\).*scale it to 0\.\.255"):
        image.decode(given)
    given.save(tmp_path / "deep.tiff")
    with pytest.raises(ValueError, match=r"deep\.tiff.*scale it to 0\.\.255"):
        image.decode(tmp_path / "deep.tiff")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "I;16"])
def test_exif_orientation_is_applied(orientation: int, mode: str, tmp_path: Path) -> None:
    upright = picture(4, 6, seed=orientation)
    grey = upright[:, :, 0]
    given = Image.fromarray({"RGB": upright, "L": grey, "I;16": grey.astype(np.uint16) << 8}[mode])
    exif = Image.Exif()
    exif[0x0112] = orientation
    given.save(tmp_path / "turned.png", exif=exif)
    rgb = upright if mode == "RGB" else np.repeat(upright[:, :, :1], 3, axis=2)
    plain = Image.fromarray(rgb)
    plain.getexif()[0x0112] = orientation
    expected = ImageOps.exif_transpose(plain)
    assert expected.size == ((6, 4) if orientation < 5 else (4, 6))
    equal(image.decode(tmp_path / "turned.png"), expected)
    with Image.open(tmp_path / "turned.png") as opened:
        equal(image.decode(opened), expected)
        assert opened.size == (6, 4)  # the caller's image has not been turned


def test_orientation_of_tiff_is_applied_once(tmp_path: Path) -> None:
    pixels = picture(4, 6)
    Image.fromarray(pixels).save(tmp_path / "turned.tiff", tiffinfo={0x0112: 6})
    equal(image.decode(tmp_path / "turned.tiff"), np.rot90(pixels, -1))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!", b"Exif\0\0II*\0\xff\xff\xff\x7f"])
def test_damaged_exif_is_ignored(exif: bytes, tmp_path: Path) -> None:
    data = encoded("JPEG", exif=exif)
    (tmp_path / "odd.jpg").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        equal(image.decode(tmp_path / "odd.jpg"), Image.open(io.BytesIO(data)))


@pytest.mark.parametrize("error", [SyntaxError, struct.error, KeyError, UnicodeDecodeError("ascii", b"", 0, 1, "")])
def test_pictures_survive_pillows_exif_parser(error: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def getexif(self: Image.Image) -> None:
        raise error

    monkeypatch.setattr(Image.Image, "getexif", getexif)
    equal(image.decode(Image.fromarray(smooth(5, 6))), smooth(5, 6))


def test_a_pil_image_of_a_truncated_file() -> None:
    data = encoded("JPEG", 200, 200)
    opened = Image.open(io.BytesIO(data[: len(data) // 2]))
    with pytest.raises(ValueError, match=r"the PIL image \(RGB, 200x200\): cannot be decoded: .*truncated"):
        image.decode(opened)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_picture_counts(kind: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 5), (60 * i, 0, 0)) for i in range(4)]
    path = tmp_path / "moving"
    try:
        frames[0].save(path, kind, save_all=True, append_images=frames[1:], lossless=True)
    except (KeyError, OSError):
        pytest.skip(f"this Pillow writes no {kind}")
    equal(image.decode(path), frames[0])
    with Image.open(path) as opened:
        opened.seek(2)  # of an image that was given, the frame at which it stands
        equal(image.decode(opened), frames[2])
        assert opened.tell() == 2


@pytest.mark.parametrize("size", [(0, 5), (5, 0)])
def test_a_pil_image_without_pixels(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"the PIL image \(L, {size[0]}x{size[1]}\): a picture needs at least one"):
        image.decode(Image.new("L", size))
