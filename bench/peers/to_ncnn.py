"""Graph -> ncnn's .param (text) and .bin (float32 weights), with activations fused as ncnnoptimize does."""

from __future__ import annotations

import math
import struct

import numpy as np

from fastmobilenet.graph import Activation, Graph, Node, Shape, infer_shapes, is_depthwise, kernel_size, resolve_padding

#: First line of every .param file.
MAGIC = 7767517
#: Precedes a weight array in the .bin file: the values are plain float32.
FLOAT32_TAG = struct.pack("<I", 0)


def export(graph: Graph, size: tuple[int, int]) -> tuple[str, bytes]:
    """(.param text, .bin bytes) for one picture of `size` (height, width); input blob "x", output blob "y".

    A blob is (c, h, w), and (c,) from the first dense layer on. Raises ValueError for what ncnn cannot hold.
    """
    writer = _Writer(graph, infer_shapes(graph, 1, *size))
    for node in graph.nodes:
        writer.emit(node)
    # The name "y" for the output is a copy that costs nothing: Noop hands its blob on.
    writer.layer("Noop", "output", [writer.take(graph.output)], ["y"])
    blobs = sum(len(outputs) for _, _, _, outputs, _ in writer.layers)
    lines = [str(MAGIC), f"{len(writer.layers)} {blobs}"]
    for kind, name, inputs, outputs, params in writer.layers:
        fields = [kind, name, str(len(inputs)), str(len(outputs)), *inputs, *outputs]
        lines.append(" ".join(fields + [f"{k}={_number(v)}" for k, v in params.items()]))
    return "\n".join(lines) + "\n", b"".join(writer.data)


def _number(value: object) -> str:
    if isinstance(value, list):
        return ",".join([str(len(value)), *(_number(v) for v in value)])
    return f"{value:e}" if isinstance(value, float) else str(value)


class _Writer:
    def __init__(self, graph: Graph, shapes: dict[str, Shape]) -> None:
        self.shapes = shapes
        self.readers = {name: len(nodes) for name, nodes in graph.consumers().items()}
        self.readers[graph.output] += 1
        self.blobs: dict[str, list[str]] = {}  # Graph tensor -> blobs that hold it and have no reader yet
        self.layers: list[tuple[str, str, list[str], list[str], dict]] = []
        self.data: list[bytes] = []

    def layer(self, kind: str, name: str, inputs: list[str], outputs: list[str], params: dict | None = None) -> None:
        self.layers.append((kind, name, inputs, outputs, params or {}))

    def take(self, tensor: str) -> str:
        return self.blobs[tensor].pop(0)

    def emit(self, node: Node) -> None:
        handlers = {
            "conv2d": self._conv2d,
            "activation": self._activation,
            "add": self._add,
            "global_avg_pool": self._global_avg_pool,
            "dense": self._dense,
            "softmax": self._softmax,
        }
        if node.op == "input":
            self.layer("Input", node.name, [], ["x"])
            self._publish(node.name, "x")
            return
        if node.op not in handlers:
            hint = "; fold it first" if node.op == "batch_norm" else ""
            raise ValueError(f"node {node.name!r}: no ncnn form for {node.op!r}{hint}")
        if node.op != "add" and len(node.inputs) > 1:
            raise ValueError(f"node {node.name!r}: export the graph before fuse_residual has run")
        blob = f"b_{node.name}"
        handlers[node.op](node, [self.take(s) for s in node.inputs], blob)
        self._publish(node.name, blob)

    def _publish(self, tensor: str, blob: str) -> None:
        """A blob has one reader in ncnn: more of them read the copies that a Split layer makes (no data moves)."""
        count = self.readers[tensor]
        if count <= 1:
            self.blobs[tensor] = [blob]
            return
        copies = [f"{blob}.{i}" for i in range(count)]
        self.layer("Split", f"split_{blob}", [blob], copies)
        self.blobs[tensor] = list(copies)

    def _fused(self, node: Node, activation: Activation | None) -> dict:
        """activation_type and its parameters: 1 is ReLU, 3 is clip."""
        if activation is None:
            return {}
        if str(activation) == "relu":
            return {9: 1}
        if activation.kind == "clamp" and not math.isinf(activation.lo) and not math.isinf(activation.hi):
            return {9: 3, -23310: [float(activation.lo), float(activation.hi)]}
        raise ValueError(f"node {node.name!r}: ncnn cannot fuse {activation}")

    def _weights(self, node: Node, weight: np.ndarray) -> None:
        self.data += [FLOAT32_TAG, np.ascontiguousarray(weight, np.float32).tobytes()]
        if "bias" in node.params:
            self.data.append(np.ascontiguousarray(node.params["bias"], np.float32).tobytes())

    def _conv2d(self, node: Node, inputs: list[str], blob: str) -> None:
        _, h, w, _ = self.shapes[node.inputs[0]]
        weight = node.params["weight"].transpose(0, 3, 1, 2)
        groups = node.attrs.get("groups", 1)
        if groups != 1 and not is_depthwise(node):
            raise ValueError(f"node {node.name!r}: {groups} groups have no ncnn form here")
        (kh, kw), (sh, sw) = kernel_size(node), node.attrs["stride"]
        dh, dw = node.attrs.get("dilation", (1, 1))
        top, bottom, left, right = resolve_padding(node, h, w)
        params = {
            0: weight.shape[0],
            1: kw,
            11: kh,
            2: dw,
            12: dh,
            3: sw,
            13: sh,
            4: left,
            15: right,
            14: top,
            16: bottom,
            5: int("bias" in node.params),
            6: weight.size,
            **({7: groups} if groups != 1 else {}),
            **self._fused(node, node.activation),
        }
        kind = "Convolution" if groups == 1 else "ConvolutionDepthWise"
        self.layer(kind, node.name, inputs, [blob], params)
        self._weights(node, weight)

    def _activation(self, node: Node, inputs: list[str], blob: str) -> None:
        activation = node.activation
        if str(activation) == "relu":
            self.layer("ReLU", f"{blob}_act", inputs, [blob])
        elif activation is not None and activation.kind == "clamp":
            bounds = {0: float(max(activation.lo, -3e38)), 1: float(min(activation.hi, 3e38))}
            self.layer("Clip", f"{blob}_act", inputs, [blob], bounds)
        else:
            raise ValueError(f"node {node.name!r}: no ncnn form for activation {activation}")

    def _add(self, node: Node, inputs: list[str], blob: str) -> None:
        if node.activation is None:
            self.layer("BinaryOp", node.name, inputs, [blob], {0: 0})
        else:  # ncnn fuses no activation into a sum
            self.layer("BinaryOp", node.name, inputs, [f"{blob}_sum"], {0: 0})
            self._activation(node, [f"{blob}_sum"], blob)

    def _global_avg_pool(self, node: Node, inputs: list[str], blob: str) -> None:
        self.layer("Pooling", node.name, inputs, [blob], {0: 1, 4: 1})

    def _dense(self, node: Node, inputs: list[str], blob: str) -> None:
        _, h, w, c = self.shapes[node.inputs[0]]
        oc, features = node.params["weight"].shape
        weight = node.params["weight"].reshape(oc, h, w, c).transpose(0, 3, 1, 2).reshape(oc, features)
        params = {0: weight.shape[0], 1: int("bias" in node.params), 2: weight.size}
        self.layer("InnerProduct", node.name, inputs, [blob], {**params, **self._fused(node, node.activation)})
        self._weights(node, weight)

    def _softmax(self, node: Node, inputs: list[str], blob: str) -> None:
        self.layer("Softmax", node.name, inputs, [blob], {0: 0, 1: 1})
