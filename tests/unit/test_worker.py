"""The worker: real rq jobs from a real Redis, done in this process until none is left."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest
from fakes import LABEL_CONFIG, World, rgb

from backend.errors import LabelStudioUnreachableError, RedisUnavailableError
from backend.loop.reconcile import MARK
from backend.loop.status import BACKBONE_WARNING, LAST_ERROR
from backend.worker import WarmWorker, run_worker

IMAGES = [rgb(250, 0), rgb(0, 250), rgb(200, 0), rgb(0, 200), rgb(120, 120)]


@pytest.fixture(autouse=True)
def _signals_and_logs_as_before() -> Iterator[None]:
    """A worker takes over SIGINT and SIGTERM and rq's logger of its process; here they are put back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    rq_logger = logging.getLogger("rq.worker")
    before = rq_logger.level, list(rq_logger.handlers), list(rq_logger.filters)
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    rq_logger.setLevel(before[0])
    rq_logger.handlers[:] = before[1]
    rq_logger.filters[:] = before[2]


@pytest.fixture
def project(world: World) -> World:
    """Project 1 in Label Studio, known to the service, nothing embedded."""
    world.label_studio.add_project(1, IMAGES)
    world.registry.register(1, 1767225600, LABEL_CONFIG)
    return world


def work(world: World) -> None:
    """All waiting jobs, and those they ask for."""
    WarmWorker(world.services).work(burst=True, logging_level="WARNING")


def test_the_loop_runs_by_itself(project: World) -> None:
    """One request for embedding: all is embedded, the first batch is on top; a label: a version that knows it."""
    project.jobs.request_embedding(1)
    work(project)
    first = project.registry.published_record(1)
    assert first is not None
    assert (first.kind, first.pool_size) == ("seed", 5)
    assert project.label_studio.served_order(1) == list(first.window)
    for task_id, label in ((1, "cat"), (2, "dog")):
        project.label_studio.annotate(1, task_id, label)
    ticket, job = project.jobs.request_retrain(1)
    work(project)
    record = project.registry.published_record(1)
    assert record is not None
    assert (record.kind, record.labels_used) == ("model", 2)
    assert project.jobs.wait_for_retrain(1, ticket, 0)
    assert (project.jobs.job_status(job) or {})["job_status"] == "finished"
    assert project.jobs.training(1) == "idle"
    assert project.waiting() == []


def test_nothing_is_loaded_twice(project: World) -> None:
    """Jobs run in this process with the services at hand: five images are embedded once for all jobs."""
    for _ in range(3):
        project.jobs.request_embedding(1)
        work(project)
    assert project.backbone.n_embedded == len(IMAGES)


def test_a_failure_is_kept_for_the_status_and_asked_again(project: World) -> None:
    """Label Studio is away: the sentence is kept, the mark goes, the published version stays; then all is well."""
    project.jobs.request_embedding(1)
    work(project)
    published = project.registry.published(1)
    project.services.reconciler.reconcile(1)
    project.label_studio.failures["annotated_tasks"] = LabelStudioUnreachableError("Label Studio does not answer")
    project.label_studio.annotate(1, 1, "cat")
    ticket, job = project.jobs.request_retrain(1)
    work(project)
    assert project.jobs.note(1, LAST_ERROR) == "Label Studio does not answer"
    assert project.jobs.note(1, MARK) is None
    assert project.registry.published(1) == published
    status = project.jobs.job_status(job) or {}
    assert status["job_status"] == "failed"
    assert "Traceback" not in str(status)
    assert project.jobs.counters()["jobs_failed"] >= 1
    assert not project.jobs.wait_for_retrain(1, ticket, 0)
    project.label_studio.failures.clear()
    project.jobs.request_reconciliation(1)
    work(project)
    record = project.registry.published_record(1)
    assert record is not None
    assert record.labels_used == 1
    assert project.jobs.note(1, LAST_ERROR) is None
    assert project.jobs.wait_for_retrain(1, ticket, 0)


def test_a_bug_is_told_with_its_kind_and_the_next_job_runs(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even an error nobody thought of is a sentence in the status, and takes only its own job down."""

    def fail(_: int) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(project.services.trainer, "retrain", fail)
    project.jobs.request_retrain(1)
    project.jobs.request_reconciliation(1)
    work(project)
    assert project.jobs.note(1, LAST_ERROR) == "ZeroDivisionError: division by zero"
    assert project.services.embedder.table(1).task_ids.tolist() == [1, 2, 3, 4, 5]


def test_a_deleted_project_is_set_aside_by_any_of_its_jobs(project: World) -> None:
    """Project 1 is gone from Label Studio: nothing of it is served any more, and that is no failure."""
    project.jobs.request_embedding(1)
    work(project)
    project.label_studio.remove_project(1)
    project.jobs.request_retrain(1)
    project.jobs.request_embedding(1)
    project.jobs.request_reconciliation(1)
    project.jobs.request_pruning(1)
    work(project)
    assert project.registry.known_projects() == []
    assert project.registry.published(1) is None
    assert project.jobs.note(1, LAST_ERROR) is None
    assert project.waiting() == []


def test_a_job_of_a_deleted_project_harms_no_other(project: World) -> None:
    """Project 2 never was: its jobs do nothing, project 1's are done."""
    project.jobs.request_retrain(2)
    project.jobs.request_embedding(2)
    project.jobs.request_embedding(1)
    work(project)
    assert project.registry.known_projects() == [1]
    assert project.registry.published(1) is not None


def test_a_failed_job_is_logged_once_and_in_one_line(project: World, caplog: pytest.LogCaptureFixture) -> None:
    """What went wrong with which project; rq's own traceback of the same is left out."""
    project.label_studio.failures["tasks"] = LabelStudioUnreachableError("Label Studio does not answer")
    with caplog.at_level("INFO"):
        run_worker(project.services, burst=True)
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.getMessage() for record in errors] == ["job failed project=1: Label Studio does not answer"]
    assert "Traceback" not in caplog.text


def test_at_the_start_everything_is_asked_for_again(project: World) -> None:
    """A worker before this one was killed at any point: markers of jobs that vanished do not stand in the way."""
    project.embed_all()
    project.label_studio.annotate(1, 1, "cat")
    project.jobs.request_retrain(1)
    project.jobs.request_embedding(1)
    for queue in project.jobs.queues():
        queue.empty()
    assert project.jobs.training(1) == "queued"
    run_worker(project.services, burst=True)
    record = project.registry.published_record(1)
    assert record is not None
    assert record.labels_used == 1


def test_the_backbone_s_warning_is_kept_for_the_status(project: World) -> None:
    """And deleted by a worker whose backbone has none."""
    project.backbone.warning = "no weights"  # type: ignore[misc]
    run_worker(project.services, burst=True)
    assert project.jobs.note(0, BACKBONE_WARNING) == "no weights"
    project.backbone.warning = None  # type: ignore[misc]
    run_worker(project.services, burst=True)
    assert project.jobs.note(0, BACKBONE_WARNING) is None


def test_without_redis_the_worker_does_not_start(project: World, dead_redis_url: str) -> None:
    """One sentence instead of a loop of tracebacks."""
    with pytest.raises(RedisUnavailableError):
        run_worker(project.again(redis_url=dead_redis_url).services, burst=True)
