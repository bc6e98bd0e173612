"""State dicts in .pth and .safetensors files, friendly and hostile. Needs PyTorch."""

from __future__ import annotations

import functools
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import ModelError, importers
from fastmobilenet.graph import Graph
from fastmobilenet.importers import state_dict
from fastmobilenet.importers import torch as torch_files

from .weight_files import torch_network

ARCHS = ["mobilenet_v2", "mobilenetv2_050", "mobilenetv3_small_100"]  # torchvision's, and two of timm


@pytest.fixture(scope="module")
def torch() -> Any:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield torch
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def net(torch: Any) -> Callable[[str], Any]:
    """Makes one of ARCHS, each once."""
    return functools.cache(torch_network)


# --- all kinds of files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS[::2])
def test_all_kinds_of_files_hold_the_same(torch: Any, net: Any, arch: str, tmp_path: Path) -> None:
    state = net(arch).state_dict()
    expected = state_dict.to_graph(state, arch=arch)
    torch.save(state, tmp_path / "zip.pth")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "checkpoint.pth")
    torch.save(dict(net(arch).named_parameters()) | dict(net(arch).named_buffers()), tmp_path / "parameters.pth")
    torch.save(state, tmp_path / "net.safetensors")  # the content decides
    files = ["zip.pth", "old.pt", "checkpoint.pth", "parameters.pth", "net.safetensors"]
    for file in files:
        check_same(importers.load(tmp_path / file, arch=arch), expected)


@pytest.mark.parametrize("arch", ARCHS[1:])
def test_safetensors_files_hold_the_same(torch: Any, net: Any, arch: str, tmp_path: Path) -> None:
    safetensors_torch = pytest.importorskip("safetensors.torch")
    state = net(arch).state_dict()
    path = tmp_path / "net.safetensors"
    safetensors_torch.save_file(state, path, {"format": "pt"})
    check_same(importers.load(path, arch=arch), state_dict.to_graph(state, arch=arch))
    for dtype in (torch.bfloat16, torch.float16):
        lower = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        safetensors_torch.save_file(lower, path)
        got = importers.load(path, arch=arch)
        check_same(got, state_dict.to_graph({k: v.float() for k, v in lower.items()}, arch=arch))
        check_same(state_dict.to_graph(lower, arch=arch), got)


def check_same(a: Graph, b: Graph) -> None:
    assert a.replace(nodes=b.nodes) == b
    for m, n in zip(a.nodes, b.nodes, strict=True):
        assert (m.name, m.op, m.inputs, m.attrs) == (n.name, n.op, n.inputs, n.attrs)
        for key, value in n.params.items():
            np.testing.assert_array_equal(m.params[key], value)


# --- .pth files -----------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of ``function(*arguments)`` that happens when the file is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@pytest.fixture(scope="module")
def saved(torch: Any) -> Callable[..., bytes]:
    def save(value: Any, **options: Any) -> bytes:
        file = io.BytesIO()
        torch.save(value, file, **options)
        return file.getvalue()

    return save


OLD = {"_use_new_zipfile_serialization": False}


def load_bytes(data: bytes, folder: Path) -> Graph:
    path = folder / "net.pth"
    path.write_bytes(data)
    return importers.load(path, arch="mobilenet_v2")


@pytest.mark.parametrize("options", [{}, OLD, {"pickle_protocol": 4}, {**OLD, "pickle_protocol": 4}])
@pytest.mark.parametrize("place", [lambda evil: evil, lambda evil: {"state_dict": evil}, lambda evil: {"a": [evil]}])
def test_programs_in_a_file_are_not_executed(
    saved: Any, tmp_path: Path, options: dict[str, Any], place: Callable[[Any], Any]
) -> None:
    evidence = tmp_path / "executed"
    for call in (
        Call(os.system, f"touch '{evidence}'"),
        Call(os.mkdir, str(evidence)),
        Call(eval, f"open({str(evidence)!r}, 'w')"),
    ):
        with pytest.raises(ModelError, match=r"net\.pth is not a state dict that can be read"):
            load_bytes(saved(place(call), **options), tmp_path)
        with pytest.raises(ModelError, match=r"does not start as files of torch\.save do"):
            load_bytes(pickle.dumps(place(call)), tmp_path)
    assert not evidence.exists()


def test_the_program_is_named(saved: Any, tmp_path: Path, torch: Any) -> None:
    with pytest.raises(
        ModelError, match=r"refers to '(posix|nt)\.system', which no state dict needs. Nothing was executed"
    ):
        load_bytes(saved({"a": Call(os.system, "true")}), tmp_path)
    with pytest.raises(
        ModelError, match=r"refers to 'torch\.nn\.modules\.linear\.Linear'.*Save model.state_dict\(\) alone"
    ):
        load_bytes(saved(torch.nn.Linear(2, 2)), tmp_path)


@pytest.mark.parametrize("options", [{}, OLD])
def test_small_files_cannot_ask_for_much_memory(saved: Any, torch: Any, options: dict[str, Any]) -> None:
    claims = [Call(bytearray, 2**40), Call(torch.FloatStorage, 2**40), torch.zeros(1).expand(2**30, 2**20)]
    for claim in claims:
        with pytest.raises(ModelError):
            torch_files.read(saved({"a": claim}, **options), "net.pth")
    data = saved({"a": torch.zeros(5)}, **options)
    five, many = b"K\x05", b"J\xff\xff\xff\x7f"
    assert data.count(five) >= 2  # the count of the storage and the shape
    if options:
        for old, new in ((five, many), (b"K\x05Nt", many + b"Nt"), (b"K\x05\x85", many + b"\x85")):
            with pytest.raises(ModelError):
                torch_files.read(data.replace(old, new), "net.pth")
    else:
        for change in (lambda p: p.replace(five, many), lambda p: p.replace(b"K\x05\x85", many + b"\x85")):
            with pytest.raises(ModelError):
                torch_files.read(rewritten(data, lambda n, b, c=change: c(b) if n.endswith("data.pkl") else b), "f")


def rewritten(
    data: bytes, change: Callable[[str, bytes], bytes] = lambda name, raw: raw, method: int = zipfile.ZIP_STORED
) -> bytes:
    """The zip file with every entry passed through ``change``."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for item in old.infolist():
            new.writestr(item.filename, change(item.filename, old.read(item)))
    return out.getvalue()


def test_zip_files_that_torch_does_not_write_are_refused(saved: Any, torch: Any) -> None:
    data = saved({"a": torch.zeros(1000)})
    assert list(torch_files.read(rewritten(data), "f")) == ["a"]
    with pytest.raises(ModelError, match="compressed zip file"):
        torch_files.read(rewritten(data, method=zipfile.ZIP_DEFLATED), "f")
    with pytest.raises(ModelError, match="PyTorch can read"):
        torch_files.read(rewritten(data, lambda n, b: b[:20] if "/data/" in n else b), "f")
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/other", "text")
    with pytest.raises(ModelError, match=r"has one data\.pkl, and this has 0"):
        torch_files.read(file.getvalue(), "f")
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("archive/constants.pkl", "text")
    with pytest.raises(ModelError, match="TorchScript program"):
        torch_files.read(file.getvalue(), "f")


def test_endless_pickles_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_files, "MAX_OPCODES", 10_000)
    for body in (b"(0", b"(", b"]", b"NN"):
        with pytest.raises(ModelError, match="too long for a state dict"):
            torch_files.read(torch_files.LEGACY_MAGIC + b"." + body * 10_000, "f")


@pytest.mark.parametrize("options", [{}, OLD])
def test_cut_and_changed_files_give_model_errors(saved: Any, torch: Any, options: dict[str, Any]) -> None:
    state = {"a.weight": torch.arange(12.0).reshape(3, 4), "a.bias": torch.ones(3), "n": torch.tensor(5)}
    data = saved(state, **options)
    for length in range(0, len(data), 3 if options else 7):
        with pytest.raises(ModelError):
            torch_files.read(data[:length], "f")
    rng = np.random.default_rng(4)
    for position in rng.choice(len(data), 400, replace=False):
        changed = bytearray(data)
        changed[position] ^= 1 << int(rng.integers(0, 8))
        try:
            got = torch_files.read(bytes(changed), "f")
        except ModelError:
            continue
        for value in got.values() if isinstance(got, dict) else ():
            assert not isinstance(value, torch.Tensor) or value.numel() <= 12


def test_tensors_that_numpy_cannot_hold_are_named(saved: Any, torch: Any, tmp_path: Path) -> None:
    for value in (torch.zeros(3, 3).to_sparse(), torch.zeros(3, dtype=torch.float8_e5m2)):
        with pytest.raises(ModelError):
            load_bytes(saved({"features.0.0.weight": value}), tmp_path)


def test_without_pytorch_the_extra_is_named(saved: Any, torch: Any, tmp_path: Path, monkeypatch: Any) -> None:
    data = saved({"a": torch.zeros(3)})
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=r"pip install fastmobilenet\[torch\]"):
        load_bytes(data, tmp_path)


def test_weights_that_are_not_finite_are_refused(torch: Any, net: Any, tmp_path: Path) -> None:
    state = dict(net("mobilenetv2_050").state_dict())
    name = "blocks.2.1.bn2.running_var"
    state[name] = state[name].clone()
    state[name][5] = float("nan")
    torch.save(state, tmp_path / "net.pth")
    with pytest.raises(ModelError, match=rf"net\.pth: tensor '{name}' holds NaN or infinite values"):
        importers.load(tmp_path / "net.pth", arch="mobilenetv2_050")
