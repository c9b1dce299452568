"""Agreement: how much the label counts that several people came to, and where they disagree.

People are known by Label Studio's ids only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.learning.annotators import krippendorff_alpha, label_probabilities, label_weights, pairwise_agreement
from backend.schema import SeveralAnswers, TrainingLabels

_SAME = 1e-6  # probabilities that differ by less are equal

MAX_DISAGREEMENTS = 50
"""Disagreements kept in a record, the greatest ones; more are only counted."""


def weighed(labels: TrainingLabels, offered: Sequence[str]) -> TrainingLabels:
    """The same labels; those of tasks that several people answered are the likeliest, and count by how likely they are.

    How likely is what all such answers say together of how often each person is right, see `label_probabilities` and
    `label_weights` of `learning.annotators`. Ground truth stays and counts whole, and so does a single answer. Who is
    unknown counts as somebody else each time.
    """
    several = {task_id: answers for task_id, answers in labels.several.items() if task_id in labels.labels}
    if all(answers.has_ground_truth for answers in several.values()):
        return labels
    column = {label: index for index, label in enumerate(offered)}
    people: dict[object, int] = {}
    tasks, annotators, classes, truths = [], [], [], np.full(len(several), -1)
    for row, (task_id, answers) in enumerate(several.items()):
        if answers.has_ground_truth:
            truths[row] = column[labels.labels[task_id]]
        for number, (person, label) in enumerate(answers.answers):
            who = person if person is not None else (task_id, number)
            tasks.append(row)
            annotators.append(people.setdefault(who, len(people)))
            classes.append(column[label])
    probabilities, _ = label_probabilities(
        np.array(tasks), np.array(annotators), np.array(classes), len(offered), truths
    )
    found: dict[int, str] = dict(labels.labels)
    weights: dict[int, float] = {}
    for row, task_id in enumerate(several):
        if truths[row] >= 0:
            continue
        likeliest = probabilities[row].max()
        # What people said weighs the same for two labels: then the majority's, or of those the last one, stays.
        if probabilities[row, column[found[task_id]]] < likeliest - _SAME:
            found[task_id] = offered[int(probabilities[row].argmax())]
        weights[task_id] = float(label_weights(likeliest))
    return replace(labels, labels=found, weights=weights)


def agreement_fields(labels: TrainingLabels) -> dict[str, Any]:
    """The fields of a record about several people's answers: how far they agree, and the tasks on which they do not.

    `krippendorff_alpha` is null where everybody always gave the same label: then chance would give it, too.
    """
    if not labels.several:
        return {"agreement": None, "n_disagreements": 0, "disagreements": []}
    known = {**labels.labels, **labels.validation}
    counts, names = _counts(labels.several)
    pairs = pairwise_agreement(counts)
    alpha = krippendorff_alpha(counts)
    people = {person for answers in labels.several.values() for person, _ in answers.answers if person is not None}
    disagreeing = [
        {
            "task_id": task_id,
            "label": known.get(task_id),
            "ground_truth": answers.has_ground_truth,
            "agreement": round(float(share), 6),
            "answers": {
                name: [person for person, label in answers.answers if label == name]
                for name in names
                if any(label == name for _, label in answers.answers)
            },
        }
        for (task_id, answers), share in zip(labels.several.items(), pairs, strict=True)
        if share < 1
    ]
    disagreeing.sort(key=lambda item: (item["agreement"], item["task_id"]))
    return {
        "agreement": {
            "n_tasks": len(labels.several),
            "n_annotators": len(people),
            "krippendorff_alpha": None if alpha is None else round(alpha, 6),
            "mean_pairwise_agreement": round(float(pairs.mean()), 6),
        },
        "n_disagreements": len(disagreeing),
        "disagreements": disagreeing[:MAX_DISAGREEMENTS],
    }


def _counts(several: Mapping[int, SeveralAnswers]) -> tuple[NDArray[np.intp], list[str]]:
    """How many people gave each task each label (T, C), and the C labels."""
    names = sorted({label for answers in several.values() for _, label in answers.answers})
    column = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(several), len(names)), dtype=np.intp)
    for row, answers in enumerate(several.values()):
        for _, label in answers.answers:
            counts[row, column[label]] += 1
    return counts, names
