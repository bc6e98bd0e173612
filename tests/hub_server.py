"""A server that speaks what huggingface_hub asks of the hub: files of repositories by revision, with their hashes."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

#: As many bytes and more lie in the large file storage, which names them by SHA-256; git names the others itself.
LARGE = 10_000


@dataclass
class Repository:
    """revisions: branch or tag -> commit; commits: commit -> file name -> content."""

    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        """The commit, 40 hexadecimal digits."""
        digest = hashlib.sha1(repr((branch, sorted((k, hashlib.sha1(v).digest()) for k, v in files.items()))).encode())
        self.revisions[branch] = digest.hexdigest()
        self.commits[digest.hexdigest()] = files
        return digest.hexdigest()


def etag_of(data: bytes) -> str:
    if len(data) >= LARGE:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Hub:
    """``requests``: method and path of all that was asked. ``down``: answers 503 to all."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    gated: set[str] = field(default_factory=set)
    address: str = ""
    storage: str = ""  # another host: huggingface_hub follows redirects within one
    down: bool = False

    def add(self, name: str, files: dict[str, bytes], branch: str = "main") -> str:
        return self.repositories.setdefault(name, Repository()).commit(files, branch)


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(self.path.partition("?")[0])
            hub.requests.append(f"{self.command} {path}")
            if hub.down:
                return self.send(503, {}, b"", body)
            if path.startswith("/storage/"):  # where large files are
                digest = path.rpartition("/")[2]
                for repository in hub.repositories.values():
                    for files in repository.commits.values():
                        for data in files.values():
                            if etag_of(data) == digest:
                                return self.send(200, {"ETag": f'"{digest}"'}, data, body)
                return self.send(404, {}, b"", body)
            name, _, rest = path.strip("/").partition("/resolve/")
            revision, _, file = rest.partition("/")
            repository = hub.repositories.get(name)
            if repository is None:
                return self.send(401, {"X-Error-Code": "RepoNotFound"}, b"", body)
            if name in hub.gated:
                return self.send(403, {"X-Error-Code": "GatedRepo"}, b"", body)
            commit = repository.revisions.get(revision, revision)
            if commit not in repository.commits:
                return self.send(404, {"X-Error-Code": "RevisionNotFound"}, b"", body)
            data = repository.commits[commit].get(file)
            headers = {"X-Repo-Commit": commit}
            if data is None:
                return self.send(404, {**headers, "X-Error-Code": "EntryNotFound"}, b"", body)
            digest = etag_of(data)
            if len(data) < LARGE:
                return self.send(200, {**headers, "ETag": f'"{digest}"'}, data, body)
            headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            return self.send(302, {**headers, "Location": f"{hub.storage}/storage/{digest}"}, b"", body)

        def send(self, status: int, headers: dict[str, str], data: bytes, body: bool) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub on a port of this machine, as long as the context lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    hub.storage = hub.address.replace("127.0.0.1", "localhost")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
