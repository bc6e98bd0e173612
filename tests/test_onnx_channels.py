"""ONNX files that split, join and shuffle channels, against NumPy and ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmobilenet.graph import Graph
from fastmobilenet.importers import onnx
from tests.onnx_files import OnnxWriter
from tests.test_onnx import agree, convolve, normal, run
from tests.test_onnx_graphs import size_of, unsqueeze


def ops_of(graph: Graph) -> dict[str, int]:
    return dict(Counter(n.op for n in graph.nodes[1:]))


def shuffled(x: np.ndarray, groups: int) -> np.ndarray:
    n, c, h, w = x.shape
    return x.reshape(n, groups, c // groups, h, w).swapaxes(1, 2).reshape(x.shape)


def take(w: OnnxWriter, x: str, start: int, stop: int, step: int = 1, axis: int = 1) -> str:
    if w.opset < 10:
        return w.op("Slice", x, starts=[start], ends=[stop], axes=[axis])
    return w.op("Slice", x, *[w.constant([v]) for v in (start, stop, axis, step)])


def split(w: OnnxWriter, x: str, sizes: Sequence[int], axis: int = 1) -> list[str]:
    if w.opset < 13:
        return w.ops("Split", x, count=len(sizes), split=list(sizes), axis=axis)
    return w.ops("Split", x, w.constant(list(sizes)), count=len(sizes), axis=axis)


# --- shuffles -------------------------------------------------------------------------------------------


def fixed(w: OnnxWriter, x: str, shape: Sequence[int], groups: int) -> str:
    n, c, h, width = shape
    y = w.op("Reshape", x, w.constant([n, groups, c // groups, h, width]))
    return w.op("Reshape", w.op("Transpose", y, perm=[0, 2, 1, 3, 4]), w.constant([n, c, h, width]))


def with_zeros(w: OnnxWriter, x: str, shape: Sequence[int], groups: int) -> str:
    y = w.op("Transpose", w.op("Reshape", x, w.constant([0, groups, -1, *shape[2:]])), perm=[0, 2, 1, 3, 4])
    return w.op("Reshape", y, w.constant([0, -1, *shape[2:]]))


def computed(w: OnnxWriter, x: str, shape: Sequence[int], groups: int) -> str:
    """n, c, h, w = x.size(); x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, -1, h, w)"""
    n, c, h, width = (size_of(w, x, axis) for axis in range(4))
    inner = w.op("Div", c, w.op("Constant", value=np.array(groups, np.int64)))
    outer = w.op("Constant", value=np.array(groups, np.int64))
    pieces = [unsqueeze(w, v, [0]) for v in (n, outer, inner, h, width)]
    y = w.op("Transpose", w.op("Reshape", x, w.op("Concat", *pieces, axis=0)), perm=[0, 2, 1, 3, 4])
    return w.op("Reshape", y, w.op("Concat", pieces[0], w.constant([-1]), *pieces[3:], axis=0))


def over_flat_maps(w: OnnxWriter, x: str, shape: Sequence[int], groups: int) -> str:
    """x.view(n, groups, c // groups, h * w)"""
    n, c, h, width = shape
    y = w.op("Transpose", w.op("Reshape", x, w.constant([0, groups, c // groups, -1])), perm=[0, 2, 1, 3])
    return w.op("Reshape", y, w.constant([n, c, h, width]))


def channels_last(w: OnnxWriter, x: str, shape: Sequence[int], groups: int) -> str:
    """As in a network converted from TensorFlow"""
    n, c, h, width = shape
    y = w.op("Reshape", w.op("Transpose", x, perm=[0, 2, 3, 1]), w.constant([n, h, width, groups, c // groups]))
    y = w.op("Reshape", w.op("Transpose", y, perm=[0, 1, 2, 4, 3]), w.constant([n, h, width, c]))
    return w.op("Transpose", y, perm=[0, 3, 1, 2])


def stacked(w: OnnxWriter, x: str, shape: Sequence[int], groups: int) -> str:
    """torch.stack(x.chunk(groups, 1), 2).flatten(1, 2)"""
    pieces = [unsqueeze(w, p, [2]) for p in split(w, x, [shape[1] // groups] * groups)]
    return w.op("Reshape", w.op("Concat", *pieces, axis=2), w.constant([0, -1, *shape[2:]]))


def in_thirds(w: OnnxWriter, x: str, shape: Sequence[int], groups: int) -> str:
    """Every channel by itself, as of a network that someone wrote by hand"""
    pieces = [take(w, x, k, k + 1) for g in range(shape[1] // groups) for k in range(g, shape[1], shape[1] // groups)]
    return w.op("Concat", *pieces, axis=-3 if w.opset > 10 else 1)


@pytest.mark.parametrize("opset", [9, 11, 13, 18])
@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("shuffle", [fixed, with_zeros, computed, over_flat_maps, channels_last, stacked, in_thirds])
def test_a_shuffle_is_one_node(shuffle: Callable[..., str], groups: int, opset: int) -> None:
    x = normal(1, 12, 5, 4)
    w = OnnxWriter(opset)
    y = w.op("Relu", shuffle(w, w.input(*x.shape), x.shape, groups))
    graph = agree(w.finish(y), x, np.maximum(shuffled(x, groups), 0))
    assert ops_of(graph) == {"gather_channels": 1, "activation": 1}
    larger = normal(3, 12, 7, 9)
    np.testing.assert_array_equal(run(graph, larger), np.maximum(shuffled(larger, groups), 0))


def test_a_shuffle_of_a_picture_of_any_size() -> None:
    x = normal(2, 12, 5, 4)
    w = OnnxWriter()
    y = w.op("Relu", computed(w, w.input("n", 12, "h", "w"), x.shape, 3))
    agree(w.finish(y), x, np.maximum(shuffled(x, 3), 0))


def test_a_shuffle_that_goes_over_the_batch() -> None:
    """x.reshape(n * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w); x[0], x[1]"""
    x = normal(1, 8, 5, 4)
    w = OnnxWriter()
    y = w.op("Transpose", w.op("Reshape", w.input(*x.shape), w.constant([4, 2, 20])), perm=[1, 0, 2])
    y = w.op("Reshape", y, w.constant([2, -1, 4, 5, 4]))
    halves = [w.op("Gather", y, w.constant(np.array(k)), axis=0) for k in range(2)]
    a, b = (w.op("Relu", half, output=name) for half, name in zip(halves, "ab", strict=True))
    graph = agree(w.finish(w.op("Add", a, b)), x, np.maximum(x[:, ::2], 0) + np.maximum(x[:, 1::2], 0))
    assert [n.attrs["index"] for n in graph.nodes if n.op == "gather_channels"] == [(0, 2, 4, 6), (1, 3, 5, 7)]
    larger = normal(3, 8, 7, 9)
    np.testing.assert_allclose(run(graph, larger), np.maximum(larger[:, ::2], 0) + np.maximum(larger[:, 1::2], 0))


def test_what_is_taken_apart_and_put_together_again_is_nothing() -> None:
    x = normal(1, 12, 5, 4)
    w = OnnxWriter()
    y = fixed(w, fixed(w, w.input(*x.shape), x.shape, 3), x.shape, 4)
    a, b, c = split(w, y, [2, 7, 3])
    y = w.op("Concat", a, w.op("Concat", b, c, axis=1), axis=1)
    y = take(w, take(w, y, -1, -(2**63), -1), 2**31 - 1, -(2**31), -1)
    assert ops_of(agree(w.finish(w.op("Relu", y)), x, np.maximum(x, 0))) == {"activation": 1}


def test_a_unit_of_shufflenet() -> None:
    """Of concat, shuffle and split a gather for each half is left, which reads the halves of before."""
    x, weight = normal(1, 6, 5, 4), normal(6, 6, 1, 1)
    w = OnnxWriter()
    left, right = w.op("Relu", w.input(*x.shape)), w.op("Conv", "x", w.constant(weight))
    joined = fixed(w, w.op("Concat", left, right, axis=1), (1, 12, 5, 4), 2)
    a, b = split(w, joined, [6, 6])
    y = w.op("Concat", a, w.op("Relu", b), axis=1)
    maps = np.concatenate([np.maximum(x, 0), convolve(x, weight)], 1)
    mixed = shuffled(maps, 2)
    graph = agree(w.finish(y), x, np.concatenate([mixed[:, :6], np.maximum(mixed[:, 6:], 0)], 1))
    assert ops_of(graph) == {"activation": 2, "conv2d": 1, "gather_channels": 2, "concat": 1}
    gathers = [n for n in graph.nodes if n.op == "gather_channels"]
    assert all(n.inputs == (left, right) for n in gathers)
    assert sorted(n.attrs["index"] for n in gathers) == [(0, 6, 1, 7, 2, 8), (3, 9, 4, 10, 5, 11)]


# --- one operator at a time -----------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [9, 11, 13, 18, 21])
def test_split(opset: int) -> None:
    x = normal(1, 7, 3, 4)
    thirds = {"num_outputs": 3} if opset > 17 else {}
    w = OnnxWriter(opset)
    w.input(*x.shape)
    pieces = [
        *split(w, "x", [2, 4, 1]),
        *w.ops("Split", take(w, "x", 0, 6), count=3, axis=-3 if opset > 10 else 1, **thirds),
        *(w.ops("Split", "x", count=3, axis=1, **thirds) if opset > 17 else split(w, "x", [3, 3, 1])),
    ]
    y = w.op("Concat", *[w.op("Relu", p) for p in pieces[::-1]], axis=1)
    parts = [*np.split(x, [2, 6], 1), *np.split(x[:, :6], 3, 1), *np.split(x, [3, 6], 1)]
    agree(w.finish(y), x, np.maximum(np.concatenate(parts[::-1], 1), 0))


@pytest.mark.parametrize("how", ["one by one", "without an axis", "twos", "sizes"])
def test_split_to_sequence(how: str) -> None:
    x = normal(1, 5, 3, 4)
    w = OnnxWriter()
    w.input(*x.shape)
    given = {"twos": [w.constant(np.array(2))], "sizes": [w.constant([1, 4])]}.get(how, [])
    sequence = w.op("SplitToSequence", "x", *given, axis=1, **({"keepdims": 0} if how == "without an axis" else {}))
    y = w.op("SequenceAt", w.op("Identity", sequence), w.constant(np.array(-1)))
    if how == "without an axis":
        y = unsqueeze(w, y, [1])
    expected = {"twos": x[:, 4:], "sizes": x[:, 1:]}.get(how, x[:, 4:])
    agree(w.finish(w.op("Relu", y)), x, np.maximum(expected, 0))


@pytest.mark.parametrize("start, stop, step", [(1, 4, 1), (-2, 2**63 - 1, 1), (0, 5, 2), (4, -(2**31), -1), (3, 0, -2)])
def test_slice(start: int, stop: int, step: int) -> None:
    x = normal(1, 5, 3, 4)
    expected = x[:, start : None if stop < -9 else stop : step]
    w = OnnxWriter()
    agree(w.finish(w.op("Relu", take(w, w.input(*x.shape), start, stop, step))), x, np.maximum(expected, 0))


@pytest.mark.parametrize("size", [(3, 4), ("h", "w")])
def test_a_slice_that_takes_all(size: tuple[Any, Any]) -> None:
    x = normal(1, 5, 3, 4)
    w = OnnxWriter()
    y = take(w, take(w, w.input(1, 5, *size), 0, 2**31 - 1, axis=2), -(2**31), 2**63 - 1, axis=-1)
    assert ops_of(agree(w.finish(w.op("Relu", y)), x, np.maximum(x, 0))) == {"activation": 1}


def test_a_slice_of_the_default_size_is_no_slice_of_all() -> None:
    w = OnnxWriter()
    data = w.finish(w.op("Relu", take(w, w.input(1, 5, "h", "w"), 0, 224, axis=2)))
    with pytest.raises(onnx.ModelError, match="it takes a part of axis 2 of"):
        onnx.load(data)


@pytest.mark.parametrize("indices", [[2, 1, 0], [-1], [1, 1, 0, 2, 1]])
def test_gather(indices: list[int]) -> None:
    x = normal(1, 3, 3, 4)
    w = OnnxWriter()
    y = w.op("Relu", w.op("Gather", w.input(*x.shape), w.constant(indices), axis=1))
    graph = agree(w.finish(y), x, np.maximum(x[:, indices], 0))
    assert graph.nodes[1].attrs["index"] == tuple(i % 3 for i in indices)


def test_planes_of_a_picture_one_by_one() -> None:
    """torchvision's GoogLeNet: torch.cat([torch.unsqueeze(x[:, k], 1) * scale + shift for k ...], 1)"""
    x = normal(1, 3, 4, 5)
    w = OnnxWriter()
    w.input(*x.shape)
    planes = []
    for k in range(3):
        plane = unsqueeze(w, w.op("Gather", "x", w.constant(np.array(k)), axis=1), [1])
        planes.append(w.op("Add", w.op("Mul", plane, w.constant(k + 0.5)), w.constant(k - 1.0)))
    scale, shift = np.arange(3).reshape(3, 1, 1) + 0.5, np.arange(3).reshape(3, 1, 1) - 1
    agree(w.finish(w.op("Concat", *planes, axis=1)), x, x * scale + shift)


def test_a_flipped_picture_is_normalised_by_the_network_itself() -> None:
    x = normal(1, 3, 4, 5)
    w = OnnxWriter()
    y = w.op("Gather", w.input(*x.shape), w.constant([2, 1, 0]), axis=1)
    graph = agree(w.finish(w.op("Mul", y, w.constant(1 / 255))), x, x[:, ::-1] / 255)
    assert graph.preprocess.std == (1.0, 1.0, 1.0)


def test_channels_are_gathered_once() -> None:
    x = normal(1, 4, 3, 4)
    w = OnnxWriter()
    y = fixed(w, w.input(*x.shape), x.shape, 2)
    y = w.op("Add", w.op("Relu", y), w.op("Sigmoid", w.op("Identity", y)))
    mixed = shuffled(x, 2)
    graph = agree(w.finish(y), x, np.maximum(mixed, 0) + 1 / (1 + np.exp(-mixed)))
    assert ops_of(graph) == {"gather_channels": 1, "activation": 2, "add": 1}


def test_channels_as_output() -> None:
    x = normal(1, 4, 3, 4)
    w = OnnxWriter()
    _, y = split(w, w.input(*x.shape), [3, 1])
    agree(w.finish(y), x, x[:, 3:])


def test_vectors_are_joined_and_split() -> None:
    x, weight = normal(2, 4, 3, 3), normal(6, 5)
    w = OnnxWriter()
    a = w.op("Flatten", w.op("GlobalAveragePool", w.input(*x.shape)))
    b = w.op("Flatten", w.op("GlobalAveragePool", w.op("Relu", "x")))
    first, _ = split(w, w.op("Concat", a, b, axis=-1), [6, 2], axis=1)
    means = np.concatenate([x.mean((2, 3)), np.maximum(x, 0).mean((2, 3))], 1)
    agree(w.finish(w.op("Gemm", first, w.constant(weight))), x, means[:, :6] @ weight)


@pytest.mark.parametrize("channels", [1, 4])
def test_pooled_maps_are_joined_along_their_height(channels: int) -> None:
    """What is one pixel at every size may be joined along any axis: (1, c, 1, 1) twice -> (1, c, 2, 1)"""
    x, weight = normal(2, channels, 3, 3), normal(2 * channels, 5)
    w = OnnxWriter()
    a, b = w.op("GlobalAveragePool", w.input(*x.shape)), w.op("GlobalAveragePool", w.op("Relu", "x"))
    y = w.op("Gemm", w.op("Flatten", w.op("Concat", a, b, axis=2)), w.constant(weight))
    means = np.stack([x.mean((2, 3)), np.maximum(x, 0).mean((2, 3))], 2)
    agree(w.finish(y), x, means.reshape(2, -1) @ weight)


def test_the_one_pixel_of_a_pooled_map_is_taken() -> None:
    """x.mean((2, 3), keepdim=True)[:, :, 0, 0]; of a map that is one pixel by chance it would be a part."""
    x, weight = normal(2, 4, 3, 3), normal(4, 5)
    w = OnnxWriter()
    y = w.op("GlobalAveragePool", w.input(*x.shape))
    for _ in range(2):
        y = w.op("Gather", y, w.constant(np.array(0)), axis=2)
    agree(w.finish(w.op("Gemm", y, w.constant(weight))), x, x.mean((2, 3)) @ weight)
    w = OnnxWriter()
    data = w.finish(w.op("Gather", w.op("Relu", w.input(1, 4, 1, 1)), w.constant(np.array(0)), axis=2))
    with pytest.raises(onnx.ModelError, match="it takes a part of axis 2"):
        onnx.load(data)


def test_elementwise_between_the_steps() -> None:
    """On (n, groups, c / groups, h, w)"""
    x, weight = normal(1, 6, 3, 4), normal(4, 6, 1, 1)
    w = OnnxWriter()
    y = w.op("Relu", w.op("Reshape", w.input(*x.shape), w.constant([1, 2, 3, 3, 4])))
    z = w.op("Transpose", y, perm=[0, 2, 1, 3, 4])
    z = w.op("Reshape", w.op("Add", z, w.op("Sigmoid", z)), w.constant([1, 6, 3, 4]))
    mixed = np.maximum(shuffled(x, 2), 0)
    agree(w.finish(w.op("Conv", z, w.constant(weight))), x, convolve(mixed + 1 / (1 + np.exp(-mixed)), weight))


def test_channels_in_blocks_are_flattened() -> None:
    """(n, c, h, w) -> (n, c / 2, h, w, 2) -> flat"""
    x, weight = normal(1, 6, 3, 4), normal(72, 5)
    w = OnnxWriter()
    y = w.op("Transpose", w.op("Reshape", w.input(*x.shape), w.constant([1, 3, 2, 3, 4])), perm=[0, 1, 3, 4, 2])
    y = w.op("Gemm", w.op("Flatten", y), w.constant(weight))
    agree(w.finish(y), x, x.reshape(1, 3, 2, 3, 4).transpose(0, 1, 3, 4, 2).reshape(1, 72) @ weight)


# --- any of them, in any order --------------------------------------------------------------------------


class Program:
    """Random operators on channels, in a file and in NumPy. All tensors are (2, c, 3, 2)."""

    def __init__(self, draw: Callable[[st.SearchStrategy[Any]], Any], opset: int) -> None:
        self.draw = draw
        self.w = OnnxWriter(opset)
        self.x = normal(2, 12, 3, 2)
        self.tensors = [(self.w.input(*self.x.shape), self.x)]

    def step(self) -> None:
        name, value = self.draw(st.sampled_from(self.tensors))
        kind = self.draw(st.sampled_from(["shuffle", "split", "concat", "slice", "gather", "stack", "last", "relu"]))
        self.tensors += [(n, v) for n, v in getattr(self, f"_{kind}")(name, value) if v.shape[1] <= 48]

    def _shuffle(self, name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        groups = self.draw(st.sampled_from([g for g in range(1, value.shape[1] + 1) if value.shape[1] % g == 0]))
        return [(fixed(self.w, name, value.shape, groups), shuffled(value, groups))]

    def _split(self, name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        if value.shape[1] == 1:
            return []
        at = self.draw(st.integers(1, value.shape[1] - 1))
        names = split(self.w, name, [at, value.shape[1] - at])
        return list(zip(names, np.split(value, [at], 1), strict=True))

    def _concat(self, name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        others = self.draw(st.lists(st.sampled_from(self.tensors), min_size=1, max_size=2))
        joined = self.w.op("Concat", name, *[n for n, _ in others], axis=1)
        return [(joined, np.concatenate([value, *[v for _, v in others]], 1))]

    def _slice(self, name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        start = self.draw(st.integers(0, value.shape[1] - 1))
        step = self.draw(st.sampled_from([1, 2, -1])) if self.w.opset > 9 else 1
        end = -(2**31) if step < 0 else 2**31 - 1
        return [(take(self.w, name, start, end, step), value[:, start::step])]

    def _gather(self, name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        indices = self.draw(st.lists(st.integers(0, value.shape[1] - 1), min_size=1, max_size=5))
        return [(self.w.op("Gather", name, self.w.constant(indices), axis=1), value[:, indices])]

    def _stack(self, name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        other, values = self.draw(st.sampled_from([t for t in self.tensors if t[1].shape == value.shape]))
        y = self.w.op("Concat", unsqueeze(self.w, name, [2]), unsqueeze(self.w, other, [2]), axis=2)
        y = self.w.op("Reshape", y, self.w.constant([2, 2 * value.shape[1], 3, 2]))
        return [(y, np.stack([value, values], 2).reshape(2, -1, 3, 2))]

    def _last(self, name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        """Some of the channels as the last axis"""
        stop = self.draw(st.integers(1, value.shape[1]))
        y = take(self.w, self.w.op("Transpose", name, perm=[0, 2, 3, 1]), 0, stop, axis=3)
        return [(self.w.op("Transpose", y, perm=[0, 3, 1, 2]), value[:, :stop])]

    def _relu(self, name: str, value: np.ndarray) -> list[tuple[str, np.ndarray]]:
        return [(self.w.op("Relu", name), np.maximum(value, 0))]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from([9, 13, 18]))
def test_any_order(data: st.DataObject, opset: int) -> None:
    program = Program(data.draw, opset)
    for _ in range(data.draw(st.integers(1, 12))):
        program.step()
    name, value = program.tensors[-1]
    y = program.w.op("Add", name, program.w.constant(1.0))
    agree(program.w.finish(y), program.x, value + 1)
