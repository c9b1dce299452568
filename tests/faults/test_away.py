"""What the service depends on is away, slow, or answers otherwise; nothing hangs, and all labels are used after it."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from fault_log import OUTAGE_S, Faults
from fault_stack import FaultProject, FaultStack, ask_for_predictions, await_true

from backend.adapters.jobs import SOCKET_TIMEOUT_S

SLOW_S = 10.0
LONGEST_ANSWER_S = 8.0
"""Longest time that the status may take while Redis is away."""


def test_redis_restarted(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """It ends in order and is there again at once, with all it held."""
    for _ in faults.times():
        with faults.injected("Redis restarted", project):
            project.label(1)
            fault_stack.redis.stop()
            fault_stack.redis.start()
            project.label(1)
            fault_stack.await_redis()


def test_redis_killed(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """It is killed and started anew; what it wrote in its last second may be gone."""
    for _ in faults.times():
        with faults.injected("Redis killed", project):
            project.label(1)
            fault_stack.redis.kill()
            project.label(1)
            fault_stack.await_redis()


@pytest.mark.parametrize("is_busy", [True, False])
def test_redis_emptied(fault_stack: FaultStack, faults: Faults, project: FaultProject, is_busy: bool) -> None:
    """FLUSHALL in the middle of a retrain, and while nothing is done."""
    for number in faults.times():
        with faults.injected(f"Redis emptied {'during a retrain' if is_busy else 'while idle'}", project):
            if is_busy:
                submitting = threading.Thread(target=project.label)
                submitting.start()
                time.sleep(0.15 + 0.05 * number)
                fault_stack.services.jobs.redis.flushall()
                submitting.join()
            else:
                fault_stack.services.jobs.redis.flushall()
                project.label(1)
    fault_stack.await_workers(1)


def test_redis_gone(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """Nothing listens for a while: the status says so within seconds, the worker waits and does not end."""
    for _ in faults.times():
        with faults.injected("Redis gone", project):
            project.label(1)
            pid = fault_stack.worker.pid
            fault_stack.redis.stop()
            started = time.monotonic()
            project.label(1)
            asked = time.monotonic()
            status = project.status()
            assert "Redis does not answer" in status["last_error"]
            assert time.monotonic() - asked < LONGEST_ANSWER_S
            ask_for_predictions(fault_stack, project)
            time.sleep(max(0.0, OUTAGE_S - (time.monotonic() - started)))
            fault_stack.redis.start()
            fault_stack.await_redis()
        assert fault_stack.worker.pid == pid
        fault_stack.await_workers(1)


def test_redis_silent(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """It keeps its connections and answers nothing for a while: the status waits for it once, not for each question."""
    for _ in faults.times():
        with faults.injected("Redis silent", project):
            project.label(1)
            os.kill(fault_stack.redis.pid, signal.SIGSTOP)
            try:
                project.label(1)
                asked = time.monotonic()
                assert "Redis does not answer" in project.status()["last_error"]
                assert time.monotonic() - asked < SOCKET_TIMEOUT_S + LONGEST_ANSWER_S
                time.sleep(OUTAGE_S)
            finally:
                os.kill(fault_stack.redis.pid, signal.SIGCONT)


def test_label_studio_restarted(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """Killed while a version is made of the last label, and started anew."""
    for _ in faults.times():
        with faults.injected("Label Studio killed and restarted", project):
            project.label(1)
            fault_stack.label_studio.kill()
            time.sleep(1)
            fault_stack.await_label_studio()
            project.label(1)


def test_label_studio_gone(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """People reach it and the service does not; the status says so in words."""
    proxy = fault_stack.label_studio_proxy
    for _ in faults.times():
        with faults.injected("Label Studio gone", project):
            proxy.refuse()
            try:
                project.label(2)
                time.sleep(OUTAGE_S)
                await_true(lambda: project.status()["last_error"] is not None, "the failure is told", 30)
                assert "Label Studio does not answer" in project.status()["last_error"]
            finally:
                proxy.listen()


@pytest.mark.parametrize("status", [500, 401])
def test_label_studio_refuses(fault_stack: FaultStack, faults: Faults, project: FaultProject, status: int) -> None:
    """It answers every request of the service so; the status gives the reason."""
    proxy = fault_stack.label_studio_proxy
    for _ in faults.times():
        with faults.injected(f"Label Studio answers {status}", project):
            proxy.status = status
            try:
                project.label(2)
                time.sleep(OUTAGE_S)
                await_true(lambda: project.status()["last_error"] is not None, "the failure is told", 30)
                assert str(status) in project.status()["last_error"]
            finally:
                proxy.status = None


def test_label_studio_slow(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """Every answer takes ten seconds; the version comes late, and no job fails of it."""
    proxy = fault_stack.label_studio_proxy
    for _ in faults.times():
        with faults.injected("Label Studio slow (10 s)", project):
            proxy.delay_s = SLOW_S
            try:
                project.label(2)
                time.sleep(SLOW_S + 2)
                assert project.status()["last_error"] is None
            finally:
                proxy.delay_s = 0.0


def test_disk_full_while_saving(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """No file of the worker's can be written for a while; the status says which, and the old version is served."""
    for _ in faults.times():
        with faults.injected("disk full while saving", project):
            before = project.status()["model_version"]
            with fault_stack.worker.unable_to_write():
                project.label(2)
                await_true(lambda: project.status()["last_error"] is not None, "the failure is told", 30)
                status = project.status()
                assert "cannot be written" in status["last_error"]
                assert status["model_version"] == before


def test_disk_full_while_embedding(fault_stack: FaultStack, faults: Faults, project: FaultProject) -> None:
    """The embeddings of new images cannot be written for a while."""
    for _ in faults.times():
        with faults.injected("disk full while embedding", project):
            with fault_stack.worker.unable_to_write():
                project.add(3, first_seed=2000 + len(project.colours))
                await_true(lambda: project.status()["last_error"] is not None, "the failure is told", 30)
                assert "cannot be written" in project.status()["last_error"]
            project.label(1)
