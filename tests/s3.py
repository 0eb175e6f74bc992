"""An object store for tests: a real S3 server in a process of its own, and a proxy before it that fails as stores and networks do."""

from __future__ import annotations

import http.client
import random
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote

REFUSALS = {"500": (500, "InternalError"), "503": (503, "SlowDown"), "403": (403, "ExpiredToken")}
# drop: nothing done, no answer. lost: done, no answer. stall: done, no answer for STALL_S. late: as stall, and done only then.
# cut: done, and half of the answer's body.
KINDS = (*REFUSALS, "drop", "lost", "stall", "late", "cut")
STALL_S = 5.0  # past the timeouts of both sides: PATIENCE for the table, 3 s for the source
PATIENCE = {"timeout": "3s", "client_max_retries": "3", "client_retry_timeout": "4", "lance_aimd_max_retries": "0"}
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIATESTKEYOFTHESTORE",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-store",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_DEFAULT_REGION": "us-east-1",
}
SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=AKIATESTKEYOFTHESTORE/20260101/us-east-1/s3/aws4_request"}


class S3Server:
    """moto's S3 on a port of its own choice, for the length of a `with` block."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", "0"], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if found := re.search(r"Running on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise RuntimeError(f"the S3 server ended with code {self._process.wait()}")
        # One line a request: read them, or the pipe fills and the server stands still.
        self._drain = threading.Thread(target=self._process.stderr.read, daemon=True)
        self._drain.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._process.terminate()
        self._drain.join()
        with self._process:  # waits, and closes the pipe
            pass

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Status and body of one request, past any proxy."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, f"/{path}", body, SIGNED | headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def put(self, path: str, data: bytes) -> None:
        status, answer = self.ask("PUT", path, data)
        assert status == 200, answer

    def upload(self, folder: Path, path: str) -> None:
        """All files below a folder, as objects below a path."""
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            self.put(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())


@dataclass(frozen=True)
class Request:
    """One request as the proxy sees it."""

    operation: str  # GET | PUT | HEAD | DELETE | POST | LIST
    path: str  # bucket and key; of a LIST bucket and prefix
    conditional: bool = False  # a PUT that must not replace anything (If-None-Match)


Rule = Callable[[Request], str | None]  # the kind of fault to answer with, None to let it pass


def passing(_: Request) -> str | None:
    return None


def nth(kind: str, which: Callable[[int], bool], operation: str = ".*", path: str = "") -> Rule:
    """The fault for those of the matching requests, counted from 1, that `which` picks."""
    seen = 0

    def rule(request: Request) -> str | None:
        nonlocal seen
        if not (re.fullmatch(operation, request.operation) and re.search(path, request.path)):
            return None
        seen += 1
        return kind if which(seen) else None

    return rule


def since(kind: str, operation: str, path: str) -> Rule:
    """The fault for the first matching request and from then on for every request of that operation."""
    begun = False

    def rule(request: Request) -> str | None:
        nonlocal begun
        if not re.fullmatch(operation, request.operation):
            return None
        begun = begun or re.search(path, request.path) is not None
        return kind if begun else None

    return rule


def rate(share: float, seed: int, kinds: Sequence[str]) -> Rule:
    """A fault of one of the kinds for this share of all requests."""
    chance = random.Random(seed)
    return lambda _: chance.choice(kinds) if chance.random() < share else None


class Proxy:
    """Stands before the server on a port of its own, for the length of a `with` block."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.seen: list[Request] = []
        self.faults: list[tuple[str, Request]] = []
        self.edit: Callable[[Request, bytes], bytes] = lambda _, body: body  # what a store of another make answers
        self._rule = passing
        self._lock = threading.Lock()
        self.released = threading.Event()

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def faulty(self, rule: Rule) -> Iterator[list[tuple[str, Request]]]:
        """Faults as the rule says while in the block; yields those that were made."""
        with self._lock:
            self._rule, self.faults = rule, []
        try:
            yield self.faults
        finally:
            with self._lock:
                self._rule = passing

    def judge(self, request: Request) -> str | None:
        with self._lock:
            self.seen.append(request)
            kind = self._rule(request)
            if kind is not None:
                self.faults.append((kind, request))
            return kind


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    proxy: Proxy

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle of an answer is what these tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _answer(self) -> None:
        body = self._body()
        proxy, request = self.server.proxy, _request(self.command, self.path, conditional="If-None-Match" in self.headers)
        kind = proxy.judge(request)
        if kind in REFUSALS:
            self._refuse(*REFUSALS[kind])
            return
        if kind == "late":
            proxy.released.wait(STALL_S)
        if kind == "drop":
            self.close_connection = True
            return
        status, headers, content = self._upstream(body)
        if kind == "stall":
            proxy.released.wait(STALL_S)
        if kind in ("lost", "stall", "late"):
            self.close_connection = True
            return
        self._send(status, headers, proxy.edit(request, content), cut=kind == "cut")

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _upstream(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.proxy.upstream_port, timeout=60)
        try:
            documents_to_skip = ("transfer-encoding", "content-length", "connection", "expect")
            headers = {name: value for name, value in self.headers.items() if name.lower() not in documents_to_skip}
            connection.request(self.command, self.path, body, headers | {"Content-Length": str(len(body))})
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _send(self, status: int, headers: list[tuple[str, str]], content: bytes, *, cut: bool = False) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), str(len(content)))
        self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    def _refuse(self, status: int, code: str) -> None:
        content = (
            b""
            if self.command == "HEAD"
            else f"<Error><Code>{code}</Code><Message>{code}, says the test</Message></Error>".encode()
        )
        self._send(status, [("Content-Type", "application/xml")], content)

    def log_message(self, *_: object) -> None:
        pass


def _request(method: str, path: str, *, conditional: bool) -> Request:
    key, _, query = path.partition("?")
    key = unquote(key).strip("/")
    if method == "GET" and "list-type" in query:
        prefix = re.search(r"(?:^|&)prefix=([^&]*)", query)
        return Request("LIST", f"{key}/{unquote(prefix[1]) if prefix else ''}")
    return Request(method, key, conditional)
