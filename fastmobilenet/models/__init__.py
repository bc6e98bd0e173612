"""The networks that can be built by name.

>>> from fastmobilenet import models
>>> graph = models.build("mobilenet_v2", width=0.5, classes=10)

A name stands for an architecture and the conventions of those who trained it: padding, batch norm epsilon and
preprocessing. "mobilenet_v1" is TensorFlow's and "mobilenet_v2" torchvision's; they take any width. The others are
timm's; their names hold the width. The facts were read from torchvision 0.29 and timm 1.0.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..errors import ModelError
from ..graph import Graph
from ..preprocess import IMAGENET, TENSORFLOW, Preprocess
from . import mobilenet_v1, mobilenet_v2
from ._common import ParameterSource, Plan, check_width, fill, skeleton

__all__ = ["Arch", "ParameterSource", "Plan", "available", "build", "fill", "find", "skeleton"]


class Family(Protocol):
    """A module of this package: one kind of network."""

    @property
    def plan(self) -> Callable[..., Plan]: ...

    @property
    def build(self) -> Callable[..., Graph]: ...


@dataclass(frozen=True)
class Arch:
    """A name of the registry. ``width`` None: any width, 1.0 if none is given."""

    name: str
    family: Family
    width: float | None
    preprocess: Preprocess
    padding: str = "symmetric"
    epsilon: float = 1e-5
    options: Mapping[str, Any] = field(default_factory=dict)

    def resolve_width(self, width: float | None) -> float:
        """The width to build with. Raises ModelError for a width that contradicts the name."""
        if width is None:
            return 1.0 if self.width is None else self.width
        check_width(width)
        if self.width is not None and width != self.width:
            generic = next(a.name for a in _ARCHS.values() if a.family is self.family and a.width is None)
            raise ModelError(
                f"arch {self.name!r} has width {self.width:g}, not {width:g}; "
                f"use arch={generic!r}, which takes any width"
            )
        return width

    def plan(self, width: float | None = None) -> Plan:
        return self.family.plan(self.resolve_width(width), **self.options)


# timm resizes with Pillow's bicubic filter. Its V1 networks are normalised as TensorFlow's are.
_TIMM_V1 = replace(TENSORFLOW, interpolation="bicubic")
_TIMM_V2 = replace(IMAGENET, interpolation="bicubic")
# mobilenetv1_125 crops 0.9 of the shorter side, and timm rounds 224 / 0.9 down.
_TIMM_V1_125 = replace(_TIMM_V1, crop_fraction=224 / 248)


def _timm_v1(name: str, width: float, preprocess: Preprocess = _TIMM_V1, **options: Any) -> Arch:
    return Arch(name, mobilenet_v1, width, preprocess, options={"rounding": "divisible", **options})


def _timm_v2(name: str, width: float, **options: Any) -> Arch:
    return Arch(name, mobilenet_v2, width, _TIMM_V2, options=options)


_ARCHS = {
    arch.name: arch
    for arch in (
        Arch("mobilenet_v1", mobilenet_v1, None, TENSORFLOW, padding="same", epsilon=1e-3),
        Arch("mobilenet_v2", mobilenet_v2, None, IMAGENET),
        _timm_v1("mobilenetv1_100", 1.0),
        _timm_v1("mobilenetv1_100h", 1.0, head=True),
        _timm_v1("mobilenetv1_125", 1.25, _TIMM_V1_125),
        _timm_v2("mobilenetv2_035", 0.35),
        _timm_v2("mobilenetv2_050", 0.5),
        _timm_v2("mobilenetv2_075", 0.75),
        _timm_v2("mobilenetv2_100", 1.0),
        _timm_v2("mobilenetv2_110d", 1.1, depth=1.2, fixed_ends=True),
        _timm_v2("mobilenetv2_120d", 1.2, depth=1.4, fixed_ends=True),
        _timm_v2("mobilenetv2_140", 1.4),
    )
}


def available() -> list[str]:
    """The names that :func:`build` knows."""
    return list(_ARCHS)


def find(arch: str) -> Arch:
    """The entry of a name. Raises ModelError that lists the names, close ones first."""
    if arch not in _ARCHS:
        close = difflib.get_close_matches(str(arch).lower(), _ARCHS, n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ModelError(f"arch {arch!r} is unknown{hint}. Known: {', '.join(_ARCHS)}")
    return _ARCHS[arch]


def build(
    arch: str,
    *,
    width: float | None = None,
    classes: int = 1000,
    padding: str | None = None,
    epsilon: float | None = None,
    weights: ParameterSource | None = None,
    seed: int = 0,
    input_size: tuple[int, int] = (224, 224),
    input_layout: str = "NCHW",
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
) -> Graph:
    """A network by name, with random weights unless ``weights`` gives them.

    width: multiplier of the channels, for a name that does not hold one.
    classes: channels of the logits.
    padding: "same" (TensorFlow) or "symmetric" (PyTorch); None is the convention of ``arch``, as for epsilon
        (added to the batch norm variance) and preprocess.
    weights: (node, parameter name) -> array, called once for every parameter of the graph.
    seed: equal seeds give equal random weights.
    input_size: (height, width) of the pictures it is meant for; the graph takes any other size too.
    input_layout: "NCHW" or "NHWC", the layout in which a float32 array is accepted.
    labels: a name for every class.

    Raises ModelError for an unknown name or an option out of range.
    """
    entry = find(arch)
    return entry.family.build(
        entry.resolve_width(width),
        **entry.options,
        classes=classes,
        padding=entry.padding if padding is None else padding,
        epsilon=entry.epsilon if epsilon is None else epsilon,
        weights=weights,
        seed=seed,
        input_size=input_size,
        input_layout=input_layout,
        preprocess=preprocess or entry.preprocess,
        labels=None if labels is None else tuple(labels),
        name=name or arch,
    )
