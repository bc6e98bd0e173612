"""Damaged and hostile .fmn files: a ModelError, or a network that runs, soon and in little memory.

Accidents are told by the checksum. What a file with a right checksum may hold is tested with files that are sealed
again after they were changed.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmobilenet import Graph, ModelError, fmn, importers
from fastmobilenet.attributes import MAX_NODES
from fastmobilenet.graph import GraphBuilder
from fastmobilenet.importers.fmn import load as read
from fastmobilenet.importers.safetensors import MAX_HEADER

from .fmn_files import detector, edit, everything, quantised, reseal, to_bytes
from .test_loader_robustness import check, flips, patience, try_to_load

SAMPLES = {"floats": to_bytes(everything()), "bytes": to_bytes(quantised()), "detector": to_bytes(detector())}
DATA = SAMPLES["floats"]


def header_size(data: bytes) -> int:
    return 8 + int(struct.unpack_from("<Q", data)[0])


HEADER = header_size(DATA)


def load(data: bytes | bytearray) -> Graph:
    return read(data)


# --- accidents --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES)
def test_the_samples_load(sample: str) -> None:
    data = SAMPLES[sample]
    assert check([data, bytearray(data), memoryview(data)], load=load) == (3, 0)  # type: ignore[list-item]


def test_every_prefix_is_refused() -> None:
    assert check((DATA[:n] for n in range(len(DATA))), load=load, trace=False) == (0, len(DATA))


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_every_flipped_byte_is_refused(mask: int) -> None:
    """All but the spaces behind the header and the size of it, which must fit them, hold information."""
    assert len(DATA) < 10_000
    assert check(flips(DATA, range(len(DATA)), (mask,)), load=load, trace=False) == (0, len(DATA))


@pytest.mark.parametrize("start", [0, 8, HEADER, HEADER + 1000])
@pytest.mark.parametrize("length", [1, 512, 4096, None])
def test_a_part_that_was_never_written_is_refused(start: int, length: int | None) -> None:
    end = len(DATA) if length is None else min(start + length, len(DATA))
    data = DATA[:start] + bytes(end - start) + DATA[end:]
    assert data != DATA
    assert check([data], load=load) == (0, 1)


def test_pages_of_a_large_file(tmp_path: Path) -> None:
    """A page that is missing, twice there, or that of another file."""
    b = GraphBuilder()
    weight = np.random.default_rng(0).normal(size=(100, 300)).astype(np.float32)
    data = to_bytes(b.build(b.add("dense", b.add("input"), params={"weight": weight}), input_size=(10, 10)))
    path = tmp_path / "net.fmn"
    for place, content in ((4096, data[8192:12288]), (40960, bytes(4096)), (len(data) - 4096, data[:4096])):
        path.write_bytes(data[:place] + content + data[place + 4096 :])
        with pytest.raises(ModelError, match="checksum is not that of its content"):
            importers.load(path)
    path.write_bytes(data)
    assert importers.load(path).nodes[1].params["weight"].tobytes() == weight.tobytes()


# --- files with a right checksum --------------------------------------------------------------------------


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_changed_byte_of_the_header(sample: str, pytestconfig: pytest.Config) -> None:
    data, slow = SAMPLES[sample], pytestconfig.getoption("--slow")
    places = range(0, min(header_size(data), 4096), 1 if slow or patience() < 4 else 13)
    masks = tuple(1 << bit for bit in range(8)) if slow else (0x01,)
    loaded, refused = check(map(reseal, flips(data, places, masks)), trace=False, load=load)
    assert refused > len(places) // 3
    assert loaded > len(places) // 20  # digits, letters of names


def test_every_prefix_of_the_header() -> None:
    """The header is cut and its size made to fit."""
    cuts = (struct.pack("<Q", n) + DATA[8 : 8 + n] + DATA[HEADER:] for n in range(0, HEADER - 8, 3))
    loaded, refused = check(map(reseal, cuts), trace=False, load=load)
    assert loaded <= 22  # what lacks some of the spaces at the end
    assert refused > 1000


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(st.tuples(st.integers(8, HEADER - 1), st.sampled_from(list(b'0123456789-.eE"[]{},:ntf ')))))
def test_several_changes_at_once(changes: list[tuple[int, int]]) -> None:
    data = bytearray(DATA)
    for place, char in changes:
        data[place] = char
    try_to_load(reseal(data), load=load)


#: Values in the place of every other one.
STRANGE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2, 3, 1024, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308, 5e-324, "", "x", "same", "conv2d",
    "stem", "input", [], [1], [1, 1], [0, 0, 0, 0], [1e9, 1e9], ["x"], [[]], [None], {}, {"float": "nan"},
    {"float": "inf"}, {"tensor": "stem.weight"}, {"tensor": "image.std"}, {"tensor": 1}, {"scale": 0.5, "zero": 3},
    {"scale": 0.0, "zero": 3}, {"scale": 1e300, "zero": 256}, {"scale": [], "zero": -1}, {"activation": "swish"},
    {"activation": "clamp", "lo": 1, "hi": 0, "alpha": 1, "beta": 1},
    {"activation": "clamp", "lo": {"float": "-inf"}, "hi": 10**300, "alpha": 1, "beta": 1},
    {"activation": [], "lo": 0, "hi": 0, "alpha": 1, "beta": 1},
    {"activation": "swish", "lo": {"float": "-inf"}, "hi": {"float": "inf"}, "alpha": {"float": "nan"}, "beta": "1"},
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a JSON document."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


@pytest.mark.parametrize("sample", SAMPLES)
def test_every_value_made_strange(sample: str, pytestconfig: pytest.Config) -> None:
    data = SAMPLES[sample]
    found: list[tuple[Any, ...]] = []
    edit(data, lambda header: found.extend(places(header)))
    values = STRANGE if pytestconfig.getoption("--slow") else STRANGE[::5]

    def strange() -> Iterator[bytes]:
        for i, path in enumerate(found):
            for value in (*values, STRANGE[i % len(STRANGE)], "gone"):

                def change(header: Any, path: tuple[Any, ...] = path, value: Any = value) -> None:
                    for key in path[:-1]:
                        header = header[key]
                    if value == "gone":
                        del header[path[-1]]
                    else:
                        header[path[-1]] = value

                yield edit(data, change)

    every = slice(None, None, 1 if patience() < 4 else 29)
    loaded, refused = check(list(strange())[every], trace=False, run=False, load=load)
    assert refused > 4 * loaded > 100


# --- reasons ----------------------------------------------------------------------------------------------


def of_graph(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["__metadata__"]["graph"].update(changes)


def of_metadata(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["__metadata__"].update(changes)


def of_node(index: int, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda header: header["__metadata__"]["graph"]["nodes"][index].update(changes)


STRIDES = {"stride": [1, 1], "padding": "same"}

REASONS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no graph": (lambda header: header["__metadata__"].pop("graph"), "its metadata has no graph"),
    "no checksum": (lambda header: header["__metadata__"].pop("checksum"), "checksum '' must have 64"),
    "version": (of_metadata(fastmobilenet="one"), "the version as 'one'"),
    "version 0": (of_metadata(fastmobilenet="0"), "the version as '0'"),
    "unknown metadata": (of_metadata(author="me"), "its metadata holds 'author', which is unknown"),
    "labels": (of_metadata(labels={"0": "cat"}), "the labels must be a list"),
    "preprocess": (of_metadata(preprocess=[]), "the preprocessing must have channels, crop_fraction"),
    "preprocess value": (
        lambda header: header["__metadata__"]["preprocess"].update(resize="zoom"),
        "the preprocessing: resize must be one of",
    ),
    "graph list": (of_metadata(graph=[]), "the graph must be an object, not []"),
    "graph field": (of_graph(author="me"), "the graph: 'author' is unknown"),
    "nodes": (of_graph(nodes={}), "the graph: nodes is {}; expected a list"),
    "no nodes": (of_graph(nodes=[]), "output 'softmax' is not a node"),
    "output": (of_graph(output=None), "output is None; expected text"),
    "layout": (of_graph(input={"size": [1, 1], "channels": 3, "layout": "CHWN"}), "must be NCHW or NHWC"),
    "size": (of_graph(input={"size": [1.0, 1], "channels": 3, "layout": "NHWC"}), "size is [1.0, 1]"),
    "channels": (of_graph(input={"size": [1, 1], "channels": True, "layout": "NHWC"}), "channels is True"),
    "no channels": (of_graph(input={"size": [1, 1], "channels": 0, "layout": "NHWC"}), "and 0 channels"),
    "huge": (of_graph(input={"size": [2**20, 2**20], "channels": 3, "layout": "NHWC"}), "is too large"),
    "node": (of_graph(nodes=[1]), "a node must be an object, not 1"),
    "op": (of_node(1, op="conv3d"), "op 'conv3d' is unknown"),
    "op list": (of_node(1, op=[]), "op is []; expected text"),
    "twice": (of_node(2, name="stem"), "'stem' appears twice"),
    "inputs": (of_node(1, inputs=[0]), "inputs is [0]; expected names"),
    "later": (of_node(1, inputs=["softmax"]), "reads 'softmax', which no earlier node makes"),
    "no input": (of_node(1, inputs=[]), "conv2d takes (1, 2) inputs, not 0"),
    "attribute": (of_node(1, attrs={"axis": 1}), "conv2d has no attribute 'axis'; it has stride"),
    "missing attribute": (of_node(1, attrs={"stride": [1, 1]}), "conv2d needs 'padding'"),
    "stride": (of_node(1, attrs=STRIDES | {"stride": [0, 1]}), "stride is (0, 1); expected two whole"),
    "stride list": (of_node(1, attrs=STRIDES | {"stride": [[1], 1]}), "stride is [1]; expected a number"),
    "groups": (of_node(1, attrs=STRIDES | {"groups": 10**400}), "expected a number"),
    "activation": (
        of_node(1, attrs=STRIDES | {"activation": {"activation": "relu"}}),
        "activation must have activation, lo, hi, alpha, beta",
    ),
    "kind": (
        of_node(1, attrs=STRIDES | {"activation": {"activation": "x", "lo": 0, "hi": 1, "alpha": 1, "beta": 1}}),
        "activation 'x' is unknown",
    ),
    "array": (of_node(1, params={"weight": "nothing"}), "array 'nothing', which is not there"),
    "array list": (of_node(1, params={"weight": []}), "array [], which is not there"),
    "unused": (of_node(1, params={"weight": "stem.weight"}), "array 'stem.bias' belongs to no node"),
    "shape": (of_node(1, params={"weight": "stem.bias", "bias": "stem.weight"}), "needs a weight of shape"),
}  # fmt: skip


WEIGHTS = {"weight": "conv2d.weight", "weight_scale": "conv2d.weight_scale", "bias": "conv2d.bias"}
LAYER = {"stride": [1, 1], "padding": "same", "quant": {"scale": 0.5, "zero": 3}}
SWISH = {"activation": "swish", "lo": {"float": "-inf"}, "hi": {"float": "inf"}, "alpha": 1.0, "beta": 0.5}

#: Of the sample of bytes, whose nodes are input, quantize, conv2d, quantize, activation, ...
REASONS_FOR_BYTES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "floats for bytes": (of_node(2, inputs=["input"]), "it reads input, of which not all are bytes"),
    "bytes for floats": (of_node(2, attrs=STRIDES), "it reads quantize, of which not all are floats"),
    "dequantize": (of_node(-1, inputs=["input"]), "it reads input, of which not all are bytes"),
    "no quant": (of_node(1, attrs={}), "quantize needs 'quant'"),
    "scale": (of_node(1, attrs={"quant": {"scale": 0.0, "zero": 0}}), "must be a positive number"),
    "zero": (of_node(1, attrs={"quant": {"scale": 1.0, "zero": 256}}), "must be 0 to 255, not 256"),
    "text": (of_node(1, attrs={"quant": {"scale": "1", "zero": 0}}), "expected a scale and a zero point"),
    "activation": (of_node(2, attrs=LAYER | {"activation": SWISH}), "a quantised layer can only clamp"),
    "weight_zero": (of_node(2, attrs=LAYER | {"weight_zero": 5}), "must be of int8, or of uint8 with a zero point"),
    "weight_scale": (of_node(2, params=WEIGHTS | {"weight_scale": "dense.bias"}), "it needs a weight_scale"),
    "bias": (of_node(2, params=WEIGHTS | {"bias": "conv2d.weight_scale"}), "its bias must be of int32, not of float32"),
}


@pytest.mark.parametrize("case", REASONS_FOR_BYTES)
def test_reasons_for_bytes(case: str) -> None:
    change, reason = REASONS_FOR_BYTES[case]

    def changed(header: dict[str, Any]) -> None:
        """With one more node, which has all arrays: one that no node has is refused too."""
        change(header)
        nodes = header["__metadata__"]["graph"]["nodes"]
        arrays = {f"p{i}": name for i, name in enumerate(header) if name != "__metadata__"}
        nodes.append({"name": "all", "op": "softmax", "inputs": ["input"], "attrs": {}, "params": arrays})

    with pytest.raises(ModelError) as caught:
        read(edit(SAMPLES["bytes"], changed))
    assert reason in str(caught.value)


@pytest.mark.parametrize("case", REASONS)
def test_reasons(case: str) -> None:
    change, reason = REASONS[case]
    with pytest.raises(ModelError) as caught:
        read(edit(DATA, change), "net.fmn")
    assert str(caught.value).startswith("net.fmn is not a valid .fmn file: ")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "the graph is not JSON"),
        ("{", "the graph is not JSON"),
        ('{"name":"a","name":"b"}', "the graph names 'name' twice"),
        ('{"name":NaN}', "the graph holds NaN"),
        ("[" * 100_000, "the graph is not JSON"),
        ('{"a":' * 900 + "1" + "}" * 900, "the graph"),
        ("[" * 900 + "]" * 900, "the graph must be an object"),
        ("9" * 10_000, "the graph"),
    ],
)
def test_json_in_the_metadata(text: str, reason: str) -> None:
    data = edit(DATA, of_metadata(graph=text), raw=True)
    with pytest.raises(ModelError) as caught:
        read(data)
    assert reason in str(caught.value)
    assert check([data], load=load) == (0, 1)


def test_lists_in_lists_in_an_attribute() -> None:
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    assert check([edit(DATA, of_node(1, attrs={"stride": deep}))], load=load) == (0, 1)


# --- large files ------------------------------------------------------------------------------------------


def described(graph: dict[str, Any], labels: list[str] | None = None) -> bytes:
    """A file without arrays."""
    size = {"size": [1, 1], "channels": 1, "layout": "NHWC"}
    metadata = {
        "checksum": fmn.NO_CHECKSUM,
        "fastmobilenet": "1",
        "graph": json.dumps({"name": "n", "output": "x0", "input": size} | graph, separators=(",", ":")),
        "preprocess": json.loads(DATA[8:HEADER])["__metadata__"]["preprocess"],
        **({} if labels is None else {"labels": json.dumps(labels)}),
    }
    text = json.dumps({"__metadata__": metadata}, separators=(",", ":")).encode()
    data = reseal(struct.pack("<Q", len(text)) + text)
    assert fmn.NO_CHECKSUM.encode() not in data
    return data


def entry(i: int, op: str, *inputs: str, **attrs: Any) -> dict[str, Any]:
    return {"name": f"x{i}", "op": op, "inputs": list(inputs), "attrs": attrs, "params": {}}


def test_as_many_nodes_as_fit() -> None:
    chain = [entry(0, "input"), *(entry(i, "softmax", f"x{i - 1}") for i in range(1, MAX_NODES + 1))]
    assert check([described({"nodes": chain[:-1]})], run=False, load=load) == (1, 0)
    assert check([described({"nodes": chain})], run=False, load=load) == (0, 1)


def test_tensors_that_grow_from_node_to_node() -> None:
    nodes = [entry(0, "input"), *(entry(i, "concat", *[f"x{i - 1}"] * 1024) for i in range(1, 100))]
    assert check([described({"nodes": nodes, "output": "x99"})], load=load) == (0, 1)


def test_long_lists() -> None:
    index = [0] * (MAX_HEADER // 4)
    files = [
        described({"nodes": [entry(0, "input"), entry(1, "gather_channels", "x0", index=index)], "output": "x1"}),
        described({"nodes": [entry(0, "input")]}, labels=["a"] * (MAX_HEADER // 9)),
        described({"nodes": [entry(0, "input"), entry(1, "add", *["x0"] * (MAX_HEADER // 9))], "output": "x1"}),
        described({"nodes": [[]] * (MAX_HEADER // 9)}),
        described({"nodes": [], "name": "n" * (MAX_HEADER - 1000)}),
    ]
    assert max(map(len, files)) > MAX_HEADER * 3 // 4
    loaded, refused = check(files, load=load)
    assert loaded + refused == len(files)


def test_a_header_beyond_the_limit_is_not_written() -> None:
    with pytest.raises(ModelError, match=f"at most {MAX_HEADER} are allowed"):
        fmn.encode(everything(labels=("x" * 1000,) * (MAX_HEADER // 1000)))


INF = {"float": "inf"}
FIRST_NODE = [
    ("input", {"mean": [1, 2]}, "mean and std need a number for each channel"),
    ("input", {"mean": [INF]}, "mean is (inf,); expected finite numbers"),
    ("input", {"std": [0]}, "std is (0,); expected finite numbers other than 0"),
    ("batch_norm", {"epsilon": INF}, "epsilon is inf; expected a finite number"),
    ("batch_norm", {"epsilon": -1e-3}, "epsilon is -0.001; expected a finite number, not negative"),
    ("lrn", {"size": 1, "alpha": INF, "beta": 1.0, "bias": 1.0}, "alpha is inf"),
    (
        "activation",
        {"activation": {"activation": "swish", "lo": {"float": "-inf"}, "hi": INF, "alpha": INF, "beta": 0}},
        "activation slope and offset must be finite",
    ),
]


@pytest.mark.parametrize("op, attrs, reason", FIRST_NODE)
def test_numbers_that_an_op_cannot_have(op: str, attrs: dict[str, Any], reason: str) -> None:
    nodes = [entry(0, "input", **attrs)] if op == "input" else [entry(0, "input"), entry(1, op, "x0", **attrs)]
    data = described({"nodes": nodes})
    with pytest.raises(ModelError) as caught:
        read(data)
    assert reason in str(caught.value)
