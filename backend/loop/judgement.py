"""What an evaluation shows of a head besides its figures: which classes it takes for which, whether it is as sure as it
is right, what it makes of the images still to label, and what random order would have given.

All of it is plain JSON in the version's record, for the dashboard.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.adapters.embedding_store import EmbeddingTable
from backend.errors import FitInterruptedError
from backend.learning.calibration import expected_calibration_error, reliability_bins
from backend.learning.confusion import confusion_matrix
from backend.learning.head import CrossValidation, Head, HeadSettings
from backend.learning.pool import Pool
from backend.learning.random_order import LEAST_LABELS, curve_sizes, random_curve
from backend.schema import TrainingLabels

RANDOM_ORDER_S = 1.5
"""Longest time for random order's curve; draws not ended by then are left out."""

GROWN = 1.1
"""It is measured again once there are so many times the labels."""

ON_VALIDATION = "the {n} validation images, of which the model has learned none"
OUT_OF_FOLD = (
    "{n} labeled images, each judged by a model that had not learned it; they were asked for because they are hard, so "
    "this looks worse than the other images would"
)

NO_SPLIT = (
    "unknown without validation images (VALIDATION_FILTER): estimates from the model's own predictions were up to 13 "
    "percentage points off on photos, and in either direction"
)
TOO_FEW = "unknown: it takes {least} labels and twice as many labeled validation images, and there are {labels} and {n}"
TOO_SLOW = "unknown: in {seconds:g} s it could not be measured"
MEASURED = (
    "measured: models learned so many of the {n} labeled validation images in random order and were judged on the "
    "others of them; right as far as these are a random part of all images, and known up to half their number"
)


@dataclass(frozen=True, eq=False)
class JudgedImages:
    """Images with a label that the head, or heads like it, had not learned: labels (N,), probabilities (N, C).

    basis: which they are, as the end of a sentence.
    """

    labels: Sequence[str]
    classes: Sequence[str]
    probabilities: NDArray[np.float64]
    basis: str


def judged_images(
    head: Head,
    labeled: Sequence[int],
    evaluation: CrossValidation | None,
    table: EmbeddingTable,
    labels: TrainingLabels,
) -> JudgedImages | None:
    """The validation images where there are any, else those of the cross-validation; None without either.

    `labeled` are the tasks of the evaluation's rows.
    """
    task_ids, rows = _known(table, labels.validation)
    if task_ids:
        given = [labels.validation[task_id] for task_id in task_ids]
        probabilities = head.predict_proba(table.embeddings[rows])
        return JudgedImages(given, head.classes, probabilities, ON_VALIDATION.format(n=len(given)))
    if evaluation is None:
        return None
    classes = sorted({labels.labels[task_id] for task_id in labeled})
    judged = np.flatnonzero(np.isfinite(evaluation.probabilities).all(axis=1))
    given = [labels.labels[labeled[row]] for row in judged.tolist()]
    return JudgedImages(given, classes, evaluation.probabilities[judged], OUT_OF_FOLD.format(n=len(given)))


def judgement_fields(judged: JudgedImages | None) -> dict[str, Any]:
    """The fields of a record about confusion and calibration."""
    if judged is None or not judged.labels:
        return {"confusion": None, "calibration": None}
    predicted = [judged.classes[column] for column in judged.probabilities.argmax(axis=1).tolist()]
    column = {name: number for number, name in enumerate(judged.classes)}
    targets = [column.get(label, -1) for label in judged.labels]
    confusion = confusion_matrix(judged.labels, predicted)
    bins = [
        {"confidence": round(item.confidence, 6), "accuracy": round(item.accuracy, 6), "n": item.n}
        for item in reliability_bins(judged.probabilities, targets)
    ]
    error = expected_calibration_error(judged.probabilities, targets)
    return {
        "confusion": {**asdict(confusion), "basis": judged.basis},
        "calibration": {"bins": bins, "error": round(error, 6), "basis": judged.basis},
    }


def predicted_counts(classes: Sequence[str], probabilities: NDArray[np.float64]) -> dict[str, int]:
    """How many images are predicted to be of each class, by their probabilities (N, C)."""
    counts = (
        np.bincount(probabilities.argmax(axis=1), minlength=len(classes)) if len(probabilities) else [0] * len(classes)
    )
    return {name: int(n) for name, n in zip(classes, counts, strict=True)}


def random_order(
    previous: Mapping[str, Any] | None,
    pool: Pool,
    table: EmbeddingTable,
    labels: TrainingLabels,
    settings: HeadSettings,
    *,
    n_labels: int,
    random_state: int,
    interrupted: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
) -> Mapping[str, Any] | None:
    """Random order's curve up to `n_labels`, or the `previous` one while there are hardly more labels.

    Also the previous one when a label interrupts it. Takes `RANDOM_ORDER_S` and one fit at most.
    """
    task_ids, rows = _known(table, labels.validation)
    sizes = curve_sizes(n_labels, len(task_ids))
    of_today = {"n_labels": n_labels, "n_validation": len(task_ids)}
    if not sizes:
        text = TOO_FEW.format(least=LEAST_LABELS, labels=n_labels, n=len(task_ids)) if task_ids else NO_SPLIT
        return {**of_today, "points": [], "note": text}
    if previous is not None and not _has_grown(previous, of_today, sizes):
        return previous
    until = clock() + RANDOM_ORDER_S
    try:
        points = random_curve(
            pool,
            rows,
            [labels.validation[task_id] for task_id in task_ids],
            settings,
            sizes=sizes,
            random_state=random_state,
            enough=lambda: clock() >= until,
            interrupted=interrupted,
        )
    except FitInterruptedError:
        return previous
    if not points:
        return {**of_today, "points": [], "note": TOO_SLOW.format(seconds=RANDOM_ORDER_S)}
    rounded = [
        {
            "labels_used": point.labels_used,
            "accuracy": round(point.accuracy, 6),
            "interval": [round(bound, 6) for bound in point.interval],
        }
        for point in points
    ]
    return {**of_today, "points": rounded, "note": MEASURED.format(n=len(task_ids))}


def _has_grown(previous: Mapping[str, Any], now: Mapping[str, int], sizes: Sequence[int]) -> bool:
    """Whether there is a tenth more to measure with or up to, or less to measure with than there was."""
    try:
        n_validation, points = int(previous["n_validation"]), previous["points"]
        last = max((int(point["labels_used"]) for point in points), default=0)
    except (KeyError, TypeError, ValueError):
        return True
    same_split = n_validation <= now["n_validation"] < GROWN * n_validation
    return not same_split or sizes[-1] >= GROWN * last


def _known(table: EmbeddingTable, labels: Mapping[int, str]) -> tuple[list[int], NDArray[np.intp]]:
    """The labeled tasks that have an embedding, ascending, and their rows."""
    task_ids = np.array(sorted(labels), dtype=np.int64)
    rows = table.rows_of(task_ids)
    return task_ids[rows >= 0].tolist(), rows[rows >= 0]
