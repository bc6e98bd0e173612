"""bench/peers: every framework gets our very network, in the form that its own tools give it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import networks
from bench.peers import channels, runners, to_ncnn, to_onnx, to_tflite
from fastmobilenet import models
from fastmobilenet.graph import RELU6, Activation, Graph, GraphBuilder, Node, infer_shapes
from fastmobilenet.passes import optimize

from .bench_graphs import BOUNDS, NEEDS, SIZE, Layers, assert_same, family_graph, mixed_graph, output_of


@pytest.mark.parametrize("framework", [name for name in runners.RUNNERS if name in NEEDS])
def test_every_framework_computes_our_network(framework: str, tmp_path: Path) -> None:
    # PyTorch 2.15 gives all clamps behind convolutions the bounds of the first one that has run, here ReLU6.
    graph = family_graph(RELU6 if framework == "torch" else BOUNDS)
    x = networks.picture(graph, SIZE)
    assert_same(output_of(framework, graph, x, tmp_path), graph, x)


def test_all_frameworks_are_tested_or_optional() -> None:
    assert set(runners.DEFAULT) == set(NEEDS)
    assert runners.OURS in runners.DEFAULT


# --- ONNX -----------------------------------------------------------------------------------------------------------


def test_onnx_with_batch_normalisation(tmp_path: Path) -> None:
    graph = mixed_graph(batch_norm=True)
    assert any(n.op == "batch_norm" for n in graph.nodes)
    x = networks.picture(graph, SIZE)
    assert_same(output_of("onnxruntime", graph, x, tmp_path), graph, x)


def test_onnx_of_a_feature_map(tmp_path: Path) -> None:
    """A network that ends in a map has a rank-4 output, which the runner turns to NHWC; and bounds of its own, a pool
    that counts its padding but not what its last window reads behind it, channels in any order."""
    b = Layers(5)
    y = b.conv(b.add("input"), 3, 5, 3, 2, (0, 1, 2, 0), activation=Activation("clamp", -0.5, 1.0))
    y = b.pool("avg_pool2d", y, 2, 2, (0, 0, 0, 1))
    y = b.pool("avg_pool2d", y, 3, 2, (1, 1, 1, 1), count_padding=True, ceil=True)
    y = b.add("gather_channels", y, y, index=(9, 3, 4, 0))
    graph = b.build(b.add("activation", y, activation=Activation("hard_sigmoid", alpha=0.4, beta=0.3)))
    x = networks.picture(graph, (27, 14))
    assert infer_shapes(graph, 1, 27, 14)[graph.output] == (1, 4, 3, 4)
    assert_same(output_of("onnxruntime", graph, x, tmp_path), graph, x)


def onnx_ops(graph: Graph) -> Counter[str]:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(to_onnx.export(graph, graph.input_size))
    return Counter(node.op_type for node in model.graph.node if node.op_type != "Identity")


def test_onnx_nodes_are_those_of_pytorchs_exporter() -> None:
    """Its counts for torchvision's networks; for ShuffleNet with the split that torch.chunk becomes when shapes are
    known, not the arithmetic of shapes that the older exporter leaves."""
    assert onnx_ops(networks.build("mobilenet_v3_large", 0.25)) == {
        "Conv": 62, "HardSwish": 21, "Relu": 19, "Add": 10, "GlobalAveragePool": 9, "HardSigmoid": 8, "Mul": 8,
        "Flatten": 1, "Gemm": 2,
    }  # fmt: skip
    assert onnx_ops(networks.build("shufflenet_v2_x0_5")) == {
        "Conv": 56, "Relu": 37, "MaxPool": 1, "Concat": 16, "Reshape": 32, "Transpose": 16, "Split": 13,
        "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1,
    }  # fmt: skip


# --- TFLite ---------------------------------------------------------------------------------------------------------


def tflite_ops(graph: Graph, size: tuple[int, int]) -> Counter[str]:
    pytest.importorskip("flatbuffers")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    model = schema.Model.GetRootAs(to_tflite.export(graph, size))
    codes = [names[model.OperatorCodes(i).BuiltinCode()] for i in range(model.OperatorCodesLength())]
    network = model.Subgraphs(0)
    return Counter(codes[network.Operators(i).OpcodeIndex()] for i in range(network.OperatorsLength()))


def test_tflite_operators_are_those_of_tensorflows_converter() -> None:
    """Its counts for Keras' network, but for the layers behind the pool: there Keras has convolutions."""
    assert tflite_ops(networks.build("keras_mobilenet_v3_large"), (224, 224)) == {
        "CONV_2D": 47, "DEPTHWISE_CONV_2D": 15, "HARD_SWISH": 21, "ADD": 10, "MEAN": 9, "MUL": 16, "FULLY_CONNECTED": 2,
    }  # fmt: skip
    shufflenet = tflite_ops(networks.build("shufflenet_v2_x0_5"), (224, 224))
    assert {op: shufflenet[op] for op in ("SPLIT", "RESHAPE", "TRANSPOSE", "CONCATENATION", "SLICE", "GATHER")} == {
        "SPLIT": 13, "RESHAPE": 32, "TRANSPOSE": 16, "CONCATENATION": 16, "SLICE": 0, "GATHER": 0,
    }  # fmt: skip


def test_tflite_pads_only_where_it_must() -> None:
    # 19x14 after the first layer: with stride 2, (1, 1, 1, 1) is not what SAME gives for 14 columns.
    assert tflite_ops(mixed_graph(), SIZE)["PAD"] == 1
    assert tflite_ops(mixed_graph(padding_corners=False), SIZE)["PAD"] == 0
    googlenet = tflite_ops(networks.build("googlenet"), (224, 224))
    assert (googlenet["MAX_POOL_2D"], googlenet["PAD"], googlenet["PADV2"]) == (13, 1, 0)  # the 7x7 layer's


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize(
    "size, padding, ceil",
    [
        (9, (0, 0, 0, 0), True),
        (10, (0, 0, 0, 0), True),
        (10, (1, 1, 1, 1), True),
        (10, (1, 0, 2, 1), False),
        (9, "same", 0),
    ],
)
def test_tflite_average_pools(size: int, padding: Any, ceil: bool, counted: bool) -> None:
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    pytest.importorskip("flatbuffers")
    b = Layers(6)
    y = b.pool("avg_pool2d", b.add("input"), 3, 2, padding, ceil=ceil, count_padding=counted)
    graph = b.build(y)
    x = networks.picture(graph, (size, size + 1))
    model = interpreter.Interpreter(model_content=to_tflite.export(graph, (size, size + 1)), num_threads=1)
    model.allocate_tensors()
    model.set_tensor(model.get_input_details()[0]["index"], x)
    model.invoke()
    assert_same(model.get_tensor(model.get_output_details()[0]["index"]), graph, x)


def test_tflite_constants_are_aligned() -> None:
    pytest.importorskip("flatbuffers")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
    from bench.peers.tflite_file import ALIGNMENT

    content = to_tflite.export(mixed_graph(), SIZE)
    assert content[4:8] == b"TFL3"
    model = schema.Model.GetRootAs(content)
    places = []
    for i in range(1, model.BuffersLength()):
        data = model.Buffers(i).DataAsNumpy()
        places.append(data.__array_interface__["data"][0] - np.frombuffer(content, np.uint8).ctypes.data)
    assert len(places) > 10
    assert all(place % ALIGNMENT == 0 for place in places)


# --- ncnn -----------------------------------------------------------------------------------------------------------


def ncnn_rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()[2:]]


@pytest.mark.parametrize("make", [mixed_graph, family_graph])
def test_ncnn_file_is_consistent(make: Callable[[], Graph]) -> None:
    graph = make()
    text, weights = to_ncnn.export(graph, SIZE)
    magic, counts, *_ = text.splitlines()
    rows = ncnn_rows(text)
    made = [blob for row in rows for blob in row[4 + int(row[2]) : 4 + int(row[2]) + int(row[3])]]
    read = [blob for row in rows for blob in row[4 : 4 + int(row[2])]]
    assert magic == "7767517"
    assert counts.split() == [str(len(rows)), str(len(made))]
    assert len(set(made)) == len(made)
    assert sorted(read) == sorted(set(made) - {"y"})  # each blob has exactly one reader
    values = sum(v.size for n in graph.nodes for v in n.params.values())
    values += 2 * sum(np.size(n.attrs["mean"]) for n in graph.nodes if "mean" in n.attrs)
    arrays = sum("weight" in n.params for n in graph.nodes)
    assert len(weights) == 4 * (values + arrays)  # a tag before each weight array


def test_ncnn_layers_are_those_of_its_own_tools() -> None:
    """pnnx makes squeeze-and-excite of inner products; ncnnoptimize fuses a hard swish (activation 6)."""
    large, _ = to_ncnn.export(networks.build("mobilenet_v3_large", 0.25), (224, 224))
    rows = ncnn_rows(large)
    count = Counter(row[0] for row in rows)
    assert (count["InnerProduct"], count["HardSigmoid"], count["HardSwish"], count["Reshape"]) == (18, 8, 0, 0)
    assert sum("9=6" in row for row in rows) == 21
    shufflenet, _ = to_ncnn.export(networks.build("shufflenet_v2_x0_5"), (224, 224))
    count = Counter(row[0] for row in ncnn_rows(shufflenet))
    assert (count["ShuffleChannel"], count["Slice"], count["Concat"], count["Crop"]) == (16, 13, 16, 0)


# --- what has no form -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("export", [to_tflite.export, to_ncnn.export, to_onnx.export])
def test_exporters_refuse_what_they_cannot_write(export: Callable[..., Any]) -> None:
    needed = {to_tflite.export: ("flatbuffers", "ai_edge_litert"), to_onnx.export: ("onnx",)}
    for module in needed.get(export, ()):
        pytest.importorskip(module)
    fused = optimize(models.build("mobilenet_v2", width=0.35, classes=3))
    with pytest.raises(ValueError, match="fuse_residual"):
        export(fused, (32, 32))
    if export is not to_onnx.export:
        with pytest.raises(ValueError, match="fold it first"):
            export(mixed_graph(batch_norm=True), SIZE)
        with pytest.raises(ValueError, match="odd, not 4"):
            export(one_op("lrn", size=4, alpha=1.0, beta=0.5, bias=1.0), (8, 8))
    if export is to_ncnn.export:
        with pytest.raises(ValueError, match="in no other order"):
            export(one_op("gather_channels", index=(2, 0, 1)), (8, 8))
    else:
        with pytest.raises(ValueError, match="no 3x3 equal windows"):
            export(one_op("adaptive_avg_pool2d", size=(3, 3)), (8, 8))


def one_op(op: str, **attrs: Any) -> Graph:
    b = GraphBuilder()
    return b.build(b.add(op, b.add("input"), **attrs))


# --- channels -------------------------------------------------------------------------------------------------------


def take(*index: int, inputs: tuple[str, ...] = ("x",)) -> Node:
    return Node("taken", "gather_channels", inputs, {"index": index})


def test_slices_and_shuffles_are_recognised() -> None:
    assert channels.slice_of(take(3, 4, 5)) == (3, 6)
    assert channels.slice_of(take(3, 5)) is None
    assert channels.slice_of(take(0, 1, inputs=("x", "y"))) is None
    assert channels.shuffle_of(take(0, 3, 1, 4, 2, 5), 6) == 2
    assert channels.shuffle_of(take(0, 2, 4, 1, 3, 5), 6) == 3
    for others in ((0, 2, 4, 1, 5, 3), (0, 1, 2, 3, 4, 5), (1, 3, 0, 4, 2, 5), (0, 4, 1, 5, 2, 3)):
        assert channels.shuffle_of(take(*others), 6) is None
    assert channels.shuffle_of(take(0, 3, 1, 4, 2, 5), 8) is None


def test_splits_cover_a_tensor() -> None:
    b = Layers(7)
    x = b.conv(b.add("input"), 3, 6)
    pieces = [b.take(x, 2, 6), b.take(x, 0, 2), b.conv(x, 6, 3)]
    y = b.add("concat", *pieces)
    graph = b.build(b.add("concat", b.take(y, 0, 3), b.take(y, 2, 9)))  # these overlap
    found = channels.splits(graph, infer_shapes(graph, 1, 8, 8))
    assert {name: [n.name for n in nodes] for name, nodes in found.items()} == {x: [pieces[1], pieces[0]]}
    shorter = replace(graph.nodes[3], attrs={"index": (0,)})
    with_a_gap = graph.replace(nodes=(*graph.nodes[:3], shorter, *graph.nodes[4:6]), output=y)
    assert channels.splits(with_a_gap, infer_shapes(with_a_gap, 1, 8, 8)) == {}
