"""Picture files and PIL images -> uint8 RGB pixels, by Pillow. What image.decode promises of both is done here.

A module of its own: importing ``PIL.Image`` takes milliseconds, and arrays do not need it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import PIL
from PIL import Image

from .files import open_regular

Pixels = npt.NDArray[np.uint8]

#: EXIF orientation -> what undoes it
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ORIENTATION = 0x0112


def from_file(path: str | bytes) -> Pixels:
    name = os.fsdecode(path)
    with open_regular(path) as file:
        return from_stream(file, name)


def from_stream(file: BinaryIO, name: str) -> Pixels:
    with _decoding(name):
        image = Image.open(file)
    with image:
        if image.format == "EPS":  # Pillow would start Ghostscript
            raise ValueError(f"{name}: EPS is a program and not a picture")
        return from_pil(image, name, ValueError)


def from_pil(image: Image.Image, name: str, refusal: type[Exception]) -> Pixels:
    """``refusal``: what is raised for a mode that has no colours. Of an image that was given it is the type that is
    wrong; the path of a file was of the right type, and its content is not."""
    with _decoding(name):
        image.load()  # before EXIF is read: some files have it behind the pixels
        upright = _upright(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
            # 16 bits a sample. The second is how Pillow 10 reads a 16-bit grey PNG, and every Pillow a 16-bit PGM.
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if 0 in image.size:
        raise ValueError(f"{name}: a picture needs at least one pixel")
    if image.mode in ("I", "F"):
        raise refusal(f"{name}: its mode {image.mode!r} has no fixed range of values: scale it to 0..255 and mode 'L'")
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode != "RGB":
        if "transparency" in image.info:  # convert() would translate it, with warnings and errors of its own
            image = image.copy()
            del image.info["transparency"]
        try:
            image = image.convert("RGB")
        except ValueError as error:
            raise refusal(f"{name}: its mode {image.mode!r} cannot be converted to RGB") from error
    return np.asarray(image if upright is None else image.transpose(upright))


def _upright(image: Image.Image) -> Image.Transpose | None:
    if image.format == "TIFF":  # load() applied it, and Pillow 10.0 leaves the tag in place
        return None
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Pillow's parser of damaged EXIF raises nearly anything; the pixels are fine without it
        return None


@contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Around what Pillow does to a picture: all that it raises for bad data becomes a ValueError with the name."""
    try:
        yield
    except MemoryError as error:
        raise MemoryError(f"{name}: not enough memory to decode this picture") from error
    except PIL.UnidentifiedImageError as error:
        raise ValueError(f"{name}: not a picture in a format that Pillow {PIL.__version__} reads here") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(f"{name}: too large: {error} (PIL.Image.MAX_IMAGE_PIXELS is the limit)") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:  # the operating system's own: a disk that fails
            raise OSError(error.errno, error.strerror, name) from error
        raise ValueError(f"{name}: cannot be decoded: {error or type(error).__name__}") from error
