"""What every op computes on bytes (``quantization.py``): the definition that all kernels follow bit for bit.

The rules are those of LiteRT as it comes, which is XNNPACK wherever that has the op. Sums are exact integers. Most of
them become bytes by :func:`requantize`: the sum to float32, times one float32 factor, to the nearest integer with ties
to even, plus the zero point, clamped. Sums of two tensors (:func:`add`), means and softmax have rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from .errors import ModelError
from .graph import OPS, Graph, Node, Shape, kernel_size, resolve_padding
from .quantization import Quant


def requantize(total: np.ndarray, factor: np.ndarray | np.float32, zero: int, lo: int = 0, hi: int = 255) -> np.ndarray:
    """Exact integers -> bytes."""
    y: np.ndarray = total.astype(np.float32) * factor
    np.rint(y, out=y)
    y += np.float32(zero)  # rounds only what is clamped anyway
    return np.clip(y, lo, hi, out=y).astype(np.uint8)


def weight_factors(node: Node, x: Quant) -> np.ndarray:
    """What the sums of each output channel are multiplied by: x.scale * weight_scale / y.scale, in float32. (oc,)"""
    y: Quant = node.attrs["quant"]
    with np.errstate(over="ignore"):
        scale = np.float32(x.scale) * node.params["weight_scale"].astype(np.float32) / np.float32(y.scale)
    return np.broadcast_to(scale, node.params["weight"].shape[:1])


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
    # NumPy multiplies matrices of integers slowly. Floats hold these sums exactly, float32 small ones.
    real = np.float32 if kh * kw * icg * 255 * 255 < 2**24 else np.float64
    weight = weight.astype(real)
    ocg = oc // groups
    total = np.zeros(1, real)
    for (ky, kx), tap in _taps(node, x.astype(real) - quants[0].zero):
        if icg == ocg == 1:
            total = total + tap * weight[:, ky, kx, 0]
            continue
        pixels = tap.reshape(-1, groups, icg).swapaxes(0, 1)  # (groups, n * oh * ow, icg)
        parts = pixels @ weight[:, ky, kx].reshape(groups, ocg, icg).swapaxes(1, 2)
        total = total + parts.swapaxes(0, 1).reshape(*tap.shape[:3], oc)
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


def _taps(node: Node, centred: np.ndarray) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """For each place (ky, kx) of the window, what it reads of a map from which its zero is taken off, so that padding
    is 0: (n, oh, ow, c)."""
    kh, kw = kernel_size(node)
    sh, sw = node.attrs["stride"]
    dh, dw = node.attrs.get("dilation", (1, 1))
    top, bottom, left, right = resolve_padding(node, centred.shape[1], centred.shape[2])
    padded = np.pad(centred, ((0, 0), (top, bottom), (left, right), (0, 0)))
    h, w = padded.shape[1] - (kh - 1) * dh, padded.shape[2] - (kw - 1) * dw
    for ky, kx in np.ndindex(kh, kw):
        yield (ky, kx), padded[:, ky * dh : ky * dh + h : sh, kx * dw : kx * dw + w : sw]


#: Bits of the larger multiplier of an add.
ADD_BITS = 21


def add_multipliers(a: Quant, b: Quant, y: Quant) -> tuple[int, int, int]:
    """(ma, mb, shift) of :func:`add`: the quotients of the scales, in float32, times 2^shift, to the nearest integer.
    The shift gives the larger one 21 bits; it is at least 12 and at most 30. All sums then fit into an int32."""
    ratios = [np.float32(min(q.scale / y.scale, 256.0)) for q in (a, b)]
    _, exponent = np.frexp(max(ratios))  # the larger ratio is m * 2^exponent, 0.5 <= m < 1
    shift = min(ADD_BITS - int(exponent), 30)
    ma, mb = (int(np.rint(np.ldexp(np.float64(r), shift))) for r in ratios)
    return ma, mb, shift


def add(node: Node, quants: list[Quant], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """((a - za) * ma + (b - zb) * mb + 2^(shift - 1)) >> shift, plus zero, clamped: see :func:`add_multipliers`. In
    int32; the shift rounds down, so that halves go up."""
    y: Quant = node.attrs["quant"]
    if "rounding" in node.attrs:
        return _add_in_floats(node, quants, a, b)
    ma, mb, shift = add_multipliers(quants[0], quants[1], y)
    total = (a.astype(np.int32) - quants[0].zero) * ma + (b.astype(np.int32) - quants[1].zero) * mb
    total = (total + (1 << (shift - 1))) >> shift
    lo, hi = y.bounds(node.activation)
    clamped: np.ndarray = (total + y.zero).clip(lo, hi).astype(np.uint8)
    return clamped


#: The attribute ``rounding`` of an add that is computed in floats, as ONNX Runtime does it on x86 with AVX2: what was
#: added to the codes of the file to make bytes of them.
ADD_ROUNDINGS = {"floats_u8": 0, "floats_s8": 128}


def add_floats(a: Quant, b: Quant, y: Quant, added: int) -> tuple[float, float, float]:
    """(ra, rb, rest) of an add in floats: the quotients of the scales, and zy - fma(ra, za, rb * zb) with the zeros of
    the file's codes, in float32."""
    with np.errstate(over="ignore"):
        ra, rb = (np.float32(q.scale) / np.float32(y.scale) for q in (a, b))
        za, zb, zy = (np.float32(q.zero - added) for q in (a, b, y))
        return float(ra), float(rb), float(zy - _fma(za, ra, zb * rb))


def _add_in_floats(node: Node, quants: list[Quant], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """rint(fma(a, ra, fma(b, rb, rest))) of the codes of the file, clamped: see :func:`add_floats`. The zero point of
    the output comes before the rounding: an exact half becomes an even code."""
    y: Quant = node.attrs["quant"]
    added = ADD_ROUNDINGS[node.attrs["rounding"]]
    ra, rb, rest = (np.float32(v) for v in add_floats(quants[0], quants[1], y, added))
    x, z = (v.astype(np.float32) - np.float32(added) for v in (a, b))
    total = np.rint(_fma(x, ra, _fma(z, rb, rest))) + added
    clamped: np.ndarray = total.clip(*y.bounds(node.activation)).astype(np.uint8)
    return clamped


def _fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float32, rounded once. ``a`` are whole numbers of nine bits: the product is exact in float64, and
    the sum is rounded to odd there, which the second rounding to float32 does not notice."""
    product, c = np.float64(a) * np.float64(b), np.float64(c)
    total = product + c
    rest = total - product
    error = (product - (total - rest)) + (c - rest)  # exact: Knuth's sum of two
    odd = (np.asarray(total).view(np.int64) & 1).astype(bool)
    nudged = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & ~odd, nudged, total).astype(np.float32)


def mul(node: Node, quants: list[Quant], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(a - za) * (b - zb), requantised with sa * sb / sy in float32."""
    y: Quant = node.attrs["quant"]
    total = (a.astype(np.int32) - quants[0].zero) * (b.astype(np.int32) - quants[1].zero)
    return requantize(total, mul_factor(quants[0], quants[1], y), y.zero, *y.bounds(node.activation))


def mul_factor(a: Quant, b: Quant, y: Quant) -> np.float32:
    """What the products of :func:`mul` are multiplied by."""
    return np.float32(np.float32(a.scale) * np.float32(b.scale) / np.float32(y.scale))


def lookup(node: Node, x: Quant) -> np.ndarray:
    """The byte that every byte becomes (256,), for ops of one value: a lookup's own table; of an activation and of a
    change of scale, the real number in float64, rounded."""
    from .reference import activate

    if node.op == "lookup":
        own: np.ndarray = node.params["table"]
        return own
    y: Quant = node.attrs["quant"]
    real = x.scale * (np.arange(256) - float(x.zero))
    if node.op == "activation":
        real = activate(real, node.activation)
    table: np.ndarray = (np.rint(real / y.scale) + y.zero).clip(0, 255).astype(np.uint8)
    return table


def pool_mean(node: Node, quants: list[Quant], x: np.ndarray) -> np.ndarray:
    """The sum of (x - zero) over the window, requantised with sx / (sy * count); or, where the attribute ``rounding``
    names it, a rule of LiteRT: :func:`_average` or :func:`_mean`, of uint8 or of int8."""
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
        count = np.array([[int(r * k) for _, _, k in columns] for _, _, r in rows])[None, :, :, None]
    y: Quant = node.attrs["quant"]
    rounding = node.attrs.get("rounding")
    if rounding is not None:
        rule, added = _LITERT[rounding]
        return rule(total, count, quants[0], y, added)
    factor = (quants[0].scale / (y.scale * count.astype(np.float64))).astype(np.float32)
    return requantize(total, factor, y.zero)


def _average(total: np.ndarray, count: np.ndarray, x: Quant, y: Quant, added: int) -> np.ndarray:
    """AVERAGE_POOL_2D, with the same scale and zero at both ends: the mean of the codes of the file, which are bytes
    less ``added``, to the nearest integer, halves away from 0. With S the sum of the codes: sign(S) *
    floor((2 * |S| + count) / (2 * count))."""
    total = total + (x.zero - added) * count
    mean: np.ndarray = np.sign(total) * ((2 * np.abs(total) + count) // (2 * count)) + added
    return mean.clip(0, 255).astype(np.uint8)


def _mean(total: np.ndarray, count: np.ndarray, x: Quant, y: Quant, added: int) -> np.ndarray:
    """MEAN. With S the sum of the codes of the file, which are bytes less ``added``, and zx, zy their zeros: rint(S * f
    + (zy - zx * count * f)) + added, with f = sx / sy * (1 / count), every operation in float32. The zero of the output
    comes before the rounding: an exact half becomes an even code."""
    zx, zy = (np.float32(q.zero - added) for q in (x, y))
    f = np.float32(x.scale) / np.float32(y.scale) * (np.float32(1) / count.astype(np.float32))
    total = (total + (x.zero - added) * count).astype(np.float32)
    mean: np.ndarray = np.rint(total * f + (zy - zx * count.astype(np.float32) * f)).astype(np.float64) + added
    return mean.clip(0, 255).astype(np.uint8)


#: The attribute ``rounding`` of pools: the rule, and what was added to the codes of the file to make bytes of them.
_LITERT = {"average_u8": (_average, 0), "average_s8": (_average, 128), "mean_u8": (_mean, 0), "mean_s8": (_mean, 128)}
ROUNDINGS = tuple(_LITERT)


def max_pool2d(node: Node, quants: list[Quant], x: np.ndarray) -> np.ndarray:
    """The largest byte of the window; input and output have the same scale and zero."""
    _same(node, quants)
    padded = x.astype(np.int16) + 1  # padding, which is 0 then, does not count
    largest: np.ndarray = np.maximum.reduce([tap for _, tap in _taps(node, padded)])
    return (largest - 1).clip(0).astype(np.uint8)


def gather_channels(node: Node, quants: list[Quant], *xs: np.ndarray) -> np.ndarray:
    """Channels of the concatenated inputs, each brought to the output's scale."""
    parts = [lookup(Node(node.name, "rescale", (), node.attrs), q)[x] for q, x in zip(quants, xs, strict=True)]
    joined: np.ndarray = np.concatenate(parts, axis=3)
    return joined if node.op == "concat" else joined[..., list(node.attrs["index"])]


def softmax_table(x: Quant) -> np.ndarray:
    """exp(-scale * k) for k of 0 to 255, float32: what a value k below the largest counts."""
    table: np.ndarray = np.exp((np.float32(-x.scale) * np.arange(256, dtype=np.float32)).astype(np.float64))
    return table.astype(np.float32)


def softmax(node: Node, quants: list[Quant], x: np.ndarray) -> np.ndarray:
    """floor(e * (1 / (sum of all e * sy)) + 0.5) + zero, with e = table[largest - x] of :func:`softmax_table`: all in
    float32, the sum in the order of the channels."""
    y: Quant = node.attrs["quant"]
    e = softmax_table(quants[0])[x.max(axis=-1, keepdims=True) - x]
    total = np.add.accumulate(e, axis=-1, dtype=np.float32)[..., -1:]
    p: np.ndarray = np.floor(e * (np.float32(1) / (total * np.float32(y.scale))) + np.float32(0.5))
    return (p.astype(np.float64) + y.zero).clip(0, 255).astype(np.uint8)


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
    "lookup": lambda node, quants, x: lookup(node, quants[0])[x],
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
