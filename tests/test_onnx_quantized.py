"""Quantised ONNX files, QDQ and QOperator: they run on bytes, and give the bytes of ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmobilenet import Model, _native, reference
from fastmobilenet.graph import Graph
from fastmobilenet.importers import onnx
from fastmobilenet.lower import Engine

from .onnx_files import OnnxWriter
from .onnx_quantized import QuantizedWriter, network

FORMS = ("qdq", "qlinear")


def onnxruntime_run(data: bytes, **config: str) -> Callable[[np.ndarray], np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    # Without it, codes of int8 between QuantizeLinear and DequantizeLinear are computed in floats on x86.
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {session.get_inputs()[0].name: x})[0]


def step(graph: Graph) -> float:
    """What one code of the output stands for."""
    source = graph[graph[graph.output].inputs[0]]
    return float(source.attrs["quant"].scale)


def pictures(*shape: int) -> np.ndarray:
    """Noise of different strength; some of it is beyond the range of the input's codes."""
    x = np.random.default_rng(shape).standard_normal(shape).astype(np.float32)
    return x * np.linspace(0.3, 3, len(x), dtype=np.float32).reshape(-1, *[1] * (x.ndim - 1))


def assert_like_onnxruntime(data: bytes, x: np.ndarray, least: float = 1.0, *, floats: bool = False) -> Graph:
    """All outputs within one step, and ``least`` of them the same; on every ISA the same bits, unless some layers
    compute in ``floats``."""
    graph = onnx.load(data, quantized=True)
    run = onnxruntime_run(data)
    expected = np.concatenate([run(x[i : i + 1]) for i in range(len(x))])
    found = Engine(graph).run(x, threads=1, pixels=False)
    if not floats:
        for isa in _native.supported_u8_isas():
            assert np.array_equal(Engine(graph, isa=isa).run(x, threads=1, pixels=False), found), isa
        defined = reference.execute(graph, x.transpose(0, 2, 3, 1))[graph.output]
        assert np.array_equal(found, defined.astype(np.float32))
    found = found.transpose(0, 3, 1, 2).reshape(expected.shape)
    steps = np.abs(found - expected) / step(graph)
    print(f"{(steps < 0.01).mean():.3%} equal, largest difference {steps.max():.2f} steps")
    assert steps.max() < 1.01
    assert (steps < 0.01).mean() >= least
    return graph


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("dtype, weights", [("uint8", "int8"), ("int8", "int8"), ("uint8", "uint8")])
@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_layer(form: str, dtype: str, weights: str, per_channel: bool) -> None:
    for seed in range(3):
        w = QuantizedWriter(form, dtype, weights, per_channel, seed)
        graph = assert_like_onnxruntime(network(w), pictures(8, 3, 17, 14), least=0.98)
        floats = [node.op for node in graph.nodes if "quant" not in node.attrs]
        assert floats == ["dequantize"]


@pytest.mark.parametrize("form", FORMS)
def test_the_largest_weights_and_codes(form: str) -> None:
    w = QuantizedWriter(form, seed=9)
    data = network(w, extreme=True)
    x = np.where(pictures(6, 3, 17, 14) > 0, np.float32(9), np.float32(-9))  # codes of 0 and 255
    assert_like_onnxruntime(data, x, least=0.98)


def test_both_forms_are_the_same_network() -> None:
    a, b = (onnx.load(network(QuantizedWriter(form, seed=1)), quantized=True) for form in FORMS)
    assert [n.op for n in a.nodes] == [n.op for n in b.nodes]
    x = pictures(4, 3, 17, 14)
    assert np.array_equal(*(Engine(g).run(x, threads=1, pixels=False) for g in (a, b)))


def test_sums_with_ties() -> None:
    """Scales of few bits: a third of all sums is in the middle of two codes. ONNX Runtime computes them in floats."""
    for seed in range(12):
        rng = np.random.default_rng(seed)
        dtype = "int8" if seed % 3 == 2 else "uint8"
        w = QuantizedWriter("qlinear" if seed % 2 else "qdq", dtype, seed=seed)
        scales = [int(rng.integers(5, 40)) / 64 for _ in range(3)]
        x = w.quantize(w.input(1, 2, 64, 64), w.quant(scales[0]))
        real = w.real(x)
        y = w.quantize(real, w.quant(scales[1]))
        data = w.finish(w.real(w.layer("Add", x, y, quant=w.quant(max(scales[:2]) + scales[2] / 4))))
        assert_like_onnxruntime(data, np.random.default_rng(seed).uniform(-40, 40, (1, 2, 64, 64)).astype(np.float32))


@pytest.mark.parametrize("form", FORMS)
def test_sums_of_two_maps(form: str) -> None:
    for seed in range(6):
        w = QuantizedWriter(form, "int8" if seed % 2 else "uint8", seed=seed)
        x = w.quantize(w.input(1, 4, 32, 32), w.quant(0.04))
        a, b = w.weighted("Conv", x, (16, 4, 1, 1)), w.weighted("Conv", x, (16, 4, 1, 1))
        graph = assert_like_onnxruntime(w.finish(w.real(w.layer("Add", a, b))), pictures(4, 4, 32, 32))
        assert graph[graph[graph.output].inputs[0]].attrs["rounding"] == ("floats_s8" if seed % 2 else "floats_u8")


# --- what stays in floats -------------------------------------------------------------------------------


def test_what_has_no_form_on_bytes_runs_in_fp32() -> None:
    w = QuantizedWriter("qdq")
    x = w.quantize(w.input(1, 3, 8, 8), w.quant(0.03, 128))
    y = w.weighted("Conv", x, (8, 3, 3, 3))
    y = w.op("LRN", w.real(y), size=3, alpha=0.1)
    y = w.op("Mul", y, w.constant(np.linspace(0.5, 2, 8).astype("f4").reshape(1, 8, 1, 1)))
    y = w.weighted("Conv", w.quantize(y, w.quant(0.05, 120)), (8, 8, 1, 1))
    graph = assert_like_onnxruntime(w.finish(w.real(y)), pictures(4, 3, 8, 8), least=0.99, floats=True)
    ops = [(n.op, "quant" in n.attrs) for n in graph.nodes]
    assert ops == [
        ("input", True), ("conv2d", True), ("dequantize", False), ("lrn", False), ("batch_norm", False),
        ("quantize", True), ("conv2d", True), ("dequantize", False),
    ]  # fmt: skip


def test_a_layer_that_several_read_as_floats_stays_in_fp32() -> None:
    w = QuantizedWriter("qdq")
    x = w.quantize(w.input(1, 3, 8, 8), w.quant(0.03, 128))
    weight = w.constant(np.ones((4, 3, 1, 1), np.int8))
    real = w.op("Conv", w.real(x), w.op("DequantizeLinear", weight, w.constant(0.1)))
    a, b = w.quantize(real, w.quant(0.05, 128)), w.quantize(real, w.quant(0.1, 100))
    data = w.finish(w.real(w.layer("Add", a, b)))
    graph = assert_like_onnxruntime(data, pictures(4, 3, 8, 8), least=0.99, floats=True)
    assert [n.op for n in graph.nodes if n.op == "conv2d" and "quant" not in n.attrs] == ["conv2d"]


def test_a_layer_without_a_quantised_output_stays_in_fp32() -> None:
    w = QuantizedWriter("qdq")
    x = w.quantize(w.input(1, 3, 8, 8), w.quant(0.03, 128))
    y = w.op("Flatten", w.op("GlobalAveragePool", w.real(w.weighted("Conv", x, (8, 3, 1, 1)))))
    codes = w.constant(w.rng.integers(-127, 127, (5, 8), np.int8))
    data = w.finish(w.op("Gemm", y, w.op("DequantizeLinear", codes, w.constant(0.01)), transB=1))
    graph = onnx.load(data, quantized=True)
    x32 = pictures(4, 3, 8, 8)
    found = Engine(graph).run(x32, threads=1, pixels=False).reshape(4, 5)
    run = onnxruntime_run(data)
    expected = np.concatenate([run(x32[i : i + 1]) for i in range(4)])
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_relu_and_clip_go_into_the_layer() -> None:
    for kind in ("Relu", "Clip"):
        w = QuantizedWriter("qdq", seed=3)
        x = w.quantize(w.input(1, 3, 9, 9), w.quant(0.03, 128))
        codes = w.constant(w.rng.integers(-127, 127, (8, 3, 3, 3), np.int8))
        y = w.op("Conv", w.real(x), w.op("DequantizeLinear", codes, w.constant(0.01)))
        bounds = (w.constant(0.0), w.constant(1.5)) if kind == "Clip" else ()
        y = w.quantize(w.op(kind, y, *bounds), w.quant(0.04, 100))
        graph = assert_like_onnxruntime(w.finish(w.real(y)), pictures(4, 3, 9, 9), least=0.99)
        assert [n.op for n in graph.nodes] == ["input", "conv2d", "dequantize"]


def test_max_pool_reshape_and_pad_of_codes() -> None:
    w = QuantizedWriter("qdq", "int8", seed=4)
    x = w.quantize(w.input(1, 3, 9, 9), w.quant(0.03, 128))
    quant = w.quant(0.05, 110)
    y = w.weighted("Conv", x, (8, 3, 3, 3), quant=quant)
    padded = w.op("Pad", y, w.constant([0, 0, 1, 1, 0, 0, 1, 1]), quant[1])
    y = w.note(w.op("MaxPool", w.weighted("Conv", w.note(padded, quant), (8, 8, 3, 3), quant=quant),
                    kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), quant)  # fmt: skip
    shuffled = w.op("Transpose", w.op("Reshape", y, w.constant([0, 2, 4, 4, 4])), perm=[0, 2, 1, 3, 4])
    y = w.note(w.op("Reshape", shuffled, w.constant([0, 8, 4, 4])), quant)
    y = w.weighted("Conv", y, (6, 4, 1, 1), group=2)
    graph = assert_like_onnxruntime(w.finish(w.real(y)), pictures(4, 3, 9, 9))
    assert [n.op for n in graph.nodes if "quant" not in n.attrs] == ["dequantize"]
    assert {"max_pool2d", "gather_channels"} <= {n.op for n in graph.nodes}


def test_other_scales_of_the_same_codes() -> None:
    """A DequantizeLinear with another scale than the QuantizeLinear's: the codes stay, their meaning changes."""
    w = QuantizedWriter("qdq", seed=5)
    x = w.quantize(w.input(1, 3, 6, 6), w.quant(0.03, 128))
    other = w.quant(0.06, 100)
    y = w.weighted("Conv", w.note(x, other), (4, 3, 1, 1))
    assert_like_onnxruntime(w.finish(w.real(y)), pictures(4, 3, 6, 6))


def test_sums_of_integers_are_floats() -> None:
    rng = np.random.default_rng(6)
    w = OnnxWriter()
    zero = w.constant(np.array(120, np.uint8))
    q = w.op("QuantizeLinear", w.input(1, 3, 7, 7), w.constant(0.03), zero)
    codes = rng.integers(-127, 127, (5, 3, 3, 3), np.int8)
    sums = w.op("ConvInteger", q, w.constant(codes), zero, pads=[1, 1, 1, 1])
    y = w.op("Mul", w.op("Cast", sums, to=1), w.constant(0.002))
    data = w.finish(y)
    x = pictures(3, 3, 7, 7)
    run = onnxruntime_run(data)
    expected = np.concatenate([run(x[i : i + 1]) for i in range(3)])
    found = Engine(onnx.load(data, quantized=True)).run(x, threads=1, pixels=False).transpose(0, 3, 1, 2)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("form", FORMS)
def test_dequantised(form: str) -> None:
    """precision="fp32": no rounding, but the ranges of the codes, which stand for a ReLU, are kept."""
    assert not any("quant" in n.attrs for n in onnx.load(network(QuantizedWriter(form)), quantized=False).nodes)
    w = QuantizedWriter(form, seed=2)
    y = w.quantize(w.input(1, 3, 17, 14), w.quant(0.03, 128))
    y = w.weighted("Conv", y, (24, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1], quant=w.quant(0.02, 0))
    y = w.layer("Add", y, w.weighted("Conv", y, (24, 1, 3, 3), group=24, pads=[1, 1, 1, 1], quant=w.quant(0.02, 0)))
    data = w.finish(w.real(w.weighted("Conv", y, (24, 24, 1, 1))))
    graph = onnx.load(data, quantized=False)
    assert [n.op for n in graph.nodes if n.op == "dequantize"] == []
    x = pictures(6, 3, 17, 14)
    exact = reference.execute(graph, x.transpose(0, 2, 3, 1))[graph.output]
    rounded = Engine(onnx.load(data, quantized=True)).run(x, threads=1, pixels=False)
    signal, noise = np.square(exact - exact.mean(axis=0)).sum(), np.square(exact - rounded).sum()
    assert noise < 0.01 * signal
    assert np.allclose(Engine(graph).run(x, threads=1, pixels=False), exact, atol=1e-3 * np.abs(exact).max())


def test_pixels_become_codes_at_once(tmp_path: Path) -> None:
    w = QuantizedWriter("qdq", seed=7)
    path = tmp_path / "net.onnx"
    path.write_bytes(network(w))
    model = Model.load(path)
    picture = np.random.default_rng(0).integers(0, 256, (17, 14, 3), np.uint8)
    p = model.preprocess
    floats = ((picture - np.asarray(p.mean)) / np.asarray(p.std)).astype(np.float32).transpose(2, 0, 1)
    assert "quant" in model.graph.nodes[0].attrs
    assert np.array_equal(model.run(picture), model.run(floats))
    model.save(tmp_path / "net.fmn")
    assert np.array_equal(Model.load(tmp_path / "net.fmn").run(picture), model.run(picture))
    assert np.abs(Model.load(path, precision="fp32").run(picture) - model.run(picture)).max() < 1


# --- networks as onnxruntime.quantization writes them ---------------------------------------------------

NETWORKS = {"mobilenet_v2": 13, "mobilenet_v3_small": 17}
SLOW = {"mobilenetv1_100": 15, "mobilenet_v3_large": 14, "mobilenetv4_conv_small": 16, "shufflenet_v2_x0_5": 17}
#: Activations, weights, a scale for each channel.
KINDS = (("QUInt8", "QInt8", True), ("QUInt8", "QUInt8", False), ("QInt8", "QInt8", True))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bytes]:
    """(network, opset, size, format, kind) -> the bytes of the quantised file."""
    torch, quantization = pytest.importorskip("torch"), pytest.importorskip("onnxruntime.quantization")
    pytest.importorskip("onnx")
    from .test_onnx_exported import Network, make

    folder = tmp_path_factory.mktemp("quantised")
    torch.manual_seed(0)

    def export(name: str, opset: int, size: int, form: str, kind: tuple[str, str, bool], **options: Any) -> bytes:
        pre = folder / f"{name}-{opset}-{size}.pre.onnx"
        if not pre.exists():
            plain = Network(name, make(name), opset).export(folder, f"-{opset}-{size}", size=size, dynamic_axes=None)
            from onnxruntime.quantization.shape_inference import quant_pre_process

            quant_pre_process(str(plain), str(pre))
        x = pictures(4, 3, size, size)

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
            pictures = iter([{"x": x[i : i + 1]} for i in range(len(x))])

            def get_next(self) -> Any:
                return next(self.pictures, None)

        path = folder / f"{name}-{form}-{'-'.join(map(str, kind))}.onnx"
        quantization.quantize_static(
            str(pre), str(path), Reader(), quant_format=quantization.QuantFormat[form], per_channel=kind[2],
            activation_type=quantization.QuantType[kind[0]], weight_type=quantization.QuantType[kind[1]], **options,
        )  # fmt: skip
        return path.read_bytes()

    return export


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize("name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_networks(exported: Callable[..., bytes], name: str, form: str, request: pytest.FixtureRequest) -> None:
    slow = request.config.getoption("--slow")
    opset, size = (NETWORKS | SLOW)[name], 224 if slow else 64
    for kind in KINDS if slow else KINDS[:1]:
        data = exported(name, opset, size, form, kind)
        graph = onnx.load(data, quantized=True)
        run = onnxruntime_run(data)
        x = pictures(8, 3, size, size)
        expected = np.concatenate([run(x[i : i + 1]) for i in range(len(x))])
        found = Engine(graph).run(x, threads=1, pixels=False).reshape(expected.shape)
        steps = np.abs(found - expected) / step(graph)
        print(f"\n{name} {form} {kind}: {(steps < 0.01).mean():.2%} equal, largest difference {steps.max():.2f} steps")
        assert (steps < 1.01).mean() >= 0.999
        assert np.array_equal(found.argmax(axis=1), expected.argmax(axis=1))
        assert np.ptp(expected, axis=0).max() > 20 * step(graph)  # pictures with the same outputs prove little
        assert all("quant" in n.attrs for n in graph.nodes if n.op in ("conv2d", "dense", "add", "mul"))


@pytest.mark.parametrize("options", [{"ActivationSymmetric": True}, {"AddQDQPairToWeight": True}])
def test_other_options_of_the_quantiser(exported: Callable[..., bytes], options: dict[str, bool]) -> None:
    """Symmetric codes keep ReLU as operators of their own; weights may be floats that are quantised in the file."""
    data = exported("mobilenet_v2", 13, 64, "QDQ", KINDS[2], extra_options=options)
    graph = assert_few_floats(data)
    x = pictures(4, 3, 64, 64)
    run = onnxruntime_run(data)
    expected = np.concatenate([run(x[i : i + 1]) for i in range(len(x))])
    found = Engine(graph).run(x, threads=1, pixels=False).reshape(expected.shape)
    assert (np.abs(found - expected) / step(graph) < 1.01).mean() >= 0.999


def assert_few_floats(data: bytes) -> Graph:
    graph = onnx.load(data, quantized=True)
    assert all("quant" in n.attrs for n in graph.nodes if n.op in ("conv2d", "dense", "add"))
    return graph
