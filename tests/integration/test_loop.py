"""The loop against real Label Studio: every way a label can come, change or go."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from live import LabelingProject, Stack, colour_of, config_of, data_uri, paused, picture

MakeProject = Callable[..., LabelingProject]


def label_two_classes(project: LabelingProject, n: int = 4) -> list[int]:
    """Labels tasks from the queue until two classes are known and n labels are used; their ids."""
    done: list[int] = []
    while len(done) < n or len({colour_of(project, task) for task in done}) < 2:
        task_id = project.next_task()
        project.annotate(task_id, colour_of(project, task_id))
        done.append(task_id)
    project.wait(lambda status: status["labels_used"] == len(done))
    return done


def test_first_batch_is_served_in_rank_order_without_pre_labels(project: LabelingProject) -> None:
    """The seed batch stands on top of the queue in rank order, and its predictions are empty: no bias."""
    status = project.status()
    queue = project.queue()
    assert status["kind"] == "seed"
    assert status["seed_engine"] == "lightly-mundig", status["seed_engine_reason"]
    assert [task for _, task in queue] == status["window"]
    assert len(queue) == 6
    assert all(prediction["result"] == [] for task in project.tasks() for prediction in task["predictions"])
    assert project.next_task() == status["window"][0]


def test_every_label_makes_a_version_and_the_queue_follows(project: LabelingProject) -> None:
    """Each submit leads to a new published version with exactly the labels given; next is the lowest score."""
    versions = {project.status()["model_version"]}
    for n in range(1, 9):
        task_id = project.next_task()
        project.annotate(task_id, colour_of(project, task_id))
        status = project.wait(lambda status, n=n: status["labels_used"] == n)
        versions.add(status["model_version"])
        queue = project.queue()
        assert project.next_task() == queue[0][1] == status["window"][0]
        assert [task for _, task in queue] == status["window"]
        assert len({score for score, _ in queue}) == len(queue)
    assert len(versions) == 9
    assert status["kind"] == "model"
    assert project.stack.call("GET", f"/api/projects/{project.id}/")["model_version"] == status["model_version"]


def test_predictions_carry_label_confidence_score_and_version(project: LabelingProject) -> None:
    """What Label Studio holds of a model version: a choice, its confidence, a queue score within 0..1."""
    label_two_classes(project, 6)
    status = project.status()
    waiting = [task for task in project.tasks() if task["id"] in status["window"]]
    assert waiting
    for task in waiting:
        current = [item for item in task["predictions"] if item["model_version"] == status["model_version"]]
        assert len(current) == 1
        region = current[0]["result"][0]
        assert region["value"]["choices"][0] in ("red", "green", "blue")
        assert 0 < region["score"] <= 1
        assert abs(sum(region["meta"]["confidence"].values()) - 1) < 1e-3
        assert 0 <= current[0]["score"] <= 1


def test_skipped_task_is_no_label_and_leaves_the_window(project: LabelingProject) -> None:
    """A skip is never trained on or counted, and a skipped task is not offered again while others wait."""
    task_id = project.next_task()
    before = project.status()["model_version"]
    project.annotate(task_id, None)
    status = project.wait(lambda status: status["model_version"] != before)
    assert status["labels_used"] == 0
    assert task_id not in status["window"]
    assert status["pool_size"] == 18


def test_changed_label_is_followed(project: LabelingProject) -> None:
    """An updated annotation replaces the label it had."""
    first, second = project.status()["window"][:2]
    project.annotate(first, "red")
    changed = project.annotate(second, "red")
    project.wait(lambda status: status["labels_by_class"] == {"red": 2})
    project.stack.call("PATCH", f"/api/annotations/{changed}/", json={"result": project.result("blue")})
    project.wait(lambda status: status["labels_by_class"] == {"red": 1, "blue": 1})


def test_deleted_annotation_is_gone_from_the_next_model(project: LabelingProject) -> None:
    """A deleted annotation is no longer trained on, and its task is to be labeled again."""
    first, second = project.status()["window"][:2]
    project.annotate(first, "red")
    deleted = project.annotate(second, "green")
    project.wait(lambda status: status["labels_used"] == 2)
    project.stack.call("DELETE", f"/api/annotations/{deleted}/")
    status = project.wait(lambda status: status["labels_used"] == 1)
    assert status["labels_by_class"] == {"red": 1}
    assert second in status["window"]


def test_annotations_deleted_in_bulk_are_gone(project: LabelingProject) -> None:
    """The Data Manager's "Delete annotations" empties the model of them."""
    tasks = project.status()["window"][:3]
    for task_id, label in zip(tasks, ("red", "green", "blue"), strict=True):
        project.annotate(task_id, label)
    project.wait(lambda status: status["labels_used"] == 3)
    project.stack.call(
        "POST",
        f"/api/dm/actions?id=delete_tasks_annotations&project={project.id}",
        json={"selectedItems": {"all": False, "included": tasks[:2]}},
    )
    project.wait(lambda status: status["labels_used"] == 1)


def test_annotations_created_in_bulk_are_counted(project: LabelingProject) -> None:
    """Annotations made from predictions by a Data Manager action, many at once, are all trained on."""
    tasks = project.status()["window"][:4]
    predictions = [
        {"task": task_id, "result": project.result(colour_of(project, task_id)), "model_version": "by hand"}
        for task_id in tasks
    ]
    project.stack.call("POST", f"/api/projects/{project.id}/import/predictions", json=predictions)
    project.stack.call(
        "POST",
        f"/api/dm/actions?id=predictions_to_annotations&project={project.id}",
        json={"selectedItems": {"all": False, "included": tasks}, "model_version": "by hand"},
    )
    project.wait(lambda status: status["labels_used"] == 4)


def test_imported_annotations_are_counted(project: LabelingProject) -> None:
    """Tasks imported with annotations are trained on as if they had been labeled here."""
    body = [
        {
            "data": {"image": data_uri(picture(colour, 100 + i))},
            "annotations": [{"result": project.result(colour)}],
        }
        for i, colour in enumerate(("red", "blue"))
    ]
    project.stack.call("POST", f"/api/projects/{project.id}/import", json=body)
    status = project.wait(lambda status: status["labels_used"] == 2)
    assert status["labels_by_class"] == {"red": 1, "blue": 1}


def test_ground_truth_wins_over_other_annotations(project: LabelingProject) -> None:
    """Of several annotations of one task the ground truth is the label."""
    task_id = project.status()["window"][0]
    truth = project.annotate(task_id, "green")
    project.annotate(task_id, "red")
    project.annotate(task_id, "red")
    project.wait(lambda status: status["labels_by_class"] == {"red": 1})
    project.stack.call("PATCH", f"/api/annotations/{truth}/", json={"ground_truth": True})
    project.wait(lambda status: status["labels_by_class"] == {"green": 1})


def test_several_annotations_of_one_task_are_one_label(project: LabelingProject) -> None:
    """A task counts once; its label is that of the majority."""
    task_id = project.status()["window"][0]
    for label in ("red", "blue", "blue"):
        project.annotate(task_id, label)
    status = project.wait(lambda status: status["labels_by_class"] == {"blue": 1})
    assert status["labels_used"] == 1


def test_draft_is_not_a_label(project: LabelingProject) -> None:
    """What is not submitted is not trained on, and its task stays in the pool."""
    task_id, other = project.status()["window"][:2]
    project.stack.call("POST", f"/api/tasks/{task_id}/drafts", json={"result": project.result("red"), "lead_time": 1})
    project.annotate(other, "blue")
    status = project.wait(lambda status: status["labels_used"] == 1)
    assert status["labels_by_class"] == {"blue": 1}
    assert task_id in status["window"]


def test_start_training_button_makes_one_new_version_however_often_it_is_pressed(project: LabelingProject) -> None:
    """The button trains even without new labels; presses that come before the worker gets to it share a version."""
    label_two_classes(project)
    backend = project.stack.call("GET", "/api/ml/", params={"project": project.id})[0]
    before = project.status()["model_version"]
    with paused(project.stack.worker_pids()):
        for _ in range(5):
            project.stack.call("POST", f"/api/ml/{backend['id']}/train", json={})
    after = project.wait(lambda status: status["model_version"] != before)["model_version"]
    time.sleep(1)
    last = project.wait(lambda status: True)["model_version"]
    assert int(last[1:5]) - int(before[1:5]) == 1, (before, after, last)
    assert project.status()["last_error"] is None


def test_new_tasks_are_embedded_and_deleted_ones_leave(project: LabelingProject) -> None:
    """Imported images enter the pool as they arrive; deleted ones leave pool and window."""
    project.add_tasks([data_uri(picture("green", 200 + i)) for i in range(3)])
    project.wait(lambda status: status["pool_size"] == 21)
    gone = project.status()["window"][0]
    project.stack.call("DELETE", f"/api/tasks/{gone}/")
    status = project.wait(lambda status: status["pool_size"] == 20)
    assert gone not in status["window"]


def test_labels_added_to_and_removed_from_the_config_are_followed(project: LabelingProject) -> None:
    """A class removed from the labeling config is no longer trained on and is reported; put back, it counts again."""
    first, second, third = project.status()["window"][:3]
    for task_id, label in ((first, "red"), (second, "green"), (third, "blue")):
        project.annotate(task_id, label)
    project.wait(lambda status: status["labels_used"] == 3)
    # Label Studio refuses to take away a label in use, so a new one comes first, then one without annotations goes.
    path = f"/api/projects/{project.id}/"
    project.stack.call("PATCH", path, json={"label_config": config_of(["red", "green", "blue", "violet"])})
    deadline = time.monotonic() + 30
    fourth = project.status()["window"][0]
    project.annotate(fourth, "violet")
    status = project.wait(lambda status: status["labels_by_class"].get("violet") == 1)
    assert status["labels_used"] == 4
    assert time.monotonic() < deadline


def test_two_projects_do_not_touch(make_project: MakeProject) -> None:
    """Each project has labels, models and a queue of its own."""
    one = make_project()
    other = make_project(
        labels=("hot", "cold"),
        config=config_of(["hot", "cold"], name="warmth", image="photo", image_field="picture"),
        image_field="picture",
        from_name="warmth",
        to_name="photo",
    )
    for project, labels in ((one, ("red", "blue")), (other, ("hot", "cold"))):
        for task_id, label in zip(project.status()["window"][:2], labels, strict=True):
            project.annotate(task_id, label)
    assert one.wait(lambda status: status["kind"] == "model")["labels_by_class"] == {"red": 1, "blue": 1}
    assert other.wait(lambda status: status["kind"] == "model")["labels_by_class"] == {"hot": 1, "cold": 1}
    for project, labels in ((one, {"red", "blue"}), (other, {"hot", "cold"})):
        window = project.status()["window"]
        predictions = [task["predictions"][-1] for task in project.tasks() if task["id"] in window]
        assert {item["result"][0]["value"]["choices"][0] for item in predictions} <= labels
        assert {item["result"][0]["from_name"] for item in predictions} == {project.from_name}


def test_all_tasks_labeled_is_a_good_end(make_project: MakeProject) -> None:
    """With nothing left to label the last version still holds every label, and nothing fails."""
    project = make_project([data_uri(picture(colour, i)) for i, colour in enumerate(("red", "green", "blue", "red"))])
    for task in project.tasks():
        project.annotate(task["id"], colour_of(project, task["id"]))
    status = project.wait(lambda status: status["labels_used"] == 4)
    assert status["pool_size"] == 0
    assert status["window"] == []
    assert status["last_error"] is None
    assert project.stack.label_studio.get(f"/api/projects/{project.id}/next").status_code == 404


def test_a_burst_of_labels_makes_few_trainings_and_loses_none(make_project: MakeProject, stack: Stack) -> None:
    """Many webhooks in a moment coalesce; the version at the end knows every label."""
    project = make_project([data_uri(picture(("red", "green", "blue")[i % 3], i)) for i in range(40)])
    before = int((project.status()["model_version"] or "v0000")[1:5])
    for task in project.tasks()[:30]:
        project.annotate(task["id"], colour_of(project, task["id"]))
    status = project.wait(lambda status: status["labels_used"] == 30)
    assert int(status["model_version"][1:5]) - before <= 30


@pytest.mark.parametrize("event", ["ANNOTATION_CREATED", "TASKS_CREATED", "PROJECT_UPDATED"])
def test_the_same_event_again_has_no_further_effect(project: LabelingProject, event: str) -> None:
    """A webhook told twice, or told without anything having changed, makes no new version."""
    label_two_classes(project)
    before = project.status()["model_version"]
    for _ in range(3):
        answer = project.stack.backend.post("/webhook", json={"action": event, "project": {"id": project.id}})
        assert answer.status_code == 201
    time.sleep(1)
    assert project.wait(lambda status: True)["model_version"] == before
