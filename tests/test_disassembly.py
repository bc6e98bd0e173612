"""The loops of the kernels keep their accumulators in registers, in the machine code of the extension itself.

A compiler that runs out of registers, or that moves loads too far ahead, puts accumulators on the stack. All results
stay right, so nothing else notices, and the kernel loses up to a third of its speed. FASTMOBILENET_TEST_NATIVE names
another file to check: a module or an object file, for x86-64 or AArch64 if objdump for it is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import disassembly
from bench.disassembly import Function
from fastmobilenet import _native

OTHER_FILE = os.environ.get("FASTMOBILENET_TEST_NATIVE", "")
KERNEL = re.compile(r"\bfmn::(\w+)::\(anonymous namespace\)::(.*)")
# The scalar kernels are for any CPU: structs of floats, which the compiler keeps where it can, and no multiply-add.
EXEMPT = "scalar"
#: What _kernels() calls an op -> the C++ function, and how many multiply-adds its main loop has at least.
LISTED = {"gemm_f32": "gemm_tile<{mr}, {nb}, {xs}, {half}>(", "dw_f32": "dw<{k}, {stride}, "}
BLOCK = 16
PAIRS = "gemm_pairs<{mr}, {xs}>("  # tiles with a half block, where a vector is a block
OVERLAPPED = "gemm_overlapped<{mr}, {nb}, {xs}, ("  # large tiles of AVX-512, in halves; of each kind of function


@pytest.fixture(scope="module")
def kernels() -> dict[str, list[Function]]:
    """ISA -> all functions of its kernel file."""
    try:
        text = disassembly.listing(Path(OTHER_FILE or _native.__file__))
    except LookupError as error:
        pytest.skip(str(error))
    if re.search(r"<__(asan|ubsan|tsan)_", text):
        pytest.skip("built with a sanitizer, whose checks take the registers")
    found = defaultdict(list)
    for function in disassembly.parse(text, KERNEL):
        match = KERNEL.search(function.name)
        assert match is not None
        if match[1] not in (EXEMPT, f"u8_{EXEMPT}"):
            found[match[1]].append(function)
    assert found, "no names of kernels in the file: CMakeLists.txt keeps them when it strips the module"
    return dict(found)


def spelled(function: Function) -> str:
    """ISA and C++ name."""
    match = KERNEL.search(function.name)
    assert match is not None
    return f"{match[1]} {match[2]}"


def test_no_loop_moves_vectors_to_or_from_the_stack(kernels: dict[str, list[Function]]) -> None:
    wrong = [
        f"{spelled(function).partition('(')[0]}: {len(loop.stack_moves)} in a loop with {loop.multiply_adds} "
        f"multiply-adds, the first at {loop.stack_moves[0].address:x}: {loop.stack_moves[0].text}"
        for functions in kernels.values()
        for function in functions
        for loop in function.loops
        if loop.stack_moves
    ]
    assert not wrong, f"vector moves to or from the stack in {len(wrong)} loops:\n" + "\n".join(wrong)


def expected(isa: str) -> Iterator[tuple[str, int]]:
    """(start of the C++ name, least multiply-adds of its largest loop) of the kernels that this ISA must have."""
    dw = "dw_u8_pairs" if isa == "u8_avx2" else "dw_u8"
    if isa == "u8_avx2":
        yield from ((f"gemm_u8_signs<{mr}>", 4 * mr) for mr in range(1, 6))
    elif isa.startswith("u8_"):
        yield from (("gemm_u8<1, 1, 4>", 1), ("gemm_u8<2, 1, 4>", 2))
    if isa.startswith("u8_"):
        yield from ((f"{dw}<3, 1>", 3), (f"{dw}<5, 1>", 3))
        return
    if isa == "amx":  # one step of six products, with two sums or four
        yield from ((f"gemm_amx_tiles<{nb}, ", 12 * nb) for nb in (1, 2))
        return
    yield from (("gemv(", 2), ("gemv24", 4), ("dw_any(", 1))
    if OTHER_FILE or isa not in _native.supported_isas():
        yield from (("gemm_tile<", 1), ("dw<3, 1, ", 9), ("dw<3, 2, ", 9), ("dw<5, 1, ", 25), ("dw<5, 2, ", 25))
        return
    if _native.has_inner(isa):  # 5 of 8 pairs with one multiply-add each
        for mr in range(1, 11):
            yield from (
                (f"gemm_inner<{mr}, {nb}, {half}>(", 11 * mr * nb)
                for nb, half in ((1, "true"), (1, "false"), (2, "false"))
            )
    for kernel in _native._kernels(isa):
        if kernel["op"] == "gemm_f32":  # a vector holds no more than a block
            vectors = kernel["mr"] * kernel["nb"] - (kernel["half"] and kernel["mr"] // 2)
            name = LISTED["gemm_f32"]
            if isa == "avx512" and kernel["half"]:
                name = PAIRS
            elif kernel["halves"]:
                name, vectors = OVERLAPPED, vectors // 2
            yield name.format(**kernel | {"half": str(kernel["half"]).lower()}), vectors
        elif kernel["k"]:
            yield LISTED[kernel["op"]].format(**kernel), kernel["k"] ** 2


def test_finds_the_loops_of_every_kernel(kernels: dict[str, list[Function]]) -> None:
    """Or the test above would say nothing."""
    if not OTHER_FILE:
        built = set(_native.built_isas()) - {EXEMPT} | ({"amx"} if "amx" in kernels else set())
        assert {isa for isa in kernels if not isa.startswith("u8_")} == built
        quantised = {f"u8_{isa}" for isa in _native.supported_u8_isas()} - {f"u8_{EXEMPT}"}
        assert {isa for isa in kernels if isa.startswith("u8_")} >= quantised
    missing = []
    for isa, functions in kernels.items():
        by_address = {f.instructions[0].address: f for f in functions}
        for name, least in expected(isa):
            # A kernel may jump on to functions of its own: to a tile of its width, or to one with the same code.
            reached = [f for f in functions if spelled(f).startswith(f"{isa} {name}")]
            for function in reached:
                reached += [
                    by_address[a] for a in function.leads_to if a in by_address and by_address[a] not in reached
                ]
            if max((loop.multiply_adds for f in reached for loop in f.loops), default=0) < least:
                missing.append(f"{isa} {name}: no loop with {least} multiply-adds")
    assert not missing, "\n".join(missing)


def test_sums_of_amx_stay_in_tiles(kernels: dict[str, list[Function]]) -> None:
    """The loop over channels stores no tile and loads none of sums."""
    for function in kernels.get("amx", []):
        match = re.search(r"gemm_amx_tiles<(\d)", spelled(function))
        if match is None:
            continue
        least = 12 * int(match[1])  # six products, with two sums or four
        loops = [f for f in function.loops if sum(i.mnemonic == "tdpbf16ps" for i in f.instructions) >= least]
        assert loops, function.name
        for i in min(loops, key=lambda loop: len(loop.instructions)).instructions:
            assert not i.mnemonic.startswith(("tilestore", "tilezero")), f"{spelled(function)}: {i.text}"
            if i.mnemonic.startswith("tileload"):
                assert i.operands[0] not in {f"%tmm{n}" for n in range(4)}, f"{spelled(function)}: {i.text}"


# --- the checker itself ----------------------------------------------------------------------------------


def listing(architecture: str, *lines: str) -> str:
    """What objdump prints for a function of these instructions, an address each; jumps name an index."""
    code = "\n".join(f"  {i:x}:\t{line}" for i, line in enumerate(lines))
    return (
        f"x.o:     file format elf64-{architecture}\n\nSYMBOL TABLE:\n"
        f"{0:016x} l     F .text\t{len(lines):016x} f(float*)\n\n"
        f"Disassembly of section .text:\n\n{0:016x} <f(float*)>:\n{code}\n"
    )


FMA = "vfmadd231ps %ymm1,%ymm2,%ymm3"
FMLA = "fmla\tv0.4s, v1.4s, v2.s[1]"


@pytest.mark.parametrize(
    "architecture, lines, moves",
    [
        pytest.param("x86-64", [FMA, "vmovaps %ymm3,0x20(%rsp)", "dec %rcx", "jne 0 <f(float*)>"], [1], id="store"),
        pytest.param("x86-64", [FMA, "vfmadd231ps (%rsp),%ymm1,%ymm2", "jne 0"], [1], id="operand"),
        pytest.param("x86-64", [FMA, "vaddps (%rsp){1to16},%zmm1,%zmm2", "jne 0"], [1], id="broadcast operand"),
        pytest.param("x86-64", ["mov %rsp,%rbp", FMA, "vmovups -0x40(%rbp),%zmm4", "jne 1"], [2], id="frame pointer"),
        pytest.param("x86-64", [FMA, "vmovups -0x40(%rbp),%zmm4", "jne 0"], [], id="rbp is a pointer like others"),
        pytest.param("x86-64", ["lea 0x8(%rsp),%rax", FMA, "movups %xmm0,(%rax,%rdx,4)", "jne 1"], [2], id="array"),
        pytest.param("x86-64", ["lea (%rsp),%rax", "xor %eax,%eax", FMA, "movups %xmm0,(%rax)", "jne 2"], [], id="not"),
        pytest.param("x86-64", [FMA, "mov 0x8(%rsp),%rax", "vmovups (%rax),%ymm1", "jne 0"], [], id="spilled pointer"),
        pytest.param("x86-64", ["movups %xmm0,(%rsp)", FMA, "jne 1", "movups (%rsp),%xmm0", "ret"], [], id="outside"),
        pytest.param("x86-64", ["movups (%rsp),%xmm0", FMA, "jne 1", "dec %rax", "jne 0", "ret"], [], id="outer loop"),
        pytest.param(
            "x86-64", ["movups (%rsp),%xmm0", FMA, FMA, "jne 2", "dec %rax", "jne 0"], [0], id="outer loop with its own"
        ),
        pytest.param("x86-64", [FMA, "jmp 4", "ret", "ret", "movups (%rsp),%xmm0", "jmp 0"], [4], id="moved away"),
        pytest.param("x86-64", ["ret", "movups (%rsp),%xmm0", FMA, "je 0", "ret"], [], id="a jump back, no loop"),
        pytest.param("x86-64", ["jmp 2", "movups (%rsp),%xmm0", FMA, "jne 1", "ret"], [1], id="entered in the middle"),
        pytest.param("x86-64", ["movups (%rsp),%xmm0", "mulps %xmm0,%xmm1", "jne 0"], [], id="no multiply-add"),
        pytest.param("littleaarch64", [FMLA, "stp\tq0, q1, [sp, #64]", "b.ne\t0 <f(float*)>"], [1], id="stp"),
        pytest.param("littleaarch64", [FMLA, "ldr\tq7, [sp]", "cbnz\tx1, 0 <f(float*)>"], [1], id="ldr"),
        pytest.param("littleaarch64", ["mov\tx29, sp", FMLA, "ldur\tq7, [x29, #-16]", "b.gt\t1"], [2], id="x29"),
        pytest.param("littleaarch64", ["add\tx3, sp, #0x10", FMLA, "ld1\t{v0.4s}, [x3], #4", "b.gt\t1"], [2], id="ld"),
        pytest.param("littleaarch64", [FMLA, "ldr\tq7, [x1], #16", "str\tx0, [sp]", "tbnz\tw0, #3, 0"], [], id="clean"),
    ],
)  # fmt: skip
def test_finds_stack_moves(architecture: str, lines: list[str], moves: list[int]) -> None:
    (function,) = disassembly.parse(listing(architecture, *lines))
    assert [move.address for loop in function.loops for move in loop.stack_moves] == moves


SOURCE = """
typedef float vec __attribute__((vector_size(BYTES)));
void product(const float* a, const vec* b, vec* c, long k) {
  vec acc[COUNT] = {};
  for (; k > 0; --k, a += COUNT, ++b) {
    #pragma GCC unroll 64
    for (int i = 0; i < COUNT; ++i) acc[i] += *b * a[i];
  }
  #pragma GCC unroll 64
  for (int i = 0; i < COUNT; ++i) c[i] = acc[i];
}
"""


@pytest.mark.parametrize(
    "compiler, options",
    [("x86_64-linux-gnu-g++", ["-mfma", "-DBYTES=32"]), ("aarch64-linux-gnu-g++", ["-DBYTES=16"])],
    ids=["x86_64", "aarch64"],
)
def test_finds_what_a_compiler_spills(compiler: str, options: list[str], tmp_path: Path) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    (tmp_path / "x.cpp").write_text(SOURCE)
    stack_moves = {}
    for count in (8, 40):  # of 16 or 32 registers
        command = [compiler, "-O2", "-ffp-contract=fast", *options, f"-DCOUNT={count}", "-c", "x.cpp", "-o", "x.o"]
        subprocess.run(command, check=True, cwd=tmp_path)
        (function,) = disassembly.parse(disassembly.listing(tmp_path / "x.o"))
        (loop,) = function.loops
        assert loop.multiply_adds == count
        stack_moves[count] = len(loop.stack_moves)
    assert stack_moves[8] == 0
    assert stack_moves[40] >= 8


def test_says_why_a_file_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.o").write_bytes(b"\x7fELF" + bytes(14) + b"\xf3\x00")  # RISC-V
    with pytest.raises(LookupError, match="not an ELF file for x86_64 or aarch64"):
        disassembly.listing(tmp_path / "x.o")
