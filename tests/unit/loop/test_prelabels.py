"""Pre-labels: shown where the model is sure, the same in the queue and in /predict; scores stay whatever is shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes import LABEL_CONFIG, World, add_cats_and_dogs, label, retrain, rgb

from backend.loop.prelabels import described, is_shown, least_confidence
from backend.schema import VersionRecord


@pytest.fixture
def record(world: World) -> VersionRecord:
    """A model of six labels, cross-validated."""
    add_cats_and_dogs(world)
    return retrain(world)


@pytest.mark.parametrize(
    ("cross_validated", "prelabel_from", "least"),
    [(0.9, 0.8, 0.8), (0.1, 0.8, 0.8), (None, 0.8, None), (None, 0.0, 0.0), (0.9, 0.0, 0.0), (1.0, 1.0, None)],
)
def test_the_least_confidence_counts_once_labels_could_be_held_out(
    record: VersionRecord, cross_validated: float | None, prelabel_from: float, least: float | None
) -> None:
    """However accurate the version is: it is each image's confidence that decides. 0 shows all of them, 1 none."""
    assert least_confidence(replace(record, cross_validated_accuracy=cross_validated), prelabel_from) == least


def test_an_accuracy_of_a_validation_split_alone_calibrates_nothing(record: VersionRecord) -> None:
    """With one label of each class there is one, and the confidence is still what the fit says."""
    judged = replace(record, accuracy=0.99, accuracy_interval=[0.95, 1.0], cross_validated_accuracy=None)
    assert least_confidence(judged, 0.8) is None


def test_of_each_prediction_its_own_confidence_decides(record: VersionRecord) -> None:
    """From the least confidence on, that included; of a version without pre-labels none is shown."""
    shown = replace(record, prelabels=True, prelabels_from=0.8)
    assert [is_shown(shown, confidence) for confidence in (0.79, 0.8, 1.0)] == [False, True, True]
    assert not is_shown(replace(shown, prelabels=False), 1.0)


def answers(world: World) -> tuple[list[Any], list[Any]]:
    """What Label Studio was last pushed for the window, and what /predict answers for the same tasks."""
    version = world.registry.published(1)
    project = world.label_studio._projects[1]
    pushed = [item for item in project.predictions if item["model_version"] == version]
    asked = [{"id": item["task"], "data": {"image": project.tasks[item["task"]]}, "project": 1} for item in pushed]
    return pushed, world.services.predictor.predict(1, LABEL_CONFIG, asked)


def test_what_is_sure_has_a_result_and_what_is_in_doubt_a_score_alone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """In the queue and in /predict alike, from the first evaluation on; status and log say so."""
    caplog.set_level("INFO", "backend.loop.train")
    world = world.again(prelabel_from=0.8, window_size=6)
    reds = [rgb(250 - n, 0, n) for n in range(10)]
    greens = [rgb(0, 250 - n, n) for n in range(10)]
    between = [rgb(120, 118, n) for n in range(4)]
    world.label_studio.add_project(1, reds + greens + between)
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
    assert (status["shown"], status["from"], status["n_in_window"]) == (False, 0.8, 0)
    assert status["note"].startswith("not shown yet: ")

    label(world, cat=range(2, 9), dog=range(12, 19))
    retrain(world)  # evaluated: sixteen labels
    assert world.services.status.project(1)["prelabels"]["note"] == "shown from the next version on"
    label(world, dog=[19])
    record = retrain(world)
    pushed, answered = answers(world)
    sure = {item["task"] for item in pushed if item["result"]}
    assert sure, "reds and greens are left, and sure"
    assert not sure.intersection(range(21, 25))
    assert {item["task"] for item in pushed}.intersection(range(21, 25)), "those in doubt are next"
    assert [bool(item["result"]) for item in answered] == [item["task"] in sure for item in pushed]
    assert all(item["result"][0]["score"] >= 0.8 for item in pushed if item["result"])
    assert len({item["score"] for item in pushed}) == len(pushed)
    assert (record.prelabels, record.prelabels_from, record.n_prelabels) == (True, 0.8, len(sure))
    status = world.services.status.project(1)["prelabels"]
    assert (status["shown"], status["n_in_window"]) == (True, len(sure))
    assert status["note"] == (
        "shown on images of which the model is at least 80% sure (PRELABEL_FROM), "
        f"{len(sure)} of the next {len(pushed)}"
    )
    told = [text for text in caplog.messages if text.startswith("pre-labels project=1 ")]
    assert ["not shown" in text for text in told] == [True, False], "one line for each change"


def test_each_state_has_its_sentence(record: VersionRecord) -> None:
    """What the status tells a person who wonders where the pre-labels are."""
    assert "no model before labels of two classes" in described(replace(record, kind="seed"), 0.8)
    everywhere, hidden = replace(record, prelabels=True), replace(record, prelabels=False)
    assert described(everywhere, 0.0) == "shown on every image"
    assert described(everywhere, 0.8) == "shown on every image; PRELABEL_FROM counts from the next version on"
    assert described(hidden, 1.0) == "never shown (PRELABEL_FROM=1)"
    assert described(hidden, 0.0) == "shown from the next version on"
    assert described(replace(hidden, cross_validated_accuracy=None), 0.8).startswith("not shown yet: ")


def test_a_version_of_an_earlier_release_showed_them(record: VersionRecord) -> None:
    """Its record does not say; what it pushed stands in Label Studio, whatever the confidence."""
    raw = record.to_json()
    del raw["prelabels"], raw["prelabels_from"], raw["n_prelabels"]
    assert is_shown(VersionRecord.from_json(raw), 0.3)
