"""The optimizer of the starter model: Muon for the filters, Adam for the rest.

Muon (Jordan et al., 2024) replaces the momentum of a matrix by the nearest matrix with orthogonal rows or columns: all
directions move by as much. It needs about half of the epochs that SGD does. Here every filter is kept at one length,
which batch norm makes irrelevant, so that the learning rate is the angle by which a step may turn it. A depthwise
layer is a matrix for every channel, with one row each: of those only the length counts.
"""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field

import torch
from torch import Tensor

#: Of the quintic iteration: chosen by Muon's authors for few steps, after which singular values lie in 0.7..1.2.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonal(matrix: Tensor, steps: int = 4) -> Tensor:
    """The nearest matrix whose singular values are equal, roughly; by Newton and Schulz's iteration in bfloat16."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        square = x @ x.T
        x = A * x + (B * square + C * square @ square) @ x
    return (x.T if tall else x).float()


@dataclass
class Filters:
    """The weights of a convolution (oc, ic, kh, kw) and their momentum, views of larger vectors."""

    weight: Tensor
    momentum: Tensor

    @property
    def depthwise(self) -> bool:
        return self.weight.shape[1] == 1

    def normalise(self) -> None:
        """Give filters the length 1: all together where they are one matrix."""
        rows = self.weight.view(len(self.weight), -1)
        if self.depthwise:
            rows.div_(rows.norm(dim=1, keepdim=True))
        else:
            rows.mul_(len(rows) ** 0.5 / rows.norm())

    def step(self, gradient: Tensor, lr: float, momentum: float) -> None:
        self.momentum.mul_(momentum).add_(gradient)
        rows = (gradient + momentum * self.momentum).view(len(self.weight), -1)  # Nesterov's
        if self.depthwise:
            change = rows / (rows.norm(dim=1, keepdim=True) + 1e-12)
        else:
            change = orthogonal(rows)
            change.mul_(len(rows) ** 0.5 / (change.norm() + 1e-12))
        self.weight.view(len(rows), -1).sub_(change, alpha=lr)
        self.normalise()


@dataclass
class Muon:
    """Steps of all parameters, which are views of ``flat``.

    ``state`` (2, n) holds the momentum, and for Adam's parameters also the mean square.
    """

    flat: Tensor
    shapes: list[torch.Size]
    momentum: float
    betas: tuple[float, float] = (0.9, 0.99)
    steps: int = 0
    state: Tensor = field(init=False)
    filters: list[tuple[int, Filters]] = field(init=False, default_factory=list)  # (offset in flat, filters)

    def __post_init__(self) -> None:
        self.state = torch.zeros(2, len(self.flat))
        self.is_filter = torch.zeros(len(self.flat), dtype=torch.bool)
        offset = 0
        for shape in self.shapes:
            span = slice(offset, offset + shape.numel())
            if len(shape) == 4:
                entry = Filters(self.flat[span].view(shape), self.state[0, span].view(shape))
                entry.normalise()
                self.filters.append((offset, entry))
                self.is_filter[span] = True
            offset = span.stop
        self.filters.sort(key=lambda entry: -entry[1].weight.numel())  # the long ones first, for the pool
        self.rest = (~self.is_filter).nonzero().squeeze(1)

    def step(self, gradient: Tensor, lr: float, lr_rest: float, pool: Executor) -> None:
        self.steps += 1
        tasks = [
            pool.submit(
                entry.step,
                gradient[offset : offset + entry.weight.numel()].view_as(entry.weight),
                lr,
                self.momentum,
            )
            for offset, entry in self.filters
        ]
        g, (first, second) = gradient[self.rest], self.betas
        mean = torch.lerp(self.state[0, self.rest], g, 1 - first)
        square = torch.lerp(self.state[1, self.rest], g * g, 1 - second)
        for task in tasks:
            task.result()
        self.state[0, self.rest], self.state[1, self.rest] = mean, square
        denominator = (square / (1 - second**self.steps)).sqrt_() + 1e-8
        self.flat[self.rest] -= lr_rest * (mean / (1 - first**self.steps)) / denominator
