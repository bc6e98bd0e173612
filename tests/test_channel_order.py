"""Splits, joins and shuffles that copy nothing: layers read the channels of several tensors, and make theirs in the
order in which they are read (fastmobilenet/channel_order.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmobilenet import Model, _native, fmn, importers, models, reference
from fastmobilenet.channel_order import Order, choose_orders, order_lanes, pack_order, plain_order
from fastmobilenet.graph import RELU, Graph, GraphBuilder, infer_shapes
from fastmobilenet.lower import Engine
from fastmobilenet.outputs import Named, cut
from fastmobilenet.packing import without_data

ISAS = _native.supported_isas()


class Net(GraphBuilder):
    """Layers with random weights, all of them of maps of one size but for strides."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.c = {self.add("input"): 3}

    def conv(self, x: str, oc: int, k: int = 1, stride: int = 1, groups: int = 1, name: str | None = None) -> str:
        ic = self.c[x] // groups
        weight = self.rng.standard_normal((oc, k, k, ic)).astype(np.float32) / np.float32((k * k * ic) ** 0.5)
        bias = self.rng.standard_normal(oc).astype(np.float32) / 4
        y = self.add(
            "conv2d", x, name=name, params={"weight": weight, "bias": bias}, activation=RELU, stride=(stride, stride),
            padding=(k // 2,) * 4, dilation=(1, 1), groups=groups,
        )  # fmt: skip
        self.c[y] = oc
        return y

    def depthwise(self, x: str, stride: int = 1) -> str:
        return self.conv(x, self.c[x], 3, stride, self.c[x])

    def take(self, index: Any, *xs: str, name: str | None = None) -> str:
        y = self.add("gather_channels", *xs, name=name, index=tuple(int(i) for i in index))
        self.c[y] = len(self.nodes[-1].attrs["index"])
        return y

    def join(self, *xs: str) -> str:
        y = self.add("concat", *xs)
        self.c[y] = sum(self.c[x] for x in xs)
        return y

    def shuffle(self, x: str, groups: int = 2) -> str:
        return self.take(np.arange(self.c[x]).reshape(groups, -1).T.ravel(), x)


def picture(h: int, w: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((2, h, w, 3)).astype(np.float32)


def largest(values: dict[str, np.ndarray]) -> float:
    """Of all tensors: rounding errors grow with what a result is made of, which may cancel. Wrong channels are off by
    more than any of them."""
    return max(float(np.abs(v).max()) for v in values.values())


def check(graph: Graph, isa: str, size: tuple[int, int] = (9, 11)) -> Engine:
    """Equal to reference.py, for one and two threads the same bits, and so after the weights were read back."""
    x = picture(*size)
    values = reference.execute(graph, x, keep=True)
    expected = values[graph.output]
    engine = Engine(graph, isa)
    given = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    found = engine.run(given, threads=1, pixels=False)
    assert np.abs(found - expected).max() <= 1e-5 * largest(values)
    np.testing.assert_array_equal(engine.run(given, threads=2, pixels=False), found)
    back = engine.graph()
    plain = {n.name: n for n in graph.nodes}
    for node in (n for n in back.nodes if n.name in plain):
        for key, value in plain[node.name].params.items():
            np.testing.assert_array_equal(node.params[key].reshape(value.shape), value)
    np.testing.assert_array_equal(Engine(back, isa).run(given, threads=1, pixels=False), found)
    return engine


def gathers(engine: Engine, size: tuple[int, int] = (9, 11)) -> list[str]:
    return [name for name, kernel in engine.program(*size).steps if kernel.startswith("gather")]


def units(b: Net, x: str, y: str, count: int) -> str:
    """Units of a ShuffleNet V2 behind two branches of the same width: one half goes through, the other is computed."""
    x = b.shuffle(b.join(x, y))
    for _ in range(count):
        half = b.c[x] // 2
        left, right = b.take(range(half), x), b.take(range(half, 2 * half), x)
        right = b.conv(b.depthwise(b.conv(right, half)), half)
        x = b.shuffle(b.join(left, right))
    return x


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("half", [1, 5, 8, 13, 24, 29, 58])
def test_units_copy_nothing(half: int, isa: str) -> None:
    b = Net()
    x = b.conv(b.nodes[0].name, 12, 3)
    x = units(b, b.conv(x, half), b.conv(x, half), 4)
    engine = check(b.build(b.conv(x, 20)), isa)
    assert gathers(engine) == []


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("half", [5, 8, 29])
def test_units_that_downsample_copy_once(half: int, isa: str) -> None:
    """A depthwise convolution reads all channels, in rows with padding: it gets a copy, in an order of its own."""
    b = Net()
    x = b.conv(b.nodes[0].name, 12, 3)
    x = units(b, b.conv(x, half), b.conv(x, half), 3)
    left = b.conv(b.depthwise(x, 2), 2 * half)
    right = b.conv(b.depthwise(b.conv(x, 2 * half), 2), 2 * half)
    x = units(b, left, right, 2)
    engine = check(b.build(b.conv(x, 20)), isa)
    assert len(gathers(engine)) == 1


@pytest.mark.parametrize("isa", ISAS)
def test_readers_that_want_the_plain_order(isa: str) -> None:
    """Pools, additions, grouped and 3x3 convolutions, dense layers and the output itself."""
    for kind in ("pool", "grouped", "wide", "add", "dense", "output", "mul"):
        b = Net()
        x = b.conv(b.nodes[0].name, 12)
        x, y = b.conv(x, 10), b.conv(x, 10)
        x = units(b, x, y, 2)
        one = b.conv(x, 20)
        if kind == "pool":
            b.add("max_pool2d", x, kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
        elif kind == "grouped":
            b.conv(x, 20, groups=4)
        elif kind == "wide":
            b.conv(x, 20, 3)
        elif kind == "add":
            b.add("add", one, x)
        elif kind == "mul":
            b.add("mul", x, x)
        elif kind == "dense":
            b.add("dense", x, params={"weight": b.rng.standard_normal((7, 9 * 11 * 20)).astype(np.float32) / 45})
        else:
            b.shuffle(x)
        graph = b.build(b.nodes[-1].name, input_size=(9, 11))
        check(graph, isa)
        # And with another reader, that is not the last.
        nodes = (*graph.nodes, replace_op(b, "concat", one, graph.output))
        if infer_shapes(graph, 1, 9, 11)[graph.output][1:3] == (9, 11):
            check(graph.replace(nodes=nodes, output=nodes[-1].name), isa)


def replace_op(b: Net, op: str, *inputs: str) -> Any:
    b.add(op, *inputs)
    return b.nodes[-1]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("parts", [(12, 12, 12), (5, 20, 16), (32, 20, 10), (40, 24)])
def test_joins_that_do_not_begin_at_blocks(parts: tuple[int, ...], isa: str) -> None:
    b = Net()
    x = b.conv(b.nodes[0].name, 24)
    joined = b.join(*(b.conv(x, c, k) for c, k in zip(parts, (1, 3, 1), strict=False)))
    graph = b.build(b.conv(b.conv(joined, 16), 10, 3))
    engine = check(graph, isa)
    assert gathers(engine) == []


def test_a_layer_that_reads_a_channel_twice() -> None:
    b = Net()
    x = b.conv(b.nodes[0].name, 20)
    y = b.conv(b.take([3, 3, 17, 0, 3, 19], x), 12)
    check(b.build(b.conv(b.take([*range(11, -1, -1), *range(12, 32)], y, x), 9)), "")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_random_graphs(data: st.DataObject) -> None:
    b = Net(data.draw(st.integers(0, 99)))
    maps = [b.conv(b.nodes[0].name, data.draw(st.integers(1, 40)), 3)]
    for _ in range(data.draw(st.integers(2, 12))):
        kind = data.draw(st.sampled_from(["conv", "conv", "take", "join", "shuffle", "depthwise", "wide", "pool"]))
        x = data.draw(st.sampled_from(maps[-4:]))
        c = b.c[x]
        if kind == "conv":
            x = b.conv(x, data.draw(st.integers(1, 40)))
        elif kind == "take":
            many = data.draw(st.lists(st.integers(0, c - 1), min_size=1, max_size=40))
            x = b.take(many if data.draw(st.booleans()) else sorted(set(many)), x)
        elif kind == "join":
            others = data.draw(st.lists(st.sampled_from(maps), min_size=1, max_size=3))
            x = b.join(x, *others)
        elif kind == "shuffle":
            x = b.take(b.rng.permutation(c), x)
        elif kind == "depthwise":
            x = b.depthwise(x)
        elif kind == "wide":
            x = b.conv(x, data.draw(st.integers(1, 20)), 3)
        else:
            y = b.add("max_pool2d", x, kernel=(3, 3), stride=(1, 1), padding=(1, 1, 1, 1))
            b.c[y] = c
            x = y
        maps.append(x)
    isa = data.draw(st.sampled_from(ISAS))
    size = data.draw(st.sampled_from([(5, 7), (1, 1), (9, 14)]))
    graph = b.build(maps[-1])
    engine = check(graph, isa, size)
    inner = data.draw(st.sampled_from([n.name for n in engine.skeleton.nodes[1:]]))
    x = picture(*size)
    found = Named(engine).run(
        np.ascontiguousarray(x.transpose(0, 3, 1, 2)), (inner, graph.output), threads=1, pixels=False
    )
    values = reference.execute(engine.graph(), x, keep=True)
    for name, y in found.items():
        assert np.abs(y - values[name]).max() <= 1e-5 * largest(values)


@pytest.mark.parametrize("isa", ISAS)
def test_every_layer_as_an_output(isa: str) -> None:
    """Layers whose weights are in an order of their own for other readers."""
    graph = models.build("shufflenet_v2_x0_5", classes=10, input_size=(64, 64))
    engine = Engine(graph, isa)
    x = picture(64, 64)
    given = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    whole = engine.run(given, threads=1, pixels=False)
    values = reference.execute(engine.graph(), x, keep=True)
    named = Named(engine)
    for node in engine.skeleton.nodes[1:]:
        if node.name.startswith(("block_2", "block_4", "block_5")):
            found = named.run(given, (node.name, "output"), threads=2, pixels=False)
            expected = values[node.name]
            assert np.abs(found[node.name] - expected).max() <= 2e-5 * np.abs(expected).max(), node.name
            np.testing.assert_array_equal(found["output"], whole)
    several = named.run(given, ("block_2/expand", "block_3/left", "block_4/reduce", "block_4"), threads=1, pixels=False)
    for name, y in several.items():
        assert np.abs(y - values[name]).max() <= 2e-5 * np.abs(values[name]).max(), name


@pytest.mark.parametrize("isa", ISAS)
def test_a_part_gives_the_bits_of_the_whole_and_of_its_own_file(
    isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of plain sums: pairs of inner products are made of what lies together, which depends on all readers."""
    monkeypatch.setenv("FASTMOBILENET_INNER", "0")
    graph = models.build("shufflenet_v2_x0_5", classes=10, input_size=(64, 64))
    engine = Engine(graph, isa)
    given = np.ascontiguousarray(picture(64, 64).transpose(0, 3, 1, 2))
    for name in ("block_3/left", "block_4", "block_6/expand", "head"):
        part = Engine(cut(engine.skeleton, (name,)), base=engine)
        found = part.run(given, threads=1, pixels=False)
        fmn.save(part.graph(), tmp_path / "part.fmn")
        again = Engine(importers.load(tmp_path / "part.fmn"), isa)
        np.testing.assert_array_equal(again.run(given, threads=1, pixels=False), found)
        np.testing.assert_array_equal(
            Named(engine).run(given, (name,), threads=1, pixels=False)[name], found, err_msg=name
        )


def test_another_head_and_profile() -> None:
    model = Model(models.build("shufflenet_v2_x0_5", classes=10, input_size=(64, 64)), 1)
    x = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    weights = np.random.default_rng(1).standard_normal((4, 1024)).astype(np.float32)
    headed = model.with_head(weights)
    np.testing.assert_allclose(headed.run(x), model.features(x) @ weights.T, rtol=1e-4, atol=1e-4)
    steps = [name for layer in headed.profile(x, runs=1).layers for name in layer.nodes]
    assert "block_5/left_depthwise/input" in steps
    assert not any(name.endswith(("/left", "/right", "/join")) for name in steps)


def test_lanes_of_a_shufflenet() -> None:
    """Readers of half of the channels, of a quarter, ...: all begin at blocks where the last block has room for it."""
    wanted = [(1,)] * 29 + [(2,)] * 14 + [(3,)] * 7 + [(4,)] * 8
    order = order_lanes(wanted[::-1])
    assert order is not None
    assert len(order) == 63
    assert [order.index(57 - c) for c in (28, 42, 49, 57)] == [0, 32, 48, 55]
    assert sorted(c for c in order if c >= 0) == list(range(58))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=100))
def test_lanes_are_a_permutation(readers: list[int]) -> None:
    order = order_lanes([(r,) if r else () for r in readers])
    c = len(readers)
    if order is None:
        return
    assert sorted(i for i in order if i >= 0) == list(range(c))
    blocks = -(-c // 16)
    assert len(order) <= 16 * blocks
    if 0 < c % 16 <= 8:
        assert len(order) <= 16 * blocks - 8
    weight = np.random.default_rng(0).standard_normal((c, 1, 1, 3)).astype(np.float32)
    packed, bias = pack_order(weight, weight[:, 0, 0, 0], Order(order, (2, 0, 1)))
    assert bias is not None
    again = plain_order(packed, bias, Order(order, (2, 0, 1)))
    np.testing.assert_array_equal(again[0], weight)
    np.testing.assert_array_equal(again[1], weight[:, 0, 0, 0])


def test_graphs_without_copies_have_no_orders() -> None:
    for arch in ("mobilenet_v2", "squeezenet1_1"):
        assert choose_orders(without_data(models.build(arch)), {}) == {}


@pytest.mark.parametrize("runs", [[], [(0, 3, 2)], [(0, -1, 2)], [(0, 0, 0)], [(0, 0, 2), (1, 0, 1)], [(7, 0, 1)]])
def test_wrong_runs_are_refused(runs: list[tuple[int, int, int]]) -> None:
    program = _native.Program(ISAS[0], 4096, _native.Arenas())
    program.tensor(4, 2, 2, 0, 0, False, 0)
    program.tensor(4, 2, 3, 0, 0, False, 1024)
    with pytest.raises(ValueError, match=r"channel|tensor"):
        program.scattered(runs)


def test_other_ops_refuse_scattered_channels() -> None:
    program = _native.Program(ISAS[0], 4096, _native.Arenas())
    for i in range(2):
        program.tensor(4, 2, 2, 0, 0, False, 1024 * i)
    scattered = program.scattered([(0, 1, 2), (1, 0, 2)])
    with pytest.raises(ValueError, match="scattered"):
        program.softmax("y", scattered, 1)
