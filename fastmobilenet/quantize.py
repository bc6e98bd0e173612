"""Post-training quantisation: a network of floats and some pictures -> the same network on bytes, and a report.

1. Every tensor becomes a node of its own, and pixels become bytes as they are where that is possible
   (quantize_graph.py).
2. The pictures run through, and channels are brought to more equal ranges (calibration.py, equalize.py).
3. They run again, and each tensor gets the range with the least squared error (quantize_ranges.py).
4. Weights become int8 with a scale for each output channel, biases int32.
5. Both networks run on the pictures, those too that had no say in the ranges (quantize_report.py).
"""

from __future__ import annotations

import difflib
import math
import os
import reprlib
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import calibration, quantize_graph
from .equalize import equalize as equalize_channels
from .errors import ModelError
from .fmn import encode
from .folders import pictures as pictures_in
from .graph import Graph
from .lower import Engine
from .passes import quantized
from .quantize_report import LayerQuality, QuantizationReport

#: progress(what is done now, pictures done, pictures in all)
Progress = Callable[[str, int, int], None]

#: Pictures whose tensors are compared layer by layer.
COMPARED = 16

#: Runs of one picture that are timed, of which the fastest counts.
RUNS = 12


@dataclass(frozen=True)
class Options:
    """What :meth:`fastmobilenet.Model.quantize` takes beside the pictures."""

    equalize: bool = True
    bias_correction: bool = True
    keep: tuple[str, ...] = ()


def expand_folder(images: Any) -> Any:
    """The list of its pictures for the path of a folder, all else as it is. Raises ValueError for a folder without
    pictures and OSError for one that cannot be read."""
    if not isinstance(images, (str, os.PathLike)) or not os.path.isdir(images):
        return images
    folder, closed = os.fsdecode(images), list[OSError]()
    paths = list(pictures_in(folder, closed))
    if closed:
        raise closed[0]
    if not paths:
        raise ValueError(f"{folder}: no pictures in this folder")
    return paths


def check_keep(keep: Any) -> tuple[str, ...]:
    """The names as a tuple. Raises TypeError for what is no list of names: one string has characters only."""
    if isinstance(keep, str) or not np.iterable(keep) or not all(isinstance(name, str) for name in keep):
        raise TypeError(f"keep must be a list of names of layers, not {reprlib.repr(keep)}")
    return tuple(keep)


def split(n: int, held_out: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The numbers of the pictures that calibrate, at least one, and of those that do not: spread over all of them,
    which may be sorted by class. Raises ValueError for a share that is none, and for no pictures."""
    if isinstance(held_out, bool) or not isinstance(held_out, (int, float)) or not 0 <= held_out < 1:
        raise ValueError(f"held_out must be a share from 0 to less than 1, not {held_out!r}")
    if n < 1:
        raise ValueError("give at least one picture to calibrate with")
    count = max(1, n - int(n * held_out))
    chosen = np.arange(count) * n // count
    return chosen, np.setdiff1d(np.arange(n), chosen)


def quantize(
    graph: Graph,
    batch: npt.NDArray[Any],
    size: tuple[int, int],
    options: Options,
    threads: int,
    progress: Progress | None = None,
) -> tuple[Graph, Callable[[Engine, Engine, npt.NDArray[Any]], QuantizationReport]]:
    """The network of bytes, and the function that makes the report of (engine before, engine after, pictures held out).

    ``graph`` is what :meth:`fastmobilenet.lower.Engine.graph` gives; ``batch`` the pictures to calibrate with, uint8 or
    preprocessed floats of ``size``. Raises ValueError for names in ``keep`` that are no layers, and ModelError for a
    network that is quantised already or cannot be.
    """
    if any(quantized(n) or n.op == "dequantize" for n in graph.nodes):
        raise ModelError(f"{graph.name} is quantised already; give a network of floats")
    show = progress or _silent
    graph, origin = quantize_graph.separate(graph)
    floats = quantize_graph.nodes_of_floats(graph, _kept(graph, origin, options.keep))
    if all(n.name in floats for n in graph.nodes if n.op != "input"):
        raise ModelError(f"{graph.name}: nothing is left to quantise: all its layers stay fp32")
    graph, source = quantize_graph.centre_input(graph, floats)

    def stage(text: str) -> Callable[[int], None]:
        return lambda done: show(text, done, len(batch))

    statistics = calibration.channel_statistics(graph, batch, size, threads, stage("ranges"))
    if options.equalize:
        graph, statistics = equalize_channels(graph, statistics)
    found = calibration.histograms(graph, batch, size, statistics, threads, stage("histograms"))
    quants = quantize_graph.choose_quants(graph, floats, found, source)
    result = quantize_graph.to_bytes(graph, quants, floats, statistics, bias_correction=options.bias_correction)

    def report(before: Engine, after: Engine, rest: npt.NDArray[Any]) -> QuantizationReport:
        some = batch[np.arange(min(COMPARED, len(batch))) * len(batch) // min(COMPARED, len(batch))]
        noise = calibration.signal_to_noise(graph, result, some, size, threads, stage("comparison"))
        # What lies before an activation is clipped where that is flat: what counts is the result.
        inner = {n.inputs[0] for n in graph.nodes if n.op == "activation" and origin[n.name] == origin[n.inputs[0]]}
        layers = [
            LayerQuality(n.name, origin[n.name], n.op, noise[n.name], n.name in floats)
            for n in graph.nodes
            if n.op != "input" and n.name not in inner
        ]
        return QuantizationReport(
            pictures=len(batch),
            held_out=len(rest),
            agreement=_agreement(before, after, batch, threads),
            agreement_held_out=_agreement(before, after, rest, threads),
            layers=tuple(layers),
            equalized=options.equalize,
            bias_corrected=options.bias_correction,
            bytes=(_file_size(before), _file_size(after)),
            seconds=_times(before, after, batch[:1], threads),
        )

    return result, report


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _kept(graph: Graph, origin: dict[str, str], keep: Iterable[str]) -> Collection[str]:
    """All nodes that belong to the layers of these names."""
    layers = [n for n in graph.nodes if n.op != "input"]
    known = {origin[n.name] for n in layers} | {n.name for n in layers}
    for name in keep:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 3, 0.4)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise ValueError(f"keep: {graph.name} has no layer {name!r}{hint}")
    wanted = set(keep)
    return {n.name for n in layers if wanted & {n.name, origin[n.name]}}


def _agreement(before: Engine, after: Engine, batch: npt.NDArray[Any], threads: int) -> float | None:
    """The share of pictures with the same best class. None for no pictures, and for a network that is no classifier."""
    same = []
    for first in range(0, len(batch), calibration.CHUNK):
        part = batch[first : first + calibration.CHUNK]
        a, b = (e.run(part, threads=threads, pixels=part.dtype == np.uint8) for e in (before, after))
        if math.prod(a.shape[1:3]) != 1:
            return None
        same.extend((a.argmax(axis=-1) == b.argmax(axis=-1)).reshape(-1).tolist())
    return sum(same) / len(same) if same else None


def _file_size(engine: Engine) -> int:
    header, arrays = encode(engine.graph())
    return len(header) + sum(array.nbytes for array in arrays)


def _times(before: Engine, after: Engine, picture: npt.NDArray[Any], threads: int) -> tuple[float, float]:
    """The fastest of some runs in turn, in seconds."""
    best = [math.inf, math.inf]
    for _ in range(RUNS):
        for i, engine in enumerate((before, after)):
            start = time.perf_counter()
            engine.run(picture, threads=threads, pixels=picture.dtype == np.uint8)
            best[i] = min(best[i], time.perf_counter() - start)
    return best[0], best[1]
