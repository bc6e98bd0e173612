"""Weights of quantised layers in the order in which the kernels read them (csrc/runtime/u8_table.h)."""

from __future__ import annotations

import numpy as np

from . import _native
from .errors import ModelError
from .graph import Node, is_depthwise
from .passes import BLOCK
from .quantization import Quant
from .reference_u8 import centred_weights, weight_factors

#: A float32 that becomes an int32 must be smaller. The bound is checked on the largest sum a layer can have.
LARGEST = 2.0**30


def pack(store: _native.WeightStore, node: Node, x: Quant, isa: str) -> tuple[_native.PackedU8, str]:
    """A conv2d node with quantised weights (oc, kh, kw, ic / groups), and the ISA whose kernels it is packed for.

    Raises ModelError for scales with which a sum could leave the range of int32.
    """
    weight = centred_weights(node).astype(np.int16)  # -255 to 255
    name, width, offset, needs_127, pairwise = _native.u8_isa(isa)
    oc, kh, kw, icg = weight.shape
    groups = node.attrs.get("groups", 1)
    total = weight.sum(axis=(1, 2, 3), dtype=np.int64)
    bias = node.params["bias"].astype(np.int64) if "bias" in node.params else np.zeros(oc, np.int64)
    factors = weight_factors(node, x)
    largest = np.abs(weight).sum(axis=(1, 2, 3), dtype=np.int64) * 255 + np.abs(bias)
    if largest.max() >= LARGEST or (largest * factors).max() >= LARGEST:
        raise ModelError(f"node {node.name!r}: with its weights, bias and scales a sum may not fit into 32 bits")
    k = _depthwise_kernel(node, kh, kw) if is_depthwise(node) else 0
    in_pairs = pairwise and k > 0  # depthwise in 16 bits: nothing is taken off, and all weights fit
    offset = 0 if in_pairs else offset
    # The kernels sum (x - offset) * w; what they should sum is (x - zero) * w.
    bias = bias - (x.zero - offset) * total
    blocks = -(-oc // BLOCK)
    biases, scales = np.zeros(blocks * BLOCK, np.int32), np.zeros(blocks * BLOCK, np.float32)
    biases[:oc], scales[:oc] = bias, factors
    only_127 = needs_127 and (is_depthwise(node) or not pairwise)
    passes = [weight] if in_pairs else _split(weight, -127 if only_127 else -128)
    if is_depthwise(node):
        if in_pairs:
            words = _row_pairs(passes[0], blocks)
        else:
            words = _depthwise_words(passes, k, node.attrs["stride"][0], blocks)
        shape = (oc, kh, kw, oc)
        packed = _native.pack_u8(store, name, words, biases, scales, shape, True, len(passes), k, [])
        return packed, name
    if groups > 1:  # every output reads all channels, with zeros for those of other groups
        passes = [_ungrouped(w, groups) for w in passes]
    words, panels = _panels(passes, width, blocks, pairwise)
    shape = (oc, kh, kw, icg * groups)
    return _native.pack_u8(store, name, words, biases, scales, shape, False, 1, 0, panels), name


def _split(weight: np.ndarray, least: int) -> list[np.ndarray]:
    """Weights as a sum of int8 arrays: one, unless uint8 weights less their zero point leave the range of int8."""
    if least <= weight.min() and weight.max() <= 127:  # as nearly always
        return [weight.astype(np.int8)]
    passes = []
    while True:
        part = weight.clip(least, 127)
        passes.append(part.astype(np.int8))
        weight = weight - part
        if not weight.any():
            return passes


def _ungrouped(weight: np.ndarray, groups: int) -> np.ndarray:
    oc, kh, kw, icg = weight.shape
    whole = np.zeros((oc, kh, kw, icg * groups), weight.dtype)
    for g in range(groups):
        outputs = slice(g * oc // groups, (g + 1) * oc // groups)
        whole[outputs, :, :, g * icg : (g + 1) * icg] = weight[outputs]
    return whole


def _panels(
    passes: list[np.ndarray], width: int, blocks: int, by_block: bool
) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """Panels of [pass][k word][channels][4], or [block][pass][k word][16][4], and (first block, blocks, passes, offset)
    of each."""
    oc, kh, kw, ic = passes[0].shape
    words = -(-ic // 4)
    parts: list[np.ndarray] = []
    panels = []
    offset = 0
    for block in range(0, blocks, width):
        nb = min(width, blocks - block)
        rows = slice(block * BLOCK, min((block + nb) * BLOCK, oc))
        used = [w for i, w in enumerate(passes) if i == 0 or w[rows].any()]
        panel = []
        for w in used:
            padded = np.zeros((nb * BLOCK, kh * kw, words * 4), np.int8)
            padded[: w[rows].shape[0], :, :ic] = w[rows].reshape(-1, kh * kw, ic)
            part = padded.reshape(nb * BLOCK, kh * kw * words, 4).swapaxes(0, 1)
            panel.append(part)
        whole = np.stack(panel)
        if by_block:
            whole = whole.reshape(len(used), -1, nb, BLOCK, 4).transpose(2, 0, 1, 3, 4)
        parts.append(np.ascontiguousarray(whole).ravel())
        panels.append((block, nb, len(used), offset))
        offset += parts[-1].size
    return np.concatenate(parts), panels


def _depthwise_kernel(node: Node, kh: int, kw: int) -> int:
    """The size of the kernel that is compiled for this window, or 0 for that of any."""
    stride, dilation = node.attrs["stride"], node.attrs.get("dilation", (1, 1))
    fits = kh == kw and kh in (3, 5) and stride in ((1, 1), (2, 2)) and dilation == (1, 1)
    return kh if fits else 0


def _row_pairs(weight: np.ndarray, blocks: int) -> np.ndarray:
    """[block][kx][pair of rows][16][2] of int16, as bytes; the last row of an odd number is paired with zeros."""
    oc, kh, kw, _ = weight.shape
    rows = np.zeros((blocks * BLOCK, kh + kh % 2, kw), np.int16)
    rows[:oc, :kh] = weight[..., 0]
    pairs = rows.reshape(blocks, BLOCK, -1, 2, kw).transpose(0, 4, 2, 1, 3)
    return np.ascontiguousarray(pairs).ravel().view(np.int8)


def _depthwise_words(passes: list[np.ndarray], k: int, stride: int, blocks: int) -> np.ndarray:
    """[block][pass][ky][word][16][4]: see dw_words in csrc/runtime/u8_table.h."""
    oc, kh, kw, _ = passes[0].shape
    words = _native.dw_words(k, stride, kw)
    out = np.zeros((blocks * BLOCK, len(passes), kh, words, 4), np.int8)
    for p, weight in enumerate(passes):
        for kx in range(kw):
            column = weight[:, :, kx, 0]
            if k == 0:
                out[:oc, p, :, kx, 0] = column
            elif k == 5:
                for begin in range(0, 4, stride):
                    at = begin + kx
                    out[:oc, p, :, begin // stride * 2 + at // 4, at % 4] = column
            elif k == 3 and stride == 1:
                out[:oc, p, :, 0, kx] = column
                out[:oc, p, :, 1, kx + 1] = column
            else:
                out[:oc, p, :, kx // 4, kx % 4] = column
    by_block = out.reshape(blocks, BLOCK, len(passes), kh, words, 4).transpose(0, 2, 3, 4, 1, 5)
    return np.ascontiguousarray(by_block).ravel()
