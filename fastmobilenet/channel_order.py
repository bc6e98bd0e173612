"""Channels that lie in another order than the graph says, so that splits, concatenations and shuffles copy nothing.

A 1x1 convolution takes its sum over channels in any order and from any tensors (segments, csrc/kernels/gemm.h). So
where all readers of a ``gather_channels`` are such convolutions, they read the tensors it gathers from, and it is not
made: each unit of a ShuffleNet V2 then reads half of its channels from the unit before, a quarter from the one before
that, and so on. And a convolution makes its channels in any order too, by the order of its weights: those come first
that the next reader wants, so that every reader finds its channels in runs, which begin at a block where there are
lanes to spare (58 channels take 64).

Both orders belong to the packed weights, and nothing else sees them: :func:`pack_order` and :func:`plain_order` go
there and back, and whoever reads a whole tensor finds the channels where :class:`Wiring` says.

The bits of a plain sum depend on its order, and that only on what comes before a layer, not on who else reads it: a
network that was saved as a part of another one gives the bits of that. Pairs of inner products (inner.py) are made of
channels that lie together, which may change their last bits there.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .graph import Graph, Node, infer_shapes, is_depthwise
from .passes import BLOCK, quantized, reads_one_pixel
from .strassen import is_pointwise


class Order(NamedTuple):
    """Of the weights of a convolution. ``out``: the channel that each lane of its output holds, -1 for none; None: each
    its own. ``into``: its input channels in the order in which they are summed; None: as they are, from one tensor."""

    out: tuple[int, ...] | None = None
    into: tuple[int, ...] | None = None


PLAIN = Order()


@dataclass(frozen=True)
class Run:
    """Lanes of a tensor that follow each other."""

    tensor: str
    lane: int
    count: int


@dataclass(frozen=True)
class Wiring:
    """What is lowered. ``graph``: as it was, with copies where a reader needs a tensor in its plain order; ``absent``:
    its nodes that are not made; ``runs``: convolution -> where its input channels lie; ``lanes``: tensor -> the lane of
    each channel, if not its own; ``width``: tensor -> lanes in all, where they are more than channels."""

    graph: Graph
    absent: frozenset[str] = frozenset()
    runs: Mapping[str, tuple[Run, ...]] = field(default_factory=dict)
    lanes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    width: Mapping[str, int] = field(default_factory=dict)

    def sources(self, node: Node) -> tuple[str, ...]:
        """The tensors that the node reads."""
        runs = self.runs.get(node.name)
        if runs is None:
            return node.inputs
        return (*dict.fromkeys(run.tensor for run in runs), *node.inputs[1:])

    @property
    def pieces(self) -> dict[str, tuple[int, ...]]:
        """Convolution -> how many of its input channels lie together in a block, piece by piece."""
        return {name: tuple(n for run in runs for n in _in_blocks(run)) for name, runs in self.runs.items()}

    def index(self, node: Node, channels: Mapping[str, int]) -> list[int]:
        """Of a concat or gather_channels: lanes of its inputs, counted through all of them, for each of its own; -1 for
        one without a channel."""
        lanes: list[int] = []
        first = 0
        for name in node.inputs:
            c = channels[name]
            lanes += [first + lane for lane in self.lanes.get(name, range(c))]
            first += self.width.get(name, c)
        if node.op == "gather_channels":
            lanes = [lanes[i] for i in node.attrs["index"]]
        order = self.lanes.get(node.name)
        if order is None:
            return lanes
        result = [-1] * self.width[node.name]
        for lane, source in zip(order, lanes, strict=True):
            result[lane] = source
        return result


def _in_blocks(run: Run) -> list[int]:
    ends = [*range((run.lane // BLOCK + 1) * BLOCK, run.lane + run.count, BLOCK), run.lane + run.count]
    return [end - begin for begin, end in zip([run.lane, *ends], ends, strict=False)]


def choose_orders(graph: Graph, fixed: Mapping[str, Order]) -> dict[str, Order]:
    """Convolution -> its order, for all of ``graph`` that have one. ``fixed``: those whose weights are packed."""
    copies = _Copies(graph)
    if not copies.origins:
        return {name: order for name, order in fixed.items() if order != PLAIN}
    into = {name: order.into for name, order in fixed.items()}
    for node in graph.nodes:
        found = copies.summed(node) if node.name not in fixed else None
        if found is not None:
            into[node.name] = _sorted_by(found, lambda tensor, channel: (copies.position[tensor], channel))
    out = {name: order.out for name, order in fixed.items()}
    depthwise = [n.name for n in graph.nodes if n.name not in fixed and copies.filters_copy(n, into)]
    graph = _with_copies_before(graph, {*depthwise, *(name for name, lanes in out.items() if lanes is not None)})
    copies = _Copies(graph)
    for name, wanted in _readers_of_channels(graph, copies, into).items():
        if name not in out and copies.may_order(graph[name]) and not is_depthwise(graph[name]):
            out[name] = order_lanes(wanted)
    lanes = {name: _lanes(order) for name, order in out.items() if order is not None}
    for name in depthwise:
        found = copies.origins[graph[name].inputs[0]]
        groups: dict[str, list[tuple[int, int]]] = {}
        for channel, (tensor, i) in enumerate(found):
            groups.setdefault(tensor, []).append((lanes[tensor][i] if tensor in lanes else i, channel))
        out[name] = _order_copied(groups.values())
    orders = {name: Order(out.get(name), into.get(name)) for name in {**out, **into}}
    return {name: order for name, order in orders.items() if order != PLAIN}


def _sorted_by(channels: list[tuple[str, int]], key: Callable[[str, int], object]) -> tuple[int, ...]:
    """The order of the channels by ``key(tensor, channel of it)``."""
    keys = [key(*channel) for channel in channels]
    return tuple(sorted(range(len(keys)), key=keys.__getitem__))  # type: ignore[arg-type]


def _with_copies_before(graph: Graph, names: Container[str]) -> Graph:
    """With a copy of its input, in its own order, for each depthwise convolution of ``names``."""
    taken = {n.name for n in graph.nodes}
    channels = _Copies(graph).channels
    nodes: list[Node] = []
    for node in graph.nodes:
        if node.name in names and is_depthwise(node):
            copy = _unused(f"{node.name}/input", taken)
            index = tuple(range(channels[node.inputs[0]]))
            nodes.append(Node(copy, "gather_channels", node.inputs[:1], {"index": index}))
            node = replace(node, inputs=(copy,))
        nodes.append(node)
    return graph.replace(nodes=tuple(nodes))


def _unused(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _readers_of_channels(
    graph: Graph, copies: _Copies, into: Mapping[str, tuple[int, ...] | None]
) -> dict[str, list[tuple[int, ...]]]:
    """Tensor that is read in part -> for each of its channels those who read it, by their place in the graph."""
    absent = copies.absent({name for name, order in into.items() if order is not None})
    found: dict[str, list[tuple[int, ...]]] = {}
    for at, node in enumerate(graph.nodes):
        if into.get(node.name) is not None and node.inputs[0] in copies.origins:
            channels: Iterable[tuple[str, int]] = copies.origins[node.inputs[0]]
        elif node.name in copies.origins and node.name not in absent:
            channels = copies.origins[node.name]
        else:
            continue
        for name, channel in dict.fromkeys(channels):
            wanted = found.setdefault(name, [()] * copies.channels[name])
            wanted[channel] = (*wanted[channel], at)
    return found


def order_lanes(wanted: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The channels with the same readers together, in the order of the readers; a group that would cross one more
    border between blocks than it must begins at a block, if the last block has lanes left. Half a block stays half.
    None if that is the order they have."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for channel, who in enumerate(wanted):
        groups.setdefault(who, []).append(channel)
    unit = BLOCK // 2 if 0 < len(wanted) % BLOCK <= BLOCK // 2 else BLOCK
    return _aligned([groups[who] for who in sorted(groups, key=lambda who: (not who, who))], unit)


def _order_copied(groups: Iterable[list[tuple[int, int]]]) -> tuple[int, ...] | None:
    """For a copy of channels, given as (lane, channel) tensor by tensor: what lies together is copied together, best in
    whole blocks."""
    together = sorted((sorted(group) for group in groups), key=len, reverse=True)
    return _aligned([[channel for _, channel in group] for group in together], BLOCK)


def _aligned(groups: list[list[int]], unit: int) -> tuple[int, ...] | None:
    """The groups one behind the other, in no more lanes than fill the last unit."""
    c = sum(map(len, groups))
    spare = -c % unit
    lanes: list[int] = []
    for group in groups:
        gap = -len(lanes) % BLOCK
        pieces = -(-(len(lanes) % BLOCK + len(group)) // BLOCK)
        if gap <= spare and pieces > -(-len(group) // BLOCK):
            lanes += [-1] * gap
            spare -= gap
        lanes += group
    return None if lanes == list(range(c)) else tuple(lanes)


def pack_order(weight: np.ndarray, bias: np.ndarray | None, order: Order) -> tuple[np.ndarray, np.ndarray | None]:
    """(oc, kh, kw, ic) and (oc,) in the order in which they are packed, with zeros in lanes without a channel."""
    if order.into is not None:
        weight = weight[..., list(order.into)]
    if order.out is not None:
        lanes = np.array(order.out)
        weight = np.where(lanes[:, None, None, None] >= 0, weight[lanes], np.float32(0))
        bias = None if bias is None else np.where(lanes >= 0, bias[lanes], np.float32(0))
    return np.ascontiguousarray(weight), bias


def plain_order(weight: np.ndarray, bias: np.ndarray, order: Order) -> tuple[np.ndarray, np.ndarray]:
    """The inverse."""
    if order.out is not None:
        lanes = _lanes(order.out)
        weight, bias = weight[list(lanes)], bias[list(lanes)]
    if order.into is not None:
        plain = np.empty_like(weight)
        plain[..., list(order.into)] = weight
        weight = plain
    return weight, bias


def _lanes(out: tuple[int, ...]) -> tuple[int, ...]:
    lane = {channel: i for i, channel in enumerate(out) if channel >= 0}
    return tuple(lane[channel] for channel in range(len(lane)))


def wire(graph: Graph, orders: Mapping[str, Order]) -> Wiring:
    """How the graph is lowered with these orders of its weights."""
    if not orders:
        return Wiring(graph)
    width = {name: len(order.out) for name, order in orders.items() if order.out is not None}
    lanes = {name: _lanes(order.out) for name, order in orders.items() if order.out is not None}
    graph = _with_copies_before(_with_plain_copies(graph, lanes), lanes)
    for node in graph.nodes:
        if node.name in lanes and is_depthwise(node):
            lanes[node.inputs[0]] = lanes[node.name]
            width[node.inputs[0]] = width[node.name]
    copies = _Copies(graph)
    in_runs = {n.name for n in graph.nodes if n.name in orders and orders[n.name].into is not None}
    in_runs |= {n.name for n in graph.nodes if n.inputs and n.inputs[0] in lanes and copies.reads_runs(n)}
    absent = copies.absent(in_runs)
    runs = {}
    for node in graph.nodes:
        if node.name in in_runs:
            source = node.inputs[0]
            channels = copies.origins.get(source, [(source, i) for i in range(copies.channels[source])])
            into = orders.get(node.name, PLAIN).into
            found = _runs((channels[i] for i in into) if into is not None else channels, lanes)
            if found != (Run(source, 0, width.get(source, copies.channels[source])),):  # a tensor as it lies
                runs[node.name] = found
    through = copies.through(absent, lanes)
    graph = graph.replace(nodes=tuple(through.get(n.name, n) for n in graph.nodes))
    return Wiring(graph, absent, runs, lanes, width)


def _runs(channels: Iterable[tuple[str, int]], lanes: Mapping[str, tuple[int, ...]]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for name, channel in channels:
        lane = lanes[name][channel] if name in lanes else channel
        last = runs[-1] if runs else None
        if last is not None and last.tensor == name and last.lane + last.count == lane:
            runs[-1] = replace(last, count=last.count + 1)
        else:
            runs.append(Run(name, lane, 1))
    return tuple(runs)


def _with_plain_copies(graph: Graph, lanes: Mapping[str, object]) -> Graph:
    """With a copy in plain order for those readers of a tensor, and the output, that cannot read it in another. There
    are such readers only in a part of the network that the orders were chosen for."""
    copies = _Copies(graph)
    names = {n.name for n in graph.nodes}
    renamed: dict[str, str] = {}
    nodes: list[Node] = []
    readers = graph.consumers()
    for node in graph.nodes:
        if not copies.reads_lanes(node):
            node = replace(node, inputs=tuple(renamed.get(s, s) for s in node.inputs))
        elif len(node.inputs) > 1 and node.op == "conv2d":
            node = replace(node, inputs=(node.inputs[0], *(renamed.get(s, s) for s in node.inputs[1:])))
        nodes.append(node)
        if node.name not in lanes:
            continue
        others = (r for r in readers[node.name] if not copies.reads_lanes(r) or node.name in _added(r))
        if node.name == graph.output or any(others):
            copy = _unused(f"{node.name}/plain", names)
            renamed[node.name] = copy
            index = tuple(range(copies.channels[node.name]))
            nodes.append(Node(copy, "gather_channels", (node.name,), {"index": index}))
    return graph.replace(nodes=tuple(nodes), output=renamed.get(graph.output, graph.output))


def _added(node: Node) -> tuple[str, ...]:
    return node.inputs[1:] if node.op == "conv2d" else ()


class _Copies:
    """The nodes of a graph that only copy channels. ``origins``: such a node -> (tensor, channel) for each of its
    channels, of a tensor that is computed; ``channels`` and ``position`` of every node."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._consumers = graph.consumers()
        self.position = {node.name: i for i, node in enumerate(graph.nodes)}
        self.origins: dict[str, list[tuple[str, int]]] = {}
        for node in graph.nodes:
            if self._copies(node):
                self.origins[node.name] = self._taken(node, self.origins)

    @cached_property
    def channels(self) -> dict[str, int]:
        return {name: shape[3] for name, shape in infer_shapes(self._graph, 1, *self._graph.input_size).items()}

    def _taken(self, node: Node, known: Mapping[str, list[tuple[str, int]]]) -> list[tuple[str, int]]:
        """(tensor, channel) for each channel of a node that copies; ``known``: the same of its inputs."""
        found: list[tuple[str, int]] = []
        for s in node.inputs:
            found += known[s] if s in known else [(s, i) for i in range(self.channels[s])]
        return found if node.op == "concat" else [found[i] for i in node.attrs["index"]]

    def _copies(self, node: Node) -> bool:
        if node.op not in ("gather_channels", "concat") or quantized(node):
            return False
        # Of a concat whose parts begin at blocks, the parts are made where it wants them (layout.py).
        return node.op != "concat" or any(self.channels[s] % BLOCK for s in node.inputs[:-1])

    def summed(self, node: Node) -> list[tuple[str, int]] | None:
        """What the node sums over, if it can do that in any order and something is copied before it: a depthwise
        convolution in between goes by channels."""
        if not self.reads_runs(node):
            return None
        source = self._graph[node.inputs[0]]
        if source.op == "conv2d" and not quantized(source) and is_depthwise(source):
            return self.origins.get(source.inputs[0])
        return self.origins.get(source.name)

    def filters_copy(self, node: Node, into: Mapping[str, object]) -> bool:
        """Whether the node is a depthwise convolution that alone makes a copy of channels necessary, and may have them
        in any order."""
        if node.op != "conv2d" or not is_depthwise(node) or node.inputs[0] not in self.origins:
            return False
        others = (r for r in self._consumers[node.inputs[0]] if r.name not in self.origins and not into.get(r.name))
        return [r.name for r in others] == [node.name] and self._graph.output != node.inputs[0] and self.may_order(node)

    def reads_runs(self, node: Node) -> bool:
        """Whether the node can read its first input wherever the channels lie."""
        return not quantized(node) and is_pointwise(node) and not reads_one_pixel(self._graph, node)

    def reads_lanes(self, node: Node) -> bool:
        """Whether the node can read a tensor in another order, but one that it adds."""
        return node.name in self.origins or self.reads_runs(node)

    def may_order(self, node: Node) -> bool:
        """Whether the node can make its channels in another order, and all readers can read it."""
        if node.op != "conv2d" or quantized(node) or len(node.inputs) > 1 or node.name == self._graph.output:
            return False
        if not (node.attrs.get("groups", 1) == 1 or is_depthwise(node)) or reads_one_pixel(self._graph, node):
            return False
        return all(self.reads_lanes(r) and node.name not in _added(r) for r in self._consumers[node.name])

    def absent(self, in_runs: set[str]) -> frozenset[str]:
        """The nodes that need not be made if the convolutions ``in_runs`` read what they copy."""
        return frozenset(
            name
            for name in self.origins
            if name != self._graph.output
            and all(
                r.name in self.origins or (r.name in in_runs and name not in r.inputs[1:])
                for r in self._consumers[name]
            )
        )

    def through(self, absent: frozenset[str], lanes: Container[str]) -> dict[str, Node]:
        """The other nodes that copy, which read what those that are not made would have read; and as a gather what lies
        in an order of its own, as it cannot be made where a concat wants it."""
        behind: dict[str, list[tuple[str, int]]] = {}
        made = {}
        for name in self.origins:
            node = self._graph[name]
            found = self._taken(node, behind)
            if name in absent:
                behind[name] = found
            elif any(s in absent or s in lanes for s in node.inputs):
                inputs = tuple(dict.fromkeys(tensor for tensor, _ in found))
                first = dict(zip(inputs, np.cumsum([0, *(self.channels[s] for s in inputs)]).tolist(), strict=False))
                index = tuple(first[tensor] + channel for tensor, channel in found)
                made[name] = replace(node, op="gather_channels", inputs=inputs, attrs={"index": index})
        return made
