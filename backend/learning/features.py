"""Features: embeddings as learning and selection see them, directions from the middle of the project's own images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Features = NDArray[np.float32]

CENTRE_ROWS = 4096
"""Rows the centre is taken from, evenly spaced in a larger pool: its error is then a hundredth of the spread."""


@dataclass(frozen=True)
class FeatureSpace:
    """How embeddings become features, and so part of everything that is learned from features.

    `scale` (D,) multiplies the columns of an embedding, `centre` (D,) is the mean direction of the project's images.
    """

    scale: NDArray[np.float32]
    centre: NDArray[np.float32]

    def features(self, embeddings: ArrayLike) -> Features:
        """Features (N, D) of length 1, of embeddings (N, D): scaled, normalised, the centre subtracted, normalised."""
        return normalise(normalise(np.asarray(embeddings, dtype=np.float32) * self.scale) - self.centre)


def pool_space(embeddings: ArrayLike, scale: ArrayLike | None = None) -> FeatureSpace:
    """The space whose centre is the mean direction of all images' embeddings (N, D), labeled or not.

    Photos of one project resemble each other, and what they share tells nothing: with it taken out, angles between them
    tell more, to the head and to the selection alike (a step of SimpleShot, Wang et al. 2019,
    https://arxiv.org/abs/1911.04623, with the pool's mean in place of the training set's). `scale` (D,): ones if None.
    """
    rows = np.asarray(embeddings)
    scales = np.ones(rows.shape[1], np.float32) if scale is None else np.asarray(scale, dtype=np.float32)
    if len(rows) > CENTRE_ROWS:
        rows = rows[evenly_spaced(len(rows), CENTRE_ROWS)]
    if len(rows) < 2:  # a single image would be its own centre, and nothing of it left
        return FeatureSpace(scales, np.zeros(rows.shape[1], dtype=np.float32))
    directions = normalise(rows.astype(np.float32) * scales)
    return FeatureSpace(scales, directions.mean(axis=0, dtype=np.float64).astype(np.float32))


def plain_space(n_features: int) -> FeatureSpace:
    """The space in which features are embeddings (N, n_features) scaled to length 1 and nothing else."""
    return FeatureSpace(np.ones(n_features, np.float32), np.zeros(n_features, np.float32))


def normalise(embeddings: ArrayLike) -> Features:
    """Rows (N, D) scaled to Euclidean length 1, as float32; a row of zeros stays zero."""
    rows = np.array(embeddings, dtype=np.float32)
    # Dividing by the largest entry first keeps the squares of very small or large rows from under- or overflowing.
    largest = np.max(np.abs(rows), axis=1, keepdims=True, initial=0)
    np.divide(rows, largest, out=rows, where=largest > 0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    np.divide(rows, lengths, out=rows, where=lengths > 0)
    return rows


def evenly_spaced(n_rows: int, n_wanted: int) -> NDArray[np.intp]:
    """Up to `n_wanted` different indices below `n_rows`, evenly spaced and ascending: a sample without randomness."""
    return np.linspace(0, n_rows - 1, min(n_rows, n_wanted)).astype(np.intp)


def principal_axes(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal axes (D, R) of the span of rows (N, D) whose mean is 0, those of most variance first.

    R is at most min(N - 1, D). Cost: an eigendecomposition of the smaller of N × N and D × D.
    """
    n_rows, n_features = centred.shape
    small = centred @ centred.T if n_rows <= n_features else centred.T @ centred
    variances, vectors = np.linalg.eigh(small)
    # Rounding leaves directions of zero variance at about 1e-16 of the largest; they carry no information.
    kept = np.flatnonzero(variances > 1e-12 * max(variances[-1], np.finfo(np.float64).tiny))[::-1]
    axes: NDArray[np.float64] = vectors[:, kept]
    if n_rows <= n_features:
        axes = centred.T @ (axes / np.sqrt(variances[kept]))
    return axes
