"""Rounds planned ahead: used for the label they were planned for and for no other, and the same as without."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import CATS, DOGS, World, add_cats_and_dogs, label, retrain, rgb

from backend import worker
from backend.loop import anticipate, rounds
from backend.loop.anticipate import Anticipation, RoundInputs
from backend.loop.rounds import Round, Stopwatch
from backend.schema import VersionRecord

FIT = {"fit", "seed", "score", "rank"}


@pytest.fixture
def animals(world: World) -> World:
    """Project 1: twelve reddish tasks (cats) and twelve greenish ones (dogs), three of each labeled, one version."""
    add_cats_and_dogs(world)
    retrain(world)
    world.empty_queue_of_retrains()
    return world


def next_task(world: World) -> int:
    record = world.registry.published_record(1)
    assert record is not None
    return record.window[0]


def retrained(world: World) -> VersionRecord:
    record = world.services.trainer.retrain(1)
    assert record is not None
    return record


def test_the_worker_plans_ahead_once_a_version_is_evaluated(animals: World) -> None:
    """In the job after publishing, with the settings that the evaluation chose for the next head."""
    label(animals, cat=[next_task(animals)])
    retrained(animals)
    token = worker._services.set(animals.services)
    try:
        worker.evaluate(1)
    finally:
        worker._services.reset(token)
    label(animals, cat=[next_task(animals)])
    assert not FIT & set(retrained(animals).stage_seconds)


@pytest.mark.parametrize("answer", ["cat", "dog"])
def test_the_round_is_there_when_the_label_comes(animals: World, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is fitted then; window, head and scores are exactly those of a round planned from the label."""
    taken: list[tuple[RoundInputs, Round | None]] = []
    original = Anticipation.take

    def spy(self: Anticipation, project_id: int, given: RoundInputs) -> Round | None:
        taken.append((given, original(self, project_id, given)))
        return taken[-1][1]

    monkeypatch.setattr(Anticipation, "take", spy)
    assert animals.services.trainer.anticipate(1) == 2
    label(animals, **{answer: [next_task(animals)]})
    record = retrained(animals)
    assert record.labels_used == 7
    assert not FIT & set(record.stage_seconds)
    ((given, planned),) = taken
    again = given.plan(animals.services.settings, Stopwatch())
    assert planned is not None
    assert planned.fitted is not None
    assert again.fitted is not None
    assert planned.scores is not None
    assert again.scores is not None
    assert (planned.window, planned.labeled) == (again.window, again.labeled)
    assert record.window == [task_id for task_id, _ in again.window]
    np.testing.assert_array_equal(planned.fitted.head.weights, again.fitted.head.weights)
    np.testing.assert_array_equal(planned.scores.probabilities, again.scores.probabilities)


def test_the_next_fit_begins_where_the_planned_one_ended(animals: World) -> None:
    """As if it had been fitted when the label came."""
    for _ in range(2):
        assert animals.services.trainer.anticipate(1) == 2
        label(animals, cat=[next_task(animals)])
        assert not FIT & set(retrained(animals).stage_seconds)
        animals.services.evaluator.evaluate(1)
        animals.empty_queue_of_retrains()


@pytest.mark.parametrize("what", ["another task", "another class", "skip", "two tasks", "forced"])
def test_anything_else_is_planned_when_it_comes(animals: World, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another task, an answer that was not likely, a skip, a second label: fitted then and there."""
    monkeypatch.setattr(anticipate, "LIKELIEST", 1)
    assert animals.services.trainer.anticipate(1) == 1
    task_id = next_task(animals)
    ((expected, _),) = animals.services.trainer._anticipation._planned[1]
    likely = expected.labels.labels[task_id]
    others = [task for task in (*CATS[3:], *DOGS[3:]) if task != task_id]
    if what == "another task":
        label(animals, **{likely: others[:1]})
    elif what == "another class":
        label(animals, **{"dog" if likely == "cat" else "cat": [task_id]})
    elif what == "skip":
        animals.label_studio.annotate(1, task_id, None, skipped=True)
    elif what == "two tasks":
        label(animals, **{likely: [task_id, others[0]]})
    else:
        animals.jobs.request_retrain(1, forced=True)
    assert set(retrained(animals).stage_seconds) >= FIT


def test_a_round_is_used_once(animals: World) -> None:
    """What was planned for a label that did not come is dropped with it."""
    animals.services.trainer.anticipate(1)
    task_id = next_task(animals)
    animals.label_studio.annotate(1, task_id, None, skipped=True)
    retrained(animals)
    animals.label_studio.withdraw(1, task_id)
    label(animals, cat=[task_id])
    assert set(retrained(animals).stage_seconds) >= FIT


def test_a_label_that_waits_is_not_made_to_wait_longer(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is begun when a retrain waits, and what was begun ends."""
    animals.jobs.request_retrain(1)
    assert animals.services.trainer.anticipate(1) == 0
    animals.empty_queue_of_retrains()
    answers = iter([False, False, *[True] * 99])
    monkeypatch.setattr(animals.jobs, "retrain_waits", lambda: next(answers))
    assert animals.services.trainer.anticipate(1) == 0


def test_nothing_is_planned_on_top_of_what_is_out_of_date(animals: World) -> None:
    """A label came whose version is not there yet."""
    label(animals, cat=[next_task(animals)])
    animals.services.ledger.read(1)
    assert animals.services.trainer.anticipate(1) == 0


@pytest.mark.parametrize("setting", ["knn_of_high_loss", "coreset"])
def test_strategies_that_do_not_ask_the_head_alone_plan_nothing_ahead(animals: World, setting: str) -> None:
    """They cross-validate for each round, or choose for many labels at once."""
    world = animals.again(acquisition=setting)
    retrain(world)
    world.empty_queue_of_retrains()
    assert world.services.trainer.anticipate(1) == 0


def test_large_pools_and_seed_versions_plan_nothing_ahead(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A label would have to wait for it; without a head nothing is likely."""
    monkeypatch.setattr(anticipate, "LARGEST_POOL", 5)
    assert animals.services.trainer.anticipate(1) == 0
    monkeypatch.undo()
    animals.label_studio.add_project(2, [rgb(1, 2), rgb(3, 4)])
    animals.services.embedder.embed_now(2, animals.label_studio.tasks(2, "image"))
    record = animals.services.trainer.retrain(2)
    assert record is not None
    assert (record.kind, len(record.window)) == ("seed", 2)
    animals.empty_queue_of_retrains()
    assert animals.services.trainer.anticipate(2) == 0


def test_rounds_of_a_few_projects_are_kept(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They hold on to the pool, as `Pools` does."""
    monkeypatch.setattr(anticipate, "POOLS_KEPT", 1)
    assert rounds.POOLS_KEPT > 1
    animals.services.trainer.anticipate(1)
    anticipation = animals.services.trainer._anticipation
    ((given, _), *_) = anticipation._planned[1]
    anticipation.plan(2, given, next_task(animals), lambda: False)
    assert list(anticipation._planned) == [2]
