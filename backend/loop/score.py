"""From embeddings to predictions: the same code answers /predict and fills the queue."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.adapters.embedding_store import EmbeddingTable
from backend.adapters.registry import Registry
from backend.choices import ChoicesConfig, parse_labeling_config, prediction_result
from backend.errors import BackendError
from backend.learning.acquisition import ACQUISITION_FUNCTIONS, queue_score, shown_score, utilities
from backend.learning.head import Head
from backend.loop.embed import Embedder, missing_tasks
from backend.loop.prelabels import is_shown
from backend.loop.queue import SEED_STEP, seed_queue_score
from backend.schema import UNTRAINED, Task, ValidationFilter, VersionRecord

logger = logging.getLogger(__name__)

EMBED_IN_REQUEST = 32
"""Unknown images embedded inside one /predict request, about two seconds on two cores; the rest are queued."""

TASKS_AT_ONCE = 1000
"""Tasks of one request that are looked up together, 2.5 MB of embeddings."""

LAST = 1.0
"""Queue score of a task that nothing can be said about: label it last. (No score at all would come first.)"""


@dataclass(frozen=True)
class Scores:
    """Predictions of a head for some embeddings: probabilities (N, C) of its classes, and queue scores (N,), 0 = label
    first.
    """

    head: Head
    probabilities: NDArray[np.float64]
    queue_scores: NDArray[np.floating[Any]]

    def confidence(self, row: int) -> float:
        """How likely the prediction of one row is to be right, 0..1; of a set, altogether."""
        return float(self.head.confidence(self.probabilities[row : row + 1])[0])

    def result(self, config: ChoicesConfig, row: int) -> list[dict[str, Any]]:
        """Label Studio's `result` for one row."""
        (label,) = self.head.predicted(self.probabilities[row : row + 1])
        by_class = dict(zip(self.head.classes, self.probabilities[row].tolist(), strict=True))
        return prediction_result(config, label, self.confidence(row), by_class)


def score(head: Head, embeddings: NDArray[np.floating[Any]], acquisition: str) -> Scores:
    """Scores of embeddings (N, D) under a head; `acquisition` as for `scores_of`."""
    return scores_of(head, head.predict_proba(embeddings), acquisition)


def scores_of(head: Head, probabilities: NDArray[np.float64], acquisition: str) -> Scores:
    """Scores of the head's probabilities (N, C); `acquisition` is what the setting may name.

    A strategy that compares images with each other has no utility of a single one: the margin's stands in. Where
    images may have several labels it is that of the label most in doubt, see `learning.acquisition`. Model
    scores stay above all seed scores, so that a seed batch is finished first.
    """
    name = acquisition if acquisition in ACQUISITION_FUNCTIONS else "margin"
    found = utilities(name, probabilities, of_sets=head.threshold is not None)
    floor = SEED_STEP * 10_000
    return Scores(head, probabilities, floor + (1.0 - floor) * queue_score(found))


class Predictor:
    """Answers prediction requests from the published version, in whatever process it lives."""

    def __init__(self, *, registry: Registry, embedder: Embedder, score_order: str = "ascending") -> None:
        """`score_order`: as SCORE_ORDER says, until there is a version, which has its own."""
        self._registry = registry
        self._embedder = embedder
        self._score_order = score_order
        self._loaded: OrderedDict[int, tuple[VersionRecord, Head | None]] = OrderedDict()
        self._guard = Lock()

    def warm_up(self) -> None:
        """Loads the published versions, so that the first answers come as fast as later ones."""
        for project_id in self._registry.known_projects():
            try:
                record, head = self.published(project_id) or (None, None)
                if record is None or head is None:
                    continue
                parse_labeling_config(record.label_config)
                # A task that is never there: to look for it opens the store.
                self._embedder.rows(project_id, [-1], record.fingerprint, head.weights.shape[1])
            except (BackendError, OSError) as exc:  # whoever asks for this project is told
                logger.warning("not warmed up project=%d: %s", project_id, exc)

    def published(self, project_id: int) -> tuple[VersionRecord, Head | None] | None:
        """The published record and head, loaded again only when another version was published."""
        version = self._registry.published(project_id)
        if version is None:
            return None
        with self._guard:
            known = self._loaded.get(project_id)
            if known is None or known[0].version != version:
                try:
                    record = self._registry.record(project_id, version)
                    known = record, self._registry.head(record)
                except BackendError as exc:
                    logger.error("version not served project=%d: %s", project_id, exc)
                    return known
                self._loaded[project_id] = known
            self._loaded.move_to_end(project_id)
            while len(self._loaded) > 64:
                self._loaded.popitem(last=False)
            return known

    def predict(self, project_id: int, label_config: str, tasks: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """One prediction per task, in the order asked; tasks are Label Studio's own JSON.

        A task without embedding (broken image, not yet embedded) gets an empty result and is put last, never an
        error: Label Studio drops the whole answer if one task fails. So does a task of the validation split: who labels
        it must not be told what the model thinks, and a queue score would put it into the queue.
        """
        published = self.published(project_id)
        if published is None:
            return [_empty(UNTRAINED, self._score_order) for _ in tasks]
        record, head = published
        if head is None:
            ranks = {task_id: rank for rank, task_id in enumerate(record.seed_task_ids)}
            return [
                _empty(
                    record.version,
                    record.score_order,
                    seed_queue_score(ranks[task["id"]]) if task.get("id") in ranks else LAST,
                )
                for task in tasks
            ]
        config = parse_labeling_config(record.label_config)
        kept_aside = (
            ValidationFilter.parse(record.validation_filter) if record.validation_filter else ValidationFilter()
        )
        requested = _requested(tasks, config.image_field)
        n_to_embed = EMBED_IN_REQUEST
        answers = []
        for start in range(0, len(tasks), TASKS_AT_ONCE):
            part = slice(start, start + TASKS_AT_ONCE)
            table, n_embedded = self._table(project_id, record, head, requested[part], n_to_embed)
            n_to_embed -= n_embedded
            scores = score(head, table.embeddings, record.acquisition)
            rows = table.rows_of([task.id for task in requested[part]]).tolist()
            for task, row in zip(tasks[part], rows, strict=True):
                fields = task.get("data")
                if row < 0 or (isinstance(fields, Mapping) and kept_aside.holds(fields)):
                    answers.append(_empty(record.version, record.score_order))
                    continue
                answers.append(
                    {
                        "result": scores.result(config, row) if is_shown(record, scores.confidence(row)) else [],
                        "score": shown_score(float(scores.queue_scores[row]), record.score_order),
                        "model_version": record.version,
                    }
                )
        return answers

    def _table(
        self, project_id: int, record: VersionRecord, head: Head, tasks: Sequence[Task], n_to_embed: int
    ) -> tuple[EmbeddingTable, int]:
        """The embeddings of these tasks, and how many of them were not there and had to be made, at most `n_to_embed`.

        Read for the request: a web process that held all of a large pool would hold it beside the worker.
        """
        task_ids, dim = [task.id for task in tasks], head.weights.shape[1]
        table = self._embedder.rows(project_id, task_ids, record.fingerprint, dim)
        unknown = missing_tasks(table, tasks)[:n_to_embed]
        # Asked last: to know its fingerprint the backbone is loaded.
        if not unknown or self._embedder.backbone(project_id).fingerprint != record.fingerprint:
            return table, 0
        self._embedder.embed_now(project_id, unknown)
        return self._embedder.rows(project_id, task_ids, record.fingerprint, dim), len(unknown)


def _requested(tasks: Sequence[Mapping[str, Any]], image_field: str) -> list[Task]:
    requested = []
    for task in tasks:
        data = task.get("data")
        reference = data.get(image_field) if isinstance(data, Mapping) else None
        requested.append(Task(int(task["id"]), reference if isinstance(reference, str) else None))
    return requested


def _empty(version: str, score_order: str, queue_score: float = LAST) -> dict[str, Any]:
    return {"result": [], "score": shown_score(queue_score, score_order), "model_version": version}
