"""bench/arm_mca.py: tiles written by hand compute a product, and the committed report says what its numbers say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import arm_mca, arm_report, arm_tiles, disassembly, report
from bench.arm_tiles import LANES, STEPS, Tile
from bench.machine import REPOSITORY

RESULT = REPOSITORY / "bench" / "results" / "arm-mca.json"


class Machine:
    """Executes the few instructions that the tiles are made of. Memory is an array of floats for each pointer."""

    def __init__(self, memory: dict[str, np.ndarray]) -> None:
        self.vectors = np.zeros((32, LANES))
        self.memory = memory
        self.pointers = dict.fromkeys(("x0", "x1", "x3"), 0)

    def run(self, lines: list[str]) -> None:
        for line in lines:
            name, numbers = line.split()[0], [int(n) for n in re.findall(r"(?<!\.)\d+", line)]
            if name == "fmla":
                match = re.fullmatch(r"fmla v(\d+)\.4s, v(\d+)\.4s, v(\d+)\.s\[([0-3])\]", line)
                assert match is not None
                acc, b, a, lane = map(int, match.groups())
                self.vectors[acc] += self.vectors[b] * self.vectors[a, lane]
            elif name == "ldr":
                match = re.fullmatch(r"ldr ([sdq])(\d+), \[(x\d), #(\d+)\]", line)
                assert match is not None
                start, count = (self.pointers[match[3]] + int(match[4])) // 4, {"s": 1, "d": 2, "q": 4}[match[1]]
                self.vectors[int(match[2])] = np.nan  # the rest of the register
                self.vectors[int(match[2]), :count] = self.memory[match[3]][start : start + count]
            elif name == "add":
                assert numbers[0] == numbers[1]
                self.pointers[f"x{numbers[0]}"] += numbers[2]
            else:
                assert name in ("prfm", "subs", "b.gt"), line


@pytest.mark.parametrize("tile", arm_tiles.TILES, ids=lambda tile: f"{tile.name}-{tile.a_load}")
def test_tile_computes_a_product(tile: Tile) -> None:
    k, beyond = 2 * STEPS, np.zeros(64 * 16)  # a pixel has 16 numbers in a block; the last loads are for nobody
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((tile.mr, k)), rng.standard_normal((k, tile.nr))
    in_memory = a if tile.a_load else a.T
    machine = Machine({"x0": np.append(in_memory, beyond), "x1": np.append(b, beyond)})
    machine.run(arm_tiles.before(tile))
    for _ in range(k // STEPS):
        machine.run(arm_tiles.loop(tile))
    c = machine.vectors[: tile.mr * tile.nr // LANES].reshape(tile.mr, tile.nr)
    np.testing.assert_allclose(c, a @ b, rtol=1e-12, atol=1e-12)


def test_tiles_that_do_not_fit() -> None:
    for tile in (Tile(7, 16, 4), Tile(8, 12, 4)):
        with pytest.raises(ValueError, match="needs more than 32 registers"):
            arm_tiles.loop(tile)


def test_flags_are_those_of_the_build() -> None:
    flags = arm_mca.build_flags((REPOSITORY / "CMakeLists.txt").read_text())
    assert {"-O2", "-DNDEBUG", "-ffp-contract=off", "-march=armv8-a"} <= set(flags)
    assert not [flag for flag in flags if "$" in flag]
    with pytest.raises(ValueError, match="does not give the flags"):
        arm_mca.build_flags("project(other)")


def entry(name: str, kind: str, instructions: int, cycles: float, **more: Any) -> dict[str, Any]:
    found = {"name": name, "kind": kind, "instructions": instructions, "multiply_adds": 192, "stack_moves": 0}
    found |= {"loads_of_128_bits": 44, "registers": "24 + 6 + 2" if kind == "tile" else "", "cycles": {"n1": cycles}}
    return found | more


def document(*entries: dict[str, Any]) -> dict[str, Any]:
    versions = {"compiler": "g++ 12", "llvm-mca": "LLVM 19"}
    head = {"kind": "arm_mca", "date": "2026-01-02T03:04:05+00:00", "command": "python -m bench.arm_mca"}
    return {**head, "flags": ["-O2"], "versions": versions, "fmla_a_cycle": {"n1": 2.0}, "loops": list(entries)}


def test_report() -> None:
    result = document(
        entry("gemm_tile<6, 1, 16>", "gemm", 315, 128.0, stack_moves=47),
        entry("6x16, 4 k of a pixel", "tile", 249, 96.0),
        entry("6x16, 2 k of a pixel", "tile", 261, 96.0),
        entry("8x12, 1 k of a pixel", "tile", 240, 95.0),
        entry("gemv", "other", 400, 384.0),
    )
    text = arm_report.markdown(result)
    assert "should keep the tile **6x16, 4 k of a pixel**" in text
    assert "0.324 instructions for each and 100% (n1) to 100% (n1)" in text
    assert "8x12, 1 k of a pixel, the best of the others, would gain 1.1%" in text
    assert "47 moves to or from the stack, and 75% (n1) to 75% (n1) of the bound, 1.33 times the cycles" in text
    assert "the order of its instructions is to be improved, not the tile" in text
    assert "| `gemm_tile<6, 1, 16>` | 47 | 315 | 192 | 44 | 0.410 | 128 (75%) | 280 (69%) |" in text
    assert "| 6x16, 4 k of a pixel | 24 + 6 + 2 | 249 | 192 | 44 | 0.324 | 96 (100%) | 280 (69%) |" in text
    assert "| gemv | 0 | 400 | 192 | 44 | 0.521 | 384 (25%) | 280 (69%) |" in text


def test_report_tells_to_change_the_tile() -> None:
    result = document(
        entry("gemm_tile<4, 1, 16>", "gemm", 249, 98.0),
        entry("4x16, 4 k of a pixel", "tile", 249, 98.0),
        entry("6x16, 4 k of a pixel", "tile", 249, 96.0),
        entry("8x12, 1 k of a pixel", "tile", 240, 97.0),
    )
    text = arm_report.conclusion(result)
    assert "should replace 4x16 by the tile **6x16, 4 k of a pixel**" in text
    assert "would gain 0.0%" in text
    assert "no stack moves" in text
    assert text.endswith("1.02 times the cycles by hand.")


def test_committed_report_is_made_from_the_committed_numbers(tmp_path: Path) -> None:
    (written,) = report.write(RESULT, tmp_path)
    assert written.read_text() == RESULT.with_suffix(".md").read_text()


def test_jumps_are_made_local() -> None:
    """llvm-mca assembles the loop: addresses of objdump mean nothing to it."""
    text = (
        "x.o:     file format elf64-littleaarch64\n\nSYMBOL TABLE:\n"
        f"{16:016x} l     F .text\t{12:016x} f(float*)\n\nDisassembly of section .text:\n\n{16:016x} <f(float*)>:\n"
        "  10:\tfmla\tv0.4s, v1.4s, v2.s[0]\n  14:\tcbz\tx1, 18 <f(float*)+0x8>\n"
        "  18:\tb.ne\t10 <f(float*)>  // b.any\n"
    )
    (function,) = disassembly.parse(text)
    assert arm_mca.assembly(function.loops[0]) == ["fmla v0.4s, v1.4s, v2.s[0]", "cbz x1, 0b", "b.ne 0b"]
