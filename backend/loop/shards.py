"""Shards: how a project is worked on whose embeddings do not fit into one worker's memory.

Its tasks are divided by their ids into shards of `SHARD_SIZE`. Each is searched by a job of its own, on whatever worker
is free: that reads the shard's embeddings, scores them with the published head and keeps those most worth a label, the
*shortlist*; before there is a head, the shard's own first batch (composable coresets: with the strategy `coreset`, each
image of the project is at most four times as far from a chosen one as with the best choice, see
`learning.coreset.merge_coresets`). Beside it the job keeps a random sample.

Shortlists, samples and the answered tasks are the *working set*. A retrain fits, scores and ranks on it as on the whole
of a small project, so a label costs the same whether there are 10⁵ images or 10⁸. Shards are searched again when images
came or went, and as labels grow.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from backend.adapters.backbones import Backbone
from backend.adapters.embedding_store import EmbeddingStore, EmbeddingTable
from backend.adapters.jobs import Jobs
from backend.adapters.registry import Registry
from backend.choices import parse_labeling_config
from backend.config import Settings
from backend.learning.acquisition import utilities
from backend.learning.features import CENTRE_ROWS, evenly_spaced
from backend.learning.first_batch import FIRST_BATCH_STRATEGIES
from backend.learning.head import Head
from backend.learning.later_rounds import rarity
from backend.learning.pool import Pool
from backend.schema import VersionRecord
from backend.storage import Folder, open_folder

logger = logging.getLogger(__name__)

REVISION = "shards"
"""Note that changes whenever all shards have been searched: then the working set is put together anew."""

SAMPLE_SHARE = 0.5
"""Of a project's images as many are sampled as are half a shard: axes, graph and typicality come from those."""

SHORTLIST_SHARE = 0.1
"""All shortlists together have as many images as are a tenth of a shard, little beside the sample."""

MOST_WITHOUT_HEAD = 1000
"""Images of a shard's first batch: many times what is asked for, and 5,000 of 100,000 took a minute to choose."""

SEARCH_AGAIN = 1.2
"""Shards are searched again once there are so many times the labels of the head that searched them, and
`MORE_LABELS` more: thirteen times from 10 to 500 labels."""

MORE_LABELS = 10

ROWS_AT_ONCE = 8192
"""Embeddings scored between two looks whether a retrain waits; to read them takes 0.15 s."""

TAKEN_AT_ONCE = 1000
"""Embeddings read in one request by the ids of their tasks."""

SETS_KEPT = 4
"""Projects whose working sets are kept in memory."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class WorkingSet:
    """The embeddings a project is learned and chosen from.

    table: all of them, or a working set; failures and references are in any case those of all tasks.
    n_embedded: how many the project has.
    n_shards: what it is divided into; 0 if it is not.
    n_unsearched: shards that nobody has searched yet: of their images only answered ones are in the table.
    """

    table: EmbeddingTable
    n_embedded: int
    n_shards: int = 0
    n_unsearched: int = 0


@dataclass(frozen=True)
class Searched:
    """When a shard was searched.

    content: identity of its tasks and images at that time.
    n_labels: of the head that chose the shortlist; None for a first batch, chosen before there was one.
    serial: another one for each search.
    """

    content: str
    n_labels: int | None
    serial: str = field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True, eq=False)
class Found:
    """What the search of a shard found.

    table: sampled and shortlisted tasks.
    images: (N,) identity of the image of each, see `image_keys`.
    is_shortlisted: (N,).
    """

    table: EmbeddingTable
    images: NDArray[np.uint64]
    is_shortlisted: NDArray[np.bool_]


@dataclass(eq=False)
class _Kept:
    """A working set in memory, and what it was put together from."""

    fingerprint: str
    revision: str | None
    found: list[Found]
    n_labels: list[int | None]  # of the heads that chose them
    unsearched: list[int]
    index: EmbeddingTable
    table: EmbeddingTable


@dataclass(eq=False)
class _UnderWay:
    """A search by a head, and what it has by now; kept when a label interrupts it."""

    content: str
    head: Head
    record: VersionRecord
    next_id: int
    samples: list[EmbeddingTable]
    shortlist: EmbeddingTable
    utilities: NDArray[np.float64]  # of the shortlist


class Shards:
    """Working sets of projects with more embeddings than `SHARD_SIZE`, and the searches that they come from."""

    def __init__(self, *, jobs: Jobs, registry: Registry, settings: Settings) -> None:
        self._jobs = jobs
        self._registry = registry
        self._settings = settings
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._under_way: dict[tuple[int, int], _UnderWay] = {}
        self._contents: tuple[EmbeddingTable, dict[int, str]] | None = None

    def is_divided(self, store: EmbeddingStore) -> bool:
        """Whether a store is too large to be read at once."""
        return store.count() > self._settings.shard_size

    def working_set(
        self, project_id: int, store: EmbeddingStore, fingerprint: str, task_ids: Collection[int]
    ) -> WorkingSet:
        """What to learn and choose from: everything in a small project; `task_ids` are in it if they are embedded."""
        if not self.is_divided(store):
            table = store.read()
            return WorkingSet(table, len(table.task_ids))
        revision, index = self._jobs.note(project_id, REVISION), store.index()
        kept = self._kept.pop(project_id, None)
        if kept is None or kept.fingerprint != fingerprint or kept.revision != revision:
            kept = self._read(project_id, fingerprint, revision, index, store.dim)
        elif kept.index is not index:
            kept = self._assembled(kept, index)
        wanted = np.fromiter(task_ids, dtype=np.int64)
        wanted = wanted[(kept.table.rows_of(wanted) < 0) & (index.rows_of(wanted) >= 0)]
        if len(wanted):
            kept.table = _like(index, joined([kept.table, _taken(store, wanted)]))
        self._kept[project_id] = kept
        while len(self._kept) > SETS_KEPT:
            self._kept.popitem(last=False)
        n_unsearched = len(kept.unsearched)
        return WorkingSet(kept.table, len(index.task_ids), len(kept.found) + n_unsearched, n_unsearched)

    def request(self, project_id: int, store: EmbeddingStore, fingerprint: str) -> int:
        """Asks for the search of all shards that are due for one; how many. A small project has none."""
        if not self.is_divided(store):
            return 0
        due = self._due(project_id, fingerprint, store.index())
        for shard in due:
            self._jobs.request_search(project_id, shard)
        if due:
            logger.info("search planned project=%d shards=%d", project_id, len(due))
        return len(due)

    def request_if_stale(self, project_id: int, record: VersionRecord) -> bool:
        """Asks for searches by the published head, once it knows far more labels than the one that searched last."""
        kept = self._kept.get(project_id)
        if kept is None or not any(self._is_stale(n, kept.fingerprint, record) for n in kept.n_labels):
            return False
        if self._jobs.open_searches(project_id):
            return False  # those requested before are not all done
        for shard in self._numbers(kept.index):
            self._jobs.request_search(project_id, shard)
        return True

    def search(self, project_id: int, shard: int, store: EmbeddingStore, backbone: Backbone) -> bool:
        """Searches one shard, unless it is not due; False when a label interrupted it.

        What is left is then queued again, behind the retrain. The last search to end asks for a retrain with what all
        of them found.
        """
        self._jobs.begin(project_id, "search", shard)
        if not self.is_divided(store):
            return True
        index = store.index()
        if shard in self._due(project_id, backbone.fingerprint, index):
            done = self._search(project_id, shard, store, index, backbone)
            if done is None:
                self._jobs.request_search(project_id, shard)
                return False
            searched, found = done
            self._keep(project_id, backbone.fingerprint, shard, found, searched)
            logger.info(
                "searched project=%d shard=%d shortlist=%d sample=%d labels=%s", project_id, shard,
                found.is_shortlisted.sum(), (~found.is_shortlisted).sum(), searched.n_labels or "-",
            )  # fmt: skip
        due = self._due(project_id, backbone.fingerprint, index)
        if shard in due:  # so many labels came meanwhile
            self._jobs.request_search(project_id, shard)
        revision = self._revision(project_id, backbone.fingerprint, index)
        if not due and revision != self._jobs.note(project_id, REVISION):
            self._jobs.set_note(project_id, REVISION, revision)
            self._jobs.request_retrain(project_id)
        return True

    def discard(self, project_id: int, fingerprint: str) -> None:
        """Deletes what was found among the embeddings of a backbone that is no longer needed."""
        self._folder(project_id).remove(fingerprint)

    # -- what is due ----------------------------------------------------------------------------------------------

    def _due(self, project_id: int, fingerprint: str, index: EmbeddingTable) -> list[int]:
        """The shards whose images changed since they were searched, or whose search knew far fewer labels."""
        record = self._registry.published_record(project_id)
        due = []
        for shard in self._numbers(index):
            searched = self._searched(project_id, fingerprint, shard)
            is_known = searched is not None and searched.content == self._content(index, shard)
            if searched is None or not is_known or self._is_stale(searched.n_labels, fingerprint, record):
                due.append(shard)
        return due

    def _is_stale(self, n_labels: int | None, fingerprint: str, record: VersionRecord | None) -> bool:
        if record is None or record.fingerprint != fingerprint or not self._asks_head(record):
            return False
        return n_labels is None or record.labels_used >= SEARCH_AGAIN * n_labels + MORE_LABELS

    def _asks_head(self, record: VersionRecord) -> bool:
        """Whether there is a head, and the settings let it choose."""
        return record.kind == "model" and self._settings.acquisition not in FIRST_BATCH_STRATEGIES

    def _revision(self, project_id: int, fingerprint: str, index: EmbeddingTable) -> str:
        """Identity of what all searches found."""
        facts = [self._searched(project_id, fingerprint, shard) for shard in self._numbers(index)]
        return hashlib.sha256(repr([fingerprint, facts]).encode()).hexdigest()

    def _numbers(self, index: EmbeddingTable) -> list[int]:
        """The numbers of all shards that hold an embedding, ascending."""
        numbers: list[int] = np.unique(index.task_ids // self._settings.shard_size).tolist()
        return numbers

    def _ids(self, index: EmbeddingTable, shard: int) -> Ids:
        first, last = np.searchsorted(index.task_ids, self._bounds(shard))
        return index.task_ids[first:last]

    def _bounds(self, shard: int) -> tuple[int, int]:
        """The first task id of a shard, and the first after it."""
        return shard * self._settings.shard_size, (shard + 1) * self._settings.shard_size

    def _content(self, index: EmbeddingTable, shard: int) -> str:
        if self._contents is None or self._contents[0] is not index:
            self._contents = index, {}
        known = self._contents[1]
        if shard not in known:
            task_ids = self._ids(index, shard)
            digest = hashlib.sha256(task_ids.tobytes())
            digest.update(image_keys(index, task_ids).tobytes())
            known[shard] = digest.hexdigest()
        return known[shard]

    # -- searching ------------------------------------------------------------------------------------------------

    def _search(
        self, project_id: int, shard: int, store: EmbeddingStore, index: EmbeddingTable, backbone: Backbone
    ) -> tuple[Searched, Found] | None:
        """What was found; None when a label interrupted it."""
        content = self._content(index, shard)
        under_way = self._under_way.pop((project_id, shard), None)
        if under_way is None or under_way.content != content or under_way.record.fingerprint != backbone.fingerprint:
            record = self._registry.published_record(project_id)
            if record is None or record.fingerprint != backbone.fingerprint or not self._asks_head(record):
                return Searched(content, None), self._first_batch(project_id, shard, store, index, backbone)
            head = self._registry.head(record)
            assert head is not None
            nothing = _bare(np.empty(0, np.int64), np.empty((0, store.dim), np.float16))
            under_way = _UnderWay(content, head, record, self._bounds(shard)[0], [], nothing, np.empty(0))
        if not self._score(under_way, shard, store, index):
            self._under_way[project_id, shard] = under_way
            return None
        found = _found(index, under_way.samples, under_way.shortlist)
        return Searched(content, under_way.record.labels_used), found

    def _score(self, search: _UnderWay, shard: int, store: EmbeddingStore, index: EmbeddingTable) -> bool:
        """Goes on with a search block by block; whether it came to the end, before a retrain began to wait."""
        n_wanted, rate = self._shortlist_size(index, shard), self._sample_rate(index)
        of_sets = search.head.threshold is not None
        counts = np.array([search.record.labels_by_class.get(name, 0) for name in search.head.classes])
        _, end = self._bounds(shard)
        while search.next_id < end:
            if self._jobs.retrain_waits():
                return False
            block = store.between(search.next_id, min(search.next_id + ROWS_AT_ONCE, end))
            search.next_id += ROWS_AT_ONCE
            probabilities = search.head.predict_proba(block.embeddings)
            of_block = utilities(self._settings.acquisition, probabilities, of_sets=of_sets)
            if not of_sets:
                of_block *= rarity(probabilities, counts)
            found = np.concatenate([search.utilities, of_block])
            best = np.argsort(-found, kind="stable")[:n_wanted]
            rows = np.concatenate([search.shortlist.task_ids, block.task_ids])[best]
            order = np.argsort(rows)
            search.shortlist = _rows(joined([search.shortlist, block]), rows)
            search.utilities = found[best][order]
            search.samples.append(_rows(block, block.task_ids[_uniform(block.task_ids) < rate]))
        return True

    def _first_batch(
        self, project_id: int, shard: int, store: EmbeddingStore, index: EmbeddingTable, backbone: Backbone
    ) -> Found:
        """The shard's own first batch, in the feature space of all of the project's images."""
        some = index.task_ids[evenly_spaced(len(index.task_ids), CENTRE_ROWS)]
        space = Pool(_taken(store, some).embeddings, backbone.n_details).space()
        table = store.between(*self._bounds(shard))
        asks_no_head = self._settings.acquisition in FIRST_BATCH_STRATEGIES
        has_version = self._registry.published(project_id) is not None
        strategy = self._settings.acquisition if asks_no_head and has_version else self._settings.seed_strategy
        facts = self._registry.project_facts(project_id) or {}
        chosen = FIRST_BATCH_STRATEGIES[strategy](
            space.half_features(table.embeddings),
            budget=min(self._shortlist_size(index, shard), MOST_WITHOUT_HEAD, len(table.task_ids)),
            n_classes=len(parse_labeling_config(str(facts["label_config"])).labels),
            random_state=self._settings.random_state,
        )
        sample = _rows(table, table.task_ids[_uniform(table.task_ids) < self._sample_rate(index)])
        return _found(index, [sample], _rows(table, table.task_ids[np.sort(np.asarray(chosen, dtype=np.intp))]))

    def _shortlist_size(self, index: EmbeddingTable, shard: int) -> int:
        """The shard's share of all shortlists; as many as are chosen at once, at least, for coresets to compose."""
        n_rows = len(self._ids(index, shard))
        share = int(SHORTLIST_SHARE * self._settings.shard_size * n_rows / len(index.task_ids))
        return max(share, self._settings.seed_size, self._settings.window_size)

    def _sample_rate(self, index: EmbeddingTable) -> float:
        return SAMPLE_SHARE * self._settings.shard_size / len(index.task_ids)

    # -- the working set ------------------------------------------------------------------------------------------

    def _read(self, project_id: int, fingerprint: str, revision: str | None, index: EmbeddingTable, dim: int) -> _Kept:
        nothing = _bare(np.empty(0, np.int64), np.empty((0, dim), np.float16))
        kept = _Kept(fingerprint, revision, [], [], [], index, nothing)
        for shard in self._numbers(index):
            searched = self._searched(project_id, fingerprint, shard)
            found = self._load(project_id, fingerprint, shard) if searched is not None else None
            if searched is None or found is None:
                kept.unsearched.append(shard)
                continue
            kept.found.append(found)
            kept.n_labels.append(searched.n_labels)
        return self._assembled(kept, index)

    def _assembled(self, kept: _Kept, index: EmbeddingTable) -> _Kept:
        """With the table of all that was found, as far as it is still there and shows the same image."""
        rate = self._sample_rate(index)
        parts = [_rows(kept.table, np.empty(0, np.int64))]
        for found in kept.found:
            task_ids = found.table.task_ids
            is_wanted = (found.is_shortlisted | (_uniform(task_ids) < rate)) & (index.rows_of(task_ids) >= 0)
            is_wanted[is_wanted] = image_keys(index, task_ids[is_wanted]) == found.images[is_wanted]
            parts.append(_rows(found.table, task_ids[is_wanted]))
        return replace(kept, index=index, table=_like(index, joined(parts)))

    # -- files ----------------------------------------------------------------------------------------------------

    def _folder(self, project_id: int) -> Folder:
        return open_folder(self._registry.project_directory(project_id) / "shards")

    def _keep(self, project_id: int, fingerprint: str, shard: int, found: Found, searched: Searched) -> None:
        from safetensors.numpy import save

        folder = self._folder(project_id)
        tensors = {
            "task_ids": found.table.task_ids, "embeddings": found.table.embeddings,
            "images": found.images.view(np.int64), "is_shortlisted": found.is_shortlisted,
        }  # fmt: skip
        folder.write(
            f"{fingerprint}/{shard}.safetensors", save({name: np.ascontiguousarray(t) for name, t in tensors.items()})
        )
        folder.write(f"{fingerprint}/{shard}.json", json.dumps(asdict(searched)).encode())

    def _searched(self, project_id: int, fingerprint: str, shard: int) -> Searched | None:
        raw = self._folder(project_id).read(f"{fingerprint}/{shard}.json")
        try:
            return Searched(**json.loads(raw)) if raw is not None else None
        except (ValueError, TypeError):
            return None  # searched again

    def _load(self, project_id: int, fingerprint: str, shard: int) -> Found | None:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        name = f"{fingerprint}/{shard}.safetensors"
        folder = self._folder(project_id)
        raw = folder.read(name)
        try:
            tensors = load(raw) if raw is not None else None
        except SafetensorError as exc:
            logger.warning("not readable, searched again: %s: %s", folder.place(name), exc)
            folder.remove(f"{fingerprint}/{shard}.json")
            return None
        if tensors is None:
            return None
        table = EmbeddingTable(tensors["task_ids"], tensors["embeddings"], {}, {}, 0)
        return Found(table, tensors["images"].view(np.uint64), tensors["is_shortlisted"])


def image_keys(index: EmbeddingTable, task_ids: Ids) -> NDArray[np.uint64]:
    """(N,) what tells one image from another: 64 bits of a hash of where it is."""
    digests = [hashlib.blake2b(index.references[task_id].encode(), digest_size=8) for task_id in task_ids.tolist()]
    return np.frombuffer(b"".join(digest.digest() for digest in digests), dtype=np.uint64)


def _uniform(task_ids: Ids) -> NDArray[np.float64]:
    """(N,) in 0..1, for each task always the same and as good as random (SplitMix64; Steele et al. 2014)."""
    mixed = task_ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) / 2.0**64


def _found(index: EmbeddingTable, samples: Sequence[EmbeddingTable], shortlist: EmbeddingTable) -> Found:
    table = joined([*samples, shortlist])
    table = _rows(table, table.task_ids[index.rows_of(table.task_ids) >= 0])  # others came while it was searched
    return Found(table, image_keys(index, table.task_ids), np.isin(table.task_ids, shortlist.task_ids))


def _taken(store: EmbeddingStore, task_ids: Ids) -> EmbeddingTable:
    """The rows of some tasks, read a part at a time; more at once would read the whole store."""
    starts = range(0, len(task_ids), TAKEN_AT_ONCE)
    return joined([store.take(task_ids[start : start + TAKEN_AT_ONCE].tolist()) for start in starts])


def joined(tables: Sequence[EmbeddingTable]) -> EmbeddingTable:
    """The rows of all tables, at least one, each task once; without failures and references."""
    task_ids, places = np.unique(np.concatenate([table.task_ids for table in tables]), return_index=True)
    return _bare(task_ids, np.concatenate([table.embeddings for table in tables])[places])


def _rows(table: EmbeddingTable, task_ids: Ids) -> EmbeddingTable:
    """The rows of these tasks, all of which have one."""
    rows = np.sort(table.rows_of(task_ids))
    return _bare(table.task_ids[rows], table.embeddings[rows])


def _bare(task_ids: Ids, embeddings: NDArray[np.float16]) -> EmbeddingTable:
    return EmbeddingTable(task_ids, embeddings, failures={}, references={}, version=0)


def _like(index: EmbeddingTable, table: EmbeddingTable) -> EmbeddingTable:
    """The table with what the index knows of all tasks."""
    return replace(table, failures=index.failures, references=index.references, version=index.version)
