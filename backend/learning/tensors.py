"""Selection on a torch tensor, on the device it is on: what `learning.coreset` and `first_batch` do there with arrays.

Their functions hand a tensor on to these. A GPU reads all rows faster than it can be told which ones to leave out, so
k-center here is the plain algorithm: one pass over the rows for each row selected, without waiting for the device in
between. Distances are summed in float32 whatever the rows are. They are computed from the origin, where the other
module takes out a middle first: features, which have theirs there, lose nothing by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.errors import SelectionError
from backend.learning.coreset import LOG_FLOOR, SAME_POINT, check_request, check_strengths, checked_weights

if TYPE_CHECKING:
    import torch

Indices = NDArray[np.intp]

DEVICE_ENTRIES = 2**26
"""Entries of the largest temporary matrix on a GPU: 256 MB of float32."""

HOST_ENTRIES = 2**20
"""The same on a processor, whose caches are smaller: 4 MB."""


def select_coreset(
    rows: torch.Tensor,
    *,
    budget: int,
    preselected: Sequence[int],
    weights: ArrayLike | None,
    diversity_strength: float,
    weighting_strength: float | None,
) -> list[int]:
    """`coreset.select_coreset` of rows (N, D). Cost O((budget + preselected)·N·D), 24 bytes a row beside the rows."""
    import torch

    lengths = check_selection(rows, budget=budget, preselected=preselected)
    check_strengths(diversity_strength, weighting_strength)
    given = None
    if weights is not None:
        given = torch.from_numpy(checked_weights(weights, len(rows))).to(rows.device)
    nearest = torch.full_like(lengths, torch.inf)  # (N,), squared, to the nearest selected row other than itself
    is_selected = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)

    def select(indices: torch.Tensor) -> None:
        squared = _squared(rows, lengths, rows[indices], lengths[indices])
        squared[indices, torch.arange(len(indices), device=rows.device)] = torch.inf
        torch.minimum(nearest, squared.amin(dim=1), out=nearest)
        is_selected.index_fill_(0, indices, True)

    at_once = max(1, _entries(rows) // max(len(rows), 1))
    for start in range(0, len(preselected), at_once):
        select(torch.tensor(preselected[start : start + at_once], device=rows.device))

    def diversity_term(n_selected: int) -> torch.Tensor:
        spread = nearest.where(is_selected, 0).sum(dtype=torch.float64) if n_selected > 1 else 0.0
        return (spread + nearest.double()).clamp_min(LOG_FLOOR).log()

    def weighting_term(values: torch.Tensor) -> torch.Tensor:
        return (values.where(is_selected, 0).sum() + values).clamp_min(LOG_FLOOR).log()

    if given is not None and weighting_strength is None:
        weighting_strength = diversity_strength
        if len(preselected) and budget:
            terms = diversity_term(len(preselected)), weighting_term(given)
            spreads = [term[~is_selected].std(correction=0) for term in terms]
            weighting_strength *= float(spreads[0] / spreads[1]) if min(spreads) > 0 else 1.0

    picks: list[torch.Tensor] = []
    for n_selected in range(len(preselected), len(preselected) + budget):
        if given is None or weighting_strength is None:
            potentials = nearest
        elif n_selected == 0:
            potentials = given
        else:
            potentials = diversity_strength * diversity_term(n_selected) + weighting_strength * weighting_term(given)
        picks.append(potentials.masked_fill(is_selected, -torch.inf).argmax()[None])
        select(picks[-1])
    indices: list[int] = torch.cat(picks).tolist() if picks else []
    return indices


def check_selection(rows: torch.Tensor, *, budget: int, preselected: Sequence[int]) -> torch.Tensor:
    """The squared lengths (N,) of rows (N, D); SelectionError where `coreset.check_selection` raises it."""
    import torch

    if rows.ndim != 2:
        raise SelectionError(f"embeddings have shape {tuple(rows.shape)}; expected (N, D), one row per image")
    if not rows.is_floating_point():
        raise SelectionError(f"embeddings are a tensor of {rows.dtype}; expected a floating type")
    lengths = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
    for block in _blocks(rows, rows.shape[1]):
        lengths[block] = rows[block].float().square().sum(dim=1)
    wrong = torch.nonzero(~torch.isfinite(lengths))
    if len(wrong):
        raise SelectionError(
            f"{len(wrong)} of {len(rows)} embeddings contain NaN or infinity, or are longer than 1e19, the first at "
            f"row {int(wrong[0])}; embed these images again or leave them out"
        )
    check_request(len(rows), budget=budget, preselected=preselected)
    return lengths


def neighbor_distances(rows: torch.Tensor, reference: Indices, n_neighbors: int) -> NDArray[np.float32]:
    """Euclidean distances (N, n_neighbors) of rows (N, D) to the nearest of the reference rows other than themselves.

    `reference` are different indices into the rows, more than `n_neighbors`.
    """
    import torch

    lengths = check_selection(rows, budget=0, preselected=())
    chosen = torch.from_numpy(reference).to(rows.device)
    column_of = torch.full((len(rows),), -1, device=rows.device)
    column_of[chosen] = torch.arange(len(chosen), device=rows.device)
    points, point_lengths = rows[chosen], lengths[chosen]
    distances = np.empty((len(rows), n_neighbors), dtype=np.float32)
    for block in _blocks(rows, max(len(chosen), rows.shape[1])):
        squared = _squared(rows[block], lengths[block], points, point_lengths)
        itself = column_of[block]
        inside = torch.nonzero(itself >= 0)[:, 0]
        squared[inside, itself[inside]] = torch.inf
        nearest = squared.topk(n_neighbors, dim=1, largest=False, sorted=False).values
        distances[block] = nearest.sqrt().cpu().numpy()
    return distances


def nearest_points(rows: torch.Tensor, points: NDArray[np.float32]) -> Indices:
    """The index (N,) of the nearest of points (K, D) of each row (N, D)."""
    import torch

    targets = torch.from_numpy(points).to(rows.device)
    lengths = targets.square().sum(dim=1)
    found = np.empty(len(rows), dtype=np.intp)
    for block in _blocks(rows, max(len(points), rows.shape[1])):
        found[block] = (lengths - 2 * (rows[block].float() @ targets.T)).argmin(dim=1).cpu().numpy()
    return found


def take(rows: torch.Tensor, index: Indices) -> NDArray[np.float32]:
    """These rows as a float32 array."""
    import torch

    taken: NDArray[np.float32] = rows[torch.from_numpy(index).to(rows.device)].float().cpu().numpy()
    return taken


def _squared(
    rows: torch.Tensor, lengths: torch.Tensor, points: torch.Tensor, point_lengths: torch.Tensor
) -> torch.Tensor:
    """Squared distances (N, K) of rows (N, D) to points (K, D), whose squared lengths are given."""
    sums = lengths[:, None] + point_lengths
    squared = sums - 2 * _products(rows, points)
    return squared.masked_fill_(squared < SAME_POINT * sums, 0)


def _products(rows: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Inner products (N, K) in float32; float16 is multiplied as it is where the device can, and no copy made."""
    import torch

    is_half = rows.dtype in (torch.float16, torch.bfloat16)
    if rows.is_cuda and is_half and hasattr(torch.ops.aten.mm, "dtype"):  # since torch 2.8
        return torch.mm(rows, points.T, out_dtype=torch.float32)
    products = torch.empty(len(rows), len(points), device=rows.device)
    for block in _blocks(rows, rows.shape[1]):
        torch.mm(rows[block].float(), points.T.float(), out=products[block])
    return products


def _entries(rows: torch.Tensor) -> int:
    return DEVICE_ENTRIES if rows.is_cuda else HOST_ENTRIES


def _blocks(rows: torch.Tensor, width: int) -> list[slice]:
    """Slices that cover the rows so that a block times `width` is no larger than temporary matrices may be."""
    size = max(1, _entries(rows) // max(width, 1))
    return [slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]
