"""The fastmobilenet command where a standard stream is closed, full or has no reader: its exit status, no traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest

from fastmobilenet.cli import main
from fastmobilenet.cli.terminal import Progress

from .samples import pixels

GOOD = ["info", "mobilenetv2_035"]
BAD = ["info", "nothing.tflite"]
USAGE = ["info"]

Run = Callable[..., subprocess.CompletedProcess[str]]


def command(run_python: Run, args: list[str], **streams: Any) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "fastmobilenet", *args, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams})


@contextmanager
def no_reader() -> Iterator[int]:
    """A pipe whose reader is gone."""
    read, write = os.pipe()
    os.close(read)
    try:
        yield write
    finally:
        os.close(write)


posix = pytest.mark.skipif(os.name != "posix", reason="pipes break differently elsewhere")


# --- processes: what Python does at its exit counts too ---------------------------------------------------


@posix
@pytest.mark.parametrize(
    "args, gone, status",
    [
        (GOOD, ["stdout"], 141),
        (["--help"], ["stdout"], 141),
        (BAD, ["stderr"], 1),
        (USAGE, ["stderr"], 2),
        (GOOD, ["stdout", "stderr"], 141),
    ],
)
def test_a_reader_that_goes_away(args: list[str], gone: list[str], status: int, run_python: Run) -> None:
    with no_reader() as pipe:
        done = command(run_python, args, **dict.fromkeys(gone, pipe))
    assert done.returncode == status
    assert not done.stdout
    assert not done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full here")
def test_a_full_disk(run_python: Run) -> None:
    with open("/dev/full", "w") as full:
        done = command(run_python, GOOD, stdout=full)
        assert (done.returncode, done.stderr) == (1, "fastmobilenet: No space left on device\n")
        assert command(run_python, BAD, stderr=full).returncode == 1


@pytest.mark.fork  # the child closes its streams in Python
@posix
@pytest.mark.parametrize("args, closed, status", [(GOOD, (1,), 0), (BAD, (2,), 1), (GOOD, (0, 1, 2), 0)])
def test_closed_streams(args: list[str], closed: tuple[int, ...], status: int, run_python: Run) -> None:
    """As with ``>&-`` and ``2>&-``: nothing is shown there, all else is as ever."""

    def close() -> None:
        for handle in closed:
            os.close(handle)

    done = command(run_python, args, preexec_fn=close)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


# --- the same in this process, for more commands ----------------------------------------------------------


class Failing(io.StringIO):
    """A stream that accepts text, but cannot be rid of it."""

    def __init__(self, error: OSError, terminal: bool = False) -> None:
        super().__init__()
        self.error = error
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def flush(self) -> None:
        raise self.error


def status_of(args: list[str]) -> Any:
    try:
        return main(args)
    except SystemExit as leave:
        return leave.code


GONE, FULL = BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")


@pytest.mark.parametrize("args", [GOOD, ["--help"], ["--version"], ["info", "--help"], BAD, USAGE])
def test_exit_status(args: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {"nothing.tflite": 1, "info": 2}.get(args[-1])
    for error, status in ((GONE, 141), (FULL, 1)):
        with monkeypatch.context() as context:
            context.setattr(sys, "stdout", Failing(error))
            assert status_of(args) == (wrong or status)
        err = capsys.readouterr().err
        if not wrong:
            assert err == ("" if error is GONE else "fastmobilenet: No space left on device\n")
        with monkeypatch.context() as context:
            context.setattr(sys, "stderr", Failing(error))
            assert status_of(args) == (wrong or 0)
        assert bool(capsys.readouterr().out) == (not wrong)


def closed_stream() -> TextIO:
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [lambda: None, closed_stream])
@pytest.mark.parametrize("names", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_streams_that_python_has_not(names: tuple[str, ...], make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in names:
        monkeypatch.setattr(sys, name, make())
    for args, status in ((GOOD, 0), (BAD, 1), (USAGE, 2), (["--help"], 0)):
        assert status_of(args) == status
    for name in names:
        getattr(sys, name).close()


def test_a_file_that_is_written_is_not_the_closed_output(
    model_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    Image.fromarray(pixels(9, 9, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr(sys, "stdout", None)
    page = tmp_path / "page.html"
    assert main(["profile", str(tmp_path / "a.png"), "--model", model_file, "--runs", "1", "--html", str(page)]) == 0
    sys.stdout.close()
    assert page.read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_progress_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Failing(GONE, terminal=True))
    progress = Progress()
    progress.show("1 of 2")
    progress.clear()


def test_progress_stays_on_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "20")
    progress = Progress()
    progress.show("a name that is far too long.png")
    progress.show("b\x1b[2J\n")
    progress.clear()
    assert terminal.getvalue() == "\ra name that is far \rb\\x1b[2J\\n         \r" + " " * 10 + "\r"
