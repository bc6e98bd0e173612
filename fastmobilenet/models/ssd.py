"""Detectors: Liu et al., "SSD: Single Shot MultiBox Detector" (2016), with the heads of MobileNets.

A MobileNet without its classifier, four steps that halve the map behind it (extra_0 to extra_3), and on each of six
maps two heads: one gives four numbers for each of the boxes of a pixel (boxes_0 to boxes_5), the other the scores of
their classes (classes_0 to classes_5). SSDLite (Sandler et al., 2018, section 6.2) makes the heads and the extra steps
of depthwise and 1x1 convolutions. The first two maps are, of V1, the outputs of block_11 and block_13; of V2 and V3,
what the last block of stride 2 expands its input to, and the output of the head (Howard et al., 2019, section 6.3).

Two conventions: "torchvision" is that of ssdlite320_mobilenet_v3_large, "tensorflow" that of TensorFlow's object
detection. Class 0 is the background in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..anchors import default_boxes, ssd_anchors
from ..detection_head import DetectionHead
from ..errors import ModelError
from ..graph import RELU6, Graph, infer_shapes
from . import mobilenet_v1, mobilenet_v2, mobilenet_v3
from ._common import ParameterSource
from ._plan import Conv, Plan, _PlanBuilder

BACKBONES = ("v1", "v2", "v3_large", "v3_small")
CONVENTIONS = ("torchvision", "tensorflow")
#: Output channels of the steps behind the backbone, at width 1; the least that a narrow one has.
EXTRAS, LEAST = (512, 256, 256, 128), 16
#: torchvision: ratios beside 1, size of the boxes of the first and the last map.
RATIOS, SMALLEST, LARGEST = (2.0, 3.0), 0.2, 0.95


@dataclass(frozen=True)
class SsdPlan:
    """``taps``: the layers of the backbone that the first two pairs of heads read; the layers behind the second are
    the extra steps. ``anchors``: of a pixel of each map."""

    backbone: Plan
    taps: tuple[str, str]
    extras: tuple[tuple[Conv, ...], ...]
    anchors: tuple[int, ...]
    lite: bool
    kernel: int  # of the heads
    convention: str

    def layers(self) -> list[tuple[str, Conv]]:
        """Of the extra steps."""
        return [(f"extra_{i}/{conv.name}", conv) for i, extra in enumerate(self.extras) for conv in extra]

    def outputs(self) -> dict[str, int]:
        """Layer -> output channels, of all layers whose channels a width multiplier changes."""
        return self.backbone.outputs() | {name: conv.channels for name, conv in self.layers()}


def plan(
    width: float = 1.0,
    *,
    backbone: str = "v2",
    lite: bool = True,
    convention: str = "tensorflow",
    reduced_tail: bool = True,
) -> SsdPlan:
    """``reduced_tail``: of V3, half the channels in the last stage."""
    for option, value, known in (("backbone", backbone, BACKBONES), ("convention", convention, CONVENTIONS)):
        if value not in known:
            raise ModelError(f"{option} must be one of {', '.join(known)}, not {value!r}")
    if backbone == "v1":
        body, taps = mobilenet_v1.plan(width), ("block_11/pointwise", "block_13/pointwise")
    elif backbone == "v2":
        body, taps = mobilenet_v2.plan(width), ("block_13/expand", "head")
    else:
        size = backbone.removeprefix("v3_")
        body = mobilenet_v3.plan(width, size=size, reduced_tail=reduced_tail)
        taps = (f"{_last_strided(body)}/expand", "head")
    body = Plan(body.stem, body.blocks, body.head)  # without what makes classes
    extras = tuple(_extra(max(LEAST, int(channels * width)), lite) for channels in EXTRAS)
    fewer = convention == "tensorflow"
    return SsdPlan(body, taps, extras, (3 if fewer else 6, 6, 6, 6, 6, 6), lite, 3 if lite else 1, convention)


def _last_strided(body: Plan) -> str:
    return [b.name for b in body.blocks if any(isinstance(x, Conv) and x.stride == 2 for x in b.layers)][-1]


def _extra(channels: int, lite: bool) -> tuple[Conv, ...]:
    half = channels // 2
    reduce = Conv("reduce", half, activation=RELU6)
    if not lite:
        return reduce, Conv("conv", channels, 3, 2, activation=RELU6)
    return reduce, Conv("depthwise", half, 3, 2, True, RELU6), Conv("project", channels, activation=RELU6)


class _SsdBuilder(_PlanBuilder):
    def body(self, p: SsdPlan) -> list[str]:
        """The maps that the heads read."""
        maps: list[str] = []

        def layer(x: str, name: str, conv: Any) -> str:
            y = self.layer(x, name, conv)
            if name in p.taps:
                maps.append(y)
            return y

        x = layer(self.input(), p.backbone.stem.name, p.backbone.stem)
        for block in p.backbone.blocks:
            y = x
            for part in block.layers:
                y = layer(y, f"{block.name}/{part.name}", part)
            x = self.add(x, y, block.name) if block.residual else y
        if p.backbone.head:
            x = layer(x, p.backbone.head.name, p.backbone.head)
        for name, conv in p.layers():
            x = self.layer(x, name, conv)
            if name.endswith(("/project", "/conv")):
                maps.append(x)
        return maps

    def head(self, x: str, name: str, numbers: int, p: SsdPlan) -> str:
        if p.lite:
            conv = Conv("depthwise", self.channels[x], p.kernel, 1, True, RELU6)
            x = self.layer(x, f"{name}/depthwise", conv)
        return self.biased(x, name, numbers, kernel=1 if p.lite else p.kernel, activation=None)


def build(
    width: float = 1.0,
    *,
    backbone: str = "v2",
    lite: bool = True,
    convention: str = "tensorflow",
    reduced_tail: bool = True,
    classes: int = 91,
    padding: str = "same",
    epsilon: float = 1e-3,
    weights: ParameterSource | None = None,
    seed: int = 0,
    input_size: tuple[int, int] = (300, 300),
    labels: tuple[str, ...] | None = None,
    **fields: Any,
) -> Graph:
    """A detector for pictures of ``input_size``: its anchors are made for the maps of that size. ``classes``: the
    background among them. The other options are those of :func:`plan` and
    :func:`fastmobilenet.models._plan.build_plan`."""
    p = plan(width, backbone=backbone, lite=lite, convention=convention, reduced_tail=reduced_tail)
    net = _SsdBuilder(classes=classes, padding=padding, epsilon=epsilon)
    maps = net.body(p)
    boxes = [net.head(x, f"boxes_{i}", 4 * p.anchors[i], p) for i, x in enumerate(maps)]
    scores = [net.head(x, f"classes_{i}", net.classes * p.anchors[i], p) for i, x in enumerate(maps)]
    shapes = infer_shapes(net.builder.build(scores[-1], input_size=input_size), 1, *input_size)
    head = make_head(convention, [shapes[x][1:3] for x in maps], input_size, net.classes)
    output = net._add("detection", *boxes, *scores, name="detection", channels=4 + net.classes, **head.attributes())
    return net.finish(output, weights, seed, input_size=input_size, labels=labels, **fields)


def make_head(convention: str, maps: Sequence[tuple[int, int]], size: tuple[int, int], classes: int) -> DetectionHead:
    """What makes boxes of the numbers, as torchvision's ssdlite320_mobilenet_v3_large, or as the files that
    TensorFlow's object detection exports for its SSDs. ``maps``: the sizes of the maps."""
    if convention == "torchvision":
        anchors = default_boxes(maps, size, ratios=[RATIOS] * len(maps), least=SMALLEST, most=LARGEST)
        return DetectionHead(
            anchors,
            classes,
            (float(size[0]), float(size[1])),
            limit=LOG_LIMIT,
            clip=True,
            scores="softmax",
            score_threshold=0.001,
            above=True,
            iou_threshold=0.55,
            candidates=300,
            detections=300,
        )
    return DetectionHead(
        ssd_anchors(maps, size),
        classes,
        (1.0, 1.0),
        order="yxhw",
        scores="sigmoid",
        score_threshold=1e-8,
        iou_threshold=0.6,
        per_class=100,
        detections=100,
    )


#: torchvision's bound on the logarithm of a size: that of 1000 / 16.
LOG_LIMIT = 4.135166556742356
