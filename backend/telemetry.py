"""What every request leaves behind: its id in all its log lines and in its answer, and a count with its duration."""

from __future__ import annotations

import logging
import re
import threading
import time
from uuid import uuid4

from flask import Flask, Response, g, request

from backend.errors import BackendError
from backend.logs import reset_log_context, set_log_context
from backend.loop.metrics import RequestCounts

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-ID"

FLUSH_EVERY_S = 5.0
"""Pause between additions of a process's counts to those of all: well below the usual scrape interval of 15 s."""

UNMATCHED = "unmatched"
"""The route of a request for a page that is none: paths of strangers would make a metric each."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

_REQUEST_ID = re.compile("[A-Za-z0-9._-]{1,64}")


def observe_requests(app: Flask, counts: RequestCounts) -> None:
    """Hooks into the application; before its other hooks, so that what these refuse is counted too."""
    app.before_request(_begin)
    app.after_request(lambda answer: _count(answer, counts))
    app.teardown_request(_end)


def flush_regularly(counts: RequestCounts, stop: threading.Event, pause_s: float = FLUSH_EVERY_S) -> None:
    """Until told to stop, and once more then."""
    while not stop.wait(pause_s):
        flush(counts)
    flush(counts)


def flush(counts: RequestCounts) -> None:
    """Adds a process's counts to those of all; without Redis they are kept for the next time."""
    try:
        counts.flush()
    except BackendError as exc:
        logger.debug("requests not counted yet: %s", exc)


def _begin() -> None:
    given = request.headers.get(REQUEST_ID_HEADER, "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex[:12]
    g.began = time.monotonic()
    g.log_token = set_log_context(request=g.request_id)


def _count(answer: Response, counts: RequestCounts) -> Response:
    method = request.method if request.method in METHODS else "other"
    route = request.url_rule.rule if request.url_rule is not None else UNMATCHED
    counts.add(method, route, answer.status_code, time.monotonic() - g.began)
    answer.headers[REQUEST_ID_HEADER] = g.request_id
    return answer


def _end(_: BaseException | None) -> None:
    token = g.pop("log_token", None)
    if token is not None:
        reset_log_context(token)
