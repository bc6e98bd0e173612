"""Files are written whole or not at all."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from fastmobilenet.atomic import replacing


def write(path: Path | str, content: bytes = b"new") -> None:
    with replacing(path) as file:
        file.write(content)


@pytest.mark.parametrize("old", [None, b"the old content"])
def test_it_is_there_at_the_end(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)
    with replacing(path) as file:
        file.write(b"new")
        file.flush()
        assert (path.read_bytes() if path.exists() else None) == old
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("old", [None, b"the old content"])
def test_an_error_leaves_no_trace(tmp_path: Path, old: bytes | None, error: type[BaseException]) -> None:
    path = tmp_path / "file"
    if old is not None:
        path.write_bytes(old)

    def fail() -> None:
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert os.listdir(tmp_path) == ([] if old is None else ["file"])
    assert old is None or path.read_bytes() == old


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(path)
    assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_errors_name_the_path(tmp_path: Path) -> None:
    for path, error in (
        (tmp_path / "none" / "file", FileNotFoundError),
        (tmp_path, IsADirectoryError),
        (tmp_path / "file" / "file", NotADirectoryError),
    ):
        (tmp_path / "file").touch()
        with pytest.raises(error) as caught:
            write(path)
        assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_of_a_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "ours")
        (tmp_path / "pythons").touch()
    finally:
        os.umask(before)
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ours", "pythons")}
    assert modes == {0o666 & ~mask}


@pytest.mark.skipif(os.name != "posix", reason="permissions are those of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_permissions_of_a_file_that_was_there(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "file"
    path.touch()
    path.chmod(mode)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as root everything may be written to
    with pytest.raises(PermissionError) as caught:
        write(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "link").symlink_to("below/file")
    write(tmp_path / "link")  # to a file that is not there yet
    write(tmp_path / "link", b"newer")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "below" / "file").read_bytes() == b"newer"
    assert os.listdir(tmp_path / "below") == ["file"]


def test_who_has_the_old_file_open_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with open(path, "rb") as file:
        write(path)
        assert file.read() == b"old"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(path.read_bytes()))
    reader.start()
    write(path)
    reader.join(10)
    assert got == [b"new"]
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_a_path_in_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("file")
    assert os.listdir(tmp_path) == ["file"]


def test_many_threads_at_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    threads = [threading.Thread(target=write, args=(path, bytes([i]) * 100_000)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = path.read_bytes()
    assert content == content[:1] * 100_000
    assert os.listdir(tmp_path) == ["file"]
