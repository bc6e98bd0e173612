"""Class names: read from a text file, one a line, and matched to the number of classes of a network.

TensorFlow's ImageNet networks have 1001 classes, because class 0 is "background"; those of PyTorch and
Keras have 1000. :func:`fit` turns a list of one kind into one of the other, so that "tench" is class 1 of
the former and class 0 of the latter. No other mismatch is repaired.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from .files import open_regular

#: The first of TensorFlow's 1001 ImageNet labels.
BACKGROUND = "background"

#: The first of the labels of detectors.
DETECTOR_BACKGROUNDS = ("???", "__background__")

#: No list of class names is longer; a file above it is something else.
MAX_BYTES = 16 * 2**20


def read(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The lines of a UTF-8 text file, without the white space around them and without empty lines at the end.

    Raises OSError where the file cannot be read and ValueError where it is no text of at most 16 MiB.
    """
    path = os.fsdecode(path)
    with open_regular(path) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"{path}: a file of labels has at most {MAX_BYTES} bytes; give one name a line")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: labels must be UTF-8 text, one name a line ({error})") from None
    return split(text)


def split(text: str) -> tuple[str, ...]:
    """The lines of a text, without the white space around them and without empty lines at the end."""
    # Not str.splitlines: that also splits at form feeds and at U+2028, which would shift every class after it.
    lines = [line.strip() for line in text.replace("\r\n", "\n").split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return tuple(lines)


def fit(labels: Sequence[str], classes: int) -> tuple[str, ...] | None:
    """``labels`` as names of ``classes`` classes, or None where they do not fit.

    1001 names that begin with "background" fit 1000 classes, and the other way round. One name more than there are
    classes fits where the first is that of TensorFlow's or torchvision's lists for detectors, "???" or
    "__background__".
    """
    names = tuple(labels)
    if len(names) == classes:
        return names
    has_background = bool(names) and names[0].lower() == BACKGROUND
    if (len(names), classes) == (1001, 1000) and has_background:
        return names[1:]
    if len(names) == classes + 1 and names[0] in DETECTOR_BACKGROUNDS:
        return names[1:]
    if (len(names), classes) == (1000, 1001) and not has_background:
        return (BACKGROUND, *names)
    return None


def find(model_path: str | os.PathLike[str], classes: int) -> tuple[str, ...] | None:
    """The names in a file ``*labels*.txt`` that lies beside the model file, or None.

    A file counts if its names fit the number of classes; one whose count is equal goes before one that lacks
    "background" or has it in excess. Where two files fit equally well and differ, neither is taken.
    """
    exact: set[tuple[str, ...]] = set()
    adapted: set[tuple[str, ...]] = set()
    folder = os.path.dirname(os.fsdecode(model_path))
    try:
        files = os.listdir(folder or ".")
    except OSError:  # a folder that may be entered, but not listed
        return None
    for name in files:
        path = os.path.join(folder, name)
        if not name.endswith(".txt") or "labels" not in name[:-4]:
            continue
        try:
            names = read(path)
        except (OSError, ValueError):
            continue
        fitted = fit(names, classes)
        if fitted is not None:
            (exact if fitted == names else adapted).add(fitted)
    best = exact or adapted
    return best.pop() if len(best) == 1 else None
