"""A worker process as the race sees it: ask it, stop it while others run, close it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from bench import machine

#: A framework that needs longer than this to load or for one turn has failed, in seconds.
TIMEOUT = 900.0


class Contestant:
    """One framework's worker. It runs only inside the constructor and :meth:`ask`; at other times it is
    stopped (SIGSTOP), so that threads that still spin take no time from the next framework.

    A failure is kept in `error` (one line), and every later :meth:`ask` returns None.
    """

    def __init__(self, peer: str, threads: int, cpus: list[int], folder: Path, precision: str = "fp32") -> None:
        self.peer = peer
        self.error: str | None = None
        self.difference: float | None = None
        self.rounds: list[list[float]] = []
        self.ready: dict[str, Any] = {}
        self.output_file = folder / peer / "output.npy"
        self._log = folder / f"{peer}.log"
        task = {"peer": peer, "threads": threads, "precision": precision, "cpus": cpus, "folder": str(folder)}
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.worker", json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=machine.REPOSITORY,
                env=environment,
            )
        self.ready = self._reply() or {}
        self._stop()

    def ask(self, **request: Any) -> dict[str, Any] | None:
        """The worker's answer to one request, or None if it has failed, now or before."""
        if self.error is not None:
            return None
        assert self._process.stdin is not None
        self._signal("SIGCONT")
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:
            self.fail(self._death())
            return None
        reply = self._reply()
        self._stop()
        return reply

    def cpu_ticks(self) -> int:
        """Clock ticks of CPU time that the worker has used so far."""
        return machine.process_ticks(self._process.pid)

    def fail(self, reason: str) -> None:
        """Marks the framework as failed, for good, and ends its process."""
        self.error = machine.without_paths(" ".join(reason.split()))[:300]
        self.close()

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None and not stream.closed:
                with contextlib.suppress(OSError):  # what was still to be written has no reader any more
                    stream.close()

    def _reply(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        timer = threading.Timer(TIMEOUT, self._process.kill)
        timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            timer.cancel()
        message = json.loads(line) if line else {"error": self._death()}
        if "error" in message:
            self.fail(message["error"])
            return None
        return message

    def _death(self) -> str:
        code = self._process.wait()
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return f"the process ended with code {code}: {lines[-1] if lines else 'no message'}"

    def _stop(self) -> None:
        if self.error is None:
            self._signal("SIGSTOP")

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):  # Windows has neither: there a worker merely waits
            self._process.send_signal(getattr(signal, name))
