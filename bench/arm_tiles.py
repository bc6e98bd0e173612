"""The inner loop of a NEON GEMM tile as one would write it by hand: what the tile costs when no compiler is in the way.

A tile of MR pixels x NR channels holds MR * NR / 4 accumulators. A step of k multiplies a row of B, NR / 4 vectors, by
one number of each pixel. Multiply-adds take that number from any lane of a register, so a load of A may bring

  4, 2 or 1 consecutive k of one pixel    `ldr q`, `ldr d`, `ldr s`: A is read where it lies, a pixel each 64 bytes;
  one k of 4 pixels                       `ldr q`: A was transposed before, which costs a pass over it.

Registers hold values in turn, and the next value is loaded right after the last use of the one before: no register is
idle, and the distance from a load to its use is as long as the registers allow. The loads for the next iteration would
be left out of the last one.
"""

from __future__ import annotations

from dataclasses import dataclass

REGISTERS = 32
LANES = 4
STEPS = 8  # of k in an iteration, as in csrc/kernels/gemm.h
PIXEL_BYTES = 64


@dataclass(frozen=True)
class Tile:
    mr: int
    nr: int
    a_load: int  # consecutive k that a load of A brings; 0: one k of four pixels, transposed before

    @property
    def name(self) -> str:
        return f"{self.mr}x{self.nr}"

    @property
    def a_name(self) -> str:
        return {4: "4 k of a pixel", 2: "2 k of a pixel", 1: "1 k of a pixel", 0: "4 pixels, transposed"}[self.a_load]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of an iteration."""
        return self.mr * self.nr * STEPS


@dataclass(frozen=True)
class Use:
    """One multiply-add: acc += b * a[lane]."""

    acc: int
    a: int  # which value of the stream of A, in order of first use
    b: int  # and of B
    lane: int


@dataclass(frozen=True)
class Registers:
    acc: int
    a: int
    b: int

    @property
    def total(self) -> int:
        return self.acc + self.a + self.b


def uses(tile: Tile) -> list[Use]:
    """The multiply-adds of an iteration in their order: k outside; inside, the vector of B changes as seldom as
    possible where the loads of A cover several k, and the pixel as seldom as possible where they cover one."""
    vectors = tile.nr // LANES
    result = []
    for k in range(STEPS):
        for outer in range(tile.mr if tile.a_load == 1 else vectors):
            for inner in range(vectors if tile.a_load == 1 else tile.mr):
                i, j = (outer, inner) if tile.a_load == 1 else (inner, outer)
                if tile.a_load == 0:
                    a, lane = k * (tile.mr // LANES) + i // LANES, i % LANES
                else:
                    a, lane = k // tile.a_load * tile.mr + i, k % tile.a_load
                result.append(Use(i * vectors + j, a, k * vectors + j, lane))
    return result


def _spans(values: list[int]) -> dict[int, tuple[int, int]]:
    """Value -> position of its first and its last use."""
    found: dict[int, tuple[int, int]] = {}
    for position, value in enumerate(values):
        found[value] = (found.get(value, (position, 0))[0], position)
    return found


def _live(values: list[int]) -> int:
    """How many values are in use at once."""
    spans = _spans(values).values()
    return max(sum(first <= position <= last for first, last in spans) for position in range(len(values)))


def registers(tile: Tile) -> Registers:
    """Turns must come out even after an iteration, so the numbers of registers divide those of the values. With only
    one for A or for B each load would be waited for. Raises ValueError for a tile that does not fit."""
    sequence = uses(tile)
    acc = tile.mr * tile.nr // LANES
    a_values, b_values = [u.a for u in sequence], [u.b for u in sequence]
    a_least, b_least = max(_live(a_values), 2), max(_live(b_values), 2)
    fitting = [
        Registers(acc, a, b)
        for a in range(a_least, REGISTERS - acc + 1)
        for b in range(b_least, REGISTERS - acc - a + 1)
        if (max(a_values) + 1) % a == 0 and (max(b_values) + 1) % b == 0
    ]
    if not fitting:
        raise ValueError(f"{tile.name} with {tile.a_name} needs more than {REGISTERS} registers")
    return max(fitting, key=lambda f: (min(f.a - a_least, f.b - b_least), f.total))


def loop(tile: Tile) -> list[str]:
    """The iteration as AArch64 assembly, loads of the next one included. x0: A, x1: B, x2: remaining k, x3: what is to
    be prefetched."""
    count = registers(tile)
    sequence = uses(tile)
    a_spans, b_spans = _spans([u.a for u in sequence]), _spans([u.b for u in sequence])
    lines = []
    for position, use in enumerate(sequence):
        a_register = count.acc + use.a % count.a
        b_register = count.acc + count.a + use.b % count.b
        lines.append(f"fmla v{use.acc}.4s, v{b_register}.4s, v{a_register}.s[{use.lane}]")
        if b_spans[use.b][1] == position:
            lines.append(load_b(use.b + count.b, b_register))
        if a_spans[use.a][1] == position:
            lines.append(load_a(tile, use.a + count.a, a_register))
        if position % (len(sequence) // STEPS) == 0:
            lines.append(f"prfm pldl2keep, [x3, #{position * STEPS // len(sequence) * 64}]")
    a_bytes = STEPS * 4 * (tile.mr if tile.a_load == 0 else 1)
    lines += [f"add x0, x0, #{a_bytes}", f"add x1, x1, #{STEPS * tile.nr * 4}", f"add x3, x3, #{STEPS * 64}"]
    return [*lines, f"subs x2, x2, #{STEPS}", "b.gt 0b"]


def load_a(tile: Tile, value: int, register: int) -> str:
    if tile.a_load == 0:
        return f"ldr q{register}, [x0, #{value * 16}]"
    group, pixel = divmod(value, tile.mr)
    return f"ldr {'sdq'[tile.a_load // 2]}{register}, [x0, #{pixel * PIXEL_BYTES + group * tile.a_load * 4}]"


def load_b(value: int, register: int) -> str:
    return f"ldr q{register}, [x1, #{value * 16}]"


def before(tile: Tile) -> list[str]:
    """The loads that the first iteration finds done."""
    count = registers(tile)
    first_a, first_b = count.acc, count.acc + count.a
    return [load_a(tile, n, first_a + n) for n in range(count.a)] + [load_b(n, first_b + n) for n in range(count.b)]


#: What the blocked layout allows comes first: 16 channels are a block, 8 half of one.
TILES = [
    *(Tile(mr, 16, a_load) for mr in (6, 5, 4) for a_load in (4, 2, 1)),
    *(Tile(mr, 8, a_load) for mr in (8, 10) for a_load in (4, 2, 1)),
    Tile(12, 8, 1),
    Tile(8, 12, 1),
    *(Tile(mr, nr, 0) for mr, nr in ((8, 12), (8, 8), (12, 8), (4, 16))),
]
