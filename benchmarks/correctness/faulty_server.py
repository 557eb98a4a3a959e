"""An HTTP server on the loopback that fails on demand: it serves a folder of shards, or forwards to
another server (S3).

Faults happen on real sockets: a reset is a TCP reset, a stall is a connection without traffic.
"""

import collections
import contextlib
import email.utils
import hashlib
import http.client
import os
import pathlib
import random
import re
import socket
import struct
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BODY_FAULTS = ("reset", "503", "stall", "truncated", "short", "long")
"""Faults of a response with a body.

reset: a TCP reset after half of the body. 503: that status and no body. stall: half of the body,
then silence. truncated: half of the body, then an orderly close. short: half of the body, with a
matching Content-Length. long: seven extra bytes, with a matching Content-Length.
"""
HEAD_FAULTS = ("reset", "503", "stall", "short", "long")
"""Faults of a HEAD response; short and long falsify its Content-Length."""
REFUSALS = {"503": 503, "missing": 404, "refused": 403}
"""Statuses of the faults that replace the whole answer."""


@dataclass(frozen=True)
class Exchange:
    """A request, as passed to a fault plan."""

    method: str
    path: str
    number: int
    """Requests to this server before this one."""


FaultPlan = Callable[[Exchange], str | None]
"""The fault of a request: a name above, "garbled" (one byte of the body is inverted), "missing"
(404), "refused" (403), or None."""


def no_faults(exchange: Exchange) -> str | None:
    """Answer every request."""
    return None


def always(fault: str, name: str = "", *, method: str | None = None) -> FaultPlan:
    """Fail every request whose path contains `name`."""
    return lambda exchange: (
        fault if name in exchange.path and method in (None, exchange.method) else None
    )


def every(number: int, method: str, fault: str) -> FaultPlan:
    """Fail each shard's first request of a method, and every `number`-th after it."""
    requests: collections.Counter[str] = collections.Counter()

    def plan(exchange: Exchange) -> str | None:
        if exchange.method != method:
            return None
        requests[exchange.path] += 1
        return fault if requests[exchange.path] % number == 1 % number else None

    return plan


def at_random(share: float, seed: int = 0) -> FaultPlan:
    """Fail a random share of the requests, each with a random fault of its method."""
    draws = random.Random(seed)

    def plan(exchange: Exchange) -> str | None:
        if draws.random() >= share:
            return None
        return draws.choice(HEAD_FAULTS if exchange.method == "HEAD" else BODY_FAULTS)

    return plan


@dataclass
class Answer:
    """The response of a server without faults."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    length: int | None = None
    """Content-Length, where it differs from the body's (HEAD)."""


@dataclass
class FaultyServer:
    """Serves `source`: a folder, or the URL of a server to forward to. Use as a context manager."""

    source: pathlib.Path | str
    plan: FaultPlan = no_faults
    stall: float = 30.0
    """Seconds after which the server closes a stalled connection."""
    injected: collections.Counter[str] = field(default_factory=collections.Counter)
    """Faults so far, by name."""
    history: int | None = None
    """Length of `requests`, which keeps the newest; None for all."""

    def __post_init__(self) -> None:
        self.requests: collections.deque[tuple[str, str, str]] = collections.deque(
            maxlen=self.history
        )
        """(method, path, Range header) of each request."""
        self._count = 0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), daemon=True
        )

    def __enter__(self) -> "FaultyServer":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """http://127.0.0.1:port"""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fault(self, method: str, path: str, byte_range: str) -> str | None:
        """Record a request and choose its fault."""
        with self.lock:
            fault = self.plan(Exchange(method, path, self._count))
            self._count += 1
            self.requests.append((method, path, byte_range))
            if fault is not None:
                self.injected[fault] += 1
            return fault

    def answer(self, handler: BaseHTTPRequestHandler) -> Answer:
        """The response without faults."""
        return (
            _forward(str(self.source), handler)
            if isinstance(self.source, str)
            else _file(self.source, handler)
        )


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, faulty: FaultyServer) -> None:
        self.faulty = faulty
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignore clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *arguments: object) -> None:
        """Log nothing: `FaultyServer.requests` is the record."""

    def _serve(self) -> None:
        faulty = self.server.faulty
        fault = faulty.fault(self.command, self.path, self.headers.get("Range", ""))
        if fault in REFUSALS:
            self._send(Answer(REFUSALS[fault], [("Content-Type", "text/plain")], b"no"))
            return
        answer = faulty.answer(self)
        body = answer.body
        if answer.status >= 300:
            fault = None
        if fault == "garbled" and body:
            body = (
                body[: len(body) // 2]
                + bytes([body[len(body) // 2] ^ 255])
                + body[len(body) // 2 + 1 :]
            )
        elif fault == "short":
            body = body[: len(body) // 2]
            answer.length = None if answer.length is None else answer.length // 2
        elif fault == "long":
            body += b"toomuch"
            answer.length = None if answer.length is None else answer.length + 7
        broken = fault in ("reset", "stall", "truncated")
        announced = len(body) if answer.length is None else answer.length
        self._send(
            Answer(
                answer.status, answer.headers, body[: len(body) // 2] if broken else body, announced
            )
        )
        if fault == "stall":
            faulty.closing.wait(faulty.stall)
        if fault == "reset":  # closing then discards unsent bytes and sends RST
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if broken:
            self.close_connection = True
        if fault == "reset":
            self.connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers:
            if name.lower() not in (
                "content-length",
                "connection",
                "transfer-encoding",
                "date",
                "server",
            ):
                self.send_header(name, value)
        self.send_header(
            "Content-Length", str(len(answer.body) if answer.length is None else answer.length)
        )
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(answer.body)
                self.wfile.flush()


def tag_of(path: pathlib.Path) -> str:
    """The ETag of a file."""
    facts = path.stat()
    version = f"{facts.st_size} {facts.st_mtime_ns} {path.name}"
    return f'"{hashlib.sha256(version.encode()).hexdigest()[:16]}"'


def _file(folder: pathlib.Path, handler: BaseHTTPRequestHandler) -> Answer:
    """A file of the folder, or the requested range of it."""
    path = folder / urllib.parse.unquote(handler.path.partition("?")[0]).lstrip("/")
    if not path.is_file():
        return Answer(404, [("Content-Type", "text/plain")], b"missing")
    facts = path.stat()
    headers = [
        ("ETag", tag_of(path)),
        ("Last-Modified", email.utils.formatdate(facts.st_mtime, usegmt=True)),
        ("Accept-Ranges", "bytes"),
        ("Content-Type", "application/x-tar"),
    ]
    if handler.command == "HEAD":
        return Answer(200, headers, length=facts.st_size)
    requested = re.fullmatch(r"bytes=(\d+)-(\d*)", handler.headers.get("Range", ""))
    with path.open("rb") as file:
        if requested is None:
            return Answer(200, headers, file.read())
        start = int(requested[1])
        last = min(int(requested[2] or facts.st_size), facts.st_size - 1)
        if start > last:
            return Answer(416, [*headers, ("Content-Range", f"bytes */{facts.st_size}")])
        file.seek(start)
        body = file.read(last + 1 - start)
    return Answer(206, [*headers, ("Content-Range", f"bytes {start}-{last}/{facts.st_size}")], body)


def _forward(upstream: str, handler: BaseHTTPRequestHandler) -> Answer:
    """The response of the server at `upstream`."""
    target = urllib.parse.urlsplit(upstream)
    body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    connection = http.client.HTTPConnection(target.hostname or "127.0.0.1", target.port, timeout=60)
    try:
        headers = {
            name: value for name, value in handler.headers.items() if name.lower() != "connection"
        }
        connection.request(handler.command, handler.path, body, headers)
        response = connection.getresponse()
        data = response.read()
        length = response.getheader("Content-Length")
        reported = int(length) if handler.command == "HEAD" and length is not None else None
        return Answer(response.status, response.getheaders(), data, reported)
    finally:
        connection.close()


def put_into_s3(paths: list[str], endpoint: str, bucket: str) -> list[str]:
    """Upload shards to an S3 API on this machine and return their s3:// URLs."""
    import s3fs

    system = s3fs.S3FileSystem(endpoint_url=endpoint, skip_instance_cache=True)
    system.makedirs(bucket, exist_ok=True)
    urls = [f"s3://{bucket}/{os.path.basename(path)}" for path in paths]
    for path, url in zip(paths, urls):
        system.put_file(path, url)
    return urls
