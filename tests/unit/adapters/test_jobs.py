"""The job queue on a real Redis: requests that share a job, tickets, the lock, and what Redis holds."""

from __future__ import annotations

import json
import socket
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer

from backend.adapters import jobs as jobs_module
from backend.adapters.jobs import (
    ALL_QUEUES,
    EMBED_QUEUE,
    EVALUATE_QUEUE,
    FINETUNE_LOCK,
    FINETUNE_QUEUE,
    HISTOGRAM_BOUNDS,
    MAP_QUEUE,
    QUEUES,
    RETRAIN_QUEUE,
    SEARCH_QUEUE,
    Jobs,
    ProjectLock,
    RetrainRequest,
)
from backend.errors import LockLostError, RedisUnavailableError
from backend.schema import Progress, Task


def waiting(jobs: Jobs, queue: str = RETRAIN_QUEUE) -> list[str]:
    """What each waiting job would call, in order."""
    (found,) = [item for item in jobs.queues(ALL_QUEUES) if item.name == queue]
    return [f"{job.func_name}{tuple(job.args)}" for job in found.jobs]


def take(jobs: Jobs, queue: str = RETRAIN_QUEUE) -> None:
    """Removes the first waiting job, as a worker does before it runs it."""
    (found,) = [item for item in jobs.queues() if item.name == queue]
    found.pop_job_id()


# -- requests ---------------------------------------------------------------------------------------------------------


def test_requests_that_come_together_share_one_job(jobs: Jobs) -> None:
    """Five clicks are one job; each has its own ticket, all the same job id."""
    answers = [jobs.request_retrain(3) for _ in range(5)]
    assert [ticket for ticket, _ in answers] == [1, 2, 3, 4, 5]
    assert len({job_id for _, job_id in answers}) == 1
    assert waiting(jobs) == ["backend.worker.retrain(3,)"]
    assert jobs.training(3) == "queued"


def test_requests_from_many_threads_share_one_job(jobs: Jobs) -> None:
    """Twenty webhooks at the same moment: twenty different tickets, one job."""
    with ThreadPoolExecutor(20) as pool:
        tickets = [ticket for ticket, _ in pool.map(lambda _: jobs.request_retrain(3), range(20))]
    assert sorted(tickets) == list(range(1, 21))
    assert len(waiting(jobs)) == 1


def test_projects_do_not_share_jobs(jobs: Jobs) -> None:
    """One job each, tickets counted apart; 3 and 33 are not confused."""
    assert [jobs.request_retrain(project)[0] for project in (3, 33, 3)] == [1, 1, 2]
    assert waiting(jobs) == ["backend.worker.retrain(3,)", "backend.worker.retrain(33,)"]


def test_an_event_before_the_job_s_first_act_is_covered_by_it(jobs: Jobs) -> None:
    """The request comes after the worker took the job, but before it begins: the job reads the label anyway."""
    jobs.request_retrain(3)
    take(jobs)
    late_ticket, _ = jobs.request_retrain(3)
    assert waiting(jobs) == []
    assert jobs.begin_retrain(3).ticket == late_ticket


def test_an_event_after_the_job_s_first_act_makes_one_more_job(jobs: Jobs) -> None:
    """What comes while labels are being read would be missed: it makes one follow-up job, however often it comes."""
    jobs.request_retrain(3)
    take(jobs)
    request = jobs.begin_retrain(3)
    assert jobs.training(3) == "idle"
    for _ in range(3):
        jobs.request_retrain(3)
    assert len(waiting(jobs)) == 1
    assert request.ticket == 1


def test_a_marker_whose_job_vanished_expires(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis lost the job but kept the marker: the next request after its lifetime makes a job again."""
    monkeypatch.setattr(jobs_module, "MARKER_TTL_S", 1)
    jobs.request_retrain(3)
    take(jobs)
    jobs.request_retrain(3)
    assert waiting(jobs) == []
    (marker,) = jobs.redis.keys("*marker*")
    deadline = time.monotonic() + 5
    while jobs.redis.exists(marker) and time.monotonic() < deadline:
        time.sleep(0.05)
    jobs.request_retrain(3)
    assert len(waiting(jobs)) == 1


def test_every_marker_expires_by_itself(jobs: Jobs) -> None:
    """No request can stand in the way of later ones for good."""
    jobs.request_retrain(3)
    jobs.request_embedding(3)
    jobs.request_reconciliation(3)
    jobs.request_pruning(3)
    jobs.request_retrain(4, renew=True)
    markers = jobs.redis.keys("*marker*")
    assert len(markers) == 5
    assert all(0 < jobs.redis.ttl(marker) <= jobs_module.MARKER_TTL_S for marker in markers)


def test_a_renewed_request_does_not_trust_the_marker(jobs: Jobs) -> None:
    """At a start after a crash a job is queued although a marker stands; requests after it share that one."""
    jobs.request_retrain(3)
    take(jobs)
    _, renewed = jobs.request_retrain(3, renew=True)
    _, shared = jobs.request_retrain(3)
    assert renewed == shared
    assert len(waiting(jobs)) == 1


def test_a_marker_that_ends_between_two_looks_makes_a_job(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The marker stands when it is set anew and is gone when it is read: the request is not lost."""
    jobs.request_retrain(3)
    take(jobs)
    monkeypatch.setattr(jobs.redis, "get", lambda _: jobs.begin(3, "retrain"))
    jobs.request_retrain(3)
    assert len(waiting(jobs)) == 1


def test_a_forced_request_forces_one_job(jobs: Jobs) -> None:
    """Start Training joins a waiting job and makes it a forced one; the job after it is not forced."""
    jobs.request_retrain(3)
    jobs.request_retrain(3, forced=True)
    jobs.request_retrain(3)
    assert len(waiting(jobs)) == 1
    request = jobs.begin_retrain(3)
    assert request.forced
    jobs.answer_retrain(3, request)
    assert not jobs.begin_retrain(3).forced
    assert not jobs.begin_retrain(4).forced


def test_beginning_without_a_request_is_fine(jobs: Jobs) -> None:
    """Redis was emptied in between: the job runs, and has nothing to answer."""
    assert (jobs.begin_retrain(3).ticket, jobs.begin_retrain(3).forced) == (0, False)


# -- tickets ----------------------------------------------------------------------------------------------------------


def test_a_waiter_learns_of_its_answer(jobs: Jobs) -> None:
    """Ticket 2 is answered with everything up to 2; ticket 3 is not."""
    for _ in range(2):
        jobs.request_retrain(3)
    request = jobs.begin_retrain(3)
    jobs.request_retrain(3)
    assert not jobs.wait_for_retrain(3, 1, timeout_s=0)
    jobs.answer_retrain(3, request)
    assert jobs.wait_for_retrain(3, 1, timeout_s=0)
    assert jobs.wait_for_retrain(3, 2, timeout_s=0)
    assert not jobs.wait_for_retrain(3, 3, timeout_s=0)
    assert not jobs.wait_for_retrain(4, 1, timeout_s=0)


def test_a_waiter_is_woken_while_it_waits(jobs: Jobs) -> None:
    """The answer comes from another thread: the wait ends with it, long before its limit."""
    ticket, _ = jobs.request_retrain(3)
    timer = threading.Timer(0.05, jobs.answer_retrain, (3, jobs.begin_retrain(3)))
    timer.start()
    assert jobs.wait_for_retrain(3, ticket, timeout_s=30)
    timer.join()


def test_a_waiter_waits_on_when_only_earlier_requests_are_answered(jobs: Jobs) -> None:
    """Ticket 2 came while the job ran; the answer to 1 wakes its waiter too early, the next one in time."""
    jobs.request_retrain(3)
    first = jobs.begin_retrain(3)
    ticket, _ = jobs.request_retrain(3)
    second = jobs.begin_retrain(3)
    timers = [
        threading.Timer(after, jobs.answer_retrain, (3, request)) for after, request in ((0.05, first), (0.2, second))
    ]
    for timer in timers:
        timer.start()
    assert jobs.wait_for_retrain(3, ticket, timeout_s=30)
    assert not timers[0].is_alive()
    for timer in timers:
        timer.join()


def test_it_is_quiet_some_time_after_the_last_answer(jobs: Jobs) -> None:
    """Not while a retrain waits or runs; for ever before the first."""
    assert jobs.quiet_s(3) == float("inf")
    jobs.request_retrain(3)
    assert jobs.quiet_s(3) == 0
    request = jobs.begin_retrain(3)
    with jobs.project_lock(3):
        assert jobs.quiet_s(3) == 0
        jobs.answer_retrain(3, request)
    time.sleep(0.05)
    assert 0.05 <= jobs.quiet_s(3) < 30


# -- the lock ---------------------------------------------------------------------------------------------------------


def test_the_lock_lets_one_in_per_project(jobs: Jobs) -> None:
    """Held by one, it keeps another worker of the project out, not one of another project; then it is free."""
    other = Jobs(jobs.redis_url)
    with jobs.project_lock(3) as lock:
        lock.check()
        assert jobs.training(3) == "running"
        with pytest.raises(LockLostError, match="project 3 stayed locked"), other.project_lock(3, wait_s=0.05):
            pytest.fail("two workers hold the same lock")
        with other.project_lock(4, wait_s=0.05):
            pass
    assert jobs.training(3) == "idle"
    with other.project_lock(3, wait_s=0.05):
        pass
    other.redis.close()


def test_the_lock_is_released_when_the_work_fails(jobs: Jobs) -> None:
    """An error inside passes through, and the next worker does not wait."""
    with pytest.raises(ZeroDivisionError), jobs.project_lock(3):
        raise ZeroDivisionError
    assert jobs.training(3) == "idle"


def test_a_lock_is_renewed_while_it_is_held(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of 0.3 s is still ours after 1 s of work."""
    monkeypatch.setattr(jobs_module, "LOCK_TTL_S", 0.3)
    with jobs.project_lock(3) as lock:
        time.sleep(1)
        lock.check()
        assert 0 < jobs.redis.pttl("active-learning:3:lock") <= 300


def test_a_killed_worker_s_lock_ends_by_itself(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody renews it, so it has a lifetime, and the next worker gets in after it."""
    monkeypatch.setattr(jobs_module, "LOCK_TTL_S", 0.2)
    jobs.redis.lock("active-learning:3:lock", timeout=0.2).acquire()
    with jobs.project_lock(3, wait_s=5) as lock:
        lock.check()


def test_a_lost_lock_is_noticed(jobs: Jobs) -> None:
    """Another worker took over: checking says so before anything is published, and leaving does not take it away."""
    with jobs.project_lock(3) as lock:
        jobs.redis.set("active-learning:3:lock", "somebody else")
        with pytest.raises(LockLostError, match="project 3 was lost"):
            lock.check()
    assert jobs.redis.get("active-learning:3:lock") == b"somebody else"


def test_an_expired_lock_is_noticed(jobs: Jobs) -> None:
    """Redis was emptied in the middle."""
    with jobs.project_lock(3) as lock:
        jobs.redis.delete("active-learning:3:lock")
        with pytest.raises(LockLostError):
            lock.check()


# -- embedding --------------------------------------------------------------------------------------------------------


def test_waiting_batches_are_known_by_their_bucket(jobs: Jobs) -> None:
    """Batches of project 3 in buckets 0 and 7; those of projects 30 and 13 are not counted, nor other jobs."""
    for project_id, bucket in [(3, 0), (3, 7), (30, 1), (13, 2)]:
        jobs.enqueue_batch(project_id, bucket, [Task(1, "/data/upload/1.jpg"), Task(2, None)])
    jobs.request_embedding(3)
    jobs.request_retrain(3)
    assert jobs.open_buckets(3) == {0, 7}
    take(jobs, EMBED_QUEUE)
    assert jobs.open_buckets(3) == {7}
    assert jobs.open_buckets(99) == set()


def test_every_shard_has_one_search_at_a_time(jobs: Jobs) -> None:
    """A second request for a shard that waits makes no second job; one for a shard that was begun does."""
    assert jobs.request_search(3, 0) == jobs.request_search(3, 0)
    jobs.request_search(3, 1)
    jobs.request_search(30, 0)
    assert waiting(jobs, SEARCH_QUEUE) == [
        f"backend.worker.search({n}, {shard})" for n, shard in [(3, 0), (3, 1), (30, 0)]
    ]
    assert (jobs.open_searches(3), jobs.open_searches(30), jobs.open_searches(1)) == (2, 1, 0)
    jobs.begin(3, "search", 0)
    jobs.request_search(3, 0)
    assert jobs.open_searches(3) == 3


def test_a_batch_carries_its_tasks(jobs: Jobs) -> None:
    """Ids and references arrive as they were, None for a task without image."""
    jobs.enqueue_batch(3, 0, [Task(1, "/data/upload/é.jpg"), Task(2, None)])
    assert waiting(jobs, EMBED_QUEUE) == ["backend.worker.embed_batch(3, [[1, '/data/upload/é.jpg'], [2, None]])"]


def test_retraining_comes_before_embedding(jobs: Jobs) -> None:
    """A worker listens to the queue of retrains first, and each request waits in its own queue."""
    jobs.request_embedding(3)
    jobs.request_reconciliation(3)
    jobs.request_pruning(3)
    jobs.request_retrain(3)
    assert (
        [queue.name for queue in jobs.queues()]
        == list(QUEUES)
        == [RETRAIN_QUEUE, EVALUATE_QUEUE, EMBED_QUEUE, SEARCH_QUEUE]
    )
    depths = {RETRAIN_QUEUE: 1, EVALUATE_QUEUE: 0, EMBED_QUEUE: 3, SEARCH_QUEUE: 0, FINETUNE_QUEUE: 0, MAP_QUEUE: 0}
    assert jobs.queue_depths() == depths
    assert waiting(jobs, EMBED_QUEUE) == [
        f"backend.worker.{work}(3,)" for work in ("plan_embedding", "reconcile", "prune")
    ]


# -- what Redis holds -------------------------------------------------------------------------------------------------


def test_redis_holds_no_pickle(jobs: Jobs) -> None:
    """Whoever can write to Redis must not be able to run code: job data is JSON, nothing anywhere is a pickle."""
    jobs.request_retrain(3)
    jobs.enqueue_batch(3, 0, [Task(1, "/data/upload/1.jpg")])
    values: list[bytes] = []
    for key in jobs.redis.scan_iter():
        kind = jobs.redis.type(key)
        if kind == b"hash":
            values += jobs.redis.hgetall(key).values()
        elif kind == b"string":
            values.append(jobs.redis.get(key))
    data = []
    for value in values:
        raw = zlib.decompress(value) if value[:1] == b"\x78" else value
        assert not raw.startswith(b"\x80"), raw
        if raw.startswith(b"["):
            data.append(json.loads(raw))
    assert sorted(item[0] for item in data) == ["backend.worker.embed_batch", "backend.worker.retrain"]


# -- status -----------------------------------------------------------------------------------------------------------


def test_a_waiting_job_is_queued_with_its_times(jobs: Jobs) -> None:
    """Label Studio's words and ISO times; no start, no end, no error yet."""
    _, job_id = jobs.request_retrain(3)
    status = jobs.job_status(job_id)
    assert status is not None
    assert (status["job_status"], status["error"], status["started_at"]) == ("queued", None, None)
    assert status["created_at"] <= status["enqueued_at"]
    assert json.loads(json.dumps(status)) == status


def test_a_failed_job_says_so_without_a_traceback(jobs: Jobs) -> None:
    """The worker's log has the traceback; who asks for the status gets a sentence."""
    _, job_id = jobs.request_retrain(3)
    job = Job.fetch(job_id, connection=jobs.redis, serializer=JSONSerializer)
    job.set_status("failed")
    job._exc_info = "Traceback (most recent call last): secret"
    job.save()
    status = jobs.job_status(job_id)
    assert status is not None
    assert status["job_status"] == "failed"
    assert "log" in status["error"]
    assert "Traceback" not in json.dumps(status)


@pytest.mark.parametrize("job_id", ["retrain-3-000000000000", "", "no such/job id", "é\n", "x" * 5000])
def test_an_unknown_job_has_no_status(jobs: Jobs, job_id: str) -> None:
    """Whatever is asked for, what is not there is None."""
    assert jobs.job_status(job_id) is None


def test_progress_is_counted_and_never_above_its_total(jobs: Jobs) -> None:
    """None before the first plan; batches done twice do not count beyond all images."""
    assert jobs.progress(3) is None
    jobs.set_progress(3, Progress(1, 4))
    for expected in (3, 4):
        jobs.advance_progress(3, 2)
        progress = jobs.progress(3)
        assert progress is not None
        assert (progress.done, progress.total) == (expected, 4)
    jobs.set_progress(3, Progress(0, 6))
    assert jobs.progress(3) == Progress(0, 6)


def test_the_rate_is_that_of_what_came_since_the_plan(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 images in the 5 s until the last batch, whatever was there before: 4 a second, so 70 more take 17.5 s."""
    clock = iter([1000.0, 1003.0, 1005.0])
    monkeypatch.setattr(jobs, "_now", lambda: next(clock))
    jobs.set_progress(3, Progress(10, 100))
    assert jobs.progress(3) == Progress(10, 100)
    jobs.advance_progress(3, 8)
    jobs.advance_progress(3, 12)
    progress = jobs.progress(3)
    assert progress == Progress(30, 100, 4.0)
    assert progress.seconds_left == 17.5


def test_the_time_left_is_nothing_at_the_end_and_unknown_at_the_start() -> None:
    """Of a rate that is not known nothing can be said; of nothing left it need not be."""
    assert Progress(0, 5).seconds_left is None
    assert Progress(5, 5).seconds_left == 0
    assert Progress(1, 5, 2.0).seconds_left == 2


def test_progress_without_a_plan_is_no_progress(jobs: Jobs) -> None:
    """Redis was emptied while batches still ran: half a record is not shown, and asking does not fail."""
    jobs.advance_progress(3, 2)
    assert jobs.progress(3) is None


def test_notes_are_kept_by_project_and_name(jobs: Jobs) -> None:
    """Any text comes back; None deletes; one far too long is cut, not refused."""
    assert jobs.note(3, "mark") is None
    jobs.set_note(3, "mark", "é 1")
    jobs.set_note(4, "mark", "2")
    assert (jobs.note(3, "mark"), jobs.note(4, "mark"), jobs.note(3, "other")) == ("é 1", "2", None)
    jobs.set_note(3, "mark", None)
    assert jobs.note(3, "mark") is None
    jobs.set_note(3, "mark", "x" * 10_000)
    assert jobs.note(3, "mark") == "x" * 2000


def test_a_note_may_hold_any_text(jobs: Jobs) -> None:
    """A lone surrogate (from a file name, or JSON) in an error message does not make a second error."""
    jobs.set_note(3, "last_error", "image \udcff")
    assert jobs.note(3, "last_error") is not None


def test_counters_add_up(jobs: Jobs) -> None:
    """Two done and one failed, by name."""
    assert jobs.counters() == {}
    jobs.count("jobs_done")
    jobs.count("jobs_done")
    jobs.count("jobs_failed")
    assert jobs.counters() == {"jobs_done": 2, "jobs_failed": 1}


def test_no_worker_is_counted_where_none_listens(jobs: Jobs) -> None:
    """Zero, not an error."""
    assert jobs.n_workers() == 0


def test_workers_are_counted_as_long_as_they_say_that_they_live(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of fine-tuning is not counted; one that died is not counted for long; one that left is not at all."""
    jobs.stay_alive("a")
    jobs.stay_alive("b")
    jobs.stay_alive("tunes", listens=False)
    assert jobs.n_workers() == 2
    jobs.leave("b")
    assert jobs.n_workers() == 1
    monkeypatch.setattr(jobs_module, "WORKER_TTL_S", 0.001)
    time.sleep(0.01)
    assert jobs.n_workers() == 0


def test_one_worker_is_told_that_redis_was_emptied(jobs: Jobs) -> None:
    """The first to speak after it; both are counted again from then on."""
    assert jobs.stay_alive("a")
    assert not jobs.stay_alive("a")
    assert not jobs.stay_alive("b")
    jobs.redis.flushall()
    assert [jobs.stay_alive("b"), jobs.stay_alive("a")] == [True, False]
    assert jobs.n_workers() == 2


def test_a_redis_that_is_silent_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and never answers: what is asked in the next moment is told so without another try."""
    monkeypatch.setattr(jobs_module, "SOCKET_TIMEOUT_S", 0.2)
    monkeypatch.setattr(jobs_module, "AWAY_S", 60.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        jobs = Jobs(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        for ask in (jobs.ping, jobs.queue_depths, lambda: jobs.training(3)):
            with pytest.raises(RedisUnavailableError, match="Redis does not answer"):
                ask()
        silent.settimeout(0)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
        jobs.close()


def test_a_redis_that_refuses_one_thing_is_not_away(jobs: Jobs) -> None:
    """A key of another type: that request fails, the next one is made."""
    jobs.redis.set("active-learning:counters", "no hash")
    with pytest.raises(RedisUnavailableError):
        jobs.count("jobs_done")
    jobs.ping()


def test_a_retrain_is_unanswered_once_its_job_is_gone(jobs: Jobs) -> None:
    """Not while it waits or runs, and not when a job has answered it."""
    assert not jobs.is_unanswered(3)
    jobs.request_retrain(3)
    assert not jobs.is_unanswered(3)
    request = jobs.begin_retrain(3)
    with jobs.project_lock(3):
        assert not jobs.is_unanswered(3)
    assert jobs.is_unanswered(3)
    jobs.answer_retrain(3, request)
    assert not jobs.is_unanswered(3)


def test_embedding_is_known_from_the_request_to_the_last_batch(jobs: Jobs) -> None:
    """A plan that waits and a batch that waits both count, those of another project do not."""
    assert not jobs.is_embedding(3)
    jobs.request_embedding(33)
    assert not jobs.is_embedding(3)
    jobs.request_embedding(3)
    assert jobs.is_embedding(3)
    take(jobs, EMBED_QUEUE)
    take(jobs, EMBED_QUEUE)
    assert not jobs.is_embedding(3)
    jobs.enqueue_batch(3, 0, [Task(1, "a.png")])
    assert jobs.is_embedding(3)


def test_fine_tuning_waits_in_a_queue_of_its_own(jobs: Jobs) -> None:
    """No worker of labels takes it, it has hours instead of half an hour, and one request is one job."""
    job = jobs.request_finetuning(3)
    assert jobs.request_finetuning(3) == job
    assert [queue.count for queue in jobs.queues()] == [0] * len(QUEUES)
    (queue,) = jobs.queues((FINETUNE_QUEUE,))
    assert [(waiting.func_name, waiting.args, waiting.timeout) for waiting in queue.jobs] == [
        ("backend.worker.finetune", [3], 6 * 3600)
    ]
    assert (jobs.finetuning(3), jobs.training(3)) == ("queued", "idle")
    jobs.begin(3, "finetune")
    assert jobs.finetuning(3) == "idle"


def test_two_locks_of_one_project_do_not_keep_each_other_out(jobs: Jobs) -> None:
    """Labels are learned while a backbone is fine-tuned; a second fine-tuning of the project is kept out."""
    with jobs.project_lock(3, FINETUNE_LOCK), jobs.project_lock(3, wait_s=0.1):
        assert (jobs.finetuning(3), jobs.training(3)) == ("running", "running")
        with pytest.raises(LockLostError), jobs.project_lock(3, FINETUNE_LOCK, wait_s=0.1):
            pass
    assert (jobs.finetuning(3), jobs.training(3)) == ("idle", "idle")


# -- how long things take ---------------------------------------------------------------------------------------------


def test_times_are_counted_by_work_and_stage(jobs: Jobs) -> None:
    """By hand: of 0.004, 0.03 and 99 s one took at most 0.005, two at most 0.05 (and 0.1, …), all any time at all."""
    assert jobs.histograms() == {}
    jobs.observe("retrain", {"fit": 0.004, "push": 0.1})
    jobs.observe("retrain", {"fit": 0.03})
    jobs.observe("retrain", {"fit": 99.0})
    found = jobs.histograms()
    assert set(found) == {("retrain", "fit"), ("retrain", "push")}
    fit = dict(zip([*HISTOGRAM_BOUNDS, None], found["retrain", "fit"].cumulative, strict=True))
    assert (fit[0.005], fit[0.025], fit[0.05], fit[60.0], fit[None]) == (1, 1, 2, 2, 3)
    assert found["retrain", "fit"].total == pytest.approx(99.034)
    push = dict(zip([*HISTOGRAM_BOUNDS, None], found["retrain", "push"].cumulative, strict=True))
    assert (push[0.05], push[0.1]) == (0, 1), "a bound belongs to what it bounds"


# -- the journal ------------------------------------------------------------------------------------------------------


def test_the_journal_tells_what_came_after_a_place(jobs: Jobs) -> None:
    """In order, as it was written, of this project only."""
    first = jobs.record_event(3, {"é": [1, None]})
    second = jobs.record_event(3, {"b": 2})
    jobs.record_event(4, {"c": 3})
    assert jobs.events_since(3, first) == [(second, {"b": 2})]
    assert jobs.events_since(3, second) == []


def test_a_place_that_is_gone_is_told(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis was emptied, or too much happened since: nobody may think that these were all events."""
    place = jobs.record_event(3, {})
    jobs.redis.flushdb()
    assert jobs.events_since(3, place) is None
    monkeypatch.setattr(jobs_module, "JOURNAL_LENGTH", 10)
    place = jobs.record_event(3, {})
    for number in range(300):
        jobs.record_event(3, {"n": number})
    assert jobs.events_since(3, place) is None


# -- Redis away -------------------------------------------------------------------------------------------------------

CALLS: dict[str, Any] = {
    "ping": lambda jobs: jobs.ping(),
    "request_retrain": lambda jobs: jobs.request_retrain(3),
    "request_embedding": lambda jobs: jobs.request_embedding(3),
    "request_reconciliation": lambda jobs: jobs.request_reconciliation(3),
    "request_evaluation": lambda jobs: jobs.request_evaluation(3),
    "record_event": lambda jobs: jobs.record_event(3, {}),
    "end_batch": lambda jobs: jobs.end_batch(3),
    "is_first_within": lambda jobs: jobs.is_first_within(1, "reconcile"),
    "stay_alive": lambda jobs: jobs.stay_alive("w"),
    "leave": lambda jobs: jobs.leave("w"),
    "bury": lambda jobs: jobs.bury("w", [3]),
    "abandoned": lambda jobs: jobs.abandoned(),
    "take_up": lambda jobs: jobs.take_up(RETRAIN_QUEUE, "retrain-3-1:2"),
    "events_since": lambda jobs: jobs.events_since(3, "0-1"),
    "retrain_waits": lambda jobs: jobs.retrain_waits(),
    "request_pruning": lambda jobs: jobs.request_pruning(3),
    "request_finetuning": lambda jobs: jobs.request_finetuning(3),
    "finetuning": lambda jobs: jobs.finetuning(3),
    "request_map": lambda jobs: jobs.request_map(3),
    "map_waits": lambda jobs: jobs.map_waits(),
    "is_mapping": lambda jobs: jobs.is_mapping(3),
    "enqueue_batch": lambda jobs: jobs.enqueue_batch(3, 0, []),
    "open_buckets": lambda jobs: jobs.open_buckets(3),
    "begin_retrain": lambda jobs: jobs.begin_retrain(3),
    "answer_retrain": lambda jobs: jobs.answer_retrain(3, RetrainRequest(1, False, 0)),
    "quiet_s": lambda jobs: jobs.quiet_s(3),
    "answered_at": lambda jobs: jobs.answered_at(3),
    "wait_for_retrain": lambda jobs: jobs.wait_for_retrain(3, 1, 0),
    "project_lock": lambda jobs: jobs.project_lock(3).__enter__(),
    "training": lambda jobs: jobs.training(3),
    "job_status": lambda jobs: jobs.job_status("x"),
    "queue_depths": lambda jobs: jobs.queue_depths(),
    "n_workers": lambda jobs: jobs.n_workers(),
    "is_unanswered": lambda jobs: jobs.is_unanswered(3),
    "is_embedding": lambda jobs: jobs.is_embedding(3),
    "request_search": lambda jobs: jobs.request_search(3, 0),
    "open_searches": lambda jobs: jobs.open_searches(3),
    "progress": lambda jobs: jobs.progress(3),
    "set_progress": lambda jobs: jobs.set_progress(3, Progress(0, 1)),
    "advance_progress": lambda jobs: jobs.advance_progress(3, 1),
    "note": lambda jobs: jobs.note(3, "x"),
    "set_note": lambda jobs: jobs.set_note(3, "x", "y"),
    "count": lambda jobs: jobs.count("x"),
    "observe": lambda jobs: jobs.observe("x", {"y": 1.0}),
    "histograms": lambda jobs: jobs.histograms(),
    "counters": lambda jobs: jobs.counters(),
    "failures": lambda jobs: jobs.failures(3),
    "keep_failure": lambda jobs: jobs.keep_failure(3, "x", "y"),
    "drop_failure": lambda jobs: jobs.drop_failure(3, "x"),
    "schedule": lambda jobs: jobs.schedule("x", 1.0),
    "unschedule": lambda jobs: jobs.unschedule("x"),
    "scheduled_before": lambda jobs: jobs.scheduled_before(1.0),
    "now": lambda jobs: jobs.now(),
    "add_counts": lambda jobs: jobs.add_counts("x", {"y": 1.0}),
    "counts": lambda jobs: jobs.counts("x"),
    "newest_label_at": lambda jobs: jobs.newest_label_at(3),
}


def test_a_map_is_asked_for_once_and_waits_in_a_queue_of_its_own(jobs: Jobs) -> None:
    """Workers of labels do not listen to it; another project's map is another job."""
    assert not jobs.map_waits()
    job_id = jobs.request_map(3)
    assert jobs.request_map(3) == job_id
    assert waiting(jobs, MAP_QUEUE) == ["backend.worker.make_map(3,)"]
    assert jobs.map_waits()
    assert (jobs.is_mapping(3), jobs.is_mapping(33)) == (True, False)
    assert MAP_QUEUE not in [queue.name for queue in jobs.queues()]
    (queue,) = jobs.queues([MAP_QUEUE])
    queue.remove(job_id)
    jobs.begin(3, "make_map")
    assert not jobs.is_mapping(3)
    assert jobs.request_map(3) != job_id


@pytest.mark.parametrize("renew", [True, False])
def test_a_job_that_waits_for_long_is_not_queued_a_second_time(jobs: Jobs, renew: bool) -> None:
    """Its marker is gone by then; else ever more would wait. Another project's is another job; so is a begun one."""
    job_id = jobs.request_reconciliation(3)
    jobs.redis.delete(jobs_module._marker(3, "reconcile", None))
    assert jobs.request_reconciliation(3, renew=renew) == job_id
    assert jobs.queue_depths()[EMBED_QUEUE] == 1
    jobs.request_reconciliation(33)
    jobs.request_embedding(3)
    assert jobs.queue_depths()[EMBED_QUEUE] == 3
    jobs.queues([EMBED_QUEUE])[0].remove(job_id)
    jobs.begin(3, "reconcile")
    assert jobs.request_reconciliation(3, renew=renew) != job_id
    assert jobs.queue_depths()[EMBED_QUEUE] == 3


def test_every_public_method_is_tried_without_redis() -> None:
    """The table below is complete."""
    methods = {name for name in vars(Jobs) if not name.startswith("_")}
    assert methods - set(CALLS) == {"redis", "begin", "queues", "close"}


@pytest.mark.parametrize("call", CALLS)
def test_redis_away_is_one_error_with_a_cure_and_no_password(dead_redis_url: str, call: str) -> None:
    """The address is named, the password is not, and what to do is said."""
    with pytest.raises(RedisUnavailableError, match="set REDIS_URL") as caught:
        CALLS[call](Jobs(dead_redis_url))
    assert "127.0.0.1" in str(caught.value)
    assert "pass-w0rd" not in str(caught.value)


def test_a_lock_check_without_redis_is_the_same_error(dead_redis_url: str) -> None:
    """Redis goes away while a job holds the lock: publishing is refused with a sentence, not with a driver's error."""
    lock = Redis.from_url(dead_redis_url).lock("active-learning:3:lock", timeout=1)
    lock.local.token = b"mine"
    with pytest.raises((RedisUnavailableError, LockLostError)):
        ProjectLock(3, lock, dead_redis_url).check()


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1:{port}/0?password=pass-w0rd", "redis://:pass@pass-w0rd@127.0.0.1:{port}/0"],
)
def test_no_spelling_of_the_password_is_shown(url: str, dead_redis_url: str) -> None:
    """redis-py also takes it as a query, and people forget to escape an @."""
    port = dead_redis_url.rpartition(":")[2].partition("/")[0]
    with pytest.raises(RedisUnavailableError) as caught:
        Jobs(url.format(port=port)).ping()
    assert "pass-w0rd" not in str(caught.value)


def test_a_wrong_password_is_told_without_it(redis_url: str) -> None:
    """A Redis that refuses us is as good as none; the message helps without giving the password away."""
    with pytest.raises(RedisUnavailableError) as caught:
        Jobs(redis_url.replace("://", "://operator:pass-w0rd@")).ping()
    assert "pass-w0rd" not in str(caught.value)


def test_building_the_queue_connects_to_nothing() -> None:
    """Only the first question does."""
    assert Jobs("redis://nowhere.invalid:1/0").redis_url == "redis://nowhere.invalid:1/0"
