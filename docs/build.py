"""Makes the API reference: python docs/build.py FOLDER. Needs pdoc (pip install '.[docs]').

Fails at the first warning of a page, and where a name of the public interface has no docstring.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from pathlib import Path

import pdoc

import fastmobilenet

#: What users import; fastmobilenet.models comes with the first. Everything else is how it is made.
MODULES = (
    "fastmobilenet",
    "fastmobilenet.evaluation",
    "fastmobilenet.labelled",
    "fastmobilenet.preprocess",
    "fastmobilenet.labels",
    "fastmobilenet.profile",
    "fastmobilenet.benchmark",
    "fastmobilenet.verify",
    "fastmobilenet.graph",
    "fastmobilenet.starter",
)


def undocumented() -> list[str]:
    """The names of the package and methods of Model that lack a docstring."""
    missing = []
    for name in fastmobilenet.__all__:
        value = getattr(fastmobilenet, name)
        if not isinstance(value, str) and not inspect.getdoc(value):
            missing.append(name)
    for name, value in inspect.getmembers(fastmobilenet.Model):
        if not name.startswith("_") and name not in ("graph", "name", "threads") and not inspect.getdoc(value):
            missing.append(f"Model.{name}")
    return missing


def main(folder: str) -> None:
    if missing := undocumented():
        raise SystemExit(f"no docstring: {', '.join(missing)}")
    warnings.simplefilter("error")
    # Annotations are shown as they are written where they are made of names that only type checkers import.
    warnings.filterwarnings("ignore", "Error parsing type annotation")
    # In the repository's folder, beside the installed package, which is the one that is documented.
    warnings.filterwarnings("ignore", "'fastmobilenet' may refer to either")
    pdoc.render.configure(docformat="restructuredtext", footer_text=f"fastmobilenet {fastmobilenet.__version__}")
    pdoc.pdoc(*MODULES, output_directory=Path(folder))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
