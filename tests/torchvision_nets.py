"""Networks of torchvision with random weights and sane statistics, small enough for quick tests; ShuffleNet V1, which
torchvision lacks, written down in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest

from .peers import import_torchvision
from .weight_files import with_statistics

#: arch: (function of torchvision.models, its options, width). Of AlexNet and VGG the test makes narrow ones.
NETWORKS: dict[str, tuple[str, dict[str, Any], float]] = {
    "squeezenet1_0": ("squeezenet1_0", {}, 1.0),
    "squeezenet1_1": ("squeezenet1_1", {}, 1.0),
    "shufflenet_v2_x0_5": ("shufflenet_v2_x0_5", {}, 1.0),
    "shufflenet_v2_x1_0": ("shufflenet_v2_x1_0", {}, 1.0),
    "shufflenet_v2_x1_5": ("shufflenet_v2_x1_5", {}, 1.0),
    "shufflenet_v2_x2_0": ("shufflenet_v2_x2_0", {}, 1.0),
    "googlenet": ("googlenet", {"transform_input": True, "init_weights": False}, 1.0),
    "googlenet_no_transform": ("googlenet", {"aux_logits": False, "init_weights": False}, 1.0),
    "alexnet": ("alexnet", {}, 1 / 8),
    **{
        f"vgg{layers}{kind}": (f"vgg{layers}{kind}", {"init_weights": False}, 1 / 16)
        for layers in (11, 13, 16, 19)
        for kind in ("", "_bn")
    },
}


def torchvision_network(arch: str, *, classes: int = 1000, full: bool = False) -> Any:
    """The module of one of NETWORKS in eval mode; skips the test where torchvision is missing.

    ``full``: AlexNet and VGG at width 1.
    """
    torch = pytest.importorskip("torch")
    make, options, width = NETWORKS[arch]
    models = import_torchvision().models
    torch.manual_seed(1)
    if width == 1.0 or full:
        module = getattr(models, make)(num_classes=classes, **options)
    else:
        with torch.device("meta"):  # the layers of full width take no memory
            module = getattr(models, make)(num_classes=classes, **options)
        narrow(torch.nn, module, width)
    randomize_biases(torch, module)
    return with_statistics(module)


def narrow(nn: Any, module: Any, width: float) -> None:
    """Replaces the layers of an AlexNet or VGG, which are all in a row, by ones with fewer channels."""
    channels, before = 3, 3
    for layers in (module.features, module.classifier):
        for i, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d):
                before, full = layer.out_channels, int(layer.out_channels * width)
                layers[i] = nn.Conv2d(
                    channels, full, layer.kernel_size, layer.stride, layer.padding, bias=layer.bias is not None
                )
                channels = full
            elif isinstance(layer, nn.BatchNorm2d):
                layers[i] = nn.BatchNorm2d(channels)
            elif isinstance(layer, nn.Linear):
                last = i == len(layers) - 1
                made = layer.out_features if last else int(layer.out_features * width)
                layers[i] = nn.Linear(layer.in_features // before * channels, made)
                channels, before = made, layer.out_features


def randomize_biases(torch: Any, module: Any) -> None:
    """Weights that keep the size of the values through layers without batch norm, and biases that are not zero."""
    nn = torch.nn
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.normal_(layer.bias, 0.0, 0.2)


def shufflenet_v1_network(groups: int, stem: int, stages: tuple[int, ...], classes: int) -> Any:
    """ShuffleNet V1 as in figure 2 and table 1 of its paper, in eval mode. ``stages``: their channels.

    The layers come in the order in which they are computed, so their parameters have the order of the graph's.
    """
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Shuffle(nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            n, c, h, w = x.shape
            return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)

    class Unit(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, inputs: int, outputs: int, stride: int, first: bool) -> None:
            super().__init__()
            self.stride, inner = stride, -(-outputs // 4 // groups) * groups
            made = outputs - inputs if stride == 2 else outputs
            self.branch = nn.Sequential(
                nn.Conv2d(inputs, inner, 1, groups=1 if first else groups, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(),
                Shuffle(),
                nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False),
                nn.BatchNorm2d(inner),
                nn.Conv2d(inner, made, 1, groups=groups, bias=False),
                nn.BatchNorm2d(made),
            )
            self.pool = nn.AvgPool2d(3, 2, 1)

        def forward(self, x: Any) -> Any:
            y = self.branch(x)
            return torch.relu(x + y if self.stride == 1 else torch.cat((self.pool(x), y), 1))

    layers: list[Any] = [nn.Conv2d(3, stem, 3, 2, 1, bias=False), nn.BatchNorm2d(stem), nn.ReLU()]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = stem
    for outputs, repeats in zip(stages, (4, 8, 4), strict=True):
        for i in range(repeats):
            layers.append(Unit(inputs, outputs, 1 if i else 2, inputs == stem))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    torch.manual_seed(4)
    return with_statistics(nn.Sequential(*layers))
