"""Fuzzes the TFLite reader with coverage feedback. Not run by pytest:

    pip install atheris
    python -m tests.fuzz.fuzz_tflite --seeds corpus     # writes small valid files into corpus/
    python -m tests.fuzz.fuzz_tflite -timeout=5 -rss_limit_mb=600 corpus

A file is refused with ModelError or gives a network that runs, dequantised and on bytes. Anything else stops the
fuzzer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fastmobilenet.importers"]):
    from fastmobilenet.importers import tflite  # noqa: F401  (instrumented here, before the tests import it)

from tests.test_loader_robustness import SAMPLES, as_it_is, try_to_load


def one_input(data: bytes) -> None:
    try_to_load(data)
    try_to_load(data, load=as_it_is)


def main() -> None:
    if "--seeds" in sys.argv:
        folder = Path(sys.argv[sys.argv.index("--seeds") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        for dtype, data in SAMPLES.items():
            (folder / f"{dtype}.tflite").write_bytes(data)
        return
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
