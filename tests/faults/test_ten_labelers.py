"""Ten people label through Label Studio's API at once, without a pause."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import numpy as np
import pytest
from fault_log import LABELING_S, Faults
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
    guard = threading.Lock()
    submits_s: list[float] = []
    served: Counter[int] = Counter()
    refused: Counter[str] = Counter()
    until = time.monotonic() + LABELING_S
    made_before, used_before = n_versions(fault_stack, project), project.status()["labels_used"]

    def insist(what: str, ask: Callable[[], httpx.Response]) -> httpx.Response:
        """As a person does: told of an error, they press again. Ten at once make SQLite say that it is locked."""
        for _ in range(10):
            answer = ask()
            if answer.status_code != 500:
                break
            with guard:
                refused[what] += 1
            time.sleep(0.2)
        assert answer.is_success or answer.status_code == 404, f"{what}: {answer.status_code} {answer.text[:500]}"
        return answer

    def work(client: httpx.Client) -> None:
        while time.monotonic() < until:
            answer = insist("next", lambda: client.get(f"/api/projects/{project.id}/next"))
            if answer.status_code == 404:  # nothing is left that nobody else has in hand
                return
            task_id = int(answer.json()["id"])
            label = project.colours[task_id]
            path, body = f"/api/tasks/{task_id}/annotations/", {"result": project.result(label)}
            started = time.monotonic()
            insist("submit", lambda path=path, body=body: client.post(path, json=body))
            with guard:
                submits_s.append(time.monotonic() - started)
                served[task_id] += 1
                project.given[task_id] = label
                project.n_submitted += 1

    with ExitStack() as stack:
        emails = [f"labeler-{number}-{name}@example.com" for number in range(N_PEOPLE)]
        clients = [stack.enter_context(sign_up(url, invitation, email)) for email in emails]
        people = stack.enter_context(ThreadPoolExecutor(N_PEOPLE))
        with faults.injected("ten labelers at once", project):
            for done in [people.submit(work, client) for client in clients]:
                done.result()
    status = project.status()
    faults.note(
        "ten_labelers",
        lasted_s=LABELING_S,
        labels_submitted=len(submits_s),
        tasks_labeled=len(served),
        tasks_used=status["labels_used"] - used_before,
        tasks_served_twice=sum(n > 1 for n in served.values()),
        submit_median_s=round(float(np.median(submits_s)), 3),
        submit_p99_s=round(float(np.quantile(submits_s, 0.99)), 3),
        versions_published=n_versions(fault_stack, project) - made_before,
        next_refused=refused["next"],
        submit_refused=refused["submit"],
    )


def n_versions(stack: FaultStack, project: FaultProject) -> int:
    """Versions of the project that were published, as the worker's log tells."""
    return stack.worker.log.read_text().count(f"retrained project={project.id} ")
