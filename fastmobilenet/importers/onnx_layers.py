"""ONNX operators that are layers of the Graph: convolutions, pools, products; and the Pad that comes before them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..errors import ModelError
from ..graph import Padding
from ._limits import MAX_DILATION, MAX_FILE_ELEMENTS, MAX_PAD, MAX_STRIDE, MAX_WINDOW
from ._text import quote
from .onnx_fold import positive_axes
from .onnx_schema import Operator
from .onnx_translation import Translation
from .onnx_values import NO_PAD, Value, axes_named

# --- convolutions and pools -----------------------------------------------------------------------------


def _map(t: Translation, operator: Operator, *, pending: bool = False) -> Value:
    """Input 0, which must be a map in ONNX's own order."""
    x = t.value(operator, pending=pending)
    if not x.fits("nchw"):
        operator.fail(f"its input {list(x.shape)} must be (batch, channels, height, width)")
    return replace(x, axes=tuple("nchw"))


def conv(t: Translation, operator: Operator) -> Value:
    x = _map(t, operator, pending=True)
    weight = np.ascontiguousarray(t.weight(operator, 1, rank=4).transpose(0, 2, 3, 1))  # (oc, kh, kw, ic/groups)
    kernel = (weight.shape[1], weight.shape[2])
    if operator.integers("kernel_shape") not in (None, list(kernel)):
        operator.fail(f"kernel_shape {operator.integers('kernel_shape')} does not fit the weights' {list(kernel)}")
    params = {"weight": weight}
    if t.tensor(operator, 2) is not None:
        params["bias"] = t.weight(operator, 2, rank=1)
    stride = _pair(operator, "strides", MAX_STRIDE)
    dilation = _pair(operator, "dilations", MAX_DILATION)
    return t.emit(
        operator,
        "conv2d",
        replace(x, pad=NO_PAD, pending=None),
        params=params,
        stride=stride,
        padding=_padding(operator, x, kernel, stride, dilation),
        dilation=dilation,
        groups=operator.integer("group", 1),
    )


def average_pool(t: Translation, operator: Operator) -> Value:
    x = _map(t, operator, pending=True)
    kernel = _pair(operator, "kernel_shape", MAX_FILE_ELEMENTS)
    stride = _pair(operator, "strides", MAX_STRIDE)
    if _pair(operator, "dilations", MAX_DILATION) != (1, 1):
        operator.fail("dilations are not supported")
    padding = _padding(operator, x, kernel, stride, (1, 1))
    source = replace(x, pad=NO_PAD, pending=None)
    # One window over all of a map means the mean of the map, at other picture sizes too.
    if not t.dynamic and (1, 1) != kernel == x.sizes[1:3] and padding == NO_PAD:
        return t.emit(operator, "global_avg_pool", source)
    if operator.integer("ceil_mode") and stride != (1, 1):
        operator.fail("ceil_mode 1 with a stride is not supported; ceil_mode 0 is")
    if max(kernel) > MAX_WINDOW:
        operator.fail(f"the window is {kernel[0]}x{kernel[1]}; supported is 1 to {MAX_WINDOW}, or all of the map")
    if padding == NO_PAD or not (operator.integer("count_include_pad") or x.pending):
        if not isinstance(padding, str) and any(p >= kernel[i // 2] for i, p in enumerate(padding)):
            operator.fail(f"pads {operator.integers('pads')} leave windows without a pixel")
        return t.emit(operator, "avg_pool2d", source, kernel=kernel, stride=stride, padding=padding)
    if x.pending and padding != x.pad and not operator.integer("count_include_pad"):
        operator.fail(
            "it counts the zeros of the Pad before it, but not its own; only one kind of padding is supported"
        )
    # Zeros count like pixels: a depthwise convolution whose weights are all the same.
    channels = x.sizes[3]
    t.file.allowance.take(channels * kernel[0] * kernel[1])
    weight = np.full((channels, *kernel, 1), 1.0 / (kernel[0] * kernel[1]), np.float32)
    params = {"weight": weight}
    return t.emit(
        operator, "conv2d", source, params=params, stride=stride, padding=padding, dilation=(1, 1), groups=channels
    )


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
    operator: Operator, x: Value, kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> Padding | str:
    """Padding by the operator's own attributes and by the Pad before it."""
    mode = operator.text("auto_pad", "NOTSET")
    pads = operator.integers("pads") or [0, 0, 0, 0]
    if len(pads) != 4 or not all(0 <= p <= MAX_PAD for p in pads):
        operator.fail(f"pads is {pads}; supported are four numbers from 0 to {MAX_PAD}")
    if mode == "NOTSET":
        top, left, bottom, right = pads
        return top + x.pad[0], bottom + x.pad[1], left + x.pad[2], right + x.pad[3]
    if any(pads):
        operator.fail(f"it has both auto_pad {mode} and pads {pads}")
    if mode == "VALID":
        return x.pad
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        operator.fail(f"auto_pad {quote(mode)} is none of NOTSET, VALID, SAME_UPPER and SAME_LOWER")
    if x.pending:
        raise ModelError(
            f"{x.pending} is followed by {operator.kind} with auto_pad {mode}; supported is NOTSET or VALID"
        )
    if mode == "SAME_UPPER":
        return "same"
    lower: list[int] = []
    for size, step, spread in zip(kernel, stride, dilation, strict=True):
        total = (size - 1) * spread
        if total and step > 1:
            operator.fail("auto_pad SAME_LOWER with a stride is not supported; SAME_UPPER and explicit pads are")
        lower += [total - total // 2, total // 2]
    return lower[0], lower[1], lower[2], lower[3]


def pad(t: Translation, operator: Operator) -> Value:
    x = t.value(operator, pending=True)
    rank = len(x.axes)
    if operator.text("mode", "constant") != "constant":
        operator.fail(f"mode {quote(operator.text('mode'))} is not supported; constant is")
    if t.file.opset < 11:
        amounts, fill = operator.integers("pads"), operator.number("value")
    else:
        amounts, fill = t.integers(operator, 1), t.scalar(operator, 2) or 0.0
    axes = t.integers(operator, 3)
    along = list(range(rank)) if axes is None else [a + rank if a < 0 else a for a in axes]
    if amounts is None or len(amounts) != 2 * len(along) or not all(0 <= a < rank for a in along):
        operator.fail(f"it pads {along} by {amounts}, which does not fit a tensor of rank {rank}")
    if not any(amounts):
        return x
    pad = dict.fromkeys("hw", (0, 0))
    for axis, before, after in zip(along, amounts, amounts[len(along) :], strict=False):
        if not (before or after):
            continue
        if x.axes[axis] not in pad or fill or x.averaged or not (0 <= before <= MAX_PAD and 0 <= after <= MAX_PAD):
            operator.fail(f"it pads by {amounts} with {fill:g}; supported is zeros around height and width")
        pad[x.axes[axis]] = (before, after)
    added = (*pad["h"], *pad["w"])
    total = tuple(a + b for a, b in zip(x.pad, added, strict=True))
    return replace(x, pad=(total[0], total[1], total[2], total[3]), pending=operator)


def global_average_pool(t: Translation, operator: Operator) -> Value:
    return t.emit(operator, "global_avg_pool", _map(t, operator))


def reduce_mean(t: Translation, operator: Operator) -> Value:
    x = t.value(operator, pending=True)
    if x.pad != NO_PAD:
        x = t.value(operator)
    axes = t.integers(operator, 1) if t.file.opset >= 18 else operator.integers("axes")
    if not axes and operator.integer("noop_with_empty_axes"):
        return x
    axes = positive_axes(operator, axes or range(len(x.axes)), len(x.axes))
    over = x.averaged + "".join(x.axes[a] for a in axes)
    if set(over) - set("hw") or len(set(over)) != len(over):
        operator.fail(f"it goes over the axes {axes} of {list(x.shape)}; supported is height and width")
    if set(over) == set("hw"):
        pooled = t.emit(operator, "global_avg_pool", replace(x, averaged="", pending=None))
    else:
        pooled = replace(x, averaged=over, pending=operator if over else None)
    if operator.integer("keepdims", 1):
        return pooled
    return replace(pooled, axes=axes_named([a for i, a in enumerate(pooled.axes) if i not in axes]))


# --- products -------------------------------------------------------------------------------------------


def gemm(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    if operator.integer("transA"):
        operator.fail("transA is not supported")
    weight = t.weight(operator, 1, rank=2)
    if not operator.integer("transB"):
        weight = weight.T
    params = {"weight": _times(operator, _channels_last(operator, x, weight), "alpha")}
    if t.tensor(operator, 2) is not None:
        bias = t.weight(operator, 2)
        if bias.size != 1 and bias.size != bias.shape[-1]:
            operator.fail(f"the bias {list(bias.shape)} is not one for each output")
        if bias.size not in (1, len(weight)):
            operator.fail(f"the bias {list(bias.shape)} does not fit {len(weight)} outputs")
        params["bias"] = _times(operator, np.array(np.broadcast_to(bias.reshape(-1), len(weight))), "beta")
    return _dense(t, operator, x, params)


def matmul(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    weight = t.weight(operator, 1, rank=2).T
    if x.fits("nhwc") and x.channel_axis() == len(x.axes) - 1:
        x = replace(x, axes=tuple("nhwc"))
        params = {"weight": np.ascontiguousarray(weight)[:, None, None, :]}
        return t.emit(operator, "conv2d", x, params=params, stride=(1, 1), padding=NO_PAD, dilation=(1, 1), groups=1)
    return _dense(t, operator, x, {"weight": _channels_last(operator, x, weight)})


def _channels_last(operator: Operator, x: Value, weight: np.ndarray) -> np.ndarray:
    """Weights (oc, values) for a map that is flattened in the order of the Graph, whatever order the file has."""
    if len(x.axes) != 2 or x.letters(0) not in ("", "n") or weight.shape[1] != x.shape[1] or x.size("n") != x.shape[0]:
        operator.fail(f"weights {list(weight.T.shape)} do not fit an input of {list(x.shape)}")
    order = x.letters(1)
    cube = weight.reshape(-1, *(x.size(letter) for letter in order))
    axes = [1 + order.index(letter) for letter in "hwc" if letter in order]
    return np.ascontiguousarray(cube.transpose(0, *axes)).reshape(weight.shape)


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


def _dense(t: Translation, operator: Operator, x: Value, params: dict[str, np.ndarray]) -> Value:
    return replace(t.emit(operator, "dense", x, params=params), axes=("n", "c"))
