"""torchvision's ssdlite320_mobilenet_v3_large: the same numbers, and the same boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Graph, Model, ModelError, importers, models
from fastmobilenet.detection import Detection
from fastmobilenet.importers import state_dict

from .detectors import detect, raw, torchvision_detector
from .samples import assert_close, names, pixels
from .weight_files import safetensors_bytes

ARCH = "ssdlite320_mobilenet_v3_large"
CLASSES = 12


@pytest.fixture(scope="module")
def net() -> Any:
    return torchvision_detector(classes=CLASSES)  # fewer than COCO's: suppression in NumPy takes its time


@pytest.fixture(scope="module")
def graph(net: Any) -> Graph:
    return state_dict.to_graph(net.state_dict(), arch=ARCH)


@pytest.fixture(scope="module")
def model(graph: Graph) -> Model:
    return Model.from_graph(graph)


def smooth_pictures() -> list[np.ndarray]:
    """uint8 (h, w, 3) of several sizes: patches of colour with a little noise."""
    pictures = []
    for i, (h, w) in enumerate(((320, 320), (200, 333), (470, 77))):
        coarse = Image.fromarray(pixels(6, 7, 3, seed=i)).resize((w, h), Image.Resampling.BICUBIC)
        noise = np.random.default_rng(i).normal(0, 6, (h, w, 3))
        pictures.append((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))
    return pictures


def test_raw_outputs(net: Any, model: Model) -> None:
    x = np.random.default_rng(1).uniform(-1, 1, (2, 3, 320, 320)).astype(np.float32)
    boxes, logits = raw(net, x)
    assert np.ptp(logits) > 1
    assert np.ptp(boxes) > 1
    found = model.run(x, outputs=["boxes", "logits", "output"])
    assert_close(found["boxes"], boxes)
    assert_close(found["logits"], logits)
    assert found["output"].shape == (2, 3234, 4 + CLASSES)
    np.testing.assert_array_equal(found["output"], np.concatenate([found["boxes"], found["logits"]], axis=2))
    np.testing.assert_array_equal(model.run(x), found["output"])
    np.testing.assert_array_equal(model.run(x[1]), found["output"][1])


def test_parameters_are_torchvisions() -> None:
    from fastmobilenet.graph import count_parameters

    assert (
        count_parameters(models.build(ARCH, weights=models.skeleton)) == 3_440_060
    )  # what torchvision says of its weights


def matched(found: list[Detection], expected: dict[str, np.ndarray]) -> int:
    """How many of the expected ones are among those found, with their class, score and box; 1e-4 of a score and a
    fiftieth of a pixel are rounding."""
    left = list(found)
    count = 0
    for box, score, label in zip(expected["boxes"], expected["scores"], expected["labels"], strict=True):
        for i, d in enumerate(left):
            near = d.index == label and abs(d.score - score) < 1e-4
            if near and np.abs(np.array(d.box) - box).max() < 0.02:
                del left[i]
                count += 1
                break
    return count


def test_detections_of_pictures(net: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """From pixels to boxes: resize, network, scores, decoding, suppression, and back to the picture."""
    pictures = smooth_pictures()
    expected = detect(net, pictures, monkeypatch)
    found = model.detect(pictures, score=0.0)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs["boxes"]) >= 100
        # Rounding may turn over which of two is the better, where both lie next to a threshold.
        assert matched(ours, theirs) >= 0.99 * len(ours)
        np.testing.assert_allclose([d.score for d in ours], theirs["scores"], atol=1e-4)
        assert [d.score for d in ours] == sorted((d.score for d in ours), reverse=True)


def test_postprocess_of_the_same_numbers(net: Any, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's postprocess_detections on what this engine computes: everything equal, in the same order."""
    import torch
    from torchvision.models.detection.image_list import ImageList
    from torchvision.ops import boxes

    from .detectors import nms

    monkeypatch.setattr(boxes, "nms", nms)
    x = np.stack([p[:320, :320] for p in (np.tile(q, (5, 5, 1)) for q in smooth_pictures()[1:])])
    x = np.ascontiguousarray((x / np.float32(127.5) - 1).transpose(0, 3, 1, 2).astype(np.float32))
    out = model.run(x)
    features = list(net.backbone(torch.from_numpy(x)).values())
    anchors = net.anchor_generator(ImageList(torch.from_numpy(x), [(320, 320)] * len(x)), features)
    heads = {"bbox_regression": torch.from_numpy(out[..., :4]), "cls_logits": torch.from_numpy(out[..., 4:])}
    expected = net.postprocess_detections(heads, anchors, [(320, 320)] * len(x))
    for ours, theirs in zip(model.detect(x, score=0.0), expected, strict=True):
        assert [d.index for d in ours] == theirs["labels"].tolist()
        np.testing.assert_allclose([d.score for d in ours], theirs["scores"], rtol=2e-6, atol=1e-7)
        np.testing.assert_allclose([d.box for d in ours], theirs["boxes"], atol=1e-3)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files(net: Any, graph: Graph, suffix: str, tmp_path: Path) -> None:
    import torch

    file = tmp_path / f"detector{suffix}"
    if suffix == ".pth":
        torch.save(net.state_dict(), file)
    else:
        file.write_bytes(safetensors_bytes({key: value.numpy() for key, value in net.state_dict().items()}))
    loaded = importers.load(file, arch=ARCH)
    for ours, theirs in zip(loaded.nodes, graph.nodes, strict=True):
        assert (ours.name, ours.op, ours.inputs) == (theirs.name, theirs.op, theirs.inputs)
        for key, value in theirs.params.items():
            np.testing.assert_array_equal(ours.params[key], value)
    with pytest.raises(ModelError, match=f"It fits arch='{ARCH}'"):
        importers.load(file)


def test_other_classes_and_the_full_tail() -> None:
    net = torchvision_detector(classes=91, full_tail=True, seed=1)
    with pytest.raises(ModelError, match=f"It fits arch='{ARCH}_full_tail'"):
        state_dict.to_graph(net.state_dict(), arch=ARCH)
    graph = state_dict.to_graph(net.state_dict(), arch=f"{ARCH}_full_tail")
    x = np.random.default_rng(3).uniform(-1, 1, (1, 3, 320, 320)).astype(np.float32)
    labels = ("__background__", *names(90))
    model = Model.from_graph(graph, labels=labels)
    assert_close(model.run(x), np.concatenate(raw(net, x), axis=2))
    assert {d.label for d in model.detect(x[0], score=0.0)} <= set(labels[1:])


def test_anchors_are_those_of_torchvision(net: Any, graph: Graph) -> None:
    """Bit for bit, in the form in which its box coder uses them."""
    import torch
    from torchvision.models.detection.image_list import ImageList

    x = torch.zeros(1, 3, 320, 320)
    corners = net.anchor_generator(ImageList(x, [(320, 320)]), list(net.backbone(x).values()))[0].numpy()
    size = corners[:, 2:] - corners[:, :2]
    centre = corners[:, :2] + np.float32(0.5) * size
    anchors = graph[graph.output].attrs["anchors"]
    np.testing.assert_array_equal(anchors, np.concatenate([centre, size], axis=1))


def test_linear_resize_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    from fastmobilenet import linear

    for h, w, size in ((200, 333, (320, 320)), (1, 1, (5, 4)), (640, 37, (33, 64)), (3, 2, (3, 2)), (7, 900, (6, 1))):
        picture = pixels(h, w, 3)
        x = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype(np.float32))
        theirs = torch.nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
        np.testing.assert_allclose(linear.resize(picture, size), theirs[0].numpy().transpose(1, 2, 0), atol=1e-3)


def test_its_width_is_one() -> None:
    with pytest.raises(ModelError, match=f"arch '{ARCH}' has width 1, not 0.5$"):
        models.build(ARCH, width=0.5)


def test_a_network_of_its_own_from_the_registry() -> None:
    graph = models.build(ARCH, classes=3)
    assert graph.input_size == (320, 320)
    assert Model.from_graph(graph).detector.classes == 3  # type: ignore[union-attr]
