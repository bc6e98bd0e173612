"""What makes boxes of the numbers that a detector computes: the attributes of the op "detection", the last of its
Graph.

The op itself only arranges: its inputs are the maps of the heads for boxes, then as many maps of those for classes, and
its output has a row for each anchor, the four numbers of its box and then its scores, ``columns`` (4, classes). A pixel
of a map has the numbers of its first anchor, then of its second ... (n, h, w, anchors * numbers); anchors go on from
pixel to pixel and from map to map. The output is (n, anchors, 1, 4 + classes). ``reference_detection.py`` says what the
other attributes do with the rows, and csrc/runtime/detection.cpp does it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import ModelError

if TYPE_CHECKING:
    from .graph import Graph, Node, Shape

ORDERS = ("xywh", "yxhw")
SCORES = ("plain", "sigmoid", "softmax")
#: More anchors are in no detector for pictures; it keeps the number of scores in 32 bits.
MAX_ANCHORS = 2**20


@dataclass(frozen=True)
class DetectionHead:
    """How rows become boxes.

    anchors: float32 (n, 4), the centre and the size of each box, (x, y, width, height).
    extent: (height, width) of the network's input in the units of the anchors: its pixels, or (1, 1).
    order: of the four numbers of a row: "xywh", or "yxhw" as in TensorFlow.
    scale: (x, y, width, height); a box is centre + number / scale * size, and size * exp(number / scale).
    limit: the largest number / scale of a size; None for none.
    clip: boxes end where the input does.
    scores: what makes a score of the number of a class: "plain" (nothing), "sigmoid" or "softmax".
    background: class 0 means that there is nothing.
    shift: the first columns of scores that are no classes to those who use the network: what they call class 0 is
        column ``shift``. TensorFlow Lite does not count the background, torchvision does.
    score_threshold: the least score; with ``above`` only higher ones count.
    iou_threshold: a box goes if its overlap with a better one of its class, common area / area of both, is above it.
    candidates: best ones of each class that are looked at; 0 for all.
    per_class: of one class that are kept; 0 for all.
    detections: that are kept in all.
    agnostic: boxes of different classes suppress each other too; an anchor stands for its best class.
    per_anchor: with ``agnostic``, how many classes of a kept anchor are given.
    """

    anchors: np.ndarray
    classes: int
    extent: tuple[float, float]
    order: str = "xywh"
    scale: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    limit: float | None = None
    clip: bool = False
    scores: str = "softmax"
    background: bool = True
    shift: int = 0
    score_threshold: float = 0.01
    above: bool = False
    iou_threshold: float = 0.5
    candidates: int = 0
    per_class: int = 0
    detections: int = 100
    agnostic: bool = False
    per_anchor: int = 1

    def attributes(self) -> dict[str, Any]:
        """Those of the node."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        classes = found.pop("classes")
        return {"columns": (4, classes), **found}

    @classmethod
    def of(cls, node: Node) -> DetectionHead:
        """From the attributes of a node."""
        values = dict(node.attrs)
        columns = values.pop("columns")
        return cls(classes=columns[1], **values)

    @property
    def first_class(self) -> int:
        return 1 if self.background else 0

    @property
    def names(self) -> int:
        """How many names of classes there are."""
        return self.classes - self.shift

    @property
    def least_score(self) -> float:
        """The least score that counts, as a float32."""
        least = np.float32(self.score_threshold)
        return float(np.nextafter(least, np.float32(np.inf)) if self.above else least)

    def describe(self) -> str:
        """One line for repr() and ``fastmobilenet info``."""
        many = "of each anchor's best class" if self.agnostic else "class by class"
        return (
            f"{len(self.anchors)} anchors, {self.classes - self.first_class} classes, score from "
            f"{self.score_threshold:g}, overlap up to {self.iou_threshold:g} {many}, at most "
            f"{self.detections * (self.per_anchor if self.agnostic else 1)} boxes"
        )


def head_of(graph: Graph) -> DetectionHead | None:
    """The head of a detector; None for any other network."""
    node = graph[graph.output]
    return DetectionHead.of(node) if node.op == "detection" else None


def rows_shape(node: Node, xs: list[Shape]) -> Shape:
    """The shape of the op. Raises ModelError where the inputs do not fit each other."""
    columns = node.attrs["columns"]
    half = len(xs) // 2
    rows = 0
    for boxes, scores in zip(xs[:half], xs[half:], strict=False):
        each = boxes[3] // 4
        if len(xs) % 2 or boxes[:3] != scores[:3] or boxes[3] % 4 or scores[3] != each * columns[1]:
            raise ModelError(
                f"node {node.name!r}: maps of boxes {boxes} and of {columns[1]} classes {scores} do not fit each other"
            )
        rows += boxes[1] * boxes[2] * each
    return xs[0][0], rows, 1, sum(columns)


def check_head(node: Node, graph: Graph) -> None:
    """Raises ModelError for a head that is none: the shapes of its maps and the number of its anchors, at the size for
    which the network was made, need to fit."""
    from .graph import infer_shapes

    if node.name != graph.output:
        raise ModelError(f"node {node.name!r}: a detection must be the output")
    try:
        head = DetectionHead.of(node)
    except TypeError as error:
        raise ModelError(f"node {node.name!r}: {error}") from None
    problem = _problem(head, infer_shapes(graph, 1, *graph.input_size)[node.name][1])
    if problem:
        raise ModelError(f"node {node.name!r}: {problem}")


def _problem(head: DetectionHead, rows: int) -> str | None:
    anchors = head.anchors
    if anchors.dtype != np.float32 or anchors.shape != (rows, 4) or not 0 < rows <= MAX_ANCHORS:
        return f"anchors are {anchors.dtype} {anchors.shape}; the maps need float32 {(rows, 4)}"
    if not np.isfinite(anchors).all():
        return "an anchor is infinite or not a number"
    if head.classes <= head.first_class or head.classes * rows >= 2**31:
        return f"{head.classes} classes are too few or too many"
    if not all(v != 0 for v in (*head.scale, *head.extent)):
        return "scale and extent must not be 0"
    if head.shift > head.first_class:
        return "shift leaves out a class"
    return None


#: What with a Mapping of attributes is asked for by graph.OPS.
REQUIRED = ("columns", "anchors", "extent")


def plain_attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that say something to a reader: all but the anchors."""
    return {key: value for key, value in attrs.items() if key != "anchors"}
