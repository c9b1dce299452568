"""How one project is, for people and machines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from backend.adapters.jobs import Jobs
from backend.adapters.registry import Registry
from backend.config import Settings
from backend.errors import RedisUnavailableError, VersionNotFoundError
from backend.loop.backbones import BACKBONE_WARNING
from backend.loop.prelabels import described
from backend.loop.projects import check_known
from backend.loop.retries import LAST_ERROR, Retries
from backend.loop.versions import VERSION_NOTE, pin_as_json
from backend.schema import Progress, VersionRecord

FINETUNING_OBSTACLE = "finetuning_obstacle"
"""Note of project 0 under which a worker keeps why it does not fine-tune although TRAIN=finetune."""


@dataclass(frozen=True)
class Suspects:
    """Labels that a version suspects to be wrong: how many, and the likeliest of them, ready for JSON.

    n_labels: how many labels it looked at; 0 without a model, or with too few labels to hold any out.
    """

    model_version: str
    n_labels: int
    n_suspects: int
    suspects: list[dict[str, Any]]


class StatusReader:
    """Reads only what is at hand (data folder, Redis): cheap enough to be asked every second."""

    def __init__(self, *, jobs: Jobs, registry: Registry, settings: Settings, retries: Retries) -> None:
        self._retries = retries
        self._jobs = jobs
        self._registry = registry
        self._settings = settings

    def project(self, project_id: int) -> dict[str, Any]:
        """The project's status as JSON. Raises ProjectNotFoundError for one that was never connected."""
        check_known(self._registry, project_id)
        record = self._registry.published_record(project_id)
        progress = self._ask(lambda: self._jobs.progress(project_id))
        return {
            "project_id": project_id,
            "model_version": record.version if record else None,
            "kind": record.kind if record else None,
            "created_at": record.created_at if record else None,
            "pinned": pin_as_json(self._registry.pin(project_id)),
            "head_of": record.head_of if record else None,
            "version_note": self._ask(lambda: self._jobs.note(project_id, VERSION_NOTE)),
            "labels_used": record.labels_used if record else 0,
            "labels_given": record.labels_given if record else 0,
            "labels_by_class": dict(record.labels_by_class) if record else {},
            "ignored_labels": dict(record.ignored_labels) if record else {},
            "pool_size": record.pool_size if record else None,
            "window": list(record.window) if record else [],
            "training": self._ask(lambda: self._jobs.training(project_id)),
            "accuracy": record.accuracy if record else None,
            "accuracy_kind": record.accuracy_kind if record else None,
            "accuracy_labels": record.evaluated_labels if record else 0,
            "accuracy_interval": list(record.accuracy_interval) if record and record.accuracy_interval else None,
            "cross_validated_accuracy": record.cross_validated_accuracy if record else None,
            "expected_accuracy": record.expected_accuracy if record else None,
            "calibration_error": record.calibration_error if record else None,
            "label_figures": dict(record.label_figures) if record and record.label_figures else None,
            "validation": self._validation(record),
            "prelabels": self._prelabels(record),
            "forecast": dict(record.forecast) if record and record.forecast else None,
            "n_suspects": record.n_suspects if record else 0,
            "suspects": self._suspects(record) if record else [],
            "agreement": dict(record.agreement) if record and record.agreement else None,
            "n_disagreements": record.n_disagreements if record else 0,
            "disagreements": self._with_links(record, record.disagreements) if record else [],
            "acquisition": record.acquisition if record else None,
            "seed_engine": record.seed_engine if record else None,
            "seed_engine_reason": record.seed_engine_reason if record else None,
            "backbone": record.backbone if record else None,
            "backbone_warning": self._ask(
                lambda: self._jobs.note(project_id, BACKBONE_WARNING) or self._jobs.note(0, BACKBONE_WARNING)
            ),
            "finetuning": self._finetuning(project_id),
            "embedding": progress_as_json(progress),
            "shards_to_search": self._ask(lambda: self._jobs.open_searches(project_id)),
            "image_failures": self._registry.image_failures(project_id),
            "n_workers": self._ask(self._jobs.n_workers),
            "last_error": self._last_error(project_id),
            "failures": self._ask(lambda: [failure.shown() for failure in self._retries.failures(project_id)]),
        }

    def versions(self, project_id: int | None) -> list[str]:
        """Kept versions, newest first: of one project, or of all when Label Studio does not say which (it does not)."""
        projects = [project_id] if project_id is not None else self._registry.known_projects()
        return [version for project in projects for version in self._registry.versions(project)]

    def known_projects(self) -> list[int]:
        """Ids of connected projects."""
        return self._registry.known_projects()

    def suspects(self, project_id: int) -> Suspects:
        """The labels that the published version suspects. Raises ProjectNotFoundError, VersionNotFoundError."""
        check_known(self._registry, project_id)
        record = self._registry.published_record(project_id)
        if record is None:
            raise VersionNotFoundError(
                f"project {project_id} has no published version yet: the worker makes the first when its images are "
                f"embedded; to see how far that is run: python -m backend status {project_id}"
            )
        n_held_out = record.evaluated_labels if record.cross_validated_accuracy is not None else 0
        n_labels = n_held_out + record.validation_labels
        return Suspects(record.version, n_labels, record.n_suspects, self._suspects(record))

    def _suspects(self, record: VersionRecord) -> list[dict[str, Any]]:
        return self._with_links(record, record.suspects)

    def _with_links(self, record: VersionRecord, items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The items, each with the address at which a person sees its task."""
        return [{**item, "link": self.link(record.project_id, item["task_id"])} for item in items]

    def link(self, project_id: int, task_id: int | None = None) -> str:
        """The address at which a person sees the project, or one of its tasks, in Label Studio.

        By the name it knows itself by, or else by the one we know.

        Unless told its address it says `localhost`. That is right for a browser on its machine, and better than the
        bare name of a container that we reach it by.
        """
        own = str((self._registry.project_facts(project_id) or {}).get("hostname") or "").rstrip("/")
        reached_by = urlsplit(self._settings.label_studio_url).hostname or ""
        is_usable = own and (urlsplit(own).hostname != "localhost" or "." not in reached_by)
        page = f"{own if is_usable else self._settings.label_studio_url}/projects/{project_id}/data"
        return page if task_id is None else f"{page}?task={task_id}"

    def _finetuning(self, project_id: int) -> dict[str, Any] | None:
        """How the fine-tuning of the backbone goes; None with TRAIN=head."""
        if self._settings.train != "finetune":
            return None
        state = self._ask(lambda: self._jobs.finetuning(project_id))
        record = self._registry.finetuning(project_id)
        published = self._registry.published_record(project_id)
        note = record.note if record else f"begins at {self._settings.finetune_from} labels"
        if published is not None and published.threshold is not None:
            note = 'not done with choice="multiple": the backbone stays as it is, and the head learns'
        if record and record.outcome == "begun" and state == "idle":
            note += "; stopped in the middle"
        return {
            "state": state,
            "outcome": record.outcome if record else None,
            "labels_used": record.labels_used if record else None,
            "note": self._ask(lambda: self._jobs.note(0, FINETUNING_OBSTACLE)) or note,
            "error": record.error if record else None,
        }

    def _prelabels(self, record: VersionRecord | None) -> dict[str, Any] | None:
        if record is None:
            return None
        wanted = self._settings.prelabel_from
        return {
            "shown": record.kind == "model" and record.prelabels,
            "from": wanted,
            "n_in_window": record.n_prelabels,
            "note": described(record, wanted),
        }

    @staticmethod
    def _validation(record: VersionRecord | None) -> dict[str, Any] | None:
        if record is None or record.validation_filter is None:
            return None
        return {
            "filter": record.validation_filter,
            "tasks": record.validation_tasks,
            "labels": record.validation_labels,
            "note": record.validation_note,
        }

    def _last_error(self, project_id: int) -> str | None:
        try:
            return self._jobs.note(project_id, LAST_ERROR)
        except RedisUnavailableError as exc:
            return str(exc)

    @staticmethod
    def _ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except RedisUnavailableError:
            return None


def progress_as_json(progress: Progress | None) -> dict[str, Any] | None:
    """How far embedding is, as the status tells it."""
    if progress is None:
        return None
    return {
        "done": progress.done,
        "total": progress.total,
        "images_per_s": progress.images_per_s,
        "seconds_left": progress.seconds_left,
    }
