"""Damaged and hostile .tflite files: a ModelError, or a network that runs, soon and in little memory."""

from __future__ import annotations

import itertools
import struct
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmobilenet import reference
from fastmobilenet.errors import ModelError
from fastmobilenet.graph import Graph, infer_shapes
from fastmobilenet.importers import flatbuffer, tflite, tflite_schema
from tests.tflite_files import RELU6, VALID, Fields, TfliteWriter, i8, i32, pack, u8, u32

SECONDS, MEGABYTES = 1.0, 100
HUGE = 2**31 - 1


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


SAMPLES = {dtype: sample(dtype) for dtype in ("float32", "uint8", "int8")}


def try_to_load(data: bytes | bytearray, run: bool = True) -> Graph | None:
    """None where the file was refused, as it should be."""
    try:
        graph = tflite.load(data)
    except ModelError:
        return None
    h, w = graph.input_size
    shape = infer_shapes(graph, 1, h, w)[graph.output]
    if run:
        values = reference.execute(graph, np.zeros((1, h, w, graph.input_channels)))
        assert values[graph.output].shape == shape
    return graph


def check(files: Iterable[bytes | bytearray], run: bool = True, trace: bool = True) -> tuple[int, int]:
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
            graph = try_to_load(data, run)
            slowest = max(slowest, time.process_time() - start)
            loaded, refused = loaded + (graph is not None), refused + (graph is None)
        peak = tracemalloc.get_traced_memory()[1] if trace else largest_size() - before
    finally:
        tracemalloc.stop()
    assert slowest < SECONDS
    assert peak < MEGABYTES * 2**20
    return loaded, refused


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
    assert (loaded, refused) == (0, len(data))


@pytest.mark.parametrize("dtype", ["float32", "int8", pytest.param("uint8", marks=pytest.mark.slow)])
def test_every_flipped_byte(dtype: str, pytestconfig: pytest.Config) -> None:
    data = SAMPLES[dtype]
    masks = tuple(1 << bit for bit in range(8)) if pytestconfig.getoption("--slow") else (0xFF,)
    loaded, refused = check(flips(data, range(min(len(data), 4096)), masks), trace=False)
    assert refused > len(data) // 10
    assert loaded > len(data) // 10  # names, weights, unused fields


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


def test_bytes_that_are_not_in_one_piece() -> None:
    with pytest.raises(ModelError, match="in one piece"):
        flatbuffer.root(memoryview(SAMPLES["int8"])[::2], b"TFL3")


# --- claims that no file can keep -----------------------------------------------------------------------


def chain(length: int = 2) -> tuple[TfliteWriter, list[int]]:
    """x -> 1x1 convolution -> ... -> y"""
    t = TfliteWriter()
    tensors = [t.tensor(f"t{i}", (1, 4, 4, 3)) for i in range(length + 1)]
    weight = t.constant("w", np.ones((3, 1, 1, 3), np.float32))
    for source, target in itertools.pairwise(tensors):
        t.conv(source, weight, -1, target)
    return t, tensors


def refuse(t: TfliteWriter, source: Any, target: Any, message: str) -> None:
    data = t.finish(source, target)
    assert check([data], run=False) == (0, 1)
    with pytest.raises(ModelError, match=message):
        tflite.load(data)


def test_the_chain_itself_loads() -> None:
    t, (x, _, y) = chain()
    assert check([t.finish(x, y)]) == (1, 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({1: i32(0)}, "the stride is 1x0"),
        ({2: i32(-1)}, "the stride is -1x1"),
        ({1: i32(HUGE)}, "the stride is 1x2147483647"),
        ({4: i32(0)}, "the dilation is 1x0"),
        ({5: i32(HUGE)}, "the dilation is 2147483647x1"),
        ({0: i8(2)}, r"padding 2 is neither SAME \(0\) nor VALID"),
        ({3: i8(-1)}, "fused activation -1"),
    ],
)
def test_absurd_options(options: Fields, message: str) -> None:
    t, (x, _, y) = chain()
    t.operators[1][4] = t.operators[1][4] | options
    refuse(t, x, y, message)


@pytest.mark.parametrize(
    "shape, message",
    [
        ([1, HUGE, HUGE, 3], r"\(1, 2147483647, 2147483647, 3\) is too large"),
        ([1, 2**15, 2**15, 3], "is too large"),
        ([1, -4, 4, 3], "the shape"),
        ([1, 0, 4, 3], "the input must be"),
        ([4, 4, 3], "the input must be"),
        ([], "the input must be"),
        ([1] * 9, "the shape"),
        ([1, 5, 4, 3], "the file gives it the shape"),
        ([2, 4, 4, 3], "the file gives it the shape"),
        ([1, 4, 4, 2], "do not fit 2 input channels"),
    ],
)
def test_absurd_shapes(shape: list[int], message: str) -> None:
    t, (x, _, y) = chain()
    t.tensors[x][0] = np.array(shape, np.int32)
    refuse(t, x, y, message)


@pytest.mark.parametrize("shape", [[3, 1, 1, 4], [HUGE, 1, 1, 3], [HUGE] * 4, [3, 1, 1, 0], [3, 1, 1, -3], [9], []])
def test_weights_that_do_not_have_their_shape(shape: list[int]) -> None:
    t, (x, _, y) = chain()
    t.tensors[-1][0] = np.array(shape, np.int32)
    refuse(t, x, y, "bytes are stored|the shape|must have rank 4")


@pytest.mark.parametrize("buffer", [2, HUGE, 2**32 - 1])
def test_buffers_that_are_not_there(buffer: int) -> None:
    t, (x, _, y) = chain()
    t.tensors[-1][2] = u32(buffer)
    refuse(t, x, y, f"lies in buffer {buffer}, but there are 2")


def connect(number: int, **ends: list[int]) -> Callable[[TfliteWriter], None]:
    def change(t: TfliteWriter) -> None:
        for field, name in ((1, "inputs"), (2, "outputs")):
            if name in ends:
                t.operators[number][field] = np.array(ends[name], np.int32)

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (connect(0, inputs=[1, 3, -1]), "t1'.*is not computed before it"),  # reads what it makes
        (connect(0, inputs=[2, 3, -1]), "t2'.*is not computed before it"),  # a cycle
        (connect(0, inputs=[3, 3, -1]), "is a constant"),
        (connect(0, inputs=[-1, 3, -1]), "input 0 is missing"),
        (connect(0, inputs=[0]), "input 1 is missing"),
        (connect(0, inputs=[]), "input 1 is missing"),
        (connect(0, inputs=[0, 0, -1]), "must be a constant"),
        (connect(0, inputs=[0, 3, 0]), "must be a constant"),
        (connect(0, inputs=[0, 3, 3]), "bias has shape"),
        (connect(0, inputs=[0, 4, -1]), "name tensors"),
        (connect(0, inputs=[0, HUGE, -1]), "name tensors"),
        (connect(0, inputs=[0, -2, -1]), "name tensors"),
        (connect(0, outputs=[-1]), "name tensors"),
        (connect(1, outputs=[2, 1]), "tensor 1 is made twice"),
        (connect(1, outputs=[1]), "tensor 1 is made twice"),
        (connect(1, outputs=[0]), "tensor 0 is made twice"),
        (connect(1, outputs=[]), "no operator leads"),
        (lambda t: t.operators[0].update({0: u32(9)}), "operator 0 has code 9"),
        (lambda t: t.operators[0].update({3: u8(2)}), "options of type 2, expected 1"),
        (lambda t: t.operators[0].update({4: None}), "has no options"),
        (lambda t: t.tensors[1].update({1: u8(5)}), r"type 5; float32, float16, .* are read"),
        (lambda t: t.tensors[3].update({6: {}}), "stored sparse"),
        (lambda t: t.tensors[3].update({4: {2: np.float32([1]), 4: u8(1)}}), "not of the kind scale and zero point"),
    ],
)
def test_absurd_connections(change: Callable[[TfliteWriter], Any], message: str) -> None:
    t, (x, _, y) = chain()
    change(t)
    refuse(t, x, y, message)


@pytest.mark.parametrize(
    "ends, message",
    [
        (([0, 1], [2]), "2 inputs and 1 outputs"),
        (([0], [1, 2]), "1 inputs and 2 outputs"),
        (([], []), "0 inputs and 0 outputs"),
        (([0], [0]), "no operator leads"),
        (([0], [3]), "no operator leads"),
        (([0], [4]), "outputs name tensors"),
        (([-1], [2]), "inputs name tensors"),
        (([3], [2]), "the input must not be a constant"),
    ],
)
def test_absurd_ends(ends: tuple[list[int], list[int]], message: str) -> None:
    t, _ = chain()
    refuse(t, *ends, message)


def test_other_versions_and_empty_models() -> None:
    t, (x, _, y) = chain()
    fields = t.fields([x], [y])
    for changed, message in (
        (fields | {0: u32(2)}, "schema version 2"),
        (fields | {2: None}, "no subgraph"),
        (fields | {2: [{}]}, "0 inputs and 0 outputs"),
        (fields | {1: None}, "has code 0, but there are 0"),
        ({}, "schema version 0"),
    ):
        with pytest.raises(ModelError, match=message):
            tflite.load(pack(changed))
    with pytest.raises(ModelError, match="expected b'TFL3'"):
        tflite.load(pack(fields, b"TFL2"))


def test_one_buffer_shared_by_many_tensors_is_not_unfolded() -> None:
    """A megabyte of weights, named by 400 tensors, would be 1.6 GB."""
    n = 400
    t = TfliteWriter()
    buffer = t.buffer(np.ones((512, 1, 1, 512), np.int8))
    tensors = [t.tensor(f"t{i}", (1, 1, 1, 512)) for i in range(n + 1)]
    for source, target in itertools.pairwise(tensors):
        weight = t.tensor("w", (512, 1, 1, 512), "int8", scale=1.0)
        t.tensors[weight][2] = u32(buffer)
        t.conv(source, weight, -1, target)
    refuse(t, tensors[0], tensors[-1], "add up to far more than the file holds")


def test_many_nodes_of_one_name_load_in_time() -> None:
    n = 3000
    t = TfliteWriter()
    tensors = [t.tensor("same", (1, 1, 1, 3)) for _ in range(n + 1)]
    for source, target in itertools.pairwise(tensors):
        t.op("RELU", [source], [target])
    assert check([t.finish(tensors[0], tensors[-1])], run=False) == (1, 0)


def test_too_many_operators() -> None:
    t, (x, _, y) = chain()
    t.operators += [t.operators[0]] * tflite_schema.MAX_OPERATORS
    refuse(t, x, y, r"claims 10002 entries; at most 10000 are read")


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
