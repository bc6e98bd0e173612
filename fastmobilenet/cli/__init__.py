"""The ``fastmobilenet`` command. Each subcommand has a module; this one holds what they share at the top: the parser,
and how errors end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import bench, classify, info, profile
from .terminal import CommandError, fail, report

DESCRIPTION = "Run MobileNets on the CPU: classify pictures, look into a model file, measure its speed."

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


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> None:
        from .. import __version__

        print(f"fastmobilenet {__version__}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fastmobilenet",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and leave")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for module in (classify, info, bench, profile):
        module.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: that of the process) and return its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name or label may hold what the terminal's encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        args = make_parser().parse_args(argv)
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        report("interrupted")
        return 130
    except BrokenPipeError:
        _forget_stdout()
        return 141
    except CommandError as error:
        return fail(str(error))
    except MemoryError:
        return fail("not enough memory; use fewer or smaller pictures")
    except (ValueError, OSError, ImportError) as error:  # a ModelError is a ValueError
        return fail(error)


def _forget_stdout() -> None:
    """What is still buffered has no reader: send it nowhere, or Python complains about it at exit."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass  # stdout is no file, so there is no pipe to forget
