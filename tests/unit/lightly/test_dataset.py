"""A dataset: names, embeddings and metadata that fit together."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from backend.errors import SelectionError, TagError
from backend.lightly import Dataset
from backend.lightly.dataset import open_sets


def test_a_dataset_knows_rows_by_tag(tmp_path: Path) -> None:
    """In the tag's order for what is labeled, in the dataset's for what may be chosen."""
    dataset = Dataset(["a", "b", "c"], np.eye(3), tags_dir=tmp_path, metadata={"weather": ["rain", None, "rain"]})
    dataset.tags.create("x", ["c", "a"])
    labeled, query = open_sets(dataset, "x", "x")
    assert labeled.tolist() == [2, 0]
    assert query.tolist() == [0, 2]
    assert len(dataset) == 3
    assert dataset.names_of(query) == ["a", "c"]
    assert dataset.metadata == {"weather": ("rain", None, "rain")}
    with pytest.raises(TagError, match="no tag 'y'"):
        open_sets(dataset, "y", None)


def test_images_that_are_gone_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder may have lost an image since the tag was made: the tag keeps its name, selections do without."""
    Dataset(["a", "b"], np.eye(2), tags_dir=tmp_path).tags.create("x", ["b", "a"])
    dataset = Dataset(["b", "c"], np.eye(2), tags_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        assert dataset.rows_of_tag("x").tolist() == [0]
    assert "tag=x images=1" in caplog.text
    assert dataset.tags.get("x") == ("b", "a")


@pytest.mark.parametrize(
    ("names", "embeddings", "metadata", "match"),
    [
        (["a", "a"], np.eye(2), None, "names 'a' twice"),
        (["a"], np.eye(2), None, "1 names and 2 embeddings"),
        (["a", "b"], np.ones(2), None, r"expected \(N, D\)"),
        (["a", "b"], [[np.nan], [1.0]], None, "NaN"),
        (["a", "b"], np.eye(2), {"k": [1]}, "metadata 'k' has 1 values for 2 images"),
    ],
)
def test_what_does_not_fit_is_refused(names: list[str], embeddings: object, metadata: object, match: str) -> None:
    """Each with what came and what was expected."""
    with pytest.raises(SelectionError, match=match):
        Dataset(names, embeddings, metadata=metadata)  # type: ignore[arg-type]
