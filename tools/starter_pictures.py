"""What tools/train_starter.py trains on: CIFAR-10's pictures, and how they are changed at random."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

#: The normalisation of torchvision's MobileNetV2, so that Model.load(..., arch="mobilenet_v2") has the right one.
MEAN = torch.tensor([0.485, 0.456, 0.406]) * 255
STD = torch.tensor([0.229, 0.224, 0.225]) * 255
GREY = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)


def read(path: Path) -> tuple[Tensor, Tensor, list[str]]:
    """uint8 pixels (n, 3, 32, 32), int64 labels (n,) and the names of the classes."""
    with np.load(path) as file:
        jpeg, offsets, labels, names = (file[key] for key in ("jpeg", "offsets", "labels", "names"))
    spans = itertools.pairwise(offsets)
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(jpeg[a:b].tobytes())).convert("RGB")) for a, b in spans])
    nchw = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return nchw, torch.from_numpy(labels.astype(np.int64)), [str(name) for name in names]


def enlarge(pixels: Tensor, size: int) -> Tensor:
    """uint8 (n, 3, h, w) -> uint8 (n, 3, size, size), bit for bit what Model.run makes of such pictures."""
    pictures = (Image.fromarray(p) for p in pixels.permute(0, 2, 3, 1).numpy())
    resized = [np.asarray(p.resize((size, size), Image.Resampling.BILINEAR)) for p in pictures]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)


def normalise(x: Tensor) -> Tensor:
    y = (x.float() - MEAN.view(1, 3, 1, 1)) / STD.view(1, 3, 1, 1)
    return y.contiguous(memory_format=torch.channels_last)


def resampling(begin: Tensor, length: Tensor, sharp: Tensor, source: int, size: int) -> Tensor:
    """(n, size, source): matrices that cut [begin, begin + length) out of ``source`` pixels and resize it to ``size``.

    The filter is a triangle as wide as the step between samples (what a bilinear resize does) or, by ``sharp``
    (n,) in 0..1, a narrower one, up to the nearest pixel: enlarged thumbnails are blurred, photographs are not.
    """
    centre = begin[:, None] + (torch.arange(size) + 0.5) / size * length[:, None] - 0.5
    centre = centre.clamp(0, source - 1)  # outside, the border is repeated
    distance = (centre[:, :, None] - torch.arange(source)).abs()
    support = (length.abs() / size).clamp(min=1) * (1 - 0.49 * sharp)
    weight = (1 - distance / support[:, None, None]).clamp(min=0)
    return weight / weight.sum(2, keepdim=True)


def augment(pixels: Tensor, size: int, rng: torch.Generator, strength: float, flip: Tensor) -> Tensor:
    """uint8 (n, 3, h, w) -> normalised (n, 3, size, size): random colours, crop and sharpness; ``flip`` (n,) mirrors.

    At ``strength`` 1 a crop has 40 to 100 % of the area, and colours change by up to 40 %; at 0, all is left as it is.
    """
    n, _, h, w = pixels.shape

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=rng) * (high - low) + low

    def around_1(most: float) -> Tensor:
        return 1 + strength * uniform(-most, most)

    def per_picture(values: Tensor) -> Tensor:
        return values.view(n, 1, 1, 1)

    x = pixels.float()
    grey = (x * GREY).sum(1, keepdim=True)
    x = torch.lerp(grey, x, per_picture(around_1(0.4)))
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * per_picture(around_1(0.35)) + mean * per_picture(around_1(0.3))
    light = 1 + 0.06 * strength * torch.randn(n, 3, 1, 1, generator=rng)
    x = (x * light).clamp(0, 255)

    scale = uniform(1 - 0.6 * strength, 1.0).sqrt()
    aspect = (uniform(math.log(3 / 4), math.log(4 / 3)) * strength / 2).exp()
    width, height = (scale * aspect).clamp(max=1) * w, (scale / aspect).clamp(max=1) * h
    left, top = uniform(0, 1) * (w - width), uniform(0, 1) * (h - height)
    left, width = torch.where(flip, left + width, left), torch.where(flip, -width, width)
    sharp = uniform(-1, 1).clamp(min=0) * strength
    columns = resampling(left, width, sharp, w, size)
    rows = resampling(top, height, sharp, h, size)
    return normalise(rows[:, None] @ x @ columns[:, None].mT)
