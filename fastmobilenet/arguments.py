"""What the calls of Model accept: the checks of their arguments, and what the errors say."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Mapping, Sequence, Set
from typing import Any

import numpy as np
import numpy.typing as npt

from . import labels as label_files
from ._native import MAX_THREADS
from .detection_head import head_of
from .errors import ModelError
from .graph import Graph, infer_shapes
from .preprocess import Preprocess
from .values import counted, whole

_PRECISIONS = ("fp32", "fp16", "int8")


def check_precision(precision: str | None) -> None:
    if precision is None:
        return
    if not isinstance(precision, str):
        raise TypeError(f"precision must be a string or None, not {type(precision).__name__}")
    if precision not in _PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)} or None, not {precision!r}")
    if precision == "fp16":
        raise ModelError('this version does not compute in fp16; use precision=None, "fp32" or "int8"')


def check_threads(threads: int | None) -> int | None:
    if threads is None:
        return None
    count = whole(threads)
    if count is None:
        raise TypeError(f"threads must be a whole number or None, not {reprlib.repr(threads)}")
    if not 1 <= count <= MAX_THREADS:
        raise ValueError(f"threads must be 1 to {MAX_THREADS}, not {count}")
    return count


def check_preprocess(preprocess: Preprocess | None) -> None:
    if preprocess is not None and not isinstance(preprocess, Preprocess):
        raise TypeError(f"preprocess must be a fastmobilenet.Preprocess, not {type(preprocess).__name__}")


def class_count(graph: Graph) -> int | None:
    """The channels of an output of one pixel, or the classes of a detector; None for what is neither."""
    head = head_of(graph)
    if head is not None:
        return head.names
    _, h, w, c = infer_shapes(graph, 1, *graph.input_size)[graph.output]
    return c if h == w == 1 else None


def check_labels(graph: Graph, labels: Sequence[str] | str | os.PathLike[str] | None) -> tuple[str, ...] | None:
    """The given names, else the graph's, as one name a class. ``()`` gives None.

    Raises TypeError for what is no list of strings in a known order; ValueError, or for the graph's own names
    ModelError, where their count is wrong.
    """
    own = labels is None
    file = ""
    if labels is None:
        names = _names(graph.labels or ())
    elif isinstance(labels, (str, os.PathLike)):
        names, file = label_files.read(labels), f"{os.fsdecode(labels)}: "
        if not names:
            raise ValueError(f"{file}the file of labels is empty; give one name a line")
    else:
        names = _names(labels)
    if not names:
        return None
    classes = class_count(graph)
    fitted = None if classes is None else label_files.fit(names, classes)
    if fitted is None:
        have = "no classes" if classes is None else counted(classes, "class")
        there = "is" if len(names) == 1 else "are"
        message = f"{file}{graph.name} has {have}, but there {there} {counted(len(names), 'label')}"
        if own:
            raise ModelError(f"{message}; give others with labels=..., or none with labels=()")
        raise ValueError(message)
    return fitted


def _names(labels: Any) -> tuple[str, ...]:
    """A tuple of plain strings. A set has no order, and the keys of a mapping are no names."""
    names = None
    if not isinstance(labels, (Set, Mapping)) and np.iterable(labels):
        names = tuple(labels)
    if names is None or not all(isinstance(name, str) for name in names):
        wrong = type(labels).__name__
        if names:
            wrong += " of " + " and ".join(sorted({type(name).__name__ for name in names}))
        raise TypeError(
            f"labels must be a list of strings, or the path of a text file with one name a line, not {wrong}"
        )
    return tuple(map(str, names))


def check_takes_pictures(graph: Graph) -> None:
    """Raises ValueError for a network whose input has not three channels."""
    if graph.input_channels != 3:
        raise ValueError(
            f"{graph.name} takes {counted(graph.input_channels, 'channel')}, so it takes no pictures; "
            f"give {float_shapes(graph)}"
        )


def check_pictures(pictures: Sequence[Any]) -> None:
    """A list holds pictures: an array in it that is not uint8 was meant to be part of a batch."""
    for i, item in enumerate(pictures):
        if isinstance(item, np.ndarray) and item.dtype != np.uint8:
            raise TypeError(
                f"item {i} is a {item.dtype} array of shape {item.shape}, but a list holds pictures "
                "(paths, PIL images, uint8 arrays); join preprocessed float32 arrays with np.stack"
            )


def accepted(graph: Graph) -> str:
    """All that Model.run takes, in words."""
    if graph.input_channels != 3:
        return float_shapes(graph)
    return (
        "a path, a PIL image, uint8 pixels (height, width, 3) or (n, height, width, 3), a list or tuple of pictures, "
        f"or {float_shapes(graph)}"
    )


def float_shapes(graph: Graph) -> str:
    """The shapes of a preprocessed array, in words."""
    c = graph.input_channels
    shape = f"{c}, height, width)" if graph.input_layout == "NCHW" else f"height, width, {c})"
    return f"preprocessed float32 ({shape} or (n, {shape}"


def check_floats(x: npt.NDArray[Any], graph: Graph) -> tuple[int, int]:
    """The (height, width) of a preprocessed array of one picture or a batch; TypeError and ValueError where it is
    none."""
    if x.dtype.kind != "f" or x.dtype.itemsize != 4:
        hint = "; if it is preprocessed, use x.astype(np.float32)" if x.dtype.kind == "f" else ""
        raise TypeError(f"expected {accepted(graph)}; got {_given(x)}{hint}")
    axis, other = (-3, -1) if graph.input_layout == "NCHW" else (-1, -3)
    if x.ndim not in (3, 4) or x.shape[axis] != graph.input_channels:
        swapped = x.ndim in (3, 4) and x.shape[other] == graph.input_channels
        hint = f"; this model takes {graph.input_layout}: transpose the axes" if swapped else ""
        raise ValueError(f"expected {float_shapes(graph)}; got {_given(x)}{hint}")
    h, w = x.shape[-2:] if graph.input_layout == "NCHW" else x.shape[-3:-1]
    return h, w


def _given(x: npt.NDArray[Any]) -> str:
    return f"an array of dtype {x.dtype} and shape {x.shape}"


def float_batch(x: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], bool]:
    """A preprocessed array as a batch that is aligned, contiguous and of this machine's byte order, and whether it
    came with a batch axis. Copied only where it has to be."""
    batched = x.ndim == 4
    return np.require(x if batched else x[None], np.float32, ["C", "A"]), batched
