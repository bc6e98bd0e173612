"""Races against other runtimes, and benchmarks of single layers. Start with bench/README.md."""

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

# `python -m bench.race` puts the repository first on the path. Its fastmobilenet folder can be used only where the
# extension was built in place; after a plain `pip install .` the installed package must come first.
_ROOT = Path(__file__).resolve().parent.parent
if not any((_ROOT / "fastmobilenet" / f"_native{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != _ROOT] + [str(_ROOT)]
