"""The acquisition functions: their formulas on rows worked out by hand, and what holds for every row."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from backend.learning.acquisition import (
    ACQUISITION_FUNCTIONS,
    entropy,
    least_confidence,
    margin,
    queue_score,
    shown_score,
)

names = pytest.mark.parametrize("name", sorted(ACQUISITION_FUNCTIONS))

probability_rows = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(0.0009765625, 1, width=32),
).map(lambda positive: positive / positive.sum(axis=1, keepdims=True))


def test_least_confidence_by_hand():
    """With C = 4, (1 - 0.7) / (1 - 1/4) = 0.4 and (1 - 0.4) / 0.75 = 0.8."""
    probabilities = [[0.7, 0.1, 0.1, 0.1], [0.2, 0.2, 0.2, 0.4]]
    np.testing.assert_allclose(least_confidence(probabilities), [0.4, 0.8])


def test_margin_by_hand():
    """1 - (0.7 - 0.2) = 0.5 and 1 - (0.5 - 0.4) = 0.9, wherever in the row the two largest stand."""
    np.testing.assert_allclose(margin([[0.1, 0.7, 0.2], [0.5, 0.1, 0.4]]), [0.5, 0.9])


def test_entropy_by_hand():
    """Two equal halves are one bit: all of log₂ 2, half of log₂ 4; (1/2, 1/4, 1/8, 1/8) is 1.75 bits of 2."""
    np.testing.assert_allclose(entropy([[0.5, 0.5]]), [1.0])
    np.testing.assert_allclose(entropy([[0.5, 0.5, 0, 0], [0.5, 0.25, 0.125, 0.125]]), [0.5, 0.875])


@names
def test_one_hot_is_zero_and_uniform_is_one(name):
    """A certain prediction has utility 0, an undecided one 1, for every number of classes."""
    for n_classes in range(2, 8):
        np.testing.assert_array_equal(ACQUISITION_FUNCTIONS[name](np.eye(n_classes)), np.zeros(n_classes))
        uniform = np.full((1, n_classes), 1 / n_classes, dtype=np.float32)
        np.testing.assert_allclose(ACQUISITION_FUNCTIONS[name](uniform), [1.0], rtol=1e-6)


@names
@given(probabilities=probability_rows)
def test_utilities_are_between_zero_and_one(name, probabilities):
    """Every float32 row that sums to about 1 has one finite utility in 0..1."""
    utilities = ACQUISITION_FUNCTIONS[name](probabilities)
    assert utilities.shape == (len(probabilities),)
    assert ((utilities >= 0) & (utilities <= 1)).all()


@names
@given(probabilities=probability_rows, data=st.data())
def test_order_of_classes_does_not_matter(name, probabilities, data):
    """Renaming the classes changes no utility."""
    order = data.draw(st.permutations(range(probabilities.shape[1])))
    function = ACQUISITION_FUNCTIONS[name]
    np.testing.assert_allclose(function(probabilities[:, order]), function(probabilities), atol=1e-6)


def test_two_classes_give_one_order():
    """With two classes the three functions rank the rows alike: from most to least certain top class."""
    top = np.array([0.95, 0.55, 0.7, 0.85])
    for function in ACQUISITION_FUNCTIONS.values():
        assert np.argsort(function(np.column_stack([top, 1 - top]))).tolist() == [0, 3, 2, 1]


@names
def test_a_single_class_is_certain(name):
    """With one class there is nothing to choose between, even if float32 made its probability 0.9999999."""
    assert ACQUISITION_FUNCTIONS[name](np.array([[1.0], [0.9999999]], dtype=np.float32)).tolist() == [0.0, 0.0]


@names
def test_rows_that_sum_to_a_little_more_than_one_stay_in_range(name):
    """Rounding in float32 can put a probability above 1 or below 0; the utility does not follow."""
    assert ACQUISITION_FUNCTIONS[name]([[1.0000001, -0.0000001]]).tolist() == [0.0]


@names
@pytest.mark.parametrize(("probabilities", "message"), [([0.5, 0.5], "shape"), ([[np.nan, 1.0]], "NaN")])
def test_malformed_probabilities_are_refused(name, probabilities, message):
    """A single row without its batch axis and a NaN are errors, not scores."""
    with pytest.raises(ValueError, match=message):
        ACQUISITION_FUNCTIONS[name](probabilities)


@names
def test_no_rows_give_no_utilities(name):
    """An empty pool is not an error."""
    assert ACQUISITION_FUNCTIONS[name](np.empty((0, 3))).shape == (0,)


def test_queue_score_turns_the_sign():
    """The most useful image gets 0, which Label Studio serves first; results stay in 0..1."""
    np.testing.assert_allclose(queue_score([1.0, 0.25, 0.0, 1.0000001, -0.1]), [0.0, 0.75, 1.0, 0.0, 1.0])


def test_the_shown_score_is_turned_without_losing_a_step() -> None:
    """The least steps of a window, 1e-9, are told apart in either order, and the ends are 0 and 1."""
    window = [0.0, 1e-9, 2e-9, 0.5, 1 - 1e-9, 1.0]
    assert [shown_score(place, "ascending") for place in window] == window
    turned = [shown_score(place, "descending") for place in window]
    assert (turned[0], turned[-1]) == (1.0, 0.0)
    assert all(before > after for before, after in pairwise(turned))
