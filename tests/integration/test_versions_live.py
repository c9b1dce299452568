"""Going back to a version with a real Label Studio: by command, over HTTP, and in Label Studio's own settings."""

from __future__ import annotations

import json
import time
from typing import Any

from live import LabelingProject, colour_of

from backend.loop.versions import LATE_S


def settings_of(project: LabelingProject) -> dict[str, Any]:
    found: dict[str, Any] = project.stack.call("GET", f"/api/projects/{project.id}/")
    return found


def label_next(project: LabelingProject) -> dict[str, Any]:
    """Labels what Label Studio hands out; the status once a version with it, or made because of it, is published."""
    before = project.status()
    task_id = project.next_task()
    project.annotate(task_id, colour_of(project, task_id))
    return project.wait(lambda status: status["labels_given"] == before["labels_given"] + 1)


def models(project: LabelingProject) -> list[dict[str, Any]]:
    answer = project.stack.backend.get(f"/api/projects/{project.id}/versions")
    assert answer.status_code == 200, answer.text
    return list(answer.json()["versions"])


def with_a_model(project: LabelingProject) -> dict[str, Any]:
    """Eight labels, of more classes than one; the last status."""
    for _ in range(8):
        status = label_next(project)
    assert status["kind"] == "model"
    return status


def queue_is_of(project: LabelingProject, status: dict[str, Any]) -> bool:
    """Whether Label Studio's queue is the window of the published version, in its order."""
    return settings_of(project)["model_version"] == status["model_version"] and [
        task for _, task in project.queue()
    ] == list(status["window"])


def test_an_older_version_chosen_in_label_studio_is_followed(project: LabelingProject) -> None:
    """The project is pinned within seconds; labels move the queue and train nothing; the live model releases it."""
    with_a_model(project)
    newest, before = (item["version"] for item in models(project)[:2])
    project.stack.call("PATCH", f"/api/projects/{project.id}/", json={"model_version": before})
    status = project.wait(lambda status: status["head_of"] == before, timeout_s=30)
    assert status["pinned"]["by"] == "Label Studio"
    assert (status["labels_used"], status["labels_given"]) == (7, 8)
    assert status["model_version"] not in (newest, before)
    assert queue_is_of(project, status)

    done = status["window"][0]
    after = label_next(project)
    assert (after["head_of"], after["labels_used"], after["labels_given"]) == (before, 7, 9)
    assert done not in after["window"]
    assert queue_is_of(project, after)
    assert project.next_task() == after["window"][0]

    project.stack.call("PATCH", f"/api/projects/{project.id}/", json={"model_version": "Active learning"})
    status = project.wait(lambda status: status["pinned"] is None and status["head_of"] is None, timeout_s=30)
    assert (status["labels_used"], status["labels_given"]) == (9, 9)
    assert queue_is_of(project, status)


def test_a_label_right_after_the_choice_does_not_undo_it(project: LabelingProject) -> None:
    """Somebody submits before the comparison has seen what was chosen."""
    with_a_model(project)
    chosen = models(project)[1]["version"]
    task_id = project.next_task()
    time.sleep(LATE_S + 0.5)  # a person needs longer; before, a webhook that names the version before may only be late
    project.stack.call("PATCH", f"/api/projects/{project.id}/", json={"model_version": chosen})
    project.annotate(task_id, colour_of(project, task_id))
    status = project.wait(lambda status: status["head_of"] == chosen and status["labels_given"] == 9, timeout_s=30)
    assert status["pinned"]["version"] == chosen
    assert queue_is_of(project, status)


def test_by_command_and_over_http_it_is_the_same(project: LabelingProject) -> None:
    """Pinned by command, released over HTTP, pinned over HTTP, released by command."""
    with_a_model(project)
    version = models(project)[1]["version"]
    done = project.stack.cli("models", str(project.id), "--use", version.partition("-")[0], "--json")
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)["versions"]
    assert (listed[0]["head_of"], listed[0]["published"]) == (version, True)
    assert queue_is_of(project, project.status())
    assert project.stack.backend.delete(f"/api/projects/{project.id}/pin").status_code == 202
    project.wait(lambda status: status["head_of"] is None)
    answer = project.stack.backend.post(f"/api/projects/{project.id}/pin", json={"version": version})
    assert (answer.status_code, answer.json()["pinned"]["version"]) == (202, version)
    project.wait(lambda status: status["head_of"] == version)
    assert project.stack.cli("models", str(project.id), "--use", "newest").returncode == 0
    status = project.wait(lambda status: status["head_of"] is None)
    assert (status["labels_used"], status["labels_given"]) == (8, 8)
    shown = project.stack.cli("models", str(project.id), "--show", version)
    assert json.loads(shown.stdout)["labels_used"] == 7
