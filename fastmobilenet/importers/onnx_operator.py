"""One operator of an ONNX file: its names, and its attributes in the types that the readers ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from ..errors import ModelError
from ..graph import MAX_INPUTS
from ._text import quote
from .onnx_tensors import TENSOR
from .protobuf import Kind, Message

#: The domains of ONNX's own operators.
DOMAINS = ("", "ai.onnx")
#: Versions of these operators that are known. In all of them, those that are read mean the same, but for the
#: differences that the readers name.
OPSETS = range(7, 29)

MAX_LIST = 64

OPSET = Kind("an opset", {1: 1, 2: 1})
NODE = Kind("a node", {1: MAX_INPUTS, 2: 100, 3: 1, 4: 1, 5: 100, 7: 1, 8: 1})
ATTRIBUTE = Kind("an attribute", {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 7: MAX_LIST, 8: MAX_LIST, 20: 1, 21: 1})

#: Kinds of attributes: number in AttributeProto.AttributeType -> (name, field that holds the value).
_FLOAT, _INT, _STRING, _TENSOR, _FLOATS, _INTS = 1, 2, 3, 4, 6, 7
_ATTRIBUTES = {
    _FLOAT: ("a number", 2),
    _INT: ("a whole number", 3),
    _STRING: ("text", 4),
    _TENSOR: ("a tensor", 5),
    _FLOATS: ("numbers", 7),
    _INTS: ("whole numbers", 8),
}


def own_opset(opsets: Sequence[Message]) -> int | None:
    """The version of ONNX's own operators, if it is given; there may be others, which matter only where they are used.
    Raises ModelError if it is not known."""
    version = next((message.integer(2) for message in opsets if message.text(1) in DOMAINS), None)
    if version is not None and version not in OPSETS:
        raise ModelError(
            f"opset {version} is not supported; {OPSETS[0]} to {OPSETS[-1]} are. Convert the file with "
            "onnx.version_converter, or export it again"
        )
    return version


@dataclass(frozen=True, eq=False)
class Scope:
    """The body of a function, for one call of it: what its tensors and attributes are outside."""

    prefix: str
    names: Mapping[str, str]
    attributes: Mapping[str, Message]

    def name(self, inner: str) -> str:
        return self.names.get(inner, self.prefix + inner) if inner else ""


class Operator:
    """One node of the file. ``inputs`` and ``outputs`` are names of tensors, "" for one that is left out. ``opset`` is
    the version of the operators by which it is to be read. In the body of a function, ``scope`` is that of the call."""

    def __init__(self, index: int, message: Message, opset: int, scope: Scope | None = None) -> None:
        self.index = index
        self.opset = opset
        inputs, outputs, label = message.texts(1), message.texts(2), message.text(3)
        if scope is not None:
            inputs, outputs = [scope.name(n) for n in inputs], [scope.name(n) for n in outputs]
            label = scope.prefix + label if label else ""
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.kind = message.text(4)
        self.domain = message.text(7)
        self.overload = message.text(8)
        self.label = label or next((o for o in outputs if o), "")
        self._scope = scope
        self._message = message
        self._attributes: dict[str, Message] | None = None

    def __str__(self) -> str:
        kind = self.kind if self.domain in DOMAINS else f"{self.domain}::{self.kind}"
        return f"node {quote(self.label)} (operator {self.index}, {kind})"

    def renamed(self, kind: str, inputs: Sequence[str], outputs: Sequence[str]) -> Operator:
        """An operator of another kind with these tensors, and the name and attributes of this one."""
        other = copy(self)
        other.kind, other.inputs, other.outputs = kind, tuple(inputs), tuple(outputs)
        return other

    def fail(self, text: str) -> NoReturn:
        raise ModelError(f"{self}: {text}")

    # --- attributes: the value, or the default where the operator has none of that name --------------------

    def has(self, name: str) -> bool:
        return name in self.attributes()

    def integer(self, name: str, default: int = 0) -> int:
        found = self._attribute(name, _INT)
        return default if found is None else found.integer(3)

    def number(self, name: str, default: float = 0.0) -> float:
        found = self._attribute(name, _FLOAT)
        return default if found is None else found.float32(2)

    def text(self, name: str, default: str = "") -> str:
        found = self._attribute(name, _STRING)
        return default if found is None else found.text(4)

    def integers(self, name: str) -> list[int] | None:
        found = self._attribute(name, _INTS)
        return None if found is None else self._few(name, found.integers(8)).tolist()

    def numbers(self, name: str) -> list[float] | None:
        found = self._attribute(name, _FLOATS)
        return None if found is None else self._few(name, found.floats(7, "<f4")).tolist()

    def tensor(self, name: str) -> Message | None:
        found = self._attribute(name, _TENSOR)
        return None if found is None else found.message(5, TENSOR)

    def attributes(self) -> Mapping[str, Message]:
        """The attributes by name, read when the first one is asked for."""
        if self._attributes is None:
            attributes: dict[str, Message] = {}
            for message in self._message.messages(5, ATTRIBUTE):
                key = message.text(1)
                if key in attributes:
                    self.fail(f"the attribute {quote(key)} appears twice")
                source = message.text(21)
                if not source:
                    attributes[key] = message
                elif self._scope is None:
                    self.fail(f"the attribute {quote(key)} is that of a function, and this is none")
                elif source in self._scope.attributes:
                    attributes[key] = self._scope.attributes[source]
            self._attributes = attributes
        return self._attributes

    def _attribute(self, name: str, kind: int) -> Message | None:
        found = self.attributes().get(name)
        if found is not None:
            what, field = _ATTRIBUTES[kind]
            if found.integer(20) != kind and (found.integer(20) or not found.has(field)):
                self.fail(f"the attribute {name} should be {what}")
        return found

    def _few(self, name: str, values: np.ndarray) -> np.ndarray:
        if len(values) > MAX_LIST:
            self.fail(f"the attribute {name} has {len(values)} values; at most {MAX_LIST} are read")
        return values
