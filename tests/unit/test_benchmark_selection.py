"""The comparison with scikit-activeml: who is first is counted by hand, and every learner is judged alike.

Nothing here needs scikit-activeml itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from backend.config import Settings
from backend.loop.simulate import STRATEGIES, LabeledImages, Row, Simulation, held_out_fifth
from benchmarks import selection
from benchmarks.selection import (
    BASELINE,
    MISSING_LABEL,
    OUR_LEARNER,
    OURS,
    QUERY_STRATEGIES,
    Standing,
    check_budgets,
    check_folders,
    comparisons,
    descriptions,
    label_order,
    measure,
    paired_difference,
    random_order,
    standings,
    standings_table,
    table,
    whole_numbers,
    with_our_learner,
    with_plain_learner,
)

SETTINGS = Settings(seed_size=8, window_size=8)


@pytest.fixture
def images() -> LabeledImages:
    """45 noisy points of three classes in eight dimensions."""
    random = np.random.default_rng(0)
    labels = np.repeat(["cat", "dog", "owl"], 15)
    centres = {"cat": np.eye(8)[0], "dog": np.eye(8)[1], "owl": np.eye(8)[2]}
    embeddings = np.array([centres[label] for label in labels]) + 0.5 * random.normal(size=(45, 8))
    return LabeledImages(embeddings.astype(np.float16), labels, 0)


def rows_of(budget: int = 10, **accuracies: list[float]) -> list[Row]:
    """One row per strategy and seed at one budget."""
    return [Row(name, budget, seed, value) for name, values in accuracies.items() for seed, value in enumerate(values)]


# -- who is first -----------------------------------------------------------------------------------------------------


def test_a_difference_is_taken_seed_by_seed() -> None:
    """0.1, 0.2 and 0: mean 0.1, standard deviation 0.1, of the mean 0.1 / √3; the order of the rows is no matter."""
    rows = rows_of(default=[0.8, 0.9, 0.7], badge=[0.7, 0.7, 0.7])
    found = paired_difference(rows[::-1], OURS, "badge", 10)
    assert found == (pytest.approx(0.1), pytest.approx(0.1 / 3**0.5))
    assert paired_difference(rows, "badge", OURS, 10) == (pytest.approx(-0.1), pytest.approx(0.1 / 3**0.5))


def test_folds_that_are_hard_for_both_say_nothing() -> None:
    """One point ahead in folds of 0.5 and 0.9: the spread over folds is 0.4, that of the difference 0."""
    assert paired_difference(rows_of(default=[0.51, 0.91], badge=[0.5, 0.9]), OURS, "badge", 10) == (0.01, 0.0)


def test_one_seed_has_no_standard_error() -> None:
    """A single difference does not tell how far the next would be from it."""
    assert paired_difference(rows_of(default=[0.75], badge=[0.5]), OURS, "badge", 10) == (0.25, None)


def test_runs_with_different_seeds_are_not_compared() -> None:
    """A run that is missing is told, not averaged over; so is a budget at which nothing was measured."""
    rows = rows_of(default=[0.8, 0.9], badge=[0.7])
    with pytest.raises(ValueError, match=r"at 10 labels default has seeds \[0, 1\] and badge \[0\]; expected the same"):
        paired_difference(rows, OURS, "badge", 10)
    with pytest.raises(ValueError, match="at 20 labels"):
        paired_difference(rows, OURS, "badge", 20)


@pytest.mark.parametrize(
    ("lead", "standard_error", "verdict"),
    [
        (0.02, 0.01, "default first, by more than a standard error"),
        (0.02, 0.02, "default first, within a standard error"),
        (-0.02, 0.03, "badge first, within a standard error"),
        (-0.02, 0.01, "badge first, by more than a standard error"),
        (0.02, 0.0, "default first, by more than a standard error"),
        (0.0, 0.01, "default and badge are level"),
        (0.02, None, "default first; one seed tells no standard error"),
    ],
)
def test_a_verdict_names_the_first_and_how_sure_that_is(
    lead: float, standard_error: float | None, verdict: str
) -> None:
    """More than one standard error is asked for: exactly one is not enough."""
    assert Standing(10, "badge", lead, standard_error).verdict == verdict


def test_default_stands_beside_the_best_of_the_others_at_each_budget() -> None:
    """At 10 labels badge is the best other (0.7), at 20 margin (0.9); the row with our learner is another question."""
    rows = rows_of(10, default=[0.8, 0.8], badge=[0.6, 0.8], margin=[0.5, 0.7]) + rows_of(
        20, default=[0.8, 0.8], badge=[0.7, 0.7], margin=[0.9, 0.9]
    )
    rows += [Row(row.strategy + OUR_LEARNER, row.budget, row.seed, 1.0) for row in rows if row.strategy == "badge"]
    (_, plain), (_, with_ours) = comparisons(rows)
    assert (plain, with_ours) == (["badge", "margin"], ["badge + our learner"])
    assert standings(rows, plain) == [
        Standing(10, "badge", pytest.approx(0.1), pytest.approx(0.1)),
        Standing(20, "margin", pytest.approx(-0.1), 0.0),
    ]
    assert [item.best_other for item in standings(rows, with_ours)] == ["badge + our learner"] * 2


def test_tables_are_markdown_with_aligned_columns() -> None:
    """Mean ± standard deviation by strategy and budget; the lead with its sign."""
    rows = rows_of(10, default=[0.5, 0.7], badge=[0.25, 0.25]) + rows_of(120, default=[1.0, 1.0], badge=[0.5, 0.5])
    assert table(rows).splitlines() == [
        "| labels  | 10            | 120           |",
        "|---------|---------------|---------------|",
        "| default | 0.600 ± 0.141 | 1.000 ± 0.000 |",
        "| badge   | 0.250 ± 0.000 | 0.500 ± 0.000 |",
    ]
    found = [Standing(10, "badge", 0.35, 0.1), Standing(120, "margin", -0.5, None)]
    assert standings_table(found).splitlines() == [
        "| labels | best other | lead           | verdict                                        |",
        "|--------|------------|----------------|------------------------------------------------|",
        "| 10     | badge      | +0.350 ± 0.100 | default first, by more than a standard error   |",
        "| 120    | margin     | -0.500         | margin first; one seed tells no standard error |",
    ]


def test_every_row_of_the_table_is_described() -> None:
    """Nobody has to look into the code to know what was measured."""
    assert set(descriptions()) == {OURS, BASELINE, *QUERY_STRATEGIES, f"…{OUR_LEARNER}"}


# -- orders and learners ----------------------------------------------------------------------------------------------


def test_labels_are_known_only_once_asked_for() -> None:
    """Two to begin with, batches of three, and one at the end to make six; each query sees the answers so far."""
    answers = np.array([5, 6, 7, 8, 9, 5, 6, 7])
    seen = []

    def query(labels: np.ndarray, batch_size: int) -> list[int]:
        seen.append((labels.tolist(), batch_size))
        return np.flatnonzero(labels == MISSING_LABEL)[:batch_size].tolist()

    assert label_order(query, answers, first=[7, 1], batch_size=3, budget=6) == [7, 1, 0, 2, 3, 4]
    assert seen == [([-1, 6, -1, -1, -1, -1, -1, 7], 3), ([5, 6, 7, 8, -1, -1, -1, 7], 1)]
    assert label_order(query, answers, first=[7, 1, 2], batch_size=3, budget=2) == [7, 1]


def test_a_row_asked_for_twice_is_an_error() -> None:
    """Its label would be counted twice, to the disadvantage of whoever asked."""
    with pytest.raises(RuntimeError, match=r"asked for rows \[0, 3\] after \[3\]; expected each row once"):
        label_order(lambda labels, n: [0, 3], np.zeros(5, dtype=np.int64), first=[3], batch_size=2, budget=3)


def test_our_learner_is_the_service_s(images: LabeledImages) -> None:
    """On the service's own first batch it is as good as `default`, on a random order as good as `random`."""
    simulation = Simulation(images, seed=2, settings=SETTINGS)
    first_batch = [task_id for task_id, _ in simulation.plan([]).window]
    ours = list(with_our_learner(simulation, first_batch, [1, 4, 8]))
    assert ours == list(STRATEGIES[OURS][1](simulation, [1, 4, 8]))
    assert len({accuracy for _, accuracy in ours}) > 1, "the accuracies differ, so that the comparison says something"
    order = random_order(simulation.size, seed=2)
    assert list(with_our_learner(simulation, order, [6, 12])) == list(STRATEGIES["random"][1](simulation, [6, 12]))


def test_the_plain_learner_is_the_baseline_s(images: LabeledImages) -> None:
    """On the same random order both give the same, with one class labeled too; so every row is judged alike."""
    simulation = Simulation(images, seed=3, settings=SETTINGS)
    order = random_order(simulation.size, seed=3)
    budgets = [1, 6, 12, 24]
    plain = list(with_plain_learner(images, held_out_fifth(images.labels, 3), order, budgets))
    assert plain == list(STRATEGIES[BASELINE][1](simulation, budgets))
    assert plain[0] == (1, pytest.approx(1 / 3)), "one class known: the best constant answer"
    assert len({accuracy for _, accuracy in plain}) > 2


def test_a_run_measures_a_strategy_and_its_order_with_our_learner(images: LabeledImages) -> None:
    """`default` has our learner anyway."""
    rows, seconds = measure(images, BASELINE, seed=1, budgets=(3, 9), settings=SETTINGS)
    assert [(row.strategy, row.budget, row.seed) for row in rows] == [
        ("baseline", 3, 1),
        ("baseline", 9, 1),
        ("baseline + our learner", 3, 1),
        ("baseline + our learner", 9, 1),
    ]
    assert seconds > 0
    rows, _ = measure(images, OURS, seed=1, budgets=(3, 9), settings=SETTINGS)
    assert [(row.strategy, row.budget) for row in rows] == [(OURS, 3), (OURS, 9)]


# -- the command ------------------------------------------------------------------------------------------------------


def test_budgets_are_whole_numbers_ascending_and_within_the_pool(images: LabeledImages) -> None:
    """36 of 45 images are the pool."""
    assert whole_numbers("30,10,30") == (10, 30)
    for text in ("", "10,x", "0,10", "-5"):
        with pytest.raises(argparse.ArgumentTypeError, match="whole numbers of at least 1"):
            whole_numbers(text)
    check_budgets([36], images, "birds")
    with pytest.raises(SystemExit, match="goes to 37; expected at most 36, the images of birds's pool"):
        check_budgets([10, 37], images, "birds")


def test_folders_must_be_there_and_have_names_of_their_own(tmp_path: Path) -> None:
    """A result is filed under its folder's name."""
    (tmp_path / "a" / "birds").mkdir(parents=True)
    (tmp_path / "b" / "birds").mkdir(parents=True)
    check_folders([tmp_path / "a" / "birds"])
    with pytest.raises(SystemExit, match="cats is not a folder; give folders of class folders"):
        check_folders([tmp_path / "a" / "birds", tmp_path / "cats"])
    with pytest.raises(SystemExit, match="names two folders 'birds'"):
        check_folders([tmp_path / "a" / "birds", tmp_path / "b" / "birds"])


def test_what_cannot_be_run_is_told_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without scikit-activeml, the command that installs it; and numbers of which there must be one at least."""
    monkeypatch.setattr(selection, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="not installed; `make bench-selection` installs it"):
        selection.main([])
    monkeypatch.setattr(selection, "find_spec", lambda name: name)
    with pytest.raises(SystemExit, match="--seeds is 0 and --jobs 2; expected at least 1"):
        selection.main(["--seeds", "0", "--jobs", "2"])
