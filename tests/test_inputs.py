"""What Model.run takes: refusals, kinds of pictures (T14), and arrays in every state (T40, T41)."""

from __future__ import annotations

import gc
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Graph, Model, image, models

from .samples import assert_same_bits, floats, pixels


@pytest.fixture(scope="module")
def model(small_graph: Graph) -> Model:
    return Model.from_graph(small_graph, threads=1)


# --- what it does not take --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [np.float64, np.float16, np.int8, np.int32, np.int64, np.uint16, np.bool_, np.complex64, object, "U3"]
)
def test_other_dtypes_are_refused(model: Model, dtype: Any) -> None:
    with pytest.raises(TypeError) as caught:
        model.run(np.zeros((32, 32, 3), dtype))
    message = str(caught.value)
    for part in (str(np.dtype(dtype)), "(32, 32, 3)", "uint8 pixels (height, width, 3)", "float32 (height, width, 3)"):
        assert part in message


@pytest.mark.parametrize("shape", [(), (3,), (32, 32), (32, 32, 4), (3, 32, 32), (1, 3, 32, 32), (1, 1, 32, 32, 3)])
def test_other_shapes_of_float_are_refused(model: Model, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=re.escape(str(shape))) as caught:
        model.run(np.zeros(shape, np.float32))
    assert "(height, width, 3) or (n, height, width, 3)" in str(caught.value)
    assert ("transpose" in str(caught.value)) == (shape[-3:] == (3, 32, 32))


@pytest.mark.parametrize("shape", [(0, 32, 3), (32, 0, 3), (2, 0, 0, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_empty_pictures_are_refused(model: Model, shape: tuple[int, ...], dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"empty|at least one pixel"):
        model.run(np.zeros(shape, dtype))


@pytest.mark.parametrize("x", [None, 3, 2.5, b"bytes", {"a": 1}, object(), iter([]), {"cat.png"}, np.float32(3)])
def test_other_things_are_refused(model: Model, x: Any) -> None:
    """The message lists all that is taken."""
    with pytest.raises(TypeError) as caught:
        model.run(x)
    for part in (
        "a path, a PIL image, uint8 pixels (height, width, 3) or (n, height, width, 3), a list or tuple of pictures",
        "preprocessed float32 (height, width, 3) or (n, height, width, 3)",
        f"got {'numpy.' * isinstance(x, np.generic)}{type(x).__name__}",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("x", [[None], [[1, 2, 3]], ["a.png", 3]])
def test_lists_of_other_things_are_refused(model: Model, x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_from_file", lambda path: pixels(9, 9, 3))
    with pytest.raises(TypeError, match=rf"item {len(x) - 1} of the list: expected a path, a PIL image or uint8"):
        model.run(x)


@pytest.mark.parametrize("make", [pixels, floats])
@pytest.mark.parametrize("shape", [(32, 32, 3), (2, 32, 32, 3)])
def test_masked_arrays_are_refused(model: Model, make: Callable[..., np.ndarray], shape: tuple[int, ...]) -> None:
    x = np.ma.masked_less(make(*shape), 0)
    for run in (model.run, model.classify, model.profile):
        with pytest.raises(TypeError, match=rf"got a masked {x.dtype} array of shape {re.escape(str(shape))}"):
            run(x)


def test_lists_of_float_arrays_are_refused(model: Model) -> None:
    with pytest.raises(TypeError, match=r"item 1 is a float32 array of shape \(32, 32, 3\).*np\.stack"):
        model.run([pixels(32, 32, 3), floats(32, 32, 3)])


def test_a_network_of_one_channel_takes_no_pictures() -> None:
    graph = models.build("mobilenet_v1", width=0.25, input_size=(32, 32))
    grey = Graph((graph.nodes[0],), graph.nodes[0].name, input_size=(8, 8), input_channels=1)
    with pytest.raises(ValueError, match="takes 1 channel, so it takes no pictures"):
        Model.from_graph(grey).run(pixels(8, 8, 3))


# --- kinds of pictures (T14) ------------------------------------------------------------------------------


def test_grey_and_alpha(model: Model, tmp_path: Path) -> None:
    """One value stands for all three channels, and alpha is dropped."""
    rgb, grey = pixels(32, 32, 3), pixels(32, 32)
    as_rgb = np.repeat(grey[..., None], 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    for picture in (tmp_path / "grey.png", Image.fromarray(grey), grey, grey[..., None]):
        assert_same_bits(model.run(picture), model.run(as_rgb))
    rgba = np.dstack([rgb, pixels(32, 32, seed=3)])
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    for picture in (tmp_path / "rgba.png", Image.fromarray(rgba), rgba):
        assert_same_bits(model.run(picture), model.run(rgb))


def test_exif_rotation_is_applied(model: Model, tmp_path: Path) -> None:
    array = pixels(32, 32, 3)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    Image.fromarray(array).save(tmp_path / "turned.png", exif=exif)
    assert_same_bits(model.run(tmp_path / "turned.png"), model.run(np.rot90(array, -1).copy()))


def test_sixteen_bits_are_never_taken_for_eight(model: Model, tmp_path: Path) -> None:
    """Of a file the upper eight bits count; of an array nobody knows the range."""
    deep = np.linspace(0, 65535, 32 * 32).astype(np.uint16).reshape(32, 32)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert_same_bits(model.run(tmp_path / "deep.png"), model.run((deep >> 8).astype(np.uint8)))
    with pytest.raises(TypeError, match="uint16"):
        model.run(deep)


# --- arrays in every state (T40, T41) ---------------------------------------------------------------------


def misaligned(x: np.ndarray) -> np.ndarray:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    raw[1:] = np.frombuffer(x.tobytes(), np.uint8)
    view = raw[1:].view(x.dtype).reshape(x.shape)
    assert view.ctypes.data % 2 == 1
    return view


def read_only(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x.flags.writeable = False
    return x


STATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "fortran": np.asfortranarray,
    "every second": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: x[:, ::-1].copy()[:, ::-1],
    "channels reversed": lambda x: x[..., ::-1].copy()[..., ::-1],
    "transposed": lambda x: x.swapaxes(0, 1).copy().swapaxes(0, 1),
    "misaligned": misaligned,
    "read only": read_only,
    "big endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "little endian": lambda x: x.astype(x.dtype.newbyteorder("<")),
}


@pytest.mark.parametrize("make", [pixels, floats])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("shape", [(32, 32, 3), (3, 32, 32, 3), (1, 33, 17, 3)])
def test_any_strides_alignment_and_byte_order(
    model: Model, make: Callable[..., np.ndarray], state: str, shape: tuple[int, ...]
) -> None:
    x = make(*shape)
    view = STATES[state](x)
    assert (view == x).all()
    assert_same_bits(model.run(view), model.run(x))
    assert (view == x).all()


def test_a_repeated_picture(model: Model) -> None:
    x = floats(32, 32, 3)
    wanted = np.stack([model.run(x)] * 3)
    assert_same_bits(model.run(np.broadcast_to(x, (3, 32, 32, 3))), wanted)


@pytest.mark.parametrize("make", [pixels, floats])
def test_input_is_neither_changed_nor_kept(model: Model, make: Callable[..., np.ndarray]) -> None:
    x = make(2, 32, 32, 3)
    before, alive = x.copy(), weakref.ref(x)
    out = model.run(x)
    assert (x == before).all()
    del x
    gc.collect()
    assert alive() is None
    assert out.shape == (2, 10)


@pytest.mark.parametrize("threads", [1, 2])
def test_output_is_new_memory(small_graph: Graph, threads: int) -> None:
    model = Model.from_graph(small_graph, threads=threads)
    a, b = pixels(32, 32, 3, seed=1), pixels(32, 32, 3, seed=2)
    first = model.run(a)
    kept = first.copy()
    second = model.run(b)
    assert not np.shares_memory(first, second)
    assert_same_bits(first, kept)
    second[:] = np.nan
    assert_same_bits(model.run(a), kept)
    assert first.flags.writeable
    del model
    assert_same_bits(first, kept)
