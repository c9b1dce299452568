"""A dataset as the selections see it: names, embeddings, metadata, and tags."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.errors import SelectionError
from backend.learning.coreset import as_rows, check_selection
from backend.lightly.tags import Tags

logger = logging.getLogger(__name__)


class Dataset:
    """Images by name, each with an embedding, and what is known of them.

    names: (N,) different names, such as paths relative to a folder; they say in which order everything else is.
    embeddings: (N, D), finite; float16 and float32 are kept as they are. Selections scale them to length 1.
    tags: see `Tags`.
    metadata: for each key a value (N,) of every image; None where an image has none.
    """

    def __init__(
        self,
        names: Sequence[str],
        embeddings: ArrayLike,
        *,
        tags_dir: Path | None = None,
        metadata: Mapping[str, Sequence[object]] | None = None,
    ) -> None:
        """Checks that everything fits together; raises SelectionError otherwise.

        `tags_dir` is the folder the tags are kept in; without one they are forgotten with the dataset.
        """
        self.names: tuple[str, ...] = tuple(names)
        self.embeddings: NDArray[Any] = as_rows(embeddings)
        self._rows = {name: row for row, name in enumerate(self.names)}
        if len(self._rows) < len(self.names):
            twice = next(name for row, name in enumerate(self.names) if self._rows[name] != row)
            raise SelectionError(f"the dataset names {twice!r} twice; give every image a name of its own")
        if len(self.embeddings) != len(self.names):
            raise SelectionError(
                f"the dataset has {len(self.names)} names and {len(self.embeddings)} embeddings; expected one each"
            )
        check_selection(self.embeddings, budget=0)
        self.metadata: dict[str, tuple[object, ...]] = {}
        for key, values in (metadata or {}).items():
            self.metadata[key] = tuple(values)
            if len(self.metadata[key]) != len(self.names):
                raise SelectionError(
                    f"metadata {key!r} has {len(self.metadata[key])} values for {len(self.names)} images; expected one "
                    "each, None where there is none"
                )
        self.tags = Tags(self.names, tags_dir)

    def __len__(self) -> int:
        return len(self.names)

    def rows_of_tag(self, tag_name: str) -> NDArray[np.intp]:
        """Rows (K,) of the dataset that a tag holds, in its order; what is gone from the dataset is left out.

        Raises TagError if there is no such tag.
        """
        members = self.tags.get(tag_name)
        rows = [self._rows[name] for name in members if name in self._rows]
        if len(rows) < len(members):
            logger.warning(
                "left out images the dataset no longer has tag=%s images=%d", tag_name, len(members) - len(rows)
            )
        return np.array(rows, dtype=np.intp)

    def names_of(self, rows: Sequence[int] | NDArray[np.intp]) -> list[str]:
        """The names of these rows."""
        return [self.names[row] for row in rows]


def open_sets(
    dataset: Dataset, preselected_tag_name: str | None, query_tag_name: str | None
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows of the labeled set (M,), in the order of its tag, and of the query set (Q,), ascending.

    Without a tag the labeled set is empty and the query set is the dataset.
    """
    nothing = np.empty(0, dtype=np.intp)
    labeled = nothing if preselected_tag_name is None else dataset.rows_of_tag(preselected_tag_name)
    query = np.arange(len(dataset)) if query_tag_name is None else np.sort(dataset.rows_of_tag(query_tag_name))
    return labeled, query
