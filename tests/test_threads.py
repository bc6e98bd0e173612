"""The thread pool: no thread without need, no waiting after a run, safe under fork and from many threads."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from fastmobilenet import _native
from fastmobilenet.cpus import usable_cores
from fastmobilenet.lower import Engine, default_threads

from .test_lower import picture, residual_net


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(residual_net())


@pytest.fixture(scope="module")
def expected(engine: Engine) -> np.ndarray:
    return engine.run(picture(40, 40, n=3), threads=1, pixels=False)


PROGRAM = """
import threading
import numpy as np
from fastmobilenet import _native, models
from fastmobilenet.lower import Engine
engine = Engine(models.build("mobilenet_v2", width=0.25, classes=10))
x = np.zeros((1, 3, 32, 32) if engine._graph.input_layout == "NCHW" else (1, 32, 32, 3), np.float32)
def tasks():
    import os
    return len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else threading.active_count()
before = tasks()
engine.run(x, threads=1, pixels=False)
assert (_native.pool_size(), tasks()) == (0, before)
engine.run(x, threads=4, pixels=False)
assert _native.pool_size() <= 3, _native.pool_size()
assert tasks() <= before + 3
t = threading.Thread(target=engine.run, args=(x,), kwargs={"threads": 4, "pixels": False})
t.start(); t.join()
import atexit
atexit.register(lambda: engine.run(x, threads=2, pixels=False))
print("fine")
"""


def test_one_thread_makes_none_and_exit_does_not_hang(run_python) -> None:
    done = run_python("-c", PROGRAM, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "fine"


DAEMON = """
import threading, time
import numpy as np
from fastmobilenet import models
from fastmobilenet.lower import Engine
engine = Engine(models.build("mobilenet_v1", width=0.25, classes=10))
x = np.zeros((1, 64, 64, 3), np.float32)
def work():
    while True:
        engine.run(x, threads=1, pixels=False)
for _ in range(3):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.1)
"""


def test_exit_while_daemon_threads_run(run_python) -> None:
    for _ in range(3):
        done = run_python("-c", DAEMON, timeout=60)
        assert done.returncode == 0, done.stderr


def test_idle_after_run(engine: Engine) -> None:
    engine.run(picture(40, 40), threads=4, pixels=False)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(1)
    assert time.process_time() - before < 0.005


def test_many_python_threads(engine: Engine, expected: np.ndarray) -> None:
    x = picture(40, 40, n=3)
    wrong = []

    def work(threads: int) -> None:
        outputs = [engine.run(x, threads=threads, pixels=False) for _ in range(30)]
        wrong.extend(threads for y in outputs if not np.array_equal(y, expected))

    workers = [threading.Thread(target=work, args=(1 + i % 3,)) for i in range(8)]
    for w in workers:
        w.start()
    for w in workers:
        w.join(60)
        assert not w.is_alive(), "deadlock"
    assert not wrong


@pytest.mark.fork
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("busy", [False, True])
def test_run_in_a_forked_child(engine: Engine, expected: np.ndarray, busy: bool) -> None:
    x = picture(40, 40, n=3)
    engine.run(x, threads=2, pixels=False)
    stop = threading.Event()

    def keep_running() -> None:
        while not stop.is_set():
            engine.run(x, threads=2, pixels=False)

    other = threading.Thread(target=keep_running)
    if busy:
        other.start()
    try:
        for _ in range(5):
            pid = os.fork()
            if pid == 0:
                fine = all(np.array_equal(engine.run(x, threads=2, pixels=False), expected) for _ in range(3))
                os._exit(0 if fine else 1)
            end = time.monotonic() + 20
            while (done := os.waitpid(pid, os.WNOHANG))[0] == 0:
                assert time.monotonic() < end, "the child hangs"
                time.sleep(0.005)
            assert os.waitstatus_to_exitcode(done[1]) == 0
    finally:
        stop.set()
        if busy:
            other.join()


def _in_pool(i: int) -> bytes:
    return _ENGINE.run(picture(40, 40, n=3), threads=2, pixels=False).tobytes()


_ENGINE = Engine(residual_net())


@pytest.mark.fork
@pytest.mark.skipif(sys.platform != "linux", reason="fork is the start method of Linux")
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_multiprocessing_pool(expected: np.ndarray) -> None:
    _ENGINE.run(picture(40, 40), threads=2, pixels=False)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        results = pool.map_async(_in_pool, range(6)).get(timeout=60)
    assert set(results) == {expected.tobytes()}


def test_default_threads_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTMOBILENET_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert default_threads() == 3
    monkeypatch.setenv("FASTMOBILENET_NUM_THREADS", "5")
    assert default_threads() == 5
    monkeypatch.setenv("FASTMOBILENET_NUM_THREADS", "999999")
    assert default_threads() == _native.MAX_THREADS
    for bad in ("0", "-1", "many"):
        monkeypatch.setenv("FASTMOBILENET_NUM_THREADS", bad)
        with pytest.raises(ValueError, match="FASTMOBILENET_NUM_THREADS"):
            default_threads()


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_usable_cores_reads_quota_and_topology(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    proc, cgroup, sys_ = tmp_path / "proc", tmp_path / "cgroup", tmp_path / "sys"
    places = {"cgroup": cgroup, "proc": proc, "sys": sys_}
    assert usable_cores(**places) == 64
    for cpu in range(64):
        folder = sys_ / f"devices/system/cpu/cpu{cpu}/topology"
        _write(folder / "core_id", str(cpu // 2))
        _write(folder / "physical_package_id", "0")
    assert usable_cores(**places) == 32
    _write(proc / "self/cgroup", "0::/pod/container\n")
    _write(cgroup / "pod/container/cpu.max", "max 100000\n")
    assert usable_cores(**places) == 32
    _write(cgroup / "pod/cpu.max", "200000 100000\n")
    assert usable_cores(**places) == 2
    _write(cgroup / "pod/container/cpu.max", "50000 100000\n")
    assert usable_cores(**places) == 1
    _write(proc / "self/cgroup", "4:cpu,cpuacct:/job\n")
    _write(cgroup / "cpu/job/cpu.cfs_quota_us", "250000\n")
    _write(cgroup / "cpu/job/cpu.cfs_period_us", "100000\n")
    assert usable_cores(**places) == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert usable_cores(**places) == 1
