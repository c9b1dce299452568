"""What people may change in Label Studio while a version is being made."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial

from fault_log import Faults
from fault_stack import COLOURS, FaultProject, FaultStack, await_true
from live import config_of

NewProject = Callable[[int], FaultProject]
N_TASKS = 40


def test_labeling_config_changed_while_training(
    fault_stack: FaultStack, faults: Faults, new_project: NewProject
) -> None:
    """A label is added, used, and another one taken away, each while a version is under way."""
    project = new_project(N_TASKS)
    path = f"/api/projects/{project.id}/"
    for number in faults.times():
        with faults.injected("labeling config changed while training", project):
            project.label(1)
            added = [*COLOURS, f"violet-{number}"]
            project.stack.call("PATCH", path, json={"label_config": config_of(added)})
            task_id = project.next_task()
            annotation_id = project.submit(task_id, f"violet-{number}")
            project.stack.call("DELETE", f"/api/annotations/{annotation_id}/")
            del project.given[task_id]
            # Label Studio refuses to take away a label in use.
            project.stack.call("PATCH", path, json={"label_config": config_of(COLOURS)})
            project.label(1)


def test_annotations_not_counted(fault_stack: FaultStack, faults: Faults, new_project: NewProject) -> None:
    """Label Studio's counter of a task stays at 0, as it does when predictions come in just while it is labeled.

    Then everything is read anew, for which another labeling config is a reason.
    """
    project = new_project(N_TASKS)
    for number in faults.times():
        with faults.injected("Label Studio counts no annotation of a labeled task", project):
            project.label(2)
            with closing(sqlite3.connect(fault_stack.label_studio_database, timeout=30)) as database, database:
                wrong = database.execute(
                    "UPDATE task SET total_annotations = 0 WHERE id = ?", (next(reversed(project.given)),)
                )
                assert wrong.rowcount == 1
            config = config_of([*COLOURS, f"violet-{number}"])
            project.stack.call("PATCH", f"/api/projects/{project.id}/", json={"label_config": config})
            project.label(1)


def test_project_deleted_while_training(
    fault_stack: FaultStack, faults: Faults, new_project: NewProject, project: FaultProject
) -> None:
    """It is set aside, its status is that of no project, and another one goes on as before."""
    for _ in faults.times():
        gone = new_project(12)
        with faults.injected("another project deleted while training", project):
            submitting = threading.Thread(target=label_what_may_be_gone, args=(gone,))
            submitting.start()
            time.sleep(0.15)
            fault_stack.delete(gone)
            started = time.monotonic()
            await_true(partial(is_set_aside, fault_stack, gone), "the project is set aside", 60)
            faults.record("project deleted while training", time.monotonic() - started)
            project.label(1)
            submitting.join()


def label_what_may_be_gone(project: FaultProject) -> None:
    """A label that Label Studio may refuse, for the project is being deleted."""
    with suppress(AssertionError):
        project.label()


def is_set_aside(stack: FaultStack, project: FaultProject) -> bool:
    """Whether neither side knows it; Label Studio, which saves it anew when it is changed meanwhile, is told again."""
    if stack.stack.label_studio.get(f"/api/projects/{project.id}/").is_success:
        stack.delete(project)
        return False
    return stack.stack.backend.get(f"/api/projects/{project.id}/status").status_code == 404


def test_tasks_deleted_while_training(fault_stack: FaultStack, faults: Faults, new_project: NewProject) -> None:
    """Tasks of the window, and one that is labeled, are deleted while a version is under way."""
    for _ in faults.times():
        project = new_project(N_TASKS)
        with faults.injected("tasks deleted while training", project):
            submitting = threading.Thread(target=project.label)
            submitting.start()
            gone = [*project.status()["window"][2:5], next(iter(project.given))]
            for task_id in gone:
                project.stack.call("DELETE", f"/api/tasks/{task_id}/")
            submitting.join()
            for task_id in gone:
                project.colours.pop(task_id)
                project.given.pop(task_id, None)


def test_two_projects_at_once(
    fault_stack: FaultStack, faults: Faults, new_project: NewProject, project: FaultProject
) -> None:
    """Labels of both come at the same time, to two workers."""
    other = new_project(6 * len(faults.times()) + 20)
    for _ in faults.times():
        with fault_stack.two_workers(), faults.injected("two projects retraining at once", project, other):
            people = [threading.Thread(target=one.label, args=(4,)) for one in (project, other)]
            for person in people:
                person.start()
            for person in people:
                person.join()
