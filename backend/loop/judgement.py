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
from backend.labels import Label, text_of
from backend.learning import label_sets
from backend.learning.calibration import calibration_error, reliability_bins
from backend.learning.confusion import confusion_matrix
from backend.learning.head import CrossValidation, Head, HeadSettings
from backend.learning.label_sets import membership, named_classes, set_figures
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

    threshold: see `learning.head.Head`. basis: which they are, as the end of a sentence.
    """

    labels: Sequence[Label]
    classes: Sequence[str]
    probabilities: NDArray[np.float64]
    basis: str
    threshold: float | None = None


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
        return JudgedImages(given, head.classes, probabilities, ON_VALIDATION.format(n=len(given)), head.threshold)
    if evaluation is None:
        return None
    classes = named_classes([labels.labels[task_id] for task_id in labeled])
    judged = np.flatnonzero(np.isfinite(evaluation.probabilities).all(axis=1))
    given = [labels.labels[labeled[row]] for row in judged.tolist()]
    basis = OUT_OF_FOLD.format(n=len(given))
    return JudgedImages(given, classes, evaluation.probabilities[judged], basis, evaluation.threshold)


def judgement_fields(judged: JudgedImages | None) -> dict[str, Any]:
    """The fields of a record about confusion and calibration; where images may have several labels, how good each is
    in place of the confusion: which set is taken for which would say little.
    """
    if judged is None or not judged.labels:
        return {"confusion": None, "calibration": None, "label_figures": None}
    predicted = label_sets.predicted(judged.classes, judged.probabilities, judged.threshold)
    confidence = label_sets.confidence(judged.probabilities, judged.threshold)
    is_right = np.array([guess == label for guess, label in zip(predicted, judged.labels, strict=True)])
    bins = [
        {"confidence": round(item.confidence, 6), "accuracy": round(item.accuracy, 6), "n": item.n}
        for item in reliability_bins(confidence, is_right)
    ]
    error = calibration_error(confidence, is_right)
    calibration = {"bins": bins, "error": round(error, 6), "basis": judged.basis}
    if judged.threshold is not None:
        return {"confusion": None, "calibration": calibration, "label_figures": label_figures(judged)}
    names, guesses = ([text_of(label) for label in labels] for labels in (judged.labels, predicted))
    confusion = {**asdict(confusion_matrix(names, guesses)), "basis": judged.basis}
    return {"confusion": confusion, "calibration": calibration, "label_figures": None}


def label_figures(judged: JudgedImages) -> dict[str, Any]:
    """How good the predicted sets are, as JSON; a label that no head has learned is one that it never predicts."""
    assert judged.threshold is not None
    unknown = sorted(set(named_classes(judged.labels)).difference(judged.classes))
    classes = [*judged.classes, *unknown]
    never = np.zeros((len(judged.labels), len(unknown)))
    has = membership(classes, judged.labels)
    figures = set_figures(np.hstack([judged.probabilities, never]), has, judged.threshold)
    by_label = zip(
        classes,
        figures.n_having.tolist(),
        figures.accuracy.tolist(),
        figures.f1.tolist(),
        figures.average_precision.tolist(),
        strict=True,
    )
    return {
        "n_images": figures.n_images,
        "exact_match": round(figures.exact_match, 6),
        "label_accuracy": round(figures.label_accuracy, 6),
        "macro_f1": _rounded(figures.macro_f1),
        "mean_average_precision": _rounded(figures.mean_average_precision),
        "threshold": judged.threshold,
        "labels": [
            {
                "label": name,
                "n_having": n_having,
                "accuracy": round(accuracy, 6),
                "f1": _rounded(f1),
                "average_precision": _rounded(average_precision),
            }
            for name, n_having, accuracy, f1, average_precision in sorted(by_label)
        ],
        "basis": judged.basis,
    }


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(value, 6)


def predicted_counts(
    classes: Sequence[str], probabilities: NDArray[np.float64], threshold: float | None = None
) -> dict[str, int]:
    """How many images are predicted to be of each class, or to have it (`threshold`), by their probabilities (N, C)."""
    if threshold is not None:
        counts = (probabilities >= threshold).sum(axis=0)
    elif len(probabilities):
        counts = np.bincount(probabilities.argmax(axis=1), minlength=len(classes))
    else:
        counts = np.zeros(len(classes), dtype=np.intp)
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


def _known(table: EmbeddingTable, labels: Mapping[int, Label]) -> tuple[list[int], NDArray[np.intp]]:
    """The labeled tasks that have an embedding, ascending, and their rows."""
    task_ids = np.array(sorted(labels), dtype=np.int64)
    rows = table.rows_of(task_ids)
    return task_ids[rows >= 0].tolist(), rows[rows >= 0]
