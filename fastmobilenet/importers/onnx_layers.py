"""ONNX operators that are layers of the Graph: convolutions, pools, products; and the Pad that comes before them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ModelError
from ..graph import Padding, same_padding
from ._limits import MAX_DILATION, MAX_FILE_ELEMENTS, MAX_PAD, MAX_STRIDE, MAX_WINDOW
from ._text import quote
from .onnx_operator import Operator
from .onnx_shapes import axes_of, positive_axes
from .onnx_translation import Translation
from .onnx_values import NO_PAD, Coded, Pending, Value, axes_named


def _map(t: Translation, operator: Operator, *, pad: bool = False, codes: bool = False) -> Value:
    """Input 0, which must be a map in ONNX's own order. Only with ``pad`` may a Pad be pending, and only with ``codes``
    may it be of bytes."""
    x = t.value(operator, pending=("pad",) if pad else (), codes=codes)
    if not x.fits("nchw"):
        operator.fail(f"its input {list(x.shape)} must be (batch, channels, height, width)")
    return replace(x, axes=tuple("nchw"))


# --- windows --------------------------------------------------------------------------------------------


def _pair(operator: Operator, name: str, limit: int) -> tuple[int, int]:
    values = operator.integers(name)
    if values is None:
        if name == "kernel_shape":
            operator.fail("it has no kernel_shape")
        values = [1, 1]
    if len(values) != 2 or not all(1 <= v <= limit for v in values):
        operator.fail(f"{name} is {values}; supported are two numbers from 1 to {limit}")
    return values[0], values[1]


def _padding(
    t: Translation,
    operator: Operator,
    x: Value,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Padding | str:
    """Padding by the operator's own attributes and by the Pad before it."""
    mode = operator.text("auto_pad", "NOTSET")
    pads = operator.integers("pads") or [0, 0, 0, 0]
    before = NO_PAD if x.pending is None else x.pending.pad
    if len(pads) != 4 or not all(0 <= p <= MAX_PAD for p in pads):
        operator.fail(f"pads is {pads}; supported are four numbers from 0 to {MAX_PAD}")
    if mode == "NOTSET":
        top, left, bottom, right = pads
        return top + before[0], bottom + before[1], left + before[2], right + before[3]
    if any(pads):
        operator.fail(f"it has both auto_pad {mode} and pads {pads}")
    if mode == "VALID":
        return before
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        operator.fail(f"auto_pad {quote(mode)} is none of NOTSET, VALID, SAME_UPPER and SAME_LOWER")
    if x.pending is not None:
        raise ModelError(
            f"{x.pending.operator} is followed by {operator.kind} with auto_pad {mode}; supported is NOTSET or VALID"
        )
    if mode == "SAME_UPPER":
        return "same"
    if t.dynamic and stride != (1, 1):
        operator.fail("auto_pad SAME_LOWER with a stride is supported only for an input of fixed size")
    height, width = (same_padding(*each) for each in zip(x.sizes[1:3], kernel, stride, dilation, strict=True))
    return height[1], height[0], width[1], width[0]


def conv(t: Translation, operator: Operator) -> Value:
    x = _map(t, operator, pad=True)
    if x.pending is not None and x.pending.fill:
        operator.fail(f"{_fill(x)}; supported are zeros")
    weight = t.weight(operator, 1, rank=4, order=(0, 2, 3, 1))  # (oc, kh, kw, ic/groups)
    kernel = (weight.shape[1], weight.shape[2])
    if operator.integers("kernel_shape") not in (None, list(kernel)):
        operator.fail(f"kernel_shape {operator.integers('kernel_shape')} does not fit the weights' {list(kernel)}")
    params = {"weight": weight}
    if t.tensor(operator, 2) is not None:
        params["bias"] = t.weight(operator, 2, rank=1)
    stride = _pair(operator, "strides", MAX_STRIDE)
    dilation = _pair(operator, "dilations", MAX_DILATION)
    padding = _padding(t, operator, x, kernel, stride, dilation)
    groups = operator.integer("group", 1)
    codes = _codes(t, operator, t.coded(operator, 1, axis=0))
    return t.emit(
        operator, "conv2d", x, params=params, stride=stride, padding=padding, dilation=dilation, groups=groups, **codes
    )


def _codes(t: Translation, operator: Operator, weight: Coded | None) -> dict[str, Any]:
    """The attribute of a layer whose weights were bytes: how they and the bias were stored. onnx_bytes.py takes it
    off."""
    if weight is None:
        return {}
    return {"codes": (weight, t.coded(operator, 2, axis=0) if t.tensor(operator, 2) is not None else None)}


def _fill(x: Value) -> str:
    return "" if x.pending is None else f"the Pad before it, {x.pending.operator}, is of {x.pending.fill:g}"


def _window(
    t: Translation, operator: Operator, x: Value
) -> tuple[tuple[int, int], tuple[int, int], Padding | str, bool]:
    """Of a pool: kernel, stride, padding, and whether a last window counts that is only partly filled."""
    kernel = _pair(operator, "kernel_shape", MAX_FILE_ELEMENTS)
    stride = _pair(operator, "strides", MAX_STRIDE)
    dilation = _pair(operator, "dilations", MAX_DILATION)
    if dilation != (1, 1):
        operator.fail(f"dilations {list(dilation)} are not supported; [1, 1] is")
    padding = _padding(t, operator, x, kernel, stride, dilation)
    if not isinstance(padding, str) and any(p >= kernel[i // 2] for i, p in enumerate(padding)):
        operator.fail(f"the padding {padding} (top, bottom, left, right) leaves windows without a pixel")
    if not operator.integer("ceil_mode") or stride == (1, 1) or isinstance(padding, str):
        return kernel, stride, padding, False
    if x.pending is not None:
        operator.fail(f"ceil_mode 1 is not supported behind a Pad, {x.pending.operator}; ceil_mode 0 is")
    return kernel, stride, padding, True


def _check_window(operator: Operator, kernel: tuple[int, int]) -> None:
    if max(kernel) > MAX_WINDOW:
        operator.fail(
            f"the window is {kernel[0]}x{kernel[1]}; supported is 1 to {MAX_WINDOW}, or the mean of all of it"
        )


def max_pool(t: Translation, operator: Operator) -> Value:
    x = _map(t, operator, pad=True, codes=True)
    if x.pending is not None and x.pending.fill > _least(t, x):
        operator.fail(f"{_fill(x)}, which may be larger than a pixel; supported is -inf, and 0 behind a Relu")
    kernel, stride, padding, ceil = _window(t, operator, x)
    _check_window(operator, kernel)
    return t.emit(operator, "max_pool2d", x, kernel=kernel, stride=stride, padding=padding, ceil=ceil)


def _least(t: Translation, x: Value) -> float:
    """A number that no value of the map is below."""
    node = t.nodes[x.nodes[0][0]]
    if node.op == "dequantize":
        node = t.nodes[node.inputs[0]]
    codes, activation = t.bytes.get(node.name), node.activation
    if codes is not None:
        return -codes.quant.scale * codes.quant.zero
    if activation is None:
        return -math.inf
    return {"clamp": activation.lo, "hard_sigmoid": 0.0, "sigmoid": 0.0}.get(activation.kind, -math.inf)


def average_pool(t: Translation, operator: Operator) -> Value:
    x = _map(t, operator, pad=True)
    if x.pending is not None and x.pending.fill:
        operator.fail(f"{_fill(x)}; supported are zeros")
    kernel, stride, padding, ceil = _window(t, operator, x)
    # One window over all of a map means the mean of the map, at other picture sizes too.
    if not t.dynamic and (1, 1) != kernel == x.sizes[1:3] and padding == NO_PAD:
        return t.emit(operator, "global_avg_pool", x)
    _check_window(operator, kernel)
    counts = bool(operator.integer("count_include_pad"))
    if x.pending is not None:
        if padding != x.pending.pad and not counts:
            operator.fail("it counts the zeros of the Pad before it and not its own; supported is one or the other")
        counts = True
    return t.emit(
        operator, "avg_pool2d", x, kernel=kernel, stride=stride, padding=padding, ceil=ceil, count_padding=counts
    )


def pad(t: Translation, operator: Operator) -> Value:
    x = t.view(operator, pending=("pad",), codes=True)
    rank = len(x.axes)
    if operator.text("mode", "constant") != "constant":
        operator.fail(f"mode {quote(operator.text('mode'))} is not supported; constant is")
    if operator.opset < 11:
        amounts, fill = operator.integers("pads"), operator.number("value")
    else:
        amounts, fill = t.integers(operator, 1), t.scalar(operator, 2) or 0.0
    codes = {t.bytes.get(node) for node, _ in x.nodes}
    for meaning in codes - {None}:
        assert meaning is not None
        fill += 128 * meaning.signed
        if len(codes) > 1 or fill != meaning.quant.zero:
            operator.fail(f"it pads bytes with {fill:g}; supported is their zero point, {meaning.quant.zero}")
        fill = 0.0
    axes = t.integers(operator, 3)
    along = list(range(rank)) if axes is None else positive_axes(operator, axes, rank)
    if amounts is None or len(amounts) != 2 * len(along):
        operator.fail(f"it pads {along} by {amounts}, which does not fit a tensor of rank {rank}")
    if not any(amounts):
        return x
    total = list(NO_PAD if x.pending is None else x.pending.pad)
    for axis, *added in zip(along, amounts, amounts[len(along) :], strict=False):
        if not any(added):
            continue
        if x.axes[axis] not in ("h", "w") or not all(0 <= a <= MAX_PAD for a in added):
            operator.fail(f"it pads the axes {along} by {amounts}; supported is to add to height and width")
        first = 0 if x.axes[axis] == "h" else 2
        total[first] += added[0]
        total[first + 1] += added[1]
    if math.isnan(fill) or (x.pending is not None and x.pending.fill != fill):
        operator.fail(f"it pads with {fill:g} what is padded with {0 if x.pending is None else x.pending.fill:g}")
    return replace(x, pending=Pending("pad", operator, (total[0], total[1], total[2], total[3]), fill))


# --- means ----------------------------------------------------------------------------------------------


def global_average_pool(t: Translation, operator: Operator) -> Value:
    return t.emit(operator, "global_avg_pool", _map(t, operator))


def reduce_mean(t: Translation, operator: Operator) -> Value:
    x = t.view(operator, pending=("mean",))
    axes = axes_of(operator, 18, t.parameters(operator))
    if not axes and operator.integer("noop_with_empty_axes"):
        return x
    axes = positive_axes(operator, axes or range(len(x.axes)), len(x.axes))
    over = ("" if x.pending is None else x.pending.averaged) + "".join(x.axes[a] for a in axes)
    if set(over) - set("hw") or len(set(over)) != len(over):
        operator.fail(f"it goes over the axes {axes} of {list(x.shape)}; supported is height and width")
    if len(over) < 2:
        pooled = replace(x, pending=Pending("mean", operator, averaged=over) if over else x.pending)
    else:
        pooled = t.emit(operator, "global_avg_pool", t.whole(x))
    if operator.integer("keepdims", 1):
        return pooled
    return replace(pooled, axes=axes_named([a for i, a in enumerate(pooled.axes) if i not in axes]))


# --- products -------------------------------------------------------------------------------------------


def gemm(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    if operator.integer("transA"):
        operator.fail("transA is not supported")
    transposed = bool(operator.integer("transB"))
    weight = t.weight(operator, 1, rank=2, order=(0, 1) if transposed else (1, 0))
    codes = _codes(t, operator, t.coded(operator, 1, axis=0 if transposed else 1))
    params = {"weight": _times(operator, _channels_last(t, operator, x, weight), "alpha")}
    if t.tensor(operator, 2) is not None:
        bias = t.weight(operator, 2)
        if bias.size != 1 and bias.size != bias.shape[-1]:
            operator.fail(f"the bias {list(bias.shape)} is not one for each output")
        if bias.size not in (1, len(weight)):
            operator.fail(f"the bias {list(bias.shape)} does not fit {len(weight)} outputs")
        params["bias"] = _times(operator, np.array(np.broadcast_to(bias.reshape(-1), len(weight))), "beta")
    return _dense(t, operator, x, params, codes)


def matmul(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    weight = t.weight(operator, 1, rank=2, order=(1, 0))
    coded = t.coded(operator, 1, axis=1)
    codes: dict[str, Any] = {} if coded is None else {"codes": (coded, None)}
    if len(x.axes) > 2 and x.channel_axis() == len(x.axes) - 1:
        params = {"weight": weight[:, None, None, :]}
        window: dict[str, Any] = {"stride": (1, 1), "padding": NO_PAD, "dilation": (1, 1), "groups": 1}
        return t.emit(operator, "conv2d", x, params=params, **window, **codes)
    return _dense(t, operator, x, {"weight": _channels_last(t, operator, x, weight)}, codes)


def _channels_last(t: Translation, operator: Operator, x: Value, weight: np.ndarray) -> np.ndarray:
    """Weights (oc, values) for a map that is flattened in the order of the Graph, whatever order the file has."""
    if (
        len(x.axes) != 2
        or x.letters()[0] not in ("", "n")
        or weight.shape[1] != x.shape[1]
        or x.size("n") != x.shape[0]
    ):
        operator.fail(f"weights {list(weight.T.shape)} do not fit an input of {list(x.shape)}")
    parts = x.parts()[1]
    order = [1 + i for wanted in "hwc" for i, (letter, _) in enumerate(parts) if letter == wanted]
    if order == sorted(order):
        return weight
    t.file.allowance.take(weight.size)
    cube = weight.reshape(-1, *(length for _, length in parts))
    return np.ascontiguousarray(cube.transpose(0, *order)).reshape(weight.shape)


def _times(operator: Operator, values: np.ndarray, name: str) -> np.ndarray:
    """The values times the operator's alpha or beta."""
    factor = operator.number(name, 1.0)
    if factor == 1.0:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        values = values * np.float32(factor)
    if not np.isfinite(values).all():
        operator.fail(f"{name} {factor:g} makes weights that are infinite or not a number")
    return values


def _dense(t: Translation, operator: Operator, x: Value, params: dict[str, np.ndarray], codes: dict[str, Any]) -> Value:
    before = t.nodes[x.nodes[0][0]]
    if not t.dynamic and before.op == "avg_pool2d" and before.attrs["kernel"] == before.attrs["stride"] == (1, 1):
        # A mean over one pixel is what PyTorch exports an adaptive pool as, where the map already has its size.
        t.nodes[before.name] = replace(before, op="adaptive_avg_pool2d", attrs={"size": x.sizes[1:3]})
    return replace(t.emit(operator, "dense", x, params=params, **codes), axes=("n", "c"), channels=None)


# --- others ---------------------------------------------------------------------------------------------


def lrn(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    if len(x.axes) < 2 or x.channel_axis() != 1:
        operator.fail(f"its input {list(x.shape)} must have the channels as its axis 1")
    size = operator.integer("size")
    if not 1 <= size <= MAX_WINDOW:
        operator.fail(f"size is {size}; supported is 1 to {MAX_WINDOW}")
    alpha, beta, bias = (operator.number(*given) for given in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    if not (math.isfinite(alpha) and math.isfinite(beta) and math.isfinite(bias)):
        operator.fail(f"alpha {alpha:g}, beta {beta:g} and bias {bias:g} must be finite")
    return t.emit(operator, "lrn", x, size=size, alpha=alpha, beta=beta, bias=bias)
