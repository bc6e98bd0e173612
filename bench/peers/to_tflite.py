"""Graph -> float .tflite (NHWC), through the schema classes that come with LiteRT.

The file is what TensorFlow's converter writes: batch normalisation folded, ReLU and ReLU6 fused into the
op before, padding "SAME" or "VALID", and a PAD op in front where the pixels fit neither.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastmobilenet.graph import (
    Activation,
    Graph,
    Node,
    Shape,
    infer_shapes,
    is_depthwise,
    kernel_size,
    resolve_padding,
    same_padding,
)

#: The kernels of LiteRT want their constants on this many bytes.
ALIGNMENT = 16


def export(graph: Graph, size: tuple[int, int], batch: int = 1) -> bytes:
    """The file's bytes for `batch` pictures of `size` (height, width). Tensors are (n, h, w, c), and
    (n, c) from the first dense layer on. Raises ValueError for what has no TFLite form."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    writer = _Writer(graph, infer_shapes(graph, batch, *size), schema)
    for node in graph.nodes:
        writer.emit(node)
    subgraph = schema.SubGraphT(
        name="main",
        tensors=writer.tensors,
        inputs=[writer.index[graph.nodes[0].name]],
        outputs=[writer.index[graph.output]],
        operators=writer.operators,
    )
    model = schema.ModelT(
        version=3,
        description="network",
        operatorCodes=writer.codes,
        subgraphs=[subgraph],
        buffers=writer.buffers,
    )
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


class _Writer:
    """Collects tensors, buffers and operators; `index` maps a Graph tensor to its number."""

    def __init__(self, graph: Graph, shapes: dict[str, Shape], schema: Any) -> None:
        self.graph = graph
        self.shapes = shapes
        self.schema = schema
        self.index: dict[str, int] = {}
        self.flat: set[str] = set()  # tensors that are (n, c)
        self.tensors: list[Any] = []
        self.buffers: list[Any] = [schema.BufferT()]  # number 0 is empty by convention
        self.operators: list[Any] = []
        self.codes: list[Any] = []

    def emit(self, node: Node) -> None:
        handlers = {
            "conv2d": self._conv2d,
            "activation": self._activation,
            "add": self._add,
            "global_avg_pool": self._global_avg_pool,
            "avg_pool2d": self._avg_pool2d,
            "dense": self._dense,
            "softmax": self._softmax,
        }
        if node.op == "input":
            self.index[node.name] = self._tensor(node.name, self.shapes[node.name])
            return
        if node.op not in handlers:
            hint = "; fold it first" if node.op == "batch_norm" else ""
            raise ValueError(f"node {node.name!r}: no TFLite form for {node.op!r}{hint}")
        if node.op != "add" and len(node.inputs) > 1:
            raise ValueError(f"node {node.name!r}: export the graph before fuse_residual has run")
        if node.op == "dense" or node.inputs[0] in self.flat:
            self.flat.add(node.name)
        n, h, w, c = self.shapes[node.name]
        output = self._tensor(node.name, (n, c) if node.name in self.flat else (n, h, w, c))
        self.index[node.name] = output
        handlers[node.op](node, output)

    # --- pieces of the file ---------------------------------------------------------------------------

    def _tensor(self, name: str, shape: tuple[int, ...], data: np.ndarray | None = None) -> int:
        schema = self.schema
        buffer, kind = 0, schema.TensorType.FLOAT32
        if data is not None:
            self.buffers.append(_aligned_buffer(schema, data))
            buffer = len(self.buffers) - 1
            kind = schema.TensorType.INT32 if data.dtype == np.int32 else schema.TensorType.FLOAT32
        self.tensors.append(schema.TensorT(shape=list(shape), type=kind, buffer=buffer, name=name))
        return len(self.tensors) - 1

    def _constant(self, name: str, data: np.ndarray) -> int:
        return self._tensor(name, data.shape, data)

    def _operator(self, op: str, inputs: list[int], output: int, options: Any = None, version: int = 1) -> None:
        schema = self.schema
        code = getattr(schema.BuiltinOperator, op)
        known = [c.builtinCode for c in self.codes]
        if code not in known:
            known.append(code)
            self.codes.append(
                schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=version)
            )
        kind = 0
        if options is not None:
            kind = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self.operators.append(
            schema.OperatorT(
                opcodeIndex=known.index(code),
                inputs=inputs,
                outputs=[output],
                builtinOptionsType=kind,
                builtinOptions=options,
            )
        )

    def _fused(self, node: Node, activation: Activation | None) -> int:
        kinds = self.schema.ActivationFunctionType
        names = {"None": kinds.NONE, "relu": kinds.RELU, "relu6": kinds.RELU6}
        if str(activation) not in names:
            raise ValueError(f"node {node.name!r}: TFLite cannot fuse {activation}")
        return int(names[str(activation)])

    def _window(self, node: Node) -> tuple[int, int]:
        """(input tensor, Padding enum); writes the PAD op where neither SAME nor VALID fits."""
        source = node.inputs[0]
        n, h, w, c = self.shapes[source]
        wanted = resolve_padding(node, h, w)
        (kh, kw), (sh, sw) = kernel_size(node), node.attrs["stride"]
        dh, dw = node.attrs.get("dilation", (1, 1))
        if wanted == (0, 0, 0, 0):
            return self.index[source], self.schema.Padding.VALID
        if wanted == (*same_padding(h, kh, sh, dh), *same_padding(w, kw, sw, dw)):
            return self.index[source], self.schema.Padding.SAME
        if node.op == "avg_pool2d":
            raise ValueError(f"node {node.name!r}: an average pool cannot be padded by {wanted} in TFLite")
        top, bottom, left, right = wanted
        amounts = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], np.int32)
        padded = self._tensor(f"{node.name}.pad", (n, h + top + bottom, w + left + right, c))
        inputs = [self.index[source], self._constant(f"{node.name}.paddings", amounts)]
        self._operator("PAD", inputs, padded, self.schema.PadOptionsT())
        return padded, self.schema.Padding.VALID

    # --- ops ------------------------------------------------------------------------------------------

    def _conv2d(self, node: Node, output: int) -> None:
        weight = node.params["weight"].astype(np.float32)
        oc, groups = weight.shape[0], node.attrs.get("groups", 1)
        bias = node.params.get("bias", np.zeros(oc)).astype(np.float32)
        x, padding = self._window(node)
        common = {
            "padding": padding,
            "strideH": node.attrs["stride"][0],
            "strideW": node.attrs["stride"][1],
            "dilationHFactor": node.attrs.get("dilation", (1, 1))[0],
            "dilationWFactor": node.attrs.get("dilation", (1, 1))[1],
            "fusedActivationFunction": self._fused(node, node.activation),
        }
        if is_depthwise(node):
            weight = weight.transpose(3, 1, 2, 0)  # (1, kh, kw, c)
            options = self.schema.DepthwiseConv2DOptionsT(depthMultiplier=1, **common)
            op = "DEPTHWISE_CONV_2D"
        elif groups == 1:
            options, op = self.schema.Conv2DOptionsT(**common), "CONV_2D"
        else:
            raise ValueError(f"node {node.name!r}: {groups} groups have no TFLite form")
        inputs = [x, self._constant(f"{node.name}.weight", np.ascontiguousarray(weight))]
        self._operator(op, [*inputs, self._constant(f"{node.name}.bias", bias)], output, options)

    def _activation(self, node: Node, output: int) -> None:
        names = {"relu": "RELU", "relu6": "RELU6"}
        if str(node.activation) not in names:
            raise ValueError(f"node {node.name!r}: no TFLite form for activation {node.activation}")
        self._operator(names[str(node.activation)], [self.index[node.inputs[0]]], output)

    def _add(self, node: Node, output: int) -> None:
        options = self.schema.AddOptionsT(fusedActivationFunction=self._fused(node, node.activation))
        self._operator("ADD", [self.index[s] for s in node.inputs], output, options)

    def _global_avg_pool(self, node: Node, output: int) -> None:
        axes = self._constant(f"{node.name}.axes", np.array([1, 2], np.int32))
        self._operator("MEAN", [self.index[node.inputs[0]], axes], output, self.schema.ReducerOptionsT(keepDims=True))

    def _avg_pool2d(self, node: Node, output: int) -> None:
        x, padding = self._window(node)
        (kh, kw), (sh, sw) = node.attrs["kernel"], node.attrs["stride"]
        options = self.schema.Pool2DOptionsT(padding=padding, strideH=sh, strideW=sw, filterHeight=kh, filterWidth=kw)
        self._operator("AVERAGE_POOL_2D", [x], output, options)

    def _dense(self, node: Node, output: int) -> None:
        weight = node.params["weight"].astype(np.float32)
        bias = node.params.get("bias", np.zeros(len(weight))).astype(np.float32)
        options = self.schema.FullyConnectedOptionsT(fusedActivationFunction=self._fused(node, node.activation))
        inputs = [self.index[node.inputs[0]], self._constant(f"{node.name}.weight", np.ascontiguousarray(weight))]
        self._operator("FULLY_CONNECTED", [*inputs, self._constant(f"{node.name}.bias", bias)], output, options)

    def _softmax(self, node: Node, output: int) -> None:
        self._operator("SOFTMAX", [self.index[node.inputs[0]]], output, self.schema.SoftmaxOptionsT(beta=1.0))


def _aligned_buffer(schema: Any, data: np.ndarray) -> Any:
    """A BufferT whose bytes lie on an ALIGNMENT boundary of the file, as the schema's force_align asks."""

    class AlignedBuffer(schema.BufferT):
        def Pack(self, builder: Any) -> Any:
            builder.Prep(ALIGNMENT, len(self.data))
            return super().Pack(builder)

    return AlignedBuffer(data=np.frombuffer(data.tobytes(), np.uint8))
