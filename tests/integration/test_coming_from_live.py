"""docs/coming-from.md with a real Label Studio: its tables are gone through, every command typed as it stands."""

from __future__ import annotations

import functools
import http.server
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from chromium import CHROMIUM, PATIENCE_S, patient_chromium
from coming_from import ML_BACKEND, SCORES, WEATHER, WEBCAM, Walk, walking
from live import REPOSITORY, RUN_DIR, LabelingProject, config_of, free_port, remove
from playwright.sync_api import Page, Response
from s3 import environment_of, new_bucket
from typist import Typist, sitting_typist

from backend.adapters.registry import Registry, load_head
from backend.formats.annotations import read_annotations
from backend.formats.lightly_predictions import check_predictions
from backend.formats.names import path_of
from backend.loop.folder import classes_of

MakeProject = Callable[..., LabelingProject]


@pytest.fixture(scope="module")
def typist() -> Iterator[Typist]:
    """Types the commands of all tables."""
    with sitting_typist() as found:
        yield found


@pytest.fixture
def make_folder(digits: Path, make_project: MakeProject) -> Iterator[Callable[..., Path]]:
    """Makes folders below Label Studio's document root; in one of them n digits of each class, under these names."""
    made: list[Path] = []

    def make(project: LabelingProject, name: str = "", classes: tuple[str, ...] = (), n: int = 0) -> Path:
        home = RUN_DIR / "images" / f"reader-{project.id}"
        made.append(home)
        (home / name).mkdir(parents=True, exist_ok=True)
        put_digits(home / name, digits, classes, range(n))
        return home

    yield make
    for folder in made:
        remove(folder)


def put_digits(folder: Path, digits: Path, classes: tuple[str, ...], numbers: range) -> dict[str, str]:
    """Digits 0, 1, … named after these classes, `cloudy0.png`; name → class."""
    for digit, label in enumerate(classes):
        files = sorted((digits / str(digit)).iterdir())
        for number in numbers:
            shutil.copy(files[number], folder / f"{label}{number}.png")
    return classes_of([path.name for path in folder.iterdir() if path.suffix == ".png"]) if classes else {}


def beside_the_demo(project: LabelingProject, folder: Path, database: int) -> dict[str, str]:
    """Settings of a service of the reader's own, with another port, data folder and Redis database than the demo's."""
    of_tests = ("SEED_SIZE", "WINDOW_SIZE", "PRELABEL_FROM", "RECONCILE_INTERVAL_S")  # the reader has the defaults
    environment = {name: value for name, value in project.stack.environment.items() if name not in of_tests}
    port = free_port()
    return {
        **environment,
        "BACKEND_URL": f"http://127.0.0.1:{port}",
        "BIND": f"127.0.0.1:{port}",
        "REDIS_URL": environment["REDIS_URL"].removesuffix("/0") + f"/{database}",
        "DATA_DIR": str(folder / "data"),
        "WEB_WORKERS": "1",
        "PUBLISH_WAIT_S": "0",
    }


def wait_until(holds: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
    """What is waited for, once it is there."""
    deadline = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def status_of(walk: Walk, project: LabelingProject) -> dict[str, Any]:
    """The status of the reader's own service."""
    auth = (walk.environment["BACKEND_USER"], walk.environment["BACKEND_PASSWORD"])
    answer = httpx.get(f"{walk.environment['BACKEND_URL']}/api/projects/{project.id}/status", auth=auth, timeout=60)
    found: dict[str, Any] = answer.json()
    return found


def settled(walk: Walk, project: LabelingProject, n_labels: int) -> dict[str, Any] | None:
    """The status once the newest version knows so many labels and Label Studio's queue is its."""
    status = status_of(walk, project)
    active = project.stack.call("GET", f"/api/projects/{project.id}/")["model_version"]
    is_so = (status["labels_used"], status["training"], status["model_version"]) == (n_labels, "idle", active)
    return status if is_so else None


def label(project: LabelingProject, label_of: Callable[[str], str], task_ids: list[int] | None = None) -> int:
    """Submits the right label of these tasks, or of all without one; how many."""
    tasks = {task["id"]: task for task in project.tasks()}
    wanted = [task_id for task_id in task_ids or tasks if not tasks[task_id]["total_annotations"]]
    for task_id in wanted:
        project.annotate(task_id, label_of(name_of(tasks[task_id])))
    return len(wanted)


def name_of(task: Mapping[str, Any]) -> str:
    """The name of the file that a task shows."""
    data = task["data"]
    return path_of(data.get("source") or data["image"]).rpartition("/")[2].rpartition("-")[2]


def letters(name: str) -> str:
    """The class in a name such as cloudy1.png."""
    found = re.match(r"[a-z_]+", name)
    assert found
    return found[0].strip("_")


def new_project(make_project: MakeProject, label_config: str | None = None) -> LabelingProject:
    return make_project([], config=label_config, connect=False)


def accuracy_in(said: str) -> float:
    """The validation accuracy that `train` prints, in percent."""
    found = re.search(r"Validation accuracy: ([\d.]+)%", said)
    assert found, said
    return float(found[1])


# -- the weather tutorial ---------------------------------------------------------------------------------------------


def test_the_weather_tutorial(
    make_project: MakeProject, typist: Typist, make_folder: Callable[..., Path], s3_server: str
) -> None:
    """From the folder to the second model; people's answers are given through Label Studio's API."""
    project = new_project(make_project)
    call = project.stack.call
    home = make_folder(project, "dataset2", ("cloudy", "rain", "shine", "sunrise"), 22)
    bucket = new_bucket(
        s3_server, {"data/cloudy1.jpg": b"x", "data/cloudy2.jpg": b"x", "data/rain1.jpg": b"x", "data/rain2.jpg": b"x"}
    )
    environment = {**project.stack.environment, **environment_of(s3_server), "DATA_DIR": str(home / "data")}
    places = {"3": str(project.id), "s3://bucket": f"s3://{bucket}"}
    with walking(WEATHER, home, environment, places, typist=typist) as walk:
        (said,) = walk.step("Account and API token")
        assert "select" in said
        walk.step("Download the images")
        truth = classes_of([path.name for path in (home / "dataset2").iterdir()])
        assert sorted(set(truth.values())) == ["cloudy", "rain", "shine", "sunrise"]
        walk.step("`setup_data.py`")
        training = json.loads((home / "work/full_train.json").read_text())
        validation = json.loads((home / "work/val.json").read_text())
        assert sorted([*training, *validation]) == sorted(truth)
        walk.step("`aws s3 sync` of the images")
        assert len(json.loads((home / "work-of-bucket/full_train.json").read_text())) == 2
        walk.step("Set up a Lightly Worker")
        (said,) = walk.step("`run_first_selection.py`")
        initial = said.splitlines()
        assert len(set(initial)) == 30
        assert set(initial) <= set(training)
        walk.step("See them in the Web App")
        assert sorted(path.name for path in (home / "samples_for_labelling").iterdir()) == sorted(initial)

        walk.step("Create a project, paste")
        config = (REPOSITORY / "labeling_config.xml").read_text(encoding="utf-8")
        call("PATCH", f"/api/projects/{project.id}/", json={"label_config": config})
        (said,) = walk.step("Add a source storage")
        assert "30 new tasks" in said
        assert sorted(name_of(task) for task in project.tasks()) == sorted(initial)
        walk.step("Instructions for others")
        write_instructions(project)
        walk.step("*Label All Tasks* with keys")
        assert label(project, truth.__getitem__) == 30
        walk.step("Export as JSON-MIN")
        exported = read_annotations(home / "annotation-0.json")
        assert exported.format == "json-min"
        assert len(exported.labels) == len(read_annotations(home / "annotations").labels) == 30

        (said,) = walk.step("`train_model_1.py`")
        first = accuracy_in(said)
        assert load_head(home / "model-0.safetensors")[0].classes == ("cloudy", "rain", "shine", "sunrise")
        walk.step("Write `tasks.json` and")
        assert check_predictions(home / "work") == []
        predictions = home / "work" / ".lightly" / "predictions"
        assert json.loads((predictions / "tasks.json").read_text()) == ["weather-classification"]
        task_type = json.loads((predictions / "weather-classification" / "schema.json").read_text())["task_type"]
        assert task_type == "classification"
        (said,) = walk.step("`run_second_selection.py`")
        second = said.splitlines()
        assert len(set(second) - set(initial)) == 30
        _, said = walk.step("Download these, *Sync")
        assert "30 new tasks" in said
        assert label(project, truth.__getitem__) == 30
        walk.step("Label them, export as")
        assert len(read_annotations(home / "annotation-1.json").labels) == 60
        (said,) = walk.step("`train_model_2.py`")
        assert "60 labels of 4 classes" in said
        assert accuracy_in(said) >= first > 40  # four classes: chance is 25


def write_instructions(project: LabelingProject) -> None:
    """As in Settings → Annotation, and they are shown to those who label."""
    body = {"expert_instruction": "Look at the sky.", "show_instruction": True}
    project.stack.call("PATCH", f"/api/projects/{project.id}/", json=body)
    kept = project.stack.call("GET", f"/api/projects/{project.id}/")
    assert {name: kept[name] for name in body} == body


# -- the webcam -------------------------------------------------------------------------------------------------------


@contextmanager
def served(folder: Path) -> Iterator[int]:
    """The files of a folder at every address of this machine's own network; the port."""
    handler = functools.partial(_Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        """Nothing."""


def test_the_webcam_assignment(
    make_project: MakeProject, typist: Typist, make_folder: Callable[..., Path], digits: Path
) -> None:
    """Pictures from addresses, thirty of a coreset first, fifteen more, and new ones labeled by the model."""
    classes = ("sunny", "cloudy", "overcast")
    project = new_project(make_project, config_of(["none", "yet"]))
    call = project.stack.call
    home = make_folder(project, "weather_raw", classes, 17)
    call("PATCH", f"/api/projects/{project.id}/", json={"label_config": config_of(classes)})
    (home / "new").mkdir()
    truth = put_digits(home / "new", digits, classes, range(30, 34))
    with (
        served(home / "weather_raw") as port,
        walking(WEBCAM, home, beside_the_demo(project, home, 1), {"3": str(project.id)}, typist=typist) as walk,
    ):
        names = sorted(path.name for path in (home / "weather_raw").iterdir())
        # One request a second to a host: every picture has one of its own.
        addresses = [f"http://127.0.0.{n}:{port}/{name}" for n, name in enumerate(names, start=1)]
        (home / "webcam.txt").write_text("# hourly\n" + "\n".join(addresses), encoding="utf-8")
        (said,) = walk.step("`1_scrape_….py` downloads")
        assert said.splitlines() == [f"added {address}" for address in addresses]
        assert sorted(name_of(task) for task in project.tasks()) == names
        said = walk.step("Upload them to the web app")[-1]
        assert "ready to label" in said
        status = status_of(walk, project)
        assert (status["pool_size"], len(status["window"])) == (51, 30)
        walk.step("Embedding view")
        auth = (walk.environment["BACKEND_USER"], walk.environment["BACKEND_PASSWORD"])
        page = httpx.get(f"{walk.environment['BACKEND_URL']}/projects/{project.id}", auth=auth)
        assert page.is_success
        (said,) = walk.step("*Create Sampling*")
        assert len(set(said.splitlines()) & set(names)) == 30
        first = Registry(home / "data" / "projects").published_record(project.id)
        assert first is not None
        assert first.seed_strategy == "coreset"
        assert project.next_task() == status["window"][0]
        walk.step("Labeling interface")
        assert [choice in call("GET", f"/api/projects/{project.id}/")["label_config"] for choice in classes] == [
            True
        ] * 3
        walk.step("Labelling instructions")
        write_instructions(project)
        walk.step("Label the 30")
        assert label(project, letters, status["window"]) == 30
        walk.step("Export the labels")
        assert len(read_annotations(home / "labels.json").labels) == 30
        wait_until(lambda: settled(walk, project, 30), "30 labels learned")
        (said,) = walk.step("Train a model, choose 15 more")
        status = json.loads(said)
        assert (status["labels_used"], len(status["window"])) == (30, 21)  # all that are left
        assert status["expected_accuracy"] > 0.5  # three classes: chance is a third
        assert status["forecast"]["suggestion"]
        walk.step("Label the additional 15")
        assert label(project, letters, status["window"][:15]) == 15
        wait_until(lambda: settled(walk, project, 45), "45 labels learned")
        (said,) = walk.step("Train on the new labels")
        assert re.search(r"45 labels.*published", said)
        walk.step("Apply the model to new images")
        rows = [line.split(",") for line in (home / "labels.csv").read_text("utf-8").splitlines()[1:]]
        right = [truth[Path(file).name] == said_label for file, said_label, _ in rows]
        assert len(right) == 12
        assert sum(right) > 7  # chance is 4
        assert (home / "sheet.png").stat().st_size > 1000


# -- an ML backend ----------------------------------------------------------------------------------------------------


def test_an_ml_backend_of_ones_own(
    make_project: MakeProject, typist: Typist, make_folder: Callable[..., Path], digits: Path
) -> None:
    """Pre-annotated, connected by one command, and each label makes a model whose predictions the next task has."""
    classes = ("fire", "smoke", "none")
    project = new_project(make_project, config_of(["nothing", "yet"]))
    call = project.stack.call
    home = make_folder(project, "pictures", classes, 6)
    with walking(
        ML_BACKEND, home, project.stack.environment, {"3": str(project.id)}, runs_already=True, typist=typist
    ) as walk:
        walk.step("Create a project, import data")
        for path in sorted((home / "pictures").iterdir()):
            files = {"file": (path.name, path.read_bytes(), "image/png")}
            call("POST", f"/api/projects/{project.id}/import", files=files)
        assert len(project.tasks()) == 18
        walk.step("Labeling interface")
        call("PATCH", f"/api/projects/{project.id}/", json={"label_config": config_of(classes)})
        for path in (home / "pictures").iterdir():
            target = home / "dataset" / letters(path.name) / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
        (said,) = walk.step("Pre-annotated data")
        assert "18 predictions of version 'yolo-1'" in said
        predicted = {name_of(task): task["predictions"][0]["result"][0]["value"]["choices"] for task in project.tasks()}
        assert predicted == {name: [letters(name)] for name in predicted}
        walk.step("`label-studio-ml init")
        (said,) = walk.step("`label-studio start … --ml-backends`")
        assert "ready to label" in said
        (backend,) = call("GET", "/api/ml/", params={"project": project.id})
        assert (backend["url"], backend["state"]) == (walk.environment["BACKEND_URL"], "CO")
        walk.step("Webhooks that send")
        hooks = call("GET", "/api/webhooks/", params={"project": project.id})
        assert [hook["url"] for hook in hooks] == [f"{walk.environment['BACKEND_URL']}/webhook"]
        assert any("secret" in name.lower() for name in hooks[0]["headers"])
        walk.step("Task sampling with")
        assert call("GET", f"/api/projects/{project.id}/")["sampling"] == "Uncertainty sampling"
        walk.step("Label: `fit` trains")
        for n_labels in range(1, 7):
            first = status_of(walk, project)["window"][0]
            assert project.next_task() == first
            label(project, letters, [first])
            wait_until(lambda n=n_labels: settled(walk, project, n), f"{n_labels} labels learned")
        assert len(project.queue()) == 8  # WINDOW_SIZE of the tests: predictions of this very version


# -- scores -----------------------------------------------------------------------------------------------------------


def test_scores_that_no_script_writes(
    make_project: MakeProject, typist: Typist, make_folder: Callable[..., Path]
) -> None:
    """Local storages, a simple file, then neighbours of the worst labels first, sorted and labeled as displayed."""
    classes = ("cat", "dog", "owl")
    project = new_project(make_project, config_of(["nothing", "yet"]))
    call = project.stack.call
    home = make_folder(project, "images", classes, 14)
    shutil.copy(home / "images" / "cat0.png", home / "images" / "notes.txt")
    with walking(SCORES, home, beside_the_demo(project, home, 2), {"3": str(project.id)}, typist=typist) as walk:
        walk.step('"Train/val split is up to you"')
        assert len(json.loads((home / "work/val.json").read_text())) == 9
        walk.step("Sign up, create a project")
        call("PATCH", f"/api/projects/{project.id}/", json={"label_config": config_of(classes)})
        (said,) = walk.step("Source storage with File Filter Regex")
        assert "42 new tasks" in said
        ids = {name_of(task): task["id"] for task in project.tasks()}
        held_back = [ids[name] for name in ("cat1.png", "dog1.png", "owl1.png")]
        for task_id in held_back:
            data = call("GET", f"/api/tasks/{task_id}/", params={"resolve_uri": "false"})["data"]
            call("PATCH", f"/api/tasks/{task_id}/", json={"data": {**data, "split": "val"}})
        walk.step("Target storage, an empty folder")
        assert (home / "annotations").is_dir()
        walk.step("Random sampling first")
        call("PATCH", f"/api/projects/{project.id}/", json={"sampling": "Uniform sampling"})
        handed_out = {project.next_task() for _ in range(2)}
        assert handed_out <= set(ids.values())
        walk.step("*Label All Tasks* with shortcuts")
        labeled = [f"{label_name}{number}.png" for label_name in classes for number in range(4)]
        assert label(project, letters, [ids[name] for name in labeled]) == 12
        walk.step("`export_annotations.py`")
        assert json.loads((home / "dataset.json").read_text()) == {name: [letters(name)] for name in sorted(labeled)}
        walk.step("`get_embeddings()`")
        walk.step("Model version, token and project id")
        said = walk.step("`active_learning.py`")[-1]
        assert "sequential" in said
        status = wait_until(lambda: settled(walk, project, 9), "nine labels to train on, three to judge by")
        assert (status["acquisition"], status["accuracy_kind"]) == (
            "knn_of_high_loss",
            "measured on 3 validation tasks",
        )
        window = status["window"]
        assert not set(window) & set(held_back)
        (said,) = walk.step("Choose the model version")
        assert f"{status['model_version']}" in said
        assert call("GET", f"/api/projects/{project.id}/")["model_version"] == status["model_version"]
        walk.step("Show the column")
        query = json.dumps({"ordering": ["-tasks:predictions_score"]})
        params = {"project": project.id, "page_size": 100, "query": query, "fields": "all"}
        shown = call("GET", "/api/tasks/", params=params)["tasks"]
        assert [task["id"] for task in shown][: len(window)] == window
        scores = [task["predictions_score"] for task in shown[: len(window)]]
        assert scores == sorted(scores, reverse=True)
        walk.step("*Label Tasks As Displayed*")
        if CHROMIUM is None:
            body = {"ordering": ["-tasks:predictions_score"], "selectedItems": {"all": True, "excluded": []}}
            action = {"id": "next_task", "project": project.id}
            assert call("POST", "/api/dm/actions/", params=action, json=body)["id"] == window[0]
        else:
            with patient_chromium() as chromium:
                page = chromium.new_page(viewport={"width": 1400, "height": 900})
                assert labeled_as_displayed(page, project, window) == window[0]
        (said,) = walk.step("When the UI hangs")
        assert "FAIL" not in said
        assert "ok" in said


def labeled_as_displayed(page: Page, project: LabelingProject, window: list[int]) -> int:
    """Sorts the Data Manager by falling score until it shows the window, and labels as displayed: the task opened."""
    facts = project.stack.facts
    listed: list[list[int]] = []
    served: list[int] = []

    def remember(response: Response) -> None:
        if not response.ok:
            return
        if "/api/tasks" in response.url:
            listed.append([task["id"] for task in response.json().get("tasks", [])])
        if "/api/dm/actions" in response.url and "next_task" in response.url:
            served.append(int(response.json()["id"]))

    page.goto(f"{facts['label_studio_url']}/user/login")
    page.fill("input[name=email]", facts["email"])
    page.fill("input[name=password]", facts["password"])
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "/user/login" not in url, wait_until="commit")
    page.on("response", remember)
    page.goto(f"{facts['label_studio_url']}/projects/{project.id}/data")
    page.click("button:has-text('Order by')")
    n_listed = len(listed)
    page.get_by_text("Prediction score", exact=True).last.click()
    await_in_page(page, lambda: len(listed) > n_listed)
    page.click("button[aria-label='Sort descending']")
    await_in_page(page, lambda: listed[-1][: len(window)] == window)
    page.click("button[aria-label='Toggle open']")
    page.get_by_text("Label Tasks As Displayed").click()
    await_in_page(page, lambda: served)
    return served[0]


def await_in_page(page: Page, holds: Callable[[], object]) -> None:
    """While the page goes on."""
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, page.url
        page.wait_for_timeout(50)
