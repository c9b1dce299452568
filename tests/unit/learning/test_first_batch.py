"""First-batch strategies: on points whose answer can be worked out by hand, and whatever holds for every pool."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.config import SEED_STRATEGIES
from backend.errors import SelectionError
from backend.learning import coreset as coreset_module
from backend.learning import first_batch
from backend.learning.coreset import select_coreset, typicality
from backend.learning.first_batch import FIRST_BATCH_STRATEGIES, k_means, probcover, random, typiclust

every_strategy = pytest.mark.parametrize("name", FIRST_BATCH_STRATEGIES)


def select(name: str, features: object, budget: int, preselected: Sequence[int] = ()) -> list[int]:
    return FIRST_BATCH_STRATEGIES[name](features, budget=budget, preselected=preselected, n_classes=3, random_state=0)


def clusters(*sizes: int, spread: float = 0.1, seed: int = 0) -> np.ndarray:
    """Clusters of these sizes, one after the other, around corners far from each other."""
    generator = np.random.default_rng(seed)
    corners = 10 * np.eye(len(sizes), 6)
    return np.vstack(
        [corner + spread * generator.normal(size=(size, 6)) for corner, size in zip(corners, sizes, strict=True)]
    ).astype(np.float32)


def test_the_settings_offer_exactly_these() -> None:
    """SEED_STRATEGY's choices and the functions have the same names."""
    assert set(SEED_STRATEGIES) == set(FIRST_BATCH_STRATEGIES)


@every_strategy
@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.data())
def test_any_pool_gives_as_many_different_rows_as_asked(name: str, positions: list[int], data: st.DataObject) -> None:
    """Duplicates, one row, all rows: `budget` different ones, none preselected, and twice the same."""
    points = np.array([[position, 1.0] for position in positions], dtype=np.float32)
    preselected = data.draw(st.lists(st.sampled_from(range(len(points))), unique=True))
    budget = data.draw(st.integers(0, len(points) - len(preselected)))
    chosen = select(name, points, budget, preselected)
    assert len(set(chosen)) == len(chosen) == budget
    assert not set(chosen) & set(preselected)
    assert set(chosen) <= set(range(len(points)))
    assert chosen == select(name, points, budget, preselected)


@every_strategy
def test_impossible_input_is_refused(name: str) -> None:
    """NaN, a budget above the rows left, an index outside."""
    with pytest.raises(SelectionError, match="1 of 3 embeddings contain NaN"):
        select(name, [[0.0], [np.nan], [1.0]], 1)
    with pytest.raises(SelectionError, match=r"budget is 3; expected 0\.\.2"):
        select(name, np.eye(3), 3, [0])
    with pytest.raises(SelectionError, match="index 7"):
        select(name, np.eye(3), 1, [7])


@pytest.mark.parametrize("name", ["typical_coreset", "typiclust", "probcover"])
def test_one_of_each_cluster_comes_first(name: str) -> None:
    """Three clusters, a budget of three: one row of each."""
    points = clusters(20, 12, 9)
    assert sorted(int(index >= 20) + int(index >= 32) for index in select(name, points, 3)) == [0, 1, 2]


def test_random_is_a_permutation_of_the_free_rows() -> None:
    """Another seed, another order; over many seeds each free row comes first equally often."""
    orders = [random(np.eye(5), budget=4, preselected=[2], n_classes=2, random_state=seed) for seed in range(400)]
    assert all(sorted(order) == [0, 1, 3, 4] for order in orders)
    firsts = np.bincount([order[0] for order in orders], minlength=5)
    assert firsts[2] == 0
    assert firsts[[0, 1, 3, 4]].min() > 70  # of 400, 100 expected each, standard deviation 8.7


def test_the_two_coresets_are_lightly_s_algorithm() -> None:
    """Diversity, and diversity with typicality as weights."""
    points = np.random.default_rng(0).normal(size=(60, 4))
    assert select("coreset", points, 8, [3]) == select_coreset(points, budget=8, preselected=[3])
    assert select("typical_coreset", points, 8, [3]) == select_coreset(
        points, budget=8, preselected=[3], typicality_weights=typicality(points)
    )


# -- TypiClust --------------------------------------------------------------------------------------------------------


def test_typiclust_takes_the_middle_of_the_largest_uncovered_cluster() -> None:
    """Clusters of 30, 20 and 10 points on a line around 0, 100, 200; 100 is labeled: the middles of 0, then of 200.

    With 30 points the ten in the middle have ten neighbours on each side and tie; with ten points the middle two do.
    """
    line = np.concatenate([np.linspace(c - 1, c + 1, n) for c, n in ((0, 30), (100, 20), (200, 10))])
    points = np.stack([line, np.zeros_like(line)], axis=1)
    chosen = typiclust(points, budget=2, preselected=[40], n_classes=2, random_state=0)
    assert abs(line[chosen[0]]) < 0.35
    assert abs(line[chosen[1]] - 200) < 0.12


def test_typiclust_leaves_tiny_clusters_for_last() -> None:
    """Two clusters of 20 and three stray points: with five clusters, the strays' come after the others."""
    points = np.vstack([clusters(20, 20), 100 * np.eye(6)[3:]])
    chosen = typiclust(points, budget=5, n_classes=2, random_state=0)
    assert sorted(index // 20 for index in chosen[:2]) == [0, 1]
    assert set(chosen) >= {40, 41, 42} or set(chosen).isdisjoint({40, 41, 42})


def test_typiclust_goes_round_when_every_cluster_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most two clusters of 12 and 8: a budget of six takes three of each, alternating, the larger first."""
    monkeypatch.setattr(first_batch, "MAX_CLUSTERS", 2)
    chosen = typiclust(clusters(12, 8), budget=6, n_classes=2, random_state=0)
    assert [int(index >= 12) for index in chosen] == [0, 1, 0, 1, 0, 1]


def test_typiclust_compares_a_sample_of_a_large_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 60 rows 20 are compared: the row chosen is still in the inner half, and every row can be chosen."""
    monkeypatch.setattr(first_batch, "CLUSTER_ROWS", 20)
    points = clusters(60)
    (chosen,) = typiclust(points, budget=1, n_classes=2, random_state=0)
    from_centre = np.linalg.norm(points - points.mean(axis=0), axis=1)
    assert from_centre[chosen] < np.median(from_centre)
    assert sorted(typiclust(points, budget=60, n_classes=2, random_state=0)) == list(range(60))


def test_k_means_finds_the_clusters_from_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mini-batches on a sample still assign every row, and rows of one cluster to one."""
    monkeypatch.setattr(first_batch, "KMEANS_ROWS", 40)
    monkeypatch.setattr(first_batch, "EXACT_KMEANS_ROWS", 10)
    found = k_means(clusters(30, 30, 30), 3, random_state=0)
    assert [len(set(found[start : start + 30].tolist())) for start in (0, 30, 60)] == [1, 1, 1]
    assert len(set(found.tolist())) == 3


# -- ProbCover --------------------------------------------------------------------------------------------------------


def test_probcover_s_radius_is_the_largest_pure_one() -> None:
    """Against trying every radius: the share of balls with one pseudo-label is PURITY or more, and no larger one's."""
    points = np.random.default_rng(3).normal(size=(80, 3)).astype(np.float32)
    labels = k_means(points, 4, random_state=0)
    radius = np.sqrt(first_batch._pure_radius(points, labels))
    distances = np.linalg.norm(points[:, None] - points, axis=2)

    def purity(open_radius: float) -> float:
        return float(np.mean([len(set(labels[row < open_radius].tolist())) <= 1 for row in distances]))

    assert purity(radius * (1 - 1e-5)) >= first_batch.PURITY
    assert purity(radius * (1 + 1e-5)) < first_batch.PURITY


def test_probcover_covers_like_the_plain_greedy_algorithm() -> None:
    """Against the greedy algorithm on the whole graph: the same gains, step by step, until all is covered."""
    points = np.random.default_rng(5).normal(size=(70, 3)).astype(np.float32)
    taken = np.zeros(70, dtype=bool)
    taken[[4, 9]] = True
    squared_radius = 1.3
    inside = ((points[:, None] - points) ** 2).sum(axis=2) < squared_radius
    chosen = first_batch._cover(points, squared_radius, taken, 68)
    covered = inside[taken].any(axis=0)
    for index in chosen:
        gains = (inside & ~covered).sum(axis=1)
        assert gains[index] == gains.max() > 0
        covered |= inside[index]
    assert covered.all()


def test_probcover_starts_where_most_is_uncovered() -> None:
    """Clusters of 20, 12 and 6 with the largest labeled: 12, then 6."""
    chosen = probcover(clusters(20, 12, 6), budget=2, preselected=[0], n_classes=3, random_state=0)
    assert 20 <= chosen[0] < 32
    assert chosen[1] >= 32


def test_probcover_of_a_large_pool_uses_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """90 rows, 30 of them seen: still one of each cluster, labeled rows count, and all rows can be chosen."""
    monkeypatch.setattr(first_batch, "PROBCOVER_ROWS", 30)
    points = clusters(40, 30, 20)
    chosen = probcover(points, budget=2, preselected=[5], n_classes=3, random_state=1)
    assert sorted(int(index >= 70) for index in chosen) == [0, 1]
    assert min(chosen) >= 40
    everything = probcover(points, budget=89, preselected=[5], n_classes=3, random_state=1)
    assert sorted([*everything, 5]) == list(range(90))


@every_strategy
def test_small_blocks_and_samples_change_nothing_in_small_pools(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Working in blocks of a few rows bounds memory only."""
    points = clusters(15, 12, 9, spread=1.0)
    expected = select(name, points, 9, [2, 20])
    monkeypatch.setattr(coreset_module, "BLOCK_ENTRIES", 80)
    assert select(name, points, 9, [2, 20]) == expected
