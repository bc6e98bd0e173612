"""torchvision's detector with random weights, and its own way from a picture to boxes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from .peers import import_torchvision


def torchvision_detector(*, classes: int = 91, full_tail: bool = False, seed: int = 0) -> Any:
    """ssdlite320_mobilenet_v3_large in eval mode, with weights of which the values keep their size, and the batch norm
    statistics of random pictures; skips the test where torchvision is missing."""
    torch = pytest.importorskip("torch")
    import_torchvision()
    from torchvision.models import detection, mobilenetv3
    from torchvision.models.detection import ssdlite

    torch.manual_seed(seed)
    if full_tail:  # as with weights_backbone, but without fetching them
        make = ssdlite.mobilenet_v3_large

        def full(**options: Any) -> Any:
            return mobilenetv3.mobilenet_v3_large(**{**options, "reduced_tail": False})

        ssdlite.mobilenet_v3_large = full
        try:
            net = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes)
        finally:
            ssdlite.mobilenet_v3_large = make
    else:
        net = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                torch.nn.init.normal_(layer.bias, 0.0, 0.2)
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 1.0
            torch.nn.init.uniform_(layer.weight, 0.7, 1.3)
            torch.nn.init.normal_(layer.bias, 0.0, 0.2)
    net.train()
    with torch.no_grad():
        net.head(list(net.backbone(torch.rand(2, 3, 320, 320) * 2 - 1).values()))
        for head in net.head.classification_head.module_list:  # a few classes stand out, as in a trained network
            head[1].weight *= 0.6
        for head in net.head.regression_head.module_list:
            head[1].weight *= 0.3
    return net.eval()


def raw(net: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What its heads give for a batch (n, 3, 320, 320): the numbers of the boxes (n, anchors, 4), the logits
    (n, anchors, classes)."""
    import torch

    with torch.no_grad():
        found = net.head(list(net.backbone(torch.from_numpy(x)).values()))
    return found["bbox_regression"].numpy(), found["cls_logits"].numpy()


def detect(net: Any, pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> list[dict[str, np.ndarray]]:
    """All of torchvision's code, from pictures (h, w, 3) of uint8 to boxes in their pixels. Only the suppression, which
    is compiled, is written down in NumPy here."""
    import torch
    from torchvision.ops import boxes

    monkeypatch.setattr(boxes, "nms", nms)
    with torch.no_grad():
        found = net([torch.from_numpy(p.transpose(2, 0, 1).astype(np.float32) / 255) for p in pictures])
    return [{key: value.numpy() for key, value in one.items()} for one in found]


def nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """torchvision.ops.nms."""
    import torch

    b = boxes.numpy()
    areas = (b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1])
    left = scores.argsort(descending=True, stable=True).numpy()
    kept = []
    while len(left):
        i, rest = left[0], left[1:]
        kept.append(i)
        w = np.maximum(np.minimum(b[i, 2], b[rest, 2]) - np.maximum(b[i, 0], b[rest, 0]), 0)
        h = np.maximum(np.minimum(b[i, 3], b[rest, 3]) - np.maximum(b[i, 1], b[rest, 1]), 0)
        common = w * h
        with np.errstate(invalid="ignore", divide="ignore"):
            overlap = common / (areas[i] + areas[rest] - common)
        left = rest[~(overlap.astype(np.float64) > iou_threshold)]
    return torch.tensor(kept, dtype=torch.int64)
