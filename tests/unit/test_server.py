"""gunicorn as the service runs it: slow and malformed clients, over real sockets."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest
from conftest import HOST, free_port
from served import basic
from test_model import ACTIONS, payload

from backend.loop.connect import PROJECT_HEADER, SECRET_HEADER

ROOT = Path(__file__).resolve().parents[2]
BASIC = f"Authorization: {basic()['Authorization']}\r\n"
N_THREADS = 2
N_STALLED = 20
PATIENCE_S = 60.0
"""How long a client here waits: longer than any answer takes on a busy machine."""


class Server:
    """`python -m backend web`, one process with two threads."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.process = process

    def connect(self, *parts: bytes) -> socket.socket:
        """A connection on which so much was sent."""
        connection = socket.create_connection((HOST, self.port), timeout=PATIENCE_S)
        for part in parts:
            connection.sendall(part)
        return connection

    def ask(self, *parts: bytes, method: str = "GET") -> tuple[int, Any, HTTPResponse]:
        """Status, JSON and the rest of the answer to these bytes."""
        with closing(self.connect(*parts)) as connection:
            return read(connection, method)


def read(connection: socket.socket, method: str = "GET") -> tuple[int, Any, HTTPResponse]:
    """The next answer on a connection."""
    with closing(HTTPResponse(connection, method=method)) as answer:
        answer.begin()
        raw = answer.read()
        return answer.status, json.loads(raw) if raw else None, answer


def is_over(connection: socket.socket) -> bool:
    """Whether the server has closed the connection and sends nothing more."""
    with contextlib.suppress(ConnectionResetError):
        return connection.recv(1) == b""
    return True


@pytest.fixture(scope="module")
def start(redis_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    processes = []

    def act(**settings: str) -> Server:
        folder, port = tmp_path_factory.mktemp("server"), free_port()
        environment = {
            **os.environ, "REDIS_URL": redis_server, "DATA_DIR": str(folder / "data"), "BIND": f"{HOST}:{port}",
            "BACKEND_PASSWORD": "pass-w0rd", "WEBHOOK_SECRET": "hook", "LABEL_STUDIO_TOKEN": "tok-en",
            "WEB_WORKERS": "1", "WEB_THREADS": str(N_THREADS), "PUBLISH_WAIT_S": "0", "PYTHONPATH": str(ROOT),
            **settings,
        }  # fmt: skip
        log = (folder / "web.log").open("wb")
        command = [sys.executable, "-m", "backend", "web"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        processes.append(process)
        log.close()
        for _ in range(1200):
            with contextlib.suppress(OSError), closing(socket.create_connection((HOST, port), timeout=1)):
                return Server(port, process)
            assert process.poll() is None, (folder / "web.log").read_text()
            time.sleep(0.05)
        raise AssertionError((folder / "web.log").read_text())

    yield act
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


@pytest.fixture(scope="module")
def patient(start: Callable[..., Server]) -> Server:
    """Waits ten minutes for a request: who is kept waiting in these tests would be for good."""
    return start(REQUEST_TIMEOUT_S="600", MAX_REQUEST_BYTES="2000000")


@pytest.fixture(scope="module")
def brisk(start: Callable[..., Server]) -> Server:
    """Waits half a second for a request."""
    return start(REQUEST_TIMEOUT_S="0.5")


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    announced = len(body) if length is None else length
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{lines}{BASIC}Content-Length: {announced}\r\n\r\n".encode() + body


GET_HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"

STALLED = {
    "nothing": b"",
    "half a line": b"GET /hea",
    "half a head": b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Len",
    "no body, no credentials": b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n",
    "no chunk, no credentials": b"POST /webhook HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    "refused, and stays": b"GET /health HTTP/3.7\r\n\r\n",
}


@pytest.mark.parametrize("kind", STALLED)
def test_strangers_who_send_slowly_keep_nobody_waiting(patient: Server, kind: str) -> None:
    """Ten times as many as there are threads, each with half a request: others are answered all the same."""
    with contextlib.ExitStack() as stop:
        for _ in range(N_STALLED):
            stop.enter_context(closing(patient.connect(STALLED[kind])))
        for _ in range(2 * N_THREADS):
            assert patient.ask(GET_HEALTH)[0] == 200


@pytest.mark.parametrize("kind", ["half a line", "half a head", "half a body", "no chunk"])
def test_a_request_that_does_not_come_in_time_is_408(brisk: Server, kind: str) -> None:
    """With a sentence, and then the connection is closed; also where credentials are right."""
    chunked = f"POST /webhook HTTP/1.1\r\nHost: x\r\n{BASIC}Transfer-Encoding: chunked\r\n\r\n5\r\n".encode()
    sent = {**STALLED, "half a body": post("/webhook", b'{"act', length=100), "no chunk": chunked}[kind]
    with closing(brisk.connect(sent)) as connection:
        status, body, answer = read(connection)
        assert status == 408
        assert "send it at once" in body["error"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert is_over(connection)


def test_a_client_who_sends_nothing_is_let_go(brisk: Server) -> None:
    """Without a word."""
    with closing(brisk.connect()) as connection:
        assert is_over(connection)


@pytest.mark.parametrize(
    ("sent", "status", "sentence"),
    [
        (b"GET /health HTTP/3.7\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET /\xff HTTP/1.1\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET /health HTTP/1.1\r\nHost: x\nX: y\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET /health HTTP/1.1\r\nNo colon\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET /health HTTP/1.1\r\nA: \0\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET /health HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET /health HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n", 400, "not an HTTP/1.1 request"),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: magic\r\n\r\n", 400, "the transfer coding is not known"),
        (b"GET / HTTP/1.1\r\nExpect: magic\r\n\r\n", 417, "100-continue"),
        (b"GET /" + b"a" * 5_000 + b" HTTP/1.1\r\n\r\n", 414, "the request line is too long"),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 9_000 + b"\r\n\r\n", 431, "the headers are too many or too long"),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100 + b"\r\n", 431, "the headers are too many or too long"),
        (b"GET / HTTP/1.1\r\nA: " + b"b" * 200_000, 431, "the headers are too many or too long"),
    ],
)  # fmt: skip
def test_what_is_no_http_is_told_so(patient: Server, sent: bytes, status: int, sentence: str) -> None:
    """As JSON with a sentence, never 501, and nothing of the request is repeated."""
    answered, body, answer = patient.ask(sent)
    assert answered == status
    assert sentence in body["error"]
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["X-Backend"] == "active-learning"
    assert answer.headers["Cache-Control"] == "no-store"


def test_a_request_that_ends_in_its_head_is_told_so(patient: Server) -> None:
    """The client closed its half; the other is still open."""
    with closing(patient.connect(b"GET /health HTTP/1.1\r\nHo")) as connection:
        connection.shutdown(socket.SHUT_WR)
        status, body, _ = read(connection)
    assert status == 400
    assert "ended within its head" in body["error"]


MALFORMED_CHUNKS = {
    "no size": b"zz\r\n{}\r\n0\r\n\r\n",
    "a negative size": b"-1\r\n{}\r\n",
    "a size beyond bounds": b"F" * 9_000 + b"\r\n",
    "a wrong size": b"1\r\n{}\r\n0\r\n\r\n",
    "a trailer that is none": b"2\r\n{}\r\n0\r\nno colon\r\n\r\n",
    "a forbidden trailer": b"2\r\n{}\r\n0\r\nHost: x\r\n\r\n",
    "trailers without end": b"2\r\n{}\r\n0\r\n" + b"A: b\r\n" * 200_000,
}


@pytest.mark.parametrize("kind", MALFORMED_CHUNKS)
@pytest.mark.parametrize("path", ["/webhook", "/health"])
def test_malformed_chunks_get_one_answer(patient: Server, kind: str, path: str) -> None:
    """A refusal where the body is read; where it is not, the answer is that to the request, and none comes after it."""
    method = "POST" if path == "/webhook" else "GET"
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\n{BASIC}Transfer-Encoding: chunked\r\n\r\n".encode()
    with closing(patient.connect()) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(head + MALFORMED_CHUNKS[kind])
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_WR)
        status, body, _ = read(connection)
        assert status in ((400, 408) if path == "/webhook" else (200,))
        assert "error" in body or body["status"] == "UP"
        assert is_over(connection)


@pytest.mark.parametrize("chunk", [1_000, 65_536])
def test_a_body_in_chunks_is_bounded(patient: Server, chunk: int) -> None:
    """There is no length to look at first; 413 when it has become too long."""
    head = f"POST /webhook HTTP/1.1\r\nHost: x\r\n{BASIC}Transfer-Encoding: chunked\r\n\r\n".encode()
    small = b"%x\r\n%s\r\n0\r\n\r\n" % (15, b'{"action": "X"}')
    assert patient.ask(head, small)[0] == 201
    large = b"%x\r\n%s\r\n" % (chunk, b" " * chunk) * (2_500_000 // chunk)
    with closing(patient.connect(head)) as connection:
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            connection.sendall(large + b"0\r\n\r\n")
        status, body, _ = read(connection)
    assert status == 413
    assert "MAX_REQUEST_BYTES" in body["error"]


def test_a_body_announced_too_large_is_refused_unread(patient: Server) -> None:
    """The answer comes although nothing of it was sent, and reaches a client that sends it nevertheless."""
    assert patient.ask(post("/webhook", b"", length=10**12))[0] == 413
    assert patient.ask(post("/webhook", b" " * 3_000_000))[0] == 413


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_of_label_studio_is_answered(patient: Server, action: str) -> None:
    """With payload and without, as its webhook sends it: a connection of its own, the secret header."""
    for body in (payload(action), {"action": action}):
        raw = json.dumps(body).encode()
        lines = f"Host: x\r\nContent-Type: application/json\r\n{SECRET_HEADER}: hook\r\n{PROJECT_HEADER}: 3\r\n"
        head = f"POST /webhook HTTP/1.1\r\n{lines}Content-Length: {len(raw)}\r\n\r\n".encode()
        status, answer, _ = patient.ask(head, raw)
        assert status == 201
        assert set(answer) <= {"job", "ticket"}


def test_a_connection_serves_one_request_after_the_other(patient: Server) -> None:
    """Waiting for each answer, or all at once; the bodies in between are read, or end the connection."""
    webhook = post("/webhook", b'{"action": "X"}')
    with closing(patient.connect()) as connection:
        for request, status in ((GET_HEALTH, 200), (webhook, 201), (webhook, 201), (GET_HEALTH, 200)):
            connection.sendall(request)
            assert read(connection)[0] == status
    with closing(patient.connect(webhook + GET_HEALTH + webhook)) as connection, connection.makefile("rb") as answers:
        for status in (b"201", b"200", b"201"):
            assert answers.readline().split(b" ")[1] == status
            headers = dict(line.split(b": ", 1) for line in iter(lambda: answers.readline().strip(), b""))
            answers.read(int(headers[b"Content-Length"]))


def test_a_body_that_nobody_reads_is_no_next_request(patient: Server) -> None:
    """What a stranger puts into the body of a refused request is not taken for one of their own."""
    smuggled = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
    head = f"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Length: {len(smuggled)}\r\n\r\n".encode()
    with closing(patient.connect(head + smuggled)) as connection:
        assert read(connection)[0] == 401
        connection.sendall(GET_HEALTH)
        with contextlib.suppress(ConnectionResetError, OSError):
            status, body, _ = read(connection)
            assert (status, body["status"]) == (200, "UP")


@pytest.mark.parametrize(
    "header", ["SCRIPT_NAME: /x", "PATH_INFO: /metrics", "X-Forwarded-Prefix: /x", "X-Forwarded-Proto: https",
               "X-HTTP-Method-Override: GET", "HTTP_AUTHORIZATION: x", f"{SECRET_HEADER.replace('-', '_')}: hook"]
)  # fmt: skip
def test_headers_change_neither_route_nor_credentials(patient: Server, header: str) -> None:
    """A client on this machine counts as a proxy for gunicorn, unless told otherwise."""
    assert patient.ask(f"GET /health HTTP/1.1\r\nHost: x\r\n{header}\r\n\r\n".encode())[0] == 200
    refused = f"POST /webhook HTTP/1.1\r\nHost: x\r\n{header}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    assert patient.ask(refused)[0] == 401


@pytest.mark.parametrize(
    "target", ["http://evil.example/health", "http://evil.example", "/health?x=\\", "//health", "*"]
)
def test_odd_targets_lead_nowhere_else(patient: Server, target: str) -> None:
    """The absolute form is that of proxies; the host in it is not ours to send anybody to."""
    status, body, answer = patient.ask(f"GET {target} HTTP/1.1\r\nHost: evil.example\r\n{BASIC}\r\n".encode())
    assert status in (200, 400, 404)
    assert "Location" not in answer.headers
    assert "evil.example" not in json.dumps(body)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "TRACE", "CONNECT", "FOO", "DELETE"])
def test_other_methods_are_refused_or_harmless(patient: Server, method: str) -> None:
    """No answer repeats the request (TRACE), and HEAD has no body."""
    request = f"{method} /versions HTTP/1.1\r\nHost: x\r\nX-Canary: bird\r\n{BASIC}\r\n".encode()
    with closing(patient.connect(request)) as connection:
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert answer.split(b" ")[1] in (b"200", b"405", b"404", b"400")
    assert b"bird" not in answer
    if method == "HEAD":
        assert answer.endswith(b"\r\n\r\n")


def test_it_stops_when_told_to_although_clients_wait(start: Callable[..., Server]) -> None:
    """SIGTERM with connections open that never send anything."""
    server = start(REQUEST_TIMEOUT_S="600")
    with closing(server.connect()), closing(server.connect(b"GET /")):
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(PATIENCE_S) == 0
