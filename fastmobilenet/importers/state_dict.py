"""Named arrays under torchvision's or timm's names -> Graph.

A state dict says nothing about the network but the names and shapes of its tensors. ``arch`` says the rest: the
skeleton of that network is built, and each of its parameters is looked up under the name that the library gives it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import models
from ..errors import ModelError
from ..graph import Graph, Node
from ._text import quote

#: Keys under which training programs keep the state dict in a checkpoint.
WRAPPERS = ("state_dict", "model", "model_state_dict")
#: Prefixes of all names that DataParallel, torch.compile and training programs add.
PREFIXES = ("module.", "_orig_mod.", "model.")
#: Not needed to run a network.
IGNORED = ("num_batches_tracked",)

#: Graph parameter -> PyTorch parameter.
BATCH_NORM = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "variance": "running_var"}

#: Tried first for an arch that takes any width; after them every 200th up to MAX_WIDTH.
COMMON_WIDTHS = (1.0, 0.75, 0.5, 0.35, 0.25, 1.25, 1.3, 1.4, 1.1, 1.2, 1.5, 2.0)
MAX_WIDTH = 4
#: More are not believed to be classes when they are read from the shape of a tensor.
MAX_CLASSES = 2**24


def to_graph(
    state: Mapping[str, Any],
    *,
    arch: str | None,
    name: str = "the state dict",
    width: float | None = None,
    classes: int | None = None,
    padding: str | None = None,
    epsilon: float | None = None,
) -> Graph:
    """The network with the weights of a state dict.

    state: name -> array or torch tensor, of floats of any size; or a checkpoint that holds this under one of WRAPPERS.
    arch: a name of models.available().
    name: of the file, for messages.
    width, classes: read from the shapes where None.
    padding, epsilon: the conventions of ``arch`` where None; "mobilenet_v1" has PyTorch's here, as the weights have.

    Raises ModelError where arch is missing or does not fit (it names the first tensor that does not, and the archs
    that fit), and for weights that are no finite floats.
    """
    tensors = _unwrap(state, name)
    if arch is None:
        raise ModelError(
            f"{name} holds weights only; say with arch= of which network. {_advice(tensors, None, width, classes)}"
        )
    entry = models.find(arch)
    match = _best_match(entry, tensors, width, classes)
    if match.problem:
        raise ModelError(
            f"{name} does not fit arch {arch!r}: {match.problem}. {_advice(tensors, arch, width, classes)}"
        )

    def weights(node: Node, key: str) -> np.ndarray:
        wanted = match.wanted[node.name, key]
        return _to_float(tensors[wanted.name], wanted, name)

    return models.build(
        arch,
        width=match.width,
        classes=match.classes,
        padding="symmetric" if padding is None else padding,
        epsilon=1e-5 if epsilon is None else epsilon,
        weights=weights,
    )


# --- names ----------------------------------------------------------------------------------------------


#: (layer of the graph, the library's convolution or dense layer, its batch norm)
Names = Iterator[tuple[str, str, str]]


def timm_v1(plan: models.Plan) -> Names:
    yield "conv1", "conv_stem", "bn1"
    for block in plan.blocks():
        at = f"blocks.{block.stage}.{block.index}"
        yield f"{block.name}/depthwise", f"{at}.conv_dw", f"{at}.bn1"
        yield f"{block.name}/pointwise", f"{at}.conv_pw", f"{at}.bn2"
    yield "head", "conv_head", "bn2"
    yield "logits", "classifier", ""


def timm_v2(plan: models.Plan) -> Names:
    yield "conv1", "conv_stem", "bn1"
    for block in plan.blocks():
        at = f"blocks.{block.stage}.{block.index}"
        if block.expand == 1:
            yield f"{block.name}/depthwise", f"{at}.conv_dw", f"{at}.bn1"
            yield f"{block.name}/project", f"{at}.conv_pw", f"{at}.bn2"
        else:
            yield f"{block.name}/expand", f"{at}.conv_pw", f"{at}.bn1"
            yield f"{block.name}/depthwise", f"{at}.conv_dw", f"{at}.bn2"
            yield f"{block.name}/project", f"{at}.conv_pwl", f"{at}.bn3"
    yield "head", "conv_head", "bn2"
    yield "logits", "classifier", ""


def torchvision_v2(plan: models.Plan) -> Names:
    yield "conv1", "features.0.0", "features.0.1"
    number = 1
    for block in plan.blocks():
        at, step = f"features.{number}.conv", 0
        if block.expand != 1:
            yield f"{block.name}/expand", f"{at}.0.0", f"{at}.0.1"
            step = 1
        yield f"{block.name}/depthwise", f"{at}.{step}.0", f"{at}.{step}.1"
        yield f"{block.name}/project", f"{at}.{step + 1}", f"{at}.{step + 2}"
        number += 1
    yield "head", f"features.{number}.0", f"features.{number}.1"
    yield "logits", "classifier.1", ""


Naming = Callable[[models.Plan], Names]

#: The namings of a family. The first whose stem is among the tensors is used.
NAMINGS: dict[models.Family, tuple[Naming, ...]] = {
    models.mobilenet_v1: (timm_v1,),
    models.mobilenet_v2: (torchvision_v2, timm_v2),
}


def _naming(entry: models.Arch, tensors: Mapping[str, Any]) -> Naming:
    plan, namings = entry.plan(), NAMINGS[entry.family]
    return next((n for n in namings if f"{next(n(plan))[1]}.weight" in tensors), namings[-1])


@dataclass(frozen=True)
class Wanted:
    """A tensor that a network needs: its name in the state dict and its shape there."""

    name: str
    shape: tuple[int, ...]


def _wanted(graph: Graph, names: Mapping[str, tuple[str, str]]) -> dict[tuple[str, str], Wanted]:
    """(node, parameter) -> tensor, in the order of the network."""
    table = {}
    for node in graph.nodes:
        for key, value in node.params.items():
            conv, bn = names[node.name.removesuffix("/bn")]
            if node.op == "conv2d":
                oc, kh, kw, ic = value.shape
                table[node.name, key] = Wanted(f"{conv}.{key}", (oc, ic, kh, kw))
            elif node.op == "batch_norm":
                table[node.name, key] = Wanted(f"{bn}.{BATCH_NORM[key]}", value.shape)
            else:
                table[node.name, key] = Wanted(f"{conv}.{key}", value.shape)
    return table


# --- which network --------------------------------------------------------------------------------------


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
    layers = {layer: (conv, bn) for layer, conv, bn in _naming(entry, tensors)(plan)}
    if classes is None:
        shape = _shape(tensors.get(f"{layers['logits'][0]}.weight"))
        classes = shape[0] if len(shape) == 2 and 0 < shape[0] <= MAX_CLASSES else 1000
    graph = models.build(entry.name, width=width, classes=classes, weights=models.skeleton)
    wanted = _wanted(graph, layers)
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
        extra = next((key for key in tensors if key not in known), None)
        problem = None if extra is None else f"tensor {quote(extra)} is superfluous"
    return Match(entry.name, width, classes, wanted, problem, hits)


def _best_match(entry: models.Arch, tensors: Mapping[str, Any], width: float | None, classes: int | None) -> Match:
    """The match at the width given, or at the width whose channels come nearest to those of the tensors."""
    if width is not None or entry.width is not None:
        return _match(entry, tensors, entry.resolve_width(width), classes)
    plan = entry.plan(1.0)
    layers = {layer: conv for layer, conv, _ in _naming(entry, tensors)(plan)}
    outputs = [f"{block.name}/{plan.output}" for block in plan.blocks() if block.index == 0]
    shapes = [_shape(tensors.get(f"{layers[layer]}.weight")) for layer in ("conv1", *outputs, "head")]
    found = tuple(shape[0] if shape else 0 for shape in shapes)
    exact = found[-2] / plan.channels()[-2]  # of the last stage: always right where channels are rounded down
    widths = [w for w in (*COMMON_WIDTHS, exact) if 0 < w <= MAX_WIDTH]
    if any(found):  # else no width comes nearer than another
        widths += [i / 200 for i in range(1, 200 * MAX_WIDTH + 1)]
    best, most = 1.0, -1
    for candidate in widths:
        equal = sum(a == b for a, b in zip(entry.plan(candidate).channels(), found, strict=True))
        if equal > most:
            best, most = candidate, equal
        if equal == len(found):
            break
    return _match(entry, tensors, best, classes)


def _advice(tensors: Mapping[str, Any], tried: str | None, width: float | None, classes: int | None) -> str:
    """Which archs fit, for the end of a message; if none, the nearest."""
    matches = []
    for arch in models.available():
        entry = models.find(arch)
        usable = width if entry.width is None else None
        matches.append(_best_match(entry, tensors, usable, classes))
    fitting = [match.arch for match in matches if match.problem is None]
    if fitting:
        return f"It fits arch={' or arch='.join(map(repr, fitting))}"
    best = max(matches, key=lambda match: match.hits)
    if best.hits == 0:
        known = ", ".join(models.available())
        return f"It fits none of {known}: no tensor has a name and shape of theirs in torchvision or timm"
    if best.arch == tried:
        return "No other known network is nearer"
    return f"It fits no known network; the nearest is {best.arch!r}, where {best.problem}"


# --- arrays ---------------------------------------------------------------------------------------------


def _unwrap(state: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The tensors of a checkpoint, without the wrapper, common prefixes and what is not needed."""
    for _ in range(len(WRAPPERS)):
        if not isinstance(state, Mapping):
            raise ModelError(f"{name} holds {type(state).__name__}, expected a dict of tensors: model.state_dict()")
        inner = next((state[key] for key in WRAPPERS if isinstance(state.get(key), Mapping)), None)
        if inner is None:
            break
        state = inner
    tensors = {
        key: value
        for key, value in state.items()
        if isinstance(key, str) and _is_tensor(value) and not key.endswith(IGNORED)
    }
    if not tensors:
        raise ModelError(f"{name} holds no tensors; found {quote([str(key) for key in state][:5])}")
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in tensors)), None):
        tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    return tensors


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _shape(value: Any) -> tuple[int, ...]:
    return () if value is None else tuple(int(v) for v in value.shape)


def _to_float(value: Any, wanted: Wanted, name: str) -> np.ndarray:
    """A tensor of the shape wanted -> float32 array in the layout of the Graph; a view where that is possible."""
    label = f"{name}: tensor {wanted.name!r}"
    if not isinstance(value, np.ndarray):
        try:
            value = value.detach().cpu()
            value = (value.float() if "bfloat16" in str(value.dtype) else value).numpy()
        except (AttributeError, TypeError, RuntimeError) as error:
            raise ModelError(f"{label} cannot be read as an array: {quote(str(error))}") from None
    if value.dtype.kind != "f":
        raise ModelError(f"{label} has dtype {value.dtype}, expected floats; quantised weights are not supported")
    if value.ndim == 4:
        value = value.transpose(0, 2, 3, 1)
    with np.errstate(over="ignore"):
        array = np.require(value, np.float32, ("C", "A"))
    if not np.isfinite(array).all():
        raise ModelError(f"{label} holds NaN or infinite values; the training has failed or the file is damaged")
    if wanted.name.endswith("running_var") and (array < 0).any():
        raise ModelError(f"{label} holds a negative variance; the file is damaged")
    return array
