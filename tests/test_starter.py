"""The model that comes with the package."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from fastmobilenet import Model, ModelError, evaluation, starter
from fastmobilenet.cli import main

from .conftest import ROOT

PICTURES = ROOT / "examples"


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load(starter.path(), threads=1)


@pytest.mark.parametrize("name", ["bird", "cat", "dog"])
def test_example_pictures(model: Model, name: str) -> None:
    assert model.classify(PICTURES / f"{name}.jpg", top=1)[0].label == name


def test_what_it_is(model: Model) -> None:
    assert model.labels == starter.CLASSES
    assert 64 <= min(model.input_size) <= max(model.input_size) <= 96
    assert os.path.getsize(starter.path()) <= 1_500_000


def test_load_without_a_file_says_what_it_knows(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "_told", False)
    with caplog.at_level(logging.WARNING, "fastmobilenet"):
        first, second = Model.load(), Model.load(None, threads=1)
    assert first.labels == second.labels == starter.CLASSES
    (message,) = caplog.messages  # once a process, in one line
    assert all(name in message for name in starter.CLASSES)
    assert "Model.load(FILE)" in message
    assert "\n" not in message


def test_without_its_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(starter, "_FILE", str(tmp_path / "starter.fmn"))
    with pytest.raises(ModelError, match=r"starter.fmn is missing: install the package again, or name a model file"):
        Model.load()


def test_classify_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(PICTURES / "cat.jpg"), "--top", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.split()[0] == "cat"
    assert len(err.splitlines()) == 1
    assert "ten classes" in err
    assert "--model FILE" in err


def test_arch_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", str(PICTURES / "cat.jpg"), "--arch", "mobilenet_v2"]) == 1
    assert "--arch is for a file" in capsys.readouterr().err


def test_profile_without_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(PICTURES / "cat.jpg"), "--runs", "2"]) == 0
    assert "conv1" in capsys.readouterr().out


def test_accuracy_on_the_test_pictures(model: Model, test_data: Path) -> None:
    file = test_data / "cifar10_test.npz"
    if not file.exists():
        pytest.skip(f"needs {file}")
    result = evaluation.evaluate(model, evaluation.read(file).part(1000), workers=1)
    assert result.top1 >= 0.86  # three standard deviations of 1,000 pictures below what all 10,000 give
    assert result.top5 >= 0.98
    assert np.nanmin(result.recall()) > 0.6
