"""ONNX Runtime, for .onnx files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..graph import Graph
from . import PeerError, failures_of, title, to_layout

#: Types of a session's input -> what NumPy calls them.
_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


class OnnxRuntimePeer:
    """Nodes of the Graph have the names of the file's tensors. To see those inside, the ``onnx`` package writes a copy
    of the model in which they are outputs."""

    rounds = False

    def __init__(self, path: str, graph: Graph) -> None:
        import onnxruntime

        self.name = title("ONNX Runtime", "onnxruntime")
        self._path, self._graph = path, graph
        self._runtime = onnxruntime
        onnxruntime.set_default_logger_severity(3)  # errors: they are raised too, but warnings would go to the terminal
        with failures_of(self.name, path):
            self._session = self._open(path)

    def output(self, x: np.ndarray) -> np.ndarray:
        return self._run(self._session, [self._session.get_outputs()[0].name], x)[0]

    def tensors(self, x: np.ndarray) -> Mapping[str, np.ndarray]:
        try:
            import onnx
        except ImportError:
            return {}
        with failures_of(self.name, self._path):
            model = onnx.load(self._path)
            known = {output.name for output in model.graph.output}
            made = {name for node in model.graph.node for name in node.output}
            names = [node.name for node in self._graph.nodes if node.name in made]
            model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
            session = self._open(model.SerializeToString())
        return dict(zip(names, self._run(session, names, x), strict=True))

    def _open(self, model: str | bytes) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = 1
        return self._runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def _run(self, session: Any, names: list[str], x: np.ndarray) -> list[np.ndarray]:
        source = session.get_inputs()[0]
        if source.type not in _DTYPES:
            raise PeerError(f"{self._path}: {self.name} wants an input of {source.type}")
        with failures_of(self.name, self._path):
            x = to_layout(x, self._graph.input_layout).astype(_DTYPES[source.type])
            found: list[np.ndarray] = session.run(names, {source.name: x})
        return found
