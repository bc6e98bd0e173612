"""``fastmobilenet verify``: whether a model gives here what it gives in the framework it comes from."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .terminal import CommandError, Progress, add_arch_option, check_trained, printable, table

if TYPE_CHECKING:
    from ..graph import Graph
    from ..verify import Deviation, Report

EPILOG = """\
examples:
  fastmobilenet verify mobilenet_v2.onnx
  fastmobilenet verify net.tflite cat.jpg dog.jpg --against litert
  fastmobilenet verify weights.pth --arch mobilenet_v2 --json
  fastmobilenet verify timm/mobilenetv3_large_100.ra_in1k

What it is compared with, where --against does not say: onnxruntime for .onnx files; litert for .tflite files; torch,
with torchvision's or timm's network, for weights with --arch and those of the hub; and for what none of them reads, or
where the one that does is not installed, the float64 reference of this package. That one computes what was read from
the file, so it sees a mistake of the engine but none of the reader.

output:
  difference  the largest difference of two outputs, as a part of the largest value among them
  class       the most probable class here, and there where it is another one
  If a difference exceeds the tolerance, the first layer that differs is looked for, with the names of the file; what
  comes before it agrees. With weights only, the names are those of "fastmobilenet info".

exit status:
  0 if all differences are within the tolerance, 1 if one is not or nothing could be compared.
"""


def tolerance(text: str) -> float:
    """Argument type: a share of the largest value."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (value >= 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, like 1e-4, not {text!r}")
    return value


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "verify",
        help="compare a model with the framework it comes from, layer by layer",
        description="Run a model here and in the framework it comes from, on the same pictures, and compare.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="FILE", help="a model file, or timm/NAME of the hub")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="pictures (default: some that are made up)")
    parser.add_argument(
        "--against",
        choices=("onnxruntime", "litert", "torch", "reference"),
        help="what to compare with (default: what fits the file)",
    )
    add_arch_option(parser)
    parser.add_argument(
        "--tolerance",
        type=tolerance,
        metavar="T",
        help="largest difference, as a part of the largest value (default: 1e-4; more for quantised files)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from .. import peers, verify

    check_trained(args.model, "verify")
    path, graph, arch = _read(args.model, args.arch)
    peer, remarks = peers.choose(path, graph, arch, args.against)
    progress = Progress()
    try:
        report = verify.verify(graph, peer, verify.pictures(graph, args.images), args.tolerance, progress.show)
    finally:
        progress.clear()
    remarks += report.remarks
    if args.json:
        print(json.dumps(as_json(args.model, report, remarks), indent=2, allow_nan=False))
    else:
        print("\n".join(lines(graph, report, remarks)))
    return 0 if report.ok else 1


def _read(source: str, arch: str | None) -> tuple[str, Graph, str | None]:
    """The file, which may be one of the hub's cache, the network in it, and its architecture where it does not say."""
    from .. import hub, importers

    name = hub.parse(source)
    if name is None:
        return source, importers.load(source, arch=arch), arch
    if arch is not None:
        raise CommandError(f"{name} says its own architecture; --arch is for a file that holds weights only")
    found = hub.load(name)
    return found.path, found.graph, found.arch


def as_json(path: str, report: Report, remarks: list[str]) -> dict[str, Any]:
    """All that is shown, as plain data. A difference that is no finite number is null."""
    found = report.deviation
    facts: dict[str, Any] = {
        "file": path,
        "against": report.peer,
        "tolerance": report.tolerance,
        "ok": report.ok,
        "pictures": [asdict(comparison) for comparison in report.comparisons],
        "layer": None if found is None else {**asdict(found), "reference": _arbiter(found)},
        "remarks": remarks,
    }
    return {key: _finite(value) for key, value in facts.items()}


def _arbiter(found: Deviation) -> dict[str, float]:
    ours, theirs = found.reference
    return {"ours": ours, "theirs": theirs}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def lines(graph: Graph, report: Report, remarks: list[str]) -> list[str]:
    """The same for people."""
    h, w = graph.input_size
    head = [
        ("model", f"{printable(graph.name)}, {h}x{w}"),
        ("against", report.peer),
        ("tolerance", f"{report.tolerance:g} of the largest value"),
    ]
    rows: list[tuple[Any, ...]] = [("picture", "difference", "class", "")]
    for c in report.comparisons:
        classes = "" if c.ours is None else str(c.ours) if c.ours == c.theirs else f"{c.ours}, there {c.theirs}"
        verdict = "" if c.difference <= report.tolerance else "too large"
        rows.append((printable(c.picture), f"{c.difference:.2g}", classes, verdict))
    body = [*table(head, set()), "", *table(rows, {1})]
    ranked = [c for c in report.comparisons if c.ours is not None]
    if ranked:
        agreed = sum(c.ours == c.theirs for c in ranked)
        body += ["", f"the most probable class is the same for {agreed} of {len(ranked)} pictures"]
    if report.deviation is not None:
        body += ["", *_layer(report, report.deviation)]
    return [*body, *(["", *map(printable, remarks)] if remarks else [])]


def _layer(report: Report, found: Deviation) -> list[str]:
    ours, theirs = found.reference
    rows = [("first layer that differs", f"{printable(found.node)} ({found.op}), by {found.difference:.2g}")]
    rows += [("reads", f"{printable(name)}, differs by {value:.2g}") for name, value in found.inputs.items()]
    if found.between:
        rows.append(("between them, unseen", ", ".join(map(printable, found.between))))
    if found.fused:
        rows.append(("runs as one with", ", ".join(map(printable, found.fused))))
    if found.by_peer:
        rows.append(("to the float64 reference", f"{ours:.2g} from here, {theirs:.2g} from {report.peer}"))
        rows.append(("so the cause is likely", _cause(ours, theirs)))
    return table(rows, set())


def _cause(ours: float, theirs: float) -> str:
    if ours <= theirs / 10:
        return "in reading the file: the engine computes what was read"
    if theirs <= ours / 10:
        return "in the engine: what was read is right"
    return "not to be told: both differ from the reference"
