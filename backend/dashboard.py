"""Routes of the data behind the dashboard: all there is to show, news as they come, and the images small."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import ServiceUnavailable

from backend.loop.thumbnails import KEPT_S
from backend.services import Services

STREAM_SHARE = 4
"""One in so many threads of a web process may be held by a stream of news."""

WAITED_LOOKS = 2
"""A client that has gone is noticed at the next look of its stream; so many are waited for."""

ASK_AGAIN_S = 5
"""When to ask again, of a client for whom there was no stream."""

RETRY_S = 1
"""When to ask again, of a client for whose thumbnail there was no thread."""

NO_STREAM = (
    "all {n} streams of news that this process has threads for are in use; ask for the status every {s} s instead, or "
    "raise WEB_THREADS"
)
NO_THREAD = "{n} thumbnails are being made by this process, and other requests need its threads; ask again in {s} s"


def add_dashboard(app: Flask, services: Services) -> None:
    """Adds the routes to the application."""
    n_threads = services.settings.web_threads
    n_streams = max(1, n_threads // STREAM_SHARE)
    # One thread more than streams and thumbnails may hold is left for the webhook, where there are as many.
    n_thumbnails = max(1, n_threads - n_streams - 1)
    streams, making = threading.BoundedSemaphore(n_streams), threading.BoundedSemaphore(n_thumbnails)
    waiting = threading.BoundedSemaphore(1)

    def dashboard(project_id: int) -> Response:
        return jsonify(services.dashboard.project(project_id))

    def events(project_id: int) -> Response:
        services.changes.check(project_id)
        if request.method == "HEAD":
            return Response(content_type="text/event-stream; charset=utf-8")
        if not take_stream():
            raise ServiceUnavailable(NO_STREAM.format(n=n_streams, s=ASK_AGAIN_S), retry_after=ASK_AGAIN_S)
        # Only under our own server is it known when a client has gone; others find out when they write to it.
        is_over: Callable[[], bool] = getattr(request.environ.get("gunicorn.socket"), "is_over", lambda: False)
        answer = Response(
            services.changes.stream(project_id, is_over),
            content_type="text/event-stream; charset=utf-8",
            headers={"X-Accel-Buffering": "no"},  # or nginx keeps events until it has a page full
        )
        answer.call_on_close(streams.release)
        return answer

    def take_stream() -> bool:
        """Whether there is a thread for a stream. One request waits for the place of a page that was just reloaded."""
        if streams.acquire(blocking=False):
            return True
        if not waiting.acquire(blocking=False):
            return False
        try:
            return streams.acquire(timeout=WAITED_LOOKS * services.changes.pause_s)
        finally:
            waiting.release()

    def thumbnail(project_id: int, task_id: int) -> Response:
        content = services.thumbnails.kept(project_id, task_id)
        if content is None:
            with one_of(making, n_thumbnails):
                content = services.thumbnails.make(project_id, task_id)
        return Response(content, content_type="image/jpeg", headers={"Cache-Control": f"private, max-age={KEPT_S:.0f}"})

    @contextmanager
    def one_of(threads: threading.BoundedSemaphore, n: int) -> Iterator[None]:
        if not threads.acquire(blocking=False):
            raise ServiceUnavailable(NO_THREAD.format(n=n, s=RETRY_S), retry_after=RETRY_S)
        try:
            yield
        finally:
            threads.release()

    app.add_url_rule("/api/projects/<int:project_id>/dashboard", view_func=dashboard)
    app.add_url_rule("/api/projects/<int:project_id>/events", view_func=events)
    app.add_url_rule("/api/projects/<int:project_id>/tasks/<int:task_id>/thumbnail", view_func=thumbnail)
