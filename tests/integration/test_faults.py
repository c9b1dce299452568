"""What goes wrong in practice: killed workers, lost webhooks, Redis away. All labels are used in the end."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

from live import LabelingProject, colour_of


def test_worker_killed_while_labels_come_in_loses_none(project: LabelingProject) -> None:
    """kill -9 of the worker in the middle of a burst: the next one uses every label."""
    stack = project.stack
    before = stack.worker_pids()
    assert before
    tasks = [task["id"] for task in project.tasks()][:8]
    for number, task_id in enumerate(tasks):
        project.annotate(task_id, colour_of(project, task_id))
        if number == 4:
            for pid in before:  # the worker, and its supervisor, with which it ends by itself too
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    status = project.wait(lambda status: status["labels_used"] == 8, timeout_s=120)
    assert status["kind"] == "model"
    assert not set(before) & set(stack.worker_pids())


def test_lost_webhook_is_noticed_by_reconciliation(project: LabelingProject) -> None:
    """Labels whose webhook never came are trained on within the reconciliation's pause."""
    for webhook in project.stack.call("GET", "/api/webhooks/", params={"project": project.id}):
        if webhook["project"] == project.id:
            project.stack.call("DELETE", f"/api/webhooks/{webhook['id']}/")
    task_id = project.status()["window"][0]
    project.annotate(task_id, "red")
    project.wait(lambda status: status["labels_used"] == 1, timeout_s=30)


def test_project_deleted_in_label_studio_stops_nothing(project: LabelingProject) -> None:
    """A deleted project is set aside; the status says it is not connected."""
    project.stack.call("DELETE", f"/api/projects/{project.id}/")
    deadline = time.monotonic() + 30
    while project.stack.backend.get(f"/api/projects/{project.id}/status").status_code != 404:
        assert time.monotonic() < deadline
        time.sleep(0.2)
