"""Add images to a project as they arrive, in a folder or at addresses; each once, whatever restarts in between.

An uploaded image's task holds, beside the image, where it came from and its sha256: Label Studio itself says what is
there already, also after a crash between the upload and the note of it. What was added is noted, too, in the project's
folder, so that a task that somebody deletes does not come back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from backend.adapters.image_source import ImageFile, ImageSource
from backend.adapters.images import DEFAULT_MAX_IMAGE_PIXELS, decode
from backend.adapters.label_studio import LabelStudioClient
from backend.adapters.polite_fetch import PoliteFetcher
from backend.choices import parse_labeling_config
from backend.errors import ImageError, StorageError, UsageError
from backend.loop.local_files import synchronise
from backend.schema import DIGEST_FIELD, FETCHED_FIELD, SOURCE_FIELD, Task

logger = logging.getLogger(__name__)

SETTLED_S = 2.0
"""A file that was changed more recently is being written, perhaps; it is looked at again in the next round."""

MOST_WAITS = 6
"""Looks for which a storage is not synced because a file in it is being written; then it is all the same."""

_TIME = re.compile(r"\{time:([^{}]+)\}")
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "GIF": ".gif", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}


@dataclass(frozen=True)
class Addition:
    """One line about one image: it was `added`, or `left out` for a reason."""

    outcome: str
    source: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.outcome} {self.source}" + (f": {self.detail}" if self.detail else "")


class Arrivals(Protocol):
    """Where images come from."""

    def look(self, notes: dict[str, Any]) -> Iterator[tuple[str, bytes | ImageError]]:
        """The images that are new or changed by `notes` of the source itself, which are kept between looks."""


class FolderArrivals:
    """The images of a folder or bucket; one that is still being written is left for the next look."""

    def __init__(self, source: ImageSource, *, now: Callable[[], float] = time.time) -> None:
        self._source = source
        self._now = now
        self._sizes: dict[str, str] = {}
        self.n_unsettled = 0
        """Files that the last look left for the next."""

    def settled(self, stamps: Mapping[str, str]) -> list[ImageFile]:
        """New or changed files that have the size and time of the last look, or have not changed for a while."""
        files = self._source.files()
        before, self._sizes = self._sizes, {file.name: file.stamp for file in files}
        changed = [file for file in files if stamps.get(file.name) != file.stamp]
        found = [file for file in changed if self._is_old(file) or before.get(file.name) == file.stamp]
        self.n_unsettled = len(changed) - len(found)
        return found

    def files(self) -> list[ImageFile]:
        """All images there are, settled or not."""
        return self._source.files()

    def look(self, notes: dict[str, Any]) -> Iterator[tuple[str, bytes | ImageError]]:
        """See `Arrivals`; the notes are stamps by name. One that cannot be read now is tried again when it changes."""
        for file in self.settled(notes):
            try:
                found: bytes | ImageError = self._source.fetch(file.name)
            except ImageError as exc:
                found = exc
            yield self._source.reference(file.name), found
            if not (isinstance(found, ImageError) and found.transient):
                notes[file.name] = file.stamp

    def _is_old(self, file: ImageFile) -> bool:
        place = self._source.place
        if not isinstance(place, Path):
            return True  # an object is there whole or not at all
        try:
            return self._now() - (place / file.name).stat().st_mtime >= SETTLED_S
        except OSError:
            return False


class AddressArrivals:
    """The images at addresses, one request at a time; `{time:%Y%m%d-%H%M}` in one is the time of the look, in UTC."""

    def __init__(
        self,
        addresses: Sequence[str],
        fetcher: PoliteFetcher,
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._addresses = addresses
        self._fetcher = fetcher
        self._now = now

    def look(self, notes: dict[str, Any]) -> Iterator[tuple[str, bytes | ImageError]]:
        """See `Arrivals`; the notes are what each host said by which it knows whether its picture changed."""
        now = self._now()
        for template in self._addresses:
            address = filled(template, now)
            try:
                fetched = self._fetcher.fetch(address, notes.get(address, {}))
            except ImageError as exc:
                yield address, exc
                continue
            if fetched is not None:
                yield address, fetched.content
                # Of an address that was filled only the last is worth keeping.
                if address == template:
                    notes[address] = dict(fetched.marks)


def read_addresses(path: Path, name_filter: str | None = None) -> list[str]:
    """The addresses in a file, one a line, without empty lines and comments (#), each once.

    Raises UsageError for a file that cannot be read, holds none, or a line that is no http(s) address.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise UsageError(f"--urls {path} cannot be read ({exc}); give a file with one address a line") from exc
    found = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if urlsplit(line).scheme not in ("http", "https") or not urlsplit(line).netloc:
            raise UsageError(
                f"--urls {path}, line {number}: {line[:80]!r} is not an address such as https://host/a.jpg"
            )
        try:
            filled(line, datetime(2020, 1, 1, tzinfo=UTC))
        except ValueError as exc:
            raise UsageError(f"--urls {path}, line {number}: {exc}") from exc
        if name_filter is None or re.match(name_filter, unquote(urlsplit(line).path.rpartition("/")[2])):
            found.append(line)
    if not found:
        raise UsageError(f"--urls {path} holds no address; write one a line, such as https://host/webcam.jpg")
    return list(dict.fromkeys(found))


def filled(template: str, now: datetime) -> str:
    """The address at this time. Raises ValueError for a time that cannot be written."""
    return _TIME.sub(lambda match: now.strftime(match[1]), template)


class Grower:
    """Adds what arrives to one project."""

    def __init__(
        self,
        *,
        label_studio: LabelStudioClient,
        project_id: int,
        notes_file: Path,
        max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`notes_file`: where it is kept what was added; in a folder that is there.

        Raises what Label Studio's client raises, LabelingConfigError, and StorageError for notes that are damaged.
        """
        self._label_studio = label_studio
        self._project_id = project_id
        self._notes_file = notes_file
        self._max_image_pixels = max_image_pixels
        self._now = now
        self._n_waited = 0
        self._image_field = parse_labeling_config(label_studio.project(project_id).label_config).image_field
        self._notes = self._read_notes()
        self._known: set[str] = {*self._notes["added"]}
        tasks = label_studio.tasks(project_id, self._image_field, fields=(DIGEST_FIELD,))
        self._known |= {str(task.fields[DIGEST_FIELD]) for task in tasks if DIGEST_FIELD in task.fields}

    def add_arrivals(self, arrivals: Arrivals, key: str) -> Iterator[Addition]:
        """Uploads what is new and makes a task of each, one line a time; `key` names the source among the notes.

        Identical bytes are added once, wherever they come from; what is no image is left out once.
        """
        notes = self._notes["sources"].setdefault(key, {})
        try:
            for source, content in arrivals.look(notes):
                addition = self._added(source, content)
                if addition is not None:
                    yield addition
        finally:
            self._keep_notes()

    def leave_present(self, arrivals: FolderArrivals, key: str) -> int:
        """What lies in a folder that was never watched is not added, only what comes later; how many files that is."""
        if key in self._notes["sources"]:
            return 0
        stamps = {file.name: file.stamp for file in arrivals.files()}
        self._notes["sources"][key] = stamps
        self._keep_notes()
        return len(stamps)

    def sync_storage(self, storage_id: int, arrivals: FolderArrivals, key: str) -> Iterator[Addition]:
        """Lets Label Studio sync its own storage when a file came; a line for each task that this made."""
        stamps = self._notes["sources"].setdefault(key, {})
        settled = arrivals.settled(stamps)
        if not settled:
            return
        # Label Studio takes every file that lies there, half ones too: those are waited for, though not for ever.
        self._n_waited += 1
        if arrivals.n_unsettled and self._n_waited <= MOST_WAITS:
            return
        self._n_waited = 0
        last = self._newest_task()
        synchronise(self._label_studio, storage_id)
        stamps.update({file.name: file.stamp for file in settled})
        self._keep_notes()
        for task in self._tasks_after(last):
            yield Addition("added", str(task.image), f"task {task.id}")

    def _added(self, source: str, content: bytes | ImageError) -> Addition | None:
        if isinstance(content, ImageError):
            return Addition("left out", source, str(content))
        digest = hashlib.sha256(content).hexdigest()
        if digest in self._known:
            return None
        try:
            decode(content, max_image_pixels=self._max_image_pixels)
        except ImageError as exc:
            self._known.add(digest)  # said once
            return Addition("left out", source, str(exc))
        name = _upload_name(source, content)
        reference = self._label_studio.upload_image(self._project_id, name, content)
        data = {self._image_field: reference, SOURCE_FIELD: source, DIGEST_FIELD: digest}
        data[FETCHED_FIELD] = self._now().isoformat(timespec="seconds")
        self._label_studio.import_tasks(self._project_id, [{"data": data}])
        self._known.add(digest)
        self._notes["added"][digest] = source
        self._keep_notes()
        return Addition("added", source)

    def _newest_task(self) -> int:
        tasks = self._label_studio.tasks(self._project_id, self._image_field)
        return max((task.id for task in tasks), default=0)

    def _tasks_after(self, task_id: int) -> list[Task]:
        found: list[Task] = []
        while page := self._label_studio.tasks_after(
            self._project_id, self._image_field, found[-1].id if found else task_id
        ):
            found += page
        return found

    def _read_notes(self) -> dict[str, Any]:
        try:
            raw = json.loads(self._notes_file.read_bytes())
        except FileNotFoundError:
            return {"added": {}, "sources": {}}
        except (OSError, ValueError) as exc:
            raise StorageError(
                f"the notes of what was added, {self._notes_file}, cannot be read ({exc}); delete the file: what the "
                "project holds is not added again"
            ) from exc
        return {"added": dict(raw.get("added", {})), "sources": dict(raw.get("sources", {}))}

    def _keep_notes(self) -> None:
        beside = self._notes_file.with_name(f".{self._notes_file.name}.{os.getpid()}.part")
        try:
            self._notes_file.parent.mkdir(parents=True, exist_ok=True)
            beside.write_text(json.dumps(self._notes, ensure_ascii=False), encoding="utf-8")
            beside.replace(self._notes_file)
        except OSError as exc:
            raise StorageError(
                f"{self._notes_file} cannot be written ({exc.strerror}); make room, or it writable"
            ) from exc


def storage_of(storages: Sequence[Mapping[str, Any]], folder: Path) -> int | None:
    """The id of the project's storage that has this folder, if one has."""
    wanted = os.path.realpath(folder)
    return next((int(item["id"]) for item in storages if os.path.realpath(str(item.get("path"))) == wanted), None)


def _upload_name(source: str, content: bytes) -> str:
    """A file name for Label Studio, which takes images by how their names end."""
    path = urlsplit(source).path if "://" in source else source
    name = re.sub(r"[^\w.\- ]", "_", unquote(path).rpartition("/")[2])[-100:] or "image"
    if re.search(r"(?i)\.(jpe?g|png|gif|webp|bmp|tiff?|svg)$", name):
        return name
    magic = {b"\xff\xd8": "JPEG", b"\x89PN": "PNG", b"GIF": "GIF", b"RIFF": "WEBP", b"BM": "BMP"}
    kind = next((kind for start, kind in magic.items() if content.startswith(start)), "TIFF")
    return name + _SUFFIXES[kind]
