"""Malformed requests, thousands of them, to every route of the running service.

gunicorn with the service's own settings, a real Redis, a worker, and `benchmarks.stand_in` in Label Studio's place.
Requests are written byte by byte on sockets of their own, so that what no HTTP library would send is sent too. It fails
on an answer of 500 or above (but 503 with its reason), on no answer, on a refusal without a sentence, on a secret in an
answer, on a web process that died or grew, and if afterwards a label is not learned as ever.

    python -m benchmarks.fuzz [--requests 20000] [--seed 0]
"""

from __future__ import annotations

import argparse
import base64
import itertools
import json
import random
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from backend.adapters.backbones import load_backbone
from backend.config import Settings
from backend.loop.connect import PROJECT_HEADER, SECRET_HEADER
from benchmarks import RESULTS, stack
from benchmarks.stand_in import CREATED, LABEL_CONFIG, LABELS, task_json

N_REQUESTS = 20_000
N_TASKS = 200
N_CLIENTS = 8
N_STALLED = 64
"""Clients that send half a request and wait: four times as many as the service has threads by default."""

HANG_S = 20.0
"""An answer that takes longer is none."""

REQUEST_TIMEOUT_S = 3.0
MAX_REQUEST_BYTES = 2**20
MAX_GROWTH_KB = 24 * 1024
"""Of the resident memory of a web process, from the end of the warm-up on."""

API_TOKEN = "made-up-api-token"
SECRETS = (stack.PASSWORD, stack.SECRET, API_TOKEN, "made-up-token")
EVIL = "X-Evil"
"""Name of the header that requests try to have in their answer."""

# label_studio/webhooks/models.py (WebhookAction.ACTIONS) of 1.23.2, and START_TRAINING of ml/api_connector.py.
ACTIONS = (
    "PROJECT_CREATED", "PROJECT_UPDATED", "PROJECT_DELETED", "TASKS_CREATED", "TASKS_DELETED", "ANNOTATION_CREATED",
    "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED", "LABEL_LINK_CREATED", "LABEL_LINK_UPDATED",
    "LABEL_LINK_DELETED", "START_TRAINING",
)  # fmt: skip

PIN = "/api/projects/1/pin"
GET_ROUTES = ("/", "/health", "/ready", "/job_status?job=retrain-1-0", "/versions", "/metrics",
              "/api/projects/1/status", "/api/projects/1/versions", "/api/projects/1/versions/v0001",
              "/api/projects/1/dashboard", "/api/projects/1/tasks/1/thumbnail", "/api/projects/1/map",
              "/openapi.json")  # fmt: skip
POST_ROUTES = ("/setup", "/predict", "/webhook", "/job_status", "/versions", PIN)

ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1.5, 1e308, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**30, -(10**30), "", " ",
    "x",
    "\0", "a\r\nX-Evil: 1", "é", "🙂", "\ud800", "\udfff\ud800", "\u202e", "../../etc/passwd", "%2e%2e%2f",
    "' OR 1=1 --",
    "{{7*7}}", "%s%n", "$(id)", "a" * 5_000, "2." + "9" * 50, "٣", "nan", "1e5", [], {}, [[]], [None], [{}],
    {"id": None}, {"id": {"id": 1}}, {"": {}}, "<!DOCTYPE x [<!ENTITY a 'b'>]><View>&a;</View>", "<View>" * 200,
    "<View/>", "data:image/png;base64,AAAA", "http://169.254.169.254/latest/meta-data/", "http://[fe80::1]/",
    "file:///etc/passwd", "javascript:alert(1)", "/data/local-files/?d=../../etc/passwd", "s3://bucket/x.png",
)  # fmt: skip

FRAGMENTS: tuple[bytes, ...] = (
    b"NaN", b"Infinity", b"-Infinity", b"1e400", b"9" * 5_000, b"-0", b"01", b"0x10", b"1.", b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\\ud800", b"\\u0000", b"\0", b"[" * 3_000, b'{"a":' * 3_000,
    b'"', b"{", b"}", b",", b":", b"//", b"'", b"\xef\xbb\xbf",
    b'"project":1,"project":2,', b"\\", b"\n",
)  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """One request: its bytes; whether the client ends its half of the connection after them."""

    kind: str
    content: bytes
    half_close: bool = True

    @property
    def method(self) -> str:
        """As far as there is one."""
        return self.content.split(b" ", 1)[0].decode("latin-1")

    @property
    def shown(self) -> str:
        """The beginning of it, for people."""
        return f"{self.kind}: {self.content[:160]!r}"


@dataclass(frozen=True)
class Outcome:
    """What came of it: status (0: no answer), the fault if it is one, and how long the answer took."""

    status: int
    fault: str | None
    seconds: float


# -- requests ---------------------------------------------------------------------------------------------------------


class Fuzzer:
    """Malformed requests, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._kinds: Sequence[tuple[int, Callable[[], Attempt]]] = (
            (8, self.changed_json),
            (4, self.broken_json),
            (3, self.wrong_credentials),
            (3, self.odd_target),
            (3, self.odd_head),
            (2, self.chunked),
            (1, self.webhook_replayed),
            (1, self.garbage),
        )

    def __iter__(self) -> Iterator[Attempt]:
        weights = [weight for weight, _ in self._kinds]
        while True:
            _, make = self._random.choices(self._kinds, weights)[0]
            yield make()

    def changed_json(self) -> Attempt:
        """A body as Label Studio sends it, in which something is gone, or something else."""
        path = self._random.choice(POST_ROUTES)
        body = self._body(path)
        for _ in range(self._random.randint(1, 3)):
            body = self._changed(body)
        return Attempt("changed JSON", post(path, json.dumps(body).encode(), self._headers()))

    def broken_json(self) -> Attempt:
        """The same as text, cut or with something in its middle that is no JSON."""
        path = self._random.choice(POST_ROUTES)
        raw = json.dumps(self._body(path), ensure_ascii=self._random.random() < 0.5).encode()
        place = self._random.randrange(len(raw) + 1)
        match self._random.randrange(4):
            case 0:
                raw = raw[:place]
            case 1:
                raw = raw[:place] + self._random.choice(FRAGMENTS) + raw[place:]
            case 2:
                fragment = self._random.choice(FRAGMENTS)
                raw = raw[:place] + fragment + raw[place + len(fragment) :]
            case _:
                raw = self._random.choice(
                    (raw.decode().encode("utf-16"), raw.decode().encode("utf-32"), b"", b"null", b"[]")
                )
        headers = self._headers()
        if self._random.random() < 0.1:
            headers["Content-Encoding"] = self._random.choice(("gzip", "br", "identity", "x"))
        if self._random.random() < 0.2:
            headers["Content-Type"] = self._random.choice(("text/plain", "multipart/form-data; boundary=x", "", "\xff"))
        return Attempt("broken JSON", post(path, raw, headers))

    def wrong_credentials(self) -> Attempt:
        """Every kind of Authorization but the right one; the token where it opens nothing."""
        raw = self._random.choice((
            b"x", b":", b"label-studio:", b"label-studio:wrong", b"\xff\xfe:\xff", "Zoë:ü".encode(), b"a" * 3_000,
            stack.PASSWORD.encode(), f"{stack.PASSWORD}:{Settings.backend_user}".encode(),
        ))  # fmt: skip
        value = self._random.choice((
            "Basic " + base64.b64encode(raw).decode(), "Basic", "Basic %%%", "Basic \xff", "basic  ", "Bearer",
            "Bearer x",
            f"Bearer {stack.PASSWORD}", f"Token {API_TOKEN}", "Digest username=x, response=y", "Digest type=basic", "",
            "Negotiate " + "A" * 2_000, "\xff\xfe", "Basic " + "=" * 50, "," * 500,
        ))  # fmt: skip
        headers = {"Authorization": value}
        if self._random.random() < 0.3:
            headers[SECRET_HEADER] = self._random.choice(("", "x", "\xff", stack.SECRET[:-1], stack.SECRET + "\xe9"))
        if self._random.random() < 0.5:
            return Attempt("wrong credentials", get(self._random.choice(GET_ROUTES[1:-1]), headers))
        path = self._random.choice(POST_ROUTES)
        if self._random.random() < 0.3:
            headers["Authorization"] = f"Bearer {API_TOKEN}"
        return Attempt("wrong credentials", post(path, json.dumps(self._body(path)).encode(), headers))

    def odd_target(self) -> Attempt:
        """Paths, queries and methods that nobody should send."""
        number = self._random.choice(
            ("0", "-1", "9" * 400, str(2**31), str(2**63), "1.5", "x", "%31", "%00", "٣", "1/..")
        )
        target = self._random.choice((
            "/%", "/%zz", "/%00", "/%ff%fe", "/..%2f..%2fetc%2fpasswd", "/static/../../etc/passwd", "//evil.example/",
            "//evil.example/%2e%2e", "/health/", "/./health", "/a/../health", "/health;x=1", "/health#x", "*", "/\\x",
            f"/api/projects/{number}/status", f"/api/projects/{number}", f"/versions?project={number}",
            f"/api/projects/{number}/dashboard", f"/api/projects/1/tasks/{number}/thumbnail",
            f"/api/projects/{number}/versions", f"/api/projects/1/versions/{number}", f"/api/projects/{number}/pin",
            f"/api/projects/{number}/map",
            "/api/projects/1/versions/" + "a" * 3_000, "/api/projects/1/versions/..%2f..", PIN,
            f"/job_status?job={number}", "/versions?project=1&project=x", "/versions?%", "/versions?project=%ff%00",
            "/job_status", "/job_status?job=" + "a" * 3_000, "/health?" + "a&" * 1_000, "/" + "a" * 4_000,
            "/" + "a" * 9_000, "/" + "%41" * 1_000, "/" * 2_000, "http://evil.example/health", "https://x/",
            "http://[::1/",
            "/?x=%0d%0aX-Evil:%201", "/%0d%0aX-Evil:%201", "/a b", "/\xe9", "evil.example:443", "?", "",
        ))  # fmt: skip
        method = self._random.choice(("GET", "GET", "GET", "HEAD", "OPTIONS", "TRACE", "PUT", "PATCH", "DELETE",
            "CONNECT",
                                      "POST", "PROPFIND", "get", "G@T", "A" * 50))  # fmt: skip
        headers = self._headers()
        return Attempt("odd target", head(method, target, headers) + b"\r\n")

    def odd_head(self) -> Attempt:
        """Heads that are no HTTP, or that two servers could read in two ways."""
        path = self._random.choice(("/health", "/versions", "/webhook"))
        version = self._random.choice(("HTTP/1.1", "HTTP/1.1", "HTTP/1.1", "HTTP/1.0", "HTTP/0.9", "HTTP/2.0",
            "HTTP/1.2",
                                       "HTTP/1.1 x", "http/1.1", "", "HTTP/11"))  # fmt: skip
        line = f"POST {path} {version}\r\n"
        odd = self._random.choice((
            "", "Host: x\r\nHost: y\r\n", "Host: a b\r\n", "Host: \x01\r\n", "Host: " + "a" * 5_000 + "\r\n",
            "Host: evil.example\r\n", "Host: [::1\r\n", "Host: x\r\n folded\r\n", "Host\r\n", "Ho st: x\r\n", ": x\r\n",
            "Host: x\nX-Evil: 1\r\n", "Host: x\r\n" + "".join(f"A{n}: b\r\n" for n in range(200)),
            "A: " + "b" * 9_000 + "\r\n",
            "A: " + "b" * 70_000 + "\r\n", "SCRIPT_NAME: /x\r\n", "PATH_INFO: /x\r\n", "X-Forwarded-Proto: https\r\n",
            "X-Forwarded-For: 127.0.0.1\r\n", "X-HTTP-Method-Override: DELETE\r\n", "Expect: 100-continue\r\n",
            "Expect: x\r\n",
            "Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n", "Upgrade: websocket\r\n",
            "Cookie: " + "a=b; " * 1_000 + "\r\n", "Content-Type: \x00\r\n", f"{PROJECT_HEADER}: {'9' * 5_000}\r\n",
            f"{PROJECT_HEADER}: \xff\r\n", "Content-Length: 5\r\nContent-Length: 6\r\n", "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: x\r\n", "Transfer-Encoding: chunked, chunked\r\n", "Transfer-Encoding: chunked\r\n"
            "Content-Length: 5\r\n", "Transfer-Encoding: \x0bchunked\r\n", "Range: bytes=0-1\r\n",
        ))  # fmt: skip
        length = self._random.choice(("2", "2", "0", "-1", "abc", "1e3", "9" * 30, "+2", "2 ", "2,2", "", "1000", "²"))
        lengths = "" if "Content-Length" in odd or "Transfer" in odd else f"Content-Length: {length}\r\n"
        authorized = "".join(f"{name}: {value}\r\n" for name, value in self._headers().items())
        body = self._random.choice((b"{}", b"", b"{}\r\n\r\nGET / HTTP/1.1\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n"))
        return Attempt("odd head", (line + odd + lengths + authorized + "\r\n").encode("latin-1", "replace") + body)

    def chunked(self) -> Attempt:
        """Bodies without a length: well-formed ones, too large ones, and chunks that are none."""
        path = self._random.choice(POST_ROUTES)
        raw = json.dumps(self._changed(self._body(path))).encode()
        body = self._random.choice((
            chunks(raw, 100), chunks(raw, 1), chunks(b" " * (MAX_REQUEST_BYTES + 10), 2**16), b"zz\r\n{}\r\n0\r\n\r\n",
            b"-1\r\n\r\n", b"F" * 16 + b"\r\n{}", b"F" * 9_000, b"2\r\n{}0\r\n\r\n", b"2\r\n{}\r\n0\r\nHost: x\r\n\r\n",
            b"2\r\n{}\r\n0\r\nA" + b"a" * 70_000 + b"\r\n\r\n", b"2;a=\x01\r\n{}\r\n0\r\n\r\n", b"2\n{}\n0\n\n", b"",
            b"2\r\n{}\r\n", b"2\r\n{}\r\n0\r\nbroken trailer\r\n\r\n",
        ))  # fmt: skip
        return Attempt(
            "chunked", head("POST", path, {**self._headers(), "Transfer-Encoding": "chunked"}) + b"\r\n" + body
        )

    def webhook_replayed(self) -> Attempt:
        """Every action of Label Studio, with and without payload, as its webhook sends it."""
        body = webhook_body(self._random.choice(ACTIONS), self._random.randint(1, N_TASKS), self._random.choice(LABELS))
        if self._random.random() < 0.5:
            body = {"action": body["action"]}
        headers = {SECRET_HEADER: stack.SECRET, PROJECT_HEADER: "1"}
        return Attempt("webhook replayed", post("/webhook", json.dumps(body).encode(), headers), half_close=False)

    def garbage(self) -> Attempt:
        """What is not even an attempt at HTTP/1.1."""
        return Attempt("garbage", self._random.choice((
            self._random.randbytes(self._random.randint(1, 3_000)), b"\r\n" * 100, b"\0" * 50, b"GET", b"GET /",
            b"A" * 70_000,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 30, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + b"\0" * 200,
            b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /health HTTP/1.1\r\n\r\n",
            b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n",
        )))  # fmt: skip

    def _headers(self) -> dict[str, str]:
        """Right credentials, so that what follows them is looked at; now and then none."""
        return dict(stack.BASIC) if self._random.random() < 0.9 else {}

    def _body(self, path: str) -> dict[str, Any]:
        uid = f"1.{CREATED}"
        if path == "/setup":  # of another project: a new time of creation makes the old project another one
            return {"project": f"2.{CREATED}", "schema": LABEL_CONFIG, "hostname": "http://127.0.0.1:8080",
                    "access_token": "x", "extra_params": None}  # fmt: skip
        if path == "/predict":
            tasks = [task_json(1, self._random.randint(1, N_TASKS)) for _ in range(self._random.randint(1, 4))]
            return {"tasks": tasks, "project": uid, "label_config": LABEL_CONFIG, "params": {"context": None}}
        if path == "/webhook":
            task_id, label = self._random.randint(1, N_TASKS), self._random.choice(LABELS)
            return webhook_body(self._random.choice(ACTIONS), task_id, label)
        if path == PIN:  # a version that there is not: with an older one pinned, no label is learned
            return {"version": "v9999-3labels-20260101T000000Z"}
        return {"job": "retrain-1-000000000000"} if path == "/job_status" else {"project": uid}

    def _changed(self, value: Any) -> Any:
        """A copy with one value, anywhere in it, replaced, left out or added."""
        if isinstance(value, dict) and value and self._random.random() < 0.85:
            name = self._random.choice(list(value))
            match self._random.randrange(6):
                case 0:
                    return {key: item for key, item in value.items() if key != name}
                case 1:
                    return {
                        **value,
                        self._random.choice(("", "\0", "__proto__", "id", "a" * 300)): self._random.choice(ODD),
                    }
                case _:
                    return {**value, name: self._changed(value[name])}
        if isinstance(value, list) and value and self._random.random() < 0.7:
            place = self._random.randrange(len(value))
            return [*value[:place], self._changed(value[place]), *value[place + self._random.randrange(2) :]]
        return self._random.choice(ODD)


def webhook_body(action: str, task_id: int, label: str) -> dict[str, Any]:
    """What Label Studio 1.23.2 sends with an action (webhooks/serializers_for_hooks.py)."""
    project = {"id": 1, "title": "made up", "label_config": LABEL_CONFIG, "model_version": "",
               "total_annotations_number": 3, "skipped_annotations_number": 0}  # fmt: skip
    region = {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [label]}}
    annotation = {"id": 10**6 + task_id, "task": task_id, "result": [region], "was_cancelled": False,
                  "ground_truth": False, "updated_at": "2026-01-01T00:00:00.000000Z"}  # fmt: skip
    task = {"id": task_id, "data": task_json(1, task_id)["data"]}
    extra: dict[str, dict[str, Any]] = {
        "ANNOTATION_CREATED": {"annotation": annotation, "task": task},
        "ANNOTATION_UPDATED": {"annotation": annotation, "task": task},
        "ANNOTATIONS_CREATED": {"annotation": [annotation], "task": [task]},
        "ANNOTATIONS_DELETED": {"annotations": [{"id": annotation["id"]}]},
        "TASKS_CREATED": {"tasks": [task]},
        "TASKS_DELETED": {"tasks": [{"id": task_id}]},
        "LABEL_LINK_CREATED": {"label_link": [{"id": 1}]},
        "PROJECT_DELETED": {"project": {"id": 1}},
    }
    return {"action": action, "project": project, **extra.get(action, {})}


def head(method: str, target: str, headers: dict[str, str]) -> bytes:
    """Request line and headers, without the empty line behind them."""
    lines = [f"{method} {target} HTTP/1.1", "Host: x", *(f"{name}: {value}" for name, value in headers.items())]
    return ("\r\n".join(lines) + "\r\n").encode("latin-1", "replace")


def get(target: str, headers: dict[str, str]) -> bytes:
    """A GET."""
    return head("GET", target, headers) + b"\r\n"


def post(target: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A POST of JSON."""
    given = {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}
    return head("POST", target, given) + b"\r\n" + body


def chunks(body: bytes, size: int) -> bytes:
    """The body in chunks (RFC 9112, 7.1)."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


# -- answers ----------------------------------------------------------------------------------------------------------


def send(port: int, attempt: Attempt, timeout_s: float = HANG_S) -> Outcome:
    """Sends the bytes, reads the answer, judges it."""
    started = time.monotonic()
    try:
        with closing(socket.create_connection((stack.HOST, port), timeout=timeout_s)) as connection:
            with suppress(BrokenPipeError, ConnectionResetError):  # refused before all was sent: the answer is there
                connection.sendall(attempt.content)
                if attempt.half_close:
                    connection.shutdown(socket.SHUT_WR)
            answer = HTTPResponse(connection, method="HEAD" if attempt.method == "HEAD" else "GET")
            answer.begin()
            body = answer.read()
    except TimeoutError:
        return Outcome(0, f"no answer within {timeout_s:g} s", time.monotonic() - started)
    except (OSError, HTTPException) as exc:
        return Outcome(0, f"no answer: {exc!r}", time.monotonic() - started)
    seconds = time.monotonic() - started
    return Outcome(answer.status, fault_of(attempt, answer.status, answer.getheaders(), body), seconds)


def fault_of(attempt: Attempt, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> str | None:
    """What is wrong with an answer; None: nothing."""
    if status >= 500 and status != 503:
        return f"status {status}"
    names = {name.lower() for name, _ in headers}
    if EVIL.lower() in names:
        return "a header of the request's making"
    if not {"x-content-type-options", "cache-control"} <= names:
        return "no security headers"
    leaked = [secret for secret in SECRETS if secret.encode() in body]
    if leaked or b"Traceback" in body or b'File "' in body:
        return "a secret or a traceback in the answer"
    if status >= 400 and attempt.method != "HEAD" and not is_sentence(status, body):
        return f"status {status} without a sentence: {body[:80]!r}"
    return None


def is_sentence(status: int, body: bytes) -> bool:
    """Whether a refusal says in words what was wrong; 410 is Label Studio's word for a job that is over."""
    try:
        content = json.loads(body)
    except ValueError:
        return False
    if status == 410:
        return bool(content == {"job_status": "removed"})
    if status == 503 and isinstance(content, dict) and content.get("status") == "not ready":  # /ready itself
        return True
    sentence = content.get("error") if isinstance(content, dict) else None
    return isinstance(sentence, str) and len(sentence) > 15 and " " in sentence


# -- the run ----------------------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What was seen."""

    requests: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: str = ""
    faults: list[str] = field(default_factory=list)

    def add(self, attempt: Attempt, outcome: Outcome) -> None:
        """One more."""
        self.requests += 1
        self.kinds[attempt.kind] += 1
        self.statuses[outcome.status] += 1
        if outcome.seconds > self.slowest_s:
            self.slowest_s, self.slowest = outcome.seconds, attempt.shown
        if outcome.fault:
            self.faults.append(f"{outcome.fault}; {attempt.shown}")


def run(n_requests: int = N_REQUESTS, seed: int = 0, *, n_warm_up: int = 3_000) -> dict[str, Any]:
    """The figures of one run, with everything that was wrong in `faults`."""
    descriptor = load_backbone("descriptor")  # what is measured here is not the network
    settings = {"BACKBONE": "descriptor", "ALLOW_WEIGHTS_DOWNLOAD": "false"}
    backbone = stack.UsedBackbone(descriptor.fingerprint, descriptor.dim, settings)
    embeddings, labels = stack.made_up_pool(N_TASKS, backbone.dim)
    with ExitStack() as stop:
        service, person = stack.prepare(
            stop, {1: N_TASKS, 2: 10}, backbone, publish_wait_s="0", request_timeout_s=f"{REQUEST_TIMEOUT_S:g}",
            max_request_bytes=str(MAX_REQUEST_BYTES), api_token=API_TOKEN, reconcile_interval_s="2",
        )  # fmt: skip
        stack.write_pool(service.registry, 1, backbone.fingerprint, embeddings)
        for task_id in range(1, 21):
            person.submit(task_id, labels[task_id - 1])
        web = stop.enter_context(service.web())
        stop.enter_context(service.worker(1, person.n_labels))
        processes = stack.children(web)
        attempts = iter(Fuzzer(seed))
        report = Report()
        _load_backbones(service.port)
        _send_all(service.port, itertools.islice(attempts, n_warm_up), report)
        before = [resident_kb(pid) for pid in processes]
        started = time.monotonic()
        _send_all(service.port, itertools.islice(attempts, n_requests - n_warm_up), report)
        took = time.monotonic() - started
        after = [resident_kb(pid) for pid in stack.children(web)]
        if stack.children(web) != processes:
            report.faults.append("a web process died")
        growth = max(b - a for a, b in zip(before, after, strict=True))
        if growth > MAX_GROWTH_KB:
            report.faults.append(f"a web process grew by {growth} kB; {MAX_GROWTH_KB} are allowed")
        stalled = _health_while_stalled(service.port)
        learned = _learns(service, person, labels)
        if not learned:
            report.faults.append("afterwards a label was not learned, or other labels than Label Studio's were")
        report.faults += faults_of_logs({name: service.log(name) for name in ("web", "worker")})
    return {
        "requests": report.requests,
        "by_kind": dict(sorted(report.kinds.items())),
        "by_class": by_class(report.statuses),
        "by_status": {str(status): n for status, n in sorted(report.statuses.items())},
        "slowest_s": report.slowest_s,
        "slowest": report.slowest,
        "seconds": took,
        "requests_per_s": (n_requests - n_warm_up) / took,
        "warm_up_requests": n_warm_up,
        "web_rss_kb_before": before,
        "web_rss_kb_after": after,
        "max_growth_kb": growth,
        "stalled_clients": N_STALLED,
        "health_while_stalled_s": stalled,
        "label_learned_afterwards": learned,
        "seed": seed,
        "n_faults": len(report.faults),
        "faults": report.faults[:20],
        "load": stack.load_of_machine(),
    }


def faults_of_logs(logs: Mapping[str, str]) -> list[str]:
    """What no request may bring into a log: errors that nobody foresaw, and secrets."""
    faults = [f"the log of the {name} has a traceback" for name, text in logs.items() if "Traceback" in text]
    return faults + [
        f"the log of the {name} has a secret"
        for name, text in logs.items()
        if any(secret in text for secret in SECRETS)
    ]


def by_class(statuses: Counter[int]) -> dict[str, int]:
    """'4xx' → how many; 'none': without an answer."""
    classes: Counter[str] = Counter()
    for status, n in statuses.items():
        classes[f"{status // 100}xx" if status else "none"] += n
    return dict(sorted(classes.items()))


def _load_backbones(port: int) -> None:
    """Has every web process embed an image: the first one loads the network, once and for good, half a gigabyte."""
    tasks = [{"id": 10**6, "data": {"image": "data:image/png;base64,AAAA"}}]
    asked = post("/predict", json.dumps({"tasks": tasks, "project": f"1.{CREATED}"}).encode(), dict(stack.BASIC))
    for _ in range(4):
        with ThreadPoolExecutor(N_CLIENTS) as clients:
            found = [*clients.map(lambda _: send(port, Attempt("image", asked), 120.0), range(2 * N_CLIENTS))]
        if any(outcome.fault for outcome in found):
            raise SystemExit(f"a task with an unknown image was not answered: {found}")


def _send_all(port: int, attempts: Iterator[Attempt], report: Report) -> None:
    with ThreadPoolExecutor(N_CLIENTS) as clients:
        for batch in _batched(attempts, 500):
            for attempt, outcome in zip(batch, clients.map(lambda item: send(port, item), batch), strict=True):
                report.add(attempt, outcome)


def _batched(attempts: Iterator[Attempt], size: int) -> Iterator[tuple[Attempt, ...]]:
    while batch := tuple(itertools.islice(attempts, size)):
        yield batch


def _health_while_stalled(port: int) -> float:
    """Slowest of ten answers of /health while many clients have sent half a request each and wait."""
    halves = (b"POST /webhook HTTP/1.1\r\nHost: x\r\nContent-Len", get("/versions", {})[:-2])
    with ExitStack() as stop:
        for number in range(N_STALLED):
            connection = stop.enter_context(closing(socket.create_connection((stack.HOST, port), timeout=HANG_S)))
            connection.sendall(halves[number % len(halves)])
        return max(send(port, Attempt("health", get("/health", {}), half_close=False)).seconds for _ in range(10))


def _learns(service: stack.Service, person: stack.Submitter, labels: Sequence[str]) -> bool:
    """Whether a label submitted now is learned, and exactly Label Studio's labels are, once things are quiet."""
    service.send_event(person.submit(50, labels[49]))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if service.labels_known(1) == person.n_labels:
            return True
        time.sleep(0.2)
    return False


def resident_kb(pid: int) -> int:
    """Resident memory of a process (VmRSS)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:")))


def table(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, figure)."""
    yield "requests sent", f"{found['requests']:,}"
    for name, n in found["by_class"].items():
        yield f"  answered {name}", f"{n:,}"
    yield "slowest answer, s", f"{found['slowest_s']:.2f}"
    yield "requests per second", f"{found['requests_per_s']:.0f}"
    for number, (before, after) in enumerate(
        zip(found["web_rss_kb_before"], found["web_rss_kb_after"], strict=True), 1
    ):
        yield (
            f"web process {number}: VmRSS after the warm-up, at the end, MB",
            f"{before / 1024:.0f}, {after / 1024:.0f}",
        )
    yield (
        f"/health beside {found['stalled_clients']} stalled clients, slowest of ten, s",
        f"{found['health_while_stalled_s']:.3f}",
    )
    yield "a label is learned afterwards", "yes" if found["label_learned_afterwards"] else "NO"
    yield "faults", str(found["n_faults"])


def main(argv: Sequence[str] | None = None) -> None:
    """Sends, writes fuzz.json, prints the table; exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=N_REQUESTS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    found = run(arguments.requests, arguments.seed, n_warm_up=min(3_000, arguments.requests // 3))
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "fuzz.json").write_text(json.dumps(found, indent=2) + "\n")
    for what, figure in table(found):
        print(f"{what:<66} {figure:>14}")
    for fault in found["faults"]:
        print(f"FAULT {fault}", file=sys.stderr)
    if found["n_faults"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
