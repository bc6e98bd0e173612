"""Trained networks: what post-training quantisation costs, how large int8 files are, and what a process takes."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import quantization
from fastmobilenet import Model

V2 = "mobilenet_v2_1.0_224_quant.tflite"

#: Loads the file, runs a picture, and prints the memory that is resident in the end, in kB: that of its own and that of
#: files and libraries.
PROCESS = """
import sys
import numpy as np
import fastmobilenet as fm
model = fm.Model.load(sys.argv[1], threads=1)
assert any("quant" in node.attrs for node in model.graph.nodes)
picture = (np.arange(224 * 224 * 3) * 7919 >> 4).astype(np.uint8).reshape(224, 224, 3)  # numpy.random takes 7 MB
for _ in range(3):
    model.run(picture)
with open("/proc/self/status") as file:
    fields = dict(line.split(":", 1) for line in file)
print(sum(int(fields[key].split()[0]) for key in ("RssAnon", "RssFile")))
"""

#: What a process that loads and runs the int8 V2 may take, with NumPy and all, in MB. 43.9 with Python 3.11 and NumPy
#: 2.4 on x86-64; these two take 27 of it, and other builds of them more.
RESIDENT = 48


def resident(path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]) -> float:
    result = run_python("-c", PROCESS, str(path), timeout=300)
    assert result.returncode == 0, result.stderr
    return int(result.stdout) * 1024 / 1e6


def test_size_and_memory_of_v2(
    test_data: Path, tmp_path: Path, run_python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    model = Model.load(test_data / "models" / V2, threads=1)
    path = tmp_path / "v2.fmn"
    model.save(path)
    assert path.stat().st_size <= 3.8e6
    if not Path("/proc/self/status").exists():
        pytest.skip("the memory of a process is read from /proc")
    taken = resident(path, run_python)
    print(f"\n{path.stat().st_size / 1e6:.2f} MB, {taken:.1f} MB resident")
    assert taken <= RESIDENT


@pytest.mark.slow
@pytest.mark.parametrize("name, least", [(quantization.FILES[0], 1.0), (quantization.FILES[1], 1.0)])
def test_accuracy(test_data: Path, name: str, least: float) -> None:
    """Not more than a point lost on the 160 pictures that did not calibrate, with and without equalisation."""
    pictures, classes = quantization.read_labels(test_data / "imagenet_samples" / "labels.csv")
    found = quantization.measure(test_data / "models" / f"{name}.tflite", pictures, classes)
    print(f"\n{found}")
    assert found["pictures"] == 160
    for kind in ("equalized", "not equalized"):
        assert found[kind]["top1"] >= found["fp32"] - least
        assert found[kind]["agreement"] >= 90
