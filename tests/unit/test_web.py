"""The web service through Flask's test client: who may, what Label Studio asks, what goes wrong and how it is told."""

from __future__ import annotations

import base64
import dataclasses
import gc
import json
import socket
import threading
from typing import Any

import pytest
from fakes import CREATED, LABEL_CONFIG, World, retrain
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from served import ROUTES, UID, VERSION, basic, client_of, publish, sentence_of, task
from test_model import ACTIONS, payload

from backend.loop.connect import PROJECT_HEADER, SECRET_HEADER
from backend.model import ActiveLearningModel
from backend.schema import UNTRAINED, Progress
from backend.web import MAX_REASON_CHARS, create_app, warm_up

# -- who may ----------------------------------------------------------------------------------------------------------

WRONG = {
    "none": {},
    "wrong password": basic(password="wrong"),
    "wrong user": basic(user="root"),
    "empty": basic(user="", password=""),
    "no password": {"Authorization": "Basic " + base64.b64encode(b"label-studio").decode()},
    "not base64": {"Authorization": "Basic %%%"},
    "nothing after Basic": {"Authorization": "Basic"},
    "empty header": {"Authorization": ""},
    "Bearer": {"Authorization": "Bearer pass-w0rd"},
    "Token": {"Authorization": "Token pass-w0rd"},
    "Digest": {"Authorization": 'Digest username="label-studio", response="x"'},
    "Digest with odd fields": {"Authorization": "Digest type=basic, username=label-studio, password=pass-w0rd"},
    "non-ASCII user": basic(user="Zoë"),
    "non-ASCII password": basic(password="pässword"),
    "Latin-1": basic(user="Zoë", encoding="latin-1"),
    "NUL": basic(user="label-studio\0"),
    "long": basic(password="x" * 5000),
    "raw bytes": {"Authorization": "Basic \xff\xfe"},
}


@pytest.mark.parametrize("credentials", WRONG)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_wrong_credentials_are_401_everywhere(stranger: FlaskClient, method: str, path: str, credentials: str) -> None:
    """Never 500, never a hint what was wrong, and a browser is told to ask for a password."""
    answer = stranger.open(path, method=method, headers=WRONG[credentials])
    assert answer.status_code == 401
    assert "BACKEND_PASSWORD" in sentence_of(answer)
    assert answer.headers["WWW-Authenticate"].startswith("Basic realm=")


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_the_right_credentials_are_let_in(client: FlaskClient, method: str, path: str) -> None:
    """Whatever the route then answers, it is not 401."""
    assert client.open(path, method=method).status_code != 401


def test_health_needs_no_credentials_but_no_wrong_ones(stranger: FlaskClient) -> None:
    """Probes ask without; Label Studio asks with, and learns here that they are wrong."""
    assert stranger.get("/health").json == {"status": "UP", "model_class": ActiveLearningModel.__name__}
    assert stranger.get("/health", headers=basic()).status_code == 200
    for name, headers in WRONG.items():
        if headers:
            assert stranger.get("/health", headers=headers).status_code == 401, name


def test_ready_tells_strangers_no_more_than_the_state(project: World, stranger: FlaskClient) -> None:
    """No worker here: 503 for all; who is known reads which check failed; wrong credentials are 401."""
    answer = stranger.get("/ready")
    assert (answer.status_code, answer.json) == (503, {"status": "not ready"})
    known = stranger.get("/ready", headers=basic())
    assert known.status_code == 503
    checks = (known.json or {})["checks"]
    assert [name for name, check in checks.items() if not check["ok"]] == ["worker"]
    for name, headers in WRONG.items():
        if headers:
            assert stranger.get("/ready", headers=headers).status_code == 401, name
    open_to_all = client_of(project.again(backend_password=""), credentials=False)
    assert "checks" in (open_to_all.get("/ready").json or {})


def test_a_non_ascii_password_works(project: World) -> None:
    """A password of any language, sent as UTF-8."""
    zoe = client_of(project.again(backend_user="Zoë", backend_password="pässwörd"), credentials=False)
    assert zoe.get("/versions", headers=basic("Zoë", "pässwörd")).status_code == 200
    assert zoe.get("/versions", headers=basic()).status_code == 401


def test_without_a_password_everybody_may(project: World) -> None:
    """Authentication is off: no header, or any."""
    client = client_of(project.again(backend_password=""), credentials=False)
    assert client.get("/versions").status_code == 200
    assert client.get("/versions", headers=basic(password="x")).status_code == 200


def test_the_webhook_takes_its_secret_or_basic_auth(project: World, stranger: FlaskClient) -> None:
    """Label Studio sends webhooks without credentials, so they carry a secret header of ours."""
    secret = project.services.webhook_secret
    body = payload("ANNOTATION_CREATED")
    assert stranger.post("/webhook", json=body, headers={SECRET_HEADER: secret}).status_code == 201
    assert stranger.post("/webhook", json=body, headers=basic()).status_code == 201
    for wrong in ("", "x", secret[:-1], "pass-w0rd", "\xff", secret + "\xe9"):
        assert stranger.post("/webhook", json=body, headers={SECRET_HEADER: wrong}).status_code == 401


def test_the_webhook_s_secret_opens_nothing_else(project: World, stranger: FlaskClient) -> None:
    """Whoever reads it in Label Studio's webhook settings cannot read labels with it."""
    headers = {SECRET_HEADER: project.services.webhook_secret}
    for method, path in ROUTES:
        if path != "/webhook":
            assert stranger.open(path, method=method, headers=headers).status_code == 401


# -- malformed --------------------------------------------------------------------------------------------------------

BODIES: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"action=ANNOTATION_CREATED",
    "half": b'{"action": "ANNOT',
    "a list": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "a number": b"3",
    "no UTF-8": b'{"action": "\xff"}',
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a huge number": b'{"action": ' + b"9" * 10_000 + b"}",
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook", "/job_status"])
def test_a_malformed_body_is_400_with_a_sentence(client: FlaskClient, path: str, body: str) -> None:
    """What was expected is said."""
    answer = client.post(path, data=BODIES[body], content_type="application/json")
    assert answer.status_code == 400
    assert path in sentence_of(answer) or "expect" in sentence_of(answer)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/setup", {}),
        ("/setup", {"project": UID}),
        ("/setup", {"project": UID, "schema": None}),
        ("/setup", {"project": UID, "schema": ["<View/>"]}),
        ("/setup", {"project": None, "schema": LABEL_CONFIG}),
        ("/setup", {"project": "x.1", "schema": LABEL_CONFIG}),
        ("/setup", {"project": {}, "schema": LABEL_CONFIG}),
        ("/setup", {"project": "9" * 5000, "schema": LABEL_CONFIG}),
        ("/predict", {}),
        ("/predict", {"tasks": None, "project": UID}),
        ("/predict", {"tasks": {"id": 1}, "project": UID}),
        ("/predict", {"tasks": [], "project": None}),
        ("/predict", {"tasks": [1], "project": UID}),
        ("/predict", {"tasks": [None], "project": UID}),
        ("/predict", {"tasks": [{}], "project": UID}),
        ("/predict", {"tasks": [{"id": "1"}], "project": UID}),
        ("/predict", {"tasks": [{"id": True}], "project": UID}),
        ("/predict", {"tasks": [{"id": 2**63}], "project": UID}),
        ("/predict", {"tasks": [{"id": -1}], "project": UID}),
        ("/predict", {"tasks": [{"id": 1}], "project": "../3"}),
        ("/predict", {"tasks": [{"id": 1}], "project": UID, "label_config": 3}),
        ("/webhook", {}),
        ("/webhook", {"action": None}),
        ("/webhook", {"action": 3}),
        ("/webhook", {"action": ["ANNOTATION_CREATED"]}),
        ("/webhook", {"action": "ANNOTATION_CREATED", "project": {}}),
        ("/webhook", {"action": "ANNOTATION_CREATED", "project": {"id": "x"}}),
        ("/job_status", {}),
        ("/job_status", {"job": 3}),
    ],
)
def test_a_body_of_the_wrong_shape_is_400_with_a_sentence(client: FlaskClient, path: str, body: Any) -> None:
    """The field, and what came."""
    answer = client.post(path, json=body)
    assert answer.status_code == 400
    sentence_of(answer)


@pytest.mark.parametrize("created", ["²", "٣", "9" * 5000, "-1", "x", "", "1.5"])
def test_an_odd_creation_time_is_no_error(client: FlaskClient, created: str) -> None:
    """What stands behind the dot is only used if it is a time."""
    answer = client.post("/setup", json={"project": f"3.{created}", "schema": LABEL_CONFIG})
    assert answer.status_code in (200, 400)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from(["action", "project", "tasks", "schema", "label_config", "job", "id", "data", "params"])


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    st.sampled_from(["/setup", "/predict", "/webhook", "/job_status", "/versions"]),
    st.dictionaries(NAMES, JSON | st.lists(st.dictionaries(NAMES, JSON), max_size=2), max_size=4),
)
def test_no_body_makes_a_server_error(client: FlaskClient, path: str, body: Any) -> None:
    """Any JSON object gets an answer below 500."""
    assert client.post(path, json=body).status_code < 500


def test_a_body_that_is_too_large_is_413(project: World) -> None:
    """The limit is a setting; the answer is a sentence."""
    client = client_of(project.again(max_request_bytes=1024))
    answer = client.post("/predict", json={"tasks": [{"id": 1, "data": {"image": "x" * 2000}}], "project": UID})
    assert answer.status_code == 413
    sentence_of(answer)


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/predict", 405)])
def test_unknown_pages_are_told_as_json(client: FlaskClient, method: str, path: str, status: int) -> None:
    """A person who mistypes an address, or a probe, gets a code and a sentence."""
    answer = client.open(path, method=method)
    assert answer.status_code == status
    sentence_of(answer)


def test_an_unexpected_error_gives_nothing_away(
    project: World, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug of ours is 500 and one sentence; the details are in the log only."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(project.services.status, "project", fail)
    answer = client.get("/api/projects/3/status")
    assert answer.status_code == 500
    assert "secret detail" not in sentence_of(answer)
    assert "secret detail" not in answer.status


# -- /setup -----------------------------------------------------------------------------------------------------------


def test_setup_registers_and_asks_for_embedding(world: World) -> None:
    """A new project: known from now on, its images are embedded, no version yet."""
    client = client_of(world)
    body = {"project": UID, "schema": LABEL_CONFIG, "hostname": "http://ls", "access_token": "t", "extra_params": None}
    answer = client.post("/setup", json=body)
    assert answer.json == {"model_version": UNTRAINED}
    facts = world.registry.project_facts(3)
    assert facts is not None
    assert (facts["created"], facts["label_config"], facts["hostname"]) == (CREATED, LABEL_CONFIG, "http://ls")
    assert world.waiting() == ["plan_embedding(3)"]


def test_setup_of_a_known_project_asks_for_nothing(project: World, client: FlaskClient) -> None:
    """Label Studio calls it at every save and page load."""
    for _ in range(3):
        assert client.post("/setup", json={"project": UID, "schema": LABEL_CONFIG}).json == {"model_version": VERSION}
    assert project.waiting() == []


def test_setup_of_an_id_given_anew_serves_nothing_old(project: World, client: FlaskClient) -> None:
    """Another creation time is another project."""
    answer = client.post("/setup", json={"project": f"3.{CREATED + 1}", "schema": LABEL_CONFIG})
    assert answer.json == {"model_version": UNTRAINED}


@pytest.mark.parametrize(
    "schema",
    [
        "",
        "<View/>",
        "<View><Text name='t' value='$t'/></View>",
        LABEL_CONFIG.replace("<Choices", "<Choices choice='ranked'"),
    ],
)
def test_a_config_that_is_not_understood_is_422_with_the_reason_in_the_status_line(world: World, schema: str) -> None:
    """Label Studio shows the person who connects only the reason phrase: it carries the sentence, on one ASCII line."""
    answer = client_of(world).post("/setup", json={"project": UID, "schema": schema})
    assert answer.status_code == 422
    sentence = sentence_of(answer)
    reason = answer.status.partition(" ")[2]
    assert "exactly one <Choices" in sentence
    assert reason == sentence[:MAX_REASON_CHARS]
    assert world.registry.known_projects() == []
    assert world.waiting() == []


def test_a_reason_phrase_is_one_ascii_line(world: World) -> None:
    """A config with line ends and other scripts cannot add a header or break the status line."""
    schema = (
        "<View><Image name='i\r\nX-Evil: 1' value='$i'/><Choices name='猫\n' toName='i'><Choice value='é'/></Choices>"
    )
    answer = client_of(world).post("/setup", json={"project": UID, "schema": schema})
    assert answer.status_code == 422
    assert answer.status.isascii()
    assert answer.status.isprintable()
    assert len(answer.status) <= MAX_REASON_CHARS + 4
    assert "X-Evil" not in answer.headers


# -- /predict ---------------------------------------------------------------------------------------------------------


def test_a_prediction_for_each_task(client: FlaskClient) -> None:
    """Cats are red, dogs green; version, score and result stand in each answer."""
    body = {"tasks": [task(1), task(2)], "project": UID, "label_config": LABEL_CONFIG, "params": {"context": None}}
    answer = client.post("/predict", json=body)
    assert answer.status_code == 200
    assert answer.json is not None
    assert answer.json["model_version"] == VERSION
    labels = [item["result"][0]["value"]["choices"] for item in answer.json["results"]]
    assert labels == [["cat"], ["dog"]]
    assert all(set(item) == {"result", "score", "model_version"} for item in answer.json["results"])
    assert all(0 <= item["score"] <= 1 for item in answer.json["results"])


def test_the_project_may_stand_in_the_tasks(client: FlaskClient) -> None:
    """A plain client without `project` is understood."""
    answer = client.post("/predict", json={"tasks": [task(1)]})
    assert (answer.json or {})["model_version"] == VERSION


ODD = st.fixed_dictionaries(
    {"id": st.integers(0, 6) | st.just(2**63 - 1)},
    optional={
        "data": st.none() | st.text() | st.dictionaries(st.sampled_from(["image", "x"]), JSON, max_size=2),
        "project": st.none() | st.integers(),
        "annotations": JSON,
    },
)


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(ODD, max_size=6))
def test_there_are_as_many_results_as_tasks(client: FlaskClient, tasks: list[dict[str, Any]]) -> None:
    """Whatever the tasks are, each has an answer of plain JSON: Label Studio drops all results otherwise."""
    answer = client.post("/predict", json={"tasks": tasks, "project": UID})
    assert answer.status_code == 200
    body = json.loads(answer.data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert len(body["results"]) == len(tasks)
    assert all(isinstance(item["score"], float) for item in body["results"])


def test_an_unknown_project_gets_empty_answers(client: FlaskClient, project: World) -> None:
    """Not connected: no made-up model, and nothing is kept of it."""
    answer = client.post("/predict", json={"tasks": [task(1)], "project": "99.1"})
    assert (answer.json or {})["results"] == [{"result": [], "score": 1.0, "model_version": UNTRAINED}]
    assert not (project.services.settings.data_dir / "projects" / "99").exists()


def test_a_warm_process_answers_as_a_cold_one(project: World, dead_redis_url: str) -> None:
    """Warming up needs no Redis and no Label Studio, and changes no answer."""
    other = project.again(redis_url=dead_redis_url)
    project.label_studio.asked.clear()
    warm_up(other.services)
    assert gc.get_freeze_count() > 100_000  # no search for garbage stops a request
    gc.unfreeze()
    assert project.label_studio.asked == []
    body = {"tasks": [task(1), task(2)], "project": UID}
    answers = [client_of(world).post("/predict", json=body).json for world in (project, other)]
    assert answers[0] == answers[1]


def test_prediction_needs_no_redis(project: World, dead_redis_url: str) -> None:
    """Redis is away: pre-labels are shown all the same."""
    client = client_of(project.again(redis_url=dead_redis_url))
    assert client.post("/predict", json={"tasks": [task(1)], "project": UID}).status_code == 200


# -- /webhook ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [*ACTIONS, "OF_TOMORROW", ""])
@pytest.mark.parametrize("with_payload", [True, False])
@pytest.mark.parametrize("with_header", [True, False])
def test_every_action_is_answered(client: FlaskClient, action: str, with_payload: bool, with_header: bool) -> None:
    """Every action of Label Studio 1.23.2, with and without payload, is 201."""
    body = payload(action) if with_payload else {"action": action}
    answer = client.post("/webhook", json=body, headers={PROJECT_HEADER: "3"} if with_header else {})
    assert answer.status_code == 201
    assert json.loads(answer.data) is not None


def test_an_event_names_its_project_by_payload_header_or_not_at_all(project: World, client: FlaskClient) -> None:
    """Payload first, then the header we gave the webhook; without either every known project is meant."""
    publish(project, 4)
    client.post("/webhook", json=payload("ANNOTATION_CREATED"), headers={PROJECT_HEADER: "4"})
    assert project.waiting() == ["retrain(3)"]
    project.empty_queue()
    client.post("/webhook", json={"action": "ANNOTATION_CREATED"}, headers={PROJECT_HEADER: "4"})
    assert project.waiting() == ["retrain(4)"]
    project.empty_queue()
    client.post("/webhook", json={"action": "ANNOTATION_CREATED"})
    assert project.waiting() == ["retrain(3)", "retrain(4)"]


def test_a_malformed_project_header_is_400(client: FlaskClient) -> None:
    """Somebody changed the webhook's headers by hand."""
    answer = client.post("/webhook", json={"action": "ANNOTATION_CREATED"}, headers={PROJECT_HEADER: "../4"})
    assert answer.status_code == 400
    sentence_of(answer)


def test_two_hundred_events_are_one_job(project: World, client: FlaskClient) -> None:
    """And each is answered with its own ticket."""
    tickets = {(client.post("/webhook", json=payload("ANNOTATION_CREATED")).json or {})["ticket"] for _ in range(200)}
    assert len(tickets) == 200
    assert project.waiting() == ["retrain(3)"]


def test_the_answer_waits_for_the_version_with_the_label(project: World) -> None:
    """The worker answers the ticket while the webhook waits: then the wait is over."""
    client = client_of(project.again(publish_wait_s=30.0))
    done = threading.Event()

    def work() -> None:
        while not project.waiting() and not done.wait(0.005):
            pass
        project.jobs.answer_retrain(3, project.jobs.begin_retrain(3))

    worker = threading.Thread(target=work)
    worker.start()
    answer = client.post("/webhook", json=payload("ANNOTATION_CREATED"))
    done.set()
    worker.join()
    assert answer.status_code == 201


@pytest.mark.parametrize("action", ["START_TRAINING", "TASKS_CREATED", "PROJECT_UPDATED", "LABEL_LINK_CREATED"])
def test_no_other_event_waits(project: World, action: str) -> None:
    """With a wait of ten minutes and no worker this test would never end."""
    client = client_of(project.again(publish_wait_s=600.0))
    assert client.post("/webhook", json=payload(action)).status_code == 201


def test_a_short_wait_ends_without_a_worker(project: World) -> None:
    """No worker: the answer comes after the wait, with the ticket."""
    client = client_of(project.again(publish_wait_s=0.05))
    assert (client.post("/webhook", json=payload("ANNOTATION_CREATED")).json or {})["ticket"] == 1


def test_the_wait_is_shorter_while_others_label(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our version comes after one under way; people who label together would wait for each other twice."""
    waited: list[float] = []

    def wait(project_id: int, ticket: int, timeout_s: float) -> bool:
        waited.append(timeout_s)
        return True

    world = project.again(publish_wait_s=0.6)
    monkeypatch.setattr(world.services.jobs, "wait_for_retrain", wait)
    client = client_of(world)
    client.post("/webhook", json=payload("ANNOTATION_CREATED"))
    client.post("/webhook", json=payload("ANNOTATION_CREATED"))
    project.jobs.begin_retrain(3)
    with project.jobs.project_lock(3):
        client.post("/webhook", json=payload("ANNOTATION_CREATED"))
    project.jobs.begin_retrain(3)
    client.post("/webhook", json=payload("ANNOTATION_CREATED"))
    project.jobs.answer_retrain(3, project.jobs.begin_retrain(3))
    client.post("/webhook", json=payload("ANNOTATION_CREATED"))
    assert waited == [0.6, 0.6, 0.3]


# -- job_status, versions ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_the_state_of_a_job(project: World, client: FlaskClient, method: str) -> None:
    """Asked with the id that the webhook gave, in a body or a query."""
    job = (client.post("/webhook", json=payload("ANNOTATION_CREATED")).json or {})["job"]
    answer = client.get(f"/job_status?job={job}") if method == "GET" else client.post("/job_status", json={"job": job})
    assert answer.status_code == 200
    assert (answer.json or {})["job_status"] == "queued"


@pytest.mark.parametrize("job", ["retrain-3-000000000000", "../../etc/passwd", "", "é\n\0", "x" * 200])
def test_an_unknown_job_is_410(client: FlaskClient, job: str) -> None:
    """Label Studio takes 410 for a job that is over and forgotten."""
    assert client.post("/job_status", json={"job": job}).status_code == 410


def test_versions_of_one_project_or_of_all(project: World, client: FlaskClient) -> None:
    """Newest first; Label Studio asks without saying which project."""
    newer = "v0002-3labels-20260102T000000Z"
    publish(project, 3, newer)
    publish(project, 4, "v0007-1labels-20260102T000000Z")
    assert client.get("/versions?project=3").json == {"versions": [newer, VERSION]}
    assert client.get(f"/versions?project={UID}").json == {"versions": [newer, VERSION]}
    assert client.post("/versions", json={"project": UID}).json == {"versions": [newer, VERSION]}
    assert len((client.get("/versions").json or {})["versions"]) == 3
    assert client.get("/versions?project=x").status_code == 400


def test_asking_for_versions_keeps_nothing(project: World, client: FlaskClient) -> None:
    """A question about any number makes no folder."""
    assert client.get("/versions?project=99").json == {"versions": []}
    assert not (project.services.settings.data_dir / "projects" / "99").exists()


# -- going back to a version ------------------------------------------------------------------------------------------


def test_versions_are_listed_and_shown(project: World, client: FlaskClient) -> None:
    """Name, labels, what it is used for; of one version all that is kept."""
    newer = "v0002-3labels-20260102T000000Z"
    publish(project, 3, newer)
    listed = (client.get("/api/projects/3/versions").json or {})["versions"]
    assert [(item["version"], item["published"], item["pinned"]) for item in listed] == [
        (newer, True, False),
        (VERSION, False, False),
    ]
    shown = client.get(f"/api/projects/3/versions/{VERSION}").json or {}
    assert (shown["fingerprint"], shown["labels_by_class"]) == ("f00d", {"cat": 1, "dog": 1})
    assert (client.get("/api/projects/3/versions/v0002").json or {})["version"] == newer


def test_a_version_is_pinned_and_released(project: World, client: FlaskClient) -> None:
    """202: the worker publishes it; the status tells of the pin at once."""
    publish(project, 3, "v0002-3labels-20260102T000000Z")
    answer = client.post("/api/projects/3/pin", json={"version": "v0001"})
    assert answer.status_code == 202
    pinned = (answer.json or {})["pinned"]
    assert (pinned["version"], pinned["by"]) == (VERSION, "API")
    assert project.waiting() == ["retrain(3)"]
    assert (client.get("/api/projects/3/status").json or {})["pinned"] == pinned
    answer = client.delete("/api/projects/3/pin")
    assert (answer.status_code, answer.json) == (202, {"pinned": None})
    assert (client.get("/api/projects/3/status").json or {})["pinned"] is None
    assert client.delete("/api/projects/3/pin").status_code == 202


@pytest.mark.parametrize(
    ("path", "body", "status", "sentence"),
    [
        ("/api/projects/3/pin", {"version": "v0009"}, 404, "keeps no version 'v0009'"),
        ("/api/projects/7/pin", {"version": "v0001"}, 404, "backend connect 7"),
        ("/api/projects/3/pin", {}, 400, "expects a text in 'version'"),
        ("/api/projects/3/pin", {"version": 1}, 400, "expects a text in 'version'"),
        ("/api/projects/3/pin", [], 400, "expects a JSON object"),
    ],
)
def test_a_pin_that_cannot_be_is_a_sentence(
    client: FlaskClient, path: str, body: object, status: int, sentence: str
) -> None:
    """Which version, which project, what was expected."""
    answer = client.post(path, json=body)
    assert answer.status_code == status
    assert sentence in sentence_of(answer)


def test_a_version_that_cannot_serve_the_project_is_409(project: World, client: FlaskClient) -> None:
    """The labeling config offers other labels by now."""
    project.registry.register(3, CREATED, LABEL_CONFIG.replace("dog", "wolf"))
    answer = client.post("/api/projects/3/pin", json={"version": VERSION})
    assert answer.status_code == 409
    assert "no longer offers" in sentence_of(answer)


def test_another_site_s_form_pins_nothing(project: World, client: FlaskClient) -> None:
    """A browser sends the password along with a form, but a form cannot be of type JSON."""
    answer = client.post("/api/projects/3/pin", data='{"version": "v0001"}', content_type="text/plain")
    assert answer.status_code == 400
    assert "application/json" in sentence_of(answer)
    assert project.registry.pin(3) is None


@pytest.mark.parametrize("name", ["..%2F..%2Fproject.json", "v9", "%00", "x" * 3000])
def test_a_version_of_any_other_name_is_404(client: FlaskClient, name: str) -> None:
    """No name leads out of the folder."""
    assert client.get(f"/api/projects/3/versions/{name}").status_code == 404


# -- status -----------------------------------------------------------------------------------------------------------


def test_the_status_of_a_project(project: World, client: FlaskClient) -> None:
    """Everything the contract names, and more."""
    project.jobs.set_progress(3, Progress(3, 4))
    project.jobs.set_note(3, "last_error", "Label Studio was away")
    project.registry.keep_image_failures(3, {4: "HTTP 404"})
    answer = client.get("/api/projects/3/status")
    assert answer.status_code == 200
    status = answer.json
    assert status is not None
    expected = {
        "project_id": 3,
        "model_version": VERSION,
        "labels_used": 2,
        "pool_size": 2,
        "window": [3, 4],
        "training": "idle",
        "accuracy": 0.75,
        "last_error": "Label Studio was away",
        "embedding": {"done": 3, "total": 4, "images_per_s": None, "seconds_left": None},
        "image_failures": {"4": "HTTP 404"},
        "n_workers": 0,
        "labels_by_class": {"cat": 1, "dog": 1},
    }
    assert {name: status[name] for name in expected} == expected


def test_the_status_says_how_good_it_is_and_what_to_do(project: World, client: FlaskClient) -> None:
    """Measured or cross-validated, how sure, what more labels would give, what looks wrong; all from the record."""
    suspect = {
        "task_id": 2,
        "label": "cat",
        "suggested_label": "dog",
        "probability": 0.01,
        "suggested_probability": 0.99,
    }
    forecast = {"target": 0.95, "labels_needed": 40, "stop": False, "suggestion": "Go on."}
    record = project.registry.record(3, VERSION)
    version = VERSION.replace("v0001", "v0002")
    newer = dataclasses.replace(
        record, version=version, accuracy_kind="measured on 50 validation tasks", accuracy_interval=[0.6, 0.85],
        cross_validated_accuracy=0.5, expected_accuracy=0.8, validation_filter="data.split=val", validation_tasks=80,
        validation_labels=50,
        validation_note="some", forecast=forecast, n_suspects=7, suspects=[suspect],
    )  # fmt: skip
    project.registry.save(newer, project.registry.head(record))
    project.registry.publish(3, version)
    status = client.get("/api/projects/3/status").json or {}
    expected = {
        "accuracy": 0.75,
        "accuracy_kind": "measured on 50 validation tasks",
        "accuracy_interval": [0.6, 0.85],
        "cross_validated_accuracy": 0.5,
        "expected_accuracy": 0.8,
        "validation": {"filter": "data.split=val", "tasks": 80, "labels": 50, "note": "some"},
        "forecast": forecast,
        "n_suspects": 7,
        "suspects": [{**suspect, "link": "http://127.0.0.1:8080/projects/3/data?task=2"}],
    }
    assert {name: status[name] for name in expected} == expected
    text = client.get("/metrics").data.decode()
    samples = {
        sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples
    }
    assert samples["active_learning_labels_needed"] == 40
    assert samples["active_learning_suspects"] == 7
    assert samples["active_learning_validation_labels"] == 50
    assert samples["active_learning_expected_accuracy"] == 0.8


def test_the_status_follows_the_retrain(project: World, client: FlaskClient) -> None:
    """Idle, queued, running."""

    def training() -> str:
        return str((client.get("/api/projects/3/status").json or {})["training"])

    assert training() == "idle"
    project.jobs.request_retrain(3)
    assert training() == "queued"
    with project.jobs.project_lock(3):
        assert training() == "running"


def test_the_status_of_a_new_project(world: World) -> None:
    """Connected a moment ago: nothing yet, and no error."""
    world.registry.register(3, CREATED, LABEL_CONFIG)
    status = client_of(world).get("/api/projects/3/status").json
    assert status is not None
    assert (status["model_version"], status["labels_used"], status["window"], status["accuracy"]) == (None, 0, [], None)


@pytest.mark.parametrize("number", ["9", "0", "99999999999999999999", "9" * 400])
def test_the_status_of_an_unknown_project_is_404(client: FlaskClient, number: str) -> None:
    """The sentence says how to connect it."""
    answer = client.get(f"/api/projects/{number}/status")
    assert answer.status_code == 404
    assert "backend connect" in sentence_of(answer)


@pytest.mark.parametrize("number", ["-1", "x", "3.5", "../3"])
def test_what_is_no_project_number_is_404(client: FlaskClient, number: str) -> None:
    """No such page."""
    assert client.get(f"/api/projects/{number}/status").status_code == 404


def test_the_front_page_names_the_projects(client: FlaskClient) -> None:
    """Where to look next."""
    assert (client.get("/").json or {})["projects"] == {"3": "/api/projects/3/status"}


def test_metrics_tell_how_long_each_stage_took(project: World, client: FlaskClient) -> None:
    """A retrain, its evaluation and a webhook that gave up waiting, as histograms; one that never waits is none."""
    project.embed_all(3)
    project.label_studio.annotate(3, 1, "cat")
    project.label_studio.annotate(3, 2, "dog")
    retrain(project, 3)
    text = client.get("/metrics").data.decode()
    for work, stage in (("retrain", "fit"), ("retrain", "push"), ("evaluate", "cross_validate")):
        assert f'active_learning_stage_seconds_count{{stage="{stage}",work="{work}"}} 1.0' in text
        assert f'active_learning_stage_seconds_bucket{{le="+Inf",stage="{stage}",work="{work}"}} 1.0' in text
    for asked in (client_of(project.again(publish_wait_s=0.01)), client):
        asked.post("/webhook", json={"action": "ANNOTATION_CREATED", "project": {"id": 3}})
    assert 'stage_seconds_count{stage="gave_up",work="webhook"} 1.0' in client.get("/metrics").data.decode()


def test_metrics_are_prometheus_text(project: World, client: FlaskClient) -> None:
    """Its own parser reads them; the figures are those of the published version and of the queue."""
    project.registry.register(5, CREATED, LABEL_CONFIG)
    project.jobs.request_retrain(3)
    project.jobs.count("jobs retrain done", 3)
    answer = client.get("/metrics")
    assert answer.content_type.startswith("text/plain")
    families = list(text_string_to_metric_families(answer.data.decode()))
    samples = {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}
    assert samples["active_learning_labels_used", "3"] == 2
    assert samples["active_learning_labels_used", "5"] == 0
    assert samples["active_learning_accuracy", "3"] == 0.75
    assert ("active_learning_accuracy", "5") not in samples
    assert samples["active_learning_versions", "3"] == 1
    assert samples["active_learning_suspects", "3"] == 0
    assert ("active_learning_labels_needed", "3") not in samples, "unknown is no number"
    assert samples["active_learning_queue_depth", "active-learning-retrain"] == 1
    assert samples["active_learning_jobs_total", "done", "retrain"] == 3
    assert samples["active_learning_workers",] == 0
    assert all(family.documentation for family in families)


# -- Redis away -------------------------------------------------------------------------------------------------------


@pytest.fixture
def cut_off(project: World, dead_redis_url: str) -> FlaskClient:
    """The service without its Redis."""
    return client_of(project.again(redis_url=dead_redis_url))


def test_without_redis_a_label_is_503_with_a_sentence(cut_off: FlaskClient) -> None:
    """Label Studio never sends it again; the reconciliation finds it later."""
    answer = cut_off.post("/webhook", json=payload("ANNOTATION_CREATED"))
    assert answer.status_code == 503
    assert "Redis does not answer" in sentence_of(answer)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/setup", {"project": f"8.{CREATED}", "schema": LABEL_CONFIG}), ("/job_status", {"job": "retrain-3-0"})],
)
def test_without_redis_what_needs_it_is_503(cut_off: FlaskClient, path: str, body: dict[str, str]) -> None:
    """A sentence each."""
    answer = cut_off.post(path, json=body)
    assert answer.status_code == 503
    sentence_of(answer)


def test_without_redis_the_status_says_so(cut_off: FlaskClient) -> None:
    """What is on the disk is told all the same, and why the rest is not."""
    answer = cut_off.get("/api/projects/3/status")
    assert answer.status_code == 200
    status = answer.json
    assert status is not None
    assert status["model_version"] == VERSION
    assert "Redis does not answer" in status["last_error"]
    assert "pass-w0rd" not in answer.text
    assert cut_off.get("/metrics").status_code == 200
    assert cut_off.get("/health").status_code == 200
    assert cut_off.get("/versions").status_code == 200


def test_a_setup_that_failed_without_redis_is_asked_again(project: World, dead_redis_url: str) -> None:
    """Redis was away when the project was set up: the next setup still asks for embedding."""
    body = {"project": f"8.{CREATED}", "schema": LABEL_CONFIG}
    assert client_of(project.again(redis_url=dead_redis_url)).post("/setup", json=body).status_code == 503
    assert client_of(project).post("/setup", json=body).status_code == 200
    assert project.waiting() == ["plan_embedding(8)"]


def test_label_studio_is_asked_for_nothing_by_a_request(project: World, client: FlaskClient) -> None:
    """Answers come from what is at hand: a slow Label Studio makes no slow answer, and no two wait on each other."""
    project.label_studio.asked.clear()
    client.post("/predict", json={"tasks": [task(1)], "project": UID})
    client.post("/webhook", json=payload("ANNOTATION_CREATED"))
    client.post("/setup", json={"project": UID, "schema": LABEL_CONFIG})
    for path in ("/health", "/versions", "/metrics", "/api/projects/3/status"):
        client.get(path)
    assert project.label_studio.asked == []


def test_the_status_line_survives_a_real_server(world: World) -> None:
    """Over a socket: the reason phrase arrives as one line with the sentence."""
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, create_app(world.services), threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    body = json.dumps({"project": UID, "schema": "<View/>"}).encode()
    head = (
        "POST /setup HTTP/1.0\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: {basic()['Authorization']}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        with socket.create_connection(("127.0.0.1", server.server_port), timeout=10) as connection:
            connection.sendall(head.encode() + body)
            answer = b""
            while chunk := connection.recv(65536):
                answer += chunk
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    line = answer.split(b"\r\n", 1)[0].decode()
    assert line.split(" ", 2)[1] == "422"
    assert "exactly one <Choices" in line
