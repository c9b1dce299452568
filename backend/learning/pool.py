"""The pool: all images of a project, and what is computed from them once and used at every label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from threading import RLock
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray

from backend.learning.coreset import Typicality, measure_typicality, row_blocks
from backend.learning.features import Features, FeatureSpace, pool_space, principal_axes
from backend.learning.spreading import MAX_NODES, NeighborGraph, entry_points, neighbor_graph, node_rows

Floats = NDArray[np.float64]

DEFAULT_DETAIL_WEIGHT = 0.15
"""Weight of the details for the first batch, and while labels are too few to choose one; see `Pool`."""

LEAST_AXES = 256
"""Principal axes along which the head sees features, at least."""

BASES_BYTES = 512 * 2**20
"""Memory for coordinates along axes, of all weights of the details together: three of 170,000 images at `LEAST_AXES`.
Those of the weight in use are kept in any case."""

MOST_CHANGED = 0.5
"""A pool of which a larger share is new or gone since its spaces and graphs were made is looked at afresh."""

Made = TypeVar("Made")


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

    def first(self, n_axes: int) -> Basis:
        """The same with so many axes at most."""
        if self.n_wanted <= n_axes:
            return self
        return Basis(self.mean, self.axes[:, :n_axes], self.coordinates[:, :n_axes], n_axes)


Inherited = dict[float, tuple[Made, NDArray[np.intp]]]
"""By weight, what an earlier state of a pool had, and which of its rows each row (N,) is now; -1 for new ones."""


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
        # One lock for each thing that is made, so that what a thread prepares is waited for and not made twice. They
        # are taken in the order typicality or basis, graph, space.
        self._locks: dict[tuple[str, float], RLock] = {}
        self._spaces: dict[float, FeatureSpace] = {}
        self._graphs: dict[float, NeighborGraph] = {}
        self._typicality: dict[float, Typicality] = {}
        self._bases: dict[float, Basis] = {}
        self._entries: dict[float, dict[int, Any]] = {}
        self._inherited_typicality: Inherited[Typicality] = {}
        self._inherited_bases: Inherited[Basis] = {}
        self._n_known = len(embeddings)  # of the images that spaces, graphs and axes are made from
        self._n_changed = 0  # images that came or went since

    def changed(self, embeddings: NDArray[np.floating[Any]], rows: NDArray[np.intp]) -> Pool:
        """The pool (N, D) of now, of which this one is an earlier state; `rows` (N,) as in this one, -1 for new images.

        Spaces, graphs and axes stay those of the images they were made from, and only what belongs to new images is
        computed. After many changes (`MOST_CHANGED`) everything is made anew.
        """
        successor = Pool(embeddings, self.n_details)
        n_kept = int((rows >= 0).sum())
        n_changed = self._n_changed + (len(rows) - n_kept) + (len(self.embeddings) - n_kept)
        if n_changed > MOST_CHANGED * self._n_known:
            return successor
        successor._n_known, successor._n_changed = self._n_known, n_changed
        row_of = np.full(len(self.embeddings), -1, dtype=np.intp)
        row_of[rows[rows >= 0]] = np.flatnonzero(rows >= 0)
        # A thread may be preparing this pool: what is not made by now is made by the new one for itself.
        successor._spaces = dict(self._spaces)
        successor._graphs = {weight: graph.moved(row_of) for weight, graph in list(self._graphs.items())}
        for weight, entries in list(self._entries.items()):
            moved = {int(row_of[row]): entry for row, entry in list(entries.items())}
            moved.pop(-1, None)
            successor._entries[weight] = moved
        successor._inherited_typicality = _handed_on(self._typicality, self._inherited_typicality, rows)
        successor._inherited_bases = _handed_on(self._bases, self._inherited_bases, rows)
        return successor

    def space(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT) -> FeatureSpace:
        """The features in which details count with this weight."""

        def make() -> FeatureSpace:
            scale = np.ones(self.embeddings.shape[1], dtype=np.float32)
            scale[len(scale) - self.n_details :] = detail_weight
            return pool_space(self.embeddings, scale)

        return self._once("space", self._spaces, detail_weight, make)

    def graph(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT) -> NeighborGraph:
        """The neighbor graph of the features with this weight."""

        def make() -> NeighborGraph:
            rows = node_rows(len(self.embeddings))
            return neighbor_graph(self.space(detail_weight).features(self.embeddings[rows]), rows)

        return self._once("graph", self._graphs, detail_weight, make)

    def typicality(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT) -> Floats:
        """How typical each image is of all, (N,) in 0..1; see `coreset.typicality`. About a second for 5,000 images."""

        def make() -> Typicality:
            inherited, space = self._inherited_typicality.pop(detail_weight, None), self.space(detail_weight)
            if inherited is None:
                return measure_typicality(space.half_features(self.embeddings), exact_rows=MAX_NODES)
            before, rows = inherited
            new = np.flatnonzero(rows < 0)
            values = before.values[rows]
            values[new] = before.of_others(space.half_features(self.embeddings, new))
            return replace(before, values=values)

        return self._once("typicality", self._typicality, detail_weight, make).values

    def basis(self, detail_weight: float = DEFAULT_DETAIL_WEIGHT, n_labels: int = 0) -> Basis:
        """Principal axes of the features of the graph's nodes, and where all images lie along them.

        `LEAST_AXES` of them, those along which features vary most, and twice as many whenever there are more labels
        than axes; fewer where features vary along fewer. Cost O(nodes²·D + N·D·R), a second for 5,000 images, once for
        each number of axes.
        """
        n_axes = LEAST_AXES
        while n_axes < n_labels:
            n_axes *= 2
        with self._lock("basis", detail_weight):
            known = self._bases.get(detail_weight)
            if known is None:
                known = self._inherited_basis(detail_weight)
            if known is None or known.n_wanted < n_axes:
                known = self._basis(detail_weight, n_axes)
            if known is not self._bases.get(detail_weight):
                self._bases[detail_weight] = known
                self._make_room(detail_weight)
        return known.first(n_axes)

    def _basis(self, detail_weight: float, n_axes: int) -> Basis:
        nodes = self.graph(detail_weight).features
        mean = nodes.mean(axis=0, dtype=np.float64)
        axes = principal_axes(nodes - mean)[:, :n_axes]
        return Basis(mean, axes, self._coordinates(detail_weight, mean, axes, np.arange(len(self.embeddings))), n_axes)

    def _inherited_basis(self, detail_weight: float) -> Basis | None:
        inherited = self._inherited_bases.pop(detail_weight, None)
        if inherited is None:
            return None
        before, rows = inherited
        new = np.flatnonzero(rows < 0)
        coordinates = before.coordinates[rows]
        coordinates[new] = self._coordinates(detail_weight, before.mean, before.axes, new)
        return replace(before, coordinates=coordinates)

    def _coordinates(self, detail_weight: float, mean: Floats, axes: Floats, rows: NDArray[np.intp]) -> Features:
        """Coordinates (M, R) of some rows along axes."""
        coordinates = np.empty((len(rows), axes.shape[1]), dtype=np.float32)
        for block in row_blocks(len(rows), width=self.embeddings.shape[1]):
            features = self.space(detail_weight).features(self.embeddings[rows[block]])
            coordinates[block] = (features - mean.astype(np.float32)) @ axes.astype(np.float32)
        return coordinates

    def prepare(self, detail_weights: Sequence[float], *, n_labels: int = 0, with_typicality: bool = True) -> None:
        """Makes what heads and queues need, under the first of the weights and as many others as there is room for.

        For a thread beside the one that fits heads: in a large pool it takes seconds, which nobody should have to wait.
        `n_labels` as for `basis`: how many there will be.
        """
        for weight in detail_weights:
            n_bytes = self.basis(detail_weights[0], n_labels).coordinates.nbytes
            if not self.is_ready(weight) and n_bytes + self._n_bytes() > BASES_BYTES:
                continue
            if with_typicality:
                self.typicality(weight)
            self.basis(weight, n_labels)
        self._inherited_bases.clear()  # those there was no room for

    def is_ready(self, detail_weight: float) -> bool:
        """Whether the axes of this weight are there, `prepare`'s last act; its first head need not wait for them."""
        return detail_weight in self._bases or detail_weight in self._inherited_bases

    def _n_bytes(self) -> int:
        return sum(basis.coordinates.nbytes for basis in list(self._bases.values()))

    def _make_room(self, needed: float) -> None:
        """Lets axes of other weights go, the oldest first."""
        for weight in list(self._bases):
            if weight != needed and self._n_bytes() > BASES_BYTES:
                self._bases.pop(weight, None)

    def _once(self, kind: str, made: dict[float, Made], weight: float, make: Callable[[], Made]) -> Made:
        known = made.get(weight)
        if known is None:
            with self._lock(kind, weight):
                known = made.get(weight)
                if known is None:
                    known = made[weight] = make()
        return known

    def _lock(self, kind: str, weight: float) -> RLock:
        return self._locks.setdefault((kind, weight), RLock())

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


def _handed_on(made: dict[float, Made], inherited: Inherited[Made], rows: NDArray[np.intp]) -> Inherited[Made]:
    """What a pool made and inherited, for the next one; `rows` (N,) are the next one's in it."""
    handed_on = {
        weight: (thing, np.where(rows < 0, -1, before[rows])) for weight, (thing, before) in list(inherited.items())
    }
    return handed_on | {weight: (thing, rows) for weight, thing in list(made.items())}
