"""The names of Keras' activation functions."""

from __future__ import annotations

from ..graph import HARD_SIGMOID, HARD_SWISH, RELU, RELU6, SIGMOID, SWISH, Activation
from ._text import quote
from .keras_config import Layer

_LINEAR = "linear"
_SOFTMAX = "softmax"

#: relu6 and hard_swish are no names of Keras 2, but those of the functions that its networks came with.
_NAMES: dict[str, Activation] = {
    "hard_sigmoid": HARD_SIGMOID,
    "hard_silu": HARD_SWISH,
    "hard_swish": HARD_SWISH,
    "relu": RELU,
    "relu6": RELU6,
    "sigmoid": SIGMOID,
    "silu": SWISH,
    "swish": SWISH,
}
#: Up to version 2; from Keras 3 on it is the one of the papers, relu6(x + 3) / 6.
_KERAS_2_HARD_SIGMOID = Activation("hard_sigmoid", alpha=0.2, beta=0.5)


def read(layer: Layer, setting: object, version: int) -> Activation | str | None:
    """What a layer's setting "activation" stands for: None for linear, the string "softmax", or an Activation."""
    name = _name(setting)
    if name is None:
        layer.fail(f"activation {quote(setting)} is not supported; supported are {', '.join((*_NAMES, _SOFTMAX))}")
    if name == _LINEAR:
        return None
    if name == _SOFTMAX:
        return _SOFTMAX
    if name == "hard_sigmoid" and version < 3:
        return _KERAS_2_HARD_SIGMOID
    return _NAMES[name]


def _name(setting: object) -> str | None:
    if setting is None:
        return _LINEAR
    if isinstance(setting, dict):  # {"class_name": "function", "config": "relu"}
        if setting.get("class_name") == "function":
            setting = setting.get("config")
        else:
            config = setting.get("config")
            setting = {"Softmax": _SOFTMAX, "Sigmoid": "sigmoid"}.get(str(setting.get("class_name")))
            if isinstance(config, dict) and config.get("axis", -1) != -1:
                return None
    if not isinstance(setting, str):
        return None
    return setting if setting in _NAMES or setting in (_LINEAR, _SOFTMAX) else None
