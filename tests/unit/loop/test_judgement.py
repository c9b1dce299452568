"""What an evaluation shows besides its figures, through the evaluator and by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fakes import CATS, DOGS, World, add_cats_and_dogs, label, retrain

from backend.labels import Label
from backend.learning.head import HeadSettings
from backend.loop.judgement import (
    NO_SPLIT,
    OUT_OF_FOLD,
    JudgedImages,
    judgement_fields,
    predicted_counts,
    random_order,
)
from backend.schema import TrainingLabels, ValidationFilter, VersionRecord


@pytest.fixture
def animals(world: World) -> World:
    """Project 1: twelve cats and twelve dogs, three of each labeled."""
    add_cats_and_dogs(world)
    return world


@pytest.fixture
def split(animals: World) -> World:
    """The same with 20 tasks kept aside, all of them labeled, and the other four left."""
    kept = animals.label_studio[1]
    kept.fields = {task_id: {"split": "val"} for task_id in range(1, 25) if task_id not in (1, 2, 13, 14)}
    label(animals, cat=CATS[3:], dog=DOGS[3:])
    return animals.again(validation_filter=ValidationFilter("split", "val"))


def test_confusion_and_calibration_by_hand() -> None:
    """A cat that is told with 0.9, a dog taken for a cat with 0.6, and a fox, which no head knows, taken for one."""
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]])
    found = judgement_fields(JudgedImages(["cat", "dog", "fox"], ("cat", "dog"), probabilities, "three images"))
    assert found["confusion"] == {
        "labels": ["cat", "dog", "fox"], "counts": [[1, 0, 0], [1, 0, 0], [1, 0, 0]], "basis": "three images",
    }  # fmt: skip
    calibration = found["calibration"]
    assert [(item["confidence"], item["accuracy"], item["n"]) for item in calibration["bins"]] == [
        (0.6, 0.0, 1), (0.7, 0.0, 1), (0.9, 1.0, 1),
    ]  # fmt: skip
    assert calibration["error"] == pytest.approx((0.6 + 0.7 + 0.1) / 3, abs=1e-6)
    assert found["label_figures"] is None


def test_sets_of_labels_are_judged_label_by_label() -> None:
    """Of three images with cat and dog: both right; the dog missed; a fox, which no head knows, missed and a cat seen.

    By hand: cat is right in 2 of 3 images, dog in 2, fox in 2; F1 of cat 2·1 / (2 + 1), of dog 2·1 / (1 + 2), of fox 0.
    """
    probabilities = np.array([[0.9, 0.8], [0.1, 0.4], [0.7, 0.3]])
    given: list[Label] = [("cat", "dog"), ("dog",), ("fox",)]
    found = judgement_fields(JudgedImages(given, ("cat", "dog"), probabilities, "three images", 0.5))
    assert found["confusion"] is None
    figures = found["label_figures"]
    assert figures["exact_match"] == pytest.approx(1 / 3, abs=1e-6)
    assert figures["label_accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0) / 3, abs=1e-6)
    assert [(item["label"], item["n_having"], item["average_precision"]) for item in figures["labels"]] == [
        ("cat", 1, 1.0), ("dog", 2, 1.0), ("fox", 1, pytest.approx(1 / 3, abs=1e-6)),
    ]  # fmt: skip
    assert (figures["threshold"], figures["basis"]) == (0.5, "three images")
    # Confidences are 0.9 · 0.8, 0.9 · 0.6 and 0.7 · 0.7; only the first set is right.
    assert [(item["confidence"], item["accuracy"]) for item in found["calibration"]["bins"]] == [
        (0.49, 0.0), (0.54, 0.0), (0.72, 1.0),
    ]  # fmt: skip


def test_without_images_nothing_is_said() -> None:
    """No head, or too few labels to hold any out."""
    assert judgement_fields(None) == {"confusion": None, "calibration": None, "label_figures": None}


def test_predictions_are_counted_by_class() -> None:
    """A class that is never predicted counts 0."""
    assert predicted_counts(["a", "b"], np.array([[0.9, 0.1], [0.8, 0.2]])) == {"a": 2, "b": 0}
    assert predicted_counts(["a", "b"], np.empty((0, 2))) == {"a": 0, "b": 0}
    assert predicted_counts(["a", "b"], np.array([[0.9, 0.6], [0.6, 0.2]]), 0.6) == {"a": 2, "b": 1}


def test_labels_are_judged_out_of_fold(animals: World) -> None:
    """Six labels, each judged by a head that had not learned it; the 18 images left are counted by prediction."""
    record = retrain(animals)
    assert record.confusion is not None
    assert record.confusion["basis"] == OUT_OF_FOLD.format(n=6)
    assert [sum(row) for row in record.confusion["counts"]] == [3, 3]
    assert record.calibration is not None
    assert sum(item["n"] for item in record.calibration["bins"]) == 6
    assert record.predicted_by_class is not None
    assert sum(record.predicted_by_class.values()) == record.pool_size == 18


def test_validation_images_judge_where_there_are_some(split: World) -> None:
    """Twenty that the head has not learned."""
    record = retrain(split)
    assert record.confusion is not None
    assert "the 20 validation images" in record.confusion["basis"]
    assert sum(map(sum, record.confusion["counts"])) == 20


def test_every_image_of_the_window_has_its_reason(animals: World) -> None:
    """But for those of the first batch, which no head chose."""
    record = retrain(animals)
    by_head = [task_id for task_id in record.window if task_id not in record.seed_task_ids]
    assert by_head
    assert {int(task_id) for task_id in record.reasons} == set(by_head)
    for reason in record.reasons.values():
        assert reason["factor"] in ("uncertain", "typical", "different")
        assert 0 <= reason["share"] <= 1


def test_a_skipped_image_comes_last_for_that(animals: World) -> None:
    """Seventeen labels more and the one that is left was skipped."""
    label(animals, cat=CATS[3:], dog=DOGS[3:-1])
    animals.label_studio.annotate(1, DOGS[-1], None, skipped=True)
    record = retrain(animals)
    assert list(record.window) == [DOGS[-1]]
    assert record.reasons == {str(DOGS[-1]): {"factor": "skipped"}}


def test_until_a_version_is_evaluated_it_shows_what_the_one_before_showed(animals: World) -> None:
    """No figure disappears for a moment after each label; not with another backbone's."""
    before = retrain(animals)
    label(animals, cat=[4])
    after = animals.services.trainer.retrain(1)
    assert after is not None
    for name in ("confusion", "calibration", "predicted_by_class", "random_order", "reasons"):
        assert getattr(after, name) == getattr(before, name) is not None


def test_a_pinned_version_shows_what_its_own_labels_said(animals: World) -> None:
    """Heads trained on later labels are not judged in its place; the images still to label are counted anew."""
    before = retrain(animals)
    animals.services.versions.use(1, before.version, by="a test")
    label(animals, cat=[4], dog=[16])
    after = retrain(animals)
    assert after.head_of == before.version
    assert (after.confusion, after.calibration) == (before.confusion, before.calibration)
    assert after.predicted_by_class is not None
    assert sum(after.predicted_by_class.values()) == 16


def test_a_record_of_an_earlier_release_is_read(animals: World) -> None:
    """It has none of this."""
    raw = retrain(animals).to_json()
    for name in ("confusion", "calibration", "predicted_by_class", "random_order", "reasons", "last_answer_at"):
        del raw[name]
    record = VersionRecord.from_json(raw)
    assert (record.confusion, record.random_order, record.reasons) == (None, None, {})


def test_the_newest_answer_s_time_is_kept(animals: World) -> None:
    """That of the last of six annotations."""
    record = retrain(animals)
    last = max(one.updated_at for given in animals.label_studio[1].annotations.values() for one in given)
    assert record.last_answer_at == last


# -- random order -----------------------------------------------------------------------------------------------------


def measured(
    world: World, previous: Any = None, *, n_labels: int = 100, clock: Any = lambda: 0.0, **options: Any
) -> Any:
    """Random order's curve of the animals, all 24 of them known."""
    table = world.table()
    truth = {task_id: "cat" if task_id in CATS else "dog" for task_id in table.task_ids.tolist()}
    labels = TrainingLabels({}, frozenset(), frozenset(), {}, validation=truth)
    pool = world.services.inputs.read(1, _watch()).pool
    given = {"interrupted": lambda: False, **options}
    return random_order(
        previous, pool, table, labels, HeadSettings(), n_labels=n_labels, random_state=0, clock=clock, **given
    )


def _watch() -> Any:
    from backend.loop.rounds import Stopwatch

    return Stopwatch()


def test_random_order_is_measured_on_validation_images(animals: World) -> None:
    """Twenty-four: up to twelve labels, the other half judges; two colours are told apart after ten."""
    found = measured(animals)
    assert [point["labels_used"] for point in found["points"]] == [10, 11, 12]
    assert all(point["accuracy"] > 0.9 for point in found["points"])
    assert "24 labeled validation images" in found["note"]


def test_it_is_measured_again_only_with_a_tenth_more(animals: World) -> None:
    """The same object as before: nothing was fitted."""
    found = measured(animals)
    assert measured(animals, found) is found
    fewer = {**found, "points": found["points"][:1]}
    assert measured(animals, fewer) == found
    assert measured(animals, {"points": "damaged"}) == found


def test_it_takes_no_longer_than_it_may(animals: World) -> None:
    """A clock on which a second passes at every look: not one draw is ended, and that is said."""
    seconds = iter(range(1000))
    found = measured(animals, clock=lambda: float(next(seconds)))
    assert found["points"] == []
    assert "1.5 s" in found["note"]


def test_a_label_interrupts_it(animals: World) -> None:
    """What was known before stays."""
    before = {"n_labels": 1, "n_validation": 24, "points": [], "note": "before"}
    assert measured(animals, before, interrupted=lambda: True) is before
    assert measured(animals, None, interrupted=lambda: True) is None


def test_without_a_split_it_is_unknown(animals: World) -> None:
    """A guess would mislead; with too few images how many it takes is said."""
    record = retrain(animals)
    assert record.random_order is not None
    assert (record.random_order["points"], record.random_order["note"]) == ([], NO_SPLIT)
    few = measured(animals, n_labels=6)
    assert few["points"] == []
    assert "it takes 10 labels" in few["note"]


def test_the_evaluation_keeps_it(split: World) -> None:
    """Four labels are too few yet: said so, with the number of validation images."""
    record = retrain(split)
    assert record.random_order is not None
    assert record.random_order["n_validation"] == 20
    assert replace(record, random_order=None) != record
