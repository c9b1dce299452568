"""Which pre-labels of the images shown next are right, and which gate shows them? Played on folders of class folders.

The service's own rounds choose the labels. At every stop the images that are labeled next are looked at: what the
head says of them, how sure it is, and whether it is right. From this follows for each gate how many pre-labels a person
would have seen and how many of them were wrong. The held-out fifth is what a validation split would be.

    python -m benchmarks.prelabels [--images DIR …] [--weights FILE] [--seeds 5] [--labels 300]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from backend.config import Settings
from backend.demo import write_digits
from backend.learning.intervals import wilson_interval
from backend.loop.rounds import Stopwatch, evaluate_labels, plan_round
from backend.loop.simulate import LabeledImages, Simulation, embed_folder, held_out_fifth
from backend.services import Services
from benchmarks import RESULTS, SHARED, WEIGHTS

DATA_SETS = ("weather", "clothing")

THRESHOLDS = (0.6, 0.7, 0.8, 0.9)

SLACK = 0.05
"""A gate for all images, once open, stays so until the accuracy is this much below it: nobody wants it to flicker."""

PHASES = ((2, 30), (30, 60), (60, 120), (120, 300))
"""Labels from and to: the first batch, of typical images, and what comes after it."""


@dataclass(frozen=True)
class Look:
    """What is known after so many labels, and the images that are labeled before the next look.

    cross_validated, validated: accuracy (0..1) as an evaluation of the look before said it, and the lower end of its
    interval; None while there is none. held_out, expected: accuracy on all held-out images, mean confidence over the
    unlabeled ones. next: (confidence, 1 if the top class is right else 0) of the images that are labeled next.
    """

    labels: int
    cross_validated: tuple[float, float] | None
    validated: tuple[float, float] | None
    held_out: float
    expected: float
    next: Sequence[tuple[float, int]]


Runs = Sequence[Sequence[Look]]
Gate = Callable[[Sequence[Look], float], Iterator[Sequence[bool]]]
"""(looks of one run, what the gate asks for, 0..1) → for each look which of its next images show a pre-label."""


def every_image(looks: Sequence[Look], least: float) -> Iterator[Sequence[bool]]:
    """All are shown."""
    for look in looks:
        yield [True] * len(look.next)


def by_accuracy(
    looks: Sequence[Look], least: float, *, measured: Literal["cross_validated", "validated"]
) -> Iterator[Sequence[bool]]:
    """All are shown while the lower end of the accuracy's interval is high enough."""
    is_open = False
    for look in looks:
        known = look.cross_validated if measured == "cross_validated" else look.validated
        is_open = known is not None and known[1] >= least - (SLACK if is_open else 0)
        yield [is_open] * len(look.next)


def by_confidence(looks: Sequence[Look], least: float) -> Iterator[Sequence[bool]]:
    """Those of which the head is sure enough are shown, once labels could be held out: what the service does."""
    for look in looks:
        yield [look.cross_validated is not None and confidence >= least for confidence, _ in look.next]


GATES: Mapping[str, tuple[Gate, Sequence[float]]] = {
    "every image": (every_image, [0.0]),
    "accuracy, cross-validated": (partial(by_accuracy, measured="cross_validated"), THRESHOLDS),
    "accuracy, validation split": (partial(by_accuracy, measured="validated"), THRESHOLDS),
    "confidence of the image": (by_confidence, THRESHOLDS),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Plays all data sets, writes a JSON file, prints its tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, nargs="+", help="folders of class folders; default: those at hand")
    parser.add_argument("--weights", type=Path, help="BACKBONE_WEIGHTS; default: those at hand")
    parser.add_argument("--seeds", type=int, default=5, help="runs, each with another held-out fifth")
    parser.add_argument("--labels", type=int, default=300, help="labels given in a run")
    arguments = parser.parse_args(argv)
    looks = looks_of(arguments)
    result = {
        "seeds": arguments.seeds,
        "labels": arguments.labels,
        "rows": [row for name, runs in looks.items() for row in rows(name, runs)],
        "looks": [row for name, runs in looks.items() for row in known_at(name, runs)],
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "prelabels.json").write_text(json.dumps(result, indent=1) + "\n")
    print_tables(result)


def rows(images: str, runs: Runs) -> Iterator[dict[str, Any]]:
    """For each gate, threshold and phase: how many images came next, how many with a pre-label, how many right.

    `opens_at` is at how many labels each run showed its first one, None where it never did.
    """
    for name, (gate, thresholds) in GATES.items():
        for least in thresholds:
            shown = [list(gate(looks, least)) for looks in runs]
            first = [
                next((look.labels for look, flags in zip(looks, run, strict=True) if any(flags)), None)
                for looks, run in zip(runs, shown, strict=True)
            ]
            for begin, end in (*PHASES, (PHASES[0][0], PHASES[-1][1])):
                pairs = [
                    (is_shown, is_right)
                    for looks, run in zip(runs, shown, strict=True)
                    for look, flags in zip(looks, run, strict=True)
                    if begin <= look.labels < end
                    for (_, is_right), is_shown in zip(look.next, flags, strict=True)
                ]
                yield {
                    "images": images,
                    "gate": name,
                    "from": least,
                    "labels": [begin, end],
                    "n_next": len(pairs),
                    "n_shown": sum(is_shown for is_shown, _ in pairs),
                    "n_right": sum(is_right for is_shown, is_right in pairs if is_shown),
                    "opens_at": first,
                }


def known_at(images: str, runs: Runs) -> Iterator[dict[str, Any]]:
    """What was known at each number of labels, mean over the runs; None where no run knew it."""

    def mean(values: Sequence[float]) -> float | None:
        return round(float(np.mean(values)), 4) if values else None

    for labels in sorted({look.labels for looks in runs for look in looks}):
        at = [look for looks in runs for look in looks if look.labels == labels]
        of_next = [item for look in at for item in look.next]
        yield {
            "images": images,
            "labels": labels,
            "cross_validated": mean([look.cross_validated[0] for look in at if look.cross_validated]),
            "cross_validated_bound": mean([look.cross_validated[1] for look in at if look.cross_validated]),
            "held_out": mean([look.held_out for look in at]),
            "held_out_bound": mean([look.validated[1] for look in at if look.validated]),
            "expected": mean([look.expected for look in at]),
            "next_confidence": mean([confidence for confidence, _ in of_next]),
            "next_right": mean([is_right for _, is_right in of_next]),
        }


def print_tables(result: Mapping[str, Any]) -> None:
    """Two tables of Markdown: each gate on all images that came next, and how many of these are right by phase."""
    found = {(row["images"], row["gate"], row["from"], tuple(row["labels"])): row for row in result["rows"]}
    names = list(dict.fromkeys(row["images"] for row in result["rows"]))
    whole = PHASES[0][0], PHASES[-1][1]
    print(f"\n| shown by | from | {' | '.join(names)} |\n|---|---|{'---|' * len(names)}")
    for gate, (_, thresholds) in GATES.items():
        for least in thresholds:
            cells = [_cell(found[name, gate, least, whole]) for name in names]
            print(f"| {gate} | {least:g} | {' | '.join(cells)} |")
    for gate, least in (("every image", 0.0), ("confidence of the image", 0.8)):
        print(f"\n{gate}, {least:g}\n\n| labels | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
        for phase in PHASES:
            cells = [_cell(found[name, gate, least, phase]) for name in names]
            print(f"| {phase[0]} to {phase[1]} | {' | '.join(cells)} |")


def _cell(row: Mapping[str, Any]) -> str:
    """Right and wrong pre-labels in a hundred images that came next."""
    share = 100 / row["n_next"] if row["n_next"] else 0.0
    return f"{row['n_right'] * share:.0f} right, {(row['n_shown'] - row['n_right']) * share:.1f} wrong"


def looks_of(arguments: argparse.Namespace) -> dict[str, list[list[Look]]]:
    """Data set → seed → looks."""
    weights = arguments.weights or (WEIGHTS if WEIGHTS.is_file() else None)
    settings = Settings(backbone_weights=weights)
    backbone = Services(settings).backbone()
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folders = arguments.images
        if not folders:
            write_digits(Path(scratch) / "digits")
            at_hand = [SHARED / "data" / name for name in DATA_SETS]
            folders = [*(path for path in at_hand if path.is_dir()), Path(scratch) / "digits"]
        for folder in folders:
            images = embed_folder(backbone, folder, lambda done, total: None)
            runs = []
            for seed in range(arguments.seeds):
                with threadpool_limits(limits=1):
                    runs.append(list(play(images, seed, arguments.labels)))
                print(f"{folder.name}, seed {seed}: {len(runs[-1])} looks", file=sys.stderr, flush=True)
            found[folder.name] = runs
    return found


def stops(n_labels: int) -> Iterator[int]:
    """Numbers of labels at which there is a look: every second to 60, then every fourth."""
    yield from range(2, min(60, n_labels), 2)
    yield from range(60, n_labels + 1, 4)


def play(images: LabeledImages, seed: int, n_labels: int) -> Iterator[Look]:
    """One run. Each look's head has settings that the evaluation of the look before chose, as labels come fast."""
    settings = Settings(random_state=seed)
    simulation = Simulation(images, seed=seed, settings=settings)
    n_held_out = int(held_out_fifth(images.labels, seed).sum())
    order: list[int] = []
    plan, chosen, known, validated = simulation.plan([]), None, None, None
    whole = [*stops(n_labels), n_labels]
    for stop, following in pairwise(whole):
        order += [task_id for task_id, _ in plan.window[: stop - len(order)]]
        labels = simulation.labels(order)
        plan = plan_round(
            simulation.table,
            simulation.pool,
            labels,
            settings,
            n_classes=simulation.n_classes,
            previous_seed=plan.seed,
            watch=Stopwatch(),
            chosen=chosen,
            start=plan.fitted,
        )
        if plan.scores is None or plan.fitted is None:
            continue
        p = plan.scores.probabilities
        right = np.asarray(plan.scores.head.classes)[p.argmax(axis=1)] == [
            simulation.truth[i] for i in plan.pool.tolist()
        ]
        following_rows = np.searchsorted(plan.pool, [task_id for task_id, _ in plan.window])
        of_window = [(round(float(p[row].max()), 4), int(right[row])) for row in following_rows.tolist()]
        held_out = simulation.accuracy(plan.fitted.head)
        yield Look(len(order), known, validated, held_out, float(p.max(axis=1).mean()), of_window[: following - stop])
        chosen, evaluation = evaluate_labels(simulation.table, simulation.pool, labels, settings)
        known = with_bound(evaluation.accuracy, len(order)) if evaluation else None
        validated = with_bound(held_out, n_held_out)


def with_bound(accuracy: float, n: int) -> tuple[float, float]:
    """The accuracy and the lower end of its 95 % interval, which the gates by accuracy go by."""
    return accuracy, wilson_interval(min(round(accuracy * n), n), n)[0]


if __name__ == "__main__":
    main()
