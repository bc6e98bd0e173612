"""Joins nodes that exporters took apart: what is one layer of the network becomes one node again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from ..graph import Activation, Node
from ._gates import is_affine, join_gates

#: Two nodes, of which the first is read by the second alone -> the one that they become, if any.
_Join = Callable[[Node, Node], "Node | None"]


def simplify(nodes: Iterable[Node], output: str) -> list[Node]:
    """The same network with fewer nodes. A joined node has the name of its last part."""
    return _joined(join_gates(_joined(nodes, output, _clamp_of_clamp), output), output, _affine_layer)


def _joined(nodes: Iterable[Node], output: str, join: _Join) -> list[Node]:
    nodes = list(nodes)
    readers = Counter(source for node in nodes for source in node.inputs)
    readers[output] += 1
    done: dict[str, Node] = {}
    for node in nodes:
        before = done.get(node.inputs[0]) if len(node.inputs) == 1 else None
        both = join(before, node) if before is not None and readers[before.name] == 1 else None
        if before is not None and both is not None:
            del done[before.name]
        done[node.name] = both or node
    return list(done.values())


def _clamp_of_clamp(before: Node, node: Node) -> Node | None:
    """min(max(x, 0), 6)"""
    first, second = before.activation, node.activation
    if before.op != "activation" or node.op != "activation" or first is None or second is None:
        return None
    if first.kind != "clamp" or second.kind != "clamp":
        return None
    lo, hi = (min(max(bound, second.lo), second.hi) for bound in (first.lo, first.hi))
    return replace(before, name=node.name, attrs={"activation": Activation("clamp", lo, hi)})


def _affine_layer(before: Node, node: Node) -> Node | None:
    """A batch norm that is scaled and shifted, a layer with its bias."""
    if not is_affine(node):
        return None
    scale, shift = (node.params[key].astype(np.float64) for key in ("gamma", "beta"))
    params = dict(before.params)
    if before.op == "batch_norm":
        params["gamma"] = _f32(params["gamma"] * scale)
        params["beta"] = _f32(params["beta"] * scale + shift)
    elif before.op in ("conv2d", "dense") and before.activation is None and (scale == 1).all():
        params["bias"] = _f32(params.get("bias", 0.0) + shift)
    else:
        return None
    finite = all(np.isfinite(p).all() for p in params.values())
    return replace(before, name=node.name, params=params) if finite else None


def _f32(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(np.float32)
