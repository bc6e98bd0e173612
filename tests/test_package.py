"""``import fastmobilenet``: it loads nothing, and finds its names and modules when they are used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fastmobilenet

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_the_import_loads_nothing(run_python: Run) -> None:
    code = """
import sys
before = set(sys.modules)
import fastmobilenet as fm
assert fm.ModelError.__name__ == "ModelError"
new = set(sys.modules) - before
print(*sorted(name for name in new if name.split(".")[0] in ("numpy", "PIL", "torch", "onnx", "fastmobilenet")))
"""
    done = run_python("-c", code)
    assert done.stdout.split() == ["fastmobilenet", "fastmobilenet.errors"], done.stderr


def test_modules_are_there_without_an_import(run_python: Run) -> None:
    code = """
import sys
import fastmobilenet as fm
assert "fastmobilenet.models" not in sys.modules
graph = fm.models.build("mobilenetv2_035", input_size=(32, 32))
assert fm.models is sys.modules["fastmobilenet.models"]
assert fm.models.available()
assert not {"torch", "onnx", "PIL"} & set(sys.modules)
for name in dir(fm):
    getattr(fm, name)
print(graph.name)
"""
    done = run_python("-c", code)
    assert done.stdout == "mobilenetv2_035\n", done.stderr


def test_a_first_run_loads_little(run_python: Run, tmp_path: Path) -> None:
    """Of a .fmn file with floats: neither Pillow nor masked arrays, nor what only writers of files need."""
    path = tmp_path / "network.fmn"
    graph = fastmobilenet.models.build("mobilenetv2_035", input_size=(32, 32), classes=3)
    fastmobilenet.Model(graph, 1).save(path)
    code = """
import sys
import numpy as np
before = set(sys.modules)
import fastmobilenet as fm
model = fm.Model.load(sys.argv[1], threads=1)
layout = model.graph.input_layout
model.run(np.zeros((1, 3, 32, 32) if layout == "NCHW" else (1, 32, 32, 3), np.float32))
new = set(sys.modules) - before
print(*sorted(new & {"PIL", "numpy.ma", "secrets", "asyncio", "fastmobilenet.models", "fastmobilenet.image"}))
"""
    done = run_python("-c", code, str(path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_names() -> None:
    assert {"Model", "Preprocess", "models", "importers", "image"} <= set(dir(fastmobilenet))
    namespace: dict[str, object] = {}
    exec("from fastmobilenet import *", namespace)
    assert namespace["models"] is sys.modules["fastmobilenet.models"]
    for name in ("nothing", "onnx", "_nothing"):
        with pytest.raises(AttributeError, match=f"module 'fastmobilenet' has no attribute '{name}'"):
            getattr(fastmobilenet, name)
