"""``fastmobilenet classify --out``: a row a picture, resumed without losing or doubling one."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Graph, Model, cli, fmn
from fastmobilenet.cli import results

from .samples import names, pixels


@pytest.fixture
def folder(small_graph: Graph, tmp_path: Path) -> Path:
    """net.fmn, and pictures/ with nine pictures, two with difficult names, and a damaged one."""
    fmn.save(small_graph.replace(labels=names(10)), tmp_path / "net.fmn")
    (tmp_path / "pictures").mkdir()
    for i, name in enumerate(["a,b", 'quote"d', "line\nbreak", *(f"p{i}" for i in range(6))]):
        Image.fromarray(pixels(30 + i, 40, 3, seed=i)).save(tmp_path / "pictures" / f"{name}.png")
    (tmp_path / "pictures" / "damaged.png").write_bytes(b"no picture")
    return tmp_path


def classify(folder: Path, out: str, *options: str) -> int:
    return cli.main([
        "classify", str(folder / "pictures"), "--model", str(folder / "net.fmn"), "--top", "2", "--workers", "2",
        "--out", str(folder / out), *options,
    ])  # fmt: skip


def rows(folder: Path, out: str) -> dict[str, list[str] | None]:
    """Name of the picture -> its labels, or None for an error. Fails where a picture has two rows."""
    found: list[tuple[str, list[str] | None]] = []
    path = folder / out
    if out.endswith(".csv"):
        with open(path, newline="") as file:
            entries = list(csv.DictReader(file))
        found = [(e["image"], None if e["error"] else [e["label_1"], e["label_2"]]) for e in entries]
    elif out.endswith(".jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            labels = [p["label"] for p in entry["predictions"]] if "predictions" in entry else None
            found.append((entry["image"], labels))
    else:
        table = pytest.importorskip("pyarrow.parquet").read_table(path)
        found = [(r["image"], None if r["error"] else r["labels"]) for r in table.to_pylist()]
    assert len(dict(found)) == len(found)
    return {Path(image).name: labels for image, labels in found}


def wanted(folder: Path) -> dict[str, list[str] | None]:
    model = Model.load(folder / "net.fmn")
    return {
        path.name: None if path.name == "damaged.png" else [p.label for p in model.classify(path, top=2)]
        for path in (folder / "pictures").iterdir()
    }


@pytest.fixture(params=["out.csv", "out.jsonl", "out.parquet"])
def out(request: pytest.FixtureRequest) -> str:
    if request.param.endswith("parquet"):
        pytest.importorskip("pyarrow")
    return str(request.param)


def test_all_rows(folder: Path, out: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert classify(folder, out) == 1  # one is damaged
    assert "damaged.png: not a picture" in capsys.readouterr().err
    assert rows(folder, out) == wanted(folder)
    assert classify(folder, out) == 0  # nothing is left to do
    assert "has 10 of 10 pictures already" in capsys.readouterr().err
    assert rows(folder, out) == wanted(folder)
    Image.fromarray(pixels(32, 32, 3)).save(folder / "pictures" / "new.png")
    assert classify(folder, out) == 0
    assert rows(folder, out) == wanted(folder)


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_every_place_where_a_file_may_be_torn(folder: Path, name: str) -> None:
    """The rows that are whole stay, and the one that is not is written again."""
    classify(folder, name)
    whole = (folder / name).read_bytes()
    for end in [*range(0, len(whole), 97), *range(len(whole) - 40, len(whole))]:
        (folder / name).write_bytes(whole[:end])
        file = results.open_results(str(folder / name), 2)
        kept = (folder / name).read_bytes()
        assert kept == whole[: len(kept)] and len(kept) <= max(end, len(whole.split(b"\n")[0]) + 1)
        missing = [p for p in map(str, (folder / "pictures").iterdir()) if not file.has(p)]
        for path in missing:
            file.add(path, "left out here")
        file.close()
        assert rows(folder, name).keys() == wanted_names(folder)


def wanted_names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "pictures").iterdir()}


def test_parts_of_parquet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(results, "PART", 4)
    classify(folder, "out.parquet")
    parts = sorted((folder / "out.parquet").glob("*.parquet"))
    assert [p.name for p in parts] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    parts[1].unlink()
    classify(folder, "out.parquet")
    assert rows(folder, "out.parquet") == wanted(folder)


KILLED = """
import sys, time
from fastmobilenet import cli, image
decode = image.decode
def slow(source):
    time.sleep(0.05)
    return decode(source)
image.decode = slow
print("ready", flush=True)
cli.main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kills a process")
def test_a_run_that_is_killed(folder: Path, run_python: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    for i in range(20):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / "pictures" / f"z{i}.png")
    arguments = ["classify", str(folder / "pictures"), "--model", str(folder / "net.fmn"), "--top", "2", "--out"]
    for out in ("killed.csv", "killed.jsonl"):
        with pytest.raises(subprocess.TimeoutExpired):
            run_python("-c", KILLED.replace("0.05", "0.3"), *arguments, str(folder / out), timeout=1.5)
        time.sleep(0.1)
        before = rows(folder, out) if (folder / out).exists() else {}
        assert len(before) < 30
        classify(folder, out)
        assert rows(folder, out) == wanted(folder)


@pytest.mark.parametrize(
    "options, message",
    [
        (["--out", "x.txt"], r"--out x\.txt: the name must end in one of \.csv, \.jsonl, \.parquet"),
        (["--out", "x.csv", "--json"], "use one of them"),
        (["--workers", "2"], "--workers is for --out"),
    ],
)
def test_wrong_options(
    folder: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    assert cli.main(["classify", "pictures", "--model", "net.fmn", *options]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_files_of_other_things_are_left_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("out.csv", "image,price\na,3\n"), ("out.jsonl", '{"a": 1}\nrest')):
        (folder / name).write_text(content)
        assert classify(folder, name) == 1
        assert (folder / name).read_text() == content
    classify(folder, "new.csv")
    before = (folder / "new.csv").read_bytes()
    assert classify(folder, "new.csv", "--top", "3") == 1
    assert "has other columns than --top 3 gives" in capsys.readouterr().err
    assert (folder / "new.csv").read_bytes() == before


def test_one_process_at_a_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("fcntl")
    file = results.open_results(str(folder / "out.csv"), 2)
    assert classify(folder, "out.csv") == 1
    assert "another process is writing to it" in capsys.readouterr().err
    file.close()
