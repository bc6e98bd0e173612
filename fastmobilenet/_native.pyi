from typing import Any, Literal, overload

import numpy as np

MAX_THREADS: int

def supported_isas() -> list[str]: ...
def built_isas() -> list[str]: ...
def default_isa(name: str = "") -> str: ...
def peak_gflops(isa: str = "", seconds: float = 0.05) -> float: ...
def pool_size() -> int: ...
def set_worker_delay_us(microseconds: int) -> None: ...
def set_spin_us(microseconds: int) -> None: ...
def release_free_memory() -> None: ...

class WeightStore:
    def __init__(self) -> None: ...
    @property
    def nbytes(self) -> int: ...

class PackedWeights:
    @property
    def oc(self) -> int: ...
    @property
    def ic(self) -> int: ...
    @property
    def panel_blocks(self) -> int: ...
    @property
    def whole_panels(self) -> int: ...
    @property
    def in_24_bits(self) -> bool: ...
    def norms(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]: ...
    def inner_noise(self, size: float, squares: np.ndarray, pieces: list[int] = ...) -> float: ...
    def unpack(self) -> tuple[np.ndarray, np.ndarray]: ...

def pack(
    store: WeightStore,
    weight: np.ndarray,
    bias: np.ndarray | None,
    groups: int,
    depthwise: bool,
    whole: bool,
    isa: str,
    by_vectors: bool = False,
    separate: bool = False,
) -> PackedWeights: ...

class Act:
    def __init__(self, kind: str, lo: float, hi: float, alpha: float, beta: float) -> None: ...

class WinogradWeights:
    def __init__(self, plain: PackedWeights, stride: int) -> None: ...

class ConvSpec:
    def __init__(
        self,
        weights: PackedWeights,
        stride: tuple[int, int],
        dilation: tuple[int, int],
        pad: tuple[int, int],
        act: Act,
        inner: InnerWeights | None,
        amx: AmxWeights | None,
    ) -> None: ...

class StrassenWeights:
    def __init__(self, weights: PackedWeights, levels: int, groups: int) -> None: ...

class InnerWeights:
    def __init__(self, weights: PackedWeights, size: float, pieces: list[int] = ...) -> None: ...

class AmxWeights:
    def __init__(self, weights: PackedWeights, pieces: list[int] = ...) -> None: ...

def has_amx(isa: str) -> bool: ...
def has_inner(isa: str) -> bool: ...
def adds_apart() -> bool: ...
def adds_beside_multiplies() -> bool: ...

class PackedU8: ...

class ConvU8Spec:
    def __init__(
        self,
        weights: PackedU8,
        stride: tuple[int, int],
        dilation: tuple[int, int],
        pad: tuple[int, int],
        requant: tuple[int, int, int],
    ) -> None: ...

def supported_u8_isas() -> list[str]: ...
def u8_isa(isa: str = "") -> tuple[str, int, int, bool, bool]: ...
def u8_peak_gops(isa: str = "", seconds: float = 0.05) -> float: ...
def dw_words(k: int, stride: int, kw: int) -> int: ...
def pack_u8(
    store: WeightStore,
    isa: str,
    weight: np.ndarray,
    bias: np.ndarray,
    scale: np.ndarray,
    shape: tuple[int, int, int, int],
    depthwise: bool,
    passes: int,
    dw_k: int,
    panels: list[tuple[int, int, int, int]],
) -> PackedU8: ...

class Arenas:
    def __init__(self) -> None: ...
    @property
    def nbytes(self) -> int: ...

class Program:
    def __init__(self, isa: str, arena_floats: int, arenas: Arenas) -> None: ...
    def tensor(self, c: int, h: int, w: int, pad_left: int, pad_right: int, image: bool, offset: int) -> int: ...
    def scattered(self, runs: list[tuple[int, int, int]]) -> int: ...
    def input(
        self,
        dst: int,
        pixels: tuple[list[float], list[float]],
        floats: tuple[list[float], list[float]],
        swap: bool,
        one_reader: bool,
    ) -> None: ...
    def conv(self, name: str, src: int, dst: int, add: int, spec: ConvSpec, scale: int = -1) -> None: ...
    def winograd(
        self, name: str, src: int, dst: int, add: int, spec: ConvSpec, weights: WinogradWeights, chunk: int
    ) -> None: ...
    def strassen(
        self, name: str, src: int, dst: int, add: int, weights: StrassenWeights, act: Act, rows: int
    ) -> None: ...
    def strip(
        self,
        name: str,
        src: int,
        dst: int,
        add: int,
        mid: tuple[int, int, int, int],
        expand: ConvSpec | None,
        depthwise: ConvSpec,
        project: ConvSpec | None,
        rows: int,
        adds_expanded: bool,
    ) -> None: ...
    def global_avg_pool(self, name: str, src: int, dst: int) -> None: ...
    def window_pool(
        self,
        name: str,
        src: int,
        dst: int,
        max: bool,
        rows: list[tuple[int, int, float]],
        columns: list[tuple[int, int, float]],
    ) -> None: ...
    def conv_pool(
        self,
        name: str,
        src: int,
        dst: int,
        conv: ConvSpec,
        mid: tuple[int, int],
        max: bool,
        rows: list[tuple[int, int, float]],
        columns: list[tuple[int, int, float]],
        rows_at_a_time: int,
    ) -> None: ...
    def add(self, name: str, a: int, b: int, dst: int, act: Act) -> None: ...
    def mul(self, name: str, a: int, b: int, dst: int, act: Act) -> None: ...
    def gather(self, name: str, sources: list[int], dst: int, index: list[int]) -> None: ...
    def lrn(self, name: str, src: int, dst: int, size: int, alpha: float, beta: float, bias: float) -> None: ...
    def softmax(self, name: str, src: int, dst: int) -> None: ...
    def rows(self, name: str, sources: list[int], dst: int, columns: list[int]) -> None: ...
    def tensor_u8(
        self, c: int, h: int, w: int, pads: tuple[int, int, int, int], image: bool, zero: int, offset: int
    ) -> int: ...
    def input_u8(
        self,
        isa: str,
        dst: int,
        pixels: list[np.ndarray],
        mean: list[float],
        std: list[float],
        scale: float,
        swap: bool,
    ) -> None: ...
    def conv_u8(
        self,
        isa: str,
        name: str,
        src: int,
        dst: int,
        spec: ConvU8Spec,
        table_after: np.ndarray | None = None,
        sum_after: tuple[int, int, tuple[int, int, int], tuple[int, int, int]] | None = None,
    ) -> None: ...
    def add_u8(
        self,
        isa: str,
        name: str,
        a: int,
        b: int,
        dst: int,
        factors: tuple[int, int, int],
        requant: tuple[int, int, int],
    ) -> None: ...
    def add_floats_u8(
        self,
        isa: str,
        name: str,
        a: int,
        b: int,
        dst: int,
        factors: tuple[float, float, float],
        added: int,
        bounds: tuple[int, int],
    ) -> None: ...
    def mul_u8(
        self, isa: str, name: str, a: int, b: int, dst: int, factor: float, requant: tuple[int, int, int]
    ) -> None: ...
    def lookup_u8(self, isa: str, name: str, src: int, dst: int, table: np.ndarray) -> None: ...
    def pool_u8(
        self,
        isa: str,
        name: str,
        src: int,
        dst: int,
        rule: str,
        added: int,
        src_scale: float,
        dst_scale: float,
        rows: list[tuple[int, int, float]],
        columns: list[tuple[int, int, float]],
    ) -> None: ...
    def gather_u8(
        self, name: str, sources: list[int], tables: list[np.ndarray], dst: int, index: list[int]
    ) -> None: ...
    def softmax_u8(self, name: str, src: int, dst: int, table: np.ndarray, dst_scale: float) -> None: ...
    def quantize(self, name: str, src: int, dst: int, scale: float) -> None: ...
    def dequantize(self, name: str, src: int, dst: int, scale: float) -> None: ...
    def finish(self, input: int, output: int) -> None: ...
    @overload
    def run(self, x: np.ndarray, layout: str, threads: int, profile: Literal[False] = False) -> np.ndarray: ...
    @overload
    def run(
        self, x: np.ndarray, layout: str, threads: int, profile: Literal[True]
    ) -> tuple[np.ndarray, list[float]]: ...
    @property
    def isa(self) -> str: ...
    @property
    def arena_bytes(self) -> int: ...
    @property
    def steps(self) -> list[tuple[str, str]]: ...

def _kernels(isa: str) -> list[dict[str, Any]]: ...
def _test_gemm(*args: Any) -> None: ...
def _test_dw(*args: Any) -> None: ...

_Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

class DetectionSpec:
    def __init__(
        self,
        anchors: np.ndarray,
        classes: int,
        *,
        yx: bool = False,
        scale: tuple[float, float, float, float] = (1, 1, 1, 1),
        limit: float = ...,
        clip: tuple[float, float] | None = None,
        scores: str = "plain",
        background: bool = False,
        iou_threshold: float = 1.0,
        candidates: int = 0,
        per_class: int = 0,
        detections: int = 100,
        agnostic: bool = False,
        per_anchor: int = 1,
    ) -> None: ...
    def run(self, rows: np.ndarray, threshold: float, threads: int = 1) -> list[_Found]: ...
    def decode(self, rows: np.ndarray) -> np.ndarray: ...

def nms(
    boxes: np.ndarray,
    scores: np.ndarray,
    threshold: float,
    iou_threshold: float,
    *,
    candidates: int = 0,
    per_class: int = 0,
    detections: int = 100,
    agnostic: bool = False,
    per_anchor: int = 1,
) -> _Found: ...
