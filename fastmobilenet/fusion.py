"""Which convolutions run as one step: a dense one, a depthwise one and a 1x1 one behind each other can be done strip
by strip (csrc/runtime/strip.cpp), so that what lies between them stays in the cache."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import NamedTuple, Protocol

from .caches import Caches
from .graph import Graph, Node, Shape, count_macs, is_depthwise, kernel_size

BLOCK = 16
FLOAT = 4

#: The part of its time that a strip gains over nodes that run alone, where both were measured (Zen 4, 7 to 56 px).
STRIP_GAIN = 0.027


class Alone(Protocol):
    """How a convolution is computed that gains by it where it is a step of its own."""

    @property
    def room(self) -> float:
        """The part of the second-level cache that the map between it and a depthwise convolution may take, or a strip
        is faster all the same."""

    @property
    def saving(self) -> float:
        """The part of its time that is saved."""


#: Bytes of ring and strip, however large the second-level cache is (2 MB, Granite Rapids: 112x112x96 is 5 % faster by
#: fewer rows, 56x56x144 slower).
MOST_OF_STRIP = 768 << 10


class Step(NamedTuple):
    """Nodes that run as one: a single node of any op, a depthwise convolution with what surrounds it, a convolution and
    a pool, a product with a pixel and a 1x1 convolution, or a convolution of bytes with what is done to its bytes.

    ``rows`` is the number of output rows that a strip makes at a time.
    """

    nodes: tuple[Node, ...]
    expand: Node | None = None
    depthwise: Node | None = None
    project: Node | None = None
    rows: int = 0
    pool: Node | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Tensors that the step reads: all but those that its own nodes make."""
        own = {n.name for n in self.nodes}
        return tuple(s for n in self.nodes for s in n.inputs if s not in own)

    @property
    def output(self) -> str:
        return self.nodes[-1].name

    @property
    def name(self) -> str:
        return " + ".join(n.name for n in self.nodes)


def plan_steps(
    graph: Graph,
    shapes: Mapping[str, Shape],
    caches: Caches,
    splits: Mapping[str, Alone] | None = None,
    scattered: Container[str] = (),
    scale: Container[str] = (),
    scale_in_place: Container[str] = (),
) -> list[Step]:
    """The steps of the graph in an order that respects its edges. ``splits``: the convolutions that Strassen's product
    makes faster where they are steps of their own (:func:`fastmobilenet.strassen.choose_splits`); ``scattered``: those
    that read channels in an order of their own (channel_order.py), which must be the first of a step; ``scale``: the
    convolutions that can multiply what they read with a pixel, as at the end of squeeze-and-excite;
    ``scale_in_place``: those that can if they may write over it."""
    readers = graph.consumers()

    def only_reader(node: Node) -> Node | None:
        found = readers[node.name]
        return found[0] if len(found) == 1 and node.name != graph.output else None

    def feeds_depthwise(node: Node) -> bool:
        reader = only_reader(node)
        return reader is not None and reader.op == "conv2d" and is_depthwise(reader)

    def is_last_reader(product: Node) -> bool:
        """Of the map: what else reads it has been read by the factors, without which there is no product."""
        source, factors = (graph[s] for s in product.inputs)
        if source.op != "conv2d" or source.name == graph.output:
            return False
        before, todo = {product.name}, [factors.name]
        while todo:
            name = todo.pop()
            if name not in before:
                before.add(name)
                todo += graph[name].inputs
        return all(n.name in before for n in readers[source.name])

    taken: set[str] = set()
    steps: dict[str, Step] = {}  # by the name of the last node
    for node in graph.nodes:
        if node.op != "conv2d" or not is_depthwise(node) or "quant" in node.attrs:
            continue
        before = graph[node.inputs[0]]
        after = only_reader(node)
        project = after if after is not None and _is_pointwise(after) and after.inputs[0] == node.name else None
        if project is not None and project.name in scattered:
            project = None
        if project is not None and feeds_depthwise(project):
            project = None  # MobileNetV1: it belongs to the next depthwise convolution
        expand = before if _can_expand(before) and before.name not in taken else None
        # The first block of MobileNetV3-Large adds what its depthwise convolution reads.
        adds_it = project is not None and project.inputs[1:] == (before.name,)
        if before.name == graph.output or len(readers[before.name]) != 1 + adds_it:
            expand = None
        step = choose(expand, node, project, shapes, caches)
        if adds_it and step.project is None:
            step = make(None, node, None, 1)
        if len(step.nodes) > 1 and _better_alone(step, shapes, caches, splits or {}):
            step = make(None, node, None, 1)
        taken.update(n.name for n in step.nodes)
        steps[step.output] = step
    if any("quant" in node.attrs for node in graph.nodes):
        from . import lower_u8  # a network of floats needs none of it

        for name, nodes in lower_u8.fuse(graph, shapes).items():
            steps[name] = Step(nodes)
            taken.update(n.name for n in nodes)
    for node in graph.nodes:
        pool = only_reader(node)
        if pool is not None and node.name not in taken and reads_picture(graph, node):
            rows = pooled_rows(node, pool, shapes, caches)
            if rows:
                steps[pool.name] = Step((node, pool), pool=pool, rows=rows)
                taken.update((node.name, pool.name))
    for node in graph.nodes:
        conv = only_reader(node)
        if conv is None or conv.name in taken or not _scales(node, conv, shapes):
            continue
        if conv.name in scale or (conv.name in scale_in_place and is_last_reader(node)):
            steps[conv.name] = Step((node, conv))
            taken.update((node.name, conv.name))
    ordered = []
    for node in graph.nodes:
        if node.name in steps:
            ordered.append(steps[node.name])
        elif node.name not in taken:
            ordered.append(Step((node,)))
    return ordered


def _scales(node: Node, conv: Node, shapes: Mapping[str, Shape]) -> bool:
    """Whether the node multiplies a map with a pixel, for the 1x1 convolution that reads it."""
    if node.op != "mul" or node.activation is not None or "quant" in node.attrs or not _is_pointwise(conv):
        return False
    (_, h, w, _), (_, pixel_h, pixel_w, _) = (shapes[s] for s in node.inputs)
    return h * w > 1 == pixel_h * pixel_w and conv.inputs[0] == node.name


def _can_expand(node: Node) -> bool:
    return _is_dense(node) and len(node.inputs) == 1


def _is_dense(node: Node) -> bool:
    return node.op == "conv2d" and node.attrs.get("groups", 1) == 1 and "quant" not in node.attrs


def _is_pointwise(node: Node) -> bool:
    return (
        _is_dense(node)
        and kernel_size(node) == (1, 1)
        and node.attrs["stride"] == (1, 1)
        and node.attrs["padding"] in ("same", (0, 0, 0, 0))
    )


def choose(
    expand: Node | None, depthwise: Node, project: Node | None, shapes: Mapping[str, Shape], caches: Caches
) -> Step:
    """The step that is expected to be the fastest. What was measured on Zen 5 (1 MB of second-level cache):

    - A block that expands, filters and projects (MobileNetV2) gains 7 % at 112x112, 5 % at 56x56 and 1 to 4 %
      below from strips: the expanded map, which is written and read most per multiplication, stays in the
      cache. It loses if its weights leave the cache from strip to strip.
    - A map so small that it is one strip gains from the first two convolutions only (3 %).
    - Without a projection (MobileNetV1, where every 1x1 convolution feeds a depthwise one, and blocks with
      squeeze-excite) two layers gain 2 to 7 % while the map between them leaves no room in the cache for the others,
      and nothing after.
    - A depthwise and a 1x1 convolution without one before them gain nothing.
    """
    if expand is not None:
        rows = strip_rows(depthwise, shapes, caches)
        _, h, w, c = shapes[expand.name]
        if project is None:
            if h * w * c * FLOAT >= caches.l2 * 3 // 4:
                return make(expand, depthwise, None, rows)
        elif rows >= shapes[depthwise.name][1]:
            if _weight_bytes(expand) <= caches.l2 * 3 // 4:
                return make(expand, depthwise, None, rows)
        elif _weight_bytes(expand) + _weight_bytes(project) <= caches.l2 // 2:
            return make(expand, depthwise, project, rows)
    return make(None, depthwise, None, 1)


def reads_picture(graph: Graph, node: Node) -> bool:
    """Whether the node is a dense convolution that reads the picture."""
    return _is_dense(node) and len(node.inputs) == 1 and graph[node.inputs[0]].op == "input"


def pooled_rows(conv: Node, pool: Node, shapes: Mapping[str, Shape], caches: Caches) -> int:
    """Rows of the pool that are made at a time together with the convolution before it (csrc/runtime/conv_pool.cpp), so
    that the rows between them stay in a part of the second-level cache; 0 if the whole map does, or if the pool is
    another."""
    if pool.op not in ("max_pool2d", "avg_pool2d") or "quant" in pool.attrs:
        return 0
    _, h, w, c = shapes[conv.name]
    row = w * -(-c // BLOCK) * BLOCK * FLOAT
    if h * row < caches.l2 // 2:
        return 0
    rows = 4
    while rows > 1 and ((rows - 1) * pool.attrs["stride"][0] + kernel_size(pool)[0]) * row > caches.l2 // 4:
        rows //= 2
    return rows


def _weight_bytes(node: Node) -> int:
    return node.params["weight"].size * FLOAT


def _better_alone(step: Step, shapes: Mapping[str, Shape], caches: Caches, splits: Mapping[str, Alone]) -> bool:
    """Whether that saves more than the strip gains. Never where the map between is larger than the cache: one more
    tensor of that size makes the steps before it slower too."""
    assert step.depthwise is not None
    _, h, w, c = shapes[step.depthwise.inputs[0]]
    macs = {n.name: count_macs(n, shapes) for n in step.nodes}
    fits = {n: splits[n] for n in macs if n in splits and h * w * c * FLOAT < splits[n].room * caches.l2}
    saved = sum(how.saving * macs[name] for name, how in fits.items())
    return saved > STRIP_GAIN * sum(macs.values())


def make(expand: Node | None, depthwise: Node, project: Node | None, rows: int) -> Step:
    nodes = tuple(n for n in (expand, depthwise, project) if n is not None)
    return Step(nodes, expand, depthwise, project, rows)


def strip_rows(depthwise: Node, shapes: Mapping[str, Shape], caches: Caches) -> int:
    """Rows of a strip: eight, or as many as let ring and strip fit into half of the second-level cache, but not into
    much of a large one.

    Few rows would mean many short calls; an even number lets the depthwise kernel make two rows at once.
    """
    _, h, w, c = shapes[depthwise.inputs[0]]
    _, oh, ow, _ = shapes[depthwise.name]
    stride, kernel = depthwise.attrs["stride"][0], kernel_size(depthwise)[0]
    pixel = -(-c // BLOCK) * BLOCK * FLOAT  # bytes
    rows: int = min(8, oh)
    while rows > 1:
        ring = min((rows - 1) * stride + kernel, h) * (w + 2) * pixel
        strip = rows * ow * pixel
        if ring + strip <= min(caches.l2 // 2, MOST_OF_STRIP):
            break
        rows //= 2
    return rows
