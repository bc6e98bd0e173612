"""Every kernel that the native side lists, on every ISA of this machine, against NumPy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastmobilenet import _native, reference
from fastmobilenet.graph import HARD_SWISH, RELU, RELU6, Activation
from fastmobilenet.lower import _act

from .guarded import Guarded

ALL = ("scalar", "avx2", "avx512", "neon")
BLOCK = 16
#: What the kernels of convolutions apply themselves.
ACTS = (Activation("clamp"), RELU6, RELU, HARD_SWISH)


def listed(op: str) -> list:
    """One parameter a kernel of this build; those of an ISA that the CPU lacks are skipped, not left out."""
    cases = []
    for isa in _native.built_isas():
        if isa not in _native.supported_isas():
            skip = pytest.mark.skip(reason=f"this CPU has no {isa}")
            cases.append(pytest.param(isa, {}, id=f"{isa}-{op}", marks=skip))
            continue
        for kernel in _native._kernels(isa):
            if kernel["op"] == op:
                name = "-".join(str(v) for k, v in kernel.items() if k != "op")
                cases.append(pytest.param(isa, kernel, id=f"{isa}-{name}"))
    return cases


def tolerance(k: int) -> float:
    """Rounding of k multiply-adds in float32, relative to the sum of the magnitudes."""
    return 4 * np.finfo(np.float32).eps * math.sqrt(k + 4)


def test_every_built_isa_lists_its_kernels() -> None:
    assert set(_native.built_isas()) <= set(ALL)
    assert _native.built_isas()[-1] == "scalar"
    for isa in _native.supported_isas():
        kernels = _native._kernels(isa)
        listed = [k for k in kernels if k["op"] == "gemm_f32"]
        gemm = {(k["mr"], k["nb"], k["half"], k["xs"]) for k in listed if not k["halves"]}
        halves = {(k["mr"], k["nb"], k["half"], k["xs"]) for k in listed if k["halves"]}
        assert halves <= gemm, "a tile in halves is one that there is without"
        depthwise = {(k["k"], k["stride"]) for k in kernels if k["op"] == "dw_f32"}
        assert len(kernels) == len(gemm) + len(halves) + len(depthwise), "a kernel is listed twice"
        assert depthwise == {(3, 1), (3, 2), (5, 1), (5, 2), (0, 0)}
        # For each tile width and pixel stride every row count from 1 on, or some maps could not be cut.
        for kind in {tile[1:] for tile in gemm}:
            rows = sorted(tile[0] for tile in gemm if tile[1:] == kind)
            assert rows == list(range(1, len(rows) + 1))
        assert len(gemm) >= {"avx512": 100, "avx2": 36, "neon": 36, "scalar": 8}[isa]


def gemm_case(seed: int, pixels: int, nb: int, xs: int, lengths: list[int], missing: int = 0) -> dict:
    """Segments of the given lengths, scattered over A in steps that overlap like those of a convolution;
    the last ``missing`` channels are not there."""
    rng = np.random.default_rng(seed)
    starts, at = [], 0
    for length in lengths:
        starts.append(at)
        at += length + int(rng.integers(0, 9))
    size = max(s + n for s, n in zip(starts, lengths, strict=True)) + (pixels - 1) * xs
    k = sum(lengths)
    return {
        "a": rng.standard_normal(size).astype(np.float32),
        "segments": list(zip(starts, lengths, strict=True)),
        "b": rng.standard_normal((k, nb * BLOCK - missing)).astype(np.float32),
        "bias": rng.standard_normal(nb * BLOCK).astype(np.float32),
        "add": rng.standard_normal((nb, pixels, BLOCK)).astype(np.float32),
    }


def gemm_expected(case: dict, pixels: int, xs: int, add: bool, act: Activation) -> tuple[np.ndarray, np.ndarray]:
    """The exact result (nb, pixels, 16) and the sum of magnitudes for its error bound."""
    index = np.concatenate([np.arange(s, s + n) for s, n in case["segments"]])
    a = np.stack([case["a"][i * xs + index] for i in range(pixels)]).astype(np.float64)
    b = case["b"].astype(np.float64)
    b = np.pad(b, ((0, 0), (0, case["bias"].size - b.shape[1]))).reshape(len(b), -1, BLOCK)
    bias = case["bias"].reshape(-1, 1, BLOCK).astype(np.float64)
    exact = np.einsum("mk,kno->nmo", a, b) + bias
    magnitude = np.einsum("mk,kno->nmo", abs(a), abs(b)) + abs(bias)
    if add:
        exact = exact + case["add"]
        magnitude = magnitude + abs(case["add"])
    return reference.activate(exact, act), magnitude


@pytest.mark.parametrize("isa, kernel", listed("gemm_f32"))
def test_gemm(isa: str, kernel: dict) -> None:
    mr, nb, half, xs = kernel["mr"], kernel["nb"], kernel["half"], kernel["xs"]
    channels = nb * BLOCK - 8 * half
    for seed, lengths in enumerate(([1], [3], [8], [9, 9, 9], [16, 16, 7], [16] * 3 + [8], [5, 24, 1])):
        pixel = xs or 5 + 11 * (seed % 2)
        tiles = 1 + seed % 3
        pixels = tiles * mr
        case = gemm_case(seed, pixels, nb, pixel, lengths, 8 * half)
        add, act = seed % 2 == 0, ACTS[seed % 4]
        guarded = Guarded()
        c = guarded.floats(nb * pixels * BLOCK)
        _native._test_gemm(
            isa, tiles, mr, nb, half, xs, kernel["halves"], pixel,
            guarded.floats(case["a"].size, case["a"]), 0, case["segments"],
            guarded.floats(case["b"].size, case["b"]),
            guarded.floats(case["bias"].size, case["bias"]), c, pixels * BLOCK,
            guarded.floats(case["add"].size, case["add"]) if add else None, pixels * BLOCK, _act(act),
        )  # fmt: skip
        exact, magnitude = gemm_expected(case, pixels, pixel, add, act)
        # Channels first; those of the missing half block need not be written.
        found, exact, magnitude = (
            v.transpose(1, 0, 2).reshape(pixels, -1)[:, :channels] for v in (c.reshape(exact.shape), exact, magnitude)
        )
        error = abs(found - exact)
        assert (error <= tolerance(sum(lengths)) * magnitude).all(), f"{lengths}: {error.max()}"


@pytest.mark.parametrize("isa, kernel", listed("gemm_f32"))
def test_gemm_passes_nan_and_keeps_to_its_tile(isa: str, kernel: dict) -> None:
    mr, nb, half, xs = kernel["mr"], kernel["nb"], kernel["half"], kernel["xs"]
    channels = nb * BLOCK - 8 * half
    pixel = xs or 7
    case = gemm_case(1, mr, nb, pixel, [3], 8 * half)
    case["a"][:] = 1.0
    case["a"][(mr - 1) * pixel] = np.nan
    gap = 2 * BLOCK  # canaries between the blocks of C
    c = np.full(nb * (mr * BLOCK + gap), 77.0, np.float32)
    _native._test_gemm(
        isa, 1, mr, nb, half, xs, kernel["halves"], pixel, case["a"], 0, case["segments"], case["b"].ravel(),
        case["bias"], c, mr * BLOCK + gap, None, 0, _act(RELU6),
    )  # fmt: skip
    blocks = c.reshape(nb, -1)
    assert (blocks[:, mr * BLOCK :] == 77.0).all()
    tile = blocks[:, : mr * BLOCK].reshape(nb, mr, BLOCK).transpose(1, 0, 2).reshape(mr, -1)[:, :channels]
    assert np.isnan(tile[mr - 1]).all()
    touched = {i for i in range(mr) if 0 <= (mr - 1) * pixel - i * pixel < 3}  # overlapping pixels read it too
    rest = [i for i in range(mr) if i not in touched]
    assert ((tile[rest] >= 0) & (tile[rest] <= 6)).all()


def dw_expected(rows: np.ndarray, w: np.ndarray, bias: np.ndarray, oh: int, ow: int, stride: int) -> np.ndarray:
    k = w.shape[0]
    windows = np.lib.stride_tricks.sliding_window_view(rows.astype(np.float64), (k, k), axis=(0, 1))
    windows = windows[::stride, ::stride][:oh, :ow]
    return np.einsum("yxcab,abc->yxc", windows, w.astype(np.float64)) + bias


@pytest.mark.parametrize("ow", [*range(1, 10), 14, 15, 16, 20])
@pytest.mark.parametrize("isa, kernel", listed("dw_f32"))
def test_depthwise(isa: str, kernel: dict, ow: int) -> None:
    size, stride = (kernel["k"], kernel["stride"]) if kernel["k"] else (3 + 2 * (ow % 2), 1 + ow % 3)
    rng = np.random.default_rng(ow)
    for oh in (1, 2, 3, 4):
        ih, iw = (oh - 1) * stride + size, (ow - 1) * stride + size
        src = rng.standard_normal((ih, iw, BLOCK)).astype(np.float32)
        w = rng.standard_normal((size, size, BLOCK)).astype(np.float32)
        bias = rng.standard_normal(BLOCK).astype(np.float32)
        act = ACTS[oh % 4]
        order = range(ih) if kernel["k"] else [y * stride + ky for y in range(oh) for ky in range(size)]
        for at_start in (False, True):
            guarded = Guarded()
            dst = guarded.floats(oh * ow * BLOCK, at_start=at_start)
            _native._test_dw(
                isa, kernel["k"], kernel["stride"], guarded.floats(src.size, src, at_start=at_start),
                [y * iw * BLOCK for y in order], guarded.floats(w.size, w, at_start=at_start),
                guarded.floats(BLOCK, bias, at_start=at_start), dst, ow * BLOCK, oh, ow, _act(act),
                (size, size), (stride, stride), 1,
            )  # fmt: skip
            exact = reference.activate(dw_expected(src, w, bias, oh, ow, stride), act)
            assert np.abs(dst.reshape(oh, ow, BLOCK) - exact).max() < 30 * tolerance(size * size)


@pytest.mark.parametrize("isa", _native.supported_isas())
def test_peak_is_a_rate(isa: str) -> None:
    assert 0.01 < _native.peak_gflops(isa, 0.005) < 1000


def test_unknown_isa_names_the_known() -> None:
    with pytest.raises(ValueError, match="scalar"):
        _native.peak_gflops("mmx", 0.001)
