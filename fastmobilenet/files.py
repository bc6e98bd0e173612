"""Opening the files that callers name."""

from __future__ import annotations

import os
import stat
from typing import BinaryIO

_KINDS = ((stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"), (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device"))


def open_regular(path: str | bytes | os.PathLike[str] | os.PathLike[bytes]) -> BinaryIO:
    """Open a regular file to be read. A pipe, socket or device is left alone: it may wait for ever, or never end.

    Raises OSError that names the path where the operating system refuses, as for a missing file or a folder;
    ValueError for what is no regular file, and for what can be no path.
    """
    path = os.fspath(path)
    name = os.fsdecode(path)
    try:
        status = os.stat(path)
    except ValueError as error:  # a null character, or letters that no file name has
        raise ValueError(f"{name!r} cannot be the path of a file: {error}") from error
    _refuse_special(name, status)
    file = open(path, "rb", opener=_open_at_once)  # noqa: SIM115  the caller closes it
    try:
        _refuse_special(name, os.fstat(file.fileno()))  # the name may have been given to something else meanwhile
    except ValueError:
        file.close()
        raise
    return file


def _refuse_special(name: str, status: os.stat_result) -> None:
    for is_kind, kind in _KINDS:
        if is_kind(status.st_mode):
            raise ValueError(f"{name}: this is a {kind}; a regular file is needed")


def _open_at_once(path: str, flags: int) -> int:
    """Opens without waiting for a writer, should the path be a pipe by now."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
