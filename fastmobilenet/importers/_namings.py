"""Which namings of layers an arch has in the libraries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .. import models
from ..errors import ModelError
from ..models import (
    alexnet,
    efficientnet_lite,
    googlenet,
    mnasnet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    mobilenet_v4,
    shufflenet_v2,
    squeezenet,
    ssd,
    vgg,
)
from ._names import (
    Names,
    timm_vgg,
    torchvision_alexnet,
    torchvision_googlenet,
    torchvision_shufflenet_v2,
    torchvision_squeezenet,
    torchvision_vgg,
)
from ._plan_names import timm, torchvision_mnasnet, torchvision_ssdlite, torchvision_v2, torchvision_v3

#: Beginnings of the names of a family's heads that only training needs.
AUXILIARY: dict[models.Family, tuple[str, ...]] = {googlenet: ("aux1.", "aux2.")}

Naming = Callable[[Any], Names]

#: The namings of an arch, or else of its family, from the libraries whose conventions it has. Of those whose first
#: layer is among the tensors, the one with the most layers there is used. What is not here has no state dicts: Keras'
#: files hold their own network.
NAMINGS: dict[str | models.Family, tuple[Naming, ...]] = {
    mobilenet_v1: (timm,),
    mobilenet_v2: (torchvision_v2, timm),
    mobilenet_v3: (timm,),
    "mobilenet_v3_large": (torchvision_v3,),
    "mobilenet_v3_small": (torchvision_v3,),
    **{f"keras_mobilenet_v3_{size}": () for size in mobilenet_v3.SIZES},
    **{f"keras_mobilenet_v3_{size}_minimalistic": () for size in mobilenet_v3.SIZES},
    mobilenet_v4: (timm,),
    mnasnet: (torchvision_mnasnet, timm),
    efficientnet_lite: (timm,),
    squeezenet: (torchvision_squeezenet,),
    shufflenet_v2: (torchvision_shufflenet_v2,),
    googlenet: (torchvision_googlenet,),
    alexnet: (torchvision_alexnet,),
    "alexnet_original": (),
    vgg: (torchvision_vgg, timm_vgg),
    ssd: (),
    **{f"ssdlite320_mobilenet_v3_large{tail}": (torchvision_ssdlite,) for tail in ("", "_full_tail")},
}


def namings(entry: models.Arch) -> tuple[Naming, ...]:
    return NAMINGS.get(entry.name, NAMINGS.get(entry.family, ()))


def known() -> list[str]:
    """The archs that have state dicts."""
    return [arch for arch in models.available() if namings(models.find(arch))]


def naming(entry: models.Arch, tensors: Mapping[str, Any]) -> Naming:
    """The naming of an arch that the tensors have. Raises ModelError for an arch without state dicts."""
    plan, candidates = entry.plan(), namings(entry)
    if not candidates:
        raise ModelError(f"no library has state dicts of arch {entry.name!r}; arch must be one of {', '.join(known())}")
    possible = [n for n in candidates if f"{next(n(plan))[1]}.weight" in tensors] or candidates[-1:]
    return max(possible, key=lambda names: sum(f"{conv}.weight" in tensors for _, conv, _ in names(plan)))
