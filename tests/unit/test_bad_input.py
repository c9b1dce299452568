"""Input that nobody should send: JSON at its edges, labeling configs, tasks, webhooks, addresses; never a 500."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from typing import Any

import pytest
from fakes import LABEL_CONFIG, World, retrain, rgb
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from served import ROUTES, UID, VERSION, basic, client_of, sentence_of, task
from test_model import ACTIONS, payload
from werkzeug.test import EnvironBuilder, TestResponse, run_wsgi_app

from backend.adapters.label_studio import answers_of_event, event_of_webhook
from backend.bodies import MAX_CONFIG_CHARS, MAX_ITEMS, MAX_NESTING
from backend.choices import parse_labeling_config
from backend.errors import LabelingConfigError
from backend.loop.connect import PROJECT_HEADER
from backend.server import HEADERS
from backend.web import MAX_REASON_CHARS, create_app

POSTS = ("/setup", "/predict", "/webhook", "/job_status", "/versions")
HYPOTHESIS = {"suppress_health_check": [HealthCheck.function_scoped_fixture], "deadline": None}


def refused(answer: TestResponse, status: int = 400) -> str:
    """The sentence of a refusal, after checking its status line."""
    assert answer.status_code == status, (answer.status, answer.data[:200])
    reason = answer.status.partition(" ")[2]
    assert reason.isascii()
    assert reason.isprintable()
    assert len(reason) <= MAX_REASON_CHARS
    return sentence_of(answer)


# -- JSON at its edges ------------------------------------------------------------------------------------------------

EDGES: dict[str, tuple[bytes, str]] = {
    "NaN": (b'{"action": "X", "x": NaN}', "NaN is not a JSON number"),
    "Infinity": (b'{"action": "X", "x": -Infinity}', "-Infinity is not a JSON number"),
    "a float beyond bounds": (b'{"action": "X", "x": 1e400}', "the number 1e400 is too large"),
    "an integer of 5,000 digits": (b'{"action": ' + b"9" * 5_000 + b"}", "Exceeds the limit"),
    "too deep": (b'{"x": ' + b"[" * MAX_NESTING + b"]" * MAX_NESTING + b"}", "nested deeper than 64 levels"),
    "far too deep": (b"[" * 100_000, "nested deeper"),
    "deep behind a string": (b'{"a\\\\": "]]]", "b\\"": ' + b"[" * 70 + b"]" * 70 + b"}", "nested deeper"),
    "too many values": (b'{"x": [' + b"0," * MAX_ITEMS + b"0]}", "more than 2,000,000 values"),
    "no UTF-8": (b'{"action": "\xff"}', "UTF-8, and byte 12 of the body is none"),
    "an encoded surrogate": (b'{"action": "\xed\xa0\x80"}', "UTF-8"),
    "UTF-16": ('{"action": "X"}'.encode("utf-16"), "UTF-8"),
    "a control character": (b'{"action": "\x01"}', "Invalid control character"),
    "a list": (b"[1]", "expects a JSON object in the body, not list"),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("path", POSTS)
def test_json_at_its_edges_is_400_with_what_is_wrong(client: FlaskClient, path: str, edge: str) -> None:
    """The same for every route, and before anything is done."""
    raw, expected = EDGES[edge]
    assert expected in refused(client.post(path, data=raw))


def test_brackets_in_texts_are_no_nesting(client: FlaskClient) -> None:
    """Only structure counts, wherever the quotes and backslashes are."""
    odd = "[" * 200 + '"' + "{" * 200 + "\\" + '\\"' + "[" * 100
    assert client.post("/webhook", json={"action": "X", odd: odd, "y": [odd]}).status_code == 201


def test_the_deepest_nesting_that_is_allowed(client: FlaskClient) -> None:
    """At the bound it is still answered, also where the body is kept and written again."""
    value: Any = "x"
    for _ in range(MAX_NESTING - 4):
        value = [value]
    body = payload("ANNOTATION_CREATED")
    body["annotation"]["result"] = [{"value": value}]
    assert client.post("/webhook", json=body).status_code == 201


def test_a_key_that_comes_twice_is_what_it_was_last(client: FlaskClient) -> None:
    """As in Python and in browsers; nobody before us reads it otherwise."""
    raw = b'{"action": "ANNOTATION_CREATED", "action": "X", "project": {"id": 3}}'
    assert client.post("/webhook", data=raw).json == {}


def test_a_byte_order_mark_is_no_error(client: FlaskClient) -> None:
    """Some editors write one."""
    assert client.post("/webhook", data=b'\xef\xbb\xbf{"action": "X"}').status_code == 201


@pytest.mark.parametrize("name", ["hostname", "schema", "project", "access_token"])
def test_half_a_surrogate_pair_is_no_error(world: World, name: str) -> None:
    """JSON can spell what no UTF-8 can be made of; it becomes U+FFFD, before anything writes it to a file."""
    body: dict[str, Any] = {"project": UID, "schema": LABEL_CONFIG, "hostname": "http://ls"}
    body[name] = "\ud800" + str(body.get(name, ""))
    answer = client_of(world).post("/setup", data=json.dumps(body).encode())
    assert answer.status_code in (200, 400, 422)
    events = {"action": "ANNOTATION_CREATED", "project": {"id": 3, "title": "\udfff"}, "x": ["\ud800", "🙂"]}
    assert client_of(world).post("/webhook", data=json.dumps(events).encode()).status_code == 201


def test_whole_characters_of_two_surrogates_are_kept(world: World) -> None:
    """Labels may be emoji; Label Studio spells them as pairs."""
    config = LABEL_CONFIG.replace("cat", "🙂")
    body = {"project": UID, "schema": config, "x": "\ud800"}
    assert client_of(world).post("/setup", data=json.dumps(body).encode()).status_code == 200
    assert (world.registry.project_facts(3) or {})["label_config"] == config


JSON_TEXT = st.text(st.characters(codec=None), max_size=20)  # with lone surrogates
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(-(2**80), 2**80) | st.floats() | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(JSON_TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    ["action", "project", "tasks", "schema", "label_config", "job", "id", "data", "hostname", "annotation", "task",
     "annotations", "result", "updated_at", "was_cancelled", "total_annotations_number", "value", "choices"]
)  # fmt: skip


@hypothesis_settings(max_examples=300, **HYPOTHESIS)
@given(st.sampled_from(POSTS), st.dictionaries(NAMES, ANY_JSON | st.dictionaries(NAMES, ANY_JSON), max_size=5))
def test_any_json_is_answered_below_500(client: FlaskClient, path: str, body: Any) -> None:
    """With numbers that are none, integers of any size and texts that are none among it."""
    answer = client.post(path, data=json.dumps(body).encode())
    assert answer.status_code < 500
    if answer.status_code >= 400 and answer.status_code != 410:
        refused(answer, answer.status_code)


@hypothesis_settings(max_examples=200, **HYPOTHESIS)
@given(st.sampled_from(POSTS), st.binary(max_size=200))
def test_any_bytes_are_answered_below_500(client: FlaskClient, path: str, raw: bytes) -> None:
    """What is no JSON at all."""
    assert client.post(path, data=raw, content_type="application/json").status_code in (200, 201, 400)


def test_versions_without_a_body_are_all_versions(client: FlaskClient) -> None:
    """A POST needs none there; a malformed one is refused all the same."""
    assert client.post("/versions").json == {"versions": [VERSION]}
    refused(client.post("/versions", data=b"[" * 100_000, content_type="application/json"))


# -- sizes ------------------------------------------------------------------------------------------------------------


def sent_in_pieces(world: World, path: str, raw: bytes) -> TestResponse:
    """A body without Content-Length, as a server hands on what came in chunks."""
    builder = EnvironBuilder(path=path, method="POST", headers=basic())
    environ = builder.get_environ()
    environ.update({"wsgi.input": io.BytesIO(raw), "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"})
    environ.pop("CONTENT_LENGTH", None)
    return TestResponse(*run_wsgi_app(create_app(world.services), environ, buffered=True), builder.get_request())


@pytest.mark.parametrize("path", POSTS)
def test_a_body_without_a_length_is_bounded_too(project: World, path: str) -> None:
    """In chunks of whatever size: 413, and the sentence names the setting."""
    small = project.again(max_request_bytes=2_000)
    assert "MAX_REQUEST_BYTES" in refused(sent_in_pieces(small, path, b" " * 3_000), 413)
    assert sent_in_pieces(small, "/webhook", b'{"action": "X"}').status_code == 201


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "gzip, identity", "x"])
def test_packed_bodies_are_415(client: FlaskClient, coding: str) -> None:
    """A kilobyte could become a gigabyte; nobody who talks to us packs."""
    packed = gzip.compress(b'{"action": "X"}')
    assert "Content-Encoding" in refused(
        client.post("/webhook", data=packed, headers={"Content-Encoding": coding}), 415
    )
    plain = client.post("/webhook", data=b'{"action": "X"}', headers={"Content-Encoding": "identity"})
    assert plain.status_code == 201


def test_more_tasks_than_are_answered_are_413(project: World) -> None:
    """As many as allowed are, one more is not; the sentence names the setting."""
    client = client_of(project.again(max_tasks_per_request=2))
    assert client.post("/predict", json={"tasks": [task(1), task(2)], "project": UID}).status_code == 200
    answer = client.post("/predict", json={"tasks": [task(1)] * 3, "project": UID})
    assert "MAX_TASKS_PER_REQUEST" in refused(answer, 413)


@pytest.mark.parametrize(
    ("path", "name", "length"),
    [
        ("/setup", "schema", MAX_CONFIG_CHARS + 1),
        ("/predict", "label_config", MAX_CONFIG_CHARS + 1),
        ("/webhook", "action", 201),
        ("/job_status", "job", 201),
    ],
)
def test_texts_are_bounded(client: FlaskClient, path: str, name: str, length: int) -> None:
    """Each by what it is."""
    body = {"project": UID, "tasks": [task(1)], name: "x" * length}
    assert f"characters in {name!r}" in refused(client.post(path, json=body))


# -- labeling configs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE View [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>',
        '<!DOCTYPE View [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE View SYSTEM "http://evil.example/x.dtd">',
    ],
)
def test_a_labeling_config_declares_nothing(world: World, declaration: str) -> None:
    """No bombs of entities, no files, no requests elsewhere."""
    schema = declaration + LABEL_CONFIG.replace("cat", "&b;")
    assert "document type" in refused(client_of(world).post("/setup", json={"project": UID, "schema": schema}), 422)


TAGS = st.sampled_from(["View", "Image", "Choices", "Choice", "Text", "Header", "RectangleLabels", "Label", "x:y"])
ATTRIBUTES = st.dictionaries(
    st.sampled_from(["name", "value", "toName", "choice", "perRegion", "alias", "hint"]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)
    | st.sampled_from(["$image", "image", "choice"]),
    max_size=4,
)


@st.composite
def configs(draw: Any) -> str:
    def element(depth: int) -> str:
        tag = draw(TAGS)
        named = draw(ATTRIBUTES).items()
        attributes = "".join(f' {name}="{value}"' for name, value in named)
        inner = "".join(element(depth + 1) for _ in range(draw(st.integers(0, 3)))) if depth < 3 else ""
        return f"<{tag}{attributes}>{inner}</{tag}>"

    return element(0)


@hypothesis_settings(deadline=None, max_examples=300)
@given(configs() | st.text(max_size=100) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
def test_any_labeling_config_is_understood_or_refused(config: str) -> None:
    """No third way; what is understood has a name for each of its parts."""
    with contextlib.suppress(LabelingConfigError):
        found = parse_labeling_config(config)
        assert found.from_name
        assert found.to_name
        assert found.image_field
        assert len(found.labels) >= 2


# -- webhooks ---------------------------------------------------------------------------------------------------------


def annotation(**changes: Any) -> dict[str, Any]:
    """A webhook's body about one annotation that says all it should, but for the changes to the annotation."""
    kept = {"id": 5, "task": 1, "result": [], "was_cancelled": False, "ground_truth": False, "updated_at": "2026"}
    project = {"id": 3, "label_config": LABEL_CONFIG, "total_annotations_number": 1, "skipped_annotations_number": 0}
    return {"action": "ANNOTATION_CREATED", "project": project, "annotation": {**kept, **changes},
            "task": {"id": 1, "data": {"image": rgb(1)}}}  # fmt: skip


@pytest.mark.parametrize("number", [0, -1, 2**63, 2**70, -(2**63), True, 1.0, "1", None])
@pytest.mark.parametrize("name", ["id", "task"])
def test_an_id_that_no_database_gives_is_not_learned(name: str, number: Any) -> None:
    """It would stop the worker where arrays hold 64 bits; everything is read from Label Studio instead."""
    assert event_of_webhook(annotation()) is not None
    assert event_of_webhook(annotation(**{name: number})) is None
    assert event_of_webhook({**annotation(), "action": "ANNOTATIONS_DELETED", "annotations": [{"id": number}]}) is None


@hypothesis_settings(deadline=None, max_examples=300)
@given(st.dictionaries(NAMES, ANY_JSON | st.dictionaries(NAMES, ANY_JSON), max_size=6), st.sampled_from(ACTIONS))
def test_any_event_is_kept_whole_or_not_at_all(body: dict[str, Any], action: str) -> None:
    """What is kept can be written, read again, and means something."""
    kept = event_of_webhook({**annotation(), **body, "action": action})
    if kept is not None:
        assert answers_of_event(json.loads(json.dumps(kept)), "image", ()) is not None


def test_a_malformed_event_stops_no_retrain(project: World, client: FlaskClient) -> None:
    """Events with ids beyond all bounds, and labels of people after them: both are learned from Label Studio."""
    for number in (2**63, 10**400):
        assert client.post("/webhook", json=annotation(id=number, task=number)).status_code == 201
    project.label_studio.annotate(3, 1, "cat")
    project.label_studio.annotate(3, 2, "dog")
    assert (
        client.post("/webhook", json=project.label_studio.event(3, "ANNOTATION_CREATED", task_id=2)).status_code == 201
    )
    assert retrain(project, 3).labels_used == 2


@pytest.mark.parametrize("header", ["0", "-1", "x", "9" * 5_000, str(2**31), "\xff", "3; 4"])
def test_a_malformed_project_header_is_400(client: FlaskClient, header: str) -> None:
    """Where the payload names no project."""
    refused(client.post("/webhook", json={"action": "ANNOTATION_CREATED"}, headers={PROJECT_HEADER: header}))


# -- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [2**63 - 1, 2**31, 10**15])
def test_ids_of_tasks_at_their_bounds(client: FlaskClient, number: int) -> None:
    """An answer for each, though there are no such tasks."""
    answer = client.post("/predict", json={"tasks": [{"id": number, "data": {}}], "project": UID})
    assert answer.status_code == 200
    assert len((answer.json or {})["results"]) == 1


@pytest.mark.parametrize("number", [2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**100, -(2**63), 1e300, True])
@pytest.mark.parametrize(
    ("path", "status"), [("/setup", 200), ("/predict", 200), ("/webhook", 201), ("/versions", 200)]
)
def test_project_ids_at_their_bounds(client: FlaskClient, path: str, status: int, number: Any) -> None:
    """Label Studio's ids are 32-bit integers; what is none is refused everywhere."""
    body: dict[str, Any] = {"schema": LABEL_CONFIG, "tasks": [{"id": 1}], "action": "ANNOTATION_CREATED"}
    project_field: Any = {"id": number} if path == "/webhook" else number
    answer = client.post(path, json={**body, "project": project_field})
    assert answer.status_code == (status if number is not True and number == 2**31 - 1 else 400)


@pytest.mark.parametrize(
    "uid", [3, 3.0, 3.5, "3", "3.", "3.5", "3.1", "3.-1", "3.1e9", "3.176722560", "3.176722560000", "3.x"]
)
def test_only_a_time_behind_the_id_makes_it_another_project(project: World, client: FlaskClient, uid: Any) -> None:
    """What is kept of a project is set aside when it was made anew; nothing that is no time may cause that."""
    answer = client.post("/setup", json={"project": uid, "schema": LABEL_CONFIG})
    assert answer.status_code == (400 if uid == 3.5 else 200)
    assert project.registry.published(3) == VERSION
    assert not list(project.services.settings.data_dir.rglob("*gone*"))  # type: ignore[union-attr]


# -- what /setup says of Label Studio's address -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "hostname",
    ["javascript:alert(1)//", "data:text/html,x", "http://", "//evil.example", "http://user:pass@evil.example", "x", "",
     "http://a b", "http://ls/\r\nX-Evil: 1", "http://ls\\evil", "http://ls/?q", "http://ls/#f", "http://[::1", 3, [],
     "http://ls:port", "http://" + "a" * 600, "http://ls/\"><script>", None],
)  # fmt: skip
def test_a_hostname_that_is_no_plain_address_is_not_kept(world: World, hostname: Any) -> None:
    """Links to tasks begin with it, and people click on them."""
    body = {"project": UID, "schema": LABEL_CONFIG, "hostname": hostname}
    assert client_of(world).post("/setup", json=body).status_code == 200
    assert (world.registry.project_facts(3) or {})["hostname"] in ("", None)


@pytest.mark.parametrize(
    "hostname", ["http://ls", "https://ls.example:8443/prefix", "http://127.0.0.1:8080", "http://[::1]:1"]
)
def test_a_plain_hostname_is_kept(world: World, hostname: str) -> None:
    """Of any form that Label Studio's own address may have."""
    body = {"project": UID, "schema": LABEL_CONFIG, "hostname": hostname}
    client_of(world).post("/setup", json=body)
    assert (world.registry.project_facts(3) or {})["hostname"] == hostname


def test_a_stranger_s_hostname_sends_no_token_there(world: World) -> None:
    """References to images under that address are fetched from Label Studio as we know it: nothing else is reached."""
    world.label_studio.add_project(3, ["http://evil.example/data/upload/x.png"])
    client_of(world).post("/setup", json={"project": UID, "schema": LABEL_CONFIG, "hostname": "http://evil.example"})
    world.embed_all(3)
    assert world.images.loaded == ["/data/upload/x.png"]


# -- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *ROUTES,
        ("GET", "/health"),
        ("GET", "/openapi.json"),
        ("GET", "/assets/x/dashboard/style.css"),
        ("OPTIONS", "/setup"),
    ],
)
@pytest.mark.parametrize("credentials", [True, False])
def test_every_answer_carries_the_headers(project: World, method: str, path: str, credentials: bool) -> None:
    """Whether it is a refusal or not: nothing is guessed, kept, or shown inside another page. Browsers may keep
    thumbnails; pages for people say what they load, and are asked for again."""
    answer = client_of(project, credentials=credentials).open(path, method=method)
    expected = dict(HEADERS)
    if answer.status_code == 200 and path.endswith("/thumbnail"):
        expected["Cache-Control"] = "private, max-age=86400"
    if answer.status_code == 200 and path.startswith(("/projects/", "/assets/")):
        expected |= {"Cache-Control": "no-cache", "Content-Security-Policy": answer.headers["Content-Security-Policy"]}
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert {name: answer.headers[name] for name in HEADERS} == expected
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "path", ["//evil.example/x", "//setup", "/setup/", "/static/x.js", "/\0", "/\r\nX-Evil: 1", "/é", "/ "]
)
def test_odd_paths_are_404_and_lead_nowhere(client: FlaskClient, path: str) -> None:
    """No redirect to a host that the request names, no folder of files."""
    answer = client.get("/", environ_overrides={"PATH_INFO": path.encode().decode("latin-1")})
    refused(answer, 405 if path == "//setup" else 404)
    assert "Location" not in answer.headers


def test_an_empty_path_is_the_front_page(client: FlaskClient) -> None:
    """As in `GET http://host HTTP/1.1`; no redirect to the host that the request names."""
    answer = client.get("/", environ_overrides={"PATH_INFO": "", "HTTP_HOST": "evil.example"})
    assert answer.status_code == 200
    assert "projects" in (answer.json or {})


@pytest.mark.parametrize("host", ["evil.example", "a b", "", "[::1", "x:y", "\x00", "a" * 3_000, "evil.example/x?y"])
def test_the_host_header_changes_nothing(client: FlaskClient, host: str) -> None:
    """No answer repeats it."""
    answer = client.get("/versions", headers={"Host": host})
    assert answer.status_code in (200, 400)
    assert not host.strip() or host not in answer.text


def test_the_reason_phrase_is_printable_whatever_the_sentence(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server refuses to send another one, and the client would get no answer at all."""
    from backend.errors import BadRequestError

    def fail(*_: object) -> None:
        raise BadRequestError("odd \0\x01\x7f\x85\u2028é🙂\r\nX-Evil: 1 " + "x" * 1_000)

    monkeypatch.setattr(project.services.status, "project", fail)
    answer = client_of(project).get("/api/projects/3/status")
    refused(answer)
    assert "X-Evil" not in answer.headers
