"""News of a project for a page that shows it: a stream of server-sent events.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from backend.adapters.jobs import Jobs
from backend.adapters.registry import Registry
from backend.errors import BackendError, RedisUnavailableError
from backend.loop.projects import check_known
from backend.loop.retries import LAST_ERROR
from backend.loop.status import progress_as_json
from backend.schema import VersionRecord

logger = logging.getLogger(__name__)


class ChangeWatch:
    """Looks every `pause_s` seconds whether something changed, by small reads of the data folder and of Redis.

    silence_s: after so long without an event a comment is sent, by which the way between, and the client, know that the
    stream lives. lasts_s: then a stream ends, and the browser asks for another; so no thread is held for ever.
    """

    def __init__(
        self,
        *,
        jobs: Jobs,
        registry: Registry,
        pause_s: float = 0.5,
        silence_s: float = 15.0,
        lasts_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._jobs = jobs
        self._registry = registry
        self.pause_s = pause_s
        self.silence_s = silence_s
        self.lasts_s = lasts_s
        self._clock = clock
        self._sleep = sleep

    def check(self, project_id: int) -> None:
        """Raises ProjectNotFoundError for a project there can be no news of."""
        check_known(self._registry, project_id)

    def stream(self, project_id: int, is_over: Callable[[], bool]) -> Iterator[bytes]:
        """An event `changed` at once and whenever one of its values changes, until `is_over`, asked at every look."""
        began = told_at = self._clock()
        told, record = None, None
        while not is_over():
            try:
                record = self._record(project_id, record)
                state = self._state(project_id, record)
            except (
                BackendError,
                OSError,
            ) as exc:  # begun already: it cannot be refused any more, and is asked for again
                logger.warning("stream of news ends project=%d: %s", project_id, exc)
                return
            now = self._clock()
            if state != told:
                told, told_at = state, now
                yield f"event: changed\ndata: {json.dumps(state)}\n\n".encode()
            elif now - told_at >= self.silence_s:
                told_at = now
                yield b": nothing new\n\n"
            if now - began >= self.lasts_s:
                return
            self._sleep(self.pause_s)

    def _record(self, project_id: int, known: VersionRecord | None) -> VersionRecord | None:
        """The published record; read anew while it may have changed, until it is evaluated."""
        version = self._registry.published(project_id)
        if version is None:
            return None
        if known is not None and known.version == version and known.evaluated_version == version:
            return known
        return self._registry.published_record(project_id)

    def _state(self, project_id: int, record: VersionRecord | None) -> dict[str, Any]:
        try:
            training, progress = self._jobs.training(project_id), self._jobs.progress(project_id)
            n_workers, last_error = self._jobs.n_workers(), self._jobs.note(project_id, LAST_ERROR)
        except RedisUnavailableError as exc:
            training, progress, n_workers, last_error = None, None, None, str(exc)
        return {
            "model_version": record.version if record else None,
            "evaluated": record is not None and record.evaluated_version == record.version,
            "training": training,
            "labels_used": record.labels_used if record else 0,
            "embedding": progress_as_json(progress),
            "n_workers": n_workers,
            "last_error": last_error,
        }
