"""What every op computes on bytes (``quantization.py``): the definition that all kernels follow bit for bit.

Sums are exact integers. Whatever becomes a byte is rounded once, by :func:`requantize`: the sum to float32, times one
float32 factor, to the nearest integer with ties to even, plus the zero point, clamped. That is XNNPACK's rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from .errors import ModelError
from .graph import OPS, Graph, Node, Shape, kernel_size, resolve_padding
from .quantization import Quant


def requantize(total: np.ndarray, factor: np.ndarray | np.float32, zero: int, lo: int = 0, hi: int = 255) -> np.ndarray:
    """Exact integers -> bytes."""
    scaled: np.ndarray = total.astype(np.float32) * factor
    y: np.ndarray = np.clip(np.rint(scaled).astype(np.float64) + zero, lo, hi).astype(np.uint8)
    return y


def weight_factors(node: Node, x: Quant) -> np.ndarray:
    """What the sums of each output channel are multiplied by: x.scale * weight_scale / y.scale, in float64, rounded to
    float32 once. (oc,)"""
    y: Quant = node.attrs["quant"]
    scale = node.params["weight_scale"].astype(np.float64)
    factors = np.broadcast_to(x.scale * scale / y.scale, node.params["weight"].shape[:1])
    return factors.astype(np.float32)


def centred_weights(node: Node) -> np.ndarray:
    """The weights less their zero point, as int64: of int8 weights 0, of uint8 weights ``weight_zero``."""
    weight = node.params["weight"]
    if weight.dtype not in (np.int8, np.uint8):
        raise ModelError(
            f"node {node.name!r}: the weights of a quantised layer must be int8 or uint8, not {weight.dtype}"
        )
    centred: np.ndarray = weight.astype(np.int64) - int(node.attrs.get("weight_zero", 0))
    return centred


def conv2d(node: Node, quants: list[Quant], x: np.ndarray) -> np.ndarray:
    """sum over the window of (x - zero) * (w - weight_zero), plus the int32 bias, requantised. Padding is ``zero``."""
    y: Quant = node.attrs["quant"]
    weight = centred_weights(node)
    groups = node.attrs.get("groups", 1)
    oc, kh, kw, icg = weight.shape
    windows = _windows(node, x.astype(np.int64) - quants[0].zero)
    n, oh, ow = windows.shape[:3]
    # float64 holds these sums exactly, and NumPy multiplies matrices of integers slowly.
    if groups == oc and icg == 1:
        total = np.einsum("nyxabc,cab->nyxc", windows, weight[..., 0].astype(np.float64), optimize=True)
    else:
        parts = []
        for g in range(groups):
            a = windows[..., g * icg : (g + 1) * icg].reshape(n * oh * ow, kh * kw * icg)
            b = weight[g * (oc // groups) : (g + 1) * (oc // groups)].reshape(oc // groups, -1).T
            parts.append((a @ b.astype(np.float64)).reshape(n, oh, ow, -1))
        total = np.concatenate(parts, axis=3)
    return _finish(node, quants[0], y, total)


def dense(node: Node, quants: list[Quant], x: np.ndarray) -> np.ndarray:
    """The same over the whole input."""
    y: Quant = node.attrs["quant"]
    flat = x.reshape(x.shape[0], -1).astype(np.float64) - quants[0].zero
    total = flat @ centred_weights(node).T.astype(np.float64)
    return _finish(node, quants[0], y, total[:, None, None, :])


def _finish(node: Node, x: Quant, y: Quant, total: np.ndarray) -> np.ndarray:
    if "bias" in node.params:
        total = total + node.params["bias"].astype(np.float64)
    return requantize(total, weight_factors(node, x), y.zero, *y.bounds(node.activation))


def _windows(node: Node, centred: np.ndarray) -> np.ndarray:
    """All windows of what has its zero taken off, so that padding is 0: (n, oh, ow, kh, kw, c) float64."""
    kh, kw = kernel_size(node)
    sh, sw = node.attrs["stride"]
    dh, dw = node.attrs.get("dilation", (1, 1))
    top, bottom, left, right = resolve_padding(node, centred.shape[1], centred.shape[2])
    padded = np.pad(centred, ((0, 0), (top, bottom), (left, right), (0, 0))).astype(np.float64)
    span = ((kh - 1) * dh + 1, (kw - 1) * dw + 1)
    view = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(1, 2))
    return view[:, ::sh, ::sw, :, ::dh, ::dw].transpose(0, 1, 2, 4, 5, 3)


def add(node: Node, quants: list[Quant], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """rint((a - za) * fa + (b - zb) * fb) + zero, fa = sa / sy, fb = sb / sy: two float32 products, one float32 sum."""
    y: Quant = node.attrs["quant"]
    fa, fb = (np.float32(q.scale / y.scale) for q in quants)
    total = (a.astype(np.int32) - quants[0].zero).astype(np.float32) * fa
    total = total + (b.astype(np.int32) - quants[1].zero).astype(np.float32) * fb
    return requantize(total, np.float32(1), y.zero, *y.bounds(node.activation))


def mul(node: Node, quants: list[Quant], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(a - za) * (b - zb), requantised with sa * sb / sy."""
    y: Quant = node.attrs["quant"]
    total = (a.astype(np.int32) - quants[0].zero) * (b.astype(np.int32) - quants[1].zero)
    factor = np.float32(quants[0].scale * quants[1].scale / y.scale)
    return requantize(total, factor, y.zero, *y.bounds(node.activation))


def lookup(node: Node, x: Quant) -> np.ndarray:
    """The byte that every byte becomes (256,), for ops of one value: activation, and a change of scale. In float64."""
    from .reference import activate

    y: Quant = node.attrs["quant"]
    real = x.scale * (np.arange(256) - float(x.zero))
    if node.op == "activation":
        real = activate(real, node.activation)
    return np.clip(np.rint(real / y.scale) + y.zero, 0, 255).astype(np.uint8)


def pool_mean(node: Node, quants: list[Quant], x: np.ndarray) -> np.ndarray:
    """The sum of (x - zero) over the window, requantised with sx / (sy * count)."""
    y: Quant = node.attrs["quant"]
    centred = x.astype(np.int64) - quants[0].zero
    if node.op == "global_avg_pool":
        total, count = centred.sum(axis=(1, 2), keepdims=True), np.full((1, 1, 1, 1), x.shape[1] * x.shape[2])
    else:
        from .pools import pool_spans

        shape: Shape = x.shape
        rows, columns = pool_spans(node, shape, OPS[node.op].shape(node, [shape]))
        total = np.stack(
            [
                np.stack([centred[:, r0:r1, c0:c1].sum(axis=(1, 2)) for c0, c1, _ in columns], axis=1)
                for r0, r1, _ in rows
            ],
            axis=1,
        )
        count = np.array([[r * k for _, _, k in columns] for _, _, r in rows])[None, :, :, None]
    factor = (quants[0].scale / (y.scale * count.astype(np.float64))).astype(np.float32)
    return requantize(total, factor, y.zero)


def max_pool2d(node: Node, quants: list[Quant], x: np.ndarray) -> np.ndarray:
    """The largest byte of the window; input and output have the same scale and zero."""
    _same(node, quants)
    windows = _windows(node, x.astype(np.int64) + 1)  # padding, which is 0 here, does not count
    largest: np.ndarray = windows.max(axis=(3, 4)) - 1
    return largest.clip(0).astype(np.uint8)


def gather_channels(node: Node, quants: list[Quant], *xs: np.ndarray) -> np.ndarray:
    """Channels of the concatenated inputs, each brought to the output's scale."""
    parts = [lookup(Node(node.name, "rescale", (), node.attrs), q)[x] for q, x in zip(quants, xs, strict=True)]
    joined: np.ndarray = np.concatenate(parts, axis=3)
    return joined if node.op == "concat" else joined[..., list(node.attrs["index"])]


def softmax(node: Node, quants: list[Quant], x: np.ndarray) -> np.ndarray:
    """Of the real numbers, in float64, quantised."""
    y: Quant = node.attrs["quant"]
    real = quants[0].scale * (x.astype(np.float64) - quants[0].zero)
    e = np.exp(real - real.max(axis=-1, keepdims=True))
    p: np.ndarray = np.rint(e / e.sum(axis=-1, keepdims=True) / y.scale) + y.zero
    return p.clip(0, 255).astype(np.uint8)


def _same(node: Node, quants: list[Quant]) -> None:
    if node.attrs["quant"] != quants[0]:
        raise ModelError(f"node {node.name!r}: {node.op} needs the same scale and zero at both ends")


EXECUTE: Mapping[str, Callable[..., np.ndarray]] = {
    "conv2d": conv2d,
    "dense": dense,
    "add": add,
    "mul": mul,
    "activation": lambda node, quants, x: lookup(node, quants[0])[x],
    "quantize": lambda node, quants, x: lookup(node, quants[0])[x],
    "global_avg_pool": pool_mean,
    "avg_pool2d": pool_mean,
    "adaptive_avg_pool2d": pool_mean,
    "max_pool2d": max_pool2d,
    "concat": gather_channels,
    "gather_channels": gather_channels,
    "softmax": softmax,
}


def execute_node(node: Node, graph: Graph, sources: list[np.ndarray]) -> np.ndarray:
    """A node that makes bytes, from bytes; or from floats, if it is a quantize or an input."""
    if node.op in ("input", "quantize") and sources[0].dtype != np.uint8:
        quant: Quant = node.attrs["quant"]
        return quant.quantize(sources[0])
    quants = []
    for name in node.inputs:
        source = graph[name].attrs.get("quant")
        if source is None:
            raise ModelError(f"node {node.name!r}: its input {name!r} is not quantised")
        quants.append(source)
    if node.op not in EXECUTE:
        raise ModelError(f"node {node.name!r}: {node.op} has no quantised form")
    return EXECUTE[node.op](node, quants, *sources)
