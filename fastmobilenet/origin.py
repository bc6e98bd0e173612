"""How a Model is pickled.

A Model that was loaded from a file, which has not changed since, is pickled as the path of the file, the SHA-256 of its
content and the options of ``Model.load``: less than a kilobyte, for processes that see the same file. It is refused
where the file is gone or another one. One that came from the Hugging Face hub is pickled as its name there with the
commit: a machine that has it not in its cache fetches it. Any other Model is pickled as the bytes of its .fmn file; to
have that of a loaded one too, pickle ``Model.from_graph(model.graph)``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from .errors import ModelError

if TYPE_CHECKING:
    from .model import Model

#: What tells a file from another one, and from itself after it was written to.
_Stamp = tuple[int, int, int, int]


def _stamp(path: str) -> _Stamp | None:
    """None for what is no regular file, and for .onnx files: their weights may be in other files."""
    try:
        s = os.stat(path)
    except (OSError, ValueError):
        return None
    if not os.path.isfile(path) or path.lower().endswith(".onnx"):
        return None
    return s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns


@dataclass
class Origin:
    """The file of a Model. ``options``: what Model.load needs beside the path. ``hub``: its name on the hub, with the
    commit; the file is then one of the cache."""

    path: str
    stamp: _Stamp | None
    options: Mapping[str, Any] = field(default_factory=dict)
    hub: str | None = None
    _digest: str | None = None

    @classmethod
    def before(cls, path: str) -> Origin:
        """To be made before the file is read."""
        path = os.path.abspath(path)
        return cls(path, _stamp(path))

    def after(self, options: Mapping[str, Any]) -> Origin | None:
        """To be called after it was read; None if the file is not the one that it was before."""
        if self.stamp is None or _stamp(self.path) != self.stamp:
            return None
        return replace(self, options={k: v for k, v in options.items() if v is not None})

    def digest(self) -> str | None:
        """The SHA-256 of the file; None where it is not any more what was loaded."""
        if _stamp(self.path) != self.stamp:
            return None
        if self._digest is None:
            try:
                digest = _sha256(self.path)
            except OSError:
                return None
            if _stamp(self.path) != self.stamp:
                return None
            self._digest = digest
        return self._digest


def reduce(model: Model) -> tuple[Any, ...]:
    """For ``Model.__reduce__``."""
    origin = model._origin
    if origin is not None and origin.hub is not None:
        return _from_hub, (type(model), origin.hub, dict(origin.options))
    digest = None if origin is None else origin.digest()
    if origin is not None and digest is not None:
        return _from_file, (type(model), origin.path, digest, dict(origin.options))
    from . import fmn

    header, arrays = fmn.encode(model._engine.graph())
    data = b"".join([header, *(array.tobytes() for array in arrays)])
    return _from_bytes, (type(model), data, model._requested_threads, model._parameters)


def _from_file(kind: type[Model], path: str, digest: str, options: dict[str, Any]) -> Model:
    try:
        found = _sha256(path)
    except OSError as error:
        why = f"which cannot be read: {error.strerror}"
        raise ModelError(f"this Model was pickled as the file {path}, {why}{_ADVICE}") from None
    if found != digest:
        raise ModelError(f"this Model was pickled as the file {path}, which has changed since{_ADVICE}")
    return kind.load(path, **options)


def _from_hub(kind: type[Model], name: str, options: dict[str, Any]) -> Model:
    return kind.load(name, **options)  # the hub's own hashes are compared there


_ADVICE = "; to have the weights in the pickle, pickle Model.from_graph(model.graph)"


def _from_bytes(kind: type[Model], data: bytes, threads: int | None, parameters: int) -> Model:
    from .importers import fmn

    return kind(fmn.load(data, "the pickled model"), threads, parameters)


def _sha256(path: str) -> str:
    import hashlib  # loads OpenSSL: 10 ms that few programs need to spend

    total = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            total.update(part)
    return total.hexdigest()
