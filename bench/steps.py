"""What a layer costs inside a network: its step alone, by the frameworks' own profilers.

A network of one layer pays for the call from Python and for bringing its input into the runtime's inner layout
and its output back; a whole network pays for that once. Both profilers name these edges, so they can be left out.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np

from bench.layers import Layer
from bench.networks import MEANS
from bench.peers.runners import FastMobileNet, OnnxRuntime
from fastmobilenet.profile import JOIN

#: ONNX Runtime's nodes that only change the layout.
REORDER = ("ReorderInput", "ReorderOutput")
WARMUP = 5


def ours(runner: FastMobileNet, layer: Layer, rounds: int) -> tuple[float, float]:
    """(minimum, median) of our step, in microseconds."""
    times = []
    for _ in range(WARMUP + rounds):
        _, steps = runner.engine.profile(runner.x, threads=1, pixels=False)
        times.append(sum(seconds for name, _, seconds in steps if _is_of(layer, name)) * 1e6)
    return summary(times[WARMUP:])


def _is_of(layer: Layer, step: str) -> bool:
    """A convolution of the picture is one step with reading it."""
    return step in (layer.graph.output, f"input{JOIN}{layer.graph.output}")


def onnxruntime(layer: Layer, x: np.ndarray, folder: Path, rounds: int) -> tuple[float, float]:
    """(minimum, median) of ONNX Runtime's node or nodes for the layer, in microseconds (whole ones: so it counts)."""
    runner = _Profiled(layer.graph, x, 1, folder)
    for _ in range(WARMUP + rounds):
        runner.run()
    events = json.loads(Path(runner.session.end_profiling()).read_text())
    means = any(node.name == MEANS for node in layer.graph.nodes)
    return summary(node_times(events, (*REORDER, *["GlobalAveragePool"] * means))[-rounds:])


class _Profiled(OnnxRuntime):
    def options(self) -> object:
        options = super().options()
        options.enable_profiling = True
        options.profile_file_prefix = str(self.folder / "profile")
        return options


def node_times(events: list[dict], left_out: tuple[str, ...] = REORDER) -> list[float]:
    """Microseconds of each run in ONNX Runtime's profile, without the ops that are left out.

    The nodes of a run are written before the run's own event ("model_run").
    """
    times, run = [], 0.0
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            run += 0.0 if event["args"]["op_name"] in left_out else float(event["dur"])
        elif event.get("name") == "model_run":
            times.append(run)
            run = 0.0
    return times


def summary(times: list[float]) -> tuple[float, float]:
    return min(times), statistics.median(times)
