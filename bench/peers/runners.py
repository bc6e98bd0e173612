"""One small class for each framework: our Graph in, a loaded model that runs one picture out.

A timed run takes a float32 NumPy array in the framework's own layout and gives a NumPy array, as a user's
call does. Every class is set for its best float32 latency: no reduced precision, `threads` threads, one
request at a time. The imports are inside: a framework that is missing fails alone. Those of int8 are in
runners_int8.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fastmobilenet.graph import Graph, infer_shapes


class Runner:
    """A loaded model. `run()` computes the network's output for the input given to the constructor.

    `x` is (1, h, w, c), float32; `folder` is a scratch folder for the framework's own files.
    """

    #: Layout of rank-4 inputs and outputs.
    layout: ClassVar[str] = "NCHW"

    def __init__(self, graph: Graph, x: np.ndarray, threads: int, folder: Path) -> None:
        self.graph = graph
        self.threads = threads
        self.folder = folder
        self.size = (x.shape[1], x.shape[2])
        self.x = np.ascontiguousarray(x.transpose(0, 3, 1, 2) if self.layout == "NCHW" else x)
        self.load()

    def load(self) -> None:
        raise NotImplementedError

    def run(self) -> np.ndarray:
        raise NotImplementedError

    def output(self) -> np.ndarray:
        """run()'s result as (n, h, w, c), whatever the framework's layout and rank."""
        y = np.asarray(self.run())
        n, h, w, c = infer_shapes(self.graph, 1, *self.size)[self.graph.output]
        if self.layout == "NCHW":
            return y.reshape(n, c, h, w).transpose(0, 2, 3, 1)
        return y.reshape(n, h, w, c)

    def onnx_file(self) -> Path:
        from .to_onnx import export

        path = self.folder / "network.onnx"
        path.write_bytes(export(self.graph, self.size))
        return path


class FastMobileNet(Runner):
    """Ours. It takes both layouts; the races use NCHW, the very array that most peers get."""

    def load(self) -> None:
        from fastmobilenet.lower import Engine

        self.engine = Engine(self.graph.replace(input_layout=self.layout))

    def run(self) -> np.ndarray:
        return self.engine.run(self.x, threads=self.threads, pixels=False)

    def output(self) -> np.ndarray:
        return self.run()  # (n, h, w, c) already


class OnnxRuntime(Runner):
    def load(self) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(
            str(self.onnx_file()), self.options(), providers=["CPUExecutionProvider"]
        )

    def options(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        return options

    def run(self) -> np.ndarray:
        output: np.ndarray = self.session.run(None, {"x": self.x})[0]
        return output


class OpenVino(Runner):
    def load(self) -> None:
        import openvino

        config: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": self.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        model = openvino.Core().compile_model(str(self.onnx_file()), "CPU", config)
        self.request = model.create_infer_request()
        self.request.set_input_tensor(openvino.Tensor(self.x, shared_memory=True))

    def run(self) -> np.ndarray:
        self.request.infer()
        output: np.ndarray = self.request.get_output_tensor().data
        return output


class LiteRT(Runner):
    layout = "NHWC"

    def load(self) -> None:
        from ai_edge_litert.interpreter import Interpreter

        from .to_tflite import export

        # The default resolver applies the XNNPACK delegate.
        content = export(self.graph, self.size)
        self.interpreter = Interpreter(model_content=content, num_threads=self.threads)
        self.interpreter.allocate_tensors()
        self.source = self.interpreter.get_input_details()[0]["index"]
        self.target = self.interpreter.get_output_details()[0]["index"]

    def run(self) -> np.ndarray:
        self.interpreter.set_tensor(self.source, self.x)
        self.interpreter.invoke()
        output: np.ndarray = self.interpreter.get_tensor(self.target)
        return output


class Ncnn(Runner):
    def load(self) -> None:
        import ncnn

        from .to_ncnn import export

        param, weights = export(self.graph, self.size)
        (self.folder / "network.param").write_text(param)
        (self.folder / "network.bin").write_bytes(weights)
        self.net = ncnn.Net()
        options = self.net.opt
        options.num_threads = self.threads
        for reduced in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage"):
            setattr(options, f"use_{reduced}", False)
        for loaded in (
            self.net.load_param(str(self.folder / "network.param")),
            self.net.load_model(str(self.folder / "network.bin")),
        ):
            if loaded != 0:
                raise RuntimeError(f"ncnn refused the model with code {loaded}")
        # Memory of its own: ncnn crashes where a layer that works in place follows an input that NumPy owns.
        self.mat = ncnn.Mat(self.x[0]).clone()

    def run(self) -> np.ndarray:
        extractor = self.net.create_extractor()
        extractor.input("x", self.mat)
        code, out = extractor.extract("y")
        if code != 0:
            raise RuntimeError(f"ncnn's extract returned {code}")
        return np.array(out)


class Mnn(Runner):
    def load(self) -> None:
        import MNN

        from .to_mnn import convert

        path = self.folder / "network.mnn"
        convert(self.onnx_file(), path)
        config = {"backend": "CPU", "precision": "high", "numThread": self.threads}
        self.manager = MNN.nn.create_runtime_manager((config,))
        self.net = MNN.nn.load_module_from_file(str(path), ["x"], ["y"], runtime_manager=self.manager)
        self.source = MNN.expr.placeholder(list(self.x.shape), MNN.expr.NCHW)

    def run(self) -> np.ndarray:
        self.source.write(self.x)
        return np.array(self.net.forward(self.source).read())


class Torch(Runner):
    """TorchScript, frozen and optimised for inference (oneDNN), channels last."""

    def load(self) -> None:
        import torch

        from .to_torch import export

        torch.set_num_threads(self.threads)
        self.tensor = torch.from_numpy(self.x).to(memory_format=torch.channels_last)
        module = export(self.graph, self.size).to(memory_format=torch.channels_last)
        with torch.no_grad():
            self.module = self.compile(module)

    def compile(self, module: Any) -> Any:
        import torch

        traced = torch.jit.freeze(torch.jit.trace(module, self.tensor))
        return torch.jit.optimize_for_inference(traced)

    def run(self) -> np.ndarray:
        import torch

        with torch.no_grad():
            output: np.ndarray = self.module(self.tensor).numpy()
        return output


class TorchCompile(Torch):
    """Inductor with frozen weights. It needs a C++ compiler and takes minutes to load."""

    def compile(self, module: Any) -> Any:
        import torch
        import torch._inductor.config

        torch._inductor.config.freezing = True
        return torch.compile(module, mode="max-autotune-no-cudagraphs")


RUNNERS: dict[str, type[Runner]] = {
    "fastmobilenet": FastMobileNet,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "litert": LiteRT,
    "ncnn": Ncnn,
    "mnn": Mnn,
    "torch": Torch,
    "torch-compile": TorchCompile,
}
OURS = "fastmobilenet"
#: What a race holds where --peers does not say: all but the slow loader.
DEFAULT = tuple(name for name in RUNNERS if name != "torch-compile")
