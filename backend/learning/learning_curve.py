"""Where accuracy goes with more labels: a power law fitted to what was measured so far, and what follows from it.

Error falls with the number of labels n like `floor + b·n^-c`: seen across tasks and learners (Cortes et al. 1993,
*Learning curves: asymptotic values and rate of convergence*; Hestness et al. 2017, https://arxiv.org/abs/1712.00409),
and the family to extrapolate with (Viering & Loog 2021, https://arxiv.org/abs/2103.10948, who also say how often
extrapolation fails). Three numbers cannot be had from a dozen noisy measurements, so none is picked: every curve of a
grid is weighed by how well it explains them, and what is reported are quantiles over all curves.

A real curve is no exact power law. How it went so far tells only roughly how fast it goes on, so from today on the
exponent of each curve is taken times a factor, log-normal around 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import solve_triangular
from scipy.special import chdtri, ndtri

from backend.learning.intervals import wilson_interval

Floats = NDArray[np.float64]
Verdict = Literal["target_reached", "little_gain", "go_on", "unknown"]

MIN_LABELS = 10
"""Measurements with fewer labels are left out: there accuracy depends on which classes were met, no power law."""

SPAN = 8.0
"""Measurements with fewer than a so-manieth of today's labels are left out: a power law is how a curve *ends*."""

BIN_RATIO = 1.2
"""Measurements whose numbers of labels differ by less than this factor are averaged into one."""

MIN_BINS = 4
"""Averaged measurements needed: three numbers are fitted."""

MIN_SPREAD = 2.0
"""The labels must have grown by this factor between first and last: over less, any curve is a straight line."""

MAX_FACTOR = 10.0
"""Labels needed are told up to this multiple of today's; past it the curve's shape is a guess."""

LITTLE_GAIN = 0.005
"""Expected gain, in accuracy, below which another window of labels is not worth its work: half a percentage point."""

MAX_CHANCE_GAIN = 0.02
"""The gain that must be improbable (one in ten) for that advice: two percentage points."""

SHARED = 0.75
"""Share of a measurement's variance that is common to neighbouring measurements; the rest is each one's own."""

MODEL_ERROR = 0.01
"""Standard deviation of real learning curves around the best power law, in accuracy, beside what chance explains."""

PACE_SPREAD = 0.8
"""Standard deviation of the logarithm of the factor by which a curve's pace may differ from today on: in two of three
cases it is between 0.45 and 2.2.

Chosen on three sets of images, with the prior on floors, so that the 80 % intervals from a measured accuracy held the
later one in eight of ten runs or more on each, with a learner that did not minimise entropies. With the present one it
is six to ten of ten (docs/accuracy.md has the table).
"""

CONFIDENCE_ERROR = 0.03
"""Standard deviation of mean confidence around accuracy, its `shared_error`; measured on the same sets and with the
same learner as `PACE_SPREAD`."""

SET_CONFIDENCE_ERROR = 0.08
"""The same of the mean confidence that a whole set of labels is right: probabilities of labels are multiplied as if
they came independently of each other. Measured on pairs of photos, 20 to 120 labels; see docs/several-labels.md."""

INTERVAL = (0.1, 0.9)
"""Quantiles of the curves' answers that are reported as interval: eight of ten."""

_MISFIT = 1e-4  # measurements this improbable under the best of all curves follow none of them
_FLOOR_SHARES = (np.arange(20) + 0.5) / 20  # floor of the error, as a share of today's error; 1: it stays as it is
_EXPONENTS = np.linspace(0.1, 2.0, 20)  # c; below 0.1 a curve cannot be told from a higher floor
_N_LEVELS = 33  # values of today's error
_PACES = np.exp(PACE_SPREAD * ndtri([0.1, 0.3, 0.5, 0.7, 0.9]))  # the middles of five equally likely parts
_NEGLIGIBLE = 1e-5  # curves with less than this share of the greatest weight are dropped before paces multiply them


def confidence_error(*, of_sets: bool) -> float:
    """How far mean confidence is off accuracy (standard deviation), of one label per image or of sets of them."""
    return SET_CONFIDENCE_ERROR if of_sets else CONFIDENCE_ERROR


@dataclass(frozen=True)
class Forecast:
    """What the curve says; None where it says nothing, and then `reason` says why.

    labels_needed: more labels until the target, the median of all curves; 0 when it is reached.
    labels_needed_interval: from the 10 % to the 90 % quantile; its end is None where so many curves never get there.
    expected_gain: accuracy gained by the next `horizon` labels, 0..1, the median of all curves.
    gain_at_most: the 90 % quantile of that.
    verdict: `target_reached` or `little_gain` (stop), `go_on`, or `unknown`; `suggestion` is the same as a sentence.
    """

    target: float
    horizon: int
    labels_needed: int | None
    labels_needed_interval: tuple[int, int | None] | None
    reason: str | None
    expected_gain: float | None
    gain_at_most: float | None
    verdict: Verdict
    suggestion: str


@dataclass(frozen=True)
class Curves:
    """Error curves from today on, `floor + (today - floor)·(n / n_today)^-c`, with their weights, all (G,).

    Weights sum to 1.
    """

    n_today: float
    today: Floats  # error with n_today labels, 0..1
    floor_share: Floats  # floor / today
    exponent: Floats  # c
    weight: Floats

    def accuracy(self, n: float) -> Floats:
        """Accuracy (G,) of every curve with n labels."""
        decay = (n / self.n_today) ** -self.exponent
        return 1 - self.today * (self.floor_share + (1 - self.floor_share) * decay)

    def labels_for(self, target: float) -> Floats:
        """Labels (G,) with which every curve has this accuracy; infinite where it never does."""
        with np.errstate(divide="ignore", invalid="ignore"):
            left = ((1 - target) / self.today - self.floor_share) / (1 - self.floor_share)
            n = self.n_today * np.where(left > 0, left, np.nan) ** (-1 / self.exponent)
        n[np.isnan(n) | (n > 1e12)] = np.inf
        return np.where(self.today <= 1 - target, np.minimum(n, self.n_today), n)

    def quantile(self, answers: Floats, share: float) -> float:
        """The answer (of (G,), one per curve) that curves of this share of the weight do not exceed."""
        order = np.argsort(answers)
        position = int(np.searchsorted(np.cumsum(self.weight[order]), share * (1 - 1e-12)))
        return float(answers[order[min(position, len(order) - 1)]])


def forecast(
    n_labels: ArrayLike,
    accuracies: ArrayLike,
    n_evaluated: ArrayLike,
    *,
    target: float,
    horizon: int,
    n_unlabeled: int | None = None,
    shared_error: float = 0.0,
) -> Forecast:
    """Labels needed for `target` and whether to go on, from measurements in any order; the last by labels is today's.

    `n_labels`, `accuracies` (0..1) and `n_evaluated` (images each was measured on, for its binomial variance) are (M,);
    `horizon` is how many labels come next, for the expected gain; `n_unlabeled` how many images are left, if known.
    `shared_error` is the standard deviation, in accuracy, by which all of them may be off together: above 0 they are an
    estimate, and called so. Deterministic; about ten milliseconds. Raises ValueError for unequal lengths or numbers out
    of range.
    """
    labels, shares, counts = _checked(n_labels, accuracies, n_evaluated)
    if not (0 < target < 1 and horizon >= 1 and 0 <= shared_error < 1):
        raise ValueError(
            f"got target {target}, horizon {horizon} and shared error {shared_error}; expected 0 < target < 1, "
            "horizon >= 1 and 0 <= shared error < 1"
        )
    if len(labels) and (low := _lower_bound(shares[-1], counts[-1], shared_error)) >= target:
        text = f"Stop: the target of {target:.1%} is reached, the accuracy is at least {low:.1%} (95 % confidence)."
        return Forecast(target, horizon, 0, (0, 0), None, None, None, "target_reached", text)
    curves = fit_curves(labels, shares, counts, shared_error=shared_error)
    if isinstance(curves, str):
        return Forecast(target, horizon, None, None, curves, None, None, "unknown", f"Unknown yet: {curves}.")

    needed, interval, reason = _labels_needed(curves, target, n_unlabeled)
    gains = curves.accuracy(curves.n_today + horizon) - curves.accuracy(curves.n_today)
    gain, gain_at_most = (curves.quantile(gains, share) for share in (0.5, INTERVAL[1]))
    points = f"{gain * 100:.1f} percentage points, hardly more than {gain_at_most * 100:.1f}"
    told = f"{_more_labels(horizon)} {'is' if horizon == 1 else 'are'} expected to gain {points}"
    aim = f"an estimated {target:.1%}" if shared_error else f"{target:.1%}"
    if gain < LITTLE_GAIN and gain_at_most < MAX_CHANCE_GAIN:
        text = f"Stop, unless every tenth of a point counts: {told}."
        if needed is None:
            text += f" More labels alone hardly lead to {aim}: look at the suspected labels, or try another backbone."
        return Forecast(target, horizon, needed, interval, reason, gain, gain_at_most, "little_gain", text)
    if needed is None or interval is None:
        text = f"Go on: {told}; labels needed for {aim} are unknown, for {reason}."
    elif needed == 0:
        doubt = _confirmable(counts[-1], target, shared_error)
        which = "estimated accuracy" if shared_error else "accuracy"
        text = f"Go on a little: the {which} is about {target:.1%}, but may still lie below it{doubt}."
    else:
        text = f"Go on: about {_more_labels(needed)} to {aim} ({_in_words(interval)}); {told}."
    return Forecast(target, horizon, needed, interval, reason, gain, gain_at_most, "go_on", text)


def fit_curves(
    n_labels: ArrayLike, accuracies: ArrayLike, n_evaluated: ArrayLike, *, shared_error: float = 0.0
) -> Curves | str:
    """The curves and how likely each is; a reason in words when the measurements allow none.

    Measurements of one project are not independent: they share images and labels. Those with n < m labels are taken
    to be correlated by √(n/m), as means over samples of which one contains the other are; the more there are, the
    better the *shape* of the curve is known, while its level stays as uncertain as one measurement is. `shared_error`
    (standard deviation, in accuracy) is common to all of them.
    """
    labels, shares, counts = _checked(n_labels, accuracies, n_evaluated)
    recent = labels >= max(MIN_LABELS, labels[-1] / SPAN) if len(labels) else np.zeros(0, dtype=bool)
    labels, shares, counts = _binned(labels[recent], shares[recent], counts[recent])
    if len(labels) < MIN_BINS or labels[-1] < MIN_SPREAD * labels[0]:
        return _too_short(labels)
    # Agresti & Coull's share: a measurement of 0 or 1 has a variance too.
    smoothed = (shares * counts + 2) / (counts + 4)
    spread = np.sqrt(smoothed * (1 - smoothed) / counts + MODEL_ERROR**2)  # (K,)
    correlation = np.sqrt(np.minimum.outer(labels, labels) / np.maximum.outer(labels, labels))
    correlation = SHARED * correlation + (1 - SHARED) * np.eye(len(labels))
    covariance = correlation * np.outer(spread, spread) + shared_error**2
    root = np.linalg.cholesky(covariance)
    # Curves pass today's error somewhere within four standard deviations.
    middle, reach = 1 - smoothed[-1], 4 * np.sqrt(covariance[-1, -1])
    today = np.linspace(max(middle - reach, 1e-4), min(middle + reach, 1.0), _N_LEVELS)
    grid = np.meshgrid(today, _FLOOR_SHARES, _EXPONENTS, indexing="ij")
    levels, floors, exponents = (axis.ravel() for axis in grid)  # (G,) each
    decay = (labels[:, None] / labels[-1]) ** -_EXPONENTS  # (K, exponents)
    shape = _FLOOR_SHARES[:, None] + (1 - _FLOOR_SHARES[:, None]) * decay[:, None, :]  # (K, floors, exponents)
    expected = 1 - today[None, :, None, None] * shape[:, None]  # (K, today, floors, exponents)
    residuals = solve_triangular(root, (shares[:, None] - expected.reshape(len(labels), -1)), lower=True)
    misfit = np.sum(residuals**2, axis=0)
    if misfit.min() > chdtri(len(labels), _MISFIT):
        return "the measurements follow no learning curve: accuracy fell or jumped more than chance explains"
    # Before anything is measured a floor is the likelier the lower it is: at today's error it says "no gain, ever".
    weight = (1 - floors) ** 2 * np.exp(-(misfit - misfit.min()) / 2)
    kept = np.flatnonzero(weight > _NEGLIGIBLE * weight.max())
    paced = np.outer(exponents[kept], _PACES).ravel()
    kept = np.repeat(kept, len(_PACES))
    return Curves(float(labels[-1]), levels[kept], floors[kept], paced, weight[kept] / weight[kept].sum())


def _too_short(labels: Floats) -> str:
    """Why the averaged measurements at these numbers of labels (K,) are no curve yet, and from when on they are."""
    first = round(float(labels[0])) if len(labels) else MIN_LABELS
    if len(labels) and labels[-1] >= MIN_SPREAD * first:
        return f"accuracy was measured at {len(labels)} numbers of labels, and a curve takes {MIN_BINS} well apart"
    return (
        f"the learning curve starts at {first:.0f} labels and says more from about {np.ceil(MIN_SPREAD * first):.0f} on"
    )


def _more_labels(n: int) -> str:
    return f"{n} more label" + ("" if n == 1 else "s")


def _in_words(interval: tuple[int, int | None]) -> str:
    """An interval of labels needed, for a sentence."""
    low, high = interval
    least = f"at least {low}" if low else "perhaps none"
    if high is None:
        return f"{least}, perhaps far more"
    return f"{low} to {high}" if low else f"{least}, {high} at most"


def _confirmable(n_evaluated: float, target: float, shared_error: float) -> str:
    """What it takes to tell whether an accuracy about the target is above it, as part of a sentence."""
    if shared_error:
        return "; a validation split would tell"
    # All n right, the lower end of Wilson's interval is n / (n + z²): the target with z²·t / (1 - t) images.
    fewest = int(np.ceil(float(ndtri(0.975)) ** 2 * target / (1 - target)))
    if n_evaluated < fewest:
        return f"; {n_evaluated:.0f} validation tasks cannot tell, that takes {fewest} at least, even if all were right"
    return f"; more validation tasks than {n_evaluated:.0f} would tell"


def _labels_needed(
    curves: Curves, target: float, n_unlabeled: int | None
) -> tuple[int | None, tuple[int, int | None] | None, str | None]:
    """More labels needed, their interval, and the reason when that cannot be told."""
    further = np.maximum(curves.labels_for(target) - curves.n_today, 0.0)
    farthest = curves.n_today * (MAX_FACTOR - 1)
    low, middle, high = (curves.quantile(further, share) for share in (INTERVAL[0], 0.5, INTERVAL[1]))
    if middle > farthest:
        least = f"; fewer than {round(low)} are unlikely" if 1 <= low <= farthest else ""
        far = f"more than {round(farthest)} may be, too far to extrapolate, or it is never reached"
        return None, None, far + least
    if n_unlabeled is not None and middle > n_unlabeled:
        return None, None, f"about {round(middle)} would be needed and only {n_unlabeled} images are left"
    return round(middle), (round(low), round(high) if high <= farthest else None), None


def _lower_bound(accuracy: float, n_evaluated: float, shared_error: float) -> float:
    """Lower end of the 95 % interval: Wilson's, made wider by the error that all measurements share."""
    n = int(n_evaluated)
    sampling = accuracy - wilson_interval(round(accuracy * n), n)[0]
    return float(accuracy - np.hypot(sampling, ndtri(0.975) * shared_error))


def _binned(labels: Floats, shares: Floats, counts: Floats) -> tuple[Floats, Floats, Floats]:
    """Measurements averaged over neighbours in log n; counts are those of one measurement, as neighbours share images.

    Bins are laid out from the last measurement down, so that today's is always in a full one.
    """
    if not len(labels):
        return labels, shares, counts
    bins = np.floor(np.log(labels[-1] / labels) / np.log(BIN_RATIO)).astype(np.intp)
    found = np.unique(bins)[::-1]
    averaged = [
        [np.exp(np.log(labels[bins == bin_]).mean()), shares[bins == bin_].mean(), counts[bins == bin_].mean()]
        for bin_ in found
    ]
    columns = np.array(averaged).T
    return columns[0], columns[1], columns[2]


def _checked(n_labels: ArrayLike, accuracies: ArrayLike, n_evaluated: ArrayLike) -> tuple[Floats, Floats, Floats]:
    """The three as floats (M,), ascending in labels."""
    columns = [np.asarray(values, dtype=np.float64) for values in (n_labels, accuracies, n_evaluated)]
    if any(column.ndim != 1 or len(column) != len(columns[0]) for column in columns):
        raise ValueError(f"got shapes {[column.shape for column in columns]}; expected three of one length")
    labels, shares, counts = columns
    sound = (labels >= 1) & (shares >= 0) & (shares <= 1) & (counts >= 1)  # false for NaN
    if not sound.all():
        raise ValueError("expected labels and images of at least 1 and accuracies in 0..1; some are not")
    order = np.argsort(labels, kind="stable")
    return labels[order], shares[order], counts[order]
