"""Jobs that failed: kept with the reason for people to see, and tried again after ever longer pauses.

Every failure in a row of the same work doubles the pause, from `FIRST_PAUSE_S` to `LONGEST_PAUSE_S`; what only a person
can cure (a wrong token, a labeling config that cannot be learned from) waits about the longest from the start. Nothing
is ever given up, so that whatever was wrong is noticed to be well within a minute. A success takes everything back.

rq's own retries are not used: their pauses need its scheduler, another process or thread that holds a lock in Redis,
and they are fixed when a job is queued. What is kept here is lost with a Redis that is emptied; then the regular
comparison with Label Studio asks for what is missing, as it does for a worker that died.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from backend.adapters.jobs import Jobs
from backend.errors import (
    BackboneError,
    BackendError,
    FinetuningError,
    LabelingConfigError,
    LabelStudioAuthError,
    SettingsError,
)

logger = logging.getLogger(__name__)

LAST_ERROR = "last_error"
"""Note under which the last failure of a job is kept, until a job of the project succeeds."""

RETRAIN = "retrain"
"""The work for which all other is done."""

FIRST_PAUSE_S = 2.0
"""Before the first retry: a request that failed by chance is made again before anybody notices."""

LONGEST_PAUSE_S = 48.0
"""Between retries at most, so that a cure is noticed within a minute."""

HASTENED_AFTER_S = 5.0
"""A failure at least as old is tried at once when something else of its project succeeds; a younger one just was."""

POLL_S = 1.0
"""Pause between looks for retries that are due."""

REPEATED_AFTER_S = 600.0
"""The same failure of the same work is logged as an error again after so long, and only for debugging before."""

FOR_A_PERSON = (LabelStudioAuthError, LabelingConfigError, SettingsError, BackboneError)
"""Errors that time does not cure."""


@dataclass(frozen=True)
class Failure:
    """Failures in a row of one kind of work of a project; times in seconds since 1970.

    work: the job's function, and the part behind a dash if any ("search-3"). reason: a sentence. next_try: None when
    nothing is tried again by itself. logged: when it was last logged as an error.
    """

    work: str
    reason: str
    times: int
    since: float
    last: float
    next_try: float | None
    needs_a_person: bool
    logged: float

    def shown(self) -> dict[str, Any]:
        """For JSON, with times people read."""
        kept = {name: value for name, value in asdict(self).items() if name != "logged"}
        return kept | {name: _time(kept[name]) for name in ("since", "last", "next_try")}


class Retries:
    """The failures of all projects, in Redis. Methods raise RedisUnavailableError when it does not answer."""

    def __init__(self, *, jobs: Jobs, random_source: random.Random) -> None:
        self._jobs = jobs
        self._random = random_source

    def failed(self, project_id: int, work: str, exc: BaseException) -> Failure | None:
        """Keeps and logs a failure, and plans the next try.

        Fine-tuning that these labels do not allow is logged and told as the last error only: it keeps its own account
        of what was tried, and is asked for again when there are more.
        """
        expected = isinstance(exc, BackendError)
        reason = str(exc) if expected else f"{type(exc).__name__}: {exc}"
        if isinstance(exc, FinetuningError):
            logger.error("job failed project=%d work=%s: %s", project_id, work, reason)
            self._jobs.set_note(project_id, LAST_ERROR, reason)
            return None
        before, now = self._failures(project_id).get(work), self._jobs.now()
        times = before.times + 1 if before else 1
        for_a_person = isinstance(exc, FOR_A_PERSON)
        pause = self._pause(times, for_a_person=for_a_person)
        is_news = before is None or before.reason != reason or now - before.logged >= REPEATED_AFTER_S
        failure = Failure(
            work=work,
            reason=reason[:2000],
            times=times,
            since=before.since if before else now,
            last=now,
            next_try=now + pause,
            needs_a_person=for_a_person,
            logged=now if is_news or before is None else before.logged,
        )
        logger.log(
            logging.ERROR if is_news else logging.DEBUG,
            "job failed project=%d work=%s times=%d retry_in=%.0fs: %s",
            project_id, work, times, pause, reason,
            exc_info=exc if is_news and not expected else None,
        )  # fmt: skip
        self._keep(project_id, failure)
        return failure

    def given_up(self, project_id: int, work: str, reason: str, n_times: int) -> None:
        """Keeps that a job was given up, which is not tried again by itself."""
        now = self._jobs.now()
        self._keep(project_id, Failure(work, reason, n_times, now, now, None, needs_a_person=True, logged=now))

    def succeeded(self, project_id: int, work: str) -> None:
        """Takes back what failed of this work, and the last error with the last failure.

        A retrain that succeeds says that Label Studio and the labeling config are well: it takes the last error back
        in any case. What else is failing is tried at once, for it may have been the same fault.
        """
        was_failing = self._jobs.drop_failure(project_id, work)
        if was_failing:
            self._jobs.unschedule(_member(project_id, work))
            logger.info("recovered project=%d work=%s", project_id, work)
        elif work != RETRAIN:
            return
        others = self._failures(project_id)
        if work == RETRAIN or not others:
            self._jobs.set_note(project_id, LAST_ERROR, None)
        now = self._jobs.now() if others else 0.0
        for failure in others.values():
            if failure.next_try is not None and now - failure.last >= HASTENED_AFTER_S:
                self._jobs.schedule(_member(project_id, failure.work), now)

    def forget(self, project_id: int) -> None:
        """Takes back everything of a project that is gone."""
        for work in self._jobs.failures(project_id):
            self._jobs.drop_failure(project_id, work)
            self._jobs.unschedule(_member(project_id, work))

    def failures(self, project_id: int) -> list[Failure]:
        """What is failing, the latest failure first."""
        return sorted(self._failures(project_id).values(), key=lambda failure: -failure.last)

    def request_due(self) -> int:
        """Asks for what is due; how many that were. Of several workers that look at once, one job comes."""
        due = self._jobs.scheduled_before(self._jobs.now())
        for member in due:
            project_id, _, work = member.partition(":")
            # Asked for before it is taken from the plan: who dies in between leaves it due.
            try:
                self._request(int(project_id), work)
            except (KeyError, ValueError) as exc:
                logger.warning("retry passed over member=%r, another release planned it: %r", member, exc)
            self._jobs.unschedule(member)
        return len(due)

    def request_due_regularly(self, stop: threading.Event) -> None:
        """Until told to stop; a Redis that is away is asked again."""
        while not stop.wait(POLL_S):
            try:
                self.request_due()
            except BackendError as exc:
                logger.debug("retries not looked for: %s", exc)

    def _pause(self, times: int, *, for_a_person: bool) -> float:
        """Seconds; jittered by up to half, so that projects that failed together are not retried together."""
        longest = LONGEST_PAUSE_S if for_a_person else min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(times - 1, 30))
        return longest * self._random.uniform(0.5, 1.0)

    def _request(self, project_id: int, work: str) -> None:
        kind, _, part = work.partition("-")
        if kind == "search":
            self._jobs.request_search(project_id, int(part))
            return
        requests: dict[str, Callable[[int], object]] = {
            "retrain": self._jobs.request_retrain,
            "evaluate": self._jobs.request_evaluation,
            "plan_embedding": self._jobs.request_embedding,
            "embed_batch": self._jobs.request_embedding,  # a plan finds what is missing
            "reconcile": self._jobs.request_reconciliation,
            "prune": self._jobs.request_pruning,
            "finetune": self._jobs.request_finetuning,
            "make_map": self._jobs.request_map,
        }
        requests[kind](project_id)

    def _keep(self, project_id: int, failure: Failure) -> None:
        self._jobs.keep_failure(project_id, failure.work, json.dumps(asdict(failure)))
        self._jobs.set_note(project_id, LAST_ERROR, failure.reason)
        member = _member(project_id, failure.work)
        if failure.next_try is None:
            self._jobs.unschedule(member)
        else:
            self._jobs.schedule(member, failure.next_try)

    def _failures(self, project_id: int) -> dict[str, Failure]:
        found = {}
        for work, raw in self._jobs.failures(project_id).items():
            try:
                found[work] = Failure(**json.loads(raw))
            except (TypeError, ValueError) as exc:  # kept by another release
                logger.debug("failure unreadable project=%d work=%s: %s", project_id, work, exc)
        return found


def _member(project_id: int, work: str) -> str:
    return f"{project_id}:{work}"


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
