"""What a first answer costs: `python -m bench.cold_start`. Fresh processes that import a framework, load one network
from its own file and run one picture, in turns; beside them one that imports NumPy and nothing else.

Files and code are in the page cache, as on a machine that does this now and then. The wall time of a process is
measured from outside, its steps by itself; "resident" is its memory after the run. "import" has NumPy in it, and "load"
whatever the framework imports when it is first used.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import fastmobilenet
from bench import machine, networks
from bench.peers.runners import OURS

PEERS = (OURS, "onnxruntime", "openvino", "litert")
BASE = "numpy"

#: Bodies of the processes: {folder} holds network.fmn, network.onnx, network.tflite and the picture in both layouts.
CODE = {
    BASE: "import numpy as np; mark('import'); mark('load'); mark('run')",
    OURS: """
import fastmobilenet
mark('import')
model = fastmobilenet.Model.load(folder + '/network.fmn', threads=threads)
mark('load')
model.run(numpy.load(folder + '/nchw.npy'))
mark('run')
""",
    "onnxruntime": """
import onnxruntime
mark('import')
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(folder + '/network.onnx', options, providers=['CPUExecutionProvider'])
mark('load')
session.run(None, {'x': numpy.load(folder + '/nchw.npy')})
mark('run')
""",
    "openvino": """
import openvino
mark('import')
config = {'INFERENCE_NUM_THREADS': threads, 'PERFORMANCE_HINT': 'LATENCY', 'INFERENCE_PRECISION_HINT': 'f32'}
request = openvino.Core().compile_model(folder + '/network.onnx', 'CPU', config).create_infer_request()
mark('load')
request.infer([numpy.load(folder + '/nchw.npy')])
mark('run')
""",
    "litert": """
from ai_edge_litert.interpreter import Interpreter
mark('import')
net = Interpreter(model_path=folder + '/network.tflite', num_threads=threads)
net.allocate_tensors()
mark('load')
net.set_tensor(net.get_input_details()[0]['index'], numpy.load(folder + '/nhwc.npy'))
net.invoke()
net.get_tensor(net.get_output_details()[0]['index'])
mark('run')
""",
}

FRAME = """
import sys, time
folder, threads = sys.argv[1], int(sys.argv[2])
marks, last = {{}}, time.perf_counter()
def mark(step):
    global last
    now = time.perf_counter()
    marks[step] = 1e3 * (now - last)
    last = now
import numpy
{body}
status = [line.split() for line in open('/proc/self/status')] if sys.platform == 'linux' else []
resident = [int(fields[1]) / 1024 for fields in status if fields[0] == 'VmRSS:']
import json
sys.stderr.flush()
print()
print(json.dumps({{**marks, 'resident_mb': resident[0] if resident else None}}), flush=True)
"""


def main(arguments: list[str] | None = None) -> int:
    argv = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m bench.cold_start", description=__doc__)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7, help="processes of every framework (default 7)")
    parser.add_argument("--peers", default=",".join(PEERS), help="of " + ", ".join(PEERS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cold-start.json")
    options = parser.parse_args(argv)
    peers = [BASE, *(p for p in options.peers.split(",") if p)]
    if unknown := set(peers) - set(CODE):
        parser.error(f"unknown peers {', '.join(sorted(unknown))}")
    if options.rounds < 1 or options.threads < 1:
        parser.error("rounds and threads must be at least 1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(options.model, folder, peers)
        runs: dict[str, list[dict[str, Any]]] = {p: [] for p in peers}
        errors: dict[str, str] = {}
        for _ in range(options.rounds + 1):  # the first of each fills the page cache and compiles modules
            for peer in peers:
                if peer not in errors:
                    try:
                        runs[peer].append(start(peer, folder, options.threads))
                    except RuntimeError as error:
                        errors[peer] = str(error)
    found = {p: {"status": "failed", "error": errors[p]} if p in errors else summary(runs[p][1:]) for p in peers}
    document = {
        "kind": "cold start",
        "date": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "command": machine.command_line("bench.cold_start", argv),
        "machine": machine.describe(),
        "versions": machine.versions(),
        "model": options.model,
        "threads": options.threads,
        "rounds": options.rounds,
        "peers": found,
    }
    options.out.write_text(json.dumps(document, indent=1) + "\n")
    print(text(found))
    print(f"written: {options.out}")
    return int(OURS in errors)


def write_files(model: str, folder: Path, peers: list[str]) -> None:
    """The network in the format of every framework, and a picture."""
    from bench.peers import to_onnx, to_tflite
    from fastmobilenet.model import Model

    graph = networks.build(model)
    size = graph.input_size
    nhwc = networks.picture(graph, size, 0)
    np.save(folder / "nhwc.npy", nhwc)
    np.save(folder / "nchw.npy", np.ascontiguousarray(nhwc.transpose(0, 3, 1, 2)))
    if OURS in peers:
        Model(graph.replace(input_layout="NCHW"), 1).save(folder / "network.fmn")
    if {"onnxruntime", "openvino"} & set(peers):
        (folder / "network.onnx").write_bytes(to_onnx.export(graph, size))
    if "litert" in peers:
        (folder / "network.tflite").write_bytes(to_tflite.export(graph, size))


def start(peer: str, folder: Path, threads: int) -> dict[str, Any]:
    """One process from its start to its end: steps and wall time in ms, resident memory in MB."""
    code = FRAME.format(body=CODE[peer])
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(threads)}
    # The package that this process has: the folder of the repository is one only where it was built in place.
    package = Path(fastmobilenet.__file__).resolve().parent.parent
    environment["PYTHONPATH"] = os.pathsep.join((str(package), str(machine.REPOSITORY)))
    # Compiled modules, as an installation has them.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(folder / "pycache")
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), str(threads)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=folder,
    )
    wall = 1e3 * (time.perf_counter() - begin)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    steps: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return {"wall": wall, **steps}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Minimum and median of every step."""
    found: dict[str, Any] = {"status": "ok"}
    for key in ("wall", "import", "load", "run"):
        values = [round(r[key], 2) for r in runs]
        found[key] = {"min_ms": min(values), "median_ms": statistics.median(values), "runs_ms": values}
    resident = [r["resident_mb"] for r in runs if r["resident_mb"] is not None]
    found["resident_mb"] = round(statistics.median(resident), 1) if resident else None
    return found


def text(found: dict[str, dict[str, Any]]) -> str:
    lines = [f"{'minimum / median, ms':22}" + "".join(f"{s:>16}" for s in ("process", "import", "load", "first run"))]
    lines[0] += f"{'resident MB':>14}"
    for peer, entry in found.items():
        if entry["status"] != "ok":
            lines.append(f"{peer:22}failed: {entry['error']}")
            continue
        cells = [f"{entry[k]['min_ms']:.1f} / {entry[k]['median_ms']:.1f}" for k in ("wall", "import", "load", "run")]
        lines.append(f"{peer:22}" + "".join(f"{c:>16}" for c in cells) + f"{entry['resident_mb'] or '?':>14}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
