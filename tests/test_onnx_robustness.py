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
from tests.onnx_files import OnnxWriter, Reference, entry, field, node, varint
from tests.onnx_quantized import QuantizedWriter
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


def v3_like() -> bytes:
    """Squeeze and excite, hard swish whole and in parts, an Expand, and an operator that is a function of the file."""
    rng = np.random.default_rng(13)
    w = OnnxWriter(opset=14)

    def weights(*shape: int) -> str:
        return w.constant(rng.normal(size=shape).astype(np.float32))

    body = [
        node("HardSigmoid", ["x"], ["gate"], alpha=Reference("slope", 1), beta=0.5),
        node("Mul", ["x", "gate"], ["y"]),
    ]
    w.function("Gated", ["x"], ["y"], body, defaults={"slope": 0.25})
    x = w.op("HardSwish", w.op("Conv", w.input(1, 3, "h", 6), weights(4, 3, 3, 3), pads=[1, 1, 1, 1], strides=[2, 2]))
    y = w.op("Conv", x, weights(4, 1, 5, 5), weights(4), group=4, auto_pad="SAME_UPPER")
    y = w.op("Div", w.op("Mul", y, relu6(w, w.op("Add", y, w.constant(3.0)))), w.constant(6.0))
    gate = w.op("Relu", w.op("Conv", w.op("GlobalAveragePool", y), weights(2, 4, 1, 1)))
    gate = w.op("HardSigmoid", w.op("Conv", gate, weights(4, 2, 1, 1)), alpha=0.2, beta=0.5)
    y = w.op("Add", w.op("Mul", w.op("Expand", gate, w.op("Shape", y)), y), x)
    y = w.op("MaxPool", w.op("Gated", y, domain="local", slope=0.125), kernel_shape=[2, 2], ceil_mode=1, strides=[2, 2])
    y = w.op("Squeeze", w.op("ReduceMean", y, axes=[2, 3]), w.constant([2, 3]))
    return w.finish(w.op("Gemm", w.op("Mul", y, w.op("Sigmoid", y)), weights(4, 5)))


def quantized_like(form: str) -> bytes:
    """Every kind of layer on bytes, in one of the two forms, and codes that are cut, joined, padded and summed."""
    w = QuantizedWriter(form, "int8" if form == "qdq" else "uint8", seed=15)
    x = w.quantize(w.input(1, 3, 6, 6), w.quant(0.03, 128))
    quant = w.quant(0.05, 110)
    x = w.weighted("Conv", x, (4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], quant=quant)
    y = w.weighted("Conv", x, (4, 1, 3, 3), group=4, pads=[1, 1, 1, 1], bias=False)
    x = w.layer("LeakyRelu", w.layer("Add", x, w.layer("Mul", y, w.layer("Sigmoid", x))), alpha=0.1, quant=quant)
    x = w.note(w.op("Pad", x, w.constant([0, 0, 0, 1, 0, 0, 1, 0]), quant[1]), quant)
    x = w.op("MaxPool", w.weighted("Conv", x, (4, 2, 2, 2), group=2, quant=quant), kernel_shape=[2, 2])
    a, b = w.ops("Split", w.note(x, quant), w.constant([1, 3]), count=2, axis=1)
    x = w.layer("Concat", w.note(b, quant), w.layer("AveragePool", w.note(a, quant), kernel_shape=[1, 1]), axis=1)
    sums = w.op("ConvInteger", x, w.constant(np.ones((4, 4, 1, 1), np.int8)))
    x = w.layer("Add", x, w.quantize(w.op("Mul", w.op("Cast", sums, to=1), w.constant(0.01))))
    x = w.layer("Softmax", w.layer("GlobalAveragePool", x), axis=1, quant=quant)
    x = w.note(w.op("Flatten", x), quant)
    x = w.weighted("MatMul", w.weighted("Gemm", x, (4, 5), axis=1), (5, 3), axis=1, bias=False)
    return w.finish(w.real(x))


def relu6(w: OnnxWriter, x: str) -> str:
    return w.op("Clip", x, w.constant(0.0), w.constant(6.0))


def shuffle_like() -> bytes:
    """Channels that are split, joined and shuffled in several ways, with shapes that are computed; grouped
    convolutions, pools, local response normalisation."""
    rng = np.random.default_rng(14)
    w = OnnxWriter(opset=13)

    def weights(*shape: int) -> str:
        return w.constant(rng.normal(size=shape).astype(np.float32))

    x = w.op("LRN", w.op("Conv", w.input(1, 3, 6, "w"), weights(8, 3, 1, 1), strides=[2, 2]), size=3, alpha=0.5)
    x = w.op("MaxPool", x, kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1])
    a, b = w.ops("Split", x, w.constant([4, 4]), count=2, axis=1)
    b = w.op("Relu", w.op("Conv", b, weights(4, 2, 1, 1), group=2))
    y = w.op("Concat", a, b, axis=1)
    shape = w.op("Shape", y)
    n, c, h, width = (w.op("Gather", shape, w.constant([k])) for k in range(4))
    two = w.constant([2])
    y = w.op("Reshape", y, w.op("Concat", n, two, w.op("Div", c, two), h, width, axis=0))
    y = w.op(
        "Reshape", w.op("Transpose", y, perm=[0, 2, 1, 3, 4]), w.op("Concat", n, w.constant([-1]), h, width, axis=0)
    )
    half = w.op("Where", w.op("Equal", c, w.constant([8])), w.op("Mul", two, two), c)
    left = w.op("Slice", y, w.constant([0]), half, w.constant([1]))
    right = w.op("Slice", y, half, w.constant([2**31 - 1]), w.constant([1]), w.constant([1]))
    planes = w.op("Unsqueeze", w.op("Gather", right, w.constant(np.array(2)), axis=1), w.constant([1]))
    sequence = w.op("SplitToSequence", left, w.constant(np.array(2)), axis=1)
    z = w.op("Concat", w.op("SequenceAt", sequence, w.constant(np.array(1))), planes, right, axis=1)
    z = w.op("AveragePool", z, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1, count_include_pad=1, pads=[0, 1, 0, 1])
    z = w.op("ReduceMean", w.op("Transpose", z, perm=[0, 2, 3, 1]), axes=[1, 2], keepdims=0)
    return w.finish(w.op("MatMul", z, weights(7, 5)))


SAMPLES = {
    "torch": torch_like(),
    "tensorflow": tensorflow_like(),
    "v3": v3_like(),
    "shuffle": shuffle_like(),
    "qdq": quantized_like("qdq"),
    "qlinear": quantized_like("qlinear"),
}


def load(data: bytes | bytearray) -> Graph:
    return onnx.load(data, quantized=True)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_load(name: str) -> None:
    assert check([SAMPLES[name], bytearray(SAMPLES[name])], load=load) == (2, 0)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_prefix(name: str) -> None:
    """A message may end after any field: a few prefixes may be networks."""
    data = SAMPLES[name]
    loaded, refused = check((data[:n] for n in range(len(data))), trace=False, load=load)
    # Without its metadata, the first is the same network; so are those that name a second opset at their end.
    assert (loaded, refused) == ((1, len(data) - 1) if name in ("torch", "qdq", "qlinear") else (0, len(data)))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_flipped_byte(name: str, pytestconfig: pytest.Config) -> None:
    data = SAMPLES[name]
    slow = pytestconfig.getoption("--slow")
    masks = (0xFF, *(1 << bit for bit in range(8))) if slow else (0xFF,)
    # Emulated, a sample of them: the reader is plain Python, which does the same on every CPU.
    every = 41 if name in ("qdq", "qlinear") else 5  # those are many layers, which run in NumPy
    places = range(0, min(len(data), 4096), 1 if slow else every if patience() < 4 else max(every, 23))
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
        for _ in range(2000):
            y = w.op(kind, y)
        check([w.finish(w.op("Relu", y))], run=False, load=load)


def test_constants_that_are_computed_again_and_again() -> None:
    w = OnnxWriter()
    x, y = w.input(1, 1, 1000, 1000), w.constant(np.zeros((1000, 1000), np.float32))
    for i in range(5000):
        y = w.op("Add" if i % 2 else "Transpose", y, *([y] if i % 2 else []))
    assert check([w.finish(w.op("Add", x, y))], load=load) == (0, 1)


@pytest.mark.parametrize("kind", ["Concat", "Sum"])
def test_an_operator_with_many_inputs(kind: str) -> None:
    w = OnnxWriter()
    w.input(1, 1, 1, 1)
    w.op("Relu", "x", output="a")
    y = "a"
    for _ in range(60):
        y = w.op(kind, y, *["a"] * 1000, **({"axis": 1} if kind == "Concat" else {}))
    assert check([w.finish(w.op("Relu", y))], run=False, trace=False, load=load) == (0, 1)


@pytest.mark.parametrize("channels", [1, 2**20])
def test_channels_that_double(channels: int) -> None:
    w = OnnxWriter()
    y = w.input(1, channels, 1, 1)
    for i in range(60):
        y = w.op("Concat", y, y, axis=1)
        y = w.op("Gather", y, w.constant([1, 0]), axis=1) if i % 20 == 19 else y
    check([w.finish(w.op("Relu", y))], run=False, load=load)


def test_channels_that_are_moved_again_and_again() -> None:
    w = OnnxWriter()
    y = w.op("Reshape", w.input(1, 2**16, 1, 1), w.constant([1, 2] + [4] * 5 + [2**5]))
    for _ in range(5000):
        y = w.op("Transpose", y, perm=[0, 7, 6, 5, 4, 3, 2, 1])
    check([w.finish(w.op("Relu", w.op("Reshape", y, w.constant([1, -1, 1, 1]))))], run=False, load=load)


def test_axes_that_are_added_again_and_again() -> None:
    w = OnnxWriter()
    y = w.input(1, 1, 1, 1)
    for _ in range(2000):
        y = w.op("Unsqueeze", y, w.constant(list(range(60))))
    assert check([w.finish(w.op("Relu", y))], load=load) == (0, 1)


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
