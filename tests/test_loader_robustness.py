"""Damaged and hostile .tflite files: a ModelError, or a network that runs, soon and in little memory."""

from __future__ import annotations

import functools
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmobilenet import reference
from fastmobilenet.errors import ModelError
from fastmobilenet.graph import Graph, infer_shapes
from fastmobilenet.importers import flatbuffer, tflite
from tests.tflite_files import RELU6, VALID, TfliteWriter

SECONDS, MEGABYTES = 1.0, 100
#: Seconds that the loop of patience() takes on a desktop or server CPU of 2020, rounded up.
USUAL = 0.012


def sample(dtype: str) -> bytes:
    """A small network with every kind of operator, float or quantised."""
    rng = np.random.default_rng(11)
    quantized = dtype != "float32"
    t = TfliteWriter()

    def tensor(name: str, *shape: int) -> int:
        return t.tensor(name, shape, dtype, **({"scale": 0.05, "zero_point": 3} if quantized else {}))

    def weights(*shape: int, axis: int = 0) -> tuple[int, int]:
        if quantized:
            info = np.iinfo(dtype)
            w = rng.integers(info.min, info.max, shape, dtype)
            scales = [0.01] * shape[axis] if dtype == "int8" else 0.01
            b = rng.integers(-99, 99, shape[axis], np.int32)
            return t.constant("w", w, scale=scales, axis=axis), t.constant("b", b, scale=scales)
        return t.constant("w", rng.normal(size=shape).astype("f4")), t.constant("b", np.ones(shape[axis], np.float32))

    x = tensor("x", 1, 6, 6, 3)
    a = tensor("a", 1, 3, 3, 4)
    t.conv(x, *weights(4, 3, 3, 3), a, stride=(2, 2), activation=RELU6)
    b = tensor("b", 1, 5, 5, 4)
    t.pad(a, b, [(0, 0), (1, 1), (1, 1), (0, 0)])
    c = tensor("c", 1, 3, 3, 4)
    t.depthwise(b, *weights(1, 3, 3, 4, axis=3), c, padding=VALID)
    d = tensor("d", 1, 3, 3, 4)
    t.add(a, c, d)
    e = tensor("e", 1, 2, 2, 4)
    t.average_pool(d, e, (2, 2))
    f = tensor("f", 1, 4)
    t.mean(e, f)
    g = tensor("g", 1, 2)
    t.fully_connected(f, *weights(2, 4), g)
    h = tensor("h", 1, 2)
    t.softmax(g, h)
    return t.finish(x, h)


def mixed() -> bytes:
    """Gates, channels, numbers, paddings and reshaped maps, with a constant stored as float16."""
    rng = np.random.default_rng(12)
    t = TfliteWriter()
    names = iter("abcdefghijklmnopqrstuvw")

    def tensor(*shape: int) -> int:
        return t.tensor(next(names), shape)

    def number(value: float) -> int:
        return t.constant("number", np.array(value, np.float32))

    x = tensor(1, 4, 4, 4)
    scaled, lifted, sixth, swish = (tensor(1, 4, 4, 4) for _ in range(4))
    half = t.tensor("half", (4,))
    t.op("DEQUANTIZE", [t.constant("stored", np.arange(4, dtype=np.float16))], [half])
    t.mul(x, half, scaled)
    t.add(scaled, number(3), lifted, activation=RELU6)
    t.mul(lifted, number(1 / 6), sixth)
    t.mul(scaled, sixth, swish)
    grouped, turned, shuffled = tensor(1, 4, 4, 2, 2), tensor(1, 4, 4, 2, 2), tensor(1, 4, 4, 4)
    t.reshape(swish, grouped, (1, 4, 4, 2, 2))
    t.transpose(grouped, turned, (0, 1, 2, 4, 3))
    t.reshape(turned, shuffled, (1, 4, 4, 4))
    first, second, joined = tensor(1, 4, 4, 2), tensor(1, 4, 4, 2), tensor(1, 4, 4, 6)
    t.split(shuffled, [first, second])
    t.concat([second, shuffled], joined)
    odd, pooled = tensor(1, 4, 4, 3), tensor(1, 2, 2, 3)
    t.strided_slice(joined, odd, (0, 0, 0, 1), (1, 4, 4, 6), (1, 1, 1, 2))
    t.max_pool(t.padded(odd, (1, 0, 0, 1)), pooled, (2, 2), (2, 2))
    gate, gated, flat, y = tensor(1, 1, 1, 3), tensor(1, 2, 2, 3), tensor(1, 12), tensor(1, 3)
    t.mean(pooled, gate, keep=True)
    t.mul(gate, pooled, gated)
    t.reshape(gated, flat, (1, 12))
    t.fully_connected(flat, t.constant("w", rng.normal(size=(3, 12)).astype(np.float32)), -1, y)
    z = tensor(1, 3)
    t.op("LOGISTIC", [y], [z])
    return t.finish(x, z)


#: The load() of an importer.
Load = Callable[[bytes | bytearray], Graph]

SAMPLES = {**{dtype: sample(dtype) for dtype in ("float32", "uint8", "int8")}, "mixed": mixed()}


def as_it_is(data: bytes | bytearray) -> Graph:
    """What is quantised in the file runs on bytes."""
    return tflite.load(data, quantized=True)


def try_to_load(data: bytes | bytearray, run: bool = True, load: Load = tflite.load) -> Graph | None:
    """None where the file was refused, as it should be."""
    try:
        graph = load(data)
    except ModelError:
        return None
    h, w = graph.input_size
    shape = infer_shapes(graph, 1, h, w)[graph.output]
    if run:
        values = reference.execute(graph, np.zeros((1, h, w, graph.input_channels)))
        assert values[graph.output].shape == shape
    return graph


def check(
    files: Iterable[bytes | bytearray], run: bool = True, trace: bool = True, load: Load = tflite.load
) -> tuple[int, int]:
    """Loads all, each within the limits; returns how many were loaded and how many refused.

    tracemalloc sees every byte and takes four times as long. Without ``trace``, what counts is how far the process
    grows beyond the largest that it ever was.
    """
    loaded = refused = 0
    slowest = 0.0
    before = largest_size()
    if trace:
        tracemalloc.start()
    try:
        for data in files:
            start = time.process_time()
            graph = try_to_load(data, run, load)
            slowest = max(slowest, time.process_time() - start)
            loaded, refused = loaded + (graph is not None), refused + (graph is None)
        peak = tracemalloc.get_traced_memory()[1] if trace else largest_size() - before
    finally:
        tracemalloc.stop()
    assert slowest < SECONDS * patience()
    assert peak < MEGABYTES * 2**20
    return loaded, refused


@functools.cache
def patience() -> float:
    """2 on a machine that runs Python at a usual speed, about 10 where the CPU is emulated."""
    data, found = bytes(8), {}
    start = time.process_time()
    for i in range(50_000):
        found[i % 100] = struct.unpack_from("<I", data, i % 4)[0] + i
    return max(2.0, (time.process_time() - start) / USUAL)


def largest_size() -> int:
    """The most memory that this process has had resident, in bytes; 0 where the system does not say."""
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def flips(data: bytes, places: Iterable[int], masks: tuple[int, ...]) -> Iterator[bytearray]:
    for place in places:
        for mask in masks:
            damaged = bytearray(data)
            damaged[place] ^= mask
            yield damaged


@pytest.mark.parametrize("dtype", SAMPLES)
def test_the_samples_load(dtype: str) -> None:
    assert check([SAMPLES[dtype], bytearray(SAMPLES[dtype]), memoryview(SAMPLES[dtype])]) == (3, 0)  # type: ignore[list-item]


@pytest.mark.parametrize("dtype", SAMPLES)
def test_every_prefix_is_refused(dtype: str) -> None:
    data = SAMPLES[dtype]
    loaded, refused = check((data[:n] for n in range(len(data))), trace=False)
    # The last bytes of "mixed" are a shape that no reader needs: the tensors have it too.
    assert loaded <= (100 if dtype == "mixed" else 0)
    assert loaded + refused == len(data)


@pytest.mark.parametrize("dtype", ["float32", "int8", "mixed", pytest.param("uint8", marks=pytest.mark.slow)])
def test_every_flipped_byte(dtype: str, pytestconfig: pytest.Config) -> None:
    data = SAMPLES[dtype]
    masks = tuple(1 << bit for bit in range(8)) if pytestconfig.getoption("--slow") else (0xFF,)
    # Emulated, a sample of them: the reader is plain Python, which does the same on every CPU.
    step = 3 if dtype == "mixed" and not pytestconfig.getoption("--slow") else 1
    places = range(0, min(len(data), 4096), step if patience() < 4 else 13)
    loaded, refused = check(flips(data, places, masks), trace=False)
    assert refused > len(places) // 10
    assert loaded > len(places) // 10  # names, weights, unused fields


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_flipped_bytes_of_what_runs_on_bytes(dtype: str, pytestconfig: pytest.Config) -> None:
    data = SAMPLES[dtype]
    step = 1 if pytestconfig.getoption("--slow") else 11 if patience() < 4 else 67
    places = range(0, min(len(data), 4096), step)
    loaded, refused = check(flips(data, places, (0xFF,)), trace=False, load=as_it_is)
    assert min(loaded, refused) > len(places) // 10


@pytest.mark.slow
@pytest.mark.parametrize("dtype", SAMPLES)
def test_every_number_made_extreme(dtype: str) -> None:
    data = SAMPLES[dtype]

    def damaged() -> Iterator[bytearray]:
        for place in range(0, len(data) - 4, 2):
            for value in (0, 1, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(data) - 4):
                copy = bytearray(data)
                struct.pack_into("<I", copy, place, value)
                yield copy

    check(damaged(), trace=False)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.sampled_from(sorted(SAMPLES)), st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=6))))
def test_several_changes_at_once(dtype: str, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(SAMPLES[dtype])
    for place, content in changes:
        place %= len(data)
        data[place : place + len(content)] = content
    try_to_load(data)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    assert try_to_load(content) is None
    try_to_load(struct.pack("<I4s", 8, b"TFL3") + content)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"TFL3",
        bytes(8),
        bytes(4096),
        bytes.fromhex("18 00 00 00 54 46 4c 33"),
        bytes.fromhex("ff ff ff ff 54 46 4c 33"),
        bytes.fromhex("00 00 00 00 54 46 4c 33"),
        bytes.fromhex("04 00 00 00 54 46 4c 33") * 99,
    ],
)
def test_small_nonsense(data: bytes) -> None:
    assert check([data]) == (0, 1)


@pytest.mark.parametrize("channels", [1, 4, 5, 8, 0])
def test_products_by_other_counts_of_channels(channels: int) -> None:
    """Two products in a row become one before shapes are checked."""
    t = TfliteWriter()
    x, y, z = t.tensor("x", (1, 2, 2, 4)), t.tensor("y", (1, 2, 2, 4)), t.tensor("z", (1, 2, 2, channels or 4))
    t.mul(x, t.constant("first", np.ones(4, np.float32)), y)
    t.mul(y, t.constant("second", np.ones(channels, np.float32)), z)
    assert check([t.finish(x, z)]) == ((1, 0) if channels == 4 else (0, 1))


@pytest.mark.parametrize("sizes", [(2, 4), (5, 4), (4, 0), (100, 4), (4, 100), (6, 4)])
def test_sizes_of_a_table(sizes: tuple[int, int]) -> None:
    """Of its vtable and of the table itself."""

    def data(*numbers: int) -> bytes:
        return struct.pack("<I4s2Hi", 12, b"TFL3", *numbers, 4)

    assert flatbuffer.root(data(4, 4), b"TFL3").table(0) is None
    with pytest.raises(ModelError, match=r"at byte (8|12)"):
        flatbuffer.root(data(*sizes), b"TFL3").table(0)


def test_bytes_that_are_not_in_one_piece() -> None:
    with pytest.raises(ModelError, match="in one piece"):
        flatbuffer.root(memoryview(SAMPLES["int8"])[::2], b"TFL3")


# --- real files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128_quant", "tf2_mobilenet_v2_1.0_224_ptq"])
def test_real_files(name: str, test_data: Path, pytestconfig: pytest.Config) -> None:
    """All prefixes and flips need --slow: a real file takes some 20 ms."""
    data = (test_data / "models" / f"{name}.tflite").read_bytes()
    slow = pytestconfig.getoption("--slow")
    rng = np.random.default_rng(12)
    places = range(4096) if slow else rng.integers(0, 4096, 40).tolist()
    loaded, refused = check(flips(data, places, (0xFF,)), run=False, trace=False)
    assert loaded + refused == len(places)
    ends = rng.integers(0, len(data), 1000 if slow else 20).tolist()
    check((data[:n] for n in [*range(100), *ends]), run=False, trace=False)
