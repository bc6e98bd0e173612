"""The pieces of a .tflite file, and the file made of them, through the schema classes that come with LiteRT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

#: The kernels of LiteRT want their constants on this many bytes.
ALIGNMENT = 16

#: The version that TensorFlow's converter gives an operator that makes int8; all others here are of version 1.
INT8_VERSIONS = {
    "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "ADD": 2, "MUL": 2, "MEAN": 2, "MAX_POOL_2D": 2,
    "AVERAGE_POOL_2D": 2, "CONCATENATION": 2, "PAD": 2, "SOFTMAX": 2, "SPLIT": 2, "TRANSPOSE": 2, "SLICE": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Scales:
    """What the codes of a tensor stand for: scale * (code - zero), one scale, or one for each index of ``axis``."""

    scale: np.ndarray  # float32
    zero: int = 0
    axis: int = 0


class FileWriter:
    """Collects tensors, constants and operators. Tensors are known by their number."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [schema.BufferT()]  # number 0 is empty by convention
        self._operators: list[Any] = []
        self._codes: list[Any] = []

    def tensor(
        self, name: str, shape: tuple[int, ...], data: np.ndarray | None = None, scales: Scales | None = None
    ) -> int:
        """A float32 tensor, with `scales` an int8 one; or a constant with the values of `data`: float32, int32 or
        int8."""
        types = self.schema.TensorType
        buffer, kind = 0, types.FLOAT32 if scales is None else types.INT8
        if data is not None:
            self._buffers.append(_aligned_buffer(self.schema, data))
            buffer = len(self._buffers) - 1
            kinds = {
                np.dtype(np.int32): types.INT32,
                np.dtype(np.float32): types.FLOAT32,
                np.dtype(np.int8): types.INT8,
            }
            kind = kinds[data.dtype]
        tensor = self.schema.TensorT(shape=list(shape), type=kind, buffer=buffer, name=name)
        if scales is not None:
            values = np.atleast_1d(scales.scale).astype(np.float32)
            tensor.quantization = self.schema.QuantizationParametersT(
                scale=values.tolist(), zeroPoint=[scales.zero] * len(values), quantizedDimension=scales.axis
            )
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def constant(self, name: str, data: np.ndarray, scales: Scales | None = None) -> int:
        return self.tensor(name, data.shape, np.ascontiguousarray(data), scales)

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(self._tensors[tensor].shape)

    def operator(self, op: str, inputs: list[int], outputs: list[int], options: Any = None) -> None:
        """`op` is a name of the schema's BuiltinOperator."""
        schema = self.schema
        int8 = self._tensors[outputs[0]].type == schema.TensorType.INT8
        code, version = getattr(schema.BuiltinOperator, op), INT8_VERSIONS.get(op, 1) if int8 else 1
        known = [(c.builtinCode, c.version) for c in self._codes]
        if (code, version) not in known:
            known.append((code, version))
            # Old readers know only codes up to 127 and look into a field of one byte.
            old = min(code, 127)
            self._codes.append(schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=old, version=version))
        kind = 0
        if options is not None:
            kind = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._operators.append(
            schema.OperatorT(
                opcodeIndex=known.index((code, version)),
                inputs=inputs,
                outputs=outputs,
                builtinOptionsType=kind,
                builtinOptions=options,
            )
        )

    def file(self, source: int, target: int) -> bytes:
        """The whole file, of a network that makes the tensor `target` from `source`."""
        import flatbuffers

        schema = self.schema
        subgraph = schema.SubGraphT(
            name="main", tensors=self._tensors, inputs=[source], outputs=[target], operators=self._operators
        )
        model = schema.ModelT(
            version=3,
            description="network",
            operatorCodes=self._codes,
            subgraphs=[subgraph],
            buffers=self._buffers,
        )
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
        return bytes(builder.Output())


def _aligned_buffer(schema: Any, data: np.ndarray) -> Any:
    """A BufferT whose bytes lie on an ALIGNMENT boundary of the file, as the schema's force_align asks."""

    class AlignedBuffer(schema.BufferT):
        def Pack(self, builder: Any) -> Any:
            builder.Prep(ALIGNMENT, len(self.data))
            return super().Pack(builder)

    return AlignedBuffer(data=np.frombuffer(data.tobytes(), np.uint8))
