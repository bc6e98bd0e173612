"""``fastmobilenet convert``: any model file as a .fmn file."""

from __future__ import annotations

import argparse
import json
import os
import stat
from typing import TYPE_CHECKING, Any

from .terminal import CommandError, add_arch_option, check_trained, printable, table

if TYPE_CHECKING:
    from ..model import Model

SUFFIX = ".fmn"

EPILOG = """\
examples:
  fastmobilenet convert mobilenet_v2.onnx mobilenet_v2.fmn
  fastmobilenet convert weights.pth net.fmn --arch mobilenet_v2 --labels names.txt
  fastmobilenet convert net.fmn net.fmn --labels others.txt

A .fmn file holds the network, the preprocessing of pictures and the names of the classes, and is loaded in
milliseconds. It is a .safetensors file with the network in its metadata. The network is written as it runs, batch norm
folded and activations fused, and gives the same bits as IN. OUT is written whole or not at all; a file of that name is
replaced.

names of the classes:
  those of --labels; else those in IN; else those of a file *labels*.txt in its folder that has as many lines as the
  network has classes.
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="write a model as a .fmn file, which loads fastest",
        description="Write a model, its preprocessing and the names of its classes to a .fmn file.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="IN", help="a model file of any kind, or a network of the hub: timm/NAME")
    parser.add_argument("target", metavar="OUT", help="the file to write; its name ends in .fmn")
    add_arch_option(parser)
    parser.add_argument("--labels", metavar="FILE", help="names of the classes, one a line")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from .. import sources
    from ..model import Model

    check_trained(args.source, "convert")
    to_file = not _is_special(args.target)
    if to_file and not args.target.lower().endswith(SUFFIX):
        raise CommandError(f"{args.target}: what is written is a {SUFFIX} file; give OUT a name that ends in {SUFFIX}")
    model = Model.load(args.source, arch=args.arch, labels=args.labels)
    before = sources.size(args.source, model._origin)
    model.save(args.target)
    if to_file:  # a pipe may be standard output, which has the file now
        print(json.dumps(facts(args, model, before)) if args.json else "\n".join(lines(args, model, before)))
    return 0


def facts(args: argparse.Namespace, model: Model, before: int) -> dict[str, Any]:
    """What is shown, as plain data."""
    return {
        "model": model.name,
        "input_size": list(model.input_size),
        "labels": None if model.labels is None else len(model.labels),
        "read": {"file": args.source, "bytes": before},
        "written": {"file": args.target, "bytes": os.path.getsize(args.target)},
    }


def _is_special(path: str) -> bool:
    """Whether it is there and neither a file nor a folder: a pipe or a device, /dev/stdout for one."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def lines(args: argparse.Namespace, model: Model, before: int) -> list[str]:
    h, w = model.input_size
    return table(
        [
            ("model", f"{printable(model.name)}, {h}x{w}"),
            ("labels", "none" if model.labels is None else len(model.labels)),
            ("read", f"{printable(args.source)}, {megabytes(before)}"),
            ("written", f"{printable(args.target)}, {megabytes(os.path.getsize(args.target))}"),
        ],
        set(),
    )


def megabytes(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
