"""The dashboard's JSON: what it says of accuracy, of the window and why, of labels, and when nothing is known."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from fakes import CATS, CREATED, DOGS, LABEL_CONFIG, World, add_cats_and_dogs, label, retrain

from backend.errors import ProjectNotFoundError
from backend.loop.dashboard import why_chosen
from backend.schema import CurvePoint, VersionRecord

KEYS = {
    "project", "status", "last_label_at", "curve", "window", "suspects", "disagreements", "classes", "confusion",
    "calibration", "label_figures", "versions",
}  # fmt: skip
CAT, DOG = {"label": "cat", "probability": 0.48}, {"label": "dog", "probability": 0.45}


@pytest.fixture
def animals(world: World) -> World:
    """Project 1: twelve cats and twelve dogs, three of each labeled."""
    add_cats_and_dogs(world)
    return world


def shown(world: World) -> dict[str, Any]:
    """The dashboard of project 1, as it comes out of JSON."""
    found: dict[str, Any] = json.loads(json.dumps(world.services.dashboard.project(1), allow_nan=False))
    return found


def test_a_project_that_just_was_connected_shows_what_there_is(world: World) -> None:
    """No version, no image, no label; classes are those of the labeling config."""
    world.registry.register(1, CREATED, LABEL_CONFIG, title="Animals")
    found = shown(world)
    assert found.keys() == KEYS
    assert found["project"] == {"id": 1, "title": "Animals", "link": "http://127.0.0.1:8080/projects/1/data"}
    assert found["status"] == json.loads(json.dumps(world.services.status.project(1)))
    assert found["curve"] == {"target": 0.95, "points": [], "random": [], "random_note": None}
    assert (found["window"], found["versions"], found["last_label_at"], found["confusion"]) == ([], [], None, None)
    assert found["classes"] == [
        {"label": "cat", "n_labels": 0, "n_predicted": None}, {"label": "dog", "n_labels": 0, "n_predicted": None},
    ]  # fmt: skip


def test_an_unknown_project_has_no_dashboard(world: World) -> None:
    """As the status."""
    with pytest.raises(ProjectNotFoundError, match="project 1 is not connected"):
        world.services.dashboard.project(1)


def test_all_of_an_evaluated_version_is_shown(animals: World) -> None:
    """With the numbers of the status and of the record."""
    record = retrain(animals)
    found = shown(animals)
    assert found["project"]["title"] == "Animals"
    assert found["status"]["model_version"] == record.version
    assert [version["version"] for version in found["versions"]] == [record.version]
    assert found["confusion"] == record.confusion is not None
    assert found["calibration"] == record.calibration is not None
    assert record.predicted_by_class is not None
    assert [(item["label"], item["n_labels"], item["n_predicted"]) for item in found["classes"]] == [
        ("cat", 3, record.predicted_by_class["cat"]),
        ("dog", 3, record.predicted_by_class["dog"]),
    ]
    assert found["curve"]["random_note"].startswith("unknown without validation images")


def test_points_of_the_curve_have_their_interval(animals: World) -> None:
    """90 of 100 measured: Wilson's; an expected 0.8 may be 1.96 · 0.03 off, and never leaves 0 to 1."""
    record = retrain(animals)
    points = [
        CurvePoint("expected", 6, 0.8, 6),
        CurvePoint("expected", 9, 0.97, 9),
        CurvePoint("measured", 6, 0.9, 100),
    ]
    animals.registry.update(replace(record, learning_curve=[vars(point) for point in points]))
    first, second, measured = shown(animals)["curve"]["points"]
    assert first["interval"] == pytest.approx([0.7412, 0.8588])
    assert second["interval"] == pytest.approx([0.9112, 1.0])
    assert measured["interval"] == pytest.approx([0.8256, 0.9448], abs=1e-4)
    assert (measured["kind"], measured["labels_used"], measured["n_evaluated"]) == ("measured", 6, 100)


def test_random_order_is_shown_with_its_note(animals: World) -> None:
    """As the evaluation left it; without the numbers by which it tells whether to measure again."""
    points = [{"labels_used": 10, "accuracy": 0.7, "interval": [0.6, 0.8]}]
    order = {"n_labels": 10, "n_validation": 40, "points": points, "note": "measured"}
    animals.registry.update(replace(retrain(animals), random_order=order))
    curve = shown(animals)["curve"]
    assert (curve["random"], curve["random_note"]) == (points, "measured")


def test_the_window_is_shown_in_order_with_links_and_thumbnails(animals: World) -> None:
    """Places from 1 on; both classes with the probabilities that a prediction of the task has."""
    record = retrain(animals)
    window = shown(animals)["window"]
    assert [(item["place"], item["task_id"]) for item in window] == list(enumerate(record.window, start=1))
    first = window[0]
    assert first["link"] == f"http://127.0.0.1:8080/projects/1/data?task={first['task_id']}"
    assert first["thumbnail"] == f"/api/projects/1/tasks/{first['task_id']}/thumbnail"
    head = animals.registry.head(record)
    assert head is not None
    (probabilities,) = head.predict_proba(animals.table().embeddings[animals.table().rows_of([first["task_id"]])])
    told = {item["label"]: item["probability"] for item in first["why"]["classes"]}
    assert told == pytest.approx(dict(zip(head.classes, probabilities, strict=True)), abs=1e-6)


def test_the_window_is_looked_at_once_for_each_version(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks again reads no embedding."""
    retrain(animals)
    before = shown(animals)["window"]
    monkeypatch.setattr(animals.services.embedder, "rows", None)
    assert shown(animals)["window"] == before


def test_suspects_and_disagreements_have_thumbnails(animals: World) -> None:
    """Beside what the status says of them."""
    record = retrain(animals)
    suspect = {
        "task_id": 1, "label": "cat", "suggested_label": "dog", "probability": 0.1, "suggested_probability": 0.9,
    }  # fmt: skip
    disagreement = {"task_id": 2, "label": "cat", "ground_truth": False, "agreement": 0.0, "answers": {}}
    animals.registry.update(replace(record, n_suspects=1, suspects=[suspect], disagreements=[disagreement]))
    found = shown(animals)
    link = "http://127.0.0.1:8080/projects/1/data?task="
    path = "/api/projects/1/tasks/{}/thumbnail"
    assert found["suspects"] == [{**suspect, "link": f"{link}1", "thumbnail": path.format(1)}]
    assert found["disagreements"] == [{**disagreement, "link": f"{link}2", "thumbnail": path.format(2)}]


def test_without_redis_the_record_says_when_the_last_answer_came(animals: World, dead_redis_url: str) -> None:
    """By Label Studio's clock."""
    record = retrain(animals)
    assert record.last_answer_at is not None
    found = shown(animals.again(redis_url=dead_redis_url))
    assert datetime.fromisoformat(found["last_label_at"]) == datetime.fromisoformat(record.last_answer_at)
    assert found["last_label_at"].endswith("+00:00")


def test_a_webhook_is_heard_before_its_label_is_used(animals: World) -> None:
    """The journal's time is later than that of any answer in the version."""
    retrain(animals)
    label(animals, cat=[4])
    event = animals.label_studio.event(1, "ANNOTATION_CREATED", task_id=4)
    animals.services.events.handle(1, "ANNOTATION_CREATED", event)
    heard = datetime.fromisoformat(shown(animals)["last_label_at"])
    assert abs((datetime.now(UTC) - heard).total_seconds()) < 60


def test_a_time_that_is_none_is_left_out(animals: World) -> None:
    """An annotation without one has ''."""
    record = retrain(animals)
    path = animals.registry.project_directory(1) / "versions" / record.version / "record.json"
    raw = json.loads(path.read_text())  # type: ignore[union-attr]
    path.write_text(json.dumps({**raw, "last_answer_at": "yesterday"}))  # type: ignore[union-attr]
    assert shown(animals)["last_label_at"] is None


# -- why --------------------------------------------------------------------------------------------------------------


def record_of(world: World, **changes: Any) -> VersionRecord:
    add_cats_and_dogs(world)
    return replace(
        retrain(world), **{"seed_task_ids": [], "reasons": {}, "acquisition": "information_density"} | changes
    )


@pytest.mark.parametrize(
    ("changes", "guesses", "kind", "sentence"),
    [
        ({}, [CAT, DOG], "uncertain", "uncertain between 'cat' (48 %) and 'dog' (45 %)"),
        ({"acquisition": "margin"}, [CAT, DOG], "uncertain", "uncertain between 'cat' (48 %) and 'dog' (45 %)"),
        (
            {"reasons": {"5": {"factor": "different", "share": 0.97}}},
            [CAT, DOG],
            "different",
            "less like the labeled images than 97 % of those left; uncertain between 'cat' (48 %) and 'dog' (45 %)",
        ),
        (
            {"reasons": {"5": {"factor": "typical", "share": 0.9}}},
            [],
            "typical",
            "more typical of all images than 90 % of those left",
        ),
        (
            {"reasons": {"5": {"factor": "uncertain", "share": 0.99}}},
            [{**CAT, "probability": 0.9}, {**DOG, "probability": 0.1}],
            "uncertain",
            "less sure than of most others: rather 'cat' (90 %) than 'dog' (10 %)",
        ),
        ({"reasons": {"5": {"factor": "skipped"}}}, [CAT, DOG], "other", "somebody skipped it"),
        (
            {},
            [{**CAT, "probability": 0.9}, {**DOG, "probability": 0.1}],
            "other",
            "rather 'cat' (90 %) than 'dog' (10 %)",
        ),
        ({"acquisition": "random"}, [CAT, DOG], "chance", "drawn at random"),
        ({"acquisition": "knn_of_high_loss"}, [CAT, DOG], "other", "near a labeled image that a model gets wrong"),
        ({"reasons": {"5": {"share": "much"}}}, [], "other", "chosen by the strategy information_density"),
        ({"seed_task_ids": [5], "seed_strategy": None}, [CAT, DOG], "typical", "typical of many images, and unlike"),
        ({"seed_task_ids": [5], "seed_strategy": "coreset"}, [], "different", "least like all those chosen before"),
        ({"seed_task_ids": [5], "seed_strategy": "random"}, [], "chance", "drawn at random"),
        ({"seed_task_ids": [5], "seed_strategy": "of a plugin"}, [], "other", "chosen by the strategy of a plugin"),
    ],
)  # fmt: skip
def test_why_an_image_was_chosen(
    world: World, changes: dict[str, Any], guesses: list[dict[str, Any]], kind: str, sentence: str
) -> None:
    """What the strategy looked at, in words; never a reason that it did not look at."""
    found = why_chosen(record_of(world, **changes), 5, guesses)
    assert (found["kind"], found["classes"]) == (kind, guesses)
    assert sentence in found["sentence"]


def test_the_first_batch_says_that_no_model_chose_it(world: World) -> None:
    """Before there is any label: all of it typical of the pool, no class told."""
    add_cats_and_dogs(world)
    for task_id in (*CATS[:3], *DOGS[:3]):
        world.label_studio.withdraw(1, task_id)
    retrain(world)
    window = shown(world)["window"]
    assert window
    for item in window:
        assert item["why"]["kind"] == "typical"
        assert item["why"]["classes"] == []
