"""First-batch strategies: which images to label while there is no model to ask, one function each.

All take features (N, D), as `learning.features` makes them: centred on the pool and of length 1. They give `budget`
different indices into the features, best first, without the `preselected` ones, which count as labeled already.
`n_classes` is how many classes the labeling config offers and `random_state` seeds what is random; a strategy without
use for one of them says so by not naming it below. All raise SelectionError for impossible input, see
`coreset.check_selection`. At 1,000,000 × 512 they stay within a minute of one core and a fifth of the features' memory
beside them (float16; a float32 copy is made of samples only): where the exact thing is quadratic in N, it is done on a
sample. The features may be a torch tensor, on whose device the work on all rows is then done.
"""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.learning.coreset import (
    as_rows,
    check_selection,
    is_tensor,
    n_rows_of,
    neighbor_distances,
    row_blocks,
    select_coreset,
    squared_distances,
    take,
    typicality,
)
from backend.learning.features import cache_blocks

if TYPE_CHECKING:
    import torch

Rows = NDArray[np.float32]
Indices = NDArray[np.intp]

MAX_CLUSTERS = 500
"""Clusters of TypiClust at most, as in its paper: more would hold too few images to tell a typical one."""

N_NEIGHBORS = 20
"""Neighbours whose mean distance makes a row of a cluster typical, as in TypiClust's paper."""

SMALL_CLUSTER = 5
"""Clusters of fewer rows come after all others: as in TypiClust's code, they are taken for outliers."""

CLUSTER_ROWS = 1_000
"""Of a larger cluster TypiClust compares a sample of so many rows with each other, and takes the rest after them."""

PURITY = 0.95
"""Share of ProbCover's balls that hold one pseudo-label only, as in its paper."""

PROBCOVER_ROWS = 10_000
"""Above this many rows ProbCover covers a sample of so many: about 20 seconds on two cores for D = 1,280."""

EXACT_KMEANS_ROWS = 5_000
"""Up to this many rows k-means sees all of them in each step (Lloyd), above in mini-batches."""

KMEANS_ROWS = 20_000
"""Above this many rows the centres of k-means are found on a sample of so many; all rows then go to the nearest."""


class FirstBatchStrategy(Protocol):
    """What every function of `FIRST_BATCH_STRATEGIES` looks like."""

    def __call__(
        self,
        features: ArrayLike | torch.Tensor,
        *,
        budget: int,
        preselected: Sequence[int] = (),
        n_classes: int,
        random_state: int,
    ) -> list[int]:
        """`budget` indices into the features (N, D), best first."""


def random(
    features: ArrayLike | torch.Tensor,
    *,
    budget: int,
    preselected: Sequence[int] = (),
    n_classes: int,
    random_state: int,
) -> list[int]:
    """Any rows, each order equally likely by `random_state`: what other strategies are compared with."""
    check_selection(features, budget=budget, preselected=preselected)
    free = _free_rows(n_rows_of(features), preselected)
    order: list[int] = np.random.default_rng(random_state).permutation(free)[:budget].tolist()
    return order


def coreset(
    features: ArrayLike | torch.Tensor,
    *,
    budget: int,
    preselected: Sequence[int] = (),
    n_classes: int,
    random_state: int,
) -> list[int]:
    """The row farthest from all chosen ones, again and again: k-center greedy, Lightly's diversity strategy.

    Sener & Savarese 2018, https://arxiv.org/abs/1708.00489. No randomness.
    """
    return select_coreset(features, budget=budget, preselected=preselected)


def typical_coreset(
    features: ArrayLike | torch.Tensor,
    *,
    budget: int,
    preselected: Sequence[int] = (),
    n_classes: int,
    random_state: int,
) -> list[int]:
    """Rows far from the chosen ones and in dense places: Lightly's diversity and typicality strategies.

    Both with strength 1. `random_state` seeds the sample that typicality is estimated from in large pools, see
    `coreset.typicality`.
    """
    check_selection(features, budget=budget, preselected=preselected)
    weights = typicality(features, random_state=random_state)
    return select_coreset(features, budget=budget, preselected=preselected, typicality_weights=weights)


def typiclust(
    features: ArrayLike | torch.Tensor,
    *,
    budget: int,
    preselected: Sequence[int] = (),
    n_classes: int,
    random_state: int,
) -> list[int]:
    """The most typical row of the largest cluster without a label, then of the next largest.

    TypiClust, Hacohen et al. 2022, https://arxiv.org/abs/2202.02794: k-means into as many clusters as there are
    preselected rows and budget together (`MAX_CLUSTERS` at most), and of each the row with the smallest mean distance
    to its `N_NEIGHBORS` nearest in the cluster. Once all clusters hold a chosen row, those with the fewest come first.
    `random_state` seeds k-means and its samples.
    """
    check_selection(features, budget=budget, preselected=preselected)
    if budget == 0:
        return []
    rows = features if is_tensor(features) else as_rows(features)
    taken = list(preselected)
    clusters = k_means(rows, min(len(taken) + budget, MAX_CLUSTERS), random_state=random_state)
    n_clusters = int(clusters.max()) + 1
    sizes = np.bincount(clusters, minlength=n_clusters)
    n_chosen = np.bincount(clusters[taken], minlength=n_clusters)
    queue = [
        (bool(sizes[cluster] < SMALL_CLUSTER), int(n_chosen[cluster]), -int(sizes[cluster]), cluster)
        for cluster in np.unique(clusters).tolist()
    ]
    heapq.heapify(queue)
    is_free = np.ones(len(rows), dtype=bool)
    is_free[taken] = False
    waiting: dict[int, list[int]] = {}  # cluster → its free rows, the most typical last
    chosen: list[int] = []
    while len(chosen) < budget:
        small, n_before, negative_size, cluster = heapq.heappop(queue)
        if cluster not in waiting:
            members = np.flatnonzero(clusters == cluster)
            by_typicality = _least_typical_first(rows, members, random_state=random_state)
            waiting[cluster] = by_typicality[is_free[by_typicality]].tolist()
        if waiting[cluster]:  # a cluster whose rows are all chosen does not come back
            chosen.append(waiting[cluster].pop())
            heapq.heappush(queue, (small, n_before + 1, negative_size, cluster))
    return chosen


def probcover(
    features: ArrayLike | torch.Tensor,
    *,
    budget: int,
    preselected: Sequence[int] = (),
    n_classes: int,
    random_state: int,
) -> list[int]:
    """The row whose ball holds most rows that no chosen row's ball holds, again and again.

    ProbCover, Yehuda et al. 2022, https://arxiv.org/abs/2205.11320. All balls have one radius, the largest at which
    `PURITY` of them hold rows of one pseudo-label only, k-means with `n_classes` clusters giving the pseudo-labels.
    Nothing left to cover, farthest-first goes on. Above `PROBCOVER_ROWS` rows both are done on a random sample (with
    the preselected rows in it), so a ball counts sampled rows only. `random_state` seeds sample and k-means.
    """
    check_selection(features, budget=budget, preselected=preselected)
    if budget == 0:
        return []
    rows = features if is_tensor(features) else as_rows(features)
    sample = _sample_with(preselected, len(rows), PROBCOVER_ROWS, random_state=random_state)
    sampled = take(rows, sample)
    is_taken = np.isin(sample, np.asarray(preselected, dtype=np.intp))
    pseudo_labels = k_means(sampled, max(n_classes, 2), random_state=random_state)
    chosen = sample[_cover(sampled, _pure_radius(sampled, pseudo_labels), is_taken, budget)].tolist()
    rest = select_coreset(rows, budget=budget - len(chosen), preselected=[*preselected, *chosen])
    return [*chosen, *rest]


FIRST_BATCH_STRATEGIES: Mapping[str, FirstBatchStrategy] = MappingProxyType(
    {
        "typical_coreset": typical_coreset,
        "coreset": coreset,
        "typiclust": typiclust,
        "probcover": probcover,
        "random": random,
    }
)
"""The first-batch strategies by the name a setting or a command line uses."""


def k_means(rows: ArrayLike | torch.Tensor, n_clusters: int, *, random_state: int) -> Indices:
    """The cluster (N,) of each row (N, D), 0 to n_clusters - 1; fewer appear where fewer rows differ.

    scikit-learn's, with k-means++ starts. Cost O(N·D·n_clusters) and a few steps of the same on `KMEANS_ROWS` rows, of
    which a float32 copy is made.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans  # a second to import, and most processes never cluster
    from sklearn.exceptions import ConvergenceWarning

    n_rows = n_rows_of(rows)
    seen = take(rows, _sample_with((), n_rows, KMEANS_ROWS, random_state=random_state))
    n_clusters = min(n_clusters, n_rows)
    if len(seen) <= EXACT_KMEANS_ROWS:
        clustering = KMeans(n_clusters, n_init="auto", random_state=random_state)
    else:
        clustering = MiniBatchKMeans(n_clusters, n_init=3, batch_size=4096, random_state=random_state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters: nothing to tell
        centres: Rows = clustering.fit(seen).cluster_centers_.astype(np.float32)
    if is_tensor(rows):
        from backend.learning import tensors

        return tensors.nearest_points(rows, centres)
    lengths = np.einsum("kd,kd->k", centres, centres)
    clusters = np.empty(n_rows, dtype=np.intp)
    for block in cache_blocks(n_rows, max(centres.shape)):
        clusters[block] = (lengths - 2 * (take(rows, block) @ centres.T)).argmin(axis=1)
    return clusters


def _free_rows(n_rows: int, preselected: Sequence[int]) -> Indices:
    is_free = np.ones(n_rows, dtype=bool)
    is_free[list(preselected)] = False
    return np.flatnonzero(is_free)


def _sample_with(kept: Sequence[int], n_rows: int, size: int, *, random_state: int) -> Indices:
    """Ascending indices of the rows: all up to `size`, else the kept ones and as many random others as fit."""
    if n_rows <= size:
        return np.arange(n_rows)
    free = _free_rows(n_rows, kept)
    n_others = max(size - len(kept), size // 2)  # many labels must not leave nothing to choose from
    others = np.random.default_rng(random_state).choice(free, min(n_others, len(free)), replace=False)
    return np.sort(np.concatenate([np.asarray(kept, dtype=np.intp), others]))


def _least_typical_first(rows: ArrayLike | torch.Tensor, members: Indices, *, random_state: int) -> Indices:
    """The members of a cluster (M,), by mean distance to their neighbours in it, the smallest last."""
    places = _sample_with((), len(members), CLUSTER_ROWS, random_state=random_state)
    compared, rest = members[places], np.delete(members, places)
    distances = neighbor_distances(take(rows, compared), N_NEIGHBORS)
    if distances.size:
        compared = compared[np.argsort(-distances.mean(axis=1), kind="stable")]
    return np.concatenate([rest, compared])


def _pure_radius(rows: Rows, pseudo_labels: Indices) -> float:
    """The squared radius of ProbCover's open balls: the largest at which a share of `PURITY` is pure.

    A row's ball is pure up to the distance to the nearest row of another pseudo-label, so the radius is a quantile of
    those distances, and exact.
    """
    to_others = np.empty(len(rows), dtype=np.float32)
    for block in row_blocks(len(rows), width=len(rows)):
        squared = squared_distances(rows[block], rows)
        squared[pseudo_labels[block, None] == pseudo_labels] = np.inf
        to_others[block] = squared.min(axis=1)
    n_impure = int((1 - PURITY) * len(rows))
    # A row covers at least itself and its copies, whatever the radius.
    return float(max(np.partition(to_others, n_impure)[n_impure], np.finfo(np.float32).tiny))


def _cover(rows: Rows, squared_radius: float, is_taken: NDArray[np.bool_], budget: int) -> list[int]:
    """Up to `budget` rows (N, D) by greedy maximum coverage, fewer when everything is covered.

    Keeps for each row how many uncovered rows its ball holds. Every row is covered once, so all the subtracting
    costs one pass over the N² distances, and no neighbour graph is kept in memory.
    """
    uncovered = np.ones(len(rows), dtype=bool)
    gains = np.zeros(len(rows), dtype=np.int64)
    for block in row_blocks(len(rows), width=len(rows)):
        gains[block] = (squared_distances(rows[block], rows) < squared_radius).sum(axis=1)

    def choose(indices: Sequence[int]) -> None:
        nearest = np.full(len(rows), np.inf)
        for index in indices:
            np.minimum(nearest, squared_distances(rows, rows[[index]])[:, 0], out=nearest)
        newly = np.flatnonzero(uncovered & (nearest < squared_radius))
        uncovered[newly] = False
        for block in row_blocks(len(rows), width=max(len(newly), 1)):
            gains[block] -= (squared_distances(rows[block], rows[newly]) < squared_radius).sum(axis=1)
        gains[list(indices)] = 0  # equal to their gain but for rounding: never chosen again

    choose(np.flatnonzero(is_taken).tolist())
    chosen: list[int] = []
    while len(chosen) < budget and gains.max() > 0:
        chosen.append(int(gains.argmax()))
        choose(chosen[-1:])
    return chosen
