"""The model that comes with the package: small, and for photographs of ten classes.

tools/train_starter.py made it, from CIFAR-10; tools/starter.log says how. ``Model.load()`` and the commands use it
where no other model is named.
"""

from __future__ import annotations

import os

from .errors import ModelError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

NOTICE = (
    f"this is the starter model, which knows ten classes only: {', '.join(CLASSES)}. "
    "A larger one: {how}, with a .tflite, .onnx, .keras, .safetensors or .pth file, or mobilenet_v2 of the hub"
)

_FILE = os.path.join(os.path.dirname(__file__), "starter.fmn")
_told = False


def path() -> str:
    """The path of the model file. Raises ModelError where the package was installed without it."""
    if not os.path.exists(_FILE):
        raise ModelError(f"{_FILE} is missing: install the package again, or name a model file")
    return _FILE


def notice(how: str) -> str:
    """One line: what the model knows, and ``how`` to use another one."""
    return NOTICE.format(how=how)


def used() -> str:
    """:func:`path`, and once a process the line as a message of the logger "fastmobilenet". Unless the program sets
    logging up otherwise, it goes to standard error."""
    global _told
    found = path()
    if not _told:
        _told = True
        import logging  # imported here: most programs name their model

        logging.getLogger("fastmobilenet").warning("%s", notice("Model.load(FILE)"))
    return found
