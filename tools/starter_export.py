"""From the trained PyTorch network to the .fmn file in the package, and how good both are on the test pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from starter_network import Network, to_graph
from starter_pictures import MEAN, STD, enlarge, normalise
from torch import Tensor

from fastmobilenet import Model
from fastmobilenet.preprocess import Preprocess

#: Training pictures that set the ranges of the int8 tensors.
CALIBRATION = 256


@torch.no_grad()
def predict(net: torch.nn.Module, pixels: Tensor, size: int) -> Tensor:
    """The class of each of the uint8 pictures (n, 3, h, w)."""
    return torch.cat([net(normalise(enlarge(x, size))).argmax(1) for x in torch.split(pixels, 256)])


def table(matrix: Tensor, names: list[str]) -> str:
    """The confusion matrix as text: a row for each true class, with the share of right answers at its end."""
    head = " " * 12 + "".join(f"{name[:5]:>6}" for name in names) + "  right"
    rows = [
        f"{name:>12}" + "".join(f"{count:6d}" for count in row.tolist()) + f"{100 * row[i] / row.sum():6.1f}%"
        for i, (name, row) in enumerate(zip(names, matrix, strict=True))
    ]
    return "\n".join([head, *rows])


def preprocess() -> Preprocess:
    """What was done in the training: the whole shorter side, and torchvision's statistics."""
    mean, std = (tuple(values.tolist()) for values in (MEAN, STD))
    return Preprocess(resize="shorter_side", crop_fraction=1.0, mean=mean, std=std)


def export(
    net: Network, size: int, calibration: Tensor, test: tuple[Tensor, Tensor], names: list[str], out: Path
) -> dict[str, Any]:
    """Writes starter_fp32.fmn and starter.fmn (int8) to the folder ``out``, prints the confusion matrix of PyTorch and
    returns what all three get right of the ``test`` pictures, in percent.

    ``calibration``: uint8 (n, 3, h, w), training pictures.
    """
    pixels, labels = test
    predicted = predict(net, pixels, size)
    n = len(names)
    matrix = torch.bincount(labels * n + predicted, minlength=n * n).view(n, n)
    print(table(matrix, names))
    right = {"pytorch": 100 * float((predicted == labels).float().mean())}

    model = Model.from_graph(to_graph(net, size, preprocess(), names))
    model.save(out / "starter_fp32.fmn")
    small = model.quantize(list(_nhwc(calibration)))
    small.save(out / "starter.fmn")
    (out / "quantization.txt").write_text("\n".join(small.quantization.lines()) + "\n", encoding="utf-8")
    for name, precision in (("starter_fp32", "fp32"), ("starter", "int8")):
        ours = Model.load(out / f"{name}.fmn").run(list(_nhwc(pixels))).argmax(axis=1)
        right[precision] = 100 * float((ours == labels.numpy()).mean())
    for name, percent in right.items():
        print(f"{name}: top-1 on {len(labels)} test pictures: {percent:.2f} %")
    return {**{key: round(value, 2) for key, value in right.items()}, "confusion": matrix.tolist()}


def write_report(report: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _nhwc(pixels: Tensor) -> np.ndarray:
    return np.ascontiguousarray(pixels.permute(0, 2, 3, 1).numpy())
