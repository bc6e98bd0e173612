"""Reads .fmn files, which fastmobilenet/fmn.py writes and describes. No byte of the file is trusted."""

from __future__ import annotations

import dataclasses
import mmap
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, TypeVar

import numpy as np

from .. import in_file
from ..activation import Activation
from ..attributes import check_graph
from ..errors import ModelError
from ..fmn import CHECKSUM, KEY, NO_CHECKSUM, VERSION, checksum
from ..graph import Graph, Node
from ..preprocess import Preprocess
from ..quantization import Quant
from . import safetensors
from ._text import quote

T = TypeVar("T")

#: As a key with a string as its value it can be in the metadata only, so the file is one of ours or damaged.
_MARK = b'"%s"' % KEY.encode()


def recognise(file: BinaryIO, size: int) -> bool:
    """Whether a file of ``size`` bytes, just opened, is a .fmn file. It is read from where it stands, and stands
    there again afterwards."""
    place = file.tell()
    try:
        start = file.read(9)
        if len(start) < 9 or start[8:9] != b"{":
            return False
        header = struct.unpack_from("<Q", start)[0]
        if header > min(size - 8, safetensors.MAX_HEADER):
            return False
        return any(_is_key_of_string(behind) for behind in file.read(header).split(_MARK)[1:])
    finally:
        file.seek(place)


def _is_key_of_string(behind: bytes) -> bool:
    behind = behind.lstrip()
    return behind.startswith(b":") and behind[1:].lstrip().startswith(b'"')


def load_file(file: BinaryIO, name: str) -> Graph:
    """The network in an open file, as :func:`load` gives it. Its arrays are views of the file, which stays mapped as
    long as there is one of them. (Where files cannot be mapped it is read.)

    A file may be replaced by another one meanwhile, as :func:`fastmobilenet.fmn.save` does. But one that is cut off in
    place takes the pages away under the arrays, and the operating system ends a process that reads them then (SIGBUS).
    A Model keeps no such array: it is safe as soon as it is loaded (in_file.py).
    """
    try:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # a file system that cannot map files; or the file has become empty
        return load(file.read(), name)
    graph, checksum = _named(data, name)

    def unchanged(found: bytes) -> None:
        metadata, _, begin = safetensors.read_all(found)
        _check_sum(metadata, found, begin)
        if metadata[CHECKSUM] != checksum:
            raise ModelError("another network")

    in_file.register(data, file.fileno(), name, unchanged)
    return graph


def load(data: safetensors.Bytes, name: str = "model.fmn") -> Graph:
    """The network in the bytes of a .fmn file.

    The arrays are read-only views of ``data``. ``name`` is the file's name or path, for messages. Raises ModelError for
    whatever is damaged or not supported.
    """
    return _named(data, name)[0]


def _named(data: safetensors.Bytes, name: str) -> tuple[Graph, str]:
    try:
        return _read(data)
    except ModelError as error:
        raise ModelError(f"{name} is not a valid .fmn file: {error}") from None


def _read(data: safetensors.Bytes) -> tuple[Graph, str]:
    """The network, and the checksum of the file."""
    metadata, tensors, begin = safetensors.read_all(data)
    _check_version(metadata)
    _check_sum(metadata, data, begin)
    unknown = set(metadata) - {CHECKSUM, KEY, "graph", "preprocess", "labels"}
    if unknown:
        raise ModelError(f"its metadata holds {quote(min(unknown))}, which is unknown")
    fields = _Fields(_json(metadata, "graph"), "the graph")
    reader = _Reader(tensors)
    nodes = tuple(reader.node(_Fields(n, "a node")) for n in fields.take("nodes", list))
    source = _Fields(fields.take("input", dict), "the input")
    graph = Graph(
        nodes,
        fields.take("output", str),
        input_size=_pair(source.take("size", list)),
        input_channels=source.take("channels", int),
        input_layout=source.take("layout", str),
        preprocess=_preprocess(_json(metadata, "preprocess")),
        labels=_labels(metadata),
        name=fields.take("name", str),
    )
    source.finish()
    fields.finish()
    reader.finish()
    check_graph(graph)
    return graph, metadata[CHECKSUM]


def _check_version(metadata: Mapping[str, str]) -> None:
    version = metadata.get(KEY, "")
    if not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise ModelError(f"its metadata gives the version as {quote(version)}; it must be a whole number")
    if int(version) > VERSION:
        raise ModelError(
            f"it was written by a newer fastmobilenet, in version {version} of the format; this one reads versions up "
            f"to {VERSION}: update fastmobilenet, or convert the original file again"
        )


def _check_sum(metadata: Mapping[str, str], data: safetensors.Bytes, begin: int) -> None:
    claimed = metadata.get(CHECKSUM, "")
    if not re.fullmatch(r"[0-9a-f]{64}", claimed):
        raise ModelError(f"its checksum {quote(claimed)} must have 64 hexadecimal digits")
    header = bytes(data[8:begin]).replace(claimed.encode(), NO_CHECKSUM.encode(), 1)
    if checksum(header, [memoryview(data)[begin:]]) != claimed:
        raise ModelError("its checksum is not that of its content: the file is damaged, or was changed by hand")


def _json(metadata: Mapping[str, str], key: str) -> Any:
    if key not in metadata:
        raise ModelError(f"its metadata has no {key}")
    return safetensors.parse_json(metadata[key], f"the {key}")


class _Fields:
    """An object of JSON, from which every field is taken once, with its type."""

    def __init__(self, value: Any, what: str) -> None:
        if not isinstance(value, dict):
            raise ModelError(f"{what} must be an object, not {quote(value)}")
        self._left = dict(value)
        self.what = what

    def take(self, key: str, kind: type) -> Any:
        value = self._left.pop(key, None)
        if type(value) is not kind:  # True is no int here
            raise ModelError(f"{self.what}: {key} is {quote(value)}; expected {_KINDS[kind]}")
        return value

    def finish(self) -> None:
        if self._left:
            raise ModelError(f"{self.what}: {quote(next(iter(self._left)))} is unknown")


_KINDS = {str: "text", int: "a whole number", list: "a list", dict: "an object"}


class _Reader:
    """Makes nodes, and keeps account of the arrays that they use."""

    def __init__(self, tensors: Mapping[str, np.ndarray]) -> None:
        self._tensors = tensors
        self._unused = dict.fromkeys(tensors)

    def node(self, fields: _Fields) -> Node:
        name = fields.take("name", str)
        fields.what = f"node {quote(name)}"
        op, inputs = fields.take("op", str), fields.take("inputs", list)
        attrs, params = fields.take("attrs", dict), fields.take("params", dict)
        fields.finish()
        if not all(type(source) is str for source in inputs):
            raise ModelError(f"{fields.what}: inputs is {quote(inputs)}; expected names")
        return Node(
            name,
            op,
            tuple(inputs),
            {key: self._value(value, f"{fields.what}: {key}") for key, value in attrs.items()},
            {key: self._array(value, f"{fields.what}: {key}") for key, value in params.items()},
        )

    def finish(self) -> None:
        if self._unused:
            raise ModelError(f"array {quote(next(iter(self._unused)))} belongs to no node")

    def _array(self, name: Any, what: str) -> np.ndarray:
        if type(name) is not str or name not in self._tensors:
            raise ModelError(f"{what} is array {quote(name)}, which is not there")
        self._unused.pop(name, None)
        array = self._tensors[name]
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _value(self, value: Any, what: str) -> Any:
        if isinstance(value, list):
            return tuple(_number(v, what) for v in value)
        if not isinstance(value, dict):
            return value if value is None or isinstance(value, (bool, str)) else _number(value, what)
        if "activation" in value:
            return _activation(value, what)
        if set(value) == {"scale", "zero"}:
            return _quant(value, what)
        if set(value) == {"tensor"}:
            return self._array(value["tensor"], what).copy()  # small, and it outlives the file in a Model
        return _number(value, what)


def _number(value: Any, what: str) -> int | float:
    if isinstance(value, dict) and set(value) == {"float"} and value["float"] in ("inf", "-inf", "nan"):
        return float(value["float"])
    if type(value) is float or (type(value) is int and abs(value) < 2**63):
        return value
    raise ModelError(f"{what} is {quote(value)}; expected a number")


def _activation(value: Mapping[str, Any], what: str) -> Activation:
    names = [field.name for field in dataclasses.fields(Activation) if field.name != "kind"]
    if set(value) != {"activation", *names} or type(value["activation"]) is not str:
        raise ModelError(f"{what} must have activation, {', '.join(names)}, not {quote(list(value))}")
    numbers = {name: _number(value[name], f"{what}: {name}") for name in names}
    return _refused(what, lambda: Activation(value["activation"], **numbers))


def _quant(value: Mapping[str, Any], what: str) -> Quant:
    scale, zero = value["scale"], value["zero"]
    if type(scale) is not float or type(zero) is not int:
        raise ModelError(f"{what} is {quote(value)}; expected a scale and a zero point")
    with np.errstate(over="ignore"):  # the infinite float32 that it may become is refused
        return _refused(what, lambda: Quant(scale, zero))


def _pair(value: list[Any]) -> tuple[int, int]:
    if len(value) != 2 or not all(type(v) is int for v in value):
        raise ModelError(f"the input: size is {quote(value)}; expected height and width")
    return value[0], value[1]


def _preprocess(value: Any) -> Preprocess:
    names = {field.name for field in dataclasses.fields(Preprocess)}
    if not isinstance(value, dict) or set(value) != names:
        raise ModelError(f"the preprocessing must have {', '.join(sorted(names))}")
    return _refused("the preprocessing", lambda: Preprocess(**value))


def _labels(metadata: Mapping[str, str]) -> tuple[str, ...] | None:
    if "labels" not in metadata:
        return None
    labels = _json(metadata, "labels")
    if not isinstance(labels, list) or not all(type(label) is str for label in labels):
        raise ModelError("the labels must be a list of texts")
    return tuple(labels)


def _refused(what: str, make: Callable[[], T]) -> T:
    """What ``make`` gives; its TypeError or ValueError (a ModelError among them) as a ModelError about ``what``."""
    try:
        return make()
    except (TypeError, ValueError) as error:
        raise ModelError(f"{what}: {str(error)[:300]}") from None
