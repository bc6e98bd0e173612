"""Which network the names and shapes of a state dict fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import models
from ..graph import Graph
from ..models.ssd import SsdPlan
from ._namings import AUXILIARY, known, naming
from ._text import quote

#: Graph parameter -> PyTorch parameter.
BATCH_NORM = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}

#: Tried first for an arch that takes any width; after them every 200th up to MAX_WIDTH.
COMMON_WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 1.25, 1.3, 1.4, 1.1, 1.2, 1.5, 2.0)
MAX_WIDTH = 4
#: Rounding changes a channel count by this much at most.
ROUNDING = 8
#: More are not believed to be classes when they are read from the shape of a tensor.
MAX_CLASSES = 2**24


@dataclass(frozen=True)
class Wanted:
    """A tensor that a network needs: its name in the state dict and its shape there. ``view``: the (oc, c, h, w) that
    the weight of a dense layer behind a tensor of h x w pixels stands for."""

    name: str
    shape: tuple[int, ...]
    view: tuple[int, int, int, int] | None = None


def _wanted(
    graph: Graph, names: Mapping[str, tuple[str, str]], tensors: Mapping[str, Any]
) -> dict[tuple[str, str], Wanted]:
    """(node, parameter) -> tensor, in the order of the network."""
    table = {}
    for node in graph.nodes:
        for key, value in node.params.items():
            conv, bn = names[node.name.removesuffix("/bn")]
            tensor = f"{bn}.{BATCH_NORM[key]}" if node.op == "batch_norm" else f"{conv}.{key}"
            shape, view = value.shape, None
            if node.op == "conv2d" and key == "weight":
                shape = (shape[0], shape[3], shape[1], shape[2])
            elif node.op == "dense" and key == "weight":
                h, w = graph[node.inputs[0]].attrs.get("size", (1, 1))  # of an adaptive pool
                view = (shape[0], shape[1] // (h * w), h, w)
                if len(_shape(tensors.get(tensor))) == 4:  # the library has a convolution here
                    shape = view
            table[node.name, key] = Wanted(tensor, shape, view)
    return table


@dataclass(frozen=True)
class Match:
    """How well the tensors fit one network. ``problem`` is the first thing that does not, or None."""

    arch: str
    width: float
    classes: int
    wanted: Mapping[tuple[str, str], Wanted]
    problem: str | None
    hits: int  # tensors of the right name and shape


def _match(entry: models.Arch, tensors: Mapping[str, Any], width: float, classes: int | None) -> Match:
    plan = entry.plan(width)
    layers = {layer: (conv, bn) for layer, conv, bn in naming(entry, tensors)(plan)}
    if classes is None:
        classifier, _ = list(layers.values())[-1]
        shape = _shape(tensors.get(f"{classifier}.weight"))
        each = plan.anchors[-1] if isinstance(plan, SsdPlan) else 1  # outputs a class
        fits = len(shape) in (2, 4) and 0 < shape[0] // each <= MAX_CLASSES
        classes = shape[0] // each if fits else entry.classes
    graph = models.build(entry.name, width=width, classes=classes, weights=models.skeleton)
    wanted = _wanted(graph, layers, tensors)
    problem, hits = None, 0
    for w in wanted.values():
        found = _shape(tensors[w.name]) if w.name in tensors else None
        if found == w.shape:
            hits += 1
        elif problem is None and found is None:
            problem = f"tensor {w.name!r} of shape {w.shape} is missing"
        elif problem is None:
            problem = f"tensor {w.name!r} has shape {quote(found)}, expected {w.shape}"
    if problem is None:
        known = {w.name for w in wanted.values()}
        unused = AUXILIARY.get(entry.family, ())
        extra = next((key for key in tensors if key not in known and not key.startswith(unused)), None)
        problem = None if extra is None else f"tensor {quote(extra)} is superfluous"
    return Match(entry.name, width, classes, wanted, problem, hits)


def best_match(entry: models.Arch, tensors: Mapping[str, Any], width: float | None, classes: int | None) -> Match:
    """The match at the width given, or at the width whose channels come nearest to those of the tensors."""
    return _match(entry, tensors, _best_width(entry, tensors, width), classes)


def _best_width(entry: models.Arch, tensors: Mapping[str, Any], width: float | None) -> float:
    if width is not None or entry.width is not None:
        return entry.resolve_width(width)
    names = naming(entry, tensors)

    def found(plan: Any) -> dict[str, int]:
        """Layer -> output channels in the tensors. The names, too, may depend on the width."""
        shapes = {layer: _shape(tensors.get(f"{conv}.weight")) for layer, conv, _ in names(plan)}
        return {layer: shape[0] for layer, shape in shapes.items() if shape}

    best, most = 1.0, -1
    for candidate in _widths(entry.plan(1.0), found(entry.plan(1.0))):
        plan = entry.plan(candidate)
        outputs, there = plan.outputs(), found(plan)
        equal = sum(there.get(layer) == channels for layer, channels in outputs.items())
        if equal > most:
            best, most = candidate, equal
        if equal == len(outputs):
            break
    return best


def _widths(plan: Any, found: Mapping[str, int]) -> list[float]:
    """Widths that come near the output channels of the layers found, the likely ones first. ``plan``: of width 1."""
    scaled = {layer: c for layer, c in plan.outputs().items() if layer not in ("head", "hidden")}
    layer = next((layer for layer in reversed(scaled) if layer in found), None)
    if layer is None:
        return list(COMMON_WIDTHS)
    exact = found[layer] / scaled[layer]  # always right where channels are rounded down
    near = ROUNDING / scaled[layer]
    widths = (*COMMON_WIDTHS, exact, *(i / 200 for i in range(1, 200 * MAX_WIDTH + 1)))
    return [w for w in widths if abs(w - exact) <= near and 0 < w <= MAX_WIDTH] or [1.0]


def advice(tensors: Mapping[str, Any], tried: str | None, width: float | None, classes: int | None) -> str:
    """Which archs fit, for the end of a message; if none, the nearest."""
    likeness: dict[str, int] = {}
    for arch in known():
        entry = models.find(arch)
        plan = entry.plan(_best_width(entry, tensors, width if entry.width is None else None))
        present = [f"{conv}.weight" in tensors for _, conv, _ in naming(entry, tensors)(plan)]
        likeness[arch] = 2 * sum(present) - len(present)
    # Only those whose names fit best are compared in full: one comparison takes some milliseconds.
    matches = [
        best_match(entry, tensors, width if entry.width is None else None, classes)
        for entry in (models.find(arch) for arch in likeness if likeness[arch] == max(likeness.values()))
    ]
    fitting = [match.arch for match in matches if match.problem is None]
    if fitting:
        return f"It fits arch={' or arch='.join(map(repr, fitting))}"
    best = max(matches, key=lambda match: match.hits)
    if best.hits == 0:
        return f"It fits none of {', '.join(known())}: no tensor has a name and shape of theirs in torchvision or timm"
    if best.arch == tried:
        return "No other known network is nearer"
    return f"It fits no known network; the nearest is {best.arch!r}, where {best.problem}"


def _shape(value: Any) -> tuple[int, ...]:
    return () if value is None else tuple(int(v) for v in value.shape)
