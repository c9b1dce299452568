"""What does TRAIN=finetune give? Random labels of a folder of class folders, accuracy on a held-out fifth.

The backbone is fine-tuned on four fifths of the labels, as the service does; then the service's learner learns from all
labels, seeing the images with the backbone as it was and with the fine-tuned one. About ten minutes on a processor.

    python -m benchmarks.finetuning --images DIR [--weights FILE] [--labels 240] [--seeds 1]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.adapters.backbones import Backbone, load_backbone
from backend.adapters.images import decode
from backend.learning.finetuning import hold_out, judge
from backend.learning.head import fit_and_evaluate
from backend.learning.pool import Pool
from backend.loop.simulate import held_out_fifth
from benchmarks import RESULTS


def main() -> None:
    """Prints one JSON object per seed and writes them all to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--weights", type=Path, help="BACKBONE_WEIGHTS for mobilenet_v2")
    parser.add_argument(
        "--labels", type=int, default=240, help="labels, drawn at random from all but the held-out fifth"
    )
    parser.add_argument("--seeds", type=int, default=1, help="runs, each with another held-out fifth")
    arguments = parser.parse_args()
    base = load_backbone("mobilenet_v2", arguments.weights)
    files = [path for folder in sorted(arguments.images.glob("*/")) for path in sorted(folder.glob("*"))]
    images = [decode(path.read_bytes(), min_side=base.training_side) for path in files]
    labels = np.array([path.parent.name for path in files])
    unchanged = base.embed(images).astype(np.float16)
    runs = []
    for seed in range(arguments.seeds):
        runs.append(measure(base, images, labels, unchanged, n_labels=arguments.labels, seed=seed))
        print(json.dumps(runs[-1]), flush=True)
    result = {"images": arguments.images.name, "n_images": len(images), "fingerprint": base.fingerprint, "runs": runs}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"finetuning-{arguments.images.name}.json").write_text(json.dumps(result, indent=2) + "\n")


def measure(
    base: Backbone,
    images: list[Image.Image],
    labels: NDArray[np.str_],
    unchanged: NDArray[np.float16],
    *,
    n_labels: int,
    seed: int,
) -> dict[str, Any]:
    """Accuracies on the held-out fifth with both backbones, and what the service would report and decide by."""
    held_out = held_out_fifth(labels, seed)
    pool = np.flatnonzero(~held_out)
    labeled = np.random.default_rng(seed).permutation(pool)[:n_labels]
    judged = hold_out(labels[labeled].tolist(), np.ones(n_labels, dtype=bool), random_state=seed)
    targets = np.unique(labels[labeled[~judged]], return_inverse=True)[1]
    pixels = base.training_pixels([images[row] for row in labeled[~judged]])
    started = time.monotonic()
    backbone = base.finetuned(pixels, targets, random_state=seed)
    found: dict[str, Any] = {"seed": seed, "labels": n_labels, "took_s": round(time.monotonic() - started)}
    for name, embeddings, seen in (
        ("unchanged", unchanged, np.zeros(n_labels, dtype=bool)),
        ("fine-tuned", backbone.embed(images).astype(np.float16), ~judged),
    ):
        fitted = fit_and_evaluate(
            Pool(embeddings[pool], base.n_details),
            np.searchsorted(pool, labeled),
            labels[labeled].tolist(),
            random_state=seed,
            never_held_out=seen,
        )
        top = fitted.head.predict_proba(embeddings[held_out]).argmax(axis=1)
        decided_by = judge(embeddings[labeled], base.n_details, labels[labeled].tolist(), judged, random_state=seed)
        found[name] = {
            "accuracy": float(np.mean(np.asarray(fitted.head.classes)[top] == labels[held_out])),
            "cross_validated": fitted.evaluation.accuracy if fitted.evaluation else None,
            "decided_by": vars(decided_by),
        }
    return found


if __name__ == "__main__":
    main()
