"""What a detector does with the rows of its network, in plain NumPy: the definition, and the oracle of the tests.

All of it is float32, as in the frameworks, for a comparison with a threshold may hang on the last bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .detection_head import DetectionHead
from .graph import Node


class Found(NamedTuple):
    """Best first. ``anchors``: the number of each one's row."""

    boxes: np.ndarray  # float32 (k, 4): x0, y0, x1, y1
    scores: np.ndarray  # float32 (k,)
    labels: np.ndarray  # int32 (k,)
    anchors: np.ndarray  # int32 (k,)


def rows(node: Node, *maps: np.ndarray) -> np.ndarray:
    """The op "detection": see detection_head.py."""
    columns, half = node.attrs["columns"], len(maps) // 2
    groups = zip(columns, (maps[:half], maps[half:]), strict=True)
    sides = [np.concatenate([m.reshape(len(m), -1, 1, k) for m in group], axis=1) for k, group in groups]
    return np.concatenate(sides, axis=3)


def decode(head: DetectionHead, deltas: np.ndarray) -> np.ndarray:
    """float32 (n, 4) as the network gives them -> boxes (n, 4), x0, y0, x1, y1."""
    f = np.float32
    d = deltas if head.order == "xywh" else deltas[:, [1, 0, 3, 2]]
    d = d / np.array(head.scale, f)
    a = head.anchors
    centre = d[:, :2] * a[:, 2:] + a[:, :2]
    size = d[:, 2:] if head.limit is None else np.minimum(d[:, 2:], f(head.limit))
    with np.errstate(over="ignore", invalid="ignore"):
        half = f(0.5) * (np.exp(size) * a[:, 2:])
        boxes = np.concatenate([centre - half, centre + half], axis=1)
    if head.clip:
        h, w = head.extent
        boxes = np.clip(boxes, f(0), np.array([w, h, w, h], f))
    return np.asarray(boxes)


def scores(head: DetectionHead, logits: np.ndarray) -> np.ndarray:
    """float32 (n, classes) -> scores."""
    y = logits
    with np.errstate(over="ignore", invalid="ignore"):
        if head.scores == "sigmoid":
            y = np.float32(1) / (np.float32(1) + np.exp(-logits))
        elif head.scores == "softmax":
            y = np.exp(logits - logits.max(axis=1, keepdims=True))
            y = y / y.sum(axis=1, keepdims=True)
    return y


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Common area / area of both, float32 (n,); 0 where there is no common area."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        areas = np.maximum(others[:, 2] - others[:, 0], 0) * np.maximum(others[:, 3] - others[:, 1], 0)
        area = np.maximum(box[2] - box[0], np.float32(0)) * np.maximum(box[3] - box[1], np.float32(0))
        w = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
        h = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
        common = w * h
        return np.where((w > 0) & (h > 0), common / (area + areas - common), np.float32(0))


def suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    iou_threshold: float,
    *,
    first: int = 0,
    candidates: int = 0,
    per_class: int = 0,
    detections: int = 100,
    agnostic: bool = False,
    per_anchor: int = 1,
) -> Found:
    """Non-maximum suppression of boxes (n, 4) with scores (n, classes).

    Class by class, from the best score down, boxes of equal scores in their order: a box is kept unless it overlaps one
    that was kept by more than ``iou_threshold``. Then the best ``detections`` of all classes: of equal scores the
    lower class, then the lower box. Scores below ``threshold`` and NaN do not count, nor boxes with a coordinate that
    is NaN or infinite. A box without area overlaps nothing. The other arguments are the fields of DetectionHead;
    classes below ``first`` are left out.
    """
    finite = np.isfinite(boxes).all(axis=1)
    ranked = np.where(np.isnan(scores), -np.inf, scores)[:, first:]
    if agnostic:
        order = np.argsort(-ranked, axis=1, kind="stable")[:, :per_anchor] + first
        best = np.take_along_axis(scores, order[:, :1], axis=1)[:, 0]
        kept = _of_class(boxes, best, finite, threshold, iou_threshold, candidates, per_class)
        anchors = np.repeat(kept[:detections], order.shape[1])
        labels = order[kept[:detections]].reshape(-1)
        return _found(boxes, scores, labels, anchors)
    classes = range(first, scores.shape[1])
    each = [_of_class(boxes, scores[:, c], finite, threshold, iou_threshold, candidates, per_class) for c in classes]
    anchors = np.concatenate(each)
    labels = np.repeat(list(classes), [len(kept) for kept in each])
    order = np.argsort(-scores[anchors, labels], kind="stable")[:detections]  # stable: classes stay in order
    return _found(boxes, scores, labels[order], anchors[order])


def _of_class(
    boxes: np.ndarray,
    scores: np.ndarray,
    finite: np.ndarray,
    threshold: float,
    iou_threshold: float,
    candidates: int,
    per_class: int,
) -> np.ndarray:
    """The numbers of the boxes of one class that are kept, best first."""
    left = np.flatnonzero(finite & (scores >= np.float32(threshold)))
    left = left[np.argsort(-scores[left], kind="stable")][: candidates or None]
    kept: list[np.intp] = []
    while len(left) and (not per_class or len(kept) < per_class):
        kept.append(left[0])
        # In float64: the threshold is one, and which of two neighbouring float32 is above it is not to be rounded.
        left = left[1:][~(overlaps(boxes[left[0]], boxes[left[1:]]).astype(np.float64) > iou_threshold)]
    return np.array(kept, np.int64)


def _found(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, anchors: np.ndarray) -> Found:
    return Found(boxes[anchors], scores[anchors, labels], labels.astype(np.int32), anchors.astype(np.int32))


def detect(head: DetectionHead, picture: np.ndarray, threshold: float | None = None) -> Found:
    """The rows (n, 4 + classes) of one picture -> what is in it."""
    picture = picture.astype(np.float32)
    return suppress(
        decode(head, picture[:, :4]),
        scores(head, picture[:, 4:]),
        head.least_score if threshold is None else max(threshold, head.least_score),
        head.iou_threshold,
        first=head.first_class,
        candidates=head.candidates,
        per_class=head.per_class,
        detections=head.detections,
        agnostic=head.agnostic,
        per_anchor=head.per_anchor,
    )
