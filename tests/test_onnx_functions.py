"""ONNX files that define operators of their own by others."""

from __future__ import annotations

import numpy as np
import pytest

from fastmobilenet.errors import ModelError
from fastmobilenet.importers import onnx
from tests.onnx_files import OnnxWriter, Reference, field, node
from tests.test_loader_robustness import check
from tests.test_onnx import agree, normal, run
from tests.test_onnx_refused import refuse

FLOAT = 1


def hard_swish(w: OnnxWriter, **options: object) -> None:
    """local.Gated(x): x * HardSigmoid(x, slope, 0.5), with a slope of 1/6 unless the call gives another"""
    body = [
        node("HardSigmoid", ["x"], ["gate"], "gate", alpha=Reference("slope", FLOAT), beta=0.5),
        node("Mul", ["x", "gate"], ["y"], "product"),
    ]
    w.function("Gated", ["x"], ["y"], body, defaults={"slope": 1 / 6}, **options)  # type: ignore[arg-type]


def gated(x: np.ndarray, slope: float = 1 / 6) -> np.ndarray:
    return x * np.clip(x * np.float32(slope) + 0.5, 0, 1)


def test_a_function_is_inlined() -> None:
    x = 4 * normal(1, 3, 4, 5)
    w = OnnxWriter()
    hard_swish(w)
    y = w.op("Gated", w.input(*x.shape), domain="local", output="a")
    y = w.op("Gated", y, domain="local", output="b", slope=0.25)
    graph = agree(w.finish(y), x, gated(gated(x), 0.25))
    assert [(n.name, str(n.activation)) for n in graph.nodes[1:]] == [
        ("a", "hard_swish"),
        ("b", "hard_swish(0.25, 0.5)"),
    ]


def test_functions_call_functions() -> None:
    """Names of tensors in a body mean nothing outside of it, and attributes are handed on."""
    x = 4 * normal(1, 3, 4, 5)
    w = OnnxWriter()
    hard_swish(w)
    body = [
        node("Gated", ["a"], ["gate"], "first", "local", slope=Reference("outer", FLOAT)),
        node("Add", ["gate", "b"], ["y"], "sum"),
    ]
    w.function("Residual", ["a", "b"], ["y"], body)
    w.input(*x.shape, name="gate")
    y = w.op("Residual", "gate", "gate", domain="local", outer=0.125, output="out")
    graph = agree(w.finish(y), x, gated(x, 0.125) + x)
    assert [n.name for n in graph.nodes] == ["gate", "out::gate", "out"]


def test_functions_with_outputs_and_inputs_left_out() -> None:
    x = normal(1, 3, 4, 5)
    w = OnnxWriter()
    body = [
        node("Clip", ["x", "", "most"], ["clipped"]),
        node("Dropout", ["clipped"], ["y", "mask"]),
        node("Neg", ["clipped"], ["z"]),
    ]
    w.function("Both", ["x", "least", "most"], ["y", "z"], body)
    y = w.op("Both", w.input(*x.shape), "", w.constant(0.5), domain="local")
    np.testing.assert_array_equal(run(onnx.load(w.finish(w.op("Relu", y))), x), np.clip(x, 0, 0.5))


def test_a_function_has_an_opset_of_its_own() -> None:
    """The axes of a Squeeze were an attribute before opset 13."""
    x = normal(1, 3, 1, 1)
    w = OnnxWriter(17)
    w.function("Flat", ["x"], ["y"], [node("Squeeze", ["x"], ["y"], axes=[2, 3])], opset=11)
    y = w.op("Softmax", w.op("Flat", w.input(*x.shape), domain="local"), axis=-1)
    assert onnx.load(w.finish(y)).output == y


def test_overloads() -> None:
    x = normal(1, 3, 4, 5)
    w = OnnxWriter(ir_version=10)
    w.function("F", ["x"], ["y"], [node("Relu", ["x"], ["y"])])
    w.function("F", ["x"], ["y"], [node("Sigmoid", ["x"], ["y"])], overload="other")
    w.op("F", w.input(*x.shape), domain="local", output="y")
    w.nodes[-1] += field(8, "other")
    assert [str(n.activation) for n in onnx.load(w.finish("y")).nodes[1:]] == ["sigmoid"]


def test_functions_that_are_not_called_are_not_looked_at() -> None:
    w = OnnxWriter()
    w.function("Odd", ["x"], ["y"], [node("Unheard", ["z"], ["y"])], opset=99)
    assert len(onnx.load(w.finish(w.op("Relu", w.input(1, 3, 4, 4)))).nodes) == 2


def test_an_operator_in_a_function_is_named() -> None:
    w = OnnxWriter()
    w.function("Odd", ["x"], ["y"], [node("Elu", ["x"], ["y"], "inner")])
    refuse(
        w.finish(w.op("Odd", w.input(1, 3, 4, 4), domain="local", output="a")), r"node 'a::inner' \(operator 0, Elu\)"
    )


def test_functions_that_cannot_be_inlined() -> None:
    def of(*body: bytes, opset: int | None = None, inputs: int = 1, **attrs: object) -> bytes:
        w = OnnxWriter()
        w.function("F", ["x"], ["y"], body, opset=opset)
        w.input(1, 3, 4, 4)
        return w.finish(w.op("F", *["x"] * inputs, domain="local", **attrs))

    refuse(of(node("F", ["x"], ["y"], domain="local")), "node .*local::F.*: functions call each other more than 16")
    refuse(of(node("Relu", ["x"], ["y"]), opset=99), "opset 99 is not supported; 7 to 28 are")
    refuse(of(node("Relu", ["x"], ["y"]), inputs=2), ".* it has more inputs or outputs than the function")
    refuse(of(node("Add", ["x", "z"], ["y"])), r".*input 1, 'f1::z', is not computed before it")
    refuse(of(node("Relu", ["x"], ["z"])), r"the output depends on 0 inputs")
    relu = node("Relu", ["x"], ["y"])
    w = OnnxWriter()
    for _ in range(2):
        w.function("F", ["x"], ["y"], [relu])
    refuse(w.finish(w.op("F", w.input(1, 3, 4, 4), domain="local")), "two functions of the file have the same name")
    w = OnnxWriter()
    w.input(1, 3, 4, 4)
    y = w.op("Clip", "x", max=Reference("most", FLOAT))
    w.opset = 9
    refuse(w.finish(y), ".*the attribute 'max' is that of a function, and this is none")


@pytest.mark.parametrize("empty", [False, True])
def test_functions_that_unfold_to_any_size(empty: bool) -> None:
    """Each calls the one before it a hundred times."""
    w = OnnxWriter()
    w.function("F0", ["x"], ["y"], [] if empty else [node("Relu", ["x"], ["y"])])
    for i in range(10):
        calls = [node(f"F{i}", ["x"], [f"y{k}"], domain="local") for k in range(99)]
        w.function(f"F{i + 1}", ["x"], ["y"], [*calls, node(f"F{i}", ["x"], ["y"], domain="local")])
    data = w.finish(w.op("F10", w.input(1, 3, 4, 4), domain="local"))
    assert check([data], trace=False, load=onnx.load) == (0, 1)
    with pytest.raises(ModelError, match="with those of its functions the file has more than 10000 operators"):
        onnx.load(data)
