"""Graph of bytes -> int8 .tflite, as TensorFlow's converter writes it for a network that is quantised in full.

Codes are our bytes less 128. Weights are int8 with a scale for each output channel, biases int32. A hard swish is a
HARD_SWISH. A hard sigmoid behind a convolution has its slope and offset in that, whose output is clamped to 0 to 6, and
a product with 1/6, as in networks of floats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fastmobilenet.graph import RELU6, Graph, Node, Shape, is_depthwise
from fastmobilenet.quantization import Quant

from .tflite_file import Scales
from .to_tflite import Emitter

#: Of a tensor that a RELU6 has made, and of the constant 1/6.
SIX, SIXTH = Quant(6 / 255, 0), Scales(np.float32(1 / 6 / 127))


class Int8Emitter(Emitter):
    """An Emitter for graphs whose tensors are bytes from the input to a dequantize at the output."""

    def __init__(self, graph: Graph, shapes: dict[str, Shape]) -> None:
        super().__init__(graph, shapes)
        self.readers = graph.consumers()

    def handlers(self) -> dict[str, Callable[[Node, int], None]]:
        known = super().handlers()
        allowed = ("conv2d", "dense", "add", "mul", "activation", "global_avg_pool", "max_pool2d", "concat")
        return {op: known[op] for op in allowed}

    def emit(self, node: Node) -> None:
        if node.op == "dequantize" and node.name == self.graph.output:
            self.index[node.name] = self.index[node.inputs[0]]  # the file's output is int8
            return
        if "quant" not in node.attrs:
            raise ValueError(f"node {node.name!r}: {node.op} of floats inside of a network of int8")
        super().emit(node)

    def _result(self, node: Node, suffix: str = "") -> int:
        n, h, w, c = self.shapes[node.name]
        shape = (n, c) if node.name in self.flat else (n, h, w, c)
        quant = SIX if suffix == ".six" or self._gate(node) is not None else node.attrs["quant"]
        return self.out.tensor(node.name + suffix, shape, None, scales_of(quant))

    def _alike_tensor(self, node: Node, name: str, shape: tuple[int, ...]) -> int:
        return self.out.tensor(name, shape, None, scales_of(self.graph[node.inputs[0]].attrs["quant"]))

    def _input(self, node: Node) -> None:
        """Its mean and std are part of how codes are made of pixels: see input_codes()."""
        self.index[node.name] = self.source = self._result(node)

    def _gate(self, node: Node) -> Node | None:
        """The hard sigmoid that alone reads a layer, and becomes a part of it."""
        behind = self.readers[node.name]
        if node.op not in ("conv2d", "dense") or len(behind) != 1 or behind[0].op != "activation":
            return None
        act = behind[0].activation
        return behind[0] if act is not None and act.kind == "hard_sigmoid" and node.activation is None else None

    def _layer(self, node: Node, output: int, emit: Callable[[Node, list[int], int, int], None]) -> None:
        weight, x = node.params["weight"], self.graph[node.inputs[0]].attrs["quant"]
        scale = np.broadcast_to(node.params["weight_scale"], weight.shape[:1]).astype(np.float32)
        bias = node.params["bias"].astype(np.float64)
        gate = self._gate(node)
        if gate is not None:
            act = gate.activation
            assert act is not None
            bias = np.rint(bias + act.beta / act.alpha / (x.scale * scale.astype(np.float64)))
            scale = scale * np.float32(6 * act.alpha)
            node = replace(node, attrs={**node.attrs, "activation": RELU6})
        axis = 0
        if node.op == "conv2d" and is_depthwise(node):
            weight, axis = weight.transpose(3, 1, 2, 0), 3  # (1, kh, kw, c)
        constants = [
            self.out.constant(f"{node.name}.weight", weight, Scales(scale, 0, axis)),
            self.out.constant(f"{node.name}.bias", bias.astype(np.int32), Scales(np.float32(x.scale) * scale)),
        ]
        self._fusing(node, output, lambda tensor, kind: emit(node, constants, tensor, kind))

    def _activate(self, node: Node, x: int, output: int) -> None:
        source = self.graph[node.inputs[0]]
        if self._gate(source) is not None:
            sixth = self.out.constant(f"{node.name}.sixth", np.array([127], np.int8), SIXTH)
            self._product(node, x, sixth, output)
        elif node.activation is not None and str(node.activation) == "hard_swish":
            self.out.operator("HARD_SWISH", [x], [output])
        else:
            raise ValueError(f"node {node.name!r}: no TFLite form for {node.activation} of int8")


def scales_of(quant: Quant) -> Scales:
    return Scales(np.float32(quant.scale), quant.zero - 128)


def input_codes(graph: Graph, x: np.ndarray) -> np.ndarray:
    """What the file takes for a picture (n, h, w, c), float32, that the graph would take: int8."""
    node = graph.nodes[0]
    own = (x - np.asarray(node.attrs.get("mean", 0.0))) / np.asarray(node.attrs.get("std", 1.0))
    codes: np.ndarray = (node.attrs["quant"].quantize(own).astype(np.int16) - 128).astype(np.int8)
    return codes
