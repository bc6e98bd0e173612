"""Fuzzes the ONNX reader with coverage feedback. Not run by pytest:

    pip install atheris
    python -m tests.fuzz.fuzz_onnx --seeds corpus     # writes small valid files into corpus/
    python -m tests.fuzz.fuzz_onnx -timeout=5 -rss_limit_mb=600 corpus

A file is refused with ModelError or gives a network that runs. Anything else stops the fuzzer.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fastmobilenet.importers"]):
    from fastmobilenet.importers import onnx  # noqa: F401  (instrumented here, before the tests import it)

from tests.test_loader_robustness import try_to_load
from tests.test_onnx_robustness import SAMPLES, load


def main() -> None:
    if "--seeds" in sys.argv:
        folder = Path(sys.argv[sys.argv.index("--seeds") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in SAMPLES.items():
            (folder / f"{name}.onnx").write_bytes(data)
        return
    atheris.Setup(sys.argv, lambda data: try_to_load(data, load=load) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
