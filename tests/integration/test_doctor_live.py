"""`doctor` against the real thing: all well, and each link broken in turn."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from live import LabelingProject, Stack

MakeProject = Callable[..., LabelingProject]


def failed(stack: Stack, project_id: int, **environment: str) -> dict[str, str]:
    """Name → finding and cure of the checks that fail."""
    done = stack.cli("doctor", "--json", str(project_id), **environment)
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    broken = {check["name"]: f"{check['found']} → {check['cure']}" for check in checks if not check["ok"]}
    assert done.returncode == (1 if broken else 0), done.stderr
    return broken


def test_all_is_well(project: LabelingProject) -> None:
    """A connected project has nothing to complain about; the web service finds itself ready, too."""
    assert failed(project.stack, project.id) == {}
    answer = project.stack.backend.get("/ready")
    assert answer.status_code == 200, answer.text
    assert [name for name, check in answer.json()["checks"].items() if not check["ok"]] == []


def test_redis_away(project: LabelingProject) -> None:
    """A wrong Redis address is named, without its password."""
    broken = failed(project.stack, project.id, REDIS_URL="redis://:hush@127.0.0.1:1/0")
    assert "127.0.0.1:1" in broken["Redis"]
    assert "hush" not in broken["Redis"]


def test_label_studio_away_or_token_wrong(project: LabelingProject) -> None:
    """An unreachable Label Studio and a refused token are told apart."""
    assert "does not answer" in failed(project.stack, project.id, LABEL_STUDIO_URL="http://127.0.0.1:1")["Label Studio"]
    assert "refused" in failed(project.stack, project.id, LABEL_STUDIO_TOKEN="f" * 40)["Label Studio"]


def test_backend_password_differs(project: LabelingProject) -> None:
    """Other credentials here than in the web service."""
    broken = failed(project.stack, project.id, BACKEND_PASSWORD="other")
    assert "BACKEND_PASSWORD" in broken["this backend"]
    assert f"project {project.id}: webhook" in broken


def test_unconnected_project(make_project: MakeProject) -> None:
    """Backend, webhook and sampling are missing, and the cure is to connect."""
    project = make_project(connect=False)
    broken = failed(project.stack, project.id)
    for name in ("Label Studio → backend", "webhook", "sampling"):
        assert f"connect {project.id}" in broken[f"project {project.id}: {name}"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"is_active": False}, "switched off"),
        ({"headers": {}}, "headers"),
        ({"actions": ["TASKS_CREATED"]}, "ANNOTATION_CREATED"),
    ],
)
def test_webhook_changed_by_hand(project: LabelingProject, change: dict[str, object], word: str) -> None:
    """What is wrong with the webhook is said; connect mends it."""
    webhook = next(
        item
        for item in project.stack.call("GET", "/api/webhooks/", params={"project": project.id})
        if item["project"] == project.id
    )
    body = {"url": webhook["url"], "headers": webhook["headers"], "actions": webhook["actions"], **change}
    project.stack.call("PATCH", f"/api/webhooks/{webhook['id']}/", json=body)
    assert word in failed(project.stack, project.id)[f"project {project.id}: webhook"]
    assert project.stack.cli("connect", str(project.id)).returncode == 0
    assert failed(project.stack, project.id) == {}


def test_sampling_changed_by_hand(project: LabelingProject) -> None:
    """Sequential sampling ignores the scores: named, and mended by connect."""
    project.stack.call("PATCH", f"/api/projects/{project.id}/", json={"sampling": "Sequential sampling"})
    assert failed(project.stack, project.id).keys() == {f"project {project.id}: sampling"}


def test_queue_pointed_elsewhere_is_repaired_by_itself(project: LabelingProject) -> None:
    """model_version set to the backend's title (connecting by hand does that): the queue is ordered again soon."""
    project.stack.call("PATCH", f"/api/projects/{project.id}/", json={"model_version": "Active learning"})
    version = project.status()["model_version"]

    def repaired(_: object) -> bool:
        return bool(project.stack.call("GET", f"/api/projects/{project.id}/")["model_version"] == version)

    project.wait(repaired)
