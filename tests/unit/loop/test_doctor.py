"""The doctor: a healthy service passes every check, and each broken link is named with its cure."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fakes import World, retrain, rgb
from werkzeug.serving import make_server

from backend.errors import BackboneError, LabelStudioAuthError, LabelStudioError, LabelStudioUnreachableError
from backend.schema import Check, ValidationFilter

IMAGES = [rgb(250, 0), rgb(0, 250), rgb(200, 0), rgb(0, 200)]
App = Callable[..., Any]


def answering(status: str, headers: dict[str, str]) -> App:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response(status, list(headers.items()))
        return [b"{}"]

    return app


OURS = answering("200 OK", {"X-Backend": "active-learning", "Content-Type": "application/json"})


@pytest.fixture
def serve() -> Iterator[Callable[[App], str]]:
    """Starts a real HTTP server for a WSGI application; its address."""
    servers: list[tuple[Any, threading.Thread]] = []

    def start(app: App) -> str:
        server = make_server("127.0.0.1", 0, app, threaded=True)
        server.log = lambda *_: None  # type: ignore[method-assign]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def healthy(world: World, serve: Callable[[App], str]) -> Iterator[World]:
    """A connected project with a published version, a backend that answers and a worker that listens."""
    whole = world.again(backend_url=serve(OURS))
    whole.label_studio.add_project(1, IMAGES)
    whole.embed_all()
    whole.services.connector.connect(1)
    assert whole.services.trainer.retrain(1) is not None
    whole.jobs.stay_alive("a worker")
    yield whole
    whole.jobs.close()


def checks(world: World, projects: list[int] | None = None) -> dict[str, Check]:
    return {check.name: check for check in world.services.doctor.examine(projects)}


def broken(world: World) -> Check:
    """The one check that fails."""
    failed = [check for check in checks(world).values() if not check.ok]
    assert len(failed) == 1, failed
    assert failed[0].found
    assert failed[0].cure
    assert "pass-w0rd" not in str(failed[0])
    assert "tok-en" not in str(failed[0])
    return failed[0]


def test_a_healthy_service_passes_every_check(healthy: World) -> None:
    """Every link is looked at, all are well, nothing needs a cure, and nothing is changed by looking."""
    before = dataclasses.asdict(healthy.label_studio[1])
    found = checks(healthy)
    assert [check for check in found.values() if not check.ok or check.warning or check.cure] == []
    assert set(found) == {
        "Redis",
        "worker",
        "backbone",
        "this backend",
        "this backend is ready",
        "Label Studio",
        "token",
        "project 1: labeling config",
        "project 1: Label Studio → backend",
        "project 1: webhook",
        "project 1: sampling",
        "project 1: queue",
        "project 1: images",
    }
    assert dataclasses.asdict(healthy.label_studio[1]) == before


def test_redis_away(healthy: World, dead_redis_url: str) -> None:
    """Told with the setting; the checks that need no Redis are made all the same."""
    away = healthy.again(redis_url=dead_redis_url)
    check = broken(away)
    assert (check.name, "REDIS_URL" in str(check.cure)) == ("Redis", True)
    assert "project 1: webhook" in checks(away)


def test_no_worker(healthy: World) -> None:
    """The command that starts one."""
    healthy.jobs.leave("a worker")
    check = broken(healthy)
    assert check.name == "worker"
    assert "python -m backend worker" in str(check.cure)


def test_a_broken_weights_file(healthy: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backbone's own sentence and the settings to correct."""

    def fail() -> Any:
        raise BackboneError("the weights file w.pt is of another network")

    monkeypatch.setattr(healthy.services, "backbone", fail)
    check = broken(healthy)
    assert check.name == "backbone"
    assert "another network" in check.found
    assert "BACKBONE_WEIGHTS" in str(check.cure)


def test_a_backbone_without_weights_is_a_warning(healthy: World) -> None:
    """It works, worse: not a failure, but said with what to do."""
    healthy.backbone.warning = "no weights; colours and edges are used instead"  # type: ignore[misc]
    check = checks(healthy)["backbone"]
    assert check.ok
    assert check.warning
    assert "BACKBONE_WEIGHTS" in str(check.cure)


def test_this_backend_is_not_started(healthy: World) -> None:
    """Nothing listens at BACKEND_URL."""
    away = healthy.again(backend_url="http://127.0.0.1:9")
    check = checks(away)["this backend"]
    assert not check.ok
    assert "does not answer" in check.found
    assert "BACKEND_URL" in str(check.cure)


@pytest.mark.parametrize(
    ("app", "words"),
    [
        (answering("401 UNAUTHORIZED", {"X-Backend": "active-learning"}), "BACKEND_PASSWORD"),
        (answering("200 OK", {}), "BACKEND_URL"),
        (answering("502 Bad Gateway", {}), "BACKEND_URL"),
    ],
)
def test_something_else_answers_at_our_address(
    healthy: World, serve: Callable[[App], str], app: App, words: str
) -> None:
    """Wrong credentials, or another program on the port."""
    check = checks(healthy.again(backend_url=serve(app)))["this backend"]
    assert not check.ok
    assert words in str(check.cure)


def test_no_password_is_a_warning(healthy: World) -> None:
    """Anybody may use the service: it works, but it is said."""
    check = checks(healthy.again(backend_password=""))["this backend"]
    assert check.ok
    assert check.warning
    assert "BACKEND_PASSWORD" in str(check.cure)


@pytest.mark.parametrize(
    "failure",
    [
        LabelStudioUnreachableError("Label Studio does not answer"),
        LabelStudioAuthError("refused the token", status=401),
    ],
)
def test_label_studio_away_or_refusing(healthy: World, failure: LabelStudioError) -> None:
    """The error's own sentence; nothing about projects can be said then."""
    healthy.label_studio.failures["whoami"] = failure
    check = broken(healthy)
    assert (check.name, check.found) == ("Label Studio", str(failure))
    assert "LABEL_STUDIO_TOKEN" in str(check.cure)
    assert not any("project" in name for name in checks(healthy))


def test_no_project_is_connected(world: World, serve: Callable[[App], str]) -> None:
    """The command that connects one."""
    check = checks(world.again(backend_url=serve(OURS)))["projects"]
    assert not check.ok
    assert "connect" in str(check.cure)


def test_a_project_that_is_gone(healthy: World) -> None:
    """Deleted, or the token may not see it."""
    healthy.label_studio.remove_project(1)
    assert broken(healthy).name == "project 1: access"


def test_only_the_projects_asked_for_are_checked(healthy: World) -> None:
    """Project 2 is not there, project 1 is not asked for."""
    found = checks(healthy, [2])
    assert not found["project 2: access"].ok
    assert not any(name.startswith("project 1") for name in found)


def break_config(world: World) -> None:
    world.label_studio.change_project(1, label_config="<View/>")


def break_backend(world: World) -> None:
    world.label_studio[1].backends.clear()


def break_address(world: World) -> None:
    world.label_studio[1].backends[0].update(state="DI", readable_state="Disconnected", error_message="timed out")


def break_credentials(world: World) -> None:
    world.label_studio[1].backends[0].update(state="ER", readable_state="Error", error_message="401 UNAUTHORIZED")


def break_auth(world: World) -> None:
    world.label_studio[1].backends[0]["auth_method"] = "NONE"


def break_webhook(world: World) -> None:
    world.label_studio[1].webhooks.clear()


def break_header(world: World) -> None:
    world.label_studio[1].webhooks[0]["headers"] = {}


def double_webhook(world: World) -> None:
    world.label_studio[1].webhooks.append(dict(world.label_studio[1].webhooks[0]))


def break_sampling(world: World) -> None:
    world.label_studio.change_project(1, sampling="Sequential sampling")


def break_version(world: World) -> None:
    world.label_studio.change_project(1, model_version="Active learning")


def lose_predictions(world: World) -> None:
    world.label_studio[1].predictions.clear()


def break_images(world: World) -> None:
    world.images.away.update(IMAGES)


BREAKS: dict[str, tuple[Callable[[World], None], str, str]] = {
    "config": (break_config, "labeling config", "Labeling Interface"),
    "no backend": (break_backend, "Label Studio → backend", "backend connect 1"),
    "backend not reached": (break_address, "Label Studio → backend", "USE_DEFAULT_BANNED_SUBNETS"),
    "wrong credentials": (break_credentials, "Label Studio → backend", "backend connect 1"),
    "no Basic auth": (break_auth, "Label Studio → backend", "backend connect 1"),
    "no webhook": (break_webhook, "webhook", "backend connect 1"),
    "webhook without secret": (break_header, "webhook", "backend connect 1"),
    "two webhooks": (double_webhook, "webhook", "backend connect 1"),
    "sampling": (break_sampling, "sampling", "backend connect 1"),
    "queue ordered by the title": (break_version, "queue", "reconciliation"),
    "predictions deleted": (lose_predictions, "queue", "Start Training"),
    "images away": (break_images, "images", "LABEL_STUDIO_TOKEN"),
}


@pytest.mark.parametrize("link", BREAKS)
def test_each_broken_link_is_named_with_its_cure(healthy: World, link: str) -> None:
    """One thing is wrong: exactly one check fails, the right one, and says what to do."""
    damage, name, words = BREAKS[link]
    damage(healthy)
    check = broken(healthy)
    assert check.name == f"project 1: {name}"
    assert words in str(check.cure)


def test_no_version_yet(world: World, serve: Callable[[App], str]) -> None:
    """Just connected: the queue is not there yet, and where to look."""
    fresh = world.again(backend_url=serve(OURS))
    fresh.label_studio.add_project(1, IMAGES)
    fresh.services.connector.connect(1)
    check = checks(fresh)["project 1: queue"]
    assert not check.ok
    assert "worker" in str(check.cure)


def test_a_project_just_made_is_no_failure(world: World, serve: Callable[[App], str]) -> None:
    """Without tasks there is nothing to embed or to wait for; that images are to be imported is said once."""
    fresh = world.again(backend_url=serve(OURS))
    fresh.label_studio.add_project(1, [])
    fresh.services.connector.connect(1)
    found = checks(fresh)
    assert found["project 1: queue"].ok
    assert found["project 1: images"].warning


def test_everything_labeled_is_well(healthy: World) -> None:
    """An empty window needs no predictions."""
    for task_id in (1, 2, 3, 4):
        healthy.label_studio.annotate(1, task_id, "cat")
    assert healthy.services.trainer.retrain(1) is not None
    assert checks(healthy)["project 1: queue"].ok


def test_hidden_pre_labels_and_left_out_images_are_warnings(healthy: World) -> None:
    """The loop works with both: said, not failed."""
    healthy.label_studio.change_project(1, show_collab_predictions=False)
    healthy.registry.keep_image_failures(1, {2: "HTTP 404"})
    found = checks(healthy)
    assert found["project 1: pre-labels"].warning
    assert found["project 1: images"].warning
    assert "HTTP 404" in found["project 1: images"].found
    assert all(check.ok for check in found.values())


def test_a_project_without_tasks_is_a_warning(healthy: World) -> None:
    """Nothing to try."""
    healthy.label_studio[1].tasks.clear()
    check = checks(healthy)["project 1: images"]
    assert check.ok
    assert check.warning


@pytest.mark.parametrize("call", ["tasks", "prediction_counts", "backends", "webhooks", "server_version"])
def test_a_question_that_fails_is_a_failed_check_and_not_the_end(healthy: World, call: str) -> None:
    """Label Studio answers 500 to one question: that check fails, the others are still made."""
    healthy.label_studio.failures[call] = LabelStudioError("GET … answered 500: database is locked", status=500)
    found = checks(healthy)
    failed = [check for check in found.values() if not check.ok]
    assert failed
    assert any("database is locked" in check.found for check in failed)
    assert all(check.cure for check in failed)


# -- the validation split ---------------------------------------------------------------------------------------------

SPLIT = "project 1: validation split"
FILTER = "project 1: validation filter"


def filtered(world: World, validation_filter: ValidationFilter | None, *splits: object) -> World:
    """The same service with this filter and a version made with it; tasks 1, 2, … have these values in data.split."""
    for task_id, split in enumerate(splits, start=1):
        world.label_studio[1].fields[task_id] = {"split": split}
    other = world.again(validation_filter=validation_filter)
    other.embed_all()
    retrain(other)
    return other


def test_a_labeled_split_is_counted(healthy: World) -> None:
    """Two of four tasks match, one of them is labeled; a label outside the split is not counted."""
    healthy.label_studio.annotate(1, 1, "cat")
    healthy.label_studio.annotate(1, 3, "dog")
    found = checks(filtered(healthy, ValidationFilter("split", "val"), "val", "val", "train", "train"))
    assert found[SPLIT] == Check(SPLIT, True, "data.split=val takes 2 of 4 tasks, 1 of these are labeled")
    assert FILTER not in found


@pytest.mark.parametrize(
    ("splits", "found", "cure"),
    [
        ((), "no task has data.split=val: there is no field 'split' in their data", "correct VALIDATION_FILTER"),
        (
            ("Val", "train", "train", 3),
            "no task has data.split=val: split is 'train' (2), 'Val' (1), '3' (1)",
            "correct VALIDATION_FILTER",
        ),
        (
            ("val", "train", "train", "train"),
            "data.split=val takes 1 of 4 tasks, 0 of these are labeled",
            "tab filtered",
        ),
        (("val",) * 4, "data.split=val takes 4 of 4 tasks, 0 of these are labeled", "narrow VALIDATION_FILTER"),
    ],
)
def test_a_split_that_measures_nothing_is_a_warning(
    healthy: World, splits: tuple[object, ...], found: str, cure: str
) -> None:
    """None matches (the values there are tell why), none is labeled, or none is left over: said with what to do."""
    check = checks(filtered(healthy, ValidationFilter("split", "val"), *splits))[SPLIT]
    assert (check.ok, check.warning, check.found) == (True, True, found)
    assert cure in str(check.cure)


def test_only_the_most_frequent_values_are_named(healthy: World) -> None:
    """A field of names has as many values as tasks: five are named, cut to forty characters."""
    for task_id in range(5, 12):
        healthy.label_studio[1].tasks[task_id] = IMAGES[0]
    split = checks(filtered(healthy, ValidationFilter("split", "val"), *(f"{n}" * 50 for n in range(7))))[SPLIT]
    assert split.found.endswith(f"'{'4' * 40}' (1) and 2 other values")


def test_ground_truth_is_counted(healthy: World) -> None:
    """A mark on a label counts, one on an empty result takes the task and gives no label."""
    truth = ValidationFilter()
    check = checks(filtered(healthy, truth))[SPLIT]
    assert (check.warning, check.found) == (True, "ground_truth takes 0 of 4 tasks, 0 of these are labeled")
    assert "set ground_truth" in str(check.cure)
    healthy.label_studio.annotate(1, 1, "cat", truth=True)
    healthy.label_studio.annotate(1, 2, None, truth=True)
    check = checks(filtered(healthy, truth))[SPLIT]
    assert (check.warning, check.found) == (True, "ground_truth takes 2 of 4 tasks, 1 of these are labeled")
    assert "nothing to train on (imported annotations are ground truth" in str(check.cure)
    healthy.label_studio.annotate(1, 3, "dog")
    check = checks(filtered(healthy, truth))[SPLIT]
    assert (check.warning, check.found) == (False, "ground_truth takes 2 of 4 tasks, 1 of these are labeled")


def test_another_filter_here_than_in_the_worker_is_a_warning(healthy: World) -> None:
    """The published version was made with another setting than this command was given."""
    other = healthy.again(validation_filter=ValidationFilter("split", "val"))
    check = checks(other)[FILTER]
    assert (check.ok, check.warning) == (True, True)
    assert check.found.startswith("VALIDATION_FILTER is data.split=val here, none in v0001-0labels-")
    retrain(other)
    assert FILTER not in checks(other)
    assert "is none here, data.split=val in v0002-" in checks(healthy)[FILTER].found


def test_the_split_costs_one_request(healthy: World) -> None:
    """The tasks listed for the images are looked through, not listed again."""
    other = filtered(healthy, ValidationFilter("split", "val"), "val")
    other.label_studio.asked.clear()
    checks(other)
    assert other.label_studio.asked.count("tasks") == 1
    assert other.label_studio.asked.count("annotated_tasks") == 1


def test_labels_that_cannot_be_read_fail_the_check_of_the_split(healthy: World) -> None:
    """The question behind it fails; its sentence is shown."""
    other = filtered(healthy, ValidationFilter("split", "val"), "val")
    other.label_studio.failures["annotated_tasks"] = LabelStudioError("GET … answered 500: locked", status=500)
    check = broken(other)
    assert (check.name, check.found) == (SPLIT, "GET … answered 500: locked")


# -- the service's own view, and its failures -------------------------------------------------------------------------


def ready(status: str, content: bytes) -> App:
    """Ours, whose /ready answers this."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ["PATH_INFO"] != "/ready":
            return list(OURS(environ, start_response))
        start_response(status, [("Content-Type", "application/json")])
        return [content]

    return app


def test_what_the_web_service_cannot_reach_is_told(healthy: World, serve: Callable[[App], str]) -> None:
    """It may run elsewhere than this command, and see another disk and another network."""
    found = {"redis": {"ok": True, "found": "answers"}, "disk": {"ok": False, "found": "DATA_DIR cannot be written"}}
    content = json.dumps({"status": "not ready", "checks": found}).encode()
    check = checks(healthy.again(backend_url=serve(ready("503 Service Unavailable", content))))["this backend is ready"]
    assert not check.ok
    assert check.found == "disk: DATA_DIR cannot be written"
    assert check.cure


@pytest.mark.parametrize(
    ("status", "content"),
    [("404 Not Found", b"{}"), ("200 OK", b"no JSON"), ("503 Busy", b'{"checks": 3}'), ("503 Busy", b"[]")],
)
def test_a_ready_that_is_none_is_told(healthy: World, serve: Callable[[App], str], status: str, content: bytes) -> None:
    """Another release, a proxy's page: a sentence and no traceback."""
    check = checks(healthy.again(backend_url=serve(ready(status, content))))["this backend is ready"]
    assert not check.ok
    assert check.found
    assert check.cure


def test_a_failing_job_is_told_with_its_reason(healthy: World) -> None:
    """How often, since when, when it is tried again, and whether a person is needed."""
    healthy.services.retries.failed(1, "retrain", LabelStudioError("status 500: database is locked"))
    healthy.services.retries.failed(1, "evaluate", LabelStudioAuthError("the token is refused; set another"))
    healthy.services.retries.given_up(1, "plan_embedding", "4 workers died of it", 4)
    found = checks(healthy)
    retrain_check = found["project 1: retrain"]
    assert not retrain_check.ok
    assert "failed 1 times since 20" in retrain_check.found
    assert "tried again at 20" in retrain_check.found
    assert retrain_check.found.endswith(": status 500: database is locked")
    assert found["project 1: evaluate"].cure == "do what it says"
    assert "not tried again by itself" in found["project 1: plan_embedding"].found


def test_sampling_that_begins_at_the_wrong_end(healthy: World) -> None:
    """With the highest score first, sampling by uncertainty hands out the last first; connect sets that right."""
    turned = healthy.again(score_order="descending")
    check = broken(turned)
    assert check.name == "project 1: sampling"
    assert "takes the lowest score first, but with SCORE_ORDER=descending" in check.found
    assert "backend connect 1" in str(check.cure)
    turned.services.connector.connect(1)
    assert turned.label_studio[1].project.sampling == "Sequential sampling"
    assert "project 1: sampling" not in [name for name, found in checks(turned).items() if not found.ok]
    assert broken(healthy).name == "project 1: sampling"
