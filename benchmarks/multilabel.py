"""What is it worth to ask for the labels that teach most, where images have several labels? Played on real photos.

Two photos of a folder of class folders beside each other make one image with the labels of both. Of the clothes six
classes are labels, so there are images without any. `default` is the service, `margin` asks by Lightly's rule (the
label most in doubt), `random` asks in random order, and `sets as classes` is the service where each set is a class of
its own, which is what one had to do without `choice="multiple"`.

    python -m benchmarks.multilabel [--images weather clothing] [--weights FILE] [--seeds 5] [--step 10]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from threadpoolctl import threadpool_limits

from backend.config import Settings
from backend.labels import NONE_OF_THESE, Label
from backend.learning.head import Head
from backend.learning.label_sets import membership, set_figures
from backend.loop.simulate import STRATEGIES, LabeledImages, Simulation, embed_folder
from backend.services import Services
from benchmarks import RESULTS, SHARED, WEIGHTS

DATA_SETS: Mapping[str, Sequence[str]] = {
    "weather": ("cloudy", "rain", "shine", "sunrise"),
    "clothing": ("dress", "hat", "pants", "shoes", "shorts", "t-shirt"),
}
"""Folder → which of its classes are labels."""

HALF = (128, 256)
"""Width and height of each photo in a pair: together they are a square, of which a backbone crops nothing away."""

BUDGETS = (20, 40, 80, 120)

SETS_AS_CLASSES = "sets as classes"


@dataclass(frozen=True)
class Row:
    """One measurement on the held-out images with the first `budget` labels of one run; all in 0..1.

    exact_match: share of the images all of whose labels are right. label_accuracy: mean over the labels. confidence:
    the head's mean confidence that all of an image is right, which should be as large as exact_match.
    """

    images: str
    strategy: str
    budget: int
    seed: int
    exact_match: float
    label_accuracy: float
    macro_f1: float
    confidence: float


class Played(Simulation):
    """A run that notes more than the accuracy of each head; `names` are the labels."""

    names: Sequence[str] = ()

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.noted: list[tuple[float, float, float, float]] = []

    def accuracy(self, head: Head | None) -> float:
        """As ever; the figures of the sets are in `noted`."""
        found: list[Label] = [()] * len(self.test_labels)
        confidence = float("nan")
        if head is not None:
            probabilities = head.predict_proba(self.test_embeddings)
            found, confidence = head.predicted(probabilities), float(head.confidence(probabilities).mean())
        guesses, truth = ([set_of(label) for label in labels] for labels in (found, self.test_labels))
        figures = set_figures(membership(self.names, guesses).astype(float), membership(self.names, truth), 0.5)
        self.noted.append((figures.exact_match, figures.label_accuracy, figures.macro_f1, confidence))
        return super().accuracy(head)


def set_of(label: Label) -> tuple[str, ...]:
    """The set, also of one that is a class of its own, as `write_pairs` names it."""
    if not isinstance(label, str):
        return label
    return () if label == NONE_OF_THESE else tuple(label.split("+"))


def main(argv: Sequence[str] | None = None) -> None:
    """Plays the data sets, writes a JSON file each, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", nargs="+", choices=list(DATA_SETS), default=list(DATA_SETS))
    parser.add_argument("--weights", type=Path, help="BACKBONE_WEIGHTS; default: those at hand")
    parser.add_argument("--seeds", type=int, default=5, help="runs, each with another held-out fifth")
    parser.add_argument("--step", type=int, default=10, help="labels from one retrain to the next")
    arguments = parser.parse_args(argv)
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in arguments.images:
        images = pairs(name, arguments.weights or (WEIGHTS if WEIGHTS.exists() else None))
        with threadpool_limits(limits=1):
            rows = [row for seed in range(arguments.seeds) for row in play(name, images, seed, arguments.step)]
        sets = {text: int(n) for text, n in zip(*np.unique(images.labels, return_counts=True), strict=True)}
        result = {"n_images": len(images.labels), "sets": sets, "step": arguments.step, "rows": list(map(asdict, rows))}
        (RESULTS / f"multilabel-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        print_table(rows)


def pairs(name: str, weights: Path | None) -> LabeledImages:
    """The pairs of a data set, embedded; their `labels` are what `write_pairs` calls the sets."""
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(SHARED / "data" / name, DATA_SETS[name], Path(folder))
        images = embed_folder(Services(Settings(backbone_weights=weights)).backbone(), Path(folder), _nothing)
    return replace(images, sets=[set_of(label) for label in images.labels.tolist()])


def pairs_of(folder: Path, wanted: Sequence[str], seed: int = 0) -> Iterator[tuple[Image.Image, tuple[str, ...]]]:
    """Photos of class folders in random pairs, each photo in one, and which of the wanted labels a pair has."""
    files = sorted(folder.glob("*/*"))
    order = np.random.default_rng(seed).permutation(len(files))
    for first, second in zip(order[0::2].tolist(), order[1::2].tolist(), strict=False):
        both = Image.new("RGB", (2 * HALF[0], HALF[1]))
        for place, number in enumerate((first, second)):
            with Image.open(files[number]) as photo:
                both.paste(ImageOps.fit(photo.convert("RGB"), HALF), (place * HALF[0], 0))
        yield both, tuple(sorted({files[first].parent.name, files[second].parent.name}.intersection(wanted)))


def write_pairs(folder: Path, wanted: Sequence[str], into: Path) -> None:
    """The pairs as class folders, named by the set."""
    for number, (both, labels) in enumerate(pairs_of(folder, wanted)):
        place = into / ("+".join(labels) or NONE_OF_THESE)
        place.mkdir(parents=True, exist_ok=True)
        both.save(place / f"{number:04d}.jpg", quality=90)


def play(name: str, images: LabeledImages, seed: int, step: int) -> Iterator[Row]:
    """All strategies on the same held-out images."""
    for strategy in ("default", "margin", "random", SETS_AS_CLASSES):
        given, run = images, strategy
        if strategy == SETS_AS_CLASSES:
            given, run = replace(images, sets=None), "default"
        simulation = Played(given, seed=seed, settings=Settings(), step=step)
        simulation.names = DATA_SETS[name]
        budgets = [budget for budget, _ in STRATEGIES[run][1](simulation, BUDGETS)]
        for budget, figures in zip(budgets, simulation.noted, strict=True):
            yield Row(name, strategy, budget, seed, *figures)


def print_table(rows: Sequence[Row]) -> None:
    """Means over the runs, with twice their standard error for the sets, and how far off (root mean square) the mean
    confidence is from the sets that are right.
    """
    print(
        f"{'images':<10}{'strategy':<18}{'labels':>7}{'sets right':>18}{'labels right':>14}{'macro F1':>10}{'off':>7}"
    )
    for strategy in dict.fromkeys(row.strategy for row in rows):
        for budget in BUDGETS:
            of_these = [row for row in rows if (row.strategy, row.budget) == (strategy, budget)]
            exact = np.array([row.exact_match for row in of_these])
            reach = 2 * exact.std(ddof=1) / np.sqrt(len(exact)) if len(exact) > 1 else float("nan")
            label_accuracy, macro_f1 = (
                np.mean([getattr(row, figure) for row in of_these]) for figure in ("label_accuracy", "macro_f1")
            )
            off = np.sqrt(np.mean([(row.confidence - row.exact_match) ** 2 for row in of_these]))
            print(
                f"{rows[0].images:<10}{strategy:<18}{budget:>7}{exact.mean():>11.3f} ± {reach:.3f}"
                f"{label_accuracy:>14.3f}{macro_f1:>10.3f}{off:>7.3f}"
            )


def _nothing(done: int, total: int) -> None:
    """Nobody watches."""


if __name__ == "__main__":
    main(sys.argv[1:])
