"""The first batch: different pictures, away from what is labeled, and by their task ids."""

from __future__ import annotations

import numpy as np
import pytest

from backend.adapters.embedding_store import EmbeddingTable
from backend.config import SEED_STRATEGIES
from backend.errors import SelectionError
from backend.learning.first_batch import FIRST_BATCH_STRATEGIES
from backend.learning.pool import Pool
from backend.loop import seed as seed_module
from backend.loop.seed import select_seed

# Three colours, two or three pictures each; ids are far from row numbers on purpose.
COLOURS = {101: (1, 0, 0), 102: (1, 0.1, 0), 203: (0, 1, 0), 204: (0.1, 1, 0), 305: (0, 0, 1), 306: (0, 0.1, 1)}


LIGHTLY = {"strategy": "typical_coreset", "n_classes": 3, "random_state": 0}


@pytest.fixture
def table() -> EmbeddingTable:
    embeddings = np.array(list(COLOURS.values()), dtype=np.float16)
    return EmbeddingTable(np.array(list(COLOURS), dtype=np.int64), embeddings, {}, dict.fromkeys(COLOURS, "x"), 1)


def test_a_first_batch_holds_one_of_each_kind(table: EmbeddingTable) -> None:
    """Three of six: one red, one green, one blue, by task id, chosen by Lightly's engine."""
    seed = select_seed(table, Pool(table.embeddings), list(COLOURS), [], budget=3, **LIGHTLY)
    assert sorted(task_id // 100 for task_id in seed.task_ids) == [1, 2, 3]
    assert (seed.engine, seed.reason) == ("lightly-mundig", None)


@pytest.mark.parametrize("strategy", SEED_STRATEGIES)
def test_a_batch_is_that_of_its_strategy(table: EmbeddingTable, strategy: str) -> None:
    """By task id what the strategy gives for the features of labeled tasks and pool; Lightly's run on its engine."""
    labeled, pool = [203], [101, 102, 204, 305, 306]
    all_images = Pool(table.embeddings)
    seed = select_seed(table, all_images, pool, labeled, strategy=strategy, budget=3, n_classes=3, random_state=5)
    features = all_images.space().features(all_images.embeddings)
    expected = FIRST_BATCH_STRATEGIES[strategy](features, budget=3, preselected=[2], n_classes=3, random_state=5)
    assert list(seed.task_ids) == [list(COLOURS)[index] for index in expected]
    assert seed.strategy == strategy
    if strategy in ("coreset", "typical_coreset"):
        assert (seed.engine, seed.reason) == ("lightly-mundig", None)
    else:
        assert (seed.engine, seed.reason) == ("numpy", f"{strategy} is not a strategy of Lightly's")


@pytest.mark.parametrize("strategy", SEED_STRATEGIES)
def test_a_large_pool_is_not_given_to_the_engine(
    table: EmbeddingTable, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more images than ENGINE_ROWS the twin chooses, from features in float16, and the reason is said."""
    monkeypatch.setattr(seed_module, "ENGINE_ROWS", 5)
    everything, pool = Pool(table.embeddings), [101, 102, 204, 305, 306]
    seed = select_seed(table, everything, pool, [203], strategy=strategy, budget=3, n_classes=3, random_state=5)
    features = everything.space().half_features(table.embeddings)
    expected = FIRST_BATCH_STRATEGIES[strategy](features, budget=3, preselected=[2], n_classes=3, random_state=5)
    assert list(seed.task_ids) == [list(COLOURS)[index] for index in expected]
    assert seed.engine == "numpy"
    if strategy in ("coreset", "typical_coreset"):
        assert seed.reason == "6 images are more than the 5 that lightly-mundig is asked for"


def test_what_is_labeled_is_not_chosen_again(table: EmbeddingTable) -> None:
    """Red and green are labeled: blue comes first, and no labeled task is in the batch."""
    seed = select_seed(table, Pool(table.embeddings), [102, 204, 305, 306], [101, 203], budget=2, **LIGHTLY)
    assert seed.task_ids[0] // 100 == 3
    assert set(seed.task_ids) <= {102, 204, 305, 306}


def test_a_pool_smaller_than_the_batch_is_taken_whole(table: EmbeddingTable) -> None:
    """Two tasks, a batch of thirty."""
    seed = select_seed(table, Pool(table.embeddings), [102, 305], [101], budget=30, **LIGHTLY)
    assert sorted(seed.task_ids) == [102, 305]


def test_the_same_seed_of_randomness_gives_the_same_batch(table: EmbeddingTable) -> None:
    """A crash between choosing and publishing does not change what comes first."""
    pool = Pool(table.embeddings)
    batches = [select_seed(table, pool, list(COLOURS), [], budget=4, **LIGHTLY).task_ids for _ in range(2)]
    assert batches[0] == batches[1]


def test_a_broken_embedding_is_an_error_with_a_sentence(table: EmbeddingTable) -> None:
    """NaN would be silently wrong in the engine."""
    embeddings = np.array(table.embeddings)
    embeddings[0, 0] = np.nan
    broken = EmbeddingTable(table.task_ids, embeddings, {}, table.references, 1)
    with pytest.raises(SelectionError):
        select_seed(broken, Pool(broken.embeddings), list(COLOURS), [], budget=2, **LIGHTLY)
