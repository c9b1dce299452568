"""Progress: a bar on a terminal, a line now and then elsewhere, never anything on standard output."""

from __future__ import annotations

import io

import pytest

from backend.progress import LINE_EVERY_S, _duration, _rate, progress, waiting


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def lines_of(*calls: tuple[float, str, int, int]) -> list[str]:
    """What is written when `advance` is called at these times."""
    stream, clock = io.StringIO(), iter([time for time, *_ in calls])
    with progress(stream, lambda: next(clock)) as advance:
        for _, step, done, total in calls:
            advance(step, done, total)
    return stream.getvalue().splitlines()


def test_without_a_terminal_there_is_a_line_now_and_then() -> None:
    """The first, one when ten seconds are over, and the last: 100 images in ten seconds are 10/s."""
    assert lines_of(
        (0.0, "embedding", 0, 300),
        (5.0, "embedding", 50, 300),
        (LINE_EVERY_S, "embedding", 100, 300),
        (15.0, "embedding", 150, 300),
        (20.0, "embedding", 300, 300),
    ) == ["embedding: 0 of 300", "embedding: 100 of 300, 10/s, 20 s left", "embedding: 300 of 300, 15/s"]


def test_a_step_that_does_not_move_is_told_once() -> None:
    """Who waits for something that stands still is not flooded; of an unknown whole only the part is told."""
    assert lines_of((0.0, "embedding", 3, 0), (60.0, "embedding", 3, 0)) == ["embedding: 3"]


def test_on_a_terminal_there_is_a_bar_with_rate_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    """Drawn over itself, and gone at the end."""
    stream = Terminal()
    with progress(stream) as advance:
        for done in range(1, 4):
            advance("embedding", done, 3)
    drawn = stream.getvalue()
    assert "embedding" in drawn
    assert "3/3" in drawn
    assert "\x1b[2K" in drawn
    assert capsys.readouterr().out == ""


def test_a_wait_of_unknown_length_is_a_line_with_a_clock_on_a_terminal_only() -> None:
    """Drawn over itself, and gone before anything else is printed; a log file is left alone."""
    terminal, file = Terminal(), io.StringIO()
    with waiting("checking, 3 done", terminal), waiting("checking, 3 done", file):
        pass
    assert "checking, 3 done" in terminal.getvalue()
    assert "0:00:00" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")
    assert file.getvalue() == ""


@pytest.mark.parametrize(
    ("per_s", "text"), [(None, ""), (1234.0, "1,234/s"), (9.96, "10.0/s"), (0.5, "0.5/s"), (0.05, "3.0/min")]
)
def test_rates_are_readable(per_s: float | None, text: str) -> None:
    """Of images a second, or of seeds a minute."""
    assert _rate(per_s) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (120, "2 min"), (7500, "2 h 05 min")])
def test_times_are_readable(seconds: float, text: str) -> None:
    """In the unit a person would use."""
    assert _duration(seconds) == text
