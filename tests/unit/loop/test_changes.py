"""News of a project: what is told, when, and when it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import World, add_cats_and_dogs, label, retrain

from backend.adapters.jobs import Jobs
from backend.errors import ProjectNotFoundError, StorageError
from backend.loop.changes import ChangeWatch
from backend.loop.retries import LAST_ERROR
from backend.schema import Progress


@pytest.fixture
def animals(world: World) -> World:
    """Project 1: twelve cats and twelve dogs, three of each labeled."""
    add_cats_and_dogs(world)
    world.empty_queue()
    return world


class Clock:
    """A clock on which time passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def watch(world: World, jobs: Jobs | None = None) -> ChangeWatch:
    clock = Clock()
    return ChangeWatch(jobs=jobs or world.jobs, registry=world.registry, clock=lambda: clock.now, sleep=clock.sleep)


def told(stream: Iterator[bytes]) -> dict[str, Any]:
    """The next event's data."""
    name, data, end = next(stream).decode().split("\n", 2)
    assert (name, end) == ("event: changed", "\n")
    found: dict[str, Any] = json.loads(data.removeprefix("data: "))
    return found


def test_the_state_is_told_at_once(animals: World) -> None:
    """Nothing is published yet."""
    assert told(watch(animals).stream(1, lambda: False)) == {
        "model_version": None, "evaluated": False, "training": "idle", "labels_used": 0, "embedding": None,
        "n_workers": 0, "last_error": None,
    }  # fmt: skip


def test_every_change_is_told(animals: World) -> None:
    """A version, its evaluation, how far embedding is, and a label that waits to be learned."""
    stream = watch(animals).stream(1, lambda: False)
    told(stream)
    record = animals.services.trainer.retrain(1)
    assert record is not None
    found = told(stream)
    assert (found["model_version"], found["evaluated"], found["labels_used"]) == (record.version, False, 6)
    animals.services.evaluator.evaluate(1)
    assert told(stream)["evaluated"] is True
    animals.jobs.set_progress(1, Progress(3, 10))
    assert told(stream)["embedding"]["done"] == 3
    animals.jobs.request_retrain(1)
    assert told(stream)["training"] == "queued"
    label(animals, cat=[4])
    second = retrain(animals)
    assert told(stream)["model_version"] == second.version


def test_what_stands_in_the_way_is_told_as_soon_as_it_goes(animals: World) -> None:
    """Who looks at a page must not wait for its next regular look to see that the trouble is over."""
    stream = watch(animals).stream(1, lambda: False)
    told(stream)
    animals.jobs.set_note(1, LAST_ERROR, "Label Studio does not answer")
    assert told(stream)["last_error"] == "Label Studio does not answer"
    animals.jobs.set_note(1, LAST_ERROR, None)
    assert told(stream)["last_error"] is None
    animals.jobs.stay_alive("worker-1")
    assert told(stream)["n_workers"] == 1


def test_an_evaluated_version_is_read_once(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams look twice a second; what cannot change any more is not read again."""
    retrain(animals)
    stream = watch(animals).stream(1, lambda: False)
    assert told(stream)["evaluated"] is True
    monkeypatch.setattr(animals.registry, "published_record", None)
    assert next(stream) == b": nothing new\n\n"


def test_without_news_a_comment_is_sent_every_fifteen_seconds_for_five_minutes(animals: World) -> None:
    """Twenty of them, and then the stream ends."""
    stream = watch(animals).stream(1, lambda: False)
    told(stream)
    assert list(stream) == [b": nothing new\n\n"] * 20


def test_it_ends_when_nobody_listens(animals: World) -> None:
    """Asked at every look, half a second apart."""
    answers = iter([False, True])
    assert len(list(watch(animals).stream(1, lambda: next(answers)))) == 1


def test_without_redis_what_is_on_disk_is_told(animals: World, dead_redis_url: str) -> None:
    """Nothing is known of training and embedding."""
    record = retrain(animals)
    found = told(watch(animals, Jobs(dead_redis_url)).stream(1, lambda: False))
    assert (found["model_version"], found["training"], found["embedding"]) == (record.version, None, None)


def test_a_stream_that_cannot_go_on_ends(
    animals: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its status was sent long ago; the browser asks again, and is then told what is wrong."""
    stream = watch(animals).stream(1, lambda: False)
    told(stream)

    def fail(project_id: int) -> str:
        raise StorageError("the store is away")

    monkeypatch.setattr(animals.registry, "published", fail)
    assert list(stream) == []
    assert "stream of news ends project=1: the store is away" in caplog.text


def test_of_an_unknown_project_there_is_no_news(animals: World) -> None:
    """Told before a stream begins."""
    with pytest.raises(ProjectNotFoundError, match="project 9"):
        watch(animals).check(9)
