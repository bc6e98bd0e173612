"""The TFLite container: a FlatBuffer of tensors, operators and buffers, read into plain data.

What the numbers mean is fixed by TensorFlow Lite's schema, version 3 (``schema.fbs``); this file knows the
part of it that picture classifiers use. Nothing here knows the Graph: tflite.py translates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from ..errors import ModelError
from . import flatbuffer
from .flatbuffer import Table

IDENTIFIER = b"TFL3"
VERSION = 3

#: Bounds on what one file may make us do. The largest MobileNet has fewer than 300 operators.
MAX_OPERATORS = 10_000
MAX_TENSORS = 50_000
MAX_RANK = 8

#: Names of the builtin operators 0 to 154, in the order of the schema's enumeration.
OPERATORS = tuple(
    """
    ADD AVERAGE_POOL_2D CONCATENATION CONV_2D DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE EMBEDDING_LOOKUP FLOOR
    FULLY_CONNECTED HASHTABLE_LOOKUP L2_NORMALIZATION L2_POOL_2D LOCAL_RESPONSE_NORMALIZATION LOGISTIC
    LSH_PROJECTION LSTM MAX_POOL_2D MUL RELU RELU_N1_TO_1 RELU6 RESHAPE RESIZE_BILINEAR RNN SOFTMAX SPACE_TO_DEPTH
    SVDF TANH CONCAT_EMBEDDINGS SKIP_GRAM CALL CUSTOM EMBEDDING_LOOKUP_SPARSE PAD UNIDIRECTIONAL_SEQUENCE_RNN
    GATHER BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND TRANSPOSE MEAN SUB DIV SQUEEZE UNIDIRECTIONAL_SEQUENCE_LSTM
    STRIDED_SLICE BIDIRECTIONAL_SEQUENCE_RNN EXP TOPK_V2 SPLIT LOG_SOFTMAX DELEGATE BIDIRECTIONAL_SEQUENCE_LSTM
    CAST PRELU MAXIMUM ARG_MAX MINIMUM LESS NEG PADV2 GREATER GREATER_EQUAL LESS_EQUAL SELECT SLICE SIN
    TRANSPOSE_CONV SPARSE_TO_DENSE TILE EXPAND_DIMS EQUAL NOT_EQUAL LOG SUM SQRT RSQRT SHAPE POW ARG_MIN FAKE_QUANT
    REDUCE_PROD REDUCE_MAX PACK LOGICAL_OR ONE_HOT LOGICAL_AND LOGICAL_NOT UNPACK REDUCE_MIN FLOOR_DIV REDUCE_ANY
    SQUARE ZEROS_LIKE FILL FLOOR_MOD RANGE RESIZE_NEAREST_NEIGHBOR LEAKY_RELU SQUARED_DIFFERENCE MIRROR_PAD ABS
    SPLIT_V UNIQUE CEIL REVERSE_V2 ADD_N GATHER_ND COS WHERE RANK ELU REVERSE_SEQUENCE MATRIX_DIAG QUANTIZE
    MATRIX_SET_DIAG ROUND HARD_SWISH IF WHILE NON_MAX_SUPPRESSION_V4 NON_MAX_SUPPRESSION_V5 SCATTER_ND SELECT_V2
    DENSIFY SEGMENT_SUM BATCH_MATMUL PLACEHOLDER_FOR_GREATER_OP_CODES CUMSUM CALL_ONCE BROADCAST_TO RFFT2D CONV_3D
    IMAG REAL COMPLEX_ABS HASHTABLE HASHTABLE_FIND HASHTABLE_IMPORT HASHTABLE_SIZE REDUCE_ALL CONV_3D_TRANSPOSE
    VAR_HANDLE READ_VARIABLE ASSIGN_VARIABLE BROADCAST_ARGS RANDOM_STANDARD_NORMAL BUCKETIZE RANDOM_UNIFORM
    MULTINOMIAL GELU DYNAMIC_UPDATE_SLICE RELU_0_TO_1 UNSORTED_SEGMENT_PROD UNSORTED_SEGMENT_MAX
    """.split()
)
_CUSTOM = OPERATORS.index("CUSTOM")

#: Tensor types that hold weights or activations: number in the schema -> NumPy type.
DTYPES: dict[int, type[np.generic]] = {
    0: np.float32,
    1: np.float16,
    2: np.int32,
    3: np.uint8,
    4: np.int64,
    7: np.int16,
    9: np.int8,
}


@dataclass(frozen=True)
class Quantization:
    """real = scale * (q - zero_point). Both are float64 and int64 arrays of length 1, or of the tensor's
    size along ``axis``."""

    scale: np.ndarray
    zero_point: np.ndarray
    axis: int


@dataclass(frozen=True)
class Tensor:
    """``shape`` is the file's. ``signature`` has -1 for what is left open (and stored as 1), or is empty; ``dynamic``
    says that height or width is."""

    index: int
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    dynamic: bool
    quantization: Quantization | None
    buffer: int
    signature: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"tensor {self.index} ({self.name!r})"


@dataclass(frozen=True)
class Operator:
    """``inputs`` are tensor numbers, -1 for an input that is left out. ``options`` is None where absent."""

    index: int
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options_type: int
    options: Table | None
    label: str
    custom: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))  # bytes: the options of a custom operator

    def __str__(self) -> str:
        return f"node {self.label!r} (operator {self.index}, {self.kind})"


class TfliteFile:
    """The first subgraph of a TFLite file. ``inputs`` and ``outputs`` are tensor numbers."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        model = flatbuffer.root(data, IDENTIFIER)
        version = model.uint32(0)
        if version != VERSION:
            raise ModelError(f"TFLite schema version {version} is not known; version {VERSION} is")
        subgraphs = model.tables(2, MAX_OPERATORS)
        if not subgraphs:
            raise ModelError("the file holds no subgraph")
        main = subgraphs[0]
        self._model = model
        self._buffers = model.tables(4, MAX_TENSORS)
        self._tables = main.tables(0, MAX_TENSORS)
        self._tensors: dict[int, Tensor] = {}
        self._constants: dict[int, np.ndarray] = {}
        # Tensors may share a buffer, as equal biases do. A file in which thousands share one large buffer
        # would unfold to any size, so the sum of all weights is bounded by the size of the file.
        self._elements_left = 8 * memoryview(data).nbytes
        self.inputs = self._indices(main, 1, "the subgraph's inputs")
        self.outputs = self._indices(main, 2, "the subgraph's outputs")
        kinds = [_kind(code) for code in model.tables(1, MAX_OPERATORS)]
        operators = main.tables(3, MAX_OPERATORS)
        self.operators = tuple(self._operator(i, table, kinds) for i, table in enumerate(operators))

    def tensor(self, index: int) -> Tensor:
        if index not in self._tensors:
            self._tensors[index] = self._read_tensor(index)
        return self._tensors[index]

    def is_constant(self, index: int) -> bool:
        """True for a tensor whose values are stored in the file."""
        return len(self._stored(self.tensor(index))) > 0

    def integers(self, index: int) -> list[int]:
        """The values of a small constant of integers: axes, paddings, a shape."""
        values = self.numbers(index)
        if values.size > 64:
            raise ModelError(f"{self.tensor(index)}: expected a few integers, not {values.shape}")
        return [int(v) for v in values.reshape(-1)]

    def numbers(self, index: int) -> np.ndarray:
        """A constant of integers as the file stores it."""
        tensor = self.tensor(index)
        values = self._values(tensor)
        if values.dtype.kind != "i":
            raise ModelError(f"{tensor}: expected integers, not {values.dtype} {values.shape}")
        return values

    def codes(self, index: int) -> np.ndarray:
        """A constant as the file stores it, of any type; it counts as spent."""
        values = self._values(self.tensor(index))
        self.spend(values.size)
        return values

    def spend(self, elements: int) -> None:
        """Takes from the allowance for what is made of the file; ModelError where nothing is left."""
        self._elements_left -= elements
        if self._elements_left < 0:
            raise ModelError("the weights add up to far more than the file holds; it is damaged")

    def constant(self, index: int) -> np.ndarray:
        """A constant as float32 in its own shape, dequantised in float64. Not finite: ModelError."""
        if index not in self._constants:
            tensor = self.tensor(index)
            self._constants[index] = self._dequantize(tensor, tensor.quantization)
        return self._constants[index]

    def bias(self, index: int, scale: np.ndarray | None) -> np.ndarray:
        """A bias as float32 (oc,). Integers count in ``scale`` (1,) or (oc,), input scale times weight scale:
        that is the unit of the accumulator to which they are added, whatever the bias says of itself."""
        tensor = self.tensor(index)
        if scale is None or tensor.dtype.kind != "i":
            return self.constant(index).reshape(-1)
        zero = np.zeros(1, np.int64)
        count = math.prod(tensor.shape)
        if scale.size not in (1, count):
            raise ModelError(f"{tensor}: {count} values do not fit {scale.size} scales")
        flat = Tensor(tensor.index, tensor.name, tensor.dtype, (count,), False, None, tensor.buffer)
        return self._dequantize(flat, Quantization(scale, zero, 0))

    def metadata(self, name: str) -> np.ndarray:
        """The bytes of the model's metadata entry of that name; empty where there is none."""
        for entry in self._model.tables(6, MAX_OPERATORS):
            buffer = entry.uint32(1)
            if entry.string(0) == name and buffer < len(self._buffers):
                return self._buffers[buffer].vector(0, np.uint8)
        return np.empty(0, np.uint8)

    # --- reading -----------------------------------------------------------------------------------------

    def _indices(self, table: Table, field: int, what: str, absent: bool = False) -> tuple[int, ...]:
        """A vector of tensor numbers; ``absent`` allows -1."""
        values = table.vector(field, np.int32)
        if len(values) > MAX_TENSORS:
            raise ModelError(f"{what}: {len(values)} tensors are too many")
        if len(values) and not (-1 if absent else 0) <= values.min() <= values.max() < len(self._tables):
            raise ModelError(f"{what} name tensors {values[:8].tolist()}, but there are {len(self._tables)}")
        return tuple(values.tolist())

    def _operator(self, index: int, table: Table, kinds: list[str]) -> Operator:
        code = table.uint32(0)
        if code >= len(kinds):
            raise ModelError(f"operator {index} has code {code}, but there are {len(kinds)}")
        inputs = self._indices(table, 1, f"operator {index}: the inputs", absent=True)
        outputs = self._indices(table, 2, f"operator {index}: the outputs")
        label = self._name(outputs[0]) if outputs else ""
        custom = table.vector(5, np.uint8)
        return Operator(index, kinds[code], inputs, outputs, table.uint8(3), table.table(4), label, custom)

    def _name(self, index: int) -> str:
        """The tensor's name; of the joined names of layers that a converter fused, the first."""
        return self._tables[index].string(3).split(";")[0] or f"tensor_{index}"

    def _read_tensor(self, index: int) -> Tensor:
        table = self._tables[index]
        name = self._name(index)
        kind = table.uint8(1)
        if kind not in DTYPES:
            raise ModelError(f"tensor {index} ({name!r}) has type {kind}; {', '.join(_dtype_names())} are read")
        if table.table(6) is not None:
            raise ModelError(f"tensor {index} ({name!r}) is stored sparse; convert without sparsity")
        dtype = np.dtype(DTYPES[kind]).newbyteorder("<")
        shape = tuple(table.vector(0, np.int32)[: MAX_RANK + 1].tolist())
        if len(shape) > MAX_RANK or any(d < 0 for d in shape):
            raise ModelError(f"tensor {index} ({name!r}) has the shape {list(shape)}")
        signature = tuple(table.vector(7, np.int32)[:MAX_RANK].tolist())
        dynamic = len(signature) == 4 and (signature[1] < 0 or signature[2] < 0)
        quantization = self._read_quantization(table.table(4), shape, f"tensor {index} ({name!r})")
        return Tensor(index, name, dtype, shape, dynamic, quantization, table.uint32(2), signature)

    def _read_quantization(self, table: Table | None, shape: tuple[int, ...], where: str) -> Quantization | None:
        if table is None or not len(table.vector(2, np.float32)):
            return None
        if table.uint8(4) != 0:
            raise ModelError(f"{where}: its quantisation is not of the kind scale and zero point")
        scale = table.vector(2, np.float32).astype(np.float64)
        zero_point = table.vector(3, np.int64).astype(np.int64)
        axis = table.int32(6)
        if not len(zero_point):
            zero_point = np.zeros(1, np.int64)
        if not (np.isfinite(scale).all() and (scale >= 0).all()):
            raise ModelError(f"{where}: a scale is negative or not a number")
        count = shape[axis] if 0 <= axis < len(shape) else 1
        if scale.size not in (1, count) or zero_point.size not in (1, scale.size):
            counts = f"{scale.size} scales and {zero_point.size} zero points"
            raise ModelError(f"{where}: {counts} do not fit axis {axis} of {list(shape)}")
        return Quantization(scale, zero_point, axis)

    def _stored(self, tensor: Tensor) -> np.ndarray:
        """The bytes of the tensor in the file; empty for one that is computed."""
        if tensor.buffer >= len(self._buffers):
            raise ModelError(f"{tensor} lies in buffer {tensor.buffer}, but there are {len(self._buffers)}")
        return self._buffers[tensor.buffer].vector(0, np.uint8)

    def _values(self, tensor: Tensor) -> np.ndarray:
        """A constant as the file stores it, in the tensor's shape."""
        stored = self._stored(tensor)
        if not len(stored):
            raise ModelError(f"{tensor} must be a constant, but the file stores no values for it")
        expected = math.prod(tensor.shape) * tensor.dtype.itemsize
        if len(stored) != expected:
            raise ModelError(
                f"{tensor}: {len(stored)} bytes are stored, but {list(tensor.shape)} of {tensor.dtype} needs {expected}"
            )
        return stored.view(tensor.dtype).reshape(tensor.shape)

    def _dequantize(self, tensor: Tensor, quantization: Quantization | None) -> np.ndarray:
        raw = self._values(tensor)
        self.spend(raw.size)
        if raw.dtype.kind == "f":
            result = raw.astype(np.float32)
        elif quantization is None:
            raise ModelError(f"{tensor} holds {raw.dtype} without a scale")
        else:
            with np.errstate(over="ignore"):  # found by the check for finite values
                real = raw.astype(np.float64)
                real -= _along(quantization.zero_point, quantization.axis, raw.ndim)
                real *= _along(quantization.scale, quantization.axis, raw.ndim)
                result = real.astype(np.float32)
        if not np.isfinite(result).all():
            raise ModelError(f"{tensor}: weights that are infinite or not a number")
        return result


def _kind(code: Table) -> str:
    """An operator's name. The number is a byte in old files and 32 bits in new ones; the larger one counts."""
    number = max(code.int8(0), code.int32(3))
    if number == _CUSTOM:
        return f"CUSTOM {code.string(1)!r}"
    return OPERATORS[number] if 0 <= number < len(OPERATORS) else f"builtin operator {number}"


def _along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
    """One value, or one for each index along an axis, so that it broadcasts against a tensor of that rank."""
    shape = [1] * rank
    if values.size > 1:
        shape[axis] = -1
    return values.reshape(shape)


def _dtype_names() -> list[str]:
    return [np.dtype(t).name for t in DTYPES.values()]
