"""Calibration: probabilities that mean what they say."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

TEMPERATURES = (0.25, 4.0)
"""The range in which a temperature is sought; with tens of labels nothing beyond it could be trusted."""

PRIOR_LABELS = 10.0
"""The temperature 1 counts like so many labels that speak for it: a few labels do not move it far."""

N_BINS = 10
"""Bins of the expected calibration error."""


def fit_temperature(logits: ArrayLike, targets: ArrayLike) -> float:
    """The temperature that fits the classes (N,) best when it divides logits (N, C) of images not trained on; or the
    labels (N, C) of each image, 0 or 1, as `log_loss`.

    Temperature scaling (Guo et al. 2017, https://arxiv.org/abs/1706.04599): above 1 the probabilities were too bold,
    below too timid; the order of classes stays. Found by log-loss, with a pull to 1 (`PRIOR_LABELS`).
    """
    rows, classes = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.intp)
    if len(rows) == 0:
        return 1.0
    pull = PRIOR_LABELS / len(rows)
    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(
        lambda power: log_loss(rows / np.exp(power), classes) + pull * power**2 / 2,
        bounds=(low, high),
        method="bounded",
    )
    return float(np.exp(found.x))


def log_loss(logits: ArrayLike, targets: ArrayLike) -> float:
    """Mean of -ln(probability of the class), nats, of logits (N, C) and classes (N,).

    Targets (N, C) say of each label whether the image has it, 1 or 0: then the mean is over all N·C of these.
    """
    rows, given = np.asarray(logits, dtype=np.float64), np.asarray(targets, dtype=np.intp)
    if given.ndim == 2:
        return float(np.mean(np.logaddexp(0, np.where(given == 1, -rows, rows))))
    given = rows[np.arange(len(rows)), given]
    return float(np.mean(logsumexp(rows, axis=1) - given))


def calibration_error(confidence: ArrayLike, is_right: ArrayLike) -> float:
    """How far confidence (N,) and accuracy lie apart, 0..1; `is_right` (N,) says which predictions were right.

    Images are binned by confidence into `N_BINS` bins of equal width; the error is the mean over images of |accuracy of
    the bin - its mean confidence| (Naeini et al. 2015; Guo et al. 2017). With N images even perfect probabilities show
    an error of about the square root of N_BINS / N / 4.
    """
    bins = reliability_bins(confidence, is_right)
    return sum(item.n * abs(item.accuracy - item.confidence) for item in bins) / sum(item.n for item in bins)


@dataclass(frozen=True)
class ReliabilityBin:
    """Of the images whose confidence lies in one bin: its mean, how many of them are right (0..1), how many there are.

    Where probabilities mean what they say the first two are alike.
    """

    confidence: float
    accuracy: float
    n: int


def reliability_bins(confidence: ArrayLike, is_right: ArrayLike) -> list[ReliabilityBin]:
    """The bins of `calibration_error` that hold an image, by ascending confidence."""
    confidence = np.asarray(confidence, dtype=np.float64)
    if not len(confidence):
        return []
    bins: NDArray[np.intp] = np.minimum((confidence * N_BINS).astype(np.intp), N_BINS - 1)
    counts, sums, rights = (
        np.bincount(bins, weights=weights, minlength=N_BINS) for weights in (None, confidence, np.asarray(is_right))
    )
    return [
        ReliabilityBin(float(sums[b] / counts[b]), float(rights[b] / counts[b]), int(counts[b]))
        for b in np.flatnonzero(counts).tolist()
    ]
