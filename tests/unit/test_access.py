"""Who may enter: the token for the status pages, and the refusal to be open to a network by accident."""

from __future__ import annotations

import base64

import pytest
from fakes import World
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from served import ROUTES, VERSION, basic, client_of, sentence_of

from backend import web
from backend.access import check_exposure, is_loopback
from backend.config import Settings
from backend.errors import SettingsError
from backend.loop.connect import SECRET_HEADER
from backend.web import create_app, serve

PAGES = (
    "/",
    "/metrics",
    "/ready",
    "/api/projects/3/status",
    "/api/projects/3/dashboard",
    "/api/projects/3/tasks/1/thumbnail",
    "/api/projects/3/versions",
    f"/api/projects/3/versions/{VERSION}",
    "/projects/3",
)
TOKEN = "t0k-for-pages"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def with_token(project: World) -> World:
    """The service with an API_TOKEN."""
    return project.again(api_token=TOKEN)


@pytest.mark.parametrize("path", PAGES)
def test_the_token_opens_the_status_pages(with_token: World, path: str) -> None:
    """With GET and HEAD, beside Basic auth, which still does."""
    client = client_of(with_token, credentials=False)
    let_in = (200, 503) if path == "/ready" else (200,)  # no worker is ready here
    assert client.get(path, headers=BEARER).status_code in let_in
    assert client.head(path, headers=BEARER).status_code in let_in
    assert client.get(path, headers=basic()).status_code in let_in
    for wrong in ("Bearer", "Bearer x", f"Bearer {TOKEN}x", f"Token {TOKEN}", f"Bearer {TOKEN[:-1]}", "Bearer \xff"):
        answer = client.get(path, headers={"Authorization": wrong})
        assert answer.status_code == 401
        assert "API_TOKEN" in sentence_of(answer)
        assert TOKEN not in answer.text
    assert client.post(path, headers=BEARER).status_code == 401


@pytest.mark.parametrize("path", PAGES)
def test_a_browser_may_give_the_token_as_password(with_token: World, path: str) -> None:
    """It has no other way to; of any user, and for what the token opens only."""
    client = client_of(with_token, credentials=False)
    assert client.get(path, headers=basic("anybody", TOKEN)).status_code in (200, 503)
    assert client.get(path, headers=basic("anybody", "wrong")).status_code == 401
    pin = client.post("/api/projects/3/pin", json={"version": VERSION}, headers=basic("anybody", TOKEN))
    assert pin.status_code == 401


def test_the_token_opens_nothing_else(with_token: World) -> None:
    """A dashboard's token must not make predictions, nor tell of labels; /health says that it is wrong there."""
    client = client_of(with_token, credentials=False)
    for method, path in [*ROUTES, ("GET", "/health"), ("GET", "/job_status?job=x"), ("POST", "/versions")]:
        if path not in (*PAGES, "/api/projects/3/events"):  # a page, too, but one that goes on
            assert client.open(path, method=method, headers=BEARER).status_code == 401, path
    for headers in (basic(password=TOKEN), {SECRET_HEADER: TOKEN}):
        assert client.post("/webhook", json={"action": "X"}, headers=headers).status_code == 401


def test_without_a_token_no_token_is_right(project: World) -> None:
    """An empty setting is not the same as an empty token."""
    client = client_of(project, credentials=False)
    for value in ("Bearer", "Bearer ", "Bearer  x", "bearer"):
        assert client.get("/metrics", headers={"Authorization": value}).status_code == 401


def test_a_token_of_any_language_works(project: World) -> None:
    """Sent as UTF-8, which WSGI hands over byte by byte; so does the webhook's secret."""
    client = client_of(project.again(api_token="schlüssel", webhook_secret="gehéim"), credentials=False)
    as_sent = "Bearer schlüssel".encode().decode("latin-1")
    assert client.get("/metrics", headers={"Authorization": as_sent}).status_code == 200
    headers = {SECRET_HEADER: "gehéim".encode().decode("latin-1")}
    assert client.post("/webhook", json={"action": "X"}, headers=headers).status_code == 201


def test_a_token_guards_the_pages_even_without_a_password(project: World) -> None:
    """Who sets one expects it to be asked for; the rest is open, as before."""
    client = client_of(project.again(backend_password="", api_token=TOKEN), credentials=False)
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=basic(password="")).status_code == 401
    assert client.get("/metrics", headers=BEARER).status_code == 200
    assert client.get("/versions").status_code == 200


def test_the_description_is_open_and_nothing_near_it(project: World) -> None:
    """It says what stands in the source code; another path that looks like it is no way in."""
    client = client_of(project, credentials=False)
    assert client.get("/openapi.json").status_code == 200
    for path in ("/openapi.json/", "/openapi.json/../metrics", "//openapi.json", "/OPENAPI.JSON", "/openapi.json%2f"):
        assert client.get(path).status_code == 401


@pytest.mark.parametrize("path", ["/", "/projects/3", "/projects/99"])
def test_people_who_are_not_let_in_see_a_page_that_says_what_to_give(with_token: World, path: str) -> None:
    """They are asked first, as by the answer for programs; it tells nothing of any project."""
    client = client_of(with_token, credentials=False)
    for headers in ({}, basic(password="wrong")):
        answer = client.get(path, headers={"Accept": "text/html,*/*;q=0.8", **headers})
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic")
        assert answer.content_type.startswith("text/html")
        assert "BACKEND_PASSWORD" in answer.text
        assert "wrong or missing credentials" in sentence_of(client.get(path, headers=headers))
    assert client.get("/api/projects/3/status", headers={"Accept": "text/html"}).is_json


def test_what_the_pages_are_made_of_is_open_and_nothing_near_it(with_token: World) -> None:
    """Scripts and styles are the same for everybody; what they ask for is not, and no path leads from here to there."""
    client = client_of(with_token, credentials=False)
    for headers in ({}, BEARER, basic(password="wrong")):
        assert client.get("/assets/x/dashboard/style.css", headers=headers).status_code == 200
        assert client.get("/assets/x/dashboard/none.css", headers=headers).status_code == 404
    for path in ("/assets", "/assets/../projects/3", "/assets/x/../../projects/3", "/ASSETS/x/dashboard/style.css"):
        assert client.get(path).status_code in (401, 404), path
        assert "Active learning" not in client.get(path).text


def test_credentials_are_asked_for_by_every_method(project: World) -> None:
    """Also by those that Flask answers by itself."""
    client = client_of(project, credentials=False)
    for method in ("OPTIONS", "HEAD", "TRACE", "PUT", "DELETE", "PATCH", "FOO"):
        for _, path in ROUTES:
            assert client.open(path, method=method).status_code == 401


def test_no_body_is_read_before_credentials_are_right(project: World) -> None:
    """A stranger's body, however large, costs nothing: the stream is never asked for it."""

    class Unreadable:
        def read(self, *_: object) -> bytes:
            raise AssertionError("the body was read")

        readline = readlines = read

    environ = {"wsgi.input": Unreadable(), "wsgi.input_terminated": True, "CONTENT_LENGTH": "1000000000"}
    client = client_of(project, credentials=False)
    for path in ("/setup", "/predict", "/webhook", "/job_status", "/versions"):
        assert client.post(path, environ_overrides=environ).status_code == 401


ANY_HEADER = st.binary(max_size=60).map(lambda raw: raw.decode("latin-1").translate({10: None, 13: None}))
SCHEMES = st.sampled_from(["Basic ", "basic ", "Bearer ", "Digest ", "Token ", "", "Basic\t", "Negotiate "])


@hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=300)
@given(SCHEMES, ANY_HEADER, st.booleans(), st.sampled_from(["/metrics", "/versions", "/webhook", "/health"]))
def test_any_other_authorization_is_401(with_token: World, scheme: str, value: str, packed: bool, path: str) -> None:
    """Whatever bytes: never 500, never in."""
    if packed:
        value = base64.b64encode(value.encode("latin-1")).decode()
    client = create_app(with_token.services).test_client()
    method = "POST" if path == "/webhook" else "GET"
    answer = client.open(path, method=method, headers={"Authorization": scheme + value, SECRET_HEADER: value})
    assert answer.status_code == 401
    sentence_of(answer)


# -- open to a network by accident ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bind", ["127.0.0.1:9090", "127.1.2.3:9090", "localhost:80", "[::1]:9090"])
def test_without_a_password_this_machine_alone_is_served(bind: str) -> None:
    """As for trying it out."""
    assert is_loopback(bind)
    check_exposure(Settings(bind=bind))


@pytest.mark.parametrize("bind", ["0.0.0.0:9090", "[::]:9090", "192.168.1.5:80", "web.internal:9090", "10.0.0.1:1"])
def test_without_a_password_no_network_is_served(bind: str, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
    """Unless that is what the operator says; the sentence names both ways out. The server is never started."""
    monkeypatch.setattr(web, "serve_forever", lambda *_: pytest.fail("served"))
    with pytest.raises(
        SettingsError, match=r"set BACKEND_PASSWORD, or bind to 127\.0\.0\.1, or set ALLOW_ANONYMOUS=true"
    ):
        serve(world.again(bind=bind, backend_password="").services)
    check_exposure(Settings(bind=bind, allow_anonymous=True))
    check_exposure(Settings(bind=bind, backend_password="x"))
