"""A labeler's session, the lag people see, the service by itself and beside a peer, embedding, selection, and scale.

Each prints its table; at the end there is one of everything, beside what is asked (`benchmarks.summary`).

`benchmarks.foresight`, `benchmarks.annotators`, `benchmarks.prelabels` and `benchmarks.finetuning` are run by
themselves.

On the images and weights kept beside the project, else on the demo's digits:

python -m benchmarks [--images DIR --weights FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from backend.demo import write_digits
from benchmarks import SHARED, WEIGHTS, embedding, kcenter, labeler, latency, peer, scaling, selection, service, summary

WEATHER = SHARED / "data" / "weather"


def main() -> None:
    """Runs them one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="folder of class folders")
    parser.add_argument("--weights", type=Path, help="BACKBONE_WEIGHTS for mobilenet_v2")
    arguments = parser.parse_args()
    weights = arguments.weights or (WEIGHTS if WEIGHTS.is_file() else None)
    images = arguments.images or (WEATHER if WEATHER.is_dir() else None)
    with tempfile.TemporaryDirectory() as folder:
        if images is None:
            images = Path(folder) / "digits"
            write_digits(images)
        if weights is None:
            print("no weights file: torchvision downloads them, or the hand-made descriptor is used")
        command = ["--images", str(images), "--name", f"labeler-{images.name}"]
        with_weights = ["--weights", str(weights)] if weights else []
        labeler.main([*command, *with_weights])
    latency.main(with_weights)
    service.main(with_weights)
    peer.main(with_weights)
    embedding.main(with_weights)
    selection.main([*(["--images", str(arguments.images)] if arguments.images else []), *with_weights])
    kcenter.main([])
    scaling.main([])
    summary.main()


if __name__ == "__main__":
    main()
