"""Fuzzes the reader of .fmn files with coverage feedback. Not run by pytest:

    pip install atheris
    python -m tests.fuzz.fuzz_fmn --seeds corpus     # writes small valid files into corpus/
    python -m tests.fuzz.fuzz_fmn -timeout=5 -rss_limit_mb=600 corpus

A file is refused with ModelError or gives a network that runs. Anything else stops the fuzzer. The checksum of every
input is made right first, or hardly one would get behind it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fastmobilenet.importers", "fastmobilenet.attributes"]):
    from fastmobilenet.importers import fmn  # instrumented here, before the tests import it

from tests.conftest import build_small_graph
from tests.fmn_files import detector, everything, quantised, reseal, to_bytes
from tests.test_loader_robustness import try_to_load


def main() -> None:
    if "--seeds" in sys.argv:
        folder = Path(sys.argv[sys.argv.index("--seeds") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        for name, graph in (
            ("floats", everything()),
            ("bytes", quantised()),
            ("detector", detector()),
            ("small", build_small_graph(softmax=True)),
        ):
            (folder / f"{name}.fmn").write_bytes(to_bytes(graph))
        return
    atheris.Setup(sys.argv, lambda data: try_to_load(reseal(data), load=fmn.load) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
