"""What a version says beyond its scores: how accuracy grew, what more labels would give, which labels look wrong."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from backend.adapters.embedding_store import EmbeddingTable
from backend.choices import parse_labeling_config
from backend.errors import LabelingConfigError
from backend.labels import Label, text_of
from backend.learning.head import CrossValidation, Head
from backend.learning.label_sets import membership
from backend.learning.learning_curve import confidence_error, forecast
from backend.learning.suspects import Suspect, find_set_suspects, find_suspects
from backend.schema import CurvePoint, TrainingLabels, VersionRecord

logger = logging.getLogger(__name__)

CURVE_STEP = 1.05
"""Of the points within one such step of labels only that with the most is kept: 240 steps lead to 100,000 labels."""

MAX_SUSPECTS = 50
"""Suspects kept in a record, the likeliest ones; more are only counted."""

BASIS = {
    "measured": "accuracy measured on the validation tasks",
    "expected": (
        "the mean confidence over the images still to label, an estimate: on photos it was up to 4 percentage "
        "points off on average, at times more; a validation split (VALIDATION_FILTER) tells better"
    ),
}
"""What a curve is made of, by the kind of its points."""


def carried_curve(
    previous: VersionRecord | None, *, fingerprint: str, validation_filter: str | None
) -> list[CurvePoint]:
    """The points of an earlier version that a new one may go on from; none if it saw images with another backbone.

    Measured points count only under the same validation filter. Damaged ones are left out.
    """
    if previous is None or previous.fingerprint != fingerprint:
        return []
    points = [point for raw in previous.learning_curve if (point := CurvePoint.from_json(raw)) is not None]
    same_split = previous.validation_filter == validation_filter
    return [point for point in points if point.kind != "measured" or same_split]


def same_labels_offered(one: str, other: str) -> bool:
    """Whether two labeling configs offer the same labels; accuracies under different ones are no curve."""
    if one == other:
        return True
    try:
        before, after = parse_labeling_config(one), parse_labeling_config(other)
    except LabelingConfigError:
        return False
    return set(before.labels) == set(after.labels) and before.several == after.several


def extended_curve(carried: Iterable[CurvePoint], new: Iterable[CurvePoint]) -> list[CurvePoint]:
    """The carried points with the new ones, ascending in labels within each kind.

    A point with as many labels or more describes a labeled set that is no more: labels were withdrawn or changed.
    """
    curve = list(carried)
    for point in new:
        curve = [old for old in curve if old.kind != point.kind or old.labels_used < point.labels_used]
        curve.append(point)
    # The steps lie fixed: were they counted from the newest point, each version would drop the one before it.
    by_step = {
        (point.kind, int(math.log(point.labels_used) / math.log(CURVE_STEP))): point
        for point in sorted(curve, key=lambda point: (point.kind, point.labels_used))
    }
    return list(by_step.values())


SETS_BASIS = (
    "the mean confidence, over the images still to label, that all labels of an image are right, an estimate: on pairs "
    "of photos it was about 8 percentage points off; a validation split (VALIDATION_FILTER) tells better"
)
"""What a curve of expected points is made of where images may have several labels."""


def foresee(
    curve: Sequence[CurvePoint], *, target: float, horizon: int, n_unlabeled: int, of_sets: bool = False
) -> dict[str, Any] | None:
    """The forecast from the measured points if they say anything, else from the expected ones; None without points.

    Cross-validated accuracy is never extrapolated: the labels it is measured on grow harder from round to round, and
    it falls while the model improves. `horizon` is how many labels come next, if `n_unlabeled` images are as many.
    `of_sets`: images may have several labels.
    """
    said: dict[str, Any] | None = None
    for kind in ("measured", "expected"):
        points = [point for point in curve if point.kind == kind]
        if not points or (said is not None and said["verdict"] != "unknown"):
            continue
        found = forecast(
            [point.labels_used for point in points],
            [point.accuracy for point in points],
            [point.n_evaluated for point in points],
            target=target,
            horizon=max(1, min(horizon, n_unlabeled)),
            n_unlabeled=n_unlabeled,
            shared_error=confidence_error(of_sets=of_sets) if kind == "expected" else 0.0,
        )
        if said is None or found.verdict != "unknown":
            stop = {"target_reached": True, "little_gain": True, "go_on": False}.get(found.verdict)
            said = {
                **asdict(found),
                "stop": stop,
                "basis": SETS_BASIS if of_sets and kind == "expected" else BASIS[kind],
            }
    return said


def list_suspects(
    head: Head | None,
    labeled: Sequence[int],
    evaluation: CrossValidation | None,
    table: EmbeddingTable,
    labels: TrainingLabels,
    confirmed: Collection[int],
) -> list[dict[str, Any]]:
    """All suspected labels, the likeliest error first: trained-on ones judged out of fold, validation ones by the head.

    `labeled` are the tasks of the evaluation's rows. Labels in `confirmed` (two annotations agree on them: somebody
    looked again) are not listed. Ground truth confirms nothing, for Label Studio takes every imported annotation for it
    unless told otherwise.
    """
    if head is None:
        return []
    validation = [task_id for task_id, row in _rows(table, sorted(labels.validation)) if row >= 0]
    judged: list[tuple[Sequence[int], Mapping[int, Label], Any]] = [
        (validation, labels.validation, head.predict_proba(table.embeddings[table.rows_of(validation)]))
    ]
    if evaluation is not None:
        judged.append((labeled, labels.labels, evaluation.probabilities))
    found = []
    for task_ids, given, probabilities in judged:
        for suspect in _suspects(head, [given[task_id] for task_id in task_ids], probabilities):
            task_id = task_ids[suspect.row]
            if task_id in confirmed:
                continue
            found.append(
                {
                    "task_id": task_id,
                    "label": text_of(given[task_id]),
                    "suggested_label": text_of(_corrected(given[task_id], head.classes[suspect.suggested])),
                    "probability": round(suspect.probability, 6),
                    "suggested_probability": round(suspect.suggested_probability, 6),
                }
            )
    return sorted(found, key=lambda item: (item["probability"], item["task_id"]))


def _suspects(head: Head, given: Sequence[Label], probabilities: Any) -> list[Suspect]:
    has = membership(head.classes, given)
    if head.threshold is not None:
        return find_set_suspects(probabilities, has)
    return find_suspects(probabilities, np.where(has.any(axis=1), has.argmax(axis=1), -1))


def _corrected(given: Label, name: str) -> Label:
    """The class of that name; of a set, the same with it, or without it if it has it."""
    return name if isinstance(given, str) else tuple(sorted(set(given).symmetric_difference([name])))


def _rows(table: EmbeddingTable, task_ids: Sequence[int]) -> Iterable[tuple[int, int]]:
    return zip(task_ids, table.rows_of(task_ids).tolist(), strict=True)
