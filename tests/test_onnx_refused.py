"""ONNX files that must be refused with a message that says why: unsupported, inconsistent, or hostile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fastmobilenet.errors import ModelError
from fastmobilenet.importers import onnx
from tests.onnx_files import OnnxWriter, field
from tests.test_loader_robustness import check

HUGE = 2**62


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def refuse(data: bytes, message: str) -> None:
    assert check([data], run=False, load=onnx.load) == (0, 1)
    with pytest.raises(ModelError, match=r"net\.onnx: " + message):
        onnx.load(data, "net.onnx")


# --- operators ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, advice",
    [
        ("Elu", "the nearest supported form is Relu; supported are Add, AveragePool, "),
        ("GlobalMaxPool", "the nearest supported form is GlobalAveragePool; "),
        ("DynamicQuantizeLinear", "its scales come from each picture: quantise with .*quantize_static, "),
        ("Loop", "graphs in a graph are not: export with an input of fixed size; "),
        ("Floor", "it is on constants, not on what depends on the picture; supported are "),
        ("Nonsense", "supported are .*Unsqueeze$"),
    ],
)
def test_an_unsupported_operator_is_named(kind: str, advice: str) -> None:
    w = OnnxWriter()
    y = w.op("Relu", w.op(kind, w.op("Relu", w.input(1, 3, 4, 4)), name="/features/3/act"))
    refuse(w.finish(y), rf"node '/features/3/act' \(operator 1, {kind}\) is not supported; {advice}")


def test_an_operator_without_a_name_is_named_by_its_output() -> None:
    w = OnnxWriter()
    y = w.op("Elu", w.input(1, 3, 4, 4), name="", output="out7")
    refuse(w.finish(y), r"node 'out7' \(operator 0, Elu\) is not supported")


@pytest.mark.parametrize("kind", ["Relu", "FusedConv"])
def test_operators_of_others(kind: str) -> None:
    w = OnnxWriter()
    y = w.op(kind, w.input(1, 3, 4, 4), domain="com.microsoft", name="n")
    refuse(w.finish(y), rf"node 'n' \(operator 0, com\.microsoft::{kind}\) is not supported; only ONNX's own operators")


#: An operator on x (1, 3, 8, 8), with weights of ones of the given shapes; and why it is refused.
OPERATORS: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("Conv", [(4, 3, 3, 3)], {"strides": [0, 1]}, r"strides is \[0, 1\]; supported are two numbers from 1 to 1024"),
    ("Conv", [(4, 3, 3, 3)], {"strides": [HUGE, 1]}, "strides is"),
    ("Conv", [(4, 3, 3, 3)], {"strides": [1]}, "strides is"),
    ("Conv", [(4, 3, 3, 3)], {"dilations": [1, 65]}, "dilations is"),
    ("Conv", [(4, 3, 3, 3)], {"pads": [0, 0, -1, 0]}, r"pads is \[0, 0, -1, 0\]"),
    ("Conv", [(4, 3, 3, 3)], {"pads": [1, 1]}, "pads is"),
    ("Conv", [(4, 3, 3, 3)], {"pads": [0, 0, 0, HUGE]}, "pads is"),
    ("Conv", [(4, 3, 3, 3)], {"pads": [0] * 65}, "field 8 occurs more than 64 times"),
    ("Conv", [(4, 3, 3, 3)], {"kernel_shape": [3, 2]}, r"kernel_shape \[3, 2\] does not fit the weights' \[3, 3\]"),
    ("Conv", [(4, 3, 3, 3)], {"kernel_shape": 3}, "the attribute kernel_shape should be whole numbers"),
    ("Conv", [(4, 3, 3, 3)], {"strides": [1.0, 1.0]}, "the attribute strides should be whole numbers"),
    ("Conv", [(4, 3, 3, 3)], {"auto_pad": "SAME_MIDDLE"}, "auto_pad 'SAME_MIDDLE' is none of NOTSET"),
    ("Conv", [(4, 3, 3, 3)], {"auto_pad": "VALID", "pads": [0, 1, 0, 0]}, "it has both auto_pad VALID and pads"),
    ("Conv", [(4, 3, 3, 3)], {"group": 3}, r"weight \(4, 3, 3, 3\) with 3 groups does not fit"),
    ("Conv", [(4, 3, 3, 3)], {"group": -1}, "with -1 groups"),
    ("Conv", [(4, 3, 9, 3)], {}, "a 9x3 window does not fit its 8x8 input"),
    ("Conv", [(4, 3, 3)], {}, r"input 1 must have rank 4, not the shape \[4, 3, 3\]"),
    ("Conv", [(0, 3, 1, 1)], {}, "input 1 holds 0 numbers"),
    ("Conv", [(4, 3, 1, 1), (3,)], {}, r"bias has shape \(3,\), expected \(4,\)"),
    ("Conv", [(4, 3, 1, 1), (4, 1)], {}, "input 2 must have rank 1"),
    ("Conv", ["x"], {}, "input 1 is computed from the picture; it must be a constant"),
    ("Conv", [""], {}, "input 1 is missing"),
    ("Conv", ["nowhere"], {}, "input 1, 'nowhere', is not computed before it"),
    ("Conv", [[4, 3]], {}, "input 1 must have rank 4"),
    ("BatchNormalization", [(3,)] * 3, {}, "input 4 is missing"),
    ("BatchNormalization", [(4,)] * 4, {}, r"gamma has shape \(4,\), expected \(3,\)"),
    ("BatchNormalization", [(3,)] * 4, {"training_mode": 1}, "it is in training mode; export"),
    ("Dropout", [0.5, np.array(True)], {}, "it is in training mode; export"),
    ("Clip", [(2,)], {}, r"input 1 should be one number, not float32 \[2\]"),
    ("Clip", [float("nan")], {}, "a bound is not a number"),
    ("Max", ["x"], {}, "input 1 is computed from the picture"),
    ("Min", [0.0, 1.0], {}, "it has 3 inputs; supported are a map and a number"),
    ("Mul", [], {}, "it has 1 inputs, not 2"),
    ("Div", ["x"], {}, "input 1 is computed from the picture; it must be a constant"),
    ("HardSigmoid", [], {"alpha": float("inf")}, "alpha and beta must be finite, not inf and 0.5"),
    ("Swish", [], {"alpha": 2.0}, "alpha 2 is not supported; 1 is"),
    ("LRN", [], {}, "size is 0; supported is 1 to 64"),
    ("LRN", [], {"size": 2**40}, "size is 1099511627776"),
    ("LRN", [], {"size": 3, "beta": float("nan")}, "alpha 0.0001, beta nan and bias 1 must be finite"),
    ("Add", [(8,)], {}, r"\[8\] and a tensor of \[1, 3, 8, 8\] do not fit; supported is one number, or one for each"),
    ("Add", [(1, 1, 3, 1, 1)], {}, "do not fit"),
    ("Add", [(1, 1, 1, 1, 1)], {}, "do not fit"),
    ("Add", [(2, 1, 1, 1)], {}, "do not fit"),
    ("Div", [0.0], {}, "multiplies by what is infinite or not a number"),
    ("Mul", [[2]], {}, "input 1 holds 1 numbers of int64; supported are float32, float16"),
    ("AveragePool", [], {}, "it has no kernel_shape"),
    ("AveragePool", [], {"kernel_shape": [3]}, "kernel_shape is"),
    ("AveragePool", [], {"kernel_shape": [65, 1]}, "the window is 65x1; supported is 1 to 64"),
    (
        "AveragePool",
        [],
        {"kernel_shape": [2, 2], "dilations": [2, 1]},
        r"dilations \[2, 1\] are not supported",
    ),
    ("AveragePool", [], {"kernel_shape": [2, 2], "pads": [2, 0, 0, 0]}, "leaves windows without a pixel"),
    ("MaxPool", [], {}, "it has no kernel_shape"),
    ("MaxPool", [], {"kernel_shape": [1, 65]}, "the window is 1x65; supported is 1 to 64"),
    ("MaxPool", [], {"kernel_shape": [2, 2], "dilations": [1, 2]}, r"dilations \[1, 2\] are not supported; \[1, "),
    ("MaxPool", [], {"kernel_shape": [3, 2], "pads": [0, 0, 0, 2]}, "leaves windows without a pixel"),
    ("MaxPool", [], {"kernel_shape": [9, 9]}, "a 9x9 window does not fit its 8x8 input"),
    ("ReduceMean", [], {"axes": [1]}, r"it goes over the axes \[1\] of \[1, 3, 8, 8\]; supported is height and width"),
    ("ReduceMean", [], {}, r"over the axes \[0, 1, 2, 3\]"),
    ("ReduceMean", [], {"axes": [2, 2]}, r"the axes \[2, 2\] are not axes of a tensor of rank 4"),
    ("ReduceMean", [], {"axes": [4]}, "are not axes"),
    ("Softmax", [], {"axis": 3}, r"it goes over axis 3 of \[1, 3, 8, 8\]; supported are the channels"),
    ("Softmax", [], {"axis": 4}, "axis 4 is no axis of a tensor of rank 4"),
    ("Pad", [[0, 1, 0, 0, 0, 0, 0, 0]], {}, r"the axes \[0, 1, 2, 3\] by \[0, 1, .* supported is to add to height and"),
    ("Pad", [[0, 0, -1, 0, 0, 0, 0, 0]], {}, "supported is to add to height and width"),
    ("Pad", [[0, 0, 1, 0, 0, 0, 0, HUGE]], {}, "supported is to add to height and width"),
    ("Pad", [[0, 0, 1, 0, 0, 0, 0, 0], float("nan")], {}, "pads with nan"),
    (
        "Concat",
        ["x"],
        {"axis": 2},
        r"joins \[1, 3, 8, 8\], \[1, .* along axis 2; supported are maps of",
    ),
    ("Concat", ["x"], {"axis": 4}, r"the axes \[4\] are not axes of a tensor of rank 4"),
    ("Concat", [(1, 3, 8, 8)], {"axis": 1}, "input 1 is a constant and should be computed"),
    ("Split", [[1, 1]], {"axis": 1}, r"3 elements cannot be split into parts of \[1, 1\]"),
    ("Split", [[4, -1]], {"axis": 1}, "cannot be split into parts"),
    (
        "Split",
        [[4, 4]],
        {"axis": 2},
        r"takes a part of axis 2 of \[1, 3, 8, 8\]; supported are some of",
    ),
    ("Slice", [[1], [2], [2]], {}, r"takes a part of axis 2 of \[1, 3, 8, 8\]; supported are some of"),
    ("Slice", [[3], [9], [1]], {}, "it takes nothing of axis 1"),
    ("Slice", [[0], [2], [1], [0]], {}, r"steps \[0\] do not fit each other"),
    ("Slice", [[0, 0], [2], [1]], {}, "do not fit each other"),
    ("Slice", [[0], [2], [7]], {}, "are not axes of a tensor of rank 4"),
    ("Gather", [[3]], {"axis": 1}, "it takes elements of axis 1 that .* does not have"),
    ("Gather", [[HUGE]], {"axis": 1}, "it takes elements of axis 1 that .* does not have"),
    ("Gather", [np.array([[0], [1]])], {"axis": 1}, "its indices must be a whole number or a list of such"),
    ("Gather", [[0]], {"axis": 0}, r"it takes a part of axis 0 of \[1, 3, 8, 8\]"),
    ("Expand", [[1, 3, 8, 16]], {}, r"it repeats \[1, 3, 8, 8\] to \[1, 3, 8, 16\]; supported is to repeat one pixel"),
    ("Expand", [[2, 3, 8, 8]], {}, "it repeats"),
    ("SequenceAt", [[0]], {}, "input 0 is no sequence"),
    ("Pad", [[0, 0, 1, 0, 0, 0]], {}, "does not fit a tensor of rank 4"),
    ("Pad", [[0] * 8], {"mode": "reflect"}, "mode 'reflect' is not supported"),
    ("Gemm", [(3, 4)], {}, r"weights \[3, 4\] do not fit an input of \[1, 3, 8, 8\]"),
    ("MatMul", [(8, 4)], {}, "do not fit an input"),
    ("Reshape", [[1, 3, -1, 7]], {}, r"shape \[1, 3, 8, 8\] cannot have the shape \[1, 3, -1, 7\]"),
    ("Reshape", [[-1, 3, -1, 8]], {}, "cannot have the shape"),
    ("Reshape", [[-1, 0, HUGE, HUGE]], {}, "cannot have the shape"),
    ("Reshape", [[1, 3, 4, 16]], {}, r"turns \[1, 3, 8, 8\] into \[1, 3, 4, 16\]; supported is to join axes"),
    ("Reshape", [[0, 3, 8, 8]], {"allowzero": 1}, "cannot have the shape"),
    ("Reshape", ["x"], {}, "its shape must be a constant"),
    ("Reshape", [ones(4)], {}, "input 1 should be a few whole numbers, not float32"),
    ("Squeeze", [[1]], {}, r"cannot take the axes \[1\] away from the shape \[1, 3, 8, 8\]"),
    ("Unsqueeze", [], {}, "it names no axes"),
    ("Unsqueeze", [[6]], {}, "are not axes of a tensor of rank 5"),
    ("Unsqueeze", [list(range(65))], {}, "should be a few whole numbers"),
    ("Flatten", [], {"axis": 5}, "axis 5 is no axis"),
    ("Transpose", [], {"perm": [0, 1, 2, 2]}, r"perm \[0, 1, 2, 2\] does not fit a tensor of rank 4"),
    ("Cast", [], {"to": 7}, "a cast of maps to int64 is not supported"),
]


@pytest.mark.parametrize("kind, inputs, attrs, message", OPERATORS)
def test_operators_that_do_not_fit(kind: str, inputs: list[Any], attrs: dict[str, Any], message: str) -> None:
    w = OnnxWriter()
    y = w.op(kind, w.input(1, 3, 8, 8), *[operand(w, i) for i in inputs], **attrs)
    refuse(w.finish(w.op("Relu", y)), f".*{message}")


def operand(w: OnnxWriter, given: Any) -> str:
    if isinstance(given, str):
        return given
    return w.constant(ones(*given) if isinstance(given, tuple) else given)


def test_attributes_that_appear_twice() -> None:
    w = OnnxWriter()
    w.op("Clip", w.input(1, 3, 8, 8), min=0.0)
    twice = field(5, field(1, "min") + field(2, 0.0) + field(20, 1))
    w.opset = 9
    w.nodes[0] += twice
    refuse(w.finish("clip1"), r"node '/clip1' \(operator 0, Clip\): the attribute 'min' appears twice")


def filled(w: OnnxWriter, value: float) -> str:
    return w.op("Pad", "x", w.constant([0, 0, 1, 1, 0, 0, 1, 1]), w.constant(value), name="pad")


def pool(w: OnnxWriter) -> str:
    return w.op("GlobalAveragePool", "x")


def mask(w: OnnxWriter) -> str:
    """The second output of a Dropout."""
    w.op("Dropout", "x", output="y")
    w.nodes[-1] += field(2, "m")
    return "m"


def padded(w: OnnxWriter) -> str:
    return w.op("Pad", "x", w.constant([0, 0, 1, 1, 0, 0, 1, 1]), name="pad")


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda w: w.op("Relu", padded(w)),
            r"node 'pad' \(operator 0, Pad\) is followed by Relu; supported is a Pad be",
        ),
        (lambda w: w.op("Add", padded(w), padded(w)), "is followed by Add"),
        (
            lambda w: w.op("Conv", padded(w), w.constant(ones(4, 3, 3, 3)), auto_pad="SAME_UPPER"),
            "with auto_pad SAME_UP",
        ),
        (lambda w: w.op("Identity", padded(w)), "must be a layer's, not a constant, a Pad or half of a mean"),
        (lambda w: reduced(w, padded(w)), "is followed by ReduceMean"),
        (
            lambda w: w.op("Relu", reduced(w, "x")),
            "ReduceMean.* followed by Relu; supported is the mean over the other",
        ),
        (lambda w: reduced(w, "x"), "must be a layer's, not a constant, a Pad or half of a mean"),
        (
            lambda w: w.op("Add", "x", w.op("MaxPool", "x", kernel_shape=[2, 2])),
            r"cannot add \[1, 3, 8, 8\] and \[1, 3, 7, 7\]; supported are two maps of one shape",
        ),
        (lambda w: w.op("Add", "x", w.op("Transpose", "x", perm=[0, 1, 3, 2])), "cannot add"),
        (lambda w: w.op("Mul", "x", w.op("Slice", "x", *[w.constant([i]) for i in (0, 1, 1)])), "cannot mul"),
        (
            lambda w: w.op("Mul", w.op("Squeeze", pool(w), w.constant([2, 3])), "x"),
            r"mul \[1, 3\] and \[1, 3, 8, 8",
        ),
        (lambda w: w.op("Add", "x", w.op("Expand", pool(w), w.constant([1, 3, 4, 4]))), "cannot add"),
        (
            lambda w: w.op("Relu", w.op("Expand", pool(w), w.constant([1, 3, 8, 8]), name="e")),
            r"node 'e' \(operator 1, Expand\) is followed by Relu; supported is an Expand before an Add or a Mul",
        ),
        (
            lambda w: w.op("Conv", filled(w, 2.0), w.constant(ones(4, 3, 3, 3))),
            r"'pad' .* of 2; supported are zeros",
        ),
        (lambda w: w.op("AveragePool", filled(w, 2.0), kernel_shape=[3, 3]), r"'pad' .* of 2; supported are zeros"),
        (
            lambda w: w.op("MaxPool", filled(w, 0.0), kernel_shape=[3, 3]),
            r"the Pad before it, node 'pad' .* is of 0, which may be larger than a pixel; supported is -inf, and 0 beh",
        ),
        (
            lambda w: w.op("Pad", filled(w, 1.0), w.constant([0, 0, 1, 0, 0, 0, 0, 0])),
            "with 0 what is padded with 1",
        ),
        (
            lambda w: w.op("MaxPool", filled(w, -np.inf), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
            r"ceil_mode 1 is not supported behind a Pad, node 'pad'",
        ),
        (
            lambda w: w.op("Relu", mask(w)),
            r"input 0 is an output of node '/y' .*Dropout\) that is not",
        ),
        (lambda w: w.op("Relu", w.op("SplitToSequence", "x", axis=1)), "input 0 is a sequence and should be computed"),
        (
            lambda w: w.op("SequenceAt", w.op("SplitToSequence", "x", axis=1), w.constant([3])),
            r"element \[3\] of 3",
        ),
        (
            lambda w: w.op("Conv", w.op("Transpose", "x"), w.constant(ones(4, 8, 1, 1))),
            r"must be \(batch, channels, he",
        ),
        (lambda w: w.op("GlobalAveragePool", w.op("Flatten", "x")), r"its input \[1, 192\] must be"),
        (lambda w: w.op("BatchNormalization", w.op("Flatten", "x"), *[w.constant(ones(3))] * 4), "as its axis 1"),
        (lambda w: w.op("Gemm", flat(w, axis=2), w.constant(ones(64, 4))), r"do not fit an input of \[3, 64\]"),
        (lambda w: w.op("Gemm", flat(w), w.constant(ones(192, 4)), transA=1), "transA is not supported"),
        (lambda w: w.op("Gemm", flat(w), w.constant(ones(192, 4)), alpha=float("inf")), "alpha inf makes weights"),
        (
            lambda w: w.op("Gemm", flat(w), w.constant(ones(192, 4)), w.constant(ones(4, 1))),
            "is not one for each output",
        ),
        (lambda w: w.op("Gemm", flat(w), w.constant(ones(192, 4)), w.constant(ones(3))), "does not fit 4 outputs"),
        (lambda w: w.op("Mul", flat(w), w.constant(ones(192))), "one number, or one for each channel"),
        (lambda w: w.op("Softmax", flat(w)), "supported are the channels"),
        (
            lambda w: w.op("Relu", flat(w)),
            r"the output .* is a map of \[1, 192\] that is not in the layout of the input, NC",
        ),
        (lambda w: w.op("Transpose", w.op("Relu", "x"), perm=[0, 2, 3, 1]), "is not in the layout of the input, NCHW"),
        (lambda w: w.op("Identity", "x"), "the output 'identity1' is the input"),
        (
            lambda w: w.op("Concat", w.op("Shape", "x"), w.constant([1]), axis=0),
            "the output depends on|must be a layer",
        ),
        (lambda w: w.op("Reshape", "x", w.op("Div", w.constant([1]), w.constant([0]))), r"Div\): .* divided by 0"),
        (lambda w: w.op("Reshape", "x", w.op("Add", w.constant([1]), w.constant(1.0))), "of one type"),
        (lambda w: w.op("Reshape", "x", w.op("Gather", w.op("Shape", "x"), w.constant([4]))), "constant inputs do not"),
        (lambda w: w.op("Reshape", "x", w.op("Gather", w.op("Shape", "x"))), "an input is missing"),
        (lambda w: w.op("Reshape", "x", w.op("Unsqueeze", "")), "operator 0, Unsqueeze"),
        (lambda w: w.op("Reshape", "x", w.op("Cast", w.constant([1]), to=8)), "to string is not supported"),
        (lambda w: w.op("Reshape", "x", w.op("Slice", w.constant([1]))), "it has no starts and ends"),
        (lambda w: w.op("Reshape", "x", w.op("Constant", value_string="a")), "its value is none of value, value_int"),
        (lambda w: w.op("Mul", "x", big(w, [2**20, 2**20])), "add up to far more than the file holds"),
        (lambda w: w.op("Mul", "x", big(w, [-1])), r"its output would have the shape \[-1\]"),
        (
            lambda w: w.op("Mul", "x", w.op("NonZero", w.constant(1.0))),
            "NonZero.* is not supported",
        ),
        (lambda w: w.op("Mul", "x", broadcast(w)), "add up to far more than the file holds"),
        (lambda w: w.op("Relu", w.constant(ones(1, 3, 8, 8))), "the output depends on 0 inputs"),
        (lambda w: w.op("Add", "x", w.op("Relu", w.constant(ones(1)))), "input 0 is a constant and should be computed"),
        (lambda w: w.op("Add", "x", w.op("Unheard")), "operator 0, Unheard"),
    ],
)
def test_graphs_that_do_not_fit(build: Callable[[OnnxWriter], str], message: str) -> None:
    w = OnnxWriter()
    w.input(1, 3, 8, 8)
    refuse(w.finish(build(w)), f".*{message}")


def reduced(w: OnnxWriter, x: str) -> str:
    return w.op("ReduceMean", x, axes=[2])


def flat(w: OnnxWriter, axis: int = 1) -> str:
    return w.op("Flatten", "x", axis=axis)


def big(w: OnnxWriter, shape: list[int]) -> str:
    return w.op("ConstantOfShape", w.constant(shape))


def broadcast(w: OnnxWriter) -> str:
    return w.op("Add", w.constant(ones(2**12, 1)), w.constant(ones(2**12)))


def test_sizes_that_depend_on_the_picture() -> None:
    """An open size is taken as 224; only a Reshape may use it."""
    w = OnnxWriter()
    x = w.input(1, 3, "h", "w")
    h = w.op("Gather", w.op("Shape", x), w.constant([2]))
    pads = w.op("Concat", w.constant([0] * 6), w.op("Sub", h, w.constant([223])), w.constant([0]), axis=0)
    y = w.op("Conv", w.op("Pad", x, pads), w.constant(ones(4, 3, 3, 3)))
    refuse(w.finish(y), r".*Pad\): input 1 depends on the size of the picture; export with a fixed size")
