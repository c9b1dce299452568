"""Benchmarks: each module prints tables and writes JSON files to `benchmarks/results`."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"

SHARED = REPOSITORY.parent / "shared"
"""Images and weights kept beside the project; whatever is not there is done without."""

WEIGHTS = SHARED / "weights" / "mobilenet_v2-imagenet.pth"
