"""What the tests share: options, the folder of real models and pictures, small networks, other Python processes."""

from __future__ import annotations

import errno
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent

# The repository's fastmobilenet folder can be used only where the extension was built in place, and is then what is
# meant; after a plain `pip install .` the installed package must come first.
built_here = any((ROOT / "fastmobilenet" / f"_native{suffix}").exists() for suffix in EXTENSION_SUFFIXES)
others = [p for p in sys.path if Path(p or ".").resolve() != ROOT]
sys.path[:] = [str(ROOT), *others] if built_here else [*others, str(ROOT)]

os.environ.setdefault("KERAS_BACKEND", "torch")  # before the first test that imports Keras: it looks but once

import fastmobilenet  # noqa: E402
from fastmobilenet import importers  # noqa: E402
from fastmobilenet.graph import RELU6, Graph, GraphBuilder  # noqa: E402

from .samples import names  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too: full shapes and peers")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow; run it with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """A folder with models/ (real .tflite files and their labels) and imagenet_samples/."""
    name = os.environ.get("FASTMOBILENET_TEST_DATA")
    folder = Path(name) if name else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs a folder of models and pictures, and {folder} is none; set FASTMOBILENET_TEST_DATA")
    return folder


def build_small_graph(
    *, layout: str = "NHWC", softmax: bool = False, classes: int = 10, seed: int = 0, **fields: Any
) -> Graph:
    """A MobileNet in miniature for 32x32 pictures: every op that a real one has, with channel counts that fill no
    block of 16, and logits of a few units."""
    rng = np.random.default_rng(seed)

    def conv(x: str, ic: int, oc: int, kernel: int, stride: int = 1, groups: int = 1, **attrs: Any) -> str:
        fan_in = kernel * kernel * ic // groups
        params = {
            "weight": rng.normal(0, fan_in**-0.5, (oc, kernel, kernel, ic // groups)).astype(np.float32),
            "bias": rng.normal(0, 0.5, oc).astype(np.float32),
        }
        return b.add("conv2d", x, params=params, stride=(stride, stride), padding="same", groups=groups, **attrs)

    b = GraphBuilder()
    x = conv(b.add("input"), 3, 12, 3, stride=2, activation=RELU6)
    y = conv(x, 12, 20, 1, activation=RELU6)
    y = conv(y, 20, 20, 3, groups=20, activation=RELU6)
    y = conv(y, 20, 12, 1)
    x = b.add("global_avg_pool", b.add("add", x, y))
    weight = rng.normal(0, 1, (classes, 12)).astype(np.float32)
    x = b.add("dense", x, params={"weight": weight, "bias": rng.normal(0, 1, classes).astype(np.float32)})
    if softmax:
        x = b.add("softmax", x)
    return b.build(x, **{"input_size": (32, 32), "input_layout": layout, "name": "small", **fields})


@pytest.fixture(scope="session")
def make_graph() -> Callable[..., Graph]:
    return build_small_graph


@pytest.fixture(scope="session")
def small_graph() -> Graph:
    return build_small_graph()


@pytest.fixture
def model_file(tmp_path: Path, make_graph: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch) -> str:
    """A file for which the importers give the small network, with the labels "name 0" to "name 9"."""
    graph = make_graph(labels=names(10))
    monkeypatch.setattr(importers, "load", lambda path, arch=None, **_: graph)
    file = tmp_path / "net.tflite"
    file.touch()
    return str(file)


@pytest.fixture(scope="session")
def start_python(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., subprocess.Popen[str]]:
    """Starts another Python with the given arguments. It imports the same package as this one.

    FASTMOBILENET_TEST_PYTHON is the command to start it with, where sys.executable does not start by itself: under
    an emulator.
    """
    command = shlex.split(os.environ.get("FASTMOBILENET_TEST_PYTHON", "")) or [sys.executable]
    folder = tmp_path_factory.mktemp("run_python")  # not the repository: its package may have no extension modules
    package = str(Path(fastmobilenet.__file__).resolve().parent.parent)
    search = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), package) if p)

    def start(*args: str, **options: Any) -> subprocess.Popen[str]:
        options.setdefault("cwd", folder)
        options["env"] = {**os.environ, "PYTHONPATH": search, **options.get("env", {})}
        try:
            return subprocess.Popen([*command, *args], text=True, **options)
        except OSError as error:
            if error.errno == errno.ENOEXEC:
                pytest.skip(f"{command[0]} does not start by itself here; set FASTMOBILENET_TEST_PYTHON")
            raise

    return start


@pytest.fixture(scope="session")
def run_python(start_python: Callable[..., subprocess.Popen[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs another Python with the given arguments and returns what it did; see start_python."""

    def run(*args: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
        if "stdout" not in options:
            options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with start_python(*args, **options) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run
