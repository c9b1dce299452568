"""Coreset selection: a NumPy twin of lightly-mundig's diversity and weighting strategies and of its typicality.

The formulas were found by running lightly-mundig 0.1.16 on small inputs; the tests compare the two.

Embeddings may also be a torch tensor: the same functions then work on its device, see `learning.tensors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.errors import SelectionError
from backend.learning.features import CACHE_ENTRIES, cache_blocks, evenly_spaced, to_float32

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
Rows = NDArray[np.float32]
Indices = NDArray[np.intp]

EXACT_TYPICALITY_ROWS = 15_000
"""Up to this many rows typicality looks for neighbours among all rows (about ten seconds on two cores, D = 1,280);
above, among so many sampled rows that the cost stays the same."""

MIN_REFERENCE_ROWS = 2_000
"""At least this many rows are sampled, so that from 112,500 rows on the cost grows with them: a minute of one core for
1,000,000 × 512."""

MIN_SAMPLED_NEIGHBORS = 3
"""Of sampled rows at least so many are a neighbourhood."""

BLOCK_ENTRIES = 4_000_000
"""Entries of the largest temporary distance matrix: 16 MB of float32."""

OFFSET_ROWS = 1024
"""Rows whose mean is taken for the middle that distances are computed from; it need not be exact."""

MAX_PENDING = 128
"""Selected rows that a row is compared with before it is asked again whether it may still be the farthest."""

SAME_POINT = 1e-6
"""Squared distance, relative to the sum of both squared lengths, below which float32 cannot tell two rows from one."""

LOG_FLOOR = 1e-12
"""Keeps logarithms finite for duplicates and weights of zero: they come last but stay selectable."""

_GROUP = 16  # columns of which the smallest is looked at first
_N_STARTS = 16  # selected rows that all rows are compared with at once: about as dear as reading the rows


@dataclass(frozen=True, eq=False)
class Typicality:
    """How typical rows are of all, and what that was measured by; see `typicality`.

    values: (N,) of the rows, in 0..1.
    references: (M, D) the rows among which neighbours were sought.
    scale: mean distance of all rows to their `n_neighbors` nearest.
    """

    values: Floats
    references: NDArray[Any]
    n_neighbors: int
    scale: float

    def of_others(self, rows: NDArray[Any]) -> Floats:
        """The same (K,) of rows (K, D) that were not there then, by the same measure."""
        both = np.concatenate([rows, self.references])
        distances = neighbor_distances(both, self.n_neighbors, np.arange(len(rows), len(both)))[: len(rows)]
        return _typicality(distances, self.scale)


def typicality(
    embeddings: ArrayLike | torch.Tensor, n_neighbors: int = 20, *, random_state: int = 0, exact_rows: int | None = None
) -> Floats:
    """How typical each row (N, D) is of all: (N,) in 0..1, high in dense regions.

    The mean over the row's nearest neighbours of `exp(-distance / s)`, with s the mean of all those distances: what
    lightly-mundig's `Typicality.calculate_typicality` computes (it agrees to float32 rounding), and close in spirit to
    TypiClust (Hacohen et al. 2022, https://arxiv.org/abs/2202.02794). A row is not its own neighbour; `n_neighbors` is
    capped at N - 1. If all rows are equal, or there is one, all are 1.

    Above `exact_rows` rows (`EXACT_TYPICALITY_ROWS` if None), neighbours come from a sample drawn with `random_state`,
    and as much fewer of them as the sample is smaller (`MIN_SAMPLED_NEIGHBORS` at least), so that they lie about as far
    away. Of 20,000 made-up rows in clusters, D = 512, the ranks then correlate 0.99 with the exact ones for a sample of
    5,000 and 0.95 for one of 2,000; with all 20 neighbours, 0.96 and 0.80.

    Raises SelectionError if the embeddings are not (N, D) or not finite, or `n_neighbors` is below 1.
    """
    values, *_ = _measured(embeddings, n_neighbors, random_state, exact_rows)
    return values


def measure_typicality(
    embeddings: ArrayLike, n_neighbors: int = 20, *, random_state: int = 0, exact_rows: int | None = None
) -> Typicality:
    """`typicality`, with what measures it for rows that come later."""
    rows = as_rows(embeddings)
    values, reference, n_neighbors, scale = _measured(rows, n_neighbors, random_state, exact_rows)
    return Typicality(values, rows[reference], n_neighbors, scale)


def _measured(
    embeddings: ArrayLike | torch.Tensor, n_neighbors: int, random_state: int, exact_rows: int | None
) -> tuple[Floats, Indices, int, float]:
    """The typicality of all rows, the reference rows, the number of neighbours and the scale."""
    check_selection(embeddings, budget=0)
    if n_neighbors < 1:
        raise SelectionError(f"n_neighbors is {n_neighbors}; expected at least 1")
    n_rows = n_rows_of(embeddings)
    reference = _reference_rows(n_rows, exact_rows or EXACT_TYPICALITY_ROWS, random_state=random_state)
    if len(reference) < n_rows:
        fewer = max(round(n_neighbors * len(reference) / n_rows), MIN_SAMPLED_NEIGHBORS)
        n_neighbors = min(n_neighbors, fewer)
    distances = neighbor_distances(embeddings, n_neighbors, reference)
    scale = float(distances.mean()) if distances.size else 0.0
    return _typicality(distances, scale), reference, n_neighbors, scale


def _typicality(distances: Rows, scale: float) -> Floats:
    if not distances.size or scale <= 0:
        return np.ones(len(distances))
    typical: Floats = np.exp(-distances / scale).mean(axis=1)
    return typical


def neighbor_distances(
    embeddings: ArrayLike | torch.Tensor, n_neighbors: int, reference: Indices | None = None
) -> Rows:
    """Euclidean distances (N, K) of each row (N, D) to its K nearest others of the reference rows, in no order.

    `reference` are different indices into the embeddings, all if None; K is `n_neighbors`, their number - 1 at most.
    The embeddings must be finite, see `check_selection`. Cost O(N·D) for each reference row, and a float32 copy of
    those.
    """
    n_rows = n_rows_of(embeddings)
    if reference is None:
        reference = np.arange(n_rows)
    n_neighbors = min(n_neighbors, len(reference) - 1)
    if n_neighbors < 1:
        return np.empty((n_rows, 0), dtype=np.float32)
    if is_tensor(embeddings):
        from backend.learning import tensors

        return tensors.neighbor_distances(embeddings, reference, n_neighbors)
    rows = as_rows(embeddings)
    column_of = np.full(n_rows, -1)
    column_of[reference] = np.arange(len(reference))
    middle = _middle(rows)
    references = _from_middle(rows[reference], middle)
    reference_lengths = np.einsum("md,md->m", references, references)
    references *= -2

    distances = np.empty((n_rows, n_neighbors), dtype=np.float32)
    for block in row_blocks(n_rows, width=max(len(reference), rows.shape[1])):
        part = _from_middle(rows[block], middle)
        lengths = np.einsum("nd,nd->n", part, part)[:, None]
        squared = part @ references.T
        squared += reference_lengths  # short of the row's own length, which changes no order
        itself = column_of[block]
        squared[np.flatnonzero(itself >= 0), itself[itself >= 0]] = np.inf
        nearest = _smallest(squared, n_neighbors)
        nearest += lengths
        nearest[nearest < 2 * SAME_POINT * lengths] = 0
        distances[block] = np.sqrt(nearest)
    return distances


def select_coreset(
    embeddings: ArrayLike | torch.Tensor,
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

    The picks are those of the plain algorithm, which compares all rows with each row selected, up to rounding. Here a
    row is compared with those selected since it was last looked at only when its distance of then is still large
    enough for it to be the next: distances to the nearest only shrink, so an old one is an upper bound (the lazy
    evaluation of Minoux 1978, doi:10.1007/BFb0006528). For 100 of 1,000,000 rows, each is read two to three times
    instead of a hundred.

    Raises SelectionError for impossible input, see `check_selection`, and for negative strengths. Cost at most
    O((budget + preselected)·N·D) time, mostly a small part of it. Memory beside the embeddings, if they are float16 or
    float32: 12 bytes a row, about 24 more with weights, and the selected rows in float32.
    """
    if is_tensor(embeddings):
        from backend.learning import tensors

        return tensors.select_coreset(
            embeddings,
            budget=budget,
            preselected=preselected,
            weights=typicality_weights,
            diversity_strength=diversity_strength,
            weighting_strength=weighting_strength,
        )
    rows = as_rows(embeddings)
    check_request(len(rows), budget=budget, preselected=preselected)
    check_strengths(diversity_strength, weighting_strength)
    weights = None if typicality_weights is None else checked_weights(typicality_weights, len(rows))
    if budget == 0:
        check_selection(rows, budget=0)
        return []
    if weighting_strength is None and not len(preselected):
        weighting_strength = diversity_strength  # nothing is selected yet to balance by
    selection = _Selection(rows, len(preselected) + budget, weights, diversity_strength, weighting_strength)
    selected = list(preselected)
    if not selected:
        selected = [0 if weights is None else int(weights.argmax())]
    selection.start(selected)
    while len(selected) < len(preselected) + budget:
        chosen = selection.next()
        selection.add(chosen)
        selected.append(chosen)
    return selected[len(preselected) :]


class _Selection:
    """The state of `select_coreset`: for each row an upper bound of its squared distance to the nearest selected row.

    bounds: (N,) float32; minus infinity for selected rows.
    n_compared: (N,) how many of the selected rows, in order, a row's bound includes; exact if all.
    """

    def __init__(
        self,
        rows: NDArray[Any],
        n_wanted: int,
        weights: Floats | None,
        diversity_strength: float,
        weighting_strength: float | None,
    ) -> None:
        self._rows = rows
        self._weights = weights
        self._diversity_strength = diversity_strength
        self._weighting_strength = weighting_strength
        self._middle = _middle(rows)
        self._lengths = np.empty(len(rows), dtype=np.float32)  # squared
        self._bounds = np.full(len(rows), np.inf, dtype=np.float32)
        self._n_compared = np.zeros(len(rows), dtype=np.int32)
        self._selected: list[int] = []
        self._points = np.empty((n_wanted, rows.shape[1]), dtype=np.float32)  # the selected rows
        self._point_lengths = np.empty(n_wanted, dtype=np.float32)
        self._among = np.full(n_wanted, np.inf)  # squared distance of each selected row to the nearest other
        self._block = max(1, CACHE_ENTRIES // max(rows.shape[1], MAX_PENDING))

    def start(self, indices: Sequence[int]) -> None:
        """Select these rows, at least one, and read all rows once. Raises SelectionError if they are not finite."""
        n_first = min(len(indices), _N_STARTS)
        with np.errstate(invalid="ignore", over="ignore"):  # of rows that are refused below
            self._append(indices)
            for start in range(0, len(self._rows), self._block):
                block = slice(start, start + self._block)
                part = self._part(block)
                self._lengths[block] = lengths = np.einsum("nd,nd->n", part, part)
                self._bounds[block] = self._squared(part, lengths, 0, n_first).min(axis=1)
        _check_finite(self._rows, self._lengths)
        self._n_compared[:] = n_first
        self._bounds[self._selected] = -np.inf
        if self._weights is None:
            return
        if len(indices) > 1:
            points = self._points[: len(indices)]
            for block in row_blocks(len(points), width=len(points)):
                squared = squared_distances(points[block], points)
                squared[np.arange(len(squared)), np.arange(len(points))[block]] = np.inf
                self._among[block] = squared.min(axis=1)
        if self._weighting_strength is None:
            every = np.arange(len(self._rows))
            while len(stale := every[self._n_compared < len(indices)]):
                self._compare(stale)
            free = np.delete(every, self._selected)
            self._weighting_strength = self._diversity_strength * _balance(
                self._diversity_term(self._bounds[free]), self._weighting_term(self._weights[free])
            )

    def add(self, index: int) -> None:
        """Select one more row."""
        k = len(self._selected)
        self._append([index])
        self._bounds[index] = -np.inf
        if self._weights is not None:
            squared = self._squared(self._points[k : k + 1], self._point_lengths[k : k + 1], 0, k)[0]
            np.minimum(self._among[:k], squared, out=self._among[:k])
            self._among[k] = squared.min()

    def next(self) -> int:
        """The row to select next: of all that are not selected, the one of largest potential."""
        k = len(self._selected)
        if self._weights is None:
            potentials: NDArray[np.floating[Any]] = self._bounds
        else:
            potentials = self._potentials(slice(None))
            potentials[self._selected] = -np.inf
        best = int(potentials.argmax())
        self._compare_fully(np.array([best]))
        if self._weights is not None:
            potentials[best] = self._potentials(best)
        limit = max(64, len(potentials) // 2000)
        while len(rivals := self._rivals(potentials, best, limit)):
            self._compare(rivals)
            if self._weights is not None:
                potentials[rivals] = self._potentials(rivals)
            exact = rivals[self._n_compared[rivals] == k]
            if len(exact):
                leader = int(exact[potentials[exact] == potentials[exact].max()].min())
                if (potentials[leader], -leader) > (potentials[best], -best):
                    best = leader
            limit = min(2 * limit, len(potentials) // 50 + 64)
        return best

    def _rivals(self, potentials: NDArray[np.floating[Any]], best: int, limit: int) -> Indices:
        """Some rows, about `limit` at most and the highest first, that may beat `best`; none if none may.

        All rows compared with all selected ones are known not to.
        """
        highest = potentials[best]
        stride = len(potentials) // 16384 + 1
        sampled = potentials[::stride]
        sampled = sampled[sampled > highest]
        n_above = limit // stride + 1
        if len(sampled) > n_above:  # too many: those above what about `limit` of them are above
            rows = np.flatnonzero(potentials >= np.partition(sampled, -n_above)[-n_above])
        else:
            rows = np.flatnonzero(potentials > highest)
        if not len(rows):  # of equal rows the first wins
            rows = np.flatnonzero(potentials[:best] == highest)
            rows = rows[self._n_compared[rows] < len(self._selected)]
        return rows[: 4 * limit]

    def _compare_fully(self, rows: Indices) -> None:
        while len(rows := rows[self._n_compared[rows] < len(self._selected)]):
            self._compare(rows)

    def _compare(self, rows: Indices) -> None:
        """Brings the bounds of these rows down by up to `MAX_PENDING` selected ones they were not compared with."""
        rows = rows[np.argsort(self._n_compared[rows], kind="stable")]
        for start in range(0, len(rows), self._block):
            some = rows[start : start + self._block]
            first = int(self._n_compared[some[0]])
            last = min(first + MAX_PENDING, len(self._selected))
            squared = self._squared(self._part(some), self._lengths[some], first, last)
            self._bounds[some] = np.minimum(self._bounds[some], squared.min(axis=1))
            self._n_compared[some] = np.maximum(self._n_compared[some], last)

    def _append(self, indices: Sequence[int]) -> None:
        points = slice(len(self._selected), len(self._selected) + len(indices))
        self._selected += [int(index) for index in indices]
        self._points[points] = self._part(np.asarray(indices, dtype=np.intp))
        self._point_lengths[points] = np.einsum("kd,kd->k", self._points[points], self._points[points])

    def _part(self, index: slice | Indices) -> Rows:
        """These rows in float32, seen from the middle."""
        return _from_middle(self._rows[index], self._middle)

    def _squared(self, part: Rows, lengths: Rows, first: int, last: int) -> Rows:
        """Squared distances (n, last - first) of rows to selected ones."""
        sums = lengths[:, None] + self._point_lengths[first:last]
        squared: Rows = sums - 2 * (part @ self._points[first:last].T)
        squared[squared < SAME_POINT * sums] = 0
        return squared

    def _potentials(self, rows: slice | Indices | int) -> Floats:
        weights = self._weights
        assert weights is not None
        assert self._weighting_strength is not None
        potentials: Floats = self._diversity_strength * self._diversity_term(self._bounds[rows])
        potentials += self._weighting_strength * self._weighting_term(weights[rows])
        return potentials

    def _diversity_term(self, bounds: NDArray[np.floating[Any]]) -> Floats:
        """`log(S + d²)` of squared distances to the nearest selected row."""
        k = len(self._selected)
        spread = self._among[:k].sum() if k > 1 else 0.0
        term: Floats = np.log(np.maximum(spread + bounds.astype(np.float64), LOG_FLOOR))
        return term

    def _weighting_term(self, weights: Floats) -> Floats:
        """`log(W + w)`."""
        assert self._weights is not None
        term: Floats = np.log(np.maximum(self._weights[self._selected].sum() + weights, LOG_FLOOR))
        return term


def merge_coresets(
    coresets: Sequence[ArrayLike], *, budget: int, labeled: ArrayLike | None = None
) -> list[tuple[int, int]]:
    """`budget` rows of the union of coresets, best first, each as (which coreset, which row of it).

    For a pool in shards that no one machine holds: each selects `budget` of its rows with `select_coreset`, the
    labeled ones preselected, and hands on those embeddings (K, D); farthest-first among them is the coreset of the
    pool. `labeled` (P, D) are embeddings labeled already, which count as selected here too.

    Every row of the pool is then at most four times as far from a selected or labeled one as with the best choice of
    `budget` rows: farthest-first is within twice the best on each shard and again on the union, and the two add up.
    Malkomes et al. 2015, *Fast distributed k-center clustering with outliers on massive data*; coresets that compose
    so are those of Indyk et al. 2014, doi:10.1145/2594538.2594560. The bound needs `budget` rows of each shard, or all
    it has.

    Raises SelectionError for impossible input, see `check_selection`.
    """
    parts = [as_rows(coreset) for coreset in coresets]
    first = [as_rows(labeled)] if labeled is not None else []
    widths = {part.shape[1] for part in [*first, *parts]}
    if len(widths) > 1:
        raise SelectionError(f"coresets have embeddings of {sorted(widths)} numbers; expected one length")
    sizes = [len(part) for part in parts]
    n_labeled = sum(len(part) for part in first)
    rows = np.concatenate([*first, *parts]) if parts or first else np.empty((0, 1), dtype=np.float32)
    picks = np.array(select_coreset(rows, budget=budget, preselected=range(n_labeled)), dtype=np.intp) - n_labeled
    starts = np.cumsum([0, *sizes])
    shards = np.searchsorted(starts, picks, side="right") - 1
    return list(zip(shards.tolist(), (picks - starts[shards]).tolist(), strict=True))


def covering_radius(embeddings: ArrayLike, selected: Sequence[int]) -> float:
    """The largest distance of any row (N, D) to its nearest selected one, which k-center selection keeps small.

    `selected` are indices into the embeddings, at least one. Raises SelectionError as `check_selection` does. Cost
    O(N·D) for each selected row.
    """
    rows = as_rows(embeddings)
    check_request(len(rows), budget=0, preselected=selected)
    if not len(selected):
        raise SelectionError("no row is selected; expected at least one to measure distances to")
    middle = _middle(rows)
    points = _from_middle(rows[np.asarray(selected)], middle)
    largest = 0.0
    for block in cache_blocks(len(rows), max(len(points), rows.shape[1])):
        squared = squared_distances(_from_middle(rows[block], middle), points)
        largest = max(largest, float(squared.min(axis=1).max()))
    return float(np.sqrt(largest))


def is_tensor(embeddings: object) -> TypeGuard[torch.Tensor]:
    """Whether these are a torch tensor; without importing torch."""
    return type(embeddings).__module__.split(".")[0] == "torch"


def n_rows_of(embeddings: ArrayLike | torch.Tensor) -> int:
    """How many embeddings (N, D) there are."""
    return len(embeddings if is_tensor(embeddings) else np.asarray(embeddings))


def take(embeddings: ArrayLike | torch.Tensor, index: Indices | slice) -> Rows:
    """These rows of the embeddings (N, D) as a float32 array."""
    if is_tensor(embeddings):
        from backend.learning import tensors

        return tensors.take(embeddings, np.arange(len(embeddings))[index])
    return to_float32(as_rows(embeddings)[index])


def as_rows(embeddings: ArrayLike) -> NDArray[Any]:
    """The embeddings (N, D) themselves if float16 or float32, else a float32 copy; SelectionError for another shape."""
    rows = np.asarray(embeddings)
    if rows.ndim != 2:
        raise SelectionError(f"embeddings have shape {rows.shape}; expected (N, D), one row per image")
    return rows if rows.dtype in (np.float16, np.float32) else rows.astype(np.float32)


def check_selection(embeddings: ArrayLike | torch.Tensor, *, budget: int, preselected: Sequence[int] = ()) -> None:
    """Raise SelectionError unless `budget` of the rows (N, D) can be selected beside the preselected indices.

    Reads all rows once.
    """
    if is_tensor(embeddings):
        from backend.learning import tensors

        tensors.check_selection(embeddings, budget=budget, preselected=preselected)
        return
    rows = as_rows(embeddings)
    lengths = np.empty(len(rows), dtype=np.float32)
    for block in cache_blocks(*rows.shape):
        part = to_float32(rows[block])
        lengths[block] = np.einsum("nd,nd->n", part, part)
    _check_finite(rows, lengths)
    check_request(len(rows), budget=budget, preselected=preselected)


def check_request(n_rows: int, *, budget: int, preselected: Sequence[int]) -> None:
    """Raise SelectionError unless `budget` of so many rows can be selected beside the preselected indices."""
    outside = [index for index in preselected if not 0 <= index < n_rows]
    if outside:
        raise SelectionError(f"preselected index {outside[0]} is outside 0..{n_rows - 1}; pass rows of embeddings")
    if len(set(preselected)) < len(preselected):
        raise SelectionError("preselected names a row twice; pass every index once")
    available = n_rows - len(preselected)
    if not 0 <= budget <= available:
        raise SelectionError(
            f"budget is {budget}; expected 0..{available}, as {len(preselected)} of {n_rows} rows are preselected"
        )


def check_strengths(diversity_strength: float, weighting_strength: float | None) -> None:
    """Raise SelectionError unless diversity counts and weights do not count against a row."""
    if not diversity_strength > 0:
        raise SelectionError(f"diversity_strength is {diversity_strength}; expected more than 0")
    if weighting_strength is not None and not weighting_strength >= 0:
        raise SelectionError(f"weighting_strength is {weighting_strength}; expected 0 or more, or None")


def checked_weights(weights: ArrayLike, n_rows: int) -> Floats:
    """The weights (n_rows,) as float64; SelectionError if they are not so many finite numbers >= 0."""
    checked = np.asarray(weights, dtype=np.float64)
    if checked.shape != (n_rows,):
        raise SelectionError(f"weights have shape {checked.shape}; expected ({n_rows},), one per embedding")
    if not (np.isfinite(checked) & (checked >= 0)).all():
        raise SelectionError("weights contain NaN, infinity or negative numbers; expected numbers >= 0")
    return checked


def _check_finite(rows: NDArray[Any], lengths: Rows) -> None:
    """Raise SelectionError unless all rows are finite and not too long; `lengths` (N,) are their squared lengths."""
    if np.isfinite(lengths).all():
        return
    finite = np.empty(len(rows), dtype=bool)
    for block in cache_blocks(*rows.shape):
        finite[block] = np.isfinite(rows[block]).all(axis=1)
    if finite.all():
        raise SelectionError(
            f"the embedding at row {int(np.argmin(np.isfinite(lengths)))} is too long to be compared; expected lengths "
            "below 1e19, scale all embeddings down"
        )
    raise SelectionError(
        f"{np.sum(~finite)} of {len(rows)} embeddings contain NaN or infinity, the first at row "
        f"{int(np.argmin(finite))}; embed these images again or leave them out"
    )


def _middle(rows: NDArray[Any]) -> Rows | None:
    """The mean (D,) of the rows, from which distances are computed: then rounding of `|x|² + |y|² - 2xy` is small.

    Of a large array the mean of a sample, and None if it is so short that nothing is won: any offset gives the same
    distances.
    """
    some = to_float32(rows[evenly_spaced(len(rows), OFFSET_ROWS)])
    if not len(some):
        return None
    middle = some.mean(axis=0, dtype=np.float64)
    matters = middle @ middle > 0.1 * np.mean(np.einsum("nd,nd->n", some, some))
    return middle.astype(np.float32) if matters else None


def _from_middle(rows: NDArray[Any], middle: Rows | None) -> Rows:
    """A float32 copy of the rows, seen from there."""
    moved = to_float32(rows)
    if middle is not None:
        moved -= middle
    return moved


def _balance(diversity: Floats, weighting: Floats) -> float:
    """The strength at which the weighting term varies as much as the diversity term; 1 where either is constant."""
    if not len(diversity):
        return 1.0
    spreads = float(diversity.std()), float(weighting.std())
    return spreads[0] / spreads[1] if min(spreads) > 0 else 1.0


def _reference_rows(n_rows: int, exact_rows: int, *, random_state: int) -> Indices:
    """Indices of the rows among which neighbours are sought: all, or a sample that keeps the cost bounded."""
    if n_rows <= exact_rows:
        return np.arange(n_rows)
    n_references = min(max(MIN_REFERENCE_ROWS, exact_rows**2 // n_rows), n_rows)
    return np.sort(np.random.default_rng(random_state).choice(n_rows, n_references, replace=False))


def _smallest(values: Rows, k: int) -> Rows:
    """The k smallest of each row (N, M), in no order.

    They lie in the k groups of columns with the smallest minima, and minima are found several times as fast as a
    partition is made.
    """
    n_groups = values.shape[1] // _GROUP
    if n_groups <= k:
        return np.partition(values, k - 1, axis=1)[:, :k]
    groups = values[:, : n_groups * _GROUP].reshape(len(values), _GROUP, n_groups)
    nearest = np.argpartition(groups.min(axis=1), k - 1, axis=1)[:, :k]
    candidates: Rows = np.take_along_axis(groups, nearest[:, None], axis=2).reshape(len(values), -1)
    candidates = np.concatenate([candidates, values[:, n_groups * _GROUP :]], axis=1)
    smallest: Rows = np.partition(candidates, k - 1, axis=1)[:, :k]
    return smallest


def squared_distances(rows: Rows, others: Rows) -> Rows:
    """Squared Euclidean distances (N, M) between rows (N, D) and others (M, D); exactly 0 for equal rows."""
    lengths = np.einsum("nd,nd->n", rows, rows)[:, None] + np.einsum("md,md->m", others, others)
    squared: Rows = lengths - 2 * (rows @ others.T)
    squared[squared < SAME_POINT * lengths] = 0
    return squared


def row_blocks(n_rows: int, *, width: int) -> list[slice]:
    """Slices that cover the rows so that a block times `width` stays within `BLOCK_ENTRIES`."""
    size = max(1, BLOCK_ENTRIES // width)
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]
