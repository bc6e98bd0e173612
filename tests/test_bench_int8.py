"""The race of int8: every framework gets the same network, quantised by its own tools or as these would write it."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from bench import networks, race, tables
from bench.peers import runners_int8, to_tflite
from bench.peers.runners_int8 import CALIBRATION, OURS_FP32, QUANTIZED, RUNNERS_INT8
from bench.peers.tflite_int8 import input_codes
from fastmobilenet import models
from fastmobilenet.graph import Graph
from fastmobilenet.lower import Engine
from fastmobilenet.reference import execute

from .bench_graphs import NEEDS, need

SIZE = (48, 64)


def network(arch: str) -> tuple[Graph, np.ndarray, Graph]:
    """(floats, a picture, bytes)"""
    graph = networks.deployed(models.build(arch, width=0.35, input_size=SIZE))
    return graph, networks.picture(graph, SIZE), networks.quantized(graph, networks.calibration(graph, SIZE))


@pytest.mark.parametrize("arch", ["mobilenet_v1", "mobilenet_v2"])
def test_litert_gives_our_bytes(arch: str) -> None:
    """All their ops are defined as LiteRT's own."""
    pytest.importorskip("ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    _, x, graph = network(arch)
    interpreter = Interpreter(model_content=to_tflite.export(graph, SIZE), num_threads=1)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert source["dtype"] == target["dtype"] == np.int8
    interpreter.set_tensor(source["index"], input_codes(graph, x))
    interpreter.invoke()
    scale, zero = target["quantization"]
    real = (interpreter.get_tensor(target["index"]).astype(np.float32) - np.float32(zero)) * np.float32(scale)
    ours = Engine(graph).run(x, pixels=False)
    assert np.array_equal(real.ravel(), ours.ravel()) and np.ptp(real) > 0


@pytest.mark.parametrize("framework", [name for name in RUNNERS_INT8 if name in NEEDS or name == OURS_FP32])
def test_every_framework_computes_our_network(framework: str, tmp_path: Path) -> None:
    if framework != OURS_FP32:
        need(framework)
    if framework in ("onnxruntime", "openvino"):
        pytest.importorskip("sympy")
        pytest.importorskip("onnxruntime")
    graph, x, quantized = network("mobilenet_v3_small")
    np.save(tmp_path / CALIBRATION, networks.calibration(graph, SIZE))
    (tmp_path / QUANTIZED).write_bytes(pickle.dumps(quantized))
    folder = tmp_path / framework
    folder.mkdir()
    found = RUNNERS_INT8[framework](graph, x, 1, folder).output()
    expected = execute(graph, x)[graph.output]
    assert found.shape == expected.shape
    assert 1 - np.corrcoef(found.ravel(), expected.ravel())[0, 1] < race.TOLERANCE_INT8


def test_a_race_of_int8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "race.json"
    arguments = "--precision int8 --models mobilenet_v1 --width 0.25 --size 32 --threads 1 --rounds 2 --runs 2 --no-pin"
    assert race.main([*arguments.split(), "--peers", f"fastmobilenet,{OURS_FP32}", "--out", str(out)]) == 0
    (result,) = json.loads(out.read_text())["races"]
    assert tables.title(result) == "mobilenet_v1 x0.25, int8, 32x32, 1 thread"
    assert tables.verdict(result) is None  # our floats are no peer
    assert tables.against_fp32(result) is not None
    assert "1 - correlation" in capsys.readouterr().out
    assert "our fp32 / ours" in tables.race_markdown([json.loads(out.read_text())])


def test_choices() -> None:
    options: argparse.Namespace = race.parse(["--precision", "int8"])
    assert options.models == list(networks.INT8) and options.peers == list(runners_int8.RUNNERS_INT8)
    with pytest.raises(SystemExit):
        race.parse(["--precision", "int8", "--peers", "ncnn"])
