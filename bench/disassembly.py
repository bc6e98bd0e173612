"""The machine code of a kernel: its functions, their loops, and what a loop moves to and from the stack.

objdump gives the instructions, and everything is decided on its text, so that a recorded listing will do as well.
x86-64 and AArch64, files in the ELF format. A compiler that runs out of registers puts accumulators on the stack; the
kernels stay right and lose up to a third of their speed, and nothing but the machine code shows why.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Architecture:
    """What the text of an instruction means."""

    name: str
    machine: int  # e_machine of an ELF header
    objdump_name: str
    register: re.Pattern[str]  # general registers; a name's group is the same for all widths
    vector: re.Pattern[str]
    stack_pointer: str
    jump: re.Pattern[str]  # mnemonics that may continue elsewhere
    no_return: re.Pattern[str]  # mnemonics after which the next instruction does not follow
    multiply_add: re.Pattern[str]
    copy: re.Pattern[str]  # the first operand becomes a sum of the others
    update: re.Pattern[str]  # the same, and of itself
    reads: re.Pattern[str]  # the first operand is not written
    call: re.Pattern[str]
    clobbered: frozenset[str]  # by a call


X86 = Architecture(
    name="x86_64",
    machine=62,
    objdump_name="i386:x86-64",
    register=re.compile(r"%[re]?([a-d]x|[sd]i|[sb]p|r\d+)d?\b"),
    vector=re.compile(r"%[xyz]mm\d"),
    stack_pointer="sp",
    jump=re.compile(r"j\w+"),
    no_return=re.compile(r"(jmp|ret)q?|hlt|ud2"),
    multiply_add=re.compile(r"vfn?m(add|sub)\w+|vpdp\w+|v?pmadd\w+|vdpbf16ps|tdpbf16ps"),
    copy=re.compile(r"(mov|lea)q?"),
    update=re.compile(r"(add|sub|and|or|inc|dec)q?"),
    reads=re.compile(r"(cmp|test|bt|push|prefetch|nop|j)\w*"),
    call=re.compile(r"callq?"),
    clobbered=frozenset("ax cx dx si di r8 r9 r10 r11".split()),
)
AARCH64 = Architecture(
    name="aarch64",
    machine=183,
    objdump_name="aarch64",
    register=re.compile(r"\b(?:[xw](?=\d)|(?=sp))(\d+|sp)\b"),
    vector=re.compile(r"\b[bhsdqvz]\d"),
    stack_pointer="sp",
    jump=re.compile(r"b(r|c?\.\w+)?|[ct]bn?z"),
    no_return=re.compile(r"b|br|ret|brk|udf"),
    multiply_add=re.compile(r"fn?m(add|sub)|fml[as]l?2?|[us]{1,2}dot|[us]{1,2}mmla|[us]?ml[as]l?2?|bfdot|bfm\w+"),
    copy=re.compile(r"mov|add|sub|and|orr"),
    update=re.compile(r"(?!)"),
    reads=re.compile(r"(st|cmp|cmn|ccm|tst|prf|cb|tb)\w*|b|br|bc?\.\w+|ret"),
    call=re.compile(r"blr?"),
    clobbered=frozenset(map(str, range(19))),
)
ARCHITECTURES = (X86, AARCH64)


@dataclass(frozen=True)
class Instruction:
    address: int
    mnemonic: str
    operands: tuple[str, ...]  # what is written first, whatever the assembler's order
    text: str


@dataclass(frozen=True)
class Loop:
    """A loop with multiply-adds, without the loops in it that have some too. In the order of addresses."""

    instructions: tuple[Instruction, ...]
    innermost: bool
    multiply_adds: int
    stack_moves: tuple[Instruction, ...]  # that move a vector register, or compute with one


@dataclass(frozen=True)
class Function:
    name: str  # as C++ spells it
    architecture: Architecture
    instructions: tuple[Instruction, ...]

    @cached_property
    def leads_to(self) -> set[int]:
        """Addresses outside that it jumps to or calls."""
        own = {instruction.address for instruction in self.instructions}
        return {target for i in self.instructions if (target := self._target(i)) is not None} - own

    @cached_property
    def loops(self) -> list[Loop]:
        """The innermost loops that hold multiply-adds, and the rest of a loop around them where it has some too."""
        found = sorted(self._find_loops(set(range(len(self.instructions)))), key=lambda loop: min(loop[0]))
        return [self._loop(nodes, innermost) for nodes, innermost in found]

    # --- loops -------------------------------------------------------------------------------------------

    @cached_property
    def _next(self) -> list[list[int]]:
        """Instruction -> those that may follow. A jump through a register or out of the function leads nowhere."""
        index = {instruction.address: i for i, instruction in enumerate(self.instructions)}
        following = []
        for i, instruction in enumerate(self.instructions):
            after = []
            if not self.architecture.no_return.fullmatch(instruction.mnemonic) and i + 1 < len(self.instructions):
                after.append(i + 1)
            if (target := self._target(instruction)) in index:
                after.append(index[target])
            following.append(after)
        return following

    @cached_property
    def _previous(self) -> list[list[int]]:
        before: list[list[int]] = [[] for _ in self.instructions]
        for i, after in enumerate(self._next):
            for j in after:
                before[j].append(i)
        return before

    def _target(self, instruction: Instruction) -> int | None:
        mnemonic, arch = instruction.mnemonic, self.architecture
        if not (arch.jump.fullmatch(mnemonic) or arch.call.fullmatch(mnemonic)) or not instruction.operands:
            return None
        where = instruction.operands[-1]  # cbz and tbz name a register and a bit before it
        return int(where, 16) if re.fullmatch(r"[0-9a-f]+", where) else None

    def _find_loops(self, nodes: set[int]) -> Iterator[tuple[set[int], bool]]:
        """The instructions of each loop among `nodes`, and whether it holds no other.

        Every cycle has a jump back, so a loop is what can be reached from such a jump's target and can reach it. Loops
        inside are found after the entries of the outer one are taken away. This holds for any order of blocks, for
        loops that are entered in the middle, and sees through jumps back that close no loop.
        """
        seen: set[int] = set()
        for i in sorted(nodes):
            for header in self._next[i]:
                if header > i or header in seen or header not in nodes:
                    continue
                cycle = _reach(header, self._next, nodes) & _reach(header, self._previous, nodes)
                if i not in cycle:
                    continue
                seen |= cycle
                if not self._multiply_adds(cycle):
                    continue
                entries = {n for n in cycle if any(p not in cycle for p in self._previous[n])} or {min(cycle)}
                inside = list(self._find_loops(cycle - entries))
                yield from inside
                own = cycle.difference(*(loop for loop, _ in inside))
                if self._multiply_adds(own):
                    yield own, not inside

    def _multiply_adds(self, nodes: Iterable[int]) -> int:
        fullmatch = self.architecture.multiply_add.fullmatch
        return sum(fullmatch(self.instructions[n].mnemonic) is not None for n in nodes)

    def _loop(self, nodes: set[int], innermost: bool) -> Loop:
        order = sorted(nodes)
        moves = [self.instructions[n] for n in order if self._moves_stack(n)]
        instructions = tuple(self.instructions[n] for n in order)
        return Loop(instructions, innermost, self._multiply_adds(nodes), tuple(moves))

    # --- the stack ---------------------------------------------------------------------------------------

    @cached_property
    def _stack_registers(self) -> list[frozenset[str]]:
        """Before each instruction: the registers that may hold an address on the stack. Not only the stack pointer:
        a frame pointer is an ordinary register in functions without a frame, and arrays are walked with others."""
        states = [frozenset({self.architecture.stack_pointer})] * len(self.instructions)
        todo = list(reversed(range(len(self.instructions))))
        waiting = set(todo)
        while todo:
            i = todo.pop()
            waiting.remove(i)
            after = self._after(self.instructions[i], states[i])
            for j in self._next[i]:
                if not after <= states[j]:
                    states[j] |= after
                    if j not in waiting:
                        todo.append(j)
                        waiting.add(j)
        return states

    def _after(self, instruction: Instruction, state: frozenset[str]) -> frozenset[str]:
        arch, operands = self.architecture, instruction.operands
        if arch.call.fullmatch(instruction.mnemonic):
            return state - arch.clobbered
        if not operands or arch.reads.fullmatch(instruction.mnemonic):
            return state
        copies = arch.copy.fullmatch(instruction.mnemonic) is not None
        updates = arch.update.fullmatch(instruction.mnemonic) is not None
        sources = operands[0 if updates else 1 :] if copies or updates else ()
        on_stack = any(not state.isdisjoint(self._registers(s)) for s in sources if not self._loads(instruction, s))
        written = {
            register
            for operand in operands[: 2 if instruction.mnemonic.startswith("ldp") else 1]
            if not _is_memory(operand)
            for register in self._registers(operand)
        } - {arch.stack_pointer}
        return state | written if on_stack else state - written

    def _registers(self, operand: str) -> list[str]:
        return self.architecture.register.findall(operand)

    @staticmethod
    def _loads(instruction: Instruction, operand: str) -> bool:
        return _is_memory(operand) and not instruction.mnemonic.startswith("lea")

    def _moves_stack(self, index: int) -> bool:
        operands, state = self.instructions[index].operands, self._stack_registers[index]
        memory = [operand for operand in operands if _is_memory(operand)]
        return any(not state.isdisjoint(self._registers(m)) for m in memory) and any(
            self.architecture.vector.search(operand) for operand in operands if not _is_memory(operand)
        )


def _is_memory(operand: str) -> bool:
    return "(" in operand or "[" in operand


def _reach(start: int, edges: list[list[int]], within: set[int]) -> set[int]:
    found, todo = {start}, [start]
    while todo:
        for n in edges[todo.pop()]:
            if n in within and n not in found:
                found.add(n)
                todo.append(n)
    return found


# --- objdump ---------------------------------------------------------------------------------------------

LINE = re.compile(r" *([0-9a-f]+):\t(?:(?:bnd|notrack|repz?|rep|lock|data16|cs|\{\w+\}) +)*([\w.]+)[ \t]*(.*)")
SYMBOL = re.compile(r"([0-9a-f]+) .{6}F (\S+)\t([0-9a-f]+) +(?:\.\w+ )?(.*)")


def listing(file: Path) -> str:
    """objdump's symbols and instructions of an ELF file. Raises LookupError where no objdump here can read it."""
    head = file.read_bytes()[:20]
    architecture = next((a for a in ARCHITECTURES if a.machine == int.from_bytes(head[18:20], "little")), None)
    if head[:4] != b"\x7fELF" or architecture is None:
        raise LookupError(f"{file} is not an ELF file for {' or '.join(a.name for a in ARCHITECTURES)}")
    for program in (f"{architecture.name}-linux-gnu-objdump", "objdump"):
        if shutil.which(program) is None:
            continue
        known = subprocess.run([program, "-f", str(file)], capture_output=True, text=True)
        if f"architecture: {architecture.objdump_name}," in known.stdout:
            command = [program, "-d", "-t", "-C", "--no-show-raw-insn", str(file)]
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    raise LookupError(f"no GNU objdump here reads {architecture.name} files; install binutils for it")


def parse(text: str, wanted: re.Pattern[str] = re.compile("")) -> list[Function]:
    """The functions of a listing whose C++ name `wanted` finds. Two names for the same code give two functions."""
    architecture = AARCH64 if re.search(r"file format elf64-\w*aarch64", text) else X86
    symbols: list[tuple[str, int, int, str]] = []
    sections: dict[str, dict[int, Instruction]] = {}
    code, skip = sections.setdefault("", {}), False
    for line in text.splitlines():
        if line.startswith(" "):
            if not skip and (match := LINE.match(line)):
                instruction = _instruction(architecture, int(match[1], 16), match[2], match[3])
                code[instruction.address] = instruction
        elif line.endswith(">:"):
            skip = wanted.search(line) is None
        elif line.startswith("Disassembly of section "):
            code = sections.setdefault(line.removeprefix("Disassembly of section ").rstrip(":"), {})
        elif (match := SYMBOL.match(line)) and wanted.search(match[4]):
            symbols.append((match[2], int(match[1], 16), int(match[3], 16), match[4]))
    functions = []
    for section, start, size, name in symbols:
        code = sections.get(section, {})
        inside = tuple(code[address] for address in range(start, start + size) if address in code)
        functions.append(Function(name, architecture, inside))
    return functions


def _instruction(architecture: Architecture, address: int, mnemonic: str, rest: str) -> Instruction:
    rest = re.split(r"\s*(?:# [0-9a-f]+ <|//|<)", rest)[0].strip()  # without objdump's comments
    operands = [part.strip() for part in re.split(r",(?![^(\[{]*[)\]}])", rest)] if rest else []
    if architecture is X86:
        operands.reverse()
    return Instruction(address, mnemonic, tuple(operands), f"{mnemonic} {rest}".strip())
