"""/ready: every link a label needs, in bounded time, however many ask and whatever hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from fakes import LABEL_CONFIG, World, rgb

from backend.adapters.jobs import WORKER_TTL_S
from backend.errors import LabelStudioAuthError, LabelStudioUnreachableError
from backend.loop.ready import MAX_WAITING, Readiness


class Clock:
    """Stands still until moved."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a hanging check waits for; opened at the end."""
    opened = threading.Event()
    yield opened
    opened.set()


def test_all_checks_are_told_in_their_order() -> None:
    """A sentence each; ready only if all are well; an error's message is the sentence."""

    def refuse() -> str:
        raise LabelStudioAuthError("the token is refused")

    well = Readiness({"a": lambda: "answers", "b": lambda: "can be written"}).report()
    assert well.ready
    assert [(name, finding.found) for name, finding in well.findings.items()] == [
        ("a", "answers"),
        ("b", "can be written"),
    ]
    report = Readiness({"a": lambda: "answers", "b": refuse}).report()
    assert not report.ready
    assert (report.findings["b"].ok, report.findings["b"].found) == (False, "the token is refused")


def test_a_check_that_breaks_is_not_ready_and_breaks_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """A bug in a check: named by its kind, the details in the log."""

    def broken() -> str:
        raise ZeroDivisionError("secret detail")

    report = Readiness({"a": broken, "b": lambda: "answers"}).report()
    assert not report.findings["a"].ok
    assert "secret detail" not in report.findings["a"].found
    assert report.findings["b"].ok
    assert "secret detail" in caplog.text


def test_an_answer_is_kept_for_a_moment() -> None:
    """Twenty probes in that time ask once; after it, anew."""
    asked: list[int] = []
    clock = Clock()

    def check() -> str:
        asked.append(1)
        return "answers"

    readiness = Readiness({"a": check}, fresh_s=2.0, clock=clock)
    for _ in range(20):
        assert readiness.report().ready
    assert len(asked) == 1
    clock.now += 2.0
    readiness.report()
    assert len(asked) == 2


def test_a_peer_that_hangs_costs_the_time_allowed_and_one_thread(gate: threading.Event) -> None:
    """It is not asked a second time beside itself; what does answer is told; once it answers, all is well again."""
    asked: list[int] = []
    clock = Clock()

    def hang() -> str:
        asked.append(1)
        gate.wait(60)
        return "answers again"

    readiness = Readiness({"a": hang, "b": lambda: "answers"}, timeout_s=0.2, clock=clock)
    for _ in range(3):
        began = time.monotonic()
        report = readiness.report()
        assert time.monotonic() - began < 5
        assert not report.findings["a"].ok
        assert "no answer within 0.2 s" in report.findings["a"].found
        assert report.findings["b"].ok
        clock.now += 10
    assert len(asked) == 1
    gate.set()
    deadline = time.monotonic() + 20
    while not readiness.report().ready and time.monotonic() < deadline:
        clock.now += 10
    assert readiness.report().ready


def test_many_probes_at_once_leave_the_threads_of_the_service_alone(gate: threading.Event) -> None:
    """Two wait for the answer, all others are answered at once."""

    def hang() -> str:
        gate.wait(60)
        return "answers"

    readiness = Readiness({"a": hang}, timeout_s=30)
    waiting = [threading.Thread(target=readiness.report) for _ in range(MAX_WAITING)]
    for thread in waiting:
        thread.start()
    deadline = time.monotonic() + 20
    while readiness._waiting._value > 0 and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.01)
    report = readiness.report()
    assert not report.ready
    assert "under way" in report.findings["checks"].found
    gate.set()
    for thread in waiting:
        thread.join()
    assert readiness.report().ready


# -- what is checked --------------------------------------------------------------------------------------------------


@pytest.fixture
def project(world: World) -> World:
    """Project 1 with a published model and a worker that says it is alive."""
    world.label_studio.add_project(1, [rgb(250, 0), rgb(0, 250)])
    world.registry.register(1, 1767225600, LABEL_CONFIG)
    world.embed_all()
    for task_id, label in ((1, "cat"), (2, "dog")):
        world.label_studio.annotate(1, task_id, label)
    assert world.services.trainer.retrain(1) is not None
    world.jobs.redis.sadd("rq:workers:active-learning-retrain", "rq:worker:one")
    world.jobs.stay_alive("one")
    return world


def broken(world: World) -> dict[str, str]:
    return {
        name: item.found for name, item in world.again().services.readiness.report().findings.items() if not item.ok
    }


def test_a_whole_service_is_ready(project: World) -> None:
    """Redis, data folder, models, Label Studio, worker."""
    report = project.services.readiness.report()
    assert report.ready
    assert {name: finding.found for name, finding in report.findings.items()} == {
        "redis": "Redis answers",
        "data_folder": "DATA_DIR can be written",
        "models": "1 published models can be loaded",
        "label_studio": "Label Studio answers, and takes LABEL_STUDIO_TOKEN",
        "worker": "1 alive",
    }


def test_each_missing_link_is_named(project: World, dead_redis_url: str) -> None:
    """Alone, with its cure."""
    project.label_studio.failures["whoami"] = LabelStudioUnreachableError("Label Studio does not answer; start it")
    assert broken(project) == {"label_studio": "Label Studio does not answer; start it"}
    project.label_studio.failures.clear()
    project.jobs.leave("one")
    assert list(broken(project)) == ["worker"]
    found = broken(project.again(redis_url=dead_redis_url))
    assert list(found) == ["redis", "worker"]
    assert "pass-w0rd" not in str(found)


def test_a_damaged_model_is_named(project: World) -> None:
    """The file is cut short: the version that is published cannot be served by a process that starts now."""
    (file,) = project.services.settings.data_dir.glob("projects/1/versions/*/head.safetensors")  # type: ignore[union-attr]
    file.write_bytes(file.read_bytes()[:40])
    found = broken(project)
    assert list(found) == ["models"]
    assert "cannot be read" in found["models"]


def test_a_data_folder_that_cannot_be_written_is_named(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full, by the error the system gives for it."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("backend.storage._write_durably", full)
    found = broken(project)
    assert list(found) == ["data_folder"]
    assert "No space left" in found["data_folder"]


def test_a_killed_worker_is_soon_not_alive_any_more(project: World) -> None:
    """rq would count it for minutes; we for as long as its last sign of life lasts."""
    assert project.jobs.n_workers() == 1
    seconds, _ = project.jobs.redis.time()
    project.jobs.redis.zadd("active-learning:listening", {"one": seconds - WORKER_TTL_S - 1})  # said so long ago
    assert project.jobs.n_workers() == 0
