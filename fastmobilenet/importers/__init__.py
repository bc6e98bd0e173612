"""Model files -> Graph. One module a format; which one is decided by what the file holds, not by its name.

Every importer takes the bytes of a file and trusts none of them: whatever they are, the result is a Graph or a
ModelError, in time and memory bounded by the size of the file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from typing import BinaryIO

from ..errors import ModelError
from ..graph import Graph

#: A larger file is not a network for pictures on a CPU.
MAX_FILE = 2 * 2**30

SUPPORTED = ".fmn, .onnx, .tflite, .keras, .h5 (Keras), .safetensors, .pth and .pt (state dicts of PyTorch)"
#: Extension -> kind, for a file whose content does not tell it.
BY_EXTENSION = {
    ".onnx": "onnx",
    ".tflite": "tflite",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".safetensors": "safetensors",
    ".pth": "torch",
    ".pt": "torch",
}


def load(
    path: str | os.PathLike[str],
    *,
    arch: str | None = None,
    width: float | None = None,
    classes: int | None = None,
    padding: str | None = None,
    epsilon: float | None = None,
    quantized: bool = False,
) -> Graph:
    """Read a model file: .fmn, .onnx, .tflite, .keras, .h5 (of Keras), .safetensors, or a PyTorch state dict (.pth,
    .pt; needs PyTorch).

    The options are for files that hold weights only (:func:`fastmobilenet.importers.state_dict.to_graph`):

    arch: the network, a name of ``fastmobilenet.models.available()``.
    width, classes: None reads them from the shapes of the tensors.
    padding, epsilon: None takes the conventions of ``arch``.

    quantized: what a .tflite or .onnx file computes on bytes, the Graph does too; else it is dequantised.

    The file is read once; so are files in its folder where an .onnx file keeps its weights. The arrays of an .fmn file
    are views of the file (:func:`fastmobilenet.importers.fmn.load_file`). Raises FileNotFoundError,
    IsADirectoryError and other OSErrors where it cannot be read, and ModelError where it cannot be used: damaged, of an
    unsupported kind, not fitting ``arch``.
    """
    from . import fmn

    name = os.fsdecode(path)
    options = {"arch": arch, "width": width, "classes": classes, "padding": padding, "epsilon": epsilon}
    with open(name, "rb", opener=_open) as file:
        size = _check(file, name)
        if fmn.recognise(file, size):
            _refuse_options(name, options)
            return fmn.load_file(file, name)
        data = file.read(size)
    kind = detect(data, name)
    if kind == "keras":
        from . import keras

        graph = keras.load(data, name)  # first: of a file without a network, this says how to make one with it
        _refuse_options(name, options)
        return graph
    if kind in ("onnx", "tflite"):
        _refuse_options(name, options)
        from . import onnx, tflite

        if kind == "onnx":
            return onnx.load(data, name, folder=os.path.dirname(name) or os.curdir, quantized=quantized)
        return tflite.load(data, name, quantized=quantized)
    from . import safetensors, state_dict, torch

    state = safetensors.read(data, name) if kind == "safetensors" else torch.read(data, name)
    return state_dict.to_graph(
        state, arch=arch, name=name, width=width, classes=classes, padding=padding, epsilon=epsilon
    )


def _refuse_options(name: str, options: Mapping[str, object]) -> None:
    given = [key for key, value in options.items() if value is not None]
    if given:
        raise ModelError(f"{name} holds its own network; {', '.join(given)} cannot be given with it")


def detect(data: bytes, name: str) -> str:
    """The kind of a file, from its content or else from the extension of ``name``: keras, onnx, tflite, safetensors or
    torch.

    Raises ModelError that says what is supported.
    """
    from . import hdf5, keras_archive, onnx_schema, safetensors, torch

    extension = os.path.splitext(name)[1].lower()
    if data[4:8] == b"TFL3":
        return "tflite"
    if data.startswith(torch.LEGACY_MAGIC):
        return "torch"
    if data.startswith(b"PK") and torch.is_zip_of_torch(data):
        return "torch"
    if data.startswith(hdf5.SIGNATURE) or (data.startswith(b"PK") and keras_archive.looks_like(data)):
        return "keras"
    if safetensors.looks_like(data):
        return "safetensors"
    if onnx_schema.looks_like_model(data):
        return "onnx"
    if extension == ".fmn":
        raise ModelError(f"{name} is not a valid .fmn file: it is damaged, or something else has this name")
    if extension not in BY_EXTENSION:
        start = data[:8].hex(" ") or "nothing"
        raise ModelError(f"{name} is not a model file of a known kind (it starts with {start}); supported: {SUPPORTED}")
    return BY_EXTENSION[extension]


def _check(file: BinaryIO, name: str) -> int:
    """The size of an open file, if it is one that can be read."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{name} is not a regular file; give the path of a model file")
    if status.st_size > MAX_FILE:
        raise ModelError(f"{name} has {status.st_size} bytes; a model file has at most {MAX_FILE}")
    return status.st_size


def _open(name: str, flags: int) -> int:
    """Opens without waiting for a writer where the path is a pipe; a folder is refused by its name."""
    if os.path.isdir(name):
        raise IsADirectoryError(errno.EISDIR, "a model file is needed, this is a folder", name)
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
