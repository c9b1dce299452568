"""Two small HTTP proxies that can be told to misbehave: one before Label Studio, one before the webhook."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

HOST = "127.0.0.1"
FORWARD_TIMEOUT_S = 120
NOT_FORWARDED = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "host", "server", "date"})


@dataclass(frozen=True)
class Request:
    """One request as it came; sent again it is the same request."""

    method: str
    path: str
    headers: Sequence[tuple[str, str]]
    body: bytes


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Sequence[tuple[str, str]] = ()
    body: bytes = b""


class Proxy:
    """Passes requests on to a port of this machine, unless `answer` is given another mind."""

    def __init__(self, port: int, target_port: int) -> None:
        self.port = port
        self.target_port = target_port
        self._server: ThreadingHTTPServer | None = None
        self.listen()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    def answer(self, request: Request) -> Answer | None:
        """The answer; None closes the connection without one."""
        return self.forward(request)

    def forward(self, request: Request) -> Answer | None:
        """What the server behind answers; None when it does not."""
        connection = http.client.HTTPConnection(HOST, self.target_port, timeout=FORWARD_TIMEOUT_S)
        try:
            headers = {name: value for name, value in request.headers if name.lower() not in NOT_FORWARDED}
            connection.request(request.method, request.path, request.body, headers)
            response = connection.getresponse()
            kept = [item for item in response.getheaders() if item[0].lower() not in NOT_FORWARDED]
            return Answer(response.status, kept, response.read())
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def listen(self) -> None:
        """Accepts connections (again)."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except OSError:  # whoever asked is gone
                    self.close_connection = True

            def do_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                answer = proxy.answer(Request(self.command, self.path, list(self.headers.items()), body))
                if answer is None:
                    return
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = do_OPTIONS = do_HEAD = do_any  # noqa: N815

            def log_message(self, *_: Any) -> None:
                """Says nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server((HOST, self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def refuse(self) -> None:
        """Refuses connections from now on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


class LabelStudioProxy(Proxy):
    """Before Label Studio: slow, or with an answer of its own."""

    delay_s = 0.0
    status: int | None = None

    def answer(self, request: Request) -> Answer | None:
        if self.status is not None:
            return Answer(self.status, [("Content-Type", "application/json")], b'{"detail": "made by the fault suite"}')
        if self.delay_s:
            time.sleep(self.delay_s)
        return self.forward(request)


Mode = Literal["pass", "drop", "twice", "hold"]


class WebhookProxy(Proxy):
    """Before the web service: webhooks are passed on, lost, sent twice or kept; everything else is passed on.

    seen: all webhooks that came, in order. held: those kept.
    """

    def __init__(self, port: int, target_port: int) -> None:
        self.mode: Mode = "pass"
        self.seen: list[Request] = []
        self.held: list[Request] = []
        super().__init__(port, target_port)

    def answer(self, request: Request) -> Answer | None:
        if request.path != "/webhook":
            return self.forward(request)
        self.seen.append(request)
        mode = self.mode
        if mode == "drop":
            return None
        if mode == "hold":
            self.held.append(request)
            return None
        if mode == "twice":
            self.forward(request)
        return self.forward(request)

    def send_held(self, order: Callable[[list[Request]], Sequence[Request]] = list) -> int:
        """Sends what was kept, in the order given; how many."""
        held, self.held = self.held, []
        for request in order(held):
            self.forward(request)
        return len(held)
