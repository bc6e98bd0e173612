"""The end of a detector in a TFLite file: from the maps of its heads to the operator that makes boxes of them.

A RESHAPE makes rows of a map, one for each anchor, and a CONCATENATION joins those of all maps; a LOGISTIC may come
before or behind it. In the Graph the op "detection" does all of that: until it comes, rows are a list of maps
(:attr:`tflite_translation.Value.rows`), and what is computed of every value is computed of each map.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from ..detection_head import MAX_ANCHORS, DetectionHead
from ..errors import ModelError
from ..graph import SIGMOID, Shape
from . import flexbuffer
from .tflite_schema import Operator
from .tflite_translation import Translation, Value, named_activation, options_of

POSTPROCESS = "CUSTOM 'TFLite_Detection_PostProcess'"

#: Maps of one detector; the SSDs have six.
MAX_MAPS = 64
#: What LiteRT keeps of a class where the options do not say.
PER_CLASS = 100
MAX_BOXES = 2**16


def rows_of_map(operator: Operator, value: Value, shape: Shape, target: tuple[int, ...]) -> Value | None:
    """A map (n, h, w, c) as rows (n, rows, columns) or (n, rows, 1, columns); None where the target is none."""
    n, h, w, c = shape
    if len(target) == 4 and target[2] == 1:
        target = (*target[:2], target[3])
    if len(target) != 3 or target[0] != n or not target[2] or c % target[2] or target[1] * target[2] != h * w * c:
        return None
    if value.pad_operator is not None or value.groups or value.flat:
        return None
    return Value(value.node, rows=((value.node, target[2]),))


def reads_rows(t: Translation, operator: Operator) -> bool:
    return any(index in t.values and t.values[index].rows for index in operator.inputs)


def translate(t: Translation, operator: Operator) -> Value:
    """An operator that reads rows and gives rows."""
    values = [t.values.get(index) for index in operator.inputs]
    first = values[0]
    if operator.kind == "CONCATENATION":
        return _joined(t, operator, values)
    if first is not None and first.rows and operator.kind in ("RESHAPE", "SQUEEZE", "EXPAND_DIMS"):
        target = t.file.tensor(operator.outputs[0]).shape
        if len(target) < 2 or target[-1] != first.rows[0][1] or math.prod(target[1:-1]) != _count(t, first):
            raise ModelError(f"{operator} makes {list(target)} of the rows of a detector; only axes of 1 may change")
        return first
    if first is not None and first.rows and operator.kind in ("QUANTIZE", "DEQUANTIZE"):
        return first
    if first is not None and first.rows and operator.kind == "LOGISTIC":
        tensor = t.file.tensor(operator.outputs[0])
        nodes = [
            t.append(
                "activation", replace(tensor, name=f"{tensor.name}/{i}"), t.declared[node], node, activation=SIGMOID
            )
            for i, (node, _) in enumerate(first.rows)
        ]
        return Value(nodes[0], rows=tuple((node, k) for node, (_, k) in zip(nodes, first.rows, strict=True)))
    raise ModelError(
        f"{operator} reads the rows of a detector; supported there are RESHAPE, CONCATENATION, LOGISTIC, QUANTIZE, "
        "DEQUANTIZE and TFLite_Detection_PostProcess"
    )


def _count(t: Translation, value: Value) -> int:
    """How many rows."""
    return sum(math.prod(t.declared[node][1:]) // columns for node, columns in value.rows)


def _joined(t: Translation, operator: Operator, values: list[Value | None]) -> Value:
    target = t.file.tensor(operator.outputs[0]).shape
    if options_of(operator).int32(0) not in (1, 1 - len(target)) or named_activation(operator, 1) is not None:
        raise ModelError(f"{operator} joins rows of a detector along another axis than 1, or has an activation")
    rows: list[tuple[str, int]] = []
    for index, value in zip(operator.inputs, values, strict=True):
        if value is not None and not value.rows:  # the map of a single row
            value = rows_of_map(operator, value, t.declared[value.node], t.file.tensor(index).shape)
        if value is None:
            raise ModelError(f"{operator} joins rows of a detector with something else")
        rows.extend(value.rows)
    if len({columns for _, columns in rows}) != 1 or len(rows) > MAX_MAPS:
        raise ModelError(f"{operator} joins rows of different widths, or more than {MAX_MAPS} maps")
    return Value(rows[0][0], rows=tuple(rows))


def postprocess(t: Translation, operator: Operator) -> Value:
    """TFLite_Detection_PostProcess (boxes, scores, anchors)."""
    boxes, scores = (_rows(t, operator, k) for k in (0, 1))
    anchors = t.file.constant(t.index(operator, 2))
    if len(boxes.rows) != len(scores.rows):
        raise ModelError(f"{operator}: {len(boxes.rows)} maps of boxes and {len(scores.rows)} of scores")
    count, columns = _count(t, boxes), scores.rows[0][1]
    if anchors.shape != (count, 4) or boxes.rows[0][1] != 4 or count > MAX_ANCHORS:
        width = boxes.rows[0][1]
        raise ModelError(
            f"{operator}: anchors {anchors.shape} and {count} boxes of {width} numbers; expected {(count, 4)}"
        )
    head = make_head(operator, anchors, columns)
    inputs = [t.real(node) for value in (boxes, scores) for node, _ in value.rows]
    tensor = replace(t.file.tensor(operator.outputs[0]), quantization=None)
    n = t.declared[inputs[0]][0]
    node = t.append("detection", tensor, (n, count, 1, 4 + columns), *inputs, **head.attributes())
    return Value(node)


def _rows(t: Translation, operator: Operator, k: int) -> Value:
    index = t.index(operator, k)
    value = t.values.get(index)
    if value is not None and not value.rows:  # of one map
        value = rows_of_map(operator, value, t.declared[value.node], t.file.tensor(index).shape)
    if value is None:
        raise ModelError(f"{operator}: input {k}, {t.file.tensor(index)}, is not made of maps by RESHAPE")
    return value


def make_head(operator: Operator, anchors: np.ndarray, columns: int) -> DetectionHead:
    """From the options. ``anchors``: (n, 4), each (y, x, h, w). Raises ModelError for an option that is none."""
    try:
        given = flexbuffer.numbers(bytes(operator.custom))
    except ModelError as error:
        raise ModelError(f"{operator}: {error}") from None

    def number(key: str, low: float, high: float) -> float:
        value = given.get(key)
        if value is None or not low <= value <= high:  # NaN is not either
            raise ModelError(f"{operator}: {key} is {value}; expected a number from {low:g} to {high:g}")
        return float(np.float32(value))

    def whole(key: str, high: int, default: int | None = None) -> int:
        value = given.get(key, default)
        if value is None or not 1 <= value <= high:
            raise ModelError(f"{operator}: {key} is {value}; expected a whole number from 1 to {high}")
        return int(value)

    classes, detections = whole("num_classes", columns), whole("max_detections", MAX_BOXES)
    if columns - classes > 1:
        raise ModelError(f"{operator}: num_classes is {classes}, but there are scores of {columns}")
    background = columns == classes + 1
    agnostic = not given.get("use_regular_nms", False)
    per_class = min(whole("detections_per_class", MAX_BOXES, PER_CLASS), detections)
    x, y, w, h = (number(f"{axis}_scale", 1e-6, 1e6) for axis in "xywh")
    return DetectionHead(
        np.ascontiguousarray(anchors[:, [1, 0, 3, 2]]),
        columns,
        (1.0, 1.0),
        order="yxhw",
        scale=(x, y, w, h),
        scores="plain",
        background=background,
        shift=int(background),
        score_threshold=number("nms_score_threshold", -1e30, 1e30),
        iou_threshold=number("nms_iou_threshold", 1e-30, 1),
        per_class=0 if agnostic else per_class,
        detections=detections,
        agnostic=agnostic,
        per_anchor=whole("max_classes_per_detection", 2**16) if agnostic else 1,
    )
