"""How far a long command is: a bar with rate and time left on a terminal, plain lines elsewhere; on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Task
    from rich.text import Text

LINE_EVERY_S = 10.0
"""Pause between two lines about the same step where there is no terminal; its end is always told."""

Advance = Callable[[str, int, int], None]
"""Called with the step's name, how much of it is done, and of how much (0: not known yet)."""


@contextmanager
def progress(stream: TextIO | None = None, now: Callable[[], float] = time.monotonic) -> Iterator[Advance]:
    """What a command calls while it works; standard output stays free for what it prints in the end."""
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        yield from _bars(stream)
    else:
        yield _Lines(stream, now)


@contextmanager
def waiting(text: str, stream: TextIO | None = None) -> Iterator[None]:
    """For a wait whose length nobody knows: a line with a clock on a terminal, gone afterwards; nothing elsewhere."""
    stream = sys.stderr if stream is None else stream
    if not stream.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=stream), transient=True) as line:
        line.add_task(text, total=None)
        yield


def _bars(stream: TextIO) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """So many a second."""

        def render(self, task: Task) -> Text:
            return Text(_rate(task.speed), style="progress.data.speed")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream), transient=True) as bars:
        known = {}

        def advance(step: str, done: int, total: int) -> None:
            if step not in known:
                known[step] = bars.add_task(step, total=total or None)
            bars.update(known[step], completed=done, total=total or None)

        yield advance


class _Lines:
    """One line when a step begins, ends, and every so often in between."""

    def __init__(self, stream: TextIO, now: Callable[[], float]) -> None:
        self._stream = stream
        self._now = now
        self._begun: dict[str, tuple[float, int]] = {}
        self._last: dict[str, tuple[float, int]] = {}

    def __call__(self, step: str, done: int, total: int) -> None:
        now = self._now()
        told = self._last.get(step)
        ended = 0 < total <= done
        if told is not None and (told[1] == done or (now - told[0] < LINE_EVERY_S and not ended)):
            return
        since, first = self._begun.setdefault(step, (now, done))
        self._last[step] = now, done
        speed = (done - first) / (now - since) if now > since and done > first else None
        text = f"{step}: {done:,} of {total:,}" if total else f"{step}: {done:,}"
        if speed:
            text += f", {_rate(speed)}" + (f", {_duration((total - done) / speed)} left" if total > done else "")
        self._stream.write(text + "\n")
        self._stream.flush()


def _rate(per_s: float | None) -> str:
    if not per_s:
        return ""
    return f"{per_s:,.0f}/s" if per_s >= 10 else f"{per_s:.1f}/s" if per_s >= 0.1 else f"{per_s * 60:.1f}/min"


def _duration(seconds: float) -> str:
    """Such as '40 s', '12 min' or '2 h 05 min'."""
    whole = round(seconds)
    if whole < 90:
        return f"{whole} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
