"""Confusion: which classes are taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

MOST_CLASSES = 30
"""Classes of a confusion matrix; the others are counted together, for a larger one nobody can read."""

OTHERS = "others"
"""The row and column of all classes beyond these; with a class of that name, one more in brackets."""


@dataclass(frozen=True)
class Confusion:
    """counts[row][column]: how many images with the label of the row were predicted to be that of the column."""

    labels: Sequence[str]
    counts: Sequence[Sequence[int]]


def confusion_matrix(given: Sequence[str], predicted: Sequence[str], *, most: int = MOST_CLASSES) -> Confusion:
    """The confusion matrix of N images by their labels and their predictions, both (N,).

    Classes are in alphabetical order. Of more than `most` those with most labels (then predictions) have a row and a
    column of their own, and all others share the last.
    """
    by_given, by_predicted = Counter(given), Counter(predicted)
    names = sorted({*given, *predicted}, key=lambda name: (-by_given[name], -by_predicted[name], name))
    kept = sorted(names[:most])
    place = {name: number for number, name in enumerate(kept)}
    labels = list(kept)
    if len(names) > most:
        labels.append(OTHERS if OTHERS not in place else f"({OTHERS})")
    counts = np.zeros((len(labels), len(labels)), dtype=np.intp)
    for label, guess in zip(given, predicted, strict=True):
        counts[place.get(label, len(kept)), place.get(guess, len(kept))] += 1
    return Confusion(labels, counts.tolist())
