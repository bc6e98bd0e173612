"""Memory of runs: one arena for the plans of all picture sizes, and what an earlier run left there changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from fastmobilenet import Model, models
from fastmobilenet.graph import Graph
from fastmobilenet.lower import Engine

from .samples import assert_same_bits, floats, pixels

MB = 2**20


def small(arch: str, **options: object) -> Graph:
    return models.build(arch, classes=5, input_size=(96, 96), input_layout="NHWC", **options)  # type: ignore[arg-type]


def test_plans_share_an_arena() -> None:
    engine = Engine(small("mobilenet_v2", width=0.35))
    x = np.zeros((1, 640, 640, 3), np.uint8)
    sizes = [(640 - 32 * i, 640) for i in range(6)]
    for h, w in sizes:
        engine.run(x[:, :h, :w], pixels=True)
    needed = engine.program(*sizes[0]).arena_bytes
    assert needed > 4 * MB
    assert engine._arenas.nbytes <= needed + 2 * MB  # and what a thread needs for itself
    for _ in range(130):  # of small pictures only: the large arena is given back
        engine.run(x[:, :64, :64], pixels=True)
    assert engine._arenas.nbytes <= 4 * engine.program(64, 64).arena_bytes + 4 * MB
    part = Engine(engine.skeleton, base=engine)
    assert part._arenas is engine._arenas


@pytest.mark.parametrize(
    "arch, options",
    [
        ("mobilenet_v1", {"width": 0.25}),
        ("mobilenet_v2", {"width": 0.35}),
        ("mobilenet_v3_small", {"width": 0.35}),
        ("mobilenetv4_conv_small_035", {}),
        ("semnasnet_050", {}),
        ("efficientnet_lite0", {}),
        ("squeezenet1_1", {}),
        ("shufflenet_v1_g3", {"width": 0.5}),
        ("shufflenet_v2_x0_5", {}),
        ("googlenet", {}),
        ("alexnet", {"width": 0.1}),
    ],
)
def test_what_a_run_leaves_changes_no_other(arch: str, options: dict[str, float]) -> None:
    """NaN all over the arena, then pictures of other sizes."""
    graph = small(arch, **options)
    engine = Engine(graph)
    sizes = ((96, 96), (129, 70), (65, 65)) if arch != "alexnet" else ((96, 96),)
    for threads in (1, 3):
        for h, w in sizes:
            engine.run(np.full((1, 160, 161, 3), np.nan, np.float32), threads=threads, pixels=False)
            x = floats(1, h, w, 3)
            assert_same_bits(engine.run(x, threads=threads, pixels=False), Engine(graph).run(x, pixels=False))


def test_quantised_networks_too(test_data: Path) -> None:
    path = test_data / "models" / "mobilenet_v1_0.25_128_quant.tflite"
    if not path.exists():
        pytest.skip(f"needs {path.name}")
    model, x = Model.load(path, threads=2), pixels(128, 128, 3)
    head = model.with_head(floats(4, 256))
    wanted = head.run(x), model.run(x, outputs=["embedding", "logits"])
    head.run(np.full((160, 160, 3), np.nan, np.float32))
    model.run(pixels(200, 190, 3), size=(200, 190))
    assert_same_bits(head.run(x), wanted[0])
    found = model.run(x, outputs=["embedding", "logits"])
    for name in found:
        assert_same_bits(found[name], wanted[1][name])


@pytest.mark.slow
@pytest.mark.timing
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_resident_memory_of_100_000_runs(run_python, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """In a process of its own; the command says what is measured."""
    root = Path(__file__).resolve().parent.parent
    done = run_python("-m", "bench.memory", cwd=root, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
