"""The reader of .safetensors files: what it reads, and that no byte of a file can do harm."""

from __future__ import annotations

import json
import time
import tracemalloc

import numpy as np
import pytest

from fastmobilenet import ModelError
from fastmobilenet.importers import safetensors

from .weight_files import pack, safetensors_bytes

A = np.arange(6, dtype=np.float32).reshape(2, 3)
SMALL = {"a": A, "deep.b": np.array([[1, -2]], np.int64), "empty": np.zeros((0, 4), np.float16)}


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    as_list = [list(v) if isinstance(v, tuple) else v for v in (shape, offsets)]
    return {"dtype": dtype, "shape": as_list[0], "data_offsets": as_list[1]}


# --- what it reads --------------------------------------------------------------------------------------


def test_arrays_are_views_of_the_file() -> None:
    data = safetensors_bytes(SMALL, {"format": "pt"})
    got = safetensors.read(data, "f")
    assert list(got) == list(SMALL)
    for name, array in SMALL.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)
    assert got["a"].base is not None
    assert not got["a"].flags.writeable
    start = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    assert start <= got["a"].__array_interface__["data"][0] < start + len(data)


@pytest.mark.parametrize(
    "dtype,raw,expected",
    [
        ("F64", np.array([0.5, -3.0], "<f8").tobytes(), [0.5, -3.0]),
        ("F16", np.array([0.5, -3.0], "<f2").tobytes(), [0.5, -3.0]),
        ("BF16", b"\x00\x3f\x40\xc0\x80\x7f", [0.5, -3.0, np.inf]),
        ("I32", np.array([1, -3], "<i4").tobytes(), [1, -3]),
        ("I16", np.array([1, -3], "<i2").tobytes(), [1, -3]),
        ("I8", b"\x01\xfd", [1, -3]),
        ("U64", np.array([1, 2**63], "<u8").tobytes(), [1, 2**63]),
        ("U32", np.array([1, 2**31], "<u4").tobytes(), [1, 2**31]),
        ("U16", np.array([1, 2**15], "<u2").tobytes(), [1, 2**15]),
        ("U8", b"\x01\xfd", [1, 253]),
        ("BOOL", b"\x01\x00", [True, False]),
    ],
)
def test_dtypes(dtype: str, raw: bytes, expected: list[float]) -> None:
    got = safetensors.read(pack({"x": entry(dtype, [len(expected)], [0, len(raw)])}, raw), "f")["x"]
    assert got.tolist() == expected


def test_scalars_and_spaces_after_the_header_are_allowed() -> None:
    header = json.dumps({"x": entry("F32", [], [0, 4])}).encode() + b"   "
    got = safetensors.read(pack(header, np.float32(2.5).tobytes()), "f")["x"]
    assert got.shape == ()
    assert got == 2.5
    assert safetensors.read(pack({}), "f") == {}


def test_files_of_the_original_library_are_read() -> None:
    numpy_io = pytest.importorskip("safetensors.numpy")
    rng = np.random.default_rng(0)
    tensors = {f"layer.{i}": rng.standard_normal((i, 3)).astype(np.float32) for i in range(5)}
    tensors["count"] = np.array(7)
    got = safetensors.read(numpy_io.save(tensors, {"format": "pt"}), "f")
    assert got.keys() == tensors.keys()
    assert all(np.array_equal(got[name], tensors[name]) for name in tensors)


# --- what it refuses ------------------------------------------------------------------------------------

EIGHT = bytes(8)
BAD = {
    "nothing": (b"", "0 bytes"),
    "seven bytes": (bytes(7), "7 bytes"),
    "no header": (pack(b""), "does not start with"),
    "longer than the file": (pack(b"{}")[:-1], "claims 2 bytes; 1 follow"),
    "huge": (b"\xff" * 8 + b"{}", "claims 18446744073709551615 bytes"),
    "more than allowed": (pack(b"{" + b" " * safetensors.MAX_HEADER + b"}"), f"{safetensors.MAX_HEADER} are allowed"),
    "space first": (pack(b" {}"), "does not start with"),
    "a list": (pack(b"[]"), "does not start with"),
    "not JSON": (pack(b"{'a':1}"), "not JSON"),
    "two values": (pack(b"{}{}"), "not JSON"),
    "not UTF-8": (pack(b'{"\xff":1}'), "not JSON"),
    "NaN": (pack(b'{"a":NaN}'), "NaN"),
    "nested": (pack(b'{"a":' + b"[" * 100_000), "not JSON"),
    "long number": (pack(b'{"a":' + b"9" * 10_000 + b"}"), "."),
    "twice": (pack(b'{"a":1,"a":1}'), "names 'a' twice"),
    "key twice": (
        pack(b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT),
        "names 'dtype' twice",
    ),
    "metadata list": (pack({"__metadata__": ["a"]}), "__metadata__"),
    "metadata number": (pack({"__metadata__": {"a": 1}}), "__metadata__"),
    "number": (pack({"a": 5}), "'a' must have dtype"),
    "no shape": (pack({"a": {"dtype": "F32", "data_offsets": [0, 0]}}), "'a' must have dtype"),
    "extra key": (pack({"a": entry() | {"x": 1}}, EIGHT), "'a' must have dtype"),
    "unknown dtype": (pack({"a": entry("F8_E4M3", [8], [0, 8])}, EIGHT), "'a' has dtype 'F8_E4M3'; supported are F64"),
    "dtype list": (pack({"a": entry(["F32"])}, EIGHT), "has dtype"),  # type: ignore[arg-type]
    "shape number": (pack({"a": entry(shape=2)}, EIGHT), "has shape 2"),
    "shape float": (pack({"a": entry(shape=[2.0])}, EIGHT), "has shape"),
    "shape bool": (pack({"a": entry(shape=[True, 2])}, EIGHT), "has shape"),
    "shape negative": (pack({"a": entry(shape=[-2, -1])}, EIGHT), "has shape"),
    "shape wraps": (pack({"a": entry(shape=[2**62, 8])}, EIGHT), "needs"),
    "shape too large": (pack({"a": entry(shape=[2**63])}, EIGHT), "has shape"),
    "huge and empty": (pack({"a": entry(shape=[2**62, 2**62, 0], offsets=[0, 0])}), "has shape"),
    "65 axes": (pack({"a": entry(shape=[1] * 64 + [2])}, EIGHT), "has shape"),
    "shape small": (pack({"a": entry(shape=[1])}, EIGHT), "needs 4 bytes, but 8 are given"),
    "one offset": (pack({"a": entry(offsets=[0])}, EIGHT), "data_offsets"),
    "three offsets": (pack({"a": entry(offsets=[0, 8, 8])}, EIGHT), "data_offsets"),
    "offset float": (pack({"a": entry(offsets=[0.0, 8.0])}, EIGHT), "data_offsets"),
    "offset negative": (pack({"a": entry(offsets=[-8, 0])}, EIGHT), "data_offsets"),
    "backwards": (pack({"a": entry(offsets=[8, 0])}, EIGHT), "lies at 8..0"),
    "beyond the end": (pack({"a": entry(offsets=[8, 16])}, EIGHT), "lies at 8..16, but the data has 8 bytes"),
    "overlap": (pack({"a": entry(), "b": entry(shape=[1], offsets=[4, 8])}, EIGHT), "'b' at 4..8 overlaps tensor 'a'"),
    "same place": (pack({"a": entry(), "b": entry()}, EIGHT), "overlaps"),
    "hole": (pack({"a": entry(shape=[1], offsets=[0, 4]), "b": entry(offsets=[8, 16])}, EIGHT * 2), "leaves a hole"),
    "hole first": (pack({"a": entry(shape=[1], offsets=[4, 8])}, EIGHT), "leaves a hole after the header"),
    "bytes left": (pack({"a": entry()}, EIGHT + b"x"), "1 bytes at the end"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_with_the_reason(case: str) -> None:
    data, reason = BAD[case]
    with pytest.raises(ModelError) as caught:
        safetensors.read(data, "net.safetensors")
    assert str(caught.value).startswith("net.safetensors is not a valid safetensors file: ")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.timing
def test_bad_files_are_refused_in_less_than_a_second() -> None:
    for case, (data, _) in BAD.items():
        start = time.perf_counter()
        with pytest.raises(ModelError):
            safetensors.read(data, "f")
        assert time.perf_counter() - start < 1.0, case


def test_long_names_do_not_fill_the_message() -> None:
    with pytest.raises(ModelError) as caught:
        safetensors.read(pack({"n" * 100_000: entry("?" * 100_000)}), "f")
    assert len(str(caught.value)) < 500


def test_every_prefix_is_refused() -> None:
    data = safetensors_bytes(SMALL, {"format": "pt"})
    for length in range(len(data)):
        with pytest.raises(ModelError):
            safetensors.read(data[:length], "f")


def test_any_changed_byte_is_refused_or_changes_a_name_or_value_only() -> None:
    data = safetensors_bytes(SMALL)
    header = 8 + int.from_bytes(data[:8], "little")
    refused = 0
    for position in range(len(data)):
        for flip in (0x01, 0x20, 0x80, 0xFF):
            changed = bytearray(data)
            changed[position] ^= flip
            try:
                got = safetensors.read(bytes(changed), "f")
            except ModelError:
                refused += 1
                continue
            assert [v.size for v in got.values()] == [v.size for v in SMALL.values()]
            if position >= header:
                assert list(got) == list(SMALL)
    assert refused > 2 * header  # of four changes of every byte of the header most cannot be valid


@pytest.mark.parametrize("text", [b'{"a":[' + b"[]," * 10**7, b'{"":' * 10**7, b'{"a":"' + b"\\u00e9" * 10**7])
@pytest.mark.parametrize("size", [safetensors.MAX_HEADER, 30 * 10**6])
def test_headers_do_not_take_much_memory(text: bytes, size: int) -> None:
    data = pack(text[:size])
    tracemalloc.start()
    try:
        with pytest.raises(ModelError):
            safetensors.read(data, "f")
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_nothing_is_accepted_that_the_original_library_refuses() -> None:
    library = pytest.importorskip("safetensors")
    data = safetensors_bytes({**SMALL, "c": np.ones(3)}, {"k": "v"})
    header = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(7)
    accepted = 0
    for _ in range(4000):
        changed = bytearray(data)
        for position in rng.integers(0, header, rng.integers(1, 4)):
            # Mostly other characters of the header itself: a random byte is hardly ever valid JSON.
            changed[position] = data[rng.integers(8, header)] if rng.random() < 0.8 else rng.integers(0, 256)
        try:
            got = safetensors.read(bytes(changed), "f")
        except ModelError:
            continue
        accepted += 1
        theirs = {name: tuple(value["shape"]) for name, value in library.deserialize(bytes(changed))}
        assert {name: value.shape for name, value in got.items()} == theirs
    assert accepted > 50
