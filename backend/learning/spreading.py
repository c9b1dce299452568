"""Labels spread to unlabeled images along a graph of nearest neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from backend.learning.features import Features, evenly_spaced, to_float32

Floats = NDArray[np.float64]

N_NEIGHBORS = 12
"""Neighbours each image is linked to."""

KERNEL_WIDTH = 0.1
"""A link weighs exp((cosine - 1) / width)."""

ALPHA = 0.8
"""Share of an image's label that comes from its neighbours at every step; the rest is where it started."""

N_STEPS = 20
"""Steps of spreading; 0.8^20 is one percent, so what further steps would change is lost in the noise."""

MAX_NODES = 5_000
"""Nodes of the largest graph, a sample of a larger pool: built in about a second, spread over in 0.05 s.

More would know more: with 120 of 100,000 made-up rows in ten overlapping classes labeled, labels spread over 5,000
nodes are right for 81 % of them (over 2,500: 78 %), over 20,000 for 87 %. But that graph takes twenty times as long to
build, and five times as long to spread over, at every label."""

_BLOCK_ROWS = 1024


@dataclass(frozen=True, eq=False)
class NeighborGraph:
    """The graph of a pool's images.

    rows: (M,) which rows of the pool are its nodes, ascending; all of them in pools of up to `MAX_NODES`. -1 for a node
        whose image has left the pool since (`moved`).
    features: (M, D) theirs.
    links: (M, M) sparse, symmetric, normalised so that its largest eigenvalue is 1.
    """

    rows: NDArray[np.intp]
    features: Features
    links: Any

    def moved(self, row_of: NDArray[np.intp]) -> NeighborGraph:
        """The same graph for a pool in which row i is row `row_of[i]`, -1 if it is not there any more."""
        return NeighborGraph(np.where(self.rows < 0, -1, row_of[self.rows]), self.features, self.links)


def node_rows(n_rows: int) -> NDArray[np.intp]:
    """Which rows of a pool are the nodes of its graph, ascending: all, or `MAX_NODES` evenly spaced ones."""
    return evenly_spaced(n_rows, MAX_NODES)


def neighbor_graph(features: Features, rows: NDArray[np.intp] | None = None) -> NeighborGraph:
    """Links every node to its `N_NEIGHBORS` most similar ones; features (N, D) have length 1. Cost O(M²·D), once.

    With `rows` (M,), as `node_rows` gives them, the features (M, D) are those of these rows of the pool only: nothing
    has to be computed for the others.
    """
    if rows is None:
        rows = node_rows(len(features))
        features = features[rows]
    elif len(rows) != len(features):
        raise ValueError(f"got features of {len(features)} rows and {len(rows)} row numbers; expected one of each")
    nodes = to_float32(features)
    weights, columns = _nearest(nodes, nodes, itself=np.arange(len(nodes)))
    indices = np.repeat(np.arange(len(nodes)), columns.shape[1]), columns.ravel()
    directed = sparse.csr_matrix((weights.ravel(), indices), shape=(len(nodes), len(nodes)))
    links = directed.maximum(directed.T).tocsr()
    degrees = np.asarray(links.sum(axis=1)).ravel()
    inverse_root = sparse.diags(np.divide(1, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0))
    return NeighborGraph(rows, nodes, (inverse_root @ links @ inverse_root).tocsr())


def spread_labels(graph: NeighborGraph, starts: Floats) -> Floats:
    """Soft labels (M, F, C) of all nodes for F sets of labels; rows sum to 1, or are 0 where no label arrives.

    `starts` (M, F, C) holds the labels where they are known (see `entry_points`) and 0 elsewhere. Label spreading (Zhou
    et al. 2003, *Learning with local and global consistency*), every class starting with the same amount however often
    it was labeled, and brought to the same amount at the end: class mass normalisation, Zhu et al. 2003, with even
    shares. The shares of a few labels, chosen for their variety, say little of those of the images: with them instead,
    held-out accuracy is up to 5 points lower (30 random labels of clothing photos), mostly also on uneven classes.
    """
    n_nodes, n_sets, n_classes = starts.shape
    mass = starts.sum(axis=0)  # (F, C)
    fixed = np.divide(starts, mass, out=np.zeros_like(starts), where=mass > 0).reshape(n_nodes, -1)
    spread = fixed
    for _ in range(N_STEPS):
        spread = ALPHA * (graph.links @ spread) + (1 - ALPHA) * fixed
    arrived = spread.sum(axis=0)
    spread = spread / np.where(arrived > 0, arrived, 1)
    soft = spread.reshape(n_nodes, n_sets, n_classes)
    totals = soft.sum(axis=2, keepdims=True)
    normalised: Floats = np.divide(soft, totals, out=np.zeros_like(soft), where=totals > 0)
    return normalised


def spread_label_sets(graph: NeighborGraph, known: Floats, having: Floats) -> Floats:
    """How much each node (M, F, C) speaks for having a label rather than not, 0..1, for F sets of images and C labels.

    `known` (M, F) holds the labeled images, `having` (M, F, C) those of them that have the label. `spread_labels` for
    each label by itself, with having it and not having it as the classes; as spreading is linear, what has not is what
    is left of all. Where nothing arrives, and for a label that all images have or none has, 0.5.
    """
    n_nodes, n_sets, n_labels = having.shape
    fixed = np.concatenate([known[:, :, None], having], axis=2).reshape(n_nodes, -1)
    spread = fixed
    for _ in range(N_STEPS):
        spread = ALPHA * (graph.links @ spread) + (1 - ALPHA) * fixed
    arrived: Floats = spread.reshape(n_nodes, n_sets, n_labels + 1)
    has = arrived[:, :, 1:]
    has_not = np.maximum(arrived[:, :, :1] - has, 0)
    masses = has.sum(axis=0), has_not.sum(axis=0)  # (F, C)
    smallest = 1e-9 * np.maximum(masses[0] + masses[1], 1e-9)  # less is what rounding leaves of nothing
    has, has_not = (part / np.maximum(mass, smallest) for part, mass in zip((has, has_not), masses, strict=True))
    totals = has + has_not
    is_known = (totals > 0) & (masses[0] > smallest) & (masses[1] > smallest)
    shares: Floats = np.divide(has, totals, out=np.full_like(has, 0.5), where=is_known)
    return shares


def entry_points(graph: NeighborGraph, rows: NDArray[np.intp], features: Features) -> Any:
    """Sparse (M, n): where the labels of n pool rows enter the graph: at their own node, else at the nearest ones.

    `features` (n, D) are those of the rows. Every column sums to 1.
    """
    order = np.argsort(graph.rows, kind="stable")
    position = order[np.minimum(np.searchsorted(graph.rows[order], rows), len(order) - 1)]
    inside = graph.rows[position] == rows
    outside = np.flatnonzero(~inside)
    weights, nodes = _nearest(features[outside], graph.features, itself=None)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny)
    entries = np.concatenate([np.ones(int(inside.sum())), weights.ravel()])
    columns = np.concatenate([np.flatnonzero(inside), np.repeat(outside, nodes.shape[1])])
    return sparse.csr_matrix(
        (entries, (np.concatenate([position[inside], nodes.ravel()]), columns)), shape=(len(graph.rows), len(rows))
    )


def _nearest(rows: Features, nodes: Features, itself: NDArray[np.intp] | None) -> tuple[Floats, NDArray[np.intp]]:
    """Weights and indices, both (N, k), of each row's nearest nodes; `itself` (N,) is the node that a row is."""
    n_neighbors = min(N_NEIGHBORS, len(nodes) - (itself is not None))
    weights = np.empty((len(rows), n_neighbors))
    columns = np.empty((len(rows), n_neighbors), dtype=np.intp)
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        cosines = rows[block] @ nodes.T
        if itself is not None:
            cosines[np.arange(len(cosines)), itself[block]] = -np.inf
        nearest = np.argpartition(-cosines, max(n_neighbors - 1, 0), axis=1)[:, :n_neighbors]
        columns[block] = nearest
        weights[block] = np.exp((np.take_along_axis(cosines, nearest, axis=1).astype(np.float64) - 1) / KERNEL_WIDTH)
    return weights, columns
