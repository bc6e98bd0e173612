"""python tools/x86_baselines.py ISA[,ISA...]: the best-first list of ISAs must be this one here, and all of them work.

test_x86_baselines.sh runs it on emulated CPUs. What it checks: the import, the choice of the kernel table, a small
MobileNet of each version on every table against the reference, and that an ISA the CPU lacks is refused.
"""

from __future__ import annotations

import os
import sys

import numpy as np

from fastmobilenet import _native, models
from fastmobilenet.lower import Engine
from fastmobilenet.reference import execute


def check_network(arch: str, isa: str) -> None:
    graph = models.build(arch, width=0.25, input_size=(32, 32), classes=10)
    x = np.random.default_rng(0).normal(0, 1, (2, 32, 32, 3)).astype(np.float32)
    given = x if graph.input_layout == "NHWC" else np.ascontiguousarray(x.transpose(0, 3, 1, 2))
    expected = execute(graph, x)[graph.output]
    engine = Engine(graph, isa)
    got = engine.run(given, threads=2, pixels=False)
    error = float(np.abs(got - expected).max() / np.abs(expected).max())
    print(f"{arch:13} {engine.isa:7} relative error {error:.1e}")
    assert error < 1e-4


def main() -> None:
    expected = sys.argv[1].split(",")
    assert _native.supported_isas() == expected, f"found {_native.supported_isas()}, expected {expected}"
    assert Engine(models.build("mobilenet_v1", width=0.25)).isa == expected[0]
    for arch in ("mobilenet_v1", "mobilenet_v2"):
        for isa in expected:
            check_network(arch, isa)
    for isa in sorted(set(_native.built_isas()) - set(expected)):
        os.environ["FASTMOBILENET_ISA"] = isa
        try:
            Engine(models.build("mobilenet_v1", width=0.25))
        except ValueError as error:
            print(f"FASTMOBILENET_ISA={isa}: {error}")
        else:
            raise AssertionError(f"FASTMOBILENET_ISA={isa} was accepted on a CPU without it")


main()
