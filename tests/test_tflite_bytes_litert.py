"""Quantised TFLite files: the definition of the arithmetic gives the bytes that LiteRT gives with its default settings,
op by op, in random networks, and for real files on real pictures."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fastmobilenet import image, reference
from fastmobilenet.graph import Graph
from fastmobilenet.importers import tflite
from fastmobilenet.lower import Engine

from .tflite_bytes import Bytes, assert_like_litert, litert
from .tflite_files import NONE, RELU, RELU6, RELU_N1_TO_1, SAME, VALID

DTYPES = ("uint8", "int8")
SHAPE = (1, 9, 10, 16)


def ops(graph: Graph) -> list[str]:
    """Between the input and the dequantize of the output."""
    return [node.op for node in graph.nodes[1:-1]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "layer",
    [
        lambda n, x: n.conv(x, 24),
        lambda n, x: n.conv(x, 24, 3, activation=RELU6),
        lambda n, x: n.conv(x, 24, 3, 2, activation=RELU),
        lambda n, x: n.conv(x, 24, 3, 1, VALID, dilation=2),
        lambda n, x: n.conv(x, 24, 3, groups=4),
        lambda n, x: n.conv(x, 0, 3, multiplier=1, activation=RELU6),
        lambda n, x: n.conv(x, 0, 3, 2, multiplier=1, activation=RELU_N1_TO_1),
        lambda n, x: n.conv(x, 0, 5, 2, multiplier=2),
        lambda n, x: n.conv(n.padded(x, (1, 1, 0, 1)), 24, 3, 2, VALID),
        lambda n, x: n.dense(x, 30),
        lambda n, x: n.dense(n.mean(x, keep=False), 30),
        lambda n, x: n.padded(x, (1, 0, 2, 3)),
        lambda n, x: n.binary("ADD", n.conv(x, 16), x, RELU6),
        lambda n, x: n.binary("ADD", x, n.mean(x)),
        lambda n, x: n.binary("MUL", n.conv(x, 16), x),
        lambda n, x: n.binary("MUL", n.mean(x), x, RELU),
        lambda n, x: n.pool("AVERAGE", x, (3, 3), (2, 2), SAME),
        lambda n, x: n.pool("AVERAGE", x, (2, 2), (2, 2)),
        lambda n, x: n.pool("AVERAGE", x, (9, 10), (1, 1)),
        lambda n, x: n.pool("MAX", x, (3, 3), (2, 2), SAME),
        lambda n, x: n.mean(x),
        lambda n, x: n.mean(x, same=True),
        lambda n, x: n.concat(x, n.pool("MAX", x, (3, 3), (1, 1), SAME)),
        lambda n, x: n.binary("ADD", *n.halves(x)),
        lambda n, x: n.softmax(n.binary("MUL", x, n.unary("RELU", x))),
    ],
)
def test_an_op_on_bytes(dtype: str, layer: Callable[[Bytes, int], int]) -> None:
    for seed in range(3):
        net = Bytes(dtype, seed)
        graph = assert_like_litert(net, layer(net, net.input(SHAPE)))
        assert not {"dequantize", "quantize", "batch_norm"} & set(ops(graph))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("classes", [2, 10, 101, 1001])
def test_probabilities(dtype: str, classes: int) -> None:
    for seed in range(3):
        net = Bytes(dtype, seed)
        logits = net.dense(net.input((1, 1, 1, 40)), classes, gain=6.0)
        assert_like_litert(net, net.softmax(logits), pictures=5, least=2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("even", [True, False])
def test_halves_of_a_mean(dtype: str, even: bool) -> None:
    """Windows of four bytes: a half in every fourth mean. LiteRT rounds it in another way in each of these cases."""
    for zero in (100, 101) if even else (7,):
        net = Bytes(dtype, zero)
        net.meaning[-1] = {"scale": 0.05, "zero_point": zero - (128 if dtype == "int8" else 0)}
        x = net.tensor((1, 2, 2, 200), like=-1)
        net.inputs = [x]
        assert_like_litert(net, net.mean(x, same=True) if even else net.pool("AVERAGE", x, (2, 2), (1, 1)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["LOGISTIC", "HARD_SWISH", "RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1", "QUANTIZE"])
def test_a_function_of_one_byte(dtype: str, kind: str) -> None:
    for seed in range(4):
        net = Bytes(dtype, seed)
        graph = assert_like_litert(net, net.unary(kind, net.input(SHAPE, about=2.0)))
        assert ops(graph) == ["activation" if kind == "LOGISTIC" else "lookup"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["ADD", "MUL", "SUB"])
@pytest.mark.parametrize("first", [False, True])
def test_bytes_and_a_number(dtype: str, kind: str, first: bool) -> None:
    for seed in range(3):
        net = Bytes(dtype, seed)
        x, number = net.input(SHAPE), net.constant((1,), 1.0)
        graph = assert_like_litert(net, net.binary(kind, *((number, x) if first else (x, number))))
        assert ops(graph) == ["lookup"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gate_in_parts_is_one_table(dtype: str) -> None:
    """x * (relu6(x + 3) / 6) in four operators, each of which rounds, and x * sigmoid(x)."""
    for seed in range(3):
        net = Bytes(dtype, seed)
        x = net.conv(net.input(SHAPE, about=2.0), 16)
        gate = net.binary("ADD", x, net.constant((), 3.0), RELU6)
        gate = net.binary("MUL", gate, net.constant((1,), 0.3))
        y = net.binary("MUL", x, gate)
        y = net.binary("MUL", y, net.unary("LOGISTIC", y))
        assert ops(assert_like_litert(net, y, least=3)) == ["conv2d", "lookup"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_for_each_channel_take_the_way_over_floats(dtype: str) -> None:
    """There is one rounding then, which is LiteRT's but for a few values in ten thousand."""
    for kind in ("ADD", "MUL", "SUB"):
        net = Bytes(dtype, 1)
        x = net.input(SHAPE)
        data = net.finish(net.binary(kind, x, net.constant((1, 1, 1, 16), 1.0)))
        graph = tflite.load(data, quantized=True)
        assert ops(graph) == ["dequantize", "batch_norm", "quantize"]
        codes = net.random_codes()
        quant = graph[graph[graph.output].inputs[0]].attrs["quant"]
        expected = litert(data)(codes if dtype == "uint8" else (codes.astype(np.int16) - 128).astype(np.int8))
        expected = expected.astype(int) + (0 if dtype == "uint8" else 128)
        source = graph.nodes[0].attrs["quant"]
        x32 = (codes.astype(np.float64) - source.zero) * source.scale
        found = np.rint(reference.execute(graph, x32)[graph.output] / quant.scale) + quant.zero
        assert np.abs(found - expected).max() <= 1
        assert (found != expected).mean() < 0.002


def random_network(net: Bytes) -> int:
    """Twelve layers that read any of the maps before them."""
    rng = net.rng
    maps = [net.conv(net.input((1, 17, 14, 3)), 12, 3, 2, activation=RELU6)]
    for _ in range(12):
        x = maps[int(rng.integers(max(len(maps) - 3, 0), len(maps)))]
        h, w = net.shape(x)[1:3]
        c = net.shape(x)[3]
        choice = int(rng.integers(0, 9))
        activation = (NONE, RELU, RELU6)[int(rng.integers(3))]
        if choice == 0:
            y = net.conv(x, int(rng.integers(5, 40)), 1, activation=activation)
        elif choice == 1:
            y = net.conv(x, 0, int(rng.choice([3, 5])), int(rng.integers(1, 3)), multiplier=1, activation=activation)
        elif choice == 2:
            y = net.binary("ADD", x, net.conv(x, c, 3), activation)
        elif choice == 3:
            gate = net.unary("LOGISTIC", net.conv(net.conv(net.mean(x), 6, activation=RELU), c))
            y = net.binary("MUL", x, gate)
        elif choice == 4:
            y = net.unary(str(rng.choice(["HARD_SWISH", "RELU6", "QUANTIZE"])), x)
        elif choice == 5 and min(h, w) > 3:
            y = net.pool(str(rng.choice(["AVERAGE", "MAX"])), x, (2, 2), (1, 2), SAME)
        elif choice == 6:
            y = net.concat(x, net.pool("MAX", x, (3, 3), (1, 1), SAME)) if c < 40 else net.conv(x, 9)
        elif choice == 7 and c % 2 == 0:
            y = net.binary("ADD", *net.halves(x))
        else:
            y = net.conv(net.padded(x, (1, 0, 1, 1)), 16, 2, 1, VALID)
        maps.append(y)
    return net.dense(net.mean(maps[-1], keep=False), 60, gain=4.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(12))
def test_random_networks(dtype: str, seed: int) -> None:
    net = Bytes(dtype, 100 + seed)
    logits = random_network(net)
    assert_like_litert(net, logits, pictures=3)
    assert_like_litert(net, net.softmax(logits), least=1)


# --- real files -----------------------------------------------------------------------------------------

FILES = (
    "mobilenet_v1_0.25_128_quant",
    "mobilenet_v1_0.5_160_quant",
    "mobilenet_v2_1.0_224_quant",
    "tf2_mobilenet_v2_1.0_224_ptq",
)


def compare(
    test_data: Path, name: str, step: int, builtin: bool = False, native: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of every ``step``-th picture in steps of 1/256: ours by definition, or by the kernels of the best
    ISA, and LiteRT's."""
    data = (test_data / "models" / f"{name}.tflite").read_bytes()
    graph = tflite.load(data, quantized=True)
    run = litert(data, builtin=builtin)
    engine = Engine(graph) if native else None
    with (test_data / "imagenet_samples/labels.csv").open(newline="") as file:
        files = [test_data / "imagenet_samples" / row[0] for row in csv.reader(file)]
    found, expected = [], []
    for path in [path for path in files if path.is_file()][::step]:
        pixels = image.prepare(image.decode(path), graph.preprocess, graph.input_size)[None]
        x = (pixels - np.array(graph.preprocess.mean)) / np.array(graph.preprocess.std)
        if engine is not None:
            found.append(np.rint(engine.run(pixels, pixels=True).reshape(-1) * 256))
        else:
            found.append(np.rint(reference.execute(graph, x)[graph.output].reshape(-1) * 256))
        expected.append(run(pixels).reshape(-1))
    return np.array(found, int), np.array(expected, int)


@pytest.mark.parametrize("name", FILES)
def test_a_few_real_pictures(test_data: Path, name: str) -> None:
    found, expected = compare(test_data, name, step=50)
    assert len(found) == 4
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("name", FILES)
def test_the_kernels_on_all_real_pictures(test_data: Path, name: str) -> None:
    found, expected = compare(test_data, name, step=1, native=True)
    assert found.shape[0] == 200
    assert np.array_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_all_real_pictures(test_data: Path, name: str) -> None:
    found, expected = compare(test_data, name, step=1)
    difference = np.abs(found - expected)
    same = (found.argmax(axis=1) == expected.argmax(axis=1)).sum()
    print(f"\n{name}: {(difference == 0).mean():.3%} equal, largest difference {difference.max()}, top-1 {same} of 200")
    assert len(found) == 200
    assert difference.max() <= 2
    assert (difference <= 1).mean() >= 0.999
    assert same >= 199


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_kernels_without_xnnpack_are_near(test_data: Path, name: str) -> None:
    """LiteRT's own kernels round twice where XNNPACK rounds once: neither can be had exactly with the other."""
    found, expected = compare(test_data, name, step=4, builtin=True)
    assert (np.abs(found - expected) <= 1).mean() >= 0.995
    assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.94
