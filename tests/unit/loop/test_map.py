"""The map of a project: made once, extended without moving anything, and joined with what a version says."""

from __future__ import annotations

import dataclasses
import json
import struct
from typing import Any

import numpy as np
import pytest
from fakes import CATS, DOGS, LABEL_CONFIG, TinyBackbone, World, add_cats_and_dogs, label, retrain, rgb

from backend.adapters.jobs import MAP_LOCK, MAP_QUEUE
from backend.adapters.registry import KeptArrays
from backend.errors import ProjectNotFoundError
from backend.loop import map as map_module
from backend.loop.map import LAYOUT, NONE, PREDICTIONS

COLUMNS = (("x", "<f4"), ("y", "<f4"), ("task_id", "<u4"), ("label", "<u2"), ("prediction", "<u2"),
           ("queue_place", "<u2"), ("uncertainty", "<u1"))  # fmt: skip


def decoded(content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and columns of an answer, read as the page reads them."""
    assert content[:4] == b"ALM1"
    n, m = struct.unpack("<II", content[4:12])
    header, place = json.loads(content[12 : 12 + m]), 12 + m
    assert content[place : place + -m % 4] == bytes(-m % 4)
    place += -m % 4
    columns = {}
    for name, kind in COLUMNS:
        columns[name] = np.frombuffer(content, dtype=kind, count=n, offset=place)
        place += columns[name].nbytes
    assert place == len(content)
    return header, columns


def answer(world: World, project_id: int = 1) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return decoded(world.services.map_reader.answer(project_id).content)


def plan(world: World) -> None:
    """Embeds what is missing and tells that all is embedded."""
    world.embed_all()
    world.services.embedder.plan(1)


def make(world: World) -> int | None:
    """What a worker does whose job it is."""
    for job in world.jobs.queues([MAP_QUEUE])[0].jobs:
        job.delete()
    return world.services.map_maker.make(1)


def kept(world: World, name: str = LAYOUT) -> KeptArrays:
    found = world.registry.map_arrays(1, name)
    assert found is not None
    return found


def positions(world: World) -> dict[int, list[float]]:
    arrays = kept(world).arrays
    return dict(zip(arrays["task_ids"].tolist(), arrays["positions"].tolist(), strict=True))


@pytest.fixture
def animals(world: World) -> World:
    """Project 1: twelve reddish and twelve greenish tasks, embedded, three of each labeled; a published model."""
    add_cats_and_dogs(world)
    world.registry.register(1, 1767225600, LABEL_CONFIG)
    retrain(world)
    plan(world)
    return world


def test_a_map_is_asked_for_when_all_is_embedded_and_once(animals: World) -> None:
    """Not for every plan, and not again once it is made."""
    assert animals.jobs.map_waits()
    animals.services.embedder.plan(1)
    assert len(animals.jobs.queues([MAP_QUEUE])[0].jobs) == 1
    assert make(animals) == 24
    animals.services.embedder.plan(1)
    assert not animals.jobs.map_waits()


def test_images_that_look_alike_lie_together(animals: World) -> None:
    """The nearest on the map of an image that is clearly reddish is reddish; the last of both colours are brown."""
    make(animals)
    places = positions(animals)
    for task_id in (*CATS[:6], *DOGS[:6]):
        place = places[task_id]
        distances = {other: np.hypot(*np.subtract(place, there)) for other, there in places.items() if other != task_id}
        assert (min(distances, key=distances.__getitem__) in CATS) == (task_id in CATS)


def test_the_answer_says_what_the_version_says(animals: World) -> None:
    """Labels, predictions, uncertainty, and places in the queue from 1 on, by task."""
    make(animals)
    record = animals.registry.published_record(1)
    assert record is not None
    header, columns = answer(animals)
    assert header == {"model_version": record.version, "classes": ["cat", "dog"], "state": "ready", "note": None}
    task_ids = columns["task_id"].tolist()
    assert task_ids == list(range(1, 25))
    labels = dict(zip(task_ids, columns["label"].tolist(), strict=True))
    assert labels == dict.fromkeys(task_ids, NONE) | {1: 0, 2: 0, 3: 0, 13: 1, 14: 1, 15: 1}
    places = dict(zip(columns["queue_place"].tolist(), task_ids, strict=False))
    assert [places[place] for place in range(1, len(record.window) + 1)] == list(record.window)
    assert (columns["queue_place"] == NONE).sum() == 24 - len(record.window)
    head = animals.registry.head(record)
    assert head is not None
    probabilities = head.predict_proba(animals.table().embeddings)
    assert columns["prediction"].tolist() == probabilities.argmax(axis=1).tolist()
    ordered = np.sort(probabilities, axis=1)
    np.testing.assert_allclose(columns["uncertainty"] / 255, 1 - ordered[:, -1] + ordered[:, -2], atol=0.003)
    layout = kept(animals).arrays["positions"]
    np.testing.assert_array_equal(np.column_stack([columns["x"], columns["y"]]), layout)


def test_until_it_is_evaluated_a_version_is_not_shown(animals: World) -> None:
    """The labels stay those of the version that is named; a sentence says which is published."""
    make(animals)
    before, columns = answer(animals)
    label(animals, cat=[4])
    record = animals.services.trainer.retrain(1)
    assert record is not None
    header, same = answer(animals)
    assert header["model_version"] == before["model_version"]
    assert record.version in header["note"]
    assert same["label"].tolist() == columns["label"].tolist()
    animals.services.jobs.queues()[0].empty()
    animals.services.evaluator.evaluate(1)
    header, newer = answer(animals)
    assert (header["model_version"], header["note"]) == (record.version, None)
    assert newer["label"][3] == 0


def test_labels_that_came_after_the_version_are_not_shown_as_its(animals: World) -> None:
    """Evaluated while a further label is known already: what is kept is still the version's before."""
    label(animals, cat=[4])
    record = animals.services.trainer.retrain(1)
    assert record is not None
    label(animals, dog=[16])
    animals.jobs.record_event(1, {"read": "everything"})
    animals.empty_queue_of_retrains()
    evaluated = animals.services.evaluator.evaluate(1)
    assert evaluated is not None
    assert kept(animals, PREDICTIONS).facts["version"] != record.version


def test_predictions_give_way_to_a_label(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A retrain began to wait: nothing is kept, and the evaluation is written all the same."""
    before = kept(animals, PREDICTIONS).facts["version"]
    label(animals, cat=[4])
    record = animals.services.trainer.retrain(1)
    assert record is not None
    animals.empty_queue_of_retrains()
    monkeypatch.setattr(map_module, "BLOCK_ROWS", 10)
    asked: list[int] = []

    def waits_in_the_middle() -> bool:
        asked.append(1)
        return len(asked) > 1

    maps = animals.services.evaluator._map_predictions
    monkeypatch.setattr(maps, "_jobs", dataclasses.make_dataclass("J", ["retrain_waits"])(waits_in_the_middle))
    evaluated = animals.services.evaluator.evaluate(1)
    assert evaluated is not None
    assert evaluated.evaluated_version == record.version
    assert len(asked) == 2
    assert kept(animals, PREDICTIONS).facts["version"] == before


def test_before_there_is_a_head_images_have_places_and_no_predictions(world: World) -> None:
    """A first batch is on top of the queue; nobody has labeled anything."""
    world.label_studio.add_project(1, [rgb(10 * n, 5 * n, n) for n in range(12)])
    world.embed_all()
    retrain(world)
    plan(world)
    make(world)
    header, columns = answer(world)
    record = world.registry.published_record(1)
    assert record is not None
    assert (header["model_version"], header["state"]) == (record.version, "ready")
    assert set(columns["label"]) == set(columns["prediction"]) == {NONE}
    assert columns["uncertainty"].max() == 0
    assert columns["task_id"][columns["queue_place"] == 1].tolist() == [record.window[0]]


def test_nothing_moves_when_images_come_or_go(animals: World, caplog: pytest.LogCaptureFixture) -> None:
    """Two come and two go: the others stay to the last bit, the new ones lie beside their like."""
    make(animals)
    before = positions(animals)
    kept_tasks = animals.label_studio[1].tasks
    kept_tasks[25], kept_tasks[26] = rgb(205, 58, 3), rgb(58, 205, 3)
    del kept_tasks[12], kept_tasks[24]
    plan(animals)
    assert animals.jobs.map_waits()
    with caplog.at_level("INFO"):
        make(animals)
    assert "map extended project=1 images=24 laid_out=22 added=2" in caplog.text
    after = positions(animals)
    assert after.keys() == set(kept_tasks)
    assert all(after[task_id] == before[task_id] for task_id in after if task_id in before)
    for added, like in ((25, CATS), (26, DOGS)):
        nearest = min(before, key=lambda task_id: np.hypot(*np.subtract(after[added], before[task_id])))
        assert nearest in like
    _, columns = answer(animals)
    assert columns["task_id"].tolist() == sorted(kept_tasks)
    assert columns["prediction"][-1] == NONE, "no version has seen it"


def test_a_task_with_another_image_gets_another_place(animals: World) -> None:
    """Task 1 shows a greenish image now."""
    make(animals)
    before = positions(animals)
    animals.label_studio[1].tasks[1] = rgb(60, 200, 0)
    plan(animals)
    make(animals)
    after = positions(animals)
    assert after[1] != before[1]
    assert min(before, key=lambda task_id: np.hypot(*np.subtract(after[1], before[task_id]))) in DOGS
    assert kept(animals).arrays["is_added"].tolist() == [True] + [False] * 23


def test_when_more_than_a_fifth_is_new_it_is_made_anew(animals: World, caplog: pytest.LogCaptureFixture) -> None:
    """Those placed earlier count: three and three more of thirty."""
    make(animals)
    for first in (25, 28):
        for task_id in range(first, first + 3):
            animals.label_studio[1].tasks[task_id] = rgb(0, 10, 9 * task_id % 256)
        plan(animals)
        with caplog.at_level("INFO"):
            make(animals)
    assert "map extended project=1 images=27 laid_out=24 added=3" in caplog.text
    label_of_last = caplog.text.rpartition("map ")[2]
    assert label_of_last.startswith("extended project=1 images=30 laid_out=24 added=6")  # a fifth exactly
    animals.label_studio[1].tasks[31] = rgb(1, 2, 3)
    plan(animals)
    with caplog.at_level("INFO"):
        make(animals)
    assert "map made project=1 images=31 laid_out=31 added=0" in caplog.text


def test_another_backbone_calls_for_another_map(animals: World, caplog: pytest.LogCaptureFixture) -> None:
    """Until it is made the old one is shown; the evaluation of the first version of that backbone asks for it."""
    make(animals)
    animals.services._backbone = TinyBackbone("beef", (1.0, 0.5, 0.25))
    animals.embed_all()
    label(animals, cat=[4])
    retrain(animals)
    assert animals.jobs.map_waits()
    header, columns = answer(animals)
    assert (header["state"], len(columns["x"])) == ("ready", 24)
    assert header["note"] == "the map waits to be made"
    with caplog.at_level("INFO"):
        make(animals)
    assert kept(animals).facts["fingerprint"] == "beef"
    assert answer(animals)[0]["note"] is None


@pytest.mark.parametrize("name", [LAYOUT, PREDICTIONS])
def test_a_damaged_part_is_made_anew(animals: World, name: str) -> None:
    """Of the layout the answer says that it is being made; of the predictions the next evaluation keeps them again."""
    make(animals)
    before = positions(animals)
    (animals.services.settings.data_dir / "projects" / "1" / "map" / f"{name}.safetensors").write_bytes(b"x")
    header, columns = answer(animals)
    if name == LAYOUT:
        assert (header["state"], len(columns["x"])) == ("being made", 0)
        make(animals)
    else:
        assert set(columns["label"]) == {NONE}
        assert header["classes"] == []
        label(animals, cat=[4])
        retrain(animals)
    header, columns = answer(animals)
    assert header["note"] is None
    assert (columns["label"] != NONE).sum() == 6 + (name == PREDICTIONS)
    assert positions(animals) == before


def test_who_asks_for_a_map_that_is_not_there_gets_one_made(animals: World) -> None:
    """Once, however often it is asked for; nothing is asked for before all is embedded, nor what failed."""
    animals.jobs.redis.flushdb()
    for _ in range(3):
        header, columns = answer(animals)
        assert (header["state"], header["note"], len(columns["x"])) == ("being made", "the map waits to be made", 0)
    assert len(animals.jobs.queues([MAP_QUEUE])[0].jobs) == 1


def test_before_all_is_embedded_there_is_none(world: World) -> None:
    """And nothing is asked for."""
    world.label_studio.add_project(1, [rgb(1), rgb(2)])
    world.registry.register(1, 1767225600, LABEL_CONFIG)
    header, _ = answer(world)
    assert header == {
        "model_version": None,
        "classes": [],
        "state": "none",
        "note": "the map is made once all images are embedded",
    }
    assert not world.jobs.map_waits()
    assert world.services.map_maker.make(1) is None


def test_a_map_that_failed_is_not_asked_for_by_whoever_looks(animals: World) -> None:
    """It is tried again by itself; the sentence says why there is none."""
    animals.jobs.redis.flushdb()
    animals.services.retries.failed(1, "make_map", OSError("no room"))
    header, _ = answer(animals)
    assert (header["state"], header["note"]) == ("none", "the map could not be made: OSError: no room")
    assert not animals.jobs.map_waits()


def test_without_redis_what_is_there_is_shown(animals: World, dead_redis_url: str) -> None:
    """And said that it is away."""
    make(animals)
    header, columns = answer(animals.again(redis_url=dead_redis_url))
    assert (header["state"], len(columns["x"])) == ("ready", 24)
    header, columns = answer(animals)
    assert header["note"] is None


def test_how_far_it_is_is_told_while_it_is_made(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an estimate of the time left, and taken back in the end."""
    monkeypatch.setattr(map_module, "NOTED_EVERY_S", 0.0)
    notes: list[str | None] = []
    set_note = animals.jobs.set_note

    def noted(project_id: int, name: str, text: str | None) -> None:
        notes.append(text)
        set_note(project_id, name, text)

    monkeypatch.setattr(animals.jobs, "set_note", noted)
    make(animals)
    assert notes[0] == "the map of 24 images is being made, about 5 s"
    assert len(notes) > 3
    assert notes[-1] is None


def test_while_it_waits_the_sentence_of_the_last_note_is_shown(animals: World) -> None:
    """What the process that makes it wrote."""
    animals.jobs.set_note(1, "map", "the map of 12,000 images is being made, about 2 minutes")
    assert answer(animals)[0]["note"] == "the map of 12,000 images is being made, about 2 minutes"


def test_two_workers_do_not_make_it_at_once(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second leaves it to the first."""
    monkeypatch.setattr(map_module, "LOCK_TTL_S", -2.0)
    with animals.again().jobs.project_lock(1, MAP_LOCK):
        assert make(animals) is None
    assert make(animals) == 24


def test_what_came_while_it_was_made_is_asked_for_again(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task is embedded in the middle."""
    lay_out = map_module.lay_out

    def slowly(*args: Any, **options: Any) -> Any:
        animals.label_studio[1].tasks[25] = rgb(9, 9, 9)
        animals.embed_all()
        return lay_out(*args, **options)

    monkeypatch.setattr(map_module, "lay_out", slowly)
    assert make(animals) == 24
    assert animals.jobs.map_waits()
    assert make(animals) == 25


def test_of_a_project_that_is_gone_nothing_is_kept(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleted while its map is made: no folder appears again."""
    lay_out = map_module.lay_out

    def slowly(*args: Any, **options: Any) -> Any:
        animals.registry.forget(1)
        return lay_out(*args, **options)

    monkeypatch.setattr(map_module, "lay_out", slowly)
    assert make(animals) == 0
    assert animals.registry.map_arrays(1, LAYOUT) is None
    with pytest.raises(ProjectNotFoundError):
        answer(animals)


def test_a_project_without_images_has_an_empty_map(animals: World) -> None:
    """All tasks are deleted."""
    make(animals)
    animals.label_studio[1].tasks.clear()
    plan(animals)
    assert make(animals) == 0
    header, columns = answer(animals)
    assert (header["state"], len(columns["x"])) == ("ready", 0)


def test_the_same_answer_is_the_same_object_with_the_same_name(animals: World) -> None:
    """Put together once; another version gives it another name."""
    make(animals)
    reader = animals.services.map_reader
    first = reader.answer(1)
    assert reader.answer(1) is first
    label(animals, cat=[4])
    retrain(animals)
    assert reader.answer(1).etag != first.etag


def test_the_images_outside_a_working_set_have_no_prediction(animals: World) -> None:
    """Of a project larger than SHARD_SIZE a version looks at some: the others are on the map all the same."""
    make(animals)
    arrays = dict(kept(animals, PREDICTIONS).arrays)
    part = {name: array if name == "window" else array[::2] for name, array in arrays.items()}
    animals.registry.keep_map_arrays(1, PREDICTIONS, part, kept(animals, PREDICTIONS).facts)
    _, columns = answer(animals)
    assert len(columns["x"]) == 24
    assert (columns["prediction"] == NONE).tolist() == [False, True] * 12
