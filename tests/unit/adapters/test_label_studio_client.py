"""The Label Studio client against a small real HTTP server: routes, paging, tokens, the sentence of each failure."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from backend.adapters import label_studio as client_module
from backend.adapters.label_studio import LabelStudioClient, answers_of_event, event_of_webhook
from backend.errors import (
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioUnreachableError,
    ProjectNotFoundError,
)
from backend.schema import AnnotatedTask, Annotation, QueueEntry, Suggestion, Task

# label-studio-sdk 2.0.19 reads the refreshed token with a method that pydantic calls old.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")

TOKEN = "0123456789abcdef-secret"


@dataclass
class Request:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Any


Answer = tuple[int, Any]
Connect = Callable[[str, str], LabelStudioClient]


@dataclass
class Server:
    """Answers with `answer(request)`: a status and JSON (or bytes, as a web page); remembers what was asked."""

    url: str = ""
    answer: Callable[[Request], Answer] = lambda _: (200, {})
    seen: list[Request] = field(default_factory=list)

    def always(self, status: int, body: Any = None) -> None:
        self.answer = lambda _: (status, body)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            query = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
            request = Request(self.command, parts.path, query, dict(self.headers.items()), self.body_of(raw))
            state.seen.append(request)
            status, body = state.answer(request)
            page = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if isinstance(body, bytes) else "application/json")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def body_of(self, raw: bytes) -> Any:
            is_form = self.headers.get("Content-Type", "").startswith("multipart/form-data")
            return raw if is_form else json.loads(raw) if raw else None

        do_GET = do_POST = do_PATCH = do_DELETE = handle_any  # noqa: N815 - the names http.server looks for

        def log_message(self, *_: object) -> None:
            pass

    class QuietServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:  # a client that gave up waiting is what a test wants
            pass

    httpd = QuietServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK pauses a second before it tries again; here a millisecond is enough."""
    monkeypatch.setattr("label_studio_sdk.core.http_client.INITIAL_RETRY_DELAY_SECONDS", 0.001)


@pytest.fixture
def connect() -> Iterator[Callable[[str, str], LabelStudioClient]]:
    """Builds clients, and closes their connections after the test."""
    clients: list[LabelStudioClient] = []

    def build(url: str, token: str) -> LabelStudioClient:
        clients.append(LabelStudioClient(url, token))
        return clients[-1]

    yield build
    for client in clients:
        client.close()


@pytest.fixture
def client(server: Server, connect: Connect) -> LabelStudioClient:
    return connect(server.url + "/", TOKEN)


PROJECT = {
    "id": 3,
    "title": "Weather",
    "created_at": "2026-03-04T05:06:07.123456Z",
    "label_config": "<View/>",
    "model_version": "v1",
    "sampling": "Sequential sampling",
    "show_collab_predictions": True,
    "members": [{"id": 1}],
}


# -- reading ----------------------------------------------------------------------------------------------------------


def test_a_project_is_read(server: Server, client: LabelStudioClient) -> None:
    """The fields we use, by Label Studio's names; what it leaves out or sets to null becomes empty."""
    server.always(200, PROJECT)
    project = client.project(3)
    assert (project.id, project.title, project.model_version) == (3, "Weather", "v1")
    assert project.show_collab_predictions
    assert (server.seen[0].method, server.seen[0].path) == ("GET", "/api/projects/3/")
    server.always(200, {"id": 3, "model_version": None, "title": None})
    assert client.project(3).model_version == ""


def test_all_projects_are_read_over_several_pages(server: Server, client: LabelStudioClient) -> None:
    """101 projects on two pages of Label Studio's own paging."""

    def answer(request: Request) -> Answer:
        page = int(request.query["page"])
        ids = range(1, 102)[(page - 1) * 100 : page * 100]
        return 200, {"count": 101, "next": None, "results": [{**PROJECT, "id": number} for number in ids]}

    server.answer = answer
    assert [project.id for project in client.projects()] == list(range(1, 102))
    assert len(server.seen) == 2


def asked_after(request: Request) -> int:
    """The id whose later tasks are asked for."""
    query = json.loads(request.query["query"])
    assert query["ordering"] == ["tasks:id"]
    (item,) = query["filters"]["items"]
    assert (item["filter"], item["operator"]) == ("filter:tasks:id", "greater")
    return int(item["value"])


def test_tasks_are_read_page_by_page(
    server: Server, client: LabelStudioClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five tasks, two to a page: three requests, all tasks once, references as they stand in the data."""
    monkeypatch.setattr(client_module, "TASKS_PER_PAGE", 2)
    raw = [
        {"id": 1, "data": {"image": "/data/upload/1.jpg", "image2": "no"}},
        {"id": 2, "data": {"image": "s3://bucket/2.jpg"}},
        {"id": 3, "data": {"image": None}},
        {"id": 4, "data": {"image": ["/data/upload/4.jpg"]}},
        {"id": 5, "data": {"text": "no image"}},
    ]

    def answer(request: Request) -> Answer:
        assert request.query["page_size"] == "2"
        return 200, {"tasks": [task for task in raw if task["id"] > asked_after(request)][:2], "total": 5}

    server.answer = answer
    assert client.tasks(7, "image") == [
        Task(1, "/data/upload/1.jpg"),
        Task(2, "s3://bucket/2.jpg"),
        Task(3, None),
        Task(4, None),
        Task(5, None),
    ]
    assert [asked_after(request) for request in server.seen] == [0, 2, 4]
    first = server.seen[0]
    assert (first.path, first.query["project"], first.query["resolve_uri"]) == ("/api/tasks/", "7", "false")


def test_further_fields_of_the_data_are_kept_where_asked_for(server: Server, client: LabelStudioClient) -> None:
    """Only those named, as they stand in the data, without another request; tasks that lack them have none."""
    tasks = [
        {"id": 1, "data": {"image": "a.jpg", "split": "val", "fold": 3, "secret": "x"}, "annotations": []},
        {"id": 2, "data": {"image": "b.jpg", "split": None}, "annotations": []},
        {"id": 3, "data": None, "annotations": []},
    ]
    server.always(200, {"tasks": tasks, "total": 3})
    expected = [Task(1, "a.jpg", {"split": "val", "fold": 3}), Task(2, "b.jpg", {"split": None}), Task(3, None)]
    assert client.tasks(7, "image", fields=("split", "fold")) == expected
    assert [item.task for item in client.annotated_tasks(7, "image", fields=("split", "fold"))] == expected
    assert [request.path for request in server.seen] == ["/api/tasks/", "/api/projects/7/", "/api/tasks/"]


def test_an_empty_project_takes_one_request(server: Server, client: LabelStudioClient) -> None:
    """No tasks, no second page (which Label Studio would answer with 404)."""
    server.always(200, {"tasks": [], "total": 0})
    assert client.tasks(7, "image") == []
    assert len(server.seen) == 1


def test_one_task_is_asked_for_among_those_of_its_project(server: Server, client: LabelStudioClient) -> None:
    """By a filter on its id, so that a task of another project is none, and its reference is not resolved."""
    server.always(200, {"tasks": [{"id": 17, "data": {"image": "s3://bucket/17.jpg"}}], "total": 1})
    assert client.task(7, "image", 17) == Task(17, "s3://bucket/17.jpg")
    (request,) = server.seen
    assert (request.path, request.query["project"], request.query["resolve_uri"]) == ("/api/tasks/", "7", "false")
    (item,) = json.loads(request.query["query"])["filters"]["items"]
    assert item == {"filter": "filter:tasks:id", "operator": "equal", "type": "Number", "value": 17}
    server.always(200, {"tasks": [], "total": 0})
    assert client.task(7, "image", 18) is None


def test_tasks_deleted_while_reading_end_the_reading(
    server: Server, client: LabelStudioClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Label Studio still says four but gives no more: no endless loop."""
    monkeypatch.setattr(client_module, "TASKS_PER_PAGE", 2)
    pages = iter([[{"id": 1, "data": {}}, {"id": 2, "data": {}}], []])
    server.answer = lambda _: (200, {"tasks": next(pages), "total": 4})
    assert [task.id for task in client.tasks(7, "image")] == [1, 2]


def test_annotated_tasks_are_read_with_their_annotations(server: Server, client: LabelStudioClient) -> None:
    """Only tasks with a submitted or skipped annotation are asked for; what is malformed is left out."""
    good = {"type": "choices", "value": {"choices": ["cat"]}}
    annotations = [
        {
            "id": 11,
            "result": [good],
            "was_cancelled": False,
            "ground_truth": True,
            "updated_at": "2026-01-01T00:00:00Z",
            "completed_by": 5,
        },
        {"id": 12, "result": [], "was_cancelled": True, "completed_by": {"id": 6, "email": "someone@example.org"}},
        {"id": 13, "result": "not a list", "updated_at": None},
        {"id": 14, "result": [good, "not a region", None]},
    ]
    server.always(
        200,
        {
            "tasks": [{"id": 1, "data": {"image": "a.jpg"}, "annotations": annotations}, {"id": 2, "data": {}}],
            "total": 2,
        },
    )
    assert client.annotated_tasks(7, "image") == [
        AnnotatedTask(
            Task(1, "a.jpg"),
            [
                Annotation(11, [good], False, True, "2026-01-01T00:00:00Z", 5),
                Annotation(12, [], True, False, "", 6),
                Annotation(13, [], False, False, ""),
                Annotation(14, [good], False, False, ""),
            ],
        ),
        AnnotatedTask(Task(2, None), []),
    ]
    query = json.loads(server.seen[1].query["query"])
    assert query["filters"]["conjunction"] == "or"
    assert {item["filter"] for item in query["filters"]["items"]} == {
        "filter:tasks:total_annotations",
        "filter:tasks:cancelled_annotations",
    }


def test_annotations_missing_from_the_list_are_read_from_the_export(
    server: Server, client: LabelStudioClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The list goes by counters, which can stay at 0; the project's own number tells that something is missing."""
    label = {"type": "choices", "value": {"choices": ["cat"]}}
    tasks = [
        {"id": number, "data": {"image": "a.jpg"}, "annotations": [{"id": 10 + number, "result": [label]}]}
        for number in (1, 2)
    ]

    def answer(request: Request) -> Answer:
        if request.path == "/api/projects/7/export":
            return 200, tasks
        if request.path == "/api/projects/7/":
            return 200, {"id": 7, "total_annotations_number": 1, "skipped_annotations_number": 1}
        return 200, {"tasks": tasks[:1], "total": 1}

    server.answer = answer
    caplog.set_level("INFO")
    assert [item.task.id for item in client.annotated_tasks(7, "image")] == [1, 2]
    assert "lists 1 of 2 annotations project=7" in caplog.text
    assert server.seen[-1].query == {"exportType": "JSON", "download_all_tasks": "false"}


def test_the_change_mark_moves_with_counts_and_with_the_latest_task(server: Server, client: LabelStudioClient) -> None:
    """One more annotation, one more skip, one changed task: each is another mark; nothing new is the same mark."""
    counts = {"task_number": 5, "total_annotations_number": 2, "skipped_annotations_number": 0}
    latest = {"tasks": [{"id": 4, "updated_at": "2026-01-01"}], "total": 5}

    def mark(changed_counts: dict[str, int], changed_latest: dict[str, Any]) -> str:
        server.answer = lambda request: (
            200,
            changed_latest if request.path == "/api/tasks/" else {**PROJECT, **changed_counts},
        )
        return client.change_mark(3)

    same = mark(counts, latest)
    assert mark(counts, latest) == same
    others = {
        mark({**counts, "total_annotations_number": 3}, latest),
        mark({**counts, "skipped_annotations_number": 1}, latest),
        mark({**counts, "task_number": 6}, latest),
        mark(counts, {"tasks": [{"id": 4, "updated_at": "2026-01-02"}], "total": 5}),
        mark(counts, {"tasks": [], "total": 0}),
    }
    assert len(others) == 5
    assert same not in others


MARK = json.dumps([[5, 2, 0], [{"id": 4, "updated_at": "2026-01-01T00:00:00.000001Z"}]])


def test_changed_tasks_are_those_since_the_mark_before(server: Server, client: LabelStudioClient) -> None:
    """One request, from the moment of the last change known on, with the annotations and the fields asked for."""
    raw = {"id": 4, "data": {"image": "a.png", "split": "test"}, "annotations": []}
    server.always(200, {"tasks": [raw], "total": 1})
    found = client.changed_tasks(3, "image", before=MARK, now=MARK, fields=["split"])
    assert found == [AnnotatedTask(Task(4, "a.png", {"split": "test"}), [])]
    (item,) = json.loads(server.seen[-1].query["query"])["filters"]["items"]
    assert (item["filter"], item["operator"]) == ("filter:tasks:updated_at", "greater_or_equal")
    assert item["value"] == "2026-01-01T00:00:00.000001Z"


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (MARK, MARK.replace("5", "6")),
        ("", MARK),
        ("[1]", MARK),
        ("[[5, 2, 0], []]", MARK),
        ("not json", MARK),
        ("[[5], [{}]]", MARK),
    ],
)
def test_what_changed_cannot_be_told(server: Server, client: LabelStudioClient, before: str, now: str) -> None:
    """Tasks were added or deleted, or the mark is none of this release: nothing is asked."""
    assert client.changed_tasks(3, "image", before=before, now=now) is None
    assert server.seen == []


def test_more_changed_tasks_than_a_page_are_not_listed(server: Server, client: LabelStudioClient) -> None:
    """Then everything is read anew anyway."""
    server.always(200, {"tasks": [{"id": 4, "data": {"image": "a.png"}}], "total": 2})
    assert client.changed_tasks(3, "image", before=MARK, now=MARK) is None


def test_who_and_what(server: Server, client: LabelStudioClient) -> None:
    """The token's user, and the release in both of Label Studio's spellings."""
    server.always(200, {"email": "a@b.c"})
    assert client.whoami()["email"] == "a@b.c"
    server.always(200, {"release": "1.23.2"})
    assert client.server_version() == "1.23.2"
    server.always(200, {"label-studio-os-package": {"version": "1.22"}})
    assert client.server_version() == "1.22"
    server.always(200, {})
    assert client.server_version() == "unknown"


def test_prediction_counts_leave_out_predictions_without_version(server: Server, client: LabelStudioClient) -> None:
    """Version → number, as whole numbers."""
    server.always(200, {"v1": 3, "v2": "4"})
    assert client.prediction_counts(3) == {"v1": 3, "v2": 4}
    assert server.seen[0].path == "/api/projects/3/model-versions/"


# -- writing ----------------------------------------------------------------------------------------------------------


def test_predictions_are_pushed_in_one_request(server: Server, client: LabelStudioClient) -> None:
    """Task, result, score and version of each entry, as the bulk import wants them."""
    server.always(201, {"created": 2})
    result = [{"type": "choices"}]
    client.push_predictions(3, "v2", [QueueEntry(7, 0.25, result), QueueEntry(8, 0.5, [])])
    (request,) = server.seen
    assert (request.method, request.path) == ("POST", "/api/projects/3/import/predictions")
    assert request.body == [
        {"task": 7, "result": result, "score": 0.25, "model_version": "v2"},
        {"task": 8, "result": [], "score": 0.5, "model_version": "v2"},
    ]


def test_suggestions_replace_those_of_their_version(
    server: Server, client: LabelStudioClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old ones go first, if there are any; then the new ones in parts, with a score where there is one."""
    monkeypatch.setattr(client_module, "SUGGESTIONS_PER_REQUEST", 2)
    server.answer = lambda request: (200, {"yolo": 4} if request.method == "GET" else {})
    told: list[int] = []
    suggestions = [Suggestion(7, 0.5, [{"type": "choices"}]), Suggestion(8, None, []), Suggestion(9, 1.0, [])]
    assert client.replace_suggestions(3, "yolo", suggestions, told.append) == 4
    asked = [(request.method, request.path) for request in server.seen]
    route, bulk = "/api/projects/3/model-versions/", "/api/projects/3/import/predictions"
    assert asked == [("GET", route), ("DELETE", route), ("POST", bulk), ("POST", bulk)]
    assert server.seen[1].body == {"model_version": "yolo"}
    assert server.seen[2].body == [
        {"task": 7, "result": [{"type": "choices"}], "score": 0.5, "model_version": "yolo"},
        {"task": 8, "result": [], "model_version": "yolo"},
    ]
    assert told == [2, 3]
    server.seen.clear()
    assert client.replace_suggestions(3, "new", [], told.append) == 0
    assert [request.method for request in server.seen] == ["GET"]


def test_an_export_comes_as_it_is(server: Server, client: LabelStudioClient) -> None:
    """Not as JSON, for it may be a table; a refusal is one sentence as of any other route."""
    server.always(200, b"a,b\n")
    assert client.export(3, "CSV") == b"a,b\n"
    (request,) = server.seen
    assert (request.path, request.query) == (
        "/api/projects/3/export",
        {"exportType": "CSV", "download_all_tasks": "false"},
    )
    server.always(404, {"detail": "No Project matches the given query."})
    with pytest.raises(ProjectNotFoundError, match="has no project 3"):
        client.export(3, "CSV")


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda client: client.push_predictions(3, "v", [QueueEntry(1, 0.5, [])]), id="push_predictions"),
        pytest.param(lambda client: client.import_tasks(3, [{"data": {"image": "a"}}]), id="import_tasks"),
        pytest.param(lambda client: client.create_project("Weather", "<View/>"), id="create_project"),
        pytest.param(lambda client: client.save_webhook(3, None, url="http://b/webhook"), id="save_webhook"),
        pytest.param(lambda client: client.save_backend(3, None, url="http://b"), id="save_backend"),
    ],
)
def test_what_creates_something_is_sent_once(
    server: Server, client: LabelStudioClient, write: Callable[[LabelStudioClient], object]
) -> None:
    """A 500 may come after the rows were written: sending again would make predictions, tasks or webhooks twice."""
    server.always(500, {"detail": "database is locked"})
    with pytest.raises(LabelStudioError, match="500"):
        write(client)
    assert len(server.seen) == 1


def test_a_passing_failure_of_a_read_is_tried_again(server: Server, client: LabelStudioClient) -> None:
    """Label Studio restarts behind its proxy: 502, 503, then the answer."""
    answers = iter([(502, b"<html>bad gateway</html>"), (503, {}), (200, PROJECT)])
    server.answer = lambda _: next(answers)
    assert client.project(3).id == 3
    assert len(server.seen) == 3


ROUTES = [
    (lambda client: client.activate_version(3, "v2"), "PATCH", "/api/projects/3/", {"model_version": "v2"}),
    (lambda client: client.update_project(3, sampling="x"), "PATCH", "/api/projects/3/", {"sampling": "x"}),
    (
        lambda client: client.delete_predictions(3, "v1"),
        "DELETE",
        "/api/projects/3/model-versions/",
        {"model_version": "v1"},
    ),
    (lambda client: client.save_backend(3, 5, url="u"), "PATCH", "/api/ml/5", {"project": 3, "url": "u"}),
    (lambda client: client.save_backend(3, None, url="u"), "POST", "/api/ml/", {"project": 3, "url": "u"}),
    (lambda client: client.delete_backend(5), "DELETE", "/api/ml/5", None),
    (lambda client: client.save_webhook(3, 6, url="u"), "PATCH", "/api/webhooks/6/", {"url": "u"}),
    (lambda client: client.save_webhook(3, None, url="u"), "POST", "/api/webhooks/", {"project": 3, "url": "u"}),
    (lambda client: client.delete_webhook(6), "DELETE", "/api/webhooks/6/", None),
    (
        lambda client: client.import_tasks(3, [{"data": {"image": "a"}}]),
        "POST",
        "/api/projects/3/import",
        [{"data": {"image": "a"}}],
    ),
]


@pytest.mark.parametrize(("call", "method", "path", "body"), ROUTES)
def test_each_change_goes_to_its_route(
    server: Server,
    client: LabelStudioClient,
    call: Callable[[LabelStudioClient], object],
    method: str,
    path: str,
    body: Any,
) -> None:
    """Method, path and body are Label Studio's; an empty answer (204) is fine."""
    server.always(204 if method == "DELETE" else 200, None if method == "DELETE" else {"id": 1})
    call(client)
    (request,) = server.seen
    assert (request.method, request.path, request.body) == (method, path, body)


def test_webhooks_of_the_whole_organization_are_not_the_project_s(server: Server, client: LabelStudioClient) -> None:
    """Label Studio lists them together; only the project's own are ours to change."""
    server.always(200, [{"id": 1, "project": 3}, {"id": 2, "project": None}, {"id": 4, "project": 4}])
    assert [webhook["id"] for webhook in client.webhooks(3)] == [1]


def test_a_local_storage_is_made_once(server: Server, client: LabelStudioClient) -> None:
    """Found by its path, else created; one with another filter gets this one."""
    there = {"id": 8, "path": "/images/a", "regex_filter": ".*", "recursive_scan": True}
    server.answer = lambda request: (200, [there]) if request.method == "GET" else (201, {"id": 9})
    assert client.save_local_storage(3, "a", "/images/a", ".*") == 8
    assert client.save_local_storage(3, "b", "/images/b", ".*") == 9
    assert [request.method for request in server.seen] == ["GET", "GET", "POST"]
    server.seen.clear()
    assert client.save_local_storage(3, "a", "/images/a", ".*png") == 8
    assert (server.seen[-1].method, server.seen[-1].path) == ("PATCH", "/api/storages/localfiles/8")
    assert server.seen[-1].body == {"path": "/images/a", "regex_filter": ".*png", "recursive_scan": True}


def test_a_local_target_is_made_once_and_synchronised(server: Server, client: LabelStudioClient) -> None:
    """At the routes of target storages, which are not those of sources."""
    server.answer = lambda request: (
        (200, [{"id": 8, "path": "/answers/a"}])
        if request.method == "GET" and not request.path.endswith("/9")
        else (201, {"id": 9, "status": "completed", "last_sync_count": 2})
    )
    assert client.save_local_target(3, "a", "/answers/a") == 8
    assert client.save_local_target(3, "b", "/answers/b") == 9
    assert client.sync_local_storage(9, is_target=True)["last_sync_count"] == 2
    assert client.local_storage(9)["status"] == "completed"
    targets = "/api/storages/export/localfiles"
    assert [(request.method, request.path.partition("?")[0]) for request in server.seen] == [
        ("GET", targets), ("GET", targets), ("POST", targets), ("POST", f"{targets}/9/sync"),
        ("GET", "/api/storages/localfiles/9"),
    ]  # fmt: skip


def test_an_image_is_uploaded_without_a_task(server: Server, client: LabelStudioClient) -> None:
    """The reference is that of the file that the upload made; a draft's other files are listed, too."""
    server.answer = lambda request: (
        (201, {"file_upload_ids": [5]})
        if request.method == "POST"
        else (200, [{"id": 4, "file": "upload/3/x.png"}, {"id": 5, "file": "upload/3/0a1b2c3d-a.png"}])
    )
    assert client.upload_image(3, "a.png", b"\x89PNG content") == "/data/upload/3/0a1b2c3d-a.png"
    posted, listed = server.seen
    assert (posted.path, posted.query) == ("/api/projects/3/import", {"commit_to_project": "false"})
    assert b"\x89PNG content" in posted.body
    assert b'filename="a.png"' in posted.body
    assert b"image/png" in posted.body
    assert (listed.path, listed.query) == ("/api/projects/3/file-uploads", {"ids": "[5]"})
    server.always(201, {"task_count": 1})
    with pytest.raises(LabelStudioError, match="without 'file_upload_ids'"):
        client.upload_image(3, "a.png", b"x")


def test_local_storages_are_listed(server: Server, client: LabelStudioClient) -> None:
    """With the paths by which a watched folder is found among them."""
    server.always(200, [{"id": 8, "path": "/images/a"}])
    assert [item["path"] for item in client.local_storages(3)] == ["/images/a"]


# -- tokens -----------------------------------------------------------------------------------------------------------


def jwt(kind: str, expires_in_s: float, serial: int = 0) -> str:
    def part(content: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    claims = {"token_type": kind, "exp": int(time.time() + expires_in_s), "jti": str(serial), "user_id": 1}
    return f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}.c2lnbmF0dXJl"


def test_a_legacy_token_is_sent_as_it_is(server: Server, client: LabelStudioClient) -> None:
    """`Token …` with every request, and for plain requests of others."""
    server.always(200, PROJECT)
    client.project(3)
    assert server.seen[0].headers["Authorization"] == f"Token {TOKEN}"
    assert client.auth_headers() == {"Authorization": f"Token {TOKEN}"}
    assert client.token_kind() == "legacy token"


@pytest.mark.parametrize("prefix", ["", "/label-studio"])
def test_a_personal_token_is_exchanged_for_a_session_token(server: Server, connect: Connect, prefix: str) -> None:
    """One refresh serves all requests while the session token lives, also where Label Studio is below a path."""
    refresh, access = jwt("refresh", 1000), jwt("access", 300)
    server.answer = lambda request: (
        (200, {"access": access}) if request.path == f"{prefix}/api/token/refresh/" else (200, PROJECT)
    )
    client = connect(server.url + prefix, refresh)
    client.project(3)
    client.project(3)
    assert client.token_kind() == "personal access token"
    assert client.auth_headers() == {"Authorization": f"Bearer {access}"}
    assert [request.path for request in server.seen] == [
        f"{prefix}/api/token/refresh/",
        f"{prefix}/api/projects/3/",
        f"{prefix}/api/projects/3/",
    ]
    assert server.seen[0].body == {"refresh": refresh}
    assert [request.headers["Authorization"] for request in server.seen[1:]] == [f"Bearer {access}"] * 2


def test_an_ended_session_token_is_refreshed(server: Server, connect: Connect) -> None:
    """The session token has run out: the next request fetches another one by itself."""
    serials = iter(range(100))
    server.answer = lambda request: (
        (200, {"access": jwt("access", -5, next(serials))}) if "refresh" in request.path else (200, PROJECT)
    )
    client = connect(server.url, jwt("refresh", 1000))
    client.project(3)
    n_requests = len(server.seen)
    client.project(3)
    assert any("refresh" in request.path for request in server.seen[n_requests:])


def test_a_session_token_that_ended_by_label_studio_s_clock_is_refreshed(server: Server, connect: Connect) -> None:
    """This machine's clock was set back an hour, so that the token seems to last; a POST is sent again, too."""
    ended, fresh = jwt("access", 3600, 1), jwt("access", 3600, 2)
    tokens = iter((ended, fresh))

    def answer(request: Any) -> tuple[int, Any]:
        if "refresh" in request.path:
            return 200, {"access": next(tokens)}
        if request.headers["Authorization"] == f"Bearer {ended}":
            return 401, {"detail": "Given token not valid for any token type"}
        return 200, PROJECT

    server.answer = answer
    client = connect(server.url, jwt("refresh", 100_000))
    assert client.create_project("Animals", "<View/>").id == 3
    assert [request.path for request in server.seen] == [
        "/api/token/refresh/",
        "/api/projects/",
        "/api/token/refresh/",
        "/api/projects/",
    ]
    client.project(3)
    assert len(server.seen) == 5


def test_an_ended_personal_token_is_an_auth_error_without_a_request(server: Server, connect: Connect) -> None:
    """The token itself says that it has run out."""
    token = jwt("refresh", -10)
    with pytest.raises(LabelStudioAuthError, match="expired") as caught:
        connect(server.url, token).project(3)
    assert token not in str(caught.value)
    assert server.seen == []


def test_a_revoked_personal_token_is_an_auth_error(server: Server, connect: Connect) -> None:
    """Label Studio refuses to refresh it."""
    server.always(401, {"detail": "Token is blacklisted", "code": "token_not_valid"})
    token = jwt("refresh", 1000)
    client = connect(server.url, token)
    for call in (lambda: client.project(3), client.auth_headers):
        with pytest.raises(LabelStudioAuthError, match="personal access token") as caught:
            call()
        assert "blacklisted" in str(caught.value)
        assert token not in str(caught.value)


def test_an_empty_token_is_told_before_any_request(server: Server, connect: Connect) -> None:
    """The setting is named, and where to find a token."""
    with pytest.raises(LabelStudioAuthError, match="LABEL_STUDIO_TOKEN is empty"):
        connect(server.url, "").project(3)
    assert server.seen == []


def test_a_token_that_no_header_can_hold_is_an_error_of_ours(server: Server, connect: Connect) -> None:
    """A copied token with a stray letter: a sentence, without the token."""
    with pytest.raises(LabelStudioError) as caught:
        connect(server.url, "s3cret-é-token").project(3)
    assert "s3cret" not in str(caught.value)


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_told_with_its_kind(server: Server, client: LabelStudioClient, status: int) -> None:
    """Legacy tokens are off by default in Label Studio: the likeliest cure is named, the token is not."""
    server.always(status, {"detail": "Authentication credentials were not provided."})
    with pytest.raises(LabelStudioAuthError, match="legacy tokens are off by default") as caught:
        client.whoami()
    assert caught.value.status == status
    assert server.url in str(caught.value)
    assert "credentials were not provided" in str(caught.value)
    assert TOKEN not in str(caught.value)


def test_a_project_that_is_not_there_is_its_own_error(server: Server, client: LabelStudioClient) -> None:
    """Number and place are named; the reconciliation takes this for a deleted project."""
    server.always(404, {"status_code": 404, "version": "1.23.2", "detail": "No Project matches the given query."})
    for call in (lambda: client.project(9), lambda: client.activate_version(9, "v1"), lambda: client.change_mark(9)):
        with pytest.raises(ProjectNotFoundError, match="no project 9") as caught:
            call()
        assert caught.value.status == 404


def test_a_page_not_found_by_something_else_is_no_deleted_project(server: Server, client: LabelStudioClient) -> None:
    """A proxy without its Label Studio answers 404 with a page of its own: no reason to set a project aside."""
    server.always(404, b"<html><title>404 Not Found</title>nginx</html>")
    with pytest.raises(LabelStudioError) as caught:
        client.project(9)
    assert not isinstance(caught.value, ProjectNotFoundError)


def test_another_missing_page_is_no_missing_project(server: Server, client: LabelStudioClient) -> None:
    """A webhook deleted by somebody else meanwhile."""
    server.always(404, {"detail": "Not found."})
    with pytest.raises(LabelStudioError, match="answered 404: Not found") as caught:
        client.delete_webhook(6)
    assert not isinstance(caught.value, ProjectNotFoundError)


def test_a_server_error_is_told_after_the_last_try(server: Server, client: LabelStudioClient) -> None:
    """Method, address, status and the human part of the body; three tries."""
    server.always(500, {"detail": "database is locked"})
    with pytest.raises(LabelStudioError, match=r"GET .*/api/projects/3/ answered 500: database is locked") as caught:
        client.project(3)
    assert caught.value.status == 500
    assert len(server.seen) == 3


def test_validation_errors_are_shown(server: Server, client: LabelStudioClient) -> None:
    """Label Studio's 400 holds the reason in `validation_errors`: that is what the person needs."""
    server.always(
        400, {"detail": "Validation error", "validation_errors": {"non_field_errors": ["Can't connect to ML backend"]}}
    )
    with pytest.raises(LabelStudioError, match="Can't connect to ML backend"):
        client.save_backend(3, None, url="http://b")


@pytest.mark.parametrize("body", [None, b"", b"<html>" + b"x" * 100_000, ["a list"], "text", {"other": 1}])
def test_an_error_of_any_shape_is_a_short_sentence(server: Server, client: LabelStudioClient, body: Any) -> None:
    """Whatever the body is, there is a message, and it is not a page long."""
    server.always(400, body)
    with pytest.raises(LabelStudioError, match="answered 400") as caught:
        client.activate_version(3, "v1")
    assert len(str(caught.value)) < 1000


def test_a_web_page_instead_of_json_is_told(server: Server, client: LabelStudioClient) -> None:
    """LABEL_STUDIO_URL leads to something else that answers 200."""
    server.always(200, b"<!DOCTYPE html><html>It works!</html>")
    with pytest.raises(LabelStudioError, match=r"answered no JSON.*check that LABEL_STUDIO_URL"):
        client.whoami()


@pytest.mark.parametrize("body", [[], {}])
def test_json_of_another_program_is_an_error_of_ours(server: Server, client: LabelStudioClient, body: Any) -> None:
    """Something else answers with JSON of its own: a sentence, not a KeyError in a job's log."""
    server.always(200, body)
    for call in (
        lambda: client.project(3),
        lambda: client.tasks(3, "image"),
        lambda: client.projects(),
        lambda: client.change_mark(3),
    ):
        with pytest.raises(LabelStudioError, match="LABEL_STUDIO_URL"):
            call()


def test_nobody_there_is_unreachable(connect: Connect) -> None:
    """Address, reason and cure; no token."""
    gone = connect("http://127.0.0.1:9", TOKEN)
    for call in (lambda: gone.project(3), gone.whoami, lambda: gone.push_predictions(3, "v", [])):
        with pytest.raises(LabelStudioUnreachableError, match=r"does not answer at http://127\.0\.0\.1:9 ") as caught:
            call()
        assert "LABEL_STUDIO_URL" in str(caught.value)
        assert TOKEN not in str(caught.value)


def test_no_answer_in_time_is_unreachable(server: Server) -> None:
    """A Label Studio that hangs is as good as none; a client that is told to be hasty asks once."""
    release = threading.Event()
    server.answer = lambda _: (release.wait(5), (200, PROJECT))[1]
    hasty = LabelStudioClient(server.url, TOKEN, timeout_s=0.05, n_retries=0)
    with pytest.raises(LabelStudioUnreachableError, match="does not answer"):
        hasty.project(3)
    release.set()
    hasty.close()
    assert len(server.seen) == 1


def test_building_the_client_asks_nothing(server: Server) -> None:
    """Only the first call does, so that an import or a start needs no Label Studio."""
    LabelStudioClient(server.url, TOKEN)
    assert server.seen == []


def test_of_a_person_nothing_but_the_id_is_kept() -> None:
    """A webhook that tells who it was in full: neither name nor address goes into the journal."""
    annotation = {
        "id": 3,
        "task": 1,
        "result": [],
        "updated_at": "2026-01-01T00:00:00Z",
        "completed_by": {"id": 6, "email": "someone@example.org", "first_name": "Some"},
    }
    counts = {"total_annotations_number": 1, "skipped_annotations_number": 0}
    body = {
        "action": "ANNOTATION_CREATED",
        "project": {"id": 7, "label_config": "<View/>", "model_version": "v1", **counts},
        "task": {"id": 1, "data": {"image": "a.jpg"}},
        "annotation": annotation,
    }
    kept = event_of_webhook(body)
    assert kept is not None
    assert "someone" not in json.dumps(kept)
    event = answers_of_event(kept, "image", ())
    assert event is not None
    assert event.model_version == "v1"
    assert event.answered[0].annotations[0].completed_by == 6
    del kept["model_version"], kept["annotations"][0]["completed_by"]  # of a release before
    event = answers_of_event(kept, "image", ())
    assert event is not None
    assert (event.model_version, event.answered[0].annotations[0].completed_by) == (None, None)


# -- what it costs ----------------------------------------------------------------------------------------------------

ASK = """
import json, sys
from backend.adapters.label_studio import LabelStudioClient
LabelStudioClient(sys.argv[1], "token").whoami()
print(json.dumps([name for name in ("label_studio_sdk.client", "pandas", "boto3") if name in sys.modules]))
"""


def test_a_request_loads_the_sdk_s_transport_alone(server: Server) -> None:
    """Its clients of each route load pandas: three seconds of processor time for every command."""
    server.always(200, {"id": 1})
    command = [sys.executable, "-W", "ignore", "-c", ASK, server.url]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == []
