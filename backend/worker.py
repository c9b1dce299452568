"""The worker: one warm process that runs rq jobs in order of urgency, and the timer that reconciles.

rq's usual worker forks for every job; a fork must not inherit a CUDA context, OpenMP pools or open Lance datasets, and
would load everything anew. This one runs jobs in its own process and keeps backbone, embeddings and heads in memory. A
killed worker loses nothing: whatever it was doing is found again by the reconciliation that starts the next one.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeVar

from rq.worker import SimpleWorker

from backend.errors import BackendError, ProjectNotFoundError, RedisUnavailableError
from backend.loop.reconcile import MARK
from backend.loop.status import BACKBONE_WARNING, LAST_ERROR
from backend.model import RETRAIN, ActiveLearningModel, services_from_environment
from backend.schema import Task
from backend.services import Services

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_services: ContextVar[Services] = ContextVar("services")


class WarmWorker(SimpleWorker):  # type: ignore[misc]
    """An rq worker whose jobs find the services of this process."""

    def __init__(self, services: Services, **kwargs: Any) -> None:
        from rq.serializers import JSONSerializer

        self._services = services
        jobs = services.jobs
        super().__init__(jobs.queues(), connection=jobs.redis, serializer=JSONSerializer, **kwargs)

    def perform_job(self, *args: Any, **kwargs: Any) -> bool:
        """Runs one job with the services at hand."""
        token = _services.set(self._services)
        try:
            return bool(super().perform_job(*args, **kwargs))
        finally:
            _services.reset(token)


# -- what the queue names ---------------------------------------------------------------------------------------------


def retrain(project_id: int) -> str | None:
    """Job: train and publish the next version, if anything changed; the name of the published one."""
    return _run(project_id, lambda services: _fit(services, project_id))


def _fit(services: Services, project_id: int) -> str:
    answer = ActiveLearningModel(project_id, services=services).fit(RETRAIN)
    services.jobs.set_note(project_id, LAST_ERROR, None)
    return str(answer["model_version"])


def plan_embedding(project_id: int) -> int | None:
    """Job: queue what is not embedded yet; how many images that is."""
    return _run(project_id, lambda services: services.embedder.plan(project_id))


def embed_batch(project_id: int, tasks: list[tuple[int, str | None]]) -> None:
    """Job: embed some tasks, given as [id, image reference]."""
    batch = [Task(int(task_id), image) for task_id, image in tasks]
    _run(project_id, lambda services: services.embedder.embed_batch(project_id, batch))


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
    logger.info(
        "backbone name=%s weights=%s fingerprint=%s", backbone.name, backbone.weights_source, backbone.fingerprint
    )
    jobs.set_note(0, BACKBONE_WARNING, backbone.warning)
    if backbone.warning:
        logger.warning("%s", backbone.warning)
    _recover(services)
    stop = threading.Event()
    timer = threading.Thread(target=_reconcile_regularly, args=(services, stop), name="reconcile", daemon=True)
    timer.start()
    # A failed job is logged above, in one line with the project's id; rq would add a traceback for each.
    logging.getLogger("rq.worker").addFilter(lambda record: "exception raised while executing" not in record.msg)
    worker = WarmWorker(services)
    try:
        worker.work(burst=burst, logging_level="WARNING", with_scheduler=False)
    finally:
        stop.set()
        timer.join(timeout=5)
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _recover(services: Services) -> None:
    """Asks for everything again at the start: a worker before this one may have died at any point."""
    for project_id in services.registry.known_projects():
        services.jobs.set_note(project_id, MARK, None)
        services.jobs.request_embedding(project_id, renew=True)
        services.jobs.request_retrain(project_id, renew=True)


def _reconcile_regularly(services: Services, stop: threading.Event) -> None:
    while not stop.wait(services.settings.reconcile_interval_s):
        try:
            for project_id in services.registry.known_projects():
                services.jobs.request_reconciliation(project_id)
        except BackendError as exc:
            logger.warning("reconciliation not requested: %s", exc)
