"""The first batch: images chosen from embeddings alone, before there is any model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.adapters.embedding_store import EmbeddingTable
from backend.adapters.lightly import LIGHTLY_STRATEGIES, select_first_batch
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
    FIRST_BATCH_STRATEGIES; those that Lightly has run on its engine, see `backend.adapters.lightly`. `n_classes` is how
    many classes the labeling config offers.
    """
    # In one order whatever is labeled already: k-means, for one, starts from rows drawn by their number.
    candidates = np.sort(np.asarray([*labeled, *pool], dtype=np.int64))
    features = everything.space().features(table.embeddings[table.rows_of(candidates)])
    budget = min(budget, len(pool))
    preselected = np.searchsorted(candidates, np.sort(np.asarray(labeled, dtype=np.int64))).tolist()
    if strategy in LIGHTLY_STRATEGIES:
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
    task_ids = [int(candidates[index]) for index in indices]
    logger.info("seeded tasks=%d pool=%d strategy=%s engine=%s", len(task_ids), len(pool), strategy, engine)
    return Seed(task_ids, strategy, engine, reason)
