"""Intervals for shares."""

from __future__ import annotations

import math

from scipy.special import ndtri


def wilson_interval(n_right: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Lower and upper bound (0..1) of a share of which `n_right` of `n` independent trials were seen.

    Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 22 (1927): the shares that a
    score test does not reject. Unlike the textbook interval it holds for small `n` and near 0 and 1, and never leaves
    0..1. Raises ValueError unless 0 <= n_right <= n, n >= 1 and 0 < confidence < 1.
    """
    if not (0 <= n_right <= n and n >= 1 and 0 < confidence < 1):
        raise ValueError(
            f"got {n_right} of {n} at confidence {confidence}; expected 0 <= n_right <= n, n >= 1 and a confidence "
            "between 0 and 1"
        )
    z = float(ndtri((1 + confidence) / 2))
    share = n_right / n
    shrink = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n one bound is exactly 0 or 1; rounding would leave it a little off.
    return (0.0 if n_right == 0 else middle - half), (1.0 if n_right == n else middle + half)
