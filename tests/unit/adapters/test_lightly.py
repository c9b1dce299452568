"""Lightly's engine in its own process: the same picks as the NumPy twin, which takes over when it cannot run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import backend
from backend.adapters.lightly import select_first_batch
from backend.errors import SelectionError
from backend.learning.coreset import select_coreset, typicality
from backend.learning.features import normalise

REPOSITORY = Path(backend.__file__).parents[1]


def photos(n_rows: int, *, n_features: int = 64, seed: int = 0) -> np.ndarray:
    """Embeddings like a network's: non-negative, several clusters of uneven size, one duplicate pair."""
    random = np.random.default_rng(seed)
    centres = random.gamma(0.5, size=(6, n_features))
    rows = centres[random.integers(0, 6, size=n_rows) // 2] + 0.4 * random.gamma(0.5, size=(n_rows, n_features))
    rows[-1] = rows[0]
    return rows.astype(np.float32)


def program(folder: Path, text: str) -> Path:
    """A stand-in for the engine's program."""
    path = folder / "program.py"
    path.write_text(text)
    return path


@pytest.mark.parametrize("preselected", [[], [5, 80, 17]])
def test_engine_and_twin_give_the_same_picks(preselected):
    """The engine's selection is, pick by pick, what the twin computes from the same weights."""
    embeddings = photos(150)
    selection = select_first_batch(embeddings, budget=25, preselected=preselected, random_state=0)
    assert (selection.engine, selection.reason) == ("lightly-mundig", None)
    rows = normalise(embeddings)
    twin = select_coreset(rows, budget=25, preselected=preselected, typicality_weights=typicality(rows))
    assert selection.indices == twin


def test_the_coreset_is_the_engine_s_diversity():
    """Diversity alone goes through the engine too; no weights are given to it."""
    embeddings = photos(150)
    selection = select_first_batch(embeddings, budget=25, preselected=[9], strategy="coreset", random_state=0)
    assert (selection.engine, selection.reason) == ("lightly-mundig", None)
    assert selection.indices == select_coreset(normalise(embeddings), budget=25, preselected=[9])


def covering_radius(rows: np.ndarray, selected: list[int]) -> float:
    """The largest distance of any row to its nearest selected one: what k-center selection keeps small."""
    return float(np.linalg.norm(rows[:, None] - rows[selected], axis=2).min(axis=1).max())


@pytest.mark.parametrize("strategy", ["coreset", "typical_coreset"])
@pytest.mark.parametrize("preselected", [[], list(range(0, 600, 15))])
@pytest.mark.parametrize("seed", [0, 1])
def test_engine_and_twin_agree_on_larger_data(tmp_path, strategy, preselected, seed):
    """600 rows, 60 chosen beside none or 40: the same sets but for ties that rounding breaks, and the same radius."""
    embeddings = np.random.default_rng(seed).normal(size=(600, 32))
    asked = {"budget": 60, "preselected": preselected, "strategy": strategy, "random_state": 0}
    engine = select_first_batch(embeddings, **asked)
    twin = select_first_batch(embeddings, **asked, program=program(tmp_path, "raise SystemExit(1)"))
    assert (engine.engine, twin.engine) == ("lightly-mundig", "numpy")
    rows = normalise(embeddings)
    radii = [covering_radius(rows, [*preselected, *picks.indices]) for picks in (engine, twin)]
    assert radii[0] == pytest.approx(radii[1], rel=1e-3)
    assert len(set(engine.indices) & set(twin.indices)) >= 57


def test_a_strategy_that_is_not_lightly_s_is_refused():
    """The caller is told which ones are."""
    with pytest.raises(SelectionError, match="strategy is 'typiclust'; expected one of Lightly's: typical_coreset"):
        select_first_batch(np.eye(3), budget=1, strategy="typiclust", random_state=0)


ENGINES_TYPICALITY = """
import sys, numpy as np
from lightly_mundig import Typicality
rows = np.load(sys.argv[1])
np.save(sys.argv[1], Typicality(embeddings=rows).calculate_typicality(num_nearest_neighbors=20))
"""


def test_typicality_is_the_engines(tmp_path):
    """Typicality computed in NumPy equals lightly-mundig's, asked in a process of its own."""
    rows = normalise(photos(150))
    np.save(tmp_path / "rows.npy", rows)
    subprocess.run([sys.executable, "-c", ENGINES_TYPICALITY, tmp_path / "rows.npy"], check=True, timeout=60)
    # Engine and twin round the tiny distance between near-duplicates differently, hence not closer.
    np.testing.assert_allclose(typicality(rows), np.load(tmp_path / "rows.npy"), atol=1e-4)


def test_length_of_embeddings_does_not_matter():
    """Rows are normalised, so stretching single rows changes nothing."""
    embeddings = photos(60)
    stretched = embeddings * np.linspace(0.5, 20, 60)[:, None]
    picks = [select_first_batch(rows, budget=8, random_state=0).indices for rows in (embeddings, stretched)]
    assert picks[0] == picks[1]


def test_whole_pool_can_be_selected():
    """A budget of all rows left names each once."""
    selection = select_first_batch(photos(10), budget=8, preselected=[2, 3], random_state=0)
    assert sorted([*selection.indices, 2, 3]) == list(range(10))


def test_equal_images_are_selected_in_order():
    """A pool of copies has no typical and no far row; the engine still answers, and lowest indices come first."""
    selection = select_first_batch(np.ones((5, 4)), budget=3, random_state=0)
    assert selection.indices == [0, 1, 2]
    assert selection.engine == "lightly-mundig"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise BaseException('the engine panicked')", "exit code 1: BaseException: the engine panicked"),
        ("import os; os.kill(os.getpid(), 9)", "exit code -9: no message"),
        ("pass", "could not be run: .*selected.json"),
        ("import time; time.sleep(60)", "did not answer within 0.5 s"),
        (
            "import pathlib, sys; pathlib.Path(sys.argv[1], 'selected.json').write_text('[0, 1, 1]')",
            r"answered with \[0, 1, 1\]; expected 3 different new rows",
        ),
        ("import pathlib, sys; pathlib.Path(sys.argv[1], 'selected.json').write_text('{')", "could not be run"),
    ],
)
def test_twin_takes_over_when_the_engine_fails(tmp_path, text, reason):
    """A panic, a crash, silence, a hang or nonsense gives the same picks from NumPy, and a reason in words."""
    embeddings = photos(40)
    expected = select_first_batch(embeddings, budget=3, random_state=0)
    timeout_s = 0.5 if "sleep" in text else 60.0
    selection = select_first_batch(
        embeddings, budget=3, random_state=0, program=program(tmp_path, text), timeout_s=timeout_s
    )
    assert selection.engine == "numpy"
    assert selection.indices == expected.indices
    assert re.search(reason, selection.reason)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 6}, r"budget is 6; expected 0\.\.5"),
        ({"preselected": [9]}, "index 9"),
        ({"embeddings": np.full((5, 2), np.nan)}, "5 of 5 embeddings contain NaN"),
    ],
)
def test_impossible_input_is_refused(change, message):
    """Bad input is an error before any process starts, not a reason to fall back."""
    with pytest.raises(SelectionError, match=message):
        select_first_batch(**({"embeddings": np.eye(5), "budget": 1, "random_state": 0} | change))


def test_nothing_to_select_starts_nothing(tmp_path):
    """A budget of zero is answered at once."""
    selection = select_first_batch(np.eye(3), budget=0, random_state=0, program=tmp_path / "missing.py")
    assert selection.indices == []


MAIN_MODULE = """
print("main module runs", flush=True)
import sys
import numpy as np
from backend.adapters.lightly import select_first_batch
print(select_first_batch(np.eye(6), budget=2, random_state=0))
print("lightly_mundig" in sys.modules)
"""


def test_a_main_module_is_not_run_again(tmp_path):
    """Called from `python -m …` without a main guard, the main module runs once and the engine is not loaded in it."""
    (tmp_path / "door").mkdir()
    (tmp_path / "door" / "__main__.py").write_text(MAIN_MODULE)
    path = os.pathsep.join([str(tmp_path), str(REPOSITORY)])
    door = subprocess.run(
        [sys.executable, "-m", "door"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert door.stdout.splitlines() == [
        "main module runs",
        "Selection(indices=[0, 1], engine='lightly-mundig', reason=None)",
        "False",
    ]
