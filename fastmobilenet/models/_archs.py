"""The names that models.build() knows, and the conventions behind each: a table.

The facts were read from torchvision 0.29, timm 1.0 and Keras 3. Where a library has several trained weights of a
network, the preprocessing is that of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ..errors import ModelError
from ..graph import Graph
from ..preprocess import IMAGENET, TENSORFLOW, Preprocess
from . import (
    alexnet,
    efficientnet_lite,
    googlenet,
    mnasnet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    mobilenet_v4,
    shufflenet_v1,
    shufflenet_v2,
    squeezenet,
    ssd,
    vgg,
)
from ._common import check_width


class Family(Protocol):
    """A module of this package: one kind of network. ``plan`` takes the width and the family's options and describes
    the network; the description decides the names of its parameters in the libraries."""

    @property
    def plan(self) -> Callable[..., Any]: ...

    @property
    def build(self) -> Callable[..., Graph]: ...


@dataclass(frozen=True)
class Arch:
    """A name of the registry. ``width`` None: any width, 1.0 if none is given. ``options``: of the family's plan().
    ``classes``: how many where nobody says."""

    name: str
    family: Family
    width: float | None
    preprocess: Preprocess
    padding: str = "symmetric"
    epsilon: float = 1e-5
    input_size: tuple[int, int] = (224, 224)
    options: Mapping[str, Any] = field(default_factory=dict)
    classes: int = 1000

    def resolve_width(self, width: float | None) -> float:
        """The width to build with. Raises ModelError for a width that contradicts the name."""
        if width is None:
            return 1.0 if self.width is None else self.width
        check_width(width)
        if self.width is not None and width != self.width:
            raise ModelError(f"arch {self.name!r} has width {self.width:g}, not {width:g}{self._advice()}")
        return width

    def _advice(self) -> str:
        """The arch of the same network that takes any width, if there is one, for the end of a message."""

        def network(arch: Arch) -> tuple[Any, ...]:
            kinds = ("size", "variant", "backbone", "lite", "reduced_tail")
            return *(arch.options.get(key) for key in kinds), arch.options.get("minimalistic", False)

        generic = [a for a in ARCHS.values() if a.family is self.family and a.width is None]
        same = next((a.name for a in generic if network(a) == network(self)), None)
        return f"; use arch={same!r}, which takes any width" if same else ""

    def plan(self, width: float | None = None) -> Any:
        return self.family.plan(self.resolve_width(width), **self.options)


# timm resizes with Pillow's bicubic filter unless a network says otherwise. "Inception" is its name for TensorFlow's
# mean and deviation.
_BICUBIC = replace(IMAGENET, interpolation="bicubic")
_INCEPTION = replace(TENSORFLOW, interpolation="bicubic")


def _crop(preprocess: Preprocess, size: int, share: float, interpolation: str | None = None) -> Preprocess:
    """timm's crop of ``share`` of the shorter side; it rounds the side down, size / share, and Preprocess to the
    nearest."""
    interpolation = interpolation or preprocess.interpolation
    return replace(preprocess, crop_fraction=size / int(size / share), interpolation=interpolation)


def _torchvision(shorter_side: int) -> Preprocess:
    return replace(IMAGENET, crop_fraction=224 / shorter_side)


def _mobilenet_v1() -> Iterator[Arch]:
    yield Arch("mobilenet_v1", mobilenet_v1, None, TENSORFLOW, padding="same", epsilon=1e-3)
    options = {"rounding": "divisible"}
    yield Arch("mobilenetv1_100", mobilenet_v1, 1.0, _INCEPTION, options=options)
    yield Arch("mobilenetv1_100h", mobilenet_v1, 1.0, _INCEPTION, options={**options, "head": True})
    yield Arch("mobilenetv1_125", mobilenet_v1, 1.25, _crop(_INCEPTION, 224, 0.9), options=options)


def _mobilenet_v2() -> Iterator[Arch]:
    yield Arch("mobilenet_v2", mobilenet_v2, None, IMAGENET)
    yield Arch("mobilenetv2_035", mobilenet_v2, 0.35, _BICUBIC)
    yield Arch("mobilenetv2_050", mobilenet_v2, 0.5, _BICUBIC)
    yield Arch("mobilenetv2_075", mobilenet_v2, 0.75, _BICUBIC)
    yield Arch("mobilenetv2_100", mobilenet_v2, 1.0, _BICUBIC)
    yield Arch("mobilenetv2_110d", mobilenet_v2, 1.1, _BICUBIC, options={"depth": 1.2, "fixed_ends": True})
    yield Arch("mobilenetv2_120d", mobilenet_v2, 1.2, _BICUBIC, options={"depth": 1.4, "fixed_ends": True})
    yield Arch("mobilenetv2_140", mobilenet_v2, 1.4, _BICUBIC)


def _mobilenet_v3() -> Iterator[Arch]:
    for size in ("large", "small"):
        options = {"size": size}
        yield Arch(f"mobilenet_v3_{size}", mobilenet_v3, None, IMAGENET, epsilon=1e-3, options=options)
    widths = {"large": (0.75, 1.0), "small": (0.5, 0.75, 1.0)}
    for size, published in widths.items():
        for width in published:
            preprocess = IMAGENET if (size, width) == ("large", 0.75) else _BICUBIC
            options = {"size": size, "convention": "timm"}
            yield Arch(f"mobilenetv3_{size}_{width * 100:03.0f}", mobilenet_v3, width, preprocess, options=options)
    tensorflow: dict[str, Any] = {"preprocess": TENSORFLOW, "padding": "same", "epsilon": 1e-3}
    for size in widths:
        options = {"size": size, "convention": "timm"}
        for width in (0.75, 1.0):
            name = f"tf_mobilenetv3_{size}_{width * 100:03.0f}"
            yield Arch(name, mobilenet_v3, width, options=options, **tensorflow)
        minimalistic = {**options, "minimalistic": True}
        yield Arch(f"tf_mobilenetv3_{size}_minimal_100", mobilenet_v3, 1.0, options=minimalistic, **tensorflow)
    for size in widths:
        keras = {"size": size, "convention": "keras"}
        yield Arch(f"keras_mobilenet_v3_{size}", mobilenet_v3, None, options=keras, **tensorflow)
        minimalistic = {**keras, "minimalistic": True}
        yield Arch(f"keras_mobilenet_v3_{size}_minimalistic", mobilenet_v3, None, options=minimalistic, **tensorflow)


def _mobilenet_v4() -> Iterator[Arch]:
    def v4(name: str, width: float | None, size: str, preprocess: Preprocess, pixels: int = 224) -> Arch:
        at = (pixels, pixels)
        return Arch(f"mobilenetv4_conv_{name}", mobilenet_v4, width, preprocess, input_size=at, options={"size": size})

    yield v4("small_035", 0.35, "small", _INCEPTION)
    yield v4("small_050", 0.5, "small", _INCEPTION)
    yield v4("small", None, "small", _BICUBIC)
    yield v4("medium", None, "medium", _crop(_BICUBIC, 256, 0.95), 256)
    yield v4("large", None, "large", _crop(_BICUBIC, 384, 0.95), 384)


def _mnasnet() -> Iterator[Arch]:
    def member(name: str, width: float | None, preprocess: Preprocess, variant: str = "b1") -> Arch:
        return Arch(name, mnasnet, width, preprocess, options={"variant": variant})

    yield member("mnasnet", None, IMAGENET)
    yield member("mnasnet0_5", 0.5, IMAGENET)
    yield member("mnasnet0_75", 0.75, _torchvision(232))
    yield member("mnasnet1_0", 1.0, IMAGENET)
    yield member("mnasnet1_3", 1.3, _torchvision(232))
    for name, variant in (("mnasnet", "b1"), ("semnasnet", "a1")):
        for width in (0.5, 0.75, 1.0, 1.4):
            yield member(f"{name}_{width * 100:03.0f}", width, _BICUBIC, variant)
    yield member("mnasnet_small", 1.0, _BICUBIC, "small")


def _efficientnet_lite() -> Iterator[Arch]:
    members = ((1.0, 1.0, 224), (1.0, 1.1, 240), (1.1, 1.2, 260), (1.2, 1.4, 300), (1.4, 1.8, 380))
    shares = {"": (0.875, 0.882, 0.89, 0.904, 0.922), "tf_": (0.875, 0.882, 0.89, 0.904, 0.92)}
    filters = {"": ("bicubic",) * 5, "tf_": ("bicubic",) * 3 + ("bilinear",) * 2}
    for prefix, padding, epsilon, normal in (("", "symmetric", 1e-5, IMAGENET), ("tf_", "same", 1e-3, TENSORFLOW)):
        for number, (width, depth, pixels) in enumerate(members):
            yield Arch(
                f"{prefix}efficientnet_lite{number}",
                efficientnet_lite,
                width,
                _crop(normal, pixels, shares[prefix][number], filters[prefix][number]),
                padding,
                epsilon,
                (pixels, pixels),
                {"depth": depth},
            )


def _squeezenet() -> Iterator[Arch]:
    for version in squeezenet.VERSIONS:
        yield Arch(f"squeezenet{version.replace('.', '_')}", squeezenet, 1.0, IMAGENET, options={"version": version})


def _shufflenet() -> Iterator[Arch]:
    for groups in shufflenet_v1.CHANNELS:
        yield Arch(f"shufflenet_v1_g{groups}", shufflenet_v1, None, IMAGENET, options={"groups": groups})
    for width in shufflenet_v2.CHANNELS:
        preprocess = IMAGENET if width <= 1 else _torchvision(232)
        yield Arch(f"shufflenet_v2_x{str(width).replace('.', '_')}", shufflenet_v2, width, preprocess)


def _comparison() -> Iterator[Arch]:
    """The larger networks that the papers compare with. "googlenet" is for torchvision's trained weights."""
    options = {"transform_input": True}
    yield Arch("googlenet", googlenet, 1.0, IMAGENET, epsilon=1e-3, options=options)
    yield Arch("googlenet_no_transform", googlenet, 1.0, IMAGENET, epsilon=1e-3)
    yield Arch("alexnet", alexnet, None, IMAGENET)
    means = replace(IMAGENET, crop_fraction=227 / 256, std=(1.0, 1.0, 1.0))
    yield Arch("alexnet_original", alexnet, None, means, input_size=(227, 227), options={"original": True})
    for layers in vgg.REPEATS:
        yield Arch(f"vgg{layers}", vgg, None, IMAGENET, options={"layers": layers})
        yield Arch(f"vgg{layers}_bn", vgg, None, IMAGENET, options={"layers": layers, "batch_norm": True})


def _detectors() -> Iterator[Arch]:
    plain = replace(TENSORFLOW, resize="stretch")
    torchvision = replace(plain, interpolation="linear")
    for suffix, reduced in (("", True), ("_full_tail", False)):
        options = {"backbone": "v3_large", "convention": "torchvision", "reduced_tail": reduced}
        yield Arch(
            f"ssdlite320_mobilenet_v3_large{suffix}", ssd, 1.0, torchvision, "symmetric", 1e-3, (320, 320), options, 91
        )
    for backbone in ssd.BACKBONES:
        at = (320, 320) if backbone.startswith("v3") else (300, 300)
        for lite in (False, True):
            options = {"backbone": backbone, "lite": lite}
            name = f"{'ssdlite' if lite else 'ssd'}_mobilenet_{backbone}"
            yield Arch(name, ssd, None, plain, "same", 1e-3, at, options, 91)


ARCHS: dict[str, Arch] = {
    arch.name: arch
    for family in (
        *(_mobilenet_v1, _mobilenet_v2, _mobilenet_v3, _mobilenet_v4, _mnasnet, _efficientnet_lite),
        *(_squeezenet, _shufflenet, _comparison, _detectors),
    )
    for arch in family()
}
