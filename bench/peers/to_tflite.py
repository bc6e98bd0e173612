"""Graph -> .tflite (NHWC), of floats or, for a graph of bytes (``fastmobilenet/quantization.py``), of int8.

The file is what TensorFlow's converter writes: batch normalisation folded, ReLU and ReLU6 fused into the op before,
a hard sigmoid as ReLU6 and a product, padding "SAME" or "VALID", and a PAD op in front where the pixels fit neither.
Networks of int8 take and give int8, and have a scale for each output channel; what becomes of activations is in
:class:`bench.peers.tflite_int8.Int8Emitter`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fastmobilenet.graph import (
    RELU6,
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

from .channels import shuffle_of, slice_of, splits
from .tflite_file import FileWriter

#: Ops whose output is (n, c) where all inputs are.
KEEPS_RANK = ("activation", "add", "mul", "concat", "gather_channels", "softmax")
#: A split into more equal parts is left to LiteRT's own kernel by the XNNPACK delegate; slices are not.
MOST_PARTS = 4


def export(graph: Graph, size: tuple[int, int], batch: int = 1) -> bytes:
    """The file's bytes for `batch` pictures of `size` (height, width). Tensors are (n, h, w, c), and
    (n, c) from the first dense layer on. Raises ValueError for what has no TFLite form."""
    emitter = Emitter(graph, infer_shapes(graph, batch, *size))
    if any("quant" in node.attrs for node in graph.nodes):
        from .tflite_int8 import Int8Emitter

        emitter = Int8Emitter(graph, infer_shapes(graph, batch, *size))
    for node in graph.nodes:
        emitter.emit(node)
    return emitter.out.file(emitter.source, emitter.index[graph.output])


class Emitter:
    """Writes the operators of one node after the other; `index` maps a Graph tensor to its number in the file."""

    def __init__(self, graph: Graph, shapes: dict[str, Shape]) -> None:
        self.graph = graph
        self.shapes = shapes
        self.splits = splits(graph, shapes)
        self.out = FileWriter()
        self.source = -1
        self.index: dict[str, int] = {}
        self.flat: set[str] = set()  # tensors that are (n, c)

    def emit(self, node: Node) -> None:
        handlers = self.handlers()
        if node.op == "input":
            self._input(node)
            return
        if node.op not in handlers:
            hint = "; fold it first" if node.op == "batch_norm" else ""
            raise ValueError(f"node {node.name!r}: no TFLite form for {node.op!r}{hint}")
        if node.op in ("conv2d", "dense") and len(node.inputs) > 1:
            raise ValueError(f"node {node.name!r}: export the graph before fuse_residual has run")
        if node.op == "dense" or (node.op in KEEPS_RANK and all(s in self.flat for s in node.inputs)):
            self.flat.add(node.name)
        if node.name not in self.index:  # a split has made all its pieces at once
            self.index[node.name] = self._result(node)
            handlers[node.op](node, self.index[node.name])

    def handlers(self) -> dict[str, Callable[[Node, int], None]]:
        """What writes a node of each op into a tensor."""
        return {
            "conv2d": self._conv2d,
            "activation": lambda n, output: self._activate(n, self.index[n.inputs[0]], output),
            "add": lambda n, output: self._binary("ADD", n, output),
            "mul": lambda n, output: self._binary("MUL", n, output),
            "global_avg_pool": lambda n, output: self._mean(n, output),
            "avg_pool2d": self._avg_pool2d,
            "max_pool2d": self._max_pool2d,
            "adaptive_avg_pool2d": self._adaptive_avg_pool2d,
            "concat": lambda n, output: self._concat(n, output),
            "gather_channels": self._gather_channels,
            "lrn": self._lrn,
            "dense": self._dense,
            "softmax": self._softmax,
        }

    # --- tensors --------------------------------------------------------------------------------------

    def _result(self, node: Node, suffix: str = "") -> int:
        """A tensor for what the node makes."""
        n, h, w, c = self.shapes[node.name]
        return self.out.tensor(node.name + suffix, (n, c) if node.name in self.flat else (n, h, w, c))

    def _alike_tensor(self, node: Node, name: str, shape: tuple[int, ...]) -> int:
        """A tensor for the values of the node's first input, in another shape or with padding."""
        return self.out.tensor(name, shape)

    def _floats(self, node: Node, key: str, value: np.ndarray | list[float] | float) -> int:
        return self.out.constant(f"{node.name}.{key}", np.asarray(value, np.float32))

    def _numbers(self, node: Node, key: str, values: list | int) -> int:
        return self.out.constant(f"{node.name}.{key}", np.array(values, np.int32))

    def _reshape(self, node: Node, x: int, shape: tuple[int, ...], output: int) -> None:
        options = self.out.schema.ReshapeOptionsT(newShape=list(shape))
        self.out.operator("RESHAPE", [x, self._numbers(node, f"{output}.shape", list(shape))], [output], options)

    def _reshaped(self, node: Node, x: int, shape: tuple[int, ...]) -> int:
        output = self._alike_tensor(node, f"{node.name}.reshaped.{x}.{len(shape)}", shape)
        self._reshape(node, x, shape, output)
        return output

    def _map(self, node: Node, source: str) -> int:
        """The node's input as (n, h, w, c)."""
        x = self.index[source]
        return self._reshaped(node, x, self.shapes[source]) if source in self.flat else x

    def _alike(self, node: Node) -> list[int]:
        """The node's inputs with one rank."""
        return [self.index[s] if node.name in self.flat else self._map(node, s) for s in node.inputs]

    # --- activations ----------------------------------------------------------------------------------

    def _fusing(self, node: Node, output: int, emit: Callable[[int, int], None]) -> None:
        """emit(tensor, ActivationFunctionType): the node's op; its activation is fused where TFLite can."""
        kinds = self.out.schema.ActivationFunctionType
        fused = {"None": kinds.NONE, "relu": kinds.RELU, "relu6": kinds.RELU6, "clamp(-1, 1)": kinds.RELU_N1_TO_1}
        kind = fused.get(str(node.activation))
        if kind is not None:
            emit(output, kind)
            return
        x = self._result(node, ".sum")
        emit(x, kinds.NONE)
        self._activate(node, x, output)

    def _activate(self, node: Node, x: int, output: int) -> None:
        """The node's activation as ops of its own."""
        a: Activation | None = node.activation
        assert a is not None
        single = {"relu": "RELU", "relu6": "RELU6", "hard_swish": "HARD_SWISH", "sigmoid": "LOGISTIC"}
        single |= {"clamp(-1, 1)": "RELU_N1_TO_1", "clamp(0, 1)": "RELU_0_TO_1"}
        if str(a) in single:
            self.out.operator(single[str(a)], [x], [output])
        elif a.kind == "clamp":
            low = self.out.tensor(f"{node.name}.low", self.out.shape(x))
            schema = self.out.schema
            least, most = self._floats(node, "least", a.lo), self._floats(node, "most", a.hi)
            self.out.operator("MAXIMUM", [x, least], [low], schema.MaximumMinimumOptionsT())
            self.out.operator("MINIMUM", [low, most], [output], schema.MaximumMinimumOptionsT())
        elif a.kind == "hard_sigmoid":
            kinds = self.out.schema.ActivationFunctionType
            scaled, shifted = (self.out.tensor(f"{node.name}.{key}", self.out.shape(x)) for key in ("scaled", "six"))
            self._product(node, x, self._floats(node, "slope", 6 * a.alpha), scaled)
            options = self.out.schema.AddOptionsT(fusedActivationFunction=kinds.RELU6)
            self.out.operator("ADD", [scaled, self._floats(node, "offset", 6 * a.beta)], [shifted], options)
            self._product(node, shifted, self._floats(node, "sixth", 1 / 6), output)
        else:  # swish, and a hard swish with a slope of its own
            gate = self.out.tensor(f"{node.name}.gate", self.out.shape(x))
            kind = "sigmoid" if a.kind == "swish" else "hard_sigmoid"
            self._activate(replace(node, attrs={"activation": replace(a, kind=kind)}), x, gate)
            self._product(node, x, gate, output)

    def _product(self, node: Node, a: int, b: int, output: int) -> None:
        self.out.operator("MUL", [a, b], [output], self.out.schema.MulOptionsT())

    # --- windows --------------------------------------------------------------------------------------

    def _window(self, node: Node, value: float = 0.0, same: bool = True) -> tuple[int, int]:
        """(input tensor, Padding enum); writes a PAD op where neither SAME nor VALID fits. The padding has this value;
        `same` says whether TFLite's own SAME padding means what the node's padding means."""
        source, padding = node.inputs[0], self.out.schema.Padding
        x, (n, h, w, c), (_, oh, ow, _) = self._map(node, source), self.shapes[source], self.shapes[node.name]
        top, _, left, _ = resolve_padding(node, h, w)
        (kh, kw), (sh, sw) = kernel_size(node), node.attrs["stride"]
        dh, dw = node.attrs.get("dilation", (1, 1))
        # Padding behind the last window is left out.
        bottom = max((oh - 1) * sh + (kh - 1) * dh + 1 - h - top, 0)
        right = max((ow - 1) * sw + (kw - 1) * dw + 1 - w - left, 0)
        wanted = (top, bottom, left, right)
        if wanted == (0, 0, 0, 0):
            return x, padding.VALID
        if same and wanted == (*same_padding(h, kh, sh, dh), *same_padding(w, kw, sw, dw)):
            return x, padding.SAME
        padded = self._alike_tensor(node, f"{node.name}.pad", (n, h + top + bottom, w + left + right, c))
        inputs = [x, self._numbers(node, "paddings", [[0, 0], [top, bottom], [left, right], [0, 0]])]
        if value == 0:
            self.out.operator("PAD", inputs, [padded], self.out.schema.PadOptionsT())
        else:
            inputs.append(self._floats(node, "padding", [value]))
            self.out.operator("PADV2", inputs, [padded], self.out.schema.PadV2OptionsT())
        return padded, padding.VALID

    def _pool(self, op: str, node: Node, window: tuple[int, int], output: int) -> None:
        x, padding = window
        (kh, kw), (sh, sw) = node.attrs["kernel"], node.attrs["stride"]
        options = self.out.schema.Pool2DOptionsT(
            padding=padding, strideH=sh, strideW=sw, filterHeight=kh, filterWidth=kw
        )
        self.out.operator(op, [x], [output], options)

    def _max_pool2d(self, node: Node, output: int) -> None:
        """Zeros pad a map without negative values as well as minus infinity, and PADV2 is not XNNPACK's."""
        value = 0.0 if self._never_negative(node.inputs[0]) else -np.inf
        self._pool("MAX_POOL_2D", node, self._window(node, value), output)

    def _never_negative(self, name: str) -> bool:
        node = self.graph[name]
        if node.activation is not None:
            return node.activation.kind in ("sigmoid", "hard_sigmoid") or node.activation.lo >= 0
        passing = ("max_pool2d", "avg_pool2d", "global_avg_pool", "adaptive_avg_pool2d", "concat", "gather_channels")
        return node.op in passing and all(self._never_negative(s) for s in node.inputs)

    def _avg_pool2d(self, node: Node, output: int) -> None:
        """TFLite leaves SAME padding out of the mean; where the node counts other pixels than TFLite, the mean over
        zeros is corrected."""
        _, h, w, _ = self.shapes[node.inputs[0]]
        counts = _counted(node, h, w)
        size = node.attrs["kernel"][0] * node.attrs["kernel"][1]
        inside = _counted(replace(node, attrs={**node.attrs, "count_padding": False}), h, w)
        window = self._window(node, same=bool((counts == inside).all()))
        if window[1] == self.out.schema.Padding.SAME or (counts == size).all():
            self._pool("AVERAGE_POOL_2D", node, window, output)
            return
        mean = self._result(node, ".mean")
        self._pool("AVERAGE_POOL_2D", node, window, mean)
        self._product(node, mean, self._floats(node, "correction", size / counts), output)

    def _adaptive_avg_pool2d(self, node: Node, output: int) -> None:
        x = self._map(node, node.inputs[0])
        (n, h, w, c), (oh, ow) = self.shapes[node.inputs[0]], node.attrs["size"]
        if h % oh or w % ow:
            raise ValueError(
                f"node {node.name!r}: a map of {h}x{w} has no {oh}x{ow} equal windows, and TFLite no others"
            )
        if (h, w) == (oh, ow):
            self._reshape(node, x, (n, h, w, c), output)
            return
        kernel = (h // oh, w // ow)
        pool = replace(node, attrs={"kernel": kernel, "stride": kernel})
        self._pool("AVERAGE_POOL_2D", pool, (x, self.out.schema.Padding.VALID), output)

    def _mean(self, node: Node, output: int) -> None:
        inputs = [self._map(node, node.inputs[0]), self._numbers(node, "axes", [1, 2])]
        self.out.operator("MEAN", inputs, [output], self.out.schema.ReducerOptionsT(keepDims=True))

    # --- layers ---------------------------------------------------------------------------------------

    def _input(self, node: Node) -> None:
        """The input's own mean and std are a difference and a product."""
        x = self.source = self.out.tensor(node.name, self.shapes[node.name])
        for key, op in (("mean", "SUB"), ("std", "MUL")):
            if key in node.attrs:
                y = self._result(node, f".{op}")
                value = node.attrs[key] if key == "mean" else 1 / node.attrs[key]
                options = getattr(self.out.schema, f"{op.title()}OptionsT")()
                self.out.operator(op, [x, self._floats(node, key, value)], [y], options)
                x = y
        self.index[node.name] = x

    def _weights(self, node: Node) -> tuple[Node, np.ndarray, np.ndarray]:
        """(node, weight, bias); TensorFlow's converter moves the slope and the offset of a hard sigmoid into them."""
        weight, a = node.params["weight"].astype(np.float32), node.activation
        bias = node.params.get("bias", np.zeros(len(weight))).astype(np.float32)
        if a is not None and a.kind == "hard_sigmoid":
            weight, bias = weight * np.float32(6 * a.alpha), bias * np.float32(6 * a.alpha) + np.float32(6 * a.beta)
            node = replace(node, attrs={**node.attrs, "activation": RELU6})
        return node, weight, bias

    def _layer(self, node: Node, output: int, emit: Callable[[Node, list[int], int, int], None]) -> None:
        """emit(node, [weight, bias], tensor, ActivationFunctionType): a convolution or a dense layer."""
        folded, weight, bias = self._weights(node)
        if node.op == "conv2d" and is_depthwise(node):
            weight = weight.transpose(3, 1, 2, 0)  # (1, kh, kw, c)
        constants = [self._floats(node, "weight", weight), self._floats(node, "bias", bias)]
        if folded is node:
            self._fusing(node, output, lambda tensor, kind: emit(node, constants, tensor, kind))
            return
        six = self._result(node, ".six")
        self._fusing(folded, six, lambda tensor, kind: emit(node, constants, tensor, kind))
        self._product(node, six, self._floats(node, "sixth", 1 / 6), output)

    def _conv2d(self, node: Node, output: int) -> None:
        self._layer(node, output, self._conv2d_op)

    def _conv2d_op(self, node: Node, constants: list[int], output: int, fused: int) -> None:
        """A grouped convolution is a CONV_2D whose filters have fewer channels than the input."""
        x, padding = self._window(node)
        (sh, sw), (dh, dw) = node.attrs["stride"], node.attrs.get("dilation", (1, 1))
        common = {"padding": padding, "strideH": sh, "strideW": sw, "dilationHFactor": dh, "dilationWFactor": dw}
        if is_depthwise(node):
            options = self.out.schema.DepthwiseConv2DOptionsT(depthMultiplier=1, **common)
        else:
            options = self.out.schema.Conv2DOptionsT(**common)
        options.fusedActivationFunction = fused
        op = "DEPTHWISE_CONV_2D" if is_depthwise(node) else "CONV_2D"
        self.out.operator(op, [x, *constants], [output], options)

    def _dense(self, node: Node, output: int) -> None:
        self._layer(node, output, self._dense_op)

    def _dense_op(self, node: Node, constants: list[int], output: int, fused: int) -> None:
        x, (n, h, w, c) = self.index[node.inputs[0]], self.shapes[node.inputs[0]]
        if h * w > 1:
            x = self._reshaped(node, x, (n, h * w * c))
        options = self.out.schema.FullyConnectedOptionsT(fusedActivationFunction=fused)
        self.out.operator("FULLY_CONNECTED", [x, *constants], [output], options)

    def _binary(self, op: str, node: Node, output: int) -> None:
        inputs = self._alike(node)
        options = getattr(self.out.schema, f"{op.title()}OptionsT")()

        def emit(tensor: int, fused: int) -> None:
            options.fusedActivationFunction = fused
            self.out.operator(op, inputs, [tensor], options)

        self._fusing(node, output, emit)

    def _lrn(self, node: Node, output: int) -> None:
        size = node.attrs["size"]
        if size % 2 == 0:
            raise ValueError(f"node {node.name!r}: TFLite's windows of channels are odd, not {size}")
        options = self.out.schema.LocalResponseNormalizationOptionsT(
            radius=size // 2, bias=node.attrs["bias"], alpha=node.attrs["alpha"] / size, beta=node.attrs["beta"]
        )
        self.out.operator("LOCAL_RESPONSE_NORMALIZATION", [self._map(node, node.inputs[0])], [output], options)

    def _softmax(self, node: Node, output: int) -> None:
        self.out.operator("SOFTMAX", [self.index[node.inputs[0]]], [output], self.out.schema.SoftmaxOptionsT(beta=1.0))

    # --- channels -------------------------------------------------------------------------------------

    def _concat(self, node: Node, output: int) -> None:
        options = self.out.schema.ConcatenationOptionsT(axis=-1)
        self.out.operator("CONCATENATION", self._alike(node), [output], options)

    def _gather_channels(self, node: Node, output: int) -> None:
        run, groups = slice_of(node), shuffle_of(node, self.shapes[node.inputs[0]][3])
        x = self._alike(node)[0]
        *before, c = self.out.shape(x)
        if len(node.inputs) > 1:
            c = sum(self.shapes[s][3] for s in node.inputs)
            x = self.out.tensor(f"{node.name}.all", (*before, c))
            self._concat(node, x)
        pieces = self.splits.get(node.inputs[0], [])
        widths = {self.shapes[piece.name][3] for piece in pieces}
        if node in pieces and len(widths) == 1 and len(pieces) <= MOST_PARTS:
            self._split(node, x, pieces, output)
        elif run is not None:
            begin, size = [0] * len(before) + [run[0]], [*before, run[1] - run[0]]
            inputs = [x, self._numbers(node, "begin", begin), self._numbers(node, "size", size)]
            self.out.operator("SLICE", inputs, [output], self.out.schema.SliceOptionsT())
        elif groups is not None:
            self._shuffle(node, groups, x, output)
        else:
            inputs = [x, self._numbers(node, "index", list(node.attrs["index"]))]
            self.out.operator("GATHER", inputs, [output], self.out.schema.GatherOptionsT(axis=len(before)))

    def _split(self, node: Node, x: int, pieces: list[Node], output: int) -> None:
        if node.name in self.flat:
            self.flat.update(piece.name for piece in pieces)
        self.index |= {piece.name: self._result(piece) for piece in pieces if piece is not node}
        axis = self._numbers(node, "axis", len(self.out.shape(x)) - 1)
        outputs = [output if piece is node else self.index[piece.name] for piece in pieces]
        self.out.operator("SPLIT", [axis, x], outputs, self.out.schema.SplitOptionsT(numSplits=len(pieces)))

    def _shuffle(self, node: Node, groups: int, x: int, output: int) -> None:
        *before, c = self.out.shape(x)
        apart = self._reshaped(node, x, (*before, groups, c // groups))
        turned = self.out.tensor(f"{node.name}.turned", (*before, c // groups, groups))
        axes = [*range(len(before)), len(before) + 1, len(before)]
        self.out.operator("TRANSPOSE", [apart, self._numbers(node, "axes", axes)], [turned])
        self._reshape(node, turned, (*before, c), output)


def _counted(node: Node, h: int, w: int) -> np.ndarray:
    """How many values an average pool's windows have: (1, oh, ow, 1)."""
    padding, resolved = node.attrs["padding"], resolve_padding(node, h, w)
    if not node.attrs.get("count_padding", False):
        counted = (0, 0, 0, 0)
    else:
        counted = resolved if isinstance(padding, str) else padding
    lines = []
    for axis, size in enumerate((h, w)):
        kernel, stride = node.attrs["kernel"][axis], node.attrs["stride"][axis]
        before, after = resolved[2 * axis : 2 * axis + 2]
        first = np.arange((size + before + after - kernel) // stride + 1) * stride - before
        last = np.minimum(first + kernel, size + counted[2 * axis + 1])
        lines.append(last - np.maximum(first, -counted[2 * axis]))
    counts: np.ndarray = np.multiply.outer(*lines).astype(np.float32)
    return counts[None, :, :, None]
