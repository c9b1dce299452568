"""The worker: real rq jobs from a real Redis, done in this process until none is left."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fakes import LABEL_CONFIG, World, rgb
from rq.worker import BaseWorker

from backend.adapters.jobs import FINETUNE_QUEUE, MAP_LOCK, MAP_QUEUE, Jobs
from backend.errors import LabelStudioUnreachableError, RedisUnavailableError, StorageError
from backend.loop import train
from backend.loop.backbones import BACKBONE_WARNING
from backend.loop.reconcile import MARK
from backend.loop.retries import LAST_ERROR, Retries
from backend.loop.status import FINETUNING_OBSTACLE
from backend.loop.train import Trainer
from backend.machine import LEAST
from backend.storage import Address
from backend.worker import FinetuningProcess, MapProcess, WarmWorker, _bury, _make_maps, _start_finetuning, run_worker

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


def test_the_loop_runs_with_its_data_in_an_object_store(project: World, store_address: Address) -> None:
    """The same from registration to a published head; a process on another host serves it."""
    world = project.again(data_dir=store_address)
    world.registry.register(1, 1767225600, LABEL_CONFIG)
    world.jobs.request_embedding(1)
    work(world)
    for task_id, label in ((1, "cat"), (2, "dog")):
        world.label_studio.annotate(1, task_id, label)
    world.jobs.request_retrain(1)
    work(world)
    record = world.registry.published_record(1)
    assert record is not None
    assert (record.kind, record.labels_used, record.pool_size) == ("model", 2, 3)
    elsewhere = world.again().services.predictor
    (answer,) = elsewhere.predict(1, LABEL_CONFIG, [{"id": 3, "data": {"image": IMAGES[2]}}])
    assert answer["model_version"] == record.version
    assert answer["result"][0]["value"]["choices"] == ["cat"]
    assert project.registry.published(1) is None


def test_a_retrain_of_a_busy_project_goes_behind_those_of_others(
    project: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another worker retrains project 1 for long: no failure, and what waits for project 2 is done before."""
    monkeypatch.setattr(train, "RETRAIN_WAIT_S", 0.05)
    project.jobs.request_retrain(1)
    project.jobs.request_retrain(2)
    with project.again().jobs.project_lock(1):
        WarmWorker(project.services).work(burst=True, max_jobs=1, logging_level="WARNING")
    assert project.waiting() == ["retrain(2)", "retrain(1)"]
    assert project.jobs.note(1, LAST_ERROR) is None


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
    assert project.jobs.counters()["jobs retrain failed"] >= 1
    assert not project.jobs.wait_for_retrain(1, ticket, 0)
    project.label_studio.failures.clear()
    project.jobs.request_reconciliation(1)
    work(project)
    record = project.registry.published_record(1)
    assert record is not None
    assert record.labels_used == 1
    assert project.jobs.note(1, LAST_ERROR) is None
    assert project.jobs.wait_for_retrain(1, ticket, 0)


@pytest.mark.parametrize("is_back", [True, False])
def test_what_a_short_absence_of_redis_cut_off_is_asked_for_again(
    project: World, monkeypatch: pytest.MonkeyPatch, is_back: bool
) -> None:
    """A retrain fails for want of it, and so does keeping that failure; all is done as soon as it answers."""
    project.jobs.request_embedding(1)
    work(project)
    project.label_studio.annotate(1, 1, "cat")
    away = RedisUnavailableError("Redis does not answer")

    def fail(*_: object, **__: object) -> None:
        raise away

    worker = WarmWorker(project.services)
    project.jobs.request_retrain(1)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "retrain", fail)
        patch.setattr(Retries, "failed", fail)
        if not is_back:
            patch.setattr(Jobs, "request_reconciliation", fail)
        worker.work(burst=True, max_jobs=1, logging_level="WARNING")
    assert worker.was_cut_off == (not is_back)
    assert ("retrain(1)" in project.waiting()) == is_back
    worker.begin_again_if_cut_off()
    assert not worker.was_cut_off
    work(project)
    record = project.registry.published_record(1)
    assert record is not None
    assert record.labels_used == 1


def test_a_bug_is_told_with_its_kind_and_the_next_job_runs(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even an error nobody thought of is a sentence in the status, and takes only its own job down."""

    def fail(_: int) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(project.services.trainer, "retrain", fail)
    project.jobs.request_retrain(1)
    project.jobs.request_reconciliation(1)
    work(project)
    assert project.jobs.note(1, LAST_ERROR) == "ZeroDivisionError: division by zero"
    assert project.table(1).task_ids.tolist() == [1, 2, 3, 4, 5]


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
    project.label_studio.failures["tasks_after"] = LabelStudioUnreachableError("Label Studio does not answer")
    with caplog.at_level("INFO"):
        run_worker(project.services, burst=True)
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].startswith("job failed project=1 work=plan_embedding times=1 retry_in=")
    assert errors[0].endswith(": Label Studio does not answer")
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


def test_jobs_begin_with_settled_memory(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's search for garbage would stop a retrain for a third of a second, looking at all that torch has."""
    frozen = []
    monkeypatch.setattr(WarmWorker, "work", lambda self, **_: frozen.append(gc.get_freeze_count()))
    try:
        run_worker(project.services, burst=True)
    finally:
        gc.unfreeze()
    assert frozen[0] > 100_000


def test_without_redis_the_worker_does_not_start(project: World, dead_redis_url: str) -> None:
    """One sentence instead of a loop of tracebacks."""
    with pytest.raises(RedisUnavailableError):
        run_worker(project.again(redis_url=dead_redis_url).services, burst=True)


# -- fine-tuning ------------------------------------------------------------------------------------------------------


def fine_tunes(world: World, **changes: object) -> World:
    """The world with TRAIN=finetune and enough labels: red cats, green dogs."""
    for task_id, label in ((1, "cat"), (2, "dog"), (3, "cat"), (4, "dog")):
        world.label_studio.annotate(1, task_id, label)
    return world.again(train="finetune", finetune_from=4, **changes)


def test_fine_tuning_is_left_to_its_own_process(project: World) -> None:
    """The worker of labels asks for it and does not do it; the other queue's job fails with a sentence of its own."""
    world = fine_tunes(project)
    project.jobs.request_embedding(1)
    work(world)
    assert world.waiting() == ["finetune(1)"]
    assert world.registry.finetuning(1) is None
    WarmWorker(world.services, (FINETUNE_QUEUE,)).work(burst=True, logging_level="WARNING")
    record = world.registry.finetuning(1)
    assert record is not None
    assert record.outcome == "failed"
    assert "4 labels of 2 classes leave too little" in (record.error or "")
    assert world.jobs.note(1, LAST_ERROR) == record.error
    world.label_studio.annotate(1, 5, "cat")
    world.jobs.request_retrain(1)
    work(world)
    assert world.jobs.note(1, LAST_ERROR) is None
    published = world.registry.published_record(1)
    assert published is not None
    assert published.labels_used == 5


def test_without_a_gpu_the_worker_says_so_once(project: World, caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log, the same sentence in the status; the head is trained. TRAIN=head takes it back."""
    world = fine_tunes(project)
    world.backbone.finetuning_obstacle = "TRAIN=finetune has no effect without a GPU"
    run_worker(world.services, burst=True)
    assert caplog.text.count("no effect without a GPU") == 1
    assert world.services.status.project(1)["finetuning"]["note"] == "TRAIN=finetune has no effect without a GPU"
    published = world.registry.published_record(1)
    assert published is not None
    assert published.labels_used == 4
    assert _start_finetuning(world.services) is None
    assert _start_finetuning(project.services) is None
    assert project.jobs.note(0, FINETUNING_OBSTACLE) is None
    assert project.services.status.project(1)["finetuning"] is None


def test_the_fine_tuning_process_is_started_again_and_ends_with_the_worker(
    project: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A real process: it listens to its queue; killed, it is replaced; stopped, it is gone."""
    world = project.again(train="finetune", backbone="descriptor")
    process = FinetuningProcess(world.services.settings)
    try:
        process.keep_alive()
        first = listening(world)
        process.keep_alive()
        assert listening(world) == first
        os.kill(first, signal.SIGKILL)
        death = "the fine-tuning process died, exit code -9; it is started again"

        def is_replaced() -> bool:
            process.keep_alive()
            return death in caplog.text

        wait_until(is_replaced)
        second = listening(world, other_than=first)
    finally:
        process.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)


def listening(world: World, other_than: int = 0) -> int:
    """The process that listens to the queue of fine-tunings, once there is one."""

    def find() -> list[int]:
        workers = BaseWorker.all(queue=world.jobs.queues((FINETUNE_QUEUE,))[0])
        return [worker.pid for worker in workers if worker.pid not in (None, other_than)]

    wait_until(lambda: bool(find()))
    return find()[0]


def wait_until(holds: Callable[[], bool]) -> None:
    for _ in range(6000):
        if holds():
            return
        time.sleep(0.05)
    pytest.fail("it did not happen within 300 s")


def test_a_map_is_made_in_a_process_of_its_own_that_ends_when_none_is_left(project: World) -> None:
    """The worker of labels leaves it alone; a real process makes it, goes behind everything else, and is gone."""
    project.jobs.request_embedding(1)
    work(project)
    assert project.jobs.is_mapping(1)
    assert project.registry.map_arrays(1, "layout") is None
    process, stop = MapProcess(project.services.settings, "worker-1"), threading.Event()
    loop = threading.Thread(target=_make_maps, args=(project.jobs, process, stop))
    loop.start()
    try:
        wait_until(lambda: process._process is not None)
        assert process._process is not None
        pid = process._process.pid
        assert pid is not None
        niceness = []

        def is_gone() -> bool:
            with contextlib.suppress(ProcessLookupError):
                niceness.append(os.getpriority(os.PRIO_PROCESS, pid))
            return not process._process.is_alive()

        wait_until(is_gone)
        assert max(niceness) == LEAST
        kept = project.registry.map_arrays(1, "layout")
        assert kept is not None
        assert kept.arrays["task_ids"].tolist() == [1, 2, 3, 4, 5]
        assert not project.jobs.is_mapping(1)
    finally:
        stop.set()
        loop.join()
        process.stop()


def test_a_map_whose_process_is_killed_is_made_by_the_next(project: World) -> None:
    """Who buries the worker buries the process beside it: the job waits again, nothing half-made is there."""
    project.jobs.request_embedding(1)
    work(project)
    process = MapProcess(project.services.settings, "worker-1")
    with project.again().jobs.project_lock(1, MAP_LOCK):  # in the middle of its job it waits
        process.start_unless_running()
        # Begun, and not only taken from the queue: between the two a job is nobody's, until it is asked for again.
        wait_until(lambda: not project.jobs.map_waits() and project.jobs.is_mapping(1))
        process.stop()
    assert project.jobs.is_mapping(1)
    assert not project.jobs.map_waits()
    _bury(project.services, "worker-1")
    assert project.jobs.map_waits()
    WarmWorker(project.services, (MAP_QUEUE,)).work(burst=True, logging_level="WARNING")
    assert project.registry.map_arrays(1, "layout") is not None


def test_a_map_that_fails_is_told_and_tried_again(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status names it; asked for again it is made, and the failure is taken back."""
    project.jobs.request_embedding(1)
    work(project)

    def fail(project_id: int) -> int:
        raise StorageError("no room on the disk")

    with monkeypatch.context() as patch:
        patch.setattr(project.services.map_maker, "make", fail)
        WarmWorker(project.services, (MAP_QUEUE,)).work(burst=True, logging_level="WARNING")
    (failure,) = project.services.retries.failures(1)
    assert (failure.work, failure.reason) == ("make_map", "no room on the disk")
    project.jobs.redis.flushdb()
    project.services.retries._request(1, "make_map")
    assert project.jobs.map_waits()
