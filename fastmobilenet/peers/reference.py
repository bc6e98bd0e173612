"""The float64 reference of the ops, for files that no other runtime reads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..graph import Graph
from ..reference import execute


class ReferencePeer:
    """Computes the graph itself, so it cannot see what went wrong when the file was read."""

    name = "the float64 reference"
    rounds = False

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def output(self, x: np.ndarray) -> np.ndarray:
        return real_values(self._graph, x)[self._graph.output]

    def tensors(self, x: np.ndarray) -> Mapping[str, np.ndarray]:
        return real_values(self._graph, x, keep=True)


def real_values(graph: Graph, x: np.ndarray, *, keep: bool = False) -> dict[str, np.ndarray]:
    """What reference.execute gives, with the numbers that bytes stand for."""
    values = execute(graph, x, keep=keep)
    for node in graph.nodes:
        if node.name in values and "quant" in node.attrs:
            values[node.name] = node.attrs["quant"].dequantize(values[node.name])
    return values
