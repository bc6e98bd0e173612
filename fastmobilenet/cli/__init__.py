"""The ``fastmobilenet`` command. Each subcommand has a module; this one holds what they share at the top: the parser,
and how errors end."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from . import bench, classify, convert, detect, evaluate, info, profile, quantize, verify
from .terminal import CommandError, drop_output, fail, replace_closed_streams, report, tell

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

#: The exit status where the reader of the output went away: that of a process which SIGPIPE (13) ends.
BROKEN_PIPE = 128 + 13

DESCRIPTION = """Run MobileNets on the CPU: classify pictures, find objects in them; look into, convert, quantise,
verify and measure models."""

EXAMPLES = """\
examples:
  fastmobilenet classify cat.jpg                              with the starter model, which knows ten classes
  fastmobilenet classify photos/ --model mobilenet_v2.onnx    any model file, and folders
  fastmobilenet evaluate --data photos/                       how often is it right?
  fastmobilenet bench                                         how fast is it here?
  fastmobilenet COMMAND --help                                more examples, and what is printed
"""

EPILOG = """\
exit status:
  0    all went well
  1    a picture or a model could not be used; standard error says which and why
  2    the command line is wrong
  130  interrupted with Ctrl-C
  141  the reader of the output went away

environment:
  FASTMOBILENET_NUM_THREADS  threads a run uses, where --threads does not say
  FASTMOBILENET_ISA          instruction set to use instead of the best one of this CPU
"""


class _Parser(argparse.ArgumentParser):
    """Help that cannot be written is an error, which argparse hides; complaints need nobody to read them."""

    def print_help(self, file: SupportsWrite[str] | None = None) -> None:
        print(self.format_help(), end="", file=file)

    def error(self, message: str) -> NoReturn:
        tell(f"{self.format_usage()}{self.prog}: error: {message}\n")
        raise SystemExit(2)


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        from .. import __version__

        print(f"fastmobilenet {__version__}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="fastmobilenet",
        description=DESCRIPTION,
        epilog=f"{EXAMPLES}\n{EPILOG}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in (classify, detect, evaluate, info, convert, quantize, verify, bench, profile):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process) and return its exit status."""
    replace_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name or label may hold what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")  # remarks of Pillow and NumPy, in a form that is for programmers
        return _finish(_guarded(argv))


def _guarded(argv: Sequence[str] | None) -> int:
    """The exit status, whatever happens; but --help, --version and a wrong command line leave with SystemExit."""
    try:
        try:
            args = make_parser().parse_args(argv)
        except SystemExit as leave:
            if not leave.code:
                sys.stdout.flush()  # here, where an error still has a place to go
            raise
        status: int = args.run(args)
        return status
    except KeyboardInterrupt:
        report("interrupted")
        return 130
    except BrokenPipeError:
        return BROKEN_PIPE
    except CommandError as error:
        return fail(str(error))
    except MemoryError:
        return fail("not enough memory; use fewer or smaller pictures")
    except (ValueError, OSError, ImportError) as error:  # a ModelError is a ValueError
        return fail(error)


def _finish(status: int) -> int:
    """Writes what is left to write, for Python would do so after the exit status is settled."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop_output(sys.stdout)
        return status or BROKEN_PIPE
    except (OSError, ValueError) as error:  # a full disk
        drop_output(sys.stdout)
        return status or fail(error)
    return status
