"""Model.map: many pictures through threads, in order, with bad ones among them."""

from __future__ import annotations

import gc
import itertools
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Graph, MapResult, Model

from .colours import make_detector
from .samples import assert_same_bits, pixels


@pytest.fixture
def model(small_graph: Graph) -> Model:
    return Model.from_graph(small_graph, threads=2)


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    """Twelve pictures of different sizes."""
    for i in range(12):
        Image.fromarray(pixels(30 + i, 50 - i, 3, seed=i)).save(tmp_path / f"{i:02}.png")
    return [str(tmp_path / f"{i:02}.png") for i in range(12)]


def workers_alive() -> int:
    return sum(t.name.startswith("fastmobilenet-map") for t in threading.enumerate())


@pytest.mark.parametrize("workers, batch", [(None, 1), (1, 1), (3, 2), (2, 5), (4, 100)])
def test_results_are_those_of_run(model: Model, paths: list[str], workers: int | None, batch: int) -> None:
    results = list(model.map(paths, workers=workers, batch=batch))
    assert [(r.index, r.source, r.error, r.ok) for r in results] == [(i, p, None, True) for i, p in enumerate(paths)]
    for result in results:
        assert_same_bits(result.output, model.run(result.source))
    assert workers_alive() == 0


def test_any_order_and_kind(model: Model, paths: list[str]) -> None:
    sources = [paths[0], Path(paths[1]), Image.open(paths[2]), pixels(32, 32, 3)]
    results = sorted(model.map(iter(sources), ordered=False), key=lambda r: r.index)
    assert [r.source for r in results[:3]] == sources[:3]
    for result in results:
        assert_same_bits(result.output, model.run(result.source))
    assert list(model.map([])) == []


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("batch", [1, 5])
def test_pictures_that_are_not_resized_to_bytes(paths: list[str], layout: str, batch: int) -> None:
    """As torchvision's detectors want them: the rows of a detector, and its boxes, are those of run."""
    graph = make_detector(layout)
    preprocess = replace(graph.preprocess, interpolation="linear", channels="bgr")
    model = Model.from_graph(graph.replace(preprocess=preprocess))
    sources = [*paths, pixels(64, 64, 3), "none.png"]
    for outputs in (None, ["boxes", "logits"]):
        results = list(model.map(sources, batch=batch, outputs=outputs))
        assert [r.ok for r in results] == [True] * 13 + [False]
        for r in results[:-1]:
            wanted = model.run(r.source, outputs=outputs)
            for name in outputs or [""]:
                assert_same_bits(r.output[name] if outputs else r.output, wanted[name] if outputs else wanted)


def test_outputs_and_size(model: Model, paths: list[str]) -> None:
    for batch in (1, 4):
        for r in model.map(paths, batch=batch, outputs=["embedding", "logits"], size=40):
            wanted = model.run(r.source, outputs=["embedding", "logits"], size=40)
            for name in ("embedding", "logits"):
                assert_same_bits(r.output[name], wanted[name])


@pytest.mark.parametrize("batch", [1, 3])
def test_bad_pictures_are_reported(model: Model, paths: list[str], tmp_path: Path, batch: int) -> None:
    (tmp_path / "torn.png").write_bytes(Path(paths[0]).read_bytes()[:100])
    sources = [paths[0], "none.png", paths[1], str(tmp_path / "torn.png"), np.zeros((3, 3), np.float32), paths[2]]
    seen: list[tuple[int, int]] = []
    results = list(model.map(sources, batch=batch, progress=lambda done, failed: seen.append((done, failed))))
    assert [r.ok for r in results] == [True, False, True, False, False, True]
    assert [type(r.error) for r in results if not r.ok] == [FileNotFoundError, ValueError, TypeError]
    assert all(r.output is None for r in results if not r.ok)
    assert_same_bits(results[5].output, model.run(paths[2]))
    assert seen == [(1, 0), (2, 1), (3, 1), (4, 2), (5, 3), (6, 3)]
    taken = []
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        taken.extend(r.index for r in model.map(sources, batch=batch, on_error="raise"))
    assert workers_alive() == 0


def test_memory_is_bounded_and_the_consumer_may_stop(model: Model) -> None:
    """An endless source is not read further than what is under way."""
    read = itertools.count()

    def endless() -> Iterator[np.ndarray]:
        while True:
            next(read)
            yield pixels(32, 32, 3)

    results = model.map(endless(), workers=2, batch=3)
    for _ in range(10):
        assert next(results).ok
    assert next(read) <= 10 + 4 * 2 * 3 + 3
    results.close()  # type: ignore[attr-defined]
    assert workers_alive() == 0
    results = model.map(endless(), workers=2)
    next(results)
    del results
    gc.collect()
    assert workers_alive() == 0


def test_an_error_of_the_source_comes_after_the_results_before_it(model: Model) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield from (pixels(32, 32, 3, seed=i) for i in range(5))
        raise RuntimeError("the camera is gone")

    results: list[MapResult] = []
    with pytest.raises(RuntimeError, match="the camera is gone"):
        results.extend(model.map(broken(), batch=2))
    assert [r.index for r in results] == [0, 1, 2, 3, 4]
    assert workers_alive() == 0


def test_pictures_are_decoded_at_the_same_time(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastmobilenet import image

    both = threading.Barrier(2)
    decode = image.decode

    def wait(source: Any) -> Any:
        both.wait(20)  # breaks if one thread decodes them all
        return decode(source)

    monkeypatch.setattr(image, "decode", wait)
    assert all(r.ok for r in model.map([pixels(32, 32, 3)] * 4, workers=2))


def test_two_maps_and_a_run_at_once(model: Model, paths: list[str]) -> None:
    wanted = [model.run(path).tobytes() for path in paths]
    for a, b, w in zip(model.map(paths), model.map(paths, workers=1), wanted, strict=True):
        assert a.output is not None and b.output is not None
        assert a.output.tobytes() == b.output.tobytes() == model.run(a.source).tobytes() == w  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "pictures, options, error, message",
    [
        ("cat.jpg", {}, TypeError, "the path of one: give a list"),
        (3, {}, TypeError, "something to iterate over, not int"),
        ([], {"workers": 0}, ValueError, "workers must be at least 1"),
        ([], {"batch": 1.5}, TypeError, "batch must be a whole number"),
        ([], {"on_error": "skip"}, ValueError, "on_error must be"),
        ([], {"outputs": ["none"]}, ValueError, "no output 'none'"),
        ([], {"size": 0}, ValueError, "size must be positive"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    model: Model, pictures: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.map(pictures, **options)
