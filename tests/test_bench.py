"""bench/: every exporter gives a peer our very network, and a peer that fails is part of the result."""

from __future__ import annotations

import functools
import importlib.util
import json
import pickle
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import layers, machine, networks, report, steps
from bench.contestant import Contestant
from bench.peers import runners, to_ncnn, to_onnx, to_tflite
from fastmobilenet import models
from fastmobilenet.graph import RELU, RELU6, Activation, Graph, GraphBuilder
from fastmobilenet.passes import optimize
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


def mixed_graph(*, batch_norm: bool = False, padding_corners: bool = True) -> Graph:
    """Every form that the exporters tell apart: SAME and symmetric padding, strides, depthwise, ReLU, ReLU6 and other
    bounds, a tensor with two readers, sums with and without an activation, an activation apart, dense, softmax."""
    rng = np.random.default_rng(3)
    b = GraphBuilder()

    def conv(x: str, ic: int, oc: int, kernel: int = 1, stride: int = 1, padding: Any = "same", **attrs: Any) -> str:
        icg = ic // attrs.get("groups", 1)
        params = {"weight": rng.normal(0, (2 / (kernel**2 * icg)) ** 0.5, (oc, kernel, kernel, icg)).astype(np.float32)}
        if not batch_norm:
            params["bias"] = rng.normal(0, 0.3, oc).astype(np.float32)
            return b.add("conv2d", x, params=params, stride=(stride, stride), padding=padding, **attrs)
        activation = attrs.pop("activation", None)
        x = b.add("conv2d", x, params=params, stride=(stride, stride), padding=padding, **attrs)
        stats = {key: rng.uniform(0.5, 1.5, oc).astype(np.float32) for key in ("gamma", "beta", "mean", "variance")}
        x = b.add("batch_norm", x, params=stats, epsilon=1e-3)
        return b.add("activation", x, activation=activation) if activation else x

    x = conv(b.add("input"), 3, 12, 3, 2, activation=RELU6)
    x = conv(x, 12, 12, 3, 2, (1, 1, 1, 1) if padding_corners else "same", groups=12, activation=RELU)
    y = conv(x, 12, 20)
    z = conv(y, 20, 40, activation=RELU6)
    z = conv(z, 40, 40, 3, groups=40, activation=RELU6)
    z = conv(z, 40, 20)
    x = b.add("add", y, z)
    x = b.add("add", x, conv(x, 20, 20, 3, 1, (1, 1, 1, 1)), activation=RELU6)
    x = b.add("activation", b.add("add", x, y), activation=RELU)
    x = b.add("global_avg_pool", x)
    weight = rng.normal(0, 0.5, (7, 20)).astype(np.float32)
    x = b.add("dense", x, params={"weight": weight, "bias": rng.normal(0, 1, 7).astype(np.float32)})
    return b.build(b.add("softmax", x), input_size=SIZE)


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


# --- peers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", [name for name in runners.RUNNERS if name in NEEDS])
def test_every_framework_computes_our_network(framework: str, tmp_path: Path) -> None:
    graph = mixed_graph()
    x = networks.picture(graph, SIZE)
    assert_same(output_of(framework, graph, x, tmp_path), graph, x)


def test_onnx_with_batch_normalisation(tmp_path: Path) -> None:
    graph = mixed_graph(batch_norm=True)
    assert any(n.op == "batch_norm" for n in graph.nodes)
    x = networks.picture(graph, SIZE)
    assert_same(output_of("onnxruntime", graph, x, tmp_path), graph, x)


def test_onnx_of_a_feature_map(tmp_path: Path) -> None:
    """A network that ends in a map has a rank-4 output, which the runner turns to NHWC; and bounds of its own."""
    rng = np.random.default_rng(5)
    b = GraphBuilder()
    params = {"weight": rng.normal(0, 0.3, (5, 3, 3, 3)).astype(np.float32)}
    bounds = Activation("clamp", -0.5, 1.0)
    y = b.add("conv2d", b.add("input"), params=params, stride=(2, 1), padding=(0, 1, 2, 0), activation=bounds)
    graph = b.build(b.add("avg_pool2d", y, kernel=(3, 2), stride=(2, 2), padding=(1, 0, 0, 1)))
    x = networks.picture(graph, (17, 12))
    assert_same(output_of("onnxruntime", graph, x, tmp_path), graph, x)


def test_all_frameworks_are_tested_or_optional() -> None:
    assert set(runners.DEFAULT) == set(NEEDS)
    assert runners.OURS in runners.DEFAULT


def test_tflite_pads_only_where_it_must() -> None:
    pytest.importorskip("flatbuffers")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

    def pads(graph: Graph) -> int:
        model = schema.Model.GetRootAs(to_tflite.export(graph, SIZE))
        codes = [model.OperatorCodes(i).BuiltinCode() for i in range(model.OperatorCodesLength())]
        operators = model.Subgraphs(0)
        used = [codes[operators.Operators(i).OpcodeIndex()] for i in range(operators.OperatorsLength())]
        return used.count(schema.BuiltinOperator.PAD)

    # 19x14 after the first layer: with stride 2, (1, 1, 1, 1) is not what SAME gives for 14 columns.
    assert pads(mixed_graph()) == 1
    assert pads(mixed_graph(padding_corners=False)) == 0


def test_tflite_constants_are_aligned() -> None:
    pytest.importorskip("flatbuffers")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    content = to_tflite.export(mixed_graph(), SIZE)
    assert content[4:8] == b"TFL3"
    model = schema.Model.GetRootAs(content)
    places = []
    for i in range(1, model.BuffersLength()):
        data = model.Buffers(i).DataAsNumpy()
        places.append(data.__array_interface__["data"][0] - np.frombuffer(content, np.uint8).ctypes.data)
    assert len(places) > 10
    assert all(place % to_tflite.ALIGNMENT == 0 for place in places)


def test_ncnn_file_is_consistent() -> None:
    graph = mixed_graph()
    text, weights = to_ncnn.export(graph, SIZE)
    magic, counts, *lines = text.splitlines()
    rows = [line.split() for line in lines]
    made = [blob for row in rows for blob in row[4 + int(row[2]) : 4 + int(row[2]) + int(row[3])]]
    read = [blob for row in rows for blob in row[4 : 4 + int(row[2])]]
    assert magic == "7767517"
    assert counts.split() == [str(len(rows)), str(len(made))]
    assert len(set(made)) == len(made)
    assert sorted(read) == sorted(set(made) - {"y"})  # each blob has exactly one reader
    values = sum(v.size for n in graph.nodes for v in n.params.values())
    arrays = sum("weight" in n.params for n in graph.nodes)
    assert len(weights) == 4 * (values + arrays)  # a tag before each weight array


@pytest.mark.parametrize("export", [to_tflite.export, to_ncnn.export, to_onnx.export])
def test_exporters_refuse_what_they_cannot_write(export: Callable[..., Any]) -> None:
    needed = {to_tflite.export: ("flatbuffers", "ai_edge_litert"), to_onnx.export: ("onnx",)}
    for module in needed.get(export, ()):
        pytest.importorskip(module)
    fused = optimize(models.build("mobilenet_v2", width=0.35, classes=3))
    with pytest.raises(ValueError, match="fuse_residual"):
        export(fused, (32, 32))
    if export is not to_onnx.export:
        with pytest.raises(ValueError, match="fold it first"):
            export(mixed_graph(batch_norm=True), SIZE)


# --- the race -------------------------------------------------------------------------------------------------------


def test_a_broken_peer_is_a_result(tmp_path: Path) -> None:
    need("fastmobilenet")
    contestant = Contestant("fastmobilenet", 1, [], tmp_path)  # the folder holds no network
    assert contestant.error is not None
    assert "FileNotFoundError" in contestant.error
    assert str(tmp_path) not in contestant.error
    assert contestant.ask(warmup=1, runs=1) is None
    contestant.close()


def test_a_peer_that_dies_is_a_result(tmp_path: Path) -> None:
    need("fastmobilenet")
    graph = networks.deployed(mixed_graph())
    (tmp_path / "network.pkl").write_bytes(pickle.dumps(graph))
    np.save(tmp_path / "input.npy", networks.picture(graph, SIZE))
    contestant = Contestant("fastmobilenet", 1, [], tmp_path)
    assert "load_ms" in contestant.ready
    contestant._process.kill()
    assert contestant.ask(warmup=1, runs=1) is None
    assert contestant.error is not None
    assert "ended with code" in contestant.error


def test_race_writes_a_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    need("fastmobilenet")
    from bench import race

    out = tmp_path / "race.json"
    peers = ["fastmobilenet", *(p for p in ("ncnn",) if importlib.util.find_spec(p))]
    options = "--models mobilenet_v1 --width 0.25 --size 32 --threads 1 --rounds 3 --runs 2".split()
    assert race.main([*options, "--peers", ",".join(peers), "--out", str(out)]) == 0
    document = report.load(out)
    (entry,) = document["races"]
    assert entry["model"] == "mobilenet_v1"
    assert entry["macs"] == networks.total_macs(networks.build("mobilenet_v1", 0.25, 32), (32, 32))
    assert list(entry["peers"]) == peers
    for peer in entry["peers"].values():
        assert peer["status"] == "ok"
        assert [len(turn) for turn in peer["rounds"]] == [2, 2, 2]
        runs = sorted(ms for turn in peer["rounds"] for ms in turn)
        assert peer["min_ms"] == runs[0]
        assert peer["median_ms"] == pytest.approx((runs[2] + runs[3]) / 2, abs=1e-4)
        assert peer["difference"] < 1e-4
    assert len(entry["peak"]["gflops_per_core"]) == 3
    assert "--rounds 3" in document["command"]
    assert "mobilenet_v1 x0.25, 32x32, 1 thread" in capsys.readouterr().out


def test_race_names_unknown_peers(capsys: pytest.CaptureFixture[str]) -> None:
    from bench import race

    with pytest.raises(SystemExit):
        race.parse(["--peers", "onnxruntime,tensorflow"])
    assert "unknown peers tensorflow" in capsys.readouterr().err


def test_wrong_output_fails_a_contestant(tmp_path: Path) -> None:
    from bench import race

    class Stub(Contestant):
        def __init__(self, name: str, output: np.ndarray) -> None:
            self.peer, self.error, self.difference, self.asked = name, None, None, 0
            self.output_file = tmp_path / f"{name}.npy"
            np.save(self.output_file, output)

        def ask(self, **request: Any) -> dict[str, Any]:
            self.asked += 1
            return {"ns": []}

        def close(self) -> None:
            pass

    expected = np.linspace(-4, 4, 10).reshape(1, 1, 1, 10)
    right, far = Stub("right", expected + 0.0039), Stub("far", expected + 0.0041)
    shape, nan = Stub("shape", expected.ravel()), Stub("nan", np.where(expected > 3, np.nan, expected))
    for contestant in (right, far, shape, nan):
        race._check(contestant, expected)
    assert right.error is None
    assert right.asked == 1
    assert far.error is not None
    assert "differs" in far.error
    assert shape.error is not None
    assert "shape" in shape.error
    assert nan.error is not None


def test_picture_has_no_denormals() -> None:
    for arch in ("mobilenet_v1", "mobilenet_v2"):
        x = networks.picture(models.build(arch, width=0.25), (64, 48))
        assert x.shape == (1, 64, 48, 3)
        assert x.dtype == np.float32
        assert np.abs(x).min() > 1e-3
        assert x.std() > 0.2


# --- layers ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_layers() -> list[layers.Layer]:
    graphs = {name: networks.build(name, 0.25, 64) for name in ("mobilenet_v1", "mobilenet_v2")}
    return layers.distinct_layers(graphs, (64, 64))


def test_layers_cover_the_networks(small_layers: list[layers.Layer]) -> None:
    for name in ("mobilenet_v1", "mobilenet_v2"):
        graph = networks.build(name, 0.25, 64)
        used = [layer for layer in small_layers if name in layer.uses]
        assert sum(layer.uses[name] for layer in used) == sum(node.op in layers.OPS for node in graph.nodes)
        assert sum(layer.uses[name] * layer.macs for layer in used) == networks.total_macs(graph, (64, 64))
    names = [layer.name for layer in small_layers]
    assert len(set(names)) == len(names)
    assert "dw 3x3/2 32x32 16 end-padded relu6" in names  # V1 pads as TensorFlow does
    assert any(layer.uses.keys() == {"mobilenet_v1", "mobilenet_v2"} for layer in small_layers)


def test_numpy_layers_compute_the_layers(small_layers: list[layers.Layer]) -> None:
    for layer in small_layers:
        x = layer.picture()
        run = layers.numpy_layer(layer, x)
        run()
        assert_same(run(), layer.graph, x, 1e-5)  # the second result is not disturbed by the first


def test_onnxruntime_profile_without_the_edges() -> None:
    def node(op: str, name: str, us: int) -> dict[str, Any]:
        return {"cat": "Node", "name": name, "dur": us, "args": {"op_name": op}}

    run = [
        node("ReorderInput", "ReorderInput_kernel_time", 40),
        node("Conv", "y_nchwc_fence_before", 9),
        node("Conv", "y_nchwc_kernel_time", 140),
        node("ReorderOutput", "ReorderOutput_kernel_time", 30),
        {"cat": "Session", "name": "model_run", "dur": 215},
    ]
    assert steps.node_times([{"cat": "Session", "name": "session_initialization", "dur": 1}, *run, *run]) == [140, 140]


# --- machine --------------------------------------------------------------------------------------------------------


def test_machine_does_not_name_the_host() -> None:
    text = json.dumps(machine.describe())
    assert len(platform.node()) < 4 or platform.node() not in text
    assert machine.without_paths(f"no {machine.REPOSITORY}/x.so") == "no ./x.so"


def test_chosen_cpus_are_usable() -> None:
    usable = machine.usable_cpus()
    assert len(machine.choose_cpus(1)) == 1
    assert set(machine.choose_cpus(2)) <= set(usable)
    assert machine.choose_cpus(len(usable) + 5) == usable
    ticks = machine.cpu_times(usable)
    assert 0 <= ticks["idle"] + ticks["steal"] <= ticks["total"]
