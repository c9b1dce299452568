"""Small honest stand-ins: a Label Studio in memory, images that are one colour, a backbone that sees that colour."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from backend.adapters.backbones import Backbone
from backend.adapters.embedding_store import EmbeddingTable
from backend.adapters.jobs import FINETUNE_QUEUE, QUEUES, Jobs
from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.registry import Registry
from backend.config import Settings
from backend.errors import BackboneError, ImageError, LabelStudioError, ProjectNotFoundError
from backend.loop import embed
from backend.schema import AnnotatedTask, Annotation, Project, QueueEntry, Suggestion, Task, VersionRecord
from backend.services import Services

LABEL_CONFIG = (
    '<View><Image name="image" value="$image"/>'
    '<Choices name="choice" toName="image"><Choice value="cat"/><Choice value="dog"/></Choices></View>'
)
CREATED_AT = "2026-01-01T00:00:00.000000Z"
CREATED = 1767225600
"""The same moment in seconds, as it stands in a project's uid."""


def rgb(red: int, green: int = 0, blue: int = 0) -> str:
    """The reference of an image of this colour; its embedding is (red, green, blue) / 255."""
    return f"rgb:{red},{green},{blue}"


@dataclass
class FakeProject:
    """What our Label Studio keeps of one project."""

    project: Project
    tasks: dict[int, str | None] = field(default_factory=dict)
    fields: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Further data of some tasks, by task id."""
    annotations: dict[int, list[Annotation]] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    backends: list[dict[str, Any]] = field(default_factory=list)
    webhooks: list[dict[str, Any]] = field(default_factory=list)
    uploads: dict[int, bytes] = field(default_factory=dict)
    storages: dict[int, Path] = field(default_factory=dict)
    """Folders of its local-files storages, by id."""


class FakeLabelStudio:
    """One Label Studio in memory, with the rules of the real one that matter here (1.23.2).

    `asked` lists the methods called, in order; `failures` maps a method's name to the error it raises.
    """

    def __init__(self) -> None:
        self.url = "http://127.0.0.1:8080"
        self.asked: list[str] = []
        self.failures: dict[str, Exception] = {}
        self._projects: dict[int, FakeProject] = {}
        self._serial = itertools.count(1)
        self._clock = itertools.count(1)
        self._marks: dict[str, dict[int, Any]] = {}

    # -- what people do -----------------------------------------------------------------------------------------------

    def add_project(
        self, project_id: int, images: Sequence[str | None] = (), *, label_config: str = LABEL_CONFIG
    ) -> FakeProject:
        """A new project with one task per image, ids from 1 on."""
        project = Project(
            project_id, "Animals", CREATED_AT, label_config, "", "Sequential sampling", False, len(images)
        )
        kept = FakeProject(project, dict(enumerate(images, start=1)))
        self._projects[project_id] = kept
        return kept

    def remove_project(self, project_id: int) -> None:
        """Somebody deletes the project."""
        del self._projects[project_id]

    def change_project(self, project_id: int, **changes: Any) -> None:
        """Somebody changes its settings."""
        kept = self._projects[project_id]
        kept.project = dataclasses.replace(kept.project, **changes)

    def annotate(
        self,
        project_id: int,
        task_id: int,
        label: str | Sequence[str] | None,
        *,
        skipped: bool = False,
        truth: bool = False,
    ) -> None:
        """Somebody submits a label or several (None or nothing: an empty result) or skips the task."""
        result = [] if not label or skipped else [region(label)]
        annotation = Annotation(next(self._serial), result, skipped, truth, self._now())
        self._projects[project_id].annotations.setdefault(task_id, []).append(annotation)

    def withdraw(self, project_id: int, task_id: int) -> None:
        """Somebody deletes all annotations of the task."""
        del self._projects[project_id].annotations[task_id]

    def event(self, project_id: int, action: str, *, task_id: int = 0, annotation_ids: Sequence[int] = ()) -> Any:
        """The webhook about the last annotation of a task, or about deleted ones, in Label Studio's form."""
        kept = self._projects[project_id]
        everything = [annotation for given in kept.annotations.values() for annotation in given]
        n_skipped = sum(annotation.was_cancelled for annotation in everything)
        raw: dict[str, Any] = {
            "action": action,
            "project": {
                "id": project_id,
                "label_config": kept.project.label_config,
                "model_version": kept.project.model_version,
                "total_annotations_number": len(everything) - n_skipped,
                "skipped_annotations_number": n_skipped,
            },
        }
        if action == "ANNOTATIONS_DELETED":
            return {**raw, "annotations": [{"id": number} for number in annotation_ids]}
        annotation = {**dataclasses.asdict(kept.annotations[task_id][-1]), "task": task_id, "lead_time": 2.5}
        data = {"image": kept.tasks[task_id], **kept.fields.get(task_id, {})}
        return {**raw, "annotation": annotation, "task": {"id": task_id, "data": data, "overlap": 1}}

    def served_order(self, project_id: int) -> list[int]:
        """Unlabeled tasks in the order of uncertainty sampling: ascending score of the project's current version."""
        kept = self._projects[project_id]
        scored = [
            (row["score"], row["task"])
            for row in kept.predictions
            if row["model_version"] == kept.project.model_version
            and not any(not annotation.was_cancelled for annotation in kept.annotations.get(row["task"], []))
        ]
        return [task_id for _, task_id in sorted(scored)]

    def __getitem__(self, project_id: int) -> FakeProject:
        return self._projects[project_id]

    def close(self) -> None:
        """Nothing is open."""

    # -- what the service asks ----------------------------------------------------------------------------------------

    def whoami(self) -> Mapping[str, Any]:
        self._ask("whoami")
        return {"id": 1, "email": "someone@example.org"}

    def server_version(self) -> str:
        self._ask("server_version")
        return "1.23.2"

    def token_kind(self) -> str:
        return "legacy token"

    def auth_headers(self) -> dict[str, str]:
        self._ask("auth_headers")
        return {"Authorization": "Token t"}

    def project(self, project_id: int) -> Project:
        self._ask("project")
        kept = self._find(project_id)
        return dataclasses.replace(kept.project, n_tasks=len(kept.tasks))

    def projects(self) -> list[Project]:
        self._ask("projects")
        return [kept.project for kept in self._projects.values()]

    def update_project(self, project_id: int, **changes: Any) -> None:
        self._ask("update_project")
        self._find(project_id)
        self.change_project(project_id, **changes)

    def tasks(self, project_id: int, image_field: str, *, fields: Sequence[str] = ()) -> list[Task]:
        self._ask("tasks")
        assert image_field == "image"
        return [self._task(project_id, task_id, fields) for task_id in self._find(project_id).tasks]

    def tasks_after(self, project_id: int, image_field: str, task_id: int, *, fields: Sequence[str] = ()) -> list[Task]:
        self._ask("tasks_after")
        assert image_field == "image"
        later = sorted(known for known in self._find(project_id).tasks if known > task_id)
        return [self._task(project_id, known, fields) for known in later[: embed.TASKS_PER_PAGE]]

    def task(self, project_id: int, image_field: str, task_id: int) -> Task | None:
        self._ask("task")
        assert image_field == "image"
        return self._task(project_id, task_id, ()) if task_id in self._find(project_id).tasks else None

    def annotated_tasks(self, project_id: int, image_field: str, *, fields: Sequence[str] = ()) -> list[AnnotatedTask]:
        self._ask("annotated_tasks")
        assert image_field == "image"
        kept = self._find(project_id)
        return [
            AnnotatedTask(self._task(project_id, task_id, fields), list(annotations))
            for task_id, annotations in kept.annotations.items()
            if task_id in kept.tasks
        ]

    def change_mark(self, project_id: int) -> str:
        self._ask("change_mark")
        kept = self._find(project_id)
        state = {
            task_id: (image, kept.fields.get(task_id), list(kept.annotations.get(task_id, [])))
            for task_id, image in kept.tasks.items()
        }
        mark = repr(state)
        self._marks[mark] = state
        return mark

    def n_annotations_at(self, mark: str) -> int | None:
        return sum(len(annotations) for _, _, annotations in self._marks[mark].values())

    def changed_tasks(
        self, project_id: int, image_field: str, *, before: str, now: str, fields: Sequence[str] = ()
    ) -> list[AnnotatedTask] | None:
        self._ask("changed_tasks")
        old, new = self._marks[before], self._marks[now]
        if len(old) != len(new):
            return None
        kept = self._find(project_id)
        return [
            AnnotatedTask(self._task(project_id, task_id, fields), list(kept.annotations.get(task_id, [])))
            for task_id in new
            if new[task_id] != old.get(task_id)
        ]

    def push_predictions(self, project_id: int, version: str, entries: Sequence[QueueEntry]) -> None:
        self._ask("push_predictions")
        kept = self._find(project_id)
        unknown = [entry.task_id for entry in entries if entry.task_id not in kept.tasks]
        if unknown:
            raise LabelStudioError(f"POST …/import/predictions answered 400: invalid task ID {unknown}", status=400)
        kept.predictions += [
            {"task": entry.task_id, "score": entry.shown_score, "result": list(entry.result), "model_version": version}
            for entry in entries
        ]

    def activate_version(self, project_id: int, version: str) -> None:
        self._ask("activate_version")
        kept = self._find(project_id)
        if not any(row["model_version"] == version for row in kept.predictions):
            raise LabelStudioError(f"PATCH … answered 400: Model version {version!r} doesn't exist", status=400)
        self.change_project(project_id, model_version=version)

    def prediction_counts(self, project_id: int) -> dict[str, int]:
        self._ask("prediction_counts")
        counts: dict[str, int] = {}
        for row in self._find(project_id).predictions:
            counts[row["model_version"]] = counts.get(row["model_version"], 0) + 1
        return counts

    def delete_predictions(self, project_id: int, version: str) -> None:
        self._ask("delete_predictions")
        kept = self._find(project_id)
        kept.predictions = [row for row in kept.predictions if row["model_version"] != version]

    def replace_suggestions(
        self, project_id: int, version: str, suggestions: Sequence[Suggestion], advance: Callable[[int], None]
    ) -> int:
        self._ask("replace_suggestions")
        n_before = self.prediction_counts(project_id).get(version, 0)
        self.delete_predictions(project_id, version)
        self._find(project_id).predictions += [
            {"task": item.task_id, "score": item.score, "result": list(item.result), "model_version": version}
            for item in suggestions
        ]
        advance(len(suggestions))
        return n_before

    def export(self, project_id: int, export_type: str) -> bytes:
        self._ask("export")
        if export_type != "JSON":
            return f"{export_type} of project {project_id}".encode()
        tasks = [
            {
                "id": item.task.id,
                "data": {"image": item.task.image},
                "annotations": [asdict(annotation) for annotation in item.annotations],
            }
            for item in self.annotated_tasks(project_id, "image")
        ]
        return json.dumps(tasks).encode()

    def upload_image(self, project_id: int, name: str, content: bytes) -> str:
        self._ask("upload_image")
        number = next(self._serial)
        self._find(project_id).uploads[number] = content
        return f"/data/upload/{project_id}/{number:08x}-{name}"

    def import_tasks(self, project_id: int, tasks: Sequence[Mapping[str, Any]]) -> None:
        self._ask("import_tasks")
        kept = self._find(project_id)
        for task in tasks:
            task_id = max(kept.tasks, default=0) + 1
            kept.tasks[task_id] = task["data"]["image"]
            kept.fields[task_id] = {name: value for name, value in task["data"].items() if name != "image"}

    def local_storages(self, project_id: int) -> list[Mapping[str, Any]]:
        self._ask("local_storages")
        return [{"id": number, "path": str(path)} for number, path in self._find(project_id).storages.items()]

    def sync_local_storage(self, storage_id: int, *, is_target: bool = False) -> Mapping[str, Any]:
        self._ask("sync_local_storage")
        for project_id, kept in self._projects.items():
            if storage_id not in kept.storages:
                continue
            for path in sorted(kept.storages[storage_id].iterdir()):
                reference = f"/data/local-files/?d={path.name}"
                if reference not in kept.tasks.values():
                    self.import_tasks(project_id, [{"data": {"image": reference}}])
        return {"status": "completed"}

    def backends(self, project_id: int) -> list[Mapping[str, Any]]:
        self._ask("backends")
        return [dict(item) for item in self._find(project_id).backends]

    def save_backend(self, project_id: int, backend_id: int | None, **values: Any) -> None:
        self._ask("save_backend")
        kept = self._find(project_id)
        if backend_id is None:
            kept.backends.append({"id": next(self._serial), "state": "CO", "readable_state": "Connected", **values})
            # Label Studio makes a webhook of its own, for all actions and without credentials.
            url = f"{values['url']}/webhook"
            if not any(item["url"] == url for item in kept.webhooks):
                self._add_webhook(project_id, url=url, is_active=True, send_payload=True, send_for_all_actions=True)
        else:
            (found,) = [item for item in kept.backends if item["id"] == backend_id]
            found.update(values)
        self.change_project(project_id, model_version=values.get("title", kept.project.model_version))

    def delete_backend(self, backend_id: int) -> None:
        self._ask("delete_backend")
        for kept in self._projects.values():
            kept.backends = [item for item in kept.backends if item["id"] != backend_id]

    def webhooks(self, project_id: int) -> list[Mapping[str, Any]]:
        self._ask("webhooks")
        return [dict(item) for item in self._find(project_id).webhooks]

    def save_webhook(self, project_id: int, webhook_id: int | None, **values: Any) -> None:
        self._ask("save_webhook")
        if webhook_id is None:
            self._add_webhook(project_id, **values)
            return
        (found,) = [item for item in self._find(project_id).webhooks if item["id"] == webhook_id]
        found.update(values)

    def delete_webhook(self, webhook_id: int) -> None:
        self._ask("delete_webhook")
        for kept in self._projects.values():
            kept.webhooks = [item for item in kept.webhooks if item["id"] != webhook_id]

    def _add_webhook(self, project_id: int, **values: Any) -> None:
        fresh = {"id": next(self._serial), "project": project_id, "headers": {}, "actions": [], **values}
        self._find(project_id).webhooks.append(fresh)

    def _task(self, project_id: int, task_id: int, fields: Sequence[str]) -> Task:
        kept = self._find(project_id)
        known = kept.fields.get(task_id, {})
        return Task(task_id, kept.tasks[task_id], {name: known[name] for name in fields if name in known})

    def _ask(self, name: str) -> None:
        self.asked.append(name)
        if name in self.failures:
            raise self.failures[name]

    def _find(self, project_id: int) -> FakeProject:
        if project_id not in self._projects:
            raise ProjectNotFoundError(f"Label Studio has no project {project_id} that this token may see", status=404)
        return self._projects[project_id]

    def _now(self) -> str:
        minutes, seconds = divmod(next(self._clock), 60)
        return f"2026-01-02T00:{minutes:02d}:{seconds:02d}.000000Z"


def region(label: str | Sequence[str]) -> dict[str, Any]:
    """One region of an annotation's result under LABEL_CONFIG."""
    choices = [label] if isinstance(label, str) else list(label)
    return {"from_name": "choice", "to_name": "image", "type": "choices", "value": {"choices": choices}}


class FakeImages:
    """Pictures of one colour each, named by `rgb()`; 'broken:…' never loads, what is in `away` does not load now."""

    def __init__(self) -> None:
        self.away: set[str] = set()
        self.loaded: list[str] = []

    def close(self) -> None:
        """Nothing is open."""

    def load(self, reference: str, task_id: int | None = None, **_: Any) -> Image.Image:
        """A picture of one pixel."""
        self.loaded.append(reference)
        if reference in self.away:
            raise ImageError(f"image {reference!r}: Label Studio answered HTTP 503; try again later", transient=True)
        if not reference.startswith("rgb:"):
            raise ImageError(f"image {reference!r} is damaged")
        red, green, blue = (int(part) for part in reference.removeprefix("rgb:").split(","))
        return Image.new("RGB", (1, 1), (red, green, blue))


class TinyBackbone(Backbone):
    """Embeds a picture as its mean colour, 0..1 each, times its weights for red, green and blue.

    Fine-tuned it has the weights `tuned_weights`, whatever it was trained on, which is noted in `trained_on`; an error
    in their place is raised.
    """

    name = "tiny"
    dim = 3
    weights_source = "descriptor"
    warning = None
    input_side = training_side = 1
    batch_size = 2

    def __init__(self, fingerprint: str = "f00d", weights: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
        self.fingerprint = fingerprint
        self.weights = tuple(weights)
        self.n_embedded = 0
        self.accelerated = False
        self.finetuning_obstacle: str | None = None
        self.tuned_weights: Sequence[float] | BaseException = (1.0, 1.0, 1.0)
        self.trained_on: list[tuple[npt.NDArray[np.uint8], npt.NDArray[np.intp]]] = []

    def prepare(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        return np.asarray(image).reshape(-1, 3).mean(axis=0).round().astype(np.uint8).reshape(1, 1, 3)

    def embed_prepared(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        self.n_embedded += len(pixels)
        return pixels.reshape(-1, 3) / np.float32(255) * np.array(self.weights, dtype=np.float32)

    def accelerate(self) -> None:
        self.accelerated = True

    def training_pixels(self, images: Sequence[Image.Image]) -> npt.NDArray[np.uint8]:
        return np.array([np.asarray(image) for image in images], dtype=np.uint8).reshape(-1, 1, 1, 3)

    def finetuned(
        self, pixels: npt.NDArray[np.uint8], targets: npt.NDArray[np.intp], *, random_state: int
    ) -> TinyBackbone:
        self.trained_on.append((pixels, targets))
        if isinstance(self.tuned_weights, BaseException):
            raise self.tuned_weights
        return self._with(self.tuned_weights)

    def save(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(self.weights))

    def with_weights(self, path: Path) -> TinyBackbone:
        try:
            return self._with(json.loads(path.read_text()))
        except (OSError, ValueError) as exc:
            raise BackboneError(f"the weights file {path} cannot be read ({exc})") from exc

    @staticmethod
    def _with(weights: Sequence[float]) -> TinyBackbone:
        return TinyBackbone("tuned-" + "-".join(f"{weight:g}" for weight in weights), weights)


@dataclass
class World:
    """Services of one process around a Label Studio in memory, with a real Redis and a real data folder."""

    services: Services
    label_studio: FakeLabelStudio
    images: FakeImages
    backbone: TinyBackbone

    @property
    def jobs(self) -> Jobs:
        return self.services.jobs

    @property
    def registry(self) -> Registry:
        return self.services.registry

    def embed_all(self, project_id: int = 1) -> None:
        """Embeds every task of the project, here and now."""
        self.services.embedder.embed_now(project_id, self.label_studio.tasks(project_id, "image"))

    def table(self, project_id: int = 1) -> EmbeddingTable:
        """The embeddings that the project is learned and chosen from."""
        embedder = self.services.embedder
        return embedder.working_set(project_id, embedder.backbone(project_id), ()).table

    def again(self, **changes: Any) -> World:
        """Another process with the same data, Redis and Label Studio; `changes` are settings."""
        return build_world(
            dataclasses.replace(self.services.settings, **changes), self.label_studio, self.images, self.backbone
        )

    def waiting(self) -> list[str]:
        """Waiting jobs as 'retrain(1)', the most urgent first."""
        jobs = [job for queue in self.jobs.queues((*QUEUES, FINETUNE_QUEUE)) for job in queue.jobs]
        return [f"{job.func_name.removeprefix('backend.worker.')}({job.args[0]})" for job in jobs]

    def empty_queue_of_retrains(self) -> None:
        """As if a worker had taken the retrains that wait."""
        self.jobs.queues()[0].empty()

    def empty_queue(self) -> None:
        """As if workers had done everything that waits."""
        self.jobs.redis.flushall()


def build_world(settings: Settings, label_studio: FakeLabelStudio, images: FakeImages, backbone: TinyBackbone) -> World:
    services = Services(settings)
    # The stand-ins take the places that `cached_property` would fill on first use.
    vars(services).update(label_studio=label_studio, probed_label_studio=label_studio, images=images)
    services._backbone = backbone
    world = World(services, label_studio, images, backbone)
    _built.append(world)
    return world


_built: list[World] = []


def close_worlds() -> None:
    """Closes what the worlds of a test, each as a process of its own, have opened: left to chance, sockets leak."""
    while _built:
        opened = vars(_built.pop().services)
        if "jobs" in opened:
            opened["jobs"].close()


def _same_methods() -> None:
    """The stand-in has no method that the real client lacks."""
    own = {"add_project", "remove_project", "change_project", "annotate", "withdraw", "event", "served_order"}
    extra = {name for name in vars(FakeLabelStudio) if not name.startswith("_")} - own - set(dir(LabelStudioClient))
    assert not extra, extra


_same_methods()


def label(world: World, **labels: Sequence[int]) -> None:
    """Annotates tasks of project 1: label(world, cat=[1, 2])."""
    for name, task_ids in labels.items():
        for task_id in task_ids:
            world.label_studio.annotate(1, task_id, name)


def retrain(world: World, project_id: int = 1) -> VersionRecord:
    """The new version of the project, which there must be, evaluated whatever else waits."""
    assert world.services.trainer.retrain(project_id) is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.jobs, "retrain_waits", lambda: False)
        record = world.services.evaluator.evaluate(project_id)
    assert record is not None
    return record


CATS, DOGS = range(1, 13), range(13, 25)


def add_cats_and_dogs(world: World) -> None:
    """Project 1: twelve reddish tasks (`CATS`) and twelve greenish ones (`DOGS`), embedded, three of each labeled."""
    pictures = [rgb(200 - 9 * n, 60 + 5 * n, 10 * n) for n in range(12)]
    pictures += [rgb(60 + 5 * n, 200 - 9 * n, 10 * n) for n in range(12)]
    world.label_studio.add_project(1, pictures)
    world.embed_all()
    label(world, cat=CATS[:3], dog=DOGS[:3])
