"""The retrain use case around an in-memory Label Studio, with a real Redis, a real store and a real data folder."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import pytest
from fakes import FakeLabelStudio, TinyBackbone, World, build_world, retrain, rgb

from backend.adapters.jobs import Jobs
from backend.errors import (
    LabelingConfigError,
    LabelStudioError,
    LockLostError,
    ProjectBusyError,
    ProjectNotFoundError,
)
from backend.loop import train

CATS, DOGS = (1, 2, 3, 4), (5, 6, 7, 8)
REDS = [rgb(255 - 20 * number, 0, 9 * number) for number in range(4)]
GREENS = [rgb(0, 255 - 20 * number, 9 * number) for number in range(4)]


@pytest.fixture
def animals(world: World) -> World:
    """Project 1: tasks 1 to 4 are red (cats), 5 to 8 green (dogs), all embedded, none labeled."""
    world.label_studio.add_project(1, [*REDS, *GREENS])
    world.embed_all()
    return world


def label(world: World, **labels: Any) -> None:
    """label(world, cat=[1], dog=[5, 6])"""
    for name, task_ids in labels.items():
        for task_id in task_ids:
            world.label_studio.annotate(1, task_id, name)


def versions_of_predictions(label_studio: FakeLabelStudio) -> Counter[str]:
    return Counter(row["model_version"] for row in label_studio[1].predictions)


# -- before there is a model ------------------------------------------------------------------------------------------


def test_without_images_there_is_no_version(world: World) -> None:
    """An empty project: nothing is made, nothing is told to Label Studio, and nobody is left waiting."""
    world.label_studio.add_project(1)
    ticket, _ = world.jobs.request_retrain(1)
    assert world.services.trainer.retrain(1) is None
    assert world.registry.published(1) is None
    assert "push_predictions" not in world.label_studio.asked
    assert world.jobs.wait_for_retrain(1, ticket, 0)


def test_without_labels_the_first_batch_is_chosen(animals: World) -> None:
    """A seed version: three tasks of both colours, on top of Label Studio's queue in rank order."""
    record = retrain(animals)
    assert (record.kind, record.labels_used, record.pool_size) == ("seed", 0, 8)
    assert len(record.seed_task_ids) == 3
    assert set(record.seed_task_ids) & set(CATS)
    assert set(record.seed_task_ids) & set(DOGS)
    assert list(record.window) == list(record.seed_task_ids) == animals.label_studio.served_order(1)
    assert animals.label_studio[1].project.model_version == record.version == animals.registry.published(1)
    assert all(row["result"] == [] for row in animals.label_studio[1].predictions)
    assert record.seed_engine == "lightly-mundig", record.seed_engine_reason


def test_the_first_batch_waits_for_all_images(world: World) -> None:
    """Stopped in the middle of embedding and started again: the batch is not chosen from the half that is there."""
    world.label_studio.add_project(1, [*REDS, *GREENS])
    some = world.label_studio.tasks(1, "image")[:5]
    world.services.embedder.embed_now(1, some)
    assert world.services.trainer.retrain(1) is None
    assert world.registry.published(1) is None
    label(world, cat=[1])
    assert world.services.trainer.retrain(1) is None
    label(world, dog=[5])
    assert retrain(world).kind == "model", "two classes are known: people need not wait"


def test_broken_images_do_not_keep_the_first_batch_waiting(world: World) -> None:
    """What cannot be read counts as looked at."""
    world.label_studio.add_project(1, [*REDS, "broken:5", None])
    world.embed_all()
    assert retrain(world).pool_size == 4


def test_one_class_is_no_model_yet(animals: World) -> None:
    """After one label the rest of the same first batch stays on top; the version knows one label."""
    first = retrain(animals)
    done = first.seed_task_ids[0]
    label(animals, cat=[done])
    record = retrain(animals)
    assert (record.kind, record.labels_used, list(record.classes)) == ("seed", 1, ["cat"])
    assert record.labels_by_class == {"cat": 1}
    assert record.accuracy is None
    assert list(record.seed_task_ids) == list(first.seed_task_ids)
    assert animals.label_studio.served_order(1) == [task for task in first.seed_task_ids if task != done]


def test_a_used_up_first_batch_of_one_class_is_followed_by_another(animals: World) -> None:
    """All three were cats: three more tasks are chosen, none of those labeled."""
    first = retrain(animals)
    label(animals, cat=first.seed_task_ids)
    record = retrain(animals)
    assert record.kind == "seed"
    assert len(record.window) == 3
    assert not set(record.window) & set(first.seed_task_ids)


def test_skipped_tasks_of_the_first_batch_do_not_stay_alone_on_top(animals: World) -> None:
    """Two of three labeled the same, the third skipped: tasks nobody has seen come before the skipped one."""
    first = retrain(animals)
    label(animals, cat=first.seed_task_ids[:2])
    animals.label_studio.annotate(1, first.seed_task_ids[2], None, skipped=True)
    record = retrain(animals)
    assert record.kind == "seed"
    assert record.window[0] != first.seed_task_ids[2]
    assert len(record.window) > 1


# -- with a model -----------------------------------------------------------------------------------------------------


def test_two_classes_make_a_model_and_order_the_queue(animals: World) -> None:
    """The window holds unlabeled tasks only, in Label Studio's order; each has a pre-label with its confidence."""
    retrain(animals)
    label(animals, cat=[1, 2], dog=[5, 6])
    record = retrain(animals)
    assert (record.kind, record.labels_used, record.pool_size) == ("model", 4, 4)
    assert record.labels_by_class == {"cat": 2, "dog": 2}
    assert list(record.classes) == ["cat", "dog"]
    assert record.accuracy is not None
    assert 0 <= record.accuracy <= 1
    assert sorted(record.window) == [3, 4, 7, 8]
    assert animals.label_studio.served_order(1) == list(record.window)
    rows = [row for row in animals.label_studio[1].predictions if row["model_version"] == record.version]
    guesses = {row["task"]: row["result"][0]["value"]["choices"][0] for row in rows}
    assert guesses == {3: "cat", 4: "cat", 7: "dog", 8: "dog"}
    assert all(type(row["score"]) is float and 0 <= row["score"] <= 1.001 for row in rows)


def test_each_version_is_pushed_once_and_is_the_published_one(animals: World) -> None:
    """Label Studio averages scores of one version on one task: no task has two rows of a version."""
    retrain(animals)
    label(animals, cat=[1], dog=[5])
    retrain(animals)
    label(animals, cat=[2])
    last = retrain(animals)
    pairs = Counter((row["task"], row["model_version"]) for row in animals.label_studio[1].predictions)
    assert set(pairs.values()) == {1}
    assert len(versions_of_predictions(animals.label_studio)) == 3
    assert animals.label_studio[1].project.model_version == last.version == animals.registry.published(1)


def test_the_window_is_as_large_as_set_however_large_the_pool(animals: World) -> None:
    """Six unlabeled tasks, a window of four: four rows."""
    label(animals, cat=[1], dog=[5])
    record = retrain(animals)
    assert len(record.window) == 4
    assert versions_of_predictions(animals.label_studio)[record.version] == 4


def test_the_first_batch_is_finished_before_the_model_chooses(animals: World) -> None:
    """Two classes are known after two of three seeds: the third still comes first."""
    first = retrain(animals)
    cat = next(task for task in first.seed_task_ids if task in CATS)
    dog = next(task for task in first.seed_task_ids if task in DOGS)
    (left,) = set(first.seed_task_ids) - {cat, dog}
    label(animals, cat=[cat], dog=[dog])
    record = retrain(animals)
    assert record.kind == "model"
    assert animals.label_studio.served_order(1)[0] == left
    label(animals, **{"cat" if left in CATS else "dog": [left]})
    after = retrain(animals)
    assert after.seed_engine is None
    assert list(after.seed_task_ids) == []


def test_skipped_tasks_come_last_and_train_nothing(animals: World) -> None:
    """Three skipped of six: the other three first; labels used are the two submitted."""
    label(animals, cat=[1], dog=[5])
    for task_id in (2, 3, 6):
        animals.label_studio.annotate(1, task_id, "cat", skipped=True)
    record = retrain(animals.again(window_size=6))
    assert (record.labels_used, record.pool_size) == (2, 6)
    order = animals.label_studio.served_order(1)
    assert set(order[:3]) == {4, 7, 8}
    assert set(order[3:]) == {2, 3, 6}


def test_a_label_the_config_does_not_offer_is_ignored_and_reported(animals: World) -> None:
    """Task 2 says 'catt': it trains nothing, leaves the pool, and the record says why."""
    label(animals, cat=[1], catt=[2], dog=[5])
    animals.label_studio.annotate(1, 3, None)
    record = retrain(animals)
    assert (record.labels_used, record.labels_by_class) == (2, {"cat": 1, "dog": 1})
    assert set(record.ignored_labels) == {"2", "3"}
    assert "label 'catt'; the labeling config offers 'cat', 'dog'" in record.ignored_labels["2"]
    assert record.pool_size == 4
    assert json.loads(json.dumps(record.to_json())) == record.to_json()


def test_a_labeled_task_with_a_broken_image_is_ignored_and_reported(world: World) -> None:
    """One bad image stops nothing, and its label is not counted as used."""
    world.label_studio.add_project(1, [REDS[0], "broken:2", None, GREENS[0]])
    world.embed_all()
    label(world, cat=[1, 2], dog=[3, 4])
    record = retrain(world)
    assert record.labels_used == 2
    assert set(record.ignored_labels) == {"2", "3"}
    assert "damaged" in record.ignored_labels["2"]


def test_everything_labeled_is_an_empty_window_and_still_a_version(animals: World) -> None:
    """The last label is in the published version although there is nothing to push."""
    label(animals, cat=CATS, dog=DOGS[:3])
    retrain(animals)
    label(animals, dog=[8])
    before = len(animals.label_studio[1].predictions)
    record = retrain(animals)
    assert (record.labels_used, record.pool_size, list(record.window)) == (8, 0, [])
    assert animals.registry.published(1) == record.version
    assert len(animals.label_studio[1].predictions) == before


def test_a_label_that_came_before_its_embedding_is_embedded_in_the_job(world: World) -> None:
    """People label faster than images are embedded: nothing they label is left out."""
    world.label_studio.add_project(1, [REDS[0], GREENS[0], REDS[1]])
    label(world, cat=[1], dog=[2])
    record = retrain(world)
    assert (record.kind, record.labels_used, record.pool_size) == ("model", 2, 0)
    assert world.backbone.n_embedded == 2


def test_a_withdrawn_label_is_gone_from_the_next_version(animals: World) -> None:
    """Deleted annotations are no longer trained on, and their task is in the pool again."""
    label(animals, cat=[1, 2], dog=[5])
    retrain(animals)
    animals.label_studio.withdraw(1, 2)
    record = retrain(animals.again(window_size=6))
    assert (record.labels_used, record.pool_size) == (2, 6)
    assert 2 in record.window


def test_a_changed_label_makes_a_new_version(animals: World) -> None:
    """The same tasks, another label on one of them."""
    label(animals, cat=[1, 2], dog=[5])
    retrain(animals)
    label(animals, dog=[2])
    assert retrain(animals).labels_by_class == {"cat": 1, "dog": 2}


def test_a_label_taken_from_the_config_is_gone_from_the_model(animals: World) -> None:
    """Somebody replaces 'dog' by 'wolf': dogs are ignored from now on, and the record has the new config."""
    label(animals, cat=[1], dog=[5])
    old = retrain(animals)
    config = old.label_config.replace("dog", "wolf")
    animals.label_studio.change_project(1, label_config=config)
    label(animals, wolf=[6])
    record = retrain(animals)
    assert record.labels_by_class == {"cat": 1, "wolf": 1}
    assert record.label_config == config
    assert "5" in record.ignored_labels
    facts = animals.registry.project_facts(1)
    assert facts is not None
    assert facts["label_config"] == config


def test_projects_do_not_touch_each_other(animals: World) -> None:
    """Project 2 has other images and labels: its version knows only them, project 1 stays as it was."""
    label(animals, cat=[1], dog=[5])
    one = retrain(animals)
    animals.label_studio.add_project(2, [GREENS[0], REDS[0], REDS[1]])
    animals.embed_all(2)
    animals.label_studio.annotate(2, 1, "cat")
    animals.label_studio.annotate(2, 2, "dog")
    two = retrain(animals, 2)
    assert (two.labels_used, two.pool_size, list(two.window)) == (2, 1, [3])
    assert animals.label_studio[2].predictions[-1]["result"][0]["value"]["choices"] == ["dog"]
    assert animals.registry.published(1) == one.version
    assert animals.registry.published(2) == two.version


# -- when a version is made -------------------------------------------------------------------------------------------


def test_nothing_new_is_no_new_version(animals: World) -> None:
    """The same labels and pool: nothing is pushed, the ticket is answered all the same."""
    label(animals, cat=[1], dog=[5])
    record = retrain(animals)
    animals.label_studio.asked.clear()
    ticket, _ = animals.jobs.request_retrain(1)
    assert animals.services.trainer.retrain(1) is None
    assert animals.registry.published(1) == record.version
    assert set(animals.label_studio.asked) <= {"project", "annotated_tasks"}
    assert animals.jobs.wait_for_retrain(1, ticket, 0)


def test_a_forced_request_makes_a_version_of_the_same_labels(animals: World) -> None:
    """Start Training always gives something new."""
    label(animals, cat=[1], dog=[5])
    first = retrain(animals)
    animals.jobs.request_retrain(1, forced=True)
    second = retrain(animals)
    assert second.version > first.version
    assert second.inputs_digest == first.inputs_digest
    assert animals.label_studio[1].project.model_version == second.version
    assert animals.services.trainer.retrain(1) is None


def test_another_seed_strategy_chooses_the_first_batch_anew(animals: World) -> None:
    """Restarted with SEED_STRATEGY=random before there is a model: another batch; after it, what waits stays."""
    first = retrain(animals)
    assert first.seed_strategy == "typical_coreset"
    random = animals.again(seed_strategy="random")
    second = retrain(random)
    assert (second.kind, second.seed_strategy, second.seed_engine) == ("seed", "random", "numpy")
    label(animals, cat=[task for task in CATS if task in second.seed_task_ids], dog=[5 if 5 in DOGS else 6])
    label(animals, dog=[6])
    model = retrain(random)
    left = [task for task in second.seed_task_ids if task not in (*CATS, 5, 6)]
    assert list(model.window[: len(left)]) == left


def test_a_batch_recorded_before_strategies_had_names_is_kept(animals: World) -> None:
    """An upgrade does not change what people have in front of them."""
    first = retrain(animals)
    folder = animals.registry.project_directory(1) / "versions" / first.version
    content = json.loads((folder / "record.json").read_text())
    del content["seed_strategy"]
    (folder / "record.json").write_text(json.dumps(content))
    label(animals, cat=[first.seed_task_ids[0]])
    assert list(retrain(animals.again()).seed_task_ids) == list(first.seed_task_ids)


@pytest.mark.parametrize(
    "change", [{"acquisition": "entropy"}, {"window_size": 2}, {"random_state": 1}, {"seed_strategy": "random"}]
)
def test_another_setting_makes_a_version_of_the_same_labels(animals: World, change: dict[str, Any]) -> None:
    """Restarted with another acquisition function, the queue is made anew at the first retrain."""
    label(animals, cat=[1], dog=[5])
    retrain(animals)
    assert retrain(animals.again(**change)).labels_used == 2


def test_another_backbone_embeds_and_trains_anew(animals: World) -> None:
    """Embeddings of two backbones are never mixed: the pool of the new one starts empty."""
    label(animals, cat=[1], dog=[5])
    retrain(animals)
    other = build_world(
        animals.services.settings, animals.label_studio, animals.images, TinyBackbone(fingerprint="beef")
    )
    record = retrain(other)
    assert (record.fingerprint, record.labels_used, record.pool_size) == ("beef", 2, 0)


def test_a_new_image_in_a_task_makes_a_new_version(animals: World) -> None:
    """Task 8 shows another picture now: its embedding changed, so its prediction has to."""
    animals = animals.again(window_size=8)
    label(animals, cat=[1], dog=[5])
    retrain(animals)
    animals.label_studio[1].tasks[8] = REDS[0]
    animals.embed_all()
    record = retrain(animals)
    row = next(
        row
        for row in animals.label_studio[1].predictions
        if row["task"] == 8 and row["model_version"] == record.version
    )
    assert row["result"][0]["value"]["choices"] == ["cat"]


def test_new_tasks_make_a_new_version(animals: World) -> None:
    """The pool grew: the queue is made anew."""
    label(animals, cat=[1], dog=[5])
    retrain(animals)
    animals.label_studio[1].tasks[9] = rgb(128, 128)
    animals.embed_all()
    assert retrain(animals).pool_size == 7


def test_a_label_given_while_reading_is_in_the_follow_up(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The webhook comes just after the labels were read: one more job waits, and its ticket is not answered yet."""
    label(animals, cat=[1], dog=[5])
    read, tickets = animals.label_studio.annotated_tasks, []

    def read_then_label(project_id: int, image_field: str, **fields: Any) -> Any:
        found = read(project_id, image_field, **fields)
        if not tickets:
            label(animals, cat=[2])
            tickets.append(animals.jobs.request_retrain(1)[0])
        return found

    monkeypatch.setattr(animals.label_studio, "annotated_tasks", read_then_label)
    assert retrain(animals).labels_used == 2
    assert "retrain(1)" in animals.waiting()
    assert not animals.jobs.wait_for_retrain(1, tickets[0], 0)
    assert retrain(animals).labels_used == 3
    assert animals.jobs.wait_for_retrain(1, tickets[0], 0)


def test_each_new_version_asks_for_its_evaluation_and_for_pruning(animals: World) -> None:
    """Both in jobs of their own, never in the labeler's way; nothing new, nothing to do."""
    animals.services.trainer.retrain(1)
    assert animals.waiting() == ["evaluate(1)", "prune(1)"]
    animals.jobs.begin(1, "evaluate")
    animals.jobs.begin(1, "prune")
    animals.services.trainer.retrain(1)
    assert animals.waiting() == ["evaluate(1)", "prune(1)"]


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["save", "push_predictions", "activate_version", "publish"])
def test_a_crash_at_any_step_leaves_the_old_version(animals: World, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """The old version is served until a whole new one is there; the next try uses all labels under a new name."""
    label(animals, cat=[1], dog=[5])
    old = retrain(animals)
    label(animals, cat=[2])
    ticket, _ = animals.jobs.request_retrain(1)
    with monkeypatch.context() as patch:
        owner: Any = animals.registry if step in ("save", "publish") else animals.label_studio
        patch.setattr(owner, step, lambda *_: (_ for _ in ()).throw(LabelStudioError("killed")))
        with pytest.raises(LabelStudioError, match="killed"):
            animals.services.trainer.retrain(1)
    assert animals.registry.published(1) == old.version
    published = animals.services.predictor.published(1)
    assert published is not None
    assert published[0].version == old.version
    assert not animals.jobs.wait_for_retrain(1, ticket, 0)
    record = retrain(animals)
    assert record.labels_used == 3
    assert animals.registry.published(1) == record.version
    assert animals.label_studio[1].project.model_version == record.version
    pairs = Counter((row["task"], row["model_version"]) for row in animals.label_studio[1].predictions)
    assert set(pairs.values()) == {1}
    assert animals.jobs.wait_for_retrain(1, ticket, 0)


def test_a_failed_forced_retrain_stays_forced(animals: World) -> None:
    """Start Training met a Label Studio that was away: the next try still makes a new version."""
    label(animals, cat=[1], dog=[5])
    old = retrain(animals)
    animals.jobs.request_retrain(1, forced=True)
    animals.label_studio.failures["push_predictions"] = LabelStudioError("away")
    with pytest.raises(LabelStudioError):
        animals.services.trainer.retrain(1)
    animals.label_studio.failures.clear()
    animals.jobs.request_retrain(1)
    assert retrain(animals).version > old.version


def test_a_project_that_stays_locked_is_told_as_that(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker retrains it for long: nothing is done, and the request stays to be answered."""
    monkeypatch.setattr(train, "RETRAIN_WAIT_S", 0.05)
    ticket, _ = animals.jobs.request_retrain(1)
    animals.label_studio.asked.clear()
    with animals.again().jobs.project_lock(1), pytest.raises(ProjectBusyError, match="project 1 stayed locked"):
        animals.services.trainer.retrain(1)
    assert not animals.jobs.wait_for_retrain(1, ticket, 0)
    assert animals.label_studio.asked == []


def test_the_record_says_which_labels_it_knows(animals: World) -> None:
    """The digest of two lines that anybody can write: sha256 of '1 TAB cat' and '5 TAB dog'."""
    label(animals, dog=[5], cat=[1])
    record = retrain(animals)
    assert record.labels_digest == hashlib.sha256(b"1\tcat\n5\tdog\n").hexdigest()
    assert animals.registry.record(1, record.version).labels_digest == record.labels_digest


def test_a_lost_lock_publishes_nothing(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker took over while this one was fitting: nothing of this one's is pushed or published."""
    label(animals, cat=[1], dog=[5])
    read = animals.label_studio.annotated_tasks

    def read_slowly(project_id: int, image_field: str, **fields: Any) -> Any:
        animals.jobs.redis.set("active-learning:1:lock", "the other worker")
        return read(project_id, image_field, **fields)

    monkeypatch.setattr(animals.label_studio, "annotated_tasks", read_slowly)
    with pytest.raises(LockLostError):
        animals.services.trainer.retrain(1)
    assert "push_predictions" not in animals.label_studio.asked
    assert animals.registry.published(1) is None


def test_the_lock_is_held_while_publishing_and_free_after(animals: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The status says running, then idle."""
    seen: list[str] = []
    publish = animals.registry.publish
    monkeypatch.setattr(
        animals.registry, "publish", lambda *facts: (seen.append(animals.jobs.training(1)), publish(*facts))
    )
    retrain(animals)
    assert seen == ["running"]
    assert animals.jobs.training(1) == "idle"


def test_a_damaged_published_version_does_not_stop_the_next(animals: World) -> None:
    """Half a record on the disk: a whole new version is made of the same labels."""
    label(animals, cat=[1], dog=[5])
    record = retrain(animals)
    path = animals.registry.project_directory(1) / "versions" / record.version / "record.json"
    path.write_text('{"version": "' + record.version + '"}')
    assert retrain(animals).labels_used == 2


def test_a_project_that_is_gone_is_an_error_of_its_own(animals: World) -> None:
    """The reconciliation sets it aside; a retrain only says so."""
    animals.label_studio.remove_project(1)
    with pytest.raises(ProjectNotFoundError):
        animals.services.trainer.retrain(1)


def test_a_config_that_is_not_understood_keeps_the_old_version(animals: World) -> None:
    """Somebody switches the project to boxes: a sentence, and the published version stays."""
    label(animals, cat=[1], dog=[5])
    old = retrain(animals)
    animals.label_studio.change_project(1, label_config="<View/>")
    with pytest.raises(LabelingConfigError):
        animals.services.trainer.retrain(1)
    assert animals.registry.published(1) == old.version
    assert animals.jobs.training(1) == "idle"


def test_a_task_deleted_meanwhile_does_not_stop_the_retrain(animals: World) -> None:
    """Task 3 is gone from Label Studio and not yet from the embeddings: the labels are published all the same."""
    label(animals, cat=[1, 2], dog=[5, 6])
    del animals.label_studio[1].tasks[3]
    record = retrain(animals)
    assert animals.registry.published(1) == record.version
    assert record.labels_used == 4


def test_the_record_says_what_it_was_made_from(animals: World) -> None:
    """Backbone, fingerprint, seed of randomness, acquisition, times of each stage."""
    label(animals, cat=[1], dog=[5])
    record = retrain(animals)
    assert (record.backbone, record.fingerprint, record.random_state) == ("tiny", "f00d", 0)
    assert record.acquisition == "information_density"
    assert set(record.stage_seconds) >= {"read_labels", "embeddings", "fit", "seed", "score"}
    assert animals.registry.record(1, record.version).inputs_digest == record.inputs_digest


def test_the_same_inputs_give_the_same_version(animals: World) -> None:
    """Seeded: two trainings on the same labels order the queue alike."""
    label(animals, cat=[1, 2], dog=[5, 6])
    first = retrain(animals)
    animals.jobs.request_retrain(1, forced=True)
    second = retrain(animals)
    assert list(second.window) == list(first.window)
    assert second.accuracy == first.accuracy
    heads = [animals.registry.head(record) for record in (first, second)]
    assert heads[0] is not None
    assert heads[1] is not None
    assert heads[0].weights.tolist() == heads[1].weights.tolist()


def test_a_retrain_without_redis_publishes_nothing(animals: World, dead_redis_url: str) -> None:
    """Without the lock nobody may publish."""
    from backend.errors import RedisUnavailableError

    lonely = build_world(animals.services.settings, animals.label_studio, animals.images, animals.backbone)
    vars(lonely.services)["jobs"] = Jobs(dead_redis_url)
    with pytest.raises(RedisUnavailableError):
        lonely.services.trainer.retrain(1)
    assert animals.registry.published(1) is None
