"""Whole-network race: `python -m bench.race`. bench/README.md has the rules and how to read the result."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import pickle
import re
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

if __package__ in (None, ""):  # started as `python bench/race.py`
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from bench import machine, networks, tables
from bench.contestant import Contestant
from bench.peers.runners import DEFAULT, OURS, RUNNERS
from bench.peers.runners_int8 import CALIBRATION, QUANTIZED, RUNNERS_INT8
from bench.worker import PEAK
from fastmobilenet import models
from fastmobilenet.errors import ModelError
from fastmobilenet.graph import Graph
from fastmobilenet.reference import execute

#: Outputs may differ from the float64 reference by this share of its largest value.
TOLERANCE = 1e-3
#: Those of int8 differ by the noise of 50 to 100 roundings, which each framework does its own way. With the random
#: weights of a race, 1 - correlation with the reference is some percent for a right network, and 1 for another one.
TOLERANCE_INT8 = 0.15
#: Untimed runs: once after loading, and at the start of each turn (another process has had the caches).
WARMUP, TURN_WARMUP = 10, 3
PEAK_SECONDS = 0.1


def main(arguments: list[str] | None = None) -> int:
    argv = sys.argv[1:] if arguments is None else arguments
    options = parse(argv)
    document: dict[str, Any] = {
        "kind": "race",
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": machine.command_line("bench.race", argv),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "rules": {
            "rounds": options.rounds,
            "runs": options.runs,
            "warmup": WARMUP,
            "turn_warmup": TURN_WARMUP,
            "pinned": options.pin,
            "precision": options.precision,
            "tolerance": TOLERANCE if options.precision == "fp32" else TOLERANCE_INT8,
            "seed": options.seed,
        },
        "races": [],
    }
    out = options.out or default_path(document, kind(options))
    out.parent.mkdir(parents=True, exist_ok=True)
    for arch in options.models:
        entry = models.find(arch)
        size = options.size or entry.input_size[0]
        graph = networks.build(arch, options.width, size, options.seed)
        x = networks.picture(graph, (size, size), options.seed)
        expected = execute(graph, x)[graph.output]
        title = {
            "model": arch,
            "width": entry.resolve_width(options.width) if entry.width is None else None,  # or the name holds it
            "size": size,
            "macs": networks.total_macs(graph, (size, size)),
            "parameters": networks.total_parameters(arch, options.width),
            "precision": options.precision,
        }
        for threads in options.threads:
            found = race(graph, x, expected, threads, options)
            document["races"].append({**title, "threads": threads, **found})
            print(tables.race_text(document["races"][-1]), flush=True)
            out.write_text(json.dumps(document, indent=1) + "\n")  # now: the next race may be interrupted
    print(f"written: {out}")
    return int(any(OURS in r["peers"] and r["peers"][OURS]["status"] == "failed" for r in document["races"]))


def parse(argv: list[str]) -> argparse.Namespace:
    def listed(text: str) -> list[str]:
        return [item for item in text.split(",") if item]

    def integers(text: str) -> list[int]:
        return [int(item) for item in listed(text)]

    parser = argparse.ArgumentParser(prog="python -m bench.race", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--models",
        type=listed,
        metavar="A,B",
        help="of fastmobilenet.models.available() (default: V1 and V2; of int8 V3 too)",
    )
    family = list(networks.FAMILY)
    which.add_argument("--family", dest="models", action="store_const", const=family, help=", ".join(family))
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32", help="of all (default fp32)")
    parser.add_argument("--width", type=float, help="width multiplier (default: the model's own, or 1.0)")
    parser.add_argument("--size", type=int, help="height and width of the picture (default: the model's own)")
    parser.add_argument("--threads", type=integers, default=[1, 2], metavar="1,2")
    parser.add_argument("--rounds", type=int, default=9, help="turns of every framework (default 9)")
    parser.add_argument("--runs", type=int, default=15, help="timed runs in a turn (default 15)")
    names = f"of {', '.join(RUNNERS)}; of int8: {', '.join(RUNNERS_INT8)}"
    parser.add_argument("--peers", type=listed, metavar="A,B", help=names)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the picture (default 0)")
    pin = hasattr(os, "sched_setaffinity")
    parser.add_argument("--pin", action=argparse.BooleanOptionalAction, default=pin, help="all on the same CPUs")
    parser.add_argument("--out", type=Path, help="result file (default bench/results/race-CPU-DATE.json)")
    options = parser.parse_args(argv)
    runners = RUNNERS if options.precision == "fp32" else RUNNERS_INT8
    if options.models is None:
        options.models = ["mobilenet_v1", "mobilenet_v2"] if options.precision == "fp32" else list(networks.INT8)
    if options.peers is None:
        options.peers = list(DEFAULT if options.precision == "fp32" else RUNNERS_INT8)
    unknown = [p for p in options.peers if p not in runners]
    if unknown:
        parser.error(f"unknown peers {', '.join(unknown)}; known: {', '.join(runners)}")
    if min([*options.threads, options.rounds, options.runs, 1 if options.size is None else options.size]) < 1:
        parser.error("threads, rounds, runs and size must be at least 1")
    for arch in options.models:
        try:
            models.find(arch).resolve_width(options.width)
        except ModelError as error:
            parser.error(str(error))
    return options


def kind(options: argparse.Namespace) -> str:
    if options.precision == "int8":
        return "-int8"
    return "-family" if tuple(options.models) == networks.FAMILY else ""


def default_path(document: dict, kind: str) -> Path:
    cpu = re.sub(r"[^a-z0-9]+", "-", document["machine"]["cpu"].lower()).strip("-")
    return Path(__file__).parent / "results" / f"race{kind}-{cpu}-{document['date'][:10]}.json"


def race(graph: Graph, x: np.ndarray, expected: np.ndarray, threads: int, options: argparse.Namespace) -> dict:
    """One network at one thread count: everything measured, as in the result file."""
    cpus = machine.choose_cpus(threads) if options.pin else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "network.pkl").write_bytes(pickle.dumps(graph))
        np.save(folder / "input.npy", x)
        if options.precision == "int8":
            pictures = networks.calibration(graph, x.shape[1:3], options.seed)
            np.save(folder / CALIBRATION, pictures)
            (folder / QUANTIZED).write_bytes(pickle.dumps(networks.quantized(graph, pictures)))
        contestants: list[Contestant] = []
        try:
            for peer in (*options.peers, PEAK):
                _progress(f"loading {peer}")
                contestants.append(Contestant(peer, threads, cpus, folder, options.precision))
                _check(contestants[-1], expected, options.precision)
            return _rounds(contestants, cpus, options)
        finally:
            for contestant in contestants:
                contestant.close()


def _check(contestant: Contestant, expected: np.ndarray, precision: str = "fp32") -> None:
    """Fails the contestant whose output is wrong, and warms up one whose output is right."""
    if contestant.error is not None or contestant.peer == PEAK:
        return
    output = np.load(contestant.output_file)
    if output.shape != expected.shape:
        contestant.fail(f"output has shape {output.shape}, expected {expected.shape}")
        return
    if precision == "int8":
        contestant.difference = float(1 - np.corrcoef(output.ravel(), expected.ravel())[0, 1])
        if not contestant.difference <= TOLERANCE_INT8:
            contestant.fail(f"1 - correlation is {contestant.difference:.2g}; allowed is {TOLERANCE_INT8:g}")
    else:
        contestant.difference = float(np.abs(output - expected).max() / np.abs(expected).max())
        if not contestant.difference <= TOLERANCE:
            contestant.fail(
                f"output differs by {contestant.difference:.2g} of the largest value; allowed is {TOLERANCE:g}"
            )
    if contestant.error is None:
        contestant.ask(warmup=WARMUP, runs=0)


def _rounds(contestants: list[Contestant], cpus: list[int], options: argparse.Namespace) -> dict:
    frameworks = [c for c in contestants if c.peer != PEAK]
    peak = contestants[-1]
    gflops: list[float] = []
    noise = Noise(cpus or machine.usable_cpus(), contestants)
    for number in range(options.rounds):
        _progress(f"round {number + 1} of {options.rounds}")
        start = number % len(frameworks)  # so that nobody always runs behind the same neighbour
        for contestant in frameworks[start:] + frameworks[:start]:
            reply = contestant.ask(warmup=TURN_WARMUP, runs=options.runs)
            if reply is not None:
                contestant.rounds.append([round(ns / 1e6, 4) for ns in reply["ns"]])
        reply = peak.ask(seconds=PEAK_SECONDS)
        if reply is not None:
            gflops.append(round(reply["gflops"], 2))
    return {
        "cpus": cpus,
        "peers": {c.peer: result(c) for c in frameworks},
        "peak": {"isa": peak.ready.get("isa"), "error": peak.error, "gflops_per_core": gflops},
        "noise": noise.report(),
    }


def _progress(text: str) -> None:
    """Shows what is going on in a line that the next one overwrites; nothing where nobody watches."""
    if sys.stderr.isatty():
        print(f"\r{text:40}\r", end="", file=sys.stderr, flush=True)


class Noise:
    """What disturbed a race, from the construction to :meth:`report`: time that the hypervisor or other processes
    took from the CPUs, and their clock."""

    def __init__(self, cpus: list[int], contestants: list[Contestant]) -> None:
        self.cpus = cpus
        self.contestants = contestants
        self.load_average = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
        self.mhz = machine.frequencies_mhz(cpus)
        self.own = self._own_ticks()
        self.before = machine.cpu_times(cpus)

    def _own_ticks(self) -> int:
        return machine.process_ticks(os.getpid()) + sum(c.cpu_ticks() for c in self.contestants)

    def report(self) -> dict:
        """Shares of the CPUs' time, None where the system does not count it."""
        ticks = {key: value - self.before[key] for key, value in machine.cpu_times(self.cpus).items()}
        total, others = ticks["total"], ticks["total"] - ticks["idle"] - ticks["steal"]
        others = max(0, others - (self._own_ticks() - self.own))
        return {
            "steal": round(ticks["steal"] / total, 4) if total else None,
            "others": round(others / total, 4) if total else None,
            "load_average_before": self.load_average,
            "mhz": [self.mhz, machine.frequencies_mhz(self.cpus)],
        }


def result(contestant: Contestant) -> dict:
    """The entry of a framework in the result file; times in ms."""
    if contestant.error is not None:
        return {"status": "failed", "error": contestant.error, "difference": contestant.difference}
    runs = [ms for turn in contestant.rounds for ms in turn]
    return {
        "status": "ok",
        "difference": contestant.difference,
        "load_ms": round(contestant.ready["load_ms"], 1),
        "median_ms": round(statistics.median(runs), 4),
        "min_ms": min(runs),
        "rounds": contestant.rounds,
    }


if __name__ == "__main__":
    sys.exit(main())
