"""A project whose images may have several labels, from the first batch to what its pages show."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import World, retrain, rgb

from backend import worker
from backend.config import Settings
from backend.errors import SelectionError, VersionUnusableError
from backend.labels import text_of
from backend.learning import label_sets
from backend.learning.acquisition import utilities
from backend.learning.head import Head
from backend.loop.map import MOST_SETS, OTHER_SETS, PREDICTIONS, frequent_sets
from backend.loop.rounds import Stopwatch
from backend.loop.score import scores_of
from backend.loop.simulate import LabeledImages, simulate
from backend.loop.train import _chosen
from backend.schema import TrainingLabels, ValidationFilter, VersionRecord

COLOURS = '<Choice value="red"/><Choice value="green"/>'
SEVERAL = (
    '<View><Image name="image" value="$image"/>'
    f'<Choices name="choice" toName="image" choice="multiple">{COLOURS}</Choices></View>'
)
SINGLE = SEVERAL.replace(' choice="multiple"', "")

TRUTH: dict[int, tuple[str, ...]] = {}
"""Task id → what is on its image: six each of red, green, both (yellow) and neither (blue)."""
PICTURES = []
for number in range(6):
    for colours, picture in (
        (("red",), rgb(220 - 8 * number, 10 + 4 * number, 30)),
        (("green",), rgb(10 + 4 * number, 220 - 8 * number, 30)),
        (("green", "red"), rgb(220 - 8 * number, 220 - 6 * number, 10)),
        ((), rgb(20 + number, 20 + 2 * number, 120 - 8 * number)),
    ):
        TRUTH[len(TRUTH) + 1] = colours
        PICTURES.append(picture)


@pytest.fixture
def colours(world: World) -> World:
    """Project 1: 24 tasks, all embedded, none labeled."""
    world.label_studio.add_project(1, PICTURES, label_config=SEVERAL)
    world.embed_all()
    return world


def answer(world: World, *task_ids: int) -> None:
    for task_id in task_ids:
        world.label_studio.annotate(1, task_id, TRUTH[task_id])


def published_head(world: World) -> Head:
    published = world.services.predictor.published(1)
    assert published is not None
    assert published[1] is not None
    return published[1]


def inputs_labels(world: World) -> TrainingLabels:
    return world.services.inputs.read(1, Stopwatch()).labels


# -- training and predicting ------------------------------------------------------------------------------------------


def test_images_without_a_label_are_answers(colours: World) -> None:
    """Two different answers, one of them none of these, are enough for a head; equal ones are not."""
    answer(colours, 4, 8)
    record = retrain(colours)
    assert (record.kind, record.labels_used, record.labels_by_class, record.threshold) == ("seed", 2, {}, None)
    answer(colours, 1)
    record = retrain(colours)
    assert (record.kind, record.labels_used, list(record.classes)) == ("model", 3, ["red"])
    assert record.labels_by_class == {"red": 1}
    assert record.threshold == 0.5


def test_sets_are_learned_published_and_read_back(colours: World) -> None:
    """Twelve answers tell the other twelve images, in another process too."""
    answer(colours, *range(1, 13))
    record = retrain(colours)
    assert record.labels_by_class == {"red": 6, "green": 6}
    again = colours.again()
    head = published_head(again)
    assert head.threshold == record.threshold
    table = again.table()
    found = head.predicted(head.predict_proba(table.embeddings[12:]))
    assert label_sets.share_right(found, [TRUTH[task_id] for task_id in range(13, 25)]) > 0.9


def test_the_next_head_has_the_threshold_that_was_chosen(colours: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evaluation of one version chooses it for the one after."""
    monkeypatch.setattr(label_sets, "THRESHOLDS", (0.6,))
    answer(colours, *range(1, 13))
    record = retrain(colours)
    assert record.chosen is not None
    assert record.chosen["threshold"] == 0.6
    answer(colours, 13)
    record = retrain(colours)
    assert record.threshold == published_head(colours).threshold == 0.6


def test_predictions_carry_all_labels_and_how_likely_each_is(colours: World) -> None:
    """What Label Studio gets of the window, and what it is answered when it asks: the same."""
    answer(colours, *range(1, 13))
    record = retrain(colours)
    head = published_head(colours)
    table = colours.table()
    rows = colours.label_studio[1].predictions
    current = {row["task"]: row for row in rows if row["model_version"] == record.version}
    assert set(current) == set(record.window)
    asked = colours.services.predictor.predict(
        1, SEVERAL, [{"id": task_id, "data": {"image": PICTURES[task_id - 1]}} for task_id in record.window]
    )
    for task_id, told in zip(record.window, asked, strict=True):
        probabilities = head.predict_proba(table.embeddings[table.rows_of([task_id])])
        (label,) = head.predicted(probabilities)
        assert told["result"] == current[task_id]["result"]
        if not label:
            assert told["result"] == []
            continue
        (region,) = told["result"]
        assert set(region["value"]["choices"]) == set(label)
        assert region["meta"]["confidence"] == pytest.approx(
            dict(zip(head.classes, probabilities[0].tolist(), strict=True)), abs=1e-3
        )
        assert region["score"] == pytest.approx(float(head.confidence(probabilities)[0]), abs=1e-3)


def test_the_score_is_that_of_the_label_most_in_doubt(colours: World) -> None:
    """0 is labeled first: (0.5, 1) before (0.6, 0.9) before (0, 1), whatever the strategy."""
    answer(colours, 1, 2, 3, 4)
    retrain(colours)
    probabilities = np.array([[0.0, 1.0], [0.5, 1.0], [0.6, 0.9]])
    for name in ("information_density", "margin", "entropy", "least_confidence"):
        scores = scores_of(published_head(colours), probabilities, name).queue_scores
        assert np.argsort(scores).tolist() == [1, 2, 0]
    np.testing.assert_allclose(utilities("margin", probabilities, of_sets=True), [0, 1, 0.8])


def test_pre_labels_are_shown_where_the_whole_set_is_likely(colours: World) -> None:
    """By the product over the labels, not by the likeliest label."""
    world = colours.again(prelabel_from=0.9)
    answer(world, *range(1, 13))
    retrain(world)
    answer(world, 13)
    record = retrain(world)
    head, table = published_head(world), world.table()
    rows = [row for row in world.label_studio[1].predictions if row["model_version"] == record.version]
    assert record.prelabels_from == 0.9
    for row in rows:
        probabilities = head.predict_proba(table.embeddings[table.rows_of([row["task"]])])
        is_sure = head.confidence(probabilities)[0] >= 0.9
        assert bool(row["result"]) == bool(is_sure and head.predicted(probabilities)[0])


# -- evaluation -------------------------------------------------------------------------------------------------------


def test_accuracy_is_the_share_of_sets_that_are_right(colours: World) -> None:
    """Cross-validated; beside it each label by itself."""
    answer(colours, *range(1, 17))
    record = retrain(colours)
    assert record.accuracy is not None
    assert record.confusion is None
    figures = record.label_figures
    assert figures is not None
    assert record.accuracy == record.cross_validated_accuracy == pytest.approx(figures["exact_match"], abs=1e-6)
    assert figures["label_accuracy"] >= figures["exact_match"]
    assert record.accuracy_kind is not None
    assert record.accuracy_kind.endswith("; an image is right if all its labels are")
    assert record.forecast is not None
    assert "all labels of an image are right" in record.forecast["basis"]
    assert [item["label"] for item in figures["labels"]] == ["green", "red"]
    assert record.predicted_by_class is not None
    assert set(record.predicted_by_class) == {"green", "red"}
    assert json.loads(json.dumps(record.to_json(), allow_nan=False)) == record.to_json()
    assert colours.services.status.project(1)["label_figures"] == figures


def test_accuracy_is_measured_on_the_validation_split(colours: World) -> None:
    """Whole sets, by hand; a label that no training image has makes every image that has it wrong, and is named."""
    kept = colours.label_studio[1]
    kept.fields = {task_id: {"split": "val"} for task_id in range(13, 25)}
    world = colours.again(validation_filter=ValidationFilter("split", "val"))
    answer(world, 1, 4, 5, 8, *range(13, 25))
    record = retrain(world)
    head, table = published_head(world), world.table()
    found = head.predicted(head.predict_proba(table.embeddings[12:]))
    right = [guess == TRUTH[task_id] for task_id, guess in enumerate(found, start=13)]
    assert record.accuracy == pytest.approx(np.mean(right))
    assert record.accuracy_kind == "measured on 12 validation tasks; an image is right if all its labels are"
    assert record.validation_note is not None
    assert "6 of 12 validation tasks have a class no training label has yet" in record.validation_note
    assert "'green' (6)" in record.validation_note
    assert record.label_figures is not None
    green = next(item for item in record.label_figures["labels"] if item["label"] == "green")
    assert (green["n_having"], green["f1"]) == (6, 0.0)


def test_what_random_order_would_have_given_is_told_of_sets(colours: World) -> None:
    """As for one label per image: on the validation images, in accuracies of whole sets."""
    pictures = [*PICTURES, *PICTURES, *PICTURES]
    colours.label_studio.add_project(1, pictures, label_config=SEVERAL)
    colours.label_studio[1].fields = {task_id: {"split": "val"} for task_id in range(25, 73)}
    world = colours.again(validation_filter=ValidationFilter("split", "val"))
    world.embed_all()
    for task_id in (*range(1, 13), *range(25, 73)):
        world.label_studio.annotate(1, task_id, TRUTH[(task_id - 1) % 24 + 1])
    record = retrain(world)
    assert record.random_order is not None
    assert record.random_order["points"], record.random_order["note"]
    assert record.random_order["points"][-1]["accuracy"] > 0.6


def test_a_wrong_label_of_a_set_is_suspected(colours: World) -> None:
    """A red image that was said to be green as well: the set without it is suggested."""
    answer(colours, *range(1, 25))
    colours.label_studio.withdraw(1, 9)
    colours.label_studio.annotate(1, 9, ("green", "red"))
    record = retrain(colours)
    assert [(item["task_id"], item["label"], item["suggested_label"]) for item in record.suspects] == [
        (9, "green, red", "red")
    ]


# -- several people ---------------------------------------------------------------------------------------------------


def answers(world: World, task_id: int, **people: Sequence[str]) -> None:
    """answers(world, 4, p7=("red",), p8=()): people by their ids, in that order."""
    for name, given in people.items():
        world.label_studio.annotate(1, task_id, given)
        kept = world.label_studio[1].annotations[task_id]
        kept[-1] = dataclasses.replace(kept[-1], completed_by=int(name[1:]))


def test_people_agree_label_by_label(colours: World) -> None:
    """Two say red, one of them green as well: the label counts whole, the other half."""
    answer(colours, *range(4, 12))
    answers(colours, 1, p7=("red",), p8=("green", "red"))
    answers(colours, 2, p7=("green",), p8=("green",))
    labels = inputs_labels(colours)
    weights = labels.weights[1]
    assert isinstance(weights, dict)
    assert labels.labels[1] == ("green", "red"), "of equals the last"
    assert weights["red"] > 0.5 > weights["green"]
    record = retrain(colours)
    # Of the four questions (two tasks, two labels) three are answered alike.
    assert record.agreement is not None
    assert record.agreement["mean_pairwise_agreement"] == 0.75
    assert record.agreement["by_label"]["red"] == {"krippendorff_alpha": 1.0, "mean_pairwise_agreement": 1.0}
    assert record.agreement["by_label"]["green"]["mean_pairwise_agreement"] == 0.5
    assert record.disagreements == [
        {"task_id": 1, "label": "green, red", "ground_truth": False, "agreement": 0.5,
         "answers": {"green, red": [8], "red": [7]}},
    ]  # fmt: skip


def test_who_is_often_wrong_about_labels_is_not_believed(colours: World) -> None:
    """Nine times outvoted by two who agree, then alone against one of them: the other's set, though given first."""
    for task_id in range(1, 10):
        wrong = tuple(sorted({"red", "green"} - set(TRUTH[task_id])))
        answers(colours, task_id, p7=TRUTH[task_id], p8=TRUTH[task_id], p9=wrong)
    answers(colours, 11, p7=("green", "red"), p9=())
    assert inputs_labels(colours).labels[11] == ("green", "red")


def test_ground_truth_settles_a_set(colours: World) -> None:
    """It counts whole, and the others' answers to it tell how often they are right."""
    answers(colours, 1, p7=("green",))
    colours.label_studio.annotate(1, 1, ("red",), truth=True)
    answers(colours, 2, p7=("green",), p8=("green",))
    labels = inputs_labels(colours)
    assert labels.labels[1] == ("red",)
    assert set(labels.weights) == {2}


# -- the rest of the service ------------------------------------------------------------------------------------------


def test_rounds_are_planned_ahead_for_likely_sets(colours: World) -> None:
    """The answer that was planned for comes: nothing is fitted then."""
    answer(colours, *range(1, 13))
    retrain(colours)
    answer(colours, 13)
    record = retrain(colours)
    colours.empty_queue_of_retrains()
    token = worker._services.set(colours.services)
    try:
        worker.evaluate(1)
        assert colours.services.trainer.anticipate(1) == 3
    finally:
        worker._services.reset(token)
    answer(colours, record.window[0])
    made = colours.services.trainer.retrain(1)
    assert made is not None
    assert not {"fit", "score", "rank"} & set(made.stage_seconds)


def test_the_map_colours_sets(colours: World) -> None:
    """Labels and predictions of images are sets as people read them."""
    answer(colours, *range(1, 13))
    retrain(colours)
    found = colours.registry.map_arrays(1, PREDICTIONS)
    assert found is not None
    classes = json.loads(found.facts["classes"])
    assert set(classes) == {"red", "green", "green, red", "none of these"}
    given = [classes[number] for number in found.arrays["label"][:12].tolist()]
    assert given == [text_of(TRUTH[task_id]) for task_id in range(1, 13)]
    predicted = [classes[number] for number in found.arrays["prediction"][12:].tolist()]
    right = [text_of(TRUTH[task_id]) == guess for task_id, guess in enumerate(predicted, start=13)]
    assert np.mean(right) > 0.9


def test_of_many_sets_the_frequent_ones_have_a_colour() -> None:
    """The others share one."""
    many = [(f"label {number:02d}",) for number in range(MOST_SETS + 2)]
    names = frequent_sets([*many, many[-1]])
    assert names[0] == many[-1][0]
    assert len(names) == MOST_SETS + 1
    assert names[-1] == OTHER_SETS


def test_the_dashboard_says_which_label_is_in_doubt(colours: World) -> None:
    """One sentence for each image of the window, with the two labels most in doubt."""
    answer(colours, *range(1, 13))
    retrain(colours)
    board = colours.services.dashboard.project(1)
    assert board["window"]
    for item in board["window"]:
        assert "whether it has '" in item["why"]["sentence"]
        first, second = (abs(guess["probability"] - 0.5) for guess in item["why"]["classes"])
        assert first <= second
    assert [(item["label"], item["n_labels"]) for item in board["classes"]] == [("red", 6), ("green", 6)]
    assert board["label_figures"] is not None


@pytest.mark.parametrize(("before", "after"), [(SEVERAL, SINGLE), (SINGLE, SEVERAL)])
def test_changing_how_many_labels_an_image_may_have_starts_anew(world: World, before: str, after: str) -> None:
    """The next version is of the other kind, nothing is carried on, and no version of the first kind can be used."""
    world.label_studio.add_project(1, PICTURES, label_config=before)
    world.embed_all()
    answer(world, 1, 2, 5, 6, 9, 10, 13, 14)
    first = retrain(world)
    assert first.learning_curve
    world.label_studio.change_project(1, label_config=after)
    second = world.services.trainer.retrain(1)
    assert second is not None
    assert (first.threshold is None) != (second.threshold is None)
    assert first.chosen is not None
    chosen = _chosen(first, world.backbone, several=second.threshold is not None)
    assert chosen is None, "settings of heads of the other kind"
    assert (second.accuracy, second.learning_curve, second.evaluated_version) == (None, [], None)
    assert second.labels_used == 8
    with pytest.raises(VersionUnusableError, match="per image, and the labeling config now asks for"):
        world.services.versions.use(1, first.version, by="a person")


def test_one_can_go_back_to_a_version_of_sets(colours: World) -> None:
    """Its head stays, and is judged anew on the labels there are."""
    answer(colours, *range(1, 13))
    first = retrain(colours)
    answer(colours, 13)
    retrain(colours)
    colours.services.versions.use(1, first.version, by="a person")
    answer(colours, 14)
    record = retrain(colours)
    assert record.head_of == first.version
    assert record.threshold == first.threshold
    np.testing.assert_array_equal(published_head(colours).weights, colours.registry.head(first).weights)  # type: ignore[union-attr]


def test_a_record_of_an_earlier_release_is_of_one_label_per_image(colours: World) -> None:
    """It has no threshold, nor figures of labels."""
    answer(colours, *range(1, 13))
    raw = retrain(colours).to_json()
    del raw["threshold"], raw["label_figures"]
    record = VersionRecord.from_json(raw)
    assert (record.threshold, record.label_figures) == (None, None)


def test_the_backbone_is_not_fine_tuned_on_sets(colours: World) -> None:
    """The training there knows one class per image: nothing is asked for, nothing begins, and the status says so."""
    world = colours.again(train="finetune", finetune_from=4)
    answer(world, *range(1, 13))
    retrain(world)
    assert "finetune(1)" not in world.waiting()
    assert world.services.finetuner.finetune(1) is None
    status: dict[str, Any] = world.services.status.project(1)
    assert 'choice="multiple"' in status["finetuning"]["note"]


def test_the_digest_of_sets_can_be_worked_out_from_an_export(colours: World) -> None:
    """Labels of a task in alphabetical order, a tab before each."""
    answer(colours, 1, 3, 4)
    record = retrain(colours)
    assert record.labels_digest == hashlib.sha256(b"1\tred\n3\tgreen\tred\n4\n").hexdigest()


def test_a_simulation_of_sets_counts_whole_sets() -> None:
    """The service learns them from class folders that stand for sets; `baseline` knows one label per image."""
    pictures = np.array([[30 * ("red" in TRUTH[n]), 30 * ("green" in TRUTH[n]), n % 5] for n in TRUTH] * 3, np.float16)
    sets = list(TRUTH.values()) * 3
    images = LabeledImages(pictures, np.array([text_of(label) for label in sets]), 0, 0, sets)
    settings = Settings(seed_size=8, window_size=4)
    options: dict[str, Any] = {"budgets": [12], "n_seeds": 1, "settings": settings, "step": 4}
    (row,) = simulate(images, strategies=["default"], **options)
    assert row.accuracy > 0.7
    with pytest.raises(SelectionError, match="one label per image"):
        list(simulate(images, strategies=["baseline"], **options))
