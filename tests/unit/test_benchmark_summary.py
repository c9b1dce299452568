"""The table of all benchmarks: bounds are read the right way round, and every result kept in the repository is read."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from benchmarks import RESULTS
from benchmarks.summary import Figure, figures, kcenter, latency, print_table


@pytest.mark.parametrize(
    ("measured", "bound", "at_least", "kept"),
    [
        (1.0, 2.0, False, True),
        (3.0, 2.0, False, False),
        (3.0, 2.0, True, True),
        (1.0, 2.0, True, False),
        (1, 1, True, True),
    ],
)
def test_a_bound_is_upper_or_lower(measured: float, bound: float, *, at_least: bool, kept: bool) -> None:
    """A bound that is just reached is kept."""
    assert Figure("x", measured, bound, at_least).is_kept is kept
    assert Figure("x", measured).is_kept is None


def test_what_is_not_kept_is_marked() -> None:
    """And counted, among those of which something is asked."""
    with redirect_stdout(io.StringIO()) as out:
        print_table([Figure("slow", 2.0, 1.0), Figure("fast", 0.5, 1.0), Figure("plain", 7.0)])
    slow, fast, plain, count = out.getvalue().splitlines()
    assert "≤ 1" in slow
    assert slow.endswith("NOT KEPT")
    assert "NOT KEPT" not in fast + plain
    assert count == "1 of 2 bounds are kept"


def test_lag_is_bounded_by_pool() -> None:
    """A pool of 100,000 may take longer to publish than one of 1,000; Submit is bounded only at a person's pace."""
    quantiles = {"median": 0.2, "p95": 0.6}
    rows = [
        {
            "row": f"publish {pool}",
            "pool": pool,
            "submit_s": quantiles,
            "webhook_to_published_s": quantiles,
            "labels_lost": 0,
        }
        for pool in (1_000, 100_000)
    ]
    kept = {figure.what: figure.is_kept for figure in latency({"rows": rows})}
    assert kept["lag, publish 1000: webhook → version, p95, s"] is False
    assert kept["lag, publish 100000: webhook → version, p95, s"] is True
    assert kept["lag, publish 1000: webhook → version, median, s"] is True
    assert not any("Submit" in what for what in kept)


def test_selection_is_compared_with_other_implementations_only() -> None:
    """Approximations of ours beside them are another thing."""
    ours = {"name": "ours", "seconds": 1.0, "peak_bytes_to_array": 1.1}
    others = [{"name": name, "times_ours": 0.5, "radius_to_ours": 1.0} for name in ("numpy", "sample")]
    found = list(kcenter({"shapes": [{"shape": "9x2", "measured": [ours, *others]}]}))
    assert [figure.is_kept for figure in found] == [None, True, False, True]


def test_every_kept_result_is_read(tmp_path: Path) -> None:
    """Those in the repository have the form that the table reads; another form is an error, no silent gap."""
    assert len(list(figures(RESULTS))) > 30
    (tmp_path / "service.json").write_text(json.dumps({"webhook": {}}))
    with pytest.raises(KeyError):
        list(figures(tmp_path))
