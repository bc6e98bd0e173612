"""The names that torchvision and timm give to the layers of SqueezeNet, ShuffleNet V2, AlexNet, VGG and GoogLeNet.

Each function takes what ``plan()`` of the network's module gives. The last layer that it names is the one that makes
the classes.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..models import alexnet, googlenet, shufflenet_v2, squeezenet, vgg

#: (layer of the graph, the library's convolution or dense layer, its batch norm or "")
Names = Iterator[tuple[str, str, str]]


def torchvision_squeezenet(plan: squeezenet.Plan) -> Names:
    yield "conv1", "features.0", ""
    index = 3
    for number, _, pooled in plan.fires():
        for layer in ("squeeze", "expand1x1", "expand3x3"):
            yield f"fire{number}/{layer}", f"features.{index}.{layer}", ""
        index += 2 if pooled else 1
    yield "conv10", "classifier.1", ""


def torchvision_shufflenet_v2(plan: shufflenet_v2.Plan) -> Names:
    yield "conv1", "conv1.0", "conv1.1"
    for block in plan.blocks():
        at = f"stage{block.stage + 2}.{block.index}"
        if block.stride == 2:
            yield f"{block.name}/left_depthwise", f"{at}.branch1.0", f"{at}.branch1.1"
            yield f"{block.name}/left_pointwise", f"{at}.branch1.2", f"{at}.branch1.3"
        yield f"{block.name}/reduce", f"{at}.branch2.0", f"{at}.branch2.1"
        yield f"{block.name}/depthwise", f"{at}.branch2.3", f"{at}.branch2.4"
        yield f"{block.name}/expand", f"{at}.branch2.5", f"{at}.branch2.6"
    yield "head", "conv5.0", "conv5.1"
    yield "logits", "fc", ""


def torchvision_alexnet(plan: alexnet.Plan) -> Names:
    index = 0
    for number in range(1, len(plan.convs) + 1):
        yield f"conv{number}", f"features.{index}", ""
        index += 3 if number in alexnet.POOL_AFTER else 2
    yield "fc6", "classifier.1", ""
    yield "fc7", "classifier.4", ""
    yield "logits", "classifier.6", ""


def torchvision_vgg(plan: vgg.Plan) -> Names:
    yield from _vgg_features(plan)
    yield "fc6", "classifier.0", ""
    yield "fc7", "classifier.3", ""
    yield "logits", "classifier.6", ""


def timm_vgg(plan: vgg.Plan) -> Names:
    """Here the dense layers are convolutions; they compute the same for pictures of up to 255 pixels a side."""
    yield from _vgg_features(plan)
    yield "fc6", "pre_logits.fc1", ""
    yield "fc7", "pre_logits.fc2", ""
    yield "logits", "head.fc", ""


def _vgg_features(plan: vgg.Plan) -> Names:
    index, step = 0, 3 if plan.batch_norm else 2
    for stage, (_, repeats) in enumerate(plan.stages, 1):
        for i in range(1, repeats + 1):
            yield f"conv{stage}_{i}", f"features.{index}", f"features.{index + 1}" if plan.batch_norm else ""
            index += step
        index += 1


def torchvision_googlenet(plan: googlenet.Plan) -> Names:
    for name in ("conv1", "conv2", "conv3"):
        yield name, f"{name}.conv", f"{name}.bn"
    branches = {
        "1x1": "branch1",
        "3x3_reduce": "branch2.0",
        "3x3": "branch2.1",
        "5x5_reduce": "branch3.0",
        "5x5": "branch3.1",
        "pool_proj": "branch4.1",
    }
    for module in plan.modules():
        for layer, branch in branches.items():
            at = f"inception{module.name}.{branch}"
            yield f"inception_{module.name}/{layer}", f"{at}.conv", f"{at}.bn"
    yield "logits", "fc", ""
