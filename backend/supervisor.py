"""The worker's supervisor: a process with the modules loaded, which forks the worker, and another when that is killed.

A worker that the system kills, most often for want of memory, is back in a second or two and not in the ten or more
that loading torch takes. The fork is safe for its moment: modules are loaded, but nothing was computed, opened or
connected, so there is no CUDA context, no running thread pool, no open dataset and no connection to inherit.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from uuid import uuid4

logger = logging.getLogger(__name__)

SHORT_LIFE_S = 5.0
"""A worker killed sooner than this after its start was perhaps killed by what it does first, as the next will be."""

N_SHORT_LIVES = 2
"""So many of them in a row are replaced at once; then the pauses double from a second on."""

LONGEST_PAUSE_S = 30.0
"""The longest of the pauses."""

N_DEAD_TOLD = 10
"""How many of the dead a child is told of: the last is enough unless it died before it had buried the one before."""

_STOPPING = frozenset({signal.SIGTERM, signal.SIGINT})


@dataclass(frozen=True)
class Child:
    """What a child is told: a name that no other process has, and those of the children before it, which are dead."""

    name: str
    dead: Sequence[str] = ()


def fork_supervised() -> Child:
    """Return in a child, which is watched from then on; the calling process watches, and ends when it is told to.

    The child is replaced when a signal ended it, with a pause if that came again and again soon after the start. When
    it ended by itself the supervisor ends with the same exit status. SIGTERM and SIGINT are passed on to it. A child
    whose supervisor is gone ends at once. Only on Linux, where such a fork is safe; elsewhere the calling process goes
    on.

    Raises SystemExit in the supervisor, in the end.
    """
    family = uuid4().hex
    if sys.platform != "linux":
        return Child(family)
    # Blocked and waited for: no handler can run between two lines, and none comes too early.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING | {signal.SIGCHLD})
    supervisor_lives, kept_open = os.pipe()
    n_short_lives = 0
    for number in count():
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            os.close(kept_open)
            threading.Thread(target=_end_with_supervisor, args=(supervisor_lives,), daemon=True).start()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return Child(f"{family}-{number}", [f"{family}-{before}" for before in range(number)[-N_DEAD_TOLD:]])
        status, told = _wait_for(child)
        if told or not os.WIFSIGNALED(status):
            raise SystemExit(_exit_status(status))
        n_short_lives = n_short_lives + 1 if time.monotonic() - started < SHORT_LIFE_S else 0
        n_too_many = n_short_lives - N_SHORT_LIVES
        pause = min(LONGEST_PAUSE_S, 2.0 ** (n_too_many - 1)) if n_too_many > 0 else 0.0
        logger.error(
            "worker killed pid=%d signal=%d: another is started%s%s",
            child,
            os.WTERMSIG(status),
            f" in {pause:.0f} s" if pause else "",
            "; the system does that when memory runs out" if os.WTERMSIG(status) == signal.SIGKILL else "",
        )
        if pause and signal.sigtimedwait(_STOPPING, pause) is not None:
            raise SystemExit(_exit_status(status))
    raise AssertionError("there is always a next number")


def _wait_for(child: int) -> tuple[int, bool]:
    """How the child ended, as `os.waitpid` says it, and whether it was told to."""
    told = False
    while True:
        number = signal.sigwait(_STOPPING | {signal.SIGCHLD})
        if number in _STOPPING:
            told = True
            os.kill(child, number)
            continue
        # All that ended: in a container this is process 1, to which the children of a killed worker come.
        ended = {}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            ended[pid] = status
        if child in ended:
            return ended[child], told


def _exit_status(status: int) -> int:
    """As a shell says it: 128 and the signal's number for what a signal ended."""
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def _end_with_supervisor(supervisor_lives: int) -> None:
    os.read(supervisor_lives, 1)  # nothing is ever written; it returns when the other end is closed
    os._exit(1)
