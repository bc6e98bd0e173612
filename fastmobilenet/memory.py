"""Where each tensor lies in the arena: tensors that are not needed at the same time share memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

#: floats; a cache line
LINE = 16
#: Offsets of different tensors should differ modulo 4 KB, or loads wait for stores to equal addresses.
PAGE = 1024


class Interval(NamedTuple):
    """A tensor of ``size`` floats that is written in step ``first`` and read last in step ``last``."""

    name: str
    size: int
    first: int
    last: int


def plan_memory(tensors: Iterable[Interval]) -> tuple[dict[str, int], int]:
    """Offsets in floats and the size of the arena. Largest first, each at the lowest place that is free during
    its whole life (greedy by size: Pisarchyk and Lee, 2020, section 4.3)."""
    placed: list[tuple[int, int, Interval]] = []
    offsets: dict[str, int] = {}
    total = 0
    for count, tensor in enumerate(sorted(tensors, key=lambda t: (-t.size, t.first))):
        skew = LINE * (2 * count + 1) % PAGE if tensor.size > PAGE else 0
        offset = 0
        for begin, end, other in sorted((p for p in placed), key=lambda p: p[0]):
            if other.last < tensor.first or tensor.last < other.first:
                continue
            if _aligned(offset, skew) + tensor.size <= begin:
                break
            offset = max(offset, end)
        offset = _aligned(offset, skew)
        end = offset + -(-tensor.size // LINE) * LINE
        placed.append((offset, end, tensor))
        offsets[tensor.name] = offset
        total = max(total, end)
    return offsets, total


def _aligned(offset: int, skew: int) -> int:
    """The first place from ``offset`` on that is a cache line and lies ``skew`` floats into a page."""
    offset = -(-offset // LINE) * LINE
    return offset + (skew - offset) % PAGE if skew else offset
