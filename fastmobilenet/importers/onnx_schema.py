"""The ONNX container: a ModelProto of operators and tensors, read into plain data.

What the numbers mean is fixed by ``onnx.proto``; this file knows the part of it that picture classifiers use. Nothing
here knows the Graph: onnx.py translates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from ..errors import ModelError
from ._text import quote
from .onnx_external import ExternalData
from .onnx_tensors import TENSOR, Allowance, dims_of, read_tensor
from .protobuf import Budget, Kind, Message

#: Versions of the operator set whose operators are known. In these the operators that are read mean the same, but for
#: the differences that the readers name.
OPSETS = range(7, 29)
MIN_IR_VERSION = 3

#: Bounds on what one file may make us do. The largest MobileNet has fewer than 1,000 operators with its constants.
MAX_OPERATORS = 20_000
MAX_TENSORS = 20_000
MAX_LIST = 64

MODEL = Kind("the model", {1: 1, 7: 1, 8: 100})
_OPSET = Kind("an opset", {1: 1, 2: 1})
_GRAPH = Kind("the graph", {1: MAX_OPERATORS, 5: MAX_TENSORS, 11: MAX_TENSORS, 12: 100, 15: MAX_TENSORS})
_NODE = Kind("a node", {1: MAX_TENSORS, 2: 100, 3: 1, 4: 1, 5: 100, 7: 1})
_ATTRIBUTE = Kind("an attribute", {1: 1, 2: 1, 3: 1, 4: 1, 5: 1, 7: MAX_LIST, 8: MAX_LIST, 20: 1})
_VALUE = Kind("an input or output", {1: 1, 2: 1})
_TYPE = Kind("a type", {1: 1})
_TENSOR_TYPE = Kind("a tensor type", {1: 1, 2: 1})
_SHAPE = Kind("a shape", {1: 100})
_DIMENSION = Kind("a dimension", {1: 1, 2: 1})
_SPARSE = Kind("a sparse tensor", {1: 1})
_NAMED = Kind("a tensor", {8: 1})

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

#: What top-level fields of a file may be taken for a model without its name: metadata is among them.
_MAX_TOP_FIELDS = 10_000


@dataclass(frozen=True)
class Input:
    """``dtype`` is a number of TensorProto.DataType. A dimension that the file leaves open is None; so is ``shape``
    where the file does not even say the rank."""

    name: str
    dtype: int
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        return f"input {quote(self.name)}"


class Operator:
    """One node of the file. ``inputs`` and ``outputs`` are names of tensors, "" for one that is left out."""

    def __init__(self, index: int, message: Message) -> None:
        self.index = index
        self.inputs = tuple(message.texts(1))
        self.outputs = tuple(message.texts(2))
        self.kind = message.text(4)
        self.domain = message.text(7)
        self.label = message.text(3) or next((o for o in self.outputs if o), "")
        self._message = message
        self._attributes: dict[str, Message] | None = None

    def __str__(self) -> str:
        kind = self.kind if self.domain in ("", "ai.onnx") else f"{self.domain}::{self.kind}"
        return f"node {quote(self.label)} (operator {self.index}, {kind})"

    def fail(self, text: str) -> NoReturn:
        raise ModelError(f"{self}: {text}")

    # --- attributes: the value, or the default where the operator has none of that name --------------------

    def has(self, name: str) -> bool:
        return name in self._all()

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

    def _all(self) -> dict[str, Message]:
        """The attributes by name, read when the first one is asked for."""
        if self._attributes is None:
            attributes: dict[str, Message] = {}
            for message in self._message.messages(5, _ATTRIBUTE):
                key = message.text(1)
                if key in attributes:
                    self.fail(f"the attribute {quote(key)} appears twice")
                attributes[key] = message
            self._attributes = attributes
        return self._attributes

    def _attribute(self, name: str, kind: int) -> Message | None:
        found = self._all().get(name)
        if found is not None:
            what, field = _ATTRIBUTES[kind]
            if found.integer(20) != kind and (found.integer(20) or not found.has(field)):
                self.fail(f"the attribute {name} should be {what}")
        return found

    def _few(self, name: str, values: np.ndarray) -> np.ndarray:
        if len(values) > MAX_LIST:
            self.fail(f"the attribute {name} has {len(values)} values; at most {MAX_LIST} are read")
        return values


class OnnxFile:
    """The main graph of an ONNX file. ``inputs`` are those that are not initializers too; ``outputs`` are names."""

    def __init__(self, data: bytes | bytearray | memoryview, folder: str | None = None) -> None:
        view = memoryview(data)
        if not view.c_contiguous:
            raise ModelError("the file's bytes must lie in one piece")
        view = view.cast("B") if view.nbytes else memoryview(b"")
        model = Message(view, MODEL, Budget())
        graph = model.message(7, _GRAPH)
        if graph is None:
            raise ModelError("the file holds no graph")
        if model.integer(1) < MIN_IR_VERSION:
            raise ModelError(f"IR version {model.integer(1)} is not supported; version {MIN_IR_VERSION} and later are")
        self.opset = _opset(model)
        self.external = ExternalData(folder)
        self.allowance = Allowance()
        self.allowance.grow(view.nbytes)
        self._sparse = {v.text(8) for s in graph.messages(15, _SPARSE) for v in s.messages(1, _NAMED)}
        self._tensors: dict[str, Message] = {}
        self._arrays: dict[str, np.ndarray] = {}
        for tensor in graph.messages(5, TENSOR):
            name = tensor.text(8)
            if name in self._tensors or not name:
                raise ModelError(f"initializer {quote(name)} appears twice or has no name")
            self._tensors[name] = tensor
        self.operators = tuple(Operator(i, node) for i, node in enumerate(graph.messages(1, _NODE)))
        inputs = (_input(value) for value in graph.messages(11, _VALUE))
        self.inputs = tuple(i for i in inputs if not self.is_initializer(i.name))
        self.outputs = tuple(value.text(1) for value in graph.messages(12, _VALUE))

    def is_initializer(self, name: str) -> bool:
        return name in self._tensors or name in self._sparse

    def initializer_shape(self, name: str) -> tuple[int, ...] | None:
        """The shape that an initializer claims, or None where there is none of this name."""
        return dims_of(self._tensors[name]) if name in self._tensors else None

    def initializer(self, name: str) -> np.ndarray:
        """The values of an initializer, in the type of the file."""
        if name not in self._arrays:
            if name in self._sparse:
                raise ModelError(f"initializer {quote(name)} is stored sparse; export without sparsity")
            self._arrays[name] = self.read(self._tensors[name], f"initializer {quote(name)}")
        return self._arrays[name]

    def read(self, tensor: Message, label: str) -> np.ndarray:
        """The values of a tensor of the file; ``label`` is what it is called in errors."""
        try:
            return read_tensor(tensor, self.external, self.allowance)
        except ModelError as error:
            raise ModelError(f"{label}: {error}") from None


def looks_like_model(data: bytes) -> bool:
    """Whether the file is one message with a graph and an opset, read to its last byte."""
    try:
        model = Message(memoryview(data), MODEL, Budget(_MAX_TOP_FIELDS))
        return model.has(7) and model.has(8) and model.integer(1) > 0 and len(model.data(7)) > 0
    except ModelError:
        return False


def _opset(model: Message) -> int:
    """The version of ONNX's own operators; there may be others, which matter only where they are used."""
    for opset in model.messages(8, _OPSET):
        if opset.text(1) in ("", "ai.onnx"):
            version = opset.integer(2)
            if version not in OPSETS:
                raise ModelError(
                    f"opset {version} is not supported; {OPSETS[0]} to {OPSETS[-1]} are. Convert the file with "
                    "onnx.version_converter, or export it again"
                )
            return version
    raise ModelError("the file names no opset of ONNX's own operators")


def _input(value: Message) -> Input:
    kind = value.message(2, _TYPE)
    tensor = None if kind is None else kind.message(1, _TENSOR_TYPE)
    if tensor is None:
        return Input(value.text(1), 0, None)
    shape = tensor.message(2, _SHAPE)
    dims = None if shape is None else tuple(_dimension(d) for d in shape.messages(1, _DIMENSION))
    return Input(value.text(1), tensor.integer(1), dims)


def _dimension(message: Message) -> int | None:
    """Open where it is a name, absent, or what exporters write for open: 0 and -1."""
    size = message.integer(1)
    if size < -1:
        raise ModelError(f"an input has a dimension of {size}")
    return size if size > 0 else None
