"""Networks that hold every form the exporters of bench/peers tell apart, and workers that run them as a race does."""

from __future__ import annotations

import functools
import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.contestant import Contestant
from fastmobilenet.graph import HARD_SIGMOID, HARD_SWISH, RELU, RELU6, SIGMOID, SWISH, Activation, Graph, GraphBuilder
from fastmobilenet.reference import execute

#: framework -> the modules that its runner imports
NEEDS = {
    "fastmobilenet": ("fastmobilenet._native",),
    "onnxruntime": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "litert": ("flatbuffers", "ai_edge_litert"),
    "ncnn": ("ncnn",),
    "mnn": ("onnx", "MNN"),
    "torch": ("torch",),
}
SIZE = (38, 28)
BOUNDS = Activation("clamp", -0.5, 1.0)


class Layers(GraphBuilder):
    """Layers with random parameters."""

    def __init__(self, seed: int, batch_norm: bool = False) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.batch_norm = batch_norm

    def conv(
        self, x: str, ic: int, oc: int, kernel: int = 1, stride: int = 1, padding: Any = "same", **attrs: Any
    ) -> str:
        rng, icg = self.rng, ic // attrs.get("groups", 1)
        params = {"weight": rng.normal(0, (2 / (kernel**2 * icg)) ** 0.5, (oc, kernel, kernel, icg)).astype(np.float32)}
        attrs |= {"stride": (stride, stride), "padding": padding}
        if not self.batch_norm:
            params["bias"] = rng.normal(0, 0.3, oc).astype(np.float32)
            return self.add("conv2d", x, params=params, **attrs)
        activation = attrs.pop("activation", None)
        x = self.add("conv2d", x, params=params, **attrs)
        stats = {key: rng.uniform(0.5, 1.5, oc).astype(np.float32) for key in ("gamma", "beta", "mean", "variance")}
        x = self.add("batch_norm", x, params=stats, epsilon=1e-3)
        return self.add("activation", x, activation=activation) if activation else x

    def dense(self, x: str, inputs: int, outputs: int, **attrs: Any) -> str:
        weight = self.rng.normal(0, 0.5, (outputs, inputs)).astype(np.float32)
        bias = self.rng.normal(0, 1, outputs).astype(np.float32)
        return self.add("dense", x, params={"weight": weight, "bias": bias}, **attrs)

    def squeeze_excite(self, x: str, channels: int, reduced: int, gate: Activation) -> str:
        y = self.conv(self.add("global_avg_pool", x), channels, reduced, activation=RELU)
        return self.add("mul", x, self.conv(y, reduced, channels, activation=gate))

    def pool(self, op: str, x: str, kernel: int, stride: int, padding: Any, **attrs: Any) -> str:
        return self.add(op, x, kernel=(kernel, kernel), stride=(stride, stride), padding=padding, **attrs)

    def take(self, x: str, first: int, end: int) -> str:
        return self.add("gather_channels", x, index=tuple(range(first, end)))

    def shuffle(self, x: str, channels: int, groups: int) -> str:
        order = np.arange(channels).reshape(groups, -1).T.ravel()
        return self.add("gather_channels", x, index=tuple(order.tolist()))


def mixed_graph(*, batch_norm: bool = False, padding_corners: bool = True) -> Graph:
    """The forms of V1 and V2: SAME and symmetric padding, strides, depthwise, ReLU, ReLU6, a tensor with two readers,
    sums with and without an activation, an activation apart, dense, softmax."""
    b = Layers(3, batch_norm)
    x = b.conv(b.add("input"), 3, 12, 3, 2, activation=RELU6)
    x = b.conv(x, 12, 12, 3, 2, (1, 1, 1, 1) if padding_corners else "same", groups=12, activation=RELU)
    y = b.conv(x, 12, 20)
    z = b.conv(y, 20, 40, activation=RELU6)
    z = b.conv(z, 40, 40, 3, groups=40, activation=RELU6)
    z = b.conv(z, 40, 20)
    x = b.add("add", y, z)
    x = b.add("add", x, b.conv(x, 20, 20, 3, 1, (1, 1, 1, 1)), activation=RELU6)
    x = b.add("activation", b.add("add", x, y), activation=RELU)
    x = b.dense(b.add("global_avg_pool", x), 20, 7)
    return b.build(b.add("softmax", x), input_size=SIZE)


def family_graph(bounds: Activation = BOUNDS) -> Graph:
    """mixed_graph's forms and all others that the networks of the family have: an input with mean and std, pools that
    count a last window or their padding, a split, slices and shuffles of channels, concatenation, grouped convolution,
    squeeze-and-excite, every activation, local response normalisation, dense layers over a map. `bounds` is the
    activation of one convolution. Maps are 19x14 at first, 9x7 behind the first pool, 4x3 behind the second."""
    b = Layers(4)
    x = b.add("input", mean=np.float32([0.1, 0.0, -0.2]), std=np.float32([0.5, 2.0, 1.0]))
    x = b.conv(x, 3, 12, 3, 2, activation=RELU6)
    x = b.pool("max_pool2d", x, 3, 2, (0, 0, 0, 0), ceil=True)
    left, right = b.take(x, 0, 6), b.take(x, 6, 12)
    right = b.conv(right, 6, 6, activation=Activation("hard_swish", alpha=0.2))
    x = b.shuffle(b.add("concat", left, right), 12, 2)
    x = b.conv(x, 12, 18, groups=3, activation=bounds)
    x = b.conv(b.shuffle(x, 18, 3), 18, 18, 5, 1, (2, 2, 2, 2), groups=18, activation=HARD_SWISH)
    x = b.squeeze_excite(x, 18, 8, HARD_SIGMOID)
    y = b.conv(x, 18, 12)
    z = b.squeeze_excite(y, 12, 4, SIGMOID)
    z = b.squeeze_excite(b.conv(z, 12, 12, 3, 1, (1, 1, 1, 1)), 12, 4, Activation("hard_sigmoid", alpha=0.2))
    x = b.add("add", y, z)
    x = b.pool("max_pool2d", x, 3, 2, (1, 0, 1, 0))  # of values below zero
    x = b.add("activation", x, activation=SWISH)
    counted = b.pool("avg_pool2d", x, 3, 1, (1, 1, 1, 1), count_padding=True)
    x = b.add("concat", counted, b.pool("avg_pool2d", x, 3, 1, "same"), x)
    x = b.add("lrn", b.take(x, 4, 28), size=5, alpha=0.3, beta=0.75, bias=2.0)  # OpenVINO 2026.4 takes 1.5 for 1
    x = b.pool("max_pool2d", b.add("activation", x, activation=RELU), 3, 1, (1, 1, 1, 1), ceil=True)
    x = b.add("adaptive_avg_pool2d", b.add("adaptive_avg_pool2d", x, size=(4, 3)), size=(2, 3))
    x = b.dense(x, 2 * 3 * 24, 10, activation=HARD_SWISH)
    x = b.add("concat", x, b.take(x, 2, 9))
    return b.build(b.add("softmax", b.dense(x, 17, 7)), input_size=SIZE)


@functools.cache
def starts_by_itself() -> bool:
    """False under an emulator that the system does not know."""
    try:
        return subprocess.run([sys.executable, "-c", ""], check=False).returncode == 0
    except OSError:
        return False


def need(framework: str) -> None:
    if not starts_by_itself():
        pytest.skip("a worker is another Python process, and Python does not start by itself here")
    for module in NEEDS[framework]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{framework} needs {module}")


def output_of(framework: str, graph: Graph, x: np.ndarray, folder: Path) -> np.ndarray:
    """What the framework's worker computes: in a process of its own, as in a race."""
    need(framework)
    (folder / "network.pkl").write_bytes(pickle.dumps(graph))
    np.save(folder / "input.npy", x)
    contestant = Contestant(framework, 1, [], folder)
    try:
        assert contestant.error is None, contestant.error
        turn = contestant.ask(warmup=1, runs=3)
        assert turn is not None, contestant.error
        assert len(turn["ns"]) == 3
        assert min(turn["ns"]) > 0
        assert contestant.ready["load_ms"] > 0
    finally:
        contestant.close()
    output: np.ndarray = np.load(contestant.output_file)
    return output


def assert_same(output: np.ndarray, graph: Graph, x: np.ndarray, tolerance: float = 1e-4) -> None:
    expected = execute(graph, x)[graph.output]
    assert output.shape == expected.shape
    assert np.abs(output - expected).max() <= tolerance * np.abs(expected).max()
