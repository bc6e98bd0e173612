"""Graph -> ONNX model (NCHW), with the nodes that PyTorch's and TensorFlow's exporters give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastmobilenet.graph import Activation, Graph, Node, Shape, infer_shapes, kernel_size, resolve_padding

from .channels import shuffle_of, slice_of, splits

OPSET = 17
IR_VERSION = 8
#: Ops whose output is (n, c) where all inputs are.
KEEPS_RANK = ("activation", "add", "mul", "concat", "gather_channels", "softmax", "batch_norm")


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
        self.splits = splits(graph, shapes)
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
            "add": lambda n: self._op("Add", n, self._alike(n)),
            "mul": lambda n: self._op("Mul", n, self._alike(n)),
            "global_avg_pool": lambda n: self._op("GlobalAveragePool", n, [self._map(n.inputs[0])]),
            "avg_pool2d": self._avg_pool2d,
            "max_pool2d": lambda n: self._pool(n, "MaxPool"),
            "adaptive_avg_pool2d": self._adaptive_avg_pool2d,
            "concat": lambda n: self._op("Concat", n, self._alike(n), axis=1),
            "gather_channels": self._gather_channels,
            "lrn": self._lrn,
            "dense": self._dense,
            "softmax": lambda n: self._op("Softmax", n, [self.names[n.inputs[0]]], axis=1),
        }
        if node.op not in handlers:
            raise ValueError(f"node {node.name!r}: no ONNX form for {node.op!r}")
        if node.op in ("conv2d", "dense") and len(node.inputs) > 1:
            raise ValueError(f"node {node.name!r}: export the graph before fuse_residual has run")
        name = handlers[node.op](node)
        if node.op == "dense" or (node.op in KEEPS_RANK and all(s in self.flat for s in node.inputs)):
            self.flat.add(node.name)
        self.names[node.name] = self._activation(node, name)

    def _map(self, source: str) -> str:
        """The tensor as (n, c, h, w)."""
        if source not in self.flat:
            return self.names[source]
        n, h, w, c = self.shapes[source]
        shape = self._constant(f"{source}.{len(self.nodes)}.shape", np.array([n, c, h, w], np.int64))
        return self._node("Reshape", f"{source}.{len(self.nodes)}.map", [self.names[source], shape])

    def _alike(self, node: Node) -> list[str]:
        """The node's inputs with one rank."""
        flat = all(s in self.flat for s in node.inputs)
        return [self.names[s] if flat else self._map(s) for s in node.inputs]

    def _op(self, op: str, node: Node, inputs: list[str], suffix: str = "", **attrs: Any) -> str:
        return self._node(op, node.name + suffix, inputs, **attrs)

    def _node(self, op: str, output: str, inputs: list[str], **attrs: Any) -> str:
        import onnx

        self.nodes.append(onnx.helper.make_node(op, inputs, [output], name=output, **attrs))
        return output

    def _constant(self, name: str, value: np.ndarray) -> str:
        import onnx

        self.initializers.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _floats(self, node: Node, key: str) -> str:
        return self._constant(f"{node.name}.{key}", node.params[key].astype(np.float32))

    def _input(self, node: Node) -> str:
        """The input's own mean and std are a difference and a product, each with a value for every channel."""
        name = "x"
        if "mean" in node.attrs:
            mean = self._constant(f"{node.name}.mean", np.float32(node.attrs["mean"]).reshape(1, -1, 1, 1))
            name = self._op("Sub", node, [name, mean], suffix=".centred")
        if "std" in node.attrs:
            scale = self._constant(f"{node.name}.scale", np.float32(1 / node.attrs["std"]).reshape(1, -1, 1, 1))
            name = self._op("Mul", node, [name, scale], suffix=".scaled")
        return name

    def _conv2d(self, node: Node) -> str:
        source = node.inputs[0]
        _, h, w, _ = self.shapes[source]
        top, bottom, left, right = resolve_padding(node, h, w)
        weight = node.params["weight"].astype(np.float32).transpose(0, 3, 1, 2)
        inputs = [self._map(source), self._constant(f"{node.name}.weight", weight)]
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

    def _pool(self, node: Node, op: str, **attrs: Any) -> str:
        source = node.inputs[0]
        _, h, w, _ = self.shapes[source]
        padding = node.attrs["padding"]
        top, bottom, left, right = resolve_padding(node, h, w)
        ceil = not isinstance(padding, str) and (top, bottom, left, right) != padding
        if ceil:  # without it where it changes nothing
            top, bottom, left, right = padding
        return self._op(
            op,
            node,
            [self._map(source)],
            kernel_shape=list(node.attrs["kernel"]),
            strides=list(node.attrs["stride"]),
            pads=[top, left, bottom, right],
            ceil_mode=int(ceil),
            **attrs,
        )

    def _avg_pool2d(self, node: Node) -> str:
        return self._pool(node, "AveragePool", count_include_pad=int(node.attrs.get("count_padding", False)))

    def _adaptive_avg_pool2d(self, node: Node) -> str:
        """As PyTorch's exporter: only where all windows have one size."""
        source = node.inputs[0]
        (_, h, w, _), (oh, ow) = self.shapes[source], node.attrs["size"]
        if h % oh or w % ow:
            raise ValueError(f"node {node.name!r}: a map of {h}x{w} has no {oh}x{ow} equal windows, and ONNX no others")
        if (h, w) == (oh, ow):
            return self._map(source)
        if (oh, ow) == (1, 1):
            return self._op("GlobalAveragePool", node, [self._map(source)])
        window = [h // oh, w // ow]
        return self._op("AveragePool", node, [self._map(source)], kernel_shape=window, strides=window)

    def _gather_channels(self, node: Node) -> str:
        run, groups = slice_of(node), shuffle_of(node, self.shapes[node.inputs[0]][3])
        source = self._op("Concat", node, self._alike(node), suffix=".all", axis=1) if len(node.inputs) > 1 else ""
        source = source or self.names[node.inputs[0]]
        if run is not None:
            return self._slice(node, run, source)
        if groups is not None and node.inputs[0] not in self.flat:
            return self._shuffle(node, groups, source)
        index = self._constant(f"{node.name}.index", np.array(node.attrs["index"], np.int64))
        return self._op("Gather", node, [source, index], axis=1)

    def _slice(self, node: Node, run: tuple[int, int], source: str) -> str:
        """One output of the Split that all pieces of the tensor share, as PyTorch's chunk gives it, or a Slice."""
        import onnx

        pieces = [piece.name for piece in self.splits.get(node.inputs[0], [])]
        if node.name not in pieces:
            bounds = [self._constant(f"{node.name}.{i}", np.array([v], np.int64)) for i, v in enumerate((*run, 1))]
            return self._op("Slice", node, [source, *bounds])
        if not any(name in self.names for name in pieces):
            sizes = np.array([self.shapes[name][3] for name in pieces], np.int64)
            inputs = [source, self._constant(f"{node.name}.sizes", sizes)]
            self.nodes.append(onnx.helper.make_node("Split", inputs, pieces, name=f"{node.name}.split", axis=1))
        return node.name

    def _shuffle(self, node: Node, groups: int, source: str) -> str:
        """Reshape, Transpose, Reshape: runtimes know a channel shuffle by these."""
        n, h, w, c = self.shapes[node.name]
        apart = self._constant(f"{node.name}.apart", np.array((n, groups, c // groups, h, w), np.int64))
        whole = self._constant(f"{node.name}.whole", np.array((n, c, h, w), np.int64))
        x = self._op("Reshape", node, [source, apart], suffix=".groups")
        x = self._op("Transpose", node, [x], suffix=".turned", perm=[0, 2, 1, 3, 4])
        return self._op("Reshape", node, [x, whole])

    def _lrn(self, node: Node) -> str:
        attrs: dict[str, Any] = {key: float(node.attrs[key]) for key in ("alpha", "beta", "bias")}
        return self._op("LRN", node, [self._map(node.inputs[0])], size=int(node.attrs["size"]), **attrs)

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
        a: Activation | None = node.activation
        if a is None:
            return name
        if a.kind == "clamp":
            return self._clamp(node, a, name)
        if str(a) == "hard_swish":
            return self._op("HardSwish", node, [name], suffix=".act")
        gate = ".gate" if a.kind in ("hard_swish", "swish") else ".act"
        if a.kind in ("hard_sigmoid", "hard_swish"):
            y = self._op("HardSigmoid", node, [name], suffix=gate, alpha=float(a.alpha), beta=float(a.beta))
        else:
            y = self._op("Sigmoid", node, [name], suffix=gate)
        return y if gate == ".act" else self._op("Mul", node, [name, y], suffix=".act")

    def _clamp(self, node: Node, activation: Activation, name: str) -> str:
        if str(activation) == "relu":
            return self._op("Relu", node, [name], suffix=".act")
        bounds = [
            "" if np.isinf(value) else self._constant(f"{node.name}.{key}", np.array(value, np.float32))
            for key, value in (("lo", activation.lo), ("hi", activation.hi))
        ]
        return self._op("Clip", node, [name, *bounds], suffix=".act")
