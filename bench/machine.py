"""What a result file says about the machine, and the CPU time that others took from a race."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
from pathlib import Path

#: framework -> the distribution that carries its version
DISTRIBUTIONS = {
    "fastmobilenet": "fastmobilenet",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "litert": "ai-edge-litert",
    "ncnn": "ncnn",
    "mnn": "MNN",
    "torch": "torch",
    "numpy": "numpy",
}

#: instruction sets that decide which kernels a framework has
FLAGS = (
    "sse4_2 avx avx2 fma f16c avx512f avx512bw avx512vl avx512dq avx512_vnni avx512_bf16 avx512_fp16 avx_vnni "
    "amx_tile amx_bf16 amx_int8 asimd asimdhp asimddp i8mm bf16 sve"
).split()

REPOSITORY = Path(__file__).resolve().parent.parent


def describe() -> dict:
    """The CPU (model, cores, caches, SIMD flags), memory, kernel and Python; nothing that names the host."""
    info = _cpuinfo()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "family_model_stepping": [info.get(k) for k in ("cpu family", "model", "stepping")],
        "architecture": platform.machine(),
        "logical_cpus": os.cpu_count(),
        "usable_cpus": usable_cpus(),
        "caches": _caches(),
        "flags": [f for f in FLAGS if f in flags],
        "hypervisor": "hypervisor" in flags,
        "frequency_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "transparent_hugepages": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def versions() -> dict[str, str | None]:
    """framework -> installed version, None where it is not installed."""
    found: dict[str, str | None] = {}
    for framework, distribution in DISTRIBUTIONS.items():
        try:
            found[framework] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[framework] = None
    return found


def command_line(module: str, arguments: list[str]) -> str:
    return f"python -m {module} {shlex.join(arguments)}".strip()


def without_paths(text: str) -> str:
    """The text with this machine's folders shortened, for a file that others read."""
    folders = (str(REPOSITORY), sys.prefix, sys.base_prefix, tempfile.gettempdir(), str(Path.home()))
    for folder, name in zip(folders, (".", "PREFIX", "PREFIX", "TMP", "~"), strict=True):
        if len(folder) > 1:
            text = text.replace(folder, name)
    return text


# --- CPUs ---------------------------------------------------------------------------------------------------


def usable_cpus() -> list[int]:
    """The logical CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def choose_cpus(count: int) -> list[int]:
    """`count` CPUs to pin a race to: one of each physical core first, and CPU 0, which serves most
    interrupts, last. Fewer where there are fewer."""
    first: list[int] = []
    rest: list[int] = []
    cores: set[str] = set()
    for cpu in reversed(usable_cpus()):
        topology = f"/sys/devices/system/cpu/cpu{cpu}/topology"
        core = f"{_read(topology + '/physical_package_id')}:{_read(topology + '/core_id') or cpu}"
        (rest if core in cores else first).append(cpu)
        cores.add(core)
    return sorted((first + rest)[:count])


def cpu_times(cpus: list[int]) -> dict[str, int]:
    """Clock ticks of the CPUs since boot: all of them, those idle, and those stolen by the hypervisor; zeros where
    unknown."""
    ticks = {"total": 0, "idle": 0, "steal": 0}
    wanted = {f"cpu{cpu}" for cpu in cpus}
    for line in (_read("/proc/stat") or "").splitlines():
        name, *fields = line.split()
        if name in wanted:
            user, nice, system, idle, wait, irq, softirq, steal = (int(f) for f in fields[:8])
            # The guest times that follow are part of user and nice.
            ticks["total"] += user + nice + system + idle + wait + irq + softirq + steal
            ticks["idle"] += idle + wait
            ticks["steal"] += steal
    return ticks


def process_ticks(pid: int) -> int:
    """Clock ticks of CPU time that the process has used; 0 where unknown."""
    text = _read(f"/proc/{pid}/stat") or ""
    fields = text.rpartition(")")[2].split()  # the name before may hold blanks
    return int(fields[11]) + int(fields[12]) if fields else 0


def frequencies_mhz(cpus: list[int]) -> list[float]:
    """The current clock of each CPU as the kernel reports it; empty where it does not."""
    found: dict[int, float] = {}
    cpu = -1
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "processor":
            cpu = int(value)
        elif key.strip() == "cpu MHz":
            found[cpu] = float(value)
    return [found[c] for c in cpus if c in found]


def _cpuinfo() -> dict[str, str]:
    """The first CPU's fields."""
    fields: dict[str, str] = {}
    for line in (_read("/proc/cpuinfo") or "").splitlines():
        if not line.strip():
            break
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    return fields


def _caches() -> dict[str, str]:
    caches: dict[str, str] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level = _read(f"{index}/type"), _read(f"{index}/level")
        if kind != "Instruction":
            caches[f"L{level}"] = _read(f"{index}/size") or "unknown"
    return caches


def _memory_gib() -> float | None:
    for line in (_read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            return round(int(line.split()[1]) / 2**20, 1)
    return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
