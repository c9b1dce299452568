"""What a log line looks like: facts that can be told from words, in text and in JSON, and nothing secret in either."""

from __future__ import annotations

import io
import json
import logging
import threading
from typing import Any

import pytest

from backend.logs import (
    JsonFormatter,
    TextFormatter,
    in_log_context,
    log_context,
    reset_log_context,
    set_log_context,
)


class Lines:
    """A logger of its own whose lines are kept."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self._stream = io.StringIO()
        handler = logging.StreamHandler(self._stream)
        handler.setFormatter(formatter)
        self.logger = logging.Logger("backend.test")
        self.logger.addHandler(handler)

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    @property
    def objects(self) -> list[dict[str, Any]]:
        def no_constant(name: str) -> None:
            pytest.fail(f"{name} is no JSON")

        return [json.loads(line, parse_constant=no_constant) for line in self.text.splitlines()]


@pytest.fixture
def text() -> Lines:
    return Lines(TextFormatter(["s3cret-token", "short"]))


@pytest.fixture
def as_json() -> Lines:
    return Lines(JsonFormatter(["s3cret-token", "short"]))


# -- text -------------------------------------------------------------------------------------------------------------


def test_a_line_of_text_is_time_level_logger_event_and_facts(text: Lines) -> None:
    """As before there was a context; a fact of the context that the message tells itself is not told twice."""
    text.logger.info("retrained project=%d labels=%d", 3, 42)
    with log_context(project=3, job="retrain-3-0f3a"):
        text.logger.info("retrained project=%d labels=%d", 3, 42)
        text.logger.warning("lock not renewed: %s", "Redis was away")
    first, second, third = text.text.splitlines()
    assert first[20:] == " INFO backend.test retrained project=3 labels=42"
    assert first[:20].endswith("Z")
    assert second.endswith(" INFO backend.test retrained project=3 labels=42 job=retrain-3-0f3a")
    assert third.endswith("lock not renewed: Redis was away project=3 job=retrain-3-0f3a")


def test_nobody_can_make_a_line_of_their_own(text: Lines) -> None:
    """Line ends and terminal codes in what comes from outside are written out; the context still stands last."""
    evil = "x\n2026-01-01T00:00:00Z ERROR backend.web all is lost\r\x1b[2J\u2028 job=other"
    with log_context(job="retrain-3-0f3a"):
        text.logger.info("webhook action=%s", evil)
    (line,) = text.text.splitlines()
    assert "\\n2026" in line
    assert "\x1b" not in line
    assert line.endswith(" job=other job=retrain-3-0f3a")


def test_a_traceback_follows_its_line_indented(text: Lines) -> None:
    """So that every line that begins with a time is an event."""
    try:
        raise ZeroDivisionError("division by zero")
    except ZeroDivisionError:
        text.logger.exception("job failed project=%d", 3)
    first, *others = text.text.splitlines()
    assert first.endswith("ERROR backend.test job failed project=3")
    assert len(others) > 2
    assert all(line.startswith("    ") for line in others)
    assert others[-1].endswith("ZeroDivisionError: division by zero")


# -- JSON -------------------------------------------------------------------------------------------------------------


def test_a_line_of_json_has_the_message_s_facts_with_their_types(as_json: Lines) -> None:
    """Counts stay numbers, names stay text; the message stands whole beside them."""
    with log_context(project=3, job="retrain-3-0f3a"):
        as_json.logger.info("retrained project=%d version=%s took=%.2fs (%s, 50%%) ok=%s", 3, "v7", 0.8123, "x", None)
    (line,) = as_json.objects
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "INFO",
        "logger": "backend.test",
        "message": "retrained project=3 version=v7 took=0.81s (x, 50%) ok=None",
        "project": 3,
        "job": "retrain-3-0f3a",
        "version": "v7",
        "took": 0.8123,
        "ok": None,
    }


def test_what_comes_from_outside_cannot_pose_as_a_fact(as_json: Lines) -> None:
    """Facts are read from the template: not from an argument's text, and never in place of time or level."""
    with log_context(project=3):
        as_json.logger.info("webhook action=%s", "ANNOTATION_CREATED project=4 level=ERROR\n{}")
        as_json.logger.info("odd level=%s time=%s", "x", "y")
    first, second = as_json.objects
    assert (first["project"], first["level"]) == (3, "INFO")
    assert first["action"] == "ANNOTATION_CREATED project=4 level=ERROR\n{}"
    assert second["level"] == "INFO"
    assert second["time"].startswith("20")


def test_any_argument_makes_a_line_of_json(as_json: Lines) -> None:
    """No NaN, no object that JSON cannot hold; libraries' own styles of logging; exceptions as one field."""
    as_json.logger.info("odd a=%s b=%s c=%r", float("nan"), {"x": b"\xff"}, "é\udcff")
    as_json.logger.info("by name %(x)s", {"x": 1})
    as_json.logger.info({"not": "text"})
    try:
        raise KeyError("annotation")
    except KeyError as exc:
        as_json.logger.error("failed", exc_info=exc)
    first, second, third, fourth = as_json.objects
    assert (first["a"], first["b"]) == ("nan", "{'x': b'\\xff'}")
    assert second["message"] == "by name 1"
    assert third["message"] == "{'not': 'text'}"
    assert fourth["exception"].endswith("KeyError: 'annotation'")


# -- both -------------------------------------------------------------------------------------------------------------


def test_secrets_are_blotted_out_everywhere(text: Lines, as_json: Lines) -> None:
    """In message, facts, context and traceback; a secret too short to be told from a word is left."""
    for lines in (text, as_json):
        with log_context(url="http://x/?t=s3cret-token"):
            try:
                raise ValueError("s3cret-token refused")
            except ValueError:
                lines.logger.exception("refused token=%s in short", "s3cret-token")
        assert "s3cret" not in lines.text
        assert "…" in lines.text
        assert "in short" in lines.text


def test_the_context_ends_and_nests(as_json: Lines) -> None:
    """Inner facts win and go; those of a request that is begun and ended apart, too."""
    with log_context(project=3):
        with log_context(project=4, job="x"):
            as_json.logger.info("inner")
        as_json.logger.info("outer")
    token = set_log_context(request="r-1")
    as_json.logger.info("asked")
    reset_log_context(token)
    as_json.logger.info("after")
    inner, outer, asked, after = as_json.objects
    assert (inner["project"], inner["job"]) == (4, "x")
    assert (outer["project"], "job" in outer) == (3, False)
    assert asked["request"] == "r-1"
    assert not after.keys() & {"project", "job", "request"}


def test_the_context_goes_along_to_another_thread_if_asked(as_json: Lines) -> None:
    """A thread begins without one; work wrapped for it has that of whoever wrapped it."""
    with log_context(job="retrain-3-0f3a"):
        works = [in_log_context(as_json.logger.info), as_json.logger.info]
    for work in works:
        thread = threading.Thread(target=work, args=("renewed",))
        thread.start()
        thread.join()
    wrapped, bare = as_json.objects
    assert wrapped["job"] == "retrain-3-0f3a"
    assert "job" not in bare
