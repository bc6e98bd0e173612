"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

_TRIES = 100


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of ``path`` when the block ends without an error.

    It is written beside ``path`` under another name, brought to the disk and renamed: at any moment ``path`` is the old
    file or the whole new one, also for those who have the old one open or mapped. After an error ``path`` is as it was,
    and nothing is left beside it. A link stays a link, to the new file. The permissions are those of the old file, or
    what ``open`` would give a new one. What is no regular file (a pipe, /dev/stdout) is written to as it is.

    Raises OSError that names ``path``.
    """
    name = os.fsdecode(path)
    try:
        if os.path.exists(name) and not os.path.isfile(name):
            with open(name, "wb") as file:
                yield file
            return
        target = os.path.realpath(name)
        with _draft(target) as (file, draft):
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(draft, target)
        _sync_folder(os.path.dirname(target))
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), name) from None


@contextlib.contextmanager
def _draft(target: str) -> Iterator[tuple[BinaryIO, str]]:
    """A new file in the folder of ``target``, and its name; removed where the block fails."""
    mode = _mode(target)
    file, draft = _create(target)
    try:
        with file:
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)  # before there is anything to read in it
            yield file, draft
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft)
        raise


def _create(target: str) -> tuple[BinaryIO, str]:
    folder = os.path.dirname(target)
    for _ in range(_TRIES):
        draft = os.path.join(folder, f".fastmobilenet-{os.urandom(8).hex()}")
        with contextlib.suppress(FileExistsError):
            return open(draft, "xb"), draft
    raise FileExistsError(errno.EEXIST, "no name is left for a file beside it", target)


def _mode(target: str) -> int | None:
    """The permissions of the file; None where there is none. A file that may not be written to stays what it is."""
    try:
        mode = stat.S_IMODE(os.stat(target).st_mode)
    except FileNotFoundError:
        return None
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), target)
    return mode


def _sync_folder(folder: str) -> None:
    """Brings the new name to the disk, where the system can do that. The file is in place already."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
