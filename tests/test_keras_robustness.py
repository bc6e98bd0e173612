"""Damaged and hostile .keras and .h5 files: a ModelError, or a network that runs, soon and in little memory."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastmobilenet.errors import ModelError
from fastmobilenet.graph import Graph
from fastmobilenet.importers import keras, keras_archive
from fastmobilenet.importers.keras_config import MAX_TEXT
from tests.hdf5_files import nested, write
from tests.keras_files import Network, batch_norm, conv, zipped
from tests.test_loader_robustness import check, flips, patience, try_to_load


def small(version: int) -> Network:
    """Most of what files of Keras have: a model in a model, a layer called twice, numbers, pools and paddings."""
    rng = np.random.default_rng(8)
    inner = Network(4, 4, 3, version=version, name="inner")
    inner.add("ZeroPadding2D", padding=[[0, 1], [0, 1]])
    inner.add("Conv2D", **conv(rng, (3, 3, 3, 4), strides=[2, 2], bias=False))
    inner.add("BatchNormalization", **batch_norm(rng, 4))
    net = Network(4, 4, 3, version=version)
    if version == 3:
        net.add("TrueDivide", "image", 127.5)
    net.add("Functional", inner=inner, name="inner")
    relu = net.add("ReLU", max_value=6.0)
    weights = {"kernel": rng.normal(size=(3, 3, 4, 1)).astype(np.float32)}
    a = net.add("DepthwiseConv2D", weights=weights, kernel_size=[3, 3], padding="same", use_bias=False)
    b = net.call(relu, a)
    net.add("Concatenate", net.add("Add", a, b), net.add("MaxPooling2D", b, pool_size=[1, 1]), axis=-1)
    net.add("GlobalAveragePooling2D")
    dense = {"kernel": rng.normal(size=(8, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    net.add("Dense", weights=dense, activation="softmax")
    return net


NETWORKS = {version: small(version) for version in (2, 3)}
SAMPLES = {
    **{f"keras{version}.h5": net.h5() for version, net in NETWORKS.items()},
    **{f"keras{version}.keras": net.archive() for version, net in NETWORKS.items()},
}
#: For the fuzzer: config.json in an archive with the weights of a small network.
WEIGHTS = write(nested(NETWORKS[3].by_place()))
CONFIG = json.dumps(NETWORKS[3].config())


def load(data: bytes | bytearray) -> Graph:
    return keras.load(data)


def load_parts(data: bytes | bytearray) -> Graph:
    """As :func:`load`; what is no file is the config of an archive. A checksum would hide all of it otherwise."""
    known = data.startswith((b"PK", keras.SIGNATURE))
    return load(data) if known else load(zipped({"config.json": bytes(data), "model.weights.h5": WEIGHTS}))


def places(size: int, step: int) -> range:
    """Emulated, a sample of them: the reader is plain Python, which does the same on every CPU."""
    return range(0, size, step if patience() < 4 else 13 * step)


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_load(name: str) -> None:
    assert check([SAMPLES[name], bytearray(SAMPLES[name])], load=load) == (2, 0)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_prefix_is_refused(name: str, pytestconfig: pytest.Config) -> None:
    data = SAMPLES[name]
    ends = places(len(data), 1 if pytestconfig.getoption("--slow") else 23)
    assert check((data[:n] for n in ends), trace=False, load=load) == (0, len(ends))


@pytest.mark.parametrize("name", SAMPLES)
def test_every_flipped_byte(name: str, pytestconfig: pytest.Config) -> None:
    data = SAMPLES[name]
    slow = pytestconfig.getoption("--slow")
    masks = tuple(1 << bit for bit in range(8)) if slow else (0xFF,)
    where = places(min(len(data), 4096), 1 if slow else 7)
    loaded, refused = check(flips(data, where, masks), trace=False, load=load)
    assert loaded + refused == len(where) * len(masks)
    assert refused > len(where) // 50


@pytest.mark.parametrize("version", [2, 3])
def test_every_flipped_byte_of_the_config(version: int, pytestconfig: pytest.Config) -> None:
    config = json.dumps(NETWORKS[version].config()).encode()
    step = 1 if pytestconfig.getoption("--slow") else 11
    loaded, refused = check(flips(config, places(len(config), step), (0x01, 0x80)), trace=False, load=load_parts)
    assert refused > 10 * loaded or loaded  # most letters of JSON matter


@pytest.mark.parametrize("name", ["keras2.h5", "keras3.h5"])
def test_structures_made_extreme(name: str, pytestconfig: pytest.Config) -> None:
    """Every address, size and count of the HDF5 structures."""
    data = SAMPLES[name]
    values = (0, 1, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 2**32, 2**63, 2**64 - 1, len(data), len(data) - 8)
    rng = np.random.default_rng(1)
    some = rng.choice(len(data) // 8, 80 if patience() < 4 else 8, replace=False)
    where = range(len(data) // 8) if pytestconfig.getoption("--slow") else some.tolist()

    def damaged() -> Any:
        for place in where:
            for value in values:
                copy = bytearray(data)
                struct.pack_into("<Q", copy, 8 * place, value)
                yield copy

    loaded, refused = check(damaged(), trace=False, load=load)
    assert loaded + refused == len(where) * len(values)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.sampled_from(sorted(SAMPLES)), st.lists(st.tuples(st.integers(0, 8191), st.binary(min_size=1, max_size=8))))
def test_several_changes_at_once(name: str, changes: list[tuple[int, bytes]]) -> None:
    data = bytearray(SAMPLES[name])
    for place, content in changes:
        place %= len(data)
        data[place : place + len(content)] = content
    try_to_load(data, load=load)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.sampled_from([2, 3]), st.integers(0, 10**6), JSON)
def test_any_value_in_the_config(version: int, number: int, value: Any) -> None:
    """One value of the JSON, anywhere, is another one."""
    document = json.loads(json.dumps(NETWORKS[version].config()))
    spots: list[tuple[Any, Any]] = []
    waiting: list[Any] = [document]
    while waiting:
        node = waiting.pop()
        keys = node.keys() if isinstance(node, dict) else range(len(node))
        for key in keys:
            spots.append((node, key))
            if isinstance(node[key], (dict, list)):
                waiting.append(node[key])
    node, key = spots[number % len(spots)]
    node[key] = value
    try_to_load(json.dumps(document).encode(), load=load_parts)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes(content: bytes) -> None:
    assert try_to_load(content, load=load) is None
    assert try_to_load(keras.SIGNATURE + content, load=load) is None
    assert try_to_load(b"PK\x03\x04" + content, load=load) is None


# --- bombs ----------------------------------------------------------------------------------------------


def archive(config: str | bytes, weights: bytes = WEIGHTS, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    return zipped({"config.json": config, "model.weights.h5": weights}, compression)


def refuse(data: bytes, message: str, *, trace: bool = True) -> None:
    assert check([data], run=False, trace=trace, load=load) == (0, 1)
    with pytest.raises(ModelError, match=message):
        load(data)


def test_zip_bombs() -> None:
    refuse(archive(" " * 50_000_000), r"config\.json claims 50000000 bytes; at most 4194304")
    refuse(archive(CONFIG, bytes(50_000_000)), r"model\.weights\.h5 claims 50000000 bytes; at most \d+ are read")
    many = {f"file {i}": b"" for i in range(keras_archive.MAX_ENTRIES + 1)}
    refuse(zipped(many), "no directory at its end, or too large a one")
    false = archive(CONFIG, bytes(100_000)).replace(struct.pack("<I", 100_000), struct.pack("<I", 1000))
    refuse(false, "the zip archive is damaged|has 1000 bytes|does not fit")


def test_archives_with_something_missing() -> None:
    net = NETWORKS[3]
    refuse(net.archive({"config.json": None}), r"holds no config\.json; found \['metadata.json', 'model.weights.h5'\]")
    refuse(net.archive({"model.weights.h5": None}), r"holds no model\.weights\.h5")
    refuse(net.archive({"model.weights.h5": None, "model.weights.npz": b""}), "default weights_format")
    refuse(net.archive({"metadata.json": "{"}), r"metadata\.json is not JSON")
    refuse(net.archive({"metadata.json": '{"keras_version": "4.0"}'}), "written by Keras '4.0'; supported are")
    assert try_to_load(net.archive({"metadata.json": None}), load=load) is not None
    refuse(archive(CONFIG, compression=zipfile.ZIP_BZIP2), "is compressed by method 12")
    with zipfile.ZipFile(io.BytesIO(archive(CONFIG))) as opened:
        start = opened.infolist()[1].header_offset
    damaged = bytearray(archive(CONFIG, compression=zipfile.ZIP_STORED))
    damaged[start + 200] ^= 1
    refuse(bytes(damaged), "the zip archive is damaged|is not JSON")


def test_json_bombs() -> None:
    refuse(archive("[" * 100_000), r"config\.json is not JSON")
    refuse(archive('{"a":' * 500 + "1" + "}" * 500), "the file describes a None")
    refuse(archive("[" + "{}," * (MAX_TEXT // 4) + "1]"), "the file describes a None")
    refuse(archive("1" * 10_000), "is not JSON")
    refuse(archive(" " * (MAX_TEXT + 1)), "at most 4194304 are read")
    refuse(archive(b"\xff\xfe{"), "is not JSON")


def test_models_in_models_forever() -> None:
    document = json.loads(CONFIG)
    for _ in range(10):
        outer = Network(4, 4, 3, name="outer").config()
        outer["config"]["layers"].append(document | {"name": "inner", "inbound_nodes": []})
        document = outer
    refuse(archive(json.dumps(document)), "models in models go deeper than 8 levels")


def test_models_that_call_each_other_many_times() -> None:
    """Seven models, each of which calls the next 16 times: 16 million layers in 100 kB."""
    inner = Network(4, 4, 3, name="deepest")
    inner.add("ReLU")
    for level in range(6):
        outer = Network(4, 4, 3, name=f"level{level}")
        last: Any = outer.add("Functional", inner=inner, name="inner")
        for _ in range(15):
            last = outer.call("inner", last)
        inner = outer
    refuse(inner.archive(), "the network has more than 10000 layers", trace=False)


def test_sums_that_read_themselves() -> None:
    net = Network(4, 4, 3)
    net.add("ReLU", "b", name="a")
    net.add("ReLU", "a", name="b")
    refuse(net.archive(), r"layer 'b' \(ReLU\): it depends on its own output")


def test_a_ladder_of_sums_takes_no_more_time_than_it_has_steps() -> None:
    net = Network(4, 4, 3)
    last = "image"
    for _ in range(300):
        last = net.add("Add", last, last)
    assert check([net.archive()], run=False, load=load) == (1, 0)


def test_many_layers_of_one_array() -> None:
    """A layer that is called several times has its weights once; 400 times, it would be 800 MB for the engine."""
    net = Network(1, 1, 700, version=3)
    kernel = np.ones((1, 1, 700, 700), np.float32)
    last: Any = net.add("Conv2D", weights={"kernel": kernel}, kernel_size=1, filters=700, use_bias=False, name="c")
    for _ in range(8):
        last = net.call("c", last)
    nodes = load(net.archive()).nodes[1:]
    assert len({id(node.params["weight"]) for node in nodes}) == 1
    for _ in range(400):
        last = net.call("c", last)
    refuse(net.archive(), "the weights of all layers add up to far more than the file holds")


def test_pictures_and_maps_that_are_far_too_large() -> None:
    for shape in ((2**31, 2**31, 3), (2**14, 2**14, 3), (10**30, 1, 3)):
        net = Network(*shape)
        net.add("ReLU")
        refuse(net.archive(), "is too large")
    net = Network(4, 4, 3)
    for _ in range(20):
        net.add("ZeroPadding2D", padding=1024)
        net.add("ReLU")
    refuse(net.archive(), "is too large")
