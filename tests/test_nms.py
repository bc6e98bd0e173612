"""Suppression and decoding of boxes: the same as the reference in NumPy, ties and odd boxes included."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmobilenet import _native, reference_detection
from fastmobilenet.detection import native_spec
from fastmobilenet.detection_head import DetectionHead
from fastmobilenet.reference_detection import Found

from .boxes import random_boxes, random_scores, with_oddities

OPTIONS = st.fixed_dictionaries(
    {
        "candidates": st.sampled_from([0, 1, 5, 50]),
        "per_class": st.sampled_from([0, 1, 3, 20]),
        "detections": st.sampled_from([1, 10, 300, 100_000]),
        "agnostic": st.booleans(),
        "per_anchor": st.integers(1, 3),
    }
)


def assert_same(boxes: np.ndarray, scores: np.ndarray, threshold: float, iou: float, **options: Any) -> Found:
    """That both keep the same. Returns it."""
    found = Found(*_native.nms(boxes, scores, threshold, iou, **options))
    expected = reference_detection.suppress(boxes, scores, threshold, iou, **options)
    for ours, theirs, name in zip(found, expected, Found._fields, strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs, err_msg=name)
    return found


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 300),
    classes=st.integers(1, 12),
    clustered=st.booleans(),
    steps=st.sampled_from([None, 1, 4, 255]),
    threshold=st.sampled_from([-1.0, 0.0, 0.3, 0.5, 2.0]),
    iou=st.sampled_from([0.0, 0.3, 0.5, 0.6, 1.0]),
    options=OPTIONS,
)
def test_equals_reference(
    seed: int,
    n: int,
    classes: int,
    clustered: bool,
    steps: int | None,
    threshold: float,
    iou: float,
    options: dict[str, Any],
) -> None:
    rng = np.random.default_rng(seed)
    boxes = with_oddities(rng, random_boxes(rng, n, clustered)) if n else np.empty((0, 4), np.float32)
    scores = random_scores(rng, n, classes, steps)
    scores[rng.random(scores.shape) < 0.03] = np.nan
    assert_same(boxes, scores, threshold, iou, **options)


@pytest.mark.parametrize("steps", [None, 20])
@pytest.mark.parametrize("clustered", [False, True])
def test_ten_thousand_candidates(clustered: bool, steps: int | None) -> None:
    rng = np.random.default_rng(3)
    boxes, scores = random_boxes(rng, 10_000, clustered), random_scores(rng, 10_000, 3, steps)
    for iou, detections in ((0.5, 200), (0.1, 30_000)):  # few of the candidates are looked at, and all of them
        found = assert_same(boxes, scores, 0.0, iou, detections=detections)
        assert len(found.boxes) >= 20


def test_order_of_ties() -> None:
    """Of equal scores the lower class, then the lower box."""
    boxes = np.array([[i, 0, i + 1, 1] for i in range(5)], np.float32)
    found = assert_same(boxes, np.full((5, 3), 0.5, np.float32), 0.5, 0.5, detections=7)
    assert found.labels.tolist() == [0] * 5 + [1] * 2
    assert found.anchors.tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_touching_and_half_covered_boxes() -> None:
    boxes = np.array([[0, 0, 2, 2], [2, 0, 4, 2], [0, 0, 2, 1]], np.float32)  # the last has 0.5 with the first
    scores = np.array([[0.9], [0.8], [0.7]], np.float32)
    assert assert_same(boxes, scores, 0.0, 0.5).anchors.tolist() == [0, 1, 2]
    assert assert_same(boxes, scores, 0.0, 0.49).anchors.tolist() == [0, 1]
    assert assert_same(boxes, scores, 0.75, 0.5).anchors.tolist() == [0, 1]


def test_refuses_wrong_shapes() -> None:
    boxes, scores = np.zeros((3, 4), np.float32), np.zeros((3, 2), np.float32)
    for wrong in ((boxes[:, :3], scores), (boxes, scores[:2]), (boxes[0], scores), (boxes, scores[:, 0])):
        with pytest.raises(ValueError, match="must have the shape"):
            _native.nms(*wrong, 0.0, 0.5)


# --- rows -> boxes ----------------------------------------------------------------------------------------


def random_head(rng: np.random.Generator, n: int, **fields: Any) -> DetectionHead:
    anchors = np.concatenate([rng.uniform(0, 1, (n, 2)), rng.uniform(0.05, 0.5, (n, 2))], axis=1).astype(np.float32)
    return DetectionHead(anchors, fields.pop("classes", 7), fields.pop("extent", (1.0, 1.0)), **fields)


@pytest.mark.parametrize("scores", ["plain", "sigmoid", "softmax"])
@pytest.mark.parametrize("order", ["xywh", "yxhw"])
@pytest.mark.parametrize("limit, clip", [(None, False), (1.5, True)])
def test_rows_to_detections(order: str, scores: str, limit: float | None, clip: bool) -> None:
    rng = np.random.default_rng(4)
    head = random_head(rng, 300, order=order, scores=scores, limit=limit, clip=clip, background=scores == "softmax")
    rows = rng.normal(0, 2, (4, 300, 11)).astype(np.float32)
    rows[0, 0, 2] = 1e6  # its size is infinite, or bounded
    spec = native_spec(head)
    boxes = spec.decode(rows)
    for picture, ours in zip(rows, boxes, strict=True):
        theirs = reference_detection.decode(head, picture[:, :4])
        finite = np.isfinite(theirs)
        np.testing.assert_array_equal(np.isfinite(ours), finite)
        np.testing.assert_allclose(ours[finite], theirs[finite], rtol=2e-6, atol=2e-6)
    for threads in (1, 3):
        for picture, found in zip(rows, spec.run(rows, 0.3, threads), strict=True):
            expected = reference_detection.detect(head, picture, 0.3)
            assert len(expected.boxes) > 10
            np.testing.assert_array_equal(found[2], expected.labels)
            np.testing.assert_array_equal(found[3], expected.anchors)
            np.testing.assert_allclose(found[1], expected.scores, rtol=1e-5)
            np.testing.assert_allclose(found[0], expected.boxes, rtol=1e-5, atol=1e-5)


def test_higher_threshold_leaves_out_the_end() -> None:
    """Scores are computed only where one may reach the threshold: the others must not have mattered."""
    rng = np.random.default_rng(5)
    for scores in ("sigmoid", "softmax"):
        spec = native_spec(random_head(rng, 500, scores=scores, classes=12))
        rows = rng.normal(0, 2, (1, 500, 16)).astype(np.float32)
        everything = spec.run(rows, 1e-6)[0]
        for threshold in np.quantile(everything[1], [0.2, 0.5, 0.9]):
            count = int((everything[1] >= threshold).sum())
            for part, whole in zip(spec.run(rows, threshold)[0], everything, strict=True):
                np.testing.assert_array_equal(part, whole[:count])


def test_nan_rows_are_no_detections() -> None:
    rng = np.random.default_rng(6)
    for scores in ("plain", "sigmoid", "softmax"):
        spec = native_spec(random_head(rng, 20, scores=scores))
        assert len(spec.run(np.full((1, 20, 11), np.nan, np.float32), 0.0)[0][0]) == 0


# --- time -------------------------------------------------------------------------------------------------


@pytest.mark.timing
@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize(
    "options",
    [{"detections": 100, "per_class": 100}, {"detections": 300, "candidates": 300}, {"agnostic": True}],
    ids=["tensorflow", "torchvision", "fast"],
)
def test_time(clustered: bool, options: dict[str, Any]) -> None:
    """1917 anchors and 90 classes, all of whose scores count. ``python -m bench.detection`` shows the times."""
    rng = np.random.default_rng(7)
    boxes, scores = random_boxes(rng, 1917, clustered), random_scores(rng, 1917, 90, None)
    best = np.inf
    for _ in range(20):
        start = time.perf_counter()
        _native.nms(boxes, scores, 1e-8, 0.6, **options)
        best = min(best, time.perf_counter() - start)
    assert best < 2e-3
