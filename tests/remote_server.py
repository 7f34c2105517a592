"""A real S3-protocol server on the loopback, and in front of it a proxy that counts, delays, and fails on purpose."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)
DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # with the query
    range: str
    nbytes: int  # of the answer
    sent: int  # bytes of the request
    others: int  # requests in flight when it was answered


@dataclass
class Proxy:
    """What went through, and what is to go wrong."""

    upstream: int  # port
    latency: float = 0.0  # seconds, before each answer
    refuse: Callable[[str, str], bytes | None] = lambda method, path: None  # the answer with which to fail
    requests: list[Request] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reset(self) -> None:
        self.latency, self.refuse = 0.0, lambda method, path: None
        self.requests.clear()
        self.most_in_flight = 0

    def bytes_of(self, suffix: str) -> int:
        """Bytes of the answers with files of such names."""
        return sum(r.nbytes for r in self.requests if r.method == "GET" and r.path.partition("?")[0].endswith(suffix))

    def serve(self) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def _pass_on(self) -> None:
            with proxy.lock:
                proxy.in_flight += 1
                proxy.most_in_flight = max(proxy.most_in_flight, proxy.in_flight)
            try:
                self._answer(self._body())
            finally:
                with proxy.lock:
                    proxy.in_flight -= 1

        def _body(self) -> bytes:
            if self.headers.get("Expect", "").lower() == "100-continue":
                pass  # the base class has said it
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b""
            while count := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(count)
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            return body

        def _answer(self, body: bytes) -> None:
            time.sleep(proxy.latency)
            refusal = proxy.refuse(self.command, self.path)
            if refusal is not None:
                status, headers, content = (503 if b"SlowDown" in refusal else 403), [], refusal
            else:
                upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream, timeout=60)
                sent = {k: v for k, v in self.headers.items() if k.lower() not in ("transfer-encoding", "expect")}
                sent["Content-Length"] = str(len(body))
                upstream.request(self.command, self.path, body, sent)
                answer = upstream.getresponse()
                status, headers, content = answer.status, answer.getheaders(), answer.read()
                upstream.close()
            proxy.requests.append(
                Request(
                    self.command, self.path, self.headers.get("Range", ""), len(content), len(body), proxy.in_flight
                )
            )
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            length = next((v for n, v in headers if n.lower() == "content-length"), "0")
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass_on

    return Handler
