"""Weights that an ONNX file keeps in other files. They must lie in the model's own folder, or in a folder in it, as
plain files: a model from somewhere else must not be able to read any other file of this machine into its weights."""

from __future__ import annotations

import os
import stat

from ..errors import ModelError
from ._text import quote

#: As for the model file itself, for all files of weights together.
MAX_EXTERNAL = 2 * 2**30

_ADVICE = "copy it as a plain file into the folder of the model, or save the model in one file"


class ExternalData:
    """Reads files of weights, each once. ``folder`` is that of the model; None where only its bytes are known."""

    def __init__(self, folder: str | None) -> None:
        self._folder = folder
        self._files: dict[str, memoryview] = {}
        self.size = 0  # bytes read so far

    def read(self, location: str, offset: int, length: int) -> memoryview:
        """``length`` bytes of the file ``location``. Raises ModelError unless the file is one that may be read, and
        holds them."""
        if location not in self._files:
            self._files[location] = memoryview(self._load(location))
        data = self._files[location]
        if offset < 0 or length < 0 or offset + length > len(data):
            raise ModelError(
                f"its data are bytes {offset} to {offset + length} of {quote(location)}, which has {len(data)}"
            )
        return data[offset : offset + length]

    def _load(self, location: str) -> bytes:
        parts = _parts(location)
        if self._folder is None:
            raise ModelError(
                f"its data lie in another file, {quote(location)}; load the model by its path, not from its bytes"
            )
        path = self._folder
        for part in parts[:-1]:
            path = os.path.join(path, part)
            if not stat.S_ISDIR(self._status(path, location).st_mode):
                raise ModelError(f"its data lie in {quote(location)}, and {quote(part)} is no folder")
        path = os.path.join(path, parts[-1])
        status = self._status(path, location)
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"its data lie in {quote(location)}, which is not a regular file")
        if status.st_nlink > 1:
            raise ModelError(f"its data lie in {quote(location)}, a file with more than one hard link; {_ADVICE}")
        try:
            with open(
                path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NOFOLLOW", 0))
            ) as file:
                # What was opened must be what was looked at.
                if not os.path.samestat(os.fstat(file.fileno()), status):
                    raise ModelError(f"its data lie in {quote(location)}, which has just been replaced; load it again")
                self.size += status.st_size
                if self.size > MAX_EXTERNAL:
                    raise ModelError(
                        f"its data lie in {quote(location)}; with it the weights exceed {MAX_EXTERNAL} bytes"
                    )
                return file.read(status.st_size)
        except OSError as error:
            raise ModelError(f"its data lie in {quote(location)}: {error.strerror or error}") from None

    def _status(self, path: str, location: str) -> os.stat_result:
        """What lies at the path, without following it."""
        try:
            status = os.lstat(path)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise ModelError(f"its data lie in {quote(location)}: {reason}") from None
        if stat.S_ISLNK(status.st_mode):
            raise ModelError(f"its data lie in {quote(location)}, and {quote(path)} is a link; {_ADVICE}")
        return status


def _parts(location: str) -> list[str]:
    """The folders and the file that a location names. Only plain names are allowed, those of this folder and below."""
    parts = [part for part in location.split("/") if part != "."]
    forbidden = not parts or any(p in ("", "..") or any(c in p for c in "\\:\0") for p in parts)
    if forbidden or os.path.isabs(location):
        raise ModelError(f"its data lie in {quote(location)}; only files in the folder of the model are read")
    return parts
