"""The validation split: never selected, never trained on, measured with every version, and cheap to know."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import World, build_world, label, retrain, rgb

from backend.adapters.embedding_store import EmbeddingTable
from backend.config import Settings
from backend.errors import SettingsError
from backend.learning.features import plain_space
from backend.learning.head import Head
from backend.learning.intervals import wilson_interval
from backend.loop.evaluate import CROSS_VALIDATED
from backend.loop.score import LAST
from backend.loop.validation import Measurement, describe, keep_aside, measure
from backend.schema import (
    AnnotatedTask,
    Annotation,
    Task,
    TrainingLabels,
    ValidationFilter,
    ValidationSplit,
)

REDS = [rgb(255 - 20 * number, 0, 9 * number) for number in range(6)]
GREENS = [rgb(0, 255 - 20 * number, 9 * number) for number in range(6)]
IN_VALIDATION = (5, 6, 11, 12)
"""Two red tasks of 1 to 6, two green ones of 7 to 12."""

BY_DATA = ValidationFilter("split", "val")
BY_TRUTH = ValidationFilter()


@pytest.fixture
def split(world: World) -> World:
    """Project 1: six red and six green tasks, all embedded; two of each have data.split = val."""
    world.label_studio.add_project(1, [*REDS, *GREENS])
    for task_id in range(1, 13):
        world.label_studio[1].fields[task_id] = {"split": "val" if task_id in IN_VALIDATION else "train"}
    built = world.again(validation_filter=BY_DATA, window_size=20, seed_size=20)
    built.embed_all()
    return built


# -- the setting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ground_truth", BY_TRUTH),
        ("data.split=val", BY_DATA),
        ("data. split = val ", BY_DATA),
        ("data.url=a=b", ValidationFilter("url", "a=b")),
        ("data.meta.split=val", ValidationFilter("meta.split", "val")),
    ],
)
def test_a_filter_is_ground_truth_or_a_field_of_the_data(text: str, expected: ValidationFilter) -> None:
    """The value is all behind the first `=`; a dot belongs to the field's name; what is shown can be set again."""
    assert Settings.from_mapping({"VALIDATION_FILTER": text}).validation_filter == expected
    assert ValidationFilter.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["val", "split=val", "data.split", "data.=val", "data.split=", "Ground_Truth", "data."]
)
def test_a_malformed_filter_names_what_came_and_what_is_expected(text: str) -> None:
    """One line is enough to correct it."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_mapping({"VALIDATION_FILTER": text})
    expected = f"VALIDATION_FILTER: {text!r} is not ground_truth, or data.FIELD=VALUE such as data.split=val"
    assert str(caught.value).splitlines()[1].strip() == expected


def test_without_the_setting_there_is_no_split() -> None:
    """The default, and what an empty value means."""
    assert Settings().validation_filter is None
    assert Settings.from_mapping({"VALIDATION_FILTER": ""}).validation_filter is None


@pytest.mark.parametrize(
    ("value", "fields", "holds"),
    [
        ("val", {"split": "val"}, True),
        ("val", {"split": "train"}, False),
        ("val", {"split": "Val"}, False),
        ("val", {}, False),
        ("val", {"split": None}, False),
        ("null", {"split": None}, True),
        ("3", {"split": 3}, True),
        ("3", {"split": "3"}, True),
        ("3", {"split": 3.5}, False),
        ("true", {"split": True}, True),
        ("1", {"split": True}, False),
        ("val", {"split": ["val"]}, False),
    ],
)
def test_values_are_compared_as_text_or_as_json_writes_them(value: str, fields: dict[str, Any], holds: bool) -> None:
    """A number or a switch of the data equals what a person would write."""
    assert ValidationFilter("split", value).holds(fields) is holds


# -- which tasks ------------------------------------------------------------------------------------------------------


def annotated(task_id: int, *, truth: bool = False, skipped: bool = False, **fields: Any) -> AnnotatedTask:
    return AnnotatedTask(Task(task_id, "x", fields), [Annotation(task_id, [], skipped, truth, "")])


LABELS = TrainingLabels({1: "cat", 2: "dog", 3: "cat"}, frozenset({1, 2, 3}), frozenset({4}), {})


def test_ground_truth_keeps_starred_tasks_aside() -> None:
    """Task 2 is marked; a mark on a skip (task 4) is none."""
    items = [annotated(1), annotated(2, truth=True), annotated(3), annotated(4, truth=True, skipped=True)]
    kept = keep_aside(LABELS, items, BY_TRUTH, None, [1, 2, 3, 4, 5])
    assert (kept.labels, kept.validation, kept.reserved) == ({1: "cat", 3: "cat"}, {2: "dog"}, frozenset({2}))
    assert (kept.answered, kept.skipped) == (LABELS.answered, LABELS.skipped)


def test_unlabeled_tasks_of_the_split_are_reserved_too() -> None:
    """Of the listing: 3 (labeled), 7 and 8. Newer than it: 10, of which nobody knows; 9 is known to be none."""
    items = [annotated(1), annotated(2), annotated(3, split="val")]
    kept = keep_aside(LABELS, items, BY_DATA, ValidationSplit("", frozenset({3, 7, 8}), 9), [1, 2, 3, 7, 8, 9, 10])
    assert kept.reserved == {3, 7, 8, 10}
    assert (kept.labels, kept.validation) == ({1: "cat", 2: "dog"}, {3: "cat"})


def test_the_annotations_know_better_than_an_older_listing() -> None:
    """Task 2 was taken out of the split and 3 put in since all tasks were listed."""
    items = [annotated(1), annotated(2, split="train"), annotated(3, split="val")]
    kept = keep_aside(LABELS, items, BY_DATA, ValidationSplit("", frozenset({2}), 9), [])
    assert (kept.labels, kept.validation, kept.reserved) == ({1: "cat", 2: "dog"}, {3: "cat"}, {3})


# -- measuring --------------------------------------------------------------------------------------------------------


def table(*rows: tuple[float, float]) -> EmbeddingTable:
    ids = np.arange(1, len(rows) + 1)
    return EmbeddingTable(ids, np.array(rows, dtype=np.float16), {}, dict.fromkeys(ids.tolist(), "x"), 1)


HEAD = Head(("cat", "dog"), np.eye(2, dtype=np.float32), np.zeros(2, np.float32), plain_space(2), strength=1.0)


def test_accuracy_is_the_share_of_tops_that_are_the_label() -> None:
    """Tops: cat, cat, dog; labels: cat, dog, wolf. Task 9 has no embedding. One of three, wolf unknown."""
    labels = TrainingLabels({}, frozenset(), frozenset(), {}, {1: "cat", 2: "dog", 3: "wolf", 9: "cat"})
    found = measure(HEAD, table((1, 0), (1, 0), (0, 1)), labels)
    assert found == Measurement(3, 1, {"wolf": 1}, 1)
    assert found.accuracy == pytest.approx(1 / 3)
    assert found.interval == wilson_interval(1, 3)
    assert found.kind == "measured on 3 validation tasks"
    assert describe(BY_DATA, labels, None, found, n_others=1) == (
        "1 of 3 validation tasks have a class no training label has yet and count as wrong: 'wolf' (1)"
    )


def test_nothing_embedded_is_no_measurement() -> None:
    """Never a made-up number."""
    labels = TrainingLabels({}, frozenset(), frozenset(), {}, {9: "cat"})
    assert measure(HEAD, table((1, 0)), labels) is None
    assert measure(HEAD, table((1, 0)), LABELS) is None


# -- in the loop ------------------------------------------------------------------------------------------------------


def test_the_first_batch_and_the_window_hold_no_validation_task(split: World) -> None:
    """A window as large as the project: all tasks but the four."""
    seed = retrain(split)
    rest = set(range(1, 13)) - set(IN_VALIDATION)
    assert set(seed.seed_task_ids) == set(seed.window) == rest
    assert seed.pool_size == 8
    label(split, cat=[1, 2], dog=[7, 8])
    model = retrain(split)
    assert (model.kind, set(model.window)) == ("model", rest - {1, 2, 7, 8})
    assert not {row["task"] for row in split.label_studio[1].predictions} & set(IN_VALIDATION)


def test_validation_labels_measure_and_do_not_train(split: World) -> None:
    """Wrong labels on the split change the accuracy, not the head: 'dog' on two red tasks is half wrong."""
    label(split, cat=[1, 2], dog=[7, 8])
    without = retrain(split)
    head_without = split.registry.head(without)
    assert (without.accuracy_kind, without.accuracy_interval) == (CROSS_VALIDATED, None)
    assert without.accuracy == without.cross_validated_accuracy
    assert without.validation_note is not None
    assert "none of the 4 tasks with data.split=val has a usable label" in without.validation_note
    assert (without.validation_tasks, without.validation_labels) == (4, 0)

    label(split, dog=IN_VALIDATION)
    record = retrain(split)
    assert (record.accuracy, record.accuracy_kind) == (0.5, "measured on 4 validation tasks")
    assert record.accuracy_interval == list(wilson_interval(2, 4))
    assert (record.labels_used, record.labels_by_class) == (4, {"cat": 2, "dog": 2})
    assert (record.validation_filter, record.validation_labels, record.validation_note) == ("data.split=val", 4, None)
    assert record.cross_validated_accuracy == without.cross_validated_accuracy
    head = split.registry.head(record)
    assert head is not None
    assert head_without is not None
    np.testing.assert_array_equal(head.weights, head_without.weights)


def test_a_validation_task_that_is_opened_shows_no_prediction(split: World) -> None:
    """Label Studio asks for one when somebody opens a task: 5 is in the split, 3 is not, 4 has no such field.

    The answer would be a pre-label, and its score would put the task into the queue.
    """
    label(split, cat=[1, 2], dog=[7, 8])
    record = retrain(split)
    asked: list[dict[str, Any]] = [{"id": task_id, "data": {"image": REDS[task_id - 1]}} for task_id in (5, 3, 4)]
    asked[0]["data"]["split"], asked[1]["data"]["split"] = "val", "train"
    config = split.label_studio[1].project.label_config
    kept_aside, other, bare = split.services.predictor.predict(1, config, asked)
    assert kept_aside == {"result": [], "score": LAST, "model_version": record.version}
    assert [answer["result"][0]["value"]["choices"] for answer in (other, bare)] == [["cat"], ["cat"]]
    without = split.again(validation_filter=None)
    retrain(without)
    assert all(answer["result"] for answer in without.services.predictor.predict(1, config, asked))


def test_a_class_only_the_split_has_counts_as_wrong_and_is_named(split: World) -> None:
    """'dog' is not in the training labels of a three-class project."""
    config = split.label_studio[1].project.label_config.replace(
        '<Choice value="dog"/>', '<Choice value="dog"/><Choice value="wolf"/>'
    )
    split.label_studio.change_project(1, label_config=config)
    label(split, cat=[1, 2, 5, 6], dog=[7, 8, 11], wolf=[12])
    record = retrain(split)
    assert record.accuracy == 0.75
    assert list(record.classes) == ["cat", "dog"]
    assert record.validation_note is not None
    assert record.validation_note.endswith("count as wrong: 'wolf' (1)")


def test_a_split_nobody_is_in_is_said(split: World) -> None:
    """A mistyped value breaks nothing: the accuracy is cross-validated, and the note says that no task matches."""
    other = split.again(validation_filter=ValidationFilter("split", "vla"))
    label(other, cat=[1, 2], dog=[7, 8])
    record = retrain(other)
    assert record.accuracy_kind == CROSS_VALIDATED
    assert record.validation_note is not None
    assert "no task has VALIDATION_FILTER's data.split=vla" in record.validation_note
    assert len(record.window) == 8


def test_a_project_that_is_all_validation_has_an_empty_window(split: World) -> None:
    """Nothing to select, nothing to train on: a version without a window, no error."""
    for task_id in range(1, 13):
        split.label_studio[1].fields[task_id] = {"split": "val"}
    label(split, cat=[1], dog=[7])
    record = retrain(split)
    assert (record.kind, record.labels_used, list(record.window), record.accuracy) == ("seed", 0, [], None)
    assert record.validation_note == (
        "no usable task is outside data.split=val, so there is none to label and train on: narrow VALIDATION_FILTER"
    )


def test_a_labeled_split_waits_for_a_model(split: World) -> None:
    """Two validation tasks are labeled, nothing else: it is said what they wait for."""
    label(split, cat=[5], dog=[11])
    assert retrain(split).validation_note == (
        "2 validation tasks are labeled; they are measured once two classes have training labels and the images are "
        "embedded"
    )


def test_ground_truth_measures_starred_tasks(split: World) -> None:
    """Marked by a person: measured on from the next version on; unmarked tasks train."""
    other = split.again(validation_filter=BY_TRUTH)
    label(other, cat=[1, 2], dog=[7, 8])
    assert "no task has a ground-truth annotation" in str(retrain(other).validation_note)
    other.label_studio.annotate(1, 3, "cat", truth=True)
    record = retrain(other)
    assert (record.accuracy, record.accuracy_kind, record.labels_used) == (1.0, "measured on 1 validation tasks", 4)


def test_changing_the_filter_makes_a_new_version(split: World) -> None:
    """Restarted with another filter, with none, with another target: each time once."""
    label(split, cat=[1, 2, 5], dog=[7, 8, 11])
    retrain(split)
    assert split.services.trainer.retrain(1) is None
    for changes in ({"validation_filter": BY_TRUTH}, {"validation_filter": None}, {"target_accuracy": 0.9}):
        other = split.again(**changes)
        record = retrain(other)
        assert record.validation_filter == (
            str(BY_TRUTH) if changes.get("validation_filter") else record.validation_filter
        )
        assert other.services.trainer.retrain(1) is None


def test_a_retrain_reads_the_pool_once_after_the_filter_changed_and_never_again(split: World) -> None:
    """Every further retrain makes the requests it made without a split."""
    label(split, cat=[1, 2], dog=[7, 8])
    split.label_studio.asked.clear()
    retrain(split)
    assert split.label_studio.asked.count("tasks") == 1
    split.label_studio.asked.clear()
    label(split, cat=[3, 5])
    assert split.services.trainer.retrain(1) is not None
    assert split.label_studio.asked == ["project", "annotated_tasks", "push_predictions", "activate_version"]


def test_planning_the_embedding_lists_the_split_without_a_request_of_its_own(split: World) -> None:
    """Tasks are listed there anyway; the retrain after it asks for none."""
    split.label_studio.asked.clear()
    split.services.embedder.plan(1)
    assert split.label_studio.asked.count("tasks_after") == 1
    assert split.registry.validation_split(1) == ValidationSplit("data.split=val", frozenset(IN_VALIDATION), 12)
    retrain(split)
    assert split.label_studio.asked.count("tasks_after") == 1


def test_a_task_put_into_the_split_leaves_the_window(split: World) -> None:
    """Its data is edited in Label Studio: the next plan sees it and asks for a retrain."""
    assert 3 in retrain(split).window
    split.label_studio[1].fields[3] = {"split": "val"}
    split.empty_queue()
    split.services.embedder.plan(1)
    assert "retrain(1)" in split.waiting()
    assert 3 not in retrain(split).window


def test_a_new_task_waits_until_it_is_known_whether_it_is_validation(split: World) -> None:
    """Imported and embedded for a prediction before the tasks are listed again: not in the window until then."""
    label(split, cat=[1, 2], dog=[7, 8])
    retrain(split)
    for task_id, kind in ((13, "val"), (14, "train")):
        split.label_studio[1].tasks[task_id] = rgb(100, 100 + task_id)
        split.label_studio[1].fields[task_id] = {"split": kind}
    split.embed_all()
    assert not {13, 14} & set(retrain(split).window)
    split.services.embedder.plan(1)
    window = set(retrain(split).window)
    assert 14 in window
    assert 13 not in window


def test_a_damaged_list_of_the_split_is_made_again(split: World) -> None:
    """Half a file, or one of another release: the tasks are listed once more."""
    retrain(split)
    path = split.registry.project_directory(1) / "validation_split.json"
    for damage in ("{", "[]", '{"filter": "data.split=val"}', '{"filter": 1, "task_ids": ["x"], "newest": 3}'):
        path.write_text(damage)
        label(split, cat=[1])
        assert not set(retrain(split).window) & set(IN_VALIDATION)


def test_a_validation_label_before_its_embedding_is_embedded_in_the_job(world: World) -> None:
    """People label the split while images are still embedded: it is measured all the same."""
    world.label_studio.add_project(1, [*REDS[:2], *GREENS[:2], REDS[3], "broken:6"])
    for task_id in (5, 6):
        world.label_studio[1].fields[task_id] = {"split": "val"}
    built = build_world(
        world.again(validation_filter=BY_DATA).services.settings, world.label_studio, world.images, world.backbone
    )
    label(built, cat=[1, 2, 5, 6], dog=[3, 4])
    record = retrain(built)
    assert (record.accuracy, record.validation_labels, record.labels_used) == (1.0, 1, 4)
    assert "damaged" in record.ignored_labels["6"]
