"""Pictures -> uint8 batches of the network's input size: decode, resize, crop.

All pixels are uint8 RGB in rows from the top, (h, w, 3). Results equal those of plain Pillow: ``Image.open``,
``ImageOps.exif_transpose``, ``convert("RGB")``, ``resize`` and ``crop``. The network's normalisation and its channel
order are not applied here, the runtime does that.
"""

from __future__ import annotations

import io
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL

from . import _image, values
from .preprocess import Preprocess

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Encoded:
    """The content of a picture file; ``name`` is for messages."""

    data: bytes
    name: str = "the bytes"


EXPECTED = "a path, a PIL image or uint8 pixels of shape (h, w, 3)"

_PILLOW = tuple(int(part) for part in PIL.__version__.split(".")[:2])


# --- decode ----------------------------------------------------------------------------------------------


def decode(source: Any) -> Pixels:
    """One picture as uint8 RGB pixels of shape (h, w, 3), C-contiguous.

    ``source`` is a path (str or os.PathLike) of a file that Pillow reads, its content (Encoded), a PIL image, or a
    uint8 array of shape (h, w), (h, w, 1), (h, w, 3) or (h, w, 4) with any strides. It is not modified. The result may
    be read-only, and may share memory with an array that was given.

    - Grey: the value becomes all three channels.
    - Alpha and other transparency: dropped, as Pillow's ``convert("RGB")`` does; nothing is blended in.
    - 16 bits a sample: the upper 8 bits, which is also what Pillow makes of 16-bit colour.
    - Palette, CMYK, YCbCr, HSV and 1-bit pictures: Pillow's ``convert("RGB")``; no colour profile is applied.
    - EXIF orientation: applied, for files and for PIL images that carry it.
    - Animations and other files with several pictures: the first; of a PIL image, the frame it stands at.
    - JPEG: decoded at full size; Pillow's scaled decoding (``draft``) would change the result.

    Raises TypeError for other types, dtypes and PIL modes (32-bit "I" and "F" have no fixed range) and for masked
    arrays; ValueError for other shapes, for pictures without pixels, and for files that are damaged, truncated, no
    pictures, no regular files, or too large for ``PIL.Image.MAX_IMAGE_PIXELS``; OSError for files that cannot be
    opened. All name what they are about.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if _is_pil(source):
        from . import decoding

        return decoding.from_pil(source, f"the PIL image ({source.mode}, {source.width}x{source.height})", TypeError)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(os.fspath(source))
    if isinstance(source, Encoded):
        from . import decoding

        return decoding.from_stream(io.BytesIO(source.data), source.name)
    raise TypeError(f"expected {EXPECTED}, got {describe(source)}")


def is_picture(source: object) -> bool:
    """Whether :func:`decode` takes things of this type."""
    return isinstance(source, (str, os.PathLike, np.ndarray)) or _is_pil(source)


def _is_pil(source: object) -> bool:
    """Nobody has a PIL image who has not imported its class: it takes a while, and arrays do not need it."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(source, module.Image)


def check_array(array: npt.NDArray[Any]) -> None:
    """Raises TypeError and ValueError for an array that is neither one picture nor a batch of them."""
    batch = array.ndim == 4
    picture = array.shape[1:] if batch else array.shape
    known = len(picture) == 2 or (len(picture) == 3 and picture[2] in (1, 3, 4))
    if array.dtype != np.uint8 or not known:
        message = f"expected uint8 pixels of shape {'(n, h, w, 3)' if batch else '(h, w, 3)'}, got {describe(array)}"
        if array.dtype != np.uint8:
            raise TypeError(message)
        if len(picture) == 3 and picture[0] in (1, 3, 4):
            message += f"; channels come last: use array.transpose({'0, 2, 3, 1' if batch else '1, 2, 0'})"
        raise ValueError(message)
    no_pictures = batch and len(array) == 0
    if 0 in picture and not no_pictures:
        raise ValueError(f"a picture needs at least one pixel, got {describe(array)}")


def _from_array(array: npt.NDArray[Any]) -> Pixels:
    array = values.plain(array)
    if array.ndim == 4:
        raise ValueError(f"expected uint8 pixels of shape (h, w, 3), got {describe(array)}")
    check_array(array)
    return _rgb(array if array.ndim == 3 else array[:, :, np.newaxis])


def _rgb(array: npt.NDArray[Any]) -> Pixels:
    """uint8 (..., 1), (..., 3) or (..., 4) -> (..., 3), contiguous."""
    if array.shape[-1] == 1:
        array = np.broadcast_to(array, (*array.shape[:-1], 3))
    return np.ascontiguousarray(array[..., :3])


def _from_file(path: str | bytes) -> Pixels:
    from . import decoding

    return decoding.from_file(path)


def describe(value: object) -> str:
    """What was given, for an error, and what to do with it if that is clear."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    name = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"{name}; for the content of a file use PIL.Image.open(io.BytesIO(...))"
    if hasattr(value, "read"):
        return f"{name}; for an open file use PIL.Image.open(...)"
    if hasattr(value, "__array__"):
        return f"{name}; if it holds pixels use numpy.asarray(...)"
    return name


# --- resize and crop -------------------------------------------------------------------------------------


def prepare(picture: Pixels, preprocess: Preprocess, size: tuple[int, int]) -> Pixels:
    """Resize and crop uint8 (H, W, 3) to uint8 (h, w, 3), where ``size`` is (h, w), as ``preprocess`` says.

    Pixels that have that size are returned as they are, without a copy. Otherwise "shorter_side" scales the picture,
    in proportion, until it covers ``(round(h / crop_fraction), round(w / crop_fraction))`` and touches it on one
    axis; the other axis is rounded down. For a square ``size`` these are the shapes of torchvision's ``Resize(int)``.
    "stretch" scales it to ``size``, "none" does not. Then ``size`` is cut from the centre; as in torchvision, an odd
    margin is halved with Python's ``round``. Time and memory depend on what is cut out, not on the resized picture.

    Raises TypeError or ValueError if ``picture`` is not uint8 (H, W, 3) with at least one pixel; ValueError if it is
    smaller than ``size`` and is not to be resized, or so elongated that a side would exceed 2**31 - 1 pixels.
    """
    if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8:
        raise TypeError(f"expected uint8 pixels of shape (h, w, 3), got {describe(picture)}")
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.size == 0:
        raise ValueError(f"expected uint8 pixels of shape (h, w, 3), got {describe(picture)}")
    h, w = values.check_size(size)
    ih, iw = picture.shape[:2]
    if (ih, iw) == (h, w):
        return picture
    if preprocess.interpolation == "linear":
        from . import linear

        return np.rint(linear.resize(picture, (h, w))).astype(np.uint8)
    oh, ow = resized(ih, iw, h, w, preprocess)
    if oh < h or ow < w:
        raise ValueError(
            f"the picture has {iw}x{ih} pixels, less than the network's {w}x{h}, and the model's preprocessing "
            "does not resize: resize it before"
        )
    if max(oh, ow) > _image.MAX_SIDE:
        raise ValueError(
            f"the picture of {iw}x{ih} pixels is too elongated: to cover {w}x{h} it would grow to {ow}x{oh}"
        )
    crop = (*margins(oh, ow, h, w), h, w)
    return _image.resize(
        np.ascontiguousarray(picture), oh, ow, preprocess.interpolation, crop, _vertical_first(ih, iw, oh, ow)
    )


def margins(oh: int, ow: int, h: int, w: int) -> tuple[int, int]:
    """Rows above and columns before the centre h x w of a picture of oh x ow."""
    return round((oh - h) / 2), round((ow - w) / 2)


def resized(ih: int, iw: int, h: int, w: int, preprocess: Preprocess) -> tuple[int, int]:
    """The (height, width) to which a picture of ih x iw is resized before h x w are cut out."""
    if preprocess.resize == "none":
        return ih, iw
    if preprocess.resize == "stretch":
        return h, w
    th, tw = round(h / preprocess.crop_fraction), round(w / preprocess.crop_fraction)
    if ih * tw <= iw * th:
        return th, iw * th // ih
    return ih * tw // iw, tw


def _vertical_first(ih: int, iw: int, oh: int, ow: int) -> bool:
    """Whether the installed Pillow makes the vertical pass before the horizontal one, which changes some bits.

    It never did until 12.1; 12.2 and 12.3 do for pictures 100 times as tall as wide; 13.0 does if the height loses
    more than twice as many pixels as the width (a rule found by comparing results for 1500 pairs of sizes).
    """
    if _PILLOW < (12, 2) or oh >= ih:
        return False
    if _PILLOW < (13, 0):
        return ih > 100 * iw
    return ih - oh > 2 * (iw - ow)


# --- batches ---------------------------------------------------------------------------------------------


def to_batch(inputs: Any, preprocess: Preprocess, size: tuple[int, int], *, first: int = 0) -> tuple[Pixels, bool]:
    """All that ``Model.run`` takes as raw pixels -> (uint8 (n, h, w, 3), whether ``inputs`` had a batch axis).

    ``inputs`` is one picture (see :func:`decode`), a uint8 array (n, h, w, 3), or a list or tuple of pictures, which
    may differ in kind and size. An array (n, h, w, 1) or (n, h, w, 4) is grey or has alpha, as in :func:`decode`. No
    pictures at all make a batch of n = 0. The result may share memory with an array that was given.

    Raises what :func:`decode` and :func:`prepare` raise; for a list the message begins with the item's number,
    counted from ``first``.
    """
    h, w = values.check_size(size)
    if isinstance(inputs, np.ndarray) and inputs.ndim == 4:
        return _array_batch(values.plain(inputs), preprocess, (h, w)), True
    if not isinstance(inputs, (list, tuple)):
        if not is_picture(inputs):
            raise TypeError(f"expected {EXPECTED}, or several of them in a list or array, got {describe(inputs)}")
        return prepare(decode(inputs), preprocess, (h, w))[np.newaxis], False
    out = np.empty((len(inputs), h, w, 3), np.uint8)
    for i, item in enumerate(inputs):
        try:
            out[i] = prepare(decode(item), preprocess, (h, w))
        except (TypeError, ValueError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"item {first + i} of the {type(inputs).__name__}: {error}") from error
    return out, True


def _array_batch(batch: npt.NDArray[Any], preprocess: Preprocess, size: tuple[int, int]) -> Pixels:
    check_array(batch)
    if batch.shape[1:3] == size:
        return _rgb(batch)
    out = np.empty((len(batch), *size, 3), np.uint8)
    for i, picture in enumerate(batch):
        out[i] = prepare(_rgb(picture), preprocess, size)
    return out
