"""The pool: what is computed once is computed once, and details count as they are weighted."""

from __future__ import annotations

import numpy as np
import pytest

from backend.learning.pool import Pool


def test_spaces_and_graphs_are_made_once():
    """Every label asks for the same space and graph: they are the same objects."""
    pool = Pool(np.random.default_rng(0).normal(size=(30, 4)), n_details=1)
    assert pool.space(0.35) is pool.space(0.35)
    assert pool.graph(0.35) is pool.graph(0.35)
    assert pool.graph(0.35) is not pool.graph(0.0)


def test_details_are_the_last_columns():
    """Without their weight, images that differ in details alone are one and the same."""
    embeddings = np.array([[1.0, 0.0, 0.2], [1.0, 0.0, 0.9], [0.0, 1.0, 0.2]])
    features = Pool(embeddings, n_details=1).space(0.0).features(embeddings)
    np.testing.assert_allclose(features[0], features[1])
    features = Pool(embeddings, n_details=1).space(0.35).features(embeddings)
    assert np.abs(features[0] - features[1]).max() > 0.01


@pytest.mark.parametrize(("embeddings", "n_details"), [(np.ones(3), 0), (np.ones((2, 3)), 4), (np.ones((2, 3)), -1)])
def test_impossible_pools_are_refused(embeddings, n_details):
    """The error says what came and what was expected."""
    with pytest.raises(ValueError, match=r"expected \(N, D\)"):
        Pool(embeddings, n_details)
