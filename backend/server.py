"""gunicorn, with bounds on what a client may keep it waiting for, and with sentences for what it refuses itself.

gunicorn gives a connection to one of its threads as soon as a byte has come, and the thread then waits for the rest as
long as the client likes: as many slow clients as there are threads, and nobody else is served (gunicorn's own advice is
a proxy in front). Here the head of a request is collected without a thread, everything has to come within
REQUEST_TIMEOUT_S, an answer that nobody takes is given up, and closing a connection makes nobody else wait.
"""

from __future__ import annotations

import json
import logging
import select
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger
from gunicorn.http import errors
from gunicorn.workers.gthread import TConn, ThreadWorker

from backend.config import Settings

logger = logging.getLogger(__name__)

MAX_REQUEST_LINE = 4094
MAX_HEADERS = 64
MAX_HEADER_BYTES = 8190
MAX_HEAD_BYTES = 64 * 1024
"""Request line and all headers together, which are collected in memory before anybody is known."""

MAX_CONNECTIONS = 512
"""Of each web process; more wait in the system's backlog."""

SEND_TIMEOUT_S = 60.0
"""Longest wait for a client to take an answer."""

LINGER_S = 2.0
"""How long a closed connection's last bytes are still taken, so that the answer before them is not lost."""

MAX_LINGERING = 256

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "X-Backend": "active-learning",
}
"""On every answer whose route says nothing else: nothing is guessed, kept, framed, loaded or told to another site."""

TOO_LONG = (
    f"the headers are too many or too long; at most {MAX_HEADERS} of {MAX_HEADER_BYTES} bytes, {MAX_HEAD_BYTES} in all,"
    " are read"
)
UNEXPECTED = "an unexpected error; the web service's log has the details"


class BoundedSocket(socket.socket):
    """A connection whose `recv` raises TimeoutError once `expires` (monotonic seconds) has passed.

    is_ending: whether the process has been told to end.
    """

    expires: float | None = None
    is_ending: Callable[[], bool] | None = None

    def is_over(self) -> bool:
        """Whether no more of an answer is wanted: the client has closed the connection, or the process is ending."""
        if self.is_ending is not None and self.is_ending():
            return True
        try:
            poll = select.poll()
            poll.register(self, select.POLLIN)
            # What a client sends meanwhile, its next request, is left for later; nothing at all says that it has gone.
            return bool(poll.poll(0)) and super().recv(1, socket.MSG_PEEK) == b""
        except (OSError, ValueError):
            return True

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """As the base class, but not beyond `expires`."""
        before = self.gettimeout()
        if self.expires is None or before == 0:
            return super().recv(size, flags)
        left = self.expires - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request did not come in time")
        self.settimeout(left if before is None else min(left, before))
        try:
            return super().recv(size, flags)
        finally:
            self.settimeout(before)

    def sendall(self, content: Any, flags: int = 0, /) -> None:
        """As the base class, but not for longer than `SEND_TIMEOUT_S`."""
        before = self.gettimeout()
        self.settimeout(SEND_TIMEOUT_S)
        try:
            super().sendall(content, flags)
        finally:
            self.settimeout(before)


class BoundedConnection(TConn):  # type: ignore[misc]
    """A connection, what has come of the next request's head, and until when the whole of it has to."""

    def __init__(
        self, config: Any, sock: socket.socket, client: Any, server: Any, linger: Callable[[Any], None]
    ) -> None:
        bounded = BoundedSocket(sock.family, sock.type, sock.proto, fileno=sock.detach())
        super().__init__(config, bounded, client, server)
        self.head = bytearray()
        self.expires = 0.0
        self._linger = linger

    @property
    def is_head_complete(self) -> bool:
        """Whether a thread can read the head without waiting for more of it."""
        return b"\r\n\r\n" in self.head

    def close(self, graceful: bool = False) -> None:
        """`graceful`: what was sent still reaches the client; gunicorn waits for that where all clients are served."""
        if graceful:
            self._linger(self.sock)
        else:
            super().close()


class BoundedWorker(ThreadWorker):  # type: ignore[misc]
    """A web process."""

    request_timeout_s = Settings.request_timeout_s

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Both in order of time: every request has as long as every other.
        self._collecting: deque[BoundedConnection] = deque()
        self._lingering: deque[tuple[float, socket.socket]] = deque()

    # -- in the thread that serves all connections --------------------------------------------------------------------

    def accept(self, listener: socket.socket) -> None:
        """Takes a new connection."""
        try:
            client, address = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another process has it, or nobody any more
            return
        self.nr_conns += 1
        connection = BoundedConnection(self.cfg, client, address, listener.getsockname(), self._linger)
        connection.sock.is_ending = lambda: not self.alive
        self.enqueue_req(connection)

    def enqueue_req(self, conn: BoundedConnection) -> None:
        """Collects the head of the connection's next request; then a thread gets it."""
        conn.expires = time.monotonic() + self.request_timeout_s
        if conn.parser is not None:  # what was read beyond the end of the last request
            conn.head += conn.parser.unreader.take_buffered()
        if conn.is_head_complete:
            super().enqueue_req(conn)
            return
        conn.sock.setblocking(False)
        self.poller.register(conn.sock, selectors.EVENT_READ, partial(self._collect, conn))
        self._collecting.append(conn)

    def _collect(self, conn: BoundedConnection, sock: BoundedSocket) -> None:
        try:
            received = sock.recv(MAX_HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        conn.head += received
        if conn.is_head_complete:
            self._release(conn)
            super().enqueue_req(conn)
        elif not received:
            self._release(conn)
            self._end(conn, 400, "the request ended within its head; send it whole")
        elif len(conn.head) > MAX_HEAD_BYTES:
            self._release(conn)
            self._end(conn, 431, TOO_LONG)

    def _release(self, conn: BoundedConnection) -> None:
        self._collecting.remove(conn)
        self.poller.unregister(conn.sock)

    def _end(self, conn: BoundedConnection, status: int, sentence: str) -> None:
        """Ends a connection whose request never came whole; who sent nothing at all is told nothing."""
        self.nr_conns -= 1
        if conn.head:
            _send(conn.sock, status, sentence)
        conn.close(graceful=bool(conn.head))

    def murder_pending(self) -> None:
        """Ends what took too long; called about once a second."""
        super().murder_pending()
        now = time.monotonic()
        while self._collecting and (self._collecting[0].expires <= now or not (self.alive or self._collecting[0].head)):
            conn = self._collecting[0]
            self._release(conn)
            self._end(conn, 408, f"the request did not come within {self.request_timeout_s:g} s; send it at once")
        while self._lingering and self._lingering[0][0] <= now:
            self._let_go(self._lingering[0][1])

    def _linger(self, sock: socket.socket) -> None:
        """Says that no more will be sent, and takes what still comes for a moment: closed at once, with bytes unread,
        the system would tell the client to forget the answer."""
        try:
            sock.shutdown(socket.SHUT_WR)
            if len(self._lingering) >= MAX_LINGERING:
                sock.close()
                return
            sock.setblocking(False)
            self.poller.register(sock, selectors.EVENT_READ, self._discard)
        except (OSError, ValueError, KeyError):  # closed by the client, or the process is ending
            sock.close()
            return
        self._lingering.append((time.monotonic() + LINGER_S, sock))

    def _discard(self, sock: socket.socket) -> None:
        try:
            received = sock.recv(MAX_HEAD_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._let_go(sock)

    def _let_go(self, sock: socket.socket) -> None:
        for entry in self._lingering:
            if entry[1] is sock:
                self._lingering.remove(entry)
                break
        self.poller.unregister(sock)
        sock.close()

    # -- in a thread of one request -----------------------------------------------------------------------------------

    def handle(self, conn: BoundedConnection) -> Any:
        """Answers one request, of which the head is there."""
        conn.sock.expires = conn.expires
        conn.init()
        conn.parser.unreader.unread(bytes(conn.head))
        conn.head.clear()
        return super().handle(conn)

    def _keepalive_after(self, conn: BoundedConnection, keepalive: bool) -> bool:
        """Whether the connection may bring another request: not if it still has to bring a body that nobody wants."""
        conn.sock.expires = 0.0
        try:
            return bool(super()._keepalive_after(conn, keepalive))
        except Exception:  # a malformed body, after its request was answered
            return False

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answers what is no HTTP request with a sentence; anything else is a fault of ours, and logged."""
        status, sentence = _refusal(exc)
        if status >= 500:
            logger.error("a request failed before it reached the application", exc_info=exc)
        else:
            logger.info("refused from=%s status=%d: %s", (addr or ("-",))[0], status, sentence)
        _send(client, status, sentence)


def _refusal(exc: Exception) -> tuple[int, str]:
    """Status and sentence for a request that cannot be read; nothing of the request is repeated in it."""
    if isinstance(exc, errors.InvalidResponseHeader | errors.InvalidResponseHeaderName):
        return 500, UNEXPECTED
    if isinstance(exc, errors.LimitRequestLine):
        return 414, f"the request line is too long; at most {MAX_REQUEST_LINE} bytes are read"
    if isinstance(exc, errors.LimitRequestHeaders):
        return 431, TOO_LONG
    if isinstance(exc, errors.ExpectationFailed):
        return 417, "only 'Expect: 100-continue' can be met; leave the header out"
    if isinstance(exc, errors.UnsupportedTransferCoding):
        # RFC 9112, 6.1, would have 501; but it is the request that is wrong, and no status from 500 on says that.
        return 400, "the transfer coding is not known; expected 'Transfer-Encoding: chunked' or a Content-Length"
    if isinstance(exc, errors.ParseException | errors.NoMoreData | OSError):
        kind = type(exc).__name__
        return 400, f"this is not an HTTP/1.1 request that can be read ({kind}); send a well-formed one"
    return 500, UNEXPECTED


_PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    414: "URI Too Long",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
}


def _send(sock: socket.socket, status: int, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode() + b"\n"
    headers = {
        **HEADERS,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    head = f"HTTP/1.1 {status} {_PHRASES[status]}\r\n" + "".join(
        f"{name}: {text}\r\n" for name, text in headers.items()
    )
    try:
        sock.setblocking(False)  # half a kilobyte, for which there is room unless the client takes nothing
        sock.send(head.encode() + b"\r\n" + body)
    except OSError:
        logger.debug("an answer was not taken")


class OurLogger(Logger):  # type: ignore[misc]
    """Leaves gunicorn's lines to the handler, and so the format, of all others."""

    def setup(self, cfg: Any) -> None:
        """As the base class, without its handlers."""
        super().setup(cfg)
        for log in (self.error_log, self.access_log):
            log.handlers.clear()
            log.propagate = True


def serve_forever(
    settings: Settings, load: Callable[[], Callable[..., Any]], *, on_exit: Callable[[], None] = lambda: None
) -> None:
    """Runs gunicorn until it is stopped; `load` makes the WSGI application, in each web process, `on_exit` ends it."""

    class Worker(BoundedWorker):
        request_timeout_s = settings.request_timeout_s

    class Server(BaseApplication):  # type: ignore[misc]
        def load_config(self) -> None:
            options: dict[str, Any] = {
                "bind": settings.bind,
                "workers": settings.web_workers,
                "worker_class": Worker,
                "threads": settings.web_threads,
                "worker_connections": MAX_CONNECTIONS,
                "timeout": 120,
                "graceful_timeout": 5,
                "limit_request_line": MAX_REQUEST_LINE,
                "limit_request_fields": MAX_HEADERS,
                "limit_request_field_size": MAX_HEADER_BYTES,
                # By default a client on this machine may say under which path the service lies, and break it.
                "forwarded_allow_ips": "",
                "forwarder_headers": "",
                "proc_name": "active-learning-web",
                "loglevel": settings.log_level.lower(),
                "logger_class": OurLogger,
                "accesslog": None,
                "control_socket_disable": True,
                "worker_exit": lambda server, worker: on_exit(),
            }
            for name, value in options.items():
                self.cfg.set(name, value)

        def load(self) -> Callable[..., Any]:
            return load()

    Server().run()
