"""ONNX files whose container is damaged or hostile: what is wrong is said, soon and in little memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmobilenet.importers import onnx
from tests.onnx_files import OnnxWriter, field, fields, tensor, varint
from tests.test_loader_robustness import check
from tests.test_onnx_refused import HUGE, ones, refuse


@pytest.mark.parametrize(
    "shape, message",
    [
        ((1, 3, 8), "input 'x' has 3 axes; it must be"),
        ((), "input 'x' has 0 axes"),
        ((1, 3, 8, -2), "an input has a dimension of -2"),
        ((1, 3, HUGE, HUGE), "is too large"),
        ((1, 3, 2**15, 2**15), r"tensor 'x': \(1, 32768, 32768, 3\)"),
        ((HUGE, 3, 8, 8), "is too large"),
        ((1, "c", 8, 8), "the input leaves the number of channels open"),
    ],
)
def test_absurd_inputs(shape: tuple[Any, ...], message: str) -> None:
    w = OnnxWriter()
    refuse(w.finish(w.op("Relu", w.input(*shape))), f".*{message}")


@pytest.mark.parametrize("dtype, name", [(2, "uint8"), (7, "int64"), (8, "string"), (0, "undefined"), (99, "type 99")])
def test_types_of_inputs(dtype: int, name: str) -> None:
    w = OnnxWriter()
    refuse(w.finish(w.op("Relu", w.input(1, 3, 8, 8, dtype=dtype))), rf"input 'x' holds {name}; supported are float32")


def test_inputs_and_outputs_are_one_each() -> None:
    w = OnnxWriter()
    y = w.op("Add", w.input(1, 3, 8, 8), w.input(1, 3, 8, 8, name="z"))
    refuse(w.finish(y), r"the output depends on 2 inputs \('x', 'z'\); one is supported")
    refuse(w.finish(y, y), "the network has 2 outputs; one is supported")
    refuse(w.finish(), "the network has 0 outputs")
    refuse(w.finish("nothing"), r"the output depends on 0 inputs \(none\)")
    w.inputs = [field(1, "x"), field(1, "z")]
    w.nodes = w.nodes[:0]
    refuse(w.finish(w.op("Relu", "x")), "input 'x' holds undefined")


@pytest.mark.parametrize("opset", [0, 6, 29, HUGE, -1])
def test_versions_of_the_operators(opset: int) -> None:
    w = OnnxWriter(opset)
    refuse(w.finish(w.op("Relu", w.input(1, 3, 8, 8))), rf"opset {opset} is not supported; 7 to 28 are")


def test_versions_of_the_container() -> None:
    w = OnnxWriter(ir_version=2)
    data = w.finish(w.op("Relu", w.input(1, 3, 8, 8)))
    refuse(data, "IR version 2 is not supported; version 3 and later are")
    w.ir_version = 8
    data = w.finish("relu1")
    opset = field(8, field(1, "") + field(2, w.opset))
    refuse(data.removesuffix(opset), "the file names no opset")
    refuse(data.removesuffix(opset) + field(8, field(1, "ai.onnx.ml") + field(2, 3)), "the file names no opset")
    refuse(data + data[data.index(b"\x3a") :], "the model: field 7 occurs more than 1 times")
    refuse(opset, "the file holds no graph")
    assert onnx.load(data.removesuffix(opset) + field(8, field(1, "ai.onnx") + field(2, 17))).output == "relu1"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.nodes.reverse(), r"'/b' \(operator 0, Relu\): input 0, 'a', is not computed before it"),
        (lambda w: w.op("Relu", "x", output="b"), r"'/b' \(operator 2, Relu\): its output 'b' is made twice"),
        (lambda w: w.constant(ones(1), "b"), "its output 'b' has no name of its own"),
        (lambda w: w.constant(ones(1), "a") and w.constant(ones(1), "a"), "initializer 'a' appears twice"),
        (lambda w: w.initializers.append(tensor(ones(1))), "initializer '' appears twice or has no name"),
        (lambda w: w.nodes.append(b"\x0a\xff\x01"), "a node: field 1 at byte 0 claims 255 bytes, 0 follow"),
        (lambda w: w.nodes.append(b"\x07"), "a node: field number 0 at byte 0 does not exist"),
        (lambda w: w.nodes.append(b"\x0b"), "a node: field 1 at byte 0 has the type 3"),
        (lambda w: w.nodes.append(b"\x08\x01"), "a node: field 1 is a number and should be bytes"),
        (lambda w: w.nodes.append(field(1, "n" * 1001)), "a node: field 1 has a text of 1001 bytes"),
        (lambda w: w.nodes.append(fields(4, ["Relu", "Relu"])), "a node: field 4 occurs more than 1 times"),
        (lambda w: w.nodes.append(b"\x48\x01" * 250_001), "the file has too many fields for a network"),
        (lambda w: w.nodes.extend([b""] * 10_001), "the graph: field 1 occurs more than 10000 times"),
        (lambda w: w.initializers.extend([b""] * 20_001), "the graph: field 5 occurs more than 20000 times"),
    ],
)
def test_damaged_graphs(change: Callable[[OnnxWriter], Any], message: str) -> None:
    w = OnnxWriter()
    w.op("Relu", w.op("Relu", w.input(1, 3, 8, 8), output="a"), output="b")
    change(w)
    refuse(w.finish("b"), f".*{message}")


def test_a_cycle() -> None:
    w = OnnxWriter()
    w.op("Add", w.input(1, 3, 8, 8), "b", output="a")
    refuse(w.finish(w.op("Relu", "a", output="b")), ".*Add.: input 1, 'b', is not computed before it")


@pytest.mark.parametrize(
    "initializer, message",
    [
        (
            tensor(ones(4, 3, 1, 1), "w", dims=[4, 3, 1, 2]),
            r"48 bytes are stored, but \[4, 3, 1, 2\] of float32 needs 96",
        ),
        (tensor(ones(4, 3, 1, 1), "w", dims=[HUGE] * 4), "48 bytes are stored"),
        (tensor(ones(4, 3, 1, 1), "w", dims=[-4, -3, 1, 1]), "it has the shape"),
        (tensor(ones(4, 3, 1, 1), "w", dims=[1] * 9), "it has the shape"),
        (tensor(ones(0), "w", dims=[0, HUGE, HUGE]), "it has the shape"),
        (
            tensor(ones(4, 3, 1, 1), "w", dims=[5, 3, 1, 1], typed="packed"),
            r"12 values are stored, but the shape \[5, 3",
        ),
        (tensor(ones(4, 3, 1, 1), "w", typed="single") + field(4, b"123"), "field 4 has 3 bytes, no multiple of 4"),
        (tensor(ones(4, 3, 1, 1), "w", dtype=8), "it holds string; float32, uint8, "),
        (tensor(ones(4, 3, 1, 1), "w", dtype=22), "it holds int4; "),
        (tensor(ones(4, 3, 1, 1), "w", dtype=HUGE), "it holds type 4611686018427387904; "),
        (tensor(ones(4, 3, 1, 1), "w", dtype=7), "48 bytes are stored"),
        (tensor(np.ones((4, 3, 1, 1), np.int64), "w"), "input 1 holds 12 numbers of int64"),
        (tensor(ones(4, 3, 1, 1), "w") + field(3, field(1, 0)), "it is one segment of a larger tensor"),
        (fields(1, [4, 3, 1, 1]) + field(2, 7) + field(7, b"\x80" * 12) + field(8, "w"), "in the middle of a number"),
        (fields(1, [4, 3, 1, 1]) + field(2, 7) + field(7, varint(-1) + b"\xff") + field(8, "w"), "in the middle"),
    ],
)
def test_damaged_tensors(initializer: bytes, message: str) -> None:
    w = OnnxWriter()
    y = w.op("Conv", w.input(1, 3, 8, 8), "w")
    w.initializers.append(initializer)
    refuse(w.finish(y), f".*{message}")


def test_sparse_tensors() -> None:
    w = OnnxWriter()
    y = w.op("Conv", w.input(1, 3, 8, 8), "w")
    graph = fields(1, w.nodes) + fields(11, w.inputs) + field(12, field(1, y))
    graph += field(15, field(1, tensor(ones(1), "w")))
    data = field(1, 8) + field(7, graph) + field(8, field(2, 17))
    refuse(data, "initializer 'w' is stored sparse; export without sparsity")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("how", ["straight", "transposed", "bias"])
def test_weights_that_are_no_numbers(value: float, how: str) -> None:
    weight = np.ones((4, 3, 1, 1))
    weight[3, 2] = value
    w = OnnxWriter()
    name = w.constant(weight if value == 1e300 else weight.astype(np.float32), "conv.weight")
    if how == "transposed":
        name = w.op("Transpose", w.op("Cast", name, to=1), perm=[0, 1, 3, 2])
    if how == "bias":
        name = w.op("Reshape", name, w.constant([12]))
        y = w.op("Conv", w.input(1, 3, 8, 8), w.constant(ones(12, 3, 1, 1)), name)
    else:
        y = w.op("Conv", w.input(1, 3, 8, 8), name)
    refuse(w.finish(y), r"initializer 'conv\.weight': weights that are infinite or not a number, read by node '/conv")


# --- codes of bytes -------------------------------------------------------------------------------------


def codes(w: OnnxWriter, scale: Any = 0.1, zero: Any = 128, name: str | None = None) -> str:
    """The input as codes."""
    scale = np.float32(scale) if isinstance(scale, float) else scale
    zero = np.uint8(zero) if isinstance(zero, int) else zero
    names = [w.constant(np.asarray(v)) for v in (scale, zero)]
    return w.op("QuantizeLinear", w.input(1, 3, 8, 8), *names, output=name)


@pytest.mark.parametrize(
    "scale, zero, message",
    [
        (0.0, np.uint8(0), "input 1 has a scale that is no positive number"),
        (-1.0, np.uint8(0), "input 1 has a scale that is no positive number"),
        (float("nan"), np.uint8(0), "input 1 has a scale that is no positive number"),
        (float("inf"), np.uint8(0), "input 1 has a scale that is no positive number"),
        (1e-38, np.uint8(0), "the scale of a quantised tensor must be a positive number"),
        (ones(3) * np.float32(0.1), np.zeros(3, np.uint8), "input 1 has 3 scales; supported is one"),
        (ones(1, 1), np.uint8(0), r"input 1 should be a scale, or a list of such, not float32 \[1, 1\]"),
        (ones(0), np.uint8(0), "input 1 should be a scale"),
        (np.int32(3), np.uint8(0), "input 1 should be a scale, or a list of such, not int32"),
        (0.1, np.int32(0), "codes of int32 are not supported for what is computed; uint8 and int8 are"),
        (0.1, np.uint16(0), "codes of uint16 are not supported"),
        (0.1, np.zeros(4, np.uint8), "input 2, uint8 .4., is no zero point for 1 scale"),
        (0.1, ones(1), "input 2, float32 .1., is no zero point"),
    ],
)
def test_scales_and_zero_points(scale: Any, zero: Any, message: str) -> None:
    w = OnnxWriter()
    y = w.op("DequantizeLinear", codes(w, scale, zero, "q"), w.constant(0.1), w.constant(np.array(1, np.uint8)))
    refuse(w.finish(y), rf"node '/q' \(operator 0, QuantizeLinear\): {message}")


def test_codes_are_no_numbers() -> None:
    for kind, inputs in (("Relu", 1), ("Add", 2), ("GlobalAveragePool", 1), ("Cast", 1)):
        w = OnnxWriter()
        y = w.op(kind, *[codes(w)] * inputs, name="n", **({"to": 1} if kind == "Cast" else {}))
        refuse(
            w.finish(y), rf"node 'n' \(operator 1, {kind}\): input 0 holds codes of bytes; supported are a Dequantize"
        )
    w = OnnxWriter()
    refuse(w.finish(codes(w, name="q")), "the output 'q' holds codes of bytes; supported is an output of floats")
    w = OnnxWriter()
    y = w.op("DequantizeLinear", w.op("Relu", w.input(1, 3, 8, 8)), w.constant(0.1))
    refuse(w.finish(y), ".*input 0 holds floats; it should be made by a QuantizeLinear")
    w = OnnxWriter()
    q = codes(w)
    y = w.op("Concat", q, w.op("Relu", "x"), axis=1, output="joined")
    y = w.op("DequantizeLinear", w.op("MaxPool", y, kernel_shape=[1, 1]), w.constant(0.1))
    refuse(w.finish(y), "tensor 'joined' joins codes of bytes with floats or with codes of another type")


def test_types_of_codes_that_differ() -> None:
    w = OnnxWriter()
    y = w.op("DequantizeLinear", codes(w), w.constant(0.1), w.constant(np.array(0, np.int8)))
    refuse(w.finish(y), ".*its zero point is not of the type of input 0")
    w = OnnxWriter()
    weight = w.constant(np.zeros((4, 3, 1, 1), np.int8))
    weight = w.op("DequantizeLinear", weight, w.constant(0.1), w.constant(np.array(0, np.uint8)))
    refuse(w.finish(w.op("Conv", w.input(1, 3, 8, 8), weight)), ".*its zero point is of uint8, its codes are of int8")


@pytest.mark.parametrize(
    "count, attrs, message",
    [
        (5, {"axis": 0}, r"5 scales do not fit axis 0 of \[4, 3, 1, 1\]"),
        (4, {"axis": 1}, r"4 scales do not fit axis 1 of"),
        (4, {"axis": HUGE}, r"4 scales do not fit axis 4611686018427387904"),
        (4, {"axis": -9}, r"4 scales do not fit axis -9"),
        (4, {"axis": 0, "block_size": 2}, "scales for blocks are not supported"),
        (4, {"axis": 0, "output_dtype": 6}, "it makes int32; supported are floats"),
    ],
)
def test_scales_of_weights(count: int, attrs: dict[str, int], message: str) -> None:
    w = OnnxWriter()
    weight = w.constant(np.zeros((4, 3, 1, 1), np.int8))
    weight = w.op("DequantizeLinear", weight, w.constant(ones(count)), **attrs)
    refuse(w.finish(w.op("Conv", w.input(1, 3, 8, 8), weight)), f".*DequantizeLinear.: {message}")


def test_weights_of_other_codes() -> None:
    for dtype in ("int64", "float32", "float16", "bool"):
        w = OnnxWriter()
        weight = w.op("DequantizeLinear", w.constant(np.zeros((4, 3, 1, 1), dtype)), w.constant(0.1))
        refuse(w.finish(w.op("Conv", w.input(1, 3, 8, 8), weight)), ".*supported are codes of int8, uint8, int16")


def test_operators_on_codes() -> None:
    def qlinear(kind: str, *inputs: str, **attrs: Any) -> tuple[OnnxWriter, str]:
        w = OnnxWriter()
        q = codes(w)
        known = {"q": q, "s": w.constant(0.1), "z": w.constant(np.array(128, np.uint8))}
        known["w"] = w.constant(np.zeros((4, 3, 1, 1), np.int8))
        known["wz"], known["b"] = w.constant(np.array(0, np.int8)), w.constant(np.zeros(3, np.int32))
        domain = "" if kind in ("QLinearConv", "ConvInteger") else "com.microsoft"
        return w, w.op(kind, *(known.get(name, name) for name in inputs), domain=domain, name="n", **attrs)

    w, y = qlinear("QLinearConv", "q", "s", "z", "w", "s", "wz", "s")
    refuse(w.finish(y), "the output .* holds codes")
    w, y = qlinear("QLinearConv", "q", "s", "z", "w", "s", "wz", "s", "z", "w")
    refuse(w.finish(y), ".*'n' .*: input 2 must have rank 1")
    w, y = qlinear("QLinearConv", "q", "s", "z")
    refuse(w.finish(y), ".*'n' .*: input 3 is missing")
    w, y = qlinear("QLinearAdd", "q", "s", "z", "q", "s", "z", "", "z")
    refuse(w.finish(y), ".*'n' .*: input 6, a scale, is missing")
    w, y = qlinear("QLinearGlobalAveragePool", "q", "s", "z", "s", "z", channels_last=1)
    refuse(w.finish(y), ".*channels_last is not supported")
    w, y = qlinear("QLinearConcat", "s", "z", "q", axis=1)
    refuse(w.finish(y), ".*'n' .*: input 3, a scale, is missing")
    w, y = qlinear("QLinearNothing", "q")
    refuse(
        w.finish(y), r".*com\.microsoft::QLinearNothing\) is not supported; .*of com\.microsoft there are .*QLinearAdd"
    )
    for zero in ("b", "wz"):
        w, y = qlinear("ConvInteger", "q", "w", zero)
        refuse(w.finish(y), ".*'n' .*: input 2 should be one zero point of the type of input 0")


def test_few_bytes_do_not_become_much() -> None:
    """Constants are views of constants, and each DequantizeLinear makes floats of them."""
    w = OnnxWriter()
    weight = w.constant(np.zeros((64, 64, 3, 3), np.int8))
    x = w.input(1, 64, 8, 8)
    for _ in range(400):
        x = w.op("Conv", x, w.op("DequantizeLinear", weight, w.constant(0.1)), pads=[1, 1, 1, 1])
    data = w.finish(x)
    assert check([data], run=False, load=onnx.load, trace=False) == (0, 1)
