"""TFLite files that must be refused with a message that says why: unsupported, inconsistent, or hostile."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fastmobilenet.errors import ModelError
from fastmobilenet.importers import tflite, tflite_schema
from tests.test_loader_robustness import check
from tests.tflite_files import RELU, SAME, TANH, VALID, Fields, TfliteWriter, i8, i32, pack, u8, u32

HUGE = 2**31 - 1


def chain(length: int = 2) -> tuple[TfliteWriter, list[int]]:
    """x -> 1x1 convolution -> ... -> y"""
    t = TfliteWriter()
    tensors = [t.tensor(f"t{i}", (1, 4, 4, 3)) for i in range(length + 1)]
    weight = t.constant("w", np.ones((3, 1, 1, 3), np.float32))
    for source, target in itertools.pairwise(tensors):
        t.conv(source, weight, -1, target)
    return t, tensors


def refuse(t: TfliteWriter, source: Any, target: Any, message: str) -> None:
    data = t.finish(source, target)
    assert check([data], run=False) == (0, 1)
    with pytest.raises(ModelError, match=message):
        tflite.load(data)


def test_the_chain_itself_loads() -> None:
    t, (x, _, y) = chain()
    assert check([t.finish(x, y)]) == (1, 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({1: i32(0)}, "the stride is 1x0"),
        ({2: i32(-1)}, "the stride is -1x1"),
        ({1: i32(HUGE)}, "the stride is 1x2147483647"),
        ({4: i32(0)}, "the dilation is 1x0"),
        ({5: i32(HUGE)}, "the dilation is 2147483647x1"),
        ({0: i8(2)}, r"padding 2 is neither SAME \(0\) nor VALID"),
        ({3: i8(-1)}, "fused activation -1"),
    ],
)
def test_absurd_options(options: Fields, message: str) -> None:
    t, (x, _, y) = chain()
    t.operators[1][4] = t.operators[1][4] | options
    refuse(t, x, y, message)


@pytest.mark.parametrize(
    "shape, message",
    [
        ([1, HUGE, HUGE, 3], r"\(1, 2147483647, 2147483647, 3\) is too large"),
        ([1, 2**15, 2**15, 3], "is too large"),
        ([1, -4, 4, 3], "the shape"),
        ([1, 0, 4, 3], "the input must be"),
        ([4, 4, 3], "the input must be"),
        ([], "the input must be"),
        ([1] * 9, "the shape"),
        ([1, 5, 4, 3], "the file gives it the shape"),
        ([2, 4, 4, 3], "the file gives it the shape"),
        ([1, 4, 4, 2], "do not fit 2 input channels"),
    ],
)
def test_absurd_shapes(shape: list[int], message: str) -> None:
    t, (x, _, y) = chain()
    t.tensors[x][0] = np.array(shape, np.int32)
    refuse(t, x, y, message)


@pytest.mark.parametrize("shape", [[3, 1, 1, 4], [HUGE, 1, 1, 3], [HUGE] * 4, [3, 1, 1, 0], [3, 1, 1, -3], [9], []])
def test_weights_that_do_not_have_their_shape(shape: list[int]) -> None:
    t, (x, _, y) = chain()
    t.tensors[-1][0] = np.array(shape, np.int32)
    refuse(t, x, y, "bytes are stored|the shape|must have rank 4")


@pytest.mark.parametrize("buffer", [2, HUGE, 2**32 - 1])
def test_buffers_that_are_not_there(buffer: int) -> None:
    t, (x, _, y) = chain()
    t.tensors[-1][2] = u32(buffer)
    refuse(t, x, y, f"lies in buffer {buffer}, but there are 2")


def test_a_network_that_is_consistent_but_far_too_large() -> None:
    t = TfliteWriter()
    x, y = t.tensor("x", (1, 2**14, 2**14, 3)), t.tensor("y", (1, 2**14, 2**14, 3))
    t.identity(x, y)
    refuse(t, x, y, r"node 'x': a tensor of shape \(1, 16384, 16384, 3\) is too large")


def connect(number: int, **ends: list[int]) -> Callable[[TfliteWriter], None]:
    def change(t: TfliteWriter) -> None:
        for field, name in ((1, "inputs"), (2, "outputs")):
            if name in ends:
                t.operators[number][field] = np.array(ends[name], np.int32)

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (connect(0, inputs=[1, 3, -1]), "t1'.*is not computed before it"),  # reads what it makes
        (connect(0, inputs=[2, 3, -1]), "t2'.*is not computed before it"),  # a cycle
        (connect(0, inputs=[3, 3, -1]), "is a constant"),
        (connect(0, inputs=[-1, 3, -1]), "input 0 is missing"),
        (connect(0, inputs=[0]), "input 1 is missing"),
        (connect(0, inputs=[]), "input 1 is missing"),
        (connect(0, inputs=[0, 0, -1]), "must be a constant"),
        (connect(0, inputs=[0, 3, 0]), "must be a constant"),
        (connect(0, inputs=[0, 3, 3]), "bias has shape"),
        (connect(0, inputs=[0, 4, -1]), "name tensors"),
        (connect(0, inputs=[0, HUGE, -1]), "name tensors"),
        (connect(0, inputs=[0, -2, -1]), "name tensors"),
        (connect(0, outputs=[-1]), "name tensors"),
        (connect(1, outputs=[2, 1]), "tensor 1 is made twice"),
        (connect(1, outputs=[1]), "tensor 1 is made twice"),
        (connect(1, outputs=[0]), "tensor 0 is made twice"),
        (connect(1, outputs=[]), "no operator leads"),
        (lambda t: t.operators[0].update({0: u32(9)}), "operator 0 has code 9"),
        (lambda t: t.operators[0].update({3: u8(2)}), "options of type 2, expected 1"),
        (lambda t: t.operators[0].update({4: None}), "has no options"),
        (lambda t: t.tensors[1].update({1: u8(5)}), r"type 5; float32, float16, .* are read"),
        (lambda t: t.tensors[3].update({6: {}}), "stored sparse"),
        (lambda t: t.tensors[3].update({4: {2: np.float32([1]), 4: u8(1)}}), "not of the kind scale and zero point"),
    ],
)
def test_absurd_connections(change: Callable[[TfliteWriter], Any], message: str) -> None:
    t, (x, _, y) = chain()
    change(t)
    refuse(t, x, y, message)


@pytest.mark.parametrize(
    "ends, message",
    [
        (([0, 1], [2]), "2 inputs and 1 outputs"),
        (([0], [1, 2]), "1 inputs and 2 outputs"),
        (([], []), "0 inputs and 0 outputs"),
        (([0], [0]), "no operator leads"),
        (([0], [3]), "no operator leads"),
        (([0], [4]), "outputs name tensors"),
        (([-1], [2]), "inputs name tensors"),
        (([3], [2]), "the input must not be a constant"),
    ],
)
def test_absurd_ends(ends: tuple[list[int], list[int]], message: str) -> None:
    t, _ = chain()
    refuse(t, *ends, message)


def test_other_versions_and_empty_models() -> None:
    t, (x, _, y) = chain()
    fields = t.fields([x], [y])
    for changed, message in (
        (fields | {0: u32(2)}, "schema version 2"),
        (fields | {2: None}, "no subgraph"),
        (fields | {2: [{}]}, "0 inputs and 0 outputs"),
        (fields | {1: None}, "has code 0, but there are 0"),
        ({}, "schema version 0"),
    ):
        with pytest.raises(ModelError, match=message):
            tflite.load(pack(changed))
    with pytest.raises(ModelError, match="expected b'TFL3'"):
        tflite.load(pack(fields, b"TFL2"))


def test_one_buffer_shared_by_many_tensors_is_not_unfolded() -> None:
    """A megabyte of weights, named by 400 tensors, would be 1.6 GB."""
    n = 400
    t = TfliteWriter()
    buffer = t.buffer(np.ones((512, 1, 1, 512), np.int8))
    tensors = [t.tensor(f"t{i}", (1, 1, 1, 512)) for i in range(n + 1)]
    for source, target in itertools.pairwise(tensors):
        weight = t.tensor("w", (512, 1, 1, 512), "int8", scale=1.0)
        t.tensors[weight][2] = u32(buffer)
        t.conv(source, weight, -1, target)
    refuse(t, tensors[0], tensors[-1], "add up to far more than the file holds")


def test_many_nodes_of_one_name_load_in_time() -> None:
    n = 3000
    t = TfliteWriter()
    tensors = [t.tensor("same", (1, 1, 1, 3)) for _ in range(n + 1)]
    for source, target in itertools.pairwise(tensors):
        t.op("RELU", [source], [target])
    assert check([t.finish(tensors[0], tensors[-1])], run=False, trace=False) == (1, 0)


def test_too_many_operators() -> None:
    t, (x, _, y) = chain()
    t.operators += [t.operators[0]] * tflite_schema.MAX_OPERATORS
    refuse(t, x, y, r"claims 10002 entries; at most 10000 are read")


# --- what is not supported ------------------------------------------------------------------------------

Add = Callable[[TfliteWriter, int, int], None]


def shuffled(t: TfliteWriter, x: int, y: int) -> None:
    t.fully_connected(x, t.constant("w", np.ones((4, 144), np.float32)), -1, y)
    t.operators[-1][4] |= {1: i8(1)}


def constant(t: TfliteWriter, *shape: int, value: float = 1.0) -> int:
    return t.constant("one", np.full(shape, value, np.float32))


def mean(*axes: int) -> Add:
    return lambda t, x, y: t.mean(x, y, axes)


@pytest.mark.parametrize(
    "add, message",
    [
        (lambda t, x, y: t.op("ELU", [x], [y]), "ELU.* is not supported; the nearest supported form is RELU;"),
        (lambda t, x, y: t.op("L2_NORMALIZATION", [x], [y]), "L2_NORMALIZATION.* is not supported"),
        (lambda t, x, y: t.op("RSQRT", [x], [y]), "RSQRT.* is not supported; supported are ADD, AVERAGE_POOL_2D, "),
        (lambda t, x, y: t.op("Edge", [x], [y]), "CUSTOM 'Edge'.* is not supported; supported are ADD, "),
        (lambda t, x, y: t.identity(x, y, activation=TANH), "CONV_2D.*: the fused activation 4 is not supported"),
        (lambda t, x, y: t.average_pool(x, y, (1, 1), activation=TANH), "the fused activation 4 is not supported"),
        (lambda t, x, y: t.average_pool(x, y, (65, 1), padding=SAME), "the window is 65x1; supported is 1 to 64"),
        (lambda t, x, y: t.average_pool(x, y, (1, -1), padding=SAME), "the window is 1x-1"),
        (lambda t, x, y: t.add(x, constant(t, 1, 6, 6, 4), y), r"a constant of the shape \[1, 6, 6, 4\]; supported is"),
        (lambda t, x, y: t.add(x, constant(t, 3), y), "a constant of 3 values does not fit 4 channels"),
        (lambda t, x, y: t.add(constant(t, 4), constant(t, 4), y), "input 1.* is a constant"),
        (lambda t, x, y: t.op("SUB", [x, x], [y], {}, 28), "SUB.* subtracts two maps; supported is a constant"),
        (lambda t, x, y: t.op("DIV", [x, x], [y], {}, 29), "DIV.* divides by a map; supported is a constant"),
        (lambda t, x, y: t.op("DIV", [x, constant(t, 4, value=0)], [y], {}, 29), "infinite or not numbers"),
        (lambda t, x, y: t.op("MINIMUM", [x, x], [y]), "MINIMUM.* compares two maps; supported is a number"),
        (lambda t, x, y: t.op("MAXIMUM", [x, constant(t, 4)], [y]), "compares two maps; supported is a number"),
        (lambda t, x, y: t.op("MUL", [x, x], [y], {0: i8(TANH)}, 21), "the fused activation 4 is not supported"),
        (lambda t, x, y: t.op("MUL", [x, x], [y], {}, 11), "has options of type 11, expected 21"),
        (lambda t, x, y: t.concat([x, x], y, axis=1), "goes along axis 1; supported is the last"),
        (lambda t, x, y: t.concat([x, x], y, activation=RELU), "has a fused activation, which is not supported"),
        (lambda t, x, y: t.max_pool(x, y, (65, 1)), "the window is 65x1; supported is 1 to 64"),
        (lambda t, x, y: t.split(x, [y], axis=1), r"goes along axis \[1\]; supported is the last"),
        (lambda t, x, y: t.split(x, [t.tensor("v", (1, 6, 6, 3))]), "outputs have 3 channels together, its input 4"),
        (lambda t, x, y: t.strided_slice(x, y, (0, 1, 0, 0), (1, 6, 6, 4)), "takes a part of height or width"),
        (lambda t, x, y: t.strided_slice(x, y, (0,) * 4, (1, 6, 6, 4), (1, 1, 1, 0)), "a stride is 0"),
        (lambda t, x, y: t.strided_slice(x, y, (0,) * 4, (1, 6, 6, 4), shrink_mask=1), "adds or removes axes"),
        (lambda t, x, y: t.strided_slice(x, y, (0,) * 4, (1, 6, 6, 0)), "takes channels that its input of 4 channels"),
        (lambda t, x, y: t.slice(x, y, (0, 0, 0, 3), (1, 6, 6, 2)), "takes channels that its input of 4 channels"),
        (lambda t, x, y: t.slice(x, y, (0, 0, 0), (1, 6, 6)), "do not fit"),
        (lambda t, x, y: t.gather(x, y, [0, 4]), "takes channels that its input of 4 channels does not have"),
        (lambda t, x, y: t.gather(x, y, [0, 1], axis=1), "supported is to gather along the last axis"),
        (
            lambda t, x, y: t.transpose(x, y, (0, 2, 1, 3)),
            r"TRANSPOSE.* by \[0, 2, 1, 3\] is not supported; supported is a s",
        ),
        (lambda t, x, y: t.reshape(x, y, (1, 6, 6, 4)), None),
        (
            lambda t, x, y: t.reshape(x, t.tensor("v", (1, 6, 6, 3, 2)), ()),
            r"into \[1, 6, 6, 3, 2\]; supported is to fl",
        ),
        (lambda t, x, y: t.softmax(x, y, beta=1.0), None),
        (lambda t, x, y: t.softmax(x, y, beta=2.0), "beta is 2; supported is 1"),
        (shuffled, "shuffled weights are not supported"),
        (mean(1), r"MEAN.* over the axes \[1\] of a tensor of rank 4; supported are height and width"),
        (mean(1, 3), "height and width"),
        (mean(1, 2, 3), "height and width"),
        (mean(1, 2, 2), "height and width"),
        (mean(-4, 2), "height and width"),
    ],
)
def test_one_operator(add: Add, message: str | None) -> None:
    t = TfliteWriter()
    x, y = t.tensor("image", (1, 6, 6, 4)), t.tensor("block/layer", (1, 6, 6, 4))
    add(t, x, y)
    (last,) = t.operators[-1][2]
    data = t.finish(x, int(last))
    if message is None:
        assert len(tflite.load(data).nodes) <= 2
        return
    with pytest.raises(ModelError, match=message) as caught:
        tflite.load(data, "folder/net.tflite")
    assert re.match(r"folder/net.tflite: node '(block/layer|v)' \(operator 0, ", str(caught.value))


@pytest.mark.parametrize("shape", [(1, 144), (1, 6, 6, 2, 2), (1, 36, 4)])
def test_reshaped_maps(shape: tuple[int, ...]) -> None:
    """They can be reshaped again, or flattened for FULLY_CONNECTED."""
    t = TfliteWriter()
    x, v, y = t.tensor("x", (1, 6, 6, 4)), t.tensor("v", shape), t.tensor("y", shape)
    t.reshape(x, v, shape)
    with pytest.raises(ModelError, match="the network must not end in a RESHAPE"):
        tflite.load(t.finish(x, v))
    t.op("RELU", [v], [y])
    rows, map_ = (
        r"RELU\) reads the rows of a detector",
        r"RELU\): its input .* is a reshaped map; supported is FULLY_CONN",
    )
    with pytest.raises(ModelError, match=rows if len(shape) == 3 else map_):
        tflite.load(t.finish(x, y))


def test_padding_with_other_numbers_than_zero() -> None:
    t = TfliteWriter()
    x, y = t.tensor("x", (1, 4, 4, 4)), t.tensor("y", (1, 6, 6, 4))
    amounts = t.constant("paddings", np.array([(0, 0), (1, 1), (1, 1), (0, 0)], np.int32))
    t.op("PADV2", [x, amounts, constant(t, 1)], [y])
    with pytest.raises(ModelError, match=r"PADV2.* pads with other numbers than zero"):
        tflite.load(t.finish(x, y))


def test_paddings_that_add_up() -> None:
    t = TfliteWriter()
    x = t.tensor("x", (1, 4, 4, 4))
    y = t.padded(t.padded(x, (600, 0, 0, 0)), (600, 0, 0, 0))
    with pytest.raises(ModelError, match=r"adds up to a padding of \(1200, 0, 0, 0\)"):
        tflite.load(t.finish(x, y))


NOTHING, ONE = (0, 0), (1, 1)


@pytest.mark.parametrize(
    "amounts",
    [
        [NOTHING, ONE, ONE, (0, 1)],
        [(1, 0), ONE, ONE, NOTHING],
        [NOTHING, (-1, 1), ONE, NOTHING],
        [NOTHING, (0, 1025), ONE, NOTHING],
        [NOTHING],
        [NOTHING, ONE, ONE, NOTHING, NOTHING],
    ],
)
def test_pad_of_other_axes(amounts: Sequence[tuple[int, int]]) -> None:
    t = TfliteWriter()
    x, p, y = (t.tensor(name, (1, 6, 6, 4)) for name in "xpy")
    t.pad(x, p, amounts)
    t.identity(p, y, padding=VALID)
    with pytest.raises(ModelError, match="supported is zeros around height and width"):
        tflite.load(t.finish(x, y))
