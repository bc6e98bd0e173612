"""Pipes, sockets, devices and folders where a file is expected: refused at once, without being touched."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Graph, Model, files, image, labels
from fastmobilenet.cli import main

from .samples import names, pixels

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there are no such files here")


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """What waits for a writer would wait for ever."""

    def give_up(*_: Any) -> None:
        pytest.fail("waited for a writer")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make_pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


@pytest.fixture(params=["pipe", "socket", "device", "link"])
def special(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Path, str]]:
    """A path that is no file, and how it is called."""
    path = tmp_path / "special_labels.png"
    if request.param == "pipe":
        yield make_pipe(path), "pipe"
    elif request.param == "link":
        path.symlink_to(make_pipe(tmp_path / "pipe"))
        yield path, "pipe"
    elif request.param == "device":
        yield Path("/dev/zero"), "device"
    else:
        monkeypatch.chdir(tmp_path)  # the address of a socket must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
            yield path, "socket"


def test_a_picture(special: tuple[Path, str], small_graph: Graph) -> None:
    path, kind = special
    message = f"{path}: this is a {kind}; a regular file is needed"
    for source in (path, str(path)):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            image.decode(source)
    model = Model.from_graph(small_graph)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        model.run(path)
    with pytest.raises(ValueError, match=f"^item 1 of the list: {re.escape(message)}$"):
        model.classify([pixels(32, 32, 3), path])


def test_a_file_of_labels(special: tuple[Path, str], small_graph: Graph) -> None:
    path, kind = special
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: this is a {kind}; a regular file is needed"):
        Model.from_graph(small_graph, labels=path)


def test_labels_are_not_sought_in_pipes(tmp_path: Path) -> None:
    make_pipe(tmp_path / "labels.txt")
    (tmp_path / "more_labels.txt").write_text("\n".join(names(7)))
    assert labels.find(tmp_path / "net.tflite", 7) == names(7)


def test_a_model(special: tuple[Path, str]) -> None:
    with pytest.raises((ValueError, OSError), match=re.escape(str(special[0]))):
        Model.load(special[0])


def test_a_folder_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as caught:
        image.decode(tmp_path)
    assert caught.value.filename == str(tmp_path)


def test_a_pipe_that_takes_the_place_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look at the path and its opening."""
    regular = tmp_path / "a.png"
    regular.touch()
    before = os.stat(regular)
    pipe = make_pipe(tmp_path / "pipe")
    monkeypatch.setattr(files.os, "stat", lambda path: before)
    with pytest.raises(ValueError, match="is a pipe"):
        files.open_regular(pipe)


def test_reading_leaves_the_pipe_alone(tmp_path: Path) -> None:
    """Its writer, which waits for a reader, goes on waiting."""
    pipe = make_pipe(tmp_path / "a.png")
    with pytest.raises(ValueError, match="is a pipe"):
        image.decode(pipe)
    with pytest.raises(OSError, match="No such device or address"):  # what says that there is no reader
        os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)


@pytest.mark.parametrize("name", [b"caf\xe9.png", "caf\u00e9 \U0001f414.png".encode(), b"a\nb.png", b"-x.png"])
def test_names_of_any_bytes(name: bytes, tmp_path: Path) -> None:
    class BytesPath:
        def __fspath__(self) -> bytes:
            return path

    path = os.path.join(os.fsencode(tmp_path), name)
    try:
        Path(os.fsdecode(path)).write_bytes(b"")
    except OSError:
        pytest.skip("the file system has no such names")
    array = pixels(5, 6, 3)
    with open(path, "wb") as file:
        Image.fromarray(array).save(file, "PNG")
    for source in (os.fsdecode(path), Path(os.fsdecode(path)), BytesPath()):
        np.testing.assert_array_equal(image.decode(source), array)
    with open(path, "wb") as file:
        file.write(b"no picture")
    for source in (os.fsdecode(path), BytesPath()):
        with pytest.raises(ValueError, match="not a picture") as caught:
            image.decode(source)
        assert str(caught.value).startswith(os.fsdecode(path))


# --- on the command line ----------------------------------------------------------------------------------


def test_folders_are_searched_for_files(model_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    good = folder / "b.png"
    Image.fromarray(pixels(9, 9, 3)).save(good)
    make_pipe(folder / "a.png")
    (folder / "c.png").symlink_to("/dev/zero")
    (folder / "folder.png").mkdir()
    assert main(["classify", str(folder), "--model", model_file, "--top", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[::2] == [str(good)]
    assert err == ""
    (folder / "lost.png").symlink_to(folder / "nothing.png")  # a picture that is gone, and not silently
    assert main(["classify", str(folder), "--model", model_file, "--top", "1"]) == 1
    assert f"{folder / 'lost.png'}: No such file" in capsys.readouterr().err


def test_a_pipe_that_is_named_is_reported(model_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = make_pipe(tmp_path / "a.png")
    assert main(["classify", str(pipe), "--model", model_file]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"fastmobilenet: {pipe}: this is a pipe; a regular file is needed\n")


def test_a_folder_that_cannot_be_read_is_reported(
    model_file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "pictures"
    closed = folder / "closed"
    closed.mkdir(parents=True)
    Image.fromarray(pixels(9, 9, 3)).save(folder / "a.png")
    scandir: Callable[..., Any] = os.scandir

    def refuse(path: str) -> Any:  # the tests may run as root, whom nothing is closed to
        if os.fspath(path) == str(closed):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert main(["classify", str(folder), "--model", model_file, "--top", "1"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines()[0] == str(folder / "a.png")
    assert err == f"fastmobilenet: {closed}: Permission denied\n"
