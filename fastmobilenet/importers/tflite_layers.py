"""TFLite operators with windows or weights: convolutions, FULLY_CONNECTED, pools, and the PAD before them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import ModelError
from ..graph import Padding
from ._limits import MAX_DILATION, MAX_PAD, MAX_STRIDE, MAX_WINDOW
from .flatbuffer import Table
from .tflite_schema import Operator, Tensor
from .tflite_translation import NO_PAD, Translation, Value, named_activation, options_of, shape4


def conv(t: Translation, operator: Operator) -> Value:
    weight, tensor = t.weight(operator, 4)  # (oc, kh, kw, ic/groups)
    channels = shape4(t.file.tensor(t.index(operator, 0)))[3]
    if not weight.shape[3] or channels % weight.shape[3]:
        raise ModelError(f"{operator}: weights {weight.shape} do not fit {channels} input channels")
    return _convolution(t, operator, weight, tensor, channels // weight.shape[3], fused_field=3)


def depthwise(t: Translation, operator: Operator) -> Value:
    weight, tensor = t.weight(operator, 4)  # (1, kh, kw, oc): output channel o reads input channel o // (oc / ic)
    channels = shape4(t.file.tensor(t.index(operator, 0)))[3]
    if weight.shape[0] != 1 or not channels or weight.shape[3] % channels:
        raise ModelError(f"{operator}: weights {weight.shape} do not fit {channels} input channels")
    # Field 3 of its options, the depth multiplier, is oc / ic again; TFLite computes it from the shapes too.
    return _convolution(t, operator, weight.transpose(3, 1, 2, 0), tensor, channels, fused_field=4)


def _convolution(
    t: Translation, operator: Operator, weight: np.ndarray, tensor: Tensor, groups: int, fused_field: int
) -> Value:
    x = t.value(operator, padded=True)
    options = options_of(operator)
    padding = _padding(operator, options)
    if padding == "same":
        x = t.plain(x)
    elif x.pad_operator:
        padding = x.pad
    vertical, horizontal = options.int32(fused_field + 2, 1), options.int32(fused_field + 1, 1)
    return t.emit(
        operator,
        "conv2d",
        x.node,
        params={"weight": np.ascontiguousarray(weight), **t.bias(operator, tensor)},
        activation=t.fused(operator, fused_field),
        stride=_pair(operator, "stride", options.int32(2), options.int32(1), MAX_STRIDE),
        padding=padding,
        dilation=_pair(operator, "dilation", vertical, horizontal, MAX_DILATION),
        groups=groups,
    )


def fully_connected(t: Translation, operator: Operator) -> Value:
    x = t.value(operator, flat=True)
    if options_of(operator).int8(1) != 0:
        raise ModelError(f"{operator}: shuffled weights are not supported; the default format is")
    weight, tensor = t.weight(operator, 2)
    params = {"weight": weight, **t.bias(operator, tensor)}
    return t.emit(operator, "dense", x.node, params=params, activation=t.fused(operator, 0))


def average_pool(t: Translation, operator: Operator) -> Value:
    x = t.value(operator, padded=True)
    options = options_of(operator)
    padding = _padding(operator, options)
    if padding == "same":
        x = t.plain(x)
    activation = named_activation(operator, 5)
    source = t.file.tensor(t.index(operator, 0))
    _, h, w, _ = shape4(source)
    _, oh, ow, _ = shape4(t.file.tensor(operator.outputs[0]))
    kh, kw = options.int32(4), options.int32(3)
    # One window over all of a map means the mean of the map, at other picture sizes too.
    if not source.dynamic and not x.pad_operator and (oh, ow) == (1, 1) and kh >= h and kw >= w and h * w > 1:
        return t.activated(operator, t.emit(operator, "global_avg_pool", x.node), activation)
    attrs = _window(operator, options) | {"padding": padding}
    if x.pad_operator:  # its zeros count
        attrs |= {"padding": x.pad, "count_padding": True}
    return t.activated(operator, t.emit(operator, "avg_pool2d", x.node, **attrs), activation)


def max_pool(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    options = options_of(operator)
    attrs = _window(operator, options) | {"padding": _padding(operator, options)}
    return t.activated(operator, t.emit(operator, "max_pool2d", x.node, **attrs), named_activation(operator, 5))


def _window(operator: Operator, options: Table) -> dict[str, Any]:
    return {
        "kernel": _pair(operator, "window", options.int32(4), options.int32(3), MAX_WINDOW),
        "stride": _pair(operator, "stride", options.int32(2), options.int32(1), MAX_STRIDE),
    }


def mean(t: Translation, operator: Operator) -> Value:
    x = t.value(operator)
    rank = len(t.file.tensor(t.index(operator, 0)).shape)
    axes = t.file.integers(t.index(operator, 1))
    if rank != 4 or sorted(a + 4 if a < 0 else a for a in axes) != [1, 2]:
        where = f"the axes {axes} of a tensor of rank {rank}"
        raise ModelError(f"{operator} goes over {where}; supported are height and width, [1, 2] of rank 4")
    return t.emit(operator, "global_avg_pool", x.node)


def pad(t: Translation, operator: Operator) -> Value:
    """PAD, and PADV2 with zeros."""
    x = t.value(operator, padded=True)
    if operator.kind == "PADV2":
        fill = t.numbers(operator, 2)
        if fill is None or fill.any():
            raise ModelError(f"{operator} pads with other numbers than zero, which is not supported")
    amounts = t.file.integers(t.index(operator, 1))  # (before, after) of each of the four axes
    if len(amounts) != 8 or any(amounts[i] for i in (0, 1, 6, 7)) or not all(0 <= a <= MAX_PAD for a in amounts):
        raise ModelError(f"{operator} pads by {amounts}; supported is zeros around height and width")
    total = (x.pad[0] + amounts[2], x.pad[1] + amounts[3], x.pad[2] + amounts[4], x.pad[3] + amounts[5])
    if max(total) > MAX_PAD:
        raise ModelError(f"{operator} adds up to a padding of {total}; supported is up to {MAX_PAD}")
    return replace(x, pad=total, pad_operator=operator)


def _pair(operator: Operator, what: str, vertical: int, horizontal: int, limit: int) -> tuple[int, int]:
    if not (1 <= vertical <= limit and 1 <= horizontal <= limit):
        raise ModelError(f"{operator}: the {what} is {vertical}x{horizontal}; supported is 1 to {limit}")
    return vertical, horizontal


def _padding(operator: Operator, options: Table) -> Padding | str:
    code = options.int8(0)
    if code not in (0, 1):
        raise ModelError(f"{operator}: padding {code} is neither SAME (0) nor VALID (1)")
    return "same" if code == 0 else NO_PAD
