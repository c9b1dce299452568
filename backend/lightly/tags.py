"""Tags: named lists of a dataset's images, which is how a selection is kept and handed on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

from backend.errors import TagError
from backend.storage import LocalFolder

INITIAL_TAG = "initial-tag"
"""The tag that every dataset has from the start, of all its images; Lightly's name. It is not listed."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9 .:;=@_-]{0,79}")  # Lightly's characters
_SUFFIX = ".json"


class Tags:
    """The tags of a dataset; with a folder each is a JSON file there, without one they are kept in memory.

    A file is `{"name": …, "names": […]}`, written beside and renamed; other processes see it at once. A tag may hold
    names that the dataset no longer has: they stay in it, and selections do without them.
    """

    def __init__(self, all_names: Sequence[str], folder: Path | None = None) -> None:
        self._all_names = tuple(all_names)
        self._known = frozenset(all_names)
        self._folder = None if folder is None else LocalFolder(folder)
        self._in_memory: dict[str, tuple[str, ...]] = {}

    def create(self, name: str, names: Iterable[str]) -> None:
        """Makes a tag of these images, in this order; an empty one is allowed.

        Raises TagError for a name that is taken or not of Lightly's characters, and for images that are unknown or
        named twice.
        """
        self.check_free(name)
        members = tuple(names)
        unknown = [member for member in members if member not in self._known]
        if unknown:
            raise TagError(
                f"tag {name!r} was to hold {unknown[0]!r}{_others(unknown)}, of which the dataset has no image; pass "
                "names as the dataset has them"
            )
        if len(set(members)) < len(members):
            raise TagError(f"tag {name!r} was to hold an image twice; pass every name once")
        if self._folder is None:
            self._in_memory[name] = members
            return
        content = json.dumps({"name": name, "names": members}, ensure_ascii=False, indent=1)
        self._folder.write(_file_of(name), content.encode())

    def get(self, name: str) -> tuple[str, ...]:
        """The images of a tag, in the order they were put in it. Raises TagError if there is no such tag."""
        if name == INITIAL_TAG:
            return self._all_names
        if self._folder is None:
            if name in self._in_memory:
                return self._in_memory[name]
        else:
            content = self._folder.read(_file_of(name))
            if content is not None:
                return _read(name, content)
        known = ", ".join(repr(other) for other in self.names()) or "none"
        raise TagError(f"there is no tag {name!r}; the tags are: {known}")

    def names(self) -> list[str]:
        """The names of all tags, sorted; without `INITIAL_TAG`."""
        if self._folder is None:
            return sorted(self._in_memory)
        files = [file for file in self._folder.files("") if file.endswith(_SUFFIX) and not file.startswith(".")]
        return sorted(unquote(file.removesuffix(_SUFFIX)) for file in files)

    def delete(self, name: str) -> None:
        """Forgets a tag; its images stay. Raises TagError if there is no such tag."""
        if name == INITIAL_TAG:
            raise TagError(f"{INITIAL_TAG!r} is the dataset itself and cannot be deleted; name another tag")
        if name not in self.names():
            self.get(name)  # which says what there is
        if self._folder is None:
            del self._in_memory[name]
        else:
            self._folder.remove(_file_of(name))

    def union(self, a: str, b: str, name: str | None = None) -> tuple[str, ...]:
        """The images of either tag, those of `a` first; made a tag of its own if `name` is given."""
        first = self.get(a)
        return self._named(name, (*first, *_without(self.get(b), first)))

    def intersection(self, a: str, b: str, name: str | None = None) -> tuple[str, ...]:
        """The images of both tags, in the order of `a`; made a tag of its own if `name` is given."""
        first = self.get(a)
        return self._named(name, _without(first, _without(first, self.get(b))))

    def difference(self, a: str, b: str, name: str | None = None) -> tuple[str, ...]:
        """The images of tag `a` that are not in `b`, in their order; made a tag of its own if `name` is given."""
        return self._named(name, _without(self.get(a), self.get(b)))

    def export(self, name: str) -> str:
        """The tag as a text: one file name a line."""
        return "".join(f"{member}\n" for member in self.get(name))

    def check_free(self, name: str) -> None:
        """Raises TagError unless a tag of this name can be made."""
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise TagError(
                f"the tag name is {name!r}; expected 1 to 80 letters, digits, spaces and .:;=@_- that begin with a "
                "letter or digit"
            )
        if name == INITIAL_TAG or name in self.names():
            raise TagError(f"there is a tag {name!r} already; choose another name or delete it first")

    def _named(self, name: str | None, members: tuple[str, ...]) -> tuple[str, ...]:
        if name is not None:
            self.create(name, members)
        return members


def _without(names: Sequence[str], others: Sequence[str]) -> tuple[str, ...]:
    excluded = set(others)
    return tuple(name for name in names if name not in excluded)


def _file_of(name: str) -> str:
    return quote(name, safe="") + _SUFFIX


def _read(name: str, content: bytes) -> tuple[str, ...]:
    try:
        names = json.loads(content)["names"]
        if isinstance(names, list) and all(isinstance(member, str) for member in names):
            return tuple(names)
    except (ValueError, KeyError, TypeError):
        pass
    raise TagError(f"the file of tag {name!r}, {_file_of(name)}, is damaged; delete the tag and make it again")


def _others(names: Sequence[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""
