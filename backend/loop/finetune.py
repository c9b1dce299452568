"""Fine-tune a project's backbone on its labels, adopt it only if it is better, and switch when all is embedded with it.

It runs in a process of its own, beside the retrains: people go on labeling with the backbone there is.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.adapters.backbones import Backbone
from backend.adapters.jobs import FINETUNE_LOCK, Jobs, ProjectLock
from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.registry import Registry
from backend.choices import parse_labeling_config, read_labels
from backend.config import Settings
from backend.errors import BackboneError, BackendError, FinetuningError, ImageError
from backend.learning.finetuning import hold_out, judge
from backend.loop.agreement import weighed
from backend.loop.backbones import ProjectBackbones
from backend.loop.embed import Embedder, missing_tasks
from backend.loop.validation import keep_aside
from backend.schema import FinetuningRecord, Task

logger = logging.getLogger(__name__)

GROWTH = 2
"""Fine-tuning is due again when there are so many times the labels of the last time."""

MAX_TRIES = 3
"""After so many stops in the middle (killed, out of memory, images away) it waits for more labels too."""

MAX_LOST = 0.05
"""Images that fail only now, as a share of all, above which the switch waits: a server is away, not an image broken."""


@dataclass(frozen=True, eq=False)
class _Pictures:
    """Labeled pictures (N, S, S, 3) as fine-tuning wants them, with their tasks and labels."""

    task_ids: Sequence[int]
    labels: Sequence[str]
    pixels: NDArray[np.uint8]

    def embeddings(self, backbone: Backbone) -> NDArray[np.float32]:
        """What a backbone makes of them, (N, D)."""
        return backbone.embed([Image.fromarray(picture) for picture in self.pixels])


class Finetuner:
    """Fine-tunes the backbones of all projects."""

    def __init__(
        self,
        *,
        label_studio: LabelStudioClient,
        jobs: Jobs,
        registry: Registry,
        embedder: Embedder,
        backbones: ProjectBackbones,
        settings: Settings,
    ) -> None:
        self._label_studio = label_studio
        self._jobs = jobs
        self._registry = registry
        self._embedder = embedder
        self._backbones = backbones
        self._settings = settings

    def request_if_due(self, project_id: int, n_labels: int) -> None:
        """Queues a fine-tuning when it is due with so many labels and none waits or runs."""
        if self._is_due(project_id, n_labels) and self._jobs.finetuning(project_id) == "idle":
            self._jobs.request_finetuning(project_id)

    def finetune(self, project_id: int) -> FinetuningRecord | None:
        """Fine-tunes, judges, embeds all images and switches, or goes on where it was stopped; None if not due.

        Whatever ends it in the middle, the backbone in use stays. Raises FinetuningError when training fails.
        """
        self._jobs.begin(project_id, "finetune")
        with self._jobs.project_lock(project_id, FINETUNE_LOCK) as lock:
            tasks, labels = self._labels(project_id)
            if not self._is_due(project_id, len(labels)):
                return None
            record = self._registry.finetuning(project_id)
            try:
                if record is None or not self._is_adopted(record):
                    record = self._begin(project_id, len(labels), record)
                    record = self._train(project_id, tasks, labels, record)
                    self._registry.keep_finetuning(project_id, record)
                    logger.info("fine-tuning %s project=%d: %s", record.outcome, project_id, record.note)
                if self._is_adopted(record):
                    record = self._switch(project_id, record, lock)
            except Exception as exc:
                known = self._registry.finetuning(project_id)
                if known is not None:
                    hopeless = isinstance(exc, FinetuningError | BackboneError)
                    outcome = "failed" if hopeless else known.outcome
                    error = str(exc) or type(exc).__name__
                    self._registry.keep_finetuning(project_id, replace(known, outcome=outcome, error=error))
                raise
            return record

    def _is_due(self, project_id: int, n_labels: int) -> bool:
        if self._settings.train != "finetune" or n_labels < self._settings.finetune_from:
            return False
        if self._backbones.base.finetuning_obstacle or self._registry.pin(project_id):
            return False  # a pinned head reads embeddings of the backbone there is
        last = self._registry.finetuning(project_id)
        if last is None or last.base != self._backbones.base.fingerprint or n_labels >= GROWTH * last.labels_used:
            return True
        return last.outcome == "adopted" or (last.outcome == "begun" and last.n_tries < MAX_TRIES)

    def _is_adopted(self, record: FinetuningRecord) -> bool:
        return record.outcome == "adopted" and record.base == self._backbones.base.fingerprint

    def _begin(self, project_id: int, n_labels: int, last: FinetuningRecord | None) -> FinetuningRecord:
        """Keeps that it was begun, so that a process killed from here on is not forgotten."""
        again = last is not None and last.outcome == "begun" and n_labels < GROWTH * last.labels_used
        n_tries = last.n_tries + 1 if last is not None and again else 1
        note = f"begun on {n_labels} labels, try {n_tries} of {MAX_TRIES}"
        record = FinetuningRecord("begun", n_labels, self._backbones.base.fingerprint, note, n_tries)
        self._registry.keep_finetuning(project_id, record)
        return record

    def _labels(self, project_id: int) -> tuple[list[Task], Mapping[int, str]]:
        """The labeled tasks that may be trained on, validation tasks left out, and their labels.

        None where images may have several: the training here knows one class per image.
        """
        config = parse_labeling_config(self._label_studio.project(project_id).label_config)
        if config.several:
            return [], {}
        wanted = self._settings.validation_filter
        fields = wanted.fields if wanted else ()
        annotated = self._label_studio.annotated_tasks(project_id, config.image_field, fields=fields)
        labels = weighed(read_labels(config, annotated), config.labels)
        if wanted is not None:
            labels = keep_aside(labels, annotated, wanted, split=None, embedded=())
        rows = self._embedder.index(project_id).rows_of([item.task.id for item in annotated])
        tasks = [
            item.task
            for item, row in zip(annotated, rows.tolist(), strict=True)
            if row >= 0 and item.task.id in labels.labels
        ]
        return tasks, {task.id: str(labels.labels[task.id]) for task in tasks}

    def _train(
        self, project_id: int, tasks: Sequence[Task], labels: Mapping[int, str], record: FinetuningRecord
    ) -> FinetuningRecord:
        """A backbone trained on four fifths of the labels and judged on the rest; adopted if better, and then saved.

        It always begins with the backbone of the settings. Held out are labels that the one in use has not seen
        either, so both are judged fairly.
        """
        started = time.monotonic()
        current, base = self._backbones.current(project_id), self._backbones.base
        pictures = self._pictures(project_id, tasks, labels)
        unseen = np.array([task_id not in current.seen for task_id in pictures.task_ids], dtype=bool)
        held_out = hold_out(pictures.labels, unseen, random_state=self._settings.random_state)
        trained = np.flatnonzero(~held_out)
        classes, targets = np.unique(np.asarray(pictures.labels)[trained], return_inverse=True)
        if len(classes) < 2 or not held_out.any():
            raise FinetuningError(
                f"{len(pictures.labels)} labels of {len(classes)} classes leave too little to fine-tune on or to judge "
                "by; label images of all classes"
            )
        candidate = base.finetuned(pictures.pixels[trained], targets, random_state=self._settings.random_state)
        now, then = (
            judge(
                pictures.embeddings(backbone),
                backbone.n_details,
                pictures.labels,
                held_out,
                random_state=self._settings.random_state,
            )
            for backbone in (candidate, current.backbone)
        )
        note = (
            f"on {int(held_out.sum())} labels held out the head is {now.accuracy:.3f} accurate (log-loss "
            f"{now.log_loss:.3f}) with the backbone fine-tuned on {len(trained)} others, {then.accuracy:.3f} "
            f"({then.log_loss:.3f}) with the one in use; took {time.monotonic() - started:.0f} s"
        )
        if not now.beats(then):
            return replace(record, outcome="rejected", note=f"not adopted: {note}")
        self._registry.keep_weights(project_id, candidate.fingerprint, candidate.save)
        seen = sorted(pictures.task_ids[row] for row in trained.tolist())
        return replace(record, outcome="adopted", note=f"adopted: {note}", fingerprint=candidate.fingerprint, seen=seen)

    def _pictures(self, project_id: int, tasks: Sequence[Task], labels: Mapping[int, str]) -> _Pictures:
        """The labeled pictures that can be read, decoded once and kept small."""
        base, size = self._backbones.base, self._settings.embed_batch_size
        # 200 kB a label where a network takes 224 pixels.
        pixels = np.empty((len(tasks), base.training_side, base.training_side, 3), dtype=np.uint8)
        task_ids: list[int] = []
        for start in range(0, len(tasks), size):
            batch = tasks[start : start + size]
            loaded = self._embedder.load_images(project_id, batch, min_side=base.training_side)
            good = [
                (task, image) for task, image in zip(batch, loaded, strict=True) if not isinstance(image, ImageError)
            ]
            rows = slice(len(task_ids), len(task_ids) + len(good))
            pixels[rows] = base.training_pixels([image for _, image in good])
            task_ids += [task.id for task, _ in good]
        if len(task_ids) < (1 - MAX_LOST) * len(tasks):
            raise BackendError(
                f"{len(tasks) - len(task_ids)} of {len(tasks)} labeled images cannot be read now; fine-tuning is tried "
                "again once they can"
            )
        return _Pictures(task_ids, [labels[task_id] for task_id in task_ids], pixels[: len(task_ids)])

    def _switch(self, project_id: int, record: FinetuningRecord, lock: ProjectLock) -> FinetuningRecord:
        """Embeds all images with the adopted backbone, then makes it the project's and asks for a retrain."""
        backbone = self._backbones.load(project_id, record)
        size = self._settings.embed_batch_size
        while True:
            config = parse_labeling_config(self._label_studio.project(project_id).label_config)
            tasks = self._label_studio.tasks(project_id, config.image_field)
            table = self._embedder.index(project_id, backbone.fingerprint, backbone.dim)
            missing = missing_tasks(table, tasks)
            if not missing:
                break
            for start in range(0, len(missing), size):
                lock.check()
                self._embedder.embed_now(project_id, missing[start : start + size], backbone)
        before = self._embedder.index(project_id)
        away = [task_id for task_id, failure in table.failures.items() if failure.transient]
        lost = int(np.sum(before.rows_of(away) >= 0))
        if lost > MAX_LOST * len(tasks):
            self._embedder.forget(project_id, away, backbone)
            raise BackendError(
                f"{lost} of {len(tasks)} images cannot be read now; the fine-tuned backbone is used once they can"
            )
        lock.check()
        if self._registry.pin(project_id):
            return record  # pinned meanwhile: it is due again once the pin is released
        record = replace(record, outcome="in_use", error=None)
        self._registry.use_backbone(project_id, record)
        self._jobs.request_retrain(project_id)
        self._registry.keep_finetuning(project_id, record)  # last: killed before, all this is done again
        logger.info("fine-tuned backbone in use project=%d fingerprint=%s", project_id, record.fingerprint)
        return record
