"""How good the NEON kernels are, on a machine without NEON: `python -m bench.arm_mca` writes bench/results/arm-mca.md.

The kernels are cross-compiled with the flags of the build, their inner loops are cut out of the machine code, and
llvm-mca counts the cycles of an iteration on models of some cores. The same is done with loops that were written by
hand (arm_tiles.py), which show what a tile costs when the compiler adds nothing. Nothing is timed on hardware.

Needs aarch64-linux-gnu-g++ and its binutils, and LLVM 17 or newer: older ones model few of these cores.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

if __package__ in (None, ""):  # started as `python bench/arm_mca.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from bench import arm_tiles, disassembly
from bench.arm_report import CORES, markdown
from bench.machine import REPOSITORY, command_line

COMPILER = "aarch64-linux-gnu-g++"
KERNEL = re.compile(r"\bfmn::neon::\(anonymous namespace\)::((gemm_tile<|dw_rows<|dw<|dw_any|gemv)[^(]*)")
ITERATIONS = (50, 150)  # the difference leaves out how a loop starts
NEWEST, OLDEST = 30, 17


@dataclass(frozen=True)
class Loop:
    """One iteration of an inner loop."""

    name: str
    kind: str  # "gemm", "other": compiled; "tile": by hand
    instructions: list[str]
    stack_moves: int = 0
    registers: str = ""  # of a tile: C + A + B

    @property
    def multiply_adds(self) -> int:
        return sum(line.startswith("fmla") for line in self.instructions)


def build_flags(cmake: str) -> list[str]:
    """The flags with which CMakeLists.txt compiles the NEON kernels. Raises ValueError if they are not found in it."""
    release = re.search(r'CMAKE_CXX_FLAGS_RELEASE "([^"]*)"', cmake)
    options = re.search(r"set\(FMN_OPTIONS (-[^)]*)\)", cmake)
    neon = re.search(r"fmn_isa\(neon (-[^)]*)\)", cmake)
    if not (release and options and neon):
        raise ValueError("CMakeLists.txt does not give the flags of kernels/neon.cpp in the way that is expected here")
    fixed = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
    flags = [*fixed, *release[1].split(), *options[1].split()]
    for flag in neon[1].split():
        if variable := re.fullmatch(r"\$\{(\w+)\}", flag):
            value = re.search(rf"set\({variable[1]} (-[^)]*)\)", cmake)
            if value is None:
                raise ValueError(f"CMakeLists.txt does not set {variable[1]} in the way that is expected here")
            flags += value[1].split()
        else:
            flags.append(flag)
    return flags


def compile_kernels(folder: Path) -> tuple[Path, list[str]]:
    """The object file of the kernels, and the flags."""
    flags = build_flags((REPOSITORY / "CMakeLists.txt").read_text())
    source, file = REPOSITORY / "csrc" / "kernels" / "neon.cpp", folder / "neon.o"
    command = [COMPILER, *flags, "-DFMN_ISA=neon", f"-I{REPOSITORY / 'csrc'}", "-c", str(source), "-o", str(file)]
    subprocess.run(command, check=True)
    return file, flags


def compiled_loops(file: Path) -> list[Loop]:
    """Of a GEMM tile the main loop, of other kernels all innermost loops with multiply-adds."""
    found = []
    for function in disassembly.parse(disassembly.listing(file), KERNEL):
        match = KERNEL.search(function.name)
        assert match is not None
        loops = [loop for loop in function.loops if loop.innermost]
        if match[1].startswith("gemm"):
            loops = sorted(loops, key=lambda loop: -loop.multiply_adds)[:1]
        kind = "gemm" if match[1].startswith("gemm") else "other"
        found += [Loop(match[1], kind, assembly(loop), len(loop.stack_moves)) for loop in loops]
    return found


def assembly(loop: disassembly.Loop) -> list[str]:
    """For an assembler: every jump goes to the start of the loop, since addresses say nothing to llvm-mca."""
    jump = disassembly.AARCH64.jump.fullmatch
    return [re.sub(r"[0-9a-f]+$", "0b", i.text) if jump(i.mnemonic) else i.text for i in loop.instructions]


def tile_loops() -> list[Loop]:
    loops = []
    for tile in arm_tiles.TILES:
        registers = arm_tiles.registers(tile)
        spelled = f"{registers.acc} + {registers.a} + {registers.b}"
        loops.append(Loop(f"{tile.name}, {tile.a_name}", "tile", arm_tiles.loop(tile), registers=spelled))
    return loops


def find_llvm_mca() -> str:
    """The newest of Debian's names. Raises LookupError without one that is new enough."""
    for version in range(NEWEST, OLDEST - 1, -1):
        if shutil.which(f"llvm-mca-{version}"):
            return f"llvm-mca-{version}"
    raise LookupError(f"no llvm-mca-{OLDEST} or newer; on Debian 12: apt install llvm-19")


def cycles(program: str, core: str, loops: list[list[str]]) -> list[float]:
    """Cycles of an iteration of each loop on the model of a core, of which the first iterations are left out."""
    source = "".join(
        f"# LLVM-MCA-BEGIN {i}\n0:\n" + "\n".join(lines) + "\n# LLVM-MCA-END\n" for i, lines in enumerate(loops)
    )
    totals = []
    for iterations in ITERATIONS:
        command = [program, "-mtriple=aarch64-linux-gnu", f"-mcpu={core}", f"-iterations={iterations}", "-json"]
        result = subprocess.run(command, input=source, check=True, capture_output=True, text=True)
        regions = {int(r["Name"]): r["SummaryView"]["TotalCycles"] for r in json.loads(result.stdout)["CodeRegions"]}
        totals.append([regions[i] for i in range(len(loops))])
    return [(b - a) / (ITERATIONS[1] - ITERATIONS[0]) for a, b in zip(*totals, strict=True)]


def measure(program: str, loops: list[Loop]) -> tuple[dict[str, float], list[dict]]:
    """Multiply-adds a cycle of each core's model, and an entry for each loop."""
    independent = [f"fmla v{i}.4s, v30.4s, v31.s[0]" for i in range(28)]
    peaks: dict[str, float] = {}
    entries = [
        {
            **asdict(loop),
            "instructions": len(loop.instructions),
            "multiply_adds": loop.multiply_adds,
            "loads_of_128_bits": sum(
                len(re.findall(r"\bq\d", line)) for line in loop.instructions if line.startswith("ld")
            ),
            "cycles": {},
        }
        for loop in loops
    ]
    for core in CORES:
        peak, *rest = cycles(program, core.name, [independent, *(loop.instructions for loop in loops)])
        peaks[core.name] = len(independent) / peak
        for entry, count in zip(entries, rest, strict=True):
            entry["cycles"][core.name] = count
    return peaks, entries


def version(program: str) -> str:
    text = subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout
    return next(line for line in text.splitlines() if re.search(r"\d+\.\d+", line)).strip()


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m bench.arm_mca", description=__doc__.partition("\n")[0])
    parser.add_argument("--object", type=Path, help="kernels that are compiled already: neon.o or an aarch64 _native")
    parser.add_argument("--llvm-mca", help="program to ask (default: the newest llvm-mca-NN)")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "bench" / "results" / "arm-mca.json")
    options = parser.parse_args(arguments)
    try:
        program = options.llvm_mca or find_llvm_mca()
        with tempfile.TemporaryDirectory() as folder:
            file, flags = (options.object, []) if options.object else compile_kernels(Path(folder))
            loops = compiled_loops(file) + tile_loops()
        peaks, entries = measure(program, loops)
        document = {
            "kind": "arm_mca",
            "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
            "command": command_line("bench.arm_mca", arguments),
            "flags": flags,
            "versions": {"compiler": version(COMPILER) if flags else "", "llvm-mca": version(program)},
            "fmla_a_cycle": peaks,
            "loops": entries,
        }
    except (OSError, ValueError, LookupError, subprocess.CalledProcessError) as error:
        print(f"error: {error}{getattr(error, 'stderr', None) or ''}", file=sys.stderr)
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(markdown(document))
    print(f"written: {options.out} and {options.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
