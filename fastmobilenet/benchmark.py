"""How fast a Model runs on this machine, and which share of the arithmetic peak that is."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import count_macs, infer_shapes
from .model import Model
from .precision import of_graph, of_node
from .values import check_count, check_size

#: Runs before the clock starts: the first makes the plan and touches its memory, the rest warm the caches.
WARM_UP = 3

#: However slow the network, so many runs are timed: a median of fewer says little.
MIN_RUNS = 7

#: Seconds of one measurement of the peak.
PEAK_SECONDS = 0.1


@dataclass(frozen=True)
class Result:
    """Times of one network. ``times`` are seconds a call, in the order of the calls; a call runs ``batch`` pictures."""

    model: str
    size: tuple[int, int]
    batch: int
    threads: int
    isa: str
    cpu: str
    macs: int  # of one picture
    peak_gflops: float  # of all threads together: one thread's measured peak times their number
    times: tuple[float, ...]
    precision: str = "fp32"  # or "int8", or "int8 and fp32"
    macs_int8: int = 0  # how many of ``macs`` are on bytes
    peak_gops_int8: float = 0.0  # their peak, as peak_gflops is that of the others; 0 where there are none

    @property
    def minimum(self) -> float:
        """Seconds of the fastest call."""
        return min(self.times)

    @property
    def median(self) -> float:
        """Seconds of the median call."""
        return statistics.median(self.times)

    @property
    def images_per_second(self) -> float:
        """At the median time."""
        return self.batch / self.median

    def gflops(self, seconds: float) -> float:
        """10^9 floating-point operations a second for a call of so many seconds; one multiply-accumulate is two."""
        return 2e-9 * self.macs * self.batch / seconds

    def share_of_peak(self, seconds: float) -> float:
        """The part of the measured peak that a call of so many seconds reaches, 0..1."""
        least = (self.macs - self.macs_int8) / self.peak_gflops
        if self.macs_int8:
            least += self.macs_int8 / self.peak_gops_int8
        return 2e-9 * self.batch * least / seconds

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data for JSON; times in milliseconds."""
        return {
            "model": self.model,
            "height": self.size[0],
            "width": self.size[1],
            "batch": self.batch,
            "threads": self.threads,
            "isa": self.isa,
            "precision": self.precision,
            "cpu": self.cpu,
            "macs": self.macs,
            "macs_int8": self.macs_int8,
            "runs": len(self.times),
            "min_ms": 1e3 * self.minimum,
            "median_ms": 1e3 * self.median,
            "images_per_second": self.images_per_second,
            "peak_gflops": self.peak_gflops,
            "peak_gops_int8": self.peak_gops_int8,
            "share_of_peak_median": self.share_of_peak(self.median),
            "share_of_peak_min": self.share_of_peak(self.minimum),
            "times_ms": [1e3 * t for t in self.times],
        }


def benchmark(
    model: Model,
    *,
    size: int | tuple[int, int] | None = None,
    batch: int = 1,
    seconds: float = 3.0,
    progress: Callable[[float], None] | None = None,
) -> Result:
    """Time ``model.run`` on uint8 pixels that have the network's size, normalisation included, for ``seconds`` and
    at least MIN_RUNS calls. ``progress`` is called between the calls with the part of the time that has passed, 0..1.

    The peaks are measured before and after, and the larger figures count: a shared machine is rarely quiet.
    Raises ValueError for a network that takes no pictures, ModelError for a size that it does not allow, TypeError and
    ValueError for other arguments.
    """
    h, w = model.input_size if size is None else check_size(size)
    batch = check_count("batch", batch)
    if not seconds > 0:
        raise ValueError(f"seconds must be above 0, not {seconds}")
    graph = model.graph
    shapes = infer_shapes(graph, 1, h, w)  # before memory is taken: it refuses sizes that do not fit
    if batch * h * w * 3 > sys.maxsize:
        raise MemoryError(f"a batch of {batch} pictures of {h}x{w}")
    pixels = np.random.default_rng(0).integers(0, 256, (batch, h, w, 3), dtype=np.uint8)
    for _ in range(WARM_UP):
        model.run(pixels, size=(h, w))
    peaks = _peaks(model)
    times: list[float] = []
    start = time.perf_counter()
    while len(times) < MIN_RUNS or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        model.run(pixels, size=(h, w))
        times.append(time.perf_counter() - before)
        if progress is not None:
            progress(min((time.perf_counter() - start) / seconds, 1.0))
    peak, peak_int8 = map(max, peaks, _peaks(model))
    macs = {node.name: count_macs(node, shapes) for node in graph.nodes}
    return Result(
        model=model.name,
        size=(h, w),
        batch=batch,
        threads=model.threads,
        isa=model._engine.isas,
        cpu=cpu_name(),
        macs=sum(macs.values()),
        peak_gflops=peak * model.threads,
        times=tuple(times),
        precision=of_graph(graph),
        macs_int8=sum(macs[node.name] for node in graph.nodes if of_node(node) == "int8"),
        peak_gops_int8=peak_int8 * model.threads,
    )


def _peaks(model: Model) -> tuple[float, float]:
    """The multiply-adds that one thread can do with the model's instruction sets, in 10^9 operations a second: on
    float32, and on bytes, 0 where the model has nothing of these."""
    from . import _native

    isa_u8 = model._engine._isa_u8
    return _native.peak_gflops(model.isa, PEAK_SECONDS), _native.u8_peak_gops(isa_u8, PEAK_SECONDS) if isa_u8 else 0.0


def cpu_name() -> str:
    """The CPU as the operating system names it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() == "model name" and value.strip():
                    return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
