"""A small, fast runtime for MobileNets on CPUs.

>>> import fastmobilenet as fm                         # doctest: +SKIP
>>> model = fm.Model.load("mobilenet_v2.tflite")       # doctest: +SKIP
>>> model.classify("cat.jpg", top=3)                   # doctest: +SKIP

Names are imported at their first use, so that ``import fastmobilenet`` costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import models
    from .detection import Detection
    from .errors import ModelError
    from .features import FeatureExtractor
    from .graph import Graph
    from .model import Model, Prediction
    from .preprocess import Preprocess
    from .streaming import MapResult

    __version__: str

__all__ = [
    "Detection", "FeatureExtractor", "Graph", "MapResult", "Model", "ModelError", "Prediction", "Preprocess",
    "__version__", "models",
]  # fmt: skip

_HOME = {
    "Detection": "detection",
    "FeatureExtractor": "features",
    "MapResult": "streaming",
    "Graph": "graph",
    "Model": "model",
    "ModelError": "errors",
    "Prediction": "model",
    "Preprocess": "preprocess",
}
#: Modules that are there without an import of their own: ``fm.models.build("mobilenet_v2")``.
_MODULES = ("benchmark", "graph", "image", "importers", "labels", "models", "preprocess", "profile", "reference")


def __getattr__(name: str) -> object:
    value: object
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = import_module(f".{name}", __name__)
    elif name == "__version__":
        value = _version()
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("fastmobilenet")
    except PackageNotFoundError:  # a source tree that was not installed
        return "0+source"
