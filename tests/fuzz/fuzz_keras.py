"""Fuzzes the readers of .h5 and .keras files with coverage feedback. Not run by pytest:

    pip install atheris
    python -m tests.fuzz.fuzz_keras --seeds corpus     # writes small valid files and configs into corpus/
    python -m tests.fuzz.fuzz_keras -timeout=5 -rss_limit_mb=600 -max_len=100000 corpus

An input that begins as an HDF5 file or a zip archive is read as it is. Any other is the config.json of an archive,
which has its weights from a small network: the checksums of the archive would keep a fuzzer out.

A file is refused with ModelError or gives a network that runs. Anything else stops the fuzzer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fastmobilenet.importers"]):
    from fastmobilenet.importers import keras  # noqa: F401  (instrumented here, before the tests import it)

from tests.test_keras_robustness import NETWORKS, SAMPLES, load_parts
from tests.test_loader_robustness import try_to_load


def main() -> None:
    if "--seeds" in sys.argv:
        folder = Path(sys.argv[sys.argv.index("--seeds") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        configs = {f"keras{version}.json": json.dumps(net.config()).encode() for version, net in NETWORKS.items()}
        for name, data in (SAMPLES | configs).items():
            (folder / name).write_bytes(data)
        return
    atheris.Setup(sys.argv, lambda data: try_to_load(data, load=load_parts) and None)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
