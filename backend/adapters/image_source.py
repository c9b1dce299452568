"""Images of a folder or a bucket: which there are, and their bytes.

A name is the path below the place, with '/' between its parts, in a folder as in a bucket. For S3 keys, region and
address come from where its own libraries look: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`,
`AWS_ENDPOINT_URL`, a profile, or the machine's role.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

from backend.errors import ImageError, ImageSourceError, StorageError
from backend.storage import OBJECT_STORES, Address, Place, open_object_store

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ico",
     ".ppm", ".pgm", ".pbm", ".tga")
)  # fmt: skip
"""How the names of files end, in any case, that are taken for images where no filter says otherwise."""

N_AT_ONCE = 10
"""Images that `ImageSource.fetch_all` fetches at once; botocore keeps so many connections to a store."""

KEYS: Mapping[str, str] = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a bucket that is open to all "
    """FSSPEC_S3='{"anon": true}'""",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""Where each store's libraries look for keys, as an error names them."""

# By their names: they belong to libraries (botocore, google-auth) that may be missing.
_NO_KEYS = frozenset(
    ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound",
     "TokenRetrievalError", "UnauthorizedSSOTokenError", "SSOTokenLoadError", "DefaultCredentialsError", "RefreshError")
)  # fmt: skip
# What S3 answers when it does not know who asks, whichever object it is about.
_OF_THE_KEYS = frozenset(
    ("ExpiredToken", "InvalidAccessKeyId", "InvalidClientTokenId", "SignatureDoesNotMatch", "RequestTimeTooSkewed")
)
_NO_RANGE = frozenset(("InvalidRange", "416"))  # what S3 answers when bytes of an empty object are asked for


@dataclass(frozen=True)
class ImageFile:
    """One image: its name, its size, and a stamp that changes when its content does (an ETag; else time and size)."""

    name: str
    n_bytes: int
    stamp: str


class ImageSource(ABC):
    """The images below one place; one source may be used by many threads.

    `name_filter` is a regular expression as in the field "File Name Filter" of Label Studio's storages, and is matched
    as these do: from the start, to the name without its folders in a folder, to the whole key in a bucket. Without
    one, files count that end in one of `IMAGE_SUFFIXES`. Hidden files and folders never do.

    Methods raise ImageSourceError when the place is not there or not open to us, StorageError when it does not answer.
    """

    def __init__(self, place: Place, *, name_filter: str | None = None, max_image_bytes: int) -> None:
        self.place = place
        self._max_image_bytes = max_image_bytes
        self._filter = None if name_filter is None else _compiled(name_filter)

    def files(self) -> list[ImageFile]:
        """The images there are now, by name; none in an empty place."""
        found: list[ImageFile] = []
        n_odd = 0
        for file in self._listed():
            parts = file.name.split("/")
            if any(part in ("", ".", "..") or "\0" in part for part in parts):
                n_odd += 1
            elif not any(part.startswith(".") for part in parts) and self._is_wanted(file.name):
                found.append(file)
        if n_odd:
            logger.warning(
                "left out %d objects of %s whose keys are no paths: an empty part, . or ..", n_odd, self.place
            )
        return sorted(found, key=lambda file: file.name)

    def names(self) -> list[str]:
        """Their names, sorted. Raises ImageSourceError when there are none."""
        names = [file.name for file in self.files()]
        if not names:
            wanted = (
                f"whose name the filter {self._filter.pattern!r} matches, from its start; correct the filter"
                if self._filter
                else "whose name ends as an image's does (.jpg, .png, …); check the address, or give a name filter"
            )
            raise ImageSourceError(f"{self.place} holds no file {wanted}")
        return names

    @abstractmethod
    def fetch(self, name: str) -> bytes:
        """The image's bytes; raises ImageError, too, for what concerns this image alone."""

    def fetch_all(
        self, names: Sequence[str], *, n_at_once: int = N_AT_ONCE
    ) -> Generator[tuple[str, bytes | ImageError]]:
        """Each name with the image's bytes, or why there are none, in order; several are fetched at once.

        Whoever stops before the end closes the iterator: what is being fetched is waited for and dropped.
        """

        def outcome(name: str) -> bytes | ImageError:
            try:
                return self.fetch(name)
            except ImageError as exc:
                return exc

        waiting = iter(names)
        fetching: deque[tuple[str, Future[bytes | ImageError]]] = deque()
        with ThreadPoolExecutor(n_at_once, thread_name_prefix="fetch") as threads:
            try:
                fetching.extend((name, threads.submit(outcome, name)) for name in islice(waiting, n_at_once))
                while fetching:
                    name, future = fetching.popleft()
                    yield name, future.result()
                    fetching.extend((name, threads.submit(outcome, name)) for name in islice(waiting, 1))
            finally:
                for _, future in fetching:
                    future.cancel()

    def reference(self, name: str) -> str:
        """Path or address of an image; that in an S3 bucket is what its tasks hold in Label Studio: s3://bucket/key."""
        return str(self.place / name)

    @abstractmethod
    def _listed(self) -> Iterator[ImageFile]:
        """All files below the place, images or not."""

    def _is_wanted(self, name: str) -> bool:
        if self._filter is None:
            return PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES
        return self._filter.match(self._filtered(name)) is not None

    @abstractmethod
    def _filtered(self, name: str) -> str:
        """What of a name Label Studio's storage of this kind matches the filter to."""

    def _checked_size(self, name: str, n_bytes: int) -> None:
        if n_bytes == 0:
            raise ImageError(f"image {self.reference(name)!r} is empty (0 bytes); upload it again")
        if n_bytes > self._max_image_bytes:
            limit_mib = self._max_image_bytes / 1024 / 1024
            raise ImageError(
                f"image {self.reference(name)!r} is larger than {limit_mib:g} MiB; make it smaller or raise the limit, "
                "MAX_IMAGE_BYTES"
            )


def open_images(place: Place, *, name_filter: str | None = None, max_image_bytes: int) -> ImageSource:
    """The images below a folder or an address; nothing is read yet.

    Raises ImageSourceError for a filter that is no regular expression.
    """
    if isinstance(place, Path):
        return LocalImages(place, name_filter=name_filter, max_image_bytes=max_image_bytes)
    return BucketImages(place, name_filter=name_filter, max_image_bytes=max_image_bytes)


class LocalImages(ImageSource):
    """The images below a folder on disk; links are followed."""

    place: Path

    def fetch(self, name: str) -> bytes:
        """See `ImageSource.fetch`."""
        if Path(name).is_absolute() or ".." in name.split("/"):
            raise ImageError(f"image {name!r} is no name below {self.place}; expected one such as 'cats/1.jpg'")
        path = self.place / name
        try:
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):
                raise ImageError(f"image {str(path)!r} is not a file; expected a JPEG, PNG or the like")
            self._checked_size(name, found.st_size)
            return path.read_bytes()
        except OSError as exc:
            raise ImageError(f"image {str(path)!r} cannot be read ({exc.strerror or exc}); check the file") from exc

    def _listed(self) -> Iterator[ImageFile]:
        if not self.place.is_dir():
            came = "is a file" if self.place.exists() else "is not there"
            raise ImageSourceError(
                f"{self.place} {came}; expected a folder of images, or an address s3://bucket/prefix"
            )
        seen: set[str] = set()  # folders, by where they really are: links may lead in circles
        for folder, below, files in os.walk(self.place, followlinks=True, onerror=self._unlisted):
            real = os.path.realpath(folder)
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            inside = Path(folder).relative_to(self.place)
            for file in files:
                try:
                    found = Path(folder, file).stat()
                except OSError:  # a link that leads nowhere, or deleted meanwhile
                    continue
                if stat.S_ISREG(found.st_mode):
                    yield ImageFile(
                        (inside / file).as_posix(), found.st_size, f"{found.st_mtime_ns:x}-{found.st_size:x}"
                    )

    def _unlisted(self, exc: OSError) -> None:
        if exc.filename == str(self.place):
            raise ImageSourceError(f"{self.place} cannot be listed ({exc.strerror}); see that this user may read it")
        logger.warning("left out the folder %s, which cannot be listed: %s", exc.filename, exc.strerror)

    def _filtered(self, name: str) -> str:
        return name.rpartition("/")[2]  # io_storages/localfiles/models.py, iter_objects


class BucketImages(ImageSource):
    """The images below an address in an object store, through fsspec."""

    place: Address

    def __init__(self, place: Address, *, name_filter: str | None = None, max_image_bytes: int) -> None:
        super().__init__(place, name_filter=name_filter, max_image_bytes=max_image_bytes)
        self._opened: tuple[int, Any] | None = None
        self._guard = Lock()
        self._sizes: dict[str, int] = {}  # of what was listed, to leave out at once what is too large

    def fetch(self, name: str) -> bytes:
        """See `ImageSource.fetch`."""
        if name in self._sizes:
            self._checked_size(name, self._sizes[name])
        key = f"{self.place.key}/{name}"
        with self._translated(name):
            # One byte more than allowed: what is larger is never loaded whole.
            payload = bytes(self._store.cat_file(key, start=0, end=self._max_image_bytes + 1))
        self._checked_size(name, len(payload))
        return payload

    def _listed(self) -> Iterator[ImageFile]:
        prefix = self.place.key + "/"
        with self._translated():
            found = self._store.find(self.place.key, detail=True, refresh=True)
        for key, entry in found.items():
            if key.startswith(prefix) and not key.endswith("/"):  # one that does is how consoles make a folder
                n_bytes = int(entry["size"] or 0)
                changed = entry.get("LastModified") or entry.get("last_modified") or entry.get("updated")
                stamp = entry.get("ETag") or entry.get("etag") or f"{changed}-{n_bytes:x}"
                name = key.removeprefix(prefix)
                self._sizes[name] = n_bytes
                yield ImageFile(name, n_bytes, str(stamp).strip('"'))

    def _filtered(self, name: str) -> str:
        return f"{self.place.key}/{name}".partition("/")[2]  # io_storages/s3/models.py, iter_objects

    @property
    def _store(self) -> Any:
        """fsspec's file system, one per process: its connections do not survive a fork."""
        with self._guard:
            if self._opened is None or self._opened[0] != os.getpid():
                self._opened = os.getpid(), open_object_store(self.place)
            return self._opened[1]

    @contextmanager
    def _translated(self, name: str | None = None) -> Iterator[None]:
        """Turns what the store's library raises, about the bucket or the image of that name, into our errors."""
        protocol, bucket = self.place.protocol, self.place.key.partition("/")[0]
        try:
            yield
        except (ImageError, ImageSourceError):
            raise
        except ImportError as exc:
            raise ImageSourceError(
                f"{self.place}: {protocol}:// needs a library that is not installed ({exc}); "
                f"{OBJECT_STORES[protocol]}, or give a folder"
            ) from exc
        except Exception as exc:  # each store's library has exceptions of its own, for keys, regions and networks
            said, code = f"{exc or type(exc).__name__}", _code(exc)
            if type(exc).__name__ in _NO_KEYS:
                raise ImageSourceError(
                    f"{self.place}: there are no keys to ask with ({said}); set {KEYS[protocol]}"
                ) from exc
            if name is not None and code in _NO_RANGE:
                self._checked_size(name, 0)
            if isinstance(exc, FileNotFoundError):
                if name is not None and code != "NoSuchBucket":
                    raise ImageError(f"image {self.reference(name)!r} is not there; list the bucket again") from exc
                raise ImageSourceError(
                    f"{self.place}: there is no bucket {bucket!r} ({said}); correct the address, or the address of the "
                    "store in the environment"
                ) from exc
            if isinstance(exc, PermissionError):
                if name is not None and code not in _OF_THE_KEYS:
                    raise ImageError(
                        f"image {self.reference(name)!r} is not given to us ({said}); let these keys read it"
                    ) from exc
                raise ImageSourceError(
                    f"{self.place} is not open to the keys in the environment ({said}); let them list and read the "
                    f"bucket, or set others: {KEYS[protocol]}"
                ) from exc
            raise StorageError(
                f"{self.place} cannot be read: {said}; check the address, the store's address and keys in the "
                "environment, and that it is up"
            ) from exc


def _compiled(name_filter: str) -> re.Pattern[str]:
    try:
        return re.compile(name_filter)
    except re.error as exc:
        raise ImageSourceError(
            f"the name filter {name_filter!r} is no regular expression ({exc}); expected one such as '.*\\.png'"
        ) from exc


def _code(exc: BaseException) -> str | None:
    """S3's own word for what is wrong, such as NoSuchBucket; None where the store has none."""
    response = getattr(exc.__cause__ or exc, "response", None)
    error = response.get("Error") if isinstance(response, dict) else None
    return error.get("Code") if isinstance(error, dict) else None
