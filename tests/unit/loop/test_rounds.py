"""A round: the window is built in the strategy's order, whatever was labeled and skipped before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from fakes import TinyBackbone

from backend.adapters.embedding_store import EmbeddingTable
from backend.config import ACQUISITIONS, Settings
from backend.learning.first_batch import FIRST_BATCH_STRATEGIES
from backend.learning.later_rounds import LATER_ROUND_STRATEGIES, RoundState, next_batch
from backend.learning.pool import DEFAULT_DETAIL_WEIGHT, Pool
from backend.loop.rounds import Pools, Round, Stopwatch, plan_round
from backend.loop.seed import Seed
from backend.schema import TrainingLabels

KINDS = ("cat", "dog", "owl")
N_TASKS = 30


@pytest.fixture
def table() -> EmbeddingTable:
    """Thirty images of three kinds, noisy; task ids 100 to 129, kinds in turn."""
    generator = np.random.default_rng(0)
    rows = np.eye(6)[np.arange(N_TASKS) % 3] + 0.4 * generator.normal(size=(N_TASKS, 6))
    task_ids = np.arange(100, 100 + N_TASKS, dtype=np.int64)
    return EmbeddingTable(task_ids, rows.astype(np.float16), {}, dict.fromkeys(task_ids.tolist(), "x"), 1)


def labels(task_ids: Sequence[int], skipped: Sequence[int] = ()) -> TrainingLabels:
    given = {task_id: KINDS[(task_id - 100) % 3] for task_id in task_ids}
    return TrainingLabels(given, frozenset(given), frozenset(skipped), {})


def plan(
    table: EmbeddingTable, given: TrainingLabels, acquisition: str, *, seed: Seed | None = None, window_size: int = 8
) -> Round:
    settings = Settings(acquisition=acquisition, seed_size=6, window_size=window_size)
    return plan_round(
        table, Pool(table.embeddings), given, settings, n_classes=3, previous_seed=seed, watch=Stopwatch()
    )


def ids(made: Round) -> list[int]:
    return [task_id for task_id, _ in made.window]


@pytest.mark.parametrize("acquisition", ACQUISITIONS)
def test_every_acquisition_fills_the_window_in_ascending_order(table: EmbeddingTable, acquisition: str) -> None:
    """Eight tasks, none labeled, none twice; scores ascend strictly, so that Label Studio serves this order."""
    made = plan(table, labels(range(100, 110)), acquisition)
    assert len(set(ids(made))) == 8
    assert set(ids(made)) <= set(range(110, 130))
    assert all(one < other for (_, one), (_, other) in pairwise(made.window))
    assert made.scores is not None, "pre-labels are there whoever chose the tasks"


@pytest.mark.parametrize("acquisition", LATER_ROUND_STRATEGIES)
def test_the_window_is_the_strategy_s_batch(table: EmbeddingTable, acquisition: str) -> None:
    """Task by task what `next_batch` says of the head's probabilities; the out-of-fold ones are the head's too."""
    given = labels(range(100, 110))
    made = plan(table, given, acquisition, window_size=20)
    assert made.fitted is not None
    assert made.fitted.evaluation is not None
    head = made.fitted.head
    state = RoundState(
        embeddings=table.embeddings,
        space=head.space,
        labeled=np.arange(10),
        targets=np.array([head.classes.index(given.labels[task_id]) for task_id in range(100, 110)]),
        candidates=np.arange(10, 30),
        probabilities=head.predict_proba(table.embeddings[10:]),
        out_of_fold=made.fitted.evaluation.probabilities,
        typicality=Pool(table.embeddings).typicality(made.fitted.settings.detail_weight)[10:],
    )
    expected = next_batch(acquisition, state, budget=20, random_state=0)
    assert ids(made) == [110 + position for position in expected]


@pytest.mark.parametrize("acquisition", ["margin", "least_confidence", "entropy"])
def test_uncertainty_keeps_its_own_queue_scores(table: EmbeddingTable, acquisition: str) -> None:
    """No class is rarer, no two images nearly the same: order and scores of the window are those of the utilities."""
    made = plan(table, labels(range(100, 109)), acquisition)
    assert made.scores is not None
    by_score = sorted(zip(made.scores.queue_scores.tolist(), made.pool, strict=True))
    assert list(made.window) == [(task_id, score) for score, task_id in by_score[:8]]


def test_what_is_left_of_the_first_batch_comes_before_the_strategy_s_choice(table: EmbeddingTable) -> None:
    """Two of the seed wait; six more by BADGE, none of them twice."""
    seed = Seed([100, 101, 120, 125], "typical_coreset", "numpy", None)
    made = plan(table, labels(range(100, 110)), "badge", seed=seed)
    assert ids(made)[:2] == [120, 125]
    assert len(set(ids(made))) == 8
    assert made.seed == seed


def test_skipped_tasks_are_not_chosen_while_others_wait(table: EmbeddingTable) -> None:
    """Four of six left were skipped: the other two are first, whatever the strategy, then the skipped."""
    for acquisition in ACQUISITIONS:
        made = plan(table, labels(range(100, 124), skipped=[124, 125, 126, 127]), acquisition)
        assert set(ids(made)[:2]) == {128, 129}, acquisition
        assert set(ids(made)) == set(range(124, 130)), acquisition


@pytest.mark.parametrize("acquisition", FIRST_BATCH_STRATEGIES)
def test_a_strategy_without_head_goes_on_in_batches_that_last(table: EmbeddingTable, acquisition: str) -> None:
    """Labeled one at a time or a window at a time, the order is the same: no label changes it."""

    def order(n_at_a_time: int) -> list[int]:
        done, seed = [100, 101], None
        while len(done) < 20:
            made = plan(table, labels(done), acquisition, seed=seed)
            seed = made.seed
            done += ids(made)[:n_at_a_time]
        return done[:20]

    assert order(1) == order(6)


def test_the_batch_that_goes_on_is_chosen_away_from_what_waits(table: EmbeddingTable) -> None:
    """With one task of the first batch left, six more of the strategy's follow it, and it names who chose them."""
    seed = Seed([100, 101, 120], "random", "numpy", "a reason")
    made = plan(table, labels([100, 101]), "coreset", seed=seed)
    assert made.seed is not None
    assert ids(made)[0] == 120
    assert made.seed.task_ids[0] == 120
    assert len(set(made.seed.task_ids)) == 7
    assert (made.seed.strategy, made.seed.engine) == ("coreset", "lightly-mundig")


def test_a_pool_is_kept_until_images_or_backbone_change(table: EmbeddingTable) -> None:
    """The same images seen by another backbone are another pool, though the table's digest is the same."""
    pools, backbone = Pools(), TinyBackbone()
    pool = pools.pool(1, table, backbone)
    assert pools.pool(1, replace(table), backbone) is pool
    assert pools.pool(2, table, backbone) is not pool
    seen_otherwise = replace(table, embeddings=-table.embeddings)
    other = pools.pool(1, seen_otherwise, TinyBackbone(fingerprint="beef"))
    assert other.embeddings is seen_otherwise.embeddings
    assert not other.is_ready(DEFAULT_DETAIL_WEIGHT)


def test_a_pool_keeps_what_is_known_of_images_that_stay(table: EmbeddingTable) -> None:
    """One image leaves and another shows something else: only the latter is computed anew, with the others' axes."""
    pools, backbone = Pools(), TinyBackbone()
    before = pools.pool(1, table, backbone).basis()
    references = {**table.references, int(table.task_ids[1]): "another picture"}
    embeddings = np.array(table.embeddings[1:])
    embeddings[0] = table.embeddings[0]
    now = replace(table, task_ids=table.task_ids[1:], embeddings=embeddings, references=references)
    after = pools.pool(1, now, backbone).basis()
    assert after.axes is before.axes
    np.testing.assert_array_equal(after.coordinates[1:], before.coordinates[2:])
    np.testing.assert_allclose(after.coordinates[0], before.coordinates[0], atol=1e-6)
