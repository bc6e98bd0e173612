"""The search for the first layer that differs, with planted errors, and what ``fastmobilenet verify`` shows.

The other runtime is the reference here, of the graph as it was before the error was planted. tests/test_verify_peers.py
has the real ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Graph, importers, models, peers, verify
from fastmobilenet.cli import main
from fastmobilenet.graph import RELU, Node
from fastmobilenet.lower import Engine
from fastmobilenet.peers import PeerError
from fastmobilenet.peers.reference import ReferencePeer

Change = Callable[[Node], dict[str, Any]]


def small(arch: str, size: int = 48, **options: Any) -> Graph:
    return models.build(arch, classes=10, **options).replace(input_size=(size, size))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return small("mobilenet_v2", width=0.25)


@pytest.fixture(scope="module")
def shuffled() -> Graph:
    return small("shufflenet_v2_x0_5", 64)


class Before(ReferencePeer):
    """Computes the graph without the error. ``known`` says which of its tensors it shows."""

    name = "Before"

    def __init__(self, graph: Graph, known: Callable[[Node], bool] = lambda node: True, rounds: bool = False) -> None:
        super().__init__(graph)
        self._known = {n.name for n in graph.nodes if known(n)}
        self.rounds = rounds  # type: ignore[misc]

    def tensors(self, x: np.ndarray) -> Mapping[str, np.ndarray]:
        return {name: value for name, value in super().tensors(x).items() if name in self._known}


def plant(graph: Graph, name: str, **changes: Change) -> Graph:
    """The graph with fields of one node changed."""
    assert name in {n.name for n in graph.nodes}
    return graph.replace(
        nodes=tuple(
            replace(n, **{key: {**getattr(n, key), **change(n)} for key, change in changes.items()})
            if n.name == name
            else n
            for n in graph.nodes
        )
    )


def changed_weight(node: Node) -> dict[str, Any]:
    weight = np.array(node.params["weight"])
    weight.flat[weight.size // 2] += 3 * weight.std()
    return {"weight": weight}


def find(graph: Graph, before: peers.Peer, **options: Any) -> verify.Deviation:
    report = verify.verify(graph, before, verify.pictures(graph)[:1], **options)
    assert not report.ok
    assert report.deviation is not None
    return report.deviation


# --- what differs -----------------------------------------------------------------------------------------


def test_nothing_differs(graph: Graph) -> None:
    report = verify.verify(graph, Before(graph), verify.pictures(graph))
    assert report.ok
    assert len(report.comparisons) == verify.GENERATED
    assert report.deviation is None
    assert report.remarks == ()
    assert all(c.ours == c.theirs for c in report.comparisons)
    assert all(0 < c.difference < 1e-5 for c in report.comparisons)


@pytest.mark.parametrize(
    "name, changes",
    [
        ("conv1", {"params": changed_weight}),
        ("block_3/expand", {"params": changed_weight}),
        ("block_7/depthwise", {"params": changed_weight}),
        ("block_16/project", {"params": changed_weight}),
        ("logits", {"params": changed_weight}),
        ("conv1", {"attrs": lambda n: {"padding": (0, 1, 0, 1)}}),
        ("block_6/depthwise", {"attrs": lambda n: {"padding": "same"}}),
        ("block_5/expand/bn", {"attrs": lambda n: {"epsilon": 1e-2}}),
        ("conv1/bn", {"attrs": lambda n: {"epsilon": 1e-3}}),
        ("head/bn", {"params": lambda n: {"mean": n.params["mean"] + 0.1}}),
        ("block_2/expand/relu6", {"attrs": lambda n: {"activation": replace(RELU, hi=1.0)}}),
    ],
)
def test_the_layer_with_the_error_is_named(graph: Graph, name: str, changes: dict[str, Change]) -> None:
    found = find(plant(graph, name, **changes), Before(graph))
    assert found.node == name
    assert found.op == graph[name].op
    assert found.by_peer
    assert found.between == ()
    assert all(value < 1e-5 for value in found.inputs.values())
    assert set(found.inputs) == set(graph[name].inputs) - {"input"}
    ours, theirs = found.reference  # of the graph with the error, which the engine computes well
    assert ours < 1e-5 < theirs


@pytest.mark.parametrize("op", ["gather_channels", "concat"])
def test_channels_in_another_order(shuffled: Graph, op: str) -> None:
    nodes = [n for n in shuffled.nodes if n.op == op]
    node = nodes[len(nodes) // 2]
    if op == "gather_channels":
        wrong = plant(shuffled, node.name, attrs=lambda n: {"index": n.attrs["index"][::-1]})
    else:
        turned = tuple(replace(n, inputs=n.inputs[::-1]) if n.name == node.name else n for n in shuffled.nodes)
        wrong = shuffled.replace(nodes=turned)
    assert find(wrong, Before(shuffled)).node == node.name


def test_an_error_in_one_branch(shuffled: Graph) -> None:
    """Halving the list of nodes may end at a node of the other branch, or behind the concat."""
    convs = [n for n in shuffled.nodes if n.op == "conv2d"]
    for node in convs[1:12:2]:
        assert find(plant(shuffled, node.name, params=changed_weight), Before(shuffled)).node == node.name


def test_two_errors(graph: Graph) -> None:
    wrong = plant(graph, "block_4/expand", params=changed_weight)
    wrong = plant(wrong, "block_12/expand", params=changed_weight)
    assert find(wrong, Before(graph)).node == "block_4/expand"


def test_a_small_error_that_grows(graph: Graph) -> None:
    """It stays below the tolerance where it is made."""
    name = "block_1/depthwise/bn"
    wrong = plant(graph, name, params=lambda n: {"gamma": n.params["gamma"] * np.float32(1 + 1e-3)})
    exact = find(wrong, Before(graph)).difference
    grown = verify.verify(wrong, Before(graph), verify.pictures(graph)[:1]).comparisons[0].difference
    tolerance = 5 * exact
    assert grown > tolerance
    assert find(wrong, Before(graph), tolerance=tolerance).node == name


def test_only_some_layers_are_known(graph: Graph) -> None:
    before = Before(graph, known=lambda n: n.op == "conv2d")
    found = find(plant(graph, "block_5/expand/bn", attrs=lambda n: {"epsilon": 1e-2}), before)
    assert found.node == "block_5/depthwise"
    assert found.between == ("block_5/expand/bn", "block_5/expand/relu6")
    assert list(found.inputs) == ["block_5/expand"]


def test_an_error_behind_all_that_is_known(graph: Graph) -> None:
    before = Before(graph, known=lambda n: n.name.startswith("block_1"))
    found = find(plant(graph, "logits", params=changed_weight), before)
    assert found.node == "logits"
    assert "pool" in found.between


# --- whose fault it is ------------------------------------------------------------------------------------


class WrongEngine(Engine):
    """Computes one layer with a wrong weight, wherever it is a part of the graph."""

    name = "block_4/expand"

    def __init__(self, graph: Graph) -> None:
        super().__init__(
            plant(graph, self.name, params=changed_weight) if self.name in map(_name, graph.nodes) else graph
        )


def _name(node: Node) -> str:
    return node.name


def test_an_error_of_the_engine(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "Engine", WrongEngine)
    found = find(graph, Before(graph))
    assert found.node == "block_4/expand"
    ours, theirs = found.reference
    assert theirs == 0 < ours


def test_fused_layers_are_named(graph: Graph) -> None:
    found = find(plant(graph, "conv1/bn", params=lambda n: {"beta": n.params["beta"] + 1}), Before(graph))
    assert found.fused == ("conv1", "conv1/relu6")


def test_no_layer_is_known(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers are compared with the reference of what was read, which cannot see what was read wrongly."""
    blind = Before(graph, known=lambda n: False)
    wrong = plant(graph, "block_3/expand", params=changed_weight)
    report = verify.verify(wrong, blind, verify.pictures(graph)[:1])
    assert not report.ok
    assert report.deviation is None
    assert "the engine computes what was read" in report.remarks[0]
    monkeypatch.setattr(verify, "Engine", WrongEngine)
    report = verify.verify(graph, blind, verify.pictures(graph)[:1])
    assert report.deviation is not None
    assert report.deviation.node == "block_4/expand"
    assert not report.deviation.by_peer
    assert "compared with the float64 reference" in report.remarks[0]


def test_a_peer_that_rounds(graph: Graph) -> None:
    """It gets the larger tolerance, and the softmax is left out."""
    with_softmax = graph.replace(
        nodes=(*graph.nodes, Node("probabilities", "softmax", ("logits",))), output="probabilities"
    )
    report = verify.verify(with_softmax, Before(with_softmax, rounds=True), verify.pictures(graph)[:2])
    assert report.ok
    assert report.tolerance == verify.ROUNDED_TOLERANCE
    assert report.remarks[0].endswith("The outputs before the softmax are compared")
    wrong = plant(with_softmax, "block_9/depthwise", params=lambda n: {"weight": 2 * n.params["weight"]})
    assert find(wrong, Before(with_softmax, rounds=True)).node == "block_9/depthwise"


# --- numbers ----------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    "ours, theirs, expected",
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([1.0, 2.5], [1.0, -2.0], 4.5 / 2),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 1e-9], [0.0, 0.0], INF),
        ([NAN, INF, -INF, 1.0], [NAN, INF, -INF, 1.0], 0.0),
        ([NAN, 1.5], [NAN, 1.0], 0.5),
        ([NAN, 1.0], [1.0, 1.0], INF),
        ([1.0, 1.0], [NAN, 1.0], INF),
        ([INF, 1.0], [-INF, 1.0], INF),
        ([], [], 0.0),
    ],
)
def test_difference(ours: list[float], theirs: list[float], expected: float) -> None:
    assert verify.difference(np.array(ours), np.array(theirs)) == expected


def test_arrangements() -> None:
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 5))
    chw = x.transpose(0, 3, 1, 2)
    for raw in (x, chw):
        (found,) = peers.arrangements(raw, (1, 3, 4, 5))
        np.testing.assert_array_equal(found, x)
    cube = np.zeros((1, 4, 4, 4))
    assert len(peers.arrangements(cube, (1, 4, 4, 4))) == 2
    for shape in ((1, 7), (7,), (1, 7, 1), (1, 7, 1, 1), (1, 1, 1, 7)):
        assert peers.arrangements(np.zeros(shape), (1, 1, 1, 7))[0].shape == (1, 1, 1, 7)
    for shape in ((1, 8), (7, 1, 2), ()):
        assert peers.arrangements(np.zeros(shape), (1, 1, 1, 7)) == []


def test_outputs_of_another_shape(graph: Graph) -> None:
    other = small("mobilenet_v2", width=0.25).replace(output="pool")
    with pytest.raises(ValueError, match="the output of Before has the shape"):
        verify.verify(graph, Before(other), verify.pictures(graph)[:1])


def test_made_up_pictures() -> None:
    graph = small("mobilenet_v2", width=0.25)
    first, second = verify.pictures(graph), verify.pictures(graph)
    assert [p.label for p in first] == [f"generated {i}" for i in range(1, 5)]
    for a, b in zip(first, second, strict=True):
        assert a.pixels is not None
        assert b.pixels is not None
        np.testing.assert_array_equal(a.pixels, b.pixels)
        assert a.pixels.shape == (1, 48, 48, 3)
        assert a.pixels.min() < 30
        assert a.pixels.max() > 220
        assert 25 < a.pixels.std() < 110
    assert first[0].values.std() > 0.5
    grey = verify.pictures(graph.replace(input_channels=1))
    assert grey[0].pixels is None
    assert grey[0].values.shape == (1, 48, 48, 1)
    with pytest.raises(ValueError, match="takes 1 channels, so it takes no pictures"):
        verify.pictures(graph.replace(input_channels=1), ["cat.jpg"])


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_pictures_and_arrays_are_the_same(channels: str) -> None:
    graph = small("mobilenet_v2", width=0.25)
    graph = graph.replace(preprocess=replace(graph.preprocess, channels=channels))
    assert verify.verify(graph, Before(graph), verify.pictures(graph)[:2]).ok


# --- the command ------------------------------------------------------------------------------------------


@pytest.fixture
def file(graph: Graph, tmp_path: Path) -> str:
    from fastmobilenet import fmn

    path = tmp_path / "net.fmn"
    fmn.save(graph, path)
    return str(path)


def test_command(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.arange(60 * 50 * 3, dtype=np.uint8).reshape(60, 50, 3)).save(tmp_path / "a.png")
    picture = str(tmp_path / "a.png")
    assert main(["verify", file, picture, picture]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = out.splitlines()
    assert rows[0].split() == ["model", "mobilenet_v2,", "48x48"]
    assert rows[1].split(maxsplit=1) == ["against", "the float64 reference"]
    assert sum(line.startswith(picture) for line in rows) == 2
    assert rows[-1] == "the most probable class is the same for 2 of 2 pictures"


@pytest.fixture
def wrong(graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is read with an error in it."""
    bad = plant(graph, "block_3/expand", params=changed_weight)
    monkeypatch.setattr(importers, "load", lambda path, arch=None: bad)
    monkeypatch.setattr(peers, "choose", lambda *args: (Before(graph), ["a remark"]))


@pytest.mark.usefixtures("wrong")
def test_command_names_the_layer(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", file]) == 1
    out = capsys.readouterr().out
    assert out.count("too large") == verify.GENERATED
    assert "first layer that differs  block_3/expand (conv2d), by " in out
    assert "reads                     block_2" in out
    assert "so the cause is likely    in reading the file" in out
    assert out.endswith("\na remark\n")


@pytest.mark.usefixtures("wrong")
def test_command_json(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", file, "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (found["file"], found["against"], found["ok"], found["tolerance"]) == (file, "Before", False, 1e-4)
    assert [p["picture"] for p in found["pictures"]] == [f"generated {i}" for i in range(1, 5)]
    assert found["layer"]["node"] == "block_3/expand"
    assert found["layer"]["reference"]["ours"] < 1e-5 < found["layer"]["reference"]["theirs"]
    assert found["remarks"] == ["a remark"]


@pytest.mark.usefixtures("wrong")
def test_command_tolerance(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", file, "--tolerance", "10"]) == 0
    assert "10 of the largest value" in capsys.readouterr().out


def test_numbers_that_are_not_finite(graph: Graph, file: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    bad = plant(graph, "logits", params=lambda n: {"bias": n.params["bias"] * np.float32(np.nan)})
    monkeypatch.setattr(importers, "load", lambda path, arch=None: bad)
    monkeypatch.setattr(peers, "choose", lambda *args: (Before(graph), []))
    assert main(["verify", file, "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert [p["difference"] for p in found["pictures"]] == [None] * 4
    assert (found["layer"]["node"], found["layer"]["difference"]) == ("logits", None)
    assert main(["verify", file]) == 1
    assert "logits (dense), by inf" in capsys.readouterr().out


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "small"])
def test_wrong_tolerance(file: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["verify", file, f"--tolerance={value}"])
    assert caught.value.code == 2
    assert "expected a number from 0 on" in capsys.readouterr().err


@pytest.mark.parametrize("against", ["onnxruntime", "litert", "torch"])
def test_peers_that_do_not_fit(file: str, against: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", file, "--against", against]) == 1
    wanted = f"fastmobilenet: {file}: {against} cannot read this file; verify it against reference\n"
    assert capsys.readouterr().err == wanted


def test_a_peer_that_is_not_installed(graph: Graph, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object) -> None:
        raise ImportError("No module named 'onnxruntime'")

    monkeypatch.setattr(peers, "_fitting", lambda path, arch: "onnxruntime")
    monkeypatch.setattr(peers, "_make", missing)
    peer, remarks = peers.choose(file, graph, None, None)
    assert isinstance(peer, ReferencePeer)
    assert remarks == [
        "No module named 'onnxruntime'; install onnxruntime to compare with it. Compared with the float64 reference of "
        "the same graph instead"
    ]
    with pytest.raises(ImportError, match=r"install onnxruntime to compare with it$"):
        peers.choose(file, graph, None, "onnxruntime")


def test_what_a_library_raises_is_one_line() -> None:
    with pytest.raises(PeerError) as caught, peers.failures_of("ONNX Runtime", "net.onnx"):
        raise RuntimeError("[E:onnxruntime]\n  no kernel\n")
    assert str(caught.value) == "net.onnx: ONNX Runtime cannot run it: [E:onnxruntime] no kernel"


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path / "none.onnx")]) == 1
    assert "none.onnx: No such file" in capsys.readouterr().err
    assert main(["verify", "squeezenet1_1"]) == 1
    assert "squeezenet1_1 is an architecture, and verify needs trained weights" in capsys.readouterr().err
