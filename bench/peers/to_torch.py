"""Graph -> torch.nn.Module (NCHW), made of the layers a PyTorch author would write."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from fastmobilenet.graph import Activation, Graph, Node, Shape, infer_shapes, resolve_padding

from .channels import shuffle_of, slice_of


def export(graph: Graph, size: tuple[int, int]) -> nn.Module:
    """An eval-mode module for pictures of `size` (height, width): (n, c, h, w) -> (n, c) or (n, c, h, w).

    Raises ValueError for an op without a form in PyTorch here.
    """
    return Network(graph, infer_shapes(graph, 1, *size)).eval()


class Network(nn.Module):
    """The nodes in their order, a layer and an activation for each."""

    def __init__(self, graph: Graph, shapes: dict[str, Shape]) -> None:
        super().__init__()
        self.graph = graph
        self.layers = nn.ModuleList(_layer(node, [shapes[s] for s in node.inputs]) for node in graph.nodes)
        apart = [None if node.op == "activation" else node.activation for node in graph.nodes]
        self.acts = nn.ModuleList(nn.Identity() if a is None else _activation(a) for a in apart)

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {}
        for node, layer, act in zip(self.graph.nodes, self.layers, self.acts, strict=True):
            sources = [values[s] for s in node.inputs] if node.inputs else [x]
            values[node.name] = act(layer(*sources))
        return values[self.graph.output]


class Function(nn.Module):
    """A layer without parameters."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *xs: Tensor) -> Tensor:
        return self.function(*xs)


class Normalize(nn.Module):
    """The input's own mean and std."""

    def __init__(self, node: Node) -> None:
        super().__init__()
        scale = 1 / np.asarray(node.attrs.get("std", 1.0))
        self.scale = nn.Buffer(_values(scale).reshape(-1, 1, 1))
        self.shift = nn.Buffer(_values(-scale * node.attrs.get("mean", 0.0)).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def _layer(node: Node, sources: list[Shape]) -> nn.Module:
    """`sources`: the shapes of the inputs. A vector may be (n, c) or (n, c, 1, 1)."""
    if node.op in ("conv2d", "dense") and len(node.inputs) > 1:
        raise ValueError(f"node {node.name!r}: export the graph before fuse_residual has run")
    two: dict[str, Callable[..., Tensor]] = {"add": torch.add, "mul": torch.mul}
    if node.op == "input":
        return Normalize(node) if node.attrs else nn.Identity()
    if node.op == "batch_norm":
        norm = nn.BatchNorm2d(sources[0][3], eps=float(node.attrs["epsilon"]))
        _copy(norm.weight, node.params["gamma"])
        _copy(norm.bias, node.params["beta"])
        _copy(norm.running_mean, node.params["mean"])
        _copy(norm.running_var, node.params["variance"])
        return norm
    if node.op == "activation":
        assert node.activation is not None
        return _activation(node.activation)
    if node.op in two:
        return Function(lambda a, b: two[node.op](*_alike(a, b)))
    if node.op == "concat":
        return Function(lambda *xs: torch.cat(_alike(*xs), 1))
    if node.op == "global_avg_pool":
        return nn.AdaptiveAvgPool2d(1)
    if node.op == "adaptive_avg_pool2d":
        return nn.AdaptiveAvgPool2d(node.attrs["size"])
    if node.op == "softmax":
        return nn.Softmax(dim=1)
    if node.op not in LAYERS:
        raise ValueError(f"node {node.name!r}: no PyTorch form for {node.op!r}")
    return LAYERS[node.op](node, sources[0])


def _alike(*xs: Tensor) -> list[Tensor]:
    """All with the rank of the largest: a vector behind a linear layer has two axes."""
    rank = max(x.dim() for x in xs)
    return [x if x.dim() == rank else x[:, :, None, None] for x in xs]


def _dense(node: Node, source: Shape) -> nn.Module:
    _, h, w, c = source
    weight = node.params["weight"]
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in node.params)
    _copy(linear.weight, weight.reshape(-1, h, w, c).transpose(0, 3, 1, 2).reshape(weight.shape))
    if "bias" in node.params:
        _copy(linear.bias, node.params["bias"])
    return nn.Sequential(nn.Flatten(), linear)


def _conv2d(node: Node, source: Shape) -> nn.Module:
    _, h, w, c = source
    weight = node.params["weight"]
    top, bottom, left, right = resolve_padding(node, h, w)
    symmetric = top == bottom and left == right
    conv = nn.Conv2d(
        c,
        weight.shape[0],
        weight.shape[1:3],
        stride=tuple(node.attrs["stride"]),
        padding=(top, left) if symmetric else 0,
        dilation=tuple(node.attrs.get("dilation", (1, 1))),
        groups=node.attrs.get("groups", 1),
        bias="bias" in node.params,
    )
    _copy(conv.weight, weight.transpose(0, 3, 1, 2))
    if "bias" in node.params:
        _copy(conv.bias, node.params["bias"])
    return conv if symmetric else nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), conv)


def _pool(node: Node, source: Shape) -> nn.Module:
    """PyTorch's own pools where their padding is the node's, otherwise one behind a padding layer."""
    _, h, w, _ = source
    kernel, stride, padding = node.attrs["kernel"], node.attrs["stride"], node.attrs["padding"]
    mean, ceil = node.op == "avg_pool2d", node.attrs.get("ceil", False)
    if isinstance(padding, str):
        padding, ceil = resolve_padding(node, h, w), False
    top, bottom, left, right = padding
    before = (top, left)
    if before == (bottom, right) and 2 * top <= kernel[0] and 2 * left <= kernel[1]:
        if mean:
            return nn.AvgPool2d(kernel, stride, before, ceil, node.attrs.get("count_padding", False))
        return nn.MaxPool2d(kernel, stride, before, ceil_mode=ceil)
    pad = nn.ConstantPad2d((left, right, top, bottom), 0.0 if mean else -torch.inf)
    if not mean:
        return nn.Sequential(pad, nn.MaxPool2d(kernel, stride, ceil_mode=ceil))
    if ceil or not node.attrs.get("count_padding", False):
        raise ValueError(f"node {node.name!r}: PyTorch's mean cannot leave out a padding of {padding} pixels")
    return nn.Sequential(pad, nn.AvgPool2d(kernel, stride))


def _gather_channels(node: Node, source: Shape) -> nn.Module:
    run, groups = slice_of(node), shuffle_of(node, source[3])
    if run is not None:
        first, end = run
        return Function(lambda x: x[:, first:end])
    if groups is not None:
        return nn.ChannelShuffle(groups)
    index = torch.tensor(node.attrs["index"])
    return Function(lambda *xs: torch.cat(_alike(*xs), 1).index_select(1, index))


def _lrn(node: Node, source: Shape) -> nn.Module:
    size = node.attrs["size"]
    if size % 2 == 0:
        raise ValueError(f"node {node.name!r}: an even window of {size} channels lies elsewhere in PyTorch")
    return nn.LocalResponseNorm(size, node.attrs["alpha"], node.attrs["beta"], node.attrs["bias"])


LAYERS: dict[str, Callable[[Node, Shape], nn.Module]] = {
    "conv2d": _conv2d,
    "dense": _dense,
    "avg_pool2d": _pool,
    "max_pool2d": _pool,
    "gather_channels": _gather_channels,
    "lrn": _lrn,
}


def _activation(a: Activation) -> nn.Module:
    named: dict[str, Callable[[], nn.Module]] = {
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "hard_swish": nn.Hardswish,
        "hard_sigmoid": nn.Hardsigmoid,
        "sigmoid": nn.Sigmoid,
        "swish": nn.SiLU,
    }
    if str(a) in named:
        return named[str(a)]()
    if a.kind == "clamp":
        return nn.Hardtanh(float(a.lo), float(a.hi))

    def gate(x: Tensor) -> Tensor:
        return (x * a.alpha + a.beta).clamp(0.0, 1.0)

    return Function(gate if a.kind == "hard_sigmoid" else lambda x: x * gate(x))


def _values(source: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(source, np.float32))


def _copy(target: Tensor | None, source: np.ndarray) -> None:
    assert target is not None
    with torch.no_grad():
        target.copy_(_values(source))
