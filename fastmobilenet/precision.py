"""In which precision the layers of a network run: bytes or floats."""

from __future__ import annotations

from .graph import Graph, Node

#: What only changes bytes to floats or back, or makes the input; it has no precision of its own.
_CONVERSIONS = ("input", "quantize", "dequantize")


def of_node(node: Node) -> str:
    """ "int8" for a node that makes bytes, else "fp32"."""
    return "int8" if "quant" in node.attrs else "fp32"


def layers_of_floats(graph: Graph) -> list[str]:
    """The names of the layers that compute in fp32."""
    return [n.name for n in graph.nodes if n.op not in _CONVERSIONS and of_node(n) == "fp32"]


def of_graph(graph: Graph) -> str:
    """ "fp32", "int8", or "int8 and fp32" where some layers are neither."""
    layers = [n for n in graph.nodes if n.op not in _CONVERSIONS]
    found = {of_node(n) for n in layers}
    return " and ".join(name for name in ("int8", "fp32") if name in found) or "fp32"


def describe(graph: Graph) -> str:
    """The same, with the number of fp32 layers where both are there, and the names of a few."""
    text = of_graph(graph)
    if " and " not in text:
        return text
    floats = layers_of_floats(graph)
    total = sum(n.op not in _CONVERSIONS for n in graph.nodes)
    names = ", ".join(floats[:3]) + (", ..." if len(floats) > 3 else "")
    return f"int8, but {len(floats)} of {total} layers in fp32 ({names})"
