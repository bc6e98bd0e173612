"""Accuracy: what is counted, the three kinds of data, and ``fastmobilenet evaluate``."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Graph, Model, evaluation, fmn
from fastmobilenet.cli import main
from fastmobilenet.confusion_plot import draw
from fastmobilenet.evaluation import Evaluation, evaluate
from fastmobilenet.labelled import Labelled

from .samples import names

COUNT = 24


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, 32, 32, 3), np.uint8)


@pytest.fixture
def model(make_graph: Callable[..., Graph]) -> Model:
    return Model.from_graph(make_graph(labels=names(10)), threads=1)


@pytest.fixture
def labels() -> list[int]:
    return (np.arange(COUNT) % 7).tolist()


@pytest.fixture
def file(tmp_path: Path, make_graph: Callable[..., Graph]) -> str:
    path = tmp_path / "net.fmn"
    fmn.save(make_graph(labels=names(10)), path)
    return str(path)


def save_folder(folder: Path, pictures: np.ndarray, labels: list[int]) -> Path:
    for i, (pixels, label) in enumerate(zip(pictures, labels, strict=True)):
        path = folder / f"Name_{label}" / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return folder


def expected(model: Model, pictures: np.ndarray, labels: list[int]) -> tuple[int, int, np.ndarray]:
    """Right answers, those in the best five, and the confusion matrix, counted the long way."""
    ranked = [[p.index for p in found] for found in model.classify(pictures, 10)]
    present = sorted(set(labels))
    matrix = np.zeros((len(present), len(present) + 1), np.int64)
    for found, label in zip(ranked, labels, strict=True):
        column = present.index(found[0]) if found[0] in present else len(present)
        matrix[present.index(label), column] += 1
    right = sum(found[0] == label for found, label in zip(ranked, labels, strict=True))
    return right, sum(label in found[:5] for found, label in zip(ranked, labels, strict=True)), matrix


def check(result: Evaluation, model: Model, pictures: np.ndarray, labels: list[int]) -> None:
    right, right5, matrix = expected(model, pictures, labels)
    assert (result.right, result.right5, result.pictures) == (right, right5, len(labels))
    np.testing.assert_array_equal(result.confusion, matrix)
    assert result.top1 == right / len(labels)
    assert result.top5 == right5 / len(labels)
    assert result.pictures_per_second == pytest.approx(len(labels) / result.seconds)


@pytest.mark.parametrize("workers", [1, 3])
def test_counts(model: Model, pictures: np.ndarray, labels: list[int], workers: int) -> None:
    result = evaluate(model, Labelled("here", pictures, labels, None), workers=workers, batch=5)
    check(result, model, pictures, labels)
    assert result.labels == tuple(names(10)[:7])
    rows = result.confusion.sum(axis=1)
    np.testing.assert_array_equal(rows, np.bincount(labels))
    np.testing.assert_allclose(result.recall(), np.diagonal(result.confusion) / rows)


def test_folder_of_class_folders(model: Model, pictures: np.ndarray, labels: list[int], tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "data", pictures, labels)
    (folder / "empty").mkdir()  # no class: there is nothing in it
    (folder / ".git").mkdir()
    data = evaluation.read(folder)
    assert data.names == tuple(f"Name_{i}" for i in range(7))
    order = np.argsort(labels, kind="stable")
    check(evaluate(model, data), model, pictures[order], [labels[i] for i in order])


@pytest.mark.parametrize("numbers", [False, True])
def test_csv(model: Model, pictures: np.ndarray, labels: list[int], tmp_path: Path, numbers: bool) -> None:
    save_folder(tmp_path / "data", pictures, labels)
    lines = ["Path,notes,Label"]
    for i, label in enumerate(labels):
        lines.append(f"data/Name_{label}/{i:03d}.png,,{label if numbers else f'name {label}'}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    check(evaluate(model, evaluation.read(tmp_path / "list.csv")), model, pictures, labels)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("coded", [False, True])
def test_npz(model: Model, pictures: np.ndarray, labels: list[int], tmp_path: Path, coded: bool, named: bool) -> None:
    arrays: dict[str, Any] = {"labels": np.array(labels)}
    if named:  # in another order than the model's
        arrays |= {"names": names(10)[::-1], "labels": 9 - np.array(labels)}
    if coded:
        files = []
        for pixels in pictures:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            files.append(np.frombuffer(buffer.getvalue(), np.uint8))
        arrays |= {"jpeg": np.concatenate(files), "offsets": np.cumsum([0, *map(len, files)])}
    else:
        arrays["images"] = pictures
    np.savez(tmp_path / "data.npz", **arrays)
    check(evaluate(model, evaluation.read(tmp_path / "data.npz")), model, pictures, labels)


def test_a_part_is_from_all_over(pictures: np.ndarray, labels: list[int]) -> None:
    data = Labelled("here", pictures, sorted(labels), None)
    part = data.part(7)
    assert len(part) == 7
    assert len(set(part.labels)) > 4
    assert data.part(COUNT + 1) is data


def test_bad_pictures_are_reported(model: Model, pictures: np.ndarray, labels: list[int], tmp_path: Path) -> None:
    folder = save_folder(tmp_path / "data", pictures, labels)
    (folder / "Name_0" / "zz.jpg").write_text("no picture")
    result = evaluate(model, evaluation.read(folder))
    assert result.pictures == COUNT
    ((image, error),) = result.failed
    assert image.endswith("zz.jpg")
    assert error


def test_equal_scores_and_nan() -> None:
    rank = evaluation._rank
    assert rank(np.float32([1, 3, 3, 0]), 1) == (0, 1)
    assert rank(np.float32([1, 3, 3, 0]), 2) == (1, 1)
    assert rank(np.float32([np.nan, 3, 1]), 0) == (3, 1)
    assert rank(np.float32([np.nan] * 6), 0)[0] == 6


@pytest.mark.parametrize(
    "arrays, complaint",
    [
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "expected labels"),
        ({"labels": np.array([0, 1])}, "expected labels, and images"),
        ({"labels": np.array([0, 1]), "images": np.zeros((2, 4, 4), np.uint8)}, "expected uint8"),
        ({"labels": np.array([0]), "images": np.zeros((2, 4, 4, 3), np.uint8)}, "2 pictures and 1 labels"),
        ({"labels": np.array([0.5]), "images": np.zeros((1, 4, 4, 3), np.uint8)}, "whole numbers"),
        ({"labels": np.array([5]), "images": np.zeros((1, 4, 4, 3), np.uint8), "names": ["a"]}, "has the class 5"),
        ({"labels": np.array([0]), "jpeg": np.zeros(4, np.uint8), "offsets": np.array([0, 9])}, "rising order"),
    ],
)
def test_wrong_npz(arrays: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=complaint):
        evaluation.read(tmp_path / "data.npz")


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("", "has no rows"),
        ("a,b\n1,2\n", "the columns a, b"),
        ("image,label\nx.png,\n", "line 2 has no picture or no class"),
    ],
)
def test_wrong_csv(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        evaluation.read(tmp_path / "list.csv")


def test_wrong_data(tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "empty").mkdir()
    for name, complaint in (
        ("broken.npz", "no .npz file"),
        ("notes.txt", "expected a folder"),
        ("empty", "has no pictures in folders named after their classes"),
    ):
        with pytest.raises(ValueError, match=complaint):
            evaluation.read(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        evaluation.read(tmp_path / "missing.npz")


def test_classes_that_do_not_fit(make_graph: Callable[..., Graph], model: Model, pictures: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"has no class 'cow'; it has 'name 0'"):
        evaluate(model, Labelled("here", pictures[:1], [0], ("cow",)))
    with pytest.raises(ValueError, match="has the class 10, and"):
        evaluate(model, Labelled("here", pictures[:1], [10], None))
    nameless = Model.from_graph(make_graph(), threads=1)
    with pytest.raises(ValueError, match="has no names for its 10 classes"):
        evaluate(nameless, Labelled("here", pictures[:1], [0], ("cow",)))


# --- the command -----------------------------------------------------------------------------------------


def test_command(
    file: str, pictures: np.ndarray, labels: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(save_folder(tmp_path / "data", pictures, labels))
    plot = tmp_path / "plot.png"
    assert main(["evaluate", "--model", file, "--data", folder, "--plot", str(plot)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    right, right5, _ = expected(Model.load(file), pictures, labels)
    assert f"top-1  {100 * right / COUNT:.2f} %  ({right} of {COUNT})" in out
    assert f"top-5  {100 * right5 / COUNT:.2f} %  ({right5} of {COUNT})" in out
    assert "pictures/s" in out
    assert [line.split("  ")[0] for line in out.splitlines()[-7:]] == list(names(10)[:7])
    with Image.open(plot) as page:
        assert page.format == "PNG"

    assert main(["evaluate", "--model", file, "--data", folder, "--json", "--count", "10"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pictures"] == 10
    assert np.sum(found["confusion"]) + np.sum(found["taken_for_other"]) == 10
    assert found["data"] == folder


def test_command_reports_bad_pictures(
    file: str, pictures: np.ndarray, labels: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_folder(tmp_path / "data", pictures, labels)
    bad = folder / "Name_0" / "bad.png"
    bad.write_text("no picture")
    assert main(["evaluate", "--model", file, "--data", str(folder), "--json"]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["failed"][0]["image"] == str(bad)
    assert err.startswith(f"fastmobilenet: {bad}: ")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "options, complaint",
    [
        (["--data", "nothing.npz"], "nothing.npz: No such file"),
        (["--data", ".", "--plot", "x.jpg"], "a name that ends in .png"),
        (["--data", ".", "--model", "alexnet"], "needs trained weights"),
    ],
)
def test_command_errors_in_one_line(
    options: list[str], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *options]) == 1
    err = capsys.readouterr().err
    assert complaint in err
    assert len(err.splitlines()) == 1


# --- the picture of it ------------------------------------------------------------------------------------


def test_plot_colours_cells_by_their_share() -> None:
    blue, red = [33, 102, 172], [178, 24, 43]

    def cells(matrix: list[list[int]], colour: list[int]) -> int:
        found = Evaluation("net", 20, 15, 20, ("a", "b"), np.array(matrix), 1.0, 1)
        return int((np.asarray(draw(found)) == colour).all(axis=2).sum())

    assert cells([[10, 0, 0], [5, 5, 0]], blue) > 1000  # all of a is right
    assert cells([[10, 0, 0], [5, 5, 0]], red) == 0
    assert cells([[0, 10, 0], [5, 5, 0]], red) > 1000  # all of a is taken for b
    assert cells([[0, 10, 0], [5, 5, 0]], blue) == 0


def test_plot_of_many_classes() -> None:
    n = 120
    result = Evaluation("net", n, n, n, tuple(map(str, range(n))), np.eye(n, n + 1, dtype=np.int64), 1.0, 1)
    assert max(draw(result).size) < 1200
