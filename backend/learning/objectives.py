"""Selection by several objectives at once: diversity, weights and class balance, each with a strength.

A NumPy twin of lightly-mundig's `Selection` with any number of strategies; `coreset.select_coreset` is the special case
of one diversity and at most one weighting, and does that part here where it can. The formulas were found by running
lightly-mundig 0.1.16 on small inputs; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from backend.errors import SelectionError
from backend.learning.coreset import (
    LOG_FLOOR,
    SAME_POINT,
    Floats,
    Rows,
    as_rows,
    check_request,
    check_selection,
    checked_weights,
    row_blocks,
    select_coreset,
    squared_distances,
)
from backend.learning.features import to_float32

ABSENT = 1e-10
"""Added to the share of each class before its logarithm is taken: a class that is still missing costs 23 times its
target. lightly-mundig's number."""


@dataclass(frozen=True, eq=False)
class Diversity:
    """Rows far from all that are selected: `strength · log(S + d²)`, see `coreset.select_coreset`.

    embeddings: (N, D).
    minimum_distance: the selection ends when the row that comes next is nearer than this to a selected one.
    """

    embeddings: ArrayLike
    strength: float = 1.0
    minimum_distance: float | None = None


@dataclass(frozen=True, eq=False)
class Weighting:
    """Rows of large weight: `strength · log(W + w)`, W the sum of the selected weights.

    weights: (N,), >= 0.
    minimum_weight: the selection ends when the row that comes next weighs less than this.
    """

    weights: ArrayLike
    strength: float = 1.0
    minimum_weight: float | None = None


@dataclass(frozen=True, eq=False)
class Balance:
    """Rows that bring the classes of all selected rows near a target: `-strength · log(H)`.

    H is the cross-entropy `-Σ target · ln(share)` of the target and the shares of the classes among the selected rows
    and the one in question. It is least where both are the same, whatever the scale of the distributions.

    distributions: (N, C), >= 0: how much of each class a row is; a row of zeros changes no share.
    target: (C,), >= 0, of which only the proportions matter.
    """

    distributions: ArrayLike
    target: ArrayLike
    strength: float = 1.0


Objective = Diversity | Weighting | Balance


def select_by_objectives(
    objectives: Sequence[Objective], *, n_rows: int, budget: int, preselected: Sequence[int] = ()
) -> list[int]:
    """Up to `budget` of `n_rows` indices, best first, without the preselected, which count as selected.

    Greedy: each step takes the row with the largest sum of the objectives' terms, the lowest index at a tie. It ends
    early at a minimum distance or weight; such a minimum looks at the row that comes next by all objectives together.
    A negative strength turns an objective round. While nothing is selected, diversity says nothing.

    Raises SelectionError for impossible input. Cost O((budget + preselected)·N·D) time for diversity and O(budget·N·C)
    for balance; beside the embeddings a float32 copy of them, unless `select_coreset` can do it.
    """
    if not objectives:
        raise SelectionError("no objective is given; expected at least one of diversity, weights and balance")
    check_request(n_rows, budget=budget, preselected=preselected)
    if _is_plain(objectives):
        return _plain(objectives, budget=budget, preselected=preselected)
    states = [_state_of(objective, n_rows) for objective in objectives]
    for state in states:
        state.start(list(preselected))
    is_free = np.ones(n_rows, dtype=bool)
    is_free[list(preselected)] = False
    chosen: list[int] = []
    while len(chosen) < budget:
        potentials = np.zeros(n_rows)
        for state in states:
            potentials += state.potentials()
        best = int(np.where(is_free, potentials, -np.inf).argmax())
        if any(state.ends_at(best) for state in states):
            break
        for state in states:
            state.add(best)
        is_free[best] = False
        chosen.append(best)
    return chosen


def similarity(embeddings: ArrayLike, queries: ArrayLike) -> Floats:
    """How near each row (N, D) is to the nearest of the queries (Q, D): (N,) in 0..1, 1 for a query itself.

    `exp(-distance / s)`, s the mean of all rows' distances to their nearest query: what lightly-mundig's `Similarity`
    computes. If all rows are queries, all are 1. Raises SelectionError for no queries and embeddings not finite.
    """
    check_selection(embeddings, budget=0)
    check_selection(queries, budget=0)
    rows, points = as_rows(embeddings), to_float32(as_rows(queries))
    if not len(points):
        raise SelectionError("no query embedding is given; expected at least one to be similar to")
    distances = np.empty(len(rows))
    for block in row_blocks(len(rows), width=max(points.shape)):
        distances[block] = np.sqrt(squared_distances(to_float32(rows[block]), points).min(axis=1))
    scale = float(distances.mean()) if len(distances) else 0.0
    return np.exp(-distances / scale) if scale > 0 else np.ones(len(rows))


def _is_plain(objectives: Sequence[Objective]) -> bool:
    """Whether `select_coreset` does the same: one diversity, at most one weighting, neither turned round nor ended."""
    diversities = [item for item in objectives if isinstance(item, Diversity)]
    weightings = [item for item in objectives if isinstance(item, Weighting)]
    return (
        len(diversities) == 1
        and len(weightings) <= 1
        and len(objectives) == 1 + len(weightings)
        and diversities[0].strength > 0
        and diversities[0].minimum_distance is None
        and all(item.strength >= 0 and item.minimum_weight is None for item in weightings)
    )


def _plain(objectives: Sequence[Objective], *, budget: int, preselected: Sequence[int]) -> list[int]:
    (diversity,) = (item for item in objectives if isinstance(item, Diversity))
    weighting = next((item for item in objectives if isinstance(item, Weighting)), None)
    return select_coreset(
        diversity.embeddings,
        budget=budget,
        preselected=preselected,
        typicality_weights=None if weighting is None else weighting.weights,
        diversity_strength=diversity.strength,
        weighting_strength=1.0 if weighting is None else weighting.strength,
    )


def _state_of(objective: Objective, n_rows: int) -> _State:
    if isinstance(objective, Diversity):
        return _DiversityState(objective, n_rows)
    if isinstance(objective, Weighting):
        return _WeightingState(objective, n_rows)
    return _BalanceState(objective, n_rows)


class _State(Protocol):
    """An objective while rows are selected."""

    def start(self, indices: list[int]) -> None:
        """Takes these rows as selected."""

    def potentials(self) -> Floats:
        """The term (N,) of each row, were it the next."""

    def add(self, index: int) -> None:
        """Selects one more row."""

    def ends_at(self, index: int) -> bool:
        """Whether the selection ends instead of taking this row."""


class _DiversityState:
    """nearest: (N,) squared distance to the nearest selected row; among: (K,) of the selected to the nearest other."""

    def __init__(self, objective: Diversity, n_rows: int) -> None:
        check_selection(objective.embeddings, budget=0)
        self._rows: Rows = to_float32(as_rows(objective.embeddings))
        if len(self._rows) != n_rows:
            raise SelectionError(f"got {len(self._rows)} embeddings of {n_rows} rows; expected one each")
        self._lengths = np.einsum("nd,nd->n", self._rows, self._rows)  # squared
        self._objective = objective
        self._nearest: Floats = np.full(n_rows, np.inf)
        self._selected: list[int] = []
        self._among: Floats = np.empty(0)

    def start(self, indices: list[int]) -> None:
        self._selected = list(indices)
        if not indices:
            return
        points = self._rows[indices]
        for block in row_blocks(len(self._rows), width=max(points.shape)):
            self._nearest[block] = squared_distances(self._rows[block], points).min(axis=1)
        between = squared_distances(points, points).astype(np.float64)
        np.fill_diagonal(between, np.inf)
        self._among = between.min(axis=1)

    def potentials(self) -> Floats:
        if not self._selected:
            return np.zeros(len(self._rows))
        spread = self._among.sum() if len(self._selected) > 1 else 0.0
        term: Floats = self._objective.strength * np.log(np.maximum(spread + self._nearest, LOG_FLOOR))
        return term

    def add(self, index: int) -> None:
        sums = self._lengths + self._lengths[index]
        # Not @: on busy cores its threads wait for each other, 10 ms a step instead of 1 for 1,121 × 1,280.
        squared = (sums - 2 * np.einsum("nd,d->n", self._rows, self._rows[index])).astype(np.float64)
        squared[squared < SAME_POINT * sums] = 0
        self._among = np.append(np.minimum(self._among, squared[self._selected]), self._nearest[index])
        self._selected.append(index)
        self._nearest = np.minimum(self._nearest, squared)

    def ends_at(self, index: int) -> bool:
        least = self._objective.minimum_distance
        return least is not None and bool(np.sqrt(self._nearest[index]) < least)


class _WeightingState:
    def __init__(self, objective: Weighting, n_rows: int) -> None:
        self._objective = objective
        self._weights = checked_weights(objective.weights, n_rows)
        self._sum = 0.0

    def start(self, indices: list[int]) -> None:
        self._sum = float(self._weights[indices].sum())

    def potentials(self) -> Floats:
        term: Floats = self._objective.strength * np.log(np.maximum(self._sum + self._weights, LOG_FLOOR))
        return term

    def add(self, index: int) -> None:
        self._sum += float(self._weights[index])

    def ends_at(self, index: int) -> bool:
        least = self._objective.minimum_weight
        return least is not None and bool(self._weights[index] < least)


class _BalanceState:
    """counts: (C,) the sum of the selected distributions."""

    def __init__(self, objective: Balance, n_rows: int) -> None:
        self._objective = objective
        self._distributions = np.asarray(objective.distributions, dtype=np.float64)
        target = np.asarray(objective.target, dtype=np.float64)
        if self._distributions.shape != (n_rows, len(target)):
            raise SelectionError(
                f"class distributions have shape {self._distributions.shape}; expected {(n_rows, len(target))}, a row "
                "per image and a column per class of the target"
            )
        for values, name in ((self._distributions, "class distributions"), (target, "target")):
            if not (np.isfinite(values) & (values >= 0)).all():
                raise SelectionError(f"{name} contain NaN, infinity or negative numbers; expected numbers >= 0")
        if not target.sum() > 0:
            raise SelectionError("the target is 0 for every class; expected a share above 0 for at least one")
        self._target = target / target.sum()
        self._counts = np.zeros(len(target))

    def start(self, indices: list[int]) -> None:
        self._counts = self._distributions[indices].sum(axis=0)

    def potentials(self) -> Floats:
        counts = self._counts + self._distributions
        sums = counts.sum(axis=1, keepdims=True)
        shares = np.divide(counts, sums, out=np.zeros_like(counts), where=sums > 0)
        cross_entropy = -(np.log(shares + ABSENT) @ self._target)
        term: Floats = -self._objective.strength * np.log(np.maximum(cross_entropy, LOG_FLOOR))
        return term

    def add(self, index: int) -> None:
        self._counts += self._distributions[index]

    def ends_at(self, index: int) -> bool:
        return False
