"""Random order's curve: on images whose classes are plain, and where it must say nothing."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.errors import FitInterruptedError
from backend.learning.head import HeadSettings
from backend.learning.pool import Pool
from backend.learning.random_order import LEAST_LABELS, N_SIZES, curve_sizes, random_curve

N = 60


def clouds(noise: float) -> tuple[Pool, NDArray[np.intp], list[str]]:
    """A pool of two clouds of 60 images each, and 30 random rows with their labels."""
    random = np.random.default_rng(0)
    centres = np.repeat([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], N, axis=0)
    embeddings = (centres + noise * random.normal(size=centres.shape)).astype(np.float32)
    rows = random.permutation(2 * N)[:30]
    return Pool(embeddings), rows, ["left" if row < N else "right" for row in rows.tolist()]


def test_sizes_end_at_the_labels_there_are_or_at_half_of_those_known() -> None:
    """At least ten; the other half judges."""
    assert curve_sizes(100, 60) == curve_sizes(30, 1000)
    assert curve_sizes(30, 1000)[0] == LEAST_LABELS
    assert curve_sizes(30, 1000)[-1] == 30
    assert len(curve_sizes(1000, 4000)) == N_SIZES
    assert curve_sizes(9, 1000) == curve_sizes(1000, 19) == []
    assert curve_sizes(10, 20) == [10]


def test_plain_classes_are_learned_at_once() -> None:
    """Ten random images of two clouds far apart tell them all: accuracy 1, of 20 judged, with Wilson's interval."""
    pool, rows, labels = clouds(0.05)
    (point,) = random_curve(pool, rows, labels, HeadSettings(), sizes=[10], random_state=0)
    assert (point.labels_used, point.accuracy) == (10, 1.0)
    assert point.interval == pytest.approx((0.839, 1.0), abs=0.001)  # 1 / (1 + 1.96² / 20)


def test_the_same_seed_gives_the_same_curve_and_noise_lowers_it() -> None:
    """Clouds that overlap are not told apart without errors."""
    pool, rows, labels = clouds(1.0)
    one, other = (
        random_curve(pool, rows, labels, HeadSettings(), sizes=[10, 15], random_state=3, n_draws=2) for _ in range(2)
    )
    assert one == other
    assert all(0.4 < point.accuracy < 1 and point.interval[0] < point.accuracy < point.interval[1] for point in one)


def test_labels_of_one_class_are_all_a_head_can_say() -> None:
    """Nothing can be fitted; what is right of the constant answer counts."""
    pool, rows, _ = clouds(0.1)
    (point,) = random_curve(pool, rows, ["left"] * 30, HeadSettings(), sizes=[10], random_state=0)
    assert point.accuracy == 1.0


def test_draws_that_are_not_ended_in_time_do_not_count() -> None:
    """Asked before each head: enough after the first draw of two sizes leaves that one; at once, nothing."""
    pool, rows, labels = clouds(1.0)
    answers = iter([False, False, False, True])
    found = random_curve(
        pool, rows, labels, HeadSettings(), sizes=[10, 15], random_state=0, enough=lambda: next(answers)
    )
    assert found == random_curve(pool, rows, labels, HeadSettings(), sizes=[10, 15], random_state=0, n_draws=1)
    assert random_curve(pool, rows, labels, HeadSettings(), sizes=[10], random_state=0, enough=lambda: True) == []


def test_it_can_be_interrupted() -> None:
    """A label waits: the fit in hand is given up."""
    pool, rows, labels = clouds(1.0)
    with pytest.raises(FitInterruptedError):
        random_curve(pool, rows, labels, HeadSettings(), sizes=[10], random_state=0, interrupted=lambda: True)
