"""The names that torchvision and timm give to the layers of the networks that have a Plan: MobileNets, MnasNets and
EfficientNet-Lites. The last layer that a function names is the one that makes the classes.

timm numbers blocks within their stage and calls layers by the kind of the block; torchvision counts the modules of a
block. Both give the squeeze-excite layers no batch norm.
"""

from __future__ import annotations

from ..models import Block, Conv, Plan, SqueezeExcite
from ..models.ssd import SsdPlan
from ._names import Names

#: Kind of a block -> its layers -> (convolution, batch norm) within timm's block.
TIMM_LAYERS = {
    "separable": {
        "depthwise": ("conv_dw", "bn1"),
        "pointwise": ("conv_pw", "bn2"),
        "project": ("conv_pw", "bn2"),
    },
    "inverted": {
        "expand": ("conv_pw", "bn1"),
        "depthwise": ("conv_dw", "bn2"),
        "project": ("conv_pwl", "bn3"),
    },
    "fused": {
        "expand": ("conv_exp", "bn1"),
        "project": ("conv_pwl", "bn2"),
    },
    "universal": {
        "start": ("dw_start.conv", "dw_start.bn"),
        "expand": ("pw_exp.conv", "pw_exp.bn"),
        "depthwise": ("dw_mid.conv", "dw_mid.bn"),
        "project": ("pw_proj.conv", "pw_proj.bn"),
    },
    "conv": {"conv": ("conv", "bn1")},
}


def timm(plan: Plan) -> Names:
    yield plan.stem.name, "conv_stem", "bn1"
    for block in plan.blocks:
        at = f"blocks.{block.stage}.{block.index}"
        for layer in block.layers:
            if isinstance(layer, SqueezeExcite):
                yield from _gate(block, layer, f"{at}.se.conv_reduce", f"{at}.se.conv_expand")
            else:
                conv, bn = TIMM_LAYERS[block.kind][layer.name]
                yield f"{block.name}/{layer.name}", f"{at}.{conv}", f"{at}.{bn}"
    if plan.head and plan.hidden:  # with V3's head the last convolution before the pool is a stage of its own
        yield plan.head.name, f"blocks.{plan.stages}.0.conv", f"blocks.{plan.stages}.0.bn1"
        yield "hidden", "conv_head", "norm_head"
    elif plan.head:
        yield plan.head.name, "conv_head", "bn2"
    yield "logits", "classifier", ""


def torchvision_v2(plan: Plan) -> Names:
    yield plan.stem.name, "features.0.0", "features.0.1"
    for number, block in enumerate(plan.blocks, 1):
        at = f"features.{number}.conv"
        for step, layer in enumerate(block.layers):
            last = layer is block.output  # it has no activation, and no module of its own
            names = (f"{at}.{step}", f"{at}.{step + 1}") if last else (f"{at}.{step}.0", f"{at}.{step}.1")
            yield f"{block.name}/{layer.name}", *names
    yield from _torchvision_head(plan)
    yield "logits", "classifier.1", ""


def torchvision_v3(plan: Plan) -> Names:
    yield from _torchvision_v3_body(plan)
    yield "hidden", "classifier.0", ""
    yield "logits", "classifier.3", ""


def _torchvision_v3_body(plan: Plan) -> Names:
    yield plan.stem.name, "features.0.0", "features.0.1"
    for number, block in enumerate(plan.blocks, 1):
        for step, layer in enumerate(block.layers):
            at = f"features.{number}.block.{step}"
            if isinstance(layer, SqueezeExcite):
                yield from _gate(block, layer, f"{at}.fc1", f"{at}.fc2")
            else:
                yield f"{block.name}/{layer.name}", f"{at}.0", f"{at}.1"
    yield from _torchvision_head(plan)


def torchvision_ssdlite(plan: SsdPlan) -> Names:
    """The backbone lies in two parts: the second begins within a block, behind its expansion, which the first heads
    read. A head is a sequence: the depthwise convolution with its batch norm, and the 1x1 convolution."""
    blocks = [block.name for block in plan.backbone.blocks]
    cut = blocks.index(plan.taps[0].partition("/")[0]) + 1  # modules before that block: the stem is one too
    for layer, *names in _torchvision_v3_body(plan.backbone):
        yield layer, *(_in_parts(name, cut) for name in names)  # type: ignore[misc]
    for i, extra in enumerate(plan.extras):
        for step, conv in enumerate(extra):
            yield f"extra_{i}/{conv.name}", f"backbone.extra.{i}.{step}.0", f"backbone.extra.{i}.{step}.1"
    for layer, head in (("boxes", "regression_head"), ("classes", "classification_head")):
        for i in range(len(plan.anchors)):
            at = f"head.{head}.module_list.{i}"
            yield f"{layer}_{i}/depthwise", f"{at}.0.0", f"{at}.0.1"
            yield f"{layer}_{i}", f"{at}.1", ""


def _in_parts(name: str, cut: int) -> str:
    """The name of a layer of a MobileNet V3 in a backbone whose second part begins in module ``cut``, behind the first
    layer of its block."""
    if not name:
        return name
    number, rest = name.removeprefix("features.").split(".", 1)
    module = int(number)
    if module < cut:
        return f"backbone.features.0.{module}.{rest}"
    if module > cut:
        return f"backbone.features.1.{module - cut}.{rest}"
    step, rest = rest.removeprefix("block.").split(".", 1)
    return f"backbone.features.0.{cut}.{rest}" if step == "0" else f"backbone.features.1.0.{step}.{rest}"


def torchvision_mnasnet(plan: Plan) -> Names:
    """The stem, the layers of the first block and the head lie beside the stages in one sequence."""
    first, *rest = plan.blocks
    sequence = [plan.stem.name, *(f"{first.name}/{layer.name}" for layer in first.layers)]
    for step, layer in enumerate(sequence):
        yield layer, f"layers.{3 * step}", f"layers.{3 * step + 1}"
    for block in rest:
        at = f"layers.{7 + block.stage}.{block.index}.layers"
        for step, conv in enumerate(block.layers):
            yield f"{block.name}/{conv.name}", f"{at}.{3 * step}", f"{at}.{3 * step + 1}"
    if plan.head:
        yield plan.head.name, f"layers.{7 + plan.stages}", f"layers.{8 + plan.stages}"
    yield "logits", "classifier.1", ""


def _torchvision_head(plan: Plan) -> Names:
    if isinstance(plan.head, Conv):
        at = f"features.{len(plan.blocks) + 1}"
        yield plan.head.name, f"{at}.0", f"{at}.1"


def _gate(block: Block, layer: SqueezeExcite, reduce: str, expand: str) -> Names:
    yield f"{block.name}/{layer.name}/reduce", reduce, ""
    yield f"{block.name}/{layer.name}/expand", expand, ""
