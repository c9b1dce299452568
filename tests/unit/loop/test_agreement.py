"""Several people's answers: the label that is trained on, how much it counts, and what is told of it."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from fakes import World, add_cats_and_dogs, label, region, retrain

from backend.learning import head as head_module
from backend.loop import rounds
from backend.loop.agreement import agreement_fields, weighed
from backend.schema import Annotation, SeveralAnswers, TrainingLabels

LABELS = ("cat", "dog", "fox")


def labels_of(several: dict[int, SeveralAnswers], **labels: Any) -> TrainingLabels:
    return TrainingLabels(labels["labels"], frozenset(labels["labels"]), frozenset(), {}, several=several)


def test_single_answers_count_whole_and_stay_as_they_are() -> None:
    """Nobody is compared with anybody: the very same object."""
    labels = TrainingLabels({1: "cat", 2: "dog"}, frozenset({1, 2}), frozenset(), {})
    assert weighed(labels, LABELS) is labels


def test_the_more_agree_the_more_a_label_counts() -> None:
    """Three alike above two and one, which is above one and one; single answers and ground truth have no weight."""
    several = {
        1: SeveralAnswers([(7, "cat"), (8, "cat"), (9, "cat")]),
        2: SeveralAnswers([(7, "cat"), (8, "dog"), (9, "cat")]),
        3: SeveralAnswers([(7, "dog"), (8, "cat")]),
        4: SeveralAnswers([(7, "dog"), (9, "cat")], has_ground_truth=True),
    }
    labels = weighed(labels_of(several, labels={1: "cat", 2: "cat", 3: "cat", 4: "cat", 5: "dog"}), LABELS)
    assert set(labels.weights) == {1, 2, 3}
    assert 1 > labels.weights[1] > labels.weights[2] > labels.weights[3] >= 0.05
    assert labels.labels[4] == "cat"


def test_of_equals_the_label_given_last_stays() -> None:
    """Two people nobody knows anything of: what `read_labels` found is kept."""
    several = {1: SeveralAnswers([(7, "cat"), (8, "dog")]), 2: SeveralAnswers([(None, "dog"), (None, "cat")])}
    labels = weighed(labels_of(several, labels={1: "dog", 2: "cat"}), LABELS)
    assert labels.labels == {1: "dog", 2: "cat"}
    assert labels.weights[1] == pytest.approx(labels.weights[2])


def test_who_is_often_wrong_is_not_believed_although_last() -> None:
    """Nine times outvoted by two who agree, then alone against one of them."""
    several = {n: SeveralAnswers([(7, "cat"), (8, "cat"), (9, "dog")]) for n in range(1, 10)}
    several[10] = SeveralAnswers([(7, "fox"), (9, "cat")])
    labels = weighed(labels_of(several, labels={**dict.fromkeys(range(1, 10), "cat"), 10: "cat"}), LABELS)
    assert labels.labels[10] == "fox"
    assert labels.weights[10] > 0.7


def test_disagreements_are_told_with_who_said_what() -> None:
    """One of three tasks: its answers by label and person; two of its three pairs disagree."""
    several = {
        1: SeveralAnswers([(7, "cat"), (8, "cat")]),
        2: SeveralAnswers([(7, "cat"), (8, "dog"), (9, "cat")]),
        3: SeveralAnswers([(7, "dog"), (8, "dog")]),
    }
    fields = agreement_fields(labels_of(several, labels={1: "cat", 2: "cat", 3: "dog"}))
    # Alpha by hand: of 7 answers 4 are cat and 3 dog; observed disagreement (9 - 5) / 2 / 7 = 2/7, expected
    # (49 - 16 - 9) / (7 · 6) = 24/42, so alpha is 1 - (2/7) / (4/7).
    assert fields == {
        "agreement": {
            "n_tasks": 3,
            "n_annotators": 3,
            "krippendorff_alpha": 0.5,
            "mean_pairwise_agreement": round((1 + 1 / 3 + 1) / 3, 6),
        },
        "n_disagreements": 1,
        "disagreements": [
            {
                "task_id": 2,
                "label": "cat",
                "ground_truth": False,
                "agreement": round(1 / 3, 6),
                "answers": {"cat": [7, 9], "dog": [8]},
            }
        ],
    }


def test_of_many_disagreements_the_greatest_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are counted."""
    monkeypatch.setattr("backend.loop.agreement.MAX_DISAGREEMENTS", 2)
    several = {n: SeveralAnswers([(7, "cat"), (8, "cat"), (9, "dog")]) for n in (1, 2, 3)}
    several[4] = SeveralAnswers([(7, "cat"), (8, "dog")])
    fields = agreement_fields(labels_of(several, labels=dict.fromkeys(several, "cat")))
    assert fields["n_disagreements"] == 4
    assert [item["task_id"] for item in fields["disagreements"]] == [4, 1]


def test_without_several_answers_nothing_is_told() -> None:
    """Not an agreement of 1 among nobody."""
    assert agreement_fields(TrainingLabels({1: "cat"}, frozenset({1}), frozenset(), {}))["agreement"] is None


# -- in a project -----------------------------------------------------------------------------------------------------


def answer(world: World, task_id: int, **people: str) -> None:
    """answer(world, 4, p7="cat", p8="dog"): people by their ids, in that order."""
    for name, given in people.items():
        world.label_studio.annotate(1, task_id, given)
        kept = world.label_studio[1].annotations[task_id]
        kept[-1] = dataclasses.replace(kept[-1], completed_by=int(name[1:]))


@pytest.fixture
def animals(world: World) -> World:
    """Project 1: three cats and three dogs labeled by nobody in particular."""
    add_cats_and_dogs(world)
    return world


def test_disputed_labels_weigh_less_in_the_fit(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The head is fitted with a weight for each label, below 1 for the disputed one; so are those of the folds."""
    answer(animals, 4, p7="cat", p8="dog", p9="cat")
    answer(animals, 5, p7="cat", p8="cat")
    given: dict[str, Any] = {}
    for name in ("fit", "choose_settings"):
        original = getattr(rounds, name)

        def spy(*args: Any, name: str = name, original: Any = original, **options: Any) -> Any:
            given[name] = options["weights"]
            return original(*args, **options)

        monkeypatch.setattr(rounds, name, spy)
    record = retrain(animals)
    assert record.labels_used == 8
    for name in ("fit", "choose_settings"):
        disputed, agreed = given[name][[3, 4]]
        assert disputed < agreed < 1
        assert given[name][[0, 1, 2, 5, 6, 7]].tolist() == [1.0] * 6


def test_single_labels_are_fitted_without_weights(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of a label in a project of one annotation each is what it was."""
    given = []
    original = head_module._pool_problem

    def spy(*args: Any) -> Any:
        given.append(args[-1])
        return original(*args)

    monkeypatch.setattr(head_module, "_pool_problem", spy)
    retrain(animals)
    assert given
    assert all(weights is None for weights in given)


def test_the_status_lists_disagreements_with_links(animals: World) -> None:
    """Also once the project is pinned, and of tasks with ground truth."""
    answer(animals, 4, p7="cat", p8="dog")
    animals.label_studio.annotate(1, 4, "cat", truth=True)
    retrain(animals)
    animals.services.versions.use(1, "v0001", by="a test")
    retrain(animals)
    status = animals.services.status.project(1)
    (listed,) = status["disagreements"]
    assert (listed["task_id"], listed["ground_truth"], listed["label"]) == (4, True, "cat")
    assert listed["link"] == "http://127.0.0.1:8080/projects/1/data?task=4"
    assert (status["n_disagreements"], status["agreement"]["n_tasks"]) == (1, 1)


def test_a_second_opinion_makes_a_new_version(animals: World) -> None:
    """The same labels, and one of them counts less now."""
    label(animals, cat=[4])
    before = retrain(animals)
    answer(animals, 4, p9="dog")
    record = retrain(animals)
    assert record.version != before.version
    assert record.labels_used == before.labels_used


def test_who_changes_their_mind_is_one_person(animals: World) -> None:
    """Two annotations of one person: the later one counts, and nobody disagrees."""
    answer(animals, 4, p7="cat")
    answer(animals, 4, p7="dog")
    record = retrain(animals)
    assert record.labels_by_class == {"cat": 3, "dog": 4}
    assert record.agreement is None
    assert region("dog") in animals.label_studio[1].annotations[4][-1].result
    assert isinstance(animals.label_studio[1].annotations[4][-1], Annotation)
