"""Coreset selection and typicality on points of a line, whose answers can be worked out by hand."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.neighbors import NearestNeighbors

from backend.errors import SelectionError
from backend.learning import coreset
from backend.learning.coreset import select_coreset, typicality


def on_a_line(*positions: float) -> np.ndarray:
    """Embeddings (N, 2) at these positions of the first axis."""
    return np.array([[position, 0.0] for position in positions])


def test_diversity_alone_is_farthest_first():
    """From 0 the farthest is 10, then 4 (4 from 0), then 7 (3 from 4 and 10), then 1 ties with 9 and comes first."""
    assert select_coreset(on_a_line(0, 1, 4, 7, 9, 10), budget=5) == [0, 5, 2, 3, 1]


def covering_radius(points: np.ndarray, selected: list[int]) -> float:
    """The largest distance of any point to its nearest selected one."""
    return float(np.linalg.norm(points[:, None] - points[selected], axis=2).min(axis=1).max())


@pytest.mark.parametrize("seed", range(8))
def test_covering_radius_is_at_most_twice_the_best(seed):
    """Gonzalez 1985: k-center greedy is within a factor of two of the optimum, found here by trying all 364 choices.

    The first pick is fixed, so the guarantee is for every pool, not on average.
    """
    points = np.random.default_rng(seed).normal(size=(14, 2))
    best = min(covering_radius(points, list(some)) for some in itertools.combinations(range(14), 3))
    greedy = covering_radius(points, select_coreset(points, budget=3))
    assert best <= greedy <= 2 * best


def test_covering_radius_is_smaller_than_of_random_rows():
    """500 rows, 25 chosen: smaller than the best of twenty random choices."""
    random = np.random.default_rng(1)
    points = random.normal(size=(500, 8))
    by_chance = [covering_radius(points, random.choice(500, 25, replace=False).tolist()) for _ in range(20)]
    assert covering_radius(points, select_coreset(points, budget=25)) < min(by_chance)


@pytest.mark.parametrize("n_labeled", [2, 30, 150])
def test_balanced_strength_lets_both_terms_vary_equally(n_labeled):
    """The first pick is the largest sum of both terms, each divided by its standard deviation."""
    random = np.random.default_rng(2)
    points, weights = random.normal(size=(250, 6)), random.random(250)
    squared = ((points[:, None] - points) ** 2).sum(axis=2)
    labeled, free = np.arange(n_labeled), np.arange(n_labeled, 250)
    among = squared[:n_labeled, :n_labeled] + np.where(np.eye(n_labeled), np.inf, 0)
    diversity = np.log(among.min(axis=1).sum() + squared[free][:, labeled].min(axis=1))
    weighting = np.log(weights[labeled].sum() + weights[free])
    expected = free[(diversity / diversity.std() + weighting / weighting.std()).argmax()]
    assert select_coreset(
        points, budget=1, preselected=labeled.tolist(), typicality_weights=weights, weighting_strength=None
    ) == [expected]


@pytest.mark.parametrize("preselected", [[], [0]])
def test_balanced_strength_of_equal_weights_or_nothing_selected(preselected):
    """Where a term is constant there is no balance to find: 1, so diversity decides; nothing selected, the weights."""
    points = on_a_line(0, 4, 10)
    equal = select_coreset(
        points, budget=1, preselected=preselected, typicality_weights=[1, 1, 1], weighting_strength=None
    )
    assert equal == ([2] if preselected else [0])


def test_preselected_rows_count_and_are_not_returned():
    """With 0 and 10 labeled already, 4 is the farthest from both."""
    assert select_coreset(on_a_line(0, 1, 4, 7, 9, 10), budget=2, preselected=[5, 0]) == [2, 3]


def test_weights_alone_choose_the_first():
    """While nothing is selected there is no distance, so the largest weight wins; ties go to the lowest index."""
    assert select_coreset(on_a_line(0, 1, 2), budget=1, typicality_weights=[0.1, 0.7, 0.7]) == [1]


def test_a_weighted_step_by_hand():
    """After 0 (weight 1): 3 scores log 9 + log(1 + 0) = 2.20, 2 scores log 4 + log(1 + 2) = 2.48."""
    points = on_a_line(0, 3, 2)
    assert select_coreset(points, budget=1, preselected=[0], typicality_weights=[1, 0, 2]) == [2]
    assert select_coreset(points, budget=1, preselected=[0], typicality_weights=[1, 0, 2], weighting_strength=0.1) == [
        1
    ]
    assert select_coreset(points, budget=1, preselected=[0], typicality_weights=[1, 0, 2], weighting_strength=0) == [1]


def test_distance_sum_uses_the_nearest_selected_row_of_today():
    """Selecting 0, 10, then 1 brings row 0's nearest selected row to 1 away: S = 1 + 81 + 1 = 83, and W = 3.

    5 (d² = 16, weight 0) scores (83 + 16)·3 = 297; 12 (d² = 4) scores 87·3.4 = 295.8 at weight 0.4 and 304.5 at 0.5.
    Distances added up when selected (S = 101) would prefer 12 at 0.4 already, and no sum (S = 0) would prefer 5 at 0.5.
    """
    points = on_a_line(0, 10, 1, 5, 12)
    assert select_coreset(points, budget=1, preselected=[0, 1, 2], typicality_weights=[1, 1, 1, 0, 0.4]) == [3]
    assert select_coreset(points, budget=1, preselected=[0, 1, 2], typicality_weights=[1, 1, 1, 0, 0.5]) == [4]


def test_duplicates_come_last():
    """Copies of a selected row add nothing, so the distinct row is first and the copies follow in order."""
    assert select_coreset(on_a_line(0, 0, 0, 5), budget=4) == [0, 3, 1, 2]


@given(
    positions=st.lists(st.integers(-50, 50), min_size=1, max_size=12),
    weighted=st.booleans(),
    data=st.data(),
)
def test_selection_is_a_prefix_of_the_whole_order(positions, weighted, data):
    """A budget of k gives k different rows beside the preselected: the first k of what a larger budget gives."""
    points = on_a_line(*positions)
    weights = np.abs(positions) if weighted else None
    preselected = data.draw(st.lists(st.sampled_from(range(len(points))), unique=True))
    everything = select_coreset(
        points, budget=len(points) - len(preselected), preselected=preselected, typicality_weights=weights
    )
    assert sorted(everything + preselected) == list(range(len(points)))
    budget = data.draw(st.integers(0, len(everything)))
    some = select_coreset(points, budget=budget, preselected=preselected, typicality_weights=weights)
    assert some == everything[:budget]


def test_neither_scale_nor_offset_matters():
    """Moving and stretching the embeddings, or rescaling the weights, leaves the selection as it was."""
    random = np.random.default_rng(0)
    points, weights = random.normal(size=(40, 5)), random.random(40)
    expected = select_coreset(points, budget=10, typicality_weights=weights)
    assert select_coreset(points * 3 + 7, budget=10, typicality_weights=weights * 100) == expected


def test_small_blocks_give_the_same_result(monkeypatch):
    """Working in blocks of a few rows bounds memory and changes nothing."""
    points = np.random.default_rng(0).normal(size=(40, 5))
    typical = typicality(points, n_neighbors=3)
    expected = select_coreset(points, budget=10, preselected=[3, 30], typicality_weights=typical)
    monkeypatch.setattr(coreset, "BLOCK_ENTRIES", 60)
    np.testing.assert_allclose(typicality(points, n_neighbors=3), typical, rtol=1e-5)
    assert select_coreset(points, budget=10, preselected=[3, 30], typicality_weights=typical) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embeddings": on_a_line(0, np.nan, 2)}, "1 of 3 embeddings contain NaN or infinity, the first at row 1"),
        ({"embeddings": np.zeros(3)}, r"shape \(3,\)"),
        ({"budget": 4}, r"budget is 4; expected 0\.\.3"),
        ({"budget": 3, "preselected": [0]}, r"budget is 3; expected 0\.\.2, as 1 of 3"),
        ({"budget": -1}, "budget is -1"),
        ({"preselected": [3]}, r"index 3 is outside 0\.\.2"),
        ({"preselected": [-1]}, "index -1"),
        ({"preselected": [1, 1]}, "twice"),
        ({"typicality_weights": [1, 2]}, r"weights have shape \(2,\); expected \(3,\)"),
        ({"typicality_weights": [1, -2, 1]}, "negative"),
        ({"typicality_weights": [1, np.nan, 1]}, "NaN"),
    ],
)
def test_impossible_input_is_refused(change, message):
    """What the engine would answer silently and wrongly is an error that says what came and what was expected."""
    with pytest.raises(SelectionError, match=message):
        select_coreset(**({"embeddings": on_a_line(0, 1, 2), "budget": 1} | change))


def test_typicality_by_hand():
    """Nearest neighbours of 0, 1, 3 are 1, 1 and 2 away, 4/3 on average: exp(-3/4), exp(-3/4), exp(-3/2)."""
    np.testing.assert_allclose(typicality(on_a_line(0, 1, 3), n_neighbors=1), np.exp([-0.75, -0.75, -1.5]), rtol=1e-6)


def test_typicality_matches_recorded_engine_output():
    """lightly-mundig 0.1.16 gave these numbers for points 0, 1, 3, 7, 15 and two neighbours."""
    expected = [0.6388346, 0.7046364, 0.5553434, 0.3127362, 0.1031453]
    np.testing.assert_allclose(typicality(on_a_line(0, 1, 3, 7, 15), n_neighbors=2), expected, rtol=1e-5)


def test_more_neighbors_than_rows_means_all_others():
    """The number of neighbours is capped at N - 1."""
    points = on_a_line(0, 1, 3, 7)
    np.testing.assert_array_equal(typicality(points, n_neighbors=20), typicality(points, n_neighbors=3))


@pytest.mark.parametrize("n_rows", [1, 2, 30])
def test_equal_rows_are_equally_typical(n_rows):
    """Without any distance there is no outlier; the engine gives NaN here."""
    assert typicality(np.ones((n_rows, 3))).tolist() == [1.0] * n_rows


def test_sampled_typicality_finds_the_same_outliers(monkeypatch):
    """Above the exact limit a seeded sample of neighbours still tells a cluster from stragglers around it."""
    random = np.random.default_rng(0)
    points = np.vstack([random.normal(size=(380, 4)), 8 * random.normal(size=(20, 4))])
    exact = typicality(points, n_neighbors=5)
    monkeypatch.setattr(coreset, "EXACT_TYPICALITY_ROWS", 200)
    monkeypatch.setattr(coreset, "MIN_REFERENCE_ROWS", 50)
    sampled = typicality(points, n_neighbors=5, random_state=1)
    assert np.corrcoef(exact, sampled)[0, 1] > 0.9
    np.testing.assert_array_equal(sampled, typicality(points, n_neighbors=5, random_state=1))
    assert (sampled != typicality(points, n_neighbors=5, random_state=2)).any()


def test_typicality_needs_a_neighbor():
    """Zero neighbours have no mean."""
    with pytest.raises(SelectionError, match="at least 1"):
        typicality(on_a_line(0, 1), n_neighbors=0)


def plain_greedy(
    points: np.ndarray, budget: int, preselected: list[int], weights: np.ndarray | None, strength: float
) -> list[int]:
    """The greedy rule with every distance computed at every step, in float64."""
    squared = ((points[:, None] - points) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    selected = list(preselected)
    while len(selected) < len(preselected) + budget:
        if not selected:
            potentials = np.zeros(len(points)) if weights is None else weights.copy()
        else:
            nearest = squared[:, selected].min(axis=1)
            spread = nearest[selected].sum() if len(selected) > 1 else 0
            potentials = np.log(np.maximum(spread + nearest, 1e-12))
            if weights is not None:
                potentials += strength * np.log(np.maximum(weights[selected].sum() + weights, 1e-12))
        potentials[selected] = -np.inf
        selected.append(int(potentials.argmax()))
    return selected[len(preselected) :]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_preselected", [0, 3, 400])
def test_leaving_rows_out_changes_no_pick(seed, weighted, n_preselected, monkeypatch):
    """1,500 rows in 3 or 12 dimensions, 60 picks: the same as with every distance computed, in small steps too."""
    random = np.random.default_rng(seed)
    points = random.normal(size=(1500, 3 if seed % 2 else 12)) * random.gamma(2, size=(1500, 1))
    weights = random.random(1500) if weighted else None
    preselected = random.choice(1500, n_preselected, replace=False).tolist()
    expected = plain_greedy(points, 60, preselected, weights, 0.7)
    asked = {"preselected": preselected, "typicality_weights": weights, "weighting_strength": 0.7}
    assert select_coreset(points, budget=60, **asked) == expected
    monkeypatch.setattr(coreset, "MAX_PENDING", 5)
    monkeypatch.setattr(coreset, "CACHE_ENTRIES", 100)
    assert select_coreset(points, budget=60, **asked) == expected


@pytest.mark.parametrize("n_features", [2, 64])
def test_few_rows_are_read_again(monkeypatch, n_features):
    """100 of 20,000 rows, on a plane and where all are about equally far: two passes' worth of reading, not 100."""
    n_read = []
    part = coreset._Selection._part

    def counting(self, index):
        rows = part(self, index)
        n_read.append(len(rows))
        return rows

    monkeypatch.setattr(coreset._Selection, "_part", counting)
    select_coreset(np.random.default_rng(0).normal(size=(20_000, n_features)), budget=100)
    assert 20_000 < sum(n_read) < 3 * 20_000


@pytest.mark.parametrize("points", [np.eye(300), np.ones((300, 4)), np.repeat(np.eye(30), 10, axis=0)])
def test_equal_distances_go_by_index(points):
    """All rows equally far, all rows one, ten copies of thirty: the lowest index is first among equals."""
    expected = plain_greedy(points.astype(np.float64), 40, [], None, 1.0)
    assert select_coreset(points, budget=40) == expected


def test_float16_embeddings_are_selected_as_they_are():
    """No pick is lost to the type they are stored in, and the array may be read-only."""
    points = np.random.default_rng(3).normal(size=(500, 16)).astype(np.float16)
    points.setflags(write=False)
    assert select_coreset(points, budget=40) == plain_greedy(points.astype(np.float64), 40, [], None, 1.0)
    np.testing.assert_allclose(typicality(points), typicality(points.astype(np.float32)), rtol=1e-5)


def test_an_infinite_float16_is_found():
    """It would be an ordinary number to bits moved without looking."""
    points = np.ones((4, 3), dtype=np.float16)
    points[2, 1] = np.inf
    for budget in (0, 1):
        with pytest.raises(SelectionError, match="1 of 4 embeddings contain NaN or infinity, the first at row 2"):
            select_coreset(points, budget=budget)


def test_embeddings_too_long_for_float32_are_refused():
    """Their squared lengths overflow, and every distance with them."""
    with pytest.raises(SelectionError, match="row 1 is too long to be compared"):
        select_coreset(on_a_line(0, 1e20, 3), budget=1)


@pytest.mark.parametrize(
    ("strengths", "message"),
    [
        ({"diversity_strength": 0}, "diversity_strength is 0"),
        ({"weighting_strength": -1.0}, "weighting_strength is -1"),
    ],
)
def test_strengths_that_turn_the_rule_round_are_refused(strengths, message):
    """A row nearer to the selected ones, or of less weight, is never better."""
    with pytest.raises(SelectionError, match=message):
        select_coreset(on_a_line(0, 1, 2), budget=1, **strengths)


def test_selection_needs_little_memory_beside_the_embeddings():
    """20,000 × 512 float16, with weights and labels: no float32 copy of it, a quarter of the array at most."""
    rows = np.random.default_rng(0).normal(size=(20_000, 512)).astype(np.float16)
    weights = np.ones(len(rows))
    tracemalloc.start()
    try:
        select_coreset(rows, budget=20, preselected=[1, 2, 3], typicality_weights=weights)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 0.25 * rows.nbytes  # most of it are samples and blocks, of one size whatever that of the array


def test_covering_radius_by_hand():
    """From 0 and 10, 4 is the farthest: 4 away."""
    assert coreset.covering_radius(on_a_line(0, 1, 4, 7, 9, 10), [0, 5]) == pytest.approx(4)
    with pytest.raises(SelectionError, match="no row is selected"):
        coreset.covering_radius(on_a_line(0, 1), [])
    with pytest.raises(SelectionError, match="index 7"):
        coreset.covering_radius(on_a_line(0, 1), [7])


@pytest.mark.parametrize("n_neighbors", [1, 4, 20, 700])
@pytest.mark.parametrize("n_reference", [2, 50, 401, 700])
def test_neighbor_distances_are_scikit_learns(n_neighbors, n_reference):
    """Among all rows and among some of them, without themselves; capped at how many others there are."""
    points = np.random.default_rng(0).normal(size=(700, 8)).astype(np.float32)
    reference = np.random.default_rng(1).choice(700, n_reference, replace=False)
    found = np.sort(coreset.neighbor_distances(points, n_neighbors, reference), axis=1)
    n_kept = min(n_neighbors, n_reference - 1)
    assert found.shape == (700, n_kept)
    search = NearestNeighbors(n_neighbors=n_kept + 1 if n_kept < n_reference else n_kept).fit(points[reference])
    distances, columns = search.kneighbors(points)
    for row in range(700):
        others = distances[row, reference[columns[row]] != row][:n_kept]
        np.testing.assert_allclose(found[row], others, atol=2e-3)


def test_a_sample_has_as_much_fewer_neighbors(monkeypatch):
    """Of 4,000 rows in clusters of many sizes, 500 are looked at: the ranks are near those among all, nearer than with
    as many neighbours of the sample."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, 8))
    points = centres[random.integers(0, 40, 4000)] + random.gamma(2, 0.2, (4000, 1)) * random.normal(size=(4000, 8))
    exact = typicality(points)
    monkeypatch.setattr(coreset, "MIN_REFERENCE_ROWS", 500)
    sampled = typicality(points, exact_rows=1)
    monkeypatch.setattr(coreset, "MIN_SAMPLED_NEIGHBORS", 20)
    as_many = typicality(points, exact_rows=1)
    correlations = [float(spearmanr(exact, other).statistic) for other in (sampled, as_many)]
    assert correlations[0] > max(0.9, correlations[1] + 0.02)


@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(lambda sizes: 4 <= sum(sizes) <= 14),
    n_labeled=st.integers(0, 2),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_merged_coresets_are_within_four_times_the_best(sizes, n_labeled, seed):
    """Up to 14 rows in up to four shards, 3 chosen beside those labeled: the best is found by trying all choices.

    The bound holds for any division into shards, also where one is empty or smaller than the budget.
    """
    random = np.random.default_rng(seed)
    pool = random.normal(size=(sum(sizes), 2)) * random.gamma(1, size=(sum(sizes), 1))
    labeled = random.normal(size=(n_labeled, 2))
    shards = np.split(pool, np.cumsum(sizes)[:-1])
    chosen_of_shards, radii = [], [0.0]
    for shard in shards:
        with_labels = np.concatenate([labeled, shard])
        chosen = select_coreset(with_labels, budget=min(3, len(shard)), preselected=range(n_labeled))
        chosen_of_shards.append(with_labels[chosen])
        if chosen or n_labeled:
            radii.append(covering_radius(with_labels, [*range(n_labeled), *chosen]))
    merged = coreset.merge_coresets(chosen_of_shards, budget=3, labeled=labeled)
    assert len(set(merged)) == 3
    everything = np.concatenate([labeled, pool])

    def radius(centres: np.ndarray) -> float:
        return float(np.linalg.norm(everything[:, None] - centres, axis=2).min(axis=1).max())

    found = radius(np.concatenate([labeled, [chosen_of_shards[shard][row] for shard, row in merged]]))
    best = min(
        radius(np.concatenate([labeled, pool[list(some)]])) for some in itertools.combinations(range(len(pool)), 3)
    )
    assert found <= 4 * best + 1e-6


def test_a_merged_coreset_by_hand():
    """Shards 0, 1, 4 and 10, 9: with the budget of two, 0 is first (the first row of the first), 10 the farthest."""
    assert coreset.merge_coresets([on_a_line(0, 4, 1), on_a_line(9, 10)], budget=2) == [(0, 0), (1, 1)]
    assert coreset.merge_coresets([on_a_line(0, 4), on_a_line(10)], budget=1, labeled=on_a_line(9)) == [(0, 0)]
    assert coreset.merge_coresets([], budget=0) == []


def test_one_shard_is_no_shard():
    """Farthest-first of what farthest-first chose is the same rows in the same order."""
    points = np.random.default_rng(0).normal(size=(80, 3))
    chosen = select_coreset(points, budget=12)
    assert coreset.merge_coresets([points[chosen]], budget=12) == [(0, row) for row in range(12)]


def test_coresets_that_do_not_fit_together_are_refused():
    """Other lengths of embeddings, more rows than there are."""
    with pytest.raises(SelectionError, match=r"embeddings of \[2, 3\] numbers; expected one length"):
        coreset.merge_coresets([np.eye(2), np.eye(3)], budget=1)
    with pytest.raises(SelectionError, match=r"budget is 5; expected 0\.\.4"):
        coreset.merge_coresets([np.eye(2), np.eye(2)], budget=5)
