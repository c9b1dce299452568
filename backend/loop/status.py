"""How things are, for people and machines: one project's status, and the figures for /metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from backend.adapters.jobs import HISTOGRAM_BOUNDS, Jobs
from backend.adapters.registry import Registry
from backend.config import Settings
from backend.errors import ProjectNotFoundError, RedisUnavailableError, VersionNotFoundError
from backend.loop.backbones import BACKBONE_WARNING
from backend.schema import Progress, VersionRecord

if TYPE_CHECKING:
    from prometheus_client.core import Metric

LAST_ERROR = "last_error"
"""Note under which the last failure of a job is kept, until a job of the project succeeds."""

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

    def __init__(self, *, jobs: Jobs, registry: Registry, settings: Settings) -> None:
        self._jobs = jobs
        self._registry = registry
        self._settings = settings

    def project(self, project_id: int) -> dict[str, Any]:
        """The project's status as JSON. Raises ProjectNotFoundError for one that was never connected."""
        self._check_known(project_id)
        record = self._registry.published_record(project_id)
        progress = self._ask(lambda: self._jobs.progress(project_id))
        return {
            "project_id": project_id,
            "model_version": record.version if record else None,
            "kind": record.kind if record else None,
            "created_at": record.created_at if record else None,
            "labels_used": record.labels_used if record else 0,
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
            "validation": self._validation(record),
            "forecast": dict(record.forecast) if record and record.forecast else None,
            "n_suspects": record.n_suspects if record else 0,
            "suspects": self._suspects(record) if record else [],
            "acquisition": record.acquisition if record else None,
            "seed_engine": record.seed_engine if record else None,
            "seed_engine_reason": record.seed_engine_reason if record else None,
            "backbone": record.backbone if record else None,
            "backbone_warning": self._ask(
                lambda: self._jobs.note(project_id, BACKBONE_WARNING) or self._jobs.note(0, BACKBONE_WARNING)
            ),
            "finetuning": self._finetuning(project_id),
            "embedding": self._embedding(progress),
            "image_failures": self._registry.image_failures(project_id),
            "n_workers": self._ask(self._jobs.n_workers),
            "last_error": self._last_error(project_id),
        }

    def metrics(self) -> bytes:
        """Prometheus' text format, from the data folder and Redis, so that every web process gives the same."""
        from prometheus_client import CollectorRegistry, generate_latest
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        def collect() -> Iterator[Metric]:
            gauges = {
                "labels_used": "Labels the published version was trained on",
                "pool_size": "Tasks still to label",
                "accuracy": "Accuracy of the published version, 0 to 1: measured on validation tasks where "
                "active_learning_validation_labels is above 0, else cross-validated and usually pessimistic",
                "validation_labels": "Validation tasks the accuracy was measured on",
                "expected_accuracy": "Mean confidence over the images still to label, 0 to 1: an estimate",
                "labels_needed": "Labels expected to be needed until TARGET_ACCURACY; absent while unknown",
                "suspects": "Labels suspected to be wrong",
                "versions": "Model versions kept on disk",
                "image_failures": "Tasks left out because of their image",
            }
            families = {
                name: GaugeMetricFamily(f"active_learning_{name}", text, labels=["project"])
                for name, text in gauges.items()
            }
            for project_id in self._registry.known_projects():
                record = self._registry.published_record(project_id)
                values = {
                    "labels_used": record.labels_used if record else 0,
                    "pool_size": record.pool_size if record else None,
                    "accuracy": record.accuracy if record else None,
                    "validation_labels": record.validation_labels if record else 0,
                    "expected_accuracy": record.expected_accuracy if record else None,
                    "labels_needed": (record.forecast or {}).get("labels_needed") if record else None,
                    "suspects": record.n_suspects if record else 0,
                    "versions": len(self._registry.versions(project_id)),
                    "image_failures": len(self._registry.image_failures(project_id)),
                }
                for name, value in values.items():
                    if value is not None:
                        families[name].add_metric([str(project_id)], value)
            yield from families.values()
            yield GaugeMetricFamily(
                "active_learning_workers", "Workers alive", value=self._ask(self._jobs.n_workers) or 0
            )
            depth = GaugeMetricFamily("active_learning_queue_depth", "Jobs waiting", labels=["queue"])
            for queue, n_jobs in (self._ask(self._jobs.queue_depths) or {}).items():
                depth.add_metric([queue], n_jobs)
            yield depth
            outcomes = CounterMetricFamily("active_learning_jobs", "Jobs ended", labels=["outcome"])
            for name, n_jobs in (self._ask(self._jobs.counters) or {}).items():
                outcomes.add_metric([name.removeprefix("jobs_")], n_jobs)
            yield outcomes
            times = HistogramMetricFamily(
                "active_learning_stage_seconds", "How long each stage of the work took", labels=["work", "stage"]
            )
            for names, histogram in (self._ask(self._jobs.histograms) or {}).items():
                bounds = [*map(str, HISTOGRAM_BOUNDS), "+Inf"]
                times.add_metric(names, list(zip(bounds, histogram.cumulative, strict=True)), histogram.total)
            yield times

        registry = CollectorRegistry()
        registry.register(_Collector(collect))
        return generate_latest(registry)

    def versions(self, project_id: int | None) -> list[str]:
        """Kept versions, newest first: of one project, or of all when Label Studio does not say which (it does not)."""
        projects = [project_id] if project_id is not None else self._registry.known_projects()
        return [version for project in projects for version in self._registry.versions(project)]

    def known_projects(self) -> list[int]:
        """Ids of connected projects."""
        return self._registry.known_projects()

    def suspects(self, project_id: int) -> Suspects:
        """The labels that the published version suspects. Raises ProjectNotFoundError, VersionNotFoundError."""
        self._check_known(project_id)
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
        """The suspects of a record, each with the address at which a person sees the task."""
        page = f"{self._address_for_people(record.project_id)}/projects/{record.project_id}/data?task="
        return [{**item, "link": f"{page}{item['task_id']}"} for item in record.suspects]

    def _address_for_people(self, project_id: int) -> str:
        """Where a browser finds Label Studio: by the name it knows itself by, or else by the one we know.

        Unless told its address it says `localhost`. That is right for a browser on its machine, and better than the
        bare name of a container that we reach it by.
        """
        own = str((self._registry.project_facts(project_id) or {}).get("hostname") or "").rstrip("/")
        reached_by = urlsplit(self._settings.label_studio_url).hostname or ""
        if own and (urlsplit(own).hostname != "localhost" or "." not in reached_by):
            return own
        return self._settings.label_studio_url

    def _check_known(self, project_id: int) -> None:
        if self._registry.project_facts(project_id) is None:
            raise ProjectNotFoundError(
                f"project {project_id} is not connected to this service; run: python -m backend connect {project_id} "
                "(if it is connected, DATA_DIR is not the service's: give the same settings)"
            )

    def _finetuning(self, project_id: int) -> dict[str, Any] | None:
        """How the fine-tuning of the backbone goes; None with TRAIN=head."""
        if self._settings.train != "finetune":
            return None
        state = self._ask(lambda: self._jobs.finetuning(project_id))
        record = self._registry.finetuning(project_id)
        note = record.note if record else f"begins at {self._settings.finetune_from} labels"
        if record and record.outcome == "begun" and state == "idle":
            note += "; stopped in the middle"
        return {
            "state": state,
            "outcome": record.outcome if record else None,
            "labels_used": record.labels_used if record else None,
            "note": self._ask(lambda: self._jobs.note(0, FINETUNING_OBSTACLE)) or note,
            "error": record.error if record else None,
        }

    @staticmethod
    def _embedding(progress: Progress | None) -> dict[str, Any] | None:
        if progress is None:
            return None
        return {
            "done": progress.done,
            "total": progress.total,
            "images_per_s": progress.images_per_s,
            "seconds_left": progress.seconds_left,
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


class _Collector:
    """What prometheus_client's registry wants: an object with `collect`."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect
