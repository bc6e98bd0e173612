"""Names of classes: given, found beside the model file, and of 1000 or 1001 ImageNet classes (T16)."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import Graph, Model, ModelError, importers

from .samples import names, pixels


def test_labels_as_argument(small_graph: Graph, tmp_path: Path) -> None:
    x = pixels(32, 32, 3)
    best = int(Model.from_graph(small_graph).run(x).argmax())
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeff".encode() + "\r\n".join(names(10)).encode() + b"\r\n\r\n")
    for labels in (names(10), list(names(10)), file, str(file)):
        model = Model.from_graph(small_graph, labels=labels)
        assert model.labels == names(10)
        assert model.classify(x, 1)[0].label == f"name {best}"
    named = small_graph.replace(labels=names(10))
    assert Model.from_graph(named).labels == names(10)
    assert Model.from_graph(named, labels=names(10)[::-1]).labels == names(10)[::-1]
    assert Model.from_graph(named, labels=()).labels is None


def test_labels_that_do_not_fit(small_graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="10 classes, but there are 9 labels"):
        Model.from_graph(small_graph, labels=names(9))
    with pytest.raises(ModelError, match=re.escape("give others with labels=...")):
        Model.from_graph(small_graph.replace(labels=names(11)))
    for content, message in ((b"", "empty"), (b"\xff\xfe\x00", "UTF-8")):
        (tmp_path / "bad.txt").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            Model.from_graph(small_graph, labels=tmp_path / "bad.txt")
    with pytest.raises(FileNotFoundError):
        Model.from_graph(small_graph, labels=tmp_path / "none.txt")
    (tmp_path / "short.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match=r"short\.txt: small has 10 classes, but there are 2 labels"):
        Model.from_graph(small_graph, labels=tmp_path / "short.txt")


@pytest.mark.parametrize(
    "labels, given",
    [
        (set(names(10)), "set"),
        (frozenset(names(10)), "frozenset"),
        (dict.fromkeys(names(10)), "dict"),
        (dict(enumerate(names(10))), "dict"),
        (list(range(10)), "list of int"),
        ([*names(9), None], "list of NoneType and str"),
        ([*names(9), b"name 9"], "list of bytes and str"),
        (b"labels.txt", "bytes of int"),
        (7, "int"),
        (np.arange(10.0), "ndarray of float64"),
    ],
)
def test_labels_that_are_no_list_of_strings(small_graph: Graph, labels: Any, given: str) -> None:
    """A set has the right number and no order: its names would stand for other classes at every start."""
    with pytest.raises(TypeError, match=f"labels must be a list of strings, or the path .*, not {given}$"):
        Model.from_graph(small_graph, labels=labels)


def test_lists_of_labels_of_any_kind(small_graph: Graph) -> None:
    for labels in (list(names(10)), np.array(names(10)), iter(names(10)), dict(enumerate(names(10))).values()):
        kept = Model.from_graph(small_graph, labels=labels).labels
        assert kept == names(10)
        assert {type(name) for name in kept} == {str}


def test_counts_are_written_as_one_says_them(make_graph: Callable[..., Graph]) -> None:
    with pytest.raises(ValueError, match=r"small has 10 classes, but there is 1 label$"):
        Model.from_graph(make_graph(), labels=["one"])
    with pytest.raises(ValueError, match=r"small has 1 class, but there are 2 labels$"):
        Model.from_graph(make_graph(classes=1), labels=names(2))


IMAGENET_1000 = names(1000)
IMAGENET_1001 = ("background", *IMAGENET_1000)


@pytest.mark.parametrize("given", [IMAGENET_1000, IMAGENET_1001])
@pytest.mark.parametrize("classes", [1000, 1001])
def test_background_is_added_or_left_out(
    make_graph: Callable[..., Graph], classes: int, given: tuple[str, ...]
) -> None:
    """T16: class 0 is "background" where there are 1001 classes, and only there."""
    model = Model.from_graph(make_graph(classes=classes), labels=given)
    assert model.labels == (IMAGENET_1001 if classes == 1001 else IMAGENET_1000)
    best = model.classify(pixels(32, 32, 3), 1)[0]
    assert best.label == f"name {best.index - (classes == 1001)}"


def test_other_counts_are_never_shifted(make_graph: Callable[..., Graph]) -> None:
    with pytest.raises(ValueError, match="1000 classes, but there are 1001"):
        Model.from_graph(make_graph(classes=1000), labels=names(1001))
    with pytest.raises(ValueError, match="10 classes, but there are 11"):
        Model.from_graph(make_graph(classes=10), labels=("background", *names(10)))


@pytest.fixture
def file_of_1001_classes(tmp_path: Path, make_graph: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model file, in a folder of its own, for which the importers give a network without labels."""
    graph = make_graph(classes=1001)
    monkeypatch.setattr(importers, "load", lambda path, arch=None, **_: graph)
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "net.tflite").touch()
    return folder / "net.tflite"


def write_labels(folder: Path, name: str, labels: tuple[str, ...]) -> None:
    (folder / name).write_text("\n".join(labels) + "\n", encoding="utf-8")


def test_labels_are_found_beside_the_model(file_of_1001_classes: Path) -> None:
    model_file = file_of_1001_classes
    folder = model_file.parent
    assert Model.load(model_file).labels is None
    write_labels(folder, "coco_labels.txt", names(90))
    (folder / "broken_labels.txt").write_bytes(b"\xff" * 1001)
    (folder / "a_labels_folder.txt").mkdir()
    assert Model.load(model_file).labels is None
    write_labels(folder, "imagenet_labels.txt", IMAGENET_1000)
    assert Model.load(model_file).labels == IMAGENET_1001
    write_labels(folder, "labels.txt", names(1001))
    assert Model.load(model_file).labels == names(1001)  # an equal count goes first
    assert Model.load(model_file, labels=IMAGENET_1001).labels == IMAGENET_1001
    assert Model.load(model_file, labels=()).labels is None
    write_labels(folder, "labels_copy.txt", names(1001))
    assert Model.load(model_file).labels == names(1001)  # two files that agree are no contradiction
    write_labels(folder, "other_labels.txt", names(1001)[::-1])
    assert Model.load(model_file).labels is None  # two that differ are


def test_a_real_file_knows_a_hen(test_data: Path) -> None:
    """T16: the label file beside the model has 1001 names, and the argmax has the right one."""
    model = Model.load(test_data / "models" / "mobilenet_v2_1.0_224_quant.tflite", precision="fp32")
    picture = test_data / "imagenet_samples" / "n01514859_hen.JPEG"
    assert (model.classes, model.labels[0] if model.labels else None) == (1001, "background")
    best = model.classify(picture, top=1)[0]
    assert (best.label, best.index) == ("hen", 9)
    assert 0.25 < best.score <= 1.0
    assert np.isclose(model.probabilities(picture).sum(), 1.0, atol=1e-5)
