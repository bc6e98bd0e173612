"""The time of detection: suppression of boxes alone, and whole detectors with random weights.

    python -m bench.detection [--threads N]

Suppression: 1917 boxes with scores of 90 classes, uniform from 0 to 1, all of which count, by the rules of TensorFlow
(100 boxes), of torchvision (300 boxes of the best 300 of each class) and of TensorFlow Lite's fast mode. Milliseconds,
minimum and median; one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from fastmobilenet import Model, _native, models

RULES = {
    "tensorflow": {"detections": 100, "per_class": 100},
    "torchvision": {"detections": 300, "candidates": 300},
    "fast": {"detections": 100, "agnostic": True},
}
ARCHS = ("ssdlite320_mobilenet_v3_large", "ssd_mobilenet_v1", "ssdlite_mobilenet_v2")


def milliseconds(call: Callable[[], object], runs: int) -> str:
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return f"{min(times):6.2f} / {statistics.median(times):6.2f} ms"


def boxes(rng: np.random.Generator, n: int, clustered: bool) -> np.ndarray:
    """float32 (n, 4): anywhere, or about eight places."""
    centre = rng.uniform(0, 1, (8, 2))[rng.integers(0, 8, n)] if clustered else rng.uniform(0, 1, (n, 2))
    centre = centre + rng.normal(0, 0.02, (n, 2))
    size = rng.uniform(0.05, 0.4, (n, 2))
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    threads = parser.parse_args().threads
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, (1917, 90)).astype(np.float32)
    for name, rule in RULES.items():
        for clustered in (False, True):
            b = boxes(rng, 1917, clustered)
            took = milliseconds(lambda b=b, rule=rule: _native.nms(b, scores, 1e-8, 0.6, **rule), 50)
            print(f"suppression, {name}, {'clustered' if clustered else 'scattered'}: {took}")
    for arch in ARCHS:
        model = Model.from_graph(models.build(arch), threads=threads)
        picture = rng.integers(0, 256, (*model.input_size, 3), dtype=np.uint8)
        run, detect = (milliseconds(partial(call, picture), 30) for call in (model.run, model.detect))
        print(f"{arch}, {threads} threads: network {run}, detect {detect}")


if __name__ == "__main__":
    main()
