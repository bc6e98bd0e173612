"""The share of the arithmetic peak that every convolution of a network reaches: `python -m bench.shares --isa avx2`.

The peak is what one thread reaches with multiply-adds of the same instruction set alone, measured in the same process
before and after. Times are those of the layers inside of the whole network, one thread: the fastest of all runs.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

from bench import machine, networks
from fastmobilenet import _native
from fastmobilenet.lower import Engine
from fastmobilenet.profile import measure


def main(arguments: list[str] | None = None) -> int:
    argv = sys.argv[1:] if arguments is None else arguments
    isas = _native.supported_isas()
    parser = argparse.ArgumentParser(prog="python -m bench.shares", description=__doc__)
    parser.add_argument("--isa", default=isas[0], help="of " + ", ".join(isas))
    parser.add_argument("--models", default="mobilenet_v1,mobilenet_v2")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--out", type=Path, help="result file (default bench/results/shares-ISA.json)")
    options = parser.parse_args(argv)
    if options.isa not in isas:
        parser.error(f"this CPU runs {', '.join(isas)}")
    if options.runs < 1 or options.size < 1:
        parser.error("runs and size must be at least 1")
    document: dict[str, Any] = {
        "kind": "shares",
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": machine.command_line("bench.shares", argv),
        "machine": machine.describe(),
        "isa": options.isa,
        "networks": [],
    }
    for name in options.models.split(","):
        document["networks"].append(network(name, options.size, options.isa, options.runs))
        print(text(document["networks"][-1]), flush=True)
    out = options.out or Path(__file__).parent / "results" / f"shares-{options.isa}.json"
    out.write_text(json.dumps(document, indent=1) + "\n")
    print(f"written: {out}")
    return 0


def network(name: str, size: int, isa: str, runs: int) -> dict[str, Any]:
    """The convolutions of a network, and all dense ones that are no part of a strip together ("gemm")."""
    graph = networks.build(name, None, size).replace(input_layout="NHWC")
    profile = measure(Engine(graph, isa), networks.picture(graph, (size, size), 0), threads=1, runs=runs)
    peak = profile.rates.peak
    layers = [
        {
            "name": layer.name,
            "kernel": layer.kernel,
            "output": list(layer.output),
            "us": round(1e6 * layer.minimum, 2),
            "share": round(2 * layer.work.macs / layer.minimum / peak, 4),
        }
        for layer in profile.layers
        if layer.work.macs and layer.kernel.startswith(("gemm", "conv", "dw", "winograd"))
    ]
    gemms = [layer for layer in profile.layers if layer.kernel.startswith("gemm")]
    seconds, macs = sum(g.minimum for g in gemms), sum(g.work.macs for g in gemms)
    return {
        "network": name,
        "size": size,
        "peak_gflops": round(peak / 1e9, 2),
        "ms": round(1e3 * profile.seconds, 4),
        "share": round(profile.share_of_peak(), 4),
        "gemm_share": round(2 * macs / seconds / peak, 4) if gemms else None,
        "layers": layers,
    }


def text(found: dict[str, Any]) -> str:
    lines = [
        f"{found['network']}, {found['size']}x{found['size']}: {found['ms']:.3f} ms, {100 * found['share']:.0f} % of "
        f"the peak of {found['peak_gflops']:.0f} GFLOP/s; its GEMMs {100 * (found['gemm_share'] or 0):.0f} %"
    ]
    for layer in found["layers"]:
        cells = (f"{100 * layer['share']:5.1f} %", f"{layer['us']:8.1f} us", "x".join(map(str, layer["output"])))
        lines.append("  " + "  ".join((*cells[:2], f"{cells[2]:12}", f"{layer['kernel']:34}", layer["name"])))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
