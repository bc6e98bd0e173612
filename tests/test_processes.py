"""Models that go to other processes: pickles, pools, forks; asyncio; memory in the long run."""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import Graph, Model, ModelError, Preprocess, fmn, image

from .samples import assert_same_bits, names, pixels
from .test_features import quantized_graph


@pytest.fixture
def file(small_graph: Graph, tmp_path: Path) -> Path:
    fmn.save(small_graph.replace(labels=names(10)), tmp_path / "net.fmn")
    return tmp_path / "net.fmn"


def duplicate(model: Model) -> Model:
    other = pickle.loads(pickle.dumps(model))
    x = pixels(2, 32, 32, 3)
    assert_same_bits(other.run(x), model.run(x))
    assert repr(other) == repr(model)
    assert (other.labels, other.preprocess) == (model.labels, model.preprocess)
    return other  # type: ignore[no-any-return]


# --- pickles ----------------------------------------------------------------------------------------------


def test_a_file_is_pickled_by_its_path(file: Path) -> None:
    model = Model.load(file, threads=2, preprocess=Preprocess(channels="bgr"))
    assert len(pickle.dumps(model)) < 1000
    duplicate(duplicate(model))
    duplicate(Model.load(file, labels=()))
    duplicate(Model.load(file, labels=[f"other {i}" for i in range(10)]))


def test_other_models_are_pickled_with_their_weights(file: Path, small_graph: Graph) -> None:
    loaded = Model.load(file)
    for model in (
        Model.from_graph(small_graph), loaded.with_head(np.ones((3, 12))), Model.from_graph(loaded.graph),
        Model.from_graph(quantized_graph()),
    ):  # fmt: skip
        assert str(file).encode() not in pickle.dumps(model)
        duplicate(model)


def test_a_file_that_has_changed(file: Path, small_graph: Graph) -> None:
    model = Model.load(file)
    data = pickle.dumps(model)
    fmn.save(small_graph, file)  # without labels
    with pytest.raises(ModelError, match=r"net\.fmn, which has changed since; .*Model\.from_graph\(model\.graph\)"):
        pickle.loads(data)
    assert duplicate(model).labels == names(10)  # from the weights in memory
    assert len(pickle.dumps(model)) > 1000
    file.unlink()
    duplicate(model)
    with pytest.raises(ModelError, match=r"net\.fmn, which cannot be read: No such file"):
        pickle.loads(data)


def test_onnx_files_may_have_weights_elsewhere(file: Path, tmp_path: Path) -> None:
    shutil.copy(file, tmp_path / "net.onnx")  # the content decides what it is
    assert len(pickle.dumps(Model.load(tmp_path / "net.onnx"))) > 1000


def test_labels_beside_the_file_are_kept(small_graph: Graph, tmp_path: Path) -> None:
    fmn.save(small_graph, tmp_path / "net.fmn")
    (tmp_path / "labels.txt").write_text("\n".join(names(10)))
    model = Model.load(tmp_path / "net.fmn")
    data = pickle.dumps(model)
    (tmp_path / "labels.txt").unlink()
    assert pickle.loads(data).labels == names(10) == model.labels


def test_copies_share_the_weights(file: Path) -> None:
    model = Model.load(file)
    assert copy.deepcopy({"model": model})["model"]._engine is model._engine
    assert copy.copy(model)._engine is model._engine


# --- processes --------------------------------------------------------------------------------------------


def work(task: tuple[Model, np.ndarray]) -> bytes:
    model, x = task
    return model.run(x).tobytes() + model.features(x).tobytes()


@pytest.mark.fork
@pytest.mark.skipif(sys.platform != "linux", reason="fork is the start method of Linux")
@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_forked_pool(file: Path, small_graph: Graph) -> None:
    x = pixels(3, 32, 32, 3)
    for model in (Model.load(file, threads=2), Model.from_graph(small_graph, threads=2)):
        wanted = work((model, x))
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert set(pool.map_async(work, [(model, x)] * 4).get(60)) == {wanted}


SPAWN = """
import multiprocessing, sys
import numpy as np
from fastmobilenet import Model

def work(task):
    model, x = task
    return model.run(x).tobytes() + model.features(x).tobytes()

if __name__ == "__main__":
    x = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    model = Model.load(sys.argv[1], threads=2)
    models = [model, Model.from_graph(model.graph)]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map_async(work, [(m, x) for m in models]).get(60)
    print(set(found) == {work((model, x))})
"""


@pytest.mark.fork
def test_a_spawned_pool(file: Path, tmp_path: Path, run_python: Callable[..., Any]) -> None:
    (tmp_path / "spawn.py").write_text(SPAWN)
    done = run_python(str(tmp_path / "spawn.py"), str(file), timeout=90)
    assert done.stdout.strip() == "True", done.stderr


PRELOAD = """
import os, sys
import numpy as np
from fastmobilenet import Model

x = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
model = Model.load(sys.argv[1], threads=2)  # as gunicorn --preload does, before it forks the workers
used = sys.argv[2] == "used"
if used:
    wanted = model.run(x).tobytes(), model.features(x).tobytes(), [r.output.tobytes() for r in model.map(list(x))]
children = []
for worker in range(3):
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        found = model.run(x).tobytes(), model.features(x).tobytes(), [r.output.tobytes() for r in model.map(list(x))]
        with os.fdopen(write, "wb") as pipe:
            pipe.write(b"".join([*found[:2], *found[2]]))
        os._exit(0)
    os.close(write)
    children.append((pid, read))
if not used:
    wanted = model.run(x).tobytes(), model.features(x).tobytes(), [r.output.tobytes() for r in model.map(list(x))]
for pid, read in children:
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == b"".join([*wanted[:2], *wanted[2]])
    assert os.waitpid(pid, 0)[1] == 0
print("fine")
"""


@pytest.mark.fork
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("when", ["loaded", "used"])
def test_workers_that_are_forked_from_a_server(file: Path, when: str, run_python: Callable[..., Any]) -> None:
    done = run_python("-c", PRELOAD, str(file), when, timeout=60)
    assert done.stdout.strip() == "fine", done.stderr


# --- asyncio ----------------------------------------------------------------------------------------------


def test_arun(file: Path) -> None:
    model, pictures = Model.load(file), [pixels(30 + i, 32, 3, seed=i) for i in range(6)]

    async def serve() -> list[Any]:
        return await asyncio.gather(*(model.arun(x) for x in pictures), model.arun(pictures[0], outputs=["embedding"]))

    *found, last = asyncio.run(serve())
    for x, y in zip(pictures, found, strict=True):
        assert_same_bits(y, model.run(x))
    assert_same_bits(last["embedding"], model.features(pictures[0]))
    with pytest.raises(FileNotFoundError):
        asyncio.run(model.arun("none.png"))


# --- video frames and memory ------------------------------------------------------------------------------


def test_frames_are_not_copied(small_graph: Graph) -> None:
    """uint8 pixels of the network's size go to the runtime as they are."""
    frame, frames = pixels(320, 320, 3), pixels(4, 320, 320, 3)
    model = Model.from_graph(small_graph.replace(input_size=(320, 320)))
    for x, batched in ((frame, False), (frames, True), (frames[1:3], True)):
        batch, has_axis = image.to_batch(x, model.preprocess, (320, 320))
        assert np.shares_memory(batch, x)
        assert has_axis is batched
        model.run(x)  # plans are made once
        tracemalloc.start()
        try:
            model.run(x)
            assert tracemalloc.get_traced_memory()[1] < x.nbytes / 10
        finally:
            tracemalloc.stop()
    assert not np.shares_memory(image.to_batch(frame[:, ::-1], model.preprocess, (320, 320))[0], frame)


#: In a process of its own, whose memory is not that of hundreds of tests before it.
RUNS = """
import gc, os
import numpy as np
from fastmobilenet import Model, models

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

graph = models.build("mobilenet_v2", width=0.35, input_size=(32, 32), classes=10)
first, second = Model.from_graph(graph, threads=1), Model.from_graph(graph, threads=2)
rng = np.random.default_rng(0)
pictures = [rng.integers(0, 256, (32 + i % 10, 32 + i // 10, 3), dtype=np.uint8) for i in range(100)]

def rounds(count):
    for i in range(count):
        x = pictures[i % 100]
        first.run(x[None], size=x.shape[:2])
        second.run(x, size=x.shape[:2], outputs=["embedding", "logits"])
        if i % 50 == 0:
            first.with_head(np.ones((3, first.features(x).shape[-1]), np.float32)).run(x)

rounds(200)
gc.collect()
before = resident()
rounds(1000)
gc.collect()
print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="reads /proc")
def test_memory_does_not_grow(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Many runs, 100 shapes, two models in turns, features and heads: less than 2 MB after the first 100."""
    result = run_python("-c", RUNS)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) < 2 * 2**20
