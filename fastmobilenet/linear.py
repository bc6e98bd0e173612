"""Plain linear interpolation of pictures, as PyTorch's ``interpolate(mode="bilinear")`` does it: each value between its
four nearest pixels, without antialias. torchvision's detectors resize so. The result is not rounded to bytes, therefore
such pictures go into the network as floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import image, values
from .graph import Graph
from .preprocess import Preprocess


def resize(picture: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """uint8 (H, W, 3) -> float32 (h, w, 3), in units of 0..255, where ``size`` is (h, w)."""
    top, bottom, down = _places(picture.shape[0], size[0])
    left, right, along = _places(picture.shape[1], size[1])
    down, along = down[:, None, None], along[None, :, None]

    def row(y: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        a, b = (picture[y[:, None], x[None, :]].astype(np.float32) for x in (left, right))
        a += along * (b - a)
        return a

    first, second = row(top), row(bottom)
    first += down * (second - first)
    return first


def _places(length: int, wanted: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float32]]:
    """For each of ``wanted`` values of an axis: the pixel before it, the one behind it, and how far it is from the
    first to the second. In float32, as PyTorch computes it."""
    scale = np.float32(length) / np.float32(wanted)
    at = np.maximum((np.arange(wanted, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), np.float32(0))
    before = np.minimum(at.astype(np.intp), length - 1)
    return before, np.minimum(before + 1, length - 1), np.minimum(at - before.astype(np.float32), np.float32(1))


def normalized(picture: npt.NDArray[np.uint8], preprocess: Preprocess, size: tuple[int, int]) -> npt.NDArray[Any]:
    """The input of a network for one picture: float32 (h, w, 3)."""
    pixels = resize(picture, size)
    if preprocess.channels == "bgr":
        pixels = pixels[..., ::-1]
    pixels = pixels - np.array(preprocess.mean, np.float32)
    pixels /= np.array(preprocess.std, np.float32)
    return pixels


def to_batch(
    inputs: Any, graph: Graph, size: tuple[int, int], *, first: int = 0
) -> tuple[npt.NDArray[np.float32], bool]:
    """What :func:`fastmobilenet.image.to_batch` takes -> (the input of the network in its layout, float32, whether
    ``inputs`` had a batch axis). Raises what that does."""
    h, w = values.check_size(size)
    batched = isinstance(inputs, (list, tuple)) or (isinstance(inputs, np.ndarray) and inputs.ndim == 4)
    if isinstance(inputs, np.ndarray) and batched:
        image.check_array(values.plain(inputs))
    pictures = inputs if batched else [inputs]
    out = np.empty((len(pictures), h, w, 3), np.float32)
    for i, picture in enumerate(pictures):
        try:
            out[i] = normalized(image.decode(picture), graph.preprocess, (h, w))
        except (TypeError, ValueError) as error:
            if not batched:
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"item {first + i} of the {type(inputs).__name__}: {error}") from error
    if graph.input_layout == "NCHW":
        out = np.ascontiguousarray(out.transpose(0, 3, 1, 2))
    return out, batched
