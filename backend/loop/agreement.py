"""Agreement: how much the label counts that several people came to, and where they disagree.

People are known by Label Studio's ids only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.labels import NONE_OF_THESE, Label, text_of
from backend.learning.annotators import krippendorff_alpha, label_probabilities, label_weights, pairwise_agreement
from backend.learning.label_sets import membership, named_classes
from backend.schema import SeveralAnswers, TrainingLabels

_SAME = 1e-6  # probabilities that differ by less are equal

MAX_DISAGREEMENTS = 50
"""Disagreements kept in a record, the greatest ones; more are only counted."""


def weighed(labels: TrainingLabels, offered: Sequence[str]) -> TrainingLabels:
    """The same labels; those of tasks that several people answered are the likeliest, and count by how likely they are.

    How likely is what all such answers say together of how often each person is right, see `label_probabilities` and
    `label_weights` of `learning.annotators`. Ground truth stays and counts whole, and so does a single answer. Who is
    unknown counts as somebody else each time.

    Where an image may have several labels, each of them is a question of its own to each image.
    """
    several = {task_id: answers for task_id, answers in labels.several.items() if task_id in labels.labels}
    if all(answers.has_ground_truth for answers in several.values()):
        return labels
    if any(not isinstance(labels.labels[task_id], str) for task_id in several):
        return _sets_weighed(labels, several, offered)
    column: dict[Label, int] = {label: index for index, label in enumerate(offered)}
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
    found = dict(labels.labels)
    weights: dict[int, float | Mapping[str, float]] = {}
    for row, task_id in enumerate(several):
        if truths[row] >= 0:
            continue
        likeliest = probabilities[row].max()
        # What people said weighs the same for two labels: then the majority's, or of those the last one, stays.
        if probabilities[row, column[found[task_id]]] < likeliest - _SAME:
            found[task_id] = offered[int(probabilities[row].argmax())]
        weights[task_id] = float(label_weights(likeliest))
    return replace(labels, labels=found, weights=weights)


def _sets_weighed(
    labels: TrainingLabels, several: Mapping[int, SeveralAnswers], offered: Sequence[str]
) -> TrainingLabels:
    """`weighed` where labels are sets: a question is a task and a label, its answers are no (0) and yes (1)."""
    n_labels = len(offered)
    people: dict[object, int] = {}
    annotators, given = [], []  # of each answer, and which of the labels offered it has
    questions = []
    for row, (task_id, answers) in enumerate(several.items()):
        for number, (person, label) in enumerate(answers.answers):
            who = person if person is not None else (task_id, number)
            annotators.append(people.setdefault(who, len(people)))
            given.append(label)
            questions.append(row * n_labels + np.arange(n_labels))
    known = membership(offered, [labels.labels[task_id] for task_id in several])  # (T, C)
    settled = np.array([answers.has_ground_truth for answers in several.values()])
    probabilities, _ = label_probabilities(
        np.concatenate(questions),
        np.repeat(annotators, n_labels),
        membership(offered, given).ravel().astype(np.intp),
        2,
        np.where(settled[:, None], known, -1).ravel(),
    )
    yes = probabilities[:, 1].reshape(-1, n_labels)
    # What people said weighs the same for yes and no: then the majority's, or of those the last one, stays.
    likeliest = np.where(np.abs(yes - 0.5) < _SAME, known, yes > 0.5)
    trust = label_weights(np.maximum(yes, 1 - yes))
    found = dict(labels.labels)
    weights: dict[int, float | Mapping[str, float]] = {}
    for row, task_id in enumerate(several):
        if settled[row]:
            continue
        found[task_id] = tuple(sorted(name for name, has in zip(offered, likeliest[row], strict=True) if has))
        weights[task_id] = dict(zip(offered, trust[row].tolist(), strict=True))
    return replace(labels, labels=found, weights=weights)


def agreement_fields(labels: TrainingLabels) -> dict[str, Any]:
    """The fields of a record about several people's answers: how far they agree, and the tasks on which they do not.

    `krippendorff_alpha` is null where everybody always gave the same label: then chance would give it, too. Where an
    image may have several labels the figures are of each label of each task, which somebody has given to some task:
    whether the task has it. `by_label` tells them for each label.
    """
    if not labels.several:
        return {"agreement": None, "n_disagreements": 0, "disagreements": []}
    known = {**labels.labels, **labels.validation}
    counts, names = _counts(labels.several)  # (T, Q, A)
    questions = counts.reshape(-1, counts.shape[2])
    pairs = pairwise_agreement(questions).reshape(len(counts), -1).mean(axis=1)
    people = {person for answers in labels.several.values() for person, _ in answers.answers if person is not None}
    disagreeing = [
        {
            "task_id": task_id,
            "label": text_of(known[task_id]) if task_id in known else None,
            "ground_truth": answers.has_ground_truth,
            "agreement": round(float(share), 6),
            "answers": {
                text_of(name): [person for person, label in answers.answers if label == name]
                for name in sorted({label for _, label in answers.answers}, key=text_of)
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
            **_figures(questions),
            **({"by_label": {name: _figures(counts[:, at]) for at, name in enumerate(names)}} if names else {}),
        },
        "n_disagreements": len(disagreeing),
        "disagreements": disagreeing[:MAX_DISAGREEMENTS],
    }


def _figures(counts: NDArray[np.intp]) -> dict[str, float | None]:
    """How far answers (T, A) agree."""
    alpha = krippendorff_alpha(counts)
    return {
        "krippendorff_alpha": None if alpha is None else round(alpha, 6),
        "mean_pairwise_agreement": round(float(pairwise_agreement(counts).mean()), 6),
    }


def _counts(several: Mapping[int, SeveralAnswers]) -> tuple[NDArray[np.intp], list[str]]:
    """How many people gave each answer to each question of each task (T, Q, A).

    A task is one question, which class it is, and no labels are named; or as many as labels are given anywhere, which
    are named: has it the label (1) or not (0).
    """
    given = [label for answers in several.values() for _, label in answers.answers]
    rows = [row for row, answers in enumerate(several.values()) for _ in answers.answers]
    if all(isinstance(label, str) for label in given):
        classes = sorted(set(given), key=text_of)
        column = {name: index for index, name in enumerate(classes)}
        counts = np.zeros((len(several), 1, len(classes)), dtype=np.intp)
        for row, label in zip(rows, given, strict=True):
            counts[row, 0, column[label]] += 1
        return counts, []
    names = named_classes(given) or (NONE_OF_THESE,)
    has = membership(names, given).astype(np.intp)
    counts = np.zeros((len(several), len(names), 2), dtype=np.intp)
    np.add.at(counts, rows, np.stack([1 - has, has], axis=2))
    return counts, list(names)
