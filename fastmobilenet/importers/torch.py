"""Reads .pth and .pt files: what torch.save(model.state_dict(), path) writes.

These files are pickles, and a pickle is a program. PyTorch's own loader for weights runs none of it beyond a
short list of functions, but that list still lets a file of 100 bytes ask for gigabytes. So the file is read
twice: first its opcodes and its zip directory are looked at without executing anything, then PyTorch reads it.
"""

from __future__ import annotations

import io
import pickletools
import warnings
import zipfile
from typing import Any

from ..errors import ModelError
from ._text import quote

#: The start of the files of PyTorch before 1.6: a pickled magic number.
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa85019")

#: A state dict needs about 30 opcodes a tensor; this is enough for 20,000 tensors and takes about a second.
MAX_OPCODES = 600_000

_DTYPES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
#: All that the pickle of a state dict refers to.
ALLOWED = frozenset(
    {
        "collections OrderedDict",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_parameter",
        "torch Size",
        *(f"torch {dtype}Storage" for dtype in _DTYPES),
    }
)


def read(data: bytes, name: str) -> Any:
    """The object in the file: a state dict, or a dict that holds one. ``name`` is for messages.

    Nothing in the file is executed. Raises ModelError for a file that is damaged, holds anything but
    tensors in dicts, or asks for more memory than it has bytes, and where PyTorch is not installed.
    """
    try:
        if data.startswith(b"PK\x03\x04"):
            _check_opcodes(_zip_pickle(data), pickles=1)
        elif data.startswith(LEGACY_MAGIC):
            # Magic number, version, machine, state dict, keys of the storages; then come the bytes of the storages.
            _check_opcodes(data, pickles=5)
        else:
            start = data[:8].hex(" ") or "nothing"
            raise ModelError(f"it does not start as files of torch.save do, but with {start}")
    except ModelError as error:
        raise ModelError(f"{name} is not a state dict that can be read: {error}") from None
    try:
        import torch
    except ImportError:
        raise ModelError(
            f"{name}: PyTorch is needed to read .pth and .pt files; pip install fastmobilenet[torch], "
            "or save the state dict with safetensors, which needs nothing"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        _check_storage(loaded, torch.Tensor)
        return loaded
    except Exception as error:  # a damaged file raises anything from KeyError to RuntimeError
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if "weights_only" in reason:  # PyTorch goes on to advise to execute what is in the file
            reason = "it holds more than tensors"
        raise ModelError(f"{name} is not a state dict that PyTorch can read: {reason}") from None


def _check_storage(value: Any, tensor_type: type) -> None:
    """Raise ModelError for a tensor that is larger than its storage: strides of 0 let a few bytes be any shape."""
    if isinstance(value, tensor_type):
        tensor: Any = value
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ModelError(f"a tensor claims the shape {tuple(tensor.shape)}, which its data does not fill")
    elif isinstance(value, dict):
        for item in value.values():
            _check_storage(item, tensor_type)


def is_zip_of_torch(data: bytes) -> bool:
    """Whether a zip file was written by torch.save."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(n == "data.pkl" or n.endswith("/data.pkl") for n in archive.namelist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError):
        return False


def _zip_pickle(data: bytes) -> bytes:
    """The pickle in a zip file. Raises ModelError where the entries do not lie there uncompressed, one after the
    other, as torch.save writes them: what is unpacked is then never larger than the file."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            if any(e.compress_type != zipfile.ZIP_STORED or e.file_size != e.compress_size for e in entries):
                raise ModelError("it is a compressed zip file, and torch.save does not compress")
            if sum(e.file_size for e in entries) > len(data):
                raise ModelError(f"the entries of the zip file claim more than its {len(data)} bytes")
            if any("/code/" in e.filename or e.filename.endswith("constants.pkl") for e in entries):
                raise ModelError("it is a TorchScript program; save model.state_dict() instead")
            pickles = [e for e in entries if e.filename.rpartition("/")[2] == "data.pkl"]
            if len(pickles) != 1:
                raise ModelError(f"a file of torch.save has one data.pkl, and this has {len(pickles)}")
            return archive.read(pickles[0])
    except ModelError:
        raise
    except Exception as error:  # zipfile raises BadZipFile, struct.error, EOFError, NotImplementedError, ...
        raise ModelError(f"the zip file is damaged ({quote(str(error))})") from None


def _check_opcodes(data: bytes, pickles: int) -> None:
    """Look at the pickles at the start of ``data`` without executing them. Raises ModelError for a name outside
    ALLOWED and for too many opcodes."""
    stream, count = io.BytesIO(data), 0
    for _ in range(pickles):
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                count += 1
                if count > MAX_OPCODES:
                    raise ModelError("its pickle is too long for a state dict")
                _check_opcode(opcode.name, argument)
        except ModelError:
            raise
        except Exception as error:  # genops raises ValueError, and others for some damaged arguments
            raise ModelError(f"its pickle is damaged ({quote(str(error))})") from None


def _check_opcode(name: str, argument: object) -> None:
    if name == "GLOBAL":
        if argument not in ALLOWED:
            raise ModelError(
                f"it refers to {quote(str(argument).replace(' ', '.'))}, which no state dict needs. Nothing was "
                "executed. Save model.state_dict() alone"
            )
    elif name in ("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"):
        raise ModelError(
            f"its pickle uses {name}, which torch.save(model.state_dict(), path) with the default protocol does not"
        )
