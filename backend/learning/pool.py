"""The pool: all images of a project, and what is computed from them once and used at every label."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.learning.coreset import typicality
from backend.learning.features import Features, FeatureSpace, pool_space, principal_axes
from backend.learning.spreading import MAX_NODES, NeighborGraph, neighbor_graph

Floats = NDArray[np.float64]

DEFAULT_DETAIL_WEIGHT = 0.15
"""Weight of the details for the first batch, and while labels are too few to choose one; see `Pool`."""


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
        self._axes: dict[float, Floats] = {}

    def space(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT) -> FeatureSpace:
        """The features in which details count with this weight."""
        if detail_weight not in self._spaces:
            scale = np.ones(self.embeddings.shape[1], dtype=np.float32)
            scale[len(scale) - self.n_details :] = detail_weight
            self._spaces[detail_weight] = pool_space(self.embeddings, scale)
        return self._spaces[detail_weight]

    def features(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT) -> Features:
        """Features (N, D) of all images."""
        return self.space(detail_weight).features(self.embeddings)

    def graph(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT) -> NeighborGraph:
        """The neighbor graph of the features with this weight."""
        if detail_weight not in self._graphs:
            self._graphs[detail_weight] = neighbor_graph(self.features(detail_weight))
        return self._graphs[detail_weight]

    def typicality(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT) -> Floats:
        """How typical each image is of all, (N,) in 0..1; see `coreset.typicality`. About a second for 5,000 images."""
        if detail_weight not in self._typicality:
            features = self.features(detail_weight)
            self._typicality[detail_weight] = typicality(features, exact_rows=MAX_NODES)
        return self._typicality[detail_weight]

    def axes(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT) -> Floats:
        """Principal axes (D, R) of the features of the graph's nodes, the one along which they vary most first.

        R is min(nodes - 1, D), less where features do not vary. About a second at D = 1,500, once.
        """
        if detail_weight not in self._axes:
            nodes = self.graph(detail_weight).features.astype(np.float64)
            nodes -= nodes.mean(axis=0)
            self._axes[detail_weight] = principal_axes(nodes)
        return self._axes[detail_weight]
