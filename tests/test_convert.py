"""``fastmobilenet convert``."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmobilenet import Graph, Model, fmn, importers, models
from fastmobilenet.cli import main

from .samples import assert_same_bits, names, pixels
from .tflite_files import TfliteWriter
from .weight_files import safetensors_bytes, state_of


@pytest.fixture
def tflite_file(tmp_path: Path) -> str:
    """One dense layer: a picture of one pixel to its own three channels, and back."""
    import numpy as np

    t = TfliteWriter()
    x, y = t.tensor("x", (1, 1, 1, 3)), t.tensor("y", (1, 3))
    weight = t.constant("w", np.eye(3, dtype=np.float32)[::-1])
    t.fully_connected(x, weight, t.constant("b", np.array([0.5, 0, 0], np.float32)), y)
    path = tmp_path / "net.tflite"
    path.write_bytes(t.finish(x, y))
    return str(path)


def test_a_file_with_its_own_network(tflite_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out.fmn")
    assert main(["convert", tflite_file, out]) == 0
    printed, err = capsys.readouterr()
    assert err == ""
    assert printed.splitlines() == [
        "model    net, 1x1",
        "labels   none",
        f"read     {tflite_file}, {os.path.getsize(tflite_file) / 1e6:.2f} MB",
        f"written  {out}, {os.path.getsize(out) / 1e6:.2f} MB",
    ]
    before, after = Model.load(tflite_file), Model.load(out)
    x = pixels(1, 1, 3)
    assert_same_bits(before.run(x), after.run(x))
    assert (before.name, before.preprocess, before.graph.input_layout) == (
        after.name,
        after.preprocess,
        after.graph.input_layout,
    )


def test_json(tflite_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "net.fmn"
    assert main(["convert", tflite_file, str(target), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["read"] == {"file": tflite_file, "bytes": Path(tflite_file).stat().st_size}
    assert found["written"] == {"file": str(target), "bytes": target.stat().st_size}
    assert found["model"] == Model.load(target).name


def test_weights_with_arch_and_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from fastmobilenet.importers._plan_names import torchvision_v2

    graph = models.build("mobilenet_v2", width=0.1, classes=4)
    source, labels, out = tmp_path / "net.safetensors", tmp_path / "words.txt", tmp_path / "out.fmn"
    source.write_bytes(safetensors_bytes(state_of(graph, "mobilenet_v2", torchvision_v2, 0.1)))
    labels.write_text("\n".join(names(4)))
    assert main(["convert", str(source), str(out)]) == 1
    assert "holds weights only; say with --arch of which network" in capsys.readouterr().err
    assert not out.exists()
    assert main(["convert", str(source), str(out), "--arch", "mobilenet_v2", "--labels", str(labels)]) == 0
    assert "labels   4" in capsys.readouterr().out
    model = Model.load(out)
    assert model.labels == names(4)
    x = pixels(64, 64, 3)
    assert_same_bits(model.run(x, size=64), Model.load(source, arch="mobilenet_v2").run(x, size=64))


def test_labels_in_the_folder_are_taken_along(tflite_file: str, tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    (tmp_path / "below").mkdir()
    out = tmp_path / "below" / "net.fmn"
    assert main(["convert", tflite_file, str(out)]) == 0
    assert Model.load(out).labels == ("red", "green", "blue")


def test_a_file_onto_itself(tflite_file: str, tmp_path: Path, make_graph: Callable[..., Graph]) -> None:
    path = str(tmp_path / "net.fmn")
    fmn.save(make_graph(labels=names(10)), path)
    (tmp_path / "words.txt").write_text("\n".join(names(10)[::-1]))
    assert main(["convert", path, path, "--labels", str(tmp_path / "words.txt")]) == 0
    assert Model.load(path).labels == names(10)[::-1]
    assert main(["convert", tflite_file, path]) == 0  # another file is replaced
    assert Model.load(path).name == "net"
    assert sorted(os.listdir(tmp_path)) == ["net.fmn", "net.tflite", "words.txt"]


@pytest.mark.parametrize("name", ["out.onnx", "out", "net.tflite", "fmn"])
def test_only_fmn_files_are_written(tflite_file: str, name: str, tmp_path: Path, capsys: Any) -> None:
    """So that exchanged arguments do not cost the source."""
    before = Path(tflite_file).read_bytes()
    assert main(["convert", tflite_file, str(tmp_path / name)]) == 1
    err = capsys.readouterr().err
    assert err.endswith(f"{name}: what is written is a .fmn file; give OUT a name that ends in .fmn\n")
    assert os.listdir(tmp_path) == ["net.tflite"]
    assert Path(tflite_file).read_bytes() == before


@pytest.mark.parametrize(
    "target, reason",
    [("none/out.fmn", "No such file or directory"), ("folder.fmn", "Is a directory")],
)
def test_places_that_cannot_be_written(tflite_file: str, target: str, reason: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "folder.fmn").mkdir()
    out = str(tmp_path / target)
    assert main(["convert", tflite_file, out]) == 1
    printed, err = capsys.readouterr()
    assert (printed, err) == ("", f"fastmobilenet: {out}: {reason}\n")
    assert sorted(os.listdir(tmp_path)) == ["folder.fmn", "net.tflite"]


def test_a_source_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.fmn"
    (tmp_path / "bad.fmn").write_bytes(b"\x80" * 1000)
    assert main(["convert", str(tmp_path / "bad.fmn"), str(out)]) == 1
    assert "bad.fmn is not a valid .fmn file" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "none.onnx"), str(out)]) == 1
    assert "none.onnx: No such file or directory" in capsys.readouterr().err
    assert main(["convert", "squeezenet1_1", str(out)]) == 1
    assert "squeezenet1_1 is an architecture, and convert needs trained weights" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_to_a_pipe(tflite_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It may be standard output, so nothing is printed."""
    assert main(["convert", tflite_file, str(tmp_path / "out.fmn")]) == 0
    capsys.readouterr()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    assert main(["convert", tflite_file, str(pipe)]) == 0
    reader.join(10)
    assert got == [(tmp_path / "out.fmn").read_bytes()]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("command", ["convert", "verify"])
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert f"examples:\n  fastmobilenet {command}" in out
    assert max(map(len, out.splitlines())) <= 120
    with pytest.raises(SystemExit) as caught:
        main([command])
    assert caught.value.code == 2


def test_real_files(test_data: Path, tmp_path: Path) -> None:
    source, out = test_data / "models" / "mobilenet_v1_0.25_128_quant.tflite", tmp_path / "out.fmn"
    picture = test_data / "imagenet_samples" / "n01514859_hen.JPEG"
    assert main(["convert", str(source), str(out)]) == 0
    before, after = Model.load(source), Model.load(out)
    assert_same_bits(before.run(picture), after.run(picture))
    assert after.labels == before.labels
    assert importers.load(out).nodes[0].op == "input"
