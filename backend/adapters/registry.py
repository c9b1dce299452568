"""The data folder: known projects, immutable model versions, and which of them is published.

    <directory>/<project id>/project.json                     which Label Studio project this is
    <directory>/<project id>/validation_split.json            which tasks are kept aside for validation
    <directory>/<project id>/embeddings/                      kept by the embedding store
    <directory>/<project id>/versions/<version>/record.json   what the version was made from; never changed
    <directory>/<project id>/versions/<version>/head.safetensors
    <directory>/<project id>/versions/<version>/evaluation.json   what it is worth, which is known later
    <directory>/<project id>/published.json                   the version that is served
    <directory>/<project id>/pin.json                         the version whose head is kept, if somebody rolled back
    <directory>/<project id>/finetuning.json                  how the last fine-tuning of the backbone went
    <directory>/<project id>/backbone.json                    the fine-tuned backbone in use; none: that of the settings
    <directory>/<project id>/backbones/<fingerprint>.safetensors   weights of fine-tuned backbones
    <directory>/<project id>/map/source.json                  the embeddings that the map is to show
    <directory>/<project id>/map/<name>.safetensors           where images lie on it, and what is predicted for them

The directory is a path or an address in an object store (`backend.storage`). A reader sees the old or the new state of
a file and never half of one, and a version is there with all its files or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from backend.errors import FileFormatError, StorageError, VersionNotFoundError
from backend.learning.features import FeatureSpace
from backend.learning.head import Head
from backend.schema import FinetuningRecord, MapSource, Pin, ValidationSplit, VersionRecord
from backend.storage import LocalFolder, Place, open_folder

logger = logging.getLogger(__name__)

_VERSION = re.compile(r"v([0-9]{4,18})-[0-9]+labels-[0-9]{8}T[0-9]{6}Z(-from-v[0-9]{4,18})?")

_ARRAYS_DIGEST = "digest"
"""Fact under which the digest of kept arrays stands in their file, by which damage is told."""

_HEAD_DIGEST = "head_sha256"
"""Key of a stored record under which the digest of its head's file stands, by which damage is told."""

_WRITTEN_WITHIN_S = 3600.0
"""A file that is half-written for longer is nobody's: its writer was killed."""


@dataclass(frozen=True, eq=False)
class KeptArrays:
    """Arrays by name, a few facts about them as text, and the digest of both."""

    arrays: Mapping[str, NDArray[Any]]
    facts: Mapping[str, str]
    digest: str


def is_own_version(name: str) -> bool:
    """Whether a model version found in Label Studio was named by this service."""
    return _VERSION.fullmatch(name) is not None


def version_number(name: str) -> int:
    """The running number in the name of a version, by which they are ordered; 0 for any other name."""
    match = _VERSION.fullmatch(name)
    return int(match.group(1)) if match else 0


class Registry:
    """All projects this service knows, below one folder; safe for several processes."""

    def __init__(self, directory: Place) -> None:
        self._folder = open_folder(directory)

    def try_writing(self) -> None:
        """Writes a small file, as a new version would be. Raises OSError or StorageError if that does not go."""
        self._folder.write("writable.json", b"{}")

    # -- projects -------------------------------------------------------------------------------------------------

    def project_directory(self, project_id: int) -> Place:
        """The project's folder; on disk it is made if needed."""
        folder = self._folder.place(str(int(project_id)))
        if isinstance(folder, Path):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def known_projects(self) -> list[int]:
        """Ids of all projects that were connected or set up."""
        return sorted(int(name) for name in self._folder.holding("project.json") if re.fullmatch("[0-9]+", name))

    def register(
        self,
        project_id: int,
        created: int,
        label_config: str,
        hostname: str | None = None,
        title: str | None = None,
    ) -> bool:
        """Makes the project known; True if it was not, or is another one, or has another labeling config.

        `created` is the project's creation time in whole seconds. Label Studio gives ids anew when its database is:
        a folder that belongs to an earlier project of the same id is moved aside. `hostname` is the address by which
        Label Studio knows itself, with which references to its own images may begin; `title` is what people call the
        project; None of these: as known before.
        """
        known = self.project_facts(project_id)
        facts = {
            "created": created,
            "label_config": label_config,
            "hostname": hostname or (known or {}).get("hostname"),
            "title": title if title is not None else (known or {}).get("title"),
        }
        news = self.is_news(project_id, created, label_config)
        if known == facts:
            return False
        if known is not None and known.get("created") != created:
            self.forget(project_id)
        self._write(project_id, "project.json", facts)
        return news

    def is_news(self, project_id: int, created: int, label_config: str) -> bool:
        """What `register` would answer."""
        known = self.project_facts(project_id) or {}
        return (known.get("created"), known.get("label_config")) != (created, label_config)

    def project_facts(self, project_id: int) -> Mapping[str, Any] | None:
        """`created`, `label_config`, `hostname` and `title` as last registered; None for an unknown project."""
        return self._read(project_id, "project.json")

    def keep_image_failures(
        self, project_id: int, failures: Mapping[int, str], transient: Collection[int] = ()
    ) -> None:
        """Keeps why some tasks' images are left out, for the status; the embedding store holds the truth.

        `transient`: those of the tasks whose failure may pass.
        """
        content = {str(task_id): reason for task_id, reason in sorted(failures.items())}
        passing = {str(task_id): True for task_id in sorted(transient)}
        if content != self.image_failures(project_id):
            self._write(project_id, "image_failures.json", content)
        if passing != self._passing_failures(project_id):
            self._write(project_id, "transient_image_failures.json", passing)

    def count_image_failures(self, project_id: int) -> dict[str, int]:
        """How many tasks are left out by an image failure that may pass ("transient"), and that will not."""
        failing = self.image_failures(project_id)
        n_transient = len(failing.keys() & self._passing_failures(project_id).keys())
        return {"transient": n_transient, "permanent": len(failing) - n_transient}

    def _passing_failures(self, project_id: int) -> Mapping[str, Any]:
        return self._read(project_id, "transient_image_failures.json") or {}

    def image_failures(self, project_id: int) -> dict[str, str]:
        """Task id (as text, for JSON) → why its image is left out."""
        return dict(self._read(project_id, "image_failures.json") or {})

    def keep_validation_split(self, project_id: int, split: ValidationSplit) -> bool:
        """Keeps which tasks a VALIDATION_FILTER takes; whether that is news."""
        if split == self.validation_split(project_id):
            return False
        content = {"filter": split.filter, "task_ids": sorted(split.task_ids), "newest": split.newest}
        self._write(project_id, "validation_split.json", content)
        return True

    def validation_split(self, project_id: int) -> ValidationSplit | None:
        """The validation split as last listed; None when it never was, or its file is damaged."""
        raw = self._read(project_id, "validation_split.json")
        if raw is None:
            return None
        try:
            return ValidationSplit(str(raw["filter"]), frozenset(map(int, raw["task_ids"])), int(raw["newest"]))
        except (KeyError, TypeError, ValueError) as exc:
            logger.error("validation split unreadable project=%d: %r", project_id, exc)
            return None

    def forget(self, project_id: int) -> None:
        """Moves everything kept for the project aside, so that nothing of it is served or trained on again."""
        name = str(int(project_id))
        aside = f"{name}.gone-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{uuid4().hex[:6]}"
        # While project.json is there the project is known, and is moved again if this is cut off.
        if self._folder.move(name, aside, last="project.json"):
            logger.warning("moved project=%d aside to=%s", project_id, aside)

    # -- fine-tuned backbones -------------------------------------------------------------------------------------

    def keep_finetuning(self, project_id: int, record: FinetuningRecord) -> None:
        """Keeps how fine-tuning goes, in place of what was kept before."""
        self._write(project_id, "finetuning.json", asdict(record))

    def finetuning(self, project_id: int) -> FinetuningRecord | None:
        """How the last fine-tuning went; None before the first, or when its file is damaged."""
        return self._finetuning_record(project_id, "finetuning.json")

    def use_backbone(self, project_id: int, record: FinetuningRecord) -> None:
        """Makes this fine-tuned backbone the project's, for every process."""
        self._write(project_id, "backbone.json", asdict(record))

    def backbone_in_use(self, project_id: int) -> FinetuningRecord | None:
        """The fine-tuned backbone in use; None for that of the settings, or when the file is damaged."""
        record = self._finetuning_record(project_id, "backbone.json")
        return record if record is not None and record.fingerprint else None

    def weights_file(self, project_id: int, fingerprint: str) -> Place:
        """Where the weights of a fine-tuned backbone are kept."""
        return self._folder.place(_weights(project_id, fingerprint))

    def keep_weights(self, project_id: int, fingerprint: str, save: Callable[[Path], None]) -> None:
        """Keeps what `save` writes to the path it is given; `save` renames into place, see `Backbone.save`."""
        with self._folder.take_in(_weights(project_id, fingerprint)) as path:
            save(path)

    @contextmanager
    def weights(self, project_id: int, fingerprint: str) -> Iterator[Path]:
        """A path where the kept weights can be read meanwhile; nothing is there if none are kept."""
        with self._folder.on_disk(_weights(project_id, fingerprint)) as path:
            yield path

    def forget_weights(self, project_id: int, fingerprint: str) -> None:
        """Deletes the weights of a fine-tuned backbone."""
        self._folder.remove(_weights(project_id, fingerprint))

    def stale_backbones(self, project_id: int) -> list[str]:
        """Fingerprints of kept weights that are neither in use nor adopted nor behind the published version."""
        last, in_use = self.finetuning(project_id), self.backbone_in_use(project_id)
        needed = {
            last.fingerprint if last and last.outcome == "adopted" else None,
            *(record.fingerprint for record in (in_use, self.published_record(project_id)) if record),
        }
        found = self._folder.files(f"{int(project_id)}/backbones")
        kept = [name.removesuffix(".safetensors") for name in found if re.fullmatch(r"[^.].*\.safetensors", name)]
        return sorted(fingerprint for fingerprint in kept if fingerprint not in needed)

    def _finetuning_record(self, project_id: int, name: str) -> FinetuningRecord | None:
        raw = self._read(project_id, name)
        if raw is None:
            return None
        try:
            return FinetuningRecord(**raw)
        except TypeError as exc:
            logger.error("%s unreadable project=%d: %s", name, project_id, exc)
            return None

    # -- the map --------------------------------------------------------------------------------------------------

    def keep_map_source(self, project_id: int, source: MapSource) -> None:
        """Keeps which embeddings the project's map is to show."""
        self._write(project_id, "map/source.json", asdict(source))

    def map_source(self, project_id: int) -> MapSource | None:
        """Which embeddings the map is to show; None until they are all there once, or when the file is damaged."""
        raw = self._read(project_id, "map/source.json")
        try:
            return None if raw is None else MapSource(str(raw["fingerprint"]), int(raw["dim"]), int(raw["n_details"]))
        except (KeyError, TypeError, ValueError) as exc:
            logger.error("map/source.json unreadable project=%d: %r", project_id, exc)
            return None

    def keep_map_arrays(
        self, project_id: int, name: str, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, str]
    ) -> None:
        """Keeps a part of the map, in place of what was kept before."""
        from safetensors.numpy import save

        whole = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        content = save(whole, {**facts, _ARRAYS_DIGEST: _arrays_digest(whole, facts)})
        self._folder.write(_map_file(project_id, name), content)

    def map_arrays(self, project_id: int, name: str) -> KeptArrays | None:
        """A part of the map; None when none is kept, or the file is damaged: it is made anew, then."""
        from safetensors.numpy import load

        path = _map_file(project_id, name)
        try:
            content = self._folder.read(path)
            if content is None:
                return None
            arrays = load(content)
            facts = dict(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"])
            digest = facts.pop(_ARRAYS_DIGEST)
            if digest != _arrays_digest(arrays, facts):
                raise ValueError("its content is not what was saved")
        except StorageError:
            raise
        except Exception as exc:  # safetensors raises its own type for damaged files
            logger.error("cannot read path=%s: %s", self._folder.place(path), exc)
            return None
        return KeptArrays(arrays, facts, digest)

    # -- versions -------------------------------------------------------------------------------------------------

    def new_version(self, project_id: int, n_labels: int, now: datetime, head_of: str | None = None) -> str:
        """A version name never used before in this project: number, labels it knows, time, and whose head it has."""
        names = [*self.versions(project_id), self.published(project_id) or ""]
        number = max(map(version_number, names)) + 1
        source = f"-from-v{version_number(head_of):04d}" if head_of else ""
        return f"v{number:04d}-{n_labels}labels-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}{source}"

    def save(self, record: VersionRecord, head: Head | None) -> None:
        """Stores a version for good: neither its record nor its head is ever written again."""
        from safetensors.numpy import save

        content, files = record.to_json(), {}
        if head is not None:
            files["head.safetensors"] = save(_tensors(head))
            content[_HEAD_DIGEST] = hashlib.sha256(files["head.safetensors"]).hexdigest()
        files["record.json"] = _json_bytes(content)
        self._folder.create(_version_folder(record.project_id, record.version), files)

    def update(self, record: VersionRecord) -> None:
        """Keeps, beside a version, what its evaluation says; the other fields stay as saved. Gone: nothing happens."""
        folder = _version_folder(record.project_id, record.version)
        if self._folder.exists(f"{folder}/record.json"):
            said = {name: value for name, value in record.to_json().items() if name in VersionRecord.EVALUATION}
            self._folder.write(f"{folder}/evaluation.json", _json_bytes(said))

    def versions(self, project_id: int) -> list[str]:
        """All kept versions, newest first."""
        found = self._folder.created(f"{int(project_id)}/versions", last="record.json")
        return sorted(filter(is_own_version, found), key=version_number, reverse=True)

    def record(self, project_id: int, version: str) -> VersionRecord:
        """The version's record with its evaluation; until there is one, with what was known before. A damaged
        evaluation counts as none. Raises VersionNotFoundError.
        """
        folder = _version_folder(project_id, version)
        name = f"{folder}/record.json"
        raw = self._read_json(name)
        if raw is None:
            raise VersionNotFoundError(f"project {project_id} keeps no version {version!r}")
        said = self._read_json(f"{folder}/evaluation.json") or {}
        said = {name: value for name, value in said.items() if name in VersionRecord.EVALUATION}
        try:
            return VersionRecord.from_json({**raw, **said})
        except TypeError as exc:
            place = self._folder.place(name)
            raise VersionNotFoundError(f"the record of version {version} in {place} is damaged: {exc}") from exc

    def head(self, record: VersionRecord) -> Head | None:
        """The version's head; None for a version made before two classes were known. Raises VersionNotFoundError."""
        if record.kind == "seed":
            return None
        folder = _version_folder(record.project_id, record.version)
        name = f"{folder}/head.safetensors"
        try:
            content = self._folder.read(name)
            if content is None:
                raise FileNotFoundError("there is no such file")
            digest = (self._read_json(f"{folder}/record.json") or {}).get(_HEAD_DIGEST)
            if digest not in (None, hashlib.sha256(content).hexdigest()):  # None: of a release that kept none
                raise ValueError("its content is not what was saved")
            return head_of_bytes(record, content)
        except StorageError:
            raise
        except Exception as exc:  # safetensors raises its own type for damaged files
            raise VersionNotFoundError(
                f"the head of version {record.version} cannot be read from {self._folder.place(name)}: {exc}"
            ) from exc

    def publish(self, project_id: int, version: str) -> None:
        """Makes this the version that is served, by every process, from its next request on."""
        self._write(project_id, "published.json", {"version": version})

    def published(self, project_id: int) -> str | None:
        """The version that is served; None before the first. One small read: cheap enough for every request."""
        facts = self._read(project_id, "published.json")
        version = facts.get("version") if facts else None
        return version if isinstance(version, str) else None

    def damage(self, project_id: int) -> str | None:
        """What of the published version cannot be read, as a sentence; None when all can, or there is none yet.

        Reads head and record, so it costs more than `published_record`.
        """
        version = self.published(project_id)
        if version is None:
            name = f"{int(project_id)}/published.json"
            is_damaged = self._folder.exists(name)
            return f"{self._folder.place(name)} does not say which version is published" if is_damaged else None
        try:
            self.head(self.record(project_id, version))
        except VersionNotFoundError as exc:
            return str(exc)
        return None

    def published_record(self, project_id: int) -> VersionRecord | None:
        """The record of the published version; None before the first, or when its files are damaged."""
        version = self.published(project_id)
        if version is None:
            return None
        try:
            return self.record(project_id, version)
        except VersionNotFoundError as exc:
            logger.error("published version unreadable project=%d version=%s: %s", project_id, version, exc)
            return None

    def newest_record(self, project_id: int) -> VersionRecord | None:
        """The newest record that can be read, published or not; None without any."""
        for version in self.versions(project_id):
            try:
                return self.record(project_id, version)
            except VersionNotFoundError as exc:
                logger.warning("record passed over project=%d: %s", project_id, exc)
        return None

    def prune(self, project_id: int, keep: int) -> list[str]:
        """Deletes all but the newest `keep` versions; the published and the pinned one always stay. The names deleted.
        And what processes left half-written that were killed amid it.

        Those made while the project is pinned, one with every label, all have the head of the pinned one and do not
        count among the newest: other versions are not pushed out by them. Of them the newest stay, `keep` at most.
        """
        pin = self.pin(project_id)
        needed = {self.published(project_id), pin.version if pin else None}
        versions = self.versions(project_id)
        own = [version for version in versions if not _has_head_of_another(version)]
        copies = [version for version in versions if _has_head_of_another(version)]
        stale = [version for version in (*own[keep:], *copies[keep:]) if version not in needed]
        for version in stale:
            self._folder.remove(_version_folder(project_id, version), first="record.json")
        self._folder.sweep(str(int(project_id)), older_than_s=_WRITTEN_WITHIN_S)
        return stale

    # -- the pin --------------------------------------------------------------------------------------------------

    def set_pin(self, project_id: int, pin: Pin) -> None:
        """Keeps the project on this version's head, for every process and over restarts."""
        self._write(project_id, "pin.json", asdict(pin))

    def release_pin(self, project_id: int) -> None:
        """Lets the project go on with heads of its own."""
        self._folder.remove(f"{int(project_id)}/pin.json")

    def pin(self, project_id: int) -> Pin | None:
        """The pin; None without one, or when its file is damaged."""
        raw = self._read(project_id, "pin.json") or {}
        version = raw.get("version")
        if not isinstance(version, str) or not is_own_version(version):
            return None
        return Pin(version, str(raw.get("since")), str(raw.get("by")))

    def _write(self, project_id: int, name: str, content: Mapping[str, Any]) -> None:
        self._folder.write(f"{int(project_id)}/{name}", _json_bytes(content))

    def _read(self, project_id: int, name: str) -> Mapping[str, Any] | None:
        return self._read_json(f"{int(project_id)}/{name}")

    def _read_json(self, name: str) -> Mapping[str, Any] | None:
        """The JSON object in a file; None when there is no such file or it is not a JSON object."""
        try:
            raw = self._folder.read(name)
            content = None if raw is None else json.loads(raw.decode("utf-8"))
        except (OSError, ValueError) as exc:
            logger.error("cannot read path=%s: %s", self._folder.place(name), exc)
            return None
        return content if isinstance(content, dict) else None


def _has_head_of_another(version: str) -> bool:
    match = _VERSION.fullmatch(version)
    return match is not None and match.group(2) is not None


def _version_folder(project_id: int, version: str) -> str:
    if not is_own_version(version):
        raise VersionNotFoundError(f"{version!r} is not the name of a version of this service")
    return f"{int(project_id)}/versions/{version}"


def _map_file(project_id: int, name: str) -> str:
    return f"{int(project_id)}/map/{name}.safetensors"


def _arrays_digest(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, str]) -> str:
    digest = hashlib.sha256(_json_bytes(dict(sorted(facts.items()))))
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def _weights(project_id: int, fingerprint: str) -> str:
    return f"{int(project_id)}/backbones/{fingerprint}.safetensors"


def save_head(path: Path, head: Head, facts: Mapping[str, str]) -> None:
    """Writes a head to a file of its own, with the tensors of a version's `head.safetensors`; replaces what is there.

    Its classes, its strength, its threshold if it has one, and `facts` stand in the file's metadata. Raises
    StorageError if that does not go.
    """
    from safetensors.numpy import save

    own = {"classes": json.dumps(head.classes, ensure_ascii=False), "strength": repr(head.strength)}
    if head.threshold is not None:
        own["threshold"] = repr(head.threshold)
    LocalFolder(path.parent).write(path.name, save(_tensors(head), {**facts, **own}))


def load_head(path: Path) -> tuple[Head, dict[str, str]]:
    """The head and the facts that `save_head` wrote. Raises FileFormatError."""
    from safetensors.numpy import load

    try:
        content = path.read_bytes()
        tensors = load(content)
        facts = dict(json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"])
        classes, strength = tuple(json.loads(facts.pop("classes"))), float(facts.pop("strength"))
        threshold = float(facts.pop("threshold")) if "threshold" in facts else None
        if tensors["weights"].shape[0] != len(classes):
            raise ValueError(f"it has weights of {tensors['weights'].shape[0]} classes and names of {len(classes)}")
        space = FeatureSpace(tensors["scale"], tensors["centre"])
        return Head(classes, tensors["weights"], tensors["bias"], space, strength, threshold), facts
    except OSError as exc:
        raise FileFormatError(f"{path} cannot be read ({exc.strerror}); name a file that is there") from exc
    except Exception as exc:  # safetensors raises its own type for damaged files
        raise FileFormatError(f"{path} is no model of this program ({exc}); train it again") from exc


def head_of_bytes(record: VersionRecord, content: bytes) -> Head:
    """The head in a version's file. Raises what safetensors raises, and KeyError, for a damaged one."""
    from safetensors.numpy import load

    tensors = load(content)
    space = FeatureSpace(tensors["scale"], tensors["centre"])
    strength = float(record.strength or 0.0)
    return Head(tuple(record.classes), tensors["weights"], tensors["bias"], space, strength, record.threshold)


def _tensors(head: Head) -> dict[str, NDArray[np.float32]]:
    arrays = {"weights": head.weights, "bias": head.bias, "scale": head.space.scale, "centre": head.space.centre}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8")
