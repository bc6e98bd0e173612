"""Keras files -> Graph: whole models, as ``model.save("name.keras")`` and ``model.save("name.h5")`` write them.

Start reading here. Both kinds hold the network as JSON (keras_config.py) and its weights in HDF5 (hdf5.py,
keras_weights.py); a .keras file is a zip archive of the two (keras_archive.py). keras_layers.py and keras_ops.py turn
one layer into nodes. Neither Keras nor h5py is needed, and nothing that a file holds is executed: a Lambda layer is
refused.

**Versions.** Files of Keras 2 and 3 are read. Where the same name means different things (``hard_sigmoid``), what
counts is the version that wrote the file.

**Pixels.** A network that begins with Rescaling, Normalization or arithmetic with numbers, as keras.applications'
MobileNetV3 does, gets raw pixels, 0 to 255. All others get pixels from -1 to 1: the convention of keras.applications'
MobileNet and MobileNetV2. Give ``preprocess`` for a network that was trained with another one.

**Padding.** "same" is resolved for each picture size; ZeroPadding2D stays as many pixels at every size, as in Keras.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Any

from ..errors import ModelError
from ..graph import Graph
from ..preprocess import RAW, TENSORFLOW
from . import keras_archive, keras_weights
from ._gates import join_gates
from ._limits import DEFAULT_SIZE
from ._text import quote
from .hdf5 import SIGNATURE, Hdf5File
from .keras_config import Layer, Model, Ref, read_json, read_model
from .keras_ops import translate
from .keras_translation import Input, Site, Translation, Value
from .keras_weights import Path


def load(data: bytes | bytearray | memoryview, name: str = "model.keras") -> Graph:
    """The network in the bytes of a .keras or .h5 file.

    ``name`` is the file's name or path, for messages and for the Graph. Raises ModelError for whatever is damaged or
    not supported. Work and memory are bounded by a small multiple of the file's size.
    """
    try:
        if bytes(data[: len(SIGNATURE)]) == SIGNATURE:
            return _from_h5(Hdf5File(data), name)
        if bytes(data[:2]) != b"PK":
            raise ModelError(f"it starts with {bytes(data[:8]).hex(' ') or 'nothing'}, which is neither HDF5 nor zip")
        return _from_archive(bytes(data), name)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error


def _from_archive(data: bytes, name: str) -> Graph:
    archive = keras_archive.read(data)
    model = read_model(read_json(archive.config, keras_archive.CONFIG))
    metadata = read_json(archive.metadata, keras_archive.METADATA)
    version = metadata.get("keras_version") if isinstance(metadata, dict) else None
    weights = keras_weights.from_archive(Hdf5File(archive.weights), model)
    return _graph(model, weights, _major(version, default=3), name, len(data))


def _from_h5(file: Hdf5File, name: str) -> Graph:
    config = file.root.attribute("model_config")
    if not isinstance(config, str):
        raise ModelError(
            "it holds weights only, without the network they belong to (no attribute model_config); "
            "load them in Keras and save the whole model: model.save('name.keras')"
        )
    model = read_model(read_json(config, "model_config"))
    version = _major(file.root.attribute("keras_version"), default=2)
    return _graph(model, keras_weights.from_h5(file, model), version, name, len(file.data))


def _major(version: Any, default: int) -> int:
    """2 of "2.15.0"."""
    first = version.partition(".")[0] if isinstance(version, str) else ""
    if not first:
        return default
    if first not in ("2", "3"):
        raise ModelError(f"it was written by Keras {quote(version)}; supported are Keras 2 and 3")
    return int(first)


def _graph(model: Model, weights: keras_weights.Weights, version: int, name: str, size_of_file: int) -> Graph:
    _, height, width, channels = model.shape if model.shape is not None and len(model.shape) == 4 else [None] * 4
    if channels is None:
        raise ModelError(f"the input must be (batch, height, width, channels), not {quote(model.shape)}")
    dynamic = height is None or width is None
    size = (height or DEFAULT_SIZE[0], width or DEFAULT_SIZE[1])
    t = Translation(weights, version, (1, *size, channels), dynamic, allowance=8 * size_of_file)
    output = t.plain(_run(t, model, (), [t.input], output=0))
    if output.node == "input":
        raise ModelError("no layer leads from the input to the output")
    nodes = join_gates(t.nodes.values(), output.node)
    return Graph(
        tuple(nodes),
        output.node,
        input_size=size,
        input_channels=channels,
        input_layout="NHWC",
        preprocess=RAW if t.raw and channels == 3 else TENSORFLOW,
        name=PurePath(name).name.removesuffix(".keras").removesuffix(".h5"),
    )


def _run(t: Translation, model: Model, path: Path, arguments: list[Input], output: int) -> Value:
    """Translates what output number ``output`` of the model depends on, for the given inputs."""
    if output >= len(model.outputs) or (not path and len(model.outputs) != 1):
        raise ModelError(f"model {quote(model.name)} has {len(model.outputs)} outputs; one is supported")
    if len(arguments) != (1 if model.sequential else len(model.inputs)):
        raise ModelError(f"model {quote(model.name)} has {len(model.inputs)} inputs, but gets {len(arguments)}")
    values: dict[Ref, Input] = {}
    if model.sequential and not model.inputs:
        values[Ref("", 0, 0)] = arguments[0]
    values |= {Ref(inner, 0, 0): value for inner, value in zip(model.inputs, arguments, strict=False)}
    goal = model.outputs[output]
    waiting = [goal]
    open_: set[Ref] = set()
    while waiting:
        ref = waiting[-1]
        if ref in values:
            waiting.pop()
            continue
        layer = _layer(model, ref)
        needed = _arguments(model, layer, ref)
        missing = [source for source in needed if isinstance(source, Ref) and source not in values]
        if missing:
            if ref in open_:
                layer.fail("it depends on its own output")
            open_.add(ref)
            waiting += reversed(missing)
            continue
        inputs = [values[source] if isinstance(source, Ref) else source for source in needed]
        here = (*path, layer.name)
        if layer.inner is not None:
            values[ref] = _run(t, layer.inner, here, inputs, ref.output)
        elif ref.output:
            layer.fail(f"it has one output, and number {ref.output} is used")
        else:
            values[ref] = translate(t, Site(layer, here), inputs)
    result = values[goal]
    assert isinstance(result, Value)
    return result


def _layer(model: Model, ref: Ref) -> Layer:
    layer = model.layers.get(ref.layer)
    if layer is None:
        raise ModelError(f"model {quote(model.name)} has no layer {quote(ref.layer)}, whose output is used")
    if layer.kind == "InputLayer":
        layer.fail("it is used as an input, but the model does not list it as one")
    return layer


def _arguments(model: Model, layer: Layer, ref: Ref) -> tuple[Ref | float, ...]:
    """The arguments of one call of a layer."""
    if model.sequential:
        return layer.calls[0].arguments if layer.calls else (Ref("", 0, 0),)
    # In Keras 2, the first call of a model that has an input of its own is that of its own making, which is not saved.
    own = int(layer.inner is not None and layer.keras_2 and layer.inner.starts_with_input())
    number = ref.call - own
    if not 0 <= number < len(layer.calls):
        layer.fail(f"call number {ref.call} is used, but it has {len(layer.calls)}")
    call = layer.calls[number]
    if call.options:
        layer.fail(f"it is called with {quote(dict(call.options))}, which is not supported")
    return call.arguments
