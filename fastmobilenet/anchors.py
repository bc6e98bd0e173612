"""The boxes that detectors start from: torchvision's default boxes and TensorFlow's anchors, for maps of given sizes.

Each function returns float32 (n, 4), the centre and the size of each box as (x, y, width, height): map after map, pixel
after pixel, and for each pixel its boxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

#: (height, width)
Size = tuple[int, int]


def default_boxes(
    maps: Sequence[Size], image: Size, *, ratios: Sequence[Sequence[float]], least: float, most: float
) -> np.ndarray:
    """Those of torchvision's DefaultBoxGenerator, in pixels of the picture (Liu et al., 2016, section 2.2).

    maps: sizes of the maps. ratios: for each of them the ratios of width and height beside 1; each is used in both
    directions. least, most: size of the boxes of the first and of the last map, as a share of the picture; the maps
    between lie at equal distances. A second square box has the size of the geometric mean with the next map's.

    In float32 and by way of the corners, as torchvision computes them, so that a decoded box has the same bits.
    """
    scales = [least + (most - least) * k / (len(maps) - 1) for k in range(len(maps))] + [1.0]
    extent = np.array([image[1], image[0]], np.float32)
    boxes = []
    for k, (h, w) in enumerate(maps):
        sizes = [(scales[k], scales[k]), (math.sqrt(scales[k] * scales[k + 1]),) * 2]
        for ratio in ratios[k]:
            wide, high = scales[k] * math.sqrt(ratio), scales[k] / math.sqrt(ratio)
            sizes += [(wide, high), (high, wide)]
        size = np.clip(np.array(sizes, np.float32), 0, 1)
        centre = _centres(h, w)[:, None, :]
        first, last = (((centre + sign * np.float32(0.5) * size) * extent).reshape(-1, 2) for sign in (-1, 1))
        lengths = last - first
        boxes.append(np.concatenate([first + np.float32(0.5) * lengths, lengths], axis=1))
    return np.concatenate(boxes)


def ssd_anchors(
    maps: Sequence[Size],
    image: Size,
    *,
    least: float = 0.2,
    most: float = 0.95,
    ratios: Sequence[float] = (1.0, 2.0, 0.5, 3.0, 0.3333),
    fewer_in_first: bool = True,
) -> np.ndarray:
    """Those of the ssd_anchor_generator of TensorFlow's object detection, where the picture is 1 high and 1 wide.

    The scales of the maps go from ``least`` to ``most``. Each pixel has a box for each ratio of width to height, and a
    square one of the geometric mean with the next map's scale. With ``fewer_in_first`` those of the first map have
    three: a square one of scale 0.1, and ratios 2 and 0.5.
    """
    scales = [least + (most - least) * k / (len(maps) - 1) for k in range(len(maps))] + [1.0]
    short = min(image)
    unit = np.array([short / image[1], short / image[0]])
    boxes = []
    for k, (h, w) in enumerate(maps):
        if k == 0 and fewer_in_first:
            shapes = [(0.1, 1.0), (scales[0], 2.0), (scales[0], 0.5)]
        else:
            shapes = [(scales[k], ratio) for ratio in ratios]
            shapes.append((math.sqrt(scales[k] * scales[k + 1]), 1.0))
        size = np.array([(s * math.sqrt(ratio), s / math.sqrt(ratio)) for s, ratio in shapes]) * unit
        centre = np.repeat(_centres(h, w), len(shapes), axis=0)
        boxes.append(np.concatenate([centre, np.tile(size, (h * w, 1))], axis=1))
    return np.concatenate(boxes).astype(np.float32)


def _centres(h: int, w: int) -> np.ndarray:
    """(h * w, 2), x and y of the middle of every pixel of a map that is 1 wide and 1 high."""
    y, x = ((np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(n) for n in (h, w))
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1).reshape(-1, 2)
