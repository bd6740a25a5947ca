"""A small stand-in for the Hugging Face hub, with the faults that a test asks for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlparse

COMMIT = "1" * 40


@dataclass
class Hub:
    """One repository ``org/name``. Faults apply to the file of that name.

    ``cut``: the first answer with this file's bytes ends after so many bytes. ``stall``: like ``cut``, but the connection
    stays open. ``corrupt``: other bytes than the hash says. ``absent``: listed, but not there.
    """

    files: dict[str, bytes]
    repo: str = "org/name"
    revisions: dict[str, str] = field(default_factory=lambda: {"main": COMMIT})
    gated: bool = False
    cut: dict[str, int] = field(default_factory=dict)
    stall: dict[str, int] = field(default_factory=dict)
    corrupt: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range header
    stalled: threading.Event = field(default_factory=threading.Event)
    release: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def ranges(self, name: str) -> list[str]:
        """The Range headers of all GETs of one file."""
        return [r for method, path, r in self.requests if method == "GET" and path.endswith(f"/{name}")]


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    server = _Server(hub)
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.release.set()
        server.shutdown()
        server.server_close()


def etag(name: str, data: bytes) -> str:
    """As the hub does: SHA-256 for large files, git's blob hash for small ones."""
    if name.endswith(".safetensors"):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: Hub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(urlparse(self.path).path)
        self.server.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        repo = self.server.hub.repo
        if path.startswith(f"/api/models/{repo}/revision/"):
            self.info(path.removeprefix(f"/api/models/{repo}/revision/"))
        elif path.startswith(f"/{repo}/resolve/"):
            revision, _, name = path.removeprefix(f"/{repo}/resolve/").partition("/")
            self.file(revision, name, body)
        else:
            self.refuse(401, "RepoNotFound")

    def info(self, revision: str) -> None:
        if self.server.hub.gated:
            return self.refuse(403, "GatedRepo")
        commit = self.server.hub.revisions.get(revision) or (revision if revision in self.server.hub.revisions.values() else "")
        if not commit:
            return self.refuse(404, "RevisionNotFound")
        siblings = [{"rfilename": n, "size": len(d), "blobId": "0" * 40} for n, d in self.server.hub.files.items()]
        text = json.dumps(
            {"id": self.server.hub.repo, "sha": commit, "siblings": siblings, "private": False, "tags": []}
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def file(self, revision: str, name: str, body: bool) -> None:
        if name not in self.server.hub.files or name in self.server.hub.absent:
            return self.refuse(404, "EntryNotFound")
        data = self.server.hub.files[name]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-") or 0)
        tag = etag(name, data)
        if name in self.server.hub.corrupt:
            data = bytes(b ^ 1 for b in data)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("X-Repo-Commit", self.server.hub.revisions.get(revision, revision))
        self.send_header("ETag", f'"{tag}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self.send(name, data[start:])

    def send(self, name: str, data: bytes) -> None:
        limit = self.server.hub.cut.pop(name, None)
        stall = self.server.hub.stall.pop(name, None)
        if limit is None and stall is None:
            self.wfile.write(data)
            return
        self.wfile.write(data[: limit if limit is not None else stall])
        self.wfile.flush()
        if stall is not None:
            self.server.hub.stalled.set()
            self.server.hub.release.wait(60)
        self.close_connection = True

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
