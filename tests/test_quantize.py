"""Model.quantize: small networks of every kind of layer, their bytes, their report, and the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Model, ModelError, reference
from fastmobilenet.cli import main
from fastmobilenet.graph import HARD_SIGMOID, HARD_SWISH, RELU, RELU6, Graph, GraphBuilder
from fastmobilenet.preprocess import IMAGENET, RAW, TENSORFLOW, Preprocess
from fastmobilenet.quantization import Quant
from fastmobilenet.quantize import split

from .conftest import build_small_graph

PICTURES = np.random.default_rng(7).integers(0, 256, (10, 32, 32, 3), np.uint8)
PICTURES[5:] //= 3  # not all of the same brightness


def small(**fields: Any) -> Model:
    return Model.from_graph(build_small_graph(**fields), threads=1)


def noise(model: Model, quantized: Model) -> float:
    """Error over signal of what differs between pictures."""
    exact = model.run(PICTURES)
    return float(np.square(exact - quantized.run(PICTURES)).sum() / np.square(exact - exact.mean(axis=0)).sum())


def conv(b: GraphBuilder, x: str, ic: int, oc: int, k: int = 1, s: int = 1, groups: int = 1, **attrs: Any) -> str:
    rng = np.random.default_rng([ic, oc, k])
    params = {
        "weight": rng.normal(0, (k * k * ic / groups) ** -0.5, (oc, k, k, ic // groups)).astype(np.float32),
        "bias": rng.normal(0, 0.3, oc).astype(np.float32),
    }
    return b.add("conv2d", x, params=params, stride=(s, s), padding="same", dilation=(1, 1), groups=groups, **attrs)


def large_network() -> Graph:
    """What V3, SqueezeNet, ShuffleNet and GoogLeNet have: squeeze-excite, hard swish, pools, concat, shuffle, lrn."""
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 24, 3, 2, activation=None)
    x = b.add("activation", x, activation=HARD_SWISH, name="swish")
    s = b.add("global_avg_pool", x)
    s = conv(b, conv(b, s, 24, 8, activation=RELU), 8, 24)
    s = b.add("activation", s, activation=HARD_SIGMOID)
    x = b.add("mul", x, s)
    y = conv(b, conv(b, x, 24, 24, 5, 1, 24, activation=RELU6), 24, 24)
    x = b.add("add", x, y)
    x = b.add("activation", x, activation=HARD_SWISH)
    x = b.add("max_pool2d", x, kernel=(3, 3), stride=(2, 2), padding=(0, 1, 0, 1))
    x = b.add("concat", conv(b, x, 24, 10, activation=RELU), conv(b, x, 24, 14, 3, activation=RELU))
    x = b.add("gather_channels", x, index=tuple(np.arange(24).reshape(2, 12).T.ravel().tolist()))
    x = b.add("lrn", x, size=5, alpha=1e-2, beta=0.75, bias=1.0, name="norm")
    x = b.add("avg_pool2d", x, kernel=(2, 2), stride=(2, 2), padding=(0, 0, 0, 0))
    x = b.add("batch_norm", x, epsilon=1e-3, params={
        k: np.random.default_rng(i).uniform(0.5, 1.5, 24).astype(np.float32)
        for i, k in enumerate(("gamma", "beta", "mean", "variance"))
    })  # fmt: skip
    weight = np.random.default_rng(3).normal(0, 0.1, (7, 4 * 4 * 24)).astype(np.float32)
    x = b.add("softmax", b.add("dense", x, params={"weight": weight}, name="classes"))
    return b.build(x, input_size=(32, 32), input_layout="NHWC", name="large")


@pytest.mark.parametrize("equalize", [False, True])
@pytest.mark.parametrize("correct", [False, True])
def test_small_network(equalize: bool, correct: bool, tmp_path: Path) -> None:
    model = small()
    quantized = model.quantize(PICTURES, equalize=equalize, bias_correction=correct)
    assert noise(model, quantized) < 0.02
    report = quantized.quantization
    assert report is not None and (report.pictures, report.held_out) == (8, 2)
    assert (report.equalized, report.bias_corrected) == (equalize, correct)
    assert min(layer.snr for layer in report.layers) > 20 and not report.bad
    assert report.bytes[1] < report.bytes[0] and min(report.seconds) > 0
    assert all("quant" in n.attrs for n in quantized.graph.nodes if n.op != "dequantize")
    quantized.save(tmp_path / "net.fmn")
    assert np.array_equal(Model.load(tmp_path / "net.fmn").run(PICTURES), quantized.run(PICTURES))
    assert model.quantization is None and Model.load(tmp_path / "net.fmn").quantization is None


def test_what_runs_is_the_definition() -> None:
    quantized = small().quantize(PICTURES)
    x = (PICTURES / 127.5 - 1).astype(np.float32)
    graph = quantized.graph
    assert np.array_equal(quantized.run(PICTURES), reference.execute(graph, x)[graph.output][:, 0, 0])


def test_large_network(tmp_path: Path) -> None:
    model = Model.from_graph(large_network(), threads=1)
    quantized = model.quantize(PICTURES, held_out=0)
    kept = {layer.name for layer in quantized.quantization.layers if layer.kept}  # type: ignore[union-attr]
    assert "norm" in kept and len(kept) == 2  # and the softmax, whose output nothing reads
    assert np.abs(model.run(PICTURES) - quantized.run(PICTURES)).max() < 0.05
    assert np.allclose(quantized.probabilities(PICTURES).sum(axis=1), 1, atol=1e-5)
    quantized.save(tmp_path / "net.fmn")
    assert np.array_equal(Model.load(tmp_path / "net.fmn").run(PICTURES), quantized.run(PICTURES))


def test_residual_and_hard_swish_that_were_fused_can_be_kept() -> None:
    model = Model.from_graph(large_network(), threads=1)
    before = model.graph
    residual = next(n.name for n in before.nodes if n.op == "conv2d" and len(n.inputs) == 2)
    swish = next(n.name for n in before.nodes if n.op == "conv2d" and "swish" in str(n.activation))
    quantized = model.quantize(PICTURES, keep=[residual, swish, "classes"])
    report = quantized.quantization
    assert report is not None
    kept = {layer.layer for layer in report.layers if layer.kept}
    assert {residual, swish, "classes"} <= kept
    floats = [n for n in quantized.graph.nodes if n.op in ("conv2d", "dense") and "quant" not in n.attrs]
    assert len(floats) == 3 and all(n.params["weight"].dtype == np.float32 for n in floats)
    assert np.abs(model.run(PICTURES) - quantized.run(PICTURES)).max() < 0.05


@pytest.mark.parametrize(
    "preprocess", [TENSORFLOW, RAW, Preprocess(mean=(0, 0, 0), std=(255, 255, 255)), Preprocess(channels="bgr")]
)
def test_pixels_are_the_bytes(preprocess: Preprocess) -> None:
    model = small(preprocess=preprocess)
    quantized = model.quantize(PICTURES, held_out=0)
    source = quantized.graph.nodes[0]
    p = quantized.preprocess
    pixels = np.arange(256.0)
    mean, std = (np.asarray(source.attrs.get(k, v)) * np.ones(3) for k, v in (("mean", 0.0), ("std", 1.0)))
    for i in range(3):
        real = ((pixels - p.mean[i]) / p.std[i] - mean[i]) / std[i]
        assert np.array_equal(source.attrs["quant"].quantize(real), np.arange(256))
    assert noise(model, quantized) < 0.02
    floats = ((PICTURES[..., ::-1] if p.channels == "bgr" else PICTURES) - np.asarray(p.mean)) / np.asarray(p.std)
    assert np.array_equal(quantized.run(PICTURES), quantized.run(floats.astype(np.float32)))


def test_channels_of_different_scales_and_float_arrays() -> None:
    model = small(preprocess=IMAGENET)
    assert noise(model, model.quantize(PICTURES)) < 0.02
    floats = ((PICTURES - np.asarray(IMAGENET.mean)) / np.asarray(IMAGENET.std)).astype(np.float32)
    assert noise(model, model.quantize(floats)) < 0.02
    nchw = small(preprocess=IMAGENET, layout="NCHW")
    same = nchw.quantize(np.ascontiguousarray(floats.transpose(0, 3, 1, 2)))
    assert np.array_equal(same.run(PICTURES), model.quantize(floats).run(PICTURES))


def test_dead_channels_and_dead_tensors() -> None:
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 16, 3, 2, activation=RELU)
    b.nodes[-1].params["weight"][3] = 0
    b.nodes[-1].params["bias"][3] = 2
    b.nodes[-1].params["weight"][4] *= 1e-12
    b.nodes[-1].params["weight"][5] = 0
    b.nodes[-1].params["bias"][5] = -9
    y = conv(b, x, 16, 16)
    b.nodes[-1].params["weight"][:] = 0
    b.nodes[-1].params["bias"][:] = 0
    x = conv(b, b.add("global_avg_pool", b.add("add", x, y)), 16, 5)
    model = Model.from_graph(b.build(x, input_size=(32, 32), input_layout="NHWC"), threads=1)
    assert noise(model, model.quantize(PICTURES)) < 0.02


def unequal(factor: float) -> tuple[Model, str]:
    """A network with a channel of ``factor`` times the range of the others that nothing depends on; and the layer that
    reads them."""
    b = GraphBuilder()
    x = conv(b, b.add("input"), 3, 16, 3, 2, activation=RELU)
    b.nodes[-1].params["weight"][0] *= factor
    b.nodes[-1].params["bias"][0] = factor / 3
    y = conv(b, x, 16, 16, activation=RELU)
    b.nodes[-1].params["weight"][..., 0] *= 1 / (10 * factor)
    x = conv(b, b.add("global_avg_pool", y), 16, 5)
    return Model.from_graph(b.build(x, input_size=(32, 32), input_layout="NHWC"), threads=1), y


def test_a_layer_of_noise_is_named() -> None:
    model, layer = unequal(3e3)  # all other channels are smaller than a step
    report = model.quantize(PICTURES).quantization
    assert report is not None and report.bad and f"keep=['{layer}']" in str(report)
    assert json.loads(json.dumps(report.as_dict()))["warnings"] == list(report.warnings)


def test_equalisation_brings_channels_closer() -> None:
    model, layer = unequal(20)
    without, equalized = (model.quantize(PICTURES, equalize=e).quantization for e in (False, True))
    assert without is not None and equalized is not None
    snr = [next(q.snr for q in report.layers if q.name == layer) for report in (without, equalized)]
    assert snr[1] > snr[0] + 3


def test_splits() -> None:
    chosen, rest = split(10, 0.2)
    assert (len(chosen), len(rest)) == (8, 2) and sorted([*chosen, *rest]) == list(range(10))
    assert [len(part) for part in split(1, 0.9)] == [1, 0]
    chosen, rest = split(200, 0.8)
    assert chosen.tolist() == list(range(0, 200, 5))


def test_progress_and_a_folder(tmp_path: Path) -> None:
    for i, picture in enumerate(PICTURES[:3]):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    seen: list[tuple[str, int, int]] = []
    model = small()
    from_folder = model.quantize(tmp_path, held_out=0, progress=lambda *args: seen.append(args))
    assert {stage for stage, _, _ in seen} == {"ranges", "histograms", "comparison"} and {n for *_, n in seen} == {3}
    from_array = model.quantize(list(PICTURES[:3]), held_out=0)
    assert np.array_equal(from_folder.run(PICTURES), from_array.run(PICTURES))


def test_what_is_refused(tmp_path: Path) -> None:
    model = small()
    with pytest.raises(ValueError, match=r"no layer 'conv2d_22'; near it: .*conv2d_2"):
        model.quantize(PICTURES, keep=["conv2d_22"])
    with pytest.raises(TypeError, match="keep must be a list of names"):
        model.quantize(PICTURES, keep="conv2d")
    for share in (1, -0.1, float("nan"), True):
        with pytest.raises(ValueError, match="held_out"):
            model.quantize(PICTURES, held_out=share)
    with pytest.raises(ValueError, match="at least one picture"):
        model.quantize([])
    with pytest.raises(ValueError, match="no pictures in this folder"):
        model.quantize(tmp_path)
    with pytest.raises(ModelError, match="quantised already"):
        model.quantize(PICTURES).quantize(PICTURES)
    layers = [n.name for n in model.graph.nodes if n.op != "input"]
    with pytest.raises(ModelError, match="nothing is left"):
        model.quantize(PICTURES, keep=layers)
    with pytest.raises(ModelError, match="not finite"):
        Model.from_graph(build_small_graph()).quantize(np.full((1, 32, 32, 3), np.inf, np.float32))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(folder / f"{i}.png")
    source, out = str(tmp_path / "net.fmn"), str(tmp_path / "int8.fmn")
    model = small()
    model.save(source)
    kept = next(n.name for n in model.graph.nodes if n.op == "conv2d")
    assert main(["quantize", source, str(folder), out, "--keep", kept, "--json", "--threads", "1"]) == 0
    printed, _ = capsys.readouterr()
    data = json.loads(printed)
    assert data["written"] == out and data["held_out"] == 2
    assert [layer["layer"] for layer in data["layers"] if layer["kept"]] == [kept]
    assert np.array_equal(Model.load(out).run(PICTURES), model.quantize(folder, keep=[kept]).run(PICTURES))
    assert main(["quantize", source, str(folder), out, "--held-out", "0", "--no-equalize"]) == 0
    printed, _ = capsys.readouterr()
    assert printed.startswith("pictures      10 to calibrate, 0 held out") and "MB" in printed
    assert main(["quantize", source, str(folder), str(tmp_path / "x.onnx")]) == 1
    assert "ends in .fmn" in capsys.readouterr().err
    assert main(["quantize", source, str(folder), out, "--keep", "nothing"]) == 1
    assert "no layer 'nothing'" in capsys.readouterr().err


def test_ranges_keep_zero_and_the_output() -> None:
    quantized = small().quantize(PICTURES)
    graph = quantized.graph
    for node in graph.nodes:
        quant = node.attrs.get("quant")
        if isinstance(quant, Quant) and node.activation == RELU6:
            assert quant.zero == 0 and quant.scale <= 6 / 255 * 1.0001


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2_1.0_224_quant.tflite", "tf2_mobilenet_v2_1.0_224_ptq.tflite"])
@pytest.mark.parametrize("equalize", [False, True])
def test_mobilenet_v2_loses_less_than_a_point(test_data: Path, name: str, equalize: bool, tmp_path: Path) -> None:
    with (test_data / "imagenet_samples/labels.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if (test_data / "imagenet_samples" / row[0]).is_file()]
    model = Model.load(test_data / "models" / name, precision="fp32")
    pictures = [test_data / "imagenet_samples" / row[0] for row in rows]
    classes = np.array([int(row[1]) for row in rows]) + (model.classes == 1001)
    _, rest = split(len(rows), 0.8)
    quantized = model.quantize(pictures, held_out=0.8, equalize=equalize)
    before, after = (
        100 * (m.run([pictures[i] for i in rest]).argmax(axis=1) == classes[rest]).mean() for m in (model, quantized)
    )
    assert after >= before - 1
    quantized.save(tmp_path / "net.fmn")
    assert (tmp_path / "net.fmn").stat().st_size <= 3.8e6
