"""One framework in a process of its own: loads the network, then runs it when told to.

    python -m bench.worker '{"peer": "onnxruntime", "threads": 1, "precision": "fp32", "cpus": [1], "folder": "..."}'

The folder holds network.pkl (our Graph) and input.npy; the worker writes output.npy into it. Then it answers
each line of JSON on stdin with one on stdout: {"warmup": 2, "runs": 15} gives {"ns": [...]}. The peer
"peak" measures the FMA rate of one core instead, for int8 that of dot products of bytes: {"seconds": 0.1} gives
{"gflops": ...}.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

#: The peer that is no framework but the arithmetic peak.
PEAK = "peak"


def main() -> int:
    task = json.loads(sys.argv[1])
    replies = _private_stdout()
    _end_with_parent()
    if task["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, task["cpus"])  # before any framework counts the CPUs and starts threads
    try:
        answer = _open_peak(task["precision"]) if task["peer"] == PEAK else _open_network(task)
        _send(replies, answer.pop("ready"))
        for line in sys.stdin:
            _send(replies, answer["serve"](**json.loads(line)))
    except Exception as error:
        traceback.print_exc()
        _send(replies, {"error": f"{type(error).__name__}: {error}"})
        return 1
    return 0


def _private_stdout() -> TextIO:
    """The real stdout for replies alone; what frameworks print, also from C++, goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies


def _end_with_parent() -> None:
    """A worker is stopped most of the time and would not see that its parent has been killed."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _send(replies: TextIO, message: dict) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


def _open_network(task: dict) -> dict[str, Any]:
    import pickle

    import numpy as np

    from bench.peers.runners import RUNNERS
    from bench.peers.runners_int8 import RUNNERS_INT8

    runners = RUNNERS if task["precision"] == "fp32" else RUNNERS_INT8
    folder = Path(task["folder"])
    graph = pickle.loads((folder / "network.pkl").read_bytes())  # written by the parent a moment ago
    x = np.load(folder / "input.npy")
    scratch = folder / task["peer"]
    scratch.mkdir(exist_ok=True)
    start = time.perf_counter()
    runner = runners[task["peer"]](graph, x, task["threads"], scratch)
    output = runner.output()
    load_ms = (time.perf_counter() - start) * 1e3
    np.save(scratch / "output.npy", output)

    def serve(warmup: int, runs: int) -> dict:
        run, clock = runner.run, time.perf_counter_ns
        for _ in range(warmup):
            run()
        times = []
        for _ in range(runs):
            start = clock()
            run()
            times.append(clock() - start)
        return {"ns": times}

    return {"ready": {"load_ms": load_ms}, "serve": serve}


def _open_peak(precision: str) -> dict[str, Any]:
    from fastmobilenet import _native

    if precision == "int8":
        name = _native.u8_isa()[0]
        return {
            "ready": {"isa": name},
            "serve": lambda seconds: {"gflops": _native.u8_peak_gops(name, seconds)},
        }
    isa = os.environ.get("FASTMOBILENET_ISA") or _native.supported_isas()[0]

    def serve(seconds: float) -> dict:
        return {"gflops": _native.peak_gflops(isa, seconds)}

    serve(0.01)
    return {"ready": {"isa": isa}, "serve": serve}


if __name__ == "__main__":
    sys.exit(main())
