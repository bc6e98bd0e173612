"""Ray and Spark: the rows of one machine, whatever happens to workers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Graph, Model, distributed
from fastmobilenet.cli import main
from fastmobilenet.distributed import RayMapper, SparkMapper

from .samples import names, pixels

Python = Callable[..., "subprocess.CompletedProcess[str]"]
COUNT = 150


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, make_graph: Callable[..., Graph]) -> Path:
    """A model, and pictures in a folder, two of which are none."""
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "photos").mkdir()
    Model.from_graph(make_graph(labels=names(10))).save(folder / "net.fmn")
    for i in range(COUNT):
        Image.fromarray(pixels(40 + i % 7, 50 - i % 5, 3, seed=i)).save(folder / "photos" / f"{i:03}.png")
    for i in (3, 77):
        (folder / "photos" / f"{i:03}.png").write_bytes(b"no picture")
    return folder


def wanted(folder: Path, **load: Any) -> list[dict[str, Any]]:
    """The rows of this machine."""
    model = Model.load(folder / "net.fmn", threads=1, **load)
    rows = []
    for path in sorted(map(str, (folder / "photos").iterdir())):
        row: dict[str, Any] = {"image": path, "error": None, "labels": [], "indices": [], "scores": []}
        try:
            for p in model.classify(path, top=3):
                row["labels"].append(p.label)
                row["indices"].append(p.index)
                row["scores"].append(p.score)
        except ValueError:
            row["error"] = True
        rows.append(row)
    return rows


def assert_rows(found: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    assert len(found) == len(rows)
    for got, row in zip(sorted(found, key=lambda r: str(r["image"])), rows, strict=True):
        assert (got["error"] is None) == (row["error"] is None), got
        assert {**got, "error": row["error"]} == row


# --- without a cluster ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["numpy", "pandas", "pyarrow"])
def test_batches(folder: Path, kind: str) -> None:
    pa = pytest.importorskip("pyarrow")
    rows = wanted(folder)[:5]
    paths = [row["image"] for row in rows]
    batch: Any = {"image": np.array(paths), "number": np.arange(5)}
    if kind == "pandas":
        batch = pytest.importorskip("pandas").DataFrame(batch)
    elif kind == "pyarrow":
        batch = pa.table({"image": paths, "number": range(5)})
    table = RayMapper(folder / "net.fmn", top=3)(batch)
    assert table.column("number").to_pylist() == list(range(5))
    assert_rows(table.drop(["number"]).to_pylist(), rows)
    with pytest.raises(ValueError, match="no column 'picture'; there are image, number"):
        RayMapper(folder / "net.fmn", column="picture")(batch)


def test_pictures_of_all_kinds_and_outputs(folder: Path) -> None:
    pytest.importorskip("pyarrow")
    model = Model.load(folder / "net.fmn")
    paths = sorted(map(str, (folder / "photos").iterdir()))[:3]
    embedding = model.features(paths)
    contents = np.array([Path(path).read_bytes() for path in paths], dtype=object)
    arrays = np.empty(3, dtype=object)
    arrays[:] = [np.asarray(Image.open(path)) for path in paths]
    for column in (np.array(paths), contents, arrays):
        table = RayMapper(model, outputs=["embedding"])({"image": column, "n": np.arange(3)})
        assert table.column_names == [*(["image"] if column is not contents and column is not arrays else []), "n",
                                      "error", "embedding"]  # fmt: skip
        np.testing.assert_array_equal(np.float32(table["embedding"].to_pylist()), embedding)
    table = RayMapper(model)({"image": np.array([b"none", contents[0]], dtype=object)})
    assert table["error"].to_pylist()[0].startswith("the bytes: not a picture")
    assert table["error"].to_pylist()[1] is None
    assert table["labels"].to_pylist()[0] == []


def test_a_process_loads_a_model_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distributed._models.clear()
    loaded = []
    real = Model.load
    monkeypatch.setattr(Model, "load", lambda *args, **options: loaded.append(args) or real(*args, **options))
    for _ in range(3):
        first = RayMapper(str(folder / "net.fmn"))._model()
        assert SparkMapper(folder / "net.fmn")._model() is first
    assert len(loaded) == 1
    RayMapper(folder / "net.fmn", labels=names(10))._model()
    assert len(loaded) == 2
    model = Model.from_graph(first.graph)
    assert RayMapper(model)._model() is RayMapper(model)._model()


@pytest.mark.parametrize("kind", [RayMapper, SparkMapper])
def test_wrong_arguments(kind: Any, folder: Path) -> None:
    with pytest.raises(TypeError, match="model must be"):
        kind(3)
    with pytest.raises(TypeError, match="no such option: colour"):
        kind("net.fmn", colour="red")
    with pytest.raises(ValueError, match="arch is for the path"):
        kind(Model.load(folder / "net.fmn"), arch="mobilenet_v2")
    with pytest.raises(ValueError, match="top"):
        kind("net.fmn", top=0)
    with pytest.raises(TypeError, match="outputs must be a list"):
        kind("net.fmn", outputs="embedding")


def test_engine_is_for_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["classify", "a.png", "--model", "net.fmn", "--engine", "ray"]) == 1
    assert "--engine ray is for --out FILE" in capsys.readouterr().err


def test_without_ray(folder: Path, run_python: Python) -> None:
    code = "import sys; sys.modules['ray'] = None; from fastmobilenet.cli import main; sys.exit(main(sys.argv[1:]))"
    out = str(folder / "none.csv")
    done = run_python(
        "-c",
        code,
        "classify",
        str(folder / "photos"),
        "--model",
        str(folder / "net.fmn"),
        "--engine",
        "ray",
        "--out",
        out,
    )
    assert done.returncode == 1
    assert "pip install 'fastmobilenet[ray]'" in done.stderr


# --- Ray --------------------------------------------------------------------------------------------------

RAY = """
import json, os, signal, sys, threading, time
import ray, ray.data
from fastmobilenet import distributed
from fastmobilenet.distributed import RayMapper

folder = sys.argv[1]
ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR", object_store_memory=10**8)
ray.data.DataContext.get_current().enable_progress_bars = False
paths = sorted(os.path.join(folder, "photos", name) for name in os.listdir(folder + "/photos"))

class Told(RayMapper):
    # Leaves its process number, and dawdles if it is to be killed.

    def __init__(self, kind, *args, **options):
        super().__init__(*args, **options)
        self.kind = kind

    def __call__(self, batch):
        open(f"{folder}/{self.kind}-{os.getpid()}-{distributed._ray_cpus()}", "a").close()
        if self.kind == "killed":
            time.sleep(0.3)
        return super().__call__(batch)

def killer():
    while not (found := [name for name in os.listdir(folder) if name.startswith("killed-")]):
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(int(found[0].split("-")[1]), signal.SIGKILL)

rows = {}
for kind, actors in (("alive", 1), ("killed", 2)):
    if kind == "killed":
        threading.Thread(target=killer, daemon=True).start()
    data = ray.data.from_items([{"image": path} for path in paths], override_num_blocks=10).map_batches(
        Told, fn_constructor_args=[kind, folder + "/net.fmn"], fn_constructor_kwargs={"top": 3}, batch_size=10,
        num_cpus=1, compute=ray.data.ActorPoolStrategy(size=actors))
    rows[kind] = data.take_all()
json.dump(rows, open(sys.argv[2], "w"), default=lambda v: v.tolist())
"""


def workers(folder: Path, kind: str) -> list[str]:
    """What the workers of a kind have left: kind, process number, CPUs."""
    return [path.name for path in folder.iterdir() if path.name.startswith(f"{kind}-")]


def test_ray(folder: Path, run_python: Python, tmp_path: Path) -> None:
    pytest.importorskip("ray.data")
    done = run_python("-c", RAY, str(folder), str(tmp_path / "rows.json"), timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    for kind in ("alive", "killed"):
        assert_rows(rows[kind], wanted(folder))
        assert all(name.endswith("-1") for name in workers(folder, kind))  # num_cpus
    assert len(workers(folder, "alive")) == 1
    assert len(workers(folder, "killed")) >= 3  # one came in place of the one that was killed


def test_command_with_ray(folder: Path, run_python: Python, tmp_path: Path) -> None:
    """The same file as without Ray, and what was there before is not classified again."""
    pytest.importorskip("ray.data")
    pq = pytest.importorskip("pyarrow.parquet")
    common = ["classify", "photos", "--model", "net.fmn", "--top", "3"]
    for name in ("one.parquet", "one.csv"):
        done = run_python("-m", "fastmobilenet", *common, "--out", str(tmp_path / name), cwd=folder)
        assert done.returncode == 1, done.stderr
        assert "2 of 150 failed" in done.stderr, done.stderr  # two are no pictures
    text = (tmp_path / "one.csv").read_text()
    (tmp_path / "ray.csv").write_text("".join(text.splitlines(keepends=True)[:60]))
    code = (
        "import sys, ray\n"
        "from fastmobilenet.cli import main\n"
        "ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=10**8)\n"
        "assert [main([*sys.argv[3:], '--out', out]) for out in sys.argv[1:3]] == [1, 1]\n"
    )
    outs = [str(tmp_path / name) for name in ("ray.parquet", "ray.csv")]
    done = run_python("-c", code, *outs, *common, "--engine", "ray", "--workers", "2", cwd=folder, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "ray.csv: has 59 of 150 pictures already" in done.stderr
    for bad in ("003.png", "077.png"):
        assert f"photos/{bad}: not a picture in a format" in done.stderr, done.stderr
    one, two = (pq.read_table(tmp_path / name).to_pylist() for name in ("one.parquet", "ray.parquet"))
    assert one == two
    assert len(two) == COUNT
    assert (tmp_path / "ray.csv").read_text() == text


# --- Spark ------------------------------------------------------------------------------------------------

SPARK = """
import json, os, signal, sys, threading, time
from pyspark.sql import SparkSession
from fastmobilenet import distributed
from fastmobilenet.distributed import SparkMapper

folder = sys.argv[1]
os.environ["PYSPARK_PYTHON"] = sys.executable
settings = {
    "spark.ui.enabled": "false", "spark.driver.memory": "1g", "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1", "spark.sql.execution.arrow.maxRecordsPerBatch": "10",
    "spark.sql.warehouse.dir": folder + "/spark",
}
spark = SparkSession.builder.master("local[2,4]").config(map=settings).getOrCreate()  # a task may fail three times
spark.sparkContext.setLogLevel("OFF")

class Told(SparkMapper):
    # Leaves its process number, and dawdles if it is to be killed.

    def __init__(self, kind, *args, **options):
        super().__init__(*args, **options)
        self.kind = kind

    def __call__(self, batches):
        def told():
            for batch in batches:
                open(f"{folder}/{self.kind}-{os.getpid()}-{distributed._spark_cpus()}", "a").close()
                if self.kind == "sparkkilled":
                    time.sleep(0.3)
                yield batch
        yield from super().__call__(told())

def killer():
    while not (found := [name for name in os.listdir(folder) if name.startswith("sparkkilled-")]):
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(int(found[0].split("-")[1]), signal.SIGKILL)

paths = sorted(os.path.join(folder, "photos", name) for name in os.listdir(folder + "/photos"))
df = spark.createDataFrame([(path,) for path in paths], "image string").repartition(4)
rows = {}
for kind in ("sparkalive", "sparkkilled"):
    if kind == "sparkkilled":
        threading.Thread(target=killer, daemon=True).start()
    rows[kind] = [row.asDict() for row in Told(kind, folder + "/net.fmn", top=3).map(df).collect()]
files = spark.read.format("binaryFile").load(folder + "/photos")
mapper = SparkMapper(folder + "/net.fmn", column="content", keep=["path"], outputs=["embedding"])
rows["embeddings"] = [row.asDict() for row in mapper.map(files).collect()]
json.dump(rows, open(sys.argv[2], "w"))
spark.stop()
"""


def test_spark(folder: Path, run_python: Python, tmp_path: Path) -> None:
    for module in ("pyspark", "pandas", "pyarrow"):
        pytest.importorskip(module)
    if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
        pytest.skip("Spark needs Java: apt-get install default-jre-headless")
    done = run_python("-c", SPARK, str(folder), str(tmp_path / "rows.json"), timeout=600)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "rows.json").read_text())
    for kind in ("sparkalive", "sparkkilled"):
        assert_rows(rows[kind], wanted(folder))
        assert all(name.endswith("-1") for name in workers(folder, kind))  # spark.task.cpus
    assert len(workers(folder, "sparkalive")) <= 2  # processes, for four tasks
    assert len(set(workers(folder, "sparkkilled"))) >= 2
    model = Model.load(folder / "net.fmn")
    assert len(rows["embeddings"]) == COUNT
    for row in rows["embeddings"]:
        path = row["path"].removeprefix("file:")
        if row["error"] is None:
            np.testing.assert_array_equal(np.float32(row["embedding"]), model.features(path))
        else:
            assert path.endswith(("003.png", "077.png"))
            assert row["embedding"] == []
