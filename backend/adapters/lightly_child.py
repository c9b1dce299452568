"""The program `adapters/lightly.py` runs in a process of its own; the only place that imports lightly-mundig.

Run as `python lightly_child.py FOLDER` with `embeddings.npy` (N, D) float32, `request.json` (`preselected`, `budget`)
and, for diversity and weights instead of diversity alone, `weights.npy` (N,) in the folder; writes `selected.json`,
the indices in order with the preselected first. Anything that goes wrong ends the process with its message as the last
line of standard error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np


def main(folder: Path) -> None:
    """Answer the request in the folder: diversity, and weights if there are any, each with strength 1."""
    from lightly_mundig import Selection  # here, so that importing this module elsewhere does not load the engine

    embeddings = np.load(folder / "embeddings.npy", allow_pickle=False)
    request = json.loads((folder / "request.json").read_text())

    selection = Selection()
    selection.add_diversifying_strategy(embeddings=embeddings, strength=1.0)
    if (folder / "weights.npy").exists():
        weights = np.load(folder / "weights.npy", allow_pickle=False)
        selection.add_weighting_strategy(weights=weights.tolist(), strength=1.0)
    selected = selection.run_selection(
        preselected_indices=request["preselected"],
        n_total_samples=len(embeddings),
        n_samples_to_select=len(request["preselected"]) + request["budget"],  # the engine counts the preselected
    )
    (folder / "selected.json").write_text(json.dumps([int(index) for index in selected]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
