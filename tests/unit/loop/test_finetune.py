"""Fine-tuning around an in-memory Label Studio: adopted if better, in use once all is embedded, never lost."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import CREATED, LABEL_CONFIG, TinyBackbone, World, build_world, retrain, rgb

from backend.errors import BackendError, FinetuningError
from backend.loop.evaluate import CROSS_VALIDATED
from backend.schema import FinetuningRecord, ValidationFilter

N_TASKS, N_LABELS = 50, 30
SHARP = (1.0, 1.0, 0.02)
"""Weights that see what tells cats from dogs, and little of what does not."""
BLIND = (0.0, 0.0, 1.0)


@pytest.fixture
def project(world: World) -> World:
    """Project 1: cats (odd tasks) are a little more red than green, dogs less, in any blue; 30 of 50 are labeled."""
    blues = (5 * np.random.default_rng(0).permutation(N_TASKS)).tolist()
    world = world.again(train="finetune", finetune_from=20, embed_batch_size=16)
    world.label_studio.add_project(
        1, [rgb(*((105, 95) if task_id % 2 else (95, 105)), blue) for task_id, blue in enumerate(blues, start=1)]
    )
    world.registry.register(1, CREATED, LABEL_CONFIG)
    world.embed_all()
    annotate(world, range(1, N_LABELS + 1))
    return world


def annotate(world: World, task_ids: range) -> None:
    for task_id in task_ids:
        world.label_studio.annotate(1, task_id, "cat" if task_id % 2 else "dog")


def finetune(world: World, weights: tuple[float, ...] | BaseException = SHARP) -> FinetuningRecord | None:
    world.backbone.tuned_weights = weights
    return world.services.finetuner.finetune(1)


def kept(world: World) -> FinetuningRecord:
    record = world.registry.finetuning(1)
    assert record is not None
    return record


def status(world: World) -> dict[str, object]:
    found: dict[str, object] = world.services.status.project(1)["finetuning"]
    return found


def restarted(world: World) -> World:
    """Another process with the same data folder, Redis and Label Studio."""
    return build_world(world.services.settings, world.label_studio, world.images, TinyBackbone())


# -- a better backbone ------------------------------------------------------------------------------------------------


def test_a_better_backbone_is_adopted_and_the_next_version_is_made_with_it(project: World) -> None:
    """All images are embedded with it before the switch; then a retrain is asked for, which uses it."""
    before = retrain(project)
    assert "finetune(1)" in project.waiting()
    project.empty_queue()
    record = finetune(project)
    assert record is not None
    assert (record.outcome, record.labels_used, record.base) == ("in_use", N_LABELS, "f00d")
    assert project.services.backbones.current(1).backbone.fingerprint == record.fingerprint
    table = project.table(1)
    assert table.task_ids.tolist() == list(range(1, N_TASKS + 1))
    np.testing.assert_allclose(table.embeddings[0, 1], 95 / 255, rtol=1e-3)
    assert project.waiting() == ["retrain(1)"]
    after = retrain(project)
    assert (before.fingerprint, after.fingerprint) == ("f00d", record.fingerprint)
    assert "finetune(1)" not in project.waiting(), "it is not due again"
    assert status(project)["outcome"] == "in_use"


def test_a_fifth_of_each_class_is_held_out_and_not_trained_on(project: World) -> None:
    """15 cats and 15 dogs: three of each are kept to judge by, and the rest is what the backbone has seen."""
    record = finetune(project)
    assert record is not None
    ((pixels, targets),) = project.backbone.trained_on
    assert np.bincount(targets).tolist() == [12, 12]
    assert len(record.seen) == len(set(record.seen)) == 24
    assert sum(task_id % 2 for task_id in record.seen) == 12
    expected = [project.label_studio[1].tasks[task_id] for task_id in record.seen]
    assert [rgb(*picture[0, 0].tolist()) for picture in pixels] == expected
    assert "on 6 labels held out" in record.note


def test_accuracy_is_measured_on_labels_the_backbone_has_not_seen(project: World) -> None:
    """Of 30 labels six, and then the new ones too; the kind of the accuracy says so."""
    assert retrain(project).accuracy_kind == CROSS_VALIDATED
    finetune(project)
    kind = retrain(project).accuracy_kind or ""
    assert "on the 6 labeled tasks that the fine-tuned backbone was not trained on" in kind
    annotate(project, range(31, 34))
    assert "on the 9 labeled tasks" in (retrain(project).accuracy_kind or "")


def test_validation_tasks_are_never_trained_on(project: World) -> None:
    """Tasks 1 to 10 are a validation split: neither seen nor held out; the accuracy stays measured on them."""
    for task_id in range(1, 11):
        project.label_studio[1].fields[task_id] = {"split": "val"}
    project = project.again(validation_filter=ValidationFilter("split", "val"))
    record = finetune(project)
    assert record is not None
    assert record.labels_used == 20
    assert min(record.seen) > 10
    assert len(project.backbone.trained_on[0][0]) == 16
    assert retrain(project).accuracy_kind == "measured on 10 validation tasks"


def test_a_broken_image_is_left_out(project: World) -> None:
    """A labeled task whose image can no longer be read takes no part; the others do."""
    project.label_studio[1].tasks[1] = "broken:1"
    record = finetune(project)
    assert record is not None
    assert record.outcome == "in_use"
    assert 1 not in record.seen


# -- when it is due ---------------------------------------------------------------------------------------------------


def test_too_few_labels_ask_for_nothing(project: World) -> None:
    """30 labels, from 31 on: no job, and the status says what it waits for."""
    patient = project.again(finetune_from=31)
    retrain(patient)
    assert "finetune(1)" not in patient.waiting()
    assert patient.services.finetuner.finetune(1) is None
    assert status(patient)["note"] == "begins at 31 labels"
    annotate(patient, range(31, 32))
    retrain(patient)
    assert "finetune(1)" in patient.waiting()


def test_labels_that_come_meanwhile_ask_for_no_second_job(project: World) -> None:
    """One fine-tuning at a time: while one waits, and while one runs."""
    retrain(project)
    annotate(project, range(31, 32))
    retrain(project)
    assert project.waiting().count("finetune(1)") == 1
    project.empty_queue()
    with project.jobs.project_lock(1, "finetune-lock"):
        annotate(project, range(32, 33))
        retrain(project)
        assert project.jobs.training(1) == "idle"
        assert status(project)["state"] == "running"
    assert "finetune(1)" not in project.waiting()


def test_with_train_head_nothing_is_new(project: World) -> None:
    """The default: no job, no file, no word in the status; even a fine-tuned backbone of before is not used."""
    finetune(project)
    project.empty_queue()
    plain = project.again(train="head")
    record = retrain(plain)
    assert record.fingerprint == "f00d"
    assert record.accuracy_kind == CROSS_VALIDATED
    assert plain.waiting() == ["evaluate(1)", "prune(1)"]
    assert plain.services.finetuner.finetune(1) is None
    assert plain.services.status.project(1)["finetuning"] is None


def test_without_a_gpu_nothing_is_asked_for(project: World) -> None:
    """The backbone says what stands against it; the head is trained as ever."""
    project.backbone.finetuning_obstacle = "no GPU"
    assert retrain(project).kind == "model"
    assert "finetune(1)" not in project.waiting()
    assert finetune(project) is None
    assert project.backbone.trained_on == []


def test_it_is_due_again_with_twice_the_labels(project: World) -> None:
    """Held out then are labels that the backbone in use has not seen either; what is kept of the first one goes."""
    first = finetune(project)
    assert first is not None
    assert finetune(project) is None
    project.label_studio[1].tasks.update({task_id: rgb(task_id, 100, 5) for task_id in range(51, 61)})
    project.embed_all()
    annotate(project, range(31, 61))
    second = finetune(project, (1.0, 1.0, 0.01))
    assert second is not None
    assert second.outcome in ("in_use", "rejected")
    pixels, _ = project.backbone.trained_on[1]
    seen = {rgb(*picture[0, 0].tolist()) for picture in pixels}
    assert {project.label_studio[1].tasks[task_id] for task_id in first.seen} <= seen
    assert len(pixels) == 48


def test_what_is_kept_of_an_earlier_backbone_is_pruned(project: World) -> None:
    """Weights and embeddings of the one before go once no published version needs them; those of the base stay."""
    first = finetune(project)
    retrain(project)
    assert first is not None
    in_use = FinetuningRecord("in_use", 60, "f00d", "", fingerprint="tuned-1-2-1", seen=[1])
    TinyBackbone("tuned-1-2-1", (1, 2, 1)).save(project.registry.weights_file(1, "tuned-1-2-1"))
    project.registry.use_backbone(1, in_use)
    project.services.reconciler.prune(1)
    old = project.registry.weights_file(1, str(first.fingerprint))
    folder = project.registry.project_directory(1) / "embeddings"
    assert old.exists(), "the published version is still of the first"
    project.embed_all()
    retrain(project)
    project.services.reconciler.prune(1)
    assert not old.exists()
    assert sorted(path.name for path in folder.glob("*.lance")) == ["f00d.lance", "tuned-1-2-1.lance"]
    assert project.registry.weights_file(1, "tuned-1-2-1").exists()
    assert len(project.services.embedder.index(1, "f00d", 3).task_ids) == N_TASKS


# -- what may go wrong ------------------------------------------------------------------------------------------------


def test_a_worse_backbone_is_not_adopted(project: World) -> None:
    """The backbone stays, the status has the figures of both, and it is not tried again with the next label."""
    record = finetune(project, BLIND)
    assert record is not None
    assert record.outcome == "rejected"
    assert record.note.startswith("not adopted: on 6 labels held out")
    assert status(project)["note"] == record.note
    assert not list((project.registry.project_directory(1)).glob("backbones/*"))
    assert retrain(project).fingerprint == "f00d"
    assert "finetune(1)" not in project.waiting()


def test_a_loss_that_is_not_finite_fails_with_a_sentence(project: World) -> None:
    """It would fail again, so it waits for more labels; the head goes on being trained."""
    with pytest.raises(FinetuningError, match="its loss became nan"):
        finetune(project, FinetuningError("its loss became nan at step 3"))
    assert (status(project)["outcome"], status(project)["error"]) == ("failed", "its loss became nan at step 3")
    assert status(project)["state"] == "idle"
    assert retrain(project).kind == "model"
    assert "finetune(1)" not in project.waiting()


def test_labels_of_one_class_are_too_few(project: World) -> None:
    """Nothing could be learned or judged: a sentence, not a crash."""
    for task_id in range(2, N_LABELS + 1, 2):
        project.label_studio.withdraw(1, task_id)
    annotate(project, range(31, 50, 2))
    with pytest.raises(FinetuningError, match="25 labels of 1 classes"):
        finetune(project)


def test_killed_in_training_it_begins_again_three_times_at_most(project: World) -> None:
    """A killed process leaves its mark; the next retrain asks again, and gives up until there are more labels."""
    for n_tries in (1, 2, 3):
        project = restarted(project)
        retrain_request = project.services.trainer.retrain(1)
        assert (retrain_request is None) == (n_tries > 1)
        assert "finetune(1)" in project.waiting()
        with pytest.raises(KeyboardInterrupt):
            finetune(project, KeyboardInterrupt())
        assert (kept(project).outcome, kept(project).n_tries) == ("begun", n_tries)
        project.empty_queue()
        assert status(project)["note"] == f"begun on 30 labels, try {n_tries} of 3; stopped in the middle"
    project.services.trainer.retrain(1)
    assert project.waiting() == []
    assert project.services.backbones.current(1).backbone is project.backbone


def test_killed_while_embedding_it_goes_on_with_the_same_weights(
    project: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labelers go on with the old backbone; the next process embeds only what is missing and trains nothing anew."""
    embed_now, done = project.services.embedder.embed_now, []

    def die_after_one(*arguments: object) -> None:
        if done:
            raise KeyboardInterrupt
        embed_now(*arguments)  # type: ignore[arg-type]
        done.append(arguments)

    monkeypatch.setattr(project.services.embedder, "embed_now", die_after_one)
    with pytest.raises(KeyboardInterrupt):
        finetune(project)
    monkeypatch.undo()
    half = kept(project)
    assert half.outcome == "adopted"
    assert retrain(project).fingerprint == "f00d"
    other = restarted(project)
    n_loaded = len(other.images.loaded)
    record = finetune(other)
    assert record is not None
    assert (record.outcome, record.fingerprint) == ("in_use", half.fingerprint)
    assert other.backbone.trained_on == []
    assert len(other.images.loaded) - n_loaded == N_TASKS - 16


def test_images_that_are_away_for_a_while_do_not_spoil_the_switch(project: World) -> None:
    """Label Studio serves none of the unlabeled images: the switch waits, with a sentence, and then is made."""
    project.images.away = {project.label_studio[1].tasks[task_id] or "" for task_id in range(31, N_TASKS + 1)}
    with pytest.raises(BackendError, match="20 of 50 images cannot be read now"):
        finetune(project)
    assert kept(project).outcome == "adopted"
    assert "20 of 50" in str(status(project)["error"])
    project.images.away = set()
    record = finetune(project)
    assert record is not None
    assert (record.outcome, record.error) == ("in_use", None)
    assert record.note.startswith("adopted: ")
    assert len(project.table(1).task_ids) == N_TASKS


def test_labeled_images_that_are_away_put_it_off(project: World) -> None:
    """A third of the labeled images is away: nothing is trained on what is left, it is tried again."""
    project.images.away = {project.label_studio[1].tasks[task_id] or "" for task_id in range(1, 11)}
    with pytest.raises(BackendError, match="10 of 30 labeled images"):
        finetune(project)
    assert (kept(project).outcome, project.backbone.trained_on) == ("begun", [])


def test_a_restart_finds_the_fine_tuned_backbone(project: World) -> None:
    """Another process loads it from the data folder, with what it has seen."""
    record = finetune(project)
    assert record is not None
    current = restarted(project).services.backbones.current(1)
    assert current.backbone.fingerprint == record.fingerprint
    assert (current.seen, current.warning) == (frozenset(record.seen), None)


@pytest.mark.parametrize("damage", ["truncated", "other weights", "gone"])
def test_damaged_weights_bring_the_original_backbone_back(project: World, damage: str) -> None:
    """The next process goes on with the original one, whose embeddings are still there, and says so in the status."""
    record = finetune(project)
    assert record is not None
    path = project.registry.weights_file(1, str(record.fingerprint))
    if damage == "gone":
        path.unlink()
    else:
        path.write_text("[1.0," if damage == "truncated" else "[3.0, 1.0, 1.0]")
    other = restarted(project)
    version = retrain(other)
    assert (version.kind, version.fingerprint) == ("model", "f00d")
    assert version.accuracy_kind == CROSS_VALIDATED
    warning = other.services.status.project(1)["backbone_warning"]
    assert warning.startswith("the original backbone is used instead of the fine-tuned one: ")
    assert str(path) in warning


def test_weights_damaged_before_the_switch_are_given_up(project: World) -> None:
    """Adopted, then the file is damaged: failed with a sentence, the original backbone stays."""
    project.images.away = {project.label_studio[1].tasks[task_id] or "" for task_id in range(41, 51)}
    with pytest.raises(BackendError):
        finetune(project)
    project.registry.weights_file(1, str(kept(project).fingerprint)).write_text("[1")
    with pytest.raises(BackendError, match="cannot be read"):
        finetune(project)
    assert kept(project).outcome == "failed"
    assert retrain(project).fingerprint == "f00d"


def test_another_backbone_in_the_settings_is_used_at_once(project: World) -> None:
    """BACKBONE changed: what was fine-tuned from the old one is left, and fine-tuning is due anew."""
    finetune(project)
    other = build_world(
        project.services.settings, project.label_studio, project.images, TinyBackbone(fingerprint="beef")
    )
    other.embed_all()
    assert other.services.backbones.current(1).backbone.fingerprint == "beef"
    retrain(other)
    assert "finetune(1)" in other.waiting()
