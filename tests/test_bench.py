"""bench/: a peer that fails is part of the result, and what is timed is what is compared."""

from __future__ import annotations

import importlib.util
import json
import pickle
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import layers, machine, networks, report, steps
from bench.contestant import Contestant
from fastmobilenet import models
from fastmobilenet.graph import Node, count_parameters

from .bench_graphs import SIZE, assert_same, mixed_graph, need

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
    assert entry["parameters"] == count_parameters(models.build("mobilenet_v1", width=0.25))
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


@pytest.mark.parametrize(
    "options, message",
    [
        ("--peers onnxruntime,tensorflow", "unknown peers tensorflow"),
        ("--models mobilenet_v2,mobilenet_v5", "arch 'mobilenet_v5' is unknown"),
        ("--models squeezenet1_1 --width 0.5", "has width 1, not 0.5"),
        ("--family --models vgg16", "not allowed with"),
        ("--size 0", "at least 1"),
    ],
)
def test_race_refuses_options(options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from bench import race

    with pytest.raises(SystemExit):
        race.parse(options.split())
    assert message in capsys.readouterr().err


def test_race_of_the_family() -> None:
    from bench import race

    assert race.parse([]).models == ["mobilenet_v1", "mobilenet_v2"]
    options = race.parse(["--family", "--threads", "1"])
    assert options.models == list(networks.FAMILY)
    document = {"machine": {"cpu": "A CPU"}, "date": "2026-01-02T03:04:05"}
    assert race.default_path(document, "-family").name == "race-family-a-cpu-2026-01-02.json"
    assert race.default_path(document, "").name == "race-a-cpu-2026-01-02.json"


def test_parameters_are_those_of_the_papers() -> None:
    assert networks.total_parameters("mobilenet_v3_large") == 5_483_032  # torchvision's own count
    assert networks.total_parameters("mobilenet_v2", 0.5) == 1_968_680


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


NETWORKS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_small")


@pytest.fixture(scope="module")
def small_layers() -> list[layers.Layer]:
    graphs = {name: networks.build(name, 0.25, 64) for name in NETWORKS}
    return layers.distinct_layers(graphs, (64, 64))


def test_layers_cover_the_networks(small_layers: list[layers.Layer]) -> None:
    for name in NETWORKS:
        graph = networks.build(name, 0.25, 64)
        used = [layer for layer in small_layers if name in layer.uses]
        assert sum(layer.uses[name] for layer in used) == sum(node.op in layers.OPS for node in graph.nodes)
        assert sum(layer.uses[name] * layer.macs for layer in used) == networks.total_macs(graph, (64, 64))
    names = [layer.name for layer in small_layers]
    assert len(set(names)) == len(names)
    assert "dw 3x3/2 32x32 16 end-padded relu6" in names  # V1 pads as TensorFlow does
    assert any(layer.uses.keys() == {"mobilenet_v1", "mobilenet_v2"} for layer in small_layers)
    # V3's: filters of 5x5, and squeeze-and-excite
    assert {"dw 5x5 4x4 64 hard_swish", "1x1 1x1 8-8 relu", "1x1 1x1 8-8 hard_sigmoid"} <= set(names)
    assert "mul 16x16 8 by its means" in names


def test_layers_run_alone(small_layers: list[layers.Layer]) -> None:
    """Those with two inputs, and convolutions of one pixel, whose activations only matrix-vector products have."""
    need("fastmobilenet")
    from fastmobilenet.lower import Engine

    for layer in small_layers:
        if layer.input_shape[1:3] == (1, 1) or len(layer.node.inputs) > 1:
            x = layer.picture()
            assert_same(Engine(layer.graph.replace(input_layout="NHWC")).run(x, pixels=False), layer.graph, x)


def test_one_node_refuses_ops_with_several_inputs() -> None:
    joined = Node("joined", "concat", ("a", "b"))
    with pytest.raises(ValueError, match="concat here has two"):
        networks.one_node(joined, [(1, 8, 8, 4), (1, 8, 8, 4)])


def test_numpy_layers_compute_the_layers(small_layers: list[layers.Layer]) -> None:
    for layer in small_layers:
        x = layer.picture()
        run = layers.numpy_layer(layer, x)
        run()
        assert_same(run(), layer.graph, x, 1e-5)  # the second result is not disturbed by the first


def test_every_layer_is_found_among_its_steps(small_layers: list[layers.Layer], tmp_path: Path) -> None:
    """That of the picture too, which is one step with reading it."""
    from bench.peers.runners import FastMobileNet

    for layer in small_layers:
        least, median = steps.ours(FastMobileNet(layer.graph, layer.picture(), 1, tmp_path), layer, 3)
        assert 0 < least <= median, layer.name


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
