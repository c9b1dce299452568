"""Several people in one project of a real Label Studio: who gets which task, and what several annotations mean."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest
from live import LabelingProject, Stack, colour_of


@dataclass
class Person:
    """Somebody who labels, with a token of their own."""

    id: int
    client: httpx.Client

    def next_task(self, project: LabelingProject) -> int:
        """The task Label Studio hands them."""
        answer = self.client.get(f"/api/projects/{project.id}/next")
        assert answer.status_code == 200, answer.text
        return int(answer.json()["id"])

    def annotate(self, project: LabelingProject, task_id: int, label: str) -> None:
        """Submits a label."""
        body = {"result": project.result(label), "was_cancelled": False}
        answer = self.client.post(f"/api/tasks/{task_id}/annotations/", json=body)
        assert answer.status_code == 201, answer.text


def sign_up(stack: Stack, name: str) -> Person:
    """A new user of the organization, by the link with which people are invited."""
    invitation = str(stack.call("GET", "/api/invite")["invite_url"])
    address = str(stack.label_studio.base_url)
    email = f"{name}-{time.time_ns()}@example.org"
    with httpx.Client(base_url=address, timeout=120, follow_redirects=True) as browser:
        browser.get(invitation)
        form = {
            "email": email,
            "password": "pass-w0rd-of-a-test",
            "allow_newsletters": "false",
            "csrfmiddlewaretoken": browser.cookies["csrftoken"],
        }
        answer = browser.post(invitation, data=form, headers={"Referer": address})
        assert answer.status_code == 200, answer.text[:500]
        token = browser.get("/api/current-user/token").json()["token"]
    client = httpx.Client(base_url=address, headers={"Authorization": f"Token {token}"}, timeout=120)
    return Person(int(client.get("/api/current-user/whoami").json()["id"]), client)


@pytest.fixture(scope="module")
def people(stack: Stack) -> Iterator[tuple[Person, Person]]:
    """Two people, who are nobody else's in this Label Studio."""
    found = sign_up(stack, "ada"), sign_up(stack, "grace")
    yield found
    for person in found:
        person.client.close()


def test_two_people_at_once_get_distinct_tasks_from_the_window(
    project: LabelingProject, people: tuple[Person, Person]
) -> None:
    """Both ask before either submits, seven times: never the same task, always one of the window, each label used."""
    served: list[int] = []
    for n in range(1, 8):
        window = project.status()["window"]
        tasks = [person.next_task(project) for person in people]
        assert len(set(tasks)) == 2, f"both got task {tasks[0]}"
        assert set(tasks) <= set(window)
        served += tasks
        for person, task_id in zip(people, tasks, strict=True):
            person.annotate(project, task_id, colour_of(project, task_id))
        project.wait(lambda status, n=n: status["labels_used"] == 2 * n)
    assert len(set(served)) == len(served) == 14


def test_with_overlap_two_each_task_is_labeled_by_both(
    make_project: Callable[..., LabelingProject], people: tuple[Person, Person]
) -> None:
    """The second person gets what the first has labeled before anything new, and without the model's word on it."""
    project = make_project()
    project.stack.call("PATCH", f"/api/projects/{project.id}/", json={"maximum_annotations": 2})
    one, other = people
    first = []
    for n in range(1, 7):
        task_id = one.next_task(project)
        assert task_id in project.status()["window"]
        one.annotate(project, task_id, colour_of(project, task_id))
        project.wait(lambda status, n=n: status["labels_given"] == n)
        first.append(task_id)
    status = project.status()
    assert status["kind"] == "model"
    assert not set(first) & set(status["window"]), "a task with one label makes room for a new one"
    second = []
    for _ in first:
        task_id = other.next_task(project)
        task = other.client.get(f"/api/tasks/{task_id}/").json()
        versions = {prediction["model_version"] for prediction in task["predictions"]}
        assert status["model_version"] not in versions, "the model has learned the first answer, and would repeat it"
        other.annotate(project, task_id, colour_of(project, task_id))
        second.append(task_id)
        n_second = len(second)
        status = project.wait(lambda status, n=n_second: agreement(status)["n_tasks"] == n)
    assert sorted(second) == sorted(first)
    assert status["labels_given"] == 6
    assert agreement(status)["n_annotators"] == 2
    assert agreement(status)["mean_pairwise_agreement"] == 1.0
    assert status["disagreements"] == []
    assert other.next_task(project) in project.status()["window"]


def agreement(status: dict[str, object]) -> dict[str, object]:
    found = status["agreement"] or {"n_tasks": 0}
    assert isinstance(found, dict)
    return found


def test_people_who_disagree_are_listed_by_their_ids(
    make_project: Callable[..., LabelingProject], people: tuple[Person, Person]
) -> None:
    """Who said what, with a link to the task; never a name or an address."""
    project = make_project()
    project.stack.call("PATCH", f"/api/projects/{project.id}/", json={"maximum_annotations": 2})
    one, other = people
    agreed, disputed = project.status()["window"][:2]
    for person in people:
        person.annotate(project, agreed, colour_of(project, agreed))
    one.annotate(project, disputed, "red")
    other.annotate(project, disputed, "blue")
    status = project.wait(lambda status: agreement(status)["n_tasks"] == 2)
    (listed,) = status["disagreements"]
    assert listed["task_id"] == disputed
    assert listed["answers"] == {"red": [one.id], "blue": [other.id]}
    assert listed["link"].endswith(f"/projects/{project.id}/data?task={disputed}")
    assert agreement(status)["mean_pairwise_agreement"] == 0.5
    done = project.stack.cli("disagreements", str(project.id))
    assert f"task {disputed}: " in done.stdout
    assert "example.org" not in done.stdout
