"""Features: embeddings as learning and selection see them, directions from the middle of the project's own images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Features = NDArray[np.float32]

CENTRE_ROWS = 4096
"""Rows the centre is taken from, evenly spaced in a larger pool: its error is then a hundredth of the spread."""

CACHE_ENTRIES = 2**18
"""Entries of a block that several steps in a row work on: 1 MB of float32, what a core's own cache holds."""

_SAFE_SQUARE = np.float32(1e-20)  # squared lengths between it and its inverse lost nothing to under- or overflow
_HALF_SIGN_AND_REST = np.array(0x8FFFE000, np.uint32).view(np.int32)
_HALF_TO_FLOAT = np.float32(2.0**112)  # float16 counts exponents from -15, float32 from -127


@dataclass(frozen=True)
class FeatureSpace:
    """How embeddings become features, and so part of everything that is learned from features.

    `scale` (D,) multiplies the columns of an embedding, `centre` (D,) is the mean direction of the project's images.
    """

    scale: NDArray[np.float32]
    centre: NDArray[np.float32]

    def features(self, embeddings: ArrayLike) -> Features:
        """Features (N, D) of length 1, of embeddings (N, D): scaled, normalised, the centre subtracted, normalised."""
        return self._features(np.asarray(embeddings), None, np.dtype(np.float32))

    def half_features(self, embeddings: ArrayLike, rows: NDArray[np.intp] | None = None) -> NDArray[np.float16]:
        """`features` of these rows of the embeddings (all if None) as float16, which moves a feature by 0.0005 at most.

        For large pools: half the memory, and never more than a block of rows in float32.
        """
        return self._features(np.asarray(embeddings), rows, np.dtype(np.float16))

    def _features(self, embeddings: NDArray[Any], rows: NDArray[np.intp] | None, dtype: np.dtype[Any]) -> NDArray[Any]:
        features = np.empty((len(embeddings) if rows is None else len(rows), len(self.scale)), dtype)
        for block in cache_blocks(*features.shape):
            part = to_float32(embeddings[block if rows is None else rows[block]])
            part *= self.scale
            _normalise_in_place(part)
            part -= self.centre
            _normalise_in_place(part)
            features[block] = part
        return features


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
    directions = normalise(to_float32(rows) * scales)
    return FeatureSpace(scales, directions.mean(axis=0, dtype=np.float64).astype(np.float32))


def plain_space(n_features: int) -> FeatureSpace:
    """The space in which features are embeddings (N, n_features) scaled to length 1 and nothing else."""
    return FeatureSpace(np.ones(n_features, np.float32), np.zeros(n_features, np.float32))


def normalise(embeddings: ArrayLike) -> Features:
    """Rows (N, D) scaled to Euclidean length 1, as float32; a row of zeros stays zero."""
    rows = to_float32(embeddings)
    for block in cache_blocks(*rows.shape):
        _normalise_in_place(rows[block])
    return rows


def to_float32(values: ArrayLike) -> Features:
    """A float32 copy, contiguous; of float16 three times as fast as `astype`, and exact, infinities and NaN too.

    NumPy widens float16 number by number. Here the bits are moved to where float32 has them, and a multiplication sets
    the exponent right, also of subnormal numbers.
    """
    array = np.asarray(values)
    if array.dtype != np.float16:
        return np.array(array, dtype=np.float32)
    wide = np.empty(array.shape, dtype=np.float32)
    halves, floats = np.ascontiguousarray(array).reshape(-1), wide.reshape(-1)
    for start in range(0, len(floats), CACHE_ENTRIES):
        block = slice(start, start + CACHE_ENTRIES)
        part = floats[block]
        bits = part.view(np.int32)
        np.copyto(bits, halves[block].view(np.int16))
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, _HALF_SIGN_AND_REST, out=bits)
        np.multiply(part, _HALF_TO_FLOAT, out=part)
        # Infinity and NaN have come out as 65,536 and more: whatever may hold one goes the slow way.
        if part @ part >= 2.0**32:
            part[:] = halves[block]
    return wide


def cache_blocks(n_rows: int, n_features: int) -> list[slice]:
    """Slices that cover the rows, of `CACHE_ENTRIES` entries each."""
    size = max(1, CACHE_ENTRIES // max(n_features, 1))
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def _normalise_in_place(rows: Features) -> None:
    squared = np.einsum("nd,nd->n", rows, rows)
    if not ((squared > _SAFE_SQUARE) & (squared < 1 / _SAFE_SQUARE)).all():
        # Dividing by the largest entry first keeps the squares of very small or large rows from under- or overflowing.
        largest = np.max(np.abs(rows), axis=1, keepdims=True, initial=0)
        np.divide(rows, largest, out=rows, where=largest > 0)
        squared = np.einsum("nd,nd->n", rows, rows)
    lengths = np.sqrt(squared)[:, None]
    np.divide(rows, lengths, out=rows, where=lengths > 0)


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
