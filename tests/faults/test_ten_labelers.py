"""Ten people label through Label Studio's API at once, without a pause."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from fault_log import FIGURES, LABELING_S, Faults
from fault_stack import FaultProject, FaultStack

N_PEOPLE = 10
N_TASKS = int(60 + 12 * LABELING_S)


def sign_up(url: str, invitation: str, email: str) -> httpx.Client:
    """A new user of Label Studio, by its own form: a client with the user's token."""
    with httpx.Client(base_url=url, headers={"Referer": url}, timeout=60) as browser:
        assert browser.get(invitation).is_success
        form = {"email": email, "password": f"label {email}", "csrfmiddlewaretoken": browser.cookies["csrftoken"]}
        assert browser.post(invitation, data=form).status_code == 302
        token = browser.get("/api/current-user/token").json()["token"]
    return httpx.Client(base_url=url, headers={"Authorization": f"Token {token}"}, timeout=120)


@pytest.mark.timeout(1800)
def test_ten_labelers(fault_stack: FaultStack, faults: Faults, new_project: Callable[[int], FaultProject]) -> None:
    """Every label is used; how many tasks two people were given, and how long Submit took, is reported."""
    project = new_project(N_TASKS)
    url = fault_stack.stack.facts["label_studio_url"]
    invitation = project.stack.call("GET", "/api/invite")["invite_url"]
    name = f"{time.time_ns():x}"
    clients = [sign_up(url, invitation, f"labeler-{number}-{name}@example.com") for number in range(N_PEOPLE)]
    guard = threading.Lock()
    submits_s: list[float] = []
    served: Counter[int] = Counter()
    failures: list[str] = []
    until = time.monotonic() + LABELING_S
    made_before = n_versions(fault_stack, project)

    def work(client: httpx.Client) -> None:
        while time.monotonic() < until:
            answer = client.get(f"/api/projects/{project.id}/next")
            if answer.status_code == 404:  # nothing is left that nobody else has in hand
                return
            if not answer.is_success:
                failures.append(f"next: {answer.status_code}")
                continue
            task_id = int(answer.json()["id"])
            label = project.colours[task_id]
            started = time.monotonic()
            submitted = client.post(f"/api/tasks/{task_id}/annotations/", json={"result": project.result(label)})
            took_s = time.monotonic() - started
            with guard:
                served[task_id] += 1
                if submitted.is_success:
                    submits_s.append(took_s)
                    project.given[task_id] = label
                    project.n_submitted += 1
                else:
                    failures.append(f"submit: {submitted.status_code}")

    with faults.injected("ten labelers at once", project):
        people = [threading.Thread(target=work, args=(client,)) for client in clients]
        for person in people:
            person.start()
        for person in people:
            person.join()
    for client in clients:
        client.close()
    status = project.status()
    FIGURES["ten_labelers"] = {
        "lasted_s": LABELING_S,
        "labels_submitted": len(submits_s),
        "tasks_labeled": len(served),
        "labels_used": status["labels_used"],
        "tasks_served_twice": sum(n > 1 for n in served.values()),
        "submit_median_s": round(float(np.median(submits_s)), 3),
        "submit_p99_s": round(float(np.quantile(submits_s, 0.99)), 3),
        "versions_published": n_versions(fault_stack, project) - made_before,
        "failures": len(failures),
    }
    assert failures == []


def n_versions(stack: FaultStack, project: FaultProject) -> int:
    """Versions of the project that were published, as the worker's log tells."""
    return stack.worker.log.read_text().count(f"retrained project={project.id} ")
