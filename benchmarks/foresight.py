"""How far off are the service's accuracies, its forecasts and its suspects? Played on a folder of class folders.

The service's own rounds choose the labels (first batch, then its acquisition function); the held-out fifth is what a
validation split would be. Labels are flipped to another class afterwards, to see which are suspected.

    python -m benchmarks.foresight --images DIR [--weights FILE] [--seeds 10]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from backend.adapters.backbones import load_backbone
from backend.config import Settings
from backend.learning.head import fit_and_evaluate
from backend.learning.learning_curve import CONFIDENCE_ERROR, fit_curves
from backend.learning.suspects import find_suspects
from backend.loop.rounds import evaluate_labels
from backend.loop.simulate import LabeledImages, Simulation, embed_folder
from benchmarks import RESULTS

STOPS = (*range(10, 31, 2), *range(33, 241, 3), *range(260, 401, 20))
"""Numbers of labels at which a round is run: as often as the curve needs, not at every label, which takes hours."""

SHOWN = (30, 60, 120, 240)
FORECASTS = ((30, 60), (60, 120), (120, 240))
SUSPECT_BUDGETS = (60, 120, 400)
FLIPPED = (0.0, 0.05, 0.1)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs all seeds, writes a JSON file, prints three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--weights", type=Path, help="BACKBONE_WEIGHTS for mobilenet_v2")
    parser.add_argument("--seeds", type=int, default=10, help="runs, each with another held-out fifth")
    arguments = parser.parse_args(argv)
    backbone = load_backbone("mobilenet_v2", arguments.weights)
    images = embed_folder(backbone, arguments.images, lambda done, total: None)
    result = measure(images, arguments.seeds)
    RESULTS.mkdir(parents=True, exist_ok=True)
    content = {"images": arguments.images.name, "n_images": len(images.labels), "seeds": arguments.seeds, **result}
    (RESULTS / f"foresight-{arguments.images.name}.json").write_text(json.dumps(content, indent=2) + "\n")
    print_tables(content)


def measure(images: LabeledImages, n_seeds: int) -> dict[str, Any]:
    """Means over seeds: accuracies by budget, errors of forecasts by series, suspects by budget and flipped share."""
    histories, suspects = [], defaultdict(list)
    for seed in range(n_seeds):
        simulation = Simulation(images, seed=seed, settings=Settings(random_state=seed))
        order, history = play(simulation)
        histories.append(history)
        for budget in SUSPECT_BUDGETS:
            for share in FLIPPED:
                found = suspect_flipped(simulation, order[:budget], share, np.random.default_rng(seed))
                if found is not None:
                    suspects[budget, share].append(found)
        print(f"seed {seed}: {len(order)} labels", file=sys.stderr)
    return {
        "accuracies": list(_accuracies(histories)),
        "forecasts": list(_forecasts(histories, len(images.labels) // 5)),
        "suspects": [
            {"labels": budget, "flipped": share, **_means(found)} for (budget, share), found in suspects.items()
        ],
    }


def play(simulation: Simulation) -> tuple[list[int], list[dict[str, float]]]:
    """The labels in the order the service asks for them, and three accuracies at every stop."""
    settings = replace(simulation.settings, window_size=max(SUSPECT_BUDGETS))
    order: list[int] = []
    history = []
    plan = simulation.plan([], settings=settings)
    for stop in STOPS:
        order += [task_id for task_id, _ in plan.window[: stop - len(order)]]
        plan = simulation.plan(order, settings=settings, previous=plan)
        _, evaluation = evaluate_labels(simulation.table, simulation.pool, simulation.labels(order), settings)
        if plan.fitted is None or evaluation is None or plan.scores is None or len(order) < stop:
            continue
        history.append(
            {
                "labels": stop,
                "held_out": simulation.accuracy(plan.fitted.head),
                "cross_validated": evaluation.accuracy,
                "expected": float(plan.scores.probabilities.max(axis=1).mean()),
            }
        )
    return order, history


def suspect_flipped(
    simulation: Simulation, task_ids: Sequence[int], share: float, random: np.random.Generator
) -> dict[str, float] | None:
    """Suspects of ours and of confident learning after a share of the labels was flipped; None for too small a pool."""
    truth = np.array([simulation.truth[task_id] for task_id in task_ids])
    given, classes = truth.copy(), np.unique(simulation.truth)
    flipped = np.zeros(len(truth), dtype=bool)
    flipped[random.choice(len(truth), round(share * len(truth)), replace=False)] = True
    for row in np.flatnonzero(flipped):
        given[row] = random.choice(classes[classes != truth[row]])
    rows = simulation.table.rows_of(list(task_ids))
    random_state = simulation.settings.random_state
    result = fit_and_evaluate(simulation.pool, rows, given.tolist(), random_state=random_state)
    if result.evaluation is None:
        return None
    p, columns = result.evaluation.probabilities, np.searchsorted(result.head.classes, given)
    judged = ~np.isnan(p).any(axis=1)
    own = p[np.arange(len(p)), columns]
    others = np.where(np.arange(p.shape[1]) == columns[:, None], -1, p).max(axis=1)
    means = np.array([p[judged & (columns == column), column].mean() for column in np.unique(columns[judged])])
    known = np.unique(columns[judged])
    above = np.where(p[:, known] >= means, p[:, known], -1)
    by_confident_learning = judged & (above.max(axis=1) > 0) & (known[above.argmax(axis=1)] != columns)
    ours = np.zeros(len(p), dtype=bool)
    ours[[suspect.row for suspect in find_suspects(p, columns)]] = True
    found = {
        "n_flipped": float(flipped.sum()),
        "listed": float(ours.sum()),
        "right": float((ours & flipped).sum()),
        "listed_by_confident_learning": float(by_confident_learning.sum()),
        "right_by_confident_learning": float((by_confident_learning & flipped).sum()),
    }
    if share:
        found["average_precision"] = _average_precision(-own[judged], flipped[judged])
        found["average_precision_of_margin"] = _average_precision((others - own)[judged], flipped[judged])
    return found


def _accuracies(histories: Sequence[Sequence[dict[str, float]]]) -> Iterator[dict[str, float]]:
    for labels in SHOWN:
        at = [point for history in histories for point in history if point["labels"] == labels]
        if at:
            yield _means(at)


def _forecasts(histories: Sequence[Sequence[dict[str, float]]], n_held_out: int) -> Iterator[dict[str, Any]]:
    """For each series: what is foreseen `later` from the points up to `now`, against the held-out accuracy then."""
    for now, later in FORECASTS:
        for series in ("held_out", "expected", "cross_validated"):
            errors, inside, widths, n_unknown = [], [], [], 0
            for history in histories:
                past = [point for point in history if point["labels"] <= now]
                then = [point["held_out"] for point in history if point["labels"] == later]
                if not then:
                    continue
                labels = [point["labels"] for point in past]
                counts = [n_held_out] * len(past) if series == "held_out" else labels
                shared_error = CONFIDENCE_ERROR if series == "expected" else 0.0
                curves = fit_curves(labels, [point[series] for point in past], counts, shared_error=shared_error)
                if isinstance(curves, str):
                    n_unknown += 1
                    continue
                answers = curves.accuracy(later)
                low, middle, high = (curves.quantile(answers, share) for share in (0.1, 0.5, 0.9))
                errors.append(middle - then[0])
                inside.append(low <= then[0] <= high)
                widths.append(high - low)
            if errors:
                yield {
                    "now": now,
                    "later": later,
                    "series": series,
                    "bias": float(np.mean(errors)),
                    "mean_absolute_error": float(np.mean(np.abs(errors))),
                    "inside_interval": float(np.mean(inside)),
                    "interval_width": float(np.mean(widths)),
                    "n_unknown": n_unknown,
                }


def _average_precision(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Mean precision at the ranks of the wrong labels, the highest score first."""
    hits = wrong[np.argsort(-scores, kind="stable")]
    if not hits.any():
        return 0.0
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits].mean())


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def print_tables(content: dict[str, Any]) -> None:
    """The three tables as they stand in docs/accuracy.md."""
    print(f"{content['images']}, {content['n_images']} images, {content['seeds']} seeds\n")
    print("| labels | held out | cross-validated | expected |\n|---|---|---|---|")
    for row in content["accuracies"]:
        print(f"| {row['labels']:.0f} | {row['held_out']:.3f} | {row['cross_validated']:.3f} | {row['expected']:.3f} |")
    print("\n| at | accuracy at | from | mean error | mean absolute error | inside the 80 % interval | its width |")
    print("|---|---|---|---|---|---|---|")
    for row in content["forecasts"]:
        print(
            f"| {row['now']} | {row['later']} | {row['series']} | {row['bias']:+.3f} | "
            f"{row['mean_absolute_error']:.3f} | {row['inside_interval']:.0%} | {row['interval_width']:.3f} |"
        )
    print("\n| labels | flipped | listed, right | confident learning | AP, own probability | AP, margin |")
    print("|---|---|---|---|---|---|")
    for row in content["suspects"]:
        precision = [
            f"{row[name]:.2f}" if name in row else "" for name in ("average_precision", "average_precision_of_margin")
        ]
        print(
            f"| {row['labels']} | {row['n_flipped']:.0f} | {row['listed']:.1f}, {row['right']:.1f} | "
            f"{row['listed_by_confident_learning']:.1f}, {row['right_by_confident_learning']:.1f} | "
            f"{precision[0]} | {precision[1]} |"
        )


if __name__ == "__main__":
    main()
