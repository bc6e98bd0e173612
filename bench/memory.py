"""Resident memory over many runs and many picture sizes: what a server sees that runs for weeks.

    python -m bench.memory [--runs N] [--out FILE]

After 100 runs of the network's own size come RUNS more of them, with pictures of 100 other sizes among them, and the
growth from the one to the other is printed; then what pictures of 1600 pixels in 8 sizes hold while they are in use,
and after; and how much slower two networks of 224 pixels are in turns than each by itself. The exit status is 1 where
memory grew by 2 MB or more.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence

import numpy as np

from fastmobilenet import Model, models

LIMIT = 2.0  # MB


def resident() -> float:
    """MB of memory of this process, of which the system holds pages."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(model: Model, runs: int) -> dict[str, float]:
    """Runs a network ``runs`` times after the first 100, a tenth of the runs with other sizes; MB."""
    rng = np.random.default_rng(0)
    side = model.input_size[0]
    picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    sizes = [(h, w) for h in range(33, 33 + 10) for w in range(41, 41 + 10)]  # no larger than the network's own
    for _ in range(100):
        model.run(picture)
    gc.collect()
    before = resident()
    # Nine runs in ten are of the own size; a size that comes back later is planned anew, as in a server.
    others = iter(range(10**9))
    start = time.perf_counter()
    for i in range(runs):
        if i % 1000 < 100:
            h, w = sizes[next(others) % len(sizes)]
            model.run(picture[:h, :w], size=(h, w))
        else:
            model.run(picture)
    seconds = time.perf_counter() - start
    gc.collect()
    return {"before_mb": before, "after_mb": resident(), "seconds": seconds}


def large(model: Model) -> dict[str, float]:
    """MB before, while 8 large sizes are used in turn, and after 200 runs of the own size."""
    side = model.input_size[0]
    small = np.zeros((side, side, 3), np.uint8)
    model.run(small)
    before = resident()
    for i in range(8):
        h = 1600 - 32 * i
        model.run(np.zeros((h, 1600, 3), np.uint8), size=(h, 1600))
    used = resident()
    for _ in range(200):
        model.run(small)
    return {"before_mb": before, "eight_large_sizes_mb": used, "after_mb": resident()}


def alternating(threads: int, rounds: int = 40, runs: int = 10) -> dict[str, float]:
    """Two networks, each alone and in turns: how much longer the turns take than both alone, by minimum and median."""
    graphs = [models.build(name, input_size=(224, 224)) for name in ("mobilenet_v1", "mobilenet_v2")]
    both = [Model.from_graph(graph, threads=threads) for graph in graphs]
    del graphs
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    alone: list[list[float]] = [[], []]
    turns: list[list[float]] = [[], []]
    for _ in range(rounds):
        for i, model in enumerate(both):
            for j in range(runs):
                seconds = timed(model, picture)
                if j:  # the first finds the weights of the other in the caches
                    alone[i].append(seconds)
        for _ in range(runs):
            for i, model in enumerate(both):
                turns[i].append(timed(model, picture))
    slower = {}
    for name, best in (("minimum", min), ("median", statistics.median)):
        slower[name] = sum(map(best, turns)) / sum(map(best, alone))  # type: ignore[operator]
    return slower


def timed(model: Model, picture: np.ndarray) -> float:
    start = time.perf_counter()
    model.run(picture)
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.memory", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--arch", default="mobilenet_v2")
    parser.add_argument("--width", type=float, default=0.35)
    parser.add_argument("--size", type=int, default=96, help="of the pictures (default: 96, for the sake of time)")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", help="write the figures to this JSON file")
    args = parser.parse_args(argv)
    graph = models.build(args.arch, width=args.width, input_size=(args.size, args.size))
    model = Model.from_graph(graph, threads=args.threads)
    del graph
    figures = {"network": model.name, "width": args.width, "size": args.size, "runs": args.runs, "sizes": 100}
    figures |= {"threads": args.threads, **measure(model, args.runs)}
    growth = figures["after_mb"] - figures["before_mb"]
    figures["growth_mb"] = growth
    figures["large"] = large(model)
    figures["in_turns_over_alone"] = alternating(args.threads)
    print(json.dumps(figures, indent=1))
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            json.dump(figures, file, indent=1)
            file.write("\n")
    if growth >= LIMIT:
        print(f"memory grew by {growth:.2f} MB, {LIMIT:g} are allowed", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
