"""Writes .keras and .h5 files for tests, as Keras does, without Keras: layers as JSON, weights as arrays."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastmobilenet.importers.keras_weights import _snake_case as snake_case
from tests.hdf5_files import Group, nested, write


@dataclass
class Entry:
    kind: str
    name: str
    config: dict[str, Any]
    sources: list[Any]  # one list of sources for each call
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    inner: Network | None = None


class Network:
    """A model, layer by layer. :meth:`h5` and :meth:`archive` are the files that Keras ``version`` writes of it."""

    def __init__(self, *shape: int | None, version: int = 3, sequential: bool = False, name: str = "net") -> None:
        self.version, self.sequential, self.name = version, sequential, name
        self.entries: list[Entry] = []
        self.shape = [None, *shape]
        if shape:
            key = "batch_shape" if version == 3 else "batch_input_shape"
            self.last: Any = self.add("InputLayer", name="image", **{key: self.shape})

    def add(
        self,
        kind: str,
        *sources: Any,
        name: str | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
        inner: Network | None = None,
        **config: Any,
    ) -> str:
        """Appends a layer that reads ``sources`` (names of layers, (name, number of the call), or numbers); the last
        layer, if none are given. Returns its name."""
        count = sum(e.kind == kind for e in self.entries)
        name = name or snake_case(kind) + (f"_{count}" if count else "")
        inputs = list(sources) or ([self.last] if self.entries else [])
        config = {"name": name, "trainable": True, **config}
        self.entries.append(Entry(kind, name, config, [inputs] if inputs else [], dict(weights or {}), inner))
        self.last = name
        return name

    def call(self, name: str, *sources: Any) -> tuple[str, int]:
        """Calls a layer once more."""
        entry = next(e for e in self.entries if e.name == name)
        entry.sources.append(list(sources))
        self.last = (name, len(entry.sources) - 1)
        return name, len(entry.sources) - 1

    # --- JSON --------------------------------------------------------------------------------------------

    def config(self) -> dict[str, Any]:
        layers = [self._layer(entry) for entry in self.entries]
        config: dict[str, Any] = {"name": self.name, "trainable": True, "layers": layers}
        if not self.sequential:
            last = self._ref(self.last)
            ends = [["image", 0, 0], last]
            config["input_layers"], config["output_layers"] = ends if self.version == 3 else ([e] for e in ends)
        return {"class_name": "Sequential" if self.sequential else "Functional", "config": config}

    def _ref(self, source: Any) -> list[Any]:
        name, call = (source, 0) if isinstance(source, str) else source
        inner = next(e for e in self.entries if e.name == name).inner
        own = self.version == 2 and inner is not None and inner.entries[0].kind == "InputLayer"
        return [name, call + own, 0]

    def _layer(self, entry: Entry) -> dict[str, Any]:
        layer = entry.inner.config() if entry.inner else {"class_name": entry.kind, "config": entry.config}
        layer["module"] = "keras.src.ops.numpy" if entry.kind == "TrueDivide" else "keras.layers"
        if not self.sequential:
            layer |= {"name": entry.name, "inbound_nodes": [self._call(entry, sources) for sources in entry.sources]}
        return layer

    def _call(self, entry: Entry, sources: list[Any]) -> Any:
        if self.version == 2:
            if entry.kind == "TFOpLambda":
                x, y = sources
                if isinstance(x, float):
                    return ["_CONSTANT_VALUE", -1, x, {"y": self._ref(y)}]
                return [*self._ref(x), {"y": y if isinstance(y, float) else self._ref(y), "name": None}]
            return [[*self._ref(source), {}] for source in sources]
        tensors = [s if isinstance(s, float) else self._tensor(s) for s in sources]
        several = len(tensors) > 1 and not any(isinstance(s, float) for s in sources)
        return {"args": [tensors] if several else tensors, "kwargs": {"mask": None, "training": False}}

    def _tensor(self, source: Any) -> dict[str, Any]:
        return {
            "class_name": "__keras_tensor__",
            "config": {"shape": [None], "dtype": "float32", "keras_history": self._ref(source)},
        }

    # --- files -------------------------------------------------------------------------------------------

    def h5(self, config: str | None = None) -> bytes:
        suffix = ":0" if self.version == 2 else ""
        root = nested({})
        weights = Group()
        root.children["model_weights"] = weights
        for entry in self.entries:
            arrays = entry.inner.by_order() if entry.inner else self._own(entry)
            group = nested({name + suffix: array for name, array in arrays})
            group.attributes["weight_names"] = [name + suffix for name, _ in arrays] or np.zeros(0)
            _put(weights, entry.name, group)
        weights.attributes["layer_names"] = [entry.name for entry in self.entries]
        root.attributes = {
            "backend": "tensorflow",
            "keras_version": f"{self.version}.15.0",
            "model_config": json.dumps(self.config()) if config is None else config,
        }
        return write(root)

    @staticmethod
    def _own(entry: Entry) -> list[tuple[str, np.ndarray]]:
        return [(f"{entry.name}/{name}", array) for name, array in entry.weights.items()]

    def by_order(self) -> list[tuple[str, np.ndarray]]:
        """All weights of the model and the models in it: the trainable ones first."""
        groups = [e.inner.by_order() if e.inner else self._own(e) for e in self.entries]
        arrays = [array for group in groups for array in group]
        return sorted(arrays, key=lambda item: "moving_" in item[0])

    def by_place(self, folder: str = "layers", step: int = 1) -> dict[str, Any]:
        """Path -> array, as in model.weights.h5. ``step``: how far a layer with weights counts."""
        found: dict[str, Any] = {}
        used: dict[str, int] = {}
        for entry in self.entries:
            if entry.kind == "TrueDivide" or (entry.kind == "InputLayer" and self.sequential):
                continue
            kind = snake_case(entry.inner.config()["class_name"] if entry.inner else entry.kind)
            number = used.get(kind, 0)
            used[kind] = number + (step if entry.weights or entry.inner else 1)
            place = f"{folder}/{kind}" + (f"_{number}" if number else "")
            if entry.inner:
                found |= {f"{place}/{path}": array for path, array in entry.inner.by_place(folder, step).items()}
            else:
                found[f"{place}/vars"] = Group(attributes={"name": entry.name})
                found |= {f"{place}/vars/{i}": array for i, array in enumerate(entry.weights.values())}
        return found

    def archive(self, changes: Mapping[str, str | bytes | None] | None = None) -> bytes:
        """The .keras file; ``changes`` are other contents of files in it, None for a file that is left out."""
        files = {
            "metadata.json": json.dumps({"keras_version": f"{self.version}.15.0", "date_saved": "2024-01-01"}),
            "config.json": json.dumps(self.config()),
            "model.weights.h5": write(nested(self.by_place())),
        }
        return zipped({**files, **(changes or {})})


def zipped(files: Mapping[str, str | bytes | None], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive; None leaves a file out."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, content in files.items():
            if content is not None:
                archive.writestr(name, content)
    return out.getvalue()


def _put(group: Group, path: str, value: Group) -> None:
    """Adds a group at a path, of which other groups may have a part."""
    *parents, name = path.split("/")
    for parent in parents:
        group = group.children.setdefault(parent, Group())
    there = group.children.setdefault(name, value)
    if there is not value:
        there.children |= value.children
        there.attributes |= value.attributes


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.normal(0, 0.5, shape).astype(np.float32)


def conv(rng: np.random.Generator, kernel: Sequence[int], *, bias: bool = True, **config: Any) -> dict[str, Any]:
    """The arguments of :meth:`Network.add` for a Conv2D with a kernel of this shape (kh, kw, ic, oc)."""
    weights = {"kernel": floats(rng, *kernel)} | ({"bias": floats(rng, kernel[3])} if bias else {})
    return {"weights": weights, "filters": kernel[3], "kernel_size": list(kernel[:2]), "use_bias": bias, **config}


def batch_norm(rng: np.random.Generator, channels: int, **config: Any) -> dict[str, Any]:
    names = ["gamma", "beta", "moving_mean", "moving_variance"]
    weights = {name: np.abs(floats(rng, channels)) + np.float32(0.1) for name in names}
    return {"weights": weights, "epsilon": 1e-3, "axis": -1, **config}
