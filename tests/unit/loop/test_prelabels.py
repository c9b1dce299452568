"""Pre-labels: shown from a proven accuracy on, the same in the queue and in /predict; scores stay whatever is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes import LABEL_CONFIG, World, add_cats_and_dogs, label, retrain, rgb

from backend.learning.intervals import wilson_interval
from backend.loop.prelabels import SLACK, are_shown, described, proven_accuracy
from backend.schema import VersionRecord


@pytest.fixture
def record(world: World) -> VersionRecord:
    """A model of six labels, cross-validated."""
    add_cats_and_dogs(world)
    return retrain(world)


def judged(record: VersionRecord, accuracy: float | None, n_labels: int = 100, **changes: Any) -> VersionRecord:
    """The record with another evaluation."""
    return replace(record, accuracy=accuracy, evaluated_labels=n_labels, accuracy_interval=None, **changes)


def test_of_a_measured_accuracy_the_lower_bound_is_proven(record: VersionRecord) -> None:
    """As it stands in the record."""
    assert proven_accuracy(replace(record, accuracy=0.9, accuracy_interval=[0.83, 0.94])) == 0.83


def test_of_a_cross_validated_accuracy_it_is_that_of_so_many_labels(record: VersionRecord) -> None:
    """Wilson's interval again: 90 of 100 prove 0.825, 9 of 10 prove 0.596, and no label proves anything."""
    assert proven_accuracy(judged(record, 0.9)) == pytest.approx(wilson_interval(90, 100)[0])
    assert proven_accuracy(judged(record, 0.9)) == pytest.approx(0.825, abs=0.001)
    assert proven_accuracy(judged(record, 0.9, 10)) == pytest.approx(0.596, abs=0.001)
    assert proven_accuracy(judged(record, None)) is None
    assert proven_accuracy(judged(record, 0.9, 0)) is None


@pytest.mark.parametrize(
    ("accuracy", "was_shown", "shown"),
    [(0.9, False, True), (0.85, False, False), (0.85, True, True), (0.8, True, False), (None, True, False)],
)
def test_they_come_with_the_bound_and_go_a_little_below_it(
    record: VersionRecord, accuracy: float | None, was_shown: bool, shown: bool
) -> None:
    """From 0.8 on: 90 of 100 prove 0.825; 85 prove 0.767, within the slack for pre-labels that are there; 80 do not."""
    previous = replace(record, prelabels=was_shown)
    assert are_shown(judged(record, accuracy), previous, 0.8) is shown
    assert 0.8 - SLACK < 0.767


def test_always_and_never(record: VersionRecord) -> None:
    """The two ends of the setting."""
    assert are_shown(judged(record, None), None, 0.0)
    assert not are_shown(judged(record, 1.0, 10_000), record, 1.0)


def answers(world: World) -> tuple[list[Any], list[Any]]:
    """What Label Studio was last pushed for the window, and what /predict answers for the same tasks."""
    version = world.registry.published(1)
    project = world.label_studio._projects[1]
    pushed = [item for item in project.predictions if item["model_version"] == version]
    asked = [{"id": item["task"], "data": {"image": project.tasks[item["task"]]}, "project": 1} for item in pushed]
    return pushed, world.services.predictor.predict(1, LABEL_CONFIG, asked)


def test_before_the_accuracy_is_proven_there_are_scores_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """In the queue and in /predict, and status and log say so; once it is proven both carry results."""
    caplog.set_level("INFO", "backend.loop.train")
    world = world.again(prelabel_from=0.5)
    reds = [rgb(250 - n, 0, n) for n in range(10)]
    greens = [rgb(0, 250 - n, n) for n in range(10)]
    world.label_studio.add_project(1, reds + greens + [rgb(220), rgb(0, 220), rgb(100, 120)])
    world.embed_all()
    label(world, cat=[1], dog=[11])
    first = retrain(world)
    pushed, answered = answers(world)
    assert pushed
    assert not first.prelabels
    assert [item["result"] for item in (*pushed, *answered)] == [[]] * 2 * len(pushed)
    assert len({item["score"] for item in pushed}) > 1, "the order is the model's all the same"
    assert len({item["score"] for item in answered}) > 1
    status = world.services.status.project(1)["prelabels"]
    assert (status["shown"], status["from"]) == (False, 0.5)
    assert status["note"].startswith("not shown: the accuracy is")

    label(world, cat=range(2, 11), dog=range(12, 20))
    retrain(world)  # evaluated: twenty labels, all told rightly
    assert world.services.status.project(1)["prelabels"]["note"].startswith("shown from the next version on")
    label(world, dog=[20])
    assert retrain(world).prelabels
    pushed, answered = answers(world)
    assert all(item["result"] for item in (*pushed, *answered))
    assert world.services.status.project(1)["prelabels"]["note"].startswith("shown: the accuracy is at least 0.8")
    told = [text for text in caplog.messages if text.startswith("pre-labels project=1 ")]
    assert ["not shown" in text for text in told] == [True, False], "one line for each change"


def test_each_state_has_its_sentence(record: VersionRecord) -> None:
    """What the status tells a person who wonders where the pre-labels are."""
    assert "no model before labels of two classes" in described(replace(record, kind="seed"), 0.8)
    assert described(replace(record, prelabels=True), 0.0) == "shown whatever the accuracy (PRELABEL_FROM=0)"
    assert described(replace(record, prelabels=False), 0.0) == "shown from the next version on"
    hidden = replace(judged(record, None), prelabels=False)
    assert described(hidden, 0.8) == "not shown: the accuracy is not known yet, they are from 0.8 on (PRELABEL_FROM)"


def test_a_version_of_an_earlier_release_showed_them(record: VersionRecord) -> None:
    """Its record does not say; what it pushed stands in Label Studio."""
    raw = record.to_json()
    del raw["prelabels"]
    assert VersionRecord.from_json(raw).prelabels
