"""Networks and files for the tests of .fmn: a graph that has every op and every kind of attribute, and files changed by
hand whose checksum is right all the same."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from fastmobilenet import Graph, Preprocess, fmn
from fastmobilenet.detection_head import DetectionHead
from fastmobilenet.graph import HARD_SIGMOID, HARD_SWISH, RELU6, SIGMOID, SWISH, Activation, GraphBuilder
from fastmobilenet.quantization import Quant


def everything(**fields: Any) -> Graph:
    """Every op on floats, every kind of attribute and several dtypes, for pictures of 9x8 with 3 channels."""
    rng = np.random.default_rng(5)

    def floats(*shape: int, dtype: str = "float32") -> np.ndarray:
        return rng.normal(0, 0.5, shape).astype(dtype)

    b = GraphBuilder()
    x = b.add("input", name="image", mean=np.array([0.1, 0.2, 1 / 3]), std=np.array([0.5, 0.25, 1e-3]))
    x = b.add(
        "conv2d", x, name="stem", params={"weight": floats(8, 3, 3, 3), "bias": floats(8)},
        stride=(2, 1), padding="same", dilation=(1, 1), groups=1, activation=RELU6,
    )  # fmt: skip
    norm = {key: np.abs(floats(8)) + 0.1 for key in ("gamma", "beta", "mean", "variance")}
    x = b.add("batch_norm", x, params=norm, epsilon=np.float32(1e-3))
    y = b.add(
        "conv2d", x, name="caf\u00e9/\ud800", params={"weight": floats(8, 3, 2, 1, dtype="float16")},
        stride=(1, 1), padding=(2, 2, 0, 2), dilation=(2, 2), groups=8,
    )  # fmt: skip
    for activation in (HARD_SWISH, Activation("clamp", -1 / 3), Activation("hard_sigmoid", alpha=0.2), SWISH):
        y = b.add("activation", y, activation=activation)
    y = b.add("add", x, y, activation=Activation("clamp", hi=0.7))
    gate = b.add("activation", b.add("global_avg_pool", y), activation=HARD_SIGMOID)
    y = b.add("mul", y, gate, activation=None)
    y = b.add("mul", y, y, activation=SIGMOID)
    a = b.add("max_pool2d", y, kernel=(3, 2), stride=(2, 2), padding=(0, 0, 0, 0), ceil=True)
    c = b.add("avg_pool2d", y, kernel=(3, 2), stride=(2, 2), padding=(1, 0, 0, 0), ceil=False, count_padding=True)
    x = b.add("concat", a, c)
    x = b.add("gather_channels", x, index=tuple(range(15, -1, -1)))
    x = b.add("lrn", x, size=5, alpha=1e-4, beta=0.75, bias=1.0)
    x = b.add("adaptive_avg_pool2d", x, size=(1, 2))
    x = b.add("dense", x, params={"weight": floats(6, 32, dtype="float64"), "bias": floats(6)}, activation=None)
    steps = rng.integers(-127, 128, (4, 6), np.int8)
    x = b.add("dense", x, params={"weight": steps, "bias": np.arange(4, dtype=np.int32)})
    x = b.add("softmax", x, name="softmax")
    defaults: dict[str, Any] = {
        "input_size": (9, 8),
        "input_layout": "NHWC",
        "preprocess": Preprocess(mean=(1 / 3, -1e6, 0.1), std=(1e-6, 57.375, 1e6), channels="bgr", crop_fraction=0.96),
        "labels": ("\u732b", "a\u2028b", "", "\udcff"),
        "name": "every\u00f8thing\udc80",
    }
    return b.build(x, **defaults | fields)


def quantised(**fields: Any) -> Graph:
    """Every op that can make bytes, between a quantize and a dequantize, for pictures of 6x6 with 3 channels."""
    rng = np.random.default_rng(6)

    def layer(*shape: int, dtype: str = "int8", scales: int = 1) -> dict[str, np.ndarray]:
        info = np.iinfo(dtype)
        return {
            "weight": rng.integers(info.min, info.max, shape, dtype),
            "weight_scale": rng.uniform(0.001, 0.01, scales).astype(np.float32),
            "bias": rng.integers(-500, 500, shape[0], np.int32),
        }

    q, r = Quant(0.05, 128), Quant(1 / 3, 0)
    window = {"kernel": (2, 2), "stride": (1, 1), "padding": (0, 0, 0, 0)}
    b = GraphBuilder()
    x = b.add("quantize", b.add("input"), quant=q)
    params = layer(8, 3, 3, 3, scales=8)
    x = b.add("conv2d", x, params=params, stride=(1, 1), padding="same", activation=RELU6, quant=q)
    y = b.add("activation", b.add("quantize", x, quant=r), activation=SIGMOID, quant=q)
    table = rng.permutation(256).astype(np.uint8)
    y = b.add("lookup", y, params={"table": table}, quant=r)
    y = b.add("add", b.add("add", x, y, quant=r), x, quant=r, rounding="floats_s8")
    y = b.add("mul", y, b.add("global_avg_pool", x, rounding="mean_s8", quant=q), quant=q)
    y = b.add("gather_channels", b.add("concat", x, y, quant=r), index=(3, 9, 1), quant=r)
    y = b.add("avg_pool2d", b.add("max_pool2d", y, quant=r, **window), rounding="average_u8", quant=q, **window)
    y = b.add("adaptive_avg_pool2d", y, size=(2, 2), quant=r)
    y = b.add("dense", y, params=layer(5, 12, dtype="uint8"), weight_zero=120, quant=q)
    y = b.add("dequantize", b.add("softmax", y, quant=Quant(1 / 256, 0)))
    return b.build(y, **{"input_size": (6, 6), **fields})


def detector(**fields: Any) -> Graph:
    """The op that ends a detector, with all of its attributes, for pictures of 4x4 with 3 channels."""
    rng = np.random.default_rng(7)
    b = GraphBuilder()
    x = b.add("input")
    window = {"stride": (2, 2), "padding": "same"}
    boxes, scores = (
        b.add("conv2d", x, params={"weight": rng.normal(0, 0.5, (c, 1, 1, 3)).astype(np.float32)}, **window)
        for c in (8, 10)
    )
    head = DetectionHead(
        rng.uniform(0.1, 0.9, (8, 4)).astype(np.float32), 5, (4.0, 4.0), order="yxhw", scale=(1 / 3, 1.0, 2.0, 1e-3),
        limit=4.1, clip=True, scores="sigmoid", background=True, shift=1, score_threshold=0.1, above=True,
        iou_threshold=1 / 3, candidates=6, per_class=5, detections=4, agnostic=True, per_anchor=2,
    )  # fmt: skip
    y = b.add("detection", boxes, scores, **head.attributes())
    return b.build(y, **{"input_size": (4, 4), "labels": ("a", "b", "c", "d"), **fields})


def to_bytes(graph: Graph) -> bytes:
    header, arrays = fmn.encode(graph)
    return header + b"".join(a.tobytes() for a in arrays)


def reseal(data: bytes | bytearray) -> bytes:
    """The same file with a checksum that is right, if it has a place for one."""
    data = bytes(data)
    size = struct.unpack_from("<Q", data)[0] if len(data) >= 8 else len(data)
    if size > len(data) - 8:
        return data
    header, body = data[8 : 8 + size], data[8 + size :]
    found = re.search(rb'"checksum":"([0-9a-f]{64})"', header)
    if found is None:
        return data
    zeros = fmn.NO_CHECKSUM.encode()
    header = header.replace(found[1], zeros, 1)
    return data[:8] + header.replace(zeros, fmn.checksum(header, [memoryview(body)]).encode(), 1) + body


def edit(data: bytes, change: Callable[[dict[str, Any]], object], *, raw: bool = False) -> bytes:
    """The file with its header changed by ``change``, which gets the header as JSON, with the metadata that holds JSON
    itself parsed too (not with ``raw``), and a right checksum."""
    size = struct.unpack_from("<Q", data)[0]
    header = json.loads(data[8 : 8 + size])
    metadata = header["__metadata__"]
    inner = [] if raw else [key for key in ("graph", "preprocess", "labels") if key in metadata]
    for key in inner:
        metadata[key] = json.loads(metadata[key])
    change(header)
    for key in inner:
        if key in metadata:
            metadata[key] = json.dumps(metadata[key], separators=(",", ":"))
    text = json.dumps(header, separators=(",", ":")).encode()
    return reseal(struct.pack("<Q", len(text)) + text + data[8 + size :])
