"""Predictions: the same numbers as in the queue, one answer for any task, the newest version at once."""

from __future__ import annotations

import json
import shutil
from typing import Any

import numpy as np
import pytest
from fakes import LABEL_CONFIG, TinyBackbone, World, build_world, region, rgb

from backend.adapters.embedding_store import EmbeddingStore, EmbeddingTable
from backend.errors import BackendError
from backend.learning.features import plain_space
from backend.learning.head import Head
from backend.loop.queue import seed_queue_score
from backend.loop.score import LAST, score
from backend.schema import UNTRAINED, VersionRecord

IMAGES = [rgb(250, 0), rgb(200, 0, 20), rgb(0, 250), rgb(0, 200, 20), rgb(120, 130)]


@pytest.fixture
def animals(world: World) -> World:
    """Project 1 with five embedded tasks: two red, two green, one in between."""
    world.label_studio.add_project(1, IMAGES)
    world.embed_all()
    return world


@pytest.fixture
def trained(animals: World) -> World:
    """The same with a published model of one red and one green label; tasks 2, 4 and 5 are left."""
    animals.label_studio.annotate(1, 1, "cat")
    animals.label_studio.annotate(1, 3, "dog")
    assert animals.services.trainer.retrain(1) is not None
    return animals


def tasks(*task_ids: int) -> list[dict[str, Any]]:
    return [{"id": task_id, "data": {"image": IMAGES[task_id - 1]}, "project": 1} for task_id in task_ids]


def predict(world: World, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return world.services.predictor.predict(1, LABEL_CONFIG, asked)


# -- scores -----------------------------------------------------------------------------------------------------------


def head(*weights: tuple[float, float]) -> Head:
    zeros = np.zeros(2, dtype=np.float32)
    return Head(
        ("cat", "dog"), np.array(weights, dtype=np.float32), bias=zeros, space=plain_space(len(zeros)), strength=1.0
    )


def test_the_least_certain_is_first() -> None:
    """Weights of 2 on each axis: (1, 1) is even (score lowest), (1, 0) is certain by e² : 1."""
    scores = score(head((2, 0), (0, 2)), np.array([[1, 0], [1, 1], [0, 1]], dtype=np.float32), "margin")
    even, certain = 0.5, np.e**2 / (np.e**2 + 1)
    assert scores.head.classes == ("cat", "dog")
    np.testing.assert_allclose(scores.probabilities[:, 0], [certain, even, 1 - certain], rtol=1e-6)
    np.testing.assert_allclose(scores.queue_scores[[0, 2]], 2 * certain - 1, rtol=0.02)
    assert scores.queue_scores.argmin() == 1


@pytest.mark.parametrize("acquisition", ["margin", "least_confidence", "entropy"])
def test_every_model_score_is_above_every_seed_score(acquisition: str) -> None:
    """Ten thousand seed tasks (the largest SEED_SIZE) still come before the model's most uncertain one."""
    scores = score(head((1, 0), (0, 1)), np.array([[1, 1], [1, 0]], dtype=np.float32), acquisition)
    assert scores.queue_scores.min() > seed_queue_score(9_999)
    assert scores.queue_scores.max() <= LAST


def test_very_uncertain_tasks_keep_their_order() -> None:
    """Probabilities 0.5, 0.501 and 0.504: all very uncertain, and still in this order, not tied."""
    embeddings = np.array([[1, 1.016], [1, 1], [1, 1.004]], dtype=np.float32)
    scores = score(head((1, 0), (0, 1)), embeddings, "margin")
    assert np.argsort(scores.queue_scores).tolist() == [1, 2, 0]
    assert len(set(scores.queue_scores.tolist())) == 3


# -- answers ----------------------------------------------------------------------------------------------------------


def test_before_any_version_there_is_an_empty_answer_for_each_task(animals: World) -> None:
    """No made-up model: empty results under 'untrained', put last; nothing is embedded for it."""
    answers = predict(animals, tasks(1, 2))
    assert answers == [{"result": [], "score": LAST, "model_version": UNTRAINED}] * 2


def test_a_seed_version_answers_with_ranks(animals: World) -> None:
    """The first batch in its order, all others last."""
    record = animals.services.trainer.retrain(1)
    assert record is not None
    first, *_ = record.seed_task_ids
    other = next(task for task in range(1, 6) if task not in record.seed_task_ids)
    assert [answer["score"] for answer in predict(animals, tasks(first, other))] == [0.0, LAST]
    assert {answer["model_version"] for answer in predict(animals, tasks(first, other))} == {record.version}


def test_answers_are_the_rows_that_were_pushed(trained: World) -> None:
    """What the labeler sees and what the queue is made of is the same code (the window moves ties apart by 1e-9)."""
    rows = {row["task"]: row for row in trained.label_studio[1].predictions}
    assert sorted(rows) == [2, 4, 5]
    for task_id, answer in zip((2, 4, 5), predict(trained, tasks(2, 4, 5)), strict=True):
        assert answer["result"] == rows[task_id]["result"]
        assert answer["score"] == pytest.approx(rows[task_id]["score"], abs=1e-7)
        assert answer["model_version"] == rows[task_id]["model_version"]


def test_answers_come_in_the_order_asked(trained: World) -> None:
    """Dog, cat, dog: also a task asked for twice is answered twice."""
    labels = [answer["result"][0]["value"]["choices"] for answer in predict(trained, tasks(4, 2, 4))]
    assert labels == [["dog"], ["cat"], ["dog"]]


def test_a_task_not_seen_before_is_embedded_for_the_answer(trained: World) -> None:
    """Imported a moment ago: the answer is a real one."""
    (answer,) = predict(trained, [{"id": 77, "data": {"image": rgb(0, 240)}}])
    assert answer["result"][0]["value"]["choices"] == ["dog"]
    assert answer["result"][0]["from_name"] == region("dog")["from_name"]


@pytest.mark.parametrize(
    "odd",
    [
        {"id": 90},
        {"id": 90, "data": None},
        {"id": 90, "data": {}},
        {"id": 90, "data": {"image": None}},
        {"id": 90, "data": {"image": ["rgb:1,2,3"]}},
        {"id": 90, "data": {"image": ""}},
        {"id": 90, "data": {"image": "broken:90"}},
        {"id": 90, "data": "no object"},
        {"id": 0, "data": {"image": 3}},
    ],
)
def test_an_odd_task_is_last_and_spoils_no_other(trained: World, odd: dict[str, Any]) -> None:
    """Label Studio drops the whole answer if one task fails, so no task fails."""
    (good, alone) = predict(trained, tasks(2)), predict(trained, [odd])
    answers = predict(trained, [*tasks(2), odd])
    assert answers == [*good, *alone]
    assert answers[1]["result"] == []
    assert answers[1]["score"] == LAST
    assert json.loads(json.dumps(answers, allow_nan=False)) == answers


def test_only_so_many_unknown_images_are_embedded_in_one_request(
    trained: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of five are embedded now; the other three get an empty answer rather than a timeout."""
    monkeypatch.setattr("backend.loop.score.EMBED_IN_REQUEST", 2)
    answers = predict(trained, [{"id": 100 + n, "data": {"image": rgb(0, 200 + n)}} for n in range(5)])
    assert [bool(answer["result"]) for answer in answers] == [True, True, False, False, False]


def test_the_published_version_is_loaded_once(trained: World) -> None:
    """A thousand requests, one load; the very same head until another version is published."""
    first = trained.services.predictor.published(1)
    assert first is not None
    again = trained.services.predictor.published(1)
    assert again is not None
    assert again[1] is first[1]
    trained.label_studio.annotate(1, 5, "dog")
    record = trained.services.trainer.retrain(1)
    newer = trained.services.predictor.published(1)
    assert newer is not None
    assert record is not None
    assert newer[0].version == record.version


def test_another_process_answers_with_the_new_version_at_once(trained: World) -> None:
    """Two web processes over one data folder: a publish in one is seen by the next request of the other."""
    other = trained.again()
    before = other.services.predictor.predict(1, LABEL_CONFIG, tasks(5))[0]["model_version"]
    trained.label_studio.annotate(1, 2, "cat")
    record = trained.services.trainer.retrain(1)
    assert record is not None
    after = other.services.predictor.predict(1, LABEL_CONFIG, tasks(5))[0]["model_version"]
    assert before != after == record.version


@pytest.mark.parametrize("damage", ["head", "record"])
def test_a_damaged_version_is_not_served(trained: World, damage: str) -> None:
    """The version before is still in memory and goes on; a process that has none answers as untrained."""
    good = trained.services.predictor.published(1)
    assert good is not None
    version = trained.registry.new_version(1, 9, trained.services.trainer._now())
    folder = trained.registry.project_directory(1) / "versions" / version
    trained.registry.save(VersionRecord.from_json({**good[0].to_json(), "version": version}), good[1])
    (folder / ("head.safetensors" if damage == "head" else "record.json")).write_bytes(b"{}")
    trained.registry.publish(1, version)
    assert predict(trained, tasks(2))[0]["model_version"] == good[0].version
    fresh = trained.again().services.predictor.predict(1, LABEL_CONFIG, tasks(2))
    assert fresh == [{"result": [], "score": LAST, "model_version": UNTRAINED}]


def test_a_version_of_another_backbone_answers_from_its_own_embeddings(trained: World) -> None:
    """The service was restarted with another backbone and not retrained yet: nothing of the two is mixed."""
    other = build_world(
        trained.services.settings, trained.label_studio, trained.images, TinyBackbone(fingerprint="beef")
    )
    known, unknown = other.services.predictor.predict(
        1, LABEL_CONFIG, [*tasks(2), {"id": 99, "data": {"image": rgb(1, 1)}}]
    )
    assert known["result"][0]["value"]["choices"] == ["cat"]
    assert unknown["result"] == []
    assert other.backbone.n_embedded == 0


def test_no_tasks_no_answers(trained: World) -> None:
    """An empty list is answered with an empty list."""
    assert predict(trained, []) == []


def test_answers_need_only_the_rows_asked_for(trained: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that only answers never holds the embeddings of the whole pool."""

    def read_all(_: EmbeddingStore) -> EmbeddingTable:
        pytest.fail("all embeddings were read")

    other = trained.again()
    monkeypatch.setattr(EmbeddingStore, "read", read_all)
    unseen = {"id": 77, "data": {"image": rgb(0, 240)}}
    answers = other.services.predictor.predict(1, LABEL_CONFIG, [*tasks(4, 2), unseen])
    assert [answer["result"][0]["value"]["choices"] for answer in answers] == [["dog"], ["cat"], ["dog"]]


def test_answers_are_the_same_in_parts(trained: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked up two at a time, order and results stay; of four unseen images three are embedded, not three a part."""
    whole = predict(trained, tasks(4, 2, 5, 1, 3))
    monkeypatch.setattr("backend.loop.score.TASKS_AT_ONCE", 2)
    parts = predict(trained, tasks(4, 2, 5, 1, 3))
    assert [answer["result"] for answer in parts] == [answer["result"] for answer in whole]
    # Products of matrices of other shapes are rounded otherwise.
    assert [answer["score"] for answer in parts] == pytest.approx([answer["score"] for answer in whole], abs=1e-8)
    monkeypatch.setattr("backend.loop.score.EMBED_IN_REQUEST", 3)
    answers = predict(trained, [{"id": 100 + n, "data": {"image": rgb(0, 200 + n)}} for n in range(4)])
    assert [bool(answer["result"]) for answer in answers] == [True, True, True, False]


def test_a_warm_process_has_the_published_head_at_hand(trained: World, caplog: pytest.LogCaptureFixture) -> None:
    """Before the first request; a project whose config or head cannot be read is passed over, not fatal."""
    other = trained.again()
    other.services.predictor.warm_up()
    published = trained.registry.published(1)
    assert published is not None
    shutil.rmtree(trained.registry.project_directory(1) / "versions" / published)
    (answer,) = other.services.predictor.predict(1, LABEL_CONFIG, tasks(2))
    assert answer["model_version"] == published
    trained.again().services.predictor.warm_up()
    assert "version not served project=1" in caplog.text


@pytest.mark.parametrize("error", [BackendError("broken"), PermissionError("not yours")])
def test_what_cannot_be_warmed_up_does_not_keep_the_process_from_starting(
    trained: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """One project's store cannot be read: said in the log, and the others are served."""

    def refuse(*_: object) -> EmbeddingTable:
        raise error

    other = trained.again()
    monkeypatch.setattr(EmbeddingStore, "take", refuse)
    other.services.predictor.warm_up()
    assert f"not warmed up project=1: {error}" in caplog.text


def test_the_highest_score_first_is_the_same_queue_from_the_other_end(trained: World) -> None:
    """SCORE_ORDER=descending makes a new version, in which what is next has the highest score, pushed and answered."""
    before = trained.registry.published_record(1)
    turned = trained.again(score_order="descending")
    record = turned.services.trainer.retrain(1)
    assert before is not None
    assert record is not None
    assert (before.score_order, record.score_order) == ("ascending", "descending")
    assert list(record.window) == list(before.window)
    pushed = {
        row["task"]: row["score"]
        for row in turned.label_studio[1].predictions
        if row["model_version"] == record.version
    }
    assert sorted(pushed, key=lambda task_id: -pushed[task_id]) == list(record.window)
    answers = predict(turned, tasks(*record.window))
    by_answer = dict(zip(record.window, [answer["score"] for answer in answers], strict=True))
    assert sorted(by_answer, key=lambda task_id: -by_answer[task_id]) == list(record.window)
    broken = predict(turned, [{"id": 99, "data": {}, "project": 1}])
    assert broken[0]["score"] == 0.0
    assert turned.services.trainer.retrain(1) is None


def test_unseeded_projects_are_answered_last_in_either_order(world: World) -> None:
    """Before any version there is nothing to say: the last place, which is 1 or 0."""
    asked = [{"id": 1, "data": {"image": IMAGES[0]}, "project": 7}]
    assert world.services.predictor.predict(7, LABEL_CONFIG, asked)[0]["score"] == 1.0
    turned = world.again(score_order="descending")
    assert turned.services.predictor.predict(7, LABEL_CONFIG, asked)[0]["score"] == 0.0
