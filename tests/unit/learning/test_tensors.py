"""Selection on a torch tensor gives what it gives on the array it was made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backend.errors import SelectionError
from backend.learning import tensors
from backend.learning.coreset import check_selection, neighbor_distances, select_coreset, take, typicality
from backend.learning.features import normalise
from backend.learning.first_batch import FIRST_BATCH_STRATEGIES, k_means

on_every_device = pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])


def photos(n_rows: int = 400, n_features: int = 24, seed: int = 0) -> np.ndarray:
    """Features in clusters of uneven size, of length 1, as float16."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(12, n_features))
    rows = centres[random.integers(0, 12, n_rows) // 2] + 0.6 * random.normal(size=(n_rows, n_features))
    return normalise(rows).astype(np.float16)


@on_every_device
@pytest.mark.parametrize("preselected", [[], [3, 77, 200]])
@pytest.mark.parametrize("weighted", [{}, {"weighting_strength": 1.0}, {"weighting_strength": None}])
def test_picks_are_those_of_the_array(device, preselected, weighted):
    """Diversity, diversity and weights, and both balanced; nothing labeled yet, and three labels."""
    rows = photos()
    kept = {"typicality_weights": np.random.default_rng(1).random(len(rows))} if weighted else {}
    asked = {"budget": 30, "preselected": preselected, **kept, **weighted}
    assert select_coreset(torch.from_numpy(rows).to(device), **asked) == select_coreset(rows, **asked)


@on_every_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_type_of_the_tensor_does_not_matter(device, dtype):
    """Distances are float32 whatever the rows are."""
    rows = photos()
    assert select_coreset(torch.from_numpy(rows).to(device, dtype), budget=20) == select_coreset(rows, budget=20)


@on_every_device
def test_copies_come_last_and_in_order(device):
    """Rows 0, 1 and 2 are one point, 3 another."""
    rows = torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1]], device=device)
    assert select_coreset(rows, budget=4) == [0, 3, 1, 2]


@on_every_device
def test_typicality_and_neighbors_are_those_of_the_array(device):
    """Among all rows, and among a sample of them, which is the same one."""
    rows = photos()
    tensor = torch.from_numpy(rows).to(device)
    for reference in (None, np.arange(3, 400, 5)):
        expected = np.sort(neighbor_distances(rows, 7, reference), axis=1)
        found = np.sort(neighbor_distances(tensor, 7, reference), axis=1)
        np.testing.assert_allclose(found, expected, atol=1e-3)
    for exact_rows in (None, 150):
        np.testing.assert_allclose(
            typicality(tensor, exact_rows=exact_rows), typicality(rows, exact_rows=exact_rows), atol=1e-3
        )
    np.testing.assert_array_equal(take(tensor, np.array([5, 2])), rows[[5, 2]].astype(np.float32))


@on_every_device
@pytest.mark.parametrize("name", FIRST_BATCH_STRATEGIES)
def test_every_strategy_gives_what_it_gives_on_the_array(device, name):
    """All of them take a tensor."""
    rows = photos()
    asked = {"budget": 12, "preselected": [5, 9], "n_classes": 4, "random_state": 0}
    assert FIRST_BATCH_STRATEGIES[name](torch.from_numpy(rows).to(device), **asked) == FIRST_BATCH_STRATEGIES[name](
        rows, **asked
    )


@on_every_device
def test_k_means_puts_rows_into_the_same_clusters(device):
    """The centres come from the same sample; only the distances to them are computed on the device."""
    rows = photos()
    np.testing.assert_array_equal(
        k_means(torch.from_numpy(rows).to(device), 9, random_state=0), k_means(rows, 9, random_state=0)
    )


def test_small_blocks_change_nothing(monkeypatch):
    """They bound memory only."""
    tensor = torch.from_numpy(photos())
    expected = select_coreset(tensor, budget=9, preselected=[1, 2, 3]), typicality(tensor)
    monkeypatch.setattr(tensors, "HOST_ENTRIES", 500)
    assert select_coreset(tensor, budget=9, preselected=[1, 2, 3]) == expected[0]
    np.testing.assert_allclose(typicality(tensor), expected[1], rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        (torch.tensor([[1.0], [torch.nan]]), {}, "1 of 2 embeddings contain NaN or infinity.*the first at row 1"),
        (torch.zeros(3), {}, r"shape \(3,\)"),
        (torch.zeros((3, 2), dtype=torch.int64), {}, "torch.int64; expected a floating type"),
        (torch.eye(3), {"budget": 4}, r"budget is 4; expected 0\.\.3"),
        (torch.eye(3), {"preselected": [3]}, r"index 3 is outside 0\.\.2"),
    ],
)
def test_impossible_input_is_refused(rows, change, message):
    """As with arrays."""
    with pytest.raises(SelectionError, match=message):
        select_coreset(rows, **({"budget": 1} | change))
    with pytest.raises(SelectionError, match=message):
        check_selection(rows, **({"budget": 1} | change))
