"""Coreset selection: a NumPy twin of lightly-mundig's diversity and weighting strategies and of its typicality.

The formulas were found by running lightly-mundig 0.1.16 on small inputs; the tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.errors import SelectionError

Floats = NDArray[np.float64]
Rows = NDArray[np.float32]

EXACT_TYPICALITY_ROWS = 15_000
"""Up to this many rows typicality looks for neighbours among all rows (about ten seconds on two cores, D = 1,280);
above, among so many sampled rows that the cost stays the same."""

MIN_REFERENCE_ROWS = 2_000
"""At least this many rows are sampled; 20 neighbours among them are the nearest percent of the pool."""

BLOCK_ENTRIES = 8_000_000
"""Entries of the largest temporary distance matrix: 32 MB of float32."""

_SAME_POINT = 1e-6  # relative squared distance below which float32 rounding cannot tell two rows from one
_LOG_FLOOR = 1e-12  # keeps log finite for duplicates and weights of zero: they come last but stay selectable


def typicality(
    embeddings: ArrayLike, n_neighbors: int = 20, *, random_state: int = 0, exact_rows: int | None = None
) -> Floats:
    """How typical each row (N, D) is of all: (N,) in 0..1, high in dense regions.

    The mean over the row's nearest neighbours of `exp(-distance / s)`, with s the mean of all those distances: what
    lightly-mundig's `Typicality.calculate_typicality` computes (it agrees to float32 rounding), and close in spirit to
    TypiClust (Hacohen et al. 2022, https://arxiv.org/abs/2202.02794). A row is not its own neighbour; `n_neighbors` is
    capped at N - 1. If all rows are equal, or there is one, all are 1.

    Above `exact_rows` rows (`EXACT_TYPICALITY_ROWS` if None), neighbours come from a sample drawn with `random_state`:
    approximate, at the same cost. Raises SelectionError if the embeddings are not (N, D) or not finite, or
    `n_neighbors` is below 1.
    """
    distances = neighbor_distances(embeddings, n_neighbors, random_state=random_state, exact_rows=exact_rows)
    if distances.size == 0:
        return np.ones(len(distances))
    scale = distances.mean()
    return np.exp(-distances / scale).mean(axis=1) if scale > 0 else np.ones(len(distances))


def neighbor_distances(
    embeddings: ArrayLike, n_neighbors: int, *, random_state: int, exact_rows: int | None = None
) -> Floats:
    """Euclidean distances (N, K) of each row (N, D) to its K nearest other rows, in no order.

    K is `n_neighbors`, N - 1 at most. Above `exact_rows` rows the neighbours come from a sample drawn with
    `random_state`. Raises SelectionError as `typicality` does. Cost O(N²·D) up to that many rows, and the same above.
    """
    check_selection(embeddings, budget=0)
    rows = _centred(embeddings)
    if n_neighbors < 1:
        raise SelectionError(f"n_neighbors is {n_neighbors}; expected at least 1")
    n_rows = len(rows)
    if n_rows < 2:
        return np.empty((n_rows, 0))

    reference = _reference_rows(n_rows, exact_rows or EXACT_TYPICALITY_ROWS, random_state=random_state)
    column_of = np.full(n_rows, -1)
    column_of[reference] = np.arange(len(reference))
    references = rows if len(reference) == n_rows else rows[reference]

    n_neighbors = min(n_neighbors, len(reference) - 1)
    distances = np.empty((n_rows, n_neighbors))
    for block in row_blocks(n_rows, width=len(reference)):
        squared = squared_distances(rows[block], references)
        itself = column_of[block]
        squared[np.flatnonzero(itself >= 0), itself[itself >= 0]] = np.inf
        distances[block] = np.sqrt(np.partition(squared, n_neighbors - 1, axis=1)[:, :n_neighbors])
    return distances


def select_coreset(
    embeddings: ArrayLike,
    *,
    budget: int,
    preselected: Sequence[int] = (),
    typicality_weights: ArrayLike | None = None,
    diversity_strength: float = 1.0,
    weighting_strength: float | None = 1.0,
) -> list[int]:
    """`budget` indices into `embeddings` (N, D), best first, without the preselected.

    Greedy: each step takes the row with the largest

        diversity_strength · log(S + d²) + weighting_strength · log(W + w)

    where d² is its squared Euclidean distance to the nearest row selected so far, S the sum over the selected rows of
    the squared distance to the nearest *other* selected row, w its weight (>= 0) and W the sum of the selected
    weights. Neither scale of distances nor of weights matters. The lowest index wins a tie. While nothing is selected,
    distance says nothing: the largest weight is first, or index 0 without weights.

    Both terms flatten as more is selected, at different speeds: with the weights of uncertainty and a hundred labeled
    rows, equal strengths come down to taking the largest weights. `weighting_strength=None` is the strength at which
    both terms vary equally (same standard deviation) among the rows not preselected, so that each keeps its say.

    Without weights this is farthest-first traversal (k-center greedy; Gonzalez 1985, and Sener & Savarese 2018,
    https://arxiv.org/abs/1708.00489). `preselected` rows, typically those labeled already, count as selected.

    Raises SelectionError for impossible input, see `check_selection`. Cost O((budget + preselected)·N·D) time and one
    float32 copy of the embeddings.
    """
    check_selection(embeddings, budget=budget, preselected=preselected)
    rows = _centred(embeddings)
    n_rows = len(rows)
    weights = None if typicality_weights is None else _checked_weights(typicality_weights, n_rows)

    # nearest[i]: squared distance of row i to the nearest selected row other than itself.
    nearest = nearest_squared(rows, list(preselected))
    selected = list(preselected)
    if weights is not None and weighting_strength is None:
        weighting_strength = diversity_strength * _balance(nearest, weights, selected)
    for _ in range(budget):
        potentials = np.zeros(n_rows)
        if selected:
            potentials += diversity_strength * _diversity_term(nearest, selected)
        if weights is not None and weighting_strength is not None:
            potentials += weighting_strength * _weighting_term(weights, selected)
        potentials[selected] = -np.inf
        chosen = int(potentials.argmax())
        np.minimum(nearest, nearest_squared(rows, [chosen]), out=nearest)
        selected.append(chosen)
    return selected[len(preselected) :]


def check_selection(embeddings: ArrayLike, *, budget: int, preselected: Sequence[int] = ()) -> None:
    """Raise SelectionError unless `budget` of the rows (N, D) can be selected beside the preselected indices."""
    rows = np.asarray(embeddings)
    if rows.ndim != 2:
        raise SelectionError(f"embeddings have shape {rows.shape}; expected (N, D), one row per image")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise SelectionError(
            f"{np.sum(~finite)} of {len(rows)} embeddings contain NaN or infinity, the first at row "
            f"{int(np.argmin(finite))}; embed these images again or leave them out"
        )
    outside = [index for index in preselected if not 0 <= index < len(rows)]
    if outside:
        raise SelectionError(f"preselected index {outside[0]} is outside 0..{len(rows) - 1}; pass rows of embeddings")
    if len(set(preselected)) < len(preselected):
        raise SelectionError("preselected names a row twice; pass every index once")
    available = len(rows) - len(preselected)
    if not 0 <= budget <= available:
        raise SelectionError(
            f"budget is {budget}; expected 0..{available}, as {len(preselected)} of {len(rows)} rows are preselected"
        )


def _centred(embeddings: ArrayLike) -> Rows:
    """A float32 copy whose mean is the origin: distances stay, rounding of `|x|² + |y|² - 2xy` shrinks."""
    rows: Rows = np.array(embeddings, dtype=np.float32)
    if len(rows):
        rows -= rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    return rows


def _checked_weights(weights: ArrayLike, n_rows: int) -> Floats:
    checked = np.asarray(weights, dtype=np.float64)
    if checked.shape != (n_rows,):
        raise SelectionError(f"weights have shape {checked.shape}; expected ({n_rows},), one per embedding")
    if not (np.isfinite(checked) & (checked >= 0)).all():
        raise SelectionError("weights contain NaN, infinity or negative numbers; expected numbers >= 0")
    return checked


def _diversity_term(nearest: Floats, selected: Sequence[int]) -> Floats:
    """`log(S + d²)` (N,), of each row's squared distance to the nearest selected row; at least one is selected."""
    spread = nearest[selected].sum() if len(selected) > 1 else 0.0
    term: Floats = np.log(np.maximum(spread + nearest, _LOG_FLOOR))
    return term


def _weighting_term(weights: Floats, selected: Sequence[int]) -> Floats:
    """`log(W + w)` (N,)."""
    term: Floats = np.log(np.maximum(weights[selected].sum() + weights, _LOG_FLOOR))
    return term


def _balance(nearest: Floats, weights: Floats, selected: Sequence[int]) -> float:
    """The strength at which the weighting term varies as much as the diversity term; 1 where either is constant."""
    free = np.ones(len(nearest), dtype=bool)
    free[selected] = False
    if not selected or not free.any():
        return 1.0
    diversity = float(_diversity_term(nearest, selected)[free].std())
    weighting = float(_weighting_term(weights, selected)[free].std())
    return diversity / weighting if diversity > 0 and weighting > 0 else 1.0


def _reference_rows(n_rows: int, exact_rows: int, *, random_state: int) -> NDArray[np.intp]:
    """Indices of the rows among which neighbours are sought: all, or a sample that keeps the cost bounded."""
    if n_rows <= exact_rows:
        return np.arange(n_rows)
    n_references = min(max(MIN_REFERENCE_ROWS, exact_rows**2 // n_rows), n_rows)
    return np.sort(np.random.default_rng(random_state).choice(n_rows, n_references, replace=False))


def nearest_squared(rows: Rows, selected: Sequence[int]) -> Floats:
    """Squared distance (N,) of each row to the nearest selected row other than itself; inf where there is none."""
    nearest = np.full(len(rows), np.inf)
    if not selected:
        return nearest
    for block in row_blocks(len(rows), width=len(selected)):
        squared = squared_distances(rows[block], rows[selected])
        for column, index in enumerate(selected):
            if block.start <= index < block.stop:
                squared[index - block.start, column] = np.inf
        nearest[block] = squared.min(axis=1)
    return nearest


def squared_distances(rows: Rows, others: Rows) -> Rows:
    """Squared Euclidean distances (N, M) between rows (N, D) and others (M, D); exactly 0 for equal rows."""
    lengths = np.einsum("nd,nd->n", rows, rows)[:, None] + np.einsum("md,md->m", others, others)
    squared: Rows = lengths - 2 * (rows @ others.T)
    squared[squared < _SAME_POINT * lengths] = 0
    return squared


def row_blocks(n_rows: int, *, width: int) -> list[slice]:
    """Slices that cover the rows so that a block times `width` stays within `BLOCK_ENTRIES`."""
    size = max(1, BLOCK_ENTRIES // width)
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
