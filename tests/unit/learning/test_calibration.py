"""Calibration: temperatures that are known, and errors computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from backend.learning.calibration import (
    ReliabilityBin,
    calibration_error,
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
    error = calibration_error([0.75] * 4 + [0.95] * 2, [True, True, False, False, True, True])
    assert error == pytest.approx((4 * 0.25 + 2 * 0.05) / 6)


def test_certainty_falls_into_the_last_bin():
    """Confidence 1, right and wrong by halves."""
    assert calibration_error([1.0, 1.0], [True, False]) == pytest.approx(0.5)


def test_reliability_bins_by_hand():
    """Confidences 0.5, 0.75 and 0.75: the first right, of the others one; empty bins are left out."""
    bins = reliability_bins([0.5, 0.75, 0.75], [True, True, False])
    assert bins == [ReliabilityBin(0.5, 1.0, 1), ReliabilityBin(0.75, 0.5, 2)]
    assert reliability_bins([], []) == []


def test_log_loss_of_sets_is_that_of_each_label():
    """Logits ln 3 and 0 of two labels: has the first with 3/4 and the second with 1/2; it has the first alone."""
    assert log_loss([[np.log(3), 0.0]], [[1, 0]]) == pytest.approx(-(np.log(0.75) + np.log(0.5)) / 2)
    assert log_loss([[1000.0, -1000.0]], [[0, 1]]) == pytest.approx(1000)


@pytest.mark.parametrize("temperature", [0.5, 2.5])
def test_the_temperature_of_sets_is_found(temperature):
    """Labels drawn each by itself at a known temperature give it back."""
    random = np.random.default_rng(0)
    logits = 3 * random.normal(size=(2000, 3))
    has = random.random(logits.shape) < 1 / (1 + np.exp(-logits / temperature))
    assert fit_temperature(logits, has) == pytest.approx(temperature, rel=0.1)
