"""Projects of any size in a running Label Studio, whose images exist only as embeddings.

Tasks carry made-up references; the embedding of each is written to the project's store before the service is
connected, so that its normal setup finds nothing left to embed. An embedding is that of a real picture, chosen at
random, plus noise; the label of its task is that picture's class. Nothing ever asks for the pictures themselves.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from backend.adapters.backbones import Backbone
from backend.adapters.embedding_store import EmbeddingRow, EmbeddingStore
from backend.adapters.images import decode
from backend.demo import labeling_config
from backend.loop.ledger import READ_EVERYTHING
from backend.services import Services

PICTURES_PER_CLASS = 60
NOISE = 0.5
"""Standard deviation of the noise, in those of the features over all pictures."""

N_CLASSES = 10
CLUSTERS_PER_CLASS = 20

TASKS_PER_IMPORT = 5000
READY_S = 900.0
"""Longest wait for the first version of a project: of 100,000 tasks all are listed first."""


@dataclass(frozen=True, eq=False)
class Anchors:
    """What embeddings are made from.

    embeddings: (M, D). labels: the class of each. source: where they come from, in words.
    """

    embeddings: npt.NDArray[np.float32]
    labels: Sequence[str]
    source: str


@dataclass(frozen=True)
class MadeProject:
    """A project in Label Studio.

    labels: image reference → class, of all tasks. n_labeled: tasks that were imported with their label.
    journal: the place in its journal from which on everything it was told is read.
    """

    id: int
    labels: dict[str, str]
    n_labeled: int
    journal: str = ""


class LabelStudioDatabase:
    """The SQLite file of the demo's Label Studio: what an API request would cost the measurement too much time for."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reading = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10, check_same_thread=False)

    def close(self) -> None:
        """Closes the connection."""
        self._reading.close()

    def model_version(self, project_id: int) -> str | None:
        """The version that orders the project's queue right now; well below a millisecond."""
        found = self._reading.execute("SELECT model_version FROM project WHERE id = ?", (project_id,)).fetchone()
        return found[0] if found else None

    def task_ids(self, project_id: int) -> dict[str, int]:
        """Image reference → task id, of all tasks."""
        query = "SELECT json_extract(data, '$.image'), id FROM task WHERE project_id = ?"
        return dict(self._reading.execute(query, (project_id,)).fetchall())

    def add_members(self, project_id: int, user_ids: Sequence[int]) -> None:
        """Makes users members of the project, for which the open-source edition has no request.

        The queue of a project with two members or more is drawn at random from the tasks of the current version.
        """
        statement = (
            "INSERT INTO projects_projectmember (enabled, created_at, updated_at, project_id, user_id) "
            "VALUES (1, datetime('now'), datetime('now'), ?, ?)"
        )
        writing = sqlite3.connect(self._path, timeout=60)
        with writing:
            writing.executemany(statement, [(project_id, user_id) for user_id in user_ids])
        writing.close()


def anchors_of_pictures(backbone: Backbone, images: Path, seed: int) -> Anchors:
    """Embeddings of up to PICTURES_PER_CLASS pictures of each class folder."""
    random = np.random.default_rng(seed)
    files: list[Path] = []
    for folder in sorted(path for path in images.iterdir() if path.is_dir()):
        found = sorted(folder.glob("*.*"))
        files += [found[index] for index in sorted(random.permutation(len(found))[:PICTURES_PER_CLASS])]
    embeddings = backbone.embed([decode(path.read_bytes()) for path in files])
    labels = [path.parent.name for path in files]
    return Anchors(embeddings, labels, f"{len(files)} pictures of {images.name}, with noise")


def anchors_without_pictures(dim: int, seed: int) -> Anchors:
    """Gaussian clusters of length 1, CLUSTERS_PER_CLASS of each of N_CLASSES classes."""
    random = np.random.default_rng(seed)
    n_rows = N_CLASSES * CLUSTERS_PER_CLASS
    labels = [f"class {row // CLUSTERS_PER_CLASS}" for row in range(n_rows)]
    classes = random.standard_normal((N_CLASSES, dim)).repeat(CLUSTERS_PER_CLASS, axis=0)
    embeddings = (classes + random.standard_normal((n_rows, dim))).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    return Anchors(embeddings, labels, "made up: Gaussian clusters in classes")


def made_embeddings(
    anchors: Anchors, n_rows: int, random: np.random.Generator
) -> tuple[npt.NDArray[np.float16], list[str]]:
    """Embeddings (N, D) around the anchors, each chosen equally often at random, and the class of each."""
    scale = NOISE * anchors.embeddings.std(axis=0)
    rows = random.integers(0, len(anchors.labels), n_rows)
    made = np.empty((n_rows, anchors.embeddings.shape[1]), dtype=np.float16)
    for start in range(0, n_rows, 10_000):
        chosen = rows[start : start + 10_000]
        noise = random.standard_normal((len(chosen), made.shape[1]), dtype=np.float32) * scale
        made[start : start + len(chosen)] = anchors.embeddings[chosen] + noise
    return made, [anchors.labels[row] for row in rows.tolist()]


def make_project(
    services: Services, name: str, labels: Sequence[str], n_labeled: int, classes: Sequence[str]
) -> MadeProject:
    """A project with a task for each of `labels`, in this order; the first `n_labeled` come with their annotation."""
    label_studio = services.label_studio
    project_id = label_studio.create_project(name[:50], labeling_config(classes)).id
    references = [f"https://images.example/{project_id}/{number:07d}.jpg" for number in range(len(labels))]
    tasks: list[dict[str, Any]] = [{"data": {"image": reference}} for reference in references]
    for task, label in zip(tasks[:n_labeled], labels, strict=False):
        task["annotations"] = [{"result": choice(label)}]
    for start in range(0, len(tasks), TASKS_PER_IMPORT):
        label_studio.import_tasks(project_id, tasks[start : start + TASKS_PER_IMPORT])
    return MadeProject(project_id, dict(zip(references, labels, strict=True)), n_labeled)


def connect_project(
    services: Services,
    database: LabelStudioDatabase,
    project: MadeProject,
    embeddings: npt.NDArray[np.float16],
    backbone: tuple[str, int],
) -> MadeProject:
    """Writes the embeddings (N, D) of the tasks, connects the service, and waits for the first version.

    `backbone`: fingerprint and dim of that of the service. Raises SystemExit when no version with the labels appears.
    """
    ids = database.task_ids(project.id)
    folder = services.registry.project_directory(project.id) / "embeddings"
    store = EmbeddingStore(folder, *backbone)
    store.upsert([EmbeddingRow(ids[text], text, row) for text, row in zip(project.labels, embeddings, strict=True)])
    # Nothing is lost by it: a first version reads everything.
    journal = services.jobs.record_event(project.id, READ_EVERYTHING)
    services.connector.connect(project.id)

    def is_ready() -> bool:
        record = services.registry.published_record(project.id)
        return record is not None and record.labels_used == project.n_labeled and is_quiet(services)

    wait_until(is_ready, f"a version of project {project.id} with {project.n_labeled} labels", READY_S)
    return MadeProject(project.id, project.labels, project.n_labeled, journal)


@contextmanager
def removed_afterwards(services: Services, client: httpx.Client) -> Iterator[list[int]]:
    """A list to put project ids in; these projects are deleted at the end, everything the service kept of them, too."""
    project_ids: list[int] = []
    yield project_ids
    registry = services.registry
    for project_id in project_ids:
        registry.forget(project_id)  # nothing new is begun for it from now on
    wait_until(lambda: is_quiet(services), "the end of all jobs", READY_S)
    for project_id in project_ids:
        registry.forget(project_id)  # what a job in the middle may have made of it again
        client.delete(f"/api/projects/{project_id}/").raise_for_status()
        folder = registry.project_directory(project_id)
        for aside in (folder, *folder.parent.glob(f"{project_id}.gone-*")):
            shutil.rmtree(aside)


def sign_up(url: str, invitation: str, email: str, password: str) -> tuple[int, str]:
    """A new user of Label Studio, by its own form; (id, token)."""
    with httpx.Client(base_url=url, headers={"Referer": url}, timeout=60) as browser:
        browser.get(invitation).raise_for_status()
        form = {"email": email, "password": password, "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
        answer = browser.post(invitation, data=form)
        if answer.status_code != 302:
            raise SystemExit(f"Label Studio did not let {email} sign up: status {answer.status_code}")
        token = browser.get("/api/current-user/token").raise_for_status().json()["token"]
        return int(browser.get("/api/current-user/whoami").raise_for_status().json()["id"]), token


def choice(label: str) -> list[dict[str, Any]]:
    """What the editor submits for a label."""
    return [{"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]


def is_quiet(services: Services) -> bool:
    """Whether no job waits and none runs."""
    queues = services.jobs.queues()
    return not any(len(queue) or queue.started_job_registry.get_job_count(cleanup=False) for queue in queues)


def wait_until(condition: Callable[[], bool], name: str, timeout_s: float) -> None:
    """Looks every 50 ms. Raises SystemExit after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{name} did not come within {timeout_s:.0f} s; the worker's log says why")
        time.sleep(0.05)
