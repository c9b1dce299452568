"""Where each image lies on a flat map, so that images that look alike to the backbone lie together.

The map is a t-SNE (van der Maaten and Hinton 2008, https://jmlr.org/papers/v9/vandermaaten08a.html) with the settings
of Kobak and Berens 2019 (*The art of using t-SNE for single-cell transcriptomics*,
https://doi.org/10.1038/s41467-019-13056-x): it begins at the first two principal components, which keeps the large
picture and makes it reproducible, and learns at the rate n / exaggeration. It is computed by openTSNE, from
10,000 images on with the FFT-accelerated gradient of Linderman et al. 2019
(https://doi.org/10.1038/s41592-018-0308-4), on the first `MAX_AXES` principal components of the features.

Neighbors on the map were neighbors; distances between groups, their sizes and the axes mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.learning.features import FeatureSpace, evenly_spaced, principal_axes, to_float32

Coordinates = NDArray[np.float32]
"""(N, R): images along R principal axes."""

Positions = NDArray[np.float32]
"""(N, 2): x and y on the map, each in -1..1."""

MAX_AXES = 50
"""Principal axes that the neighbors are looked for along; more change a t-SNE of photos little and cost time."""

AXIS_ROWS = 4096
"""Images that the axes are taken from, evenly spaced in a larger pool."""

MAX_OPTIMISED = 20_000
"""Images laid out by t-SNE itself; of more a random sample is, and the others are placed beside their neighbors in it.
Random and not k-center, which would take the outliers first: a map has to show where many images are and where few."""

PERPLEXITY = 30.0
"""About how many neighbors an image is drawn to; less where there are fewer than three times as many others."""

EXAGGERATED_STEPS = 250
STEPS = 500
EXAGGERATION = 12.0
STEPS_PER_REPORT = 25

FEW = 8
"""So few images lie where their first two principal components say: neighborhoods of three need no t-SNE."""

N_NEIGHBORS = 5
N_AGREEING = 3
"""An image that is not laid out itself is placed among those `N_AGREEING` of its `N_NEIGHBORS` neighbors that lie
together: a mean of all would put it between two groups, where nothing like it is. Half of the digits placed by the
other half: trustworthiness 0.989, by the mean of ten neighbors 0.973, all laid out 0.993."""

BLOCK_ENTRIES = 2**23
"""Entries of the largest matrix of distances: 32 MB of float32."""

_SAME_POINT = np.float32(1e-12)  # squared distance, of features of length 1, that counts as none


@dataclass(frozen=True, eq=False)
class Axes:
    """Principal axes of a pool's features: mean (D,), and directions (D, R), those of most variance first."""

    space: FeatureSpace
    mean: NDArray[np.float32]
    directions: NDArray[np.float32]

    def coordinates(self, embeddings: ArrayLike) -> Coordinates:
        """(N, R) of embeddings (N, D); an embedding that is not finite lies in the middle of all."""
        rows = to_float32(embeddings)
        is_broken = ~np.isfinite(rows).all(axis=1)
        rows[is_broken] = 0
        along = (self.space.features(rows) - self.mean) @ self.directions
        along[is_broken] = 0
        return along.astype(np.float32, copy=False)


@dataclass(frozen=True, eq=False)
class Layout:
    """positions (N, 2); is_reference (N,): laid out by t-SNE itself, and what others are placed by."""

    positions: Positions
    is_reference: NDArray[np.bool_]


def fit_axes(embeddings: ArrayLike, space: FeatureSpace) -> Axes:
    """The first `MAX_AXES` principal axes of the embeddings (N, D) in a feature space; fewer where they span fewer.

    Embeddings that are not finite are left out. Cost: an eigendecomposition of D × D, or N × N if that is smaller.
    """
    rows = np.asarray(embeddings)
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        nothing = np.zeros(len(space.scale), np.float32)
        return Axes(space, nothing, nothing[:, None][:, :0])
    features = space.features(rows[evenly_spaced(len(rows), AXIS_ROWS)])
    mean = features.mean(axis=0, dtype=np.float64)
    centred = features - mean
    directions = principal_axes(centred)[:, :MAX_AXES]
    # What rounding leaves of features that are all the same is no axis.
    spread = np.sqrt(np.mean((centred @ directions) ** 2, axis=0)) if len(centred) > 1 else np.zeros(0)
    kept = directions[:, : len(spread)][:, spread > 1e-5]
    # The sign of an eigenvector is a matter of rounding: the map must not be mirrored on another machine.
    signs = np.sign(kept[np.abs(kept).argmax(axis=0), np.arange(kept.shape[1])]) if kept.size else 1.0
    return Axes(space, mean.astype(np.float32), (kept * signs).astype(np.float32))


def lay_out(
    coordinates: Coordinates,
    *,
    random_state: int,
    report: Callable[[float], None] = lambda share: None,
    max_optimised: int = MAX_OPTIMISED,
) -> Layout:
    """Lays images out by their coordinates (N, R) along principal axes; the same arrays and seed give the same map.

    `report` is told the share done, 0..1, every few seconds; what it raises ends the work. One thread: 30 s of it for
    10,000 images, 50 s for 20,000, and 40 s for each further 100,000.
    """
    n_images = len(coordinates)
    is_reference = np.ones(n_images, dtype=bool)
    if n_images > max_optimised:
        chosen = np.random.default_rng(random_state).choice(n_images, max_optimised, replace=False)
        is_reference[:] = False
        is_reference[chosen] = True
    references = coordinates[is_reference]
    positions = np.empty((n_images, 2), dtype=np.float32)
    positions[is_reference] = _scaled(_laid_out(references, random_state, report))
    positions[~is_reference] = place(coordinates[~is_reference], references, positions[is_reference])
    return Layout(positions, is_reference)


def place(coordinates: Coordinates, references: Coordinates, positions: Positions) -> Positions:
    """Positions (M, 2) of further images (M, R) on a map of references (N, R) at positions (N, 2), which stay.

    Each lies among its nearest references (`N_NEIGHBORS`), the nearer the closer. One that looks like none of them is
    placed all the same, and its place tells nothing. Cost M·N·R, in `BLOCK_ENTRIES` numbers of memory.
    """
    if not len(references):
        return np.zeros((len(coordinates), 2), dtype=np.float32)
    neighbors, squared = nearest(coordinates, references, min(N_NEIGHBORS, len(references)))
    theirs = positions[neighbors]  # (M, k, 2)
    middle = np.median(theirs, axis=1, keepdims=True)
    together = np.argsort(((theirs - middle) ** 2).sum(axis=2), axis=1, kind="stable")[:, :N_AGREEING]
    weights = 1 / np.maximum(np.take_along_axis(squared, together, axis=1), _SAME_POINT)
    weights /= weights.sum(axis=1, keepdims=True)
    placed = np.einsum("nk,nkd->nd", weights, np.take_along_axis(theirs, together[:, :, None], axis=1))
    return np.asarray(np.clip(placed, -1, 1), dtype=np.float32)


def nearest(
    coordinates: Coordinates, references: Coordinates, n_neighbors: int, *, themselves: bool = False
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Rows (M, n_neighbors) of the nearest references to images (M, R), the nearest first, and squared distances.

    `themselves`: the images are the references, and none is its own neighbor.
    """
    n_images = len(coordinates)
    neighbors = np.empty((n_images, n_neighbors), dtype=np.intp)
    squared = np.empty((n_images, n_neighbors), dtype=np.float32)
    lengths = np.einsum("nd,nd->n", references, references)
    size = max(1, BLOCK_ENTRIES // max(len(references), 1))
    for start in range(0, n_images, size):
        block = slice(start, start + size)
        part = coordinates[block]
        distances = part @ references.T
        distances *= -2
        distances += lengths
        distances += np.einsum("nd,nd->n", part, part)[:, None]
        if themselves:
            own = np.arange(len(part))
            distances[own, start + own] = np.inf
        if n_neighbors < len(references):
            found = np.argpartition(distances, n_neighbors - 1, axis=1)[:, :n_neighbors]
        else:
            found = np.broadcast_to(np.arange(len(references)), distances.shape)
        values = np.take_along_axis(distances, found, axis=1)
        order = np.lexsort((found, values), axis=1)  # of equal ones the first, so that the order is always the same
        neighbors[block] = np.take_along_axis(found, order, axis=1)
        squared[block] = np.maximum(np.take_along_axis(values, order, axis=1), 0)
    return neighbors, squared


def _laid_out(coordinates: Coordinates, random_state: int, report: Callable[[float], None]) -> NDArray[np.float64]:
    """Raw positions (N, 2) of images whose coordinates are finite."""
    n_images, n_axes = coordinates.shape
    if n_images < 2:
        return np.zeros((n_images, 2))
    if n_axes == 0:
        return _sunflower(n_images)
    start = _two_columns(coordinates, random_state)
    if n_images <= FEW:
        return start
    found = _tsne(coordinates, start, random_state, report)
    return found if np.isfinite(found).all() else start


def _tsne(
    coordinates: Coordinates, start: NDArray[np.float64], random_state: int, report: Callable[[float], None]
) -> NDArray[np.float64]:
    # Here, for only the process that makes maps is to load them.
    from threadpoolctl import threadpool_limits

    perplexity = min(PERPLEXITY, (len(coordinates) - 1) / 3)
    try:
        from openTSNE import TSNEEmbedding
        from openTSNE.affinity import PerplexityBasedNN
        from openTSNE.initialization import rescale
        from openTSNE.nearest_neighbors import PrecomputedNeighbors
    except ImportError:  # there is no wheel of it for Linux on ARM
        return _tsne_of_scikit_learn(coordinates, start, perplexity, random_state)
    n_steps = EXAGGERATED_STEPS + STEPS
    n_before = 0

    def told(step: int, _error: float, _positions: Any) -> None:
        report((n_before + step) / n_steps)

    with threadpool_limits(1):
        rows, squared = nearest(coordinates, coordinates, int(3 * perplexity), themselves=True)
        index = PrecomputedNeighbors(rows, np.sqrt(squared).astype(np.float64))
        affinities = PerplexityBasedNN(knn_index=index, perplexity=perplexity, n_jobs=1, random_state=random_state)
        embedding = TSNEEmbedding(rescale(start), affinities, n_jobs=1, random_state=random_state)
        report(0.0)
        options = {"callbacks": told, "callbacks_every_iters": STEPS_PER_REPORT, "inplace": True}
        embedding.optimize(
            EXAGGERATED_STEPS, exaggeration=EXAGGERATION, momentum=0.5, propagate_exception=True, **options
        )
        n_before = EXAGGERATED_STEPS
        embedding.optimize(STEPS, momentum=0.8, propagate_exception=True, **options)
    return np.asarray(embedding, dtype=np.float64)


def _tsne_of_scikit_learn(
    coordinates: Coordinates, start: NDArray[np.float64], perplexity: float, random_state: int
) -> NDArray[np.float64]:
    """The same optimisation by the Barnes-Hut tree of scikit-learn: slower, and it does not say how far it is."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    tsne = TSNE(
        perplexity=perplexity,
        init=(start * (1e-4 / start[:, 0].std())).astype(np.float32),
        early_exaggeration=EXAGGERATION,
        learning_rate="auto",
        max_iter=EXAGGERATED_STEPS + STEPS,
        random_state=random_state,
        n_jobs=1,
    )
    with threadpool_limits(1):
        return np.asarray(tsne.fit_transform(coordinates), dtype=np.float64)


def _two_columns(coordinates: Coordinates, random_state: int) -> NDArray[np.float64]:
    """The first two principal components (N, 2); a little noise stands for a second that there is none of."""
    two = np.zeros((len(coordinates), 2))
    n_axes = min(2, coordinates.shape[1])
    two[:, :n_axes] = coordinates[:, :n_axes]
    if n_axes < 2:
        noise = np.random.default_rng(random_state).standard_normal(len(two))
        two[:, 1] = 0.01 * two[:, 0].std() * noise
    return two


def _sunflower(n_images: int) -> NDArray[np.float64]:
    """Images that are all the same, evenly over a disc, so that each can be pointed at (Vogel's spiral)."""
    number = np.arange(n_images)
    radius, angle = np.sqrt(number + 0.5), number * np.pi * (3 - np.sqrt(5))
    return np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])


def _scaled(positions: NDArray[np.float64]) -> Positions:
    """In the middle of -1..1, the longer side all of it; x and y by the same factor."""
    if not len(positions):
        return positions.astype(np.float32)
    low, high = positions.min(axis=0), positions.max(axis=0)
    half = float((high - low).max()) / 2
    middle = (low + high) / 2
    return np.asarray(np.clip((positions - middle) / (half or 1.0), -1, 1), dtype=np.float32)
