"""What the subcommands share: messages, progress, types of arguments, and the graph that a name or file stands for."""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from ..graph import Graph
    from ..model import Model


class CommandError(Exception):
    """Ends the command with this message and exit status 1."""


def replace_closed_streams() -> None:
    """What goes to a standard stream that was closed (``>&-``) is dropped, as if it were /dev/null.

    Python makes such a stream None, and the next file that is opened gets its number.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115  it stays open


def drop_output(stream: TextIO) -> None:
    """Nobody reads the stream any more: what is still in its buffer goes nowhere, or Python complains at its exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
        stream.flush()
    except (OSError, ValueError):
        pass  # it is no file, so nothing is flushed at exit


def tell(text: str) -> None:
    """Text to standard error as it is. If nobody is there to read it, that is no error of the command."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except (OSError, ValueError):
        drop_output(sys.stderr)


def report(message: str) -> None:
    """One line on standard error."""
    tell(f"fastmobilenet: {printable(message)}\n")


def printable(text: str) -> str:
    """Names come from files and may hold anything: what would break the line or command a terminal is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def fail(error: BaseException | str) -> int:
    """Report an error that ends the command; returns the exit status."""
    report(error if isinstance(error, str) else reason(error))
    return 1


#: The messages of the package name arguments as Python has them -> the options of the command.
_OPTIONS = (
    (re.compile(r"\barch='([\w.-]+)'"), r"--arch \1"),
    (re.compile(r"\barch="), "--arch"),
    (re.compile(r"\blabels=\.\.\., or none with labels=\(\)"), "--labels"),
)


def reason(error: BaseException, about: str | None = None) -> str:
    """An exception in one line; without the name of the file in front where ``about`` is that name."""
    if isinstance(error, OSError) and error.strerror:
        file = error.filename
        if not isinstance(file, (str, bytes)) or os.fsdecode(file) == about:
            return error.strerror
        return f"{os.fsdecode(file) or repr('')}: {error.strerror}"
    text = str(error) if about is None else str(error).removeprefix(f"{about}: ")
    text = re.sub(r"\s*\n\s*", " ", text.strip())
    for pattern, option in _OPTIONS:
        text = pattern.sub(option, text)
    return text or type(error).__name__


def why(error: Exception, path: str | None) -> str:
    """Why a picture could not be classified, without its path."""
    return "not enough memory for this picture" if isinstance(error, MemoryError) else reason(error, path)


class Progress:
    """A line on standard error that says how far the work is; silent where standard error is no terminal."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled and sys.stderr.isatty()
        self._width = 0

    def show(self, text: str) -> None:
        if self._enabled:
            text = printable(text)[: shutil.get_terminal_size().columns - 1]  # a line that wraps cannot be wiped away
            tell(f"\r{text:<{self._width}}")
            self._width = len(text)

    def clear(self) -> None:
        if self._width:
            tell("\r" + " " * self._width + "\r")
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


def add_model_option(parser: argparse.ArgumentParser, what: str = "FILE") -> None:
    parser.add_argument(
        "--model",
        metavar=what,
        help="model file of any kind, or timm/NAME of the hub (default: the starter model: ten classes)",
    )


def load_model(args: argparse.Namespace) -> Model:
    """The model that --model, --arch and --labels name; without them the starter model, and a line that says so."""
    from .. import starter
    from ..model import Model

    keys = ("arch", "labels", "threads", "precision")
    options = {key: getattr(args, key) for key in keys if hasattr(args, key)}
    if args.model is not None:
        return Model.load(args.model, **options)
    if getattr(args, "arch", None) is not None:
        raise CommandError("--arch is for a file that holds weights only: give that with --model")
    report(starter.notice("--model FILE"))
    args.model = starter.path()
    return Model.load(args.model, **options)


def check_trained(source: str, command: str) -> None:
    """Refuses an architecture where a file is needed: one with random weights says nothing about a picture."""
    if _is_missing(source):
        from .. import hub, importers, models

        if source in models.available() and source not in hub.ALIASES:
            raise CommandError(
                f"{source} is an architecture, and {command} needs trained weights: give a model file with --model "
                f"({importers.SUPPORTED}); for one that holds weights only, add --arch {source}"
            )


def load_graph(source: str, arch: str | None) -> tuple[Graph, bool]:
    """The graph of a model file or of a repository of the hub, or of an architecture with random weights; and whether
    it came with weights. A name that is both an architecture and a short name of the hub is the former here: what is
    asked of it needs no trained weights, and so no network."""
    if _is_missing(source):
        from .. import ModelError, hub, models

        name = None if source in models.available() else hub.parse(source)
        if name is not None and arch is None:
            return hub.load(name).graph, True
        try:
            graph = models.build(source)
        except ModelError as error:
            raise CommandError(f"{source}: no such file, and {error}") from None
        if arch is not None:
            raise CommandError(f"{source} is an architecture; --arch is for a file that holds weights only")
        return graph, False
    from .. import importers

    return importers.load(source, arch=arch, quantized=True), True


def _is_missing(path: str) -> bool:
    """Whether there is no such file, rather than one that cannot be seen from here."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name that no file has
        return True
    except OSError:
        pass
    return False


def table(rows: list[tuple[Any, ...]], right: set[int]) -> list[str]:
    """Rows as aligned lines; the columns in ``right`` are flushed right."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]

    def line(row: list[str]) -> str:
        pairs = zip(row, widths, strict=True)
        return "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(pairs)).rstrip()

    return [line(row) for row in cells]
