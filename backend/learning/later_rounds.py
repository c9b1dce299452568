"""Later-round strategies: which images to label next, once there is a head to ask, one function each.

All take a `RoundState` and give positions of candidates, best first. `next_batch` is what the service calls: a
strategy's order, with near-duplicates moved behind.

In all that ask the head for its doubts a candidate counts more the rarer the labels of the classes it may belong to,
see `expected_rarity`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backend.errors import SelectionError
from backend.learning import acquisition
from backend.learning.coreset import row_blocks, select_coreset
from backend.learning.features import Features, FeatureSpace

Floats = NDArray[np.float64]
Indices = NDArray[np.intp]

MAX_COMPARED = 20_000
"""Strategies that compare candidates with each other look at a random sample of so many: 100 MB at D = 1,280."""

MAX_DENSITY_COMPARED = 2_000
"""Candidates that `information_density` compares with labeled images and each other."""

NEIGHBORS_OF_LOSS = 5
"""Neighbours that `knn_of_high_loss` takes of each labeled image of high loss."""

NEAR_DUPLICATE = 0.9
"""Cosine of two features above which two images count as one. With MobileNetV2 and 100 photos each of two data sets,
the median cosine to the same photo was 0.95 and 0.98 saved again (JPEG, quality 75), 0.94 and 0.95 with 2 % cut off at
each side, 0.97 and 0.99 a tenth brighter; of 1,485 different photos 1 in 100 has another above 0.81. Cosines of plain
embeddings tell less: there it is 0.98 and 0.99 saved again, and 0.89 between different photos."""

MAX_BATCH_COMPARED = 2_000
"""First places of a batch that are compared with each other; nobody is shown so many at a time."""

_SPARE = 2  # a strategy is first asked for so many times the budget, so that copies have others to go behind


@dataclass(frozen=True, eq=False)
class RoundState:
    """What is known when the next images are chosen: N images of which M are labeled and U may be chosen.

    Raises SelectionError where the parts do not fit together.
    """

    embeddings: NDArray[np.floating[Any]]  # (N, D), of the whole pool
    space: FeatureSpace  # in which images are compared, best the head's
    labeled: Indices  # (M,), rows of embeddings
    targets: Indices  # (M,), the column of probabilities that is the class of each labeled row; of sets (M, C), 0 or 1
    candidates: Indices  # (U,), rows of embeddings that may be chosen
    probabilities: Floats  # (U, C), the head's, of the candidates
    out_of_fold: Floats | None = None  # (M, C), cross-validated, of the labeled rows; NaN where never held out
    typicality: Floats | None = None  # (U,), of the candidates among the whole pool, 0..1; None: all alike
    of_sets: bool = False  # images may have several labels: probabilities and targets are of each of them

    def __post_init__(self) -> None:
        if self.probabilities.ndim != 2 or len(self.probabilities) != len(self.candidates):
            raise SelectionError(
                f"probabilities have shape {self.probabilities.shape}; expected one row for each of "
                f"{len(self.candidates)} candidates"
            )
        if len(self.targets) != len(self.labeled):
            raise SelectionError(
                f"got {len(self.targets)} targets of {len(self.labeled)} labeled rows; expected one each"
            )
        expected = (len(self.labeled), self.probabilities.shape[1])
        if self.out_of_fold is not None and self.out_of_fold.shape != expected:
            raise SelectionError(f"out-of-fold probabilities have shape {self.out_of_fold.shape}; expected {expected}")
        if self.typicality is not None and self.typicality.shape != (len(self.candidates),):
            raise SelectionError(
                f"typicality has shape {self.typicality.shape}; expected one number for each of "
                f"{len(self.candidates)} candidates"
            )

    def utilities(self, name: str) -> Floats:
        """The candidates' utilities (U,) by `acquisition.utilities`, rarer classes for more."""
        return acquisition.utilities(name, self.probabilities, of_sets=self.of_sets) * expected_rarity(self)

    def features_of(self, rows: Indices) -> Features:
        """Features (R, D) of length 1 of these rows of the embeddings."""
        return self.space.features(self.embeddings[rows])


class LaterRoundStrategy(Protocol):
    """What every function of `LATER_ROUND_STRATEGIES` looks like."""

    def __call__(self, state: RoundState, *, budget: int, random_state: int) -> list[int]:
        """`budget` positions of candidates (fewer if there are fewer), best first."""


def information_density(state: RoundState, *, budget: int, random_state: int) -> list[int]:
    """Candidates that are uncertain, typical of the pool, and unlike the labeled ones and each other.

    Greedy by margin × typicality × (1 - the largest cosine, where positive, with a labeled image or one of the batch).
    Uncertainty times density is the information density of Settles & Craven 2008
    (https://aclanthology.org/D08-1112), which keeps away from outliers: of those the head is unsure for good. Diversity
    beside both, as in Xu et al. 2007 (doi:10.1007/978-3-540-71496-5_24), keeps a batch from asking one thing many
    times. The `MAX_DENSITY_COMPARED` best by the first two factors are compared.
    """
    utilities = state.utilities("information_density")
    if state.typicality is not None:
        utilities = utilities * state.typicality
    positions = np.array(_highest(utilities, max(MAX_DENSITY_COMPARED, budget)), dtype=np.intp)
    features = state.features_of(state.candidates[positions])
    nearest = np.zeros(len(positions), dtype=np.float32)  # the largest cosine with anything known or chosen, at least 0
    if len(state.labeled):
        nearest = np.maximum(nearest, (features @ state.features_of(state.labeled).T).max(axis=1))
    gains = utilities[positions]
    chosen: list[int] = []
    for _ in range(min(budget, len(positions))):
        values = gains * (1 - nearest)
        values[chosen] = -np.inf
        best = int(values.argmax())
        chosen.append(best)
        np.maximum(nearest, features @ features[best], out=nearest)
    return [int(position) for position in positions[chosen]]


def least_confidence(state: RoundState, *, budget: int, random_state: int) -> list[int]:
    """Candidates whose likeliest class is least likely; Lewis & Gale 1994, https://arxiv.org/abs/cmp-lg/9407020."""
    return _highest(state.utilities("least_confidence"), budget)


def margin(state: RoundState, *, budget: int, random_state: int) -> list[int]:
    """Candidates whose two likeliest classes are closest; Scheffer et al. 2001, doi:10.1007/3-540-44816-0_31."""
    return _highest(state.utilities("margin"), budget)


def entropy(state: RoundState, *, budget: int, random_state: int) -> list[int]:
    """Candidates whose probability is spread most; Settles 2009, see `learning.acquisition`."""
    return _highest(state.utilities("entropy"), budget)


def coral(state: RoundState, *, budget: int, random_state: int) -> list[int]:
    """Candidates that are uncertain (margin) and far from labels and each other: Lightly's CORAL.

    Lightly's selection with its scores as weights, diversity over it, and the labeled rows preselected at the
    candidates' mean weight; the strength of the weights is that at which neither side drowns the other, see
    `coreset.select_coreset`. Above `MAX_COMPARED` candidates a random sample of them is looked at.
    """
    positions = _compared(len(state.candidates), MAX_COMPARED, random_state)
    n_labeled = len(state.labeled)
    weights = state.utilities("coral")[positions]
    rows = state.features_of(np.concatenate([state.labeled, state.candidates[positions]]))
    chosen = select_coreset(
        rows,
        budget=min(budget, len(positions)),
        preselected=range(n_labeled),
        typicality_weights=np.concatenate([np.full(n_labeled, weights.mean() if len(weights) else 0.0), weights]),
        weighting_strength=None,
    )
    return [int(positions[index - n_labeled]) for index in chosen]


def badge(state: RoundState, *, budget: int, random_state: int) -> list[int]:
    """Candidates whose gradients, were the guess the label, are long and unlike each other.

    BADGE, Ash et al. 2020, https://arxiv.org/abs/1906.03671: the gradient of the cross-entropy in the head's weights is
    (probabilities - one-hot guess) ⊗ features; the longest is first, then k-means++ draws, seeded by `random_state`,
    each with probability proportional to the squared distance to the nearest drawn. The (C·D)-dimensional gradients
    are never built: the inner product of two is that of their first factors times that of their second. They are
    multiplied by `expected_rarity`, as a loss with class weights would multiply them. Above `MAX_COMPARED` candidates
    a random sample of them is looked at.
    """
    generator = np.random.default_rng(random_state)
    positions = _compared(len(state.candidates), MAX_COMPARED, random_state)
    errors = np.array(state.probabilities[positions])  # (n, C)
    if state.of_sets:
        errors -= errors >= 0.5  # as one guesses each label of a set by itself
    else:
        errors[np.arange(len(errors)), errors.argmax(axis=1)] -= 1
    errors *= expected_rarity(state)[positions, None]
    features = state.features_of(state.candidates[positions])  # (n, D)
    lengths = np.sum(errors**2, axis=1) * np.einsum("nd,nd->n", features, features)  # squared, of the gradients
    nearest = np.full(len(positions), np.inf)
    drawn: list[int] = []
    while len(drawn) < min(budget, len(positions)):
        if not drawn:
            chosen = int(lengths.argmax())
        elif nearest.any():
            chosen = int(generator.choice(len(nearest), p=nearest / nearest.sum()))
        else:  # only copies are left
            copies = np.argsort(-lengths, kind="stable")
            drawn += copies[~np.isin(copies, drawn)][: budget - len(drawn)].tolist()
            break
        products = (errors @ errors[chosen]) * (features @ features[chosen]).astype(np.float64)
        distances = lengths + lengths[chosen] - 2 * products
        # What float32 features cannot tell from a copy is one.
        distances[distances < 1e-6 * (lengths + lengths[chosen])] = 0
        distances[chosen] = 0
        nearest = np.minimum(nearest, distances)
        drawn.append(chosen)
    return [int(position) for position in positions[drawn]]


def knn_of_high_loss(state: RoundState, *, budget: int, random_state: int) -> list[int]:
    """The candidates nearest to labeled images that the head gets wrong when it has not seen them.

    The `NEIGHBORS_OF_LOSS` nearest of each labeled row, by cosine, in the order of its cross-validated log-loss: first
    the nearest of each, then the second nearest. As many labeled rows are asked as the budget needs. A row that was
    never held out, the only one of its class, counts with the loss of a head that knows nothing. Without
    cross-validation `margin` stands in. A strategy of data curation tools: what is wrong here is wrong beside it, too.
    """
    if state.out_of_fold is None or not len(state.labeled) or not len(state.candidates):
        return margin(state, budget=budget, random_state=random_state)
    if state.of_sets:
        given = np.where(state.targets == 1, state.out_of_fold, 1 - state.out_of_fold).prod(axis=1)
        given = np.where(np.isnan(given), 0.5 ** state.probabilities.shape[1], given)
    else:
        given = state.out_of_fold[np.arange(len(state.labeled)), state.targets]
        given = np.where(np.isnan(given), 1 / state.probabilities.shape[1], given)
    by_loss = state.labeled[np.argsort(given, kind="stable")]
    n_wanted = min(budget, len(state.candidates))
    is_free = np.ones(len(state.candidates), dtype=bool)
    chosen: list[int] = []
    n_asked = max(-(-budget // NEIGHBORS_OF_LOSS), 1)
    for first in range(0, len(by_loss), n_asked):
        cosines = _cosines(state, by_loss[first : first + n_asked])
        for _, column in itertools.product(range(NEIGHBORS_OF_LOSS), range(cosines.shape[1])):
            if len(chosen) == n_wanted:
                return chosen
            nearest = int(np.where(is_free, cosines[:, column], -np.inf).argmax())
            is_free[nearest] = False
            chosen.append(nearest)
    rest = margin(state, budget=len(is_free), random_state=random_state)
    return [*chosen, *(position for position in rest if is_free[position])][:n_wanted]


LATER_ROUND_STRATEGIES: Mapping[str, LaterRoundStrategy] = MappingProxyType(
    {
        "information_density": information_density,
        "margin": margin,
        "least_confidence": least_confidence,
        "entropy": entropy,
        "coral": coral,
        "badge": badge,
        "knn_of_high_loss": knn_of_high_loss,
    }
)
"""The strategies that ask the head, by the name a setting or a command line uses; any first-batch strategy goes too."""


ASK_TYPICALITY = frozenset({"information_density"})
"""Those of them that look at `RoundState.typicality`."""

ASK_OUT_OF_FOLD = frozenset({"knn_of_high_loss"})
"""Those of them that look at `RoundState.out_of_fold`: labels are cross-validated before the choice, not after it."""


def next_batch(strategy: str, state: RoundState, *, budget: int, random_state: int) -> list[int]:
    """Positions of `budget` candidates (fewer if there are fewer), the first to be labeled first.

    `strategy` is a name of LATER_ROUND_STRATEGIES. A candidate that is nearly the same image as one already in the
    batch (cosine above `NEAR_DUPLICATE`) goes behind the others: its label would tell the head almost nothing that the
    first one's does not.
    """
    budget = min(budget, len(state.candidates))
    n_ranked = min(_SPARE * budget, len(state.candidates))
    while True:
        ranking = LATER_ROUND_STRATEGIES[strategy](state, budget=n_ranked, random_state=random_state)
        different, alike = _near_duplicates_apart(state, ranking[:MAX_BATCH_COMPARED])
        if len(different) >= budget or n_ranked >= min(len(state.candidates), MAX_BATCH_COMPARED):
            return [*different, *alike, *ranking[MAX_BATCH_COMPARED:]][:budget]
        n_ranked = min(2 * n_ranked, len(state.candidates))  # so many copies that more must be looked at


def expected_rarity(state: RoundState) -> Floats:
    """What the candidates' utilities (U,) are multiplied by; see `rarity`.

    Where images may have several labels, 1: most labels are rare there, and images of rare ones taught less.
    """
    if state.of_sets:
        return np.ones(len(state.candidates))
    return rarity(state.probabilities, np.bincount(state.targets, minlength=state.probabilities.shape[1]))


def rarity(probabilities: Floats, counts: NDArray[np.integer[Any]]) -> Floats:
    """`Σ p_c · √(n̄ / n_c)` (U,) of class probabilities (U, C) and label counts (C,), about 1 while classes are even.

    n_c is the number of labels of class c and n̄ their mean. In a pool where classes are uneven, uncertainty alone asks
    on and on about the frequent ones, which have most of the doubtful images. Measured with margin on five pools of
    clothing photos, 10 classes of 120 down to 5 images: mean accuracy over the classes 0.50, 0.55 and 0.61 at 45, 60
    and 90 labels with it, 0.47, 0.49 and 0.54 without; on the full, even sets it changes nothing beyond the spread.
    (Places kept for images far from all labels, for the sake of classes not yet seen, found those no sooner, and cost
    two points in the same pools.)
    """
    expected: Floats = probabilities @ np.sqrt(max(counts.mean(), 1) / np.maximum(counts, 1))
    return expected


def _highest(utilities: Floats, budget: int) -> list[int]:
    best: list[int] = np.argsort(-utilities, kind="stable")[:budget].tolist()
    return best


def _compared(n_candidates: int, limit: int, random_state: int) -> Indices:
    """Ascending positions of the candidates looked at: all, or a random sample."""
    if n_candidates <= limit:
        return np.arange(n_candidates)
    return np.sort(np.random.default_rng(random_state).choice(n_candidates, limit, replace=False))


def _cosines(state: RoundState, rows: Indices) -> Features:
    """Cosines (U, R) of the candidates' features with those of these rows."""
    others = state.features_of(rows)
    cosines = np.empty((len(state.candidates), len(rows)), dtype=np.float32)
    for block in row_blocks(len(state.candidates), width=state.embeddings.shape[1]):
        cosines[block] = state.features_of(state.candidates[block]) @ others.T
    return cosines


def _near_duplicates_apart(state: RoundState, ranking: Sequence[int]) -> tuple[list[int], list[int]]:
    """The ranking without candidates that are nearly the same image as one before them, and those, in its order."""
    if not ranking:
        return [], []
    features = state.features_of(state.candidates[np.asarray(ranking)])
    is_alike = features @ features.T > NEAR_DUPLICATE
    different: list[int] = []  # places in the ranking
    alike: list[int] = []
    for place in range(len(ranking)):
        (alike if is_alike[place, different].any() else different).append(place)
    return [ranking[place] for place in different], [ranking[place] for place in alike]
