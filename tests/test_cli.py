"""The fastmobilenet command: ``classify``, and how every subcommand ends."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Graph, Model, ModelError, importers
from fastmobilenet.cli import main


def save_picture(path: Path, seed: int = 0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), np.uint8)).save(path, "PNG")
    return str(path)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    return save_picture(tmp_path / "picture.png")


class Terminal(io.StringIO):
    """Standard error that claims to be a terminal."""

    def isatty(self) -> bool:
        return True


# --- classify ---------------------------------------------------------------------------------------------


def test_one_picture(model_file: str, picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", picture, "--model", model_file]) == 0
    out, err = capsys.readouterr()
    predictions = Model.load(model_file).classify(picture)
    assert out.splitlines() == [f"{p.label}  {100 * p.score:5.1f} %" for p in predictions]
    assert err == ""


def test_top_and_labels(model_file: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = Model.load(model_file).classify(picture, 2)
    (tmp_path / "words.txt").write_text("\n".join(f"word {i}" for i in range(10)))
    labels = str(tmp_path / "words.txt")
    assert main(["classify", picture, "--model", model_file, "--top", "2", "--labels", labels]) == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()] == [f"word {p.index}" for p in best]


def test_several_pictures_have_headings(
    model_file: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = save_picture(tmp_path / "other.png", 1)
    assert main(["classify", picture, other, picture, "--model", model_file, "--top", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == [picture, other, picture]
    assert all(line.startswith("  name ") for line in lines[1::2])


def test_folders_are_searched(model_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    wanted = [save_picture(folder / name) for name in ("a.PNG", "b.jpg", "below/c.webp")]
    for name in (".hidden.png", ".git/d.png"):
        save_picture(folder / name)
    (folder / "notes.txt").write_text("no picture")
    assert main(["classify", str(folder), "--model", model_file, "--top", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[::2] == wanted


def test_a_folder_of_one_picture_has_a_heading(model_file: str, tmp_path: Path, capsys: Any) -> None:
    path = save_picture(tmp_path / "pictures" / "a.png")
    assert main(["classify", str(tmp_path / "pictures"), "--model", model_file]) == 0
    assert capsys.readouterr().out.splitlines()[0] == path


def test_a_folder_without_pictures_is_reported(model_file: str, picture: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["classify", str(tmp_path / "empty"), picture, "--model", model_file]) == 1
    out, err = capsys.readouterr()
    assert out.startswith(picture)
    assert "empty: no pictures in this folder" in err


def test_bad_pictures_do_not_stop_the_rest(
    model_file: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("this is no picture")
    cut.write_bytes(Path(picture).read_bytes()[:1000])
    missing = str(tmp_path / "missing.png")
    bad = [str(text), str(cut), missing]
    assert main(["classify", *bad, picture, "--model", model_file, "--top", "1"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == picture
    assert len(out.splitlines()) == 2
    lines = err.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("fastmobilenet: ") and path in line for line, path in zip(lines, bad, strict=False))
    assert lines[2] == f"fastmobilenet: {missing}: No such file or directory"
    assert lines[3] == "fastmobilenet: 3 of 4 failed"


def test_json_lines(model_file: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing.png")
    assert main(["classify", picture, missing, "--model", model_file, "--top", "2", "--json"]) == 1
    good, bad = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    wanted = [
        {"label": p.label, "index": p.index, "score": p.score} for p in Model.load(model_file).classify(picture, 2)
    ]
    assert good == {"image": picture, "predictions": wanted}
    assert bad["image"] == missing
    assert bad["error"] == "No such file or directory"


def test_json_has_no_nan(
    model_file: str, picture: str, make_graph: Callable[..., Graph], monkeypatch: Any, capsys: Any
) -> None:
    graph = make_graph()
    bias = graph[graph.output].params["bias"]
    monkeypatch.setattr(importers, "load", lambda path, arch=None, **_: graph)
    bias[:] = np.nan
    assert main(["classify", picture, "--model", model_file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [p["score"] for p in found["predictions"]] == [None] * 5


def test_names_that_the_terminal_cannot_show(
    model_file: str, picture: str, make_graph: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label that ASCII lacks, and a file name that is no UTF-8."""
    graph = make_graph(labels=tuple(f"caf\u00e9 {i}" for i in range(10)))
    monkeypatch.setattr(importers, "load", lambda path, arch=None, **_: graph)
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    assert main(["classify", picture, os.fsdecode(b"caf\xe9.png"), "--model", model_file]) == 1
    assert b"caf\\xe9 " in out.buffer.getvalue()  # type: ignore[attr-defined]
    assert b"caf\\udce9.png: No such file" in err.buffer.getvalue()  # type: ignore[attr-defined]


def test_names_that_command_a_terminal(
    model_file: str, make_graph: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    """Names come with files from anywhere; what would clear the screen or add a line is shown as an escape."""
    graph = make_graph(labels=tuple(f"\x1b[2J{i}\n" for i in range(10)), name="net\x1b]0;")
    monkeypatch.setattr(importers, "load", lambda path, arch=None, **_: graph)
    path = save_picture(tmp_path / "a\nb.png")
    assert main(["classify", str(tmp_path), path, path + "c", "--model", model_file, "--top", "1"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == f"{tmp_path}/a\\nb.png"
    assert out.splitlines()[1].startswith("  \\x1b[2J")
    assert err.splitlines()[0] == f"fastmobilenet: {tmp_path}/a\\nb.pngc: No such file or directory"
    for command in (["info", model_file], ["bench", "--model", model_file, "--seconds", "0.01"]):
        assert main(command) == 0
        assert "\x1b" not in capsys.readouterr().out


def test_threads_and_arch_are_passed_on(
    model_file: str, picture: str, make_graph: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    load = Model.load

    def spy(source: str, **options: Any) -> Model:
        seen.update(options)
        return load(source, **options)

    monkeypatch.setattr(Model, "load", spy)
    assert main(["classify", picture, "--model", model_file, "--threads", "3", "--arch", "mobilenet_v1"]) == 0
    assert seen == {"arch": "mobilenet_v1", "labels": None, "threads": 3}


# --- progress ---------------------------------------------------------------------------------------------


def test_progress_goes_to_a_terminal_only(
    model_file: str, picture: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["classify", picture, picture, "--model", model_file]
    assert main(command) == 0
    assert capsys.readouterr().err == ""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(command) == 0
    assert "0 of 2: picture.png" in terminal.getvalue()
    assert "1 of 2: picture.png" in terminal.getvalue()
    assert terminal.getvalue().endswith(" \r")  # it was wiped away
    assert "of 2" not in capsys.readouterr().out
    terminal.truncate(0)
    assert main(["classify", picture, "--model", model_file]) == 0  # one picture takes no time
    assert terminal.getvalue().strip("\0") == ""


# --- how it ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["nothing"],
        ["classify"],
        ["classify", "--model", "m.tflite"],
        ["classify", "a.jpg", "--model", "m.tflite", "--top", "0"],
        ["classify", "a.jpg", "--model", "m.tflite", "--threads", "none"],
        ["info"],
        ["info", "m.tflite", "--size", "0"],
        ["info", "m.tflite", "--size", "1x2x3"],
        ["info", "m.tflite", "--size", "large"],
        ["bench", "--seconds", "-1"],
        ["bench", "--seconds", "nan"],
        ["evaluate"],
        ["evaluate", "--data", "x.npz", "--count", "0"],
        ["profile"],
        ["profile", "a.png", "--model", "m.tflite", "--runs", "2.5"],
    ],
)
def test_wrong_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: fastmobilenet")


@pytest.mark.parametrize("command", [["classify", "a.png", "--model"], ["info"], ["bench", "--model"]])
def test_a_model_that_is_not_there(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, str(tmp_path / "none.tflite")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("fastmobilenet: ")
    assert err.count("\n") == 1
    assert "none.tflite: " in err
    assert "no such file" in err.lower()


@pytest.mark.parametrize(
    "error, status, message",
    [
        (ModelError("node 'x':\n  what is this"), 1, "node 'x': what is this"),
        (PermissionError(13, "Permission denied", "net.tflite"), 1, "net.tflite: Permission denied"),
        (ImportError("reading .pth files needs torch"), 1, "reading .pth files needs torch"),
        (MemoryError(), 1, "not enough memory; use fewer or smaller pictures"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(32, "Broken pipe"), 141, None),
    ],
)
@pytest.mark.parametrize("command", [["classify", "a.png", "--model"], ["info"], ["bench", "--model"]])
def test_errors_are_one_line(
    model_file: str,
    command: list[str],
    error: BaseException,
    status: int,
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def load(path: str, arch: str | None = None, **options: Any) -> Graph:
        raise error

    monkeypatch.setattr(importers, "load", load)
    assert main([*command, model_file]) == status
    out, err = capfd.readouterr()
    assert out == ""
    assert err == ("" if message is None else f"fastmobilenet: {message}\n")


def test_an_architecture_is_no_model_to_classify_with(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The message speaks of options and files, not of Python."""
    assert main(["classify", picture, "--model", "squeezenet1_1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "fastmobilenet: squeezenet1_1 is an architecture, and classify needs trained weights: give a model file with "
        f"--model ({importers.SUPPORTED}); for one that holds weights only, add --arch squeezenet1_1\n"
    )


def test_arch_is_not_for_an_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "mobilenet_v1", "--arch", "mobilenet_v2"]) == 1
    assert "mobilenet_v1 is an architecture; --arch is for a file" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, shown",
    [
        (ModelError("say with arch= of which network"), "say with --arch of which network"),
        (ModelError("It fits arch='mobilenet_v2' or arch='a'"), "It fits --arch mobilenet_v2 or --arch a"),
        (ModelError("give others with labels=..., or none with labels=()"), "give others with --labels"),
        (ModelError("search= is no argument"), "search= is no argument"),
        (OSError(2, "No such file", ""), "'': No such file"),
        (OSError(2, "No such file", b"caf\xe9"), "caf\\udce9: No such file"),
        (OSError(9, "Bad file descriptor", 7), "Bad file descriptor"),
        (ValueError("a  b.png: bad\x1b[2J"), "a  b.png: bad\\x1b[2J"),
        (ValueError(), "ValueError"),
    ],
)
def test_errors_in_the_words_of_the_command(
    error: Exception, shown: str, model_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(path: str, arch: str | None = None, **options: Any) -> Graph:
        raise error

    monkeypatch.setattr(importers, "load", load)
    assert main(["info", model_file]) == 1
    assert capsys.readouterr().err == f"fastmobilenet: {shown}\n"


def test_mistakes_of_the_program_are_not_hidden(model_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importers, "load", lambda path, arch=None, **_: None)
    with pytest.raises((AttributeError, TypeError)):
        main(["info", model_file])


@pytest.mark.parametrize("command", ["classify", "info", "bench", None])
def test_help_has_examples(command: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"] if command else ["--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert ("exit status" if command is None else f"examples:\n  fastmobilenet {command}") in out
    assert max(map(len, out.splitlines())) <= 120


def test_as_a_process(run_python: Callable[..., Any]) -> None:
    done = run_python("-m", "fastmobilenet", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("fastmobilenet ")
    done = run_python("-m", "fastmobilenet", "info", "nothing.tflite")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("fastmobilenet: nothing.tflite: no such file")
    assert done.stderr.count("\n") == 1
    assert run_python("-m", "fastmobilenet", "classify").returncode == 2


def test_help_needs_no_numpy(run_python: Callable[..., Any]) -> None:
    code = "import sys; from fastmobilenet.cli import make_parser; make_parser(); print('numpy' in sys.modules)"
    assert run_python("-c", code).stdout == "False\n"


def test_a_real_picture(test_data: Path, run_python: Callable[..., Any]) -> None:
    picture = str(test_data / "imagenet_samples" / "n01514859_hen.JPEG")
    model = str(test_data / "models" / "mobilenet_v2_1.0_224_quant.tflite")
    done = run_python("-m", "fastmobilenet", "classify", picture, "--model", model)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[0] == "hen"
    assert len(done.stdout.splitlines()) == 5
