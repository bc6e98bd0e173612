"""What a step of a network takes at least on this machine: a roofline model of five resources.

Every resource alone gives a least time; the largest of them is the bound of the step. Each value is counted once,
without the padding of the memory layout, so that no step can need less:

| bound    | least time                                                                                        |
|----------|---------------------------------------------------------------------------------------------------|
| compute  | two operations a MAC, at the peak that all threads reach with nothing but multiply-adds, those of |
|          | a layer on bytes with nothing but dot products of bytes                                           |
| l2       | all values read and written, those between fused nodes twice, at the speed of second-level caches |
| memory   | what does not stay in the second-level caches, at the speed of what lies behind: L3 or memory     |
| weights  | the same bound, where most of those bytes are weights                                             |
| overhead | ``OVERHEAD``, whatever the step does                                                              |

Maps count as staying in the caches if the input and the output of the step fit into those of all threads together;
weights, if the weights of the whole network do so beside its largest maps. A step may take less than its bound where
an earlier one has fetched its weights, and where it has less multiplications to do than MACs are counted: those of a
1x1 convolution by Strassen's product (``/strassen1`` and ``/strassen2`` in the name of its kernel: 7/8 and 49/64 of
them) or of a 3x3 one in Winograd's form. Its share of the peak may then be above 1.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import numpy as np

from . import _native
from .caches import caches
from .graph import GraphBuilder
from .lower import Engine

#: Bound -> what it is called.
BOUNDS = {
    "compute": "compute",
    "l2": "L2 bandwidth",
    "memory": "L3 or memory bandwidth",
    "weights": "weight stream",
    "overhead": "overhead",
}

#: Seconds. An estimate, not measured: the barrier of two spinning threads takes 0.2 us, and the code and addresses of
#: a step are no longer in the first-level caches when its turn comes.
OVERHEAD = 0.5e-6

#: Bytes that are read to measure what lies behind the second-level caches: about as many as a MobileNet's weights,
#: at least four times those caches as far as LARGEST allows.
FAR, LARGEST = 16 << 20, 64 << 20

#: Seconds of one measurement of the peak, and of a bandwidth.
PEAK_SECONDS, READ_SECONDS = 0.05, 0.02

#: Input values of the layer that is run to measure a bandwidth.
WIDTH = 512


@dataclass(frozen=True)
class Rates:
    """What all threads of a run reach together. ``peak``: float32 operations a second. ``l2`` and ``memory``: bytes a
    second from the second-level caches and from what lies behind. ``l2_bytes``: the size of those caches. ``peak_u8``:
    operations on bytes a second; 0 for a network that has none."""

    peak: float
    l2: float
    memory: float
    l2_bytes: int
    peak_u8: float = 0.0

    def peak_of(self, precision: str) -> float:
        """Operations a second of a layer in "int8" or "fp32"."""
        return self.peak_u8 if precision == "int8" and self.peak_u8 else self.peak


@dataclass(frozen=True)
class Work:
    """What a step has to do for one picture. ``inner_bytes`` is the size of the maps between its fused nodes."""

    macs: int
    input_bytes: int
    output_bytes: int
    inner_bytes: int
    weight_bytes: int


def find_bound(work: Work, rates: Rates, *, weights_stay: bool, precision: str = "fp32") -> tuple[str, float]:
    """The key of BOUNDS that applies, and its seconds."""
    maps = work.input_bytes + work.output_bytes
    far_maps = 0 if maps <= rates.l2_bytes else maps
    far_weights = 0 if weights_stay else work.weight_bytes
    times = {
        "compute": 2 * work.macs / rates.peak_of(precision),
        "l2": (maps + 2 * work.inner_bytes + work.weight_bytes) / rates.l2,
        "weights" if far_weights > far_maps else "memory": (far_maps + far_weights) / rates.memory,
        "overhead": OVERHEAD,
    }
    name = max(times, key=times.__getitem__)
    return name, times[name]


def measure_peak(isa: str) -> float:
    """Operations a second that one thread does with nothing but multiply-adds; the best of some bursts."""
    return 1e9 * _native.peak_gflops(isa, PEAK_SECONDS)


def measure_peak_u8(isa: str) -> float:
    """The same of dot products of bytes; ``isa`` is a table of quantised kernels, or "" where nothing runs in them."""
    return 1e9 * _native.u8_peak_gops(isa, PEAK_SECONDS) if isa else 0.0


def measure_rates(isa: str, threads: int, peak: float, peak_u8: float = 0.0) -> Rates:
    """The rates of ``threads`` threads, each of which has the given peaks. Bandwidths are measured once a process."""
    l2 = caches().l2 * threads
    far = min(max(FAR, 4 * l2), LARGEST)
    near, behind = read_bandwidth(isa, threads, l2 // 2), read_bandwidth(isa, threads, far)
    return Rates(peak * threads, near, behind, l2, peak_u8 * threads)


@cache
def read_bandwidth(isa: str, threads: int, size: int) -> float:
    """Bytes a second at which the threads together read ``size`` bytes again and again; the best pass.

    A dense layer with weights of that size is run: its kernel reads every weight once, in order, for one
    multiply-add, and every thread has its own part.
    """
    builder = GraphBuilder()
    rows = max(size // (4 * WIDTH), 1)
    layer = builder.add("dense", builder.add("input"), params={"weight": np.zeros((rows, WIDTH), np.float32)})
    graph = builder.build(layer, input_size=(1, 1), input_channels=WIDTH, input_layout="NHWC")
    engine = Engine(graph, isa)
    x = np.zeros((1, 1, 1, WIDTH), np.float32)
    best, count, start = float("inf"), 0, time.perf_counter()
    while count < 5 or time.perf_counter() - start < READ_SECONDS:
        _, steps = engine.profile(x, threads=threads, pixels=False)
        best = min(best, *(seconds for name, _, seconds in steps if name == layer))
        count += 1
    return 4.0 * rows * WIDTH / best
