"""Graph -> ONNX model (NCHW), with the nodes that PyTorch's and TensorFlow's exporters give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastmobilenet.graph import Activation, Graph, Node, Shape, infer_shapes, kernel_size, resolve_padding

OPSET = 17
IR_VERSION = 8


def export(graph: Graph, size: tuple[int, int], batch: int = 1) -> bytes:
    """The serialised model for `batch` pictures of `size` (height, width); input "x", output "y".

    A tensor is (n, c, h, w), and (n, c) from the first dense layer on. Batch normalisation may still be
    in the graph or be folded. Raises ValueError for an op that the peers are not raced with.
    """
    import onnx

    emitter = _Emitter(graph, infer_shapes(graph, batch, *size))
    for node in graph.nodes:
        emitter.emit(node)
    helper = onnx.helper
    out = emitter.tensor_shape(graph.output)
    model = helper.make_model(
        helper.make_graph(
            [*emitter.nodes, helper.make_node("Identity", [emitter.names[graph.output]], ["y"])],
            "network",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, graph.input_channels, *size])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, out)],
            emitter.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class _Emitter:
    """Appends ONNX nodes; `names` maps a Graph tensor to its ONNX tensor."""

    def __init__(self, graph: Graph, shapes: dict[str, Shape]) -> None:
        self.graph = graph
        self.shapes = shapes
        self.names: dict[str, str] = {}
        self.flat: set[str] = set()  # tensors that are (n, c)
        self.nodes: list = []
        self.initializers: list = []

    def tensor_shape(self, name: str) -> list[int]:
        n, h, w, c = self.shapes[name]
        return [n, c] if name in self.flat else [n, c, h, w]

    def emit(self, node: Node) -> None:
        handlers: dict[str, Callable[[Node], str]] = {
            "input": self._input,
            "conv2d": self._conv2d,
            "batch_norm": self._batch_norm,
            "activation": lambda n: self.names[n.inputs[0]],
            "add": lambda n: self._op("Add", n, [self.names[s] for s in n.inputs]),
            "global_avg_pool": lambda n: self._op("GlobalAveragePool", n, [self.names[n.inputs[0]]]),
            "avg_pool2d": self._avg_pool2d,
            "dense": self._dense,
            "softmax": lambda n: self._op("Softmax", n, [self.names[n.inputs[0]]], axis=1),
        }
        if node.op not in handlers:
            raise ValueError(f"node {node.name!r}: no ONNX form for {node.op!r}")
        if node.op != "add" and len(node.inputs) > 1:
            raise ValueError(f"node {node.name!r}: export the graph before fuse_residual has run")
        name = handlers[node.op](node)
        if node.op != "dense" and node.inputs and node.inputs[0] in self.flat:
            self.flat.add(node.name)
        self.names[node.name] = self._activation(node, name)

    def _op(self, op: str, node: Node, inputs: list[str], suffix: str = "", **attrs: Any) -> str:
        import onnx

        output = node.name + suffix
        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name=output, **attrs))
        return output

    def _constant(self, name: str, value: np.ndarray) -> str:
        import onnx

        self.initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _floats(self, node: Node, key: str) -> str:
        return self._constant(f"{node.name}.{key}", node.params[key].astype(np.float32))

    def _input(self, node: Node) -> str:
        return "x"

    def _conv2d(self, node: Node) -> str:
        source = node.inputs[0]
        _, h, w, _ = self.shapes[source]
        top, bottom, left, right = resolve_padding(node, h, w)
        weight = node.params["weight"].astype(np.float32).transpose(0, 3, 1, 2)
        inputs = [self.names[source], self._constant(f"{node.name}.weight", weight)]
        if "bias" in node.params:
            inputs.append(self._floats(node, "bias"))
        return self._op(
            "Conv",
            node,
            inputs,
            kernel_shape=list(kernel_size(node)),
            strides=list(node.attrs["stride"]),
            dilations=list(node.attrs.get("dilation", (1, 1))),
            group=node.attrs.get("groups", 1),
            pads=[top, left, bottom, right],
        )

    def _batch_norm(self, node: Node) -> str:
        inputs = [self.names[node.inputs[0]]]
        inputs += [self._floats(node, key) for key in ("gamma", "beta", "mean", "variance")]
        return self._op("BatchNormalization", node, inputs, epsilon=float(node.attrs["epsilon"]))

    def _avg_pool2d(self, node: Node) -> str:
        source = node.inputs[0]
        _, h, w, _ = self.shapes[source]
        top, bottom, left, right = resolve_padding(node, h, w)
        return self._op(
            "AveragePool",
            node,
            [self.names[source]],
            kernel_shape=list(node.attrs["kernel"]),
            strides=list(node.attrs["stride"]),
            pads=[top, left, bottom, right],
            count_include_pad=0,
        )

    def _dense(self, node: Node) -> str:
        source = node.inputs[0]
        _, h, w, c = self.shapes[source]
        weight = node.params["weight"].astype(np.float32)
        x = self.names[source]
        if source not in self.flat:
            weight = weight.reshape(-1, h, w, c).transpose(0, 3, 1, 2).reshape(weight.shape)
            x = self._op("Flatten", node, [x], suffix=".flat", axis=1)
        inputs = [x, self._constant(f"{node.name}.weight", weight)]
        if "bias" in node.params:
            inputs.append(self._floats(node, "bias"))
        self.flat.add(node.name)
        return self._op("Gemm", node, inputs, transB=1)

    def _activation(self, node: Node, name: str) -> str:
        activation: Activation | None = node.activation
        if activation is None:
            return name
        if activation.kind != "clamp":
            raise ValueError(f"node {node.name!r}: no ONNX form for activation {activation}")
        if str(activation) == "relu":
            return self._op("Relu", node, [name], suffix=".act")
        bounds = [
            "" if np.isinf(value) else self._constant(f"{node.name}.{key}", np.array(value, np.float32))
            for key, value in (("lo", activation.lo), ("hi", activation.hi))
        ]
        return self._op("Clip", node, [name, *bounds], suffix=".act")
