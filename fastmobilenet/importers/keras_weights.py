"""Which arrays of a Keras file belong to which layer.

There are two arrangements. A **.h5** file has a group for each layer of the outermost model, with the list of its
arrays in order; the arrays of a model in the model stand together, the trainable ones first. A **.keras** archive has
an HDF5 file in which every layer, at any depth, has its own group, named by its class and counted
(``layers/conv2d_3/vars/0``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np

from ..errors import ModelError
from ._text import quote
from .hdf5 import Hdf5File, Hdf5Object
from .keras_config import Layer, Model

#: Names of a layer and of the models around it, outermost first.
Path: TypeAlias = "tuple[str, ...]"
#: Gives the arrays of a layer in Keras' order.
Arrays: TypeAlias = "Callable[[], list[np.ndarray]]"

#: Pieces of one list of names; each is a message of 64 kB.
_MAX_PIECES = 1000


def variables(layer: Layer) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(trainable, other) variables of a layer, in Keras' order. Layers that are not here have none."""
    bias = ("bias",) if layer.config.get("use_bias", True) else ()
    if layer.kind in ("Conv2D", "Dense", "DepthwiseConv2D"):
        return ("kernel", *bias), ()
    if layer.kind == "SeparableConv2D":
        return ("depthwise_kernel", "pointwise_kernel", *bias), ()
    if layer.kind == "BatchNormalization":
        gamma = ("gamma",) if layer.config.get("scale", True) else ()
        beta = ("beta",) if layer.config.get("center", True) else ()
        return gamma + beta, ("moving_mean", "moving_variance")
    if layer.kind == "Normalization" and layer.config.get("mean") is None:
        return (), ("mean", "variance", "count")
    return (), ()


class Weights:
    """The arrays of a file, by layer."""

    def __init__(self, places: Mapping[Path, Arrays]) -> None:
        self._places = places
        self._read: dict[Path, dict[str, np.ndarray]] = {}

    def of(self, path: Path, layer: Layer) -> dict[str, np.ndarray]:
        """Variable -> float32 array, read-only, of the layer at ``path``."""
        if path not in self._read:
            names = [name for part in variables(layer) for name in part]
            if path not in self._places:
                layer.fail("the file holds no weights for it")
            arrays = self._places[path]()
            if len(arrays) != len(names):
                layer.fail(f"it needs {len(names)} arrays ({', '.join(names)}), but the file holds {len(arrays)}")
            self._read[path] = {n: _float32(layer, n, a) for n, a in zip(names, arrays, strict=True)}
        return self._read[path]


def _float32(layer: Layer, name: str, array: np.ndarray) -> np.ndarray:
    if name == "count":
        return np.zeros(0, np.float32)
    if array.dtype.kind != "f":
        layer.fail(f"{name} holds {array.dtype}; supported are weights of floats, saved before they are quantised")
    with np.errstate(over="ignore"):
        result = array.astype(np.float32)
    if not np.isfinite(result).all():
        layer.fail(f"{name} has weights that are infinite or not a number")
    return result


def _leaves(model: Model, path: Path) -> Iterator[tuple[Path, Layer]]:
    """All layers that are no models, in Keras' order."""
    for layer in model.layers.values():
        if layer.inner is not None:
            yield from _leaves(layer.inner, (*path, layer.name))
        else:
            yield (*path, layer.name), layer


# --- .keras ---------------------------------------------------------------------------------------------


def from_archive(file: Hdf5File, model: Model) -> Weights:
    """``file``: the archive's model.weights.h5."""
    # The first archives (Keras 2.13) call the list of layers by another name, and count layers with weights twice.
    older = "_layer_checkpoint_dependencies" in file.root.links()
    folder = "_layer_checkpoint_dependencies" if older else "layers"
    places: dict[Path, Arrays] = {}
    waiting: list[tuple[Model, Path, str]] = [(model, (), "")]
    while waiting:
        outer, path, prefix = waiting.pop()
        used: dict[str, int] = {}
        for layer in outer.layers.values():
            if not layer.is_layer:
                continue
            name = _snake_case(layer.kind)
            number = used.get(name, 0)
            used[name] = number + (2 if older and _has_weights(layer) else 1)
            place = f"{prefix}{folder}/{name}" + (f"_{number}" if number else "")
            if layer.inner is not None:
                waiting.append((layer.inner, (*path, layer.name), place + "/"))
            else:
                places[(*path, layer.name)] = lambda place=place: _variables_at(file, place)  # type: ignore[misc]
    return Weights(places)


def _has_weights(layer: Layer) -> bool:
    leaves = [layer] if layer.inner is None else [leaf for _, leaf in _leaves(layer.inner, ())]
    return any(part for leaf in leaves for part in variables(leaf))


def _snake_case(kind: str) -> str:
    """As Keras makes names of classes: DepthwiseConv2D -> depthwise_conv2d."""
    kind = re.sub(r"\W+", "", kind[:200])
    kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)
    return re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()


def _variables_at(file: Hdf5File, place: str) -> list[np.ndarray]:
    group = file.root.get(f"{place}/vars")
    count = len(group.links()) if group is not None else 0
    return [_array(group, str(i)) for i in range(count) if group is not None]


def _array(group: Hdf5Object, name: str) -> np.ndarray:
    found = group.get(name)
    if found is None:
        raise ModelError(f"{group} holds no {quote(name)}")
    return found.array()


# --- .h5 ------------------------------------------------------------------------------------------------


def from_h5(file: Hdf5File, model: Model) -> Weights:
    """``file``: what ``model.save("name.h5")`` writes."""
    root = file.root.get("model_weights")
    if root is None:
        raise ModelError("it has no group model_weights; save it with model.save()")
    places: dict[Path, Arrays] = {}
    for layer in model.layers.values():
        if layer.inner is None:
            places[(layer.name,)] = lambda name=layer.name: _group(root, name)[1]  # type: ignore[misc]
        else:
            places |= _NestedGroup(root, layer).places()
    return Weights(places)


def _group(root: Hdf5Object, layer: str) -> tuple[list[str], list[np.ndarray]]:
    """The names and arrays in the group of a layer, in the order of its list of names."""
    group = root.get(layer)
    if group is None or not group.is_group:
        return [], []
    names = _names(group)
    return names, [_array(group, name) for name in names]


def _names(group: Hdf5Object) -> list[str]:
    """The attribute weight_names; a long list is split into weight_names0, weight_names1, ..."""
    whole = group.attribute("weight_names")
    parts = [whole]
    if whole is None:
        parts = []
        while len(parts) < _MAX_PIECES and (part := group.attribute(f"weight_names{len(parts)}")) is not None:
            parts.append(part)
    names: list[str] = []
    for part in parts:
        if isinstance(part, list):
            names += part
        elif not isinstance(part, np.ndarray) or part.size:  # without names the list has no type
            raise ModelError(f"{group}: weight_names is no list of names")
    return names


class _NestedGroup:
    """The group of a model in the model. Its list of names has all arrays of all its layers."""

    def __init__(self, root: Hdf5Object, layer: Layer) -> None:
        self._root, self._layer = root, layer
        self._found: dict[Path, list[np.ndarray]] | None = None

    def places(self) -> dict[Path, Arrays]:
        assert self._layer.inner is not None
        paths = [path for path, _ in _leaves(self._layer.inner, (self._layer.name,))]
        return {path: lambda path=path: self._all()[path] for path in paths}  # type: ignore[misc]

    def _all(self) -> dict[Path, list[np.ndarray]]:
        if self._found is None:
            assert self._layer.inner is not None
            names, arrays = _group(self._root, self._layer.name)
            leaves = list(_leaves(self._layer.inner, (self._layer.name,)))
            expected = {(path, name): i for path, leaf in leaves for i, name in enumerate(sum(variables(leaf), ()))}
            order = _by_name(names, list(expected)) or _by_order(self._layer)
            if len(order) != len(arrays):
                self._layer.fail(f"it needs {len(order)} arrays, but the file holds {len(arrays)}")
            self._found = {path: [] for path, _ in leaves}
            position = {key: i for i, key in enumerate(order)}
            for key in expected:
                self._found[key[0]].append(arrays[position[key]])
        return self._found


Variable: TypeAlias = "tuple[Path, str]"


def _by_name(names: list[str], variables_: list[Variable]) -> list[Variable] | None:
    """The variable of each name ("block/conv1/kernel:0"), None where the names do not tell all of them."""
    known: dict[tuple[str, str], Variable | None] = {}
    for path, variable in variables_:
        for alias in (variable, f"depthwise_{variable}"):
            key = (path[-1], alias)
            known[key] = None if key in known else (path, variable)
    order: list[Variable] = []
    for name in names:
        layer, _, variable = name.partition(":")[0].rpartition("/")
        # A layer's own name may hold a slash: MobileNetV3's "Conv/BatchNorm".
        pieces = layer.split("/")
        tails = ("/".join(pieces[i:]) for i in range(min(len(pieces), 8)))
        found = next((known[tail, variable] for tail in tails if (tail, variable) in known), None)
        if found is None:
            return None
        order.append(found)
    return order if len(set(order)) == len(order) == len(variables_) else None


def _by_order(layer: Layer) -> list[Variable]:
    """The order in which Keras writes the variables of a model: trainable ones first."""
    trainable, others = _split(layer, ())
    return trainable + others


def _split(layer: Layer, path: Path) -> tuple[list[Variable], list[Variable]]:
    path = (*path, layer.name)
    trainable: list[Variable] = []
    others: list[Variable] = []
    together: list[Variable] = []
    if layer.inner is None:
        trainable, others = ([(path, name) for name in part] for part in variables(layer))
        together = trainable + others
    else:
        for child in layer.inner.layers.values():
            first, second = _split(child, path)
            trainable += first
            others += second
            together += first + second
    return (trainable, others) if layer.trainable else ([], together)
