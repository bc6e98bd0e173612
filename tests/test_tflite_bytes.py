"""Quantised TFLite files imported as they are: what becomes of weights, scales, zero points and of each operator."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import importers, reference
from fastmobilenet.errors import ModelError
from fastmobilenet.graph import RELU6, SIGMOID, Graph, Node
from fastmobilenet.importers import tflite
from fastmobilenet.quantization import Quant

from .test_loader_robustness import SAMPLES, check, flips, patience
from .tflite_bytes import Bytes, output_bytes, real_input
from .tflite_files import RELU6 as FUSED_RELU6
from .tflite_files import VALID, TfliteWriter, f32, i8, i32

load = functools.partial(tflite.load, quantized=True)

SHAPE = (1, 4, 4, 4)
INT8 = {"scale": 0.05, "zero_point": 3}
MEANING = Quant(0.05, 131)


def ops(graph: Graph) -> list[str]:
    return [node.op for node in graph.nodes]


def layer(kind: str, dtype: str, quantization: dict[str, Any], bias: Any = None, axis: int | None = None) -> Node:
    """The node of one layer with four channels in and out, and random weights."""
    shape = {"conv": (4, 1, 1, 4), "depthwise": (1, 3, 3, 4), "fully_connected": (4, 64)}[kind]
    info = np.iinfo(dtype)
    codes = np.random.default_rng(1).integers(info.min, info.max, shape, dtype, endpoint=True)
    if axis is not None:
        quantization = quantization | {"axis": axis}
    t = TfliteWriter()
    x = t.tensor("x", SHAPE, "int8", **INT8)
    y = t.tensor("y", (1, 4) if kind == "fully_connected" else SHAPE, "int8", scale=6 / 255, zero_point=-128)
    source = x
    if kind == "fully_connected":
        source = t.tensor("flat", (1, 64), "int8", **INT8)
        t.reshape(x, source, (1, 64))
    b = -1 if bias is None else t.constant("b", bias)
    getattr(t, kind)(source, t.constant("w", codes, **quantization), b, y, activation=FUSED_RELU6)
    graph = load(t.finish(x, y))
    node = graph["y"]
    if "quant" in node.attrs and node.op != "quantize":
        stored = codes.transpose(3, 1, 2, 0) if kind == "depthwise" else codes
        if node.params["weight"].dtype == np.uint8 and dtype == "int8":
            stored = (stored.astype(int) + 128).astype(np.uint8)
        assert np.array_equal(node.params["weight"], stored)
        assert graph[graph.nodes[0].name].attrs["quant"] == MEANING
        assert node.attrs["quant"] == Quant(6 / 255, 0)
        assert node.activation == RELU6
        assert graph.nodes[-1] == Node("y/real", "dequantize", ("y",))
    return node


@pytest.mark.parametrize("kind", ["conv", "depthwise", "fully_connected"])
def test_weights_and_biases_are_taken_as_stored(kind: str) -> None:
    bias = np.array([5, -7, 2**31 - 1, -(2**31)], np.int32)
    scales = [0.01, 0.0, 2.5e-7, 0.3]  # one channel is dead
    node = layer(kind, "int8", {"scale": scales, "zero_point": [0] * 4}, bias, axis=3 if kind == "depthwise" else 0)
    assert node.op == ("dense" if kind == "fully_connected" else "conv2d")
    assert node.params["weight"].dtype == np.int8
    assert node.params["weight_scale"].dtype == np.float32
    assert np.array_equal(node.params["weight_scale"], np.float32(scales))
    assert node.params["bias"].dtype == np.int32
    assert np.array_equal(node.params["bias"], bias)
    assert "weight_zero" not in node.attrs


@pytest.mark.parametrize("kind", ["conv", "depthwise", "fully_connected"])
@pytest.mark.parametrize("dtype, zero, stored", [("uint8", 157, 157), ("uint8", 0, 0), ("int8", -5, 123)])
def test_weights_with_a_zero_point(kind: str, dtype: str, zero: int, stored: int) -> None:
    node = layer(kind, dtype, {"scale": 0.01, "zero_point": zero})
    assert node.params["weight"].dtype == np.uint8
    assert node.attrs["weight_zero"] == stored
    assert np.array_equal(node.params["weight_scale"], np.float32([0.01]))
    assert "bias" not in node.params


@pytest.mark.parametrize(
    "kind, dtype, quantization, bias, axis",
    [
        ("conv", "int8", {"scale": [0.1] * 4, "zero_point": [0] * 4}, None, 3),  # a scale for each input
        ("depthwise", "int8", {"scale": [0.1], "zero_point": [0]}, np.ones(4, np.float32), None),
        ("conv", "uint8", {"scale": [0.1] * 4, "zero_point": [1, 1, 1, 2]}, None, 0),
        ("conv", "int8", {"scale": 0.1, "zero_point": 300}, None, None),
        ("conv", "int16", {"scale": 0.1}, None, None),
    ],
)
def test_layers_that_no_kernel_of_bytes_has_compute_on_floats(
    kind: str, dtype: str, quantization: dict[str, Any], bias: Any, axis: int | None
) -> None:
    node = layer(kind, dtype, quantization, bias, axis)
    assert node.op == "quantize"
    assert node.inputs == ("y/float",)


def test_a_file_of_floats_stays_what_it_is() -> None:
    for sample in ("float32", "mixed"):
        a, b = tflite.load(SAMPLES[sample]), load(SAMPLES[sample])
        used = {name for n in a.nodes for name in n.inputs} | {a.output}
        assert [(n.name, n.op, n.inputs) for n in a.nodes if n.name in used] == [
            (n.name, n.op, n.inputs) for n in b.nodes
        ]
        assert not any("quant" in n.attrs for n in b.nodes)


def test_activations_of_16_bits_are_real_numbers() -> None:
    t = TfliteWriter()
    x, y = (t.tensor(name, SHAPE, "int16", scale=1e-4) for name in "xy")
    t.add(x, x, y)
    assert ops(load(t.finish(x, y))) == ["input", "add"]


@pytest.mark.parametrize("scale, zero_point", [(0.0, 0), (1e31, 0), (0.1, 200), (0.1, -129)])
def test_scales_and_zero_points_that_bytes_cannot_have(scale: float, zero_point: int) -> None:
    t = TfliteWriter()
    x, y = (t.tensor(name, SHAPE, "int8", scale=scale, zero_point=zero_point) for name in "xy")
    t.op("LOGISTIC", [x], [y])
    assert ops(load(t.finish(x, y))) == ["input", "activation"]


@pytest.mark.parametrize("sample", ["uint8", "int8"])
def test_a_whole_network(sample: str) -> None:
    graph = load(SAMPLES[sample])
    assert "quantize" not in ops(graph)
    assert ops(graph).count("dequantize") == 1
    assert all("quant" in node.attrs for node in graph.nodes[:-1])


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_bytes_are_near_the_real_numbers(dtype: str) -> None:
    for seed in range(4):
        net = Bytes(dtype, seed)
        x = net.conv(net.input((1, 9, 9, 3)), 12, 3, 2)
        y = net.binary("ADD", net.conv(net.conv(x, 0, 3, multiplier=1), 12), x)
        data = net.finish(net.dense(net.mean(y), 20))
        graph, real = load(data), tflite.load(data)
        codes = net.rng.normal(graph.nodes[0].attrs["quant"].zero, 12, (5, 9, 9, 3)).round().astype(np.uint8)
        found, expected = (reference.execute(g, real_input(graph, codes))[g.output].ravel() for g in (graph, real))
        assert found.dtype == np.float32
        assert np.corrcoef(found, expected)[0, 1] > 0.99


# --- between bytes and floats ---------------------------------------------------------------------------


def test_floats_at_both_ends() -> None:
    t = TfliteWriter()
    x, y = t.tensor("x", SHAPE), t.tensor("y", SHAPE)
    a, b = (t.tensor(name, SHAPE, "int8", **INT8) for name in "ab")
    t.op("QUANTIZE", [x], [a])
    t.op("LOGISTIC", [a], [b])
    t.op("DEQUANTIZE", [b], [y])
    graph = load(t.finish(x, y))
    assert ops(graph) == ["input", "quantize", "activation", "dequantize"]
    assert graph["a"].attrs["quant"] == graph["b"].attrs["quant"] == MEANING
    assert graph["b"].activation == SIGMOID


def test_the_same_meaning_in_another_type_is_no_operation() -> None:
    t = TfliteWriter()
    x = t.tensor("x", SHAPE, "uint8", scale=0.05, zero_point=131)
    a = t.tensor("a", SHAPE, "int8", **INT8)
    y = t.tensor("y", SHAPE, "uint8", scale=0.05, zero_point=130)
    t.op("QUANTIZE", [x], [a])
    t.op("QUANTIZE", [a], [y])
    graph = load(t.finish(x, y))
    assert ops(graph) == ["input", "lookup", "dequantize"]
    assert np.array_equal(graph["y"].params["table"], np.arange(-1, 255).clip(0))


def test_a_layer_of_floats_between_bytes() -> None:
    t = TfliteWriter()
    x, y = (t.tensor(name, SHAPE, "int8", **INT8) for name in "xy")
    a, b = (t.tensor(name, SHAPE) for name in "ab")
    t.op("DEQUANTIZE", [x], [a])
    t.identity(a, b)
    t.op("QUANTIZE", [b], [y])
    graph = load(t.finish(x, y))
    assert ops(graph) == ["input", "dequantize", "conv2d", "quantize", "dequantize"]
    assert graph["b"].params["weight"].dtype == np.float32
    codes = np.random.default_rng(3).integers(0, 256, SHAPE).astype(np.uint8)
    assert np.array_equal(output_bytes(graph, real_input(graph, codes)), codes)


def test_integer_weights_in_a_network_of_floats() -> None:
    t = TfliteWriter()
    x, y = t.tensor("x", SHAPE), t.tensor("y", SHAPE)
    t.conv(x, t.constant("w", np.ones((4, 1, 1, 4), np.int8), scale=0.5), -1, y)
    node = load(t.finish(x, y))["y"]
    assert node.params["weight"].dtype == np.float32
    assert "quant" not in node.attrs


def test_an_average_over_padding_takes_the_way_over_floats() -> None:
    net = Bytes("int8")
    y = net.pool("AVERAGE", net.padded(net.input(SHAPE), (1, 1, 1, 1)), (3, 3), (1, 1))
    graph = load(net.finish(y))
    assert ops(graph) == ["input", "dequantize", "avg_pool2d", "quantize", "dequantize"]
    assert "rounding" not in graph.nodes[2].attrs


def test_a_new_meaning_without_an_operation() -> None:
    """A RESHAPE copies codes; where its output has another scale, the same bytes stand for other numbers."""
    t = TfliteWriter()
    x, y = t.tensor("x", (1, 1, 1, 8), "int8", **INT8), t.tensor("y", (1, 8), "int8", scale=0.5, zero_point=-128)
    t.reshape(x, y, (1, 8))
    graph = load(t.finish(x, y))
    assert ops(graph) == ["input", "lookup", "dequantize"]
    codes = np.arange(0, 256, 32, dtype=np.uint8).reshape(1, 1, 1, 8)
    assert np.array_equal(reference.execute(graph, real_input(graph, codes))[graph.output], codes * np.float32(0.5))


# --- operators ------------------------------------------------------------------------------------------


def test_padding_is_the_zero_point() -> None:
    net = Bytes("uint8")
    x = net.input((1, 3, 3, 8))
    alone = load(net.finish(net.padded(x, (1, 2, 0, 1))))
    codes = net.random_codes()
    padded = np.pad(codes, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=alone.nodes[0].attrs["quant"].zero)
    assert np.array_equal(output_bytes(alone, real_input(alone, codes)), padded)
    folded = load(net.finish(net.conv(net.padded(x, (1, 2, 0, 1)), 4, 3, 1, VALID)))
    assert ops(folded) == ["input", "conv2d", "dequantize"]
    assert folded.nodes[1].attrs["padding"] == (1, 2, 0, 1)


@pytest.mark.parametrize("dtype, codes", [("uint8", "u8"), ("int8", "s8")])
def test_means_say_how_they_round(dtype: str, codes: str) -> None:
    net = Bytes(dtype)
    x = net.input(SHAPE)
    y = net.mean(net.pool("AVERAGE", net.pool("AVERAGE", x, (2, 2), (1, 1)), (2, 2), (1, 1)))
    graph = load(net.finish(y))
    assert [n.attrs["rounding"] for n in graph.nodes[1:4]] == [f"average_{codes}", f"average_{codes}", f"mean_{codes}"]
    whole = load(net.finish(net.pool("AVERAGE", x, (4, 4), (1, 1))))
    assert whole.nodes[1].op == "global_avg_pool"
    assert whole.nodes[1].attrs["rounding"] == f"average_{codes}"


def test_parts_of_a_table_leave_nothing_behind() -> None:
    net = Bytes("int8")
    x = net.conv(net.input(SHAPE), 4)
    kept = net.unary("LOGISTIC", x)
    y = net.binary("MUL", x, net.unary("RELU6", net.unary("QUANTIZE", kept)))
    graph = load(net.finish(net.concat(y, net.pool("MAX", y, (1, 1), (1, 1)))))
    assert ops(graph) == ["input", "conv2d", "lookup", "max_pool2d", "concat", "dequantize"]
    assert graph.nodes[2].inputs == (graph.nodes[1].name,)


def test_two_different_maps_are_no_table() -> None:
    net = Bytes("int8")
    x = net.input(SHAPE)
    y = net.binary("ADD", net.unary("LOGISTIC", net.conv(x, 4)), net.unary("LOGISTIC", x))
    assert ops(load(net.finish(y))) == ["input", "conv2d", "activation", "activation", "add", "dequantize"]


def test_channels() -> None:
    net = Bytes("int8", 3)
    a, b = net.halves(net.input(SHAPE))
    graph = load(net.finish(net.concat(b, a)))
    assert ops(graph) == ["input", "gather_channels", "gather_channels", "concat", "dequantize"]
    codes = net.random_codes()
    assert np.array_equal(output_bytes(graph, real_input(graph, codes)), codes[..., [2, 3, 0, 1]])


def test_raw_pixels_are_noticed_before_a_network_that_scales_them() -> None:
    """Keras' MobileNetV3 begins with x * (1 / 127.5) - 1. Converters keep floats at the input and quantise behind."""
    t = TfliteWriter()
    x = t.tensor("x", (1, 2, 2, 3))
    a = t.tensor("a", (1, 2, 2, 3), "int8", scale=1, zero_point=-128)
    b = t.tensor("b", (1, 2, 2, 3), "int8", scale=1 / 127.5, zero_point=-128)
    y = t.tensor("y", (1, 3), "int8", scale=1 / 127.5, zero_point=-128)
    t.op("QUANTIZE", [x], [a])
    factor = t.constant("factor", np.full((1,), 127, np.int8), scale=1 / 127.5 / 255, zero_point=-128)
    t.op("MUL", [a, factor], [b], {0: i8(0)}, 21)
    t.mean(b, y)
    data = t.finish(x, y)
    assert load(data).preprocess == tflite.load(data).preprocess
    assert load(data).preprocess.mean == (0, 0, 0)


def test_what_is_not_supported_is_refused_as_in_floats() -> None:
    t = TfliteWriter()
    x, y = (t.tensor(name, SHAPE, "int8", **INT8) for name in "xy")
    t.op("SOFTMAX", [x], [y], {0: f32(2.0)}, 9)
    with pytest.raises(ModelError, match="beta is 2"):
        load(t.finish(x, y))


def test_importers_load(tmp_path: Path) -> None:
    path = tmp_path / "net.tflite"
    path.write_bytes(SAMPLES["int8"])
    assert "quant" in importers.load(path, quantized=True).nodes[0].attrs
    assert "quant" not in importers.load(path).nodes[0].attrs


def test_real_files(test_data: Path) -> None:
    for path in sorted((test_data / "models").glob("*.tflite")):
        graph = load(path.read_bytes(), path.name)
        assert "lookup" not in ops(graph)
        assert "quantize" not in ops(graph)
        assert ops(graph)[-4:] == ["global_avg_pool", "conv2d", "softmax", "dequantize"]
        dtypes = {n.params["weight"].dtype.name for n in graph.nodes if n.op == "conv2d"}
        assert dtypes == ({"int8"} if path.name.startswith("tf2") else {"uint8"})
        assert graph.labels == tflite.load(path.read_bytes()).labels


# --- damaged files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of NumPy, where the definition computes with absurd scales
def test_every_flipped_byte(dtype: str) -> None:
    data = SAMPLES[dtype]
    places = range(0, len(data), 2 if patience() < 4 else 23)
    loaded, refused = check(flips(data, places, (0xFF,)), trace=False, load=load)
    assert refused > len(places) // 10
    assert loaded > len(places) // 10


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_every_prefix_is_refused(dtype: str) -> None:
    assert check((SAMPLES[dtype][:n] for n in range(0, len(SAMPLES[dtype]), 3)), trace=False, load=load)[0] == 0


def test_many_tables_cost_little() -> None:
    """Each operator of a file makes at most one table of 256 bytes."""
    t = TfliteWriter()
    x = y = t.tensor("x", SHAPE, "int8", **INT8)
    for i in range(2000):
        x, y = y, t.tensor("y", SHAPE, "int8", scale=0.04 + 0.01 * (i % 2), zero_point=3)
        t.op("QUANTIZE", [x], [y])
    assert check([t.finish(0, y)], run=False, trace=False, load=load) == (1, 0)


def test_an_average_with_an_activation() -> None:
    t = TfliteWriter()
    x, y = t.tensor("x", SHAPE, "int8", **INT8), t.tensor("y", (1, 3, 3, 4), "int8", **INT8)
    t.op("AVERAGE_POOL_2D", [x], [y], {0: i8(1), 1: i32(1), 2: i32(1), 3: i32(2), 4: i32(2), 5: i8(3)}, 5)
    graph = load(t.finish(x, y))
    assert ops(graph) == ["input", "avg_pool2d", "activation", "dequantize"]
    assert graph.nodes[2].activation == RELU6
