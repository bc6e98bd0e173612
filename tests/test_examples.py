"""The programs of examples/ do what they say, with small data."""

from __future__ import annotations

import io
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Graph, Model, fmn

from .conftest import ROOT
from .samples import assert_same_bits


def pictures(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise of three classes, each brighter in another channel."""
    y = np.arange(count) % 3
    x = np.random.default_rng(seed).integers(0, 120, (count, 32, 32, 3))
    x[np.arange(count), :, :, y] += 100
    return x.astype(np.uint8), y


def jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def test_transfer_learning(small_graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    fmn.save(small_graph, tmp_path / "net.fmn")
    for name, count in (("train", 60), ("test", 30)):
        x, y = pictures(count, seed=count)
        if name == "train":
            np.savez(tmp_path / f"{name}.npz", images=x, labels=y)
        else:
            jpegs = [jpeg(picture) for picture in x]
            offsets = np.cumsum([0, *map(len, jpegs)])
            data = np.frombuffer(b"".join(jpegs), np.uint8)
            np.savez(tmp_path / f"{name}.npz", jpeg=data, offsets=offsets, labels=y)
    program = runpy.run_path(str(ROOT / "examples" / "transfer_learning.py"))
    files = [str(tmp_path / name) for name in ("net.fmn", "train.npz", "test.npz")]
    assert program["main"]([*files, "--out", str(tmp_path / "out.fmn")]) == 0
    shown = re.search(r"out\.fmn: ([0-9.]+) % of 30 test pictures are right", capsys.readouterr().out)
    assert shown
    assert float(shown[1]) >= 90
    model = Model.load(tmp_path / "out.fmn")
    assert model.labels == ("airplane", "automobile", "bird")
    x, _ = pictures(5, seed=1)
    assert_same_bits(model.features(x), Model.load(tmp_path / "net.fmn").features(x))
    np.savez(tmp_path / "wrong.npz", pictures=x)
    with pytest.raises(SystemExit, match="has the arrays pictures; expected images and labels"):
        program["main"]([files[0], str(tmp_path / "wrong.npz"), files[2]])


def run(name: str, *arguments: str) -> int:
    program = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))
    status: int = program["main"](list(arguments))
    return status


def test_classify(capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(ROOT / "examples" / f"{name}.jpg") for name in ("cat", "dog", "bird")]
    assert run("classify", *files) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in shown] == [[f"{file}:", Path(file).stem] for file in files]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A clip of one second of a cat and one of a dog, ten frames each."""
    av = pytest.importorskip("av", reason="videos are read with PyAV")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 128, 128, "yuv420p", 2_000_000
        for name in ("cat", "dog"):
            picture = Image.open(ROOT / "examples" / f"{name}.jpg").convert("RGB").resize((128, 128))
            for _ in range(10):
                container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return path


def test_video(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("video", str(clip), "--smooth", "0.5") == 0
    *seen, last = capsys.readouterr().out.splitlines()
    assert re.match(r"20 frames, [0-9.]+ ms each", last)
    labels = [line.split()[2] for line in seen]
    times = [float(line.split()[0]) for line in seen]
    assert labels[0] == "cat"
    assert labels[-1] == "dog"
    assert times[0] == 0
    assert 1.0 <= times[-1] < 1.8


def test_video_looks_at_every_nth_frame(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("video", str(clip), "--every", "5") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("4 frames,")
