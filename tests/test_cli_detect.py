"""``fastmobilenet detect``, and what the other commands say of detectors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Detection, drawing, fmn
from fastmobilenet.cli import main

from .colours import make_detector, spots
from .detectors import torchvision_detector
from .samples import pixels
from .tflite_detectors import Detector


@pytest.fixture
def model(tmp_path: Path) -> str:
    file = tmp_path / "colours.fmn"
    fmn.save(make_detector().replace(labels=("none", "red", "green", "blue")), file)
    return str(file)


def picture(folder: Path, name: str, *where: tuple[int, int, int]) -> str:
    file = folder / name
    Image.fromarray(spots(160, 320, *where)).save(file)
    return str(file)


def test_one_picture(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = picture(tmp_path, "a.png", (1, 2, 0), (7, 0, 2))
    assert main(["detect", file, "--model", model, "--score", "0.9"]) == 0
    rows = sorted(line.split() for line in capsys.readouterr().out.splitlines())
    assert [(row[0], *row[2:]) for row in rows] == [
        ("blue", "%", "0.0", "140.0", "40.0", "160.0"),
        ("red", "%", "80.0", "20.0", "120.0", "40.0"),
    ]
    assert all(90 <= float(row[1]) <= 100 for row in rows)  # resized, a spot is a little paler
    assert main(["detect", file, "--model", model, "--score", "0.9", "--top", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["detect", picture(tmp_path, "b.png"), "--model", model]) == 0
    assert capsys.readouterr().out == "nothing\n"


def test_json_and_pictures_that_cannot_be_read(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, bad = picture(tmp_path, "a.png", (1, 2, 0)), tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    assert main(["detect", str(bad), file, "--model", model, "--score", "0.9", "--json"]) == 1
    captured = capsys.readouterr()
    first, second = map(json.loads, captured.out.splitlines())
    assert first["image"] == str(bad)
    assert "not a picture" in first["error"]
    (found,) = second["detections"]
    assert (found["label"], found["index"]) == ("red", 1)
    np.testing.assert_allclose(found["box"], (80, 20, 120, 40), atol=1e-3)
    assert "bad.png" in captured.err
    assert "1 of 2 failed" in captured.err


def test_out(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A frame of the colour of the class, on the pixels of the box."""
    file, out = picture(tmp_path, "a.png", (4, 4, 0)), tmp_path / "drawn.png"
    assert main(["detect", file, "--model", model, "--score", "0.9", "--out", str(out)]) == 0
    drawn, before = np.asarray(Image.open(out)), np.asarray(Image.open(file))
    assert drawn.shape == before.shape
    colour = drawing.colour_of(1)
    for y, x in ((80, 160), (99, 199), (80, 199), (99, 160)):
        assert tuple(drawn[y, x]) == colour
    changed = (drawn != before).any(axis=2)
    assert changed[80:100, 160:200].sum() == 2 * (40 + 18)  # a line of one pixel all around
    assert not changed[101:].any()
    assert changed[50:80, 160:].any()  # the text above it
    assert main(["detect", file, "--model", model, "--out", str(tmp_path / "drawn.jpg")]) == 0
    assert Image.open(tmp_path / "drawn.jpg").format == "JPEG"


def test_out_of_several(model: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    two.mkdir()
    files = [picture(one, "a.png", (1, 1, 0)), picture(one, "b.png"), picture(two, "a.png", (2, 2, 1))]
    out = tmp_path / "drawn"
    assert main(["detect", *files, "--model", model, "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.png", "a_2.png", "b.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(out / "b.png")), np.asarray(Image.open(files[1])))
    assert main(["detect", files[0], "--model", model, "--out", str(out)]) == 0  # a folder that is there


def test_a_failed_write_leaves_what_was_there(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = picture(tmp_path, "a.png", (1, 1, 0)), tmp_path / "out.xyz"
    out.write_text("before")
    assert main(["detect", file, "--model", model, "--out", str(out)]) == 1
    assert "Pillow writes no pictures with .xyz" in capsys.readouterr().err
    assert out.read_text() == "before"
    missing = tmp_path / "nowhere" / "out.png"
    assert main(["detect", file, "--model", model, "--out", str(missing)]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_wrong_models(model: str, model_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = picture(tmp_path, "a.png")
    assert main(["detect", file, "--model", model_file]) == 1
    assert "is no detector" in capsys.readouterr().err
    assert main(["detect", file, "--model", "ssd_mobilenet_v2"]) == 1
    assert "is an architecture, and detect needs trained weights" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["detect", file, "--model", model, "--score", "2"])
    assert "expected a number from 0 to 1" in capsys.readouterr().err


def test_classify_refuses_a_detector(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", picture(tmp_path, "a.png"), "--model", model]) == 1
    assert 'is a detector: it gives pictures no class; use "fastmobilenet detect"' in capsys.readouterr().err
    assert main(["classify", str(tmp_path), "--model", model, "--out", str(tmp_path / "rows.csv")]) == 1
    assert 'use "fastmobilenet detect"' in capsys.readouterr().err
    assert not (tmp_path / "rows.csv").exists()


def test_info(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", model]) == 0
    shown = capsys.readouterr().out
    assert "160 anchors, 3 classes, score from 0.1, overlap up to 0.2 class by class, at most 100 boxes" in shown
    assert main(["info", model, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["output"] == [160, 1, 8]
    assert facts["detection"]["anchors"] == 160
    assert facts["detection"]["columns"] == [4, 4]
    assert facts["labels"] == 4
    assert main(["info", "ssdlite320_mobilenet_v3_large", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["parameters"] == 3_440_060
    assert facts["detection"]["iou_threshold"] == 0.55


def test_verify_and_profile(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = picture(tmp_path, "a.png", (1, 2, 0))
    assert main(["verify", model, file]) == 0
    assert "against" in capsys.readouterr().out
    assert main(["profile", file, "--model", model, "--runs", "2"]) == 0
    assert "rows_f32" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_verify_against_litert(dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers that come before boxes."""
    pytest.importorskip("ai_edge_litert.interpreter")
    file = tmp_path / "detector.tflite"
    file.write_bytes(Detector(dtype).finish())
    assert main(["verify", str(file), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["against"].startswith("LiteRT")
    # verify reads quantised files dequantised, and LiteRT rounds every layer
    assert max(one["difference"] for one in report["pictures"]) < (1e-4 if dtype == "float32" else 0.1)


def test_verify_against_torch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    file = tmp_path / "detector.pth"
    torch.save(torchvision_detector(classes=4).state_dict(), file)
    options = ["--arch", "ssdlite320_mobilenet_v3_large", "--json"]
    assert main(["verify", str(file), picture(tmp_path, "a.png", (1, 2, 0)), *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "torchvision's ssdlite320_mobilenet_v3_large" in report["against"]
    assert report["ok"]


# --- drawing ----------------------------------------------------------------------------------------------


def test_drawing_of_odd_boxes_and_names() -> None:
    """At the edges, without area, of the whole picture; names of any letters; a picture of one pixel."""
    boxes = [(0.0, 0.0, 1.0, 1.0), (5.0, 5.0, 5.0, 5.0), (0.0, 0.0, 64.0, 48.0), (60.5, 40.2, 64.0, 48.0)]
    labels = ["猫", "two\nlines", "\u200b", "a very long name that has no room in a picture of this width"]
    found = [Detection(label, i, 0.5, box) for i, (label, box) in enumerate(zip(labels, boxes, strict=True))]
    for shape in ((48, 64, 3), (1, 1, 3)):
        picture = pixels(*shape)
        before = picture.copy()
        drawn = drawing.draw(picture, found)
        assert drawn.size == (shape[1], shape[0])
        np.testing.assert_array_equal(picture, before)
    assert len({drawing.colour_of(i) for i in range(91)}) == 91
