"""The same loop on label-studio-ml 1.0.9: its own server with its RQ job manager, beside this service.

Both train the same head (`backend.learning.head`) on the same embeddings and are told of the same answers, one after
the other in each situation: one answer at a time, a burst, the worker killed amid answers, and killed while it trains
on the last one. The peer is set up as its documents say: `label-studio-ml init`, the requirements it generates in a
virtual environment of its own, gunicorn with the options of the Dockerfile it generates, RQ switched on as in its
docker-compose.yml, and one `rq worker`. Killed workers of both are started again after a second.

In Label Studio's place stands `benchmarks.stand_in`, whose answers cost nothing: a request less makes nobody faster.
Our versions include the scores of the whole pool and the queue pushed to it; the peer's are the trained head alone.

    python -m benchmarks.peer [--quick] [--weights FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from benchmarks import REPOSITORY, RESULTS, stack
from benchmarks.stand_in import CREATED, LABEL_CONFIG

POOL = 1_000
N_FIRST_LABELS = 20
GIVEN_UP_S = 60.0
"""How long after the last answer its label may take before it counts as lost."""

RESTART_S = 1.0
"""Pause before a killed worker is started again."""

KILLED_AFTER_S = 0.04
"""How long after the last answer its worker is killed: both have begun to train on it, neither has done so."""

PEER_PACKAGES = ("label-studio-ml==1.0.9", "redis<5", "setuptools<81")
"""Beside what the peer itself asks for: setuptools, from which gunicorn 20.1.0 imports pkg_resources; and redis-py of
the time of rq 1.10.1, for with 8.1 that worker dies of its first idle seconds ("Timeout reading from socket").
"""

HEAD_PACKAGES = ("numpy", "scipy", "threadpoolctl")
"""What our head needs, in the releases installed here."""

Json = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, writes peer.json, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few answers, the worker is not killed")
    parser.add_argument("--weights", type=Path, help="BACKBONE_WEIGHTS for mobilenet_v2")
    parser.add_argument("--only", help="situations whose name has this in it; nothing is written")
    arguments = parser.parse_args(argv)
    content: Json = {
        "label_studio": "a stand-in that answers from memory",
        "pool": POOL,
        "embeddings": "made up: 40 clusters, four labels",
        "quick": arguments.quick,
        "load_before": stack.load_of_machine(),
        "rows": [],
    }
    backbone = stack.UsedBackbone.load(arguments.weights)
    embeddings, labels = stack.made_up_pool(POOL, backbone.dim)
    with tempfile.TemporaryDirectory(prefix="peer-") as name:
        folder = Path(name)
        np.save(folder / "embeddings.npy", embeddings)
        content["peer"] = install_peer(folder)
        for situation in situations(quick=arguments.quick):
            if arguments.only and arguments.only not in situation["name"]:
                continue
            for system in situation["systems"]:
                print(f"{situation['name']}: {system} …", file=sys.stderr)
                content["rows"].append(
                    {"situation": situation["name"], "system": system}
                    | measure(system, situation, folder, backbone, embeddings, labels)
                )
    content["load_after"] = stack.load_of_machine()
    if not arguments.only:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "peer.json").write_text(json.dumps(content, indent=2) + "\n")
    print_table(content)


# -- the situations ---------------------------------------------------------------------------------------------------

OURS, OURS_WITHOUT_WAIT, PEER = "this service", "this service, PUBLISH_WAIT_S=0", "label-studio-ml 1.0.9, RQ"


ON_THE_LAST = "killed training on the last"


def situations(*, quick: bool) -> list[Json]:
    """Each with when answers are given and when, if ever, the worker is killed (s from the first answer)."""
    every = (OURS, PEER) if quick else (OURS, OURS_WITHOUT_WAIT, PEER)
    n_single, n_burst = (6, 50) if quick else (24, 200)
    found: list[Json] = [
        {"name": "one at a time", "systems": every, "due": ever_faster(n_single, 2.0, 0.3), "killed_at": None},
        {"name": "burst", "systems": every, "due": stack.schedule(50, n_burst / 50), "killed_at": None},
    ]
    if not quick:
        amid = stack.schedule(2, 20)
        last = stack.schedule(1 / 8, 24)  # so that nothing else waits when the last comes
        found += [
            {"name": "killed amid answers", "systems": (OURS, PEER), "due": amid, "killed_at": 10.1},
            {
                "name": "killed training on the last",
                "systems": (OURS, PEER),
                "due": last,
                "killed_at": last[-1] + KILLED_AFTER_S,
            },
        ]
    return found


def ever_faster(n: int, first_pause: float, last_pause: float) -> list[float]:
    """Seconds at which n answers are given, whose pauses shrink evenly from the first to the last."""
    return np.concatenate([[0.0], np.cumsum(np.linspace(first_pause, last_pause, n - 1))]).tolist()


# -- one measurement --------------------------------------------------------------------------------------------------


def measure(
    system: str,
    situation: Mapping[str, Any],
    folder: Path,
    backbone: stack.UsedBackbone,
    embeddings: np.ndarray,
    labels: list[str],
) -> Json:
    """The webhook's answer, the way of each label into a version, and the labels lost."""
    with ExitStack() as stop:
        wait = {"publish_wait_s": "0"} if system == OURS_WITHOUT_WAIT else {}
        service, person = stack.prepare(stop, {1: POOL}, backbone, **wait)
        for task_id in range(1, N_FIRST_LABELS + 1):
            person.submit(task_id, labels[task_id - 1])
        if system == PEER:
            runner: Runner = Peer(stop, folder, service)
        else:
            stack.write_pool(service.registry, 1, backbone.fingerprint, embeddings)
            runner = Ours(stop, service)
        worker = Worker(runner.worker_process)
        stop.callback(worker.stop)
        runner.await_ready()
        due = situation["due"]
        submitted_at, n_labels = [0.0] * len(due), [0] * len(due)
        if situation["killed_at"] is not None:
            killer = threading.Timer(situation["killed_at"], worker.kill_and_restart)
            killer.start()
            stop.callback(killer.join)
        guard = threading.Lock()

        def answer(number: int) -> None:
            task_id = N_FIRST_LABELS + 1 + number
            with guard:
                event = person.submit(task_id, labels[task_id - 1])
                submitted_at[number], n_labels[number] = time.time(), person.n_labels
            status, content = runner.send(json.dumps(event).encode())
            if status != 201:
                raise RuntimeError(f"{system} answered the webhook {status}: {content[:200]!r}")

        answered = stack.open_loop(answer, due)
        deadline = time.monotonic() + GIVEN_UP_S
        while (known := max((n for _, n in runner.versions()), default=0)) < person.n_labels:
            if time.monotonic() > deadline:
                break
            time.sleep(0.1)
        versions = runner.versions()
        served = runner.labels_served()
    delays = delays_to_version(submitted_at, n_labels, versions)
    reached = [delay for delay in delays if delay is not None]
    return {
        "answers": len(due),
        "labels_lost": person.n_labels - known,
        "labels_in_version_served_at_the_end": served,
        "versions": len({n for _, n in versions if n > N_FIRST_LABELS}),
        "to_version_s": {"median": stack.quantile(reached, 0.5), "p95": stack.quantile(reached, 0.95)}
        if reached
        else None,
        "webhook_ms": {
            "median": 1000 * stack.quantile(answered, 0.5),
            "p99": 1000 * stack.quantile(answered, 0.99),
        },
        "load": stack.load_of_machine(),
    }


def delays_to_version(
    submitted_at: Sequence[float], n_labels: Sequence[int], versions: Sequence[tuple[float, int]]
) -> list[float | None]:
    """Seconds from each answer to the first version made from at least as many labels as there were with it.

    versions: (when it was there, labels it was made from), in any order. None for an answer in no version.
    """
    found: list[float | None] = []
    for moment, count in zip(submitted_at, n_labels, strict=True):
        after = [made_at for made_at, n in versions if n >= count]
        found.append(min(after) - moment if after else None)
    return found


def labels_in(version_name: str) -> int:
    """How many labels a version of this service knows, as its name says: v0007-12labels-20260101T000000Z."""
    return int(version_name.split("-")[1].removesuffix("labels"))


class Worker:
    """A worker process that can be killed, with all it started, and started again."""

    def __init__(self, start: Callable[[], AbstractContextManager[subprocess.Popen[bytes]]]) -> None:
        self._start = start
        self._running = ExitStack()
        self._process = self._running.enter_context(start())

    def kill_and_restart(self) -> None:
        """SIGKILL, also to what it forked for a job; started again after `RESTART_S`."""
        stack.kill_family(self._process.pid)
        self._running.close()
        time.sleep(RESTART_S)
        self._process = self._running.enter_context(self._start())

    def stop(self) -> None:
        """Ends it."""
        self._running.close()


class Ours:
    """This service, as `measure` needs it; versions are watched every 10 ms."""

    def __init__(self, stop: ExitStack, service: stack.Service) -> None:
        self._service = service
        self._versions: list[tuple[float, int]] = []
        stop.enter_context(service.web())
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(ended,))
        watcher.start()
        stop.callback(watcher.join)
        stop.callback(ended.set)

    def worker_process(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """The worker, just started."""
        return self._service.worker_process()

    def await_ready(self) -> None:
        """Waits for the version with the first labels."""
        self._service.await_labels(1, N_FIRST_LABELS)

    def send(self, event: bytes) -> tuple[int, bytes]:
        """Delivers a webhook; (status, answer)."""
        return stack.post_json(f"{self._service.url}/webhook", event, self._service.webhook_headers)

    def versions(self) -> list[tuple[float, int]]:
        """(when it was published, labels) of all versions seen."""
        return list(self._versions)

    def labels_served(self) -> int:
        """Labels in the version that is served."""
        return self._service.labels_known(1)

    def _watch(self, ended: threading.Event) -> None:
        last = None
        while not ended.wait(0.01):
            published = self._service.registry.published(1)
            if published is not None and published != last:
                last = published
                self._versions.append((time.time(), labels_in(published)))


class Peer:
    """label-studio-ml's server over a Redis of its own; versions are read from the files its model writes."""

    def __init__(self, stop: ExitStack, folder: Path, service: stack.Service) -> None:
        self._folder = Path(stop.enter_context(tempfile.TemporaryDirectory(prefix="peer-run-")))
        self._project = folder / "backend"
        self._bin = folder / "venv" / "bin"
        self._redis_port = service.redis_port
        port = stack.free_port()
        self._url = f"http://{stack.HOST}:{port}"
        (self._folder / "models").mkdir()
        self._environment = {
            # The names of the docker-compose.yml that `label-studio-ml init` makes.
            "MODEL_DIR": str(self._folder / "models"),
            "RQ_QUEUE_NAME": "default",
            "REDIS_HOST": stack.HOST,
            "REDIS_PORT": str(service.redis_port),
            "LABEL_STUDIO_USE_REDIS": "true",
            # Those of its examples.
            "LABEL_STUDIO_HOSTNAME": service.label_studio_url,
            "LABEL_STUDIO_API_KEY": "made-up-token",
            # Those of our model.
            "EMBEDDINGS": str(folder / "embeddings.npy"),
            "N_DETAILS": "0",
            "PYTHONPATH": os.pathsep.join([str(self._project), str(REPOSITORY)]),
        }
        log = self._folder / "server.log"
        options = ["--preload", "--bind", f"{stack.HOST}:{port}", "--workers", "1", "--threads", "8", "--timeout", "0"]
        command = [str(self._bin / "gunicorn"), *options, "--chdir", str(self._project), "_wsgi:app"]
        stop.enter_context(stack.running(command, log, self._environment))
        stack.await_true(lambda: httpx.get(f"{self._url}/health").is_success, "the peer's server answers", log)

    def worker_process(self) -> AbstractContextManager[subprocess.Popen[bytes]]:
        """Its RQ worker, just started."""
        url = f"redis://{stack.HOST}:{self._redis_port}/0"
        command = [str(self._bin / "rq"), "worker", "default", "--url", url]
        return stack.running(command, self._folder / "worker.log", self._environment)

    def await_ready(self) -> None:
        """Waits for the worker to listen."""
        log = self._folder / "worker.log"
        stack.await_true(lambda: "Listening on default" in log.read_text(), "the peer's worker listens", log)
        self._setup()

    def send(self, event: bytes) -> tuple[int, bytes]:
        """Delivers a webhook; (status, answer)."""
        return stack.post_json(f"{self._url}/webhook", event, {})

    def versions(self) -> list[tuple[float, int]]:
        """(when it was there, labels) of all versions."""
        return [(found["made_at"], found["labels"]) for found in self._records()]

    def labels_served(self) -> int:
        """Labels in the version that its server picks when Label Studio sets it up; 0 if that is none."""
        picked = self._setup()
        return max((found["labels"] for found in self._records() if found["job_id"] == picked), default=0)

    def _setup(self) -> str:
        body = {"project": f"1.{CREATED}", "schema": LABEL_CONFIG, "hostname": "", "access_token": ""}
        answer = httpx.post(f"{self._url}/setup", json=body, timeout=60)
        answer.raise_for_status()
        return str(answer.json()["model_version"])

    def _records(self) -> Iterator[Json]:
        for path in (self._folder / "models").glob("*.json"):
            with suppress(ValueError):  # half written
                yield json.loads(path.read_text())


Runner = Ours | Peer


def install_peer(folder: Path) -> Json:
    """Its virtual environment and its project, made as its documents say; which releases that gave."""
    python = folder / "venv" / "bin" / "python"
    uv = [sys.executable, "-m", "uv", "--no-config"]  # ours overrides the peer's pins
    install = [*uv, "pip", "install", "--quiet", "--python", str(python)]
    _run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder / "venv")])
    _run([*install, *PEER_PACKAGES, *(f"{name}=={version(name)}" for name in HEAD_PACKAGES)])
    # What it copies into every project; without rq not even its command starts.
    (own_requirements,) = (folder / "venv").glob("lib/*/site-packages/label_studio_ml/default_configs/requirements.txt")
    _run([*install, "-r", str(own_requirements)])
    script = folder / "peer_model.py"
    shutil.copy(REPOSITORY / "benchmarks" / script.name, script)
    command = [str(python.with_name("label-studio-ml")), "init", "backend", "--script", f"{script}:PeerModel"]
    _run(command, cwd=folder)
    listed = subprocess.run(
        [*uv, "pip", "list", "--format", "json", "--python", str(python)], capture_output=True, check=True
    ).stdout
    wanted = ("label-studio-ml", "flask", "werkzeug", "gunicorn", "rq", "redis", "numpy", "scipy")
    return {item["name"]: item["version"] for item in json.loads(listed) if item["name"].lower() in wanted}


def _run(command: Sequence[str], cwd: Path | None = None) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"the peer cannot be set up: {' '.join(command)}\n{done.stderr[-2000:] or done.stdout[-2000:]}"
        )


# -- the table --------------------------------------------------------------------------------------------------------


def print_table(content: Json) -> None:
    """One line per situation and system."""
    print(", ".join(f"{name} {release}" for name, release in content["peer"].items()))
    print(
        f"{'':<28}{'':<34}{'labels':>7}{'lost':>6}{'versions':>9}"
        f"{'to version, s':>16}{'p95':>8}{'webhook, ms':>13}{'p99':>8}"
    )
    for row in content["rows"]:
        to_version = row["to_version_s"] or {"median": float("nan"), "p95": float("nan")}
        print(
            f"{row['situation']:<28}{row['system']:<34}{row['answers']:>7}{row['labels_lost']:>6}{row['versions']:>9}"
            f"{to_version['median']:>16.2f}{to_version['p95']:>8.2f}"
            f"{row['webhook_ms']['median']:>13.0f}{row['webhook_ms']['p99']:>8.0f}"
        )


if __name__ == "__main__":
    main()
