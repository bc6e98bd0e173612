"""Model.quantize on every network of models/: all of it becomes bytes, and stays near to fp32.

The weights are random, and their signal is weak: what differs between pictures is a small part of it, and each of some
fifty layers adds its noise. Trained networks are in test_quantize_trained.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fastmobilenet import Model, models, reference

#: Network: (options, the least signal-to-noise in dB of its output).
QUICK: dict[str, tuple[dict[str, Any], float]] = {
    "mobilenet_v1": ({"width": 0.25}, 14),
    "mobilenetv4_conv_small_035": ({}, 22),
    "shufflenet_v2_x0_5": ({}, 7),
}
SLOW: dict[str, tuple[dict[str, Any], float]] = {
    "mobilenet_v2": ({"width": 0.35}, 8),
    "mobilenet_v3_small": ({"width": 0.5}, 19),
    "mobilenet_v3_large": ({"width": 0.35}, 3),
    "mnasnet0_5": ({}, 13),
    "efficientnet_lite0": ({}, 9),
    "squeezenet1_1": ({}, 18),
    "shufflenet_v1_g3": ({}, 15),
}


def pictures(count: int, size: int) -> np.ndarray:
    """Coarse patterns of different brightness with some noise, uint8."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (count, 8, 8, 3)).astype(np.float64) * rng.uniform(0.3, 1, (count, 1, 1, 1))
    fine = coarse.repeat(size // 8, axis=1).repeat(size // 8, axis=2)
    return (fine + rng.normal(0, 6, fine.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_network(name: str) -> None:
    options, least = (QUICK | SLOW)[name]
    model = Model.from_graph(models.build(name, classes=100, input_size=(96, 96), **options), threads=1)
    batch = pictures(12, 96)
    quantized = model.quantize(batch)
    report = quantized.quantization
    assert report is not None
    layers = [layer for layer in report.layers if not layer.kept]
    print(f"\n{name}: {layers[-1].snr:.1f} dB at the end, {min(layer.snr for layer in layers):.1f} at least")
    assert layers[-1].snr > least
    assert len(layers) == len(report.layers)
    assert all("quant" in n.attrs for n in quantized.graph.nodes if n.op != "dequantize")
    assert report.bytes[1] < 0.35 * report.bytes[0] and min(report.seconds) > 0
    assert report.agreement is not None and report.agreement_held_out is not None
    graph = quantized.graph
    p = quantized.preprocess
    x = ((batch[:1] - np.asarray(p.mean)) / np.asarray(p.std)).astype(np.float32)
    expected = reference.execute(graph, x)[graph.output].reshape(1, -1).astype(np.float32)
    assert np.array_equal(quantized.run(batch[:1]), expected)
