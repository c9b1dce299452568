"""Sets of labels: images that may have several labels at once, or none.

Each label is a question of its own, has it or has it not, with a probability of its own; those of an image do not sum
to 1. A set is *right* when all of it is: nothing would have to be corrected. Functions that take a threshold treat
images of one class each as well, for which it is None, so that what judges predictions need not know which they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.labels import Label, names_of, text_of

Floats = NDArray[np.float64]

DEFAULT_THRESHOLD = 0.5
"""The probability from which a label is predicted, where cross-validation does not say otherwise."""

THRESHOLDS = (0.5, 0.45, 0.55, 0.4, 0.6, 0.35, 0.65, 0.3, 0.7)
"""Those tried, of which the first with the most right sets is taken."""


def named_classes(labels: Sequence[Label]) -> tuple[str, ...]:
    """All classes that some label names, sorted."""
    return tuple(sorted({name for label in labels for name in names_of(label)}))


def can_be_told_apart(labels: Sequence[Label]) -> bool:
    """Whether the labels differ, so that something can be learned: two classes, or two different sets."""
    return len(set(labels)) >= 2


def strata(labels: Sequence[Label], least: int) -> list[str]:
    """The groups (N,) of which equal shares are set aside: the class; of a set the whole of it, or where fewer than
    `least` images have that set, the rarest of its labels with others.
    """
    n_equal = Counter(labels)
    n_having = Counter(name for label in labels for name in names_of(label))

    def stratum(label: Label) -> str:
        if isinstance(label, str) or not label or n_equal[label] >= least:
            return text_of(label)
        return f"{min(label, key=lambda name: (n_having[name], name))} and others"

    return list(map(stratum, labels))


def membership(classes: Sequence[str], labels: Sequence[Label]) -> NDArray[np.bool_]:
    """Which of the classes (N, C) each label has; classes that are not among them are left out."""
    column = {name: number for number, name in enumerate(classes)}
    has = np.zeros((len(labels), len(classes)), dtype=bool)
    for row, label in enumerate(labels):
        for name in names_of(label):
            if name in column:
                has[row, column[name]] = True
    return has


def predicted(classes: Sequence[str], probabilities: Floats, threshold: float | None) -> list[Label]:
    """What images with these probabilities (N, C) are taken for: the likeliest class, or all from `threshold` on."""
    if threshold is None:
        return [classes[column] for column in probabilities.argmax(axis=1).tolist()]
    return [
        tuple(name for name, is_in in zip(classes, row, strict=True) if is_in)
        for row in (probabilities >= threshold).tolist()
    ]


def share_right(found: Sequence[Label], truth: Sequence[Label]) -> float:
    """Share (0..1) of the predictions that are the label; of a set all of it must be right."""
    return float(np.mean([one == other for one, other in zip(found, truth, strict=True)]))


def confidence(probabilities: Floats, threshold: float | None) -> Floats:
    """How likely (N,) what is predicted is right altogether, 0..1, of probabilities (N, C).

    Of a set, the product of what speaks for each of its labels and against each other one.
    """
    if threshold is None:
        top: Floats = probabilities.max(axis=1)
        return top
    whole: Floats = np.where(probabilities >= threshold, probabilities, 1 - probabilities).prod(axis=1)
    return whole


def likeliest_sets(classes: Sequence[str], probabilities: Floats, most: int) -> list[Label]:
    """Up to `most` sets of an image with these probabilities (C,), the likeliest first, then those one label away from
    it, where the odds are most even.
    """
    best = probabilities >= 0.5
    found = [best]
    for column in np.argsort(np.abs(probabilities - 0.5), kind="stable")[: most - 1].tolist():
        other = best.copy()
        other[column] = not other[column]
        found.append(other)
    return [tuple(name for name, is_in in zip(classes, row.tolist(), strict=True) if is_in) for row in found]


def choose_threshold(probabilities: Floats, has: NDArray[np.bool_]) -> float:
    """The one of `THRESHOLDS` at which most sets are right, of held-out probabilities (N, C) and labels (N, C)."""
    n_right = [int(((probabilities >= threshold) == has).all(axis=1).sum()) for threshold in THRESHOLDS]
    return THRESHOLDS[int(np.argmax(n_right))]


@dataclass(frozen=True, eq=False)
class SetFigures:
    """How good predicted sets are; arrays are (C,), a number for each label, NaN where nothing can be said.

    accuracy: share of the images of which it is right whether they have the label.
    f1: harmonic mean of precision and recall; NaN where no image has the label and none is predicted to.
    average_precision: the mean, over the images that have it, of the precision among all that are as likely or likelier
        to have it; NaN where no image has it.
    """

    n_images: int
    exact_match: float  # share of the images all of whose labels are right
    n_having: NDArray[np.intp]
    accuracy: Floats
    f1: Floats
    average_precision: Floats

    @property
    def label_accuracy(self) -> float:
        """The mean accuracy over the labels."""
        return float(self.accuracy.mean())

    @property
    def macro_f1(self) -> float:
        """The mean F1 over the labels that some image has or is predicted to have; NaN without any."""
        return _mean(self.f1)

    @property
    def mean_average_precision(self) -> float:
        """The mean over the labels that some image has; NaN without any."""
        return _mean(self.average_precision)


def set_figures(probabilities: Floats, has: NDArray[np.bool_], threshold: float) -> SetFigures:
    """The figures of probabilities (N, C) and labels (N, C), N >= 1."""
    guess = probabilities >= threshold
    n_right = (guess & has).sum(axis=0)
    either = guess.sum(axis=0) + has.sum(axis=0)
    return SetFigures(
        n_images=len(has),
        exact_match=float((guess == has).all(axis=1).mean()),
        n_having=has.sum(axis=0),
        accuracy=(guess == has).mean(axis=0),
        f1=np.divide(2 * n_right, either, out=np.full(len(either), np.nan), where=either > 0),
        average_precision=np.array([_average_precision(p, own) for p, own in zip(probabilities.T, has.T, strict=True)]),
    )


def _average_precision(probabilities: Floats, has: NDArray[np.bool_]) -> float:
    """Of one label, (N,); images that are equally likely count together, as scikit-learn has it."""
    own = probabilities[has]
    if not len(own):
        return float("nan")
    ascending, own_ascending = np.sort(probabilities), np.sort(own)
    n_as_likely = len(probabilities) - np.searchsorted(ascending, own, side="left")
    n_right = len(own) - np.searchsorted(own_ascending, own, side="left")
    return float(np.mean(n_right / n_as_likely))


def _mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
