"""Agreement figures against published examples, and who is believed when people disagree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.learning.annotators import krippendorff_alpha, label_probabilities, label_weights, pairwise_agreement


def counts_of(answers: list[str], n_classes: int) -> np.ndarray:
    """(T, C) of observers' answers, one text each: digits from 1 on, a dot where there is none."""
    counts = np.zeros((len(answers[0]), n_classes), dtype=np.intp)
    for observer in answers:
        for task, digit in enumerate(observer):
            if digit != ".":
                counts[task, int(digit) - 1] += 1
    return counts


@pytest.mark.parametrize(
    ("answers", "n_classes", "alpha"),
    [
        (["1211111121", "2221121111"], 2, 0.095),
        (
            ["123321412...", "1233224125.3", ".3332342251.", "12332441251."],
            5,
            0.743,
        ),
    ],
)
def test_alpha_of_krippendorff_s_own_examples(answers: list[str], n_classes: int, alpha: float) -> None:
    """Sections A and C of Krippendorff 2011, Computing Krippendorff's alpha-reliability."""
    assert krippendorff_alpha(counts_of(answers, n_classes)) == pytest.approx(alpha, abs=0.0006)


def test_alpha_is_1_for_agreement_and_below_0_for_contradiction() -> None:
    """Two people, two classes: always the same; never the same, which is worse than chance."""
    assert krippendorff_alpha(np.array([[2, 0], [0, 2]])) == 1.0
    # Four tasks, one answer of each class: observed 1, expected (8² - 2·4²) / (8·7) = 32/56, so 1 - 56/32 = -0.75.
    assert krippendorff_alpha(np.array([[1, 1]] * 4)) == pytest.approx(-0.75)


@pytest.mark.parametrize("counts", [np.zeros((0, 2)), [[1, 0], [0, 1]], [[2, 0], [3, 0]]])
def test_alpha_is_unknown_where_nothing_could_disagree(counts: list[list[int]]) -> None:
    """No task, one answer each, or one class throughout."""
    assert krippendorff_alpha(np.asarray(counts, dtype=np.intp).reshape(-1, 2)) is None


def test_pairwise_agreement_counts_pairs() -> None:
    """Three alike: 3 of 3 pairs; two and one: 1 of 3; one and one: none; one alone: unknown."""
    np.testing.assert_allclose(
        pairwise_agreement(np.array([[3, 0], [2, 1], [1, 1], [1, 0]])), [1, 1 / 3, 0, np.nan], equal_nan=True
    )


def probabilities_of(
    answers: list[tuple[int, int, int]], n_classes: int = 2, truths: list[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Of (task, annotator, class) triples."""
    tasks, annotators, classes = (np.array(column) for column in zip(*answers, strict=True))
    return label_probabilities(tasks, annotators, classes, n_classes, np.array(truths) if truths is not None else None)


def test_of_equals_the_majority_is_likelier_and_unanimity_surer() -> None:
    """Three people, each outvoted once; one task on which all agree."""
    answers = [(0, 0, 0), (0, 1, 0), (0, 2, 1), (1, 0, 0), (1, 1, 1), (1, 2, 0), (2, 0, 1), (2, 1, 0), (2, 2, 0)]
    answers += [(3, who, 0) for who in range(3)]
    probabilities, accuracies = probabilities_of(answers)
    assert probabilities[:3].argmax(axis=1).tolist() == [0, 0, 0]
    assert probabilities[3, 0] > probabilities[:3, 0].max()
    assert accuracies.max() - accuracies.min() < 1e-9


def test_one_who_is_mostly_right_is_believed_against_one_who_is_not() -> None:
    """Two agree on twenty tasks, the third on none of them; on the last task only a good and the bad one answered."""
    answers = [(task, who, 0 if who < 2 else 1) for task in range(20) for who in range(3)]
    answers += [(20, 0, 1), (20, 2, 0)]
    probabilities, accuracies = probabilities_of(answers)
    assert accuracies[0] > 0.9 > 0.3 > accuracies[2]
    assert probabilities[20, 1] > 0.95


def test_ground_truth_tells_who_is_right() -> None:
    """Two people disagree throughout; on six tasks the truth is known, and the first gave it."""
    answers = [(task, who, who) for task in range(8) for who in range(2)]
    even, _ = probabilities_of(answers)
    np.testing.assert_allclose(even[7], [0.5, 0.5])
    probabilities, accuracies = probabilities_of(answers, truths=[0] * 6 + [-1, -1])
    assert accuracies[0] > 0.8 > 0.6 > accuracies[1]
    assert probabilities[7, 0] > 0.8
    np.testing.assert_array_equal(probabilities[:6], [[1, 0]] * 6)


def test_a_label_counts_by_how_much_likelier_it_is_right_than_wrong() -> None:
    """Certain: whole; three to one: half; no likelier right than wrong, or less: a twentieth."""
    np.testing.assert_allclose(label_weights(np.array([1.0, 0.75, 0.5, 0.3])), [1, 0.5, 0.05, 0.05])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40))
def test_probabilities_are_probabilities(answers: list[tuple[int, int, int]]) -> None:
    """Whatever was answered: finite, rows sum to 1, accuracies strictly between 0 and 1."""
    numbers = {task: row for row, task in enumerate(sorted({task for task, _, _ in answers}))}
    probabilities, accuracies = probabilities_of([(numbers[task], who, label) for task, who, label in answers], 3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert ((accuracies > 0) & (accuracies < 1)).all()
