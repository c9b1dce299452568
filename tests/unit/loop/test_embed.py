"""Keeping one embedding per task: what is missing is planned, embedded in batches, and forgotten when it is gone."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import LABEL_CONFIG, World, build_world, rgb
from PIL import Image

from backend.adapters.embedding_store import EmbeddingTable
from backend.adapters.jobs import EMBED_QUEUE
from backend.errors import LabelingConfigError
from backend.loop import embed
from backend.loop.pipeline import WORTH_ACCELERATING
from backend.schema import Progress, Task

IMAGES = [rgb(10 * number, 5) for number in range(1, 6)]


@pytest.fixture
def pictures(world: World) -> World:
    """Project 1 with tasks 1 to 5, none embedded; two tasks to a batch."""
    world.label_studio.add_project(1, IMAGES)
    return world


def work(world: World) -> None:
    """Does the waiting embedding jobs, as a worker does, until none is left."""
    queue = world.jobs.queues([EMBED_QUEUE])[0]
    while queue.count:
        job = queue.jobs[0]
        queue.pop_job_id()
        if job.func_name.endswith("embed_batch"):
            world.services.embedder.embed_batch(job.args[0], [Task(*pair) for pair in job.args[1]])
        else:
            world.services.embedder.plan(job.args[0])


def table(world: World) -> EmbeddingTable:
    return world.table(1)


def test_a_plan_queues_what_is_missing_in_batches(pictures: World) -> None:
    """Five tasks by id // 2: {1}, {2, 3}, {4, 5}; the project becomes known, progress starts at none."""
    assert pictures.services.embedder.plan(1) == 5
    assert pictures.waiting() == ["embed_batch(1)"] * 3
    assert pictures.jobs.open_buckets(1) == {0, 1, 2}
    assert pictures.jobs.progress(1) == Progress(0, 5)
    assert pictures.registry.known_projects() == [1]


def interrupted(world: World, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A plan that lists two tasks at a time, and is interrupted by a retrain after the first two; what it asks for."""
    monkeypatch.setattr(embed, "TASKS_PER_PAGE", 2)
    asked: list[int] = []
    tasks_after = world.label_studio.tasks_after

    def spy(project_id: int, image_field: str, task_id: int, **options: Any) -> list[Task]:
        if not asked:
            world.jobs.request_retrain(1)
        asked.append(task_id)
        return tasks_after(project_id, image_field, task_id, **options)

    monkeypatch.setattr(world.label_studio, "tasks_after", spy)
    assert world.services.embedder.plan(1) is None
    assert world.waiting() == ["retrain(1)", "plan_embedding(1)"]
    world.empty_queue_of_retrains()
    return asked


def test_a_label_does_not_wait_until_all_tasks_are_listed(pictures: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan is queued again behind it, and goes on where it stopped."""
    asked = interrupted(pictures, monkeypatch)
    assert pictures.services.embedder.plan(1) == 5
    assert asked == [0, 2, 4]
    assert pictures.services.embedder.plan(1) == 5
    assert asked == [0, 2, 4, 0, 2, 4]


def test_a_listing_that_was_left_long_ago_begins_anew(pictures: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker went on with it, and images may have changed since."""
    asked = interrupted(pictures, monkeypatch)
    monkeypatch.setattr(embed, "LISTING_LASTS_S", 0.0)
    assert pictures.services.embedder.plan(1) == 5
    assert asked == [0, 0, 2, 4]


def test_a_second_plan_does_not_queue_the_same_batches_again(pictures: World) -> None:
    """An interrupted or repeated plan only adds what does not wait already."""
    pictures.services.embedder.plan(1)
    pictures.label_studio[1].tasks[9] = rgb(9, 9)
    assert pictures.services.embedder.plan(1) == 6
    assert pictures.jobs.open_buckets(1) == {0, 1, 2, 4}
    assert len(pictures.waiting()) == 4


def test_when_all_is_embedded_a_retrain_is_asked_for(pictures: World) -> None:
    """The jobs run out by themselves: every task has its embedding, one retrain waits."""
    pictures.services.embedder.plan(1)
    work(pictures)
    assert table(pictures).task_ids.tolist() == [1, 2, 3, 4, 5]
    assert table(pictures).embeddings[0].tolist() == pytest.approx([10 / 255, 5 / 255, 0], abs=1e-3)
    assert pictures.jobs.progress(1) == Progress(5, 5)
    assert pictures.waiting() == ["retrain(1)"]
    assert pictures.backbone.n_embedded == 5


def test_nothing_is_embedded_twice(pictures: World) -> None:
    """A batch that is done again (a killed worker, a second plan) costs nothing."""
    pictures.embed_all()
    pictures.embed_all()
    pictures.services.embedder.embed_batch(1, [Task(1, IMAGES[0])])
    assert pictures.backbone.n_embedded == 5


def test_a_task_that_is_gone_loses_its_embedding(pictures: World) -> None:
    """Deleted in Label Studio, with or without an image that ever worked."""
    pictures.label_studio[1].tasks[6] = "broken:6"
    pictures.embed_all()
    for task_id in (2, 6):
        del pictures.label_studio[1].tasks[task_id]
    assert pictures.services.embedder.plan(1) == 0
    assert table(pictures).task_ids.tolist() == [1, 3, 4, 5]
    assert dict(table(pictures).failures) == {}


def test_a_task_with_another_image_is_embedded_again(pictures: World) -> None:
    """The old embedding is not used for the new picture."""
    pictures.embed_all()
    pictures.label_studio[1].tasks[2] = rgb(0, 0, 255)
    assert pictures.services.embedder.plan(1) == 1
    work(pictures)
    embedding = table(pictures).get(2)
    assert embedding is not None
    assert embedding.tolist() == [0, 0, 1]


def test_bad_images_stop_nothing_and_are_reported(pictures: World) -> None:
    """Broken, missing, and away for now: each is kept with its reason, the others are embedded."""
    tasks = pictures.label_studio[1].tasks
    tasks.update({6: "broken:6", 7: None, 8: rgb(8, 8)})
    pictures.images.away.add(rgb(8, 8))
    pictures.services.embedder.plan(1)
    work(pictures)
    assert table(pictures).task_ids.tolist() == [1, 2, 3, 4, 5]
    assert {task: failure.transient for task, failure in table(pictures).failures.items()} == {
        6: False,
        7: False,
        8: True,
    }
    assert set(pictures.registry.image_failures(1)) == {"6", "7", "8"}
    assert "labeling config" in pictures.registry.image_failures(1)["7"]
    assert pictures.waiting() == ["retrain(1)"]


def test_only_bad_images_in_a_batch_are_fine(world: World) -> None:
    """Not one good picture: the backbone is not asked."""
    world.label_studio.add_project(1, ["broken:1", None])
    world.embed_all()
    assert world.backbone.n_embedded == 0
    assert set(table(world).failures) == {1, 2}


def test_an_empty_project_asks_for_a_retrain_that_finds_nothing(world: World) -> None:
    """No tasks, nothing to embed, no error."""
    world.label_studio.add_project(1)
    assert world.services.embedder.plan(1) == 0
    assert world.jobs.progress(1) == Progress(0, 0)


def test_a_config_that_is_not_understood_embeds_nothing(world: World) -> None:
    """Which field holds the image is not known then."""
    world.label_studio.add_project(1, IMAGES, label_config="<View/>")
    with pytest.raises(LabelingConfigError):
        world.services.embedder.plan(1)
    assert world.waiting() == []


def test_an_image_under_label_studio_s_own_name_is_asked_where_we_reach_it(world: World) -> None:
    """Label Studio writes the address it knows itself by; in containers we reach it under another one."""
    outside = "http://label.example.org"
    world.label_studio.add_project(1, [f"{outside}/data/upload/1.png", "http://elsewhere.org/data/2.png"])
    world.registry.register(1, 1767225600, LABEL_CONFIG, f"{outside}/")
    world.embed_all()
    assert sorted(world.images.loaded) == ["/data/upload/1.png", "http://elsewhere.org/data/2.png"]


def test_projects_keep_their_embeddings_apart(pictures: World) -> None:
    """Task 1 of project 1 and task 1 of project 2 are different pictures."""
    pictures.label_studio.add_project(2, [rgb(0, 255)])
    pictures.embed_all(1)
    pictures.embed_all(2)
    assert pictures.table(2).task_ids.tolist() == [1]
    assert pictures.table(2).embeddings[0].tolist() == [0, 1, 0]
    assert table(pictures).embeddings[0].tolist() != [0, 1, 0]


DIE_IN_THE_MIDDLE = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[1:3]
from fakes import FakeImages, FakeLabelStudio, TinyBackbone, build_world, rgb
from backend.config import Settings
from backend.loop import embed
from backend.adapters.jobs import EMBED_QUEUE
from backend.schema import Task

class Mortal(TinyBackbone):
    def embed_prepared(self, pixels):
        if self.n_embedded >= 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().embed_prepared(pixels)

embed.WRITE_EVERY_S = 0.0
settings = Settings(redis_url=sys.argv[3], data_dir=Path(sys.argv[4]), embed_batch_size=100)
world = build_world(settings, FakeLabelStudio(), FakeImages(), Mortal())
world.label_studio.add_project(1, [rgb(n) for n in range(1, 11)])
world.services.embedder.plan(1)
world.services.jobs.queues([EMBED_QUEUE])[0].pop_job_id()
world.services.embedder.embed_batch(1, [Task(n, rgb(n)) for n in range(1, 11)])
"""


def test_a_worker_killed_at_60_percent_goes_on_at_60_percent(world: World) -> None:
    """A process is killed (SIGKILL) in the fourth of five batches of two; the next one embeds the other four only."""
    root, settings = Path(__file__).resolve().parents[3], world.services.settings
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DIE_IN_THE_MIDDLE, str(root), str(root / "tests" / "unit"),
         settings.redis_url, str(settings.data_dir)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert world.jobs.progress(1) is not None
    world.label_studio.add_project(1, [rgb(n) for n in range(1, 11)])
    assert table(world).task_ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert world.services.embedder.plan(1) == 4
    assert world.jobs.progress(1) == Progress(6, 10)
    work(world)
    assert world.backbone.n_embedded == 4
    assert table(world).embeddings[:, 0].astype(float) * 255 == pytest.approx(range(1, 11), abs=0.1)


def test_what_is_embedded_is_written_from_time_to_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error at the fifth picture loses none of the four before it, though no pause between writes had passed."""
    world.label_studio.add_project(1, IMAGES)
    load = world.images.load

    def fail_at_last(reference: str, task_id: int | None = None, **options: object) -> Image.Image:
        if task_id == 5:
            raise RuntimeError("of no kind that is expected")
        return load(reference, task_id, **options)

    monkeypatch.setattr(world.images, "load", fail_at_last)
    with pytest.raises(RuntimeError):
        world.embed_all()
    assert table(world).task_ids.tolist() == [1, 2, 3, 4]


def test_a_label_does_not_wait_for_a_whole_batch(world: World) -> None:
    """A retrain asked for meanwhile: after two of five pictures the rest goes to the end of the queue, once."""
    settings = replace(world.services.settings, embed_batch_size=100)
    large = build_world(settings, world.label_studio, world.images, world.backbone)
    large.label_studio.add_project(1, IMAGES)
    embedder = large.services.embedder
    embedder.plan(1)
    assert large.waiting() == ["embed_batch(1)"]
    large.jobs.queues([EMBED_QUEUE])[0].pop_job_id()
    large.jobs.request_retrain(1)
    embedder.embed_batch(1, [Task(n, image) for n, image in enumerate(IMAGES, start=1)])
    assert embedder.index(1).task_ids.tolist() == [1, 2]
    assert large.waiting() == ["retrain(1)", "embed_batch(1)"]
    assert large.jobs.open_buckets(1) == {0}
    (rest,) = large.jobs.queues([EMBED_QUEUE])[0].jobs
    assert [task_id for task_id, _ in rest.args[1]] == [3, 4, 5]
    large.jobs.queues()[0].empty()
    work(large)
    assert embedder.index(1).task_ids.tolist() == [1, 2, 3, 4, 5]
    assert large.backbone.n_embedded == 5


def test_only_large_batches_are_worth_getting_ready_for(world: World) -> None:
    """99 pictures are embedded as it goes; for 100 the backbone is told."""
    world.label_studio.add_project(1)
    for n, expected in ((WORTH_ACCELERATING - 1, False), (WORTH_ACCELERATING, True)):
        world.services.embedder.embed_batch(1, [Task(1000 * n + k, rgb(k % 256)) for k in range(n)])
        assert world.backbone.accelerated is expected


def test_the_rate_counts_what_was_embedded_since_the_plan(pictures: World) -> None:
    """Of five pictures two are there: progress begins at two, and its rate is that of the others."""
    pictures.services.embedder.embed_now(1, [Task(1, IMAGES[0]), Task(2, IMAGES[1])])
    pictures.services.embedder.plan(1)
    assert pictures.jobs.progress(1) == Progress(2, 5)
    pictures.services.embedder.embed_batch(1, [Task(3, IMAGES[2])])
    progress = pictures.jobs.progress(1)
    assert progress is not None
    assert (progress.done, progress.total) == (3, 5)
    assert progress.images_per_s is not None
    assert progress.seconds_left == pytest.approx(2 / progress.images_per_s)
