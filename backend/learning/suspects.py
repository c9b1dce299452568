"""Suspected label errors: labels that a head which never saw them holds nearly impossible.

The idea is confident learning's: judge each label by predictions out of its own fold (Northcutt, Jiang & Chuang 2021,
https://arxiv.org/abs/1911.00068). Its rule is not: it takes a label for wrong where another class reaches that class's
mean confidence, which presumes a random sample. Labels chosen by active learning are hard ones, on which that mean is
low: with no label wrong it accused 24 of 60 clothing photos and 9 of 60 weather photos (docs/accuracy.md has the
table). What ranked wrong labels first in every case measured is the plain probability of the given label, and few are
accused falsely if that must lie far below a guess among all classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

BELOW_CHANCE = 0.2
"""A label is suspected when its probability is below this share of 1/C, a guess's: with two classes below 0.1."""


@dataclass(frozen=True)
class Suspect:
    """One label that is likely wrong."""

    row: int  # into the arrays given to `find_suspects`
    suggested: int  # the likeliest class, a column of the probabilities; of a set the label that is likely wrong of it
    probability: float  # of the label given, 0..1; of a set that it has, or has not, the one in question
    suggested_probability: float  # of the class suggested, 0..1; of a set the rest


def find_suspects(probabilities: ArrayLike, given: ArrayLike) -> list[Suspect]:
    """The rows whose label is suspected, the least likely label first.

    `probabilities` (N, C) must come from heads that were not trained on the row; rows of NaN, never held out, are not
    judged. `given` (N,) is the column of each row's label, -1 for a class that is no column: not judged either, for
    that a class is new is no error. Raises ValueError for other shapes or columns out of range.
    """
    p = np.asarray(probabilities, dtype=np.float64)
    columns = np.asarray(given)
    if p.ndim != 2 or p.shape[1] < 1 or columns.shape != (len(p),):
        raise ValueError(f"got probabilities {p.shape} and labels {columns.shape}; expected (N, C) and (N,)")
    if len(columns) and not (columns.min() >= -1 and columns.max() < p.shape[1]):
        raise ValueError(f"labels are columns of the probabilities, -1 to {p.shape[1] - 1}; some are not")
    judged = np.flatnonzero((columns >= 0) & ~np.isnan(p).any(axis=1))
    own = p[judged, columns[judged]]
    order = np.argsort(own, kind="stable")
    rows = judged[order][own[order] < BELOW_CHANCE / p.shape[1]]
    return [Suspect(int(row), int(p[row].argmax()), float(p[row, columns[row]]), float(p[row].max())) for row in rows]


def find_set_suspects(probabilities: ArrayLike, given: ArrayLike) -> list[Suspect]:
    """As `find_suspects` where images may have several labels: each is judged by itself, as one of two classes.

    `given` (N, C) says which labels each image was given. Of an image the least likely of these answers is told.
    """
    p, has = np.asarray(probabilities, dtype=np.float64), np.asarray(given, dtype=bool)
    if p.ndim != 2 or p.shape[1] < 1 or has.shape != p.shape:
        raise ValueError(f"got probabilities {p.shape} and labels {has.shape}; expected both (N, C)")
    judged = np.flatnonzero(~np.isnan(p).any(axis=1))
    answers = np.where(has, p, 1 - p)[judged]
    doubted = answers.argmin(axis=1)
    own = answers[np.arange(len(judged)), doubted]
    order = np.argsort(own, kind="stable")
    order = order[own[order] < BELOW_CHANCE / 2]
    return [Suspect(int(judged[at]), int(doubted[at]), float(own[at]), float(1 - own[at])) for at in order.tolist()]
