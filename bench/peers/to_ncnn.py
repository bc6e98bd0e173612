"""Graph -> ncnn's .param (text) and .bin (float32 weights), with activations fused as ncnnoptimize does."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from fastmobilenet.graph import Activation, Graph, Node, Shape, infer_shapes, kernel_size, resolve_padding

from .channels import shuffle_of, slice_of, splits

#: First line of every .param file.
MAGIC = 7767517
#: Precedes a weight array in the .bin file: the values are plain float32.
FLOAT32_TAG = struct.pack("<I", 0)
#: Ops whose blob is (c,) where all inputs are.
KEEPS_RANK = ("activation", "add", "mul", "concat", "gather_channels", "softmax")


def export(graph: Graph, size: tuple[int, int]) -> tuple[str, bytes]:
    """(.param text, .bin bytes) for one picture of `size` (height, width); input blob "x", output blob "y".

    A blob is (c, h, w), and (c,) behind a global pool or a dense layer. Raises ValueError for what ncnn cannot hold.
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
        self.splits = splits(graph, shapes)
        self.vectors: set[str] = set()  # tensors whose blob is (c,)
        self.readers = {name: len(nodes) for name, nodes in graph.consumers().items()}
        self.readers[graph.output] += 1
        for name, pieces in self.splits.items():
            self.readers[name] -= len(pieces) - 1  # one layer makes them all
        self.blobs: dict[str, list[str]] = {}  # Graph tensor -> blobs that hold it and have no reader yet
        self.layers: list[tuple[str, str, list[str], list[str], dict]] = []
        self.data: list[bytes] = []

    def layer(self, kind: str, name: str, inputs: list[str], outputs: list[str], params: dict | None = None) -> None:
        self.layers.append((kind, name, inputs, outputs, params or {}))

    def take(self, tensor: str) -> str:
        return self.blobs[tensor].pop(0)

    def emit(self, node: Node) -> None:
        handlers: dict[str, Callable[[Node, list[str], str], None]] = {
            "conv2d": self._conv2d,
            "activation": lambda n, inputs, blob: self._activation(n, inputs[0], blob),
            "add": lambda n, inputs, blob: self._binary(0, n, inputs, blob),
            "mul": lambda n, inputs, blob: self._binary(2, n, inputs, blob),
            "global_avg_pool": lambda n, inputs, blob: self._layer_of_map("Pooling", n, inputs, blob, {0: 1, 4: 1}),
            "avg_pool2d": self._pool,
            "max_pool2d": self._pool,
            "adaptive_avg_pool2d": self._adaptive_avg_pool2d,
            "concat": lambda n, inputs, blob: self.layer("Concat", n.name, self._alike(n, inputs), [blob], {0: 0}),
            "gather_channels": self._gather_channels,
            "lrn": self._lrn,
            "dense": self._dense,
            "softmax": lambda n, inputs, blob: self.layer("Softmax", n.name, inputs, [blob], {0: 0, 1: 1}),
        }
        if node.op == "input":
            self._input(node)
            return
        if node.op not in handlers:
            hint = "; fold it first" if node.op == "batch_norm" else ""
            raise ValueError(f"node {node.name!r}: no ncnn form for {node.op!r}{hint}")
        if node.op in ("conv2d", "dense") and len(node.inputs) > 1:
            raise ValueError(f"node {node.name!r}: export the graph before fuse_residual has run")
        if self._makes_vector(node):
            self.vectors.add(node.name)
        if node.name in self.blobs:  # a slice layer has made all its pieces at once
            return
        blob = _blob(node)
        handlers[node.op](node, [self.take(s) for s in node.inputs], blob)
        self._publish(node.name, blob)

    def _makes_vector(self, node: Node) -> bool:
        """Whether the blob is (c,) and not (c, h, w)."""
        if node.op in ("global_avg_pool", "dense"):
            return True
        passing = node.op in KEEPS_RANK or (node.op == "conv2d" and _is_product(node))
        return passing and all(s in self.vectors for s in node.inputs)

    def _map(self, source: str, blob: str) -> str:
        """The blob as (c, h, w)."""
        if source not in self.vectors:
            return blob
        self.layer("Reshape", f"{blob}_map", [blob], [f"{blob}_map"], {0: 1, 1: 1, 2: self.shapes[source][3]})
        return f"{blob}_map"

    def _layer_of_map(self, kind: str, node: Node, inputs: list[str], blob: str, params: dict) -> None:
        self.layer(kind, node.name, [self._map(node.inputs[0], inputs[0])], [blob], params)

    def _alike(self, node: Node, inputs: list[str]) -> list[str]:
        """The node's inputs with one rank."""
        if node.name in self.vectors:
            return inputs
        return [self._map(source, blob) for source, blob in zip(node.inputs, inputs, strict=True)]

    def _publish(self, tensor: str, blob: str) -> None:
        """A blob has one reader in ncnn: more of them read the copies that a Split layer makes (no data moves)."""
        count = self.readers[tensor]
        if count <= 1:
            self.blobs[tensor] = [blob]
            return
        copies = [f"{blob}.{i}" for i in range(count)]
        self.layer("Split", f"split_{blob}", [blob], copies)
        self.blobs[tensor] = list(copies)

    def _fused(self, activation: Activation | None) -> dict | None:
        """activation_type and its parameters: 1 ReLU, 3 clip, 4 sigmoid, 6 hard swish. None: not fused."""
        if activation is None:
            return {}
        if str(activation) == "relu":
            return {9: 1}
        if activation.kind == "clamp":
            return {9: 3, -23310: list(_bounds(activation))}
        if activation.kind == "hard_swish":
            return {9: 6, -23310: [float(activation.alpha), float(activation.beta)]}
        return {9: 4} if activation.kind == "sigmoid" else None

    def _fusing(self, kind: str, node: Node, inputs: list[str], blob: str, params: dict) -> None:
        """A layer with weights, and its activation as a layer of its own where it cannot be fused."""
        fused = self._fused(node.activation)
        result = blob if fused is not None else f"{blob}_sum"
        self.layer(kind, node.name, inputs, [result], {**params, **(fused or {})})
        if fused is None:
            self._activation(node, result, blob)

    def _weights(self, node: Node, weight: np.ndarray) -> None:
        self.data += [FLOAT32_TAG, np.ascontiguousarray(weight, np.float32).tobytes()]
        if "bias" in node.params:
            self.data.append(np.ascontiguousarray(node.params["bias"], np.float32).tobytes())

    def _input(self, node: Node) -> None:
        """The input's own mean and std are a Scale layer: a factor and an offset for every channel."""
        self.layer("Input", node.name, [], ["x"])
        if "mean" not in node.attrs and "std" not in node.attrs:
            self._publish(node.name, "x")
            return
        channels = self.shapes[node.name][3]
        factor = np.ones(channels) / node.attrs.get("std", 1.0)
        self.layer("Scale", f"{node.name}_scale", ["x"], ["x_scaled"], {0: channels, 1: 1})
        self.data += [np.float32(v).tobytes() for v in (factor, -factor * node.attrs.get("mean", 0.0))]
        self._publish(node.name, "x_scaled")

    def _conv2d(self, node: Node, inputs: list[str], blob: str) -> None:
        if node.name in self.vectors:  # ncnn's own tools make this of a 1x1 convolution behind a global pool
            self._product(node, node.params["weight"].reshape(node.params["weight"].shape[0], -1), inputs, blob)
            return
        _, h, w, _ = self.shapes[node.inputs[0]]
        weight = node.params["weight"].transpose(0, 3, 1, 2)
        groups = node.attrs.get("groups", 1)
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
        }
        kind = "Convolution" if groups == 1 else "ConvolutionDepthWise"
        self._fusing(kind, node, [self._map(node.inputs[0], inputs[0])], blob, params)
        self._weights(node, weight)

    def _dense(self, node: Node, inputs: list[str], blob: str) -> None:
        _, h, w, c = self.shapes[node.inputs[0]]
        oc, features = node.params["weight"].shape
        weight = node.params["weight"].reshape(oc, h, w, c).transpose(0, 3, 1, 2).reshape(oc, features)
        self._product(node, weight, inputs, blob)

    def _product(self, node: Node, weight: np.ndarray, inputs: list[str], blob: str) -> None:
        params = {0: weight.shape[0], 1: int("bias" in node.params), 2: weight.size}
        self._fusing("InnerProduct", node, inputs, blob, params)
        self._weights(node, weight)

    def _activation(self, node: Node, source: str, blob: str) -> None:
        a = node.activation
        assert a is not None
        if a.kind == "clamp" and str(a) != "relu":
            kind, params = "Clip", dict(enumerate(_bounds(a)))
        elif a.kind in ("hard_sigmoid", "hard_swish"):
            kind = "HardSigmoid" if a.kind == "hard_sigmoid" else "HardSwish"
            params = {0: float(a.alpha), 1: float(a.beta)}
        else:
            kind, params = {"clamp": "ReLU", "sigmoid": "Sigmoid", "swish": "Swish"}[a.kind], {}
        self.layer(kind, f"{blob}_act", [source], [blob], params)

    def _binary(self, operation: int, node: Node, inputs: list[str], blob: str) -> None:
        """A vector beside a map has a value for every channel. ncnn fuses no activation into these."""
        result = blob if node.activation is None else f"{blob}_sum"
        self.layer("BinaryOp", node.name, inputs, [result], {0: operation})
        if node.activation is not None:
            self._activation(node, result, blob)

    def _pool(self, node: Node, inputs: list[str], blob: str) -> None:
        _, h, w, _ = self.shapes[node.inputs[0]]
        (kh, kw), (sh, sw) = node.attrs["kernel"], node.attrs["stride"]
        padding, counted = node.attrs["padding"], node.attrs.get("count_padding", False)
        top, bottom, left, right = resolve_padding(node, h, w)
        if counted and not isinstance(padding, str) and padding != (top, bottom, left, right):
            raise ValueError(f"node {node.name!r}: ncnn counts what a ceil window reads beyond the padding")
        params = {0: int(node.op == "avg_pool2d"), 1: kw, 11: kh, 2: sw, 12: sh}
        params |= {3: left, 14: right, 13: top, 15: bottom, 5: 1, 6: int(counted)}
        self._layer_of_map("Pooling", node, inputs, blob, params)

    def _adaptive_avg_pool2d(self, node: Node, inputs: list[str], blob: str) -> None:
        oh, ow = node.attrs["size"]
        if self.shapes[node.inputs[0]][1:3] == (oh, ow):
            self._layer_of_map("Noop", node, inputs, blob, {})
        else:
            self._layer_of_map("Pooling", node, inputs, blob, {0: 1, 7: 1, 8: ow, 18: oh})

    def _gather_channels(self, node: Node, inputs: list[str], blob: str) -> None:
        run, groups = slice_of(node), shuffle_of(node, self.shapes[node.inputs[0]][3])
        pieces = self.splits.get(node.inputs[0], [])
        if node in pieces:
            self._slice(node, pieces, inputs[0])
        elif run is not None:
            self.layer("Crop", node.name, inputs, [blob], {-23309: [run[0]], -23310: [run[1]], -23311: [0]})
        elif groups is not None and node.name not in self.vectors:
            self.layer("ShuffleChannel", node.name, inputs, [blob], {0: groups})
        else:
            raise ValueError(
                f"node {node.name!r}: ncnn takes runs of channels and shuffles them, but in no other order"
            )

    def _slice(self, node: Node, pieces: list[Node], source: str) -> None:
        """One layer makes all the pieces; the other nodes find theirs made."""
        widths = [self.shapes[piece.name][3] for piece in pieces]
        self.layer("Slice", node.name, [source], [_blob(piece) for piece in pieces], {-23300: widths, 1: 0})
        for piece in pieces:
            if piece is not node:
                self._publish(piece.name, _blob(piece))

    def _lrn(self, node: Node, inputs: list[str], blob: str) -> None:
        size = node.attrs["size"]
        if size % 2 == 0:
            raise ValueError(f"node {node.name!r}: ncnn's windows of channels are odd, not {size}")
        params = {0: 0, 1: size, **{i: float(node.attrs[key]) for i, key in ((2, "alpha"), (3, "beta"), (4, "bias"))}}
        self._layer_of_map("LRN", node, inputs, blob, params)


def _blob(node: Node) -> str:
    return f"b_{node.name}"


def _is_product(node: Node) -> bool:
    """Whether a convolution of one pixel is a matrix-vector product."""
    return (
        kernel_size(node) == (1, 1)
        and node.attrs.get("groups", 1) == 1
        and node.attrs["padding"] in ("same", (0, 0, 0, 0))
    )


def _bounds(activation: Activation) -> tuple[float, float]:
    return float(max(activation.lo, -3e38)), float(min(activation.hi, 3e38))
