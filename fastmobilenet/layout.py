"""Where tensors lie: their padding, which of them share memory because one is a part of the other, and the arena."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .channel_order import Wiring
from .fusion import Step
from .graph import Graph, Node, Shape, is_depthwise, kernel_size, resolve_padding
from .memory import Interval, plan_memory
from .passes import BLOCK, quantized
from .quantization import Quant


@dataclass
class Layout:
    """How a tensor lies in the arena: see Tensor in csrc/runtime/ops.h."""

    shape: Shape
    image: bool
    quant: Quant | None = None  # of bytes
    pad_left: int = 0
    pad_right: int = 0
    pad_top: int = 0  # of bytes only
    pad_bottom: int = 0

    @property
    def blocks(self) -> int:
        return -(-self.shape[3] // BLOCK)

    @property
    def block_floats(self) -> int:
        """Of one block, or of an image, of floats."""
        _, _, _, c = self.shape
        return self._pixels * (c if self.image else BLOCK)

    @property
    def _pixels(self) -> int:
        _, h, w, _ = self.shape
        return (self.pad_top + h + self.pad_bottom) * (self.pad_left + w + self.pad_right)

    @property
    def floats(self) -> int:
        if self.quant is not None:
            return -(-self._pixels * (4 if self.image else BLOCK * self.blocks) // 4)
        return self.block_floats * (1 if self.image else self.blocks)


class Place(NamedTuple):
    """A tensor that lies inside of another one's memory, ``block`` blocks from its start."""

    root: str
    block: int = 0


class Arena(NamedTuple):
    layouts: dict[str, Layout]
    offsets: dict[str, int]  # floats, of every tensor between steps
    floats: int


def plan_arena(graph: Graph, shapes: Mapping[str, Shape], steps: Sequence[Step], wiring: Wiring) -> Arena:
    """The place of every tensor that a step makes."""
    layouts = choose_layouts(graph, shapes)
    first = {step.output: i for i, step in enumerate(steps)}
    last = dict(first)
    for i, step in enumerate(steps):
        for source in (s for node in step.nodes for s in wiring.sources(node)):
            if source in last:  # and not a tensor that lies inside of the step
                last[source] = i
    last[graph.output] = len(steps)
    places = _share(graph, layouts, steps, last)
    members: dict[str, list[str]] = {}
    for name in first:
        members.setdefault(places[name].root, []).append(name)
    # One row pitch for all of them, and for all that a convolution reads at once.
    for names in _together([*members.values(), *({r.tensor: 0 for r in runs} for runs in wiring.runs.values())]):
        for side in ("pad_left", "pad_right", "pad_top", "pad_bottom"):
            most = max(getattr(layouts[n], side) for n in names)
            for name in names:
                setattr(layouts[name], side, most)
    offsets, total = plan_memory(
        Interval(root, layouts[root].floats, min(first[n] for n in names), max(last[n] for n in names))
        for root, names in members.items()
    )
    placed = {n: offsets[places[n].root] + places[n].block * layouts[n].block_floats for n in first}
    return Arena(layouts, placed, total)


def _together(sets: Iterable[Iterable[str]]) -> list[list[str]]:
    """The sets, those that have a name in common made one."""
    of: dict[str, list[str]] = {}
    for names in sets:
        joined: list[str] = []
        for one in {id(found): found for found in (of.get(n, [n]) for n in names)}.values():
            joined += one
        for name in joined:
            of[name] = joined
    return list({id(found): found for found in of.values()}.values())


def _share(
    graph: Graph, layouts: Mapping[str, Layout], steps: Sequence[Step], last: Mapping[str, int]
) -> dict[str, Place]:
    """The tensors that need no memory of their own:

    - an input of a concat whose channels begin and end at a block is made where the concat wants it,
    - an element-wise op that is the last reader of its first input writes over it.
    """
    places = {step.output: Place(step.output) for step in steps}
    roots: set[str] = set()  # tensors that others lie in
    for step in steps:
        node = step.nodes[-1]
        if node.op != "concat" or quantized(node):
            continue
        channel = 0
        for source in node.inputs:
            c = layouts[source].shape[3]
            whole = channel % BLOCK == 0 and (c % BLOCK == 0 or source == node.inputs[-1])
            free = places[source].root == source and source not in roots and not layouts[source].image
            if whole and free and node.inputs.count(source) == 1 and graph[source].op != "input":
                places[source] = Place(node.name, channel // BLOCK)
                roots.add(node.name)
            channel += c
    for i, step in enumerate(steps):
        node = step.nodes[-1]
        if node.op not in ("activation", "add", "mul") or node.inputs.count(node.inputs[0]) > 1:
            continue
        if len(step.nodes) > 1:
            continue  # its first nodes would write over what the last one reads
        source = node.inputs[0]
        alone = places[source].root == source and source not in roots
        free = places[node.name].root == node.name and node.name not in roots
        if alone and free and last[source] == i and not layouts[source].image and source != graph.output:
            places[node.name] = Place(source)
            roots.add(source)
            # What lies over `source` from here on is this tensor: a later op may not write over `source` itself.
    return _follow(places)


def _follow(places: dict[str, Place]) -> dict[str, Place]:
    """Roots of roots: a concat inside of a concat."""
    result = {}
    for name, place in places.items():
        while places[place.root].root != place.root:
            outer = places[place.root]
            place = Place(outer.root, outer.block + place.block)
        result[name] = place
    return result


def choose_layouts(graph: Graph, shapes: Mapping[str, Shape]) -> dict[str, Layout]:
    """Blocks of 16 channels everywhere, but for a picture of few channels that only convolutions read; and for
    each tensor the largest padding to the left and right that a reader wants to find there."""
    readers = graph.consumers()
    layouts = {}
    for node in graph.nodes:
        image = node.op == "input" and bool(readers[node.name]) and node.name != graph.output
        image = image and all(_reads_image(reader, node.name) for reader in readers[node.name])
        quant = node.attrs.get("quant")
        image = image and (quant is None or shapes[node.name][3] <= 4)
        layouts[node.name] = Layout(shapes[node.name], image, quant)
    for node in graph.nodes:
        if node.op != "conv2d":
            continue
        source = layouts[node.inputs[0]]
        _, h, w, _ = source.shape
        _, oh, ow, _ = shapes[node.name]
        top, _, left, _ = resolve_padding(node, h, w)
        spans = [(k - 1) * d for k, d in zip(kernel_size(node), node.attrs.get("dilation", (1, 1)), strict=True)]
        # The padding that is really read: stride may leave the last columns and rows out.
        right = (ow - 1) * node.attrs["stride"][1] - left + spans[1] - (w - 1)
        source.pad_left = max(source.pad_left, left)
        source.pad_right = max(source.pad_right, right, 0)
        if source.quant is not None:
            bottom = (oh - 1) * node.attrs["stride"][0] - top + spans[0] - (h - 1)
            source.pad_top = max(source.pad_top, top)
            source.pad_bottom = max(source.pad_bottom, bottom, 0)
    return layouts


def _reads_image(reader: Node, name: str) -> bool:
    dense = reader.op == "conv2d" and not is_depthwise(reader)
    return dense and reader.inputs[0] == name and reader.inputs.count(name) == 1
