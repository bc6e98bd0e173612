"""Every command and every Python block of README.md and the other documents runs, in a folder with stand-ins for the
files that they name. What sets the machine up is run by .ci/run, on a fresh checkout."""

from __future__ import annotations

import csv
import importlib
import re
import runpy
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fastmobilenet as fm
from fastmobilenet import Graph, Model, fmn, models, sources, starter
from fastmobilenet.cli import main
from fastmobilenet.importers._plan_names import torchvision_v2
from fastmobilenet.origin import Origin

from .conftest import ROOT
from .detectors import torchvision_detector
from .samples import names, pixels
from .tflite_detectors import Detector
from .weight_files import state_of

DOCUMENTS = ("README.md", "docs/README.md", "examples/README.md")

#: Commands that are not run here, and where they are.
ELSEWHERE = {
    "pip install '.[docs]'": ".ci/run installs it from the wheel",
    "python docs/build.py build/docs": ".ci/run builds the reference, with warnings as errors",
}


def blocks(kind: str) -> list[Any]:
    found = []
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8") if (ROOT / name).exists() else ""
        for i, block in enumerate(re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)):
            found.append(pytest.param(block, id=f"{name}:{i}"))
    return found


def commands() -> list[Any]:
    found = []
    for block in blocks("sh"):
        assert block.id is not None
        for line in block.values[0].splitlines():  # type: ignore[attr-defined]
            command = shlex.join(shlex.split(line, comments=True)) if " #" in line else line.strip()
            if command and command not in setup_commands() and command not in ELSEWHERE:
                found.append(pytest.param(command, id=f"{block.id}:{command[:60]}"))
    return found


def setup_commands() -> list[str]:
    if not (ROOT / "tools" / "readme_setup.py").exists():
        return []
    tool = runpy.run_path(str(ROOT / "tools" / "readme_setup.py"))
    found: list[str] = tool["commands"]((ROOT / "README.md").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def folder(tmp_path: Path, make_graph: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the documents' commands are run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "examples", "examples")
    shutil.copy("examples/cat.jpg", "cat.jpg")
    rows = [["image", "label"]]
    for label in ("cat", "dog", "bird"):
        path = Path("photos", label, "1.jpg")
        path.parent.mkdir(parents=True)
        shutil.copy(f"examples/{label}.jpg", path)
        rows.append([str(path), label])
    with open("labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    Path("names.txt").write_text("\n".join(starter.CLASSES))
    fmn.save(make_graph(labels=starter.CLASSES), "net.fmn")
    return tmp_path


def need_files(text: str, make_graph: Callable[..., Graph]) -> None:
    """Makes the model files that ``text`` names, as far as it takes other packages to write them."""
    if "net.onnx" in text:
        pytest.importorskip("onnx", reason="an ONNX file is written with onnx")
        graph = make_graph(layout="NCHW")
        Path("net.onnx").write_bytes(importlib.import_module("bench.peers.to_onnx").export(graph, (32, 32)))
    if "street.jpg" in text:
        Image.fromarray(pixels(60, 90, 3)).save("street.jpg")
    if "ssdlite.pth" in text:
        network = torchvision_detector()
        importlib.import_module("torch").save(network.state_dict(), "ssdlite.pth")
        Path("coco.txt").write_text("\n".join(names(91)))
    if "detector.tflite" in text:
        Path("detector.tflite").write_bytes(Detector("uint8", seed=2).finish())
    for name in re.findall(r"(?<!detector)\b(?!detector)\w[\w.]*\.tflite", text):
        pytest.importorskip("flatbuffers", reason="a TFLite file is written with flatbuffers")
        pytest.importorskip("ai_edge_litert", reason="a TFLite file is written with LiteRT's schema")
        Path(name).write_bytes(importlib.import_module("bench.peers.to_tflite").export(make_graph(), (32, 32)))
    if "clip.mp4" in text:
        av = pytest.importorskip("av", reason="videos are read with PyAV")
        with av.open("clip.mp4", "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            with Image.open("cat.jpg") as picture:
                frame = av.VideoFrame.from_image(picture.convert("RGB").resize((64, 64)))
            container.mux([*stream.encode(frame), *stream.encode()])
    for name in re.findall(r"\w+\.npz", text):
        rng, labels = np.random.default_rng(0), np.arange(60) % 3
        images = (rng.integers(0, 120, (60, 32, 32, 3)) + 40 * labels[:, None, None, None]).astype(np.uint8)
        np.savez(name, images=images, labels=labels)


def test_there_are_documents() -> None:
    if not (ROOT / ".ci" / "run").exists():
        pytest.skip("needs the repository")
    assert len(commands()) >= 12
    assert len(blocks("python")) >= 8
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    for line in ("tools/readme_setup.py", "docs/build.py", "[docs]"):  # what ELSEWHERE and the set-up rely on
        assert line in ci


@pytest.mark.parametrize("command", commands())
def test_command(
    command: str, folder: Path, make_graph: Callable[..., Graph], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    need_files(command, make_graph)
    program, *arguments = shlex.split(command)
    files = [name for a in arguments for name in (sorted(map(str, Path().glob(a))) if "*" in a else [a])]
    if "ray" in arguments:
        pytest.importorskip("ray")
    if program == "fastmobilenet":
        if "bench" in arguments:
            files += ["--seconds", "0.05", "--size", "64"]
        status = main(files)
    else:
        assert program == "python", f"{command!r} is run by no test: add how"
        if "transfer_learning" in command:
            pytest.importorskip("sklearn")
        status = runpy.run_path(files[0])["main"](files[1:])
    out, err = capsys.readouterr()
    assert status == 0, err
    assert out or Path(arguments[arguments.index("--out") + 1]).stat().st_size  # all of it in a file


@pytest.mark.parametrize("block", blocks("python"))
def test_python(block: str, folder: Path, make_graph: Callable[..., Graph], monkeypatch: pytest.MonkeyPatch) -> None:
    need_files(block, make_graph)
    model = Model.load("net.fmn", threads=1)
    given: dict[str, Any] = {"fm": fm, "np": np, "model": model, "paths": ["cat.jpg", "examples/dog.jpg"]}
    if "timm/" in block:  # needs a network; tests/test_hub.py has a hub of its own
        graph = make_graph(labels=starter.CLASSES)
        monkeypatch.setattr(sources, "read", lambda source, **options: (graph, Origin.before("net.fmn")))
    if "RayMapper" in block:
        distributed = pytest.importorskip("fastmobilenet.distributed", exc_type=ImportError)
        pytest.importorskip("pyarrow")
        given |= {"RayMapper": distributed.RayMapper, "SparkMapper": distributed.SparkMapper}
        given |= {"ActorPoolStrategy": lambda size: size, "pictures": Cluster(), "spark": Cluster()}
        monkeypatch.setattr(distributed.SparkMapper, "map", lambda mapper, data: mapper)
    if "torch." in block:
        given["torch"] = torch = pytest.importorskip("torch")
        given["network"] = SimpleNamespace(state_dict=lambda: mobilenet_state(torch))
    if "network.save" in block:
        given["network"] = keras_network()
    if "head." in block:
        features = model.features("cat.jpg").shape[0]
        rng = np.random.default_rng(0)
        given["head"] = SimpleNamespace(coef_=rng.normal(size=(1, features)), intercept_=rng.normal(size=1))
    exec(compile(block, "block", "exec"), given)


class Cluster:
    """A data set of Ray, or a session of Spark, that does nothing: tests/test_distributed.py has real ones."""

    read = property(lambda self: self)

    def format(self, kind: str) -> Cluster:
        return self

    def load(self, path: str) -> Cluster:
        return self

    def map_batches(self, mapper: Any, *, fn_constructor_args: list[Any], **options: Any) -> Any:
        assert set(options) == {"num_cpus", "compute"}
        return mapper(*fn_constructor_args)


def mobilenet_state(torch: Any) -> Any:
    """A state dict with torchvision's names, of ten classes."""
    graph = models.build("mobilenet_v2", width=1.0, classes=10)
    state = state_of(graph, "mobilenet_v2", torchvision_v2, 1.0)
    return {name: torch.from_numpy(values.copy()) for name, values in state.items()}


def keras_network() -> Any:
    keras = pytest.importorskip("keras", reason="a Keras file is written with Keras")
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((32, 32, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu"),
            layers.DepthwiseConv2D(3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(10),
        ]
    )


def test_the_setup_prints_the_classes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The end of the first command of the set-up: what .ci/run checks too, after a build."""
    first, second = setup_commands()
    assert second.endswith("pytest")
    assert main(shlex.split(first.rpartition("fastmobilenet ")[2])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [(Path(path).stem, line.split()[0]) for path, line in zip(lines[::2], lines[1::2], strict=True)] == [
        (name, name) for name in ("bird", "cat", "dog")
    ]
