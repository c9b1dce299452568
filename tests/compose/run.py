"""Brings docker-compose.yml up for real, labels four images, takes it down again; one line per check.

    python tests/compose/run.py [--engine "docker compose"] [--weights FILE] [--torch-backend cpu] [--keep]

Needs a compose engine, access to package downloads for the image's first build, and the project's virtual environment.
The engine's health checks and `depends_on` conditions are not relied on: whatever may still be starting is tried again.
Exit code: 0 when every check passed, 1 when one failed, 2 when there is no engine.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import httpx
import numpy as np
import yaml
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]
COMPOSE_FILE = REPOSITORY / "docker-compose.yml"
EXAMPLE = REPOSITORY / ".env.example"

N_WORKERS = 2
N_IMAGES_PER_KIND = 4
"""Images of each way into Label Studio: uploaded, inside the task (`data:`), from the mounted folder."""

COLOURS = ("red", "blue")
SERVICES = {"label-studio": 1, "redis": 1, "web": 1, "worker": N_WORKERS}
READ_ONLY = ("redis", "web", "worker")

BACKEND_URL = "http://web.internal:9090"
LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/><Choices name="choice" toName="image" choice="single">'
    + "".join(f'<Choice value="{colour}"/>' for colour in COLOURS)
    + "</Choices></View>"
)

BUILD_TIMEOUT_S = 3600
START_TIMEOUT_S = 300
CONNECT_TIMEOUT_S = 30
FIRST_BATCH_TIMEOUT_S = 180
RETRAIN_TIMEOUT_S = 60
COMMAND_TIMEOUT_S = 180
PAUSE_S = 0.5

Answer = TypeVar("Answer")


class CheckError(Exception):
    """A check failed; the message says what was found."""


class Compose:
    """The compose commands for one project name and one .env, and nothing of the caller's own settings."""

    def __init__(self, engine: Sequence[str], project: str, env_file: Path) -> None:
        self._command = [*engine, "-p", project, "-f", str(COMPOSE_FILE), "--env-file", str(env_file)]
        # The shell's variables win over --env-file: a developer's own settings must not leak in.
        ours = set(re.findall(r"\$\{(\w+)", COMPOSE_FILE.read_text()))
        self._environment = {name: value for name, value in os.environ.items() if name not in ours}

    def __call__(
        self, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S, may_fail: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Runs one compose command; raises CheckError with its last lines when it fails."""
        done = subprocess.run(
            [*self._command, *arguments],
            cwd=REPOSITORY,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode and not may_fail:
            tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise CheckError(f"`compose {' '.join(arguments)}` ended with {done.returncode}:\n{tail}")
        return done

    def inside(self, service: str, *command: str, index: int = 1, may_fail: bool = False) -> str:
        """The standard output of a command in a running container."""
        return self("exec", "-T", "--index", str(index), service, *command, may_fail=may_fail).stdout


class Checks:
    """Prints one line per check and remembers whether one failed."""

    def __init__(self) -> None:
        self.n_failed = 0
        self.n_made = 0

    def __call__(self, name: str, work: Callable[[], Answer], *, needed: bool = False) -> Answer | None:
        """Makes one check; `needed`: without it the rest makes no sense, so its failure is raised."""
        started = time.monotonic()
        self.n_made += 1
        try:
            found = work()
        except (CheckError, httpx.HTTPError, subprocess.SubprocessError, OSError, KeyError, ValueError) as exc:
            self.n_failed += 1
            print(f"FAIL  {name}: {type(exc).__name__}: {exc}", flush=True)
            if needed:
                raise CheckError(f"{name} failed, the rest needs it") from exc
            return None
        shown = f": {found}" if isinstance(found, str) else ""
        print(f"ok    {name}{shown} ({time.monotonic() - started:.1f} s)", flush=True)
        return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--engine",
        default=os.environ.get("ENGINE") or "docker compose",
        help="the compose command [environment variable ENGINE, else `docker compose`]",
    )
    parser.add_argument("--weights", type=Path, help="weights file for BACKBONE, mounted; default: none, no download")
    parser.add_argument("--torch-backend", default="", help="build argument TORCH_BACKEND, such as cpu")
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    options = parser.parse_args()
    engine = shlex.split(options.engine)
    if not _works(engine):
        print(
            f"`{options.engine}` does not work on this machine; name a compose command with --engine", file=sys.stderr
        )
        return 2
    checks = Checks()
    with tempfile.TemporaryDirectory(prefix="compose-test-") as folder:
        run = Run(engine, Path(folder), options.weights, options.torch_backend, checks)
        try:
            run.everything()
        except CheckError as exc:
            print(f"stopped: {exc}", file=sys.stderr)
            run.show_logs()
        finally:
            if options.keep:
                print(f"kept: project {run.project}, Label Studio {run.label_studio_url} {run.secrets}")
            else:
                checks("taken down with its volumes", run.down)
    print(f"{checks.n_made} checks, {checks.n_failed} failed")
    return 1 if checks.n_failed else 0


class Run:
    """One run, top to bottom in `everything`."""

    def __init__(
        self, engine: Sequence[str], folder: Path, weights: Path | None, torch_backend: str, checks: Checks
    ) -> None:
        self.project = f"compose-test-{secrets.token_hex(3)}"
        self._check = checks
        self._engine = engine
        self._folder = folder
        # Label Studio (user 1001) and the backend (10001) read what is mounted from here.
        folder.chmod(0o755)
        (folder / "images").mkdir()
        (folder / "weights").mkdir()
        if weights is not None:
            shutil.copy(weights, folder / "weights" / weights.name)
            (folder / "weights" / weights.name).chmod(0o644)
        self.secrets = {
            "LABEL_STUDIO_USERNAME": "labeler@example.com",
            "LABEL_STUDIO_PASSWORD": secrets.token_urlsafe(18),
            "LABEL_STUDIO_TOKEN": secrets.token_hex(20),
            "BACKEND_PASSWORD": secrets.token_urlsafe(18),
            "REDIS_PASSWORD": secrets.token_hex(20),
        }
        label_studio_port, backend_port = _free_ports(2)
        values = {
            **self.secrets,
            "LABEL_STUDIO_PORT": str(label_studio_port),
            "BACKEND_PORT": str(backend_port),
            "IMAGES_DIR": str(folder / "images"),
            "WEIGHTS_DIR": str(folder / "weights"),
            "BACKBONE_WEIGHTS": f"/weights/{weights.name}" if weights else "",
            # Without a network (or without leave to use it) the backend falls back on its built-in descriptor.
            "ALLOW_WEIGHTS_DOWNLOAD": "false",
            "WORKERS": str(N_WORKERS),
            "TORCH_BACKEND": torch_backend,
        }
        env_file = folder / ".env"
        env_file.touch(mode=0o600)
        env_file.write_text(_filled_in(EXAMPLE, values))
        self.compose = Compose(engine, self.project, env_file)
        self.label_studio_url = f"http://127.0.0.1:{label_studio_port}"
        self._label_studio = httpx.Client(
            base_url=self.label_studio_url,
            headers={"Authorization": f"Token {self.secrets['LABEL_STUDIO_TOKEN']}"},
            timeout=30,
        )
        self._backend = httpx.Client(
            base_url=f"http://127.0.0.1:{backend_port}",
            auth=("label-studio", self.secrets["BACKEND_PASSWORD"]),
            timeout=10,
        )

    def everything(self) -> None:
        """Up, project, connect, first batch, doctor, labels, new version, rights."""
        check = self._check
        check("nothing starts without secrets", self.refuses_empty_secrets)
        check("built", self.build, needed=True)
        check("up", self.up, needed=True)
        check("web is healthy", lambda: _until(self.backend_health, START_TIMEOUT_S), needed=True)
        check("Label Studio is healthy", lambda: _until(self.label_studio_health, START_TIMEOUT_S), needed=True)
        check("health checks of the compose file", lambda: _until(self.health_commands, START_TIMEOUT_S))
        project_id = check("project with images", self.create_project, needed=True)
        assert project_id is not None
        check("connect", lambda: self.connect(project_id), needed=True)
        first = check(
            "first batch", lambda: _until(lambda: self.first_batch(project_id), FIRST_BATCH_TIMEOUT_S), needed=True
        )
        check("backend listed and connected", lambda: self.backend_listed(project_id))
        check("webhook listed", lambda: self.webhook_listed(project_id))
        check("other private addresses stay forbidden", lambda: self.refuses_other_addresses(project_id))
        check("doctor", self.doctor)
        check("workers", lambda: _until(lambda: self.workers(project_id), START_TIMEOUT_S))
        check("status only with credentials", lambda: self.status_is_guarded(project_id))
        check("next task is of the window", lambda: self.next_task(project_id))
        check("4 labels of 2 classes", lambda: self.label(project_id), needed=True)
        check("new version", lambda: _until(lambda: self.retrained(project_id, first), RETRAIN_TIMEOUT_S))
        check("next task is of the new window", lambda: _until(lambda: self.next_task(project_id), RETRAIN_TIMEOUT_S))
        check("no process runs as root", self.rights)
        check("root file systems are read-only", self.read_only)
        check("Redis asks for its password", self.redis_is_guarded)
        check("nothing is lost by down and up", lambda: self.down_and_up(project_id))

    # -- starting -------------------------------------------------------------------------------------------------

    def refuses_empty_secrets(self) -> None:
        """.env.example as it is must not start anything."""
        answer = Compose(self._engine, self.project, EXAMPLE)("config", may_fail=True)
        if answer.returncode == 0 or "see .env.example" not in answer.stdout + answer.stderr:
            raise CheckError(f"`compose config` with .env.example as it is: {(answer.stdout + answer.stderr)[-300:]}")

    def build(self) -> None:
        # One of the services that share the image: an engine that builds for all of them at once needs three times the
        # disk, some 30 GB each with CUDA.
        self.compose("build", "web", timeout_s=BUILD_TIMEOUT_S)

    def up(self) -> None:
        self.compose("up", "--detach", "--scale", f"worker={N_WORKERS}", timeout_s=BUILD_TIMEOUT_S)

    def backend_health(self) -> str:
        return str(self._backend.get("/health").raise_for_status().json()["status"])

    def label_studio_health(self) -> str:
        self._label_studio.get("/health").raise_for_status()
        return str(self._label_studio.get("/api/current-user/whoami").raise_for_status().json()["email"])

    def health_commands(self) -> str:
        """The commands that the engine runs for `healthcheck`, run here: not every engine runs them by itself."""
        services = yaml.safe_load(COMPOSE_FILE.read_text())["services"]
        for service, index in _containers():
            kind, *command = services[service]["healthcheck"]["test"]
            if kind != "CMD":
                raise CheckError(f"{service}: expected a healthcheck of the form [CMD, …], not {kind}")
            self.compose.inside(service, *command, index=index)
        return ", ".join(SERVICES)

    # -- a project ------------------------------------------------------------------------------------------------

    def create_project(self) -> int:
        """A project whose images come in three ways; the two classes are two colours of noise."""
        answer = self._ask("POST", "/api/projects/", json={"title": "Compose test", "label_config": LABEL_CONFIG})
        project_id = int(answer["id"])
        random = np.random.default_rng(0)
        pictures = [
            (COLOURS[n % 2], f"{COLOURS[n % 2]}-{n}.png", _noise(COLOURS[n % 2], random))
            for n in range(3 * N_IMAGES_PER_KIND)
        ]
        uploaded, inside, mounted = (pictures[start::3] for start in range(3))
        # Of several files under one name Label Studio keeps the last.
        files = {name: (name, png, "image/png") for _, name, png in uploaded}
        self._ask("POST", f"/api/projects/{project_id}/import", files=files)
        tasks = [
            {"data": {"image": f"data:image/png;base64,{base64.b64encode(png).decode()}", "colour": colour}}
            for colour, _, png in inside
        ]
        self._ask("POST", f"/api/projects/{project_id}/import", json=tasks)
        for _, name, png in mounted:
            (self._folder / "images" / name).write_bytes(png)
            (self._folder / "images" / name).chmod(0o644)
        storage = {
            "project": project_id,
            "title": "images",
            "path": "/files/images",
            "regex_filter": r".*\.png$",
            "use_blob_urls": True,
        }
        storage_id = self._ask("POST", "/api/storages/localfiles/", json=storage)["id"]
        self._ask("POST", f"/api/storages/localfiles/{storage_id}/sync")
        found = [task["data"]["image"][:24] for task in self._tasks(project_id)]
        if len(found) != len(pictures):
            raise CheckError(f"{len(found)} tasks of {len(pictures)}: {found}")
        return project_id

    def connect(self, project_id: int) -> str:
        """The documented command, as a person would type it after `up`: whatever still starts is waited for."""
        return _until(
            lambda: self.compose.inside("web", "python", "-m", "backend", "connect", str(project_id)).splitlines()[0],
            CONNECT_TIMEOUT_S,
        )

    def first_batch(self, project_id: int) -> str:
        """The version of the first batch."""
        status = self._status(project_id)
        if not status["model_version"] or len(status["window"]) != 3 * N_IMAGES_PER_KIND:
            raise CheckError(_shown(status))
        return str(status["model_version"])

    def backend_listed(self, project_id: int) -> str:
        backends = self._ask("GET", "/api/ml/", params={"project": project_id})
        if [(item["url"].rstrip("/"), item["state"]) for item in backends] != [(BACKEND_URL, "CO")]:
            raise CheckError(json.dumps(backends))
        return f"{BACKEND_URL}, {backends[0]['readable_state']}"

    def webhook_listed(self, project_id: int) -> str:
        webhooks = self._ask("GET", "/api/webhooks/", params={"project": project_id})
        if [(item["url"], item["is_active"]) for item in webhooks] != [(f"{BACKEND_URL}/webhook", True)]:
            raise CheckError(json.dumps([{"url": item["url"], "is_active": item["is_active"]} for item in webhooks]))
        return f"{BACKEND_URL}/webhook"

    def refuses_other_addresses(self, project_id: int) -> None:
        """The hole in Label Studio's guard is the network of the backend, nothing else."""
        for url in ("http://172.31.251.2:9090", "http://127.0.0.1:8080", "http://10.0.0.1"):
            answer = self._label_studio.post("/api/ml/", json={"project": project_id, "url": url})
            if answer.is_success or "block" not in answer.text.lower():
                raise CheckError(f"{url} as a backend: {answer.status_code} {answer.text[:300]}")

    def doctor(self) -> str:
        answer = self.compose("exec", "-T", "web", "python", "-m", "backend", "doctor", "--json", may_fail=True)
        found = [json.loads(line) for line in answer.stdout.splitlines() if line.startswith("{")]
        broken = [item for item in found if not item["ok"]]
        if answer.returncode or broken or not found:
            raise CheckError(json.dumps(broken) if broken else answer.stdout + answer.stderr)
        warnings = [f"{item['name']}: {item['found']}" for item in found if item["warning"]]
        return f"{len(found)} links ok" + (f", of them with a warning: {'; '.join(warnings)}" if warnings else "")

    def workers(self, project_id: int) -> str:
        status = self._status(project_id)
        if status["n_workers"] != N_WORKERS:
            raise CheckError(f"{status['n_workers']} of {N_WORKERS} workers: {_shown(status)}")
        return str(N_WORKERS)

    def status_is_guarded(self, project_id: int) -> None:
        answer = httpx.get(f"{self._backend.base_url}/api/projects/{project_id}/status", timeout=10)
        if answer.status_code != 401:
            raise CheckError(f"the status answers {answer.status_code} without credentials")

    # -- labeling -------------------------------------------------------------------------------------------------

    def next_task(self, project_id: int) -> str:
        window = self._status(project_id)["window"]
        task = self._ask("GET", f"/api/projects/{project_id}/next")
        if task["id"] not in window:
            raise CheckError(f"next is task {task['id']}, the window is {window}")
        return f"task {task['id']}, place {window.index(task['id']) + 1} of {len(window)}"

    def label(self, project_id: int) -> None:
        tasks = self._tasks(project_id)
        for colour in COLOURS:
            for task in [task for task in tasks if _colour(task) == colour][:2]:
                result = [
                    {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [colour]}}
                ]
                self._ask("POST", f"/api/tasks/{task['id']}/annotations/", json={"result": result})

    def retrained(self, project_id: int, first: str | None) -> str:
        status = self._status(project_id)
        if status["labels_used"] != 4 or status["model_version"] in (None, first):
            raise CheckError(_shown(status))
        return f"{status['model_version']}, labels by class {status['labels_by_class']}"

    # -- rights ---------------------------------------------------------------------------------------------------

    def rights(self) -> str:
        """Every user id of every process in every container; the first process included."""
        users: dict[str, set[int]] = {}
        for service, index in _containers():
            # A process may end between being listed and being read.
            text = self.compose.inside(service, "sh", "-c", "cat /proc/[0-9]*/status", index=index, may_fail=True)
            ids = {int(number) for line in re.findall(r"^Uid:(.*)$", text, re.M) for number in line.split()}
            if not ids or 0 in ids:
                raise CheckError(f"{service} {index}: user ids {sorted(ids)}")
            capabilities = {int(mask, 16) for mask in re.findall(r"^Cap(?:Eff|Prm|Bnd):\s*(\w+)$", text, re.M)}
            if capabilities != {0} or set(re.findall(r"^NoNewPrivs:\s*(\d)$", text, re.M)) != {"1"}:
                raise CheckError(f"{service} {index}: processes may gain rights: {sorted(capabilities)}")
            users.setdefault(service, set()).update(ids)
        return ", ".join(f"{service} {sorted(ids)}" for service, ids in users.items())

    def read_only(self) -> None:
        for service, index in _containers():
            script = "touch /probe /app/probe 2>&1; test -e /probe -o -e /app/probe && echo written"
            answer = self.compose.inside(service, "sh", "-c", script, index=index, may_fail=True)
            if service in READ_ONLY and ("written" in answer or "Read-only file system" not in answer):
                raise CheckError(f"{service} {index}: {answer}")

    def redis_is_guarded(self) -> None:
        """Label Studio is in Redis' network and may be made to call it: it must not get in."""
        ask = (
            "import socket; redis = socket.create_connection(('redis', 6379), 5);"
            " redis.sendall(b'PING\\r\\n'); print(redis.recv(100))"
        )
        answer = self.compose.inside("label-studio", "python", "-c", ask)
        if "NOAUTH" not in answer:
            raise CheckError(answer)

    def down_and_up(self, project_id: int) -> str:
        """As for an update of the images: new containers on the old volumes."""
        before = self._status(project_id)
        self.compose("down")
        self.up()
        _until(self.backend_health, START_TIMEOUT_S)
        _until(self.label_studio_health, START_TIMEOUT_S)
        after = self._status(project_id)
        same = ("labels_used", "pool_size", "accuracy")
        if [after[name] for name in same] != [before[name] for name in same] or not after["model_version"]:
            raise CheckError(f"before {_shown(before)}, after {_shown(after)}")
        return _until(self.doctor, RETRAIN_TIMEOUT_S)

    # -- the end --------------------------------------------------------------------------------------------------

    def show_logs(self) -> None:
        """The last lines of every container, for whoever reads the failure."""
        logs = self.compose("logs", "--tail", "30", may_fail=True)
        print((logs.stdout + logs.stderr)[-12_000:], file=sys.stderr)

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans")
        left = self.compose("ps", "--quiet", may_fail=True).stdout.split()
        if left:
            raise CheckError(f"containers are left: {left}")

    # -- asking ---------------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, **arguments: Any) -> Any:
        answer = self._label_studio.request(method, path, **arguments)
        if not answer.is_success:
            raise CheckError(f"{method} {path} answered {answer.status_code}: {answer.text[:500]}")
        return answer.json() if answer.content else None

    def _tasks(self, project_id: int) -> list[dict[str, Any]]:
        params = {"project": project_id, "page_size": 100, "fields": "task_only"}
        tasks: list[dict[str, Any]] = self._ask("GET", "/api/tasks/", params=params)["tasks"]
        return tasks

    def _status(self, project_id: int) -> dict[str, Any]:
        status: dict[str, Any] = self._backend.get(f"/api/projects/{project_id}/status").raise_for_status().json()
        return status


def _works(engine: Sequence[str]) -> bool:
    """Whether this is a compose command: `docker` may be there without its compose plugin."""
    if not engine or shutil.which(engine[0]) is None:
        return False
    return subprocess.run([*engine, "version"], capture_output=True, timeout=60, check=False).returncode == 0


def _until(attempt: Callable[[], Answer], timeout_s: float) -> Answer:
    """The first answer of `attempt` that is no error; the last error after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return attempt()
        except (CheckError, httpx.HTTPError, KeyError) as exc:
            if time.monotonic() > deadline:
                raise CheckError(f"not within {timeout_s:.0f} s: {exc}") from exc
            time.sleep(PAUSE_S)


def _containers() -> Iterator[tuple[str, int]]:
    for service, n_containers in SERVICES.items():
        for index in range(1, n_containers + 1):
            yield service, index


def _noise(colour: str, random: np.random.Generator) -> bytes:
    """A PNG of 64 × 64 pixels of noise around one colour."""
    pixels = random.integers(0, 90, (64, 64, 3), dtype=np.uint8)
    pixels[..., {"red": 0, "blue": 2}[colour]] += 150
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def _colour(task: Mapping[str, Any]) -> str:
    """The true class of a task: a field of its data, else part of its file name."""
    data = task["data"]
    if "colour" in data:
        return str(data["colour"])
    return next(colour for colour in COLOURS if colour in " ".join(map(str, data.values())))


def _filled_in(example: Path, values: Mapping[str, str]) -> str:
    """.env.example with values set; KeyError for a name it does not have."""
    lines = example.read_text().splitlines()
    places = {line.partition("=")[0]: number for number, line in enumerate(lines) if re.match(r"[A-Z_]+=", line)}
    for name, value in values.items():
        lines[places[name]] = f"{name}={value}"
    return "\n".join(lines) + "\n"


def _free_ports(n_ports: int) -> list[int]:
    probes = [socket.socket() for _ in range(n_ports)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _shown(status: Mapping[str, Any]) -> str:
    names = ("model_version", "labels_used", "pool_size", "window", "training", "embedding", "n_workers", "last_error")
    return json.dumps({name: status.get(name) for name in (*names, "image_failures", "backbone_warning")})


if __name__ == "__main__":
    sys.exit(main())
