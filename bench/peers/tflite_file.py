"""The pieces of a .tflite file, and the file made of them, through the schema classes that come with LiteRT."""

from __future__ import annotations

from typing import Any

import numpy as np

#: The kernels of LiteRT want their constants on this many bytes.
ALIGNMENT = 16


class FileWriter:
    """Collects tensors, constants and operators. Tensors are known by their number."""

    def __init__(self) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self.schema: Any = schema
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [schema.BufferT()]  # number 0 is empty by convention
        self._operators: list[Any] = []
        self._codes: list[Any] = []

    def tensor(self, name: str, shape: tuple[int, ...], data: np.ndarray | None = None) -> int:
        """A float32 tensor, or a constant with the values of `data`: float32 or int32."""
        types = self.schema.TensorType
        buffer, kind = 0, types.FLOAT32
        if data is not None:
            self._buffers.append(_aligned_buffer(self.schema, data))
            buffer = len(self._buffers) - 1
            kind = {np.dtype(np.int32): types.INT32, np.dtype(np.float32): types.FLOAT32}[data.dtype]
        self._tensors.append(self.schema.TensorT(shape=list(shape), type=kind, buffer=buffer, name=name))
        return len(self._tensors) - 1

    def constant(self, name: str, data: np.ndarray) -> int:
        return self.tensor(name, data.shape, np.ascontiguousarray(data))

    def shape(self, tensor: int) -> tuple[int, ...]:
        return tuple(self._tensors[tensor].shape)

    def operator(self, op: str, inputs: list[int], outputs: list[int], options: Any = None) -> None:
        """`op` is a name of the schema's BuiltinOperator. All are written as version 1."""
        schema = self.schema
        code = getattr(schema.BuiltinOperator, op)
        known = [c.builtinCode for c in self._codes]
        if code not in known:
            known.append(code)
            # Old readers know only codes up to 127 and look into a field of one byte.
            self._codes.append(schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=min(code, 127), version=1))
        kind = 0
        if options is not None:
            kind = getattr(schema.BuiltinOptions, type(options).__name__.removesuffix("T"))
        self._operators.append(
            schema.OperatorT(
                opcodeIndex=known.index(code),
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
