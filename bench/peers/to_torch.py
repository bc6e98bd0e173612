"""Graph -> torch.nn.Module (NCHW), made of the layers a PyTorch author would write."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fastmobilenet.graph import Activation, Graph, Node, Shape, infer_shapes, resolve_padding

if TYPE_CHECKING:
    import torch


def export(graph: Graph, size: tuple[int, int]) -> torch.nn.Module:
    """An eval-mode module for pictures of `size` (height, width): (n, c, h, w) -> (n, c) or (n, c, h, w).

    Raises ValueError for an op without a form in PyTorch here.
    """
    import torch

    shapes = infer_shapes(graph, 1, *size)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList(
                torch.nn.Identity() if node.op in ("input", "add") else _layer(node, shapes) for node in graph.nodes
            )
            self.acts = torch.nn.ModuleList(
                torch.nn.Identity() if n.activation is None or n.op == "activation" else _activation(n)
                for n in graph.nodes
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            values: dict[str, torch.Tensor] = {}
            for node, layer, act in zip(graph.nodes, self.layers, self.acts, strict=True):
                if node.op == "input":
                    values[node.name] = x
                elif node.op == "add":
                    values[node.name] = act(values[node.inputs[0]] + values[node.inputs[1]])
                else:
                    values[node.name] = act(layer(values[node.inputs[0]]))
            return values[graph.output]

    return Network().eval()


def _layer(node: Node, shapes: dict[str, Shape]) -> torch.nn.Module:
    import torch

    if len(node.inputs) > 1:
        raise ValueError(f"node {node.name!r}: export the graph before fuse_residual has run")
    _, h, w, c = shapes[node.inputs[0]]
    if node.op == "conv2d":
        return _conv2d(node, h, w, c)
    if node.op == "batch_norm":
        norm = torch.nn.BatchNorm2d(c, eps=float(node.attrs["epsilon"]))
        _copy(norm.weight, node.params["gamma"])
        _copy(norm.bias, node.params["beta"])
        _copy(norm.running_mean, node.params["mean"])
        _copy(norm.running_var, node.params["variance"])
        return norm
    if node.op == "activation":
        return _activation(node)
    if node.op == "global_avg_pool":
        return torch.nn.AdaptiveAvgPool2d(1)
    if node.op == "softmax":
        return torch.nn.Softmax(dim=1)
    if node.op == "dense":
        weight = node.params["weight"]
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias="bias" in node.params)
        _copy(linear.weight, weight.reshape(-1, h, w, c).transpose(0, 3, 1, 2).reshape(weight.shape))
        if "bias" in node.params:
            _copy(linear.bias, node.params["bias"])
        return torch.nn.Sequential(torch.nn.Flatten(), linear)
    raise ValueError(f"node {node.name!r}: no PyTorch form for {node.op!r}")


def _conv2d(node: Node, h: int, w: int, c: int) -> torch.nn.Module:
    import torch

    weight = node.params["weight"]
    top, bottom, left, right = resolve_padding(node, h, w)
    symmetric = top == bottom and left == right
    conv = torch.nn.Conv2d(
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
    return conv if symmetric else torch.nn.Sequential(torch.nn.ZeroPad2d((left, right, top, bottom)), conv)


def _activation(node: Node) -> torch.nn.Module:
    import torch

    activation: Activation | None = node.activation
    named = {"relu": torch.nn.ReLU, "relu6": torch.nn.ReLU6}
    if str(activation) in named:
        return named[str(activation)]()
    if activation is not None and activation.kind == "clamp":
        return torch.nn.Hardtanh(activation.lo, activation.hi)
    raise ValueError(f"node {node.name!r}: no PyTorch form for activation {activation}")


def _copy(target: torch.Tensor | None, source: np.ndarray) -> None:
    import torch

    assert target is not None
    with torch.no_grad():
        target.copy_(torch.from_numpy(np.ascontiguousarray(source, np.float32)))
