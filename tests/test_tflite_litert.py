"""TFLite files: the same numbers as LiteRT, where it is installed; and the real files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import reference
from fastmobilenet.graph import RELU6, Graph
from fastmobilenet.importers import tflite
from tests.tflite_files import NONE, RELU, RELU_N1_TO_1, SAME, VALID, TfliteWriter
from tests.tflite_files import RELU6 as FUSED_RELU6

Run = Callable[[bytes, np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def litert() -> Run:
    """Runs a file on an input (n, h, w, c) of the type that the file has; returns what comes out, in that type."""
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")

    def run(data: bytes, x: np.ndarray) -> np.ndarray:
        engine = interpreter.Interpreter(model_content=data, num_threads=1)
        (source,), (target,) = engine.get_input_details(), engine.get_output_details()
        assert x.dtype == source["dtype"]
        engine.resize_tensor_input(source["index"], x.shape)
        engine.allocate_tensors()
        engine.set_tensor(source["index"], x)
        engine.invoke()
        return engine.get_tensor(target["index"])

    return run


class Net:
    """A network with random weights, layer by layer; ``shape`` and ``last`` are those of the newest tensor.

    A quantised one is made as converters do: weights cover the range of their codes, per channel in int8.
    """

    def __init__(self, h: int, w: int, dtype: str = "float32", seed: int = 0) -> None:
        self.writer = TfliteWriter()
        self.rng = np.random.default_rng(seed)
        self.dtype = dtype
        self.shape: tuple[int, ...] = (1, h, w, 3)
        self.scale = 1 / 128
        zero = {"uint8": 128, "int8": 0}.get(dtype, 0)
        self.last = self.input = self.tensor("image", self.shape, self.scale, zero)

    def tensor(self, name: str, shape: tuple[int, ...], scale: float, zero_point: int) -> int:
        self.shape, self.scale = shape, scale
        quantization = {} if self.dtype == "float32" else {"scale": scale, "zero_point": zero_point}
        self.last = self.writer.tensor(name, shape, self.dtype, **quantization)
        return self.last

    def weights(self, shape: tuple[int, ...], axis: int, fan_in: int) -> tuple[int, int]:
        values = self.rng.normal(0, fan_in**-0.5, shape).astype(np.float32)
        bias = self.rng.normal(0, 0.3, shape[axis]).astype(np.float32)
        if self.dtype == "float32":
            return self.writer.constant("w", values), self.writer.constant("b", bias)
        others = tuple(i for i in range(len(shape)) if i != axis)
        largest = np.abs(values).max(axis=others if self.dtype == "int8" else None, keepdims=True)
        zero = 0 if self.dtype == "int8" else 120  # the files of 2018 have a zero point in their weights too
        steps = largest / (127 if self.dtype == "int8" else 100)
        codes = (np.round(values / steps) + zero).astype(self.dtype)
        scale = steps.reshape(-1)
        product = np.float32(self.scale) * scale
        b = np.round(bias / product).astype(np.int32)
        zeros = [zero] * len(scale)
        return (
            self.writer.constant("w", codes, scale=scale, zero_point=zeros, axis=axis if len(scale) > 1 else 0),
            self.writer.constant("b", b, scale=product, zero_point=[0] * len(scale)),
        )

    def window(self, kernel: int, stride: int, padding: int) -> tuple[int, int]:
        if padding == SAME:
            return -(-self.shape[1] // stride), -(-self.shape[2] // stride)
        return (self.shape[1] - kernel) // stride + 1, (self.shape[2] - kernel) // stride + 1

    def conv(
        self,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = SAME,
        activation: int = FUSED_RELU6,
        out: tuple[float, int] = (6 / 255, -128),
        depthwise: bool = False,
    ) -> int:
        x, ic = self.last, self.shape[3]
        size = self.window(kernel, stride, padding)
        shape = (1, kernel, kernel, channels) if depthwise else (channels, kernel, kernel, ic)
        w, b = self.weights(shape, 3 if depthwise else 0, kernel * kernel * (1 if depthwise else ic))
        y = self.tensor(f"conv{len(self.writer.tensors)}", (1, *size, channels), *self.code(out))
        if depthwise:
            multiplier = channels // ic
            self.writer.depthwise(
                x, w, b, y, multiplier=multiplier, stride=(stride, stride), padding=padding, activation=activation
            )
        else:
            self.writer.conv(x, w, b, y, stride=(stride, stride), padding=padding, activation=activation)
        return y

    def code(self, out: tuple[float, int]) -> tuple[float, int]:
        """``out`` is (scale, zero point) of int8; uint8 counts from 128 more."""
        return (out[0], out[1] + 128) if self.dtype == "uint8" else out

    def finish(self) -> bytes:
        return self.writer.finish(self.input, self.last)


LINEAR = (0.05, 4)


def mobilenet(h: int, w: int, dtype: str = "float32", seed: int = 0, whole_pool: bool = False) -> bytes:
    """A few layers of V1 and V2, with every operator that real files have."""
    net = Net(h, w, dtype, seed)
    t = net.writer
    net.conv(8, 3, 2)
    net.conv(8, 3, activation=RELU, out=(0.03, -128), depthwise=True)
    block = net.conv(12, activation=NONE, out=LINEAR)
    net.conv(24)
    net.conv(24, 5, depthwise=True)
    y = net.conv(12, activation=NONE, out=LINEAR)
    total = net.tensor("sum", net.shape, *net.code((0.08, 2)))
    t.add(block, y, total)
    y = net.conv(24, 3, 2, depthwise=True, activation=RELU_N1_TO_1, out=(1 / 128, 0))
    n, oh, ow, c = net.shape
    padded = net.tensor("padded", (n, oh + 2, ow + 1, c), *net.code((1 / 128, 0)))
    t.pad(y, padded, [(0, 0), (1, 1), (0, 1), (0, 0)])
    x = net.conv(16, 3, 2, VALID)
    _, oh, ow, c = net.shape
    if whole_pool:
        pooled = net.tensor("pooled", (1, 1, 1, c), *net.code((6 / 255, -128)))
        t.average_pool(x, pooled, (oh, ow))
        y = net.conv(10, activation=NONE, out=LINEAR)
        t.reshape(y, net.tensor("flat", (1, 10), *net.code(LINEAR)), (-1, 10))
    else:
        small = net.tensor("small", (1, (oh + 1) // 2, (ow + 1) // 2, c), *net.code((6 / 255, -128)))
        t.average_pool(x, small, (3, 3), (2, 2), SAME)
        mean = net.tensor("mean", (1, c), *net.code((6 / 255, -128)))
        t.mean(small, mean)
        w, b = net.weights((10, c), 0, c)
        t.fully_connected(mean, w, b, net.tensor("logits", (1, 10), *net.code(LINEAR)))
    return net.finish()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("size", [(32, 32), (33, 33), (24, 41)])
def test_float_files_at_several_sizes(litert: Run, size: tuple[int, int], seed: int) -> None:
    data = mobilenet(32, 32, seed=seed)
    graph = tflite.load(data)
    x = np.random.default_rng(seed).uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    expected = litert(data, x)
    found = reference.execute(graph, x)[graph.output].reshape(expected.shape)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("size", [(32, 32), (45, 30)])
def test_a_float_file_with_a_pool_over_the_whole_map(litert: Run, size: tuple[int, int]) -> None:
    data = mobilenet(*size, whole_pool=True)
    graph = tflite.load(data)
    assert "global_avg_pool" in {node.op for node in graph.nodes}
    x = np.random.default_rng(3).uniform(-1, 1, (1, *size, 3)).astype(np.float32)
    expected = litert(data, x)
    found = reference.execute(graph, x)[graph.output].reshape(expected.shape)
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def dequantize(q: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    return scale * (q.astype(np.float64) - zero_point)


@pytest.mark.parametrize("seed", [4, 5])
@pytest.mark.parametrize("dtype", ["uint8", "int8"])
def test_quantised_files(litert: Run, dtype: str, seed: int) -> None:
    """Rounding after each layer is all that differs: a few steps of the output after ten layers."""
    data = mobilenet(32, 32, dtype, seed)
    graph = tflite.load(data)
    info = np.iinfo(dtype)
    q = np.random.default_rng(seed).integers(info.min, info.max, (1, 32, 32, 3), dtype, endpoint=True)
    zero = 128 if dtype == "uint8" else 0
    expected = dequantize(litert(data, q), LINEAR[0], LINEAR[1] + zero)
    x = dequantize(q, 1 / 128, zero)
    np.testing.assert_allclose((q - float(info.min) - graph.preprocess.mean[0]) / graph.preprocess.std[0], x)
    found = reference.execute(graph, x)[graph.output].reshape(expected.shape)
    assert np.ptp(expected) > 20 * LINEAR[0]
    assert np.abs(found - expected).max() <= 4 * LINEAR[0]


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.parametrize("scale", [6 / 255, 0.01])
def test_a_range_clamps_where_no_activation_is_named(litert: Run, dtype: str, scale: float) -> None:
    """What range_activation() relies on: without any activation, the codes cut off what is negative."""
    net = Net(6, 6, dtype, seed=6)
    net.conv(16, 3, activation=NONE, out=(scale, -128))
    data = net.finish()
    graph = tflite.load(data)
    assert graph.nodes[-1].activation == RELU6
    info = np.iinfo(dtype)
    q = np.random.default_rng(6).integers(info.min, info.max, (1, 6, 6, 3), dtype, endpoint=True)
    expected = dequantize(litert(data, q), scale, info.min)
    x = dequantize(q, 1 / 128, 128 if dtype == "uint8" else 0)
    found = reference.execute(graph, x)[graph.output]
    assert (expected == 0).mean() > 0.2
    np.testing.assert_allclose(np.minimum(found, 255 * scale), expected, atol=0.51 * scale)


# --- real files -----------------------------------------------------------------------------------------

FILES = (
    "mobilenet_v1_0.25_128_quant",
    "mobilenet_v1_0.5_160_quant",
    "mobilenet_v2_1.0_224_quant",
    "tf2_mobilenet_v2_1.0_224_ptq",
)


def picture(path: Path, size: int) -> np.ndarray:
    """(1, size, size, 3) uint8: the shorter side to 8/7 of the size, and the centre of that."""
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    factor = size * 8 / 7 / min(rgb.size)
    rgb = rgb.resize((round(rgb.width * factor), round(rgb.height * factor)), Image.Resampling.BILINEAR)
    left, top = (rgb.width - size) // 2, (rgb.height - size) // 2
    return np.asarray(rgb.crop((left, top, left + size, top + size)))[None]


def scores(graph: Graph, pixels: np.ndarray) -> np.ndarray:
    x = (pixels - np.array(graph.preprocess.mean)) / np.array(graph.preprocess.std)
    return reference.execute(graph, x)[graph.output].reshape(-1)


@pytest.mark.parametrize("name", FILES)
def test_what_real_files_hold(name: str, test_data: Path) -> None:
    data = (test_data / "models" / f"{name}.tflite").read_bytes()
    graph = tflite.load(data, f"{name}.tflite")
    ops = [node.op for node in graph.nodes]
    version_2 = "_v2_" in name
    assert ops.count("conv2d") == (53 if version_2 else 28)
    assert ops.count("add") == (10 if version_2 else 0)
    assert ops[-3:] == ["global_avg_pool", "conv2d", "softmax"]
    assert len(ops) == (66 if version_2 else 31)
    activations: dict[Any, int] = {}
    for node in graph.nodes:
        activations[node.activation] = activations.get(node.activation, 0) + 1
    # Everything is ReLU6 but the linear bottlenecks and what follows the last convolution.
    assert activations[RELU6] == (35 if version_2 else 27)
    assert set(activations) == {RELU6, None}
    assert graph.input_size == (int(name.split("_")[-2]),) * 2
    assert {n.attrs["padding"] for n in graph.nodes if n.op == "conv2d"} == {"same"}
    assert graph.labels is not None
    assert graph.labels == tuple((test_data / "models" / "imagenet_labels.txt").read_text().splitlines())
    assert graph.preprocess.mean == ((127,) * 3 if name.startswith("tf2") else (128,) * 3)
    np.testing.assert_allclose(graph.preprocess.std, 127.5 if name.startswith("tf2") else 128, rtol=1e-6)


@pytest.mark.parametrize("name", FILES)
def test_real_pictures(litert: Run, test_data: Path, name: str, pytestconfig: pytest.Config) -> None:
    """The class that the quantised network gives. Its scores are coarse: several classes may share the highest."""
    data = (test_data / "models" / f"{name}.tflite").read_bytes()
    graph = tflite.load(data)
    step = 5 if pytestconfig.getoption("--slow") else 40
    paths = sorted((test_data / "imagenet_samples").glob("*.JPEG"))[::step]
    agreed = 0
    for path in paths:
        pixels = picture(path, graph.input_size[0])
        expected = litert(data, pixels).reshape(-1)
        agreed += int(expected[scores(graph, pixels).argmax()] == expected.max())
    assert len(paths) >= 5
    assert agreed >= 0.92 * len(paths)


@pytest.mark.parametrize("name", FILES[2:])
def test_a_hen(test_data: Path, name: str) -> None:
    graph = tflite.load((test_data / "models" / f"{name}.tflite").read_bytes())
    found = scores(graph, picture(test_data / "imagenet_samples" / "n01514859_hen.JPEG", 224))
    assert graph.labels is not None
    assert graph.labels[int(found.argmax())] == "hen"
