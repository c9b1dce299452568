"""Streams of news and thumbnails under real gunicorn: they starve nobody, and end with whom they are for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from backend.adapters.jobs import Jobs
from backend.schema import Progress
from benchmarks import stack
from benchmarks.stand_in import CREATED, LABEL_CONFIG

AUTH = ("label-studio", stack.PASSWORD)
EVENTS = "/api/projects/1/events"

LISTENER = """
import sys, httpx
with httpx.stream("GET", sys.argv[1], auth=(sys.argv[2], sys.argv[3]), timeout=60) as answer:
    for line in answer.iter_lines():
        print(line, flush=True)
"""


class Running:
    """One web process with four threads: one stream of news, and two thumbnails, at a time."""

    def __init__(self, stop: ExitStack, folder: Path) -> None:
        port = stop.enter_context(stack.redis(folder))
        url = stop.enter_context(stack.label_studio(folder, {1: 9}))
        self.service = stack.Service(folder, port, url, WEB_WORKERS="1", WEB_THREADS="4", PUBLISH_WAIT_S="0")
        self.service.registry.register(1, CREATED, LABEL_CONFIG)
        self.jobs = Jobs(f"redis://{stack.HOST}:{port}/0")
        stop.callback(self.jobs.close)
        self.pid = stop.enter_context(self.service.web())

    def stream(self) -> contextlib.AbstractContextManager[httpx.Response]:
        return httpx.stream("GET", f"{self.service.url}{EVENTS}", auth=AUTH, timeout=60)

    @contextlib.contextmanager
    def listener(self) -> Iterator[subprocess.Popen[str]]:
        """Another process that listens to the stream, and has heard its first event."""
        command = [sys.executable, "-c", LISTENER, f"{self.service.url}{EVENTS}", *AUTH]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "event: changed\n"
                yield process
            finally:
                process.kill()

    def is_free(self) -> bool:
        with self.stream() as answer:
            return answer.status_code == 200


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with ExitStack() as stop:
        yield Running(stop, tmp_path_factory.mktemp("streams"))


def wait_until(holds: Callable[[], object], within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"it did not happen within {within_s} s"
        time.sleep(0.05)


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


def test_news_come_as_they_happen(running: Running) -> None:
    """The state at once; and without another request what changes after it."""
    wait_until(running.is_free)
    with running.stream() as answer:
        told = events(answer)
        assert next(told)["embedding"] is None
        began = time.monotonic()
        running.jobs.set_progress(1, Progress(2, 9))
        assert next(told)["embedding"]["done"] == 2
        assert time.monotonic() - began < 10


def test_streams_do_not_starve_webhooks(running: Running) -> None:
    """With every stream there may be, and more asked for, the webhook is answered as ever."""
    wait_until(running.is_free)
    event = {"action": "PROJECT_DELETED", "project": {"id": 1}}
    with ExitStack() as stop:
        answers = [stop.enter_context(running.stream()) for _ in range(6)]
        assert sorted(answer.status_code for answer in answers) == [200] + [503] * 5
        assert {answer.headers.get("Retry-After") for answer in answers if answer.status_code == 503} == {"5"}
        for _ in range(20):
            running.service.send_event(event)


def test_a_client_that_is_killed_leaves_its_thread(running: Running) -> None:
    """Noticed at the next look, half a second later, and not only when something is to be told."""
    wait_until(running.is_free)
    with running.listener():
        assert not running.is_free()
    began = time.monotonic()
    wait_until(running.is_free)
    assert time.monotonic() - began < 14, "not before the first comment, with which it would be noticed in any case"


def test_a_client_that_leaves_leaves_its_thread(running: Running) -> None:
    """Ten times in a row somebody reloads a page: each has its news at once, though there is one stream only."""
    wait_until(running.is_free)
    for _ in range(10):
        with running.stream() as answer:
            assert answer.status_code == 200
            next(events(answer))


def test_thumbnails_come_from_label_studio(running: Running) -> None:
    """By one request for the task and one for the image; the second look is at what was kept."""
    url = f"{running.service.url}/api/projects/1/tasks/7/thumbnail"
    answers = [httpx.get(url, auth=AUTH, timeout=60) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].content == answers[1].content
    assert Image.open(BytesIO(answers[0].content)).size == (64, 64)
    assert answers[0].headers["Cache-Control"] == "private, max-age=86400"
    missing = httpx.get(f"{running.service.url}/api/projects/1/tasks/10/thumbnail", auth=AUTH, timeout=60)
    assert missing.status_code == 404
    assert "has no task 10" in missing.json()["error"]


def test_a_process_that_is_told_to_end_ends_its_streams(running: Running) -> None:
    """A restart waits for nobody who only listens."""
    wait_until(running.is_free)
    (web_process,) = stack.children(running.pid)
    with running.listener() as listener:
        os.kill(web_process, signal.SIGTERM)
        assert listener.wait(30) == 0, "the stream was cut off, not ended"
    wait_until(lambda: _answers(running))


def _answers(running: Running) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return running.is_free()
    return False
