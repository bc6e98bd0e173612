"""What the calls of Model accept: the checks of their arguments, and what the errors say."""

from __future__ import annotations

import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from . import labels as label_files
from ._native import MAX_THREADS
from .errors import ModelError
from .graph import Graph, infer_shapes
from .preprocess import Preprocess

_PRECISIONS = ("fp32", "fp16", "int8")


def check_precision(precision: str | None) -> None:
    if precision is None or precision == "fp32":
        return
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)} or None, not {precision!r}")
    raise ModelError(
        f'this version computes in fp32, not in {precision}; use precision="fp32" or None '
        "(the weights of a quantised file are then dequantised)"
    )


def check_threads(threads: int | None) -> int | None:
    if threads is None:
        return None
    if isinstance(threads, bool) or not hasattr(threads, "__index__"):
        raise TypeError(f"threads must be a whole number or None, not {threads!r}")
    count = operator.index(threads)
    if not 1 <= count <= MAX_THREADS:
        raise ValueError(f"threads must be 1 to {MAX_THREADS}, not {count}")
    return count


def check_preprocess(preprocess: Preprocess | None) -> None:
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise TypeError(f"preprocess must be a fastmobilenet.Preprocess, not {type(preprocess).__name__}")


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """One number or a pair -> (height, width)."""
    pair: Any = (size, size) if hasattr(size, "__index__") else size
    try:
        h, w = (operator.index(v) for v in pair)
    except (TypeError, ValueError):
        raise TypeError(f"size must be one whole number or (height, width), not {size!r}") from None
    if h < 1 or w < 1:
        raise ValueError(f"size must be positive, not {size!r}")
    return h, w


def class_count(graph: Graph) -> int | None:
    """The channels of an output of one pixel; None where the output is larger, as that of no classifier is."""
    _, h, w, c = infer_shapes(graph, 1, *graph.input_size)[graph.output]
    return c if h == w == 1 else None


def check_labels(graph: Graph, labels: Sequence[str] | str | os.PathLike[str] | None) -> tuple[str, ...] | None:
    """The given names, else the graph's, as one name a class. ``()`` gives None.

    Raises ValueError, or for the graph's own names ModelError, where their count is wrong.
    """
    own = labels is None
    if labels is None:
        names = graph.labels or ()
    elif isinstance(labels, (str, os.PathLike)):
        names = label_files.read(labels)
        if not names:
            raise ValueError(f"{os.fspath(labels)}: the file of labels is empty; give one name a line")
    else:
        names = tuple(labels)
        if not all(isinstance(name, str) for name in names):
            raise TypeError("labels must be strings, or the path of a text file with one name a line")
    if not names:
        return None
    classes = class_count(graph)
    fitted = None if classes is None else label_files.fit(names, classes)
    if fitted is None:
        message = f"{graph.name} has {classes or 'no'} classes, but there are {len(names)} labels"
        if own:
            raise ModelError(f"{message}; give others with labels=..., or none with labels=()")
        raise ValueError(message)
    return fitted


def check_pictures(pictures: Sequence[Any]) -> None:
    """A list holds pictures: an array in it that is not uint8 was meant to be part of a batch."""
    for i, item in enumerate(pictures):
        if isinstance(item, np.ndarray) and item.dtype != np.uint8:
            raise TypeError(
                f"item {i} is a {item.dtype} array of shape {item.shape}, but a list holds pictures "
                "(paths, PIL images, uint8 arrays); join preprocessed float32 arrays with np.stack"
            )


def float_shapes(graph: Graph) -> str:
    """The shapes of a preprocessed array, in words."""
    c = graph.input_channels
    shape = f"{c}, height, width)" if graph.input_layout == "NCHW" else f"height, width, {c})"
    return f"preprocessed float32 ({shape} or (n, {shape}"


def float_batch(x: npt.NDArray[Any], graph: Graph) -> tuple[npt.NDArray[np.float32], bool]:
    """A preprocessed array as a batch that is aligned, contiguous and of this machine's byte order, and whether it
    came with a batch axis. Copied only where it has to be."""
    expected = float_shapes(graph)
    given = f"an array of dtype {x.dtype} and shape {x.shape}"
    if x.dtype.kind != "f" or x.dtype.itemsize != 4:
        pixels = "uint8 pixels (height, width, 3) or (n, height, width, 3), or " if graph.input_channels == 3 else ""
        hint = "; if it is preprocessed, use x.astype(np.float32)" if x.dtype.kind == "f" else ""
        raise TypeError(f"expected {pixels}{expected}; got {given}{hint}")
    axis, other = (-3, -1) if graph.input_layout == "NCHW" else (-1, -3)
    if x.ndim not in (3, 4) or x.shape[axis] != graph.input_channels:
        swapped = x.ndim in (3, 4) and x.shape[other] == graph.input_channels
        hint = f"; this model takes {graph.input_layout}: transpose the axes" if swapped else ""
        raise ValueError(f"expected {expected}; got {given}{hint}")
    batched = x.ndim == 4
    return np.require(x if batched else x[None], np.float32, ["C", "A"]), batched
