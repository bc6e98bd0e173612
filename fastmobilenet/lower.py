"""Graph -> native Program: packs the weights once, plans the memory for each picture size, and runs."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace

import numpy as np

from . import _native
from .caches import caches
from .errors import ModelError
from .fusion import Step, plan_steps
from .graph import Activation, Graph, Node, Shape, infer_shapes, is_depthwise, kernel_size, resolve_padding
from .memory import Interval, plan_memory
from .passes import optimize, reads_one_pixel

BLOCK = 16
#: Plans of picture sizes that are kept; the oldest goes first. A plan is small: weights are shared.
MAX_PLANS = 8


@dataclass
class Layout:
    """How a tensor lies in the arena: see Tensor in csrc/runtime/ops.h."""

    shape: Shape
    image: bool
    pad_left: int = 0
    pad_right: int = 0

    @property
    def floats(self) -> int:
        _, h, w, c = self.shape
        row = self.pad_left + w + self.pad_right
        return h * row * (c if self.image else -(-c // BLOCK) * BLOCK)


class Engine:
    """A graph with packed weights, ready to run pictures of any size the network allows.

    ``isa`` names a kernel table of :func:`fastmobilenet._native.supported_isas`; None takes FASTMOBILENET_ISA
    or the best. May be used by several threads at once.
    """

    def __init__(self, graph: Graph, isa: str | None = None) -> None:
        self.isa = isa or _native.default_isa()
        if self.isa not in _native.supported_isas():
            raise ValueError(f"isa {self.isa!r} is not supported here; have {', '.join(_native.supported_isas())}")
        graph = optimize(graph)
        store = _native.WeightStore()
        self._weights = {n.name: _pack(store, graph, n, self.isa) for n in graph.nodes if n.op in ("conv2d", "dense")}
        self.weight_bytes = store.nbytes
        self._graph = without_data(graph)
        self._plans: dict[tuple[int, int], _native.Program] = {}

    def graph(self) -> Graph:
        """The graph as it runs, batch norm folded and activations fused, with its weights read back: new arrays."""
        nodes = []
        for node in self._graph.nodes:
            params = {}
            if node.name in self._weights:
                weight, bias = self._weights[node.name].unpack()
                params = {"weight": weight.reshape(node.params["weight"].shape), "bias": bias}
            nodes.append(replace(node, params=params))
        return self._graph.replace(nodes=tuple(nodes))

    def run(self, x: np.ndarray, *, threads: int = 1, pixels: bool) -> np.ndarray:
        """x: with ``pixels`` uint8 (n, h, w, 3), normalised here by the graph's preprocessing; otherwise float32
        in the graph's ``input_layout``, taken as it is. Any n. Returns float32 (n, oh, ow, oc), a new array.
        The same bits for every ``threads`` and n. Raises ModelError if the network does not fit h x w."""
        graph = self._graph
        layout = "pixels" if pixels else graph.input_layout
        dtype = np.uint8 if pixels else np.float32
        if x.dtype != dtype or x.ndim != 4:
            raise TypeError(f"expected {np.dtype(dtype).name} of rank 4 ({layout}), got {x.dtype.name} {x.shape}")
        axes = (2, 3, 1) if layout == "NCHW" else (1, 2, 3)
        h, w, c = (x.shape[i] for i in axes)
        if c != graph.input_channels:
            raise ValueError(f"expected {graph.input_channels} channels ({layout}), got shape {x.shape}")
        x = np.require(x, requirements=("C", "A"))
        return self.program(h, w).run(x, layout, threads)

    def profile(
        self, x: np.ndarray, *, threads: int = 1, pixels: bool
    ) -> tuple[np.ndarray, list[tuple[str, str, float]]]:
        """Like run, and for every step (name, kernel, seconds) summed over the pictures."""
        layout = "pixels" if pixels else self._graph.input_layout
        axes = (2, 3) if layout == "NCHW" else (1, 2)
        program = self.program(*(x.shape[i] for i in axes))
        y, times = program.run(np.require(x, requirements=("C", "A")), layout, threads, profile=True)
        return y, [(name, kernel, t) for (name, kernel), t in zip(program.steps, times, strict=True)]

    def program(self, h: int, w: int) -> _native.Program:
        """The plan for pictures of h x w, made on first use.

        No lock: a child that was forked while another thread held it would wait for ever. Two threads may make
        the same plan at the same time; one of them is then kept.
        """
        plan = self._plans.get((h, w))
        if plan is None:
            plan = self._plans[h, w] = self._lower(h, w)
            for oldest in list(self._plans)[:-MAX_PLANS]:
                self._plans.pop(oldest, None)
        return plan

    def _lower(self, h: int, w: int) -> _native.Program:
        graph = self._graph
        shapes = infer_shapes(graph, 1, h, w)
        layouts = _choose_layouts(graph, shapes)
        steps = plan_steps(graph, shapes, caches())
        offsets, total = plan_memory(_live_intervals(graph, steps, layouts))
        program = _native.Program(self.isa, total)
        ids = {}
        for name, offset in offsets.items():
            t = layouts[name]
            _, th, tw, tc = t.shape
            ids[name] = program.tensor(tc, th, tw, t.pad_left, t.pad_right, t.image, offset)
        for step in steps:
            if step.depthwise is not None:
                self._emit_strip(program, step, ids, shapes, layouts)
            else:
                self._emit(program, step.nodes[0], ids, shapes)
        program.finish(ids[graph.nodes[0].name], ids[graph.output])
        return program

    def _emit(self, program: _native.Program, node: Node, ids: dict[str, int], shapes: dict[str, Shape]) -> None:
        dst = ids[node.name]
        if node.op == "input":
            p = self._graph.preprocess
            rgb = self._graph.input_channels == 3
            # Channels are reversed after the normalisation, which is given for the reversed order.
            mean, std = (list(v[:: -1 if p.channels == "bgr" else 1]) for v in (p.mean, p.std))
            program.input(dst, mean if rgb else [], std if rgb else [], swap=rgb and p.channels == "bgr")
            return
        src = ids[node.inputs[0]]
        _, h, w, _ = shapes[node.inputs[0]]
        lo, hi = _bounds(node.activation)
        if node.op in ("conv2d", "dense"):
            add = ids[node.inputs[1]] if len(node.inputs) > 1 else -1
            program.conv(node.name, src, dst, add, self._spec(node, shapes))
        elif node.op == "add":
            program.add(node.name, src, ids[node.inputs[1]], dst, lo, hi)
        elif node.op == "activation":
            program.add(node.name, src, -1, dst, lo, hi)
        elif node.op == "global_avg_pool":
            program.global_avg_pool(node.name, src, dst)
        elif node.op == "avg_pool2d":
            top, _, left, _ = resolve_padding(node, h, w)
            program.avg_pool(node.name, src, dst, node.attrs["kernel"], node.attrs["stride"], (top, left))
        elif node.op == "softmax":
            program.softmax(node.name, src, dst)
        else:
            raise ModelError(f"node {node.name!r}: op {node.op!r} has no kernel")

    def _emit_strip(
        self,
        program: _native.Program,
        step: Step,
        ids: dict[str, int],
        shapes: dict[str, Shape],
        layouts: dict[str, Layout],
    ) -> None:
        assert step.depthwise is not None
        _, h, w, _ = shapes[step.depthwise.inputs[0]]
        layout = layouts[step.depthwise.inputs[0]]
        project = step.project
        program.strip(
            step.name,
            ids[step.nodes[0].inputs[0]],
            ids[step.output],
            ids[project.inputs[1]] if project is not None and len(project.inputs) > 1 else -1,
            (h, w, layout.pad_left, layout.pad_right),
            self._spec(step.expand, shapes) if step.expand is not None else None,
            self._spec(step.depthwise, shapes),
            self._spec(project, shapes) if project is not None else None,
            step.rows,
        )

    def _spec(self, node: Node, shapes: dict[str, Shape]) -> _native.ConvSpec:
        _, h, w, _ = shapes[node.inputs[0]]
        top, _, left, _ = resolve_padding(node, h, w) if node.op == "conv2d" else (0, 0, 0, 0)
        stride, dilation = node.attrs.get("stride", (1, 1)), node.attrs.get("dilation", (1, 1))
        return _native.ConvSpec(self._weights[node.name], stride, dilation, (top, left), *_bounds(node.activation))


def _bounds(activation: Activation | None) -> tuple[float, float]:
    return (-math.inf, math.inf) if activation is None else (activation.lo, activation.hi)


def _pack(store: _native.WeightStore, graph: Graph, node: Node, isa: str) -> _native.PackedWeights:
    weight = np.ascontiguousarray(node.params["weight"], dtype=np.float32)
    bias = node.params.get("bias")
    if bias is not None:
        bias = np.ascontiguousarray(bias, dtype=np.float32)
    if node.op == "dense":
        return _native.pack(store, weight[:, None, None, :], bias, False, True, isa)
    groups = node.attrs.get("groups", 1)
    if groups > 1 and not is_depthwise(node):
        raise ModelError(
            f"node {node.name!r}: a convolution with {groups} groups and {weight.shape[3]} channels a group is "
            f"not supported; groups must be 1 or one a channel"
        )
    # Matrix-vector kernels, for maps of one pixel, know no half blocks.
    return _native.pack(store, weight, bias, groups > 1, reads_one_pixel(graph, node), isa)


def without_data(graph: Graph) -> Graph:
    """The graph with weights that keep their shape only; the values live in the packed weights."""
    one = np.zeros(1, np.float32)

    def ghost(v: np.ndarray) -> np.ndarray:
        return np.broadcast_to(one.reshape([1] * v.ndim), v.shape)

    nodes = tuple(
        Node(n.name, n.op, n.inputs, n.attrs, {k: ghost(v) for k, v in n.params.items()}) for n in graph.nodes
    )
    return graph.replace(nodes=nodes)


def _choose_layouts(graph: Graph, shapes: dict[str, Shape]) -> dict[str, Layout]:
    """Blocks of 16 channels everywhere, but for a picture of few channels that only convolutions read; and for
    each tensor the largest padding to the left and right that a reader wants to find there."""
    readers = graph.consumers()
    layouts = {}
    for node in graph.nodes:
        image = node.op == "input" and bool(readers[node.name]) and node.name != graph.output
        for reader in readers[node.name]:
            grouped = reader.attrs.get("groups", 1) > 1
            image = image and reader.op == "conv2d" and not grouped and reader.inputs.count(node.name) == 1
            image = image and reader.inputs[0] == node.name
        layouts[node.name] = Layout(shapes[node.name], image)
    for node in graph.nodes:
        if node.op != "conv2d":
            continue
        source = layouts[node.inputs[0]]
        _, h, w, _ = source.shape
        _, _, ow, _ = shapes[node.name]
        _, _, left, _ = resolve_padding(node, h, w)
        span = (kernel_size(node)[1] - 1) * node.attrs.get("dilation", (1, 1))[1]
        # The right padding that is really read: stride may leave the last columns out.
        right = (ow - 1) * node.attrs["stride"][1] - left + span - (w - 1)
        source.pad_left = max(source.pad_left, left)
        source.pad_right = max(source.pad_right, right, 0)
    return layouts


def _live_intervals(graph: Graph, steps: list[Step], layouts: dict[str, Layout]) -> list[Interval]:
    """When each tensor between steps is written first and read last, as step numbers."""
    last = {step.output: i for i, step in enumerate(steps)}
    for i, step in enumerate(steps):
        for source in step.inputs:
            last[source] = i
    last[graph.output] = len(steps)
    return [Interval(s.output, layouts[s.output].floats, i, last[s.output]) for i, s in enumerate(steps)]


def default_threads() -> int:
    """FASTMOBILENET_NUM_THREADS, else OMP_NUM_THREADS, else the cores this process may use: the least of the
    affinity mask, the cgroup quota and the physical cores. At least 1."""
    from .cpus import usable_cores

    for variable in ("FASTMOBILENET_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "").split(",")[0].strip()
        if text:
            if not text.isdigit() or int(text) < 1:
                raise ValueError(f"{variable} must be a positive number, not {text!r}")
            return min(int(text), _native.MAX_THREADS)
    return usable_cores()
