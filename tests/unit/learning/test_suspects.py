"""Suspected labels: four rows whose answer a reader derives, what is not judged, and flipped labels found."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import ArrayLike

from backend.learning.head import CrossValidation, fit_and_evaluate
from backend.learning.pool import Pool
from backend.learning.suspects import BELOW_CHANCE, Suspect, find_suspects

FOUR = [[0.97, 0.03], [0.05, 0.95], [0.4, 0.6], [0.02, 0.98]]


def test_labels_far_below_a_guess_are_listed_the_least_likely_first() -> None:
    """Two classes: below 0.1. Rows 1 and 3 say class 0 at 0.05 and 0.02; row 2 is doubtful (0.4), not suspected."""
    assert find_suspects(FOUR, [0, 0, 0, 0]) == [Suspect(3, 1, 0.02, 0.98), Suspect(1, 1, 0.05, 0.95)]


def test_the_threshold_goes_with_the_number_of_classes() -> None:
    """0.03 is far below a guess among two or four classes (0.1, 0.05), but not among ten (0.02)."""
    for n_classes, suspected in ((2, True), (4, True), (10, False)):
        row = np.full(n_classes, 0.97 / (n_classes - 1))
        row[0] = 0.03
        assert (BELOW_CHANCE / n_classes > 0.03) is suspected
        assert bool(find_suspects([row], [0])) is suspected


def test_rows_never_held_out_and_unknown_classes_are_not_judged() -> None:
    """NaN: the only one of its class. -1: a class the head does not know."""
    assert find_suspects([[np.nan, np.nan], [0.01, 0.99], [0.01, 0.99]], [0, -1, 1]) == []


def test_nothing_is_nothing() -> None:
    """No labels, no suspects."""
    assert find_suspects(np.empty((0, 3)), np.empty(0, dtype=int)) == []


@pytest.mark.parametrize(
    ("probabilities", "given"), [([0.5, 0.5], [0]), (FOUR, [0]), (FOUR, [0, 0, 0, 2]), (FOUR, [0, 0, 0, -2])]
)
def test_what_does_not_fit_is_refused(probabilities: ArrayLike, given: ArrayLike) -> None:
    """One axis, too few labels, columns that are none."""
    with pytest.raises(ValueError, match=r"expected|are not"):
        find_suspects(probabilities, given)


def blobs(n: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points (N, 16) around four directions, and which."""
    random = np.random.default_rng(seed)
    classes = random.integers(4, size=n)
    return np.eye(4, 16)[classes] + spread * random.normal(size=(n, 16)), classes


def evaluated(embeddings: np.ndarray, classes: np.ndarray) -> CrossValidation | None:
    """The cross-validation of a head on all of these images."""
    labels = [str(label) for label in classes]
    return fit_and_evaluate(Pool(embeddings), np.arange(len(labels)), labels, random_state=0).evaluation


@pytest.mark.parametrize("seed", range(5))
def test_flipped_labels_are_found_and_right_ones_left_alone(seed: int) -> None:
    """200 labels of well separated classes, 10 flipped: nearly all found, at most one accused falsely."""
    embeddings, classes = blobs(200, 0.15, seed)
    random = np.random.default_rng(seed)
    flipped = random.choice(200, 10, replace=False)
    given = classes.copy()
    given[flipped] = (given[flipped] + random.integers(1, 4, size=10)) % 4
    evaluation = evaluated(embeddings, given)
    assert evaluation is not None
    found = find_suspects(evaluation.probabilities, given)
    right = {suspect.row for suspect in found} & set(flipped.tolist())
    assert len(right) >= 8
    assert len(found) - len(right) <= 1
    assert all(suspect.suggested == classes[suspect.row] for suspect in found if suspect.row in right)


def test_hard_labels_are_no_suspects() -> None:
    """60 labels of classes that overlap much, as active learning chooses them: fewer than one in ten is accused.

    Confident learning's rule, another class at its own mean confidence, accuses far more of the same.
    """
    embeddings, classes = blobs(60, 1.0, 0)
    evaluation = evaluated(embeddings, classes)
    assert evaluation is not None
    p = evaluation.probabilities
    means = np.array([p[classes == column, column].mean() for column in range(4)])
    likeliest_above = np.where(p >= means, p, -1).argmax(axis=1)
    by_confident_learning = np.sum((p >= means).any(axis=1) & (likeliest_above != classes))
    assert len(find_suspects(p, classes)) < 6
    assert by_confident_learning > 2 * max(len(find_suspects(p, classes)), 3)
