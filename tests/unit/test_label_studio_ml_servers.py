"""The model class under the servers of label-studio-ml: 1.0.9's own, and a stand-in for 2.x; trained by our worker.

Each server runs as docs/label-studio-ml.md says, in a process of its own, on a real Redis and beside a real worker.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from backend.adapters.registry import is_own_version
from benchmarks import REPOSITORY, stack
from benchmarks.stand_in import CREATED, LABEL_CONFIG, task_json

N_TASKS = 60
UID = f"1.{CREATED}"
SETUP = {"project": UID, "schema": LABEL_CONFIG, "hostname": "http://127.0.0.1:8080", "access_token": "x"}
FAKE_RELEASE_2 = REPOSITORY / "tests" / "unit" / "label_studio_ml_2"


class Running:
    """Redis, a Label Studio that is a stand-in, our worker; and the server under test."""

    def __init__(self, stop: ExitStack, folder: Path) -> None:
        self.folder = folder
        self.stop = stop
        backbone = stack.UsedBackbone.load(None)
        redis_port = stop.enter_context(stack.redis(folder))
        url = stop.enter_context(stack.label_studio(folder, {1: N_TASKS}))
        given = {**backbone.settings, "PRELABEL_FROM": "0"}
        self.settings = {
            **given,
            "REDIS_URL": f"redis://{stack.HOST}:{redis_port}/0",
            "LABEL_STUDIO_URL": url,
            "LABEL_STUDIO_TOKEN": "made-up-token",
            "DATA_DIR": str(folder / "data"),
        }
        self.service = stack.Service(folder, redis_port, url, RECONCILE_INTERVAL_S="3600", **given)
        embeddings, self.labels = stack.made_up_pool(N_TASKS, backbone.dim)
        stack.write_pool(self.service.registry, 1, backbone.fingerprint, embeddings)
        self.person = stack.Submitter(url, 1)
        stop.callback(self.person.close)
        for task_id in range(1, 9):
            self.person.submit(task_id, self.labels[task_id - 1])
        stop.enter_context(self.service.worker(1, 8))
        self.port = stack.free_port()
        self.url = f"http://{stack.HOST}:{self.port}"

    def start(self, command: list[str], **environment: str) -> None:
        """The server, once it answers."""
        log = self.folder / "server.log"
        self.stop.enter_context(stack.running(command, log, {**self.settings, **environment}))
        stack.await_true(lambda: httpx.get(f"{self.url}/health").is_success, "the server answers", log)

    def post(self, path: str, body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60)

    def submit(self, task_id: int) -> Mapping[str, Any]:
        """A person labels a task; the webhook about it, not yet sent."""
        return self.person.submit(task_id, self.labels[task_id - 1])

    def published(self) -> str | None:
        return self.service.registry.published(1)

    def predictions(self, task_ids: range) -> list[Mapping[str, Any]]:
        body = {
            "tasks": [task_json(1, task_id) for task_id in task_ids],
            "project": UID,
            "label_config": LABEL_CONFIG,
            "params": {"login": "", "password": "", "context": None},
        }
        answer = self.post("/predict", body)
        assert answer.status_code == 200, answer.text
        results: list[Mapping[str, Any]] = answer.json()["results"]
        assert len(results) == len(task_ids)
        return results


def wait_until(holds: Callable[[], object], log: Path) -> None:
    deadline = time.monotonic() + 90
    while not holds():
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.05)


# -- 1.0.9 ------------------------------------------------------------------------------------------------------------

MODEL = "from backend.model import ActiveLearningModel\n"
"""All of the model.py that the document gives."""


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """`label-studio-ml init` and `label-studio-ml start`, as a user calls them."""
    folder = tmp_path_factory.mktemp("stock")
    program = Path(sys.executable).with_name("label-studio-ml")
    (folder / "model.py").write_text(MODEL)
    environment = {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [str(program), "init", "active-learning", "--script", "model.py:ActiveLearningModel"],
        cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with ExitStack() as stop:
        running = Running(stop, folder)
        # `start` runs whatever `python` is on the PATH.
        command = [
            str(program),
            "start",
            str(folder / "active-learning"),
            "--host",
            stack.HOST,
            "--port",
            str(running.port),
        ]
        running.start(command, LABEL_STUDIO_ML_BACKEND_V2="true", PATH=environment["PATH"])
        yield running


def test_the_document_s_model_file_is_the_one_tested() -> None:
    """Its lines are those of MODEL, and it names the setting without which some routes answer 500."""
    text = (REPOSITORY / "docs" / "label-studio-ml.md").read_text()
    assert f"    {MODEL}" in text
    assert "LABEL_STUDIO_ML_BACKEND_V2=true" in text
    assert "label-studio-ml init active-learning --script model.py:ActiveLearningModel" in text


def test_setup_and_health_of_1_0_9(stock: Running) -> None:
    """Label Studio's calls when a backend is connected are answered."""
    assert stock.post("/setup", SETUP).status_code == 200
    health = httpx.get(f"{stock.url}/health", timeout=30)
    assert health.json()["status"] == "UP"


def test_predictions_of_1_0_9(stock: Running) -> None:
    """Each task has a result, score and the version that our worker published."""
    stock.post("/setup", SETUP)
    results = stock.predictions(range(10, 16))
    assert {item["model_version"] for item in results} == {stock.published()}
    assert all(item["result"] and 0 <= item["score"] <= 1 for item in results)


def test_a_webhook_of_1_0_9_becomes_a_version(stock: Running) -> None:
    """The label is in the next published version, which the server serves at once: nothing is loaded by hand."""
    before = stock.published()
    answer = stock.post("/webhook", stock.submit(20))
    assert answer.status_code == 201
    assert set(answer.json()) == {"job_id"}
    wait_until(lambda: stock.service.labels_known(1) >= 9, stock.folder / "server.log")
    assert stock.published() != before
    assert {item["model_version"] for item in stock.predictions(range(10, 12))} == {stock.published()}


def test_train_of_1_0_9_becomes_a_version(stock: Running) -> None:
    """The old route: tasks with annotations in the body; what is learned is read from Label Studio all the same."""
    stock.post("/setup", SETUP)
    before = stock.published()
    task = {**task_json(1, 21), "annotations": [{"id": 1, "result": []}]}
    answer = stock.post("/train", {"annotations": [task], "project": UID, "label_config": LABEL_CONFIG, "params": {}})
    assert answer.status_code == 201, answer.text
    wait_until(lambda: stock.published() != before, stock.folder / "server.log")
    before = stock.published()
    nameless = {name: value for name, value in task.items() if name != "project"}
    body = {"annotations": [nameless], "project": UID, "label_config": LABEL_CONFIG, "params": {"login": "x"}}
    assert stock.post("/train", body).status_code == 201
    wait_until(lambda: stock.published() != before, stock.folder / "server.log")


def test_a_project_that_nobody_connected_is_taken_in_by_its_first_request(stock: Running) -> None:
    """1.0.9 does not pass on which project is set up: the first tasks to predict do."""
    answer = stock.post("/predict", {"tasks": [{**task_json(7, 1)}], "project": f"7.{CREATED}", "label_config": None})
    assert answer.status_code == 200
    assert answer.json()["results"][0]["result"] == []
    log = stock.folder / "worker.log"
    wait_until(lambda: "project=7" in log.read_text(), log)


def test_what_the_document_says_1_0_9_cannot_do(stock: Running) -> None:
    """No authentication; versions are the server's own job numbers, and only for POST; a ticket is not waited for."""
    assert httpx.get(f"{stock.url}/health", auth=("x", "wrong"), timeout=30).status_code == 200
    assert httpx.get(f"{stock.url}/versions", timeout=30).status_code == 405
    versions = stock.post("/versions", {"project": UID}).json()["versions"]
    assert not any(is_own_version(str(version)) for version in versions)
    assert httpx.get(f"{stock.url}/metrics", timeout=30).json() == {}
    assert httpx.get(f"{stock.url}/ready", timeout=30).status_code == 404


def test_without_the_setting_train_answers_500_with_a_traceback(stock: Running) -> None:
    """What the document warns of, on a second server that lacks LABEL_STUDIO_ML_BACKEND_V2."""
    port, log = stack.free_port(), stock.folder / "second.log"
    command = [sys.executable, str(stock.folder / "active-learning" / "_wsgi.py"), "--host", stack.HOST]
    with stack.running([*command, "--port", str(port)], log, stock.settings):
        url = f"http://{stack.HOST}:{port}"
        stack.await_true(lambda: httpx.get(f"{url}/health").is_success, "the second server answers", log)
        httpx.post(f"{url}/setup", json=SETUP, timeout=60)
        body = {"annotations": [task_json(1, 21)], "project": UID, "label_config": LABEL_CONFIG, "params": {}}
        answer = httpx.post(f"{url}/train", json=body, timeout=60)
    assert answer.status_code == 500
    assert "Traceback" in answer.text


# -- 2.x --------------------------------------------------------------------------------------------------------------

SERVE = """
from label_studio_ml.api import init_app
from model import ActiveLearningModel
app = init_app(ActiveLearningModel)
"""


@pytest.fixture(scope="module")
def release_2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The stand-in first on the path, under gunicorn as that release is started; the worker has 1.0.9 as ever."""
    folder = tmp_path_factory.mktemp("release-2")
    (folder / "model.py").write_text(MODEL)
    (folder / "_wsgi.py").write_text(SERVE)
    with ExitStack() as stop:
        running = Running(stop, folder)
        path = os.pathsep.join([str(FAKE_RELEASE_2), str(folder), str(REPOSITORY)])
        command = [sys.executable, "-m", "gunicorn", "--bind", f"{stack.HOST}:{running.port}", "--threads", "4"]
        running.start([*command, "_wsgi:app"], PYTHONPATH=path)
        yield running


def test_health_of_2_x(release_2: Running) -> None:
    """It is the stand-in's base class that is built upon."""
    assert httpx.get(f"{release_2.url}/health", timeout=30).json() == {
        "status": "UP",
        "model_class": "ActiveLearningModel",
    }


def test_setup_of_2_x_names_the_published_version(release_2: Running) -> None:
    """And not the number that the base class makes up; an unknown project is taken in."""
    assert release_2.post("/setup", SETUP).json() == {"model_version": release_2.published()}
    extra = {**SETUP, "extra_params": '{"a": 1}'}
    assert release_2.post("/setup", extra).status_code == 200
    answer = release_2.post("/setup", {**SETUP, "project": f"7.{CREATED}"})
    assert answer.status_code == 200
    log = release_2.folder / "worker.log"
    wait_until(lambda: "project=7" in log.read_text(), log)


def test_predictions_of_2_x(release_2: Running) -> None:
    """Each task has a result, score and version."""
    results = release_2.predictions(range(10, 16))
    assert {item["model_version"] for item in results} == {release_2.published()}
    assert all(item["result"] and 0 <= item["score"] <= 1 for item in results)


def test_a_webhook_of_2_x_becomes_a_version(release_2: Running) -> None:
    """`fit(event, data)` in the request returns at once with a ticket; the worker trains."""
    before = release_2.published()
    answer = release_2.post("/webhook", release_2.submit(20))
    assert answer.status_code == 201
    assert answer.json()["status"] == "ok"
    assert answer.json()["result"].keys() == {"job", "ticket"}
    wait_until(lambda: release_2.service.labels_known(1) >= 9, release_2.folder / "worker.log")
    assert release_2.published() != before
    assert {item["model_version"] for item in release_2.predictions(range(10, 12))} == {release_2.published()}
