"""Result documents (the JSON of race.py and of pytest-benchmark) -> text and Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bench.peers.runners import OURS
from bench.peers.runners_int8 import OURS_FP32


@dataclass(frozen=True)
class Verdict:
    """Ours against the fastest peer. A ratio is the peer's time / our time: above 1 we are faster."""

    by_min: float
    by_median: float
    fastest_by_min: str
    fastest_by_median: str

    @property
    def lost(self) -> bool:
        return self.by_min < 1 or self.by_median < 1

    @property
    def names(self) -> str:
        """Of the fastest peer, or of both."""
        return " / ".join(_distinct([self.fastest_by_min, self.fastest_by_median]))

    @property
    def word(self) -> str:
        if not self.lost:
            return "won"
        ways = [way for way, ratio in (("minimum", self.by_min), ("median", self.by_median)) if ratio < 1]
        return "LOST by " + " and ".join(ways)


def verdict(race: dict) -> Verdict | None:
    """None where we or all peers have failed."""
    finished = {name: p for name, p in race["peers"].items() if p["status"] == "ok"}
    ours = finished.pop(OURS, None)
    finished.pop(OURS_FP32, None)
    if ours is None or not finished:
        return None
    by_min = min(finished, key=lambda name: finished[name]["min_ms"])
    by_median = min(finished, key=lambda name: finished[name]["median_ms"])
    return Verdict(
        finished[by_min]["min_ms"] / ours["min_ms"],
        finished[by_median]["median_ms"] / ours["median_ms"],
        by_min,
        by_median,
    )


def against_fp32(race: dict) -> tuple[float, float] | None:
    """Our time of the network of floats / that of int8, by minimum and by median."""
    ours, floats = (race["peers"].get(name, {}) for name in (OURS, OURS_FP32))
    if ours.get("status") != "ok" or floats.get("status") != "ok":
        return None
    return floats["min_ms"] / ours["min_ms"], floats["median_ms"] / ours["median_ms"]


def title(race: dict) -> str:
    return f"{network(race)}, {thread_count(race)}"


def network(race: dict) -> str:
    name = race["model"] + ("" if race["width"] in (None, 1) else f" x{race['width']:g}")
    name += ", int8" * (race.get("precision") == "int8")
    return f"{name}, {race['size']}x{race['size']}"


def thread_count(race: dict) -> str:
    return f"{race['threads']} thread{'s' * (race['threads'] > 1)}"


def cpu(machine: dict) -> str:
    """The CPU's name, and what tells it from others that a hypervisor gives the same name."""
    family, model, _ = machine.get("family_model_stepping") or (None, None, None)
    return machine["cpu"] + (f" (family {family}, model {model})" if model else "")


def best_peak(race: dict) -> float | None:
    """GFLOP/s of all threads together at the best burst, None where it was not measured."""
    gflops: list[float] = race["peak"]["gflops_per_core"]
    return max(gflops) * race["threads"] if gflops else None


def share_of_peak(race: dict, ms: float) -> float | None:
    """The network's arithmetic (2 flop a multiply-accumulate) at the peak, / ms."""
    peak = best_peak(race)
    return None if peak is None else 2 * race["macs"] / (peak * 1e6) / ms


def spread(peer: dict) -> float:
    """(90th percentile - minimum) / minimum of all timed runs."""
    runs: list[float] = sorted(ms for turn in peer["rounds"] for ms in turn)
    return runs[int(0.9 * (len(runs) - 1))] / runs[0] - 1


# --- races --------------------------------------------------------------------------------------------------


def race_text(race: dict) -> str:
    """One race for the terminal."""
    peak = race["peak"]
    if peak["gflops_per_core"]:
        low, high = min(peak["gflops_per_core"]), max(peak["gflops_per_core"])
        unit = "Gop/s" if race.get("precision") == "int8" else "GFLOP/s"
        measured = f"peak of one core {low:.0f} to {high:.0f} {unit} ({peak['isa']})"
    else:
        measured = f"peak not measured ({peak['error']})"
    lines = [
        f"{title(race)}: {race['macs'] / 1e6:.0f} million multiply-accumulates, {measured}",
        f"  {'framework':14}{'min ms':>9}{'median ms':>11}{'spread':>8}{'of peak':>9}{'vs ours':>18}  "
        + ("1 - correlation" if race.get("precision") == "int8" else "difference"),
    ]
    ours = race["peers"].get(OURS, {})
    for name, peer in race["peers"].items():
        if peer["status"] != "ok":
            lines.append(f"  {name:14} failed: {peer['error']}")
            continue
        share = share_of_peak(race, peer["min_ms"]) if name != OURS_FP32 else None
        against = ""
        if ours.get("status") == "ok":
            against = f"{peer['min_ms'] / ours['min_ms']:.2f} / {peer['median_ms'] / ours['median_ms']:.2f}"
        lines.append(
            f"  {name:14}{peer['min_ms']:9.3f}{peer['median_ms']:11.3f}{spread(peer):8.0%}"
            f"{'' if share is None else format(share, '.0%'):>9}{against:>18}  {peer['difference']:.1e}"
        )
    return "\n".join([*lines, f"  {_verdict_line(race)}", f"  {noise_line(race)}"])


def _verdict_line(race: dict) -> str:
    found = verdict(race)
    if found is None:
        return "no verdict: we or all peers failed"
    floats = against_fp32(race)
    return (
        f"fastest peer / ours: {found.by_min:.3f} by minimum ({found.fastest_by_min}), "
        f"{found.by_median:.3f} by median ({found.fastest_by_median}): {found.word}"
    ) + ("" if floats is None else f"; our fp32 / ours: {floats[0]:.2f} / {floats[1]:.2f}")


def noise_line(race: dict) -> str:
    noise = race["noise"]
    steal, others = ("unknown" if noise[k] is None else f"{noise[k]:.1%}" for k in ("steal", "others"))
    load = noise["load_average_before"]
    return (
        f"noise: stolen CPU time {steal}, other processes {others}, "
        f"load average {f'{load[0]:.2f}' if load else 'unknown'} before; "
        f"{'CPU ' + ', '.join(map(str, race['cpus'])) if race['cpus'] else 'not pinned'}"
    )


def race_markdown(documents: list[dict]) -> str:
    """All races of the documents as one table, with machine, date, command and noise below.

    A cell is "minimum / median" in ms. A race that we lose is marked, a framework that failed is shown so.
    """
    races = [race for document in documents for race in document["races"]]
    names = _distinct(name for race in races for name in race["peers"])
    int8 = any(race.get("precision") == "int8" for race in races)
    columns = ["network", "parameters", "FLOP", *names, "fastest peer / ours", "of peak"]
    columns += ["our fp32 / ours"] * int8
    lines = [_row(columns), "|" + "---|" * len(columns)]
    for race in races:
        cells = [title(race), _millions(race.get("parameters")), _millions(2 * race["macs"])]
        cells += [_race_cell(race["peers"].get(name)) for name in names]
        cells += [_verdict_cell(race), _share_cell(race)]
        floats = against_fp32(race)
        cells += ["" if floats is None else f"{floats[0]:.2f} / {floats[1]:.2f}"] * int8
        lines.append(_row(cells))
    lines += [
        "",
        "Milliseconds for one picture, minimum / median of all timed runs. A ratio above 1: we are faster than the "
        "fastest of the others, which is named. Of peak: the network's arithmetic at the FMA peak / our minimum"
        + ("; of int8, at the peak of dot products of bytes." if int8 else "."),
        "",
    ]
    lines += _distinct(f"* {line}" for document in documents for line in provenance(document))
    failures = dict.fromkeys(
        f"* {name} failed: {peer['error']}" for race in races for name, peer in race["peers"].items() if "error" in peer
    )
    noise = [f"* {title(race)}: {noise_line(race)}" for race in races]
    return "\n".join([*lines, *failures, *noise]) + "\n"


def verdicts_markdown(documents: list[dict]) -> str:
    """The README's speed table: a row for each network, a column for each CPU and number of threads; below, what the
    documents come from.

    A cell is our minimum and how many times as long the fastest peer takes, by minimum and by median. One that we
    lose is marked.
    """
    cells: dict[str, dict[tuple[str, str], str]] = {}
    columns: dict[tuple[str, str], None] = {}
    for document in documents:
        for race in document["races"]:
            column = cpu(document["machine"]), thread_count(race)
            columns[column] = None
            cells.setdefault(network(race), {})[column] = _brief_cell(race)
    ordered = sorted(columns)
    lines = [_row(["network", *(f"{name}, {threads}" for name, threads in ordered)]), "|" + "---|" * (len(ordered) + 1)]
    lines += [_row([name, *(found.get(column, "") for column in ordered)]) for name, found in sorted(cells.items())]
    lines += [
        "",
        "Milliseconds for one picture, our minimum; then the time of the fastest of the others, which is named, / "
        "ours, by minimum and by median of all timed runs: above 1, we are faster.",
        "",
    ]
    lines += _distinct(f"* {line}" for document in documents for line in provenance(document))
    return "\n".join(lines) + "\n"


def _brief_cell(race: dict) -> str:
    found = verdict(race)
    if found is None:
        return "no verdict"
    return _marked(found, f"{race['peers'][OURS]['min_ms']:.2f}: {found.by_min:.2f} / {found.by_median:.2f}")


def _marked(found: Verdict, ratios: str) -> str:
    """With the names of the peers; bold if we lose."""
    cell = f"{ratios} ({found.names})"
    return f"**{cell}, {found.word}**" if found.lost else cell


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _millions(count: int | None) -> str:
    return "" if count is None else f"{count / 1e6:.2f} M" if count < 1e7 else f"{count / 1e6:.0f} M"


def _race_cell(peer: dict | None) -> str:
    if peer is None:
        return ""
    return f"{peer['min_ms']:.2f} / {peer['median_ms']:.2f}" if peer["status"] == "ok" else "failed"


def _verdict_cell(race: dict) -> str:
    found = verdict(race)
    if found is None:
        return "no verdict"
    return _marked(found, f"{found.by_min:.3f} / {found.by_median:.3f}")


def _share_cell(race: dict) -> str:
    ours = race["peers"].get(OURS, {})
    share = share_of_peak(race, ours["min_ms"]) if ours.get("status") == "ok" else None
    return "" if share is None else f"{share:.0%}"


def provenance(document: dict) -> list[str]:
    """Machine, date, versions, command: what must stand under every table."""
    machine = document.get("machine") or document["machine_info"]
    date = (document.get("date") or document["datetime"])[:10]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items() if version)
    flags = [f for f in machine["flags"] if f in ("avx2", "avx512f", "avx512_vnni", "avx512_fp16", "amx_bf16", "asimd")]
    virtual = ", virtual" if machine["hypervisor"] else ""
    return [
        f"{date}, {cpu(machine)}, {machine['logical_cpus']} CPUs{virtual} ({' '.join(flags)}), {machine['system']}, "
        f"Python {machine['python']}",
        versions,
        f"`{document['command']}`",
    ]


# --- layers -------------------------------------------------------------------------------------------------


#: (minimum, median) in microseconds
Times = tuple[float, float]


@dataclass(frozen=True)
class LayerRow:
    """One layer: framework -> times of the network of this layer alone, and of its step without the edges."""

    name: str
    macs: int
    uses: dict[str, int]
    times: dict[str, Times]
    steps: dict[str, Times]


def ratio(times: dict[str, Times], peer: str) -> Times | None:
    """The peer's times / ours; None where one is missing."""
    if OURS not in times or peer not in times:
        return None
    return times[peer][0] / times[OURS][0], times[peer][1] / times[OURS][1]


def layer_rows(document: dict) -> list[LayerRow]:
    """The layers of a pytest-benchmark document, in its order."""
    rows: dict[str, LayerRow] = {}
    for entry in document["benchmarks"]:
        info, stats = entry["extra_info"], entry["stats"]
        name, framework = info["layer"], info["framework"]
        row = rows.setdefault(name, LayerRow(name, info["macs"], info["uses"], {}, {}))
        row.times[framework] = (stats["min"] * 1e6, stats["median"] * 1e6)
        if "step_us" in info:
            row.steps[framework] = tuple(info["step_us"])
    return list(rows.values())


def layer_markdown(document: dict) -> str:
    """A row for each layer, a sum for each network, and the provenance."""
    rows = layer_rows(document)
    networks = _distinct(name for row in rows for name in row.uses)
    frameworks = _distinct(name for row in rows for name in row.times)
    stepping = _distinct(name for row in rows for name in row.steps)
    rows += [_layer_sum(rows, network) for network in networks]
    # The best burst of the whole session: bursts of some milliseconds are often disturbed, and only downwards.
    peak = max((b["extra_info"].get("peak_gflops", 0.0) for b in document["benchmarks"]), default=0.0)
    header = ["layer", *(f"in {n}" for n in networks), *frameworks]
    header += [f"{f} / ours" for f in frameworks if f != OURS]
    header += [f"{f}, step" for f in stepping]
    header += [f"{f} / ours, step" for f in stepping if f != OURS]
    header += ["our step, of peak"]
    lines = [_row(header), "|" + "---|" * len(header)]
    for row in rows:
        cells = [row.name, *(str(row.uses.get(n, "")) for n in networks)]
        cells += [_pair(row.times.get(f)) for f in frameworks]
        cells += [_ratio_cell(ratio(row.times, f)) for f in frameworks if f != OURS]
        cells += [_pair(row.steps.get(f)) for f in stepping]
        cells += [_ratio_cell(ratio(row.steps, f)) for f in stepping if f != OURS]
        share = 2 * row.macs / (peak * 1e3) / row.steps[OURS][0] if OURS in row.steps and row.macs and peak else None
        cells.append("" if share is None else f"{share:.0%}")
        lines.append(_row(cells))
    lines += [
        "",
        "Microseconds, minimum / median; a ratio below 1 is a layer that we lose. One thread. Each framework runs a "
        "network of this one layer, so the call from Python and the change of layout before and after count. "
        "A step is the layer alone, as a whole network runs it, by the framework's own profiler.",
        "",
        *(f"* {line}" for line in provenance(document)),
    ]
    if peak:
        isas = ", ".join(_distinct(b["extra_info"]["isa"] for b in document["benchmarks"] if "isa" in b["extra_info"]))
        lines.append(f"* FMA peak of one core {peak:.0f} GFLOP/s ({isas})")
    return "\n".join(lines) + "\n"


def _layer_sum(rows: list[LayerRow], network: str) -> LayerRow:
    """All layers of a network together, each as often as it occurs; frameworks that lack one are left out."""
    used = [row for row in rows if network in row.uses]

    def total(tables: list[dict[str, Times]]) -> dict[str, Times]:
        complete = [f for f in tables[0] if all(f in table for table in tables)]
        weights = [row.uses[network] for row in used]
        return {
            f: (
                sum(table[f][0] * n for table, n in zip(tables, weights, strict=True)),
                sum(table[f][1] * n for table, n in zip(tables, weights, strict=True)),
            )
            for f in complete
        }

    return LayerRow(
        f"**all of {network}**",
        sum(row.macs * row.uses[network] for row in used),
        {network: sum(row.uses[network] for row in used)},
        total([row.times for row in used]),
        total([row.steps for row in used]),
    )


def _pair(times: Times | None) -> str:
    return "" if times is None else f"{times[0]:.1f} / {times[1]:.1f}"


def _ratio_cell(ratios: Times | None) -> str:
    if ratios is None:
        return ""
    text = f"{ratios[0]:.2f} / {ratios[1]:.2f}"
    return f"**{text}, lost**" if min(ratios) < 1 else text


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
