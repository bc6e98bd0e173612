"""Weights under the names of PyTorch's libraries: state dicts, .safetensors files, and load(). Needs no PyTorch."""

from __future__ import annotations

import os
import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import ModelError, importers, models
from fastmobilenet.graph import Graph
from fastmobilenet.importers import state_dict
from fastmobilenet.importers._namings import Naming
from fastmobilenet.importers._plan_names import timm, torchvision_v2

from .weight_files import pack, safetensors_bytes, state_of

TIMM, TORCHVISION = timm, torchvision_v2


def same_parameters(a: Graph, b: Graph) -> bool:
    return [n.name for n in a.nodes] == [n.name for n in b.nodes] and all(
        np.array_equal(m.params[key], n.params[key]) for m, n in zip(a.nodes, b.nodes, strict=True) for key in m.params
    )


def small_v2(width: float = 0.1, classes: int = 3) -> tuple[Graph, dict[str, np.ndarray]]:
    graph = models.build("mobilenet_v2", width=width, classes=classes, seed=5)
    return graph, state_of(graph, "mobilenet_v2", TORCHVISION, width)


# --- names and shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch,naming,expected",
    [
        (
            "mobilenet_v2",
            TORCHVISION,
            {
                "features.0.0.weight": (32, 3, 3, 3),
                "features.0.1.running_var": (32,),
                "features.1.conv.0.0.weight": (32, 1, 3, 3),
                "features.1.conv.1.weight": (16, 32, 1, 1),
                "features.1.conv.2.bias": (16,),
                "features.2.conv.0.0.weight": (96, 16, 1, 1),
                "features.2.conv.1.0.weight": (96, 1, 3, 3),
                "features.17.conv.2.weight": (320, 960, 1, 1),
                "features.17.conv.3.running_mean": (320,),
                "features.18.0.weight": (1280, 320, 1, 1),
                "classifier.1.weight": (1000, 1280),
            },
        ),
        (
            "mobilenetv2_110d",
            TIMM,
            {
                "conv_stem.weight": (32, 3, 3, 3),
                "bn1.weight": (32,),
                "blocks.0.0.conv_dw.weight": (32, 1, 3, 3),
                "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
                "blocks.0.0.bn2.bias": (16,),
                "blocks.3.4.conv_pwl.weight": (72, 432, 1, 1),
                "blocks.3.4.bn3.running_mean": (72,),
                "blocks.6.0.conv_pwl.weight": (352, 1056, 1, 1),
                "conv_head.weight": (1280, 352, 1, 1),
                "classifier.bias": (1000,),
            },
        ),
        (
            "mobilenetv1_100h",
            TIMM,
            {
                "conv_stem.weight": (32, 3, 3, 3),
                "blocks.0.0.conv_dw.weight": (32, 1, 3, 3),
                "blocks.0.0.bn1.weight": (32,),
                "blocks.3.5.conv_pw.weight": (512, 512, 1, 1),
                "blocks.4.1.bn2.running_var": (1024,),
                "conv_head.weight": (1024, 1024, 1, 1),
                "bn2.weight": (1024,),
                "classifier.weight": (1000, 1024),
            },
        ),
    ],
)
def test_names_are_those_of_the_libraries(arch: str, naming: Naming, expected: dict[str, tuple[int, ...]]) -> None:
    state = state_of(models.build(arch, weights=models.skeleton), arch, naming)
    assert {name: state[name].shape for name in expected} == expected


@pytest.mark.parametrize("width", [0.05, 0.1, 0.35, 0.5, 0.62, 0.99, 1.0, 1.01, 1.3, 1.4, 2.0, 3.1])
@pytest.mark.parametrize("naming", [TORCHVISION, TIMM])
def test_v2_width_and_classes_are_read_from_the_shapes(width: float, naming: Naming) -> None:
    expected = models.build("mobilenet_v2", width=width, classes=17, weights=models.skeleton)
    graph = state_dict.to_graph(state_of(expected, "mobilenet_v2", naming, width), arch="mobilenet_v2")
    assert [n.params["weight"].shape for n in graph.nodes if "weight" in n.params] == [
        n.params["weight"].shape for n in expected.nodes if "weight" in n.params
    ]


@pytest.mark.parametrize("width", [0.01, 0.1, 1 / 3, 0.62, 1.0, 1.4, 2.345])
def test_v1_width_is_read_from_the_shapes(width: float) -> None:
    expected = models.build("mobilenet_v1", width=width, classes=2, weights=models.skeleton)
    graph = state_dict.to_graph(state_of(expected, "mobilenet_v1", TIMM, width), arch="mobilenet_v1")
    assert same_parameters(graph, expected)


def test_conventions_are_those_of_pytorch() -> None:
    graph = models.build("mobilenet_v1", width=0.1, classes=4)
    state = state_of(graph, "mobilenet_v1", TIMM, 0.1)
    got = state_dict.to_graph(state, arch="mobilenet_v1")
    assert got["conv1"].attrs["padding"] == (1, 1, 1, 1)
    assert got["conv1/bn"].attrs["epsilon"] == 1e-5
    assert got.input_layout == "NCHW"
    assert same_parameters(got, graph)
    got = state_dict.to_graph(state, arch="mobilenet_v1", padding="same", epsilon=1e-3)
    assert got["conv1"].attrs["padding"] == "same"
    assert got["conv1/bn"].attrs["epsilon"] == 1e-3


def test_wrappers_and_prefixes_are_taken_off() -> None:
    graph, state = small_v2()
    wrapped: Any = {"epoch": 3, "best": np.float32(0.7), "state_dict": {f"module.{k}": v for k, v in state.items()}}
    for given in (
        OrderedDict(state),
        wrapped,
        {"model": state, "optimizer": {"lr": 0.1}},
        {"model": wrapped},
        {f"module._orig_mod.{k}": v for k, v in state.items()},
        {f"model.{k}": v for k, v in state.items()},
        {**state, "epoch": 3},
    ):
        assert same_parameters(state_dict.to_graph(given, arch="mobilenet_v2"), graph)


@pytest.mark.parametrize("dtype", ["f2", "f8", ">f4"])
def test_other_float_types_become_float32(dtype: str) -> None:
    _, state = small_v2()
    given = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in state.items()}
    graph = state_dict.to_graph(given, arch="mobilenet_v2")
    assert {v.dtype.str for n in graph.nodes for v in n.params.values()} == {
        "<f4" if sys.byteorder == "little" else ">f4"
    }
    expected = given["features.0.0.weight"].transpose(0, 2, 3, 1).astype(np.float32)
    np.testing.assert_array_equal(graph["conv1"].params["weight"], expected)


# --- what does not fit ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name,value,problem",
    [
        ("features.3.conv.3.bias", None, "of shape (8,) is missing"),
        ("features.5.conv.0.1.weight", np.ones(9), "has shape (9,), expected (48,)"),
        ("features.0.0.weight", np.ones((8, 3, 3)), "has shape (8, 3, 3), expected (8, 3, 3, 3)"),
        ("features.2.conv.2.weight", np.ones((8, 49, 1, 1)), "has shape (8, 49, 1, 1), expected (8, 48, 1, 1)"),
        ("classifier.1.bias", np.ones(5), "has shape (5,), expected (3,)"),
        ("aux.weight", np.ones(3), "is superfluous"),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(name: str, value: np.ndarray | None, problem: str) -> None:
    _, state = small_v2()
    state.pop(name, None)
    if value is not None:
        state[name] = value
    with pytest.raises(ModelError) as caught:
        state_dict.to_graph(state, arch="mobilenet_v2", name="net.pth")
    reason = f"tensor {name!r} {problem}"
    nearest = "No other known network is nearer"
    assert str(caught.value) == f"net.pth does not fit arch 'mobilenet_v2': {reason}. {nearest}"
    with pytest.raises(ModelError) as caught:
        state_dict.to_graph(state, arch=None, name="net.pth")
    assert f"It fits no known network; the nearest is 'mobilenet_v2', where {reason}" in str(caught.value)


def test_archs_that_fit_are_named() -> None:
    state = state_of(models.build("mobilenetv2_050", weights=models.skeleton), "mobilenetv2_050", TIMM)
    with pytest.raises(ModelError, match=r"weights only.*It fits arch='mobilenet_v2' or arch='mobilenetv2_050'$"):
        state_dict.to_graph(state, arch=None)
    with pytest.raises(
        ModelError, match=r"'conv_stem\.weight' has shape \(16, 3, 3, 3\), expected \(32, 3, 3, 3\)"
    ) as e:
        state_dict.to_graph(state, arch="mobilenetv2_100")
    assert "It fits arch='mobilenet_v2' or arch='mobilenetv2_050'" in str(e.value)
    with pytest.raises(ModelError, match="does not fit arch 'mobilenetv1_100'"):
        state_dict.to_graph(state, arch="mobilenetv1_100")
    with pytest.raises(ModelError, match="expected \\(48, 3, 3, 3\\)"):
        state_dict.to_graph(state, arch="mobilenet_v2", width=1.4)
    with pytest.raises(ModelError, match="expected \\(10, 1280\\)"):
        state_dict.to_graph(state, arch="mobilenetv2_050", classes=10)
    with pytest.raises(ModelError, match="'mobilenet_v9' is unknown"):
        state_dict.to_graph(state, arch="mobilenet_v9")


def test_foreign_state_dicts_are_told_apart() -> None:
    foreign = {"layer1.0.conv1.weight": np.ones((64, 64, 3, 3)), "fc.weight": np.ones((1000, 512))}
    with pytest.raises(ModelError, match=r"fits none of mobilenet_v1, .*no tensor has a name and shape"):
        state_dict.to_graph(foreign, arch=None)
    for empty in ({}, {"a": 1, "b": "text"}, {"x.num_batches_tracked": np.array(1)}, {3: np.ones(2)}):
        with pytest.raises(ModelError, match="holds no tensors"):
            state_dict.to_graph(empty, arch="mobilenet_v2")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="holds list, expected a dict of tensors"):
        state_dict.to_graph([1, 2], arch="mobilenet_v2")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "tensor", ["features.4.conv.1.0.weight", "features.7.conv.3.running_mean", "classifier.1.bias"]
)
def test_weights_that_are_not_finite_are_refused(tensor: str, value: float) -> None:
    _, state = small_v2()
    state[tensor] = state[tensor].copy()
    state[tensor].flat[-1] = value
    with pytest.raises(ModelError, match=f"net: tensor '{tensor}' holds NaN or infinite values"):
        state_dict.to_graph(state, arch="mobilenet_v2", name="net")


def test_values_that_no_training_makes_are_refused() -> None:
    _, state = small_v2()
    name = "features.0.1.running_var"
    with pytest.raises(ModelError, match=f"'{name}' holds a negative variance"):
        state_dict.to_graph({**state, name: np.full(8, -0.5)}, arch="mobilenet_v2")
    with pytest.raises(ModelError, match=f"'{name}' holds NaN or infinite"):  # too large for float32
        state_dict.to_graph({**state, name: np.full(8, 1e300)}, arch="mobilenet_v2")
    with pytest.raises(ModelError, match=f"'{name}' has dtype int8, expected floats"):
        state_dict.to_graph({**state, name: np.ones(8, np.int8)}, arch="mobilenet_v2")
    with pytest.raises(ModelError, match=f"'{name}' has dtype complex64"):
        state_dict.to_graph({**state, name: np.ones(8, np.complex64)}, arch="mobilenet_v2")


def test_shapes_without_memory_behind_them_are_refused() -> None:
    """A tensor with strides of 0 can have any shape; none of these may be believed."""
    _, state = small_v2()
    for shape in [(2**40, 1280), (2**60, 1), (2**60,), (0, 1280), ()]:
        huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape, (0,) * len(shape))
        for name in ("classifier.1.weight", "features.17.conv.2.weight", "features.0.0.weight"):
            with pytest.raises(ModelError, match="does not fit"):
                state_dict.to_graph({**state, name: huge}, arch="mobilenet_v2")


# --- load() ---------------------------------------------------------------------------------------------


def test_load_reads_safetensors_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # what needs no PyTorch must not import it
    graph, state = small_v2()
    data = safetensors_bytes(state, {"format": "pt"})
    for name in ("net.safetensors", "net.pth", "net.bin", "net.onnx", "net"):
        path = tmp_path / name
        path.write_bytes(data)
        for given in (path, str(path), os.fsencode(path)):
            assert same_parameters(importers.load(given, arch="mobilenet_v2"), graph)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="holds weights only; say with arch="):
        importers.load(tmp_path / "net.safetensors")
    got = importers.load(tmp_path / "net", arch="mobilenet_v2", width=0.1, classes=3, padding="same", epsilon=1e-3)
    assert got["conv1"].attrs["padding"] == "same"


def test_load_names_what_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing\.tflite"):
        importers.load(tmp_path / "missing.tflite")
    with pytest.raises(IsADirectoryError, match="a model file is needed, this is a folder"):
        importers.load(tmp_path)
    cases = {
        "net.onnx": (b"\x08\x07\x12\x07pytorch", r"net\.onnx: the file holds no graph"),
        "net.h5": (b"text", r"net\.h5: it starts with 74 65 78 74, which is neither HDF5 nor zip"),
        "net.weights": (b"\x89HDF\r\n\x1a\n" + bytes(99), r"net\.weights: .* are not supported"),
        "net.keras": (b"PK\x05\x06" + bytes(18), r"net\.keras: the archive holds no config\.json"),
        "net.fmn": (bytes(100), r"net\.fmn is not a valid \.fmn file"),
        "net.xyz": (b"hello, world", r"not a model file of a known kind \(it starts with 68 65 6c 6c 6f 2c 20 77\)"),
        "empty": (b"", r"it starts with nothing\); supported: .*\.safetensors"),
        "zip": (b"PK\x03\x04" + bytes(50), "not a model file of a known kind"),
        "net.tflite": (bytes(100), "net.tflite"),
        "net.safetensors": (b"", "not a valid safetensors file"),
        "net.pth": (b"", "does not start as files of torch.save do, but with nothing"),
        "net.pt": (b"\x80\x04.", "does not start as files of torch.save do, but with 80 04 2e"),
    }
    for name, (data, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(ModelError, match=message):
            importers.load(path, **({} if name.endswith(("tflite", "onnx")) else {"arch": "mobilenet_v2"}))  # type: ignore[arg-type]


def test_load_gives_tflite_files_to_their_importer(tmp_path: Path) -> None:
    path = tmp_path / "net.bin"
    path.write_bytes(b"\x18\0\0\0TFL3")  # T44: the shortest file with the magic bytes
    with pytest.raises(ModelError):
        importers.load(path)
    with pytest.raises(ModelError, match="holds its own network; arch, width cannot be given"):
        importers.load(path, arch="mobilenet_v2", width=1.0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in the file system here")
def test_load_does_not_wait_for_pipes_nor_read_devices(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "net.pth")
    for path in (tmp_path / "net.pth", Path("/dev/zero")):
        with pytest.raises(ModelError, match="not a regular file"):
            importers.load(path, arch="mobilenet_v2")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_load_raises_for_files_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(PermissionError):
        importers.load(path, arch="mobilenet_v2")


def test_load_refuses_giant_files_without_reading_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importers, "MAX_FILE", 1000)
    path = tmp_path / "net.safetensors"
    path.write_bytes(pack({}, bytes(1000)))
    with pytest.raises(ModelError, match="has 1010 bytes; a model file has at most 1000"):
        importers.load(path, arch="mobilenet_v2")


def test_cut_and_changed_files_give_model_errors(tmp_path: Path) -> None:
    graph = models.build("mobilenet_v1", width=0.01, classes=2)
    data = safetensors_bytes(state_of(graph, "mobilenet_v1", TIMM, 0.01))
    path = tmp_path / "net.safetensors"
    for length in range(0, len(data), 997):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            importers.load(path, arch="mobilenet_v1")
    rng = np.random.default_rng(2)
    failures = 0
    for position in rng.choice(4096, 40, replace=False):
        changed = bytearray(data)
        changed[position] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(bytes(changed))
        try:
            importers.load(path, arch="mobilenet_v1")
        except ModelError:
            failures += 1
    assert failures > 20  # a changed name of a num_batches_tracked does no harm


@pytest.mark.timing
def test_a_file_that_fits_nothing_is_refused_in_less_than_a_second() -> None:
    """The slowest way to fail: every known network is compared before the message is made."""
    graph = models.build("mobilenetv2_140", weights=models.skeleton)
    state = state_of(graph, "mobilenetv2_140", TIMM)
    state["conv_head.weight"] = np.ones((1792, 447, 1, 1), np.float32)
    start = time.perf_counter()
    with pytest.raises(ModelError, match="nearest is 'mobilenet_v2'"):
        state_dict.to_graph(state, arch=None)
    assert time.perf_counter() - start < 1.0
