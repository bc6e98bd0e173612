"""Threads of a run take each other's work: workers that come late, at any point, or never, change only the time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from fastmobilenet import _native, models
from fastmobilenet.graph import Graph, GraphBuilder
from fastmobilenet.lower import Engine

from . import test_u8
from .test_lower import conv, picture

SPIN_US = 500


@pytest.fixture
def disturbed() -> Iterator[None]:
    """Puts the pool back as it was."""
    yield
    _native.set_worker_delay_us(0)
    _native.set_spin_us(SPIN_US)


def grouped() -> Graph:
    """3x3 convolutions; groups of channels that fill blocks, share them, and are single; maps of 40 rows down to 10."""
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 48, 3, 2)
    x = conv(b, x, 48, 48, 3)
    x = conv(b, x, 48, 96, 3, groups=3)
    x = conv(b, x, 96, 40, 1, groups=4)
    x = conv(b, x, 40, 40, 3, 2, groups=40)
    x = conv(b, x, 40, 80, 1, groups=5)
    x = conv(b, x, 80, 64, 3, 2, groups=2)
    x = conv(b, x, 64, 96, 3)
    return b.build(conv(b, x, 96, 24, 1), input_layout="NHWC")


def quantized() -> Graph:
    b = GraphBuilder()
    x = b.add("quantize", b.add("input"), quant=test_u8.INPUT)
    x = test_u8.conv(b, x, 3, 40, 3, 2)
    y = test_u8.conv(b, x, 40, 40, 3, groups=40)
    y = test_u8.conv(b, y, 40, 40, 1)
    x = b.add("add", x, y, quant=test_u8.Quant(1 / 40, 120))
    x = test_u8.conv(b, x, 40, 72, 3, 2, groups=1)
    return test_u8.finish(b, x)


def network(name: str, size: int = 64) -> Graph:
    return models.build(name, classes=10, input_size=(size, size)).replace(input_layout="NHWC")


GRAPHS = {
    "grouped": grouped,
    "quantized": quantized,
    "mobilenet_v2": lambda: network("mobilenet_v2"),
    "mobilenet_v3_small": lambda: network("mobilenet_v3_small"),
    "shufflenet_v1_g3": lambda: network("shufflenet_v1_g3", 32),
    "shufflenet_v2_x0_5": lambda: network("shufflenet_v2_x0_5"),
    "squeezenet1_1": lambda: network("squeezenet1_1"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_same_bits_whoever_does_what(name: str, disturbed: None) -> None:
    engine = Engine(GRAPHS[name]())
    size = {"grouped": 80, "quantized": 40, "shufflenet_v1_g3": 32}.get(name, 64)
    x = picture(size, size, n=3)
    expected = engine.run(x, threads=1, pixels=False)
    for delay, runs in ((-1, 1), (0, 3), (30, 6), (1000, 3)):
        _native.set_worker_delay_us(delay)
        for threads in (2, 3, 7):
            for _ in range(runs):
                found = engine.run(x, threads=threads, pixels=False)
                assert np.array_equal(found, expected), f"{delay} us, {threads} threads"


def test_caller_does_not_wait_for_workers_that_never_come(disturbed: None) -> None:
    engine = Engine(models.build("mobilenet_v1", width=0.5, classes=10).replace(input_layout="NHWC"))
    x = picture(160, 160)

    def fastest(threads: int) -> float:
        times = []
        for _ in range(8):
            start = time.perf_counter()
            engine.run(x, threads=threads, pixels=False)
            times.append(time.perf_counter() - start)
        return min(times)

    fastest(3)
    _native.set_worker_delay_us(-1)
    _native.set_spin_us(0)  # they shall not take the caller's core either
    # The same work, cut into more parts. Other programs may disturb any of these.
    assert any(fastest(3) < 1.5 * fastest(1) for _ in range(10))


@pytest.mark.parametrize("spin", [0, SPIN_US])
def test_workers_that_sleep_come_late(spin: int, disturbed: None) -> None:
    engine = Engine(grouped())
    x = picture(80, 80)
    expected = engine.run(x, threads=1, pixels=False)
    _native.set_spin_us(spin)
    for pause in (0, 0, 0.001, 0.003, 0, 0.002) * 10:
        time.sleep(pause)
        assert np.array_equal(engine.run(x, threads=4, pixels=False), expected)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_threads_that_stand_on_one_cpu(disturbed: None) -> None:
    engine, x = Engine(grouped()), picture(80, 80)
    expected = engine.run(x, threads=2, pixels=False)
    before = os.sched_getaffinity(0)
    tasks = [int(t) for t in os.listdir("/proc/self/task")]
    masks = {t: os.sched_getaffinity(t) for t in tasks}
    try:
        for cpu in before:
            for one in ({cpu}, before):  # all threads together on one CPU, then free to part
                for t in tasks:
                    os.sched_setaffinity(t, one)
                for _ in range(5):
                    assert np.array_equal(engine.run(x, threads=2, pixels=False), expected)
    finally:
        for t, mask in masks.items():
            os.sched_setaffinity(t, mask)


def test_two_callers_and_late_workers(disturbed: None) -> None:
    """The pool goes from one Program to the other while workers of the last run still look for work."""
    engines = [Engine(grouped()), Engine(network("mobilenet_v2", 32))]
    pictures = [picture(80, 80), picture(32, 32)]
    expected = [e.run(x, threads=1, pixels=False) for e, x in zip(engines, pictures, strict=True)]
    _native.set_worker_delay_us(50)
    wrong = []

    def work(i: int) -> None:
        outputs = [engines[i].run(pictures[i], threads=3, pixels=False) for _ in range(60)]
        wrong.extend(i for y in outputs if not np.array_equal(y, expected[i]))

    callers = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
    for c in callers:
        c.start()
    for c in callers:
        c.join(60)
        assert not c.is_alive(), "deadlock"
    assert not wrong


def test_a_program_may_go_while_workers_are_late(disturbed: None) -> None:
    """No worker may look into a Program that is gone."""
    _native.set_worker_delay_us(200)
    x = picture(40, 40)
    for _ in range(30):
        engine = Engine(quantized())
        engine.run(x, threads=4, pixels=False)
        del engine
