"""Writes detectors as .tflite files, with random weights and the operator that makes boxes, and runs them in LiteRT."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from .tflite_files import NONE, RELU6, SAME, TfliteWriter, i8, i32

POSTPROCESS = "TFLite_Detection_PostProcess"
#: (height and width, anchors a pixel) of the maps.
MAPS = ((8, 3), (4, 6), (1, 6))
OPTIONS: dict[str, Any] = {
    "max_detections": 20,
    "max_classes_per_detection": 1,
    "detections_per_class": 100,
    "use_regular_nms": True,
    "nms_score_threshold": 1e-8,
    "nms_iou_threshold": 0.6,
    "num_classes": 7,
    "y_scale": 10.0,
    "x_scale": 10.0,
    "h_scale": 5.0,
    "w_scale": 5.0,
}


def flexbuffer(values: Mapping[str, Any], width: int = 8) -> bytes:
    """A FlexBuffer of one map of numbers, ``width`` bytes each (4 or 8)."""
    out, places = b"", []
    keys = sorted(values)
    for key in keys:
        places.append(len(out))
        out += key.encode() + b"\0"
    out += bytes(-len(out) % width)
    unsigned, signed, real = {4: ("<I", "<i", "<f"), 8: ("<Q", "<q", "<d")}[width]
    log = {4: 2, 8: 3}[width]
    out += struct.pack(unsigned, len(keys))
    at_keys = len(out)
    for place in places:
        out += struct.pack(unsigned, len(out) - place)
    out += struct.pack(unsigned, len(out) - at_keys) + struct.pack(unsigned, width) + struct.pack(unsigned, len(keys))
    at = len(out)
    types = b""
    for key in keys:
        value = values[key]
        kind, code = (26, unsigned) if isinstance(value, bool) else (1, signed) if isinstance(value, int) else (3, real)
        out += struct.pack(code, value)
        types += bytes([kind << 2 | log])
    out += types
    return out + bytes([len(out) - at, 9 << 2 | log, 1])


class Detector:
    """A convolution, a smaller one, the mean of that; on these three maps heads for boxes and for classes.

    ``dtype``: "float32", "uint8" or "int8". ``columns``: of the scores, with the background or without. ``own_scales``:
    every map of a head has a scale of its own, which the concatenation evens out (uint8 only). ``float_end``: boxes and
    scores are dequantised before the operator. ``logistic``: where it stands, "before" the rows, or "behind" them.
    """

    def __init__(
        self,
        dtype: str = "float32",
        *,
        columns: int = 8,
        seed: int = 0,
        own_scales: bool = False,
        float_end: bool = False,
        logistic: str = "behind",
        ties: bool = False,
        one_map: bool = False,
    ) -> None:
        self.dtype, self.columns = dtype, columns
        self.rng = np.random.default_rng(seed)
        self.t = TfliteWriter()
        self.own_scales, self.logistic = own_scales, logistic
        zero = {"uint8": 128, "int8": 0}.get(dtype, 0)
        self.input = self._tensor("image", (1, 32, 32, 3), 1 / 128, zero)
        a = self._conv(self.input, 12, 3, stride=4, activation=RELU6)
        b = self._conv(a, 20, 3, stride=2, activation=RELU6)
        c = self._tensor("mean", (1, 1, 1, 20), 6 / 255, zero - 128 if dtype == "int8" else 0)
        self.t.mean(b, c, keep=True)
        maps = MAPS[:1] if one_map else MAPS
        self.count = sum(size * size * each for size, each in maps)
        self.boxes = self._rows("boxes", (a, b, c), maps, 4)
        self.scores = self._rows("scores", (a, b, c), maps, columns)
        if float_end:
            self.boxes, self.scores = self._dequantize(self.boxes), self._dequantize(self.scores)
        anchors = self.rng.uniform(0, 1, (self.count, 4)).astype(np.float32)
        anchors[:, 2:] = anchors[:, 2:] * 0.4 + 0.1
        if ties:
            anchors[1::2] = anchors[::2][: self.count // 2]
        self.anchors = anchors
        self._ties = ties

    def _meaning(self, scale: float, zero: int) -> dict[str, Any]:
        return {} if self.dtype == "float32" else {"scale": scale, "zero_point": zero}

    def _tensor(self, name: str, shape: Sequence[int], scale: float, zero: int) -> int:
        self.scale = getattr(self, "scale", {})
        made = self.t.tensor(name, shape, self.dtype, **self._meaning(scale, zero))
        self.scale[made] = (scale, zero)
        return made

    def _conv(self, x: int, channels: int, kernel: int, *, stride: int = 1, activation: int = NONE, **out: Any) -> int:
        _, h, w, c = self.t.tensors[x][0]
        weight = self.rng.normal(0, 1, (channels, kernel, kernel, c)).astype(np.float32)
        weight *= out.pop("gain", 1.5) / (kernel * kernel * c) ** 0.5
        bias = self.rng.normal(0, 0.3, channels).astype(np.float32)
        shape = (1, -(-h // stride), -(-w // stride), channels)
        low = {"uint8": 0, "int8": -128}.get(self.dtype, 0)
        scale, zero = (6 / 255, low) if activation == RELU6 else (out.get("scale", 0.05), 128 + low)
        y = self._tensor(out.get("name", f"conv_{x}"), shape, scale, zero)
        if self.dtype == "float32":
            w_, b_ = self.t.constant("w", weight), self.t.constant("b", bias)
        else:
            step = np.abs(weight).max() / 127
            offset = 128 if self.dtype == "uint8" else 0
            codes = (np.round(weight / step) + offset).astype(self.dtype)
            w_ = self.t.constant("w", codes, scale=step, zero_point=offset)
            unit = step * self.scale[x][0]
            b_ = self.t.constant("b", np.round(bias / unit).astype(np.int32), scale=unit, zero_point=0)
        self.t.conv(x, w_, b_, y, stride=(stride, stride), padding=SAME, activation=activation)
        return y

    def _logistic(self, x: int) -> int:
        low = -128 if self.dtype == "int8" else 0
        y = self._tensor("logistic", self.t.tensors[x][0], 1 / 256, low)
        self.t.op("LOGISTIC", [x], [y])
        return y

    def _dequantize(self, x: int) -> int:
        y = self.t.tensor("real", self.t.tensors[x][0])
        self.t.op("DEQUANTIZE", [x], [y])
        return y

    def _rows(self, name: str, sources: Sequence[int], maps: Sequence[tuple[int, int]], columns: int) -> int:
        """The rows of all maps: (1, rows, columns); those of boxes with an axis of 1 first, as TensorFlow has them."""
        zero = {"uint8": 128, "int8": 0}.get(self.dtype, 0)
        parts = []
        for k, ((size, each), x) in enumerate(zip(maps, sources, strict=False)):
            scale = 0.05 + (0.01 * k if self.own_scales else 0)
            y = self._conv(x, each * columns, 3, name=f"{name}_{k}", scale=scale, gain=2.5)
            if name == "scores" and self.logistic == "before":
                y = self._logistic(y)
                scale, zero = self.scale[y]
            rows = size * size * each
            shape = (1, rows, 1, columns) if name == "boxes" else (1, rows, columns)
            reshaped = self._tensor(f"{name}_{k}/rows", shape, *self.scale[y])
            self.t.reshape(y, reshaped, shape)
            parts.append(reshaped)
        joined = parts[0]
        if len(parts) > 1:
            last = self.t.tensors[parts[0]][0]
            shape = (1, self.count, *last[2:])
            joined = self._tensor(name, shape, scale, zero)
            self.t.op("CONCATENATION", parts, [joined], {0: i32(1), 1: i8(NONE)}, 10)
        if name == "boxes":
            squeezed = self._tensor("boxes/squeezed", (1, self.count, 4), *self.scale[joined])
            self.t.op("SQUEEZE", [joined], [squeezed], {0: np.array([2], np.int32)}, 30)
            return squeezed
        return self._logistic(joined) if self.logistic == "behind" else joined

    def finish(self, options: Mapping[str, Any] = OPTIONS, *, custom: bytes | None = None, width: int = 8) -> bytes:
        """The file. ``custom``: the bytes of the options, instead of those of ``options``."""
        most = int(options.get("max_detections", 1)) * int(options.get("max_classes_per_detection", 1))
        if self.dtype == "float32":
            anchors = self.t.constant("anchors", self.anchors)
        else:
            codes = np.round(self.anchors * 200).astype(np.uint8)
            if self._float_anchors:
                anchors = self.t.constant("anchors", self.anchors)
            else:
                anchors = self.t.constant("anchors", codes, scale=1 / 200, zero_point=0)
        shapes = {"out/boxes": (1, most, 4), "out/classes": (1, most), "out/scores": (1, most), "out/count": (1,)}
        ends = [self.t.tensor(name, shape) for name, shape in shapes.items()]
        data = flexbuffer(options, width) if custom is None else custom
        self.t.op(POSTPROCESS, [self.boxes, self.scores, anchors], ends, flex=data)
        return self.t.finish(self.input, ends)

    @property
    def _float_anchors(self) -> bool:
        return self.t.tensors[self.boxes][1].value == 0  # TYPES["float32"]


def litert(
    data: bytes, x: np.ndarray, *, each: int = 1, builtin: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(boxes (k, 4) as y0, x0, y1, x1, classes (k,), scores (k,)) of one picture (1, 32, 32, 3), of the file's dtype.
    ``each``: classes that every box stands for, which the count leaves out."""
    module: Any = pytest.importorskip("ai_edge_litert.interpreter")
    kinds = module.OpResolverType
    kind = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES if builtin else kinds.AUTO
    interpreter = module.Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    (source,) = interpreter.get_input_details()
    assert x.dtype == source["dtype"]
    interpreter.set_tensor(source["index"], x)
    interpreter.invoke()
    boxes, classes, scores, count = (interpreter.get_tensor(d["index"])[0] for d in interpreter.get_output_details())
    n = int(count) * each
    return boxes[:n], classes[:n].astype(int), scores[:n]
