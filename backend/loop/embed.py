"""Keep one embedding per task: plan what is missing, embed it in batches, forget what is gone."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from PIL import Image

from backend.adapters.backbones import Backbone
from backend.adapters.embedding_store import EmbeddingRow, EmbeddingStore, EmbeddingTable, ImageFailure
from backend.adapters.images import ImageLoader
from backend.adapters.jobs import PLAN_LOCK, RETRAIN_QUEUE, Jobs
from backend.adapters.label_studio import TASKS_PER_PAGE, LabelStudioClient
from backend.adapters.registry import Registry
from backend.choices import parse_labeling_config
from backend.errors import ImageError
from backend.loop.pipeline import WORTH_ACCELERATING, embed_in_batches, n_loaders
from backend.loop.projects import register_project
from backend.loop.shards import Shards, WorkingSet
from backend.schema import Progress, Task, ValidationFilter, ValidationSplit
from backend.storage import Place

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 2.0
"""Pause between two writes of embeddings: what a killed worker has to do again, at most. A write takes about 15 ms."""

LISTING_LASTS_S = 300.0
"""How old a listing may become that is interrupted again and again; tasks may have changed since it began, and what did
is asked for once more by the reconciliation."""


class Embedder:
    """Embeds the tasks of all projects, each with the backbone that is the project's at the time."""

    def __init__(
        self,
        *,
        label_studio: LabelStudioClient,
        images: ImageLoader,
        backbone_of: Callable[[int], Backbone],
        jobs: Jobs,
        registry: Registry,
        batch_size: int,
        validation_filter: ValidationFilter | None,
        shards: Shards,
        embedded: Callable[[int, Backbone, EmbeddingTable], object],
    ) -> None:
        """`embedded` is told of a project all of whose images have an embedding, or none that can be made."""
        self._label_studio = label_studio
        self._images = images
        self._backbone_of = backbone_of
        self._jobs = jobs
        self._registry = registry
        self._batch_size = batch_size
        self._validation_filter = validation_filter
        self._shards = shards
        self._embedded = embedded
        self._stores: dict[Place, EmbeddingStore] = {}
        # Listings of tasks that a retrain interrupted: when they began, and what they hold by now.
        self._listings: dict[int, tuple[float, list[Task]]] = {}

    def backbone(self, project_id: int) -> Backbone:
        """The project's backbone; may be another one at the next call."""
        return self._backbone_of(project_id)

    def index(self, project_id: int, fingerprint: str | None = None, dim: int | None = None) -> EmbeddingTable:
        """Which tasks have an embedding, of its backbone unless another fingerprint and dim are named; no numbers."""
        return self._store(project_id, fingerprint, dim).index()

    def working_set(self, project_id: int, backbone: Backbone, task_ids: Collection[int]) -> WorkingSet:
        """The embeddings to learn and choose from; those of `task_ids` are among them, as far as there are any."""
        store = self._store(project_id, backbone.fingerprint, backbone.dim)
        return self._shards.working_set(project_id, store, backbone.fingerprint, task_ids)

    def request_searches(self, project_id: int, backbone: Backbone) -> int:
        """Asks for the searches of shards that are due; how many. A small project has none."""
        store = self._store(project_id, backbone.fingerprint, backbone.dim)
        return self._shards.request(project_id, store, backbone.fingerprint)

    def search(self, project_id: int, shard: int) -> bool:
        """Searches a shard of a large project; see `Shards.search`."""
        backbone = self.backbone(project_id)
        return self._shards.search(project_id, shard, self._store(project_id), backbone)

    def rows(self, project_id: int, task_ids: Sequence[int], fingerprint: str, dim: int) -> EmbeddingTable:
        """The embeddings of some tasks, without reading all the others into memory."""
        return self._store(project_id, fingerprint, dim).take(task_ids)

    def plan(self, project_id: int) -> int | None:
        """Compares the store with the project's tasks, queues batches of what is missing; the number missing.

        Tasks that are gone, or show another image than the one embedded, lose their embedding. When nothing is
        missing any more a retrain is requested, for the pool may have changed. None when a retrain began to wait while
        tasks were listed: the rest is queued again, behind it.
        """
        self._jobs.begin(project_id, "plan_embedding")
        project = self._label_studio.project(project_id)
        config = parse_labeling_config(project.label_config)
        register_project(self._registry, project)
        tasks = self._listed(project_id, config.image_field)
        if tasks is None:
            self._jobs.request_embedding(project_id)
            return None
        split_changed = self._keep_split(project_id, tasks)
        with self._jobs.project_lock(project_id, PLAN_LOCK):
            return self._plan(project_id, tasks, split_changed)

    def _plan(self, project_id: int, tasks: Sequence[Task], split_changed: bool) -> int:
        n_gone = self._forget_all_but(project_id, tasks)
        table = self.index(project_id)
        missing = missing_tasks(table, tasks)
        self._registry.keep_image_failures(
            project_id,
            {task_id: failure.reason for task_id, failure in table.failures.items()},
            transient=[task_id for task_id, failure in table.failures.items() if failure.transient],
        )
        self._jobs.set_progress(project_id, Progress(len(tasks) - len(missing), len(tasks)))
        # Of a large project the last search asks for the retrain.
        searching = not missing and self.request_searches(project_id, self.backbone(project_id)) > 0
        if split_changed or not (missing or searching):
            self._jobs.request_retrain(project_id)
        if not missing:
            self._embedded(project_id, self.backbone(project_id), table)
            return 0
        # Also those being embedded just now, whatever other worker has them.
        queued = self._jobs.open_buckets(project_id)
        buckets: dict[int, list[Task]] = defaultdict(list)
        for task in missing:
            buckets[task.id // self._batch_size].append(task)
        for bucket, batch in sorted(buckets.items()):
            if bucket not in queued:
                self._jobs.enqueue_batch(project_id, bucket, batch)
        logger.info(
            "embedding planned project=%d tasks=%d missing=%d gone=%d", project_id, len(tasks), len(missing), n_gone
        )
        return len(missing)

    @property
    def listed_fields(self) -> Sequence[str]:
        """Fields of the tasks' data, beside the image, that decide something: those of VALIDATION_FILTER."""
        return self._validation_filter.fields if self._validation_filter else ()

    def is_planned(self, project_id: int, tasks: Sequence[Task]) -> bool:
        """Whether nothing about these tasks, as Label Studio has them now, calls for a plan: image and split are known.

        The tasks come with their `listed_fields`.
        """
        if missing_tasks(self.index(project_id), tasks):
            return False
        wanted, split = self._validation_filter, self._registry.validation_split(project_id)
        if wanted is None or not wanted.field:
            return True
        return split is not None and all(wanted.holds(task.fields) == (task.id in split.task_ids) for task in tasks)

    def embed_batch(self, project_id: int, tasks: Sequence[Task]) -> None:
        """Embeds what is still missing of a planned batch; the last batch of a plan asks for the next plan.

        When a retrain begins to wait, what is left of the batch is queued again, behind it.
        """
        backbone = self.backbone(project_id)
        missing = self._missing(project_id, tasks, backbone)
        if len(missing) < len(tasks):
            self._jobs.advance_progress(project_id, len(tasks) - len(missing))
        if len(missing) >= WORTH_ACCELERATING:
            backbone.accelerate()

        def may_go_on(n_embedded: int) -> bool:
            self._jobs.advance_progress(project_id, n_embedded)
            return not self._jobs.queue_depths()[RETRAIN_QUEUE]

        left = self._embed(project_id, missing, backbone, may_go_on)
        if left:
            self._jobs.enqueue_batch(project_id, left[0].id // self._batch_size, left)
        if self._jobs.end_batch(project_id):
            self._jobs.request_embedding(project_id)

    def embed_now(self, project_id: int, tasks: Sequence[Task], backbone: Backbone | None = None) -> None:
        """Embeds the tasks that have no embedding yet, here and now; a broken image is kept as a failure.

        With the project's backbone unless another is given.
        """
        backbone = backbone or self.backbone(project_id)
        self._embed(project_id, self._missing(project_id, tasks, backbone), backbone, lambda _: True)

    def _missing(self, project_id: int, tasks: Sequence[Task], backbone: Backbone) -> list[Task]:
        # Not all embeddings: while several workers write, each would read everything anew for each of its batches.
        known = self.rows(project_id, [task.id for task in tasks], backbone.fingerprint, backbone.dim)
        return missing_tasks(known, tasks)

    def _embed(
        self, project_id: int, tasks: Sequence[Task], backbone: Backbone, may_go_on: Callable[[int], bool]
    ) -> Sequence[Task]:
        """Embeds tasks and writes as it goes; those left when `may_go_on`, told the size of each batch, said no."""
        if not tasks:
            return []
        started = written = time.monotonic()
        hostname = self._own_hostname(project_id)
        store = self._store(project_id, backbone.fingerprint, backbone.dim)
        rows: list[EmbeddingRow] = []
        n_done = n_failed = 0

        def load(task: Task) -> Image.Image:
            return self._load(task, hostname, backbone.input_side)

        try:
            with closing(embed_in_batches(backbone, tasks, load)) as batches:
                for batch in batches:
                    for task, outcome in batch:
                        reference = task.image or ""
                        if isinstance(outcome, ImageError):
                            logger.warning("image left out project=%d task=%d: %s", project_id, task.id, outcome)
                            failure = ImageFailure(str(outcome), outcome.transient)
                            rows.append(EmbeddingRow(task.id, reference, failure=failure))
                            n_failed += 1
                        else:
                            rows.append(EmbeddingRow(task.id, reference, embedding=outcome))
                    n_done += len(batch)
                    if time.monotonic() - written >= WRITE_EVERY_S:
                        store.upsert(rows)
                        rows, written = [], time.monotonic()
                    if not may_go_on(len(batch)):
                        break
        finally:
            store.upsert(rows)
        took = time.monotonic() - started
        logger.info(
            "embedded project=%d images=%d failed=%d took=%.1fs (%.0f/s)",
            project_id, n_done, n_failed, took, n_done / max(took, 1e-6),
        )  # fmt: skip
        return tasks[n_done:]

    def load_images(self, project_id: int, tasks: Sequence[Task], *, min_side: int) -> list[Image.Image | ImageError]:
        """The tasks' pictures, or why one cannot be had, in order; `min_side` as for `ImageLoader.load`."""
        hostname = self._own_hostname(project_id)

        def load(task: Task) -> Image.Image | ImageError:
            try:
                return self._load(task, hostname, min_side)
            except ImageError as exc:
                return exc

        with ThreadPoolExecutor(n_loaders(), thread_name_prefix="fetch") as threads:
            return list(threads.map(load, tasks))

    def load_image(self, project_id: int, task: Task, *, min_side: int) -> Image.Image:
        """The task's picture; `min_side` as for `ImageLoader.load`. Raises ImageError."""
        return self._load(task, self._own_hostname(project_id), min_side)

    def forget(self, project_id: int, task_ids: Sequence[int], backbone: Backbone | None = None) -> None:
        """Deletes the embeddings and failures of some tasks, of the project's backbone unless another is given."""
        backbone = backbone or self.backbone(project_id)
        self._store(project_id, backbone.fingerprint, backbone.dim).remove(task_ids)

    def discard(self, project_id: int, fingerprint: str) -> None:
        """Deletes all embeddings of a backbone that is no longer needed."""
        self._store(project_id, fingerprint, 0).discard()
        self._shards.discard(project_id, fingerprint)
        self._stores.pop(self._registry.project_directory(project_id) / "embeddings" / fingerprint)

    def forget_deleted(self, project_id: int) -> int:
        """Deletes the embeddings of tasks that Label Studio no longer has; how many there were."""
        config = parse_labeling_config(self._label_studio.project(project_id).label_config)
        return self._forget_all_but(project_id, self._label_studio.tasks(project_id, config.image_field))

    def validation_split(self, project_id: int, image_field: str) -> ValidationSplit | None:
        """The tasks VALIDATION_FILTER takes by their data; None when it does not look at data.

        `plan` keeps it with every listing of tasks, so that a retrain costs no request for it; only after the setting
        changed all tasks are listed here.
        """
        if self._validation_filter is None or not self._validation_filter.field:
            return None
        split = self._registry.validation_split(project_id)
        if split is None or split.filter != str(self._validation_filter):
            tasks = self._label_studio.tasks(project_id, image_field, fields=self.listed_fields)
            self._keep_split(project_id, tasks)
            split = self._registry.validation_split(project_id)
        return split

    def _listed(self, project_id: int, image_field: str) -> list[Task] | None:
        """All tasks of the project; None when a retrain began to wait, and the next call goes on from there."""
        began, tasks = self._listings.pop(project_id, (0.0, []))
        if time.monotonic() - began > LISTING_LASTS_S:
            began, tasks = time.monotonic(), []
        while True:
            last = tasks[-1].id if tasks else 0
            page = self._label_studio.tasks_after(project_id, image_field, last, fields=self.listed_fields)
            tasks += page
            if len(page) < TASKS_PER_PAGE:
                return tasks
            if self._jobs.retrain_waits():
                self._listings[project_id] = began, tasks
                return None

    def _keep_split(self, project_id: int, tasks: Sequence[Task]) -> bool:
        """Keeps the validation split among all tasks, with their `listed_fields`; whether it changed."""
        wanted = self._validation_filter
        if wanted is None or not wanted.field:
            return False
        taken = frozenset(task.id for task in tasks if wanted.holds(task.fields))
        newest = max((task.id for task in tasks), default=0)
        return self._registry.keep_validation_split(project_id, ValidationSplit(str(wanted), taken, newest))

    def _forget_all_but(self, project_id: int, tasks: Sequence[Task]) -> int:
        task_ids = {task.id for task in tasks}
        gone = [task_id for task_id in self.index(project_id).references if task_id not in task_ids]
        if gone:
            self.forget(project_id, gone)
        return len(gone)

    def _own_hostname(self, project_id: int) -> str:
        """The address that Label Studio puts before its own paths, which we may reach under another one."""
        hostname = (self._registry.project_facts(project_id) or {}).get("hostname")
        return str(hostname).rstrip("/") if hostname else ""

    def _load(self, task: Task, hostname: str, min_side: int) -> Image.Image:
        if task.image is None:
            raise ImageError(f"task {task.id} has no text in the field that the labeling config shows as image")
        reference = task.image
        if hostname and reference.startswith(f"{hostname}/data/"):
            reference = reference.removeprefix(hostname)
        return self._images.load(reference, task_id=task.id, min_side=min_side)

    def _store(self, project_id: int, fingerprint: str | None = None, dim: int | None = None) -> EmbeddingStore:
        if fingerprint is None or dim is None:
            backbone = self.backbone(project_id)
            fingerprint, dim = backbone.fingerprint, backbone.dim
        folder = self._registry.project_directory(project_id) / "embeddings"
        key = folder / fingerprint
        if key not in self._stores:
            self._stores[key] = EmbeddingStore(folder, fingerprint, dim)
        return self._stores[key]


def missing_tasks(table: EmbeddingTable, tasks: Sequence[Task]) -> list[Task]:
    """Those tasks that have neither embedding nor failure in the table, or one of another image."""
    outdated = set(table.outdated({task.id: task.image or "" for task in tasks}))
    return [task for task in tasks if task.id in outdated]
