"""Real MobileNets on real pictures against LiteRT: the same class, and no accuracy lost by leaving int8."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmobilenet
from fastmobilenet import image

#: file, least share of pictures with the class of LiteRT's int8 run
FILES = {
    "mobilenet_v2_1.0_224_quant.tflite": 0.97,
    "tf2_mobilenet_v2_1.0_224_ptq.tflite": 0.97,
    "mobilenet_v1_0.5_160_quant.tflite": 0.96,
    "mobilenet_v1_0.25_128_quant.tflite": 0.94,
}


@pytest.fixture(scope="module")
def pictures(test_data: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """200 decoded pictures and their classes, 0..999."""
    pytest.importorskip("ai_edge_litert")  # before an hour of work under an emulator, not after
    with (test_data / "imagenet_samples/labels.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    rows = [row for row in rows if (test_data / "imagenet_samples" / row[0]).is_file()]
    decoded = [image.decode(test_data / "imagenet_samples" / row[0]) for row in rows]
    classes = np.array([int(row[1]) for row in rows])
    assert len(decoded) == 200 and classes.max() < 1000
    return decoded, classes


def litert_outputs(path: Path, pixels: list[np.ndarray], delegate: bool) -> np.ndarray:
    """The int8 network's own outputs, (n, classes) integers.

    LiteRT's built-in kernels give what its reference kernels give. Its default is another set, the XNNPACK
    delegate: for these V1 files that has another class than the built-in kernels on one picture in 25.
    """
    module: Any = pytest.importorskip("ai_edge_litert.interpreter")
    kinds = module.OpResolverType
    kind = kinds.AUTO if delegate else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = module.Interpreter(str(path), num_threads=1, experimental_op_resolver_type=kind)
    interpreter.allocate_tensors()
    inp, out = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    outputs = []
    for picture in pixels:
        x = picture if inp["dtype"] == np.uint8 else (picture.astype(np.int16) - 128).astype(np.int8)
        interpreter.set_tensor(inp["index"], x[None])
        interpreter.invoke()
        outputs.append(interpreter.get_tensor(out["index"])[0].astype(np.int32))
    return np.stack(outputs)


@pytest.mark.parametrize("name", FILES)
def test_same_classes_as_litert(test_data: Path, pictures: tuple[list[np.ndarray], np.ndarray], name: str) -> None:
    path = test_data / "models" / name
    model = fastmobilenet.Model.load(path)
    decoded, classes = pictures
    pixels = [image.prepare(p, model.preprocess, model.input_size) for p in decoded]
    ours = model.run(np.stack(pixels)).argmax(axis=1)
    accuracy = float((ours - 1 == classes).mean())  # 1001 classes: 0 is the background
    for delegate in (False, True):
        theirs = litert_outputs(path, pixels, delegate)
        if delegate:  # ours is one of their best: 8-bit probabilities have ties, and argmax takes any of them
            same = theirs[np.arange(len(ours)), ours] == theirs.max(axis=1)
        else:
            same = ours == theirs.argmax(axis=1)
        their_accuracy = float((theirs.argmax(axis=1) - 1 == classes).mean())
        kernels = "XNNPACK" if delegate else "built-in"
        print(f"\n{name}: {same.mean():.1%} as LiteRT {kernels}; top-1 {accuracy:.1%}, LiteRT {their_accuracy:.1%}")
        assert same.mean() >= FILES[name]
        assert accuracy >= their_accuracy - 0.01


def test_hen(test_data: Path) -> None:
    model = fastmobilenet.Model.load(test_data / "models/mobilenet_v2_1.0_224_quant.tflite")
    best = model.classify(test_data / "imagenet_samples/n01514859_hen.JPEG", top=1)[0]
    assert best.label == "hen"
    assert 0 < best.score <= 1
