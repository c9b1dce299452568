"""The real stack, each process under a supervisor that a test controls, and what must be true of it after a fault.

Redis (append-only) and Label Studio 1.23.2 as the demo starts them, gunicorn, workers; the service reaches Label
Studio, and Label Studio the service, through a proxy each (`fault_proxy`).
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import lance
from fault_proxy import HOST, LabelStudioProxy, WebhookProxy
from live import REPOSITORY, RUN_DIR, LabelingProject, Stack, config_of, data_uri, free_port, picture
from safetensors import SafetensorError
from safetensors.numpy import load_file

from backend import demo
from backend.config import Settings, process_environment
from backend.services import Services

FAULTS_DIR = Path(os.environ.get("FAULTS_DIR", REPOSITORY / ".test" / "faults"))
RESTART_PAUSE_S = 0.5
"""What a supervisor waits before it starts anew what has died."""

START_S = 300
RECOVERY_S = 180.0
"""Longest time to recover that is waited for; RECONCILE_INTERVAL_S is 3 here, 60 where nobody sets it."""

COLOURS = ("red", "green", "blue")
SETTINGS = {
    "SEED_SIZE": "6",
    "WINDOW_SIZE": "8",
    "RECONCILE_INTERVAL_S": "3",
    "KEEP_VERSIONS": "5",
    "WEB_WORKERS": "1",
    "ALLOW_WEIGHTS_DOWNLOAD": "false",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


class Supervised:
    """A process that is started anew whenever it dies, unless it was stopped; its output goes to a log."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._command = list(command)
        self._environment = dict(environment)
        self._wanted = False
        self._guard = threading.RLock()
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._popen is not None
        return self._popen.pid

    def start(self) -> None:
        with self._guard:
            self._wanted = True
            self._launch()

    def kill(self) -> None:
        """SIGKILL to the process and all it started; it is started anew."""
        assert self._popen is not None
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM, wait_s: float = 30) -> None:
        """Ends it, and it stays so."""
        with self._guard:
            self._wanted = False
            popen = self._popen
        if popen is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, number)
        with suppress(subprocess.TimeoutExpired):
            popen.wait(wait_s)
        with suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()

    def await_death(self, pid: int, timeout_s: float = 60) -> None:
        """Returns once the process that had this id is gone."""
        await_true(lambda: not Path(f"/proc/{pid}").exists(), f"process {pid} of {self.name} dies", timeout_s)

    def _launch(self) -> None:
        # A pipe and not the file itself: a limit on the size of files must not be one on what is logged.
        popen = subprocess.Popen(
            self._command,
            env=self._environment,
            cwd=self.log.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._popen = popen
        threading.Thread(target=self._follow, args=(popen,), daemon=True).start()

    def _follow(self, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdout is not None
        with self.log.open("ab", buffering=0) as log, popen.stdout:
            for line in popen.stdout:
                log.write(line)
        popen.wait()
        with self._guard:
            if not self._wanted or self._popen is not popen:
                return
        time.sleep(RESTART_PAUSE_S)
        with self._guard:
            if self._wanted and self._popen is popen:
                self._launch()


class Worker(Supervised):
    """A worker, below its own supervisor, that can be told what shall happen to it; see `fault_worker`."""

    def __init__(self, name: str, environment: Mapping[str, str], folder: Path) -> None:
        self._told = folder / f"{name}.json"
        command = [sys.executable, str(Path(__file__).with_name("fault_worker.py"))]
        super().__init__(name, command, {**environment, "FAULT_FILE": str(self._told)}, folder)

    @property
    def pid(self) -> int:
        """The process that works, once there is one; its supervisor forks it anew when it is killed."""
        assert self._popen is not None
        forked = Path(f"/proc/{self._popen.pid}/task/{self._popen.pid}/children")
        await_true(lambda: forked.read_text().split(), f"{self.name} works", START_S)
        return int(forked.read_text().split()[0])

    def kill_worker(self) -> None:
        """SIGKILL to the process that works, as the system does it when memory runs out."""
        os.kill(self.pid, signal.SIGKILL)

    def tell(self, **what: Any) -> None:
        """Tells the running worker, and waits until it has understood."""
        self._told.write_text(json.dumps(what))
        os.kill(self.pid, signal.SIGUSR1)
        await_true(lambda: not self._told.exists(), f"{self.name} understands {what}", 20)

    @contextmanager
    def unable_to_write(self) -> Iterator[None]:
        """No file of the worker's may grow meanwhile: the kernel refuses what it writes, as on a full disk."""
        pid = self.pid
        soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (soft, hard))


@dataclass
class FaultProject(LabelingProject):
    """A project whose tasks' right labels are known.

    given: the labels that Label Studio accepted from this suite and that were not taken back, by task.
    n_submitted: how many it accepted, ever.
    """

    colours: dict[int, str] = field(default_factory=dict)
    given: dict[int, str] = field(default_factory=dict)
    n_submitted: int = 0

    def label(self, n: int = 1) -> list[int]:
        """Takes the next task and submits its label, n times; the annotations' ids."""
        return [self.submit(self.next_task()) for _ in range(n)]

    def next_task(self) -> int:
        """As a person does: told of an error, they ask again. Two at once make SQLite say that it is locked."""
        for _ in range(5):
            answer = self.stack.label_studio.get(f"/api/projects/{self.id}/next")
            if answer.status_code != 500:
                break
            time.sleep(0.2)
        assert answer.status_code == 200, answer.text[:500]
        return int(answer.json()["id"])

    def submit(self, task_id: int, label: str | None = None) -> int:
        """Submits the right label of a task, or another one."""
        label = label or self.colours[task_id]
        annotation = self.annotate(task_id, label)
        self.given[task_id] = label
        self.n_submitted += 1
        return annotation

    def learn_tasks(self) -> None:
        """Looks which tasks there are."""
        self.colours = {task["id"]: task["data"]["colour"] for task in self.tasks() if "colour" in task["data"]}

    def add(self, n: int, first_seed: int) -> None:
        """Imports so many pictures."""
        self.stack.call("POST", f"/api/projects/{self.id}/import", json=pictures(n, first_seed))
        self.learn_tasks()

    @property
    def n_left(self) -> int:
        return len(self.colours) - len(self.given)


def pictures(n: int, first_seed: int = 0) -> list[dict[str, Any]]:
    """Tasks with small coloured squares; what colour stands in their data, where only the suite looks."""
    return [
        {"data": {"image": data_uri(picture(colour, seed, size=24)), "colour": colour}}
        for seed in range(first_seed, first_seed + n)
        for colour in [COLOURS[seed % 3]]
    ]


class FaultStack:
    """Everything, running."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        for name in ("data", "redis", "logs"):
            shutil.rmtree(folder / name, ignore_errors=True)
        for name in ("redis", "logs", "images"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        keys = self._secrets()
        label_studio_port, web_port, redis_port = free_port(), free_port(), free_port()
        self.label_studio_proxy = LabelStudioProxy(free_port(), label_studio_port)
        self.webhooks = WebhookProxy(free_port(), web_port)
        config = folder / "redis" / "redis.conf"
        config.write_text(demo.redis_config(config.parent, redis_port, keys["redis_password"]))
        url = f"http://{HOST}:{label_studio_port}"
        self.environment = process_environment(
            **SETTINGS,
            PYTHONPATH=str(REPOSITORY),
            PYTHONUNBUFFERED="1",
            REDIS_URL=f"redis://:{keys['redis_password']}@{HOST}:{redis_port}/0",
            LABEL_STUDIO_URL=self.label_studio_proxy.url,
            LABEL_STUDIO_TOKEN=keys["label_studio_token"],
            BACKEND_URL=self.webhooks.url,
            BIND=f"{HOST}:{web_port}",
            BACKEND_USER="label-studio",
            BACKEND_PASSWORD=keys["backend_password"],
            WEBHOOK_SECRET="",
            DATA_DIR=str(folder / "data"),
        )
        self.redis = Supervised("redis", [demo.redis_server(), str(config)], process_environment(), self.logs)
        home = self._label_studio()
        self.label_studio = Supervised(
            "label-studio",
            demo.label_studio_command(home, label_studio_port),
            demo.label_studio_environment(folder, url, keys),
            self.logs,
        )
        self.web = Supervised("web", [sys.executable, "-m", "backend", "web"], self.environment, self.logs)
        self.workers = [Worker(f"worker-{number}", self.environment, self.logs) for number in (1, 2)]
        facts = {
            "label_studio_url": url,
            "label_studio_token": keys["label_studio_token"],
            "backend_url": f"http://{HOST}:{web_port}",
            "backend_user": "label-studio",
            "backend_password": keys["backend_password"],
        }
        # The demo is not among them; nothing here asks for its process.
        self.stack = Stack(facts, self.environment, process=None)  # type: ignore[arg-type]
        self.services = Services(Settings.from_mapping(self.environment))

    @property
    def worker(self) -> Worker:
        """The one that always runs."""
        return self.workers[0]

    @property
    def label_studio_database(self) -> Path:
        """Label Studio's SQLite file."""
        return self.folder / "label-studio-data" / "label_studio.sqlite3"

    def start(self) -> None:
        self.redis.start()
        self.label_studio.start()
        self.await_redis()
        self.await_label_studio()
        self.web.start()
        self.worker.start()
        self.await_web()
        self.await_workers(1)

    def stop(self) -> None:
        self.services.close()
        self.stack.label_studio.close()
        self.stack.backend.close()
        for process in (*self.workers, self.web, self.label_studio, self.redis):
            process.stop(wait_s=10)
        self.label_studio_proxy.refuse()
        self.webhooks.refuse()

    def await_redis(self) -> None:
        def ping() -> bool:
            self.services.jobs.ping()
            return True

        await_true(ping, "Redis answers", 30)

    def await_label_studio(self) -> None:
        await_true(lambda: self.stack.label_studio.get("/health").is_success, "Label Studio answers", START_S)

    def await_web(self) -> None:
        await_true(lambda: self.stack.backend.get("/health").is_success, "the web service answers", 60)

    def await_workers(self, n: int) -> None:
        await_true(lambda: self.services.jobs.n_workers() == n, f"{n} workers listen", 60)

    @contextmanager
    def two_workers(self) -> Iterator[Worker]:
        """A second worker meanwhile."""
        second = self.workers[1]
        second.start()
        try:
            self.await_workers(2)
            yield second
        finally:
            second.stop()
            self.await_workers(1)

    def project(self, n: int, *, labels: Sequence[str] = COLOURS, connect: bool = True) -> FaultProject:
        """A connected project of so many pictures with a first batch."""
        body = {"title": f"faults {time.time():.3f}", "label_config": config_of(labels)}
        project = FaultProject(self.stack, int(self.stack.call("POST", "/api/projects/", json=body)["id"]))
        project.add(n, first_seed=0)
        if connect:
            self.services.connector.connect(project.id)
            project.wait(lambda status: status["model_version"] is not None, timeout_s=START_S)
        return project

    def delete(self, project: LabelingProject) -> None:
        self.stack.call("DELETE", f"/api/projects/{project.id}/")

    def log_sizes(self) -> list[int]:
        """How long the logs of web and workers are, in bytes."""
        logs = [process.log for process in (self.web, *self.workers)]
        return [log.stat().st_size if log.exists() else 0 for log in logs]

    def logged_since(self, sizes: Sequence[int]) -> str:
        """What web and workers logged since the logs had these sizes."""
        logs = [process.log for process in (self.web, *self.workers)]
        texts = [log.read_bytes()[size:] for log, size in zip(logs, sizes, strict=True) if log.exists()]
        return b"".join(texts).decode("utf-8", "replace")

    def _secrets(self) -> dict[str, str]:
        """Kept beside Label Studio's database, whose making takes a minute and which is used again."""
        path = self.folder / "secrets.json"
        if not path.exists():
            shutil.rmtree(self.folder / "label-studio-data", ignore_errors=True)
            path.write_text(json.dumps(demo.made_secrets()))
        kept: dict[str, str] = json.loads(path.read_text())
        return kept

    def _label_studio(self) -> Path:
        """The virtual environment that the other tests of the real stack use, too."""
        home = RUN_DIR / "label-studio"
        if not demo.is_label_studio_installed(home):
            demo.install_label_studio(home, self.logs / "install.log")
        return home


def ask_for_predictions(stack: FaultStack, project: FaultProject) -> None:
    """What Label Studio asks when a task is opened; whatever is away or damaged, the answer is no error."""
    tasks = [{"id": task["id"], "data": task["data"]} for task in project.tasks()[:3]]
    body = {"tasks": tasks, "project": f"{project.id}.1"}
    answer = stack.stack.backend.post("/predict", json=body)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["results"]) == len(tasks)


def await_true(condition: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Looks ten times a second; what cannot be asked is not true yet."""
    deadline = time.monotonic() + timeout_s
    while True:
        reason = ""
        try:
            if condition():
                return
        except Exception as exc:
            reason = f" ({exc})"
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}{reason}"
        time.sleep(0.1)


# -- what must be true ------------------------------------------------------------------------------------------------


def annotations_in(project: LabelingProject) -> dict[int, list[dict[str, Any]]]:
    """Task → its annotations that count, from Label Studio's own export.

    Not from `total_annotations`: that is a counter beside them, which ten people at once can leave wrong on SQLite.
    """
    params = {"exportType": "JSON", "download_all_tasks": "true"}
    exported = project.stack.call("GET", f"/api/projects/{project.id}/export", params=params)
    return {
        task["id"]: [annotation for annotation in task["annotations"] if not annotation["was_cancelled"]]
        for task in exported
    }


def labels_in(annotations: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[int, str]:
    """Task → label; several people who label one task are of one mind here."""
    found = {}
    for task_id, given in annotations.items():
        labels = {region["value"]["choices"][0] for annotation in given for region in annotation["result"]}
        if labels:
            (found[task_id],) = labels
    return found


def digest_of(labels: Mapping[int, str]) -> str:
    """What `labels_digest` of a record is documented to be, worked out without the service's code."""
    digest = hashlib.sha256()
    for task_id in sorted(labels):
        digest.update(b"%d\t%s\n" % (task_id, labels[task_id].encode()))
    return digest.hexdigest()


def published(stack: FaultStack, project_id: int) -> dict[str, Any]:
    """The record of the published version, from the data folder as it lies there."""
    folder = stack.folder / "data" / "projects" / str(project_id)
    version = json.loads((folder / "published.json").read_text())["version"]
    record: dict[str, Any] = json.loads((folder / "versions" / version / "record.json").read_text())
    assert (folder / "versions" / version / "head.safetensors").exists() == (record["kind"] == "model")
    return record


def wrong_with(stack: FaultStack, project: FaultProject) -> str | None:
    """What is not as it has to be once things are well again; None when all is.

    The published version was trained on exactly the labels in Label Studio, and on all that the suite submitted. Label
    Studio orders by it. Its predictions are on the tasks of its window, none twice and none labeled, in the window's
    order; the window is full as long as there are tasks, and was chosen from all of them. The status says the same, and
    no error. The version's files and the embeddings can be read from disk, whatever web and worker keep in memory.
    """
    status = project.status()
    if status["training"] != "idle" or status["last_error"]:
        return f"training {status['training']}, last error {status['last_error']}"
    record = published(stack, project.id)
    if status["model_version"] != record["version"]:
        return f"the status says {status['model_version']}, published is {record['version']}"
    try:
        n_embedded = read_files(stack, project.id, record)
    except (OSError, ValueError, SafetensorError) as exc:
        return f"a file cannot be read: {exc}"
    annotations = annotations_in(project)
    labels = labels_in(annotations)
    if labels != project.given:
        return f"Label Studio holds {len(labels)} labels, {len(project.given)} were given"
    if (record["labels_used"], record["labels_digest"]) != (len(labels), digest_of(labels)):
        return f"{record['version']} was trained on {record['labels_used']} labels, Label Studio holds {len(labels)}"
    ordered_by = project.stack.call("GET", f"/api/projects/{project.id}/")["model_version"]
    tasks = project.tasks()
    unlabeled = {task["id"] for task in tasks if not annotations.get(task["id"])}
    if record["pool_size"] != len(unlabeled):
        return f"{record['version']} chose from {record['pool_size']} tasks, {len(unlabeled)} are unlabeled"
    if n_embedded < len(tasks):
        return f"{n_embedded} of {len(tasks)} tasks are embedded"
    if status["embedding"] and status["embedding"]["done"] < status["embedding"]["total"]:
        return f"embedded are {status['embedding']}"
    window = record["window"]
    if len(window) != min(int(SETTINGS["WINDOW_SIZE"]), len(unlabeled)) and record["kind"] == "model":
        return f"a window of {len(window)} of {len(unlabeled)} unlabeled tasks"
    if window and ordered_by != record["version"]:
        return f"Label Studio orders by {ordered_by}, published is {record['version']}"
    pushed = sorted(
        (prediction["score"], task["id"])
        for task in tasks
        for prediction in task["predictions"]
        if prediction["model_version"] == record["version"]
    )
    if [task_id for _, task_id in pushed] != window:
        return f"Label Studio's queue is {pushed}, the window {window}"
    if not set(window) <= unlabeled:
        return f"labeled tasks are in the window {window}"
    if published(stack, project.id)["version"] != record["version"]:
        return "a version was published meanwhile"
    return None


def await_well(stack: FaultStack, projects: Sequence[FaultProject], timeout_s: float = RECOVERY_S) -> float:
    """Seconds until nothing is wrong with any of the projects: to the begin of the look that finds it so."""
    started = time.monotonic()
    looked, left = started, list(projects)
    while left:
        looked = time.monotonic()
        try:
            wrong = wrong_with(stack, left[0])
        except (httpx.HTTPError, OSError, ValueError, AssertionError) as exc:
            wrong = f"{type(exc).__name__}: {exc}"
        if wrong is None:
            left.pop(0)
            continue
        assert time.monotonic() - started < timeout_s, f"not well within {timeout_s:.0f} s: {wrong}"
        time.sleep(0.05)
    return looked - started


def read_files(stack: FaultStack, project_id: int, record: Mapping[str, Any]) -> int:
    """Reads the published head and the embeddings, without the service's code; how many images are embedded."""
    folder = stack.folder / "data" / "projects" / str(project_id)
    if record["kind"] == "model":
        load_file(folder / "versions" / record["version"] / "head.safetensors")
    datasets = folder.glob("embeddings/*.lance")
    return sum(len(lance.dataset(str(dataset)).to_table()) for dataset in datasets)


def n_lost(stack: FaultStack, project: FaultProject) -> int:
    """Labels in Label Studio or submitted by the suite that the published version does not know."""
    try:
        record = published(stack, project.id)
    except (OSError, ValueError, KeyError):
        return len(project.given)
    labels = labels_in(annotations_in(project))
    if record["labels_digest"] == digest_of(labels):
        return len(set(project.given) - set(labels))
    return max(1, len({**labels, **project.given}) - record["labels_used"])
