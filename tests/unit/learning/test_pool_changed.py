"""A pool that changes: images come and go, and what was computed of the others stays."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.learning import pool as module
from backend.learning.head import fit_and_evaluate, predict_pool
from backend.learning.pool import Pool

WEIGHT = 0.35


@pytest.fixture
def embeddings() -> NDArray[np.float32]:
    """60 images in three clusters; the last column is a detail."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(3, 6))
    return (centres[np.arange(60) % 3] + 0.3 * generator.normal(size=(60, 6))).astype(np.float32)


def used(embeddings: NDArray[np.float32]) -> Pool:
    """A pool of which everything was made."""
    pool = Pool(embeddings, n_details=1)
    pool.prepare([WEIGHT])
    pool.entry_points(WEIGHT, np.array([0, 7]))
    return pool


def test_what_belongs_to_images_that_stayed_is_kept_and_the_rest_computed_alike(embeddings):
    """Three images leave and two come: the others keep what they have, the new ones lie on the same axes."""
    before = used(embeddings[:58])
    rows = np.array([*range(3, 58), -1, -1])
    after = before.changed(embeddings[3:], rows)
    assert after.space(WEIGHT) is before.space(WEIGHT)
    assert after.is_ready(WEIGHT)
    old, new = before.basis(WEIGHT), after.basis(WEIGHT)
    np.testing.assert_array_equal(new.axes, old.axes)
    np.testing.assert_array_equal(new.coordinates[:55], old.coordinates[3:])
    expected = (before.space(WEIGHT).features(embeddings[58:]) - old.mean) @ old.axes
    np.testing.assert_allclose(new.coordinates[55:], expected, atol=1e-5)
    np.testing.assert_array_equal(after.typicality(WEIGHT)[:55], before.typicality(WEIGHT)[3:])
    fresh = Pool(embeddings[3:], n_details=1).typicality(WEIGHT)
    np.testing.assert_allclose(after.typicality(WEIGHT)[55:], fresh[55:], atol=0.05)


def test_nothing_is_made_anew_for_a_few_images(embeddings, monkeypatch):
    """Neither graph nor axes nor the space are computed again."""
    before = used(embeddings[:58])

    def never(*args, **options):
        raise AssertionError("made anew")

    for name in ("pool_space", "neighbor_graph", "measure_typicality", "principal_axes"):
        monkeypatch.setattr(module, name, never)
    after = before.changed(embeddings, np.array([*range(58), -1, -1]))
    after.prepare([WEIGHT])
    assert after.entry_points(WEIGHT, np.array([0, 7, 59])).shape == (58, 3)


def test_labels_enter_the_graph_where_their_image_was(embeddings):
    """A label of an image that stayed enters at its node, whatever left; that of a new one at its nearest nodes."""
    before = used(embeddings)
    gone = [0, 1, 30]
    stayed = np.setdiff1d(np.arange(60), gone)
    after = before.changed(embeddings[stayed], stayed)
    entries = after.entry_points(WEIGHT, np.arange(57)).toarray()
    np.testing.assert_array_equal(entries[stayed], np.eye(57))
    assert not entries[gone].any()
    back = np.full(60, -1)
    back[stayed] = np.arange(57)
    entries = after.changed(embeddings, back).entry_points(WEIGHT, np.array(gone)).toarray()
    assert ((entries > 0).sum(axis=0) > 1).all()
    np.testing.assert_allclose(entries.sum(axis=0), 1)


def test_heads_of_a_changed_pool_know_what_those_of_a_new_one_know(embeddings):
    """Fitted on nine labels after images came and went, a head gives the same classes as one of a fresh pool."""
    before = used(embeddings)
    kept = np.arange(10, 60)
    changed, fresh = before.changed(embeddings[kept], kept), Pool(embeddings[kept], n_details=1)
    labeled, names = np.arange(9), [f"c{row % 3}" for row in kept[:9]]
    guesses = [
        predict_pool(fit_and_evaluate(pool, labeled, names, random_state=0), pool).argmax(axis=1)
        for pool in (changed, fresh)
    ]
    assert (guesses[0] == guesses[1]).mean() > 0.95


def test_after_many_changes_everything_is_made_anew(embeddings):
    """Half of the images came since the axes were made, in two steps: they say too little of the images of now."""
    before = used(embeddings[:40])
    after = before.changed(embeddings[:50], np.array([*range(40), *[-1] * 10]))
    assert after.is_ready(WEIGHT)
    assert after.changed(embeddings[:54], np.array([*range(50), *[-1] * 4])).is_ready(WEIGHT)
    assert not after.changed(embeddings[1:], np.array([*range(1, 50), *[-1] * 10])).is_ready(WEIGHT)
