"""The routes behind the dashboard: headers, bounds on threads, and every refusal a sentence of 4xx."""

from __future__ import annotations

import threading

import pytest
from fakes import World
from flask.testing import FlaskClient
from PIL import Image
from served import basic, client_of, sentence_of

from backend.errors import ImageError, LabelStudioAuthError
from backend.server import HEADERS

THUMBNAIL = "/api/projects/3/tasks/1/thumbnail"


def test_the_dashboard_is_one_answer(client: FlaskClient) -> None:
    """Of an old record, too, without any of what evaluations add by now."""
    answer = client.get("/api/projects/3/dashboard")
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    assert [item["task_id"] for item in (answer.json or {})["window"]] == [3, 4]
    assert "project 9 is not connected" in sentence_of(client.get("/api/projects/9/dashboard"))


def test_a_thumbnail_may_be_kept_by_the_browser_alone(client: FlaskClient) -> None:
    """Not by a proxy, for others may not see it; all other headers are as on every answer."""
    for _ in range(2):  # made, and at hand
        answer = client.get(THUMBNAIL)
        assert (answer.status_code, answer.content_type) == (200, "image/jpeg")
        assert answer.data[:2] == b"\xff\xd8"
        assert answer.headers["Cache-Control"] == "private, max-age=86400"
        assert {name: text for name, text in HEADERS.items() if answer.headers[name] != text}.keys() == {
            "Cache-Control"
        }


@pytest.mark.parametrize(
    ("path", "status", "sentence"),
    [
        ("/api/projects/3/tasks/99/thumbnail", 404, "project 3 has no task 99"),
        ("/api/projects/3/tasks/0/thumbnail", 404, "project 3 has no task 0"),
        (f"/api/projects/3/tasks/{10**40}/thumbnail", 404, "project 3 has no task"),
        ("/api/projects/9/tasks/1/thumbnail", 404, "project 9 is not connected"),
        ("/api/projects/3/tasks/x/thumbnail", 404, "not found"),
        ("/api/projects/9/events", 404, "project 9 is not connected"),
    ],
)
def test_what_is_not_there_is_404(client: FlaskClient, path: str, status: int, sentence: str) -> None:
    """With a sentence."""
    answer = client.get(path)
    assert answer.status_code == status
    assert sentence in sentence_of(answer)


@pytest.mark.parametrize("transient", [True, False])
def test_an_image_that_cannot_be_shown_is_422(
    project: World, client: FlaskClient, monkeypatch: pytest.MonkeyPatch, transient: bool
) -> None:
    """Never a fault of the service; the loader's own sentence says why."""

    def fail(*_: object, **__: object) -> None:
        raise ImageError("image 'x' is damaged; upload it again", transient=transient)

    monkeypatch.setattr(project.images, "load", fail)
    answer = client.get(THUMBNAIL)
    assert answer.status_code == 422
    assert "upload it again" in sentence_of(answer)


def test_a_token_that_is_refused_is_no_fault_of_the_client(project: World, client: FlaskClient) -> None:
    """503: whoever runs the service has to set another."""
    project.label_studio.failures["task"] = LabelStudioAuthError("Label Studio refused LABEL_STUDIO_TOKEN; set another")
    answer = client.get(THUMBNAIL)
    assert answer.status_code == 503
    assert "set another" in sentence_of(answer)


def test_thumbnails_leave_threads_for_others(project: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With three threads one makes thumbnails: who asks for another meanwhile is told when to ask again; those at hand
    are given."""
    client = client_of(project.again(web_threads=3))
    assert client.get("/api/projects/3/tasks/2/thumbnail").status_code == 200
    loading, go_on = threading.Event(), threading.Event()

    def load(*_: object, **__: object) -> Image.Image:
        loading.set()
        assert go_on.wait(30)
        return Image.new("RGB", (2, 2))

    monkeypatch.setattr(project.images, "load", load)
    statuses: list[int] = []
    first = threading.Thread(target=lambda: statuses.append(client.application.test_client().get(
        THUMBNAIL, headers=basic()
    ).status_code))  # fmt: skip
    first.start()
    assert loading.wait(30)
    refused = client.get("/api/projects/3/tasks/3/thumbnail")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert "ask again" in sentence_of(refused)
    assert client.get("/api/projects/3/tasks/2/thumbnail").status_code == 200
    go_on.set()
    first.join(30)
    assert statuses == [200]
    assert client.get("/api/projects/3/tasks/3/thumbnail").status_code == 200


def test_streams_hold_a_quarter_of_the_threads(client: FlaskClient) -> None:
    """Two of eight; a third is told to ask every five seconds instead. One that ends leaves its place, also one of
    which nothing was read."""
    one, other = (client.get("/api/projects/3/events") for _ in range(2))
    assert one.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    assert one.headers["Cache-Control"] == "no-store"
    assert next(iter(one.response)).startswith(b"event: changed\ndata: {")  # type: ignore[arg-type]
    refused = client.get("/api/projects/3/events")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert "WEB_THREADS" in sentence_of(refused)
    for stream in (one, other):
        stream.close()
        again = client.get("/api/projects/3/events")
        assert again.status_code == 200
        again.close()


def test_asking_for_the_headers_of_a_stream_takes_no_place(client: FlaskClient) -> None:
    """A monitor asks with HEAD, as often as it likes."""
    for _ in range(5):
        answer = client.head("/api/projects/3/events")
        assert (answer.status_code, answer.content_type) == (200, "text/event-stream; charset=utf-8")
