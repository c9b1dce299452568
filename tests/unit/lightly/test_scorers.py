"""Scorers: the published formulas, on rows worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import SelectionError
from backend.lightly import BoundingBox, ObjectDetectionOutput, ScorerClassification, ScorerObjectDetection

BOX = [0.1, 0.2, 0.3, 0.4]
UNCERTAINTIES = ["uncertainty_least_confidence", "uncertainty_margin", "uncertainty_entropy"]


def test_classification_scores_by_hand() -> None:
    """Four classes: certain, uniform, and (½, ¼, ⅛, ⅛), whose entropy is 1¾ of 2 bits."""
    scores = ScorerClassification([[0, 1, 0, 0], [0.25] * 4, [0.5, 0.25, 0.125, 0.125]]).calculate_scores()
    assert list(scores) == UNCERTAINTIES == ScorerClassification.score_names()
    np.testing.assert_allclose(scores["uncertainty_least_confidence"], [0, 1, 0.5 / 0.75])
    np.testing.assert_allclose(scores["uncertainty_margin"], [0, 1, 0.75])
    np.testing.assert_allclose(scores["uncertainty_entropy"], [0, 1, 1.75 / 2])


def test_one_column_is_one_class_of_two() -> None:
    """The same scores as with the other class written out."""
    one = ScorerClassification([[0.9], [0.5], [0.2]]).calculate_scores()
    two = ScorerClassification([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]]).calculate_scores()
    for name in UNCERTAINTIES:
        np.testing.assert_allclose(one[name], two[name])


def test_multi_label_scores_are_those_of_the_least_certain_class() -> None:
    """Each class is yes or no: 0.6 is the most doubtful of the first image, 0.5 of the second; the third is certain."""
    scorer = ScorerClassification([[0.9, 0.6, 1.0], [0.5, 0.0, 0.0], [1.0, 1.0, 0.0]], multi_label=True)
    scores = scorer.calculate_scores()
    np.testing.assert_allclose(scores["uncertainty_least_confidence"], [0.8, 1.0, 0.0])
    np.testing.assert_allclose(scores["uncertainty_margin"], [0.8, 1.0, 0.0])
    entropy = -(0.6 * np.log2(0.6) + 0.4 * np.log2(0.4))
    np.testing.assert_allclose(scores["uncertainty_entropy"], [entropy, 1.0, 0.0])


@given(st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=6), st.booleans())
def test_scores_lie_between_0_and_1(table: list[list[float]], multi_label: bool) -> None:
    """For any probabilities, and one per image."""
    rows = np.array(table) + 1e-6
    if not multi_label:
        rows /= rows.sum(axis=1, keepdims=True)
    for values in ScorerClassification(np.minimum(rows, 1), multi_label=multi_label).calculate_scores().values():
        assert values.shape == (len(table),)
        assert ((values >= 0) & (values <= 1)).all()


@pytest.mark.parametrize(
    ("probabilities", "match"),
    [
        ([[0.5, 0.4]], "row 0 sum to 0.9; expected 1: normalise"),
        ([[0.5, 0.5], [2.0, -1.0]], r"row 1 are not in 0\.\.1"),
        ([[np.nan, 1.0]], "row 0 are not"),
        ([0.5, 0.5], r"shape \(2,\)"),
        (np.empty((2, 0)), r"shape \(2, 0\)"),
        ([[0.5, 0.5], [1.0]], "no array of numbers"),
    ],
)
def test_what_are_no_probabilities_is_refused(probabilities: object, match: str) -> None:
    """With the row and what was expected."""
    with pytest.raises(SelectionError, match=match):
        ScorerClassification(probabilities)  # type: ignore[arg-type]


def detections() -> list[ObjectDetectionOutput]:
    """Two objects of two classes, one object, none."""
    return [
        ObjectDetectionOutput([BOX, BOX], [0.6, 0.9], [[0.7, 0.2, 0.1], [0.4, 0.5, 0.1]]),
        ObjectDetectionOutput([BOX], [0.1], [[0.5, 0.41, 0.09]]),
        ObjectDetectionOutput([], [], []),
    ]


def test_detection_scores_by_hand() -> None:
    """Frequencies 2, 1 and 0 between 0.9 and 1; confidences 0.42 and 0.45, and 0.05; the least certain object."""
    scores = ScorerObjectDetection(detections()).calculate_scores()
    assert list(scores) == ScorerObjectDetection.score_names()
    np.testing.assert_allclose(scores["object_frequency"], [1.0, 0.95, 0.9])
    np.testing.assert_allclose(scores["objectness_least_confidence"], [1 - 0.435, 0.95, 0.0])
    np.testing.assert_allclose(scores["uncertainty_least_confidence"], [0.5 / (2 / 3), 0.5 / (2 / 3), 0])
    np.testing.assert_allclose(scores["uncertainty_margin"], [0.9, 0.91, 0.0])
    spread = [0.4, 0.5, 0.1]
    assert scores["uncertainty_entropy"][0] == pytest.approx(-np.sum(spread * np.log2(spread)) / np.log2(3))


def test_further_objects_of_a_class_count_less() -> None:
    """Three cars and a bike: 1 + 2 · 0.5 + 1 = 3, between one object (1) and three classes (3)."""
    outputs = [
        ObjectDetectionOutput.from_scores([BOX] * len(labels), [0.8] * len(labels), labels)
        for labels in ([0, 0, 0, 1], [1], [0, 1, 2], [2, 2])
    ]
    scorer = ScorerObjectDetection(outputs, {"frequency_penalty": 0.5, "min_score": 0.0})
    np.testing.assert_allclose(scorer.calculate_scores()["object_frequency"], [1.0, 0.0, 1.0, 0.25])
    alike = ScorerObjectDetection(outputs[1:2]).calculate_scores()["object_frequency"]
    assert alike.tolist() == [1.0]
    assert ScorerObjectDetection([]).calculate_scores()["object_frequency"].shape == (0,)


def test_a_score_and_a_class_per_box_are_enough() -> None:
    """The score stands for both probabilities, and the label stays, even where another class comes out likelier."""
    output = ObjectDetectionOutput.from_scores([BOX, BoundingBox(0, 0, 1, 1)], [0.7, 0.2], [2, 0])
    assert output.labels == [2, 0]
    assert output.scores.tolist() == [0.7, 0.2]
    np.testing.assert_allclose(output.class_probabilities, [[0.15, 0.15, 0.7], [0.2, 0.4, 0.4]])
    scores = ScorerObjectDetection([output]).calculate_scores()
    assert scores["objectness_least_confidence"].tolist() == pytest.approx([0.55])


def test_one_class_is_an_object_or_none() -> None:
    """A detector of one class with probability 0.5 is as uncertain as can be."""
    output = ObjectDetectionOutput([BOX], [0.9], [[0.5]])
    assert ScorerObjectDetection([output]).calculate_scores()["uncertainty_margin"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"frequenci_penalty": 0.5}, "config has 'frequenci_penalty'; ScorerObjectDetection takes: frequency_penalty"),
        ({"min_score": 1.6}, r"min_score = 1\.6; expected a number from 0 to 1"),
        ({"min_score": "high"}, "min_score = 'high'"),
        ({"min_score": True}, "min_score = True"),
    ],
)
def test_an_unknown_config_is_refused(config: dict[str, float], match: str) -> None:
    """By name."""
    with pytest.raises(SelectionError, match=match):
        ScorerObjectDetection([], config)


def test_an_unknown_score_is_refused() -> None:
    """With those there are."""
    with pytest.raises(SelectionError, match="score is 'entropy'; ScorerClassification has: uncertainty_least"):
        ScorerClassification([[0.5, 0.5]], score="entropy")


def test_detections_that_do_not_fit_are_refused() -> None:
    """Lengths, corners and probabilities."""
    with pytest.raises(SelectionError, match="1 boxes, 0 object and 1 class"):
        ObjectDetectionOutput([BOX], [], [[1.0]])
    with pytest.raises(SelectionError, match=r"x0 = 0\.5 to x1 = 0\.2"):
        BoundingBox(0.5, 0, 0.2, 1)
    with pytest.raises(SelectionError, match="y0 = 0 to y1 = 20"):
        BoundingBox(0, 0, 1, 20)
    with pytest.raises(SelectionError, match="object probabilities"):
        ObjectDetectionOutput([BOX], [1.2], [[1.0]])
    with pytest.raises(SelectionError, match="1 scores and 2 labels"):
        ObjectDetectionOutput.from_scores([BOX], [0.5], [0, 1])
    with pytest.raises(SelectionError, match="negative"):
        ObjectDetectionOutput.from_scores([BOX], [0.5], [-1])
