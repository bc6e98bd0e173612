"""ONNX files -> Graph: networks as PyTorch, tf2onnx and others export them, and as ONNX Runtime quantises them.

Start reading here. protobuf.py reads the wire format; onnx_schema.py, onnx_operator.py, onnx_functions.py and
onnx_tensors.py the container, onnx_external.py weights in other files; onnx_fold.py computes what is constant;
onnx_ops.py and onnx_layers.py turn one operator into one node, and onnx_views.py those that compute nothing into none;
onnx_values.py keeps track of axes and channels, and onnx_simplify.py joins what exporters took apart. Of quantised
files, onnx_quantized.py reads the operators and onnx_bytes.py makes nodes that compute on bytes. No other library is
needed.

**Layout.** An ONNX network computes on (n, c, h, w), and so do arrays given to the Graph, unless all that is done to
the input is to transpose it from (n, h, w, c) first, as in networks converted from TensorFlow.

**Size.** A network of a fixed size runs at others too: a Reshape that flattens a 1x1 map does so at any size, an
AveragePool over all of a map is a global one, and one of single pixels before a dense layer gives a map of the same
size always. auto_pad SAME_UPPER stays "same". Explicit pads stay as many pixels: where an exporter wrote them for one
size of the picture (a ceil_mode before opset 10, or TensorFlow's padding in PyTorch), the file is right for that alone.

**Preprocessing.** An ONNX file does not say what it was trained with. The Graph of a network for colour pictures gets
what is usual: the ImageNet statistics of torchvision, or for a network in (n, h, w, c) TensorFlow's x / 127.5 - 1. If
the network normalises its input itself, it gets plain pixels: of 0..255 if it divides by about as much, else of 0..1.
"""

from __future__ import annotations

from pathlib import PurePath

import numpy as np

from ..errors import ModelError
from ..graph import Graph, Node, Shape, infer_shapes
from ..preprocess import IMAGENET, TENSORFLOW, Preprocess
from ._gates import is_affine
from ._limits import DEFAULT_SIZE
from ._text import quote
from .onnx_bytes import to_bytes
from .onnx_operator import Operator
from .onnx_ops import translate
from .onnx_schema import Input, OnnxFile
from .onnx_simplify import simplify
from .onnx_tensors import FLOATS, dtype_name
from .onnx_translation import Translation

#: Operators that may come between the input and the Transpose that makes it (n, c, h, w).
_ELEMENTWISE = frozenset(
    {"Add", "Cast", "Clip", "DequantizeLinear", "Div", "Identity", "Mul", "Pad", "QuantizeLinear", "Sub"}
)

_RAW_255 = Preprocess(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
_RAW_1 = Preprocess(mean=(0.0, 0.0, 0.0), std=(255.0, 255.0, 255.0))
#: A network whose normalisation multiplies by less takes pixels of 0..255. Usual are 1/255, 1/127.5 and 1/58; for
#: pixels of 0..1 they are 2 and 4.4.
_MAX_SCALE_255 = 0.1


def load(
    data: bytes | bytearray | memoryview,
    name: str = "model.onnx",
    *,
    folder: str | None = None,
    quantized: bool = False,
) -> Graph:
    """The network in the bytes of an .onnx file.

    ``name`` is the file's name or path, for messages and for the Graph. ``folder`` is where the file lies: weights that
    are stored in other files are read from there and from nowhere else; without it they are refused. ``quantized``:
    what the file computes on bytes the Graph does too (see onnx_quantized.py), else it is dequantised. Raises
    ModelError for whatever is damaged or not supported. Work and memory are bounded by a small multiple of the size of
    the files.
    """
    try:
        return _read(OnnxFile(data, folder), name, quantized)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error


def _read(file: OnnxFile, name: str, quantized: bool) -> Graph:
    if len(file.outputs) != 1:
        raise ModelError(f"the network has {len(file.outputs)} outputs; one is supported")
    operators = _needed(file)
    source = _input(file, operators)
    layout = _layout(file, source)
    dims = dict(zip(layout.lower(), source.shape or (), strict=True))
    height, width = dims["h"] or DEFAULT_SIZE[0], dims["w"] or DEFAULT_SIZE[1]
    sizes = (dims["n"] or 1, height, width, dims["c"] or _channels(file, operators))

    translation = Translation(file, dynamic=dims["h"] is None or dims["w"] is None, quantized=quantized)
    translation.input(source.name, layout.lower(), sizes)
    for operator in operators:
        translate(translation, operator)
    output = _output(translation, file.outputs[0], layout.lower())
    nodes = simplify(translation.nodes.values(), output)
    preprocess = _preprocess(nodes, sizes, layout)
    if translation.bytes:
        signed = all(codes.signed for codes in translation.bytes.values())
        nodes, output = to_bytes(nodes, output, signed)
    graph = Graph(
        tuple(nodes),
        output,
        input_size=(height, width),
        input_channels=sizes[3],
        input_layout=layout,
        preprocess=preprocess,
        name=PurePath(name).name.removesuffix(".onnx"),
    )
    infer_shapes(graph, sizes[0], height, width)
    return graph


def _needed(file: OnnxFile) -> list[Operator]:
    """The operators on which the output depends, in the file's order, which is the order of execution."""
    makers: dict[str, Operator] = {}
    for operator in file.operators:
        for output in filter(None, operator.outputs):
            if output in makers:
                operator.fail(f"its output {quote(output)} is made twice")
            makers[output] = operator
    needed: set[int] = set()
    waiting = list(file.outputs)
    while waiting:
        maker = makers.get(waiting.pop())
        if maker is not None and maker.index not in needed:
            needed.add(maker.index)
            waiting += maker.inputs
    return [operator for operator in file.operators if operator.index in needed]


def _input(file: OnnxFile, operators: list[Operator]) -> Input:
    """The one input on which the output depends."""
    read = {name for operator in operators for name in operator.inputs}
    inputs = {i.name: i for i in file.inputs if i.name in read}
    if len(inputs) != 1:
        names = ", ".join(quote(name) for name in list(inputs)[:5]) or "none"
        raise ModelError(f"the output depends on {len(inputs)} inputs ({names}); one is supported")
    (source,) = inputs.values()
    if source.dtype not in FLOATS:
        kinds = ", ".join(map(dtype_name, FLOATS))
        raise ModelError(f"{source} holds {dtype_name(source.dtype)}; supported are {kinds}")
    if source.shape is None or len(source.shape) != 4:
        shape = "no shape" if source.shape is None else f"{len(source.shape)} axes"
        raise ModelError(f"{source} has {shape}; it must be (batch, channels, height, width)")
    return source


def _layout(file: OnnxFile, source: Input) -> str:
    """NHWC where the network begins with a Transpose from that, else NCHW."""
    readers: dict[str, list[Operator]] = {}
    for operator in file.operators:
        for name in operator.inputs:
            readers.setdefault(name, []).append(operator)
    name = source.name
    for _ in file.operators:
        first = readers.get(name, [])
        if first and all(o.kind == "Transpose" and o.integers("perm") == [0, 3, 1, 2] for o in first):
            return "NHWC"
        if len(first) != 1 or first[0].kind not in _ELEMENTWISE or not first[0].outputs:
            break
        name = first[0].outputs[0]
    return "NCHW"


def _channels(file: OnnxFile, operators: list[Operator]) -> int:
    """The channels of an input that leaves them open: what the first convolution takes."""
    for operator in operators:
        if operator.kind in ("Conv", "QLinearConv") and len(operator.inputs) > 3 * (operator.kind == "QLinearConv") + 1:
            weight = operator.inputs[1 if operator.kind == "Conv" else 3]
            codes = next(
                (o.inputs[0] for o in operators if o.kind == "DequantizeLinear" and weight in o.outputs), weight
            )
            shape = file.initializer_shape(codes)
            if shape is not None and len(shape) == 4 and shape[1] * operator.integer("group", 1) > 0:
                return shape[1] * operator.integer("group", 1)
            break
    raise ModelError("the input leaves the number of channels open; export with 3, or as many as it has")


def _output(translation: Translation, name: str, layout: str) -> str:
    """The node that makes the network's output."""
    value = translation.output(name)
    if value is not None and any(node in translation.bytes for node, _ in value.nodes):
        raise ModelError(f"the output {quote(name)} holds codes of bytes; supported is an output of floats")
    if value is None:
        raise ModelError(f"the output {quote(name)} must be a layer's, not a constant, a Pad or half of a mean")
    node = value.nodes[0][0]
    if node == next(iter(translation.nodes)):
        raise ModelError(f"the output {quote(name)} is the input")
    if value.sizes[1:3] != (1, 1) and not value.fits(layout):
        raise ModelError(
            f"the output {quote(name)} is a map of {list(value.shape)} that is not in the layout of the input, "
            f"{layout.upper()}, which is what is supported"
        )
    return node


def _preprocess(nodes: list[Node], sizes: Shape, layout: str) -> Preprocess:
    """What is probably to be done to pixels: see the head of this file."""
    if sizes[3] != 3:
        return Preprocess()
    readers = [node for node in nodes if nodes[0].name in node.inputs]
    for op in ("quantize", "dequantize"):
        if len(readers) == 1 and readers[0].op == op:
            readers = [node for node in nodes if readers[0].name in node.inputs]
    if len(readers) == 1 and readers[0].op == "gather_channels":  # RGB to BGR
        readers = [node for node in nodes if readers[0].name in node.inputs]
    if len(readers) == 1 and is_affine(readers[0]):
        scale = float(np.abs(readers[0].params["gamma"]).max())
        return _RAW_255 if scale < _MAX_SCALE_255 else _RAW_1
    return IMAGENET if layout == "NCHW" else TENSORFLOW
