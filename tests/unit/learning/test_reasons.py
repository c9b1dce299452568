"""Why an image was chosen: by the factors that the strategy really multiplied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backend.learning.features import plain_space
from backend.learning.later_rounds import LATER_ROUND_STRATEGIES, RoundState
from backend.learning.reasons import FACTORS, Reason, reasons

DEGREES = np.array([0.0, 90.0, 10.0, 20.0, 30.0, 180.0])
"""Directions of six images; the first two are labeled, and even in their classes, so that rarity is 1 for all."""


def state(**changes: Any) -> RoundState:
    angles = np.deg2rad(DEGREES)
    given: dict[str, Any] = {
        "embeddings": np.stack([np.cos(angles), np.sin(angles)], axis=1),
        "space": plain_space(2),
        "labeled": np.array([0, 1]),
        "targets": np.array([0, 1]),
        "candidates": np.array([2, 3, 4, 5]),
        "probabilities": np.array([[0.5, 0.5], [0.7, 0.3], [0.8, 0.2], [0.9, 0.1]]),
        "typicality": np.array([0.1, 0.2, 0.9, 0.3]),
    }
    return RoundState(**given | changes)


def test_each_is_chosen_for_the_factor_it_stands_out_by() -> None:
    """Candidate 0 is the least certain of four, 2 the most typical, 3 the farthest from all labels: each has 3 of 4
    below it in that, and fewer in the rest. Candidate 1 has 2 below it in doubt, 1 in typicality, 1 in difference."""
    found = reasons("information_density", state(), [0, 2, 3, 1])
    assert found == [
        Reason("uncertain", 0.75), Reason("typical", 0.75), Reason("different", 0.75), Reason("uncertain", 0.5),
    ]  # fmt: skip


def test_what_a_strategy_does_not_look_at_is_no_reason() -> None:
    """Margin chooses by doubt alone, whatever else is true of the image; CORAL not by typicality."""
    assert [reason.factor for reason in reasons("margin", state(), [0, 2, 3])] == ["uncertain"] * 3
    assert "typical" not in {reason.factor for reason in reasons("coral", state(), [0, 1, 2, 3])}


@pytest.mark.parametrize("strategy", ["badge", "knn_of_high_loss", "random", "no such strategy"])
def test_strategies_without_a_factor_of_one_image_give_no_reasons(strategy: str) -> None:
    """They compare gradients, neighbours or nothing."""
    assert reasons(strategy, state(), [0, 1]) == []


def test_nothing_chosen_has_no_reasons() -> None:
    """An empty window."""
    assert reasons("margin", state(), []) == []


def test_rarity_counts_as_the_strategy_counts_it() -> None:
    """Four labels of class 0, one of class 1: doubts are equal, but the image that leans to class 1 is worth more."""
    given = state(
        labeled=np.array([0, 0, 0, 0, 1]),
        targets=np.array([0, 0, 0, 0, 1]),
        candidates=np.array([2, 3]),
        probabilities=np.array([[0.6, 0.4], [0.4, 0.6]]),
        typicality=None,
    )
    assert reasons("margin", given, [1, 0]) == [Reason("uncertain", 0.5), Reason("uncertain", 0.0)]


def test_factors_are_of_strategies_that_there_are() -> None:
    """A strategy that is renamed takes its factors along."""
    assert FACTORS.keys() <= LATER_ROUND_STRATEGIES.keys()
