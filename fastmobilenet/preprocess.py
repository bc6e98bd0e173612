"""What happens to raw pixels before the first layer, as data that is kept with the model."""

from __future__ import annotations

from collections.abc import Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any

INTERPOLATIONS = ("bilinear", "bicubic", "linear")
RESIZE_MODES = ("shorter_side", "stretch", "none")
CHANNEL_ORDERS = ("rgb", "bgr")

#: Of smaller crops the picture is scaled up a hundredfold, and more, to show a few of its pixels.
MIN_CROP_FRACTION = 0.01
#: std from 1 / LIMIT to LIMIT, mean from -LIMIT to LIMIT: beyond, (pixel - mean) / std no longer tells pixels apart in
#: float32, or makes inputs whose products overflow in a few layers.
LIMIT = 1e6


@dataclass(frozen=True)
class Preprocess:
    """Raw picture -> network input.

    1. Resize so that the crop covers ``crop_fraction`` of the shorter side (``resize="shorter_side"``:
       shorter side = ``round(size / crop_fraction)``), or stretch to the input size (``"stretch"``), with
       Pillow's antialiased filter. ``"none"`` skips this step. ``interpolation="linear"``, for "stretch" only, is the
       plain interpolation between four pixels, without antialias and without rounding, of torchvision's detectors.
    2. Crop the centre.
    3. Reorder the channels if ``channels == "bgr"``.
    4. ``(pixel - mean) / std`` in float32, where pixel, mean and std are in units of 0..255.

    Steps 1 and 2 are skipped for a picture that already has the network's input size.

    ``crop_fraction`` is 0.01 to 1; ``mean`` and ``std`` are three numbers each, for the channels in the order of
    ``channels``, std 1e-6 to 1e6 and mean -1e6 to 1e6. They are kept as tuples of float. Raises TypeError and
    ValueError that name the field.
    """

    resize: str = "shorter_side"
    crop_fraction: float = 0.875
    interpolation: str = "bilinear"
    channels: str = "rgb"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def __post_init__(self) -> None:
        _check_word("resize", self.resize, RESIZE_MODES)
        _check_word("interpolation", self.interpolation, INTERPOLATIONS)
        _check_word("channels", self.channels, CHANNEL_ORDERS)
        if self.interpolation == "linear" and self.resize != "stretch":
            raise ValueError(f'interpolation="linear" needs resize="stretch", not {self.resize!r}')
        if not _is_number(self.crop_fraction):
            raise TypeError(f"crop_fraction must be a number, not {self.crop_fraction!r}")
        if not MIN_CROP_FRACTION <= self.crop_fraction <= 1.0:
            raise ValueError(f"crop_fraction must be {MIN_CROP_FRACTION} to 1, not {self.crop_fraction!r}")
        mean, std = _three("mean", self.mean), _three("std", self.std)
        for i in range(3):
            if not -LIMIT <= mean[i] <= LIMIT:  # NaN is not either
                raise ValueError(
                    f"mean must be {-LIMIT:g} to {LIMIT:g} (pixels are 0 to 255), but mean[{i}] is {mean[i]}"
                )
            if not 1 / LIMIT <= std[i] <= LIMIT:
                raise ValueError(
                    f"std must be {1 / LIMIT:g} to {LIMIT:g} (pixels are 0 to 255), but std[{i}] is {std[i]}"
                )
        for name, value in (("crop_fraction", float(self.crop_fraction)), ("mean", mean), ("std", std)):
            object.__setattr__(self, name, value)  # the only way in a frozen dataclass

    def describe(self) -> str:
        """One line for repr() and ``fastmobilenet info``."""
        steps = {
            "shorter_side": f"shorter side to size/{self.crop_fraction:g} ({self.interpolation}), centre crop",
            "stretch": f"stretch to size ({self.interpolation})",
            "none": "no resize",
        }[self.resize]
        mean = ", ".join(f"{v:g}" for v in self.mean)
        std = ", ".join(f"{v:g}" for v in self.std)
        return f"{steps}, {self.channels}, (pixel - ({mean})) / ({std})"


def _check_word(name: str, value: Any, words: tuple[str, ...]) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, one of {words}, not {value!r}")
    if value not in words:
        raise ValueError(f"{name} must be one of {words}, not {value!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _three(name: str, given: Any) -> tuple[float, float, float]:
    """Three numbers, one a channel, as floats. A set or mapping has no such order."""
    values = None
    if not isinstance(given, (str, bytes, Set, Mapping)):
        with suppress(TypeError):
            values = tuple(given)
    if values is None or not all(map(_is_number, values)):
        raise TypeError(f"{name} must be three numbers, one a channel, not {given!r}")
    if len(values) != 3:
        raise ValueError(f"{name} must be three numbers, one a channel, not {len(values)}: {given!r}")
    try:
        r, g, b = map(float, values)
    except OverflowError:  # a whole number of hundreds of digits
        raise ValueError(f"{name} must be {-LIMIT:g} to {LIMIT:g}, not {given!r}") from None
    return r, g, b


#: x / 127.5 - 1, what the TensorFlow MobileNets were trained with.
TENSORFLOW = Preprocess()

#: torchvision's ImageNet classifiers: x / 255, then the ImageNet mean and standard deviation.
IMAGENET = Preprocess(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
    std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
)

#: Pixels as they are, 0 to 255: for a network that scales them itself, as Keras' MobileNetV3 does.
RAW = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
