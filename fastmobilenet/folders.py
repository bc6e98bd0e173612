"""The pictures in a folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

#: What is taken for a picture in a folder. A file that is named itself is tried whatever its name.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def pictures(folder: str, closed: list[OSError]) -> Iterator[str]:
    """The paths of the pictures in a folder and the folders below it, sorted in each. ``closed`` gets the errors of
    folders that cannot be read.

    Links to folders are not followed, names that begin with a dot are left out, and so are pipes, sockets and devices:
    they are no pictures, whatever their names.
    """
    for root, folders, files in os.walk(folder, onerror=closed.append):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(files):
            path = os.path.join(root, name)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and not _is_special(path):
                yield path


def _is_special(path: str) -> bool:
    """Whether it is something other than a file. A link that leads nowhere is a file that is missing."""
    try:
        return not stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
