"""The map of a project: where each image lies among the others, and what people and the published version say of it.

Where images lie is worked out once, in a process of its own that nobody waits for (`MapMaker`), and kept: images that
come later are placed among them, and nothing moves. It is made anew only when more than `MOST_ADDED` of the images are
not laid out themselves, or the backbone changed. What is predicted for them is noted with each evaluation
(`MapPredictions`), when the embeddings are in memory anyway; a web process only puts the two together (`MapReader`).
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import struct
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.adapters.backbones import Backbone
from backend.adapters.embedding_store import EmbeddingTable
from backend.adapters.jobs import LOCK_TTL_S, MAP_LOCK, Jobs
from backend.adapters.registry import KeptArrays, Registry
from backend.choices import parse_labeling_config
from backend.config import Settings
from backend.errors import ProjectBusyError, RedisUnavailableError
from backend.labels import Label, text_of
from backend.learning.acquisition import utilities
from backend.learning.features import CENTRE_ROWS, FeatureSpace, evenly_spaced
from backend.learning.head import BLOCK_ROWS, Head
from backend.learning.layout import MAX_OPTIMISED, Axes, Layout, fit_axes, lay_out, place
from backend.learning.pool import Pool
from backend.loop.embed import Embedder
from backend.loop.inputs import Inputs, labels_digest
from backend.loop.projects import check_known
from backend.loop.retries import Retries
from backend.loop.shards import image_keys
from backend.schema import MapSource, VersionRecord

logger = logging.getLogger(__name__)

MAGIC = b"ALM1"
"""How an answer begins, and which form it has."""

MOST_SETS = 20
"""Sets of labels that have a colour of their own on a map; of more nobody would tell the colours apart."""

OTHER_SETS = "other sets"
"""All others."""

NONE = 65535
"""In place of a label, a prediction or a place in the queue that there is none of."""

MOST_ADDED = 0.2
"""A map is made anew when a larger share of its images was placed among others and not laid out with them."""

MOST_GONE = 0.5
"""Or when more of those that others are placed by are gone."""

TAKEN_AT_ONCE = 1000
"""Embeddings read at a time: 2.5 MB."""

NOTED_EVERY_S = 2.0
"""Pause between two notes of how far a map is."""

IMAGES_PER_MINUTE = 20_000
"""About how many images are laid out a minute while nobody else computes; only told, until it is known better."""

TOLD_FROM = 0.1
"""Share of the work from which the time left is reckoned by the time it took: the first steps load modules."""

MAP_NOTE = "map"
"""Note of a project that says how far its map is."""

ANSWERS_KEPT = 4
"""Projects whose last answer a web process keeps: 2 MB for 100,000 images, and 1.5 MB of it packed."""

LAYOUT, PREDICTIONS = "layout", "predictions"
"""The parts of a map, as the registry keeps them."""

_MAX_TASK_ID = 2**32 - 1

Ids = NDArray[np.int64]


class MapRequests:
    """Asks for a map where one is due."""

    def __init__(self, *, jobs: Jobs, registry: Registry) -> None:
        self._jobs = jobs
        self._registry = registry
        self._followed: dict[int, str] = {}

    def request_if_due(self, project_id: int, backbone: Backbone, table: EmbeddingTable) -> bool:
        """Asks for it if the map does not show these embeddings, which are all there are; whether it was."""
        source = self._follow(project_id, backbone)
        kept = self._registry.map_arrays(project_id, LAYOUT)
        if kept is not None and _shows(kept, source, table.digest):
            return False
        self._jobs.request_map(project_id)
        return True

    def request_if_other(self, project_id: int, backbone: Backbone) -> bool:
        """Asks for it if the project has another backbone than when it was last asked for; whether it has."""
        if self._followed.get(project_id) == backbone.fingerprint:
            return False
        before = self._registry.map_source(project_id)
        if before is None:  # not all is embedded yet
            return False
        is_other = before != self._follow(project_id, backbone)
        if is_other:
            self._jobs.request_map(project_id)
        return is_other

    def _follow(self, project_id: int, backbone: Backbone) -> MapSource:
        source = MapSource(backbone.fingerprint, backbone.dim, backbone.n_details)
        if self._registry.map_source(project_id) != source:
            self._registry.keep_map_source(project_id, source)
        self._followed[project_id] = backbone.fingerprint
        return source


# -- where images lie -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class KeptLayout:
    """Where a project's images lie.

    task_ids, images: (N,) of which task, ascending, and which image of it (`loop.shards.image_keys`).
    positions: (N, 2) in -1..1.
    is_reference: (N,) laid out by t-SNE; others are placed by them.
    is_added: (N,) came after the map was made.
    axes: along which images are compared.
    """

    task_ids: Ids
    images: NDArray[np.uint64]
    positions: NDArray[np.float32]
    is_reference: NDArray[np.bool_]
    is_added: NDArray[np.bool_]
    axes: Axes

    def rows(self, rows: NDArray[Any]) -> KeptLayout:
        """That of some of the images."""
        return KeptLayout(
            self.task_ids[rows],
            self.images[rows],
            self.positions[rows],
            self.is_reference[rows],
            self.is_added[rows],
            self.axes,
        )

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """As the registry keeps it."""
        return {
            "task_ids": self.task_ids,
            "images": self.images.view(np.int64),
            "positions": self.positions,
            "is_reference": self.is_reference,
            "is_added": self.is_added,
            "scale": self.axes.space.scale,
            "centre": self.axes.space.centre,
            "mean": self.axes.mean,
            "directions": self.axes.directions,
        }

    @classmethod
    def of(cls, kept: KeptArrays) -> KeptLayout:
        """What `to_arrays` gave."""
        arrays = kept.arrays
        space = FeatureSpace(arrays["scale"], arrays["centre"])
        return cls(
            arrays["task_ids"],
            arrays["images"].view(np.uint64),
            arrays["positions"],
            arrays["is_reference"],
            arrays["is_added"],
            Axes(space, arrays["mean"], arrays["directions"]),
        )


class MapMaker:
    """Makes maps. No method is in a hurry."""

    def __init__(self, *, jobs: Jobs, registry: Registry, embedder: Embedder, settings: Settings) -> None:
        self._jobs = jobs
        self._registry = registry
        self._embedder = embedder
        self._settings = settings

    def make(self, project_id: int) -> int | None:
        """Brings the map up to date with the embeddings; how many images it shows, None when others are at it, 0 when
        it came to be of no use meanwhile.

        Memory: that of the images' coordinates, 200 bytes each, and of laying out `layout.MAX_OPTIMISED` of them.
        """
        self._jobs.begin(project_id, "make_map")
        source = self._registry.map_source(project_id)
        if source is None:
            return None
        try:
            with self._jobs.project_lock(project_id, MAP_LOCK, wait_s=LOCK_TTL_S + 2):
                return self._make(project_id, source)
        except ProjectBusyError as exc:  # whoever makes it looks, in the end, whether something came meanwhile
            logger.info("map left to another worker project=%d: %s", project_id, exc)
            return None

    def _make(self, project_id: int, source: MapSource) -> int:
        index = self._index(project_id, source)
        kept = self._registry.map_arrays(project_id, LAYOUT)
        if kept is not None and _shows(kept, source, index.digest):
            return len(index.task_ids)
        started = time.monotonic()
        try:
            layout = self._grown(project_id, source, index, kept)
            how = "extended"
            if layout is None:
                layout, how = self._made(project_id, source, index), "made"
        finally:
            self._jobs.set_note(project_id, MAP_NOTE, None)
        current = self._registry.map_source(project_id)
        if current != source:  # another backbone since, or the project is gone
            if current is not None:
                self._jobs.request_map(project_id)
            return 0
        facts = {"fingerprint": source.fingerprint, "content": index.digest}
        self._registry.keep_map_arrays(project_id, LAYOUT, layout.to_arrays(), facts)
        logger.info(
            "map %s project=%d images=%d laid_out=%d added=%d took=%.1fs",
            how, project_id, len(layout.task_ids), layout.is_reference.sum(), layout.is_added.sum(),
            time.monotonic() - started,
        )  # fmt: skip
        if self._index(project_id, source).digest != index.digest:
            self._jobs.request_map(project_id)
        return len(layout.task_ids)

    def _index(self, project_id: int, source: MapSource) -> EmbeddingTable:
        return self._embedder.index(project_id, source.fingerprint, source.dim)

    def _grown(
        self, project_id: int, source: MapSource, index: EmbeddingTable, kept: KeptArrays | None
    ) -> KeptLayout | None:
        """The kept layout with the images that came, without those that went; None if it is to be made anew."""
        if kept is None or kept.facts.get("fingerprint") != source.fingerprint:
            return None
        old = KeptLayout.of(kept)
        images = image_keys(index, index.task_ids)
        rows = index.rows_of(old.task_ids)
        stays = rows >= 0
        stays[stays] = images[rows[stays]] == old.images[stays]
        left = old.rows(stays)
        is_new = np.ones(len(index.task_ids), dtype=bool)
        is_new[rows[stays]] = False
        n_added, n_gone = is_new.sum() + left.is_added.sum(), (old.is_reference & ~stays).sum()
        if n_added > MOST_ADDED * len(is_new) or n_gone > MOST_GONE * old.is_reference.sum():
            return None
        references = left.rows(left.is_reference)
        positions = np.empty((len(is_new), 2), dtype=np.float32)
        positions[~is_new] = left.positions
        if is_new.any():
            positions[is_new] = place(
                self._coordinates(project_id, source, index.task_ids[is_new], old.axes),
                self._coordinates(project_id, source, references.task_ids, old.axes),
                references.positions,
            )
        is_reference, is_added = np.zeros(len(is_new), dtype=bool), is_new.copy()
        is_reference[~is_new], is_added[~is_new] = left.is_reference, left.is_added
        return KeptLayout(index.task_ids, images, positions, is_reference, is_added, old.axes)

    def _made(self, project_id: int, source: MapSource, index: EmbeddingTable) -> KeptLayout:
        n_images = len(index.task_ids)
        note = _Noted(self._jobs, project_id, n_images)
        some = index.task_ids[evenly_spaced(n_images, CENTRE_ROWS)]
        embeddings = self._embeddings(project_id, source, some)
        axes = fit_axes(embeddings, Pool(embeddings, source.n_details).space())
        coordinates = self._coordinates(project_id, source, index.task_ids, axes)
        layout: Layout = lay_out(coordinates, random_state=self._settings.random_state, report=note.report)
        is_added = np.zeros(n_images, dtype=bool)
        images = image_keys(index, index.task_ids)
        return KeptLayout(index.task_ids, images, layout.positions, layout.is_reference, is_added, axes)

    def _coordinates(self, project_id: int, source: MapSource, task_ids: Ids, axes: Axes) -> NDArray[np.float32]:
        """(N, R) of some tasks; one whose embedding went a moment ago lies in the middle until the next time."""
        found = np.zeros((len(task_ids), axes.directions.shape[1]), dtype=np.float32)
        for start in range(0, len(task_ids), TAKEN_AT_ONCE):
            part = task_ids[start : start + TAKEN_AT_ONCE]
            table = self._embedder.rows(project_id, part.tolist(), source.fingerprint, source.dim)
            rows = table.rows_of(part)
            is_there = rows >= 0
            found[start : start + TAKEN_AT_ONCE][is_there] = axes.coordinates(table.embeddings[rows[is_there]])
        return found

    def _embeddings(self, project_id: int, source: MapSource, task_ids: Ids) -> NDArray[np.float16]:
        parts: list[NDArray[np.float16]] = [np.empty((0, source.dim), dtype=np.float16)]
        for start in range(0, len(task_ids), TAKEN_AT_ONCE):
            part = task_ids[start : start + TAKEN_AT_ONCE].tolist()
            parts.append(self._embedder.rows(project_id, part, source.fingerprint, source.dim).embeddings)
        return np.concatenate(parts)


class _Noted:
    """Tells people how far a map is."""

    def __init__(self, jobs: Jobs, project_id: int, n_images: int) -> None:
        self._jobs, self._project_id, self._n_images = jobs, project_id, n_images
        self._started = self._noted = time.monotonic()
        self._note(60 * min(n_images, MAX_OPTIMISED) / IMAGES_PER_MINUTE)

    def report(self, share: float) -> None:
        """Called with the share done, 0..1."""
        now = time.monotonic()
        if share >= TOLD_FROM and now - self._noted >= NOTED_EVERY_S:
            self._noted = now
            self._note((now - self._started) * (1 - share) / share)

    def _note(self, seconds: float) -> None:
        left = f"about {seconds / 60:.0f} minutes" if seconds >= 90 else f"about {max(5, round(seconds, -1)):.0f} s"
        sentence = f"the map of {self._n_images:,} images is being made, {left}"
        try:
            self._jobs.set_note(self._project_id, MAP_NOTE, sentence)
        except RedisUnavailableError as exc:
            logger.debug("how far the map is was not noted: %s", exc)


def _shows(kept: KeptArrays, source: MapSource, content: str) -> bool:
    return (kept.facts.get("fingerprint"), kept.facts.get("content")) == (source.fingerprint, content)


# -- what is said of them ---------------------------------------------------------------------------------------------


class MapPredictions:
    """Notes what a published version predicts for all images in memory, and which labels it knows."""

    def __init__(self, *, jobs: Jobs, registry: Registry, requests: MapRequests) -> None:
        self._jobs = jobs
        self._registry = registry
        self._requests = requests

    def keep(self, record: VersionRecord, inputs: Inputs, head: Head | None) -> bool:
        """Keeps it, in place of what the version before said; False if these are not the version's labels, or a
        retrain began to wait: the version that follows says it, then.

        Of a project larger than SHARD_SIZE the images of the working set, labeled ones among them. Cost: one pass of
        the head over them, 0.1 s for 10,000 and 1.1 s for 100,000, given up within 0.1 s.
        """
        labels = inputs.labels
        trained = {task_id: labels.labels[task_id] for task_id in inputs.labeled}
        if labels_digest(trained) != record.labels_digest:
            return False
        table = inputs.table
        predicted = self._predicted(head, table)
        if predicted is None:
            return False
        known = {**labels.labels, **labels.validation}
        config = parse_labeling_config(record.label_config)
        classes = frequent_sets([*known.values(), *predicted[0]]) if config.several else list(config.labels)
        places = {name: place for place, name in enumerate(classes[:NONE])}
        other = places.get(OTHER_SETS, NONE)
        given = np.full(len(table.task_ids), NONE, dtype=np.uint16)
        rows = table.rows_of(list(known))
        numbers = np.array([places.get(text_of(label), other) for label in known.values()], dtype=np.uint16)
        given[rows[rows >= 0]] = numbers[rows >= 0]
        top = np.full(len(table.task_ids), NONE, dtype=np.uint16)
        if predicted[0]:
            top[:] = [places.get(text_of(label), other) for label in predicted[0]]
        arrays: dict[str, NDArray[Any]] = {
            "task_ids": table.task_ids,
            "label": given,
            "prediction": top,
            "uncertainty": predicted[1],
            "window": np.array(record.window, dtype=np.int64),
        }
        facts = {"version": record.version, "classes": json.dumps(classes)}
        self._registry.keep_map_arrays(record.project_id, PREDICTIONS, arrays, facts)
        self._requests.request_if_other(record.project_id, inputs.backbone)
        return True

    def _predicted(self, head: Head | None, table: EmbeddingTable) -> tuple[list[Label], NDArray[np.uint8]] | None:
        """What each image is taken for (nothing without a head), and the uncertainty (N,); None when a retrain began to
        wait.
        """
        found: list[Label] = []
        uncertainty = np.zeros(len(table.task_ids), dtype=np.uint8)
        if head is None:
            return found, uncertainty
        for start in range(0, len(uncertainty), BLOCK_ROWS):
            if self._jobs.retrain_waits():
                return None
            block = slice(start, start + BLOCK_ROWS)
            probabilities = head.predict_proba(table.embeddings[block])
            found += head.predicted(probabilities)
            uncertainty[block] = np.round(255 * utilities("margin", probabilities, of_sets=head.threshold is not None))
        return found, uncertainty


def frequent_sets(sets: Iterable[Label]) -> list[str]:
    """What a map colours where images may have several labels: the most frequent sets, as people read them, and the
    others together.
    """
    counts = Counter(map(text_of, sets))
    names = sorted(counts, key=lambda name: (-counts[name], name))
    return [*names[:MOST_SETS], OTHER_SETS] if len(names) > MOST_SETS else names


# -- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class MapAnswer:
    """The bytes of an answer, and what names their content."""

    content: bytes
    etag: str

    @cached_property
    def packed(self) -> bytes:
        """The same, as gzip."""
        return gzip.compress(self.content, compresslevel=1, mtime=0)


class MapReader:
    """Puts together what is at hand: reads only the data folder and Redis."""

    def __init__(self, *, jobs: Jobs, registry: Registry, retries: Retries) -> None:
        self._jobs = jobs
        self._registry = registry
        self._retries = retries
        self._answers: OrderedDict[int, MapAnswer] = OrderedDict()
        self._guard = Lock()

    def answer(self, project_id: int) -> MapAnswer:
        """The map as it is now, in the form that docs/embedding-map.md describes; one that is not there is asked for.

        Raises ProjectNotFoundError for a project that was never connected.
        """
        check_known(self._registry, project_id)
        layout = self._registry.map_arrays(project_id, LAYOUT)
        predictions = self._registry.map_arrays(project_id, PREDICTIONS)
        state, note = self._state(project_id, layout)
        version = predictions.facts["version"] if predictions else None
        published = self._registry.published(project_id)
        if note is None and layout is not None and version != published:
            note = f"{published} is published; what is shown of labels and predictions is of " + (
                f"{version}, until it is evaluated" if version else "no version yet"
            )
        header = {
            "model_version": version,
            "classes": json.loads(predictions.facts["classes"]) if predictions else [],
            "state": state,
            "note": note,
        }
        digests = [part.digest if part else None for part in (layout, predictions)]
        etag = hashlib.sha256(json.dumps([header, digests]).encode()).hexdigest()[:32]
        with self._guard:  # of several that ask at once one puts it together
            known = self._answers.get(project_id)
            if known is None or known.etag != etag:
                known = MapAnswer(_encoded(header, layout, predictions), etag)
            self._answers[project_id] = known
            self._answers.move_to_end(project_id)
            while len(self._answers) > ANSWERS_KEPT:
                self._answers.popitem(last=False)
        return known

    def _state(self, project_id: int, layout: KeptArrays | None) -> tuple[str, str | None]:
        """`ready`, `being made` or `none`, and what there is to say about it."""
        source = self._registry.map_source(project_id)
        is_there = layout is not None
        if source is None:
            return ("ready" if is_there else "none"), "the map is made once all images are embedded"
        is_wanted = layout is None or layout.facts.get("fingerprint") != source.fingerprint
        try:
            is_under_way = self._jobs.is_mapping(project_id)
            if not is_under_way and is_wanted:
                failure = next((one for one in self._retries.failures(project_id) if one.work == "make_map"), None)
                if failure is not None:
                    return ("ready" if is_there else "none"), f"the map could not be made: {failure.reason}"
                self._jobs.request_map(project_id)
                is_under_way = True
            if not is_under_way:
                return "ready", None
            sentence = self._jobs.note(project_id, MAP_NOTE) or (
                "the map waits to be made" if is_wanted else "images that came or went are being put on the map"
            )
        except RedisUnavailableError as exc:
            return ("ready" if is_there else "none"), str(exc)
        return ("ready" if is_there else "being made"), sentence


def _encoded(header: dict[str, Any], layout: KeptArrays | None, predictions: KeptArrays | None) -> bytes:
    """An answer, little endian: `MAGIC`, counts of points and of bytes of the header, the header as JSON, zero bytes up
    to a multiple of four, then the columns one after another.
    """
    task_ids = layout.arrays["task_ids"] if layout else np.empty(0, np.int64)
    positions = layout.arrays["positions"] if layout else np.empty((0, 2), np.float32)
    fits = task_ids <= _MAX_TASK_ID
    task_ids, positions = task_ids[fits], positions[fits]
    label, prediction, place = (np.full(len(task_ids), NONE, dtype="<u2") for _ in range(3))
    uncertainty = np.zeros(len(task_ids), dtype=np.uint8)
    if predictions is not None and len(task_ids):
        known = predictions.arrays["task_ids"]
        rows = np.minimum(np.searchsorted(known, task_ids), max(len(known) - 1, 0))
        is_known = known[rows] == task_ids if len(known) else np.zeros(len(task_ids), dtype=bool)
        for column, name in ((label, "label"), (prediction, "prediction"), (uncertainty, "uncertainty")):
            column[is_known] = predictions.arrays[name][rows[is_known]]
        window = predictions.arrays["window"][: NONE - 1]
        at = np.minimum(np.searchsorted(task_ids, window), len(task_ids) - 1)
        is_there = task_ids[at] == window
        place[at[is_there]] = np.flatnonzero(is_there) + 1
    text = json.dumps(header, ensure_ascii=False).encode()
    columns = (
        positions[:, 0].astype("<f4"), positions[:, 1].astype("<f4"), task_ids.astype("<u4"), label, prediction, place,
        uncertainty,
    )  # fmt: skip
    parts = [MAGIC, struct.pack("<II", len(task_ids), len(text)), text, bytes(-len(text) % 4)]
    return b"".join([*parts, *(column.tobytes() for column in columns)])
