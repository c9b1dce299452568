"""The pool: what is computed once is computed once, and details count as they are weighted."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

from backend.learning import pool as module
from backend.learning.pool import DEFAULT_DETAIL_WEIGHT, Pool


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


def test_more_axes_keep_the_first_ones_as_they_were(monkeypatch):
    """With more labels there are twice as many axes; whoever asks for few gets the same, prepared or not."""
    monkeypatch.setattr(module, "LEAST_AXES", 2)
    embeddings = np.random.default_rng(0).normal(size=(40, 8))
    few = Pool(embeddings).basis(n_labels=2)
    prepared = Pool(embeddings)
    prepared.prepare([DEFAULT_DETAIL_WEIGHT], n_labels=5, with_typicality=False)
    assert few.coordinates.shape == (40, 2)
    assert prepared.basis(n_labels=5).coordinates.shape == (40, 8)
    np.testing.assert_array_equal(prepared.basis(n_labels=2).coordinates, few.coordinates)
    np.testing.assert_array_equal(prepared.basis(n_labels=2).axes, few.axes)


def test_what_is_prepared_is_not_made_again(monkeypatch):
    """A head under another weight finds graph, axes and typicality there; two threads that ask make them once."""
    made: Counter[str] = Counter()

    def counted(name):
        original = getattr(module, name)

        def make(*args, **options):
            made[name] += 1
            time.sleep(0.02)
            return original(*args, **options)

        monkeypatch.setattr(module, name, make)

    for name in ("pool_space", "neighbor_graph", "measure_typicality", "principal_axes"):
        counted(name)
    pool = Pool(np.random.default_rng(0).normal(size=(60, 5)), n_details=1)
    beside = threading.Thread(target=pool.prepare, args=([0.35, 0.0],))
    beside.start()
    pool.typicality(0.0)
    pool.basis(0.35)
    pool.graph(0.0)
    beside.join()
    assert pool.is_ready(0.35)
    assert pool.is_ready(0.0)
    assert not pool.is_ready(0.15)
    assert set(made.values()) == {2}


def test_axes_of_other_weights_are_let_go_when_memory_is_short(monkeypatch):
    """Room for one set of axes: only the weight in use is prepared, and another that is asked for replaces it."""
    pool = Pool(np.random.default_rng(0).normal(size=(60, 5)), n_details=1)
    pool.prepare([0.35])
    monkeypatch.setattr(module, "BASES_BYTES", pool.basis(0.35).coordinates.nbytes)
    pool.prepare([0.35, 0.0, 0.15])
    assert [weight for weight in (0.35, 0.0, 0.15) if pool.is_ready(weight)] == [0.35]
    pool.basis(0.0)
    assert [weight for weight in (0.35, 0.0, 0.15) if pool.is_ready(weight)] == [0.0]
