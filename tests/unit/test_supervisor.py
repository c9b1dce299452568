"""The supervisor and its child, as processes of their own: killed, stopped, ended, left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the worker has no supervisor")

PROGRAM = """
import ctypes, logging, os, signal, sys, time
from backend import supervisor
logging.basicConfig(format="%(levelname)s %(message)s")
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans come to it, as they do to process 1
supervisor.SHORT_LIFE_S = float(sys.argv[1])
supervisor.fork_supervised()
def stop(number, frame):
    print("told", signal.Signals(number).name, flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("works", os.getpid(), flush=True)
exec(sys.argv[2])
"""
SLEEP = "while True: time.sleep(60)"


class Program:
    """The program above, what it writes going to a file."""

    def __init__(self, folder: Path, then: str, short_life_s: float) -> None:
        self.output = folder / "output"
        with self.output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(short_life_s), then], stdout=output, stderr=output
            )

    def text(self) -> str:
        return self.output.read_text()

    def children(self) -> list[int]:
        """Ids of the processes that began to work, the first one first."""
        return [int(pid) for pid in re.findall(r"works (\d+)\n", self.text())]

    def await_children(self, n: int) -> int:
        """Returns the id of the n-th once it works."""
        wait_until(lambda: len(self.children()) >= n)
        return self.children()[n - 1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def start(then: str = SLEEP, short_life_s: float = 0.0) -> Program:
        programs.append(Program(tmp_path, then, short_life_s))
        return programs[-1]

    yield start
    for program in programs:
        program.process.kill()
        program.process.wait()


def wait_until(holds: Callable[[], object], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline, f"it did not happen within {within_s} s"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_killed_child_is_replaced(start: Callable[..., Program]) -> None:
    """By another process of the same supervisor, and the log says what happened."""
    program = start()
    first = program.await_children(1)
    assert first != program.process.pid
    os.kill(first, signal.SIGKILL)
    second = program.await_children(2)
    assert second not in {first, program.process.pid}
    assert not lives(first)
    assert f"ERROR worker killed pid={first} signal=9: another is started" in program.text()
    assert "memory" in program.text()
    assert program.process.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_tells_its_child_and_ends_with_its_status(
    start: Callable[..., Program], number: signal.Signals
) -> None:
    program = start()
    child = program.await_children(1)
    program.process.send_signal(number)
    assert program.process.wait(30) == 7
    assert f"told {number.name}" in program.text()
    assert not lives(child)


def test_a_child_killed_after_it_was_told_to_stop_is_not_replaced(start: Callable[..., Program]) -> None:
    """Its container lost patience with it."""
    program = start("signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); " + "time.sleep(60)")
    child = program.await_children(1)
    wait_until(lambda: "deaf" in program.text())
    program.process.terminate()
    os.kill(child, signal.SIGKILL)
    assert program.process.wait(30) == 128 + signal.SIGKILL
    assert len(program.children()) == 1


@pytest.mark.parametrize(("then", "status"), [("sys.exit(3)", 3), ("pass", 0), ("raise ValueError('wrong')", 1)])
def test_a_child_that_ends_by_itself_is_not_replaced(start: Callable[..., Program], then: str, status: int) -> None:
    """A wrong setting would be wrong again; the exit status is the child's."""
    program = start(then)
    assert program.process.wait(30) == status
    assert len(program.children()) == 1


def test_children_that_die_at_once_are_replaced_ever_more_slowly(start: Callable[..., Program]) -> None:
    """And SIGTERM ends the pause."""
    program = start("os.kill(os.getpid(), signal.SIGKILL)", short_life_s=10.0)
    wait_until(lambda: "another is started in 2 s" in program.text())
    assert "another is started in 1 s" in program.text()
    wait_until(lambda: "another is started in 4 s" in program.text())
    began = time.monotonic()
    program.process.terminate()
    assert program.process.wait(30) == 128 + signal.SIGKILL
    assert time.monotonic() - began < 3


def test_a_child_ends_with_its_supervisor(start: Callable[..., Program]) -> None:
    """Two would work otherwise, once the next container is up."""
    program = start()
    child = program.await_children(1)
    program.process.kill()
    program.process.wait()
    wait_until(lambda: not lives(child))


def test_processes_of_a_killed_child_are_not_left_as_zombies(start: Callable[..., Program]) -> None:
    """In a container the supervisor is process 1, to which they come when their parent is gone."""
    grandchild = "import subprocess; print('begot', subprocess.Popen(['sleep', '0.5']).pid, flush=True)\n" + SLEEP
    program = start(grandchild)
    first = program.await_children(1)
    wait_until(lambda: re.search(r"begot \d+\n", program.text()))
    os.kill(first, signal.SIGKILL)
    begotten = int(re.findall(r"begot (\d+)\n", program.text())[0])
    wait_until(lambda: not lives(begotten))
