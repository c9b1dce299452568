"""What are several annotations of a task worth? Made-up annotators answer for photos whose classes are known.

Five annotators, right in 70, 75, 80, 85 and 90 % of their answers and else any other class, label random tasks, some of
them by several annotators. The service's learner is fitted on what each rule makes of the answers, and its accuracy on
the held-out fifth compared within each run:

    majority    the most frequent label, among equals the last given, all tasks alike
    share       the same label, weighted by the share of the answers that give it
    pairs       the same label, weighted by the share of the pairs of answers that agree, one answer counting whole
    one-coin    the likeliest label under one accuracy per annotator, weighted by its probability; one answer whole
    net         the same, weighted by how much likelier it is to be right than wrong, 2p - 1
    all net     the same, and a single answer weighted so by its annotator's accuracy
    soft        every class that has a twentieth of the probability or more as a target, weighted by it

    python -m benchmarks.annotators --images DIR [--weights FILE] [--seeds 6]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.adapters.backbones import load_backbone
from backend.config import Settings
from backend.learning.annotators import label_probabilities
from backend.learning.head import choose_settings, fit
from backend.loop.simulate import LabeledImages, Simulation, embed_folder
from benchmarks import RESULTS

ACCURACIES = (0.7, 0.75, 0.8, 0.85, 0.9)
BUDGETS = (60, 120, 240)
SCENARIOS: Mapping[str, tuple[float, int]] = {
    "3 in 10 tasks three times": (0.3, 3),
    "all tasks twice": (1.0, 2),
    "all tasks three times": (1.0, 3),
}
"""Share of the tasks that several people answer, and how many."""

RULES = ("majority", "share", "pairs", "one-coin", "net", "all net", "soft")
LEAST_SHARE = 0.05


@dataclass(frozen=True)
class Answers:
    """N answers: the tasks (rows of a sample), annotators and classes, in the order given."""

    tasks: NDArray[np.intp]
    annotators: NDArray[np.intp]
    classes: NDArray[np.intp]
    n_classes: int


def main(argv: Sequence[str] | None = None) -> None:
    """Runs all seeds, writes a JSON file, prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="folder of class folders")
    parser.add_argument("--weights", type=Path, help="BACKBONE_WEIGHTS for mobilenet_v2")
    parser.add_argument("--seeds", type=int, default=6, help="runs, each with another held-out fifth")
    arguments = parser.parse_args(argv)
    images = embed_folder(load_backbone("mobilenet_v2", arguments.weights), arguments.images, lambda done, total: None)
    rows = [row for seed in range(arguments.seeds) for row in run(images, seed)]
    content = {"images": arguments.images.name, "seeds": arguments.seeds, "rows": rows}
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"annotators-{arguments.images.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    print_table(content)


def run(images: LabeledImages, seed: int) -> list[dict[str, Any]]:
    """Accuracy by scenario, budget and rule, of one seed."""
    random = np.random.default_rng(seed)
    simulation = Simulation(images, seed=seed, settings=Settings(random_state=seed))
    names, truth = np.unique(simulation.truth, return_inverse=True)
    order = random.permutation(len(truth))
    rows = []
    for scenario, (share, times) in SCENARIOS.items():
        for budget in BUDGETS:
            sample = order[:budget]
            answers = answer(truth[sample], len(names), share, times, random)
            for rule in RULES:
                accuracy = fitted_accuracy(simulation, sample, names, *trained_on(rule, answers))
                rows.append({"scenario": scenario, "labels": budget, "rule": rule, "seed": seed, "accuracy": accuracy})
    print(f"seed {seed}", file=sys.stderr, flush=True)
    return rows


def answer(truth: NDArray[np.intp], n_classes: int, share: float, times: int, random: np.random.Generator) -> Answers:
    """What annotators say of tasks of these classes (n,): one of them, or `times` of them for a share of the tasks."""
    tasks, annotators, classes = [], [], []
    for task, own in enumerate(truth.tolist()):
        n_answers = times if random.random() < share else 1
        for annotator in random.permutation(len(ACCURACIES))[:n_answers].tolist():
            is_right = random.random() < ACCURACIES[annotator]
            other = (own + 1 + int(random.integers(n_classes - 1))) % n_classes
            tasks.append(task)
            annotators.append(annotator)
            classes.append(own if is_right else other)
    return Answers(np.array(tasks), np.array(annotators), np.array(classes), n_classes)


def trained_on(rule: str, answers: Answers) -> tuple[list[int], list[int], list[float]]:
    """Tasks, classes and weights of the rows that the head is fitted on."""
    counts = np.zeros((int(answers.tasks.max()) + 1, answers.n_classes))
    np.add.at(counts, (answers.tasks, answers.classes), 1)
    last = np.zeros_like(counts)
    np.maximum.at(last, (answers.tasks, answers.classes), np.arange(len(answers.tasks)) / len(answers.tasks) / 2)
    n_answers = counts.sum(axis=1)
    probabilities = _probabilities(answers, n_answers)
    if rule == "soft":
        tasks, classes = np.nonzero(probabilities >= LEAST_SHARE)
        return tasks.tolist(), classes.tolist(), probabilities[tasks, classes].tolist()
    by_model = rule in ("one-coin", "net", "all net")
    winners = (np.round(probabilities, 6) + 1e-9 * last if by_model else counts + last).argmax(axis=1)
    every = np.arange(len(counts))
    weights = np.ones(len(counts))
    if rule == "share":
        weights = counts[every, winners] / n_answers
    if rule == "pairs":
        pairs = (counts * (counts - 1)).sum(axis=1) / np.maximum(n_answers * (n_answers - 1), 1)
        weights = np.where(n_answers > 1, np.maximum(pairs, LEAST_SHARE), 1.0)
    if by_model:
        trust = probabilities[every, winners]
        if rule != "one-coin":
            trust = np.maximum(2 * trust - 1, LEAST_SHARE)
        weights = np.where((n_answers > 1) | (rule == "all net"), trust, 1.0)
    return every.tolist(), winners.tolist(), weights.tolist()


def _probabilities(answers: Answers, n_answers: NDArray[np.float64]) -> NDArray[np.float64]:
    """How probable each class is (n, C), as the service has it: how often who is right is seen in several answers."""
    is_several = n_answers[answers.tasks] > 1
    rows, compact = np.unique(answers.tasks[is_several], return_inverse=True)
    probabilities = np.zeros((len(n_answers), answers.n_classes))
    probabilities[rows], accuracies = label_probabilities(
        compact, answers.annotators[is_several], answers.classes[is_several], answers.n_classes
    )
    alone = answers.tasks[~is_several]
    right = accuracies[answers.annotators[~is_several]]
    probabilities[alone] = ((1 - right) / (answers.n_classes - 1))[:, None]
    probabilities[alone, answers.classes[~is_several]] = right
    return probabilities


def fitted_accuracy(
    simulation: Simulation,
    sample: NDArray[np.intp],
    names: NDArray[np.str_],
    tasks: Sequence[int],
    classes: Sequence[int],
    weights: Sequence[float],
) -> float:
    """Held-out accuracy of the head with the settings that these labels choose."""
    rows, labels, trust = sample[list(tasks)], names[list(classes)].tolist(), np.array(weights)
    settings, _ = choose_settings(simulation.pool, rows, labels, random_state=simulation.seed, weights=trust)
    return simulation.accuracy(fit(simulation.pool, rows, labels, settings, weights=trust).head)


def print_table(content: Mapping[str, Any]) -> None:
    """Mean accuracy with the majority's label, and for the other rules the difference in points ± standard error."""
    found: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for row in content["rows"]:
        found[row["scenario"], row["labels"], row["rule"]].append(row["accuracy"])
    print(f"| images | answers | labels | {' | '.join(RULES)} |")
    print("|---" * (3 + len(RULES)) + "|")
    for scenario in SCENARIOS:
        for budget in BUDGETS:
            base = np.array(found[scenario, budget, "majority"])
            cells = [f"{base.mean():.3f}"]
            for rule in RULES[1:]:
                gains = 100 * (np.array(found[scenario, budget, rule]) - base)
                cells.append(f"{gains.mean():+.1f} ± {gains.std(ddof=1) / np.sqrt(len(gains)):.1f}")
            print(f"| {content['images']} | {scenario} | {budget} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
