"""Pictures at addresses: what a host is asked, how often, and when it is left alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from backend.adapters.polite_fetch import PAUSE_S, PoliteFetcher, seconds_of
from backend.errors import ImageError

Answer = tuple[int, dict[str, str], bytes]


@dataclass
class Webcam:
    """Answers as told, and remembers the headers it was asked with."""

    url: str = ""
    answer: Callable[[str], Answer] = lambda path: (200, {}, b"picture")
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)


@pytest.fixture
def webcam() -> Iterator[Webcam]:
    state = Webcam()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.seen.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            status, headers, body = state.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    yield state
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@dataclass
class Clock:
    """Time that passes only when somebody sleeps, or is made to."""

    now: float = 1000.0
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fetcher(clock: Clock) -> Iterator[PoliteFetcher]:
    made = PoliteFetcher(
        timeout_s=5, max_image_bytes=100, allow_private=True, clock=lambda: clock.now, sleep=clock.sleep
    )
    yield made
    made.close()


def test_an_unchanged_picture_is_not_sent_again(webcam: Webcam, fetcher: PoliteFetcher) -> None:
    """The marks of the last answer go along; 304 is nothing new. The program names itself."""
    marks = {"etag": '"a"', "last-modified": "Sun, 01 Nov 2026 00:00:00 GMT"}
    webcam.answer = lambda _: (200, {"ETag": marks["etag"], "Last-Modified": marks["last-modified"]}, b"picture")
    found = fetcher.fetch(webcam.url + "/a.jpg", {})
    assert found is not None
    assert (found.content, dict(found.marks)) == (b"picture", marks)
    webcam.answer = lambda _: (304, {}, b"")
    assert fetcher.fetch(webcam.url + "/a.jpg", found.marks) is None
    asked = webcam.seen[1][1]
    assert (asked["if-none-match"], asked["if-modified-since"]) == (marks["etag"], marks["last-modified"])
    assert asked["user-agent"].startswith("active-learning-watch")


def test_a_second_between_two_requests(webcam: Webcam, fetcher: PoliteFetcher, clock: Clock) -> None:
    """To the same host, whatever is asked for; the first does not wait."""
    fetcher.fetch(webcam.url + "/a", {})
    fetcher.fetch(webcam.url + "/b", {})
    assert clock.slept == [0.0, PAUSE_S]


@pytest.mark.parametrize(("header", "wait_s"), [({"Retry-After": "300"}, 300), ({}, 60)])
def test_a_host_that_asks_for_it_is_left_alone(
    header: dict[str, str], wait_s: float, webcam: Webcam, fetcher: PoliteFetcher, clock: Clock
) -> None:
    """As long as it says, else a minute: not one request comes meanwhile."""
    webcam.answer = lambda _: (429, header, b"")
    with pytest.raises(ImageError, match=rf"HTTP 429; its host is asked again in {wait_s} s") as raised:
        fetcher.fetch(webcam.url + "/a", {})
    assert raised.value.transient
    clock.now += wait_s - 5
    assert fetcher.fetch(webcam.url + "/b", {}) is None
    assert len(webcam.seen) == 1
    clock.now += 5
    webcam.answer = lambda _: (200, {}, b"x")
    assert fetcher.fetch(webcam.url + "/b", {}) is not None


def test_each_failure_doubles_the_wait(webcam: Webcam, fetcher: PoliteFetcher, clock: Clock) -> None:
    """One minute, two, four; after an answer one again."""
    webcam.answer = lambda _: (503, {}, b"")
    for wait_s in (60, 120, 240):
        with pytest.raises(ImageError, match=f"again in {wait_s} s"):
            fetcher.fetch(webcam.url, {})
        clock.now += wait_s
    webcam.answer = lambda _: (200, {}, b"x")
    fetcher.fetch(webcam.url, {})
    webcam.answer = lambda _: (503, {}, b"")
    with pytest.raises(ImageError, match="again in 60 s"):
        fetcher.fetch(webcam.url, {})


def test_a_redirect_is_followed_and_a_circle_ended(webcam: Webcam, fetcher: PoliteFetcher) -> None:
    """To the picture; five times at most."""
    webcam.answer = lambda path: (302, {"Location": "/b"}, b"") if path == "/a" else (200, {}, b"b")
    found = fetcher.fetch(webcam.url + "/a", {})
    assert found is not None
    assert found.content == b"b"
    webcam.answer = lambda _: (302, {"Location": "/a"}, b"")
    with pytest.raises(ImageError, match="more than 5 redirects"):
        fetcher.fetch(webcam.url + "/a", {})


def test_too_large_and_not_there(webcam: Webcam, fetcher: PoliteFetcher) -> None:
    """Each with its reason; the host is not left alone for it."""
    webcam.answer = lambda _: (200, {}, b"x" * 101)
    with pytest.raises(ImageError, match="larger than MAX_IMAGE_BYTES, 100 bytes"):
        fetcher.fetch(webcam.url, {})
    webcam.answer = lambda _: (404, {}, b"")
    with pytest.raises(ImageError, match="HTTP 404"):
        fetcher.fetch(webcam.url, {})
    assert len(webcam.seen) == 2


@pytest.mark.parametrize("allow_private", [True, False])
def test_private_addresses_are_refused(allow_private: bool, webcam: Webcam) -> None:
    """Unless they are allowed; the metadata services of clouds always."""
    made = PoliteFetcher(timeout_s=5, max_image_bytes=100, allow_private=allow_private, sleep=lambda _: None)
    try:
        if allow_private:
            assert made.fetch(webcam.url, {}) is not None
        else:
            with pytest.raises(ImageError, match="ALLOW_PRIVATE_ADDRESSES=true allows it"):
                made.fetch(webcam.url, {})
            assert webcam.seen == []
        with pytest.raises(ImageError, match=r"not connected to$"):
            made.fetch("http://169.254.169.254/latest/meta-data", {})
    finally:
        made.close()


def test_retry_after_as_a_date() -> None:
    """RFC 9110: seconds or a date; what is neither says nothing."""
    now = datetime(2026, 11, 1, 12, 0, tzinfo=UTC)
    assert seconds_of("120", now) == 120
    assert seconds_of("Sun, 01 Nov 2026 12:05:00 GMT", now) == 300
    assert seconds_of("Sun, 01 Nov 2026 11:00:00 GMT", now) == 0
    assert seconds_of("soon", now) is None
    assert seconds_of(None, now) is None
