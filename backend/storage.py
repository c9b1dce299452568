"""Where the data folder is: a folder on disk, or an address in an object store that workers on many hosts share.

Both keep the same promises. A file is replaced whole or not at all, a folder made by `create` is complete or not there,
and never changes its content by being made again. On disk that is done by writing beside and renaming; in an object
store a put is whole by itself, nothing can be renamed, and a folder counts as there once its last file is.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

from backend.errors import StorageError

logger = logging.getLogger(__name__)

OBJECT_STORES: Mapping[str, str] = {"s3": "pip install '.[s3]'", "gs": "pip install gcsfs", "az": "pip install adlfs"}
"""Protocols that both fsspec and Lance speak, and what installs the one that is missing for it."""


@dataclass(frozen=True)
class Address:
    """A place in an object store, such as s3://bucket/prefix; `address / name` is one below it, as with paths."""

    text: str

    def __truediv__(self, name: str) -> Address:
        return Address(f"{self.text.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.text

    @property
    def protocol(self) -> str:
        """What stands before ://."""
        return self.text.partition("://")[0]

    @property
    def key(self) -> str:
        """What stands behind it: bucket and names."""
        return self.text.partition("://")[2].rstrip("/")

    @property
    def name(self) -> str:
        """The last part, as of a path."""
        return self.key.rpartition("/")[2]


Place = Path | Address
"""A file or folder, on disk or in an object store."""


def parse_place(text: str) -> Place:
    """The path or address somebody gave; ~ is their home.

    Raises ValueError that says what was expected, without what came, which may hold keys.
    """
    protocol, mark, rest = text.partition("://")
    if mark:
        bucket = rest.partition("/")[0]
        if protocol not in OBJECT_STORES or not bucket or "@" in bucket or "?" in rest:
            raise ValueError("a folder, or an address such as s3://bucket/prefix, without keys in it")
        return Address(text.rstrip("/"))
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("a path; there is no such user to whose home ~ could point") from None


def open_object_store(address: Address) -> Any:
    """fsspec's file system for an address; its connections do not survive a fork.

    Raises ImportError when the library for its protocol is missing; `OBJECT_STORES` says what installs it.
    """
    import fsspec

    return fsspec.filesystem(address.protocol, skip_instance_cache=True, use_listings_cache=False)


class Folder(ABC):
    """Small files below one place, by names such as `3/versions/v0001/record.json`; safe for many processes."""

    @abstractmethod
    def place(self, name: str) -> Place:
        """Where the file or folder of that name is."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """The file's content; None when there is no such file."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Makes or replaces a file: readers see the old or the new content and never half of one."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def create(self, name: str, files: Mapping[str, bytes]) -> None:
        """Makes a folder with these files; they appear together, and the last one named makes it count.

        Raises FileExistsError, or another OSError, when it is there already; then it stays as it is.
        """

    @abstractmethod
    def created(self, name: str, last: str) -> list[str]:
        """Names of the folders that `create` made directly below the named one, `last` being their last file."""

    @abstractmethod
    def holding(self, name: str) -> list[str]:
        """Names of the folders directly below the root that hold a file of this name."""

    @abstractmethod
    def files(self, name: str) -> list[str]:
        """Names of the files directly in a folder; none when there is no such folder."""

    @abstractmethod
    def remove(self, name: str, first: str | None = None) -> None:
        """Deletes a file or a folder with all in it, of which `first` goes first; what is not there is fine."""

    @abstractmethod
    def sweep(self, name: str, older_than_s: float) -> int:
        """Deletes what writers who were killed left half-written in a folder and all below it; how many there were.

        What is younger may be somebody's who is writing it.
        """

    @abstractmethod
    def move(self, name: str, to: str, last: str) -> bool:
        """Moves a folder; `last` is the file in it that leaves last. False when there is no such folder."""

    @abstractmethod
    def on_disk(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A path where the file can be read meanwhile, for libraries that want one; nothing is there if it is not."""

    @abstractmethod
    def take_in(self, name: str) -> contextlib.AbstractContextManager[Path]:
        """A path to write a file to, which becomes the named one at the end; the writer renames into place himself."""


def open_folder(place: Place) -> Folder:
    """The folder at a path or address; nothing is read or made yet."""
    return LocalFolder(place) if isinstance(place, Path) else ObjectFolder(place)


class LocalFolder(Folder):
    """A folder on disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def place(self, name: str) -> Path:
        """See `Folder.place`."""
        return self._root / name

    def read(self, name: str) -> bytes | None:
        """See `Folder.read`. Raises OSError."""
        try:
            return (self._root / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """See `Folder.write`. Raises StorageError."""
        path = self._root / name
        beside = _beside(path)
        with _translated_disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                _write_durably(beside, content)
                beside.replace(path)
            except BaseException:
                beside.unlink(missing_ok=True)
                raise

    def exists(self, name: str) -> bool:
        """See `Folder.exists`."""
        return (self._root / name).exists()

    def create(self, name: str, files: Mapping[str, bytes]) -> None:
        """See `Folder.create`. Raises StorageError, too."""
        folder = self._root / name
        beside = _beside(folder)
        with _translated_disk(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            beside.mkdir()
            try:
                *others, last = files
                for other in others:
                    (beside / other).write_bytes(files[other])
                _write_durably(beside / last, files[last])
                beside.rename(folder)
            except BaseException:
                shutil.rmtree(beside, ignore_errors=True)
                raise

    def created(self, name: str, last: str) -> list[str]:
        """See `Folder.created`: a renamed folder is complete, whatever it held."""
        return [path.name for path in (self._root / name).glob("*")]

    def holding(self, name: str) -> list[str]:
        """See `Folder.holding`."""
        return [path.parent.name for path in self._root.glob(f"*/{name}")]

    def files(self, name: str) -> list[str]:
        """See `Folder.files`."""
        return [path.name for path in (self._root / name).glob("*")]

    def remove(self, name: str, first: str | None = None) -> None:
        """See `Folder.remove`."""
        path = self._root / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def sweep(self, name: str, older_than_s: float) -> int:
        """See `Folder.sweep`."""
        written_before = time.time() - older_than_s
        n_swept = 0
        for path in (self._root / name).rglob(".*"):
            with contextlib.suppress(FileNotFoundError):  # its writer is done with it, or another sweeps
                if _BESIDE.fullmatch(path.name) and path.stat().st_mtime < written_before:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    n_swept += 1
        return n_swept

    def move(self, name: str, to: str, last: str) -> bool:
        """See `Folder.move`: in one step."""
        if not (self._root / name).exists():
            return False
        (self._root / name).rename(self._root / to)
        return True

    @contextlib.contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        """See `Folder.on_disk`: the file itself."""
        yield self._root / name

    @contextlib.contextmanager
    def take_in(self, name: str) -> Iterator[Path]:
        """See `Folder.take_in`: the place itself."""
        yield self._root / name


class ObjectFolder(Folder):
    """A prefix in an object store, through fsspec. Methods raise StorageError when the store does not answer.

    Addresses, keys and regions come from where the store's own libraries look: for S3 `AWS_ENDPOINT_URL`,
    `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, or what the machine's role gives.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        self._opened: tuple[int, Any] | None = None
        self._guard = Lock()

    def place(self, name: str) -> Address:
        """See `Folder.place`."""
        return self._address / name

    def read(self, name: str) -> bytes | None:
        """See `Folder.read`."""
        with self._translated("read"):
            try:
                return bytes(self._store.cat_file(self._key(name)))
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """See `Folder.write`: a put is whole or not at all."""
        with self._translated("written"):
            self._store.pipe_file(self._key(name), content)

    def exists(self, name: str) -> bool:
        """See `Folder.exists`."""
        with self._translated("read"):
            return bool(self._store.exists(self._key(name)))

    def create(self, name: str, files: Mapping[str, bytes]) -> None:
        """See `Folder.create`. Every file is put on condition that there is none, so that of two writers one fails."""
        with self._translated("written"):
            for file, content in files.items():
                self._store.pipe_file(self._key(f"{name}/{file}"), content, mode="create")

    def created(self, name: str, last: str) -> list[str]:
        """See `Folder.created`; one listing."""
        return sorted({path[-2] for path in self._below(name) if len(path) == 2 and path[-1] == last})

    def holding(self, name: str) -> list[str]:
        """See `Folder.holding`; one listing, and a request for each folder."""
        with self._translated("read"):
            try:
                entries = self._store.ls(self._address.key, detail=True, refresh=True)
            except FileNotFoundError:
                return []
        folders = [entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "directory"]
        return [folder for folder in folders if self.exists(f"{folder}/{name}")]

    def files(self, name: str) -> list[str]:
        """See `Folder.files`."""
        return sorted(path[0] for path in self._below(name) if len(path) == 1)

    def remove(self, name: str, first: str | None = None) -> None:
        """See `Folder.remove`."""
        with self._translated("written"):
            paths = self._store.find(self._key(name), refresh=True)
            key = self._key(f"{name}/{first}") if first else None
            if key in paths:
                self._store.rm_file(key)
            others = [path for path in paths if path != key]
            if others:
                self._store.rm(others)

    def sweep(self, name: str, older_than_s: float) -> int:
        """See `Folder.sweep`: a put leaves nothing half-written."""
        return 0

    def move(self, name: str, to: str, last: str) -> bool:
        """See `Folder.move`: copied and deleted file by file; one that was cut off is ended by the next."""
        with self._translated("written"):
            paths = sorted(self._store.find(self._key(name), refresh=True), key=lambda path: path.endswith(f"/{last}"))
            for path in paths:
                self._store.cp_file(path, self._key(to) + path.removeprefix(self._key(name)))
                self._store.rm_file(path)
        return bool(paths)

    @contextlib.contextmanager
    def on_disk(self, name: str) -> Iterator[Path]:
        """See `Folder.on_disk`: a copy, deleted afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / name.rpartition("/")[2]
            with self._translated("read"), contextlib.suppress(FileNotFoundError):
                self._store.get_file(self._key(name), str(copy))
            yield copy

    @contextlib.contextmanager
    def take_in(self, name: str) -> Iterator[Path]:
        """See `Folder.take_in`: uploaded at the end; a file that is put in parts appears with its last part."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / name.rpartition("/")[2]
            yield copy
            with self._translated("written"):
                self._store.put_file(str(copy), self._key(name))

    def _below(self, name: str) -> list[list[str]]:
        """The parts of the names of all files below a folder."""
        with self._translated("read"):
            prefix = self._key(name) + "/"
            found = self._store.find(prefix.rstrip("/"), refresh=True)
        return [path.removeprefix(prefix).split("/") for path in found if path.startswith(prefix)]

    def _key(self, name: str) -> str:
        return f"{self._address.key}/{name}"

    @property
    def _store(self) -> Any:
        """fsspec's file system, one per process: its connections do not survive a fork."""
        with self._guard:
            if self._opened is None or self._opened[0] != os.getpid():
                try:
                    store = open_object_store(self._address)
                except ImportError as exc:
                    protocol = self._address.protocol
                    raise StorageError(
                        f"DATA_DIR is at {protocol}://, which needs a library that is not installed ({exc}); "
                        f"{OBJECT_STORES[protocol]}, or set DATA_DIR to a folder"
                    ) from exc
                self._opened = os.getpid(), store
            return self._opened[1]

    @contextlib.contextmanager
    def _translated(self, done: str) -> Iterator[None]:
        try:
            yield
        except (StorageError, FileExistsError):
            raise
        except Exception as exc:  # each store's library has exceptions of its own, for keys, regions and networks
            raise StorageError(
                f"{self._address} cannot be {done}: {exc or type(exc).__name__}; check the address in DATA_DIR, the "
                "store's keys in the environment, and that it is up"
            ) from exc


@contextlib.contextmanager
def _translated_disk(path: Path) -> Iterator[None]:
    """Turns what a disk refuses into our error; that something is there already is for the caller to judge."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.EEXIST, errno.ENOTEMPTY):
            raise
        raise StorageError(
            f"{path} cannot be written: {exc.strerror or exc}; make room on the disk of DATA_DIR, and see that this "
            "user may write there"
        ) from exc


_BESIDE = re.compile(r"\..+\.[0-9a-f]{8}")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid4().hex[:8]}")


def _write_durably(path: Path, content: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
