"""The first batch: a coreset of the pool, before there is any model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.adapters.embedding_store import EmbeddingTable
from backend.adapters.lightly import select_first_batch
from backend.learning.pool import Pool

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seed:
    """The tasks of a first batch in rank order, and which engine chose them (with the reason if not Lightly's)."""

    task_ids: Sequence[int]
    engine: str
    reason: str | None


def select_seed(
    table: EmbeddingTable,
    everything: Pool,
    pool: Sequence[int],
    labeled: Sequence[int],
    *,
    budget: int,
    random_state: int,
) -> Seed:
    """Up to `budget` task ids of `pool` that cover it best, away from what is `labeled` already.

    Both must have an embedding in `table`, and `everything` is the pool of all its images. Diversity and typicality of
    features with equal strength; see `backend.adapters.lightly`.
    """
    candidates = np.asarray([*labeled, *pool], dtype=np.int64)
    features = everything.space().features(table.embeddings[table.rows_of(candidates)])
    selection = select_first_batch(
        features,
        budget=min(budget, len(pool)),
        preselected=range(len(labeled)),
        random_state=random_state,
    )
    task_ids = [int(candidates[index]) for index in selection.indices]
    logger.info("seeded tasks=%d pool=%d engine=%s", len(task_ids), len(pool), selection.engine)
    return Seed(task_ids, selection.engine, selection.reason)
