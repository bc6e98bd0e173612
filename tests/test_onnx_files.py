"""ONNX files: how they are told from others, how they store tensors, and weights in files beside them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import importers, preprocess
from fastmobilenet.errors import ModelError
from fastmobilenet.importers import onnx, protobuf
from tests.onnx_files import BFLOAT16, TYPES, OnnxWriter, bfloat16_bits, entry, field, fields, tensor, varint

WEIGHT = np.linspace(-2, 2, 24, dtype=np.float32).reshape(4, 6, 1, 1)


def one_conv(**storage: Any) -> OnnxWriter:
    """x (1, 6, 3, 3) -> Conv with WEIGHT, stored in the given way"""
    w = OnnxWriter()
    w.op("Conv", w.input(1, 6, 3, 3), w.constant(WEIGHT, "weight", **storage), output="y")
    return w


def weight_of(data: bytes | memoryview, **where: Any) -> np.ndarray:
    return onnx.load(data, **where)["y"].params["weight"]


# --- which files are ONNX -------------------------------------------------------------------------------


def test_load_tells_onnx_by_its_content(tmp_path: Path) -> None:
    data = one_conv().finish("y")
    for name in ("net.onnx", "net.tflite", "net.pth", "net.h5", "net.bin", "net"):
        path = tmp_path / name
        path.write_bytes(data)
        for given in (path, str(path), os.fsencode(path)):
            graph = importers.load(given)  # type: ignore[arg-type]
            np.testing.assert_array_equal(graph["y"].params["weight"], WEIGHT.transpose(0, 2, 3, 1))
    assert (graph.name, importers.load(tmp_path / "net.onnx").name) == ("net", "net")
    assert importers.load(tmp_path / "net.onnx").labels is None
    with pytest.raises(ModelError, match="holds its own network; arch, classes cannot be given with it"):
        importers.load(path, arch="mobilenet_v2", classes=7)


def test_the_extension_decides_what_the_content_does_not(tmp_path: Path) -> None:
    for data in (b"", b"\n", one_conv().finish("y")[:-30]):
        (tmp_path / "net.onnx").write_bytes(data)
        with pytest.raises(ModelError, match=r"net\.onnx: the (model|file)"):
            importers.load(tmp_path / "net.onnx")
        (tmp_path / "net").write_bytes(data)
        with pytest.raises(ModelError, match=r"not a model file of a known kind.*supported: .*\.onnx, "):
            importers.load(tmp_path / "net")


def test_colour_pictures_are_normalised_as_torchvision_does() -> None:
    w = OnnxWriter()
    assert onnx.load(w.finish(w.op("Relu", w.input(1, 3, 4, 4)))).preprocess == preprocess.IMAGENET


# --- how tensors are stored -----------------------------------------------------------------------------


@pytest.mark.parametrize("typed", ["", "packed", "single"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
def test_storage_of_floats(dtype: str, typed: str) -> None:
    if dtype == "bfloat16":
        bits = bfloat16_bits(WEIGHT)
        expected = (bits.astype(np.uint32) << 16).view(np.float32)
        data = one_conv_of(tensor(bits, "weight", dtype=BFLOAT16, typed=typed))
    else:
        expected = WEIGHT.astype(dtype).astype(np.float32)
        data = one_conv_of(tensor(WEIGHT.astype(dtype), "weight", typed=typed))
    np.testing.assert_array_equal(weight_of(data), expected.transpose(0, 2, 3, 1))


def one_conv_of(initializer: bytes) -> bytes:
    w = one_conv()
    w.initializers = [initializer]
    return w.finish("y")


@pytest.mark.parametrize("typed", ["", "packed", "single"])
@pytest.mark.parametrize("dtype", [t for t in TYPES if not t.startswith("float")])
def test_storage_of_integers(dtype: str, typed: str) -> None:
    """Each value, cast to a float, becomes a bias."""
    values = {
        "bool": [True, False, True, True],
        "int64": [-(2**40), -1, 0, 2**40],
        "int32": [-(2**31), -1, 2**7, 2**31 - 1],
        "uint32": [0, 127, 128, 2**32 - 2**8],
        "uint64": [0, 127, 128, 2**63],
    }.get(dtype, [0, 1, 100, 127] if dtype.startswith("u") else [-128, -1, 0, 127])
    array = np.array(values, dtype)
    w = one_conv()
    bias = w.op("Cast", w.constant(array, "b", typed=typed), to=1)
    graph = onnx.load(w.finish(w.op("Add", "y", w.op("Reshape", bias, w.constant([4, 1, 1])), output="z")))
    np.testing.assert_array_equal(graph["z"].params["bias"], array.astype(np.float32))


def test_the_graph_keeps_nothing_of_the_file() -> None:
    """Its weights are arrays of their own, aligned; so the file's bytes can go."""
    for cut in range(4):
        data = np.frombuffer(bytes(cut) + one_conv().finish("y"), np.uint8)[cut:]
        weight = weight_of(data.data)
        assert weight.flags.aligned and weight.flags.c_contiguous
        assert not np.shares_memory(weight, data)


def test_any_buffer_can_be_read() -> None:
    data = one_conv().finish("y")
    for given in (data, bytearray(data), memoryview(data), memoryview(np.frombuffer(data, np.int8))):
        assert weight_of(given).shape == (4, 1, 1, 6)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="in one piece"):
        onnx.load(memoryview(data)[::2])


def test_weights_that_inputs_list_too() -> None:
    """Up to IR version 3 all initializers were inputs."""
    w = one_conv()
    w.input(4, 6, 1, 1, name="weight")
    w.ir_version = 3
    assert weight_of(w.finish("y")).shape == (4, 1, 1, 6)


def test_varints() -> None:
    kind = protobuf.Kind("a test", {1: 10, 2: 10})
    numbers = [0, 1, 127, 128, 300, 2**31, 2**63 - 1, -1, -(2**63)]
    packed = field(2, b"".join(map(varint, numbers)))
    message = protobuf.Message(memoryview(fields(1, numbers) + packed), kind, protobuf.Budget())
    assert message.integers(1).tolist() == message.integers(2).tolist() == numbers
    assert message.integer(1) == -(2**63)
    for wrong in (b"\x80", b"\xff" * 9 + b"\x02", b"\xff" * 10 + b"\x01"):
        with pytest.raises(ModelError, match="a test: "):
            protobuf.Message(memoryview(b"\x08" + wrong), kind, protobuf.Budget())
        with pytest.raises(ModelError, match="a test: field 2"):
            protobuf.Message(memoryview(field(2, b"\x01" + wrong)), kind, protobuf.Budget()).integers(2)


# --- weights in other files -----------------------------------------------------------------------------


def external(folder: Path, location: str = "net.data", at: str | None = None, **entries: object) -> Path:
    """A model whose weight lies in ``location``, and that file, written at ``at``, after 8 other bytes."""
    claims = {"location": location, "offset": 8, "length": WEIGHT.nbytes} | entries
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / (location if at is None else at)).write_bytes(bytes(8) + WEIGHT.tobytes())
    known = {key: value for key, value in claims.items() if value is not None}
    return one_conv(external=known).write(folder / "net.onnx", "y")


@pytest.mark.parametrize("location", ["net.data", "./net.data", "sub/net.data", "net.onnx.data", "..data", "a b"])
def test_external_data(tmp_path: Path, location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path, location)
    np.testing.assert_array_equal(importers.load(path)["y"].params["weight"], WEIGHT.transpose(0, 2, 3, 1))
    monkeypatch.chdir(tmp_path)
    assert importers.load("net.onnx")["y"].params["weight"].shape == (4, 1, 1, 6)


def test_external_data_from_the_start_to_the_end(tmp_path: Path) -> None:
    path = external(tmp_path, offset=None, length=None)
    (tmp_path / "net.data").write_bytes(WEIGHT.tobytes())
    np.testing.assert_array_equal(importers.load(path)["y"].params["weight"], WEIGHT.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    "location",
    [
        *("../net.data", "sub/../../net.data", "sub/../net.data", "..", ".", "", "/", "//net.data", "a//b", "sub/"),
        *("..\\net.data", "sub\\net.data", "C:net.data", "C:\\net.data", "net.data\0", "{absolute}"),
    ],
)
def test_external_data_outside_of_the_folder(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    path = external(folder, location.format(absolute=folder / "net.data"), at="net.data")
    shutil.copy(folder / "net.data", tmp_path)
    with pytest.raises(ModelError, match=r"'weight': its data .* only files in the folder of the model are read"):
        importers.load(path)


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"offset": 9}, r"bytes 9 to 105 of 'net\.data', which has 104"),
        ({"offset": 10**17}, "which has 104"),
        ({"offset": 2**64}, "the offset or length '18446744073709551616'"),
        ({"offset": -8}, "the offset or length '-8'"),
        ({"offset": "8.0"}, "the offset or length '8.0'"),
        ({"offset": ""}, "the offset or length ''"),
        ({"offset": "²"}, "the offset or length"),
        ({"length": 95}, "95 bytes of another file are claimed, but the shape needs 96"),
        ({"length": 0}, "0 bytes of another file"),
        ({"length": 10**17}, "bytes of another file"),
        ({"location": "other.data"}, r"its data lie in 'other\.data': No such file"),
        ({"location": "sub"}, "'sub', which is not a regular file"),
        ({"location": "net.data/x"}, r"'net\.data' is no folder"),
        ({"location": "x" * 300}, "its data lie in 'x"),
        ({"location": None}, "only files in the folder of the model"),
    ],
)
def test_external_data_that_are_not_there(tmp_path: Path, entries: dict[str, Any], message: str) -> None:
    path = external(tmp_path, at="net.data", **entries)
    with pytest.raises(ModelError, match=rf"net\.onnx: initializer 'weight': .*{message}"):
        importers.load(path)


def linked(link: Callable[[Path, Path], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = external(folder / "model")
        (folder / "model" / "net.data").rename(folder / "secret")
        link(folder / "secret", folder / "model" / "net.data")
        return path

    return make


def link_in_the_folder(folder: Path) -> Path:
    path = external(folder)
    (folder / "net.data").rename(folder / "there")
    (folder / "net.data").symlink_to("there")
    return path


def linked_folder(folder: Path) -> Path:
    path = external(folder / "model", "deep/net.data", at="net.data")
    (folder / "elsewhere").mkdir()
    (folder / "model" / "net.data").rename(folder / "elsewhere" / "net.data")
    (folder / "model" / "deep").symlink_to(folder / "elsewhere")
    return path


def pipe(folder: Path) -> Path:
    path = external(folder)
    (folder / "net.data").unlink()
    os.mkfifo(folder / "net.data")
    return path


@pytest.mark.parametrize(
    "make, message",
    [
        (linked(lambda there, here: here.symlink_to(there)), "is a link"),
        (linked(lambda there, here: here.hardlink_to(there)), "more than one hard link"),
        (linked(lambda there, here: here.symlink_to("/dev/zero")), "is a link"),
        (link_in_the_folder, "is a link"),
        (linked_folder, "is a link"),
        (pipe, "not a regular file"),
    ],
)
def test_external_data_through_links(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    path = make(tmp_path)
    with pytest.raises(ModelError, match=message):
        importers.load(path)


def test_a_file_that_is_replaced_while_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is checked is what is read, also where somebody puts a link there in between."""
    path = external(tmp_path)
    (tmp_path / "secret").write_bytes(bytes(104))
    real = os.lstat

    def lstat(name: str) -> os.stat_result:
        status = real(name)
        os.replace(tmp_path / "secret", tmp_path / "net.data")
        return status

    monkeypatch.setattr(os, "lstat", lstat)
    with pytest.raises(ModelError, match="has just been replaced"):
        onnx.load(path.read_bytes(), folder=str(tmp_path))


def test_external_data_need_the_path_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"another file, 'net\.data'; load the model by its path"):
        onnx.load(path.read_bytes(), "net.onnx")
    assert weight_of(path.read_bytes(), folder=".").shape == (4, 1, 1, 6)


def test_a_damaged_list_of_external_data(tmp_path: Path) -> None:
    claims = fields(1, WEIGHT.shape) + field(2, 1) + field(8, "weight")
    twice = field(13, entry("location", "a")) * 2 + field(14, 1)
    for rest, message in ((twice, "'location' twice"), (field(14, 2), "data location is 2")):
        with pytest.raises(ModelError, match=message):
            onnx.load(one_conv_of(claims + rest), folder=str(tmp_path))


def test_one_small_file_cannot_be_all_of_many_weights(tmp_path: Path) -> None:
    """2000 tensors that share the same 400 kB would be 800 MB."""
    (tmp_path / "net.data").write_bytes(bytes(400_000))
    w = OnnxWriter()
    y = w.input(1, 316, 1, 1)
    place = {"location": "net.data"}
    for i in range(2000):
        w.constant(np.empty(0, np.float32), f"w{i}", dims=[316, 316, 1, 1], external=place)
        y = w.op("Conv", y, f"w{i}")
    with pytest.raises(ModelError, match="add up to far more than the file holds"):
        importers.load(w.write(tmp_path / "net.onnx", y))
