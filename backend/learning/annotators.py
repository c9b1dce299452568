"""Several annotators: how far they agree, and how much the label they come to is to be trusted.

Arrays in, arrays out: an answer is a task, an annotator and a class, all numbered from 0.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

N_STEPS = 30
"""Steps of expectation maximization: on a thousand tasks no probability moves by more than 0.001 after them."""

PRIOR_RIGHT, PRIOR_WRONG = 8.0, 2.0
"""Answers that an annotator is taken to have given beforehand, right and wrong: nobody is known by a few answers."""


LEAST_WEIGHT = 0.05
"""What a label weighs of which nothing speaks for its being right: its class should not be forgotten altogether."""


def label_weights(probabilities: Floats) -> Floats:
    """How much labels count that are right with these probabilities: 2p - 1, how much likelier right than wrong.

    And `LEAST_WEIGHT` at least. Weighing by p itself leaves a label that half of the people contradict half of its
    weight, and loses up to three points of accuracy; docs/accuracy.md has the figures.
    """
    return np.maximum(2 * probabilities - 1, LEAST_WEIGHT)


def krippendorff_alpha(counts: NDArray[np.integer]) -> float | None:
    """Krippendorff's alpha for nominal answers: 1 is perfect agreement, 0 what chance gives.

    `counts` (T, C): how many annotators gave task t class c; tasks with fewer than two answers are left out. 1 minus
    observed over expected disagreement (Krippendorff 2011, *Computing Krippendorff's alpha-reliability*). None when no
    task has two answers, or all answers are one class: then nothing could have disagreed.
    """
    several = counts[counts.sum(axis=1) >= 2].astype(np.float64)
    totals = several.sum(axis=0)  # (C,)
    n = totals.sum()
    if n == 0 or np.count_nonzero(totals) < 2:
        return None
    answers = several.sum(axis=1)
    observed = float(((answers**2 - (several**2).sum(axis=1)) / (answers - 1)).sum() / n)
    expected = float((n**2 - (totals**2).sum()) / (n * (n - 1)))
    return 1 - observed / expected


def pairwise_agreement(counts: NDArray[np.integer]) -> Floats:
    """The share of the pairs of answers to each task that agree, (T,) in 0..1; NaN with fewer than two answers."""
    answers = counts.sum(axis=1).astype(np.float64)
    same = (counts * (counts - 1)).sum(axis=1)
    pairs = answers * (answers - 1)
    agreeing: Floats = np.divide(same, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)
    return agreeing


def label_probabilities(
    tasks: Indices, annotators: Indices, classes: Indices, n_classes: int, truths: Indices | None = None
) -> tuple[Floats, Floats]:
    """How probable each class is to be the right one of each task (T, C), and how often each annotator is right (A,).

    The answers (N,) are explained by one accuracy per annotator, errors falling on all other classes alike: the
    one-coin model of Dawid & Skene 1979 (*Maximum likelihood estimation of observer error-rates using the EM
    algorithm*, https://doi.org/10.2307/2346806), fitted by expectation maximization from the share of each class.
    Annotators are numbered 0..A-1, tasks 0..T-1, each with an answer. `truths` (T,) is the class of tasks where it is
    known, -1 elsewhere. Cost: `N_STEPS` passes over the answers.
    """
    n_tasks, n_annotators = int(tasks.max()) + 1, int(annotators.max()) + 1
    cells = tasks * n_classes + classes  # of each answer in a (T, C) array
    known = np.flatnonzero(truths >= 0) if truths is not None else np.empty(0, dtype=np.intp)
    one_hot = np.eye(n_classes)[truths[known]] if truths is not None else np.empty((0, n_classes))
    shares = np.bincount(cells, minlength=n_tasks * n_classes).reshape(n_tasks, n_classes)
    probabilities: Floats = shares / shares.sum(axis=1, keepdims=True)
    n_answers = np.bincount(annotators, minlength=n_annotators)
    for _ in range(N_STEPS):
        probabilities[known] = one_hot
        right = np.bincount(annotators, weights=probabilities.ravel()[cells], minlength=n_annotators)
        accuracies = (right + PRIOR_RIGHT) / (n_answers + PRIOR_RIGHT + PRIOR_WRONG)
        # An answer multiplies the odds of its class against each other one.
        gains = np.log(accuracies * (n_classes - 1) / (1 - accuracies))
        logs = np.bincount(cells, weights=gains[annotators], minlength=n_tasks * n_classes).reshape(n_tasks, n_classes)
        probabilities = np.exp(logs - logs.max(axis=1, keepdims=True))
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    probabilities[known] = one_hot
    return probabilities, accuracies
