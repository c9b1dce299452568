"""The web service and the worker as processes of their own: their log lines, their figures and /ready.

Real gunicorn with two processes, a real rq worker, a real Redis; a stand-in answers for Label Studio.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from backend.telemetry import FLUSH_EVERY_S, REQUEST_ID_HEADER
from benchmarks import stack
from benchmarks.stand_in import CREATED, LABEL_CONFIG

AUTH = ("label-studio", stack.PASSWORD)
N_TASKS = 60
SECRETS = (stack.PASSWORD, stack.SECRET, "made-up-token", "made-up-redis-password")


class Running:
    """The service's processes over one folder, with LOG_FORMAT=json."""

    def __init__(self, stop: ExitStack, folder: Path) -> None:
        self.folder = folder
        backbone = stack.UsedBackbone.load(None)
        port = stop.enter_context(stack.redis(folder))
        url = stop.enter_context(stack.label_studio(folder, {1: N_TASKS}, refused=[2]))
        settings = {"LOG_FORMAT": "json", "LOG_LEVEL": "DEBUG", "WEB_WORKERS": "2", "RECONCILE_INTERVAL_S": "3600"}
        self.service = stack.Service(folder, port, url, **backbone.settings, **settings)
        embeddings, self.labels = stack.made_up_pool(N_TASKS, backbone.dim)
        stack.write_pool(self.service.registry, 1, backbone.fingerprint, embeddings)
        self.person = stack.Submitter(url, 1)
        stop.callback(self.person.close)
        self.web_pid = stop.enter_context(self.service.web())
        self._stop = stop
        self.start_worker()
        for task_id in range(1, 9):
            self.submit(task_id)
        self.service.await_labels(1, 8)

    def start_worker(self) -> None:
        self.worker = self._stop.enter_context(self.service.worker_process())

    def submit(self, task_id: int) -> None:
        self.service.send_event(self.person.submit(task_id, self.labels[task_id - 1]))

    def lines(self, process: str) -> list[dict[str, Any]]:
        """Everything the process wrote so far; not the line it is about to write."""
        text = (self.folder / f"{process}.log").read_text()
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def get(self, path: str, *, known: bool = True, **options: Any) -> httpx.Response:
        return httpx.get(f"{self.service.url}{path}", auth=AUTH if known else None, timeout=30, **options)

    def says(self, status: int) -> bool:
        """Whether both web processes, each of which gives an answer again for a while, answer /ready with this.

        Asked at once: one after the other, each request in turn would find the answer before it out of date, and wait.
        """
        with ThreadPoolExecutor(20) as threads:
            answers = list(threads.map(lambda _: self.get("/ready").status_code, range(20)))
        return set(answers) == {status}

    def samples(self) -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(self.get("/metrics").text)
        return {(item.name, *item.labels.values()): item.value for family in families for item in family.samples}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with ExitStack() as stop:
        yield Running(stop, tmp_path_factory.mktemp("service"))


def wait_until(holds: Callable[[], object], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"it did not happen within {within_s} s"
        time.sleep(0.05)


# -- logs -------------------------------------------------------------------------------------------------------------


def test_every_line_of_both_processes_is_an_object(running: Running) -> None:
    """Those of gunicorn among them; each has the four fields, and none has a secret."""
    running.get("/api/projects/1/status")
    for process in ("web", "worker"):
        lines = running.lines(process)
        assert len(lines) >= 2
        for line in lines:
            assert {"time", "level", "logger", "message"} <= line.keys()
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert any(line["logger"] == "gunicorn.error" for line in running.lines("web"))
    for log in running.folder.glob("*.log"):
        assert not [secret for secret in SECRETS if secret in log.read_text()], log


def test_every_line_of_a_job_has_its_project_and_job(running: Running) -> None:
    """From what the job itself logs to what rq and other threads log for it; facts have types of their own."""
    lines = running.lines("worker")
    trained = [line for line in lines if line["message"].startswith("retrained ")]
    assert trained
    for line in trained:
        assert line["project"] == 1
        assert line["job"].startswith("retrain-1-")
        assert isinstance(line["labels"], int)
        assert isinstance(line["took"], float)
        assert line["version"] in line["message"]
    of_loop = [line for line in lines if line["logger"].startswith(("backend.loop.train", "backend.loop.evaluate"))]
    assert of_loop
    assert all(line["project"] == 1 and "-1-" in line["job"] for line in of_loop)


def test_every_line_of_a_request_has_its_id(running: Running) -> None:
    """The id that a proxy gave, else one of our own; it comes back in the answer. One that is no id is not taken."""
    event = json.dumps({"action": "PROJECT_DELETED", "project": {"id": 1}}).encode()
    url = f"{running.service.url}/webhook"
    given = httpx.post(url, content=event, headers={**running.service.webhook_headers, REQUEST_ID_HEADER: "proxy-7.1"})
    own = httpx.post(url, content=event, headers=running.service.webhook_headers)
    odd = httpx.post(url, content=event, headers={**running.service.webhook_headers, REQUEST_ID_HEADER: "a b {}"})
    ids = [answer.headers[REQUEST_ID_HEADER] for answer in (given, own, odd)]
    assert ids[0] == "proxy-7.1"
    assert re.fullmatch("[0-9a-f]{12}", ids[1])
    assert re.fullmatch("[0-9a-f]{12}", ids[2])
    wait_until(lambda: {line.get("request") for line in running.lines("web")} >= set(ids))
    for request_id in ids:
        lines = [line for line in running.lines("web") if line.get("request") == request_id]
        assert {line["action"] for line in lines if line["message"].startswith("webhook ")} == {"PROJECT_DELETED"}
        assert {line["status"] for line in lines if line["message"].startswith("answered ")} == {201}


def test_what_is_sent_to_be_logged_stays_in_its_field(running: Running) -> None:
    """An action with a line end and a whole log line in it is one value of one line."""
    evil = 'X\n{"level": "ERROR", "message": "all is lost"}'
    event = json.dumps({"action": evil, "project": {"id": 1}}).encode()
    headers = {**running.service.webhook_headers, REQUEST_ID_HEADER: "evil"}
    assert httpx.post(f"{running.service.url}/webhook", content=event, headers=headers).status_code == 201
    wait_until(lambda: any(line.get("action") == evil for line in running.lines("web")))
    assert "all is lost" not in {line["message"] for line in running.lines("web")}


# -- figures ----------------------------------------------------------------------------------------------------------


def test_requests_of_both_web_processes_are_counted_together(running: Running) -> None:
    """Sixty requests, answered by two processes: within seconds, whichever is asked says sixty more."""
    key = ("http_requests_total", "GET", "/versions", "200")
    before = running.samples().get(key, 0)
    with ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda _: running.get("/versions").status_code, range(60)))
    assert answers == [200] * 60
    wait_until(lambda: running.samples().get(key) == before + 60, within_s=6 * FLUSH_EVERY_S)
    assert {running.samples().get(key) for _ in range(10)} == {before + 60}
    assert running.samples()["http_request_duration_seconds_count", "GET", "/versions"] == before + 60


def test_pages_that_are_none_are_one_route(running: Running) -> None:
    """A scan of a thousand addresses makes no thousand metrics."""
    for number in range(5):
        assert running.get(f"/wp-admin/{number}").status_code == 404

    def routes_counted() -> set[str]:
        return {labels[2] for labels in running.samples() if labels[0] == "http_requests_total"}

    wait_until(lambda: "unmatched" in routes_counted(), within_s=6 * FLUSH_EVERY_S)
    routes = routes_counted()
    assert not any("wp-admin" in route for route in routes)
    assert routes <= {
        "unmatched",
        "/metrics",
        "/webhook",
        "/versions",
        "/health",
        "/ready",
        "/api/projects/<int:project_id>/status",
    }


def test_the_worker_s_figures_are_served_by_the_web_service(running: Running) -> None:
    """Jobs by kind and outcome, stages, versions."""
    samples = running.samples()
    assert samples["active_learning_jobs_total", "done", "retrain"] >= 1
    assert samples["active_learning_stage_seconds_count", "fit", "retrain"] >= 1
    assert samples["active_learning_workers",] == 1
    assert samples["active_learning_labels_used", "1"] >= 8
    assert samples["active_learning_redis_up",] == 1


# -- /health and /ready -----------------------------------------------------------------------------------------------


def test_ready_tells_strangers_the_state_only(running: Running) -> None:
    """Who has the password reads why; who gives a wrong one is refused."""
    wait_until(lambda: running.says(200))
    assert running.get("/ready", known=False).json() == {"status": "ready"}
    found = running.get("/ready").json()
    assert found["status"] == "ready"
    assert set(found["checks"]) == {"redis", "data_folder", "models", "label_studio", "worker"}
    assert all(check["ok"] and check["found"] for check in found["checks"].values())
    wrong = httpx.get(f"{running.service.url}/ready", auth=("label-studio", "wrong"), timeout=30)
    assert wrong.status_code == 401


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process stands still, as one does whose machine swaps: connections are taken and not answered."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_label_studio_that_hangs_makes_it_not_ready_in_time(running: Running) -> None:
    """503 within seconds with the reason, /health as fast as ever; and ready again once it answers."""
    url = running.service.label_studio_url
    done = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    port = url.rpartition(":")[2]
    (pid,) = [int(line.split()[0]) for line in done.stdout.splitlines() if f"benchmarks.stand_in --port {port}" in line]
    with stopped(pid):
        wait_until(lambda: running.says(503))
        began = time.monotonic()
        found = running.get("/ready").json()
        assert time.monotonic() - began < 10
        assert found["status"] == "not ready"
        broken = {name for name, check in found["checks"].items() if not check["ok"]}
        assert broken == {"label_studio"}
        assert running.get("/ready", known=False).json() == {"status": "not ready"}
        with ThreadPoolExecutor(30) as threads:
            probes = [threads.submit(running.get, "/ready", known=False) for _ in range(30)]
            began = time.monotonic()
            assert running.get("/health", known=False).status_code == 200
            assert time.monotonic() - began < 5
            # Those who would wait too long are told what their process, one of two, found last.
            assert {probe.result().status_code for probe in probes} <= {200, 503}
        wait_until(lambda: running.says(503))
    wait_until(lambda: running.says(200))


def test_a_job_that_fails_is_told_with_its_reason_and_tried_again(running: Running) -> None:
    """Project 2 is one that Label Studio answers with an error: log, status and figures say why, and how often."""
    running.service.registry.register(2, CREATED, LABEL_CONFIG)
    running.service.send_event({"action": "START_TRAINING", "project": {"id": 2}})

    def failures() -> list[dict[str, Any]]:
        found = running.get("/api/projects/2/status").json()["failures"]
        return [failure for failure in found if failure["work"] == "retrain"]

    wait_until(lambda: failures() and failures()[0]["times"] >= 3)
    assert "400" in failures()[0]["reason"]
    assert failures()[0]["next_try"] is not None
    told = [
        line for line in running.lines("worker") if line["message"].startswith("job failed") and line["project"] == 2
    ]
    first = next(line for line in told if line["work"] == "retrain")
    assert (first["level"], first["times"]) == ("ERROR", 1)
    assert first["job"].startswith("retrain-2-")
    assert failures()[0]["reason"] in first["message"]
    assert [line["level"] for line in told if line["work"] == "retrain"].count("ERROR") == 1
    assert running.samples()["active_learning_job_failures", "2", "retrain"] >= 3
    assert running.samples()["active_learning_jobs_total", "failed", "retrain"] >= 3
    running.service.registry.forget(2)


def test_without_a_worker_it_is_not_ready(running: Running) -> None:
    """Killed, it counts as alive until its last sign of life is old; then /ready and the figures say so."""
    os.kill(running.worker.pid, signal.SIGKILL)
    wait_until(lambda: running.says(503))
    assert "python -m backend worker" in running.get("/ready").json()["checks"]["worker"]["found"]
    assert running.samples()["active_learning_workers",] == 0
    assert running.get("/health", known=False).json()["status"] == "UP"
    running.start_worker()
    wait_until(lambda: running.says(200), stack.START_S)
