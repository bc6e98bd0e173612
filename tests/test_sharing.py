"""One Model for many threads (T33, T34), copies of it (T36), and what an import loads."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fastmobilenet
from fastmobilenet import Graph, Model

from .samples import assert_same_bits, floats, names, pixels

# --- threads and processes (T33, T34) ---------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_share_a_model(small_graph: Graph, threads: int) -> None:
    """T33: each has its own picture and, to make plans race, its own size."""
    model = Model.from_graph(small_graph, threads=threads)
    pictures = [floats(1 + i % 3, 20 + i, 40 - i, 3, seed=i) for i in range(8)]
    wanted = [model.run(x).tobytes() for x in pictures]
    fresh = Model.from_graph(small_graph, threads=threads)  # its plans are made in the threads
    start, wrong = threading.Barrier(8), []

    def work(i: int) -> None:
        start.wait()
        wrong.extend(i for _ in range(10) if fresh.run(pictures[i]).tobytes() != wanted[i])

    workers = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)
    assert not wrong


COUNT_THREADS = """
import atexit, os, sys, threading
import numpy as np
from fastmobilenet import Model, models

def count():
    return len(os.listdir("/proc/self/task"))

threads, x = int(sys.argv[1]), np.zeros((2, 64, 64, 3), np.uint8)
before = count()
model = Model.from_graph(models.build("mobilenet_v1", width=0.25, input_size=(64, 64)), threads=threads)
first = model.run(x)
print(count() - before)

def again(where):
    assert (model.run(x) == first).all(), where
    print(where, flush=True)

worker = threading.Thread(target=again, args=("thread",))
worker.start()
worker.join()
atexit.register(again, "atexit")
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
@pytest.mark.parametrize("threads", [1, 4])
def test_threads_that_are_made(run_python: Callable[..., Any], threads: int) -> None:
    """T34: none for threads=1, at most three for threads=4; other threads and atexit may run; exit does not hang."""
    done = run_python("-c", COUNT_THREADS, str(threads), env={"OPENBLAS_NUM_THREADS": "1"}, timeout=60)
    assert done.returncode == 0, done.stderr
    made, *rest = done.stdout.split()
    assert rest == ["thread", "atexit"]
    assert int(made) <= threads - 1


def test_import_is_light(run_python: Callable[..., Any]) -> None:
    """Neither Pillow nor the importers are loaded before they are needed, and NumPy only with Model."""
    code = """
import sys
import fastmobilenet
print("numpy" in sys.modules)
fastmobilenet.Model
late = "PIL", "fastmobilenet.importers", "fastmobilenet.models", "fastmobilenet.image", "importlib.metadata"
print(*[name for name in late if name in sys.modules])
"""
    done = run_python("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False"]


def test_the_package_lists_its_names() -> None:
    assert {"Graph", "Model", "ModelError", "Prediction", "Preprocess", "__version__"} <= set(dir(fastmobilenet))
    assert all(hasattr(fastmobilenet, name) for name in fastmobilenet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Modle'"):
        fastmobilenet.Modle  # noqa: B018


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_give_the_same_bits(small_graph: Graph, duplicate: Callable[[Model], Model]) -> None:
    """T36. The pickle holds the weights and no path, so there is no file that might have changed."""
    model, x = Model.from_graph(small_graph, threads=2, labels=names(10)), pixels(2, 32, 32, 3)
    other = duplicate(model)
    assert_same_bits(other.run(x), model.run(x))
    assert repr(other) == repr(model)
    assert other.labels == model.labels
