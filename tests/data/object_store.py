"""An object store on loopback that serves a folder over HTTP and, as far as s3fs asks, as S3, with faults on demand."""

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import pytest


@dataclass
class Store:
    """What the server serves, and what goes wrong; paths are those within the folder, "bucket/0.tar".

    Attributes:
        folder: what is served.
        url: of the folder.
        missing: paths answered with 404.
        forbidden: paths answered with 403.
        stalls: seconds that each answer for a path takes.
        rates: bytes a second of the answers for a path.
        failures: statuses that the next answers for a path have.
        cuts: how many of the next answers for a path break off half-way.
        asked: number of requests by (method, path).
        sent: bytes of bodies by path.
        most_at_once: requests that were being answered at one time, at most.
        knows_ranges: whether parts of a file can be asked for; all of it is answered otherwise.
    """

    knows_ranges = True
    most_at_once = 0
    _open = 0
    _lock = threading.Lock()

    folder: Path
    url: str = ""
    missing: set[str] = field(default_factory=set)
    forbidden: set[str] = field(default_factory=set)
    stalls: dict[str, float] = field(default_factory=dict)
    rates: dict[str, int] = field(default_factory=dict)
    failures: dict[str, list[int]] = field(default_factory=dict)
    cuts: Counter[str] = field(default_factory=Counter)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)

    def requests(self, path: str) -> int:
        return sum(count for (_, asked), count in self.asked.items() if asked == path)

    @contextmanager
    def counted(self) -> Iterator[None]:
        with self._lock:
            self._open += 1
            self.most_at_once = max(self.most_at_once, self._open)
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1

    def put(self, path: str, content: bytes) -> str:
        """Store an object; returns its address."""
        (self.folder / path).write_bytes(content)
        return f"{self.url}/{path}"


@contextmanager
def serve(folder: Path) -> Iterator[Store]:
    """A store that is there within the block."""
    store = Store(folder)
    handler = type("Handler", (_Handler,), {"store": store})
    with _Server(("127.0.0.1", 0), handler) as server:
        store.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield store
        finally:
            server.shutdown()


def s3_environment(store: Store) -> dict[str, str]:
    """The environment in which s3:// is this store."""
    return {
        "AWS_ENDPOINT_URL": store.url,
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "unsaid-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def patch_storage(patch: pytest.MonkeyPatch, **settings: Any) -> None:
    """Set what `StorageSettings` calls so, for this process and those that it starts."""
    for name, value in settings.items():
        patch.setenv({"cache_dir": "FASTVTP_CACHE"}.get(name, f"FASTVTP_{name.upper()}"), str(value))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give an answer up are no news."""


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        with self.store.counted():
            self._answer(with_body=False)

    def do_GET(self) -> None:
        with self.store.counted():
            self._answer(with_body=True)

    def do_PUT(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        content = self.rfile.read(int(self.headers["Content-Length"]))
        (self.store.folder / path).write_bytes(content)
        self._send(200, b"", {"ETag": _tag(content)}, with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        url, store = urlsplit(self.path), self.store
        path, query = unquote(url.path).strip("/"), parse_qs(url.query, keep_blank_values=True)
        store.asked[self.command, path] += 1
        if "list-type" in query:
            self._list(path, query)
            return
        time.sleep(store.stalls.get(path, 0))
        if failures := store.failures.get(path):
            self._send(failures.pop(0), b"", {}, with_body=with_body)
            return
        file = store.folder / path
        if path in store.forbidden:
            self._send(403, _error("AccessDenied"), {}, with_body=with_body)
        elif path in store.missing or not file.is_file():
            self._send(404, _error("NoSuchKey"), {}, with_body=with_body)
        else:
            self._content(path, file.read_bytes(), with_body=with_body)

    def _content(self, path: str, content: bytes, *, with_body: bool) -> None:
        headers, status = {"ETag": _tag(content), "Accept-Ranges": "bytes"}, 200
        headers["Last-Modified"] = "Mon, 02 Nov 2026 10:00:00 GMT"
        if (asked := self.headers.get("Range")) and self.store.knows_ranges:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or len(content)), len(content) - 1) + 1
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            status, content = 206, content[start:end]
        if with_body:
            self.store.sent[path] += len(content)
        cut = with_body and self.store.cuts[path] > 0
        if cut:
            self.store.cuts[path] -= 1
        self._send(status, content, headers, with_body=with_body, cut=cut, rate=self.store.rates.get(path))

    def _send(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str],
        *,
        with_body: bool,
        cut: bool = False,
        rate: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        body = body[: len(body) // 2] if cut else body
        each = len(body) if rate is None else max(1, rate // 20)
        for at in range(0, len(body) if with_body else 0, max(1, each)):
            self.wfile.write(body[at : at + each])
            time.sleep(0 if rate is None else each / rate)
        if cut:
            self.close_connection = True

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix, delimiter = (query.get(name, [""])[0] for name in ("prefix", "delimiter"))
        root = self.store.folder / bucket
        entries, folders = [], set()
        for file in sorted(path for path in root.rglob("*") if path.is_file()):
            key = file.relative_to(root).as_posix()
            rest = key[len(prefix) :]
            if not key.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
            else:
                said = (
                    f"<Key>{escape(key)}</Key><Size>{file.stat().st_size}</Size><ETag>{_tag(file.read_bytes())}</ETag>"
                )
                entries.append(f"<Contents>{said}<LastModified>2026-11-02T10:00:00.000Z</LastModified></Contents>")
        entries += [f"<CommonPrefixes><Prefix>{escape(name)}</Prefix></CommonPrefixes>" for name in sorted(folders)]
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(entries)}</ListBucketResult>"
        self._send(200, body.encode(), {"Content-Type": "application/xml"}, with_body=True)


def _tag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
