"""The worker: one warm process that runs rq jobs in order of urgency, and the timer that reconciles.

rq's usual worker forks for every job; a fork must not inherit a CUDA context, OpenMP pools or open Lance datasets, and
would load everything anew. This one runs jobs in its own process and keeps backbone, embeddings and heads in memory. A
killed worker loses nothing: what it was doing is begun again by another worker seconds later, if there is one, and by
the reconciliation at the start of the next.

With TRAIN=finetune and a GPU a second process fine-tunes beside it, so that no label waits for that.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from rq.worker import SimpleWorker

from backend.adapters.jobs import FINETUNE_QUEUE, QUEUES, WORKER_TTL_S, Abandoned, Jobs
from backend.config import Settings
from backend.errors import BackendError, ProjectNotFoundError, RedisUnavailableError
from backend.logs import configure_logging
from backend.loop.backbones import BACKBONE_WARNING
from backend.loop.reconcile import MARK
from backend.loop.status import FINETUNING_OBSTACLE, LAST_ERROR
from backend.machine import limit_threads, n_usable_cores
from backend.model import RETRAIN, ActiveLearningModel, services_from_environment
from backend.schema import Task
from backend.services import Services

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_services: ContextVar[Services] = ContextVar("services")


class WarmWorker(SimpleWorker):  # type: ignore[misc]
    """An rq worker whose jobs find the services of this process."""

    def __init__(self, services: Services, queue_names: Sequence[str] = QUEUES, **kwargs: Any) -> None:
        from rq.serializers import JSONSerializer

        self._services = services
        jobs = services.jobs
        super().__init__(jobs.queues(queue_names), connection=jobs.redis, serializer=JSONSerializer, **kwargs)

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Works until told to stop; meanwhile a thread says that it lives, and takes up what dead workers left."""
        self._services.jobs.stay_alive(self.name)  # before the first job
        stop = threading.Event()
        thread = threading.Thread(target=_stay_alive, args=(self._services.jobs, self.name, stop), daemon=True)
        thread.start()
        try:
            return bool(super().work(*args, **kwargs))
        finally:
            stop.set()
            thread.join()

    def perform_job(self, *args: Any, **kwargs: Any) -> bool:
        """Runs one job with the services at hand."""
        token = _services.set(self._services)
        try:
            return bool(super().perform_job(*args, **kwargs))
        finally:
            _services.reset(token)


def _stay_alive(jobs: Jobs, worker: str, stop: threading.Event) -> None:
    suspects: set[tuple[str, str]] = set()
    while not stop.wait(WORKER_TTL_S / 3):
        try:
            jobs.stay_alive(worker)
            # Seen twice: after Redis was away all workers seem dead, until they have spoken again.
            abandoned = jobs.abandoned()
            for queue, entry in abandoned & suspects:
                _tell(jobs, jobs.take_up(queue, entry))
            suspects = abandoned
        except BackendError as exc:
            logger.warning("not said to be alive worker=%s: %s", worker, exc)
    try:
        jobs.leave(worker)
    except BackendError as exc:  # it is forgotten by itself
        logger.warning("worker=%s not signed off: %s", worker, exc)


def _tell(jobs: Jobs, job: Abandoned | None) -> None:
    if job is None:
        return
    if not job.given_up:
        logger.warning("taken up project=%d work=%s: its worker died", job.project_id, job.work)
        return
    sentence = f"{job.work} was given up: {job.n_times} workers died of it; see their logs, and the machine's memory"
    logger.error("project=%d: %s", job.project_id, sentence)
    jobs.set_note(job.project_id, LAST_ERROR, sentence)
    jobs.count("jobs_failed")


# -- what the queue names ---------------------------------------------------------------------------------------------


def retrain(project_id: int) -> str | None:
    """Job: train and publish the next version, if anything changed; the name of the published one."""
    return _run(project_id, lambda services: _fit(services, project_id))


def _fit(services: Services, project_id: int) -> str:
    answer = ActiveLearningModel(project_id, services=services).fit(RETRAIN)
    services.jobs.set_note(project_id, LAST_ERROR, None)
    return str(answer["model_version"])


def evaluate(project_id: int) -> str | None:
    """Job: evaluate the published version, if it is not yet, and plan ahead for the next label; its name."""

    def work(services: Services) -> str | None:
        record = services.evaluator.evaluate(project_id)
        if record is None:
            return None
        services.trainer.anticipate(project_id)
        return record.version

    return _run(project_id, work)


def plan_embedding(project_id: int) -> int | None:
    """Job: queue what is not embedded yet; how many images that is."""
    return _run(project_id, lambda services: services.embedder.plan(project_id))


def embed_batch(project_id: int, tasks: list[tuple[int, str | None]]) -> None:
    """Job: embed some tasks, given as [id, image reference]."""
    batch = [Task(int(task_id), image) for task_id, image in tasks]
    _run(project_id, lambda services: services.embedder.embed_batch(project_id, batch))


def finetune(project_id: int) -> str | None:
    """Job: fine-tune the backbone of the project, if it is due; what came of it."""

    def work(services: Services) -> str | None:
        record = services.finetuner.finetune(project_id)
        return record.outcome if record else None

    return _run(project_id, work)


def reconcile(project_id: int) -> bool | None:
    """Job: compare with Label Studio; whether anything had changed."""
    return _run(project_id, lambda services: services.reconciler.reconcile(project_id))


def prune(project_id: int) -> None:
    """Job: delete old versions and their predictions."""
    _run(project_id, lambda services: services.reconciler.prune(project_id))


def _run(project_id: int, work: Callable[[Services], Answer]) -> Answer | None:
    """Does the work; a failure is kept for the status, and the next reconciliation asks for everything again.

    A project that is gone from Label Studio is set aside; that is no failure, and None.
    """
    services = _services.get(None) or services_from_environment()
    jobs = services.jobs
    try:
        answer = work(services)
    except ProjectNotFoundError as exc:
        logger.warning("project=%d is gone: %s", project_id, exc)
        services.registry.forget(project_id)
        return None
    except Exception as exc:
        expected = isinstance(exc, BackendError)
        sentence = str(exc) if expected else f"{type(exc).__name__}: {exc}"
        logger.error("job failed project=%d: %s", project_id, sentence, exc_info=None if expected else exc)
        try:
            jobs.set_note(project_id, LAST_ERROR, sentence)
            jobs.set_note(project_id, MARK, None)
            jobs.count("jobs_failed")
        except RedisUnavailableError as second:
            logger.error("failure not kept: %s", second)
        raise
    jobs.count("jobs_done")
    return answer


# -- the process ------------------------------------------------------------------------------------------------------


def run_worker(services: Services, *, burst: bool = False) -> None:
    """Works until it is told to stop. Raises RedisUnavailableError when Redis is not there at the start."""
    jobs = services.jobs
    jobs.ping()
    backbone = services.backbone()
    limit_threads(n_usable_cores())
    logger.info(
        "backbone name=%s weights=%s fingerprint=%s", backbone.name, backbone.weights_source, backbone.fingerprint
    )
    jobs.set_note(0, BACKBONE_WARNING, backbone.warning)
    if backbone.warning:
        logger.warning("%s", backbone.warning)
    _recover(services)
    finetuning = _start_finetuning(services)
    stop = threading.Event()
    timer = threading.Thread(
        target=_reconcile_regularly, args=(services, finetuning, stop), name="reconcile", daemon=True
    )
    timer.start()
    try:
        _work(services, QUEUES, burst=burst)
    finally:
        stop.set()
        timer.join(timeout=5)
        if finetuning is not None:
            finetuning.stop()
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _work(services: Services, queue_names: Sequence[str], *, burst: bool = False) -> None:
    # A failed job is logged by `_run`, in one line with the project's id; rq would add a traceback for each.
    logging.getLogger("rq.worker").addFilter(lambda record: "exception raised while executing" not in record.msg)
    WarmWorker(services, queue_names).work(burst=burst, logging_level="WARNING", with_scheduler=False)


class FinetuningProcess:
    """The process beside the worker; killed at any point it loses nothing but time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: BaseProcess | None = None

    def keep_alive(self) -> None:
        """Starts it, or starts it again when it has died (out of memory, for example)."""
        if self._process is not None and self._process.is_alive():
            return
        if self._process is not None:
            logger.error("the fine-tuning process died, exit code %s; it is started again", self._process.exitcode)
        # Not forked: a child must not inherit a CUDA context, nor thread pools that were in use.
        spawn = multiprocessing.get_context("spawn")
        self._process = spawn.Process(
            target=work_on_finetuning, args=(self._settings,), name="active-learning-finetune", daemon=True
        )
        self._process.start()

    def stop(self) -> None:
        """Ends it at once: to finish its job could take minutes."""
        if self._process is not None:
            self._process.kill()
            self._process.join()


def work_on_finetuning(settings: Settings) -> None:
    """What the process does, until the worker that started it is gone."""
    configure_logging(settings.log_level)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="end-with-worker", daemon=True).start()
    _work(Services(settings), (FINETUNE_QUEUE,))


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _start_finetuning(services: Services) -> FinetuningProcess | None:
    """The fine-tuning process if TRAIN wants it and nothing stands against it; what does is logged and kept, once."""
    wanted = services.settings.train == "finetune"
    obstacle = services.backbone().finetuning_obstacle if wanted else None
    services.jobs.set_note(0, FINETUNING_OBSTACLE, obstacle)
    if obstacle:
        logger.warning("%s", obstacle)
    if not wanted or obstacle:
        return None
    process = FinetuningProcess(services.settings)
    process.keep_alive()
    return process


def _recover(services: Services) -> None:
    """Asks for everything again at the start: a worker before this one may have died at any point."""
    for project_id in services.registry.known_projects():
        services.jobs.set_note(project_id, MARK, None)
        services.jobs.request_reconciliation(project_id, renew=True)  # asks for embedding, and keeps a new mark
        services.jobs.request_retrain(project_id, renew=True)


def _reconcile_regularly(services: Services, finetuning: FinetuningProcess | None, stop: threading.Event) -> None:
    while not stop.wait(services.settings.reconcile_interval_s):
        try:
            if finetuning is not None:
                finetuning.keep_alive()
            if not services.jobs.is_first_within(0.9 * services.settings.reconcile_interval_s, "reconcile"):
                continue
            for project_id in services.registry.known_projects():
                services.jobs.request_reconciliation(project_id)
        except (BackendError, OSError) as exc:
            logger.warning("reconciliation not requested: %s", exc)
