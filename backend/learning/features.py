"""Features: embeddings as learning and selection see them, directions from the middle of the project's own images."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Features = NDArray[np.float32]

CENTRE_ROWS = 4096
"""Rows the centre is taken from, evenly spaced in a larger pool: its error is then a hundredth of the spread."""


def normalise(embeddings: ArrayLike) -> Features:
    """Rows (N, D) scaled to Euclidean length 1, as float32; a row of zeros stays zero."""
    rows = np.array(embeddings, dtype=np.float32)
    # Dividing by the largest entry first keeps the squares of very small or large rows from under- or overflowing.
    largest = np.max(np.abs(rows), axis=1, keepdims=True, initial=0)
    np.divide(rows, largest, out=rows, where=largest > 0)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    np.divide(rows, lengths, out=rows, where=lengths > 0)
    return rows


def pool_centre(embeddings: ArrayLike) -> Features:
    """The mean direction (D,) of all images' embeddings (N, D), labeled or not; zeros without any.

    Photos of one project resemble each other, and what they share tells nothing: with it taken out, angles between them
    tell more, to the head and to the selection alike (a step of SimpleShot, Wang et al. 2019,
    https://arxiv.org/abs/1911.04623, with the pool's mean in place of the training set's).
    """
    rows = np.asarray(embeddings)
    if len(rows) > CENTRE_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, CENTRE_ROWS).astype(np.intp)]
    if len(rows) < 2:  # a single image would be its own centre, and nothing of it left
        return np.zeros(rows.shape[1], dtype=np.float32)
    centre: Features = normalise(rows).mean(axis=0, dtype=np.float64).astype(np.float32)
    return centre


def as_features(embeddings: ArrayLike, centre: ArrayLike) -> Features:
    """Features (N, D) of length 1, of embeddings (N, D): normalised, the centre (D,) subtracted, normalised again."""
    return normalise(normalise(embeddings) - np.asarray(centre, dtype=np.float32))
