"""What the labels would be worth had they been asked for at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.labels import Label
from backend.learning.head import HeadSettings, fit
from backend.learning.intervals import wilson_interval
from backend.learning.label_sets import can_be_told_apart, share_right
from backend.learning.pool import Pool

N_SIZES = 6
"""Numbers of labels at which the curve is measured."""

LEAST_LABELS = 10
"""The least of them: with fewer it is chance which classes are met."""

N_DRAWS = 3
"""Random orders whose mean is told."""


@dataclass(frozen=True)
class RandomPoint:
    """The mean accuracy (0..1) of heads that learned so many labels of random images, and its 95 % interval."""

    labels_used: int
    accuracy: float
    interval: tuple[float, float]


def curve_sizes(n_labels: int, n_known: int) -> list[int]:
    """Up to `N_SIZES` numbers of labels, ascending, evenly spaced by their logarithm.

    The last is `n_labels`, or half of the `n_known` images with a known label where that is less: the other half
    judges. None where that is below `LEAST_LABELS`.
    """
    last = min(n_labels, n_known // 2)
    if last < LEAST_LABELS:
        return []
    return sorted(set(np.geomspace(LEAST_LABELS, last, N_SIZES).round().astype(int).tolist()))


def random_curve(
    pool: Pool,
    rows: NDArray[np.intp],
    labels: Sequence[Label],
    settings: HeadSettings,
    *,
    sizes: Sequence[int],
    random_state: int,
    n_draws: int = N_DRAWS,
    enough: Callable[[], bool] = lambda: False,
    interrupted: Callable[[], bool] = lambda: False,
) -> list[RandomPoint]:
    """How accurate heads are that learn so many of some random images, judged on the others of them.

    `rows` (V,) are the rows of the pool, drawn at random from all images whatever a model thinks of them, whose
    `labels` (V,) are known; `sizes` (less than V, ascending) how many of them are learned. Heads are fitted as by
    `head.fit`, with these settings. A point is the mean over `n_draws` orders, seeded by `random_state`, or over as
    many as were ended when `enough`, asked between two heads, said that it is; none if not one was. Its interval is
    that of the images one head is judged on: orders share most of them.

    For images drawn at random nothing is guessed, so it errs by chance alone: on photos of clothing and weather (V of
    297 and 225, 10 to 100 labels, four draws) by 0.8 points on average over five splits, and by 8 at most. Labels
    guessed by the published head in their place were tried, so that no image with a known label would be needed (the
    same photos, 40 to 150 labels): counted as true when judging, too, they gave a curve up to 13 points too high; when
    training alone, one up to 8 points too high with few labels and up to 6 too low with as many as there were.

    Raises FitInterruptedError as `head.fit`. Cost: n_draws · len(sizes) fits.
    """
    ended: list[list[float]] = []
    for draw in range(n_draws):
        order = np.random.default_rng([random_state, draw]).permutation(len(rows))
        accuracies: list[float] = []
        for size in sizes:
            if enough():
                break
            given = [labels[place] for place in order.tolist()]
            accuracies.append(_accuracy(pool, rows[order], given, size, settings, interrupted))
        if len(accuracies) < len(sizes):
            break
        ended.append(accuracies)
    if not ended:
        return []
    return [
        RandomPoint(size, accuracy, _interval(accuracy, len(rows) - size))
        for size, accuracy in zip(sizes, np.mean(ended, axis=0).tolist(), strict=True)
    ]


def _accuracy(
    pool: Pool,
    rows: NDArray[np.intp],
    labels: Sequence[Label],
    n_learned: int,
    settings: HeadSettings,
    interrupted: Callable[[], bool],
) -> float:
    """Share of the later rows whose prediction is right; where all labels are alike that is all a head can say."""
    learned, truth = labels[:n_learned], labels[n_learned:]
    if not can_be_told_apart(learned):
        return share_right([learned[0]] * len(truth), truth)
    head = fit(pool, rows[:n_learned], learned, settings, interrupted=interrupted).head
    return share_right(head.predicted(head.predict_proba(pool.embeddings[rows[n_learned:]])), truth)


def _interval(accuracy: float, n_judged: int) -> tuple[float, float]:
    return wilson_interval(round(accuracy * n_judged), n_judged)
