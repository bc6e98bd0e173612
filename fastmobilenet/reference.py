"""What every op computes, in plain NumPy and float64: the definition of the ops and the oracle of the tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from . import reference_detection, reference_u8
from .graph import Activation, Graph, Node, Padding, infer_shapes, kernel_size, resolve_padding


def activate(x: np.ndarray, activation: Activation | None) -> np.ndarray:
    """Element-wise; NaN stays NaN."""
    if activation is None:
        return x
    a = activation
    y: np.ndarray
    if a.kind == "clamp":
        y = np.minimum(np.maximum(x, a.lo), a.hi)
    elif a.kind in ("hard_sigmoid", "hard_swish"):
        y = np.minimum(np.maximum(a.alpha * x + a.beta, 0.0), 1.0)
    else:
        y = 1.0 / (1.0 + np.exp(-x))
    return x * y if a.kind in ("hard_swish", "swish") else y


def _windows(x: np.ndarray, node: Node, fill: float) -> np.ndarray:
    """All windows of a padded (n, h, w, c) array: (n, oh, ow, kh, kw, c), as a view."""
    kh, kw = kernel_size(node)
    sh, sw = node.attrs["stride"]
    dh, dw = node.attrs.get("dilation", (1, 1))
    x = _pad(x, resolve_padding(node, x.shape[1], x.shape[2]), fill)
    span = ((kh - 1) * dh + 1, (kw - 1) * dw + 1)
    view = np.lib.stride_tricks.sliding_window_view(x, span, axis=(1, 2))
    return view[:, ::sh, ::sw, :, ::dh, ::dw].transpose(0, 1, 2, 4, 5, 3)


def conv2d(node: Node, x: np.ndarray, add: np.ndarray | None = None) -> np.ndarray:
    """y[n, oy, ox, o] = act(bias[o] + sum over ky, kx, i of x[n, oy*sh + ky*dh - top, ...] * w[o, ky, kx, i] + add)."""
    weight = node.params["weight"].astype(np.float64)
    groups = node.attrs.get("groups", 1)
    oc, _, _, icg = weight.shape
    windows = _windows(x, node, 0.0)
    n, oh, ow, kh, kw, _ = windows.shape
    out = np.empty((n, oh, ow, oc))
    if groups == oc and icg == 1:  # depthwise: one einsum instead of `groups` small products
        out = np.einsum("nyxabc,cab->nyxc", windows, weight[..., 0], optimize=True)
    else:
        ocg = oc // groups
        for g in range(groups):
            a = windows[..., g * icg : (g + 1) * icg].reshape(n * oh * ow, kh * kw * icg)
            b = weight[g * ocg : (g + 1) * ocg].reshape(ocg, -1).T
            out[..., g * ocg : (g + 1) * ocg] = (a @ b).reshape(n, oh, ow, ocg)
    return _finish(node, out, add)


def dense(node: Node, x: np.ndarray, add: np.ndarray | None = None) -> np.ndarray:
    """y[n, o] = act(bias[o] + sum over i of flat(x)[n, i] * w[o, i] + add)."""
    out = x.reshape(x.shape[0], -1) @ node.params["weight"].astype(np.float64).T
    return _finish(node, out[:, None, None, :], add)


def _finish(node: Node, out: np.ndarray, add: np.ndarray | None) -> np.ndarray:
    bias = node.params.get("bias")
    if bias is not None:
        out = out + bias.astype(np.float64)
    if add is not None:
        out = out + add
    return activate(out, node.activation)


def batch_norm(node: Node, x: np.ndarray) -> np.ndarray:
    """y = (x - mean) / sqrt(variance + epsilon) * gamma + beta (Ioffe and Szegedy, 2015)."""
    p = {k: v.astype(np.float64) for k, v in node.params.items()}
    y: np.ndarray = (x - p["mean"]) / np.sqrt(p["variance"] + node.attrs["epsilon"]) * p["gamma"] + p["beta"]
    return y


def avg_pool2d(node: Node, x: np.ndarray) -> np.ndarray:
    """Mean over the window. Padding counts as zeros with ``count_padding`` and not without it; what a ``ceil`` window
    reads beyond the padding never counts."""
    padding = node.attrs["padding"]
    counted = np.ones((1, *x.shape[1:3], 1))
    if node.attrs.get("count_padding", False):
        if isinstance(padding, str):
            padding = resolve_padding(node, *x.shape[1:3])
        # The padding becomes a part of the map. A ceil window still begins inside of the map alone.
        _, bottom, _, right = resolve_padding(node, *x.shape[1:3])
        beyond = (0, bottom - padding[1], 0, right - padding[3])
        x, counted = _pad(_pad(x, padding, 0.0), beyond, 0.0), _pad(_pad(counted, padding, 1.0), beyond, 0.0)
        node = replace(node, attrs={**node.attrs, "padding": (0, 0, 0, 0), "ceil": False})
    total: np.ndarray = _windows(x, node, 0.0).sum(axis=(3, 4))
    mean: np.ndarray = total / _windows(counted, node, 0.0).sum(axis=(3, 4))
    return mean


def _pad(x: np.ndarray, padding: Padding, value: float) -> np.ndarray:
    top, bottom, left, right = padding
    return np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=value)


def max_pool2d(node: Node, x: np.ndarray) -> np.ndarray:
    """Largest value of the window, padding not counted; NaN where the window has one."""
    y: np.ndarray = _windows(x, node, -np.inf).max(axis=(3, 4))
    return y


def adaptive_avg_pool2d(node: Node, x: np.ndarray) -> np.ndarray:
    """Mean over rows floor(i * h / oh) to ceil((i + 1) * h / oh), and columns likewise (PyTorch)."""
    n, h, w, c = x.shape
    oh, ow = node.attrs["size"]
    y = np.empty((n, oh, ow, c))
    for i in range(oh):
        for j in range(ow):
            window = x[:, i * h // oh : -(-(i + 1) * h // oh), j * w // ow : -(-(j + 1) * w // ow)]
            y[:, i, j] = window.mean(axis=(1, 2))
    return y


def gather_channels(node: Node, *xs: np.ndarray) -> np.ndarray:
    """y[..., i] = concat(xs)[..., index[i]]."""
    y: np.ndarray = np.concatenate(xs, axis=3)[..., list(node.attrs["index"])]
    return y


def lrn(node: Node, x: np.ndarray) -> np.ndarray:
    """y[c] = x[c] / (bias + alpha / size * sum of x[j]^2)^beta, j from c - (size - 1) // 2 to c + size // 2
    (Krizhevsky et al., 2012; the window as ONNX has it)."""
    size = node.attrs["size"]
    squares = np.pad(x * x, ((0, 0), (0, 0), (0, 0), ((size - 1) // 2, size // 2)))
    total = np.lib.stride_tricks.sliding_window_view(squares, size, axis=3).sum(axis=-1)
    y: np.ndarray = x / (node.attrs["bias"] + node.attrs["alpha"] / size * total) ** node.attrs["beta"]
    return y


def softmax(node: Node, x: np.ndarray) -> np.ndarray:
    """exp(x - max) / sum, over the channels."""
    e: np.ndarray = np.exp(x - x.max(axis=-1, keepdims=True))
    y: np.ndarray = e / e.sum(axis=-1, keepdims=True)
    return y


_EXECUTE: dict[str, Callable[..., np.ndarray]] = {
    "conv2d": conv2d,
    "dense": dense,
    "batch_norm": batch_norm,
    "activation": lambda node, x: activate(x, node.activation),
    "add": lambda node, a, b: activate(a + b, node.activation),
    "mul": lambda node, a, b: activate(a * b, node.activation),
    "global_avg_pool": lambda node, x: x.mean(axis=(1, 2), keepdims=True),
    "avg_pool2d": avg_pool2d,
    "max_pool2d": max_pool2d,
    "adaptive_avg_pool2d": adaptive_avg_pool2d,
    "concat": lambda node, *xs: np.concatenate(xs, axis=3),
    "gather_channels": gather_channels,
    "lrn": lrn,
    "softmax": softmax,
    "detection": reference_detection.rows,
}


def _normalized(node: Node, x: np.ndarray) -> np.ndarray:
    y: np.ndarray = (x.astype(np.float64) - node.attrs.get("mean", 0.0)) / node.attrs.get("std", 1.0)
    return y


def execute(graph: Graph, x: np.ndarray, *, keep: bool = False) -> dict[str, np.ndarray]:
    """Run the graph on x (n, h, w, c), already preprocessed. Returns tensor name -> (n, h, w, c) float64:
    the output alone, or every tensor with ``keep=True``. Quantised tensors are uint8 (reference_u8.py)."""
    n, h, w, _ = x.shape
    infer_shapes(graph, n, h, w)
    values: dict[str, np.ndarray] = {}
    for node in graph.nodes:
        if "quant" in node.attrs:
            sources = [values[s] for s in node.inputs] if node.op != "input" else [_normalized(node, x)]
            values[node.name] = reference_u8.execute_node(node, graph, sources)
        elif node.op == "dequantize":
            values[node.name] = graph[node.inputs[0]].attrs["quant"].dequantize(values[node.inputs[0]])
        elif node.op == "input":
            values[node.name] = _normalized(node, x)
        else:
            with np.errstate(invalid="ignore", over="ignore"):
                values[node.name] = _EXECUTE[node.op](node, *(values[s] for s in node.inputs))
    return values if keep else {graph.output: values[graph.output]}
