"""Retrain: read every label from Label Studio, fit, evaluate, save, score the pool, push, publish last."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime

from backend.adapters.backbones import Backbone
from backend.adapters.embedding_store import EmbeddingTable
from backend.adapters.jobs import Jobs, ProjectLock
from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.registry import Registry
from backend.choices import ChoicesConfig, agreed_tasks, parse_labeling_config, read_labels
from backend.config import Settings
from backend.errors import LabelStudioError
from backend.learning.head import CrossValidation
from backend.loop.backbones import BACKBONE_WARNING, ProjectBackbones
from backend.loop.embed import Embedder, missing_tasks
from backend.loop.finetune import Finetuner
from backend.loop.outlook import (
    MAX_SUSPECTS,
    carried_curve,
    extended_curve,
    foresee,
    list_suspects,
    same_labels_offered,
)
from backend.loop.projects import register_project
from backend.loop.rounds import Pools, Round, Stopwatch, plan_round, trainable
from backend.loop.seed import Seed
from backend.loop.validation import Measurement, describe, keep_aside, measure
from backend.schema import AnnotatedTask, CurvePoint, Project, QueueEntry, TrainingLabels, VersionRecord

logger = logging.getLogger(__name__)

EMBED_IN_JOB = 256
"""Labeled tasks without embedding that a retrain embeds itself; more than that wait for the embedding jobs."""

RECORDED_BEFORE = "typical_coreset"
"""The seed strategy of versions whose record does not name it: there was no other."""

_LABELED_BECAUSE_HARD = (
    "which were chosen because they are hard: usually pessimistic, and not to be compared from version to version"
)
CROSS_VALIDATED = f"cross-validated on the labeled tasks, {_LABELED_BECAUSE_HARD}"


class Trainer:
    """Turns the labels of a project into its next published version."""

    def __init__(
        self,
        *,
        label_studio: LabelStudioClient,
        jobs: Jobs,
        registry: Registry,
        embedder: Embedder,
        backbones: ProjectBackbones,
        finetuner: Finetuner,
        settings: Settings,
        now: Callable[[], datetime],
    ) -> None:
        self._label_studio = label_studio
        self._jobs = jobs
        self._registry = registry
        self._embedder = embedder
        self._backbones = backbones
        self._finetuner = finetuner
        self._settings = settings
        self._now = now
        self._pools = Pools()

    def retrain(self, project_id: int) -> VersionRecord | None:
        """The new published version; None when nothing changed since the last one (or nothing is embedded yet).

        A crash at any point leaves the old version published and serving.
        """
        request = self._jobs.begin_retrain(project_id)
        with self._jobs.project_lock(project_id) as lock:
            try:
                record = self._make_version(project_id, lock, forced=request.forced)
            except LabelStudioError as exc:
                # Predictions for a task deleted since it was embedded are refused, all of them.
                if exc.status != 400 or not self._embedder.forget_deleted(project_id):
                    raise
                record = self._make_version(project_id, lock, forced=request.forced)
            self._jobs.answer_retrain(project_id, request)
        if record is not None:
            self._jobs.request_pruning(project_id)
        return record

    def _make_version(self, project_id: int, lock: ProjectLock, *, forced: bool) -> VersionRecord | None:
        watch = Stopwatch()
        # Asked once: it may change at any time, and all of a version is made with the same.
        current = self._backbones.current(project_id)
        backbone = current.backbone
        self._jobs.set_note(project_id, BACKBONE_WARNING, current.warning)
        with watch.stage("read_labels"):
            project = self._label_studio.project(project_id)
            config = parse_labeling_config(project.label_config)
            register_project(self._registry, project)
            wanted = self._settings.validation_filter
            fields = wanted.fields if wanted else ()
            annotated = self._label_studio.annotated_tasks(project_id, config.image_field, fields=fields)
            labels = read_labels(config, annotated)
            confirmed = agreed_tasks(config, annotated, labels)
            split = self._embedder.validation_split(project_id, config.image_field)
        with watch.stage("embeddings"):
            table = self._table(project_id, backbone, annotated, labels)
        if wanted is not None:
            labels = keep_aside(labels, annotated, wanted, split, table.task_ids.tolist())
        labeled = trainable(table, labels)
        self._finetuner.request_if_due(project_id, len(labeled))
        digest = self._digest(project, backbone, annotated, table, labels)
        previous = self._registry.published_record(project_id)
        if len(table.task_ids) == 0 or (previous and previous.inputs_digest == digest and not forced):
            logger.info(
                "nothing new project=%d labels=%d embedded=%d", project_id, len(labels.labels), len(table.task_ids)
            )
            return None
        if (
            previous is None
            and len({labels.labels[task_id] for task_id in labeled}) < 2
            and len(table.references) < project.n_tasks
        ):
            # The first batch is chosen once, from all images; the last of them to be embedded asks again.
            logger.info(
                "first batch waits project=%d embedded=%d of=%d", project_id, len(table.references), project.n_tasks
            )
            return None
        plan = plan_round(
            table,
            self._pools.pool(table, backbone),
            labels,
            self._settings,
            n_classes=len(config.labels),
            previous_seed=self._previous_seed(previous, backbone),
            watch=watch,
            seen=current.seen,
        )
        fitted, seed = plan.fitted, plan.seed
        evaluation = fitted.evaluation if fitted else None
        with watch.stage("evaluate"):
            measured = measure(fitted.head, table, labels) if fitted else None
            expected = float(plan.scores.probabilities.max(axis=1).mean()) if plan.scores and plan.pool else None
            curve = self._curve(project, backbone, previous, len(labeled), measured, expected)
            outlook = foresee(
                curve if fitted and plan.pool else [],
                target=self._settings.target_accuracy,
                horizon=self._settings.window_size,
                n_unlabeled=len(plan.pool),
            )
            suspects = list_suspects(plan, table, labels, confirmed=confirmed)
        entries = self._entries(config, plan)
        version = self._registry.new_version(project_id, len(labeled), self._now())
        record = VersionRecord(
            version=version,
            kind="model" if fitted else "seed",
            created_at=self._now().isoformat(),
            project_id=project_id,
            label_config=project.label_config,
            classes=list(fitted.head.classes) if fitted else sorted({labels.labels[task_id] for task_id in labeled}),
            labels_used=len(labeled),
            labels_by_class=dict(Counter(labels.labels[task_id] for task_id in labeled)),
            ignored_labels={str(task_id): reason for task_id, reason in self._ignored(labels, table).items()},
            accuracy=measured.accuracy if measured else evaluation.accuracy if evaluation else None,
            accuracy_kind=measured.kind if measured else _how_cross_validated(evaluation, current.seen),
            log_loss=evaluation.log_loss if evaluation else None,
            strength=fitted.head.strength if fitted else None,
            acquisition=self._settings.acquisition,
            backbone=backbone.name,
            fingerprint=backbone.fingerprint,
            random_state=self._settings.random_state,
            pool_size=len(plan.pool),
            window=[entry.task_id for entry in entries],
            seed_task_ids=list(seed.task_ids) if seed else [],
            seed_strategy=seed.strategy if seed else None,
            seed_engine=seed.engine if seed else None,
            seed_engine_reason=seed.reason if seed else None,
            inputs_digest=digest,
            stage_seconds=watch.seconds,
            accuracy_interval=list(measured.interval) if measured else None,
            cross_validated_accuracy=evaluation.accuracy if evaluation else None,
            expected_accuracy=expected,
            validation_filter=str(wanted) if wanted else None,
            validation_tasks=len((split.task_ids if split else frozenset()).union(labels.validation)),
            validation_labels=measured.n_tasks if measured else 0,
            validation_note=(
                describe(wanted, labels, split, measured, n_others=len(labeled) + len(plan.pool)) if wanted else None
            ),
            learning_curve=[asdict(point) for point in curve],
            forecast=outlook,
            n_suspects=len(suspects),
            suspects=suspects[:MAX_SUSPECTS],
            calibration_error=evaluation.calibration_error if evaluation else None,
            temperature=fitted.temperature if fitted else None,
            detail_weight=fitted.detail_weight if fitted else None,
        )
        with watch.stage("save"):
            self._registry.save(record, fitted.head if fitted else None)
        with watch.stage("push"):
            lock.check()
            self._push(project_id, version, entries)
        with watch.stage("publish"):
            lock.check()
            self._registry.publish(project_id, version)
        logger.info(
            "retrained project=%d version=%s labels=%d pool=%d accuracy=%s took=%.2fs (%s)",
            project_id, version, len(labeled), len(plan.pool),
            "-" if record.accuracy is None else f"{record.accuracy:.2f}", watch.total, watch,
        )  # fmt: skip
        said_before = previous.forecast if previous else None
        if outlook and outlook["verdict"] != (said_before or {}).get("verdict"):
            logger.info("outlook project=%d verdict=%s: %s", project_id, outlook["verdict"], outlook["suggestion"])
        return record

    def _curve(
        self,
        project: Project,
        backbone: Backbone,
        previous: VersionRecord | None,
        n_labels: int,
        measured: Measurement | None,
        expected: float | None,
    ) -> list[CurvePoint]:
        """The learning curve up to this version, handed from record to record, for old records are pruned."""
        wanted = self._settings.validation_filter
        # A published record that cannot be read costs no history: that of the version before is nearly the same.
        before = previous or self._registry.newest_record(project.id)
        if before is not None and not same_labels_offered(before.label_config, project.label_config):
            before = None
        carried = carried_curve(
            before, fingerprint=backbone.fingerprint, validation_filter=str(wanted) if wanted else None
        )
        new = []
        if measured is not None and n_labels:
            new.append(CurvePoint("measured", n_labels, measured.accuracy, measured.n_tasks))
        if expected is not None and n_labels:
            new.append(CurvePoint("expected", n_labels, expected, n_labels))
        return extended_curve(carried, new)

    def _table(
        self, project_id: int, backbone: Backbone, annotated: Sequence[AnnotatedTask], labels: TrainingLabels
    ) -> EmbeddingTable:
        """The project's embeddings, with those of labeled tasks that came faster than the embedding jobs."""
        table = self._embedder.table(project_id, backbone.fingerprint, backbone.dim)
        unknown = missing_tasks(table, [item.task for item in annotated if item.task.id in labels.labels])
        if not unknown:
            return table
        self._embedder.embed_now(project_id, unknown[:EMBED_IN_JOB], backbone)
        if len(unknown) > EMBED_IN_JOB:
            self._jobs.request_embedding(project_id)
        return self._embedder.table(project_id, backbone.fingerprint, backbone.dim)

    def _previous_seed(self, previous: VersionRecord | None, backbone: Backbone) -> Seed | None:
        """The first batch of the published version, if it was chosen from embeddings of the same backbone.

        Before there is a head, a batch of another strategy than that of the settings is chosen anew.
        """
        if previous is None or not previous.seed_engine:
            return None
        if previous.fingerprint != backbone.fingerprint:
            return None
        strategy = previous.seed_strategy or RECORDED_BEFORE
        if previous.kind == "seed" and strategy != self._settings.seed_strategy:
            return None
        return Seed(previous.seed_task_ids, strategy, previous.seed_engine, previous.seed_engine_reason)

    @staticmethod
    def _entries(config: ChoicesConfig, plan: Round) -> list[QueueEntry]:
        rows = {task_id: row for row, task_id in enumerate(plan.pool)}
        return [
            QueueEntry(task_id, queue_score, plan.scores.result(config, rows[task_id]) if plan.scores else [])
            for task_id, queue_score in plan.window
        ]

    def _push(self, project_id: int, version: str, entries: Sequence[QueueEntry]) -> None:
        if not entries:
            logger.info("queue empty project=%d: every usable task is labeled", project_id)
            return
        self._label_studio.push_predictions(project_id, version, entries)
        self._label_studio.activate_version(project_id, version)

    def _digest(
        self,
        project: Project,
        backbone: Backbone,
        annotated: Sequence[AnnotatedTask],
        table: EmbeddingTable,
        labels: TrainingLabels,
    ) -> str:
        """Identity of everything a version is made from: equal digests would give an equal version."""
        annotations = sorted(
            (item.task.id, annotation.id, annotation.updated_at, annotation.was_cancelled, annotation.ground_truth)
            for item in annotated
            for annotation in item.annotations
        )
        settings = self._settings
        facts = [
            project.label_config, annotations, backbone.fingerprint,
            settings.seed_strategy, settings.seed_size, settings.acquisition, settings.window_size,
            settings.random_state, str(settings.validation_filter), sorted(labels.reserved), settings.target_accuracy,
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(table.digest.encode())
        return digest.hexdigest()[:32]

    @staticmethod
    def _ignored(labels: TrainingLabels, table: EmbeddingTable) -> Mapping[int, str]:
        """Why some answered tasks are not trained on: no usable label, or no usable image."""
        broken = {
            task_id: f"image: {table.failures[task_id].reason}"
            for task_id in (*labels.labels, *labels.validation)
            if task_id in table.failures
        }
        return {**labels.ignored, **broken}


def _how_cross_validated(evaluation: CrossValidation | None, seen: frozenset[int]) -> str | None:
    if evaluation is None or not seen:
        return CROSS_VALIDATED if evaluation else None
    which = f"the {evaluation.n_evaluated} labeled tasks that the fine-tuned backbone was not trained on"
    return f"cross-validated on {which}, {_LABELED_BECAUSE_HARD}"
