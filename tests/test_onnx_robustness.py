"""Damaged and hostile .onnx files: a ModelError, or a network that runs, soon and in little memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmobilenet.graph import Graph
from fastmobilenet.importers import onnx
from tests.onnx_files import OnnxWriter, entry, field, varint
from tests.test_loader_robustness import check, flips, patience, try_to_load


def torch_like() -> bytes:
    """A network as PyTorch writes it: explicit pads, batch norm, shapes that are computed, weights as raw bytes."""
    rng = np.random.default_rng(11)
    w = OnnxWriter(opset=17)

    def weights(*shape: int) -> str:
        return w.constant(rng.normal(size=shape).astype(np.float32))

    x = w.input("n", 3, 6, 6)
    attrs = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [1, 1], "group": 1}
    a = w.op("Conv", x, weights(4, 3, 3, 3), weights(4), **attrs)
    norm = [w.constant(np.abs(rng.normal(size=4)).astype(np.float32)) for _ in range(4)]
    a = w.op("BatchNormalization", a, *norm, epsilon=1e-3)
    six = w.op("Constant", value=np.array(6, np.float32))
    b = w.op("Clip", a, w.op("Constant", value_float=0.0), six)
    c = w.op("Conv", b, weights(4, 1, 3, 3), group=4, pads=[1, 1, 1, 1])
    d = w.op("Add", w.op("Conv", c, weights(4, 4, 1, 1)), b)
    e = w.op("AveragePool", d, kernel_shape=[2, 2], strides=[1, 1], count_include_pad=1, pads=[1, 0, 0, 1])
    f = w.op("GlobalAveragePool", e)
    first = w.op("Unsqueeze", w.op("Gather", w.op("Shape", f), w.constant(np.array(0))), w.constant([0]))
    g = w.op("Reshape", f, w.op("Concat", first, w.constant([-1]), axis=0))
    h = w.op("Gemm", w.op("Dropout", g), weights(5, 4), weights(5), alpha=1.0, beta=1.0, transB=1)
    return w.finish(w.op("Softmax", h, axis=-1), metadata=field(14, entry("key", "value")))


def tensorflow_like() -> bytes:
    """A network as from TensorFlow: transposes, Pad, SAME, other types of weights, numbers in fields of their type."""
    rng = np.random.default_rng(12)
    w = OnnxWriter(opset=9)
    x = w.op("Sub", w.op("Mul", w.input(1, 6, 7, 3), w.constant(2.0)), w.constant(1.0))
    x = w.op("Transpose", x, perm=[0, 3, 1, 2])
    x = w.op("Pad", x, pads=[0, 0, 0, 0, 0, 0, 1, 1], mode="constant")
    half = w.constant(rng.normal(size=(3, 3, 3, 4)).astype(np.float16), typed="packed")
    a = w.op("Conv", x, w.op("Transpose", w.op("Cast", half, to=1), perm=[3, 2, 0, 1]), strides=[2, 2])
    a = w.op("Min", w.op("Max", a, w.constant(0.0)), w.constant(6.0))
    depthwise = w.op("Reshape", w.constant(rng.normal(size=(4, 9)), typed="single"), w.constant([4, 1, 3, 3]))
    b = w.op("Conv", a, depthwise, auto_pad="SAME_UPPER", group=4)
    c = w.op("ReduceMean", w.op("ReduceMean", b, axes=[3], keepdims=0), axes=[2], keepdims=0)
    d = w.op(
        "Add", w.op("MatMul", c, w.constant(rng.normal(size=(4, 5)).astype("f4"), typed="packed")), w.constant(1.0)
    )
    return w.finish(w.op("Identity", w.op("Softmax", w.op("Squeeze", d, axes=[0]), axis=0)))


SAMPLES = {"torch": torch_like(), "tensorflow": tensorflow_like()}


def load(data: bytes | bytearray) -> Graph:
    return onnx.load(data)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_load(name: str) -> None:
    assert check([SAMPLES[name], bytearray(SAMPLES[name])], load=load) == (2, 0)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_prefix(name: str) -> None:
    """A message may end after any field, so that a few prefixes are networks."""
    data = SAMPLES[name]
    loaded, refused = check((data[:n] for n in range(len(data))), trace=False, load=load)
    assert (loaded, refused) == ((1, len(data) - 1) if name == "torch" else (0, len(data)))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_flipped_byte(name: str, pytestconfig: pytest.Config) -> None:
    data = SAMPLES[name]
    masks = tuple(1 << bit for bit in range(8)) if pytestconfig.getoption("--slow") else (0xFF,)
    # Emulated, a sample of them: the reader is plain Python, which does the same on every CPU.
    places = range(0, min(len(data), 4096), 1 if patience() < 4 else 13)
    loaded, refused = check(flips(data, places, masks), trace=False, load=load)
    assert refused > len(places) // 10
    assert loaded > len(places) // 10  # names, weights, unused fields


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_every_number_made_extreme(name: str) -> None:
    """Each byte as a varint of any size: what follows moves."""
    data = SAMPLES[name]

    def damaged() -> Iterator[bytes]:
        for place in range(len(data)):
            for value in (0, 1, 127, 128, 2**31, 2**63 - 1, 2**63, 2**64 - 1):
                yield data[:place] + varint(value) + data[place + 1 :]

    check(damaged(), trace=False, load=load)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.sampled_from(sorted(SAMPLES)), st.lists(st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=6))))
def test_several_changes_at_once(name: str, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(SAMPLES[name])
    for place, content in changes:
        place %= len(data)
        data[place : place + len(content)] = content
    try_to_load(data, load=load)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    assert try_to_load(content, load=load) is None
    try_to_load(field(1, 8) + field(8, field(2, 17)) + field(7, content), load=load)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x08",
        bytes(4096),
        b"\xff" * 4096,
        field(7, b""),
        field(8, field(2, 17)) + field(7, b""),
        b"\x3a" * 4096,
        bytes.fromhex("18 00 00 00 54 46 4c 33"),
    ],
)
def test_small_nonsense(data: bytes) -> None:
    assert check([data], load=load) == (0, 1)


def test_many_layers_of_nothing() -> None:
    """As many operators as are read at most: each of them is a node, or none, soon."""
    for kind in ("Identity", "Relu", "Transpose"):
        w = OnnxWriter()
        y = w.input(1, 1, 1, 1)
        for _ in range(5000):
            y = w.op(kind, y)
        check([w.finish(w.op("Relu", y))], run=False, load=load)


def test_constants_that_are_computed_again_and_again() -> None:
    w = OnnxWriter()
    x, y = w.input(1, 1, 1000, 1000), w.constant(np.zeros((1000, 1000), np.float32))
    for i in range(5000):
        y = w.op("Add" if i % 2 else "Transpose", y, *([y] if i % 2 else []))
    assert check([w.finish(w.op("Add", x, y))], load=load) == (0, 1)


def test_a_file_with_external_data(tmp_path: Path) -> None:
    (tmp_path / "net.data").write_bytes(bytes(36))
    w = OnnxWriter()
    place = {"location": "net.data", "offset": 0, "length": 36}
    weight = w.constant(np.empty(0, np.float32), dims=[1, 1, 3, 3], external=place)
    data = w.finish(w.op("Conv", w.input(1, 1, 4, 4), weight))

    def load_there(data: bytes | bytearray) -> Graph:
        return onnx.load(data, folder=str(tmp_path))

    assert check([data], load=load_there) == (1, 0)
    assert check((data[:n] for n in range(len(data))), trace=False, load=load_there) == (0, len(data))
    check(flips(data, range(len(data)), (0xFF, 1, 4)), trace=False, load=load_there)
