#!/usr/bin/env python3
"""Runs the two commands with which README.md begins, in the current folder: python tools/readme_setup.py.

Also `python tools/readme_setup.py --print` to see them, `--first` to run only the first. Stops at the first that fails;
what the first prints must be the right class for every photograph of examples/. .ci/run does that on a fresh checkout,
and has the tests of the second at its end.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path


def commands(readme: str) -> list[str]:
    """The lines of the first block of shell commands."""
    block = re.search(r"^```sh\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    if block is None:
        raise SystemExit("README.md has no block of shell commands")
    return [line for line in block[1].splitlines() if line.strip()]


def main(arguments: list[str]) -> None:
    first, second = commands(Path("README.md").read_text(encoding="utf-8"))
    if arguments == ["--print"]:
        print(first, second, sep="\n")
        return
    shown = subprocess.run(["bash", "-ec", first], check=True, stdout=subprocess.PIPE, text=True).stdout
    print(shown)
    lines = shown.splitlines()[-2 * len(list(Path("examples").glob("*.jpg"))) :]
    for path, answer in zip(lines[::2], lines[1::2], strict=True):
        if answer.split()[0] != Path(path.strip()).stem:
            raise SystemExit(f"{path} was taken for {answer}")
    if arguments != ["--first"]:
        subprocess.run(["bash", "-ec", second], check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
