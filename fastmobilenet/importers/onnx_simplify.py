"""Joins nodes that exporters took apart: what is one layer of the network becomes one node again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from ..graph import Activation, Node


def simplify(nodes: Iterable[Node], output: str) -> list[Node]:
    """The same network with fewer nodes. A joined node has the name of its last part."""
    nodes = list(nodes)
    readers = Counter(source for node in nodes for source in node.inputs)
    readers[output] += 1
    done: dict[str, Node] = {}
    for node in nodes:
        before = done.get(node.inputs[0]) if len(node.inputs) == 1 else None
        joined = _joined(before, node) if before is not None and readers[before.name] == 1 else None
        if before is not None and joined is not None:
            del done[before.name]
            node = joined
        done[node.name] = node
    return list(done.values())


def is_affine(node: Node) -> bool:
    """Whether it is x * gamma + beta and no more."""
    p = node.params
    return node.op == "batch_norm" and not node.attrs["epsilon"] and not p["mean"].any() and (p["variance"] == 1).all()


def _joined(before: Node, node: Node) -> Node | None:
    if before.op == node.op == "activation":
        first, second = before.attrs["activation"], node.attrs["activation"]
        lo, hi = (min(max(bound, second.lo), second.hi) for bound in (first.lo, first.hi))
        return replace(before, name=node.name, attrs={"activation": Activation("clamp", lo, hi)})
    if not is_affine(node):
        return None
    scale, shift = (node.params[key].astype(np.float64) for key in ("gamma", "beta"))
    params = dict(before.params)
    if before.op == "batch_norm":
        params["gamma"] = _f32(params["gamma"] * scale)
        params["beta"] = _f32(params["beta"] * scale + shift)
    elif before.op in ("conv2d", "dense") and (scale == 1).all():
        params["bias"] = _f32(params.get("bias", 0.0) + shift)
    else:
        return None
    finite = all(np.isfinite(p).all() for p in params.values())
    return replace(before, name=node.name, params=params) if finite else None


def _f32(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return x.astype(np.float32)
