"""The real thing, started as a user starts it: `python -m backend demo` on free ports, kept for the whole session.

Redis, Label Studio, gunicorn and an rq worker all run; tests make projects of their own in that Label Studio.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
RUN_DIR = REPOSITORY / ".test" / "run"
START_S = 800  # the first start installs Label Studio
BESIDE_ANOTHER_REQUEST = ("is locked", "FOREIGN KEY constraint failed")  # in Label Studio's answers of 500


@dataclass
class Stack:
    """A running demo: addresses, credentials, clients."""

    facts: Mapping[str, Any]
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    label_studio: httpx.Client = field(init=False)
    backend: httpx.Client = field(init=False)

    def __post_init__(self) -> None:
        facts = self.facts
        self.label_studio = httpx.Client(
            base_url=facts["label_studio_url"],
            headers={"Authorization": f"Token {facts['label_studio_token']}"},
            timeout=120,
        )
        self.backend = httpx.Client(
            base_url=facts["backend_url"], auth=(facts["backend_user"], facts["backend_password"]), timeout=120
        )

    def call(self, method: str, path: str, **kwargs: Any) -> Any:
        """One request to Label Studio that must succeed; its JSON.

        Answered 500 because another request used the database at the same moment (its SQLite is locked; a row that it
        deletes has just got a child), nothing was done, and it is asked again.
        """
        for _ in range(10):
            answer = self.label_studio.request(method, path, **kwargs)
            if answer.status_code != 500 or not any(words in answer.text for words in BESIDE_ANOTHER_REQUEST):
                break
            time.sleep(0.2)
        assert answer.status_code < 400, f"{method} {path}: {answer.status_code} {answer.text[:500]}"
        return answer.json() if answer.content else None

    def cli(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`python -m backend …` with the demo's settings."""
        return subprocess.run(
            [sys.executable, "-m", "backend", *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            cwd=REPOSITORY,
        )

    def status(self, project_id: int) -> dict[str, Any]:
        """The status API's answer."""
        answer = self.backend.get(f"/api/projects/{project_id}/status")
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    def worker_pids(self) -> list[int]:
        """Process ids of the demo's workers."""
        return pids_with("backend", "worker", run_dir=str(RUN_DIR))


@dataclass
class LabelingProject:
    """A project of a test's own, connected and seeded, with what a labeler does to it."""

    stack: Stack
    id: int
    from_name: str = "choice"
    to_name: str = "image"

    def result(self, label: str) -> list[dict[str, Any]]:
        """What the editor submits for a label."""
        return [
            {
                "from_name": self.from_name,
                "to_name": self.to_name,
                "type": "choices",
                "value": {"choices": [label]},
            }
        ]

    def annotate(self, task_id: int, label: str | None, **extra: Any) -> int:
        """Submits (label None: skips) a task; the annotation's id."""
        body = {"result": self.result(label) if label else [], "was_cancelled": label is None, **extra}
        annotation = self.stack.call("POST", f"/api/tasks/{task_id}/annotations/", json=body)
        return int(annotation["id"])

    def status(self) -> dict[str, Any]:
        """The status API's answer."""
        return self.stack.status(self.id)

    def wait(self, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 60) -> dict[str, Any]:
        """The first status that fulfils the condition while nothing is queued."""
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            if condition(status) and status["training"] == "idle":
                return status
            if time.monotonic() > deadline:
                raise AssertionError(f"not reached within {timeout_s} s; last status: {json.dumps(status)[:1500]}")
            time.sleep(0.05)

    def next_task(self) -> int:
        """The task Label Studio hands out next (and locks to this user)."""
        return int(self.stack.call("GET", f"/api/projects/{self.id}/next")["id"])

    def tasks(self) -> list[dict[str, Any]]:
        """All tasks with annotations and predictions."""
        answer = self.stack.call("GET", "/api/tasks/", params={"project": self.id, "page_size": 10000, "fields": "all"})
        return list(answer["tasks"])

    def add_tasks(self, references: Sequence[str], image_field: str = "image") -> None:
        """Imports tasks for these image references."""
        body = [{"data": {image_field: reference}} for reference in references]
        self.stack.call("POST", f"/api/projects/{self.id}/import", json=body)

    def queue(self) -> list[tuple[float, int]]:
        """(score, task) of the active version's predictions on tasks without annotation, ascending."""
        version = self.stack.call("GET", f"/api/projects/{self.id}/")["model_version"]
        return sorted(
            (prediction["score"], task["id"])
            for task in self.tasks()
            for prediction in task["predictions"]
            if prediction["model_version"] == version and not task["total_annotations"]
        )


def picture(colour: str, seed: int, size: int = 48) -> Image.Image:
    """A noisy square, mostly red, green or blue: three classes any backbone can tell apart."""
    channel = {"red": 0, "green": 1, "blue": 2}[colour]
    pixels = np.random.default_rng(seed).integers(0, 90, (size, size, 3), dtype=np.uint8)
    pixels[..., channel] += 150
    return Image.fromarray(pixels)


def png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def data_uri(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def config_of(labels: Sequence[str], *, name: str = "choice", image: str = "image", image_field: str = "image") -> str:
    choices = "".join(f'<Choice value="{label}"/>' for label in labels)
    return (
        f'<View><Image name="{image}" value="${image_field}"/>'
        f'<Choices name="{name}" toName="{image}">{choices}</Choices></View>'
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def pids_with(*words: str, run_dir: str | None = None) -> list[int]:
    """Ids of living processes whose command line holds all words (and whose log goes below run_dir)."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            output = str((entry / "fd" / "1").readlink()) if run_dir else ""
        except OSError:
            continue
        if not zombie and all(word.encode() in command for word in words) and output.startswith(run_dir or ""):
            found.append(int(entry.name))
    return found


@contextmanager
def paused(pids: Sequence[int]) -> Iterator[None]:
    """Processes held where they are, as a busy machine may hold them."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def demo_environment(**extra: str) -> dict[str, str]:
    """The settings tests run the demo with: small batches, quick reconciliation, no attempt to download weights."""
    return {
        **os.environ,
        "SEED_SIZE": "6",
        "WINDOW_SIZE": "8",
        "RECONCILE_INTERVAL_S": "3",
        "PRELABEL_FROM": "0",  # so that there are some from the first model on
        "ALLOW_WEIGHTS_DOWNLOAD": "false",
        "ALLOW_PRIVATE_ADDRESSES": "true",  # some images come from a web server on this machine
        "PYTHONUNBUFFERED": "1",
        **extra,
    }


def start_demo(images: Path, run_dir: Path, *, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """`python -m backend demo` as a child of its own."""
    run_dir.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, "-m", "backend", "demo", "--images", str(images), "--run-dir", str(run_dir),
        "--label-studio-port", str(free_port()), "--backend-port", str(free_port()),
    ]  # fmt: skip
    with (run_dir / "demo.log").open("w") as log:
        # A shell starts background jobs with SIGINT ignored; Ctrl-C and `kill -INT` must stop the demo all the same.
        command = ["sh", "-c", 'trap "" INT; exec "$@"', "sh", *command]
        return subprocess.Popen(
            command,
            env=dict(environment or demo_environment()),
            cwd=REPOSITORY,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def await_demo(process: subprocess.Popen[bytes], run_dir: Path, timeout_s: float = START_S) -> dict[str, Any]:
    """demo.json once the demo is ready."""
    deadline = time.monotonic() + timeout_s
    while not (run_dir / "demo.json").exists():
        output = (run_dir / "demo.log").read_text()
        assert process.poll() is None, f"the demo stopped:\n{output}"
        assert time.monotonic() < deadline, f"the demo did not get ready in {timeout_s:.0f} s:\n{output}"
        time.sleep(0.2)
    facts: dict[str, Any] = json.loads((run_dir / "demo.json").read_text())
    return facts


def stop_demo(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    process.wait(60)


def colour_of(project: LabelingProject, task_id: int) -> str:
    """The right label of a task made of coloured squares."""
    data = project.stack.call("GET", f"/api/tasks/{task_id}/")["data"]
    raw = base64.b64decode(next(iter(data.values())).partition(",")[2])
    mean = np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).reshape(-1, 3).mean(axis=0)
    return ("red", "green", "blue")[int(mean.argmax())]


def copy_label_studio(run_dir: Path) -> None:
    """Gives `run_dir` the running demo's Label Studio as it is now: one from nothing builds tables for a minute."""
    target = run_dir / "label-studio-data"
    target.mkdir()
    shutil.copy(RUN_DIR / "secrets.json", run_dir)
    name = "label_studio.sqlite3"
    with (
        contextlib.closing(sqlite3.connect(RUN_DIR / "label-studio-data" / name, timeout=60)) as source,
        contextlib.closing(sqlite3.connect(target / name)) as copy,
    ):
        source.backup(copy)


def redis_url(run_dir: Path) -> str:
    lines = dict(line.split(" ", 1) for line in (run_dir / "redis" / "redis.conf").read_text().splitlines())
    return f"redis://:{lines['requirepass']}@127.0.0.1:{lines['port']}/0"


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
