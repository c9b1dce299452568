"""The running stack, the project that the faults happen to, and the table at the end.

FAULT_TIMES says how often each fault is injected, FAULT_FORM whether in `short` or `full`, FAULTS_JSON where the
figures are written, FAULTS_DIR where the stack keeps its files; see `make faults`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_log import FIGURES, INJECTED, TIMES, Faults, caption, rows_of, table, write
from fault_stack import FAULTS_DIR, FaultProject, FaultStack, await_well

N_TASKS = 150
"""Tasks of the project that the faults happen to; a new one is made when it is labeled."""

N_NEEDED = 14
"""Tasks that must be left, for every time a fault is injected."""


@pytest.fixture(scope="session")
def fault_stack() -> Iterator[FaultStack]:
    """Redis, Label Studio, web service and one worker, for all faults."""
    FAULTS_DIR.mkdir(parents=True, exist_ok=True)
    stack = FaultStack(FAULTS_DIR)
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture(scope="session")
def made_projects(fault_stack: FaultStack) -> Iterator[list[FaultProject]]:
    """All projects; they are deleted in the end."""
    made: list[FaultProject] = []
    yield made
    for project in made:  # some are deleted already
        fault_stack.stack.label_studio.delete(f"/api/projects/{project.id}/")


@pytest.fixture
def new_project(fault_stack: FaultStack, made_projects: list[FaultProject]) -> Callable[[int], FaultProject]:
    """Makes a project with so many tasks and a model of four labels."""

    def make(n: int) -> FaultProject:
        project = fault_stack.project(n)
        made_projects.append(project)
        project.label(4)
        await_well(fault_stack, [project])
        return project

    return make


@pytest.fixture
def project(request: pytest.FixtureRequest, new_project: Callable[[int], FaultProject]) -> FaultProject:
    """The project that faults happen to, one after the other; a new one when it is labeled, or after a failure."""
    stash = request.config.stash
    n_failed = request.session.testsfailed
    kept = stash.get(_KEPT, None)
    if kept is None or stash.get(_FAILED, 0) != n_failed or kept.n_left < N_NEEDED * TIMES:
        kept = new_project(max(N_TASKS, 2 * N_NEEDED * TIMES))
    stash[_KEPT], stash[_FAILED] = kept, n_failed
    return kept


_KEPT = pytest.StashKey[FaultProject]()
_FAILED = pytest.StashKey[int]()


@pytest.fixture
def faults(fault_stack: FaultStack, record_property: Callable[[str, object], None]) -> Iterator[Faults]:
    """Injects faults; what a failed test left broken is put right for the next one."""
    yield Faults(fault_stack, record_property)
    proxy, webhooks = fault_stack.label_studio_proxy, fault_stack.webhooks
    proxy.delay_s, proxy.status, webhooks.mode = 0.0, None, "pass"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table: fault, times injected, labels submitted, labels lost, time to recover."""
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.getreports(kind)]
    told = [told for report in reports if report.when == "call" for told in report.user_properties]
    rows = rows_of(value for name, value in told if name == INJECTED)
    if not rows:
        return
    figures = dict(value for name, value in told if name == FIGURES)
    terminalreporter.write_sep("=", "faults")
    terminalreporter.write_line(caption() + "\n\n" + table(rows))
    for name, measured in figures.items():
        terminalreporter.write_line(f"\n{name}: " + ", ".join(f"{key} {value}" for key, value in measured.items()))
    if target := os.environ.get("FAULTS_JSON"):
        write(Path(target), rows, figures)
