"""Calibration: temperatures that are known, and errors computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from backend.learning.calibration import (
    ReliabilityBin,
    expected_calibration_error,
    fit_temperature,
    log_loss,
    reliability_bins,
)


def drawn(n_rows: int, temperature: float, *, seed: int = 0):
    """Logits (N, 3), and classes drawn with the probabilities that they have at `temperature`."""
    random = np.random.default_rng(seed)
    logits = 3 * random.normal(size=(n_rows, 3))
    noise = random.gumbel(size=(n_rows, 3))
    return logits, (logits / temperature + noise).argmax(axis=1)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_found(temperature):
    """Classes drawn at a known temperature give it back."""
    assert fit_temperature(*drawn(4000, temperature)) == pytest.approx(temperature, rel=0.1)


def test_a_few_labels_do_not_move_it_far():
    """Three right answers would like to be certain, none at all say nothing."""
    logits = 2 * np.eye(3)
    assert 0.6 < fit_temperature(logits, [0, 1, 2]) < 1.0
    assert fit_temperature(np.empty((0, 3)), []) == 1.0


def test_log_loss_by_hand():
    """Logits ln 3 and 0 are probabilities 3/4 and 1/4."""
    assert log_loss([[np.log(3), 0]] * 2, [0, 1]) == pytest.approx(-(np.log(0.75) + np.log(0.25)) / 2)
    assert log_loss([[1000.0, 0.0]], [1]) == pytest.approx(1000)


def test_calibration_error_by_hand():
    """Four answers of confidence 0.75, two of them right: 0.25 too bold; two of 0.95, both right: 0.05 too timid."""
    probabilities = [[0.75, 0.25]] * 4 + [[0.05, 0.95]] * 2
    error = expected_calibration_error(probabilities, [0, 0, 1, 1, 1, 1])
    assert error == pytest.approx((4 * 0.25 + 2 * 0.05) / 6)


def test_certainty_falls_into_the_last_bin():
    """Confidence 1, right and wrong by halves."""
    assert expected_calibration_error([[1.0, 0.0], [1.0, 0.0]], [0, 1]) == pytest.approx(0.5)


def test_reliability_bins_by_hand():
    """Confidences 0.5, 0.75 and 0.75: the first right, of the others one; empty bins are left out."""
    bins = reliability_bins([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75]], [0, 0, 0])
    assert bins == [ReliabilityBin(0.5, 1.0, 1), ReliabilityBin(0.75, 0.5, 2)]
    assert reliability_bins(np.empty((0, 2)), []) == []


def test_a_class_without_a_column_is_never_right():
    """A validation label that no training label has: -1."""
    assert reliability_bins([[0.0, 1.0]], [-1]) == [ReliabilityBin(1.0, 0.0, 1)]
