"""The benchmark of selection at scale measures what it says: the same selection, by each peer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backend.learning.coreset import covering_radius
from benchmarks import kcenter

ROWS, FEATURES = 600, 16


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "embeddings"
    kcenter.made_up(ROWS, FEATURES).tofile(path)
    return path


def test_peers_start_at_the_same_row_and_select_the_same(file: Path) -> None:
    """A plain loop and Lightly's engine, each in a process of its own, have our covering radius."""
    embeddings = kcenter.float16_rows(file, ROWS, FEATURES)
    answers = {name: kcenter.run_apart(name, file, ROWS, FEATURES) for name in ("ours", "numpy", "lightly-mundig")}
    for answer in answers.values():
        assert answer is not None
        assert answer["selected"][0] == 0
        assert len(set(answer["selected"])) == kcenter.BUDGET
        assert answer["seconds"] > 0
        assert answer["peak_bytes"] >= 0
        ours = covering_radius(embeddings, answers["ours"]["selected"])
        assert covering_radius(embeddings, answer["selected"]) == pytest.approx(ours, rel=1e-3)


def test_a_measurement_that_fails_is_left_out(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer rows than are to be selected: no figure, and a line that says why."""
    assert kcenter.run_apart("ours", file, 50, FEATURES) is None
    assert "budget is 100; expected 0..50" in capsys.readouterr().err


def test_made_up_embeddings_are_directions_and_float32_rows_are_the_same(file: Path) -> None:
    """Length 1 but for rounding; what peers get are the stored numbers."""
    stored = kcenter.float16_rows(file, ROWS, FEATURES)
    np.testing.assert_allclose(np.linalg.norm(stored.astype(np.float64), axis=1), 1, atol=1e-3)
    np.testing.assert_array_equal(kcenter.float32_rows(file, ROWS, FEATURES), stored.astype(np.float32))


def test_a_tenth_and_shards_of_the_pool_have_larger_radii(file: Path) -> None:
    """Neither is smaller than that of all rows by more than chance, and shards stay within twice that of all rows."""
    embeddings = kcenter.made_up(4000, FEATURES)
    ours, shards, sample = (
        covering_radius(embeddings, select(embeddings)) for select in (kcenter.ours, kcenter.shards, kcenter.sample)
    )
    assert 0.95 * ours < shards < 2 * ours
    assert 0.95 * ours < sample
