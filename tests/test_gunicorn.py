"""A web server that loads the model before it forks its workers: a real ``gunicorn --preload``."""

from __future__ import annotations

import contextlib
import http.client
import io
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmobilenet import Model, starter

from .samples import pixels

pytestmark = [
    pytest.mark.fork,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="gunicorn forks, and there is no fork here"),
]

APP = """
import io, os
import numpy as np
from PIL import Image
from fastmobilenet import Model

model = Model.load(threads=2)
model.run(np.zeros((3, 32, 32, 3), np.uint8))  # the threads of the pool are there when the workers are forked
loaded_by = os.getpid()

def app(environ, start_response):
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    out = model.run(Image.open(io.BytesIO(body)))
    start_response("200 OK", [("Worker", str(os.getpid())), ("Loaded-By", str(loaded_by))])
    return [out.tobytes()]
"""

#: Seconds after which the server is taken to hang; a busy machine takes a few for what is below.
PATIENCE = 60


class Server:
    """A running gunicorn with 2 workers, and what came back from it."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self.workers: set[int] = set()
        self.wrong: list[str] = []

    def ask(self, body: bytes, wanted: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("POST", "/", body)
            answer = connection.getresponse()
            found = answer.read()
        except OSError as error:
            self.wrong.append(repr(error))
            return
        finally:
            connection.close()
        if (answer.status, found) != (200, wanted):
            self.wrong.append(f"status {answer.status}, {len(found)} bytes")
            return
        self.workers.add(int(answer.headers["Worker"]))
        if int(answer.headers["Loaded-By"]) != self.process.pid:
            self.wrong.append("a worker has loaded the model itself")

    def serve(self, pictures: list[tuple[bytes, bytes]], done: Callable[[], bool]) -> None:
        """Four clients send all pictures, and go on until ``done``, or until something is wrong."""
        end = time.monotonic() + PATIENCE

        def client(first: int) -> None:
            while True:
                for i in range(len(pictures)):
                    self.ask(*pictures[(first + i) % len(pictures)])
                if done() or self.wrong or time.monotonic() > end:
                    return

        clients = [threading.Thread(target=client, args=(3 * i,), daemon=True) for i in range(4)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join(3 * PATIENCE)
        assert not any(thread.is_alive() for thread in clients)


@contextlib.contextmanager
def gunicorn(start_python: Callable[..., Any], folder: Path, *options: str) -> Iterator[Server]:
    """The server, on a port of its own; at the end it must go by itself, and take its workers along."""
    (folder / "served.py").write_text(APP)
    log = folder / "log.txt"
    # The socket is made here: the port is sure to be free, and who connects early waits until a worker accepts.
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening, log.open("w") as output:
        port, handle = listening.getsockname()[1], listening.fileno()
        process = start_python(
            *("-m", "gunicorn", "--preload", "-w", "2", "--timeout", str(2 * PATIENCE)),
            *("--bind", f"fd://{handle}", *options, "served:app"),
            cwd=folder, stdout=output, stderr=subprocess.STDOUT, pass_fds=(handle,),
        )  # fmt: skip
    server = Server(process, port)
    try:
        yield server
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
        for pid in server.workers:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
    finally:
        if process.poll() is None:
            process.terminate()  # the master ends its workers
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
            process.wait()
        print(log.read_text())  # pytest shows it with a failure
    assert "Traceback" not in log.read_text()


def compressed(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("options", [(), ("--threads", "3")], ids=["processes", "threads"])
def test_preloaded(options: tuple[str, ...], start_python: Callable[..., Any], tmp_path: Path) -> None:
    """Both workers give the bits of this process, side by side; so does one that is forked in place of a dead one."""
    pytest.importorskip("gunicorn")
    model = Model.load(starter.path())
    shapes = [(32, 32), (33, 57), (240, 320), (64, 48), (97, 31)] * 2
    inputs = [pixels(*shape, 3, seed=i) for i, shape in enumerate(shapes)]
    pictures = [(compressed(x), model.run(x).tobytes()) for x in inputs]
    assert len({wanted for _, wanted in pictures}) == len(pictures)
    with gunicorn(start_python, tmp_path, *options) as server:
        server.serve(pictures, lambda: len(server.workers) == 2)
        assert not server.wrong
        assert len(server.workers) == 2
        assert server.process.pid not in server.workers
        dead = min(server.workers)
        server.workers.remove(dead)
        os.kill(dead, signal.SIGKILL)
        server.serve(pictures, lambda: len(server.workers) == 2)
        assert not server.wrong  # it had nothing to do when it died
        assert len(server.workers) == 2
        assert dead not in server.workers
