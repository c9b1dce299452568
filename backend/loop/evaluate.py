"""Evaluate: how good the published version is, what more labels would give, and how the next head is to be made.

Nobody waits for it: a label is in a published version first, and judged after. What a version says of its accuracy is
until then what the version before it said.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.adapters.jobs import Jobs
from backend.adapters.registry import Registry
from backend.config import Settings
from backend.errors import FitInterruptedError, VersionNotFoundError
from backend.learning.head import DEFAULT_STRENGTH, DETAIL_WEIGHTS, CrossValidation, Head, HeadSettings
from backend.learning.pool import DEFAULT_DETAIL_WEIGHT, Pool
from backend.loop.agreement import agreement_fields
from backend.loop.inputs import InputReader, Inputs
from backend.loop.judgement import judged_images, judgement_fields, predicted_counts, random_order
from backend.loop.ledger import READ_EVERYTHING, Ledger
from backend.loop.map import MapPredictions
from backend.loop.outlook import (
    MAX_SUSPECTS,
    carried_curve,
    extended_curve,
    foresee,
    list_suspects,
    same_labels_offered,
)
from backend.loop.rounds import Chosen, RoundHead, Stopwatch, evaluate_labels, unlabeled, window_reasons
from backend.loop.validation import Measurement, describe, measure
from backend.schema import CurvePoint, VersionRecord

logger = logging.getLogger(__name__)

_LABELED_BECAUSE_HARD = (
    "which were chosen because they are hard: usually pessimistic, and not to be compared from version to version"
)
CROSS_VALIDATED = f"cross-validated on the labeled tasks, {_LABELED_BECAUSE_HARD}"

WHOLE_SETS = "an image is right if all its labels are"

_CARRIED = (
    "accuracy", "accuracy_kind", "accuracy_interval", "log_loss", "cross_validated_accuracy", "calibration_error",
    "expected_accuracy", "validation_tasks", "validation_labels", "validation_note", "forecast", "n_suspects",
    "suspects", "chosen", "evaluated_labels", "evaluated_version", "agreement", "n_disagreements", "disagreements",
    "confusion", "calibration", "predicted_by_class", "random_order", "reasons", "label_figures",
)  # fmt: skip


def carried_evaluation(previous: VersionRecord | None, record: VersionRecord) -> dict[str, Any]:
    """The fields of a new record that stay what the version before said until the new one is evaluated.

    Nothing is carried on from another backbone, validation split or set of labels.
    """
    if previous is None or not same_labels_offered(previous.label_config, record.label_config):
        return {}
    curve = carried_curve(previous, fingerprint=record.fingerprint, validation_filter=record.validation_filter)
    carried: dict[str, Any] = {"learning_curve": [asdict(point) for point in curve]}
    same_split = previous.validation_filter == record.validation_filter
    if record.kind == previous.kind and previous.fingerprint == record.fingerprint and same_split:
        carried |= {name: getattr(previous, name) for name in _CARRIED}
    return carried


def kept_evaluation(source: VersionRecord, previous: VersionRecord | None, record: VersionRecord) -> dict[str, Any]:
    """The fields of a record whose head is `source`'s, until it is evaluated: what its source was found to be worth.

    The learning curve waits as it was in the version before. There is no forecast: nothing is learned.
    """
    curve = carried_evaluation(previous, record).get("learning_curve", [])
    return {**carried_evaluation(source, record), "learning_curve": curve, "forecast": None}


class Evaluator:
    """Judges what is published."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        registry: Registry,
        inputs: InputReader,
        ledger: Ledger,
        map_predictions: MapPredictions,
        settings: Settings,
    ) -> None:
        self._jobs = jobs
        self._registry = registry
        self._inputs = inputs
        self._ledger = ledger
        self._map_predictions = map_predictions
        self._settings = settings

    def evaluate(self, project_id: int) -> VersionRecord | None:
        """The published record with its evaluation; None when there is nothing to do, or something more urgent.

        A label that comes meanwhile interrupts it, and it is asked for again.
        """
        self._jobs.begin(project_id, "evaluate")
        record = self._registry.published_record(project_id)
        if record is None or record.evaluated_version == record.version:
            return None
        watch = Stopwatch()
        inputs = self._inputs.read(project_id, watch, news=False)
        if not self._ledger.is_true(project_id):
            logger.info("answers are read anew project=%d: Label Studio counts others than are known here", project_id)
            self._jobs.record_event(project_id, READ_EVERYTHING)
            self._jobs.request_retrain(project_id)
        if inputs.backbone.fingerprint != record.fingerprint:
            return None  # another backbone since: the retrain that follows makes another version
        try:
            head = self._registry.head(record)
        except VersionNotFoundError as exc:
            logger.error("not evaluated project=%d version=%s: %s", project_id, record.version, exc)
            return None
        try:
            with watch.stage("cross_validate"):
                chosen, evaluation = None, None
                if head is not None and record.head_of is None:
                    chosen, evaluation = evaluate_labels(
                        inputs.table,
                        inputs.pool,
                        inputs.labels,
                        self._settings,
                        seen=inputs.seen,
                        detail_weights=_ready_weights(inputs.pool, record),
                        interrupted=self._jobs.retrain_waits,
                    )
        except FitInterruptedError:
            self._jobs.request_evaluation(project_id)
            return None
        random = None
        if head is not None and record.head_of is None:
            with watch.stage("random_order"):
                random = self._random_order(record, inputs)
        with watch.stage("measure"):
            if head is not None and record.head_of is not None:
                judged = self._judged_again(record, inputs, head)
            else:
                judged = self._judged(record, inputs, head, chosen, evaluation, random)
        # Before it says that it is evaluated: who waits for that asks for the map next.
        with watch.stage("map"):
            self._map_predictions.keep(record, inputs, head)
        self._registry.update(judged)
        self._jobs.observe("evaluate", watch.seconds)
        logger.info(
            "evaluated project=%d version=%s labels=%d accuracy=%s took=%.2fs (%s)",
            project_id, record.version, judged.evaluated_labels,
            "-" if judged.accuracy is None else f"{judged.accuracy:.2f}", watch.total, watch,
        )  # fmt: skip
        outlook = judged.forecast
        if outlook and outlook["verdict"] != (record.forecast or {}).get("verdict"):
            logger.info("outlook project=%d verdict=%s: %s", project_id, outlook["verdict"], outlook["suggestion"])
        return judged

    def _judged(
        self,
        record: VersionRecord,
        inputs: Inputs,
        head: Head | None,
        chosen: Chosen | None,
        evaluation: CrossValidation | None,
        random: Mapping[str, Any] | None,
    ) -> VersionRecord:
        """The record with all that its evaluation says; `random`: what `random_order` found."""
        labels, table = inputs.labels, inputs.table
        n_labels = len(inputs.labeled)
        pool = unlabeled(table, labels)
        measured = measure(head, table, labels) if head else None
        probabilities = head.predict_proba(table.embeddings[pool]) if head else None
        expected = _expected_accuracy(head, probabilities)
        new = []
        if measured is not None and n_labels:
            new.append(CurvePoint("measured", n_labels, measured.accuracy, measured.n_tasks))
        if expected is not None and n_labels:
            new.append(CurvePoint("expected", n_labels, expected, n_labels))
        carried = carried_curve(record, fingerprint=record.fingerprint, validation_filter=record.validation_filter)
        curve = extended_curve(carried, new)
        suspects = list_suspects(head, inputs.labeled, evaluation, table, labels, confirmed=inputs.confirmed)
        return replace(
            record,
            accuracy=measured.accuracy if measured else evaluation.accuracy if evaluation else None,
            accuracy_kind=_of_sets(measured.kind if measured else _how_cross_validated(evaluation, inputs.seen), head),
            accuracy_interval=list(measured.interval) if measured else None,
            log_loss=evaluation.log_loss if evaluation else None,
            cross_validated_accuracy=evaluation.accuracy if evaluation else None,
            calibration_error=evaluation.calibration_error if evaluation else None,
            expected_accuracy=expected,
            **self._validated(inputs, measured, n_others=n_labels + len(pool)),
            **judgement_fields(judged_images(head, inputs.labeled, evaluation, table, labels) if head else None),
            **self._of_the_pool(record, inputs, head, pool, probabilities),
            random_order=random,
            learning_curve=[asdict(point) for point in curve],
            forecast=foresee(
                curve if head and len(pool) else [],
                target=self._settings.target_accuracy,
                horizon=self._settings.window_size,
                n_unlabeled=len(pool),
                of_sets=head is not None and head.threshold is not None,
            ),
            n_suspects=len(suspects),
            suspects=suspects[:MAX_SUSPECTS],
            chosen=asdict(chosen.settings) if chosen else None,
            evaluated_labels=n_labels,
            evaluated_version=record.version,
            **agreement_fields(labels),
        )

    def _judged_again(self, record: VersionRecord, inputs: Inputs, head: Head) -> VersionRecord:
        """The record of a version whose head is another's, with what can be said of that head anew.

        What was cross-validated, the settings chosen by it and the suspected labels are its source's: other heads would
        be judged here, trained on labels that this one has not learned.
        """
        labels, table = inputs.labels, inputs.table
        pool = unlabeled(table, labels)
        measured = measure(head, table, labels)
        probabilities = head.predict_proba(table.embeddings[pool])
        given = {**labels.labels, **labels.validation}
        suspects = [
            item
            for item in record.suspects
            if given.get(item["task_id"]) == item["label"] and item["task_id"] not in inputs.confirmed
        ]
        judged = replace(
            record,
            expected_accuracy=_expected_accuracy(head, probabilities),
            **self._validated(inputs, measured, n_others=len(inputs.labeled) + len(pool)),
            **self._of_the_pool(record, inputs, head, pool, probabilities),
            n_suspects=record.n_suspects - (len(record.suspects) - len(suspects)),
            suspects=suspects,
            evaluated_version=record.version,
            **agreement_fields(labels),
        )
        if measured is None:
            return judged
        return replace(
            judged,
            accuracy=measured.accuracy,
            accuracy_kind=_of_sets(measured.kind, head),
            accuracy_interval=list(measured.interval),
            **judgement_fields(judged_images(head, [], None, table, labels)),
        )

    def _of_the_pool(
        self,
        record: VersionRecord,
        inputs: Inputs,
        head: Head | None,
        pool: NDArray[np.intp],
        probabilities: NDArray[np.float64] | None,
    ) -> dict[str, Any]:
        """The fields about the images still to label, rows `pool` of the table with these probabilities.

        Nothing is counted in a project that is divided into shards: what is at hand is mostly what was worth a label.
        """
        if head is None or probabilities is None:
            return {"predicted_by_class": None, "reasons": {}}
        detail_weight = DEFAULT_DETAIL_WEIGHT if record.detail_weight is None else record.detail_weight
        seeded = set(record.seed_task_ids)
        found = window_reasons(
            record.acquisition,
            inputs.table,
            inputs.pool,
            inputs.labels,
            [task_id for task_id in record.window if task_id not in seeded],
            RoundHead(head, detail_weight),
            pool,
            probabilities,
        )
        told: dict[str, Any] = {
            str(task_id): {"factor": reason.factor, "share": round(reason.share, 3)}
            for task_id, reason in found.items()
        }
        told |= {str(task_id): {"factor": "skipped"} for task_id in inputs.labels.skipped.intersection(record.window)}
        counts = None if inputs.n_shards else predicted_counts(head.classes, probabilities, head.threshold)
        return {"predicted_by_class": counts, "reasons": told}

    def _random_order(self, record: VersionRecord, inputs: Inputs) -> Mapping[str, Any] | None:
        detail_weight = DEFAULT_DETAIL_WEIGHT if record.detail_weight is None else record.detail_weight
        strength = DEFAULT_STRENGTH if record.strength is None else record.strength
        return random_order(
            record.random_order,
            inputs.pool,
            inputs.table,
            inputs.labels,
            HeadSettings(detail_weight, strength),
            n_labels=len(inputs.labeled),
            random_state=self._settings.random_state,
            interrupted=self._jobs.retrain_waits,
        )

    def _validated(self, inputs: Inputs, measured: Measurement | None, *, n_others: int) -> dict[str, Any]:
        """The fields about the validation split; `n_others` as for `describe`."""
        wanted, labels, split = self._settings.validation_filter, inputs.labels, inputs.split
        return {
            "validation_tasks": len((split.task_ids if split else frozenset()).union(labels.validation)),
            "validation_labels": measured.n_tasks if measured else 0,
            "validation_note": describe(wanted, labels, split, measured, n_others=n_others) if wanted else None,
        }


def _expected_accuracy(head: Head | None, probabilities: NDArray[np.float64] | None) -> float | None:
    """The mean confidence over the images still to label, of their probabilities (U, C); None without any."""
    if head is None or probabilities is None or not len(probabilities):
        return None
    return float(head.confidence(probabilities).mean())


def _ready_weights(pool: Pool, record: VersionRecord) -> Sequence[float]:
    """Weights of the details that the next head can have without a wait; the others are being prepared."""
    in_use = DEFAULT_DETAIL_WEIGHT if record.detail_weight is None else record.detail_weight
    return [weight for weight in DETAIL_WEIGHTS if weight == in_use or pool.is_ready(weight)]


def _of_sets(kind: str | None, head: Head | None) -> str | None:
    """What `accuracy_kind` says, with what counts as right where images may have several labels."""
    return f"{kind}; {WHOLE_SETS}" if kind and head is not None and head.threshold is not None else kind


def _how_cross_validated(evaluation: CrossValidation | None, seen: frozenset[int]) -> str | None:
    if evaluation is None or not seen:
        return CROSS_VALIDATED if evaluation else None
    which = f"the {evaluation.n_evaluated} labeled tasks that the fine-tuned backbone was not trained on"
    return f"cross-validated on {which}, {_LABELED_BECAUSE_HARD}"
