"""Microbenchmarks: every distinct layer of MobileNet V1, V2 and V3 at 224, one thread, against ONNX Runtime and NumPy.

Ours and ONNX Runtime's are networks of one node, so both include the call from Python and the change of layout
at the edges, which a whole network pays once; the time of the step alone is kept beside it. See bench/README.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pytest_benchmark")

from bench import networks, steps
from bench.layers import Layer, distinct_layers, numpy_layer
from bench.peers.runners import FastMobileNet, OnnxRuntime
from fastmobilenet import _native
from fastmobilenet.reference import execute

NETWORKS = ("mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large")
SIZE = (224, 224)
ROUNDS, WARMUP_ROUNDS = 41, 5
#: A round repeats the layer until it takes this long, in seconds.
ROUND_SECONDS = 1e-3
PEAK_SECONDS = 0.02
#: Outputs may differ from the float64 reference by this share of its largest value.
TOLERANCE = 1e-4

GRAPHS = {name: networks.build(name, size=SIZE[0]) for name in NETWORKS}
LAYERS = {layer.name: layer for layer in distinct_layers(GRAPHS, SIZE)}


class Ours(FastMobileNet):
    """Fed with NHWC, which costs the least to bring into blocks of 16 channels."""

    layout = "NHWC"


def _load(framework: str, layer: Layer, x: np.ndarray, folder: Path) -> tuple[Callable[[], np.ndarray], np.ndarray]:
    """(the call to time, its output as NHWC)."""
    if framework == "numpy":
        run = numpy_layer(layer, x)
        return run, run()
    if framework == "onnxruntime":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
        peer = OnnxRuntime(layer.graph, x, 1, folder)
        return peer.run, peer.output()
    ours = Ours(layer.graph, x, 1, folder)
    return ours.run, ours.output()


def _step(framework: str, layer: Layer, x: np.ndarray, folder: Path) -> dict:
    """The layer without the edges of its network, in microseconds, where the framework has a profiler; and, for
    ours, the FMA rate of this core now."""
    if framework == "numpy":
        return {}
    if framework == "onnxruntime":
        return {"step_us": steps.onnxruntime(layer, x, folder, ROUNDS)}
    ours = Ours(layer.graph, x, 1, folder)
    peak = _native.peak_gflops(ours.engine.isa, PEAK_SECONDS)
    return {"step_us": steps.ours(ours, layer, ROUNDS), "peak_gflops": peak, "isa": ours.engine.isa}


def _iterations(run: Callable[[], np.ndarray]) -> int:
    """How often a round repeats the call; measured on the second call, the first one may still prepare."""
    run()
    start = time.perf_counter()
    run()
    return max(1, round(ROUND_SECONDS / (time.perf_counter() - start)))


@pytest.mark.parametrize("framework", ["fastmobilenet", "onnxruntime", "numpy"])
@pytest.mark.parametrize("name", LAYERS, ids=lambda name: name.replace(" ", "-"))
def test_layer(name: str, framework: str, benchmark: Any, tmp_path: Path) -> None:
    layer = LAYERS[name]
    x = layer.picture()
    run, output = _load(framework, layer, x, tmp_path)
    expected = execute(layer.graph, x)[layer.graph.output]
    assert np.abs(output - expected).max() <= TOLERANCE * np.abs(expected).max()
    benchmark.group = name
    benchmark.extra_info.update(layer=name, framework=framework, macs=layer.macs, uses=layer.uses)
    benchmark.extra_info.update(_step(framework, layer, x, tmp_path))
    benchmark.pedantic(run, rounds=ROUNDS, iterations=_iterations(run), warmup_rounds=WARMUP_ROUNDS)
