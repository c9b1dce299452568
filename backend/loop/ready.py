"""Whether everything that a label needs on its way is there: what /ready answers.

A probe may come from anybody and at any rate, and what is asked may hang. So the checks run beside the request, each at
most once at a time; an answer is given within `TIMEOUT_S` and kept for `FRESH_S`; and no more than `MAX_WAITING`
requests wait for one, so that probes leave the threads of the web service to labels.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from backend.adapters.jobs import Jobs
from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.registry import Registry
from backend.errors import BackendError, RedisUnavailableError

logger = logging.getLogger(__name__)

TIMEOUT_S = 2.0
"""Longest wait for all checks together; what has not answered then is not ready."""

FRESH_S = 2.0
"""How long an answer is given again instead of looking anew."""

MAX_WAITING = 2
"""Requests that may wait for an answer at once; others are given the one before."""


@dataclass(frozen=True)
class Finding:
    """One check: whether it is well, and in a sentence what was found and, if it is not, what to do."""

    ok: bool
    found: str


@dataclass(frozen=True)
class Report:
    """All checks by name, in the order they are shown."""

    findings: Mapping[str, Finding]

    @property
    def ready(self) -> bool:
        """Whether all is well."""
        return all(finding.ok for finding in self.findings.values())


class Readiness:
    """Looks at several things at once. A check gives a sentence, or raises an error whose message is one."""

    def __init__(
        self,
        checks: Mapping[str, Callable[[], str]],
        *,
        timeout_s: float = TIMEOUT_S,
        fresh_s: float = FRESH_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._looks = {name: _Look(name, check) for name, check in checks.items()}
        self._timeout_s = timeout_s
        self._fresh_s = fresh_s
        self._clock = clock
        self._waiting = threading.Semaphore(MAX_WAITING)
        self._looking = threading.Lock()
        self._last: tuple[float, Report] | None = None

    def report(self) -> Report:
        """How it is now, or was at most `fresh_s` ago; the one before that, if many ask at once."""
        known = self._fresh()
        if known is not None:
            return known
        if not self._waiting.acquire(blocking=False):
            return self._last[1] if self._last else Report({"checks": Finding(False, "are under way; ask again")})
        try:
            with self._looking:
                known = self._fresh()
                if known is not None:
                    return known
                report = self._look()
                self._last = self._clock(), report
                return report
        finally:
            self._waiting.release()

    def _fresh(self) -> Report | None:
        last = self._last
        return last[1] if last is not None and self._clock() - last[0] < self._fresh_s else None

    def _look(self) -> Report:
        deadline = time.monotonic() + self._timeout_s
        for look in self._looks.values():
            look.begin()
        return Report({name: look.finding(deadline, self._timeout_s) for name, look in self._looks.items()})


class _Look:
    """One check in a thread of its own. One that hangs is not begun again beside itself."""

    def __init__(self, name: str, check: Callable[[], str]) -> None:
        self._name = name
        self._check = check
        self._done = threading.Event()
        self._done.set()
        self._finding = Finding(False, "was not looked at yet")

    def begin(self) -> None:
        if self._done.is_set():
            self._done.clear()
            # A daemon: one that hangs must not keep the process from ending.
            threading.Thread(target=self._run, name=f"ready-{self._name}", daemon=True).start()

    def finding(self, deadline: float, timeout_s: float) -> Finding:
        if self._done.wait(max(0.0, deadline - time.monotonic())):
            return self._finding
        return Finding(False, f"no answer within {timeout_s:g} s; it is overloaded, or the network swallows requests")

    def _run(self) -> None:
        try:
            self._finding = Finding(True, self._check())
        except (BackendError, OSError) as exc:
            self._finding = Finding(False, str(exc))
        except Exception as exc:  # the thread's door: a check must come to an end
            logger.exception("check failed name=%s", self._name)
            self._finding = Finding(False, f"the check itself failed ({type(exc).__name__}); the log has more")
        finally:
            self._done.set()


class ServiceChecks:
    """What a label needs on its way, each as a check for `Readiness`."""

    def __init__(self, *, jobs: Jobs, registry: Registry, label_studio: LabelStudioClient) -> None:
        self._jobs = jobs
        self._registry = registry
        self._label_studio = label_studio

    def all(self) -> dict[str, Callable[[], str]]:
        """The checks by name."""
        return {
            "redis": self._redis,
            "data_folder": self._data_folder,
            "models": self._models,
            "label_studio": self._labels_come_from,
            "worker": self._worker,
        }

    def _redis(self) -> str:
        self._jobs.ping()
        return "Redis answers"

    def _data_folder(self) -> str:
        try:
            self._registry.try_writing()
        except OSError as exc:
            raise BackendError(
                f"DATA_DIR cannot be written ({type(exc).__name__}: {exc}); make room, or give this user the right to"
            ) from exc
        return "DATA_DIR can be written"

    def _models(self) -> str:
        n_loaded = 0
        for project_id in self._registry.known_projects():
            version = self._registry.published(project_id)
            if version is not None:
                self._registry.head(self._registry.record(project_id, version))
                n_loaded += 1
        return f"{n_loaded} published models can be loaded"

    def _labels_come_from(self) -> str:
        self._label_studio.whoami()
        return "Label Studio answers, and takes LABEL_STUDIO_TOKEN"

    def _worker(self) -> str:
        try:
            n_workers = self._jobs.n_workers()
        except RedisUnavailableError as exc:
            raise BackendError("unknown while Redis does not answer") from exc
        if not n_workers:
            raise BackendError("no worker is alive; start one: python -m backend worker")
        return f"{n_workers} alive"
