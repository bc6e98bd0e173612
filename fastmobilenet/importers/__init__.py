"""Model files -> Graph. One module a format; which one is decided by what the file holds, not by its name.

Every importer takes the bytes of a file and trusts none of them: whatever they are, the result is a Graph or a
ModelError, in time and memory bounded by the size of the file.
"""

from __future__ import annotations

import errno
import os
import stat

from ..errors import ModelError
from ..graph import Graph

#: A larger file is not a network for pictures on a CPU.
MAX_FILE = 2 * 2**30

SUPPORTED = ".onnx, .tflite, .safetensors, .pth and .pt (state dicts of PyTorch)"
#: Formats that are known but not read: what they are called, for the message.
UNSUPPORTED = {".h5": "Keras HDF5", ".hdf5": "Keras HDF5", ".keras": "Keras", ".fmn": "fastmobilenet"}
#: Extension -> kind, for a file whose content does not tell it.
BY_EXTENSION = {
    ".onnx": "onnx",
    ".tflite": "tflite",
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
) -> Graph:
    """Read a model file: .onnx, .tflite, .safetensors, or a PyTorch state dict (.pth, .pt; needs PyTorch).

    The options are for files that hold weights only (:func:`fastmobilenet.importers.state_dict.to_graph`):

    arch: the network, a name of ``fastmobilenet.models.available()``.
    width, classes: None reads them from the shapes of the tensors.
    padding, epsilon: None takes the conventions of ``arch``.

    The file is read once; so are files in its folder where an .onnx file keeps its weights. Raises FileNotFoundError,
    IsADirectoryError and other OSErrors where it cannot be read, and ModelError where it cannot be used: damaged, of an
    unsupported kind, not fitting ``arch``.
    """
    name = os.fsdecode(path)
    data = _read(name)
    kind = detect(data, name)
    if kind in ("onnx", "tflite"):
        options = {"arch": arch, "width": width, "classes": classes, "padding": padding, "epsilon": epsilon}
        given = [key for key, value in options.items() if value is not None]
        if given:
            raise ModelError(f"{name} holds its own network; {', '.join(given)} cannot be given with it")
        from . import onnx, tflite

        if kind == "onnx":
            return onnx.load(data, name, folder=os.path.dirname(name) or os.curdir)
        return tflite.load(data, name)
    from . import safetensors, state_dict, torch

    state = safetensors.read(data, name) if kind == "safetensors" else torch.read(data, name)
    return state_dict.to_graph(
        state, arch=arch, name=name, width=width, classes=classes, padding=padding, epsilon=epsilon
    )


def detect(data: bytes, name: str) -> str:
    """The kind of a file, from its content or else from the extension of ``name``: onnx, tflite, safetensors or torch.

    Raises ModelError that says what is supported.
    """
    from . import onnx_schema, safetensors, torch

    extension = os.path.splitext(name)[1].lower()
    if data[4:8] == b"TFL3":
        return "tflite"
    if data.startswith(torch.LEGACY_MAGIC):
        return "torch"
    if data.startswith(b"PK") and torch.is_zip_of_torch(data):
        return "torch"
    if data.startswith(b"\x89HDF\r\n\x1a\n"):
        extension = ".h5"
    elif safetensors.looks_like(data):
        return "safetensors"
    elif onnx_schema.looks_like_model(data):
        return "onnx"
    if extension in UNSUPPORTED:
        raise ModelError(f"{name}: {UNSUPPORTED[extension]} files are not supported; supported: {SUPPORTED}")
    if extension not in BY_EXTENSION:
        start = data[:8].hex(" ") or "nothing"
        raise ModelError(f"{name} is not a model file of a known kind (it starts with {start}); supported: {SUPPORTED}")
    return BY_EXTENSION[extension]


def _read(name: str) -> bytes:
    with open(name, "rb", opener=_open) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ModelError(f"{name} is not a regular file; give the path of a model file")
        if status.st_size > MAX_FILE:
            raise ModelError(f"{name} has {status.st_size} bytes; a model file has at most {MAX_FILE}")
        return file.read(status.st_size)


def _open(name: str, flags: int) -> int:
    """Opens without waiting for a writer where the path is a pipe; a folder is refused by its name."""
    if os.path.isdir(name):
        raise IsADirectoryError(errno.EISDIR, "a model file is needed, this is a folder", name)
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
