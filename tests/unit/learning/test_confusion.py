"""The confusion matrix: counted by hand, and bounded."""

from __future__ import annotations

from backend.learning.confusion import OTHERS, Confusion, confusion_matrix


def test_rows_are_labels_and_columns_predictions() -> None:
    """Two cats, one taken for a dog; one dog, taken for one; a fox that nothing was ever taken for."""
    found = confusion_matrix(["cat", "cat", "dog", "fox"], ["cat", "dog", "dog", "cat"])
    assert found == Confusion(["cat", "dog", "fox"], [[1, 1, 0], [0, 1, 0], [1, 0, 0]])


def test_a_class_that_is_only_predicted_has_a_row() -> None:
    """Of zeros."""
    assert confusion_matrix(["cat"], ["owl"]) == Confusion(["cat", "owl"], [[0, 1], [0, 0]])


def test_the_rarest_of_many_classes_are_counted_together() -> None:
    """Three labels of a, two of b, one of c and d each: with two kept, c and d share the last row and column."""
    given = ["a", "a", "a", "b", "b", "c", "d"]
    found = confusion_matrix(given, ["a", "a", "b", "b", "c", "d", "c"], most=2)
    assert found == Confusion(["a", "b", OTHERS], [[2, 1, 0], [0, 1, 1], [0, 0, 2]])


def test_a_class_named_others_is_not_mistaken_for_the_others() -> None:
    """People name their classes as they like."""
    assert confusion_matrix([OTHERS, OTHERS, "a"], [OTHERS, OTHERS, "a"], most=1).labels == [OTHERS, "(others)"]


def test_nothing_gives_an_empty_matrix() -> None:
    """Without images there are no classes."""
    assert confusion_matrix([], []) == Confusion([], [])
