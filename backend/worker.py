"""The worker: one warm process that runs rq jobs in order of urgency, and the timer that reconciles.

rq's usual worker forks for every job; a fork must not inherit a CUDA context, OpenMP pools or open Lance datasets, and
would load everything anew. This one runs jobs in its own process and keeps backbone, embeddings and heads in memory. A
killed worker loses nothing: its supervisor (`backend.supervisor`) replaces it at once, and the next one begins what it
was doing again; so does another worker seconds later, if the supervisor died too.

With TRAIN=finetune and a GPU a second process fine-tunes beside it, so that no label waits for that. Another makes the
maps of projects (`backend.loop.map`), and is there only as long as it has one to make.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from itertools import count
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar
from uuid import uuid4

from rq.worker import SimpleWorker

from backend.adapters.jobs import FINETUNE_QUEUE, MAP_QUEUE, QUEUES, RETRAIN_QUEUE, WORKER_TTL_S, Abandoned, Jobs
from backend.config import Settings
from backend.errors import BackendError, ProjectBusyError, ProjectNotFoundError, RedisUnavailableError
from backend.logs import configure_logging, log_context
from backend.loop.backbones import BACKBONE_WARNING
from backend.loop.reconcile import MARK
from backend.loop.status import FINETUNING_OBSTACLE
from backend.machine import LEAST, give_way, limit_threads, n_usable_cores, release_memory, settle_memory
from backend.model import RETRAIN, ActiveLearningModel, services_from_environment
from backend.schema import Task
from backend.services import Services, load_modules

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_services: ContextVar[Services] = ContextVar("services")

JOBS = frozenset(
    f"backend.worker.{name}"
    for name in (
        "retrain", "evaluate", "plan_embedding", "embed_batch", "search", "finetune", "make_map", "reconcile",
        "prune",
    )
)  # fmt: skip
"""What a job may call. rq imports and calls whatever a job names: who can write to Redis could run anything."""

REDIS_PAUSE_S = 2.0
"""Pause between two looks whether a Redis that went away is back."""

MAP_POLL_S = 2.0
"""Pause between two looks whether a map is asked for."""


class WarmWorker(SimpleWorker):  # type: ignore[misc]
    """An rq worker whose jobs find the services of this process.

    was_stopped: somebody told it to stop; else it ended because all was done, or because Redis failed it.
    was_cut_off: a job failed for want of Redis, so that its failure may not be kept, nor what it was to do.
    """

    max_connection_wait_time = REDIS_PAUSE_S  # rq's own is a minute, which a label would wait after Redis is back

    def __init__(self, services: Services, queue_names: Sequence[str] = QUEUES, **kwargs: Any) -> None:
        from rq.serializers import JSONSerializer

        self._services = services
        self._listens = RETRAIN_QUEUE in queue_names
        self.was_stopped = False
        self.was_cut_off = False
        jobs = services.jobs
        super().__init__(jobs.queues(queue_names), connection=jobs.redis, serializer=JSONSerializer, **kwargs)
        jobs.worker = self.name

    def work(self, *args: Any, **kwargs: Any) -> bool:
        """Works until told to stop; meanwhile a thread says that it lives, and takes up what dead workers left.

        Returns too when Redis fails in the middle of a job; then all should be asked for again.
        """
        self._services.jobs.stay_alive(self.name, listens=self._listens)  # before the first job
        stop = threading.Event()
        thread = threading.Thread(target=_stay_alive, args=(self._services, self, self._listens, stop), daemon=True)
        thread.start()
        try:
            return bool(super().work(*args, **kwargs))
        finally:
            stop.set()
            thread.join()

    def request_stop(self, signum: Any, frame: Any) -> None:
        """Ends after the job at hand, or at once when there is none or Redis is away."""
        from redis.exceptions import RedisError
        from rq.exceptions import StopRequested

        self.was_stopped = True
        try:
            super().request_stop(signum, frame)
        except RedisError as exc:
            raise StopRequested from exc

    def handle_exception(self, job: Any, *exc_info: Any) -> None:
        """Called for a job that failed."""
        self.was_cut_off |= isinstance(exc_info[1], RedisUnavailableError)
        super().handle_exception(job, *exc_info)

    def begin_again_if_cut_off(self) -> None:
        """Asks for everything, once Redis answers, after a job that failed for want of it."""
        if not self.was_cut_off:
            return
        try:
            _recover(self._services)
        except RedisUnavailableError:  # asked again when it is back
            return
        self.was_cut_off = False
        logger.warning("Redis did not answer for a moment: everything is asked for again")

    def subscribe(self) -> None:
        """Takes no commands over Redis: nothing sends any, and whoever can write to Redis must not stop workers."""

    def teardown(self) -> None:
        """Signs off; from a Redis that is away the name goes by itself."""
        from redis.exceptions import RedisError

        try:
            super().teardown()
        except RedisError as exc:
            logger.debug("worker=%s not signed off: %s", self.name, exc)

    def perform_job(self, job: Any, queue: Any, *args: Any) -> bool:
        """Runs one job with the services at hand; one that is not ours is deleted."""
        if not is_own(job):
            logger.error("refused job=%s: it is none of this service's; see who else writes to this Redis", job.id)
            job.delete()
            return False
        token = _services.set(self._services)
        try:
            with log_context(project=job.args[0], job=job.id):
                return bool(super().perform_job(job, queue, *args))
        finally:
            _services.reset(token)
            self.begin_again_if_cut_off()
            if queue.name != RETRAIN_QUEUE:  # after which evaluation follows, and needs the same memory
                release_memory()


def is_own(job: Any) -> bool:
    """Whether an rq job calls one of `JOBS`, and nothing else before or after it."""
    try:
        name = job.func_name
    except Exception:  # what is not as `Jobs` writes it; rq raises a type of its own
        return False
    others = (job._success_callback_name, job._failure_callback_name, job._stopped_callback_name)
    return name in JOBS and not any(others) and not getattr(job, "webhooks", None)


def _stay_alive(services: Services, worker: WarmWorker, listens: bool, stop: threading.Event) -> None:
    jobs, is_away = services.jobs, False
    suspects: set[tuple[str, str]] = set()
    while not stop.wait(WORKER_TTL_S / 3):
        try:
            was_emptied = jobs.stay_alive(worker.name, listens=listens)
            if is_away or was_emptied:
                logger.warning("Redis %s: everything is asked for again", "was emptied" if was_emptied else "is back")
                is_away = False
                _recover(services)
            worker.begin_again_if_cut_off()
            # Seen twice: after Redis was away all workers seem dead, until they have spoken again.
            abandoned = jobs.abandoned()
            for queue, entry in abandoned & suspects:
                _tell(services, jobs.take_up(queue, entry))
            suspects = abandoned
        except (BackendError, OSError) as exc:
            if not is_away:
                logger.error("%s; this worker waits for it", exc)
            is_away = True
    try:
        jobs.leave(worker.name)
    except BackendError as exc:  # it is forgotten by itself
        logger.warning("worker=%s not signed off: %s", worker.name, exc)


def _tell(services: Services, job: Abandoned | None) -> None:
    if job is None:
        return
    if not job.given_up:
        logger.warning("taken up project=%d work=%s: the worker that began it is gone", job.project_id, job.work)
        return
    sentence = f"{job.work} was given up: {job.n_times} workers died of it; see their logs, and the machine's memory"
    logger.error("given up project=%d work=%s: %s", job.project_id, job.work, sentence)
    services.retries.given_up(job.project_id, job.work, sentence, job.n_times)
    services.jobs.count(f"jobs {job.work} given_up")


# -- what the queue names ---------------------------------------------------------------------------------------------


def retrain(project_id: int) -> str | None:
    """Job: train and publish the next version, if anything changed; the name of the published one."""
    return _run(project_id, "retrain", lambda services: _fit(services, project_id))


def _fit(services: Services, project_id: int) -> str | None:
    try:
        answer = ActiveLearningModel(project_id, services=services).fit(RETRAIN)
    except ProjectBusyError as exc:  # behind what waits by now, for the other one may take long
        logger.info("%s", exc)
        services.jobs.request_retrain(project_id)
        return None
    return str(answer["model_version"])


def evaluate(project_id: int) -> str | None:
    """Job: evaluate the published version, if it is not yet, and plan ahead for the next label; its name."""

    def work(services: Services) -> str | None:
        record = services.evaluator.evaluate(project_id)
        if record is None:
            return None
        services.trainer.anticipate(project_id)
        return record.version

    return _run(project_id, "evaluate", work)


def plan_embedding(project_id: int) -> int | None:
    """Job: queue what is not embedded yet; how many images that is."""
    return _run(project_id, "plan_embedding", lambda services: services.embedder.plan(project_id))


def embed_batch(project_id: int, tasks: list[tuple[int, str | None]]) -> None:
    """Job: embed some tasks, given as [id, image reference]."""
    batch = [Task(int(task_id), image) for task_id, image in tasks]
    _run(project_id, "embed_batch", lambda services: services.embedder.embed_batch(project_id, batch))


def search(project_id: int, shard: int) -> bool | None:
    """Job: search one shard of a large project for images worth a label; False if a label interrupted it."""
    return _run(project_id, f"search-{shard}", lambda services: services.embedder.search(project_id, shard))


def finetune(project_id: int) -> str | None:
    """Job: fine-tune the backbone of the project, if it is due; what came of it."""

    def work(services: Services) -> str | None:
        record = services.finetuner.finetune(project_id)
        return record.outcome if record else None

    return _run(project_id, "finetune", work)


def make_map(project_id: int) -> int | None:
    """Job: bring the project's map up to date; how many images it shows."""
    return _run(project_id, "make_map", lambda services: services.map_maker.make(project_id))


def reconcile(project_id: int) -> bool | None:
    """Job: compare with Label Studio; whether anything had changed."""
    return _run(project_id, "reconcile", lambda services: services.reconciler.reconcile(project_id))


def prune(project_id: int) -> None:
    """Job: delete old versions and their predictions."""
    _run(project_id, "prune", lambda services: services.reconciler.prune(project_id))


def _run(project_id: int, name: str, work: Callable[[Services], Answer]) -> Answer | None:
    """Does the work; a failure is kept for the status and tried again, see `backend.loop.retries`.

    The next reconciliation asks for everything again besides. A project that is gone from Label Studio is set aside;
    that is no failure, and None.
    """
    services = _services.get(None) or services_from_environment()
    jobs, kind = services.jobs, name.partition("-")[0]
    try:
        answer = work(services)
    except ProjectNotFoundError as exc:
        logger.warning("project=%d is gone: %s", project_id, exc)
        services.registry.forget(project_id)
        services.retries.forget(project_id)
        return None
    except Exception as exc:
        try:
            services.retries.failed(project_id, name, exc)
            jobs.set_note(project_id, MARK, None)
            jobs.count(f"jobs {kind} failed")
        except RedisUnavailableError as second:
            logger.error("failure not kept project=%d work=%s: %s (%s)", project_id, name, exc, second)
        raise
    services.retries.succeeded(project_id, name)
    jobs.count(f"jobs {kind} done")
    return answer


# -- the process ------------------------------------------------------------------------------------------------------


def run_worker(services: Services, *, name: str = "", dead: Sequence[str] = (), burst: bool = False) -> None:
    """Works until it is told to stop. Raises RedisUnavailableError when Redis is not there at the start.

    `name`: that of the process, which no other has or had. `dead`: those of processes that it replaces.
    """
    jobs = services.jobs
    jobs.ping()
    backbone = services.backbone()
    load_modules()
    limit_threads(n_usable_cores())
    settle_memory()
    logger.info(
        "backbone name=%s weights=%s fingerprint=%s", backbone.name, backbone.weights_source, backbone.fingerprint
    )
    jobs.set_note(0, BACKBONE_WARNING, backbone.warning)
    if backbone.warning:
        logger.warning("%s", backbone.warning)
    for process in dead:
        _bury(services, process)
    _recover(services)
    finetuning = _start_finetuning(services)
    stop = threading.Event()
    timer = threading.Thread(
        target=_reconcile_regularly, args=(services, finetuning, stop), name="reconcile", daemon=True
    )
    retries = threading.Thread(target=services.retries.request_due_regularly, args=(stop,), name="retries", daemon=True)
    maps = MapProcess(services.settings, name)
    mapping = threading.Thread(target=_make_maps, args=(services.jobs, maps, stop), name="make-maps", daemon=True)
    timer.start()
    retries.start()
    mapping.start()
    try:
        _work(services, QUEUES, name=name, burst=burst)
    finally:
        stop.set()
        timer.join(timeout=5)
        retries.join(timeout=5)
        mapping.join(timeout=5)
        maps.stop()
        if finetuning is not None:
            finetuning.stop()
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _work(services: Services, queue_names: Sequence[str], *, name: str = "", burst: bool = False) -> None:
    """Works until told to stop, or in a burst until nothing is left; what a Redis that fails ends is begun again."""
    name = name or uuid4().hex
    from redis.exceptions import RedisError
    from rq.exceptions import StopRequested

    logging.getLogger("rq.worker").addFilter(_says_more_than_we_do)
    for number in count():
        worker = WarmWorker(services, queue_names, name=f"{name}-{number}")
        try:
            worker.work(burst=burst, logging_level="WARNING", with_scheduler=False)
        except (RedisUnavailableError, RedisError) as exc:
            logger.warning("%s", exc)
        except StopRequested:  # by a signal that came while it signed off
            return
        try:
            if burst or worker.was_stopped or not _await_redis(services.jobs, worker):
                return
            logger.warning("the work was cut off; everything is asked for again")
            _bury(services, worker.name)
            if RETRAIN_QUEUE in queue_names:
                _recover(services)
        except StopRequested:
            return
        except RedisUnavailableError as exc:
            logger.warning("%s", exc)


def _await_redis(jobs: Jobs, worker: WarmWorker) -> bool:
    """Returns after a pause, once Redis answers; False if the worker was stopped before. Its absence is logged once."""
    is_told = False
    while True:
        time.sleep(REDIS_PAUSE_S)
        if worker.was_stopped:
            return False
        try:
            jobs.ping()
        except RedisUnavailableError as exc:
            if not is_told:
                logger.error("%s; this worker waits for it", exc)
            is_told = True
        else:
            return True


def _says_more_than_we_do(record: logging.LogRecord) -> bool:
    """Whether a line of rq's tells what ours do not.

    A failed job is logged by `_run`, in one line with the project's id, and that Redis is away by `_stay_alive`; rq
    would add a traceback for each, and a line for every try to reach it.
    """
    from redis.exceptions import RedisError

    told = "exception raised while executing", "failed to persist failure", "could not connect to Redis"
    if any(words in str(record.msg) for words in told):
        return False
    return not (record.exc_info and isinstance(record.exc_info[1], RedisError))


class _ProcessBeside:
    """A process beside the worker; killed at any point it loses nothing but time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: BaseProcess | None = None

    def stop(self) -> None:
        """Ends it at once, for to finish its job could take minutes; whoever works next begins that again."""
        if self._process is not None:
            self._process.kill()
            self._process.join()

    def _is_running(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def _start(self, target: Callable[..., None], *arguments: object, name: str) -> None:
        # Not forked: a child must not inherit a CUDA context, nor thread pools that were in use.
        spawn = multiprocessing.get_context("spawn")
        process = spawn.Process(target=target, args=arguments, name=name, daemon=True)
        process.start()
        self._process = process


class FinetuningProcess(_ProcessBeside):
    """The process that fine-tunes."""

    def keep_alive(self) -> None:
        """Starts it, or starts it again when it has died (out of memory, for example)."""
        if self._is_running():
            return
        if self._process is not None:
            logger.error("the fine-tuning process died, exit code %s; it is started again", self._process.exitcode)
        self._start(work_on_finetuning, self._settings, name="active-learning-finetune")


def work_on_finetuning(settings: Settings) -> None:
    """What the process does, until the worker that started it is gone."""
    configure_logging(settings.log_level, settings.log_format, settings.secrets())
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="end-with-worker", daemon=True).start()
    _work(Services(settings), (FINETUNE_QUEUE,))


class MapProcess(_ProcessBeside):
    """The process that makes maps: of its own, for an optimisation of minutes would be in every label's way.

    It has one thread and takes what others leave of the processor, is started when a map is asked for, and ends when
    none is left, so that its memory is the system's again. Killed at any point it loses nothing but time: the job is
    taken up as that of any dead worker. `worker`: the name of the worker beside which it works; who buries the one
    buries the other.
    """

    def __init__(self, settings: Settings, worker: str) -> None:
        super().__init__(settings)
        self._worker = worker or uuid4().hex

    def start_unless_running(self) -> None:
        """Starts it; one that is at work finds the new job by itself."""
        if not self._is_running():
            name = f"{self._worker}-map{uuid4().hex[:8]}"
            self._start(work_on_maps, self._settings, name, name="active-learning-map")


def work_on_maps(settings: Settings, name: str) -> None:
    """What the process does, until no map is left to make or the worker that started it is gone."""
    configure_logging(settings.log_level, settings.log_format, settings.secrets())
    give_way(LEAST)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), name="end-with-worker", daemon=True).start()
    _work(Services(settings), (MAP_QUEUE,), name=name, burst=True)


def _make_maps(jobs: Jobs, process: MapProcess, stop: threading.Event) -> None:
    while not stop.wait(MAP_POLL_S):
        try:
            if jobs.map_waits():
                process.start_unless_running()
        except (BackendError, OSError) as exc:
            logger.debug("maps not looked for: %s", exc)


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


def _bury(services: Services, dead: str) -> None:
    """Takes over from a worker or a process of workers that is dead, without waiting for its locks to run out."""
    for queue, entry in services.jobs.bury(dead, services.registry.known_projects()):
        _tell(services, services.jobs.take_up(queue, entry))


def _recover(services: Services) -> None:
    """Asks for everything again at the start: a worker before this one may have died at any point."""
    for project_id in services.registry.known_projects():
        services.jobs.set_note(project_id, MARK, None)
        services.jobs.request_reconciliation(project_id, renew=True)  # asks for embedding, and keeps a new mark
        services.jobs.request_retrain(project_id, renew=True)
        services.jobs.request_evaluation(project_id)


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
