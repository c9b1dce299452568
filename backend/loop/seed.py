"""The first batch: images chosen from embeddings alone, before there is any model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.adapters.embedding_store import EmbeddingTable
from backend.adapters.lightly import ENGINE_ROWS, LIGHTLY_STRATEGIES, select_first_batch
from backend.learning.first_batch import FIRST_BATCH_STRATEGIES
from backend.learning.pool import Pool

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seed:
    """The tasks of a first batch in rank order, and what chose them.

    strategy: a name of FIRST_BATCH_STRATEGIES. engine: the program that ran it, with the reason if not Lightly's.
    """

    task_ids: Sequence[int]
    strategy: str
    engine: str
    reason: str | None


def select_seed(
    table: EmbeddingTable,
    everything: Pool,
    pool: Sequence[int],
    labeled: Sequence[int],
    *,
    strategy: str,
    budget: int,
    n_classes: int,
    random_state: int,
) -> Seed:
    """Up to `budget` task ids of `pool` that cover it best, away from what is `labeled` already.

    Both must have an embedding in `table`; `everything` is the pool of all its images. `strategy` is a name of
    FIRST_BATCH_STRATEGIES; those that Lightly has run on its engine in pools of up to `lightly.ENGINE_ROWS` images.
    `n_classes` is how many classes the labeling config offers. Memory beside the table, in larger pools: what its rows
    take in float16, and what the strategy needs.
    """
    # In one order whatever is labeled already: k-means, for one, starts from rows drawn by their number.
    candidates = np.sort(np.asarray([*labeled, *pool], dtype=np.int64))
    rows = table.rows_of(candidates)
    budget = min(budget, len(pool))
    preselected = np.searchsorted(candidates, np.sort(np.asarray(labeled, dtype=np.int64))).tolist()
    space = everything.space()
    is_large = len(rows) > ENGINE_ROWS
    features = space.half_features(table.embeddings, rows) if is_large else space.features(table.embeddings[rows])
    if strategy in LIGHTLY_STRATEGIES and not is_large:
        selection = select_first_batch(
            features, budget=budget, preselected=preselected, strategy=strategy, random_state=random_state
        )
        indices, engine, reason = selection.indices, selection.engine, selection.reason
    else:
        select = FIRST_BATCH_STRATEGIES[strategy]
        indices = select(
            features, budget=budget, preselected=preselected, n_classes=n_classes, random_state=random_state
        )
        engine, reason = "numpy", f"{strategy} is not a strategy of Lightly's"
        if strategy in LIGHTLY_STRATEGIES:
            reason = f"{len(rows)} images are more than the {ENGINE_ROWS} that lightly-mundig is asked for"
    task_ids = [int(candidates[index]) for index in indices]
    logger.info("seeded tasks=%d pool=%d strategy=%s engine=%s", len(task_ids), len(pool), strategy, engine)
    return Seed(task_ids, strategy, engine, reason)
