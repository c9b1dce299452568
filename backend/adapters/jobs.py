"""Redis and rq: requests for work, the work in flight, and nothing that could not be lost.

A request marker says that a job for a project is queued and not yet begun. The job deletes it as its first act, so an
event before that is covered by what the job reads afterwards, and an event after it makes one follow-up job. A marker
whose job vanished (a worker killed before its first act, Redis emptied) expires by itself.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

from backend.errors import LockLostError, ProjectBusyError, RedisUnavailableError
from backend.logs import in_log_context
from backend.schema import Progress, Task

if TYPE_CHECKING:
    from redis import Redis
    from redis.lock import Lock

logger = logging.getLogger(__name__)

RETRAIN_QUEUE = "active-learning-retrain"
EVALUATE_QUEUE = "active-learning-evaluate"
EMBED_QUEUE = "active-learning-embed"
SEARCH_QUEUE = "active-learning-search"
FINETUNE_QUEUE = "active-learning-finetune"
"""Not among QUEUES: fine-tuning takes minutes, and has a process of its own that no label waits for."""

MAP_QUEUE = "active-learning-map"
"""Not among QUEUES either: a map takes minutes, in a process that is there only for it; see `backend.worker`."""

QUEUES = (RETRAIN_QUEUE, EVALUATE_QUEUE, EMBED_QUEUE, SEARCH_QUEUE)
"""In order of urgency: a worker takes from the first that holds a job."""

ALL_QUEUES = (*QUEUES, FINETUNE_QUEUE, MAP_QUEUE)

MARKER_TTL_S = 30
"""How long a request marker outlives a job that vanished. A job queued for longer is found in its queue."""

LOCK_TTL_S = 8.0
"""How long a killed worker's lock keeps others out of its project; a living one renews it three times as often."""

FINETUNE_LOCK = "finetune-lock"
"""Name of the project lock under which a backbone is fine-tuned."""

PLAN_LOCK = "plan-lock"
"""Name of the project lock under which embedding is planned: two plans at once would queue every batch twice."""

MAP_LOCK = "map-lock"
"""Name of the project lock under which its map is made: two workers must not both make it."""

WORKER_TTL_S = 15
"""How long a worker that says nothing counts as alive; a living one speaks three times as often."""

MAX_TAKEN_UP = 3
"""How often a job is begun again whose worker died. One that kills whoever does it must not end all of them."""

JOB_TIMEOUT_S = 1800
LONG_JOB_TIMEOUT_S = 6 * 3600
"""Of fine-tuning, and of a map, which is made in what others leave of the processor."""

JOURNAL_LENGTH = 1000
"""Events kept of each project; who has missed more reads everything anew."""

JOURNAL_END = 100
"""Events that are looked through for the last that told answers; others come once a minute at most."""

SOCKET_TIMEOUT_S = 10
"""Longest silence of Redis that is taken for an answer on its way."""

RECONNECTIONS = 3
"""Tries to reach Redis again before a request fails, half a second in all: so a connection that a restart of Redis cut
is made again."""

AWAY_S = 1.0
"""How long a Redis that did not answer counts as away: a status asks a dozen things, and must not wait for each."""

RETRAIN_WAIT_S = LOCK_TTL_S + 2.0
"""How long a retrain waits for another of its project: longer than a dead worker's lock lasts. Then it is queued again,
so that the labels of other projects do not wait for this one."""

RESULT_TTL_S = 3600
FAILURE_TTL_S = 86_400

HISTOGRAM_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper bounds, in seconds, of the times that are counted together; the last ones are above all."""

_PREFIX = "active-learning"
_LISTENING = f"{_PREFIX}:listening"
"""Sorted set of the workers that take retrains, by when they last said so."""
_IN_USE = f"{_PREFIX}:in-use"
"""Stands as long as Redis holds what it held."""

_UNLOCK = """
local owner = redis.call("get", KEYS[1])
if owner and string.sub(owner, 1, #ARGV[1]) == ARGV[1] then return redis.call("del", KEYS[1]) end
return 0
"""
"""Deletes a lock whose value begins with the argument, in one step."""

Training = Literal["idle", "queued", "running"]


@dataclass(frozen=True)
class RetrainRequest:
    """What a retrain job has to answer: all requests up to `ticket`; `forced`: even if nothing is new.

    `forced_ticket` counts the forced requests, so that one that comes while the job runs is not taken for answered.
    """

    ticket: int
    forced: bool
    forced_ticket: int


@dataclass(frozen=True)
class Abandoned:
    """A job whose worker died: of which project, what it does, how often that happened, and whether it was given up."""

    project_id: int
    work: str
    n_times: int
    given_up: bool


@dataclass(frozen=True)
class Histogram:
    """How often something took at most each of `HISTOGRAM_BOUNDS`, and last any time at all; `total` seconds in all."""

    cumulative: Sequence[int]
    total: float


class Jobs:
    """The job queue of all projects. Methods raise RedisUnavailableError when Redis does not answer.

    worker: the name of the worker whose locks are taken with this, for `bury` to find.
    """

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.worker = ""
        self._away_until, self._away_because = 0.0, ""

    @cached_property
    def redis(self) -> Redis:
        """The connection pool; connects on first use."""
        from redis import Redis
        from redis.backoff import ExponentialBackoff
        from redis.exceptions import ConnectionError
        from redis.retry import Retry

        client: Redis = Redis.from_url(
            self.redis_url,
            socket_connect_timeout=3,
            socket_timeout=SOCKET_TIMEOUT_S,
            health_check_interval=30,
            # Not after a timeout: what is silent for ten seconds will be for the next ten.
            retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), RECONNECTIONS, supported_errors=(ConnectionError,)),
        )
        return client

    def close(self) -> None:
        """Closes the connections; they open again when needed."""
        self.redis.close()

    def ping(self) -> None:
        """Raises RedisUnavailableError unless Redis answers."""
        with self._translated():
            self.redis.ping()

    # -- requests -------------------------------------------------------------------------------------------------

    def request_retrain(self, project_id: int, *, forced: bool = False, renew: bool = False) -> tuple[int, str]:
        """Asks for a retrain; requests that come together share one job. (ticket, job id).

        `forced`: make a new version even when labels and pool are as before. `renew`: queue a job even though a
        marker stands, for a start after a crash.
        """
        with self._translated():
            if forced:
                self.redis.incr(_key(project_id, "forced"))
            ticket = int(self.redis.incr(_key(project_id, "requested")))
            job_id = self._enqueue_once(project_id, "retrain", RETRAIN_QUEUE, renew=renew)
            return ticket, job_id

    def request_evaluation(self, project_id: int) -> str:
        """Asks that the published version be evaluated once no retrain waits; the job's id."""
        with self._translated():
            return self._enqueue_once(project_id, "evaluate", EVALUATE_QUEUE)

    def is_unanswered(self, project_id: int) -> bool:
        """Whether a retrain was requested that none has answered, while none waits or runs.

        Its job failed and could not say so, or vanished: Redis was away at that moment, or lost its last second.
        """
        if self.training(project_id) != "idle":
            return False
        with self._translated():
            requested: Any = self.redis.get(_key(project_id, "requested"))
            newest: Any = self.redis.xrevrange(_key(project_id, "answers"), count=1)
            return int(requested or 0) > (int(newest[0][1][b"ticket"]) if newest else 0)

    def retrain_waits(self) -> bool:
        """Whether a retrain of any project is queued."""
        with self._translated():
            return len(self._queue(RETRAIN_QUEUE)) > 0

    def request_embedding(self, project_id: int, *, renew: bool = False) -> str:
        """Asks that the embeddings be brought up to date with the project's tasks; the job's id."""
        with self._translated():
            return self._enqueue_once(project_id, "plan_embedding", EMBED_QUEUE, renew=renew)

    def is_first_within(self, seconds: float, work: str) -> bool:
        """Whether no worker has asked this so many seconds: of several with the same timer one does the work."""
        with self._translated():
            return bool(self.redis.set(f"{_PREFIX}:first:{work}", 1, nx=True, px=max(1, int(1000 * seconds))))

    def request_reconciliation(self, project_id: int, *, renew: bool = False) -> str:
        """Asks that the project be compared with Label Studio; the job's id."""
        with self._translated():
            return self._enqueue_once(project_id, "reconcile", EMBED_QUEUE, renew=renew)

    def request_pruning(self, project_id: int) -> str:
        """Asks that old versions and their predictions be deleted when nothing more urgent is to do; the job's id."""
        with self._translated():
            return self._enqueue_once(project_id, "prune", EMBED_QUEUE)

    def request_search(self, project_id: int, shard: int) -> str:
        """Asks for a search of one shard of a large project; the job's id."""
        with self._translated():
            return self._enqueue_once(project_id, "search", SEARCH_QUEUE, shard)

    def open_searches(self, project_id: int) -> int:
        """How many shards of the project wait for a search, or are in the hands of a worker."""
        with self._translated():
            return sum(name.startswith(f"search-{project_id}-") for name in self._waiting_or_begun(SEARCH_QUEUE))

    def request_finetuning(self, project_id: int) -> str:
        """Asks that the project's backbone be fine-tuned; the job's id."""
        with self._translated():
            return self._enqueue_once(project_id, "finetune", FINETUNE_QUEUE)

    def request_map(self, project_id: int) -> str:
        """Asks that the project's map be brought up to date with its embeddings; the job's id."""
        with self._translated():
            return self._enqueue_once(project_id, "make_map", MAP_QUEUE)

    def map_waits(self) -> bool:
        """Whether the map of any project waits for somebody who makes it."""
        with self._translated():
            return len(self._queue(MAP_QUEUE)) > 0

    def is_mapping(self, project_id: int) -> bool:
        """Whether the project's map is being made, or waits for that."""
        with self._translated():
            return any(job_id.startswith(f"make_map-{project_id}-") for job_id in self._waiting_or_begun(MAP_QUEUE))

    def enqueue_batch(self, project_id: int, bucket: int, tasks: Sequence[Task]) -> None:
        """Queues the embedding of some tasks; `bucket` names the batch for `open_buckets`."""
        with self._translated():
            arguments = [[task.id, task.image] for task in tasks]
            job_id = f"embed-{project_id}-{bucket}-{uuid4().hex[:8]}"
            self.redis.sadd(_key(project_id, "batches"), job_id)
            self._enqueue("embed_batch", EMBED_QUEUE, job_id, project_id, arguments)

    def open_buckets(self, project_id: int) -> set[int]:
        """Buckets of this project whose batch waits in the queue, or is in the hands of a worker."""
        with self._translated():
            prefix = f"embed-{project_id}-"
            ids = self._waiting_or_begun(EMBED_QUEUE)
            return {int(job_id.split("-")[2]) for job_id in ids if job_id.startswith(prefix)}

    def is_embedding(self, project_id: int) -> bool:
        """Whether images of the project are being embedded, or looked for, or wait for that."""
        with self._translated():
            prefixes = f"embed-{project_id}-", f"plan_embedding-{project_id}-"
            return any(job_id.startswith(prefixes) for job_id in self._waiting_or_begun(EMBED_QUEUE))

    def end_batch(self, project_id: int) -> bool:
        """Last act of a batch: whether no other of its project waits or is being embedded.

        Of workers that end their batches at the same moment exactly one is told so.
        """
        from rq import get_current_job

        batches = _key(project_id, "batches")
        with self._translated():
            own = get_current_job()
            with self.redis.pipeline() as pipeline:
                pipeline.srem(batches, own.id if own else "")
                pipeline.smembers(batches)
                others = {_decoded(name) for name in pipeline.execute()[1]}
            lost = others - self._waiting_or_begun(EMBED_QUEUE) if others else set()
            if lost:  # failed, or gone with a Redis that was emptied
                self.redis.srem(batches, *lost)
            return others == lost

    def begin(self, project_id: int, work: str, part: int | None = None) -> None:
        """First act of any job made by a request: from here on a new request makes a new job."""
        with self._translated():
            self.redis.delete(_marker(project_id, work, part))

    def begin_retrain(self, project_id: int) -> RetrainRequest:
        """First act of a retrain job, before anything is read from Label Studio."""
        self.begin(project_id, "retrain")
        names = ("requested", "forced", "forced_answered")
        with self._translated():
            counts = self.redis.mget([_key(project_id, name) for name in names])
        ticket, forced, forced_answered = (int(count or 0) for count in counts)
        return RetrainRequest(ticket, forced != forced_answered, forced)

    def answer_retrain(self, project_id: int, request: RetrainRequest) -> None:
        """All that was requested is in the published version; a request that failed stays to be answered."""
        with self._translated(), self.redis.pipeline() as pipeline:
            pipeline.set(_key(project_id, "forced_answered"), request.forced_ticket)
            pipeline.xadd(_key(project_id, "answers"), {"ticket": request.ticket}, maxlen=1, approximate=False)
            pipeline.execute()

    def wait_for_retrain(self, project_id: int, ticket: int, timeout_s: float) -> bool:
        """Whether the request was answered within `timeout_s`; told in the moment it is."""
        key = _key(project_id, "answers")
        deadline = time.monotonic() + timeout_s
        with self._translated():
            # What stands there is looked at first, so that no answer falls between looking and waiting.
            newest: Any = self.redis.xrevrange(key, count=1)
            while not newest or int(newest[0][1][b"ticket"]) < ticket:
                left_ms = int((deadline - time.monotonic()) * 1000)
                if left_ms <= 0:
                    return False
                block_ms = min(left_ms, SOCKET_TIMEOUT_S * 500)
                later: Any = self.redis.xread({key: newest[0][0] if newest else "0-0"}, block=block_ms)
                newest = later[0][1][-1:] if later else newest
            return True

    def quiet_s(self, project_id: int) -> float:
        """Seconds since a retrain of the project was last answered; 0 while one waits or runs, infinite before any."""
        if self.training(project_id) != "idle":
            return 0.0
        answered_at = self.answered_at(project_id)
        with self._translated():
            return float("inf") if answered_at is None else self._now() - answered_at

    def answered_at(self, project_id: int) -> float | None:
        """When a retrain of the project was last answered, in seconds by Redis' clock; None if that is not known."""
        with self._translated():
            newest: Any = self.redis.xrevrange(_key(project_id, "answers"), count=1)
        return int(_decoded(newest[0][0]).partition("-")[0]) / 1000 if newest else None

    # -- the journal of webhooks ----------------------------------------------------------------------------------

    def record_event(self, project_id: int, event: Mapping[str, Any]) -> str:
        """Writes an event, plain JSON, into the project's journal of the last `JOURNAL_LENGTH`; its place there."""
        with self._translated():
            place: Any = self.redis.xadd(
                _key(project_id, "journal"), {"event": json.dumps(event)}, maxlen=JOURNAL_LENGTH, approximate=True
            )
            return _decoded(place)

    def events_since(self, project_id: int, place: str) -> list[tuple[str, Any]] | None:
        """(place, event) of all later events, in order; None if it can no longer be told, for `place` is gone."""
        with self._translated():
            found: Any = self.redis.xrange(_key(project_id, "journal"), min=place)
        if not found or _decoded(found[0][0]) != place:
            return None
        return [(_decoded(later), json.loads(content[b"event"])) for later, content in found[1:]]

    # -- one at a time --------------------------------------------------------------------------------------------

    @contextmanager
    def project_lock(self, project_id: int, name: str = "lock", wait_s: float = 60.0) -> Iterator[ProjectLock]:
        """Keeps other workers from publishing for the project; renewed while held, gone soon after a crash.

        Another `name` is another lock, for work that may go on beside publishing.
        Raises ProjectBusyError when another worker holds it for longer than `wait_s`.
        """
        with self._translated():
            lock = self.redis.lock(
                _key(project_id, name), timeout=LOCK_TTL_S, blocking_timeout=wait_s, sleep=0.02, thread_local=False
            )
            if not lock.acquire(token=f"{self.worker}-{uuid4().hex}"):
                raise ProjectBusyError(
                    f"project {project_id} stayed locked by another worker for {wait_s:g} s; it is tried again"
                )
        stop = threading.Event()
        renew = in_log_context(_renew)
        renewal = threading.Thread(target=renew, args=(lock, stop), name=f"lock-{project_id}", daemon=True)
        renewal.start()
        try:
            yield ProjectLock(project_id, lock, self.redis_url)
        finally:
            stop.set()
            renewal.join()
            _release(lock)

    # -- workers that die ------------------------------------------------------------------------------------------

    def stay_alive(self, worker: str, *, listens: bool = True) -> bool:
        """Says that the worker of this name lives, to be said again within `WORKER_TTL_S`.

        Whether Redis was emptied since any worker said so last, or never held anything; one of several is told.
        `listens`: the worker takes retrains, and is counted by `n_workers`.
        """
        with self._translated():
            self.redis.set(_worker_key(worker), 1, ex=WORKER_TTL_S)
            if listens:
                self.redis.zadd(_LISTENING, {worker: self._now()})
            return bool(self.redis.setnx(_IN_USE, 1))

    def leave(self, worker: str) -> None:
        """Says that the worker has ended."""
        with self._translated():
            self.redis.delete(_worker_key(worker))
            self.redis.zrem(_LISTENING, worker)

    def bury(self, dead: str, project_ids: Iterable[int]) -> set[tuple[str, str]]:
        """Takes the signs of life from workers known to be dead, and their locks on these projects; (queue, entry) of
        the jobs they had begun.

        `dead`: the name of a worker, or of its process, with which a dash and more follow in the worker's.
        """
        with self._translated():
            listening: Any = self.redis.zrange(_LISTENING, 0, -1)
            names, found = set(map(_decoded, listening)), set()
            for queue in ALL_QUEUES:
                for entry, job_id in self._begun(queue):
                    raw: Any = self.redis.hget(f"rq:job:{job_id}", "worker_name")
                    worker = _decoded(raw or b"")
                    names.add(worker)
                    if f"{worker}-".startswith(f"{dead}-"):
                        found.add((queue, entry))
            for name in names:
                if f"{name}-".startswith(f"{dead}-"):
                    self.redis.delete(_worker_key(name))
                    self.redis.zrem(_LISTENING, name)
            for project_id in project_ids:
                for lock in ("lock", FINETUNE_LOCK, PLAN_LOCK, MAP_LOCK):
                    self.redis.eval(_UNLOCK, 1, _key(project_id, lock), f"{dead}-")
            return found

    def abandoned(self) -> set[tuple[str, str]]:
        """(queue, entry) of all jobs that were begun by a worker which no longer lives."""
        with self._translated():
            found = set()
            for name in ALL_QUEUES:
                for entry, job_id in self._begun(name):
                    worker: Any = self.redis.hget(f"rq:job:{job_id}", "worker_name")
                    if worker is None or not self.redis.exists(_worker_key(_decoded(worker))):
                        found.add((name, entry))
            return found

    def take_up(self, queue: str, entry: str) -> Abandoned | None:
        """Queues an abandoned job again, before all that wait there; None if another worker has done so.

        A job that has cost `MAX_TAKEN_UP` workers their life is given up.
        """
        from rq.exceptions import NoSuchJobError
        from rq.job import Job

        with self._translated():
            if not self.redis.set(f"{_PREFIX}:taken-up:{entry}", 1, nx=True, ex=MARKER_TTL_S):
                return None
            registry = self._queue(queue).started_job_registry.key
            try:
                job = Job.fetch(entry.partition(":")[0], connection=self.redis, serializer=_serializer())
            except NoSuchJobError:
                self.redis.zrem(registry, entry)
                return None
            project_id, n_before = int(job.args[0]), int(job.meta.get("taken_up", 0))
            work = job.func_name.rpartition(".")[2]
            given_up = n_before >= MAX_TAKEN_UP
            if not given_up:
                job_id = f"{job.id.rpartition('-')[0]}-{uuid4().hex[:12]}"
                if work == "embed_batch":
                    self.redis.sadd(_key(project_id, "batches"), job_id)
                self._enqueue(work, queue, job_id, *job.args, taken_up=n_before + 1)
            self.redis.srem(_key(project_id, "batches"), job.id)
            self.redis.zrem(registry, entry)
            job.delete()
            return Abandoned(project_id, work, n_before + 1, given_up)

    def _begun(self, name: str) -> list[tuple[str, str]]:
        """(entry, job id) of the jobs of a queue that some worker has in hand, or had when it died."""
        key = self._queue(name).started_job_registry.key
        entries: Any = self.redis.zrange(key, 0, -1)
        return [(entry, entry.partition(":")[0]) for entry in map(_decoded, entries)]

    def _waiting_or_begun(self, name: str) -> set[str]:
        waiting = self._queue(name).get_job_ids()
        return {*waiting, *(job_id for _, job_id in self._begun(name))}

    # -- what is going on -----------------------------------------------------------------------------------------

    def training(self, project_id: int) -> Training:
        """Whether a retrain of the project runs or waits."""
        return self._state(project_id, "lock", "marker:retrain")

    def finetuning(self, project_id: int) -> Training:
        """Whether fine-tuning of the project's backbone runs or waits."""
        return self._state(project_id, FINETUNE_LOCK, "marker:finetune")

    def _state(self, project_id: int, lock: str, marker: str) -> Training:
        with self._translated():
            if self.redis.exists(_key(project_id, lock)):
                return "running"
            return "queued" if self.redis.exists(_key(project_id, marker)) else "idle"

    def job_status(self, job_id: str) -> dict[str, Any] | None:
        """State and times of a job in Label Studio's words; None when it is gone."""
        from rq.exceptions import NoSuchJobError
        from rq.job import Job

        with self._translated():
            try:
                job = Job.fetch(job_id, connection=self.redis, serializer=_serializer())
            except (NoSuchJobError, ValueError):  # rq refuses ids of characters that its own never have
                return None
            times = {name: getattr(job, name) for name in ("created_at", "enqueued_at", "started_at", "ended_at")}
            shown = {name: moment.isoformat() if moment else None for name, moment in times.items()}
            failed = job.get_status(refresh=False) == "failed"
            error = "the job failed; the worker's log says why" if failed else None
            return {"job_status": str(job.get_status(refresh=False).value), "error": error, **shown}

    def queue_depths(self) -> dict[str, int]:
        """Jobs waiting, by queue."""
        with self._translated():
            return {name: len(self._queue(name)) for name in ALL_QUEUES}

    def n_workers(self) -> int:
        """Workers alive and listening.

        By what they said of late: rq counts a killed one for minutes more, and none after Redis was emptied.
        """
        with self._translated():
            self.redis.zremrangebyscore(_LISTENING, 0, self._now() - WORKER_TTL_S)
            n_listening: Any = self.redis.zcard(_LISTENING)
            return int(n_listening)

    def set_progress(self, project_id: int, progress: Progress) -> None:
        """Starts anew the count of images embedded, and the clock for their rate."""
        with self._translated():
            now = self._now()
            fresh: dict[Any, float] = {"done": progress.done, "done_before": progress.done, "total": progress.total}
            self.redis.hset(_key(project_id, "progress"), mapping=fresh | {"started": now, "advanced": now})

    def advance_progress(self, project_id: int, n_images: int) -> None:
        """Counts some more images as embedded."""
        with self._translated():
            now = self._now()
            with self.redis.pipeline() as pipeline:
                pipeline.hincrby(_key(project_id, "progress"), "done", n_images)
                pipeline.hset(_key(project_id, "progress"), "advanced", now)
                pipeline.execute()

    def progress(self, project_id: int) -> Progress | None:
        """How far embedding is; None before the first plan."""
        with self._translated():
            raw = self.redis.hgetall(_key(project_id, "progress"))
            if b"total" not in raw:
                return None
        done, total = int(raw[b"done"]), int(raw[b"total"])
        took = float(raw.get(b"advanced", 0)) - float(raw.get(b"started", 0))
        n_since = done - int(raw.get(b"done_before", 0))
        return Progress(min(done, total), total, n_since / took if took > 0 and n_since > 0 else None)

    def _now(self) -> float:
        """Seconds by Redis' clock, which all workers share."""
        seconds, microseconds = self.redis.time()
        return float(seconds) + float(microseconds) / 1e6

    def set_note(self, project_id: int, name: str, text: str | None) -> None:
        """Keeps a short text about the project (the last error, a mark of what was seen); None deletes it."""
        with self._translated():
            if text is None:
                self.redis.delete(_key(project_id, f"note:{name}"))
            else:
                self.redis.set(_key(project_id, f"note:{name}"), text[:2000].encode("utf-8", "replace"))

    def note(self, project_id: int, name: str) -> str | None:
        """A text kept with `set_note`."""
        with self._translated():
            raw = self.redis.get(_key(project_id, f"note:{name}"))
            return _decoded(raw) if raw is not None else None

    def count(self, name: str, n: int = 1) -> None:
        """Adds to a counter shown by /metrics."""
        with self._translated():
            self.redis.hincrby(f"{_PREFIX}:counters", name, n)

    def counters(self) -> dict[str, int]:
        """All counters."""
        with self._translated():
            return {_decoded(key): int(value) for key, value in self.redis.hgetall(f"{_PREFIX}:counters").items()}

    def observe(self, work: str, seconds: Mapping[str, float]) -> None:
        """Counts how long each stage of some work took, for `histograms`."""
        with self._translated(), self.redis.pipeline(transaction=False) as pipeline:
            for stage, taken in seconds.items():
                bound = next((bound for bound in HISTOGRAM_BOUNDS if taken <= bound), float("inf"))
                pipeline.hincrby(f"{_PREFIX}:histograms", f"{work} {stage} {bound:g}", 1)
                pipeline.hincrbyfloat(f"{_PREFIX}:histograms", f"{work} {stage} sum", taken)
            pipeline.execute()

    def histograms(self) -> dict[tuple[str, str], Histogram]:
        """(work, stage) → how long it took, over all projects and workers since Redis was empty."""
        with self._translated():
            raw = {_decoded(key): float(value) for key, value in self.redis.hgetall(f"{_PREFIX}:histograms").items()}
        found: dict[tuple[str, str], Histogram] = {}
        for work, stage in sorted({(work, stage) for work, stage, _ in map(str.split, raw)}):
            counts = [int(raw.get(f"{work} {stage} {bound:g}", 0)) for bound in (*HISTOGRAM_BOUNDS, float("inf"))]
            found[work, stage] = Histogram(list(accumulate(counts)), raw.get(f"{work} {stage} sum", 0.0))
        return found

    # -- failures and counts ---------------------------------------------------------------------------------------

    def failures(self, project_id: int) -> dict[str, str]:
        """Work → what was kept of its failures with `keep_failure`."""
        with self._translated():
            found = self.redis.hgetall(_key(project_id, "failures"))
            return {_decoded(work): _decoded(content) for work, content in found.items()}

    def keep_failure(self, project_id: int, work: str, content: str) -> None:
        """Keeps a text about the failures of some work, in place of what was kept before."""
        with self._translated():
            self.redis.hset(_key(project_id, "failures"), work, content.encode("utf-8", "replace"))

    def drop_failure(self, project_id: int, work: str) -> bool:
        """Deletes it; whether there was one."""
        with self._translated():
            return bool(self.redis.hdel(_key(project_id, "failures"), work))

    def schedule(self, member: str, moment: float) -> None:
        """Plans something for a moment of Redis' clock, in place of when it was planned before."""
        with self._translated():
            self.redis.zadd(f"{_PREFIX}:schedule", {member: moment})

    def unschedule(self, member: str) -> None:
        """Takes it from the plan."""
        with self._translated():
            self.redis.zrem(f"{_PREFIX}:schedule", member)

    def scheduled_before(self, moment: float) -> list[str]:
        """What was planned for this moment or before."""
        with self._translated():
            found: Any = self.redis.zrangebyscore(f"{_PREFIX}:schedule", "-inf", moment)
            return list(map(_decoded, found))

    def now(self) -> float:
        """Seconds since 1970 by Redis' clock, which all processes share."""
        with self._translated():
            return self._now()

    def add_counts(self, name: str, counts: Mapping[str, float]) -> None:
        """Adds to several counts at once, all or none of them."""
        with self._translated(), self.redis.pipeline() as pipeline:
            for field, n in counts.items():
                pipeline.hincrbyfloat(f"{_PREFIX}:counts:{name}", field, n)
            pipeline.execute()

    def counts(self, name: str) -> dict[str, float]:
        """All counts of this name."""
        with self._translated():
            found = self.redis.hgetall(f"{_PREFIX}:counts:{name}")
            return {_decoded(field): float(n) for field, n in found.items()}

    def newest_label_at(self, project_id: int) -> float | None:
        """When the last webhook that told answers came, in seconds since 1970; None if the journal's end holds none."""
        with self._translated():
            found: Any = self.redis.xrevrange(_key(project_id, "journal"), count=JOURNAL_END)
        for place, content in found:
            if json.loads(content[b"event"]).keys() & {"annotations", "deleted"}:
                return int(_decoded(place).partition("-")[0]) / 1000
        return None

    # -- rq -------------------------------------------------------------------------------------------------------

    def queues(self, names: Sequence[str] = QUEUES) -> list[Any]:
        """The rq queues a worker listens to, most urgent first."""
        return [self._queue(name) for name in names]

    def _queue(self, name: str) -> Any:
        from rq import Queue

        return Queue(name, connection=self.redis, serializer=_serializer(), default_timeout=JOB_TIMEOUT_S)

    def _enqueue_once(
        self, project_id: int, work: str, queue: str, part: int | None = None, *, renew: bool = False
    ) -> str:
        marker = _marker(project_id, work, part)
        prefix = f"{work}-{project_id}-"
        job_id = f"{prefix}{uuid4().hex[:12]}"
        if renew:
            self.redis.set(marker, job_id, ex=MARKER_TTL_S)
        elif not self.redis.set(marker, job_id, nx=True, ex=MARKER_TTL_S):
            standing = self.redis.get(marker)
            if standing is not None:
                return _decoded(standing)
            self.redis.set(marker, job_id, ex=MARKER_TTL_S)
        if part is None:
            # Where jobs wait for longer than markers stand, a second one for every marker would make them wait longer.
            waiting = next((name for name in self._queue(queue).get_job_ids() if name.startswith(prefix)), None)
            if waiting is not None:
                return str(waiting)
        self._enqueue(work, queue, job_id, project_id, *([] if part is None else [part]))
        return job_id

    def _enqueue(self, work: str, queue: str, job_id: str, *arguments: Any, taken_up: int = 0) -> None:
        self._queue(queue).enqueue_call(
            f"backend.worker.{work}",
            args=arguments,
            job_id=job_id,
            result_ttl=RESULT_TTL_S,
            failure_ttl=FAILURE_TTL_S,
            meta={"taken_up": taken_up} if taken_up else None,
            at_front=taken_up > 0,
            timeout=JOB_TIMEOUT_S if queue in QUEUES else LONG_JOB_TIMEOUT_S,
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        from redis.exceptions import ConnectionError, TimeoutError

        if time.monotonic() < self._away_until:
            raise RedisUnavailableError(self._away_because)
        try:
            with _translated(self.redis_url):
                yield
        except RedisUnavailableError as exc:
            if isinstance(exc.__cause__, ConnectionError | TimeoutError):
                self._away_until, self._away_because = time.monotonic() + AWAY_S, str(exc)
            raise


class ProjectLock:
    """A held project lock."""

    def __init__(self, project_id: int, lock: Lock, redis_url: str) -> None:
        self._project_id = project_id
        self._lock = lock
        self._redis_url = redis_url

    def check(self) -> None:
        """Raises LockLostError if the lock is no longer ours: another worker may have published since."""
        with _translated(self._redis_url):
            owned = self._lock.owned()
        if not owned:
            raise LockLostError(
                f"the lock of project {self._project_id} was lost (Redis was emptied, or this worker stood still for "
                f"{LOCK_TTL_S:g} s); what was not published yet is begun again"
            )


def _renew(lock: Lock, stop: threading.Event) -> None:
    from redis.exceptions import RedisError

    while not stop.wait(LOCK_TTL_S / 3):
        try:
            lock.reacquire()
        except RedisError as exc:
            logger.warning("lock not renewed: %s", exc)


def _release(lock: Lock) -> None:
    from redis.exceptions import RedisError

    try:
        lock.release()
    except RedisError as exc:  # it expires by itself
        logger.warning("lock not released: %s", exc)


def _marker(project_id: int, work: str, part: int | None) -> str:
    return _key(project_id, f"marker:{work}" if part is None else f"marker:{work}-{part}")


def _worker_key(worker: str) -> str:
    return f"{_PREFIX}:worker:{worker}"


def _key(project_id: int, name: str) -> str:
    return f"{_PREFIX}:{project_id}:{name}"


def _decoded(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode("utf-8", "replace")


def _serializer() -> Any:
    from rq.serializers import JSONSerializer

    return JSONSerializer


@contextmanager
def _translated(redis_url: str) -> Iterator[None]:
    """Turns redis-py's errors into ours, with the address but without the password in it."""
    from redis.exceptions import RedisError

    try:
        yield
    except RedisError as exc:
        scheme, _, rest = redis_url.partition("?")[0].partition("://")
        address = f"{scheme}://{rest.rpartition('@')[2]}"
        raise RedisUnavailableError(f"Redis does not answer at {address} ({exc}); start it or set REDIS_URL") from exc
