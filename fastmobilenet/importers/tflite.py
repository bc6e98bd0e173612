"""TensorFlow Lite files -> Graph: float files, and quantised files, dequantised to float32 or as they are.

Start reading here. tflite_schema.py reads the container, tflite_layers.py and tflite_ops.py turn one operator into
nodes, tflite_detection.py the end of a detector, tflite_quantized.py makes them compute on bytes, tflite_metadata.py
says how pixels become inputs and what the classes are called.

**Quantised files, dequantised.** Weights become ``scale * (q - zero point)``, biases ``input scale * weight scale *
q``, computed in float64 and rounded once to float32. Activations are no longer rounded, QUANTIZE and DEQUANTIZE
are identities. Where the range of a quantised tensor stands for an activation, it becomes one
(:func:`tflite_translation.range_activation`).

**Padding.** SAME stays "same" and is resolved for each picture size; the zeros of a PAD are folded into the
VALID convolutions behind it and stay as many pixels at every size, as in TensorFlow Lite itself.

**Pixels.** What the file says of them counts. Where it says nothing, a network that begins with arithmetic with
numbers, as Keras' MobileNetV3 does, gets raw pixels, 0 to 255, and others get pixels from -1 to 1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import PurePath

from ..detection_head import check_head, head_of
from ..errors import ModelError
from ..graph import Graph, Shape, infer_shapes
from ._gates import join_gates
from ._limits import DEFAULT_SIZE, MAX_FILE_ELEMENTS
from .tflite_detection import POSTPROCESS
from .tflite_metadata import read_labels, read_preprocess
from .tflite_ops import FIRST_INPUT_ONLY, translate
from .tflite_quantized import QuantizedTranslation
from .tflite_schema import Operator, Tensor, TfliteFile
from .tflite_translation import Translation, shape4


def load(data: bytes | bytearray | memoryview, name: str = "model.tflite", *, quantized: bool = False) -> Graph:
    """The network in the bytes of a .tflite file.

    ``name`` is the file's name or path, for messages and for the Graph. ``quantized``: what the file computes on bytes
    the Graph does too (see tflite_quantized.py), else it is dequantised. Inputs and outputs are real numbers:
    those of a quantised file are what its codes stand for. Raises ModelError for whatever is damaged or not
    supported. Work and memory are bounded by a small multiple of the file's size.
    """
    try:
        return _read(TfliteFile(data), data, name, quantized)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error


def _read(file: TfliteFile, data: bytes | bytearray | memoryview, name: str, quantized: bool) -> Graph:
    last = next((op for op in file.operators if op.kind == POSTPROCESS), None)
    boxes = last is not None and set(file.outputs) <= set(last.outputs)
    if len(file.inputs) != 1 or (len(file.outputs) != 1 and not boxes) or not file.outputs:
        counts = f"{len(file.inputs)} inputs and {len(file.outputs)} outputs"
        raise ModelError(f"the network has {counts}; one of each is supported")
    source = file.tensor(file.inputs[0])
    batch, height, width, channels = _input_shape(file, source)
    operators = _needed(file)
    if not operators:
        raise ModelError("no operator leads from the input to the output")

    translation = QuantizedTranslation(file) if quantized else Translation(file)
    translation.input(source)
    for operator in operators:
        translate(translation, operator)
    size = DEFAULT_SIZE if source.dynamic else (height, width)
    output = translation.output(file.outputs[0])
    preprocess = read_preprocess(file, source, raw=translation.raw)
    graph = Graph(
        tuple(join_gates(translation.nodes(output), output)),
        output,
        input_size=size,
        input_channels=channels,
        input_layout="NHWC",
        preprocess=replace(preprocess, resize="stretch") if boxes else preprocess,
        name=PurePath(name).name.removesuffix(".tflite"),
    )
    shapes = infer_shapes(graph, batch, *size)
    for node, shape in shapes.items():
        if math.prod(shape) > MAX_FILE_ELEMENTS:
            raise ModelError(f"node {node!r}: a tensor of shape {shape} is too large")
        declared = translation.declared[node]
        if not source.dynamic and shape != declared:
            raise ModelError(f"node {node!r}: the file gives it the shape {declared}, but its inputs give {shape}")
    head = head_of(graph)
    if head is not None:
        check_head(graph[graph.output], graph)
    return graph.replace(labels=read_labels(data, shapes[graph.output][3] if head is None else head.names))


def _input_shape(file: TfliteFile, tensor: Tensor) -> Shape:
    if len(tensor.shape) != 4 or min(tensor.shape) < 1:
        raise ModelError(f"{tensor}: the input must be (batch, height, width, channels), not {list(tensor.shape)}")
    if file.is_constant(tensor.index):
        raise ModelError(f"{tensor}: the input must not be a constant")
    return shape4(tensor)


def _needed(file: TfliteFile) -> list[Operator]:
    """The operators on which the output depends, in the file's order, which is the order of execution.

    What only computes the target of a RESHAPE is not among them: for an open batch, converters write SHAPE,
    STRIDED_SLICE and PACK for that. The declared shape says the same.
    """
    makers: dict[int, Operator] = {}
    for operator in file.operators:
        for output in operator.outputs:
            if output in makers or output in file.inputs:
                raise ModelError(f"{operator}: tensor {output} is made twice")
            makers[output] = operator
    needed: set[int] = set()
    waiting = list(file.outputs)
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is None or maker.index in needed:
            continue
        needed.add(maker.index)
        waiting += maker.inputs[:1] if maker.kind in FIRST_INPUT_ONLY else maker.inputs
    return [operator for operator in file.operators if operator.index in needed]
