"""Shards: a project larger than a worker's memory is learned and chosen from a working set of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fakes import LABEL_CONFIG, TinyBackbone, World, build_world, label, retrain, rgb
from numpy.typing import NDArray

from backend import worker
from backend.adapters.embedding_store import EmbeddingTable
from backend.learning.acquisition import utilities
from backend.learning.coreset import covering_radius, select_coreset
from backend.loop import shards
from backend.schema import VersionRecord

SIZE = 20
N_TASKS = 100
UNSURE = 57
"""The task that looks half like a cat and half like a dog."""

SETTINGS = {
    "shard_size": SIZE, "seed_size": 3, "window_size": 4, "seed_strategy": "coreset", "acquisition": "margin",
    "embed_batch_size": 64,
}  # fmt: skip


@pytest.fixture
def large(world: World) -> World:
    """Project 1: 50 reddish tasks and 50 greenish ones in turns, one between, all embedded; 20 tasks to a shard."""
    world = world.again(**SETTINGS)
    pictures = [
        rgb(200, 20 + n // 4, n // 2) if n % 2 else rgb(20 + n // 4, 200, n // 2) for n in range(1, N_TASKS + 1)
    ]
    pictures[UNSURE - 1] = rgb(120, 120, 30)
    world.label_studio.add_project(1, pictures)
    world.embed_all()
    return world


def work(world: World, *names: str) -> None:
    """Does the jobs of these names that wait, and those that they ask for, as a worker does."""
    token = worker._services.set(world.services)
    try:
        while jobs := [job for queue in world.jobs.queues() for job in queue.jobs if named(job) in names]:
            jobs[0].delete()
            getattr(worker, named(jobs[0]))(*jobs[0].args)
    finally:
        worker._services.reset(token)


def named(job) -> str:
    return job.func_name.rpartition(".")[2]


def searches(world: World) -> int:
    """How many searches wait."""
    return world.waiting().count("search(1)")


def published(world: World) -> VersionRecord:
    record = world.registry.published_record(1)
    assert record is not None
    return record


def first_version(world: World) -> VersionRecord:
    """The project planned and searched, and its first version."""
    world.services.embedder.plan(1)
    work(world, "search", "retrain")
    return published(world)


def labeled_version(world: World) -> VersionRecord:
    """The first version with a head: three labels of each class, on tasks of the working set."""
    known = [task_id for task_id in world.table().task_ids.tolist() if task_id != UNSURE]
    label(world, cat=[n for n in known if n % 2][:3], dog=[n for n in known if not n % 2][:3])
    return retrain(world)


def test_a_small_project_is_not_divided(large):
    """Up to SHARD_SIZE everything is in memory, and nothing is searched."""
    small = large.again(shard_size=N_TASKS)
    small.services.embedder.plan(1)
    assert small.waiting() == ["retrain(1)"]
    assert small.table().task_ids.tolist() == list(range(1, N_TASKS + 1))


def test_every_shard_is_searched_before_the_first_batch_is_chosen(large):
    """A job for each; the last one asks for the version. A retrain before that makes none."""
    large.services.embedder.plan(1)
    assert large.waiting() == ["search(1)"] * 6  # ids 1 to 100 lie in shards 0 to 5
    assert large.services.trainer.retrain(1) is None
    work(large, "search")
    assert large.waiting() == ["retrain(1)"]
    work(large, "retrain")
    record = published(large)
    assert len(record.window) == 3
    assert record.pool_size == N_TASKS


def test_a_working_set_is_a_sample_and_a_shortlist_of_each_shard(large):
    """Half a shard's worth of random tasks, and at least a window of every shard; the same at every search."""
    first_version(large)
    table = large.table()
    assert 5 * 4 + 1 <= len(table.task_ids) <= 5 * 4 + 1 + SIZE
    np.testing.assert_array_equal(table.task_ids, np.unique(table.task_ids))
    every = large.again(shard_size=1000).table()
    np.testing.assert_array_equal(table.embeddings, every.embeddings[every.rows_of(table.task_ids)])
    assert len(table.references) == N_TASKS
    again = large.again()
    np.testing.assert_array_equal(again.table().task_ids, table.task_ids)


def test_coresets_of_shards_cover_the_whole_project(large):
    """No image is more than four times as far from a chosen one as the best three could have it.

    Farthest-first on all images at once is at most twice the best, and at least the best.
    """
    record = first_version(large)
    every = large.again(shard_size=1000).table()
    at_once = covering_radius(every.embeddings, select_coreset(every.embeddings, budget=3))
    assert covering_radius(every.embeddings, every.rows_of(record.window).tolist()) <= 4 * at_once


def test_the_head_finds_what_is_worth_a_label_in_every_shard(large, monkeypatch):
    """The task between the classes, in no sample, comes to the front once its shard was searched by a head."""
    monkeypatch.setattr(shards, "SAMPLE_SHARE", 0.0)
    monkeypatch.setattr(shards, "MORE_LABELS", 6)
    large = large.again(seed_strategy="random", random_state=3)
    first_version(large)
    assert UNSURE not in large.table().task_ids
    record = labeled_version(large)
    assert UNSURE not in record.window
    assert searches(large) == 6
    large.empty_queue_of_retrains()
    work(large, "search", "retrain")
    assert published(large).window[0] == UNSURE
    assert published(large).labels_used == 6


def test_shards_are_searched_for_images_of_which_a_label_is_in_doubt(large, monkeypatch):
    """Where images may have several labels: of every shard those with the label most in doubt, by the head before."""
    monkeypatch.setattr(shards, "SAMPLE_SHARE", 0.0)
    monkeypatch.setattr(shards, "MORE_LABELS", 6)
    config = LABEL_CONFIG.replace("<Choices ", '<Choices choice="multiple" ')
    large.label_studio.change_project(1, label_config=config)
    first_version(large)
    record = labeled_version(large)
    assert record.threshold is not None
    head = large.registry.head(record)
    large.empty_queue_of_retrains()
    work(large, "search", "retrain")
    every = large.again(shard_size=1000).table()
    doubts = utilities("margin", head.predict_proba(every.embeddings), of_sets=True)
    found = large.table().task_ids
    for shard in range(6):
        inside = np.flatnonzero(every.task_ids // SIZE == shard)
        most_doubted = inside[np.argsort(-doubts[inside], kind="stable")[:4]]
        assert np.isin(every.task_ids[most_doubted], found).all()
    assert published(large).labels_used == 6


def test_a_label_that_waits_goes_first_and_the_search_goes_on_after_it(large, monkeypatch):
    """Interrupted between two blocks, it is queued again, and reads only what is left."""
    monkeypatch.setattr(shards, "ROWS_AT_ONCE", 5)
    monkeypatch.setattr(shards, "MORE_LABELS", 6)
    first_version(large)
    labeled_version(large)
    large.empty_queue()
    store = large.services.embedder._store(1)
    read: list[tuple[int, int]] = []
    between = store.between

    def spy(first: int, last: int) -> EmbeddingTable:
        read.append((first, last))
        if len(read) == 2:
            large.jobs.request_retrain(1)
        return between(first, last)

    monkeypatch.setattr(store, "between", spy)
    assert large.services.embedder.search(1, 2) is False
    assert large.waiting() == ["retrain(1)", "search(1)"]
    large.empty_queue_of_retrains()
    large.jobs.begin(1, "retrain")
    assert large.services.embedder.search(1, 2) is True
    assert read == [(40, 45), (45, 50), (50, 55), (55, 60)]


def test_labels_outside_the_working_set_are_trained_on(large):
    """Whatever people label is in the next version."""
    first_version(large)
    outside = [n for n in range(1, N_TASKS + 1) if n not in large.table().task_ids.tolist() and n != UNSURE]
    label(large, cat=[n for n in outside if n % 2][:2], dog=[n for n in outside if not n % 2][:2])
    record = retrain(large)
    assert record.labels_used == 4
    assert record.pool_size == N_TASKS - 4


def test_what_is_gone_or_shows_another_image_leaves_the_working_set(large):
    """At once, though its shard has not been searched again; and after the plan that is."""
    first_version(large)
    gone, other = large.table().task_ids.tolist()[:2]
    del large.label_studio[1].tasks[gone]
    large.label_studio[1].tasks[other] = rgb(1, 2, 3)
    large.services.embedder.plan(1)
    assert gone not in large.table().task_ids
    large.embed_all()
    assert large.table().get(other) is None or large.table().get(other).tolist() != [0, 0, 0]
    large.services.embedder.plan(1)
    assert searches(large)
    work(large, "search")
    after = large.table()
    assert gone not in after.task_ids
    if other in after.task_ids:
        np.testing.assert_allclose(after.get(other), np.array([1, 2, 3]) / 255, atol=1e-3)


def test_new_images_are_found_once_their_shard_was_searched(large):
    """The queue goes on meanwhile; the plan after the last embedding asks for the search of the new shard only."""
    first_version(large)
    for n in range(101, 119):
        large.label_studio[1].tasks[n] = rgb(n, n, 250)
    large.embed_all()
    large.services.embedder.plan(1)
    assert searches(large) == 1
    work(large, "search", "retrain")
    assert (large.table().task_ids > 100).sum() >= 4


def test_a_damaged_file_is_made_anew(large):
    """The working set goes on without the shard, and the next plan has it searched."""
    first_version(large)
    folder = large.services.shards._folder(1)
    folder.write("f00d/2.safetensors", b"no tensors")
    fresh = large.again()
    assert not {*range(40, 60)} & set(fresh.table().task_ids.tolist())
    fresh.services.embedder.plan(1)
    assert searches(fresh) == 1
    folder.write("f00d/3.json", b"{")
    fresh.empty_queue()
    fresh.services.embedder.plan(1)
    assert searches(fresh) == 2
    work(fresh, "search")
    assert {*range(40, 60)} & set(fresh.table().task_ids.tolist())


def test_an_emptied_redis_loses_nothing(large):
    """What was found is in the data folder."""
    first_version(large)
    before = large.table().task_ids.tolist()
    large.empty_queue()
    assert large.table().task_ids.tolist() == before
    assert large.again().table().task_ids.tolist() == before


def test_a_search_is_repeated_when_labels_have_grown(large, monkeypatch):
    """Not at every label: at 1.2 times as many and some more."""
    monkeypatch.setattr(shards, "MORE_LABELS", 2)
    first_version(large)
    labeled_version(large)  # six labels
    assert searches(large) == 6
    work(large, "search", "retrain")
    free = [n for n in large.table().task_ids.tolist() if not large.label_studio[1].annotations.get(n)]
    label(large, cat=[n for n in free if n % 2][:3])
    retrain(large)
    assert not searches(large)
    label(large, dog=[n for n in free if not n % 2][:1])
    retrain(large)
    assert searches(large) == 6
    work(large, "search")
    said = json.loads(large.services.shards._folder(1).read("f00d/0.json"))
    assert said["n_labels"] == 10


def test_strategies_that_ask_no_head_go_on_without_one(large):
    """ACQUISITION=coreset: shards are searched once, and never again for more labels."""
    large = large.again(acquisition="coreset")
    first_version(large)
    labeled_version(large)
    assert not searches(large)


def test_another_backbone_begins_with_searches_of_its_own(large):
    """The version made with the one before goes on until they are done; then a version of the new one follows."""
    first_version(large)
    before = labeled_version(large)
    tuned = build_world(
        large.services.settings, large.label_studio, large.images, TinyBackbone("beef", (1.0, 0.9, 1.0))
    )
    tuned.empty_queue()
    tuned.embed_all()
    assert tuned.services.trainer.retrain(1) is None
    assert published(tuned) == before
    assert searches(tuned) == 6
    work(tuned, "search", "retrain")
    assert published(tuned).fingerprint == "beef"
    assert published(tuned).labels_used == 6
    tuned.services.embedder.discard(1, "f00d")
    assert large.services.shards._folder(1).files("f00d") == []


def test_another_worker_sees_what_was_found(large):
    """Searched by one, learned from by another."""
    other = large.again()
    assert other.table().task_ids.tolist() == []
    first_version(large)
    assert other.table().task_ids.tolist() == large.table().task_ids.tolist()


def test_hashes_spread_evenly():
    """A sample of consecutive tasks is as large as it should be, in every stretch."""
    values: NDArray[np.float64] = shards._uniform(np.arange(100_000))
    assert ((values >= 0) & (values < 1)).all()
    shares = [(part < 0.1).mean() for part in np.array_split(values, 10)]
    assert max(shares) < 0.11
    assert min(shares) > 0.09
