"""Sizes of the data caches of one core."""

from __future__ import annotations

import glob
import os
from functools import cache
from typing import NamedTuple


class Caches(NamedTuple):
    """Bytes. The defaults are small cores of today, for systems that do not tell."""

    l1: int = 32 << 10
    l2: int = 512 << 10


@cache
def caches(cpu: str | os.PathLike[str] = "/sys/devices/system/cpu/cpu0") -> Caches:
    """What the system tells about its first core."""
    sizes: dict[str, int] = {}
    for index in sorted(glob.glob(os.path.join(cpu, "cache", "index*"))):
        try:
            level, kind, size = (_read(os.path.join(index, name)) for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind in ("Data", "Unified") and size.endswith("K") and size[:-1].isdigit():
            sizes[level] = int(size[:-1]) << 10
    return Caches(sizes.get("1", Caches.l1), sizes.get("2", Caches.l2))


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read().strip()
