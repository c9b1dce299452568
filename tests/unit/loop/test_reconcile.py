"""The comparison with Label Studio: what no webhook told is found, and nothing is done where nothing changed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import World, region, rgb

from backend.adapters.jobs import EMBED_QUEUE
from backend.adapters.label_studio import event_of_webhook
from backend.adapters.registry import version_number
from backend.errors import (
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioUnreachableError,
    ProjectNotFoundError,
)
from backend.loop import reconcile
from backend.loop.reconcile import MARK
from backend.schema import ValidationFilter

IMAGES = [rgb(250, 0), rgb(200, 0), rgb(0, 250), rgb(0, 200)]


@pytest.fixture
def animals(world: World) -> Iterator[World]:
    """Project 1 with a published model; all is embedded and seen, nothing waits. Two versions' predictions are kept."""
    world.label_studio.add_project(1, IMAGES)
    world.embed_all()
    world.label_studio.annotate(1, 1, "cat")
    world.label_studio.annotate(1, 3, "dog")
    assert world.services.trainer.retrain(1) is not None
    world.services.reconciler.reconcile(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reconcile, "KEPT_PREDICTIONS", 2)
        yield world


@pytest.fixture
def quiet(animals: World) -> World:
    """The same after what the comparison asked for was done."""
    animals.services.trainer.retrain(1)
    settle(animals)
    animals.label_studio.asked.clear()
    return animals


def settle(world: World) -> None:
    """As if the workers had done all that waits: no job, no marker, no retrain unanswered."""
    world.jobs.answer_retrain(1, world.jobs.begin_retrain(1))
    for queue in world.jobs.queues():
        queue.empty()
    for key in world.jobs.redis.keys("*marker*"):
        world.jobs.redis.delete(key)


def test_the_first_look_asks_for_everything(world: World) -> None:
    """A project never seen before is registered, embedded and trained."""
    world.label_studio.add_project(1, IMAGES)
    assert world.services.reconciler.reconcile(1)
    assert world.waiting() == ["retrain(1)", "plan_embedding(1)"]
    assert world.registry.known_projects() == [1]


def test_nothing_changed_asks_for_nothing(animals: World) -> None:
    """The mark is as it was: two small requests to Label Studio, no job."""
    settle(animals)
    animals.label_studio.asked.clear()
    assert not animals.services.reconciler.reconcile(1)
    assert animals.waiting() == []
    assert set(animals.label_studio.asked) == {"project", "change_mark"}


@pytest.mark.parametrize("event", ["label", "task", "withdraw", "delete", "config"])
def test_a_change_that_no_webhook_told_is_found(animals: World, event: str) -> None:
    """Whatever was missed is asked for, once."""
    settle(animals)
    kept = animals.label_studio[1]
    if event == "label":
        animals.label_studio.annotate(1, 2, "cat")
    elif event == "task":
        kept.tasks[9] = rgb(1, 2)
    elif event == "withdraw":
        animals.label_studio.withdraw(1, 1)
    elif event == "delete":
        del kept.tasks[4]
    else:
        animals.label_studio.change_project(1, label_config=kept.project.label_config.replace("cat", "fox"))
    assert animals.services.reconciler.reconcile(1)
    answers_only = event in ("label", "withdraw")
    assert animals.waiting() == ["retrain(1)", *([] if answers_only else ["plan_embedding(1)"])]
    settle(animals)
    animals.embed_all()
    assert not animals.services.reconciler.reconcile(1)


@pytest.mark.parametrize("is_trained_on", [True, False])
def test_what_webhooks_told_is_not_read_again(quiet: World, *, is_trained_on: bool) -> None:
    """A label came by webhook: the comparison asks for that one task, and for no work."""
    quiet.label_studio.annotate(1, 2, "cat")
    quiet.jobs.record_event(1, event_of_webhook(quiet.label_studio.event(1, "ANNOTATION_CREATED", task_id=2)))
    if is_trained_on:
        quiet.services.trainer.retrain(1)
    settle(quiet)
    quiet.label_studio.asked.clear()
    assert not quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == []
    assert quiet.label_studio.asked == ["project", "change_mark", "changed_tasks"]


def test_the_comparison_takes_no_event_from_the_next_retrain(quiet: World) -> None:
    """The label told by webhook is compared and then trained on, with nothing read from Label Studio."""
    quiet.label_studio.annotate(1, 2, "cat")
    quiet.jobs.record_event(1, event_of_webhook(quiet.label_studio.event(1, "ANNOTATION_CREATED", task_id=2)))
    quiet.services.reconciler.reconcile(1)
    quiet.label_studio.asked.clear()
    record = quiet.services.trainer.retrain(1)
    assert record is not None
    assert record.labels_used == 3
    assert "annotated_tasks" not in quiet.label_studio.asked


def test_an_answer_changed_without_a_webhook_is_read(quiet: World) -> None:
    """As many answers as before, another label."""
    given = quiet.label_studio[1].annotations[1]
    given[0] = dataclasses.replace(given[0], result=[region("dog")], updated_at="2030-01-01T00:00:00.000000Z")
    assert quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == ["retrain(1)"]
    record = quiet.services.trainer.retrain(1)
    assert record is not None
    assert record.labels_by_class == {"dog": 2}


def test_an_image_changed_without_a_webhook_is_embedded_again(quiet: World) -> None:
    """As many tasks as before, another image behind one: no label is read again for it."""
    quiet.label_studio[1].tasks[4] = rgb(9, 9)
    assert quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == ["plan_embedding(1)"]


def test_a_task_moved_into_the_validation_split_is_noticed(world: World) -> None:
    """Its data says so since the last look; nothing else changed."""
    world = world.again(validation_filter=ValidationFilter("split", "test"))
    kept = world.label_studio.add_project(1, IMAGES)
    world.embed_all()
    world.services.reconciler.reconcile(1)
    world.services.trainer.retrain(1)
    settle(world)
    kept.fields[4] = {"split": "test"}
    assert world.services.reconciler.reconcile(1)
    assert world.waiting() == ["plan_embedding(1)"]


def test_a_project_deleted_in_label_studio_is_told_as_that(animals: World) -> None:
    """The worker sets it aside (test_worker.py); nothing is asked for."""
    settle(animals)
    animals.label_studio.remove_project(1)
    with pytest.raises(ProjectNotFoundError):
        animals.services.reconciler.reconcile(1)
    assert animals.waiting() == []


def test_a_newer_project_of_the_same_id_starts_afresh(animals: World) -> None:
    """Label Studio's database was made anew: the new project 1 sees nothing of the old one, and is embedded whole."""
    settle(animals)
    animals.label_studio.remove_project(1)
    animals.label_studio.add_project(1, [rgb(9, 9)])
    animals.label_studio.change_project(1, created_at="2026-05-05T00:00:00.000000Z")
    assert animals.services.reconciler.reconcile(1)
    assert animals.registry.published(1) is None
    assert animals.table(1).task_ids.tolist() == []
    assert animals.services.embedder.plan(1) == 1


@pytest.mark.parametrize(
    "failure", [LabelStudioUnreachableError("away"), LabelStudioAuthError("refused", status=401), LabelStudioError("?")]
)
def test_label_studio_away_is_no_deleted_project(animals: World, failure: LabelStudioError) -> None:
    """Only an answer that the project does not exist sets it aside."""
    animals.label_studio.failures["project"] = failure
    with pytest.raises(type(failure)):
        animals.services.reconciler.reconcile(1)
    assert animals.registry.known_projects() == [1]
    assert animals.registry.published(1) is not None


def test_a_queue_ordered_by_the_backend_s_title_is_repaired(animals: World) -> None:
    """Connecting a backend points the queue at its title, which no prediction carries."""
    published = animals.registry.published(1)
    animals.label_studio.change_project(1, model_version="Active learning")
    animals.services.reconciler.reconcile(1)
    assert animals.label_studio[1].project.model_version == published
    assert animals.label_studio.served_order(1) != []


def test_a_version_chosen_by_a_person_is_used(animals: World) -> None:
    """Somebody chose an older version of ours in Label Studio's settings: the project is pinned to it."""
    chosen = animals.registry.published(1)
    assert chosen is not None
    animals.label_studio.annotate(1, 2, "dog")
    assert animals.services.trainer.retrain(1) is not None
    settle(animals)
    animals.label_studio.change_project(1, model_version=chosen)
    animals.services.reconciler.reconcile(1)
    pin = animals.registry.pin(1)
    assert pin is not None
    assert (pin.version, pin.by) == (chosen, "Label Studio")
    assert "retrain(1)" in animals.waiting()


def test_a_version_just_chosen_keeps_its_predictions(animals: World) -> None:
    """It is superseded and old, and would be deleted before anybody had seen that it is wanted."""
    oldest = animals.registry.published(1)
    publish_more(animals, 4)
    animals.label_studio.change_project(1, model_version=oldest)
    prune_all(animals)
    assert oldest in animals.label_studio.prediction_counts(1)


def test_a_queue_that_cannot_be_repaired_gets_a_new_version(animals: World) -> None:
    """Somebody deleted all predictions: a forced retrain is asked for, since labels alone would give nothing new."""
    settle(animals)
    animals.label_studio.change_project(1, model_version="")
    animals.label_studio[1].predictions.clear()
    animals.services.reconciler.reconcile(1)
    assert "retrain(1)" in animals.waiting()
    assert animals.jobs.begin_retrain(1).forced


def test_a_queue_ordered_by_a_version_that_was_never_published_is_repaired(animals: World) -> None:
    """A worker died between the two, and nothing has changed since: the published version orders the queue again."""
    published = animals.registry.published(1)
    assert published is not None
    animals.label_studio.change_project(1, model_version="v0002-9labels-20260304T050607Z")
    animals.services.reconciler.reconcile(1)
    assert animals.label_studio[1].project.model_version == published


def test_a_version_about_to_be_published_is_left_alone(animals: World) -> None:
    """Another worker has pointed Label Studio at it and publishes in a moment: that is not ours to turn back."""
    newer = "v0002-9labels-20260304T050607Z"
    animals.label_studio.change_project(1, model_version=newer)
    with animals.again().jobs.project_lock(1):
        animals.services.reconciler.reconcile(1)
    assert animals.label_studio[1].project.model_version == newer


def test_a_retrain_that_nobody_answered_is_requested_again(quiet: World) -> None:
    """Its job failed in a moment when that could not be noted, and Label Studio is as it was seen last."""
    quiet.jobs.request_retrain(1)
    quiet.jobs.begin_retrain(1)
    for queue in quiet.jobs.queues():
        queue.empty()
    assert quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == ["retrain(1)"]
    assert quiet.services.trainer.retrain(1) is None
    settle(quiet)
    assert not quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == []


@pytest.mark.parametrize("name", ["head.safetensors", "record.json", "published.json"])
def test_a_version_that_cannot_be_read_is_made_anew(quiet: World, name: str) -> None:
    """A file of the published version was cut off; the same labels make another one, and that is the end of it."""
    before = quiet.registry.published(1)
    folder = quiet.registry.project_directory(1)
    assert isinstance(folder, Path)
    path = folder / name if name == "published.json" else folder / "versions" / str(before) / name
    path.write_bytes(path.read_bytes()[:20])
    assert quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == ["retrain(1)"]
    assert quiet.services.trainer.retrain(1) is not None
    assert quiet.registry.damage(1) is None
    assert quiet.registry.published(1) != before
    settle(quiet)
    assert not quiet.services.reconciler.reconcile(1)


def test_embeddings_that_went_with_their_dataset_are_made_anew(quiet: World) -> None:
    """Nothing changed in Label Studio, and all but the labeled images are unknown here."""
    quiet.services.embedder.forget(1, [2, 4])
    assert quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == ["plan_embedding(1)"]
    assert not quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == ["plan_embedding(1)"]


def test_a_label_that_is_told_and_not_there_is_found_out(quiet: World) -> None:
    """The event of a label that was taken back long ago comes again, to a worker that never saw it."""
    quiet.label_studio.annotate(1, 2, "cat")
    told = event_of_webhook(quiet.label_studio.event(1, "ANNOTATION_CREATED", task_id=2))
    quiet.label_studio.withdraw(1, 2)
    quiet.services.reconciler.reconcile(1)
    quiet.services.trainer.retrain(1)
    settle(quiet)
    quiet.jobs.record_event(1, told)
    quiet.services.trainer.retrain(1)
    settle(quiet)
    assert quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == ["retrain(1)"]
    record = quiet.services.trainer.retrain(1)
    assert record is not None
    assert record.labels_used == 2


def test_an_evaluation_that_failed_is_asked_for_again(quiet: World) -> None:
    """A failed job takes the mark away; what is published and not evaluated is asked for with all the rest."""
    quiet.jobs.set_note(1, MARK, None)
    quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == ["retrain(1)", "evaluate(1)", "plan_embedding(1)"]


def test_an_empty_queue_needs_no_repair(animals: World) -> None:
    """Everything is labeled, so the published version has no predictions: no retrain in a circle."""
    for task_id in (2, 4):
        animals.label_studio.annotate(1, task_id, "cat")
    assert animals.services.trainer.retrain(1) is not None
    animals.services.reconciler.reconcile(1)
    settle(animals)
    animals.label_studio.change_project(1, model_version="Active learning")
    animals.services.reconciler.reconcile(1)
    assert animals.waiting() == []


def test_images_that_failed_for_a_passing_reason_are_tried_again(world: World) -> None:
    """Task 2's server was away, task 3's image is broken: only task 2 is asked for again, and succeeds."""
    world.label_studio.add_project(1, [rgb(1, 1), rgb(2, 2), "broken:3"])
    world.images.away.add(rgb(2, 2))
    world.embed_all()
    assert set(world.table(1).failures) == {2, 3}
    world.services.reconciler.reconcile(1)
    settle(world)
    world.images.away.clear()
    world.embed_all()
    assert world.table(1).task_ids.tolist() == [1, 2]
    assert set(world.table(1).failures) == {3}
    assert not world.services.reconciler.reconcile(1)


def test_images_that_stay_away_are_tried_after_growing_pauses(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one, two, four, eight minutes, then fifteen; at once when another fails, anew once all were there."""
    clock = [1_000_000.0]
    monkeypatch.setattr("backend.loop.reconcile.time.time", lambda: clock[0])
    world.label_studio.add_project(1, [rgb(1, 1), rgb(2, 2), rgb(3, 3)])
    world.images.away.add(rgb(2, 2))
    world.embed_all()

    def is_retried() -> bool:
        """Whether a comparison tries the image again, which fails as before."""
        world.services.reconciler.reconcile(1)
        tried = not world.table(1).failures
        world.embed_all()
        return tried

    assert is_retried()
    tries = []
    for minute in range(1, 100):
        clock[0] += 60.0
        if is_retried():
            tries.append(minute)
    assert tries == [1, 3, 7, 15, 30, 45, 60, 75, 90]
    world.images.away.add(rgb(3, 3))
    world.services.embedder.forget(1, [3])
    world.embed_all()
    assert is_retried()
    world.images.away.clear()
    clock[0] += 60.0
    assert is_retried()
    assert not world.table(1).failures
    world.services.reconciler.reconcile(1)
    assert world.jobs.note(1, reconcile.RETRIED) is None


def test_a_request_during_the_comparison_makes_another_one(animals: World) -> None:
    """The marker is taken first, so that a config change while comparing is not lost."""
    settle(animals)
    job_id = animals.jobs.request_reconciliation(1)
    animals.jobs.queues([EMBED_QUEUE])[0].remove(job_id)  # a worker takes it
    animals.services.reconciler.reconcile(1)
    settle_jobs = animals.waiting()
    animals.jobs.request_reconciliation(1)
    assert len(animals.waiting()) == len(settle_jobs) + 1


def test_a_deleted_mark_makes_everything_asked_for_again(animals: World) -> None:
    """That is how a failed job gets another chance."""
    settle(animals)
    animals.jobs.set_note(1, MARK, None)
    assert animals.services.reconciler.reconcile(1)


# -- pruning ----------------------------------------------------------------------------------------------------------


def push_row(world: World, version: str) -> None:
    world.label_studio[1].predictions.append({"task": 2, "score": 0.1, "result": [], "model_version": version})


def prune_all(world: World) -> None:
    """In a quiet moment, a while after the last version."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world.jobs, "quiet_s", lambda _: reconcile.QUIET_S)
        world.services.reconciler.prune(1)


def publish_more(world: World, n_versions: int) -> None:
    for _ in range(n_versions):
        world.jobs.request_retrain(1, forced=True)
        assert world.services.trainer.retrain(1) is not None
    settle(world)


def test_while_people_label_no_prediction_is_deleted(animals: World) -> None:
    """It would take Label Studio a quarter of a second for each version, from whoever submits."""
    publish_more(animals, 5)
    animals.label_studio.asked.clear()
    animals.services.reconciler.prune(1)
    assert animals.label_studio.asked == []
    assert len(animals.label_studio.prediction_counts(1)) == 6


def test_the_comparison_asks_for_pruning_in_a_quiet_moment(quiet: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody labeled for a while: then, once; without anything to delete no job is made."""
    publish_more(quiet, 5)
    quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == []
    monkeypatch.setattr(quiet.jobs, "quiet_s", lambda _: reconcile.QUIET_S)
    quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == ["prune(1)"]
    quiet.services.reconciler.prune(1)
    assert set(quiet.label_studio.prediction_counts(1)) == set(quiet.registry.versions(1)[:2])
    settle(quiet)
    quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == []


def test_nothing_is_asked_for_where_versions_between_have_no_predictions_left(
    quiet: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their tasks were deleted; older versions stand in for them among those that are kept, once and for all."""
    publish_more(quiet, 5)
    gone = quiet.registry.versions(1)[1]
    rows = quiet.label_studio[1].predictions
    rows[:] = [row for row in rows if row["model_version"] != gone]
    monkeypatch.setattr(quiet.jobs, "quiet_s", lambda _: reconcile.QUIET_S)
    quiet.services.reconciler.prune(1)
    held = quiet.label_studio.prediction_counts(1)
    assert len(held) == reconcile.KEPT_PREDICTIONS
    assert quiet.registry.versions(1)[reconcile.KEPT_PREDICTIONS] in held
    quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == []
    publish_more(quiet, 1)
    quiet.services.reconciler.reconcile(1)
    assert quiet.waiting() == ["prune(1)"]


def test_pruning_ends_when_somebody_labels(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the two versions that one job may delete at any time; the next quiet moment goes on."""
    publish_more(animals, 7)
    pauses = iter([reconcile.QUIET_S] * 2 + [0.0] * 9)
    monkeypatch.setattr(animals.jobs, "quiet_s", lambda _: next(pauses))
    animals.services.reconciler.prune(1)
    left = sorted(map(version_number, animals.label_studio.prediction_counts(1)))
    assert left == [4, 5, 6, 7, 8]
    monkeypatch.undo()
    prune_all(animals)
    assert sorted(map(version_number, animals.label_studio.prediction_counts(1))) == [7, 8]


def test_too_many_are_deleted_even_while_people_label(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two for each new version, so that they grow no further."""
    monkeypatch.setattr(reconcile, "SUPERSEDED_MOST", 3)
    publish_more(animals, 9)
    for _ in range(5):
        animals.services.reconciler.prune(1)
    assert sorted(map(version_number, animals.label_studio.prediction_counts(1))) == [7, 8, 9, 10]


def test_predictions_of_older_versions_are_deleted(animals: World) -> None:
    """The published version and the one before it stay, with what others pushed; three older ones go."""
    published = animals.registry.published(1)
    assert published is not None
    older = [f"v0000-{n}labels-2025010{n}T000000Z" for n in range(1, 5)]
    for version in [*older, "somebody else's"]:
        push_row(animals, version)
    prune_all(animals)
    assert set(animals.label_studio.prediction_counts(1)) == {published, older[-1], "somebody else's"}


def test_the_newest_by_number_stay(animals: World) -> None:
    """v10000 is newer than v9999."""
    names = [f"v{number}-2labels-20300101T000000Z" for number in (9998, 9999, 10000, 10001)]
    for name in names:
        push_row(animals, name)
    prune_all(animals)
    assert set(animals.label_studio.prediction_counts(1)) == {animals.registry.published(1), names[2], names[3]}


def test_versions_past_the_limit_are_deleted_from_disk(animals: World) -> None:
    """Of four kept versions, with a limit of two, the two newest stay."""
    for _ in range(3):
        animals.jobs.request_retrain(1, forced=True)
        assert animals.services.trainer.retrain(1) is not None
    newest = animals.registry.versions(1)[:2]
    animals.again(keep_versions=2).services.reconciler.prune(1)
    assert animals.registry.versions(1) == newest
