"""What a version is made from: the labels, the embeddings, and what identifies both."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.adapters.backbones import Backbone
from backend.adapters.embedding_store import EmbeddingTable
from backend.adapters.jobs import Jobs
from backend.adapters.registry import Registry
from backend.choices import ChoicesConfig, agreed_tasks, parse_labeling_config, read_labels
from backend.config import Settings
from backend.labels import Label, names_of
from backend.learning.pool import Pool
from backend.loop.agreement import weighed
from backend.loop.backbones import BACKBONE_WARNING, ProjectBackbones
from backend.loop.embed import Embedder, missing_tasks
from backend.loop.ledger import Ledger
from backend.loop.projects import register_project
from backend.loop.rounds import Pools, Stopwatch, trainable
from backend.loop.shards import WorkingSet
from backend.loop.validation import keep_aside
from backend.schema import AnnotatedTask, Project, TrainingLabels, ValidationSplit

EMBED_IN_JOB = 256
"""Labeled tasks without embedding that a retrain embeds itself; more than that wait for the embedding jobs."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """Everything a version of a project is made from, read at one time.

    confirmed: tasks whose label two annotations give.
    split: the validation split as last listed; None without a filter that looks at data.
    table: the embeddings to learn and choose from, all of them or a working set.
    n_embedded: how many the project has.
    n_shards: what it is divided into, see `loop.shards`; 0 if it is not. n_unsearched: those that nobody searched yet.
    labeled: tasks with a label and an embedding, ascending.
    seen: tasks whose labels the backbone was fine-tuned on.
    heard_at: see `ledger.Answers`.
    last_answer_at: when the newest answer was given or changed (ISO 8601, Label Studio's clock); None without any.
    digest: equal digests would give an equal version.
    """

    project: Project
    config: ChoicesConfig
    labels: TrainingLabels
    confirmed: frozenset[int]
    split: ValidationSplit | None
    table: EmbeddingTable
    pool: Pool
    n_embedded: int
    n_shards: int
    n_unsearched: int
    labeled: Sequence[int]
    backbone: Backbone
    seen: frozenset[int]
    heard_at: float | None
    last_answer_at: str | None
    digest: str


class InputReader:
    """Reads the inputs; what is computed from all images is kept between calls."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        jobs: Jobs,
        registry: Registry,
        embedder: Embedder,
        backbones: ProjectBackbones,
        settings: Settings,
    ) -> None:
        self._ledger = ledger
        self._jobs = jobs
        self._registry = registry
        self._embedder = embedder
        self._backbones = backbones
        self._settings = settings
        self._pools = Pools()

    def read(self, project_id: int, watch: Stopwatch, *, news: bool = True) -> Inputs:
        """The inputs as they are now; labeled images that nobody embedded yet are embedded.

        `news`: it is asked for because something changed; see `Ledger`.
        """
        # Asked once: it may change at any time, and all of a version is made with the same.
        current = self._backbones.current(project_id)
        backbone = current.backbone
        self._jobs.set_note(project_id, BACKBONE_WARNING, current.warning)
        with watch.stage("read_labels"):
            answers = self._ledger.read(project_id) if news else self._ledger.known(project_id)
            project, annotated = answers.project, answers.annotated
            config = parse_labeling_config(project.label_config)
            register_project(self._registry, project)
            labels = weighed(read_labels(config, annotated), config.labels)
            confirmed = agreed_tasks(config, annotated, labels)
            split = self._embedder.validation_split(project_id, config.image_field)
        with watch.stage("embeddings"):
            working_set = self._working_set(project_id, backbone, annotated, labels)
            table = working_set.table
            pool = self._pools.pool(project_id, table, backbone)
        wanted = self._settings.validation_filter
        if wanted is not None:
            labels = keep_aside(labels, annotated, wanted, split, table.task_ids.tolist())
        return Inputs(
            project=project,
            config=config,
            labels=labels,
            confirmed=frozenset(confirmed),
            split=split,
            table=table,
            pool=pool,
            n_embedded=working_set.n_embedded,
            n_shards=working_set.n_shards,
            n_unsearched=working_set.n_unsearched,
            labeled=trainable(table, labels),
            backbone=backbone,
            seen=current.seen,
            heard_at=answers.heard_at,
            last_answer_at=max((one.updated_at for item in annotated for one in item.annotations), default=None),
            digest=self._digest(project, backbone, annotated, table, labels),
        )

    def prepare(self, inputs: Inputs, detail_weight: float) -> None:
        """Begins to make, beside the work, what later heads of these inputs' pool will need; this weight is in use."""
        self._pools.prepare(inputs.pool, detail_weight, len(inputs.labeled), self._settings)

    def _working_set(
        self, project_id: int, backbone: Backbone, annotated: Sequence[AnnotatedTask], labels: TrainingLabels
    ) -> WorkingSet:
        """The project's embeddings, with those of labeled tasks that came faster than the embedding jobs."""
        answered = [item.task.id for item in annotated]
        working_set = self._embedder.working_set(project_id, backbone, answered)
        unknown = missing_tasks(working_set.table, [item.task for item in annotated if item.task.id in labels.labels])
        if not unknown:
            return working_set
        self._embedder.embed_now(project_id, unknown[:EMBED_IN_JOB], backbone)
        if len(unknown) > EMBED_IN_JOB:
            self._jobs.request_embedding(project_id)
        return self._embedder.working_set(project_id, backbone, answered)

    def _digest(
        self,
        project: Project,
        backbone: Backbone,
        annotated: Sequence[AnnotatedTask],
        table: EmbeddingTable,
        labels: TrainingLabels,
    ) -> str:
        annotations = sorted(
            (item.task.id, annotation.id, annotation.updated_at, annotation.was_cancelled, annotation.ground_truth)
            for item in annotated
            for annotation in item.annotations
        )
        settings = self._settings
        facts: list[Any] = [
            project.label_config, annotations, backbone.fingerprint,
            settings.seed_strategy, settings.seed_size, settings.acquisition, settings.window_size,
            settings.random_state, str(settings.validation_filter), sorted(labels.reserved), settings.target_accuracy,
        ]  # fmt: skip
        if settings.score_order != "ascending":  # only then: versions made before there was a choice stay as they are
            facts.append(settings.score_order)
        digest = hashlib.sha256(json.dumps(facts).encode())
        digest.update(table.digest.encode())
        return digest.hexdigest()[:32]


def labels_digest(labels: Mapping[int, Label]) -> str:
    """Identity of a set of labels, task id → label, that anybody can work out from an export of Label Studio.

    sha256, in hexadecimal, of one line `task id TAB label NEWLINE` per task in UTF-8, by ascending task id. Where an
    image may have several labels there is a tab between one and the next, in alphabetical order.
    """
    lines = ("\t".join([str(task_id), *names_of(label)]) + "\n" for task_id, label in sorted(labels.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
