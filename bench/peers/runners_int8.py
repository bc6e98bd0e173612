"""The frameworks with the network in int8. Each takes the picture in the type of its file's input, made before the
clock starts: ours pixels, LiteRT int8, ONNX Runtime and OpenVINO float32, which a QDQ file quantises itself."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from fastmobilenet.graph import Graph

from .runners import OURS, FastMobileNet, LiteRT, OnnxRuntime, OpenVino, Runner

#: Our own float network in a race of int8: no peer.
OURS_FP32 = "fastmobilenet-fp32"

#: Files in the folder of a race: the network of bytes, and the pictures that set its ranges.
QUANTIZED, CALIBRATION = "quantized.pkl", "calibration.npy"


def _quantized(runner: Runner) -> Graph:
    graph: Graph = pickle.loads((runner.folder.parent / QUANTIZED).read_bytes())  # written by the race
    return graph


class FastMobileNetInt8(FastMobileNet):
    """Ours: pixels in."""

    layout = "NHWC"

    def load(self) -> None:
        from fastmobilenet.lower import Engine

        p = self.graph.preprocess
        self.pixels = np.rint(self.x * np.asarray(p.std) + np.asarray(p.mean)).astype(np.uint8)
        self.engine = Engine(_quantized(self))

    def run(self) -> np.ndarray:
        return self.engine.run(self.pixels, threads=self.threads, pixels=True)


class FastMobileNetPixels(FastMobileNet):
    """Our network of floats: pixels in."""

    layout = "NHWC"

    def load(self) -> None:
        super().load()
        p = self.graph.preprocess
        self.pixels = np.rint(self.x * np.asarray(p.std) + np.asarray(p.mean)).astype(np.uint8)

    def run(self) -> np.ndarray:
        return self.engine.run(self.pixels, threads=self.threads, pixels=True)


def _qdq_file(runner: Runner) -> Path:
    from .to_qdq import convert

    path = runner.folder.parent / "network.qdq.onnx"
    if not path.exists():  # one file for both
        convert(runner.graph, runner.size, np.load(runner.folder.parent / CALIBRATION), path)
    return path


class OnnxRuntimeInt8(OnnxRuntime):
    def onnx_file(self) -> Path:
        return _qdq_file(self)


class OpenVinoInt8(OpenVino):
    def onnx_file(self) -> Path:
        return _qdq_file(self)


class LiteRTInt8(LiteRT):
    def load(self) -> None:
        from .tflite_int8 import input_codes

        floats, self.graph = self.x, _quantized(self)
        self.x = input_codes(self.graph, floats)
        super().load()

    def output(self) -> np.ndarray:
        details = self.interpreter.get_output_details()[0]
        scale, zero = details["quantization"]
        y = (super().output().astype(np.float32) - zero) * np.float32(scale)
        real: np.ndarray = y
        return real


RUNNERS_INT8: dict[str, type[Runner]] = {
    OURS: FastMobileNetInt8,
    "onnxruntime": OnnxRuntimeInt8,
    "openvino": OpenVinoInt8,
    "litert": LiteRTInt8,
    OURS_FP32: FastMobileNetPixels,
}
