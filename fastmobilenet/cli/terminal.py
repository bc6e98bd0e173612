"""What the subcommands share: messages, progress, types of arguments, and the graph that a name or file stands for."""

from __future__ import annotations

import argparse
import math
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..graph import Graph


class CommandError(Exception):
    """Ends the command with this message and exit status 1."""


def report(message: str) -> None:
    """One line on standard error."""
    print(f"fastmobilenet: {message}", file=sys.stderr, flush=True)


def fail(error: BaseException | str) -> int:
    """Report an error that ends the command; returns the exit status."""
    report(error if isinstance(error, str) else reason(error))
    return 1


def reason(error: BaseException) -> str:
    """An exception in one line."""
    if isinstance(error, OSError) and error.strerror:
        file = error.filename
        return error.strerror if file is None else f"{os.fspath(file)}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__


class Progress:
    """A line on standard error that says how far the work is; silent where standard error is no terminal."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled and sys.stderr.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        if self._enabled:
            print(f"\r{text:<{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(text)

    def clear(self) -> None:
        if self._width:
            print("\r" + " " * self._width + "\r", end="", file=sys.stderr, flush=True)
            self._width = 0


def positive(text: str) -> int:
    """Argument type: a whole number from 1 on."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, not {text!r}")
    return value


def positive_seconds(text: str) -> float:
    """Argument type: a time."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"expected a number of seconds above 0, not {text!r}")
    return value


def picture_size(text: str) -> tuple[int, int]:
    """Argument type: "224", or "192x160" as height x width."""
    parts = text.lower().split("x")
    try:
        h, w = (int(parts[0]), int(parts[-1])) if len(parts) <= 2 else (0, 0)
    except ValueError:
        h = w = 0
    if h < 1 or w < 1:
        raise argparse.ArgumentTypeError(f"expected 224 or 192x160 (height x width), not {text!r}")
    return h, w


def add_arch_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", metavar="NAME", help="architecture, for a file that holds weights only")


def load_graph(source: str, arch: str | None) -> tuple[Graph, bool]:
    """The graph of a model file, or of an architecture with random weights; and whether it came from a file."""
    if not os.path.exists(source):
        from .. import ModelError, models

        try:
            return models.build(source), False
        except ModelError as error:
            raise CommandError(f"{source}: no such file, and {error}") from None
    from .. import importers

    return importers.load(source, arch=arch), True


def table(rows: list[tuple[Any, ...]], right: set[int]) -> list[str]:
    """Rows as aligned lines; the columns in ``right`` are flushed right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]

    def line(row: list[str]) -> str:
        pairs = zip(row, widths, strict=True)
        return "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(pairs)).rstrip()

    return [line(row) for row in cells]
