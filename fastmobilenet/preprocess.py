"""What happens to raw pixels before the first layer, as data that is kept with the model."""

from __future__ import annotations

from dataclasses import dataclass

INTERPOLATIONS = ("bilinear", "bicubic")
RESIZE_MODES = ("shorter_side", "stretch", "none")


@dataclass(frozen=True)
class Preprocess:
    """Raw picture -> network input.

    1. Resize so that the crop covers ``crop_fraction`` of the shorter side (``resize="shorter_side"``:
       shorter side = ``round(size / crop_fraction)``), or stretch to the input size (``"stretch"``), with
       Pillow's antialiased filter. ``"none"`` skips this step.
    2. Crop the centre.
    3. Reorder the channels if ``channels == "bgr"``.
    4. ``(pixel - mean) / std`` in float32, where pixel, mean and std are in units of 0..255.

    Steps 1 and 2 are skipped for a picture that already has the network's input size.
    """

    resize: str = "shorter_side"
    crop_fraction: float = 0.875
    interpolation: str = "bilinear"
    channels: str = "rgb"
    mean: tuple[float, float, float] = (127.5, 127.5, 127.5)
    std: tuple[float, float, float] = (127.5, 127.5, 127.5)

    def __post_init__(self) -> None:
        if self.resize not in RESIZE_MODES:
            raise ValueError(f"resize must be one of {RESIZE_MODES}, not {self.resize!r}")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation must be one of {INTERPOLATIONS}, not {self.interpolation!r}")
        if self.channels not in ("rgb", "bgr"):
            raise ValueError(f'channels must be "rgb" or "bgr", not {self.channels!r}')
        if not 0.0 < self.crop_fraction <= 1.0:
            raise ValueError(f"crop_fraction must be in (0, 1], not {self.crop_fraction!r}")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError("mean and std need three values, one a channel")
        if not all(s > 0 for s in self.std):
            raise ValueError(f"std must be positive, not {self.std!r}")

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


#: x / 127.5 - 1, what the TensorFlow MobileNets were trained with.
TENSORFLOW = Preprocess()

#: torchvision's ImageNet classifiers: x / 255, then the ImageNet mean and standard deviation.
IMAGENET = Preprocess(
    mean=(0.485 * 255, 0.456 * 255, 0.406 * 255),
    std=(0.229 * 255, 0.224 * 255, 0.225 * 255),
)
