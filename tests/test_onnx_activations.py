"""ONNX files with activations, whole or in parts, and with gates: a map times a vector of its channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.onnx_files import OnnxWriter
from tests.test_onnx import agree, convolve, normal, run

SIXTH = float(np.float32(1 / 6))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


def hard_sigmoid(x: np.ndarray, alpha: float = 1 / 6, beta: float = 0.5) -> np.ndarray:
    return np.clip(alpha * x + beta, 0, 1)


def number(w: OnnxWriter, value: float) -> str:
    return w.op("Constant", value=np.array(value, np.float32))


def clip(w: OnnxWriter, x: str, lo: float, hi: float) -> str:
    if w.opset < 11:
        return w.op("Clip", x, min=lo, max=hi)
    return w.op("Clip", x, number(w, lo), number(w, hi))


def relu6(w: OnnxWriter, x: str) -> str:
    return clip(w, x, 0.0, 6.0)


def one(kind: str, **attrs: Any) -> Callable[[OnnxWriter, str], str]:
    return lambda w, x: w.op(kind, x, **attrs)


def times(gate: Callable[[OnnxWriter, str], str], first: bool = False) -> Callable[[OnnxWriter, str], str]:
    return lambda w, x: w.op("Mul", *[x, gate(w, x)][:: -1 if first else 1])


#: What writes it, what it computes, what it should become, and since which opset it is valid.
FORMS: dict[str, tuple[Callable[[OnnxWriter, str], str], Callable[[np.ndarray], np.ndarray], str, int]] = {
    "Sigmoid": (one("Sigmoid"), sigmoid, "sigmoid", 9),
    "HardSigmoid": (one("HardSigmoid", alpha=SIXTH, beta=0.5), hard_sigmoid, "hard_sigmoid", 9),
    "HardSigmoid's own": (one("HardSigmoid"), lambda x: hard_sigmoid(x, 0.2), "hard_sigmoid(0.2, 0.5)", 9),
    "HardSwish": (one("HardSwish"), lambda x: x * hard_sigmoid(x), "hard_swish", 14),
    "x HardSigmoid": (times(one("HardSigmoid", alpha=SIXTH)), lambda x: x * hard_sigmoid(x), "hard_swish", 9),
    "HardSigmoid x": (
        times(one("HardSigmoid", alpha=0.25, beta=0.75), first=True),
        lambda x: x * hard_sigmoid(x, 0.25, 0.75),
        "hard_swish(0.25, 0.75)",
        9,
    ),
    "x Sigmoid": (times(one("Sigmoid")), lambda x: x * sigmoid(x), "swish", 9),
    "Sigmoid x": (times(one("Sigmoid"), first=True), lambda x: x * sigmoid(x), "swish", 9),
    "x relu6(x + 3) / 6": (
        lambda w, x: w.op("Div", w.op("Mul", x, relu6(w, w.op("Add", x, number(w, 3.0)))), number(w, 6.0)),
        lambda x: x * hard_sigmoid(x),
        "hard_swish",
        9,
    ),
    "x (relu6(3 + x) / 6)": (
        lambda w, x: w.op("Mul", x, w.op("Div", relu6(w, w.op("Add", number(w, 3.0), x)), number(w, 6.0))),
        lambda x: x * hard_sigmoid(x),
        "hard_swish",
        9,
    ),
    "(1/6 min(max(x + 3, 0), 6)) x": (
        lambda w, x: w.op(
            "Mul",
            w.op("Mul", number(w, SIXTH), w.op("Min", w.op("Relu", w.op("Add", x, number(w, 3.0))), number(w, 6.0))),
            x,
        ),
        lambda x: x * hard_sigmoid(x),
        "hard_swish",
        9,
    ),
    "relu6(x + 3) / 6": (
        lambda w, x: w.op("Div", relu6(w, w.op("Add", x, number(w, 3.0))), number(w, 6.0)),
        hard_sigmoid,
        "hard_sigmoid",
        9,
    ),
    "clip(0.2 x + 0.5, 0, 1)": (
        lambda w, x: clip(w, w.op("Add", w.op("Mul", x, number(w, 0.2)), number(w, 0.5)), 0.0, 1.0),
        lambda x: hard_sigmoid(x, 0.2),
        "hard_sigmoid(0.2, 0.5)",
        9,
    ),
}


@pytest.mark.parametrize("opset", [9, 13, 17])
@pytest.mark.parametrize("form", FORMS)
def test_activations_become_one_node(form: str, opset: int) -> None:
    build, compute, name, since = FORMS[form]
    if opset < since:
        pytest.skip(f"since opset {since}")
    x = 4 * normal(2, 3, 4, 5)
    w = OnnxWriter(opset)
    y = build(w, w.input(*x.shape))
    graph = agree(w.finish(y), x, compute(x))
    assert [n.op for n in graph.nodes] == ["input", "activation"]
    assert (graph.nodes[1].name, str(graph.nodes[1].activation)) == (y, name)


@pytest.mark.parametrize("form", FORMS)
def test_activations_behind_a_convolution(form: str) -> None:
    """The parts may be joined with the layer before them only as long as the result is the same."""
    build, compute, name, _ = FORMS[form]
    x, weight, bias = normal(1, 3, 4, 5), 3 * normal(4, 3, 1, 1), 3 * normal(4)
    w = OnnxWriter()
    y = build(w, w.op("Conv", w.input(*x.shape), w.constant(weight), w.constant(bias)))
    graph = agree(w.finish(y), x, compute(convolve(x, weight) + bias.reshape(4, 1, 1)))
    assert [n.op for n in graph.nodes] == ["input", "conv2d", "activation"]
    assert str(graph.nodes[2].activation) == name


@pytest.mark.parametrize("constant", [2.0, 3.5])
def test_forms_that_are_close_to_hard_swish_stay_what_they_are(constant: float) -> None:
    """x relu6(x + 3) / constant; and a gate of another map"""
    x = 4 * normal(1, 3, 4, 5)
    w = OnnxWriter()
    y = w.op("Div", w.op("Mul", w.input(*x.shape), relu6(w, w.op("Add", "x", number(w, 3.0)))), number(w, constant))
    y = w.op("Mul", y, w.op("Sigmoid", "x"))
    agree(w.finish(y), x, x * np.clip(x + 3, 0, 6) / constant * sigmoid(x))


def test_a_gate_that_somebody_else_reads_too_stays() -> None:
    x = 4 * normal(1, 3, 4, 5)
    w = OnnxWriter()
    gate = w.op("Sigmoid", w.input(*x.shape))
    graph = agree(w.finish(w.op("Add", w.op("Mul", "x", gate), gate)), x, x * sigmoid(x) + sigmoid(x))
    assert [n.op for n in graph.nodes] == ["input", "activation", "mul", "add"]


# --- gates ----------------------------------------------------------------------------------------------


def squeeze_excite(w: OnnxWriter, x: str, weight: np.ndarray, form: str) -> str:
    """x times a sigmoid of a product of its means; with 1x1 convolutions, dense layers, or on (n, h, w, c)"""
    c = weight.shape[0]
    if form == "last axis":
        last = w.op("Transpose", x, perm=[0, 2, 3, 1])
        gate = w.op("Sigmoid", w.op("MatMul", w.op("ReduceMean", last, axes=[1, 2], keepdims=1), w.constant(weight.T)))
        return w.op("Transpose", w.op("Mul", last, gate), perm=[0, 3, 1, 2])
    mean = w.op("GlobalAveragePool", x) if form != "mean" else w.op("ReduceMean", x, axes=[2, 3], keepdims=1)
    if form in ("convolution", "mean", "first"):
        gate = w.op("Sigmoid", w.op("Conv", mean, w.constant(weight.reshape(c, c, 1, 1))))
        return w.op("Mul", *[x, gate][:: -1 if form == "first" else 1])
    gate = w.op("Gemm", w.op("Flatten", mean), w.constant(weight.T.copy()))
    if form == "short":  # (c, 1, 1), as of a network that takes one picture
        gate = w.op("Reshape", w.op("Sigmoid", gate), w.constant([c, 1, 1]))
        return w.op("Mul", x, gate)
    gate = w.op("Reshape", w.op("Sigmoid", gate), w.constant([-1, c, 1, 1]))
    if form == "expanded":
        gate = w.op("Expand", gate, w.op("Shape", x))
    return w.op("Mul", x, gate)


GATES = ["convolution", "mean", "first", "dense", "short", "expanded", "last axis"]


@pytest.mark.parametrize("size", [(4, 5), (1, 1)])
@pytest.mark.parametrize("form", GATES)
def test_squeeze_and_excite(form: str, size: tuple[int, int]) -> None:
    """At another size too, even if the map of the file is of one pixel, as the means are."""
    weight = normal(6, 6)

    def expected(x: np.ndarray) -> np.ndarray:
        gate = sigmoid(np.maximum(x, 0).mean((2, 3)) @ weight.T)
        return np.maximum(x, 0) * gate[:, :, None, None]

    x = normal(1, 6, *size)
    w = OnnxWriter(15)
    y = squeeze_excite(w, w.op("Relu", w.input(*x.shape)), weight, form)
    graph = agree(w.finish(y), x, expected(x))
    assert [n.op for n in graph.nodes if n.op != "activation"][:2] == ["input", "global_avg_pool"]
    assert graph.nodes[-1].op == "mul"
    for larger in (normal(1, 6, 7, 3), normal(3, 6, 2, 2)):
        np.testing.assert_allclose(run(graph, larger), expected(larger), rtol=1e-5, atol=1e-6)


def test_squeeze_and_excite_of_any_size() -> None:
    weight, x = normal(6, 6), normal(2, 6, 4, 5)
    for form in ("convolution", "dense", "expanded"):
        w = OnnxWriter()
        y = squeeze_excite(w, w.input("n", 6, "h", "w"), weight, form)
        agree(w.finish(y), x, x * sigmoid(x.mean((2, 3)) @ weight.T)[:, :, None, None])


def test_a_vector_is_added() -> None:
    x = normal(2, 6, 4, 5)
    w = OnnxWriter()
    y = w.op("Add", w.op("GlobalAveragePool", w.input(*x.shape)), "x")
    agree(w.finish(y), x, x + x.mean((2, 3), keepdims=True))


def test_maps_are_multiplied() -> None:
    x = normal(2, 3, 4, 5)
    w = OnnxWriter()
    y = w.op("Mul", w.op("Relu", w.input(*x.shape)), "x")
    assert [n.op for n in agree(w.finish(y), x, np.maximum(x, 0) * x).nodes] == ["input", "activation", "mul"]
