"""Graph of floats -> .onnx of QuantizeLinear and DequantizeLinear pairs, by ONNX Runtime's own tools: static
quantisation, weights int8 for each output channel, activations uint8."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastmobilenet.graph import Graph

from .to_onnx import export


def convert(graph: Graph, size: tuple[int, int], pictures: np.ndarray, path: Path) -> None:
    """Writes the file. `pictures` (n, h, w, c), float32, set the ranges, by minimum and maximum. onnxruntime's
    preparation of the graph needs sympy."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[np.ndarray] = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            picture = next(self.left, None)
            return None if picture is None else {"x": np.ascontiguousarray(picture.transpose(2, 0, 1))[None]}

    logging.getLogger().setLevel(logging.ERROR)  # it advises to do what is done here
    floats, prepared = path.with_suffix(".float.onnx"), path.with_suffix(".prepared.onnx")
    floats.write_bytes(export(graph, size))
    quant_pre_process(str(floats), str(prepared))
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
