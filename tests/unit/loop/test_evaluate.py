"""Evaluation comes after publishing: what a version says until then, and what the next head gets from it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import CATS, DOGS, TinyBackbone, World, add_cats_and_dogs, build_world, label, retrain

from backend.adapters.jobs import EVALUATE_QUEUE
from backend.learning.pool import Pool
from backend.loop import rounds
from backend.loop.evaluate import CROSS_VALIDATED
from backend.schema import VersionRecord


@pytest.fixture
def animals(world: World) -> World:
    """Project 1: twelve reddish tasks (cats) and twelve greenish ones (dogs), embedded, three of each labeled."""
    add_cats_and_dogs(world)
    return world


def published(world: World) -> VersionRecord:
    record = world.registry.published_record(1)
    assert record is not None
    return record


def test_a_version_is_published_first_and_evaluated_after(animals: World) -> None:
    """The very first one says nothing of its accuracy until then; the record of the same version is completed."""
    first = animals.services.trainer.retrain(1)
    assert first is not None
    assert (first.accuracy, first.evaluated_version, first.evaluated_labels) == (None, None, 0)
    record = animals.services.evaluator.evaluate(1)
    assert record == published(animals)
    assert record is not None
    assert (record.version, record.evaluated_version, record.evaluated_labels) == (first.version, first.version, 6)
    assert record.accuracy is not None
    assert record.accuracy_kind == CROSS_VALIDATED
    assert record.window == first.window


def test_until_its_evaluation_a_version_says_what_the_one_before_said(animals: World) -> None:
    """No figure disappears for a moment after each label; how many labels it was made with is told."""
    before = retrain(animals)
    label(animals, cat=[4])
    after = animals.services.trainer.retrain(1)
    assert after is not None
    assert (after.labels_used, after.evaluated_labels, after.evaluated_version) == (7, 6, before.version)
    assert (after.accuracy, after.forecast, after.suspects) == (before.accuracy, before.forecast, before.suspects)
    status = animals.services.status.project(1)
    assert (status["labels_used"], status["accuracy_labels"]) == (7, 6)
    animals.services.evaluator.evaluate(1)
    assert animals.services.status.project(1)["accuracy_labels"] == 7


def test_a_version_is_evaluated_once(animals: World) -> None:
    """A second job, asked for by a worker that started anew, finds nothing to do and reads nothing."""
    retrain(animals)
    animals.label_studio.asked.clear()
    assert animals.services.evaluator.evaluate(1) is None
    assert animals.label_studio.asked == []


def test_without_a_version_there_is_nothing_to_evaluate(world: World) -> None:
    """Asked for at the start of a worker, before anything is published."""
    world.label_studio.add_project(1)
    assert world.services.evaluator.evaluate(1) is None


def test_a_label_interrupts_the_evaluation(animals: World) -> None:
    """A retrain waits: it comes first, the evaluation is asked for again, and says nothing half done."""
    animals.services.trainer.retrain(1)
    before = published(animals)
    animals.jobs.queues([EVALUATE_QUEUE])[0].empty()  # a worker takes that of the version
    animals.jobs.begin(1, "evaluate")
    label(animals, cat=[4])
    animals.jobs.request_retrain(1)
    assert animals.services.evaluator.evaluate(1) is None
    assert published(animals) == before
    assert animals.waiting()[0] == "retrain(1)"
    assert animals.waiting().count("evaluate(1)") == 1


def test_the_next_head_is_made_with_the_settings_chosen(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in the record, so another worker has them too, and need not choose while a labeler waits."""
    record = retrain(animals)
    assert record.chosen is not None
    animals.registry.update(replace(record, chosen={**record.chosen, "strength": 7.5, "temperature": 1.5}))
    monkeypatch.setattr(rounds, "evaluate_labels", None)
    label(animals, cat=[4])
    after = animals.again().services.trainer.retrain(1)
    assert after is not None
    assert (after.strength, after.temperature) == (7.5, 1.5)


def test_settings_chosen_on_far_fewer_labels_are_chosen_anew(animals: World) -> None:
    """Six labels chose, and nine more were imported at once."""
    record = retrain(animals)
    assert record.chosen is not None
    animals.registry.update(replace(record, chosen={**record.chosen, "strength": 7.5}))
    label(animals, cat=CATS[3:8], dog=DOGS[3:7])
    after = animals.services.trainer.retrain(1)
    assert after is not None
    assert after.strength != 7.5


@pytest.mark.parametrize("chosen", [{"power": 3.0}, {}])
def test_settings_of_another_release_are_chosen_anew(animals: World, chosen: dict[str, float]) -> None:
    """A record of a release with other settings stops nothing."""
    animals.registry.update(replace(retrain(animals), chosen=chosen))
    label(animals, cat=[4])
    assert retrain(animals).labels_used == 7


def test_nothing_is_carried_on_from_another_backbone(animals: World) -> None:
    """Its accuracy and its settings are about other embeddings."""
    retrain(animals)
    other = build_world(
        animals.services.settings, animals.label_studio, animals.images, TinyBackbone(fingerprint="beef")
    )
    other.embed_all()
    record = other.services.trainer.retrain(1)
    assert record is not None
    assert (record.accuracy, record.evaluated_labels, record.chosen, record.learning_curve) == (None, 0, None, [])


def test_a_head_that_cannot_be_read_is_not_evaluated(animals: World, caplog: pytest.LogCaptureFixture) -> None:
    """One line says which; the version stays as it is until the next label."""
    record = animals.services.trainer.retrain(1)
    assert record is not None
    (Path(animals.registry.project_directory(1)) / "versions" / record.version / "head.safetensors").unlink()
    assert animals.services.evaluator.evaluate(1) is None
    assert f"not evaluated project=1 version={record.version}" in caplog.text


def test_a_version_pruned_meanwhile_is_not_brought_back(animals: World) -> None:
    """Its folder is gone when the evaluation is done."""
    record = retrain(animals)
    label(animals, cat=[4])
    retrain(animals)
    animals.registry.prune(1, keep=1)
    animals.registry.update(record)
    assert record.version not in animals.registry.versions(1)


def test_only_details_weights_that_are_prepared_are_chosen_from(
    animals: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one in use, and those that the thread beside the worker has finished: no label waits for the others."""
    animals.services.trainer.retrain(1)
    asked: list[list[float]] = []
    original = rounds.choose_settings

    def spy(*args: Any, **options: Any) -> Any:
        asked.append(list(options["detail_weights"]))
        return original(*args, **options)

    monkeypatch.setattr(rounds, "choose_settings", spy)
    monkeypatch.setattr(Pool, "is_ready", lambda _, weight: weight == 0.35)
    animals.services.evaluator.evaluate(1)
    assert asked == [[0.15, 0.35]]


def test_a_new_version_has_its_pool_prepared(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the worker, for more labels than there are; a failure there is logged and harms nothing."""
    asked: list[tuple[list[float], int]] = []
    called = threading.Event()

    def prepare(_: Pool, weights: Sequence[float], *, n_labels: int, with_typicality: bool) -> None:
        asked.append((list(weights), n_labels))
        called.set()
        raise MemoryError

    monkeypatch.setattr(Pool, "prepare", prepare)
    assert animals.services.trainer.retrain(1) is not None
    assert called.wait(10)
    assert asked == [([0.15], 7)]
