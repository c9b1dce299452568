"""The learning curve: known curves are continued rightly, intervals hold what they say, and no number is made up."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.learning.intervals import wilson_interval
from backend.learning.learning_curve import Curves, Forecast, _in_words, fit_curves, forecast

Floats = NDArray[np.float64]


def power_law(n: Floats, ceiling: float, factor: float, exponent: float) -> Floats:
    return ceiling - factor * n**-exponent


def seen(n: Floats, accuracies: Floats, n_images: int, random: np.random.Generator) -> Floats:
    """Accuracy measured on the same images every time: an image is right once the true accuracy passes its own level.

    With a little noise, for heads differ.
    """
    levels = random.normal(size=n_images)
    from scipy.special import ndtri

    noise = random.normal(size=(len(n), n_images))
    return np.mean(0.9 * levels + np.sqrt(1 - 0.81) * noise < ndtri(accuracies)[:, None], axis=1)


def told(n: Floats, accuracies: Floats, n_images: int = 300, target: float = 0.9, **more: float) -> Forecast:
    return forecast(n, accuracies, np.full(len(n), n_images), **{"target": target, "horizon": 30, **more})


@pytest.mark.parametrize(
    ("ceiling", "factor", "exponent", "target"), [(0.98, 1.5, 0.7, 0.95), (0.95, 1.0, 0.5, 0.9), (0.99, 3.0, 1.0, 0.97)]
)
def test_a_curve_without_noise_is_continued(ceiling: float, factor: float, exponent: float, target: float) -> None:
    """Labels for `target` = (b / (a - target))^(1/c), here 267, 400 and 150; measured at 10 to 100 on many images.

    A hundred labels do not settle three numbers: the median is near the truth, the interval holds it and is wide.
    """
    n = np.arange(10.0, 101.0)
    found = told(n, power_law(n, ceiling, factor, exponent), 1_000_000, target)
    needed = (factor / (ceiling - target)) ** (1 / exponent) - 100
    assert found.labels_needed == pytest.approx(needed, rel=0.35)
    assert found.labels_needed_interval is not None
    low, high = found.labels_needed_interval
    assert low <= needed <= (np.inf if high is None else high)
    gain = power_law(np.array([130.0]), ceiling, factor, exponent)[0] - power_law(n[-1:], ceiling, factor, exponent)[0]
    assert found.expected_gain == pytest.approx(gain, abs=0.004)
    assert found.verdict == "go_on"
    start = f"Go on: about {found.labels_needed} more labels to {target:.1%} ({low} to {high}); "
    assert found.suggestion.startswith(start if low and high else start.partition(" (")[0])


@pytest.mark.parametrize(
    ("ceiling", "factor", "exponent", "n_now", "target"),
    [(0.98, 1.5, 0.7, 60, 0.95), (0.97, 2.0, 0.9, 60, 0.95), (0.9, 1.0, 0.5, 100, 0.85)],
)
def test_intervals_hold_the_truth_as_often_as_they_say(
    ceiling: float, factor: float, exponent: float, n_now: int, target: float
) -> None:
    """80 % intervals of 60 noisy curves, of the labels needed and of the accuracy with twice the labels.

    Sixty throws of an 0.8 coin stay at or above 0.68 in 99 of 100 cases.
    """
    n = np.arange(10.0, n_now + 1)
    needed = (factor / (ceiling - target)) ** (1 / exponent) - n_now
    later = power_law(np.array([2.0 * n_now]), ceiling, factor, exponent)[0]
    held_needed, held_later, n_needed, errors = 0, 0, 0, []
    for seed in range(60):
        accuracies = seen(n, power_law(n, ceiling, factor, exponent), 300, np.random.default_rng(seed))
        found = told(n, accuracies, 300, target)
        if found.labels_needed_interval is not None and found.verdict != "target_reached":
            low, high = found.labels_needed_interval
            n_needed += 1
            held_needed += low <= needed <= (np.inf if high is None else high)
        curves = fit_curves(n, accuracies, np.full(len(n), 300))
        assert isinstance(curves, Curves)
        answers = curves.accuracy(2.0 * n_now)
        held_later += curves.quantile(answers, 0.1) <= later <= curves.quantile(answers, 0.9)
        errors.append(curves.quantile(answers, 0.5) - later)
    assert n_needed >= 30
    assert held_needed / n_needed >= 0.68
    assert held_later / 60 >= 0.68
    assert abs(np.mean(errors)) < 0.015


def test_a_target_above_the_ceiling_is_unknown_not_a_number() -> None:
    """Accuracy levels off at 0.85: for 0.95 nothing is promised, with the reason in words."""
    n = np.arange(10.0, 201.0)
    found = told(n, power_law(n, 0.85, 2.0, 0.9), 2000, 0.95)
    assert (found.labels_needed, found.labels_needed_interval) == (None, None)
    assert found.reason is not None
    assert "too far to extrapolate, or it is never reached" in found.reason


def test_a_flat_curve_says_stop() -> None:
    """0.9 from 50 labels on: the next 30 give next to nothing."""
    n = np.arange(10.0, 201.0)
    found = told(n, power_law(n, 0.9, 20.0, 2.0), 2000, 0.95)
    assert found.verdict == "little_gain"
    assert found.expected_gain is not None
    assert 0 <= found.expected_gain < 0.005
    assert found.gain_at_most is not None
    assert found.expected_gain <= found.gain_at_most < 0.02
    assert found.suggestion.startswith("Stop, unless")
    assert "More labels alone hardly lead to 95.0%" in found.suggestion
    reached = told(n, power_law(n, 0.9, 20.0, 2.0), 2000, 0.899)
    assert (reached.verdict, "alone" in reached.suggestion) == ("little_gain", False)


def test_the_target_is_reached_when_even_the_lower_bound_is_above_it() -> None:
    """970 of 1000 (at least 0.957) reaches 0.95; 97 of 100 (at least 0.915) does not. One measurement is enough."""
    reached = told(np.array([80.0]), np.array([0.97]), 1000, 0.95)
    assert (reached.verdict, reached.labels_needed) == ("target_reached", 0)
    assert reached.suggestion == (
        "Stop: the target of 95.0% is reached, the accuracy is at least 95.7% (95 % confidence)."
    )
    assert told(np.array([80.0]), np.array([0.97]), 100, 0.95).verdict == "unknown"


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ([], "starts at 10 labels and says more from about 20 on"),
        ([50], "starts at 50 labels and says more from about 100 on"),
        ([10, 20, 40], "was measured at 3 numbers of labels, and a curve takes 4 well apart"),
        ([100, 125, 150, 177], "starts at 100 labels and says more from about 200 on"),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9], "starts at 10 labels and says more from about 20 on"),
    ],
    ids=["none", "one", "three", "not twice the labels", "below ten labels"],
)
def test_too_few_measurements_are_unknown(labels: list[int], reason: str) -> None:
    """The reason says when there is a curve; no number of labels needed is given."""
    n = np.array(labels, dtype=float)
    found = told(n, np.minimum(0.5 + n / 1000, 1), 200, 0.9)
    assert found.verdict == "unknown"
    numbers = (found.labels_needed, found.labels_needed_interval, found.expected_gain, found.gain_at_most)
    assert numbers == (None, None, None, None)
    assert found.reason is not None
    assert reason in found.reason
    assert found.reason in found.suggestion


def test_an_accuracy_that_falls_is_no_learning_curve() -> None:
    """From 0.9 down to 0.6 on 1000 images: no curve is forced through it."""
    n = np.arange(10.0, 101.0)
    found = told(n, np.linspace(0.9, 0.6, len(n)), 1000, 0.95)
    assert found.verdict == "unknown"
    assert found.reason is not None
    assert "follow no learning curve" in found.reason


def test_more_labels_than_there_are_images_cannot_be_given() -> None:
    """About 300 would be needed and 50 images are left."""
    n = np.arange(10.0, 101.0)
    accuracies = power_law(n, 0.95, 1.0, 0.5)
    free, few = (told(n, accuracies, 10_000, 0.9, **more) for more in ({}, {"n_unlabeled": 50}))
    assert free.labels_needed is not None
    assert free.labels_needed > 50
    assert few.labels_needed is None
    assert few.reason == f"about {free.labels_needed} would be needed and only 50 images are left"


def test_the_order_of_measurements_does_not_matter() -> None:
    """The last by labels is today's, wherever it stands."""
    n = np.arange(10.0, 81.0)
    accuracies = seen(n, power_law(n, 0.95, 1.0, 0.5), 300, np.random.default_rng(1))
    mixed = np.random.default_rng(0).permutation(len(n))
    assert asdict(told(n, accuracies)) == asdict(told(n[mixed], accuracies[mixed]))


def test_fewer_images_measured_on_are_a_wider_interval() -> None:
    """50 images instead of 5,000: the same curve, far less certain."""
    n = np.arange(10.0, 101.0)
    accuracies = power_law(n, 0.95, 1.0, 0.5)
    widths = []
    for n_images in (50, 5000):
        curves = fit_curves(n, accuracies, np.full(len(n), n_images))
        assert isinstance(curves, Curves)
        answers = curves.accuracy(200)
        widths.append(curves.quantile(answers, 0.9) - curves.quantile(answers, 0.1))
    assert widths[0] > 1.8 * widths[1]


def test_curves_answer_by_their_own_formula() -> None:
    """floor 0.1, error 0.3 at 100 labels, c = 1: accuracy at 200 is 1 - (0.1 + 0.2 / 2); 0.85 takes 400 labels.

    The second curve has no way below 0.15 and the third is there already.
    """
    curves = Curves(
        100.0,
        today=np.array([0.3, 0.3, 0.12]),
        floor_share=np.array([1 / 3, 0.5, 0.0]),
        exponent=np.ones(3),
        weight=np.array([0.5, 0.3, 0.2]),
    )
    np.testing.assert_allclose(curves.accuracy(200), [0.8, 0.775, 0.94])
    np.testing.assert_allclose(curves.labels_for(0.85)[[0, 2]], [400, 80])
    assert np.isinf(curves.labels_for(0.8500001)[1])
    np.testing.assert_allclose([curves.accuracy(n)[0] for n in (100, 400)], [0.7, 0.85])
    answers = np.array([5.0, 9.0, 1.0])
    assert [curves.quantile(answers, share) for share in (0.1, 0.2, 0.5, 0.7, 0.9, 1.0)] == [1, 1, 5, 5, 9, 9]


def test_the_pace_may_change() -> None:
    """Every curve is continued at five paces, equally likely: exp(0.8·z) with z = ±1.2816, ±0.5244 and 0.

    These are the quantiles 0.1, 0.3, 0.5, 0.7 and 0.9 of the normal distribution.
    """
    n = np.arange(10.0, 101.0)
    curves = fit_curves(n, 1 - 0.5 * n**-0.5, np.full(len(n), 10_000_000))
    assert isinstance(curves, Curves)
    by_curve = curves.exponent.reshape(-1, 5)
    paces = by_curve / by_curve[:, 2:3]
    np.testing.assert_allclose(paces, np.tile([0.3587, 0.6574, 1, 1.5212, 2.7878], (len(paces), 1)), rtol=1e-3)
    weights = curves.weight.reshape(-1, 5)
    np.testing.assert_allclose(weights, np.tile(weights[:, :1], 5))
    np.testing.assert_allclose(curves.weight.sum(), 1)


def test_an_error_that_all_share_widens_the_level() -> None:
    """Three points of standard deviation: at a million images that is the whole interval, 2 · 1.28 · 0.03 wide."""
    n = np.arange(10.0, 101.0)
    accuracies, counts = power_law(n, 0.8, 0.5, 0.5), np.full(len(n), 1_000_000)
    widths = []
    for shared_error in (0.0, 0.03):
        curves = fit_curves(n, accuracies, counts, shared_error=shared_error)
        assert isinstance(curves, Curves)
        today = curves.accuracy(100)
        widths.append(curves.quantile(today, 0.9) - curves.quantile(today, 0.1))
    assert widths[0] < 0.03
    assert np.hypot(widths[0], 2 * 1.2816 * 0.03) == pytest.approx(widths[1], abs=0.012)


def test_an_estimate_is_called_one() -> None:
    """Mean confidence may be off by some points: no "at least" of 95 % confidence is told of it."""
    n = np.arange(10.0, 101.0)
    found = told(n, power_law(n, 0.95, 1.0, 0.5), shared_error=0.03)
    assert "more labels to an estimated 90.0% (" in found.suggestion
    # 990 of 1000 is at least 0.982 when measured; with 1.96 · 0.03 = 0.059 of doubt it may be 0.931.
    n, high = np.array([80.0]), np.array([0.99])
    assert told(n, high, 1000, 0.95).verdict == "target_reached"
    assert told(n, high, 1000, 0.95, shared_error=0.03).verdict == "unknown"
    assert told(n, high, 1000, 0.93, shared_error=0.03).verdict == "target_reached"


@pytest.mark.parametrize(
    ("n_images", "shared_error", "end"),
    [
        (40, 0.0, "; 40 validation tasks cannot tell, that takes 73 at least, even if all were right."),
        (80, 0.0, "; more validation tasks than 80 would tell."),
        (80, 0.03, "; a validation split would tell."),
    ],
)
def test_an_accuracy_about_the_target_is_said_with_what_would_tell(
    n_images: int, shared_error: float, end: str
) -> None:
    """0.975 may lie below 0.95. 73 of 73 right is at least 0.95, 72 of 72 is not, so fewer can never reach it."""
    n = np.array([12.0, 15, 18, 22, 27, 32, 40, 48])
    accuracies = np.array([0.8, 0.825, 0.875, 0.9, 0.95, 0.95, 0.975, 0.975])
    found = told(n, accuracies, n_images, 0.95, shared_error=shared_error)
    assert (found.verdict, found.labels_needed) == ("go_on", 0)
    assert found.suggestion.startswith("Go on a little: ")
    assert found.suggestion.endswith(end)
    assert wilson_interval(73, 73)[0] >= 0.95 > wilson_interval(72, 72)[0]


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ((5, 90), "5 to 90"),
        ((0, 90), "perhaps none, 90 at most"),
        ((5, None), "at least 5, perhaps far more"),
        ((0, None), "perhaps none, perhaps far more"),
    ],
)
def test_intervals_read_as_words(interval: tuple[int, int | None], words: str) -> None:
    """What a sentence says of them."""
    assert _in_words(interval) == words


def test_extremes_do_no_harm() -> None:
    """Always right, always wrong, one image: sentences, never NaN."""
    n = np.arange(10.0, 101.0)
    for share in (0.0, 1.0):
        for n_images in (1, 3, 100_000):
            found = told(n, np.full(len(n), share), n_images, 0.9)
            assert found.suggestion
            assert "nan" not in str(asdict(found))


@pytest.mark.parametrize(
    ("labels", "accuracies", "counts", "settings"),
    [
        ([10, 20], [0.5], [9, 9], {}),
        ([[10, 20]], [[0.5, 0.6]], [[9, 9]], {}),
        ([0], [0.5], [9], {}),
        ([10], [1.2], [9], {}),
        ([10], [float("nan")], [9], {}),
        ([10], [0.5], [0], {}),
        ([10], [0.5], [9], {"target": 1.0}),
        ([10], [0.5], [9], {"horizon": 0}),
        ([10], [0.5], [9], {"shared_error": -0.1}),
    ],
)
def test_nonsense_is_refused(labels: list[float], accuracies: list[float], counts: list[int], settings: dict) -> None:  # type: ignore[type-arg]
    """Unequal lengths, two axes, numbers out of range, an impossible target."""
    with pytest.raises(ValueError, match="expected"):
        forecast(labels, accuracies, counts, **{"target": 0.9, "horizon": 30, **settings})
