"""The simple file of labels: a JSON object of file name → list of classes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from backend.errors import FileFormatError


def simple_text(labels: Mapping[str, Sequence[str]]) -> str:
    """The file's content, one image a line, in the order of the names."""
    lines = [
        f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(list(labels[name]), ensure_ascii=False)}"
        for name in sorted(labels)
    ]
    return "{\n" + ",\n".join(lines) + "\n}\n" if lines else "{}\n"


def write_simple(path: Path, labels: Mapping[str, Sequence[str]]) -> None:
    """Writes the labels, replacing a file that is there. Raises FileFormatError if it cannot be written."""
    write_whole(path, simple_text(labels).encode())


def read_simple(path: Path) -> dict[str, list[str]]:
    """The labels of a file that `write_simple`, or another program, wrote. Raises FileFormatError."""
    raw = read_json(path)
    if not is_simple(raw):
        raise FileFormatError(f"{path} is not a JSON object of file name → list of classes; export it anew as simple")
    return {name: list(classes) for name, classes in raw.items()}


def is_simple(raw: object) -> bool:
    """Whether that is what such a file holds."""
    return isinstance(raw, dict) and all(
        isinstance(classes, list) and all(isinstance(name, str) for name in classes) for classes in raw.values()
    )


def read_json(path: Path) -> Any:
    """A file's JSON. Raises FileFormatError for one that is not there, or is none."""
    try:
        return json.loads(read_text(path))
    except ValueError as exc:
        raise FileFormatError(f"{path} is no JSON ({exc}); export it anew") from exc


def read_text(path: Path) -> str:
    """A file's text, which is UTF-8, with or without a byte order mark. Raises FileFormatError."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as exc:
        raise FileFormatError(f"{path} cannot be read ({exc.strerror}); name a file that is there") from exc
    except UnicodeDecodeError as exc:
        raise FileFormatError(f"{path} is not UTF-8 (byte {exc.start}); save it as UTF-8") from exc


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file beside and renames it, so that it is there whole or not at all. Raises FileFormatError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as exc:
        beside.unlink(missing_ok=True)
        raise FileFormatError(f"{path} cannot be written ({exc.strerror}); name a place in a folder you own") from exc
