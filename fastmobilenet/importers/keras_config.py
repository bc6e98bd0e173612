"""The JSON in which Keras describes a network -> layers and calls, as plain data. Nothing is executed.

Keras 2 and Keras 3 write different JSON. A layer lists its calls (``inbound_nodes``), one for each place where it is
used:

- Keras 2: ``[["conv1", 0, 0, {}], ...]``, each entry (layer, number of its call, number of its output, options), or
  for a TensorFlow function one such entry whose options hold the further arguments.
- Keras 3: ``{"args": [...], "kwargs": {...}}``, where a tensor is an object with its ``keras_history``.

A Sequential model has no calls: its layers follow each other. Models may be layers of other models.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeAlias

from ..errors import ModelError
from ._text import quote

#: MobileNetV3Large takes 0.3 MB. Parsed JSON takes up to 30 times its text.
MAX_TEXT = 4 * 2**20
MAX_LAYERS = 10_000
#: Models in models.
MAX_DEPTH = 8
#: Arguments of one call.
MAX_ARGUMENTS = 1024

MODELS = ("Functional", "Model", "Sequential")


@dataclass(frozen=True)
class Ref:
    """Output number ``output`` of call number ``call`` of a layer."""

    layer: str
    call: int
    output: int


Argument: TypeAlias = "Ref | float"


@dataclass(frozen=True)
class Call:
    """``options`` are the arguments that are neither tensors nor numbers."""

    arguments: tuple[Argument, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Layer:
    """``inner`` is the model that the layer is, if it is one. ``is_layer`` is False for a bare operation, which Keras
    does not count among the layers. ``kind`` is Keras' class name. ``keras_2`` says that its calls are in the form of
    Keras 2."""

    kind: str
    name: str
    config: Mapping[str, Any]
    calls: tuple[Call, ...]
    inner: Model | None = None
    is_layer: bool = True
    trainable: bool = True
    keras_2: bool = False

    def __str__(self) -> str:
        return f"layer {quote(self.name)} ({quote(self.kind)[1:-1]})"

    def fail(self, reason: str) -> NoReturn:
        raise ModelError(f"{self}: {reason}")

    # --- the settings of a layer, checked ----------------------------------------------------------------

    def number(self, key: str, default: float) -> float:
        value = self.config.get(key, default)
        if isinstance(value, dict):  # an array of one number, as some versions of Keras 2 write it
            value = value.get("value")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < math.inf:
            self.fail(f"{key} is {quote(value)}, expected a number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key, default)
        if not isinstance(value, bool):
            self.fail(f"{key} is {quote(value)}, expected true or false")
        return value

    def integer(self, key: str, default: int, limit: int) -> int:
        value = self.config.get(key, default)
        if type(value) is not int or not 1 <= value <= limit:
            self.fail(f"{key} is {quote(value)}; supported is 1 to {limit}")
        return value

    def pair(self, key: str, limit: int, default: object = (1, 1)) -> tuple[int, int]:
        """(vertical, horizontal)"""
        value = self.config.get(key, default)
        values = [value, value] if type(value) is int else value
        if (
            not isinstance(values, (list, tuple))
            or len(values) != 2
            or any(type(v) is not int or not 1 <= v <= limit for v in values)
        ):
            self.fail(f"{key} is {quote(value)}; supported are two numbers from 1 to {limit}")
        return values[0], values[1]

    def text(self, key: str, default: str) -> str:
        value = self.config.get(key, default)
        if not isinstance(value, str):
            self.fail(f"{key} is {quote(value)}, expected text")
        return value


@dataclass(frozen=True)
class Model:
    """``inputs`` are names of layers. ``shape`` is the input's shape as far as the file gives it, None where open."""

    name: str
    sequential: bool
    layers: Mapping[str, Layer]
    inputs: tuple[str, ...]
    outputs: tuple[Ref, ...]
    shape: tuple[int | None, ...] | None

    def starts_with_input(self) -> bool:
        return next(iter(self.layers.values())).kind == "InputLayer"


def read_json(text: str | bytes, what: str) -> Any:
    """The parsed text. ``what`` is what it is called in messages."""
    if len(text) > MAX_TEXT:
        raise ModelError(f"{what} has {len(text)} bytes; at most {MAX_TEXT} are read")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise ModelError(f"{what} is not JSON: {str(error)[:100]}") from None


def read_model(document: Any) -> Model:
    """The model that a config describes. Raises ModelError for whatever Keras would not write."""
    kind = document.get("class_name") if isinstance(document, dict) else None
    if kind not in MODELS:
        raise ModelError(
            f"the file describes a {quote(kind)}; supported are Functional and Sequential models, built from layers"
        )
    return _model(document, MAX_DEPTH)


def _model(document: Mapping[str, Any], depth: int) -> Model:
    if depth == 0:
        raise ModelError(f"models in models go deeper than {MAX_DEPTH} levels")
    sequential = document["class_name"] == "Sequential"
    config = document.get("config")
    if isinstance(config, list):  # Sequential in the first versions of Keras 2
        config = {"name": "sequential", "layers": config}
    entries = config.get("layers") if isinstance(config, dict) else None
    if not isinstance(config, dict) or not isinstance(entries, list) or not entries or len(entries) > MAX_LAYERS:
        raise ModelError("a model's config has no list of layers, or too many")
    name = _name(config.get("name", "model"))
    layers: dict[str, Layer] = {}
    previous: Layer | None = None
    for entry in entries:
        layer = _layer(entry, depth, previous, sequential)
        if layer.name in layers:
            raise ModelError(f"model {quote(name)} has two layers {quote(layer.name)}")
        layers[layer.name] = previous = layer
    assert previous is not None
    if sequential:
        first = next(iter(layers.values()))
        outputs: tuple[Ref, ...] = (_first_output(previous),)
        inputs: tuple[str, ...] = (first.name,) if first.kind == "InputLayer" else ()
    else:
        outputs = tuple(_refs(config.get("output_layers"), "output_layers"))
        inputs = tuple(ref.layer for ref in _refs(config.get("input_layers"), "input_layers"))
        if any(name not in layers or layers[name].kind != "InputLayer" for name in inputs):
            raise ModelError(f"model {quote(name)} has inputs {quote(list(inputs))} that are no InputLayer")
    return Model(name, sequential, layers, inputs, outputs, _shape(config, layers, inputs))


def _layer(entry: Any, depth: int, previous: Layer | None, sequential: bool) -> Layer:
    if not isinstance(entry, dict) or not isinstance(entry.get("class_name"), str):
        raise ModelError(f"an entry of the list of layers is {quote(entry)}, not a layer")
    kind, config = entry["class_name"], entry.get("config")
    inner = _model(entry, depth - 1) if kind in MODELS else None
    if inner is not None and isinstance(config, list):
        config = {}
    if not isinstance(config, dict):
        raise ModelError(f"a layer of class {quote(kind)} has no config")
    name = _name(entry.get("name") or config.get("name") or (inner.name if inner else None))
    nodes = entry.get("inbound_nodes", []) if not sequential else []
    if not isinstance(nodes, list):
        raise ModelError(f"layer {quote(name)}: inbound_nodes is {quote(nodes)}, not a list")
    calls = tuple(_call(node, name) for node in nodes)
    if sequential and previous is not None:
        calls = (Call((_first_output(previous),), {}),)
    return Layer(
        kind,
        name,
        config,
        calls,
        inner,
        is_layer="keras.src.ops" not in str(entry.get("module", "")),
        trainable=config.get("trainable", True) is not False,
        keras_2=any(isinstance(node, list) for node in nodes),
    )


def _first_output(layer: Layer) -> Ref:
    return Ref(layer.name, 0, 0)


# --- calls ----------------------------------------------------------------------------------------------


def _call(node: Any, name: str) -> Call:
    arguments: list[Argument] = []
    options: dict[str, Any] = {}
    try:
        if isinstance(node, dict):
            arguments += _tensors(node.get("args", []))
            _keywords(node.get("kwargs", {}), arguments, options)
            options.pop("training", None)  # Keras 3 writes its default, and replaces it at inference
        elif node and isinstance(node[0], str):
            arguments.append(float(node[2]) if node[0] == "_CONSTANT_VALUE" else _ref(node))
            _keywords(node[3] if len(node) > 3 else {}, arguments, options)
        else:
            for entry in node:
                arguments.append(_ref(entry))
                _keywords(entry[3] if len(entry) > 3 else {}, arguments, options)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError, RecursionError):
        raise ModelError(f"layer {quote(name)}: its call {quote(node)} is not in the form that Keras writes") from None
    if len(arguments) > MAX_ARGUMENTS:
        raise ModelError(f"layer {quote(name)} has {len(arguments)} inputs; at most {MAX_ARGUMENTS} are supported")
    if options.pop("training", None):
        raise ModelError(f"layer {quote(name)} is called with training=True; save the network for inference")
    return Call(tuple(arguments), options)


def _keywords(keywords: Mapping[str, Any], arguments: list[Argument], options: dict[str, Any]) -> None:
    for key, value in keywords.items():
        if key == "name" or value is None or value is False:
            continue
        found = list(_tensors(value)) if key in ("x", "y", "x1", "x2", "inputs") else []
        if found:
            arguments += found
        else:
            options[key] = value


def _tensors(value: Any) -> Iterator[Argument]:
    """The tensors and numbers of an argument, which may be a list of them, or lists in a list."""
    if isinstance(value, dict):
        yield _ref(value["config"]["keras_history"])
    elif isinstance(value, (list, tuple)):
        if len(value) in (3, 4) and isinstance(value[0], str):
            yield _ref(value)
        else:
            for item in value:
                yield from _tensors(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)
    elif value is not None:
        raise ValueError


def _ref(entry: Any) -> Ref:
    name, call, output = entry[:3]
    if not isinstance(name, str) or type(call) is not int or type(output) is not int or min(call, output) < 0:
        raise ValueError
    return Ref(name, call, output)


def _refs(value: Any, what: str) -> list[Ref]:
    """The tensors that a model names as its inputs or outputs: one, a list of them, or a mapping."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str):
        value = [value]
    try:
        return [_ref(entry) for entry in value]
    except (TypeError, ValueError):
        raise ModelError(f"{what} is {quote(value)}, not a list of tensors") from None


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ModelError(f"a layer has the name {quote(value)}")
    return value[:1000]


# --- the input's shape ----------------------------------------------------------------------------------


def _shape(
    config: Mapping[str, Any], layers: Mapping[str, Layer], inputs: tuple[str, ...]
) -> tuple[int | None, ...] | None:
    first = layers[inputs[0]] if inputs else next(iter(layers.values()))
    candidates = (
        first.config.get("batch_shape"),
        first.config.get("batch_input_shape"),
        first.inner.shape if first.inner else None,
        config.get("build_input_shape"),
    )
    for shape in candidates:
        if shape is None:
            continue
        valid = isinstance(shape, (list, tuple)) and len(shape) <= 8
        if not valid or any(d is not None and (type(d) is not int or d < 1) for d in shape):
            raise ModelError(f"{first}: the input's shape is {quote(shape)}")
        return tuple(shape)
    return None
