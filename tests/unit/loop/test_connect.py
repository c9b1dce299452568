"""Attaching to a project: everything is set as it should be, and running it again changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from fakes import World, rgb

from backend.adapters.label_studio import UNCERTAINTY_SAMPLING, WEBHOOK_ACTIONS
from backend.addresses import same_address
from backend.errors import (
    LabelingConfigError,
    LabelStudioError,
    LabelStudioUnreachableError,
    ProjectNotFoundError,
    RedisUnavailableError,
)
from backend.loop.connect import (
    PROJECT_HEADER,
    SECRET_HEADER,
    explain_refusal,
    webhook_faults,
)

BACKEND = "http://127.0.0.1:9090"
IMAGES = [rgb(250, 0), rgb(0, 250), rgb(200, 0)]


@pytest.fixture
def project(world: World) -> World:
    """Project 1, not connected."""
    world.label_studio.add_project(1, IMAGES)
    return world


def state(world: World) -> Any:
    """Everything the Label Studio keeps of project 1."""
    return copy.deepcopy(world.label_studio[1])


def test_connecting_sets_everything(project: World) -> None:
    """Backend with Basic auth, one webhook with secret and project, sampling by uncertainty, pre-labels, embedding."""
    connection = project.services.connector.connect(1)
    kept = project.label_studio[1]
    (backend,) = kept.backends
    assert (backend["url"], backend["auth_method"]) == (BACKEND, "BASIC_AUTH")
    assert (backend["basic_auth_user"], backend["basic_auth_pass"]) == ("label-studio", "pass-w0rd")
    (webhook,) = kept.webhooks
    assert webhook["url"] == f"{BACKEND}/webhook"
    assert webhook["headers"] == {PROJECT_HEADER: "1", SECRET_HEADER: project.services.webhook_secret}
    assert webhook["is_active"]
    assert webhook["send_payload"]
    assert not webhook["send_for_all_actions"]
    assert set(webhook["actions"]) == set(WEBHOOK_ACTIONS)
    assert kept.project.sampling == UNCERTAINTY_SAMPLING
    assert kept.project.show_collab_predictions
    assert project.waiting() == ["reconcile(1)"]
    assert project.registry.known_projects() == [1]
    assert connection.title == "Animals"
    assert "pass-w0rd" not in str(connection)
    assert project.services.webhook_secret not in str(connection)


def test_a_second_connect_changes_nothing(project: World) -> None:
    """Label Studio holds exactly the same afterwards, whether or not a version is published."""
    project.services.connector.connect(1)
    first = state(project)
    project.services.connector.connect(1)
    assert state(project) == first
    project.embed_all()
    assert project.services.trainer.retrain(1) is not None
    published = state(project)
    steps = project.services.connector.connect(1).steps
    assert state(project) == published
    assert not any("now" in step for step in steps)


def test_the_queue_keeps_its_published_version(project: World) -> None:
    """Saving the backend points the queue at the backend's title; connecting points it back."""
    project.embed_all()
    record = project.services.trainer.retrain(1)
    assert record is not None
    steps = project.services.connector.connect(1).steps
    assert project.label_studio[1].project.model_version == record.version
    assert f"queue: ordered by {record.version}" in steps


def test_lost_predictions_are_made_anew(project: World) -> None:
    """Label Studio holds no predictions of the published version: the next retrain is forced."""
    project.embed_all()
    project.services.trainer.retrain(1)
    project.label_studio[1].predictions.clear()
    project.services.connector.connect(1)
    assert "retrain(1)" in project.waiting()
    assert project.jobs.begin_retrain(1).forced


def test_duplicates_are_removed(project: World) -> None:
    """Three backends and three webhooks of ours become one each; those of others stay."""
    for url in (BACKEND, BACKEND + "/", BACKEND, "http://other:9090"):
        project.label_studio.save_backend(1, None, url=url, title="x", auth_method="NONE")
        project.label_studio.save_webhook(1, None, url=f"{url}/webhook", is_active=True, send_payload=True)
    project.services.connector.connect(1)
    kept = project.label_studio[1]
    assert sorted(backend["url"] for backend in kept.backends) == [BACKEND, "http://other:9090"]
    assert [webhook["url"] for webhook in kept.webhooks].count(f"{BACKEND}/webhook") == 1
    assert len([webhook for webhook in kept.webhooks if "other" in webhook["url"]]) == 2


@pytest.mark.parametrize(
    "fault",
    [
        {"headers": {}},
        {"headers": {PROJECT_HEADER: "1", SECRET_HEADER: "an old one"}},
        {"is_active": False},
        {"send_payload": False},
        {"send_for_all_actions": True},
        {"actions": ["ANNOTATION_CREATED"]},
        {"actions": [*WEBHOOK_ACTIONS, "PROJECT_UPDATED"]},
    ],
)
def test_a_wrong_webhook_is_set_right(project: World, fault: dict[str, Any]) -> None:
    """Each fault is named by the check, and gone after connecting."""
    project.services.connector.connect(1)
    webhook = project.label_studio[1].webhooks[0]
    right = copy.deepcopy(webhook)
    webhook.update(fault)
    faults = webhook_faults(webhook, right["headers"])
    assert len(faults) == 1
    assert project.services.webhook_secret not in faults[0]
    steps = project.services.connector.connect(1).steps
    assert project.label_studio[1].webhooks[0] == right
    assert any("webhook" in step and "set up now" in step for step in steps)


def test_without_password_nothing_is_secret(project: World) -> None:
    """Authentication off: no Basic auth, no secret header; the project's header stays."""
    project.again(backend_password="").services.connector.connect(1)
    kept = project.label_studio[1]
    assert kept.backends[0]["auth_method"] == "NONE"
    assert kept.webhooks[0]["headers"] == {PROJECT_HEADER: "1"}


def test_a_given_webhook_secret_is_used(project: World) -> None:
    """WEBHOOK_SECRET wins over the one derived from the password, which is another one for another password."""
    assert project.again(webhook_secret="my own").services.webhook_secret == "my own"
    derived = project.services.webhook_secret
    assert derived == project.again().services.webhook_secret
    assert derived != project.again(backend_password="another").services.webhook_secret
    assert "pass-w0rd" not in derived


# -- failures ---------------------------------------------------------------------------------------------------------

PRIVATE = "validation_errors: URL resolves to a reserved network address (block: 127.0.0.0/8)"


@pytest.mark.parametrize("call", ["save_backend", "save_webhook"])
def test_a_refused_private_address_is_explained(project: World, call: str) -> None:
    """Label Studio's default since 1.23.1: the settings that open it are named."""
    project.label_studio.failures[call] = LabelStudioError(PRIVATE, status=400)
    with pytest.raises(LabelStudioError) as caught:
        project.services.connector.connect(1)
    sentence = str(caught.value)
    assert caught.value.status == 400
    assert BACKEND in sentence
    assert PRIVATE in sentence
    for cure in ("USE_DEFAULT_BANNED_SUBNETS=false", "banned-subnets", "SSRF_PROTECTION_ENABLED=false"):
        assert cure in sentence


@pytest.mark.parametrize(
    "text",
    [
        'non_field_errors: ["Can\'t connect to ML backend http://gpu.local:9090, health check failed"]',
        "POST http://label-studio.local:8080/api/ml/ answered 400: health check failed. Make sure it is up",
        "Couldn't resolve host",
        "Can't connect to ML backend http://gpu.local:9090, health check failed. Additional info: "
        "<core.utils.io._SsrfGuardedHTTPConnection object>: Failed to establish a new connection",
    ],
)
def test_a_backend_that_is_not_reached_is_explained_as_that(text: str) -> None:
    """A host name with 'local' in it is no private-address refusal."""
    sentence = explain_refusal(LabelStudioError(text), "http://gpu.local:9090")
    assert "cannot reach the backend at http://gpu.local:9090" in sentence
    assert "BACKEND_URL" in sentence
    assert "SSRF" not in sentence


@pytest.mark.parametrize(
    "text",
    [
        "{'url': ['URL resolves to a reserved network address (block: 10.0.0.0/8)']}",
        "Can't connect to ML backend http://10.0.0.5:9090, health check failed. Make sure it is up and your firewall "
        "is properly configured. Additional info: URL resolves to a reserved network address (block: 10.0.0.0/8)",
    ],
)
def test_both_wordings_of_the_refusal_are_recognised(text: str) -> None:
    """Label Studio 1.23.2 refuses the address itself (ml/serializers.py) or its own call to it (core/utils/io.py)."""
    assert "USE_DEFAULT_BANNED_SUBNETS" in explain_refusal(LabelStudioError(text), BACKEND)


def test_another_refusal_stays_as_it_is() -> None:
    """No guess where there is nothing to guess from."""
    assert explain_refusal(LabelStudioError("something else"), BACKEND) == "something else"


def test_a_config_that_is_not_understood_is_told_before_anything_is_changed(world: World) -> None:
    """Nothing is half connected."""
    world.label_studio.add_project(1, IMAGES, label_config="<View/>")
    before = state(world)
    with pytest.raises(LabelingConfigError):
        world.services.connector.connect(1)
    assert state(world) == before
    assert world.registry.known_projects() == []


def test_an_unknown_project_is_told(world: World) -> None:
    """The number is wrong, or the token may not see it."""
    with pytest.raises(ProjectNotFoundError):
        world.services.connector.connect(9)
    assert world.registry.known_projects() == []


def test_redis_away_is_told_before_anything_is_changed(project: World, dead_redis_url: str) -> None:
    """Nothing would ever be embedded."""
    before = state(project)
    with pytest.raises(RedisUnavailableError):
        project.again(redis_url=dead_redis_url).services.connector.connect(1)
    assert state(project) == before


def test_label_studio_going_away_midway_is_told_as_that(project: World) -> None:
    """Its kind stays: unreachable, not refused."""
    project.label_studio.failures["save_webhook"] = LabelStudioUnreachableError("Label Studio does not answer")
    with pytest.raises(LabelStudioError, match="does not answer"):
        project.services.connector.connect(1)
    project.label_studio.failures.clear()
    project.services.connector.connect(1)
    assert len(project.label_studio[1].webhooks) == 1
    assert len(project.label_studio[1].backends) == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (BACKEND, BACKEND + "/", True),
        (BACKEND, "http://127.0.0.1:9091", False),
        (BACKEND, "http://127.0.0.1:9090/x", False),
    ],
)
def test_addresses_are_compared_without_the_closing_slash(one: str, other: str, same: bool) -> None:
    """People type it with and without."""
    assert same_address(one, other) is same


def test_connecting_again_compares_everything(project: World) -> None:
    """Somebody connects again because something seems to be missing: no mark of what was seen before holds it back."""
    project.services.connector.connect(1)
    project.services.reconciler.reconcile(1)
    project.empty_queue()
    project.services.connector.connect(1)
    assert project.services.reconciler.reconcile(1)
    assert {"retrain(1)", "plan_embedding(1)"} <= set(project.waiting())
