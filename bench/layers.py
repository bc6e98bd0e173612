"""Every distinct layer of a set of networks as a network of its own, and the same layers in NumPy.

The NumPy forms are what a careful author would write, not a loop in Python: a 1x1 convolution is one BLAS
product, a depthwise one is a multiply-add of shifted views for each tap, any other convolution is im2col
through strides and one BLAS product. Their buffers are allocated once, before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bench.networks import one_node
from fastmobilenet.graph import Graph, Node, Shape, count_macs, infer_shapes, is_depthwise, kernel_size, resolve_padding

#: Ops that cost time; what is folded or only renames a tensor is not among them.
OPS = ("conv2d", "dense", "add", "mul", "global_avg_pool", "avg_pool2d")


@dataclass
class Layer:
    """One distinct layer. `graph` is the network of this node alone; `uses` counts it per network."""

    name: str
    graph: Graph
    input_shape: Shape
    output_shape: Shape
    macs: int
    uses: dict[str, int] = field(default_factory=dict)

    @property
    def node(self) -> Node:
        return self.graph[self.graph.output]

    def picture(self, seed: int = 0) -> np.ndarray:
        """An input as such a layer sees it after ReLU6: half zeros, half in 0..6; float32."""
        values = np.random.default_rng(seed).uniform(-6, 6, self.input_shape).astype(np.float32)
        return np.maximum(values, 0)


def distinct_layers(graphs: dict[str, Graph], size: tuple[int, int]) -> list[Layer]:
    """The layers of all graphs (network name -> Graph) for one picture of `size`, each shape once."""
    found: dict[str, Layer] = {}
    for network, graph in graphs.items():
        shapes = infer_shapes(graph, 1, *size)
        for node in graph.nodes:
            if node.op not in OPS:
                continue
            sources = [shapes[s] for s in node.inputs]
            name = describe(node, sources, shapes[node.name])
            if name not in found:
                macs = count_macs(node, shapes)
                found[name] = Layer(name, one_node(node, sources), sources[0], shapes[node.name], macs)
            found[name].uses[network] = found[name].uses.get(network, 0) + 1
    return list(found.values())


def describe(node: Node, xs: list[Shape], y: Shape) -> str:
    """Names all that decides a layer's cost: "1x1 14x14 512-512 relu6", "dw 3x3/2 112x112 64 relu6"."""
    x = xs[0]
    activation = f" {node.activation}" if node.activation else ""
    if node.op == "conv2d":
        kh, kw = kernel_size(node)
        stride = node.attrs["stride"][0]
        kernel = f"{kh}x{kw}" + (f"/{stride}" if stride > 1 else "")
        odd = len(set(resolve_padding(node, x[1], x[2]))) > 1  # TensorFlow's SAME with an even size
        padding = " end-padded" if odd else ""
        if is_depthwise(node):
            return f"dw {kernel} {x[1]}x{x[2]} {x[3]}{padding}{activation}"
        return f"{kernel} {x[1]}x{x[2]} {x[3]}-{y[3]}{padding}{activation}"
    if node.op == "dense":
        return f"dense {x[1] * x[2] * x[3]}-{y[3]}{activation}"
    means = " by its means" if len(xs) > 1 and xs[1] != x else ""
    return f"{node.op} {x[1]}x{x[2]} {x[3]}{means}{activation}"


# --- NumPy --------------------------------------------------------------------------------------------------


def numpy_layer(layer: Layer, x: np.ndarray) -> Callable[[], np.ndarray]:
    """A function that computes the layer for x (1, h, w, c), float32, and returns (1, oh, ow, oc).

    The result is overwritten by the next call. Raises ValueError for ops without a form here.
    """
    node = layer.node
    if node.op == "conv2d":
        if is_depthwise(node):
            return _depthwise(layer, x)
        if node.attrs.get("groups", 1) != 1:
            raise ValueError(f"layer {layer.name!r}: grouped convolution has no NumPy form here")
        if kernel_size(node) == (1, 1) and tuple(node.attrs["stride"]) == (1, 1):
            return _product(layer, lambda: x.reshape(-1, x.shape[3]))
        return _im2col(layer, x)
    if node.op == "dense":
        return _product(layer, lambda: x.reshape(1, -1))
    out = np.empty(layer.output_shape, np.float32)
    two = {"add": np.add, "mul": np.multiply}
    if node.op in two:
        function, vector = two[node.op], np.empty((1, 1, 1, x.shape[3]), np.float32)
        if len(set(node.inputs)) == 1:
            return lambda: _finish(node, function(x, x, out=out))
        return lambda: _finish(node, function(x, np.mean(x, axis=(1, 2), keepdims=True, out=vector), out=out))
    if node.op == "global_avg_pool":
        return lambda: np.mean(x, axis=(1, 2), keepdims=True, out=out)
    raise ValueError(f"layer {layer.name!r}: {node.op} has no NumPy form here")


def _finish(node: Node, y: np.ndarray) -> np.ndarray:
    """Bias and activation, in place."""
    if "bias" in node.params:
        y += node.params["bias"]
    a = node.activation
    if a is None:
        return y
    if a.kind == "clamp":
        return np.clip(y, a.lo, a.hi, out=y)
    if a.kind not in ("hard_sigmoid", "hard_swish"):
        raise ValueError(f"activation {a} has no NumPy form here")
    gate = y * np.float32(a.alpha)
    gate += np.float32(a.beta)
    np.clip(gate, 0, 1, out=gate)
    return gate if a.kind == "hard_sigmoid" else np.multiply(y, gate, out=y)


def _product(layer: Layer, rows: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    """rows() (m, k) times the weights (k, oc)."""
    node = layer.node
    weight = np.ascontiguousarray(node.params["weight"].reshape(layer.output_shape[3], -1).T)  # (k, oc)
    out = np.empty((layer.output_shape[1] * layer.output_shape[2], layer.output_shape[3]), np.float32)

    def run() -> np.ndarray:
        np.matmul(rows(), weight, out=out)
        return _finish(node, out).reshape(layer.output_shape)

    return run


def _padded(node: Node, x: np.ndarray) -> tuple[np.ndarray, Callable[[], None]]:
    """A buffer with zero borders, and the function that copies x into its middle."""
    n, h, w, c = x.shape
    top, bottom, left, right = resolve_padding(node, h, w)
    buffer = np.zeros((n, h + top + bottom, w + left + right, c), np.float32)
    middle = buffer[:, top : top + h, left : left + w]
    return buffer, lambda: np.copyto(middle, x)


def _depthwise(layer: Layer, x: np.ndarray) -> Callable[[], np.ndarray]:
    node = layer.node
    _, oh, ow, _ = layer.output_shape
    (kh, kw), (sh, sw) = kernel_size(node), node.attrs["stride"]
    dh, dw = node.attrs.get("dilation", (1, 1))
    buffer, fill = _padded(node, x)
    weight = node.params["weight"][..., 0].transpose(1, 2, 0).copy()  # (kh, kw, c)
    taps = []
    for i in range(kh):
        for j in range(kw):
            rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
            columns = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
            taps.append((buffer[:, rows, columns], weight[i, j]))
    out = np.empty(layer.output_shape, np.float32)
    term = np.empty_like(out)

    def run() -> np.ndarray:
        fill()
        np.multiply(*taps[0], out=out)
        for view, tap in taps[1:]:
            np.multiply(view, tap, out=term)
            np.add(out, term, out=out)
        return _finish(node, out)

    return run


def _im2col(layer: Layer, x: np.ndarray) -> Callable[[], np.ndarray]:
    node = layer.node
    _, oh, ow, _ = layer.output_shape
    (kh, kw), (sh, sw) = kernel_size(node), node.attrs["stride"]
    dh, dw = node.attrs.get("dilation", (1, 1))
    buffer, fill = _padded(node, x)
    row, column, channel = buffer.strides[1:]
    windows = np.lib.stride_tricks.as_strided(
        buffer,
        (oh, ow, kh, kw, x.shape[3]),
        (row * sh, column * sw, row * dh, column * dw, channel),
        writeable=False,
    )
    matrix = np.empty(windows.shape, np.float32)

    def rows() -> np.ndarray:
        fill()
        np.copyto(matrix, windows)
        return matrix.reshape(oh * ow, -1)

    return _product(layer, rows)
