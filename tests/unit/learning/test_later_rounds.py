"""Later-round strategies: hand-made rounds, brute force, and what holds for every strategy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from backend.config import ACQUISITIONS
from backend.errors import SelectionError
from backend.learning import acquisition, later_rounds
from backend.learning.features import plain_space
from backend.learning.first_batch import FIRST_BATCH_STRATEGIES
from backend.learning.later_rounds import (
    LATER_ROUND_STRATEGIES,
    RoundState,
    badge,
    coral,
    expected_rarity,
    knn_of_high_loss,
    next_batch,
)

every_strategy = pytest.mark.parametrize("name", LATER_ROUND_STRATEGIES)


def state(n_candidates: int = 40, n_labeled: int = 9, n_classes: int = 3, seed: int = 0, **changes: Any) -> RoundState:
    """A round of random images: labeled ones are the first rows, candidates the rest; no class is unseen."""
    generator = np.random.default_rng(seed)
    n_rows = n_candidates + n_labeled
    given: dict[str, Any] = {
        "embeddings": generator.normal(size=(n_rows, 8)).astype(np.float32),
        "space": plain_space(8),
        "labeled": np.arange(n_labeled),
        "targets": np.arange(n_labeled) % n_classes,
        "candidates": np.arange(n_labeled, n_rows),
        "probabilities": generator.dirichlet(np.ones(n_classes), size=n_candidates),
        "out_of_fold": generator.dirichlet(np.ones(n_classes), size=n_labeled),
    }
    return RoundState(**(given | changes))


def run(name: str, given: RoundState, budget: int, random_state: int = 0) -> list[int]:
    return LATER_ROUND_STRATEGIES[name](given, budget=budget, random_state=random_state)


def test_the_settings_offer_exactly_these() -> None:
    """ACQUISITION's choices: the strategies here, then those of the first batch."""
    assert ACQUISITIONS[: len(LATER_ROUND_STRATEGIES)] == tuple(LATER_ROUND_STRATEGIES)
    assert set(ACQUISITIONS) == set(LATER_ROUND_STRATEGIES) | set(FIRST_BATCH_STRATEGIES)


@every_strategy
@pytest.mark.parametrize("budget", [0, 1, 7, 40, 90])
def test_a_batch_is_of_the_right_size_and_repeatable(name: str, budget: int) -> None:
    """Different positions of candidates, as many as asked or as there are, and the same again."""
    given = state(n_classes=3)
    batch = next_batch(name, given, budget=budget, random_state=3)
    assert len(set(batch)) == len(batch) == min(budget, 40)
    assert set(batch) <= set(range(40))
    assert batch == next_batch(name, given, budget=budget, random_state=3)


@every_strategy
def test_one_candidate_or_none(name: str) -> None:
    """The last image of a pool, and an empty pool."""
    assert next_batch(name, state(n_candidates=1), budget=5, random_state=0) == [0]
    assert next_batch(name, state(n_candidates=0), budget=5, random_state=0) == []


@every_strategy
def test_copies_go_behind_the_others(name: str) -> None:
    """Ten candidates, each three times: the first ten of the batch are ten different images, and none is lost."""
    one = state(n_candidates=10)
    candidates = np.tile(one.candidates, 3)
    tripled = state(n_candidates=10, candidates=candidates, probabilities=np.tile(one.probabilities, (3, 1)))
    batch = next_batch(name, tripled, budget=30, random_state=0)
    assert len({position % 10 for position in batch[:10]}) == 10
    assert sorted(batch) == list(range(30))


def test_a_film_of_one_uncertain_scene_does_not_fill_the_batch() -> None:
    """Of 60 candidates the 50 most uncertain show the same: one of them, then nine others, then the rest of them."""
    generator = np.random.default_rng(0)
    given = RoundState(
        embeddings=np.vstack([np.tile(generator.normal(size=8), (50, 1)), generator.normal(size=(20, 8))]),
        space=plain_space(8),
        labeled=np.arange(60, 70),
        targets=np.arange(10) % 2,
        candidates=np.arange(60),
        probabilities=np.repeat([[0.5, 0.5], [0.1, 0.9]], [50, 10], axis=0),
    )
    assert next_batch("margin", given, budget=10, random_state=0) == [0, *range(50, 59)]
    assert next_batch("margin", given, budget=13, random_state=0) == [0, *range(50, 60), 1, 2]


def test_what_is_nearly_the_same_is_a_matter_of_the_angle() -> None:
    """Cosines of 0.95 and 0.85 to the most uncertain candidate: only the first goes behind."""
    angles = np.arccos([1.0, 0.95, 0.85, -1.0])
    embeddings = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    embeddings[2, 1] *= -1  # on the other side, so that it is near to nothing else
    given = RoundState(
        embeddings=np.vstack([embeddings, [[0.0, 1.0], [0.0, -1.0]]]),
        space=plain_space(2),
        labeled=np.array([4, 5]),
        targets=np.array([0, 1]),
        candidates=np.arange(4),
        probabilities=np.array([[0.50, 0.50], [0.45, 0.55], [0.40, 0.60], [0.35, 0.65]]),
    )
    assert next_batch("margin", given, budget=4, random_state=0) == [0, 2, 3, 1]
    assert next_batch("margin", given, budget=2, random_state=0) == [0, 2]


@pytest.mark.parametrize("name", ["margin", "least_confidence", "entropy"])
def test_uncertainty_sampling_is_the_order_of_the_utilities(name: str) -> None:
    """Highest utility first; equal ones in the order of the candidates."""
    given = state()
    utilities = acquisition.ACQUISITION_FUNCTIONS[name](given.probabilities)
    assert run(name, given, 40) == sorted(range(40), key=lambda position: (-utilities[position], position))
    equal = state(probabilities=np.full((40, 3), 1 / 3))
    assert run(name, equal, 3) == [0, 1, 2]


# -- rare classes -----------------------------------------------------------------------------------------------------


def test_a_candidate_of_a_rare_class_counts_more() -> None:
    """Eight labels of class 0, two of class 1: mean 5, rarities √(5/8) = 0.791 and √(5/2) = 1.581.

    Utilities 0.8 and 0.8, but the second leans to class 1: 0.8 · (0.6 · 0.791 + 0.4 · 1.581) = 0.886 against 1.012. A
    third of 0.7 that leans to class 1 as well has 0.7 · (0.35 · 0.791 + 0.65 · 1.581) = 0.913 and comes between them.
    """
    given = state(
        n_candidates=3,
        n_labeled=10,
        n_classes=2,
        targets=np.array([0] * 8 + [1] * 2),
        probabilities=np.array([[0.6, 0.4], [0.4, 0.6], [0.35, 0.65]]),
    )
    expected = np.array([[0.6, 0.4], [0.4, 0.6], [0.35, 0.65]]) @ np.sqrt([5 / 8, 5 / 2])
    np.testing.assert_allclose(expected_rarity(given), expected)
    assert run("margin", given, 3) == [1, 2, 0]
    even = state(n_candidates=3, n_labeled=10, n_classes=2, probabilities=given.probabilities)
    np.testing.assert_allclose(expected_rarity(even), 1)
    assert run("margin", even, 3) == [0, 1, 2]


@pytest.mark.parametrize("name", ["margin", "least_confidence", "entropy", "coral", "badge"])
def test_rare_classes_get_more_places(name: str) -> None:
    """Half of the doubtful images may be of a class with 2 labels, half of one with 40: most places are the former's.

    The images themselves differ in no way that any strategy could prefer.
    """
    generator = np.random.default_rng(0)
    probabilities = np.repeat([[0.5, 0.4, 0.1], [0.1, 0.4, 0.5]], 50, axis=0)
    given = state(
        n_candidates=100,
        n_labeled=62,
        targets=np.repeat([0, 1, 2], [40, 20, 2]),
        probabilities=probabilities,
        embeddings=generator.normal(size=(162, 64)),
        space=plain_space(64),
        out_of_fold=None,
    )
    shares = [np.mean(np.array(run(name, given, 10, random_state=seed)) >= 50) for seed in range(10)]
    assert np.mean(shares) > 0.6


# -- CORAL ------------------------------------------------------------------------------------------------------------


def test_coral_mixes_uncertainty_and_diversity() -> None:
    """One place is crowded with the most uncertain images, others are far and almost as uncertain.

    The ten most uncertain are all of the crowd, the ten most diverse hold sure images; CORAL's first ten hold fewer of
    the crowd than the former and fewer sure images than the latter, with few labels and with a hundred.
    """
    generator = np.random.default_rng(0)
    for n_labeled in (4, 100):
        crowd = 4 * np.eye(8)[0] + 0.3 * generator.normal(size=(20, 8))
        others = generator.normal(size=(60, 8))
        margins = np.concatenate([np.full(20, 0.98), np.repeat([0.9, 0.1], 30)])  # crowd, uncertain, sure
        given = RoundState(
            embeddings=np.vstack([generator.normal(size=(n_labeled, 8)), crowd, others]),
            space=plain_space(8),
            labeled=np.arange(n_labeled),
            targets=np.arange(n_labeled) % 2,
            candidates=np.arange(n_labeled, n_labeled + 80),
            probabilities=np.stack([1 - margins / 2, margins / 2], axis=1),
        )
        chosen = np.array(coral(given, budget=10, random_state=0))
        assert np.sum(chosen < 20) < 8, n_labeled
        assert np.sum(chosen >= 50) < 3, n_labeled


# -- BADGE ------------------------------------------------------------------------------------------------------------


def gradients(given: RoundState) -> np.ndarray:
    """(U, C·D): the gradients that `badge` never builds."""
    errors = given.probabilities - np.eye(given.probabilities.shape[1])[given.probabilities.argmax(axis=1)]
    features = given.features_of(given.candidates)
    return np.einsum("nc,nd->ncd", errors, features).reshape(len(errors), -1)


def test_badge_draws_like_k_means_plus_plus_on_the_gradients() -> None:
    """The longest gradient is first; the second is drawn in proportion to the squared distance to it (5,000 draws)."""
    given = state(n_candidates=5)
    longest = int(np.linalg.norm(gradients(given), axis=1).argmax())
    squared = ((gradients(given) - gradients(given)[longest]) ** 2).sum(axis=1)
    draws = [badge(given, budget=2, random_state=seed) for seed in range(5_000)]
    assert {first for first, _ in draws} == {longest}
    shares = np.bincount([second for _, second in draws], minlength=5) / len(draws)
    np.testing.assert_allclose(shares, squared / squared.sum(), atol=0.025)  # 3.5 standard errors of a half


def test_badge_draws_a_copy_only_when_nothing_else_is_left() -> None:
    """Three different candidates, four times each: the first three drawn differ."""
    one = state(n_candidates=3)
    given = state(
        n_candidates=3, candidates=np.tile(one.candidates, 4), probabilities=np.tile(one.probabilities, (4, 1))
    )
    for seed in range(20):
        drawn = badge(given, budget=12, random_state=seed)
        assert sorted(position % 3 for position in drawn[:3]) == [0, 1, 2]
        assert sorted(drawn) == list(range(12))


def test_sure_predictions_have_no_gradient() -> None:
    """All one-hot: no draw is possible, and the candidates come in order."""
    given = state(n_candidates=4, probabilities=np.eye(3)[[0, 1, 2, 0]])
    assert badge(given, budget=3, random_state=0) == [0, 1, 2]


# -- neighbours of high loss ------------------------------------------------------------------------------------------


def on_a_circle(out_of_fold: np.ndarray | None) -> RoundState:
    """Labeled images at 0, 90 and 180 degrees; ten candidates beside each of them, nearer and nearer the higher."""
    towards = np.radians([0, 90, 180, *(place + 11 - nth for place in (0, 90, 180) for nth in range(1, 11))])
    return RoundState(
        embeddings=np.stack([np.cos(towards), np.sin(towards)], axis=1),
        space=plain_space(2),
        labeled=np.arange(3),
        targets=np.array([0, 1, 0]),
        candidates=np.arange(3, 33),
        probabilities=np.tile([0.9, 0.1], (30, 1)),
        out_of_fold=out_of_fold,
    )


def test_neighbors_of_what_was_predicted_worst_come_first() -> None:
    """The image at 90 degrees is class 1 and was given 0.05, that at 180 degrees 0.3: five neighbours of each in turn.

    The candidates beside 90 degrees are positions 10 to 19, the nearest of them 19.
    """
    given = on_a_circle(np.array([[0.9, 0.1], [0.95, 0.05], [0.3, 0.7]]))
    assert knn_of_high_loss(given, budget=5, random_state=0) == [19, 18, 17, 16, 15]
    assert knn_of_high_loss(given, budget=6, random_state=0) == [19, 29, 18, 28, 17, 27]
    assert sorted(knn_of_high_loss(given, budget=30, random_state=0)) == list(range(30))


def test_a_row_never_held_out_counts_like_knowing_nothing() -> None:
    """NaN is taken for 1/2: worse than 0.6, better than 0.4."""
    nothing = [np.nan, np.nan]
    given = on_a_circle(np.array([[0.6, 0.4], nothing, [0.4, 0.6]]))
    assert [position // 10 for position in knn_of_high_loss(given, budget=6, random_state=0)][:2] == [2, 1]


def test_without_cross_validation_the_margin_stands_in() -> None:
    """Nothing is known of any loss."""
    given = state(out_of_fold=None)
    assert run("knn_of_high_loss", given, 9) == run("margin", given, 9)


# -- large pools and bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["coral", "badge"])
def test_large_pools_are_sampled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only so many candidates are compared, drawn by the seed; the positions are still those of all candidates."""
    monkeypatch.setattr(later_rounds, "MAX_COMPARED", 10)
    batches = [run(name, state(n_candidates=200), 10, random_state=seed) for seed in (0, 0, 1)]
    assert batches[0] == batches[1] != batches[2]
    assert max(itertools.chain(*batches)) > 100


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"probabilities": np.ones((3, 3))}, r"shape \(3, 3\); expected one row for each of 40 candidates"),
        ({"probabilities": np.ones(40)}, r"shape \(40,\)"),
        ({"targets": np.zeros(2, dtype=int)}, "got 2 targets of 9 labeled rows"),
        ({"out_of_fold": np.ones((9, 2))}, r"shape \(9, 2\); expected \(9, 3\)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], sentence: str) -> None:
    """What numpy would broadcast, or fail on later, is an error at once."""
    with pytest.raises(SelectionError, match=sentence):
        state(**changes)


def directions(*degrees: float) -> np.ndarray:
    towards = np.radians(degrees)
    return np.stack([np.cos(towards), np.sin(towards)], axis=1).astype(np.float32)


def test_information_density_by_hand() -> None:
    """All equally unsure: typicality times 1 - cosine, from the labeled image at 0° and from what is chosen.

    At 60° 1.0 × (1 - 0.5) = 0.5 beats 0.4 × 1 at 90° and 0.45 × 1 at 180°; with 60° chosen, 90° is worth
    0.4 × (1 - 0.866) and 180° still 0.45; the copy at 61° almost nothing.
    """
    given = RoundState(
        embeddings=directions(0, 90, 60, 61, 180),
        space=plain_space(2),
        labeled=np.array([0]),
        targets=np.array([0]),
        candidates=np.array([1, 2, 3, 4]),
        probabilities=np.full((4, 2), 0.5),
        typicality=np.array([0.4, 1.0, 0.95, 0.45]),
    )
    assert run("information_density", given, 4) == [1, 3, 0, 2]


def test_information_density_needs_doubt() -> None:
    """What the head is sure of is not asked, however typical; among equals the less sure is."""
    given = RoundState(
        embeddings=directions(0, 90, 180, 270),
        space=plain_space(2),
        labeled=np.array([0]),
        targets=np.array([0]),
        candidates=np.array([1, 2, 3]),
        probabilities=np.array([[1.0, 0.0], [0.7, 0.3], [0.6, 0.4]]),
        typicality=np.array([1.0, 0.5, 0.5]),
    )
    assert run("information_density", given, 3) == [2, 1, 0]


def test_information_density_compares_the_best_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a large pool the best by doubt and typicality are compared; a batch larger than that is still filled."""
    monkeypatch.setattr(later_rounds, "MAX_DENSITY_COMPARED", 5)
    given = state(n_candidates=30)
    best = np.argsort(-acquisition.margin(given.probabilities) * expected_rarity(given), kind="stable")[:5]
    assert set(run("information_density", given, 3)) <= set(best.tolist())
    assert sorted(run("information_density", given, 30)) == list(range(30))


def test_a_typicality_of_another_length_is_refused() -> None:
    """It would be that of other images."""
    with pytest.raises(SelectionError, match=r"typicality has shape \(3,\); expected one number for each of 40"):
        state(typicality=np.ones(3))
