"""Images of a folder or a bucket as a dataset, without Label Studio: embedded once, split, tagged, put up for labeling.

What is known of a folder lies in its cache:

    <cache>/embeddings/<fingerprint>/part-00001.safetensors   embeddings, with names and stamps; parts are appended
    <cache>/tags/initial.json                                 see `backend.lightly.tags`
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from backend.adapters.backbones import Backbone
from backend.adapters.image_source import ImageSource, open_images
from backend.adapters.images import DEFAULT_MAX_IMAGE_BYTES, DEFAULT_MAX_IMAGE_PIXELS
from backend.errors import FileFormatError, ImageError, ImageSourceError, SelectionError
from backend.formats.simple import is_simple, read_json, simple_text, write_whole
from backend.labels import Label, names_of
from backend.learning.label_sets import strata
from backend.lightly import Dataset
from backend.loop.image_files import read_image
from backend.loop.pipeline import WORTH_ACCELERATING, embed_in_batches
from backend.storage import LocalFolder, Place

logger = logging.getLogger(__name__)

IMAGES_PER_PART = 1000
"""New embeddings are kept after so many: what is cut off loses no more."""

MOST_PARTS = 16
"""More parts than this become one."""

_PART = re.compile(r"part-([0-9]{5,})\.safetensors")
_LEADING_LETTERS = re.compile(r"[^\W\d_]+")


# -- the dataset ------------------------------------------------------------------------------------------------------


def open_folder(
    source: Place | ImageSource,
    *,
    cache: Path,
    backbone: Backbone,
    name_filter: str | None = None,
    only: Collection[str] | None = None,
    advance: Callable[[int, int], None] = lambda done, total: None,
    max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
) -> Dataset:
    """The images below a folder or address, by name, with their embeddings and the tags kept in `cache`.

    Images are embedded that were not yet by this backbone, or have changed since; the others' embeddings come from the
    cache. An image that cannot be read is left out with a warning, and tried again the next time. `name_filter` is that
    of `open_images`, for a place; a source has its own. `only` are the names to take; without, all. `advance(done,
    total)` is called after each batch with how many of the new images are embedded.

    Raises ImageSourceError for a name in `only` that is not there and where no image can be read, and what the source
    raises.
    """
    if not isinstance(source, ImageSource):
        source = open_images(source, name_filter=name_filter, max_image_bytes=DEFAULT_MAX_IMAGE_BYTES)
    stamps = {file.name: file.stamp for file in source.files()}
    if only is not None:
        missing = sorted(set(only) - stamps.keys())
        if missing:
            raise ImageSourceError(
                f"{source.place} has no image {missing[0]!r}{_others(missing)}; give the folder that the names are "
                "relative to"
            )
        stamps = {name: stamps[name] for name in sorted(only)}
    if not stamps:
        source.names()  # which says what was looked for
        raise ImageSourceError(f"no image of {source.place} is left; name at least one")
    kept = _Embeddings(cache / "embeddings" / re.sub(r"[^\w.-]", "_", backbone.fingerprint), backbone.dim)
    known = kept.read()
    new = [name for name, stamp in stamps.items() if name not in known or known[name][0] != stamp]
    if len(new) >= WORTH_ACCELERATING:
        backbone.accelerate()

    def load(name: str) -> Image.Image:
        return read_image(source, name, min_side=backbone.input_side, max_image_pixels=max_image_pixels)

    n_done, fresh = 0, {}
    try:
        for batch in embed_in_batches(backbone, new, load):
            for name, outcome in batch:
                if isinstance(outcome, ImageError):
                    known.pop(name, None)
                    logger.warning("left out: %s", outcome)
                else:
                    fresh[name] = stamps[name], outcome.astype(np.float16)
            n_done += len(batch)
            advance(n_done, len(new))
            if len(fresh) >= IMAGES_PER_PART:
                known |= kept.append(fresh)
                fresh = {}
    finally:
        known |= kept.append(fresh)
    names = [name for name in stamps if name in known]
    if not names:
        raise ImageSourceError(f"{source.place}: none of {len(stamps)} images can be read; see the warnings")
    return Dataset(names, np.stack([known[name][1] for name in names]), tags_dir=cache / "tags")


def cache_of(place: Place, folders: Path) -> Path:
    """Where in `folders` the cache of a folder or address is: named after it, and another one for each."""
    whole = str(place.absolute()) if isinstance(place, Path) else str(place)
    readable = re.sub(r"[^\w.-]+", "-", PurePosixPath(whole).name).strip("-.") or "images"
    return folders / f"{readable}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


_Known = dict[str, tuple[str, NDArray[np.float16]]]
"""Name → stamp of the image that was embedded, and its embedding (dim,)."""


class _Embeddings:
    """Embeddings of one backbone in a folder; a later part has precedence."""

    def __init__(self, folder: Path, dim: int) -> None:
        self._folder = folder
        self._dim = dim

    def read(self) -> _Known:
        """All that is kept; a damaged part is left aside with a warning, and its images are embedded again."""
        from safetensors.numpy import load

        known: _Known = {}
        for path in self._parts():
            try:
                content = path.read_bytes()
                embeddings = load(content)["embeddings"]
                facts = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
                names, stamps = json.loads(facts["names"]), json.loads(facts["stamps"])
                if embeddings.shape != (len(names), self._dim) or not np.isfinite(embeddings).all():
                    raise ValueError(f"its embeddings have the shape {embeddings.shape}, or are not finite")
                known |= {name: (stamp, row) for name, stamp, row in zip(names, stamps, embeddings, strict=True)}
            except Exception as exc:  # safetensors raises its own type for damaged files
                logger.warning("left out the damaged file %s: %s", path, exc)
        return known

    def append(self, fresh: _Known) -> _Known:
        """Keeps these beside the others; gives them back."""
        if not fresh:
            return fresh
        parts = self._parts()
        number = 1 + max((_number(path) for path in parts), default=0)
        merged = self.read() | fresh if len(parts) >= MOST_PARTS else fresh
        LocalFolder(self._folder).write(f"part-{number:05}.safetensors", _part(merged))
        if merged is not fresh:
            for path in parts:
                path.unlink(missing_ok=True)
        return fresh

    def _parts(self) -> list[Path]:
        return sorted((path for path in self._folder.glob("part-*") if _PART.fullmatch(path.name)), key=_number)


def _number(path: Path) -> int:
    return int(path.name.removeprefix("part-").removesuffix(".safetensors"))


def _others(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _part(known: _Known) -> bytes:
    from safetensors.numpy import save

    facts = {
        "names": json.dumps(list(known)),
        "stamps": json.dumps([stamp for stamp, _ in known.values()]),
    }
    content: bytes = save({"embeddings": np.stack([embedding for _, embedding in known.values()])}, facts)
    return content


# -- classes, and the split into training and validation --------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Names of the images to train on, and those to validate with, each with its label.

    classes: class → number of images that have it. training_labels: those of images to train on, where they are known.
    """

    train: tuple[str, ...]
    validation: Mapping[str, Label]
    classes: Mapping[str, int]
    training_labels: Mapping[str, Label] | None = None


def classes_of(names: Sequence[str]) -> dict[str, str]:
    """Name → class: that of its uppermost folder, or, where there are no folders, the letters its name begins with.

    Raises SelectionError where that gives a name no class, or all the same one.
    """
    in_folders = [name for name in names if "/" in name]
    if in_folders and len(in_folders) < len(names):
        beside = next(name for name in names if "/" not in name)
        raise SelectionError(
            f"{beside!r} lies beside class folders such as {in_folders[0].partition('/')[0]!r}; put every image into "
            "the folder of its class, or all beside each other"
        )
    found: dict[str, str] = {}
    for name in names:
        letters = _LEADING_LETTERS.match(name)
        if in_folders:
            found[name] = name.partition("/")[0]
        elif letters:
            found[name] = letters[0]
        else:
            raise SelectionError(
                f"{name!r} does not begin with letters, which would be its class, and lies in no class folder; rename "
                "it as in cloudy1.jpg, or put it into one"
            )
    if len(set(found.values())) < 2:
        raise SelectionError(
            f"all {len(names)} images are of one class, {next(iter(found.values()), '')!r}; expected two or more, by "
            "class folders or by the letters that file names begin with"
        )
    return found


def split(names: Sequence[str], *, one_in: int, seed: int, labels: Mapping[str, Label] | None = None) -> Split:
    """One image in `one_in` of each class for validation, rounded up, in an order shuffled by `seed`.

    Classes are as `classes_of` says, or of `labels`, name → label: an image without one is to train on. Where these are
    sets, one in `one_in` of each set is taken, and of sets that fewer images have one in as many of their rarest label.

    Raises SelectionError as `classes_of`, and for a class that would be left without an image to train on.
    """
    truth: Mapping[str, Label] = classes_of(names) if labels is None else labels
    by_stratum: dict[str, list[str]] = defaultdict(list)
    ordered = sorted(truth)
    for name, stratum in zip(ordered, strata([truth[name] for name in ordered], one_in), strict=True):
        by_stratum[stratum].append(name)
    random = np.random.default_rng(seed)
    validation: dict[str, Label] = {}
    for stratum, members in sorted(by_stratum.items()):
        if len(members) < 2 and isinstance(truth[members[0]], str):
            raise SelectionError(f"class {stratum!r} has the one image {members[0]!r}; give two or more of each class")
        if len(members) > 1:  # what only one image has is learned from
            validation |= {members[row]: truth[members[row]] for row in random.permutation(len(members))[::one_in]}
    train = tuple(name for name in sorted(names) if name not in validation)
    counts = Counter(name for label in truth.values() for name in names_of(label))
    known = None if labels is None else {name: labels[name] for name in train if name in labels}
    return Split(train, dict(sorted(validation.items())), dict(sorted(counts.items())), known)


def write_split(found: Split, folder: Path) -> tuple[Path, ...]:
    """Writes `full_train.json`, a list of names, `val.json`, name → list of its classes, and where they are known
    `train.json`, the same of the images to train on; their paths.

    Files that are there are replaced. Raises FileFormatError if that does not go.
    """
    train, validation, labels = folder / "full_train.json", folder / "val.json", folder / "train.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise FileFormatError(f"{folder} cannot be made ({exc.strerror}); name a folder you own") from exc
    write_whole(train, (json.dumps(list(found.train), ensure_ascii=False, indent=1) + "\n").encode())
    write_whole(validation, _simple(found.validation))
    if found.training_labels is None:
        return train, validation
    write_whole(labels, _simple(found.training_labels))
    return train, validation, labels


def _simple(labels: Mapping[str, Label]) -> bytes:
    return simple_text({name: names_of(label) for name, label in labels.items()}).encode()


def read_names(path: Path) -> list[str]:
    """The names in a file such as `full_train.json`, or those that a simple file has labels of.

    Raises FileFormatError if it is neither.
    """
    raw: Any = read_json(path)
    if isinstance(raw, list) and all(isinstance(name, str) for name in raw):
        return list(raw)
    if is_simple(raw):
        return list(raw)
    raise FileFormatError(f"{path} is no list of names, nor file name → list of classes; see `split`")


# -- images to be labeled ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fetched:
    """How many images were put into a folder, how many were there, and why others are not: name → reason."""

    n_new: int
    n_there: int
    failed: Mapping[str, str]


def fetch(
    source: ImageSource, names: Sequence[str], target: Path, *, copy: bool, advance: Callable[[int, int], None]
) -> Fetched:
    """Puts images into a folder by their names: links to those of a folder, or copies; of a bucket always copies.

    Safe to run again: what is there is left. Raises ImageSourceError for a file of that name which is another one, and
    a target that cannot be written to.
    """
    place = source.place
    if isinstance(place, Path) and target.resolve().is_relative_to(place.resolve()):
        raise ImageSourceError(f"{target} lies in {place}, whose images it is to hold; name a folder elsewhere")
    is_linked = isinstance(place, Path) and not copy
    n_bytes = {file.name: file.n_bytes for file in source.files()}
    failed: dict[str, str] = {name: "it is not there" for name in names if name not in n_bytes}
    there = {name for name in names if name not in failed and _is_there(source, name, target, n_bytes[name], is_linked)}
    new = [name for name in names if name not in failed and name not in there]
    try:
        for n_done, (name, content) in enumerate(_contents(source, new, is_linked), start=1):
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is None:
                assert isinstance(place, Path)
                path.symlink_to((place / name).resolve())
            elif isinstance(content, ImageError):
                failed[name] = str(content)
            else:
                beside = path.with_name(f".{path.name}.{os.getpid()}.part")
                beside.write_bytes(content)
                beside.replace(path)
            advance(n_done, len(new))
    except OSError as exc:
        raise ImageSourceError(f"{exc.filename} cannot be written ({exc.strerror}); name a folder you own") from exc
    return Fetched(sum(name not in failed for name in new), len(there), failed)


def _contents(
    source: ImageSource, names: Sequence[str], is_linked: bool
) -> Iterable[tuple[str, bytes | ImageError | None]]:
    """Each name with its bytes; with None, where a link needs none."""
    if is_linked:
        return ((name, None) for name in names)
    return source.fetch_all(names)


def _is_there(source: ImageSource, name: str, target: Path, n_bytes: int, is_linked: bool) -> bool:
    """Whether the folder holds the image: a link to it, or a copy as long as it is."""
    path = target / name
    if not path.exists() and not path.is_symlink():
        return False
    original = source.place / name
    if path.is_symlink() and isinstance(original, Path) and path.resolve() == original.resolve():
        return True
    if not path.is_symlink() and path.is_file() and path.stat().st_size == n_bytes:
        return True
    how = "a link" if is_linked else "a copy"
    raise ImageSourceError(f"{path} is there and no {how[2:]} of {original}; name another folder, or delete it")
