"""Detectors in .tflite files: the boxes, classes and scores of LiteRT's TFLite_Detection_PostProcess."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import Model, ModelError
from fastmobilenet.importers import flexbuffer as flexbuffers
from fastmobilenet.importers import tflite
from fastmobilenet.reference_detection import Found
from fastmobilenet.reference_detection import detect as reference_detect

from .samples import names
from .tflite_detectors import OPTIONS, Detector, flexbuffer, litert
from .tflite_files import NONE, i8, i32

REGULAR: dict[str, Any] = {}
FAST = {"use_regular_nms": False}
SEVERAL = {"use_regular_nms": False, "max_classes_per_detection": 3}


def picture(dtype: str, seed: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (1, 32, 32, 3), and the same as the file takes them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (1, 32, 32, 3)).astype(np.uint8)
    if dtype == "float32":
        return pixels, (pixels / np.float32(127.5) - 1).astype(np.float32)
    return pixels, pixels if dtype == "uint8" else (pixels.astype(np.int16) - 128).astype(np.int8)


def found_by(model: Model, pixels: np.ndarray, score: float = 0.0) -> Found:
    """What the runtime finds, in the file's own units: before boxes become pixels of a picture and end at its edges."""
    assert model._detector is not None
    rows = model._engine.run(pixels, threads=1, pixels=True)
    (found,) = model._detector.find(rows, score, 1)
    return Found(*found)


def assert_like_litert(detector: Detector, options: dict[str, Any], *, exact: bool, width: int = 8) -> Model:
    options = {**OPTIONS, **options}
    data = detector.finish(options, width=width)
    model = Model.from_graph(tflite.load(data, quantized=True))
    head = model.detector
    assert head is not None
    for seed in (5, 6):
        pixels, x = picture(detector.dtype, seed)
        boxes, classes, scores = litert(data, x, each=head.per_anchor)
        ours = found_by(model, pixels)
        assert len(scores) == len(ours.scores) > 10
        if head.per_anchor == 1:
            np.testing.assert_array_equal(ours.labels - head.shift, classes)
        else:  # LiteRT leaves open which of the classes of one anchor that have the same score comes first
            theirs = model.run(pixels)[0][ours.anchors, 4 + head.shift + classes]
            np.testing.assert_allclose(theirs, scores, atol=0 if exact else 2e-6)
        if exact:
            np.testing.assert_array_equal(ours.scores, scores)
        else:
            np.testing.assert_allclose(ours.scores, scores, atol=2e-6)
        np.testing.assert_allclose(ours.boxes[:, [1, 0, 3, 2]], boxes, atol=1e-5)
        reference = reference_detect(head, model.run(pixels)[0])
        np.testing.assert_array_equal(ours.labels, reference.labels)
        np.testing.assert_array_equal(ours.anchors, reference.anchors)
    return model


@pytest.mark.parametrize("columns", [7, 8], ids=["no background", "background"])
@pytest.mark.parametrize("options", [REGULAR, FAST, SEVERAL], ids=["regular", "fast", "several"])
def test_floats(options: dict[str, Any], columns: int) -> None:
    assert_like_litert(Detector(columns=columns), options, exact=False)


@pytest.mark.parametrize("options", [REGULAR, FAST, SEVERAL], ids=["regular", "fast", "several"])
@pytest.mark.parametrize(
    "network",
    [
        {"dtype": "uint8"},
        {"dtype": "uint8", "own_scales": True},
        {"dtype": "uint8", "logistic": "before"},
        {"dtype": "uint8", "float_end": True},
        {"dtype": "int8", "float_end": True},
    ],
    ids=lambda network: "-".join(map(str, network.values())),
)
def test_bytes(network: dict[str, Any], options: dict[str, Any]) -> None:
    """Scores of 1/256 steps have many ties."""
    assert_like_litert(Detector(**network, seed=2), options, exact=True)


@pytest.mark.parametrize(
    "options",
    [
        {"max_detections": 100, "detections_per_class": 3},
        {"max_detections": 40, "nms_iou_threshold": 1.0},
        {"nms_score_threshold": 0.5, "nms_iou_threshold": 0.3},
        {"nms_score_threshold": 0.5, "use_regular_nms": False},
        {"y_scale": 4.0, "x_scale": 3.0, "h_scale": 2.0, "w_scale": 6.0},
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_options(dtype: str, options: dict[str, Any]) -> None:
    assert_like_litert(Detector(dtype, seed=3), options, exact=dtype == "uint8")


def test_equal_boxes_and_one_map() -> None:
    assert_like_litert(Detector("uint8", ties=True, seed=4), REGULAR, exact=True)
    assert_like_litert(Detector("uint8", ties=True, seed=4), FAST, exact=True)
    assert_like_litert(Detector(one_map=True), REGULAR, exact=False)


def test_narrow_options_and_defaults() -> None:
    """Numbers of four bytes; and the two options that a file may leave out."""
    assert_like_litert(Detector(), {"max_detections": 150}, exact=False, width=4)
    options = {key: v for key, v in OPTIONS.items() if key not in ("use_regular_nms", "detections_per_class")}
    graph = tflite.load(Detector().finish(options))
    attrs = graph[graph.output].attrs
    assert attrs["agnostic"]
    assert attrs["detections"] == 20


def test_detect(tmp_path: Path) -> None:
    """In pixels of the picture, within it, with names from a file beside the model; dequantised too."""
    file = tmp_path / "detector.tflite"
    file.write_bytes(Detector("uint8", seed=2).finish())
    (tmp_path / "labels.txt").write_text("\n".join(("???", *names(7))))
    model = Model.load(file)
    assert model.labels == names(7)
    assert model.preprocess.resize == "stretch"
    assert "174" not in repr(model)
    assert f"{8 * 8 * 3 + 4 * 4 * 6 + 6} anchors, 7 classes" in repr(model)
    pixels, _ = picture("uint8")
    found = model.detect(pixels[0], score=0.6)
    raw = found_by(model, pixels, 0.6)
    assert [d.index for d in found] == (raw.labels - 1).tolist()
    assert [d.label for d in found] == [f"name {i - 1}" for i in raw.labels]
    np.testing.assert_allclose([d.box for d in found], raw.boxes.astype(float).clip(0, 1) * 32, atol=1e-5)
    wide = np.repeat(pixels[0], 3, axis=1)
    assert max(d.box[2] for d in model.detect(wide, score=0.0)) > 32
    floats = Model.load(file, precision="fp32")
    assert floats.detector is not None
    assert abs(floats.detect(pixels[0], 0.0)[0].score - found[0].score) < 0.1
    model.save(tmp_path / "saved.fmn")
    assert Model.load(tmp_path / "saved.fmn").detect(pixels[0], 0.6) == found


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 5}, "num_classes is 5, but there are scores of 8"),
        ({"num_classes": 0}, "num_classes is 0; expected a whole number from 1 to 8"),
        ({"max_detections": 0}, "max_detections is 0"),
        ({"max_detections": 2**30}, "max_detections is 1073741824"),
        ({"max_classes_per_detection": -1, "use_regular_nms": False}, "max_classes_per_detection is -1"),
        ({"nms_iou_threshold": 0.0}, "nms_iou_threshold is 0"),
        ({"nms_iou_threshold": float("nan")}, "nms_iou_threshold is nan"),
        ({"nms_score_threshold": float("inf")}, "nms_score_threshold is inf"),
        ({"y_scale": 0.0}, "y_scale is 0"),
    ],
)
def test_options_that_are_none(options: dict[str, Any], message: str) -> None:
    data = Detector().finish({**OPTIONS, "max_detections": 20}, custom=flexbuffer({**OPTIONS, **options}))
    with pytest.raises(ModelError, match=message):
        tflite.load(data, "net.tflite")


@pytest.mark.parametrize("missing", ["num_classes", "max_detections", "nms_iou_threshold", "h_scale"])
def test_missing_options(missing: str) -> None:
    custom = flexbuffer({key: value for key, value in OPTIONS.items() if key != missing})
    with pytest.raises(ModelError, match=f"{missing} is None"):
        tflite.load(Detector().finish(custom=custom))


def test_anchors_that_do_not_fit() -> None:
    detector = Detector()
    detector.anchors = detector.anchors[:-1]
    with pytest.raises(ModelError, match=r"anchors \(293, 4\) and 294 boxes of 4 numbers; expected \(294, 4\)"):
        tflite.load(detector.finish())
    detector = Detector()
    detector.anchors[3, 2] = np.nan
    with pytest.raises(ModelError, match="infinite or not a number"):
        tflite.load(detector.finish())


def test_other_operators_on_rows() -> None:
    detector = Detector()
    wrong = detector.t.tensor("wrong", (1, detector.count, 4))
    detector.t.op("RELU", [detector.boxes], [wrong])
    detector.boxes = wrong
    with pytest.raises(ModelError, match=r"node 'wrong' \(operator \d+, RELU\) reads the rows of a detector"):
        tflite.load(detector.finish())
    detector = Detector()
    with pytest.raises(ModelError, match="must not end in a RESHAPE"):
        tflite.load(detector.t.finish(detector.input, [detector.boxes]))


def test_rows_joined_over_and_over() -> None:
    """A file could double them with every operator."""
    detector = Detector()
    x, count = detector.boxes, detector.count
    for _ in range(20):
        count *= 2
        y = detector.t.tensor("twice", (1, count, 4))
        detector.t.op("CONCATENATION", [x, x], [y], {0: i32(1), 1: i8(NONE)}, 10)
        x = y
    detector.boxes = x
    with pytest.raises(ModelError, match="more than 64 maps"):
        tflite.load(detector.finish())


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_damaged_files(dtype: str) -> None:
    """Bytes changed anywhere, and files cut off: a Graph or a ModelError, and no other error."""
    data = Detector(dtype).finish()
    rng = np.random.default_rng(9)
    refused = 0
    custom = data.find(b"detections_per_class")
    for trial in range(200):
        changed = bytearray(data)
        place = int(rng.integers(custom - 8, custom + 420) if trial % 2 else rng.integers(0, len(data)))
        changed[place] = int(rng.integers(256))
        if trial % 10 == 0:
            del changed[place:]
        try:
            tflite.load(bytes(changed), quantized=trial % 4 < 2)
        except ModelError:
            refused += 1
    assert refused > 25


# --- FlexBuffers ------------------------------------------------------------------------------------------


def test_flexbuffer_numbers() -> None:
    values = {"a": 1, "b": -2.5, "c": True, "d": False, "long_key": 2**31 - 1, "z": -7}
    for width in (4, 8):
        assert flexbuffers.numbers(flexbuffer(values, width)) == values
    assert flexbuffers.numbers(flexbuffer({})) == {}


def test_flexbuffers_of_the_library() -> None:
    """Also narrow numbers, and values that are no numbers, which are left out."""
    library = pytest.importorskip("flatbuffers.flexbuffers")
    builder = library.Builder()
    with builder.Map():
        builder.Int("small", 3)
        builder.Float("half", 0.5)
        builder.Bool("yes", True)
        builder.String("text", "no number")
        builder.UInt("positive", 70_000)
        builder.IndirectInt("far", -5)
        builder.IndirectFloat("far_float", 1.25)
    found = flexbuffers.numbers(bytes(builder.Finish()))
    assert found == {"small": 3, "half": 0.5, "yes": True, "positive": 70_000, "far": -5, "far_float": 1.25}


def test_damaged_flexbuffers() -> None:
    good = flexbuffer(OPTIONS)
    for end in range(len(good)):
        with pytest.raises(ModelError):
            flexbuffers.numbers(good[:end])
    for place in range(len(good)):
        for value in (0, 1, 127, 255):
            changed = bytearray(good)
            changed[place] = value
            try:
                flexbuffers.numbers(bytes(changed))
            except ModelError:
                continue
    with pytest.raises(ModelError, match="claim"):
        flexbuffers.numbers(struct.pack("<QQQ", 0, 8, 2**40) + bytes([0, 9 << 2 | 3, 1]))
