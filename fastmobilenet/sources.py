"""What ``Model.load`` takes: a model file, or a network of the Hugging Face hub."""

from __future__ import annotations

import errno
import os

from . import importers
from .errors import ModelError
from .graph import Graph
from .origin import Origin

#: Says that a name is one of the hub, where a path could be meant too.
PREFIX = "hf-hub:"


def read(source: str, *, arch: str | None, quantized: bool) -> tuple[Graph, Origin]:
    """The network, and where it came from. Options as those of :func:`fastmobilenet.importers.load`.

    Raises FileNotFoundError and other OSErrors, and ModelError.
    """
    name = None
    if source.startswith(PREFIX) or not os.path.exists(source):  # a path that exists names no repository
        from . import hub

        name = hub.parse(source)
    if name is not None:
        if arch is not None:
            raise ModelError(f"{name} says its own architecture; arch={arch!r} cannot be given with it")
        found = hub.load(name)
        origin = Origin.before(found.path)
        origin.hub = found.name
        return found.graph, origin
    origin = Origin.before(source)
    try:
        return importers.load(source, arch=arch, quantized=quantized), origin
    except FileNotFoundError:
        _explain(source)
        raise


def _explain(source: str) -> None:
    """ModelError for a name that is no file because it is an architecture, or a repository that looks like a path."""
    from . import hub, models

    if not os.path.isabs(source) and hub.looks_like_name(source):
        raise FileNotFoundError(
            errno.ENOENT, f"No such file (for a repository of the hub: {PREFIX}{source})", source
        ) from None

    if source in models.available():
        raise ModelError(
            f"{source} is an architecture, and its weights come from a file: Model.load(FILE, arch={source!r}); "
            f"with random weights: Model.from_graph(fastmobilenet.models.build({source!r})). Trained networks of the "
            f"hub have the short names {', '.join(hub.ALIASES)}"
        ) from None


def size(source: str, origin: Origin | None) -> int:
    """The bytes of the file that a Model came from."""
    return os.path.getsize(source if origin is None else origin.path)
