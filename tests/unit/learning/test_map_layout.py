"""The layout of the embedding map: neighbors stay neighbors, nothing moves, and nothing odd breaks it."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.manifold import trustworthiness

from backend.learning.features import pool_space
from backend.learning.layout import Axes, Layout, fit_axes, lay_out, nearest, place


def axes_of(embeddings: np.ndarray) -> Axes:
    finite = embeddings[np.isfinite(embeddings).all(axis=1)]
    return fit_axes(embeddings, pool_space(finite))


def map_of(embeddings: np.ndarray, **options: int) -> Layout:
    return lay_out(axes_of(embeddings).coordinates(embeddings), random_state=0, **options)


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    """600 handwritten digits, (600, 64)."""
    return load_digits().data[:600].astype(np.float32)


@pytest.fixture(scope="module")
def digit_map(digits: np.ndarray) -> Layout:
    return map_of(digits)


def test_neighbors_on_the_map_were_neighbors(digits: np.ndarray, digit_map: Layout) -> None:
    """Far better than the first two principal components: at most a quarter of the false neighbors those show."""
    axes = axes_of(digits)
    features = axes.space.features(digits)
    plain = trustworthiness(features, axes.coordinates(digits)[:, :2], n_neighbors=10)
    mapped = trustworthiness(features, digit_map.positions, n_neighbors=10)
    assert 1 - mapped < (1 - plain) / 4
    assert digit_map.is_reference.all()


def test_it_fills_the_square_and_keeps_its_proportions(digit_map: Layout) -> None:
    """x and y in -1..1, one of them from end to end, both around the middle."""
    low, high = digit_map.positions.min(axis=0), digit_map.positions.max(axis=0)
    assert np.abs(digit_map.positions).max() <= 1
    assert (high - low).max() == pytest.approx(2)
    np.testing.assert_allclose(low + high, 0, atol=1e-6)
    assert digit_map.positions.dtype == np.float32


def test_the_same_images_give_the_same_map(digits: np.ndarray, digit_map: Layout) -> None:
    """To the last bit; mirrored axes, which are as good, do not mirror it."""
    np.testing.assert_array_equal(map_of(digits).positions, digit_map.positions)
    axes = axes_of(digits)
    largest = np.abs(axes.directions).argmax(axis=0)
    assert (axes.directions[largest, np.arange(axes.directions.shape[1])] > 0).all()


def test_without_opentsne_scikit_learn_lays_out(digits: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Linux on ARM: as good a map, and the same at every run."""
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    some = digits[:300]
    mapped = map_of(some)
    features = axes_of(some).space.features(some)
    plain = trustworthiness(features, axes_of(some).coordinates(some)[:, :2], n_neighbors=10)
    assert 1 - trustworthiness(features, mapped.positions, n_neighbors=10) < (1 - plain) / 3
    np.testing.assert_array_equal(map_of(some).positions, mapped.positions)


def test_of_many_images_a_sample_is_laid_out_and_the_others_lie_beside_their_neighbors(digits: np.ndarray) -> None:
    """200 of 600 by t-SNE, the others by them: still with at most half of the false neighbors of two components."""
    mapped = map_of(digits, max_optimised=200)
    assert mapped.is_reference.sum() == 200
    axes = axes_of(digits)
    features = axes.space.features(digits)
    plain = trustworthiness(features, axes.coordinates(digits)[:, :2], n_neighbors=10)
    assert 1 - trustworthiness(features, mapped.positions, n_neighbors=10) < (1 - plain) / 2
    np.testing.assert_array_equal(mapped.positions, map_of(digits, max_optimised=200).positions)


def test_a_further_image_lies_where_its_like_lie(digits: np.ndarray) -> None:
    """Half of the digits placed on the map of the others: nine of ten lie nearest to one of their own class."""
    classes = load_digits().target[:600]
    axes, half = axes_of(digits), np.arange(600) % 2 == 0
    coordinates = axes.coordinates(digits)
    kept = lay_out(coordinates[half], random_state=0)
    before = kept.positions.copy()
    placed = place(coordinates[~half], coordinates[half], kept.positions)
    np.testing.assert_array_equal(kept.positions, before)
    rows, _ = nearest(placed, kept.positions, 1)
    assert np.mean(classes[half][rows[:, 0]] == classes[~half]) > 0.9


def test_between_two_groups_a_further_image_goes_to_the_larger_share_of_its_neighbors() -> None:
    """Three of its five neighbors lie at (-1, 0) and two at (1, 0): it lies with the three, not between."""
    references = np.array([[1.0], [1.1], [1.2], [0.8], [0.7]], dtype=np.float32)
    positions = np.array([[-1, 0], [-1, 0], [-1, 0], [1, 0], [1, 0]], dtype=np.float32)
    np.testing.assert_allclose(place(np.array([[0.95]], np.float32), references, positions), [[-1, 0]])


def test_without_anything_on_the_map_further_images_lie_in_the_middle() -> None:
    """All images of the old map are gone."""
    nothing = np.empty((0, 3), np.float32)
    np.testing.assert_array_equal(
        place(np.ones((2, 3), np.float32), nothing, np.empty((0, 2), np.float32)), [[0, 0]] * 2
    )


def test_nearest_by_hand() -> None:
    """On a line 0, 1, 3: of 0.9 the nearest are 1 and 0; nobody is its own neighbor."""
    line = np.array([[0.0], [1.0], [3.0]], dtype=np.float32)
    rows, squared = nearest(np.array([[0.9]], np.float32), line, 2)
    assert rows.tolist() == [[1, 0]]
    np.testing.assert_allclose(squared, [[0.01, 0.81]], atol=1e-6)
    assert nearest(line, line, 1, themselves=True)[0].tolist() == [[1], [0], [1]]


def test_large_matrices_are_made_in_parts(monkeypatch: pytest.MonkeyPatch, digits: np.ndarray) -> None:
    """In blocks of one row the neighbors are the same."""
    coordinates = axes_of(digits).coordinates(digits)[:50]
    rows, _ = nearest(coordinates, coordinates, 5, themselves=True)
    monkeypatch.setattr("backend.learning.layout.BLOCK_ENTRIES", 1)
    np.testing.assert_array_equal(nearest(coordinates, coordinates, 5, themselves=True)[0], rows)


@pytest.mark.parametrize("n_images", [0, 1, 2, 3, 5, 8, 9, 12])
def test_few_images_have_a_map(digits: np.ndarray, n_images: int) -> None:
    """A single one in the middle; none on top of another."""
    positions = map_of(digits[:n_images]).positions
    assert positions.shape == (n_images, 2)
    assert np.isfinite(positions).all()
    assert len(np.unique(positions, axis=0)) == n_images
    if n_images == 1:
        np.testing.assert_array_equal(positions, [[0, 0]])


def test_images_that_are_all_the_same_lie_side_by_side() -> None:
    """There is nothing to lay out by, but each can be pointed at."""
    positions = map_of(np.ones((30, 4), np.float16)).positions
    assert len(np.unique(positions, axis=0)) == 30
    assert np.abs(positions).max() <= 1


def test_images_that_differ_in_one_thing_only_have_a_map() -> None:
    """One principal axis: two groups of fifteen stay apart."""
    embeddings = np.repeat([[1.0, 0.0], [0.0, 1.0]], 15, axis=0)
    positions = map_of(embeddings).positions
    assert np.isfinite(positions).all()
    rows, _ = nearest(positions, positions, 3, themselves=True)
    assert (rows // 15 == np.arange(30)[:, None] // 15).all()


def test_what_is_not_finite_disturbs_nobody(digits: np.ndarray) -> None:
    """Two broken embeddings lie somewhere; the others have axes as without them."""
    broken = digits[:60].copy()
    broken[7, 3], broken[20] = np.nan, np.inf
    positions = map_of(broken).positions
    assert np.isfinite(positions).all()
    others = np.delete(broken, [7, 20], axis=0)
    np.testing.assert_allclose(axes_of(broken).mean, axes_of(others).mean, atol=1e-6)
    assert np.isfinite(map_of(np.full((12, 3), np.nan)).positions).all()


def test_it_says_how_far_it_is_and_can_be_ended(digits: np.ndarray) -> None:
    """Shares from 0 to 1, ascending; an exception of the listener passes through."""
    shares: list[float] = []
    coordinates = axes_of(digits).coordinates(digits)[:40]
    lay_out(coordinates, random_state=0, report=shares.append)
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, pytest.approx(1))

    def end(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lay_out(coordinates, random_state=0, report=end)
