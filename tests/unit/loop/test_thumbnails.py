"""Thumbnails: small, kept, bounded, fetched once, and every refusal a sentence."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from fakes import CREATED, LABEL_CONFIG, World, rgb
from PIL import Image

from backend.errors import ImageError, LabelStudioUnreachableError, ProjectNotFoundError, TaskNotFoundError
from backend.loop import thumbnails as module
from backend.loop.thumbnails import KEPT_S, SIDE, Thumbnails

IMAGES = [rgb(250), rgb(0, 250), "broken:1", None]


@pytest.fixture
def project(world: World) -> World:
    """Project 3, connected: a red, a green and a broken image, and a task without any."""
    world.label_studio.add_project(3, IMAGES)
    world.label_studio.add_project(4, [rgb(1)] * 9)
    world.registry.register(3, CREATED, LABEL_CONFIG)
    return world


class Clock:
    now = 1_800_000_000.0


def thumbnails(world: World, clock: Clock | None = None, **options: Any) -> Thumbnails:
    return Thumbnails(
        label_studio=world.services.label_studio,
        embedder=world.services.embedder,
        registry=world.registry,
        clock=(lambda: clock.now) if clock else (lambda: Clock.now),
        **options,
    )


def folder(world: World) -> Path:
    return Path(str(world.registry.project_directory(3))) / "thumbnails"


def test_a_large_picture_becomes_a_small_one(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 × 500 pixels: 256 × 128 of JPEG, in its colour."""
    monkeypatch.setattr(project.images, "load", lambda *_, **__: Image.new("RGB", (1000, 500), (250, 0, 0)))
    picture = Image.open(BytesIO(thumbnails(project).make(3, 1)))
    assert (picture.format, picture.size) == ("JPEG", (SIDE, SIDE // 2))
    red, green, blue = picture.getpixel((10, 10))  # type: ignore[misc]
    assert red > 240
    assert max(green, blue) < 10


def test_it_is_kept_for_a_day_and_for_all_processes(project: World) -> None:
    """Nobody asks Label Studio again, until the image may have changed."""
    clock = Clock()
    assert thumbnails(project, clock).kept(3, 1) is None
    made = thumbnails(project, clock).make(3, 1)
    project.label_studio.asked.clear()
    clock.now += KEPT_S - 1
    assert thumbnails(project, clock).kept(3, 1) == made
    assert project.label_studio.asked == []
    clock.now += 2
    assert thumbnails(project, clock).kept(3, 1) is None


def test_the_ones_used_longest_ago_go_when_there_are_too_many(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for about two of 630 bytes each: of three the one that was looked at an hour ago stays."""
    monkeypatch.setattr(module, "WRITES_PER_CLEANUP", 1)
    monkeypatch.setattr(module, "LEFT_AFTER_CLEANUP", 1.0)
    project.label_studio[3].tasks[3] = rgb(0, 0, 9)
    clock = Clock()
    some = thumbnails(project, clock)
    size = len(some.make(3, 1))
    assert (folder(project) / "1.jpg").stat().st_size == size
    bounded = thumbnails(project, clock, cache_bytes=int(2.5 * size))
    clock.now += 10
    bounded.make(3, 2)
    clock.now += 2 * 3600
    assert bounded.kept(3, 1) is not None
    bounded._n_written = 0
    monkeypatch.setattr(module, "WRITES_PER_CLEANUP", 2)
    clock.now += 10
    bounded.make(3, 3)
    assert sorted(path.name for path in folder(project).iterdir()) == ["1.jpg", "3.jpg"]


def test_two_who_ask_at_once_fetch_it_once(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits for the first, and gets the same."""
    some, fetching, second_waits = thumbnails(project), threading.Event(), threading.Event()
    n_fetched = 0

    class WatchedFuture(Future[bytes]):
        def result(self, timeout: float | None = None) -> bytes:
            second_waits.set()
            return super().result(timeout)

    def load(*_: object, **__: object) -> Image.Image:
        nonlocal n_fetched
        n_fetched += 1
        fetching.set()
        assert second_waits.wait(30)
        return Image.new("RGB", (9, 9))

    monkeypatch.setattr(module, "Future", WatchedFuture)
    monkeypatch.setattr(project.images, "load", load)
    with ThreadPoolExecutor(1) as threads:
        first = threads.submit(some.make, 3, 1)
        assert fetching.wait(30)
        assert some.make(3, 1) == first.result()
    assert n_fetched == 1


def test_one_who_waited_gets_the_failure_of_the_first(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody waits for ever; the next one tries again."""
    some, fetching, second_waits = thumbnails(project), threading.Event(), threading.Event()

    class WatchedFuture(Future[bytes]):
        def result(self, timeout: float | None = None) -> bytes:
            second_waits.set()
            return super().result(timeout)

    def task(*_: object) -> None:
        fetching.set()
        assert second_waits.wait(30)
        raise LabelStudioUnreachableError("Label Studio does not answer")

    monkeypatch.setattr(module, "Future", WatchedFuture)
    with monkeypatch.context() as away, ThreadPoolExecutor(1) as threads:
        away.setattr(project.label_studio, "task", task)
        first = threads.submit(some.make, 3, 1)
        assert fetching.wait(30)
        with pytest.raises(LabelStudioUnreachableError):
            some.make(3, 1)
        assert isinstance(first.exception(), LabelStudioUnreachableError)
    assert some.make(3, 1)


def test_a_task_of_another_project_is_none(project: World) -> None:
    """Task 7 is of project 4; numbers that no task can have are not even asked for."""
    for task_id in (7, 0, 2**70):
        with pytest.raises(TaskNotFoundError, match=f"project 3 has no task {task_id}"):
            thumbnails(project).make(3, task_id)
    assert project.label_studio.asked == ["task"]
    with pytest.raises(ProjectNotFoundError, match="project 4 is not connected"):
        thumbnails(project).make(4, 1)
    with pytest.raises(ProjectNotFoundError, match="project 9 is not connected"):
        thumbnails(project).kept(9, 1)


def test_an_image_that_cannot_be_had_is_not_asked_for_at_every_look(project: World) -> None:
    """For a minute the same sentence; then it is tried again."""
    clock = Clock()
    some = thumbnails(project, clock)
    for _ in range(3):
        with pytest.raises(ImageError, match="is damaged"):
            some.make(3, 3)
    assert project.images.loaded == ["broken:1"]
    clock.now += 61
    with pytest.raises(ImageError, match="is damaged"):
        some.make(3, 3)
    assert project.images.loaded == ["broken:1"] * 2


def test_a_task_without_an_image_says_so(project: World) -> None:
    """The field that the labeling config shows is empty."""
    with pytest.raises(ImageError, match="task 4 has no text in the field"):
        thumbnails(project).make(3, 4)


def test_a_disk_that_is_full_keeps_nothing_and_stops_nothing(
    project: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The picture is answered all the same, and nothing half written is left."""

    def fail(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    assert thumbnails(project).make(3, 1)
    assert "thumbnail not kept project=3 task=1" in caplog.text
    assert list(folder(project).iterdir()) == []


def test_a_damaged_folder_is_as_none(project: World) -> None:
    """A file where the folder should be."""
    folder(project).write_text("no folder")
    some = thumbnails(project)
    assert some.kept(3, 1) is None
    assert some.make(3, 1)
