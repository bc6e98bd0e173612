"""The reader of HDF5 files: against files written here, and against h5py where it is installed."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet.errors import ModelError
from fastmobilenet.importers import hdf5
from fastmobilenet.importers.hdf5 import Hdf5File
from tests.hdf5_files import UNDEFINED, VARIABLE_TEXT, Array, Group, dataspace, datatype, nested, write

RNG = np.random.default_rng(3)
NUMBERS = ["<f2", "<f4", "<f8", ">f4", "<i1", "<u1", "<i2", ">i4", "<i8", "<u8"]


def sample() -> Group:
    """Groups in groups, one with more links than a B-tree has in one level, and attributes of all kinds."""
    root = nested({f"types/{dtype[1:]}{dtype[0]}": RNG.normal(0, 50, (2, 3)).astype(dtype) for dtype in NUMBERS})
    root.children["many"] = Group({f"layer_{i}": np.full(1, i, np.float32) for i in range(600)})
    root.children["scalar"] = np.float32(2.5)
    root.children["empty"] = np.zeros((0, 4), np.float32)
    root.children["group"] = Group()
    root.children["compact"] = Array(np.arange(6, dtype=np.int32), compact=True, attributes={"dtype": "bfloat16"})
    root.attributes = {
        "text": "Grüße " * 5000,
        "none": "",
        "fixed": np.array(b"2.15.0"),
        "names": ["a/kernel:0", "", "b/bias:0"],
        "fixed names": np.array([b"kernel:0", b"b"]),
        "numbers": np.arange(4.0),
        "nothing": np.zeros(0),
    }
    return root


def test_groups_and_arrays() -> None:
    root = sample()
    file = Hdf5File(write(root))
    assert list(file.root.links()) == sorted(root.children)
    for name, expected in root.children["types"].children.items():
        found = file.root.get(f"types/{name}")
        assert found is not None
        assert not found.is_group
        np.testing.assert_array_equal(found.array(), expected)
        assert found.array().dtype == expected.dtype
        assert not found.array().flags.writeable
    many = file.root.get("many")
    assert many is not None
    assert len(many.links()) == 600
    for i in (0, 7, 8, 255, 256, 599):
        assert file.root.get(f"many/layer_{i}").array() == i  # type: ignore[union-attr]
    assert file.root.get("/many//layer_5").array().shape == (1,)  # type: ignore[union-attr]
    assert [file.root.get(p) for p in ("missing", "many/x", "scalar/x", "many/layer_1/x")] == [None] * 4
    assert file.root.get("scalar").array() == np.float32(2.5)  # type: ignore[union-attr]
    assert file.root.get("empty").array().shape == (0, 4)  # type: ignore[union-attr]
    assert file.root.get("group").links() == {}  # type: ignore[union-attr]
    np.testing.assert_array_equal(file.root.get("compact").array(), np.arange(6))  # type: ignore[union-attr]


def test_attributes() -> None:
    root = sample()
    file = Hdf5File(write(root))
    for name, expected in root.attributes.items():
        found = file.root.attribute(name)
        if isinstance(expected, np.ndarray) and expected.dtype.kind == "S":
            texts = [x.decode() for x in np.atleast_1d(expected)]
            assert found == (texts if expected.shape else texts[0])
        elif isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(found, expected)
        else:
            assert found == expected
    assert file.root.attribute("missing") is None
    assert file.root.get("compact").attribute("dtype") == "bfloat16"  # type: ignore[union-attr]


def test_the_files_written_here_are_as_h5py_reads_them() -> None:
    h5py = pytest.importorskip("h5py")
    root = sample()
    with h5py.File(io.BytesIO(write(root)), "r") as file:
        assert list(file) == sorted(root.children)
        assert list(file["many"]) == sorted(root.children["many"].children)
        for name, expected in root.children["types"].children.items():
            np.testing.assert_array_equal(file["types"][name][()], expected)
        assert file["many/layer_300"][()] == 300
        assert file.attrs["text"] == root.attributes["text"]
        assert list(file.attrs["names"]) == root.attributes["names"]
        assert file.attrs["fixed"] == b"2.15.0"
        np.testing.assert_array_equal(file["compact"][()], np.arange(6))


def h5py_file(tmp_path: Path, **options: Any) -> Any:
    h5py = pytest.importorskip("h5py")
    return h5py.File(tmp_path / "file.h5", "w", **options)


def test_files_of_h5py(tmp_path: Path) -> None:
    with h5py_file(tmp_path) as file:
        for i in range(1000):
            file.create_group(f"g{i % 7}/layer {i}").attrs["name"] = f"layer {i}"
        for dtype in NUMBERS:
            file[dtype] = RNG.normal(0, 50, (3, 4)).astype(dtype)
        file["scalar"] = np.float32(3)
        file.attrs["config"] = "x" * 200_000
        file.attrs["bytes"] = b"y" * 100_000
        file.attrs["names"] = [b"a" * 20] * 500
        file.attrs["array"] = np.array([b"a", b"bcd"])
        expected = {dtype: file[dtype][()] for dtype in NUMBERS}
    found = Hdf5File((tmp_path / "file.h5").read_bytes())
    for i in range(1000):
        assert found.root.get(f"g{i % 7}/layer {i}").attribute("name") == f"layer {i}"  # type: ignore[union-attr]
    for dtype, array in expected.items():
        np.testing.assert_array_equal(found.root.get(dtype).array(), array)  # type: ignore[union-attr]
    assert found.root.get("scalar").array() == 3  # type: ignore[union-attr]
    assert found.root.attribute("config") == "x" * 200_000
    assert found.root.attribute("bytes") == "y" * 100_000
    assert found.root.attribute("names") == ["a" * 20] * 500
    assert found.root.attribute("array") == ["a", "bcd"]


def test_what_h5py_can_write_and_keras_does_not(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py_file(tmp_path) as file:
        file.create_dataset("chunks", data=np.ones((100, 100)), chunks=(10, 10))
        file.create_dataset("zip", data=np.ones((100, 100)), compression="gzip")
        file.create_dataset("never", shape=(10, 10), dtype="f4")
        file["complex"] = np.ones(3, np.complex64)
        file["text"] = "text"
        file["link"] = h5py.SoftLink("/chunks")
        file["twice"] = file["chunks"]
        file.create_group("group")["other"] = h5py.ExternalLink("other.h5", "/x")
    found = Hdf5File((tmp_path / "file.h5").read_bytes()).root
    for name, message in {
        "chunks": r"HDF5 object '/chunks' is stored in chunks",
        "twice": "is stored in chunks",
        "zip": "is compressed",
        "never": "has no values",
        "complex": "elements of HDF5 class 6",
        "text": "holds text",
        "/": "is no array",
    }.items():
        with pytest.raises(ModelError, match=message):
            found.get(name).array()  # type: ignore[union-attr]
    assert found.get("link") is None
    with pytest.raises(ModelError, match="'/group' is in the newer format; save it again"):
        found.get("group/other")


@pytest.mark.parametrize("version", ["v108", "latest"])
def test_the_newer_format_is_refused(tmp_path: Path, version: str) -> None:
    with h5py_file(tmp_path, libver=version) as file:
        file["x"] = np.ones(3)
    with pytest.raises(ModelError, match=r"newer format.*save it again with h5py's defaults"):
        Hdf5File((tmp_path / "file.h5").read_bytes())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({0: b"\x89HDX"}, "it starts with 89 48 44 58"),
        ({8: b"\x02"}, r"newer format \(superblock version 2\)"),
        ({8: b"\x63"}, "superblock version 99 is not known"),
        ({13: b"\x04"}, "addresses of 4 and lengths of 8"),
        ({24: b"\x01"}, "base address is 1"),
        ({64: struct.pack("<Q", 2**40)}, "of 16 bytes at byte 1099511627776 does not fit"),
        ({64: struct.pack("<Q", 0)}, "no object is at byte 0"),
    ],
)
def test_superblocks(changes: dict[int, bytes], message: str) -> None:
    data = bytearray(write(Group()))
    for place, content in changes.items():
        data[place : place + len(content)] = content
    with pytest.raises(ModelError, match=message):
        Hdf5File(bytes(data))


def test_a_file_that_is_cut_off() -> None:
    data = write(sample())
    with pytest.raises(ModelError, match=rf"but was written with {len(data)}: it is cut off"):
        Hdf5File(data[:-1])
    with pytest.raises(ModelError, match="the superblock of 24 bytes"):
        Hdf5File(b"")


@pytest.mark.parametrize(
    "replaced, message",
    [
        ({8: b""}, "layout is damaged"),
        ({8: struct.pack("<BBQQ", 2, 1, 96, 24)}, "layout of version 2"),
        ({8: struct.pack("<BBQQ", 3, 2, 96, 24)}, "is stored in chunks"),
        ({8: struct.pack("<BBQQ", 3, 1, UNDEFINED, 24)}, "were never written"),
        ({8: struct.pack("<BBQQ", 3, 1, 96, 23)}, "needs 24 bytes, but 23 are stored"),
        ({8: struct.pack("<BBQQ", 3, 1, 2**63, 24)}, "does not fit in"),
        ({8: struct.pack("<BBH", 3, 0, 24)}, "layout is damaged"),
        ({1: b""}, "shape is damaged"),
        ({1: struct.pack("<4B4x", 1, 9, 0, 0) + bytes(72)}, "shape of 9 axes is damaged"),
        ({1: struct.pack("<4B4x", 1, 2, 0, 0)}, "shape of 2 axes is damaged"),
        ({1: struct.pack("<4B4x", 3, 0, 0, 0)}, "shape of version 3"),
        ({1: dataspace((2**40, 2**40))}, "add up to far more than the file holds"),
        ({1: dataspace((2**60,))}, "has the shape"),
        ({3: b""}, "type is damaged"),
        ({3: datatype(np.dtype("f4"))[:8]}, "elements of HDF5 class 1"),
        ({3: bytes([0x01]) + datatype(np.dtype("f4"))[1:]}, "type version 0"),
        ({3: datatype(np.dtype("f4"))[:15] + bytes([22]) + bytes(4)}, "22 bits of mantissa"),
        ({3: VARIABLE_TEXT}, "holds text"),
        ({7: bytes(8)}, "lies in another file"),
        ({11: bytes(8)}, "is compressed"),
    ],
)
def test_messages_of_arrays(replaced: dict[int, bytes], message: str) -> None:
    file = Hdf5File(write(nested({"x": Array(np.ones((2, 3), np.float32), replaced=replaced)})))
    with pytest.raises(ModelError, match=message):
        file.root.get("x").array()  # type: ignore[union-attr]


def test_groups_that_hold_themselves() -> None:
    """The group "a" leads back to the root: any path through it ends where the path ends."""
    data = bytearray(write(nested({"a": Group()})))
    leaf = data.index(b"SNOD")
    (root,) = struct.unpack_from("<Q", data, 64)
    struct.pack_into("<Q", data, leaf + 16, root)
    file = Hdf5File(bytes(data))
    assert file.root.get("/".join("a" * 1000)) is file.root
    with pytest.raises(ModelError, match="far larger than that of a network"):
        file.root.get("/".join("a" * hdf5.MAX_STEPS))


def test_a_tree_that_holds_itself() -> None:
    data = bytearray(write(nested({f"g{i}": Group() for i in range(300)})))
    tops = [i for i in range(0, len(data), 8) if data[i : i + 6] == b"TREE\0\1"]
    assert len(tops) == 1
    struct.pack_into("<Q", data, tops[0] + 32, tops[0])
    with pytest.raises(ModelError, match="no B-tree of links"):
        Hdf5File(bytes(data)).root.links()


def test_continuations_that_follow_each_other_forever() -> None:
    data = bytearray(write(Group()))
    loop = len(data)
    (root,) = struct.unpack_from("<Q", data, 64)
    data += struct.pack("<HHB3xQQ", 16, 16, 0, loop, 24)
    struct.pack_into("<QH", data, 40, len(data), 0)
    struct.pack_into("<H", data, root + 2, 0xFFFF)
    struct.pack_into("<I", data, root + 8, 24)
    data[root + 16 : root + 40] = struct.pack("<HHB3xQQ", 16, 16, 0, loop, 24)
    struct.pack_into("<Q", data, 40, len(data))
    with pytest.raises(ModelError, match="is no group"):
        Hdf5File(bytes(data)).root.links()


def test_one_text_named_by_many() -> None:
    """A list of 3,000 texts that are all the same 100 kB would be 300 MB."""
    reference = bytes(16)
    for _ in range(2):  # the second time with the address that the first one shows
        names = np.frombuffer(reference * 3_000, "S16")
        data = write(Group(attributes={"text": "x" * 100_000, "many": names}))
        reference = struct.pack("<IQI", 100_000, data.index(b"GCOL"), 1)
    many = Hdf5File(data.replace(datatype(names.dtype), VARIABLE_TEXT[:8]))
    assert many.root.attribute("text") == "x" * 100_000
    with pytest.raises(ModelError, match="add up to far more than the file holds"):
        many.root.attribute("many")


def test_one_array_named_by_many() -> None:
    file = Hdf5File(write(nested({"x": np.ones(10_000, np.float32)})))
    found = file.root.get("x")
    assert found is not None
    found.array()
    found.array()
    with pytest.raises(ModelError, match="add up to far more than the file holds"):
        found.array()
