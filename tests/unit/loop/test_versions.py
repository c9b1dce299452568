"""Going back to an earlier version: what is pinned, what a label then makes, how it ends, and who may choose."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from fakes import CATS, DOGS, LABEL_CONFIG, TinyBackbone, World, add_cats_and_dogs, build_world, label, retrain

from backend.adapters.label_studio import event_of_webhook
from backend.adapters.registry import is_own_version, version_number
from backend.errors import (
    LabelStudioError,
    ProjectNotFoundError,
    RedisUnavailableError,
    VersionNotFoundError,
    VersionUnusableError,
)
from backend.learning.head import Head
from backend.loop import versions as module
from backend.schema import Pin, ValidationFilter, VersionRecord


@pytest.fixture
def animals(world: World) -> World:
    """Project 1 with two versions of kind model: of six labels, and of eight."""
    add_cats_and_dogs(world)
    retrain(world)
    label(world, cat=[4], dog=[16])
    retrain(world)
    return world


def published(world: World) -> VersionRecord:
    record = world.registry.published_record(1)
    assert record is not None
    return record


def head_of(world: World, record: VersionRecord) -> Head:
    head = world.registry.head(record)
    assert head is not None
    return head


def pin_first(world: World) -> VersionRecord:
    """Goes back to the first version, and the worker does it; the version it publishes."""
    world.services.versions.use(1, "v0001", by="a test")
    return retrain(world)


def version_note(world: World) -> str:
    return str(world.services.status.project(1)["version_note"])


# -- a pin ------------------------------------------------------------------------------------------------------------


def test_going_back_publishes_a_new_version_with_the_old_head(animals: World) -> None:
    """Another name, the same head to the bit; the record says whose it is, what it learned and what it did not."""
    first = animals.registry.record(1, animals.registry.versions(1)[1])
    record = pin_first(animals)
    assert record == published(animals)
    assert version_number(record.version) == 3
    assert record.version.endswith("-from-v0001")
    assert is_own_version(record.version)
    assert (record.head_of, record.labels_used, record.labels_given) == (first.version, 6, 8)
    assert (record.kind, record.labels_by_class) == ("model", {"cat": 3, "dog": 3})
    for array in ("weights", "bias"):
        np.testing.assert_array_equal(getattr(head_of(animals, record), array), getattr(head_of(animals, first), array))
    assert animals.label_studio[1].project.model_version == record.version
    assert animals.label_studio.served_order(1) == list(record.window)


def test_pinned_a_label_moves_the_queue_and_trains_nothing(animals: World) -> None:
    """Each label makes a version: without the labeled task in its window, filled up again, with the same head."""
    before = pin_first(animals)
    done = before.window[0]
    label(animals, cat=[done])
    after = retrain(animals)
    assert after.version != before.version
    assert (after.head_of, after.labels_used, after.labels_given) == (before.head_of, 6, 9)
    assert done not in after.window
    assert len(after.window) == len(before.window)
    np.testing.assert_array_equal(head_of(animals, after).weights, head_of(animals, before).weights)
    # A prediction in the queue is what that head says of the image.
    row = animals.label_studio[1].predictions[-1]
    table = animals.table()
    probabilities = head_of(animals, before).predict_proba(table.embeddings[table.rows_of([row["task"]])])[0]
    assert row["result"][0]["score"] == pytest.approx(probabilities.max(), abs=1e-6)


def test_pinned_nothing_new_is_no_new_version(animals: World) -> None:
    """The comparison with Label Studio does not publish again and again."""
    record = pin_first(animals)
    assert animals.services.trainer.retrain(1) is None
    assert published(animals).version == record.version


def test_a_pin_survives_a_restart(animals: World) -> None:
    """Another process, and a Redis that was emptied."""
    first = pin_first(animals).head_of
    animals.empty_queue()
    other = animals.again()
    label(other, dog=[17])
    assert retrain(other).head_of == first


def test_released_the_project_learns_from_all_labels(animals: World) -> None:
    """The next version has every label given meanwhile, and nothing of the pinned head."""
    pin_first(animals)
    label(animals, cat=[5])
    retrain(animals)
    assert animals.services.versions.release(1) is not None
    record = retrain(animals)
    assert (record.labels_used, record.labels_given, record.head_of) == (9, 9, None)
    assert "-from-" not in record.version
    assert animals.services.versions.release(1) is None


def test_a_version_without_a_pin_is_of_all_labels(animals: World) -> None:
    """What a record names: how many labels, which images, which backbone, which seed, which release."""
    record = published(animals)
    assert (record.labels_used, record.labels_given, record.head_of) == (8, 8, None)
    assert record.embeddings_digest == animals.table().digest
    assert (record.fingerprint, record.random_state) == ("f00d", 0)
    assert record.release is not None


def test_a_pinned_version_is_worth_what_its_source_was(animals: World) -> None:
    """Cross-validated figures stay the source's; no forecast; the curve waits; a corrected suspect is gone."""
    source = animals.registry.record(1, animals.registry.versions(1)[1])
    suspect = {"task_id": 1, "label": "cat", "suggested_label": "dog", "probability": 0.01}
    animals.registry.update(
        VersionRecord.from_json(source.to_json() | {"n_suspects": 2, "suspects": [suspect, suspect | {"task_id": 2}]})
    )
    curve = published(animals).learning_curve
    label(animals, dog=[2])
    record = pin_first(animals)
    assert record.evaluated_version == record.version
    assert (record.accuracy, record.accuracy_kind) == (source.accuracy, source.accuracy_kind)
    assert (record.evaluated_labels, record.chosen) == (source.evaluated_labels, source.chosen)
    assert record.forecast is None
    assert list(record.learning_curve) == list(curve)
    assert (record.n_suspects, [item["task_id"] for item in record.suspects]) == (1, [1])
    assert record.expected_accuracy is not None


def test_a_pinned_version_is_measured_on_the_validation_split(world: World) -> None:
    """The old head, on the tasks kept aside as they are labeled now."""
    world = world.again(validation_filter=ValidationFilter())
    add_cats_and_dogs(world)
    retrain(world)
    world.label_studio.annotate(1, 4, "cat", truth=True)
    world.label_studio.annotate(1, 16, "dog", truth=True)
    world.services.versions.use(1, "v0001", by="a test")
    record = retrain(world)
    assert record.validation_labels == 2
    assert record.accuracy_kind == "measured on 2 validation tasks"
    assert record.accuracy == 1.0


def test_a_label_of_a_new_class_does_not_stop_a_pinned_project(animals: World) -> None:
    """The head knows cats and dogs; somebody labels a fox."""
    pin_first(animals)
    config = LABEL_CONFIG.replace('<Choice value="dog"/>', '<Choice value="dog"/><Choice value="fox"/>')
    animals.label_studio.change_project(1, label_config=config)
    label(animals, fox=[7])
    record = retrain(animals)
    assert list(record.classes) == ["cat", "dog"]
    assert record.labels_given == 9
    assert record.head_of is not None


def test_pinned_no_backbone_is_fine_tuned(animals: World) -> None:
    """Its embeddings would be of no use to the head that is kept."""
    world = animals.again(train="finetune", finetune_from=4)
    pin_first(world)
    label(world, cat=[6])
    retrain(world)
    assert "finetune(1)" not in world.waiting()
    world.services.versions.release(1)
    retrain(world)
    assert "finetune(1)" in world.waiting()


def test_the_pinned_and_the_published_version_are_never_pruned(animals: World) -> None:
    """Of twelve versions with a limit of two: the pinned one, its two newest copies, and the two newest others."""
    first = pin_first(animals).head_of
    for _ in range(4):
        animals.jobs.request_retrain(1, forced=True)
        assert animals.services.trainer.retrain(1) is not None
    kept = animals.registry.versions(1)
    animals.registry.prune(1, keep=2)
    left = animals.registry.versions(1)
    assert first in left
    assert published(animals).version in left
    assert [version_number(name) for name in left] == [7, 6, 2, 1]
    animals.registry.prune(1, keep=1)
    assert [version_number(name) for name in animals.registry.versions(1)] == [7, 2, 1]
    assert first == kept[-1]


# -- versions do not change -------------------------------------------------------------------------------------------


def files_of(world: World, version: str) -> dict[str, str]:
    folder = Path(str(world.registry.project_directory(1))) / "versions" / version
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_a_published_version_never_changes(world: World) -> None:
    """Evaluated, superseded, pinned, released: record and head are the same bytes, with the evaluation beside."""
    add_cats_and_dogs(world)
    assert world.services.trainer.retrain(1) is not None
    version = published(world).version
    before = files_of(world, version)
    assert set(before) == {"record.json", "head.safetensors"}
    world.services.evaluator.evaluate(1)
    after = files_of(world, version)
    assert set(after) == {*before, "evaluation.json"}
    label(world, cat=[4])
    retrain(world)
    pin_first(world)
    world.services.versions.release(1)
    retrain(world)
    assert files_of(world, version) == after
    assert {name: after[name] for name in before} == before


# -- what cannot be used ----------------------------------------------------------------------------------------------


def test_a_version_that_is_not_kept_is_named(animals: World) -> None:
    """Pruned, never there, or no version's name at all: a sentence, and nothing is pinned."""
    for name in ("v0009", "v0001-9labels-20250101T000000Z", "../../etc/passwd", "", "v"):
        with pytest.raises(VersionNotFoundError, match="keeps no version"):
            animals.services.versions.use(1, name, by="a test")
    assert animals.registry.pin(1) is None
    with pytest.raises(ProjectNotFoundError, match="backend connect 7"):
        animals.services.versions.use(7, "v0001", by="a test")


def test_a_version_without_a_head_is_refused(world: World) -> None:
    """The first batch was chosen before there was a model."""
    add_cats_and_dogs(world)
    world.label_studio[1].annotations.clear()
    retrain(world)
    with pytest.raises(VersionUnusableError, match="has no head; use a version of kind 'model'"):
        world.services.versions.use(1, "v0001", by="a test")


@pytest.mark.parametrize("damage", ["cut short", "a bit flipped", "record"])
def test_a_damaged_version_is_refused(animals: World, damage: str) -> None:
    """Whatever is damaged, the sentence names the version, and the published one stays."""
    first = animals.registry.versions(1)[-1]
    folder = Path(str(animals.registry.project_directory(1))) / "versions" / first
    path = folder / ("record.json" if damage == "record" else "head.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content[:-9] if damage == "cut short" else b"{" if damage == "record" else bytes(content))
    with pytest.raises(VersionNotFoundError, match=first):
        animals.services.versions.use(1, first, by="a test")
    assert animals.registry.pin(1) is None


def test_a_version_of_another_backbone_is_refused(animals: World) -> None:
    """Its head reads other embeddings; both fingerprints are named."""
    other = build_world(
        animals.services.settings, animals.label_studio, animals.images, TinyBackbone(fingerprint="beef")
    )
    other.embed_all()
    retrain(other)
    with pytest.raises(VersionUnusableError, match=r"embeddings of backbone f00d .*project's are of beef"):
        other.services.versions.use(1, "v0001", by="a test")


def test_a_version_of_other_labels_is_refused(animals: World) -> None:
    """The config offers wolves now; the head would go on saying dog."""
    config = LABEL_CONFIG.replace("dog", "wolf")
    animals.label_studio.change_project(1, label_config=config)
    label(animals, wolf=[20])
    retrain(animals)
    with pytest.raises(VersionUnusableError, match=r"knows the labels 'dog', which the .* no longer offers"):
        animals.services.versions.use(1, "v0001", by="a test")


@pytest.mark.parametrize("why", ["config", "backbone", "deleted"])
def test_a_pin_that_cannot_be_kept_ends_and_says_so(animals: World, why: str) -> None:
    """A queue that stands still helps nobody: training goes on, and the status has the reason."""
    first = str(pin_first(animals).head_of)
    world = animals
    if why == "config":
        animals.label_studio.change_project(1, label_config=LABEL_CONFIG.replace("dog", "wolf"))
        label(animals, wolf=[20])
    elif why == "backbone":
        world = build_world(
            animals.services.settings, animals.label_studio, animals.images, TinyBackbone(fingerprint="beef")
        )
        world.embed_all()
    else:
        for path in (Path(str(animals.registry.project_directory(1))) / "versions" / first).iterdir():
            path.unlink()
        label(animals, cat=[7])
    record = retrain(world)
    assert record.head_of is None
    assert world.registry.pin(1) is None
    assert version_note(world).startswith(f"the pin on {first} has ended, and training goes on: ")


def test_a_damaged_pin_is_none(animals: World) -> None:
    """It is logged, and the project learns on."""
    pin_first(animals)
    (Path(str(animals.registry.project_directory(1))) / "pin.json").write_text('{"version": "../x"}')
    assert animals.registry.pin(1) is None
    assert retrain(animals).head_of is None


def test_without_redis_nothing_is_pinned(animals: World, dead_redis_url: str) -> None:
    """Nobody would do it; the sentence says what is away."""
    other = animals.again(redis_url=dead_redis_url)
    with pytest.raises(RedisUnavailableError):
        other.services.versions.use(1, "v0001", by="a test")
    assert animals.registry.pin(1) is None


def test_a_pin_whose_request_was_lost_is_found_by_the_comparison(animals: World) -> None:
    """Redis was emptied before the worker came to it."""
    animals.services.versions.use(1, "v0001", by="a test")
    animals.empty_queue()
    animals.services.reconciler.reconcile(1)
    assert "retrain(1)" in animals.waiting()
    assert retrain(animals).head_of is not None


# -- chosen in Label Studio -------------------------------------------------------------------------------------------


def choose(world: World, version: str) -> None:
    world.label_studio.change_project(1, model_version=version)


def test_chosen_in_label_studio_is_the_same_as_pinned(animals: World) -> None:
    """Whoever chooses, the version that follows has the same head, window and record."""
    by_command = pin_first(animals)
    animals.services.versions.release(1)
    retrain(animals)
    choose(animals, animals.registry.versions(1)[-1])
    animals.services.reconciler.reconcile(1)
    by_choice = retrain(animals)
    changing = {"version", "created_at", "stage_seconds", "evaluated_version"}
    first, second = (record.to_json() for record in (by_command, by_choice))
    assert {name for name in first if first[name] != second[name]} <= changing
    assert animals.label_studio[1].project.model_version == by_choice.version


def test_a_label_after_the_choice_does_not_undo_it(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes before the comparison, and its webhook tells what the queue is ordered by."""
    animals.services.trainer.retrain(1)  # reads everything, so that the webhook alone is news
    monkeypatch.setattr(module, "LATE_S", 0.0)
    oldest = animals.registry.versions(1)[-1]
    choose(animals, oldest)
    label(animals, cat=[5])
    animals.jobs.record_event(1, event_of_webhook(animals.label_studio.event(1, "ANNOTATION_CREATED", task_id=5)))
    animals.label_studio.asked.clear()
    record = retrain(animals)
    assert "annotated_tasks" not in animals.label_studio.asked
    assert record.head_of == oldest
    pin = animals.registry.pin(1)
    assert pin is not None
    assert pin.by == "Label Studio"


def test_a_webhook_sent_before_a_version_was_published_is_no_choice(animals: World) -> None:
    """Two people submit at once: the second webhook tells of the version before, which is asked of nobody."""
    before = published(animals).version
    label(animals, cat=[5], dog=[18])
    events = [event_of_webhook(animals.label_studio.event(1, "ANNOTATION_CREATED", task_id=n)) for n in (5, 18)]
    animals.services.trainer.retrain(1)
    animals.jobs.request_retrain(1)
    animals.services.trainer.retrain(1)
    for event in events:
        assert event is not None
        assert event["model_version"] == before
        animals.jobs.record_event(1, event)
    animals.label_studio.asked.clear()
    animals.jobs.request_retrain(1, forced=True)
    record = animals.services.trainer.retrain(1)
    assert record is not None
    assert record.head_of is None
    assert animals.registry.pin(1) is None
    assert "project" not in animals.label_studio.asked


def test_a_late_webhook_is_checked_before_it_counts(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It looks like a choice, but Label Studio itself orders by the published version."""
    monkeypatch.setattr(module, "LATE_S", -1.0)
    animals.services.trainer.retrain(1)
    label(animals, cat=[5])
    event = event_of_webhook(animals.label_studio.event(1, "ANNOTATION_CREATED", task_id=5))
    animals.jobs.record_event(1, {**(event or {}), "model_version": animals.registry.versions(1)[-1]})
    assert retrain(animals).head_of is None


def test_the_live_model_chosen_in_label_studio_releases_the_pin(animals: World) -> None:
    """The backend by its title: go on with the newest."""
    animals.services.connector.connect(1)
    pin_first(animals)
    choose(animals, "Active learning")
    animals.services.reconciler.reconcile(1)
    assert animals.registry.pin(1) is None
    record = retrain(animals)
    assert record.head_of is None
    assert animals.label_studio[1].project.model_version == record.version


def test_another_model_s_title_releases_nothing(animals: World) -> None:
    """A name that is neither a version nor this backend is repaired, as without a pin."""
    animals.services.connector.connect(1)
    record = pin_first(animals)
    choose(animals, "Somebody else's model")
    animals.services.reconciler.reconcile(1)
    assert animals.registry.pin(1) is not None
    assert animals.label_studio[1].project.model_version == record.version


def test_a_choice_that_cannot_be_used_is_undone_and_told(animals: World) -> None:
    """A version deleted from disk: the queue follows the published one, and the status says why."""
    oldest = animals.registry.versions(1)[-1]
    animals.registry.prune(1, keep=1)
    choose(animals, oldest)
    animals.services.reconciler.reconcile(1)
    assert animals.registry.pin(1) is None
    assert animals.label_studio[1].project.model_version == published(animals).version
    assert version_note(animals).startswith(
        f"{oldest}, chosen in Label Studio, is not used: project 1 keeps no version"
    )


def test_an_unusable_choice_with_its_predictions_gone_makes_a_version(animals: World) -> None:
    """Label Studio refuses to point the queue at the published version: another one is made."""
    animals.registry.prune(1, keep=1)
    choose(animals, "v0001-6labels-20260101T000000Z")
    animals.label_studio[1].predictions.clear()
    animals.services.reconciler.reconcile(1)
    assert "retrain(1)" in animals.waiting()
    assert animals.jobs.begin_retrain(1).forced
    animals.label_studio.failures["activate_version"] = LabelStudioError("away", status=500)
    with pytest.raises(LabelStudioError):
        animals.services.reconciler.reconcile(1)


def test_the_same_head_chosen_again_makes_no_version(animals: World) -> None:
    """Pinned to the first, a person chooses the first: the queue is pointed at what has its head already."""
    record = pin_first(animals)
    choose(animals, str(record.head_of))
    animals.services.reconciler.reconcile(1)
    assert animals.services.trainer.retrain(1) is None
    assert published(animals).version == record.version == animals.label_studio[1].project.model_version


def test_with_everything_labeled_the_queue_s_version_is_no_choice(animals: World) -> None:
    """The last version has no window, so Label Studio stays at the one before; nobody chose that."""
    label(animals, cat=CATS[4:], dog=[number for number in DOGS[3:] if number != 16])
    record = retrain(animals)
    assert list(record.window) == []
    assert animals.label_studio[1].project.model_version != record.version
    animals.services.reconciler.reconcile(1)
    assert animals.registry.pin(1) is None


# -- listed -----------------------------------------------------------------------------------------------------------


def test_versions_are_listed_with_what_they_are_used_for(animals: World) -> None:
    """Newest first; the pinned one and the published one are marked; one that is damaged says so."""
    pin_first(animals)
    listed = animals.services.versions.listed(1)
    assert [version_number(item["version"]) for item in listed] == [3, 2, 1]
    assert [(item["published"], item["pinned"]) for item in listed] == [(True, False), (False, False), (False, True)]
    assert [item["labels_used"] for item in listed] == [6, 8, 6]
    assert listed[0]["head_of"] == listed[2]["version"]
    damaged = Path(str(animals.registry.project_directory(1))) / "versions" / listed[1]["version"] / "record.json"
    damaged.write_text("{}")
    again = animals.services.versions.listed(1)
    assert "damaged" in again[1]["error"]
    assert again[0] == listed[0]


def test_accuracy_is_listed_only_of_a_version_s_own_evaluation(animals: World) -> None:
    """Until then its record has that of the version before, which is not its own."""
    label(animals, cat=[5])
    animals.services.trainer.retrain(1)
    newest, before = animals.services.versions.listed(1)[:2]
    assert newest["accuracy"] is None
    assert before["accuracy"] is not None


def test_a_version_is_found_by_its_number(animals: World) -> None:
    """v0001 and the whole name are the same; v000 and v00011 are none."""
    first = animals.registry.versions(1)[-1]
    assert animals.services.versions.find(1, "v0001") == animals.services.versions.find(1, first) == first
    for name in ("v000", "v00011", "0001", "v0001-"):
        with pytest.raises(VersionNotFoundError):
            animals.services.versions.find(1, name)
    assert animals.services.versions.described(1, "v0001")["labels_used"] == 6


def test_a_pin_is_kept_for_every_process(animals: World) -> None:
    """Who, since when, which."""
    first = animals.registry.versions(1)[-1]
    animals.registry.set_pin(1, Pin(first, "2026-01-01T00:00:00+00:00", "API"))
    assert animals.again().registry.pin(1) == Pin(first, "2026-01-01T00:00:00+00:00", "API")
    animals.registry.release_pin(1)
    animals.registry.release_pin(1)
    assert animals.again().registry.pin(1) is None
