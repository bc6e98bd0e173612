"""The small benchmarks: what they write, not how fast it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import cold_start, pauses, report, shares
from fastmobilenet import _native


def test_pauses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pauses.json"
    models = "mobilenet_v2,mobilenet_v1"
    assert pauses.main(["--models", models, "--size", "32", "--pause", "1", "--rounds", "2", "--out", str(out)]) == 0
    document = json.loads(out.read_text())
    for threads in ("1", "2"):
        found = document["pause"][threads]
        assert found["ratio"]["min"] == pytest.approx(found["after"]["min_ms"] / found["without"]["min_ms"], rel=1e-3)
        assert set(document["alternate"][threads]) == set(models.split(","))
    assert "in turns" in capsys.readouterr().out


def test_cold_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cold.json"
    assert cold_start.main(["--rounds", "1", "--peers", "fastmobilenet", "--out", str(out)]) == 0
    peers = json.loads(out.read_text())["peers"]
    assert peers["fastmobilenet"]["status"] == peers["numpy"]["status"] == "ok"
    ours = peers["fastmobilenet"]
    assert ours["wall"]["min_ms"] > ours["import"]["min_ms"] + ours["load"]["min_ms"] + ours["run"]["min_ms"]
    assert "first run" in capsys.readouterr().out


def test_a_framework_that_is_missing_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ai_edge_litert", reason="writes the network as a .tflite file")
    monkeypatch.setitem(cold_start.CODE, "litert", "import a_module_that_is_not_there")
    out = tmp_path / "cold.json"
    assert cold_start.main(["--rounds", "1", "--peers", "litert", "--out", str(out)]) == 0
    found = json.loads(out.read_text())["peers"]["litert"]
    assert found["status"] == "failed"
    assert "a_module_that_is_not_there" in found["error"]


@pytest.mark.parametrize("isa", [_native.supported_isas()[0]])
def test_shares(tmp_path: Path, isa: str) -> None:
    out = tmp_path / "shares.json"
    assert (
        shares.main(["--isa", isa, "--models", "mobilenet_v2", "--size", "32", "--runs", "2", "--out", str(out)]) == 0
    )
    (found,) = json.loads(out.read_text())["networks"]
    assert all(0 < layer["share"] < 1.5 for layer in found["layers"])
    assert found["gemm_share"] > 0


def test_the_report_leaves_them_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pauses.json").write_text('{"kind": "pauses"}')
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert report.main([]) == 1  # there is nothing else
    with pytest.raises(ValueError, match="not a result"):
        report.load(tmp_path / "pauses.json")
