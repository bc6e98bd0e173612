"""Draws what a detector has found into the picture."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from .detection import Detection

#: Steps of the hue by this share of the circle keep the colours of neighbouring classes apart.
GOLDEN = (math.sqrt(5) - 1) / 2


def draw(picture: npt.NDArray[np.uint8], detections: Sequence[Detection]) -> Image.Image:
    """The picture, uint8 (h, w, 3), with a frame for each detection and its name and score above it: a new image.

    The surest are drawn last, over the others. Lines and letters grow with the picture.
    """
    image = Image.fromarray(np.ascontiguousarray(picture))
    pen = ImageDraw.Draw(image)
    line = max(1, round(min(image.size) / 200))
    font = _font(max(10, round(min(image.size) / 32)))
    for d in reversed(detections):
        colour = colour_of(d.index)
        x0, y0, x1, y1 = d.box
        right, bottom = (
            max(x0, min(x1, image.width) - 1),
            max(y0, min(y1, image.height) - 1),
        )  # of the last pixel inside
        pen.rectangle((x0, y0, right, bottom), outline=colour, width=line)
        _write(pen, f"{d.label} {100 * d.score:.0f}%", (x0, y0), image.size, font, colour, line)
    return image


def colour_of(index: int) -> tuple[int, int, int]:
    """The colour of a class: bright, and another one than that of its neighbours."""
    r, g, b = colorsys.hsv_to_rgb(index * GOLDEN % 1.0, 0.85, 1.0)
    return round(255 * r), round(255 * g), round(255 * b)


def _write(
    pen: ImageDraw.ImageDraw,
    text: str,
    corner: tuple[float, float],
    size: tuple[int, int],
    font: Any,
    colour: tuple[int, int, int],
    line: int,
) -> None:
    """A line of text on a ground of this colour: on the upper edge of the box, or below it where there is no room."""
    text = " ".join(text.split())
    try:
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    except UnicodeEncodeError:  # Pillow without FreeType has the letters of Latin-1 only
        text = text.encode("ascii", "replace").decode()
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    margin = max(2, line)
    w, h = right - left + 2 * margin, bottom - top + 2 * margin
    x = max(0.0, min(corner[0], size[0] - w))
    y = corner[1] - h if corner[1] >= h else min(corner[1], max(0.0, size[1] - h))
    pen.rectangle((x, y, x + w - 1, y + h - 1), fill=colour)
    dark = 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] < 128
    pen.text((x + margin - left, y + margin - top), text, fill="white" if dark else "black", font=font)


def _font(size: int) -> Any:
    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError, ImportError):  # Pillow 10.0, or one without FreeType, has one size
        return ImageFont.load_default()
