"""An HTTP proxy before an S3 server that makes some requests fail as real stores and networks do."""

import contextlib
import http.client
import random
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

FAULTS = ("503", "500", "refused", "slow", "cut", "lost")
"""Answers of the store's own; the connection is reset before the request is passed on; the answer comes late; its body
ends early; the request is done and the answer is lost."""
SLOW_SECONDS = 1.0

_NOT_PASSED_ON = {"connection", "keep-alive", "transfer-encoding", "expect", "proxy-connection"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Quiet: clients that are killed reset their connections."""


class FaultProxy:
    """A proxy that runs, see `fault_proxy`.

    Attributes:
        endpoint: where it listens.
        rate: share of the requests that fail, 0 to 1; may be changed at any time.
        kinds: of `FAULTS`.
        counts: requests by fault; "" for those that passed.
        only: methods (GET, PUT, ...) that may fail; empty: all.
        left: how many more may fail.
    """

    def __init__(self, backend: str, *, seed: int) -> None:
        self.backend = urlsplit(backend).netloc
        self.rate = 0.0
        self.kinds: tuple[str, ...] = FAULTS
        self.only: tuple[str, ...] = ()
        self.left = sys.maxsize
        self.counts: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._connections = threading.local()
        self.server = _Server(("127.0.0.1", 0), _handler(self))
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def fail(self, *kinds: str, rate: float = 1.0, only: tuple[str, ...] = (), at_most: int = sys.maxsize) -> None:
        """From now on; without kinds, all of them; at rate 0 nothing. Counts begin anew."""
        with self._lock:
            self.kinds, self.rate, self.only, self.left = kinds or FAULTS, rate, only, at_most
            self.counts.clear()

    @property
    def num_faults(self) -> int:
        """Requests that failed."""
        return sum(count for kind, count in self.counts.items() if kind)

    def draw(self, method: str) -> str:
        """The fault of the next request, or an empty text."""
        with self._lock:
            may_fail = self.left > 0 and (not self.only or method in self.only)
            fails = may_fail and self._random.random() < self.rate
            self.left -= fails
            kind = self._random.choice(self.kinds) if fails else ""
            self.counts[kind] += 1
        return kind

    def forward(self, method: str, path: str, headers: dict[str, str], body: bytes) -> http.client.HTTPResponse:
        """The server's answer, over this thread's connection to it."""
        for again in (True, False):
            connection = getattr(self._connections, "value", None)
            if connection is None:
                connection = self._connections.value = http.client.HTTPConnection(self.backend, timeout=120)
            try:
                connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
                for name, value in headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                answer: http.client.HTTPResponse = connection.getresponse()
                return answer
            except (http.client.HTTPException, OSError):
                connection.close()
                self._connections.value = None
                if not again:
                    raise
        raise AssertionError("the second attempt returns or raises")


def _handler(proxy: FaultProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            body = self._body()
            kind = proxy.draw(self.command)
            if kind in ("503", "500"):
                self._answer_with_error(int(kind))
                return
            if kind == "refused":
                self._reset()
                return
            headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED_ON}
            headers["Content-Length"] = str(len(body))
            try:
                answer = proxy.forward(self.command, self.path, headers, body)
                content = answer.read()
            except (http.client.HTTPException, OSError):  # the server is away, as it may be
                self._reset()
                return
            if kind == "lost":
                self._reset()
                return
            if kind == "slow":
                time.sleep(SLOW_SECONDS)
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in (*_NOT_PASSED_ON, "content-length"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
            if length is not None:
                self.send_header("Content-Length", length)
            self.end_headers()
            if kind == "cut" and content:
                self.wfile.write(content[: len(content) // 2])
                self._reset()
                return
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _serve

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            pieces = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return b"".join(pieces)

        def _answer_with_error(self, status: int) -> None:
            code = {503: "SlowDown", 500: "InternalError"}[status]
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>made up</Message></Error>".encode()
            self.send_response_only(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(text)

        def _reset(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    return Handler


@contextlib.contextmanager
def fault_proxy(backend: str, *, seed: int = 0) -> Iterator[FaultProxy]:
    """A proxy before the server at `backend`, which passes everything on until `rate` is set."""
    proxy = FaultProxy(backend, seed=seed)
    thread = threading.Thread(target=proxy.server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.server.shutdown()
        proxy.server.server_close()
        thread.join()
