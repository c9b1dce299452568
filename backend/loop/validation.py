"""The validation split: labeled tasks kept aside to measure every version on, never selected and never trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from backend.adapters.embedding_store import EmbeddingTable
from backend.labels import names_of
from backend.learning.head import Head
from backend.learning.intervals import wilson_interval
from backend.schema import AnnotatedTask, TrainingLabels, ValidationFilter, ValidationSplit


@dataclass(frozen=True)
class Measurement:
    """How a head did on validation tasks it never saw: on how many, and of how many it was right; of a set of labels,
    all of it must be.

    unknown_classes: labels of the split that the head has never been trained on → how many tasks have them; these
    `n_unknown` tasks count as wrong.
    """

    n_tasks: int
    n_right: int
    unknown_classes: Mapping[str, int]
    n_unknown: int

    @property
    def kind(self) -> str:
        """How the accuracy was come by, in words."""
        return f"measured on {self.n_tasks} validation tasks"

    @property
    def accuracy(self) -> float:
        """Share of the tasks of which the head is right, 0..1."""
        return self.n_right / self.n_tasks

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy, for a split drawn at random."""
        return wilson_interval(self.n_right, self.n_tasks)


def keep_aside(
    labels: TrainingLabels,
    annotated: Sequence[AnnotatedTask],
    wanted: ValidationFilter,
    split: ValidationSplit | None,
    embedded: Sequence[int],
) -> TrainingLabels:
    """The same labels with those of the validation split moved to `validation`, and all its tasks to `reserved`.

    `split` is what the last listing of tasks said, None for a filter that does not look at data. Tasks of `embedded`
    that are newer than the listing are reserved until the next one says whether they belong to the split.
    """
    if wanted.field:
        inside = {item.task.id for item in annotated if wanted.holds(item.task.fields)}
    else:
        inside = ground_truth_tasks(annotated)
    outside = {item.task.id for item in annotated} - inside
    reserved = set(inside)
    if split is not None:
        reserved |= split.task_ids - outside  # the annotations were read later than the listing
        reserved |= {task_id for task_id in embedded if task_id > split.newest} - outside
    return replace(
        labels,
        labels={task_id: label for task_id, label in labels.labels.items() if task_id not in inside},
        validation={task_id: label for task_id, label in labels.labels.items() if task_id in inside},
        reserved=frozenset(reserved),
    )


def ground_truth_tasks(annotated: Iterable[AnnotatedTask]) -> set[int]:
    """The tasks with a submitted annotation that is marked as ground truth."""
    return {
        item.task.id
        for item in annotated
        if any(annotation.ground_truth and not annotation.was_cancelled for annotation in item.annotations)
    }


def measure(head: Head, table: EmbeddingTable, labels: TrainingLabels) -> Measurement | None:
    """The head's accuracy on the validation tasks that have an embedding; None without any."""
    task_ids = np.array(sorted(labels.validation), dtype=np.int64)
    rows = table.rows_of(task_ids)
    task_ids, rows = task_ids[rows >= 0], rows[rows >= 0]
    if len(rows) == 0:
        return None
    truth = [labels.validation[task_id] for task_id in task_ids.tolist()]
    found = head.predicted(head.predict_proba(table.embeddings[rows]))
    n_right = sum(guess == label for guess, label in zip(found, truth, strict=True))
    unknown = [[name for name in names_of(label) if name not in head.classes] for label in truth]
    by_class = Counter(name for names in unknown for name in names)
    return Measurement(len(rows), n_right, by_class, sum(map(bool, unknown)))


def describe(
    wanted: ValidationFilter,
    labels: TrainingLabels,
    split: ValidationSplit | None,
    measured: Measurement | None,
    *,
    n_others: int,
) -> str | None:
    """What keeps the split from being a full measure, as one sentence; None when nothing does.

    `n_others` is how many usable tasks are outside the split, labeled or not.
    """
    if measured is not None and measured.unknown_classes:
        named = ", ".join(f"{label!r} ({n})" for label, n in sorted(measured.unknown_classes.items()))
        return (
            f"{measured.n_unknown} of {measured.n_tasks} validation tasks have a class no training "
            f"label has yet and count as wrong: {named}"
        )
    if measured is not None:
        return None
    if labels.reserved and n_others == 0:
        return f"no usable task is outside {wanted}, so there is none to label and train on: narrow VALIDATION_FILTER"
    if labels.validation:
        return (
            f"{len(labels.validation)} validation tasks are labeled; they are measured once two classes have training "
            "labels and the images are embedded"
        )
    if split is not None and not split.task_ids:
        return f"no task has VALIDATION_FILTER's {wanted}: correct the filter, or import tasks with that value"
    if split is not None:
        return f"none of the {len(split.task_ids)} tasks with {wanted} has a usable label: {how_to_label(wanted)}"
    return f"no task has a ground-truth annotation with a usable label: {how_to_label(wanted)}"


def how_to_label(wanted: ValidationFilter) -> str:
    """How a person gives the split its labels."""
    if wanted.field:
        return "label them in a Data Manager tab filtered by it, with Label Tasks As Displayed"
    return "set ground_truth on some annotations, when importing them or through Label Studio's API"
