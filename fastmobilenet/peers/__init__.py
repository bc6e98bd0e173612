"""Other runtimes that can run a model file, for ``fastmobilenet verify``. None of them is needed for anything else.

A peer reads the file itself, with its own library. It is given pictures as the network's input and returns tensors
under the names that they have in the Graph of the same file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import numpy as np

from .. import importers
from ..errors import ModelError
from ..graph import Graph, Shape

#: What a peer is called on the command line -> the name of the package that it needs.
PACKAGES = {"onnxruntime": "onnxruntime", "litert": "ai-edge-litert", "torch": "torch", "reference": "fastmobilenet"}

#: Kind of a file, as importers.detect() calls it -> its peer.
FITTING = {"onnx": "onnxruntime", "tflite": "litert", "torch": "torch", "safetensors": "torch"}


class PeerError(ModelError):
    """A peer that cannot run the file."""


class Peer(Protocol):
    """A runtime with a model file loaded.

    ``name`` is what it is called, with its version. ``rounds`` says that it computes with integers, so that its results
    are coarse.
    """

    @property
    def name(self) -> str: ...

    @property
    def rounds(self) -> bool: ...

    def output(self, x: np.ndarray) -> np.ndarray:
        """The network's output for x, a preprocessed picture as float32 (1, h, w, c); in whatever layout it has."""
        ...

    def tensors(self, x: np.ndarray) -> Mapping[str, np.ndarray]:
        """Name of a node of the Graph -> what the peer computes there; of the nodes for which it knows."""
        ...


def choose(path: str, graph: Graph, arch: str | None, wanted: str | None) -> tuple[Peer, list[str]]:
    """The peer for a file of which ``graph`` was read, and remarks on the choice.

    ``wanted``: a key of PACKAGES; None takes the one that fits the file, or the float64 reference where there is none
    or it is not installed. Raises ImportError where the wanted one is not installed, and PeerError where a peer cannot
    read the file.
    """
    from .reference import ReferencePeer

    fitting = _fitting(path, arch)
    kind = wanted or fitting
    if kind == "reference":
        return ReferencePeer(graph), []
    if kind != fitting:
        raise PeerError(f"{path}: {wanted} cannot read this file; verify it against {fitting}")
    try:
        return _make(kind, path, graph, arch), []
    except ImportError as error:
        missing = f"{error}; install {PACKAGES[kind]} to compare with it"
        if wanted is not None:
            raise ImportError(missing) from None
        return ReferencePeer(graph), [f"{missing}. Compared with the float64 reference of the same graph instead"]


def _fitting(path: str, arch: str | None) -> str:
    with open(path, "rb") as file:
        kind = FITTING.get(importers.detect(file.read(), path), "reference")
    return kind if kind != "torch" or arch is not None else "reference"  # a .fmn file holds its own network


def _make(kind: str, path: str, graph: Graph, arch: str | None) -> Peer:
    if kind == "onnxruntime":
        from .onnxruntime import OnnxRuntimePeer

        return OnnxRuntimePeer(path, graph)
    if kind == "litert":
        from .litert import LitertPeer

        return LitertPeer(path, graph)
    from .torch import TorchPeer

    assert arch is not None
    return TorchPeer(path, graph, arch)


def title(name: str, package: str) -> str:
    """The peer's name with the version of its package."""
    try:
        return f"{name} {version(package)}"
    except PackageNotFoundError:
        return name


@contextmanager
def failures_of(name: str, path: str) -> Iterator[None]:
    """Whatever a foreign library raises, as a PeerError in one line; but not what ends the program."""
    try:
        yield
    except (ImportError, MemoryError, PeerError):
        raise
    except Exception as error:
        raise PeerError(f"{path}: {name} cannot run it: {' '.join(str(error).split())[:300]}") from error


def to_layout(x: np.ndarray, layout: str) -> np.ndarray:
    """(n, h, w, c) in the layout of the model file, contiguous."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2) if layout == "NCHW" else x)


def arrangements(array: np.ndarray, shape: Shape) -> list[np.ndarray]:
    """The array as (n, h, w, c), in each way that its own shape allows: a file does not say which of its axes are
    which. None fits where it is empty."""
    n, h, w, c = shape
    found = []
    if array.ndim == 4 and array.shape == (n, c, h, w):
        found.append(array.transpose(0, 2, 3, 1))
    if array.ndim == 4 and array.shape == shape:
        found.append(array)
    long = [s for s in shape if s > 1]
    if not found and [s for s in array.shape if s > 1] == long:
        found.append(array.reshape(shape))
    return found
