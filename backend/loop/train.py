"""Retrain: read the labels, fit, score the pool, save, push, publish last."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from weakref import ReferenceType, ref

import numpy as np

from backend import __version__
from backend.adapters.backbones import Backbone
from backend.adapters.embedding_store import EmbeddingTable
from backend.adapters.jobs import RETRAIN_WAIT_S, Jobs, ProjectLock
from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.registry import Registry
from backend.choices import ChoicesConfig
from backend.config import Settings
from backend.errors import LabelStudioError
from backend.labels import names_of
from backend.learning.acquisition import shown_score
from backend.learning.head import FitResult, HeadSettings
from backend.learning.label_sets import can_be_told_apart
from backend.learning.pool import DEFAULT_DETAIL_WEIGHT, Pool
from backend.loop.anticipate import Anticipation, RoundInputs
from backend.loop.embed import Embedder
from backend.loop.evaluate import carried_evaluation, kept_evaluation
from backend.loop.finetune import Finetuner
from backend.loop.inputs import InputReader, Inputs, labels_digest
from backend.loop.prelabels import described, is_shown, least_confidence
from backend.loop.rounds import Chosen, Round, Stopwatch
from backend.loop.seed import Seed
from backend.loop.shards import Shards
from backend.loop.versions import KeptVersion, Versions
from backend.schema import QueueEntry, TrainingLabels, VersionRecord

logger = logging.getLogger(__name__)

RECORDED_BEFORE = "typical_coreset"
"""The seed strategy of versions whose record does not name it: there was no other."""


class Trainer:
    """Turns the labels of a project into its next published version."""

    def __init__(
        self,
        *,
        label_studio: LabelStudioClient,
        jobs: Jobs,
        registry: Registry,
        embedder: Embedder,
        inputs: InputReader,
        finetuner: Finetuner,
        shards: Shards,
        versions: Versions,
        settings: Settings,
        now: Callable[[], datetime],
    ) -> None:
        self._label_studio = label_studio
        self._jobs = jobs
        self._registry = registry
        self._embedder = embedder
        self._inputs = inputs
        self._finetuner = finetuner
        self._shards = shards
        self._versions = versions
        self._settings = settings
        self._now = now
        self._anticipation = Anticipation(settings)
        # The last fit of each project, where the next one starts, and the pool it was made on.
        self._fits: dict[int, tuple[ReferenceType[Pool], FitResult]] = {}

    def retrain(self, project_id: int) -> VersionRecord | None:
        """The new published version; None when nothing changed since the last one (or nothing is embedded yet).

        A crash at any point leaves the old version published and serving. Raises ProjectBusyError when another worker
        retrains the project for long.
        """
        request = self._jobs.begin_retrain(project_id)
        with self._jobs.project_lock(project_id, wait_s=RETRAIN_WAIT_S) as lock:
            try:
                record = self._make_version(project_id, lock, forced=request.forced)
            except LabelStudioError as exc:
                # Predictions for a task deleted since it was embedded are refused, all of them.
                if exc.status != 400 or not self._embedder.forget_deleted(project_id):
                    raise
                record = self._make_version(project_id, lock, forced=request.forced)
            self._jobs.answer_retrain(project_id, request)
        if record is not None:
            self._jobs.observe("retrain", record.stage_seconds)
            self._jobs.request_evaluation(project_id)
            self._jobs.request_pruning(project_id)
            self._shards.request_if_stale(project_id, record)
        return record

    def _make_version(self, project_id: int, lock: ProjectLock, *, forced: bool) -> VersionRecord | None:
        watch = Stopwatch()
        inputs = self._inputs.read(project_id, watch)
        project, config, labels, table = inputs.project, inputs.config, inputs.labels, inputs.table
        labeled = inputs.labeled
        if not config.several:
            self._finetuner.request_if_due(project_id, len(labeled))
        previous = self._registry.published_record(project_id)
        kept = self._kept(inputs)
        digest = inputs.digest if kept is None else f"{inputs.digest} {kept.record.version}"
        if len(table.task_ids) == 0 or (previous and previous.inputs_digest == digest and not forced):
            logger.info(
                "nothing new project=%d labels=%d embedded=%d", project_id, len(labels.labels), len(table.task_ids)
            )
            if previous:
                self._prepare(inputs, previous.detail_weight)  # after a start of the worker, before the next label
            return None
        is_first = previous is None and not can_be_told_apart([labels.labels[task_id] for task_id in labeled])
        if is_first and (len(table.references) < project.n_tasks or inputs.n_unsearched):
            # The first batch is chosen once, from all images; the last to be embedded or searched asks again.
            logger.info(
                "first batch waits project=%d embedded=%d of=%d shards_unsearched=%d",
                project_id, len(table.references), project.n_tasks, inputs.n_unsearched,
            )  # fmt: skip
            return None
        if inputs.n_shards and inputs.n_unsearched == inputs.n_shards:  # of a backbone that is new, for example
            logger.info("version waits project=%d: none of %d shards is searched yet", project_id, inputs.n_shards)
            self._embedder.request_searches(project_id, inputs.backbone)
            return None
        given = self._given(project_id, inputs, previous)
        with watch.stage("anticipated"):
            plan = self._anticipation.take(project_id, given) if kept is None else None
        if plan is None:
            plan = given.plan(self._settings, watch, kept=kept.round_head if kept else None)
        fitted, seed = plan.fitted, plan.seed
        head = kept.round_head.head if kept else fitted.head if fitted else None
        if fitted is not None:
            self._fits[project_id] = ref(inputs.pool), fitted
        labels_used = kept.record.labels_used if kept else len(labeled)
        head_of = kept.record.version if kept else None
        version = self._registry.new_version(project_id, labels_used, self._now(), head_of)
        labels_by_class = Counter(name for task_id in labeled for name in names_of(labels.labels[task_id]))
        record = VersionRecord(
            version=version,
            kind="model" if head else "seed",
            created_at=self._now().isoformat(),
            project_id=project_id,
            label_config=project.label_config,
            classes=list(head.classes) if head else sorted(labels_by_class),
            labels_used=labels_used,
            labels_by_class=dict(kept.record.labels_by_class if kept else labels_by_class),
            ignored_labels={str(task_id): reason for task_id, reason in self._ignored(labels, table).items()},
            strength=head.strength if head else None,
            acquisition=self._settings.acquisition,
            backbone=inputs.backbone.name,
            fingerprint=inputs.backbone.fingerprint,
            random_state=self._settings.random_state,
            pool_size=len(plan.pool) + inputs.n_embedded - len(table.task_ids),
            window=[task_id for task_id, _ in plan.window],
            seed_task_ids=list(seed.task_ids) if seed else [],
            seed_strategy=seed.strategy if seed else None,
            seed_engine=seed.engine if seed else None,
            seed_engine_reason=seed.reason if seed else None,
            inputs_digest=digest,
            labels_digest=labels_digest({task_id: labels.labels[task_id] for task_id in labeled}),
            stage_seconds=watch.seconds,
            validation_filter=str(wanted) if (wanted := self._settings.validation_filter) else None,
            temperature=kept.record.temperature if kept else fitted.settings.temperature if fitted else None,
            detail_weight=kept.record.detail_weight if kept else fitted.settings.detail_weight if fitted else None,
            head_of=head_of,
            labels_given=len(labeled),
            embeddings_digest=table.digest,
            last_answer_at=inputs.last_answer_at,
            score_order=self._settings.score_order,
            release=__version__,
            threshold=head.threshold if head else None,
        )
        last = previous or self._registry.newest_record(project_id)
        carried = kept_evaluation(kept.record, last, record) if kept else carried_evaluation(last, record)
        record = replace(record, **carried)
        least = least_confidence(record, self._settings.prelabel_from) if head is not None else None
        record = replace(record, prelabels=least is not None, prelabels_from=least or 0.0)
        entries = self._entries(config, plan, record)
        record = replace(record, n_prelabels=sum(bool(entry.result) for entry in entries))
        with watch.stage("save"):
            self._registry.save(record, head)
        with watch.stage("push"):
            lock.check()
            self._push(project_id, version, entries)
        with watch.stage("publish"):
            lock.check()
            self._registry.publish(project_id, version)
        self._prepare(inputs, record.detail_weight)
        before = None if previous is None or previous.kind == "seed" else _prelabels(previous)
        if head is not None and before != _prelabels(record):
            logger.info("pre-labels project=%d %s", project_id, described(record, self._settings.prelabel_from))
        logger.info(
            "retrained project=%d version=%s labels=%d pool=%d took=%.2fs (%s)",
            project_id, version, len(labeled), len(plan.pool), watch.total, watch,
        )  # fmt: skip
        return record

    def anticipate(self, project_id: int) -> int:
        """Plans the rounds after the likeliest answers to the first task of the window; how many.

        For the time in which a person looks at it. A label that comes meanwhile ends it.
        """
        record = self._registry.published_record(project_id)
        if record is None or not record.window or self._jobs.retrain_waits():
            return 0
        inputs = self._inputs.read(project_id, Stopwatch(), news=False)
        if inputs.digest != record.inputs_digest:
            return 0  # something came that is no label of this task
        given = self._given(project_id, inputs, record)
        return self._anticipation.plan(project_id, given, record.window[0], self._jobs.retrain_waits)

    def _kept(self, inputs: Inputs) -> KeptVersion | None:
        """The version that the project is pinned to, if it is; a choice made in Label Studio is followed first."""
        project, config, fingerprint = inputs.project, inputs.config, inputs.backbone.fingerprint
        if self._versions.may_be_chosen(project.id, project.model_version, inputs.heard_at):
            self._versions.follow_label_studio(project.id, config, fingerprint)
        return self._versions.kept(project.id, config, fingerprint)

    def _given(self, project_id: int, inputs: Inputs, previous: VersionRecord | None) -> RoundInputs:
        return RoundInputs(
            table=inputs.table,
            pool=inputs.pool,
            labels=inputs.labels,
            n_classes=len(inputs.config.labels),
            previous_seed=self._previous_seed(previous, inputs.backbone),
            chosen=_chosen(previous, inputs.backbone, several=inputs.config.several),
            start=self._start(project_id, inputs.pool),
            seen=inputs.seen,
        )

    def _prepare(self, inputs: Inputs, detail_weight: float | None) -> None:
        if len(inputs.table.task_ids):
            self._inputs.prepare(inputs, DEFAULT_DETAIL_WEIGHT if detail_weight is None else detail_weight)

    def _start(self, project_id: int, pool: Pool) -> FitResult | None:
        """The last fit, if it was made on the same pool."""
        known = self._fits.get(project_id)
        return known[1] if known is not None and known[0]() is pool else None

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
    def _entries(config: ChoicesConfig, plan: Round, record: VersionRecord) -> list[QueueEntry]:
        """The window as it is pushed; a result stands where it is to be shown."""
        scores = plan.scores
        rows = np.searchsorted(plan.pool, [task_id for task_id, _ in plan.window]).tolist()
        return [
            QueueEntry(
                task_id,
                shown_score(queue_score, record.score_order),
                scores.result(config, row) if scores and is_shown(record, scores.confidence(row)) else [],
            )
            for (task_id, queue_score), row in zip(plan.window, rows, strict=True)
        ]

    def _push(self, project_id: int, version: str, entries: Sequence[QueueEntry]) -> None:
        if not entries:
            logger.info("queue empty project=%d: every usable task is labeled", project_id)
            return
        self._label_studio.push_predictions(project_id, version, entries)
        self._label_studio.activate_version(project_id, version)

    @staticmethod
    def _ignored(labels: TrainingLabels, table: EmbeddingTable) -> Mapping[int, str]:
        """Why some answered tasks are not trained on: no usable label, or no usable image."""
        broken = {
            task_id: f"image: {table.failures[task_id].reason}"
            for task_id in (*labels.labels, *labels.validation)
            if task_id in table.failures
        }
        return {**labels.ignored, **broken}


def _prelabels(record: VersionRecord) -> tuple[bool, float]:
    return record.prelabels, record.prelabels_from


def _chosen(previous: VersionRecord | None, backbone: Backbone, *, several: bool) -> Chosen | None:
    """The settings that the evaluation of an earlier version chose for the heads after it, if they are of its kind."""
    if previous is None or not previous.chosen or previous.fingerprint != backbone.fingerprint:
        return None
    if (previous.threshold is not None) != several:
        return None
    try:
        return Chosen(HeadSettings(**previous.chosen), previous.evaluated_labels)
    except TypeError:  # of a release with other settings
        return None
