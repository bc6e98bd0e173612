"""What happens between runs: `python -m bench.pauses`.

* pause: a run, 50 ms of sleep, and the run that is measured, with 1 and 2 threads; and runs without a pause. The
  workers of the pool sleep by then; the caller must not wait for them.
* alternate: two models in one process, each run timed, by themselves and in turns. What a model loses in turns is what
  the other has put into the caches; its weights alone may be larger than they are.

Every figure is the minimum and the median of all runs of all rounds, in ms. Ratios: after a pause / without one, in
turns / by itself.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import machine, networks
from fastmobilenet.lower import Engine

Times = list[float]


def main(arguments: list[str] | None = None) -> int:
    argv = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m bench.pauses", description=__doc__)
    parser.add_argument("--models", default="mobilenet_v2,mobilenet_v1", help="two, the first one pauses")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--pause", type=float, default=50.0, help="ms (default 50)")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "pauses.json")
    options = parser.parse_args(argv)
    names = options.models.split(",")
    if len(names) != 2 or options.rounds < 1 or options.size < 1 or options.pause < 0:
        parser.error("there must be two models, and rounds and sizes of at least 1")
    runs = [open_network(name, options.size) for name in names]
    document: dict[str, Any] = {
        "kind": "pauses",
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": machine.command_line("bench.pauses", argv),
        "machine": machine.describe(),
        "versions": {"fastmobilenet": machine.versions()["fastmobilenet"]},
        "models": names,
        "size": options.size,
        "pause_ms": options.pause,
        "rounds": options.rounds,
        "pause": {},
        "alternate": {},
    }
    for threads in (1, 2):
        document["pause"][threads] = pause(lambda t=threads: runs[0](t), options.rounds, options.pause / 1e3)
        document["alternate"][threads] = alternate(runs, names, threads, options.rounds)
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    for threads in (1, 2):
        found = document["pause"][threads]
        print(
            f"{names[0]}, {threads} thread(s), {options.pause:g} ms before the run: {line(found, 'without', 'after')}"
        )
    for threads in (1, 2):
        for name, found in document["alternate"][threads].items():
            print(f"{name}, {threads} thread(s), in turns with the other: {line(found, 'alone', 'turns')}")
    print(f"written: {options.out}")
    return 0


def open_network(name: str, size: int) -> Callable[[int], float]:
    """A function of the number of threads that runs the network once and returns ms."""
    graph = networks.build(name, None, size).replace(input_layout="NHWC")
    engine, x = Engine(graph), networks.picture(graph, (size, size), 0)

    def run(threads: int) -> float:
        start = time.perf_counter()
        engine.run(x, threads=threads, pixels=False)
        return 1e3 * (time.perf_counter() - start)

    return run


def pause(run: Callable[[], float], rounds: int, seconds: float) -> dict[str, Any]:
    without: Times = []
    after: Times = []
    for _ in range(rounds):
        for _ in range(3):
            run()
        without += [run() for _ in range(3)]
        time.sleep(seconds)
        after.append(run())
    return compared(without=without, after=after)


def alternate(runs: list[Callable[[int], float]], names: list[str], threads: int, rounds: int) -> dict[str, Any]:
    alone: list[Times] = [[], []]
    turns: list[Times] = [[], []]
    for _ in range(rounds):
        for i in (0, 1):
            runs[i](threads)
            alone[i] += [runs[i](threads) for _ in range(4)]
        runs[0](threads)
        runs[1](threads)
        for _ in range(4):
            for i in (0, 1):
                turns[i].append(runs[i](threads))
    return {name: compared(alone=a, turns=t) for name, a, t in zip(names, alone, turns, strict=True)}


def compared(**times: Times) -> dict[str, Any]:
    """Of two lists: what each comes to, and how much longer the second is."""
    found: dict[str, Any] = {
        key: {"min_ms": round(min(t), 4), "median_ms": round(statistics.median(t), 4)} for key, t in times.items()
    }
    first, second = found.values()
    return {**found, "ratio": {k[:-3]: round(second[k] / first[k], 4) for k in ("min_ms", "median_ms")}}


def line(found: dict[str, Any], first: str, second: str) -> str:
    cells = [f"{key} {found[key]['min_ms']:.3f} / {found[key]['median_ms']:.3f} ms" for key in (first, second)]
    return f"{', '.join(cells)}, ratio {found['ratio']['min']:.3f} / {found['ratio']['median']:.3f}"


if __name__ == "__main__":
    sys.exit(main())
