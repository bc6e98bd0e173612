"""LiteRT (TensorFlow Lite), for .tflite files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..detection_head import head_of
from ..graph import Graph, infer_shapes
from ..importers.tflite_detection import POSTPROCESS
from ..importers.tflite_schema import TfliteFile
from . import arrangements, failures_of, title, to_layout


class LitertPeer:
    """Nodes of the Graph have the names of the file's tensors up to the first semicolon, with ``#`` and the number of
    the tensor where that is not unique. Codes of quantised tensors are given as the numbers that they stand for."""

    def __init__(self, path: str, graph: Graph) -> None:
        from ai_edge_litert import interpreter

        self.name = title("LiteRT", "ai-edge-litert")
        self._path, self._graph, self._library = path, graph, interpreter
        self._shapes = infer_shapes(graph, 1, *graph.input_size)
        self._rows = _rows_of_detector(path) if head_of(graph) is not None else None
        with failures_of(self.name, path):
            self._interpreter = self._open()
            details = self._interpreter.get_tensor_details()
        # With integer weights alone LiteRT rounds too: it quantises the inputs of each layer as it runs.
        self.rounds = any(np.dtype(d["dtype"]).itemsize == 1 and len(_scales(d)) for d in details)

    def output(self, x: np.ndarray) -> np.ndarray:
        with failures_of(self.name, self._path):
            if self._rows is not None:
                return self._rows_of(x, self._rows)
            self._invoke(self._interpreter, x)
            return _values(self._interpreter, self._interpreter.get_output_details()[0])

    def _rows_of(self, x: np.ndarray, tensors: tuple[int, int]) -> np.ndarray:
        """What a detector has computed before it makes boxes: (1, anchors, 4 + classes)."""
        interpreter = self._open_plain()
        self._invoke(interpreter, x)
        details = {d["index"]: d for d in interpreter.get_tensor_details()}
        return np.concatenate([_values(interpreter, details[i]) for i in tensors], axis=-1)

    def _open_plain(self) -> Any:
        """One that shows the tensors inside; the default delegate keeps them to itself."""
        plain = self._library.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
        return self._open(experimental_preserve_all_tensors=True, experimental_op_resolver_type=plain)

    def tensors(self, x: np.ndarray) -> Mapping[str, np.ndarray]:
        with failures_of(self.name, self._path):
            interpreter = self._open_plain()
            places = self._places(interpreter)
            self._invoke(interpreter, x)
            return {
                name: _values(interpreter, detail) for name, detail in places.items() if _is_there(interpreter, detail)
            }

    def _open(self, **options: Any) -> Any:
        return self._library.Interpreter(self._path, num_threads=1, **options)

    def _invoke(self, interpreter: Any, x: np.ndarray) -> None:
        source = interpreter.get_input_details()[0]
        x = to_layout(x, self._graph.input_layout)
        if tuple(source["shape"]) != x.shape:
            interpreter.resize_tensor_input(source["index"], x.shape)
        interpreter.allocate_tensors()
        if _is_quantised(source):
            scale, zero_point = source["quantization"]
            codes = np.iinfo(source["dtype"])
            x = np.clip(np.rint(x / scale) + zero_point, codes.min, codes.max)
        interpreter.set_tensor(source["index"], x.astype(source["dtype"]))
        interpreter.invoke()

    def _places(self, interpreter: Any) -> dict[str, Any]:
        """Node of the Graph -> the tensor that it is. Asked before there is memory for what is computed: only constants
        have values then."""
        named: dict[str, list[Any]] = {}
        for detail in interpreter.get_tensor_details():
            if _is_there(interpreter, detail):
                continue
            named.setdefault(_short(detail), []).append(detail)
            named[f"{_short(detail)}#{detail['index']}"] = [detail]
        places: dict[str, Any] = {}
        taken: set[int] = set()
        for node in sorted(self._graph.nodes, key=lambda n: "#" not in n.name):  # those with a number are certain
            for detail in named.get(node.name, ()):
                if detail["index"] not in taken and arrangements(np.empty(detail["shape"]), self._shapes[node.name]):
                    places[node.name] = detail
                    taken.add(detail["index"])
                    break
        return places


def _rows_of_detector(path: str) -> tuple[int, int]:
    """The tensors that the operator which makes boxes reads: numbers of boxes, and of classes."""
    with open(path, "rb") as file:
        operators = TfliteFile(file.read()).operators
    boxes, scores, *_ = next(op.inputs for op in operators if op.kind == POSTPROCESS)
    return boxes, scores


def _is_there(interpreter: Any, detail: Any) -> bool:
    """Whether the tensor has memory, and so values."""
    try:
        interpreter.tensor(detail["index"])()
    except ValueError:
        return False
    return True


def _short(detail: Any) -> str:
    """The name that the importer gives a tensor: converters write those of all ops that they have fused."""
    return detail["name"].split(";")[0] or f"tensor_{detail['index']}"


def _scales(detail: Any) -> Any:
    """The scale of a quantised tensor, or one for each channel."""
    return detail["quantization_parameters"]["scales"]


def _is_quantised(detail: Any) -> bool:
    return np.dtype(detail["dtype"]).kind in "iu" and detail["quantization"][0] != 0


def _values(interpreter: Any, detail: Any) -> np.ndarray:
    values: np.ndarray = np.array(interpreter.get_tensor(detail["index"]))
    if _is_quantised(detail):
        scale, zero_point = detail["quantization"]
        return np.asarray(scale * (values.astype(np.float64) - zero_point))
    return values
