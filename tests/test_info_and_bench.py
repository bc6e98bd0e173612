"""``fastmobilenet info`` and ``fastmobilenet bench``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastmobilenet import Graph, importers, models
from fastmobilenet.benchmark import MIN_RUNS, Result
from fastmobilenet.cli import main
from fastmobilenet.graph import count_macs, count_parameters, infer_shapes

# --- info -------------------------------------------------------------------------------------------------


def test_info_as_json(model_file: str, make_graph: Callable[..., Graph], capsys: pytest.CaptureFixture[str]) -> None:
    graph = make_graph()
    for size, (h, w) in (("32", (32, 32)), ("48x40", (48, 40))):
        assert main(["info", model_file, "--size", size, "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        shapes = infer_shapes(graph, 1, h, w)
        assert facts["file"] == model_file
        assert facts["input"] == {"height": h, "width": w, "channels": 3, "layout": "NHWC"}
        assert facts["output"] == [1, 1, 10]
        assert facts["parameters"] == count_parameters(graph) == sum(layer["parameters"] for layer in facts["layers"])
        assert facts["macs"] == sum(count_macs(node, shapes) for node in graph.nodes)
        assert facts["macs"] == sum(layer["macs"] for layer in facts["layers"])
        assert [layer["name"] for layer in facts["layers"]] == [node.name for node in graph.nodes]
        assert facts["labels"] == 10
        assert facts["preprocess"]["mean"] == [127.5] * 3
        first, depthwise = facts["layers"][1], facts["layers"][3]
        assert first["output"] == [h // 2, w // 2, 12]
        assert (first["kernel"], first["stride"], first["padding"]) == ([3, 3], [2, 2], "same")
        assert (first["activation"], first["depthwise"]) == ("relu6", False)
        assert (depthwise["depthwise"], depthwise["groups"], depthwise["macs"]) == (True, 20, h // 2 * w // 2 * 180)


def test_info_for_people(model_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", model_file]) == 0
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert lines[0].split() == ["model", "small"]
    assert "shorter side to size/0.875" in text
    first = next(line for line in lines if line.startswith("conv2d "))
    assert first.split() == ["conv2d", "conv2d", "3x3", "/2", "+", "relu6", "fp32", "16x16x12", "82,944", "336"]
    assert any("depthwise 3x3 + relu6" in line for line in lines)


@pytest.mark.parametrize("name, macs", [("mobilenet_v1", 568_740_352), ("mobilenet_v2", 300_774_272)])
def test_info_of_an_architecture(name: str, macs: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The MACs are those that the papers' authors count: 569 and 300 million."""
    assert main(["info", name, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["name"], facts["file"], facts["macs"]) == (name, None, macs)
    assert main(["info", name]) == 0
    assert "random weights" in capsys.readouterr().out.splitlines()[0]


def test_info_of_a_size_that_does_not_fit(capsys: pytest.CaptureFixture[str], monkeypatch: Any, tmp_path: Path) -> None:
    (tmp_path / "net.tflite").touch()
    graph = models.build("mobilenet_v1", width=0.25, input_size=(32, 32))
    pool = next(node for node in graph.nodes if node.op == "global_avg_pool")
    nodes = tuple(
        type(n)(n.name, "avg_pool2d", n.inputs, {"kernel": (7, 7), "stride": (1, 1), "padding": (0, 0, 0, 0)})
        if n is pool
        else n
        for n in graph.nodes
    )
    monkeypatch.setattr(importers, "load", lambda path, arch=None, quantized=False: graph.replace(nodes=nodes))
    assert main(["info", str(tmp_path / "net.tflite"), "--size", "100"]) == 1
    assert "use a larger picture" in capsys.readouterr().err


# --- bench ------------------------------------------------------------------------------------------------


def test_bench_as_json(model_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--model", model_file, "--size", "40x24", "--batch", "2", "--threads", "1", "--json"]
    assert main([*command, "--seconds", "0.01"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model"], facts["height"], facts["width"]) == ("small", 40, 24)
    assert (facts["batch"], facts["threads"]) == (2, 1)
    assert facts["runs"] == len(facts["times_ms"]) >= MIN_RUNS
    assert 0 < facts["min_ms"] == min(facts["times_ms"]) <= facts["median_ms"]
    assert facts["images_per_second"] == pytest.approx(2000 / facts["median_ms"])
    assert facts["peak_gflops"] > 0
    assert 0 < facts["share_of_peak_median"] <= facts["share_of_peak_min"]


def test_bench_of_an_architecture(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--model", "mobilenetv2_035", "--size", "32", "--seconds", "0.01"]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == [
        *("model", "CPU", "runs", "minimum", "median", "throughput", "peak")
    ]
    assert "mobilenetv2_035 at 32x32" in out
    assert err == ""
    for threads, shown in ((1, "batch 1, 1 thread, "), (2, "batch 1, 2 threads, ")):
        command = ["bench", "--model", "mobilenetv2_035", "--size", "32", "--seconds", "0.01"]
        assert main([*command, "--threads", str(threads)]) == 0
        assert shown in capsys.readouterr().out


def test_bench_of_what_fits_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--model", "mobilenetv2_035", "--seconds", "0.01"]
    for option in (["--size", "100000"], ["--size", "99999999999999999999"], ["--batch", "99999999999999999999"]):
        assert main([*command, *option]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert "too large" in err or "not enough memory" in err


def test_labels_are_of_no_matter_to_bench(model_file: str, make_graph: Any, monkeypatch: Any, capsys: Any) -> None:
    graph = make_graph(labels=("too", "few"))
    monkeypatch.setattr(importers, "load", lambda path, arch=None, quantized=False: graph)
    assert main(["bench", "--model", model_file, "--seconds", "0.01"]) == 0


def test_benchmark_figures() -> None:
    result = Result(
        model="m", size=(2, 3), batch=4, threads=2, isa="scalar", cpu="c", macs=10**6, peak_gflops=100.0,
        times=(0.5, 0.1, 0.2, 0.4, 0.3),
    )  # fmt: skip
    assert (result.minimum, result.median) == (0.1, 0.3)
    assert result.images_per_second == pytest.approx(4 / 0.3)
    assert result.gflops(0.1) == pytest.approx(2 * 4e6 / 0.1 / 1e9)
    assert result.share_of_peak(0.1) == pytest.approx(0.08 / 100)
