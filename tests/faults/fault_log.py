"""What came of the faults: each is injected through `Faults`, and `table` shows all of them."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fault_stack import SETTINGS, FaultProject, FaultStack, await_well, n_lost

TIMES = int(os.environ.get("FAULT_TIMES", "1"))
"""How often each fault is injected."""

IS_SHORT = os.environ.get("FAULT_FORM", "short") == "short"
"""The shortened form: fewer of those faults that are alike, and what lasts a minute lasts seconds."""

OUTAGE_S = 4.0 if IS_SHORT else 60.0
"""How long what is gone stays away."""

LABELING_S = 20.0 if IS_SHORT else 300.0
"""How long ten people label."""

MAX_LINES_PER_S = 20
"""Lines that web and workers together may log in a second of a fault, on average: more is a flood."""


INJECTED, FIGURES = "fault injected", "figures"
"""Properties of a test that tell what came of it, which travel from the process it ran in."""


class Faults:
    """Injects faults and sees to it that all is well afterwards; what came of it is told to `tell(property, value)`."""

    def __init__(self, stack: FaultStack, tell: Callable[[str, object], None]) -> None:
        self._stack = stack
        self._tell = tell

    def times(self) -> range:
        """One number per injection."""
        return range(TIMES)

    @contextmanager
    def injected(self, fault: str, *projects: FaultProject, n_requests: int = 0) -> Iterator[None]:
        """Within, the fault happens; after it the projects must be well again, and the logs fit to be read.

        n_requests: how many were made of the service, each of which may be logged.
        """
        before = sum(project.n_submitted for project in projects)
        started, log_sizes = time.monotonic(), self._stack.log_sizes()
        yield
        n_submitted = sum(project.n_submitted for project in projects) - before
        recovery_s = float("inf")
        try:
            recovery_s = await_well(self._stack, projects)
        finally:
            lost = sum(n_lost(self._stack, project) for project in projects)
            self.record(fault, recovery_s, n_submitted, lost)
        logged = self._stack.logged_since(log_sizes)
        assert "Traceback" not in logged, logged[max(0, logged.index("Traceback") - 500) :][:4000]
        n_most = 100 + MAX_LINES_PER_S * (time.monotonic() - started) + n_requests
        assert logged.count("\n") < n_most, logged[-4000:]

    def record(self, fault: str, recovery_s: float, n_submitted: int = 0, n_lost: int = 0) -> None:
        """Notes a fault; by itself one after which there is no project left to look at."""
        self._tell(INJECTED, [fault, recovery_s, n_submitted, n_lost])

    def note(self, name: str, **figures: object) -> None:
        """Notes what else was measured."""
        self._tell(FIGURES, [name, figures])


def rows_of(injected: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """What came of each fault over all its injections, from what `Faults.record` told."""
    by_fault: dict[str, list[Sequence[Any]]] = {}
    for fault, *outcome in injected:
        by_fault.setdefault(fault, []).append(outcome)
    return [
        {
            "fault": fault,
            "times": len(outcomes),
            "labels_submitted": sum(n_submitted for _, n_submitted, _ in outcomes),
            "labels_lost": sum(n_lost for _, _, n_lost in outcomes),
            "recovery_median_s": round(statistics.median(recovery_s for recovery_s, _, _ in outcomes), 1),
            "recovery_max_s": round(max(recovery_s for recovery_s, _, _ in outcomes), 1),
        }
        for fault, outcomes in by_fault.items()
    ]


def caption() -> str:
    """What the columns of the table mean."""
    return (
        f"RECONCILE_INTERVAL_S={SETTINGS['RECONCILE_INTERVAL_S']} (60 where nobody sets it). Recovered: seconds from "
        "the end of a fault until\nthe published version has used exactly the labels in Label Studio, and the queue is "
        "its."
    )


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows under each other, in columns."""
    width = max(len(row["fault"]) for row in rows)
    lines = [f"{'fault':{width}}  times  labels  lost  recovered: median       max"]
    lines += [
        f"{row['fault']:{width}}  {row['times']:5d}  {row['labels_submitted']:6d}  {row['labels_lost']:4d}  "
        f"{row['recovery_median_s']:15.1f} s {row['recovery_max_s']:7.1f} s"
        for row in rows
    ]
    return "\n".join(lines)


def write(path: Path, rows: Sequence[dict[str, Any]], figures: Mapping[str, Any]) -> None:
    """The figures as JSON."""
    content = {
        "times": TIMES,
        "outage_s": OUTAGE_S,
        "labeling_s": LABELING_S,
        "reconcile_interval_s": int(SETTINGS["RECONCILE_INTERVAL_S"]),
        "faults": list(rows),
        **figures,
    }
    path.write_text(json.dumps(content, indent=2) + "\n")
