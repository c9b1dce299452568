"""Lightly's selection engine (lightly-mundig 0.1.16) for the first batch, with the NumPy twin where it cannot run.

The engine runs in a fresh interpreter, never in this process: it holds the GIL while it works, a fork after its use
deadlocks, and its errors are `BaseException`s that pass every `except Exception`. A program file is started rather than
a `multiprocessing` child because that would import this process's main module again, which here is a command line, an
rq worker or gunicorn. Arrays travel as `.npy` files in a temporary folder; nothing is pickled.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from backend.errors import SelectionError
from backend.learning.coreset import check_selection, select_coreset, typicality
from backend.learning.features import normalise

CHILD_PROGRAM = Path(__file__).with_name("lightly_child.py")

LIGHTLY_STRATEGIES = ("typical_coreset", "coreset")
"""The first-batch strategies of `learning.first_batch` that are Lightly's."""

ENGINE_ROWS = 10_000
"""Up to so many rows the engine is to be asked, larger pools are left to the NumPy twin, which gives the same picks but
for ties: for 100 of 10,000 × 1,280 the engine took 2.2 s and the twin 0.1 s, for 40,000 it took 9 s and 0.4 s, on one
core. The engine wants all rows in float32, in a file and in memory, where the twin reads them as they are stored."""

TIMEOUT_S = 300.0
"""The engine takes 0.4 s for 100 of 6,000 × 1,280 and grows with budget · N · D; far above this it hangs."""


@dataclass(frozen=True)
class Selection:
    """Which images to label first, and what chose them."""

    indices: list[int]  # into the embeddings, best first, without the preselected
    engine: Literal["lightly-mundig", "numpy"]
    reason: str | None  # why the NumPy twin ran, a sentence for a log; None for the engine


def select_first_batch(
    embeddings: ArrayLike,
    *,
    budget: int,
    preselected: Sequence[int] = (),
    strategy: str = "typical_coreset",
    random_state: int,
    timeout_s: float = TIMEOUT_S,
    program: Path = CHILD_PROGRAM,
) -> Selection:
    """`budget` rows of the embeddings (N, D), best first: diverse and typical, or with "coreset" only diverse.

    Lightly's diversity and typicality strategies with strength 1 each are the best first batch of those compared on
    photos, where diversity alone picks outliers. The rows are L2-normalised here. `preselected` rows count as chosen
    already and are not returned. Typicality is computed by `learning.coreset` for either engine: it gives
    lightly-mundig's numbers in a fraction of the time. `random_state` seeds its sample of reference rows in large pools
    and changes nothing in small ones. `program` is for tests.

    Raises SelectionError for a strategy that is not of LIGHTLY_STRATEGIES and for impossible input (NaN, a budget above
    the rows left, indices out of range). A missing, crashing, hanging or nonsensical engine is not an error: `engine`
    is then "numpy" and `reason` says why. Cost: about 0.3 s for the new process, then that of `typicality` and
    `select_coreset`. Above `ENGINE_ROWS` rows the twin is the better choice.
    """
    if strategy not in LIGHTLY_STRATEGIES:
        raise SelectionError(f"strategy is {strategy!r}; expected one of Lightly's: {', '.join(LIGHTLY_STRATEGIES)}")
    check_selection(embeddings, budget=budget, preselected=preselected)
    if budget == 0:
        return Selection(indices=[], engine="numpy", reason="the budget is 0")
    rows = normalise(embeddings)
    taken = [int(index) for index in preselected]
    weights = typicality(rows, random_state=random_state) if strategy == "typical_coreset" else None
    try:
        indices = _run_engine(rows, weights, budget=budget, preselected=taken, timeout_s=timeout_s, program=program)
    except SelectionError as exc:
        indices = select_coreset(rows, budget=budget, preselected=taken, typicality_weights=weights)
        return Selection(indices=indices, engine="numpy", reason=str(exc))
    return Selection(indices=indices, engine="lightly-mundig", reason=None)


def _run_engine(
    rows: NDArray[np.float32],
    weights: NDArray[np.float64] | None,
    *,
    budget: int,
    preselected: list[int],
    timeout_s: float,
    program: Path,
) -> list[int]:
    """The engine's choice; SelectionError whatever goes wrong with the engine or its process."""
    try:
        with tempfile.TemporaryDirectory(prefix="lightly-") as name:
            folder = Path(name)
            np.save(folder / "embeddings.npy", rows, allow_pickle=False)
            if weights is not None:
                np.save(folder / "weights.npy", weights, allow_pickle=False)
            (folder / "request.json").write_text(json.dumps({"preselected": preselected, "budget": budget}))
            # -P: otherwise the program's own folder comes first on the import path, and its images.py or jobs.py
            # would hide packages of those names.
            subprocess.run(
                [sys.executable, "-P", str(program), name],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=timeout_s,
                check=True,
            )
            selected = json.loads((folder / "selected.json").read_text())
    except subprocess.TimeoutExpired as exc:
        raise SelectionError(f"lightly-mundig did not answer within {timeout_s:g} s") from exc
    except subprocess.CalledProcessError as exc:
        raise SelectionError(
            f"lightly-mundig failed with exit code {exc.returncode}: {_last_line(exc.stderr)}"
        ) from exc
    except (OSError, ValueError) as exc:
        raise SelectionError(f"lightly-mundig could not be run: {exc}") from exc
    return _checked_answer(selected, n_rows=len(rows), budget=budget, preselected=preselected)


def _checked_answer(selected: object, *, n_rows: int, budget: int, preselected: list[int]) -> list[int]:
    """The indices after the preselected; SelectionError if the answer is not `budget` new, different rows."""
    if isinstance(selected, list) and all(isinstance(index, int) for index in selected):
        chosen: list[int] = selected[len(preselected) :]
        free = set(range(n_rows)).difference(preselected)
        if selected[: len(preselected)] == preselected and len(chosen) == len(free.intersection(chosen)) == budget:
            return chosen
    raise SelectionError(f"lightly-mundig answered with {str(selected)[:80]}; expected {budget} different new rows")


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode(errors="replace").strip().splitlines()
    return lines[-1].strip()[:200] if lines else "no message"
