"""The pool: all images of a project, and what is computed from them once and used at every label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from backend.learning.coreset import row_blocks, typicality
from backend.learning.features import Features, FeatureSpace, pool_space, principal_axes
from backend.learning.spreading import MAX_NODES, NeighborGraph, entry_points, neighbor_graph, node_rows

Floats = NDArray[np.float64]

DEFAULT_DETAIL_WEIGHT = 0.15
"""Weight of the details for the first batch, and while labels are too few to choose one; see `Pool`."""

LEAST_AXES = 256
"""Principal axes along which the head sees features, at least."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Principal axes (D, R), the one along which features vary most first, and the coordinates of all images (N, R).

    mean: (D,), from where the coordinates are taken: (features - mean) @ axes.
    n_wanted: how many axes were asked for; R is less where features do not vary along so many.
    """

    mean: Floats
    axes: Floats
    coordinates: Features
    n_wanted: int


class Pool:
    """Embeddings (N, D) of all images, labeled or not, and the spaces and graphs made from them when first asked for.

    The last `n_details` columns of an embedding are its *details*: what earlier stages of a network saw, textures and
    tints where the last stage sees things. Whether they help depends on the question (they tell weathers apart, and
    distract from the kinds of clothes), so the weight they get is a choice that labels decide.
    """

    def __init__(self, embeddings: NDArray[np.floating[Any]], n_details: int = 0) -> None:
        if embeddings.ndim != 2 or not 0 <= n_details <= embeddings.shape[1]:
            raise ValueError(
                f"got embeddings of shape {embeddings.shape} of which {n_details} columns are details; "
                "expected (N, D) and 0 to D of them"
            )
        self.embeddings = embeddings
        self.n_details = n_details
        self._spaces: dict[float, FeatureSpace] = {}
        self._graphs: dict[float, NeighborGraph] = {}
        self._typicality: dict[float, Floats] = {}
        self._bases: dict[float, Basis] = {}
        self._entries: dict[float, dict[int, Any]] = {}

    def space(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT) -> FeatureSpace:
        """The features in which details count with this weight."""
        if detail_weight not in self._spaces:
            scale = np.ones(self.embeddings.shape[1], dtype=np.float32)
            scale[len(scale) - self.n_details :] = detail_weight
            self._spaces[detail_weight] = pool_space(self.embeddings, scale)
        return self._spaces[detail_weight]

    def graph(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT) -> NeighborGraph:
        """The neighbor graph of the features with this weight."""
        if detail_weight not in self._graphs:
            rows = node_rows(len(self.embeddings))
            self._graphs[detail_weight] = neighbor_graph(
                self.space(detail_weight).features(self.embeddings[rows]), rows
            )
        return self._graphs[detail_weight]

    def typicality(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT) -> Floats:
        """How typical each image is of all, (N,) in 0..1; see `coreset.typicality`. About a second for 5,000 images."""
        if detail_weight not in self._typicality:
            features = self.space(detail_weight).half_features(self.embeddings)
            self._typicality[detail_weight] = typicality(features, exact_rows=MAX_NODES)
        return self._typicality[detail_weight]

    def basis(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT, n_labels: int = 0) -> Basis:
        """Principal axes of the features of the graph's nodes, and where all images lie along them.

        `LEAST_AXES` of them, those along which features vary most, and twice as many whenever there are more labels
        than axes; fewer where features vary along fewer. Cost O(nodes²·D + N·D·R), a second for 5,000 images, once for
        each number of axes.
        """
        n_axes = LEAST_AXES
        while n_axes < n_labels:
            n_axes *= 2
        known = self._bases.get(detail_weight)
        if known is None or known.n_wanted < n_axes:
            nodes = self.graph(detail_weight).features
            mean = nodes.mean(axis=0, dtype=np.float64)
            axes = principal_axes(nodes - mean)[:, :n_axes]
            coordinates = np.empty((len(self.embeddings), axes.shape[1]), dtype=np.float32)
            for block in row_blocks(len(self.embeddings), width=self.embeddings.shape[1]):
                features = self.space(detail_weight).features(self.embeddings[block])
                coordinates[block] = (features - mean.astype(np.float32)) @ axes.astype(np.float32)
            known = self._bases[detail_weight] = Basis(mean, axes, coordinates, n_axes)
        return known

    def entry_points(self, detail_weight: float, rows: NDArray[np.intp]) -> Any:
        """Sparse (M, n): where the labels of n rows enter the graph of M nodes; see `spreading.entry_points`.

        Where a row enters never changes, so it is looked up once.
        """
        graph = self.graph(detail_weight)
        known = self._entries.setdefault(detail_weight, {})
        new = np.array([row for row in rows.tolist() if row not in known], dtype=np.intp)
        if len(new):
            found = entry_points(graph, new, self.space(detail_weight).features(self.embeddings[new])).tocsc()
            known.update({row: found[:, column] for column, row in enumerate(new.tolist())})
        return sparse.hstack([known[row] for row in rows.tolist()], format="csr")
