"""bench.family: its counts are the published ones, and it says so where they are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import family


def test_counts_are_the_published_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert family.main(["--no-times", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text == (tmp_path / "family.md").read_text()
    assert "| mobilenet_v1 1 | 224 | 568.7 | 557.62 to 580.38 | 4.23 |" in text
    published = [m for m in family.family() if m.macs or m.parameters]
    assert {m.arch for m in published} >= {"mobilenet_v1", "mobilenet_v2", "mobilenet_v3_large", "vgg16", "googlenet"}


def test_times_and_wrong_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [family.Member("mobilenet_v1", 0.25, size, (1, 2) if size == 64 else None) for size in (64, 96)]
    monkeypatch.setattr(family, "family", lambda: iter(members))
    assert family.main(["--seconds", "0.01", "--out", str(tmp_path)]) == 1
    out = capsys.readouterr()
    assert "not as published: mobilenet_v1 0.25: MACs" in out.err
    rows = [line.split("|") for line in out.out.splitlines()[2:]]
    assert all(float(row[7]) > 0 for row in rows)
    pytest.importorskip("matplotlib")
    assert (tmp_path / "family.png").stat().st_size > 1000
