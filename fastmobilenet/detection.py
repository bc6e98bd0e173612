"""Model.detect: from pictures to boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _native
from .detection_head import DetectionHead, head_of
from .lower import Engine
from .preprocess import Preprocess


@dataclass(frozen=True, slots=True)
class Detection:
    """An object that the network sees in a picture.

    ``label`` is the name of its class, or "class 7" where the model has no names; ``index`` is the class as the
    framework that the model comes from counts it; ``score``, 0..1, how sure it is. ``box`` is (x0, y0, x1, y1) in
    pixels of the picture that was given, from its upper left corner, within the picture.
    """

    label: str
    index: int
    score: float
    box: tuple[float, float, float, float]


class Rows(NamedTuple):
    """What was found in one picture, best first, as arrays. Boxes are those of the network, in units of its anchors."""

    boxes: npt.NDArray[np.float32]  # (k, 4), x0, y0, x1, y1
    scores: npt.NDArray[np.float32]  # (k,)
    labels: npt.NDArray[np.int32]  # (k,), columns of scores
    anchors: npt.NDArray[np.int32]  # (k,)


def native_spec(head: DetectionHead) -> _native.DetectionSpec:
    """The head as the runtime takes it."""
    x, y, w, h = head.scale
    return _native.DetectionSpec(
        head.anchors,
        head.classes,
        yx=head.order == "yxhw",
        scale=(x, y, w, h),
        limit=math.inf if head.limit is None else head.limit,
        clip=(head.extent[1], head.extent[0]) if head.clip else None,
        scores=head.scores,
        background=head.background,
        iou_threshold=head.iou_threshold,
        candidates=head.candidates,
        per_class=head.per_class,
        detections=head.detections,
        agnostic=head.agnostic,
        per_anchor=head.per_anchor,
    )


class Detector:
    """The head of a detector, made ready to run."""

    def __init__(self, engine: Engine, head: DetectionHead) -> None:
        self.head = head
        self._engine = engine
        self._spec = native_spec(head)

    @classmethod
    def of(cls, engine: Engine) -> Detector | None:
        """None for a network that is none."""
        head = head_of(engine.skeleton)
        return None if head is None else cls(engine, head)

    def find(self, rows: npt.NDArray[np.float32], score: float, threads: int) -> list[Rows]:
        """Rows (n, anchors, 1, 4 + classes) of the network -> what is in each picture with this score or more."""
        n, count, _, columns = rows.shape
        threshold = max(score, self.head.least_score)
        found = self._spec.run(rows.reshape(n, count, columns), threshold, threads)
        parts = [Rows(*one) for one in found]
        if self.head.agnostic and self.head.per_anchor > 1:  # the best class of each is high enough
            chosen = [part.scores >= np.float32(score) for part in parts]
            arrays = zip(parts, chosen, strict=True)
            parts = [Rows(p.boxes[c], p.scores[c], p.labels[c], p.anchors[c]) for p, c in arrays]
        return parts


def check_score(score: Any) -> float:
    """Raises TypeError and ValueError for what is no least score."""
    if isinstance(score, bool) or not isinstance(score, (int, float, np.integer, np.floating)):
        raise TypeError(f"score must be a number from 0 to 1, not {score!r}")
    if not 0 <= score <= 1:
        raise ValueError(f"score must be 0 to 1, not {score!r}")
    return float(score)


class Detecting:
    """What :class:`fastmobilenet.Model` inherits for detectors."""

    _detector: Detector | None

    @property
    def detector(self) -> DetectionHead | None:
        """How boxes are made of the output of a detector; None for any other network."""
        return None if self._detector is None else self._detector.head

    def detect(self: Any, x: Any, score: float = 0.5, *, top: int | None = None) -> Any:
        """The objects in a picture, the surest first: a list of Detection, for several pictures a list of such lists.

        ``x``: what :meth:`run` takes. Pictures may differ in size; each box is in the pixels of its own picture, as it
        is shown (EXIF orientation applied). Boxes in a float32 array are in pixels of that array.
        ``score``: the least score, 0 to 1. What the network itself leaves out, by a threshold of its own, stays out.
        ``top``: at most so many.

        Of equal scores the lower class comes first, then the lower anchor. Raises what :meth:`run` raises, ValueError
        for a network that is no detector, TypeError and ValueError for a wrong ``score`` or ``top``.
        """
        from . import model as models
        from . import values

        least = check_score(score)
        top = None if top is None else values.check_count("top", top)
        if self._detector is None:
            raise ValueError(f"{self.name} is no detector; use classify() or run()")
        x, size = self._accept(x, None)
        if size != self.input_size:
            h, w = size
            raise ValueError(f"the boxes of {self.name} are made for arrays of {self._size}, not of {h}x{w}")
        batched = isinstance(x, (list, tuple)) or (isinstance(x, np.ndarray) and x.ndim == 4)
        pictures = x if batched else [x] if not isinstance(x, np.ndarray) else x[np.newaxis]
        found: list[list[Detection]] = []
        for first in range(0, len(pictures), models.GROUP):
            group = pictures[first : first + models.GROUP]
            batch, places = _prepare(group, self, first if batched else None)
            pixels = batch.dtype == np.uint8
            rows = self._engine.run(batch, threads=self._threads, pixels=pixels)
            for part, place in zip(self._detector.find(rows, least, self._threads), places, strict=True):
                found.append(self._detections(part, place, top))
        return found if batched else found[0]

    def _detections(self: Any, found: Rows, place: Place, top: int | None) -> list[Detection]:
        names = self.labels
        head = self._detector.head
        boxes = place.boxes(found.boxes[:top], head.extent, self.input_size)
        indices = found.labels - head.shift
        return [
            Detection(f"class {i}" if names is None else names[i], i, score, tuple(box))
            for box, score, i in zip(boxes.tolist(), found.scores.tolist(), indices.tolist(), strict=False)
        ]


class Place(NamedTuple):
    """Where the input of a network lies in a picture of h x w: input pixel p is pixel (p + offset) * step of it."""

    h: int
    w: int
    offset: tuple[int, int]  # (y, x)
    step: tuple[float, float]

    @classmethod
    def of(cls, shape: Sequence[int], preprocess: Preprocess, size: tuple[int, int]) -> Place:
        """Of a picture of the shape (h, w, ...), brought to ``size``: see :func:`fastmobilenet.image.prepare`."""
        from . import image

        (ih, iw), (h, w) = shape[:2], size
        if (ih, iw) == size:
            return cls(ih, iw, (0, 0), (1.0, 1.0))
        oh, ow = image.resized(ih, iw, h, w, preprocess)
        return cls(ih, iw, image.margins(oh, ow, h, w), (ih / oh, iw / ow))

    def boxes(
        self, boxes: npt.NDArray[np.float32], extent: Sequence[float], size: tuple[int, int]
    ) -> npt.NDArray[np.float64]:
        """Boxes (k, 4) in units of the anchors -> in pixels of the picture, float64, cut off at its edges."""
        (h, w), (y, x), (down, along) = size, self.offset, self.step
        scale = np.tile([w / extent[1], h / extent[0]], 2)
        found = (boxes.astype(np.float64) * scale + np.tile([x, y], 2)) * np.tile([along, down], 2)
        return np.asarray(found.clip(0, [self.w, self.h, self.w, self.h]))


def _prepare(group: Any, model: Any, first: int | None) -> tuple[npt.NDArray[Any], list[Place]]:
    """Pictures, or preprocessed arrays -> what the engine takes, and where it lies in each picture. ``first``: number
    of the first one, for messages; None for a single picture."""
    from . import arguments, image, linear  # imported here: Pillow is not needed for float arrays

    size, preprocess = model.input_size, model.preprocess
    if isinstance(group, np.ndarray) and group.dtype != np.uint8:
        batch, _ = arguments.float_batch(group)
        return batch, [Place.of(size, preprocess, size)] * len(batch)
    plain = preprocess.interpolation == "linear"
    batch = np.empty((len(group), *size, 3), np.float32 if plain else np.uint8)
    places = []
    for i, item in enumerate(group):
        try:
            picture = image.decode(item)
            make = linear.normalized if plain else image.prepare
            batch[i] = make(picture, preprocess, size)
        except (TypeError, ValueError) as error:
            if first is None:
                raise
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"item {first + i} of the {type(group).__name__}: {error}") from error
        places.append(Place.of(picture.shape, preprocess, size))
    if plain and model._graph.input_layout == "NCHW":
        batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
    return batch, places
