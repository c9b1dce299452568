"""Jobs that fail: kept with the reason, tried again after ever longer pauses, taken back by a success."""

from __future__ import annotations

import logging
import random
import threading
import time

import pytest
from fakes import LABEL_CONFIG, World, rgb

from backend.adapters.jobs import Jobs
from backend.errors import (
    FinetuningError,
    LabelingConfigError,
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioUnreachableError,
)
from backend.loop import retries as retries_module
from backend.loop.reconcile import MARK
from backend.loop.retries import FIRST_PAUSE_S, LAST_ERROR, LONGEST_PAUSE_S, Retries
from backend.worker import WarmWorker

AWAY = LabelStudioUnreachableError("Label Studio does not answer")


@pytest.fixture
def retries(jobs: Jobs) -> Retries:
    return Retries(jobs=jobs, random_source=random.Random(0))


def pauses(retries: Retries, n: int, exc: Exception) -> list[float]:
    """Seconds from each of n failures in a row to the next try."""
    found = []
    for _ in range(n):
        failure = retries.failed(3, "retrain", exc)
        assert failure is not None
        assert failure.next_try is not None
        found.append(failure.next_try - failure.last)
    return found


def test_pauses_double_up_to_a_bound(retries: Retries) -> None:
    """2, 4, 8 … 48 s, each jittered by up to half; never longer, however often it fails."""
    for n, pause in enumerate(pauses(retries, 12, AWAY)):
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**n)
        assert longest / 2 <= pause <= longest
    (failure,) = retries.failures(3)
    assert failure.times == 12
    assert failure.since < failure.last


def test_a_cure_is_noticed_within_a_minute() -> None:
    """The longest pause, a look for what is due, and time for the job itself."""
    assert LONGEST_PAUSE_S + retries_module.POLL_S < 55


@pytest.mark.parametrize("exc", [LabelStudioAuthError("token refused"), LabelingConfigError("no Choices")])
def test_what_a_person_must_cure_is_not_tried_every_second(retries: Retries, exc: Exception) -> None:
    """About the longest pause from the start, and it says so."""
    assert min(pauses(retries, 2, exc)) >= LONGEST_PAUSE_S / 2
    assert retries.failures(3)[0].shown()["needs_a_person"] is True


def test_projects_that_fail_together_are_not_tried_together(retries: Retries) -> None:
    """The jitter spreads ten projects over the pause."""
    planned = [retries.failed(number, "reconcile", AWAY) for number in range(1, 11)]
    moments = {failure.next_try for failure in planned if failure is not None}
    assert len(moments) == 10


def test_a_success_takes_back_its_own_failure_only(retries: Retries, jobs: Jobs) -> None:
    """The next failure counts from one again; the last error goes with the last failure."""
    retries.failed(3, "prune", AWAY)
    retries.failed(3, "evaluate", AWAY)
    retries.succeeded(3, "prune")
    assert [failure.work for failure in retries.failures(3)] == ["evaluate"]
    assert jobs.note(3, LAST_ERROR) == str(AWAY)
    retries.succeeded(3, "evaluate")
    assert retries.failures(3) == []
    assert jobs.note(3, LAST_ERROR) is None
    assert jobs.scheduled_before(float("inf")) == []
    again = retries.failed(3, "prune", AWAY)
    assert again is not None
    assert again.times == 1


def test_what_else_failed_is_tried_as_soon_as_something_succeeds(
    retries: Retries, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The token is right again, a label shows it: the comparison does not wait for the rest of its pause.

    Not what failed only just, nor of another project; the last error is taken back by the retrain.
    """
    start = jobs.now()
    retries.failed(3, "reconcile", LabelStudioAuthError("the token is refused"))
    retries.failed(4, "reconcile", LabelStudioAuthError("the token is refused"))
    monkeypatch.setattr(Jobs, "now", lambda _: start + 8)
    retries.failed(3, "prune", LabelStudioAuthError("the token is refused"))
    retries.succeeded(3, "evaluate")
    assert jobs.scheduled_before(start + 8) == []
    retries.succeeded(3, "retrain")
    assert jobs.scheduled_before(start + 8) == ["3:reconcile"]
    assert jobs.note(3, LAST_ERROR) is None
    assert len(retries.failures(3)) == 2


def test_only_what_is_due_is_asked_for_and_once(retries: Retries, jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before its moment; and two workers that look at the same time make one job."""
    retries.failed(3, "retrain", AWAY)
    assert retries.request_due() == 0
    later = jobs.now() + FIRST_PAUSE_S
    monkeypatch.setattr(Jobs, "now", lambda _: later)
    monkeypatch.setattr(Jobs, "unschedule", lambda *_: None)  # both have read the plan before either takes from it
    for _ in range(2):
        assert retries.request_due() == 1
    assert len(jobs.queues()[0].jobs) == 1


@pytest.mark.parametrize(
    ("work", "asked"),
    [
        ("retrain", "retrain"),
        ("evaluate", "evaluate"),
        ("plan_embedding", "plan_embedding"),
        ("embed_batch", "plan_embedding"),
        ("search-2", "search"),
        ("finetune", "finetune"),
        ("reconcile", "reconcile"),
        ("prune", "prune"),
    ],
)
def test_every_kind_of_job_is_asked_for_again(world: World, work: str, asked: str) -> None:
    """A batch by a plan, which finds what is missing; all others by their own request."""
    world.services.retries.failed(3, work, ZeroDivisionError("a bug"))
    world.jobs.schedule(f"3:{work}", 0.0)
    assert world.services.retries.request_due() == 1
    assert world.waiting() == [f"{asked}(3)"]
    assert world.services.retries.request_due() == 0


def test_fine_tuning_that_the_labels_do_not_allow_is_not_tried_again(retries: Retries, jobs: Jobs) -> None:
    """It would fail the same way; more labels ask for it. The status has the sentence."""
    assert retries.failed(3, "finetune", FinetuningError("4 labels leave too little")) is None
    assert retries.failures(3) == []
    assert jobs.note(3, LAST_ERROR) == "4 labels leave too little"
    retries.succeeded(3, "retrain")
    assert jobs.note(3, LAST_ERROR) is None


def test_the_log_tells_a_failure_once_and_then_now_and_again(
    retries: Retries, jobs: Jobs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour of 401, tried a hundred times: an error every ten minutes; another reason is told at once."""
    start = jobs.now()
    with caplog.at_level(logging.DEBUG):
        for n in range(100):
            monkeypatch.setattr(Jobs, "now", lambda _, n=n: start + 36 * n)
            retries.failed(3, "reconcile", LabelStudioAuthError("the token is refused"))
        retries.failed(3, "reconcile", LabelStudioError("status 500"))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 7
    assert told[0].startswith("job failed project=3 work=reconcile times=1 retry_in=")
    assert told[0].endswith("s: the token is refused")
    assert "times=101" in told[-1]
    assert "Traceback" not in caplog.text


def test_a_bug_is_logged_with_its_traceback_the_first_time(retries: Retries, caplog: pytest.LogCaptureFixture) -> None:
    """The second time nothing new would stand there."""
    for _ in range(2):
        try:
            raise ZeroDivisionError("division by zero")
        except ZeroDivisionError as exc:
            retries.failed(3, "evaluate", exc)
    assert caplog.text.count("Traceback") == 1
    assert retries.failures(3)[0].reason == "ZeroDivisionError: division by zero"


def test_what_another_release_kept_is_passed_over(retries: Retries, jobs: Jobs) -> None:
    """A field more or less, or no JSON at all."""
    jobs.keep_failure(3, "retrain", '{"work": "retrain", "colour": "red"}')
    jobs.keep_failure(3, "prune", "?")
    assert retries.failures(3) == []
    failure = retries.failed(3, "retrain", AWAY)
    assert failure is not None
    assert failure.times == 1
    for member in ("3:dance", "x:retrain", "3:search-", ""):
        jobs.schedule(member, 0.0)
    assert retries.request_due() == 4
    assert jobs.scheduled_before(0.0) == []


# -- in the worker ----------------------------------------------------------------------------------------------------

IMAGES = [rgb(250, 0), rgb(0, 250), rgb(200, 0), rgb(0, 200)]


@pytest.fixture
def project(world: World) -> World:
    world.label_studio.add_project(1, IMAGES)
    world.registry.register(1, 1767225600, LABEL_CONFIG)
    world.jobs.request_embedding(1)
    work(world)
    world.services.reconciler.reconcile(1)
    work(world)
    return world


def work(world: World) -> None:
    WarmWorker(world.services).work(burst=True, logging_level="WARNING")


def test_a_label_that_failed_is_learned_without_a_reconciliation(project: World) -> None:
    """Label Studio hiccups for a moment: the retry, seconds later, brings the version; nothing else asks for it."""
    project.label_studio.annotate(1, 1, "cat")
    project.label_studio.failures["annotated_tasks"] = AWAY
    project.jobs.request_retrain(1)
    work(project)
    assert project.waiting() == []
    (failure,) = project.services.status.project(1)["failures"]
    assert failure["work"] == "retrain"
    assert failure["reason"] == "Label Studio does not answer"
    assert failure["times"] == 1
    assert failure["needs_a_person"] is False
    assert failure["next_try"] > failure["last"]
    assert project.jobs.note(1, MARK) is None
    project.label_studio.failures.clear()
    stop = threading.Event()
    thread = threading.Thread(target=project.services.retries.request_due_regularly, args=(stop,))
    thread.start()
    deadline = time.monotonic() + 30
    while not project.waiting() and time.monotonic() < deadline:
        time.sleep(0.05)
    stop.set()
    thread.join()
    assert project.waiting() == ["retrain(1)"]
    work(project)
    record = project.registry.published_record(1)
    assert record is not None
    assert record.labels_used == 1
    status = project.services.status.project(1)
    assert (status["failures"], status["last_error"]) == ([], None)


def test_jobs_that_end_are_counted_by_kind(project: World) -> None:
    """Done and failed apart."""
    before = project.jobs.counters()
    project.label_studio.failures["project"] = AWAY
    project.jobs.request_reconciliation(1)
    work(project)
    project.label_studio.failures.clear()
    project.jobs.request_reconciliation(1)
    work(project)
    after = project.jobs.counters()
    assert after["jobs reconcile failed"] - before.get("jobs reconcile failed", 0) == 1
    assert after["jobs reconcile done"] - before.get("jobs reconcile done", 0) == 1


def test_a_project_that_is_gone_takes_its_failures_along(project: World) -> None:
    """Nothing of it is tried again."""
    project.services.retries.failed(1, "reconcile", AWAY)
    project.label_studio.remove_project(1)
    project.jobs.request_retrain(1)
    work(project)
    assert project.services.retries.failures(1) == []
    assert project.jobs.scheduled_before(float("inf")) == []


def test_without_redis_the_look_for_retries_goes_on(world: World, dead_redis_url: str) -> None:
    """The thread does not die of it."""
    other = world.again(redis_url=dead_redis_url)
    stop = threading.Event()
    thread = threading.Thread(target=other.services.retries.request_due_regularly, args=(stop,))
    thread.start()
    time.sleep(1.5)
    assert thread.is_alive()
    stop.set()
    thread.join()
