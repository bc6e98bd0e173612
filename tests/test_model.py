"""Model: what it returns, how it is loaded, and what it says about itself."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Graph, Model, ModelError, Prediction, Preprocess, importers
from fastmobilenet.benchmark import benchmark
from fastmobilenet.graph import GraphBuilder, count_parameters
from fastmobilenet.model import GROUP
from fastmobilenet.reference import execute

from .samples import assert_close, assert_same_bits, expected, floats, names, pixels


@pytest.fixture(scope="module")
def model(small_graph: Graph) -> Model:
    return Model.from_graph(small_graph, threads=1)


# --- results ----------------------------------------------------------------------------------------------


def test_pixels_are_normalised_as_the_model_says(make_graph: Callable[..., Graph]) -> None:
    preprocess = Preprocess(channels="bgr", mean=(10.0, 20.0, 30.0), std=(50.0, 60.0, 70.0))
    graph, x = make_graph(preprocess=preprocess), pixels(2, 32, 32, 3)
    normalised = (x[..., ::-1].astype(np.float64) - preprocess.mean) / preprocess.std
    assert_close(Model.from_graph(graph).run(x), expected(graph, normalised))


def test_preprocess_argument_replaces_that_of_the_graph(small_graph: Graph) -> None:
    preprocess = Preprocess(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
    other, x = Model.from_graph(small_graph, preprocess=preprocess), pixels(32, 32, 3)
    assert other.preprocess == preprocess
    assert_close(other.run(x), expected(small_graph, x[None] / 255.0)[0])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 1), (2, 5)])
def test_float_arrays_are_taken_as_they_are(
    make_graph: Callable[..., Graph], layout: str, size: tuple[int, int]
) -> None:
    graph, nhwc = make_graph(layout=layout), floats(3, *size, 3)
    x = nhwc.transpose(0, 3, 1, 2) if layout == "NCHW" else nhwc
    model = Model.from_graph(graph)
    assert_close(model.run(x), expected(graph, nhwc))
    assert_same_bits(model.run(x[1]), model.run(x)[1])


def test_one_picture_has_no_batch_axis_and_a_batch_has(model: Model) -> None:
    x = pixels(1, 32, 32, 3)
    assert model.run(x[0]).shape == (10,)
    assert model.run(x).shape == (1, 10)
    assert model.run([x[0]]).shape == (1, 10)
    assert model.run((x[0],)).shape == (1, 10)
    assert model.run(floats(32, 32, 3)).shape == (10,)
    assert model.run(floats(1, 32, 32, 3)).shape == (1, 10)


@pytest.mark.parametrize("x", [[], np.zeros((0, 32, 32, 3), np.uint8), np.zeros((0, 32, 32, 3), np.float32)])
def test_no_pictures_give_no_rows(model: Model, x: Any) -> None:
    assert model.run(x).shape == (0, 10)
    assert model.probabilities(x).shape == (0, 10)
    assert model.classify(x) == []


def test_paths_images_and_pixels_of_any_size_give_the_same(model: Model, tmp_path: Path) -> None:
    sizes = [(32, 32), (61, 40), (40, 61), (20, 20), (200, 33)]
    arrays = [pixels(h, w, 3, seed=h) for h, w in sizes]
    for i, array in enumerate(arrays):
        Image.fromarray(array).save(tmp_path / f"{i}.png")
    paths = [tmp_path / f"{i}.png" for i in range(len(arrays))]
    wanted = np.stack([model.run(a) for a in arrays])
    assert len({row.tobytes() for row in wanted}) == len(arrays)
    assert_same_bits(model.run(arrays), wanted)
    assert_same_bits(model.run(paths), wanted)
    assert_same_bits(model.run(tuple(str(p) for p in paths)), wanted)
    mixed: list[Any] = [paths[0], arrays[1], Image.fromarray(arrays[2]), str(paths[3]), arrays[4]]
    assert_same_bits(model.run(mixed), wanted)
    assert_same_bits(model.run(str(paths[1])), wanted[1])


def test_long_lists_run_in_groups(model: Model) -> None:
    pictures = [pixels(32, 32, 3, seed=i) for i in range(GROUP + 3)]
    assert_same_bits(model.run(pictures), model.run(np.stack(pictures)))
    with pytest.raises(TypeError, match=rf"item {GROUP + 2} is a float32 array"):
        model.run([*pictures[:-1], floats(32, 32, 3)])
    with pytest.raises(ValueError, match=rf"item {GROUP + 2} of the list"):
        model.run([*pictures[:-1], pixels(3, 32, 32)])


def test_size_of_pictures_can_be_chosen(model: Model, small_graph: Graph) -> None:
    x = pixels(48, 40, 3)
    wanted = expected(small_graph, x[None] / 127.5 - 1.0)[0]
    assert_close(model.run(x, size=(48, 40)), wanted)  # the size it has: nothing is resized
    assert not np.allclose(model.run(x), wanted)
    assert_same_bits(model.run(x, size=40), model.run(x, size=(40, 40)))
    assert model.classify(x, 1, size=(48, 40))[0].index == wanted.argmax()


@pytest.mark.parametrize(
    "size, error",
    [
        (0, ValueError),
        ((3, -1), ValueError),
        (2.5, TypeError),
        (True, TypeError),
        ((32, True), TypeError),
        ((1, 2, 3), TypeError),
        ((), TypeError),
        ("32", TypeError),
        ((32, 32.0), TypeError),
        ({32, 40}, TypeError),
        ({32: 1, 40: 1}, TypeError),
        (np.array([32.0, 32.0]), TypeError),
        (np.array(0), ValueError),
    ],
)
def test_bad_sizes(model: Model, size: Any, error: type[Exception]) -> None:
    for run in (model.run, model.probabilities, model.classify, model.profile):
        with pytest.raises(error, match="size must be"):
            run(pixels(32, 32, 3), size=size)


@pytest.mark.parametrize("size", [[40, 24], np.array([40, 24]), (np.uint8(40), np.int64(24)), range(40, 23, -16)])
def test_sizes_of_any_kind(model: Model, size: Any) -> None:
    x = pixels(48, 48, 3)
    assert_same_bits(model.run(x, size=size), model.run(x, size=(40, 24)))


def no_memory(run: Callable[[], object], message: str) -> None:
    """``run`` raises a ModelError and takes less than a megabyte for it."""
    with pytest.raises(ModelError, match=message):
        run()  # modules that it imports are not what is measured
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=message):
            run()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("x", ["none.png", pixels(32, 32, 3), pixels(2, 32, 32, 3), ["none.png", pixels(32, 32, 3)]])
def test_sizes_that_do_not_fit_are_refused_first(model: Model, x: Any) -> None:
    """Before a file is opened and memory is taken."""
    for run in (model.run, model.probabilities, model.classify, model.profile):
        no_memory(lambda run=run: run(x, size=(100_000, 100_000)), r"\(1, 100000, 100000, 3\) is too large")
    with pytest.raises(ModelError, match="too large"):
        benchmark(model, size=100_000)


def test_arrays_that_do_not_fit_are_refused_before_they_are_copied(model: Model) -> None:
    for dtype in (np.float32, ">f4"):
        x = np.broadcast_to(np.zeros(3, dtype), (2, 100_000, 100_000, 3))
        no_memory(lambda x=x: model.run(x), "too large")
    pool = GraphBuilder()
    x = pool.add("avg_pool2d", pool.add("input"), kernel=(7, 7), stride=(1, 1), padding=(0, 0, 0, 0))
    small = Model.from_graph(pool.build(x, input_size=(7, 7)))
    for size in (6, (7, 6)):
        with pytest.raises(ModelError, match="use a larger picture"):
            small.run(["none.png"], size=size)


def test_long_batches_run_in_groups(model: Model) -> None:
    """A batch that has to be copied, as one of another size has, takes memory for a group only."""
    one = pixels(40, 36, 3)
    many = np.broadcast_to(one, (GROUP * 8, 40, 36, 3))
    model.run(many[:1])
    tracemalloc.start()
    try:
        out = model.run(many)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert_same_bits(out, np.repeat(model.run(one)[None], GROUP * 8, axis=0))
    assert peak < GROUP * 2 * 32 * 32 * 3
    with pytest.raises(ValueError, match=rf"got uint8 of shape \({GROUP * 2}, 3, 40, 36\)"):
        model.run(np.zeros((GROUP * 2, 3, 40, 36), np.uint8))


def test_size_is_not_for_arrays(model: Model) -> None:
    with pytest.raises(ValueError, match="size applies to pictures"):
        model.run(floats(32, 32, 3), size=32)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_output_larger_than_a_pixel_keeps_its_layout(make_graph: Callable[..., Graph], layout: str) -> None:
    whole = make_graph(layout=layout)
    graph = Graph(whole.nodes[:6], "add", input_size=(32, 32), input_layout=layout)
    model, x = Model.from_graph(graph), pixels(2, 32, 32, 3)
    nhwc = execute(graph, x / 127.5 - 1.0)["add"]
    wanted = nhwc.transpose(0, 3, 1, 2) if layout == "NCHW" else nhwc
    assert model.classes is None
    assert_close(model.run(x), wanted)
    assert model.run(x).flags.c_contiguous
    assert model.run(x[0]).shape == wanted.shape[1:]
    with pytest.raises(ValueError, match="no classifier"):
        model.classify(x)


def test_nan_goes_in_and_comes_out(model: Model) -> None:
    x = floats(2, 32, 32, 3)
    x[0, 5, 5, 0] = np.nan
    out = model.run(x)
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()
    assert all(np.isnan(p.score) for p in model.classify(x)[0])


# --- classes and probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("softmax", [False, True])
def test_softmax_is_applied_exactly_once(make_graph: Callable[..., Graph], softmax: bool) -> None:
    """T15."""
    x = pixels(3, 32, 32, 3)
    logits = expected(make_graph(), x / 127.5 - 1.0)
    wanted = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    model = Model.from_graph(make_graph(softmax=softmax))
    probabilities = model.probabilities(x)
    assert probabilities.dtype == np.float32
    assert np.allclose(probabilities, wanted, atol=1e-5)
    assert np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)
    assert np.allclose(model.run(x), wanted if softmax else logits, atol=1e-4 * np.abs(logits).max())
    scores = [[p.score for p in row] for row in model.classify(x, top=10)]
    assert scores == np.sort(probabilities, axis=1)[:, ::-1].tolist()


def test_large_logits_do_not_overflow(make_graph: Callable[..., Graph]) -> None:
    graph = make_graph()
    last = graph[graph.output]
    params = {**last.params, "bias": np.arange(10, dtype=np.float32) * 1000}
    huge = graph.replace(nodes=(*graph.nodes[:-1], type(last)(last.name, last.op, last.inputs, last.attrs, params)))
    assert Model.from_graph(huge).classify(pixels(32, 32, 3), 1) == [Prediction("class 9", 9, 1.0)]


def test_classify_sorts_and_cuts(model: Model) -> None:
    x = pixels(2, 32, 32, 3)
    rows = model.classify(x, top=3)
    assert [len(row) for row in rows] == [3, 3]
    for row, logits in zip(rows, model.run(x), strict=True):
        assert [p.index for p in row] == np.argsort(-logits)[:3].tolist()
        assert [p.label for p in row] == [f"class {p.index}" for p in row]
    assert model.classify(x[0], top=3) == rows[0]
    assert len(model.classify(x[0])) == 5
    assert len(model.classify(x[0], top=99)) == 10
    assert model.classify(x, top=np.uint8(3)) == rows
    with pytest.raises(ValueError, match="top must be at least 1, not 0"):
        model.classify(x, top=0)
    for top in (2.5, True, "3", None, [3], np.float32(3), np.array([1, 2])):
        with pytest.raises(TypeError, match="top must be a whole number, not "):
            model.classify("none.png", top=top)  # before the file is looked for


def test_equal_scores_are_in_the_order_of_the_classes(make_graph: Callable[..., Graph]) -> None:
    graph = make_graph()
    last = graph[graph.output]
    params = {k: np.zeros_like(v) for k, v in last.params.items()}
    flat = graph.replace(nodes=(*graph.nodes[:-1], type(last)(last.name, last.op, last.inputs, last.attrs, params)))
    assert [p.index for p in Model.from_graph(flat).classify(pixels(32, 32, 3), top=10)] == list(range(10))


# --- loading ----------------------------------------------------------------------------------------------


def test_int8_needs_a_quantised_file(model_file: str) -> None:
    with pytest.raises(ModelError, match="quantize"):
        Model.load(model_file, precision="int8")


def test_load_passes_its_options_on(model_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(model_file, precision="fp32", threads=3, preprocess=Preprocess(channels="bgr"))
    assert (model.name, model.threads, model.preprocess.channels) == ("small", 3, "bgr")
    seen = []
    load = importers.load
    monkeypatch.setattr(importers, "load", lambda path, **options: (seen.append((path, options)), load(path))[1])
    Model.load(Path(model_file), arch="mobilenet_v1")
    Model.load(Path(model_file), precision="fp32")
    assert seen == [
        (model_file, {"arch": "mobilenet_v1", "quantized": True}),
        (model_file, {"arch": None, "quantized": False}),
    ]


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"precision": "fp16"}, ModelError, "fp32"),
        ({"precision": "double"}, ValueError, "fp32, fp16, int8"),
        ({"precision": np.array(["fp32", "int8"])}, TypeError, "precision must be a string or None, not ndarray"),
        ({"threads": 0}, ValueError, "threads must be 1 to [0-9]+, not 0"),
        ({"threads": -1}, ValueError, "not -1"),
        ({"threads": 10**9}, ValueError, "not 1000000000"),
        ({"threads": 1.5}, TypeError, "threads must be a whole number"),
        ({"threads": True}, TypeError, "threads must be a whole number or None, not True"),
        ({"threads": np.True_}, TypeError, "threads must be a whole number"),
        ({"threads": "2"}, TypeError, "threads must be a whole number"),
        ({"threads": np.array([1, 2])}, TypeError, "threads must be a whole number"),
        ({"preprocess": "imagenet"}, TypeError, "preprocess must be a fastmobilenet.Preprocess, not str"),
    ],
)
def test_bad_options(model_file: str, options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Model.load(model_file, **options)


def test_sources_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.tflite"):
        Model.load(tmp_path / "none.tflite")
    with pytest.raises(ModelError, match=r"architecture.*arch=.squeezenet1_1."):
        Model.load("squeezenet1_1")
    if os.name == "posix" and os.geteuid() != 0:
        (tmp_path / "closed").mkdir(mode=0)
        with pytest.raises(PermissionError, match=r"net\.tflite"):
            Model.load(tmp_path / "closed" / "net.tflite")
    with pytest.raises(TypeError, match="path of a model file, not int"):
        Model.load(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be a fastmobilenet\.Graph"):
        Model.from_graph("mobilenet_v2")  # type: ignore[arg-type]


def test_default_threads_come_from_the_environment(small_graph: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("FASTMOBILENET_NUM_THREADS", raising=False)
    assert Model.from_graph(small_graph).threads == 3
    monkeypatch.setenv("FASTMOBILENET_NUM_THREADS", "2")
    assert Model.from_graph(small_graph).threads == 2
    assert Model.from_graph(small_graph, threads=np.int64(4)).threads == 4
    for text in ("\u00b2", "-1", "2.0", "0", "two"):
        monkeypatch.setenv("FASTMOBILENET_NUM_THREADS", text)
        with pytest.raises(ValueError, match=f"FASTMOBILENET_NUM_THREADS must be a positive number, not '{text}'"):
            Model.from_graph(small_graph)


def test_repr_says_what_it_is(small_graph: Graph) -> None:
    model = Model.from_graph(small_graph.replace(labels=names(10)), threads=2)
    text = repr(model)
    for part in (
        "small",
        "32x32x3 -> 10 classes with names",
        f"{count_parameters(small_graph) / 1e6:.2f} M parameters",
        small_graph.preprocess.describe(),
        "float32 (height, width, 3)",
        "fp32, 2 threads",
        model.isa,
    ):
        assert part in text
    assert "fp32, 1 thread, " in repr(Model.from_graph(small_graph, threads=1))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"batch": 0}, ValueError, "batch must be at least 1"),
        ({"batch": 1.5}, TypeError, "batch must be a whole number, not 1.5"),
        ({"batch": 10**20}, MemoryError, "a batch of 100000000000000000000 pictures"),
        ({"size": 2.5}, TypeError, "size must be one whole number"),
        ({"seconds": 0}, ValueError, "seconds must be above 0"),
        ({"seconds": float("nan")}, ValueError, "seconds must be above 0"),
    ],
)
def test_benchmark_checks_its_arguments(
    model: Model, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        benchmark(model, **options)
