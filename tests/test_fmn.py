"""Files in the format .fmn: what goes in comes out, bit for bit, soon, and the file on disk may change afterwards."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import Graph, Model, ModelError, attributes, fmn, importers, models
from fastmobilenet.activation import ACTIVATIONS, Activation
from fastmobilenet.graph import OPS, GraphBuilder, Node
from fastmobilenet.importers.fmn import load as read
from fastmobilenet.passes import optimize
from fastmobilenet.quantization import Quant
from fastmobilenet.reference import execute

from .fmn_files import detector, edit, everything, quantised, reseal, to_bytes
from .samples import assert_same_bits, names, pixels


def assert_same_graph(a: Graph, b: Graph) -> None:
    """Equal in all but the types of numbers that are equal, NumPy's and Python's."""
    for field in dataclasses.fields(Graph):
        if field.name != "nodes":
            assert getattr(a, field.name) == getattr(b, field.name), field.name
    assert len(a.nodes) == len(b.nodes)
    for x, y in zip(a.nodes, b.nodes, strict=True):
        assert (x.name, x.op, x.inputs) == (y.name, y.op, y.inputs)
        assert list(x.attrs) == list(y.attrs)
        assert list(x.params) == list(y.params)
        for key in x.params:
            assert_same_bits(x.params[key], y.params[key])
        for key, value in x.attrs.items():
            if isinstance(value, np.ndarray):
                assert_same_bits(value, y.attrs[key])
            else:
                assert value == y.attrs[key]
                assert isinstance(y.attrs[key], (bool, int, float, str, tuple, Activation, Quant, type(None)))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "net.fmn"


# --- what goes in comes out -------------------------------------------------------------------------------


def test_the_samples_have_every_op_and_every_attribute() -> None:
    nodes = (*everything().nodes, *quantised().nodes, *detector().nodes)
    assert {n.op for n in nodes} == set(OPS)
    for op, kinds in attributes.ATTRIBUTES.items():
        found = {key for n in nodes if n.op == op for key in n.attrs}
        unused = {"quant"} if op == "input" else {"weight_zero"} if op == "conv2d" else set()
        assert found == set(kinds) - unused, op
    assert {n.activation.kind for n in nodes if n.activation} == set(ACTIVATIONS)


def test_every_op_has_its_attributes_listed() -> None:
    """Whoever adds an op or a required attribute is told here that files must know it."""
    assert set(attributes.ATTRIBUTES) == set(OPS)
    for op, spec in OPS.items():
        assert set(spec.required) <= set(attributes.ATTRIBUTES[op])


@pytest.mark.parametrize("sample", [everything, quantised, detector])
def test_round_trip(path: Path, sample: Callable[[], Graph]) -> None:
    graph = sample()
    size = fmn.save(graph, path)
    assert size == path.stat().st_size
    again = importers.load(path)
    assert_same_graph(graph, again)
    x = np.random.default_rng(0).normal(size=(2, *graph.input_size, 3))
    assert_same_bits(execute(graph, x)[graph.output], execute(again, x)[again.output])
    data = path.read_bytes()
    assert data == to_bytes(again)  # the same graph, the same bytes
    assert read(data).labels == graph.labels


def test_arrays_are_views_of_the_file(path: Path) -> None:
    """But for those of attributes, which a Model keeps."""
    data = to_bytes(everything())
    start = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    for node in read(data).nodes:
        for array in node.params.values():
            assert start <= array.__array_interface__["data"][0] < start + len(data)
            assert (array.__array_interface__["data"][0] - start) % array.itemsize == 0
            assert not array.flags.writeable
        for value in node.attrs.values():
            assert not isinstance(value, np.ndarray) or value.base is None


@pytest.mark.parametrize(
    "number", [0.1, 1e-5, 5e-324, 1.7976931348623157e308, -0.0, 2 / 3, math.pi, np.float32(1e-3), 7, np.int64(7)]
)
def test_numbers_keep_their_bits(number: Any) -> None:
    b = GraphBuilder()
    x = b.add("lrn", b.add("input"), size=np.int32(3), alpha=number, beta=-number, bias=number)
    found = read(to_bytes(b.build(x, input_size=(2, 2)))).nodes[1].attrs
    assert (found["alpha"], found["beta"], found["bias"]) == (number, -number, number)
    assert math.copysign(1, found["alpha"]) == math.copysign(1, number)
    assert type(found["alpha"]) is (int if isinstance(number, (int, np.integer)) else float)
    assert type(found["size"]) is int


@pytest.mark.parametrize(
    "activation",
    [
        Activation("clamp"),
        Activation("clamp", -0.0, 6.0),
        Activation("clamp", hi=1e-45),
        Activation("clamp", math.inf, math.inf),
        Activation("hard_swish", alpha=0.16666667, beta=np.float32(0.1)),
    ],
)
def test_activations_keep_their_bits(activation: Activation) -> None:
    b = GraphBuilder()
    graph = b.build(b.add("activation", b.add("input"), activation=activation), input_size=(2, 2))
    assert read(to_bytes(graph)).nodes[1].activation == activation


@pytest.mark.parametrize("dtype", ["f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?", ">f4", ">i2"])
def test_dtypes(dtype: str) -> None:
    values = np.array([[0, 1, 1, 0, 1]] * 3, dtype)
    b = GraphBuilder()
    graph = b.build(b.add("dense", b.add("input"), params={"weight": values[:, :3]}), input_size=(1, 1))
    found = read(to_bytes(graph)).nodes[1].params["weight"]
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(found, values[:, :3])


def test_arrays_of_any_strides_and_shapes() -> None:
    ghost = np.broadcast_to(np.float32(2), (4, 3, 3, 3))
    b = GraphBuilder()
    params = {"weight": ghost, "bias": np.arange(8, dtype=np.float32)[::2], "scale": np.float32(3), "none": ghost[:0]}
    x = b.add("conv2d", b.add("input"), params=params, stride=[1, 1], padding="same")
    found = read(to_bytes(b.build(x, input_size=(4, 4)))).nodes[1]
    assert found.attrs["stride"] == (1, 1)
    for key, value in params.items():
        assert_same_bits(found.params[key], np.array(value))


def test_names_that_would_be_one() -> None:
    b = GraphBuilder()
    weight = np.ones((3, 3), np.float32)
    x = b.add("dense", b.add("input"), name="a", params={"b.weight": 2 * weight, "weight": weight})
    x = b.add("dense", x, name="a.b", params={"weight": 3 * weight})
    found = read(to_bytes(b.build(x, input_size=(1, 1))))
    assert [float(v.mean()) for n in found.nodes for v in n.params.values()] == [2.0, 1.0, 3.0]


@pytest.mark.parametrize("labels", [None, (), names(4)])
def test_labels(labels: tuple[str, ...] | None) -> None:
    assert read(to_bytes(everything(labels=labels))).labels == labels


def test_the_original_library_reads_it(path: Path) -> None:
    library = pytest.importorskip("safetensors")
    graph = everything()
    fmn.save(graph, path)
    with library.safe_open(path, "np") as file:
        assert json.loads(file.metadata()["graph"])["name"] == graph.name
        assert set(file.metadata()) == {"checksum", "fastmobilenet", "graph", "preprocess", "labels"}
        assert_same_bits(file.get_tensor("stem.weight"), graph["stem"].params["weight"])
        assert len(list(file.keys())) == sum(len(n.params) for n in graph.nodes) + 2


# --- Model ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.from_graph(models.build("mobilenet_v2", width=0.35, classes=10, labels=names(10)))


def test_a_saved_model_gives_the_same_bits(model: Model, path: Path) -> None:
    model.save(path)
    again = Model.load(path)
    x = pixels(2, 96, 80, 3)
    assert_same_bits(model.run(x, size=(96, 80)), again.run(x, size=(96, 80)))
    assert (again.labels, again.preprocess, again.name) == (model.labels, model.preprocess, model.name)
    assert again.classify(x[0]) == model.classify(x[0])
    first = path.read_bytes()
    again.save(path)
    assert path.read_bytes() == first


def test_a_saved_source_gives_the_same_bits(path: Path) -> None:
    """The graph as an importer makes it, with its batch norms."""
    graph = models.build("mobilenet_v1", width=0.25, classes=10)
    fmn.save(graph, path)
    assert any(n.op == "batch_norm" for n in importers.load(path).nodes)
    x = pixels(1, 64, 64, 3)
    assert_same_bits(Model.load(path).run(x, size=64), Model.from_graph(graph).run(x, size=64))


def test_optimising_twice_changes_nothing(model: Model) -> None:
    """What save() relies on: the graph of a Model is optimised, and so is what is loaded."""
    assert_same_graph(optimize(model.graph), model.graph)


def test_options_of_load(model: Model, path: Path) -> None:
    model.save(path)
    assert Model.load(path, labels=names(10)[::-1]).labels == names(10)[::-1]
    assert Model.load(path, labels=()).labels is None
    with pytest.raises(ModelError, match="holds its own network; arch"):
        Model.load(path, arch="mobilenet_v2")


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's list of mappings")
@pytest.mark.parametrize("bytes_", [False, True], ids=["floats", "bytes"])
def test_a_model_keeps_nothing_of_the_file(bytes_: bool, path: Path) -> None:
    fmn.save(quantised() if bytes_ else everything(), path)

    def mapped() -> bool:
        return str(path) in Path("/proc/self/maps").read_text()

    graph = importers.load(path)
    assert mapped()
    del graph
    assert not mapped()
    again = Model.load(path)
    assert not mapped()
    again.save(path)  # what it needs for that, it reads
    assert not mapped()
    assert again.classes == (5 if bytes_ else 4)


@pytest.mark.parametrize("error", [OSError(19, "No such device"), ValueError("cannot mmap an empty file")])
def test_files_that_cannot_be_mapped_are_read(path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise error

    fmn.save(everything(), path)
    monkeypatch.setattr("mmap.mmap", refuse)
    assert_same_graph(everything(), importers.load(path))


TRUNCATED = """
import os, sys
import numpy as np
from fastmobilenet import Model
path = sys.argv[1]
model = Model.load(path)
x = np.zeros((64, 64, 3), np.uint8)
before = model.run(x, size=64)
os.truncate(path, 0)
after = model.run(x, size=(64, 64))
model.save(path)
print(np.array_equal(before, after), np.array_equal(before, Model.load(path).run(x, size=64)))
"""


def test_a_file_that_is_cut_off_under_a_model(model: Model, path: Path, run_python: Callable[..., Any]) -> None:
    """In another process: one that reads a page which is no longer there is killed."""
    model.save(path)
    done = run_python("-c", TRUNCATED, str(path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "True True\n", "")


DAMAGED = """
import os, pickle, sys
import numpy as np
from fastmobilenet import Model, ModelError
path = sys.argv[1]
model = Model.load(path)
x = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
sizes = (6, 6), (9, 7)
wanted = [Model.load(path).run(x, size=size).tobytes() for size in sizes]
whole = open(path, "rb").read()

def change(data):
    with open(path, "r+b") as file:  # the same file, not another one of its name
        file.truncate(0)
        file.write(data)

for data in (b"", whole[:-1], whole[:200], whole[:-3] + b"abc", open(sys.argv[2], "rb").read()):
    change(data)
    for use in (lambda: model.save(sys.argv[3]), lambda: model.graph, lambda: pickle.dumps(model)):
        try:
            use()
        except ModelError as error:
            assert f"{path} was changed in place" in str(error), error
        else:
            print("no error with", len(data), "bytes")
print(wanted == [model.run(x, size=size).tobytes() for size in sizes], os.path.exists(sys.argv[3]))
change(whole)
model.save(sys.argv[3])
print(open(sys.argv[3], "rb").read() == whole)
"""


def test_a_file_of_bytes_that_is_changed_under_a_model(path: Path, run_python: Callable[..., Any]) -> None:
    """The weights are in the file only: the Model runs on, and nothing that is not its own is written for it. In
    another process, which would be killed."""
    Model.from_graph(quantised()).save(path)
    other, saved = path.with_name("other.fmn"), path.with_name("saved.fmn")
    fmn.save(quantised(labels=names(5)), other)
    done = run_python("-c", DAMAGED, str(path), str(other), str(saved))
    assert (done.returncode, done.stdout, done.stderr) == (0, "True False\nTrue\n", "")


def test_weights_of_bytes_come_back_from_a_file_that_was_replaced(path: Path) -> None:
    fmn.save(quantised(), path)
    model, wanted = Model.load(path), Model.from_graph(quantised()).graph
    head = model.with_head(np.ones((2, 12)), labels=names(2))  # shares what it does not change
    fmn.save(everything(), path)
    assert_same_graph(model.graph, wanted)
    assert_same_graph(head.graph, Model.from_graph(quantised()).with_head(np.ones((2, 12)), labels=names(2)).graph)
    path.unlink()
    model.save(path)
    assert_same_graph(Model.load(path).graph, wanted)


def test_a_file_that_is_replaced_under_its_arrays(model: Model, path: Path) -> None:
    fmn.save(everything(), path)
    graph = importers.load(path)
    model.save(path)
    assert_same_graph(everything(), graph)


@pytest.mark.timing
def test_loading_takes_milliseconds(path: Path) -> None:
    """MobileNetV2 in 9 ms on two cores of Zen 5 and 16 on those of Emerald Rapids, where it takes 28 while the other
    half of the core works for somebody else. The bound leaves room for that."""
    Model.from_graph(models.build("mobilenet_v2")).save(path)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        Model.load(path)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


# --- versions and other files -----------------------------------------------------------------------------


def test_a_newer_version_is_refused() -> None:
    def newer(header: dict[str, Any]) -> None:
        header["__metadata__"]["fastmobilenet"] = "3"

    with pytest.raises(ModelError, match=r"m.fmn is not .* written by a newer fastmobilenet, in version 3 .* up to 2:"):
        read(edit(to_bytes(everything()), newer), "m.fmn")


def test_the_name_of_the_file_does_not_count(path: Path) -> None:
    fmn.save(everything(), path)
    other = path.with_suffix(".safetensors")
    path.rename(other)
    assert_same_graph(everything(), importers.load(other))


def test_other_safetensors_are_state_dicts(path: Path) -> None:
    data = edit(to_bytes(everything()), lambda header: header["__metadata__"].pop("fastmobilenet"))
    path.write_bytes(data)
    with pytest.raises(ModelError, match="holds weights only; say with arch="):
        importers.load(path)


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"\x10" + bytes(7) + b"{", b"PK\x03\x04" + bytes(50)])
def test_other_content_under_this_name(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"net.fmn is not a valid .fmn file"):
        importers.load(path)


# --- what is not written ----------------------------------------------------------------------------------


def node(op: str, **attrs: Any) -> Node:
    return Node("n", op, ("x",), attrs)


@pytest.mark.parametrize(
    "bad, reason",
    [
        (node("softmax", axis=1), "softmax has no attribute 'axis'; it has quant"),
        (node("lrn", size=5, alpha=math.nan, beta=1.0, bias=1.0), "alpha is nan; expected a finite number"),
        (node("lrn", size=True, alpha=1.0, beta=1.0, bias=1.0), "size is True; expected a whole number from 1 to"),
        (node("activation", activation="relu"), "activation is 'relu'; expected an activation"),
        (node("activation", activation=None), "expected an activation"),
        (node("gather_channels", index=(0, 1.5)), "expected channel numbers"),
        (node("adaptive_avg_pool2d", size=(1, 0)), "expected two whole numbers"),
        (node("max_pool2d", kernel=(2, 2), stride=(1, 1), padding="valid"), "padding is 'valid'; expected \"same\""),
        (node("lrn", size=5, alpha=1.0, beta=1.0), "lrn needs 'bias'"),
        (Node("n", "dense", ("x",), {}, {"weight": np.ones((2, 12), "c8")}), "'n.weight' has dtype complex64"),
        (Node("n", "dense", ("x",), {}, {"weight": np.ones((2, 5), "f4")}), "does not fit an input of 12 values"),
    ],
)
def test_graphs_that_no_file_can_hold(bad: Node, reason: str, path: Path) -> None:
    graph = Graph((Node("x", "input"), bad), "n", input_size=(2, 2))
    with pytest.raises(ModelError) as caught:
        fmn.save(graph, path)
    assert reason in str(caught.value)
    assert not path.exists()


def test_the_helpers_of_these_tests() -> None:
    data = to_bytes(everything())
    assert reseal(data) == data
    assert_same_graph(everything(), read(edit(data, lambda header: None)))
