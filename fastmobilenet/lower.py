"""Graph -> native Program: packs the weights once, plans the memory for each picture size, and runs."""

from __future__ import annotations

import os
from collections.abc import Collection, Container, Mapping
from dataclasses import replace

import numpy as np

from . import _native, in_file, winograd
from .caches import caches
from .channel_order import PLAIN, Order, Wiring, choose_orders, plain_order, wire
from .errors import ModelError
from .fusion import Step, plan_steps
from .graph import Activation, Graph, Node, Shape, infer_shapes, resolve_padding
from .layout import Arena, Layout, plan_arena
from .packing import from_blocks, pack, pack_quantized, without_data
from .passes import node_channels, optimize, quantized
from .pools import pool_spans
from .precision import of_graph
from .products import PLAIN_SUMS, Chooser, Factors, Products
from .strassen import is_pointwise, score_layer

_UINT8, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)

#: Plans of picture sizes that are kept; the oldest goes first. A plan is small: weights and memory are shared.
MAX_PLANS = 8


class Engine:
    """A graph with packed weights, ready to run pictures of any size the network allows.

    ``isa`` names a kernel table of :func:`fastmobilenet._native.supported_isas`; None takes FASTMOBILENET_ISA
    or the best. May be used by several threads at once.

    ``base``: an Engine, of whose ``skeleton`` ``graph`` is made: a part of it, or one with other nodes behind a part.
    The layers that come from there share the packed weights of ``base``; the ISA is that of ``base``.
    """

    def __init__(self, graph: Graph, isa: str | None = None, *, base: Engine | None = None) -> None:
        isa = (isa or "") if base is None else base._requested_isa
        self._requested_isa: str = isa
        self.isa = _native.default_isa(isa)
        graph = _with_plain_names(optimize(graph))
        store = _native.WeightStore()
        self._arenas: _native.Arenas = _native.Arenas() if base is None else base._arenas
        self._weights: dict[str, _native.PackedWeights] = {}
        # Layers that compute the scores of a classifier, here or in `base`: all plans give them the same bits.
        self._scores: set[str] = set()
        self._weights_u8: dict[str, tuple[_native.PackedU8, str]] = {}
        self._params_u8: dict[str, Mapping[str, np.ndarray | in_file.Place]] = {}  # to give them back
        # By the identity of the array without values: a new layer may have the name of an old one.
        known = {} if base is None else {id(n.params.get("weight")): n.name for n in base._graph.nodes if n.params}
        scores = score_layer(graph)
        layers = [n for n in graph.nodes if n.op in ("conv2d", "dense")]
        origins = {n.name: known.get(id(n.params["weight"])) for n in layers}
        fixed = {} if base is None else {n: base._orders.get(o, PLAIN) for n, o in origins.items() if o is not None}
        self._orders: dict[str, Order] = choose_orders(graph, fixed)
        for node in layers:
            origin = origins[node.name]
            if base is not None and origin is not None and quantized(node):
                self._weights_u8[node.name], self._params_u8[node.name] = base._u8_layer(origin)
            elif base is not None and origin is not None:
                self._weights[node.name] = base._weights[origin]
                if origin in base._scores:
                    self._scores.add(node.name)
            elif quantized(node):
                self._weights_u8[node.name] = pack_quantized(store, graph, node, isa)
                self._params_u8[node.name] = in_file.keep(node.params)
            else:
                self._weights[node.name] = pack(store, graph, node, self.isa, self._orders.get(node.name, PLAIN))
                if node.name == scores:
                    self._scores.add(node.name)
        self._isa_u8 = _native.u8_isa(isa)[0] if any(quantized(n) for n in graph.nodes) else ""
        self._store = store
        self._graph: Graph = without_data(graph)
        self._wiring = wire(self._graph, self._orders)
        self._chooser = Chooser(self.isa)
        # Layers that share their weights with `base` share these too.
        self._factors: Factors = Factors() if base is None else base._factors
        # What is measured must not depend on which part of a network an Engine has.
        self._whole: Graph = self._graph if base is None else base._whole
        self._measured: dict[str, np.ndarray] = {}
        self._plans: dict[tuple[int, int], _native.Program] = {}

    @property
    def weight_bytes(self) -> int:
        """Of its own. Plans may add to it: convolutions in Winograd's form have their weights a second time."""
        return self._store.nbytes

    @property
    def isas(self) -> str:
        """The instruction sets whose kernels run: that of bytes, that of floats, or both."""
        kinds = of_graph(self._graph)
        return " and ".join(n for n, k in ((self._isa_u8, "int8"), (self.isa, "fp32")) if k in kinds)

    def _u8_layer(self, name: str) -> tuple[tuple[_native.PackedU8, str], Mapping[str, np.ndarray | in_file.Place]]:
        return self._weights_u8[name], self._params_u8[name]

    @property
    def skeleton(self) -> Graph:
        """The graph as it runs, whose weights have shapes and no values. For an Engine with this one as its base."""
        return self._graph

    @property
    def lowered(self) -> Graph:
        """``skeleton`` with the copies of channels that its steps make. It has nodes that no step makes."""
        return self._wiring.graph

    def graph(self) -> Graph:
        """The graph as it runs, batch norm folded and activations fused, with its weights read back: new arrays.
        Raises ModelError where weights of bytes are in a file that was changed (in_file.py)."""
        nodes, reader = [], in_file.Reader()
        for node in self._graph.nodes:
            params = {}
            if node.op == "lookup":
                params = dict(node.params)
            elif node.name in self._params_u8:
                params = reader.arrays(self._params_u8[node.name])
            elif node.name in self._weights:
                weight, bias = plain_order(*self._weights[node.name].unpack(), self._orders.get(node.name, PLAIN))
                if node.op == "dense":
                    c = node_channels(self._graph, node.inputs[0])
                    weight = from_blocks(weight.reshape(weight.shape[0], -1), c)
                params = {"weight": weight.reshape(node.params["weight"].shape), "bias": bias}
            nodes.append(replace(node, params=params))
        return self._graph.replace(nodes=tuple(nodes))

    def run(self, x: np.ndarray, *, threads: int = 1, pixels: bool) -> np.ndarray:
        """x: with ``pixels`` uint8 (n, h, w, 3), normalised here by the graph's preprocessing; otherwise float32
        in the graph's ``input_layout``, taken as it is. Any n. Returns float32 (n, oh, ow, oc), a new array.
        The same bits for every ``threads`` and n. Raises ModelError if the network does not fit h x w."""
        graph = self._graph
        layout = "pixels" if pixels else graph.input_layout
        dtype = _UINT8 if pixels else _FLOAT32
        if x.dtype != dtype or x.ndim != 4:
            raise TypeError(f"expected {dtype.name} of rank 4 ({layout}), got {x.dtype.name} {x.shape}")
        if layout == "NCHW":
            _, c, h, w = x.shape
        else:
            _, h, w, c = x.shape
        if c != graph.input_channels:
            raise ValueError(f"expected {graph.input_channels} channels ({layout}), got shape {x.shape}")
        # Few calls: the caches hold weights, so what Python does between two runs takes ten times as long as alone.
        flags = x.flags
        if not (flags.c_contiguous and flags.aligned):
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
        products = self._chooser.choose(
            graph, self._wiring, shapes, self._weights, self._orders, self._scores, self._squares, caches()
        )
        return self._program(self._wiring, h, w, products)

    def _squares(self, names: Collection[str]) -> Mapping[str, np.ndarray]:
        """Mean squares of the channels of those tensors that can be measured (sizes.py). None of a detector's: its
        layers are many, and what it rounds differently shows in boxes (SSDLite on MobileNetV3 with random weights: off
        by 1.1e-4 of the largest value, by plain sums 0.7e-4)."""
        if any(node.op == "detection" for node in self._whole.nodes):
            return {}
        missing = [name for name in names if name not in self._measured]
        if missing:
            from .sizes import mean_squares  # a network that is bounded everywhere needs none of it

            self._measured.update(mean_squares(self._graph, missing, self._run_once, self._whole))
        return self._measured

    def _run_once(self, graph: Graph, x: np.ndarray, layout: str) -> np.ndarray:
        wiring = wire(graph, self._orders)
        return self._program(wiring, x.shape[1], x.shape[2], PLAIN_SUMS).run(x, layout, 1)

    def _program(self, wiring: Wiring, h: int, w: int, products: Products) -> _native.Program:
        """``wiring``: that of the engine or of another graph whose convolutions are among those of the engine."""
        graph = wiring.graph
        shapes = infer_shapes(graph, 1, h, w)
        scale = [name for name in products.tiles if name not in wiring.runs]
        in_place = [name for name in products.inner if name not in wiring.runs]
        steps = plan_steps(
            graph, shapes, caches(), products.alone, scattered=wiring.runs, scale=scale, scale_in_place=in_place
        )
        # Of the first convolutions of strips, pixels are prepared, not windows.
        windows = {s.expand.name for s in steps if s.expand is not None and not is_pointwise(s.expand)}
        specs = {n.name: self._spec(n, shapes, products, windows) for n in graph.nodes if n.name in self._weights}
        steps = [step for step in steps if step.output not in wiring.absent]
        arena = plan_arena(graph, shapes, steps, wiring)
        program = _native.Program(self.isa, arena.floats, self._arenas)
        ids = {}
        for name, offset in arena.offsets.items():
            t = arena.layouts[name]
            _, th, tw, tc = t.shape
            if t.quant is not None:
                pads = (t.pad_top, t.pad_bottom, t.pad_left, t.pad_right)
                ids[name] = program.tensor_u8(tc, th, tw, pads, t.image, t.quant.zero, offset)
            else:
                tc = wiring.width.get(name, tc)
                ids[name] = program.tensor(tc, th, tw, t.pad_left, t.pad_right, t.image, offset)
        for step in steps:
            if quantized(step.nodes[0]) or step.nodes[0].op == "dequantize":
                from . import lower_u8  # a network of floats needs none of it

                lower_u8.emit(program, graph, step.nodes, ids, shapes, self._weights_u8, self._isa_u8)
            elif step.pool is not None:
                _emit_conv_pool(program, step.nodes[0], step.pool, step.rows, ids, shapes, specs)
            elif step.depthwise is not None:
                self._emit_strip(program, step, wiring, ids, shapes, arena.layouts, specs)
            elif step.nodes[0].op == "mul" and len(step.nodes) == 2:
                _emit_scaled(program, step, ids, specs)
            else:
                self._emit(program, step.nodes[0], wiring, ids, shapes, arena, specs, products)
        program.finish(ids[graph.nodes[0].name], ids[graph.output])
        return program

    def _emit(
        self,
        program: _native.Program,
        node: Node,
        wiring: Wiring,
        ids: dict[str, int],
        shapes: dict[str, Shape],
        arena: Arena,
        specs: dict[str, _native.ConvSpec],
        products: Products,
    ) -> None:
        dst = ids[node.name]
        if node.op == "input":
            readers = sum(node.name in reader.inputs for reader in wiring.graph.nodes)
            by_rows = readers == 1 and node.name != wiring.graph.output and arena.layouts[node.name].image
            program.input(dst, *self._normalization(node), by_rows)
            return
        src = _source(program, node, wiring, ids)
        act = _act(node.activation)
        if node.op == "dense":
            layout = arena.layouts[node.inputs[0]]
            flat = program.tensor(layout.floats, 1, 1, 0, 0, False, arena.offsets[node.inputs[0]])
            program.conv(node.name, flat, dst, ids[node.inputs[1]] if len(node.inputs) > 1 else -1, specs[node.name])
        elif node.op == "conv2d":
            add = ids[node.inputs[1]] if len(node.inputs) > 1 else -1
            spec = specs[node.name]
            layout = arena.layouts[wiring.sources(node)[0]]
            tiles = winograd.chunk(node, shapes[node.inputs[0]], shapes[node.name], layout.image, caches())
            split = products.splits.get(node.name)
            weights = self._weights[node.name]
            if tiles and node.name not in products.tiles:
                program.winograd(node.name, src, dst, add, spec, self._factors.of_winograd(weights, node), tiles)
            elif split is not None and layout.pad_left + layout.pad_right == 0 and not layout.image:
                factors = self._factors.of_strassen(weights, split)
                program.strassen(node.name, src, dst, add, factors, act, split.rows)
            else:
                program.conv(node.name, src, dst, add, spec)
        elif node.op == "add":
            program.add(node.name, src, ids[node.inputs[1]], dst, act)
        elif node.op == "mul":
            program.mul(node.name, src, ids[node.inputs[1]], dst, act)
        elif node.op == "activation":
            program.add(node.name, src, -1, dst, act)
        elif node.op == "global_avg_pool":
            program.global_avg_pool(node.name, src, dst)
        elif node.op in ("avg_pool2d", "max_pool2d", "adaptive_avg_pool2d"):
            rows, columns = pool_spans(node, shapes[node.inputs[0]], shapes[node.name])
            program.window_pool(node.name, src, dst, node.op == "max_pool2d", rows, columns)
        elif node.op in ("concat", "gather_channels"):
            index = wiring.index(node, {name: shape[3] for name, shape in shapes.items()})
            program.gather(node.name, [ids[s] for s in node.inputs], dst, index)
        elif node.op == "lrn":
            program.lrn(node.name, src, dst, *(node.attrs[key] for key in ("size", "alpha", "beta", "bias")))
        elif node.op == "softmax":
            program.softmax(node.name, src, dst)
        elif node.op == "detection":
            program.rows(node.name, [ids[s] for s in node.inputs], dst, list(node.attrs["columns"]))
        else:
            raise ModelError(f"node {node.name!r}: op {node.op!r} has no kernel")

    def _normalization(self, node: Node) -> tuple[_Norm, _Norm, bool]:
        """(mean, std) of pixels, the same of floats, and whether the channels of pixels are reversed afterwards."""
        c = self._graph.input_channels
        floats = ([], []) if "mean" not in node.attrs else (list(node.attrs["mean"]), list(node.attrs["std"]))
        if c != 3:
            return ([], []), floats, False
        p = self._graph.preprocess
        # Channels are reversed after the normalisation, which is given for the reversed order.
        bgr = p.channels == "bgr"
        order = slice(None, None, -1 if bgr else 1)
        own = zip(*floats, strict=True) if floats[0] else [(0.0, 1.0)] * 3
        both = [(m + s * om, s * os) for m, s, (om, os) in zip(p.mean, p.std, own, strict=True)][order]
        return ([m for m, _ in both], [s for _, s in both]), floats, bgr

    def _emit_strip(
        self,
        program: _native.Program,
        step: Step,
        wiring: Wiring,
        ids: dict[str, int],
        shapes: dict[str, Shape],
        layouts: dict[str, Layout],
        specs: dict[str, _native.ConvSpec],
    ) -> None:
        assert step.depthwise is not None
        _, h, w, _ = shapes[step.depthwise.inputs[0]]
        layout = layouts[step.depthwise.inputs[0]]
        project = step.project
        add = project.inputs[1] if project is not None and len(project.inputs) > 1 else None
        adds_expanded = add is not None and step.expand is not None and add == step.expand.name
        program.strip(
            step.name,
            _source(program, step.nodes[0], wiring, ids),
            ids[step.output],
            -1 if add is None or adds_expanded else ids[add],
            (h, w, layout.pad_left, layout.pad_right),
            specs[step.expand.name] if step.expand is not None else None,
            specs[step.depthwise.name],
            specs[project.name] if project is not None else None,
            step.rows,
            adds_expanded,
        )

    def _spec(
        self, node: Node, shapes: dict[str, Shape], products: Products, plain: Container[str]
    ) -> _native.ConvSpec:
        """``plain``: those that are not computed by tiles after all."""
        _, h, w, _ = shapes[node.inputs[0]]
        top, _, left, _ = resolve_padding(node, h, w) if node.op == "conv2d" else (0, 0, 0, 0)
        stride, dilation = node.attrs.get("stride", (1, 1)), node.attrs.get("dilation", (1, 1))
        weights = self._weights[node.name]
        by_inner = self._factors.of_inner(weights, products.inner.get(node.name))
        by_tiles = self._factors.of_tiles(weights, None if node.name in plain else products.tiles.get(node.name))
        return _native.ConvSpec(weights, stride, dilation, (top, left), _act(node.activation), by_inner, by_tiles)


def _emit_scaled(
    program: _native.Program, step: Step, ids: Mapping[str, int], specs: Mapping[str, _native.ConvSpec]
) -> None:
    product, conv = step.nodes
    source, scale = (ids[s] for s in product.inputs)
    add = ids[conv.inputs[1]] if len(conv.inputs) > 1 else -1
    program.conv(step.name, source, ids[conv.name], add, specs[conv.name], scale)


def _emit_conv_pool(
    program: _native.Program, conv: Node, pool: Node, rows: int, ids: dict[str, int], shapes: dict[str, Shape],
    specs: dict[str, _native.ConvSpec],
) -> None:  # fmt: skip
    source = ids[conv.inputs[0]]
    windows, columns = pool_spans(pool, shapes[conv.name], shapes[pool.name])
    program.conv_pool(
        f"{conv.name} + {pool.name}", source, ids[pool.name], specs[conv.name], shapes[conv.name][1:3],
        pool.op == "max_pool2d", windows, columns, rows,
    )  # fmt: skip


def _source(program: _native.Program, node: Node, wiring: Wiring, ids: Mapping[str, int]) -> int:
    """What the node reads first; -1 for a copy, which has no such thing."""
    if node.op in ("concat", "gather_channels"):
        return -1
    runs = wiring.runs.get(node.name)
    if runs is None:
        return ids[node.inputs[0]]
    return program.scattered([(ids[run.tensor], run.lane, run.count) for run in runs])


_Norm = tuple[list[float], list[float]]


def _act(activation: Activation | None) -> _native.Act:
    a = activation or Activation("clamp")
    lo = a.lo
    if a.kind == "hard_swish" and a.alpha > 0:
        lo = -a.beta / a.alpha  # below it the function is what it is there: 0
    return _native.Act(a.kind, lo, a.hi, a.alpha, a.beta)


def _with_plain_names(graph: Graph) -> Graph:
    """The runtime holds names in UTF-8, which has no half of a surrogate pair, as JSON may; it is written out."""
    try:
        "".join(n.name for n in graph.nodes).encode()
        return graph
    except UnicodeEncodeError:
        names = {n.name: n.name.encode("utf-8", "backslashreplace").decode() for n in graph.nodes}
        taken = {before for before, after in names.items() if before == after}
        for before, after in names.items():
            while before != after and after in taken:
                after += "_"
            names[before] = after
            taken.add(after)
    nodes = (replace(n, name=names[n.name], inputs=tuple(names[s] for s in n.inputs)) for n in graph.nodes)
    return graph.replace(nodes=tuple(nodes), output=names[graph.output])


def default_threads() -> int:
    """FASTMOBILENET_NUM_THREADS, else OMP_NUM_THREADS, else the cores this process may use: the least of the
    affinity mask, the cgroup quota and the physical cores. At least 1."""
    from .cpus import usable_cores

    for variable in ("FASTMOBILENET_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "").split(",")[0].strip()
        if text:
            if not text.isdecimal() or int(text) < 1:
                raise ValueError(f"{variable} must be a positive number, not {text!r}")
            return min(int(text), _native.MAX_THREADS)
    return usable_cores()
