"""bench.throughput: the peer's loop prepares pictures as Model does, so that both see the same network input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Model, models

from .samples import pixels


def test_classes_are_those_of_the_peer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures of several shapes, one of them turned by its EXIF data."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    from bench import throughput

    Model.from_graph(models.build("mobilenet_v1", width=0.25, classes=50, input_size=(64, 64))).save(tmp_path / "n.fmn")
    (tmp_path / "photos").mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    for i in range(6):
        picture = Image.fromarray(np.kron(pixels(9, 12 + i, 3, seed=i), np.ones((10, 10, 1), np.uint8)))
        picture.save(tmp_path / "photos" / f"{i}.jpeg", exif=turned if i == 2 else Image.Exif())
    out = tmp_path / "result.json"
    arguments = [str(tmp_path / "photos"), f"{tmp_path / 'n.fmn'}:fp32", "--rounds", "1", "--threads", "1"]
    assert throughput.main([*arguments, "--out", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert row["same_class_as_peer"] == row["pictures"] == 6
    assert all(rate > 0 for rate in row["pictures_per_second"].values())
    assert "same class 6 of 6" in capsys.readouterr().out
