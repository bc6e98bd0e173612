"""Benchmarks run on one thread of one CPU, and their JSON says which machine that was."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

for variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    if "numpy" in sys.modules and os.environ.get(variable) != "1":
        raise pytest.UsageError(f"NumPy is loaded already and may use many threads: run with {variable}=1")
    os.environ[variable] = "1"

from bench import machine  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def _one_cpu() -> Iterator[None]:
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, machine.choose_cpus(1))
    yield
    os.sched_setaffinity(0, before)


def pytest_benchmark_generate_machine_info() -> dict:
    return machine.describe()


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict) -> None:
    output_json["kind"] = "layers"
    output_json["command"] = machine.command_line("pytest", list(config.invocation_params.args))
    output_json["versions"] = machine.versions()
    for entry in output_json["benchmarks"]:
        entry["stats"].pop("data", None)  # ten times the size of all the rest
