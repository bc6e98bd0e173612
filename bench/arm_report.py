"""What arm_mca.py found, as Markdown: tables, and the tile that follows from them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

LANES = 4
BLOCK = 16


@dataclass(frozen=True)
class Core:
    name: str  # as LLVM spells it
    note: str


CORES = (
    Core("cortex-a55", "in order, two instructions a cycle: the small core of most phones from 2018 to 2022"),
    Core("cortex-a510", "in order, three instructions a cycle: the small core after it"),
    Core("neoverse-n1", "the server sibling of Cortex-A76, for which LLVM has no model of its own"),
    Core("neoverse-v1", "four vector units: servers, and a stand-in for Cortex-X"),
    Core("apple-m1", "LLVM's model is that of an older core with three vector units; an M1 has four"),
)


def macs(entry: dict) -> int:
    return LANES * int(entry["multiply_adds"])


def per_mac(entry: dict) -> float:
    """Instructions for a multiply-accumulate of two numbers."""
    return int(entry["instructions"]) / macs(entry)


def share(document: dict, entry: dict, core: str) -> float:
    """Cycles that the multiply-adds alone need / cycles of the iteration."""
    return float(entry["multiply_adds"] / document["fmla_a_cycle"][core] / entry["cycles"][core])


def a55_issue(entry: dict) -> int:
    """Cycles on a Cortex-A55 by its rules of issue. A multiply-add of 128 bits takes both halves of the vector unit,
    and a load of 128 bits two cycles in which nothing else is issued. All else goes beside a multiply-add."""
    return int(entry["multiply_adds"]) + 2 * int(entry["loads_of_128_bits"])


def mean_cycles(entry: dict) -> float:
    """Geometric mean over the cores of cycles for a multiply-accumulate."""
    counts: list[float] = list(entry["cycles"].values())
    return float(prod(counts) ** (1 / len(counts)) / macs(entry))


def fits(entry: dict) -> bool:
    """Whether a tile can read A where it lies, and blocks of 16 channels hold a whole number of it."""
    width = int(re.findall(r"x(\d+),", entry["name"])[0])
    return "transposed" not in entry["name"] and BLOCK % width == 0


def conclusion(document: dict) -> str:
    """Two sentences: the tile to use, and what the compiler makes of it."""
    gemm, tiles = (of_kind(document, kind) for kind in ("gemm", "tile"))
    best = min((t for t in tiles if fits(t)), key=lambda t: (round(mean_cycles(t), 4), per_mac(t)))
    other = min((t for t in tiles if not fits(t)), key=mean_cycles)
    present = max(gemm, key=lambda g: (macs(g), g["name"].endswith(f" {BLOCK}>")))
    rows = int(re.findall(r"<(\d+)", present["name"])[0])
    keep = best["name"].startswith(f"{rows}x{BLOCK},")
    gain = mean_cycles(best) / mean_cycles(other) - 1
    first = (
        f"The NEON table should {'keep' if keep else f'replace {rows}x{BLOCK} by'} the tile **{best['name']}**: of "
        "those that read A where it lies, in widths that divide a block, it takes the fewest cycles a "
        f"multiply-accumulate (mean of the cores), with {per_mac(best):.3f} instructions for each and "
        f"{range_of_shares(document, best)} of the bound, while {other['name']}, the best of the others, would gain "
        f"{max(gain, 0):.1%} and need another layout."
    )
    behind = mean_cycles(present) / mean_cycles(best)
    moves = f"{present['stack_moves']} moves to or from the stack" if present["stack_moves"] else "no stack moves"
    second = (
        f"Compiled, `{present['name']}` has {present['instructions']} instructions an iteration "
        f"({per_mac(present):.3f} a multiply-accumulate), {moves}, and {range_of_shares(document, present)} of the "
        "bound, "
        + (
            f"{behind:.2f} times the cycles by hand: the order of its instructions is to be improved, not the tile."
            if behind > 1.05 and keep
            else f"{behind:.2f} times the cycles by hand."
        )
    )
    return f"{first} {second}"


def range_of_shares(document: dict, entry: dict) -> str:
    shares = {core: share(document, entry, core) for core in entry["cycles"]}
    low, high = min(shares, key=lambda core: shares[core]), max(shares, key=lambda core: shares[core])
    return f"{shares[low]:.0%} ({low}) to {shares[high]:.0%} ({high})"


def of_kind(document: dict, kind: str) -> list[dict]:
    return [entry for entry in document["loops"] if entry["kind"] == kind]


def table(document: dict, entries: list[dict]) -> list[str]:
    cores = list(document["fmla_a_cycle"])
    by_hand = any(entry["registers"] for entry in entries)
    head = ["loop", "registers: C + A + B"] if by_hand else ["loop", "stack moves"]
    head += ["instructions", "FMLA", "128-bit loads", "instructions / MAC", *cores, "A55 by its rules"]
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for entry in entries:
        cells = [f"`{entry['name']}`" if "<" in entry["name"] else entry["name"]]
        cells += [entry["registers"] if by_hand else entry["stack_moves"], entry["instructions"]]
        cells += [entry["multiply_adds"], entry["loads_of_128_bits"], f"{per_mac(entry):.3f}"]
        cells += [f"{entry['cycles'][core]:.0f} ({share(document, entry, core):.0%})" for core in cores]
        cells.append(f"{a55_issue(entry)} ({entry['multiply_adds'] / a55_issue(entry):.0%})")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return lines


def markdown(document: dict) -> str:
    rates = [f"{core} {rate:.0f}" for core, rate in document["fmla_a_cycle"].items()]
    versions = ", ".join(f"{v}" for v in document["versions"].values() if v)
    return "\n".join(
        [
            "# The NEON kernels on models of cores",
            "",
            conclusion(document),
            "",
            "Nothing here was timed on hardware: llvm-mca counts the cycles of an iteration on LLVM's model of a core, "
            "with every load a hit in the first cache and every branch foreseen. A store to the stack and the load "
            "that waits for it count as independent: loops with stack moves are worse than they look. Cells are cycles "
            "of an iteration, and in brackets the arithmetic bound (FMLA of four floats / what the model issues in a "
            "cycle) / cycles. An iteration of a GEMM tile is 8 steps of k.",
            "",
            f"FMLA a cycle by the models: {', '.join(rates)}.",
            "",
            *(f"* {core.name}: {core.note}" for core in CORES),
            "* A55 by its rules: LLVM's model lets a Cortex-A55 start two multiply-adds of 128 bits in a cycle. By "
            "published measurements it starts one, and a load of 128 bits keeps it from issuing anything for two "
            "cycles. So this column is FMLA + 2 x loads of 128 bits, and its share is FMLA / that. Narrow tiles and "
            "small loads of A do better there.",
            "",
            "## GEMM tiles as compiled",
            "",
            "`gemm_tile<MR, 1, XS, HALF>`: MR pixels x 16 channels, or 8 with HALF; pixels XS floats apart (0: at run "
            "time).",
            "",
            *table(document, of_kind(document, "gemm")),
            "",
            "## Tiles written by hand",
            "",
            "The same iteration without a compiler (`bench/arm_tiles.py`): a register takes its next value right after "
            "the last use of the one before. Behind the size: what a load of A brings.",
            "",
            *table(document, of_kind(document, "tile")),
            "",
            "## Depthwise and matrix-vector kernels as compiled",
            "",
            "All their innermost loops with multiply-adds. Those of the depthwise kernels may hold the tiles of two "
            "widths one after the other, of which a pass takes one.",
            "",
            *table(document, of_kind(document, "other")),
            "",
            f"* {document['date'][:10]}, {versions}",
            *([f"* flags: `{' '.join(document['flags'])}`"] if document["flags"] else []),
            f"* `{document['command']}`",
            "",
        ]
    )
