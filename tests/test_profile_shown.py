"""How a Profile is shown, as a table, as JSON and as HTML; and ``fastmobilenet profile``."""

from __future__ import annotations

import json
import os
import re
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Model, models
from fastmobilenet.cli import main
from fastmobilenet.profile import Layer, Profile
from fastmobilenet.profile_html import DARK, LIGHT
from fastmobilenet.roofline import BOUNDS, Rates, Work

from .samples import pixels


@pytest.fixture(scope="module")
def profile() -> Profile:
    """A measured one."""
    graph = models.build("mobilenetv2_035", input_size=(64, 64))
    return Model.from_graph(graph, threads=1).profile(pixels(64, 64, 3), runs=7)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    Image.fromarray(pixels(40, 36, 3)).save(path)
    return str(path)


# --- how it is shown --------------------------------------------------------------------------------------


def made_up(bound: str = "compute", nodes: tuple[str, ...] = ("a/b/x", "a/b/y/z"), **changes: Any) -> Layer:
    fields: dict[str, Any] = {
        "nodes": nodes,
        "ops": ("conv2d",) * len(nodes),
        "kernel": "gemm_f32/scalar/4x16",
        "input": (4, 5, 6),
        "output": (4, 5, 7),
        "seconds": 0.004,
        "minimum": 0.003,
        "median": 0.005,
        "work": Work(10_000_000, 2048, 1024, 0, 512),
        "bound": bound,
        "bound_seconds": 0.001,
    }
    return Layer(**{**fields, **changes})


@pytest.fixture
def figures() -> Profile:
    layers = (made_up(), made_up("l2", nodes=("<b>",), seconds=0.005, work=Work(0, 1, 2, 3, 0)))
    rates = Rates(20e9, 50e9, 10e9, 1 << 20)
    return Profile("net & co", (4, 5), 1, 2, "scalar", 'a "CPU"', rates, (0.03, 0.01, 0.02), layers)


def test_figures(figures: Profile) -> None:
    first, second = figures.layers
    assert first.gflops == pytest.approx(5)
    assert figures.share_of_peak(first) == pytest.approx(0.25)
    assert first.share_of_bound == pytest.approx(0.25)
    assert first.map_bytes == 3072
    assert (second.gflops, figures.share_of_peak(second)) == (0, 0)
    assert figures.seconds == 0.01
    assert figures.outside == pytest.approx(0.001)
    assert figures.gflops == pytest.approx(2)
    assert figures.by_bound() == pytest.approx({"l2": 0.005, "compute": 0.004})
    assert list(figures.by_bound()) == ["l2", "compute"]


@pytest.mark.parametrize(
    "nodes, name",
    [
        (("a/b/x", "a/b/y/z"), "a/b/{x + y/z}"),
        (("a/x",), "a/x"),
        (("a/x", "b/x"), "a/x + b/x"),
        (("a", "a/x"), "a + a/x"),
        (("ab/x", "ac/x"), "ab/x + ac/x"),
        (("a/x", "a/x/y"), "a/{x + x/y}"),
        ((), "(result)"),
    ],
)
def test_names_of_layers(nodes: tuple[str, ...], name: str) -> None:
    assert made_up(nodes=nodes).name == name


def test_the_table(figures: Profile) -> None:
    lines = str(figures).splitlines()
    assert lines[0] == 'net & co at 4x5 on a "CPU": fp32, scalar, 2 threads'
    assert lines[1] == "fastest of 3 runs: 10.000 ms, 2.0 GFLOP/s, 10 % of the peak of 20"
    assert re.split(r"  +", lines[3].strip())[:5] == ["ms", "time %", "GFLOP/s", "peak %", "maps KB"]
    compute = ["4.000", "40.0", "5.0", "25", "3.0", "0.5", "4x5x7", "compute", "25", "fp32", "gemm_f32/scalar/4x16"]
    assert re.split(r"  +", lines[4].strip()) == [*compute, "a/b/{x + y/z}"]
    plain = ["5.000", "50.0", "0.0", "4x5x7", "L2 bandwidth", "20", "fp32", "gemm_f32/scalar/4x16", "<b>"]
    assert re.split(r"  +", lines[5].strip()) == plain
    assert lines[6].split() == ["1.000", "10.0", "(the", "call)"]
    assert lines[7].split() == ["10.000", "100.0", "2.0", "10", "0.5", "20", "total"]
    assert lines[9] == "time by bound: L2 bandwidth 50 %, compute 40 %"
    assert lines[10].startswith("measured: L2 50 GB/s, L3 or memory 10 GB/s")
    layer_columns = {line.index(name) for line, name in ((lines[3], "layer"), (lines[4], "a/b/"), (lines[7], "total"))}
    assert len(layer_columns) == 1
    assert all(line == line.rstrip() for line in lines)


def test_rows_of_a_measured_table_add_up(profile: Profile) -> None:
    rows = [line.split() for line in str(profile).splitlines()[4:-3]]
    assert len(rows) == len(profile.layers) + 2
    *parts, total = (float(row[0]) for row in rows)
    assert sum(parts) == pytest.approx(total, abs=0.0005 * len(rows))


def test_json(profile: Profile) -> None:
    facts = json.loads(profile.to_json())
    assert (facts["model"], facts["height"], facts["width"]) == ("mobilenetv2_035", 64, 64)
    assert (facts["runs"], facts["threads"], facts["batch"]) == (7, 1, 1)
    assert facts["ms"] == pytest.approx(sum(layer["ms"] for layer in facts["layers"]) + facts["outside_ms"])
    assert facts["ms"] <= facts["median_ms"]
    assert facts["macs"] == sum(layer["macs"] for layer in facts["layers"])
    for given, layer in zip(facts["layers"], profile.layers, strict=True):
        assert given["nodes"] == list(layer.nodes)
        assert given["bound"] in BOUNDS
        assert given["min_ms"] <= given["ms"]
        assert given["gflops"] * given["ms"] == pytest.approx(2e-6 * given["macs"])
        assert given["share_of_peak"] == pytest.approx(given["gflops"] / facts["peak_gflops"])
        if given["ms"]:  # the clock may be coarser than the smallest step
            assert given["share_of_bound"] == pytest.approx(given["bound_ms"] / given["ms"])


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects elements and text."""

    VOID = ("meta", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def test_html(figures: Profile) -> None:
    text = figures.to_html()
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert "net & co at 4x5" in "".join(page.text)
    assert "<b>" in page.text  # a name of a node, not an element
    assert page.count("tr") == 1 + 2 + 2
    assert page.count("td") == 4 * page.count("th") == 4 * 11
    bars = [attrs for tag, attrs in page.elements if tag == "i"]
    assert [(b["class"], b["style"]) for b in bars] == [("compute", "width:80.00%"), ("l2", "width:100.00%")]
    marks = [attrs["style"] for tag, attrs in page.elements if tag == "b"]
    assert marks == ["left:calc(20.00% - 1px)"] * 2
    assert [attrs["class"] for tag, attrs in page.elements if tag == "span"] == [
        *("swatch l2", "swatch compute", "tick")
    ]


def test_html_needs_nothing_else(profile: Profile) -> None:
    text = profile.to_html()
    page = Page(text)
    assert not {tag for tag, _ in page.elements} & {"script", "link", "img", "iframe", "object", "base"}
    assert not any(key in ("src", "href") or key.startswith("on") for _, attrs in page.elements for key in attrs)
    assert "url(" not in text
    assert "@import" not in text
    assert "://" not in text
    assert "prefers-color-scheme: dark" in text
    shown = "".join(page.text)
    assert all(name.split("/")[-1] in shown for layer in profile.layers for name in layer.nodes)
    used = set(re.findall(r"var\(--(\w+)\)", text))
    assert used <= set(re.findall(r"--(\w+):", text))


@pytest.mark.parametrize("ground, dark", [("#ffffff", False), ("#14171b", True)])
def test_colours_stand_out(ground: str, dark: bool) -> None:
    """WCAG's contrast of graphics, 3 : 1."""

    def luminance(colour: str) -> float:
        values = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    for colour in DARK if dark else LIGHT:
        low, high = sorted((luminance(colour), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 3, colour


# --- the command ------------------------------------------------------------------------------------------


def test_command(model_file: str, picture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    command = ["profile", picture, "--model", model_file, "--threads", "1", "--runs", "3"]
    assert main([*command, "--html", str(out)]) == 0
    shown, err = capsys.readouterr()
    assert err == ""
    assert shown.startswith("small at 32x32 on ")
    assert "fastest of 3 runs" in shown
    assert "(the call)" in shown
    assert Page(out.read_text("utf-8")).count("tr") > 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.tflite", "page.html", "picture.png"]
    assert main([*command, "--json", "--size", "48x40"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["model"], facts["height"], facts["width"], facts["runs"]) == ("small", 48, 40, 3)


def test_command_with_an_architecture(picture: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", picture, "--model", "mobilenetv2_035", "--size", "32", "--runs", "1"]) == 0
    assert "mobilenetv2_035 at 32x32" in capsys.readouterr().out


@pytest.mark.parametrize(
    "image, html, message",
    [
        ("none.png", None, "none.png: No such file or directory"),
        ("net.tflite", None, "net.tflite"),
        ("picture.png", "none/page.html", "none/page.html: No such file or directory"),
        ("picture.png", ".", ".: Is a directory"),
    ],
)
def test_command_errors_are_one_line(
    model_file: str,
    picture: str,
    image: str,
    html: str | None,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(Path(picture).parent)
    command = ["profile", image, "--model", "net.tflite", "--runs", "1"]
    assert main(command if html is None else [*command, "--html", html]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fastmobilenet: ")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [["profile", "--model", "m"], ["profile", "a.png", "--model", "m", "--runs", "0"]],
)
def test_wrong_usage(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: fastmobilenet profile")


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["profile", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "examples:\n  fastmobilenet profile" in out
    assert max(map(len, out.splitlines())) <= 120


def test_a_page_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmobilenet.cli.profile import write

    page, link = tmp_path / "page.html", tmp_path / "link.html"
    page.write_text("old")
    page.chmod(0o640)
    link.symlink_to(page)
    write(str(link), "new")
    assert page.read_text() == "new"
    assert link.is_symlink()
    assert stat.S_IMODE(page.stat().st_mode) == 0o640

    def fail(*names: str) -> None:
        raise OSError(28, "No space left on device", names[1])

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match=r"No space left on device: .*link\.html"):
        write(str(link), "newer")
    assert page.read_text() == "new"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.html", "page.html"]


@pytest.mark.skipif(os.name != "posix", reason="permissions work differently elsewhere")
def test_a_new_page_has_the_usual_permissions(tmp_path: Path) -> None:
    from fastmobilenet.cli.profile import write

    write(str(tmp_path / "page.html"), "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "page.html").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="there is no /dev/null")
def test_a_page_to_a_device() -> None:
    from fastmobilenet.cli.profile import write

    write("/dev/null", "x")
    assert not os.path.isfile("/dev/null")
