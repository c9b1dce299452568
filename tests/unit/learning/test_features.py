"""Features: lengths, the centre, and what it takes out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from backend.learning import features as features_module
from backend.learning.features import FeatureSpace, evenly_spaced, normalise, plain_space, pool_space, to_float32


def test_normalise_by_hand():
    """(3, 4) has length 5; a row of zeros stays zero; float16 becomes float32."""
    rows = normalise(np.array([[3, 4], [0, 0], [-2, 0]], dtype=np.float16))
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0], [-1, 0]], rtol=1e-6)
    assert rows.dtype == np.float32


floats = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)


@given(arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=5), elements=floats))
def test_normalised_rows_have_length_one(embeddings):
    """Every row but zero has length 1, however small or large its entries; the caller's array is left alone."""
    before = embeddings.copy()
    lengths = np.linalg.norm(normalise(embeddings).astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, embeddings.any(axis=1).astype(float), atol=1e-5)
    np.testing.assert_array_equal(embeddings, before)


def test_the_centre_is_the_mean_direction():
    """(3, 0) and (0, 2) have directions (1, 0) and (0, 1): their middle is (0.5, 0.5)."""
    np.testing.assert_allclose(pool_space([[3, 0], [0, 2]]).centre, [0.5, 0.5])


def test_features_are_directions_from_the_centre():
    """Seen from (0.5, 0.5), (1, 0) lies to the lower right and (0, 1) to the upper left."""
    half = np.sqrt(0.5)
    rows = pool_space([[3, 0], [0, 2]]).features([[3, 0], [0, 2]])
    np.testing.assert_allclose(rows, [[half, -half], [-half, half]], rtol=1e-6)
    assert rows.dtype == np.float32


def test_without_a_pool_features_are_only_normalised():
    """No image, or a single one (it would be its own centre): the centre is zero."""
    for pool in (np.empty((0, 2)), np.array([[3, 4]])):
        np.testing.assert_array_equal(pool_space(pool).centre, [0, 0])
    np.testing.assert_allclose(plain_space(2).features([[3, 4]]), [[0.6, 0.8]], rtol=1e-6)


def test_an_image_at_the_centre_has_no_direction():
    """Zeros, not NaN: the head then gives it the classes' shares."""
    np.testing.assert_array_equal(
        FeatureSpace(np.ones(2, np.float32), np.array([1, 0], np.float32)).features([[1, 0]]), [[0, 0]]
    )


def test_a_large_pool_is_sampled_evenly(monkeypatch):
    """Half of the rows point right, then half point up: the sample holds as many of both."""
    monkeypatch.setattr(features_module, "CENTRE_ROWS", 10)
    pool = np.repeat([[1, 0], [0, 1]], 500, axis=0).astype(np.float16)
    np.testing.assert_allclose(pool_space(pool).centre, [0.5, 0.5])


def test_columns_count_by_their_scale():
    """With the second column halved, (3, 8) is (3, 4) before it is scaled to length 1."""
    space = FeatureSpace(np.array([1, 0.5], np.float32), np.zeros(2, np.float32))
    np.testing.assert_allclose(space.features([[3, 8]]), [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(pool_space([[3, 8], [3, 8]], [1, 0.5]).centre, [0.6, 0.8], rtol=1e-6)


def test_an_even_sample_by_hand():
    """Three of seven rows: both ends and the middle; never a row twice, never more than there are."""
    assert evenly_spaced(7, 3).tolist() == [0, 3, 6]
    assert evenly_spaced(2, 5).tolist() == [0, 1]
    assert evenly_spaced(0, 5).tolist() == []
    assert len(set(evenly_spaced(1000, 999).tolist())) == 999


def test_every_float16_is_widened_exactly():
    """All 65,536 of them: subnormal numbers, both zeros, infinities and NaN."""
    halves = np.arange(2**16, dtype=np.uint16).view(np.float16)
    for some in (halves, halves[np.abs(halves) < 100], halves[np.abs(halves) < 1e-4], halves.reshape(256, 256)[:, ::3]):
        wide, expected = to_float32(some), some.astype(np.float32)
        np.testing.assert_array_equal(wide, expected)
        np.testing.assert_array_equal(np.signbit(wide), np.signbit(expected))
        assert wide.dtype == np.float32


def test_a_copy_is_made_whatever_the_type():
    """The caller may write to it."""
    rows = np.ones((2, 3), dtype=np.float32)
    to_float32(rows)[:] = 0
    assert rows.all()
    assert to_float32([[1, 2]]).dtype == np.float32


def test_features_of_a_large_pool_are_made_block_by_block(monkeypatch):
    """In blocks of one row the same, and as float16 those of the rows asked for."""
    embeddings = np.random.default_rng(0).normal(size=(9, 5)).astype(np.float16)
    space = pool_space(embeddings, [1, 1, 1, 1, 0.2])
    expected = space.features(embeddings)
    monkeypatch.setattr(features_module, "CACHE_ENTRIES", 7)
    np.testing.assert_allclose(space.features(embeddings), expected, rtol=1e-5)
    halves = space.half_features(embeddings, np.array([7, 2]))
    assert halves.dtype == np.float16
    np.testing.assert_allclose(halves, expected[[7, 2]], atol=3e-4)
    np.testing.assert_allclose(space.half_features(embeddings), expected, atol=3e-4)
