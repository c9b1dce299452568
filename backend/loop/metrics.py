"""The figures for Prometheus, from the data folder and Redis, so that every web process gives the same.

Names and units follow https://prometheus.io/docs/practices/naming/: base units, `_total` for counters, `_seconds` for
times, the moment something happened and not how long ago that is. What is not known is left out, never a made-up zero.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import accumulate
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from backend import __version__
from backend.adapters.jobs import HISTOGRAM_BOUNDS, Histogram, Jobs
from backend.adapters.registry import Registry, version_number
from backend.errors import RedisUnavailableError
from backend.loop.retries import Retries
from backend.schema import VersionRecord

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PREFIX = "active_learning_"

HTTP_COUNTS = "http"
"""Name in Redis of the counts of requests."""

Kind = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True)
class MetricFamily:
    """One metric: its name as Prometheus shows it, what it counts, and by which labels."""

    name: str
    kind: Kind
    labels: tuple[str, ...]
    meaning: str


_TABLE: tuple[tuple[str, Kind, tuple[str, ...], str], ...] = (
    ("http_requests_total", "counter", ("method", "route", "status"), "Requests answered"),
    (
        "http_request_duration_seconds",
        "histogram",
        ("method", "route"),
        "Time from a request to its answer; of /webhook with the wait for the new version, see PUBLISH_WAIT_S",
    ),
    (f"{PREFIX}build_info", "gauge", ("version", "python"), "Always 1; its labels name the release"),
    (f"{PREFIX}redis_up", "gauge", (), "1 if Redis answers; if 0, all that is kept there is missing here"),
    (f"{PREFIX}workers", "gauge", (), "Workers alive"),
    (f"{PREFIX}queue_depth", "gauge", ("queue",), "Jobs waiting"),
    (f"{PREFIX}jobs_total", "counter", ("work", "outcome"), "Jobs ended; outcome: done, failed or given_up"),
    (
        f"{PREFIX}job_failures",
        "gauge",
        ("project", "work"),
        "Failures in a row of a job that is being tried again; gone once it succeeds",
    ),
    (f"{PREFIX}stage_seconds", "histogram", ("work", "stage"), "How long each stage of the work took"),
    (f"{PREFIX}labels_used", "gauge", ("project",), "Labels the published version was trained on"),
    (f"{PREFIX}pool_size", "gauge", ("project",), "Tasks still to label"),
    (
        f"{PREFIX}accuracy",
        "gauge",
        ("project",),
        "Accuracy of the published version, 0 to 1: measured on validation tasks where "
        "active_learning_validation_labels is above 0, else cross-validated and usually pessimistic",
    ),
    (
        f"{PREFIX}expected_accuracy",
        "gauge",
        ("project",),
        "Mean confidence over the images still to label, 0 to 1: an estimate",
    ),
    (f"{PREFIX}validation_labels", "gauge", ("project",), "Validation tasks the accuracy was measured on"),
    (
        f"{PREFIX}labels_needed",
        "gauge",
        ("project",),
        "Labels expected to be needed until TARGET_ACCURACY; absent while unknown",
    ),
    (f"{PREFIX}suspects", "gauge", ("project",), "Labels suspected to be wrong"),
    (f"{PREFIX}versions", "gauge", ("project",), "Model versions kept"),
    (f"{PREFIX}version_number", "gauge", ("project",), "Running number of the published version"),
    (f"{PREFIX}version_timestamp_seconds", "gauge", ("project",), "When the published version was made"),
    (
        f"{PREFIX}last_label_timestamp_seconds",
        "gauge",
        ("project",),
        "When the last webhook about labels came; absent before the first since Redis was empty",
    ),
    (
        f"{PREFIX}image_failures",
        "gauge",
        ("project", "kind"),
        "Tasks left out because of their image; kind: transient ones are tried again, permanent ones are not",
    ),
    (f"{PREFIX}images", "gauge", ("project",), "Images of the project when embedding was last planned"),
    (f"{PREFIX}images_embedded", "gauge", ("project",), "Of these, images that are embedded"),
    (
        f"{PREFIX}embedding_images_per_second",
        "gauge",
        ("project",),
        "Images embedded per second since embedding was last planned; absent until it has begun",
    ),
)
METRICS = tuple(MetricFamily(*row) for row in _TABLE)
"""Every metric that is served, in the order served."""


class RequestCounts:
    """Requests that this process answered, added to the counts of all processes in Redis now and then.

    Counting costs a request microseconds and never waits for Redis. What is not yet added is lost with the process:
    the counts lag by what `flush` has not seen, and add up over all processes and hosts.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._guard = Lock()
        self._pending: dict[tuple[str, ...], float] = {}

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts one request, `seconds` after it came."""
        bound = next((f"{bound:g}" for bound in HISTOGRAM_BOUNDS if seconds <= bound), "inf")
        with self._guard:
            for key, n in (
                (("requests", method, route, str(status)), 1.0),
                (("seconds", method, route, bound), 1.0),
                (("seconds", method, route, "sum"), seconds),
            ):
                self._pending[key] = self._pending.get(key, 0.0) + n

    def flush(self) -> None:
        """Adds what was counted since the last time. Raises RedisUnavailableError; then it is added the next time."""
        with self._guard:
            taken, self._pending = self._pending, {}
        if not taken:
            return
        try:
            self._jobs.add_counts(HTTP_COUNTS, {json.dumps(key): n for key, n in taken.items()})
        except RedisUnavailableError:
            with self._guard:
                for key, n in taken.items():
                    self._pending[key] = self._pending.get(key, 0.0) + n
            raise


class MetricsReader:
    """Reads all figures anew at every scrape."""

    def __init__(self, *, jobs: Jobs, registry: Registry, retries: Retries) -> None:
        self._jobs = jobs
        self._registry = registry
        self._retries = retries

    def text(self) -> bytes:
        """Prometheus' text format."""
        from prometheus_client import CollectorRegistry, generate_latest

        registry = CollectorRegistry()
        registry.register(_Collector(self._families))
        return generate_latest(registry)

    def _families(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        values: dict[str, dict[tuple[str, ...], Any]] = {metric.name: {} for metric in METRICS}
        for name, labels, value in self._values():
            values[name][labels] = value
        for metric in METRICS:
            found = values[metric.name]
            if metric.kind == "histogram":
                family: Metric = HistogramMetricFamily(metric.name, metric.meaning, labels=metric.labels)
                for labels, histogram in found.items():
                    bounds = [*map(str, HISTOGRAM_BOUNDS), "+Inf"]
                    buckets = list(zip(bounds, histogram.cumulative, strict=True))
                    family.add_metric(labels, buckets, histogram.total)  # type: ignore[attr-defined]
            else:
                of_kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
                family = of_kind(metric.name, metric.meaning, labels=metric.labels)
                for labels, value in found.items():
                    family.add_metric(labels, value)
            yield family

    def _values(self) -> Iterator[tuple[str, tuple[str, ...], Any]]:
        """(metric, values of its labels, value or Histogram)."""
        yield f"{PREFIX}build_info", (__version__, platform.python_version()), 1
        try:
            kept = list(self._from_redis())
        except RedisUnavailableError:
            yield f"{PREFIX}redis_up", (), 0
        else:
            yield f"{PREFIX}redis_up", (), 1
            yield from kept
        for project_id in self._registry.known_projects():
            for name, value in self._of_record(project_id).items():
                if value is not None:
                    yield f"{PREFIX}{name}", (str(project_id),), value
            for kind, n in self._registry.count_image_failures(project_id).items():
                yield f"{PREFIX}image_failures", (str(project_id), kind), n

    def _from_redis(self) -> Iterator[tuple[str, tuple[str, ...], Any]]:
        yield from _requests(self._jobs.counts(HTTP_COUNTS))
        yield f"{PREFIX}workers", (), self._jobs.n_workers()
        for queue, n_jobs in self._jobs.queue_depths().items():
            yield f"{PREFIX}queue_depth", (queue,), n_jobs
        for name, n_jobs in self._jobs.counters().items():
            if name.startswith("jobs "):  # "jobs retrain done"
                yield f"{PREFIX}jobs_total", tuple(name.split()[1:]), n_jobs
        for names, histogram in self._jobs.histograms().items():
            yield f"{PREFIX}stage_seconds", names, histogram
        for project_id in self._registry.known_projects():
            project = str(project_id)
            for failure in self._retries.failures(project_id):
                yield f"{PREFIX}job_failures", (project, failure.work), failure.times
            labeled_at = self._jobs.newest_label_at(project_id)
            if labeled_at is not None:
                yield f"{PREFIX}last_label_timestamp_seconds", (project,), labeled_at
            progress = self._jobs.progress(project_id)
            if progress is None:
                continue
            yield f"{PREFIX}images", (project,), progress.total
            yield f"{PREFIX}images_embedded", (project,), progress.done
            if progress.images_per_s is not None:
                yield f"{PREFIX}embedding_images_per_second", (project,), progress.images_per_s

    def _of_record(self, project_id: int) -> dict[str, float | None]:
        record = self._registry.published_record(project_id)
        return {
            "labels_used": record.labels_used if record else 0,
            "pool_size": record.pool_size if record else None,
            "accuracy": record.accuracy if record else None,
            "expected_accuracy": record.expected_accuracy if record else None,
            "validation_labels": record.validation_labels if record else 0,
            "labels_needed": (record.forecast or {}).get("labels_needed") if record else None,
            "suspects": record.n_suspects if record else 0,
            "versions": len(self._registry.versions(project_id)),
            "version_number": version_number(record.version) if record else None,
            "version_timestamp_seconds": _seconds_of(record) if record else None,
        }


def _requests(counts: Mapping[str, float]) -> Iterator[tuple[str, tuple[str, ...], Any]]:
    """What `RequestCounts` kept, as metrics."""
    taken: dict[tuple[str, ...], dict[str, float]] = {}
    for field, n in counts.items():
        what, method, route, last = json.loads(field)
        if what == "requests":
            yield "http_requests_total", (method, route, last), n
        else:
            taken.setdefault((method, route), {})[last] = n
    for labels, by_bound in taken.items():
        each = [by_bound.get(bound, 0.0) for bound in (*(f"{bound:g}" for bound in HISTOGRAM_BOUNDS), "inf")]
        yield "http_request_duration_seconds", labels, Histogram(_whole(accumulate(each)), by_bound.get("sum", 0.0))


def _whole(counts: Iterable[float]) -> Sequence[int]:
    return [round(count) for count in counts]


def _seconds_of(record: VersionRecord) -> float | None:
    try:
        return datetime.fromisoformat(record.created_at).timestamp()
    except ValueError:
        return None


class _Collector:
    """What prometheus_client's registry wants: an object with `collect`."""

    def __init__(self, collect: Callable[[], Iterable[Metric]]) -> None:
        self.collect = collect
