"""Image embeddings of one project, kept in a Lance dataset per backbone fingerprint."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import random
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from backend.errors import BackendError
from backend.storage import Place, open_folder

logger = logging.getLogger(__name__)

# After how many writes small files are joined and old versions dropped.
DEFAULT_WRITES_PER_CLEANUP = 64
# How long an old version stays, so that another process still reading it is not disturbed.
DEFAULT_KEEP_VERSIONS_S = 600.0
# Files of at least this many rows are not rewritten when small ones are joined: 8,192 x 1,280 float16 is 21 MB.
_ROWS_PER_FILE = 8192
# Above this many rows `take` reads the whole dataset, which is then faster than looking rows up.
_MAX_ROWS_TAKEN = 2000
# Own writes are merged into the table in memory up to this many rows; beyond, reading it afresh costs no more.
_MAX_UNMERGED_ROWS = 10_000
# A reader can lose a race against another process that drops old versions; the next try sees the newest one.
_READ_ATTEMPTS = 3
# Writers at an address take no turns: who loses to others, after Lance's own ten tries, tries so many times more.
_WRITE_ATTEMPTS = 10
# What Lance's messages hold when another writer was first, or dropped the version that was begun from.
_CONFLICTS = ("conflict", "concurrent", "already exists", "was not found")
# References longer than this (data URIs) are kept as their hash.
_MAX_REFERENCE_CHARS = 512
_FLOAT16_MAX = float(np.finfo(np.float16).max)
# At an address: the file below the store's folder that names its dataset.
_DATASET_NAME = "dataset.txt"
_CHECK_STORE = "check the address in DATA_DIR, the store's keys in the environment, and that it is up"
# What Lance's messages hold when the machine, not the dataset, is at fault (it raises plain OSError without errno).
_MACHINE_FAULTS = ("permission denied", "too many open files", "cannot allocate", "no space left", "read-only file")

_COLUMNS = ("task_id", "image", "embedding", "error", "transient")

_Answer = TypeVar("_Answer")
# The identity of a dataset's content: the dataset's own id (a rebuilt one counts versions from 1 again) and version.
_Token = tuple[str, int]
# (name, inode, bytes, time of change) of the files of a dataset.
_Files = frozenset[tuple[str, int, int, int]]
# What was there before a write, and a test whether the token after it tells of this write and no other.
_Written = tuple[_Token | None, Callable[[_Token], bool]]


@dataclass(frozen=True)
class ImageFailure:
    """Why an image has no embedding; `transient` when trying again later may help."""

    reason: str
    transient: bool


@dataclass(frozen=True, eq=False)
class EmbeddingRow:
    """What embedding one task's image gave: an embedding (D,), or the failure in its place."""

    task_id: int
    reference: str
    embedding: npt.NDArray[np.floating[Any]] | None = None
    failure: ImageFailure | None = None


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """All embeddings of a store at one version; arrays are read-only and sorted by task id."""

    task_ids: npt.NDArray[np.int64]  # (N,), ascending
    embeddings: npt.NDArray[np.float16]  # (N, D), row i belongs to task_ids[i]
    failures: Mapping[int, ImageFailure]  # by task id; such tasks have no row above
    references: Mapping[int, str]  # by task id, of all tasks, failed ones too; long ones as `reference_key` gives them
    version: int  # of the dataset it was read from; 0 when there is none

    @cached_property
    def digest(self) -> str:
        """Identity of what is in the table: which task has an embedding of which image, or none."""
        content = hashlib.sha256(np.ascontiguousarray(self.task_ids).tobytes())
        for task_id in self.task_ids.tolist():
            content.update(self.references[task_id].encode("utf-8", "replace") + b"\n")
        return content.hexdigest()

    def rows_of(self, task_ids: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        """Return indices (M,) into `task_ids` and `embeddings`, -1 for a task without an embedding."""
        wanted = np.asarray(task_ids, dtype=np.int64)
        if not len(self.task_ids):
            return np.full(len(wanted), -1, dtype=np.intp)
        rows = np.searchsorted(self.task_ids, wanted)
        found = self.task_ids[np.minimum(rows, len(self.task_ids) - 1)] == wanted
        return np.where(found, rows, -1).astype(np.intp)

    def get(self, task_id: int) -> npt.NDArray[np.float16] | None:
        """Return the embedding (D,) of one task, None when it has none."""
        row = int(self.rows_of([task_id])[0])
        return None if row < 0 else self.embeddings[row]

    def rows_in(self, other: EmbeddingTable) -> npt.NDArray[np.intp]:
        """For each row the row (N,) of the same task and image in another table, -1 where that has none."""
        rows = other.rows_of(self.task_ids)
        for row in np.flatnonzero(rows >= 0).tolist():
            task_id = int(self.task_ids[row])
            if self.references[task_id] != other.references[task_id]:
                rows[row] = -1
        return rows

    def outdated(self, references: Mapping[int, str]) -> list[int]:
        """Return the task ids of `references` that are not here, or were computed from another reference."""
        return [task_id for task_id, text in references.items() if self.references.get(task_id) != reference_key(text)]


class _Places:
    """Where the tasks' rows are in one version of a dataset: 16 bytes a row, once they are learned."""

    def __init__(self, token: _Token) -> None:
        self.token = token
        self.order: npt.NDArray[np.intp] | None = None  # (rows,): the place of each of `_task_ids`
        self._task_ids: npt.NDArray[np.int64] = np.empty(0, np.int64)  # (rows,), ascending

    def learn(self, task_ids: npt.NDArray[np.int64]) -> None:
        """Take the tasks (rows,) as they stand in the dataset."""
        self.order = np.argsort(task_ids, kind="stable")
        self._task_ids = task_ids[self.order]

    def of(self, task_ids: Sequence[int]) -> list[int]:
        """Return the places of those of these tasks that have a row, ascending; of two rows of a task both."""
        assert self.order is not None
        first, end = (np.searchsorted(self._task_ids, task_ids, side=side) for side in ("left", "right"))
        rows = [self.order[start:stop] for start, stop in zip(first.tolist(), end.tolist(), strict=True)]
        return sorted(np.concatenate(rows).tolist()) if rows else []


class EmbeddingStore:
    """Embeddings of one project and one backbone: `<directory>/<fingerprint>.lance`, at an address a dataset below it.

    Many threads and processes may use the same store: writers take turns under a file lock, readers see whole versions.
    A writer killed midway leaves the version before. A dataset that cannot be read is moved aside, since everything in
    it can be computed again. Lance keeps threads of its own: a process must not fork after it used a store.

    At an address of an object store (`backend.storage.Address`), where hosts share it, there is no lock: Lance puts
    every version on condition that nobody else put it, and who was not first begins again from the newest. Two that
    insert the same task at once leave it two rows, of which readers take the later. Nothing is moved aside there: what
    cannot be read is mostly out of reach.

    Errors that no rebuilding mends (no permission, disk full, no network) are raised as BackendError.
    """

    def __init__(
        self,
        directory: Place,
        fingerprint: str,
        dim: int,
        *,
        writes_per_cleanup: int = DEFAULT_WRITES_PER_CLEANUP,
        keep_versions_s: float = DEFAULT_KEEP_VERSIONS_S,
    ) -> None:
        self._name = f"{fingerprint}.lance"
        self.path = directory / self._name
        # Lance refuses http:// otherwise, which stores of one's own (MinIO and the like) may speak.
        self._options = {} if isinstance(directory, Path) else {"storage_options": {"allow_http": "true"}}
        self.dim = dim
        self._folder = open_folder(directory)
        self._lock_path = directory / f"{fingerprint}.lock" if isinstance(directory, Path) else None
        self._writes_per_cleanup = writes_per_cleanup
        self._keep_versions_s = keep_versions_s
        self._lock = threading.RLock()  # guards what follows; always taken before the file lock
        self._table: EmbeddingTable | None = None
        self._index: EmbeddingTable | None = None
        self._index_token: _Token | None = None
        self._counted: tuple[_Token, int] | None = None
        self._places: _Places | None = None
        self._kept: tuple[_Files, Any] | None = None  # what `_newest` opened, and of which files
        self._table_token: _Token | None = None  # what `_table` together with `_unmerged` shows
        self._unmerged: dict[int, EmbeddingRow | None] = {}  # own writes since `_table` was read; None: removed
        self._pid: int | None = None
        self._dataset_name: str | None = None  # at an address: which of the datasets there is the store's

    @property
    def version(self) -> int:
        """The dataset's version, 0 while there is none; costs about a millisecond."""
        with self._lock:
            token = self._reading(self._token)
            return token[1] if token else 0

    def count(self) -> int:
        """How many tasks have a row, an embedding or a failure; as cheap as `version`."""
        with self._lock:
            token = self._reading(self._token)
            if token is None:
                return 0
            if self._counted is None or self._counted[0] != token:
                self._counted = token, self._reading(self._n_rows)
            return self._counted[1]

    def read(self) -> EmbeddingTable:
        """Return everything; the very same object until somebody writes.

        100,000 x 1,280 take about a second to read from disk. Writes of this process are merged in memory.
        """
        with self._lock:
            token = self._reading(self._token)
            if self._table is None or self._table_token != token:
                self._unmerged = {}
                self._table, self._table_token = self._reading(self._load) if token else (self._empty(), None)
            elif self._unmerged:
                version = token[1] if token else 0
                self._table, self._unmerged = _merged(self._table, self._unmerged, version), {}
            return self._table

    def index(self) -> EmbeddingTable:
        """Everything but the numbers: `embeddings` is (N, 0). Again the very same object until somebody writes.

        For stores too large for memory: of 1,000,000 tasks it takes about 200 MB.
        """
        with self._lock:
            token = self._reading(self._token)
            if self._table is not None and self._table_token == token:
                table = self.read()
                if self._index is None or self._index_token != token:
                    self._index = replace(table, embeddings=table.embeddings[:, :0])
            elif self._index is None or self._index_token != token:
                columns = [name for name in _COLUMNS if name != "embedding"]
                self._index = self._reading(partial(self._load, columns=columns))[0] if token else self._empty()
            self._index_token = token
            return self._index

    def between(self, first: int, last: int) -> EmbeddingTable:
        """The rows of the tasks from `first` to `last`, that one left out, without reading the others into memory."""
        with self._lock:
            return self._reading(partial(self._load, f"task_id >= {int(first)} AND task_id < {int(last)}"))[0]

    def take(self, task_ids: Sequence[int]) -> EmbeddingTable:
        """Return the rows of these tasks only, without reading everything into memory; unknown tasks are left out."""
        with self._lock:
            wanted = sorted({int(task_id) for task_id in task_ids})
            token = self._reading(self._token)
            if token is None or not wanted:
                return self._empty(token)
            if len(wanted) > _MAX_ROWS_TAKEN or (self._table is not None and self._table_token == token):
                return _subset(self.read(), wanted)
            return self._reading(partial(self._look_up, wanted))

    def upsert(self, rows: Sequence[EmbeddingRow]) -> None:
        """Write rows in one commit, replacing those of the same task; of two for one task the later counts."""
        changes: dict[int, EmbeddingRow | None] = {row.task_id: self._checked(row) for row in rows}
        if not changes:
            return
        table = self._arrow_table([row for row in changes.values() if row is not None])
        self._write(changes, lambda dataset: _merge_insert(dataset, table), create_from=table)

    def remove(self, task_ids: Iterable[int]) -> None:
        """Remove the rows of these tasks; unknown ones are fine."""
        changes: dict[int, EmbeddingRow | None] = {int(task_id): None for task_id in task_ids}
        if not changes or (isinstance(self.path, Path) and not self.path.exists()):
            return
        condition = f"task_id IN ({', '.join(map(str, changes))})"
        self._write(changes, lambda dataset: dataset.delete(condition), create_from=None)

    def discard(self) -> None:
        """Delete everything; written to again, the store begins empty."""
        with self._lock, self._file_lock():
            self._folder.remove(self._name, first=_DATASET_NAME)
            self._table, self._table_token, self._unmerged = None, None, {}
            self._index, self._index_token = None, None

    def _write(
        self, changes: Mapping[int, EmbeddingRow | None], change: Callable[[Any], object], create_from: Any
    ) -> None:
        with self._lock, self._file_lock():
            write = self._write_among_others if self._lock_path is None else self._write_in_turn
            before, alone = write(change, create_from)
            dataset = self._open()
            if dataset is None:
                return
            after = _token_of(dataset)
            if before is not None and self._is_cleanup_due(before[1], dataset.version):
                dataset = self._clean_up(dataset)
            if self._table is not None and self._table_token == before and alone(after):
                self._unmerged.update(changes)
                self._table_token = _token_of(dataset)
            if len(self._unmerged) > _MAX_UNMERGED_ROWS:
                self._table, self._unmerged = None, {}

    def _write_in_turn(self, change: Callable[[Any], object], create_from: Any) -> _Written:
        """Writes under the file lock, where nobody else does."""
        dataset = self._open_or_set_aside()
        before = _token_of(dataset) if dataset is not None else None
        if dataset is not None:
            try:
                with _lance_errors():
                    change(dataset)
            except _LanceError as exc:
                # Either the machine failed (then everything can still be read) or the dataset is broken.
                if self._set_aside_if_broken() is not None:
                    raise BackendError(f"{self.path} cannot be written: {exc}; check the disk") from exc
                dataset = None
        if dataset is None and create_from is not None:
            try:
                self._create(create_from)
            except _LanceError as exc:
                raise BackendError(f"{self.path} cannot be written: {exc}; check the disk") from exc
        return before, lambda after: True

    def _write_among_others(self, change: Callable[[Any], object], create_from: Any) -> _Written:
        """Writes while others may: begun again from the newest version whenever one of them was first."""
        for attempt in range(1, _WRITE_ATTEMPTS + 1):
            try:
                dataset = self._open()
                before = _token_of(dataset) if dataset is not None else None
                if dataset is None:
                    if create_from is not None:
                        self._create(create_from)
                else:
                    with _lance_errors():
                        change(dataset)
                break
            except _LanceError as exc:
                is_conflict = any(word in str(exc).lower() for word in _CONFLICTS)
                if not is_conflict or attempt == _WRITE_ATTEMPTS:
                    raise BackendError(f"{self.path} cannot be written: {exc}; {_CHECK_STORE}") from exc
            time.sleep(random.uniform(0, 0.1 * attempt))
        # Only if nobody wrote between is the table in memory, with our rows, what is kept there now.
        return before, lambda after: before is not None and after == (before[0], before[1] + 1)

    def _create(self, table: Any) -> None:
        import lance

        if self._lock_path is not None:
            with _lance_errors():
                lance.write_dataset(table, self.path, mode="create", max_rows_per_file=4 * _ROWS_PER_FILE)
            return
        # Of two that create one dataset at once Lance lets the second overwrite the first (pylance 14.0.2). So each
        # creates its own, and the one whose name is put first is the store's.
        name = f"{uuid.uuid4().hex}.lance"
        with _lance_errors():
            lance.write_dataset(
                table, f"{self.path}/{name}", mode="create", max_rows_per_file=4 * _ROWS_PER_FILE, **self._options
            )
        try:
            self._folder.create(self._name, {_DATASET_NAME: name.encode()})
        except FileExistsError as exc:
            self._folder.remove(f"{self._name}/{name}")
            raise _LanceError(f"{self.path} already exists") from exc

    def _is_cleanup_due(self, version_before: int, version: int) -> bool:
        # Counted by the dataset's versions, so that short-lived processes and several writers together keep the rhythm.
        return version // self._writes_per_cleanup > version_before // self._writes_per_cleanup

    def _clean_up(self, dataset: Any) -> Any:
        """Join small files and drop old versions; a failure costs disk space only."""
        try:
            with _lance_errors():
                dataset.optimize.compact_files(target_rows_per_fragment=_ROWS_PER_FILE)
                # Left-overs of killed writers can go at once where nobody else is writing, for we hold the file lock.
                dataset.cleanup_old_versions(
                    timedelta(seconds=self._keep_versions_s), delete_unverified=self._lock_path is not None
                )
        except _LanceError as exc:
            logger.warning("embedding store not cleaned up path=%s reason=%s", self.path, exc)
        return self._open()

    def _open(self) -> Any | None:
        """The dataset at its newest version, None when there is none yet."""
        import lance

        if self._pid not in (None, os.getpid()):
            raise BackendError(f"{self.path} was in use before this process was forked; open the store after the fork")
        self._pid = os.getpid()
        # A folder without a manifest is what a writer leaves that was killed before its first commit.
        if isinstance(self.path, Path):
            if not any((self.path / "_versions").glob("*.manifest")):
                return None
            with _lance_errors():
                return lance.dataset(self.path)
        known = self._dataset_name
        if known is None:
            known = self._dataset_name = self._read_dataset_name()
        if known is None:
            return None
        try:
            with _lance_errors():
                return lance.dataset(f"{self.path}/{known}", **self._options)
        except _LanceError:
            self._dataset_name = self._read_dataset_name()
            if self._dataset_name == known:
                raise
            return self._open()  # the store was discarded meanwhile, and perhaps begun again

    def _read_dataset_name(self) -> str | None:
        raw = self._folder.read(f"{self._name}/{_DATASET_NAME}")
        return raw.decode() if raw is not None else None

    def _newest(self) -> Any | None:
        """As `_open`, but in a local folder the dataset that was opened last if nothing was written since.

        It knows where its files have what, which takes longer to learn than a few rows to read. Files that were changed
        are read anew: Lance writes each once, so one of another size or time was damaged.
        """
        if not isinstance(self.path, Path) or self._pid not in (None, os.getpid()):
            return self._open()
        try:
            files = _files_of(self.path)
        except OSError:
            return self._open()
        with _lance_errors():
            if self._kept is not None and self._kept[0] == files:
                dataset = self._kept[1]
                if dataset.latest_version == dataset.version:  # two writes may be told the same time
                    return dataset
        dataset = self._open()
        self._kept = (files, dataset) if dataset is not None else None
        return dataset

    def _token(self) -> _Token | None:
        dataset = self._newest()
        return None if dataset is None else _token_of(dataset)

    def _n_rows(self) -> int:
        dataset = self._open()
        with _lance_errors():
            return 0 if dataset is None else int(dataset.count_rows())

    def _load(
        self, condition: str | None = None, columns: Sequence[str] = _COLUMNS
    ) -> tuple[EmbeddingTable, _Token | None]:
        dataset = self._open()
        if dataset is None:
            return self._empty(), None
        self._check_width(dataset)
        with _lance_errors():
            token = _token_of(dataset)
            found = dataset.to_table(columns=list(columns), filter=condition)
            return _table_from(found, self.dim if "embedding" in columns else 0, token[1]), token

    def _look_up(self, task_ids: Sequence[int]) -> EmbeddingTable:
        """The rows of these tasks; by their places when the version they are in is asked a second time.

        To find the places costs as much as to look for some tasks, and is of no use while others write.
        """
        dataset = self._newest()
        if dataset is None:
            return self._empty()
        self._check_width(dataset)
        token = _token_of(dataset)
        if self._places is None or self._places.token != token:
            self._places = _Places(token)
            condition = f"task_id IN ({', '.join(map(str, task_ids))})"
            with _lance_errors():
                return _table_from(dataset.to_table(columns=list(_COLUMNS), filter=condition), self.dim, token[1])
        with _lance_errors():
            if self._places.order is None:
                self._places.learn(dataset.to_table(columns=["task_id"])["task_id"].to_numpy())
            found = dataset.take(self._places.of(task_ids), columns=list(_COLUMNS))
            return _table_from(found, self.dim, token[1])

    def _check_width(self, dataset: Any) -> None:
        with _lance_errors():
            width = dataset.schema.field("embedding").type.list_size
            if width != self.dim:
                raise ValueError(f"it holds embeddings of {width} values, expected {self.dim}")

    def _reading(self, read: Callable[[], _Answer]) -> _Answer:
        """What `read` returns; a dataset that stays unreadable is set aside first, and `read` sees an empty store."""
        for attempt in range(_READ_ATTEMPTS):
            try:
                return read()
            except _LanceError as exc:
                self._kept, self._places = None, None
                if self._lock_path is None and attempt == _READ_ATTEMPTS - 1:
                    raise BackendError(f"{self.path} cannot be read: {exc}; {_CHECK_STORE}") from exc
                time.sleep(0.05 * attempt)
        with self._file_lock():
            self._set_aside_if_broken()
        try:
            return read()
        except _LanceError as exc:
            raise BackendError(f"{self.path} cannot be read: {exc}; check the disk") from exc

    def _open_or_set_aside(self) -> Any | None:
        try:
            dataset = self._open()
            with _lance_errors():
                if dataset is None or dataset.schema.field("embedding").type.list_size == self.dim:
                    return dataset
        except _LanceError:
            pass
        return self._set_aside_if_broken()

    def _set_aside_if_broken(self) -> Any | None:
        """The dataset if all of it can be read, else None with the dataset moved aside; needs the file lock."""
        assert isinstance(self.path, Path)
        try:
            self._load()
            return self._open()
        except _LanceError as exc:
            if any(fault in str(exc).lower() for fault in _MACHINE_FAULTS):
                raise BackendError(f"{self.path} cannot be read: {exc}; check the disk and its permissions") from exc
            aside = self.path.with_name(f"{self.path.name}.corrupt")
            shutil.rmtree(aside, ignore_errors=True)  # of the last time: one is enough to look for the cause
            self.path.rename(aside)
            self._table, self._unmerged = None, {}
            logger.warning("embedding store moved aside path=%s to=%s reason=%s", self.path, aside, exc)
            return None

    @contextlib.contextmanager
    def _file_lock(self) -> Iterator[None]:
        # The lock goes with the process that holds it, however that ends. Lance alone would let two writers insert the
        # same new task twice.
        if self._lock_path is None:
            yield
            return
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock_path.open("ab") as lock_file:
            fcntl.flock(lock_file, fcntl.LOCK_EX)
            yield

    def _checked(self, row: EmbeddingRow) -> EmbeddingRow:
        if (row.embedding is None) == (row.failure is None):
            raise ValueError(f"task {row.task_id}: a row holds either an embedding or a failure")
        embedding = row.embedding
        if embedding is not None:
            if embedding.shape != (self.dim,):
                raise ValueError(f"task {row.task_id}: embedding of shape {embedding.shape}, expected ({self.dim},)")
            if not np.isfinite(embedding).all():
                raise ValueError(f"task {row.task_id}: the embedding holds values that are not finite")
            embedding = np.clip(embedding, -_FLOAT16_MAX, _FLOAT16_MAX).astype(np.float16)
        return EmbeddingRow(int(row.task_id), reference_key(row.reference), embedding, row.failure)

    def _arrow_table(self, rows: Sequence[EmbeddingRow]) -> Any:
        import pyarrow as pa

        embedded = np.array([row.embedding is not None for row in rows])
        values = np.zeros((len(rows), self.dim), dtype=np.float16)
        for values_row, row in zip(values, rows, strict=True):
            if row.embedding is not None:
                values_row[:] = row.embedding
        schema = pa.schema(
            [
                pa.field("task_id", pa.int64(), nullable=False),
                pa.field("image", pa.string(), nullable=False),
                pa.field("embedding", pa.list_(pa.float16(), self.dim)),
                pa.field("error", pa.string()),
                pa.field("transient", pa.bool_(), nullable=False),
            ],
            metadata={"store_id": uuid.uuid4().hex},
        )
        return pa.table(
            [
                pa.array([row.task_id for row in rows], pa.int64()),
                pa.array([row.reference for row in rows], pa.string()),
                pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), self.dim, mask=pa.array(~embedded)),
                pa.array([row.failure.reason if row.failure else None for row in rows], pa.string()),
                pa.array([bool(row.failure and row.failure.transient) for row in rows], pa.bool_()),
            ],
            schema=schema,
        )

    def _empty(self, token: _Token | None = None) -> EmbeddingTable:
        return _frozen_table(
            np.empty(0, np.int64), np.empty((0, self.dim), np.float16), {}, {}, token[1] if token else 0
        )


def reference_key(reference: str) -> str:
    """Return the reference as the store keeps and compares it: itself, or its hash when it is long (a data URI)."""
    if len(reference) <= _MAX_REFERENCE_CHARS:
        return reference
    import hashlib

    return f"sha256:{hashlib.sha256(reference.encode()).hexdigest()}"


class _LanceError(Exception):
    """Whatever Lance raised, in its words."""


@contextlib.contextmanager
def _lance_errors() -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as exc:  # Arrow's errors are children of these
        raise _LanceError(str(exc)) from exc
    except BaseException as exc:
        # Damaged files make Lance's Rust code panic, which arrives as a BaseException whose class cannot be imported.
        if type(exc).__name__ != "PanicException":
            raise
        raise _LanceError(str(exc)) from exc


def _token_of(dataset: Any) -> _Token:
    metadata = dataset.schema.metadata or {}
    return metadata.get(b"store_id", b"").decode(), int(dataset.version)


def _files_of(path: Path) -> _Files:
    """The manifests and data files of a dataset in a folder. Raises OSError when a folder of them is not there."""
    found = set()
    for name in ("_versions", "data"):
        with os.scandir(path / name) as entries:
            for entry in entries:
                seen = entry.stat()
                found.add((entry.name, seen.st_ino, seen.st_size, seen.st_mtime_ns))
    return frozenset(found)


def _merge_insert(dataset: Any, table: Any) -> None:
    dataset.merge_insert("task_id").when_matched_update_all().when_not_matched_insert_all().execute(table)


def _table_from(arrow_table: Any, dim: int, version: int) -> EmbeddingTable:
    ids = arrow_table["task_id"].to_numpy()  # (all rows,)
    # The last row of each task; writers at an address may leave it more than one.
    last = len(ids) - 1 - np.unique(ids[::-1], return_index=True)[1]
    if len(last) < len(ids):
        arrow_table = arrow_table.take(np.sort(last))
        ids = arrow_table["task_id"].to_numpy()
    embedded = np.asarray(arrow_table["error"].is_null())
    task_ids = ids[embedded]  # (N,), in the dataset's order
    order = np.argsort(task_ids, kind="stable")
    target = np.empty(len(order), dtype=np.intp)
    target[order] = np.arange(len(order))
    embeddings = np.empty((len(order), dim), dtype=np.float16)
    start = 0
    for chunk in arrow_table["embedding"].chunks if dim else ():
        values = chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)  # without the null rows
        embeddings[target[start : start + len(values)]] = values
        start += len(values)
    failed = arrow_table.select(["task_id", "error", "transient"]).filter(~embedded).to_pylist()
    return _frozen_table(
        task_ids[order],
        embeddings,
        {row["task_id"]: ImageFailure(row["error"] or "", row["transient"]) for row in failed},
        dict(zip(ids.tolist(), arrow_table["image"].to_pylist(), strict=True)),
        version,
    )


def _merged(table: EmbeddingTable, changes: Mapping[int, EmbeddingRow | None], version: int) -> EmbeddingTable:
    failures, references = dict(table.failures), dict(table.references)
    # The new arrays are stitched from the stretches between changed rows: one copy, however large the table.
    id_pieces, embedding_pieces, start = [], [], 0
    for task_id, row in sorted(changes.items()):
        end = int(np.searchsorted(table.task_ids, task_id))
        id_pieces.append(table.task_ids[start:end])
        embedding_pieces.append(table.embeddings[start:end])
        start = end + int(end < len(table.task_ids) and table.task_ids[end] == task_id)
        failures.pop(task_id, None)
        references.pop(task_id, None)
        if row is None:
            continue
        references[task_id] = row.reference
        if row.failure is not None:
            failures[task_id] = row.failure
        if row.embedding is not None:
            id_pieces.append(np.array([task_id], dtype=np.int64))
            embedding_pieces.append(row.embedding[None].astype(np.float16))
    return _frozen_table(
        np.concatenate([*id_pieces, table.task_ids[start:]]),
        np.concatenate([*embedding_pieces, table.embeddings[start:]]),
        failures,
        references,
        version,
    )


def _subset(table: EmbeddingTable, task_ids: Sequence[int]) -> EmbeddingTable:
    rows = table.rows_of(task_ids)
    rows = rows[rows >= 0]
    return _frozen_table(
        table.task_ids[rows],
        table.embeddings[rows],
        {task_id: table.failures[task_id] for task_id in task_ids if task_id in table.failures},
        {task_id: table.references[task_id] for task_id in task_ids if task_id in table.references},
        table.version,
    )


def _frozen_table(
    task_ids: npt.NDArray[np.int64],
    embeddings: npt.NDArray[np.float16],
    failures: dict[int, ImageFailure],
    references: dict[int, str],
    version: int,
) -> EmbeddingTable:
    task_ids.setflags(write=False)
    embeddings.setflags(write=False)
    return EmbeddingTable(task_ids, embeddings, MappingProxyType(failures), MappingProxyType(references), version)
