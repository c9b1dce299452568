"""Processes killed with SIGKILL at every stage of the work. A supervisor starts them anew; no label is lost.

The worker has a supervisor of its own, `backend.supervisor`, which is killed with it where the name of a fault says so;
then it starts as a container does.
"""

from __future__ import annotations

import os
import signal
import time

import pytest
from fault_log import IS_SHORT, Faults
from fault_stack import FaultProject, FaultStack, await_true
from fault_worker import STAGES

NEEDS_TASKS = ("planning", "embedding", "embeddings")
"""What is in the names of stages that come after an import."""

SHORT = (
    "after the marker is cleared",
    "saving, in the middle of a file",
    "between two push batches",
    "between activation and publishing",
)
"""The stages of the shortened form: a worker takes seconds to start anew."""


@pytest.mark.parametrize("stage", SHORT if IS_SHORT else STAGES)
def test_worker_killed_at_a_stage(fault_stack: FaultStack, faults: Faults, project: FaultProject, stage: str) -> None:
    """It kills itself there while two labels are on their way, and two more come before the next one is up."""
    worker = fault_stack.worker
    for _ in faults.times():
        with faults.injected(f"worker killed {stage}", project):
            pid = worker.pid
            worker.tell(stage=stage)
            project.label(1)
            if any(word in stage for word in NEEDS_TASKS):
                project.add(3, first_seed=1000 + len(project.colours))
            project.label(1)
            worker.await_death(pid)
            project.label(2)


def test_worker_killed_at_any_moment(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """Killed in the middle of a burst of labels, wherever it is just then."""
    for number in faults.times():
        with faults.injected("worker killed while labels come", project):
            project.label(2)
            time.sleep(0.1 * number)
            fault_stack.worker.kill_worker()
            project.label(2)


def test_worker_and_its_supervisor_killed(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """As a container or a machine ends; the next one loads everything anew."""
    for number in faults.times():
        with faults.injected("worker and its supervisor killed", project):
            pid = fault_stack.worker.pid
            project.label(2)
            time.sleep(0.1 * number)
            fault_stack.worker.kill()
            fault_stack.worker.await_death(pid)
            project.label(2)


def test_worker_standing_still(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """It is held for longer than its lock lasts, while a second worker does the work; then it goes on."""
    for _ in faults.times():
        with fault_stack.two_workers(), faults.injected("worker held for 10 s, another takes over", project):
            pid = fault_stack.worker.pid
            project.label(1)
            os.kill(pid, signal.SIGSTOP)
            try:
                project.label(2)
                time.sleep(10)
            finally:
                os.kill(pid, signal.SIGCONT)


def test_web_killed(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """Label Studio's webhooks fail until the supervisor has started it anew; nobody sends them again."""
    for _ in faults.times():
        with faults.injected("web killed", project):
            pid = fault_stack.web.pid
            project.label(1)
            fault_stack.web.kill()
            fault_stack.web.await_death(pid)
            project.label(2)


def test_two_workers_and_one_is_killed(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """Two work on one project; one dies, the other takes up what it had begun."""
    for _ in faults.times():
        with fault_stack.two_workers(), faults.injected("two workers on one project, one killed", project):
            project.label(3)
            pid = fault_stack.worker.pid
            fault_stack.worker.kill_worker()
            project.label(2)
            fault_stack.worker.await_death(pid)
            await_true(lambda: fault_stack.services.jobs.n_workers() >= 2, "the killed worker is back", 60)


def test_two_workers(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """Two work on one project, label by label."""
    for _ in faults.times():
        with fault_stack.two_workers(), faults.injected("two workers on one project", project):
            project.label(5)


@pytest.mark.parametrize("hours", [1] if IS_SHORT else [1, -1])
def test_clock_jump(fault_stack: FaultStack, faults: Faults, project: FaultProject, hours: int) -> None:
    """The clock of one of two workers jumps an hour while they work; later the other is killed."""
    for _ in faults.times():
        with fault_stack.two_workers() as second, faults.injected(f"clock jumps {hours:+d} h in one of two", project):
            project.label(1)
            second.tell(clock_shift_s=3600 * hours)
            project.label(2)
            fault_stack.worker.kill_worker()
            project.label(2)
