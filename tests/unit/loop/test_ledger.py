"""The ledger: warm where webhooks tell everything, and never believing more than they tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fakes import LABEL_CONFIG, World, label, retrain, rgb

from backend.loop.ledger import READ_EVERYTHING, Answers
from backend.model import ActiveLearningModel
from backend.schema import AnnotatedTask, Annotation, ValidationFilter

READS = {"project", "annotated_tasks"}


@pytest.fixture
def animals(world: World) -> World:
    """Project 1: four reds (cats) and four greens (dogs), embedded, one of each labeled and in the first version."""
    world.label_studio.add_project(
        1, [rgb(255 - 9 * n, 0, n) for n in range(4)] + [rgb(0, 255 - 9 * n) for n in range(4)]
    )
    world.embed_all()
    label(world, cat=[1], dog=[5])
    world.services.trainer.retrain(1)
    world.label_studio.asked.clear()
    return world


def submit(world: World, task_id: int, name: str | None, action: str = "ANNOTATION_CREATED", **kind: Any) -> None:
    """Somebody submits, and the webhook comes."""
    world.label_studio.annotate(1, task_id, name, **kind)
    tell(world, action, task_id=task_id)


def tell(world: World, action: str, **about: Any) -> None:
    body = world.label_studio.event(1, action, **about)
    ActiveLearningModel(1, services=world.services).process_event(action, body)


def by_task(answers: Answers) -> dict[int, AnnotatedTask]:
    return {item.task.id: item for item in answers.annotated}


def truth(world: World) -> dict[int, AnnotatedTask]:
    """What Label Studio would say now, unnoticed."""
    found = {item.task.id: item for item in world.label_studio.annotated_tasks(1, "image")}
    world.label_studio.asked.clear()
    return found


def n_reads(world: World) -> int:
    return sum(name in READS for name in world.label_studio.asked)


def test_a_label_is_in_the_next_version_and_nothing_is_read(animals: World) -> None:
    """Only the push and the switch reach Label Studio: what the webhook told is what it would have said."""
    submit(animals, 2, "cat")
    record = animals.services.trainer.retrain(1)
    assert record is not None
    assert record.labels_by_class == {"cat": 2, "dog": 1}
    assert animals.label_studio.asked == ["push_predictions", "activate_version"]
    assert by_task(animals.services.ledger.known(1)) == truth(animals)


def change(world: World) -> None:
    kept = world.label_studio[1].annotations[1]
    kept[-1] = replace(kept[-1], result=[{**kept[-1].result[0], "value": {"choices": ["dog"]}}], updated_at="2027")
    tell(world, "ANNOTATION_UPDATED", task_id=1)


def delete(world: World) -> None:
    (gone,) = world.label_studio[1].annotations.pop(5)
    tell(world, "ANNOTATIONS_DELETED", annotation_ids=[gone.id])


def second_opinion(world: World) -> None:
    submit(world, 1, "dog")
    delete(world)


def skip_and_ground_truth(world: World) -> None:
    submit(world, 3, None, skipped=True)
    submit(world, 6, "dog", truth=True)


@pytest.mark.parametrize("happening", [change, delete, second_opinion, skip_and_ground_truth])
def test_whatever_people_do_is_known_as_label_studio_has_it(animals: World, happening: Callable[[World], None]) -> None:
    """Changed, deleted, skipped, ground truth, several on one task."""
    happening(animals)
    answers = animals.services.ledger.read(1)
    assert animals.label_studio.asked == []
    assert by_task(answers) == truth(animals)
    assert animals.services.ledger.is_true(1)


def test_a_deleted_label_that_is_told_again_does_not_come_back(animals: World) -> None:
    """Its event is delivered a second time, after the event of its deletion."""
    animals.label_studio.annotate(1, 2, "cat")
    created = animals.label_studio.event(1, "ANNOTATION_CREATED", task_id=2)
    (gone,) = animals.label_studio[1].annotations.pop(2)
    for body in (created, animals.label_studio.event(1, "ANNOTATIONS_DELETED", annotation_ids=[gone.id]), created):
        ActiveLearningModel(1, services=animals.services).process_event(body["action"], body)
    animals.services.trainer.retrain(1)
    assert by_task(animals.services.ledger.known(1)) == truth(animals)


def test_a_deletion_told_before_the_label_it_takes_back_counts(animals: World) -> None:
    """Two events change places on their way."""
    animals.label_studio.annotate(1, 2, "cat")
    created = animals.label_studio.event(1, "ANNOTATION_CREATED", task_id=2)
    (gone,) = animals.label_studio[1].annotations.pop(2)
    for body in (animals.label_studio.event(1, "ANNOTATIONS_DELETED", annotation_ids=[gone.id]), created):
        ActiveLearningModel(1, services=animals.services).process_event(body["action"], body)
    animals.services.trainer.retrain(1)
    assert by_task(animals.services.ledger.known(1)) == truth(animals)


def test_a_label_deleted_long_ago_that_is_told_again_is_not_believed(animals: World) -> None:
    """It was gone when everything was read, and the count of its event is by chance what it would be with it."""
    animals.label_studio.annotate(1, 2, "cat")
    created = animals.label_studio.event(1, "ANNOTATION_CREATED", task_id=2)
    animals.label_studio.annotate(1, 3, "cat")
    animals.label_studio.withdraw(1, 2)
    animals.jobs.record_event(1, READ_EVERYTHING)
    animals.services.trainer.retrain(1)
    animals.label_studio.withdraw(1, 3)
    tell(animals, "ANNOTATIONS_DELETED", annotation_ids=[])
    animals.services.trainer.retrain(1)
    ActiveLearningModel(1, services=animals.services).process_event("ANNOTATION_CREATED", created)
    animals.services.trainer.retrain(1)
    assert by_task(animals.services.ledger.known(1)) == truth(animals)


def test_many_at_once_and_none_twice(animals: World) -> None:
    """A bulk event of two tasks; told twice and out of order it comes to the same."""
    label(animals, cat=[2, 3])
    one, other = (animals.label_studio.event(1, "ANNOTATION_CREATED", task_id=task_id) for task_id in (2, 3))
    both = {**one, "annotation": [one["annotation"], other["annotation"]], "task": [one["task"], other["task"]]}
    model = ActiveLearningModel(1, services=animals.services)
    model.process_event("ANNOTATIONS_CREATED", both)
    stale = {**one, "annotation": {**one["annotation"], "result": [], "updated_at": "2020"}}
    model.process_event("ANNOTATION_UPDATED", stale)
    model.process_event("ANNOTATION_CREATED", other)
    answers = animals.services.ledger.read(1)
    assert animals.label_studio.asked == []
    assert by_task(answers) == truth(animals)


def strip(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda body: {key: value for key, value in body.items() if key != name}


BLURRED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "send_payload is off": lambda body: {"action": body["action"]},
    "no annotation": strip("annotation"),
    "no task": strip("task"),
    "no project": strip("project"),
    "an annotation that is a number": lambda body: {**body, "annotation": 5},
    "no id": lambda body: {**body, "annotation": {**body["annotation"], "id": None}},
    "no time": lambda body: {**body, "annotation": {**body["annotation"], "updated_at": None}},
    "no data": lambda body: {**body, "task": {"id": 2}},
    "no count": lambda body: {**body, "project": {"label_config": LABEL_CONFIG}},
    "far too long": lambda body: {**body, "task": {"id": 2, "data": {"image": rgb(9, 9), "note": "x" * 100_000}}},
}


@pytest.mark.parametrize("how", BLURRED)
def test_an_event_that_does_not_tell_all_makes_everything_be_read(animals: World, how: str) -> None:
    """The label is in the next version all the same."""
    animals.label_studio.annotate(1, 2, "cat")
    body = BLURRED[how](animals.label_studio.event(1, "ANNOTATION_CREATED", task_id=2))
    ActiveLearningModel(1, services=animals.services).process_event("ANNOTATION_CREATED", body)
    record = animals.services.trainer.retrain(1)
    assert record is not None
    assert record.labels_used == 3
    assert n_reads(animals) == 2


def test_a_deletion_without_ids_makes_everything_be_read(animals: World) -> None:
    """The Data Manager deletes many and says of none which."""
    animals.label_studio.withdraw(1, 5)
    tell(animals, "ANNOTATIONS_DELETED")
    assert set(by_task(animals.services.ledger.read(1))) == {1}


def test_a_retrain_without_an_event_reads_everything(animals: World) -> None:
    """Somebody asked for another reason, a worker that starts for example."""
    label(animals, cat=[2])
    animals.jobs.request_retrain(1)
    assert retrain(animals).labels_used == 3


@pytest.mark.parametrize("cause", ["the button", "a reconciliation"])
def test_who_wants_to_be_sure_gets_everything_read(animals: World, cause: str) -> None:
    """A webhook was lost; the next one tells of its own label only, but somebody asked for all."""
    label(animals, cat=[2])
    submit(animals, 3, "cat")
    if cause == "the button":
        ActiveLearningModel(1, services=animals.services).process_event("START_TRAINING", {})
    else:
        animals.services.reconciler.reconcile(1)
    assert retrain(animals).labels_used == 4


def test_a_lost_webhook_is_noticed_by_the_next_one(animals: World) -> None:
    """Label Studio counts one annotation more than is known: after publishing, everything is read."""
    label(animals, cat=[2])
    submit(animals, 3, "cat")
    record = animals.services.trainer.retrain(1)
    assert record is not None
    assert record.labels_used == 3
    animals.empty_queue_of_retrains()
    animals.services.evaluator.evaluate(1)
    assert "retrain(1)" in animals.waiting()
    assert retrain(animals).labels_used == 4
    assert animals.services.ledger.is_true(1)


def test_another_labeling_config_makes_everything_be_read(animals: World) -> None:
    """The event carries the config of its time."""
    config = LABEL_CONFIG.replace('value="dog"', 'value="wolf"')
    animals.label_studio.change_project(1, label_config=config)
    submit(animals, 2, "wolf")
    record = retrain(animals)
    assert record.label_config == config
    assert record.labels_by_class == {"cat": 1, "wolf": 1}


def test_a_gap_in_the_journal_makes_everything_be_read(animals: World) -> None:
    """Redis was emptied, and the label before its loss is not forgotten."""
    submit(animals, 2, "cat")
    animals.jobs.redis.flushall()
    submit(animals, 3, "cat")
    assert retrain(animals).labels_used == 4


def test_two_workers_each_know_all(animals: World) -> None:
    """Whichever trains: it reads the journal from where it stood itself."""
    other = animals.again()
    other.services.ledger.read(1)
    animals.label_studio.asked.clear()
    submit(animals, 2, "cat")
    animals.services.trainer.retrain(1)
    submit(animals, 3, "cat")
    record = other.services.trainer.retrain(1)
    assert record is not None
    assert record.labels_used == 4
    assert n_reads(animals) == 0


def test_the_validation_split_is_told_by_events_too(animals: World) -> None:
    """The fields that its filter asks for are kept with the answers."""
    animals.label_studio[1].fields[2] = {"split": "val"}
    world = animals.again(validation_filter=ValidationFilter("split", "val"))
    world.services.embedder.plan(1)
    world.services.trainer.retrain(1)
    submit(world, 2, "cat")
    record = retrain(world)
    assert (record.labels_used, record.validation_labels) == (2, 1)


def test_only_so_many_projects_are_kept(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one used longest ago is read again when it is needed."""
    monkeypatch.setattr("backend.loop.ledger.MAX_PROJECTS", 1)
    animals.label_studio.add_project(2, [rgb(1, 1)])
    ledger = animals.services.ledger
    ledger.read(2)
    animals.label_studio.asked.clear()
    assert set(by_task(ledger.known(1))) == {1, 5}
    assert n_reads(animals) == 2


def test_a_failure_while_reading_leaves_the_answers_as_they_were(animals: World) -> None:
    """The retrain fails; the next one reads everything."""
    animals.jobs.record_event(1, READ_EVERYTHING)
    animals.label_studio.failures["annotated_tasks"] = RuntimeError("away")
    with pytest.raises(RuntimeError):
        animals.services.ledger.read(1)
    del animals.label_studio.failures["annotated_tasks"]
    label(animals, cat=[2])
    assert isinstance(by_task(animals.services.ledger.read(1))[2].annotations[0], Annotation)
