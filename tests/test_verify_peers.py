"""``fastmobilenet verify`` against ONNX Runtime, LiteRT and PyTorch: files that are read well, and planted errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import Graph, importers, peers, verify
from fastmobilenet.cli import main
from fastmobilenet.peers import Peer, PeerError

from .onnx_files import OnnxWriter
from .peers import import_torchvision
from .test_tflite_litert import mobilenet
from .test_verify import Before, changed_weight, plant
from .weight_files import with_statistics


def compare(graph: Graph, peer: Peer) -> verify.Report:
    return verify.verify(graph, peer, verify.pictures(graph)[:2])


def named(graph: Graph, peer: Peer) -> str:
    report = compare(graph, peer)
    assert not report.ok
    assert report.deviation is not None
    assert report.deviation.by_peer
    ours, theirs = report.deviation.reference
    assert ours < theirs / 10
    return report.deviation.node


# --- ONNX Runtime -----------------------------------------------------------------------------------------


def onnx_file(layout: str) -> bytes:
    """A residual block with batch norms between a first convolution and a dense layer."""
    rng = np.random.default_rng(3)
    w = OnnxWriter()

    def constant(*shape: int) -> str:
        return w.constant(rng.normal(0, 0.5, shape).astype(np.float32))

    def conv(x: str, oc: int, ic: int, k: int, name: str, **attrs: Any) -> str:
        x = w.op("Conv", x, constant(oc, ic, k, k), output=name, **attrs)
        norm = [w.constant(rng.uniform(0.5, 1.5, oc).astype(np.float32)) for _ in range(4)]
        return w.op("BatchNormalization", x, *norm, output=f"{name}/bn", epsilon=1e-3)

    if layout == "NHWC":
        x = w.op("Transpose", w.input(1, 24, 20, 3), perm=[0, 3, 1, 2])
    else:
        x = w.input("n", 3, 24, 20)
    x = conv(x, 8, 3, 3, "first", strides=[2, 2], pads=[1, 1, 1, 1])
    x = w.op("Clip", x, w.constant(0.0), w.constant(6.0), output="first/clip")
    y = conv(x, 8, 1, 3, "depthwise", group=8, pads=[1, 1, 1, 1])
    y = w.op("Relu", y, output="depthwise/relu")
    y = conv(y, 8, 8, 1, "project")
    x = w.op("Add", x, y, output="sum")
    x = w.op("Flatten", w.op("GlobalAveragePool", x, output="mean"))
    x = w.op("Gemm", x, constant(5, 8), constant(5), output="logits", transB=1)
    return w.finish(w.op("Softmax", x, output="softmax"))


@pytest.fixture(params=["NCHW", "NHWC"])
def onnx_path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_file(request.param))
    return str(path)


def test_onnx(onnx_path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", onnx_path]) == 0
    out, err = capsys.readouterr()
    assert "against    ONNX Runtime " in out
    assert err == ""


def test_onnx_tensors(onnx_path: str) -> None:
    """All that is inside, under the names of the Graph; and it is what the reference says."""
    pytest.importorskip("onnx")
    graph = importers.load(onnx_path)
    peer, _ = peers.choose(onnx_path, graph, None, None)
    x = verify.pictures(graph)[0].values
    found, wanted = peer.tensors(x), Before(graph).tensors(x)
    names = [n.name for n in graph.nodes if n.op != "input"]
    assert set(found) == set(names)
    assert len(names) == 12
    for name in names:
        best = min(verify.difference(wanted[name], y) for y in peers.arrangements(found[name], wanted[name].shape))
        assert best < 1e-5


@pytest.mark.parametrize(
    "name, changes",
    [
        ("first", {"params": changed_weight}),
        ("first", {"attrs": lambda n: {"padding": "same"}}),
        ("depthwise/bn", {"attrs": lambda n: {"epsilon": 1e-1}}),
        ("project", {"params": changed_weight}),
        ("logits", {"params": changed_weight}),
    ],
)
def test_onnx_errors(onnx_path: str, name: str, changes: dict[str, Any]) -> None:
    pytest.importorskip("onnx")
    graph = importers.load(onnx_path)
    peer, remarks = peers.choose(onnx_path, graph, None, "onnxruntime")
    assert remarks == []
    assert named(plant(graph, name, **changes), peer) == name


def test_onnx_without_the_onnx_package(onnx_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what makes the tensors inside visible."""
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    graph = importers.load(onnx_path)
    peer, _ = peers.choose(onnx_path, graph, None, None)
    assert compare(graph, peer).ok
    report = compare(plant(graph, "project", params=changed_weight), peer)
    assert report.deviation is None
    assert report.remarks[0].startswith(f"the layers of {peer.name} cannot be told apart from here")


def test_a_file_that_onnx_runtime_refuses(onnx_path: str, tmp_path: Path, capsys: Any) -> None:
    graph = importers.load(onnx_path)
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(Path(onnx_path).read_bytes().replace(b"GlobalAveragePool", b"GlobalAveragePoof"))
    with pytest.raises(PeerError, match=r"broken.onnx: ONNX Runtime [0-9.]+ cannot run it: .*GlobalAveragePoof"):
        peers.onnxruntime.OnnxRuntimePeer(str(broken), graph)  # type: ignore[attr-defined]


# --- LiteRT -----------------------------------------------------------------------------------------------


@pytest.fixture
def tflite_path(tmp_path: Path) -> Callable[..., str]:
    pytest.importorskip("ai_edge_litert.interpreter")

    def write(dtype: str, **options: Any) -> str:
        path = tmp_path / f"{dtype}.tflite"
        path.write_bytes(mobilenet(32, 32, dtype, **options))
        return str(path)

    return write


def test_tflite(tflite_path: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", tflite_path("float32"), "--against", "litert"]) == 0
    assert "against    LiteRT " in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_quantised_tflite(tflite_path: Callable[..., str], dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tflite_path(dtype)
    assert main(["verify", path]) == 0
    out = capsys.readouterr().out
    assert "tolerance  0.15 of the largest value" in out
    assert "rounds every layer of this quantised file" in out
    assert main(["verify", path, "--tolerance", "1e-4"]) == 1


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint8"])
@pytest.mark.parametrize("kind", ["conv2d", "depthwise", "dense"])
def test_tflite_errors(tflite_path: Callable[..., str], dtype: str, kind: str) -> None:
    path = tflite_path(dtype)
    graph = importers.load(path)
    peer, _ = peers.choose(path, graph, None, None)
    assert peer.rounds == (dtype != "float32")
    x = verify.pictures(graph)[0].values
    assert set(peer.tensors(x)) == {n.name for n in graph.nodes}
    nodes = [n for n in graph.nodes if n.op == ("dense" if kind == "dense" else "conv2d")]
    if kind != "dense":
        nodes = [n for n in nodes if (n.params["weight"].shape[3] == 1) == (kind == "depthwise")]
    name = nodes[len(nodes) // 2].name
    wrong = plant(graph, name, params=lambda n: {"weight": n.params["weight"] * np.float32(-2)})
    assert named(wrong, peer) == name


def test_wrong_padding_in_tflite(tflite_path: Callable[..., str]) -> None:
    path = tflite_path("float32")
    graph = importers.load(path)
    name = next(n.name for n in graph.nodes if n.attrs.get("stride") == (2, 2))
    wrong = plant(graph, name, attrs=lambda n: {"padding": (1, 1, 1, 1)})
    assert named(wrong, peers.choose(path, graph, None, None)[0]) == name


# --- PyTorch ----------------------------------------------------------------------------------------------

#: torchvision's has batch norms and activations of their own, timm's both in one module.
LIBRARIES = {"mobilenet_v2": "torchvision's mobilenet_v2 x0.25", "mobilenetv2_035": "timm's mobilenetv2_035"}


@pytest.fixture(scope="module", params=LIBRARIES)
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """arch and file"""
    torch, timm = pytest.importorskip("torch"), pytest.importorskip("timm")
    torchvision = import_torchvision()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    if request.param == "mobilenet_v2":
        module = torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=9)
    else:
        module = timm.create_model(request.param, num_classes=9)
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    torch.save({"state_dict": with_statistics(module).state_dict()}, path)
    return request.param, str(path)


@pytest.fixture(scope="module")
def loaded(weights: tuple[str, str]) -> tuple[Graph, Peer]:
    arch, path = weights
    graph = importers.load(path, arch=arch).replace(input_size=(48, 48))
    peer, remarks = peers.choose(path, graph, arch, None)
    assert peer.name.endswith(f"({LIBRARIES[arch]})")
    assert remarks == []
    return graph, peer


def test_torch(loaded: tuple[Graph, Peer]) -> None:
    graph, peer = loaded
    assert compare(graph, peer).ok
    known = peer.tensors(verify.pictures(graph)[0].values)
    assert {n.name for n in graph.nodes if n.op in ("conv2d", "dense")} <= set(known)


@pytest.mark.parametrize("op", ["conv2d", "batch_norm", "dense", "padding"])
def test_torch_errors(loaded: tuple[Graph, Peer], op: str) -> None:
    graph, peer = loaded
    if op == "padding":
        node = next(n for n in graph.nodes[5:] if n.attrs.get("stride") == (2, 2))
        wrong = plant(graph, node.name, attrs=lambda n: {"padding": "same"})
    else:
        nodes = [n for n in graph.nodes if n.op == op]
        node = nodes[len(nodes) // 2]
        changes: dict[str, Any] = {"params": changed_weight}
        if op == "batch_norm":
            changes = {"attrs": lambda n: {"epsilon": 1e-2}}
        wrong = plant(graph, node.name, **changes)
    found = named(wrong, peer)
    if op == "batch_norm" and "timm" in peer.name:
        readers = graph.consumers()[node.name]
        assert found in (node.name, readers[0].name)
    else:
        assert found == node.name


def test_weights_that_fit_no_network(weights: tuple[str, str], loaded: tuple[Graph, Peer]) -> None:
    graph, _ = loaded
    with pytest.raises(PeerError, match="arch 'squeezenet1_1': the tensors do not fit "):
        peers.choose(weights[1], graph, "squeezenet1_1", None)


def test_safetensors(weights: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch, safetensors = pytest.importorskip("torch"), pytest.importorskip("safetensors.torch")
    arch, path = weights
    other = str(tmp_path / "net.safetensors")
    state = torch.load(path, weights_only=True)["state_dict"]
    safetensors.save_file({key: value.contiguous() for key, value in state.items()}, other)
    assert main(["verify", other, "--arch", arch, "--json"]) == 0
    assert '"against": "PyTorch ' in capsys.readouterr().out
