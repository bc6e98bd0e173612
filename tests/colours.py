"""A detector whose answers are known: it sees colours."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmobilenet import Graph
from fastmobilenet.detection_head import DetectionHead
from fastmobilenet.graph import GraphBuilder
from fastmobilenet.preprocess import Preprocess

SIDE = 64


def make_detector(layout: str = "NHWC", **head: Any) -> Graph:
    """A detector that sees colours: of each pixel of its two maps, of 8x8 and 4x4 pixels, the scores of the classes 1
    to 3 are the red, green and blue there; the boxes are the anchors, two a pixel: the area of that pixel, and one half
    as large."""
    b = GraphBuilder()
    x = b.add("input")
    maps, scores, boxes = [], [], []
    for k, size in enumerate((8, 4)):
        x_k = b.add("adaptive_avg_pool2d", x, size=(size, size))
        # [anchor][background, r, g, b]; the second anchor scores half of the first
        weight = np.zeros((8, 1, 1, 3), np.float32)
        for c in range(3):
            weight[1 + c, 0, 0, c], weight[5 + c, 0, 0, c] = 1 - 0.25 * k, 0.5
        window = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}
        scores.append(b.add("conv2d", x_k, params={"weight": weight}, name=f"classes_{k}", **window))
        nothing = {"weight": np.zeros((8, 1, 1, 3), np.float32)}
        boxes.append(b.add("conv2d", x_k, params=nothing, name=f"boxes_{k}", **window))
        y, x_ = np.divmod(np.arange(size * size), size)
        centre = np.stack([x_ + 0.5, y + 0.5], axis=1) / size
        pair = [np.concatenate([centre, np.full((len(centre), 2), s / size)], axis=1) for s in (1.0, 0.5)]
        maps.append(np.stack(pair, axis=1).reshape(-1, 4))
    anchor = np.concatenate(maps).astype(np.float32)
    options: dict[str, Any] = {"scores": "plain", "iou_threshold": 0.2, "score_threshold": 0.1}
    made = DetectionHead(anchor, 4, (1.0, 1.0), **options | head)
    output = b.add("detection", *boxes, *scores, name="detection", **made.attributes())
    return b.build(
        output,
        input_size=(SIDE, SIDE),
        input_layout=layout,
        preprocess=Preprocess(resize="stretch", mean=(0, 0, 0), std=(255, 255, 255)),
        name="colours",
    )


def spots(h: int, w: int, *where: tuple[int, int, int]) -> np.ndarray:
    """Black, uint8 (h, w, 3), but for some eighths of height and width: (row, column, channel)."""
    picture = np.zeros((h, w, 3), np.uint8)
    for row, column, channel in where:
        picture[row * h // 8 : (row + 1) * h // 8, column * w // 8 : (column + 1) * w // 8, channel] = 255
    return picture
