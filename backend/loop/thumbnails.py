"""Small pictures of the tasks' images, made when first asked for and kept for a day."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from uuid import uuid4

from PIL import Image

from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.registry import Registry
from backend.choices import parse_labeling_config
from backend.errors import ImageError, TaskNotFoundError
from backend.loop.embed import Embedder
from backend.loop.projects import check_known

logger = logging.getLogger(__name__)

SIDE = 256
"""Longest side of a thumbnail, in pixels."""

QUALITY = 80
"""JPEG's; a photo takes about 10 kB."""

KEPT_S = 86_400.0
"""How long a thumbnail is kept, here and by browsers: the image behind a reference seldom changes, but may."""

CACHE_BYTES = 64 * 2**20
"""Thumbnails kept of each project, those used last; about six thousand."""

LEFT_AFTER_CLEANUP = 0.8
"""Share of that which a cleanup leaves, so that not every new thumbnail makes one."""

WRITES_PER_CLEANUP = 64
"""Thumbnails that a process makes between two looks at how much there is."""

USED_EVERY_S = 3600.0
"""How exactly it is known when a thumbnail was used: not every look at one writes to the disk."""

MADE_AT_ONCE = 2
"""Images fetched and decoded at once by a process: a large one takes hundreds of megabytes for a moment."""

FAILURE_LASTS_S = 60.0
"""How long an image that could not be had is not asked for again."""

MAX_FAILURES = 1000


class Thumbnails:
    """Thumbnails of all projects; safe for many threads and processes.

    They lie in `thumbnails/` in the project's folder, whose name goes with a task's id; with DATA_DIR at an address
    nothing is kept here, and browsers keep what they have seen.
    """

    def __init__(
        self,
        *,
        label_studio: LabelStudioClient,
        embedder: Embedder,
        registry: Registry,
        clock: Callable[[], float] = time.time,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._label_studio = label_studio
        self._embedder = embedder
        self._registry = registry
        self._clock = clock
        self._cache_bytes = cache_bytes
        self._guard = threading.Lock()
        self._making = threading.Semaphore(MADE_AT_ONCE)
        self._under_way: dict[tuple[int, int], Future[bytes]] = {}
        self._failures: OrderedDict[tuple[int, int], tuple[float, ImageError]] = OrderedDict()
        self._n_written = 0

    def kept(self, project_id: int, task_id: int) -> bytes | None:
        """The thumbnail as JPEG if it is at hand; None if it has to be made. Raises ProjectNotFoundError."""
        check_known(self._registry, project_id)
        path = self._path(project_id, task_id)
        if path is None:
            return None
        now = self._clock()
        try:
            facts = path.stat()
            if not 0 <= now - facts.st_mtime < KEPT_S:
                return None
            content = path.read_bytes()
            if now - facts.st_atime > USED_EVERY_S:
                os.utime(path, (now, facts.st_mtime))
        except OSError:
            return None
        return content

    def make(self, project_id: int, task_id: int) -> bytes:
        """The thumbnail as JPEG, from the image itself; of those who ask for one at the same time one fetches it.

        Raises ProjectNotFoundError, TaskNotFoundError, ImageError and what Label Studio's client raises.
        """
        check_known(self._registry, project_id)
        key = project_id, task_id
        with self._guard:
            self._raise_known_failure(key)
            waited_for = self._under_way.get(key)
            if waited_for is None:
                own = self._under_way[key] = Future()
        if waited_for is not None:
            return waited_for.result()
        try:
            with self._making:
                content = self._made(project_id, task_id)
            self._keep(project_id, task_id, content)
        except BaseException as exc:
            with self._guard:
                del self._under_way[key]
                if isinstance(exc, ImageError):
                    self._keep_failure(key, exc)
            own.set_exception(exc)
            raise
        with self._guard:
            del self._under_way[key]
        own.set_result(content)
        return content

    def _made(self, project_id: int, task_id: int) -> bytes:
        facts = self._registry.project_facts(project_id) or {}
        image_field = parse_labeling_config(str(facts.get("label_config"))).image_field
        task = self._label_studio.task(project_id, image_field, task_id) if 0 < task_id < 2**63 else None
        if task is None:
            raise TaskNotFoundError(
                f"project {project_id} has no task {task_id}; the number is in the task's address in Label Studio"
            )
        image = self._embedder.load_image(project_id, task, min_side=SIDE // 2)
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        packed = BytesIO()
        image.save(packed, "JPEG", quality=QUALITY)
        return packed.getvalue()

    # -- failures -------------------------------------------------------------------------------------------------

    def _raise_known_failure(self, key: tuple[int, int]) -> None:
        until, exc = self._failures.get(key, (0.0, None))
        if exc is not None and self._clock() < until:
            raise ImageError(str(exc), transient=exc.transient)

    def _keep_failure(self, key: tuple[int, int], exc: ImageError) -> None:
        self._failures[key] = self._clock() + FAILURE_LASTS_S, exc
        self._failures.move_to_end(key)
        while len(self._failures) > MAX_FAILURES:
            self._failures.popitem(last=False)

    # -- on disk --------------------------------------------------------------------------------------------------

    def _path(self, project_id: int, task_id: int) -> Path | None:
        folder = self._registry.project_directory(project_id)
        return folder / "thumbnails" / f"{int(task_id)}.jpg" if isinstance(folder, Path) else None

    def _keep(self, project_id: int, task_id: int, content: bytes) -> None:
        """Writes beside and renames: other processes see a whole file or none. Without room nothing is kept."""
        path = self._path(project_id, task_id)
        if path is None:
            return
        beside = path.with_name(f".{path.name}.{uuid4().hex[:8]}")
        try:
            path.parent.mkdir(exist_ok=True)
            beside.write_bytes(content)
            now = self._clock()
            os.utime(beside, (now, now))
            beside.replace(path)
            with self._guard:
                self._n_written += 1
                is_due = self._n_written % WRITES_PER_CLEANUP == 1
            if is_due:
                self._clean_up(path.parent)
        except OSError as exc:
            logger.warning("thumbnail not kept project=%d task=%d: %s", project_id, task_id, exc)
            with suppress(OSError):
                beside.unlink()

    def _clean_up(self, folder: Path) -> None:
        """Deletes thumbnails, those used longest ago first, while all together take too much."""
        found = []
        for entry in os.scandir(folder):
            try:
                facts = entry.stat()
            except FileNotFoundError:  # another process cleans up, too
                continue
            found.append((facts.st_atime, facts.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        if total <= self._cache_bytes:
            return
        for _, size, path in sorted(found):
            Path(path).unlink(missing_ok=True)
            total -= size
            if total <= LEFT_AFTER_CLEANUP * self._cache_bytes:
                break
