"""What of an ONNX file was translated so far, and how its operators get at their inputs."""

from __future__ import annotations

import math

import numpy as np

from ..errors import ModelError
from ..graph import OPS, Node
from ._limits import MAX_FILE_ELEMENTS
from ._text import quote
from .onnx_fold import integers
from .onnx_schema import OnnxFile, Operator
from .onnx_tensors import FLOATS, dtype_name
from .onnx_values import Constant, Value


class Translation:
    """The nodes so far, and what in them the tensors of the file are.

    ``dynamic`` says that the file leaves the picture's size open.
    """

    def __init__(self, file: OnnxFile, dynamic: bool) -> None:
        self.file = file
        self.dynamic = dynamic
        self.nodes: dict[str, Node] = {}
        self.values: dict[str, Value | Constant] = {}

    def input(self, name: str, axes: str, sizes: tuple[int, int, int, int]) -> None:
        self.nodes[name] = Node(name, "input")
        self.values[name] = Value(name, tuple(axes), _checked(name, sizes))

    # --- what the operators use --------------------------------------------------------------------------

    def tensor(self, operator: Operator, k: int) -> Value | Constant | None:
        """Input ``k``, None where it is left out."""
        name = operator.inputs[k] if k < len(operator.inputs) else ""
        if not name:
            return None
        if name not in self.values and self.file.is_initializer(name):
            self.values[name] = Constant(self.file.initializer(name), f"initializer {quote(name)}")
        if name not in self.values:
            operator.fail(f"input {k}, {quote(name)}, is not computed before it")
        return self.values[name]

    def value(self, operator: Operator, k: int = 0, *, pending: bool = False) -> Value:
        """Input ``k``, a map. Only with ``pending`` may something of it be left to do."""
        found = self.tensor(operator, k)
        if not isinstance(found, Value):
            operator.fail(f"input {k} is {'missing' if found is None else 'a constant'} and should be computed")
        if found.pending and not pending:
            raise ModelError(
                f"{found.pending} is followed by {operator.kind}; supported is "
                + ("the mean over the other of height and width" if found.averaged else "a Pad before a Conv")
            )
        return found

    def constant(self, operator: Operator, k: int) -> Constant | None:
        """Input ``k``, which must be known when the file is read; None where it is left out."""
        found = self.tensor(operator, k)
        if isinstance(found, Value):
            operator.fail(f"input {k} is computed from the picture; it must be a constant")
        if found is not None and found.sized:
            operator.fail(f"input {k} depends on the size of the picture; export with a fixed size")
        return found

    def integers(self, operator: Operator, k: int) -> list[int] | None:
        found = self.constant(operator, k)
        return None if found is None else integers(operator, 0, [found.array])

    def scalar(self, operator: Operator, k: int) -> float | None:
        """Input ``k``, a constant number; infinite ones are allowed, for bounds."""
        found = self.constant(operator, k)
        if found is None:
            return None
        if found.array.size != 1 or found.array.dtype.kind not in "fiub":
            operator.fail(f"input {k} should be one number, not {found.array.dtype} {list(found.array.shape)}")
        return float(found.array.reshape(-1)[0])

    def weight(self, operator: Operator, k: int, rank: int | None = None) -> np.ndarray:
        """Constant input ``k``, the weights of a layer, as float32. Not finite: ModelError with its name."""
        found = self.constant(operator, k)
        if found is None:
            operator.fail(f"input {k} is missing")
        array = found.array
        if rank is not None and array.ndim != rank:
            operator.fail(f"input {k} must have rank {rank}, not the shape {list(array.shape)}")
        if array.dtype.kind != "f" or not array.size:
            kinds = ", ".join(map(dtype_name, FLOATS))
            operator.fail(f"input {k} holds {array.size} numbers of {array.dtype}; supported are {kinds}")
        self.file.allowance.take(array.size)
        with np.errstate(over="ignore", invalid="ignore"):  # found by the check for finite values
            converted = np.array(array, np.float32)
        if not np.isfinite(converted).all():
            raise ModelError(f"{found.name}: weights that are infinite or not a number, read by {operator}")
        return converted

    def emit(
        self,
        operator: Operator,
        op: str,
        *inputs: Value,
        params: dict[str, np.ndarray] | None = None,
        name: str | None = None,
        **attrs: object,
    ) -> Value:
        """Appends the node that computes the operator's output. It has the axes of the first input."""
        name = name or operator.outputs[0]
        if name in self.nodes:
            operator.fail(f"its output {quote(name)} has no name of its own")
        node = Node(name, op, tuple(v.node for v in inputs), attrs, params or {})
        sizes = OPS[op].shape(node, [v.sizes for v in inputs])
        self.nodes[name] = node
        return Value(name, inputs[0].axes, _checked(name, sizes))


def _checked(name: str, sizes: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    if math.prod(sizes) > MAX_FILE_ELEMENTS:
        raise ModelError(f"tensor {quote(name)}: {sizes} (batch, height, width, channels) is too large")
    return sizes
