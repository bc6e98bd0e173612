"""Model.detect, and what else a detector does; its Graph in files; anchors; the op itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Detection, Graph, Model, ModelError, anchors, fmn, importers, models, reference
from fastmobilenet.detection import Place
from fastmobilenet.detection_head import DetectionHead
from fastmobilenet.graph import GraphBuilder
from fastmobilenet.lower import Engine
from fastmobilenet.preprocess import Preprocess

from .colours import SIDE, make_detector, spots
from .fmn_files import edit, to_bytes
from .samples import floats, names, pixels


@pytest.fixture(scope="module")
def graph() -> Graph:
    return make_detector()


@pytest.fixture(scope="module")
def model(graph: Graph) -> Model:
    return Model.from_graph(graph, labels=("background", "red", "green", "blue"))


def test_boxes_in_pixels_of_each_picture(model: Model) -> None:
    a, b = spots(64, 64, (1, 2, 0)), spots(160, 320, (7, 0, 2), (0, 5, 1))
    found = model.detect([a, b], 0.9)
    assert found[0] == [Detection("red", 1, 1.0, (16.0, 8.0, 24.0, 16.0))]
    boxes = {d.label: d.box for d in found[1]}
    assert sorted(boxes) == ["blue", "green"]
    np.testing.assert_allclose(boxes["green"], (200, 0, 240, 20), atol=1e-4)
    np.testing.assert_allclose(boxes["blue"], (0, 140, 40, 160), atol=1e-4)
    assert model.detect(a, 0.9) == found[0]
    assert model.detect(b, 0.9) == found[1]


def test_kinds_of_pictures(model: Model, tmp_path: Path) -> None:
    picture = spots(160, 320, (7, 0, 2))
    expected = model.detect(picture, 0.9)
    assert len(expected) == 1
    file = tmp_path / "spot.png"
    Image.fromarray(picture).save(file)
    assert model.detect(file, 0.9) == model.detect(Image.open(file), 0.9) == model.detect(str(file), 0.9) == expected
    assert model.detect((file, picture), 0.9) == [expected, expected]
    assert model.detect(np.stack([picture, picture]), 0.9) == [expected, expected]
    assert model.detect([], 0.9) == []
    grey = model.detect(picture[..., 2], 0.9)  # grey becomes all three
    assert [d.label for d in grey] == ["red", "green", "blue"]


def test_exif_orientation(model: Model, tmp_path: Path) -> None:
    """Boxes are in the picture as it is shown."""
    file = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(spots(160, 320, (0, 0, 0))).save(file, exif=exif)
    (found,) = model.detect(file, 0.9)
    np.testing.assert_allclose(found.box, (140, 0, 160, 40), atol=1e-4)  # at the upper right of 320 x 160


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_float_arrays(layout: str) -> None:
    model = Model.from_graph(make_detector(layout))
    x = spots(SIDE, SIDE, (1, 2, 0))[None].astype(np.float32) / 255
    if layout == "NCHW":
        x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    expected = [Detection("class 1", 1, 1.0, (16.0, 8.0, 24.0, 16.0))]
    assert model.detect(x, 0.9) == [expected]
    assert model.detect(x[0], 0.9) == expected
    assert model.run(x).shape == (1, 160, 8)
    with pytest.raises(ValueError, match="made for arrays of 64x64, not of 64x80"):
        model.detect(np.zeros((64, 80, 3) if layout == "NHWC" else (3, 64, 80), np.float32))


def test_score_and_top(model: Model) -> None:
    picture = spots(64, 64, (1, 2, 0), (4, 4, 1), (6, 1, 2))
    everything = model.detect(picture, 0.0)
    assert all(d.score >= 0.1 for d in everything)  # the threshold of the network
    assert len(model.detect(picture)) == len([d for d in everything if d.score >= 0.5]) >= 3
    assert model.detect(picture, 0.0, top=2) == everything[:2]
    assert model.detect(picture, 1) == [d for d in everything if d.score == 1.0]
    for wrong, error in ((-0.1, ValueError), (1.1, ValueError), (np.nan, ValueError), ("0.5", TypeError)):
        with pytest.raises(error, match="score must be"):
            model.detect(picture, wrong)
    with pytest.raises(ValueError, match="top must be at least 1"):
        model.detect(picture, top=0)


def test_threads_and_batches_change_nothing(graph: Graph) -> None:
    pictures = [pixels(50 + i, 80, 3, seed=i) for i in range(5)]
    one, two = (Model.from_graph(graph, threads=n).detect(pictures, 0.0) for n in (1, 2))
    assert one == two == [Model.from_graph(graph).detect(p, 0.0) for p in pictures]
    assert min(map(len, one)) > 10


def test_errors(model: Model, small_graph: Graph, tmp_path: Path) -> None:
    classifier = Model.from_graph(small_graph)
    with pytest.raises(ValueError, match=r"small is no detector; use classify\(\)"):
        classifier.detect(pixels(32, 32, 3))
    assert classifier.detector is None
    picture = pixels(32, 32, 3)
    for call in (model.classify, model.probabilities):
        with pytest.raises(ValueError, match=r"colours is no classifier: it is a detector; use detect\(\)"):
            call(picture)
    with pytest.raises(ValueError, match="is a detector and has no 'embedding'"):
        model.features(picture)
    with pytest.raises(ValueError, match="is a detector and has no 'embedding'"):
        model.with_head(np.ones((2, 3)))
    with pytest.raises(FileNotFoundError):
        model.detect(tmp_path / "missing.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"^item 1 of the list: .*bad\.png: not a picture"):
        model.detect([picture, tmp_path / "bad.png"])
    with pytest.raises(ValueError, match="colours has 4 classes, but there are 3 labels"):
        Model.from_graph(make_detector(), labels=names(3))


def test_shift_and_labels() -> None:
    """TensorFlow Lite counts classes without the background."""
    picture = spots(64, 64, (1, 2, 2))
    graph = make_detector(shift=1)
    assert Model.from_graph(graph).detect(picture, 0.9)[0].index == 2
    for labels in (("r", "g", "b"), ("???", "r", "g", "b"), ("__background__", "r", "g", "b")):
        assert Model.from_graph(graph, labels=labels).detect(picture, 0.9)[0].label == "b"


def test_agnostic() -> None:
    graph = make_detector(agnostic=True, per_anchor=2)
    picture = spots(64, 64, (1, 2, 2), (1, 2, 0))
    found = Model.from_graph(graph).detect(picture, 0.9)
    assert [(d.index, d.score) for d in found] == [(1, 1.0), (3, 1.0)]
    picture[..., 0] //= 2
    found = Model.from_graph(graph).detect(picture, 0.9)  # the second class of the anchor has half the score
    assert [(d.index, d.score) for d in found] == [(3, 1.0)]


# --- where boxes are --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "preprocess, size, corners",
    [
        (Preprocess(resize="stretch"), (100, 300), ((0, 0), (300, 100))),
        (Preprocess(crop_fraction=1.0), (100, 300), ((100, 0), (200, 100))),
        (Preprocess(crop_fraction=0.5), (128, 128), ((32, 32), (96, 96))),
        (Preprocess(crop_fraction=0.5), (256, 128), ((32, 96), (96, 160))),
        (Preprocess(resize="none"), (100, 70), ((3, 18), (67, 82))),
        (Preprocess(crop_fraction=0.5), (64, 64), ((0, 0), (64, 64))),  # it has the input's size: no crop
    ],
)
def test_resize_and_crop_are_undone(preprocess: Preprocess, size: tuple[int, int], corners: Any) -> None:
    """``corners``: of the part of a picture that the input of 64x64 shows, (x, y)."""
    place = Place.of(size, preprocess, (64, 64))
    box = place.boxes(np.array([[0, 0, 1, 1]], np.float32), (1.0, 1.0), (64, 64))
    np.testing.assert_allclose(box.reshape(2, 2), corners, atol=1e-9)
    inner = place.boxes(np.array([[16, 16, 32, 48]], np.float32), (64.0, 64.0), (64, 64))
    (x0, y0), (x1, y1) = corners
    w, h = x1 - x0, y1 - y0
    np.testing.assert_allclose(inner[0], (x0 + w / 4, y0 + h / 4, x0 + w / 2, y0 + h * 3 / 4))


def test_boxes_end_at_the_edges() -> None:
    place = Place.of((100, 200), Preprocess(resize="stretch"), (64, 64))
    box = place.boxes(np.array([[-1, -0.5, 3, 2]], np.float32), (1.0, 1.0), (64, 64))
    assert box.tolist() == [[0, 0, 200, 100]]


# --- anchors ----------------------------------------------------------------------------------------------


def test_ssd_anchors() -> None:
    """The 1917 of an SSD MobileNet for 300x300, and the first of each map by hand."""
    maps = [(19, 19), (10, 10), (5, 5), (3, 3), (2, 2), (1, 1)]
    boxes = anchors.ssd_anchors(maps, (300, 300))
    assert boxes.shape == (1917, 4)
    assert boxes.dtype == np.float32
    half = 0.5 / 19
    np.testing.assert_allclose(boxes[0], (half, half, 0.1, 0.1), rtol=1e-6)
    np.testing.assert_allclose(boxes[1], (half, half, 0.2 * 2**0.5, 0.2 / 2**0.5), rtol=1e-6)
    np.testing.assert_allclose(boxes[3, :2], (1.5 / 19, half), rtol=1e-6)  # the next pixel is to the right
    np.testing.assert_allclose(boxes[1083 + 5, 2:], [(0.35 * 0.5) ** 0.5] * 2, rtol=1e-6)
    np.testing.assert_allclose(boxes[-1], (0.5, 0.5, 0.95**0.5, 0.95**0.5), rtol=1e-6)
    wide = anchors.ssd_anchors(maps, (300, 600))
    np.testing.assert_allclose(wide[:, 2], boxes[:, 2] / 2, rtol=1e-6)
    np.testing.assert_allclose(wide[:, [0, 1, 3]], boxes[:, [0, 1, 3]])


# --- the registry -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch, rows",
    [
        ("ssd_mobilenet_v1", 1917),
        ("ssdlite_mobilenet_v1", 1917),
        ("ssd_mobilenet_v2", 1917),
        ("ssdlite_mobilenet_v2", 1917),
        ("ssd_mobilenet_v3_large", 2034),
        ("ssdlite_mobilenet_v3_large", 2034),
        ("ssd_mobilenet_v3_small", 2034),
        ("ssdlite_mobilenet_v3_small", 2034),
    ],
)
def test_networks_of_tensorflow(arch: str, rows: int) -> None:
    from fastmobilenet.graph import infer_shapes

    graph = models.build(arch, weights=models.skeleton)
    assert infer_shapes(graph, 1, *graph.input_size)[graph.output] == (1, rows, 1, 95)
    narrow = models.build(arch, weights=models.skeleton, width=0.25, classes=3)
    assert infer_shapes(narrow, 1, *narrow.input_size)[narrow.output] == (1, rows, 1, 7)


def test_maps_that_heads_read() -> None:
    """Of V2 the expansion of block 13 (576 channels, 19x19) and the head (1280, 10x10); then 512, 256, 256, 128."""
    from fastmobilenet.graph import infer_shapes

    graph = models.build("ssdlite_mobilenet_v2", weights=models.skeleton)
    shapes = infer_shapes(graph, 1, *graph.input_size)
    read = [shapes[graph[f"boxes_{i}/depthwise"].inputs[0]][1:] for i in range(6)]
    assert read == [(19, 19, 576), (10, 10, 1280), (5, 5, 512), (3, 3, 256), (2, 2, 256), (1, 1, 128)]
    graph = models.build("ssd_mobilenet_v1", weights=models.skeleton)
    shapes = infer_shapes(graph, 1, *graph.input_size)
    assert shapes[graph["classes_0"].inputs[0]][1:] == (19, 19, 512)
    assert shapes[graph["classes_1"].inputs[0]][1:] == (10, 10, 1024)


def test_narrow_detector_against_the_reference() -> None:
    """A whole network of random weights, through the op's kernel."""
    graph = models.build("ssdlite_mobilenet_v3_small", width=0.25, classes=21, input_size=(96, 128), seed=2)
    x = floats(1, 96, 128, 3)
    expected = reference.execute(graph, x)[graph.output]
    for threads in (1, 2):
        found = Engine(graph).run(np.ascontiguousarray(x.transpose(0, 3, 1, 2)), threads=threads, pixels=False)
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("classes, each", [(1, (1, 1)), (3, (2, 3)), (12, (1, 2)), (20, (3, 1)), (28, (1, 1))])
def test_rows_of_any_width(classes: int, each: tuple[int, int]) -> None:
    """Blocks of 16 channels are cut where the rows need it."""
    rng = np.random.default_rng(8)
    b = GraphBuilder()
    x = b.add("input")
    groups: list[list[str]] = [[], []]
    window = {"stride": (1, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1}
    for k, (size, anchors_) in enumerate(zip(((3, 2), (1, 1)), each, strict=True)):
        y = b.add("adaptive_avg_pool2d", x, size=size)
        for group, columns in zip(groups, (4, classes), strict=True):
            weight = rng.normal(0, 1, (anchors_ * columns, 3, 3, 3)).astype(np.float32)
            group.append(b.add("conv2d", y, params={"weight": weight}, name=f"m{k}", **window))
    rows = 6 * each[0] + each[1]
    head = DetectionHead(np.ones((rows, 4), np.float32), classes, (1.0, 1.0), background=False)
    graph = b.build(b.add("detection", *groups[0], *groups[1], **head.attributes()), input_layout="NHWC")
    x_ = floats(2, 7, 6, 3)
    expected = reference.execute(graph, x_)[graph.output]
    assert expected.shape == (2, rows, 1, 4 + classes)
    for threads in (1, 3):
        found = Engine(graph).run(x_, threads=threads, pixels=False)
        np.testing.assert_allclose(found, expected, atol=1e-5)


# --- files ------------------------------------------------------------------------------------------------


def test_saved_pickled_and_quantised(model: Model, tmp_path: Path) -> None:
    picture = pixels(90, 70, 3)
    expected = model.detect(picture, 0.0)
    file = tmp_path / "detector.fmn"
    model.save(file)
    loaded = Model.load(file)
    assert loaded.labels == model.labels
    np.testing.assert_array_equal(loaded.run(picture), model.run(picture))
    assert loaded.detect(picture, 0.0) == expected
    for one in (pickle.loads(pickle.dumps(model)), pickle.loads(pickle.dumps(loaded))):
        assert one.detect(picture, 0.0) == expected
    again = tmp_path / "again.fmn"
    loaded.save(again)
    assert again.read_bytes() == file.read_bytes()
    spot = spots(64, 64, (1, 2, 0))
    small = model.quantize([spot, *(spots(64, 64, (i, i, i % 3)) for i in range(5))])
    assert [(d.label, d.box) for d in small.detect(spot, 0.9)] == [(d.label, d.box) for d in model.detect(spot, 0.9)]


def test_only_detectors_need_the_newer_format(graph: Graph, small_graph: Graph) -> None:
    assert b'"fastmobilenet":"2"' in fmn.encode(graph)[0]
    assert b'"fastmobilenet":"1"' in fmn.encode(small_graph)[0]


def output(header: dict[str, Any]) -> dict[str, Any]:
    node: dict[str, Any] = header["__metadata__"]["graph"]["nodes"][-1]["attrs"]
    return node


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.update(columns=[4, 5]), "do not fit each other"),
        (lambda a: a.update(columns=[5, 4]), "columns is"),
        (lambda a: a.update(columns=[4, 0]), "columns is"),
        (lambda a: a.pop("anchors"), "needs 'anchors'|belongs to no node"),
        (lambda a: a.update(scale=[0, 1, 1, 1]), "must not be 0"),
        (lambda a: a.update(extent=[1.0]), "extent is"),
        (lambda a: a.update(scores="loud"), "scores is"),
        (lambda a: a.update(order="yx"), "order is"),
        (lambda a: a.update(detections=0), "detections is"),
        (lambda a: a.update(detections=2**40), "detections is"),
        (lambda a: a.update(candidates=-1), "candidates is"),
        (lambda a: a.update(per_anchor=0), "per_anchor is"),
        (lambda a: a.update(iou_threshold={"float": "nan"}), "iou_threshold is"),
        (lambda a: a.update(shift=2), "shift is"),
        (lambda a: a.update(background=False, shift=1), "shift leaves out a class"),
        (lambda a: a.update(more=1), "no attribute"),
    ],
)
def test_damaged_files(graph: Graph, change: Callable[[dict[str, Any]], Any], message: str, tmp_path: Path) -> None:
    file = tmp_path / "damaged.fmn"
    file.write_bytes(edit(to_bytes(graph), lambda header: change(output(header))))
    with pytest.raises(ModelError, match=message):
        importers.load(file)


def test_heads_that_are_none(graph: Graph) -> None:
    node = graph[graph.output]
    wrong = {
        "anchors are float32": node.attrs["anchors"][:-1],
        "expected an array of float32": node.attrs["anchors"].astype(np.float64),
        "not a number": np.full_like(node.attrs["anchors"], np.nan),
    }
    for message, value in wrong.items():
        bad = replace(node, attrs={**node.attrs, "anchors": value})
        with pytest.raises(ModelError, match=message):
            fmn.encode(graph.replace(nodes=(*graph.nodes[:-1], bad)))
