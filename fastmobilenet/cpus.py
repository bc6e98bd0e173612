"""How many cores this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc"), sys: Path = Path("/sys")) -> int:
    """min(affinity mask, cgroup CPU quota, physical cores), at least 1. The folders are arguments for tests."""
    limits = [_affinity(), _quota(cgroup, proc), _physical_cores(sys)]
    return max(1, min(n for n in limits if n is not None))


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _quota(cgroup: Path, proc: Path) -> int | None:
    """CPU time per wall time of this process's control group and its parents (cgroup v2, then v1), rounded up."""
    best: float | None = None
    for line in (_read(proc / "self/cgroup") or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and controllers == "":
            root, v2 = cgroup, True
        elif "cpu" in controllers.split(","):
            root, v2 = cgroup / "cpu", False
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be the host's and not be there: its parents up to the root are.
        for group in (folder, *folder.parents):
            ratio = _ratio_v2(group) if v2 else _ratio_v1(group)
            if ratio is not None:
                best = ratio if best is None else min(best, ratio)
            if group == root:
                break
    return None if best is None else max(1, math.ceil(best))


def _ratio_v2(group: Path) -> float | None:
    words = (_read(group / "cpu.max") or "").split()
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
        return int(words[0]) / int(words[1])
    return None


def _ratio_v1(group: Path) -> float | None:
    quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")
    if quota and period and quota.isdigit() and period.isdigit() and int(period) > 0:
        return int(quota) / int(period)
    return None


def _physical_cores(sys: Path) -> int | None:
    """Cores, hyper-threads not counted: one core has one set of arithmetic units."""
    cores = set()
    for cpu in sorted((sys / "devices/system/cpu").glob("cpu[0-9]*/topology")):
        core, package = _read(cpu / "core_id"), _read(cpu / "physical_package_id")
        if core is not None and package is not None:
            cores.add((package, core))
    return len(cores) or None
