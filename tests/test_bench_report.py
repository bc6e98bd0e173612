"""bench/: the tables and plots say what the result files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import plot, report, tables

MACHINE = {
    "cpu": "Test CPU",
    "logical_cpus": 2,
    "hypervisor": True,
    "flags": ["avx2", "fma"],
    "system": "Linux 6",
    "python": "3.11",
}


def finished(*rounds: list[float]) -> dict[str, Any]:
    runs = sorted(ms for turn in rounds for ms in turn)
    median = float(np.median(runs))
    return {
        "status": "ok",
        "difference": 1e-6,
        "load_ms": 5.0,
        "median_ms": median,
        "min_ms": runs[0],
        "rounds": list(rounds),
    }


def race_entry(threads: int, peers: dict[str, dict[str, Any]], gflops: list[float]) -> dict[str, Any]:
    return {
        "model": "mobilenet_v1",
        "width": 1.0,
        "size": 224,
        "threads": threads,
        "macs": 500_000_000,
        "parameters": 4_231_976,
        "cpus": [1],
        "peers": peers,
        "peak": {"isa": "avx2", "error": None if gflops else "ImportError: nothing", "gflops_per_core": gflops},
        "noise": {"steal": 0.012, "others": 0.034, "load_average_before": [0.5, 0.4, 0.3], "mhz": [[], []]},
    }


@pytest.fixture
def race_document() -> dict[str, Any]:
    """One race won, one lost by the median, one in which we failed."""
    failed = {"status": "failed", "error": "ImportError: no mnn", "difference": None}
    ours = finished([5.0, 6.0], [5.0, 7.0])
    return {
        "kind": "race",
        "date": "2026-01-02T03:04:05+00:00",
        "command": "python -m bench.race --rounds 2",
        "machine": MACHINE,
        "versions": {"onnxruntime": "1.0", "mnn": None},
        "races": [
            race_entry(
                1,
                {"fastmobilenet": ours, "onnxruntime": finished([6.0, 6.6], [7.0, 9.0]), "mnn": failed},
                [190.0, 200.0],
            ),
            race_entry(
                2, {"fastmobilenet": ours, "onnxruntime": finished([5.5], [5.0]), "mnn": finished([9.0], [9.0])}, []
            ),
            race_entry(3, {"fastmobilenet": failed, "onnxruntime": finished([5.5], [5.0])}, []),
        ],
    }


def test_verdicts(race_document: dict[str, Any]) -> None:
    won, lost, none = (tables.verdict(race) for race in race_document["races"])
    assert won is not None
    assert (won.by_min, won.by_median, won.fastest_by_min) == (6.0 / 5.0, 6.8 / 5.5, "onnxruntime")
    assert won.word == "won"
    assert lost is not None
    assert (lost.by_min, lost.by_median) == (1.0, 5.25 / 5.5)
    assert lost.word == "LOST by median"
    assert none is None


def test_share_of_peak(race_document: dict[str, Any]) -> None:
    # 1e9 flop at 200 GFLOP/s are 5 ms, which is what our fastest run took.
    assert tables.share_of_peak(race_document["races"][0], 5.0) == pytest.approx(1.0)
    assert tables.share_of_peak(race_document["races"][1], 5.0) is None


def test_race_text_shows_failures_and_noise(race_document: dict[str, Any]) -> None:
    won, lost, none = (tables.race_text(race) for race in race_document["races"])
    assert "mnn            failed: ImportError: no mnn" in won
    assert "190 to 200 GFLOP/s" in won
    assert "1.20 / 1.24" in won
    assert "stolen CPU time 1.2%, other processes 3.4%, load average 0.50" in won
    assert "LOST by median" in lost
    assert "peak not measured (ImportError: nothing)" in lost
    assert "no verdict" in none


def test_race_markdown(race_document: dict[str, Any]) -> None:
    text = tables.race_markdown([race_document])
    head, _, first, second, third = text.splitlines()[:5]
    assert head == (
        "| network | parameters | FLOP | fastmobilenet | onnxruntime | mnn | fastest peer / ours | of peak |"
    )
    assert first == (
        "| mobilenet_v1, 224x224, 1 thread | 4.23 M | 1000 M | 5.00 / 5.50 | 6.00 / 6.80 | failed "
        "| 1.200 / 1.236 (onnxruntime) | 100% |"
    )
    assert second.endswith("| **1.000 / 0.955 (onnxruntime), LOST by median** |  |")
    assert third == "| mobilenet_v1, 224x224, 3 threads | 4.23 M | 1000 M | failed | 5.00 / 5.25 |  | no verdict |  |"
    assert "2026-01-02, Test CPU, 2 CPUs, virtual (avx2), Linux 6, Python 3.11" in text
    assert "`python -m bench.race --rounds 2`" in text
    assert "* mnn failed: ImportError: no mnn" in text
    assert "noise" in text


def test_race_markdown_of_several_files(race_document: dict[str, Any]) -> None:
    """What is equal is said once. Files of the time before parameters were counted leave that column empty."""
    peers = {"fastmobilenet": finished([5.0]), "openvino": finished([5.5, 9.0]), "ncnn": finished([6.0])}
    other = {**race_document, "command": "python -m bench.race --family", "races": [race_entry(1, peers, [200.0])]}
    del other["races"][0]["parameters"]
    text = tables.race_markdown([race_document, other])
    assert text.count("Test CPU") == 1
    assert text.count("onnxruntime 1.0") == 1
    assert text.index("--rounds 2`") < text.index("--family`")
    row = "|  | 1000 M | 5.00 / 5.00 |  |  | 5.50 / 7.25 | 6.00 / 6.00 | 1.100 / 1.200 (openvino / ncnn) | 100% |"
    assert row in text


@pytest.fixture
def layer_document() -> dict[str, Any]:
    def entry(layer: str, framework: str, us: float, uses: dict[str, int], **info: Any) -> dict[str, Any]:
        info.update(layer=layer, framework=framework, macs=1_000_000, uses=uses)
        return {"extra_info": info, "stats": {"min": us * 1e-6, "median": 2 * us * 1e-6}}

    first, second = {"v1": 1, "v2": 3}, {"v1": 2}
    peak = {"peak_gflops": 100.0, "isa": "avx2"}
    return {
        "kind": "layers",
        "datetime": "2026-01-02T03:04:05",
        "command": "python -m pytest bench/test_layers.py",
        "machine_info": MACHINE,
        "versions": {"numpy": "2.0"},
        "benchmarks": [
            entry("dw", "fastmobilenet", 10.0, first, step_us=[5.0, 6.0], **peak),
            entry("dw", "onnxruntime", 20.0, first, step_us=[15.0, 15.0]),
            entry("dw", "numpy", 50.0, first),
            entry("1x1", "fastmobilenet", 40.0, second, step_us=[25.0, 30.0], **peak | {"peak_gflops": 80.0}),
            entry("1x1", "onnxruntime", 30.0, second, step_us=[20.0, 40.0]),
            entry("1x1", "numpy", 80.0, second),
        ],
    }


def test_layer_markdown(layer_document: dict[str, Any]) -> None:
    head, _, dw, pointwise, v1, v2, *_ = tables.layer_markdown(layer_document).splitlines()
    columns = [cell.strip() for cell in head.strip("|").split("|")]

    def cell(line: str, column: str) -> str:
        return line[1:-1].split("|")[columns.index(column)].strip()

    assert cell(dw, "onnxruntime / ours") == "2.00 / 2.00"
    assert cell(dw, "onnxruntime / ours, step") == "3.00 / 2.50"
    assert cell(dw, "our step, of peak") == "400%"  # 2e6 flop at the session's best 100 GFLOP/s are 20 us
    assert cell(pointwise, "onnxruntime / ours") == "**0.75 / 0.75, lost**"
    assert cell(pointwise, "onnxruntime / ours, step") == "**0.80 / 1.33, lost**"
    assert cell(pointwise, "in v2") == ""
    assert cell(v1, "layer") == "**all of v1**"
    assert cell(v1, "in v1") == "3"
    assert cell(v1, "fastmobilenet") == "90.0 / 180.0"
    assert cell(v1, "numpy") == "210.0 / 420.0"
    assert cell(v1, "fastmobilenet, step") == "55.0 / 66.0"
    assert cell(v2, "onnxruntime") == "60.0 / 120.0"


def test_report_writes_tables_and_plots(
    race_document: dict[str, Any], layer_document: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    files = []
    for name, document in (("race", race_document), ("layers", layer_document)):
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(document))
    out = tmp_path / "out"
    assert report.main([*map(str, files), "--out", str(out)]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["layers.md", "layers.png", "race.md", "race.png"]
    for image in out.glob("*.png"):
        assert image.read_bytes().startswith(b"\x89PNG")
        assert image.stat().st_size > 10_000
    assert (out / "race.md").read_text() == tables.race_markdown([race_document])


def test_many_races_are_in_rows(race_document: dict[str, Any]) -> None:
    pytest.importorskip("matplotlib")
    entry = race_document["races"][0]
    document = {**race_document, "races": [entry] * (2 * plot.RACES_IN_A_ROW + 1)}
    figure = plot.race_figure([document])
    assert [len(axes.get_xticks()) for axes in figure.axes] == [plot.RACES_IN_A_ROW, plot.RACES_IN_A_ROW, 1]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    legends = [axes.get_legend() for axes in figure.axes]
    assert [text.get_text() for text in legends[0].get_texts()] == ["fastmobilenet", "onnxruntime"]  # mnn has failed
    assert legends[1:] == [None, None]


def test_report_fills_in_the_readme(
    race_document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, readme = tmp_path / "race.json", tmp_path / "README.md"
    source.write_text(json.dumps(race_document))
    readme.write_text("above\n<!-- speed table: begin (x) -->\nold\n<!-- speed table: end -->\nbelow\n")
    for _ in range(2):  # the second time changes nothing
        assert report.main([str(source), "--readme", str(readme)]) == 0
    table = tables.verdicts_markdown([race_document])
    assert readme.read_text() == (f"above\n<!-- speed table: begin (x) -->\n{table}<!-- speed table: end -->\nbelow\n")
    assert report.main([str(source), "--table"]) == 0
    assert capsys.readouterr().out == table
    readme.write_text("no markers")
    assert report.main([str(source), "--readme", str(readme)]) == 1
    assert readme.read_text() == "no markers"


def test_the_readme_has_a_column_for_each_cpu(race_document: dict[str, Any], tmp_path: Path) -> None:
    """Also for two that a hypervisor gives the same name."""
    other, old = (json.loads(json.dumps(race_document)) for _ in range(2))
    race_document["machine"]["family_model_stepping"] = ["6", "207", "2"]
    other["machine"]["family_model_stepping"] = ["6", "173", "1"]
    other["races"] = other["races"][:1]
    paths = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"]
    for path, document in zip(paths, (race_document, other, old), strict=True):
        path.write_text(json.dumps(document))
    head, _, *rows = report.readme_table(paths).partition("\n\n")[0].splitlines()
    names = ["Test CPU", "Test CPU (family 6, model 173)", "Test CPU (family 6, model 207)"]
    columns = head.strip("| ").split(" | ")
    assert columns[0] == "network"
    assert columns[1:4] == [f"Test CPU, {n}" for n in ("1 thread", "2 threads", "3 threads")]
    assert list(dict.fromkeys(column.rpartition(",")[0] for column in columns[1:])) == names
    assert len(rows) == 1
    cells = dict(zip(columns, rows[0].strip("| ").split(" | "), strict=True))
    assert cells["network"] == "mobilenet_v1, 224x224"
    assert cells["Test CPU (family 6, model 173), 1 thread"] == "5.00: 1.20 / 1.24 (onnxruntime)"
    assert cells["Test CPU, 2 threads"] == "**5.00: 1.00 / 0.95 (onnxruntime), LOST by median**"
    assert cells["Test CPU, 3 threads"] == "no verdict"
    assert "Test CPU (family 6, model 173), 2 threads" not in columns


def test_report_refuses_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"benchmarks": []}')
    assert report.main([str(other)]) == 1
    assert "not a result of bench.race" in capsys.readouterr().err
