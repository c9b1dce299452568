"""Webhooks that come twice, in another order, late, again, not at all, or by the thousand."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from fault_log import Faults
from fault_stack import FaultProject, FaultStack

N_EVENTS = 1000


def take_back(project: FaultProject, annotation_id: int) -> None:
    """Deletes an annotation in Label Studio."""
    project.stack.call("DELETE", f"/api/annotations/{annotation_id}/")


def change(project: FaultProject, annotation_id: int, task_id: int, label: str) -> None:
    """Another label for a task, in Label Studio."""
    project.stack.call("PATCH", f"/api/annotations/{annotation_id}/", json={"result": project.result(label)})
    project.given[task_id] = label


def create_change_and_take_back(project: FaultProject) -> None:
    """Three labels, of which one is changed and one taken back."""
    tasks = [project.next_task()]
    annotations = [project.submit(tasks[0])]
    for _ in range(2):
        tasks.append(project.next_task())
        annotations.append(project.submit(tasks[-1]))
    other = next(colour for colour in ("red", "green", "blue") if colour != project.given[tasks[1]])
    change(project, annotations[1], tasks[1], other)
    take_back(project, annotations[2])
    del project.given[tasks[2]]


def test_webhooks_twice(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """Each is delivered two times."""
    for _ in faults.times():
        with faults.injected("webhooks duplicated", project):
            fault_stack.webhooks.mode = "twice"
            create_change_and_take_back(project)
            fault_stack.webhooks.mode = "pass"


def test_webhooks_reordered(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """They are kept back and then delivered in reverse: the deletion before the label it takes back."""
    for _ in faults.times():
        with faults.injected("webhooks reordered", project):
            fault_stack.webhooks.mode = "hold"
            create_change_and_take_back(project)
            fault_stack.webhooks.mode = "pass"
            assert fault_stack.webhooks.send_held(lambda held: held[::-1]) >= 5


def test_webhooks_dropped(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """None arrives; the comparison with Label Studio finds what they would have told."""
    for _ in faults.times():
        with faults.injected("webhooks dropped", project):
            fault_stack.webhooks.mode = "drop"
            create_change_and_take_back(project)
            fault_stack.webhooks.mode = "pass"


def test_webhooks_replayed(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """All that ever came is delivered again, when everything it tells of is past."""
    for _ in faults.times():
        seen = len(fault_stack.webhooks.seen)
        with faults.injected("webhooks replayed", project):
            create_change_and_take_back(project)
            time.sleep(4)  # the comparison has seen it all
            for request in fault_stack.webhooks.seen[seen:]:
                fault_stack.webhooks.forward(request)


def test_label_taken_back_is_not_believed_when_told_again(
    fault_stack: FaultStack, faults: Faults, project: FaultProject
) -> None:
    """One label less is given and one told again, so that only the ids tell that it is not there."""
    for _ in faults.times():
        with faults.injected("webhook of a deleted label replayed", project):
            seen = len(fault_stack.webhooks.seen)
            task_id = project.next_task()
            annotation_id = project.submit(task_id)
            created = fault_stack.webhooks.seen[seen]
            take_back(project, annotation_id)
            del project.given[task_id]
            time.sleep(4)
            fault_stack.webhooks.forward(created)
            time.sleep(4)


def test_storm(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """A thousand events, sixteen at a time, while two labels come."""
    for _ in faults.times():
        seen = len(fault_stack.webhooks.seen)
        with faults.injected("storm of 1,000 events", project, n_requests=N_EVENTS):
            project.label(1)
            event = fault_stack.webhooks.seen[seen]
            labeling = threading.Thread(target=project.label)
            labeling.start()
            started = time.monotonic()
            with ThreadPoolExecutor(16) as senders:
                answers = list(senders.map(fault_stack.webhooks.forward, [event] * N_EVENTS))
            took_s = time.monotonic() - started
            labeling.join()
            statuses = sorted({answer.status if answer else 0 for answer in answers})
            assert statuses == [201]
            faults.note("storm", events=N_EVENTS, statuses=statuses, took_s=round(took_s, 1))
