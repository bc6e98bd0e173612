"""The networks that can be built by name.

>>> from fastmobilenet import models
>>> graph = models.build("mobilenet_v2", width=0.5, classes=10)

A name stands for an architecture and the conventions of those who trained it: padding, batch norm epsilon and
preprocessing. Names are the libraries' own. "mobilenet_v1" is TensorFlow's, "mobilenet_v2", "mobilenet_v3_large",
"mobilenet_v3_small" and "mnasnet" are torchvision's, "mobilenetv4_conv_small" and its larger ones are timm's, and
"keras_..." are Keras'; these take any width, and so do AlexNet and VGG. "shufflenet_v1_g1" to "_g8" (the groups) take
the widths of their paper: 0.5, 1, 1.5 and 2. The names of the others hold it. "ssdlite320_mobilenet_v3_large" is
torchvision's detector, with "_full_tail" as torchvision makes it for a trained backbone; "ssd_..." and "ssdlite_..."
are those of TensorFlow's object detection, of any width.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from ..errors import ModelError
from ..graph import Graph
from ..preprocess import Preprocess
from . import ssd
from ._archs import ARCHS, Arch, Family
from ._common import ParameterSource, fill, skeleton
from ._plan import Block, Conv, Plan, SqueezeExcite

__all__ = [
    "Arch",
    "Block",
    "Conv",
    "Family",
    "ParameterSource",
    "Plan",
    "SqueezeExcite",
    "available",
    "build",
    "fill",
    "find",
    "skeleton",
    "ssd",
]


def available() -> list[str]:
    """The names that :func:`build` knows."""
    return list(ARCHS)


def find(arch: str) -> Arch:
    """The entry of a name. Raises ModelError that lists the names, close ones first."""
    if arch not in ARCHS:
        close = difflib.get_close_matches(str(arch).lower(), ARCHS, n=3)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise ModelError(f"arch {arch!r} is unknown{hint}. Known: {', '.join(ARCHS)}")
    return ARCHS[arch]


def build(
    arch: str,
    *,
    width: float | None = None,
    classes: int | None = None,
    padding: str | None = None,
    epsilon: float | None = None,
    weights: ParameterSource | None = None,
    seed: int = 0,
    input_size: tuple[int, int] | None = None,
    input_layout: str = "NCHW",
    preprocess: Preprocess | None = None,
    labels: Sequence[str] | None = None,
    name: str | None = None,
) -> Graph:
    """A network by name, with random weights unless ``weights`` gives them.

    width: multiplier of the channels, for a name that does not hold one.
    classes: channels of the logits, of a detector with the background; None for 1000, or 91.
    padding: "same" (TensorFlow) or "symmetric" (PyTorch); None is the convention of ``arch``, as for epsilon
        (added to the batch norm variance) and preprocess.
    weights: (node, parameter name) -> array, called once for every parameter of the graph.
    seed: equal seeds give equal random weights.
    input_size: (height, width) of the pictures it is meant for, None for those of ``arch``; the graph takes any other
        size too.
    input_layout: "NCHW" or "NHWC", the layout in which a float32 array is accepted.
    labels: a name for every class.

    Raises ModelError for an unknown name or an option out of range.
    """
    entry = find(arch)
    return entry.family.build(
        entry.resolve_width(width),
        **entry.options,
        classes=entry.classes if classes is None else classes,
        padding=entry.padding if padding is None else padding,
        epsilon=entry.epsilon if epsilon is None else epsilon,
        weights=weights,
        seed=seed,
        input_size=input_size or entry.input_size,
        input_layout=input_layout,
        preprocess=preprocess or entry.preprocess,
        labels=None if labels is None else tuple(labels),
        name=name or arch,
    )
