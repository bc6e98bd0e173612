"""Layers of Keras with windows or weights: convolutions, dense layers, batch norm, pools, and padding before them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..graph import Activation, Padding
from . import keras_activations
from ._limits import MAX_DILATION, MAX_PAD, MAX_STRIDE, MAX_WINDOW
from ._text import quote
from .keras_config import Layer
from .keras_translation import NO_PAD, Input, Site, Translation, Value


def one(site: Site, inputs: list[Input]) -> Value:
    if len(inputs) != 1 or not isinstance(inputs[0], Value):
        site.layer.fail(f"it has {len(inputs)} inputs, expected one")
    return inputs[0]


def channels_last(layer: Layer) -> None:
    if layer.config.get("data_format") not in (None, "channels_last"):
        layer.fail(f"data_format {quote(layer.config['data_format'])} is not supported; channels_last is")


def _map(t: Translation, site: Site, inputs: list[Input], *, padded: bool = False) -> Value:
    """The one input, which must be a map; only with ``padded`` may it have zeros that are not yet added."""
    channels_last(site.layer)
    x = one(site, inputs)
    if x.rank != 4:
        site.layer.fail("its input must be a map of height, width and channels")
    return x if padded else t.plain(x)


def activated(t: Translation, site: Site, x: Value, setting: object) -> Value:
    found = keras_activations.read(site.layer, setting, t.version)
    if found is None:
        return x
    if found == "softmax":
        return t.emit(site.name, "softmax", t.by_channel(site.layer, x))
    assert isinstance(found, Activation)
    return t.activated(site.name, x, found)


# --- convolutions and dense layers ----------------------------------------------------------------------


def conv2d(t: Translation, site: Site, inputs: list[Input]) -> Value:
    layer, weights = site.layer, t.weights.of(site.path, site.layer)
    kernel = weights["kernel"]  # (kh, kw, ic/groups, oc)
    x = _map(t, site, inputs, padded=True)
    groups = layer.integer("groups", 1, 2**31)
    _check_kernel(layer, kernel, layer.config.get("filters"))
    return _finish(t, site, _convolution(t, site, x, kernel.transpose(3, 0, 1, 2), groups, weights.get("bias")))


def depthwise(t: Translation, site: Site, inputs: list[Input]) -> Value:
    weights = t.weights.of(site.path, site.layer)
    x = _map(t, site, inputs, padded=True)
    kernel = _depthwise_kernel(site.layer, weights["kernel"], x)
    return _finish(t, site, _convolution(t, site, x, kernel, x.sizes[3], weights.get("bias")))


def separable(t: Translation, site: Site, inputs: list[Input]) -> Value:
    weights = t.weights.of(site.path, site.layer)
    x = _map(t, site, inputs, padded=True)
    kernel = _depthwise_kernel(site.layer, weights["depthwise_kernel"], x)
    x = _convolution(t, site, x, kernel, x.sizes[3], None)
    pointwise = weights["pointwise_kernel"]  # (1, 1, ic, oc)
    if pointwise.ndim != 4 or pointwise.shape[:2] != (1, 1):
        site.layer.fail(f"its pointwise kernel has the shape {list(pointwise.shape)}")
    return _finish(t, site, _pointwise(t, site, x, pointwise[0, 0], weights.get("bias")))


def _depthwise_kernel(layer: Layer, kernel: np.ndarray, x: Value) -> np.ndarray:
    """(kh, kw, ic, multiplier) -> (oc, kh, kw, 1): output channel o reads input channel o // multiplier."""
    _check_kernel(layer, kernel, layer.config.get("depth_multiplier"))
    if kernel.shape[2] != x.sizes[3]:
        layer.fail(f"its kernel {list(kernel.shape)} does not fit an input of {x.sizes[3]} channels")
    return kernel.reshape(*kernel.shape[:2], -1).transpose(2, 0, 1)[..., None]


def _check_kernel(layer: Layer, kernel: np.ndarray, last: object) -> None:
    expected = layer.pair("kernel_size", MAX_PAD)
    if kernel.ndim != 4 or kernel.shape[:2] != expected or (last is not None and kernel.shape[3] != last):
        layer.fail(f"its kernel has the shape {list(kernel.shape)}, which does not fit its config")


def _convolution(
    t: Translation, site: Site, x: Value, weight: np.ndarray, groups: int, bias: np.ndarray | None
) -> Value:
    layer = site.layer
    padding = _padding(layer)
    if padding == "same":
        x = t.plain(x)
    elif x.pad_layer:
        padding = x.pad
    return t.emit(
        site.name,
        "conv2d",
        replace(x, pad=NO_PAD, pad_layer=None),
        params=_params(t, weight, bias),
        stride=layer.pair("strides", MAX_STRIDE),
        padding=padding,
        dilation=layer.pair("dilation_rate", MAX_DILATION),
        groups=groups,
    )


def _pointwise(t: Translation, site: Site, x: Value, matrix: np.ndarray, bias: np.ndarray | None) -> Value:
    """A product with ``matrix`` (ic, oc) at every pixel."""
    params = _params(t, matrix.T[:, None, None, :], bias)
    return t.emit(site.name, "conv2d", x, params=params, stride=(1, 1), padding=NO_PAD, dilation=(1, 1), groups=1)


def _params(t: Translation, weight: np.ndarray, bias: np.ndarray | None) -> dict[str, np.ndarray]:
    params = {"weight": t.arranged(weight)}
    return params if bias is None else params | {"bias": bias}


def dense(t: Translation, site: Site, inputs: list[Input]) -> Value:
    weights = t.weights.of(site.path, site.layer)
    x = t.plain(one(site, inputs))
    kernel = weights["kernel"]  # (values, units)
    if kernel.ndim != 2:
        site.layer.fail(f"its kernel has the shape {list(kernel.shape)}")
    if x.rank == 4:
        return _finish(t, site, _pointwise(t, site, x, kernel, weights.get("bias")))
    y = t.emit(site.name, "dense", x, params=_params(t, kernel.T, weights.get("bias")))
    return _finish(t, site, replace(y, rank=2))


def _finish(t: Translation, site: Site, x: Value) -> Value:
    """The activation that a layer with weights ends with."""
    return activated(t, site, x, site.layer.config.get("activation"))


def _padding(layer: Layer) -> Padding | str:
    mode = layer.text("padding", "valid").lower()
    if mode not in ("same", "valid"):
        layer.fail(f"padding {quote(mode)} is neither same nor valid")
    return "same" if mode == "same" else NO_PAD


def zero_padding(t: Translation, site: Site, inputs: list[Input]) -> Value:
    x = _map(t, site, inputs, padded=True)
    value = site.layer.config.get("padding", 1)
    if type(value) is int:
        value = [value, value]
    pairs = [[v, v] if type(v) is int else v for v in value] if isinstance(value, list) else []
    if len(pairs) != 2 or not all(
        isinstance(p, list) and len(p) == 2 and all(type(v) is int and 0 <= v <= MAX_PAD for v in p) for p in pairs
    ):
        site.layer.fail(f"padding is {quote(value)}; supported are numbers from 0 to {MAX_PAD}")
    (top, bottom), (left, right) = pairs
    total = (x.pad[0] + top, x.pad[1] + bottom, x.pad[2] + left, x.pad[3] + right)
    if max(total) > MAX_PAD:
        site.layer.fail(f"it adds up to a padding of {total}; supported is up to {MAX_PAD}")
    return replace(x, pad=total, pad_layer=site.name)


def batch_norm(t: Translation, site: Site, inputs: list[Input]) -> Value:
    layer, weights = site.layer, t.weights.of(site.path, site.layer)
    x = t.by_channel(layer, one(site, inputs))
    axis = layer.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, x.rank - 1) or isinstance(axis, bool):
        layer.fail(f"axis is {quote(axis)}; supported is the last, the channels")
    channels = x.sizes[3]
    params = {
        "gamma": weights.get("gamma", np.ones(channels, np.float32)),
        "beta": weights.get("beta", np.zeros(channels, np.float32)),
        "mean": weights["moving_mean"],
        "variance": weights["moving_variance"],
    }
    return t.emit(site.name, "batch_norm", x, params=params, epsilon=layer.number("epsilon", 1e-3))


# --- pools ----------------------------------------------------------------------------------------------


def global_average(t: Translation, site: Site, inputs: list[Input]) -> Value:
    x = _map(t, site, inputs)
    y = t.emit(site.name, "global_avg_pool", x)
    return replace(y, rank=4 if site.layer.flag("keepdims", False) else 2)


def average_pool(t: Translation, site: Site, inputs: list[Input]) -> Value:
    x = _map(t, site, inputs, padded=True)
    kernel, stride, padding = _window(site.layer)
    if padding == "same":
        x = t.plain(x)
    # One window over all of a map means the mean of the map, at other picture sizes too.
    if not t.dynamic and not x.pad_layer and kernel == x.sizes[1:3] != (1, 1) and padding == NO_PAD:
        return t.emit(site.name, "global_avg_pool", x)
    if max(kernel) > MAX_WINDOW:
        site.layer.fail(f"the window is {kernel}; supported is 1 to {MAX_WINDOW}, or all of the map")
    attrs: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding}
    if x.pad_layer:  # its zeros count
        attrs |= {"padding": x.pad, "count_padding": True}
    return t.emit(site.name, "avg_pool2d", replace(x, pad=NO_PAD, pad_layer=None), **attrs)


def max_pool(t: Translation, site: Site, inputs: list[Input]) -> Value:
    x = _map(t, site, inputs)
    kernel, stride, padding = _window(site.layer)
    if max(kernel) > MAX_WINDOW:
        site.layer.fail(f"the window is {kernel}; supported is 1 to {MAX_WINDOW}")
    return t.emit(site.name, "max_pool2d", x, kernel=kernel, stride=stride, padding=padding)


def _window(layer: Layer) -> tuple[tuple[int, int], tuple[int, int], Padding | str]:
    kernel = layer.pair("pool_size", 2**20, (2, 2))
    stride = kernel if layer.config.get("strides") is None else layer.pair("strides", MAX_STRIDE)
    if max(stride) > MAX_STRIDE:
        layer.fail(f"the stride is {stride}; supported is 1 to {MAX_STRIDE}")
    return kernel, stride, _padding(layer)
