"""What a reference to an image names: which image of a folder is meant by what a task or a file says."""

from __future__ import annotations

import base64
import binascii
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

from backend.errors import UnmatchedError

SHOWN = 5
"""As many names a message lists at most."""

_UPLOADED = re.compile(r"/data/upload/(?:.*/)?[0-9a-f]{8}-(?P<name>[^/]+)\Z")
"""Where Label Studio keeps an uploaded file: eight hex digits before its name (data_import/models.py)."""


@dataclass(frozen=True)
class Matches:
    """Which names references mean.

    matched: reference → name.
    unmatched: reference → the names it may mean: none, or several and nothing that tells which.
    """

    matched: Mapping[str, str]
    unmatched: Mapping[str, tuple[str, ...]]


def path_of(reference: str) -> str:
    """The path in a reference, with '/' and nothing quoted: of a URL without host and query, of an upload the name of
    the file as Label Studio stores it, of a local file its path below the document root. '' for an image in itself.
    """
    if reference.startswith("data:"):
        return ""
    try:
        parts = urlsplit(reference)
    except ValueError:
        return reference.replace("\\", "/")
    query = parse_qs(parts.query)
    if parts.path.endswith("/data/local-files/") and "d" in query:
        return query["d"][0].replace("\\", "/")
    if parts.path.endswith(("/resolve/", "/presign/")) and "fileuri" in query:
        try:
            return path_of(base64.urlsafe_b64decode(query["fileuri"][0]).decode())
        except (binascii.Error, UnicodeDecodeError):
            return ""
    if found := _UPLOADED.search(parts.path):
        return unquote(found["name"])
    if parts.scheme in ("http", "https"):
        return unquote(parts.path).lstrip("/")
    if "://" in reference:  # a bucket: what looks like a query or a fragment may belong to a name there
        return reference.partition("://")[2]
    # A path. A path in a task is not quoted, but `#` and `?` may stand in the name of a file.
    return reference.replace("\\", "/").lstrip("/")


def is_uploaded(reference: str) -> bool:
    """Whether it is a file that Label Studio keeps itself, whose name it has made safe."""
    return _UPLOADED.search(urlsplit(reference).path) is not None if "/data/upload/" in reference else False


def stored_name(name: str) -> str:
    """What Label Studio makes of the name of an uploaded file: spaces are underscores, and other signs are left out."""
    # A browser sends a quotation mark as %22, of which the digits stay.
    return re.sub(r"[^-\w.]", "", name.strip().replace('"', "%22").replace(" ", "_"))


def find_names(references: Iterable[str], names: Iterable[str], *, ignore_extension: bool = False) -> Matches:
    """Which of the names (paths with '/') each reference means.

    The one with which it shares the longest end, whole steps of the path, if one of the two is the end of the other
    and no other name shares as much. Where that is so of none, a file name counts that occurs once among the names and
    once among the references. `ignore_extension`: names come without one, as of a label file beside an image.
    """
    by_file: dict[str, list[tuple[str, ...]]] = defaultdict(list)
    named: dict[tuple[str, ...], str] = {}
    for name in names:
        steps = _steps(name.replace("\\", "/"))
        if steps and steps not in named:
            named[steps] = name
            for key in {steps[-1], stored_name(steps[-1])}:
                by_file[key].append(steps)
    wanted = {reference: _wanted(reference, ignore_extension) for reference in references}
    n_of_file: dict[str, int] = defaultdict(int)
    for steps in set(wanted.values()):
        n_of_file[steps[-1] if steps else ""] += 1
    matched: dict[str, str] = {}
    unmatched: dict[str, tuple[str, ...]] = {}
    for reference, steps in wanted.items():
        fitting = by_file.get(steps[-1], []) if steps else []
        exactly = [candidate for candidate in fitting if candidate[-1] == steps[-1]]
        fitting = exactly or (fitting if is_uploaded(reference) else [])  # elsewhere what looks alike is another file
        shared = {candidate: _n_shared(steps, candidate) for candidate in fitting}
        ends = {candidate: n for candidate, n in shared.items() if n == min(len(steps), len(candidate))}
        longest = [candidate for candidate, n in ends.items() if n == max(ends.values())]
        if len(longest) == 1:
            matched[reference] = named[longest[0]]
        elif not longest and len(fitting) == 1 and n_of_file[steps[-1]] == 1:
            matched[reference] = named[fitting[0]]
        else:
            unmatched[reference] = tuple(sorted(named[candidate] for candidate in longest or fitting))
    return Matches(matched, unmatched)


def match_names(references: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """Reference → name, as `find_names`; raises UnmatchedError, which has both lists, unless each means one."""
    found = find_names(references, names)
    if found.unmatched:
        some = ", ".join(map(repr, list(found.unmatched)[:SHOWN]))
        more = f" and {len(found.unmatched) - SHOWN} more" if len(found.unmatched) > SHOWN else ""
        n_several = sum(1 for candidates in found.unmatched.values() if candidates)
        raise UnmatchedError(
            f"{len(found.unmatched)} of {len(found.unmatched) + len(found.matched)} images are not known for certain "
            f"({some}{more}): {len(found.unmatched) - n_several} fit no name and {n_several} fit several; give the "
            "folder that these files were labeled from",
            dict(found.matched),
            dict(found.unmatched),
        )
    return dict(found.matched)


def short_names(references: Sequence[str]) -> dict[str, str]:
    """Reference → the name of its file, or as much of the end of its path as tells it from the others; itself, where
    nothing does.
    """
    paths = {reference: _steps(path_of(reference)) for reference in references}
    found: dict[str, str] = {}
    left, length = list(paths), 1
    while left:
        groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for reference in left:
            groups[paths[reference][-length:]].append(reference)
        left = []
        for end, group in groups.items():
            if len(group) == 1 and end:
                found[group[0]] = "/".join(end)
            elif all(len(paths[reference]) <= length for reference in group):
                found.update({reference: reference for reference in group})
            else:
                left += group
        length += 1
    return {reference: found[reference] for reference in references}


def _wanted(reference: str, ignore_extension: bool) -> tuple[str, ...]:
    steps = _steps(path_of(reference))
    if steps and ignore_extension:
        return (*steps[:-1], _stem(steps[-1]))
    return steps


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _steps(path: str) -> tuple[str, ...]:
    # A Mac writes é as e and an accent, others as one character.
    return tuple(step for step in unicodedata.normalize("NFC", path).split("/") if step not in ("", "."))


def _n_shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many steps the ends of two paths share, of which the last is taken as the same."""
    n = 1
    while n < min(len(one), len(other)) and one[-n - 1] == other[-n - 1]:
        n += 1
    return n
