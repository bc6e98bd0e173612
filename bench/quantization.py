"""What quantisation costs trained networks: the share of pictures whose best class is right, before and after.

    python -m bench.quantization                  # three MobileNets of $FASTMOBILENET_TEST_DATA: a few minutes
    python -m bench.quantization --json net.tflite --pictures photos/labels.csv

The float weights are those of a quantised file, dequantised. 40 pictures calibrate, every fifth of them; the others
test. ``labels.csv`` has lines of file name and class, the files lie in its folder.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fastmobilenet import Model, image

FILES = ("mobilenet_v2_1.0_224_quant", "tf2_mobilenet_v2_1.0_224_ptq", "mobilenet_v1_0.5_160_quant")

#: One of so many pictures calibrates.
EVERY = 5


def test_data() -> Path:
    return Path(os.environ.get("FASTMOBILENET_TEST_DATA", "../shared/data"))


def read_labels(path: Path) -> tuple[list[Path], np.ndarray]:
    """The pictures that are there, and their classes."""
    with path.open(newline="") as file:
        rows = [row for row in csv.reader(file) if row and (path.parent / row[0]).is_file()]
    return [path.parent / row[0] for row in rows], np.array([int(row[1]) for row in rows])


def measure(path: Path, pictures: list[Path], classes: np.ndarray, threads: int | None = None) -> dict[str, Any]:
    """Top-1 of fp32 and of int8 with and without equalisation, in percent of the pictures that did not calibrate; with
    the signal-to-noise at the end in dB, and the agreement of both with fp32."""
    model = Model.load(path, precision="fp32", threads=threads)
    pixels = np.stack([image.prepare(image.decode(p), model.preprocess, model.input_size) for p in pictures])
    calibrates = np.arange(len(pixels)) % EVERY == 0
    offset = 1 if model.classes == 1001 else 0  # the first class of TensorFlow's networks is the background
    wanted = classes[~calibrates] + offset

    def top1(net: Model) -> np.ndarray:
        return net.run(pixels[~calibrates]).argmax(axis=1)

    exact = top1(model)
    found: dict[str, Any] = {"file": path.name, "pictures": len(wanted), "fp32": 100 * float((exact == wanted).mean())}
    for name, equalize in (("equalized", True), ("not equalized", False)):
        quantized = model.quantize(pixels[calibrates], held_out=0, equalize=equalize)
        report = quantized.quantization
        assert report is not None
        best = top1(quantized)
        found[name] = {
            "top1": 100 * float((best == wanted).mean()),
            "agreement": 100 * float((best == exact).mean()),
            "snr": [layer.snr for layer in report.layers if not layer.kept][-1],
            "bytes": report.bytes[1],
        }
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="model files (default: those of the test data)")
    parser.add_argument("--pictures", type=Path, metavar="CSV", help="pictures and classes (default: the test data's)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true", help="print one JSON object a file")
    args = parser.parse_args(arguments)
    files = args.files or [test_data() / "models" / f"{name}.tflite" for name in FILES]
    pictures, classes = read_labels(args.pictures or test_data() / "imagenet_samples" / "labels.csv")
    if not args.json:
        print(f"{'file':<36} {'fp32':>6} {'equalized':>10} {'not':>6}   same class as fp32    dB at the end")
    for path in files:
        found = measure(path, pictures, classes, args.threads)
        if args.json:
            print(json.dumps(found), flush=True)
            continue
        a, b = found["equalized"], found["not equalized"]
        print(
            f"{found['file']:<36} {found['fp32']:6.2f} {a['top1']:10.2f} {b['top1']:6.2f}   "
            f"{a['agreement']:6.2f} {b['agreement']:6.2f}        {a['snr']:5.1f} {b['snr']:5.1f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
