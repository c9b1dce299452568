"""Wilson's interval: published values, the equation it solves, and its ends."""

from __future__ import annotations

import math

import pytest

from backend.learning.intervals import wilson_interval


@pytest.mark.parametrize(
    ("n_right", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_published_values(n_right: int, n: int, low: float, high: float) -> None:
    """81 of 263 is the example of Newcombe, Statistics in Medicine 17 (1998), table I, method 3; others by hand."""
    assert wilson_interval(n_right, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("n_right", "n"), [(1, 7), (30, 60), (199, 200)])
def test_the_bounds_are_the_shares_that_a_score_test_just_does_not_reject(n_right: int, n: int) -> None:
    """(share - p) is 1.96 standard errors *of p* at both ends."""
    for bound in wilson_interval(n_right, n):
        assert abs(n_right / n - bound) / math.sqrt(bound * (1 - bound) / n) == pytest.approx(1.959964, rel=1e-5)


def test_more_confidence_is_a_wider_interval_and_right_and_wrong_mirror_each_other() -> None:
    """90 % lies inside 99 %; 3 right of 20 is the mirror image of 17 right."""
    (low_90, high_90), (low_99, high_99) = (wilson_interval(3, 20, confidence=share) for share in (0.9, 0.99))
    assert low_99 < low_90 < 3 / 20 < high_90 < high_99
    low, high = wilson_interval(17, 20, confidence=0.9)
    assert (1 - high, 1 - low) == pytest.approx((low_90, high_90))


@pytest.mark.parametrize(("n_right", "n", "confidence"), [(0, 0, 0.95), (4, 3, 0.95), (-1, 3, 0.95), (1, 3, 1.0)])
def test_impossible_input_is_named(n_right: int, n: int, confidence: float) -> None:
    """No trials, more right than trials, certainty."""
    with pytest.raises(ValueError, match="expected 0 <= n_right <= n"):
        wilson_interval(n_right, n, confidence=confidence)
