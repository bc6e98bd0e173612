"""The ONNX container: a ModelProto of operators and tensors, read into plain data.

What the numbers mean is fixed by ``onnx.proto``; this file knows the part of it that picture classifiers use. Nothing
here knows the Graph: onnx.py translates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ModelError
from ._text import quote
from .onnx_external import ExternalData
from .onnx_functions import FUNCTION, MAX_FUNCTIONS, MAX_OPERATORS, Function, inlined
from .onnx_operator import NODE, OPSET, own_opset
from .onnx_tensors import TENSOR, Allowance, dims_of, read_tensor
from .protobuf import Budget, Kind, Message

MIN_IR_VERSION = 3

MAX_TENSORS = 20_000

MODEL = Kind("the model", {1: 1, 7: 1, 8: 100, 25: MAX_FUNCTIONS})
_GRAPH = Kind("the graph", {1: MAX_OPERATORS, 5: MAX_TENSORS, 11: MAX_TENSORS, 12: 100, 15: MAX_TENSORS})
_VALUE = Kind("an input or output", {1: 1, 2: 1})
_TYPE = Kind("a type", {1: 1})
_TENSOR_TYPE = Kind("a tensor type", {1: 1, 2: 1})
_SHAPE = Kind("a shape", {1: 100})
_DIMENSION = Kind("a dimension", {1: 1, 2: 1})
_SPARSE = Kind("a sparse tensor", {1: 1})
_NAMED = Kind("a tensor", {8: 1})

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
        opset = own_opset(model.messages(8, OPSET))
        if opset is None:
            raise ModelError("the file names no opset of ONNX's own operators")
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
        functions = [Function(message, opset) for message in model.messages(25, FUNCTION)]
        self.operators = inlined(graph.messages(1, NODE), functions, opset)
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
