"""Why an image was chosen: which of the factors that its strategy multiplies speaks for it most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backend.learning.features import evenly_spaced
from backend.learning.later_rounds import RoundState

Floats = NDArray[np.float64]
Factor = Literal["uncertain", "typical", "different"]

MOST_COMPARED = 500
"""Candidates that chosen ones are compared with, evenly spaced: shares are then right to two hundredths or so."""

FACTORS: Mapping[str, tuple[Factor, ...]] = MappingProxyType(
    {
        "information_density": ("uncertain", "typical", "different"),
        "margin": ("uncertain",),
        "least_confidence": ("uncertain",),
        "entropy": ("uncertain",),
        "coral": ("uncertain", "different"),
    }
)
"""What the strategies of `later_rounds` look at, as far as it belongs to one image; others compare gradients or
neighbours, of which no image has a share of its own."""


@dataclass(frozen=True)
class Reason:
    """The factor by which a chosen image stands out most, and the share (0..1) of candidates that have less of it."""

    factor: Factor
    share: float


def reasons(strategy: str, state: RoundState, positions: Sequence[int]) -> list[Reason]:
    """Why these candidates were chosen, a reason for each; none with a strategy that is not in `FACTORS`.

    Factors differ in scale, so each is judged by its rank among the candidates. `uncertain`: the strategy's own measure
    times `expected_rarity`. `typical`: as in the state. `different`: how small the largest cosine with a labeled image
    is; what a batch has before it is left out.
    """
    factors = FACTORS.get(strategy, ())
    if not factors or not len(positions):
        return []
    chosen = np.asarray(positions, dtype=np.intp)
    others = evenly_spaced(len(state.candidates), MOST_COMPARED)
    values: dict[Factor, tuple[Floats, Floats]] = {}
    utilities = state.utilities(strategy)
    values["uncertain"] = utilities[chosen], utilities[others]
    if "typical" in factors and state.typicality is not None:
        values["typical"] = state.typicality[chosen], state.typicality[others]
    if "different" in factors and len(state.labeled):
        labeled = state.features_of(state.labeled)
        nearest = (state.features_of(state.candidates[np.concatenate([chosen, others])]) @ labeled.T).max(axis=1)
        values["different"] = -nearest[: len(chosen)], -nearest[len(chosen) :]
    shares = {name: (of_others < of_chosen[:, None]).mean(axis=1) for name, (of_chosen, of_others) in values.items()}
    names = list(shares)
    ranks = np.stack([shares[name] for name in names])  # (factors, chosen)
    # Of equal ones the first: doubt is what all of them ask for.
    return [Reason(names[best], float(ranks[best, place])) for place, best in enumerate(ranks.argmax(axis=0).tolist())]
