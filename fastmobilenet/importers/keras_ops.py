"""One layer of a Keras network -> the nodes of the Graph that compute it.

Every function here takes the Translation, the site (a layer and where it stands) and its inputs, and gives what the
layer's output is in the Graph. Layers that compute nothing at inference (Dropout, augmentation) make no node.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from ..errors import ModelError
from ..graph import Activation
from . import keras_layers as layers
from ._text import quote
from .keras_config import Layer
from .keras_layers import activated, one
from .keras_translation import Input, Site, Translation, Value

#: The least standard deviation that Keras' Normalization divides by.
_TINY = 1e-7

Translate: TypeAlias = Callable[[Translation, Site, "list[Input]"], Value]


def translate(t: Translation, site: Site, inputs: list[Input]) -> Value:
    """The output of a layer. Raises ModelError that names the layer."""
    layer = site.layer
    function = layer.kind if layer.kind != "TFOpLambda" else layer.text("function", "")
    found = TRANSLATE.get(function)
    if found is None:
        what = f"{layer}: the function {quote(function)}" if layer.kind == "TFOpLambda" else f"{layer}"
        raise ModelError(f"{what} is not supported{_hint(layer.kind)}")
    return found(t, site, inputs)


def _hint(kind: str) -> str:
    if kind == "Lambda":
        return ": it holds Python code, which is never executed; save the network with layers of Keras in its place"
    if kind in _NEAREST:
        return f"; the nearest supported form is {_NEAREST[kind]}"
    return f"; supported are {', '.join(sorted(k for k in TRANSLATE if k[0].isupper()))}"


# --- batch norm and numbers -----------------------------------------------------------------------------


def _rescaling(t: Translation, site: Site, inputs: list[Input]) -> Value:
    x = t.by_channel(site.layer, one(site, inputs))
    channels = x.sizes[3]
    scale, offset = _vector(site.layer, "scale", channels, 1.0), _vector(site.layer, "offset", channels, 0.0)
    return t.affine(site.name, x, scale, offset)


def _normalization(t: Translation, site: Site, inputs: list[Input]) -> Value:
    """(x - mean) / max(sqrt(variance), 1e-7), with numbers from the config or from adapt()."""
    layer = site.layer
    x = t.by_channel(layer, one(site, inputs))
    axis = layer.config.get("axis", -1)
    axis = axis[0] if isinstance(axis, list) and len(axis) == 1 else axis
    if axis not in (-1, x.rank - 1, None) or isinstance(axis, bool) or layer.config.get("invert"):
        layer.fail(f"axis {quote(axis)} or invert is not supported; the last axis is")
    if layer.config.get("mean") is None:
        weights = t.weights.of(site.path, layer)
        mean, variance = (_broadcast(layer, k, weights[k], x.sizes[3]) for k in ("mean", "variance"))
    else:
        mean, variance = (_vector(layer, key, x.sizes[3], None) for key in ("mean", "variance"))
    if (variance < 0).any():
        layer.fail("a variance is negative")
    scale = 1.0 / np.maximum(np.sqrt(variance), _TINY)
    return t.affine(site.name, x, scale, -mean * scale)


def _vector(layer: Layer, key: str, channels: int, default: float | None) -> np.ndarray:
    """A setting that is one number, or one for each channel (perhaps in lists of one)."""
    value = layer.config.get(key, default)
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        layer.fail(f"{key} is {quote(value)}, expected numbers")
    return _broadcast(layer, key, array, channels)


def _broadcast(layer: Layer, key: str, array: np.ndarray, channels: int) -> np.ndarray:
    array = array.astype(np.float64).reshape(-1)
    if array.size not in (1, channels) or not np.isfinite(array).all():
        layer.fail(f"{key} has {array.size} values, expected 1 or {channels} finite ones")
    return np.array(np.broadcast_to(array, channels))


def _sum(t: Translation, site: Site, inputs: list[Input]) -> Value:
    return _combine(t, site, inputs, "add")


def _product(t: Translation, site: Site, inputs: list[Input]) -> Value:
    return _combine(t, site, inputs, "mul")


def _combine(t: Translation, site: Site, inputs: list[Input], op: str) -> Value:
    if len(inputs) < 2:
        site.layer.fail(f"it has {len(inputs)} inputs, expected two or more")
    total = inputs[0]
    for other in inputs[1:]:
        if isinstance(total, Value) and isinstance(other, Value):
            total = _pair(t, site, total, other, op)
        elif isinstance(total, Value) or isinstance(other, Value):
            x, number = (total, other) if isinstance(total, Value) else (other, total)
            assert isinstance(x, Value) and isinstance(number, float)
            scale, shift = (1.0, number) if op == "add" else (number, 0.0)
            total = t.affine(site.name, t.plain(x), scale, shift)
        else:
            site.layer.fail("it has no tensor among its inputs")
    assert isinstance(total, Value)
    return total


def _pair(t: Translation, site: Site, a: Value, b: Value, op: str) -> Value:
    a, b = t.plain(a), t.plain(b)
    if a.sizes != b.sizes and a.sizes[1:3] == (1, 1):
        a, b = b, a  # the vector comes second
    if (a.rank == 2 or b.rank == 2) and a.sizes != b.sizes and b.sizes[1:3] != (1, 1):
        site.layer.fail("it combines a flattened map with another shape")
    return replace(t.emit(site.name, op, a, b), rank=max(a.rank, b.rank))


def _difference(t: Translation, site: Site, inputs: list[Input]) -> Value:
    if len(inputs) != 2:
        site.layer.fail(f"it has {len(inputs)} inputs, expected two")
    first, second = inputs
    if isinstance(second, float):
        return _combine(t, site, [first, -second], "add")
    return _combine(t, site, [first, t.affine(site.name, t.plain(second), -1.0, 0.0)], "add")


def _quotient(t: Translation, site: Site, inputs: list[Input]) -> Value:
    if len(inputs) != 2 or not isinstance(inputs[1], float) or not inputs[1] or not isinstance(inputs[0], Value):
        site.layer.fail("supported is the division of a tensor by a number")
    return t.affine(site.name, t.plain(inputs[0]), 1.0 / inputs[1], 0.0)


def _concatenate(t: Translation, site: Site, inputs: list[Input]) -> Value:
    values = [t.by_channel(site.layer, x) for x in inputs if isinstance(x, Value)]
    if not values or len(values) != len(inputs):
        site.layer.fail("it has inputs that are no tensors")
    axis, rank = site.layer.config.get("axis", -1), values[0].rank
    if axis not in (-1, rank - 1) or isinstance(axis, bool) or any(v.rank != rank for v in values):
        site.layer.fail(f"axis is {quote(axis)}; supported is the last, the channels")
    return t.emit(site.name, "concat", *values)


# --- activations ----------------------------------------------------------------------------------------


def _activation(t: Translation, site: Site, inputs: list[Input]) -> Value:
    return activated(t, site, t.plain(one(site, inputs)), site.layer.config.get("activation"))


def _named(function: str) -> Translate:
    return lambda t, site, inputs: activated(t, site, t.plain(one(site, inputs)), function)


def _relu(t: Translation, site: Site, inputs: list[Input]) -> Value:
    layer = site.layer
    if layer.is_layer and (layer.number("negative_slope", 0.0) or layer.number("threshold", 0.0)):
        layer.fail("negative_slope and threshold are not supported; max_value is")
    largest = layer.config.get("max_value")
    hi = np.inf if largest is None else layer.number("max_value", 0.0)
    if hi < 0:
        layer.fail(f"max_value is {hi:g}, expected a positive number")
    return t.emit(site.name, "activation", t.plain(one(site, inputs)), activation=Activation("clamp", 0.0, float(hi)))


def _softmax(t: Translation, site: Site, inputs: list[Input]) -> Value:
    layer = site.layer
    x = t.by_channel(layer, one(site, inputs))
    axis = layer.config.get("axis", -1)
    if axis not in (-1, x.rank - 1, [-1]) or isinstance(axis, bool):
        layer.fail(f"axis is {quote(axis)}; supported is the last, the channels")
    return t.emit(site.name, "softmax", x)


# --- other views of the same values ---------------------------------------------------------------------


def _same(t: Translation, site: Site, inputs: list[Input]) -> Value:
    return one(site, inputs)


def _flatten(t: Translation, site: Site, inputs: list[Input]) -> Value:
    layers.channels_last(site.layer)
    return replace(t.plain(one(site, inputs)), rank=2)


def _reshape(t: Translation, site: Site, inputs: list[Input]) -> Value:
    x = t.plain(one(site, inputs))
    target, (_, h, w, c) = site.layer.config.get("target_shape"), x.sizes
    if not isinstance(target, (list, tuple)) or len(target) not in (1, 3) or any(type(v) is not int for v in target):
        site.layer.fail(f"target_shape is {quote(target)}; supported are one and three numbers")
    known = int(np.prod([v for v in target if v != -1], dtype=object))
    shape = [h * w * c // known if v == -1 and known > 0 else v for v in target]
    if shape == [h * w * c]:
        return replace(x, rank=2)
    if shape != [h, w, c]:
        site.layer.fail(f"it turns {[h, w, c]} into {list(target)}; supported is to flatten, or to keep the shape")
    return replace(x, rank=4)


TRANSLATE: dict[str, Translate] = {
    "Activation": _activation,
    "Add": _sum,
    "AveragePooling2D": layers.average_pool,
    "BatchNormalization": layers.batch_norm,
    "Concatenate": _concatenate,
    "Conv2D": layers.conv2d,
    "Dense": layers.dense,
    "DepthwiseConv2D": layers.depthwise,
    "Divide": _quotient,
    "Flatten": _flatten,
    "GlobalAveragePooling2D": layers.global_average,
    "HardSigmoid": _named("hard_sigmoid"),
    "HardSilu": _named("hard_silu"),
    "MaxPooling2D": layers.max_pool,
    "Multiply": _product,
    "Normalization": _normalization,
    "ReLU": _relu,
    "Relu": _named("relu"),
    "Relu6": _named("relu6"),
    "Rescaling": _rescaling,
    "Reshape": _reshape,
    "SeparableConv2D": layers.separable,
    "Sigmoid": _named("sigmoid"),
    "Silu": _named("silu"),
    "Softmax": _softmax,
    "Subtract": _difference,
    "TrueDivide": _quotient,
    "ZeroPadding2D": layers.zero_padding,
    # TensorFlow's functions, as Keras 2 writes them
    "__operators__.add": _sum,
    "math.add": _sum,
    "math.divide": _quotient,
    "math.multiply": _product,
    "math.sigmoid": _named("sigmoid"),
    "math.subtract": _difference,
    "math.truediv": _quotient,
    "nn.relu": _named("relu"),
    "nn.relu6": _named("relu6"),
    "nn.sigmoid": _named("sigmoid"),
    "nn.silu": _named("silu"),
    "nn.softmax": _named("softmax"),
    # At inference these give what they get
    **dict.fromkeys(
        (
            "ActivityRegularization",
            "AlphaDropout",
            "Dropout",
            "GaussianDropout",
            "GaussianNoise",
            "Identity",
            "RandomBrightness",
            "RandomContrast",
            "RandomFlip",
            "RandomHeight",
            "RandomRotation",
            "RandomTranslation",
            "RandomWidth",
            "RandomZoom",
            "SpatialDropout2D",
        ),
        _same,
    ),
}

_NEAREST = {
    "Conv2DTranspose": "Conv2D",
    "ELU": "ReLU",
    "GlobalMaxPooling2D": "GlobalAveragePooling2D",
    "GroupNormalization": "BatchNormalization",
    "LayerNormalization": "BatchNormalization",
    "LeakyReLU": "ReLU",
    "PReLU": "ReLU",
    "SeparableConv1D": "SeparableConv2D",
}
